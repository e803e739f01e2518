//! Counts the PIN records and live controls under a key: in the stores of stopped engines, and by running engines. A
//! missing store or engine is an error, never a count of zero.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use hsm::{KeyStore, KeyUsage, PinRecord, RecordsKept, SealedKey};
use thiserror::Error;

use super::action::{CountSource, EngineCount, UseCount};
use audit::chain::Checkpoint;
use config::ConfigError;
use engine_client::{EngineTls, OperatorError};
use store::{Store, StoreError, StoreOpenError, engine_name};

/// The cards whose records are read at a time.
const PAGE_CARDS: usize = 4_096;
/// The audit entries that are read at a time.
const PAGE_ENTRIES: usize = 4_096;

/// The stores and engines in which the use of a storage or seal key is counted.
pub struct RecordSources<'a> {
    /// The store directories of stopped engines.
    pub stores: &'a [PathBuf],
    /// The addresses of running engines, such as `127.0.0.1:50051` or `https://engine.internal:50051`.
    pub engines: &'a [String],
    /// The client certificate for the engines; without one they are reached in plain text on this machine.
    pub tls: &'a EngineTls,
    /// The configuration of the engine or boundary.
    pub config: &'a Path,
    /// The store that the configuration names. This store is counted too.
    pub configured_store: ConfiguredStore<'a>,
    /// Opens a copy of the store in a directory.
    pub open_store_copy: fn(&Path) -> Result<Arc<dyn Store>, StoreOpenError>,
}

/// The store of a configuration.
#[derive(Clone, Copy)]
pub enum ConfiguredStore<'a> {
    /// The directory of an embedded store.
    Directory(&'a Path),
    /// A database that engines share: opens the chain of each engine to read.
    Database(&'a OpenDatabase<'a>),
}

/// Opens a database to read, on the runtime of the call.
pub type OpenDatabase<'a> = dyn Fn() -> OpeningDatabase<'a> + 'a;

/// The answer of an [`OpenDatabase`].
pub type OpeningDatabase<'a> = Pin<Box<dyn Future<Output = Result<Vec<EngineStore>, StoreOpenError>> + 'a>>;

/// The rows of a database and the chain of one of its engines.
pub struct EngineStore {
    /// The store, opened to read.
    pub store: Arc<dyn Store>,
    /// Whether a process has registered the engine and not ended its registration.
    pub registered: bool,
}

/// The key whose records are counted.
struct Wanted<'a> {
    /// Every key of the vault or token. A running engine must use the newest of this usage.
    keys: &'a KeyStore,
    name: &'a KeyUsage,
    version: u16,
}

/// The counts so far.
#[derive(Default)]
struct Counted {
    kept: RecordsKept,
    asked: Vec<EngineCount>,
    /// The names of engines that the audit chains and the configuration name.
    known: BTreeSet<String>,
}

/// The count of one store or running engine.
struct Answer {
    kept: RecordsKept,
    engine: String,
    known: BTreeSet<String>,
}

