//! The seam between the engine and what it keeps: cards, controls, PIN records, the audit chain.
//!
//! A [`Change`] is data. A store applies a change and its audit event in one transaction, by the rules of [`domain::rules`],
//! and answers only after both are durable. [`conformance`] is the suite of tests that every store passes.
//!
//! What must never enter: a clear PIN, block or key, an account number that is not sealed.
//!
//! ```
//! use audit::entry::Event;
//! use domain::{card::CardKey, rules::Admission};
//! use store::{ChangeError, Store};
//!
//! /// Opens a control to set a PIN, then reports how many seconds it has left.
//! async fn open(
//!     store: &dyn Store,
//!     control: domain::control::NewControl,
//!     admission: Admission,
//!     event: Event,
//! ) -> Result<u64, ChangeError> {
//!     let control = store.open_control(control, admission, event).await?;
//!     Ok(control.remaining(store.now()).as_secs())
//! }
//!
//! // A change of a caller is dropped with the call; an event that has happened is recorded in any case.
//! assert!(store::Change::Reencrypt(Vec::new()).may_be_dropped());
//! assert!(!store::Change::RecordEvent.may_be_dropped());
//! ```

pub mod codec;
pub mod conformance;
pub mod control_parts;
pub mod copy;
mod open_error;
pub mod row_bytes;
pub mod rows;
pub mod upkeep;

use std::{fs, future::Future, io, path::Path, pin::Pin, sync::Arc};

use thiserror::Error;
use tokio::sync::watch;

use audit::{
    archive::ArchivedPart,
    card_reference::CardReferenceKey,
    chain::Checkpoint,
    entry::{Body, CardEvent, Entry, Event, TryStamp},
};
use clock::deadline::Deadline;
use domain::card::{Card, CardKey, ReencryptedPin, RegisteredAccount, StoredPin};
use domain::control::{Control, ControlId, Denied, NewControl, PageClient, PageId, RetryTag, SealedTzpk, Transition};
use domain::rules::{Admission, UnknownCards};
use domain::storage_key::{LoadedKeys, MaxKeyVersions};
use domain::time::UnixMillis;
use domain::tries::{ChangeVerdict, Compared, ReservedTry, Tries, Verdict};

pub use self::open_error::StoreOpenError;

