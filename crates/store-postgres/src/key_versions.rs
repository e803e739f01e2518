//! The storage key versions that all engines share (R2, R10).
//!
//! Invariant: each registered engine that has reported its keys has the active version of each kind, and each version above the
//! retired one that a record was under at its report. From its report on, records are written under the active version alone, or
//! by the engine itself while no other is registered. So every engine opens every record.

use std::fmt::Display;

use tokio_postgres::{Row, types::ToSql};
use uuid::Uuid;

use super::{
    PostgresConfig, PostgresOpenError,
    connection::{Connection, QueryError, column},
    migration::lock_version,
    operator_chain::record,
    sql,
    tls::Tls,
};
use audit::entry::{Body, RetiredStorageKeys, StorageKeyVersions};
use domain::storage_key::{KeyWindow, LoadedKeys, MaxKeyVersions, MinKeyVersions, RecordKey, StorageKeyKind};
use store::StorageKeyError;
use store::codec::kind_code;

/// A version of each kind, in the order of the columns.
pub type Versions = [u16; 4];

/// The kinds in the order of the columns.
pub const KINDS: [StorageKeyKind; 4] =
    [StorageKeyKind::Wrapped, StorageKeyKind::Iso4, StorageKeyKind::Tdes, StorageKeyKind::OneWay];

/// The row of the key versions, locked.
#[derive(Clone)]
pub(crate) struct KeyVersions {
    /// Whether an engine has reported keys.
    reported: bool,
    pub(crate) card_reference_key: Option<Vec<u8>>,
    pub(crate) min: Versions,
    pub(crate) active: Versions,
    pub(crate) retired: Versions,
    /// Every engine, locked.
    pub(crate) engines: Vec<EngineKeys>,
}

/// The keys of an engine.
#[derive(Clone)]
pub(crate) struct EngineKeys {
    pub(crate) name: String,
    pub(crate) incarnation: Uuid,
    pub(crate) registered: bool,
    /// The keys of the engine since its start; `None` before it reported them.
    pub(crate) loaded: Option<LoadedKeys>,
}

impl KeyVersions {
    /// Reads the rows of [`sql::KEY_VERSIONS_LOCK`] and [`sql::ENGINES_LOCK`].
    pub(crate) fn read(versions: &[Row], engines: &[Row]) -> Result<Self, QueryError> {
        let row = versions.first().ok_or_else(|| QueryError::Row("key_versions has no row".to_owned()))?;
        let engine = |row: &Row| {
            Ok(EngineKeys {
                name: column(row, 0)?,
                incarnation: column(row, 1)?,
                registered: column(row, 2)?,
                loaded: loaded_of(row, 3)?,
            })
        };
        Ok(Self {
            reported: column::<Option<&[u8]>>(row, 0)?.is_some(),
            card_reference_key: column(row, 1)?,
            min: versions_of(&column::<Vec<i32>>(row, 2)?)?,
            active: versions_of(&column::<Vec<i32>>(row, 3)?)?,
            retired: versions_of(&column::<Vec<i32>>(row, 4)?)?,
            engines: engines.iter().map(engine).collect::<Result<_, QueryError>>()?,
        })
    }

    /// Locks the version of the tables, and locks and reads both, within a transaction.
    pub(crate) async fn lock(connection: &Connection) -> Result<Self, QueryError> {
        lock_version(connection).await?;
        let versions = connection.query_text(sql::KEY_VERSIONS_LOCK, &[]).await?;
        let engines = connection.query_text(sql::ENGINES_LOCK, &[]).await?;
        Self::read(&versions, &engines)
    }

    /// Whether more than one engine is registered.
    pub(crate) fn is_shared(&self) -> bool {
        self.engines.iter().filter(|engine| engine.registered).count() > 1
    }

    /// R10, steps 2 and 4 in one transaction: activates the newest version of each kind that every engine has reported, and raises the
    /// minimum to them. The caller's UPDATE of every engine's row waits for each transaction that runs. An engine that has not
    /// reported yet is refused at its report if it lacks a version that is active by then (R2).
    pub(crate) fn raise(&mut self) {
        let reported: Vec<_> = self
            .engines
            .iter()
            .filter(|engine| engine.registered)
            .filter_map(|engine| engine.loaded.as_ref())
            .collect();
        let newest_common = KINDS.map(|kind| {
            let lists: Vec<_> = reported.iter().map(|loaded| loaded.versions(kind)).collect();
            let is_common = |version: &&u16| lists.iter().all(|list| list.contains(version));
            lists.first().and_then(|list| list.iter().rev().find(is_common)).copied().unwrap_or_default()
        });
        self.active = each(self.active, newest_common, u16::max);
        self.min = each(self.min, self.active, u16::max);
    }

