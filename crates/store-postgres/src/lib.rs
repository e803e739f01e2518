//! The store on PostgreSQL, which several engines share: one connection that writes, one transaction in flight.
//!
//! The writer takes all changes that wait, locks their rows, applies each by its rule in memory, writes the rows with their
//! audit events, and answers after the commit is acknowledged. The comments R1 to R11 name the rules of the protocol that keeps
//! several engines, a lost connection and a failover from losing a PIN, a try or a key:
//!
//! | rule | short |
//! |---|---|
//! | R1 | a transaction begins with the engine's row and ends with the head of its chain |
//! | R2 | an engine registers by compare-and-set, with the keys in use |
//! | R3 | a commit in doubt is found out by a fencing transaction on a new connection, before any answer |
//! | R4–R8 | expiry and generation are compared on locked rows, with the time read behind the locks |
//! | R9 | tries are numbered; forgiving never exceeds what was seen |
//! | R10 | keys are activated, raised and retired under one lock, in every engine's row |
//! | R11 | a plain read never answers a change |
//!
//! What must never enter: a clear PIN, block or key, an account number that is not sealed.
//!
//! # What the database needs
//!
//! Synchronous commits with a named standby; no values of statements in the server's log; servers whose clocks differ by less
//! than a minute. `docs/high-availability.md` has each setting, its value and what it guarantees.
//!
//! # Limits
//!
//! - Cards, lists and counts that an operator reads only inform (R11): a failover may take away what they show.
//! - An engine is refused for a retired key when it starts (R2). A reload is not checked for one.
//! - The events of [`key_versions::retire`] and [`key_versions::deregister`], and of an activation by the end of an engine, are in
//!   the chain [`OPERATOR`], for which no process signs checkpoints.
//! - A transaction waits as a whole for a row that another session has locked, for up to half of
//!   [`PostgresConfig::statement_timeout`]: the changes of other cards in it wait as long.
//!
//! ```no_run
//! use store::Store;
//! use store_postgres::{DatabaseHost, Postgres, PostgresConfig};
//!
//! # async fn open() -> Result<(), Box<dyn std::error::Error>> {
//! let host = DatabaseHost { name: "127.0.0.1".into(), port: 5432 };
//! let store = Postgres::open(&PostgresConfig::new(host, "pinseal", "pinseal", "engine-1")).await?;
//! assert_eq!(store.checkpoint().await?.sequence, 0);
//! store.close().await;
//! # Ok(())
//! # }
//! ```

mod batch;
mod connection;
mod control_reads;
pub mod copy;
mod database_clock;
pub mod key_versions;
mod migration;
mod operator_chain;
mod postgres_config;
mod queue;
mod read_only;
mod reader;
mod registration;
mod sql;
mod tls;
mod transaction;
pub mod upkeep;
mod writer;

use std::{
    fmt::Display,
    io,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use futures::future::{join, try_join_all};
use thiserror::Error;
use tokio::sync::{oneshot, watch};
use tokio_postgres::Row;

use self::{
    batch::{LoadedCard, card_of, number},
    connection::{Connection, QueryError, column},
    control_reads::ControlReads,
    database_clock::{DatabaseClock, transaction_time},
    operator_chain::checkpoint,
    queue::Queue,
    reader::{Reader, Value, value},
    registration::{RegisterError, Session},
    tls::Tls,
    writer::Writer,
};
use audit::{
    archive::ArchivedPart,
    card_reference::CardReferenceKey,
    chain::Checkpoint,
    entry::{Entry, Event},
};
use clock::deadline::Deadline;
use domain::card::{Card, CardKey, RegisteredAccount, StoredPin};
use domain::control::{Control, ControlId, ControlState, SealedTzpk};
use domain::storage_key::MaxKeyVersions;
use domain::time::UnixMillis;
use domain::tries::Tries;
use store::codec::{decode_card_reference_key, decode_control, decode_pin};
use store::{Answer, Change, FailureCause, Outcome, ReadEpoch, Store, StoreError, StoreState};

pub use self::migration::Migrated;
pub use self::postgres_config::{DatabaseHost, DatabaseTls, HostError, OPERATOR, PostgresConfig};

/// An open store. The engine's name is reserved until it is closed.
pub struct Postgres {
    shared: Arc<Shared>,
    engine_name: Arc<str>,
    /// Drives the connections. It ends after the writer, when `stop` is dropped: a closed store is still read.
    thread: Option<JoinHandle<()>>,
    stop: Option<oneshot::Sender<()>>,
}

struct Shared {
    queue: Queue,
    clock: DatabaseClock,
    reader: Arc<Reader>,
    control_reads: Arc<ControlReads>,
    /// The last entry of the engine's chain, by an acknowledged commit.
    head: Mutex<Checkpoint>,
    /// The number of the last archived entry.
    archived: AtomicU64,
    /// The highest storage key versions, by the last acknowledged commit.
    max_keys: watch::Sender<MaxKeyVersions>,
    /// Whether the writer has ended.
    ended: watch::Sender<bool>,
}

impl Shared {
    fn set_head(&self, head: Checkpoint) {
        *locked(&self.head) = head;
    }

    fn set_max_keys(&self, max_keys: MaxKeyVersions) {
        self.max_keys.send_if_modified(|known| std::mem::replace(known, max_keys) != max_keys);
    }
}

/// The last entry of an engine's audit chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineChain {
    /// The name of the engine.
    pub engine: String,
    /// The last entry.
    pub head: Checkpoint,
}

