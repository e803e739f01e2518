//! One card, two controls, three callers, an engine and its store.
//!
//! A call has the steps of the engine: it reads the control on disk and decides what to change, the writer applies the change to
//! the newest state in its batch, the batch is synced, the reply arrives. Between any two steps other calls take theirs, and the
//! process may crash: then every call fails, and a batch that was not synced is on disk or is not. A reply may be lost as well.

use std::{
    fmt,
    hash::{Hash, Hasher},
    time::Duration,
};

use stateright::{Model, Property};

use domain::card::{CardKey, PlasticId, StoredPin, Tenant};
use domain::control::{
    Control, ControlId, ControlState, Denied, NewControl, RetryTag, Scope, SealedTzpk, Spent, Transition,
};
use domain::rules::{self, Admission, Advanced, CardState, FoundCard, PinOrigin, UnknownCards};
use domain::storage_key::{KeyWindow, RecordKey, StorageKeyKind};
use domain::time::UnixMillis;

const CALLERS: usize = 3;
const CONTROLS: usize = 2;
/// The attempts of one call, as in `crates/engine/src/pin.rs`.
const ATTEMPTS_MAX: u8 = 4;
/// The number of a control without a tzpk.
const NO_TZPK: u8 = 0;
/// The control of a PIN that was set before the first step.
const EARLIER: u8 = 9;
/// The first tzpk of each control.
const FIRST_TZPK: [u8; CONTROLS] = [1, 2];
const ADMISSION: Admission = Admission {
    controls_per_card_per_hour: 1_000,
    unknown_cards: UnknownCards::Accept,
    unregistered_cards_per_tenant: 1,
};

/// The names of the properties.
pub const SINGLE_USE: &str = "a control sets one PIN or shows one PIN, once";
pub const NEWEST_TZPK: &str = "a block sets a PIN under the newest tzpk of its control alone";
pub const NEWEST_REQUEST: &str = "a tzpk replaces the one that its request has read";
pub const RETRY: &str = "a retry is confirmed only while the PIN of its control stands";
pub const OLDER_CONTROL: &str = "no PIN replaces one that was set or confirmed after its control was opened";
pub const SPENT_BEFORE_REPLY: &str = "a control is spent on disk before its reply";
pub const ON_DISK: &str = "a PIN that was acknowledged is on disk";
pub const NEWEST_PIN: &str = "a view shows the newest PIN";
pub const EXPIRY: &str = "an expired control sets no PIN";

/// A rule that the model breaks, to show that a property finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A control stays usable after its use.
    SpentStaysUsable,
    /// A control opened under any generation sets a PIN.
    AnyGeneration,
    /// The tzpk of a change is not compared with the newest one.
    AnyTzpk,
    /// A retry is confirmed although another control has set the PIN.
    RetryOfAnyPin,
    /// A confirmed retry does not raise the generation.
    RetryKeepsGeneration,
    /// A view does not compare the record that it shows.
    AnyRecord,
    /// Time does not end a control.
    NoExpiry,
    /// A call is answered when its change is written, before the sync.
    ReplyBeforeSync,
}

/// The second control. The first sets a PIN, and is open from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Second {
    /// Sets a PIN; opened at the start.
    SetPin,
    /// Sets a PIN; opened by a caller.
    SetPinLater,
    /// Shows the PIN; opened at the start.
    ViewPin,
}

/// How much may happen.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub second: Second,
    /// Calls of all callers.
    pub calls: u8,
    pub crashes: u8,
    pub lost_replies: u8,
    /// Steps of the clock by a minute: a control lives half as long.
    pub minutes: u8,
}

/// The rules under the steps of calls and crashes.
#[derive(Clone, Copy, Debug)]
pub struct CardModel {
    pub limits: Limits,
    /// `None` for the rules as they are.
    pub fault: Option<Fault>,
}

/// A PIN block of a device.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    pin: u8,
    under: u8,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Request {
    /// Opens the second control and issues its first tzpk.
    Open,
    Issue {
        control: u8,
    },
    Set {
        control: u8,
        block: Block,
    },
    View,
}

impl Request {
    fn control(self) -> usize {
        match self {
            Self::Issue { control } | Self::Set { control, .. } => control.into(),
            Self::Open | Self::View => 1,
        }
    }
}

/// A call in the engine.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    request: Request,
    attempts: u8,
    was_denied: bool,
}

