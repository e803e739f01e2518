//! Level `token`: the token re-encrypts a block between its keys. This process cannot read the clear block, so it checks
//! neither the digits nor the PIN policy.

use hsm_protocol::{
    Account, Binding, BoundaryLevel, CardBinding, DeviceBlock, DeviceKey, EncryptedBlock, Error, FreshTzpk, Isolation,
    MadeAt, PinRecord, SealedKey, bound_to_control,
};

use super::{account_digits, tagged};
use crate::{
    config::TokenForm,
    token::{IssuedTzpk, StoredBlock, TokenLevel, WrappedTzpk},
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
        tzpk: &SealedKey,
        binding: &Binding,
        block: &EncryptedBlock,
        account: &Account,
    ) -> Result<PinRecord, Error> {
        let account = account_digits(&*self.token, account, &binding.card)?;
        let bound = bound_to_control(tzpk.key(), binding);
        let kept = self.token.reencrypt_for_storage((tzpk.key(), tzpk.body()), &bound, block, self.form, &account)?;
        let record = PinRecord::untagged(
            self.token.current().storage.of(self.form.into()),
            self.form.into(),
            MadeAt { level: BoundaryLevel::Token, isolation: self.isolation },
            &kept,
        );
        tagged(&*self.token, record, &binding.card)
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

    /// Re-encrypts a record under the newest storage key. The format stays: at this level a block cannot change its format.
    pub(super) fn reencrypt(
        &self,
        record: &PinRecord,
        card: &CardBinding,
        account: &Account,
    ) -> Result<PinRecord, Error> {
        let account = account_digits(&*self.token, account, card)?;
        let kept = self.token.reencrypt_stored(stored(record)?, &account)?;
        let record = PinRecord::untagged(
            self.token.current().storage.of(record.form()),
            record.form(),
            MadeAt { level: BoundaryLevel::Token, isolation: self.isolation },
            &kept,
        );
        tagged(&*self.token, record, card)
    }
}

pub(super) fn stored(record: &PinRecord) -> Result<StoredBlock<'_>, Error> {
    let form = TokenForm::from_format(record.form()).ok_or(Error::SealBroken { what: "PIN record".into() })?;
    Ok(StoredBlock { form, key: record.storage_key(), bytes: record.block() })
}