/// The answer of a store, in time.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A store of everything that outlives a call.
///
/// The store reads the time, inside its transaction, on a clock that never runs backwards, after a restart neither.
pub trait Store: Send + Sync + 'static {
    /// Applies a change, on the newest state, by the rule that the variant of [`Change`] names, and records the event that
    /// [`Outcome::event`] returns in the same transaction. Answers after both are durable; a [`StoreError`] other than
    /// [`StoreError::InDoubt`] and [`StoreError::Unresolved`] means that neither happened.
    ///
    /// A change that [`may be dropped`](Change::may_be_dropped) is not applied once its deadline has passed, or the
    /// returned future was dropped.
    fn apply(&self, change: Change, event: Event, deadline: Option<Deadline>) -> Answer<'_, Outcome>;

    /// The time of the store's clock; expiries are on it.
    fn now(&self) -> UnixMillis;

    /// A moment of the store's clock as wall time, for people and other machines.
    fn wall_time(&self, moment: UnixMillis) -> UnixMillis;

    /// A card; `None` where it is unknown.
    fn card<'a>(&'a self, card: &'a CardKey) -> Answer<'a, Option<Card>>;

    /// The registered account number of each card, in their order; `None` for a card without one.
    fn accounts<'a>(&'a self, cards: &'a [CardKey]) -> Answer<'a, Vec<Option<RegisteredAccount>>>;

    /// The PIN record of a card; `None` where no PIN is set.
    fn pin<'a>(&'a self, card: &'a CardKey) -> Answer<'a, Option<StoredPin>>;

    /// The tries of a card, at the last commit; `None` where the card is unknown.
    fn tries<'a>(&'a self, card: &'a CardKey) -> Answer<'a, Option<Tries>>;

    /// A control, at least until [`Control::keep_until`].
    fn control(&self, id: ControlId) -> Answer<'_, Option<Control>>;

    /// PIN records in the store's own order of cards, those after `after`, at most `limit` of them. Each record that stands
    /// during the whole scan is found once.
    fn scan_pins<'a>(&'a self, after: Option<&'a CardKey>, limit: usize) -> Answer<'a, Vec<(CardKey, StoredPin)>>;

    /// The newest tzpk of each control that is usable.
    fn live_tzpks(&self) -> Answer<'_, Vec<SealedTzpk>>;

    /// Whether the store holds a card or a PIN record, which open only under the keys that encrypted them.
    fn needs_keys(&self) -> Answer<'_, bool>;

    /// The list of keys of the last [`Change::SetKeysInUse`]; `None` where no engine has started on the store.
    fn keys_in_use(&self) -> Answer<'_, Option<Vec<u8>>>;

    /// The lists of keys of the other engines on the store that have started, and the last list of all where the store has
    /// data. A key of this engine that is in such a list too must be the same key. A store of one engine has none.
    fn other_keys(&self) -> Answer<'_, Vec<Box<[u8]>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// The key of the card references in the audit events of this store; `None` where no engine has started on the store.
    fn card_reference_key(&self) -> Answer<'_, Option<CardReferenceKey>>;

    /// Entries of the audit chain from sequence number `from` on, oldest first, at most `limit` of them. Entries that were
    /// removed are passed over.
    fn audit(&self, from: u64, limit: usize) -> Answer<'_, Vec<Entry>>;

    /// What is left of the entries that [`Change::RemoveArchived`] removed; `None` where the store has the whole chain.
    fn archived(&self) -> Answer<'_, Option<ArchivedPart>>;

    /// Sequence number and hash of the last durable audit entry.
    fn checkpoint(&self) -> Answer<'_, Checkpoint>;

    /// The name of the engine that writes this store's audit chain, such as [`engine_name`] of its directory.
    fn engine_name(&self) -> &Arc<str>;

    /// Where the store is, for messages to people: the path of a directory, or the address of a database.
    fn place(&self) -> &str;

    /// The state of the store, to be watched. [`StoreState::Failed`] is the last state of a store.
    fn state(&self) -> watch::Receiver<StoreState>;

    /// The highest storage key versions that a record may be under, to be watched: every engine on the store has them. A store
    /// of one engine bounds none.
    fn max_key_versions(&self) -> watch::Receiver<MaxKeyVersions> {
        watch::channel(MaxKeyVersions::default()).1
    }

    /// Where reads come from. A refusal that follows from a read is answered after [`Store::check_reads`] in the same epoch.
    fn read_epoch(&self) -> ReadEpoch {
        ReadEpoch::Final
    }

    /// The free bytes of the store's disk; `None` for a store that does not know its disk.
    fn free_bytes(&self) -> Option<u64> {
        None
    }

    /// Refuses further changes, makes those that wait durable, and returns after that, or after the store has failed.
    fn close(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// What makes the state durable that reads show (R11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadEpoch {
    /// Reads show durable state alone.
    Final,
    /// A change that is acknowledged in the same epoch, for it goes to the same server: a read may show what is not replicated.
    Connection(usize),
    /// Nothing: reads come from another server than changes go to.
    Apart,
}