impl RecordSources<'_> {
    /// Counts the PIN records and live controls under a key in each store and each running engine.
    ///
    /// Returns the total, and per source the entry for the transcript.
    ///
    /// # Errors
    /// A store is missing, in use or not readable; an engine does not answer, or does not use the newest key yet.
    pub fn count(
        &self,
        keys: &KeyStore,
        name: &KeyUsage,
        version: u16,
    ) -> Result<(RecordsKept, UseCount), RecordsError> {
        let wanted = Wanted { keys, name, version };
        let mut counted = Counted::default();
        for directory in self.stores {
            let answer = self.in_store(directory, &wanted)?;
            counted.take(CountSource::Store(directory.display().to_string()), answer, &wanted);
        }
        for address in self.engines {
            let answer = by_engine(address, self.tls, &wanted)?;
            counted.take(CountSource::Engine(address.clone()), answer, &wanted);
        }
        match self.configured_store {
            ConfiguredStore::Directory(directory) => self.count_configured(directory, &mut counted, &wanted)?,
            ConfiguredStore::Database(open) => count_database(open, &mut counted, &wanted)?,
        }
        let Counted { kept, asked, known } = counted;
        let is_asked = |engine: &String| asked.iter().any(|asked| asked.engine == *engine);
        let not_asked = known.into_iter().filter(|engine| !is_asked(engine)).collect();
        Ok((kept, UseCount::Count { asked, not_asked }))
    }

    /// Counts in the store of the configuration too. Where others are named, a running engine on it stands among the known.
    /// So does a store that is not there, where the file may be a boundary's own; an engine's store must be there.
    fn count_configured(
        &self,
        directory: &Path,
        counted: &mut Counted,
        wanted: &Wanted<'_>,
    ) -> Result<(), RecordsError> {
        let directory = std::path::absolute(directory)?;
        if counted.has_read(&directory) {
            return Ok(());
        }
        match self.in_store(&directory, wanted) {
            Err(RecordsError::NoStore { path, key }) if !counted.asked.is_empty() => {
                if hsm_config::has_engine_keys(self.config)? {
                    return Err(RecordsError::NoConfiguredStore { path, key });
                }
                counted.known.insert(engine_name(&directory));
            }
            Err(RecordsError::StoreInUse { .. }) if !counted.asked.is_empty() => {
                counted.known.insert(engine_name(&directory));
            }
            answer => counted.take(CountSource::Store(directory.display().to_string()), answer?, wanted),
        }
        Ok(())
    }

    /// In the store of a stopped engine, read from a copy, so that no byte of it changes. An engine that starts on it later uses
    /// the newest key.
    fn in_store(&self, directory: &Path, wanted: &Wanted<'_>) -> Result<Answer, RecordsError> {
        let no_store = || RecordsError::NoStore { path: directory.to_owned(), key: wanted.reference() };
        // A directory that can't be looked into, or holds something else, is an error of its own; an empty one is no store.
        let store = match fs::metadata(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(no_store()),
            Err(error) => return Err(RecordsError::File { path: directory.to_owned(), error }),
            Ok(_) => (self.open_store_copy)(directory),
        };
        let store = store.map_err(|error| match error {
            StoreOpenError::Absent { .. } => no_store(),
            StoreOpenError::Foreign { path } => RecordsError::ForeignStore { path, key: wanted.reference() },
            StoreOpenError::Locked { path } => RecordsError::StoreInUse { path },
            error => error.into(),
        })?;
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        runtime.block_on(count_in(&*store))?.ok_or_else(no_store)
    }
}

impl Wanted<'_> {
    fn reference(&self) -> String {
        format!("{}/{}", self.name, self.version)
    }
}

impl Counted {
    /// Whether this directory was read. An engine's name does not identify a store: clones and containers share host
    /// names and paths.
    fn has_read(&self, directory: &Path) -> bool {
        let resolved = |path: &Path| fs::canonicalize(path).ok();
        let read = |asked: &EngineCount| match &asked.source {
            CountSource::Store(read) => resolved(Path::new(read)) == resolved(directory),
            CountSource::Engine(_) | CountSource::Database(_) => false,
        };
        directory.exists() && self.asked.iter().any(read)
    }

    fn take(&mut self, source: CountSource, answer: Answer, wanted: &Wanted<'_>) {
        let records = answer.kept.records_under(wanted.name, wanted.version);
        let controls = answer.kept.controls_under(wanted.name, wanted.version);
        self.asked.push(EngineCount { source, engine: answer.engine, records, controls });
        self.known.extend(answer.known);
        self.kept.add(&answer.kept);
    }
}

/// The use of keys in an open store; `None` where no engine ever ran on it: an engine's first act is an audit event.
async fn count_in(store: &dyn Store) -> Result<Option<Answer>, RecordsError> {
    if store.checkpoint().await? == Checkpoint::EMPTY {
        return Ok(None);
    }
    let (kept, known) = (kept_in(store).await?, engines_of(store).await?);
    Ok(Some(Answer { kept, engine: store.engine_name().to_string(), known }))
}

/// The PIN records and live controls of a store.
async fn kept_in(store: &dyn Store) -> Result<RecordsKept, RecordsError> {
    let mut kept = RecordsKept::default();
    let mut after = None;
    loop {
        let page = store.scan_pins(after.as_ref(), PAGE_CARDS).await?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        for (_, pin) in &page {
            kept.count(&PinRecord::from_bytes(&pin.record).map_err(|_| RecordsError::Record)?);
        }
    }
    for tzpk in store.live_tzpks().await? {
        kept.count_sealed(&SealedKey::from_bytes(&tzpk.0).map_err(|_| RecordsError::Record)?);
    }
    Ok(kept)
}

