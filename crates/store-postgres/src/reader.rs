//! The connection of the reads. What they return only informs (R11): a failover may take away what a read saw.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::{runtime::Handle, sync::Mutex};
use tokio_postgres::{Row, types::ToSql};

use super::{
    PostgresConfig,
    connection::{Connection, QueryError},
    sql,
    tls::Tls,
};
use store::ReadEpoch;

/// A value of a statement.
pub(crate) type Value = Box<dyn ToSql + Send + Sync>;

/// A value of a statement.
pub(crate) fn value(value: impl ToSql + Send + Sync + 'static) -> Value {
    Box::new(value)
}

pub(crate) struct Reader {
    config: PostgresConfig,
    tls: Option<Tls>,
    /// Drives the connection and the reads, whichever runtime a read comes from.
    pub(crate) runtime: Handle,
    /// How often the writer has connected. A connection that was opened before is replaced: its server may be deposed.
    writer_connections: AtomicUsize,
    /// The host that the writer found.
    host: AtomicUsize,
    /// Whether the connection leads to another host: then a change of the writer does not confirm its reads.
    is_apart: AtomicBool,
    connection: Mutex<Option<Held>>,
}

struct Held {
    connection: Arc<Connection>,
    writer_connections: usize,
}

impl Reader {
    /// A reader that has not connected yet; the writer has, to this host.
    pub(crate) fn new(config: PostgresConfig, tls: Option<Tls>, runtime: Handle, host: usize) -> Self {
        let (writer_connections, host) = (AtomicUsize::new(0), AtomicUsize::new(host));
        Self {
            config,
            tls,
            runtime,
            writer_connections,
            host,
            is_apart: AtomicBool::new(false),
            connection: Mutex::new(None),
        }
    }

    /// Reads rows. A connection that broke before is replaced once.
    pub(crate) async fn query(
        self: &Arc<Self>,
        text: &'static str,
        values: Vec<Value>,
    ) -> Result<Vec<Row>, QueryError> {
        let reader = Arc::clone(self);
        // In a task: a caller who gives up must not end the wait for the deadline, which replaces a silent connection.
        let read = self.runtime.spawn(async move {
            let values: Vec<_> = values.iter().map(|value| &**value as &(dyn ToSql + Sync)).collect();
            reader.read(text, &values).await
        });
        read.await.map_err(|error| QueryError::Lost(error.to_string()))?
    }

    /// The same, within [`Reader::runtime`].
    pub(crate) async fn read(
        &self,
        text: &'static str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, QueryError> {
        let connection = self.connection().await?;
        let read = connection.query_text(text, values).await;
        if !matches!(read, Err(QueryError::Lost(_))) {
            return read;
        }
        let was_over = connection.is_over();
        self.forget(&connection).await;
        if !was_over {
            return read;
        }
        let connection = self.connection().await?;
        let read = connection.query_text(text, values).await;
        if matches!(read, Err(QueryError::Lost(_))) {
            self.forget(&connection).await;
        }
        read
    }

    /// Notes that the writer has connected again, to this host. The next read connects there.
    pub(crate) fn follow(&self, host: usize) {
        self.host.store(host, Ordering::SeqCst);
        self.writer_connections.fetch_add(1, Ordering::SeqCst);
        self.is_apart.store(false, Ordering::SeqCst);
    }

    /// R11: a commit of the writer in the same epoch lies behind what a read has seen, on the same server.
    pub(crate) fn epoch(&self) -> ReadEpoch {
        let connections = self.writer_connections.load(Ordering::SeqCst);
        if self.is_apart.load(Ordering::SeqCst) { ReadEpoch::Apart } else { ReadEpoch::Connection(connections) }
    }

    pub(crate) async fn close(&self) {
        *self.connection.lock().await = None;
    }

    async fn connection(&self) -> Result<Arc<Connection>, QueryError> {
        let mut held = self.connection.lock().await;
        let writer_connections = self.writer_connections.load(Ordering::SeqCst);
        if let Some(held) = &*held
            && held.writer_connections == writer_connections
            && !held.connection.is_over()
        {
            return Ok(Arc::clone(&held.connection));
        }
        let host = self.host.load(Ordering::SeqCst);
        let opened = Connection::open(&self.config, self.tls.as_ref(), host, sql::READER).await;
        let connection = Arc::new(opened.map_err(|error| QueryError::Lost(error.to_string()))?);
        self.is_apart.store(connection.host != host, Ordering::SeqCst);
        *held = Some(Held { connection: Arc::clone(&connection), writer_connections });
        Ok(connection)
    }

    async fn forget(&self, lost: &Arc<Connection>) {
        let mut held = self.connection.lock().await;
        if held.as_ref().is_some_and(|held| Arc::ptr_eq(&held.connection, lost)) {
            *held = None;
        }
    }
}