impl Postgres {
    /// Connects, makes or migrates the tables, and registers the engine. A name whose last process did not close the store is
    /// free after its lease.
    ///
    /// # Errors
    /// The configuration is wrong, no host accepts writes, the tables are of another release, or the engine's name is in use.
    pub async fn open(config: &PostgresConfig) -> Result<Self, PostgresOpenError> {
        config.check()?;
        config.check_engine_name()?;
        let tls = config.tls.as_ref().map(Tls::load).transpose()?;
        let (opened, opens) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let (thread_config, runtime) = (config.clone(), runtime()?);
        let run = move || {
            runtime.block_on(async move {
                match begin(thread_config, tls).await {
                    Ok(writer) => {
                        let shared = Arc::clone(&writer.shared);
                        // A caller who has gone has dropped `stop` too.
                        let _ = opened.send(Ok(Arc::clone(&shared)));
                        let write = async {
                            // A panic must not leave callers without an answer.
                            if tokio::spawn(writer.run()).await.is_err() {
                                shared.queue.fail(FailureCause::Writer);
                            }
                            shared.ended.send_replace(true);
                        };
                        let close = async {
                            let _ = stopped.await;
                            shared.queue.close();
                        };
                        join(write, close).await;
                        shared.reader.close().await;
                    }
                    Err(error) => drop(opened.send(Err(error))),
                }
            });
        };
        let thread = thread::Builder::new().name("store".into()).spawn(run).map_err(PostgresOpenError::Thread)?;
        let ended = || io::Error::other("the thread of the store ended by a panic");
        let shared = opens.await.map_err(|_| PostgresOpenError::Thread(ended()))??;
        let engine_name = Arc::clone(&config.engine_name);
        Ok(Self { shared, engine_name, thread: Some(thread), stop: Some(stop) })
    }

    /// The chains of all engines that have registered on the store.
    ///
    /// # Errors
    /// The database does not answer.
    pub async fn chains(&self) -> Result<Vec<EngineChain>, StoreError> {
        let rows = self.query(sql::CHAINS, Vec::new()).await?;
        let chain = |row: &Row| {
            let head = checkpoint(column(row, 1)?, column(row, 2)?)?;
            Ok(EngineChain { engine: column(row, 0)?, head })
        };
        rows.iter().map(|row| chain(row).map_err(unavailable)).collect()
    }

    /// Entries of any engine's chain, as [`Store::audit`].
    ///
    /// # Errors
    /// The database does not answer, or an entry can't be read.
    pub async fn audit_of(&self, engine: &str, from: u64, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = self.query(sql::AUDIT, vec![value(engine.to_owned()), value(number(from)), value(limit)]).await?;
        let entry = |row: &Row| {
            let bytes = column::<&[u8]>(row, 0).map_err(unavailable)?;
            Entry::decode(bytes).map_err(|_| damaged("audit: an entry can't be read"))
        };
        rows.iter().map(entry).collect()
    }

    async fn query(&self, text: &'static str, values: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        self.shared.queue.check_reads()?;
        self.shared.reader.query(text, values).await.map_err(unavailable)
    }