/// The engines that started on the chain of a store.
async fn engines_of(store: &dyn Store) -> Result<BTreeSet<String>, RecordsError> {
    let mut known: BTreeSet<_> = store.archived().await?.into_iter().flat_map(|archived| archived.engines).collect();
    let mut from = 1;
    loop {
        let page = store.audit(from, PAGE_ENTRIES).await?;
        let Some(last) = page.last() else { return Ok(known) };
        from = last.sequence.saturating_add(1);
        known.extend(page.iter().filter_map(|entry| entry.event.body.started_engine().map(str::to_owned)));
    }
}

/// In the database of the configuration, whose engines may run. The database itself refuses to retire a storage key that a
/// registered engine may use. It does not know seal keys, so each registered engine must be asked about one. An engine that
/// starts later uses the newest key.
fn count_database(open: &OpenDatabase<'_>, counted: &mut Counted, wanted: &Wanted<'_>) -> Result<(), RecordsError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let counts = runtime.block_on(async {
        let stores = open().await?;
        let Some(EngineStore { store: first, .. }) = stores.first() else { return Ok(None) };
        let name = |engine: &EngineStore| engine.store.engine_name().to_string();
        let names: Vec<_> = stores.iter().map(name).collect();
        let registered: Vec<_> = stores.iter().filter(|engine| engine.registered).map(name).collect();
        let kept = kept_in(&**first).await?;
        let mut known = BTreeSet::new();
        for EngineStore { store, .. } in &stores {
            known.extend(engines_of(&**store).await?);
        }
        let place = first.place().to_owned();
        Ok::<_, RecordsError>(Some((place, names, registered, Answer { kept, engine: String::new(), known })))
    })?;
    let Some((place, names, registered, mut answer)) = counts else {
        return Err(RecordsError::NoDatabaseEngine { key: wanted.reference() });
    };
    let is_asked = |name: &String| counted.asked.iter().any(|asked| asked.engine == *name);
    let unasked: Vec<_> = registered.into_iter().filter(|name| !is_asked(name)).collect();
    if wanted.name.seals() && !unasked.is_empty() {
        return Err(RecordsError::NotAsked { engines: unasked.join(", "), key: wanted.reference() });
    }
    answer.known.retain(|name| !names.contains(name));
    answer.engine = names.join(", ");
    counted.take(CountSource::Database(place), answer, wanted);
    Ok(())
}

/// By a running engine, which must use the newest key of the name: it would go on encrypting or sealing under an older one.
/// Its keys are asked for first, so that whatever is under an older key is there when it counts.
fn by_engine(address: &str, tls: &EngineTls, wanted: &Wanted<'_>) -> Result<Answer, RecordsError> {
    let asked = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut engine = engine_client::RunningEngine::at(address, tls)?;
        let in_use = engine.keys().await?;
        uses_newest(wanted, address, &in_use)?;
        Ok::<_, RecordsError>(engine.records().await?)
    });
    let records = asked?;
    if records.unreadable_count > 0 {
        return Err(RecordsError::Record);
    }
    let kept = kept_of(&records)?;
    Ok(Answer { kept, engine: records.engine, known: records.audit_engines.into_iter().collect() })
}

fn uses_newest(wanted: &Wanted<'_>, address: &str, in_use: &[proto::Key]) -> Result<(), RecordsError> {
    let Wanted { keys, name, .. } = wanted;
    let active = keys.keys().filter(|key| key.name == **name && key.state() == hsm::KeyState::Active);
    let Some(newest) = active.max_by_key(|key| key.version) else { return Ok(()) };
    let (usage, version) = (newest.name.to_string(), u32::from(newest.version));
    // A key that may not encrypt in its token has no KCV there.
    let has_kcv = |kcv: &[u8]| kcv.is_empty() || newest.check_value.is_some_and(|value| value.as_bytes() == kcv);
    if in_use.iter().any(|key| key.usage == usage && key.version == version && has_kcv(&key.kcv)) {
        return Ok(());
    }
    Err(RecordsError::OtherEngine { engine: address.to_owned(), key: newest.reference() })
}

