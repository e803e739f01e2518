//! The one writer: takes the changes that wait, applies them in order, commits one batch, answers.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, VecDeque},
    mem,
    sync::{PoisonError, atomic},
    time::{Duration, Instant},
};

use fjall::{OwnedWriteBatch as WriteBatch, PersistMode};
use hashbrown::HashMap;

use super::{
    ARCHIVED_KEY, CARD_REFERENCE_KEY, HEAD_KEY, KEYS_KEY, MIN_KEY_VERSIONS_KEY, Queue, Shared, damaged, encode_head,
    is_full,
    live::SHARDS,
    locked, number_of, os_error,
    packed_control::{pack, unpack},
    page::{ControlPage, EntryPage, NEVER},
    readable_pin,
    reply::{Promise, Reply, Wakes},
    unavailable,
    unregistered::UnregisteredCards,
};
use audit::{
    archive::ArchivedPart,
    chain::Checkpoint,
    entry::{self, Event},
};
use clock::deadline::Deadline;
use domain::card::{CardKey, RegisteredAccount, StoredPin, Tenant};
use domain::control::{Control, ControlId};
use domain::rules::{self, CardState};
use domain::storage_key::{KeyWindow, MinKeyVersions};
use domain::time::UnixMillis;
use store::codec::{PinRow, card_key, decode_card, encode_card, encode_control, encode_min, encode_pin, has_set};
use store::rows::{Rows, make_change};
use store::{Change, FailureCause, KeysAtStart, ReportedKeys, StoreError};

/// The most changes in one commit: bounds how long the first of them waits for the last.
const BATCH_CHANGES_MAX: usize = 1_024;
/// How often a shard of the live controls is swept.
const SWEEP_EVERY: Duration = Duration::from_millis(20);
/// The most pages of controls one sweep removes: bounds how long a change waits behind it, and is more than can have
/// been written since the last.
const SWEEP_PAGES_MAX: usize = 1_024;
/// The most forgotten cards one sweep removes.
const SWEEP_CARDS_MAX: usize = 1_024;
/// How long an expired control is kept: a call that began before the expiry may still use it.
const SWEEP_GRACE: Duration = Duration::from_secs(5);
/// How old the time on disk may be while a control is usable: by so much a step of the wall clock back and a restart may
/// lengthen a control's lifetime.
const FLOOR_EVERY: Duration = Duration::from_secs(1);
/// A change, its audit event and the promise of its answer.
pub(super) struct Command {
    pub(super) change: Change,
    pub(super) event: Event,
    /// The moment after which a change that may be dropped is not applied.
    pub(super) deadline: Option<Deadline>,
    pub(super) promise: Promise,
}

/// The pages of controls on disk, and the time on disk.
#[derive(Default)]
pub(super) struct OnDisk {
    /// Pages of controls that have not set a PIN.
    pub(super) controls: Pages,
    /// Pages of controls that have set a PIN.
    pub(super) set: Pages,
    /// The largest time that is on disk.
    pub(super) floor: UnixMillis,
    /// No row of the audit chain begins before this entry.
    pub(super) first_entry: u64,
    /// The entry behind the archived ones for which every row before its own is removed.
    pub(super) first_kept: u64,
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
    /// Adds a page that is on disk.
    pub(super) fn add(&mut self, number: u64, keep_until: UnixMillis) {
        self.kept.push_back((number, keep_until));
        self.written = number;
        if keep_until != NEVER {
            self.latest = self.latest.max(keep_until);
        }
    }

    /// The moment from which on every control of every page has expired.
    pub(super) fn latest(&self) -> UnixMillis {
        self.latest
    }

    /// The number of the next page.
    fn next(&self) -> u64 {
        self.written.saturating_add(1)
    }

    /// Removes the oldest page, where all its controls had expired at `moment`.
    fn expired(&mut self, moment: UnixMillis) -> Option<u64> {
        let over = |(_, keep_until): &mut (u64, UnixMillis)| *keep_until != NEVER && moment >= *keep_until;
        self.kept.pop_front_if(over).map(|(number, _)| number)
    }
}

