//! The Card PIN API over HTTP: each kind of invalid input has the answer of the contract.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use device::{Device, Fill, Pin};
use serde_json::json;

use support::{
    edge_process::{Answer, EdgeProcess, OTHER_TOKEN, PASSWORD, TOKEN},
    engine_process::{EngineProcess, device},
};

/// An engine and an edge in front of it.
struct Services {
    engine: EngineProcess,
    edge: EdgeProcess,
    _directory: tempfile::TempDir,
}

impl Services {
    fn new(edge_extra: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let engine = EngineProcess::start(directory.path(), "");
        let address = format!("addresses = [\"http://{}\"]", engine.address());
        let edge = EdgeProcess::start(directory.path(), &address, edge_extra);
        Self { engine, edge, _directory: directory }
    }

    fn open(&self, scope: &str) -> String {
        let body = json!({ "scope": scope }).to_string();
        let answer = self.edge.post("/pincontrol/v2/plastic/3001?auditUser=it", &body);
        assert_eq!(answer.status, 201, "{}", answer.text);
        answer.member("id").to_owned()
    }

    fn tzpk(&self, control: &str, device: &Device) -> Vec<u8> {
        let answer = self.ask_tzpk(control, &STANDARD.encode(device.public_key_der()));
        assert_eq!(answer.status, 200, "{}", answer.text);
        STANDARD.decode(answer.member("tzpk")).unwrap()
    }

    fn ask_tzpk(&self, control: &str, public_key: &str) -> Answer {
        let body = json!({ "controlId": control, "publicKey": public_key, "unknown": 1 }).to_string();
        self.edge.post("/pin/v3/set/tzpk?auditUser=it", &body)
    }

    fn set(&self, control: &str, block: &[u8]) -> Answer {
        self.set_text(control, &STANDARD.encode(block))
    }

    fn set_text(&self, control: &str, block: &str) -> Answer {
        self.edge.post("/v3/set?auditUser=it", &json!({ "controlId": control, "pinBlock": block }).to_string())
    }
}

/// Whether the condition holds within five seconds.
fn soon(mut is_so: impl FnMut() -> bool) -> bool {
    (0..50).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        is_so()
    })
}

fn block(device: &Device, tzpk: &[u8], pin: &str) -> [u8; 8] {
    device.encrypt_pin(tzpk, &Pin::parse(pin).unwrap(), Fill::Constant(0xA)).unwrap()
}

#[test]
fn a_set_may_be_repeated_after_a_lost_reply() {
    let (services, device) = (Services::new(""), device());
    let control = services.open("SET_PIN");
    let tzpk = services.tzpk(&control, &device);
    assert_eq!(tzpk.len(), 256);
    let good = block(&device, &tzpk, "2580");
    for _ in 0..2 {
        let answer = services.set(&control, &good);
        assert_eq!((answer.status, answer.text.as_str()), (200, "{}"));
    }
    assert_eq!(services.set(&control, &block(&device, &tzpk, "9517")).fault(), (404, "CONTROL_NOT_USABLE"));
}

#[test]
fn a_retry_of_a_replaced_pin_is_404() {
    let (services, device) = (Services::new(""), device());
    let first = services.open("SET_PIN");
    let first_block = block(&device, &services.tzpk(&first, &device), "2580");
    assert_eq!(services.set(&first, &first_block).status, 200);
    let second = services.open("SET_PIN");
    let second_block = block(&device, &services.tzpk(&second, &device), "9517");
    assert_eq!(services.set(&second, &second_block).status, 200);

    assert_eq!(services.set(&first, &first_block).fault(), (404, "CONTROL_NOT_USABLE"));
    assert_eq!(services.set(&second, &second_block).status, 200, "the PIN that stands is confirmed");
    let unknown = services.set("0b2f6dc5-53c5-4f2b-8a6b-3a1c1e0a9f11", &first_block);
    assert_eq!(services.set(&first, &first_block).without_id_and_time(), unknown.without_id_and_time());
}

#[test]
fn the_first_set_closes_a_cards_other_open_control() {
    let (services, device) = (Services::new(""), device());
    let (first, other) = (services.open("SET_PIN"), services.open("SET_PIN"));
    let first_block = block(&device, &services.tzpk(&first, &device), "2580");
    let other_block = block(&device, &services.tzpk(&other, &device), "9517");
    assert_eq!(services.set(&other, &other_block).status, 200);
    assert_eq!(services.set(&first, &first_block).fault(), (404, "CONTROL_NOT_USABLE"));
    let again = services.ask_tzpk(&first, &STANDARD.encode(device.public_key_der()));
    assert_eq!(again.fault(), (404, "CONTROL_NOT_USABLE"));
    assert_eq!(services.set(&other, &other_block).status, 200);
}