/// The count of a running engine. A kind that this release does not know is an error.
fn kept_of(records: &proto::CountRecordsResponse) -> Result<RecordsKept, RecordsError> {
    use proto::{BoundaryLevel, StorageFormat};

    let mut kept = RecordsKept::default();
    for count in &records.record_groups {
        let form = match count.format() {
            StorageFormat::Wrapped => hsm::StorageFormat::Wrapped,
            StorageFormat::Iso4 => hsm::StorageFormat::Iso4,
            StorageFormat::Iso3 => hsm::StorageFormat::Iso3,
            StorageFormat::Iso0 => hsm::StorageFormat::Iso0,
            StorageFormat::OneWay => hsm::StorageFormat::OneWay,
            StorageFormat::Unspecified => return Err(RecordsError::Record),
        };
        let level = match count.level() {
            BoundaryLevel::Token => hsm::BoundaryLevel::Token,
            BoundaryLevel::Host => hsm::BoundaryLevel::Host,
            BoundaryLevel::Unspecified => return Err(RecordsError::Record),
        };
        let version = u16::try_from(count.storage_key_version).map_err(|_| RecordsError::Record)?;
        kept.count_many(form, level, version, count.record_count);
    }
    for used in &records.seal_key_uses {
        let version = u16::try_from(used.seal_key_version).map_err(|_| RecordsError::Record)?;
        kept.count_many_sealed(version, used.control_count);
    }
    Ok(kept)
}

/// The count failed: the key stays as it was.
#[derive(Debug, Error)]
pub enum RecordsError {
    /// The configuration can't be read, or is malformed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store of a stopped engine can't be copied or opened.
    #[error(transparent)]
    StoreOpen(#[from] StoreOpenError),
    /// The store can't be read.
    #[error(transparent)]
    Kept(#[from] StoreError),
    /// A record has a format that this release can't read.
    #[error("a PIN record or control in an engine's store can't be read by this release: nothing was done")]
    Record,
    /// The directory that the configuration or --store names has no store.
    #[error(
        "{} is no store, so nothing was counted for {key}: name the store of each stopped engine by --store DIRECTORY and \
         each running engine by --engine ADDRESS; if no engine has ever used the key, say --no-store",
        path.display()
    )]
    NoStore {
        /// The path of the directory.
        path: PathBuf,
        /// For example `storage/1`.
        key: String,
    },
    /// Other stores or engines were counted, and the directory of the configuration has no store.
    #[error(
        "{} is no store, and --config names it: nothing was counted for {key}; mount that store, or give the \
         configuration that names it where it is now; where an engine elsewhere uses the key, give the boundary's \
         own configuration, which has no setting of an engine",
        path.display()
    )]
    NoConfiguredStore {
        /// The path of the directory.
        path: PathBuf,
        /// For example `storage/1`.
        key: String,
    },
    /// The database of the configuration has no engine.
    #[error(
        "no engine has registered on the database of --config, so nothing was counted for {key}: name the database of the \
         engines; if no engine has ever used the key, say --no-store with a configuration without [store.postgres]"
    )]
    NoDatabaseEngine {
        /// For example `storage/1`.
        key: String,
    },
    /// Engines of the database were not asked whether they seal under the key.
    #[error(
        "the engines {engines} may seal under {key}: start each and name it by --engine ADDRESS, so that it confirms that it \
         has the newest key"
    )]
    NotAsked {
        /// The names of the engines.
        engines: String,
        /// For example `seal/1`.
        key: String,
    },
    /// The directory that the configuration or --store names holds other files.
    #[error(
        "{} is not empty and not a Pinseal store, so nothing was counted for {key}: mount or restore the store, or name \
         its directory",
        path.display()
    )]
    ForeignStore {
        /// The path of the directory.
        path: PathBuf,
        /// For example `storage/1`.
        key: String,
    },
    /// A running engine has the store locked.
    #[error(
        "the store {} is in use by a running engine: name that engine by --engine ADDRESS, or stop it",
        path.display()
    )]
    StoreInUse {
        /// The path of the directory.
        path: PathBuf,
    },
    /// A running engine does not answer, or can't count.
    #[error(transparent)]
    Engine(#[from] OperatorError),
    /// The engine encrypts under an older key, or under a key of another vault.
    #[error("the engine {engine} does not have {key} in use: send it SIGHUP, or restart it, to reload its keys")]
    OtherEngine {
        /// The address of the engine.
        engine: String,
        /// The newest active key of this usage.
        key: String,
    },
    /// A file or directory can't be read.
    #[error("{}: {error}", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        error: io::Error,
    },
    /// The operating system refused a runtime or the working directory.
    #[error("{0}")]
    Io(#[from] io::Error),
}

#[cfg(test)]
mod configured_tests {
    use super::*;