/// Writes until the store is closed and nothing waits, or until a write fails.
pub(super) fn run(shared: &Shared, mut on_disk: OnDisk, mut unregistered: UnregisteredCards, mut min: MinKeyVersions) {
    let mut shard = 0;
    let mut swept = Instant::now();
    while let Some(commands) = wait(shared) {
        let mut batch = Batch::new(shared, &mut unregistered, &mut min);
        let answers: Vec<_> = commands.into_iter().filter_map(|command| batch.apply(command)).collect();
        if swept.elapsed() >= SWEEP_EVERY {
            swept = Instant::now();
            shard = (shard + 1) % SHARDS;
            batch.sweep(shard, &mut on_disk);
        }
        let mut wakes = Wakes::default();
        match batch.commit(&mut on_disk) {
            Ok(()) => answers.into_iter().for_each(|(promise, answer)| promise.keep(answer, &mut wakes)),
            Err(error) => {
                shared.fail(cause_of(&error));
                let in_doubt = || Err(StoreError::InDoubt(shared.failure()));
                answers.into_iter().for_each(|(promise, _)| promise.keep(in_doubt(), &mut wakes));
            }
        }
        wakes.wake();
    }
}

/// Takes the changes that wait, at most [`BATCH_CHANGES_MAX`], as soon as one does or a sweep is due; `None` when the store
/// is closed and no change waits.
fn wait(shared: &Shared) -> Option<Vec<Command>> {
    let is_open = || shared.state.borrow().makes_changes();
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

/// The cause of a failed commit.
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

/// The changes of one commit. Later changes of the commit see them; readers do not, before the commit is on disk.
struct Batch<'a> {
    shared: &'a Shared,
    unregistered: &'a mut UnregisteredCards,
    /// The rows of unregistered cards that this commit writes; `None` removes the row.
    unregistered_rows: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// By the last [`Change::SetKeysInUse`].
    min: &'a mut MinKeyVersions,
    write: WriteBatch,
    entries: EntryPage,
    controls: HashMap<ControlId, WrittenControl>,
    cards: HashMap<CardKey, CardState>,
    /// Rows by their key. The order of the keys makes the insertion into the memtable faster.
    pins: BTreeMap<Vec<u8>, Vec<u8>>,
    head: Checkpoint,
    /// By the last [`Change::RemoveArchived`]: the number of the last archived entry.
    archived: Option<u64>,
    /// Read after the changes were taken from the queue.
    now: UnixMillis,
    /// Whether the time is written although no change is.
    keeps_time: bool,
}

/// A state of a control that the commit writes.
struct WrittenControl {
    /// For the disk.
    row: Box<[u8]>,
    /// For the live controls.
    packed: Vec<u8>,
}

impl<'a> Batch<'a> {
    fn new(shared: &'a Shared, unregistered: &'a mut UnregisteredCards, min: &'a mut MinKeyVersions) -> Self {
        Self {
            shared,
            unregistered,
            unregistered_rows: BTreeMap::new(),
            min,
            write: shared.database.batch().durability(Some(PersistMode::SyncData)),
            entries: EntryPage::new(),
            controls: HashMap::new(),
            cards: HashMap::new(),
            pins: BTreeMap::new(),
            head: *locked(&shared.head),
            archived: None,
            now: shared.clock.now(),
            keeps_time: false,
        }
    }

    /// Applies a change to the newest state. Returns the promise and its answer; `None` where the caller has gone.
    fn apply(&mut self, command: Command) -> Option<(Promise, Reply)> {
        let Command { change, event, deadline, promise } = command;
        if change.may_be_dropped() {
            if !promise.is_awaited() {
                return None;
            }
            if deadline.is_some_and(Deadline::has_passed) {
                return Some((promise, Err(StoreError::DeadlinePassed)));
            }
        }
        #[cfg(test)]
        assert!(
            !matches!(change, Change::Advance { .. }) || !self.shared.writer_panics.load(atomic::Ordering::Relaxed),
            "as a fault would"
        );
        let answer = make_change(self, change);
        if let Some(event) = answer.as_ref().ok().and_then(|outcome| outcome.event(event)) {
            let sequence = self.head.sequence.saturating_add(1);
            let previous = self.head.hash;
            let hash = self.entries.push(|bytes| entry::append(bytes, sequence, &previous, &event));
            self.head = Checkpoint { sequence, hash };
        }
        Some((promise, answer))
    }

