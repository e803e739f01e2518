//! The door: coarse operations, and nothing clear crosses.
//!
//! Each operation works on clear values in its own frame, filled in place and wiped on drop, and scrubs the stack it
//! used before it answers. The software token answers inline; the operations are `async` so that a token behind a
//! queue, or a process of its own, changes no caller.

use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{
    binding::{Binding, CardBinding, Level},
    block::{
        AccountDigits, account_field, decipher_iso_4, decode_iso_0, decode_iso_1, decode_iso_3, decode_iso_4,
        encode_iso_0, encode_iso_1, encode_iso_3, encode_iso_4,
    },
    check_value::CheckValue,
    clear::{Block, Pin, Tzpk, WideBlock, Workspace, in_workspace, scrub_stack},
    config::{Config, Form, StoredForm, Vault},
    device_key::DeviceKey,
    error::{AcceptError, Error, OpenError, Refusal},
    harden::{MemoryLock, harden},
    policy::PinPolicy,
    sealed::{
        ACCOUNT_BYTES, EncryptedBlock, NONCE_BYTES, PinRecord, SealedAccount, SealedKey, account_bound_to,
        bound_to_control, record_bound_to,
    },
    selftest,
    token::{Software, TdesBudget, Token, tzpk_check_value, tzpk_decrypt, tzpk_encrypt},
    vault::{Keys, make_tdes_key},
};

/// The key boundary, opened.
pub struct Hsm {
    token: Box<dyn Token>,
    policy: PinPolicy,
    form: Form,
    status: Status,
}

impl Hsm {
    /// Hardens the process, computes the known answers, opens the keys.
    pub fn open(config: Config) -> Result<Self, OpenError> {
        let memory = harden(config.lock_memory)?;
        selftest::run()?;
        let keys = Keys::open(&config.vault)?;
        let count = match &config.vault {
            Vault::Memory => None,
            Vault::File { path, .. } => Some(path.with_extension("3des-count")),
        };
        let budget = TdesBudget::open(count.clone())
            .map_err(|error| OpenError::Io { path: count.unwrap_or_default(), error })?;
        let token = Software::new(&keys, budget).map_err(|_| OpenError::SelfTest { step: "preparing the keys" })?;
        drop(keys);
        scrub_stack();
        let status = Status::of(&token, &config.form, &memory, &config.vault);
        Ok(Self { token: Box::new(token), policy: config.policy, form: config.form.form(), status })
    }

    /// What this boundary is and promises.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Makes a fresh tzpk: sealed for ourselves with its binding, wrapped for the device.
    pub async fn issue(&self, device: &DeviceKey, binding: &Binding<'_>) -> Result<Issued, Error> {
        in_workspace(|Workspace { tzpk, .. }| {
            let (wrapped, check_value) = self.fresh_tzpk(device, tzpk)?;
            let mut nonce = [0; NONCE_BYTES];
            self.token.random(&mut nonce)?;
            let key = self.token.current();
            // Sealed in place: from here on it is ciphertext.
            let tag = self.token.seal_tzpk(tzpk, &nonce, &bound_to_control(key, binding))?;
            Ok(Issued { sealed: SealedKey::new(key, &nonce, tzpk.bytes(), &tag), wrapped, check_value })
        })
    }

    /// Opens the block under its tzpk, judges it, and makes it anew under the storage key, bound to the account.
    ///
    /// The same work is done whatever is wrong with a block: it is judged as a whole, at the end.
    pub async fn accept(
        &self,
        tzpk: &SealedKey,
        binding: &Binding<'_>,
        block: &EncryptedBlock,
        account: Account<'_>,
    ) -> Result<Accepted, AcceptError> {
        in_workspace(|Workspace { tzpk: key, block: clear, wide, pin }| {
            self.token.open_tzpk(tzpk.parts(), &bound_to_control(tzpk.key(), binding), key)?;
            let account = self.account_digits(account, &binding.card)?;

            clear.bytes_mut().copy_from_slice(block.as_bytes());
            tzpk_decrypt(key, clear);
            let well_formed = decode_iso_1(clear, pin);
            let taken = self.policy.judge(pin);

            let record = self.keep(pin, (clear, wide), &account, &binding.card)?;
            let retry_tag = self.token.retry_tag(binding.control, block.as_bytes());
            match verdict(well_formed, taken) {
                Verdict::Taken => Ok(Accepted { record, retry_tag }),
                Verdict::Malformed => Err(Refusal::MalformedBlock.into()),
                Verdict::AgainstPolicy => Err(Refusal::PinPolicy.into()),
            }
        })
    }

