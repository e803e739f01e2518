//! No trace of a PIN or an account number: not in logs at the most verbose level, not in store files, not in the audit
//! export, not in error bodies, not in metrics; and no clear or device-side block either. No clear block of an operation with a
//! zone is in the memory of the engine or its boundary after the calls.

use std::{fs, path::Path, process::Command};

use base64::{Engine, engine::general_purpose::STANDARD};
use device::{Fill, Pin};
use futures::stream;
use proto::{
    BlockOutcome, ChangePinRequest, DeriveVerificationValueRequest, ExpectedNatural, ExpectedOffset, ExpectedPvv,
    ExportPinsRequest, FollowEventsRequest, GeneratePinRequest, Ibm3624Key, NumberedExport, NumberedSet,
    NumberedTranslation, PinEventKind, PvkPair, RegisterCardRequest, SealPanRequest, SetPinsRequest,
    TransferPinRequest, TranslatePinBlockRequest, TranslatePinBlocksRequest, TranslationItem, ValueMethod,
    VerificationReference, VerifyPinRequest, ZoneBlock, ZoneFormat, ZonePinChange, block_outcome,
    bulk_service_client::BulkServiceClient, change_pin_request, event_service_client::EventServiceClient, set_outcome,
    value_method::Algorithm, verification_reference::Expected,
};
use serde_json::json;

use support::{
    edge_process::{EdgeProcess, TOKEN},
    engine_process::{AUDIT_USER, EngineProcess, METRICS, TENANT, device},
    zone_party::{ZONES, ZoneParty, right as right_pin, wrong as wrong_pin, zone},
};

/// A key that stays in the memory of the boundary: a search that misses it does not work.
const STORAGE_KEY: &str = "the storage key";

/// The PINs and numbers of the test, in every form that a trace could have.
#[derive(Default)]
struct Planted {
    traces: Vec<(String, Vec<u8>)>,
    /// Those that no memory may have.
    clear: memory_search::Planted,
}

impl Planted {
    fn text(&mut self, what: &str, text: &str) {
        self.traces.push((what.to_owned(), text.as_bytes().to_vec()));
    }

    fn clear_block(&mut self, what: &str, block: &[u8; 8]) {
        self.block(what, block);
        self.clear.plant("a clear block", block);
    }

    /// A PIN as text, as the field of a format 4 block and as the field under the CMAC of a one-way record.
    fn pin(&mut self, what: &str, pin: &str) {
        self.text(what, pin);
        self.clear.plant("a PIN as text", pin.as_bytes());
        for (control, fill) in [('4', 'A'), ('0', '0')] {
            let mut field = format!("{control}{:X}{pin}", pin.len());
            field.extend(std::iter::repeat_n(fill, 16 - field.len()));
            let field = u64::from_str_radix(&field, 16).unwrap();
            self.clear_block(&format!("{what}, as a field"), &field.to_be_bytes());
        }
    }

    fn block(&mut self, what: &str, block: &[u8; 8]) {
        let hex: String = block.iter().map(|byte| format!("{byte:02x}")).collect();
        let list = format!("{block:?}");
        self.traces.push((format!("{what}, raw"), block.to_vec()));
        self.traces.push((format!("{what}, reversed"), block.iter().rev().copied().collect()));
        self.text(&format!("{what}, hex"), &hex);
        self.text(&format!("{what}, HEX"), &hex.to_uppercase());
        self.text(&format!("{what}, base64"), &STANDARD.encode(block));
        self.text(&format!("{what}, as a list"), list.trim_matches(['[', ']']));
    }

    /// The format 1 block of a PIN under the key of the party, and plants both blocks.
    fn zone_block(&mut self, party: &ZoneParty, what: &str, pin: &str) -> ZoneBlock {
        let clear = Pin::parse(pin).unwrap().to_block(Fill::Random);
        let block = party.encrypted(ZoneFormat::Iso1, &clear);
        self.clear_block(&format!("{what}, clear"), &clear);
        self.block(what, block.pin_block.as_slice().try_into().unwrap());
        block
    }

