//! Engine and edge as two processes with mutual TLS: their start, their refusals, their stop.

use std::process::Command;

use serde_json::json;

use support::{
    certificates::{certificates, peer, pinseal, port_of},
    edge_process::{EdgeProcess, one_client},
    engine_process::{EngineProcess, device},
    wait::{signal, soon},
};

#[test]
fn a_peer_over_mutual_tls_has_only_its_roles() {
    let directory = tempfile::tempdir().unwrap();
    let (engine_tls, edge_tls) = certificates(directory.path());
    let peers = peer("edge", "\"edge-set\"") + "tenants = [\"bank\"]";
    let engine = EngineProcess::start(directory.path(), &format!("{engine_tls}\n{peers}"));
    let address = format!("addresses = [\"https://localhost:{}\"]\n{edge_tls}", port_of(&engine));
    let edge = EdgeProcess::start(directory.path(), &address, "");

    let opened = edge.post("/pincontrol/v2/plastic/6001?auditUser=it", "{\"scope\":\"SET_PIN\"}");
    assert_eq!(opened.status, 201, "{}", opened.text);
    let key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, device().public_key_der());
    let view = json!({ "controlId": opened.member("id"), "publicKey": key }).to_string();
    assert_eq!(edge.post("/v3/view?auditUser=it", &view).fault(), (403, "CALLER_FORBIDDEN"));
    let opened = edge.post("/pincontrol/v2/plastic/6001?auditUser=it", "{\"scope\":\"VIEW_PIN\"}");
    assert_eq!(opened.fault(), (403, "CALLER_FORBIDDEN"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_the_engine_denies_is_not_ready() {
    let directory = tempfile::tempdir().unwrap();
    let (engine_tls, edge_tls) = certificates(directory.path());
    let engine = EngineProcess::start(directory.path(), &format!("{engine_tls}\n{}", peer("client", "\"edge-set\"")));
    let address = format!("addresses = [\"https://localhost:{}\"]\n{edge_tls}", port_of(&engine));
    let edge = EdgeProcess::start(directory.path(), &address, "");
    assert_eq!(edge.status_of("/readyz"), 503);
    assert!(edge.log().contains("the engine denies this edge"), "{}", edge.log());
    assert!(edge.log().contains("add [[peers]]"), "the remedy is logged");

    let config = directory.path().join("engine.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text + &peer("edge", "\"edge-view\"")).unwrap();
    signal(engine.id(), "HUP");
    soon("the edge is not ready", async || (edge.status_of("/readyz") == 204).then_some(())).await;
    assert!(edge.log().contains("/readyz is answered 204 again"), "{}", edge.log());
}

#[test]
fn an_operator_needs_mutual_tls_and_its_role() {
    let directory = tempfile::tempdir().unwrap();
    let (engine_tls, _) = certificates(directory.path());
    let peers = peer("client", "\"operator\"") + &peer("edge", "\"edge-set\"");
    let engine = EngineProcess::start(directory.path(), &format!("{engine_tls}\n{peers}"));
    let address = format!("https://localhost:{}", port_of(&engine));
    let watch = ["rotation", "watch", "--engine", &address];
    let by = |holder: &str| {
        let at = |file: String| directory.path().join("pki").join(file).to_str().unwrap().to_owned();
        let (roots, certificates, key) =
            (at("ca.pem".into()), at(format!("{holder}.pem")), at(format!("{holder}.key")));
        let tls = ["--engine-roots", &roots, "--engine-certificates", &certificates, "--engine-private-key", &key];
        pinseal(&[&watch[..], &tls].concat())
    };
    assert_eq!(by("client"), (true, String::new()));
    let (watched, printed) = by("edge");
    assert!(!watched && printed.contains("add `operator` to the roles of this entry"), "{printed}");
    let (watched, printed) = pinseal(&watch);
    assert!(!watched && printed.contains("without TLS") && printed.contains("--engine-roots"), "{printed}");
}

#[test]
fn a_peer_without_a_trusted_certificate_is_rejected() {
    let directory = tempfile::tempdir().unwrap();
    let (engine_tls, _) = certificates(directory.path());
    let engine = EngineProcess::start(directory.path(), &format!("{engine_tls}\n{}", peer("edge", "\"edge-set\"")));
    let stranger = tempfile::tempdir().unwrap();
    let (_, stranger_tls) = certificates(stranger.path());
    for (scheme, tls) in [("http", ""), ("https", stranger_tls.as_str())] {
        let address = format!("addresses = [\"{scheme}://localhost:{}\"]\n{tls}", port_of(&engine));
        let edge = EdgeProcess::start(stranger.path(), &address, "");
        let answer = edge.post("/pincontrol/v2/plastic/6002?auditUser=it", "{\"scope\":\"SET_PIN\"}");
        assert_eq!(answer.fault(), (503, "ENGINE_UNAVAILABLE"));
        let log = edge.log();
        let line = log.lines().find(|line| line.contains("a request failed") && line.contains(answer.member("id")));
        let line = line.unwrap_or_else(|| panic!("no reason in {log}"));
        assert!(tls.is_empty() || line.contains("invalid peer certificate"), "{line}");
    }
}

#[test]
fn new_certificates_are_used_without_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (engine_tls, edge_tls) = certificates(directory.path());
    let engine = EngineProcess::start(directory.path(), &format!("{engine_tls}\n{}", peer("edge", "\"edge-set\"")));
    std::fs::rename(directory.path().join("pki"), directory.path().join("pki-before")).unwrap();
    certificates(directory.path());
    // A new connection checks the files, at most once in two seconds.
    std::thread::sleep(std::time::Duration::from_millis(2_100));
    let address = format!("addresses = [\"https://localhost:{}\"]\n{edge_tls}", port_of(&engine));
    let edge = EdgeProcess::start(directory.path(), &address, "");
    let answer = edge.post("/pincontrol/v2/plastic/6003?auditUser=it", "{\"scope\":\"SET_PIN\"}");
    assert_eq!(answer.status, 201, "{}", answer.text);
}