    async fn find_card(&self, card: &CardKey) -> Result<Option<batch::CardRow>, StoreError> {
        let rows = self.query(sql::CARD, names(card)).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let loaded = LoadedCard::read(row).map_err(unavailable)?;
        loaded.row.map(Some).ok_or_else(|| damaged("cards: the columns and the bytes of a card differ"))
    }
}

/// The values of a card's columns.
fn names(card: &CardKey) -> Vec<Value> {
    vec![value(card.tenant.as_str().to_owned()), value(card.plastic.as_str().to_owned())]
}

fn runtime() -> Result<tokio::runtime::Runtime, PostgresOpenError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(PostgresOpenError::Thread)
}

/// Everything before the first change.
async fn begin(config: PostgresConfig, tls: Option<Tls>) -> Result<Writer, PostgresOpenError> {
    let connected = Connection::open(&config, tls.as_ref(), 0, &[]).await;
    let mut connection = connected.map_err(|error| PostgresOpenError::database(&config, &error))?;
    migration::migrate(&connection, &config).await?;
    let session = match Session::register(&connection, &config).await {
        Ok(session) => session,
        Err(RegisterError::InUse) => {
            return Err(PostgresOpenError::InUse { place: config.place(), engine: Arc::clone(&config.engine_name) });
        }
        Err(RegisterError::Copying) => return Err(PostgresOpenError::Unfinished { place: config.place() }),
        Err(RegisterError::Query(QueryError::OtherRelease { version, supported })) => {
            return Err(PostgresOpenError::Version { place: config.place(), version, supported });
        }
        Err(error) => return Err(PostgresOpenError::database(&config, &error)),
    };
    let clock = match prepare(&mut connection).await {
        Ok(clock) => clock,
        Err(error) => {
            if let Err(error) = session.deregister(&connection).await {
                tracing::warn!(%error, "the engine is still registered: its name is free after its lease");
            }
            return Err(PostgresOpenError::database(&config, &error));
        }
    };
    let runtime = tokio::runtime::Handle::current();
    let reader = Arc::new(Reader::new(config.clone(), tls.clone(), runtime, connection.host));
    let queue = Queue::new(config.waiting_changes_max, config.waits_for, config.place());
    let (head, archived) = (Mutex::new(session.head), AtomicU64::new(session.archived));
    let (max_keys, ended) = (watch::Sender::new(session.max_keys), watch::Sender::new(false));
    let control_reads = Arc::new(ControlReads::new(Arc::clone(&reader)));
    let shared = Arc::new(Shared { queue, clock, reader, control_reads, head, archived, max_keys, ended });
    Ok(Writer { shared, config, tls, session, connection: Some(connection) })
}

/// Prepares the statements of the writer, and reads the clock.
async fn prepare(connection: &mut Connection) -> Result<DatabaseClock, QueryError> {
    connection.prepare(sql::WRITER).await?;
    let clock = DatabaseClock::new();
    let sent = DatabaseClock::uptime();
    let time = connection.query_text(sql::CLOCK, &[]).await?;
    clock.note(transaction_time(time.first())?, sent, DatabaseClock::uptime());
    Ok(clock)
}

