//! VerifyPin by several engines (R9): the tries of one card, two engines, callers that send right and wrong PINs, and an
//! operator who resets the tries.
//!
//! A try is reserved in a committed transaction before the boundary compares, and settled in a second one. The rules are those
//! of `domain`: [`pin_rules::reserve_try`], [`pin_rules::settle_try`] and [`pin_rules::reset_tries`]. The model adds the
//! engine's session (R1), commits in doubt (R3) and answers (R11). A caller is bound to no engine and waits for no other caller.

use stateright::{Model, Property};

use domain::card::StoredPin;
use domain::control::Denied;
use domain::pin_rules;
use domain::rules::CardState;
use domain::tries::{Compared, Verdict};

use crate::database::{Database, DatabaseStep, Faults, Notice, Tx};
use crate::rows;

/// The names of the properties.
pub const C1: &str = "c1: no more wrong comparisons in a row than the limit";
/// Designs that do not order comparisons by reservation must break the limit in both orders.
pub const C1_BOTH: &str = "c1: the same, in the order of reservations or of time";
pub const C2: &str = "c2: a right PIN is never answered wrong, a wrong one never right";
pub const C3: &str = "c3: right or wrong is answered only after its event is durable";
pub const C4: &str = "c4: a call uses at most one try";
pub const C5: &str = "c5: a reservation is compared at most once";

/// R9: when the boundary may compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserve {
    /// After a plain read shows that tries are left. A wrong PIN is counted afterwards.
    CountAfterwards,
    /// After the reservation was sent, before its commit.
    BeforeAcknowledged,
    /// After the commit of the reservation is acknowledged.
    Acknowledged,
}

/// R9: what a right PIN and an operator's reset forgive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgive {
    /// Every try that is reserved when the statement runs.
    All,
    /// The tries up to the own reservation; for a reset, up to the last one that the operator has read.
    UpToNumber,
}

/// R9: the answer where the commit of the settlement is in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The result of the comparison.
    Result,
    Wrong,
    /// R3, then the event's outcome, or UNAVAILABLE without an event.
    Resolved,
}

/// R9: what an engine does about a reservation in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// The engine answers UNAVAILABLE. The reservation may commit later, and then uses a try.
    Leave,
    /// The engine reserves again for the same call.
    ReserveAgain,
    /// R3, then the engine uses the reservation of this attempt, or reserves again.
    FenceThenLookup,
}

/// The choices that the model compares.
#[derive(Clone, Copy, Debug)]
pub struct Design {
    pub reserve: Reserve,
    pub forgive: Forgive,
    pub doubt: Doubt,
    pub unknown: Unknown,
}

impl Design {
    pub const RECOMMENDED: Self = Self {
        reserve: Reserve::Acknowledged,
        forgive: Forgive::UpToNumber,
        doubt: Doubt::Resolved,
        unknown: Unknown::FenceThenLookup,
    };
}

/// How much may happen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// The limit of the card.
    pub tries: u8,
    pub calls: u8,
    pub resets: u8,
    /// Connections that break.
    pub cuts: u8,
    /// Engines that crash and start again.
    pub crashes: u8,
    pub faults: Faults,
}

/// A reservation, and its result after the settlement.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct Attempt {
    call: u8,
    number: u8,
    result: Option<bool>,
}

/// The rows of the database.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct Data {
    reserved: u8,
    forgiven: u8,
    /// In the order of the commits. These are the audit events too.
    attempts: Vec<Attempt>,
    sessions: [u8; ENGINES],
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    Reserve {
        call: u8,
        engine: u8,
        session: u8,
    },
    /// `number` is 0 where nothing was reserved.
    Settle {
        call: u8,
        number: u8,
        is_right: bool,
        engine: u8,
        session: u8,
    },
    Fence {
        engine: u8,
        read: u8,
        next: u8,
    },
    Reset {
        read: u8,
    },
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    number: u8,
    is_right: bool,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Phase {
    Idle,
    Received(Call),
    Reserves(Call),
    /// The reservation of this number is committed. The boundary compares next.
    Compares(Call, u8),
    Settles(Call, u8),
    /// The connection broke before the acknowledgement of this step.
    InDoubt(Call, Step),
    Fences(Call, Step),
}

