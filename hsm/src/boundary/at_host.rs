//! Level `host`: this process decrypts a block, checks it and encrypts it under another key.
//!
//! Each operation keeps clear values in a workspace, which is filled in place and wiped. It scrubs the used stack before it
//! returns. A batch (`together.rs`) has decrypted the blocks of some operations before.

use subtle::{Choice, ConditionallySelectable};

use hsm_protocol::{
    Account, Binding, BoundaryLevel, CardBinding, DeviceBlock, DeviceKey, EncryptedBlock, Error, FreshTzpk, Isolation,
    KeyVersion, MadeAt, PinRecord, Refusal, SealedKey, StorageFormat, StorageVersions, bound_to_control,
};

use super::{account_digits, tagged, together::Decrypted};
use crate::{
    block::{
        AccountDigits, account_field, decode_iso_0, decode_iso_1, decode_iso_3, decode_iso_4, encode_iso_0,
        encode_iso_1, encode_iso_3, encode_iso_4,
    },
    clear::{Block, Pin, WideBlock, Workspace, in_workspace},
    config::HostForm,
    policy::PinPolicy,
    token::{HostLevel, IssuedTzpk, WrappedTzpk},
    zones::Zones,
};

/// A token that decrypts blocks into this process, the PIN policy, and the format of new records.
pub(crate) struct AtHost {
    pub(crate) token: Box<dyn HostLevel>,
    pub(crate) policy: PinPolicy,
    pub(crate) form: HostForm,
    pub(crate) isolation: Isolation,
    pub(crate) zones: Zones,
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

