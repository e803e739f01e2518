//! The engine's configuration.

use std::{
    ffi::CString,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{ConfigError, low, secret::SecretSource, within};
use crate::{
    card::Tenant,
    engine::Right,
    pin::Rules,
    store::{
        Admission, UnknownCards,
        embedded::{Absent, EmbeddedConfig},
    },
    tls::ServerTlsConfig,
};

/// Where everything is kept when nothing else is said.
const DATA_DIRECTORY: &str = "pinseal-data";

/// The engine's checked configuration.
pub struct Engine {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Mutual TLS; none on loopback alone.
    pub tls: Option<ServerTlsConfig>,
    /// Which certificates may call, and for what; empty for every one the client roots vouch for.
    pub peers: Vec<Peer>,
    /// The key boundary.
    pub hsm: hsm::Config,
    /// The store.
    pub store: EmbeddedConfig,
    /// The operator's rules.
    pub rules: Rules,
    /// How many threads serve, each with its own runtime.
    pub workers: usize,
    /// How long one call may take.
    pub call_timeout: Duration,
    /// How many calls one connection may have in flight.
    pub calls_per_connection_max: u32,
}

/// A certificate that may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The name on the certificate: its first DNS or URI name, or its common name.
    pub certificate_name: String,
    /// What it may ask for.
    pub rights: Vec<Right>,
    /// For which tenants; empty for all.
    pub tenants: Vec<Tenant>,
}

impl Engine {
    /// Reads and checks a file; without one, the embedded defaults.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        low::<LowEngine>(path)?.check()
    }

    /// The PKCS#11 token that a file names, and how PINs are to be kept with it.
    pub fn load_token(path: &Path) -> Result<(hsm::Pkcs11, hsm::Wanted), ConfigError> {
        let low = low::<LowEngine>(Some(path))?;
        let token = low.token.ok_or_else(|| ConfigError::value("token", "the file names no PKCS#11 token"))?;
        Ok((token.check(&low.data_directory)?, wanted(&low.boundary)?))
    }

    /// The embedded defaults, with everything kept in `directory`.
    pub fn embedded(directory: &Path) -> Result<Self, ConfigError> {
        LowEngine { data_directory: directory.to_owned(), ..LowEngine::default() }.check()
    }
}

/// The file, as written.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LowEngine {
    /// Address and port.
    listen: SocketAddr,
    /// Where the store and the vault are, unless they say otherwise.
    data_directory: PathBuf,
    /// Threads that serve; 0 for one a core.
    workers: usize,
    /// Milliseconds one call may take.
    call_timeout_milliseconds: u64,
    /// Calls in flight on one connection.
    calls_per_connection_max: u32,
    /// Mutual TLS.
    tls: Option<ServerTlsConfig>,
    /// Certificates that may call.
    peers: Vec<LowPeer>,
    vault: LowVault,
    /// A PKCS#11 token that holds the keys, instead of the vault.
    token: Option<LowToken>,
    boundary: LowBoundary,
    pin_policy: LowPinPolicy,
    control: LowControl,
    store: LowStore,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LowPeer {
    /// The name on the certificate.
    certificate_name: String,
    /// Any of `controls`, `pins`, `cards`, `audit`.
    rights: Vec<Right>,
    /// Tenants; empty for all.
    #[serde(default)]
    tenants: Vec<String>,
}

/// The software token's keys at rest.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LowVault {
    /// The vault file; `{data_directory}/vault` by default.
    file: Option<PathBuf>,
    /// A file of 32 random bytes that opens the vault; `{data_directory}/vault.key` by default, made at the first start.
    key_file: Option<PathBuf>,
    /// A passphrase that opens the vault, instead of a key file: `{ file = "…" }` or `{ env = "…" }`.
    passphrase: Option<SecretSource>,
}

