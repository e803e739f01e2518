//! What an operator reads in the logs: the client of each request, the cause of a 401, the address of a rejected connection,
//! reloads, and certificates that expire.

use std::{io::Write, net::TcpStream, path::Path, process::Command};

use serde_json::{Value, json};
use support::{
    certificates::{certificates, peer},
    edge_process::EdgeProcess,
    engine_process::{EngineProcess, METRICS},
    wait::{signal, soon},
};

const OPEN: (&str, &str) = ("/pincontrol/v2/plastic/6301?auditUser=it", "{\"scope\":\"SET_PIN\"}");
const EXPIRY: &str = "pinseal_edge_certificate_expiry_timestamp_seconds{certificate=\"listener\"} ";

/// The fields of the lines of a JSON log that have this message.
fn lines_with(log: &str, message: &str) -> Vec<Value> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["fields"]["message"] == message).map(|line| line["fields"].clone()).collect()
}

#[test]
fn a_success_has_the_name_of_its_client_and_its_control_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let address = format!("addresses = [\"http://{}\"]", engine.address());
    let edge = EdgeProcess::start_with_default_log(directory.path(), &address);
    let opened = edge.post(OPEN.0, OPEN.1);
    let control = opened.member("id");
    let block = json!({ "controlId": control, "pinBlock": "AAAAAAAAAAA=" }).to_string();
    assert_eq!(edge.post("/v3/set?auditUser=it", &block).fault(), (422, "TZPK_MISSING"));

    let log = edge.log();
    let [served] = &lines_with(&log, "request")[..] else { panic!("{log}") };
    assert_eq!((&served["client"], &served["status"]), (&json!("story"), &json!(201)));
    assert_eq!(served["network"], "127.0.0.1");
    let [rejected] = &lines_with(&log, "a request was rejected")[..] else { panic!("{log}") };
    for line in [served, rejected] {
        assert_eq!(line["control"], control[..8], "{line}");
    }
    assert!(!log.contains(control), "a whole controlId is a credential");
}

#[test]
fn a_401_has_its_cause_in_the_log_and_never_the_secret() {
    let directory = tempfile::tempdir().unwrap();
    let address = "addresses = [\"http://127.0.0.1:1\"]";
    let edge = EdgeProcess::start_with_default_log(directory.path(), address);
    for (authorization, cause) in [
        ("", "no credentials"),
        ("Bearer wrong-secret", "no client has this token or password"),
        ("Basic d3Jvbmctc2VjcmV0OnNlY3JldA==", "no client has this token or password"),
        ("Digest wrong-secret", "neither a Bearer token nor Basic credentials"),
    ] {
        let answer = edge.post_as(authorization, OPEN.0, OPEN.1);
        assert_eq!(answer.fault(), (401, "UNAUTHENTICATED"));
        let log = edge.log();
        let lines = lines_with(&log, "a request was rejected");
        let line = lines.iter().find(|line| line["request"] == answer.member("id")).unwrap();
        assert!(line["cause"].as_str().unwrap().contains(cause), "{line}");
        assert_eq!(line["network"], "127.0.0.1");
        assert!(!answer.text.contains(cause), "one answer for every cause");
        assert!(!log.contains("wrong-secret") && !log.contains("d3Jvbmc"), "{log}");
    }
}

/// Sends bytes that are no ClientHello.
fn send_no_handshake(address: &str) {
    TcpStream::connect(address).unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_handshake_has_the_address_of_its_client_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let (engine_tls, edge_tls) = certificates(directory.path());
    let engine = EngineProcess::start(directory.path(), &format!("{engine_tls}\n{}", peer("edge", "\"edge-set\"")));
    let edge = EdgeProcess::start(
        directory.path(),
        &format!("addresses = [\"https://localhost:1\"]\n{edge_tls}"),
        &engine_tls,
    );
    send_no_handshake(engine.address());
    send_no_handshake(edge.url.trim_start_matches("http://"));
    let of_edge = async || lines_with(&edge.log(), "a connection was rejected").pop();
    let line = soon("the edge logs no rejected connection", of_edge).await;
    assert_eq!(line["network"], "127.0.0.1");
    let of_engine = async || {
        let log = engine.log();
        log.lines().find(|line| line.contains("a connection was rejected")).map(str::to_owned)
    };
    let line = soon("the engine logs no rejected connection", of_engine).await;
    assert!(line.contains("network=127.0.0.1"), "{line}");
    assert!(!engine.log().contains('\x1b'), "colours in a file");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_reload_is_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let address = format!("addresses = [\"http://{}\"]", engine.address());
    let edge = EdgeProcess::start_with_default_log(directory.path(), &address);
    signal(edge.id(), "HUP");
    signal(engine.id(), "HUP");
    let message = "the clients were reloaded; restart the edge to reload the rest of its configuration";
    let line = soon("the edge logs no reload", async || lines_with(&edge.log(), message).pop()).await;
    assert_eq!(line["clients"], 3);
    for message in ["the peers were reloaded", "the reloaded keys are in use"] {
        soon("the engine logs no reload", async || engine.log().contains(message).then_some(())).await;
    }
}

/// Writes a self-signed certificate for these days, and its key.
fn self_signed(directory: &Path, days: &str) {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=edge"])
        .args(["-days", days, "-out"])
        .arg(directory.join("edge.pem"))
        .arg("-keyout")
        .arg(directory.join("edge.key"))
        .output()
        .expect("openssl is missing: install it");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_expires_soon_is_reported_and_shown_by_a_metric() {
    let directory = tempfile::tempdir().unwrap();
    self_signed(directory.path(), "10");
    let at = |file: &str| directory.path().join(file);
    let tls = format!("{METRICS}\n[tls]\ncertificates = {:?}\nprivate_key = {:?}\n", at("edge.pem"), at("edge.key"));
    let edge = EdgeProcess::start(directory.path(), "addresses = [\"http://127.0.0.1:1\"]", &tls);
    let warning = "a certificate expires soon: replace the file, which is read again without a restart";
    let [line] = &lines_with(&edge.log(), warning)[..] else { panic!("{}", edge.log()) };
    assert!([9, 10].map(Value::from).contains(&line["days"]), "{line}");
    assert!(line["file"].as_str().unwrap().ends_with("edge.pem"), "{line}");
    let expiry = || -> i64 {
        let metrics = edge.metrics();
        metrics
            .lines()
            .find_map(|line| line.strip_prefix(EXPIRY))
            .unwrap_or_else(|| panic!("{metrics}"))
            .parse()
            .unwrap()
    };
    let before = expiry();

    self_signed(directory.path(), "400");
    signal(edge.id(), "HUP");
    soon("the metric has the former certificate", async || (expiry() > before).then_some(())).await;
    assert_eq!(lines_with(&edge.log(), warning).len(), 1, "a certificate for 400 days is not reported");
}
