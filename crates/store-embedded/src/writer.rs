//! The one writer: takes what waits, applies it in order, commits it as one batch, answers.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::PoisonError,
    time::{Duration, Instant},
};

use fjall::{OwnedWriteBatch as WriteBatch, PersistMode};
use hashbrown::HashMap;

use super::{
    HEAD_KEY, KEYS_KEY, MIN_KEY_VERSIONS_KEY, Queue, Shared, UNKNOWN, card_of,
    codec::{
        CardRow, PinRow, card_key, decode_card, decode_control, encode_card, encode_control, encode_min, encode_pin,
        has_set,
    },
    damaged, encode_head, is_full,
    live::{Row, SHARDS},
    locked, os_error,
    page::{ControlPage, EntryPage, NEVER},
    readable_pin,
    reply::{Promise, Wakes},
    unavailable,
};
use audit::{
    chain::Checkpoint,
    entry::{self, Body, Event},
};
use clock::deadline::Deadline;
use domain::card::{Card, CardKey, RegisteredAccount};
use domain::control::{Control, ControlId, ControlState, Denied, NewControl, RetryTag, Transition, advance};
use domain::storage_key::MinKeyVersions;
use domain::time::UnixMillis;
use store::{
    Admission, AdvanceError, FailureCause, OpenError, RegisterError, RemadePin, StoreError, StoreState, StoredPin,
    UnknownCards,
};

/// The most changes in one commit: bounds how long the first of them waits for the last.
const BATCH_CHANGES_MAX: usize = 1_024;
/// How often a shard of the live controls is swept.
const SWEEP_EVERY: Duration = Duration::from_millis(20);
/// The most pages of controls one sweep removes: bounds how long a change waits behind it, and is more than can have
/// been written since the last.
const SWEEP_PAGES_MAX: usize = 1_024;
/// How long a control that is of no use any more is kept: a call that began before that may still be on its way.
const SWEEP_GRACE: Duration = Duration::from_secs(5);
/// How old the time on disk may be while a control is usable: by so much a step of the wall clock back and a restart may
/// lengthen a control's lifetime.
const FLOOR_EVERY: Duration = Duration::from_secs(1);
/// An hour, in milliseconds: the span of a card's cap.
const HOUR_MILLISECONDS: u64 = 3_600_000;

/// A change and its audit line.
pub(super) struct Command {
    pub(super) change: Change,
    pub(super) line: Event,
    /// From then on the change is dropped.
    pub(super) deadline: Option<Deadline>,
}

/// A change, and whom to answer.
pub(super) enum Change {
    Register { card: CardKey, account: Option<RegisteredAccount>, reply: Promise<Result<Card, RegisterError>> },
    Open { control: NewControl, admission: Admission, reply: Promise<Result<Control, OpenError>> },
    Advance { id: ControlId, event: Transition, pin: Option<StoredPin>, reply: Promise<Result<(), AdvanceError>> },
    ConfirmRetry { id: ControlId, retry: RetryTag, reply: Promise<Result<(), AdvanceError>> },
    Remake { remade: Vec<RemadePin>, reply: Promise<Result<u64, StoreError>> },
    Keys { keys: Box<[u8]>, min: MinKeyVersions, reply: Promise<Result<(), StoreError>> },
    Note { reply: Promise<Result<(), StoreError>> },
}

impl Change {
    /// Whether it is to be made still: nobody waits for the answer of a call that was cancelled. What is noted has happened,
    /// and which keys are admitted is not a caller's business: those are made all the same.
    fn is_awaited(&self) -> bool {
        match self {
            Self::Register { reply, .. } => reply.is_awaited(),
            Self::Open { reply, .. } => reply.is_awaited(),
            Self::Advance { reply, .. } | Self::ConfirmRetry { reply, .. } => reply.is_awaited(),
            Self::Remake { reply, .. } => reply.is_awaited(),
            Self::Keys { .. } | Self::Note { .. } => true,
        }
    }

    /// The answer to a change that is not made.
    fn refuse(self, error: StoreError) -> Reply {
        match self {
            Self::Register { reply, .. } => Reply::Register(reply, Err(error.into())),
            Self::Open { reply, .. } => Reply::Open(reply, Err(error.into())),
            Self::Advance { reply, .. } | Self::ConfirmRetry { reply, .. } => Reply::Advance(reply, Err(error.into())),
            Self::Remake { reply, .. } => Reply::Remake(reply, Err(error)),
            Self::Keys { reply, .. } | Self::Note { reply } => Reply::Note(reply, Err(error)),
        }
    }
}

