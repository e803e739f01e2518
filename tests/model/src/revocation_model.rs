//! Revocation of a client's right, with calls of the client in flight: two engine names, a second process of the first name, and
//! an operator.
//!
//! The recommended design revokes as R10 raises a minimum: one transaction marks the right in the global row and in each engine's
//! row, which every write locks (R1), and registration copies the mark under the lock of the global row (R2). The revocation is
//! acknowledged after its commit is (R11). Nothing of the client commits afterwards, whenever it was sent.
//!
//! With the right in the configuration and memory of each engine, calls that were sent before may commit later. Calls that are
//! sent later have no effect only if registration refuses an engine that read an older configuration.
//!
//! `domain` has no rule for this: rights are checked before a rule is called. A call is one transaction.

use stateright::{Model, Property};

use crate::database::{Begun, Database, DatabaseStep, Faults, Notice, Tx};

/// The names of the properties.
pub const I1: &str = "i1: no call that was sent after the revocation takes effect";
pub const I2: &str = "i2: no call of the client commits after the revocation";

/// Where a transaction finds the client's right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// Nowhere: the engine admitted the call by the configuration in its memory.
    Memory,
    /// In the global row, read without a lock.
    PlainRead,
    /// R1: in the row of the engine, which the transaction locks.
    EngineRow,
}

/// When the operator acknowledges the revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledge {
    /// After one engine has reloaded.
    AfterOneReload,
    /// After the commit of the revocation, and after each engine with a row has reloaded.
    AfterEachReload,
    /// After a plain read shows the revocation.
    AfterRead,
    /// R11: after the commit of the revocation is acknowledged.
    AfterCommit,
}

/// R1: how a transaction of a replaced process is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// The transaction checks nothing.
    ByTime,
    /// The transaction locks the row of its engine.
    LockedRow,
}

/// R2: how a process registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// It reads the revocation without a lock.
    PlainRead,
    /// It locks the global row. Where rights are in memory, a process with an older configuration is refused.
    Locked,
}

/// The choices that the model compares.
#[derive(Clone, Copy, Debug)]
pub struct Design {
    pub right: Right,
    pub acknowledge: Acknowledge,
    pub fence: Fence,
    pub register: Register,
}

impl Design {
    pub const RECOMMENDED: Self = Self {
        right: Right::EngineRow,
        acknowledge: Acknowledge::AfterCommit,
        fence: Fence::LockedRow,
        register: Register::Locked,
    };
}

/// How much may happen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Calls of the client.
    pub calls: u8,
    /// Connections that break.
    pub cuts: u8,
    pub faults: Faults,
}

/// The row of an engine.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct EngineRow {
    incarnation: u8,
    is_revoked: bool,
}