/// The boundary is stopped while the client gives up, so the call is in flight and cannot finish.
#[test]
fn an_abandoned_set_does_not_replace_a_later_pin() {
    let (services, device) = (Services::new(""), device());
    let (given_up, later) = (services.open("SET_PIN"), services.open("SET_PIN"));
    let first_block = block(&device, &services.tzpk(&given_up, &device), "2580");
    let later_block = block(&device, &services.tzpk(&later, &device), "9517");
    let boundary = rustix::process::Pid::from_raw(services.engine.hsm_id().unwrap() as i32).unwrap();
    rustix::process::kill_process(boundary, rustix::process::Signal::STOP).unwrap();
    let body = json!({ "controlId": given_up, "pinBlock": STANDARD.encode(first_block) }).to_string();
    let mut client = services.edge.connect();
    let head = format!("POST /v3/set?auditUser=it HTTP/1.1\r\nhost: edge\r\nauthorization: Bearer {TOKEN}");
    let length = format!("content-type: application/json\r\ncontent-length: {}", body.len());
    client.write_all(format!("{head}\r\n{length}\r\n\r\n{body}").as_bytes()).unwrap();
    // Time for the call to reach the boundary; if it is too short, the call is given up before that.
    std::thread::sleep(Duration::from_millis(200));
    drop(client);
    rustix::process::kill_process(boundary, rustix::process::Signal::CONT).unwrap();

    let set = |control: &str, block: &[u8]| {
        let mut answer = services.set(control, block);
        // The supervisor may have restarted the stopped boundary.
        while answer.status == 503 {
            std::thread::sleep(Duration::from_millis(100));
            answer = services.set(control, block);
        }
        answer.status
    };
    // If the edge is slow to notice that its client has gone, the abandoned call may come first and close the later
    // control.
    let (acknowledged, its_block) = match set(&later, &later_block) {
        200 => (later, later_block),
        status => {
            assert_eq!(status, 404);
            let fresh = services.open("SET_PIN");
            let fresh_block = block(&device, &services.tzpk(&fresh, &device), "9517");
            assert_eq!(set(&fresh, &fresh_block), 200);
            (fresh, fresh_block)
        }
    };
    assert_eq!(set(&given_up, &first_block), 404);
    assert_eq!(set(&acknowledged, &its_block), 200, "the acknowledged PIN stands");
}

#[test]
fn unknown_and_spent_controls_have_the_same_answer() {
    let (services, device) = (Services::new(""), device());
    let control = services.open("SET_PIN");
    let tzpk = services.tzpk(&control, &device);
    services.set(&control, &block(&device, &tzpk, "2580"));
    let spent = services.set(&control, &[7; 8]);
    let unknown = services.set("0b2f6dc5-53c5-4f2b-8a6b-3a1c1e0a9f11", &[7; 8]);
    assert_eq!(spent.fault(), (404, "CONTROL_NOT_USABLE"));
    assert_eq!(spent.without_id_and_time(), unknown.without_id_and_time());
}

#[test]
fn every_malformed_block_has_the_same_answer() {
    let (services, device) = (Services::new(""), device());
    let classes: [u64; 6] = [
        0x0412_34FF_FFFF_FFFF,
        0x2412_34FF_FFFF_FFFF,
        0x1312_3FFF_FFFF_FFFF,
        0x1D12_3456_7890_1234,
        0x14A2_34FF_FFFF_FFFF,
        0x1412_3FFF_FFFF_FFFF,
    ];
    let mut answers = Vec::new();
    for class in classes {
        let control = services.open("SET_PIN");
        let tzpk = device.decrypt_tzpk(&services.tzpk(&control, &device)).unwrap();
        let answer = services.set(&control, &tzpk.encrypt_block(&class.to_be_bytes()));
        assert_eq!(answer.fault(), (422, "PIN_BLOCK_MALFORMED"));
        answers.push(answer.without_id_and_time());
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]));
}

