//! The section `[store]` of an engine's configuration, and the store that it names.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use config::{ConfigError, DATA_DIRECTORY, KnownKey, read_file, within};
use serde::Deserialize;
use store::{Store, StoreOpenError};
use store_embedded::{Embedded, EmbeddedConfig};
use store_postgres::{Postgres, PostgresConfig};

use super::postgres_section::PostgresSection;

/// The changes that may wait for the store at a time.
const WAITING_CHANGES_MAX: usize = 4_096;
/// Mebibytes of memory for the embedded store's buffers.
const MEMORY_MEBIBYTES_MAX: u64 = 64;
/// Mebibytes of free space below which the embedded store opens no control.
const RESERVE_MEBIBYTES: u64 = 256;

/// The checked section `[store]`: the store that an engine opens.
pub enum StoreConfig {
    /// Files in a directory, of one engine.
    Embedded(EmbeddedConfig),
    /// A PostgreSQL database, which several engines share.
    Postgres(Box<PostgresConfig>),
}

impl StoreConfig {
    /// Reads `[store]` of an engine's configuration, and the password of the database; without a path, the defaults.
    ///
    /// # Errors
    /// The file can't be read, is not TOML, or `[store]` has an unknown key, a number out of its range, or a key of the
    /// embedded store beside `[store.postgres]`; the password can't be read.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = read_file::<EngineFile>(path)?;
        let StoreSection { directory, waiting_changes_max, memory_mebibytes_max, reserve_mebibytes, postgres } =
            file.store;
        let waiting_changes_max = waiting_changes_max.unwrap_or(WAITING_CHANGES_MAX);
        let waiting_changes_max = within("store.waiting_changes_max", waiting_changes_max, 16..=1_000_000)?;
        if let Some(postgres) = postgres {
            let embedded_keys = [
                ("store.directory", directory.is_some()),
                ("store.memory_mebibytes_max", memory_mebibytes_max.is_some()),
                ("store.reserve_mebibytes", reserve_mebibytes.is_some()),
            ];
            if let Some((key, _)) = embedded_keys.into_iter().find(|(_, is_set)| *is_set) {
                return Err(ConfigError::value(key, "is of the embedded store: remove it, or remove [store.postgres]"));
            }
            return Ok(Self::Postgres(Box::new(postgres.config(waiting_changes_max)?)));
        }
        let memory = memory_mebibytes_max.unwrap_or(MEMORY_MEBIBYTES_MAX);
        let memory = within("store.memory_mebibytes_max", memory, 4..=65_536)?;
        let reserve = reserve_mebibytes.unwrap_or(RESERVE_MEBIBYTES);
        let reserve = within("store.reserve_mebibytes", reserve, 0..=1_048_576)?;
        Ok(Self::Embedded(EmbeddedConfig {
            waiting_changes_max,
            memory_bytes_max: memory.saturating_mul(1 << 20),
            reserve_bytes: reserve.saturating_mul(1 << 20),
            ..EmbeddedConfig::new(directory.unwrap_or_else(|| file.data_directory.join("store")))
        }))
    }

    /// The keys of a configuration file that the store reads.
    pub fn known_keys() -> Vec<KnownKey> {
        config::known_keys::<EngineFile>()
    }

    /// The defaults, with the store in `data_directory`.
    pub fn embedded(data_directory: &Path) -> Self {
        Self::Embedded(EmbeddedConfig::new(data_directory.join("store")))
    }

    /// Opens the store, or makes one.
    ///
    /// # Errors
    /// Of an embedded store: it is open in another process, other files are in its directory, it can't be read, or the disk is
    /// full. Of a database: it can't be reached, has tables of another release, or the engine's name is in use.
    pub async fn open(self) -> Result<Arc<dyn Store>, StoreOpenError> {
        match self {
            Self::Embedded(config) => Ok(Arc::new(Embedded::open(&config)?)),
            Self::Postgres(config) => {
                let opened = Postgres::open(&config).await;
                Ok(Arc::new(opened.map_err(|error| StoreOpenError::Database(error.into()))?))
            }
        }
    }
}

