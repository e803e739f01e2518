//! The sections of the configuration that the key boundary reads: `[boundary]`, `[vault]`, `[token]`, `[pin_policy]`.
//! An engine that holds no key does not read them. Both read `[[zones]]` (`zone_config`).
//!
//! ```
//! use hsm_config::HsmProcess;
//!
//! let process = HsmProcess::embedded("pinseal-data".as_ref())?;
//! assert!(matches!(process.hsm.keys, hsm::Keys::Vault(_)));
//! assert!(process.confinement.waived.is_empty());
//! # Ok::<(), config::ConfigError>(())
//! ```

mod boundary_rules;
mod confinement;
mod person;
mod sections;

use std::{
    collections::HashMap,
    ffi::CString,
    path::{Path, PathBuf},
};

use config::{ConfigError, DATA_DIRECTORY, KnownKey, SecretSource, read_file, within};
use serde::{Deserialize, de::IgnoredAny};
use zone_config::{ZoneFile, check_zones};

use self::sections::{
    BoundarySection, CallersFile, IpcFile, IsolationFile, KeyHandlingFile, LevelFile, LockMemoryFile, PinPolicyFile,
    StepFile, StoredFormFile, TokenFile, VaultFile, WeaknessFile,
};
pub use self::{
    boundary_rules::BoundaryRules,
    confinement::{Confinement, Ipc, Step, TokenNeeds},
    person::person_token,
};

/// The uid of a vault's process that root starts without `boundary.hsm_user`. systemd reserves this range for users without
/// an account.
const USER_BY_DEFAULT: u32 = 65_500;

/// The checked configuration of a boundary in a separate process.
pub struct HsmProcess {
    /// Keys, level, policy and memory locking.
    pub hsm: hsm::Config,
    /// The privileges that the process drops.
    pub confinement: Confinement,
    /// The number of serving threads.
    pub threads: usize,
    /// The uid that may connect to the socket.
    pub engine_user: u32,
}

impl HsmProcess {
    /// Reads and checks a file. Without a path, returns the embedded defaults.
    ///
    /// # Errors
    /// The file cannot be read, is malformed, has a value out of range, or names a secret that cannot be read.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        match path {
            Some(path) => Self::of(read_file::<BoundaryFile>(Some(path))?),
            None => Self::of_defaults(BoundaryFile::default()),
        }
    }

    /// The embedded defaults, with the vault in `directory`.
    ///
    /// # Errors
    /// The embedded defaults do not fit this machine.
    pub fn embedded(directory: &Path) -> Result<Self, ConfigError> {
        Self::of_defaults(BoundaryFile { data_directory: directory.to_owned(), ..BoundaryFile::default() })
    }

    /// Reads and checks a file for a boundary in the engine's own process.
    ///
    /// # Errors
    /// The file is not a configuration, or a secret that it names cannot be read.
    pub fn load_inline(path: Option<&Path>) -> Result<hsm::Config, ConfigError> {
        read_file::<BoundaryFile>(path)?.hsm()
    }

    /// The embedded defaults for a boundary in the engine's own process, with the vault in `directory`.
    ///
    /// # Errors
    /// The embedded defaults do not fit this machine.
    pub fn embedded_inline(directory: &Path) -> Result<hsm::Config, ConfigError> {
        BoundaryFile { data_directory: directory.to_owned(), ..BoundaryFile::default() }.hsm()
    }

    /// Without a file the machine is not prepared: an ordinary user may lock little memory, so a failed lock is only logged.
    fn of_defaults(mut file: BoundaryFile) -> Result<Self, ConfigError> {
        file.boundary.lock_memory = Some(LockMemoryFile::Try);
        Self::of(file)
    }

    fn of(mut file: BoundaryFile) -> Result<Self, ConfigError> {
        let threads = match file.token {
            // A vault answers faster than an engine's thread sends requests: half as many threads handle more requests a wake-up.
            None => file.threads()?.div_ceil(2),
            Some(_) => file.threads()?,
        };
        file.boundary.lock_memory.get_or_insert(LockMemoryFile::Require);
        let boundary = &file.boundary;
        if let Some(user) = boundary.hsm_user {
            within("boundary.hsm_user", user, 1..=u32::MAX - 1)?;
        }
        let own_user = nix::unistd::getuid().as_raw();
        let confinement = Confinement {
            user: boundary.hsm_user.or(file.token.is_none().then_some(USER_BY_DEFAULT)),
            token: file.token.as_ref().map(TokenFile::needs),
            waived: boundary.waive.iter().map(|step| step.checked()).collect(),
        };
        let engine_user = boundary.engine_user.unwrap_or(own_user);
        let hsm = hsm::Config { isolation: hsm::Isolation::Process, ..file.hsm()? };
        Ok(Self { hsm, confinement, threads, engine_user })
    }
}

