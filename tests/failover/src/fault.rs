//! The faults, and how each ends.

use std::{thread::sleep, time::Duration};

use history::{history::FaultKind, recorder::Recorder};

use crate::{
    cluster::Cluster,
    deployment::{Deployment, LIFETIME_SECONDS, engine_name},
};

/// The time after which Patroni's nodes do without a leader that is silent (`ttl` of the cluster), and some seconds.
const PAST_TTL: Duration = Duration::from_secs(26);
/// Longer than the lease of an engine (`lease_seconds`, 10).
const PAST_LEASE: Duration = Duration::from_secs(14);

/// What the harness breaks, and for how long.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Every process of the leader is killed.
    LeaderKilled,
    /// The leader's PostgreSQL is killed.
    PostgresKilled,
    /// Every process of the leader is stopped until another node leads, and continued.
    LeaderFrozen,
    /// Every process of the leader is stopped for less than its time to live, and continued.
    LeaderStalled(Duration),
    /// The leader's PostgreSQL is stopped for this time, and continued; its Patroni runs on.
    PostgresStalled(Duration),
    /// An engine is killed, and started again.
    EngineKilled(usize),
    /// An engine is stopped past its lease, and continued.
    EnginePaused(usize),
    /// An engine is stopped past its lease, another process registers under its name, and the engine is continued.
    EngineDisplaced(usize),
    /// An edge is killed, and started again.
    EdgeKilled(usize),
    /// An engine is killed together with the leader.
    EngineAndLeaderKilled(usize),
}

/// The faults of the test.
pub const THREE: &[Fault] = &[Fault::LeaderKilled, Fault::LeaderFrozen, Fault::EngineDisplaced(0)];

/// The faults of the whole run.
pub const TWELVE: &[Fault] = &[
    Fault::LeaderKilled,
    Fault::PostgresKilled,
    Fault::LeaderFrozen,
    Fault::PostgresStalled(Duration::from_secs(25)),
    Fault::EngineKilled(0),
    Fault::EngineDisplaced(1),
    Fault::EdgeKilled(0),
    Fault::LeaderStalled(Duration::from_secs(8)),
    Fault::EngineAndLeaderKilled(1),
    Fault::EnginePaused(0),
    Fault::LeaderFrozen,
    Fault::EngineKilled(1),
];

impl Fault {
    /// Causes the fault, waits until it is over, and repairs what it broke.
    pub fn cause(self, cluster: &Cluster, deployment: &Deployment, recorder: &Recorder) {
        let note = |kind, node: &str| {
            println!("fault: {self:?} at {node}");
            recorder.fault(kind, node).unwrap();
        };
        match self {
            Self::LeaderKilled => {
                let node = cluster.kill_leader();
                note(FaultKind::LeaderKilled, &node);
                cluster.wait_leader_other_than(&node);
                cluster.revive(&node);
            }
            Self::PostgresKilled => note(FaultKind::PostgresKilled, &cluster.kill_postgres()),
            Self::LeaderFrozen => {
                let node = cluster.freeze_leader();
                note(FaultKind::LeaderFrozen, &node);
                sleep(PAST_TTL);
                cluster.wait_leader_other_than(&node);
                cluster.thaw(&node);
            }
            Self::LeaderStalled(time) => {
                let node = cluster.freeze_leader();
                note(FaultKind::LeaderStalled, &node);
                sleep(time);
                cluster.thaw(&node);
            }
            Self::PostgresStalled(time) => {
                let node = cluster.freeze_postgres();
                note(FaultKind::LeaderStalled, &node);
                sleep(time);
                cluster.thaw(&node);
            }
            Self::EngineKilled(side) => {
                let exits = deployment.engines[side].exits().len();
                deployment.engines[side].kill();
                note(FaultKind::EngineKilled, &engine_name(side));
                deployment.engines[side].wait_for_exit(exits);
            }
            Self::EnginePaused(side) => {
                deployment.engines[side].freeze();
                note(FaultKind::EnginePaused, &engine_name(side));
                sleep(PAST_LEASE);
                deployment.engines[side].thaw();
            }
            Self::EngineDisplaced(side) => {
                deployment.displace(side, || note(FaultKind::EnginePaused, &engine_name(side)))
            }
            Self::EdgeKilled(side) => {
                let exits = deployment.edges[side].exits().len();
                deployment.edges[side].kill();
                note(FaultKind::EdgeKilled, &format!("edge-{side}"));
                deployment.edges[side].wait_for_exit(exits);
            }
            Self::EngineAndLeaderKilled(side) => {
                deployment.engines[side].kill();
                note(FaultKind::EngineKilled, &engine_name(side));
                Self::LeaderKilled.cause(cluster, deployment, recorder);
            }
        }
    }
}

/// How long after a give-up a call may still take effect: longer than each fault, and longer than a control.
pub const LATE_EFFECTS: Duration = Duration::from_secs(3 * LIFETIME_SECONDS);
