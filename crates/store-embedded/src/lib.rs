//! The embedded store, on fjall: one process, one writer thread, group commit.
//!
//! The writer takes all changes that wait, applies each to the newest state, writes one atomic batch with their audit
//! events, and syncs it to disk. Only then does it publish the changes to readers and answer them. So of racing changes to
//! one control exactly one finds it usable, and a reader never sees what a crash could undo. A commit that fails fails the
//! store ([`StoreState::Failed`]): its changes are in doubt until a restart reads the disk.
//!
//! A second thread watches the writer and the threads of fjall: where one of them ends, the store fails too. It also watches
//! the free space of the disk ([`StoreState::LowOnSpace`]).
//!
//! What must never enter: a clear PIN, block or key, an account number that is not sealed.
//!
//! ```
//! use audit::chain::Checkpoint;
//! use store::Store;
//! use store_embedded::{Embedded, EmbeddedConfig};
//!
//! # let runtime = tokio::runtime::Builder::new_current_thread().build()?;
//! # runtime.block_on(async {
//! let directory = tempfile::tempdir()?;
//! let store = Embedded::open(&EmbeddedConfig::new(directory.path().join("store")))?;
//! assert_eq!(store.checkpoint().await?, Checkpoint::EMPTY);
//! store.close().await;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod copy;
mod journal;
mod live;
mod packed_control;
mod packed_rows;
mod page;
mod reply;
mod reserve;
pub mod store_copy;
mod store_files;
mod table_checksum;
mod unregistered;
pub mod upkeep;
mod walk;
mod watch;
mod writer;

use std::{
    error::Error as StdError,
    fs,
    future::{Future, ready},
    io::{self, Write},
    iter,
    ops::Bound,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, config::CompressionPolicy};
use rustix::io::Errno;
use tempfile::TempDir;
use thiserror::Error;

use self::{
    journal::JournalError,
    live::LiveControls,
    page::{ControlPage, EntryPage},
    reply::promise,
    reserve::Reserve,
    store_files::{KEYSPACES, VERSION_FILE, missing_files},
    unregistered::UnregisteredCards,
    writer::{Command, OnDisk},
};
use audit::{
    archive::ArchivedPart,
    card_reference::CardReferenceKey,
    chain::Checkpoint,
    entry::{Entry, Event},
};
use clock::{MachineTime, SteadyClock, TimeSource, deadline::Deadline};
use domain::card::{Card, CardKey, RegisteredAccount, StoredPin};
use domain::control::{Control, ControlId, ControlState, SealedTzpk};
use domain::storage_key::MinKeyVersions;
use domain::time::UnixMillis;
use domain::{rules::CardState, tries::Tries};
use store::codec::{
    PinRow, card_key, card_of_key, decode_card, decode_card_reference_key, decode_control, decode_min, decode_pin,
};
use store::{
    Answer, Change, FailureCause, Outcome, Store, StoreError, StoreFailure, StoreOpenError, StoreState, engine_name,
};

/// The format of a directory this release reads and writes.
const FORMAT: u32 = 11;
/// The file that makes a directory a store's. It is the last file of a new store, so a store without a journal is damaged.
const FORMAT_FILE: &str = "FORMAT";
/// [`FORMAT_FILE`] of a store that is being made. No engine has served such a store.
const UNFINISHED_FORMAT_FILE: &str = "FORMAT.new";
/// The text of [`FORMAT_FILE`] before the number of the format.
const FORMAT_TEXT: &str = "pinseal store, format ";
/// The text instead of [`FORMAT_TEXT`] in a backup. No engine serves a backup: its controls may have been spent since.
const BACKUP_TEXT: &str = "pinseal store backup, format ";
/// The subdirectory of fjall's files.
const DATABASE: &str = "db";
/// A key of the meta keyspace: the last audit entry's number and hash, and the largest time that was committed.
const HEAD_KEY: &str = "audit head";
/// A key of the meta keyspace: the list of the keys that the engine last used, as `hsm::KeyId` writes it.
const KEYS_KEY: &str = "keys in use";
/// A key of the meta keyspace: the 32 bytes of the [`CardReferenceKey`].
const CARD_REFERENCE_KEY: &str = "card reference key";
/// A key of the meta keyspace: [`ArchivedPart`].
const ARCHIVED_KEY: &str = "audit archived";
/// A key of the meta keyspace: [`MinKeyVersions`].
const MIN_KEY_VERSIONS_KEY: &str = "min key versions";