#[test]
fn a_weak_pin_and_a_missing_tzpk_have_own_codes() {
    let (services, device) = (Services::new(""), device());
    let control = services.open("SET_PIN");
    assert_eq!(services.set(&control, &[7; 8]).fault(), (422, "TZPK_MISSING"));
    let tzpk = services.tzpk(&control, &device);
    assert_eq!(services.set(&control, &block(&device, &tzpk, "1234")).fault(), (422, "PIN_REFUSED"));
    assert_eq!(services.set(&control, &block(&device, &tzpk, "2580")).status, 200);
}

#[test]
fn a_malformed_field_answers_400_and_keeps_the_control() {
    let (services, device) = (Services::new(""), device());
    let control = services.open("SET_PIN");
    let tzpk = services.tzpk(&control, &device);
    let faults = [
        (services.set(&control, &[1; 7]), "PIN_BLOCK_LENGTH"),
        (services.set(&control, &[1; 9]), "PIN_BLOCK_LENGTH"),
        (services.set_text(&control, "no base64!!!"), "PIN_BLOCK_LENGTH"),
        (services.set("not-a-uuid", &[7; 8]), "CONTROL_ID_INVALID"),
        (services.edge.post("/v3/set?auditUser=it", "{\"controlId\":"), "BODY_MALFORMED"),
        (services.edge.post("/v3/set?auditUser=it", "[]"), "BODY_MALFORMED"),
        (services.edge.post("/v3/set", "{}"), "AUDIT_USER_INVALID"),
        (services.edge.post("/v3/set?auditUser=", "{}"), "AUDIT_USER_INVALID"),
        (services.ask_tzpk(&control, "MIIB"), "DEVICE_KEY_INVALID"),
        (services.ask_tzpk(&control, "not base64"), "DEVICE_KEY_INVALID"),
        (services.ask_tzpk(&control, RSA_1024), "DEVICE_KEY_INVALID"),
        (
            services.edge.post("/pincontrol/v2/plastic/12a?auditUser=it", "{\"scope\":\"SET_PIN\"}"),
            "PLASTIC_ID_INVALID",
        ),
        (services.edge.post("/pincontrol/v2/plastic/1?auditUser=it", "{\"scope\":\"BOTH\"}"), "SCOPE_INVALID"),
    ];
    for (answer, code) in &faults {
        assert_eq!(answer.fault(), (400, *code));
        assert_eq!(answer.member("errorType"), "STATIC_VALIDATION_ERROR");
    }
    let mut trailing = device.public_key_der().to_vec();
    trailing.push(0);
    assert_eq!(services.ask_tzpk(&control, &STANDARD.encode(trailing)).fault(), (400, "DEVICE_KEY_INVALID"));
    assert_eq!(services.set(&control, &block(&device, &tzpk, "2580")).status, 200, "bad input cost the control");
}

#[test]
fn a_body_that_only_resembles_the_contracts_opens_no_control() {
    let services = Services::new("");
    let open =
        |user: &str, body: &str| services.edge.post(&format!("/pincontrol/v2/plastic/3005?auditUser={user}"), body);
    for body in
        ["[\"SET_PIN\"]", " [\"SET_PIN\"]", "{\"scope\":{\"SET_PIN\":null}}", "{\"scope\":1}", "\"SET_PIN\"", ""]
    {
        assert_eq!(open("it", body).fault(), (400, "BODY_MALFORMED"), "{body}");
    }
    for scope in ["set_pin", "", "SET_PIN "] {
        assert_eq!(open("it", &json!({ "scope": scope }).to_string()).fault(), (400, "SCOPE_INVALID"), "{scope}");
    }
    for user in ["%ff", "a%C3", "it&auditUser=it"] {
        assert_eq!(open(user, "{\"scope\":\"SET_PIN\"}").fault(), (400, "AUDIT_USER_INVALID"), "{user}");
    }
    assert_eq!(open("%C3%A5sa", "\r\n {\"scope\":\"SET_PIN\"}").status, 201);
    let key = STANDARD.encode(device().public_key_der());
    let array = json!([services.open("SET_PIN"), key]).to_string();
    assert_eq!(services.edge.post("/v3/set/tzpk?auditUser=it", &array).fault(), (400, "BODY_MALFORMED"));
}

