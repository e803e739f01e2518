//! Keys are reloaded while the engine serves: earlier requests, a boundary that opens its keys slowly or never, and a
//! stop of the engine during the reload.

use std::{
    fs,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use support::{
    ceremony::{ALL, Ceremony, ENOUGH},
    engine_process::{EngineProcess, device},
    rotation::{records_under, settings, watched},
    wait::{signal, soon, stop},
};

/// Long enough for a call to reach the boundary.
const ON_ITS_WAY: Duration = Duration::from_millis(200);

/// Makes and activates another storage key.
fn make_storage_key(ceremony: &Ceremony) {
    ceremony.well("begin", ALL, &["--roster", ceremony.at("roster.toml").to_str().unwrap()]);
    ceremony.well("make", ENOUGH, &["storage"]);
    ceremony.well("activate", ENOUGH, &["storage/2"]);
}

async fn logged(engine: &EngineProcess, times: usize, what: &str) {
    soon(what, async || (engine.log().matches(what).count() >= times).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_translated_before_a_reload_uses_the_new_key() {
    let ceremony = Ceremony::prepared();
    let directory = ceremony.directory();
    let device = Arc::new(device());
    let engine = EngineProcess::start(directory, &settings(2_000));
    engine.client().await.set(&device, "970000", "2580147").await.unwrap();
    let mut client = engine.client().await;
    let (control, block) = client.ready_to_set(&device, "970001", "271828").await.unwrap();
    make_storage_key(&ceremony);

    // A boundary that answers late, as with a slow token.
    let before = engine.hsm_id().unwrap();
    stop(before);
    let late = tokio::spawn(async move { client.set_block(&control, &block).await });
    tokio::time::sleep(ON_ITS_WAY).await;
    signal(engine.id(), "HUP");
    logged(&engine, 1, "no PIN comes under an older").await;
    signal(before, "CONT");
    late.await.unwrap().unwrap();

    assert_eq!(engine.client().await.view(&device, "970001").await.unwrap(), "271828");
    let rotated = watched(&engine).pop().unwrap();
    assert_eq!(
        (&rotated["state"], &rotated["reencrypted_count"]),
        (&"done".into(), &1.into()),
        "the first PIN alone was under it"
    );
    ceremony.well("retire", ENOUGH, &["storage/1", "--engine", engine.address()]);
    assert_eq!(engine.terminate(), 0);
    assert_eq!(records_under(directory).await, (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boundary_lost_during_a_reload_is_restarted_at_once() {
    let ceremony = Ceremony::prepared();
    let directory = ceremony.directory();
    let engine = EngineProcess::start(directory, &settings(2_000));
    let serving = engine.hsm_id().unwrap();

    // A process that opens a pipe without a writer waits.
    let (vault, kept) = (directory.join("data/vault"), directory.join("kept"));
    fs::rename(&vault, &kept).unwrap();
    assert!(Command::new("mkfifo").arg(&vault).status().unwrap().success());
    signal(engine.id(), "HUP");
    let opening = async || engine.hsm_ids().into_iter().find(|id| *id != serving);
    let opening = soon("no process opens the keys", opening).await;
    tokio::time::sleep(ON_ITS_WAY).await;
    fs::rename(&kept, &vault).unwrap();
    signal(serving, "KILL");
    let again = async || engine.hsm_ids().into_iter().find(|id| ![serving, opening].contains(id));
    soon("it was not started again", again).await;
    soon("it does not serve", async || engine.serves().await.then_some(())).await;
    engine.client().await.set(&device(), "970000", "2580147").await.unwrap();
    assert_eq!(engine.terminate(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_without_a_boundary_reports_that_and_stops() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    fs::write(directory.path().join("data/vault"), "no vault").unwrap();
    signal(engine.hsm_id().unwrap(), "KILL");
    logged(&engine, 1, "did not start").await;
    signal(engine.id(), "HUP");
    logged(&engine, 1, "keeps the keys in use").await;
    soon("health says that it serves", async || (!engine.serves().await).then_some(())).await;
    // The engine is asked for a boundary and then stopped, before a boundary can answer.
    signal(engine.id(), "HUP");
    assert_eq!(engine.terminate(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_serves_and_stops_with_its_output_unread() {
    let directory = tempfile::tempdir().unwrap();
    let mut engine = EngineProcess::start(directory.path(), "");
    engine.stop_reading();
    signal(engine.id(), "HUP");
    logged(&engine, 1, "has reloaded its keys").await;
    engine.client().await.set(&device(), "970000", "2580147").await.unwrap();
    assert_eq!(engine.terminate(), 0);
    let mut export = Command::new(env!("CARGO_BIN_EXE_pinseal"));
    export.args(["audit", "export", "--store"]).arg(directory.path().join("data/store"));
    let exported = String::from_utf8(export.output().unwrap().stdout).unwrap();
    assert!(exported.lines().last().unwrap().contains("\"engine_stopped\""), "{exported}");

    // An export does not report success for bytes that were not written.
    let mut cut_short = export.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(cut_short.stdout.take());
    let ended = cut_short.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), &ended.stderr[..]), (Some(141), &b""[..]));
}
