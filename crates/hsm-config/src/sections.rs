//! The sections of the boundary as the file has them. They name secrets; reading a secret is the caller's work.

use std::path::PathBuf;

use serde::{Deserialize, de::IgnoredAny};

use config::SecretSource;

/// `[vault]`: the file with the keys of the software token.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct VaultFile {
    /// The vault file; `{data_directory}/vault` by default.
    pub(crate) file: Option<PathBuf>,
    /// A file of 32 random bytes that opens the vault; `{data_directory}/vault.key` by default.
    pub(crate) key_file: Option<PathBuf>,
    /// A passphrase that opens the vault, instead of a key file: `{ file = "…" }` or `{ env = "…" }`.
    pub(crate) passphrase: Option<SecretSource>,
}

/// `[token]`: a PKCS#11 token.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenFile {
    /// The module: a shared library.
    pub(crate) module: PathBuf,
    /// The module's own initialisation string (`pReserved` of `C_Initialize`), which NSS softokn needs.
    pub(crate) module_parameters: Option<String>,
    /// The token's label. A file has exactly one of `label`, `serial` and `slot`.
    pub(crate) label: Option<String>,
    /// The token's serial number.
    pub(crate) serial: Option<String>,
    /// The number of the slot, for a token whose label can't be read.
    pub(crate) slot: Option<u64>,
    /// The user PIN: `{ file = "…" }`, `{ env = "…" }` or `{ descriptor = 3 }`.
    pub(crate) user_pin: SecretSource,
    /// The version of the keys, in a token without a ceremony's inventory.
    #[serde(default = "first_version")]
    pub(crate) key_version: u16,
    /// The versions of the storage keys, in a token without an inventory. The newest encrypts, the others decrypt.
    #[serde(default)]
    pub(crate) storage_key_versions: Vec<u16>,
    /// Where the keys are used: `in-token`, or `copied-to-session` for a token that reads a database at every use.
    #[serde(default)]
    pub(crate) key_handling: KeyHandlingFile,
    /// `workers`: separate threads call the token. `inline`: the serving threads call it; for a module that answers in
    /// microseconds.
    #[serde(default)]
    pub(crate) callers: CallersFile,
    /// Sessions with the token, each with a thread; 0 for two a core.
    #[serde(default)]
    pub(crate) sessions: usize,
    /// Operations that may wait for a session.
    #[serde(default = "waiting_operations")]
    pub(crate) waiting_operations_max: usize,
    /// Files and directories that the module opens or writes while it serves. A confined process can open no others.
    #[serde(default)]
    pub(crate) paths: Vec<PathBuf>,
    /// TCP ports that the module connects to. A confined process can connect to no others.
    #[serde(default)]
    pub(crate) ports: Vec<u16>,
    /// The IPC that the module needs: `unix-socket`, `shared-memory` (System V). A confined process has no other.
    #[serde(default)]
    pub(crate) ipc: Vec<IpcFile>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum IpcFile {
    UnixSocket,
    SharedMemory,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum KeyHandlingFile {
    #[default]
    InToken,
    CopiedToSession,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CallersFile {
    #[default]
    Workers,
    Inline,
}

fn first_version() -> u16 {
    1
}

fn waiting_operations() -> usize {
    1_024
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct BoundarySection {
    /// `token`, `host`, or `best` for the highest level that the token reaches.
    pub(crate) level: LevelFile,
    /// The format of stored PINs. Default: `wrapped` at level `token`, `iso-4` under AES-256 at level `host`. `iso-3` and
    /// `iso-0` use 3DES and need `form_until`.
    pub(crate) form: Option<StoredFormFile>,
    /// The last date on which a 3DES format is allowed, for example `2027-06-30`.
    pub(crate) form_until: Option<jiff::civil::Date>,
    /// `require`: the process does not start when memory can't be locked. `try`: it logs a warning and starts. Default: `require`
    /// in a separate process, `try` in the engine's process.
    pub(crate) lock_memory: Option<LockMemoryFile>,
    /// `process`: the boundary runs in a separate process. `inline`: it runs in the engine's process.
    pub(crate) isolation: IsolationFile,
    /// Read by the engine.
    pub(crate) socket: Option<IgnoredAny>,
    /// Read by the engine.
    pub(crate) program: Option<IgnoredAny>,
    /// The uid that the boundary's process takes when root starts it.
    pub(crate) hsm_user: Option<u32>,
    /// The uid of the engine; no other user may connect to the socket. The boundary's own uid by default.
    pub(crate) engine_user: Option<u32>,
    /// Steps of confinement that are skipped: any of `user`, `landlock`, `seccomp`.
    pub(crate) waive: Vec<StepFile>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum IsolationFile {
    Process,
    Inline,
}

impl Default for IsolationFile {
    fn default() -> Self {
        if cfg!(target_os = "linux") { Self::Process } else { Self::Inline }
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StepFile {
    User,
    Landlock,
    Seccomp,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LevelFile {
    Token,
    Host,
    #[default]
    Best,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StoredFormFile {
    Wrapped,
    #[serde(rename = "iso-4")]
    Iso4,
    #[serde(rename = "iso-3")]
    Iso3,
    #[serde(rename = "iso-0")]
    Iso0,
    OneWay,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LockMemoryFile {
    Try,
    Require,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PinPolicyFile {
    /// The shortest PIN, in digits.
    pub(crate) length_min: u8,
    /// The longest PIN, in digits.
    pub(crate) length_max: u8,
    /// Any of `ascending` (1234), `descending` (4321), `repeated` (1111).
    pub(crate) refuse: Vec<WeaknessFile>,
    /// A file of refused PINs, one a line.
    pub(crate) refused_pins: Option<SecretSource>,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WeaknessFile {
    Ascending,
    Descending,
    Repeated,
}

impl Default for PinPolicyFile {
    fn default() -> Self {
        let refuse = vec![WeaknessFile::Ascending, WeaknessFile::Descending, WeaknessFile::Repeated];
        Self { length_min: 4, length_max: 12, refuse, refused_pins: None }
    }
}