/// What a call decided to change, from what it read.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    Open,
    Key { tzpk: u8, replaces: u8 },
    Set { block: Block },
    Malformed { under: u8 },
    Confirm { block: Block },
    View { control: u8, block: Block },
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reply {
    Tzpk { control: u8, tzpk: u8 },
    Set { control: u8, block: Block },
    Confirmed { control: u8, block: Block },
    Malformed { control: u8 },
    Shown { control: u8 },
}

/// The step of a caller's call.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Idle,
    /// Another change was made first: the call reads again.
    StartsOver(Call),
    /// The change waits for the writer.
    Waits(Call, Change),
    /// The change is in the batch.
    Written(Reply),
    /// The change is on disk.
    Replied(Reply),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Calls { caller: usize, request: Request },
    ReadsAgain { caller: usize },
    WriterApplies { caller: usize },
    BatchIsSynced,
    ReplyArrives { caller: usize },
    ReplyIsLost { caller: usize },
    Crash { keeps_batch: bool },
    MinutePasses,
}

/// The rows of the store, and what has happened to them.
#[derive(Clone)]
pub struct Data {
    card: CardState,
    controls: [Option<Control>; CONTROLS],
    pin: Option<StoredPin>,
    history: History,
}

/// What the properties compare with. The rules do not see it.
#[derive(Clone, Debug, Default, Hash, PartialEq, Eq)]
struct History {
    /// Each PIN that was set, oldest first, with its control.
    sets: Vec<(u8, Block)>,
    newest_tzpk: [u8; CONTROLS],
    /// Whether a PIN was set or confirmed under the other control since this one was opened.
    superseded: [bool; CONTROLS],
    viewed: bool,
}

/// The properties that a change has violated.
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
struct Broken {
    single_use: bool,
    newest_tzpk: bool,
    newest_request: bool,
    retry: bool,
    older_control: bool,
    spent_before_reply: bool,
    newest_pin: bool,
    expiry: bool,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct State {
    disk: Data,
    /// The newest state of the writer, where a batch is not synced.
    batch: Option<Data>,
    /// In order: which caller calls makes no difference.
    callers: [Phase; CALLERS],
    /// The tzpks that callers have received, by control.
    tzpks: [Vec<u8>; CONTROLS],
    /// The PINs that callers have received an answer for, by control.
    acknowledged: Vec<(u8, Block)>,
    shown: u8,
    next_tzpk: u8,
    minute: u8,
    calls: u8,
    crashes: u8,
    lost_replies: u8,
    broken: Broken,
}

impl CardModel {
    /// Reads the control, and decides what to change; `None` where the call is refused.
    fn read(&self, state: &mut State, call: Call) -> Option<Change> {
        let now = time(state.minute);
        let control = match call.request {
            Request::Open => return Some(Change::Open),
            request => state.disk.controls[request.control()].as_ref()?,
        };
        match call.request {
            Request::Open => None,
            Request::Issue { .. } => {
                control.admit(&tenant(), Scope::SetPin, now).ok()?;
                let replaces = control.tzpk().map_or(NO_TZPK, number);
                let tzpk = state.next_tzpk;
                state.next_tzpk += 1;
                Some(Change::Key { tzpk, replaces })
            }
            Request::Set { control: name, block } => {
                if control.set_by(&tenant(), now).is_some_and(|set_by| set_by.matches(&tag(name, block))) {
                    return Some(Change::Confirm { block });
                }
                control.admit(&tenant(), Scope::SetPin, now).ok()?;
                let under = number(control.tzpk().ok()?);
                Some(if under == block.under { Change::Set { block } } else { Change::Malformed { under } })
            }
            Request::View => {
                control.admit(&tenant(), Scope::ViewPin, now).ok()?;
                let [control, pin, under] = state.disk.pin.as_ref()?.record[..] else { return None };
                Some(Change::View { control, block: Block { pin, under } })
            }
        }
    }

