//! The configuration of the edge: the TOML file, its checks and its defaults.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use jiff::civil::Date;
use serde::Deserialize;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::web_view::WebViewFile;
use crate::{Client, Credential, ErrorProfile, GrantedUse, RequestLimits, SECRET_CHARACTERS_MIN, Settings, ZoneGrant};
use config::{ConfigError, KnownKey, SecretSource, read_file, within};
use domain::card::Tenant;
use domain::limits::{BODY_BYTES_MAX, ZPK_INDEX_MAX};
use net::{
    ConnectionAge, ConnectionLimits, EngineAddress,
    metrics_server::MetricsFile,
    serving_threads::worker_count,
    tls::{ClientTlsConfig, ServerTlsConfig},
};

/// The most engines of an edge.
const ENGINES_MAX: usize = 100;

/// The edge's checked configuration.
pub struct EdgeConfig {
    /// The address of the HTTP listener.
    pub listen: SocketAddr,
    /// The address of the listener that serves `/docs`; `None` for none of its own.
    pub docs_listen: Option<SocketAddr>,
    /// TLS of the listeners; `None` is allowed on loopback only.
    pub tls: Option<ServerTlsConfig>,
    /// The addresses of the engines, which share a store; at least one, none twice.
    pub engine_addresses: Vec<EngineAddress>,
    /// Mutual TLS to each engine.
    pub engine_tls: Option<ClientTlsConfig>,
    /// The threads that serve.
    pub workers: usize,
    /// The limits on open connections.
    pub connections: ConnectionLimits,
    /// The age at which a connection gets no more requests.
    pub connection_age: ConnectionAge,
    /// The clients and the limits of requests.
    pub settings: Settings,
    /// The loopback address of the metrics listener; `None` disables metrics.
    pub metrics_listen: Option<SocketAddr>,
    /// The bearer token of the embedded defaults, generated for this run.
    pub made_token: Option<Zeroizing<String>>,
}

impl EdgeConfig {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The file cannot be read or parsed, has no client, or a value is not allowed.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        read_file::<EdgeFile>(Some(path))?.check_with_clients()
    }

    /// Reads what a file grants each client, and no secret that the file names.
    ///
    /// # Errors
    /// The file cannot be read or parsed, or a grant is not allowed.
    pub fn load_grants(path: &Path) -> Result<Vec<ClientGrants>, ConfigError> {
        let clients = read_file::<EdgeFile>(Some(path))?.clients.into_iter();
        let grants = clients.map(|client| {
            let tenant = Tenant::parse(&client.tenant).map_err(|error| ConfigError::value("clients.tenant", error))?;
            let zones = check_grants(&client.name, client.zones)?;
            Ok(ClientGrants { name: client.name, tenant, zones, mgf1_sha1_until: client.oaep_mgf1_until })
        });
        grants.collect()
    }

    /// The keys of a configuration file.
    pub fn known_keys() -> Vec<KnownKey> {
        config::known_keys::<EdgeFile>()
    }

    /// The embedded defaults with these addresses of the edge and of the engine, and one client whose bearer token is
    /// generated for this run.
    ///
    /// # Errors
    /// A default is not allowed.
    pub fn embedded(listen: SocketAddr, engine: SocketAddr) -> Result<Self, ConfigError> {
        let engine = EngineFile { addresses: vec![format!("http://{engine}")], tls: None };
        let token = Zeroizing::new(generate_token());
        let tenant = Tenant::parse("default").map_err(|error| ConfigError::value("tenant", error))?;
        let client = Client::new("made-for-this-run", tenant, Credential::bearer(&token));
        let config = EdgeFile { listen, engine, ..EdgeFile::default() }.check(vec![client])?;
        Ok(Self { made_token: Some(token), ..config })
    }

    /// The same configuration with a web view at `public_url`, whose page `key` is of the first client, and which a site of
    /// `origin` may frame.
    ///
    /// # Errors
    /// An address is not that of HTTPS or of this machine, or the configuration has no client.
    pub fn with_page(mut self, public_url: &str, key: &str, origin: &str) -> Result<Self, ConfigError> {
        let client = self.settings.clients.first().map(Client::name).unwrap_or_default();
        let web_view = WebViewFile::with_page(public_url, key, client, origin).check(&[client])?;
        self.settings.web_view = Some(web_view);
        Ok(self)
    }
}