/// Reads the `[token]` section of a file, and the level and stored format of PINs.
///
/// # Errors
/// The file is malformed, has no `[token]`, or names a secret that cannot be read.
pub fn load_token(path: &Path) -> Result<Token, ConfigError> {
    let file = read_file::<BoundaryFile>(Some(path))?;
    let token =
        file.token.ok_or_else(|| ConfigError::value("token", "the file names no PKCS#11 token: add [token]"))?;
    let isolation = match file.boundary.isolation {
        IsolationFile::Process => hsm::Isolation::Process,
        IsolationFile::Inline => hsm::Isolation::Inline,
    };
    Ok(Token { token: token.check(&file.data_directory)?, wanted: wanted(&file.boundary)?, isolation })
}

/// Reads the vault or token of a file, and the level and stored format of PINs.
///
/// # Errors
/// The file is malformed, or names a secret that cannot be read.
pub fn load_keys(path: &Path) -> Result<(hsm::Keys, hsm::Wanted), ConfigError> {
    let file = read_file::<BoundaryFile>(Some(path))?;
    let wanted = wanted(&file.boundary)?;
    Ok((keys(file.token, file.vault, &file.data_directory)?, wanted))
}

/// Reads the rules of the zones of a file.
///
/// # Errors
/// The file is malformed, or a zone is.
pub fn load_zones(path: &Path) -> Result<Vec<hsm::ZoneRules>, ConfigError> {
    let zones = check_zones(read_file::<BoundaryFile>(Some(path))?.zones)?;
    Ok(zones.into_iter().map(|zone| zone.rules).collect())
}

/// The keys of a configuration file. The boundary ignores those that only an engine reads.
pub fn known_keys() -> Vec<KnownKey> {
    config::known_keys::<BoundaryFile>()
}

/// Whether a file has a top-level key that only an engine reads.
///
/// # Errors
/// The file cannot be read, or is not TOML.
pub fn has_engine_keys(path: &Path) -> Result<bool, ConfigError> {
    let found = read_file::<HashMap<String, IgnoredAny>>(Some(path))?;
    Ok(known_keys().iter().any(|key| key.is_ignored && found.contains_key(&key.path)))
}

/// A PKCS#11 token, and how an engine uses it.
pub struct Token {
    /// The module, its slot and user PIN, and the use of its keys.
    pub token: hsm::Pkcs11,
    /// The level and the stored format of PINs.
    pub wanted: hsm::Wanted,
    /// The process that calls the token: the engine's, or a separate one.
    pub isolation: hsm::Isolation,
}

/// The file, as written. An engine reads the keys that are ignored here.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct BoundaryFile {
    /// The directory of the vault, unless `[vault]` names other paths.
    data_directory: PathBuf,
    /// Threads that serve; 0 for one a core.
    workers: usize,
    vault: VaultFile,
    /// A PKCS#11 token that holds the keys, instead of the vault.
    token: Option<TokenFile>,
    boundary: BoundarySection,
    pin_policy: PinPolicyFile,
    zones: Vec<ZoneFile>,
    listen: Option<IgnoredAny>,
    call_timeout_milliseconds: Option<IgnoredAny>,
    calls_per_connection_max: Option<IgnoredAny>,
    connections_max: Option<IgnoredAny>,
    silent_connections_per_address_max: Option<IgnoredAny>,
    connection_age_seconds_max: Option<IgnoredAny>,
    tls: Option<IgnoredAny>,
    peers: Option<IgnoredAny>,
    control: Option<IgnoredAny>,
    limits: Option<IgnoredAny>,
    verification: Option<IgnoredAny>,
    store: Option<IgnoredAny>,
    rotation: Option<IgnoredAny>,
    metrics: Option<IgnoredAny>,
    audit: Option<IgnoredAny>,
}

impl Default for BoundaryFile {
    fn default() -> Self {
        Self {
            data_directory: DATA_DIRECTORY.into(),
            workers: 0,
            vault: VaultFile::default(),
            token: None,
            boundary: BoundarySection::default(),
            pin_policy: PinPolicyFile::default(),
            zones: Vec::new(),
            listen: None,
            call_timeout_milliseconds: None,
            calls_per_connection_max: None,
            connections_max: None,
            silent_connections_per_address_max: None,
            connection_age_seconds_max: None,
            tls: None,
            peers: None,
            control: None,
            limits: None,
            verification: None,
            store: None,
            rotation: None,
            metrics: None,
            audit: None,
        }
    }
}

