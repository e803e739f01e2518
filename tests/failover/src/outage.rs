//! A database that is away for a minute.

use std::{
    fmt,
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use history::{history::FaultKind, recorder::Recorder};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::{
    caller::{Caller, Ended},
    deployment::{Deployment, SIDES, TRIES},
    guard::Guard,
    run::{new_traffic, report, runtime, verify_chains},
    run_report::RunReport,
    single_server::SingleServer,
    times::PATIENCE,
    traffic::Traffic,
};

/// The time that a probe waits for an answer: more than the deadlines of edge (10 s) and engine (5 s).
const PROBE: Duration = Duration::from_secs(30);
/// What a process may grow by while its calls find no database, in KiB.
const GROWTH_MAX: u64 = 64 * 1_024;

/// How the database goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Away {
    /// The server is stopped, and connections are refused.
    Stopped,
    /// The server hangs, and answers nothing.
    Frozen,
}

/// What a database that was away did to the service.
pub struct Outage {
    pub run: RunReport,
    /// Until the health of both engines was NOT_SERVING.
    pub noticed: Duration,
    /// The probes during the outage, each answered as unavailable.
    pub probes: u64,
    /// The longest time that a probe waited for its answer.
    pub slowest: Duration,
    /// From the moment at which the server accepts connections to the first control that each edge opens.
    pub back: Vec<Duration>,
    /// Each process, its resident memory before and at the end of the outage, in KiB.
    pub memory: Vec<(String, u64, u64)>,
}

impl Outage {
    /// Whether nothing is wrong, and no process has grown without bound.
    pub fn is_right(&self) -> bool {
        self.run.is_right() && self.memory.iter().all(|(_, before, after)| *after < before + GROWTH_MAX)
    }
}

/// Runs clients on one server, which is away for this time.
pub fn run(kind: Away, away: Duration, file: &Path) -> Outage {
    let guard =
        Guard::start(&[("PATRONI_HOME", format!("/var/tmp/pinseal-failover-none-{}", std::process::id()).into())]);
    let mut server = SingleServer::start(guard.notes());
    let deployment = Deployment::start(|engine| server.lines(engine), &guard.notes());
    let runtime = runtime();
    let traffic = new_traffic(&runtime, &deployment, 0, file);
    let clients = traffic.start(&runtime);
    sleep(Duration::from_secs(5));
    let before = memory(&deployment);
    note(&traffic.recorder);
    match kind {
        Away::Stopped => server.stop(),
        Away::Frozen => server.freeze(),
    }
    let since = Instant::now();
    let until = since + away;
    let (mut probes, mut slowest) = (0, Duration::ZERO);
    runtime.block_on(until_not_serving(&traffic));
    let noticed = since.elapsed();
    while Instant::now() < until || probes == 0 {
        for side in 0..SIDES {
            let since = Instant::now();
            let error = runtime.block_on(traffic.caller.open_error(side, &probed_card(side), PROBE));
            assert_eq!(error.as_deref(), Some("STORE_UNAVAILABLE"), "edge {side}");
            (probes, slowest) = (probes + 1, slowest.max(since.elapsed()));
            let status = runtime.block_on(health(&traffic, side));
            assert_eq!(status, Some(ServingStatus::NotServing), "engine {side}");
        }
        sleep(Duration::from_millis(500));
    }
    let after = memory(&deployment);
    match kind {
        Away::Stopped => server.run(),
        Away::Frozen => server.thaw(),
    }
    let since = Instant::now();
    let back = (0..SIDES).map(|side| {
        // The edge is asked again and again, as a client would.
        while !runtime.block_on(opens(&traffic.caller, side)) {
            assert!(since.elapsed() < PATIENCE, "edge {side} is not back: {}", deployment.logs());
            sleep(Duration::from_millis(50));
        }
        since.elapsed()
    });
    let back = back.collect();
    sleep(Duration::from_secs(5));
    runtime.block_on(async {
        traffic.stop(clients).await;
        traffic.read_all(TRIES).await;
    });
    let chains = verify_chains(&runtime, &server.config("reader"), &deployment);
    let memory = before.into_iter().zip(after).map(|((name, before), (_, after))| (name, before, after)).collect();
    Outage { run: report(&deployment, &traffic, &[], chains, file), noticed, probes, slowest, back, memory }
}

fn note(recorder: &Recorder) {
    recorder.fault(FaultKind::DatabaseStopped, "server").unwrap();
}

/// A card that no client uses.
fn probed_card(side: usize) -> String {
    format!("99{side}")
}

/// Whether an edge opens a control.
async fn opens(caller: &Caller, side: usize) -> bool {
    match caller.open(side, &probed_card(side), "VIEW_PIN", PROBE).await {
        Ended::Answered(_) => true,
        Ended::Other(_) => false,
        Ended::Unexpected(unexpected) => panic!("{unexpected:?}"),
    }
}

/// Waits until both engines report that they do not serve.
async fn until_not_serving(traffic: &Traffic) {
    let since = Instant::now();
    for side in 0..SIDES {
        while health(traffic, side).await != Some(ServingStatus::NotServing) {
            assert!(since.elapsed() < PATIENCE, "engine {side} still serves without a database");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn health(traffic: &Traffic, side: usize) -> Option<ServingStatus> {
    let request = HealthCheckRequest { service: "pinseal.v1.PinService".into() };
    let status = HealthClient::new(traffic.caller.channel(side)).check(request).await;
    status.ok().map(|answer| answer.into_inner().status())
}

fn memory(deployment: &Deployment) -> Vec<(String, u64)> {
    let services = deployment.engines.iter().chain(&deployment.edges);
    services.map(|service| (service.start.name.clone(), service.resident_kibibytes())).collect()
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { run, noticed, probes, slowest, back, memory } = self;
        writeln!(f, "the engines report NOT_SERVING after {:.1} s", noticed.as_secs_f64())?;
        writeln!(f, "{probes} probes answered as unavailable, the slowest after {:.1} s", slowest.as_secs_f64())?;
        for (side, time) in back.iter().enumerate() {
            writeln!(f, "edge {side} serves {:.1} s after the server accepts connections", time.as_secs_f64())?;
        }
        for (name, before, after) in memory {
            writeln!(f, "{name}: {before} KiB before, {after} KiB at the end of the outage")?;
        }
        write!(f, "{run}")
    }
}
