//! What the boundary does, operation by operation, on whatever token it has. Blocking; nothing clear is returned.
//!
//! Each operation works on clear values in its own workspace, filled in place and wiped, and scrubs the stack it used
//! before it answers.

use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use zeroize::Zeroizing;

use crate::{
    binding::{Binding, CardBinding, Level},
    block::{
        AccountDigits, account_field, decode_iso_0, decode_iso_1, decode_iso_3, decode_iso_4, encode_iso_0,
        encode_iso_1, encode_iso_3, encode_iso_4,
    },
    clear::{Block, Pin, WideBlock, Workspace, in_workspace},
    config::Form,
    device_key::DeviceKey,
    door::{Accepted, Account, AccountNumber, Issued, Revealed},
    error::{AcceptError, Error, Refusal},
    policy::PinPolicy,
    sealed::{
        ACCOUNT_BYTES, EncryptedBlock, PinRecord, SealedAccount, SealedKey, account_bound_to, bound_to_control,
        record_bound_to,
    },
    token::{IssuedTzpk, Token, WrappedTzpk},
};

/// A token, and what is done with it.
pub(crate) struct Boundary {
    pub(crate) token: Box<dyn Token>,
    pub(crate) policy: PinPolicy,
    pub(crate) form: Form,
}

impl Boundary {
    /// Makes a fresh tzpk: sealed for ourselves with its binding, wrapped for the device.
    pub(crate) fn issue(&self, device: &DeviceKey, binding: &Binding<'_>) -> Result<Issued, Error> {
        in_workspace(|Workspace { tzpk, .. }| {
            let key = self.token.current();
            let IssuedTzpk { wrapped, sealed } =
                self.token.issue_tzpk(device, &bound_to_control(key, binding), tzpk)?;
            let WrappedTzpk { wrapped, check_value } = wrapped;
            Ok(Issued { sealed: SealedKey::new(key, &sealed), wrapped, check_value })
        })
    }

    /// Opens the block under its tzpk, judges it, and makes it anew under the storage key, bound to the account.
    ///
    /// The same work is done whatever is wrong with a block: it is judged as a whole, at the end.
    pub(crate) fn accept(
        &self,
        tzpk: &SealedKey,
        binding: &Binding<'_>,
        block: &EncryptedBlock,
        account: Account<'_>,
    ) -> Result<Accepted, AcceptError> {
        in_workspace(|Workspace { tzpk: key, block: clear, wide, pin }| {
            let account = self.account_digits(account, &binding.card)?;
            clear.bytes_mut().copy_from_slice(block.as_bytes());
            self.token.open_block(tzpk.body(), &bound_to_control(tzpk.key(), binding), key, clear)?;
            let well_formed = decode_iso_1(clear, pin);
            let taken = self.policy.judge(pin);

            let record = self.keep(pin, (clear, wide), &account, &binding.card)?;
            let retry_tag = self.token.retry_tag(binding.control, block.as_bytes())?;
            match verdict(well_formed, taken) {
                Verdict::Taken => Ok(Accepted { record, retry_tag }),
                Verdict::Malformed => Err(Refusal::MalformedBlock.into()),
                Verdict::AgainstPolicy => Err(Refusal::PinPolicy.into()),
            }
        })
    }

    /// The tag that [`Boundary::accept`] gives this block under this control: a retry has the same.
    pub(crate) fn retry_tag(&self, binding: &Binding<'_>, block: &EncryptedBlock) -> Result<[u8; 16], Error> {
        self.token.retry_tag(binding.control, block.as_bytes())
    }

    /// Opens a record and encrypts its PIN, as an ISO-1 block with random fill, under a fresh tzpk for the device.
    pub(crate) fn reveal(
        &self,
        record: &PinRecord,
        binding: &Binding<'_>,
        account: Account<'_>,
        device: &DeviceKey,
    ) -> Result<Revealed, Error> {
        in_workspace(|Workspace { tzpk, block, wide, pin }| {
            let account = self.account_digits(account, &binding.card)?;
            self.open_record(record, &binding.card, &account, (block, wide), pin)?;

            let mut fill = Block::zeroed();
            self.token.random(fill.bytes_mut())?;
            encode_iso_1(block, pin, fill.nibbles());
            let WrappedTzpk { wrapped, check_value } = self.token.send_block(device, tzpk, block)?;
            let block = EncryptedBlock::from_bytes(block.bytes())?;
            Ok(Revealed { wrapped, block, check_value })
        })
    }

    /// Seals an account number for a card.
    pub(crate) fn seal_account(&self, number: &AccountNumber, card: CardBinding<'_>) -> Result<SealedAccount, Error> {
        let key = self.token.current();
        let mut packed = Zeroizing::new([0xFF; ACCOUNT_BYTES]);
        for (place, digit) in number.digits().as_slice().iter().enumerate() {
            if let Some(byte) = packed.get_mut(place / 2) {
                *byte = if place.is_multiple_of(2) { (*byte & 0x0F) | (digit << 4) } else { (*byte & 0xF0) | digit };
            }
        }
        let tag = self.token.seal_account(&mut packed, &account_bound_to(key, &card))?;
        Ok(SealedAccount::new(key, &packed, &tag))
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
                self.token.storage_encrypt_iso_4(wide, account_field(account))?;
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
        let tag = self.token.record_tag(record.tagged_bytes(), &record_bound_to(key, card))?;
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
        let tag = self.token.record_tag(record.tagged_bytes(), &record_bound_to(record.storage_key(), card))?;
        if !bool::from(tag.ct_eq(record.tag())) {
            return Err(broken);
        }
        let good = match record.form() {
            Form::Iso4 => {
                wide.bytes_mut().iter_mut().zip(record.block()).for_each(|(place, byte)| *place = *byte);
                self.token.storage_decrypt_iso_4(wide, account_field(account))?;
                decode_iso_4(wide, pin)
            }
            form @ (Form::Iso3 | Form::Iso0) => {
                block.bytes_mut().iter_mut().zip(record.block()).for_each(|(place, byte)| *place = *byte);
                self.token.storage_tdes_decrypt(block)?;
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