/// How to open a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedConfig {
    /// The directory of the store; made, with mode 0700, where it is absent.
    pub directory: PathBuf,
    /// The most changes that may wait for the disk; one more is refused as [`StoreError::Busy`].
    pub waiting_changes_max: usize,
    /// The memory of its buffers and caches, in bytes; live controls not counted.
    pub memory_bytes_max: u64,
    /// The free bytes on the disk of the directory below which the store is [low on space](StoreState::LowOnSpace); 0 for
    /// never.
    pub reserve_bytes: u64,
    /// What to do where there is no store yet.
    pub absent: Absent,
}

/// What to do where there is no store yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// An empty store is made.
    Create,
    /// [`StoreOpenError::Absent`] is returned.
    Refuse,
}

impl EmbeddedConfig {
    /// The defaults, in this directory.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            waiting_changes_max: 4_096,
            memory_bytes_max: 64 << 20,
            reserve_bytes: 256 << 20,
            absent: Absent::Create,
        }
    }

    /// The defaults, for a store that must exist.
    pub fn existing(directory: PathBuf) -> Self {
        Self { absent: Absent::Refuse, ..Self::new(directory) }
    }
}

/// An open store. The directory is locked until it is dropped or closed.
pub struct Embedded {
    shared: Arc<Shared>,
    /// The thread that watches the writer. It ends after the writer.
    watch: Mutex<Option<JoinHandle<()>>>,
    engine_name: Arc<str>,
    /// The directory of a copy, removed when the store is dropped.
    copy: Option<TempDir>,
}

struct Shared {
    database: Database,
    /// Cards that were registered, or have had a PIN.
    cards: Keyspace,
    /// Cards that had a control lately, and neither registration nor PIN.
    unregistered: Keyspace,
    controls: Keyspace,
    /// Controls that have set a PIN: kept for longer than the others, for retries.
    set: Keyspace,
    pins: Keyspace,
    audit: Keyspace,
    meta: Keyspace,
    live: LiveControls,
    clock: SteadyClock,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Written only while the queue is locked.
    state: tokio::sync::watch::Sender<StoreState>,
    place: String,
    reserve: Reserve,
    /// The last audit entry on disk.
    head: Mutex<Checkpoint>,
    /// The number of the last archived entry on disk. Readers pass over the entries up to it; the writer removes their rows
    /// step by step.
    archived: AtomicU64,
    waiting_changes_max: usize,
    /// Makes the writer panic at the next change of a control.
    #[cfg(test)]
    writer_panics: std::sync::atomic::AtomicBool,
}

struct Queue {
    waiting: Vec<Command>,
}

/// The database and its keyspaces.
struct Tables {
    /// The names of the keyspaces that were absent.
    made: Vec<&'static str>,
    database: Database,
    cards: Keyspace,
    unregistered: Keyspace,
    controls: Keyspace,
    set: Keyspace,
    pins: Keyspace,
    audit: Keyspace,
    meta: Keyspace,
}

