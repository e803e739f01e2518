//! The tables of the store, made and migrated by numbered files that are part of the program.

use super::{
    PostgresConfig, PostgresOpenError,
    connection::{Connection, QueryError, column},
    sql,
};

/// The migrations, in order. The number of a schema is the number of those that were applied.
pub(crate) const MIGRATIONS: &[&str] =
    &[include_str!("../migrations/0001_tables.sql"), include_str!("../migrations/0002_loaded_keys.sql")];
/// The version of the tables of this release.
pub(crate) const SUPPORTED: i32 = MIGRATIONS.len() as i32;

/// The versions of the tables before and after a migration. 0: there were no tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Migrated {
    /// The version before.
    pub from: i32,
    /// The version of this release.
    pub to: i32,
}

/// Brings the tables to the version of this release, or checks that they have it; nothing is written where they have. Racing
/// programs migrate one after another: each locks the row of the version, in the transaction of its migrations. Returns the
/// versions.
///
/// # Errors
/// The tables are of a newer release, they are older and the configuration forbids a migration, or the database refuses.
pub(crate) async fn migrate(connection: &Connection, config: &PostgresConfig) -> Result<Migrated, PostgresOpenError> {
    let problem = |error: QueryError| PostgresOpenError::database(config, &error);
    let supported = SUPPORTED;
    let version_error = |version| PostgresOpenError::Version { place: config.place(), version, supported };
    let found = version(connection).await.map_err(problem)?;
    if found == Some(supported) {
        return Ok(Migrated { from: supported, to: supported });
    }
    if !config.migrates {
        if found.is_none() {
            return Err(version_error(0));
        }
    } else {
        // `check` admits names of a-z, 0-9 and _ alone. Two programs that make it at once: one is refused, and finds it then.
        let schema = format!("CREATE SCHEMA IF NOT EXISTS {}", config.schema);
        for text in [schema.as_str(), sql::SCHEMA_VERSION_TABLE, sql::SCHEMA_VERSION_ROW] {
            if let Err(error) = connection.within(connection.send(text)).await {
                if !error.may_retry() && !error.is_made_by_another() {
                    return Err(problem(error));
                }
                connection.within(connection.send(text)).await.map_err(problem)?;
            }
        }
    }
    connection.begin().await.map_err(problem)?;
    let rows = connection.query_text(sql::SCHEMA_VERSION_LOCK, &[]).await.map_err(problem)?;
    let version: i32 = rows.first().map(|row| column(row, 0)).transpose().map_err(problem)?.unwrap_or_default();
    if version > supported || (version < supported && !config.migrates) {
        return Err(version_error(version));
    }
    if (1..supported).contains(&version) {
        // In the order of a registration, which would deadlock otherwise.
        for lock in [sql::SCHEMA_KEY_VERSIONS_LOCK, sql::SCHEMA_ENGINES_LOCK] {
            connection.query_text(lock, &[]).await.map_err(problem)?;
        }
        connection.execute_text(sql::ENGINES_SCHEMA, &[&supported]).await.map_err(problem)?;
    }
    for migration in MIGRATIONS.iter().skip(usize::try_from(version).unwrap_or_default()) {
        connection.within(connection.send(migration)).await.map_err(problem)?;
    }
    if version < supported {
        connection.execute_text(sql::SCHEMA_VERSION_SET, &[&supported]).await.map_err(problem)?;
    }
    connection.commit().await.map_err(|error| PostgresOpenError::database(config, &error))?;
    Ok(Migrated { from: version, to: supported })
}

/// Checks that the tables have the version of this release.
///
/// # Errors
/// They have another one, there are none, or the database refuses.
pub(crate) async fn check_version(connection: &Connection, config: &PostgresConfig) -> Result<(), PostgresOpenError> {
    let problem = |error: QueryError| PostgresOpenError::database(config, &error);
    let supported = SUPPORTED;
    let version = version(connection).await.map_err(problem)?.unwrap_or_default();
    if version == supported {
        return Ok(());
    }
    Err(PostgresOpenError::Version { place: config.place(), version, supported })
}

/// Keeps the tables at the version of this release until the transaction ends: the first lock of a transaction that locks the key
/// versions outside the writer. A migration takes the same locks in the same order.
///
/// # Errors
/// [`QueryError::OtherRelease`].
pub(crate) async fn lock_version(connection: &Connection) -> Result<(), QueryError> {
    let rows = connection.query_text(sql::SCHEMA_VERSION_SHARE, &[]).await?;
    let version = rows.first().map(|row| column(row, 0)).transpose()?.unwrap_or_default();
    let supported = SUPPORTED;
    if version == supported { Ok(()) } else { Err(QueryError::OtherRelease { version, supported }) }
}

/// The version of the tables; `None` where there are none.
async fn version(connection: &Connection) -> Result<Option<i32>, QueryError> {
    let exists = connection.query_text(sql::SCHEMA_VERSION_EXISTS, &[]).await?;
    if !exists.first().map(|row| column::<bool>(row, 0)).transpose()?.unwrap_or_default() {
        return Ok(None);
    }
    let rows = connection.query_text(sql::SCHEMA_VERSION, &[]).await?;
    rows.first().map(|row| column(row, 0)).transpose()
}
