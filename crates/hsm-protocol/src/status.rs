//! The status of a boundary: its token, level, formats and keys, and the properties that it does not promise.

use crate::binding::{BoundaryLevel, Isolation};
use crate::key_id::KeyId;
use crate::key_usage::KeyUsage;
use crate::sealed::{KeyVersion, PinRecord};
use crate::storage_format::StorageFormat;
use crate::verification::{DIGITS_MAX, DIGITS_MIN};
use crate::zone_name::ZoneName;

/// The state of a boundary. Nothing in it is secret.
#[derive(Clone, Debug)]
pub struct Status {
    /// The token: `software` or `PKCS#11`.
    pub token: String,
    /// The boundary level of new records.
    pub level: BoundaryLevel,
    /// The process of the boundary.
    pub isolation: Isolation,
    /// The format of new records.
    pub form: StorageFormat,
    /// The end date of a 3DES format.
    pub until: Option<String>,
    /// Each key in use, in each version, without the zone keys and the verification keys.
    pub keys: Vec<KeyId>,
    /// The zone keys in use, each active version of each configured zone. No stored value is under them, so another
    /// process may have others.
    pub zone_keys: Vec<KeyId>,
    /// The active PVKs and IBM 3624 keys.
    pub verification_keys: Vec<KeyId>,
    /// Those of the zone keys that have a byte of even parity, in a zone with [`ParityPolicy::Warn`](crate::ParityPolicy::Warn).
    pub even_parity: Vec<KeyId>,
    /// The zones with get-pin beside set-pin, verify or change: a format 1 block that such a zone gave for one card is accepted
    /// for another.
    pub reusable_answers: Vec<ZoneName>,
    /// The versions that encrypt new records.
    pub storage: StorageVersions,
    /// Whether memory can be swapped.
    pub memory: MemoryLock,
    /// The place of the keys.
    pub persistence: Persistence,
    /// The number of digits that a PIN may have.
    pub pin_digits: PinDigits,
}

/// The number of digits that a PIN may have: by the PIN policy, or by ISO 9564-1 where the boundary checks no PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinDigits {
    min: u8,
    max: u8,
}

impl PinDigits {
    /// ISO 9564-1: 4 to 12 digits.
    pub const ISO_9564: Self = Self { min: DIGITS_MIN as u8, max: DIGITS_MAX as u8 };

    /// From `min` to `max` digits; `None` unless 4 ≤ `min` ≤ `max` ≤ 12.
    pub fn new(min: u8, max: u8) -> Option<Self> {
        (Self::ISO_9564.min <= min && min <= max && max <= Self::ISO_9564.max).then_some(Self { min, max })
    }

    /// The fewest digits.
    pub fn min(self) -> u8 {
        self.min
    }

    /// The most digits.
    pub fn max(self) -> u8 {
        self.max
    }
}

/// The place of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// In memory only: they end with the process.
    Memory,
    /// In a vault file.
    Vault,
    /// In a PKCS#11 token.
    Token,
}

/// Whether the process's memory is locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryLock {
    /// Locked: it cannot be swapped.
    Locked,
    /// Memory may be swapped; the text is the reason.
    NotLocked(String),
}

impl Status {
    /// The token: `software` or `PKCS#11`.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The process of the boundary.
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// The boundary level.
    pub fn level(&self) -> BoundaryLevel {
        self.level
    }

    /// The format of new records.
    pub fn form(&self) -> StorageFormat {
        self.form
    }

    /// Each key in use, in each version.
    pub fn keys(&self) -> &[KeyId] {
        &self.keys
    }

    /// The zone keys in use.
    pub fn zone_keys(&self) -> &[KeyId] {
        &self.zone_keys
    }

    /// The active PVKs and IBM 3624 keys.
    pub fn verification_keys(&self) -> &[KeyId] {
        &self.verification_keys
    }

    /// Whether two boundaries have the same keys, keys of zones and verification values included, and make records of the
    /// same format.
    pub fn has_same_keys(&self, other: &Self) -> bool {
        self.form == other.form
            && self.keys == other.keys
            && self.zone_keys == other.zone_keys
            && self.verification_keys == other.verification_keys
    }

    /// Whether records may need re-encryption: an older storage key is in use in addition to the newest, or new records are
    /// one-way and a reversible record may be left.
    pub fn rotates(&self) -> bool {
        let storage = || self.keys.iter().filter(|key| key.usage.keeps_records());
        self.form == StorageFormat::OneWay
            || storage().any(|key| storage().any(|other| other.usage == key.usage && other.version != key.version))
    }

