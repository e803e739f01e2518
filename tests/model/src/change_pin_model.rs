//! ChangePin by several engines (R6, R9): one card, two engines, and a client that changes the PIN with a right or wrong old one,
//! sets a PIN under a control, and stops waiting.
//!
//! A change reserves a try in a committed transaction, the boundary compares the old PIN, and a second transaction settles the
//! try together with the new PIN. The guard of the second transaction is the generation of the reservation. The rules are those of
//! `domain`: [`pin_rules::reserve_try`], [`pin_rules::settle_change`], [`pin_rules::settle_try`] for a try whose change came too
//! late, and [`rules::advance`] for a set. The model adds the engine's session (R1), commits in doubt (R3), callers that stopped
//! waiting (R5) and answers (R11).

use stateright::{Model, Property};

use domain::control::{ControlState, Denied, Transition};
use domain::pin_rules;
use domain::rules::{self, CardState};
use domain::tries::{ChangeVerdict, Compared, Verdict};

use crate::database::{Database, DatabaseStep, Faults, Notice, Tx};
use crate::rows;

/// The names of the properties.
pub const A2: &str = "a2: an acknowledged PIN stays until a later call sets another";
pub const B1: &str = "b1: success means that this call set the PIN, for good";
pub const B2: &str = "b2: a call that was refused sets no PIN";
pub const C1: &str = "c1: no more wrong comparisons in a row than the limit";
pub const C4: &str = "c4: a call uses at most one try";
pub const C5: &str = "c5: a reservation is compared at most once";
pub const C6: &str = "c6: a change replaces the PIN that was compared";

/// R6: what the settlement compares before it writes the new PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    Nothing,
    /// The generation of the card, with the one of the reservation.
    Generation,
}

/// R5: what an engine does with a call whose caller stopped waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    Ignored,
    /// The engine drops the call, unless its transaction was sent. A reserved try stays used.
    DropsBeforeSending,
}

/// R9: what an engine does about a settlement in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// R3, and without an event the boundary compares under the same number again.
    ComparesAgain,
    /// It answers by the comparison at once.
    AnswersTheResult,
    /// R3, and without an event the answer is UNAVAILABLE.
    AnswersTheEvent,
}

/// The choices that the model compares.
#[derive(Clone, Copy, Debug)]
pub struct Design {
    pub guard: Guard,
    pub deadline: Deadline,
    pub doubt: Doubt,
}

impl Design {
    pub const RECOMMENDED: Self =
        Self { guard: Guard::Generation, deadline: Deadline::DropsBeforeSending, doubt: Doubt::AnswersTheEvent };
}

/// How much may happen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// The limit of the card.
    pub tries: u8,
    pub calls: u8,
    /// Whether calls set a PIN under a control, too.
    pub sets: bool,
    /// Connections that break.
    pub cuts: u8,
    /// Engines that crash and start again.
    pub crashes: u8,
    pub faults: Faults,
}

/// A call with its attempt id.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    number: u8,
    request: Request,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Request {
    /// The new PIN is the other one of two.
    Change { old: u8 },
    /// R4: `opened` is the generation at which the control was opened.
    Set { pin: u8, opened: u8 },
}

/// A reserved try, with the PIN and the generation of the card.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reservation {
    number: u8,
    pin: u8,
    generation: u8,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Outcome {
    Wrong,
    /// The old PIN was right, and another one replaced it before.
    Superseded,
    Changed,
}

/// A reservation, and its outcome after the settlement.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct Attempt {
    call: u8,
    reserved: Reservation,
    outcome: Option<Outcome>,
}

/// The rows of the database.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct Data {
    pin: u8,
    generation: u8,
    reserved: u8,
    forgiven: u8,
    /// In the order of the reservations. These are the audit events too.
    attempts: Vec<Attempt>,
    /// The calls that set the PIN, oldest first.
    sets: Vec<u8>,
    sessions: [u8; ENGINES],
}

/// A transaction of an engine.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Work {
    engine: u8,
    session: u8,
    change: Change,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    Reserve {
        call: Call,
    },
    /// `new` is `None` for a wrong old PIN, and for a try that is settled alone.
    Settle {
        call: Call,
        reserved: Reservation,
        is_right: bool,
        new: Option<u8>,
    },
    Set {
        call: Call,
    },
    Fence {
        read: u8,
    },
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Phase {
    Idle,
    Received(Call),
    /// The boundary compares next.
    Reserved(Call, Reservation),
    /// The engine settles next. `is_late`: another PIN replaced the one that was compared.
    Compared {
        call: Call,
        reserved: Reservation,
        is_right: bool,
        is_late: bool,
    },
    Waits(Call, Step),
    InDoubt(Call, Step),
    Fences(Call, Step),
}

