//! The audit event of each refused request, found by the id of the request.

use std::{path::Path, process::Command};

use proto::{
    DeriveVerificationValueRequest, FindCardRequest, GeneratePinRequest, GetPinByZoneRequest, IssueTzpkRequest,
    OpenControlRequest, PvkPair, REQUEST_ID_KEY, RegisterCardRequest, Scope, SetPinRequest, ValueMethod,
    ViewPinRequest, value_method::Algorithm,
};
use serde_json::{Value, json};
use tonic::{Request, Status};
use uuid::Uuid;

use support::{
    edge_process::EdgeProcess,
    engine_process::{AUDIT_USER, EngineProcess, TENANT, device, reason},
    wait::soon,
    zone_party::zone,
};

use crate::rotation::spoil_one_record;

/// The chain of a stopped engine, one entry a line.
fn exported(directory: &Path, more: &[&str]) -> Vec<Value> {
    let mut pinseal = Command::new(env!("CARGO_BIN_EXE_pinseal"));
    let output = pinseal.args(["audit", "export", "--store"]).arg(directory.join("data/store")).args(more).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The only entry of a request.
fn entry_of<'a>(entries: &'a [Value], request: &str) -> &'a Value {
    let found: Vec<_> = entries.iter().filter(|entry| entry["request"] == request).collect();
    assert!(found.len() == 1, "{} entries of {request}", found.len());
    found[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_of_a_damaged_record_is_found_by_the_id_of_the_answer() {
    let directory = tempfile::tempdir().unwrap();
    let (engine, device) = (EngineProcess::start(directory.path(), ""), device());
    engine.client().await.set(&device, "5101", "2580").await.unwrap();
    assert_eq!(engine.terminate(), 0);
    spoil_one_record(directory.path()).await;

    let engine = EngineProcess::start(directory.path(), "");
    let edge = EdgeProcess::start(directory.path(), &format!("addresses = [\"http://{}\"]", engine.address()), "");
    let opened = edge.post("/pincontrol/v2/plastic/5101?auditUser=it", "{\"scope\":\"VIEW_PIN\"}");
    let key = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, device.public_key_der());
    let view = json!({ "controlId": opened.member("id"), "publicKey": key }).to_string();
    let failed = edge.post("/v3/view?auditUser=it", &view);
    assert_eq!(failed.fault(), (500, "UNEXPECTED"));

    let (id, log) = (failed.member("id"), engine.log());
    assert!(log.lines().any(|line| line.contains(id) && line.contains("the tag of a sealed")), "no {id} in {log}");
    assert!(edge.log().contains(id));
    assert_eq!(engine.terminate(), 0);
    let entries = exported(directory.path(), &[]);
    let entry = entry_of(&entries, id);
    assert_eq!((&entry["outcome"], &entry["event"]["action"]), (&json!("boundary_failed"), &json!("view_pin")));
    assert_eq!(entry["event"]["control"], opened.member("id"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_credentials_are_found_by_the_id_of_the_answer() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let edge = EdgeProcess::start(directory.path(), &format!("addresses = [\"http://{}\"]", engine.address()), "");
    let rejected = edge.post_as("Bearer of-no-client-at-all", "/v3/view?auditUser=it", "{}");
    assert_eq!(rejected.fault(), (401, "UNAUTHENTICATED"));

    let id = rejected.member("id");
    let event = soon("the engine audits the rejected credentials", async || {
        let mut pinseal = Command::new(env!("CARGO_BIN_EXE_pinseal"));
        let output = pinseal.args(["audit", "tail", "--engine", engine.address()]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let printed = String::from_utf8(output.stdout).unwrap();
        printed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).find(|entry| entry["request"] == id)
    })
    .await;
    let expected = json!({ "type": "credentials_rejected", "network": "127.0.0.1", "unrecorded": 0 });
    assert_eq!((&event["event"], &event["outcome"]), (&expected, &json!("denied")));
}

/// A request with a fresh id, and the id.
fn with_id<T>(message: T) -> (String, Request<T>) {
    let (id, mut request) = (Uuid::new_v4().to_string(), Request::new(message));
    request.metadata_mut().insert(REQUEST_ID_KEY, id.parse().unwrap());
    (id, request)
}

fn open(plastic: &str, scope: Scope) -> OpenControlRequest {
    OpenControlRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: plastic.into(),
        scope: scope.into(),
        device_key_sha256: Vec::new(),
        page_client: String::new(),
    }
}

fn set(control: &str, block: [u8; 8]) -> SetPinRequest {
    let control_id = control.into();
    SetPinRequest { tenant: TENANT.into(), audit_user: AUDIT_USER.into(), control_id, pin_block: block.into() }
}

fn view(control: &str, device_public_key: &[u8]) -> ViewPinRequest {
    let (tenant, audit_user, control_id) = (TENANT.into(), AUDIT_USER.into(), control.into());
    ViewPinRequest { tenant, audit_user, control_id, device_public_key: device_public_key.into(), oaep_mgf1: 0 }
}

fn register(plastic: &str, number: &str) -> RegisterCardRequest {
    let (plastic_id, account_number) = (plastic.into(), number.into());
    RegisterCardRequest { tenant: TENANT.into(), audit_user: AUDIT_USER.into(), plastic_id, account_number }
}

fn find(plastic: &str) -> FindCardRequest {
    FindCardRequest { tenant: TENANT.into(), audit_user: AUDIT_USER.into(), plastic_id: plastic.into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refused_request_has_one_audit_event_with_its_reason() {
    let directory = tempfile::tempdir().unwrap();
    let settings = "[control]\nper_card_per_hour_max = 4\nunknown_cards = \"refuse\"\n\
                    [[verification.keys]]\nname = \"pvk:visa\"\ntenants = [\"bank\"]";
    let engine = EngineProcess::start(directory.path(), settings);
    let (device, mut client) = (device(), engine.client().await);
    let key = device.public_key_der();
    for (plastic, number) in [("5201", "4111111111111111"), ("5202", ""), ("5203", "")] {
        client.cards.register_card(register(plastic, number)).await.unwrap();
    }
    // Id, reason of the error, outcome and action of the event.
    let mut refused: Vec<(String, &str, &str, &str)> = Vec::new();
    macro_rules! refuse {
        ($client:ident . $method:ident($message:expr), $reason:literal, $outcome:literal, $action:literal) => {
            let (id, request) = with_id($message);
            let status: Status = client.$client.$method(request).await.err().expect($reason);
            assert_eq!(reason(&status), $reason);
            assert_eq!(status.metadata().get(REQUEST_ID_KEY).unwrap(), &id);
            refused.push((id, $reason, $outcome, $action));
        };
    }

    let waiting = client.open("5201", Scope::SetPin).await.unwrap().control_id;
    refuse!(pins.set_pin(set(&waiting, [7; 8])), "TZPK_MISSING", "tzpk_missing", "set_pin");
    let viewing = client.open("5202", Scope::ViewPin).await.unwrap().control_id;
    refuse!(pins.view_pin(view(&viewing, key)), "PIN_NOT_SET", "pin_not_set", "view_pin");
    let (spent, block) = client.ready_to_set(&device, "5201", "2580").await.unwrap();
    client.set_block(&spent, &block).await.unwrap();
    refuse!(pins.set_pin(set(&spent, [7; 8])), "CONTROL_NOT_USABLE", "control_not_usable", "set_pin");
    refuse!(pins.set_pin(set(&waiting, [7; 8])), "TZPK_MISSING", "tzpk_missing", "set_pin");
    let issue = IssueTzpkRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        control_id: spent,
        device_public_key: key.into(),
        oaep_mgf1: 0,
    };
    refuse!(pins.issue_tzpk(issue), "CONTROL_NOT_USABLE", "control_not_usable", "issue_tzpk");
    let shown = client.open("5201", Scope::ViewPin).await.unwrap().control_id;
    client.pins.view_pin(view(&shown, key)).await.unwrap();
    refuse!(pins.view_pin(view(&shown, key)), "CONTROL_NOT_USABLE", "control_not_usable", "view_pin");
    let unknown = Uuid::new_v4().to_string();
    refuse!(pins.view_pin(view(&unknown, key)), "CONTROL_NOT_USABLE", "control_not_usable", "view_pin");
    let foreign = client.open("5202", Scope::ViewPin).await.unwrap().control_id;
    let of_other = ViewPinRequest { tenant: "other".into(), ..view(&foreign, key) };
    refuse!(pins.view_pin(of_other), "TENANT_MISMATCH", "denied", "view_pin");
    let setting = client.open("5203", Scope::SetPin).await.unwrap().control_id;
    refuse!(pins.view_pin(view(&setting, key)), "SCOPE_MISMATCH", "denied", "view_pin");
    // Until the cap, also where the clock hour ends during the test.
    while client.open("5201", Scope::ViewPin).await.is_ok() {}
    refuse!(controls.open_control(open("5201", Scope::SetPin)), "CONTROL_CAP", "control_cap", "open_control");
    refuse!(controls.open_control(open("5299", Scope::SetPin)), "CARD_UNKNOWN", "card_unknown", "open_control");
    let by_zone = GetPinByZoneRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: "5201".into(),
        zone_key: Some(zone("of-nobody")),
    };
    refuse!(pins.get_pin_by_zone(by_zone), "ZONE_UNKNOWN", "zone_refused", "get_pin_by_zone");
    let generate = GeneratePinRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: "5299".into(),
        digit_count: 4,
    };
    refuse!(pins.generate_pin(generate), "CARD_UNKNOWN", "card_unknown", "generate_pin");
    let derive = |plastic: &str| DeriveVerificationValueRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: plastic.into(),
        method: Some(ValueMethod { algorithm: Some(Algorithm::Pvv(PvkPair { name: "visa".into(), pvki_number: 1 })) }),
    };
    client.set(&device, "5202", "2580").await.unwrap();
    refuse!(pins.derive_verification_value(derive("5202")), "NO_ACCOUNT_NUMBER", "no_account_number", "derive_value");
    refuse!(pins.derive_verification_value(derive("5201")), "VALUE_KEY_UNKNOWN", "value_key_refused", "derive_value");
    refuse!(cards.find_card(find("5299")), "CARD_UNKNOWN", "card_unknown", "find_card");
    let (read, request) = with_id(find("5201"));
    client.cards.find_card(request).await.unwrap();

    let log = engine.log();
    assert_eq!(engine.terminate(), 0);
    let entries = exported(directory.path(), &[]);
    for (id, reason, outcome, action) in &refused {
        let entry = entry_of(&entries, id);
        assert_eq!((&entry["outcome"], &entry["event"]["action"]), (&json!(outcome), &json!(action)), "{reason}");
        // The auditor of the card's tenant reads it, where the caller named another tenant too.
        assert_eq!(entry["tenant"], TENANT, "{reason}");
        assert!(log.lines().any(|line| line.contains(&**id)), "no line of {reason} in the log");
    }
    let of_unknown: Vec<_> = entries.iter().filter(|entry| entry["event"]["type"] == "unknown_control").collect();
    assert!(of_unknown.len() == 1 && of_unknown[0]["event"]["control"] == unknown, "{of_unknown:?}");
    let read = entry_of(&entries, &read);
    assert_eq!((&read["outcome"], &read["event"]["action"]), (&json!("done"), &json!("find_card")));
    assert_eq!(read["event"]["card"], "411111******1111");
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_of_invented_controls_are_limited() {
    const REQUESTS: u64 = 500;
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let mut client = engine.client().await;
    for _ in 0..REQUESTS {
        let invented = client.pins.set_pin(set(&Uuid::new_v4().to_string(), [7; 8])).await.err().unwrap();
        assert_eq!(reason(&invented), "CONTROL_NOT_USABLE");
    }
    // A request of another action has its entry.
    let viewed = view(&Uuid::new_v4().to_string(), device().public_key_der());
    assert_eq!(reason(&client.pins.view_pin(viewed).await.err().unwrap()), "CONTROL_NOT_USABLE");
    assert_eq!(engine.terminate(), 0);
    let entries = exported(directory.path(), &[]);
    let events: Vec<_> = entries.iter().map(|entry| &entry["event"]).collect();
    let of_unknown = events.iter().filter(|event| event["type"] == "unknown_control");
    let (of_invented, of_other): (Vec<&Value>, Vec<_>) = of_unknown.partition(|event| event["action"] == "set_pin");
    assert!(of_other.len() == 1 && of_other[0]["action"] == "view_pin", "{of_other:?}");
    let unrecorded: u64 = of_invented.iter().map(|event| event["unrecorded"].as_u64().unwrap()).sum();
    // Each minute that the requests took has 60, and counts those of the minute before.
    let number = of_invented.len() as u64;
    assert!(number >= 60 && number + unrecorded <= REQUESTS, "{number} and {unrecorded}");
    assert!(number == 60 || unrecorded > 0, "{number} and {unrecorded}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_one_card_has_every_access_to_it_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let (engine, device) = (EngineProcess::start(directory.path(), ""), device());
    let mut client = engine.client().await;
    // Both masked as **5301.
    for plastic in ["105301", "205301"] {
        client.set(&device, plastic, "2580").await.unwrap();
    }
    assert_eq!(engine.terminate(), 0);

    // The reference of a card is the same after a restart.
    let engine = EngineProcess::start(directory.path(), "");
    let mut client = engine.client().await;
    let shown = client.open("105301", Scope::ViewPin).await.unwrap().control_id;
    client.pins.view_pin(view(&shown, device.public_key_der())).await.unwrap();
    client.pins.view_pin(view(&shown, device.public_key_der())).await.err().expect("the control is spent");
    client.cards.find_card(find("105301")).await.unwrap();
    client.open("205301", Scope::ViewPin).await.unwrap();
    assert_eq!(engine.terminate(), 0);

    let of_card = |plastic: &str, tenant: &str| exported(directory.path(), &["--card", plastic, "--tenant", tenant]);
    let entries = of_card("105301", TENANT);
    let accesses: Vec<_> = entries.iter().map(|entry| (&entry["event"]["action"], &entry["outcome"])).collect();
    let expected = [
        ("open_control", "done"),
        ("issue_tzpk", "done"),
        ("set_pin", "done"),
        ("open_control", "done"),
        ("view_pin", "done"),
        ("view_pin", "control_not_usable"),
        ("find_card", "done"),
    ]
    .map(|(action, outcome)| (json!(action), json!(outcome)));
    assert!(accesses.into_iter().eq(expected.iter().map(|(action, outcome)| (action, outcome))), "{entries:?}");
    assert_eq!(of_card("205301", TENANT).len(), 4);
    assert!(of_card("105301", "other").is_empty() && of_card("5301", TENANT).is_empty());
}
