//! The engine's configuration.

use std::{
    collections::HashSet,
    ffi::OsString,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, de::IgnoredAny};

use crate::Right;
use crate::pin::Rules;
use config::{ConfigError, DATA_DIRECTORY, read_file, within};
use domain::card::Tenant;
use domain::control::LIFETIME_SECONDS_MAX;
use domain::rules::{Admission, UnknownCards};
use hsm_client::ProcessConfig;
use net::{ConnectionLimits, tls::ServerTlsConfig};

/// The engine's checked configuration.
pub struct EngineConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Mutual TLS; none on loopback alone.
    pub tls: Option<ServerTlsConfig>,
    /// Which certificates may call, and for what. An engine with TLS must have one; without TLS they say nothing.
    pub peers: Vec<Peer>,
    /// Where the key boundary is.
    pub boundary: BoundaryPlace,
    /// The operator's rules.
    pub rules: Rules,
    /// How many threads serve, each with its own runtime.
    pub workers: usize,
    /// How long one call may take.
    pub call_timeout: Duration,
    /// How many calls one connection may have in flight.
    pub calls_per_connection_max: u32,
    /// How many connections it may have.
    pub connections: ConnectionLimits,
    /// How many PIN records may be made anew a second, while a storage key rotates.
    pub remade_per_second: u32,
    /// Where metrics are served, on this machine alone; none for nowhere.
    pub metrics_listen: Option<SocketAddr>,
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

impl EngineConfig {
    /// Reads and checks a file; without one, the embedded defaults.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let arguments = path.map_or_else(Vec::new, |path| vec!["--config".into(), path.as_os_str().to_owned()]);
        read_file::<LowEngine>(path)?.check(arguments)
    }

    /// The embedded defaults, with everything kept in `directory` and the boundary as a program of this path.
    ///
    /// # Errors
    /// The program of this process has no path.
    pub fn embedded(directory: &Path) -> Result<Self, ConfigError> {
        let file = LowEngine { data_directory: directory.to_owned(), ..LowEngine::default() };
        file.check(vec!["--data-directory".into(), directory.as_os_str().to_owned()])
    }
}

/// Where the key boundary is.
pub enum BoundaryPlace {
    /// In a process of its own.
    Process(ProcessConfig),
    /// In the engine's own process, which must be built to hold keys.
    Inline,
}

/// The file, as written.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LowEngine {
    /// Address and port.
    listen: SocketAddr,
    /// Where the store and the vault are, unless they say otherwise.
    data_directory: PathBuf,
    /// Threads that serve; 0 for one a core. As many as there are cores stay on a core each.
    workers: usize,
    /// Milliseconds one call may take.
    call_timeout_milliseconds: u64,
    /// Calls in flight on one connection.
    calls_per_connection_max: u32,
    /// Connections open at a time; half of them may be silent.
    connections_max: usize,
    /// Connections of one address that have not begun to speak.
    silent_connections_per_address_max: usize,
    /// Mutual TLS.
    tls: Option<ServerTlsConfig>,
    /// Certificates that may call: with `tls` at least one. Any other certificate has no right.
    peers: Vec<LowPeer>,
    /// Read by the boundary.
    vault: Option<IgnoredAny>,
    /// Read by the boundary.
    token: Option<IgnoredAny>,
    boundary: LowBoundary,
    /// Read by the boundary.
    pin_policy: Option<IgnoredAny>,
    control: LowControl,
    /// Read by the program that opens the store.
    store: Option<IgnoredAny>,
    rotation: LowRotation,
    metrics: LowMetrics,
}

/// What the engine reads of `[boundary]`. The boundary reads the rest.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LowBoundary {
    isolation: LowIsolation,
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
enum LowIsolation {
    Process,
    Inline,
}

