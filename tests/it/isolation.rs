//! The boundary's process: lost and found again, confined, and the engine without anything clear.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use device::{Fill, Pin};
use pinseal::proto::Scope;
use tonic::Code;

use crate::engine_process::{EngineProcess, device};

fn signal(process: u32, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status().unwrap().success());
}

/// Within a second, as a rule; a busy machine is given longer.
async fn soon<T>(what: &str, mut find: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = find().await {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boundary_that_is_killed_fifty_times_is_back_and_no_acknowledged_pin_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "[control]\nper_card_per_hour_max = 1000000");
    let (device, mut client) = (device(), engine.client().await);
    for number in 0..50u32 {
        let card = format!("{}", 7_000 + number);
        let pin = Pin::parse(&format!("{}", 258_013 + number * 7)).unwrap();
        // Calls go on while it is killed: each either is acknowledged or says that the boundary is away.
        let killed = engine.hsm_id().unwrap();
        let killing = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(u64::from(number % 7)));
            signal(killed, "KILL");
        });
        let control = soon("no PIN is set again", async || {
            let control = client.open(&card, Scope::SetPin).await.ok()?.control_id;
            let tzpk = match client.tzpk(&control, &device).await {
                Ok(tzpk) => device.open_tzpk(&tzpk).unwrap(),
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                    return None;
                }
            };
            let block = tzpk.encrypt_block(&pin.to_block(Fill::Random));
            match client.set_block(&control, &block).await {
                Ok(()) => Some(control),
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                    None
                }
            }
        })
        .await;
        killing.join().unwrap();
        let back = soon("it was not started again", async || engine.hsm_id().filter(|id| *id != killed)).await;
        assert_ne!(back, killed);
        // The control is spent, whichever process answers.
        let again = soon("it does not answer", async || match client.set_block(&control, &[7; 8]).await {
            Err(status) if status.code() == Code::Unavailable => None,
            outcome => Some(outcome),
        })
        .await;
        assert_eq!(again.unwrap_err().code(), Code::NotFound, "a control was used twice");
        let shown = soon("no PIN is shown", async || client.view(&device, &card).await.ok()).await;
        assert_eq!(shown, pin.reveal(), "kill {number}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boundary_that_hangs_is_unavailable_is_killed_and_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let (device, mut client) = (device(), engine.client().await);
    let hung = engine.hsm_id().unwrap();
    signal(hung, "STOP");
    let control = client.open("7100", Scope::SetPin).await.unwrap().control_id;
    assert_eq!(client.tzpk(&control, &device).await.unwrap_err().code(), Code::Unavailable);
    soon("it is not back", async || client.tzpk(&control, &device).await.ok()).await;
    assert_ne!(engine.hsm_id().unwrap(), hung);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boundary_ends_with_its_engine_however_that_ends() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let hsm = engine.hsm_id().unwrap();
    engine.kill();
    soon("it lives on", async || (!std::path::Path::new(&format!("/proc/{hsm}")).exists()).then_some(())).await;
}

#[test]
fn the_confined_process_is_another_user_filtered_and_may_gain_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let status = std::fs::read_to_string(format!("/proc/{}/status", engine.hsm_id().unwrap())).unwrap();
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    assert_eq!(value("NoNewPrivs:"), "1");
    assert_eq!(value("Seccomp:"), "2");
    assert_ne!(value("Uid:"), "0");
}

#[test]
fn a_step_that_can_not_be_taken_is_fatal_unless_it_is_waived() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("engine.toml");
    let data = directory.path().join("data");
    let start = |lines: &str| {
        std::fs::write(&config, format!("listen = \"127.0.0.1:0\"\ndata_directory = {data:?}\n{lines}\n")).unwrap();
        let pinseal = env!("CARGO_BIN_EXE_pinseal");
        // Root without the right to become anybody.
        let mut timeout = Command::new("timeout");
        timeout.args(["5", "setpriv", "--bounding-set=-setuid", pinseal, "engine", "--config"]).arg(&config);
        let output = timeout.output().unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let refused = start("");
    assert!(refused.contains("can't become user"), "{refused}");
    let waived = start("[boundary]\nwaive = [\"user\"]");
    assert!(waived.contains("listens on"), "{waived}");
}
