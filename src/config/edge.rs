//! The edge's configuration.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use serde::Deserialize;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{ConfigError, connection_limits, low, secret::SecretSource, within};
use crate::{
    card::Tenant,
    edge::{Client, Credential, ErrorProfile, SECRET_CHARACTERS_MIN, Settings},
    limits::BODY_BYTES_MAX,
    tls::{ClientTlsConfig, ConnectionLimits, ServerTlsConfig},
};

/// The edge's checked configuration.
pub struct Edge {
    /// Where it listens.
    pub listen: SocketAddr,
    /// TLS; none on loopback alone.
    pub tls: Option<ServerTlsConfig>,
    /// Where the engine is.
    pub engine_address: String,
    /// Mutual TLS to the engine.
    pub engine_tls: Option<ClientTlsConfig>,
    /// How many connections it may have.
    pub connections: ConnectionLimits,
    /// Whom it serves, and how.
    pub settings: Settings,
    /// The bearer token made for this run, where no client was configured.
    pub made_token: Option<Zeroizing<String>>,
}

impl Edge {
    /// Reads and checks a file; without one, the embedded defaults.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        low::<LowEdge>(path)?.check()
    }

    /// The embedded defaults, at these addresses.
    pub fn embedded(listen: SocketAddr, engine: SocketAddr) -> Result<Self, ConfigError> {
        let engine = LowEngineAddress { address: format!("http://{engine}"), tls: None };
        LowEdge { listen, engine, ..LowEdge::default() }.check()
    }
}

/// The file, as written.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LowEdge {
    /// Address and port.
    listen: SocketAddr,
    /// TLS.
    tls: Option<ServerTlsConfig>,
    engine: LowEngineAddress,
    /// Clients; where none is, one with a fresh bearer token is made for the run.
    clients: Vec<LowClient>,
    /// `full` answers as documented; `strict` only with what the vendor's own document declares.
    error_profile: LowErrorProfile,
    /// Milliseconds one request may take.
    request_timeout_milliseconds: u64,
    /// The longest body taken, in bytes.
    body_bytes_max: usize,
    /// Requests under way at a time.
    requests_max: usize,
    /// Connections open at a time; half of them may be without an authenticated request.
    connections_max: usize,
    /// Connections of one address without an authenticated request.
    silent_connections_per_address_max: usize,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LowEngineAddress {
    /// Such as `https://engine.internal:50051`.
    address: String,
    /// Mutual TLS to it.
    tls: Option<ClientTlsConfig>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LowClient {
    /// Its name in the log.
    name: String,
    /// Whose cards it may ask for.
    tenant: String,
    /// A bearer token: `{ file = "…" }` or `{ env = "…" }`.
    bearer: Option<SecretSource>,
    /// HTTP Basic.
    basic: Option<LowBasic>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LowBasic {
    user: String,
    password: SecretSource,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum LowErrorProfile {
    #[default]
    Full,
    Strict,
}

impl Default for LowEdge {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8_080)),
            tls: None,
            engine: LowEngineAddress::default(),
            clients: Vec::new(),
            error_profile: LowErrorProfile::Full,
            request_timeout_milliseconds: 10_000,
            body_bytes_max: BODY_BYTES_MAX,
            requests_max: 4_096,
            connections_max: ConnectionLimits::default().connections_max,
            silent_connections_per_address_max: ConnectionLimits::default().silent_per_address_max,
        }
    }
}

impl Default for LowEngineAddress {
    fn default() -> Self {
        Self { address: "http://127.0.0.1:50051".into(), tls: None }
    }
}

impl LowEdge {
    fn check(self) -> Result<Edge, ConfigError> {
        let mut clients = self.clients.into_iter().map(LowClient::check).collect::<Result<Vec<_>, _>>()?;
        let made_token = clients.is_empty().then(|| Zeroizing::new(fresh_token()));
        if let Some(token) = &made_token {
            let tenant = Tenant::parse("default").map_err(|error| ConfigError::value("tenant", error))?;
            clients.push(Client::new("made-for-this-run", tenant, Credential::bearer(token)));
        }
        let timeout = within("request_timeout_milliseconds", self.request_timeout_milliseconds, 100..=60_000)?;
        Ok(Edge {
            listen: self.listen,
            tls: self.tls,
            engine_address: self.engine.address,
            engine_tls: self.engine.tls,
            connections: connection_limits(self.connections_max, self.silent_connections_per_address_max)?,
            settings: Settings {
                clients,
                error_profile: match self.error_profile {
                    LowErrorProfile::Full => ErrorProfile::Full,
                    LowErrorProfile::Strict => ErrorProfile::Strict,
                },
                request_timeout: Duration::from_millis(timeout),
                body_bytes_max: within("body_bytes_max", self.body_bytes_max, 2_048..=1_048_576)?,
                requests_max: within("requests_max", self.requests_max, 1..=1_000_000)?,
            },
            made_token,
        })
    }
}

impl LowClient {
    fn check(self) -> Result<Client, ConfigError> {
        let tenant = Tenant::parse(&self.tenant).map_err(|error| ConfigError::value("clients.tenant", error))?;
        let credential = match (self.bearer, self.basic) {
            (Some(bearer), None) => Credential::bearer(&bearer.read()?),
            (None, Some(basic)) => Credential::basic(&basic.user, &basic.password.read()?),
            _ => return Err(ConfigError::value("clients", "each has either bearer or basic")),
        };
        Ok(Client::new(&self.name, tenant, credential))
    }
}

/// 244 random bits.
fn fresh_token() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}