impl BoundaryFile {
    /// Threads that serve.
    fn threads(&self) -> Result<usize, ConfigError> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if self.workers == 0 { Ok(cores) } else { within("workers", self.workers, 1..=240) }
    }

    /// The keys, the level and the policy. Reads the secrets.
    fn hsm(self) -> Result<hsm::Config, ConfigError> {
        let zones = check_zones(self.zones)?.into_iter().map(|zone| zone.rules).collect();
        let keys = keys(self.token, self.vault, &self.data_directory)?;
        Ok(hsm::Config { zones, ..hsm_config(keys, &self.boundary, &self.pin_policy)? })
    }
}

fn keys(token: Option<TokenFile>, vault: VaultFile, data: &Path) -> Result<hsm::Keys, ConfigError> {
    match token {
        Some(token) => Ok(hsm::Keys::Pkcs11(token.check(data)?)),
        None => Ok(hsm::Keys::Vault(vault.check(data)?)),
    }
}

impl StepFile {
    fn checked(self) -> Step {
        match self {
            Self::User => Step::User,
            Self::Landlock => Step::Landlock,
            Self::Seccomp => Step::Seccomp,
        }
    }
}

impl VaultFile {
    fn check(self, data: &Path) -> Result<hsm::Vault, ConfigError> {
        let unlock = match (self.passphrase, self.key_file) {
            (Some(_), Some(_)) => return Err(ConfigError::value("vault", "give a passphrase or a key_file, not both")),
            (Some(passphrase), None) => hsm::Unlock::Passphrase(passphrase.read()?),
            (None, key_file) => hsm::Unlock::KeyFile(key_file.unwrap_or_else(|| data.join("vault.key"))),
        };
        Ok(hsm::Vault::File { path: self.file.unwrap_or_else(|| data.join("vault")), unlock })
    }
}

impl TokenFile {
    fn needs(&self) -> TokenNeeds {
        let ipc = self.ipc.iter().map(|ipc| match ipc {
            IpcFile::UnixSocket => Ipc::UnixSocket,
            IpcFile::SharedMemory => Ipc::SharedMemory,
        });
        TokenNeeds {
            module: self.module.clone(),
            paths: self.paths.clone(),
            ports: self.ports.clone(),
            ipc: ipc.collect(),
        }
    }

    fn check(self, data: &Path) -> Result<hsm::Pkcs11, ConfigError> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let (sessions, waiting) = (self.sessions, self.waiting_operations_max);
        Ok(hsm::Pkcs11 {
            place: place(self.module, self.module_parameters, slot(self.label, self.serial, self.slot)?)?,
            user_pin: self.user_pin.read()?,
            key_version: within("token.key_version", self.key_version, 1..=u16::MAX)?,
            storage_key_versions: self
                .storage_key_versions
                .into_iter()
                .map(|version| within("token.storage_key_versions", version, 1..=u16::MAX))
                .collect::<Result<_, _>>()?,
            key_handling: match self.key_handling {
                KeyHandlingFile::InToken => hsm::KeyHandling::InToken,
                KeyHandlingFile::CopiedToSession => hsm::KeyHandling::CopiedToSession,
            },
            callers: match self.callers {
                CallersFile::Workers => hsm::Callers::Workers,
                CallersFile::Inline => hsm::Callers::Inline,
            },
            sessions: if sessions == 0 { cores * 2 } else { within("token.sessions", sessions, 1..=256)? },
            waiting_operations_max: within("token.waiting_operations_max", waiting, 1..=1_000_000)?,
            tdes_count: Some(data.join("3des-count")),
        })
    }
}

/// The slot, by its one name.
fn slot(label: Option<String>, serial: Option<String>, number: Option<u64>) -> Result<hsm::SlotName, ConfigError> {
    match (label, serial, number) {
        (Some(label), None, None) => Ok(hsm::SlotName::Label(label)),
        (None, Some(serial), None) => Ok(hsm::SlotName::Serial(serial)),
        (None, None, Some(number)) => Ok(hsm::SlotName::Number(number)),
        _ => Err(ConfigError::value("token", "name the token by exactly one of the token's label, serial and slot")),
    }
}