/// A transaction that an engine waits for.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Step {
    Reserves,
    Settles { reserved: Reservation, is_right: bool },
    Sets,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct Engine {
    session: u8,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// Wrong, locked, or too late: this call sets no PIN.
    Refused,
    Unavailable,
}

/// How much has happened.
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
pub struct Counters {
    cuts: u8,
    crashes: u8,
    faults: Faults,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct State {
    db: Database<Data, Work>,
    engines: [Engine; ENGINES],
    calls: u8,
    /// The call that the client waits for.
    current: Option<Call>,
    acknowledged: Vec<u8>,
    refused: Vec<u8>,
    /// The comparisons of the boundary: the number of the reservation, and whether the old PIN was right.
    compared: Vec<(u8, bool)>,
    replaced_another: bool,
    used: Counters,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Action {
    ClientCalls { engine: u8, request: Request },
    ClientGivesUp,
    EngineSends { engine: u8 },
    BoundaryCompares { engine: u8 },
    EngineResolves { engine: u8 },
    ServerExecutes { tx: usize },
    Database(DatabaseStep),
    ConnectionBreaks { engine: u8 },
    EngineCrashesAndStarts { engine: u8 },
}

#[derive(Clone, Copy, Debug)]
pub struct ChangePinModel {
    pub design: Design,
    pub limits: Limits,
}

const ENGINES: usize = 2;

/// Why a transaction was rolled back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rollback {
    OldSession,
    Denied(Denied),
}

impl From<Denied> for Rollback {
    fn from(denied: Denied) -> Self {
        Self::Denied(denied)
    }
}

impl Data {
    /// The card as the rules see it.
    fn card(&self) -> CardState {
        let waits = |attempt: &&Attempt| attempt.outcome.is_none();
        let unsettled = self.attempts.iter().filter(waits).map(|attempt| attempt.reserved.number);
        rows::card_with_tries(self.generation, self.reserved, self.forgiven, unsettled)
    }

    fn of_call(&self, call: Call) -> Option<Attempt> {
        self.attempts.iter().find(|attempt| attempt.call == call.number).copied()
    }

    fn take(&mut self, card: &CardState) {
        self.generation = rows::small(card.generation);
        self.reserved = rows::small(card.tries.tries.reserved);
        self.forgiven = rows::small(card.tries.tries.forgiven);
    }
}

impl ChangePinModel {
    /// Executes a transaction: the data after it.
    fn execute(&self, data: &Data, Work { engine, session, change }: Work) -> Result<Data, Rollback> {
        let mut after = data.clone();
        let row = &mut after.sessions[usize::from(engine)];
        match change {
            Change::Fence { read } if *row != read => return Err(Rollback::OldSession),
            Change::Fence { .. } => *row = session,
            _ if *row != session => return Err(Rollback::OldSession),
            Change::Reserve { call } => {
                let (pin, limit) = (rows::record(&[data.pin], 1), self.limits.tries.into());
                let (card, reserved) = pin_rules::reserve_try(Some(data.card()), Some(pin), Compared::Record, limit)?;
                after.take(&card);
                let (number, generation) = (rows::small(reserved.number), rows::small(reserved.generation));
                let reserved = Reservation { number, pin: data.pin, generation };
                after.attempts.push(Attempt { call: call.number, reserved, outcome: None });
            }
            Change::Settle { call, reserved, is_right, new } => {
                let outcome = self.settle(data, &mut after, call, reserved, is_right, new)?;
                let settled = after.attempts.iter_mut().filter(|attempt| attempt.reserved.number == reserved.number);
                settled.for_each(|attempt| attempt.outcome = Some(outcome));
            }
            Change::Set { call } => {
                let Request::Set { pin, opened } = call.request else { return Err(Denied::NotUsable.into()) };
                let keyed = ControlState::Keyed { tzpk: rows::sealed(0), refused_pins: 0 };
                let control = rows::control(call.number, keyed, opened, rows::time(1)).ok_or(Denied::NotUsable)?;
                let (retry, record) = (rows::tag([call.number, pin]), rows::record(&[pin], 1));
                let set = Transition::Set { under: rows::sealed(0), retry, pin: record };
                let advanced = rules::advance(control, data.card(), None, set, &rows::min(0), rows::time(0))?;
                let (card, _) = advanced.set.ok_or(Denied::NotUsable)?;
                after.take(&card);
                after.pin = pin;
                after.sets.push(call.number);
            }
        }
        Ok(after)
    }

