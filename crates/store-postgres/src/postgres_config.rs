//! How to reach the database, and how long the store waits for it.

use std::{fmt, net::IpAddr, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use thiserror::Error;

use zeroize::Zeroizing;

use super::PostgresOpenError;

/// The name of the audit chain of the commands that change keys and registrations, and of an activation by the end of an
/// engine. No engine has this name.
pub const OPERATOR: &str = "operator";

/// The longest name of a schema, in bytes (PostgreSQL manual, 4.1.1).
const SCHEMA_BYTES_MAX: usize = 63;

/// A server of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseHost {
    /// The name or address of the server, which its certificate has.
    pub name: String,
    /// The TCP port.
    pub port: u16,
}

impl DatabaseHost {
    /// Whether nothing sent to the host leaves the machine.
    fn is_loopback(&self) -> bool {
        self.name == "localhost" || self.name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl FromStr for DatabaseHost {
    type Err = HostError;

    /// Reads `HOST:PORT`; an IPv6 address has brackets.
    fn from_str(text: &str) -> Result<Self, HostError> {
        let wrong = || HostError(text.to_owned());
        let (name, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        let name = address.unwrap_or(name);
        let is_address = name.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6());
        if port == 0 || name.is_empty() || name.contains(':') != is_address || is_address != address.is_some() {
            return Err(wrong());
        }
        Ok(Self { name: name.to_owned(), port })
    }
}

/// The text is not a server of a database.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not a host with a port: write HOST:PORT")]
pub struct HostError(String);

impl fmt::Display for DatabaseHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, port } = self;
        if name.contains(':') { write!(f, "[{name}]:{port}") } else { write!(f, "{name}:{port}") }
    }
}

/// The files of TLS to the database. The server's certificate must be issued by one of the roots, for the name of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseTls {
    /// The roots of the server's certificate, in PEM.
    pub roots: PathBuf,
    /// The certificate chain of the engine and its private key, in PEM, where the database authenticates by certificate.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// How to open a store on PostgreSQL.
#[derive(Clone)]
pub struct PostgresConfig {
    /// The servers, tried in turn until one accepts writes.
    pub hosts: Vec<DatabaseHost>,
    /// The name of the database.
    pub database: String,
    /// The role of the engine.
    pub user: String,
    /// The password of the role.
    pub password: Option<Zeroizing<String>>,
    /// The schema of the tables: 1 to 63 of `a-z`, `0-9` and `_`, made where it is absent.
    pub schema: String,
    /// The name of the engine, one for each engine on the database.
    pub engine_name: Arc<str>,
    /// TLS; required unless every host is loopback.
    pub tls: Option<DatabaseTls>,
    /// Whether the store makes and migrates its tables; otherwise tables of an older version are refused.
    pub migrates: bool,
    /// The most changes that may wait; one more is refused as [`store::StoreError::Busy`].
    pub waiting_changes_max: usize,
    /// How long the store waits for one host to connect.
    pub connect_timeout: Duration,
    /// How long the store waits for a statement. Then it closes the connection; it never cancels a statement.
    pub statement_timeout: Duration,
    /// How long the name of a process that ended stays reserved. A running engine renews it.
    pub lease: Duration,
    /// How long the store does not answer changes that depend on a caller while it finds the database again. Then their
    /// callers are answered, and the state is [`store::StoreState::Unreachable`].
    pub unreachable_after: Duration,
    /// How long a change that depends on no caller waits for the database.
    pub waits_for: Duration,
}

impl PostgresConfig {
    /// The defaults, for an engine on one host without TLS or password.
    pub fn new(host: DatabaseHost, database: &str, user: &str, engine_name: &str) -> Self {
        Self {
            hosts: vec![host],
            database: database.to_owned(),
            user: user.to_owned(),
            password: None,
            schema: "pinseal".to_owned(),
            engine_name: engine_name.into(),
            tls: None,
            migrates: true,
            waiting_changes_max: 4_096,
            connect_timeout: Duration::from_secs(3),
            statement_timeout: Duration::from_secs(10),
            lease: Duration::from_secs(10),
            unreachable_after: Duration::from_secs(2),
            waits_for: Duration::from_secs(15),
        }
    }

    /// Checks what the types do not.
    pub(crate) fn check(&self) -> Result<(), PostgresOpenError> {
        if self.hosts.is_empty() {
            return Err(PostgresOpenError::NoHost);
        }
        if self.tls.is_none()
            && let Some(host) = self.hosts.iter().find(|host| !host.is_loopback())
        {
            return Err(PostgresOpenError::WithoutTls { host: host.to_string() });
        }
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        let has_digit_first = self.schema.starts_with(|first: char| first.is_ascii_digit());
        let has_length = (1..=SCHEMA_BYTES_MAX).contains(&self.schema.len());
        if !has_length || has_digit_first || !self.schema.bytes().all(is_plain) {
            return Err(PostgresOpenError::Schema { schema: self.schema.clone() });
        }
        Ok(())
    }

    /// Checks that an engine may have the name: the chain of [`OPERATOR`] is only read.
    pub(crate) fn check_engine_name(&self) -> Result<(), PostgresOpenError> {
        if &*self.engine_name == OPERATOR { Err(PostgresOpenError::EngineName) } else { Ok(()) }
    }

    /// The database, for messages to people.
    pub(crate) fn place(&self) -> String {
        let hosts: Vec<_> = self.hosts.iter().map(ToString::to_string).collect();
        format!("postgresql://{}/{} (schema {})", hosts.join(","), self.database, self.schema)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_or_an_address_with_a_port() {
        for text in ["db.internal:5432", "127.0.0.1:1", "[::1]:65535"] {
            assert_eq!(text.parse::<DatabaseHost>().unwrap().to_string(), text);
        }
        for text in ["", "db", ":5432", "db:", "db:0", "db:65536", "::1:5432", "[db]:5432", "[]:1", "[::1]", "a:b:1"] {
            assert!(text.parse::<DatabaseHost>().is_err(), "{text}");
        }
    }
}
