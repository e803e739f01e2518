//! The forms of RSA-OAEP for a device: MGF1-SHA-256, and MGF1-SHA-1 for a client until a date.

use std::{io::Write, os::unix::fs::OpenOptionsExt};

use serde_json::json;

use support::{
    edge_process::{EdgeProcess, TOKEN},
    engine_process::{EngineProcess, METRICS, device},
    java::{java_with_default_oaep, ran_well},
};

const OLD_TOKEN: &str = "old-token-0123456789abcdef";

#[test]
fn a_device_with_mgf1_sha1_is_served_until_its_clients_date() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), METRICS);
    let token = directory.path().join("old-token");
    let mut file = std::fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(&token).unwrap();
    file.write_all(OLD_TOKEN.as_bytes()).unwrap();
    let edge = |until: &str| {
        let client = format!(
            "[[clients]]\nname = \"old\"\ntenant = \"bank\"\nbearer = {{ file = {token:?} }}\noaep_mgf1 = \"sha-1\"\n\
             oaep_mgf1_until = {until:?}\n"
        );
        EdgeProcess::start(directory.path(), &format!("addresses = [\"http://{}\"]", engine.address()), &client)
    };
    let count =
        |number: u32| engine.metrics().lines().any(|line| line == format!("pinseal_oaep_mgf1_sha1_total {number}"));

    let serving = edge("2999-12-31");
    assert!(count(0));
    ran_well(&java_with_default_oaep(&serving.url, OLD_TOKEN, "6601"));
    // The tzpk of the set and that of the view.
    assert!(count(2), "{}", engine.metrics());
    let refused = java_with_default_oaep(&serving.url, TOKEN, "6602");
    assert!(!refused.status.success(), "a client without the form got MGF1-SHA-1");
    assert!(count(2));
    drop(serving);

    let expired = edge("2020-01-01");
    assert!(expired.log().contains("oaep_mgf1_until of a client has passed"));
    let bearer = format!("Bearer {OLD_TOKEN}");
    for (plastic_id, scope, path) in [("6603", "SET_PIN", "/pin/v3/set/tzpk"), ("6601", "VIEW_PIN", "/pin/v3/view")] {
        let open = format!("/pin/pincontrol/v2/plastic/{plastic_id}?auditUser=it");
        let opened = expired.post_as(&bearer, &open, &json!({ "scope": scope }).to_string());
        let key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, device().public_key_der());
        let body = json!({ "controlId": opened.member("id"), "publicKey": key }).to_string();
        let answer = expired.post_as(&bearer, &format!("{path}?auditUser=it"), &body);
        assert_eq!(answer.fault(), (403, "OAEP_MGF1_EXPIRED"), "{path}");
    }
    assert!(count(2));
}