    /// R6 and R9: settles a try, with the new PIN.
    fn settle(
        &self,
        data: &Data,
        after: &mut Data,
        call: Call,
        Reservation { number, generation, .. }: Reservation,
        is_right: bool,
        new: Option<u8>,
    ) -> Result<Outcome, Denied> {
        let Some(new) = new else {
            let verdict = if is_right { Verdict::Right { moved: None } } else { Verdict::Wrong };
            let (card, _) = pin_rules::settle_try(data.card(), None, number.into(), verdict, &rows::min(0))?;
            after.take(&card);
            return Ok(if is_right { Outcome::Superseded } else { Outcome::Wrong });
        };
        let generation = match self.design.guard {
            Guard::Nothing => data.generation,
            Guard::Generation => generation,
        };
        let verdict = ChangeVerdict::Right { generation: generation.into(), pin: rows::record(&[new], 1) };
        let (min, now) = (rows::min(0), rows::time(0));
        let settled = pin_rules::settle_change(data.card(), None, number.into(), verdict, &min, now)?;
        after.take(&settled.card);
        after.pin = new;
        after.sets.push(call.number);
        Ok(Outcome::Changed)
    }

    fn send(state: &mut State, engine: u8, change: Change) {
        let session = state.engines[usize::from(engine)].session;
        state.db.send(engine, Work { engine, session, change });
    }

    /// R11: the answer, where the client waits for it.
    fn answer(state: &mut State, engine: u8, call: Call, answer: Answer) {
        state.engines[usize::from(engine)].phase = Phase::Idle;
        if state.current != Some(call) {
            return;
        }
        state.current = None;
        match answer {
            Answer::Done => state.acknowledged.push(call.number),
            Answer::Refused => state.refused.push(call.number),
            Answer::Unavailable => {}
        }
    }

    /// The engine sends the next transaction of its call.
    fn send_next(state: &mut State, id: u8) -> Option<()> {
        let (call, step, change) = match state.engines[usize::from(id)].phase {
            Phase::Received(call) => match call.request {
                Request::Change { .. } => (call, Step::Reserves, Change::Reserve { call }),
                Request::Set { .. } => (call, Step::Sets, Change::Set { call }),
            },
            Phase::Compared { call, reserved, is_right, is_late } => {
                let Request::Change { old } = call.request else { return None };
                let new = (is_right && !is_late).then_some(1 - old);
                (call, Step::Settles { reserved, is_right }, Change::Settle { call, reserved, is_right, new })
            }
            _ => return None,
        };
        state.engines[usize::from(id)].phase = Phase::Waits(call, step);
        Self::send(state, id, change);
        Some(())
    }

    fn committed(&self, state: &mut State, id: u8) {
        let engine = &mut state.engines[usize::from(id)];
        let (call, step) = match engine.phase {
            Phase::Waits(call, step) => (call, step),
            Phase::Fences(call, step) => {
                engine.session = state.db.visible.sessions[usize::from(id)];
                (call, step)
            }
            _ => return,
        };
        let attempt = state.db.visible.of_call(call);
        match (step, attempt) {
            (Step::Sets, _) => {
                let is_set = state.db.visible.sets.contains(&call.number);
                Self::answer(state, id, call, if is_set { Answer::Done } else { Answer::Unavailable });
            }
            (_, Some(Attempt { outcome: Some(outcome), .. })) => {
                let is_changed = outcome == Outcome::Changed;
                Self::answer(state, id, call, if is_changed { Answer::Done } else { Answer::Refused });
            }
            // No comparison was made under this reservation.
            (Step::Reserves, Some(Attempt { reserved, .. })) => engine.phase = Phase::Reserved(call, reserved),
            (Step::Settles { reserved, .. }, _) if self.design.doubt == Doubt::ComparesAgain => {
                engine.phase = Phase::Reserved(call, reserved);
            }
            // The try stays used: a second comparison under this number would be one guess more.
            (Step::Settles { .. }, _) => Self::answer(state, id, call, Answer::Unavailable),
            (Step::Reserves, None) => engine.phase = Phase::Received(call),
        }
        self.drop_abandoned(state, id);
    }

