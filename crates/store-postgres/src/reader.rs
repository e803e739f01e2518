//! The connection of the reads. What they return only informs (R11): a failover may take away what a read saw.

use std::sync::Arc;

use tokio::{runtime::Handle, sync::Mutex};
use tokio_postgres::{Row, types::ToSql};

use super::{
    PostgresConfig,
    connection::{Connection, QueryError},
    sql,
    tls::Tls,
};

pub(crate) struct Reader {
    config: PostgresConfig,
    tls: Option<Tls>,
    /// Drives the connection, whichever runtime a read comes from.
    runtime: Handle,
    connection: Mutex<Option<Arc<Connection>>>,
}

impl Reader {
    pub(crate) fn new(config: PostgresConfig, tls: Option<Tls>, runtime: Handle) -> Self {
        Self { config, tls, runtime, connection: Mutex::new(None) }
    }

    /// Reads rows. A connection that broke before is replaced once.
    pub(crate) async fn query(
        &self,
        text: &'static str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, QueryError> {
        let connection = self.connection().await?;
        let read = connection.within(connection.query(text, values)).await;
        if !matches!(read, Err(QueryError::Lost(_))) {
            return read;
        }
        let was_over = connection.is_over();
        self.forget(&connection).await;
        if !was_over {
            return read;
        }
        let connection = self.connection().await?;
        let read = connection.within(connection.query(text, values)).await;
        if matches!(read, Err(QueryError::Lost(_))) {
            self.forget(&connection).await;
        }
        read
    }

    pub(crate) async fn close(&self) {
        *self.connection.lock().await = None;
    }

    async fn connection(&self) -> Result<Arc<Connection>, QueryError> {
        let mut held = self.connection.lock().await;
        if let Some(connection) = &*held
            && !connection.is_over()
        {
            return Ok(Arc::clone(connection));
        }
        let (config, tls) = (self.config.clone(), self.tls.clone());
        let open = async move { Connection::open(&config, tls.as_ref(), 0, sql::READER).await };
        let opened = self.runtime.spawn(open).await.map_err(|error| QueryError::Lost(error.to_string()))?;
        let connection = Arc::new(opened.map_err(|error| QueryError::Lost(error.to_string()))?);
        *held = Some(Arc::clone(&connection));
        Ok(connection)
    }

    async fn forget(&self, lost: &Arc<Connection>) {
        let mut held = self.connection.lock().await;
        if held.as_ref().is_some_and(|connection| Arc::ptr_eq(connection, lost)) {
            *held = None;
        }
    }
}