    /// Raises after the registration of an engine has ended, and writes.
    pub(crate) async fn raise_without_engine(
        &mut self,
        connection: &Connection,
        audit_user: &str,
    ) -> Result<(), QueryError> {
        let before = self.clone();
        self.raise();
        // `record` may add the operator's row, which gets its window by the write.
        if (self.active, self.min) != (before.active, before.min) {
            record(connection, audit_user, Body::StorageKeysActivated(stamp_of(self.active))).await?;
        }
        self.write(connection).await
    }

    /// The active version of the first kind that an engine with these keys lacks.
    pub(crate) fn lacks_active(&self, loaded: &LoadedKeys) -> Option<u16> {
        let lacks = |(kind, active): &(StorageKeyKind, u16)| *active > 0 && !loaded.versions(*kind).contains(active);
        KINDS.into_iter().zip(self.active).find(lacks).map(|(_, active)| active)
    }

    /// R10, step 1: notes the keys of an engine, and raises. While another engine lacks the newest, records are written under older
    /// versions.
    ///
    /// # Errors
    /// R2: the engine lacks the active version.
    pub(crate) fn report(&mut self, engine: &str, loaded: &LoadedKeys) -> Result<(), StorageKeyError> {
        if let Some(active) = self.lacks_active(loaded) {
            return Err(StorageKeyError::EngineLacks { active });
        }
        for known in self.engines.iter_mut().filter(|known| known.name == engine) {
            known.loaded = Some(loaded.clone());
        }
        self.reported = true;
        self.raise();
        Ok(())
    }

    /// R2: refuses an engine that has a retired version: the version may be destroyed at any time.
    ///
    /// # Errors
    /// [`StorageKeyError::Retired`].
    pub(crate) fn check_retired(&self, loaded: &LoadedKeys) -> Result<(), StorageKeyError> {
        let oldest = |(kind, retired)| loaded.versions(kind).first().copied().filter(|oldest| *oldest <= retired);
        match KINDS.into_iter().zip(self.retired).find_map(oldest) {
            Some(version) => Err(StorageKeyError::Retired { version }),
            None => Ok(()),
        }
    }

    /// The event of an activation since `before`. One engine alone states its keys in its own events.
    pub(crate) fn activation_since(&self, before: &Self) -> Option<Body> {
        let is_new = self.is_shared() && self.reported && (self.active, self.min) != (before.active, before.min);
        is_new.then(|| Body::StorageKeysActivated(stamp_of(self.active)))
    }

    /// The window of every engine's row. One engine alone writes under any newer version.
    pub(crate) fn window(&self) -> (Vec<i32>, Vec<i32>) {
        let is_bounded = self.is_shared() && self.reported;
        (numbers(self.min), numbers(if is_bounded { self.active } else { [u16::MAX; 4] }))
    }

    /// Writes the row, and the window of every engine.
    pub(crate) async fn write(&self, connection: &Connection) -> Result<(), QueryError> {
        let (min, max) = self.window();
        let (active, retired) = (numbers(self.active), numbers(self.retired));
        let none = None::<&[u8]>;
        connection.execute_text(sql::KEY_VERSIONS, &[&none, &none, &min, &active, &retired]).await?;
        connection.execute_text(sql::ENGINES_WINDOW, &[&min, &max]).await?;
        Ok(())
    }
}

fn stamp_of([wrapped, iso_4, tdes, one_way]: Versions) -> StorageKeyVersions {
    StorageKeyVersions { wrapped, iso_4, tdes, one_way }
}

fn each(a: Versions, b: Versions, select: fn(u16, u16) -> u16) -> Versions {
    let mut result = a;
    for (place, other) in result.iter_mut().zip(b) {
        *place = select(*place, other);
    }
    result
}

