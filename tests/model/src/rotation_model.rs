//! Rotation of the storage key from version 1 to 2 (R2, R10): one card, two engines, and a third that registers in between.
//!
//! A ceremony has put version 2 beside version 1. Each engine reloads its boundary at its own time. The steps of a rotation are
//! *activate* (engines write under version 2), *raise* (no record is written under version 1), *re-encrypt*, and *retire*
//! (version 1 is destroyed in the vault or token).
//!
//! The rules of a set with its minimum ([`rules::advance`]) and of a re-encryption ([`rules::reencrypt`]) are those of `domain`.
//! The maximum, the versions in the engine's row, and the conditions of each step belong to the protocol alone. A set stands for
//! every statement that writes a record: the guards of its control are in [`set_pin_model`](crate::set_pin_model).

use stateright::{Model, Property};

use domain::card::ReencryptedPin;
use domain::control::{ControlState, Transition};
use domain::rules;

use crate::database::{Begun, Database, DatabaseStep, Faults, Notice, Tx};
use crate::rows;

/// The names of the properties.
pub const D1: &str = "d1: after version 1 is destroyed no record is under it";
pub const D2: &str = "d2: an acknowledged PIN is not replaced by an older one";
pub const D3: &str = "d3: each registered engine can decrypt every record";

/// R6 and R10: where a transaction that writes a record reads the minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Minimum {
    Never,
    /// The engine reads the global row before it sends the transaction.
    BeforeSending,
    /// The transaction reads the global row without a lock.
    InTransactionPlain,
    /// The transaction reads the global row FOR SHARE.
    InTransactionLocked,
    /// The transaction reads the copy in its engine's row, which R1 locks. A raise updates every engine's row.
    InEngineRow,
}

/// R10: when an engine begins to write under version 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activate {
    /// As soon as its boundary has version 2.
    WhenLoaded,
    /// After an activation, which requires version 2 of every registered engine.
    WhenAllHaveIt,
}

/// R6: what a transaction that writes a record compares with the active version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maximum {
    /// Nothing: the engine read the active version before it encrypted.
    ReadBefore,
    /// The version of the record, with the active one in the engine's row.
    InEngineRow,
}

/// R2: how an engine registers while the minimum may be raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// The engine reads the global row without a lock, then inserts its row.
    PlainRead,
    /// The engine locks the global row, compares the keys of its boundary with it, and copies the minimum.
    Locked,
}

/// R10: how a re-encrypted record is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    Blind,
    /// Only where the record has the bytes that were re-encrypted.
    CompareAndSet,
}

/// R10: how a retirement counts the records under version 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retire {
    /// By a plain read.
    PlainCount,
    /// By a plain read, and without a raise before.
    PlainCountWithoutMinimum,
    /// In a transaction that writes "version 1 is retired". Version 1 is destroyed after its acknowledgement.
    CountInCommit,
}

/// The choices that the model compares.
#[derive(Clone, Copy, Debug)]
pub struct Design {
    pub minimum: Minimum,
    pub maximum: Maximum,
    pub activate: Activate,
    pub register: Register,
    pub store: Store,
    pub retire: Retire,
}

impl Design {
    pub const RECOMMENDED: Self = Self {
        minimum: Minimum::InEngineRow,
        maximum: Maximum::InEngineRow,
        activate: Activate::WhenAllHaveIt,
        register: Register::Locked,
        store: Store::CompareAndSet,
        retire: Retire::CountInCommit,
    };
}

/// How much may happen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    pub sets: u8,
    pub reencryptions: u8,
    /// Connections that break.
    pub cuts: u8,
    pub crashes: u8,
    pub faults: Faults,
    /// Whether a third engine registers, whose boundary may have been opened before the ceremony.
    pub newcomer: bool,
    /// Whether the client waits for each answer before it sets again.
    pub is_patient: bool,
}

/// The record of the card. `write` numbers the writes: equal records are equal bytes.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    version: u8,
    pin: u8,
    write: u8,
}

impl Record {
    fn bytes(self) -> [u8; 3] {
        [self.version, self.pin, self.write]
    }
}

