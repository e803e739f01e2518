//! One connection to the server that accepts writes: a deadline for each wait, and no cancel request ever. A cancelled commit
//! reports success although no standby received the commit; a socket that is closed reports nothing.

use std::{
    collections::HashMap,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::try_join_all;
use thiserror::Error;
use tokio::{task::JoinHandle, time::timeout};
use tokio_postgres::{
    AsyncMessage, Client, NoTls, Row, Socket, Statement,
    config::{SslMode, TargetSessionAttrs},
    error::{Severity, SqlState},
    tls::{MakeTlsConnect, TlsConnect},
    types::ToSql,
};

use super::{DatabaseHost, PostgresConfig, sql, tls::Tls};

/// The pause before the first keepalive probe, and between two of them: a lost host is found within seconds.
const KEEPALIVE: Duration = Duration::from_secs(2);
/// The keepalive probes without an answer after which the kernel closes the connection.
const KEEPALIVE_PROBES: u32 = 3;

/// Why no statement was answered.
#[derive(Debug, Error)]
pub(crate) enum QueryError {
    /// The connection is over: broken, or closed because a statement passed its deadline.
    #[error("the connection to the database is over: {0}")]
    Lost(String),
    /// The server refused the statement.
    #[error("the database refused a statement: {problem} ({})", code.code())]
    Refused {
        code: SqlState,
        /// The server's message, without its detail: a detail may have the values of a row.
        problem: String,
    },
    /// A row has another shape than this release writes.
    #[error("a row of the database can't be read: {0}")]
    Row(String),
    /// Another release has migrated the tables.
    #[error(
        "the tables have version {version}, and this release has version {supported}: use the release that migrated them"
    )]
    OtherRelease {
        /// The version of the tables.
        version: i32,
        /// The version of this release.
        supported: i32,
    },
}

impl QueryError {
    pub(crate) fn of(error: &tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            // The session is over after these, or the server is a standby by now.
            Some(error) if matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic)) => {
                Self::Lost(error.message().to_owned())
            }
            Some(error) if *error.code() == SqlState::READ_ONLY_SQL_TRANSACTION => {
                Self::Lost(error.message().to_owned())
            }
            Some(error) => Self::Refused { code: error.code().clone(), problem: error.message().to_owned() },
            None if error.is_closed() => Self::Lost("the server closed it".to_owned()),
            None => Self::Lost(chain_of(error)),
        }
    }

    /// Whether the whole transaction may be tried again at once: a serialization failure, a deadlock, a lock that was not free
    /// in time, or a row that another engine inserted first.
    pub(crate) fn may_retry(&self) -> bool {
        let retried = [
            SqlState::T_R_SERIALIZATION_FAILURE,
            SqlState::T_R_DEADLOCK_DETECTED,
            SqlState::LOCK_NOT_AVAILABLE,
            SqlState::UNIQUE_VIOLATION,
        ];
        matches!(self, Self::Refused { code, .. } if retried.contains(code))
    }

    /// Whether another program made the same schema or table at this moment. `IF NOT EXISTS` does not see what another transaction
    /// is about to commit, and the server names the schema, the table, its type or the row of its catalogue.
    pub(crate) fn is_made_by_another(&self) -> bool {
        let made = [
            SqlState::DUPLICATE_SCHEMA,
            SqlState::DUPLICATE_TABLE,
            SqlState::DUPLICATE_OBJECT,
            SqlState::UNIQUE_VIOLATION,
        ];
        matches!(self, Self::Refused { code, .. } if made.contains(code))
    }
}

/// The error and its causes.
fn chain_of(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    causes.collect::<Vec<_>>().join(": ")
}

/// Why no connection was made.
#[derive(Clone, Debug, Error)]
pub(crate) enum ConnectError {
    #[error("no host accepts writes ({0})")]
    NoHost(String),
    #[error("synchronous_commit is {0:?} for this role: set it to on or remote_apply")]
    NotSynchronous(String),
}