    /// Applies a change to the newest state by the rules, as the writer of a store does.
    fn apply(
        &self,
        newest: &Data,
        request: Request,
        change: Change,
        minute: u8,
        broken: &mut Broken,
    ) -> Result<(Data, Reply), Denied> {
        let at = request.control();
        let name = u8::try_from(at).unwrap_or_default();
        let mut data = newest.clone();
        let now = time(if self.has(Fault::NoExpiry) { 0 } else { minute });
        let (mut card, window) = (data.card.clone(), KeyWindow::default());
        if change == Change::Open {
            let (card, control) = rules::open(FoundCard::Known(card), new_control(at, Scope::SetPin), ADMISSION, now)?;
            let key = Transition::Key { tzpk: sealed(FIRST_TZPK[at]), replaces: None };
            data.controls[at] = Some(rules::advance(control, card.clone(), None, key, &window, now)?.control);
            data.card = card;
            data.history.newest_tzpk[at] = FIRST_TZPK[at];
            data.history.superseded[at] = false;
            return Ok((data, Reply::Tzpk { control: name, tzpk: FIRST_TZPK[at] }));
        }
        let mut control = data.controls[at].clone().ok_or(Denied::NotUsable)?;
        let mut pin = data.pin.clone();
        let (used, transition) = match change {
            Change::Key { tzpk, replaces } => {
                let before = (replaces != NO_TZPK).then(|| sealed(replaces));
                (replaces, Transition::Key { tzpk: sealed(tzpk), replaces: before })
            }
            Change::Set { block } => {
                let (under, retry) = (sealed(block.under), tag(name, block));
                (block.under, Transition::Set { under, retry, pin: record(name, block) })
            }
            Change::Malformed { under } => (under, Transition::Malformed { under: sealed(under) }),
            Change::View { control, block } => (NO_TZPK, Transition::View { shown: record(control, block).record }),
            Change::Open | Change::Confirm { .. } => (NO_TZPK, Transition::View { shown: Box::default() }),
        };
        self.break_rule(&mut control, &mut card, used);
        if let (true, Transition::View { shown }) = (self.has(Fault::AnyRecord), &transition) {
            pin = pin.map(|newest| StoredPin { record: shown.clone(), ..newest });
        }

        let history = &mut data.history;
        if let Change::Confirm { block } = change {
            let confirmed = rules::confirm_retry(&control, card.clone(), &tag(name, block), now)?;
            let generation = if self.has(Fault::RetryKeepsGeneration) { card.generation } else { confirmed.generation };
            data.card = CardState { generation, ..confirmed };
            broken.retry |= history.sets.last() != Some(&(name, block));
            history.superseded[1 - at] = true;
            return Ok((data, Reply::Confirmed { control: name, block }));
        }
        let Advanced { control, set } = rules::advance(control, card, pin.as_ref(), transition, &window, now)?;
        let is_expired = time(minute) >= control.expires_at;
        data.controls[at] = Some(control);
        if let Some((card, pin)) = set {
            (data.card, data.pin) = (card, Some(pin));
        }
        let reply = match change {
            Change::Key { tzpk, replaces } => {
                broken.newest_request |= history.newest_tzpk[at] != replaces;
                history.newest_tzpk[at] = tzpk;
                Reply::Tzpk { control: name, tzpk }
            }
            Change::Set { block } => {
                broken.single_use |= history.sets.iter().any(|(control, _)| *control == name);
                broken.newest_tzpk |= history.newest_tzpk[at] != block.under;
                broken.older_control |= history.superseded[at];
                broken.expiry |= is_expired;
                history.sets.push((name, block));
                history.superseded[1 - at] = true;
                Reply::Set { control: name, block }
            }
            Change::View { control, block } => {
                broken.single_use |= history.viewed;
                broken.newest_pin |= history.sets.last() != Some(&(control, block));
                history.viewed = true;
                Reply::Shown { control: name }
            }
            Change::Malformed { .. } | Change::Open | Change::Confirm { .. } => Reply::Malformed { control: name },
        };
        Ok((data, reply))
    }

