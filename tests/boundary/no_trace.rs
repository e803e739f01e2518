//! No trace of a PIN or an account number: not in logs at the most verbose level, not in store files, not in the audit
//! export, not in error bodies, not in metrics; and no clear or device-side block either.

use std::{fs, path::Path, process::Command};

use base64::{Engine, engine::general_purpose::STANDARD};
use device::{Fill, Pin};
use futures::stream;
use proto::{
    ChangePinRequest, FollowEventsRequest, NumberedSet, NumberedTranslation, PinEventKind, RegisterCardRequest,
    SealPanRequest, SetPinsRequest, TranslatePinBlocksRequest, TranslationItem, ZoneBlock, ZoneFormat, ZonePinChange,
    block_outcome, bulk_service_client::BulkServiceClient, change_pin_request,
    event_service_client::EventServiceClient, set_outcome,
};
use serde_json::json;

use support::{
    edge_process::{EdgeProcess, TOKEN},
    engine_process::{AUDIT_USER, EngineProcess, METRICS, TENANT, device},
    zone_party::{ZoneParty, zone},
};

/// The PINs and numbers of the test, in every form that a trace could have.
#[derive(Default)]
struct Planted(Vec<(String, Vec<u8>)>);

impl Planted {
    fn text(&mut self, what: &str, text: &str) {
        self.0.push((what.to_owned(), text.as_bytes().to_vec()));
    }

    fn block(&mut self, what: &str, block: &[u8; 8]) {
        let hex: String = block.iter().map(|byte| format!("{byte:02x}")).collect();
        let list = format!("{block:?}");
        self.0.push((format!("{what}, raw"), block.to_vec()));
        self.0.push((format!("{what}, reversed"), block.iter().rev().copied().collect()));
        self.text(&format!("{what}, hex"), &hex);
        self.text(&format!("{what}, HEX"), &hex.to_uppercase());
        self.text(&format!("{what}, base64"), &STANDARD.encode(block));
        self.text(&format!("{what}, as a list"), list.trim_matches(['[', ']']));
    }

