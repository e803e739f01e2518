//! The engine's row: registration (R2), the fence after a lost connection (R3), deregistration.

use std::time::Duration;

use thiserror::Error;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{
    PostgresConfig,
    connection::{CommitError, Connection, QueryError, column},
    key_versions::{KeyVersions, window_of},
    migration::{SUPPORTED, lock_version},
    operator_chain::checkpoint,
    sql,
};
use audit::{archive::ArchivedPart, chain::Checkpoint};
use domain::storage_key::MaxKeyVersions;

/// The auditUser of an activation by the end of an engine, as in the events of the engine itself.
const ENGINE_USER: &str = "engine";
/// The pause between two attempts to register.
const PAUSE: Duration = Duration::from_millis(200);

/// The right of this process to write for its engine.
pub(crate) struct Session {
    pub(crate) engine: String,
    pub(crate) incarnation: Uuid,
    pub(crate) session: Uuid,
    /// The last entry of the chain, by the last acknowledged commit.
    pub(crate) head: Checkpoint,
    /// The number of the last archived entry.
    pub(crate) archived: u64,
    /// The highest storage key versions at the registration.
    pub(crate) max_keys: MaxKeyVersions,
}

/// Why an engine was not registered.
#[derive(Debug, Error)]
pub(crate) enum RegisterError {
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// Another process has an unexpired lease.
    #[error("the engine's name is in use")]
    InUse,
    /// The rows of a copied store are not complete.
    #[error("a copy into the database is unfinished")]
    Copying,
}

impl Session {
    /// R2: takes the engine's name, by compare-and-set on the incarnation that was read, under the lock of the key versions. A
    /// late registration of a dead process finds another incarnation, and does nothing.
    ///
    /// # Errors
    /// The name is in use for longer than two leases, or the database did not acknowledge the registration.
    pub(crate) async fn register(connection: &Connection, config: &PostgresConfig) -> Result<Self, RegisterError> {
        // From the first refusal: an earlier attempt may have waited for a lock.
        let mut until = None;
        loop {
            let result = Self::try_register(connection, config).await;
            let may_retry = match &result {
                Err(RegisterError::InUse | RegisterError::Commit(CommitError::Undone(_))) => true,
                Err(RegisterError::Query(error)) => error.may_retry(),
                _ => false,
            };
            if !may_retry || Instant::now() >= *until.get_or_insert_with(|| Instant::now() + config.lease * 2) {
                return result;
            }
            connection.within(connection.send(sql::ROLLBACK)).await?;
            sleep(PAUSE).await;
        }
    }

    async fn try_register(connection: &Connection, config: &PostgresConfig) -> Result<Self, RegisterError> {
        let (engine, lease) = (config.engine_name.to_string(), config.lease.as_secs_f64());
        let (incarnation, session) = (Uuid::new_v4(), Uuid::new_v4());
        connection.begin().await?;
        lock_version(connection).await?;
        let versions = connection.query_text(sql::KEY_VERSIONS_LOCK, &[]).await?;
        // A copy begins under the same lock.
        if !connection.query_text(sql::COPY_MARK, &[]).await?.is_empty() {
            return Err(RegisterError::Copying);
        }
        let rows = connection.query_text(sql::ENGINES_LOCK, &[]).await?;
        let mut versions = KeyVersions::read(&versions, &rows)?;
        let (mut head, mut archived) = (Checkpoint::EMPTY, 0);
        let found = versions.engines.iter_mut().zip(&rows).find(|(known, _)| known.name == engine);
        if let Some((known, row)) = found {
            // The lease is compared in a statement behind the one that locked the row (R6).
            let registered = connection
                .execute_text(
                    sql::ENGINE_REGISTER,
                    &[&engine, &known.incarnation, &incarnation, &session, &lease, &!known.registered, &SUPPORTED],
                )
                .await?;
            if registered != 1 {
                return Err(RegisterError::InUse);
            }
            (known.registered, known.loaded) = (true, None);
            head = checkpoint(column(row, 6)?, column(row, 7)?)?;
            archived = archived_end(column(row, 5)?)?;
        } else {
            let values: [&(dyn tokio_postgres::types::ToSql + Sync); 6] =
                [&engine, &incarnation, &session, &lease, &head.hash.as_slice(), &SUPPORTED];
            connection.execute_text(sql::ENGINE_INSERT, &values).await?;
            versions.engines.push(super::key_versions::EngineKeys {
                name: engine.clone(),
                incarnation,
                registered: true,
                loaded: None,
            });
        }
        versions.write(connection).await?;
        connection.commit().await?;
        let (min, max) = versions.window();
        let max_keys = window_of(&min, &max)?.max;
        Ok(Self { engine, incarnation, session, head, archived, max_keys })
    }