/// Why the database is not opened.
#[derive(Debug, Error)]
enum TablesError {
    #[error("{}", table_checksum::words(.0))]
    Database(#[from] fjall::Error),
    #[error("the keyspace {0:?} is absent")]
    NoKeyspace(&'static str),
}

impl Tables {
    /// Opens the database in a directory. fjall writes to the directory.
    ///
    /// # Errors
    /// fjall can't open the database, or a keyspace is absent and `absent` is [`Absent::Refuse`].
    fn open(directory: &Path, memory_bytes_max: u64, absent: Absent) -> Result<Self, TablesError> {
        let database = Database::builder(directory)
            .cache_size(memory_bytes_max / 4)
            .journal_compression(CompressionType::None)
            .manual_journal_persist(true)
            .open()?;
        let mut made = Vec::new();
        let mut keyspace = |name: &'static str| {
            if !database.keyspace_exists(name) {
                match absent {
                    Absent::Create => made.push(name),
                    Absent::Refuse => return Err(TablesError::NoKeyspace(name)),
                }
            }
            let options = || {
                KeyspaceCreateOptions::default()
                    .max_memtable_size(memory_bytes_max / 8)
                    .manual_journal_persist(true)
                    // Rows are short, or made of hashes and ciphertext: little would be won.
                    .data_block_compression_policy(CompressionPolicy::disabled())
            };
            Ok(database.keyspace(name, options)?)
        };
        let (cards, controls, pins) = (keyspace("cards")?, keyspace("controls")?, keyspace("pins")?);
        let (set, unregistered) = (keyspace("set")?, keyspace("unregistered")?);
        let (audit, meta) = (keyspace("audit")?, keyspace("meta")?);
        Ok(Self { made, database, cards, unregistered, controls, set, pins, audit, meta })
    }
}

impl Embedded {
    /// Opens a store, or makes one; reads the live controls into memory.
    ///
    /// # Errors
    /// Another process has the store open, other files are in its directory, it is absent and [`Absent::Refuse`] is set, it
    /// has another format, it is damaged, the disk is full, or the operating system refuses.
    pub fn open(config: &EmbeddedConfig) -> Result<Self, StoreOpenError> {
        Self::open_at(config, Box::new(MachineTime))
    }

    /// Opens a store that reads these clocks.
    pub(crate) fn open_at(config: &EmbeddedConfig, source: Box<dyn TimeSource>) -> Result<Self, StoreOpenError> {
        let absent = prepare(config)?;
        Self::open_prepared(config, source, absent)
    }