    /// Removes expired controls, of one shard in memory and of the oldest pages on disk, and forgotten cards.
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
        self.remove_archived_rows(on_disk);
        for card in self.unregistered.remove_forgotten(moment, SWEEP_CARDS_MAX) {
            self.unregistered_rows.insert(card_key(&card), None);
        }
        let is_usable_still = on_disk.floor < on_disk.controls.latest();
        self.keeps_time = is_usable_still && self.now >= on_disk.floor.after(FLOOR_EVERY);
    }

    /// Removes rows of which every entry is archived: those before the row of the first entry that is kept.
    fn remove_archived_rows(&mut self, on_disk: &mut OnDisk) {
        let first_kept = self.shared.archived.load(atomic::Ordering::Acquire).saturating_add(1);
        if on_disk.first_kept == first_kept {
            return;
        }
        let rows = self.shared.audit.range(on_disk.first_entry.to_be_bytes()..=first_kept.to_be_bytes());
        // A row that can't be read stays: a check of the store reports it.
        let keys = rows.map_while(|row| number_of(&row.key().ok()?)).take(SWEEP_PAGES_MAX);
        let mut keys = keys.collect::<Vec<_>>();
        let Some(last) = keys.pop() else { return };
        if keys.is_empty() {
            on_disk.first_kept = first_kept;
        }
        for key in keys {
            self.write.remove(&self.shared.audit, key.to_be_bytes());
        }
        on_disk.first_entry = last;
    }

    /// Writes the batch to disk, then publishes it to the readers in memory.
    fn commit(mut self, on_disk: &mut OnDisk) -> Result<(), fjall::Error> {
        if !self.entries.is_empty() {
            // The writer alone moves the head.
            let first = locked(&self.shared.head).sequence.saturating_add(1);
            self.write.insert(&self.shared.audit, first.to_be_bytes(), self.entries.row());
        }
        let (mut open, mut set) = (ControlPage::new(), ControlPage::new());
        for WrittenControl { row, .. } in self.controls.values() {
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
        for (key, row) in self.unregistered_rows {
            match row {
                Some(row) => self.write.insert(&self.shared.unregistered, key, row),
                None => self.write.remove(&self.shared.unregistered, key),
            }
        }
        if self.write.is_empty() && !self.keeps_time {
            return Ok(());
        }
        // What expired by the time of this commit has expired after a restart too.
        self.write.insert(&self.shared.meta, HEAD_KEY, encode_head(&self.head, self.now));
        self.write.commit()?;
        on_disk.floor = self.now;
        *locked(&self.shared.head) = self.head;
        if let Some(archived) = self.archived {
            self.shared.archived.store(archived, atomic::Ordering::Release);
        }
        self.controls.iter().for_each(|(id, written)| self.shared.live.put(*id, &written.packed));
        Ok(())
    }
}

