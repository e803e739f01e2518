//! Floods of HTTP/2 frames and slow connections: the good clients are served, and the memory of the services is bounded.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use support::{
    certificates::{certificates, peer},
    edge_process::EdgeProcess,
    engine_process::EngineProcess,
};

/// The most that a service may grow under an attack, in bytes.
const GROWTH_MAX: u64 = 128 << 20;
/// The attacks that the HTTP/2 library ends with GOAWAY and ENHANCE_YOUR_CALM.
const CALMED: [&str; 3] = ["rapid-reset", "continuation", "empty-data"];

/// Runs the attacks of these names, or all without names, by `pinseal bench floods`, with the same program as the services.
/// Returns the figures.
fn attacks(transport: &str, names: &[&str]) -> Vec<Value> {
    let directory = tempfile::tempdir().unwrap();
    let figures = directory.path().join("figures.json");
    let output = Command::new(env!("CARGO_BIN_EXE_pinseal"))
        .args([
            "bench",
            "floods",
            "--transport",
            transport,
            "--seconds",
            "0.5",
            "--rate",
            "16",
            "--slow-connections",
            "250",
        ])
        .args(names.iter().flat_map(|name| ["--attack", name]))
        .arg("--json")
        .arg(&figures)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let figures: Value = serde_json::from_str(&std::fs::read_to_string(figures).unwrap()).unwrap();
    figures["attacks"].as_array().unwrap().clone()
}

fn good_clients_are_served(transport: &str, names: &[&str], expected: usize) {
    let attacks = attacks(transport, names);
    assert_eq!(attacks.len(), expected);
    for attack in &attacks {
        let name = attack["attack"].as_str().unwrap();
        for client in attack["clients"].as_array().unwrap() {
            for phase in ["quiet", "attacked"] {
                assert!(client[phase]["pins"].as_u64().unwrap() > 0, "{attack:#}");
            }
            assert_eq!(client["errors"], 0, "{attack:#}");
        }
        for service in attack["services"].as_array().unwrap() {
            let [before, after] =
                ["resident_bytes_before", "resident_bytes_after"].map(|name| service[name].as_u64().unwrap());
            assert!(after < before + GROWTH_MAX, "{attack:#}");
        }
        let attacker = &attack["attacker"];
        assert!(attacker["connections"].as_u64().unwrap() > 0, "{attack:#}");
        if CALMED.contains(&name) {
            assert!(attacker["closed"].as_u64().unwrap() > 0, "{attack:#}");
            assert!(attacker["calmed"].as_u64().unwrap() > 0, "{attack:#}");
        }
    }
}

#[test]
fn an_attacker_without_tls_keeps_no_client_out() {
    // All of them run with TLS; here one of each kind, on edge and engine.
    let (names, expected): (&[&str], _) = if std::env::var_os("PINSEAL_FLOODS_ALL").is_some() {
        (&[], 23)
    } else {
        (&["rapid-reset", "silent", "slow-headers"], 6)
    };
    good_clients_are_served("plain", names, expected);
}

#[test]
fn an_attacker_with_tls_keeps_no_client_out() {
    good_clients_are_served("mtls", &[], 25);
}

/// Sends a beginning, then a byte a second. Returns whether the server closes the connection within a generous limit: the
/// longest timeout is that of an unanswered PING of the engine, 40 s.
fn is_closed(address: &str, begin: &[u8]) -> bool {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut written = stream.write_all(begin);
    let began = Instant::now();
    let mut heard = [0; 4096];
    while written.is_ok() && began.elapsed() < Duration::from_secs(180) {
        match stream.read(&mut heard) {
            Ok(0) => return true,
            Ok(_) => {}
            // No byte within a second.
            Err(_) => written = stream.write_all(b"a"),
        }
    }
    written.is_err()
}

#[test]
fn a_slow_connection_is_closed() {
    let [plain, secret] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let engine = EngineProcess::start_quiet(plain.path(), "");
    let edge = EdgeProcess::start_quiet(plain.path(), &format!("addresses = [\"http://{}\"]", engine.address()));
    let (tls, _) = certificates(secret.path());
    let tls_engine = EngineProcess::start_quiet(secret.path(), &format!("{tls}\n{}", peer("edge", "\"edge-set\"")));
    let tls_edge = EdgeProcess::start(secret.path(), &format!("addresses = [\"http://{}\"]", engine.address()), &tls);
    let [edge, tls_edge] = [&edge, &tls_edge].map(|edge| edge.url.trim_start_matches("http://"));

    let client_hello = &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..];
    let http1_headers = &b"POST /v3/set HTTP/1.1\r\nhost: edge\r\nx-slow: "[..];
    let preface = &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0"[..];
    // A HEADERS frame of 16 KiB that never ends; a whole one, and a DATA frame of 16 KiB.
    let headers = [preface, b"\0\x40\0\x01\x04\0\0\0\x01\x83\x86\x01\x04edge"].concat();
    let body =
        [preface, b"\0\0\x12\x01\x04\0\0\0\x01\x83\x86\x01\x04edge\x04\x08/v3/view\0\x40\0\0\0\0\0\0\x01"].concat();
    thread::scope(|scope| {
        for (what, address, begin) in [
            ("a ClientHello to the edge", tls_edge, client_hello),
            ("a ClientHello to the engine", tls_engine.address(), client_hello),
            ("headers of HTTP/1.1 to the edge", edge, http1_headers),
            ("headers of HTTP/2 to the edge", edge, &headers),
            ("a body to the edge", edge, &body),
            ("half a preface to the engine", engine.address(), &preface[..14]),
            ("headers to the engine", engine.address(), &headers),
            ("a body to the engine", engine.address(), &body),
        ] {
            scope.spawn(move || assert!(is_closed(address, begin), "the server waits for {what}"));
        }
    });
}
