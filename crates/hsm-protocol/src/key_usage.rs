//! The usages of keys and their names.

use std::fmt;

use crate::binding::BoundaryLevel;
use crate::storage_format::StorageFormat;
use crate::verification::{Ibm3624Name, PvkName};
use crate::zone_name::ZoneName;

/// The usage of a key: a key has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyUsage {
    /// Level `host`: encrypts stored blocks of format 4, AES-256.
    Storage,
    /// Level `host`: encrypts stored blocks of formats 3 and 0, 3DES.
    StorageTdes,
    /// Level `token`: derives a key for each account, which wraps a stored block.
    StorageWrapped,
    /// Level `token`: wraps stored blocks of format 3, 3DES.
    StorageIso3,
    /// Level `token`: wraps stored blocks of format 4, AES-256. It may not unwrap them.
    StorageIso4,
    /// Level `host`: computes the CMAC of one-way records, AES-256.
    StorageOneWay,
    /// Seals tzpks; in a token it wraps them.
    Seal,
    /// Encrypts tzpks, in a token without authenticated key wrap.
    SealEncrypting,
    /// Encrypts stored account numbers.
    Account,
    /// Computes the tags of records, with a vault.
    Record,
    /// Computes the tags of retries, with a vault.
    Retry,
    /// Computes every tag, with a token: HMAC-SHA-256.
    Mac,
    /// Encrypts PINs for another party, and decrypts its PINs (ZPK).
    Zone(ZoneName),
    /// Wraps keys for another party, and unwraps its keys (KEK).
    Exchange(ZoneName),
    /// Derives Visa PVVs: a PVK pair.
    Pvk(PvkName),
    /// Derives IBM 3624 PINs and offsets.
    Ibm3624(Ibm3624Name),
}

/// The keys of an engine, in a vault or a token, each with its name. The index of a key is in the layout of a vault: new keys
/// come last.
pub const ENGINE_KEYS: [(KeyUsage, &str); 12] = [
    (KeyUsage::Storage, "storage"),
    (KeyUsage::StorageTdes, "storage-3des"),
    (KeyUsage::Seal, "seal"),
    (KeyUsage::Account, "account"),
    (KeyUsage::Record, "record"),
    (KeyUsage::Retry, "retry"),
    (KeyUsage::StorageWrapped, "storage-wrapped"),
    (KeyUsage::StorageIso3, "storage-iso-3"),
    (KeyUsage::StorageIso4, "storage-iso-4"),
    (KeyUsage::SealEncrypting, "seal-encrypting"),
    (KeyUsage::Mac, "mac"),
    (KeyUsage::StorageOneWay, "storage-one-way"),
];

impl KeyUsage {
    /// Reads a name such as `storage`, `seal`, `zone:acquirer` or `pvk:bank:1`; `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let zone = |name| ZoneName::parse(name);
        match text.split_once(':') {
            Some(("zone", name)) => zone(name).map(Self::Zone),
            Some(("exchange", name)) => zone(name).map(Self::Exchange),
            Some(("pvk", name)) => PvkName::parse(name).map(Self::Pvk),
            Some(("ibm-3624", name)) => Ibm3624Name::parse(name).map(Self::Ibm3624),
            Some(_) => None,
            None => ENGINE_KEYS.iter().find(|(_, name)| *name == text).map(|(key, _)| key.clone()),
        }
    }

    /// Whether an engine needs a key of this usage to start.
    pub fn is_an_engines(&self) -> bool {
        !matches!(self, Self::Zone(_) | Self::Exchange(_)) && !self.verifies()
    }

    /// Whether PIN verification values are derived under a key of this usage.
    pub fn verifies(&self) -> bool {
        matches!(self, Self::Pvk(_) | Self::Ibm3624(_))
    }

    /// Whether tzpks are sealed under a key of this usage.
    pub fn seals(&self) -> bool {
        matches!(self, Self::Seal | Self::SealEncrypting)
    }

    /// The usage of the storage key of a format at a level.
    pub fn storage_of(level: BoundaryLevel, form: StorageFormat) -> Self {
        match (level, form) {
            (_, StorageFormat::OneWay) => Self::StorageOneWay,
            (BoundaryLevel::Host, StorageFormat::Wrapped | StorageFormat::Iso4) => Self::Storage,
            (BoundaryLevel::Host, StorageFormat::Iso3 | StorageFormat::Iso0) => Self::StorageTdes,
            (BoundaryLevel::Token, StorageFormat::Wrapped) => Self::StorageWrapped,
            (BoundaryLevel::Token, StorageFormat::Iso4) => Self::StorageIso4,
            (BoundaryLevel::Token, StorageFormat::Iso3 | StorageFormat::Iso0) => Self::StorageIso3,
        }
    }

    /// Whether PIN records are encrypted under a key of this usage.
    pub fn keeps_records(&self) -> bool {
        matches!(
            self,
            Self::Storage
                | Self::StorageTdes
                | Self::StorageWrapped
                | Self::StorageIso3
                | Self::StorageIso4
                | Self::StorageOneWay
        )
    }

    /// Whether a newer version may be used while data under an older version is stored. The values under a PVK or IBM 3624 key
    /// are in the card system, and do not name their key.
    pub fn rotates(&self) -> bool {
        !matches!(self, Self::Account | Self::Record | Self::Retry | Self::Mac) && !self.verifies()
    }
}

impl fmt::Display for KeyUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zone(name) => write!(f, "zone:{name}"),
            Self::Exchange(name) => write!(f, "exchange:{name}"),
            Self::Pvk(name) => write!(f, "pvk:{name}"),
            Self::Ibm3624(name) => write!(f, "ibm-3624:{name}"),
            engine => f.write_str(ENGINE_KEYS.iter().find(|(key, _)| key == engine).map_or("", |(_, name)| name)),
        }
    }
}