/// Opens the store that an engine's configuration names; without a path, the store of the defaults.
///
/// # Errors
/// Those of [`StoreConfig::load`] and [`StoreConfig::open`].
pub async fn open_store(config: Option<&Path>) -> Result<Arc<dyn Store>, StoreOpenError> {
    StoreConfig::load(config)?.open().await
}

/// Opens the store of a stopped engine to read it, from a copy in `TMPDIR` that is removed when the store is dropped: no
/// byte of the store changes, and what is written to the copy is lost.
///
/// # Errors
/// There is no store in the directory, another process has the store open, or the store can't be copied or read.
pub fn open_store_copy(directory: &Path) -> Result<Arc<dyn Store>, StoreOpenError> {
    Ok(Arc::new(Embedded::open_copy(directory)?))
}

/// What says where the store of an engine is. The engine reads the rest of its file.
#[derive(Deserialize)]
#[serde(default)]
struct EngineFile {
    data_directory: PathBuf,
    store: StoreSection,
}

/// `[store]`, as written.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct StoreSection {
    /// The directory of the embedded store; `{data_directory}/store` by default.
    directory: Option<PathBuf>,
    /// Changes that may wait for the store at a time.
    waiting_changes_max: Option<usize>,
    /// Mebibytes of memory for the embedded store's buffers, live controls not counted.
    memory_mebibytes_max: Option<u64>,
    /// Mebibytes of free space below which the embedded store opens no control.
    reserve_mebibytes: Option<u64>,
    /// The database in the place of an embedded store.
    postgres: Option<PostgresSection>,
}

impl Default for EngineFile {
    fn default() -> Self {
        Self { data_directory: DATA_DIRECTORY.into(), store: StoreSection::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn loaded(text: &str) -> Result<StoreConfig, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("engine.toml");
        std::fs::write(&path, text).unwrap();
        StoreConfig::load(Some(&path)).map_err(|error| error.to_string())
    }

    fn refusal(text: &str) -> String {
        loaded(text).err().unwrap()
    }

    fn embedded(config: StoreConfig) -> EmbeddedConfig {
        let StoreConfig::Embedded(config) = config else { panic!("a database") };
        config
    }

    fn postgres(text: &str) -> PostgresConfig {
        let StoreConfig::Postgres(config) = loaded(text).unwrap() else { panic!("an embedded store") };
        *config
    }

    #[test]
    fn an_empty_file_and_the_example_are_the_defaults() {
        let defaults = embedded(StoreConfig::embedded(Path::new(DATA_DIRECTORY)));
        assert_eq!(embedded(loaded("").unwrap()), defaults);
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/engine.toml");
        let example = embedded(StoreConfig::load(Some(&example)).unwrap());
        assert_eq!(EmbeddedConfig { directory: defaults.directory.clone(), ..example }, defaults);
    }

    #[test]
    fn an_unknown_key_and_a_number_out_of_its_range_are_named() {
        assert!(refusal("[store]\ndirectori = \"x\"").contains("unknown field `directori`"));
        let refused = refusal("[store]\nwaiting_changes_max = 1");
        assert_eq!(refused, "store.waiting_changes_max: 1 is not within 16 to 1000000");
        let refused = refusal("[store]\nreserve_mebibytes = 1048577");
        assert_eq!(refused, "store.reserve_mebibytes: 1048577 is not within 0 to 1048576");
        let refused = refusal("[store.postgres]\nhosts = [\"localhost:1\"]\nengine_name = \"a\"\nlease_seconds = 1");
        assert_eq!(refused, "store.postgres.lease_seconds: 1 is not within 2 to 600");
    }

    #[test]
    fn the_example_of_a_database_has_the_defaults() {
        let example = include_str!("../../../examples/engine.toml");
        let lines = example.lines().skip_while(|line| *line != "#[store.postgres]");
        let lines = lines.take_while(|line| line.starts_with('#')).filter_map(|line| line.strip_prefix('#'));
        let text: Vec<_> = lines.filter(|line| !line.starts_with(' ')).collect();
        let password = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&password, "a password").unwrap();
        let text = text.join("\n").replace("/etc/pinseal/db-password", password.path().to_str().unwrap());
        let config = postgres(&text);
        let host = config.hosts.first().cloned().unwrap();
        let defaults = PostgresConfig::new(host, "pinseal", "pinseal", "engine-1");
        assert_eq!(config.hosts.len(), 3);
        assert_eq!((&*config.database, &*config.user, &*config.schema), ("pinseal", "pinseal", "pinseal"));
        assert_eq!((&*config.engine_name, config.migrates), (&*defaults.engine_name, defaults.migrates));
        assert_eq!(config.password.unwrap().as_str(), "a password");
        assert!(config.tls.is_some());
        let times = |config: &PostgresConfig| {
            let PostgresConfig { connect_timeout, statement_timeout, lease, unreachable_after, waits_for, .. } = config;
            [*connect_timeout, *statement_timeout, *lease, *unreachable_after, *waits_for]
        };
        let config = postgres(&text);
        assert_eq!(times(&config), times(&defaults));
        assert_eq!(config.waiting_changes_max, defaults.waiting_changes_max);
        let least = postgres("[store.postgres]\nhosts = [\"[::1]:5432\"]\nengine_name = \"engine-1\"");
        assert_eq!((times(&least), least.waiting_changes_max), (times(&defaults), defaults.waiting_changes_max));
        assert_eq!((&*least.database, &*least.user, &*least.schema), ("pinseal", "pinseal", "pinseal"));
        assert!(least.migrates && least.password.is_none() && least.tls.is_none());
    }