/// A change, as data.
#[derive(Clone)]
pub enum Change {
    /// By [`domain::rules::register`]; the card's controls follow by [`domain::rules::follow_account`].
    /// [`Outcome::Registered`].
    RegisterCard {
        /// The card to add or change.
        card: CardKey,
        /// The sealed account number; `None` leaves the registered one.
        account: Option<RegisteredAccount>,
    },
    /// By [`domain::rules::open`]. [`Outcome::Opened`].
    OpenControl {
        /// The control to open.
        control: NewControl,
        /// The operator's rules.
        admission: Admission,
    },
    /// By [`domain::rules::advance`]; [`Denied::NotUsable`] for an unknown control. [`Outcome::Done`].
    Advance {
        /// The control to advance.
        control: ControlId,
        /// What happens to the control.
        transition: Transition,
    },
    /// By [`domain::rules::start_page`]; [`Denied::NotUsable`] for an unknown control. [`Outcome::Done`], or
    /// [`Outcome::Unchanged`] for a page that started the control before.
    StartPage {
        /// The control whose page is started.
        control: ControlId,
        /// The client of the page.
        client: PageClient,
        /// The name of the page.
        id: PageId,
    },
    /// By [`domain::rules::confirm_retry`]; [`Denied::NotUsable`] for an unknown control. [`Outcome::Done`].
    ConfirmRetry {
        /// The control under which the PIN was set.
        control: ControlId,
        /// The tag of the block that was received again.
        retry: RetryTag,
    },
    /// Each by [`domain::rules::reencrypt`]; a PIN set in between stays. [`Outcome::Reencrypted`].
    Reencrypt(Vec<ReencryptedPin>),
    /// Sets the PIN of a block under a zone key, by [`domain::pin_rules::set_by_zone`]. [`Outcome::SetByZone`].
    SetPinByZone {
        /// The card to set the PIN of.
        card: CardKey,
        /// The record of the PIN.
        pin: StoredPin,
        /// The tag of the block.
        tag: RetryTag,
        /// What happens to a card that was never registered.
        unknown: UnknownCards,
    },
    /// Records that a block or value was made from a PIN, where the record still stands, by [`domain::pin_rules::give`].
    /// [`Outcome::Done`]. The engine answers with the block after this change.
    GivePin {
        /// The card of the PIN.
        card: CardKey,
        /// The record that was translated.
        shown: Box<[u8]>,
    },
    /// Reserves a try, by [`domain::pin_rules::reserve_try`]. [`Outcome::TryReserved`]. The boundary compares after this
    /// change, once for each number.
    ReserveTry {
        /// The card of the PIN.
        card: CardKey,
        /// The tries of the card that may be used.
        limit: u32,
        /// What the boundary compares.
        compared: Compared,
    },
    /// Settles a try to verify the PIN, by [`domain::pin_rules::settle_try`]. [`Outcome::TrySettled`].
    SettleTry {
        /// The card of the PIN.
        card: CardKey,
        /// The number of the try.
        number: u64,
        /// What the boundary found.
        verdict: Verdict,
        /// The tries of the card that may be used; stated in outcome and event.
        limit: u32,
    },
    /// Settles a try to change the PIN, by [`domain::pin_rules::settle_change`]. [`Outcome::TrySettled`].
    SettleChange {
        /// The card of the PIN.
        card: CardKey,
        /// The number of the try.
        number: u64,
        /// What the boundary found.
        verdict: ChangeVerdict,
        /// The tries of the card that may be used; stated in outcome and event.
        limit: u32,
        /// The control of the caller, where its blocks are under a tzpk.
        control: Option<ControlUse>,
    },
    /// Forgives tries, by [`domain::pin_rules::reset_tries`]. [`Outcome::TriesReset`].
    ResetTries {
        /// The card of the tries.
        card: CardKey,
        /// The last try that is forgiven: the number of reserved tries that the operator saw.
        up_to: u64,
        /// The tries of the card that may be used; stated in outcome and event.
        limit: u32,
    },
    /// Sets a generated PIN, by [`domain::pin_rules::generate`]. [`Outcome::Done`].
    GeneratePin {
        /// The card to set the PIN of.
        card: CardKey,
        /// The record of the PIN.
        pin: StoredPin,
    },
    /// Replaces the account number of a card, by [`domain::pin_rules::replace_account`]; the card's controls follow by
    /// [`domain::rules::follow_account`]. [`Outcome::Registered`].
    ReplaceAccount {
        /// The card to change.
        card: CardKey,
        /// The sealed account number.
        account: RegisteredAccount,
        /// The record that was re-encrypted for this account number; `None` for a card without a PIN.
        pin: Option<ReencryptedPin>,
    },
    /// Gives a card the PIN of its predecessor, by [`domain::pin_rules::transfer`]. [`Outcome::Done`], or
    /// [`Outcome::Unchanged`] for a repeated transfer.
    TransferPin {
        /// The predecessor.
        from: CardKey,
        /// The record of the predecessor that was re-encrypted.
        before: Box<[u8]>,
        /// The card to set the PIN of.
        to: CardKey,
        /// The record of this card.
        pin: StoredPin,
    },
    /// Replaces the list of keys that the engine uses, and the minimum key versions. [`Outcome::Done`]. When this is answered
    /// and [`Store::max_key_versions`] admits the keys, no record under an older key is written any more, and
    /// [`Store::scan_pins`] finds every earlier one. Until then another engine on the store lacks the keys.
    SetKeysInUse {
        /// The keys.
        keys: Box<ReportedKeys>,
        /// For the start of an engine.
        start: Option<Box<KeysAtStart>>,
    },
    /// Removes the entries of this part, which are in archive files, from the audit chain. [`Outcome::Done`]. Nothing is
    /// removed, and [`StoreError::Damaged`] returned, where the part does not end with an entry of the store.
    RemoveArchived(Box<ArchivedPart>),
    /// Changes nothing, and records no event: its answer makes durable what a read of the same [`ReadEpoch`] showed.
    /// [`Outcome::Unchanged`].
    ConfirmReads,
    /// Records the event alone: a start, a stop, the end of a rotation. [`Outcome::Done`].
    RecordEvent,
    /// Records the event alone: a read, or a refusal. A caller can cause any number of them, so they do not use the reserve
    /// of a store that is [low on space](StoreState::LowOnSpace). [`Outcome::Done`].
    RecordAccess,
}

