//! Silent connections keep no client out.

use std::{net::TcpStream, time::Duration};

use proto::Scope;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use support::{
    certificates::{certificates, channel_as, peer},
    edge_process::EdgeProcess,
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
    let engine = EngineProcess::start_quiet(directory.path(), &format!("{tls}\n{}", peer("edge", "\"controls\"")));
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
    let address = format!("address = \"http://{}\"", engine.address());
    let edge = EdgeProcess::start(directory.path(), &address, "connections_max = 64");
    for (plastic, words) in [("6104", &b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"[..]), ("6105", b"")] {
        let _silent = silent(edge.url.trim_start_matches("http://"), words);
        let path = format!("/pincontrol/v2/plastic/{plastic}?auditUser=it");
        assert_eq!(edge.post(&path, "{\"scope\":\"SET_PIN\"}").status, 201);
    }
}