    fn assert_absent(&self, place: &str, bytes: &[u8]) {
        for (what, pattern) in &self.0 {
            let found = memory_search::contains(bytes, pattern);
            assert!(!found, "{what} left a trace in {place}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_pin_or_account_number_leaves_a_trace() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), METRICS);
    let edge = EdgeProcess::start(directory.path(), &format!("address = \"http://{}\"", engine.address()), "");
    let (device, mut planted, mut errors) = (device(), Planted::default(), String::new());
    let mut client = engine.client().await;

    for (card, pin, account) in [("4001", "907856341290", "4716258093174820"), ("4002", "86420975", "5329071846302915")]
    {
        planted.text("a PIN", pin);
        planted.text("an account number", account);
        let register = RegisterCardRequest {
            tenant: TENANT.into(),
            audit_user: AUDIT_USER.into(),
            plastic_id: card.into(),
            account_number: account.into(),
        };
        client.cards.register_card(register).await.unwrap();
        let open = |scope: &str| {
            let path = format!("/pincontrol/v2/plastic/{card}?auditUser=it");
            edge.post(&path, &json!({ "scope": scope }).to_string()).member("id").to_owned()
        };
        let key = STANDARD.encode(device.public_key_der());

        let control = open("SET_PIN");
        let issued =
            edge.post("/v3/set/tzpk?auditUser=it", &json!({ "controlId": control, "publicKey": key }).to_string());
        let tzpk = device.decrypt_tzpk(&STANDARD.decode(issued.member("tzpk")).unwrap()).unwrap();
        for weak in ["123456789", "999999999"] {
            let clear = Pin::parse(weak).unwrap().to_block(Fill::Random);
            let block = tzpk.encrypt_block(&clear);
            planted.block("a weak PIN's clear block", &clear);
            planted.block("a weak PIN's block", &block);
            let body = json!({ "controlId": control, "pinBlock": STANDARD.encode(block) }).to_string();
            errors.push_str(&edge.post("/v3/set?auditUser=it", &body).text);
        }
        let clear = Pin::parse(pin).unwrap().to_block(Fill::Random);
        let block = tzpk.encrypt_block(&clear);
        planted.block("a clear block", &clear);
        planted.block("a device's block", &block);
        let body = json!({ "controlId": control, "pinBlock": STANDARD.encode(block) }).to_string();
        assert_eq!(edge.post("/v3/set?auditUser=it", &body).status, 200);
        errors.push_str(&edge.post("/v3/set?auditUser=nobody", &body.replace("controlId", "controlid")).text);

        let view = json!({ "controlId": open("VIEW_PIN"), "publicKey": key }).to_string();
        let shown = edge.post("/v3/view?auditUser=it", &view);
        let block: [u8; 8] = STANDARD.decode(shown.member("pinBlock")).unwrap().try_into().unwrap();
        let tzpk = device.decrypt_tzpk(&STANDARD.decode(shown.member("tzpk")).unwrap()).unwrap();
        planted.block("a shown block", &block);
        planted.block("a shown clear block", &tzpk.decrypt_block(&block));
        errors.push_str(&edge.post("/v3/view?auditUser=it", &view).text);

        let control = open("SET_PIN");
        edge.post("/v3/set/tzpk?auditUser=it", &json!({ "controlId": control, "publicKey": key }).to_string());
        let malformed = [0x0F, 0xE1, 0xD2, 0xC3, 0xB4, 0xA5, 0x96, 0x87];
        planted.block("a malformed block", &malformed);
        let body = json!({ "controlId": control, "pinBlock": STANDARD.encode(malformed) }).to_string();
        errors.push_str(&edge.post("/v3/set?auditUser=it", &body).text);
    }
    planted.text("the bearer token", TOKEN);

    let logs = [engine.log(), edge.log()];
    assert!(logs.iter().all(|log| log.len() > 1_000), "the logs are too short for a search");
    planted.assert_absent("the engine's log", logs[0].as_bytes());
    planted.assert_absent("the edge's log", logs[1].as_bytes());
    planted.assert_absent("error bodies", errors.as_bytes());
    planted.assert_absent("the metrics", engine.metrics().as_bytes());
    assert_eq!(engine.terminate(), 0);

    let store = directory.path().join("data/store");
    let exported =
        Command::new(env!("CARGO_BIN_EXE_pinseal")).args(["audit", "export", "--store"]).arg(&store).output().unwrap();
    assert!(exported.status.success() && exported.stdout.len() > 1_000);
    planted.assert_absent("the audit export", &exported.stdout);
    assert!(each_file(&directory.path().join("data"), &planted) > 3, "there are too few files for a search");
}

/// Every operation of zones, verification, streams and events.
#[tokio::test(flavor = "multi_thread")]
async fn no_operation_with_a_zone_leaves_a_trace() {
    let party = ZoneParty::prepared();
    let engine = party.start(METRICS);
    let (mut client, mut planted, mut errors) = (engine.client().await, Planted::default(), String::new());
    let zone_block = |planted: &mut Planted, what: &str, pin: &str| {
        let clear = Pin::parse(pin).unwrap().to_block(Fill::Random);
        let block = party.encrypted(ZoneFormat::Iso1, &clear);
        planted.block(&format!("{what}, clear"), &clear);
        planted.block(what, block.pin_block.as_slice().try_into().unwrap());
        block
    };
    let answered = |planted: &mut Planted, what: &str, block: &[u8]| {
        let block: [u8; 8] = block.try_into().unwrap();
        planted.block(what, &block);
        planted.block(&format!("{what}, clear"), &party.key.decrypt_block(&block));
    };
    let (card, account, other_account) = ("845039217756", "4716258093174820", "5329071846302915");
    let (pin, wrong, next) = ("907856341290", "918273645546", "36925814");
    for (what, text) in [("a PIN", pin), ("a wrong PIN", wrong), ("a changed PIN", next)] {
        planted.text(what, text);
    }
    for (what, text) in [("an account number", account), ("a new account number", other_account), ("a plasticId", card)]
    {
        planted.text(what, text);
    }

    client.register(card, account).await.unwrap();
    client.set_by_zone(card, &zone_block(&mut planted, "a set block", pin)).await.unwrap();
    let malformed = party.encrypted(ZoneFormat::Iso1, &[0x2F, 0xE1, 0xD2, 0xC3, 0xB4, 0xA5, 0x96, 0x87]);
    planted.block("a malformed block", malformed.pin_block.as_slice().try_into().unwrap());
    let weak = zone_block(&mut planted, "a weak PIN's block", "999999999");
    for refused in [&malformed, &weak] {
        errors.push_str(&format!("{:?}", client.set_by_zone(card, refused).await.unwrap_err()));
    }
    answered(&mut planted, "a given block", &client.get_by_zone(card).await.unwrap());
    let exported = client.export(card, ZoneFormat::Iso0).await.unwrap();
    answered(&mut planted, "an exported block", &exported);
    client.verify(card, &zone_block(&mut planted, "a right block", pin)).await.unwrap();
    client.verify(card, &zone_block(&mut planted, "a wrong block", wrong)).await.unwrap();
    errors.push_str(&format!("{:?}", client.verify(card, &malformed).await.unwrap_err()));
    let change = ZonePinChange {
        plastic_id: card.into(),
        old_block: Some(zone_block(&mut planted, "an old block", pin)),
        new_block: Some(zone_block(&mut planted, "a new block", next)),
    };
    let (tenant, audit_user) = (TENANT.to_owned(), AUDIT_USER.to_owned());
    let request = ChangePinRequest {
        tenant: tenant.clone(),
        audit_user: audit_user.clone(),
        change: Some(change_pin_request::Change::ZoneChange(change)),
    };
    client.pins.change_pin(request.clone()).await.unwrap();
    client.pins.change_pin(request).await.unwrap();
    let seal = SealPanRequest {
        tenant: tenant.clone(),
        audit_user: audit_user.clone(),
        plastic_id: card.into(),
        account_number: account.into(),
    };
    let sealed_account = client.pins.seal_pan(seal).await.unwrap().into_inner().sealed_account;

    let mut bulk = BulkServiceClient::new(engine.channel().await);
    let source_block = ZoneBlock { format: ZoneFormat::Iso0.into(), pin_block: exported, ..malformed.clone() };
    let item = |sequence, source_block| NumberedTranslation {
        sequence,
        item: Some(TranslationItem {
            plastic_id: card.into(),
            source_block: Some(source_block),
            target_key: Some(zone("app")),
            target_format: ZoneFormat::Iso3.into(),
            sealed_account: sealed_account.clone(),
        }),
    };
    let items = vec![item(1, source_block), item(2, malformed.clone())];
    let translations = TranslatePinBlocksRequest { tenant: tenant.clone(), audit_user: audit_user.clone(), items };
    let mut outcomes = bulk.translate_pin_blocks(stream::iter([translations])).await.unwrap().into_inner();
    while let Some(answer) = outcomes.message().await.unwrap() {
        for outcome in answer.outcomes {
            match outcome.result.unwrap() {
                block_outcome::Result::PinBlock(block) => answered(&mut planted, "a translated block", &block),
                block_outcome::Result::Error(error) => errors.push_str(&(error.reason + &error.message)),
            }
        }
    }
    let streamed = "58203947";
    planted.text("a PIN of a stream", streamed);
    let blocks = [zone_block(&mut planted, "a block of a stream", streamed), malformed];
    let items = blocks.into_iter().enumerate().map(|(at, block)| NumberedSet {
        sequence: at as u64,
        plastic_id: card.into(),
        zone_block: Some(block),
    });
    let sets = SetPinsRequest { tenant, audit_user, items: items.collect() };
    let mut outcomes = bulk.set_pins(stream::iter([sets])).await.unwrap().into_inner();
    while let Some(answer) = outcomes.message().await.unwrap() {
        for outcome in answer.outcomes {
            if let Some(set_outcome::Result::Error(error)) = outcome.result {
                errors.push_str(&(error.reason + &error.message));
            }
        }
    }
    client.register(card, other_account).await.unwrap();
    let follow = FollowEventsRequest { tenant: TENANT.into(), audit_user: AUDIT_USER.into(), start_sequence: 0 };
    let mut followed =
        EventServiceClient::new(engine.channel().await).follow_events(follow).await.unwrap().into_inner();
    let mut events = Vec::new();
    while let Some(message) = followed.message().await.unwrap() {
        let is_last = message.event.as_ref().is_some_and(|event| event.kind() == PinEventKind::AccountChanged);
        events.extend(prost::Message::encode_to_vec(&message));
        if is_last {
            break;
        }
    }

    assert!(errors.matches("PIN_BLOCK_MALFORMED").count() >= 4, "{errors}");
    let log = engine.log();
    assert!(log.len() > 1_000 && events.len() > 500, "the log or the events are too short for a search");
    planted.assert_absent("the engine's log", log.as_bytes());
    planted.assert_absent("errors", errors.as_bytes());
    planted.assert_absent("events", &events);
    planted.assert_absent("the metrics", engine.metrics().as_bytes());
    assert_eq!(engine.terminate(), 0);
    let data = party.directory().join("data");
    let exported = Command::new(env!("CARGO_BIN_EXE_pinseal"))
        .args(["audit", "export", "--store"])
        .arg(data.join("store"))
        .output()
        .unwrap();
    assert!(exported.status.success() && exported.stdout.len() > 1_000);
    planted.assert_absent("the audit export", &exported.stdout);
    // The plasticId names the rows of its card.
    planted.0.retain(|(what, _)| what != "a plasticId");
    assert!(each_file(&data, &planted) > 3, "there are too few files for a search");
}

#[test]
fn the_search_finds_what_is_there() {
    let mut planted = Planted::default();
    planted.block("a block", &[1, 2, 3, 4, 5, 6, 7, 8]);
    for trace in ["x0102030405060708x", "xAQIDBAUGBwg=x", "[1, 2, 3, 4, 5, 6, 7, 8]"] {
        let searched = std::panic::catch_unwind(|| planted.assert_absent("here", trace.as_bytes()));
        assert!(searched.is_err(), "{trace}");
    }
}

fn each_file(directory: &Path, planted: &Planted) -> usize {
    let mut files = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files += each_file(&path, planted);
        } else {
            planted.assert_absent(&path.display().to_string(), &fs::read(&path).unwrap());
            files += 1;
        }
    }
    files
}
