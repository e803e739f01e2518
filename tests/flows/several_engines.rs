//! An edge before two engines: one of them stops, is killed, is frozen, and serves again.
//!
//! Each engine has its own embedded store. The callers open controls of cards that no engine knows, which need no earlier state.

use std::{
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use net::{EngineChannel, connect::channel};
use proto::{
    AuditOutcome, CardAction, ExportAuditRequest, audit_entry::Event, audit_service_client::AuditServiceClient,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::{body::Body, client::GrpcService, transport::Channel};

use support::{
    certificates::{certificates, channel_as, peer, port_of},
    edge_process::{EdgeProcess, TOKEN},
    engine_process::EngineProcess,
    wait::{signal, soon, stop, within},
};

/// The callers at a time, and the pause of each between two calls.
const CALLERS: usize = 8;
const PAUSE: Duration = Duration::from_millis(2);
/// The answers before, between and after what happens to an engine.
const ANSWERS: u64 = 200;
/// The limit for one condition: this machine may stall.
const CONDITION_TIME_MAX: Duration = Duration::from_secs(60);

/// An engine with its directory, at an address that stays.
struct StoredEngine {
    process: Option<EngineProcess>,
    directory: TempDir,
    lines: String,
    address: String,
}

impl StoredEngine {
    fn start(lines: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let process = EngineProcess::start_quiet(directory.path(), lines);
        let address = process.address().to_owned();
        Self { process: Some(process), directory, lines: lines.to_owned(), address }
    }

    fn start_again(&mut self) {
        self.process = Some(EngineProcess::start_at(self.directory.path(), &self.address, &self.lines));
    }

    fn process(&self) -> &EngineProcess {
        self.process.as_ref().unwrap()
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// The sequence of an engine's newest audit entry. Each control that the engine opens adds one.
async fn newest_entry(channel: Channel) -> u64 {
    let request = ExportAuditRequest { start_sequence: 0, newest_count: 1, continuous: false };
    let mut entries = AuditServiceClient::new(channel).export_audit(request).await.unwrap().into_inner();
    entries.message().await.unwrap().unwrap().entry.unwrap().sequence
}

/// The controls that an engine opened, by its audit entries.
async fn opened_controls(channel: Channel) -> Vec<String> {
    let request = ExportAuditRequest { start_sequence: 1, ..Default::default() };
    let mut entries = AuditServiceClient::new(channel).export_audit(request).await.unwrap().into_inner();
    let mut opened = Vec::new();
    while let Some(message) = entries.message().await.unwrap() {
        let entry = message.entry.unwrap();
        let is_done = entry.outcome() == AuditOutcome::Done;
        if let Some(Event::Card(card)) = entry.event
            && card.action() == CardAction::OpenControl
            && is_done
        {
            opened.push(card.control_id);
        }
    }
    opened
}

/// The value of the gauge of an engine.
fn is_usable(edge: &EdgeProcess, url: &str) -> bool {
    let usable = format!("pinseal_edge_engine_usable{{engine=\"{url}\"}} 1");
    edge.metrics().lines().any(|line| line == usable)
}

/// Callers that open controls through an edge, over one connection of HTTP/2.
struct Callers {
    connection: EngineChannel,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    /// The ids of the controls in the answers of each caller.
    opened: Arc<[Mutex<Vec<String>>]>,
    /// The errors of each caller.
    failed: Arc<[Mutex<Vec<String>>]>,
    tasks: Vec<JoinHandle<()>>,
}

impl Callers {
    fn start(edge: &EdgeProcess) -> Self {
        let connection = EngineChannel::from(channel(&edge.url.parse().unwrap(), None).unwrap());
        let of_each_caller = || (0..CALLERS).map(|_| Mutex::default()).collect::<Arc<[Mutex<Vec<String>>]>>();
        let (opened, failed) = (of_each_caller(), of_each_caller());
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let tasks = (0..CALLERS).map(|caller| {
            let (connection, stop) = (connection.clone(), Arc::clone(&stop));
            let (answered, opened, failed) = (Arc::clone(&answered), Arc::clone(&opened), Arc::clone(&failed));
            tokio::spawn(async move {
                for call in 0..usize::MAX {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    // A card has a limit of controls.
                    match open(&connection, 7_000_000 + caller * 100_000 + call / 50).await {
                        Ok(control) => {
                            opened[caller].lock().unwrap().push(control);
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => failed[caller].lock().unwrap().push(error),
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            })
        });
        let tasks = tasks.collect();
        Self { connection, stop, answered, opened, failed, tasks }
    }

    /// Waits until there are [`ANSWERS`] more.
    async fn go_on(&self) {
        let before = self.answered.load(Ordering::Relaxed);
        let more = async || (self.answered.load(Ordering::Relaxed) >= before + ANSWERS).then_some(());
        within(CONDITION_TIME_MAX, "the callers get no answers", more).await;
    }

    /// The errors of each caller so far.
    fn failed(&self) -> Vec<Vec<String>> {
        self.failed.iter().map(|failed| failed.lock().unwrap().clone()).collect()
    }

    async fn stop(self) -> Vec<Vec<String>> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        self.failed.iter().map(|failed| failed.lock().unwrap().clone()).collect()
    }
}

/// Opens a control over a connection to an edge. Returns the id of the control.
async fn open(connection: &EngineChannel, plastic_id: usize) -> Result<String, String> {
    let request = Request::post(format!("/pincontrol/v2/plastic/{plastic_id}?auditUser=it"))
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("content-type", "application/json")
        .body(Body::new(Full::from("{\"scope\":\"SET_PIN\"}")));
    let answer = connection.clone().call(request.unwrap()).await.map_err(|error| format!("{error:?}"))?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    if status != StatusCode::CREATED {
        return Err(format!("{status} {}", String::from_utf8_lossy(&body)));
    }
    let control: serde_json::Value = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    control["id"].as_str().map(str::to_owned).ok_or_else(|| "an answer without the id of its control".to_owned())
}

/// Two engines without TLS, and an edge with metrics before both.
fn two_engines() -> (TempDir, [StoredEngine; 2], EdgeProcess) {
    let engines = [StoredEngine::start(""), StoredEngine::start("")];
    let directory = tempfile::tempdir().unwrap();
    let addresses = engines.each_ref().map(StoredEngine::url);
    let edge = EdgeProcess::start_with_metrics(directory.path(), &format!("addresses = {addresses:?}"));
    (directory, engines, edge)
}

async fn used_again(edge: &EdgeProcess, callers: &Callers, engine: &StoredEngine) {
    let usable = async || is_usable(edge, &engine.url()).then_some(());
    within(CONDITION_TIME_MAX, "the engine is not usable again", usable).await;
    let before = newest_entry(engine.process().channel().await).await;
    callers.go_on().await;
    assert!(newest_entry(engine.process().channel().await).await > before, "the engine gets no call");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_call_fails_while_engines_stop_one_after_the_other() {
    let directory = tempfile::tempdir().unwrap();
    let (engine_tls, edge_tls) = certificates(directory.path());
    let peers = peer("edge", "\"edge-set\"") + &peer("client", "\"auditor\"");
    let lines = format!("{engine_tls}\n{peers}");
    let mut engines = [StoredEngine::start(&lines), StoredEngine::start(&lines)];
    let addresses = engines.each_ref().map(|engine| format!("https://localhost:{}", port_of(engine.process())));
    let edge = EdgeProcess::start_quiet(directory.path(), &format!("addresses = {addresses:?}\n{edge_tls}"));
    let newest = async |engine: &StoredEngine, directory: &Path| {
        newest_entry(channel_as("client", directory, engine.process())).await
    };

    let callers = Callers::start(&edge);
    for stopped in [0, 1, 0, 1] {
        callers.go_on().await;
        let engine = &mut engines[stopped];
        let process = engine.process.take().unwrap();
        let code = tokio::task::spawn_blocking(|| process.terminate()).await.unwrap();
        assert_eq!(code, 0);
        callers.go_on().await;
        engine.start_again();
        let before = newest(&engines[stopped], directory.path()).await;
        let used = async || (newest(&engines[stopped], directory.path()).await > before).then_some(());
        within(CONDITION_TIME_MAX, "the engine gets no call after its start", used).await;
    }
    let answers = Arc::clone(&callers.opened);
    let failed = callers.stop().await;
    assert_eq!(failed.concat(), Vec::<String>::new());

    // A call that was sent again had one effect.
    let mut opened = Vec::new();
    for engine in &engines {
        opened.extend(opened_controls(channel_as("client", directory.path(), engine.process())).await);
    }
    let mut answered: Vec<_> = answers.iter().flat_map(|of_caller| of_caller.lock().unwrap().clone()).collect();
    opened.sort();
    answered.sort();
    assert!(opened == answered, "{} controls were opened, {} answered", opened.len(), answered.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn only_calls_in_flight_fail_when_an_engine_is_killed() {
    let (_directory, mut engines, edge) = two_engines();
    let callers = Callers::start(&edge);
    for (killed, kills) in [(0, 1), (1, 2)] {
        callers.go_on().await;
        for engine in &engines {
            used_again(&edge, &callers, engine).await;
        }
        engines[killed].process.take().unwrap().kill();
        callers.go_on().await;
        let unusable = async || (!is_usable(&edge, &engines[killed].url())).then_some(());
        soon("the killed engine counts as usable", unusable).await;
        assert_eq!(edge.status_of("/readyz"), 204);
        // A caller has one call in flight.
        for failed in callers.failed() {
            assert!(failed.len() <= kills, "{failed:?}");
            assert!(failed.iter().all(|error| error.contains("ENGINE_UNAVAILABLE")), "{failed:?}");
        }
        engines[killed].start_again();
        used_again(&edge, &callers, &engines[killed]).await;
    }
    callers.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_frozen_engine_gets_no_call_after_its_health_check() {
    let (_directory, engines, edge) = two_engines();
    let callers = Callers::start(&edge);
    for engine in &engines {
        used_again(&edge, &callers, engine).await;
    }
    let connection = callers.connection.clone();
    assert_eq!(callers.failed().concat(), Vec::<String>::new());

    let freeze = async |engine: &StoredEngine| {
        let silent = || edge.log().matches("an engine is silent").count();
        let before = silent();
        stop(engine.process().id());
        let found = async || (silent() > before).then_some(());
        within(CONDITION_TIME_MAX, "the frozen engine is not found", found).await;
    };
    freeze(&engines[0]).await;
    // The calls that the frozen engine got before end at their deadline.
    let failed = callers.stop().await.concat();
    assert!(failed.iter().all(|error| error.contains("ENGINE_UNAVAILABLE")), "{failed:?}");
    for call in 0..usize::try_from(ANSWERS).unwrap() {
        open(&connection, 8_000_000 + call / 50).await.unwrap();
    }
    assert_eq!(edge.status_of("/readyz"), 204);
    freeze(&engines[1]).await;
    // A call that an engine would get could not be answered before its deadline.
    let refused = open(&connection, 8_100_000).await.unwrap_err();
    assert!(refused.contains("ENGINE_UNAVAILABLE"), "{refused}");
    assert!(edge.log().contains("no engine answers its health checks"), "{}", edge.log());
    assert_eq!(edge.status_of("/readyz"), 503);

    for engine in &engines {
        signal(engine.process().id(), "CONT");
    }
    let usable = async || engines.iter().all(|engine| is_usable(&edge, &engine.url())).then_some(());
    within(CONDITION_TIME_MAX, "the engines are not usable again", usable).await;
    let callers = Callers::start(&edge);
    for engine in &engines {
        used_again(&edge, &callers, engine).await;
    }
    callers.stop().await;
}