#[test]
fn a_field_of_any_length_is_a_400_by_name() {
    let (services, device) = (Services::new("body_bytes_max = 1048576"), device());
    let (control, key) = (services.open("SET_PIN"), STANDARD.encode(device.public_key_der()));
    // The longest auditUser, in a message whose other fields nearly reach the limit.
    let user = "%F0%9F%94%91".repeat(128);
    for length in [37, 5_000, 15_000, 16_300, 16_384, 100_000, 1_000_000] {
        let long = "a".repeat(length);
        let post = |route: &str, body: serde_json::Value| {
            services.edge.post(&format!("/v3/{route}?auditUser={user}"), &body.to_string())
        };
        for answer in [
            post("set", json!({ "controlId": long, "pinBlock": "tACuB41yyfU=" })),
            post("set/tzpk", json!({ "controlId": long, "publicKey": key })),
            post("view", json!({ "controlId": long, "publicKey": key })),
        ] {
            assert_eq!(answer.fault(), (400, "CONTROL_ID_INVALID"), "{length}");
        }
        for route in ["set/tzpk", "view"] {
            let answer = post(route, json!({ "controlId": control, "publicKey": long }));
            assert_eq!(answer.fault(), (400, "DEVICE_KEY_INVALID"), "{length}");
        }
        let answer = post("set", json!({ "controlId": control, "pinBlock": long }));
        assert_eq!(answer.fault(), (400, "PIN_BLOCK_LENGTH"), "{length}");
        let answer = services.edge.post(
            &format!("/pincontrol/v2/plastic/3006?auditUser={user}"),
            &json!({ "scope": "SET_PIN", "more": long }).to_string(),
        );
        assert_eq!(answer.status, 201, "{length}: {}", answer.text);
        let answer = services.edge.post(
            &format!("/pincontrol/v2/plastic/{}?auditUser=it", "7".repeat(length.min(15_000))),
            "{\"scope\":\"SET_PIN\"}",
        );
        assert_eq!(answer.fault(), (400, "PLASTIC_ID_INVALID"), "{length}");
    }
}

#[test]
fn an_audit_user_with_hidden_characters_opens_no_control() {
    let services = Services::new("");
    for hidden in ["%E2%80%A8", "%E2%80%AE", "%E2%80%8B", "%EF%BB%BF", "%D8%9C", "%EE%80%80", "%F3%A0%80%81", "%00"] {
        let path = format!("/pincontrol/v2/plastic/3007?auditUser=a{hidden}b");
        let answer = services.edge.post(&path, "{\"scope\":\"SET_PIN\"}");
        assert_eq!(answer.fault(), (400, "AUDIT_USER_INVALID"), "{hidden}");
    }
}

/// `EdgeProcess::post_as` asserts it for each answer to a POST.
#[test]
fn no_cache_may_keep_an_answer_of_the_edge() {
    let (services, device) = (Services::new(""), device());
    let control = services.open("SET_PIN");
    let tzpk = services.tzpk(&control, &device);
    assert_eq!(services.set(&control, &block(&device, &tzpk, "2580")).status, 200);
    let view = json!({ "controlId": services.open("VIEW_PIN"), "publicKey": STANDARD.encode(device.public_key_der()) });
    assert_eq!(services.edge.post("/v3/view?auditUser=it", &view.to_string()).status, 200);
    for path in ["/openapi.json", "/docs", "/healthz", "/readyz", "/pin/v3/set", "/nowhere"] {
        assert_eq!(services.edge.cache_control_of(path).as_deref(), Some("no-store"), "{path}");
    }
}

#[test]
fn missing_or_wrong_credentials_are_unauthorized() {
    let services = Services::new("");
    let path = "/pincontrol/v2/plastic/3002?auditUser=it";
    let body = "{\"scope\":\"SET_PIN\"}";
    for authorization in ["", "Bearer wrong", "Basic d3Jvbmc6d3Jvbmc=", "Bearer"] {
        let answer = services.edge.post_as(authorization, path, body);
        assert_eq!(answer.fault(), (401, "UNAUTHENTICATED"), "{authorization:?}");
        assert_eq!(answer.member("errorType"), "SECURITY_ERROR");
    }
    let basic = format!("Basic {}", STANDARD.encode(format!("backoffice:{PASSWORD}")));
    assert_eq!(services.edge.post_as(&basic, path, body).status, 201);
}

#[test]
fn another_tenants_control_and_another_purpose_are_forbidden() {
    let (services, device) = (Services::new(""), device());
    let control = services.open("SET_PIN");
    let body = json!({ "controlId": control, "publicKey": STANDARD.encode(device.public_key_der()) }).to_string();
    let other = format!("Bearer {OTHER_TOKEN}");
    assert_eq!(services.edge.post_as(&other, "/v3/set/tzpk?auditUser=it", &body).fault(), (403, "TENANT_MISMATCH"));
    assert_eq!(services.edge.post("/v3/view?auditUser=it", &body).fault(), (403, "SCOPE_MISMATCH"));

    let view = services.open("VIEW_PIN");
    let body = json!({ "controlId": view, "publicKey": STANDARD.encode(device.public_key_der()) }).to_string();
    assert_eq!(services.edge.post("/v3/view?auditUser=it", &body).fault(), (404, "PIN_NOT_SET"));
}

