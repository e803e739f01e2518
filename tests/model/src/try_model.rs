//! The tries of one card: callers that verify and change its PIN, an operator who resets, a zone that sets another PIN.
//!
//! A call has the steps of the engine: it reserves a try, the batch with the reservation is synced, the boundary compares, the
//! call settles the try, the batch is synced, the reply arrives. Between any two steps other calls take theirs, a settlement or
//! a reset may wait for any time, the caller may go, and the process may crash: then every call fails, and a batch that was not
//! synced is on disk or is not.

use std::{
    fmt,
    hash::{Hash, Hasher},
};

use stateright::{Model, Property};

use domain::card::StoredPin;
use domain::control::{Denied, RetryTag};
use domain::pin_rules::{self, SettledChange};
use domain::rules::{CardState, FoundCard, PinOrigin, UnknownCards};
use domain::storage_key::{KeyWindow, RecordKey, StorageKeyKind};
use domain::time::UnixMillis;
use domain::tries::{ChangeVerdict, Compared, Tries, Verdict};

/// The PIN before the first step, and the only other one.
const FIRST_PIN: u8 = 0;
const OTHER_PIN: u8 = 1;

/// The names of the properties.
pub const LIMIT: &str = "no more PINs are compared wrong in a row than the limit";
pub const ONCE: &str = "no try is compared twice";
pub const SETTLED_ONCE: &str = "no try is settled twice";
pub const LATER: &str = "a right PIN forgives no later try";
pub const COMPARED_PIN: &str = "a changed PIN replaces the one that was compared";
pub const ON_DISK: &str = "a try that was answered is settled on disk";

/// A rule that the model breaks, to show that a property finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The boundary compares before the reservation is synced.
    ComparesBeforeSync,
    /// One more try than the limit is reserved.
    OneMore,
    /// A right PIN forgives every try that is reserved when its settlement is applied.
    RightForgivesAll,
    /// A reset forgives every try that is reserved when the reset is applied.
    ResetForgivesAll,
    /// A new PIN forgives the tries.
    NewPinForgives,
    /// A settled try is settled again.
    SettlesAgain,
    /// A change is written whatever PIN the card has by then.
    AnyGeneration,
    /// A call is answered when its settlement is written, before the sync.
    ReplyBeforeSync,
}

/// How much may happen.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The limit of the card.
    pub tries: u32,
    /// Calls of all callers.
    pub calls: u8,
    /// Whether calls change the PIN, too.
    pub changes: bool,
    /// Sets of another PIN by a zone.
    pub sets: u8,
    pub resets: u8,
    pub crashes: u8,
    /// Callers that go before the comparison, and settlements whose reply is lost, so that the engine settles again.
    pub lost: u8,
}

/// The rules under the steps of `CALLERS` callers and crashes.
#[derive(Clone, Copy, Debug)]
pub struct TryModel<const CALLERS: usize> {
    pub limits: Limits,
    /// `None` for the rules as they are.
    pub fault: Option<Fault>,
}

/// A record: its PIN, and what made it.
type Record = [u8; 2];

/// A call that verifies a PIN, and changes it where there is a new one.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    pin: u8,
    new: Option<u8>,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reserved {
    number: u8,
    record: Record,
    generation: u8,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Settlement {
    reserved: Reserved,
    is_right: bool,
    new: Option<u8>,
}

/// The step of a caller's call.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Idle,
    /// The reservation waits for the writer.
    Reserves(Call),
    /// The reservation is in the batch.
    Reserved(Call, Reserved),
    /// The reservation is on disk: the boundary compares.
    Compares(Call, Reserved),
    /// The settlement waits for the writer.
    Settles(Settlement),
    /// The settlement is in the batch.
    Settled(Settlement),
    /// The settlement is on disk.
    Replied(Settlement),
    /// A set of this PIN waits for the writer.
    Sets(u8),
    /// A reset up to this number waits for the writer.
    Resets(u8),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Calls { caller: usize, call: Call },
    ZoneSets { caller: usize },
    OperatorResets { caller: usize },
    WriterApplies { caller: usize },
    BatchIsSynced,
    BoundaryCompares { caller: usize },
    CallerGoes { caller: usize },
    ReplyArrives { caller: usize },
    ReplyIsLost { caller: usize },
    Crash { keeps_batch: bool },
}

