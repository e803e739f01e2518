//! The configuration of the engine: the TOML file, its checks and its defaults.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, de::IgnoredAny};

use crate::{
    CallLimits, Role,
    archive::ArchiveConfig,
    checkpoints::{CheckpointConfig, SIGNING_KEY},
    pin::{Rules, TryLimits},
    verification_keys::TenantVerificationKeys,
    zones::Zones,
};
use config::{ConfigError, DATA_DIRECTORY, KnownKey, read_file, within};
use domain::card::Tenant;
use domain::control::LIFETIME_SECONDS_MAX;
use domain::rules::{Admission, UnknownCards};
use hsm_client::ProcessConfig;
use net::{
    ConnectionAge, ConnectionLimits, metrics_server::MetricsFile, serving_threads::worker_count, tls::ServerTlsConfig,
};
use zone_config::{ZoneFile, check_zones};

/// The most tries of a card. Each try guesses a PIN of four digits with a chance of one in 10,000.
const TRIES_MAX: u32 = 15;

/// The engine's checked configuration.
pub struct EngineConfig {
    /// The address of the gRPC listener.
    pub listen: SocketAddr,
    /// Mutual TLS; `None` is allowed on loopback only.
    pub tls: Option<ServerTlsConfig>,
    /// The certificates that may call, and their roles. An engine with TLS needs at least one, and an engine without TLS refuses them.
    pub peers: Vec<Peer>,
    /// The place of the key boundary.
    pub boundary: BoundaryPlace,
    /// The lifetime of controls, and which controls may be opened.
    pub rules: Rules,
    /// The number of threads that serve, each with its own runtime.
    pub workers: usize,
    /// The timeout of one call.
    pub call_timeout: Duration,
    /// The most calls in flight on one connection.
    pub calls_per_connection_max: u32,
    /// The limits on open connections.
    pub connections: ConnectionLimits,
    /// The age at which a connection gets no more calls.
    pub connection_age: ConnectionAge,
    /// The limits on the rate of calls.
    pub call_limits: CallLimits,
    /// The most PIN records that a rotation re-encrypts a second.
    pub reencrypted_per_second_max: u32,
    /// The loopback address of the metrics listener; `None` disables metrics.
    pub metrics_listen: Option<SocketAddr>,
    /// The archive of old audit entries; `None` where the store keeps all.
    pub archive: Option<ArchiveConfig>,
    /// The signed checkpoints of the audit chain.
    pub checkpoints: CheckpointConfig,
}

/// A certificate that may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The first DNS or URI name of the certificate, else its common name.
    pub certificate_name: String,
    /// The roles of the peer: the methods that it may call.
    pub roles: Vec<Role>,
    /// The tenants that the peer may name; empty for all.
    pub tenants: Vec<Tenant>,
}

impl EngineConfig {
    /// The keys of a configuration file. Of those that the engine ignores, the boundary reads some and the store the others.
    pub fn known_keys() -> Vec<KnownKey> {
        config::known_keys::<EngineFile>()
    }

    /// Reads and checks a file; without a file, the embedded defaults.
    ///
    /// # Errors
    /// The file cannot be read or parsed, a value is not allowed, or the path of this program is not known.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let arguments = path.map_or_else(Vec::new, |path| vec!["--config".into(), path.as_os_str().to_owned()]);
        read_file::<EngineFile>(path)?.check(arguments)
    }

    /// The embedded defaults with all files in `directory`.
    ///
    /// # Errors
    /// The path of this program, which is also the program of the boundary, is not known.
    pub fn embedded(directory: &Path) -> Result<Self, ConfigError> {
        let file = EngineFile { data_directory: directory.to_owned(), ..EngineFile::default() };
        file.check(vec!["--data-directory".into(), directory.as_os_str().to_owned()])
    }
}

/// The place of the key boundary.
pub enum BoundaryPlace {
    /// A separate process.
    Process(ProcessConfig),
    /// The process of the engine; only `pinseal` supports this.
    Inline,
}

