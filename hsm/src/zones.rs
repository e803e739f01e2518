//! The zones of an open boundary: the rules of each zone, and the active versions of its key. Every block of a zone gets its
//! key here, so that no operation uses a format or a key that the rules do not allow.

use hsm_protocol::{
    BoundaryLevel, CardBinding, Error, KeyId, KeyVersion, ParityPolicy, StorageFormat, ZoneFormat, ZoneKey, ZoneName,
    ZoneRules, ZoneUse,
};
use thiserror::Error;

use crate::{
    keyring::{KeyMode, ZoneKeyInfo},
    translation::{Place, TRANSLATIONS},
};

/// The most active zone keys: the status names each of them.
const ZONE_KEYS_MAX: usize = 255;

/// A version of a zone key that the rules allow for one block.
#[derive(Clone, Copy)]
pub(crate) struct ZoneKeyRef<'a> {
    pub(crate) zone: &'a ZoneName,
    pub(crate) version: KeyVersion,
}

/// The configured zones.
pub(crate) struct Zones(Vec<Zone>);

struct Zone {
    rules: ZoneRules,
    /// The active versions, the newest first.
    versions: Vec<(KeyVersion, KeyMode)>,
}

impl Zones {
    /// Checks each zone against its keys, the boundary level and the format of new records.
    ///
    /// # Errors
    /// [`ZoneError`] for the first zone that can't work as configured.
    pub(crate) fn check(
        rules: Vec<ZoneRules>,
        keys: &[ZoneKeyInfo],
        level: BoundaryLevel,
        form: StorageFormat,
    ) -> Result<Self, ZoneError> {
        if keys.len() > ZONE_KEYS_MAX {
            return Err(ZoneError::TooMany { found: keys.len() });
        }
        let zone = |rules: ZoneRules| {
            let keys: Vec<_> = keys.iter().filter(|key| key.zone == rules.name).collect();
            if keys.is_empty() {
                return Err(ZoneError::NoKey { zone: rules.name });
            }
            keys.iter().try_for_each(|key| check_key(&rules, key))?;
            check_level(&rules, level, form)?;
            let mut versions: Vec<_> = keys.iter().map(|key| (key.version, key.mode)).collect();
            versions.sort_unstable_by_key(|(version, _)| std::cmp::Reverse(*version));
            Ok(Zone { rules, versions })
        };
        Ok(Self(rules.into_iter().map(zone).collect::<Result<_, _>>()?))
    }

    /// The ids of the keys with even parity in zones that warn of them.
    pub(crate) fn even_parity(&self, keys: &[ZoneKeyInfo]) -> Vec<KeyId> {
        let warns = |zone: &ZoneName| {
            self.0.iter().any(|Zone { rules, .. }| rules.name == *zone && rules.parity == ParityPolicy::Warn)
        };
        let even = keys.iter().filter(|key| key.odd_parity == Some(false) && warns(&key.zone));
        even.map(ZoneKeyInfo::key_id).collect()
    }

    /// The zones that give PINs in format 1, which names no card, and accept such blocks too.
    pub(crate) fn reusable_answers(&self) -> Vec<ZoneName> {
        let accepts = [ZoneUse::SetPin, ZoneUse::Verify, ZoneUse::Change];
        let warned = self.0.iter().map(|zone| &zone.rules).filter(|rules| {
            rules.uses.contains(&ZoneUse::GetPin) && accepts.iter().any(|needed| rules.uses.contains(needed))
        });
        warned.map(|rules| rules.name.clone()).collect()
    }

