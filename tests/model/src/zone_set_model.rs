//! A PIN set by a block under a zone key, without a control: one card, two engines, and a client that sends two blocks, stops
//! waiting, and sends a block again.
//!
//! No control keeps the generation at which the call began. So the engine reads the generation before it sends, and the
//! transaction compares it, as R6 compares the one of a control. A block that set the PIN that stands is confirmed by a
//! transaction that raises the generation, as R7 raises it. The rule for the blocks is [`pin_rules::set_by_zone`]. It compares no
//! generation and raises none for a repeated block: with one engine and its embedded store that is enough, because the writer
//! drops a change whose caller stopped waiting.
//!
//! A store that does not send its transaction whole can do the same: it locks the rows, checks that the caller still waits, then
//! sends writes and COMMIT. A later call for the card waits for the lock. The design [`Guard::CallerAfterLock`] has this order.

use stateright::{Model, Property};

use domain::control::Denied;
use domain::pin_rules;
use domain::rules::{CardState, FoundCard, PinOrigin, UnknownCards};
use domain::zone_tags::ZoneTags;

use crate::database::{Database, DatabaseStep, Faults, Notice, Tx};
use crate::rows;

/// The names of the properties.
pub const A2: &str = "a2: an acknowledged PIN stays until a later call sets another";
pub const B1: &str = "b1: success means that this block set the PIN, for good";

/// R6: what the transaction compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// The tags of the newest blocks alone.
    Tags,
    /// The tags, and the generation that the engine read before it sent.
    Generation,
    /// The tags, in a transaction that locks the rows first.
    AnyCallerAfterLock,
    /// The tags, in a transaction that locks the rows first and goes on only while the caller waits.
    CallerAfterLock,
}

/// R7: what a repeated block does to the generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    KeepsGeneration,
    RaisesGeneration,
}

/// The choices that the model compares.
#[derive(Clone, Copy, Debug)]
pub struct Design {
    pub guard: Guard,
    pub repeat: Repeat,
}

impl Design {
    pub const RECOMMENDED: Self = Self { guard: Guard::Generation, repeat: Repeat::RaisesGeneration };
}

/// How much may happen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    pub calls: u8,
    /// Connections that break.
    pub cuts: u8,
    pub faults: Faults,
}

/// A block that the client sends. The number is the attempt id.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    number: u8,
    block: u8,
}

/// The rows of the database.
#[derive(Clone, Debug, Default, Hash, PartialEq, Eq)]
pub struct Data {
    generation: u8,
    /// The calls that set the PIN, oldest first.
    sets: Vec<Call>,
    sessions: [u8; ENGINES],
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// `generation`: as the engine read it.
    Set { engine: u8, session: u8, call: Call, generation: u8 },
    /// Locks the rows of engine and card, before a set.
    Lock { engine: u8, session: u8, call: Call },
    /// R3: a new session. `read` is the session that the engine read.
    Fence { engine: u8, session: u8, read: u8 },
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Phase {
    Idle,
    /// The engine reads the generation next, and sends.
    Received(Call),
    Waits(Call),
    /// The lock is on its way.
    Locks(Call),
    /// The rows are locked. The engine checks next that the caller waits.
    Locked(Call),
    InDoubt(Call),
    Fences(Call),
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct Engine {
    session: u8,
    phase: Phase,
}

/// A success: the call that set the PIN, and the call that was answered.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct Success {
    set_by: u8,
    call: u8,
}

/// How much has happened.
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
pub struct Counters {
    calls: u8,
    cuts: u8,
    faults: Faults,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct State {
    db: Database<Data, Work>,
    engines: [Engine; ENGINES],
    /// The engine whose transaction has locked its row and the card.
    locked_by: Option<u8>,
    /// The call that the client waits for.
    current: Option<Call>,
    acknowledged: Vec<Success>,
    used: Counters,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Action {
    ClientCalls { engine: u8, block: u8 },
    ClientGivesUp,
    EngineReadsAndSends { engine: u8 },
    EngineChecksCaller { engine: u8 },
    EngineResolves { engine: u8 },
    ServerExecutes { tx: usize },
    Database(DatabaseStep),
    ConnectionBreaks { engine: u8 },
}

#[derive(Clone, Copy, Debug)]
pub struct ZoneSetModel {
    pub design: Design,
    pub limits: Limits,
}

const ENGINES: usize = 2;

/// Why a transaction was rolled back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rollback {
    OldSession,
    OtherGeneration,
    Denied,
}

impl From<Denied> for Rollback {
    fn from(_: Denied) -> Self {
        Self::Denied
    }
}

impl Data {
    /// The card as the rules see it.
    fn card(&self) -> CardState {
        let tags = self.sets.iter().map(|set| rows::tag([set.block, 0])).collect();
        let set_by = (!self.sets.is_empty()).then_some(PinOrigin::Zone);
        CardState { set_by, zone_tags: ZoneTags::new(tags).unwrap_or_default(), ..rows::card(self.generation, None) }
    }
}

impl State {
    /// R5: a call that nobody waits for is dropped before it is sent.
    fn drop_abandoned(&mut self) {
        let current = self.current;
        let is_abandoned = |phase| matches!(phase, Phase::Received(call) if current != Some(call));
        let asleep = self.engines.iter_mut().filter(|engine| is_abandoned(engine.phase));
        asleep.for_each(|engine| engine.phase = Phase::Idle);
    }

