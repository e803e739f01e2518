//! The operations of the Card PIN API for a client that shares a zone key: set and get a PIN by HTTP.

use std::process::Command;

use base64::{Engine, engine::general_purpose::STANDARD};
use device::{Fill, Pin};
use proto::FindCardRequest;
use serde_json::{Value, json};

use support::{
    ceremony::{Ceremony, ENOUGH},
    edge_process::{Answer, EdgeProcess, token_of, zone_client},
    engine_process::{AUDIT_USER, EngineProcess, TENANT, device},
    wait::{signal, soon},
    zone_party::ZoneParty,
};

/// The key and the block of the vendor's documentation: the PIN 1234, with the constant fill that its device uses.
const EXAMPLE_KEY: u128 = 0x0011_2233_4455_6677_8899_AABB_CCDD_EEFF;
const EXAMPLE_BLOCK: &str = "81739710556E1518";
const EXAMPLE_FILL: Fill = Fill::Constant(0xA);
const BOTH: &str = "[{ index = 0, uses = [\"set-pin\", \"get-pin\"] }]";

/// An engine with the zone `app` of index 0 and an edge with the client `app`, which has both uses of the zone.
struct Services {
    party: ZoneParty,
    engine: EngineProcess,
    edge: EdgeProcess,
}

fn zone(name: &str, tenant: &str, index: u32, more: &str) -> String {
    format!("[[zones]]\nname = {name:?}\ntenant = {tenant:?}\nindex = {index}\n{more}\n")
}

impl Services {
    fn new() -> Self {
        Self::with("", "")
    }

    /// The same, with these lines of configuration of the engine and of the edge.
    fn with(engine: &str, edge: &str) -> Self {
        let party = ZoneParty::with_key(EXAMPLE_KEY);
        Self::over(party, engine, |_| edge.to_owned())
    }

    fn over(party: ZoneParty, engine: &str, edge: impl Fn(&ZoneParty) -> String) -> Self {
        let app = zone("app", TENANT, 0, "uses = [\"set-pin\", \"get-pin\"]");
        let engine = EngineProcess::start(party.directory(), &format!("{engine}\n{app}"));
        let clients = zone_client(party.directory(), "app", TENANT, BOTH) + &edge(&party);
        let address = format!("addresses = [\"http://{}\"]", engine.address());
        let edge = EdgeProcess::start(party.directory(), &address, &clients);
        Self { party, engine, edge }
    }

    fn set_as(&self, client: &str, plastic: &str, index: &str, block: &str) -> Answer {
        let body = json!({ "zpkIndex": index, "pinBlock": block, "more": [1] }).to_string();
        self.edge.post_as(&bearer(client), &format!("/pin/v2/{plastic}?auditUser=it"), &body)
    }

    fn set(&self, plastic: &str, block: &str) -> Answer {
        self.set_as("app", plastic, "0", block)
    }

    fn get_as(&self, client: &str, plastic: &str, index: &str) -> Answer {
        self.edge.get_as(&bearer(client), &format!("/pin/v2/{plastic}?zpkIndex={index}&auditUser=it"))
    }

    /// The PIN of a card, decrypted by the client's own 3DES.
    fn get(&self, plastic: &str) -> String {
        let answer = self.get_as("app", plastic, "0");
        assert_eq!(answer.status, 200, "{}", answer.text);
        let block = u64::from_str_radix(answer.member("pinBlock"), 16).unwrap();
        assert_eq!((answer.member("pinBlock").len(), answer.body.as_object().unwrap().len()), (16, 1));
        self.party.decrypted(&block.to_be_bytes())
    }

    /// A random format 1 block of a PIN.
    fn block(&self, pin: &str) -> String {
        self.party.hex_block(pin, Fill::Random)
    }
}