/// A PKCS#11 token.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct LowToken {
    /// The module: a shared library.
    module: PathBuf,
    /// What the module is initialised with, where it takes words of its own, as NSS softokn does.
    module_parameters: Option<String>,
    /// The token's label; or give its serial, or the slot.
    label: Option<String>,
    /// The token's serial number.
    serial: Option<String>,
    /// The number of the slot, for a token whose label can't be read.
    slot: Option<u64>,
    /// The user PIN: `{ file = "…" }`, `{ env = "…" }` or `{ descriptor = 3 }`.
    user_pin: SecretSource,
    /// The version of the keys.
    #[serde(default = "first_version")]
    key_version: u16,
    /// Where the keys are used: `in-token`, or `copied-to-session` for a token that reads a database at every use.
    #[serde(default)]
    key_handling: LowKeyHandling,
    /// Whose threads call the token: `workers`, or `inline` for a library in this process that answers in microseconds.
    #[serde(default)]
    callers: LowCallers,
    /// Sessions with the token, each with a thread; 0 for two a core.
    #[serde(default)]
    sessions: usize,
    /// Operations that may wait for a session.
    #[serde(default = "waiting_operations")]
    waiting_operations_max: usize,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LowKeyHandling {
    #[default]
    InToken,
    CopiedToSession,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LowCallers {
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
struct LowBoundary {
    /// How near a clear block may come to the host: `token`, `host`, or `best` for the highest the token can do.
    level: LowLevel,
    /// The stored block: `wrapped` at level `token`, `iso-4` under AES-256 at level `host`, unless another is named;
    /// `iso-3` and `iso-0` under 3DES are dated exceptions.
    form: Option<LowForm>,
    /// The date until which a 3DES form is allowed, as `2027-06-30`.
    form_until: Option<jiff::civil::Date>,
    /// `require` refuses to start where memory can't be locked; `try` says so and goes on.
    lock_memory: LowLockMemory,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LowLevel {
    Token,
    Host,
    #[default]
    Best,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LowForm {
    Wrapped,
    #[serde(rename = "iso-4")]
    Iso4,
    #[serde(rename = "iso-3")]
    Iso3,
    #[serde(rename = "iso-0")]
    Iso0,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LowLockMemory {
    #[default]
    Try,
    Require,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LowPinPolicy {
    /// The shortest PIN, in digits.
    length_min: u8,
    /// The longest PIN, in digits.
    length_max: u8,
    /// Any of `ascending` (1234), `descending` (4321), `repeated` (1111).
    refuse: Vec<LowWeakness>,
    /// A file of refused PINs, one a line.
    refused_pins: Option<SecretSource>,
}

#[derive(Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LowWeakness {
    Ascending,
    Descending,
    Repeated,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LowControl {
    /// Seconds a control lives.
    lifetime_seconds: u32,
    /// Controls one card may have within a clock hour.
    per_card_per_hour_max: u32,
    /// `accept` takes up a card that was never registered; `refuse` does not.
    unknown_cards: LowUnknownCards,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LowUnknownCards {
    Accept,
    Refuse,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LowStore {
    /// The store's directory; `{data_directory}/store` by default.
    directory: Option<PathBuf>,
    /// Changes that may wait for the disk at a time.
    waiting_changes_max: usize,
    /// Mebibytes of memory for the store's buffers, live controls not counted.
    memory_mebibytes_max: u64,
}

impl Default for LowEngine {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 50_051)),
            data_directory: DATA_DIRECTORY.into(),
            workers: 0,
            call_timeout_milliseconds: 5_000,
            calls_per_connection_max: 1_024,
            tls: None,
            peers: Vec::new(),
            vault: LowVault::default(),
            token: None,
            boundary: LowBoundary::default(),
            pin_policy: LowPinPolicy::default(),
            control: LowControl::default(),
            store: LowStore::default(),
        }
    }
}

impl Default for LowPinPolicy {
    fn default() -> Self {
        let refuse = vec![LowWeakness::Ascending, LowWeakness::Descending, LowWeakness::Repeated];
        Self { length_min: 4, length_max: 12, refuse, refused_pins: None }
    }
}

impl Default for LowControl {
    fn default() -> Self {
        Self { lifetime_seconds: 30, per_card_per_hour_max: 120, unknown_cards: LowUnknownCards::Accept }
    }
}

impl Default for LowStore {
    fn default() -> Self {
        Self { directory: None, waiting_changes_max: 4_096, memory_mebibytes_max: 64 }
    }
}

impl LowEngine {
    fn check(self) -> Result<Engine, ConfigError> {
        let control = self.control;
        let keys = match self.token {
            Some(token) => hsm::Keys::Pkcs11(token.check(&self.data_directory)?),
            None => hsm::Keys::Vault(self.vault.check(&self.data_directory)?),
        };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let lifetime = within("control.lifetime_seconds", control.lifetime_seconds, 1..=3_600)?;
        let timeout = within("call_timeout_milliseconds", self.call_timeout_milliseconds, 100..=60_000)?;
        Ok(Engine {
            listen: self.listen,
            tls: self.tls,
            peers: self.peers.into_iter().map(LowPeer::check).collect::<Result<_, _>>()?,
            hsm: hsm_config(keys, &self.boundary, &self.pin_policy)?,
            store: self.store.check(&self.data_directory)?,
            rules: Rules {
                control_lifetime: Duration::from_secs(lifetime.into()),
                admission: Admission {
                    controls_per_card_per_hour: within(
                        "control.per_card_per_hour_max",
                        control.per_card_per_hour_max,
                        1..=1_000_000,
                    )?,
                    unknown_cards: match control.unknown_cards {
                        LowUnknownCards::Accept => UnknownCards::Accept,
                        LowUnknownCards::Refuse => UnknownCards::Refuse,
                    },
                },
            },
            workers: if self.workers == 0 { cores } else { within("workers", self.workers, 1..=256)? },
            call_timeout: Duration::from_millis(timeout),
            calls_per_connection_max: within("calls_per_connection_max", self.calls_per_connection_max, 1..=65_536)?,
        })
    }
}

impl LowPeer {
    fn check(self) -> Result<Peer, ConfigError> {
        let tenants = self.tenants.iter().map(|tenant| Tenant::parse(tenant));
        Ok(Peer {
            tenants: tenants.collect::<Result<_, _>>().map_err(|error| ConfigError::value("peers.tenants", error))?,
            certificate_name: self.certificate_name,
            rights: self.rights,
        })
    }
}

impl LowStore {
    fn check(self, data: &Path) -> Result<EmbeddedConfig, ConfigError> {
        let mebibytes = within("store.memory_mebibytes_max", self.memory_mebibytes_max, 4..=65_536)?;
        Ok(EmbeddedConfig {
            directory: self.directory.unwrap_or_else(|| data.join("store")),
            waiting_changes_max: within("store.waiting_changes_max", self.waiting_changes_max, 16..=1_000_000)?,
            memory_bytes_max: mebibytes.saturating_mul(1 << 20),
            absent: Absent::Create,
        })
    }
}

impl LowVault {
    fn check(self, data: &Path) -> Result<hsm::Vault, ConfigError> {
        let unlock = match (self.passphrase, self.key_file) {
            (Some(_), Some(_)) => return Err(ConfigError::value("vault", "give a passphrase or a key_file, not both")),
            (Some(passphrase), None) => hsm::Unlock::Passphrase(passphrase.read()?),
            (None, key_file) => hsm::Unlock::KeyFile(key_file.unwrap_or_else(|| data.join("vault.key"))),
        };
        Ok(hsm::Vault::File { path: self.file.unwrap_or_else(|| data.join("vault")), unlock })
    }
}

impl LowToken {
    fn check(self, data: &Path) -> Result<hsm::Pkcs11, ConfigError> {
        let slot = match (self.label, self.serial, self.slot) {
            (Some(label), None, None) => hsm::SlotName::Label(label),
            (None, Some(serial), None) => hsm::SlotName::Serial(serial),
            (None, None, Some(number)) => hsm::SlotName::Number(number),
            _ => return Err(ConfigError::value("token", "give one of the token's label, its serial and the slot")),
        };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let (sessions, waiting) = (self.sessions, self.waiting_operations_max);
        let parameters = self.module_parameters.map(CString::new).transpose();
        Ok(hsm::Pkcs11 {
            module: self.module,
            module_parameters: parameters.map_err(|error| ConfigError::value("token.module_parameters", error))?,
            slot,
            user_pin: self.user_pin.read()?,
            key_version: within("token.key_version", self.key_version, 1..=u16::MAX)?,
            key_handling: match self.key_handling {
                LowKeyHandling::InToken => hsm::KeyHandling::InToken,
                LowKeyHandling::CopiedToSession => hsm::KeyHandling::CopiedToSession,
            },
            callers: match self.callers {
                LowCallers::Workers => hsm::Callers::Workers,
                LowCallers::Inline => hsm::Callers::Inline,
            },
            sessions: if sessions == 0 { cores * 2 } else { within("token.sessions", sessions, 1..=256)? },
            waiting_operations_max: within("token.waiting_operations_max", waiting, 1..=1_000_000)?,
            tdes_count: Some(data.join("3des-count")),
        })
    }
}

fn hsm_config(keys: hsm::Keys, boundary: &LowBoundary, policy: &LowPinPolicy) -> Result<hsm::Config, ConfigError> {
    Ok(hsm::Config {
        keys,
        wanted: wanted(boundary)?,
        policy: pin_policy(policy)?,
        lock_memory: match boundary.lock_memory {
            LowLockMemory::Try => hsm::LockMemory::Try,
            LowLockMemory::Require => hsm::LockMemory::Require,
        },
    })
}

fn wanted(boundary: &LowBoundary) -> Result<hsm::Wanted, ConfigError> {
    let level = match boundary.level {
        LowLevel::Token => hsm::WantedLevel::Token,
        LowLevel::Host => hsm::WantedLevel::Host,
        LowLevel::Best => hsm::WantedLevel::Best,
    };
    Ok(hsm::Wanted { level, form: boundary.form.map(|form| stored_form(form, boundary)).transpose()? })
}

/// A 3DES form needs the date it ends, and does not outlive it.
fn stored_form(form: LowForm, boundary: &LowBoundary) -> Result<hsm::StoredForm, ConfigError> {
    let until = |form: fn(String) -> hsm::StoredForm| {
        let today = jiff::tz::TimeZone::UTC.to_datetime(jiff::Timestamp::now()).date();
        match boundary.form_until {
            None => Err(ConfigError::value("boundary.form_until", "a 3DES form needs the date it ends, as 2027-06-30")),
            Some(until) if until < today => {
                Err(ConfigError::value("boundary.form_until", format!("{until} has passed: set form = \"iso-4\"")))
            }
            Some(until) => Ok(form(until.to_string())),
        }
    };
    match form {
        LowForm::Wrapped => Ok(hsm::StoredForm::Wrapped),
        LowForm::Iso4 => Ok(hsm::StoredForm::Iso4),
        LowForm::Iso3 => until(|until| hsm::StoredForm::Iso3 { until }),
        LowForm::Iso0 => until(|until| hsm::StoredForm::Iso0 { until }),
    }
}

fn pin_policy(policy: &LowPinPolicy) -> Result<hsm::PinPolicy, ConfigError> {
    let weaknesses = policy.refuse.iter().map(|weakness| match weakness {
        LowWeakness::Ascending => hsm::Weakness::Ascending,
        LowWeakness::Descending => hsm::Weakness::Descending,
        LowWeakness::Repeated => hsm::Weakness::Repeated,
    });
    let refused = policy.refused_pins.as_ref().map(SecretSource::read).transpose()?;
    let listed = refused.iter().flat_map(|text| text.lines()).map(str::trim).filter(|line| !line.is_empty());
    hsm::PinPolicy::new(policy.length_min..=policy.length_max, weaknesses.collect(), listed)
        .map_err(|error| ConfigError::value("pin_policy", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<Engine, String> {
        let low: LowEngine = toml::from_str(text).map_err(|error| error.to_string())?;
        low.check().map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_the_embedded_defaults() {
        let engine = checked("").unwrap();
        assert_eq!(engine.listen, SocketAddr::from((Ipv4Addr::LOCALHOST, 50_051)));
        assert_eq!(engine.rules.control_lifetime, Duration::from_secs(30));
        assert_eq!(engine.hsm.wanted.form, None);
        assert_eq!(engine.store.directory, Path::new("pinseal-data/store"));
    }

    #[test]
    fn an_unknown_key_and_a_value_out_of_range_are_named() {
        assert!(checked("lisen = 1").err().unwrap().contains("lisen"));
        let error = checked("[control]\nlifetime_seconds = 0").err().unwrap();
        assert_eq!(error, "control.lifetime_seconds: 0 is not within 1 to 3600");
        assert!(checked("[pin_policy]\nlength_min = 3").err().unwrap().contains("4 to 12"));
    }

    #[test]
    fn a_3des_form_needs_a_date_that_has_not_passed() {
        assert!(checked("[boundary]\nform = \"iso-3\"").err().unwrap().contains("needs the date it ends"));
        let passed = checked("[boundary]\nform = \"iso-0\"\nform_until = \"2020-01-01\"");
        assert!(passed.err().unwrap().contains("has passed"));
        let dated = checked("[boundary]\nform = \"iso-3\"\nform_until = \"2999-12-31\"").unwrap();
        assert_eq!(dated.hsm.wanted.form, Some(hsm::StoredForm::Iso3 { until: "2999-12-31".into() }));
    }

    #[test]
    fn a_token_has_one_name_and_its_pin_comes_from_a_file_a_variable_or_a_descriptor() {
        let token = |lines: &str| checked(&format!("[token]\nmodule = \"m.so\"\n{lines}"));
        let pin = "user_pin = { env = \"PATH\" }";
        let engine = token(&format!("label = \"issuer\"\n{pin}")).unwrap();
        let hsm::Keys::Pkcs11(pkcs11) = engine.hsm.keys else { panic!("not the token") };
        assert_eq!(pkcs11.slot, hsm::SlotName::Label("issuer".into()));
        assert_eq!(pkcs11.key_version, 1);
        for both_or_none in [pin.to_owned(), format!("label = \"a\"\nserial = \"b\"\n{pin}")] {
            assert!(token(&both_or_none).err().unwrap().contains("one of the token's label"));
        }
        assert!(token("label = \"a\"\nuser_pin = \"2468\"").is_err(), "a PIN in the file itself");
        let closed = token("label = \"a\"\nuser_pin = { descriptor = 999 }");
        assert!(closed.err().unwrap().contains("/dev/fd/999"));
    }
}