/// The columns `loaded_kinds` and `loaded_versions`.
pub(crate) fn loaded_columns(loaded: &LoadedKeys) -> (Vec<i32>, Vec<i32>) {
    loaded.keys().iter().map(|key| (i32::from(kind_code(key.kind)), i32::from(key.version))).unzip()
}

/// Reads [`loaded_columns`] at a column and the next.
pub(crate) fn loaded_of(row: &Row, at: usize) -> Result<Option<LoadedKeys>, QueryError> {
    let columns: (Option<Vec<i32>>, Option<Vec<i32>>) = (column(row, at)?, column(row, at + 1)?);
    let (kinds, versions) = match columns {
        (None, None) => return Ok(None),
        (Some(kinds), Some(versions)) if kinds.len() == versions.len() => (kinds, versions),
        _ => return Err(malformed()),
    };
    let key = |(kind, version): (i32, i32)| {
        let kind = KINDS.into_iter().find(|known| i32::from(kind_code(*known)) == kind)?;
        Some(RecordKey { kind, version: u16::try_from(version).ok()? })
    };
    let loaded: Option<LoadedKeys> = kinds.into_iter().zip(versions).map(key).collect();
    loaded.map(Some).ok_or_else(malformed)
}

/// The versions above `retired` that an engine with these keys lacks: of each gap the kind, the version before and the one behind.
pub(crate) fn gaps(retired: Versions, loaded: &LoadedKeys) -> Vec<(StorageKeyKind, i32, i32)> {
    let mut gaps = Vec::new();
    for (kind, retired) in KINDS.into_iter().zip(retired) {
        let mut after = i32::from(retired);
        let versions = loaded.versions(kind).into_iter().map(i32::from).filter(|version| *version > i32::from(retired));
        for before in versions.chain([i32::MAX]) {
            if before - after > 1 {
                gaps.push((kind, after, before));
            }
            after = before;
        }
    }
    gaps
}

/// Versions as a column has them.
pub(crate) fn numbers(versions: Versions) -> Vec<i32> {
    versions.map(i32::from).to_vec()
}

pub(crate) fn versions_of(numbers: &[i32]) -> Result<Versions, QueryError> {
    let versions = numbers.iter().map(|number| u16::try_from(*number)).collect::<Result<Vec<_>, _>>().ok();
    let versions = versions.and_then(|versions| Versions::try_from(versions).ok());
    versions.ok_or_else(malformed)
}

fn malformed() -> QueryError {
    QueryError::Row("the versions of keys are malformed".to_owned())
}

/// The minimum versions as an array.
pub(crate) fn min_of(min: &MinKeyVersions) -> Versions {
    KINDS.map(|kind| min.of(kind))
}

/// The window of an engine's row.
pub(crate) fn window_of(min: &[i32], max: &[i32]) -> Result<KeyWindow, QueryError> {
    let ([wrapped, iso_4, tdes, one_way], max) = (versions_of(min)?, versions_of(max)?);
    let min = MinKeyVersions { wrapped, iso_4, tdes, one_way };
    let [wrapped, iso_4, tdes, one_way] = max;
    Ok(KeyWindow { min, max: MaxKeyVersions { wrapped, iso_4, tdes, one_way } })
}

/// What a retirement does with the PIN records under the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordsUnderKey {
    /// It is refused while there is one.
    Refuse,
    /// The operator gives up their PINs: one-way records, which no engine re-encrypts.
    GiveUp {
        /// The number of records that the operator has confirmed.
        confirmed: u64,
    },
}

/// What stands against a retirement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RetireError {
    /// Records may still be written under the version.
    #[error("records may still be written under version {version}: the lowest version in use is {min}")]
    InUse {
        /// The version to retire.
        version: u16,
        /// The lowest version that records are written under.
        min: u16,
    },
    /// Records exist under the version.
    #[error("PIN records are under version {version} or older: rotate first")]
    Records {
        /// The version to retire.
        version: u16,
    },
    /// More records would be given up than the operator has confirmed.
    #[error(
        "{found} PIN records are under version {version} or older, and {confirmed} were confirmed: retire the older versions first"
    )]
    MoreRecords {
        /// The version to retire.
        version: u16,
        /// The number of records.
        found: u64,
        /// The number that the operator has confirmed.
        confirmed: u64,
    },
    /// The database did not acknowledge the retirement. It may be repeated.
    #[error("the retirement was not acknowledged ({0}): try again, and destroy no key before it is")]
    Database(String),
}