/// What a configuration grants a client beyond the operations with a control.
pub struct ClientGrants {
    /// The name of the client.
    pub name: String,
    /// The tenant whose cards the client may use.
    pub tenant: Tenant,
    /// The zone keys of the client.
    pub zones: Vec<ZoneGrant>,
    /// The last day (UTC) on which its devices get RSA-OAEP with MGF1-SHA-1.
    pub mgf1_sha1_until: Option<Date>,
}

/// The configuration file.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct EdgeFile {
    /// The address and port of the HTTP listener.
    listen: SocketAddr,
    /// The address and port of a second listener, for the API and `/docs`. Without it, `listen` serves `/docs`, unless there
    /// is a web view.
    docs_listen: Option<SocketAddr>,
    /// Threads that serve; 0 for one a core.
    workers: usize,
    tls: Option<ServerTlsConfig>,
    engine: EngineFile,
    /// At least one.
    clients: Vec<ClientFile>,
    /// `full` uses every documented status; `strict` only those of the vendor's document.
    error_profile: ErrorProfile,
    /// The timeout of one request, in milliseconds.
    request_timeout_milliseconds: u64,
    /// The longest body, in bytes.
    body_bytes_max: usize,
    /// Requests in flight at a time.
    requests_max: usize,
    /// Requests in flight of one client; a quarter of `requests_max` by default.
    requests_per_client_max: Option<usize>,
    /// Requests in flight of the clients of one tenant; half of `requests_max` by default.
    requests_per_tenant_max: Option<usize>,
    /// Requests of one client that begin within a second.
    requests_per_client_per_second_max: u32,
    /// Open connections; half of them may have no authenticated request yet.
    connections_max: usize,
    /// Open connections of one address that have no authenticated request yet.
    silent_connections_per_address_max: usize,
    /// The age at which a connection gets no more requests, in seconds.
    connection_age_seconds_max: u64,
    metrics: MetricsFile,
    web_view: Option<WebViewFile>,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct EngineFile {
    /// The engines that share a store, for example `https://engine-1.internal:50051`.
    addresses: Vec<String>,
    /// Mutual TLS to each engine.
    tls: Option<ClientTlsConfig>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientFile {
    /// The name of the client in the log and for its limits; no two clients have the same.
    name: String,
    /// The tenant whose cards the client may use.
    tenant: String,
    /// A bearer token: `{ file = "…" }` or `{ env = "…" }`.
    bearer: Option<SecretSource>,
    /// A user and a password of HTTP Basic.
    basic: Option<BasicFile>,
    /// The first DNS or URI name of the client's certificate, else its common name; alone, or beside `bearer` or `basic`.
    certificate_name: Option<String>,
    /// Adds `checkValue`, the KCV of the tzpk, to the answers of `set/tzpk` and `view`. The vendor's contract does not have
    /// the member, and a strict client of it may reject the answer.
    #[serde(default)]
    tzpk_kcv: bool,
    /// The hash in MGF1 of the RSA-OAEP that the client's devices decrypt. `sha-1` is for Android key stores before API 35.
    #[serde(default)]
    oaep_mgf1: OaepMgf1File,
    /// The last day (UTC) of `sha-1`, for example `2028-01-01`.
    oaep_mgf1_until: Option<Date>,
    /// The zone keys that the client shares, each with its uses; none by default.
    #[serde(default)]
    zones: Vec<ZoneGrantFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ZoneGrantFile {
    /// The `zpkIndex` of the zone within the tenant of the client.
    index: u32,
    /// `set-pin`, `get-pin` or both. The client knows each PIN that it sets or gets.
    uses: Vec<GrantedUse>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum OaepMgf1File {
    #[default]
    #[serde(rename = "sha-256")]
    Sha256,
    #[serde(rename = "sha-1")]
    Sha1,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BasicFile {
    user: String,
    password: SecretSource,
}

impl Default for EdgeFile {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8_080)),
            docs_listen: None,
            workers: 0,
            tls: None,
            engine: EngineFile::default(),
            clients: Vec::new(),
            error_profile: ErrorProfile::Full,
            request_timeout_milliseconds: 10_000,
            body_bytes_max: BODY_BYTES_MAX,
            requests_max: 4_096,
            requests_per_client_max: None,
            requests_per_tenant_max: None,
            requests_per_client_per_second_max: 5_000,
            connections_max: ConnectionLimits::default().connections_max,
            silent_connections_per_address_max: ConnectionLimits::default().silent_per_address_max,
            connection_age_seconds_max: ConnectionAge::default().seconds(),
            metrics: MetricsFile::default(),
            web_view: None,
        }
    }
}