    /// The versions of the storage key of a format that are in use.
    pub fn storage_versions(&self, form: StorageFormat) -> impl Iterator<Item = KeyVersion> + '_ {
        let usage = KeyUsage::storage_of(self.level, form);
        self.keys.iter().filter(move |key| key.usage == usage).map(|key| key.version)
    }

    /// The status of a boundary without the storage keys above these versions.
    pub fn up_to(&self, limit: StorageVersions) -> Self {
        let forms = [StorageFormat::Wrapped, StorageFormat::Iso4, StorageFormat::Iso3, StorageFormat::OneWay];
        let is_above =
            |key: &KeyId, form| key.usage == KeyUsage::storage_of(self.level, form) && key.version > limit.of(form);
        let mut status = Self { storage: self.storage.up_to(limit), ..self.clone() };
        status.keys.retain(|key| !forms.iter().any(|form| is_above(key, *form)));
        status
    }

    /// Whether a record is under the newest storage key of its format, and one-way where new records are one-way.
    pub fn is_current(&self, record: &PinRecord) -> bool {
        let has_form = self.form != StorageFormat::OneWay || record.form() == StorageFormat::OneWay;
        has_form && record.storage_key() == self.storage.of(record.form())
    }

    /// Lines for people: the boundary, its keys, and the properties that it does not promise.
    pub fn lines(&self) -> Vec<String> {
        let mut lines =
            vec![format!("key boundary: {} token, level {}, isolation {}", self.token, self.level, self.isolation)];
        lines.push(format!("keys: {}", KeyId::list_to_text(&self.keys)));
        if !self.zone_keys.is_empty() {
            lines.push(format!("zone keys: {}", KeyId::list_to_text(&self.zone_keys)));
        }
        if !self.verification_keys.is_empty() {
            lines.push(format!("verification keys: {}", KeyId::list_to_text(&self.verification_keys)));
        }
        if !self.even_parity.is_empty() {
            lines.push(format!("warning: zone keys without odd parity: {}", KeyId::list_to_text(&self.even_parity)));
        }
        if !self.reusable_answers.is_empty() {
            let names: Vec<_> = self.reusable_answers.iter().map(ZoneName::as_str).collect();
            lines.push(format!(
                "warning: zones that give PINs and accept format 1 blocks under one key: {}; a block that was given for one card is accepted for another (SECURITY.md): give get-pin a zone with another key",
                names.join(", ")
            ));
        }
        let cipher = match self.form {
            StorageFormat::Wrapped => "a key of the record, AES-256",
            StorageFormat::Iso4 => "AES-256",
            StorageFormat::Iso3 | StorageFormat::Iso0 => "3DES",
            StorageFormat::OneWay => "AES-256-CMAC",
        };
        let exception = self.until.as_ref().map(|until| format!("EXCEPTION until {until}: ")).unwrap_or_default();
        lines.push(format!("{exception}PINs are stored as {} under {cipher}", self.form.description()));
        lines.push(match (self.persistence, self.level) {
            (Persistence::Memory | Persistence::Vault, _) => {
                "not promised: the software token's keys are in its process's memory, not in certified hardware".into()
            }
            (Persistence::Token, BoundaryLevel::Host) => {
                "not promised: at level host a clear PIN block is in its process's memory for one operation".into()
            }
            (Persistence::Token, BoundaryLevel::Token) => {
                "not promised: at level token no PIN is visible, so no PIN is refused as weak or malformed".into()
            }
        });
        if self.level == BoundaryLevel::Token {
            lines.push(
                "promised: no clear PIN block and no tzpk crosses the token's interface; not promised: a token whose module computes in its process may hold them in that process's memory"
                    .into(),
            );
        }
        if (self.level, self.form) == (BoundaryLevel::Token, StorageFormat::Iso4) {
            lines.push("not promised: a PIN stored in format 4 at level token is not shown again".into());
        }
        if let MemoryLock::NotLocked(reason) = &self.memory {
            lines.push(format!("not promised: memory is not locked and may be swapped ({reason})"));
        }
        if self.persistence == Persistence::Memory {
            lines.push("not promised: keys are in memory only, and end with the process".into());
        }
        lines
    }
}

/// The versions of the storage keys that encrypt new records. The version of a format that the level does not make has no
/// meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StorageVersions {
    /// The version for wrapped blocks.
    pub wrapped: KeyVersion,
    /// The version for ISO-4 blocks.
    pub iso_4: KeyVersion,
    /// The version for ISO-3 and ISO-0 blocks.
    pub tdes: KeyVersion,
    /// The version for one-way records; 0 without such a key.
    pub one_way: KeyVersion,
}

impl StorageVersions {
    /// For each kind the lower version of both.
    pub fn up_to(self, other: Self) -> Self {
        Self {
            wrapped: self.wrapped.min(other.wrapped),
            iso_4: self.iso_4.min(other.iso_4),
            tdes: self.tdes.min(other.tdes),
            one_way: self.one_way.min(other.one_way),
        }
    }

    /// The version that encrypts records of this format.
    pub fn of(&self, form: StorageFormat) -> KeyVersion {
        match form {
            StorageFormat::Wrapped => self.wrapped,
            StorageFormat::Iso4 => self.iso_4,
            StorageFormat::Iso3 | StorageFormat::Iso0 => self.tdes,
            StorageFormat::OneWay => self.one_way,
        }
    }
}