fn unacknowledged(error: &dyn Display) -> RetireError {
    RetireError::Database(error.to_string())
}

/// R10, step 6: retires the storage keys of some kinds up to a version, all of them or none. Their keys may be destroyed after this
/// function has returned `Ok`, once no backup that may be restored has records under them. The event names `audit_user`.
/// Returns the number of records that are given up.
///
/// # Errors
/// Records exist or may be written under the version, or the commit was not acknowledged.
pub async fn retire(
    config: &PostgresConfig,
    kinds: &[StorageKeyKind],
    version: u16,
    records: RecordsUnderKey,
    audit_user: &str,
) -> Result<u64, RetireError> {
    let (connection, _) = connect(config).await.map_err(|error| unacknowledged(&error))?;
    let database = |error: QueryError| unacknowledged(&error);
    connection.begin().await.map_err(database)?;
    let mut versions = KeyVersions::lock(&connection).await.map_err(database)?;
    let (before, mut found) = (versions.retired, 0_u64);
    for ((kind, min), retired) in KINDS.into_iter().zip(versions.min).zip(&mut versions.retired) {
        if !kinds.contains(&kind) {
            continue;
        }
        if min <= version {
            return Err(RetireError::InUse { version, min });
        }
        // The records up to the retired version were given up before.
        found = found.saturating_add(count(&connection, kind, *retired, version, records).await.map_err(database)?);
        *retired = version.max(*retired);
    }
    match records {
        RecordsUnderKey::Refuse if found > 0 => return Err(RetireError::Records { version }),
        RecordsUnderKey::GiveUp { confirmed } if found > confirmed => {
            return Err(RetireError::MoreRecords { version, found, confirmed });
        }
        RecordsUnderKey::Refuse | RecordsUnderKey::GiveUp { .. } => {}
    }
    // The answer is of this transaction, whose acknowledged commit is on the standby: so is everything that it read.
    if versions.retired != before {
        let retired = RetiredStorageKeys { versions: stamp_of(versions.retired), abandoned_records: found };
        record(&connection, audit_user, Body::StorageKeysRetired(retired)).await.map_err(database)?;
        versions.write(&connection).await.map_err(database)?;
    }
    connection.commit().await.map_err(|error| unacknowledged(&error))?;
    Ok(found)
}

/// The number of records of a kind above `retired` and up to a version; where they are refused, whether there is one.
async fn count(
    connection: &Connection,
    kind: StorageKeyKind,
    retired: u16,
    version: u16,
    records: RecordsUnderKey,
) -> Result<u64, QueryError> {
    let [kind, after, before] = [kind_code(kind).into(), retired.into(), i32::from(version) + 1];
    let values: [&(dyn ToSql + Sync); 3] = [&kind, &after, &before];
    match records {
        RecordsUnderKey::Refuse => {
            let found = connection.query_text(sql::RECORD_BETWEEN, &values).await?;
            Ok(u64::from(!found.is_empty()))
        }
        RecordsUnderKey::GiveUp { .. } => {
            let counted = connection.query_text(sql::RECORDS_BETWEEN, &values).await?;
            let counted: i64 = counted.first().map(|row| column(row, 0)).transpose()?.unwrap_or(i64::MAX);
            Ok(u64::try_from(counted).unwrap_or(u64::MAX))
        }
    }
}

/// R10: deregisters an engine that has ended, so that it does not stand against a rotation. What it sent is fenced. Returns
/// whether the engine was registered and its lease had expired. The event names `audit_user`.
///
/// # Errors
/// The database can't be reached, or did not acknowledge the change.
pub async fn deregister(config: &PostgresConfig, engine: &str, audit_user: &str) -> Result<bool, PostgresOpenError> {
    let (connection, _) = connect(config).await?;
    let database = |error: QueryError| PostgresOpenError::database(config, &error);
    connection.begin().await.map_err(database)?;
    let mut versions = KeyVersions::lock(&connection).await.map_err(database)?;
    let fenced = connection.execute_text(sql::ENGINE_DEREGISTER_EXPIRED, &[&engine, &Uuid::new_v4()]).await;
    let fenced = fenced.map_err(database)? == 1;
    if fenced {
        versions.engines.iter_mut().filter(|known| known.name == engine).for_each(|known| known.registered = false);
        record(&connection, audit_user, Body::EngineDeregistered { engine: engine.into() }).await.map_err(database)?;
        versions.raise_without_engine(&connection, audit_user).await.map_err(database)?;
    }
    connection.commit().await.map_err(|error| PostgresOpenError::database(config, &error))?;
    Ok(fenced)
}