    /// Plants a block of an answer, and its clear block.
    fn answer(&mut self, party: &ZoneParty, what: &str, block: &[u8]) {
        let block: [u8; 8] = block.try_into().unwrap();
        self.block(what, &block);
        self.clear_block(&format!("{what}, clear"), &party.key.decrypt_block(&block));
    }

    /// Plants the blocks of a stream's outcomes. Returns its errors.
    fn outcomes(&mut self, party: &ZoneParty, what: &str, outcomes: Vec<BlockOutcome>) -> String {
        let mut errors = String::new();
        for outcome in outcomes {
            match outcome.result.unwrap() {
                block_outcome::Result::PinBlock(block) => self.answer(party, what, &block),
                block_outcome::Result::Error(error) => errors.push_str(&(error.reason + &error.message)),
            }
        }
        errors
    }

    fn assert_absent(&self, place: &str, bytes: &[u8]) {
        for (what, pattern) in &self.traces {
            let found = memory_search::contains(bytes, pattern);
            assert!(!found, "{what} left a trace in {place}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_pin_or_account_number_leaves_a_trace() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), METRICS);
    let edge = EdgeProcess::start(directory.path(), &format!("addresses = [\"http://{}\"]", engine.address()), "");
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
    let (card, account, other_account) = ("845039217756", "4716258093174820", "5329071846302915");
    let (pin, wrong, next) = ("907856341290", "918273645546", "36925814");
    for (what, pin) in [("a PIN", pin), ("a wrong PIN", wrong), ("a changed PIN", next)] {
        planted.pin(what, pin);
    }
    for (what, text) in [("an account number", account), ("a new account number", other_account), ("a plasticId", card)]
    {
        planted.text(what, text);
    }

    client.register(card, account).await.unwrap();
    client.set_by_zone(card, &planted.zone_block(&party, "a set block", pin)).await.unwrap();
    let malformed = party.encrypted(ZoneFormat::Iso1, &[0x2F, 0xE1, 0xD2, 0xC3, 0xB4, 0xA5, 0x96, 0x87]);
    planted.block("a malformed block", malformed.pin_block.as_slice().try_into().unwrap());
    let weak = planted.zone_block(&party, "a weak PIN's block", "999999999");
    for refused in [&malformed, &weak] {
        errors.push_str(&format!("{:?}", client.set_by_zone(card, refused).await.unwrap_err()));
    }
    planted.answer(&party, "a given block", &client.get_by_zone(card).await.unwrap());
    let exported = client.export(card, ZoneFormat::Iso0).await.unwrap();
    planted.answer(&party, "an exported block", &exported);
    client.verify(card, &planted.zone_block(&party, "a right block", pin)).await.unwrap();
    client.verify(card, &planted.zone_block(&party, "a wrong block", wrong)).await.unwrap();
    errors.push_str(&format!("{:?}", client.verify(card, &malformed).await.unwrap_err()));
    let change = ZonePinChange {
        plastic_id: card.into(),
        old_block: Some(planted.zone_block(&party, "an old block", pin)),
        new_block: Some(planted.zone_block(&party, "a new block", next)),
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
    let items = vec![item(1, source_block.clone()), item(2, malformed.clone())];
    let translations = TranslatePinBlocksRequest { tenant: tenant.clone(), audit_user: audit_user.clone(), items };
    let mut outcomes = bulk.translate_pin_blocks(stream::iter([translations])).await.unwrap().into_inner();
    while let Some(answer) = outcomes.message().await.unwrap() {
        errors.push_str(&planted.outcomes(&party, "a translated block", answer.outcomes));
    }
    let translate = TranslatePinBlockRequest {
        tenant: tenant.clone(),
        audit_user: audit_user.clone(),
        item: item(1, source_block.clone()).item,
    };
    let translated = client.pins.translate_pin_block(translate.clone()).await.unwrap().into_inner();
    planted.answer(&party, "a block translated alone", &translated.pin_block);
    let refused = TranslatePinBlockRequest { item: item(1, malformed.clone()).item, ..translate };
    errors.push_str(&format!("{:?}", client.pins.translate_pin_block(refused).await.err().unwrap()));
    let exports = [card, "845039217757"].into_iter().zip(1..).map(|(card, sequence)| NumberedExport {
        sequence,
        plastic_id: card.into(),
        zone_key: Some(zone("app")),
        format: ZoneFormat::Iso3.into(),
    });
    let exports =
        ExportPinsRequest { tenant: tenant.clone(), audit_user: audit_user.clone(), items: exports.collect() };
    let mut outcomes = bulk.export_pins(stream::iter([exports])).await.unwrap().into_inner();
    while let Some(answer) = outcomes.message().await.unwrap() {
        errors.push_str(&planted.outcomes(&party, "a block of a stream of exports", answer.outcomes));
    }
    let streamed = "58203947";
    planted.pin("a PIN of a stream", streamed);
    let blocks = [planted.zone_block(&party, "a block of a stream", streamed), malformed];
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

    assert!(errors.matches("PIN_BLOCK_MALFORMED").count() >= 5 && errors.contains("PIN_NOT_SET"), "{errors}");
    assert!(events.len() > 500, "the events are too short for a search");
    planted.assert_absent("events", &events);
    assert_no_trace(planted, &errors, engine, party.directory());
}

/// Searches what an engine with [`METRICS`] wrote, and its memory and that of its boundary; stops the engine.
fn assert_no_trace(mut planted: Planted, errors: &str, engine: EngineProcess, directory: &Path) {
    let data = directory.join("data");
    let storage_key = memory_search::storage_key_of(&data.join("vault"), &data.join("vault.key")).unwrap();
    planted.clear.plant(STORAGE_KEY, &storage_key);
    for (process, expected) in [(engine.id(), [].as_slice()), (engine.hsm_id().unwrap(), &[STORAGE_KEY])] {
        let found = planted.clear.find_in(process).expect("run the tests as root");
        assert!(found.bytes > 1 << 20, "too little memory was read");
        assert_eq!(found.names.into_iter().collect::<Vec<_>>(), expected, "in memory");
    }
    let log = engine.log();
    assert!(log.len() > 1_000, "the log is too short for a search");
    planted.assert_absent("the engine's log", log.as_bytes());
    planted.assert_absent("errors", errors.as_bytes());
    planted.assert_absent("the metrics", engine.metrics().as_bytes());
    assert_eq!(engine.terminate(), 0);
    let exported = Command::new(env!("CARGO_BIN_EXE_pinseal"))
        .args(["audit", "export", "--store"])
        .arg(data.join("store"))
        .output()
        .unwrap();
    assert!(exported.status.success() && exported.stdout.len() > 1_000);
    planted.assert_absent("the audit export", &exported.stdout);
    // The plasticId names the rows of its card.
    planted.traces.retain(|(what, _)| what != "a plasticId");
    assert!(each_file(&data, &planted) > 3, "there are too few files for a search");
}

/// The digits of a PIN and an offset, or of a natural PIN and a PIN, subtracted one by one modulo 10.
fn minus(digits: &str, subtracted: &str) -> String {
    let difference = |(a, b): (u8, u8)| char::from(b'0' + (a + 10 - b) % 10);
    digits.bytes().zip(subtracted.bytes()).map(difference).collect()
}

/// Verification values, generated PINs, and PINs that go to another card or account number.
#[tokio::test(flavor = "multi_thread")]
async fn no_derived_generated_or_transferred_pin_leaves_a_trace() {
    let party = ZoneParty::prepared();
    party.ceremony().load_known("pvk:bank:1", 0x6D);
    party.ceremony().load_known("ibm-3624:bank:0123456789012345:5-15-f", 0x4E);
    let keys = ["pvk:bank", "ibm-3624:bank"]
        .map(|key| format!("[[verification.keys]]\nname = {key:?}\ntenants = [{TENANT:?}]\n"))
        .concat();
    let engine = party.start(&format!("{METRICS}\n{keys}"));
    let (mut client, mut planted, mut errors) = (engine.client().await, Planted::default(), String::new());
    let (account, other_account) = ("4716258093174820", "5329071846302915");
    let (card, successor, of_other) = ("845039217756", "845039217757", "845039217758");
    let (pin, wrong) = ("907856341290", "918273645546");
    [pin, wrong].iter().for_each(|pin| planted.pin("a PIN", pin));
    [account, other_account].iter().for_each(|number| planted.text("an account number", number));
    [card, successor, of_other].iter().for_each(|card| planted.text("a plasticId", card));
    for (card, account) in [(card, account), (successor, account), (of_other, other_account)] {
        client.register(card, account).await.unwrap();
    }
    client.set_by_zone(card, &planted.zone_block(&party, "a set block", pin)).await.unwrap();
    let (tenant, audit_user) = (TENANT.to_owned(), AUDIT_USER.to_owned());

    let pair = |pvki_number| PvkPair { name: "bank".into(), pvki_number };
    let ibm_3624 = || Ibm3624Key { name: "bank".into() };
    let derive = |algorithm| DeriveVerificationValueRequest {
        tenant: tenant.clone(),
        audit_user: audit_user.clone(),
        plastic_id: card.into(),
        method: Some(ValueMethod { algorithm: Some(algorithm) }),
    };
    let pvv = client.pins.derive_verification_value(derive(Algorithm::Pvv(pair(1)))).await.unwrap().into_inner();
    // The 11 rightmost digits of the account number without the check digit, the PVKI, and four digits of the PIN.
    let parameter = u64::from_str_radix(&format!("{}1{}", &account[4..15], &pin[..4]), 16).unwrap();
    planted.clear_block("a security parameter", &parameter.to_be_bytes());
    let offset = derive(Algorithm::Ibm3624Offset(ibm_3624()));
    let offset = client.pins.derive_verification_value(offset).await.unwrap().into_inner().digits;
    let natural = minus(pin, &offset);
    planted.text("an offset", &offset);
    planted.pin("a natural PIN", &natural);
    let unknown = client.pins.derive_verification_value(derive(Algorithm::Pvv(pair(2)))).await.err().unwrap();
    errors.push_str(&format!("{unknown:?}"));
    let right = planted.zone_block(&party, "a right block", pin);
    let wrong = planted.zone_block(&party, "a wrong block", wrong);
    let natural = planted.zone_block(&party, "a block of the natural PIN", &natural);
    let offset = Expected::Ibm3624Offset(ExpectedOffset { key: Some(ibm_3624()), digits: offset });
    for (block, expected, is_right) in [
        (&right, Expected::Pvv(ExpectedPvv { key_pair: Some(pair(1)), digits: pvv.digits }), true),
        (&wrong, offset.clone(), false),
        (&right, offset, true),
        (&natural, Expected::Ibm3624Natural(ExpectedNatural { key: Some(ibm_3624()), digit_count: 12 }), true),
    ] {
        let verify = VerifyPinRequest {
            tenant: tenant.clone(),
            audit_user: audit_user.clone(),
            plastic_id: successor.into(),
            zone_block: Some(block.clone()),
            reference: Some(VerificationReference { expected: Some(expected) }),
        };
        let verified = client.pins.verify_pin(verify).await.unwrap().into_inner();
        assert_eq!(verified.result() == proto::VerificationResult::Right, is_right);
    }

    let transfer = |plastic_id: &str| TransferPinRequest {
        tenant: tenant.clone(),
        audit_user: audit_user.clone(),
        source_plastic_id: card.into(),
        plastic_id: plastic_id.into(),
    };
    client.pins.transfer_pin(transfer(successor)).await.unwrap();
    let given = client.get_by_zone(successor).await.unwrap();
    planted.answer(&party, "a block of the successor", &given);
    assert_eq!(party.decrypted(&given), pin);
    errors.push_str(&format!("{:?}", client.pins.transfer_pin(transfer(of_other)).await.err().unwrap()));
    client.register(card, other_account).await.unwrap();
    let exported = client.export(card, ZoneFormat::Iso3).await.unwrap();
    planted.answer(&party, "a block for the other account number", &exported);
    assert_eq!(party.decrypted_bound(&exported, other_account), pin);

    let generate = |digit_count| GeneratePinRequest {
        tenant: tenant.clone(),
        audit_user: audit_user.clone(),
        plastic_id: of_other.into(),
        digit_count,
    };
    errors.push_str(&format!("{:?}", client.pins.generate_pin(generate(13)).await.err().unwrap()));
    client.pins.generate_pin(generate(12)).await.unwrap();
    let given = client.get_by_zone(of_other).await.unwrap();
    planted.answer(&party, "a block of the generated PIN", &given);
    planted.pin("a generated PIN", &party.decrypted(&given));

    for refused in ["VALUE_KEY_UNKNOWN", "ACCOUNT_MISMATCH", "DIGIT_COUNT_INVALID"] {
        assert!(errors.contains(refused), "{errors}");
    }
    assert_no_trace(planted, &errors, engine, party.directory());
}

/// One-way records, also of PINs that were stored reversibly before.
#[tokio::test(flavor = "multi_thread")]
async fn no_one_way_record_leaves_a_trace() {
    let party = ZoneParty::prepared();
    let (mut planted, mut errors) = (Planted::default(), String::new());
    let (card, older) = ("845039217756", "845039217757");
    let (pin, wrong, next) = ("907856341290", "918273645546", "369258147036");
    [pin, wrong, next].iter().for_each(|pin| planted.pin("a PIN", pin));
    let engine = party.start("");
    let mut client = engine.client().await;
    client.set_by_zone(older, &planted.zone_block(&party, "an older block", pin)).await.unwrap();
    assert_eq!(engine.terminate(), 0);

    let zones = ZONES.replace("\"get-pin\", ", "").replace("\"export\", ", "");
    let lines = format!("{METRICS}\n[boundary]\nform = \"one-way\"\n{zones}");
    let engine = EngineProcess::start(party.directory(), &lines);
    let mut client = engine.client().await;
    client.set_by_zone(card, &planted.zone_block(&party, "a set block", pin)).await.unwrap();
    for card in [card, older] {
        let block = planted.zone_block(&party, "a wrong block", wrong);
        assert_eq!(client.verify(card, &block).await.unwrap(), wrong_pin(2));
        let block = planted.zone_block(&party, "a right block", pin);
        assert_eq!(client.verify(card, &block).await.unwrap(), right_pin(3));
        let malformed = party.encrypted(ZoneFormat::Iso1, &[0x2F, 0xE1, 0xD2, 0xC3, 0xB4, 0xA5, 0x96, 0x87]);
        planted.block("a malformed block", malformed.pin_block.as_slice().try_into().unwrap());
        errors.push_str(&format!("{:?}", client.verify(card, &malformed).await.unwrap_err()));
        let change = ZonePinChange {
            plastic_id: card.into(),
            old_block: Some(planted.zone_block(&party, "an old block", pin)),
            new_block: Some(planted.zone_block(&party, "a new block", next)),
        };
        let request = ChangePinRequest {
            tenant: TENANT.into(),
            audit_user: AUDIT_USER.into(),
            change: Some(change_pin_request::Change::ZoneChange(change)),
        };
        client.pins.change_pin(request).await.unwrap();
        let block = planted.zone_block(&party, "a block of the new PIN", next);
        assert_eq!(client.verify(card, &block).await.unwrap(), right_pin(3));
        client.register(card, "4716258093174820").await.unwrap();
    }
    let shown = client.view(&device(), card).await.unwrap_err();
    errors.push_str(&format!("{shown:?}"));
    assert!(errors.contains("PIN_BLOCK_MALFORMED") && errors.contains("PIN_NOT_SHOWN"), "{errors}");
    assert_no_trace(planted, &errors, engine, party.directory());
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
