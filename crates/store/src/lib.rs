//! What is kept: cards, controls, PIN records, the audit chain. No change without its audit line, in one transaction;
//! no reply before that transaction is on disk.
//!
//! What must never enter: a clear PIN, block or key, an account number that is not sealed.

pub mod conformance;

use std::{future::Future, io, path::PathBuf, pin::Pin};

use thiserror::Error;
use tokio::sync::watch;

use audit::entry::{Entry, Event};
use domain::card::{Card, CardKey, RegisteredAccount};
use domain::control::{Control, ControlId, Denied, NewControl, RetryTag, SealedTzpk, Transition};
use domain::storage_key::{MinKeyVersions, RecordKey};
use domain::time::UnixMillis;

/// What a store's method answers, in time.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A store of everything that outlives a call. Every method that changes something takes the audit line of the change
/// and answers only once both are durable; where it answers an error, neither happened.
///
/// The store reads the time, inside its transaction, on a clock that never runs backwards, after a restart neither. A
/// change whose caller has gone, or whose deadline has passed ([`clock::deadline::Deadline`]), is dropped before it is
/// applied; a note is written all the same.
pub trait Store: Send + Sync + 'static {
    /// The time of the store's clock: expiries are on it.
    fn now(&self) -> UnixMillis;

    /// A moment of the store's clock as wall time, for people and other machines.
    fn wall_time(&self, moment: UnixMillis) -> UnixMillis;

    /// A card, where it is known.
    fn card<'a>(&'a self, card: &'a CardKey) -> Answer<'a, Result<Option<Card>, StoreError>>;

    /// The PIN record of a card, where a PIN is set.
    fn pin<'a>(&'a self, card: &'a CardKey) -> Answer<'a, Result<Option<StoredPin>, StoreError>>;

    /// A control, until some time after it expired; one that set a PIN until [`domain::control::RETRY_GRACE`] after.
    fn control(&self, id: ControlId) -> Answer<'_, Result<Option<Control>, StoreError>>;

    /// Registers a card, or changes its account number, in its controls that are not spent too. Refused with [`RegisterError::AccountBound`] where a PIN is kept
    /// and the number would change; an absent `account` leaves the registered one.
    fn register(
        &self,
        card: CardKey,
        account: Option<RegisteredAccount>,
        line: Event,
    ) -> Answer<'_, Result<Card, RegisterError>>;

    /// Opens a control by [`NewControl::open`], with the store's time and the newest state of the card, and answers it.
    fn open(&self, control: NewControl, admission: Admission, line: Event) -> Answer<'_, Result<Control, OpenError>>;

    /// Moves a control on by [`domain::control::advance`], on its newest state. [`Transition::View`] is denied as
    /// [`Denied::Superseded`] where the card's PIN record is another one than was shown.
    fn advance(&self, id: ControlId, event: Transition, line: Event) -> Answer<'_, Result<(), AdvanceError>>;

    /// Spends a control and keeps the PIN record it paid for: the control moves by [`Transition::Set`], the card's status
    /// becomes `S`, any earlier record of the card is replaced, the card's generation rises. Denied as [`Denied::Superseded`] where the control has another
    /// account number by now, or the record is under a storage key older than the minimum of [`Store::note_keys`].
    fn set_pin(
        &self,
        id: ControlId,
        event: Transition,
        pin: StoredPin,
        line: Event,
    ) -> Answer<'_, Result<(), AdvanceError>>;

    /// Confirms a retry of the block that set the PIN under this control, by [`Control::confirm_retry`]: only while that PIN
    /// stands. The card's generation rises.
    fn confirm_retry(&self, id: ControlId, retry: RetryTag, line: Event) -> Answer<'_, Result<(), AdvanceError>>;

    /// PIN records in the store's own order of cards, those after `after`, at most `limit` of them.
    fn pins_after<'a>(
        &'a self,
        after: Option<&'a CardKey>,
        limit: usize,
    ) -> Answer<'a, Result<Vec<(CardKey, StoredPin)>, StoreError>>;

    /// The newest tzpk of each control that is usable at `now`.
    fn live_tzpks(&self, now: UnixMillis) -> Answer<'_, Result<Vec<SealedTzpk>, StoreError>>;

    /// Replaces each record by its re-encryption, where the record still stands and `key` is not below the minimum of
    /// [`Store::note_keys`]; answers how many were replaced. The store writes their number as the body of the event; where
    /// none was replaced, nothing happens, and no event is recorded.
    fn remake(&self, remade: Vec<RemadePin>, line: Event) -> Answer<'_, Result<u64, StoreError>>;

    /// Replaces the list of the keys that the engine uses, opaque here, and the minimum versions of the storage keys. From
    /// this change on a new PIN whose record is under an older key is denied as [`Denied::Superseded`], and no record is
    /// re-encrypted under an older key. When this is answered, [`Store::pins_after`] finds every earlier PIN.
    fn note_keys(&self, keys: Box<[u8]>, min: MinKeyVersions, line: Event) -> Answer<'_, Result<(), StoreError>>;

    /// Writes an audit line about something that changed nothing: a denial, a start, a stop.
    fn note(&self, line: Event) -> Answer<'_, Result<(), StoreError>>;

    /// Entries of the chain from sequence number `from` on, oldest first, at most `limit` of them.
    fn audit(&self, from: u64, limit: usize) -> Answer<'_, Result<Vec<Entry>, StoreError>>;

    /// The state of the store, to be watched. [`StoreState::Failed`] is the last state a store has.
    fn state(&self) -> watch::Receiver<StoreState>;
}