    /// A transaction ends, and with it the lock of its rows.
    fn unlock(&mut self, work: Work) {
        self.locked_by = self.locked_by.filter(|by| !matches!(work, Work::Set { engine, .. } if engine == *by));
    }
}

impl ZoneSetModel {
    /// Executes a transaction: the data after it.
    fn execute(&self, data: &Data, work: Work) -> Result<Data, Rollback> {
        let mut after = data.clone();
        match work {
            Work::Fence { engine, read, .. } if data.sessions[usize::from(engine)] != read => {
                return Err(Rollback::OldSession);
            }
            Work::Fence { engine, session, .. } => after.sessions[usize::from(engine)] = session,
            Work::Set { engine, session, .. } | Work::Lock { engine, session, .. }
                if data.sessions[usize::from(engine)] != session =>
            {
                return Err(Rollback::OldSession);
            }
            Work::Lock { .. } => {}
            Work::Set { generation, .. } if self.design.guard == Guard::Generation && data.generation != generation => {
                return Err(Rollback::OtherGeneration);
            }
            Work::Set { call, .. } => {
                let (found, pin) = (FoundCard::Known(data.card()), rows::record(&[call.block], 1));
                let tag = rows::tag([call.block, 0]);
                match pin_rules::set_by_zone(found, &pin, &tag, UnknownCards::Refuse, &rows::min(0))? {
                    Some(card) => {
                        after.generation = rows::small(card.generation);
                        after.sets.push(call);
                    }
                    None => after.generation += u8::from(self.design.repeat == Repeat::RaisesGeneration),
                }
            }
        }
        Ok(after)
    }

    /// R11: the answer, where the client waits for it.
    fn answer(state: &mut State, engine: u8, call: Call, set_by: Option<u8>) {
        state.engines[usize::from(engine)].phase = Phase::Idle;
        if state.current == Some(call) {
            state.current = None;
            state.acknowledged.extend(set_by.map(|set_by| Success { set_by, call: call.number }));
        }
    }

    fn committed(state: &mut State, id: u8) {
        let engine = &mut state.engines[usize::from(id)];
        let data = &state.db.visible;
        match engine.phase {
            Phase::Waits(call) => {
                let set_by = data.sets.last().map(|set| set.number);
                Self::answer(state, id, call, set_by);
            }
            Phase::Fences(call) => {
                engine.session = data.sessions[usize::from(id)];
                if data.sets.contains(&call) {
                    Self::answer(state, id, call, Some(call.number));
                } else {
                    // The transaction can never commit: the engine sends it again, while the client waits.
                    engine.phase = if state.current == Some(call) { Phase::Received(call) } else { Phase::Idle };
                }
            }
            Phase::Idle | Phase::Received(_) | Phase::Locks(_) | Phase::Locked(_) | Phase::InDoubt(_) => {}
        }
    }