impl Default for EngineFile {
    fn default() -> Self {
        Self { addresses: vec!["http://127.0.0.1:50051".into()], tls: None }
    }
}

impl EngineFile {
    fn check_addresses(&self) -> Result<Vec<EngineAddress>, ConfigError> {
        within("engine.addresses", self.addresses.len(), 1..=ENGINES_MAX)?;
        let mut checked = Vec::with_capacity(self.addresses.len());
        for address in &self.addresses {
            let address: EngineAddress =
                address.parse().map_err(|error| ConfigError::value("engine.addresses", error))?;
            if self.tls.is_some() && !address.has_https() {
                let problem =
                    format!("{address} is without TLS, and [engine.tls] is set: write https://, or remove it");
                return Err(ConfigError::value("engine.addresses", problem));
            }
            if checked.contains(&address) {
                let problem = format!("{address} stands twice: name each engine once");
                return Err(ConfigError::value("engine.addresses", problem));
            }
            checked.push(address);
        }
        Ok(checked)
    }
}

impl EdgeFile {
    fn check_with_clients(mut self) -> Result<EdgeConfig, ConfigError> {
        let clients = check_clients(std::mem::take(&mut self.clients))?;
        if clients.is_empty() {
            let problem = "the edge has no client, and would answer every request with 401: add [[clients]] with a name, a \
                           tenant, and bearer, basic or certificate_name (examples/edge.toml)";
            return Err(ConfigError::value("clients", problem));
        }
        let asks_for_certificates = self.tls.as_ref().is_some_and(|tls| tls.client_roots.is_some());
        if !asks_for_certificates && clients.iter().any(|client| client.certificate_name().is_some()) {
            let problem = "a client has a certificate, and the edge asks for none: set client_roots in [tls] to the roots of \
                           the clients' certificates";
            return Err(ConfigError::value("clients.certificate_name", problem));
        }
        self.check(clients)
    }

    fn request_limits(&self) -> Result<RequestLimits, ConfigError> {
        let all = within("requests_max", self.requests_max, 1..=1_000_000)?;
        let share = |key, share: Option<usize>, default: usize| within(key, share.unwrap_or(default.max(1)), 1..=all);
        Ok(RequestLimits {
            requests_max: all,
            per_client_max: share("requests_per_client_max", self.requests_per_client_max, all / 4)?,
            per_tenant_max: share("requests_per_tenant_max", self.requests_per_tenant_max, all / 2)?,
            per_client_per_second_max: within(
                "requests_per_client_per_second_max",
                self.requests_per_client_per_second_max,
                1..=10_000_000,
            )?,
        })
    }

    fn check(self, clients: Vec<Client>) -> Result<EdgeConfig, ConfigError> {
        let requests = self.request_limits()?;
        let timeout = within("request_timeout_milliseconds", self.request_timeout_milliseconds, 100..=60_000)?;
        let engine_addresses = self.engine.check_addresses()?;
        if self.docs_listen.is_some_and(|docs| docs == self.listen && docs.port() != 0) {
            let problem = format!("{} is the address of `listen` too: choose another port", self.listen);
            return Err(ConfigError::value("docs_listen", problem));
        }
        let names: Vec<_> = clients.iter().map(Client::name).collect();
        let web_view = self.web_view.map(|web_view| web_view.check(&names)).transpose()?;
        Ok(EdgeConfig {
            listen: self.listen,
            docs_listen: self.docs_listen,
            tls: self.tls,
            engine_addresses,
            engine_tls: self.engine.tls,
            workers: worker_count(self.workers)?,
            connections: ConnectionLimits::new(self.connections_max, self.silent_connections_per_address_max)?,
            connection_age: ConnectionAge::from_seconds(self.connection_age_seconds_max)?,
            settings: Settings {
                clients,
                error_profile: self.error_profile,
                request_timeout: Duration::from_millis(timeout),
                body_bytes_max: within("body_bytes_max", self.body_bytes_max, 2_048..=1_048_576)?,
                requests,
                web_view,
            },
            metrics_listen: self.metrics.check()?,
            made_token: None,
        })
    }
}

