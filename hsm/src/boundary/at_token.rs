//! Level `token`: the token re-encrypts a block between its keys. This process cannot read the clear block, so it checks
//! neither the digits nor the PIN policy.

use hsm_protocol::{
    Account, Binding, BoundaryLevel, CardBinding, DeviceBlock, DeviceKey, EncryptedBlock, Error, FreshTzpk, Isolation,
    MadeAt, PinRecord, SealedKey, StorageVersions, bound_to_control,
};

use super::{account_digits, tagged};
use crate::{
    config::TokenForm,
    token::{IssuedTzpk, StorageKey, StoredBlock, TokenLevel, WrappedTzpk},
    zones::Zones,
};

/// A token that returns no clear value, and the format of new records.
pub(crate) struct AtToken {
    pub(crate) token: Box<dyn TokenLevel>,
    pub(crate) form: TokenForm,
    pub(crate) isolation: Isolation,
    pub(crate) zones: Zones,
}

impl AtToken {
    pub(super) fn issue_tzpk(&self, device: &DeviceKey, binding: &Binding) -> Result<FreshTzpk, Error> {
        let key = self.token.current().seal;
        let IssuedTzpk { wrapped, sealed } = self.token.issue_tzpk(device, &bound_to_control(key, binding))?;
        let WrappedTzpk { wrapped, check_value } = wrapped;
        Ok(FreshTzpk { sealed: SealedKey::new(key, &sealed), wrapped, kcv: check_value })
    }

    pub(super) fn device_to_record(
        &self,
        storage: StorageVersions,
        tzpk: &SealedKey,
        binding: &Binding,
        block: &EncryptedBlock,
        account: &Account,
    ) -> Result<PinRecord, Error> {
        let account = account_digits(&*self.token, account, &binding.card)?;
        let bound = bound_to_control(tzpk.key(), binding);
        let under = self.new_record_key(storage);
        let kept = self.token.reencrypt_for_storage((tzpk.key(), tzpk.body()), &bound, block, under, &account)?;
        self.record(under, &kept, &binding.card)
    }

    /// The format and the key of new records.
    pub(super) fn new_record_key(&self, storage: StorageVersions) -> StorageKey {
        StorageKey { form: self.form, version: storage.of(self.form.into()) }
    }

    /// A record with its tag.
    pub(super) fn record(&self, under: StorageKey, block: &[u8], card: &CardBinding) -> Result<PinRecord, Error> {
        let made_at = MadeAt { level: BoundaryLevel::Token, isolation: self.isolation };
        tagged(&*self.token, PinRecord::untagged(under.version, under.form.into(), made_at, block), card)
    }

    pub(super) fn record_to_device(
        &self,
        record: &PinRecord,
        card: &CardBinding,
        account: &Account,
        device: &DeviceKey,
    ) -> Result<DeviceBlock, Error> {
        let account = account_digits(&*self.token, account, card)?;
        let (wrapped, block) = self.token.reencrypt_for_device(stored(record)?, &account, device)?;
        let WrappedTzpk { wrapped, check_value } = wrapped;
        Ok(DeviceBlock { wrapped, block, kcv: check_value })
    }

    /// Re-encrypts a record under the storage key of new records. The format stays: at this level a block cannot change its
    /// format.
    pub(super) fn reencrypt(
        &self,
        storage: StorageVersions,
        record: &PinRecord,
        card: &CardBinding,
        account: &Account,
    ) -> Result<PinRecord, Error> {
        let account = account_digits(&*self.token, account, card)?;
        let before = stored(record)?;
        let under = StorageKey { form: before.form, version: storage.of(record.form()) };
        self.record(under, &self.token.reencrypt_stored(before, under.version, &account)?, card)
    }
}

pub(super) fn stored(record: &PinRecord) -> Result<StoredBlock<'_>, Error> {
    let form = TokenForm::from_format(record.form()).ok_or(Error::SealBroken { what: "PIN record".into() })?;
    Ok(StoredBlock { form, key: record.storage_key(), bytes: record.block() })
}
