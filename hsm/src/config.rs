//! What the boundary is opened with.

use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::policy::PinPolicy;

/// How to open the boundary. The default is the embedded one: fresh keys in memory, ISO-4.
#[derive(Default)]
pub struct Config {
    /// Where the keys are.
    pub keys: Keys,
    /// How near a clear block may come to the host.
    pub level: WantedLevel,
    /// In which form PINs are kept.
    pub form: StoredForm,
    /// Which PINs are taken.
    pub policy: PinPolicy,
    /// What to do where memory can't be locked.
    pub lock_memory: LockMemory,
}

/// Where the keys are.
pub enum Keys {
    /// With the software token.
    Vault(Vault),
    /// In a PKCS#11 token.
    Pkcs11(Pkcs11),
}

impl Default for Keys {
    fn default() -> Self {
        Self::Vault(Vault::default())
    }
}

/// How near a clear block may come to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WantedLevel {
    /// Not into host memory at all: refused where the token can't do it.
    Token,
    /// Into host memory for the length of one operation.
    Host,
    /// As far away as the token can keep it.
    #[default]
    Best,
}

/// A PKCS#11 token, and how to use it.
#[derive(Clone)]
pub struct Pkcs11 {
    /// The module: a shared library.
    pub module: PathBuf,
    /// Which of its slots.
    pub slot: SlotName,
    /// The user PIN. Wiped when dropped; it is needed again whenever the token comes back.
    pub user_pin: Zeroizing<String>,
    /// The version of the keys, as the two bytes of their CKA_ID say it.
    pub key_version: u16,
    /// How many worker threads, each with a session.
    pub sessions: usize,
    /// How many operations may wait for a worker; one more is refused as [`crate::Error::Busy`].
    pub waiting_operations_max: usize,
    /// Where blocks under the 3DES storage key are counted.
    pub tdes_count: Option<PathBuf>,
}

/// A slot, by what is printed on its token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotName {
    /// By the token's label.
    Label(String),
    /// By the token's serial number.
    Serial(String),
}

impl std::fmt::Display for SlotName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Label(label) => write!(f, "label {label:?}"),
            Self::Serial(serial) => write!(f, "serial {serial:?}"),
        }
    }
}

/// Where the software token keeps its keys.
#[derive(Default)]
pub enum Vault {
    /// Nowhere: fresh at every start, gone at its end.
    #[default]
    Memory,
    /// In a sealed file, made at the first start.
    File {
        /// The file.
        path: PathBuf,
        /// What opens it.
        unlock: Unlock,
    },
}

/// What opens a vault file.
pub enum Unlock {
    /// A passphrase, by Argon2id.
    Passphrase(Zeroizing<String>),
    /// A file of 32 random bytes, which only its owner may read; made when neither it nor the vault is there yet.
    KeyFile(PathBuf),
    /// 32 bytes handed in.
    Key(Zeroizing<[u8; 32]>),
}

/// In which form PINs are kept from now on. Records of every form go on being read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StoredForm {
    /// ISO 9564 format 4 under the AES-256 storage key.
    #[default]
    Iso4,
    /// Format 3 under the 3DES storage key: an exception, with the date it ends as the operator wrote it.
    Iso3 {
        /// The date.
        until: String,
    },
    /// Format 0 under the 3DES storage key: an exception, with the date it ends as the operator wrote it.
    Iso0 {
        /// The date.
        until: String,
    },
}

impl StoredForm {
    /// The form without its date.
    pub fn form(&self) -> Form {
        match self {
            Self::Iso4 => Form::Iso4,
            Self::Iso3 { .. } => Form::Iso3,
            Self::Iso0 { .. } => Form::Iso0,
        }
    }
}

/// The form of a stored block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// ISO 9564 format 4, AES-256.
    Iso4,
    /// ISO 9564 format 3, 3DES.
    Iso3,
    /// ISO 9564 format 0, 3DES.
    Iso0,
}

/// What to do where memory can't be locked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LockMemory {
    /// Say so and go on.
    #[default]
    Try,
    /// Refuse to open.
    Require,
}