/// The rows of the store, and the settlements in them.
#[derive(Clone)]
pub struct Data {
    card: CardState,
    pin: StoredPin,
    /// The numbers of settled tries, in the order of their settlements. The rules do not see them.
    settled: Vec<u8>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct State<const CALLERS: usize> {
    disk: Data,
    /// The newest state of the writer, where a batch is not synced.
    batch: Option<Data>,
    /// In order: which caller calls makes no difference.
    callers: [Phase; CALLERS],
    /// Each comparison of the boundary: the number of its try, and whether the PIN was right. In the order of the numbers.
    compared: Vec<(u8, bool)>,
    /// The numbers up to which an operator asked to forgive.
    resets: Vec<u8>,
    /// The numbers of the tries that a caller got an answer for.
    answered: Vec<u8>,
    calls: u8,
    sets: u8,
    crashes: u8,
    lost: u8,
    was_locked: bool,
    was_changed: bool,
    was_superseded: bool,
    forgave_later: bool,
    replaced_another: bool,
}

impl<const CALLERS: usize> TryModel<CALLERS> {
    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    /// Applies the waiting change of a caller to the newest state by the rules, as the writer of a store does.
    fn apply(&self, state: &mut State<CALLERS>, phase: Phase) -> Phase {
        let newest = state.batch.as_ref().unwrap_or(&state.disk).clone();
        let applied = match phase {
            Phase::Reserves(call) => self.reserve(&newest, call),
            Phase::Settles(settlement) => self.settle(state, &newest, settlement),
            Phase::Sets(pin) => self.set(&newest, pin, state.sets).map(|data| (data, Phase::Idle)),
            Phase::Resets(up_to) => self.reset(&newest, up_to).map(|data| (data, Phase::Idle)),
            other => return other,
        };
        match (applied, phase) {
            (Ok((data, phase)), _) => {
                state.batch = Some(data);
                phase
            }
            (Err(Denied::PinLocked), _) => {
                state.was_locked = true;
                Phase::Idle
            }
            // The old PIN was right, and another one replaced it: the try is settled alone.
            (Err(Denied::Superseded), Phase::Settles(settlement)) => {
                state.was_superseded = true;
                Phase::Settles(Settlement { new: None, ..settlement })
            }
            (Err(_), _) => Phase::Idle,
        }
    }

    fn reserve(&self, newest: &Data, call: Call) -> Result<(Data, Phase), Denied> {
        let limit = self.limits.tries + u32::from(self.has(Fault::OneMore));
        let (card, reserved) =
            pin_rules::reserve_try(Some(newest.card.clone()), Some(newest.pin.clone()), Compared::Record, limit)?;
        let record = reserved.pin.as_ref().map(record_of).unwrap_or_default();
        let reserved = Reserved { number: small(reserved.number), record, generation: small(reserved.generation) };
        let data = Data { card, ..newest.clone() };
        let is_answered = self.has(Fault::ComparesBeforeSync);
        Ok((data, if is_answered { Phase::Compares(call, reserved) } else { Phase::Reserved(call, reserved) }))
    }