#[test]
fn every_rejected_http_request_has_an_error_body() {
    let services = Services::new("");
    let large = format!("{{\"scope\":\"SET_PIN\",\"x\":\"{}\"}}", "y".repeat(20_000));
    let answer = services.edge.post("/pincontrol/v2/plastic/3003?auditUser=it", &large);
    assert_eq!(answer.fault(), (413, "BODY_TOO_LARGE"));
    assert_eq!(services.edge.post("/v4/set?auditUser=it", "{}").fault(), (404, "ROUTE_UNKNOWN"));
    assert_eq!(services.edge.post("/openapi.json", "{}").fault(), (405, "METHOD_NOT_ALLOWED"));
}

#[test]
fn a_cut_body_is_malformed_and_a_stalled_times_out() {
    let services = Services::new("request_timeout_milliseconds = 60000");
    let path = "/v3/set?auditUser=it";
    let chunked = "transfer-encoding: chunked";
    for (headers, body) in [
        (chunked, "zz\r\n{}\r\n0\r\n\r\n"),
        (chunked, "2\r\n{}\r\n"),
        (chunked, "20\r\n{}"),
        ("content-length: 40", "{\"controlId\":"),
    ] {
        let answer = services.edge.post_raw(path, headers, body, true);
        assert_eq!(answer.fault(), (400, "BODY_MALFORMED"), "{headers}: {body}");
    }
    let began = std::time::Instant::now();
    for (headers, body) in [("content-length: 40", "{\"controlId\":"), (chunked, "2\r\n{}\r\n"), (chunked, "")] {
        let answer = services.edge.post_raw(path, headers, body, false);
        assert_eq!(answer.fault(), (408, "BODY_TIMEOUT"), "{headers}: {body}");
    }
    assert!(began.elapsed().as_secs() < 60, "a stalled body takes as long as a request may");
}

#[test]
fn an_early_http2_answer_reads_the_whole_body_first() {
    let services = Services::new("");
    for (path, code) in [("/v3/set", "UNAUTHENTICATED"), ("/v4/set", "ROUTE_UNKNOWN"), ("/docs", "METHOD_NOT_ALLOWED")]
    {
        let mut stream = services.edge.connect();
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let frame = |kind: u8, flags: u8, stream: u8, bytes: &[u8]| {
            [&[0, 0, u8::try_from(bytes.len()).unwrap(), kind, flags, 0, 0, 0, stream], bytes].concat()
        };
        // POST, http, :authority and the path as literals.
        let head = [b"\x83\x86\x01\x04edge\x04", &[u8::try_from(path.len()).unwrap()][..], path.as_bytes()].concat();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        stream.write_all(&[frame(4, 0, 0, &[]), frame(1, 0x4, 1, &head)].concat()).unwrap();
        let before = frames_of_stream_1(&mut stream);
        assert!(before.is_empty(), "{code} is answered before the body is there");
        stream.write_all(&frame(0, 0x1, 1, b"{}")).unwrap();
        let frames = frames_of_stream_1(&mut stream);
        let kinds: Vec<u8> = frames.iter().map(|(kind, _)| *kind).filter(|kind| *kind != 8).collect();
        assert_eq!(kinds, [1, 0], "{code}: HEADERS and DATA, no RST_STREAM");
        let text: Vec<u8> = frames.into_iter().filter(|(kind, _)| *kind == 0).flat_map(|(_, bytes)| bytes).collect();
        assert!(String::from_utf8(text).unwrap().contains(code));
    }
}

/// The HTTP/2 frames on stream 1, kind and payload, until none arrives for a while.
fn frames_of_stream_1(stream: &mut TcpStream) -> Vec<(u8, Vec<u8>)> {
    let mut heard = Vec::new();
    // The loop ends when a read times out.
    let _ = stream.read_to_end(&mut heard);
    let (mut frames, mut rest) = (Vec::new(), heard.as_slice());
    while let Some((head, after)) = rest.split_first_chunk::<9>() {
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        let (payload, after) = after.split_at(length);
        if head[5..] == [0, 0, 0, 1] {
            frames.push((head[3], payload.to_vec()));
        }
        rest = after;
    }
    frames
}