/// The keys that an engine reports.
#[derive(Clone, Default)]
pub struct ReportedKeys {
    /// The list, opaque here.
    pub list: Box<[u8]>,
    /// The storage keys. Later changes write records under the newest of each kind, or under the newest that every engine has.
    pub loaded: LoadedKeys,
    /// The lists of [`Store::other_keys`] that the engine has compared with its own.
    pub compared: Vec<Box<[u8]>>,
}

/// What an engine that starts says of its keys beside those that it reports. A store that several engines share refuses the start
/// of an engine that has a retired key.
#[derive(Clone)]
pub struct KeysAtStart {
    /// The key of the card references.
    pub card_reference_key: CardReferenceKey,
}

/// The use of a control by a change of the PIN.
#[derive(Clone)]
pub struct ControlUse {
    /// The name of the control.
    pub id: ControlId,
    /// The tzpk that encrypts the blocks.
    pub under: SealedTzpk,
}

impl Change {
    /// Whether the change is dropped where its caller has gone or its deadline has passed. Keys in use and events that have
    /// happened do not depend on a caller. The engine settles a compared try in a task that outlives the call; the new PIN
    /// of a right change alone is dropped with its caller, and the try is then settled as a verification.
    pub fn may_be_dropped(&self) -> bool {
        match self {
            Self::SettleChange { verdict, .. } => matches!(verdict, ChangeVerdict::Right { .. }),
            Self::SettleTry { .. } | Self::SetKeysInUse { .. } | Self::RecordEvent | Self::RecordAccess => false,
            _ => true,
        }
    }

    /// Whether the change waits although the queue is full. A settlement follows a reservation, which the limit admitted, so
    /// there are no more settlements than admitted calls.
    pub fn passes_the_queue_limit(&self) -> bool {
        matches!(self, Self::SettleTry { .. } | Self::SettleChange { .. })
    }

    /// Whether a store that is [low on space](StoreState::LowOnSpace) makes the change. The reserve is for controls that are
    /// open, for events that have happened, and for the tries of cards: an authorization goes on as long as it can. A change
    /// that begins other work, or rewrites records, is refused.
    pub fn may_use_reserve(&self) -> bool {
        match self {
            Self::Advance { .. }
            | Self::StartPage { .. }
            | Self::ConfirmRetry { .. }
            | Self::ReserveTry { .. }
            | Self::ResetTries { .. }
            | Self::SettleTry { .. }
            | Self::SettleChange { .. }
            | Self::SetKeysInUse { .. }
            | Self::RemoveArchived(_)
            | Self::ConfirmReads
            | Self::RecordEvent => true,
            Self::RegisterCard { .. }
            | Self::OpenControl { .. }
            | Self::Reencrypt(_)
            | Self::SetPinByZone { .. }
            | Self::GivePin { .. }
            | Self::GeneratePin { .. }
            | Self::ReplaceAccount { .. }
            | Self::TransferPin { .. }
            | Self::RecordAccess => false,
        }
    }
}

/// What a set by a zone key did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneSet {
    /// The PIN of the block was set.
    New,
    /// The block set the PIN that stands: nothing was changed.
    Repeated,
}

/// The durable outcome of a change.
#[derive(Clone)]
pub enum Outcome {
    /// Nothing was changed.
    Denied(Denied),
    /// The card after its registration.
    Registered(Card),
    /// The control that was opened.
    Opened(Box<Control>),
    /// The number of records that were replaced; 0 where nothing was changed.
    Reencrypted(u64),
    /// The PIN of a block under a zone key stands.
    SetByZone(ZoneSet),
    /// The try that was reserved.
    TryReserved(Box<ReservedTry>),
    /// A try was settled.
    TrySettled {
        /// The number of the try.
        number: u64,
        /// The tries that are left.
        tries_left: u32,
    },
    /// Tries were forgiven.
    TriesReset {
        /// The tries of the card.
        tries: Tries,
        /// The tries that are left.
        tries_left: u32,
    },
    /// The same change was made before: nothing was changed.
    Unchanged,
    /// The change was made.
    Done,
}

