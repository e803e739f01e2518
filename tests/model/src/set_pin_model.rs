//! SetPin by several engines: one card, two controls, two engine names, a possible second process of the first name, and a
//! client that calls, stops waiting and retries.
//!
//! Control 0 is open from the start. With `second_control` the client can open control 1 at any time. The client calls one
//! engine at a time, and the engine goes on after the client stopped waiting. Each call has a number, which is the attempt id
//! in the audit event too.
//!
//! The rules are those of `domain`: opening ([`rules::open`], R4), a tzpk, a PIN and a malformed block ([`rules::advance`], R5,
//! R6, R8), a retry ([`rules::confirm_retry`], R7), and what an engine reads (`Control::admit`, `Control::set_by`). The model adds
//! what surrounds them: the engine's row (R1), registration (R2), commits in doubt (R3), and answers (R11).

use stateright::{Model, Property};

use domain::control::{Control, ControlState, Denied, Scope, Spent, Transition};
use domain::rules;

use crate::database::{Begun, Database, DatabaseStep, Faults, Notice, Tx};
use crate::rows;

/// The names of the properties.
pub const A1: &str = "a1: a control sets at most one PIN";
pub const A2: &str = "a2: an acknowledged PIN stays until a later call sets another";
pub const B1: &str = "b1: success means that this block set the PIN, for good";
pub const B2: &str = "b2: a block that was refused sets no PIN later";
pub const B3: &str = "b3: a block under the newest tzpk is not called malformed";
pub const B4: &str = "b4: no PIN is set after the expiry of its control";
pub const E: &str = "e: a replaced process commits nothing";
pub const F: &str = "f: each chain has no gap and no fork";

/// R3: how an engine resolves a commit in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolve {
    /// The engine answers UNAVAILABLE at once and goes on.
    Never,
    /// The engine reads the attempt id without a lock. Absent means "nothing was changed".
    PlainLookup,
    /// The engine commits a new session number in its own row, then reads the attempt id.
    FenceThenLookup,
}

/// R7: how a retry of the block that set the PIN is answered with success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// As soon as a plain read shows that this block set the PIN.
    FromRead,
    /// After the acknowledged commit of a transaction that found the same.
    AfterCommit,
    /// The same, and only while the PIN of this control stands.
    AfterCommitIfCurrent,
    /// The same, and the transaction raises the generation of the card: a set that is on its way under another control cannot
    /// replace the PIN that is confirmed.
    AfterCommitThatRaises,
}

/// R5: what an engine does with a call whose caller stopped waiting, by its deadline or by cancelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deadline {
    Ignored,
    /// The engine drops the call, unless its transaction was sent.
    DropsBeforeSending,
}

/// R6: whose clock decides whether a control has expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The clock of the engine, as a parameter of the statement.
    Engine,
    /// The clock of the database at BEGIN: `now()`.
    TransactionStart,
    /// The clock of the database after the row was locked: `clock_timestamp()` in a statement after `SELECT … FOR UPDATE`.
    /// PostgreSQL may evaluate it before the wait where the statement takes the lock itself.
    Statement,
}

/// R1: how a transaction of a replaced process is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// The process checks its lease by its own clock before it sends. The transaction checks nothing.
    ByTime,
    /// The transaction reads the incarnation without a lock.
    PlainRead,
    /// The transaction locks the row of its engine, with its incarnation and session.
    LockedRow,
}

/// R5: the statement that stores a new tzpk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issue {
    /// It replaces whichever tzpk the control has.
    Blind,
    /// It replaces the tzpk that the engine read, and no other.
    CompareAndSet,
}

/// R4 and R6: which set may replace which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// A set under any control replaces the PIN.
    Any,
    /// A set is refused after a control with a higher number has set the PIN.
    NewestControl,
    /// A set replaces only the PIN that stood when its control was opened.
    Generation,
}

/// R1: where the next sequence number of the audit chain comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// From memory. The transaction does not compare it.
    Memory,
    /// From memory. The transaction compares it, and after a mismatch the engine reads the head again.
    Compared,
    /// Compared, but the engine does not read the head again.
    ComparedNeverReloaded,
}