    /// R5: drops the call of an engine whose caller stopped waiting.
    fn drop_abandoned(&self, state: &mut State, id: u8) {
        let engine = &mut state.engines[usize::from(id)];
        let (Phase::Received(call) | Phase::Reserved(call, _) | Phase::Compared { call, .. }) = engine.phase else {
            return;
        };
        if self.design.deadline == Deadline::DropsBeforeSending && state.current != Some(call) {
            engine.phase = Phase::Idle;
        }
    }

    fn resolve(&self, state: &mut State, id: u8) -> Option<()> {
        let read = state.db.visible.sessions[usize::from(id)];
        let engine = &mut state.engines[usize::from(id)];
        let Phase::InDoubt(call, step) = engine.phase else { return None };
        if let (Doubt::AnswersTheResult, Step::Settles { is_right, .. }) = (self.design.doubt, step) {
            Self::answer(state, id, call, if is_right { Answer::Done } else { Answer::Refused });
            return Some(());
        }
        *engine = Engine { session: engine.session.max(read) + 1, phase: Phase::Fences(call, step) };
        Self::send(state, id, Change::Fence { read });
        Some(())
    }

    fn rolled_back(&self, state: &mut State, id: u8, rollback: Rollback) {
        let engine = &mut state.engines[usize::from(id)];
        match (rollback, engine.phase) {
            (Rollback::OldSession, _) => Self::disconnected(engine),
            // The old PIN was right, and another one replaced it: the try is settled alone.
            (Rollback::Denied(Denied::Superseded), Phase::Waits(call, Step::Settles { reserved, is_right })) => {
                engine.phase = Phase::Compared { call, reserved, is_right, is_late: true };
                self.drop_abandoned(state, id);
            }
            (Rollback::Denied(Denied::TrySettled), Phase::Waits(call, _)) => {
                Self::answer(state, id, call, Answer::Unavailable);
            }
            (Rollback::Denied(_), Phase::Waits(call, _)) => Self::answer(state, id, call, Answer::Refused),
            (Rollback::Denied(_), _) => {}
        }
    }

    fn disconnected(engine: &mut Engine) {
        engine.phase = match engine.phase {
            Phase::Waits(call, step) | Phase::Fences(call, step) => Phase::InDoubt(call, step),
            phase => phase,
        };
    }