/// Rejects a secret that two clients share, as a token or as a password, and a certificate that two clients share: each client
/// could act as the other. Rejects an empty name, and a name that two clients share: limits and the log know a client by its
/// name.
fn check_clients(clients: Vec<ClientFile>) -> Result<Vec<Client>, ConfigError> {
    let mut checked = Vec::with_capacity(clients.len());
    let mut secrets: Vec<(String, Credential)> = Vec::with_capacity(clients.len());
    let (mut names, mut certificates) = (HashSet::new(), HashSet::new());
    for mut client in clients {
        let name = client.name.clone();
        if name.trim().is_empty() {
            return Err(ConfigError::value(
                "clients.name",
                "a client has no name: give each client one, for limits and the log",
            ));
        }
        if !names.insert(name.clone()) {
            let problem =
                format!("two clients have the name {name:?}: they would share their limits; give each its own");
            return Err(ConfigError::value("clients.name", problem));
        }
        if let Some(certificate) = client.certificate_name.clone().filter(|name| !certificates.insert(name.clone())) {
            let problem = format!("two clients have the certificate {certificate:?}: give each client its own");
            return Err(ConfigError::value("clients.certificate_name", problem));
        }
        let zones = check_grants(&name, std::mem::take(&mut client.zones))?;
        let (client, secret) = client.check()?;
        checked.push(client.with_zones(zones));
        let Some(secret) = secret else { continue };
        if let Some((before, _)) = secrets.iter().find(|(_, other)| other.is_same(&secret)) {
            let problem = format!("{before:?} and {name:?} have the same secret: give each client a different secret");
            return Err(ConfigError::value("clients", problem));
        }
        secrets.push((name, secret));
    }
    Ok(checked)
}

/// Rejects an index that a client has twice, a grant without a use, and a use that a grant has twice.
fn check_grants(client: &str, grants: Vec<ZoneGrantFile>) -> Result<Vec<ZoneGrant>, ConfigError> {
    let mut indexes = HashSet::new();
    let mut checked = Vec::with_capacity(grants.len());
    for ZoneGrantFile { index, uses } in grants {
        within("clients.zones.index", index, 0..=ZPK_INDEX_MAX)?;
        if !indexes.insert(index) {
            let problem = format!("{client:?} has the index {index} twice: name all its uses in one entry");
            return Err(ConfigError::value("clients.zones.index", problem));
        }
        if !matches!(
            &uses[..],
            [_] | [GrantedUse::SetPin, GrantedUse::GetPin] | [GrantedUse::GetPin, GrantedUse::SetPin]
        ) {
            let problem = format!("the zone {index} of {client:?} has set-pin, get-pin or both, each once");
            return Err(ConfigError::value("clients.zones.uses", problem));
        }
        checked.push(ZoneGrant { index, uses });
    }
    Ok(checked)
}