    /// The version of a zone key for one block: `wanted` is `Decrypts` for a block that arrives, `Encrypts` for one that is
    /// made. The newest version alone encrypts. A zone is unknown to the cards of another tenant.
    ///
    /// # Errors
    /// [`Error::ZoneUnknown`], [`Error::ZoneFormat`] or [`Error::ZoneUse`] by the rules; [`Error::ZoneUse`] where the mode of
    /// the key does not allow the direction.
    pub(crate) fn key<'a>(
        &self,
        key: &'a ZoneKey,
        format: ZoneFormat,
        needed: ZoneUse,
        wanted: KeyMode,
        card: &CardBinding,
    ) -> Result<ZoneKeyRef<'a>, Error> {
        let unknown = || Error::ZoneUnknown { zone: key.zone.clone() };
        let Zone { rules, versions } = self.0.iter().find(|zone| zone.rules.name == key.zone).ok_or_else(unknown)?;
        if rules.tenant.as_bytes() != card.tenant() {
            return Err(unknown());
        }
        if !rules.uses.contains(&needed) {
            return Err(Error::ZoneUse { needed });
        }
        if !rules.formats.contains(&format) {
            return Err(Error::ZoneFormat { format });
        }
        let versions = versions.iter();
        let newest = versions.clone().next().map(|(version, _)| *version);
        let mut named = versions.filter(|(version, _)| key.version.is_none_or(|named| named == *version));
        let (version, mode) = *named.next().ok_or_else(unknown)?;
        // A caller must not choose an older key for a new block.
        if wanted == KeyMode::Encrypts && Some(version) != newest {
            return Err(unknown());
        }
        match mode.allows(wanted) {
            true => Ok(ZoneKeyRef { zone: &key.zone, version }),
            false => Err(Error::ZoneUse { needed }),
        }
    }
}

/// Checks one version of a zone key against the formats, uses and parity policy of its zone.
fn check_key(rules: &ZoneRules, key: &ZoneKeyInfo) -> Result<(), ZoneError> {
    let reference = || format!("zone:{}/{}", key.zone, key.version.0);
    if let Some(format) = rules.formats.iter().find(|format| format.needs_aes() == key.is_tdes) {
        return Err(ZoneError::Algorithm { key: reference(), format: *format });
    }
    let direction = |needed: &ZoneUse| match needed {
        ZoneUse::SetPin | ZoneUse::Verify | ZoneUse::Change => Some(KeyMode::Decrypts),
        ZoneUse::GetPin | ZoneUse::Export => Some(KeyMode::Encrypts),
        ZoneUse::Translate => None,
    };
    let refused = |needed: &&ZoneUse| direction(needed).is_some_and(|wanted| !key.mode.allows(wanted));
    if let Some(needed) = rules.uses.iter().find(refused) {
        return Err(ZoneError::Mode { key: reference(), mode: key.mode, needed: *needed });
    }
    if rules.parity == ParityPolicy::Reject && key.is_tdes {
        match key.odd_parity {
            Some(true) => {}
            Some(false) => return Err(ZoneError::EvenParity { key: reference() }),
            None => return Err(ZoneError::ParityUnknown { key: reference() }),
        }
    }
    Ok(())
}

/// Checks that the level can do each use in some format, and that each format serves some use. At level `token` nothing checks
/// the control nibble of a block that sets a PIN, so a zone that sets PINs there has format 1 alone: a block that is bound to
/// the account number of one card would be stored for another card, whose view shows that PIN XOR two account numbers.
fn check_level(rules: &ZoneRules, level: BoundaryLevel, form: StorageFormat) -> Result<(), ZoneError> {
    let works = |needed: ZoneUse, format: ZoneFormat| is_possible(needed, format, level, form);
    let zone = || rules.name.clone();
    for needed in &rules.uses {
        if !rules.formats.iter().any(|format| works(*needed, *format)) {
            return Err(ZoneError::Use { zone: zone(), needed: *needed, level, form });
        }
    }
    for format in rules.formats.iter().filter(|_| !rules.uses.is_empty()) {
        if !rules.uses.iter().any(|needed| works(*needed, *format)) {
            return Err(ZoneError::Format { zone: zone(), format: *format, level, form });
        }
    }
    let bound = rules.formats.iter().find(|format| format.binds_account());
    match (level, bound) {
        (BoundaryLevel::Token, Some(format)) if rules.uses.contains(&ZoneUse::SetPin) => {
            Err(ZoneError::SetBesideBound { zone: zone(), format: *format })
        }
        _ => Ok(()),
    }
}