    /// Whether no call is open, the engines are idle, and the database is quiet.
    pub fn serves(state: &State) -> bool {
        let is_idle = |engine: &Engine| engine.phase == Phase::Idle;
        state.current.is_none() && state.db.is_quiet() && state.engines.iter().all(is_idle)
    }
}

impl Model for ChangePinModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let data = Data {
            pin: 0,
            generation: 0,
            reserved: 0,
            forgiven: 0,
            attempts: Vec::new(),
            sets: Vec::new(),
            sessions: [0; ENGINES],
        };
        vec![State {
            db: Database::new(data),
            engines: [Engine { session: 0, phase: Phase::Idle }; ENGINES],
            calls: 0,
            current: None,
            acknowledged: Vec::new(),
            refused: Vec::new(),
            compared: Vec::new(),
            replaced_another: false,
            used: Counters::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let (limits, used) = (&self.limits, &state.used);
        let may_call = state.current.is_none() && state.calls < limits.calls;
        for (engine, Engine { phase, .. }) in (0u8..).zip(&state.engines) {
            match phase {
                Phase::Idle if may_call => {
                    let changes = [0, 1].map(|old| Request::Change { old });
                    // R4: opening a control is an acknowledged transaction.
                    let can_open = limits.sets && state.db.can_replicate();
                    let opened = state.db.visible.generation;
                    let sets = can_open.then(|| [0, 1].map(|pin| Request::Set { pin, opened }));
                    let requests = changes.into_iter().chain(sets.into_iter().flatten());
                    actions.extend(requests.map(|request| Action::ClientCalls { engine, request }));
                }
                Phase::Idle => {}
                Phase::Received(_) | Phase::Compared { .. } => actions.push(Action::EngineSends { engine }),
                Phase::Reserved(..) => actions.push(Action::BoundaryCompares { engine }),
                Phase::InDoubt(..) => actions.push(Action::EngineResolves { engine }),
                Phase::Waits(..) | Phase::Fences(..) if used.cuts < limits.cuts => {
                    actions.push(Action::ConnectionBreaks { engine });
                }
                Phase::Waits(..) | Phase::Fences(..) => {}
            }
            if *phase != Phase::Idle && used.crashes < limits.crashes {
                actions.push(Action::EngineCrashesAndStarts { engine });
            }
        }
        if state.current.is_some() {
            actions.push(Action::ClientGivesUp);
        }
        if state.db.flushed.is_none() {
            actions.extend((0..state.db.sent.len()).map(|tx| Action::ServerExecutes { tx }));
        }
        actions.extend(state.db.steps(used.faults, limits.faults).map(Action::Database));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::ClientCalls { engine, request } => {
                if let Request::Set { .. } = request {
                    state.db.replicate();
                }
                state.calls += 1;
                let call = Call { number: state.calls, request };
                state.current = Some(call);
                state.engines[usize::from(engine)].phase = Phase::Received(call);
            }
            Action::ClientGivesUp => {
                state.current = None;
                (0u8..).take(ENGINES).for_each(|engine| self.drop_abandoned(&mut state, engine));
            }
            Action::EngineSends { engine } => Self::send_next(&mut state, engine)?,
            Action::BoundaryCompares { engine } => {
                let phase = &mut state.engines[usize::from(engine)].phase;
                let Phase::Reserved(call, reserved) = *phase else { return None };
                let Request::Change { old } = call.request else { return None };
                let is_right = old == reserved.pin;
                state.compared.push((reserved.number, is_right));
                state.compared.sort_unstable();
                *phase = Phase::Compared { call, reserved, is_right, is_late: false };
            }
            Action::EngineResolves { engine } => self.resolve(&mut state, engine)?,
            Action::ServerExecutes { tx } => {
                let Tx { client, work, .. } = state.db.sent.remove(tx);
                match (self.execute(&state.db.visible, work), client) {
                    (Ok(after), client) => {
                        if let Change::Settle { reserved, new: Some(_), .. } = work.change {
                            state.replaced_another |= state.db.visible.generation != reserved.generation;
                        }
                        state.db.flush(client, after);
                    }
                    (Err(rollback), Some(id)) => self.rolled_back(&mut state, id, rollback),
                    (Err(_), None) => {}
                }
            }
            Action::Database(step) => match state.db.make(step, &mut state.used.faults) {
                Notice::Nothing => {}
                Notice::Acknowledged(engine) => self.committed(&mut state, engine),
                Notice::Disconnected => state.engines.iter_mut().for_each(Self::disconnected),
            },
            Action::ConnectionBreaks { engine } => {
                state.used.cuts += 1;
                state.db.abandon(engine);
                Self::disconnected(&mut state.engines[usize::from(engine)]);
            }
            Action::EngineCrashesAndStarts { engine } => {
                state.used.crashes += 1;
                state.db.abandon(engine);
                state.engines[usize::from(engine)].phase = Phase::Idle;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(A2, |_, state: &State| {
                state.acknowledged.iter().all(|call| {
                    state.db.both(|data| {
                        let at = data.sets.iter().position(|set| set == call);
                        at.is_none_or(|at| data.sets[at + 1..].iter().all(|set| set > call))
                    })
                })
            }),
            Property::always(B1, |_, state: &State| {
                state.acknowledged.iter().all(|call| state.db.both(|data| data.sets.contains(call)))
            }),
            Property::always(B2, |_, state: &State| {
                state.refused.iter().all(|call| state.db.both(|data| !data.sets.contains(call)))
            }),
            Property::always(C1, |model: &Self, state: &State| {
                let mut wrong = 0;
                state.compared.iter().all(|&(_, is_right)| {
                    wrong = if is_right { 0 } else { wrong + 1 };
                    wrong <= model.limits.tries
                })
            }),
            Property::always(C4, |_, state: &State| {
                let attempts = &state.db.visible.attempts;
                (1..=state.calls).all(|call| attempts.iter().filter(|attempt| attempt.call == call).count() <= 1)
            }),
            Property::always(C5, |_, state: &State| state.compared.windows(2).all(|two| two[0].0 != two[1].0)),
            Property::always(C6, |_, state: &State| !state.replaced_another),
            Property::sometimes("a PIN is changed", |_, state: &State| {
                let is_changed = |attempt: &Attempt| attempt.outcome == Some(Outcome::Changed);
                !state.acknowledged.is_empty() && state.db.standby.attempts.iter().any(is_changed)
            }),
            Property::sometimes("a wrong old PIN is refused", |_, state: &State| {
                let is_wrong = |attempt: &Attempt| attempt.outcome == Some(Outcome::Wrong);
                !state.refused.is_empty() && state.db.standby.attempts.iter().any(is_wrong)
            }),
        ]
    }
}
