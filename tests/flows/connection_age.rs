//! The maximum age of connections: they end, and no call fails.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use http::Request;
use http_body_util::{BodyExt, Full};
use net::{EngineChannel, connect::channel};
use proto::{ExportAuditRequest, Scope, audit_service_client::AuditServiceClient};
use tonic::{Code, body::Body, client::GrpcService};

use support::{
    certificates::{certificates, channel_as, peer, port_of},
    edge_process::{EdgeProcess, TOKEN},
    engine_process::{EngineProcess, reason},
    wait::soon,
};

/// One second, the lowest value.
const AGE: &str = "connection_age_seconds_max = 1\n";
/// The connections of each service that reach their age, and the answers, before the test ends.
const CONNECTIONS: usize = 5;
const ANSWERS: u64 = 100;
/// The callers at a time.
const CALLERS: u64 = 8;

/// The connections that have reached their age.
fn aged(log: &str) -> usize {
    log.matches("a connection reached its maximum age").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_call_fails_while_connections_reach_their_age() {
    let directory = tempfile::tempdir().unwrap();
    let (engine_tls, edge_tls) = certificates(directory.path());
    let peers = peer("edge", "\"edge-set\"");
    let engine = EngineProcess::start(directory.path(), &format!("{AGE}{engine_tls}\n{peers}"));
    let address = format!("addresses = [\"https://localhost:{}\"]\n{edge_tls}", port_of(&engine));
    let edge = EdgeProcess::start(directory.path(), &address, AGE);

    // The callers share a connection of HTTP/2 to the edge, and the edge has one to the engine.
    let connection = EngineChannel::from(channel(&edge.url.parse().unwrap(), None).unwrap());
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (mut connection, stop, answered) = (connection.clone(), Arc::clone(&stop), Arc::clone(&answered));
            tokio::spawn(async move {
                for call in 0..u64::MAX {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    // A card has a limit of controls.
                    let plastic_id = 7_000_000 + caller * 100_000 + call / 50;
                    let request = Request::post(format!("/pincontrol/v2/plastic/{plastic_id}?auditUser=it"))
                        .header("authorization", format!("Bearer {TOKEN}"))
                        .header("content-type", "application/json")
                        .body(Body::new(Full::from("{\"scope\":\"SET_PIN\"}")));
                    let answer = connection.call(request.unwrap()).await.unwrap_or_else(|error| panic!("{error:?}"));
                    let status = answer.status();
                    let body = answer.into_body().collect().await.unwrap().to_bytes();
                    assert_eq!(status, 201, "{}", String::from_utf8_lossy(&body));
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for _ in 0..1_200 {
        let counts = (aged(&edge.log()), aged(&engine.log()), answered.load(Ordering::Relaxed));
        let has_run = counts.0 >= CONNECTIONS && counts.1 >= CONNECTIONS && counts.2 >= ANSWERS;
        if has_run || callers.iter().any(|caller| caller.is_finished()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
    let counts = (aged(&edge.log()), aged(&engine.log()), answered.load(Ordering::Relaxed));
    assert!(counts.0 >= CONNECTIONS && counts.1 >= CONNECTIONS && counts.2 >= ANSWERS, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_after_the_age_with_its_reason() {
    let directory = tempfile::tempdir().unwrap();
    let (tls, _) = certificates(directory.path());
    let lines = format!("{AGE}call_timeout_milliseconds = 1000\n{tls}\n{}", peer("client", "\"auditor\""));
    let engine = EngineProcess::start(directory.path(), &lines);
    let mut audit = AuditServiceClient::new(channel_as("client", directory.path(), &engine));
    let request = ExportAuditRequest { start_sequence: 0, newest_count: 0, continuous: true };
    let mut entries = audit.export_audit(request).await.unwrap().into_inner();
    let ended = loop {
        match entries.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a status"),
            Err(status) => break status,
        }
    };
    assert_eq!((ended.code(), &*reason(&ended)), (Code::Unavailable, "CONNECTION_AGE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_of_the_audit_chain_continues_on_the_next_connection() {
    const FOLLOWED_CONNECTIONS: usize = 3;
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), &format!("{AGE}call_timeout_milliseconds = 1000\n"));
    let mut tail = Command::new(env!("CARGO_BIN_EXE_pinseal"))
        .args(["audit", "tail", "--from", "1", "--follow", "--engine", engine.address()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(tail.stdout.take().unwrap()).lines();
    let printed = Arc::new(Mutex::new(Vec::new()));
    let to = Arc::clone(&printed);
    let reading = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let entry: serde_json::Value = serde_json::from_str(&line).unwrap();
            to.lock().unwrap().push(entry["sequence"].as_u64().unwrap());
        }
    });
    let mut controls: u64 = 0;
    soon("the follower has used some connections", async || {
        // The connection of this call ends with it, so only the follower's connections reach the age. On a machine that
        // stalls, a call may last longer than the engine allows.
        let opened = engine.client().await.open(&format!("{}", 6301 + controls), Scope::SetPin).await;
        controls += u64::from(opened.is_ok());
        (aged(&engine.log()) >= FOLLOWED_CONNECTIONS).then_some(())
    })
    .await;
    assert!(controls > 0);
    // The start of the engine, and each control.
    let last = controls + 1;
    let has_last = async || printed.lock().unwrap().last().is_some_and(|printed| *printed >= last).then_some(());
    soon("the follower prints the last entry", has_last).await;
    tail.kill().unwrap();
    tail.wait().unwrap();
    reading.join().unwrap();
    let printed = printed.lock().unwrap();
    let expected: Vec<u64> = (1..).take(printed.len()).collect();
    assert_eq!(*printed, expected, "an entry is missing or was printed twice");
}
