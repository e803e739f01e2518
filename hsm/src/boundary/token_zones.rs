//! Blocks of zones at level `token`: the token re-encrypts a block between a zone key and a storage key. This process checks
//! neither the digits nor the PIN policy.

use hsm_protocol::{Account, CardBinding, EncryptedBlock, Error, PinRecord, StorageVersions, ZoneBlock, ZoneFormat};

use super::{
    account_digits,
    at_token::{AtToken, stored},
};
use crate::zones::ZoneKeyRef;

impl AtToken {
    /// Re-encrypts a zone's format 1 block as a record.
    pub(super) fn zone_to_record(
        &self,
        storage: StorageVersions,
        key: ZoneKeyRef<'_>,
        block: &ZoneBlock,
        card: &CardBinding,
        account: &Account,
    ) -> Result<PinRecord, Error> {
        let account = account_digits(&*self.token, account, card)?;
        let block = EncryptedBlock::from_bytes(block.as_bytes())?;
        let under = self.new_record_key(storage);
        let kept = self.token.reencrypt_zone_for_storage(key, &block, under, &account)?;
        self.record(under, &kept, card)
    }

    /// Re-encrypts a record as a block of format 1 or 3 under a zone key. A format 1 block has the fill that its sender chose.
    pub(super) fn record_to_zone(
        &self,
        record: &PinRecord,
        card: &CardBinding,
        account: &Account,
        key: ZoneKeyRef<'_>,
        format: ZoneFormat,
    ) -> Result<ZoneBlock, Error> {
        let account = account_digits(&*self.token, account, card)?;
        let block = self.token.reencrypt_for_zone(stored(record)?, &account, key, format)?;
        Ok(ZoneBlock::from_bytes(format, &block)?)
    }
}