    /// `absent` is [`Absent::Create`] for a store that is being made.
    fn open_prepared(
        config: &EmbeddedConfig,
        source: Box<dyn TimeSource>,
        absent: Absent,
    ) -> Result<Self, StoreOpenError> {
        let path = || config.directory.clone();
        let files = config.directory.join(DATABASE);
        let damaged = |problem: &str| StoreOpenError::Damaged { path: path(), problem: problem.to_owned() };
        let opened = |error: fjall::Error| match (&error, refused_by_machine(&error)) {
            (fjall::Error::Locked, _) => StoreOpenError::Locked { path: path() },
            (_, Some(error)) => refused_to_open(path(), error),
            _ => damaged(&table_checksum::problem(&files, &error)),
        };
        // fjall would make an absent file, and remove a keyspace whose list of tables is absent.
        let find_missing = |files: &Path| match absent {
            Absent::Create => Ok(None),
            Absent::Refuse => Ok(missing_files(files)?.into_iter().next()),
        };
        journal::secure(&files, find_missing).map_err(|error| match error {
            JournalError::Locked => StoreOpenError::Locked { path: path() },
            JournalError::Io(error) => refused_to_open(path(), error),
            error @ (JournalError::Damaged { .. } | JournalError::Missing(_)) => damaged(&error.to_string()),
        })?;
        let tables = Tables::open(&files, config.memory_bytes_max, absent).map_err(|error| match error {
            TablesError::Database(error) => opened(error),
            error @ TablesError::NoKeyspace(_) => damaged(&error.to_string()),
        })?;
        if absent == Absent::Create {
            finish_format(&config.directory).map_err(|error| refused_to_open(path(), error))?;
        }
        let Tables { database, cards, unregistered, controls, set, pins, audit, meta, .. } = tables;

        let (head, floor) = match meta.get(HEAD_KEY).map_err(opened)? {
            Some(bytes) => decode_head(&bytes).ok_or_else(|| damaged("the audit head can't be read"))?,
            None => (Checkpoint::EMPTY, UnixMillis::default()),
        };
        let min = match meta.get(MIN_KEY_VERSIONS_KEY).map_err(opened)? {
            Some(bytes) => decode_min(&bytes).ok_or_else(|| damaged("the minimum key versions can't be read"))?,
            None => MinKeyVersions::default(),
        };
        let archived = match meta.get(ARCHIVED_KEY).map_err(opened)? {
            Some(bytes) => {
                let part = ArchivedPart::decode(&bytes);
                part.ok_or_else(|| damaged("the end of the archived audit entries can't be read"))?.end().sequence
            }
            None => 0,
        };
        let live = LiveControls::new();
        let mut on_disk = OnDisk { floor, ..OnDisk::default() };
        // Controls that have set a PIN come last: their state does not change any more.
        for (keyspace, pages) in [(&controls, &mut on_disk.controls), (&set, &mut on_disk.set)] {
            for row in keyspace.iter() {
                let (number, page) = row.into_inner().map_err(opened)?;
                let number = number_of(&number).ok_or_else(|| damaged("a page of controls has no number"))?;
                let (keep_until, rows) =
                    ControlPage::read(&page).ok_or_else(|| damaged("a page of controls can't be read"))?;
                pages.add(number, keep_until);
                for row in rows {
                    let control = decode_control(row).ok_or_else(|| damaged("a control can't be read"))?;
                    live.put(control.id, &packed_control::pack(&control));
                }
            }
        }
        let rows = unregistered.iter().map(|row| {
            let (key, row) = row.into_inner().map_err(opened)?;
            let found = card_of_key(&key).zip(decode_card(&row));
            found.ok_or_else(|| damaged("an unregistered card can't be read"))
        });
        let unregistered_cards = UnregisteredCards::of_rows(rows.collect::<Result<_, _>>()?);
        let clock = start_clock(source, floor, on_disk.controls.latest());

        let shared = Arc::new(Shared {
            database,
            cards,
            unregistered,
            controls,
            set,
            pins,
            audit,
            meta,
            live,
            clock,
            queue: Mutex::new(Queue { waiting: Vec::new() }),
            wake: Condvar::new(),
            state: tokio::sync::watch::Sender::new(StoreState::Open),
            place: config.directory.display().to_string(),
            reserve: Reserve { directory: path(), bytes: config.reserve_bytes },
            head: Mutex::new(head),
            archived: archived.into(),
            waiting_changes_max: config.waiting_changes_max,
            #[cfg(test)]
            writer_panics: false.into(),
        });
        shared.check_space();
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let spawned = thread::Builder::new().name(name.into()).spawn(run);
            spawned.map_err(|error| StoreOpenError::Io { path: path(), error })
        };
        let (running, ended) = mpsc::channel();
        let watching = Arc::clone(&shared);
        let watch = spawn("store-watch", Box::new(move || watch::run(&watching, &ended)))?;
        let writing = Arc::clone(&shared);
        let write = move || {
            writer::run(&writing, on_disk, unregistered_cards, min);
            // A caller that waits for the end may open the directory again.
            drop(writing);
            let _ = running.send(());
        };
        // Where this thread can't be started, its end of the channel is dropped, and the watching thread ends.
        spawn("store", Box::new(write))?;
        let (watch, engine_name) = (Mutex::new(Some(watch)), engine_name(&config.directory).into());
        Ok(Self { shared, watch, engine_name, copy: None })
    }

    fn begin_to_close(&self) -> Option<JoinHandle<()>> {
        let queue = locked(&self.shared.queue);
        self.shared.state.send_if_modified(|state| {
            let open = state.makes_changes();
            if open {
                *state = StoreState::Closing;
            }
            open
        });
        self.shared.wake.notify_one();
        drop(queue);
        locked(&self.watch).take()
    }

    fn read<T: Send + 'static>(&self, read: impl FnOnce(&Shared) -> Result<T, StoreError>) -> Answer<'_, T> {
        Box::pin(ready(self.shared.may_read().and_then(|()| read(&self.shared))))
    }

    fn enqueue(&self, command: Command) -> Result<(), StoreError> {
        let mut queue = locked(&self.shared.queue);
        match &*self.shared.state.borrow() {
            StoreState::LowOnSpace if !command.change.may_use_reserve() => return Err(StoreError::LowOnSpace),
            StoreState::Open | StoreState::LowOnSpace => {}
            StoreState::Unreachable | StoreState::Closing => {
                return Err(StoreError::Unavailable("it is closing".into()));
            }
            StoreState::Failed(failure) => return Err(StoreError::Failed(failure.clone())),
        }
        let limit = self.shared.waiting_changes_max;
        if queue.waiting.len() >= limit && !command.change.passes_the_queue_limit() {
            return Err(StoreError::Busy { limit });
        }
        queue.waiting.push(command);
        let is_first = queue.waiting.len() == 1;
        drop(queue);
        // The writer does not wait while the queue holds a change, so only the first change wakes it.
        if is_first {
            self.shared.wake.notify_one();
        }
        Ok(())
    }
}