impl Outcome {
    /// The event that a store records with this outcome: `None` where nothing was changed; of a re-encryption with the
    /// number of records, of tries with their number.
    pub fn event(&self, event: Event) -> Option<Event> {
        match *self {
            Self::Denied(_) | Self::Reencrypted(0) | Self::SetByZone(ZoneSet::Repeated) | Self::Unchanged => None,
            Self::Reencrypted(count) => Some(Event { body: Body::RecordsReencrypted { count }, ..event }),
            Self::TryReserved(ref reserved) => Some(tried(event, reserved.number, reserved.tries_left)),
            Self::TrySettled { number, tries_left } => Some(tried(event, number, tries_left)),
            Self::TriesReset { tries, tries_left } => Some(tried(event, tries.forgiven, tries_left)),
            Self::Registered(_) | Self::Opened(_) | Self::SetByZone(ZoneSet::New) | Self::Done => Some(event),
        }
    }
}

/// The event of a card with the number of its try.
fn tried(event: Event, number: u64, tries_left: u32) -> Event {
    let body = match event.body {
        Body::Card(card) => Body::Card(CardEvent { tried: Some(TryStamp { number, tries_left }), ..card }),
        body => body,
    };
    Event { body, ..event }
}

/// The changes, each with the type of its outcome. Those of a call carry the call's deadline.
impl dyn Store + '_ {
    /// [`Change::RegisterCard`].
    ///
    /// # Errors
    /// [`Denied::AccountBound`], or an error of the store.
    pub async fn register_card(
        &self,
        card: CardKey,
        account: Option<RegisteredAccount>,
        event: Event,
    ) -> Result<Card, ChangeError> {
        match self.apply_for_call(Change::RegisterCard { card, account }, event).await? {
            Outcome::Registered(card) => Ok(card),
            _ => Err(StoreError::OtherOutcome.into()),
        }
    }

    /// [`Change::OpenControl`], which is queued when this is called, under the deadline of the call.
    ///
    /// # Errors
    /// [`Denied::CardUnknown`], [`Denied::Cap`], or an error of the store.
    pub fn open_control(
        &self,
        control: NewControl,
        admission: Admission,
        event: Event,
    ) -> impl Future<Output = Result<Control, ChangeError>> {
        let applied = self.apply_for_call(Change::OpenControl { control, admission }, event);
        async {
            match applied.await? {
                Outcome::Opened(control) => Ok(*control),
                _ => Err(StoreError::OtherOutcome.into()),
            }
        }
    }

    /// [`Change::Advance`], which is queued when this is called, under the deadline of the call.
    ///
    /// # Errors
    /// The denials of [`domain::rules::advance`], or an error of the store.
    pub fn advance(
        &self,
        control: ControlId,
        transition: Transition,
        event: Event,
    ) -> impl Future<Output = Result<(), ChangeError>> {
        let applied = self.apply_for_call(Change::Advance { control, transition }, event);
        async { applied.await.map(drop) }
    }

    /// [`Change::StartPage`].
    ///
    /// # Errors
    /// [`Denied::NotUsable`], or an error of the store.
    pub async fn start_page(
        &self,
        control: ControlId,
        client: PageClient,
        id: PageId,
        event: Event,
    ) -> Result<(), ChangeError> {
        self.apply_for_call(Change::StartPage { control, client, id }, event).await.map(drop)
    }

    /// [`Change::ConfirmRetry`].
    ///
    /// # Errors
    /// [`Denied::NotUsable`], or an error of the store.
    pub async fn confirm_retry(&self, control: ControlId, retry: RetryTag, event: Event) -> Result<(), ChangeError> {
        self.apply_for_call(Change::ConfirmRetry { control, retry }, event).await.map(drop)
    }

    /// [`Change::Reencrypt`]: returns the number of records that were replaced, which the event states too.
    ///
    /// # Errors
    /// An error of the store.
    pub async fn reencrypt(&self, pins: Vec<ReencryptedPin>, event: Event) -> Result<u64, StoreError> {
        match self.apply(Change::Reencrypt(pins), event, Deadline::of_this_call()).await? {
            Outcome::Reencrypted(count) => Ok(count),
            _ => Err(StoreError::OtherOutcome),
        }
    }

    /// [`Change::SetPinByZone`], which is queued when this is called, under the deadline of the call.
    ///
    /// # Errors
    /// [`Denied::ReplacedBlock`], [`Denied::CardUnknown`], [`Denied::Superseded`], or an error of the store.
    pub fn set_pin_by_zone(
        &self,
        card: CardKey,
        pin: StoredPin,
        tag: RetryTag,
        unknown: UnknownCards,
        event: Event,
    ) -> impl Future<Output = Result<ZoneSet, ChangeError>> {
        let applied = self.apply_for_call(Change::SetPinByZone { card, pin, tag, unknown }, event);
        async {
            match applied.await? {
                Outcome::SetByZone(set) => Ok(set),
                _ => Err(StoreError::OtherOutcome.into()),
            }
        }
    }

    /// [`Change::GivePin`].
    ///
    /// # Errors
    /// [`Denied::PinNotSet`], [`Denied::Superseded`], or an error of the store.
    pub async fn give_pin(&self, card: CardKey, shown: Box<[u8]>, event: Event) -> Result<(), ChangeError> {
        self.apply_for_call(Change::GivePin { card, shown }, event).await.map(drop)
    }

    /// [`Change::ReserveTry`].
    ///
    /// # Errors
    /// [`Denied::CardUnknown`], [`Denied::PinNotSet`], [`Denied::PinStored`], [`Denied::PinLocked`], or an error of the
    /// store.
    pub async fn reserve_try(
        &self,
        card: CardKey,
        limit: u32,
        compared: Compared,
        event: Event,
    ) -> Result<ReservedTry, ChangeError> {
        match self.apply_for_call(Change::ReserveTry { card, limit, compared }, event).await? {
            Outcome::TryReserved(reserved) => Ok(*reserved),
            _ => Err(StoreError::OtherOutcome.into()),
        }
    }

    /// [`Change::SettleTry`]: returns the tries that are left. A caller's deadline does not stop this change.
    ///
    /// # Errors
    /// [`Denied::TrySettled`], [`Denied::CardUnknown`], or an error of the store.
    pub async fn settle_try(
        &self,
        card: CardKey,
        number: u64,
        verdict: Verdict,
        limit: u32,
        event: Event,
    ) -> Result<u32, ChangeError> {
        self.settle(Change::SettleTry { card, number, verdict, limit }, event).await
    }

    /// [`Change::SettleChange`]: returns the tries that are left. A caller's deadline stops this change for
    /// [`ChangeVerdict::Right`] alone.
    ///
    /// # Errors
    /// The denials of [`domain::pin_rules::settle_change`], [`Denied::CardUnknown`], or an error of the store.
    pub async fn settle_change(
        &self,
        card: CardKey,
        number: u64,
        verdict: ChangeVerdict,
        limit: u32,
        control: Option<ControlUse>,
        event: Event,
    ) -> Result<u32, ChangeError> {
        self.settle(Change::SettleChange { card, number, verdict, limit, control }, event).await
    }

    async fn settle(&self, change: Change, event: Event) -> Result<u32, ChangeError> {
        match self.apply_for_call(change, event).await? {
            Outcome::TrySettled { tries_left, .. } => Ok(tries_left),
            _ => Err(StoreError::OtherOutcome.into()),
        }
    }

    /// [`Change::ResetTries`].
    ///
    /// # Errors
    /// [`Denied::CardUnknown`], [`Denied::TryUnknown`], or an error of the store.
    pub async fn reset_tries(&self, card: CardKey, up_to: u64, limit: u32, event: Event) -> Result<Tries, ChangeError> {
        match self.apply_for_call(Change::ResetTries { card, up_to, limit }, event).await? {
            Outcome::TriesReset { tries, .. } => Ok(tries),
            _ => Err(StoreError::OtherOutcome.into()),
        }
    }

    /// [`Change::GeneratePin`].
    ///
    /// # Errors
    /// [`Denied::CardUnknown`], [`Denied::Superseded`], or an error of the store.
    pub async fn generate_pin(&self, card: CardKey, pin: StoredPin, event: Event) -> Result<(), ChangeError> {
        self.apply_for_call(Change::GeneratePin { card, pin }, event).await.map(drop)
    }

    /// [`Change::ReplaceAccount`].
    ///
    /// # Errors
    /// [`Denied::Superseded`], or an error of the store.
    pub async fn replace_account(
        &self,
        card: CardKey,
        account: RegisteredAccount,
        pin: Option<ReencryptedPin>,
        event: Event,
    ) -> Result<Card, ChangeError> {
        match self.apply_for_call(Change::ReplaceAccount { card, account, pin }, event).await? {
            Outcome::Registered(card) => Ok(card),
            _ => Err(StoreError::OtherOutcome.into()),
        }
    }

    /// [`Change::TransferPin`].
    ///
    /// # Errors
    /// The denials of [`domain::pin_rules::transfer`], or an error of the store.
    pub async fn transfer_pin(
        &self,
        from: CardKey,
        before: Box<[u8]>,
        to: CardKey,
        pin: StoredPin,
        event: Event,
    ) -> Result<(), ChangeError> {
        self.apply_for_call(Change::TransferPin { from, before, to, pin }, event).await.map(drop)
    }

    /// [`Change::SetKeysInUse`].
    ///
    /// # Errors
    /// An error of the store.
    pub async fn set_keys_in_use(&self, keys: ReportedKeys, event: Event) -> Result<(), StoreError> {
        self.apply(Change::SetKeysInUse { keys: keys.into(), start: None }, event, None).await.map(drop)
    }

    /// [`Change::SetKeysInUse`] of an engine that starts.
    ///
    /// # Errors
    /// An error of the store.
    pub async fn set_keys_at_start(
        &self,
        keys: ReportedKeys,
        start: KeysAtStart,
        event: Event,
    ) -> Result<(), StoreError> {
        self.apply(Change::SetKeysInUse { keys: keys.into(), start: Some(start.into()) }, event, None).await.map(drop)
    }

    /// [`Change::RemoveArchived`].
    ///
    /// # Errors
    /// An error of the store.
    pub async fn remove_archived(&self, part: ArchivedPart, event: Event) -> Result<(), StoreError> {
        self.apply(Change::RemoveArchived(part.into()), event, None).await.map(drop)
    }

    /// [`Change::RecordEvent`].
    ///
    /// # Errors
    /// An error of the store.
    pub async fn record_event(&self, event: Event) -> Result<(), StoreError> {
        self.apply(Change::RecordEvent, event, None).await.map(drop)
    }

    /// [`Change::RecordAccess`].
    ///
    /// # Errors
    /// An error of the store; [`StoreError::LowOnSpace`] where nothing was recorded.
    pub async fn record_access(&self, event: Event) -> Result<(), StoreError> {
        self.apply(Change::RecordAccess, event, None).await.map(drop)
    }

    /// Checks, after a change was acknowledged, that reads since `epoch` showed durable state.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: the store has connected to its database again.
    pub fn check_reads(&self, epoch: ReadEpoch) -> Result<(), StoreError> {
        if epoch == self.read_epoch() && epoch != ReadEpoch::Apart {
            return Ok(());
        }
        Err(StoreError::Unavailable("it has connected to its database again during the call: try again".into()))
    }

    /// Makes durable what reads since `epoch` showed, by [`Change::ConfirmReads`] where that needs a change.
    ///
    /// # Errors
    /// Those of [`Self::check_reads`], or an error of the store.
    pub async fn confirm_reads(&self, epoch: ReadEpoch, event: Event) -> Result<(), StoreError> {
        if epoch != ReadEpoch::Final {
            self.apply(Change::ConfirmReads, event, Deadline::of_this_call()).await?;
        }
        self.check_reads(epoch)
    }

    /// Makes a change under the deadline of this task's call, which is read now. No `async fn`: its future would keep the change
    /// and the event to its end.
    fn apply_for_call(&self, change: Change, event: Event) -> impl Future<Output = Result<Outcome, ChangeError>> {
        let applied = self.apply(change, event, Deadline::of_this_call());
        async {
            match applied.await? {
                Outcome::Denied(denied) => Err(denied.into()),
                outcome => Ok(outcome),
            }
        }
    }
}