/// An open connection. Dropped, it closes its socket at once.
pub(crate) struct Connection {
    client: Client,
    statements: HashMap<&'static str, Statement>,
    driver: JoinHandle<()>,
    /// Whether the server sent a warning since the last look: after COMMIT it means doubt.
    warned: Arc<AtomicBool>,
    deadline: Duration,
    /// The number of its host in the configuration.
    pub(crate) host: usize,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    /// Connects to the first host that accepts writes, beginning with the one of this number, and prepares statements.
    ///
    /// # Errors
    /// No host answers in time and accepts writes, or its commits are not synchronous.
    pub(crate) async fn open(
        config: &PostgresConfig,
        tls: Option<&Tls>,
        first: usize,
        statements: &[&'static str],
    ) -> Result<Self, ConnectError> {
        let mut problems = Vec::new();
        let count = config.hosts.len();
        for at in 0..count {
            let number = first.wrapping_add(at) % count.max(1);
            let Some(host) = config.hosts.get(number) else { continue };
            // A frozen host accepts TCP connections and says nothing, so the limit is on the whole.
            match timeout(config.connect_timeout, Self::open_host(config, tls, host, statements)).await {
                Ok(Ok(Ok(mut connection))) => {
                    connection.host = number;
                    return Ok(connection);
                }
                Ok(Ok(Err(refused))) => return Err(refused),
                Ok(Err(error)) => problems.push(format!("{host}: {error}")),
                Err(_) => problems.push(format!("{host}: no answer within {:?}", config.connect_timeout)),
            }
        }
        Err(ConnectError::NoHost(problems.join("; ")))
    }

    async fn open_host(
        config: &PostgresConfig,
        tls: Option<&Tls>,
        host: &DatabaseHost,
        statements: &[&'static str],
    ) -> Result<Result<Self, ConnectError>, QueryError> {
        let mut settings = tokio_postgres::Config::new();
        settings
            .host(&host.name)
            .port(host.port)
            .dbname(&config.database)
            .user(&config.user)
            .application_name(format!("pinseal {}", config.engine_name))
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .connect_timeout(config.connect_timeout)
            .tcp_user_timeout(config.statement_timeout)
            .keepalives(true)
            .keepalives_idle(KEEPALIVE)
            .keepalives_interval(KEEPALIVE)
            .keepalives_retries(KEEPALIVE_PROBES);
        if let Some(password) = &config.password {
            settings.password(password.as_bytes());
        }
        let warned = Arc::new(AtomicBool::new(false));
        let (client, driver) = match tls {
            Some(tls) => connect(settings.ssl_mode(SslMode::Require), tls.clone(), &warned).await?,
            None => connect(settings.ssl_mode(SslMode::Disable), NoTls, &warned).await?,
        };
        let deadline = config.statement_timeout;
        let mut connection = Self { client, statements: HashMap::new(), driver, warned, deadline, host: 0 };
        let silence = (config.statement_timeout.as_millis() / 3).to_string();
        // Below the deadline of a statement, which ends the connection and leaves the wait to the server.
        let lock_wait = (config.statement_timeout.as_millis() / 2).to_string();
        connection.query_text(sql::SESSION_SETTINGS, &[&config.schema, &silence, &lock_wait]).await?;
        connection.query_text(sql::PLANNER_SETTINGS, &[]).await?;
        connection.query_text(sql::CLIENT_CHECK, &[]).await?;
        let setting = connection.query_text(sql::SYNCHRONOUS_COMMIT, &[]).await?;
        let setting: String = setting.first().map(|row| column(row, 0)).transpose()?.unwrap_or_default();
        if !["on", "remote_apply"].contains(&setting.as_str()) {
            return Ok(Err(ConnectError::NotSynchronous(setting)));
        }
        // A configuration that the server loads later does not change a value that the session has set.
        connection.query_text(sql::SYNCHRONOUS_COMMIT_SET, &[&setting]).await?;
        connection.prepare(statements).await?;
        Ok(Ok(connection))
    }

    /// Prepares statements that are not prepared yet.
    pub(crate) async fn prepare(&mut self, statements: &[&'static str]) -> Result<(), QueryError> {
        let missing = statements.iter().copied().filter(|text| !self.statements.contains_key(text));
        let missing: Vec<_> = missing.collect();
        let prepared = self.within(try_join_all(missing.iter().map(|text| self.client.prepare(text)))).await?;
        self.statements.extend(missing.into_iter().zip(prepared));
        Ok(())
    }

    /// Waits for the answers of statements.
    ///
    /// # Errors
    /// [`QueryError::Lost`] after the deadline, and then the caller drops the connection.
    pub(crate) async fn within<T>(
        &self,
        answers: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, QueryError> {
        match timeout(self.deadline, answers).await {
            Ok(answer) => answer.map_err(|error| QueryError::of(&error)),
            Err(_) => Err(QueryError::Lost(format!("no answer within {:?}", self.deadline))),
        }
    }

    /// Sends a prepared statement when it is first polled. Several that are polled in order are sent in this order, and the
    /// server executes them in this order.
    pub(crate) async fn query(
        &self,
        text: &'static str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        match self.statements.get(text) {
            Some(statement) => self.client.query(statement, values).await,
            None => self.client.query(text, values).await,
        }
    }

    /// The same, for a statement without rows: the number of changed rows.
    pub(crate) async fn execute(
        &self,
        text: &'static str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, tokio_postgres::Error> {
        match self.statements.get(text) {
            Some(statement) => self.client.execute(statement, values).await,
            None => self.client.execute(text, values).await,
        }
    }

    /// Sends text without values: `BEGIN`, `ROLLBACK`, a migration.
    pub(crate) async fn send(&self, text: &str) -> Result<(), tokio_postgres::Error> {
        self.client.batch_execute(text).await
    }

    /// A statement that is not prepared, within the deadline.
    pub(crate) async fn query_text(
        &self,
        text: &'static str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, QueryError> {
        self.within(self.query(text, values)).await
    }

    /// The same, for a statement without rows.
    pub(crate) async fn execute_text(
        &self,
        text: &'static str,
        values: &[&(dyn ToSql + Sync)],
    ) -> Result<u64, QueryError> {
        self.within(self.execute(text, values)).await
    }

    /// Begins a transaction.
    pub(crate) async fn begin(&self) -> Result<(), QueryError> {
        self.within(self.send(sql::BEGIN)).await
    }

    /// R3: commits. Whatever goes wrong from here on, but for a refusal by the server that undid the transaction, is in doubt;
    /// so is a commit with a warning, which was cancelled while it waited for the standby.
    pub(crate) async fn commit(&self) -> Result<(), CommitError> {
        // Every earlier statement is answered, so each warning from here on is one of COMMIT.
        self.warned.store(false, Ordering::SeqCst);
        match self.within(self.send(sql::COMMIT)).await {
            Ok(()) if self.warned.load(Ordering::SeqCst) => {
                Err(CommitError::InDoubt("COMMIT had a warning".to_owned()))
            }
            Ok(()) => Ok(()),
            Err(error) if error.may_retry() => Err(CommitError::Undone(error)),
            Err(error) => Err(CommitError::InDoubt(error.to_string())),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.client.is_closed()
    }
}

/// Why a commit was not acknowledged.
#[derive(Debug, Error)]
pub(crate) enum CommitError {
    /// The server undid the transaction.
    #[error(transparent)]
    Undone(QueryError),
    /// Committed or not: R3 finds out.
    #[error("a commit is in doubt: {0}")]
    InDoubt(String),
}

/// A column of a row.
pub(crate) fn column<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, at: usize) -> Result<T, QueryError> {
    row.try_get(at).map_err(|error| QueryError::Row(chain_of(&error)))
}

async fn connect<T>(
    settings: &tokio_postgres::Config,
    tls: T,
    warned: &Arc<AtomicBool>,
) -> Result<(Client, JoinHandle<()>), QueryError>
where
    T: MakeTlsConnect<Socket>,
    T::TlsConnect: Send,
    T::Stream: Send + 'static,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    let (client, mut connection) = settings.connect(tls).await.map_err(|error| QueryError::of(&error))?;
    let warned = Arc::clone(warned);
    // Messages are read in order, so a warning is noted before the answer of its statement is seen.
    let driver = tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notice(notice) = message
                && notice.parsed_severity() == Some(Severity::Warning)
            {
                warned.store(true, Ordering::SeqCst);
                tracing::warn!(code = notice.code().code(), message = notice.message(), "the database warns");
            }
        }
    });
    Ok((client, driver))
}
