//! The upkeep of a PostgreSQL database that engines share, for programs.

use std::sync::Arc;

use store::{Store, StoreOpenError};
use store_postgres::{Postgres, PostgresConfig, upkeep};

pub use store_postgres::{
    EngineChain, Migrated, OPERATOR, PostgresOpenError,
    key_versions::{KINDS, RecordsUnderKey, RetireError, deregister, retire},
    upkeep::{DatabaseCheck, EngineReport, check, engines, migrate},
};

/// Opens the rows of a database and the chain of one engine to read them: no engine is registered, and changes are refused. The
/// runtime of the caller drives the connection.
///
/// # Errors
/// The database can't be opened, or has no such engine.
pub async fn open_to_read(config: &PostgresConfig, engine: &str) -> Result<Arc<dyn Store>, StoreOpenError> {
    let config = PostgresConfig { engine_name: engine.into(), ..config.clone() };
    let opened = Postgres::open_to_read(&config).await;
    Ok(Arc::new(opened.map_err(|error| StoreOpenError::Database(error.into()))?))
}

/// The same for each engine that has ever registered, and for the operator's chain [`OPERATOR`], by name.
///
/// # Errors
/// The database can't be opened.
pub async fn open_all_to_read(config: &PostgresConfig) -> Result<Vec<(EngineReport, Arc<dyn Store>)>, StoreOpenError> {
    let engines = upkeep::engines(config).await.map_err(|error| StoreOpenError::Database(error.into()))?;
    let mut opened = Vec::with_capacity(engines.len());
    for engine in engines {
        let store = open_to_read(config, &engine.chain.engine).await?;
        opened.push((engine, store));
    }
    Ok(opened)
}