    fn settle(
        &self,
        state: &mut State<CALLERS>,
        newest: &Data,
        settlement: Settlement,
    ) -> Result<(Data, Phase), Denied> {
        let Settlement { reserved: Reserved { number, record, generation }, is_right, new } = settlement;
        let (mut data, window) = (newest.clone(), KeyWindow::default());
        if self.has(Fault::SettlesAgain) && !data.card.tries.unsettled.contains(&number.into()) {
            data.card.tries.unsettled = data.card.tries.unsettled.iter().copied().chain([number.into()]).collect();
        }
        let before = data.card.tries.tries;
        if let Some(new) = new {
            let verdict = match is_right {
                true => ChangeVerdict::Right {
                    generation: if self.has(Fault::AnyGeneration) { data.card.generation } else { generation.into() },
                    pin: stored([new, number]),
                },
                false => ChangeVerdict::Wrong,
            };
            let SettledChange { card, pin, .. } =
                pin_rules::settle_change(data.card, None, number.into(), verdict, &window, UnixMillis(0))?;
            if pin.is_some() {
                state.was_changed = true;
                state.replaced_another |= record_of(&data.pin) != record;
            }
            (data.card, data.pin) = (card, pin.unwrap_or(data.pin));
        } else {
            let verdict = if is_right { Verdict::Right { moved: None } } else { Verdict::Wrong };
            (data.card, _) = pin_rules::settle_try(data.card, None, number.into(), verdict, &window)?;
        }
        if is_right && self.has(Fault::RightForgivesAll) {
            forgive_all(&mut data.card);
        }
        state.forgave_later |= data.card.tries.tries.forgiven > before.forgiven.max(number.into());
        data.settled.push(number);
        let is_answered = self.has(Fault::ReplyBeforeSync);
        Ok((data, if is_answered { Phase::Replied(settlement) } else { Phase::Settled(settlement) }))
    }

    fn set(&self, newest: &Data, pin: u8, number: u8) -> Result<Data, Denied> {
        let (found, pin) = (FoundCard::Known(newest.card.clone()), stored([pin, 100 + number]));
        let (tag, window) = (RetryTag([number; 16]), KeyWindow::default());
        let card = pin_rules::set_by_zone(found, &pin, &tag, UnknownCards::Refuse, &window)?;
        let mut data = Data { card: card.ok_or(Denied::NotUsable)?, pin, ..newest.clone() };
        if self.has(Fault::NewPinForgives) {
            forgive_all(&mut data.card);
        }
        Ok(data)
    }

    fn reset(&self, newest: &Data, up_to: u8) -> Result<Data, Denied> {
        let mut card = pin_rules::reset_tries(Some(newest.card.clone()), up_to.into())?;
        if self.has(Fault::ResetForgivesAll) {
            forgive_all(&mut card);
        }
        Ok(Data { card, ..newest.clone() })
    }

    fn calls(&self) -> Vec<Call> {
        let verify = [FIRST_PIN, OTHER_PIN].map(|pin| Call { pin, new: None });
        let change = [FIRST_PIN, OTHER_PIN].map(|pin| Call { pin, new: Some(1 - pin) });
        verify.into_iter().chain(change.into_iter().filter(|_| self.limits.changes)).collect()
    }
}

impl<const CALLERS: usize> State<CALLERS> {
    /// The wrong comparisons between two forgiving ones: a right PIN or a reset forgives those up to its number.
    fn wrong_in_a_row(&self) -> usize {
        let right = self.compared.iter().filter(|(_, is_right)| *is_right).map(|(number, _)| *number);
        let mut forgiven: Vec<_> = right.chain(self.resets.iter().copied()).chain([0, u8::MAX]).collect();
        forgiven.sort_unstable();
        let wrong_within = |range: &[u8]| {
            let is_in = |number: u8| range[0] < number && number <= range[1];
            self.compared.iter().filter(|(number, is_right)| !is_right && is_in(*number)).count()
        };
        forgiven.windows(2).map(wrong_within).max().unwrap_or_default()
    }
}

impl<const CALLERS: usize> Model for TryModel<CALLERS> {
    type State = State<CALLERS>;
    type Action = Action;

    fn init_states(&self) -> Vec<State<CALLERS>> {
        let card = CardState { generation: 1, set_by: Some(PinOrigin::Change), ..CardState::default() };
        vec![State {
            disk: Data { card, pin: stored([FIRST_PIN, 0]), settled: Vec::new() },
            batch: None,
            callers: [Phase::Idle; CALLERS],
            compared: Vec::new(),
            resets: Vec::new(),
            answered: Vec::new(),
            calls: 0,
            sets: 0,
            crashes: 0,
            lost: 0,
            was_locked: false,
            was_changed: false,
            was_superseded: false,
            forgave_later: false,
            replaced_another: false,
        }]
    }