    /// R3: fences what earlier connections of this process sent, and finds out whether an attempt was committed. The lock
    /// waits for a transaction that still runs, and its own acknowledged commit lies behind that one.
    ///
    /// # Errors
    /// [`RecoverError::Displaced`] for another incarnation. After any other error the caller repeats with a new connection.
    pub(crate) async fn recover(
        &mut self,
        connection: &Connection,
        config: &PostgresConfig,
        attempt: Option<Uuid>,
    ) -> Result<bool, RecoverError> {
        connection.begin().await?;
        let row = connection.query_text(sql::ENGINE, &[&self.engine]).await?;
        let row = row.first().ok_or_else(|| QueryError::Row("engines has no row of this engine".to_owned()))?;
        let (incarnation, schema_version): (Uuid, i32) = (column(row, 0)?, column(row, 2)?);
        if (incarnation, schema_version) != (self.incarnation, SUPPORTED) {
            // Only an acknowledged commit says so for good: a failover may take away the registration or the migration.
            connection.commit().await?;
            let is_displaced = incarnation != self.incarnation;
            return Err(if is_displaced { RecoverError::Displaced } else { RecoverError::Migrated });
        }
        // An earlier fence may have been committed without an acknowledgement, so the session is read, not remembered.
        let (before, fresh, lease): (Uuid, _, _) = (column(row, 1)?, Uuid::new_v4(), config.lease.as_secs_f64());
        let fenced = connection
            .execute_text(sql::ENGINE_FENCE, &[&self.engine, &self.incarnation, &before, &fresh, &lease])
            .await?;
        if fenced != 1 {
            return Err(RecoverError::Again);
        }
        let attempt = attempt.unwrap_or(Uuid::nil());
        let known = i64::try_from(self.head.sequence).unwrap_or(i64::MAX);
        let found = connection.query_text(sql::ENGINE_ATTEMPT, &[&self.engine, &known, &attempt]).await?;
        let found = found.first().ok_or(RecoverError::Again)?;
        let (head, is_committed) = (checkpoint(column(found, 0)?, column(found, 1)?)?, column(found, 2)?);
        connection.commit().await?;
        // Only here: what a transaction without an acknowledged commit saw, a failover may take away.
        (self.session, self.head) = (fresh, head);
        Ok(is_committed)
    }

    /// Ends the registration, so that the engine does not stand against a rotation and its name is free. Changes nothing where
    /// another process has taken the name.
    pub(crate) async fn deregister(&self, connection: &Connection) -> Result<(), RegisterError> {
        connection.begin().await?;
        let mut versions = KeyVersions::lock(connection).await?;
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
            [&self.engine, &self.incarnation, &Uuid::new_v4()];
        if connection.execute_text(sql::ENGINE_DEREGISTER, &values).await? != 1 {
            return Ok(connection.within(connection.send(sql::ROLLBACK)).await?);
        }
        versions
            .engines
            .iter_mut()
            .filter(|known| known.name == self.engine)
            .for_each(|known| known.registered = false);
        versions.raise_without_engine(connection, ENGINE_USER).await?;
        Ok(connection.commit().await?)
    }
}

/// Why a recovery did not end.
#[derive(Debug, Error)]
pub(crate) enum RecoverError {
    #[error(transparent)]
    Query(#[from] QueryError),
    #[error(transparent)]
    Commit(#[from] CommitError),
    #[error("another connection of this engine was fenced at the same time")]
    Again,
    #[error("another process has registered the engine's name")]
    Displaced,
    #[error("a newer release has migrated the tables")]
    Migrated,
}

/// The number of the last archived entry; 0 where none is archived.
pub(crate) fn archived_end(archived: Option<&[u8]>) -> Result<u64, QueryError> {
    let Some(bytes) = archived else { return Ok(0) };
    let part = ArchivedPart::decode(bytes);
    let part = part.ok_or_else(|| QueryError::Row("the end of the archived entries is malformed".to_owned()))?;
    Ok(part.end().sequence)
}