    /// Whether the server can execute a transaction now: it waits for no row.
    fn can_execute(state: &State, work: Work) -> bool {
        let is_locked = match (work, state.locked_by) {
            (_, None) => false,
            (Work::Set { engine, .. }, Some(by)) => by != engine,
            (Work::Fence { engine, .. }, Some(by)) => by == engine,
            (Work::Lock { .. }, Some(_)) => true,
        };
        state.db.flushed.is_none() && !is_locked
    }

    /// The rows are locked: the engine sends its writes and COMMIT, or rolls back where nobody waits (R5).
    fn check_caller(&self, state: &mut State, id: u8) -> Option<()> {
        let engine = &mut state.engines[usize::from(id)];
        let Phase::Locked(call) = engine.phase else { return None };
        if state.current == Some(call) || self.design.guard == Guard::AnyCallerAfterLock {
            engine.phase = Phase::Waits(call);
            let (session, generation) = (engine.session, state.db.visible.generation);
            state.db.send(id, Work::Set { engine: id, session, call, generation });
        } else {
            (engine.phase, state.locked_by) = (Phase::Idle, None);
        }
        Some(())
    }

    fn rolled_back(state: &mut State, id: u8, rollback: Rollback) {
        let waits = state.current;
        let engine = &mut state.engines[usize::from(id)];
        match (rollback, engine.phase) {
            (Rollback::OldSession, _) => Self::disconnected(engine),
            (Rollback::OtherGeneration, Phase::Waits(call)) => {
                engine.phase = if waits == Some(call) { Phase::Received(call) } else { Phase::Idle };
            }
            (Rollback::Denied, Phase::Waits(call)) => Self::answer(state, id, call, None),
            _ => {}
        }
    }

    fn disconnected(engine: &mut Engine) {
        engine.phase = match engine.phase {
            // COMMIT was not sent: nothing is in doubt.
            Phase::Locks(call) | Phase::Locked(call) => Phase::Received(call),
            Phase::Waits(call) | Phase::Fences(call) => Phase::InDoubt(call),
            phase => phase,
        };
    }

