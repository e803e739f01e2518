//! One-way records: no rotation moves them, a ceremony counts those under an older key, and gives them up only confirmed
//! twice.

use std::{fs, path::Path};

use support::{
    ceremony::{ALL, Ceremony, ENOUGH, said},
    engine_process::{EngineProcess, device},
};

/// An engine that stores PINs one-way, with its keys in the vault of a ceremony.
fn engine(ceremony: &Ceremony, directory: &Path) -> EngineProcess {
    fs::create_dir_all(ceremony.at("data")).unwrap();
    let (vault, key) = (ceremony.at("data/vault"), ceremony.at("data/vault.key"));
    let lines = format!("[vault]\nfile = {vault:?}\nkey_file = {key:?}\n[boundary]\nform = \"one-way\"");
    EngineProcess::start(directory, &lines)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_way_pins_under_an_older_key_are_given_up_only_confirmed_twice() {
    let (ceremony, serving) = (Ceremony::prepared(), tempfile::tempdir().unwrap());
    let device = device();
    let serve = || engine(&ceremony, serving.path());
    let first = serve();
    let mut client = first.client().await;
    client.set(&device, "9100", "271828").await.unwrap();
    client.set(&device, "9101", "314159").await.unwrap();
    // Nothing shows a one-way record.
    assert!(client.view(&device, "9100").await.is_err());
    drop(client);
    assert_eq!(first.terminate(), 0);
    ceremony.begin();
    ceremony.well("make", ENOUGH, &["storage-one-way"]);
    ceremony.well("activate", ENOUGH, &["storage-one-way/2"]);

    let second = serve();
    // A PIN that is set moves its record; the rotation leaves the other one, and says so.
    second.client().await.set(&device, "9101", "161803").await.unwrap();
    assert_eq!(support::rotation::watched(&second).pop().unwrap()["state"], "done");
    let retire = ["storage-one-way/1", "--engine", second.address()];
    let refused = ceremony.refused("retire", ENOUGH, &retire);
    assert!(refused.contains("1 PIN records are under storage-one-way/1"), "{refused}");
    let abandon = [&retire[..], &["--abandon"]].concat();
    for typed in ["storage-one-way/1\n", "storage-one-way/1\n2\n", "storage-one-way/2\n1\n"] {
        let output = ceremony.with_input("retire", ENOUGH, &abandon, typed);
        assert!(!output.status.success() && said(&output).contains("the typed text is not"), "{}", said(&output));
    }
    let flags = ["--confirm-abandon", "storage-one-way/1", "--confirm-abandoned-pins", "1"];
    ceremony.well("retire", ENOUGH, &[&abandon[..], &flags].concat());
    let line: serde_json::Value = serde_json::from_str(ceremony.transcript().lines().last().unwrap()).unwrap();
    let count = &line["entry"]["count"];
    assert_eq!((&count["by"], &count["records"]), (&"abandon".into(), &1.into()), "{count}");
    ceremony.well("end", ALL, &[]);
    let verified = ceremony.verify(&[]);
    assert!(String::from_utf8_lossy(&verified.stdout).contains("1 one-way PINs are given up, confirmed twice"));
}
