//! A full disk and a failed sync: the engine reports the reason, ends, and restarts without loss.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Command, Stdio},
};

use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use support::{
    edge_process::EdgeProcess,
    engine_process::{Client, EngineProcess, device, reason},
    wait::soon,
};

use crate::{disk_shim, small_disk::SmallDisk};

const LONG_LIVED: &str = "[control]\nlifetime_seconds = 3600";
/// Without a reserve the disk fills.
const NO_RESERVE: &str = "[control]\nlifetime_seconds = 3600\n[store]\nreserve_mebibytes = 0";

/// Waits until the engine ends: its exit code, and its last line.
async fn end_of(engine: EngineProcess) -> (i32, String) {
    let last = || engine.log().lines().rfind(|line| line.starts_with("pinseal: ")).map(str::to_owned);
    let said = soon("the engine does not end", async || last()).await;
    (engine.wait(), said)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_with_a_full_disk_ends_and_restarts_with_space() {
    let directory = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&directory.path().join("data"), 6);
    let pinseal = || disk.command(env!("CARGO_BIN_EXE_pinseal"));
    let engine = EngineProcess::start_with(pinseal(), "127.0.0.1:0", directory.path(), NO_RESERVE);
    let address = engine.address().to_owned();
    let edge = EdgeProcess::start(directory.path(), &format!("addresses = [\"http://{address}\"]"), "");
    let (device, mut client) = (device(), engine.client().await);
    let mut health = engine.health().await.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(health.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    client.set(&device, "8000", "271828").await.unwrap();
    soon("the edge is not ready", async || (edge.status_of("/readyz") == 204).then_some(())).await;

    disk.fill();
    let (kept, refused) = set_until_refused(&mut client, &device).await;
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "STORE_UNAVAILABLE"));
    assert_eq!(health.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    soon("the edge says that it is ready", async || (edge.status_of("/readyz") == 503).then_some(())).await;
    let (code, said) = end_of(engine).await;
    assert_eq!(code, 1);
    assert!(said.contains("the disk is full; free space, then start the engine again"), "{said}");

    // The space that the end freed is filled too.
    disk.fill();
    let started = pinseal().args(["engine", "--config"]).arg(directory.path().join("engine.toml")).output().unwrap();
    let said = String::from_utf8_lossy(&started.stderr).into_owned();
    assert!(!started.status.success() && said.contains("full: free space, then start again"), "{said}");

    disk.free();
    let engine = EngineProcess::start_with(pinseal(), &address, directory.path(), NO_RESERVE);
    soon("the edge is not ready again", async || (edge.status_of("/readyz") == 204).then_some(())).await;
    let mut client = engine.client().await;
    for number in 0..=kept {
        assert_eq!(client.view(&device, &(8_000 + number).to_string()).await.unwrap(), "271828");
    }
}

/// Sets PINs until one fails: the number that succeeded, and the failure.
async fn set_until_refused(client: &mut Client, device: &device::Device) -> (u32, tonic::Status) {
    let mut set = 0;
    loop {
        match client.set(device, &(8_001 + set).to_string(), "271828").await {
            Ok(()) => set += 1,
            Err(status) => return (set, status),
        }
    }
}

/// The library that fails syncs while the file `fails` exists.
fn with_failing_syncs(fails: &Path, trace: &Path) -> Command {
    let mut pinseal = Command::new(env!("CARGO_BIN_EXE_pinseal"));
    pinseal.env("LD_PRELOAD", disk_shim::built()).env("PINSEAL_DISK_FAIL", fails).env("PINSEAL_DISK_TRACE", trace);
    pinseal
}

/// The bytes without preallocated zeros at the end.
fn written(journal: &Path) -> Vec<u8> {
    let mut bytes = fs::read(journal).unwrap();
    bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsynced_commit_is_synced_before_its_retry_succeeds() {
    let directory = tempfile::tempdir().unwrap();
    let (fails, trace) = (directory.path().join("fails"), directory.path().join("trace"));
    let start = || {
        let pinseal = with_failing_syncs(&fails, &trace);
        EngineProcess::start_with(pinseal, "127.0.0.1:0", directory.path(), LONG_LIVED)
    };
    let engine = start();
    let (device, mut client) = (device(), engine.client().await);
    let (control, block) = client.ready_to_set(&device, "8100", "314159").await.unwrap();
    fs::write(&fails, "").unwrap();
    let refused = client.set_block(&control, &block).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "STORE_UNAVAILABLE"));
    let (code, said) = end_of(engine).await;
    assert_eq!(code, 1);
    assert!(said.contains("a commit could not be written (Input/output error"), "{said}");

    fs::remove_file(&fails).unwrap();
    fs::remove_file(&trace).unwrap();
    let journal = directory.path().join("data/store/db/0.jnl");
    let read_back = written(&journal);
    let engine = start();
    // The first sync of this start is of a new file with the bytes that were read back.
    let first = fs::read_to_string(&trace).unwrap().lines().find(|line| line.contains("/store/")).unwrap().to_owned();
    let inode = fs::metadata(&journal).unwrap().ino();
    assert_eq!(first, format!("{inode} {} {}.fresh", read_back.len(), journal.display()));
    assert!(written(&journal).starts_with(&read_back));
    let mut client = engine.client().await;
    client.set_block(&control, &block).await.unwrap();
    assert_eq!(client.view(&device, "8100").await.unwrap(), "314159");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_whose_store_fails_ends_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let (fails, ready, log) =
        (directory.path().join("fails"), directory.path().join("ready"), directory.path().join("log"));
    let mut demo = with_failing_syncs(&fails, &directory.path().join("trace"))
        .args(["demo", "--isolation", "inline", "--edge-listen", "127.0.0.1:0", "--engine-listen", "127.0.0.1:0"])
        .arg("--directory")
        .arg(directory.path().join("demo"))
        .arg("--ready-file")
        .arg(&ready)
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let ready = soon("the demo does not serve", async || fs::read_to_string(&ready).ok()).await;
    let ready: serde_json::Value = serde_json::from_str(&ready).unwrap();
    fs::write(&fails, "").unwrap();
    let url = format!("{}/pincontrol/v2/plastic/8200?auditUser=it", ready["edge_url"].as_str().unwrap());
    let bearer = format!("Bearer {}", ready["bearer_token"].as_str().unwrap());
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let request = agent.post(&url).content_type("application/json").header("authorization", bearer);
    assert_eq!(request.send("{\"scope\":\"SET_PIN\"}").unwrap().status().as_u16(), 503);
    let ended = soon("the demo does not end", async || demo.try_wait().unwrap()).await;
    let said = fs::read_to_string(&log).unwrap();
    assert!(!ended.success() && said.contains("pinseal: the store"), "{said}");
}