impl Store for Embedded {
    fn apply(&self, change: Change, event: Event, deadline: Option<Deadline>) -> Answer<'_, Outcome> {
        let (promise, promised) = promise();
        let queued = self.enqueue(Command { change, event, deadline, promise });
        Box::pin(async move {
            queued?;
            // The writer ended without an answer: whether it had begun to write this change is not known here.
            promised.await.unwrap_or_else(|| Err(StoreError::InDoubt(self.shared.failure())))
        })
    }

    fn now(&self) -> UnixMillis {
        self.shared.clock.now()
    }

    fn wall_time(&self, moment: UnixMillis) -> UnixMillis {
        self.shared.clock.wall_time(moment)
    }

    fn card<'a>(&'a self, card: &'a CardKey) -> Answer<'a, Option<Card>> {
        self.read(|shared| shared.card(card))
    }

    fn accounts<'a>(&'a self, cards: &'a [CardKey]) -> Answer<'a, Vec<Option<RegisteredAccount>>> {
        self.read(|shared| {
            let account = |card| Ok(shared.card_state(&card_key(card))?.and_then(|card| card.account));
            cards.iter().map(account).collect()
        })
    }

    fn pin<'a>(&'a self, card: &'a CardKey) -> Answer<'a, Option<StoredPin>> {
        self.read(|shared| Ok(shared.pin(&card_key(card))?.map(|row| row.pin)))
    }

    fn tries<'a>(&'a self, card: &'a CardKey) -> Answer<'a, Option<Tries>> {
        self.read(|shared| Ok(shared.card_state(&card_key(card))?.map(|row| row.tries.tries)))
    }

    fn control(&self, id: ControlId) -> Answer<'_, Option<Control>> {
        self.read(|shared| Ok(shared.live.find(id)))
    }

    fn scan_pins<'a>(&'a self, after: Option<&'a CardKey>, limit: usize) -> Answer<'a, Vec<(CardKey, StoredPin)>> {
        self.read(|shared| {
            let from = after.map_or(Bound::Unbounded, |card| Bound::Excluded(card_key(card)));
            let rows = shared.pins.range((from, Bound::Unbounded)).take(limit).map(|row| {
                let (key, bytes) = row.into_inner().map_err(unavailable)?;
                let card = card_of_key(&key).ok_or_else(|| damaged("pins", "the key of a PIN record can't be read"))?;
                Ok((card, readable_pin(&bytes)?.pin))
            });
            rows.collect()
        })
    }

    fn live_tzpks(&self) -> Answer<'_, Vec<SealedTzpk>> {
        self.read(|shared| {
            let (now, mut tzpks) = (shared.clock.now(), Vec::new());
            shared.live.each(|control| match control.state {
                ControlState::Keyed { tzpk, .. } if now < control.expires_at => tzpks.push(tzpk),
                _ => {}
            });
            Ok(tzpks)
        })
    }

    fn needs_keys(&self) -> Answer<'_, bool> {
        self.read(|Shared { pins, cards, unregistered, .. }| {
            let is_empty = |keyspace: &Keyspace| keyspace.is_empty().map_err(unavailable);
            Ok(!is_empty(pins)? || !is_empty(cards)? || !is_empty(unregistered)?)
        })
    }

    fn card_reference_key(&self) -> Answer<'_, Option<CardReferenceKey>> {
        self.read(|shared| {
            let Some(bytes) = shared.meta.get(CARD_REFERENCE_KEY).map_err(unavailable)? else { return Ok(None) };
            let key = decode_card_reference_key(&bytes);
            Ok(Some(key.ok_or_else(|| damaged("meta", "the card reference key can't be read"))?))
        })
    }

    fn keys_in_use(&self) -> Answer<'_, Option<Vec<u8>>> {
        self.read(|shared| Ok(shared.meta.get(KEYS_KEY).map_err(unavailable)?.map(|bytes| bytes.to_vec())))
    }

    fn audit(&self, from: u64, limit: usize) -> Answer<'_, Vec<Entry>> {
        self.read(|shared| shared.audit_entries(from, limit))
    }

    fn archived(&self) -> Answer<'_, Option<ArchivedPart>> {
        self.read(|shared| {
            let Some(bytes) = shared.meta.get(ARCHIVED_KEY).map_err(unavailable)? else { return Ok(None) };
            let part = ArchivedPart::decode(&bytes);
            part.map(Some).ok_or_else(|| damaged("meta", "the end of the archived audit entries can't be read"))
        })
    }

    fn checkpoint(&self) -> Answer<'_, Checkpoint> {
        self.read(|shared| Ok(*locked(&shared.head)))
    }

    fn engine_name(&self) -> &Arc<str> {
        &self.engine_name
    }

    fn place(&self) -> &str {
        &self.shared.place
    }

    fn state(&self) -> tokio::sync::watch::Receiver<StoreState> {
        self.shared.state.subscribe()
    }

    fn free_bytes(&self) -> Option<u64> {
        Some(self.shared.reserve.free_bytes())
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            if let Some(watch) = self.begin_to_close() {
                // The thread ends by itself; a thread of the runtime waits for it.
                let _ = tokio::task::spawn_blocking(|| watch.join()).await;
            }
        })
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        if let Some(watch) = self.begin_to_close() {
            let _ = watch.join();
        }
    }
}