#[test]
fn an_engine_refuses_tls_without_peers_and_peers_without_tls() {
    let directory = tempfile::tempdir().unwrap();
    let (engine_tls, _) = certificates(directory.path());
    let config = directory.path().join("engine.toml");
    for (lines, remedy) in [(engine_tls, "Add [[peers]]"), (peer("edge", "\"edge-set\""), "Add [tls]")] {
        std::fs::write(&config, format!("listen = \"127.0.0.1:0\"\n{lines}\n")).unwrap();
        let (served, printed) = pinseal(&["engine", "--config", config.to_str().unwrap()]);
        assert!(!served && printed.contains(remedy), "{printed}");
        assert_eq!(printed.lines().count(), 1, "{printed}");
    }
}

#[test]
fn the_lines_that_pki_dev_prints_serve() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("pki");
    let output = Command::new(env!("CARGO_BIN_EXE_pinseal")).args(["pki", "dev", "--out"]).arg(out).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (engine, edge) = text.split_once("# engine.toml\n").unwrap().1.split_once("# edge.toml\n[engine]\n").unwrap();
    for holder in ["edge", "client", "operator"] {
        assert!(engine.contains(&format!("certificate_name = \"{holder}.pinseal.test\"")), "{engine}");
    }
    let engine = EngineProcess::start(directory.path(), engine);
    let edge = EdgeProcess::start(directory.path(), &edge.replace("50051", port_of(&engine)), "");
    let answer = edge.post("/pincontrol/v2/plastic/6005?auditUser=it", "{\"scope\":\"SET_PIN\"}");
    assert_eq!(answer.status, 201, "{}", answer.text);
}

#[test]
fn beyond_loopback_no_service_listens_without_tls() {
    let directory = tempfile::tempdir().unwrap();
    let client = one_client(directory.path());
    for (service, more, why) in [("engine", "", "without mutual TLS"), ("edge", client.as_str(), "without TLS")] {
        let config = directory.path().join(format!("{service}.toml"));
        std::fs::write(&config, format!("listen = \"0.0.0.0:0\"\n{more}")).unwrap();
        let (served, printed) = pinseal(&[service, "--config", config.to_str().unwrap()]);
        assert!(!served && printed.contains(why), "{printed}");
        assert_eq!(printed.lines().count(), 1, "{printed}");
    }
}

#[test]
fn an_edge_uses_plaintext_only_to_a_local_engine() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("edge.toml");
    for (address, why) in [
        ("https://127.0.0.1:50051", "without TLS"),
        ("http://192.0.2.1:50051", "without TLS"),
        ("127.0.0.1:50051", "is not the address of an engine"),
    ] {
        let client = one_client(directory.path());
        let text = format!("listen = \"127.0.0.1:0\"\n[engine]\naddresses = [\"{address}\"]\n{client}");
        std::fs::write(&config, text).unwrap();
        let (served, printed) = pinseal(&["edge", "--config", config.to_str().unwrap()]);
        assert!(!served && printed.contains(why) && printed.contains(address), "{printed}");
    }
}

#[test]
fn an_edge_without_a_configured_client_does_not_start() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("edge.toml");
    std::fs::write(&config, "listen = \"127.0.0.1:0\"\n").unwrap();
    let (served, printed) = pinseal(&["edge", "--config", config.to_str().unwrap()]);
    assert!(!served && printed.contains("add [[clients]]"), "{printed}");
    let (served, printed) = pinseal(&["edge"]);
    assert!(!served && printed.contains("--config"), "{printed}");
}

#[test]
fn a_wrong_configuration_is_one_clear_line() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("engine.toml");
    for (text, why) in [
        ("lisen = 1", "lisen"),
        ("[control]\nlifetime_seconds = 0", "control.lifetime_seconds"),
        ("[vault]\npassphrase = { env = \"PINSEAL_NOT_SET\" }", "PINSEAL_NOT_SET"),
    ] {
        std::fs::write(&config, format!("data_directory = {:?}\n{text}", directory.path())).unwrap();
        let (served, printed) = pinseal(&["engine", "--config", config.to_str().unwrap()]);
        assert!(!served && printed.contains(why), "{printed}");
    }
    let (served, printed) = pinseal(&["engine", "--config", "/nowhere.toml"]);
    assert!(!served && printed.contains("/nowhere.toml"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_engine_on_the_same_store_is_rejected() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let (served, printed) = pinseal(&["engine", "--config", directory.path().join("engine.toml").to_str().unwrap()]);
    assert!(!served && printed.contains("in use by another process"), "{printed}");

    let mut client = engine.client().await;
    client.set(&device(), "6004", "2580").await.unwrap();
    assert_eq!(engine.terminate(), 0);
    let store = directory.path().join("data/store");
    let (holds, printed) = pinseal(&["audit", "verify", "--store", store.to_str().unwrap()]);
    assert!(holds, "{printed}");
}
