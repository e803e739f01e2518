//! `pinseal store`, `audit` and `ceremony` over a PostgreSQL database: an embedded store is copied into the database and back,
//! engines serve on each copy, damage is reported, and a storage key is retired while an engine runs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::command::{done, refused, text};
use postgres_server::Server;
use support::{
    ceremony::{ALL, Ceremony, ENOUGH},
    engine_process::{EngineProcess, device},
    rotation::watched,
};

fn config(directory: &Path, server: &Server, engine: &str) -> PathBuf {
    let path = directory.join(format!("{engine}.toml"));
    fs::write(&path, server.section(engine)).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_moves_to_a_database_and_back() {
    let (server, directory) = (Server::start(), tempfile::tempdir().unwrap());
    let device = device();
    let engine = EngineProcess::start(directory.path(), "");
    let mut client = engine.client().await;
    for number in 1..=3 {
        client.set(&device, &format!("{}", 8_300 + number), &format!("48{number}7")).await.unwrap();
    }
    // An engine uses the store.
    let (one, two) = (config(directory.path(), &server, "engine-1"), config(directory.path(), &server, "engine-2"));
    let (store, back) = (directory.path().join("data/store"), directory.path().join("back"));
    let copy = ["store", "copy", "--from-store", text(&store), "--to-config", text(&one)];
    let in_use = refused(1, &copy);
    assert!(in_use.contains("in use by another process"), "{in_use}");
    assert_eq!(engine.terminate(), 0);

    assert!(refused(1, &["store", "check", "--config", text(&one)]).contains("have version 0"));
    assert!(done(&["store", "migrate", "--config", text(&one)]).contains("the tables are made, version 2"));
    assert!(done(&["store", "migrate", "--config", text(&one)]).contains("have version 2 already"));
    let copied = done(&copy);
    assert!(copied.contains("compared: cards: 3, PINs: 3, controls kept for retries: 3"), "{copied}");
    assert!(done(&copy).contains("the copy was complete before"));

    let engine = EngineProcess::start(directory.path(), &server.section("engine-1"));
    let other = tempfile::tempdir().unwrap();
    let mut client = engine.client().await;
    client.set(&device, "8304", "4847").await.unwrap();
    assert_eq!(client.view(&device, "8301").await.unwrap(), "4817");
    let checkpoint = directory.path().join("data/audit/checkpoint");
    let whole = done(&["store", "check", "--config", text(&one), "--checkpoint", text(&checkpoint)]);
    assert!(whole.contains("cards: 4, PINs: 4") && whole.contains("is whole"), "{whole}");
    assert!(whole.contains("the database holds audit entry"), "{whole}");
    let listed = done(&["store", "engines", "--config", text(&two)]);
    assert!(listed.contains("engine-1: registered; last entry ") && listed.contains("ISO-4 1"), "{listed}");
    let running = refused(1, &["store", "deregister", "--config", text(&two), "--engine", "engine-1"]);
    assert!(running.contains("the engine engine-1 runs"), "{running}");
    refused(1, &["store", "deregister", "--config", text(&two), "--engine", "engine-9"]);

    // A second chain; both verify while the first engine serves.
    assert!(done(&["audit", "verify", "--config", text(&two)]).contains("engine-1: the audit chain holds"));
    let exported = done(&["audit", "export", "--config", text(&two), "--engine", "engine-1"]);
    assert!(exported.contains("\"type\":\"store_restored\""), "{exported}");
    let cards = other.path().join("cards");
    let found = done(&["audit", "cards", "--config", text(&one), "--from", "1", "--to", text(&cards)]);
    assert!(found.contains("on: 4"), "{found}");
    assert_proven(directory.path(), &one, &two);
    let keep = done(&["audit", "verify", "--config", text(&one), "--engine", "engine-1"]);
    let head = keep.rsplit_once("checkpoint ").unwrap().1.trim();
    let expected = format!("engine-1={head}");
    done(&["audit", "verify", "--config", text(&one), "--expect-of", &expected]);
    let cut = format!("engine-1={}", head.replacen(|first: char| first.is_ascii_digit(), "9", 1));
    refused(1, &["audit", "verify", "--config", text(&one), "--expect-of", &cut]);
    let out = refused(1, &["store", "copy", "--from-config", text(&one), "--to-store", text(&back)]);
    assert!(out.contains("engine-1 are registered"), "{out}");
    assert_eq!(engine.terminate(), 0);

    let admin = server.admin().await;
    admin.execute("UPDATE cards SET generation = generation + 1 WHERE plastic_id = '8302'", &[]).await.unwrap();
    let damaged = refused(3, &["store", "check", "--config", text(&one)]);
    assert!(damaged.contains("damage: cards of ") && damaged.contains("places: 1"), "{damaged}");
    let stopped = refused(1, &["store", "copy", "--from-config", text(&one), "--to-store", text(&back)]);
    assert!(stopped.contains("is damaged") && !back.exists(), "{stopped}");
    admin.execute("UPDATE cards SET generation = generation - 1 WHERE plastic_id = '8302'", &[]).await.unwrap();
    let removed = directory.path().join("back.copying");
    let copied = done(&["store", "copy", "--from-config", text(&one), "--to-store", text(&back)]);
    assert!(copied.contains("cards: 4, PINs: 4") && !removed.exists(), "{copied}");
    assert!(done(&["store", "check", "--store", text(&back)]).contains("is whole"));
    let engine = EngineProcess::start(directory.path(), &format!("[store]\ndirectory = {back:?}"));
    let mut client = engine.client().await;
    assert_eq!(client.view(&device, "8304").await.unwrap(), "4847");
    assert_eq!(engine.terminate(), 0);
}

/// Proves an entry and an older checkpoint of engine-1 from its database while the engine serves. `two` is the configuration of
/// another engine.
fn assert_proven(directory: &Path, one: &Path, two: &Path) {
    let [checkpoint, key, verifier] =
        ["checkpoint", "signing-key", "verifier-key"].map(|name| directory.join("data/audit").join(name));
    let (kept, proof) = (directory.join("kept"), directory.join("proof.json"));
    fs::copy(&checkpoint, &kept).unwrap();
    let common = ["--checkpoint", text(&kept), "--signing-key", text(&key)];
    let verified = |arguments: &[&str]| {
        let printed = done(&[&["audit", "prove"], arguments, &common[..]].concat());
        fs::write(&proof, printed).unwrap();
        done(&["audit", "verify", "--proof", text(&proof), "--verifier-key", text(&verifier)])
    };
    let of_engine = ["--config", text(two), "--engine", "engine-1"];
    for source in [&["--config", text(one)][..], &of_engine] {
        let entry = verified(&[&["1"], source].concat());
        assert!(entry.contains("entry 1 is in the chain"), "{entry}");
        let same = verified(&[&["--since", text(&kept)], source].concat());
        assert!(same.contains("continues that of checkpoint"), "{same}");
    }
    // The other engine has no chain yet.
    let other = refused(1, &[&["audit", "prove", "1", "--config", text(two)], &common[..]].concat());
    assert!(other.contains("has no engine engine-2"), "{other}");
    refused(2, &[&["audit", "prove", "1"], &common[..]].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_key_of_a_database_is_retired_while_its_engine_runs() {
    let (server, ceremony) = (Server::start(), Ceremony::prepared());
    let directory = ceremony.directory();
    let device = device();
    let section = server.section("engine-1");
    let engine = EngineProcess::start(directory, &section);
    let mut client = engine.client().await;
    for number in 1..=3 {
        client.set(&device, &format!("{}", 8_300 + number), &format!("48{number}7")).await.unwrap();
    }
    assert_eq!(engine.terminate(), 0);
    ceremony.well("begin", ALL, &["--roster", ceremony.at("roster.toml").to_str().unwrap()]);
    ceremony.well("make", ENOUGH, &["storage"]);
    ceremony.well("activate", ENOUGH, &["storage/2"]);
    let records = ceremony.refused("retire", ENOUGH, &["storage/1"]);
    assert!(records.contains("3 PIN records are under storage/1"), "{records}");

    let engine = EngineProcess::start(directory, &section);
    watched(&engine);
    let admin = server.admin().await;
    let retired = async || {
        let row = admin.query_one("SELECT retired_versions FROM key_versions", &[]).await.unwrap();
        row.get::<_, Vec<i32>>(0)
    };
    assert_eq!(retired().await, [0, 0, 0, 0]);
    ceremony.well("retire", ENOUGH, &["storage/1"]);
    assert_eq!(retired().await, [1, 1, 0, 0]);
    let config = config(&ceremony.directory().join("data"), &server, "engine-1");
    for engine in ["engine-1", "operator"] {
        let one = done(&["audit", "verify", "--config", text(&config), "--engine", engine]);
        assert!(one.contains("the audit chain holds"), "{one}");
    }
    let all = done(&["audit", "verify", "--config", text(&config)]);
    assert!(
        all.contains("engine-1: the audit chain holds") && all.contains("operator: the audit chain holds"),
        "{all}"
    );
    let exported = done(&["audit", "export", "--config", text(&config), "--engine", "operator"]);
    assert!(exported.contains("\"type\":\"storage_keys_retired\""), "{exported}");
    assert!(done(&["store", "check", "--config", text(&config)]).contains("is whole"));
    let newest = ceremony.refused("retire", ENOUGH, &["storage/2"]);
    assert!(newest.contains("is the newest active version"), "{newest}");
    // Seal keys have no versions in the database: the engine is asked.
    ceremony.well("make", ENOUGH, &["seal"]);
    ceremony.well("activate", ENOUGH, &["seal/2"]);
    let unasked = ceremony.refused("retire", ENOUGH, &["seal/1"]);
    assert!(unasked.contains("the engines engine-1 may seal under seal/1"), "{unasked}");
    assert_eq!(client_view(&engine, &device).await, "4817");
    assert_eq!(engine.terminate(), 0);
    // Neither an engine that has ended nor the operator can be asked.
    let early = ceremony.refused("retire", ENOUGH, &["seal/1"]);
    assert!(early.contains("seal/1") && !early.contains("may seal under"), "{early}");
    let unasked = ceremony.refused(
        "destroy",
        ENOUGH,
        &["storage/1", "--no-store", "--confirm", "storage/1", "--confirm-check-value", "none"],
    );
    assert!(unasked.contains("--no-store does not ask the database"), "{unasked}");
}

async fn client_view(engine: &EngineProcess, device: &device::Device) -> String {
    engine.client().await.view(device, "8301").await.unwrap()
}
