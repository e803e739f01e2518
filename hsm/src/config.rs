//! The configuration of the boundary, as the caller passes it to [`crate::Hsm`].

use std::{ffi::CString, path::PathBuf};

use zeroize::Zeroizing;

use hsm_protocol::{Isolation, NewRecordFormat, StorageFormat, ZoneRules};

use crate::policy::PinPolicy;

/// The configuration of the boundary. The default is a software token with fresh keys in memory.
#[derive(Default)]
pub struct Config {
    /// The vault or PKCS#11 token that holds the keys.
    pub keys: Keys,
    /// Whether a missing vault file is created.
    pub absent_vault: AbsentVault,
    /// The boundary level and the storage format.
    pub wanted: Wanted,
    /// The PINs that a cardholder may set.
    pub policy: PinPolicy,
    /// Whether the boundary opens without locked memory.
    pub lock_memory: LockMemory,
    /// The isolation of the boundary's process; written in every record.
    pub isolation: Isolation,
    /// The zones, each with one entry. The key `zone:NAME` of each must be active.
    pub zones: Vec<ZoneRules>,
}

/// The location of the keys.
pub enum Keys {
    /// The keys of the software token are in a vault.
    Vault(Vault),
    /// The keys are in a PKCS#11 token.
    Pkcs11(Pkcs11),
}

impl Keys {
    /// The file that counts blocks under the 3DES storage key; `None` where the key lives only in this process.
    pub(crate) fn tdes_count(&self) -> Option<PathBuf> {
        match self {
            Self::Vault(Vault::Memory) => None,
            Self::Vault(Vault::File { path, .. }) => Some(path.with_extension("3des-count")),
            Self::Pkcs11(token) => token.tdes_count.clone(),
        }
    }
}

impl Default for Keys {
    fn default() -> Self {
        Self::Vault(Vault::default())
    }
}

/// Whether a missing vault is created. Where only the vault file or only its key file exists, opening fails in either case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AbsentVault {
    /// Create vault and key file with fresh keys: for the first start of an engine over an empty store.
    Create,
    /// Fail, so that an unmounted volume does not lead to fresh keys.
    #[default]
    Refuse,
}

/// Whether a new vault may use an existing key file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFileUse {
    /// Fail: the key file may belong to a vault that is not mounted.
    Refuse,
    /// Seal the new vault with the existing key file.
    Existing,
}

/// The boundary level and storage format that the operator asks for.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The boundary level.
    pub level: WantedLevel,
    /// The storage format. `None` selects the level's default: a wrapped block at level `token`, ISO-4 at level `host`.
    pub form: Option<NewRecordFormat>,
}

/// The boundary level that the operator asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WantedLevel {
    /// No clear block crosses the token's interface. Opening fails where the token does not support this.
    Token,
    /// A clear block is in host memory for one operation.
    Host,
    /// `Token` where the token supports it, else `Host`.
    #[default]
    Best,
}

/// The module and slot of a PKCS#11 token.
#[derive(Clone)]
pub struct TokenPlace {
    /// The PKCS#11 module, a shared library.
    pub module: PathBuf,
    /// The parameters for C_Initialize, for a module such as NSS that takes some.
    pub module_parameters: Option<CString>,
    /// The slot of the token.
    pub slot: SlotName,
}

/// A PKCS#11 token with an engine's keys, and its use.
#[derive(Clone)]
pub struct Pkcs11 {
    /// The module and slot.
    pub place: TokenPlace,
    /// The user PIN. Wiped on drop; every reconnection needs the PIN.
    pub user_pin: Zeroizing<String>,
    /// The version of the keys, bytes 1 and 2 of their CKA_ID. Ignored where the token has an inventory.
    pub key_version: u16,
    /// The versions of the storage keys: the newest encrypts, all decrypt. Empty means `key_version`. Ignored where the token
    /// has an inventory.
    pub storage_key_versions: Vec<u16>,
    /// Whether the keys are used in place or copied into a session.
    pub key_handling: KeyHandling,
    /// The threads that call the token.
    pub callers: Callers,
    /// The number of worker threads, each with a session.
    pub sessions: usize,
    /// The most operations that wait for a worker. The next operation fails with [`crate::Error::Busy`].
    pub waiting_operations_max: usize,
    /// The file that counts blocks under the 3DES storage key.
    pub tdes_count: Option<PathBuf>,
}

