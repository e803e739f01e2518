//! Level `host`: a block is decrypted, checked and encrypted again here.
//!
//! Each operation works on clear values in its own workspace, filled in place and wiped, and scrubs the stack it used
//! before it answers.

use subtle::{Choice, ConditionallySelectable};

use hsm_protocol::{
    Account, Binding, BoundaryLevel, CardBinding, DeviceBlock, DeviceKey, EncryptedBlock, Error, FreshTzpk, Isolation,
    MadeAt, PinRecord, Refusal, SealedKey, bound_to_control,
};

use super::{account_digits, tagged};
use crate::{
    block::{
        AccountDigits, account_field, decode_iso_0, decode_iso_1, decode_iso_3, decode_iso_4, encode_iso_0,
        encode_iso_1, encode_iso_3, encode_iso_4,
    },
    clear::{Block, Pin, WideBlock, Workspace, in_workspace},
    config::HostForm,
    policy::PinPolicy,
    token::{HostLevel, IssuedTzpk, WrappedTzpk},
};

/// A token that decrypts blocks into this process, the policy of PINs, and the format of new records.
pub(crate) struct AtHost {
    pub(crate) token: Box<dyn HostLevel>,
    pub(crate) policy: PinPolicy,
    pub(crate) form: HostForm,
    pub(crate) isolation: Isolation,
}

impl AtHost {
    pub(super) fn issue_tzpk(&self, device: &DeviceKey, binding: &Binding) -> Result<FreshTzpk, Error> {
        in_workspace(|Workspace { tzpk, .. }| {
            let key = self.token.current().seal;
            let IssuedTzpk { wrapped, sealed } =
                self.token.issue_tzpk(device, &bound_to_control(key, binding), tzpk)?;
            let WrappedTzpk { wrapped, check_value } = wrapped;
            Ok(FreshTzpk { sealed: SealedKey::new(key, &sealed), wrapped, kcv: check_value })
        })
    }

    /// The same work is done whatever is wrong with a block: the verdict comes at the end.
    pub(super) fn device_to_record(
        &self,
        tzpk: &SealedKey,
        binding: &Binding,
        block: &EncryptedBlock,
        account: &Account,
    ) -> Result<PinRecord, Error> {
        in_workspace(|Workspace { tzpk: key, block: clear, wide, pin }| {
            let account = account_digits(&*self.token, account, &binding.card)?;
            clear.bytes_mut().copy_from_slice(block.as_bytes());
            self.token.open_block((tzpk.key(), tzpk.body()), &bound_to_control(tzpk.key(), binding), key, clear)?;
            let well_formed = decode_iso_1(clear, pin);
            let taken = self.policy.judge(pin);

            let record = self.keep(pin, (clear, wide), &account, &binding.card)?;
            match verdict(well_formed, taken) {
                Verdict::Taken => Ok(record),
                Verdict::Malformed => Err(Refusal::MalformedBlock.into()),
                Verdict::AgainstPolicy => Err(Refusal::PinPolicy.into()),
            }
        })
    }

    /// With random fill.
    pub(super) fn record_to_device(
        &self,
        record: &PinRecord,
        card: &CardBinding,
        account: &Account,
        device: &DeviceKey,
    ) -> Result<DeviceBlock, Error> {
        in_workspace(|Workspace { tzpk, block, wide, pin }| {
            let account = account_digits(&*self.token, account, card)?;
            self.open_record(record, &account, (block, wide), pin)?;

            let mut fill = Block::zeroed();
            self.token.random(fill.bytes_mut())?;
            encode_iso_1(block, pin, fill.nibbles());
            let WrappedTzpk { wrapped, check_value } = self.token.send_block(device, tzpk, block)?;
            let block = EncryptedBlock::from_bytes(block.bytes())?;
            Ok(DeviceBlock { wrapped, block, kcv: check_value })
        })
    }

    /// Under the newest storage key, in the form of new records. Its PIN is not checked again.
    pub(super) fn reencrypt(
        &self,
        record: &PinRecord,
        card: &CardBinding,
        account: &Account,
    ) -> Result<PinRecord, Error> {
        in_workspace(|Workspace { block, wide, pin, .. }| {
            let account = account_digits(&*self.token, account, card)?;
            self.open_record(record, &account, (block, wide), pin)?;
            self.keep(pin, (block, wide), &account, card)
        })
    }

    fn keep(
        &self,
        pin: &Pin,
        (block, wide): (&mut Block, &mut WideBlock),
        account: &AccountDigits,
        card: &CardBinding,
    ) -> Result<PinRecord, Error> {
        let key = self.token.current().storage.of(self.form.into());
        let kept = match self.form {
            HostForm::Iso4 => {
                let mut random = [0; 8];
                self.token.random(&mut random)?;
                encode_iso_4(wide, pin, u64::from_be_bytes(random));
                self.token.storage_encrypt_iso_4(wide, account_field(account))?;
                &wide.bytes()[..]
            }
            form @ (HostForm::Iso3 | HostForm::Iso0) => {
                if form == HostForm::Iso0 {
                    encode_iso_0(block, pin, account);
                } else {
                    encode_iso_3(block, pin, account, self.iso_3_fill()?);
                }
                self.token.storage_tdes_encrypt(block)?;
                &block.bytes()[..]
            }
        };
        tagged(
            &*self.token,
            PinRecord::untagged(
                key,
                self.form.into(),
                MadeAt { level: BoundaryLevel::Host, isolation: self.isolation },
                kept,
            ),
            card,
        )
    }

    fn open_record(
        &self,
        record: &PinRecord,
        account: &AccountDigits,
        (block, wide): (&mut Block, &mut WideBlock),
        pin: &mut Pin,
    ) -> Result<(), Error> {
        let broken = Error::SealBroken { what: "PIN record".into() };
        let Some(form) = HostForm::from_format(record.form()) else { return Err(broken) };
        let good = match form {
            HostForm::Iso4 => {
                wide.bytes_mut().iter_mut().zip(record.block()).for_each(|(place, byte)| *place = *byte);
                self.token.storage_decrypt_iso_4(record.storage_key(), wide, account_field(account))?;
                decode_iso_4(wide, pin)
            }
            HostForm::Iso3 | HostForm::Iso0 => {
                block.bytes_mut().iter_mut().zip(record.block()).for_each(|(place, byte)| *place = *byte);
                self.token.storage_tdes_decrypt(record.storage_key(), block)?;
                if form == HostForm::Iso0 {
                    decode_iso_0(block, pin, account)
                } else {
                    decode_iso_3(block, pin, account)
                }
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