    /// The tag that [`Hsm::accept`] gives this block under this control: a retry has the same.
    pub async fn retry_tag(&self, binding: &Binding<'_>, block: &EncryptedBlock) -> Result<[u8; 16], Error> {
        Ok(self.token.retry_tag(binding.control, block.as_bytes()))
    }

    /// Opens a record and encrypts its PIN, as an ISO-1 block with random fill, under a fresh tzpk for the device.
    pub async fn reveal(
        &self,
        record: &PinRecord,
        binding: &Binding<'_>,
        account: Account<'_>,
        device: &DeviceKey,
    ) -> Result<Revealed, Error> {
        in_workspace(|Workspace { tzpk, block, wide, pin }| {
            let account = self.account_digits(account, &binding.card)?;
            self.open_record(record, &binding.card, &account, (block, wide), pin)?;

            let (wrapped, check_value) = self.fresh_tzpk(device, tzpk)?;
            let mut fill = Block::zeroed();
            self.token.random(fill.bytes_mut())?;
            encode_iso_1(block, pin, fill.nibbles());
            tzpk_encrypt(tzpk, block);
            let block = EncryptedBlock::from_bytes(block.bytes())?;
            Ok(Revealed { wrapped, block, check_value })
        })
    }

    /// Seals an account number for a card.
    pub async fn seal_account(&self, number: &AccountNumber, card: CardBinding<'_>) -> Result<SealedAccount, Error> {
        let key = self.token.current();
        let mut packed = Zeroizing::new([0xFF; ACCOUNT_BYTES]);
        for (place, digit) in number.digits.as_slice().iter().enumerate() {
            if let Some(byte) = packed.get_mut(place / 2) {
                *byte = if place.is_multiple_of(2) { (*byte & 0x0F) | (digit << 4) } else { (*byte & 0xF0) | digit };
            }
        }
        let tag = self.token.seal_account(&mut packed, &account_bound_to(key, &card))?;
        Ok(SealedAccount::new(key, &packed, &tag))
    }

    fn fresh_tzpk(&self, device: &DeviceKey, tzpk: &mut Tzpk) -> Result<(Vec<u8>, CheckValue), Error> {
        make_tdes_key(tzpk).map_err(|_| Error::Unavailable { reason: "the random generator failed" })?;
        let check_value = tzpk_check_value(tzpk);
        let wrapped = device.wrap(tzpk).ok_or(Error::Unavailable { reason: "RSA-OAEP failed" })?;
        Ok((wrapped, check_value))
    }

    fn account_digits(&self, account: Account<'_>, card: &CardBinding<'_>) -> Result<AccountDigits, Error> {
        let Account::Registered(sealed) = account else {
            return AccountDigits::parse(card.plastic_id).ok_or(Error::PlasticId);
        };
        let mut packed = Zeroizing::new([0; ACCOUNT_BYTES]);
        let bound = account_bound_to(sealed.key(), card);
        self.token.open_account(sealed.ciphertext_and_tag(), &bound, &mut packed)?;
        AccountDigits::unpack(&packed[..]).ok_or(Error::SealBroken { what: "account" })
    }