    /// Re-encrypts a device's block as a record. Every block costs the same work, so that the time does not reveal the fault:
    /// the result is chosen at the end.
    pub(super) fn device_to_record(
        &self,
        storage: StorageVersions,
        tzpk: &SealedKey,
        binding: &Binding,
        (block, decrypted): (&EncryptedBlock, Option<Decrypted<'_>>),
        account: &Account,
    ) -> Result<PinRecord, Error> {
        in_workspace(|Workspace { tzpk: key, block: clear, wide, pin }| {
            let account = account_digits(&*self.token, account, &binding.card)?;
            if let Some(decrypted) = decrypted {
                decrypted.copy(clear);
            } else {
                clear.bytes_mut().copy_from_slice(block.as_bytes());
                self.token.open_block((tzpk.key(), tzpk.body()), &bound_to_control(tzpk.key(), binding), key, clear)?;
            }
            let well_formed = decode_iso_1(clear, pin);
            let is_allowed = self.policy.judge(pin);

            let record = self.encrypt_record(storage, pin, (clear, wide), &account, &binding.card)?;
            match check_result(well_formed, is_allowed) {
                CheckResult::Accepted => Ok(record),
                CheckResult::Malformed => Err(Refusal::MalformedBlock.into()),
                CheckResult::AgainstPolicy => Err(Refusal::PinPolicy.into()),
            }
        })
    }

    /// Re-encrypts a record's PIN for a device, as a format 1 block with random fill.
    pub(super) fn record_to_device(
        &self,
        (record, decrypted): (&PinRecord, Option<Decrypted<'_>>),
        card: &CardBinding,
        account: &Account,
        device: &DeviceKey,
    ) -> Result<DeviceBlock, Error> {
        in_workspace(|Workspace { tzpk, block, wide, pin }| {
            let account = account_digits(&*self.token, account, card)?;
            self.open_record((record, decrypted), &account, (block, wide), pin)?;

            let mut fill = Block::zeroed();
            self.token.random(fill.bytes_mut())?;
            encode_iso_1(block, pin, fill.nibbles());
            let WrappedTzpk { wrapped, check_value } = self.token.send_block(device, tzpk, block)?;
            let block = EncryptedBlock::from_bytes(block.bytes())?;
            Ok(DeviceBlock { wrapped, block, kcv: check_value })
        })
    }

    /// Re-encrypts a record under the storage key, and in the format, of new records. The PIN policy is not applied again.
    pub(super) fn reencrypt(
        &self,
        storage: StorageVersions,
        (record, decrypted): (&PinRecord, Option<Decrypted<'_>>),
        card: &CardBinding,
        account: &Account,
    ) -> Result<PinRecord, Error> {
        in_workspace(|Workspace { block, wide, pin, .. }| {
            let account = account_digits(&*self.token, account, card)?;
            self.open_record((record, decrypted), &account, (block, wide), pin)?;
            self.encrypt_record(storage, pin, (block, wide), &account, card)
        })
    }

    /// Re-encrypts a record for another account number of its card, or another card of its account number, in the format of
    /// new records. The PIN policy is not applied again.
    ///
    /// # Errors
    /// [`Error::OtherAccount`] where both differ, or the tenants of the cards; [`Error::OneWay`] for a one-way record and another card.
    pub(super) fn rebind(
        &self,
        storage: StorageVersions,
        record: &PinRecord,
        (card, account): &(CardBinding, Account),
        (to_card, to_account): &(CardBinding, Account),
    ) -> Result<PinRecord, Error> {
        in_workspace(|Workspace { block, wide, pin, .. }| {
            let account = account_digits(&*self.token, account, card)?;
            let to_account = account_digits(&*self.token, to_account, to_card)?;
            let same_account = account.as_slice() == to_account.as_slice() && card.tenant() == to_card.tenant();
            match (card == to_card, same_account) {
                (false, false) => return Err(Error::OtherAccount),
                (true, _) if record.form() == StorageFormat::OneWay => return Ok(record.clone()),
                _ => {}
            }
            self.open_record((record, None), &account, (block, wide), pin)?;
            self.encrypt_record(storage, pin, (block, wide), &to_account, to_card)
        })
    }

    /// Encrypts a PIN as a record, in the format of new records.
    pub(super) fn encrypt_record(
        &self,
        storage: StorageVersions,
        pin: &Pin,
        (block, wide): (&mut Block, &mut WideBlock),
        account: &AccountDigits,
        card: &CardBinding,
    ) -> Result<PinRecord, Error> {
        let encrypted = match self.form {
            HostForm::OneWay => return self.one_way_record(storage.one_way, pin, card),
            HostForm::Iso4 => {
                let mut random = [0; 8];
                self.token.random(&mut random)?;
                encode_iso_4(wide, pin, u64::from_be_bytes(random));
                self.token.storage_encrypt_iso_4(storage.iso_4, wide, account_field(account))?;
                &wide.bytes()[..]
            }
            form @ (HostForm::Iso3 | HostForm::Iso0) => {
                if form == HostForm::Iso0 {
                    encode_iso_0(block, pin, account);
                } else {
                    encode_iso_3(block, pin, account, self.iso_3_fill()?);
                }
                self.token.storage_tdes_encrypt(storage.tdes, block)?;
                &block.bytes()[..]
            }
        };
        self.record(storage.of(self.form.into()), self.form, encrypted, card)
    }

    /// A record with its tag, under a storage key of its format.
    pub(super) fn record(
        &self,
        key: KeyVersion,
        form: HostForm,
        block: &[u8],
        card: &CardBinding,
    ) -> Result<PinRecord, Error> {
        let made_at = MadeAt { level: BoundaryLevel::Host, isolation: self.isolation };
        tagged(&*self.token, PinRecord::untagged(key, form.into(), made_at, block), card)
    }

    /// Decrypts a record into `pin`, unless a batch has decrypted its block.
    ///
    /// # Errors
    /// [`Error::OneWay`] for a one-way record; [`Error::SealBroken`] where the decrypted block is malformed.
    pub(super) fn open_record(
        &self,
        (record, decrypted): (&PinRecord, Option<Decrypted<'_>>),
        account: &AccountDigits,
        (block, wide): (&mut Block, &mut WideBlock),
        pin: &mut Pin,
    ) -> Result<(), Error> {
        let broken = Error::SealBroken { what: "PIN record".into() };
        let Some(form) = HostForm::from_format(record.form()) else { return Err(broken) };
        let well_formed = match form {
            HostForm::OneWay => return Err(Error::OneWay),
            HostForm::Iso4 => {
                wide.bytes_mut().iter_mut().zip(record.block()).for_each(|(place, byte)| *place = *byte);
                self.token.storage_decrypt_iso_4(record.storage_key(), wide, account_field(account))?;
                decode_iso_4(wide, pin)
            }
            HostForm::Iso3 | HostForm::Iso0 => {
                if let Some(decrypted) = decrypted {
                    decrypted.copy(block);
                } else {
                    block.bytes_mut().iter_mut().zip(record.block()).for_each(|(place, byte)| *place = *byte);
                    self.token.storage_tdes_decrypt(record.storage_key(), block)?;
                }
                if form == HostForm::Iso0 {
                    decode_iso_0(block, pin, account)
                } else {
                    decode_iso_3(block, pin, account)
                }
            }
        };
        if bool::from(well_formed) { Ok(()) } else { Err(broken) }
    }

    /// Sixteen random nibbles from A to F, uniformly distributed: bytes from 252, the largest multiple of 6, are discarded.
    pub(super) fn iso_3_fill(&self) -> Result<u64, Error> {
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

/// The result of the checks of a block.
pub(super) enum CheckResult {
    Accepted,
    Malformed,
    AgainstPolicy,
}

/// Combines both checks without a branch on the first, which depends on clear digits.
pub(super) fn check_result(well_formed: Choice, is_allowed: Choice) -> CheckResult {
    let code = u8::conditional_select(&1, &u8::conditional_select(&2, &0, is_allowed), well_formed);
    match code {
        0 => CheckResult::Accepted,
        1 => CheckResult::Malformed,
        _ => CheckResult::AgainstPolicy,
    }
}