/// Whether a store serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreState {
    /// The store reads and writes.
    Open,
    /// The store writes the changes that wait, and refuses others.
    Closing,
    /// The store refuses every call. Only a restart of the process, which reads the disk again, ends this state.
    Failed(StoreFailure),
}

/// Why a store failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the store {} failed: {cause}, then start the engine again", directory.display())]
pub struct StoreFailure {
    /// The directory of the store.
    pub directory: PathBuf,
    /// What failed.
    pub cause: FailureCause,
}

/// What failed in a store. The text ends with what to do.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FailureCause {
    /// A commit found no space on the disk, or a quota was reached.
    #[error("the disk is full; free space")]
    DiskFull,
    /// A commit could not be written or synced.
    #[error("a commit could not be written ({problem}); repair the disk or its mount")]
    Commit {
        /// The kind of the operating system's error, where there is one.
        kind: Option<io::ErrorKind>,
        /// The error, for people.
        problem: String,
    },
    /// A background thread of the store's library ended: a table or a journal could not be written or removed.
    #[error("a table or journal could not be written in the background; check the disk, its mount and its free space")]
    Background,
    /// The thread that writes ended by a panic.
    #[error("the thread that writes ended by a panic; keep its log and report it")]
    Writer,
}

/// A PIN at rest.
#[derive(Clone)]
pub struct StoredPin {
    /// The boundary's record: form, key reference, block and tag, opaque here.
    pub record: Box<[u8]>,
    /// The storage key that the record names.
    pub key: RecordKey,
    /// The account number the block is bound to; none where the plasticId's digits bind it.
    pub account: Option<RegisteredAccount>,
}

/// A PIN record made anew: the same PIN, under another storage key.
pub struct RemadePin {
    /// Whose.
    pub card: CardKey,
    /// What it was made of.
    pub before: Box<[u8]>,
    /// What takes its place.
    pub after: Box<[u8]>,
    /// The storage key that `after` names.
    pub key: RecordKey,
}

/// Which controls may be opened.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    /// How many controls a card may have within any clock hour.
    pub controls_per_card_per_hour: u32,
    /// Whether a card must be registered first; else an unknown one is taken up, waiting for its PIN.
    pub unknown_cards: UnknownCards,
}

/// What to do with a card that was never registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownCards {
    /// Take it up, bound by the digits of its plasticId.
    Accept,
    /// Refuse it.
    Refuse,
}

/// The store did not do what was asked. Nothing was changed, but for [`StoreError::InDoubt`].
#[derive(Clone, Debug, Error)]
pub enum StoreError {
    /// The store is closing, or this read failed.
    #[error("the store is not available: {0}")]
    Unavailable(String),
    /// The store failed before this call, and refuses every call.
    #[error(transparent)]
    Failed(StoreFailure),
    /// The store failed while it wrote this change: the change may be on disk. The next start finds out.
    #[error("{0} (whether the last changes were kept is known after the start)")]
    InDoubt(StoreFailure),
    /// The bound on waiting changes is reached.
    #[error("the store has {limit} changes waiting already: try again")]
    Busy {
        /// The bound.
        limit: usize,
    },
    /// The caller's deadline passed before the change's turn came.
    #[error("the call's deadline passed before the store came to it")]
    DeadlinePassed,
    /// What was read is not what was written.
    #[error("the store is damaged at {place}: restore it from a backup")]
    Damaged {
        /// Which entry of which keyspace.
        place: String,
    },
}

/// Why a card was not registered.
#[derive(Clone, Debug, Error)]
pub enum RegisterError {
    /// A PIN is bound to the number the card has.
    #[error("a PIN is kept for this card, bound to the account number it has: it can't be changed")]
    AccountBound,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a control was not opened.
#[derive(Clone, Debug, Error)]
pub enum OpenError {
    /// The card was never registered.
    #[error("the card is not registered")]
    CardUnknown,
    /// The card's cap is reached.
    #[error("this card has had {cap} controls within the hour: try again later")]
    Cap {
        /// The cap.
        cap: u32,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a control did not move on.
#[derive(Clone, Debug, Error)]
pub enum AdvanceError {
    /// Its state does not allow it; an unknown one is [`Denied::NotUsable`].
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
