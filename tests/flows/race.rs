//! A control is used once.

use futures::future::join_all;
use proto::Scope;

use support::engine_process::{EngineProcess, device, reason};

#[tokio::test(flavor = "multi_thread")]
async fn one_of_64_racing_blocks_sets_its_pin() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let device = device();
    let mut client = engine.client().await;
    let control = client.open("1001", Scope::SetPin).await.unwrap().control_id;
    let tzpk = client.tzpk(&control, &device).await.unwrap();

    let pins: Vec<String> = (0..64).map(|n| format!("7{:03}9", n * 13)).collect();
    let mut racers = Vec::new();
    for pin in &pins {
        let pin = device::Pin::parse(pin).unwrap();
        let block = device.encrypt_pin(&tzpk, &pin, device::Fill::Random).unwrap();
        let (mut client, control) = (engine.client().await, control.clone());
        racers.push(tokio::spawn(async move { client.set_block(&control, &block).await }));
    }
    let outcomes: Vec<_> = join_all(racers).await.into_iter().map(Result::unwrap).collect();

    let winners: Vec<usize> = (0..64).filter(|&n| outcomes[n].is_ok()).collect();
    assert_eq!(winners.len(), 1, "{outcomes:?}");
    for lost in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert_eq!(reason(lost), "CONTROL_NOT_USABLE");
    }
    assert_eq!(client.view(&device, "1001").await.unwrap(), pins[winners[0]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_block_sent_by_many_at_once_succeeds_for_all() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let device = device();
    let mut client = engine.client().await;
    let (control, block) = client.ready_to_set(&device, "1002", "27182").await.unwrap();

    let mut twins = Vec::new();
    for _ in 0..16 {
        let (mut client, control) = (engine.client().await, control.clone());
        twins.push(tokio::spawn(async move { client.set_block(&control, &block).await }));
    }
    for outcome in join_all(twins).await {
        outcome.unwrap().unwrap();
    }
    assert_eq!(client.view(&device, "1002").await.unwrap(), "27182");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_to_view_shows_once() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let device = device();
    let mut client = engine.client().await;
    client.set(&device, "1003", "31415").await.unwrap();
    let control_id = client.open("1003", Scope::ViewPin).await.unwrap().control_id;
    let request = || proto::ViewPinRequest {
        tenant: support::engine_process::TENANT.into(),
        audit_user: support::engine_process::AUDIT_USER.into(),
        control_id: control_id.clone(),
        device_public_key: device.public_key_der().to_vec(),
        oaep_mgf1: proto::OaepMgf1::Unspecified.into(),
    };
    client.pins.view_pin(request()).await.unwrap();
    let again = client.pins.view_pin(request()).await.err().unwrap();
    assert_eq!(reason(&again), "CONTROL_NOT_USABLE");
}