/// The configuration file.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct EngineFile {
    /// The address and port of the gRPC listener.
    listen: SocketAddr,
    /// The directory of vault, store and checkpoints, unless their sections name other places.
    data_directory: PathBuf,
    /// Threads that serve; 0 for one for each core. If the number equals the cores, each thread is pinned to a core.
    workers: usize,
    /// The timeout of one call, in milliseconds.
    call_timeout_milliseconds: u64,
    /// The most calls in flight on one connection.
    calls_per_connection_max: u32,
    /// The most open connections; half of them may be silent.
    connections_max: usize,
    /// The most connections of one address that have not started HTTP/2.
    silent_connections_per_address_max: usize,
    /// The age at which a connection gets no more calls, in seconds.
    connection_age_seconds_max: u64,
    tls: Option<ServerTlsConfig>,
    /// The certificates that may call: at least one with `tls`. Any other certificate has no right.
    peers: Vec<PeerFile>,
    // The boundary reads these three sections.
    vault: Option<IgnoredAny>,
    token: Option<IgnoredAny>,
    pin_policy: Option<IgnoredAny>,
    boundary: BoundaryFile,
    control: ControlFile,
    limits: LimitsFile,
    verification: VerificationFile,
    // The program that opens the store reads it.
    store: Option<IgnoredAny>,
    rotation: RotationFile,
    metrics: MetricsFile,
    audit: AuditFile,
    // The boundary reads it too.
    zones: Vec<ZoneFile>,
}

/// The keys of `[boundary]` that the engine reads. The boundary reads the ignored ones.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct BoundaryFile {
    isolation: IsolationFile,
    socket: Option<PathBuf>,
    program: Option<PathBuf>,
    hsm_user: Option<u32>,
    level: Option<IgnoredAny>,
    form: Option<IgnoredAny>,
    form_until: Option<IgnoredAny>,
    lock_memory: Option<IgnoredAny>,
    engine_user: Option<IgnoredAny>,
    waive: Option<IgnoredAny>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum IsolationFile {
    Process,
    Inline,
}