/// What is on disk of the controls, and how late it is there.
#[derive(Default)]
pub(super) struct OnDisk {
    /// Pages of controls that have not set a PIN.
    pub(super) controls: Pages,
    /// Pages of those that have.
    pub(super) set: Pages,
    /// The largest time that is on disk.
    pub(super) floor: UnixMillis,
}

/// Pages of one keyspace, oldest first.
///
/// They are dropped in this order and no other: while a page stands, every later one does, so that no restart finds a
/// control in an earlier state than it had.
#[derive(Default)]
pub(super) struct Pages {
    kept: VecDeque<(u64, UnixMillis)>,
    written: u64,
    latest: UnixMillis,
}

impl Pages {
    /// Takes in a page that is on disk.
    pub(super) fn add(&mut self, number: u64, keep_until: UnixMillis) {
        self.kept.push_back((number, keep_until));
        self.written = number;
        if keep_until != NEVER {
            self.latest = self.latest.max(keep_until);
        }
    }

    /// From this moment on no control of any page is of use.
    pub(super) fn latest(&self) -> UnixMillis {
        self.latest
    }

    /// The number of the next page.
    fn next(&self) -> u64 {
        self.written.saturating_add(1)
    }

    /// Takes out a page of which no control was of use at `moment`.
    fn expired(&mut self, moment: UnixMillis) -> Option<u64> {
        let over = |(_, keep_until): &mut (u64, UnixMillis)| *keep_until != NEVER && moment >= *keep_until;
        self.kept.pop_front_if(over).map(|(number, _)| number)
    }
}

/// Writes until the store is closed and nothing waits, or until a write fails.
pub(super) fn run(shared: &Shared, mut on_disk: OnDisk, mut min: MinKeyVersions) {
    let mut shard = 0;
    let mut swept = Instant::now();
    while let Some(commands) = wait(shared) {
        let mut batch = Batch::new(shared, &mut min);
        let answers: Vec<_> = commands.into_iter().filter_map(|command| batch.apply(command)).collect();
        if swept.elapsed() >= SWEEP_EVERY {
            swept = Instant::now();
            shard = (shard + 1) % SHARDS;
            batch.sweep(shard, &mut on_disk);
        }
        let mut wakes = Wakes::default();
        match batch.commit(&mut on_disk) {
            Ok(()) => answers.into_iter().for_each(|answer| answer.keep(&mut wakes)),
            Err(error) => {
                shared.fail(cause_of(&error));
                let error = StoreError::InDoubt(shared.failure());
                answers.into_iter().for_each(|answer| answer.fail(&error, &mut wakes));
            }
        }
        wakes.wake();
    }
}

/// Takes the changes that wait, at most [`BATCH_CHANGES_MAX`], as soon as one does or a sweep is due; none when the store
/// is closed and no change waits.
fn wait(shared: &Shared) -> Option<Vec<Command>> {
    let is_open = || *shared.state.borrow() == StoreState::Open;
    let idle = |queue: &mut Queue| queue.waiting.is_empty() && is_open();
    let waited = shared.wake.wait_timeout_while(locked(&shared.queue), SWEEP_EVERY, idle);
    let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
    if queue.waiting.is_empty() {
        return is_open().then(Vec::new);
    }
    let taken = queue.waiting.len().min(BATCH_CHANGES_MAX);
    let later = queue.waiting.split_off(taken);
    Some(mem::replace(&mut queue.waiting, later))
}

/// What a commit that failed says of the store.
fn cause_of(error: &fjall::Error) -> FailureCause {
    let kind = os_error(error).map(std::io::Error::kind);
    match (error, kind) {
        // An earlier failure, of a thread of fjall, stopped this commit.
        (fjall::Error::Poisoned, _) => FailureCause::Background,
        (_, Some(kind)) if is_full(kind) => FailureCause::DiskFull,
        _ => {
            let problem = os_error(error).map_or_else(|| error.to_string(), ToString::to_string);
            FailureCause::Commit { kind, problem }
        }
    }
}

/// The changes of one commit, seen by those that come after them in it and by nobody else yet.
struct Batch<'a> {
    shared: &'a Shared,
    /// Of the newest change of the keys.
    min: &'a mut MinKeyVersions,
    write: WriteBatch,
    entries: EntryPage,
    controls: HashMap<ControlId, Row>,
    cards: HashMap<CardKey, CardRow>,
    /// Rows by their key. The order of the keys makes the insertion into the memtable faster.
    pins: BTreeMap<Vec<u8>, Vec<u8>>,
    head: Checkpoint,
    /// Read after the changes were taken: each of them was asked for before.
    now: UnixMillis,
    /// Whether the time goes to disk though nothing else does.
    keeps_time: bool,
}