/// A PKCS#11 token that holds a participant's signing key.
pub struct ParticipantToken {
    /// The module and slot.
    pub place: TokenPlace,
    /// The user PIN; `None` asks for the PIN on the terminal.
    pub user_pin: Option<Zeroizing<String>>,
}

/// Whether a token's keys are used in place or copied into a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyHandling {
    /// The token objects are used.
    #[default]
    InToken,
    /// Session copies (C_CopyObject) are used: for a token such as NSS that reads a token object from a database at every use.
    CopiedToSession,
}

/// The threads that call a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Callers {
    /// Worker threads behind a bounded queue: a slow or hanging token blocks no other work.
    #[default]
    Workers,
    /// The calling thread: for a token such as NSS that runs in this process and answers in microseconds. Waking a worker would
    /// take as long as the operation.
    Inline,
}

/// A slot, named by its token's label or serial number, or by its slot number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotName {
    /// The token's label.
    Label(String),
    /// The token's serial number.
    Serial(String),
    /// The CK_SLOT_ID, for a token whose label can't be read.
    Number(u64),
}

impl std::fmt::Display for SlotName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Label(label) => write!(f, "label {label:?}"),
            Self::Serial(serial) => write!(f, "serial {serial:?}"),
            Self::Number(number) => write!(f, "slot {number}"),
        }
    }
}

/// The keys of the software token.
#[derive(Default)]
pub enum Vault {
    /// Fresh keys at every start, lost at its end.
    #[default]
    Memory,
    /// Keys in a sealed file.
    File {
        /// The path of the vault file.
        path: PathBuf,
        /// The secret that opens the vault.
        unlock: Unlock,
    },
}

/// The secret that opens a vault file.
pub enum Unlock {
    /// A passphrase; Argon2id derives the key.
    Passphrase(Zeroizing<String>),
    /// A file of 32 random bytes with mode 0600. Created together with a new vault.
    KeyFile(PathBuf),
    /// The key itself, 32 bytes.
    Key(Zeroizing<[u8; 32]>),
}

/// The storage formats of level `host`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostForm {
    Iso4,
    Iso3,
    Iso0,
    OneWay,
}

impl HostForm {
    pub(crate) fn from_format(form: StorageFormat) -> Option<Self> {
        match form {
            StorageFormat::Wrapped => None,
            StorageFormat::Iso4 => Some(Self::Iso4),
            StorageFormat::Iso3 => Some(Self::Iso3),
            StorageFormat::Iso0 => Some(Self::Iso0),
            StorageFormat::OneWay => Some(Self::OneWay),
        }
    }
}

impl From<HostForm> for StorageFormat {
    fn from(form: HostForm) -> Self {
        match form {
            HostForm::Iso4 => Self::Iso4,
            HostForm::Iso3 => Self::Iso3,
            HostForm::Iso0 => Self::Iso0,
            HostForm::OneWay => Self::OneWay,
        }
    }
}

/// The storage formats of level `token`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenForm {
    Wrapped,
    Iso4,
    Iso3,
}

impl TokenForm {
    pub(crate) fn from_format(form: StorageFormat) -> Option<Self> {
        match form {
            StorageFormat::Wrapped => Some(Self::Wrapped),
            StorageFormat::Iso4 => Some(Self::Iso4),
            StorageFormat::Iso3 => Some(Self::Iso3),
            StorageFormat::Iso0 | StorageFormat::OneWay => None,
        }
    }
}

impl From<TokenForm> for StorageFormat {
    fn from(form: TokenForm) -> Self {
        match form {
            TokenForm::Wrapped => Self::Wrapped,
            TokenForm::Iso4 => Self::Iso4,
            TokenForm::Iso3 => Self::Iso3,
        }
    }
}

/// Whether the boundary opens without locked memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LockMemory {
    /// Open, and report the reason in the status.
    #[default]
    Try,
    /// Fail to open.
    Require,
}