    /// Whether no call is open, the engines are idle, and the database is quiet.
    pub fn serves(state: &State) -> bool {
        let is_idle = |engine: &Engine| engine.phase == Phase::Idle;
        state.current.is_none() && state.db.is_quiet() && state.engines.iter().all(is_idle)
    }
}

impl Model for ZoneSetModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            db: Database::new(Data::default()),
            engines: [Engine { session: 0, phase: Phase::Idle }; ENGINES],
            locked_by: None,
            current: None,
            acknowledged: Vec::new(),
            used: Counters::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let (limits, used) = (&self.limits, &state.used);
        for (engine, Engine { phase, .. }) in (0u8..).zip(&state.engines) {
            match phase {
                Phase::Idle if state.current.is_none() && used.calls < limits.calls => {
                    actions.extend([0, 1].map(|block| Action::ClientCalls { engine, block }));
                }
                Phase::Idle => {}
                Phase::Received(_) => actions.push(Action::EngineReadsAndSends { engine }),
                Phase::Locked(_) => actions.push(Action::EngineChecksCaller { engine }),
                Phase::InDoubt(_) => actions.push(Action::EngineResolves { engine }),
                Phase::Waits(_) | Phase::Locks(_) | Phase::Fences(_) => {}
            }
            let waits = matches!(phase, Phase::Waits(_) | Phase::Locks(_) | Phase::Locked(_) | Phase::Fences(_));
            if waits && used.cuts < limits.cuts {
                actions.push(Action::ConnectionBreaks { engine });
            }
        }
        if state.current.is_some() {
            actions.push(Action::ClientGivesUp);
        }
        let ready = state.db.sent.iter().enumerate().filter(|(_, tx)| Self::can_execute(state, tx.work));
        actions.extend(ready.map(|(tx, _)| Action::ServerExecutes { tx }));
        actions.extend(state.db.steps(used.faults, limits.faults).map(Action::Database));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::ClientCalls { engine, block } => {
                state.used.calls += 1;
                let call = Call { number: state.used.calls, block };
                state.current = Some(call);
                state.engines[usize::from(engine)].phase = Phase::Received(call);
            }
            Action::ClientGivesUp => {
                state.current = None;
                state.drop_abandoned();
            }
            Action::EngineReadsAndSends { engine: id } => {
                let engine = &mut state.engines[usize::from(id)];
                let Phase::Received(call) = engine.phase else { return None };
                if matches!(self.design.guard, Guard::AnyCallerAfterLock | Guard::CallerAfterLock) {
                    engine.phase = Phase::Locks(call);
                    let work = Work::Lock { engine: id, session: engine.session, call };
                    state.db.send(id, work);
                    return Some(state);
                }
                engine.phase = Phase::Waits(call);
                let (session, generation) = (engine.session, state.db.visible.generation);
                state.db.send(id, Work::Set { engine: id, session, call, generation });
            }
            Action::EngineChecksCaller { engine } => self.check_caller(&mut state, engine)?,
            Action::EngineResolves { engine: id } => {
                let read = state.db.visible.sessions[usize::from(id)];
                let engine = &mut state.engines[usize::from(id)];
                let Phase::InDoubt(call) = engine.phase else { return None };
                *engine = Engine { session: engine.session.max(read) + 1, phase: Phase::Fences(call) };
                let session = engine.session;
                state.db.send(id, Work::Fence { engine: id, session, read });
            }
            Action::ServerExecutes { tx } => {
                let Tx { client, work, .. } = state.db.sent.remove(tx);
                match (self.execute(&state.db.visible, work), client) {
                    (Ok(_), Some(id)) if let Work::Lock { call, .. } = work => {
                        (state.engines[usize::from(id)].phase, state.locked_by) = (Phase::Locked(call), Some(id));
                    }
                    // The server notices that nobody holds the connection, and rolls back.
                    (Ok(_), None) if matches!(work, Work::Lock { .. }) => {}
                    (Ok(after), client) => {
                        state.db.flush(client, after);
                        state.unlock(work);
                    }
                    (Err(rollback), client) => {
                        state.unlock(work);
                        if let Some(id) = client {
                            Self::rolled_back(&mut state, id, rollback);
                        }
                    }
                }
            }
            Action::Database(step) => match state.db.make(step, &mut state.used.faults) {
                Notice::Nothing => {}
                Notice::Acknowledged(engine) => Self::committed(&mut state, engine),
                Notice::Disconnected => {
                    state.locked_by = None;
                    state.engines.iter_mut().for_each(Self::disconnected);
                    state.drop_abandoned();
                }
            },
            Action::ConnectionBreaks { engine } => {
                state.used.cuts += 1;
                state.db.abandon(engine);
                if matches!(state.engines[usize::from(engine)].phase, Phase::Locked(_)) {
                    state.locked_by = None;
                }
                Self::disconnected(&mut state.engines[usize::from(engine)]);
                state.drop_abandoned();
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(A2, |_, state: &State| {
                state.acknowledged.iter().all(|Success { set_by, call }| {
                    state.db.both(|data| {
                        let at = data.sets.iter().position(|set| set.number == *set_by);
                        at.is_none_or(|at| data.sets[at + 1..].iter().all(|set| set.number > *call))
                    })
                })
            }),
            Property::always(B1, |_, state: &State| {
                let is_set = |data: &Data, by: u8| data.sets.iter().any(|set| set.number == by);
                state.acknowledged.iter().all(|success| state.db.both(|data| is_set(data, success.set_by)))
            }),
            Property::sometimes("a repeated block is confirmed", |_, state: &State| {
                state.acknowledged.iter().any(|success| success.set_by != success.call)
            }),
        ]
    }
}