impl<'a> Batch<'a> {
    fn new(shared: &'a Shared, min: &'a mut MinKeyVersions) -> Self {
        Self {
            shared,
            min,
            write: shared.database.batch().durability(Some(PersistMode::SyncData)),
            entries: EntryPage::new(),
            controls: HashMap::new(),
            cards: HashMap::new(),
            pins: BTreeMap::new(),
            head: *locked(&shared.head),
            now: shared.clock.now(),
            keeps_time: false,
        }
    }

    /// None where nobody waits for an answer, and nothing was done.
    fn apply(&mut self, command: Command) -> Option<Reply> {
        let Command { change, line, deadline } = command;
        if !change.is_awaited() {
            return None;
        }
        if deadline.is_some_and(Deadline::has_passed) && !matches!(change, Change::Note { .. } | Change::Keys { .. }) {
            return Some(change.refuse(StoreError::DeadlinePassed));
        }
        Some(match change {
            Change::Register { card, account, reply } => {
                Reply::Register(reply, self.audited(line, |batch| batch.register(card, account)))
            }
            Change::Open { control, admission, reply } => {
                let opened = self.audited(line, |batch| batch.open(control, admission));
                Reply::Open(reply, opened.map(Box::new))
            }
            Change::Advance { id, event, pin, reply } => {
                Reply::Advance(reply, self.audited(line, |batch| batch.advance(id, event, pin)))
            }
            Change::ConfirmRetry { id, retry, reply } => {
                Reply::Advance(reply, self.audited(line, |batch| batch.confirm_retry(id, &retry)))
            }
            Change::Keys { keys, min, reply } => Reply::Note(reply, self.note_keys(&keys, min, line)),
            Change::Remake { remade, reply } => Reply::Remake(reply, self.remake(remade, line)),
            Change::Note { reply } => Reply::Note(reply, self.audited(line, |_| Ok(()))),
        })
    }

    /// A change that happens has its line in the same commit; one that does not has none.
    fn audited<T, E>(&mut self, line: Event, change: impl FnOnce(&mut Self) -> Result<T, E>) -> Result<T, E> {
        let changed = change(self)?;
        let sequence = self.head.sequence.saturating_add(1);
        let previous = self.head.hash;
        let hash = self.entries.push(|bytes| entry::append(bytes, sequence, &previous, &line));
        self.head = Checkpoint { sequence, hash };
        Ok(changed)
    }

    fn note_keys(&mut self, keys: &[u8], min: MinKeyVersions, line: Event) -> Result<(), StoreError> {
        self.audited(line, |batch| {
            *batch.min = min;
            batch.write.insert(&batch.shared.meta, KEYS_KEY, keys);
            batch.write.insert(&batch.shared.meta, MIN_KEY_VERSIONS_KEY, encode_min(&min));
            Ok(())
        })
    }

    fn register(&mut self, card: CardKey, account: Option<RegisteredAccount>) -> Result<Card, RegisterError> {
        let mut row = self.card(&card)?.unwrap_or_default();
        let key = card_key(&card);
        let pin_set_at = self.pin(&key)?.map(|row| row.set_at);
        if account.is_some() && account != row.account {
            if pin_set_at.is_some() {
                return Err(RegisterError::AccountBound);
            }
            // A card that never had a control has none to follow.
            if row.opened > 0 {
                self.renumber_controls(&card, &account);
            }
            row.account = account;
        }
        let registered = card_of(row.account.clone(), pin_set_at);
        self.put_card(card, row);
        Ok(registered)
    }

    /// Gives a card's controls that are not spent its new account number: what they set is bound to it.
    fn renumber_controls(&mut self, card: &CardKey, account: &Option<RegisteredAccount>) {
        let mut ids = self.shared.live.of_card(card);
        ids.extend(self.controls.keys());
        for id in ids {
            let Some(mut control) = self.control(id) else { continue };
            if control.card == *card && !matches!(control.state, ControlState::Spent(_)) {
                control.account.clone_from(account);
                self.controls.insert(id, encode_control(&control));
            }
        }
    }