/// The choices that the model compares.
#[derive(Clone, Copy, Debug)]
pub struct Design {
    pub resolve: Resolve,
    pub retry: Retry,
    pub clock: Clock,
    pub fence: Fence,
    pub issue: Issue,
    pub order: Order,
    pub chain: Chain,
    pub deadline: Deadline,
}

impl Design {
    pub const RECOMMENDED: Self = Self {
        resolve: Resolve::FenceThenLookup,
        retry: Retry::AfterCommitThatRaises,
        clock: Clock::Statement,
        fence: Fence::LockedRow,
        issue: Issue::CompareAndSet,
        order: Order::Generation,
        chain: Chain::Compared,
        deadline: Deadline::DropsBeforeSending,
    };
}

/// How much may happen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    pub calls: u8,
    /// Whether the client asks for a new tzpk.
    pub issues: bool,
    /// Whether the client sends a second block and a malformed one. With two controls: PIN A under 0, PIN B under 1.
    pub other_blocks: bool,
    /// Whether control 1 is used too.
    pub second_control: bool,
    /// Ticks of the clock; control 0 expires at 1. With 0 ticks no time passes.
    pub ticks: u8,
    /// The difference between the clock of engine 1 and that of the database, in ticks.
    pub skew: i8,
    /// Connections that break.
    pub cuts: u8,
    pub faults: Faults,
    pub engine_crashes: u8,
    /// Processes that register the name of the first engine while its process runs.
    pub twins: u8,
}

/// A PIN block that the client sends.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// 0: PIN A, 1: PIN B, 2: malformed.
    pub pin: u8,
    /// The number of the tzpk that encrypts the block.
    pub under: u8,
}

const MALFORMED: u8 = 2;

/// The state of a control, without what the rules can compute.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    Keyed { tzpk: u8 },
    Set(Block),
    Malformed,
}

/// A committed set.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct SetEntry {
    control: u8,
    block: Block,
    call: u8,
}

/// The row of an engine.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct EngineRow {
    /// The random number of the process that registered last.
    incarnation: u8,
    /// Raised by the process at each reconnection.
    session: u8,
    /// The sequence numbers of the audit events, in the order of their commits.
    chain: Vec<u8>,
}

/// The rows of the database.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct Data {
    controls: [Use; 2],
    /// The generation of the card.
    generation: u8,
    /// Of each control the generation of the card when the control was opened; `None` before.
    opened: [Option<u8>; 2],
    sets: Vec<SetEntry>,
    rows: [EngineRow; 2],
}

/// A transaction of a process.
#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Work {
    name: u8,
    incarnation: u8,
    session: u8,
    seq: u8,
    /// The clock of the sender.
    clock: u8,
    call: u8,
    change: Change,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// R4: the control keeps the generation of the card.
    Open { control: u8 },
    /// R5: the tzpk that the engine read is compared.
    Issue { control: u8, replaces: u8 },
    /// R6: guarded by the tzpk, the expiry and the generation.
    Set { control: u8, block: Block },
    /// R8: guarded as a set, without a record.
    Malformed { control: u8, under: u8 },
    /// R7: a retry of the block that set the PIN.
    Confirm { control: u8, block: Block },
    /// R3: a new session of the same process. `read` is the session that the process read.
    Fence { read: u8 },
    /// R2: a new process. `read` is the incarnation that the process read.
    Register { read: u8 },
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Request {
    Open { control: u8 },
    Issue { control: u8 },
    Set { control: u8, block: Block },
}

