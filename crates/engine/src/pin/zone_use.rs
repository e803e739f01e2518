//! Zones in requests: their rules, keys and blocks.

use super::{PinError, Pins};
use crate::zones::{NamedZoneBlock, NamedZoneKey};
use audit::entry::BlockFormat;
use domain::card::Tenant;
use hsm_protocol::{Error, KeyUsage, KeyVersion, Source, Status, ZoneBlock, ZoneFormat, ZoneKey, ZoneRules, ZoneUse};

/// A zone of the tenant, and the key version that a request names.
pub(super) struct ZoneOfTenant<'z> {
    rules: &'z ZoneRules,
    version: Option<KeyVersion>,
}

impl Pins {
    /// The zone of a request.
    ///
    /// # Errors
    /// [`PinError::ZoneUnknown`]: the tenant has no such zone.
    pub(super) fn zone(&self, tenant: &Tenant, named: &NamedZoneKey) -> Result<ZoneOfTenant<'_>, PinError> {
        let rules = self.rules.zones.rules(tenant, &named.zone).ok_or(PinError::ZoneUnknown)?;
        Ok(ZoneOfTenant { rules, version: named.version })
    }
}

impl ZoneOfTenant<'_> {
    /// The key, for the boundary.
    pub(super) fn key(&self) -> ZoneKey {
        ZoneKey { zone: self.rules.name.clone(), version: self.version }
    }

    /// The key as in the key inventory, for an audit event.
    pub(super) fn key_text(&self) -> Box<str> {
        KeyUsage::Zone(self.rules.name.clone()).to_string().into()
    }

    /// The format of the request, else the first format of the zone that fits.
    ///
    /// # Errors
    /// [`Error::ZoneUse`], [`Error::ZoneFormat`]: the rules of the zone do not allow it. The boundary checks both too; the
    /// engine refuses before the request uses a try of the card.
    pub(super) fn format(&self, format: Option<ZoneFormat>, needed: ZoneUse) -> Result<ZoneFormat, PinError> {
        if !self.rules.uses.contains(&needed) {
            return Err(Error::ZoneUse { needed }.into());
        }
        let fits = |format: &ZoneFormat| match needed {
            ZoneUse::GetPin => !format.binds_account(),
            ZoneUse::Export => format.binds_account(),
            ZoneUse::SetPin | ZoneUse::Verify | ZoneUse::Change | ZoneUse::Translate => true,
        };
        let first = || self.rules.formats.iter().copied().find(fits);
        let format = format.or_else(first).unwrap_or(ZoneFormat::Iso1);
        let is_allowed = self.rules.formats.contains(&format) && fits(&format);
        if is_allowed { Ok(format) } else { Err(Error::ZoneFormat { format }.into()) }
    }

    /// Checks that the boundary has the key.
    ///
    /// # Errors
    /// [`Error::ZoneUnknown`]: this version of the key is not active.
    pub(super) fn check_key(&self, status: &Status) -> Result<(), PinError> {
        let is_active = status.zone_keys().iter().any(|key| {
            matches!(&key.usage, KeyUsage::Zone(zone) if *zone == self.rules.name)
                && self.version.is_none_or(|version| version == key.version)
        });
        if is_active { Ok(()) } else { Err(Error::ZoneUnknown { zone: self.rules.name.clone() }.into()) }
    }

    /// The block of the request as a source.
    ///
    /// # Errors
    /// As [`ZoneOfTenant::format`]; [`PinError::BlockLength`] where the format has blocks of another length.
    pub(super) fn source(&self, named: &NamedZoneBlock, needed: ZoneUse) -> Result<(Source, ZoneFormat), PinError> {
        let format = self.format(named.format, needed)?;
        let block = ZoneBlock::from_bytes(format, &named.block).map_err(|_| PinError::BlockLength)?;
        Ok((Source::Zone { key: self.key(), block }, format))
    }
}

/// The format in an audit event.
pub(super) fn zone_block_format(format: ZoneFormat) -> BlockFormat {
    match format {
        ZoneFormat::Iso0 => BlockFormat::Iso0,
        ZoneFormat::Iso1 => BlockFormat::Iso1,
        ZoneFormat::Iso3 => BlockFormat::Iso3,
        ZoneFormat::Iso4 => BlockFormat::Iso4,
    }
}