    /// As the last change before left it.
    fn control(&self, id: ControlId) -> Option<Control> {
        match self.controls.get(&id) {
            Some(row) => decode_control(row),
            None => self.shared.live.find(id),
        }
    }

    fn open(&mut self, new: NewControl, admission: Admission) -> Result<Control, OpenError> {
        let mut row = match (self.card(&new.card)?, admission.unknown_cards) {
            (Some(row), _) => row,
            (None, UnknownCards::Accept) => CardRow::default(),
            (None, UnknownCards::Refuse) => return Err(OpenError::CardUnknown),
        };
        let hour = self.now.0 / HOUR_MILLISECONDS;
        if row.hour != hour {
            (row.hour, row.opened) = (hour, 0);
        }
        let cap = admission.controls_per_card_per_hour;
        if row.opened >= cap {
            return Err(OpenError::Cap { cap });
        }
        row.opened = row.opened.saturating_add(1);
        let control = new.open(row.account.clone(), row.generation, self.now);
        self.put_card(control.card, row);
        self.controls.insert(control.id, encode_control(&control));
        Ok(control)
    }

    fn advance(&mut self, id: ControlId, event: Transition, pin: Option<StoredPin>) -> Result<(), AdvanceError> {
        #[cfg(test)]
        assert!(!self.shared.writer_panics.load(std::sync::atomic::Ordering::Relaxed), "as a fault would");
        let mut control = self.control(id).ok_or(UNKNOWN)?;
        // The card was written when the control was opened, seconds ago: it is in memory still.
        let mut card = self.card(&control.card)?.unwrap_or_default();
        let shows_newest = match &event {
            Transition::View { shown } => {
                self.pin(&card_key(&control.card))?.is_some_and(|row| row.pin.record == *shown)
            }
            _ => true,
        };
        control.state = advance(&control, event, card.generation, self.now)?;
        // The PIN that was shown is not the card's PIN: the boundary must translate the newest record.
        if !shows_newest {
            return Err(Denied::Superseded.into());
        }
        // Made with a key or for a number that was the newest when the boundary was asked: it is to be asked again.
        if pin.as_ref().is_some_and(|pin| pin.account != control.account || !self.min.admit(pin.key)) {
            return Err(Denied::Superseded.into());
        }
        self.controls.insert(id, encode_control(&control));
        if let Some(pin) = pin {
            card.generation = card.generation.saturating_add(1);
            card.set_by = Some(id);
            self.put_card(control.card, card);
            let set_at = self.shared.clock.wall_time(self.now);
            self.pins.insert(card_key(&control.card), encode_pin(set_at, &pin));
        }
        Ok(())
    }

    fn confirm_retry(&mut self, id: ControlId, retry: &RetryTag) -> Result<(), AdvanceError> {
        let control = self.control(id).ok_or(UNKNOWN)?;
        let mut card = self.card(&control.card)?.unwrap_or_default();
        control.confirm_retry(retry, card.set_by, self.now)?;
        // A set that was judged before, for a control opened before, comes too late from here on.
        card.generation = card.generation.saturating_add(1);
        self.put_card(control.card, card);
        Ok(())
    }

    /// Of records that are no longer what they were, a newer PIN stands.
    fn remake(&mut self, remade: Vec<RemadePin>, mut line: Event) -> Result<u64, StoreError> {
        let mut standing = Vec::with_capacity(remade.len());
        for RemadePin { card, before, after, key: record_key } in remade {
            let key = card_key(&card);
            let Some(row) = self.pin(&key)? else { continue };
            if row.pin.record == before && self.min.admit(record_key) {
                let pin = StoredPin { record: after, key: record_key, account: row.pin.account };
                standing.push((key, encode_pin(row.set_at, &pin)));
            }
        }
        let count = u64::try_from(standing.len()).unwrap_or(u64::MAX);
        if count == 0 {
            return Ok(0);
        }
        line.body = Body::RecordsReencrypted { count };
        self.audited(line, |batch| {
            batch.pins.extend(standing);
            Ok(count)
        })
    }

    /// Removes controls that nobody can use any more: one shard of those in memory, the oldest pages of those on disk.
    fn sweep(&mut self, shard: usize, on_disk: &mut OnDisk) {
        let grace = u64::try_from(SWEEP_GRACE.as_millis()).unwrap_or_default();
        let moment = UnixMillis(self.now.0.saturating_sub(grace));
        self.shared.live.sweep(shard, moment);
        for (pages, keyspace) in [(&mut on_disk.controls, &self.shared.controls), (&mut on_disk.set, &self.shared.set)]
        {
            for number in std::iter::from_fn(|| pages.expired(moment)).take(SWEEP_PAGES_MAX) {
                self.write.remove(keyspace, number.to_be_bytes());
            }
        }
        let is_usable_still = on_disk.floor < on_disk.controls.latest();
        self.keeps_time = is_usable_still && self.now >= on_disk.floor.after(FLOOR_EVERY);
    }