impl Rows for Batch<'_> {
    fn now(&self) -> UnixMillis {
        self.now
    }

    fn wall_now(&self) -> UnixMillis {
        self.shared.clock.wall_time(self.now)
    }

    fn key_window(&self) -> KeyWindow {
        (*self.min).into()
    }

    fn known_card(&self, card: &CardKey) -> Result<Option<CardState>, StoreError> {
        if let Some(row) = self.cards.get(card) {
            return Ok(Some(row.clone()));
        }
        let Some(bytes) = self.shared.cards.get(card_key(card)).map_err(unavailable)? else { return Ok(None) };
        decode_card(&bytes).map(Some).ok_or_else(|| damaged("cards", "a card can't be read"))
    }

    fn unregistered_card(&self, card: &CardKey) -> Result<Option<CardState>, StoreError> {
        Ok(self.unregistered.get(card).cloned())
    }

    fn unregistered_cards_of(&self, tenant: &Tenant) -> u32 {
        self.unregistered.of_tenant(tenant)
    }

    fn pin(&self, card: &CardKey) -> Result<Option<PinRow>, StoreError> {
        let key = card_key(card);
        match self.pins.get(&key) {
            Some(row) => readable_pin(row).map(Some),
            None => self.shared.pin(&key),
        }
    }

    /// Cards of a page of a rotation stand in the order of their keys: one pass over the rows costs less than a search for each.
    fn pins(&self, cards: &[CardKey]) -> Result<Vec<Option<PinRow>>, StoreError> {
        let keys: Vec<_> = cards.iter().map(card_key).collect();
        let (Some(first), Some(last)) = (keys.first(), keys.last()) else { return Ok(Vec::new()) };
        if !keys.is_sorted_by(|one, next| one < next) {
            return cards.iter().map(|card| self.pin(card)).collect();
        }
        let mut rows = self.shared.pins.range(first.as_slice()..=last.as_slice());
        // The first row that is not before the card that was looked for last.
        let mut next = None;
        let mut on_disk = |key: &[u8]| loop {
            let (found, row) = match next.take() {
                Some(row) => row,
                None => match rows.next() {
                    Some(row) => row.into_inner().map_err(unavailable)?,
                    None => return Ok(None),
                },
            };
            match (*found).cmp(key) {
                Ordering::Less => {}
                Ordering::Equal => return readable_pin(&row).map(Some),
                Ordering::Greater => {
                    next = Some((found, row));
                    return Ok(None);
                }
            }
        };
        keys.iter()
            .map(|key| match self.pins.get(key) {
                Some(row) => readable_pin(row).map(Some),
                None => on_disk(key),
            })
            .collect()
    }

    fn control(&self, id: ControlId) -> Option<Control> {
        match self.controls.get(&id) {
            Some(written) => unpack(&written.packed),
            None => self.shared.live.find(id),
        }
    }

    fn put_card(&mut self, card: CardKey, state: CardState) {
        if self.unregistered.remove(&card) {
            self.unregistered_rows.insert(card_key(&card), None);
        }
        self.write.insert(&self.shared.cards, card_key(&card), encode_card(&state));
        self.cards.insert(card, state);
    }

    fn put_unregistered_card(&mut self, card: CardKey, state: CardState) {
        self.unregistered_rows.insert(card_key(&card), Some(encode_card(&state)));
        self.unregistered.put(card, state);
    }

    fn put_pin(&mut self, card: CardKey, set_at: UnixMillis, pin: &StoredPin) {
        self.pins.insert(card_key(&card), encode_pin(set_at, pin));
    }

    fn put_control(&mut self, control: &Control) {
        let written = WrittenControl { row: encode_control(control), packed: pack(control) };
        self.controls.insert(control.id, written);
    }

    fn controls_follow(&mut self, card: &CardKey, account: Option<&RegisteredAccount>) {
        let mut ids = self.shared.live.of_card(card);
        ids.extend(self.controls.keys());
        for id in ids {
            let control = self.control(id).filter(|control| control.card == *card);
            if let Some(control) = control.and_then(|control| rules::follow_account(control, account)) {
                self.put_control(&control);
            }
        }
    }

    fn put_keys_in_use(&mut self, keys: &ReportedKeys, start: Option<&KeysAtStart>) -> Result<(), StoreError> {
        *self.min = keys.loaded.newest();
        self.write.insert(&self.shared.meta, KEYS_KEY, &*keys.list);
        self.write.insert(&self.shared.meta, MIN_KEY_VERSIONS_KEY, encode_min(self.min));
        if let Some(start) = start {
            self.write.insert(&self.shared.meta, CARD_REFERENCE_KEY, start.card_reference_key.as_bytes());
        }
        Ok(())
    }

    fn remove_archived(&mut self, part: &ArchivedPart) -> Result<(), StoreError> {
        let end = part.end();
        let found = self.shared.audit_entries(end.sequence, 1)?;
        if found.first().map(|entry| (entry.sequence, entry.hash)) != Some((end.sequence, end.hash)) {
            return Err(damaged("audit", "the archive ends with another entry than the store"));
        }
        self.write.insert(&self.shared.meta, ARCHIVED_KEY, part.encode());
        self.archived = Some(end.sequence);
        Ok(())
    }
}