fn bearer(client: &str) -> String {
    format!("Bearer {}", token_of(client))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_sets_and_gets_a_pin_under_the_vendors_example_key() {
    let services = Services::with("[pin_policy]\nrefuse = []", "");
    let mut client = services.engine.client().await;
    assert_eq!(services.party.hex_block("1234", EXAMPLE_FILL), EXAMPLE_BLOCK);
    let set = services.set("3301", EXAMPLE_BLOCK);
    assert_eq!((set.status, &*set.text), (200, "{}"));
    assert_eq!(services.get("3301"), "1234");
    assert_eq!(client.view(&device(), "3301").await.unwrap(), "1234");

    let find = || FindCardRequest { tenant: TENANT.into(), audit_user: AUDIT_USER.into(), plastic_id: "3301".into() };
    let before = client.cards.find_card(find()).await.unwrap().into_inner().pin_set_time;
    let (control, block) = client.ready_to_set(&device(), "3301", "27182").await.unwrap();
    assert_eq!(services.set("3301", &EXAMPLE_BLOCK.to_lowercase()).status, 200);
    let after = client.cards.find_card(find()).await.unwrap().into_inner().pin_set_time;
    assert_eq!((after, before.is_some()), (before, true), "the same block changes nothing");
    client.set_block(&control, &block).await.unwrap();

    // At the root, as each route.
    let body = json!({ "zpkIndex": "0", "pinBlock": services.block("31415926") }).to_string();
    assert_eq!(services.edge.post_as(&bearer("app"), "/v2/3301?auditUser=it", &body).status, 200);
    let given = services.edge.get_as(&bearer("app"), "/v2/3301?auditUser=it&zpkIndex=0");
    assert_eq!(given.status, 200);
    let given = u64::from_str_radix(given.member("pinBlock"), 16).unwrap();
    assert_eq!(services.party.decrypted(&given.to_be_bytes()), "31415926");
    assert_ne!(
        services.get_as("app", "3301", "0").text,
        services.get_as("app", "3301", "0").text,
        "the fill is random"
    );
}

#[test]
fn replaced_malformed_and_weak_blocks_have_own_codes() {
    let services = Services::new();
    let first = services.block("27182");
    assert_eq!(services.set("3302", &first).status, 200);
    let malformed = services.set("3302", "0123456789ABCDEF");
    assert_eq!(malformed.fault(), (422, "ZONE_BLOCK_MALFORMED"));
    let [binary, decimal] = [0x0427_182F_FFFF_FFFF_u64, 0x142A_18FF_FFFF_FFFF].map(|clear| {
        let block = services.party.key.encrypt_block(&clear.to_be_bytes());
        services.set("3302", &block.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    });
    assert_eq!(binary.without_id_and_time(), malformed.without_id_and_time());
    assert_eq!(decimal.without_id_and_time(), malformed.without_id_and_time());
    assert_eq!(services.set("3302", &services.block("1111")).fault(), (422, "PIN_REFUSED"));
    assert_eq!(services.get("3302"), "27182");

    for pin in ["31415", "16180", "14142", "26535", "57721", "69314", "30102", "43429"] {
        assert_eq!(services.set("3302", &services.block(pin)).status, 200);
        assert_eq!(services.set("3302", &first).fault(), (422, "PIN_BLOCK_REPLACED"), "before {pin}");
    }
    assert_eq!(services.get("3302"), "43429");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_set_by_a_client_closes_the_controls_that_were_open() {
    let services = Services::new();
    let device = device();
    let mut client = services.engine.client().await;
    let (control, block) = client.ready_to_set(&device, "3303", "16180").await.unwrap();
    assert_eq!(services.set("3303", &services.block("27182")).status, 200);
    let body = json!({ "controlId": control, "pinBlock": STANDARD.encode(block) }).to_string();
    assert_eq!(services.edge.post("/v3/set?auditUser=it", &body).fault(), (404, "CONTROL_NOT_USABLE"));
    assert_eq!(services.get("3303"), "27182");
}

/// The only entry of a request, as soon as it is in the chain.
async fn entry_of(engine: &EngineProcess, request: &str) -> Value {
    soon("the engine audits the request", async || {
        let mut pinseal = Command::new(env!("CARGO_BIN_EXE_pinseal"));
        let output = pinseal.args(["audit", "tail", "--engine", engine.address()]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let printed = String::from_utf8(output.stdout).unwrap();
        printed
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .find(|entry| entry["request"] == request)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_use_that_the_edge_does_not_grant_is_denied_logged_and_audited() {
    let party = ZoneParty::with_key(EXAMPLE_KEY);
    let services = Services::over(party, "", |party| {
        let client = |name, zones: &str| zone_client(party.directory(), name, TENANT, zones);
        client("setter", "[{ index = 0, uses = [\"set-pin\"] }]")
            + &client("getter", "[{ index = 0, uses = [\"get-pin\"] }]")
            + &client("nothing", "[]")
    });
    let block = services.block("27182");
    assert_eq!(services.set_as("setter", "3304", "0", &block).status, 200);
    assert_eq!(services.get_as("getter", "3304", "0").status, 200);
    for (denied, client, method) in [
        (services.get_as("setter", "3304", "0"), "setter", "get_pin_by_zone"),
        (services.set_as("getter", "3304", "0", &block), "getter", "set_pin_by_zone"),
        (services.set_as("nothing", "3304", "0", "not even a block"), "nothing", "set_pin_by_zone"),
        (services.get_as("app", "3304", "1"), "app", "get_pin_by_zone"),
    ] {
        assert_eq!(denied.fault(), (403, "ZONE_FORBIDDEN"), "{client}");
        let id = denied.member("id");
        let entry = entry_of(&services.engine, id).await;
        let expected = json!({ "type": "call_denied", "method": method, "reason": "client", "unrecorded": 0 });
        assert_eq!((&entry["event"], &entry["outcome"]), (&expected, &json!("denied")));
        assert_eq!((&entry["tenant"], &entry["audit_user"]), (&json!(TENANT), &json!("it")));
        let log = services.edge.log();
        let line = log.lines().find(|line| line.contains(id) && line.contains("ZONE_FORBIDDEN")).unwrap();
        assert!(line.contains(&format!("\"client\":\"{client}\"")), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_is_withdrawn_ends_with_a_reload() {
    let services = Services::new();
    assert_eq!(services.set("3305", &services.block("27182")).status, 200);
    let path = services.party.directory().join("edge.toml");
    let granted = std::fs::read_to_string(&path).unwrap();
    assert!(granted.contains(BOTH));
    std::fs::write(&path, granted.replace(BOTH, "[{ index = 0, uses = [\"set-pin\"] }]")).unwrap();
    signal(services.edge.id(), "HUP");
    let denied = soon("the edge denies the use", async || {
        Some(services.get_as("app", "3305", "0")).filter(|answer| answer.status != 200)
    });
    assert_eq!(denied.await.fault(), (403, "ZONE_FORBIDDEN"));
    assert_eq!(services.set("3305", &services.block("31415")).status, 200);
}

#[test]
fn a_zone_that_the_engine_does_not_allow_is_403_or_404() {
    let party = ZoneParty::with_key(EXAMPLE_KEY);
    let make_zone_key = |ceremony: &Ceremony, name: &str, algorithm: &str| {
        ceremony.well("make", ENOUGH, &[&format!("zone:{name}"), "--algorithm", algorithm]);
        ceremony.well("activate", ENOUGH, &[&format!("zone:{name}/1")]);
    };
    make_zone_key(party.ceremony(), "idle", "3des-double");
    make_zone_key(party.ceremony(), "other", "3des-double");
    make_zone_key(party.ceremony(), "modern", "aes-256");
    let zones = zone("idle", TENANT, 1, "uses = [\"export\"]\nformats = [\"iso-0\"]")
        + &zone("other", "other", 2, "uses = [\"set-pin\", \"get-pin\"]")
        + &zone("modern", TENANT, 4, "uses = [\"set-pin\"]\nformats = [\"iso-4\"]");
    let services = Services::over(party, &zones, |party| {
        let uses = |index| format!("{{ index = {index}, uses = [\"set-pin\", \"get-pin\"] }}");
        let all = format!("[{}]", [0, 1, 2, 3, 4].map(uses).join(", "));
        zone_client(party.directory(), "wide", TENANT, &all)
            + &zone_client(party.directory(), "of-other", "other", &all)
    });
    let card = "5413330089020011";
    let block = services.block("27182");
    assert_eq!(services.set_as("wide", card, "0", &block).status, 200);
    for (index, expected) in
        [("1", (403, "ZONE_FORBIDDEN")), ("2", (404, "ZONE_UNKNOWN")), ("3", (404, "ZONE_UNKNOWN"))]
    {
        assert_eq!(services.set_as("wide", card, index, &block).fault(), expected, "set {index}");
        assert_eq!(services.get_as("wide", card, index).fault(), expected, "get {index}");
    }
    // Indexes are those of the client's own tenant, and so are the cards.
    assert_eq!(services.set_as("of-other", card, "0", &block).fault(), (404, "ZONE_UNKNOWN"));
    assert_eq!(services.get_as("of-other", card, "2").fault(), (404, "PIN_NOT_SET"));

    // The zone's format gives the length of its blocks.
    assert_eq!(services.set_as("wide", card, "4", &block).fault(), (400, "ZONE_BLOCK_INVALID"));
    assert_eq!(services.set_as("wide", card, "0", &block.repeat(2)).fault(), (400, "ZONE_BLOCK_INVALID"));
    assert_eq!(services.set_as("wide", card, "4", &block.repeat(2)).fault(), (422, "ZONE_BLOCK_MALFORMED"));
    assert_eq!(services.get_as("wide", card, "4").fault(), (403, "ZONE_FORBIDDEN"));
}

#[test]
fn each_mistake_of_a_pre_shared_request_has_one_text() {
    let services = Services::new();
    let block = services.block("27182");
    let post = |path: &str, body: Value| services.edge.post_as(&bearer("app"), path, &body.to_string());
    let get = |path: &str| services.edge.get_as(&bearer("app"), path);
    let (path, good) = ("/pin/v2/3306?auditUser=it", json!({ "zpkIndex": "0", "pinBlock": block }));
    for (answer, code, text) in [
        (post("/pin/v2/3306", good.clone()), "AUDIT_USER_INVALID", "auditUser"),
        (post("/pin/v2/33a?auditUser=it", good.clone()), "PLASTIC_ID_INVALID", "1 to 19"),
        (post(path, json!({ "pinBlock": block })), "BODY_MALFORMED", "zpkIndex is missing"),
        (post(path, json!({ "zpkIndex": 0, "pinBlock": block })), "BODY_MALFORMED", "zpkIndex is not a JSON string"),
        (post(path, json!({ "zpkIndex": "00", "pinBlock": block })), "ZPK_INDEX_INVALID", "leading zeros"),
        (post(path, json!({ "zpkIndex": "0" })), "BODY_MALFORMED", "pinBlock is missing"),
        (post(path, json!({ "zpkIndex": "0", "pinBlock": &block[1..] })), "ZONE_BLOCK_INVALID", "15 characters"),
        (post(path, json!({ "zpkIndex": "0", "pinBlock": "tACuB41yyfU=" })), "ZONE_BLOCK_INVALID", "12 characters"),
        (
            post(path, json!({ "zpkIndex": "0", "pinBlock": "G123456789ABCDEF" })),
            "ZONE_BLOCK_INVALID",
            "not a hexadecimal",
        ),
        (get("/pin/v2/3306?zpkIndex=0"), "AUDIT_USER_INVALID", "auditUser"),
        (get("/pin/v2/3306?auditUser=it"), "ZPK_INDEX_INVALID", "zpkIndex is missing"),
        (get("/pin/v2/3306?zpkIndex=0&auditUser=it&zpkIndex=0"), "ZPK_INDEX_INVALID", "more than once"),
        (get("/pin/v2/3306?zpkIndex=-1&auditUser=it"), "ZPK_INDEX_INVALID", "0 to 9999"),
        (get("/pin/v2/33a?zpkIndex=0&auditUser=it"), "PLASTIC_ID_INVALID", "1 to 19"),
    ] {
        assert_eq!(answer.fault(), (400, code), "{text}");
        assert_eq!(answer.member("errorType"), "STATIC_VALIDATION_ERROR");
        assert!(answer.member("message").contains(text), "{text}: {}", answer.text);
    }
    assert_eq!(get("/pin/v2/3306?zpkIndex=0&auditUser=it").fault(), (404, "PIN_NOT_SET"));
    assert_eq!(services.edge.post_as("", path, &good.to_string()).fault(), (401, "UNAUTHENTICATED"));

    // A HEAD would get a PIN that nobody receives.
    assert_eq!(post(path, good).status, 200);
    let head = format!(
        "HEAD /pin/v2/3306?zpkIndex=0&auditUser=it HTTP/1.1\r\nhost: edge\r\nauthorization: {}\r\nconnection: close\r\n\r\n",
        bearer("app")
    );
    let answer = services.edge.raw_head(head.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET, POST"), "{answer}");
    // The content of a GET has no meaning, whatever its type.
    let curl =
        ["-X", "GET", "-H", &format!("authorization: {}", bearer("app")), "-H", "content-type: text/plain", "-d", "x"];
    let (_, answer) = services.edge.curl("/pin/v2/3306?zpkIndex=0&auditUser=it", &curl).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text);
}

#[test]
fn the_strict_profile_has_the_vendors_statuses_for_zones() {
    let services = Services::with("", "");
    let edge = EdgeProcess::start_quiet_with(
        services.party.directory(),
        &format!("addresses = [\"http://{}\"]", services.engine.address()),
        &format!("error_profile = \"strict\"\n{}", zone_client(services.party.directory(), "app", TENANT, BOTH)),
    );
    let set = |index: &str, block: &str| {
        let body = json!({ "zpkIndex": index, "pinBlock": block }).to_string();
        edge.post_as(&bearer("app"), "/v2/3307?auditUser=it", &body)
    };
    assert_eq!(set("0", "0123").fault(), (404, "ZONE_BLOCK_INVALID"));
    assert_eq!(set("0", "0123456789ABCDEF").fault(), (404, "ZONE_BLOCK_MALFORMED"));
    assert_eq!(set("0", &services.block("1111")).fault(), (404, "PIN_REFUSED"));
    assert_eq!(set("1", "0123456789ABCDEF").fault(), (403, "ZONE_FORBIDDEN"));
    let get = |query: &str| edge.get_as(&bearer("app"), &format!("/v2/3307?auditUser=it{query}"));
    assert_eq!(get("").fault(), (404, "ZPK_INDEX_INVALID"));
    assert_eq!(get("&zpkIndex=0").fault(), (404, "PIN_NOT_SET"));
}

#[test]
fn no_pin_and_no_block_of_a_zone_is_in_the_logs() {
    let services = Services::new();
    let (mut planted, mut clear_blocks) = (Vec::new(), Vec::new());
    let pins = ["907856341290", "86420975", "271828182845", "141421356237"];
    for pin in pins {
        let clear = Pin::parse(pin).unwrap().to_block(Fill::Random);
        let block = services.party.key.encrypt_block(&clear);
        clear_blocks.extend([clear, block]);
        let block: String = block.iter().map(|byte| format!("{byte:02X}")).collect();
        assert_eq!(services.set("3308", &block).status, 200);
        assert_eq!(services.set("3308", &block).status, 200);
        let given = services.get_as("app", "3308", "0");
        assert_eq!(given.status, 200);
        let given = u64::from_str_radix(given.member("pinBlock"), 16).unwrap().to_be_bytes();
        clear_blocks.extend([given, services.party.key.decrypt_block(&given)]);
        planted.push(pin.to_owned());
    }
    for refused in ["999999999", "123456789"].map(|weak| Pin::parse(weak).unwrap().to_block(Fill::Random)) {
        let block = services.party.key.encrypt_block(&refused);
        clear_blocks.extend([refused, block]);
        let hex: String = block.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(services.set("3308", &hex).fault(), (422, "PIN_REFUSED"));
        assert_eq!(services.set_as("app", "3308", "9", &hex).fault(), (403, "ZONE_FORBIDDEN"));
        assert_eq!(services.set("3308", &hex[1..]).fault(), (400, "ZONE_BLOCK_INVALID"));
        planted.push(hex[1..].to_owned());
    }
    for block in clear_blocks {
        let hex: String = block.iter().map(|byte| format!("{byte:02x}")).collect();
        let list = format!("{block:?}");
        planted.extend([hex.to_uppercase(), hex, STANDARD.encode(block), list.trim_matches(['[', ']']).to_owned()]);
    }
    planted.push(token_of("app"));
    let logs = [("edge", services.edge.log()), ("engine", services.engine.log())];
    for (of, log) in &logs {
        assert!(log.len() > 1_000, "the log of the {of} is too short for a search");
        for text in &planted {
            assert!(!log.contains(text), "{text} is in the log of the {of}");
        }
    }
}
