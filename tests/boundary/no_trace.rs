//! No trace of a PIN or an account number: not in logs at the most verbose level, not in store files, not in the audit
//! export, not in error bodies, not in metrics; and no clear or device-side block either.

use std::{fs, path::Path, process::Command};

use base64::{Engine, engine::general_purpose::STANDARD};
use device::{Fill, Pin};
use proto::RegisterCardRequest;
use serde_json::json;

use support::{
    edge_process::{EdgeProcess, TOKEN},
    engine_process::{AUDIT_USER, EngineProcess, METRICS, TENANT, device},
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