/// The name of the engine that runs on the store in a directory: `HOST:DIRECTORY`, the directory with no link in it. One
/// engine runs on a store, so the name is the engine's; a copy of the store, or the store on another host, has another.
pub fn engine_name(directory: &Path) -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let directory = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
    format!("{}:{}", host.trim(), directory.display())
}

/// Whether a store serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreState {
    /// The store reads and writes.
    Open,
    /// The disk has less free space than the store's reserve. The store makes the changes that
    /// [may use it](Change::may_use_reserve), refuses the others with [`StoreError::LowOnSpace`], and is open again once the
    /// disk has space.
    LowOnSpace,
    /// The store does not reach its database. It refuses calls with [`StoreError::Unavailable`], keeps those changes that do
    /// not depend on a caller for a while, and is open again once the database answers.
    Unreachable,
    /// The store writes the changes that wait, and refuses others.
    Closing,
    /// The store refuses every call. Only a restart of the process, which reads the disk again, ends this state.
    Failed(StoreFailure),
}

impl StoreState {
    /// Whether the store makes changes, though not every change.
    pub fn makes_changes(&self) -> bool {
        matches!(self, Self::Open | Self::LowOnSpace)
    }
}

/// Why a store failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the store {place} failed: {cause}, then start the engine again")]
pub struct StoreFailure {
    /// The store, as by [`Store::place`].
    pub place: String,
    /// The failure, with what to do next.
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
    /// Another process has registered under the engine's name in the database, or an operator deregistered the engine. Nothing
    /// that this process sent since is committed.
    #[error(
        "another process uses the name of this engine, or the engine was deregistered; stop the other process or change the name"
    )]
    Displaced,
    /// A newer release has migrated the tables of the database while this engine ran. Nothing that it sent since is committed.
    #[error("a newer release has migrated the tables; install that release")]
    Migrated,
}

