//! BoundaryLevel `token`: a block goes from the device's key to the storage key and back inside the token. Nothing clear can be
//! named here, so nothing can be judged: neither a block's digits nor a weak PIN.

use super::{account_digits, tagged};
use crate::{
    account::Account,
    binding::{Binding, BoundaryLevel, CardBinding, Isolation, MadeAt},
    config::TokenForm,
    device_key::DeviceKey,
    error::{AcceptError, Error},
    outcome::{Accepted, Issued, Revealed},
    sealed::{EncryptedBlock, PinRecord, SealedKey, bound_to_control},
    token::{IssuedTzpk, StoredBlock, TokenLevel, WrappedTzpk},
};

/// A token that gives out nothing clear, and the form of new records.
pub(crate) struct AtToken {
    pub(crate) token: Box<dyn TokenLevel>,
    pub(crate) form: TokenForm,
    pub(crate) isolation: Isolation,
}

impl AtToken {
    pub(super) fn issue(&self, device: &DeviceKey, binding: &Binding<'_>) -> Result<Issued, Error> {
        let key = self.token.current().seal;
        let IssuedTzpk { wrapped, sealed } = self.token.issue_tzpk(device, &bound_to_control(key, binding))?;
        let WrappedTzpk { wrapped, check_value } = wrapped;
        Ok(Issued { sealed: SealedKey::new(key, &sealed), wrapped, check_value })
    }

    pub(super) fn accept(
        &self,
        tzpk: &SealedKey,
        binding: &Binding<'_>,
        block: &EncryptedBlock,
        account: Account<'_>,
    ) -> Result<Accepted, AcceptError> {
        let account = account_digits(&*self.token, account, &binding.card)?;
        let bound = bound_to_control(tzpk.key(), binding);
        let kept = self.token.take_in((tzpk.key(), tzpk.body()), &bound, block, self.form, &account)?;
        let record = PinRecord::untagged(
            self.token.current().storage.of(self.form.into()),
            self.form.into(),
            MadeAt { level: BoundaryLevel::Token, isolation: self.isolation },
            &kept,
        );
        let record = tagged(&*self.token, record, &binding.card)?;
        let retry_tag = self.token.retry_tag(binding.control, block.as_bytes())?;
        Ok(Accepted { record, retry_tag })
    }

    pub(super) fn reveal(
        &self,
        record: &PinRecord,
        binding: &Binding<'_>,
        account: Account<'_>,
        device: &DeviceKey,
    ) -> Result<Revealed, Error> {
        let account = account_digits(&*self.token, account, &binding.card)?;
        let (wrapped, block) = self.token.send_out(stored(record)?, &account, device)?;
        let WrappedTzpk { wrapped, check_value } = wrapped;
        Ok(Revealed { wrapped, block, check_value })
    }

    /// Under the newest storage key, in the form it has: at this level nobody can make another of it.
    pub(super) fn remake(
        &self,
        record: &PinRecord,
        card: &CardBinding<'_>,
        account: Account<'_>,
    ) -> Result<PinRecord, Error> {
        let account = account_digits(&*self.token, account, card)?;
        let kept = self.token.store_again(stored(record)?, &account)?;
        let record = PinRecord::untagged(
            self.token.current().storage.of(record.form()),
            record.form(),
            MadeAt { level: BoundaryLevel::Token, isolation: self.isolation },
            &kept,
        );
        tagged(&*self.token, record, card)
    }
}

fn stored(record: &PinRecord) -> Result<StoredBlock<'_>, Error> {
    let form = TokenForm::of(record.form()).ok_or(Error::SealBroken { what: "PIN record".into() })?;
    Ok(StoredBlock { form, key: record.storage_key(), bytes: record.block() })
}