impl Default for IsolationFile {
    fn default() -> Self {
        if cfg!(target_os = "linux") { Self::Process } else { Self::Inline }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PeerFile {
    /// The name on the certificate.
    certificate_name: String,
    /// Some of `edge-set`, `edge-view`, `card-system`, `authorization-host`, `zone-set`, `zone-get`, `custodian`, `auditor` and
    /// `operator`.
    roles: Vec<Role>,
    /// Empty for all tenants.
    #[serde(default)]
    tenants: Vec<String>,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ControlFile {
    /// The lifetime of a control, in seconds.
    lifetime_seconds: u32,
    /// The most controls of one card within a clock hour.
    per_card_per_hour_max: u32,
    /// Whether a control for a card that is not registered is opened.
    unknown_cards: UnknownCardsFile,
    /// The most cards of one tenant that had a control lately, and neither registration nor PIN.
    unregistered_cards_per_tenant_max: u32,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LimitsFile {
    /// The most calls that name one tenant within a second.
    calls_per_tenant_per_second: u32,
    /// The most calls about one card within a minute.
    calls_per_card_per_minute: u32,
    /// The most items in streams of one tenant within a second.
    stream_items_per_tenant_per_second: u32,
}

impl Default for LimitsFile {
    fn default() -> Self {
        Self {
            calls_per_tenant_per_second: 20_000,
            calls_per_card_per_minute: 600,
            stream_items_per_tenant_per_second: 50_000,
        }
    }
}

impl LimitsFile {
    fn check(&self, wrong_pins_per_caller_per_minute: u32) -> Result<CallLimits, ConfigError> {
        let (tenant, card) = (self.calls_per_tenant_per_second, self.calls_per_card_per_minute);
        let items = self.stream_items_per_tenant_per_second;
        Ok(CallLimits {
            per_tenant_per_second: within("limits.calls_per_tenant_per_second", tenant, 1..=10_000_000)?,
            per_card_per_minute: within("limits.calls_per_card_per_minute", card, 1..=10_000_000)?,
            stream_items_per_tenant_per_second: within(
                "limits.stream_items_per_tenant_per_second",
                items,
                1..=10_000_000,
            )?,
            wrong_pins_per_caller_per_minute,
        })
    }
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct VerificationFile {
    /// The tries of a card: wrong PINs in a row until the PIN is locked.
    tries_per_card: u32,
    /// The most tries of one peer and tenant within a minute whose PIN was not right.
    wrong_pins_per_caller_per_minute: u32,
    /// Tenants with another number of tries.
    tenants: Vec<TenantTriesFile>,
    /// The keys of verification values that a tenant may name.
    keys: Vec<VerificationKeyFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VerificationKeyFile {
    /// `pvk:NAME` or `ibm-3624:NAME`: a set of PVK pairs, or an IBM 3624 key.
    name: String,
    /// The tenants that may name it: at least one.
    tenants: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TenantTriesFile {
    /// The tenant.
    tenant: String,
    /// The tries of a card of this tenant.
    tries_per_card: u32,
}

impl Default for VerificationFile {
    fn default() -> Self {
        Self { tries_per_card: 3, wrong_pins_per_caller_per_minute: 6_000, tenants: Vec::new(), keys: Vec::new() }
    }
}

impl VerificationFile {
    /// The tries of a card, the wrong PINs of a caller, and the keys of tenants.
    fn check(self) -> Result<(TryLimits, u32, TenantVerificationKeys), ConfigError> {
        let keys = TenantVerificationKeys::new(self.keys.into_iter().map(|key| (key.name, key.tenants)))?;
        let mut of_tenants = HashMap::new();
        for TenantTriesFile { tenant, tries_per_card } in self.tenants {
            let tenant =
                Tenant::parse(&tenant).map_err(|error| ConfigError::value("verification.tenants.tenant", error))?;
            let tries = within("verification.tenants.tries_per_card", tries_per_card, 1..=TRIES_MAX)?;
            if of_tenants.insert(tenant, tries).is_some() {
                let problem = format!("{tenant:?} has two entries: give each tenant one");
                return Err(ConfigError::value("verification.tenants.tenant", problem));
            }
        }
        let wrong_pins = self.wrong_pins_per_caller_per_minute;
        Ok((
            TryLimits {
                per_card: within("verification.tries_per_card", self.tries_per_card, 1..=TRIES_MAX)?,
                of_tenants,
            },
            within("verification.wrong_pins_per_caller_per_minute", wrong_pins, 1..=10_000_000)?,
            keys,
        ))
    }
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum UnknownCardsFile {
    Accept,
    Refuse,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RotationFile {
    /// The most PIN records that a rotation re-encrypts a second.
    records_per_second: u32,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct AuditFile {
    /// The directory of the signed checkpoints; `{data_directory}/audit` by default.
    directory: Option<PathBuf>,
    /// The file of the signing key; `signing-key` in the directory by default.
    signing_key: Option<PathBuf>,
    /// Seconds between two checkpoints.
    checkpoint_seconds: u32,
    /// Days that entries stay in the store; without it, they stay for ever.
    retention_days: Option<u32>,
    /// The directory of the archive files; `archive` in the directory by default.
    archive_directory: Option<PathBuf>,
}

impl Default for AuditFile {
    fn default() -> Self {
        Self {
            directory: None,
            signing_key: None,
            checkpoint_seconds: 60,
            retention_days: None,
            archive_directory: None,
        }
    }
}

impl AuditFile {
    fn check(self, data_directory: &Path) -> Result<(CheckpointConfig, Option<ArchiveConfig>), ConfigError> {
        let directory = self.directory.unwrap_or_else(|| data_directory.join("audit"));
        let seconds = within("audit.checkpoint_seconds", self.checkpoint_seconds, 1..=86_400)?;
        let days = self.retention_days.map(|days| within("audit.retention_days", days, 0..=36_500)).transpose()?;
        let archive = days.map(|days| ArchiveConfig {
            directory: self.archive_directory.unwrap_or_else(|| directory.join("archive")),
            keep: Duration::from_secs(u64::from(days).saturating_mul(24 * 60 * 60)),
        });
        let checkpoints = CheckpointConfig {
            signing_key: self.signing_key.unwrap_or_else(|| directory.join(SIGNING_KEY)),
            directory,
            every: Duration::from_secs(seconds.into()),
        };
        Ok((checkpoints, archive))
    }
}

impl Default for RotationFile {
    fn default() -> Self {
        Self { records_per_second: 2_000 }
    }
}

impl Default for EngineFile {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 50_051)),
            data_directory: DATA_DIRECTORY.into(),
            workers: 0,
            call_timeout_milliseconds: 5_000,
            calls_per_connection_max: 1_024,
            connections_max: ConnectionLimits::default().connections_max,
            silent_connections_per_address_max: ConnectionLimits::default().silent_per_address_max,
            connection_age_seconds_max: ConnectionAge::default().seconds(),
            tls: None,
            peers: Vec::new(),
            vault: None,
            token: None,
            boundary: BoundaryFile::default(),
            pin_policy: None,
            control: ControlFile::default(),
            limits: LimitsFile::default(),
            verification: VerificationFile::default(),
            store: None,
            rotation: RotationFile::default(),
            metrics: MetricsFile::default(),
            audit: AuditFile::default(),
            zones: Vec::new(),
        }
    }
}

impl Default for ControlFile {
    fn default() -> Self {
        Self {
            lifetime_seconds: 30,
            per_card_per_hour_max: 120,
            unknown_cards: UnknownCardsFile::Accept,
            unregistered_cards_per_tenant_max: 100_000,
        }
    }
}

impl EngineFile {
    /// The place of the boundary. A boundary process reads its sections of the file itself: `arguments` name the file.
    fn boundary_place(&mut self, mut arguments: Vec<OsString>) -> Result<BoundaryPlace, ConfigError> {
        let boundary = &mut self.boundary;
        match (boundary.isolation, boundary.socket.take()) {
            (IsolationFile::Process, Some(socket)) => {
                let user = boundary.hsm_user.unwrap_or_else(|| rustix::process::getuid().as_raw());
                Ok(BoundaryPlace::Process(ProcessConfig::Apart { socket, user }))
            }
            (IsolationFile::Process, None) => {
                let program = boundary.program.take().map_or_else(boundary_program, Ok)?;
                // `pinseal-hsm` has no commands; any other program is `pinseal`, with the command `hsm`.
                if program.file_name().is_none_or(|name| name != BOUNDARY_PROGRAM) {
                    arguments.insert(0, "hsm".into());
                }
                Ok(BoundaryPlace::Process(ProcessConfig::Started { program, arguments }))
            }
            (IsolationFile::Inline, _) => Ok(BoundaryPlace::Inline),
        }
    }

    fn check(mut self, arguments: Vec<OsString>) -> Result<EngineConfig, ConfigError> {
        let (control, workers) = (std::mem::take(&mut self.control), worker_count(self.workers)?);
        let lifetime = within("control.lifetime_seconds", control.lifetime_seconds, 1..=LIFETIME_SECONDS_MAX)?;
        let timeout = within("call_timeout_milliseconds", self.call_timeout_milliseconds, 100..=60_000)?;
        let (tries, wrong_pins, verification_keys) = std::mem::take(&mut self.verification).check()?;
        let (checkpoints, archive) = std::mem::take(&mut self.audit).check(&self.data_directory)?;
        Ok(EngineConfig {
            listen: self.listen,
            tls: self.tls.take(),
            peers: check_peers(std::mem::take(&mut self.peers))?,
            rules: Rules {
                control_lifetime: Duration::from_secs(lifetime.into()),
                admission: Admission {
                    controls_per_card_per_hour: within(
                        "control.per_card_per_hour_max",
                        control.per_card_per_hour_max,
                        1..=1_000_000,
                    )?,
                    unknown_cards: match control.unknown_cards {
                        UnknownCardsFile::Accept => UnknownCards::Accept,
                        UnknownCardsFile::Refuse => UnknownCards::Refuse,
                    },
                    unregistered_cards_per_tenant: within(
                        "control.unregistered_cards_per_tenant_max",
                        control.unregistered_cards_per_tenant_max,
                        1..=10_000_000,
                    )?,
                },
                tries,
                zones: Zones::new(check_zones(std::mem::take(&mut self.zones))?)?,
                verification_keys,
            },
            workers,
            call_timeout: Duration::from_millis(timeout),
            calls_per_connection_max: within("calls_per_connection_max", self.calls_per_connection_max, 1..=65_536)?,
            call_limits: self.limits.check(wrong_pins)?,
            connections: ConnectionLimits::new(self.connections_max, self.silent_connections_per_address_max)?,
            connection_age: ConnectionAge::from_seconds(self.connection_age_seconds_max)?,
            reencrypted_per_second_max: within(
                "rotation.records_per_second",
                self.rotation.records_per_second,
                1..=1_000_000,
            )?,
            metrics_listen: std::mem::take(&mut self.metrics).check()?,
            checkpoints,
            archive,
            boundary: self.boundary_place(arguments)?,
        })
    }
}

/// The program that serves only the boundary.
const BOUNDARY_PROGRAM: &str = "pinseal-hsm";
/// The program that serves only the engine.
const ENGINE_PROGRAM: &str = "pinseal-engine";

/// The default program of the boundary: `pinseal-hsm` beside `pinseal-engine`, else this program, which is `pinseal`.
fn boundary_program() -> Result<PathBuf, ConfigError> {
    let own = std::env::current_exe().map_err(|error| ConfigError::value("boundary.program", error))?;
    let is_engine = own.file_name().is_some_and(|name| name == ENGINE_PROGRAM);
    Ok(if is_engine { own.with_file_name(BOUNDARY_PROGRAM) } else { own })
}

fn check_peers(peers: Vec<PeerFile>) -> Result<Vec<Peer>, ConfigError> {
    let mut names = HashSet::new();
    if let Some(twice) = peers.iter().find(|peer| !names.insert(&peer.certificate_name)) {
        let problem = format!("{:?} has two entries: give one entry all its roles", twice.certificate_name);
        return Err(ConfigError::value("peers.certificate_name", problem));
    }
    peers.into_iter().map(PeerFile::check).collect()
}

impl PeerFile {
    fn check(self) -> Result<Peer, ConfigError> {
        if self.certificate_name.is_empty() {
            return Err(ConfigError::value(
                "peers.certificate_name",
                "is empty: a certificate without a name cannot have rights",
            ));
        }
        let covers_all = self.roles.iter().find(|role| role.covers_all_tenants());
        if let Some(role) = covers_all.filter(|_| !self.tenants.is_empty()) {
            let problem = format!(
                "{:?} is limited to tenants, and `{role}` covers all tenants: give that role to a peer without tenants",
                self.certificate_name
            );
            return Err(ConfigError::value("peers.roles", problem));
        }
        let tenants = self.tenants.iter().map(|tenant| Tenant::parse(tenant));
        Ok(Peer {
            tenants: tenants.collect::<Result<_, _>>().map_err(|error| ConfigError::value("peers.tenants", error))?,
            certificate_name: self.certificate_name,
            roles: self.roles,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<EngineConfig, String> {
        let file: EngineFile = toml::from_str(text).map_err(|error| error.to_string())?;
        file.check(Vec::new()).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_the_embedded_defaults() {
        let engine = checked("").unwrap();
        assert_eq!(engine.listen, SocketAddr::from((Ipv4Addr::LOCALHOST, 50_051)));
        assert_eq!(engine.rules.control_lifetime, Duration::from_secs(30));
        assert!(matches!(engine.boundary, BoundaryPlace::Process(ProcessConfig::Started { .. })));
        assert_eq!(engine.metrics_listen, None);
    }

    #[test]
    fn metrics_are_served_on_loopback_only() {
        let listen = |address: &str| checked(&format!("[metrics]\nlisten = \"{address}\""));
        let served = listen("127.0.0.1:9464").unwrap().metrics_listen;
        assert_eq!(served, Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9_464))));
        let error = listen("0.0.0.0:9464").err().unwrap();
        assert_eq!(error, "metrics.listen: 0.0.0.0:9464 is not a loopback address: listen on 127.0.0.1");
    }

    #[test]
    fn an_invalid_peer_is_rejected() {
        let peer = |name: &str, more: &str| format!("[[peers]]\ncertificate_name = \"{name}\"\n{more}\n");
        let pins = "roles = [\"edge-set\"]";
        let refused = |text: String| checked(&text).err().unwrap();
        assert!(refused(peer("", pins)).contains("a certificate without a name"));
        assert!(refused(peer("edge", pins) + &peer("edge", pins)).contains("\"edge\" has two entries"));
        let keys = "roles = [\"operator\"]\ntenants = [\"bank\"]";
        assert!(refused(peer("operator", keys)).contains("`operator` covers all tenants"));
        assert_eq!(checked(&peer("edge", pins)).unwrap().peers.len(), 1);
    }

    #[test]
    fn an_unknown_key_or_value_out_of_range_is_named() {
        assert!(checked("lisen = 1").err().unwrap().contains("lisen"));
        let error = checked("[control]\nlifetime_seconds = 0").err().unwrap();
        assert_eq!(error, "control.lifetime_seconds: 0 is not within 1 to 3600");
    }

    #[test]
    fn an_unknown_key_is_reported_with_its_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("engine.toml");
        std::fs::write(&path, "listen = \"127.0.0.1:0\"\nlissen = 1\n").unwrap();
        let refused = EngineConfig::load(Some(&path)).err().unwrap().to_string();
        assert!(refused.contains("line 2: unknown field `lissen`"), "{refused}");
    }

    #[test]
    fn the_example_configuration_has_the_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/engine.toml");
        let (example, default) = (EngineConfig::load(Some(&path)).unwrap(), EngineConfig::load(None).unwrap());
        assert_eq!(example.listen, default.listen);
        assert_eq!(example.call_timeout, default.call_timeout);
        assert_eq!(example.calls_per_connection_max, default.calls_per_connection_max);
        assert_eq!(example.reencrypted_per_second_max, default.reencrypted_per_second_max);
        assert_eq!(example.rules.control_lifetime, default.rules.control_lifetime);
        assert_eq!(example.rules.admission, default.rules.admission);
        assert_eq!(example.call_limits, default.call_limits);
        assert_eq!((example.rules.tries, example.rules.zones), (default.rules.tries, default.rules.zones));
        assert_eq!(example.rules.verification_keys, default.rules.verification_keys);
    }
}
