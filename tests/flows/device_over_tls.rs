//! `pinseal device` in front of an edge with TLS: by the roots of the edge alone, and with a client certificate.

use std::{path::Path, process::Command};

use serde_json::Value;
use support::{
    certificates::{certificates, port_of},
    edge_process::{EdgeProcess, TOKEN},
    engine_process::EngineProcess,
};

/// Runs the simulator with these arguments: its JSON object, or its standard error.
fn device(arguments: &[&str]) -> Result<Value, String> {
    let mut device = Command::new(env!("CARGO_BIN_EXE_pinseal"));
    let output = device.arg("device").args(arguments).env_remove("PINSEAL_TOKEN").output().unwrap();
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

fn start_edge(directory: &Path, engine: &EngineProcess, clients: &str) -> EdgeProcess {
    let at = |file: &str| directory.join("pki").join(file);
    let tls = format!(
        "[tls]\ncertificates = {:?}\nprivate_key = {:?}\nclient_roots = {:?}\nclient_certificate = \"optional\"\n",
        at("engine.pem"),
        at("engine.key"),
        at("ca.pem")
    );
    let engine = format!("addresses = [\"http://localhost:{}\"]", port_of(engine));
    EdgeProcess::start(directory, &engine, &format!("{tls}{clients}"))
}

#[test]
fn the_device_sets_and_views_a_pin_over_tls() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    certificates(directory.path());
    let client = "[[clients]]\nname = \"wallet\"\ntenant = \"bank\"\ncertificate_name = \"client.pinseal.test\"\n";
    let edge = start_edge(directory.path(), &engine, client);
    let url = edge.url.replace("http://127.0.0.1", "https://localhost");
    let at = |file: &str| directory.path().join("pki").join(file).to_str().unwrap().to_owned();
    let (roots, certificate, key) = (at("ca.pem"), at("client.pem"), at("client.key"));
    let card = ["--edge", &url, "--plastic-id", "6203", "--json"];
    let by_token = ["--edge-roots", &roots, "--token", TOKEN];
    let by_certificate = ["--edge-roots", &roots, "--edge-certificates", &certificate, "--edge-private-key", &key];
    let view = |credentials: &[&str]| device(&[&["view-pin"], &card[..], credentials].concat());

    let set = device(&[&["set-pin", "--pin", "271828"], &card[..], &by_token[..]].concat()).unwrap();
    assert_eq!(set["outcome"]["pinSet"], true);
    // The certificate is the only credential.
    assert_eq!(view(&by_certificate).unwrap()["outcome"]["pin"], "271828");
    // A certificate of no client, and none.
    let (other, other_key) = (at("operator.pem"), at("operator.key"));
    let refused =
        view(&["--edge-roots", &roots, "--edge-certificates", &other, "--edge-private-key", &other_key]).unwrap_err();
    assert!(refused.contains("401"), "{refused}");
    let unnamed = view(&["--token", TOKEN]).unwrap_err();
    assert!(unnamed.contains("--edge-roots"), "{unnamed}");
    // A certificate with the key of another.
    let unfit = view(&["--edge-roots", &roots, "--edge-certificates", &certificate, "--edge-private-key", &other_key])
        .unwrap_err();
    assert!(unfit.contains("client.pem"), "{unfit}");
    // Roots that do not verify the edge.
    let strange = view(&["--edge-roots", &certificate, "--token", TOKEN]).unwrap_err();
    assert!(strange.contains("certificate"), "{strange}");
}
