//! Batches: an engine commits the changes of several calls in one transaction, with one event a change. Two engines, two cards,
//! two clients that set PINs of both cards.
//!
//! R1 and R6 for a batch: cards ordered by key, a card once, one batch in flight. The server locks the rows one after the
//! other. A batch that is rolled back by a serialization failure or a deadlock (SQLSTATE 40001, 40P01) is sent again whole. A
//! batch whose connection breaks is in doubt whole (R3). A change that a rule denies is refused, and the others are committed.
//!
//! Each change is a set under a control of its own, which was opened when the call began: [`rules::advance`] decides. Incarnations,
//! expiries and retries are in [`set_pin_model`](crate::set_pin_model): with batches the states are too many.

use stateright::{Model, Property};

use domain::control::{ControlState, Denied, Transition};
use domain::rules;

use crate::database::{Database, DatabaseStep, Faults, Notice, Tx};
use crate::rows;

/// The names of the properties.
pub const A2: &str = "a2: no set of a call that was over replaces an acknowledged later one";
pub const B1: &str = "b1: success means that this call set the PIN, for good";
pub const B2: &str = "b2: a call that was refused sets no PIN";
pub const F: &str = "f: each chain has no gap and no fork, and one event a change";
pub const H: &str = "h: no two batches wait for each other";

/// R3: what an engine with a batch in doubt does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolve {
    /// The engine reads the attempt ids without a lock.
    PlainLookup,
    /// The engine sends its next batch. After the acknowledgement it reads the attempt ids of the batch in doubt.
    NextBatch,
    /// The engine commits a new session number in its own row, then reads the attempt ids.
    FenceThenLookup,
}

/// R3: the attempt ids that decide about a batch in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Of the first change, for all changes of the batch.
    FirstChange,
    /// Of each change.
    EachChange,
}

/// R3: what the engine does with a change in doubt that has no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// It answers that nothing was changed.
    Refused,
    /// It sends the change again, while the client waits.
    SentAgain,
}

/// R1: where the sequence numbers of a batch's events come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// From the row of the engine, whichever head it has.
    FromRow,
    /// From memory. The transaction compares them with the head, and after a mismatch the engine reads the head again. This
    /// alone does not replace a fence: a batch whose changes are all refused has no event, and leaves the head.
    Compared,
}

/// The order in which a batch locks its cards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockOrder {
    Arrival,
    Key,
}

/// What a batch does with two calls for one card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameCard {
    /// Both are in the batch and are judged on the row as it was locked. `UPDATE … FROM` then writes one of them.
    Together,
    /// The second one waits for the next batch.
    NextBatch,
}

/// What an engine does after its batch was rolled back by the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterRollback {
    /// It sends the change again at which the server failed, and answers the others.
    SendsTheLast,
    SendsTheBatch,
}

/// R11: when the calls of a batch are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerTime {
    /// After the last statement, before the commit is acknowledged.
    BeforeAcknowledged,
    Acknowledged,
}

/// R4: where the generation comes from at which a control is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// From a plain read, which may show what a failover removes.
    PlainRead,
    /// From an acknowledged transaction. Whatever it saw is on the standby too.
    Acknowledged,
}

/// The choices that the model compares.
#[derive(Clone, Copy, Debug)]
pub struct Design {
    pub opening: Opening,
    pub resolve: Resolve,
    pub lookup: Lookup,
    pub absent: Absent,
    pub numbers: Numbers,
    pub lock_order: LockOrder,
    pub same_card: SameCard,
    pub after_rollback: AfterRollback,
    pub answer_time: AnswerTime,
}

impl Design {
    pub const RECOMMENDED: Self = Self {
        opening: Opening::Acknowledged,
        resolve: Resolve::FenceThenLookup,
        lookup: Lookup::EachChange,
        absent: Absent::Refused,
        numbers: Numbers::Compared,
        lock_order: LockOrder::Key,
        same_card: SameCard::NextBatch,
        after_rollback: AfterRollback::SendsTheBatch,
        answer_time: AnswerTime::Acknowledged,
    };
}