    /// Counts in the store of a configuration with these lines, where the store of the engine `host:elsewhere` was read.
    fn counted_beside(data: &Path, lines: &str) -> Result<Vec<String>, RecordsError> {
        let config = data.join("config.toml");
        fs::write(&config, format!("data_directory = {data:?}\n{lines}\n")).unwrap();
        let source = CountSource::Store("/elsewhere".to_owned());
        let asked = vec![EngineCount { source, engine: "host:elsewhere".to_owned(), records: 0, controls: 0 }];
        let mut counted = Counted { asked, ..Counted::default() };
        let keys = {
            let vault = hsm::Vault::File { path: data.join("vault"), unlock: hsm::Unlock::Key([7; 32].into()) };
            let (_, wanted) = hsm_config::load_keys(&config).unwrap();
            KeyStore::open(hsm::Keys::Vault(vault), &wanted, 1).unwrap()
        };
        let wanted = Wanted { keys: &keys, name: &KeyUsage::Storage, version: 1 };
        let sources = RecordSources {
            stores: &[],
            engines: &[],
            tls: &EngineTls::default(),
            config: &config,
            configured_store: ConfiguredStore::Directory(&data.join("store")),
            open_store_copy: engine_server::open_store_copy,
        };
        sources.count_configured(&data.join("store"), &mut counted, &wanted)?;
        Ok(counted.known.into_iter().collect())
    }

    #[test]
    fn a_missing_configured_store_is_an_error() {
        let data = tempfile::tempdir().unwrap();
        let store = data.path().join("store");
        let elsewhere = format!("[store]\ndirectory = {store:?}");
        for engines in [&*elsewhere, "listen = \"127.0.0.1:0\"", "[control]\nlifetime_seconds = 9"] {
            let refused = counted_beside(data.path(), engines).unwrap_err();
            assert!(matches!(refused, RecordsError::NoConfiguredStore { .. }), "{refused}");
        }
        assert_eq!(counted_beside(data.path(), "workers = 1").unwrap(), [engine_name(&store)]);
        // The mount point of a volume that is not mounted.
        fs::create_dir(&store).unwrap();
        let refused = counted_beside(data.path(), &elsewhere).unwrap_err();
        assert!(matches!(refused, RecordsError::NoConfiguredStore { .. }), "{refused}");
        fs::write(store.join("a file"), "").unwrap();
        for lines in ["workers = 1", &*elsewhere] {
            let refused = counted_beside(data.path(), lines).unwrap_err();
            assert!(matches!(refused, RecordsError::ForeignStore { .. }), "{refused}");
        }
    }

    #[test]
    fn an_engine_of_the_same_name_is_another_store() {
        let data = tempfile::tempdir().unwrap();
        let (store, link) = (data.path().join("store"), data.path().join("link"));
        fs::create_dir(&store).unwrap();
        std::os::unix::fs::symlink(&store, &link).unwrap();
        let by = |source| {
            let asked = vec![EngineCount { source, engine: engine_name(&store), records: 0, controls: 0 }];
            Counted { asked, ..Counted::default() }.has_read(&store)
        };
        assert!(!by(CountSource::Engine("127.0.0.1:50051".to_owned())));
        assert!(!by(CountSource::Store(data.path().display().to_string())));
        assert!(by(CountSource::Store(link.display().to_string())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{BoundaryLevel, CountRecordsResponse, RecordGroup, SealKeyUse, StorageFormat};

    fn count(form: StorageFormat, level: BoundaryLevel, storage_key_version: u32) -> CountRecordsResponse {
        let group = RecordGroup { format: form.into(), level: level.into(), storage_key_version, record_count: 1 };
        CountRecordsResponse { record_groups: vec![group], ..CountRecordsResponse::default() }
    }

    #[test]
    fn counts_of_unknown_kinds_are_rejected() {
        assert!(kept_of(&count(StorageFormat::Iso4, BoundaryLevel::Host, 1)).is_ok());
        let seal_key_uses = vec![SealKeyUse { seal_key_version: 65_536, control_count: 1 }];
        for unknown in [
            count(StorageFormat::Unspecified, BoundaryLevel::Host, 1),
            count(StorageFormat::Iso4, BoundaryLevel::Unspecified, 1),
            count(StorageFormat::Iso4, BoundaryLevel::Host, 65_536),
            CountRecordsResponse { seal_key_uses, ..CountRecordsResponse::default() },
        ] {
            assert!(matches!(kept_of(&unknown), Err(RecordsError::Record)));
        }
    }
}
