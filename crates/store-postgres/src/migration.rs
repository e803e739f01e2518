//! The tables of the store, made and migrated by numbered files that are part of the program.

use super::{
    PostgresConfig, PostgresOpenError,
    connection::{Connection, column},
    sql,
};

/// The migrations, in order. The number of a schema is the number of those that were applied.
const MIGRATIONS: &[&str] = &[include_str!("../migrations/0001_tables.sql")];
/// The version of the tables of this release.
pub(crate) const SUPPORTED: i32 = MIGRATIONS.len() as i32;

/// Brings the tables to the version of this release, or checks that they have it; nothing is written where they have. Racing
/// programs migrate one after another: each locks the row of the version, in the transaction of its migrations.
///
/// # Errors
/// The tables are of a newer release, they are older and the configuration forbids a migration, or the database refuses.
pub(crate) async fn migrate(connection: &Connection, config: &PostgresConfig) -> Result<(), PostgresOpenError> {
    let problem = |error: super::connection::QueryError| PostgresOpenError::database(config, &error);
    let supported = SUPPORTED;
    let version_error = |version| PostgresOpenError::Version { place: config.place(), version, supported };
    let exists = connection.query_text(sql::SCHEMA_VERSION_EXISTS, &[]).await.map_err(problem)?;
    let exists = exists.first().map(|row| column::<bool>(row, 0)).transpose().map_err(problem)?.unwrap_or_default();
    if exists {
        let rows = connection.query_text(sql::SCHEMA_VERSION, &[]).await.map_err(problem)?;
        let version = rows.first().map(|row| column::<i32>(row, 0)).transpose().map_err(problem)?;
        if version == Some(supported) {
            return Ok(());
        }
    }
    if !config.migrates {
        if !exists {
            return Err(version_error(0));
        }
    } else {
        // `check` admits names of a-z, 0-9 and _ alone. Two programs that make it at once: one is refused, and finds it then.
        let schema = format!("CREATE SCHEMA IF NOT EXISTS {}", config.schema);
        for text in [schema.as_str(), sql::SCHEMA_VERSION_TABLE, sql::SCHEMA_VERSION_ROW] {
            if let Err(error) = connection.within(connection.send(text)).await {
                if !error.may_retry() {
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
        connection.execute_text(sql::ENGINES_SCHEMA, &[&supported]).await.map_err(problem)?;
    }
    for migration in MIGRATIONS.iter().skip(usize::try_from(version).unwrap_or_default()) {
        connection.within(connection.send(migration)).await.map_err(problem)?;
    }
    if version < supported {
        connection.execute_text(sql::SCHEMA_VERSION_SET, &[&supported]).await.map_err(problem)?;
    }
    connection.commit().await.map_err(|error| PostgresOpenError::database(config, &error))
}