    fn keep(
        &self,
        pin: &Pin,
        (block, wide): (&mut Block, &mut WideBlock),
        account: &AccountDigits,
        card: &CardBinding<'_>,
    ) -> Result<PinRecord, Error> {
        let key = self.token.current();
        let mut record = match self.form {
            Form::Iso4 => {
                let mut random = [0; 8];
                self.token.random(&mut random)?;
                encode_iso_4(wide, pin, u64::from_be_bytes(random));
                self.token.storage_encrypt_iso_4(wide, account_field(account));
                PinRecord::untagged(key, self.form, Level::Host, wide.bytes())
            }
            Form::Iso3 | Form::Iso0 => {
                if self.form == Form::Iso0 {
                    encode_iso_0(block, pin, account);
                } else {
                    encode_iso_3(block, pin, account, self.iso_3_fill()?);
                }
                self.token.storage_tdes_encrypt(block)?;
                PinRecord::untagged(key, self.form, Level::Host, block.bytes())
            }
        };
        let tag = self.token.record_tag(record.tagged_bytes(), &record_bound_to(key, card));
        record.set_tag(&tag);
        Ok(record)
    }

    fn open_record(
        &self,
        record: &PinRecord,
        card: &CardBinding<'_>,
        account: &AccountDigits,
        (block, wide): (&mut Block, &mut WideBlock),
        pin: &mut Pin,
    ) -> Result<(), Error> {
        let broken = Error::SealBroken { what: "PIN record" };
        if record.storage_key() != self.token.current() {
            return Err(Error::UnknownKey);
        }
        let tag = self.token.record_tag(record.tagged_bytes(), &record_bound_to(record.storage_key(), card));
        if !bool::from(tag.ct_eq(record.tag())) {
            return Err(broken);
        }
        let good = match record.form() {
            Form::Iso4 => {
                wide.bytes_mut().iter_mut().zip(record.block()).for_each(|(place, byte)| *place = *byte);
                decipher_iso_4(wide, account, |block| self.token.storage_aes_decrypt(block));
                decode_iso_4(wide, pin)
            }
            form @ (Form::Iso3 | Form::Iso0) => {
                block.bytes_mut().iter_mut().zip(record.block()).for_each(|(place, byte)| *place = *byte);
                self.token.storage_tdes_decrypt(block);
                if form == Form::Iso0 { decode_iso_0(block, pin, account) } else { decode_iso_3(block, pin, account) }
            }
        };
        if bool::from(good) { Ok(()) } else { Err(broken) }
    }

    /// Sixteen random nibbles within A to F, none likelier than another: bytes of 252 and above are thrown away.
    fn iso_3_fill(&self) -> Result<u64, Error> {
        let (mut fill, mut missing) = (0u64, 16);
        while missing > 0 {
            let mut random = [0; 16];
            self.token.random(&mut random)?;
            for byte in random.iter().filter(|byte| **byte < 252).take(missing) {
                fill = (fill << 4) | u64::from(0xA + byte % 6);
                missing -= 1;
            }
        }
        Ok(fill)
    }
}

enum Verdict {
    Taken,
    Malformed,
    AgainstPolicy,
}

fn verdict(well_formed: Choice, taken: Choice) -> Verdict {
    let code = u8::conditional_select(&1, &u8::conditional_select(&2, &0, taken), well_formed);
    match code {
        0 => Verdict::Taken,
        1 => Verdict::Malformed,
        _ => Verdict::AgainstPolicy,
    }
}

/// What binds a stored block to its card.
#[derive(Clone, Copy)]
pub enum Account<'a> {
    /// The account number registered for it.
    Registered(&'a SealedAccount),
    /// The digits of its plasticId.
    PlasticId,
}

/// An account number: 12 to 19 digits. No `Debug`: print [`AccountNumber::masked`].
pub struct AccountNumber {
    digits: AccountDigits,
}

/// The fewest digits of an account number.
const ACCOUNT_NUMBER_DIGITS_MIN: usize = 12;

impl AccountNumber {
    /// Reads decimal digits. The check digit is not checked: test cards have any.
    pub fn parse(text: &str) -> Result<Self, AccountNumberError> {
        let long_enough = text.len() >= ACCOUNT_NUMBER_DIGITS_MIN;
        AccountDigits::parse(text).filter(|_| long_enough).map(|digits| Self { digits }).ok_or(AccountNumberError)
    }