/// How much may happen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    pub calls: u8,
    /// The number of cards, 1 or 2.
    pub cards: u8,
    /// Connections that break.
    pub cuts: u8,
    /// Batches that the server rolls back without a deadlock.
    pub rollbacks: u8,
    pub faults: Faults,
}

/// A set of a card's PIN, under a control that was opened at this generation. The number is the attempt id and the control.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    card: u8,
    number: u8,
    opened: u8,
}

/// The row of a card.
#[derive(Clone, Debug, Default, Hash, PartialEq, Eq)]
pub struct CardRow {
    generation: u8,
    /// The calls that set the PIN, oldest first.
    sets: Vec<u8>,
}

/// The row of an engine.
#[derive(Clone, Debug, Default, Hash, PartialEq, Eq)]
pub struct EngineRow {
    session: u8,
    /// The sequence number and the attempt id of each event, in the order of the commits.
    chain: Vec<(u8, u8)>,
}

/// The rows of the database.
#[derive(Clone, Debug, Default, Hash, PartialEq, Eq)]
pub struct Data {
    cards: [CardRow; CARDS],
    rows: [EngineRow; ENGINES],
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    Batch {
        engine: u8,
        session: u8,
        seq: u8,
        changes: Vec<Call>,
        /// The number of cards that the server has locked for the batch. With the first one it locks the engine's row.
        locked: usize,
    },
    Fence {
        engine: u8,
        read: u8,
        next: u8,
    },
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Phase {
    Idle,
    /// The batch is on its way.
    Waits,
    /// The connection broke while the batch was on its way.
    InDoubt,
    Fences,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct Engine {
    session: u8,
    /// The next sequence number of its chain, as the engine believes.
    head: u8,
    phase: Phase,
    /// Calls for the next batch, in the order of their arrival.
    queue: Vec<Call>,
    batch: Vec<Call>,
    /// Calls of a batch in doubt, while the next one is on its way. Empty in a design that fences.
    doubt: Vec<Call>,
}

/// How much has happened.
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
pub struct Counters {
    cuts: u8,
    rollbacks: u8,
    faults: Faults,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct State {
    db: Database<Data, Work>,
    engines: [Engine; ENGINES],
    calls: u8,
    /// The call that each client waits for, in order: which client calls makes no difference.
    clients: [Option<Call>; CLIENTS],
    /// Of each call the calls that were over when it began, as bits.
    over_before: Vec<u8>,
    acknowledged: Vec<Call>,
    refused: Vec<Call>,
    used: Counters,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Action {
    ClientCalls { engine: u8, card: u8 },
    ClientGivesUp { client: usize },
    EngineSendsBatch { engine: u8 },
    EngineResolves { engine: u8 },
    ServerLocks { tx: usize },
    ServerExecutes { tx: usize },
    ServerRollsBack { tx: usize },
    ServerEndsDeadlock { tx: usize },
    Database(DatabaseStep),
    ConnectionBreaks { engine: u8 },
}

#[derive(Clone, Copy, Debug)]
pub struct BatchModel {
    pub design: Design,
    pub limits: Limits,
}

const ENGINES: usize = 2;
const CARDS: usize = 2;
const CLIENTS: usize = 2;

/// Why the engine did not get a commit.
#[derive(Clone, Copy)]
enum Rollback {
    OldSession,
    OtherHead,
}

impl Work {
    fn engine(&self) -> u8 {
        match self {
            Self::Batch { engine, .. } | Self::Fence { engine, .. } => *engine,
        }
    }

    /// The cards that the transaction holds, and the one that it locks next.
    fn locks(&self) -> (&[Call], Option<u8>) {
        match self {
            Self::Batch { changes, locked, .. } => (&changes[..*locked], changes.get(*locked).map(|call| call.card)),
            Self::Fence { .. } => (&[], None),
        }
    }

    fn holds_card(&self, card: u8) -> bool {
        self.locks().0.iter().any(|call| call.card == card)
    }

    /// Whether the transaction waits for a row that `other` holds.
    fn waits_for(&self, other: &Self) -> bool {
        let is_begun = |work: &Self| !work.locks().0.is_empty();
        let waits_for_engine = !is_begun(self) && is_begun(other) && self.engine() == other.engine();
        waits_for_engine || self.locks().1.is_some_and(|card| other.holds_card(card))
    }

    fn is_last_lock(&self) -> bool {
        match self {
            Self::Batch { changes, locked, .. } => locked + 1 >= changes.len(),
            Self::Fence { .. } => true,
        }
    }
}

impl State {
    fn waits(&self, at: usize, for_other: usize) -> bool {
        at != for_other && self.db.sent[at].work.waits_for(&self.db.sent[for_other].work)
    }

    fn can_lock(&self, at: usize) -> bool {
        self.db.flushed.is_none() && (0..self.db.sent.len()).all(|other| !self.waits(at, other))
    }

    /// Whether the transaction is one of two that wait for each other.
    fn is_in_deadlock(&self, at: usize) -> bool {
        (0..self.db.sent.len()).any(|other| self.waits(at, other) && self.waits(other, at))
    }

    fn is_waited_for(&self, call: Call) -> bool {
        self.clients.contains(&Some(call))
    }

    /// R11: the answer of a call, where the client waits for it.
    fn answer(&mut self, call: Call, is_done: bool) {
        let Some(client) = self.clients.iter_mut().find(|client| **client == Some(call)) else { return };
        *client = None;
        self.clients.sort_unstable();
        let answers = if is_done { &mut self.acknowledged } else { &mut self.refused };
        answers.push(call);
        answers.sort_unstable();
    }

    /// The calls whose clients do not wait any more, as bits.
    fn over(&self) -> u8 {
        let waiting = self.clients.iter().flatten().map(|call| 1 << call.number);
        let begun = (1..=self.calls).map(|call| 1 << call);
        begun.sum::<u8>() - waiting.sum::<u8>()
    }
}

impl Data {
    fn has_event(&self, engine: u8, call: Call) -> bool {
        self.rows[usize::from(engine)].chain.iter().any(|(_, attempt)| *attempt == call.number)
    }
}

impl BatchModel {
    /// Executes a transaction: the data after it.
    fn execute(&self, data: &Data, tx: &Tx<Work>) -> Result<Data, Rollback> {
        let mut after = data.clone();
        let row = &mut after.rows[usize::from(tx.work.engine())];
        match &tx.work {
            Work::Fence { read, .. } if row.session != *read => return Err(Rollback::OldSession),
            Work::Fence { next, .. } => row.session = *next,
            Work::Batch { session, .. } if row.session != *session => return Err(Rollback::OldSession),
            Work::Batch { seq, .. } if self.design.numbers == Numbers::Compared && length(&row.chain) != *seq => {
                return Err(Rollback::OtherHead);
            }
            Work::Batch { changes, .. } => {
                for call in changes {
                    // The newest row of the card. A card that is in the batch twice was locked and read once.
                    let Ok(generation) = set(&data.cards[usize::from(call.card)], *call) else { continue };
                    row.chain.push((length(&row.chain), call.number));
                    let card = &mut after.cards[usize::from(call.card)];
                    if card.generation == generation {
                        card.sets.pop();
                    }
                    card.generation = generation;
                    card.sets.push(call.number);
                }
            }
        }
        Ok(after)
    }

    /// R6, with R3 where the batch before is in doubt: the next batch.
    fn send_batch(&self, state: &mut State, id: u8) {
        let engine = &mut state.engines[usize::from(id)];
        if engine.phase == Phase::InDoubt {
            engine.doubt = std::mem::take(&mut engine.batch);
        }
        let mut changes: Vec<Call> = Vec::new();
        for call in std::mem::take(&mut engine.queue) {
            let is_second = changes.iter().any(|other| other.card == call.card);
            let waits = is_second && self.design.same_card == SameCard::NextBatch;
            if waits { &mut engine.queue } else { &mut changes }.push(call);
        }
        engine.batch.clone_from(&changes);
        if self.design.lock_order == LockOrder::Key {
            changes.sort_unstable();
        }
        engine.phase = Phase::Waits;
        let work = Work::Batch { engine: id, session: engine.session, seq: engine.head, changes, locked: 0 };
        state.db.send(id, work);
    }

    fn resolve(&self, state: &mut State, id: u8) {
        let read = state.db.visible.rows[usize::from(id)].session;
        let engine = &mut state.engines[usize::from(id)];
        if self.design.resolve == Resolve::PlainLookup {
            engine.phase = Phase::Idle;
            return self.look_up(state, id);
        }
        let next = engine.session.max(read) + 1;
        (engine.session, engine.phase) = (next, Phase::Fences);
        state.db.send(id, Work::Fence { engine: id, read, next });
    }

    /// R3: answers the calls in doubt by the events in the database.
    fn look_up(&self, state: &mut State, id: u8) {
        let engine = &mut state.engines[usize::from(id)];
        engine.head = length(&state.db.visible.rows[usize::from(id)].chain);
        let doubt = std::mem::take(if engine.doubt.is_empty() { &mut engine.batch } else { &mut engine.doubt });
        for call in &doubt {
            let decides = if self.design.lookup == Lookup::FirstChange { &doubt[0] } else { call };
            let is_done = state.db.visible.has_event(id, *decides);
            if is_done || self.design.absent == Absent::Refused {
                state.answer(*call, is_done);
            } else if state.is_waited_for(*call) {
                state.engines[usize::from(id)].queue.push(*call);
            }
        }
    }

    fn committed(&self, state: &mut State, id: u8) {
        let engine = &mut state.engines[usize::from(id)];
        match engine.phase {
            Phase::Fences => {
                engine.phase = Phase::Idle;
                self.look_up(state, id);
            }
            Phase::Waits => {
                engine.phase = Phase::Idle;
                engine.head = length(&state.db.visible.rows[usize::from(id)].chain);
                for call in std::mem::take(&mut engine.batch) {
                    let is_done = state.db.visible.has_event(id, call);
                    state.answer(call, is_done);
                }
                if !state.engines[usize::from(id)].doubt.is_empty() {
                    self.look_up(state, id);
                }
            }
            Phase::Idle | Phase::InDoubt => {}
        }
    }

    /// The server rolled the batch back by a serialization failure or a deadlock, or the head was another one.
    fn send_again(&self, state: &mut State, id: u8, is_of_server: bool) {
        let engine = &mut state.engines[usize::from(id)];
        let mut batch = std::mem::take(&mut engine.batch);
        engine.phase = Phase::Idle;
        engine.head = length(&state.db.visible.rows[usize::from(id)].chain);
        if is_of_server && self.design.after_rollback == AfterRollback::SendsTheLast {
            let last = batch.pop();
            batch.drain(..).for_each(|call| state.answer(call, true));
            batch.extend(last);
        }
        batch.retain(|call| state.is_waited_for(*call));
        state.engines[usize::from(id)].queue.splice(..0, batch);
    }

    fn disconnected(engine: &mut Engine) {
        if engine.phase != Phase::Idle {
            engine.phase = Phase::InDoubt;
            // Both batches are in doubt.
            let first = std::mem::take(&mut engine.doubt);
            engine.batch.splice(..0, first);
        }
    }

    /// Whether no client waits, the database is quiet, and each engine is idle and able to write.
    pub fn serves(state: &State) -> bool {
        let is_ready = |(engine, row): (&Engine, &EngineRow)| {
            engine.phase == Phase::Idle && (engine.session, engine.head) == (row.session, length(&row.chain))
        };
        state.clients == [None; CLIENTS]
            && state.db.is_quiet()
            && state.engines.iter().zip(&state.db.visible.rows).all(is_ready)
    }
}

/// R6: the generation of the card after this set.
fn set(card: &CardRow, call: Call) -> Result<u8, Denied> {
    let keyed = ControlState::Keyed { tzpk: rows::sealed(0), refused_pins: 0 };
    let control = rows::control(call.number, keyed, call.opened, rows::time(1)).ok_or(Denied::NotUsable)?;
    let (retry, pin) = (rows::tag([call.number, 0]), rows::record(&[call.number], 1));
    let transition = Transition::Set { under: rows::sealed(0), retry, pin };
    let row = rows::card(card.generation, card.sets.last().copied());
    let advanced = rules::advance(control, row, None, transition, &rows::min(0), rows::time(0))?;
    advanced.set.map(|(card, _)| rows::small(card.generation)).ok_or(Denied::NotUsable)
}

impl Model for BatchModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let engine = || Engine {
            session: 0,
            head: 0,
            phase: Phase::Idle,
            queue: Vec::new(),
            batch: Vec::new(),
            doubt: Vec::new(),
        };
        vec![State {
            db: Database::new(Data::default()),
            engines: [engine(), engine()],
            calls: 0,
            clients: [None; CLIENTS],
            over_before: Vec::new(),
            acknowledged: Vec::new(),
            refused: Vec::new(),
            used: Counters::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let (limits, used) = (&self.limits, &state.used);
        let can_open = self.design.opening == Opening::PlainRead || state.db.can_replicate();
        let may_call = can_open && state.calls < limits.calls && state.clients.contains(&None);
        for (id, engine) in (0u8..).zip(&state.engines) {
            if may_call {
                actions.extend((0..limits.cards).map(|card| Action::ClientCalls { engine: id, card }));
            }
            let goes_on = engine.phase == Phase::InDoubt && self.design.resolve == Resolve::NextBatch;
            if !engine.queue.is_empty() && (engine.phase == Phase::Idle || goes_on) {
                actions.push(Action::EngineSendsBatch { engine: id });
            }
            if engine.phase == Phase::InDoubt && !goes_on {
                actions.push(Action::EngineResolves { engine: id });
            }
            if matches!(engine.phase, Phase::Waits | Phase::Fences) && used.cuts < limits.cuts {
                actions.push(Action::ConnectionBreaks { engine: id });
            }
        }
        let waiting = state.clients.iter().enumerate().filter(|(_, client)| client.is_some());
        actions.extend(waiting.map(|(client, _)| Action::ClientGivesUp { client }));
        for (at, tx) in state.db.sent.iter().enumerate() {
            if state.can_lock(at) {
                let is_last = tx.work.is_last_lock();
                actions.push(if is_last { Action::ServerExecutes { tx: at } } else { Action::ServerLocks { tx: at } });
            }
            if state.is_in_deadlock(at) {
                actions.push(Action::ServerEndsDeadlock { tx: at });
            } else if used.rollbacks < limits.rollbacks && !tx.work.locks().0.is_empty() {
                actions.push(Action::ServerRollsBack { tx: at });
            }
        }
        actions.extend(state.db.steps(used.faults, limits.faults).map(Action::Database));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::ClientCalls { engine, card } => {
                state.over_before.push(state.over());
                state.calls += 1;
                if self.design.opening == Opening::Acknowledged {
                    state.db.replicate();
                }
                let opened = state.db.visible.cards[usize::from(card)].generation;
                let call = Call { card, number: state.calls, opened };
                *state.clients.iter_mut().find(|client| client.is_none())? = Some(call);
                state.clients.sort_unstable();
                state.engines[usize::from(engine)].queue.push(call);
            }
            Action::ClientGivesUp { client } => {
                let call = state.clients[client].take()?;
                state.clients.sort_unstable();
                // R5: a call that nobody waits for is dropped before it is sent.
                state.engines.iter_mut().for_each(|engine| engine.queue.retain(|other| *other != call));
            }
            Action::EngineSendsBatch { engine } => self.send_batch(&mut state, engine),
            Action::EngineResolves { engine } => self.resolve(&mut state, engine),
            Action::ServerLocks { tx } => {
                if let Work::Batch { locked, .. } = &mut state.db.sent[tx].work {
                    *locked += 1;
                }
                state.db.sent.sort();
            }
            Action::ServerExecutes { tx } => {
                let tx = state.db.sent.remove(tx);
                match (self.execute(&state.db.visible, &tx), tx.client) {
                    (Ok(after), client) => {
                        let is_early = self.design.answer_time == AnswerTime::BeforeAcknowledged;
                        if let (Work::Batch { engine, changes, .. }, true, Some(_)) = (&tx.work, is_early, client) {
                            changes.iter().for_each(|call| state.answer(*call, after.has_event(*engine, *call)));
                        }
                        state.db.flush(client, after);
                    }
                    (Err(Rollback::OldSession), Some(id)) => state.engines[usize::from(id)].phase = Phase::InDoubt,
                    (Err(Rollback::OtherHead), Some(id)) => self.send_again(&mut state, id, false),
                    (Err(_), None) => {}
                }
            }
            Action::ServerRollsBack { tx } | Action::ServerEndsDeadlock { tx } => {
                state.used.rollbacks += u8::from(matches!(action, Action::ServerRollsBack { .. }));
                if let Some(id) = state.db.sent.remove(tx).client {
                    self.send_again(&mut state, id, true);
                }
            }
            Action::Database(step) => match state.db.make(step, &mut state.used.faults) {
                Notice::Nothing => {}
                Notice::Acknowledged(id) => self.committed(&mut state, id),
                Notice::Disconnected => state.engines.iter_mut().for_each(Self::disconnected),
            },
            Action::ConnectionBreaks { engine } => {
                state.used.cuts += 1;
                state.db.abandon(engine);
                Self::disconnected(&mut state.engines[usize::from(engine)]);
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(A2, |_, state: &State| {
                state.acknowledged.iter().all(|call| {
                    let over_before = state.over_before[usize::from(call.number) - 1];
                    state.db.both(|data| {
                        let mut later = data.cards[usize::from(call.card)].sets.iter().rev();
                        later.by_ref().take_while(|set| **set != call.number).all(|set| over_before & (1 << set) == 0)
                    })
                })
            }),
            Property::always(B1, |_, state: &State| {
                let is_set = |data: &Data, call: &Call| data.cards[usize::from(call.card)].sets.contains(&call.number);
                state.acknowledged.iter().all(|call| state.db.both(|data| is_set(data, call)))
            }),
            Property::always(B2, |_, state: &State| {
                let is_set = |data: &Data, call: &Call| data.cards[usize::from(call.card)].sets.contains(&call.number);
                state.refused.iter().all(|call| state.db.both(|data| !is_set(data, call)))
            }),
            Property::always(F, |_, state: &State| {
                state.db.both(|data| {
                    let events: Vec<_> = data.rows.iter().flat_map(|row| &row.chain).map(|(_, call)| *call).collect();
                    let sets: usize = data.cards.iter().map(|card| card.sets.len()).sum();
                    let numbers = |row: &EngineRow| (0u8..).zip(&row.chain).all(|(at, (seq, _))| at == *seq);
                    data.rows.iter().all(numbers) && events.len() == sets
                })
            }),
            Property::always(H, |_, state: &State| (0..state.db.sent.len()).all(|at| !state.is_in_deadlock(at))),
            Property::sometimes("a batch of two changes is acknowledged", |_, state: &State| {
                state.db.visible.rows.iter().any(|row| row.chain.len() > 1) && state.acknowledged.len() > 1
            }),
            Property::sometimes("a change of a batch is refused", |_, state: &State| !state.refused.is_empty()),
        ]
    }
}

#[allow(clippy::unwrap_used, reason = "the model counts a few")]
fn length(chain: &[(u8, u8)]) -> u8 {
    chain.len().try_into().unwrap()
}