    /// Hides from the rules what the broken one would compare. `used` is the tzpk of the change.
    fn break_rule(&self, control: &mut Control, card: &mut CardState, used: u8) {
        match self.fault {
            Some(Fault::SpentStaysUsable) => match control.state {
                ControlState::Spent(Spent::Viewed) => control.state = ControlState::Open,
                ControlState::Spent(_) => {
                    control.state = ControlState::Keyed { tzpk: sealed(used), refused_pins: 0 };
                    control.opened_generation = card.generation;
                }
                _ => {}
            },
            Some(Fault::AnyTzpk) => {
                if let ControlState::Keyed { tzpk, .. } = &mut control.state {
                    *tzpk = sealed(used);
                }
            }
            Some(Fault::AnyGeneration) => control.opened_generation = card.generation,
            Some(Fault::RetryOfAnyPin) => card.set_by = Some(PinOrigin::Control(control.id)),
            _ => {}
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    fn requests(&self, state: &State) -> Vec<Request> {
        let mut requests = Vec::new();
        let newest = state.batch.as_ref().unwrap_or(&state.disk);
        let opens = |phase: &Phase| matches!(phase, Phase::Waits(_, Change::Open));
        if newest.controls[1].is_none() && !state.callers.iter().any(opens) {
            requests.push(Request::Open);
        }
        for (control, tzpks) in (0u8..).zip(&state.tzpks) {
            if self.limits.second == Second::ViewPin && control == 1 {
                requests.push(Request::View);
                continue;
            }
            requests.push(Request::Issue { control });
            for under in tzpks {
                for pin in 0..2 {
                    requests.push(Request::Set { control, block: Block { pin, under: *under } });
                }
            }
        }
        requests
    }
}

impl Model for CardModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let now = time(0);
        // A PIN is set: a control to view can show it, and a newer PIN can replace it.
        let earlier = Block { pin: 0, under: NO_TZPK };
        let id = ControlId::from_bytes([EARLIER; 16]);
        let set_by = Some(PinOrigin::Control(id));
        let mut card = CardState { generation: 1, set_by, ..CardState::default() };
        let mut history = History { sets: vec![(EARLIER, earlier)], ..History::default() };
        let (mut controls, mut tzpks) = ([None, None], [vec![], vec![]]);
        let scopes = match self.limits.second {
            Second::SetPin => [Some(Scope::SetPin); CONTROLS],
            Second::SetPinLater => [Some(Scope::SetPin), None],
            Second::ViewPin => [Some(Scope::SetPin), Some(Scope::ViewPin)],
        };
        for (at, scope) in scopes.into_iter().enumerate() {
            let Some(scope) = scope else { continue };
            let Ok((opened, mut control)) =
                rules::open(FoundCard::Known(card.clone()), new_control(at, scope), ADMISSION, now)
            else {
                return Vec::new();
            };
            card = opened;
            if scope == Scope::SetPin {
                control.state = ControlState::Keyed { tzpk: sealed(FIRST_TZPK[at]), refused_pins: 0 };
                history.newest_tzpk[at] = FIRST_TZPK[at];
                tzpks[at].push(FIRST_TZPK[at]);
            }
            controls[at] = Some(control);
        }
        vec![State {
            disk: Data { card, controls, pin: Some(record(EARLIER, earlier)), history },
            batch: None,
            callers: [Phase::Idle; CALLERS],
            tzpks,
            acknowledged: Vec::new(),
            shown: 0,
            next_tzpk: 3,
            minute: 0,
            calls: 0,
            crashes: 0,
            lost_replies: 0,
            broken: Broken::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (caller, phase) in state.callers.iter().enumerate() {
            // Of callers in the same phase one is enough.
            if caller > 0 && state.callers[caller - 1] == *phase {
                continue;
            }
            match phase {
                Phase::Idle if state.calls < self.limits.calls => {
                    actions.extend(self.requests(state).into_iter().map(|request| Action::Calls { caller, request }));
                }
                Phase::Idle | Phase::Written(_) => {}
                Phase::StartsOver(_) => actions.push(Action::ReadsAgain { caller }),
                Phase::Waits(..) => actions.push(Action::WriterApplies { caller }),
                Phase::Replied(_) => {
                    actions.push(Action::ReplyArrives { caller });
                    if state.lost_replies < self.limits.lost_replies {
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
        if state.minute < self.limits.minutes {
            actions.push(Action::MinutePasses);
        }
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        match action {
            Action::Calls { caller, request } => {
                state.calls += 1;
                let call = Call { request, attempts: 1, was_denied: false };
                // A call that is refused at its read changes nothing.
                let change = self.read(&mut state, call)?;
                state.callers[caller] = Phase::Waits(call, change);
            }
            Action::ReadsAgain { caller } => {
                let Phase::StartsOver(call) = before.callers[caller] else { return None };
                let change = self.read(&mut state, call);
                state.callers[caller] = change.map_or(Phase::Idle, |change| Phase::Waits(call, change));
            }
            Action::WriterApplies { caller } => {
                let Phase::Waits(call, change) = before.callers[caller] else { return None };
                let newest = before.batch.as_ref().unwrap_or(&before.disk);
                let over = Call { attempts: call.attempts + 1, ..call };
                state.callers[caller] = match self.apply(newest, call.request, change, state.minute, &mut state.broken)
                {
                    Ok((data, reply)) => {
                        state.batch = Some(data);
                        if self.has(Fault::ReplyBeforeSync) { Phase::Replied(reply) } else { Phase::Written(reply) }
                    }
                    Err(Denied::Superseded) if call.attempts < ATTEMPTS_MAX => Phase::StartsOver(over),
                    Err(Denied::NotUsable)
                        if matches!(call.request, Request::Set { .. })
                            && !matches!(change, Change::Confirm { .. })
                            && !call.was_denied
                            && call.attempts < ATTEMPTS_MAX =>
                    {
                        Phase::StartsOver(Call { was_denied: true, ..over })
                    }
                    Err(_) => Phase::Idle,
                };
            }
            Action::BatchIsSynced => {
                state.disk = state.batch.take()?;
                for phase in &mut state.callers {
                    if let Phase::Written(reply) = *phase {
                        *phase = Phase::Replied(reply);
                    }
                }
            }
            Action::ReplyArrives { caller } => {
                let Phase::Replied(reply) = before.callers[caller] else { return None };
                state.callers[caller] = Phase::Idle;
                state.receive(reply);
            }
            Action::ReplyIsLost { caller } => {
                state.lost_replies += 1;
                state.callers[caller] = Phase::Idle;
            }
            Action::Crash { keeps_batch } => {
                state.crashes += 1;
                let batch = state.batch.take();
                if let Some(batch) = batch.filter(|_| keeps_batch) {
                    state.disk = batch;
                }
                state.callers = [Phase::Idle; CALLERS];
            }
            Action::MinutePasses => state.minute += 1,
        }
        state.callers.sort_unstable();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(SINGLE_USE, |_, state: &State| {
                let mut by_control = state.acknowledged.windows(2);
                !state.broken.single_use && state.shown < 2 && by_control.all(|two| two[0].0 != two[1].0)
            }),
            Property::always(NEWEST_TZPK, |_, state: &State| !state.broken.newest_tzpk),
            Property::always(NEWEST_REQUEST, |_, state: &State| !state.broken.newest_request),
            Property::always(RETRY, |_, state: &State| !state.broken.retry),
            Property::always(OLDER_CONTROL, |_, state: &State| !state.broken.older_control),
            Property::always(SPENT_BEFORE_REPLY, |_, state: &State| !state.broken.spent_before_reply),
            Property::always(ON_DISK, |_, state: &State| {
                state.acknowledged.iter().all(|set| state.disk.history.sets.contains(set))
            }),
            Property::always(NEWEST_PIN, |_, state: &State| !state.broken.newest_pin),
            Property::always(EXPIRY, |_, state: &State| !state.broken.expiry),
            Property::sometimes("a PIN is acknowledged", |_, state: &State| !state.acknowledged.is_empty()),
            Property::sometimes("a retry is confirmed", |_, state: &State| {
                state.callers.iter().any(|phase| matches!(phase, Phase::Replied(Reply::Confirmed { .. })))
            }),
            Property::sometimes("a call starts over", |_, state: &State| {
                state.callers.iter().any(|phase| matches!(phase, Phase::StartsOver(_)))
            }),
            Property::sometimes("a block is malformed under the newest tzpk", |_, state: &State| {
                state.callers.iter().any(|phase| matches!(phase, Phase::Replied(Reply::Malformed { .. })))
            }),
        ];
        if self.limits.crashes > 0 {
            properties.push(Property::sometimes(
                "a crash keeps a PIN that nobody was answered for",
                |_, state: &State| {
                    state.crashes > 0 && state.acknowledged.is_empty() && state.disk.history.sets.len() > 1
                },
            ));
        }
        match self.limits.second {
            Second::SetPin => {}
            Second::SetPinLater => properties
                .push(Property::sometimes("both controls set a PIN", |_, state: &State| state.acknowledged.len() == 2)),
            Second::ViewPin => {
                properties.push(Property::sometimes("a PIN is shown", |_, state: &State| state.shown > 0));
            }
        }
        properties
    }
}

impl State {
    /// What a caller learns from a reply.
    fn receive(&mut self, reply: Reply) {
        let control = match reply {
            Reply::Tzpk { control, tzpk } => {
                let tzpks = &mut self.tzpks[usize::from(control)];
                tzpks.push(tzpk);
                tzpks.sort_unstable();
                return;
            }
            Reply::Set { control, block } | Reply::Confirmed { control, block } => {
                self.acknowledged.push((control, block));
                self.acknowledged.sort_unstable();
                self.acknowledged.dedup();
                control
            }
            Reply::Malformed { control } => control,
            Reply::Shown { control } => {
                self.shown += 1;
                control
            }
        };
        let on_disk = self.disk.controls[usize::from(control)].as_ref();
        let is_spent = on_disk.is_some_and(|control| matches!(control.state, ControlState::Spent(_)));
        self.broken.spent_before_reply |= !is_spent;
    }
}

/// The types of the rules have no hash, and a tag is compared in constant time: the checker compares these values.
#[derive(Debug, Hash, PartialEq, Eq)]
struct DataKey<'a> {
    generation: u64,
    set_by: Option<ControlId>,
    controls: [Option<ControlKey>; CONTROLS],
    pin: Option<&'a [u8]>,
    history: &'a History,
}

#[derive(Debug, Hash, PartialEq, Eq)]
struct ControlKey {
    expires_at: UnixMillis,
    opened_generation: u64,
    state: StateKey,
}

#[derive(Debug, Hash, PartialEq, Eq)]
enum StateKey {
    Open,
    Keyed { tzpk: u8, refused_pins: u8 },
    Set([u8; 16]),
    Changed,
    Viewed,
    Malformed,
    Refused,
}

impl Data {
    fn key(&self) -> DataKey<'_> {
        let controls = self.controls.each_ref().map(|control| {
            control.as_ref().map(|control| ControlKey {
                expires_at: control.expires_at,
                opened_generation: control.opened_generation,
                state: match &control.state {
                    ControlState::Open => StateKey::Open,
                    ControlState::Keyed { tzpk, refused_pins } => {
                        StateKey::Keyed { tzpk: number(tzpk), refused_pins: *refused_pins }
                    }
                    ControlState::Spent(Spent::Set(tag)) => StateKey::Set(tag.0),
                    ControlState::Spent(Spent::Changed) => StateKey::Changed,
                    ControlState::Spent(Spent::Viewed) => StateKey::Viewed,
                    ControlState::Spent(Spent::Malformed) => StateKey::Malformed,
                    ControlState::Spent(Spent::Refused) => StateKey::Refused,
                },
            })
        });
        DataKey {
            generation: self.card.generation,
            set_by: match self.card.set_by {
                Some(PinOrigin::Control(id)) => Some(id),
                _ => None,
            },
            controls,
            pin: self.pin.as_ref().map(|pin| &*pin.record),
            history: &self.history,
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

fn time(minute: u8) -> UnixMillis {
    UnixMillis(1_000_000).after(Duration::from_secs(60) * u32::from(minute))
}

#[allow(clippy::unwrap_used, reason = "a constant")]
fn tenant() -> Tenant {
    Tenant::parse("bank").unwrap()
}

#[allow(clippy::unwrap_used, reason = "a constant")]
pub(crate) fn new_control(at: usize, scope: Scope) -> NewControl {
    NewControl {
        id: ControlId::from_bytes([u8::try_from(at).unwrap(); 16]),
        card: CardKey { tenant: tenant(), plastic: PlasticId::parse("1").unwrap() },
        scope,
        lifetime: Duration::from_secs(30),
        device_key: None,
        page_client: None,
    }
}

fn sealed(number: u8) -> SealedTzpk {
    SealedTzpk([number].into())
}

fn number(tzpk: &SealedTzpk) -> u8 {
    tzpk.0[0]
}

fn tag(control: u8, block: Block) -> RetryTag {
    let mut tag = [0; 16];
    tag[..3].copy_from_slice(&[control, block.pin, block.under]);
    RetryTag(tag)
}

fn record(control: u8, block: Block) -> StoredPin {
    let key = RecordKey { kind: StorageKeyKind::Iso4, version: 1 };
    StoredPin { record: [control, block.pin, block.under].into(), key, account: None }
}
