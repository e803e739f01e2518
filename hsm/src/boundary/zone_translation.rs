//! The translations from and to zones at both levels: the rules of the zone, then the operation of the level.

use hsm_protocol::{
    Account, CardBinding, Error, PinRecord, Reply, StorageVersions, ZoneBlock, ZoneFormat, ZoneKey, ZoneUse,
    zone_block_bound_to,
};

use super::{Boundary, together::Decrypted};
use crate::{
    keyring::KeyMode,
    zones::{ZoneKeyRef, Zones},
};

impl Boundary {
    pub(crate) fn zones(&self) -> &Zones {
        match self {
            Self::Host(at_host) => &at_host.zones,
            Self::Token(at_token) => &at_token.zones,
        }
    }

    /// The key of a zone's block that arrives, if the rules of the zone allow the use.
    pub(super) fn source_key<'a>(
        &self,
        (key, block): (&'a ZoneKey, &ZoneBlock),
        needed: ZoneUse,
        card: &CardBinding,
    ) -> Result<ZoneKeyRef<'a>, Error> {
        self.zones().key(key, block.format(), needed, KeyMode::Decrypts, card)
    }

    pub(super) fn zone_to_record(
        &self,
        storage: StorageVersions,
        (key, block, decrypted): (&ZoneKey, &ZoneBlock, Option<Decrypted<'_>>),
        card: &CardBinding,
        account: &Account,
    ) -> Result<Reply, Error> {
        let key = self.source_key((key, block), ZoneUse::SetPin, card)?;
        // Computed before the check of the block, so that accepted and refused blocks cost the same work.
        let bound = zone_block_bound_to(key.zone, key.version, card, block.format());
        let retry_tag = self.token().zone_block_tag(&bound, block.as_bytes())?;
        let record = match self {
            Self::Host(at_host) => at_host.zone_to_record(storage, key, (block, decrypted), card, account)?,
            Self::Token(at_token) => at_token.zone_to_record(storage, key, block, card, account)?,
        };
        Ok(Reply::Record { record, retry_tag: Some(retry_tag) })
    }

    /// A block of format 1 is what a zone's client reads; a block that is bound to the account number is an export.
    pub(super) fn record_to_zone(
        &self,
        (record, decrypted): (&PinRecord, Option<Decrypted<'_>>),
        (key, format): (&ZoneKey, ZoneFormat),
        card: &CardBinding,
        account: &Account,
    ) -> Result<Reply, Error> {
        let needed = if format.binds_account() { ZoneUse::Export } else { ZoneUse::GetPin };
        let key = self.zones().key(key, format, needed, KeyMode::Encrypts, card)?;
        match self {
            Self::Host(at_host) => at_host.record_to_zone((record, decrypted), card, account, key, format),
            Self::Token(at_token) => at_token.record_to_zone(record, card, account, key, format),
        }
        .map(Reply::ZoneBlock)
    }

    /// The account number of both blocks comes sealed: a plasticId is no account number of another party's card.
    pub(super) fn zone_to_zone(
        &self,
        (source, block, decrypted): (&ZoneKey, &ZoneBlock, Option<Decrypted<'_>>),
        (target, format): (&ZoneKey, ZoneFormat),
        card: &CardBinding,
        account: &Account,
    ) -> Result<Reply, Error> {
        let (Self::Host(at_host), Account::Registered(_)) = (self, account) else {
            return Err(Error::TranslationNotAllowed);
        };
        let source = self.source_key((source, block), ZoneUse::Translate, card)?;
        let target = self.zones().key(target, format, ZoneUse::Translate, KeyMode::Encrypts, card)?;
        at_host.zone_to_zone((source, block, decrypted), (target, format), card, account).map(Reply::ZoneBlock)
    }
}