/// The module, its parameters and the slot.
fn place(
    module: PathBuf,
    module_parameters: Option<String>,
    slot: hsm::SlotName,
) -> Result<hsm::TokenPlace, ConfigError> {
    let parameters = module_parameters.map(CString::new).transpose();
    let module_parameters = parameters.map_err(|error| ConfigError::value("token.module_parameters", error))?;
    Ok(hsm::TokenPlace { module, module_parameters, slot })
}

fn hsm_config(keys: hsm::Keys, boundary: &BoundarySection, policy: &PinPolicyFile) -> Result<hsm::Config, ConfigError> {
    Ok(hsm::Config {
        keys,
        absent_vault: hsm::AbsentVault::Refuse,
        wanted: wanted(boundary)?,
        policy: pin_policy(policy)?,
        isolation: hsm::Isolation::Inline,
        zones: Vec::new(),
        lock_memory: match boundary.lock_memory {
            None | Some(LockMemoryFile::Try) => hsm::LockMemory::Try,
            Some(LockMemoryFile::Require) => hsm::LockMemory::Require,
        },
    })
}

fn wanted(boundary: &BoundarySection) -> Result<hsm::Wanted, ConfigError> {
    let level = match boundary.level {
        LevelFile::Token => hsm::WantedLevel::Token,
        LevelFile::Host => hsm::WantedLevel::Host,
        LevelFile::Best => hsm::WantedLevel::Best,
    };
    Ok(hsm::Wanted { level, form: boundary.form.map(|form| stored_form(form, boundary)).transpose()? })
}

/// A 3DES form needs its last date, and that date must not have passed.
fn stored_form(form: StoredFormFile, boundary: &BoundarySection) -> Result<hsm::NewRecordFormat, ConfigError> {
    let until = |form: fn(String) -> hsm::NewRecordFormat| {
        let today = jiff::tz::TimeZone::UTC.to_datetime(jiff::Timestamp::now()).date();
        match boundary.form_until {
            None => Err(ConfigError::value(
                "boundary.form_until",
                "a 3DES format needs the date it ends, for example 2027-06-30",
            )),
            Some(until) if until < today => {
                Err(ConfigError::value("boundary.form_until", format!("{until} has passed: set form = \"iso-4\"")))
            }
            Some(until) => Ok(form(until.to_string())),
        }
    };
    match form {
        StoredFormFile::Wrapped => Ok(hsm::NewRecordFormat::Wrapped),
        StoredFormFile::Iso4 => Ok(hsm::NewRecordFormat::Iso4),
        StoredFormFile::Iso3 => until(|until| hsm::NewRecordFormat::Iso3 { until }),
        StoredFormFile::Iso0 => until(|until| hsm::NewRecordFormat::Iso0 { until }),
        StoredFormFile::OneWay => Ok(hsm::NewRecordFormat::OneWay),
    }
}

fn weaknesses(policy: &PinPolicyFile) -> Vec<hsm::Weakness> {
    let weakness = |weakness: &WeaknessFile| match weakness {
        WeaknessFile::Ascending => hsm::Weakness::Ascending,
        WeaknessFile::Descending => hsm::Weakness::Descending,
        WeaknessFile::Repeated => hsm::Weakness::Repeated,
    };
    policy.refuse.iter().map(weakness).collect()
}