impl ClientFile {
    /// The client, and its secret as a bearer credential, for the comparison of secrets.
    fn check(self) -> Result<(Client, Option<Credential>), ConfigError> {
        let tenant = Tenant::parse(&self.tenant).map_err(|error| ConfigError::value("clients.tenant", error))?;
        if self.certificate_name.as_deref() == Some("") {
            let problem = "is empty: a certificate without a name is no credential";
            return Err(ConfigError::value("clients.certificate_name", problem));
        }
        let mgf1_sha1_until = match (self.oaep_mgf1, self.oaep_mgf1_until) {
            (OaepMgf1File::Sha256, None) => None,
            (OaepMgf1File::Sha1, Some(until)) => Some(until),
            _ => {
                let problem = "oaep_mgf1 = \"sha-1\" needs its last day, for example oaep_mgf1_until = \"2028-01-01\", and no \
                               other form has one";
                return Err(ConfigError::value("clients.oaep_mgf1", problem));
            }
        };
        let (secret, user) = match (self.bearer, self.basic) {
            (Some(bearer), None) => (bearer.read()?, None),
            (None, Some(basic)) => (basic.password.read()?, Some(basic.user)),
            (None, None) if self.certificate_name.is_some() => {
                let client =
                    Client::new(&self.name, tenant, None).with_kcv(self.tzpk_kcv).with_mgf1_sha1(mgf1_sha1_until);
                return Ok((client.with_certificate(self.certificate_name), None));
            }
            _ => {
                let problem = "each client has either bearer or basic, and certificate_name beside them or instead";
                return Err(ConfigError::value("clients", problem));
            }
        };
        if secret.chars().count() < SECRET_CHARACTERS_MIN {
            let problem = format!(
                "the secret of {:?} has fewer than {SECRET_CHARACTERS_MIN} characters: generate one with \
                 `openssl rand -base64 32`",
                self.name
            );
            return Err(ConfigError::value("clients", problem));
        }
        let credential = match user {
            None if !secret.bytes().all(is_token_character) => {
                let problem = format!(
                    "the bearer token of {:?} has a character that no bearer token may have (RFC 6750, 2.1), so no request \
                     could carry it: use letters, digits and - . _ ~ + / =",
                    self.name
                );
                return Err(ConfigError::value("clients.bearer", problem));
            }
            // RFC 7617, 2: the first colon ends the user.
            Some(user) if user.contains(':') || user.chars().any(char::is_control) => {
                return Err(ConfigError::value(
                    "clients.basic.user",
                    "has a colon or a control character, which HTTP Basic does not allow in a user",
                ));
            }
            Some(user) => Credential::basic(&user, &secret),
            None => Credential::bearer(&secret),
        };
        let client =
            Client::new(&self.name, tenant, credential).with_kcv(self.tzpk_kcv).with_mgf1_sha1(mgf1_sha1_until);
        Ok((client.with_certificate(self.certificate_name), Some(Credential::bearer(&secret))))
    }
}

/// The characters of a `b64token` (RFC 6750, 2.1).
fn is_token_character(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte)
}