/// An error of the store itself. Nothing was changed, but for [`StoreError::InDoubt`] and [`StoreError::Unresolved`].
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
    /// The connection to the database broke while this change was committed: whether the change was made is not known yet. The
    /// store finds out before it makes another change.
    #[error(
        "the connection to {place} broke during a commit: whether this change was made is not known yet; try again"
    )]
    Unresolved {
        /// The database, as by [`Store::place`].
        place: String,
    },
    /// The engines of the store do not have one set of storage keys.
    #[error(transparent)]
    StorageKeys(#[from] StorageKeyError),
    /// As many changes wait as configured. No change that [passes the limit](Change::passes_the_queue_limit) gets this.
    #[error("the store has {limit} changes waiting already: try again")]
    Busy {
        /// The configured number.
        limit: usize,
    },
    /// The store is [low on space](StoreState::LowOnSpace), and the change may not use its reserve.
    #[error("the store is low on space: free space on its disk, then try again")]
    LowOnSpace,
    /// The caller's deadline passed before the change's turn came.
    #[error("the call's deadline passed before the store came to it")]
    DeadlinePassed,
    /// The store answered with the outcome of another change.
    #[error("the store answered another change than the one it was given: report it")]
    OtherOutcome,
    /// A row can't be decoded.
    #[error("the store is damaged at {place}: stop the engine, then run `pinseal store check`")]
    Damaged {
        /// The keyspace, and what can't be read there.
        place: String,
    },
}

