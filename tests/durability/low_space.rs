//! A disk that fills: below the reserve the engine opens no control, finishes those that are open, and opens controls again by
//! itself once the disk has space.

use std::time::Duration;

use proto::{RegisterCardRequest, Scope};
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};
use tonic_types::StatusExt;

use support::{
    edge_process::EdgeProcess,
    engine_process::{AUDIT_USER, Client, EngineProcess, METRICS, TENANT, device, reason},
    wait::soon,
};

use crate::small_disk::SmallDisk;

const DISK_MEBIBYTES: u32 = 64;
const RESERVE: &str = "[control]\nlifetime_seconds = 3600\n[store]\nreserve_mebibytes = 24";
const LOW_MEBIBYTES: u64 = 12;
const OPEN: (&str, &str) = ("/pin/pincontrol/v2/plastic/8302?auditUser=it", "{\"scope\":\"SET_PIN\"}");
const LOW: &str = "pinseal_store_state{state=\"low_on_space\"} 1";

/// Waits for the refusal of a new control.
async fn refusal(client: &mut Client) -> Status {
    soon("controls are opened", async || client.open("8301", Scope::SetPin).await.err()).await
}

fn assert_low(status: &Status) {
    assert_eq!((status.code(), reason(status).as_str()), (Code::ResourceExhausted, "STORE_LOW_ON_SPACE"));
    let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
    assert_eq!(retry, Some(Duration::from_secs(30)));
}

/// Waits until the engine reports this status of the services that need space. All others serve.
async fn says(engine: &EngineProcess, controls: ServingStatus) {
    let mut health = engine.health().await;
    let mut status = async |service: &str| {
        health.check(HealthCheckRequest { service: service.to_owned() }).await.unwrap().into_inner().status()
    };
    for service in ["pinseal.v1.ControlService", "pinseal.v1.BulkService"] {
        soon("health does not change", async || (status(service).await == controls).then_some(())).await;
    }
    for service in ["", "pinseal.v1.PinService", "pinseal.v1.CardService", "pinseal.v1.AuditService"] {
        assert_eq!(status(service).await, ServingStatus::Serving, "{service}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_stops_new_controls_until_it_has_space() {
    let directory = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&directory.path().join("data"), DISK_MEBIBYTES);
    let start = |listen: &str| {
        let pinseal = disk.command(env!("CARGO_BIN_EXE_pinseal"));
        EngineProcess::start_with(pinseal, listen, directory.path(), &format!("{RESERVE}\n{METRICS}"))
    };
    let engine = start("127.0.0.1:0");
    let address = engine.address().to_owned();
    let edge = EdgeProcess::start(directory.path(), &format!("addresses = [\"http://{address}\"]"), "");
    let (device, mut client) = (device(), engine.client().await);
    let (control, block) = client.ready_to_set(&device, "8300", "271828").await.unwrap();
    let (later, later_block) = client.ready_to_set(&device, "8303", "314159").await.unwrap();
    says(&engine, ServingStatus::Serving).await;

    disk.fill_but(LOW_MEBIBYTES);
    assert_low(&refusal(&mut client).await);
    says(&engine, ServingStatus::NotServing).await;
    assert!(engine.metrics().lines().any(|line| line == LOW));
    let register = RegisterCardRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: "8304".into(),
        ..RegisterCardRequest::default()
    };
    assert_low(&client.cards.register_card(register.clone()).await.map(drop).unwrap_err());
    let answer = edge.post(OPEN.0, OPEN.1);
    assert_eq!((answer.fault(), answer.retry_after), ((503, "STORE_LOW_ON_SPACE"), true));
    let not_ready = async || (edge.status_of("/readyz") == 503).then_some(());
    soon("the edge is ready while no control can be opened", not_ready).await;
    assert!(edge.log().contains("the engine's store is low on space"), "the reason is logged");
    // An open control is finished, and its retry is confirmed.
    for _ in 0..2 {
        client.set_block(&control, &block).await.unwrap();
    }

    // A start on a disk that is low on space finishes what the former process opened.
    engine.kill();
    std::fs::remove_file(directory.path().join("engine.log")).unwrap();
    let engine = start(&address);
    let mut client = engine.client().await;
    assert_low(&client.open("8301", Scope::SetPin).await.map(drop).unwrap_err());
    says(&engine, ServingStatus::NotServing).await;
    client.set_block(&later, &later_block).await.unwrap();

    disk.free();
    let opened = async || client.open("8301", Scope::SetPin).await.ok();
    soon("no control is opened with space", opened).await;
    says(&engine, ServingStatus::Serving).await;
    assert!(!engine.metrics().lines().any(|line| line == LOW));
    client.cards.register_card(register).await.unwrap();
    assert_eq!(edge.post(OPEN.0, OPEN.1).status, 201);
    soon("the edge is not ready again", async || (edge.status_of("/readyz") == 204).then_some(())).await;
    for (card, pin) in [("8300", "271828"), ("8303", "314159")] {
        assert_eq!(client.view(&device, card).await.unwrap(), pin);
    }
}
