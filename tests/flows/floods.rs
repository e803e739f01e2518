//! Floods of HTTP/2 frames and slow connections: the good clients are served, and the memory of the services is bounded.

use std::process::Command;

use serde_json::Value;

/// The most that a service may grow under an attack, in bytes.
const GROWTH_MAX: u64 = 128 << 20;
/// The attacks that the HTTP/2 library ends with GOAWAY and ENHANCE_YOUR_CALM.
const CALMED: [&str; 3] = ["rapid-reset", "continuation", "empty-data"];

/// Runs each attack by `pinseal bench floods`, with the same program as the services, and returns the figures.
fn attacks(transport: &str) -> Vec<Value> {
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
        .arg("--json")
        .arg(&figures)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    println!("{}", String::from_utf8_lossy(&output.stdout));
    let figures: Value = serde_json::from_str(&std::fs::read_to_string(figures).unwrap()).unwrap();
    figures["attacks"].as_array().unwrap().clone()
}

fn good_clients_are_served(transport: &str, expected: usize) {
    let attacks = attacks(transport);
    assert_eq!(attacks.len(), expected);
    for attack in &attacks {
        let name = attack["attack"].as_str().unwrap();
        for client in attack["clients"].as_array().unwrap() {
            for phase in ["quiet", "attacked"] {
                assert!(client[phase]["pins"].as_u64().unwrap() > 0, "{attack:#}");
                assert_eq!(client[phase]["errors"], 0, "{attack:#}");
            }
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
    good_clients_are_served("plain", 23);
}

#[test]
fn an_attacker_with_tls_keeps_no_client_out() {
    good_clients_are_served("mtls", 25);
}