fn pin_policy(policy: &PinPolicyFile) -> Result<hsm::PinPolicy, ConfigError> {
    let refused = policy.refused_pins.as_ref().map(SecretSource::read_lines).transpose()?;
    let listed = refused.iter().flat_map(|text| text.lines()).map(str::trim).filter(|line| !line.is_empty());
    hsm::PinPolicy::new(policy.length_min..=policy.length_max, weaknesses(policy), listed)
        .map_err(|error| ConfigError::value("pin_policy", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<HsmProcess, String> {
        let file: BoundaryFile = toml::from_str(text).map_err(|error| error.to_string())?;
        HsmProcess::of(file).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_means_a_fully_confined_vault() {
        let process = checked("").unwrap();
        assert_eq!(process.hsm.wanted.form, None);
        assert_eq!(process.hsm.isolation, hsm::Isolation::Process);
        assert!(process.confinement.waived.is_empty() && process.confinement.token.is_none());
    }

    #[test]
    fn a_policy_out_of_range_is_named() {
        assert!(checked("[pin_policy]\nlength_min = 3").err().unwrap().contains("4 to 12"));
    }

    #[test]
    fn the_rules_of_a_zone_reach_the_boundary() {
        let zone = "[[zones]]\nname = \"app-bank\"\ntenant = \"bank\"\nindex = 0\n";
        let process = checked(&format!("{zone}uses = [\"set-pin\"]")).unwrap();
        let [rules] = &process.hsm.zones[..] else { panic!("not one zone") };
        assert_eq!((rules.name.as_str(), &rules.uses[..]), ("app-bank", &[hsm::ZoneUse::SetPin][..]));
        assert!(checked(&format!("{zone}{zone}")).err().unwrap().contains("two entries"));
    }

    #[test]
    fn the_rules_of_a_configuration_are_read_without_its_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("engine.toml");
        let text = "[token]\nmodule = \"m.so\"\nlabel = \"a\"\nuser_pin = { file = \"/nowhere/pin\" }\n\
                    [boundary]\nlevel = \"host\"\nform = \"one-way\"\n[pin_policy]\nlength_max = 6\nrefuse = [\"repeated\"]\n\
                    refused_pins = { file = \"/nowhere/list\" }\n\
                    [[zones]]\nname = \"app\"\ntenant = \"bank\"\nindex = 3\n";
        std::fs::write(&path, text).unwrap();
        let rules = BoundaryRules::load(Some(&path)).unwrap();
        assert_eq!((rules.keys, rules.wanted.form), (hsm::KeyPlace::Token, Some(hsm::NewRecordFormat::OneWay)));
        assert_eq!((rules.pin_lengths, rules.has_refused_list), (4..=6, true));
        assert_eq!(rules.weaknesses, [hsm::Weakness::Repeated]);
        assert_eq!((&*rules.zones[0].rules.tenant, rules.zones[0].index), ("bank", 3));
        std::fs::write(&path, "[pin_policy]\nlength_min = 3").unwrap();
        assert!(BoundaryRules::load(Some(&path)).err().unwrap().to_string().contains("4 to 12"));
    }

    #[test]
    fn a_3des_form_needs_a_date_that_has_not_passed() {
        assert!(checked("[boundary]\nform = \"iso-3\"").err().unwrap().contains("needs the date it ends"));
        let passed = checked("[boundary]\nform = \"iso-0\"\nform_until = \"2020-01-01\"");
        assert!(passed.err().unwrap().contains("has passed"));
        let dated = checked("[boundary]\nform = \"iso-3\"\nform_until = \"2999-12-31\"").unwrap();
        assert_eq!(dated.hsm.wanted.form, Some(hsm::NewRecordFormat::Iso3 { until: "2999-12-31".into() }));
    }

    #[test]
    fn a_token_has_one_name_and_an_external_pin() {
        let token = |lines: &str| checked(&format!("[token]\nmodule = \"m.so\"\n{lines}"));
        let pin = "user_pin = { env = \"PATH\" }";
        let engine = token(&format!("label = \"issuer\"\n{pin}")).unwrap();
        let hsm::Keys::Pkcs11(pkcs11) = engine.hsm.keys else { panic!("not the token") };
        assert_eq!(pkcs11.place.slot, hsm::SlotName::Label("issuer".into()));
        assert_eq!(pkcs11.key_version, 1);
        for both_or_none in [pin.to_owned(), format!("label = \"a\"\nserial = \"b\"\n{pin}")] {
            assert!(token(&both_or_none).err().unwrap().contains("one of the token's label"));
        }
        assert!(token("label = \"a\"\nuser_pin = \"2468\"").is_err(), "a PIN in the file itself");
        let closed = token("label = \"a\"\nuser_pin = { descriptor = 999 }");
        assert!(closed.err().unwrap().contains("/dev/fd/999"));
    }

    #[test]
    fn a_secret_in_the_file_is_rejected_without_repeating_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("engine.toml");
        for wrong in ["user_pin = \"2468\"", "user_pin = 2468", "user_pin = { file = 2468 }", "user_pin = \"24\\\"68\""]
        {
            std::fs::write(&path, format!("[token]\nmodule = \"m.so\"\nlabel = \"a\"\n{wrong}\n")).unwrap();
            let refused = HsmProcess::load(Some(&path)).err().unwrap().to_string();
            assert!(refused.contains("line 4"), "{refused}");
            // The random name of the directory may have these digits.
            let without_path = refused.replace(path.to_str().unwrap(), "");
            assert!(!without_path.contains("68"), "{refused}");
        }
    }

    #[test]
    fn the_example_configurations_are_read() {
        for name in ["engine.toml", "hsm.toml"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name);
            assert!(HsmProcess::load(Some(&path)).is_ok(), "{name}");
        }
    }
}