/// The row of an engine.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct EngineRow {
    minimum: u8,
    active: u8,
    has_v2: bool,
}

/// The rows of the database.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct Data {
    record: Record,
    active: u8,
    minimum: u8,
    is_retired: bool,
    rows: [Option<EngineRow>; ENGINES],
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub enum Work {
    Set { engine: u8, record: Record },
    Reencrypt { engine: u8, before: Record, after: Record },
    Report { engine: u8 },
    Register { engine: u8, has_v2: bool },
    Activate,
    Raise,
    Retire,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Phase {
    Unregistered,
    Idle,
    /// The boundary has encrypted this PIN. The transaction is not sent.
    Encrypted(Record),
    /// The boundary has re-encrypted a record: before, after.
    Reencrypted(Record, Record),
    Waits(Work),
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub struct Engine {
    has_v2: bool,
    phase: Phase,
}

/// How much has happened.
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
pub struct Counters {
    sets: u8,
    reencryptions: u8,
    cuts: u8,
    crashes: u8,
    faults: Faults,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct State {
    db: Database<Data, Work>,
    engines: [Engine; ENGINES],
    /// The transaction that the driver of the rotation waits for: an operator's command, or one of the engines.
    driver: Option<Work>,
    is_v1_destroyed: bool,
    writes: u8,
    /// The highest acknowledged PIN.
    acknowledged: u8,
    used: Counters,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Action {
    EngineReloadsKeys { engine: u8 },
    EngineReports { engine: u8 },
    EngineRegisters { engine: u8 },
    BoundaryEncrypts { engine: u8 },
    BoundaryReencrypts { engine: u8 },
    EngineSends { engine: u8 },
    DriverSends(Work),
    DriverDestroysV1,
    ServerBegins { tx: usize },
    ServerExecutes { tx: usize },
    Database(DatabaseStep),
    ConnectionBreaks { client: u8 },
    EngineCrashes { engine: u8 },
}

#[derive(Clone, Copy, Debug)]
pub struct RotationModel {
    pub design: Design,
    pub limits: Limits,
}

const ENGINES: usize = 3;
/// The engine that registers in between.
const NEWCOMER: u8 = 2;
/// The client number of the driver.
const DRIVER: u8 = 3;

impl Data {
    fn all_have_v2(&self) -> bool {
        self.rows.iter().flatten().all(|row| row.has_v2)
    }
}

impl RotationModel {
    /// Whether a transaction has a plain read, which is a step of its own.
    fn begins(&self, work: Work) -> bool {
        match work {
            Work::Set { .. } => self.design.minimum == Minimum::InTransactionPlain,
            Work::Register { .. } => self.design.register == Register::PlainRead,
            _ => false,
        }
    }

    /// R6: whether a record is in the window of versions of its engine.
    fn admits(&self, data: &Data, row: EngineRow, record: Record, begun: Option<Begun>) -> Option<bool> {
        let minimum = match self.design.minimum {
            Minimum::Never | Minimum::BeforeSending => 0,
            Minimum::InTransactionPlain => begun?.read,
            Minimum::InTransactionLocked => data.minimum,
            Minimum::InEngineRow => row.minimum,
        };
        let keyed = ControlState::Keyed { tzpk: rows::sealed(0), refused_pins: 0 };
        let control = rows::control(0, keyed, 0, rows::time(1))?;
        let (retry, pin) = (rows::tag([0, 0]), rows::record(&record.bytes(), record.version));
        let set = Transition::Set { under: rows::sealed(0), retry, pin };
        let advanced = rules::advance(control, rows::card(0, None), None, set, &rows::min(minimum), rows::time(0));
        Some(advanced.is_ok() && self.admits_active(row, record))
    }

    fn admits_active(&self, row: EngineRow, record: Record) -> bool {
        let is_compared =
            self.design.maximum == Maximum::InEngineRow && self.design.activate == Activate::WhenAllHaveIt;
        !is_compared || record.version <= row.active
    }

    /// Executes a transaction: the data after it; `None` where it is rolled back.
    fn execute(&self, data: &Data, tx: &Tx<Work>) -> Option<Data> {
        let mut after = data.clone();
        let requires_all = self.design.activate == Activate::WhenAllHaveIt;
        match tx.work {
            Work::Set { engine, record } => {
                let row = data.rows[usize::from(engine)]?;
                after.record = self.admits(data, row, record, tx.begun)?.then_some(record)?;
            }
            Work::Reencrypt { engine, before, after: record } => {
                let row = data.rows[usize::from(engine)]?;
                let newest = match self.design.store {
                    Store::Blind => before,
                    Store::CompareAndSet => data.record,
                };
                let newest = rows::record(&newest.bytes(), newest.version);
                let (before, bytes) = (Box::from(before.bytes()), Box::from(record.bytes()));
                let reencrypted =
                    ReencryptedPin { card: rows::card_key()?, before, after: bytes, key: rows::key(record.version) };
                rules::reencrypt(newest, reencrypted, &rows::min(row.minimum))?;
                after.record = self.admits_active(row, record).then_some(record)?;
            }
            Work::Report { engine } => after.rows[usize::from(engine)].as_mut()?.has_v2 = true,
            Work::Register { engine, has_v2 } => {
                let minimum = match self.design.register {
                    Register::PlainRead => tx.begun?.read,
                    Register::Locked if data.active == 2 && !has_v2 => return None,
                    Register::Locked => data.minimum,
                };
                after.rows[usize::from(engine)] = Some(EngineRow { minimum, active: data.active, has_v2 });
            }
            Work::Activate if requires_all && !data.all_have_v2() => return None,
            Work::Activate => {
                after.active = 2;
                after.rows.iter_mut().flatten().for_each(|row| row.active = 2);
            }
            Work::Raise if requires_all && !(data.all_have_v2() && data.active == 2) => return None,
            Work::Raise => {
                after.minimum = 2;
                after.rows.iter_mut().flatten().for_each(|row| row.minimum = 2);
            }
            Work::Retire => {
                let is_counted = data.all_have_v2() && data.minimum == 2 && data.record.version == 2;
                after.is_retired = is_counted.then_some(true)?;
            }
        }
        Some(after)
    }

    /// The version that an engine writes under.
    fn version(&self, state: &State, engine: Engine) -> u8 {
        match self.design.activate {
            Activate::WhenLoaded if engine.has_v2 => 2,
            Activate::WhenAllHaveIt if state.db.visible.active == 2 && engine.has_v2 => 2,
            _ => 1,
        }
    }

    fn finished(state: &mut State, client: u8, is_committed: bool) {
        if client == DRIVER {
            state.is_v1_destroyed |= is_committed && state.driver == Some(Work::Retire);
            state.driver = None;
            return;
        }
        let engine = &mut state.engines[usize::from(client)];
        let Phase::Waits(work) = engine.phase else { return };
        engine.phase = match work {
            Work::Register { .. } if !is_committed => Phase::Unregistered,
            _ => Phase::Idle,
        };
        if let (Work::Set { record, .. }, true) = (work, is_committed) {
            state.acknowledged = state.acknowledged.max(record.pin);
        }
    }

    fn disconnected(state: &mut State, client: u8) {
        if client == DRIVER {
            state.driver = None;
        } else {
            Self::finished(state, client, false);
        }
    }

    /// Whether the limit of the model, and not the protocol, ends the run.
    pub fn is_out_of_bounds(&self, state: &State) -> bool {
        state.used.reencryptions >= self.limits.reencryptions
    }

    /// Whether the rotation has ended, and the first two engines are idle and have version 2.
    pub fn serves(state: &State) -> bool {
        let is_ready = |engine: &Engine| engine.has_v2 && engine.phase == Phase::Idle;
        state.is_v1_destroyed && state.db.is_quiet() && state.engines[..2].iter().all(is_ready)
    }

    fn send(state: &mut State, engine: u8, work: Work) {
        state.db.send(engine, work);
        state.engines[usize::from(engine)].phase = Phase::Waits(work);
    }

    fn actions_of_engine(&self, state: &State, id: u8, actions: &mut Vec<Action>) {
        let (limits, used, data) = (&self.limits, &state.used, &state.db.visible);
        let engine = state.engines[usize::from(id)];
        let is_registered = engine.phase != Phase::Unregistered;
        if !(engine.has_v2 || state.is_v1_destroyed && is_registered) {
            actions.push(Action::EngineReloadsKeys { engine: id });
        }
        match engine.phase {
            // After version 1 is destroyed, no boundary can be opened with version 1 alone.
            Phase::Unregistered if engine.has_v2 || !state.is_v1_destroyed => {
                actions.push(Action::EngineRegisters { engine: id });
            }
            Phase::Unregistered => {}
            Phase::Idle => {
                if engine.has_v2 && data.rows[usize::from(id)].is_some_and(|row| !row.has_v2) {
                    actions.push(Action::EngineReports { engine: id });
                }
                let sets = |e: &Engine| matches!(e.phase, Phase::Encrypted(_) | Phase::Waits(Work::Set { .. }));
                let must_wait = limits.is_patient && state.engines.iter().any(sets);
                if used.sets < limits.sets && !must_wait {
                    actions.push(Action::BoundaryEncrypts { engine: id });
                }
                let has_work = data.record.version == 1 && self.version(state, engine) == 2;
                if used.reencryptions < limits.reencryptions && !state.is_v1_destroyed && has_work {
                    actions.push(Action::BoundaryReencrypts { engine: id });
                }
            }
            Phase::Encrypted(_) | Phase::Reencrypted(..) => actions.push(Action::EngineSends { engine: id }),
            Phase::Waits(_) if used.cuts < limits.cuts => actions.push(Action::ConnectionBreaks { client: id }),
            Phase::Waits(_) => {}
        }
        if used.crashes < limits.crashes && is_registered {
            actions.push(Action::EngineCrashes { engine: id });
        }
    }

    fn actions_of_driver(&self, state: &State, actions: &mut Vec<Action>) {
        let data = &state.db.visible;
        if state.driver.is_some() {
            if state.used.cuts < self.limits.cuts {
                actions.push(Action::ConnectionBreaks { client: DRIVER });
            }
            return;
        }
        if state.is_v1_destroyed {
            return;
        }
        if data.active < 2 && self.design.activate == Activate::WhenAllHaveIt {
            actions.push(Action::DriverSends(Work::Activate));
        }
        if data.minimum < 2 {
            actions.push(Action::DriverSends(Work::Raise));
        }
        let is_counted = data.all_have_v2() && data.record.version == 2;
        match self.design.retire {
            Retire::CountInCommit if is_counted => actions.push(Action::DriverSends(Work::Retire)),
            Retire::PlainCount if is_counted && data.minimum == 2 => actions.push(Action::DriverDestroysV1),
            Retire::PlainCountWithoutMinimum if is_counted => actions.push(Action::DriverDestroysV1),
            _ => {}
        }
    }
}

impl Model for RotationModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let row = Some(EngineRow { minimum: 1, active: 1, has_v2: false });
        let record = Record { version: 1, pin: 0, write: 0 };
        let data = Data { record, active: 1, minimum: 1, is_retired: false, rows: [row, row, None] };
        let engine = |phase| Engine { has_v2: false, phase };
        vec![State {
            db: Database::new(data),
            engines: [engine(Phase::Idle), engine(Phase::Idle), engine(Phase::Unregistered)],
            driver: None,
            is_v1_destroyed: false,
            writes: 0,
            acknowledged: 0,
            used: Counters::default(),
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let engines = if self.limits.newcomer { 0..=NEWCOMER } else { 0..=NEWCOMER - 1 };
        engines.for_each(|id| self.actions_of_engine(state, id, actions));
        self.actions_of_driver(state, actions);
        for (at, tx) in state.db.sent.iter().enumerate() {
            if self.begins(tx.work) && tx.begun.is_none() {
                actions.push(Action::ServerBegins { tx: at });
            } else if state.db.flushed.is_none() {
                actions.push(Action::ServerExecutes { tx: at });
            }
        }
        actions.extend(state.db.steps(state.used.faults, self.limits.faults).map(Action::Database));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::EngineReloadsKeys { engine } => state.engines[usize::from(engine)].has_v2 = true,
            Action::EngineReports { engine } => Self::send(&mut state, engine, Work::Report { engine }),
            Action::EngineRegisters { engine } => {
                let has_v2 = state.engines[usize::from(engine)].has_v2;
                Self::send(&mut state, engine, Work::Register { engine, has_v2 });
            }
            Action::BoundaryEncrypts { engine } => {
                (state.used.sets, state.writes) = (state.used.sets + 1, state.writes + 1);
                let version = self.version(&state, state.engines[usize::from(engine)]);
                let record = Record { version, pin: state.used.sets, write: state.writes };
                state.engines[usize::from(engine)].phase = Phase::Encrypted(record);
            }
            Action::BoundaryReencrypts { engine } => {
                (state.used.reencryptions, state.writes) = (state.used.reencryptions + 1, state.writes + 1);
                let before = state.db.visible.record;
                let after = Record { version: 2, write: state.writes, ..before };
                state.engines[usize::from(engine)].phase = Phase::Reencrypted(before, after);
            }
            Action::EngineSends { engine } => match state.engines[usize::from(engine)].phase {
                Phase::Encrypted(record) => {
                    let is_old = record.version < state.db.visible.minimum;
                    if self.design.minimum == Minimum::BeforeSending && is_old {
                        state.engines[usize::from(engine)].phase = Phase::Idle;
                    } else {
                        Self::send(&mut state, engine, Work::Set { engine, record });
                    }
                }
                Phase::Reencrypted(before, after) => {
                    Self::send(&mut state, engine, Work::Reencrypt { engine, before, after });
                }
                _ => return None,
            },
            Action::DriverSends(work) => {
                state.db.send(DRIVER, work);
                state.driver = Some(work);
            }
            Action::DriverDestroysV1 => state.is_v1_destroyed = true,
            Action::ServerBegins { tx } => {
                let read = state.db.visible.minimum;
                state.db.sent[tx].begun = Some(Begun { at: 0, read });
                state.db.sent.sort();
            }
            Action::ServerExecutes { tx } => {
                let tx = state.db.sent.remove(tx);
                match (self.execute(&state.db.visible, &tx), tx.client) {
                    (Some(after), client) => state.db.flush(client, after),
                    (None, Some(client)) => Self::finished(&mut state, client, false),
                    (None, None) => {}
                }
            }
            Action::Database(step) => match state.db.make(step, &mut state.used.faults) {
                Notice::Nothing => {}
                Notice::Acknowledged(client) => Self::finished(&mut state, client, true),
                Notice::Disconnected => (0..=DRIVER).for_each(|client| Self::disconnected(&mut state, client)),
            },
            Action::ConnectionBreaks { client } => {
                state.used.cuts += 1;
                state.db.abandon(client);
                Self::disconnected(&mut state, client);
            }
            Action::EngineCrashes { engine } => {
                state.used.crashes += 1;
                state.db.abandon(engine);
                // The row of the engine stays: the harder case for a step that requires version 2 of every engine.
                state.engines[usize::from(engine)].phase = Phase::Unregistered;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(D1, |_, state: &State| {
                !state.is_v1_destroyed || state.db.both(|data| data.record.version == 2)
            }),
            Property::always(D2, |model: &Self, state: &State| {
                // A client that waits sets one PIN after the other: a lower number is an older PIN.
                !model.limits.is_patient || state.db.both(|data| data.record.pin >= state.acknowledged)
            }),
            Property::always(D3, |_, state: &State| {
                let data = &state.db.visible;
                state.engines.iter().zip(&data.rows).all(|(engine, row)| {
                    let registers = matches!(engine.phase, Phase::Unregistered | Phase::Waits(Work::Register { .. }));
                    registers || row.is_none() || engine.has_v2 || data.record.version == 1
                })
            }),
            Property::sometimes("version 1 is destroyed after a set", |_, state: &State| {
                state.is_v1_destroyed && state.acknowledged > 0
            }),
        ]
    }
}