    fn actions(&self, state: &State<CALLERS>, actions: &mut Vec<Action>) {
        for (caller, phase) in state.callers.iter().enumerate() {
            // Of callers in the same phase one is enough.
            if caller > 0 && state.callers[caller - 1] == *phase {
                continue;
            }
            let may_lose = state.lost < self.limits.lost;
            match phase {
                Phase::Idle => {
                    if state.calls < self.limits.calls {
                        actions.extend(self.calls().into_iter().map(|call| Action::Calls { caller, call }));
                    }
                    if state.sets < self.limits.sets {
                        actions.push(Action::ZoneSets { caller });
                    }
                    if state.resets.len() < usize::from(self.limits.resets) {
                        actions.push(Action::OperatorResets { caller });
                    }
                }
                Phase::Reserves(_) | Phase::Settles(_) | Phase::Sets(_) | Phase::Resets(_) => {
                    actions.push(Action::WriterApplies { caller });
                }
                Phase::Reserved(..) | Phase::Settled(_) => {}
                Phase::Compares(..) => {
                    actions.push(Action::BoundaryCompares { caller });
                    if may_lose {
                        actions.push(Action::CallerGoes { caller });
                    }
                }
                Phase::Replied(_) => {
                    actions.push(Action::ReplyArrives { caller });
                    if may_lose {
                        actions.push(Action::ReplyIsLost { caller });
                    }
                }
            }
        }
        if state.batch.is_some() {
            actions.push(Action::BatchIsSynced);
        }
        let is_busy = state.batch.is_some() || state.callers != [Phase::Idle; CALLERS];
        if state.crashes < self.limits.crashes && is_busy {
            actions.push(Action::Crash { keeps_batch: false });
            if state.batch.is_some() {
                actions.push(Action::Crash { keeps_batch: true });
            }
        }
    }

