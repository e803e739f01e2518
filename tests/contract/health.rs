//! Health while the boundary is missing, and when the engine stops.

use std::{fs, time::Duration};

use tonic::{Code, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use proto::Scope;
use support::{
    edge_process::EdgeProcess,
    engine_process::{EngineProcess, METRICS, reason},
    wait::{signal, soon},
};

/// The services that need the boundary; the first is the engine as a whole.
const BY_BOUNDARY: [&str; 5] =
    ["", "pinseal.v1.BulkService", "pinseal.v1.ControlService", "pinseal.v1.PinService", "pinseal.v1.CardService"];
const BY_ENGINE: [&str; 3] = ["pinseal.v1.AuditService", "pinseal.v1.EventService", "pinseal.v1.KeyService"];

async fn says(health: &mut HealthClient<Channel>, services: &[&str], status: ServingStatus) -> bool {
    for service in services {
        let request = HealthCheckRequest { service: (*service).to_owned() };
        if health.check(request).await.unwrap().into_inner().status() != status {
            return false;
        }
    }
    true
}

#[tokio::test(flavor = "multi_thread")]
async fn no_service_that_needs_the_boundary_serves_without_it() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let mut health = engine.health().await;
    assert!(says(&mut health, &BY_BOUNDARY, ServingStatus::Serving).await);
    assert!(says(&mut health, &BY_ENGINE, ServingStatus::Serving).await);

    let (vault, kept) = (directory.path().join("data/vault"), directory.path().join("kept"));
    fs::rename(&vault, &kept).unwrap();
    fs::write(&vault, "no vault").unwrap();
    signal(engine.hsm_id().unwrap(), "KILL");
    let not_serving = async || says(&mut health, &BY_BOUNDARY, ServingStatus::NotServing).await.then_some(());
    soon("health says that it serves", not_serving).await;
    assert!(says(&mut health, &BY_ENGINE, ServingStatus::Serving).await);

    fs::rename(&kept, &vault).unwrap();
    let serving = async || says(&mut health, &BY_BOUNDARY, ServingStatus::Serving).await.then_some(());
    soon("health does not say that it serves again", serving).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_control_is_opened_without_the_boundary() {
    const LOST: &str = "pinseal_boundary_state{state=\"lost\"} 1";
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), METRICS);
    let edge = EdgeProcess::start(directory.path(), &format!("addresses = [\"http://{}\"]", engine.address()), "");
    let mut client = engine.client().await;
    client.open("3101", Scope::SetPin).await.unwrap();
    assert!(!engine.metrics().lines().any(|line| line == LOST));

    let (vault, kept) = (directory.path().join("data/vault"), directory.path().join("kept"));
    fs::rename(&vault, &kept).unwrap();
    fs::write(&vault, "no vault").unwrap();
    signal(engine.hsm_id().unwrap(), "KILL");
    let refused = soon("controls are opened", async || client.open("3101", Scope::SetPin).await.err()).await;
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "TOKEN_UNAVAILABLE"));
    let answer = edge.post("/pincontrol/v2/plastic/3101?auditUser=it", "{\"scope\":\"SET_PIN\"}");
    assert_eq!((answer.fault(), answer.retry_after), ((503, "TOKEN_UNAVAILABLE"), true));
    assert!(engine.metrics().lines().any(|line| line == LOST));
    assert!(engine.log().contains("the key boundary is lost"), "{}", engine.log());

    fs::rename(&kept, &vault).unwrap();
    soon("no control is opened again", async || client.open("3101", Scope::SetPin).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_engine_notifies_health_watchers_without_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let mut watched = engine.health().await.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    let next = watched.message().await.unwrap().unwrap();
    assert_eq!(next.status(), ServingStatus::Serving);
    signal(engine.id(), "TERM");
    let mut printed = Vec::new();
    let end = loop {
        match tokio::time::timeout(Duration::from_secs(5), watched.message()).await.expect("the stop waits for it") {
            Ok(Some(message)) => printed.push(message.status()),
            Ok(None) => break Code::Ok,
            Err(status) => break status.code(),
        }
    };
    assert_eq!((&printed[..], end), (&[ServingStatus::NotServing][..], Code::Ok));
    assert_eq!(engine.wait(), 0);
}