/// 244 random bits.
fn generate_token() -> String {
    format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple())
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};

    use super::*;

    /// Checks clients with these secrets: the number of clients, or the error. A name with `@` uses HTTP Basic.
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
        let file: EdgeFile = toml::from_str(&text).unwrap();
        file.check_with_clients().map(|edge| edge.settings.clients.len()).map_err(|error| error.to_string())
    }

    #[test]
    fn two_clients_with_the_same_secret_are_rejected() {
        const SECRET: &str = "0123456789abcdef";
        for (first, second) in [("a", "b"), ("a@basic", "a@again"), ("a@basic", "b@basic"), ("a", "b@basic")] {
            let refused = checked(&[(first, SECRET), ("other", "another-0123456789"), (second, SECRET)]).unwrap_err();
            assert!(refused.contains(&format!("{first:?} and {second:?} have the same secret")), "{refused}");
            assert!(!refused.contains(SECRET), "{refused}");
        }
        assert_eq!(checked(&[("a", SECRET), ("b", "0123456789abcdeg")]), Ok(2));
    }

    #[test]
    fn a_client_has_a_name_that_no_other_client_has() {
        let shared = checked(&[("a", "0123456789abcdef"), ("a", "another-0123456789")]).unwrap_err();
        assert!(shared.contains("two clients have the name \"a\""), "{shared}");
        for empty in ["", " "] {
            let nameless = checked(&[(empty, "0123456789abcdef")]).unwrap_err();
            assert!(nameless.contains("a client has no name"), "{nameless}");
        }
    }

    #[test]
    fn two_listeners_have_two_addresses() {
        let checked = |docs: &str| {
            let file: EdgeFile = toml::from_str(&format!("docs_listen = {docs:?}")).unwrap();
            file.check(Vec::new()).map(|edge| edge.docs_listen).map_err(|error| error.to_string())
        };
        assert_eq!(checked("127.0.0.1:8082"), Ok("127.0.0.1:8082".parse().ok()));
        assert!(checked("127.0.0.1:8080").unwrap_err().contains("choose another port"));
    }

    #[test]
    fn a_secret_of_fewer_than_16_characters_is_rejected() {
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
    fn a_certificate_of_no_use_is_rejected() {
        const TLS: &str = "[tls]\ncertificates = \"c\"\nprivate_key = \"k\"\n";
        let client = |name: &str, certificate: &str| {
            format!("[[clients]]\nname = {name:?}\ntenant = \"bank\"\ncertificate_name = {certificate:?}\n")
        };
        let checked = |text: String| {
            let file: EdgeFile = toml::from_str(&text).unwrap();
            file.check_with_clients().map(|edge| edge.settings.clients.len()).map_err(|error| error.to_string())
        };
        let roots = format!("{TLS}client_roots = \"r\"\nclient_certificate = \"optional\"\n");
        assert_eq!(checked(roots.clone() + &client("a", "a.test") + &client("b", "b.test")), Ok(2));
        let shared = checked(roots.clone() + &client("a", "a.test") + &client("b", "a.test")).unwrap_err();
        assert!(shared.contains("two clients have the certificate \"a.test\""), "{shared}");
        assert!(checked(roots + &client("a", "")).unwrap_err().contains("a certificate without a name"));
        for tls in ["", TLS] {
            let unasked = checked(tls.to_owned() + &client("a", "a.test")).unwrap_err();
            assert!(unasked.contains("set client_roots"), "{unasked}");
        }
    }

    #[test]
    fn mgf1_sha1_needs_its_last_day() {
        let checked = |lines: &str| {
            let text = format!(
                "[tls]\ncertificates = \"c\"\nprivate_key = \"k\"\nclient_roots = \"r\"\n[[clients]]\nname = \"a\"\n\
                 tenant = \"bank\"\ncertificate_name = \"a.test\"\n{lines}"
            );
            let file = toml::from_str::<EdgeFile>(&text).map_err(|error| error.to_string())?;
            file.check_with_clients().map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(checked("oaep_mgf1 = \"sha-256\""), Ok(()));
        assert_eq!(checked("oaep_mgf1 = \"sha-1\"\noaep_mgf1_until = \"2028-01-01\""), Ok(()));
        for wrong in [
            "oaep_mgf1 = \"sha-1\"",
            "oaep_mgf1_until = \"2028-01-01\"",
            "oaep_mgf1 = \"sha-256\"\noaep_mgf1_until = \"2028-01-01\"",
        ] {
            assert!(checked(wrong).unwrap_err().contains("needs its last day"), "{wrong}");
        }
        assert!(checked("oaep_mgf1 = \"sha-1\"\noaep_mgf1_until = \"soon\"").is_err());
        assert!(checked("oaep_mgf1 = \"md5\"").is_err());
    }

    #[test]
    fn an_engine_address_without_tls_beside_engine_tls_is_rejected() {
        let checked = |address: &str| {
            let tls = "tls = { roots = \"r\", certificates = \"c\", private_key = \"k\" }";
            let text = format!("[engine]\naddresses = [\"https://127.0.0.1:1\", {address:?}]\n{tls}");
            let file: EdgeFile = toml::from_str(&text).unwrap();
            file.check(Vec::new()).map(drop).map_err(|error| error.to_string())
        };
        assert!(checked("http://127.0.0.1:50051").unwrap_err().contains("write https://"));
        assert_eq!(checked("https://127.0.0.1:50051"), Ok(()));
    }

    #[test]
    fn an_edge_has_1_to_100_engines_and_none_twice() {
        let checked = |addresses: &[String]| {
            let file: EdgeFile = toml::from_str(&format!("[engine]\naddresses = {addresses:?}")).unwrap();
            file.check(Vec::new()).map(|edge| edge.engine_addresses.len()).map_err(|error| error.to_string())
        };
        let addresses = |number: usize| (1..=number).map(|port| format!("http://127.0.0.1:{port}")).collect::<Vec<_>>();
        assert_eq!(checked(&addresses(1)), Ok(1));
        assert_eq!(checked(&addresses(100)), Ok(100));
        for number in [0, 101] {
            assert!(checked(&addresses(number)).unwrap_err().contains("1 to 100"), "{number}");
        }
        let twice = ["http://localhost".to_owned(), "http://LOCALHOST:50051".to_owned()];
        assert!(checked(&twice).unwrap_err().contains("stands twice"));
    }

    #[test]
    fn a_client_has_only_the_zone_uses_that_the_configuration_grants() {
        let checked = |zones: &str| {
            let text = format!(
                "[tls]\ncertificates = \"c\"\nprivate_key = \"k\"\nclient_roots = \"r\"\n[[clients]]\nname = \"a\"\n\
                 tenant = \"bank\"\ncertificate_name = \"a.test\"\n{zones}"
            );
            let file = toml::from_str::<EdgeFile>(&text).map_err(|error| error.to_string())?;
            let config = file.check_with_clients().map_err(|error| error.to_string())?;
            Ok::<_, String>(config.settings.clients[0].zones().to_vec())
        };
        assert_eq!(checked(""), Ok(Vec::new()));
        let both = vec![GrantedUse::SetPin, GrantedUse::GetPin];
        assert_eq!(
            checked("zones = [{ index = 0, uses = [\"set-pin\", \"get-pin\"] }, { index = 7, uses = [\"get-pin\"] }]"),
            Ok(vec![ZoneGrant { index: 0, uses: both }, ZoneGrant { index: 7, uses: vec![GrantedUse::GetPin] }])
        );
        for (wrong, named) in [
            ("{ index = 0, uses = [] }", "each once"),
            ("{ index = 0, uses = [\"get-pin\", \"get-pin\"] }", "each once"),
            ("{ index = 0, uses = [\"set-pin\"] }, { index = 0, uses = [\"get-pin\"] }", "has the index 0 twice"),
            ("{ index = 10000, uses = [\"set-pin\"] }", "clients.zones.index"),
            ("{ index = 0, uses = [\"verify\"] }", "verify"),
            ("{ index = 0 }", "uses"),
        ] {
            let refused = checked(&format!("zones = [{wrong}]")).unwrap_err();
            assert!(refused.contains(named), "{wrong}: {refused}");
        }
    }

    #[test]
    fn a_page_needs_a_client_of_the_edge() {
        let client = "[tls]\ncertificates = \"c\"\nprivate_key = \"k\"\nclient_roots = \"r\"\n[[clients]]\nname = \"a\"\n\
                      tenant = \"bank\"\ncertificate_name = \"a.test\"\n";
        let checked = |name: &str| {
            let page = format!("[[web_view.pages]]\nkey = \"bank\"\nclient = {name:?}\n");
            let text = format!("{client}[web_view]\npublic_url = \"https://pin.bank.example\"\n{page}");
            let config = toml::from_str::<EdgeFile>(&text).unwrap().check_with_clients();
            config.map(|config| config.settings.web_view.is_some()).map_err(|error| error.to_string())
        };
        assert_eq!(checked("a"), Ok(true));
        assert!(checked("b").unwrap_err().contains("no [[clients]] has this name"));
    }

    #[test]
    fn an_edge_without_clients_is_rejected() {
        assert!(checked(&[]).unwrap_err().contains("add [[clients]]"));
    }

    #[test]
    fn a_bearer_token_that_no_header_can_carry_is_rejected() {
        for secret in ["0123456789 abcdef", "0123456789abcd\u{e9}f", "0123456789:abcdef"] {
            let refused = checked(&[("a", secret)]).unwrap_err();
            assert!(refused.contains("no bearer token may have") && !refused.contains(secret), "{refused}");
            assert_eq!(checked(&[("a@basic", secret)]), Ok(1), "a password may have any visible character");
        }
    }

    #[test]
    fn a_secret_with_invisible_characters_is_rejected() {
        for name in ["a", "a@basic"] {
            for secret in ["\u{feff}0123456789abcdef", " 0123456789abcdef", "0123456789abcdef\t", "01234567\n89abcdef"]
            {
                let refused = checked(&[(name, secret)]).unwrap_err();
                assert!(!refused.contains("0123") && refused.contains("remove"), "{refused}");
            }
        }
    }

    #[test]
    fn the_example_configuration_has_the_defaults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/edge.toml");
        let example = read_file::<EdgeFile>(Some(&path)).unwrap();
        let default = EdgeFile::default();
        assert_eq!(example.listen, default.listen);
        assert_eq!(example.workers, default.workers);
        assert_eq!(example.engine.addresses, default.engine.addresses);
        assert_eq!(example.request_timeout_milliseconds, default.request_timeout_milliseconds);
        assert_eq!(example.request_limits().unwrap(), default.request_limits().unwrap());
    }
}
