//! The faults, and how each ends.

use std::{thread::sleep, time::Duration};

use history::{history::FaultKind, recorder::Recorder};
use rustix::process::Signal;

use crate::{
    cluster::Cluster,
    deployment::{Deployment, edge_name, engine_name},
    program::Exit,
    times::{LEASE_SECONDS, LIFETIME_SECONDS},
};

/// Longer than the lease of an engine.
const PAST_LEASE: Duration = Duration::from_secs(LEASE_SECONDS + 2);

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
    /// Causes the fault, waits until it is over, and repairs what it broke. The fault is recorded before it is caused.
    pub fn cause(self, cluster: &Cluster, deployment: &Deployment, recorder: &Recorder) {
        let note = |kind, node: &str| {
            println!("fault: {self:?} at {node}");
            recorder.fault(kind, node).unwrap();
        };
        let leader = |kind| {
            let node = cluster.leader();
            note(kind, &node);
            node
        };
        match self {
            Self::LeaderKilled => {
                let node = leader(FaultKind::LeaderKilled);
                cluster.kill_node(&node);
                cluster.wait_leader_other_than(&node);
                cluster.revive(&node);
            }
            Self::PostgresKilled => cluster.kill_postgres(&leader(FaultKind::PostgresKilled)),
            Self::LeaderFrozen => {
                let node = leader(FaultKind::LeaderFrozen);
                cluster.freeze_node(&node);
                cluster.wait_leader_other_than(&node);
                cluster.thaw(&node);
            }
            Self::LeaderStalled(time) => {
                let node = leader(FaultKind::LeaderStalled);
                cluster.freeze_node(&node);
                sleep(time);
                cluster.thaw(&node);
            }
            Self::PostgresStalled(time) => {
                let node = leader(FaultKind::PostgresStalled);
                cluster.freeze_postgres(&node);
                sleep(time);
                cluster.thaw(&node);
            }
            Self::EngineKilled(side) => {
                note(FaultKind::EngineKilled, &engine_name(side));
                deployment.engines[side].kill_and_wait();
            }
            Self::EnginePaused(side) => {
                note(FaultKind::EnginePaused, &engine_name(side));
                deployment.engines[side].freeze();
                sleep(PAST_LEASE);
                deployment.engines[side].thaw();
            }
            Self::EngineDisplaced(side) => {
                note(FaultKind::EngineDisplaced, &engine_name(side));
                deployment.displace(side);
            }
            Self::EdgeKilled(side) => {
                note(FaultKind::EdgeKilled, &edge_name(side));
                deployment.edges[side].kill_and_wait();
            }
            Self::EngineAndLeaderKilled(side) => {
                note(FaultKind::EngineKilled, &engine_name(side));
                deployment.engines[side].kill_and_wait();
                Self::LeaderKilled.cause(cluster, deployment, recorder);
            }
        }
    }

    /// The service that the fault ends, and how. No other service may end.
    pub fn exit(self) -> Option<(String, Exit)> {
        let killed = Exit::Signal(Signal::KILL.as_raw());
        match self {
            Self::EngineKilled(side) | Self::EngineAndLeaderKilled(side) => Some((engine_name(side), killed)),
            Self::EngineDisplaced(side) => Some((engine_name(side), Exit::Code(1))),
            Self::EdgeKilled(side) => Some((edge_name(side), killed)),
            Self::LeaderKilled | Self::PostgresKilled | Self::LeaderFrozen | Self::EnginePaused(_) => None,
            Self::LeaderStalled(_) | Self::PostgresStalled(_) => None,
        }
    }

    /// The engine that is started again and may find no leader: it ends at its start until there is one.
    pub fn may_end_at_start(self) -> Option<String> {
        match self {
            Self::EngineAndLeaderKilled(side) => Some(engine_name(side)),
            _ => None,
        }
    }
}

/// The ends of services that these faults do not cause.
pub fn unexpected_exits(faults: &[Fault], exits: &[(String, Vec<Exit>)]) -> Vec<String> {
    let mut unexpected = Vec::new();
    for (service, found) in exits {
        let is_allowed = faults.iter().filter_map(|fault| fault.may_end_at_start()).any(|name| name == *service);
        let caused = faults.iter().filter_map(|fault| fault.exit()).filter(|(name, _)| name == service);
        let caused: Vec<_> = caused.map(|(_, exit)| exit).collect();
        let found: Vec<_> = found.iter().filter(|exit| !(is_allowed && **exit == Exit::AtStart)).copied().collect();
        if found != caused {
            unexpected.push(format!("{service} ended by {found:?}, and the faults cause {caused:?}"));
        }
    }
    unexpected
}

/// How long after a give-up a call may still take effect: longer than each fault, and longer than a control.
pub const LATE_EFFECTS: Duration = Duration::from_secs(3 * LIFETIME_SECONDS);
