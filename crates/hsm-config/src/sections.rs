//! What a file says of the boundary: its place, its keys, its level, its policy. Secrets are named here, not read.

use std::path::PathBuf;

use serde::Deserialize;

use config::SecretSource;

/// The software token's keys at rest.
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

/// A PKCS#11 token.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenFile {
    /// The module: a shared library.
    pub(crate) module: PathBuf,
    /// What the module is initialised with, where it takes words of its own, as NSS softokn does.
    pub(crate) module_parameters: Option<String>,
    /// The token's label; or give its serial, or the slot.
    pub(crate) label: Option<String>,
    /// The token's serial number.
    pub(crate) serial: Option<String>,
    /// The number of the slot, for a token whose label can't be read.
    pub(crate) slot: Option<u64>,
    /// The user PIN: `{ file = "…" }`, `{ env = "…" }` or `{ descriptor = 3 }`.
    pub(crate) user_pin: SecretSource,
    /// The version of the keys, in a token that no ceremony was held of.
    #[serde(default = "first_version")]
    pub(crate) key_version: u16,
    /// The versions of the storage keys, likewise: the newest makes, the others open what they made.
    #[serde(default)]
    pub(crate) storage_key_versions: Vec<u16>,
    /// Where the keys are used: `in-token`, or `copied-to-session` for a token that reads a database at every use.
    #[serde(default)]
    pub(crate) key_handling: KeyHandlingFile,
    /// Whose threads call the token: `workers`, or `inline` for a library in this process that answers in microseconds.
    #[serde(default)]
    pub(crate) callers: CallersFile,
    /// Sessions with the token, each with a thread; 0 for two a core.
    #[serde(default)]
    pub(crate) sessions: usize,
    /// Operations that may wait for a session.
    #[serde(default = "waiting_operations")]
    pub(crate) waiting_operations_max: usize,
    /// Files and directories that the module opens or writes while it serves: a confined process may open no others.
    #[serde(default)]
    pub(crate) paths: Vec<PathBuf>,
    /// TCP ports that the module connects to, for a token across a network: a confined process connects to no other.
    #[serde(default)]
    pub(crate) ports: Vec<u16>,
    /// What the module talks to a daemon of this machine by: `unix-socket`, `shared-memory` (System V). A confined process
    /// has neither unless it is listed.
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
    /// How near a clear block may come to the host: `token`, `host`, or `best` for the highest the token can do.
    pub(crate) level: LevelFile,
    /// The stored block: `wrapped` at level `token`, `iso-4` under AES-256 at level `host`, unless another is named;
    /// `iso-3` and `iso-0` under 3DES are dated exceptions.
    pub(crate) form: Option<StoredFormFile>,
    /// The date until which a 3DES form is allowed, as `2027-06-30`.
    pub(crate) form_until: Option<jiff::civil::Date>,
    /// `require` refuses to start where memory can't be locked; `try` says so and goes on. A process of its own is held to
    /// `require` unless the file says `try`.
    pub(crate) lock_memory: Option<LockMemoryFile>,
    /// Where the boundary is: `process` for one of its own, or `inline` for the engine's.
    pub(crate) isolation: IsolationFile,
    /// The Unix socket of a `pinseal hsm --listen` that somebody else runs; without it the engine starts one.
    pub(crate) socket: Option<PathBuf>,
    /// The program the engine starts as `PROGRAM hsm`; itself by default.
    pub(crate) program: Option<PathBuf>,
    /// The user the boundary's process runs as: becomes it where started as root, or is held to it on a socket.
    pub(crate) hsm_user: Option<u32>,
    /// The user of the engine, who alone may connect to the socket; the boundary's own user by default.
    pub(crate) engine_user: Option<u32>,
    /// Steps of confinement that are not taken: any of `user`, `landlock`, `seccomp`.
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