impl Shared {
    /// Fails the store: no later call is served, and the changes that wait are not made. The first cause stands.
    fn fail(&self, cause: FailureCause) {
        let mut queue = locked(&self.queue);
        let failed = self.state.send_if_modified(|state| {
            let first = !matches!(state, StoreState::Failed(_));
            if first {
                let failure = StoreFailure { place: self.place.clone(), cause };
                tracing::error!(%failure, "no change is accepted any more");
                *state = StoreState::Failed(failure);
            }
            first
        });
        let waiting = std::mem::take(&mut queue.waiting);
        drop(queue);
        if failed {
            self.wake.notify_one();
        }
        // A command that is dropped drops its promise, and its caller is answered.
        drop(waiting);
    }

    /// Why the store failed. Before that, a writer that does not answer has ended by a panic.
    fn failure(&self) -> StoreFailure {
        match &*self.state.borrow() {
            StoreState::Failed(failure) => failure.clone(),
            _ => StoreFailure { place: self.place.clone(), cause: FailureCause::Writer },
        }
    }

    /// A failed store may hold less in memory than on disk: it is not read.
    fn may_read(&self) -> Result<(), StoreError> {
        match &*self.state.borrow() {
            StoreState::Failed(failure) => Err(StoreError::Failed(failure.clone())),
            _ => Ok(()),
        }
    }

    fn card(&self, card: &CardKey) -> Result<Option<Card>, StoreError> {
        let key = card_key(card);
        let Some(row) = self.card_state(&key)? else { return Ok(None) };
        // A card has the status `S` or `D` because there is a PIN, and for no other reason.
        Ok(Some(row.card(self.pin(&key)?.map(|row| row.set_at))))
    }

    /// The state of a card on disk, by the card's key.
    fn card_state(&self, card_key: &[u8]) -> Result<Option<CardState>, StoreError> {
        // In this order: a row moves from the unregistered cards to the others, never back.
        let unregistered = self.unregistered.get(card_key).map_err(unavailable)?;
        let known = || self.cards.get(card_key).map_err(unavailable);
        let Some(bytes) = unregistered.map_or_else(known, |row| Ok(Some(row)))? else { return Ok(None) };
        decode_card(&bytes).map(Some).ok_or_else(|| damaged("cards", "a card can't be read"))
    }