    /// The first six and the last four digits, stars between (PCI DSS 3.4.1).
    pub fn masked(&self) -> String {
        let digits = self.digits.as_slice();
        let shown = |place: usize| place < 6 || place + 4 >= digits.len();
        let print = |(place, digit): (usize, &u8)| if shown(place) { char::from(b'0' + digit) } else { '*' };
        digits.iter().enumerate().map(print).collect()
    }
}

/// The text is not an account number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("an account number is {ACCOUNT_NUMBER_DIGITS_MIN} to 19 decimal digits")]
pub struct AccountNumberError;

/// A fresh tzpk.
pub struct Issued {
    /// For ourselves, with its binding.
    pub sealed: SealedKey,
    /// For the device: RSA-OAEP.
    pub wrapped: Vec<u8>,
    /// To compare.
    pub check_value: CheckValue,
}

/// An accepted PIN.
pub struct Accepted {
    /// To keep.
    pub record: PinRecord,
    /// Tells a retry from another block.
    pub retry_tag: [u8; 16],
}

/// A PIN on its way to its device.
pub struct Revealed {
    /// The fresh tzpk, for the device: RSA-OAEP.
    pub wrapped: Vec<u8>,
    /// The PIN, as an ISO-1 block under it.
    pub block: EncryptedBlock,
    /// Of the tzpk.
    pub check_value: CheckValue,
}

/// What a boundary is and promises; nothing in it is secret.
#[derive(Clone, Debug)]
pub struct Status {
    token: &'static str,
    level: Level,
    form: StoredForm,
    keys: Vec<String>,
    memory: MemoryLock,
    persistent: bool,
}

impl Status {
    fn of(token: &dyn Token, form: &StoredForm, memory: &MemoryLock, vault: &Vault) -> Self {
        Self {
            token: token.name(),
            level: Level::Host,
            form: form.clone(),
            keys: token.keys(),
            memory: memory.clone(),
            persistent: matches!(vault, Vault::File { .. }),
        }
    }

