//! A run: clients, faults, the last reads, the verdict.

use std::{fs::File, io::BufReader, path::Path, sync::Arc, thread::sleep, time::Duration};

use audit::chain::{ChainVerifier, Checkpoint};
use history::{
    history::{History, Setup},
    order_search::SearchOptions,
    recorder::Recorder,
    report::Report,
};
use store::Store;
use store_postgres::{Postgres, PostgresConfig};
use tokio::runtime::{Builder, Runtime};

use crate::{
    caller::Caller,
    chain_events::{Events, missing_events},
    cluster::{Cluster, Patroni},
    deployment::{Deployment, SIDES, TRIES},
    fault::{Fault, LATE_EFFECTS, unexpected_exits},
    run_report::{RunReport, calls_by_kind, gaps, locked, longest_wait, refused_uses},
    times::LIFETIME_SECONDS,
    traffic::Traffic,
};

/// How long clients call before the first fault, between two, and after the last, at least.
const QUIET: Duration = Duration::from_secs(2);
/// The store's clock is the database's, on the same machine. A stopped statement may read it late.
const CLOCK_TOLERANCE_MILLISECONDS: u64 = 2_000;
/// The entries of a chain that are read at a time.
const ENTRIES_AT_ONCE: usize = 2_000;

/// A cluster with engines and edges. The fields end in this order.
pub struct Harness {
    pub runtime: Runtime,
    pub deployment: Deployment,
    pub cluster: Cluster,
}

impl Harness {
    /// Starts the cluster, the engines and the edges.
    pub fn start(patroni: Patroni) -> Self {
        let cluster = Cluster::start(patroni);
        let deployment = Deployment::start(|engine| cluster.lines(engine), &cluster.notes());
        Self { runtime: runtime(), deployment, cluster }
    }

    /// Runs clients with these faults, each after a synchronous standby is there. The recording is written to `file`.
    pub fn run(&self, number: u32, faults: &[Fault], file: &Path) -> RunReport {
        let traffic = new_traffic(&self.runtime, &self.deployment, number, file);
        let clients = traffic.start(&self.runtime);
        for fault in faults {
            sleep(QUIET);
            traffic.wait_for_service();
            self.cluster.wait_sync();
            fault.cause(&self.cluster, &self.deployment, &traffic.recorder);
        }
        sleep(QUIET);
        traffic.wait_for_service();
        // After a stall under Debian's Patroni a node may never follow again.
        if self.cluster.patroni == Patroni::Pinned {
            self.cluster.wait_sync();
        }
        self.runtime.block_on(async {
            traffic.stop(clients).await;
            traffic.read_all(TRIES).await;
        });
        let chains = verify_chains(&self.runtime, &self.cluster.config("reader"), &self.deployment);
        report(&self.deployment, &traffic, faults, chains, file)
    }
}

pub(crate) fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

pub(crate) fn new_traffic(runtime: &Runtime, deployment: &Deployment, number: u32, file: &Path) -> Arc<Traffic> {
    let setup = Setup {
        tries_per_card: TRIES,
        control_lifetime_ms: LIFETIME_SECONDS * 1_000,
        clock_tolerance_ms: CLOCK_TOLERANCE_MILLISECONDS,
        late_effects_ms: u64::try_from(LATE_EFFECTS.as_millis()).unwrap(),
    };
    let _inside = runtime.enter();
    let engines: Vec<_> = (0..SIDES).map(|side| deployment.engine_url(side)).collect();
    let caller = Caller::new((0..SIDES).map(|side| deployment.edge_url(side)).collect(), &engines);
    let zone_key = device::Tzpk::from_bytes(deployment.zone_key.as_bytes()).unwrap();
    Arc::new(Traffic::new(Recorder::create(file, setup).unwrap(), caller, zone_key, number))
}

pub(crate) fn report(
    deployment: &Deployment,
    traffic: &Traffic,
    faults: &[Fault],
    chains: Chains,
    file: &Path,
) -> RunReport {
    let history = History::read(BufReader::new(File::open(file).unwrap())).unwrap();
    let services = deployment.engines.iter().chain(&deployment.edges);
    let exits: Vec<_> = services.map(|service| (service.start.name.clone(), service.exits())).collect();
    RunReport {
        calls: calls_by_kind(&history),
        refused_uses: refused_uses(&history),
        locked: locked(&history),
        gaps: gaps(&history),
        longest_wait: longest_wait(&history),
        report: Report::new(&history, SearchOptions::default()),
        missing_events: missing_events(&history, &chains.events),
        chains: chains.verified,
        unexpected: traffic.unexpected(),
        unexpected_exits: unexpected_exits(faults, &exits),
        exits,
    }
}

/// The audit chains of the engines.
pub(crate) struct Chains {
    /// The chain of each engine, with the number of its verified entries.
    verified: Vec<(String, Result<u64, String>)>,
    /// The events of calls that were carried out.
    events: Events,
}

/// Verifies the chain of each engine, from its first entry to its head and with the newest checkpoint of the engine.
pub(crate) fn verify_chains(runtime: &Runtime, config: &PostgresConfig, deployment: &Deployment) -> Chains {
    // Read before the heads: an engine may write on.
    let checkpoints = deployment.checkpoints();
    runtime.block_on(async {
        let store = Postgres::open(config).await.unwrap();
        let mut chains = Chains { verified: Vec::new(), events: Events::default() };
        let found = store.chains().await.unwrap();
        for (engine, checkpoint) in checkpoints {
            let head = found.iter().find(|chain| chain.engine == engine).map(|chain| chain.head);
            let result = match head {
                Some(head) => verify_chain(&store, &engine, head, checkpoint, &mut chains.events).await,
                None => Err("the database has no such chain".to_owned()),
            };
            chains.verified.push((engine, result));
        }
        store.close().await;
        chains
    })
}

async fn verify_chain(
    store: &Postgres,
    engine: &str,
    head: Checkpoint,
    checkpoint: Checkpoint,
    events: &mut Events,
) -> Result<u64, String> {
    let mut verifier = ChainVerifier::new(vec![checkpoint]).with_head(head);
    loop {
        let from = verifier.reached().sequence + 1;
        // An engine may write on: the entries up to the head are verified.
        let left = usize::try_from((head.sequence + 1).saturating_sub(from)).unwrap().min(ENTRIES_AT_ONCE);
        let entries = store.audit_of(engine, from, left).await.unwrap();
        if entries.is_empty() {
            return verifier.finish().map(|end| end.sequence).map_err(|error| error.to_string());
        }
        for entry in &entries {
            verifier.check(entry).map_err(|error| error.to_string())?;
            events.add(&entry.event);
        }
    }
}
