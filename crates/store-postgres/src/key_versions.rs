//! The storage key versions that all engines share (R2, R10).

use std::fmt::Display;

use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    PostgresConfig, PostgresOpenError,
    connection::{Connection, QueryError, column},
    operator_chain::record,
    sql,
    tls::Tls,
};
use audit::entry::{Body, StorageKeyVersions};
use domain::storage_key::{KeyWindow, MaxKeyVersions, MinKeyVersions, StorageKeyKind};
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
    /// The newest versions since the start of the engine; `None` before it reported them.
    pub(crate) newest: Option<Versions>,
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
                newest: column::<Option<Vec<i32>>>(row, 3)?.map(|newest| versions_of(&newest)).transpose()?,
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

    /// Locks and reads both, within a transaction.
    pub(crate) async fn lock(connection: &Connection) -> Result<Self, QueryError> {
        let versions = connection.query_text(sql::KEY_VERSIONS_LOCK, &[]).await?;
        let engines = connection.query_text(sql::ENGINES_LOCK, &[]).await?;
        Self::read(&versions, &engines)
    }

    /// Whether more than one engine is registered.
    pub(crate) fn is_shared(&self) -> bool {
        self.engines.iter().filter(|engine| engine.registered).count() > 1
    }

    /// R10, steps 2 and 4 in one transaction: activates the newest versions that every engine has reported, and raises the
    /// minimum to them. The caller's UPDATE of every engine's row waits for each transaction that runs. An engine that has not
    /// reported yet is refused at its report if it lacks a version that is active by then (R2).
    pub(crate) fn raise(&mut self) {
        let reported = self.engines.iter().filter(|engine| engine.registered).filter_map(|engine| engine.newest);
        let Some(least) = reported.reduce(|a, b| each(a, b, u16::min)) else { return };
        self.active = each(self.active, least, u16::max);
        self.min = each(self.min, self.active, u16::max);
    }

    /// Raises after the registration of an engine has ended, and writes.
    pub(crate) async fn raise_without_engine(&mut self, connection: &Connection) -> Result<(), QueryError> {
        let before = self.clone();
        self.raise();
        // `record` may add the operator's row, which gets its window by the write.
        if (self.active, self.min) != (before.active, before.min) {
            record(connection, Body::StorageKeysActivated(stamp_of(self.active))).await?;
        }
        self.write(connection).await
    }

    /// R10, step 1: notes the newest versions of an engine, and raises. While another engine lacks them, records are written
    /// under older versions.
    ///
    /// # Errors
    /// R2: the engine lacks a version in use.
    pub(crate) fn report(&mut self, engine: &str, newest: Versions) -> Result<(), StorageKeyError> {
        if let Some((newest, active)) = newest.into_iter().zip(self.active).find(|(newest, active)| newest < active) {
            return Err(StorageKeyError::EngineLacks { newest, active });
        }
        for known in self.engines.iter_mut().filter(|known| known.name == engine) {
            known.newest = Some(newest);
        }
        self.reported = true;
        self.raise();
        Ok(())
    }

    /// R2: refuses an engine that has a retired version: the version may be destroyed at any time.
    ///
    /// # Errors
    /// [`StorageKeyError::Retired`].
    pub(crate) fn check_oldest(&self, oldest: Versions) -> Result<(), StorageKeyError> {
        let found = oldest.into_iter().zip(self.retired).find(|(oldest, retired)| (1..=*retired).contains(oldest));
        found.map_or(Ok(()), |(version, _)| Err(StorageKeyError::Retired { version }))
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

/// Versions as a column has them.
pub(crate) fn numbers(versions: Versions) -> Vec<i32> {
    versions.map(i32::from).to_vec()
}

pub(crate) fn versions_of(numbers: &[i32]) -> Result<Versions, QueryError> {
    let versions = numbers.iter().map(|number| u16::try_from(*number)).collect::<Result<Vec<_>, _>>().ok();
    let versions = versions.and_then(|versions| Versions::try_from(versions).ok());
    versions.ok_or_else(|| QueryError::Row("the versions of keys are malformed".to_owned()))
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
    /// The database did not acknowledge the retirement. It may be repeated.
    #[error("the retirement was not acknowledged ({0}): try again, and destroy no key before it is")]
    Database(String),
}

fn unacknowledged(error: &dyn Display) -> RetireError {
    RetireError::Database(error.to_string())
}

/// R10, step 6: retires the storage keys of a kind up to a version. Their keys may be destroyed after this function has
/// returned `Ok`, once no backup that may be restored has records under them.
///
/// # Errors
/// Records exist or may be written under the version, or the commit was not acknowledged.
pub async fn retire(config: &PostgresConfig, kind: StorageKeyKind, version: u16) -> Result<(), RetireError> {
    retire_unless(config, kind, version, true).await
}

/// The same where the operator gives up the PINs of the records under the key: one-way records, which no engine re-encrypts.
///
/// # Errors
/// Records may be written under the version, or the commit was not acknowledged.
pub async fn retire_with_records(
    config: &PostgresConfig,
    kind: StorageKeyKind,
    version: u16,
) -> Result<(), RetireError> {
    retire_unless(config, kind, version, false).await
}

async fn retire_unless(
    config: &PostgresConfig,
    kind: StorageKeyKind,
    version: u16,
    refuses_records: bool,
) -> Result<(), RetireError> {
    let (connection, _) = connect(config).await.map_err(|error| unacknowledged(&error))?;
    let database = |error: QueryError| unacknowledged(&error);
    connection.begin().await.map_err(database)?;
    let mut versions = KeyVersions::lock(&connection).await.map_err(database)?;
    let at = KINDS.iter().position(|known| *known == kind).unwrap_or_default();
    let min = versions.min.get(at).copied().unwrap_or_default();
    if min <= version {
        return Err(RetireError::InUse { version, min });
    }
    if refuses_records {
        let of = [i32::from(kind_code(kind)), i32::from(version)];
        let found = connection.query_text(sql::RECORDS_UP_TO, &[&of[0], &of[1]]).await;
        if found.map_err(database)?.first().map(|row| column(row, 0)).transpose().map_err(database)?.unwrap_or(true) {
            return Err(RetireError::Records { version });
        }
    }
    // The answer is of this transaction, whose acknowledged commit is on the standby: so is everything that it read.
    let before = versions.retired;
    if let Some(retired) = versions.retired.get_mut(at) {
        *retired = version.max(*retired);
    }
    if versions.retired != before {
        record(&connection, Body::StorageKeysRetired(stamp_of(versions.retired))).await.map_err(database)?;
        versions.write(&connection).await.map_err(database)?;
    }
    connection.commit().await.map_err(|error| unacknowledged(&error))
}

/// R10: deregisters an engine that has ended, so that it does not stand against a rotation. What it sent is fenced. Returns
/// whether the engine was registered and its lease had expired.
///
/// # Errors
/// The database can't be reached, or did not acknowledge the change.
pub async fn deregister(config: &PostgresConfig, engine: &str) -> Result<bool, PostgresOpenError> {
    let (connection, _) = connect(config).await?;
    let database = |error: QueryError| PostgresOpenError::database(config, &error);
    connection.begin().await.map_err(database)?;
    let mut versions = KeyVersions::lock(&connection).await.map_err(database)?;
    let fenced = connection.execute_text(sql::ENGINE_DEREGISTER_EXPIRED, &[&engine, &Uuid::new_v4()]).await;
    let fenced = fenced.map_err(database)? == 1;
    if fenced {
        versions.engines.iter_mut().filter(|known| known.name == engine).for_each(|known| known.registered = false);
        record(&connection, Body::EngineDeregistered { engine: engine.into() }).await.map_err(database)?;
        versions.raise_without_engine(&connection).await.map_err(database)?;
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

    fn engines(newest: &[Option<u16>]) -> KeyVersions {
        let engine = |(at, newest): (usize, &Option<u16>)| EngineKeys {
            name: format!("engine-{at}"),
            incarnation: Uuid::nil(),
            registered: true,
            newest: newest.map(|iso_4| [0, iso_4, 0, 0]),
        };
        KeyVersions {
            reported: true,
            card_reference_key: None,
            min: [0, 1, 0, 0],
            active: [0, 1, 0, 0],
            retired: [0; 4],
            engines: newest.iter().enumerate().map(engine).collect(),
        }
    }

    #[test]
    fn a_version_is_active_once_every_engine_has_reported_it() {
        let mut versions = engines(&[Some(1), Some(1), None]);
        assert_eq!(versions.report("engine-0", [0, 2, 0, 0]), Ok(()));
        assert_eq!((versions.min, versions.active), ([0, 1, 0, 0], [0, 1, 0, 0]));
        // Engine 2 has started and not reported: it has written nothing.
        assert_eq!(versions.report("engine-1", [0, 2, 0, 0]), Ok(()));
        assert_eq!((versions.min, versions.active), ([0, 2, 0, 0], [0, 2, 0, 0]));
        let lacks = StorageKeyError::EngineLacks { newest: 1, active: 2 };
        assert_eq!(versions.report("engine-2", [0, 1, 0, 0]), Err(lacks));
    }

    #[test]
    fn one_engine_alone_has_no_highest_version() {
        assert_eq!(engines(&[Some(1)]).window().1, numbers([u16::MAX; 4]));
        assert_eq!(engines(&[Some(1), None]).window().1, numbers([0, 1, 0, 0]));
    }
}