/// The rows of the database.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct Data {
    /// In the global row.
    is_revoked: bool,
    rows: [EngineRow; 2],
    /// Whether a call that was sent after the revocation has taken effect.
    has_late_effect: bool,
    effects: u8,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    /// `is_late`: the client sent the call after the revocation was acknowledged.
    Call {
        name: u8,
        incarnation: u8,
        is_late: bool,
    },
    /// R2: `read` is the incarnation that the process read, `admits` whether its configuration has the right.
    Register {
        name: u8,
        incarnation: u8,
        read: u8,
        admits: bool,
    },
    Revoke,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Phase {
    Down,
    Idle,
    Received {
        is_late: bool,
    },
    Waits,
    Registers,
    /// The process was replaced and has ended.
    Replaced,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct Process {
    name: u8,
    incarnation: u8,
    /// Whether the configuration in its memory has the right.
    admits: bool,
    phase: Phase,
}

/// The operator's part of the revocation.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Operator {
    Idle,
    /// The revocation is on its way.
    Waits,
    /// The commit of the revocation is acknowledged.
    Committed,
    /// The revocation is acknowledged.
    Done,
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
    processes: [Process; 3],
    next_incarnation: u8,
    /// Whether the configuration file has the right.
    file_admits: bool,
    operator: Operator,
    committed_after: bool,
    used: Counters,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Action {
    ClientCalls { process: u8 },
    EngineSends { process: u8 },
    EngineReloads { process: u8 },
    ProcessStarts { process: u8 },
    OperatorChangesFile,
    OperatorRevokes,
    OperatorAcknowledges,
    ServerBegins { tx: usize },
    ServerExecutes { tx: usize },
    Database(DatabaseStep),
    ConnectionBreaks { client: u8 },
}

#[derive(Clone, Copy, Debug)]
pub struct RevocationModel {
    pub design: Design,
    pub limits: Limits,
}

/// The client number of the operator.
const OPERATOR: u8 = 3;

impl RevocationModel {
    /// Whether the operator changes the configuration before the row.
    fn has_file(&self) -> bool {
        self.design.right == Right::Memory
    }

    /// Whether a transaction has a plain read, which is a step of its own.
    fn begins(&self, work: Work) -> bool {
        match work {
            Work::Call { .. } => self.design.right == Right::PlainRead,
            Work::Register { .. } => self.design.register == Register::PlainRead,
            Work::Revoke => false,
        }
    }

    /// Executes a transaction: the data after it; `None` where it is rolled back.
    fn execute(&self, data: &Data, tx: &Tx<Work>) -> Option<Data> {
        let mut after = data.clone();
        match tx.work {
            Work::Revoke => {
                after.is_revoked = true;
                after.rows.iter_mut().for_each(|row| row.is_revoked = true);
            }
            Work::Register { name, incarnation, read, admits } => {
                let row = &mut after.rows[usize::from(name)];
                let is_revoked = match self.design.register {
                    Register::PlainRead => tx.begun?.read == 1,
                    Register::Locked => data.is_revoked,
                };
                let is_outdated = self.has_file() && is_revoked && admits;
                if row.incarnation != read || is_outdated {
                    return None;
                }
                *row = EngineRow { incarnation, is_revoked };
            }
            Work::Call { name, incarnation, is_late } => {
                let row = data.rows[usize::from(name)];
                let is_revoked = match self.design.right {
                    Right::Memory => false,
                    Right::PlainRead => tx.begun?.read == 1,
                    Right::EngineRow => row.is_revoked,
                };
                let is_replaced = self.design.fence == Fence::LockedRow && row.incarnation != incarnation;
                if is_revoked || is_replaced {
                    return None;
                }
                after.effects += 1;
                after.has_late_effect |= is_late;
            }
        }
        Some(after)
    }

    fn is_acknowledgeable(&self, state: &State) -> bool {
        let is_registered = |process: &&Process| {
            let row = state.db.visible.rows[usize::from(process.name)];
            row.incarnation == process.incarnation
        };
        match self.design.acknowledge {
            Acknowledge::AfterOneReload => !state.file_admits && state.processes.iter().any(|process| !process.admits),
            Acknowledge::AfterEachReload => {
                let mut registered = state.processes.iter().filter(is_registered);
                state.operator == Operator::Committed && registered.all(|process| !process.admits)
            }
            Acknowledge::AfterRead => state.db.visible.is_revoked,
            Acknowledge::AfterCommit => state.operator == Operator::Committed,
        }
    }

    fn start(state: &mut State, id: u8) {
        let process = &mut state.processes[usize::from(id)];
        let name = process.name;
        *process =
            Process { name, incarnation: state.next_incarnation, admits: state.file_admits, phase: Phase::Registers };
        state.next_incarnation += 1;
        let (incarnation, admits) = (process.incarnation, process.admits);
        let read = state.db.visible.rows[usize::from(name)].incarnation;
        state.db.send(id, Work::Register { name, incarnation, read, admits });
    }

    fn finished(state: &mut State, client: u8, is_committed: bool) {
        if client == OPERATOR {
            if state.operator == Operator::Waits {
                state.operator = if is_committed { Operator::Committed } else { Operator::Idle };
            }
            return;
        }
        let process = &mut state.processes[usize::from(client)];
        let is_registered = state.db.visible.rows[usize::from(process.name)].incarnation == process.incarnation;
        process.phase = match process.phase {
            Phase::Registers if is_committed => Phase::Idle,
            Phase::Registers => Phase::Down,
            Phase::Waits if !is_registered && !is_committed => Phase::Replaced,
            Phase::Waits => Phase::Idle,
            phase => phase,
        };
    }

    fn disconnected(state: &mut State, client: u8) {
        if client == OPERATOR {
            Self::finished(state, client, false);
            return;
        }
        let process = &mut state.processes[usize::from(client)];
        process.phase = match process.phase {
            Phase::Registers => Phase::Down,
            // The answer is UNAVAILABLE. R3 is in the other models.
            Phase::Waits => Phase::Idle,
            phase => phase,
        };
    }

    /// Whether the revocation is acknowledged, the database is quiet, and no process waits.
    pub fn serves(state: &State) -> bool {
        let is_ready = |process: &Process| matches!(process.phase, Phase::Idle | Phase::Replaced);
        state.operator == Operator::Done && state.db.is_quiet() && state.processes.iter().all(is_ready)
    }
}

impl Model for RevocationModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let row = |incarnation| EngineRow { incarnation, is_revoked: false };
        let data = Data { is_revoked: false, rows: [row(1), row(2)], has_late_effect: false, effects: 0 };
        let process = |name, incarnation, phase| Process { name, incarnation, admits: true, phase };
        vec![State {
            db: Database::new(data),
            processes: [process(0, 1, Phase::Idle), process(1, 2, Phase::Idle), process(0, 0, Phase::Down)],
            next_incarnation: 3,
            file_admits: true,
            operator: Operator::Idle,
            committed_after: false,
            used: Counters::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let (limits, used) = (&self.limits, &state.used);
        for (id, process) in (0u8..).zip(&state.processes) {
            match process.phase {
                Phase::Idle if used.calls < limits.calls && (process.admits || !self.has_file()) => {
                    actions.push(Action::ClientCalls { process: id });
                }
                Phase::Received { .. } => actions.push(Action::EngineSends { process: id }),
                Phase::Down => actions.push(Action::ProcessStarts { process: id }),
                Phase::Waits | Phase::Registers if used.cuts < limits.cuts => {
                    actions.push(Action::ConnectionBreaks { client: id });
                }
                _ => {}
            }
            let runs = !matches!(process.phase, Phase::Down | Phase::Registers | Phase::Replaced);
            if runs && process.admits && !state.file_admits {
                actions.push(Action::EngineReloads { process: id });
            }
        }
        if self.has_file() && state.file_admits {
            actions.push(Action::OperatorChangesFile);
        } else if state.operator == Operator::Idle {
            actions.push(Action::OperatorRevokes);
        }
        if state.operator == Operator::Waits && used.cuts < limits.cuts {
            actions.push(Action::ConnectionBreaks { client: OPERATOR });
        }
        if state.operator != Operator::Done && self.is_acknowledgeable(state) {
            actions.push(Action::OperatorAcknowledges);
        }
        for (at, tx) in state.db.sent.iter().enumerate() {
            if self.begins(tx.work) && tx.begun.is_none() {
                actions.push(Action::ServerBegins { tx: at });
            } else if state.db.flushed.is_none() {
                actions.push(Action::ServerExecutes { tx: at });
            }
        }
        actions.extend(state.db.steps(used.faults, limits.faults).map(Action::Database));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::ClientCalls { process } => {
                state.used.calls += 1;
                let is_late = state.operator == Operator::Done;
                state.processes[usize::from(process)].phase = Phase::Received { is_late };
            }
            Action::EngineSends { process: id } => {
                let process = &mut state.processes[usize::from(id)];
                let Phase::Received { is_late } = process.phase else { return None };
                process.phase = Phase::Waits;
                let work = Work::Call { name: process.name, incarnation: process.incarnation, is_late };
                state.db.send(id, work);
            }
            Action::EngineReloads { process } => state.processes[usize::from(process)].admits = false,
            Action::ProcessStarts { process } => Self::start(&mut state, process),
            Action::OperatorChangesFile => state.file_admits = false,
            Action::OperatorRevokes => {
                state.db.send(OPERATOR, Work::Revoke);
                state.operator = Operator::Waits;
            }
            Action::OperatorAcknowledges => state.operator = Operator::Done,
            Action::ServerBegins { tx } => {
                let read = u8::from(state.db.visible.is_revoked);
                state.db.sent[tx].begun = Some(Begun { at: 0, read });
                state.db.sent.sort();
            }
            Action::ServerExecutes { tx } => {
                let tx = state.db.sent.remove(tx);
                match (self.execute(&state.db.visible, &tx), tx.client) {
                    (Some(after), client) => {
                        let is_call = matches!(tx.work, Work::Call { .. });
                        state.committed_after |= is_call && state.operator == Operator::Done;
                        state.db.flush(client, after);
                    }
                    (None, Some(client)) => Self::finished(&mut state, client, false),
                    (None, None) => {}
                }
            }
            Action::Database(step) => match state.db.make(step, &mut state.used.faults) {
                Notice::Nothing => {}
                Notice::Acknowledged(client) => Self::finished(&mut state, client, true),
                Notice::Disconnected => (0..=OPERATOR).for_each(|client| Self::disconnected(&mut state, client)),
            },
            Action::ConnectionBreaks { client } => {
                state.used.cuts += 1;
                state.db.abandon(client);
                Self::disconnected(&mut state, client);
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(I1, |_, state: &State| state.db.both(|data| !data.has_late_effect)),
            Property::sometimes("a call of the client takes effect", |_, state: &State| state.db.standby.effects > 0),
            Property::sometimes("the revocation is acknowledged", |_, state: &State| state.operator == Operator::Done),
        ];
        if !self.has_file() {
            properties.push(Property::always(I2, |_, state: &State| !state.committed_after));
        }
        properties
    }
}
