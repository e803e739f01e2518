//! The edge's configuration.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use serde::Deserialize;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{Client, Credential, ErrorProfile, SECRET_CHARACTERS_MIN, Settings};
use config::{ConfigError, SecretSource, read_file, within};
use domain::card::Tenant;
use domain::limits::BODY_BYTES_MAX;
use net::{
    ConnectionLimits,
    tls::{ClientTlsConfig, ServerTlsConfig},
};

/// The edge's checked configuration.
pub struct EdgeConfig {
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

impl EdgeConfig {
    /// Reads and checks a file; without one, the embedded defaults.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        read_file::<LowEdge>(path)?.check()
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
    fn check(self) -> Result<EdgeConfig, ConfigError> {
        let mut clients = check_clients(self.clients)?;
        let made_token = clients.is_empty().then(|| Zeroizing::new(fresh_token()));
        if let Some(token) = &made_token {
            let tenant = Tenant::parse("default").map_err(|error| ConfigError::value("tenant", error))?;
            clients.push(Client::new("made-for-this-run", tenant, Credential::bearer(token)));
        }
        let timeout = within("request_timeout_milliseconds", self.request_timeout_milliseconds, 100..=60_000)?;
        Ok(EdgeConfig {
            listen: self.listen,
            tls: self.tls,
            engine_address: self.engine.address,
            engine_tls: self.engine.tls,
            connections: ConnectionLimits::new(self.connections_max, self.silent_connections_per_address_max)?,
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

/// No secret stands twice, be it a token or a password: who knows one client's would be the other as well.
fn check_clients(clients: Vec<LowClient>) -> Result<Vec<Client>, ConfigError> {
    let mut checked = Vec::with_capacity(clients.len());
    let mut secrets: Vec<(String, Credential)> = Vec::with_capacity(clients.len());
    for client in clients {
        let name = client.name.clone();
        let (client, secret) = client.check()?;
        if let Some((before, _)) = secrets.iter().find(|(_, other)| other.is_same(&secret)) {
            let problem = format!("{before:?} and {name:?} have the same secret: give each client a secret of its own");
            return Err(ConfigError::value("clients", problem));
        }
        secrets.push((name, secret));
        checked.push(client);
    }
    Ok(checked)
}

impl LowClient {
    /// The client, and its secret alone as if it were a token.
    fn check(self) -> Result<(Client, Credential), ConfigError> {
        let tenant = Tenant::parse(&self.tenant).map_err(|error| ConfigError::value("clients.tenant", error))?;
        let (secret, user) = match (self.bearer, self.basic) {
            (Some(bearer), None) => (bearer.read()?, None),
            (None, Some(basic)) => (basic.password.read()?, Some(basic.user)),
            _ => return Err(ConfigError::value("clients", "each has either bearer or basic")),
        };
        if secret.chars().count() < SECRET_CHARACTERS_MIN {
            let problem = format!(
                "the secret of {:?} has fewer than {SECRET_CHARACTERS_MIN} characters: make a random one, such as by \
                 `openssl rand -base64 32`",
                self.name
            );
            return Err(ConfigError::value("clients", problem));
        }
        let credential = match user {
            // RFC 7617, 2: the first colon ends the user.
            Some(user) if user.contains(':') => {
                return Err(ConfigError::value("clients.basic.user", "has a colon, which ends a user in HTTP Basic"));
            }
            Some(user) => Credential::basic(&user, &secret),
            None => Credential::bearer(&secret),
        };
        Ok((Client::new(&self.name, tenant, credential), Credential::bearer(&secret)))
    }
}

/// 244 random bits.
fn fresh_token() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};

    use super::*;

    /// What the check says of clients with these secrets; a name with `@` is of HTTP Basic.
    fn checked(clients: &[(&str, &str)]) -> Result<usize, String> {
        let directory = tempfile::tempdir().unwrap();
        let mut text = String::new();
        for (number, (name, secret)) in clients.iter().enumerate() {
            let path = directory.path().join(number.to_string());
            let mut file =
                std::fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(&path).unwrap();
            file.write_all(secret.as_bytes()).unwrap();
            let credential = match name.split_once('@') {
                Some((user, _)) => format!("basic = {{ user = {user:?}, password = {{ file = {path:?} }} }}"),
                None => format!("bearer = {{ file = {path:?} }}"),
            };
            text += &format!("[[clients]]\nname = {name:?}\ntenant = \"bank\"\n{credential}\n");
        }
        let low: LowEdge = toml::from_str(&text).unwrap();
        low.check().map(|edge| edge.settings.clients.len()).map_err(|error| error.to_string())
    }

    #[test]
    fn two_clients_with_one_secret_are_refused() {
        const SECRET: &str = "0123456789abcdef";
        for (first, second) in [("a", "b"), ("a@basic", "a@again"), ("a@basic", "b@basic"), ("a", "b@basic")] {
            let refused = checked(&[(first, SECRET), ("other", "another-0123456789"), (second, SECRET)]).unwrap_err();
            assert!(refused.contains(&format!("{first:?} and {second:?} have the same secret")), "{refused}");
            assert!(!refused.contains(SECRET), "{refused}");
        }
        assert_eq!(checked(&[("a", SECRET), ("b", "0123456789abcdeg")]), Ok(2));
    }

    #[test]
    fn a_secret_of_fewer_than_16_characters_is_refused() {
        for name in ["a", "a@basic"] {
            for secret in ["x", "0123456789abcde"] {
                let refused = checked(&[(name, secret)]).unwrap_err();
                assert!(refused.contains("fewer than 16 characters") && !refused.contains(secret), "{refused}");
            }
        }
        let refused = checked(&[("a:b@basic", "0123456789abcdef")]).unwrap_err();
        assert!(refused.contains("has a colon"), "{refused}");
    }

    #[test]
    fn the_example_configuration_has_the_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/edge.toml");
        let (example, default) = (EdgeConfig::load(Some(&path)).unwrap(), EdgeConfig::load(None).unwrap());
        assert_eq!(example.listen, default.listen);
        assert_eq!(example.engine_address, default.engine_address);
        assert_eq!(example.settings.request_timeout, default.settings.request_timeout);
        assert_eq!(example.settings.requests_max, default.settings.requests_max);
    }
}