impl Default for LowIsolation {
    fn default() -> Self {
        if cfg!(target_os = "linux") { Self::Process } else { Self::Inline }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LowPeer {
    /// The name on the certificate.
    certificate_name: String,
    /// Any of `controls`, `pins`, `cards`, `audit`, `keys`.
    rights: Vec<Right>,
    /// Tenants; empty for all.
    #[serde(default)]
    tenants: Vec<String>,
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
struct LowRotation {
    /// PIN records made anew under the newest storage key a second, at most.
    records_per_second: u32,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LowMetrics {
    /// Address and port of `GET /metrics`, on loopback, such as `127.0.0.1:9464`; not served by default.
    listen: Option<SocketAddr>,
}

impl Default for LowRotation {
    fn default() -> Self {
        Self { records_per_second: 2_000 }
    }
}

impl Default for LowEngine {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 50_051)),
            data_directory: DATA_DIRECTORY.into(),
            workers: 0,
            call_timeout_milliseconds: 5_000,
            calls_per_connection_max: 1_024,
            connections_max: ConnectionLimits::default().connections_max,
            silent_connections_per_address_max: ConnectionLimits::default().silent_per_address_max,
            tls: None,
            peers: Vec::new(),
            vault: None,
            token: None,
            boundary: LowBoundary::default(),
            pin_policy: None,
            control: LowControl::default(),
            store: None,
            rotation: LowRotation::default(),
            metrics: LowMetrics::default(),
        }
    }
}

impl Default for LowControl {
    fn default() -> Self {
        Self { lifetime_seconds: 30, per_card_per_hour_max: 120, unknown_cards: LowUnknownCards::Accept }
    }
}

impl LowEngine {
    /// Threads that serve.
    fn threads(&self) -> Result<usize, ConfigError> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if self.workers == 0 { Ok(cores) } else { within("workers", self.workers, 1..=240) }
    }

    /// Where the boundary is. A process that the engine starts reads its part of the file itself: `arguments` name the file.
    fn boundary_place(&mut self, mut arguments: Vec<OsString>) -> Result<BoundaryPlace, ConfigError> {
        let boundary = &mut self.boundary;
        match (boundary.isolation, boundary.socket.take()) {
            (LowIsolation::Process, Some(socket)) => {
                let user = boundary.hsm_user.unwrap_or_else(|| rustix::process::getuid().as_raw());
                Ok(BoundaryPlace::Process(ProcessConfig::Apart { socket, user }))
            }
            (LowIsolation::Process, None) => {
                let program = boundary.program.take().map_or_else(boundary_program, Ok)?;
                // The all-in-one `pinseal` is the boundary with its command `hsm`.
                if program.file_name().is_none_or(|name| name != BOUNDARY_PROGRAM) {
                    arguments.insert(0, "hsm".into());
                }
                Ok(BoundaryPlace::Process(ProcessConfig::Started { program, arguments }))
            }
            (LowIsolation::Inline, _) => Ok(BoundaryPlace::Inline),
        }
    }

    fn check(mut self, arguments: Vec<OsString>) -> Result<EngineConfig, ConfigError> {
        let (control, workers) = (std::mem::take(&mut self.control), self.threads()?);
        let lifetime = within("control.lifetime_seconds", control.lifetime_seconds, 1..=LIFETIME_SECONDS_MAX)?;
        let timeout = within("call_timeout_milliseconds", self.call_timeout_milliseconds, 100..=60_000)?;
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
                        LowUnknownCards::Accept => UnknownCards::Accept,
                        LowUnknownCards::Refuse => UnknownCards::Refuse,
                    },
                },
            },
            workers,
            call_timeout: Duration::from_millis(timeout),
            calls_per_connection_max: within("calls_per_connection_max", self.calls_per_connection_max, 1..=65_536)?,
            connections: ConnectionLimits::new(self.connections_max, self.silent_connections_per_address_max)?,
            remade_per_second: within("rotation.records_per_second", self.rotation.records_per_second, 1..=1_000_000)?,
            metrics_listen: std::mem::take(&mut self.metrics).check()?,
            boundary: self.boundary_place(arguments)?,
        })
    }
}

/// The program of the boundary alone.
const BOUNDARY_PROGRAM: &str = "pinseal-hsm";
/// The program of the engine alone, which holds no key.
const ENGINE_PROGRAM: &str = "pinseal-engine";