impl Store for Postgres {
    fn apply(&self, change: Change, event: Event, deadline: Option<Deadline>) -> Answer<'_, Outcome> {
        let queued = self.shared.queue.add(change, event, deadline);
        Box::pin(async move {
            let answer = queued?.await;
            answer.unwrap_or_else(|_| Err(StoreError::Unresolved { place: self.shared.queue.place().to_owned() }))
        })
    }

    fn now(&self) -> UnixMillis {
        self.shared.clock.now()
    }

    /// The database's clock is wall time.
    fn wall_time(&self, moment: UnixMillis) -> UnixMillis {
        moment
    }

    fn card<'a>(&'a self, card: &'a CardKey) -> Answer<'a, Option<Card>> {
        Box::pin(async {
            let row = self.find_card(card).await?;
            Ok(row.map(|row| row.state.card(row.pin.map(|pin| pin.set_at))))
        })
    }

    fn accounts<'a>(&'a self, cards: &'a [CardKey]) -> Answer<'a, Vec<Option<RegisteredAccount>>> {
        Box::pin(async {
            let rows = try_join_all(cards.iter().map(|card| self.find_card(card))).await?;
            Ok(rows.into_iter().map(|row| row?.state.account).collect())
        })
    }

    fn pin<'a>(&'a self, card: &'a CardKey) -> Answer<'a, Option<StoredPin>> {
        Box::pin(async { Ok(self.find_card(card).await?.and_then(|row| row.pin).map(|row| row.pin)) })
    }

    fn tries<'a>(&'a self, card: &'a CardKey) -> Answer<'a, Option<Tries>> {
        Box::pin(async { Ok(self.find_card(card).await?.map(|row| row.state.tries.tries)) })
    }

    fn control(&self, id: ControlId) -> Answer<'_, Option<Control>> {
        Box::pin(async move {
            self.shared.queue.check_reads()?;
            self.shared.control_reads.read(id).await
        })
    }

    fn scan_pins<'a>(&'a self, after: Option<&'a CardKey>, limit: usize) -> Answer<'a, Vec<(CardKey, StoredPin)>> {
        Box::pin(async move {
            let mut values = after.map_or_else(|| vec![value(""), value("")], names);
            values.push(value(i64::try_from(limit).unwrap_or(i64::MAX)));
            let rows = self.query(sql::PINS, values).await?;
            let pin = |row: &Row| {
                let name = |at| column::<&str>(row, at).map_err(unavailable);
                let card = card_of(name(0)?, name(1)?).map_err(unavailable)?;
                let pin = decode_pin(column(row, 2).map_err(unavailable)?);
                Ok((card, pin.ok_or_else(|| damaged("cards: a PIN record can't be read"))?.pin))
            };
            rows.iter().map(pin).collect()
        })
    }

    fn live_tzpks(&self) -> Answer<'_, Vec<SealedTzpk>> {
        Box::pin(async {
            let rows = self.query(sql::LIVE_CONTROLS, vec![value(number(self.now().0))]).await?;
            let mut tzpks = Vec::new();
            for row in &rows {
                let control = decode_control(column(row, 0).map_err(unavailable)?);
                if let Some(ControlState::Keyed { tzpk, .. }) = control.map(|control| control.state) {
                    tzpks.push(tzpk);
                }
            }
            Ok(tzpks)
        })
    }

    fn needs_keys(&self) -> Answer<'_, bool> {
        Box::pin(async {
            let rows = self.query(sql::HAS_CARDS, Vec::new()).await?;
            rows.first().map_or(Ok(false), |row| column(row, 0).map_err(unavailable))
        })
    }

    /// Those of this engine; those of the last engine that reported, where this one never did.
    fn keys_in_use(&self) -> Answer<'_, Option<Vec<u8>>> {
        Box::pin(async {
            let rows = self.query(sql::KEYS_IN_USE, vec![value(self.engine_name.to_string())]).await?;
            rows.first().map_or(Ok(None), |row| column(row, 0).map_err(unavailable))
        })
    }

    fn other_keys(&self) -> Answer<'_, Vec<Box<[u8]>>> {
        Box::pin(async {
            let rows = self.query(sql::OTHER_KEYS, vec![value(self.engine_name.to_string())]).await?;
            let list = |row| Ok(column::<&[u8]>(row, 0).map_err(unavailable)?.into());
            rows.iter().map(list).collect()
        })
    }

    fn card_reference_key(&self) -> Answer<'_, Option<CardReferenceKey>> {
        Box::pin(async {
            let rows = self.query(sql::KEYS_IN_USE, vec![value(self.engine_name.to_string())]).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            let Some(bytes) = column::<Option<&[u8]>>(row, 1).map_err(unavailable)? else { return Ok(None) };
            let key = decode_card_reference_key(bytes);
            key.map(Some).ok_or_else(|| damaged("key_versions: the card reference key can't be read"))
        })
    }

    fn audit(&self, from: u64, limit: usize) -> Answer<'_, Vec<Entry>> {
        Box::pin(async move {
            let from = from.max(self.shared.archived.load(Ordering::Acquire).saturating_add(1));
            // What an unacknowledged commit added is not read.
            let head = locked(&self.shared.head).sequence;
            let kept = head.saturating_add(1).saturating_sub(from);
            let limit = limit.min(usize::try_from(kept).unwrap_or(usize::MAX));
            self.audit_of(&self.engine_name, from, limit).await
        })
    }

    fn archived(&self) -> Answer<'_, Option<ArchivedPart>> {
        Box::pin(async {
            let rows = self.query(sql::ARCHIVED, vec![value(self.engine_name.to_string())]).await?;
            let Some(row) = rows.first() else { return Ok(None) };
            let Some(bytes) = column::<Option<&[u8]>>(row, 0).map_err(unavailable)? else { return Ok(None) };
            let part = ArchivedPart::decode(bytes);
            part.map(Some).ok_or_else(|| damaged("engines: the end of the archived audit entries can't be read"))
        })
    }

    fn checkpoint(&self) -> Answer<'_, Checkpoint> {
        Box::pin(async { Ok(*locked(&self.shared.head)) })
    }

    fn engine_name(&self) -> &Arc<str> {
        &self.engine_name
    }

    fn place(&self) -> &str {
        self.shared.queue.place()
    }

    fn state(&self) -> watch::Receiver<StoreState> {
        self.shared.queue.state()
    }

    fn read_epoch(&self) -> ReadEpoch {
        self.shared.reader.epoch()
    }

    fn max_key_versions(&self) -> watch::Receiver<MaxKeyVersions> {
        self.shared.max_keys.subscribe()
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.shared.queue.close();
        let mut ended = self.shared.ended.subscribe();
        Box::pin(async move { drop(ended.wait_for(|ended| *ended).await) })
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.shared.queue.close();
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Why a store on PostgreSQL is not opened.
#[derive(Debug, Error)]
pub enum PostgresOpenError {
    /// The configuration has no host.
    #[error("the store has no host: name at least one")]
    NoHost,
    /// A host beyond this machine would be reached without TLS.
    #[error("the database {host} is not on this machine: configure TLS for it")]
    WithoutTls {
        /// The host and its port.
        host: String,
    },
    /// The name of the schema is not 1 to 63 of `a-z`, `0-9` and `_`, with no digit first.
    #[error("{schema:?} is not the name of a schema: use 1 to 63 of a-z, 0-9 and _, with no digit first")]
    Schema {
        /// The configured name.
        schema: String,
    },
    /// The engine has the name of the operator's audit chain.
    #[error("engine_name is {:?}, the name of the audit chain of the operator's commands: choose another", OPERATOR)]
    EngineName,
    /// A file of TLS can't be used.
    #[error("can't use {} for TLS to the database: {problem}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// The database does not answer, or refuses.
    #[error("can't open {place}: {problem}; check its hosts, its role and its log")]
    Database {
        /// The database.
        place: String,
        /// The last problem.
        problem: String,
    },
    /// The tables have the version of another release; 0 where there are none.
    #[error(
        "the tables of {place} have version {version}, and this release uses {supported}: use the release that made them, or migrate"
    )]
    Version {
        /// The database.
        place: String,
        /// The version of the tables.
        version: i32,
        /// The version of this release.
        supported: i32,
    },
    /// The database has a part of the copy of another store.
    #[error(
        "{place} has a part of a copy: repeat the command `pinseal store copy`, which completes it, then start the engine"
    )]
    Unfinished {
        /// The database.
        place: String,
    },
    /// No engine of the name has ever registered.
    #[error("{place} has no engine {engine}: `pinseal store engines` lists the names")]
    NoEngine {
        /// The database.
        place: String,
        /// The name.
        engine: Arc<str>,
    },
    /// Another process has registered under the name and renews its lease.
    #[error("the engine {engine} runs already on {place}: stop that process, or give this engine another name")]
    InUse {
        /// The database.
        place: String,
        /// The name of the engine.
        engine: Arc<str>,
    },
    /// The operating system refused a thread.
    #[error("can't start the thread of the store: {0}")]
    Thread(io::Error),
}

impl PostgresOpenError {
    fn database(config: &PostgresConfig, problem: &dyn Display) -> Self {
        Self::Database { place: config.place(), problem: problem.to_string() }
    }
}

fn unavailable(error: QueryError) -> StoreError {
    StoreError::Unavailable(error.to_string())
}

fn damaged(place: &str) -> StoreError {
    StoreError::Damaged { place: place.to_owned() }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
