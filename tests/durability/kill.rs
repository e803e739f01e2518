//! No acknowledged PIN is lost when the process is killed.

use std::{
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use device::{Device, Fill, Pin};
use futures::future::join_all;
use proto::Scope;
use tokio::task::JoinHandle;

use support::{
    engine_process::{Client, EngineProcess, device},
    known::Known,
};

const KILLS: u64 = 20;
const CLIENTS: u64 = 8;

#[tokio::test(flavor = "multi_thread")]
async fn twenty_kills_under_load_lose_no_pin_and_no_control() {
    let directory = tempfile::tempdir().unwrap();
    let known = Arc::new(Mutex::new(Known::default()));
    let device = Arc::new(device());
    let generous = "[control]\nlifetime_seconds = 3600\nper_card_per_hour_max = 1000000\n[limits]\ncalls_per_card_per_minute = 1000000";

    for kill in 0..KILLS {
        let engine = EngineProcess::start(directory.path(), generous);
        let mut load: Vec<JoinHandle<()>> = Vec::new();
        for number in 0..CLIENTS {
            let client = engine.client().await;
            load.push(tokio::spawn(set_pins(client, device.clone(), known.clone(), kill, number)));
        }
        // Each kill comes at another moment: after so many acknowledgements, and some part of a group commit.
        let enough = known.lock().unwrap().acknowledged() + 4 + usize::try_from(kill % 7).unwrap() * 5;
        while known.lock().unwrap().acknowledged() < enough {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_micros((kill * 7_919) % 3_000)).await;
        engine.kill();
        join_all(load).await;
    }

    let engine = EngineProcess::start(directory.path(), generous);
    let mut client = engine.client().await;
    let known = std::mem::take(&mut *known.lock().unwrap());
    assert!(known.acknowledged() > 200, "the load was too light: {}", known.acknowledged());
    known.assert_kept(&mut client, &device).await;
    assert_eq!(engine.terminate(), 0);

    let verified = Command::new(env!("CARGO_BIN_EXE_pinseal"))
        .args(["audit", "verify", "--store"])
        .arg(directory.path().join("data/store"))
        .output()
        .unwrap();
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
}

/// Sets one PIN after another until the engine dies.
async fn set_pins(mut client: Client, device: Arc<Device>, known: Arc<Mutex<Known>>, kill: u64, number: u64) {
    for round in 0.. {
        let card = format!("{}", 10_000 + number * 100 + round % 10);
        let pin = format!("{:05}9", (kill * 40_009 + number * 5_003 + round * 13) % 100_000);
        let Ok(control) = client.open(&card, Scope::SetPin).await else { return };
        let Ok(tzpk) = client.tzpk(&control.control_id, &device).await else { return };
        let block = device.encrypt_pin(&tzpk, &Pin::parse(&pin).unwrap(), Fill::Random).unwrap();
        let other = device.encrypt_pin(&tzpk, &Pin::parse("90817263").unwrap(), Fill::Random).unwrap();

        let outcome = client.set_block(&control.control_id, &block).await;
        let spent = (control.control_id, other);
        if known.lock().unwrap().note((card, pin), spent, outcome).is_err() {
            return;
        }
    }
}