#[test]
fn a_refused_request_leaves_its_connection_fit_for_the_next() {
    let services = Services::new("");
    let mut stream = services.edge.connect();
    let body = "x".repeat(60_000);
    for _ in 0..2 {
        let head = format!("POST /v4/set HTTP/1.1\r\nhost: edge\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut heard = [0; 4096];
        let length = stream.read(&mut heard).unwrap();
        assert!(heard[..length].starts_with(b"HTTP/1.1 404"));
    }
}

#[test]
fn an_edge_answers_503_until_its_engine_returns() {
    let directory = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let engine = format!("addresses = [\"http://127.0.0.1:{port}\"]");
    let edge = EdgeProcess::start(directory.path(), &engine, "");
    let open = || edge.post("/pincontrol/v2/plastic/3004?auditUser=it", "{\"scope\":\"SET_PIN\"}");
    let away = open();
    assert_eq!(away.fault(), (503, "ENGINE_UNAVAILABLE"));
    assert!(away.retry_after);

    let _engine = EngineProcess::start_at(directory.path(), &format!("127.0.0.1:{port}"), "");
    assert!(soon(|| open().status == 201), "the edge did not find the engine again");
}

#[test]
fn the_log_has_the_id_and_cause_of_503() {
    let directory = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let edge =
        EdgeProcess::start_with_default_log(directory.path(), &format!("addresses = [\"http://127.0.0.1:{port}\"]"));
    let open = "/pincontrol/v2/plastic/4716258093174820?auditUser=it";
    let line_of = |answer: &Answer, printed: (u16, &str)| {
        assert_eq!(answer.fault(), printed);
        let log = edge.log();
        let line = log.lines().find(|line| line.contains(answer.member("id")));
        let line: serde_json::Value = serde_json::from_str(line.unwrap_or_else(|| panic!("no id in {log}"))).unwrap();
        assert_eq!(line["fields"]["code"], printed.1);
        line
    };
    line_of(&edge.post("/v4/set/4716258093174820", "{}"), (404, "ROUTE_UNKNOWN"));
    let line = line_of(&edge.post("/docs", "{}"), (405, "METHOD_NOT_ALLOWED"));
    assert_eq!((&line["fields"]["route"], &line["fields"]["method"]), (&json!("/docs"), &json!("POST")));
    let line = line_of(&edge.post_as("", open, "{}"), (401, "UNAUTHENTICATED"));
    assert_eq!(line["level"], "INFO");
    let line = line_of(&edge.post(open, "{\"scope\":\"SET_PIN\"}"), (503, "ENGINE_UNAVAILABLE"));
    assert_eq!(line["level"], "WARN");
    assert!(line["fields"]["cause"].as_str().unwrap().contains("Connection refused"), "{line}");
    assert!(!edge.log().contains("4716258093174820"), "what stands in a path is in the log");
}

#[test]
fn an_edge_is_ready_only_with_its_engine() {
    let directory = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let edge = EdgeProcess::start(directory.path(), &format!("addresses = [\"http://127.0.0.1:{port}\"]"), "");
    assert_eq!((edge.status_of("/healthz"), edge.status_of("/readyz")), (204, 503));

    let engine = EngineProcess::start_at(directory.path(), &format!("127.0.0.1:{port}"), "");
    assert!(soon(|| edge.status_of("/readyz") == 204), "the edge did not find the engine");
    engine.kill();
    assert!(soon(|| edge.status_of("/readyz") == 503), "the edge did not see the engine go");
    assert_eq!(edge.status_of("/healthz"), 204);
}

#[test]
fn the_strict_profile_answers_only_what_the_vendor_declares() {
    let (services, device) = (Services::new("error_profile = \"strict\""), device());
    let control = services.open("SET_PIN");
    assert_eq!(services.set(&control, &[1; 7]).fault(), (404, "PIN_BLOCK_LENGTH"));
    let tzpk = services.tzpk(&control, &device);
    assert_eq!(services.set(&control, &block(&device, &tzpk, "1234")).fault(), (404, "PIN_REFUSED"));
    services.engine.kill();
    assert_eq!(services.edge.post("/pincontrol/v2/plastic/1?auditUser=it", "{\"scope\":\"SET_PIN\"}").status, 500);
}

/// An RSA-1024 SubjectPublicKeyInfo.
const RSA_1024: &str = include_str!("rsa_1024.b64");
