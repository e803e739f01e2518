//! What the boundary is opened with.

use std::{ffi::CString, path::PathBuf};

use zeroize::Zeroizing;

use crate::{
    binding::Isolation,
    form::{NewRecordFormat, StorageFormat},
    policy::PinPolicy,
};

/// How to open the boundary. The default is the embedded one: fresh keys in memory.
#[derive(Default)]
pub struct Config {
    /// Where the keys are.
    pub keys: Keys,
    /// What to do where the vault file is not there.
    pub absent_vault: AbsentVault,
    /// At which level, in which form.
    pub wanted: Wanted,
    /// Which PINs are taken.
    pub policy: PinPolicy,
    /// What to do where memory can't be locked.
    pub lock_memory: LockMemory,
    /// Whose process this is.
    pub isolation: Isolation,
}

/// Where the keys are.
pub enum Keys {
    /// With the software token.
    Vault(Vault),
    /// In a PKCS#11 token.
    Pkcs11(Pkcs11),
}

impl Keys {
    /// Where blocks under the 3DES storage key are counted; nowhere where it is gone with the process.
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

/// What to do where a vault file and its key file are not there. Where one of the two is, opening fails either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AbsentVault {
    /// Make both, with fresh keys: at the first start of an engine, whose store holds nothing.
    Create,
    /// Fail: a volume that is not mounted must not lead to fresh keys.
    #[default]
    Refuse,
}

/// What to do with a key file that is there before its vault is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyFileUse {
    /// Fail: its vault may be elsewhere.
    Refuse,
    /// Seal the new vault with it.
    Existing,
}

/// How PINs are to be kept.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// How near a clear block may come to the host.
    pub level: WantedLevel,
    /// In which form PINs are kept; none for the level's own: a wrapped block at level `token`, else ISO-4.
    pub form: Option<NewRecordFormat>,
}

/// How near a clear block may come to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WantedLevel {
    /// Never across the token's interface in the clear: refused where the token can't do it.
    Token,
    /// Into host memory for the length of one operation.
    Host,
    /// As far away as the token can keep it.
    #[default]
    Best,
}

/// Where a PKCS#11 token is.
#[derive(Clone)]
pub struct TokenPlace {
    /// The module: a shared library.
    pub module: PathBuf,
    /// What the module is initialised with, where it takes words of its own, as NSS does.
    pub module_parameters: Option<CString>,
    /// Which of its slots.
    pub slot: SlotName,
}

/// A PKCS#11 token, and how to use it.
#[derive(Clone)]
pub struct Pkcs11 {
    /// Where it is.
    pub place: TokenPlace,
    /// The user PIN. Wiped when dropped; it is needed again whenever the token comes back.
    pub user_pin: Zeroizing<String>,
    /// The version of the keys, as the two bytes of their CKA_ID say it, where no register in the token says more.
    pub key_version: u16,
    /// The versions of the storage keys, likewise: the newest makes, the others open what they made. Empty for the one above.
    pub storage_key_versions: Vec<u16>,
    /// Where the keys are used.
    pub key_handling: KeyHandling,
    /// Whose threads call the token.
    pub callers: Callers,
    /// How many worker threads, each with a session.
    pub sessions: usize,
    /// How many operations may wait for a worker; one more is refused as [`crate::Error::Busy`].
    pub waiting_operations_max: usize,
    /// Where blocks under the 3DES storage key are counted.
    pub tdes_count: Option<PathBuf>,
}

/// A PKCS#11 token that holds the key a person signs with.
pub struct ParticipantToken {
    /// Where it is.
    pub place: TokenPlace,
    /// The user PIN; none to ask for it on the terminal.
    pub user_pin: Option<Zeroizing<String>>,
}

/// Where a token's keys are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeyHandling {
    /// Where they are kept.
    #[default]
    InToken,
    /// As copies that live in a session: for a token that reads a kept key from a database at every use, as NSS does.
    CopiedToSession,
}

/// Whose threads call a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Callers {
    /// Workers behind a bounded queue: a token that is slow, or hangs, holds up nothing else.
    #[default]
    Workers,
    /// The calling thread: for a token that is a library in this process and answers in microseconds, as
    /// NSS does; to wake a worker would take as long as its whole answer.
    Inline,
}

/// A slot: by what is printed on its token, or by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotName {
    /// By the token's label.
    Label(String),
    /// By the token's serial number.
    Serial(String),
    /// By the slot's own number: for a token whose words can't be read.
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

/// Where the software token keeps its keys.
#[derive(Default)]
pub enum Vault {
    /// Nowhere: fresh at every start, gone at its end.
    #[default]
    Memory,
    /// In a sealed file.
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

/// What level `host` can make.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostForm {
    Iso4,
    Iso3,
    Iso0,
}

impl HostForm {
    pub(crate) fn of(form: StorageFormat) -> Option<Self> {
        match form {
            StorageFormat::Wrapped => None,
            StorageFormat::Iso4 => Some(Self::Iso4),
            StorageFormat::Iso3 => Some(Self::Iso3),
            StorageFormat::Iso0 => Some(Self::Iso0),
        }
    }
}

impl From<HostForm> for StorageFormat {
    fn from(form: HostForm) -> Self {
        match form {
            HostForm::Iso4 => Self::Iso4,
            HostForm::Iso3 => Self::Iso3,
            HostForm::Iso0 => Self::Iso0,
        }
    }
}

/// What level `token` can make.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenForm {
    Wrapped,
    Iso4,
    Iso3,
}

impl TokenForm {
    pub(crate) fn of(form: StorageFormat) -> Option<Self> {
        match form {
            StorageFormat::Wrapped => Some(Self::Wrapped),
            StorageFormat::Iso4 => Some(Self::Iso4),
            StorageFormat::Iso3 => Some(Self::Iso3),
            StorageFormat::Iso0 => None,
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

/// What to do where memory can't be locked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LockMemory {
    /// Say so and go on.
    #[default]
    Try,
    /// Refuse to open.
    Require,
}