/// Whether a level that makes records of `form` can do a use with blocks of a format.
fn is_possible(needed: ZoneUse, format: ZoneFormat, level: BoundaryLevel, form: StorageFormat) -> bool {
    let (zone, record) = (Place::Zone(format), Place::Record(form));
    let has = |is_row: &dyn Fn(Place, Place) -> bool| {
        TRANSLATIONS.iter().any(|row| row.level == level && is_row(row.source, row.target))
    };
    match needed {
        ZoneUse::SetPin => has(&|source, target| (source, target) == (zone, record)),
        ZoneUse::GetPin => !format.binds_account() && has(&|source, target| (source, target) == (record, zone)),
        ZoneUse::Export => format.binds_account() && has(&|source, target| (source, target) == (record, zone)),
        ZoneUse::Translate => has(&|source, target| match (source, target) {
            (Place::Zone(_), Place::Zone(_)) => source == zone || target == zone,
            _ => false,
        }),
        ZoneUse::Verify | ZoneUse::Change => level == BoundaryLevel::Host,
    }
}

/// A configured zone can't work, so the boundary does not open.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ZoneError {
    /// No version of the zone's key is active in the vault or token.
    #[error(
        "the zone {zone} has no active key zone:{zone}: load or import it in a ceremony and activate it, or remove the zone \
         from [[zones]]"
    )]
    NoKey {
        /// The zone without a key.
        zone: ZoneName,
    },
    /// The key has another algorithm than a format of its zone needs.
    #[error(
        "{key} does not suit {format}: iso-4 needs an AES key, iso-0, iso-1 and iso-3 need a 3DES key; change the zone's \
         formats, or activate a key of the other kind"
    )]
    Algorithm {
        /// For example `zone:app-bank/1`.
        key: String,
        /// The first format that does not suit.
        format: ZoneFormat,
    },
    /// The key block of the key restricts it to one direction, and a use of its zone needs the other.
    #[error(
        "{key} {mode}, and {needed} needs the other direction: remove the use from the zone, or import another key"
    )]
    Mode {
        /// For example `zone:app-bank/1`.
        key: String,
        /// The mode of use of the key.
        mode: KeyMode,
        /// The first use that the mode does not allow.
        needed: ZoneUse,
    },
    /// The level can't do the use with any format of the zone.
    #[error(
        "the zone {zone} can't {needed} with its formats at level {level}, which stores {}: docs/tokens.md lists what each \
         level can do; remove the use from the zone, or set boundary.level",
        form.name()
    )]
    Use {
        /// The zone as configured.
        zone: ZoneName,
        /// The use that does not work.
        needed: ZoneUse,
        /// The level in use.
        level: BoundaryLevel,
        /// The format of new records.
        form: StorageFormat,
    },
    /// The level can't do any use of the zone with the format.
    #[error(
        "the zone {zone} has no use for {format} at level {level}, which stores {}: remove the format from the zone, or set \
         boundary.level",
        form.name()
    )]
    Format {
        /// The zone as configured.
        zone: ZoneName,
        /// The format without a use.
        format: ZoneFormat,
        /// The level in use.
        level: BoundaryLevel,
        /// The format of new records.
        form: StorageFormat,
    },
    /// A zone sets PINs at level `token`, and has a format that is bound to the account number.
    #[error(
        "the zone {zone} has set-pin and {format} at level token, which can't tell {format} from iso-1: give blocks of {format} \
         a zone with another key; a key of a zone with set-pin may carry iso-1 only, at this engine and at every other party"
    )]
    SetBesideBound {
        /// The zone as configured.
        zone: ZoneName,
        /// The first format that is bound to the account number.
        format: ZoneFormat,
    },
    /// The key has a byte of even parity, and its zone rejects such a key.
    #[error(
        "{key} has even parity and its zone says parity = \"reject\": ask for a key with odd parity, or set \"ignore\""
    )]
    EvenParity {
        /// For example `zone:app-bank/1`.
        key: String,
    },
    /// The parity of the key can't be read, and its zone rejects a key with even parity.
    #[error(
        "the parity of {key} is not known, because it is in a token without an inventory and can't be read: import the key in \
         a ceremony, or set the zone's parity to \"ignore\""
    )]
    ParityUnknown {
        /// For example `zone:app-bank/1`.
        key: String,
    },
    /// More zone keys are active than a status names.
    #[error("{found} zone keys are active, and 255 may be: retire older versions")]
    TooMany {
        /// The number of active versions of all configured zones.
        found: usize,
    },
}