    fn audit_entries(&self, from: u64, limit: usize) -> Result<Vec<Entry>, StoreError> {
        let unreadable = || damaged("audit", "an entry can't be read");
        let from = from.max(self.archived.load(Ordering::Acquire).saturating_add(1));
        // The page in which the entry stands begins with this entry or an earlier one.
        let first = match self.audit.range(..=from.to_be_bytes()).next_back() {
            Some(row) => number_of(&row.key().map_err(unavailable)?).ok_or_else(unreadable)?,
            None => from,
        };
        let mut entries = Vec::new();
        for row in self.audit.range(first.to_be_bytes()..) {
            let (first, page) = row.into_inner().map_err(unavailable)?;
            let first = number_of(&first).ok_or_else(unreadable)?;
            let page = EntryPage::read(&page).ok_or_else(unreadable)?;
            for (sequence, entry) in (first..).zip(page.entries().ok_or_else(unreadable)?) {
                if entries.len() == limit {
                    return Ok(entries);
                }
                if sequence >= from {
                    entries.push(Entry::decode(entry).map_err(|_| unreadable())?);
                }
            }
        }
        Ok(entries)
    }

    /// The PIN of a card on disk, by the card's key.
    fn pin(&self, card_key: &[u8]) -> Result<Option<PinRow>, StoreError> {
        self.pins.get(card_key).map_err(unavailable)?.map(|bytes| readable_pin(&bytes)).transpose()
    }
}

fn readable_pin(row: &[u8]) -> Result<PinRow, StoreError> {
    decode_pin(row).ok_or_else(|| damaged("pins", "a PIN record can't be read"))
}

/// Finds that the directory is a store's, or begins to make a store: then [`Absent::Create`] is returned.
fn prepare(config: &EmbeddedConfig) -> Result<Absent, StoreOpenError> {
    let directory = &config.directory;
    let path = || directory.clone();
    let io = |error| StoreOpenError::Io { path: path(), error };
    match contents(directory)? {
        Contents::Store => Ok(Absent::Refuse),
        Contents::Backup => Err(StoreOpenError::Backup { path: path() }),
        Contents::Nothing if config.absent == Absent::Refuse => Err(StoreOpenError::Absent { path: path() }),
        Contents::Nothing => {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(io)?;
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).map_err(io)?;
            let files = directory.join(DATABASE);
            // fjall writes its version file last, and does not continue a database without that file.
            if files.exists() && !files.join(VERSION_FILE).exists() {
                fs::remove_dir_all(files).map_err(io)?;
            }
            begin_format(directory, FORMAT_TEXT).map_err(io)?;
            Ok(Absent::Create)
        }
    }
}

/// What a directory holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Contents {
    /// The directory is absent or empty, or holds a store that is being made.
    Nothing,
    /// A store of this release's format.
    Store,
    /// A backup of such a store.
    Backup,
}

/// What a directory holds, by its format file.
///
/// # Errors
/// [`StoreOpenError::Foreign`] for other files, [`StoreOpenError::Damaged`] for a database without a format file,
/// [`StoreOpenError::Version`] for another format, or the operating system refuses.
fn contents(directory: &Path) -> Result<Contents, StoreOpenError> {
    let path = || directory.to_owned();
    let io = |error| StoreOpenError::Io { path: path(), error };
    let no_format = |problem: &str| match directory.join(DATABASE).join(KEYSPACES).is_dir() {
        true => StoreOpenError::Damaged { path: path(), problem: format!("the file {FORMAT_FILE} {problem}") },
        false => StoreOpenError::Foreign { path: path() },
    };
    let text = match fs::read(directory.join(FORMAT_FILE)) {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let taken = directory.exists() && fs::read_dir(directory).map_err(io)?.next().is_some();
            let is_nothing = !taken || directory.join(UNFINISHED_FORMAT_FILE).exists();
            return if is_nothing { Ok(Contents::Nothing) } else { Err(no_format("is absent")) };
        }
        Err(error) => return Err(io(error)),
    };
    let kinds = [(FORMAT_TEXT, Contents::Store), (BACKUP_TEXT, Contents::Backup)];
    let found =
        kinds.into_iter().find_map(|(before, kind)| Some((text.trim().strip_prefix(before)?.parse().ok()?, kind)));
    match found {
        Some((FORMAT, kind)) => Ok(kind),
        Some((version, _)) => Err(StoreOpenError::Version { path: path(), version, supported: FORMAT }),
        None => Err(no_format("can't be read")),
    }
}