/// `pinseal-hsm` beside a `pinseal-engine`; else the program of this process, which is `pinseal`.
fn boundary_program() -> Result<PathBuf, ConfigError> {
    let own = std::env::current_exe().map_err(|error| ConfigError::value("boundary.program", error))?;
    let is_engine = own.file_name().is_some_and(|name| name == ENGINE_PROGRAM);
    Ok(if is_engine { own.with_file_name(BOUNDARY_PROGRAM) } else { own })
}

fn check_peers(peers: Vec<LowPeer>) -> Result<Vec<Peer>, ConfigError> {
    let mut names = HashSet::new();
    if let Some(twice) = peers.iter().find(|peer| !names.insert(&peer.certificate_name)) {
        let problem = format!("{:?} stands in two entries: give one entry all its rights", twice.certificate_name);
        return Err(ConfigError::value("peers.certificate_name", problem));
    }
    peers.into_iter().map(LowPeer::check).collect()
}

impl LowPeer {
    fn check(self) -> Result<Peer, ConfigError> {
        if self.certificate_name.is_empty() {
            return Err(ConfigError::value(
                "peers.certificate_name",
                "is empty: a certificate without a name has no right",
            ));
        }
        if self.rights.contains(&Right::Keys) && !self.tenants.is_empty() {
            let problem = format!(
                "{:?} is limited to tenants, and `keys` is of all tenants: give that right to a peer without tenants",
                self.certificate_name
            );
            return Err(ConfigError::value("peers.rights", problem));
        }
        let tenants = self.tenants.iter().map(|tenant| Tenant::parse(tenant));
        Ok(Peer {
            tenants: tenants.collect::<Result<_, _>>().map_err(|error| ConfigError::value("peers.tenants", error))?,
            certificate_name: self.certificate_name,
            rights: self.rights,
        })
    }
}

impl LowMetrics {
    fn check(self) -> Result<Option<SocketAddr>, ConfigError> {
        match self.listen {
            Some(address) if !address.ip().is_loopback() => {
                let problem = format!("{address} is not on this machine alone: listen on 127.0.0.1");
                Err(ConfigError::value("metrics.listen", problem))
            }
            listen => Ok(listen),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<EngineConfig, String> {
        let low: LowEngine = toml::from_str(text).map_err(|error| error.to_string())?;
        low.check(Vec::new()).map_err(|error| error.to_string())
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
    fn metrics_are_served_on_this_machine_alone() {
        let listen = |address: &str| checked(&format!("[metrics]\nlisten = \"{address}\""));
        let served = listen("127.0.0.1:9464").unwrap().metrics_listen;
        assert_eq!(served, Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9_464))));
        let error = listen("0.0.0.0:9464").err().unwrap();
        assert_eq!(error, "metrics.listen: 0.0.0.0:9464 is not on this machine alone: listen on 127.0.0.1");
    }

    #[test]
    fn a_peer_that_says_too_little_or_too_much_is_refused() {
        let peer = |name: &str, more: &str| format!("[[peers]]\ncertificate_name = \"{name}\"\n{more}\n");
        let pins = "rights = [\"pins\"]";
        let refused = |text: String| checked(&text).err().unwrap();
        assert!(refused(peer("", pins)).contains("a certificate without a name"));
        assert!(refused(peer("edge", pins) + &peer("edge", pins)).contains("\"edge\" stands in two entries"));
        let keys = "rights = [\"keys\"]\ntenants = [\"bank\"]";
        assert!(refused(peer("operator", keys)).contains("`keys` is of all tenants"));
        assert_eq!(checked(&peer("edge", pins)).unwrap().peers.len(), 1);
    }

    #[test]
    fn an_unknown_key_and_a_value_out_of_range_are_named() {
        assert!(checked("lisen = 1").err().unwrap().contains("lisen"));
        let error = checked("[control]\nlifetime_seconds = 0").err().unwrap();
        assert_eq!(error, "control.lifetime_seconds: 0 is not within 1 to 3600");
    }

    #[test]
    fn an_unknown_word_is_named() {
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
        assert_eq!(example.remade_per_second, default.remade_per_second);
        assert_eq!(example.rules.control_lifetime, default.rules.control_lifetime);
    }
}