    #[test]
    fn the_keys_of_a_database_are_read() {
        let config = postgres(
            "[store]\nwaiting_changes_max = 100\n[store.postgres]\nhosts = [\"db.internal:5433\"]\ndatabase = \"d\"\n\
             user = \"u\"\nschema = \"s\"\nengine_name = \"e\"\nmigrate = false\nconnect_timeout_milliseconds = 100\n\
             statement_timeout_milliseconds = 200\nlease_seconds = 3\nunreachable_after_milliseconds = 400\n\
             background_wait_seconds = 5\n[store.postgres.tls]\nroots = \"r\"\ncertificates = \"c\"\nprivate_key = \"k\"",
        );
        assert_eq!(config.hosts[0].to_string(), "db.internal:5433");
        assert_eq!((&*config.database, &*config.user, &*config.schema, &*config.engine_name), ("d", "u", "s", "e"));
        assert_eq!((config.waiting_changes_max, config.migrates), (100, false));
        assert_eq!(config.connect_timeout, Duration::from_millis(100));
        assert_eq!(config.statement_timeout, Duration::from_millis(200));
        assert_eq!(config.lease, Duration::from_secs(3));
        assert_eq!(config.unreachable_after, Duration::from_millis(400));
        assert_eq!(config.waits_for, Duration::from_secs(5));
        let tls = config.tls.unwrap();
        assert_eq!((tls.roots, tls.client), ("r".into(), Some(("c".into(), "k".into()))));
    }

    #[test]
    fn a_mistake_in_the_section_of_a_database_is_named() {
        let with = |lines: &str| {
            refusal(&format!("[store.postgres]\nhosts = [\"localhost:1\"]\nengine_name = \"a\"\n{lines}"))
        };
        assert!(refusal("[store.postgres]\nengine_name = \"a\"").contains("missing field `hosts`"));
        assert!(refusal("[store.postgres]\nhosts = []\nengine_name = \"a\"").starts_with("store.postgres.hosts: "));
        let refused = refusal("[store.postgres]\nhosts = [\"localhost\"]\nengine_name = \"a\"");
        assert_eq!(refused, "store.postgres.hosts: \"localhost\" is not a host with a port: write HOST:PORT");
        assert!(with("engine_nam = 1").contains("unknown field `engine_nam`"));
        let refused = with("[store.postgres.tls]\nroots = \"r\"\ncertificates = \"c\"");
        assert_eq!(refused, "store.postgres.tls.private_key: is set together with certificates");
        let refused =
            refusal("[store]\ndirectory = \"d\"\n[store.postgres]\nhosts = [\"localhost:1\"]\nengine_name = \"a\"");
        assert_eq!(refused, "store.directory: is of the embedded store: remove it, or remove [store.postgres]");
        let refused = refusal("[store.postgres]\nhosts = [\"localhost:1\"]\nengine_name = \"\"");
        assert_eq!(refused, "store.postgres.engine_name: is 1 to 64 letters, digits, \"-\", \"_\" and \".\"");
    }
}