/// Marks a directory whose store is being made.
fn begin_format(directory: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::File::create(directory.join(UNFINISHED_FORMAT_FILE))?;
    writeln!(file, "{text}{FORMAT}")?;
    file.sync_all()?;
    fs::File::open(directory)?.sync_all()
}

/// Marks the store of a directory as complete.
fn finish_format(directory: &Path) -> io::Result<()> {
    fs::rename(directory.join(UNFINISHED_FORMAT_FILE), directory.join(FORMAT_FILE))?;
    fs::File::open(directory)?.sync_all()
}

/// The clock of a store whose last commit was at `floor`, and whose controls are usable until `usable_until` at the latest.
///
/// A wall clock behind the floor does not say how long the store was closed, so every control that was open is over: the
/// clock starts at the latest of their expiries. It runs on from there, however far behind the wall clock is.
fn start_clock(source: Box<dyn TimeSource>, floor: UnixMillis, usable_until: UnixMillis) -> SteadyClock {
    let wall = UnixMillis(u64::try_from(source.wall_nanoseconds() / 1_000_000).unwrap_or_default());
    if wall >= floor {
        return SteadyClock::starting_at(floor, source);
    }
    tracing::warn!(
        behind = ?floor.since(wall),
        "this machine's clock is behind the store's last commit: every control that was open is over"
    );
    SteadyClock::starting_at(floor.max(usable_until), source)
}

fn encode_head(head: &Checkpoint, time: UnixMillis) -> Vec<u8> {
    [&head.sequence.to_be_bytes()[..], &time.0.to_be_bytes(), &head.hash].concat()
}

fn decode_head(bytes: &[u8]) -> Option<(Checkpoint, UnixMillis)> {
    let (sequence, rest) = bytes.split_first_chunk()?;
    let (time, hash) = rest.split_first_chunk()?;
    let head = Checkpoint { sequence: u64::from_be_bytes(*sequence), hash: hash.try_into().ok()? };
    Some((head, UnixMillis(u64::from_be_bytes(*time))))
}

/// The number of a page.
fn number_of(key: &[u8]) -> Option<u64> {
    key.try_into().ok().map(u64::from_be_bytes)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The operating system's error in an error of fjall. A missing file is damage, not a refusal: the files name one another.
/// An invalid argument is damage too, because the files hold the positions that fjall reads at.
fn refused_by_machine(error: &fjall::Error) -> Option<io::Error> {
    const DAMAGE: [io::ErrorKind; 5] = [
        io::ErrorKind::NotFound,
        io::ErrorKind::InvalidInput,
        io::ErrorKind::InvalidFilename,
        io::ErrorKind::IsADirectory,
        io::ErrorKind::NotADirectory,
    ];
    let number = os_error(error)?.raw_os_error()?;
    let refused = io::Error::from_raw_os_error(number);
    (number != Errno::OVERFLOW.raw_os_error() && !DAMAGE.contains(&refused.kind())).then_some(refused)
}

fn os_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a io::Error> {
    iter::successors(Some(error), |&error| error.source()).find_map(|error| error.downcast_ref::<io::Error>())
}

fn is_full(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The error of a read while the store serves.
fn unavailable(error: fjall::Error) -> StoreError {
    match refused_by_machine(&error) {
        None if matches!(error, fjall::Error::Storage(_)) => StoreError::Damaged { place: error.to_string() },
        _ => StoreError::Unavailable(error.to_string()),
    }
}

fn damaged(keyspace: &str, problem: &str) -> StoreError {
    StoreError::Damaged { place: format!("{keyspace}: {problem}") }
}

/// The error of the operating system while a store is opened.
fn refused_to_open(path: PathBuf, error: io::Error) -> StoreOpenError {
    if is_full(error.kind()) { StoreOpenError::DiskFull { path } } else { StoreOpenError::Io { path, error } }
}

#[cfg(test)]
mod tests;