/// A connection of its own, for a command.
pub(crate) async fn connect(config: &PostgresConfig) -> Result<(Connection, Option<Tls>), PostgresOpenError> {
    config.check()?;
    let tls = config.tls.as_ref().map(Tls::load).transpose()?;
    let connected = Connection::open(config, tls.as_ref(), 0, &[]).await;
    Ok((connected.map_err(|error| PostgresOpenError::database(config, &error))?, tls))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(versions: &[u16]) -> LoadedKeys {
        versions.iter().map(|version| RecordKey { kind: StorageKeyKind::Iso4, version: *version }).collect()
    }

    fn engines(loaded: &[Option<&[u16]>]) -> KeyVersions {
        let engine = |(at, loaded): (usize, &Option<&[u16]>)| EngineKeys {
            name: format!("engine-{at}"),
            incarnation: Uuid::nil(),
            registered: true,
            loaded: loaded.map(keys),
        };
        KeyVersions {
            reported: true,
            card_reference_key: None,
            min: [0, 1, 0, 0],
            active: [0, 1, 0, 0],
            retired: [0; 4],
            engines: loaded.iter().enumerate().map(engine).collect(),
        }
    }

    #[test]
    fn a_version_is_active_once_every_engine_has_reported_it() {
        let mut versions = engines(&[Some(&[1]), Some(&[1]), None]);
        assert_eq!(versions.report("engine-0", &keys(&[1, 2])), Ok(()));
        assert_eq!((versions.min, versions.active), ([0, 1, 0, 0], [0, 1, 0, 0]));
        // Engine 2 has started and not reported: it has written nothing.
        assert_eq!(versions.report("engine-1", &keys(&[1, 2])), Ok(()));
        assert_eq!((versions.min, versions.active), ([0, 2, 0, 0], [0, 2, 0, 0]));
        let lacks = StorageKeyError::EngineLacks { active: 2 };
        assert_eq!(versions.report("engine-2", &keys(&[1])), Err(lacks));
        // A newer version does not open the records under the active one.
        assert_eq!(versions.report("engine-2", &keys(&[1, 3])), Err(lacks));
        assert_eq!(versions.report("engine-2", &keys(&[2])), Ok(()));
    }

    #[test]
    fn a_version_that_one_engine_lacks_below_its_newest_is_not_active() {
        let mut versions = engines(&[Some(&[1]), Some(&[1])]);
        assert_eq!(versions.report("engine-0", &keys(&[3, 1])), Ok(()));
        assert_eq!(versions.report("engine-1", &keys(&[1, 2])), Ok(()));
        assert_eq!((versions.min, versions.active), ([0, 1, 0, 0], [0, 1, 0, 0]));
        assert_eq!(versions.report("engine-1", &keys(&[1, 2, 3])), Ok(()));
        assert_eq!((versions.min, versions.active), ([0, 3, 0, 0], [0, 3, 0, 0]));
    }

    #[test]
    fn the_gaps_of_an_engine_are_the_versions_above_the_retired_that_it_lacks() {
        let of = |retired, versions: &[u16]| {
            let all = gaps([0, retired, 0, 0], &keys(versions)).into_iter();
            all.filter(|(kind, ..)| *kind == StorageKeyKind::Iso4).map(|(_, after, before)| (after, before)).collect()
        };
        let none: Vec<(i32, i32)> = of(0, &[]);
        assert_eq!(none, [(0, i32::MAX)]);
        assert_eq!(of(0, &[1, 2]), [(2, i32::MAX)]);
        assert_eq!(of(0, &[2, 4]), [(0, 2), (2, 4), (4, i32::MAX)]);
        assert_eq!(of(2, &[1, 3]), [(3, i32::MAX)]);
    }

    #[test]
    fn one_engine_alone_has_no_highest_version() {
        assert_eq!(engines(&[Some(&[1])]).window().1, numbers([u16::MAX; 4]));
        assert_eq!(engines(&[Some(&[1]), None]).window().1, numbers([0, 1, 0, 0]));
    }
}