/// A transaction of a call.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Step {
    Reserving,
    Settling,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    Right,
    Wrong,
    Locked,
    Unavailable,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct Engine {
    session: u8,
    phase: Phase,
}

/// How much has happened.
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
pub struct Counters {
    resets: u8,
    cuts: u8,
    crashes: u8,
    faults: Faults,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct State {
    db: Database<Data, Work>,
    engines: [Engine; ENGINES],
    calls: u8,
    /// The comparisons of the boundary and the resets of the operator, in the order of time: the number of the reservation,
    /// and whether the PIN was right or this is a reset.
    compared: Vec<(u8, bool)>,
    answers: Vec<(Call, Answer)>,
    used: Counters,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Action {
    CallerSends { engine: u8, is_right: bool },
    OperatorResets,
    EngineReserves { engine: u8 },
    BoundaryCompares { engine: u8 },
    EngineResolves { engine: u8 },
    ServerExecutes { tx: usize },
    Database(DatabaseStep),
    ConnectionBreaks { engine: u8 },
    EngineCrashesAndStarts { engine: u8 },
}

#[derive(Clone, Copy, Debug)]
pub struct VerifyPinModel {
    pub design: Design,
    pub limits: Limits,
}

const ENGINES: usize = 2;
/// The client number of the operator. No process waits for a reset.
const OPERATOR: u8 = 2;

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

fn pin() -> StoredPin {
    rows::record(&[0], 1)
}

impl Data {
    /// The card as the rules see it.
    fn card(&self) -> CardState {
        let waits = |attempt: &&Attempt| attempt.result.is_none();
        let unsettled = self.attempts.iter().filter(waits).map(|attempt| attempt.number);
        rows::card_with_tries(0, self.reserved, self.forgiven, unsettled)
    }

    fn has_tries(&self, limit: u8) -> bool {
        self.reserved - self.forgiven < limit
    }

    fn of_call(&self, call: Call) -> Option<Attempt> {
        self.attempts.iter().find(|attempt| attempt.call == call.number).copied()
    }
}

impl VerifyPinModel {
    /// R1: only a design that fences compares the session.
    fn lock_engine_row(&self, data: &Data, work: Work) -> Result<(), Rollback> {
        let (engine, session) = match work {
            Work::Fence { engine, read, .. } => (engine, read),
            Work::Reserve { engine, session, .. } | Work::Settle { engine, session, .. }
                if self.design.unknown == Unknown::FenceThenLookup =>
            {
                (engine, session)
            }
            _ => return Ok(()),
        };
        if data.sessions[usize::from(engine)] == session { Ok(()) } else { Err(Rollback::OldSession) }
    }

    /// Executes a transaction: the data after it.
    fn execute(&self, data: &Data, tx: &Tx<Work>) -> Result<Data, Rollback> {
        self.lock_engine_row(data, tx.work)?;
        let mut after = data.clone();
        match tx.work {
            Work::Fence { engine, next, .. } => after.sessions[usize::from(engine)] = next,
            Work::Reserve { call, .. } => {
                let limit = self.limits.tries.into();
                let (card, reserved) = pin_rules::reserve_try(Some(data.card()), Some(pin()), Compared::Record, limit)?;
                after.reserved = rows::small(card.tries.tries.reserved);
                after.attempts.push(Attempt { call, number: rows::small(reserved.number), result: None });
            }
            Work::Settle { call, is_right, .. } if self.design.reserve == Reserve::CountAfterwards => {
                after.reserved += u8::from(!is_right);
                after.attempts.push(Attempt { call, number: after.reserved, result: Some(is_right) });
                if is_right {
                    after.forgiven = after.reserved;
                }
            }
            Work::Settle { number, is_right, .. } => {
                let verdict = if is_right { Verdict::Right { moved: None } } else { Verdict::Wrong };
                let (card, _) = pin_rules::settle_try(data.card(), None, number.into(), verdict, &rows::min(0))?;
                let settled = after.attempts.iter_mut().filter(|attempt| attempt.number == number);
                settled.for_each(|attempt| attempt.result = Some(is_right));
                after.forgiven = match self.design.forgive {
                    Forgive::All if is_right => after.reserved,
                    _ => rows::small(card.tries.tries.forgiven),
                };
            }
            Work::Reset { read } => {
                let card = pin_rules::reset_tries(Some(data.card()), read.into())?;
                after.forgiven = match self.design.forgive {
                    Forgive::All => after.reserved,
                    Forgive::UpToNumber => rows::small(card.tries.tries.forgiven),
                };
            }
        }
        Ok(after)
    }

    /// R11: the answer of a call.
    fn answer(state: &mut State, engine: u8, call: Call, answer: Answer) {
        state.engines[usize::from(engine)].phase = Phase::Idle;
        state.answers.push((call, answer));
        state.answers.sort_unstable();
    }

    fn compare(state: &mut State, engine: u8, call: Call, number: u8) {
        // The order of a comparison is the number of its reservation; without one, the order of the comparisons.
        let order = if number > 0 { number } else { rows::small(state.compared.len() as u64 + 1) };
        state.compared.push((order, call.is_right));
        let Engine { session, phase } = &mut state.engines[usize::from(engine)];
        *phase = Phase::Settles(call, number);
        let work = Work::Settle { call: call.number, number, is_right: call.is_right, engine, session: *session };
        state.db.send(engine, work);
    }

    fn reserve(&self, state: &mut State, engine: u8) -> Option<()> {
        let Engine { session, phase: Phase::Received(call) } = state.engines[usize::from(engine)] else { return None };
        let data = &state.db.visible;
        let has_tries = data.has_tries(self.limits.tries);
        let work = Work::Reserve { call: call.number, engine, session };
        match self.design.reserve {
            Reserve::Acknowledged => {
                state.db.send(engine, work);
                state.engines[usize::from(engine)].phase = Phase::Reserves(call);
            }
            Reserve::CountAfterwards if has_tries => {
                state.engines[usize::from(engine)].phase = Phase::Compares(call, 0);
            }
            Reserve::BeforeAcknowledged if has_tries => {
                let number = data.reserved + 1;
                state.db.send(engine, work);
                Self::compare(state, engine, call, number);
            }
            Reserve::CountAfterwards | Reserve::BeforeAcknowledged => {
                Self::answer(state, engine, call, Answer::Locked);
            }
        }
        Some(())
    }

    fn committed(&self, state: &mut State, id: u8) {
        let engine = &mut state.engines[usize::from(id)];
        let result = |call: Call| if call.is_right { Answer::Right } else { Answer::Wrong };
        match engine.phase {
            Phase::Reserves(call) => {
                let number = state.db.visible.of_call(call).map_or(0, |attempt| attempt.number);
                engine.phase = Phase::Compares(call, number);
            }
            // The reservation is acknowledged, and the call waits for its settlement.
            Phase::Settles(call, _)
                if self.design.reserve == Reserve::BeforeAcknowledged
                    && state.db.visible.of_call(call).is_none_or(|attempt| attempt.result.is_none()) => {}
            Phase::Settles(call, _) => Self::answer(state, id, call, result(call)),
            Phase::Fences(call, step) => {
                engine.session = state.db.visible.sessions[usize::from(id)];
                match (state.db.visible.of_call(call), step) {
                    // No comparison was made under this reservation.
                    (Some(Attempt { number, result: None, .. }), Step::Reserving) => {
                        engine.phase = Phase::Compares(call, number);
                    }
                    (None, Step::Reserving) => engine.phase = Phase::Received(call),
                    // The commit of the fence has made the settlement durable.
                    (Some(Attempt { result: Some(_), .. }), _) => Self::answer(state, id, call, result(call)),
                    // The try stays used: a second comparison under this number would be one guess more.
                    (_, Step::Settling) => Self::answer(state, id, call, Answer::Unavailable),
                }
            }
            _ => {}
        }
    }

    fn resolve(&self, state: &mut State, id: u8) -> Option<()> {
        let engine = &mut state.engines[usize::from(id)];
        let Phase::InDoubt(call, step) = engine.phase else { return None };
        match (self.design.unknown, step) {
            (Unknown::FenceThenLookup, _) if self.design.doubt == Doubt::Resolved => {
                let read = state.db.visible.sessions[usize::from(id)];
                let next = engine.session.max(read) + 1;
                *engine = Engine { session: next, phase: Phase::Fences(call, step) };
                state.db.send(id, Work::Fence { engine: id, read, next });
            }
            (Unknown::ReserveAgain, Step::Reserving) => engine.phase = Phase::Received(call),
            (_, Step::Reserving) => Self::answer(state, id, call, Answer::Unavailable),
            (_, Step::Settling) => {
                let answer = match self.design.doubt {
                    Doubt::Result if call.is_right => Answer::Right,
                    Doubt::Result | Doubt::Wrong => Answer::Wrong,
                    Doubt::Resolved => Answer::Unavailable,
                };
                Self::answer(state, id, call, answer);
            }
        }
        Some(())
    }

    fn disconnected(engine: &mut Engine) {
        engine.phase = match engine.phase {
            Phase::Reserves(call) => Phase::InDoubt(call, Step::Reserving),
            Phase::Settles(call, _) => Phase::InDoubt(call, Step::Settling),
            Phase::Fences(call, step) => Phase::InDoubt(call, step),
            phase => phase,
        };
    }

    fn rolled_back(state: &mut State, id: u8, rollback: Rollback) {
        let engine = &mut state.engines[usize::from(id)];
        match (rollback, engine.phase) {
            (Rollback::OldSession, _) => Self::disconnected(engine),
            (Rollback::Denied(Denied::PinLocked), Phase::Reserves(call)) => {
                Self::answer(state, id, call, Answer::Locked);
            }
            (Rollback::Denied(Denied::TrySettled), Phase::Settles(call, _)) => {
                Self::answer(state, id, call, Answer::Unavailable);
            }
            (Rollback::Denied(_), _) => {}
        }
    }

    /// Whether the engines are idle and the database is quiet.
    pub fn serves(state: &State) -> bool {
        state.db.is_quiet() && state.engines.iter().all(|engine| engine.phase == Phase::Idle)
    }
}

/// Whether no more wrong comparisons follow each other than `limit`.
fn is_within(limit: u8, compared: &[(u8, bool)]) -> bool {
    let mut wrong = 0;
    compared.iter().all(|&(_, forgives)| {
        wrong = if forgives { 0 } else { wrong + 1 };
        wrong <= limit
    })
}

fn by_reservation(compared: &[(u8, bool)]) -> Vec<(u8, bool)> {
    let mut sorted = compared.to_vec();
    sorted.sort_unstable();
    sorted
}

impl Model for VerifyPinModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let data = Data { reserved: 0, forgiven: 0, attempts: Vec::new(), sessions: [0; ENGINES] };
        vec![State {
            db: Database::new(data),
            engines: [Engine { session: 0, phase: Phase::Idle }; ENGINES],
            calls: 0,
            compared: Vec::new(),
            answers: Vec::new(),
            used: Counters::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let (limits, used) = (&self.limits, &state.used);
        for (engine, Engine { phase, .. }) in (0u8..).zip(&state.engines) {
            match phase {
                Phase::Idle if state.calls < limits.calls => {
                    actions.extend([true, false].map(|is_right| Action::CallerSends { engine, is_right }));
                }
                Phase::Received(_) => actions.push(Action::EngineReserves { engine }),
                Phase::Compares(..) => actions.push(Action::BoundaryCompares { engine }),
                Phase::InDoubt(..) => actions.push(Action::EngineResolves { engine }),
                Phase::Reserves(_) | Phase::Settles(..) | Phase::Fences(..) if used.cuts < limits.cuts => {
                    actions.push(Action::ConnectionBreaks { engine });
                }
                _ => {}
            }
            if *phase != Phase::Idle && used.crashes < limits.crashes {
                actions.push(Action::EngineCrashesAndStarts { engine });
            }
        }
        if used.resets < limits.resets {
            actions.push(Action::OperatorResets);
        }
        if state.db.flushed.is_none() {
            actions.extend((0..state.db.sent.len()).map(|tx| Action::ServerExecutes { tx }));
        }
        actions.extend(state.db.steps(used.faults, limits.faults).map(Action::Database));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::CallerSends { engine, is_right } => {
                state.calls += 1;
                let call = Call { number: state.calls, is_right };
                state.engines[usize::from(engine)].phase = Phase::Received(call);
            }
            Action::OperatorResets => {
                state.used.resets += 1;
                let read = state.db.visible.reserved;
                state.compared.push((read, true));
                state.db.send(OPERATOR, Work::Reset { read });
            }
            Action::EngineReserves { engine } => self.reserve(&mut state, engine)?,
            Action::BoundaryCompares { engine } => {
                let Phase::Compares(call, number) = state.engines[usize::from(engine)].phase else { return None };
                Self::compare(&mut state, engine, call, number);
            }
            Action::EngineResolves { engine } => self.resolve(&mut state, engine)?,
            Action::ServerExecutes { tx } => {
                let tx = state.db.sent.remove(tx);
                match self.execute(&state.db.visible, &tx) {
                    Ok(after) => state.db.flush(tx.client, after),
                    Err(rollback) => {
                        if let Some(engine) = tx.client.filter(|client| *client != OPERATOR) {
                            Self::rolled_back(&mut state, engine, rollback);
                        }
                    }
                }
            }
            Action::Database(step) => match state.db.make(step, &mut state.used.faults) {
                Notice::Nothing | Notice::Acknowledged(OPERATOR) => {}
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
                // The registration is a fence. The engine has no session before its next transaction, which resolves it.
                state.engines[usize::from(engine)].phase = Phase::Idle;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(C1, |model: &Self, state: &State| {
                is_within(model.limits.tries, &by_reservation(&state.compared))
            }),
            Property::always(C1_BOTH, |model: &Self, state: &State| {
                let limit = model.limits.tries;
                is_within(limit, &by_reservation(&state.compared)) || is_within(limit, &state.compared)
            }),
            Property::always(C2, |_, state: &State| {
                let is_false = |&(call, answer): &(Call, Answer)| {
                    matches!((call.is_right, answer), (true, Answer::Wrong) | (false, Answer::Right))
                };
                !state.answers.iter().any(is_false)
            }),
            Property::always(C3, |_, state: &State| {
                let mut verdicts = state.answers.iter().filter(|(_, a)| matches!(a, Answer::Right | Answer::Wrong));
                let is_recorded = |data: &Data, call: Call| {
                    let is_event = |a: &Attempt| a.call == call.number && a.result == Some(call.is_right);
                    data.attempts.iter().any(is_event)
                };
                verdicts.all(|(call, _)| state.db.both(|data| is_recorded(data, *call)))
            }),
            Property::always(C4, |_, state: &State| {
                let attempts = &state.db.visible.attempts;
                (1..=state.calls).all(|call| attempts.iter().filter(|attempt| attempt.call == call).count() <= 1)
            }),
            Property::always(C5, |_, state: &State| {
                let wrong = |number| state.compared.iter().filter(|compared| **compared == (number, false)).count();
                (1..=state.db.visible.reserved).all(|number| wrong(number) <= 1)
            }),
            Property::sometimes("a right PIN is answered right", |_, state: &State| {
                state.answers.iter().any(|(_, answer)| *answer == Answer::Right)
            }),
            Property::sometimes("a card is locked", |_, state: &State| {
                state.answers.iter().any(|(_, answer)| *answer == Answer::Locked)
            }),
        ]
    }
}
