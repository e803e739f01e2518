//! A PostgreSQL primary with one synchronous standby, as its clients see it.
//!
//! A transaction has these stages:
//!
//! 1. **sent**: on the wire or in the server's socket. Nothing is executed, no lock is held.
//! 2. **begun**: a plain read of the transaction is made, its writes are not. Only designs that read without a lock have it.
//! 3. **flushed**: executed. The commit record is in the WAL of the primary. The transaction holds its locks, is not
//!    visible, and waits for the standby.
//! 4. **shipped**: the standby has the commit record too. From here on the primary makes the transaction visible and
//!    acknowledges it.
//!
//! The server does not notice a client that lost its connection: at each stage the transaction goes on. After a restart of the
//! primary a flushed transaction is visible, replicated or not (PostgreSQL manual, "Planning for High
//! Availability"); a failover then removes it. A transaction that was acknowledged stays.
//!
//! One transaction is executed at a time. Two transactions that conflict wait for each other's row locks, and two that do not
//! conflict commute, so this hides no history, as long as each unlocked read is a step of its own.

/// A transaction on its way, with the statements `W`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tx<W> {
    /// The process that waits for the answer; `None` after the process ended or lost the connection.
    pub client: Option<u8>,
    /// What a plain read has seen; `None` before the read, and in designs without plain reads.
    pub begun: Option<Begun>,
    pub work: W,
}

/// What a transaction saw when it began.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, PartialOrd, Ord)]
pub struct Begun {
    /// The time of the database at BEGIN: `now()` of PostgreSQL.
    pub at: u8,
    /// A number that was read without a lock, such as an incarnation or a minimum key version.
    pub read: u8,
}

/// An executed transaction that waits for the standby.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct Flushed<D> {
    /// The process that waits for the answer.
    pub client: Option<u8>,
    /// The data after the transaction.
    pub after: D,
    /// Whether the standby has the commit record.
    pub is_shipped: bool,
}

/// The database with the data `D`, and the transactions `W` on their way to it.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct Database<D, W> {
    /// The data that a statement on the primary sees.
    pub visible: D,
    /// The data after a failover.
    pub standby: D,
    /// Transactions that are not executed.
    pub sent: Vec<Tx<W>>,
    /// The transaction that waits for the standby.
    pub flushed: Option<Flushed<D>>,
}

/// How many faults of the database may happen.
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
pub struct Faults {
    pub primary_restarts: u8,
    pub failovers: u8,
}

/// A step of the database.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum DatabaseStep {
    StandbyReceives,
    PrimaryAcknowledges,
    PrimaryRestarts,
    Failover,
}

/// What a step of the database means for its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    Nothing,
    /// The commit of this process is acknowledged.
    Acknowledged(u8),
    /// Every connection broke.
    Disconnected,
}

impl<D: Clone + PartialEq, W: Ord> Database<D, W> {
    pub fn new(data: D) -> Self {
        Self { visible: data.clone(), standby: data, sent: Vec::new(), flushed: None }
    }

    /// The process `client` sends a transaction and waits for its answer.
    pub fn send(&mut self, client: u8, work: W) {
        self.sent.push(Tx { client: Some(client), begun: None, work });
        self.sent.sort();
    }

    /// Whether a transaction that changes other rows can be acknowledged before the flushed one.
    pub fn can_replicate(&self) -> bool {
        self.flushed.is_none() || self.visible == self.standby
    }

    /// A transaction that changes other rows is acknowledged: the standby has its commit record, and all records before it.
    pub fn replicate(&mut self) {
        self.standby = self.visible.clone();
    }

    /// The process `client` ends or loses its connection. Its transactions go on.
    pub fn abandon(&mut self, client: u8) {
        for tx in &mut self.sent {
            if tx.client == Some(client) {
                tx.client = None;
            }
        }
        self.sent.sort();
        if let Some(flushed) = self.flushed.as_mut().filter(|flushed| flushed.client == Some(client)) {
            flushed.client = None;
        }
    }

    /// A transaction was executed, and its commit record is in the WAL of the primary. No other one waits for the standby.
    pub fn flush(&mut self, client: Option<u8>, after: D) {
        debug_assert!(self.flushed.is_none());
        self.flushed = Some(Flushed { client, after, is_shipped: false });
    }

    /// The steps that are possible. Where no failover can happen, what the standby has makes no difference.
    pub fn steps(&self, used: Faults, max: Faults) -> impl Iterator<Item = DatabaseStep> {
        let may_fail_over = used.failovers < max.failovers;
        let ships = may_fail_over && self.flushed.as_ref().is_some_and(|flushed| !flushed.is_shipped);
        let restarts = used.primary_restarts < max.primary_restarts && !self.is_quiet();
        let fails_over = may_fail_over && (!self.is_quiet() || self.visible != self.standby);
        [
            ships.then_some(DatabaseStep::StandbyReceives),
            self.flushed.is_some().then_some(DatabaseStep::PrimaryAcknowledges),
            restarts.then_some(DatabaseStep::PrimaryRestarts),
            fails_over.then_some(DatabaseStep::Failover),
        ]
        .into_iter()
        .flatten()
    }

    /// Makes a step of [`steps`](Self::steps), and counts it in `used`.
    pub fn make(&mut self, step: DatabaseStep, used: &mut Faults) -> Notice {
        match step {
            DatabaseStep::StandbyReceives => {
                self.ship();
                Notice::Nothing
            }
            DatabaseStep::PrimaryAcknowledges => self.acknowledge().map_or(Notice::Nothing, Notice::Acknowledged),
            DatabaseStep::PrimaryRestarts => {
                used.primary_restarts += 1;
                self.sent.clear();
                if let Some(flushed) = self.flushed.take() {
                    self.visible = flushed.after;
                }
                Notice::Disconnected
            }
            DatabaseStep::Failover => {
                used.failovers += 1;
                self.sent.clear();
                self.flushed = None;
                self.visible = self.standby.clone();
                Notice::Disconnected
            }
        }
    }

    fn ship(&mut self) {
        if let Some(flushed) = &mut self.flushed {
            flushed.is_shipped = true;
            self.standby = flushed.after.clone();
        }
    }

    /// The primary makes the transaction visible. Returns the process that waits for the acknowledgement.
    fn acknowledge(&mut self) -> Option<u8> {
        self.ship();
        let flushed = self.flushed.take()?;
        self.visible = flushed.after;
        flushed.client
    }

    /// Whether no transaction is on its way.
    pub fn is_quiet(&self) -> bool {
        self.sent.is_empty() && self.flushed.is_none()
    }

    /// Whether the data satisfies `holds` now and after a failover.
    pub fn both(&self, holds: impl Fn(&D) -> bool) -> bool {
        holds(&self.visible) && holds(&self.standby)
    }
}
