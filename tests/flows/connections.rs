//! Silent connections keep no client out.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use proto::Scope;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use support::{
    certificates::{certificates, channel_as, peer},
    edge_process::{EdgeProcess, TOKEN},
    engine_process::{Client, EngineProcess},
};

const SILENT: usize = 2_000;
/// The limit for one answer: this machine may stall.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

/// Connections that send these bytes and stay open.
fn silent(address: &str, words: &[u8]) -> Vec<TcpStream> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let open = |_| {
        let mut stream = TcpStream::connect(address).unwrap();
        // A connection that was closed already accepts no bytes.
        let _ = std::io::Write::write_all(&mut stream, words);
        stream
    };
    (0..SILENT).map(open).collect()
}

async fn is_served(mut client: Client, plastic: &str) {
    let opened = tokio::time::timeout(ANSWER_TIME_MAX, client.open(plastic, Scope::SetPin)).await;
    opened.expect("there was no answer").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_keep_no_client_off_an_mtls_engine() {
    let directory = tempfile::tempdir().unwrap();
    let (tls, _) = certificates(directory.path());
    let engine = EngineProcess::start_quiet(directory.path(), &format!("{tls}\n{}", peer("edge", "\"edge-set\"")));
    // The beginning of a ClientHello; no byte.
    for (plastic, words) in [("6101", &b"\x16\x03\x01\x02\x00"[..]), ("6102", b"")] {
        let _silent = silent(engine.address(), words);
        is_served(Client::over(channel_as("edge", directory.path(), &engine)), plastic).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_preface_keeps_no_client_off_a_plain_engine() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start_quiet(directory.path(), "connections_max = 64");
    let _silent = silent(engine.address(), b"PRI * HTTP/2.0\r\n\r\n");
    is_served(engine.client().await, "6103").await;
}

#[test]
fn connections_without_credentials_keep_no_client_off_an_edge() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start_quiet(directory.path(), "");
    let address = format!("addresses = [\"http://{}\"]", engine.address());
    let edge = EdgeProcess::start(directory.path(), &address, "connections_max = 64");
    for (plastic, words) in [("6104", &b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"[..]), ("6105", b"")] {
        let _silent = silent(edge.url.trim_start_matches("http://"), words);
        let path = format!("/pincontrol/v2/plastic/{plastic}?auditUser=it");
        assert_eq!(edge.post(&path, "{\"scope\":\"SET_PIN\"}").status, 201);
    }
}

/// A connection with one authenticated request, whose status the edge has answered.
fn authenticated(edge: &EdgeProcess, number: usize) -> Option<(TcpStream, String)> {
    let mut stream = edge.connect();
    let body = "{\"scope\":\"SET_PIN\"}";
    let head = format!(
        "POST /pincontrol/v2/plastic/{number}?auditUser=it HTTP/1.1\r\nhost: edge\r\nauthorization: Bearer {TOKEN}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    let mut answer = [0; 1024];
    let length = stream.read(&mut answer).ok().filter(|length| *length > 0)?;
    let status = String::from_utf8_lossy(&answer[..length]).split(' ').nth(1)?.to_owned();
    Some((stream, status))
}

#[test]
fn an_edge_raises_its_soft_limit_of_open_files() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start_quiet(directory.path(), "");
    let address = format!("addresses = [\"http://{}\"]", engine.address());
    let edge = EdgeProcess::start_with_open_files(directory.path(), &address, 64, 11_000);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", edge.id())).unwrap();
    let open_files: Vec<_> =
        limits.lines().find(|line| line.starts_with("Max open files")).unwrap().split_whitespace().collect();
    assert_eq!(open_files[3..5], ["10320", "11000"], "{limits}");
    assert!(!edge.log().contains("limit of open files"), "{}", edge.log());
    let mut open = Vec::new();
    for number in 0..200 {
        let (stream, status) = authenticated(&edge, 61_000 + number).expect("the connection was dropped");
        assert_eq!(status, "201");
        open.push(stream);
    }
}

#[test]
fn a_low_limit_of_open_files_bounds_the_connections() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start_quiet(directory.path(), "");
    let address = format!("addresses = [\"http://{}\"]", engine.address());
    let edge = EdgeProcess::start_with_open_files(directory.path(), &address, 64, 360);
    let log = edge.log();
    let line = log.lines().find(|line| line.contains("fewer connections than configured")).expect("no line in the log");
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    assert_eq!((&line["fields"]["configured"], &line["fields"]["allowed"]), (&10_000.into(), &40.into()));

    // All the places are in use: a further connection is dropped, and the edge does not run out of descriptors.
    let mut open = Vec::new();
    while let Some((stream, status)) = authenticated(&edge, 62_000 + open.len()) {
        assert_eq!(status, "201");
        open.push(stream);
        assert!(open.len() <= 40, "more connections than the bound");
    }
    assert_eq!(open.len(), 40);
    assert!(!edge.log().contains("could not be accepted"), "{}", edge.log());
    open.clear();
    is_served_again(&edge);
}

fn is_served_again(edge: &EdgeProcess) {
    let served = (0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        matches!(authenticated(edge, 63_000), Some((_, status)) if status == "201")
    });
    assert!(served, "the edge does not serve after its connections were closed");
}