    fn next_state(&self, before: &State<CALLERS>, action: Action) -> Option<State<CALLERS>> {
        let mut state = before.clone();
        match action {
            Action::Calls { caller, call } => {
                state.calls += 1;
                state.callers[caller] = Phase::Reserves(call);
            }
            Action::ZoneSets { caller } => {
                state.sets += 1;
                state.callers[caller] = Phase::Sets(OTHER_PIN);
            }
            Action::OperatorResets { caller } => {
                // A read sees what is on disk.
                let seen = small(state.disk.card.tries.tries.reserved);
                state.resets.push(seen);
                state.resets.sort_unstable();
                state.callers[caller] = Phase::Resets(seen);
            }
            Action::WriterApplies { caller } => {
                state.callers[caller] = self.apply(&mut state, before.callers[caller]);
            }
            Action::BatchIsSynced => {
                state.disk = state.batch.take()?;
                for phase in &mut state.callers {
                    *phase = match *phase {
                        Phase::Reserved(call, reserved) => Phase::Compares(call, reserved),
                        Phase::Settled(settlement) => Phase::Replied(settlement),
                        other => other,
                    };
                }
            }
            Action::BoundaryCompares { caller } => {
                let Phase::Compares(call, reserved) = before.callers[caller] else { return None };
                let is_right = call.pin == reserved.record[0];
                state.compared.push((reserved.number, is_right));
                state.compared.sort_unstable();
                state.callers[caller] = Phase::Settles(Settlement { reserved, is_right, new: call.new });
            }
            Action::CallerGoes { caller } => {
                state.lost += 1;
                state.callers[caller] = Phase::Idle;
            }
            Action::ReplyArrives { caller } => {
                let Phase::Replied(settlement) = before.callers[caller] else { return None };
                state.answered.push(settlement.reserved.number);
                state.answered.sort_unstable();
                state.callers[caller] = Phase::Idle;
            }
            Action::ReplyIsLost { caller } => {
                let Phase::Replied(settlement) = before.callers[caller] else { return None };
                state.lost += 1;
                state.callers[caller] = Phase::Settles(settlement);
            }
            Action::Crash { keeps_batch } => {
                state.crashes += 1;
                let batch = state.batch.take();
                if let Some(batch) = batch.filter(|_| keeps_batch) {
                    state.disk = batch;
                }
                state.callers = [Phase::Idle; CALLERS];
            }
        }
        state.callers.sort_unstable();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(LIMIT, |model: &Self, state: &State<CALLERS>| {
                u32::try_from(state.wrong_in_a_row()).is_ok_and(|wrong| wrong <= model.limits.tries)
            }),
            Property::always(ONCE, |_, state: &State<CALLERS>| {
                state.compared.windows(2).all(|two| two[0].0 != two[1].0)
            }),
            Property::always(SETTLED_ONCE, |_, state: &State<CALLERS>| {
                let settled = &state.disk.settled;
                settled.iter().enumerate().all(|(at, number)| !settled[..at].contains(number))
            }),
            Property::always(LATER, |_, state: &State<CALLERS>| !state.forgave_later),
            Property::always(COMPARED_PIN, |_, state: &State<CALLERS>| !state.replaced_another),
            Property::always(ON_DISK, |_, state: &State<CALLERS>| {
                state.answered.iter().all(|number| state.disk.settled.contains(number))
            }),
            Property::sometimes("a right PIN is answered", |_, state: &State<CALLERS>| {
                state.answered.iter().any(|number| state.compared.contains(&(*number, true)))
            }),
            Property::sometimes("a PIN is locked", |_, state: &State<CALLERS>| state.was_locked),
        ];
        if self.limits.changes {
            properties.push(Property::sometimes("a PIN is changed", |_, state: &State<CALLERS>| state.was_changed));
            properties
                .push(Property::sometimes("a change comes too late", |_, state: &State<CALLERS>| state.was_superseded));
        }
        if self.limits.crashes > 0 {
            properties.push(Property::sometimes("a crash leaves a compared try used", |_, state: &State<CALLERS>| {
                let Tries { forgiven, .. } = state.disk.card.tries.tries;
                let is_used = |(number, _): &(u8, bool)| u64::from(*number) > forgiven;
                let is_over = |(number, _): &&(u8, bool)| !state.disk.settled.contains(number);
                state.callers == [Phase::Idle; CALLERS] && state.compared.iter().filter(is_over).any(is_used)
            }));
        }
        properties
    }
}

/// The types of the rules have no hash: the checker compares these values.
#[derive(Debug, Hash, PartialEq, Eq)]
struct DataKey<'a> {
    generation: u64,
    tries: (u64, u64, &'a [u64]),
    is_by_zone: bool,
    zone_tags: Vec<[u8; 16]>,
    pin: &'a [u8],
    settled: &'a [u8],
}

impl Data {
    fn key(&self) -> DataKey<'_> {
        let tries = &self.card.tries;
        DataKey {
            generation: self.card.generation,
            tries: (tries.tries.reserved, tries.tries.forgiven, &tries.unsettled),
            is_by_zone: self.card.set_by == Some(PinOrigin::Zone),
            zone_tags: self.card.zone_tags.as_slice().iter().map(|tag| tag.0).collect(),
            pin: &self.pin.record,
            settled: &self.settled,
        }
    }
}

impl PartialEq for Data {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Data {}

impl Hash for Data {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key().fmt(f)
    }
}

fn forgive_all(card: &mut CardState) {
    card.tries.tries.forgiven = card.tries.tries.reserved;
}

fn stored(record: Record) -> StoredPin {
    StoredPin { record: record.into(), key: RecordKey { kind: StorageKeyKind::Iso4, version: 1 }, account: None }
}

fn record_of(pin: &StoredPin) -> Record {
    [pin.record[0], pin.record[1]]
}

#[allow(clippy::unwrap_used, reason = "the model counts a few")]
fn small(number: u64) -> u8 {
    number.try_into().unwrap()
}