/// Why a store that several engines share refuses the keys of one of them. Each version is of the kind that has the problem
/// first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StorageKeyError {
    /// The engine lacks the version that other engines write under.
    #[error("this engine lacks version {active} of a storage key, under which PINs are stored: load that version")]
    EngineLacks {
        /// The version in use.
        active: u16,
    },
    /// The engine has a version that was retired, so that it may be destroyed.
    #[error(
        "version {version} of a storage key is retired in the database and still loaded: retire it by a ceremony, or remove \
         it from storage_key_versions, then start this engine again"
    )]
    Retired {
        /// The lowest such version of the engine.
        version: u16,
    },
    /// A record is under a version that the engine lacks.
    #[error("a PIN record is under version {version} of a storage key, which this engine lacks: load that version")]
    RecordUnopened {
        /// The version of the record.
        version: u16,
    },
    /// Another engine stored another key of the card references, at the same time.
    #[error("another engine has stored the key of the card references at the same time: start this engine again")]
    OtherCardReferenceKey,
    /// Another engine reported keys after [`Store::other_keys`] was read.
    #[error("another engine has reported its keys at the same time: compare with them, then report again")]
    NotCompared,
}

/// Why a change was not made.
#[derive(Clone, Debug, Error)]
pub enum ChangeError {
    /// A rule denies the change.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