impl Request {
    fn control(self) -> u8 {
        match self {
            Self::Open { control } | Self::Issue { control } | Self::Set { control, .. } => control,
        }
    }
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct Call {
    number: u8,
    request: Request,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Phase {
    Down,
    Idle,
    /// The process has a call, and reads the control next.
    Received(Call),
    /// The transaction is on its way.
    Waits(Call),
    /// The connection broke while a transaction was on its way, or the session was replaced.
    InDoubt(Option<Call>),
    /// The fence is on its way.
    Fences(Option<Call>),
    /// The registration is on its way.
    Registers,
    /// The process was replaced and has ended.
    Replaced,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct Process {
    name: u8,
    incarnation: u8,
    session: u8,
    /// The next sequence number of its chain, as the process believes.
    head: u8,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Answer {
    Done,
    Malformed,
    /// "The control is not usable", or "nothing was changed".
    Refused,
    Unavailable,
}

/// The client and its answers.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct Client {
    calls: u8,
    current: Option<Call>,
    /// Of each control the newest acknowledged tzpk, and the newest one that was requested.
    tzpk: [u8; 2],
    requested: [u8; 2],
    is_open: [bool; 2],
    acknowledged: Vec<(u8, Block, u8)>,
    refused: Vec<(u8, Block, u8)>,
}

/// The properties that a step has violated.
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
pub struct Violations {
    set_after_refusal: bool,
    good_block_called_malformed: bool,
    set_after_expiry: bool,
    replaced_process_committed: bool,
}

/// How much has happened.
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
pub struct Counters {
    cuts: u8,
    faults: Faults,
    engine_crashes: u8,
    twins: u8,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct State {
    now: u8,
    db: Database<Data, Work>,
    processes: Vec<Process>,
    next_incarnation: u8,
    client: Client,
    broken: Violations,
    used: Counters,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Action {
    ClientCalls { process: u8, request: Request },
    ClientGivesUp,
    EngineReadsAndSends { process: u8 },
    ServerBegins { tx: usize },
    ServerExecutes { tx: usize },
    Database(DatabaseStep),
    ConnectionBreaks { process: u8 },
    EngineResolves { process: u8 },
    EngineCrashes { process: u8 },
    EngineStarts { process: u8 },
    TwinStarts,
    ClockTicks,
}

/// The number of the process that registers the name of the first engine.
const TWIN: u8 = 2;

#[derive(Clone, Copy, Debug)]
pub struct SetPinModel {
    pub design: Design,
    pub limits: Limits,
}

/// Why a transaction was rolled back.
#[derive(Clone, Copy)]
enum Rollback {
    Replaced,
    OldSession,
    OtherHead,
    /// A rule of `domain` denied the change: the engine reads the control again.
    Denied,
}

impl From<Denied> for Rollback {
    fn from(_: Denied) -> Self {
        Self::Denied
    }
}

fn expiry(control: u8) -> u8 {
    if control == 0 { 1 } else { u8::MAX }
}

/// The control as the rules see it.
fn control_row(data: &Data, control: u8) -> Option<Control> {
    let state = match data.controls[usize::from(control)] {
        Use::Keyed { tzpk } => ControlState::Keyed { tzpk: rows::sealed(tzpk), refused_pins: 0 },
        Use::Set(Block { pin, under }) => ControlState::Spent(Spent::Set(rows::tag([pin, under]))),
        Use::Malformed => ControlState::Spent(Spent::Malformed),
    };
    let opened = data.opened[usize::from(control)]?;
    rows::control(control, state, opened, rows::time(expiry(control)))
}

impl Data {
    fn set_by(&self) -> Option<u8> {
        self.sets.last().map(|set| set.control)
    }
}

impl SetPinModel {
    fn clock(&self, state: &State, name: u8) -> u8 {
        match self.design.clock {
            Clock::Engine if name == 1 => state.now.saturating_add_signed(self.limits.skew),
            _ => state.now,
        }
    }

    /// Whether a transaction has a plain read, which is a step of its own.
    fn begins(&self) -> bool {
        self.design.fence == Fence::PlainRead || self.design.clock == Clock::TransactionStart
    }

    /// R1: the row of the engine.
    fn lock_engine_row(&self, row: &mut EngineRow, tx: &Tx<Work>) -> Result<(), Rollback> {
        let work = &tx.work;
        match self.design.fence {
            Fence::LockedRow if row.incarnation != work.incarnation => return Err(Rollback::Replaced),
            Fence::LockedRow if row.session != work.session => return Err(Rollback::OldSession),
            Fence::PlainRead if tx.begun.map(|begun| begun.read) != Some(work.incarnation) => {
                return Err(Rollback::Replaced);
            }
            _ => {}
        }
        if self.design.chain != Chain::Memory && usize::from(work.seq) != row.chain.len() {
            return Err(Rollback::OtherHead);
        }
        row.chain.push(work.seq);
        Ok(())
    }

    /// Executes a transaction: the data after it.
    fn execute(&self, data: &Data, tx: &Tx<Work>, now: u8) -> Result<Data, Rollback> {
        let work = &tx.work;
        let mut after = data.clone();
        let row = &mut after.rows[usize::from(work.name)];
        let now = rows::time(match self.design.clock {
            Clock::Engine => work.clock,
            Clock::TransactionStart => tx.begun.map_or(now, |begun| begun.at),
            Clock::Statement => now,
        });
        let (control, transition) = match work.change {
            Change::Register { read } if row.incarnation != read => return Err(Rollback::Replaced),
            Change::Register { .. } => {
                (row.incarnation, row.session) = (work.incarnation, 0);
                return Ok(after);
            }
            Change::Fence { .. } if row.incarnation != work.incarnation => return Err(Rollback::Replaced),
            Change::Fence { read } if row.session != read => return Err(Rollback::OldSession),
            Change::Fence { .. } => {
                row.session = work.session;
                return Ok(after);
            }
            Change::Open { control } if data.opened[usize::from(control)].is_some() => return Err(Rollback::Denied),
            Change::Open { control } => {
                self.lock_engine_row(row, tx)?;
                let opened = rows::open(rows::card(data.generation, data.set_by()), now)?;
                after.opened[usize::from(control)] = Some(rows::small(opened.opened_generation));
                return Ok(after);
            }
            Change::Confirm { control, block } => {
                self.lock_engine_row(row, tx)?;
                after.generation = self.confirm(data, control, block, now)?;
                return Ok(after);
            }
            Change::Issue { control, replaces } => {
                let replaces = match data.controls[usize::from(control)] {
                    Use::Keyed { tzpk } if self.design.issue == Issue::Blind => tzpk,
                    _ => replaces,
                };
                (control, Transition::Key { tzpk: rows::sealed(work.call), replaces: Some(rows::sealed(replaces)) })
            }
            Change::Set { control, block: Block { pin, under } } => {
                let retry = rows::tag([pin, under]);
                let set = Transition::Set { under: rows::sealed(under), retry, pin: rows::record(&[pin, under], 1) };
                (control, set)
            }
            Change::Malformed { control, under } => (control, Transition::Malformed { under: rows::sealed(under) }),
        };
        self.lock_engine_row(row, tx)?;
        let card = rows::card(data.generation, data.set_by());
        let advanced = rules::advance(self.ordered(data, control)?, card, None, transition, &rows::min(0), now)?;
        after.generation = advanced.set.map_or(data.generation, |(card, _)| rows::small(card.generation));
        after.controls[usize::from(control)] = match work.change {
            Change::Set { block, .. } => {
                after.sets.push(SetEntry { control, block, call: work.call });
                Use::Set(block)
            }
            Change::Malformed { .. } => Use::Malformed,
            _ => Use::Keyed { tzpk: work.call },
        };
        Ok(after)
    }

    /// The control under the rule for the order of sets. A design without the generation hides it from the rules.
    fn ordered(&self, data: &Data, control: u8) -> Result<Control, Denied> {
        let row = control_row(data, control).ok_or(Denied::NotUsable)?;
        match self.design.order {
            Order::Generation => Ok(row),
            Order::NewestControl if data.sets.iter().any(|set| set.control > control) => Err(Denied::NotUsable),
            Order::Any | Order::NewestControl => Ok(Control { opened_generation: data.generation.into(), ..row }),
        }
    }

    /// R7: the generation after a confirmed retry.
    fn confirm(&self, data: &Data, control: u8, block: Block, now: domain::time::UnixMillis) -> Result<u8, Denied> {
        let row = control_row(data, control).ok_or(Denied::NotUsable)?;
        let set_by = match self.design.retry {
            Retry::AfterCommit => Some(control),
            _ => data.set_by(),
        };
        let tag = rows::tag([block.pin, block.under]);
        let card = rules::confirm_retry(&row, rows::card(data.generation, set_by), &tag, now)?;
        let raises = self.design.retry == Retry::AfterCommitThatRaises;
        Ok(if raises { rows::small(card.generation) } else { data.generation })
    }

    fn send(&self, state: &mut State, id: u8, call: u8, change: Change) {
        let process = &state.processes[usize::from(id)];
        let work = Work {
            name: process.name,
            incarnation: process.incarnation,
            session: process.session,
            seq: process.head,
            clock: if self.design.clock == Clock::Engine { self.clock(state, process.name) } else { 0 },
            call,
            change,
        };
        state.db.send(id, work);
    }

    /// R11: the answer, where the client waits for it.
    fn answer(state: &mut State, id: u8, call: Option<Call>, answer: Answer) {
        state.processes[usize::from(id)].phase = Phase::Idle;
        let client = &mut state.client;
        let Some(call) = call.filter(|call| client.current == Some(*call)) else { return };
        client.current = None;
        let at = usize::from(call.request.control());
        match (call.request, answer) {
            (Request::Open { .. }, Answer::Done) => client.is_open[at] = true,
            (Request::Issue { .. }, Answer::Done) => client.tzpk[at] = call.number,
            (Request::Set { control, block }, Answer::Done) => client.acknowledged.push((control, block, call.number)),
            (Request::Set { control, block }, Answer::Refused | Answer::Malformed) => {
                client.refused.push((control, block, call.number));
                let is_good = block.pin != MALFORMED && block.under == client.tzpk[at];
                // No newer tzpk is on its way, as far as the client knows.
                let is_newest = client.requested[at] == client.tzpk[at];
                state.broken.good_block_called_malformed |= answer == Answer::Malformed && is_good && is_newest;
            }
            _ => {}
        }
    }

    /// The engine reads the control without a lock, asks the boundary, and sends its transaction.
    fn read_and_send(&self, state: &mut State, id: u8, call: Call) {
        let change = self.decide(state, id, call);
        match change {
            Err(answer) => Self::answer(state, id, Some(call), answer),
            Ok(change) => {
                self.send(state, id, call.number, change);
                state.processes[usize::from(id)].phase = Phase::Waits(call);
            }
        }
    }

    fn decide(&self, state: &State, id: u8, call: Call) -> Result<Change, Answer> {
        let data = &state.db.visible;
        let now = rows::time(self.clock(state, state.processes[usize::from(id)].name));
        let control = call.request.control();
        if let Request::Open { control } = call.request {
            return Ok(Change::Open { control });
        }
        let row = control_row(data, control).ok_or(Answer::Refused)?;
        let tenant = rows::tenant(&row);
        if let Request::Set { block, .. } = call.request {
            let tag = rows::tag([block.pin, block.under]);
            let is_retry = row.set_by(tenant, now).is_some_and(|set_by| set_by.matches(&tag));
            let is_current = data.set_by() == Some(control);
            match self.design.retry {
                Retry::FromRead if is_retry => return Err(Answer::Done),
                Retry::AfterCommit if is_retry => return Ok(Change::Confirm { control, block }),
                _ if is_retry && is_current => return Ok(Change::Confirm { control, block }),
                _ => {}
            }
        }
        row.admit(tenant, Scope::SetPin, now).map_err(|_| Answer::Refused)?;
        let ordered = self.ordered(data, control).map_err(|_| Answer::Refused)?;
        if ordered.opened_generation != u64::from(data.generation) {
            return Err(Answer::Refused);
        }
        match (call.request, data.controls[usize::from(control)]) {
            (Request::Issue { .. }, Use::Keyed { tzpk }) => Ok(Change::Issue { control, replaces: tzpk }),
            (Request::Set { block, .. }, Use::Keyed { tzpk }) if block.pin == MALFORMED || block.under != tzpk => {
                Ok(Change::Malformed { control, under: tzpk })
            }
            (Request::Set { block, .. }, Use::Keyed { .. }) => Ok(Change::Set { control, block }),
            _ => Err(Answer::Refused),
        }
    }

    /// The commit of what process `id` sent is acknowledged.
    fn committed(state: &mut State, id: u8) {
        let process = &mut state.processes[usize::from(id)];
        let row = &state.db.visible.rows[usize::from(process.name)];
        let head = length(&row.chain);
        match process.phase {
            Phase::Registers => (process.session, process.head, process.phase) = (0, head, Phase::Idle),
            // R3: the fence and its read are one transaction, so what is visible here is on the standby too.
            Phase::Fences(call) => {
                (process.session, process.head) = (row.session, head);
                Self::look_up(state, id, call, Answer::Unavailable);
            }
            Phase::Waits(call) => {
                process.head += 1;
                let is_set = |control: u8, block| state.db.visible.controls[usize::from(control)] == Use::Set(block);
                let answer = match call.request {
                    Request::Set { control, block } if !is_set(control, block) => Answer::Malformed,
                    _ => Answer::Done,
                };
                Self::answer(state, id, Some(call), answer);
            }
            _ => {}
        }
    }

    /// Answers by whether the attempt's set is in the database.
    fn look_up(state: &mut State, id: u8, call: Option<Call>, absent: Answer) {
        let is_set = |call: Call| state.db.visible.sets.iter().any(|set| set.call == call.number);
        let answer = match call {
            Some(call) if !matches!(call.request, Request::Set { .. }) => Answer::Unavailable,
            Some(call) if is_set(call) => Answer::Done,
            Some(_) => absent,
            None => Answer::Unavailable,
        };
        Self::answer(state, id, call, answer);
    }

    fn rolled_back(&self, state: &mut State, id: u8, rollback: Rollback) {
        let process = &mut state.processes[usize::from(id)];
        let call = match process.phase {
            Phase::Waits(call) => Some(call),
            Phase::Fences(call) => call,
            _ => None,
        };
        match rollback {
            Rollback::Replaced if process.phase == Phase::Registers => process.phase = Phase::Down,
            Rollback::Replaced => {
                Self::answer(state, id, call, Answer::Unavailable);
                state.processes[usize::from(id)].phase = Phase::Replaced;
            }
            Rollback::OldSession => process.phase = Phase::InDoubt(call),
            Rollback::OtherHead if self.design.chain == Chain::ComparedNeverReloaded => {
                Self::answer(state, id, call, Answer::Unavailable);
            }
            Rollback::OtherHead | Rollback::Denied => {
                if matches!(rollback, Rollback::OtherHead) {
                    process.head = length(&state.db.visible.rows[usize::from(process.name)].chain);
                }
                let goes_on =
                    |call: &Call| self.design.deadline == Deadline::Ignored || state.client.current == Some(*call);
                process.phase = call.filter(goes_on).map_or(Phase::Idle, Phase::Received);
            }
        }
    }

    fn disconnected(process: &mut Process) {
        process.phase = match process.phase {
            Phase::Waits(call) => Phase::InDoubt(Some(call)),
            Phase::Fences(call) => Phase::InDoubt(call),
            Phase::Registers => Phase::Down,
            phase => phase,
        };
    }

    /// Whether no call is open, the database is quiet, and of each name an engine is idle, registered and able to write.
    pub fn serves(state: &State) -> bool {
        let is_ready = |process: &Process| {
            let row = &state.db.visible.rows[usize::from(process.name)];
            process.phase == Phase::Idle
                && (process.incarnation, process.session) == (row.incarnation, row.session)
                && process.head == length(&row.chain)
        };
        state.client.current.is_none()
            && state.db.is_quiet()
            && (0..2).all(|name| state.processes.iter().any(|process| process.name == name && is_ready(process)))
    }

    /// What a client can send to process `process`.
    fn requests(&self, client: &Client) -> Vec<Request> {
        let mut requests = Vec::new();
        if !client.is_open[1] {
            requests.push(Request::Open { control: 1 });
        }
        for control in 0..=u8::from(self.limits.second_control) {
            let at = usize::from(control);
            if !client.is_open[at] {
                continue;
            }
            if self.limits.issues {
                requests.push(Request::Issue { control });
            }
            let pins = match (self.limits.second_control, self.limits.other_blocks) {
                (true, _) => control..=control,
                (false, true) => 0..=MALFORMED,
                (false, false) => 0..=0,
            };
            let block = |pin| Block { pin, under: client.tzpk[at] };
            requests.extend(pins.map(|pin| Request::Set { control, block: block(pin) }));
        }
        requests
    }
}

impl Model for SetPinModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let row = |incarnation| EngineRow { incarnation, session: 0, chain: Vec::new() };
        let is_open = [true, !self.limits.second_control];
        let opened = is_open.map(|is_open| is_open.then_some(0));
        let controls = [Use::Keyed { tzpk: 0 }; 2];
        let data = Data { controls, generation: 0, opened, sets: Vec::new(), rows: [row(1), row(2)] };
        let process = |name, phase| Process { name, incarnation: name + 1, session: 0, head: 0, phase };
        let mut processes = vec![process(0, Phase::Idle), process(1, Phase::Idle)];
        if self.limits.twins > 0 {
            processes.push(Process { incarnation: 0, ..process(0, Phase::Replaced) });
        }
        vec![State {
            now: 0,
            db: Database::new(data),
            processes,
            next_incarnation: 3,
            client: Client {
                calls: 0,
                current: None,
                tzpk: [0; 2],
                requested: [0; 2],
                is_open,
                acknowledged: Vec::new(),
                refused: Vec::new(),
            },
            broken: Violations::default(),
            used: Counters::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let (limits, used) = (&self.limits, &state.used);
        let may_call = state.client.current.is_none() && state.client.calls < limits.calls;
        for (process, running) in (0u8..).zip(&state.processes) {
            if may_call && running.phase == Phase::Idle {
                let requests = self.requests(&state.client).into_iter();
                actions.extend(requests.map(|request| Action::ClientCalls { process, request }));
            }
            match running.phase {
                Phase::Received(_) => actions.push(Action::EngineReadsAndSends { process }),
                Phase::InDoubt(_) => actions.push(Action::EngineResolves { process }),
                Phase::Down => actions.push(Action::EngineStarts { process }),
                Phase::Waits(_) | Phase::Fences(_) | Phase::Registers if used.cuts < limits.cuts => {
                    actions.push(Action::ConnectionBreaks { process });
                }
                _ => {}
            }
            let runs = !matches!(running.phase, Phase::Down | Phase::Replaced);
            if runs && used.engine_crashes < limits.engine_crashes {
                actions.push(Action::EngineCrashes { process });
            }
        }
        if state.client.current.is_some() {
            actions.push(Action::ClientGivesUp);
        }
        if used.twins < limits.twins {
            actions.push(Action::TwinStarts);
        }
        for (at, tx) in state.db.sent.iter().enumerate() {
            if self.begins() && tx.begun.is_none() {
                actions.push(Action::ServerBegins { tx: at });
            } else if state.db.flushed.is_none() {
                actions.push(Action::ServerExecutes { tx: at });
            }
        }
        actions.extend(state.db.steps(used.faults, limits.faults).map(Action::Database));
        if state.now < limits.ticks {
            actions.push(Action::ClockTicks);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::ClientCalls { process, request } => {
                state.client.calls += 1;
                let call = Call { number: state.client.calls, request };
                if let Request::Issue { control } = request {
                    state.client.requested[usize::from(control)] = call.number;
                }
                state.client.current = Some(call);
                state.processes[usize::from(process)].phase = Phase::Received(call);
            }
            Action::ClientGivesUp => {
                let call = state.client.current.take()?;
                for process in &mut state.processes {
                    if self.design.deadline == Deadline::DropsBeforeSending && process.phase == Phase::Received(call) {
                        process.phase = Phase::Idle;
                    }
                }
            }
            Action::EngineReadsAndSends { process } => {
                let Phase::Received(call) = state.processes[usize::from(process)].phase else { return None };
                self.read_and_send(&mut state, process, call);
            }
            Action::ServerBegins { tx } => {
                let (now, tx) = (state.now, &mut state.db.sent[tx]);
                let read = state.db.visible.rows[usize::from(tx.work.name)].incarnation;
                tx.begun = Some(Begun { at: now, read });
                state.db.sent.sort();
            }
            Action::ServerExecutes { tx } => {
                let tx = state.db.sent.remove(tx);
                match self.execute(&state.db.visible, &tx, state.now) {
                    Ok(after) => {
                        state.note(&tx.work);
                        state.db.flush(tx.client, after);
                    }
                    Err(rollback) => {
                        if let Some(id) = tx.client {
                            self.rolled_back(&mut state, id, rollback);
                        }
                    }
                }
            }
            Action::Database(step) => match state.db.make(step, &mut state.used.faults) {
                Notice::Nothing => {}
                Notice::Acknowledged(id) => Self::committed(&mut state, id),
                Notice::Disconnected => state.processes.iter_mut().for_each(Self::disconnected),
            },
            Action::ConnectionBreaks { process } => {
                state.used.cuts += 1;
                state.db.abandon(process);
                Self::disconnected(&mut state.processes[usize::from(process)]);
            }
            Action::EngineResolves { process: id } => {
                let process = &mut state.processes[usize::from(id)];
                let Phase::InDoubt(call) = process.phase else { return None };
                let row = &state.db.visible.rows[usize::from(process.name)];
                match self.design.resolve {
                    Resolve::Never => Self::answer(&mut state, id, call, Answer::Unavailable),
                    Resolve::PlainLookup => {
                        process.head = length(&row.chain);
                        Self::look_up(&mut state, id, call, Answer::Refused);
                    }
                    Resolve::FenceThenLookup => {
                        let read = row.session;
                        (process.session, process.phase) = (process.session.max(read) + 1, Phase::Fences(call));
                        self.send(&mut state, id, 0, Change::Fence { read });
                    }
                }
            }
            Action::EngineCrashes { process: id } => {
                state.used.engine_crashes += 1;
                state.db.abandon(id);
                let process = &mut state.processes[usize::from(id)];
                (process.phase, process.session, process.head) = (Phase::Down, 0, 0);
            }
            Action::EngineStarts { process } => self.start(&mut state, process),
            Action::TwinStarts => {
                state.used.twins += 1;
                self.start(&mut state, TWIN);
            }
            Action::ClockTicks => state.now += 1,
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(A1, |_, state: &State| {
                let sets = |data: &Data, control| data.sets.iter().filter(|set| set.control == control).count();
                state.db.both(|data| (0..2).all(|control| sets(data, control) <= 1))
            }),
            Property::always(A2, |_, state: &State| {
                state.client.acknowledged.iter().all(|&(control, block, call)| {
                    state.db.both(|data| {
                        let at = data.sets.iter().position(|set| (set.control, set.block) == (control, block));
                        at.is_none_or(|at| data.sets[at + 1..].iter().all(|set| set.call > call))
                    })
                })
            }),
            Property::always(B1, |_, state: &State| {
                state.client.acknowledged.iter().all(|&(control, block, _)| {
                    state.db.both(|data| data.sets.iter().any(|set| (set.control, set.block) == (control, block)))
                })
            }),
            Property::always(B2, |_, state: &State| !state.broken.set_after_refusal),
            Property::always(B3, |_, state: &State| !state.broken.good_block_called_malformed),
            Property::always(B4, |_, state: &State| !state.broken.set_after_expiry),
            Property::always(E, |_, state: &State| !state.broken.replaced_process_committed),
            Property::always(F, |_, state: &State| {
                let is_whole = |row: &EngineRow| row.chain.iter().enumerate().all(|(at, seq)| at == usize::from(*seq));
                state.db.both(|data| data.rows.iter().all(is_whole))
            }),
            Property::sometimes("a set is acknowledged", |_, state: &State| !state.client.acknowledged.is_empty()),
        ]
    }
}

impl SetPinModel {
    /// R2: a new process registers the name.
    fn start(&self, state: &mut State, id: u8) {
        let process = &mut state.processes[usize::from(id)];
        (process.incarnation, process.phase) = (state.next_incarnation, Phase::Registers);
        state.next_incarnation += 1;
        let read = state.db.visible.rows[usize::from(process.name)].incarnation;
        self.send(state, id, 0, Change::Register { read });
    }
}

impl State {
    /// Records what an executed transaction violates.
    fn note(&mut self, work: &Work) {
        let row = &self.db.visible.rows[usize::from(work.name)];
        let registers = matches!(work.change, Change::Register { .. });
        self.broken.replaced_process_committed |= !registers && row.incarnation != work.incarnation;
        if let Change::Set { control, block } = work.change {
            let is_refusal = |&(c, b, call): &(u8, Block, u8)| (c, b) == (control, block) && call >= work.call;
            self.broken.set_after_refusal |= self.client.refused.iter().any(is_refusal);
            self.broken.set_after_expiry |= self.now >= expiry(control);
        }
    }
}

#[allow(clippy::unwrap_used, reason = "the model counts a few")]
fn length(chain: &[u8]) -> u8 {
    chain.len().try_into().unwrap()
}