    /// The token's name.
    pub fn token(&self) -> &'static str {
        self.token
    }

    /// The boundary level.
    pub fn level(&self) -> Level {
        self.level
    }

    /// The form of new records.
    pub fn form(&self) -> Form {
        self.form.form()
    }

    /// The keys by use and version, with check values.
    pub fn keys(&self) -> &[String] {
        &self.keys
    }

    /// For people: what it is, then what it cannot promise.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("key boundary: {} token, level {}", self.token, self.level)];
        lines.push(format!("keys: {}", self.keys.join(" ")));
        lines.push(match &self.form {
            StoredForm::Iso4 => "PINs are kept as ISO 9564 format 4 under AES-256".to_owned(),
            StoredForm::Iso3 { until } => {
                format!("EXCEPTION until {until}: PINs are kept as ISO 9564 format 3 under 3DES")
            }
            StoredForm::Iso0 { until } => {
                format!("EXCEPTION until {until}: PINs are kept as ISO 9564 format 0 under 3DES")
            }
        });
        lines.push(
            "not promised: the software token's keys are in this process's memory, not in certified hardware".into(),
        );
        if let MemoryLock::NotLocked(reason) = &self.memory {
            lines.push(format!("not promised: memory is not locked and may be swapped ({reason})"));
        }
        if !self.persistent {
            lines.push("not promised: keys are in memory alone, and are gone when this process ends".into());
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        encoding::{AsDer, PublicKeyX509Der},
        rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey},
    };

    use super::*;
    use crate::binding::Purpose;

    const CARD: CardBinding<'static> = CardBinding { tenant: "bank", plastic_id: "1000200030" };
    const CONTROL: [u8; 16] = [7; 16];

    fn binding() -> Binding<'static> {
        Binding { card: CARD, control: &CONTROL, purpose: Purpose::SetPin, expires_at_unix_milliseconds: 1_000 }
    }

    /// The software token answers at the first poll.
    fn now<T>(work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        match work.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(done) => done,
            std::task::Poll::Pending => panic!("it did not answer inline"),
        }
    }

    struct Phone {
        public: DeviceKey,
        private: OaepPrivateDecryptingKey,
    }

    impl Phone {
        fn new() -> Self {
            let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
            let der: PublicKeyX509Der<'_> = private.public_key().as_der().unwrap();
            let public = DeviceKey::parse(der.as_ref()).unwrap();
            Self { public, private: OaepPrivateDecryptingKey::new(private).unwrap() }
        }

        fn tzpk(&self, wrapped: &[u8]) -> Tzpk {
            let mut room = vec![0; 256];
            let mut tzpk = Tzpk::zeroed();
            let opened = self.private.decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut room, None).unwrap();
            tzpk.bytes_mut().copy_from_slice(opened);
            tzpk
        }

        /// An ISO-1 block under an issued tzpk.
        fn block(&self, issued: &Issued, clear: u64) -> EncryptedBlock {
            let mut block = Block::zeroed();
            block.set_nibbles(clear);
            tzpk_encrypt(&self.tzpk(&issued.wrapped), &mut block);
            EncryptedBlock::from_bytes(block.bytes()).unwrap()
        }
    }

    fn opened(form: StoredForm) -> Hsm {
        Hsm::open(Config { form, ..Config::default() }).unwrap()
    }

    #[test]
    fn a_pin_goes_in_and_comes_out_in_every_stored_form() {
        let phone = Phone::new();
        let until = || "2999-12-31".to_owned();
        for form in [StoredForm::Iso4, StoredForm::Iso3 { until: until() }, StoredForm::Iso0 { until: until() }] {
            let hsm = opened(form);
            let account = now(hsm.seal_account(&AccountNumber::parse("5413330089020011").unwrap(), CARD)).unwrap();
            for account in [Account::PlasticId, Account::Registered(&account)] {
                let issued = now(hsm.issue(&phone.public, &binding())).unwrap();
                let block = phone.block(&issued, 0x1625_8091_7C90_5EF1);
                let accepted = now(hsm.accept(&issued.sealed, &binding(), &block, account)).unwrap();
                let revealed = now(hsm.reveal(&accepted.record, &binding(), account, &phone.public)).unwrap();
                let mut shown = Block::zeroed();
                shown.bytes_mut().copy_from_slice(revealed.block.as_bytes());
                tzpk_decrypt(&phone.tzpk(&revealed.wrapped), &mut shown);
                assert_eq!(shown.nibbles() >> 32, 0x1625_8091);
            }
        }
    }

    #[test]
    fn a_tzpk_has_odd_parity_different_halves_and_the_check_value_it_is_said_to_have() {
        let (hsm, phone) = (opened(StoredForm::Iso4), Phone::new());
        let issued = now(hsm.issue(&phone.public, &binding())).unwrap();
        let tzpk = phone.tzpk(&issued.wrapped);
        assert!(tzpk.bytes().iter().all(|byte| byte.count_ones() % 2 == 1));
        assert!(tzpk.bytes()[..8] != tzpk.bytes()[8..]);
        assert_eq!(tzpk_check_value(&tzpk), issued.check_value);
    }

    #[test]
    fn a_sealed_tzpk_opens_under_its_own_binding_alone() {
        let (hsm, phone) = (opened(StoredForm::Iso4), Phone::new());
        let issued = now(hsm.issue(&phone.public, &binding())).unwrap();
        let block = phone.block(&issued, 0x1425_80AA_AAAA_AAAA);
        let others = [
            Binding { control: &[8; 16], ..binding() },
            Binding { purpose: Purpose::ViewPin, ..binding() },
            Binding { expires_at_unix_milliseconds: 1_001, ..binding() },
            Binding { card: CardBinding { tenant: "other", ..CARD }, ..binding() },
            Binding { card: CardBinding { plastic_id: "1000200031", ..CARD }, ..binding() },
        ];
        for other in others {
            let answer = now(hsm.accept(&issued.sealed, &other, &block, Account::PlasticId));
            assert!(matches!(answer, Err(AcceptError::Failed(Error::SealBroken { .. }))));
        }
        assert!(now(hsm.accept(&issued.sealed, &binding(), &block, Account::PlasticId)).is_ok());
    }

    #[test]
    fn a_record_moved_to_another_card_or_changed_in_any_byte_does_not_open() {
        let (hsm, phone) = (opened(StoredForm::Iso4), Phone::new());
        let issued = now(hsm.issue(&phone.public, &binding())).unwrap();
        let block = phone.block(&issued, 0x1425_80AA_AAAA_AAAA);
        let record = now(hsm.accept(&issued.sealed, &binding(), &block, Account::PlasticId)).unwrap().record;
        let other = Binding { card: CardBinding { plastic_id: "1000200031", ..CARD }, ..binding() };
        assert!(now(hsm.reveal(&record, &other, Account::PlasticId, &phone.public)).is_err());
        for at in 0..record.as_bytes().len() {
            let mut changed = record.as_bytes().to_vec();
            changed[at] ^= 1;
            let Ok(changed) = PinRecord::from_bytes(&changed) else { continue };
            assert!(now(hsm.reveal(&changed, &binding(), Account::PlasticId, &phone.public)).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_blob_of_one_use_is_not_taken_for_another() {
        let (hsm, phone) = (opened(StoredForm::Iso4), Phone::new());
        let issued = now(hsm.issue(&phone.public, &binding())).unwrap();
        assert!(SealedAccount::from_bytes(issued.sealed.as_bytes()).is_err());
        assert!(PinRecord::from_bytes(issued.sealed.as_bytes()).is_err());
    }

    #[test]
    fn the_same_pin_is_never_stored_alike_and_the_same_account_always_is() {
        let (hsm, phone) = (opened(StoredForm::Iso4), Phone::new());
        let issued = now(hsm.issue(&phone.public, &binding())).unwrap();
        let block = phone.block(&issued, 0x1425_80AA_AAAA_AAAA);
        let record = || now(hsm.accept(&issued.sealed, &binding(), &block, Account::PlasticId)).unwrap().record;
        assert_ne!(record().as_bytes(), record().as_bytes());
        let number = AccountNumber::parse("5413330089020011").unwrap();
        let sealed = |card| now(hsm.seal_account(&number, card)).unwrap().as_bytes().to_vec();
        assert_eq!(sealed(CARD), sealed(CARD));
        assert_ne!(sealed(CARD), sealed(CardBinding { plastic_id: "2", ..CARD }));
    }

    #[test]
    fn malformed_and_refused_are_told_apart_and_a_retry_has_the_tag_of_the_first() {
        let (hsm, phone) = (opened(StoredForm::Iso4), Phone::new());
        let issued = now(hsm.issue(&phone.public, &binding())).unwrap();
        let answer = |clear| {
            let block = phone.block(&issued, clear);
            now(hsm.accept(&issued.sealed, &binding(), &block, Account::PlasticId)).map(|accepted| {
                assert_eq!(accepted.retry_tag, now(hsm.retry_tag(&binding(), &block)).unwrap());
            })
        };
        assert!(answer(0x1425_80AA_AAAA_AAAA).is_ok());
        assert!(matches!(answer(0x1412_34AA_AAAA_AAAA), Err(AcceptError::Refused(Refusal::PinPolicy))));
        for malformed in [0x0425_80FF_FFFF_FFFF, 0x1325_8AAA_AAAA_AAAA, 0x1D25_8000_0000_0000, 0x14A5_80AA_AAAA_AAAA] {
            let answer = answer(malformed);
            assert!(matches!(answer, Err(AcceptError::Refused(Refusal::MalformedBlock))), "{malformed:x}");
        }
    }
}
