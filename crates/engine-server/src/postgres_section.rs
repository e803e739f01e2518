//! The section `[store.postgres]` of an engine's configuration.

use std::{path::PathBuf, time::Duration};

use config::{ConfigError, SecretSource, within};
use serde::Deserialize;
use store_postgres::{DatabaseHost, DatabaseTls, PostgresConfig};

/// The longest name of an engine, in bytes.
const ENGINE_NAME_BYTES_MAX: usize = 64;

/// `[store.postgres]`, as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PostgresSection {
    /// The servers, `HOST:PORT`; an IPv6 address has brackets.
    hosts: Vec<String>,
    #[serde(default = "pinseal")]
    database: String,
    #[serde(default = "pinseal")]
    user: String,
    password: Option<SecretSource>,
    #[serde(default = "pinseal")]
    schema: String,
    /// Unique on the database.
    engine_name: String,
    /// Whether the engine makes and migrates the tables.
    #[serde(default = "migrates")]
    migrate: bool,
    connect_timeout_milliseconds: Option<u64>,
    statement_timeout_milliseconds: Option<u64>,
    lease_seconds: Option<u64>,
    unreachable_after_milliseconds: Option<u64>,
    background_wait_seconds: Option<u64>,
    tls: Option<TlsSection>,
}

/// `[store.postgres.tls]`, as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsSection {
    roots: PathBuf,
    certificates: Option<PathBuf>,
    private_key: Option<PathBuf>,
}

fn pinseal() -> String {
    "pinseal".to_owned()
}

fn migrates() -> bool {
    true
}

impl PostgresSection {
    /// The checked section, with the password read.
    ///
    /// # Errors
    /// There is no host, a host has no port, a number is out of its range, the engine's name is malformed, a certificate is
    /// without its key, or the password can't be read.
    pub(crate) fn config(self, waiting_changes_max: usize) -> Result<PostgresConfig, ConfigError> {
        let hosts: Result<Vec<DatabaseHost>, _> = self.hosts.iter().map(|host| host.parse()).collect();
        let hosts = hosts.map_err(|error| ConfigError::value("store.postgres.hosts", error))?;
        let Some(first) = hosts.first().cloned() else {
            return Err(ConfigError::value("store.postgres.hosts", "name at least one host"));
        };
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let name = &self.engine_name;
        if !(1..=ENGINE_NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(is_plain) {
            return Err(ConfigError::value(
                "store.postgres.engine_name",
                "is 1 to 64 letters, digits, \"-\", \"_\" and \".\"",
            ));
        }
        let defaults = PostgresConfig::new(first, &self.database, &self.user, name);
        let milliseconds = |key, value: Option<u64>, default, range| match value {
            Some(value) => within(key, value, range).map(Duration::from_millis),
            None => Ok(default),
        };
        let seconds = |key, value: Option<u64>, default, range| match value {
            Some(value) => within(key, value, range).map(Duration::from_secs),
            None => Ok(default),
        };
        Ok(PostgresConfig {
            hosts,
            password: self.password.map(|source| source.read()).transpose()?,
            schema: self.schema,
            tls: self.tls.map(TlsSection::config).transpose()?,
            migrates: self.migrate,
            waiting_changes_max,
            connect_timeout: milliseconds(
                "store.postgres.connect_timeout_milliseconds",
                self.connect_timeout_milliseconds,
                defaults.connect_timeout,
                100..=60_000,
            )?,
            statement_timeout: milliseconds(
                "store.postgres.statement_timeout_milliseconds",
                self.statement_timeout_milliseconds,
                defaults.statement_timeout,
                100..=60_000,
            )?,
            lease: seconds("store.postgres.lease_seconds", self.lease_seconds, defaults.lease, 2..=600)?,
            unreachable_after: milliseconds(
                "store.postgres.unreachable_after_milliseconds",
                self.unreachable_after_milliseconds,
                defaults.unreachable_after,
                100..=60_000,
            )?,
            waits_for: seconds(
                "store.postgres.background_wait_seconds",
                self.background_wait_seconds,
                defaults.waits_for,
                1..=600,
            )?,
            ..defaults
        })
    }
}

impl TlsSection {
    fn config(self) -> Result<DatabaseTls, ConfigError> {
        let Self { roots, certificates, private_key } = self;
        let client = match (certificates, private_key) {
            (Some(certificates), Some(private_key)) => Some((certificates, private_key)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(ConfigError::value("store.postgres.tls.private_key", "is set together with certificates"));
            }
            (None, Some(_)) => {
                return Err(ConfigError::value("store.postgres.tls.certificates", "is set together with private_key"));
            }
        };
        Ok(DatabaseTls { roots, client })
    }
}