    fn card(&self, card: &CardKey) -> Result<Option<CardRow>, StoreError> {
        if let Some(row) = self.cards.get(card) {
            return Ok(Some(row.clone()));
        }
        let Some(bytes) = self.shared.cards.get(card_key(card)).map_err(unavailable)? else { return Ok(None) };
        decode_card(&bytes).map(Some).ok_or_else(|| damaged("cards", "a card can't be read"))
    }

    /// The newest PIN of a card, by the card's key.
    fn pin(&self, key: &[u8]) -> Result<Option<PinRow>, StoreError> {
        match self.pins.get(key) {
            Some(row) => readable_pin(row).map(Some),
            None => self.shared.pin(key),
        }
    }

    fn put_card(&mut self, card: CardKey, row: CardRow) {
        self.write.insert(&self.shared.cards, card_key(&card), encode_card(&row));
        self.cards.insert(card, row);
    }

    /// Writes the batch to disk, then publishes it to the readers in memory.
    fn commit(mut self, on_disk: &mut OnDisk) -> Result<(), fjall::Error> {
        if !self.entries.is_empty() {
            // Nobody else moves the head.
            let first = locked(&self.shared.head).sequence.saturating_add(1);
            self.write.insert(&self.shared.audit, first.to_be_bytes(), self.entries.row());
        }
        let (mut open, mut set) = (ControlPage::new(), ControlPage::new());
        for row in self.controls.values() {
            if has_set(row) { set.push(row) } else { open.push(row) }
        }
        for (page, pages, keyspace) in
            [(open, &mut on_disk.controls, &self.shared.controls), (set, &mut on_disk.set, &self.shared.set)]
        {
            if !page.is_empty() {
                let number = pages.next();
                pages.add(number, page.keep_until());
                self.write.insert(keyspace, number.to_be_bytes(), page.into_row());
            }
        }
        for (key, row) in self.pins {
            self.write.insert(&self.shared.pins, key, row);
        }
        if self.write.is_empty() && !self.keeps_time {
            return Ok(());
        }
        // Whatever is judged by the time of this commit is judged so after a restart too.
        self.write.insert(&self.shared.meta, HEAD_KEY, encode_head(&self.head, self.now));
        self.write.commit()?;
        on_disk.floor = self.now;
        *locked(&self.shared.head) = self.head;
        self.controls.into_iter().for_each(|(id, row)| self.shared.live.put(id, row));
        Ok(())
    }
}

/// An answer that waits for the commit.
enum Reply {
    Register(Promise<Result<Card, RegisterError>>, Result<Card, RegisterError>),
    Open(Promise<Result<Control, OpenError>>, Result<Box<Control>, OpenError>),
    Advance(Promise<Result<(), AdvanceError>>, Result<(), AdvanceError>),
    Remake(Promise<Result<u64, StoreError>>, Result<u64, StoreError>),
    Note(Promise<Result<(), StoreError>>, Result<(), StoreError>),
}

impl Reply {
    // Whoever waited may have gone; the change stands all the same.

    fn keep(self, wakes: &mut Wakes) {
        match self {
            Self::Register(reply, answer) => reply.keep(answer, wakes),
            Self::Open(reply, answer) => reply.keep(answer.map(|control| *control), wakes),
            Self::Advance(reply, answer) => reply.keep(answer, wakes),
            Self::Remake(reply, answer) => reply.keep(answer, wakes),
            Self::Note(reply, answer) => reply.keep(answer, wakes),
        }
    }

    fn fail(self, error: &StoreError, wakes: &mut Wakes) {
        match self {
            Self::Register(reply, _) => reply.keep(Err(error.clone().into()), wakes),
            Self::Open(reply, _) => reply.keep(Err(error.clone().into()), wakes),
            Self::Advance(reply, _) => reply.keep(Err(error.clone().into()), wakes),
            Self::Remake(reply, _) => reply.keep(Err(error.clone()), wakes),
            Self::Note(reply, _) => reply.keep(Err(error.clone()), wakes),
        }
    }
}
