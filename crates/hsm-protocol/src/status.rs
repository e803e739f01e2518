//! What a boundary is, for people and for audit lines; and what it can't promise.

use crate::binding::{BoundaryLevel, Isolation};
use crate::form::StorageFormat;
use crate::key_id::KeyId;
use crate::sealed::{KeyVersion, PinRecord};

/// What a boundary is and promises; nothing in it is secret.
#[derive(Clone, Debug)]
pub struct Status {
    pub token: String,
    pub level: BoundaryLevel,
    pub isolation: Isolation,
    pub form: StorageFormat,
    /// Of a 3DES form: the date it ends.
    pub until: Option<String>,
    pub keys: Vec<KeyId>,
    pub storage: StorageVersions,
    pub memory: MemoryLock,
    pub persistence: Persistence,
}

/// Where the keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    Memory,
    Vault,
    Token,
}

/// Whether the process's memory is locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemoryLock {
    /// It is.
    Locked,
    /// It is not, and why.
    NotLocked(String),
}

impl Status {
    /// The token's name.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Whose process it is in.
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// The boundary level.
    pub fn level(&self) -> BoundaryLevel {
        self.level
    }

    /// The form of new records.
    pub fn form(&self) -> StorageFormat {
        self.form
    }

    /// Every key that it uses, in each version.
    pub fn keys(&self) -> &[KeyId] {
        &self.keys
    }

    /// Whether a storage key is in use beside the newest: records may be under it.
    pub fn rotates(&self) -> bool {
        let names = self.keys.iter().map(|key| key.usage.as_str());
        let mut storage: Vec<_> = names.filter(|name| name.starts_with("storage")).collect();
        storage.sort_unstable();
        let all = storage.len();
        storage.dedup();
        storage.len() < all
    }

    /// Whether a record is under the newest storage key of its form.
    pub fn is_current(&self, record: &PinRecord) -> bool {
        record.storage_key() == self.storage.of(record.form())
    }

    /// For people: what it is, then what it cannot promise.
    pub fn lines(&self) -> Vec<String> {
        let mut lines =
            vec![format!("key boundary: {} token, level {}, isolation {}", self.token, self.level, self.isolation)];
        lines.push(format!("keys: {}", KeyId::list_to_text(&self.keys)));
        let cipher = match self.form {
            StorageFormat::Wrapped => "a key of its own, AES-256",
            StorageFormat::Iso4 => "AES-256",
            StorageFormat::Iso3 | StorageFormat::Iso0 => "3DES",
        };
        let exception = self.until.as_ref().map(|until| format!("EXCEPTION until {until}: ")).unwrap_or_default();
        lines.push(format!("{exception}PINs are kept as {} under {cipher}", self.form.told()));
        lines.push(match (self.persistence, self.level) {
            (Persistence::Memory | Persistence::Vault, _) => {
                "not promised: the software token's keys are in its process's memory, not in certified hardware".into()
            }
            (Persistence::Token, BoundaryLevel::Host) => {
                "not promised: at level host a clear PIN block is in its process's memory for one operation".into()
            }
            (Persistence::Token, BoundaryLevel::Token) => {
                "not promised: at level token nobody sees a PIN, so none is refused as weak or malformed".into()
            }
        });
        if self.level == BoundaryLevel::Token {
            lines.push(
                "promised: no clear PIN block and no tzpk crosses the token's interface; not promised: a token whose module computes in its process may hold them in that process's memory"
                    .into(),
            );
        }
        if (self.level, self.form) == (BoundaryLevel::Token, StorageFormat::Iso4) {
            lines.push("not promised: a PIN kept in format 4 at level token is not shown again".into());
        }
        if let MemoryLock::NotLocked(reason) = &self.memory {
            lines.push(format!("not promised: memory is not locked and may be swapped ({reason})"));
        }
        if self.persistence == Persistence::Memory {
            lines.push("not promised: keys are in memory alone, and are gone when its process ends".into());
        }
        lines
    }
}

/// The versions of the storage keys that new records are made under. Of a form that its level does not make, any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StorageVersions {
    pub wrapped: KeyVersion,
    pub iso_4: KeyVersion,
    /// Of ISO-3 and ISO-0 blocks.
    pub tdes: KeyVersion,
}

impl StorageVersions {
    pub fn of(&self, form: StorageFormat) -> KeyVersion {
        match form {
            StorageFormat::Wrapped => self.wrapped,
            StorageFormat::Iso4 => self.iso_4,
            StorageFormat::Iso3 | StorageFormat::Iso0 => self.tdes,
        }
    }
}
