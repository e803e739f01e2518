//! A store that is opened to read the rows and the audit chain of one engine: it registers no engine, and changes nothing.

use std::sync::{Arc, Mutex, atomic::AtomicU64};

use tokio::{runtime::Handle, sync::watch};

use super::{
    Postgres, PostgresConfig, PostgresOpenError, Shared,
    connection::{QueryError, column},
    control_reads::ControlReads,
    database_clock::{DatabaseClock, transaction_time},
    key_versions::connect,
    migration,
    operator_chain::checkpoint,
    queue::Queue,
    reader::Reader,
    registration::archived_end,
    sql,
};

impl Postgres {
    /// Opens the rows of the database and the chain of the configuration's engine to read them, also while engines serve. The
    /// chain ends at the head of this moment. Changes are refused. Its connection is driven by the caller's runtime.
    ///
    /// # Errors
    /// The configuration is wrong, no host answers, the tables are of another release, or no engine of the name has ever
    /// registered.
    pub async fn open_to_read(config: &PostgresConfig) -> Result<Self, PostgresOpenError> {
        let (connection, tls) = connect(config).await?;
        let database = |error: QueryError| PostgresOpenError::database(config, &error);
        migration::check_version(&connection, config).await?;
        let engine_name = Arc::clone(&config.engine_name);
        let rows = connection.query_text(sql::ENGINE_CHAIN, &[&&*engine_name]).await.map_err(database)?;
        let Some(row) = rows.first() else {
            return Err(PostgresOpenError::NoEngine { place: config.place(), engine: engine_name });
        };
        let read = || Ok((checkpoint(column(row, 0)?, column(row, 1)?)?, archived_end(column(row, 2)?)?));
        let (head, archived) = read().map_err(database)?;
        let (clock, sent) = (DatabaseClock::new(), DatabaseClock::uptime());
        let time = connection.query_text(sql::CLOCK, &[]).await.map_err(database)?;
        clock.note(transaction_time(time.first()).map_err(database)?, sent, DatabaseClock::uptime());
        let queue = Queue::new(0, config.waits_for, config.place());
        queue.close();
        let reader = Arc::new(Reader::new(config.clone(), tls, Handle::current(), connection.host));
        let (head, archived) = (Mutex::new(head), AtomicU64::new(archived));
        let (max_keys, ended) = (watch::Sender::default(), watch::Sender::new(true));
        let control_reads = Arc::new(ControlReads::new(Arc::clone(&reader)));
        let shared = Arc::new(Shared { queue, clock, reader, control_reads, head, archived, max_keys, ended });
        Ok(Self { shared, engine_name, thread: None, stop: None })
    }
}
