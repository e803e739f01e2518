//! The web view of the edge: the exchange of a controlId, the calls of a page, and what a browser is allowed to do.

use std::{
    collections::HashMap,
    io::{Read, Write},
    path::Path,
    thread,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use device::{Device, Fill, Pin};
use proto::{OpenControlRequest, Scope, StartPageRequest};
use serde_json::{Value, json};
use support::{
    edge_process::{EdgeProcess, OTHER_TOKEN, token_of, zone_client},
    engine_process::{AUDIT_USER, EngineProcess, METRICS, TENANT, device, reason},
    wait::{signal, soon, stop, within},
};
use tonic::Code;

const ORIGIN: &str = "https://pin.bank.test";
const FORM: &str = "application/x-www-form-urlencoded";
/// A page of the client `story` that one site may frame, and one that no site may.
const PAGES: &str = "[web_view]\npublic_url = \"https://pin.bank.test/pin\"\nview_seconds = 7\n\
                     [[web_view.pages]]\nkey = \"bank\"\nclient = \"story\"\n\
                     origins = [\"https://bank.test\", \"https://app.bank.test:8443\"]\nlanguage = \"fi\"\n\
                     [[web_view.pages]]\nkey = \"plain\"\nclient = \"story\"\n";

struct Services {
    _engine: EngineProcess,
    edge: EdgeProcess,
    directory: tempfile::TempDir,
}

impl Services {
    fn start() -> Self {
        Self::start_with("", "")
    }

    fn start_with(engine: &str, more_of_pages: &str) -> Self {
        Self::start_pages(engine, &format!("{PAGES}{more_of_pages}"))
    }

    fn start_pages(engine: &str, pages: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let engine = EngineProcess::start(directory.path(), engine);
        let edge = start_edge(directory.path(), &engine, pages);
        Self { _engine: engine, edge, directory }
    }

    fn browser(&self) -> Browser<'_> {
        Browser { edge: &self.edge, cookie: None }
    }

    /// The fields of the lines of the edge's log about a route.
    fn logged(&self, route: &str) -> Vec<Value> {
        let log = self.edge.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.map(|line| line["fields"].clone()).filter(|fields| fields["route"] == route).collect()
    }

    /// A control of the client `story`.
    fn open(&self, card: &str, scope: &str) -> String {
        self.opened(card, scope)["id"].as_str().unwrap().to_owned()
    }

    fn opened(&self, card: &str, scope: &str) -> Value {
        let body = json!({ "scope": scope }).to_string();
        let answer = self.edge.post(&format!("/pincontrol/v2/plastic/{card}?auditUser=it"), &body);
        assert_eq!(answer.status, 201, "{}", answer.text);
        answer.body
    }
}

/// The body of a frame's exchange, with a fresh pageId.
fn exchange(control: &str) -> Value {
    json!({ "controlId": control, "pageId": uuid::Uuid::new_v4().simple().to_string() })
}

fn start_edge(directory: &Path, engine: &EngineProcess, pages: &str) -> EdgeProcess {
    EdgeProcess::start(directory, &format!("addresses = [\"http://{}\"]", engine.address()), pages)
}

/// An answer as the browser reads it.
struct Loaded {
    status: u16,
    headers: HashMap<String, String>,
    text: String,
}

impl Loaded {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// A `data-` attribute of the document.
    fn data(&self, name: &str) -> &str {
        let after = self.text.split_once(&format!(" data-{name}=\"")).map(|(_, after)| after);
        after.and_then(|after| after.split_once('"')).map_or("", |(value, _)| value)
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("not JSON: {}", self.text))
    }

    fn fault(&self) -> (u16, String) {
        (self.status, self.json()["errorCode"].as_str().unwrap_or_default().to_owned())
    }
}

/// A browser with at most one cookie.
#[derive(Clone)]
struct Browser<'a> {
    edge: &'a EdgeProcess,
    cookie: Option<String>,
}

impl Browser<'_> {
    fn send(&mut self, path: &str, headers: &[(&str, &str)], body: Option<&str>) -> Loaded {
        let agent = ureq::Agent::config_builder().http_status_as_error(false).max_redirects(0).build();
        let agent: ureq::Agent = agent.into();
        let url = format!("{}{path}", self.edge.url);
        let mut request = ureq::http::Request::builder().uri(url).method(if body.is_some() { "POST" } else { "GET" });
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(cookie) = &self.cookie {
            request = request.header("cookie", cookie);
        }
        let mut answer = match body {
            Some(body) => agent.run(request.body(body.to_owned()).unwrap()).unwrap(),
            None => agent.run(request.body(()).unwrap()).unwrap(),
        };
        let text = answer.body_mut().read_to_string().unwrap();
        let pairs = answer.headers().iter();
        let headers = pairs.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        let loaded = Loaded { status: answer.status().as_u16(), headers, text };
        if let Some((cookie, _)) = loaded.header("set-cookie").split_once(';') {
            self.cookie = Some(cookie.to_owned());
        }
        loaded
    }

    fn get(&mut self, path: &str) -> Loaded {
        self.send(path, &[], None)
    }

    /// The form POST of an app's web view. Returns the document that the browser then has.
    fn post_form(&mut self, page: &str, control: &str) -> Loaded {
        self.post_form_body(page, FORM, &format!("controlId={control}"))
    }

    fn post_form_body(&mut self, page: &str, content_type: &str, body: &str) -> Loaded {
        let answer = self.send(&format!("/pin/web/{page}"), &[("content-type", content_type)], Some(body));
        if answer.status != 303 {
            return answer;
        }
        assert_eq!(answer.text, "", "a browser keeps the body of a POST that a document answers");
        let is_opened = answer.header("location").contains("?id=");
        assert_eq!(answer.headers.contains_key("set-cookie"), is_opened);
        // The navigation is begun by another site: no cookie with SameSite=Strict goes along.
        Browser { cookie: None, ..self.clone() }.get(answer.header("location"))
    }

    /// The session that a form POST made, as the page reads it.
    fn session(&mut self, page: &str, id: &str) -> Loaded {
        self.call(page, "session", &json!({ "pageId": id }))
    }

    /// A call of a page, as a browser sends it.
    fn call(&mut self, page: &str, call: &str, body: &Value) -> Loaded {
        self.call_from(&[("origin", ORIGIN), ("sec-fetch-site", "same-origin")], page, call, body)
    }

    fn call_from(&mut self, from: &[(&str, &str)], page: &str, call: &str, body: &Value) -> Loaded {
        let headers = [&[("content-type", "application/json")], from].concat();
        self.send(&format!("/pin/web/{page}/{call}"), &headers, Some(&body.to_string()))
    }

    /// The encrypted block of a PIN under a tzpk of the page.
    fn block(&mut self, device: &Device, page_id: &str, pin: &str) -> String {
        let request = json!({ "pageId": page_id, "publicKey": STANDARD.encode(device.public_key_der()) });
        let issued = self.call("bank", "tzpk", &request);
        assert_eq!(issued.status, 200, "{}", issued.text);
        let tzpk = STANDARD.decode(issued.json()["tzpk"].as_str().unwrap()).unwrap();
        STANDARD.encode(device.encrypt_pin(&tzpk, &Pin::parse(pin).unwrap(), Fill::Random).unwrap())
    }

    fn set(&mut self, device: &Device, page_id: &str, pin: &str) -> Loaded {
        let block = self.block(device, page_id, pin);
        self.call("bank", "set", &json!({ "pageId": page_id, "pinBlock": block }))
    }

    /// The PIN that the page shows.
    fn view(&mut self, device: &Device, page_id: &str) -> String {
        let request = json!({ "pageId": page_id, "publicKey": STANDARD.encode(device.public_key_der()) });
        let viewed = self.call("bank", "view", &request);
        assert_eq!(viewed.status, 200, "{}", viewed.text);
        let member = |name: &str| STANDARD.decode(viewed.json()[name].as_str().unwrap()).unwrap();
        let block = member("pinBlock").try_into().unwrap();
        device.decrypt_pin(&member("tzpk"), &block).unwrap().reveal().to_owned()
    }
}

#[test]
fn a_phone_sets_a_pin_and_a_frame_views_it() {
    let services = Services::start_with("[pin_policy]\nlength_min = 5\nlength_max = 6", "");
    let device = device();
    let opened = services.opened("7801", "SET_PIN");
    assert_eq!(opened["pinURL"], "https://pin.bank.test/pin/web/bank");
    assert_eq!(opened["pinFrameURL"], "https://pin.bank.test/pin/web/frame");
    let control = opened["id"].as_str().unwrap();

    let mut phone = services.browser();
    let page = phone.post_form("bank", control);
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    let data = ["mode", "state", "base", "origins", "view-seconds"];
    assert_eq!(data.map(|name| page.data(name)), ["phone", "opened", "/pin/web/bank", "", "7"], "{}", page.text);
    assert!(page.text.starts_with("<!doctype html>\n<html lang=\"fi\" dir=\"ltr\" "), "{}", page.text);
    assert!(!page.text.contains(control), "the document has no credential");
    assert!(phone.cookie.as_ref().unwrap().starts_with("__Host-pinseal-page="), "{:?}", phone.cookie);
    assert!(page.header("content-security-policy").ends_with("; frame-ancestors 'none'"));
    let id = page.data("page-id");
    let session = phone.session("bank", id).json();
    assert!((1..=30).contains(&session["secondsLeft"].as_u64().unwrap()));
    let of_control = ["operation", "pageId", "digitsMin", "digitsMax"].map(|name| &session[name]);
    assert_eq!(of_control, [&json!("set-pin"), &json!(id), &json!(5), &json!(6)]);
    assert_eq!(phone.session("bank", id).status, 200, "a reload of the page");
    let posted = services.browser().send(
        "/pin/web/bank",
        &[("content-type", FORM)],
        Some(&format!("controlId={}", services.open("7801", "SET_PIN"))),
    );
    let cookie = posted.header("set-cookie");
    assert!(cookie.ends_with("; Path=/; HttpOnly; Secure; SameSite=Strict"), "{cookie}");
    let weak = phone.set(&device, id, "12345");
    assert_eq!(weak.fault(), (422, "PIN_REFUSED".into()));
    assert_eq!(phone.set(&device, id, "258013").json(), json!({}));

    let mut frame = services.browser();
    let document = frame.get("/pin/web/frame?key=bank");
    let data = ["mode", "state", "page-id", "origins"].map(|name| document.data(name));
    assert_eq!(data, ["frame", "waiting", "", "https://bank.test https://app.bank.test:8443"]);
    assert_eq!(document.header("set-cookie"), "");
    let started = frame.call("bank", "session", &exchange(&services.open("7801", "VIEW_PIN")));
    let cookie = started.header("set-cookie").to_owned();
    assert!(cookie.ends_with("; Path=/; HttpOnly; Secure; SameSite=None; Partitioned"), "{cookie}");
    let session = started.json();
    assert_eq!((&session["operation"], &session["digitsMin"]), (&json!("view-pin"), &json!(5)));
    assert_eq!(frame.view(&device, session["pageId"].as_str().unwrap()), "258013");
}

#[test]
fn a_client_without_a_page_gets_no_addresses() {
    let services = Services::start();
    let path = "/pincontrol/v2/plastic/7802?auditUser=it";
    let opened = services.edge.post_as(&format!("Bearer {OTHER_TOKEN}"), path, "{\"scope\":\"SET_PIN\"}");
    assert_eq!(opened.status, 201);
    assert_eq!(opened.body.as_object().unwrap().len(), 1, "{}", opened.text);
}

#[test]
fn a_control_is_exchanged_once_and_stays_usable_for_its_client() {
    let services = Services::start();
    let control = services.open("7803", "SET_PIN");
    let exchanges: Vec<_> = thread::scope(|scope| {
        let racers: Vec<_> = (0..16)
            .map(|number| {
                let (mut browser, control) = (services.browser(), &control);
                scope.spawn(move || match number % 2 {
                    0 => browser.post_form("bank", control).status,
                    _ => browser.call("bank", "session", &exchange(control)).status,
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    assert_eq!(exchanges.iter().filter(|status| **status == 200).count(), 1, "{exchanges:?}");
    // Of one control, four requests at a time are served: others get 429, or the document with 503.
    assert_eq!(exchanges.iter().filter(|status| [404, 429, 503].contains(*status)).count(), 15, "{exchanges:?}");

    let again = services.browser().post_form("bank", &control);
    assert_eq!((again.status, again.data("state"), again.data("page-id")), (404, "expired", ""));
    let unknown = services.browser().post_form("bank", "0b5cfc7d-4b1e-4a37-8a5c-9d2f4f6b8a10");
    assert_eq!((unknown.status, unknown.text), (404, again.text), "one document for every control that is not usable");
    let again = services.browser().call("bank", "session", &exchange(&control));
    assert_eq!(again.fault(), (404, "CONTROL_NOT_USABLE".into()));

    let key = STANDARD.encode(device().public_key_der());
    let tzpk = json!({ "controlId": control, "publicKey": key }).to_string();
    assert_eq!(services.edge.post("/v3/set/tzpk?auditUser=it", &tzpk).status, 200);
}

#[test]
fn a_lost_exchange_is_repeated_by_its_page_alone() {
    let services = Services::start();
    let device = device();
    let control = services.open("7819", "SET_PIN");
    let exchange = exchange(&control);
    let lost = services.browser().call("bank", "session", &exchange);
    assert_eq!(lost.status, 200, "{}", lost.text);
    let mut browser = services.browser();
    let repeated = browser.call("bank", "session", &exchange);
    let (first, session) = (lost.json(), repeated.json());
    for member in ["operation", "pageId", "digitsMin", "digitsMax"] {
        assert_eq!(session[member], first[member], "{member}");
    }
    let id = exchange["pageId"].as_str().unwrap();
    assert_eq!(session["pageId"], id);
    let other = json!({ "controlId": control, "pageId": "0".repeat(32) });
    for mut another in [services.browser(), browser.clone()] {
        assert_eq!(another.call("bank", "session", &other).fault(), (404, "CONTROL_NOT_USABLE".into()));
    }
    assert_eq!(services.browser().post_form("bank", &control).data("state"), "expired");
    assert_eq!(browser.set(&device, id, "161803").json(), json!({}));
    assert_eq!(browser.call("bank", "session", &exchange).fault(), (404, "CONTROL_NOT_USABLE".into()), "spent");
}

#[test]
fn the_address_of_a_form_post_repeats_no_exchange() {
    let services = Services::start();
    let control = services.open("7820", "SET_PIN");
    let page = services.browser().post_form("bank", &control);
    let repeated = json!({ "controlId": control, "pageId": page.data("page-id") });
    assert_eq!(services.browser().call("bank", "session", &repeated).fault(), (404, "CONTROL_NOT_USABLE".into()));
}

#[test]
fn a_frame_sends_a_page_id_of_16_bytes_in_lower_case() {
    let services = Services::start();
    let mut browser = services.browser();
    let control = services.open("7821", "SET_PIN");
    for wrong in ["", "x", &"A".repeat(32), &"a".repeat(31), &"a".repeat(34)] {
        let refused = browser.call("bank", "session", &json!({ "controlId": control, "pageId": wrong }));
        assert_eq!(refused.fault(), (400, "BODY_MALFORMED".into()), "{wrong}");
        assert!(refused.text.contains("pageId is not 32 hexadecimal digits"), "{}", refused.text);
    }
    for body in [json!({}), json!({ "controlId": control }), json!({ "controlId": control, "pageId": 7 })] {
        assert_eq!(browser.call("bank", "session", &body).fault(), (400, "BODY_MALFORMED".into()), "{body}");
    }
    assert_eq!(browser.call("bank", "session", &exchange(&control)).status, 200, "the control stayed as it was");
}

#[test]
fn a_control_starts_at_the_pages_of_its_own_client_alone() {
    let clients = tempfile::tempdir().unwrap();
    let office = "[[web_view.pages]]\nkey = \"office\"\nclient = \"office\"\norigins = [\"https://office.test\"]\n";
    let services = Services::start_with(
        "",
        &(office.to_owned()
            + &zone_client(clients.path(), "office", "bank", "[]")
            + &zone_client(clients.path(), "pageless", "bank", "[]")),
    );
    let opened = |client: &str| {
        let path = "/pincontrol/v2/plastic/7822?auditUser=it";
        let answer = services.edge.post_as(&format!("Bearer {}", token_of(client)), path, "{\"scope\":\"VIEW_PIN\"}");
        assert_eq!(answer.status, 201, "{}", answer.text);
        answer.member("id").to_owned()
    };
    let refused_at = |page: &str, control: &str| {
        let refused = services.browser().call(page, "session", &exchange(control));
        assert_eq!(refused.fault(), (404, "CONTROL_NOT_USABLE".into()), "{page}");
        assert_eq!(services.browser().post_form(page, control).data("state"), "expired", "{page}");
    };
    let (of_story, of_office, of_pageless) = (services.open("7822", "VIEW_PIN"), opened("office"), opened("pageless"));
    refused_at("office", &of_story);
    for page in ["bank", "plain"] {
        refused_at(page, &of_office);
    }
    for page in ["bank", "plain", "office"] {
        refused_at(page, &of_pageless);
    }
    for (page, control) in [("plain", &of_story), ("office", &of_office)] {
        assert_eq!(services.browser().call(page, "session", &exchange(control)).status, 200, "{page}");
    }
}

#[test]
fn only_a_page_of_the_web_view_makes_its_calls() {
    let services = Services::start();
    let mut browser = services.browser();
    let control = services.open("7804", "SET_PIN");
    let forbidden: [&[(&str, &str)]; 7] = [
        &[],
        &[("origin", "https://bank.test")],
        &[("origin", "null")],
        &[("origin", "https://pin.bank.test:8443")],
        &[("origin", ORIGIN), ("origin", "https://bank.test")],
        &[("origin", ORIGIN), ("sec-fetch-site", "cross-site")],
        &[("origin", ORIGIN), ("sec-fetch-site", "none")],
    ];
    for from in forbidden {
        let refused = browser.call_from(from, "bank", "session", &exchange(&control));
        assert_eq!(refused.fault(), (403, "ORIGIN_FORBIDDEN".into()), "{from:?}");
    }
    let page = browser.post_form("bank", &control);
    let id = page.data("page-id");
    for from in forbidden {
        for call in ["session", "tzpk", "set", "view"] {
            let refused = browser.call_from(from, "bank", call, &json!({ "pageId": id, "pinBlock": "AAAAAAAAAAA=" }));
            assert_eq!(refused.fault(), (403, "ORIGIN_FORBIDDEN".into()), "{call} {from:?}");
        }
    }
    // A browser that sends no Sec-Fetch-Site.
    let key = STANDARD.encode(device().public_key_der());
    let request = json!({ "pageId": id, "publicKey": key });
    assert_eq!(browser.call_from(&[("origin", ORIGIN)], "bank", "tzpk", &request).status, 200);
}

#[test]
fn a_form_post_by_a_script_is_refused_before_it_counts() {
    let services =
        Services::start_pages("", &PAGES.replace("view_seconds", "failed_exchanges_per_address_max = 1\nview_seconds"));
    let post = |control: &str, fetch: [&str; 2]| {
        let headers = [("content-type", FORM), ("sec-fetch-mode", fetch[0]), ("sec-fetch-dest", fetch[1])];
        let form = format!("controlId={control}");
        services.browser().send("/pin/web/bank", &headers, Some(&form))
    };
    let unknown = uuid::Uuid::new_v4().to_string();
    for fetch in [["no-cors", "empty"], ["cors", "empty"], ["navigate", "iframe"], ["no-cors", "document"]] {
        for _ in 0..3 {
            assert_eq!(post(&unknown, fetch).fault(), (403, "ORIGIN_FORBIDDEN".into()), "{fetch:?}");
        }
    }
    let opened = post(&services.open("7828", "SET_PIN"), ["navigate", "document"]);
    assert!(opened.status == 303 && opened.header("location").contains("?id="), "{}", opened.text);
}

#[test]
fn the_calls_of_another_page_are_refused_and_spend_nothing() {
    let services = Services::start();
    let device = device();
    let (mut first, mut second) = (services.browser(), services.browser());
    let page = first.post_form("bank", &services.open("7805", "SET_PIN"));
    let id = page.data("page-id").to_owned();
    let block = first.block(&device, &id, "271828");
    second.post_form("bank", &services.open("7806", "SET_PIN"));

    let set = json!({ "pageId": id, "pinBlock": block });
    let mut plain = services.browser();
    plain.post_form("plain", &services.open("7807", "SET_PIN"));
    let forged = Browser { cookie: first.cookie.as_ref().map(|cookie| format!("{cookie}A")), ..first.clone() };
    for (mut browser, wrong) in [
        (services.browser(), "no cookie"),
        (second, "the cookie of another page in the same browser"),
        (plain, "the cookie of another page of the client"),
        (forged, "a changed cookie"),
    ] {
        for call in ["set", "session"] {
            let refused = browser.call("bank", call, &set);
            assert_eq!(refused.fault(), (401, "PAGE_SESSION_INVALID".into()), "{call}: {wrong}");
            assert_eq!(refused.header("www-authenticate"), "PinsealPage", "a browser would ask for a password");
        }
    }
    let other_id = json!({ "pageId": "0".repeat(32), "pinBlock": block });
    assert_eq!(first.call("bank", "set", &other_id).fault(), (401, "PAGE_SESSION_INVALID".into()));
    assert_eq!(first.call("plain", "set", &set).fault(), (401, "PAGE_SESSION_INVALID".into()));
    assert_eq!(first.call("bank", "set", &json!({ "pinBlock": block })).fault(), (400, "BODY_MALFORMED".into()));

    assert_eq!(first.call("bank", "set", &set).status, 200);
    assert_eq!(first.call("bank", "set", &set).status, 200, "a retry of the same block");
    let request = json!({ "pageId": id, "publicKey": STANDARD.encode(device.public_key_der()) });
    assert_eq!(first.call("bank", "view", &request).fault(), (404, "CONTROL_NOT_USABLE".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_ends_with_its_control() {
    let services = Services::start_with("[control]\nlifetime_seconds = 30", "");
    let device = device();
    let (late, control) = (services.open("7808", "SET_PIN"), services.open("7809", "SET_PIN"));
    let mut browser = services.browser();
    let page = browser.post_form("bank", &control);
    let id = page.data("page-id");
    let block = browser.block(&device, id, "161803");
    let set = json!({ "pageId": id, "pinBlock": block });
    assert_eq!(browser.call("bank", "set", &set).status, 200);

    let request = json!({ "pageId": id, "publicKey": STANDARD.encode(device.public_key_der()) });
    let ended = async || {
        // A session has 60 requests a minute.
        tokio::time::sleep(Duration::from_secs(1)).await;
        Some(browser.clone().call("bank", "tzpk", &request)).filter(|answer| answer.status == 401)
    };
    let refused = within(Duration::from_secs(120), "the session does not end", ended).await;
    assert_eq!(refused.fault(), (401, "PAGE_SESSION_INVALID".into()));
    assert_eq!(browser.session("bank", id).fault(), (401, "PAGE_SESSION_INVALID".into()));
    // The reply of a set may have been lost.
    assert_eq!(browser.call("bank", "set", &set).status, 200);
    let expired = services.browser().post_form("bank", &late);
    assert_eq!((expired.status, expired.data("state")), (404, "expired"));
}

#[test]
fn each_key_has_its_own_frame_and_an_unknown_key_has_none() {
    let services = Services::start_with(
        "",
        "[[web_view.pages]]\nkey = \"app\"\nclient = \"story\"\norigins = [\"https://app.test\"]\n",
    );
    let mut browser = services.browser();
    for (key, origins) in [("bank", "https://bank.test https://app.bank.test:8443"), ("app", "https://app.test")] {
        for prefix in ["", "/pin"] {
            let frame = browser.get(&format!("{prefix}/web/frame?key={key}"));
            let policy = frame.header("content-security-policy").to_owned();
            assert!(policy.ends_with(&format!("; frame-ancestors {origins}")), "{policy}");
            assert_eq!(frame.header("cross-origin-resource-policy"), "cross-origin");
        }
    }
    for query in ["", "?key=", "?key=other", "?key=plain", "?key=bank&key=app", "?other=bank"] {
        assert_eq!(browser.get(&format!("/web/frame{query}")).fault(), (404, "PAGE_UNKNOWN".into()), "{query}");
    }
    for path in ["/web/other/style.css", "/web/other/logo", "/web/bank/logo"] {
        assert_eq!(browser.get(path).fault(), (404, "PAGE_UNKNOWN".into()), "{path}");
    }
    let control = services.open("7810", "SET_PIN");
    assert_eq!(browser.post_form("other", &control).fault(), (404, "PAGE_UNKNOWN".into()));
    assert_eq!(browser.post_form("bank", &control).status, 200, "an unknown page exchanges nothing");
    for (retry, seconds) in [("", "5"), ("&retry=1", "1"), ("&retry=0", "5"), ("&retry=x", "5"), ("&retry=999", "60")] {
        let page = browser.get(&format!("/pin/web/bank?state=unavailable{retry}"));
        assert_eq!(
            (page.status, page.data("state"), page.header("retry-after")),
            (503, "unavailable", seconds),
            "{retry}"
        );
    }
    for query in ["", "?id=", "?id=x", &format!("?id={}", "A".repeat(32)), &format!("?id={}", "a".repeat(31))] {
        let page = browser.get(&format!("/pin/web/bank{query}"));
        assert_eq!((page.status, page.data("state")), (404, "expired"), "{query}");
    }
}

#[test]
fn a_page_has_the_style_and_the_logo_of_its_operator() {
    let directory = tempfile::tempdir().unwrap();
    let logo = directory.path().join("logo.svg");
    std::fs::write(&logo, "<svg xmlns=\"http://www.w3.org/2000/svg\"/>").unwrap();
    let style = format!(
        "logo = {logo:?}\n[web_view.pages.style]\nradius = 3\n[web_view.pages.style.light]\naccent = \"#0b5fff\"\n\
         accent_text = \"#ffffff\"\n"
    );
    let services = Services::start_with("", &style);
    let mut browser = services.browser();
    let css = browser.get("/pin/web/plain/style.css");
    assert_eq!(css.header("content-type"), "text/css; charset=utf-8");
    assert!(css.text.contains("--ps-accent:#0b5fff;") && css.text.contains("--ps-radius:3px;"), "{}", css.text);
    assert_eq!(browser.get("/pin/web/bank/style.css").text, "");
    let image = browser.get("/pin/web/plain/logo");
    assert_eq!((image.status, image.header("content-type")), (200, "image/svg+xml"));
    assert!(image.header("content-security-policy").contains("sandbox"));
    let page = browser.post_form("plain", &services.open("7811", "SET_PIN"));
    assert!(page.text.contains("<img id=\"logo\" src=\"/pin/web/plain/logo\" alt=\"\">"), "{}", page.text);
    for (path, content_type) in [("/web/page.js", "text/javascript"), ("/web/page.css", "text/css")] {
        let plain = browser.get(path);
        assert!(plain.header("content-type").starts_with(content_type) && plain.text.len() > 100);
        let zipped = ["-H", "Accept-Encoding: gzip", "--compressed", "-o", "-", "-sS"];
        let url = format!("{}{path}", services.edge.url);
        let output = std::process::Command::new("curl").args(zipped).arg(url).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), plain.text, "{path}");
    }
}

#[test]
fn a_form_that_is_too_long_or_of_another_type_exchanges_nothing() {
    let services = Services::start();
    let control = services.open("7812", "SET_PIN");
    let mut browser = services.browser();
    let long = format!("controlId={control}&more={}", "x".repeat(1_024));
    let twice = format!("controlId={control}&controlId={control}");
    for (content_type, body, code) in [
        (FORM, long.as_str(), "BODY_TOO_LARGE"),
        (FORM, &twice, "CONTROL_ID_INVALID"),
        (FORM, "", "CONTROL_ID_INVALID"),
        (FORM, "controlId=x", "CONTROL_ID_INVALID"),
        ("text/plain", &format!("controlId={control}"), "CONTENT_TYPE_UNSUPPORTED"),
        ("application/json", &json!({ "controlId": control }).to_string(), "CONTENT_TYPE_UNSUPPORTED"),
    ] {
        let refused = browser.post_form_body("bank", content_type, body);
        assert_eq!((refused.status, refused.data("state")), (404, "expired"), "{content_type}");
        assert_eq!(services.logged("web").last().unwrap()["code"], code, "{content_type}");
    }
    assert_eq!(browser.post_form("bank", &control).status, 200);
}

#[test]
fn a_form_that_does_not_arrive_is_unavailable_and_counted() {
    let services = Services::start_with("", METRICS);
    let mut stream = services.edge.connect();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let head = format!("POST /pin/web/bank HTTP/1.1\r\nhost: edge\r\ncontent-type: {FORM}\r\ncontent-length: 46");
    stream.write_all(format!("{head}\r\nconnection: close\r\n\r\ncontrolId=").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 303 ") && answer.contains("/pin/web/bank?state=unavailable&retry=5\r\n"),
        "{answer}"
    );
    assert_eq!(services.logged("web").last().unwrap()["code"], "BODY_TIMEOUT");
    let metrics = services.edge.metrics();
    assert!(metrics.contains("pinseal_edge_requests_refused_total{reason=\"BODY_TIMEOUT\"} 1"), "{metrics}");
}

#[test]
fn no_log_of_the_edge_has_a_whole_control_id_or_a_cookie() {
    let services = Services::start();
    let device = device();
    let control = services.open("7813", "SET_PIN");
    let mut browser = services.browser();
    let page = browser.post_form("bank", &control);
    let (id, cookie) = (page.data("page-id").to_owned(), browser.cookie.clone().unwrap());
    assert_eq!(browser.set(&device, &id, "141421").status, 200);
    assert_eq!(services.browser().post_form("bank", &control).status, 404);
    let refused = services.browser().call("bank", "session", &exchange(&control));
    assert_eq!(refused.status, 404);

    let log = services.edge.log();
    for route in ["web", "web/tzpk", "web/set", "web/session"] {
        let controls: Vec<_> = services.logged(route).into_iter().map(|line| line["control"].clone()).collect();
        assert!(!controls.is_empty() && controls.iter().all(|logged| *logged == control[..8]), "{route}: {controls:?}");
    }
    assert_eq!(services.logged("web/set")[0]["client"], "story");
    let sealed = cookie.split_once('=').unwrap().1;
    for secret in [control.as_str(), sealed] {
        assert!(!log.contains(secret), "a credential is in the log");
    }
}

#[test]
fn a_page_exchanges_no_control_of_another_tenant() {
    let services = Services::start();
    let other = format!("Bearer {OTHER_TOKEN}");
    let path = "/pincontrol/v2/plastic/7814?auditUser=it";
    let opened = services.edge.post_as(&other, path, "{\"scope\":\"SET_PIN\"}");
    let control = opened.member("id");
    let refused = services.browser().post_form("bank", control);
    assert_eq!((refused.status, refused.data("state")), (404, "expired"));
    let refused = services.browser().call("bank", "session", &exchange(control));
    assert_eq!(refused.fault(), (403, "TENANT_MISMATCH".into()));
    let key = STANDARD.encode(device().public_key_der());
    let tzpk = json!({ "controlId": control, "publicKey": key }).to_string();
    assert_eq!(services.edge.post_as(&other, "/v3/set/tzpk?auditUser=it", &tzpk).status, 200);
}

#[test]
fn edges_with_one_session_key_serve_one_page() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let key = directory.path().join("session-key");
    std::fs::write(&key, "0123456789abcdef".repeat(4)).unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let shared = PAGES.replace("view_seconds", &format!("session_key = {{ file = {key:?} }}\nview_seconds"));
    let edges = [&shared, &shared, PAGES].map(|pages| {
        let directory = tempfile::tempdir().unwrap();
        (start_edge(directory.path(), &engine, pages), directory)
    });
    let [(first, _), (second, _), (third, _)] = &edges;
    let opened = first.post("/pincontrol/v2/plastic/7815?auditUser=it", "{\"scope\":\"SET_PIN\"}");
    let mut browser = Browser { edge: first, cookie: None };
    let page = browser.post_form("bank", opened.member("id"));
    let (id, device) = (page.data("page-id"), device());
    let block = browser.block(&device, id, "173205");
    let set = json!({ "pageId": id, "pinBlock": block });
    let at = |edge| Browser { edge, ..browser.clone() }.call("bank", "set", &set);
    assert_eq!(at(third).fault(), (401, "PAGE_SESSION_INVALID".into()), "another key");
    assert_eq!(at(second).status, 200, "the same key");
}

#[test]
fn a_session_beyond_its_rate_waits_and_another_does_not() {
    let services = Services::start_with("[control]\nlifetime_seconds = 300", "");
    let (mut fast, mut other) = (services.browser(), services.browser());
    let (page, of_other) = (
        fast.post_form("bank", &services.open("7824", "SET_PIN")),
        other.post_form("bank", &services.open("7825", "SET_PIN")),
    );
    let id = page.data("page-id");
    let refused =
        (0..10_000).find_map(|_| Some(fast.session("bank", id)).filter(|answer| answer.status != 200)).unwrap();
    assert_eq!(refused.fault(), (429, "PAGE_SESSION_RATE".into()));
    assert!((1..=60).contains(&refused.header("retry-after").parse::<u32>().unwrap()));
    assert_eq!(other.session("bank", of_other.data("page-id")).status, 200);
    // A browser without the cookie cannot use up the rate of the session.
    assert_eq!(services.browser().session("bank", id).fault(), (401, "PAGE_SESSION_INVALID".into()));
}

#[test]
fn failed_exchanges_of_a_network_are_limited() {
    let services = Services::start_with("[control]\nlifetime_seconds = 300", "");
    let mut begun = services.browser();
    let begun_page = begun.post_form("bank", &services.open("7826", "SET_PIN"));
    // Many at once, because a slow machine may answer fewer than 60 in a row within a minute.
    let until_refused = || {
        let mut browser = services.browser();
        (0..500).find_map(|number| {
            let unknown = exchange(&uuid::Uuid::new_v4().to_string());
            let answer = browser.call("bank", "session", &unknown);
            assert!(answer.status == 429 || answer.fault() == (404, "CONTROL_NOT_USABLE".into()), "{}", answer.text);
            (answer.status == 429).then_some((number, answer))
        })
    };
    let refused: Vec<_> = thread::scope(|scope| {
        let browsers: Vec<_> = (0..8).map(|_| scope.spawn(until_refused)).collect();
        browsers.into_iter().map(|browser| browser.join().unwrap().expect("no limit")).collect()
    });
    let failed: usize = refused.iter().map(|(number, _)| number).sum();
    assert!(failed >= 60, "{failed}");
    for (_, refused) in &refused {
        assert_eq!(refused.fault(), (429, "EXCHANGE_RATE".into()));
        assert!((1..=60).contains(&refused.header("retry-after").parse::<u32>().unwrap()));
    }
    assert_eq!(
        begun.session("bank", begun_page.data("page-id")).status,
        200,
        "a session of the same network is served"
    );
    // The minute may end before the form POST.
    let page = (0..100).find_map(|_| {
        until_refused();
        let page = services.browser().post_form("bank", &services.open("7823", "SET_PIN"));
        (page.data("state") == "unavailable").then_some(page)
    });
    let page = page.expect("no form POST is refused");
    assert!(page.status == 503 && (1..=60).contains(&page.header("retry-after").parse::<u32>().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_away_uses_up_no_exchanges_of_a_network() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let address = engine.address().to_owned();
    let edge = start_edge(directory.path(), &engine, PAGES);
    let mut browser = Browser { edge: &edge, cookie: None };
    let opened = edge.post("/pincontrol/v2/plastic/7816?auditUser=it", "{\"scope\":\"SET_PIN\"}");
    let control = opened.member("id");
    engine.kill();
    for _ in 0..100 {
        let away = browser.call("bank", "session", &exchange(&uuid::Uuid::new_v4().to_string()));
        assert_eq!(away.fault(), (503, "ENGINE_UNAVAILABLE".into()), "no exchange is counted as failed");
    }
    let away = browser.post_form("bank", control);
    assert_eq!((away.status, away.data("state"), away.header("retry-after")), (503, "unavailable", "5"));
    let _engine = EngineProcess::start_at(directory.path(), &address, "[control]\nlifetime_seconds = 300");
    let back = async || {
        let opened = edge.post("/pincontrol/v2/plastic/7816?auditUser=it", "{\"scope\":\"SET_PIN\"}");
        (opened.status == 201).then(|| opened.member("id").to_owned())
    };
    let control = soon("the engine is back", back).await;
    assert_eq!(browser.post_form("bank", &control).data("state"), "opened");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_that_leaves_a_stalled_engine_fails_no_exchange() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "[control]\nlifetime_seconds = 300");
    let pages = PAGES.replace("view_seconds", "failed_exchanges_per_address_max = 1\nview_seconds");
    let edge = start_edge(directory.path(), &engine, &pages);
    let opened = edge.post("/pincontrol/v2/plastic/7827?auditUser=it", "{\"scope\":\"SET_PIN\"}");
    let (exchanged, unknown) = (exchange(opened.member("id")), exchange(&uuid::Uuid::new_v4().to_string()));
    let mut browser = Browser { edge: &edge, cookie: None };
    stop(engine.id());
    let body = exchanged.to_string();
    let begun = async || {
        let mut stream = edge.connect();
        let headers = format!("host: edge\r\norigin: {ORIGIN}\r\ncontent-type: application/json");
        let head = format!("POST /pin/web/bank/session HTTP/1.1\r\n{headers}\r\ncontent-length: {}", body.len());
        stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
        // Another exchange is refused once the engine has this one. If the other comes first, it waits for the engine.
        (browser.clone().call("bank", "session", &unknown).status == 429).then_some(stream)
    };
    drop(within(Duration::from_secs(120), "no exchange is in progress", begun).await);
    // Time for the edge to notice.
    tokio::time::sleep(Duration::from_secs(2)).await;
    signal(engine.id(), "CONT");
    let repeated = async || Some(browser.call("bank", "session", &exchanged)).filter(|answer| answer.status == 200);
    let session = soon("the exchange counts as failed", repeated).await.json();
    assert_eq!(session["pageId"], exchanged["pageId"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_removed_client_is_unknown() {
    let services = Services::start();
    let control = services.open("7817", "SET_PIN");
    let file = services.directory.path().join("edge.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let [with_pages, clients] = text.splitn(2, "[engine]").collect::<Vec<_>>().try_into().unwrap();
    let without_pages = with_pages.replace(PAGES, "");
    std::fs::write(&file, format!("{without_pages}[engine]{}", clients.replace("\"story\"", "\"renamed\""))).unwrap();
    signal(services.edge.id(), "HUP");
    let reloaded = async || services.edge.log().contains("the clients were reloaded").then_some(());
    soon("the edge reloads no clients", reloaded).await;
    let refused = services.browser().call("bank", "session", &exchange(&control));
    assert_eq!(refused.fault(), (404, "PAGE_UNKNOWN".into()));
    let page = services.browser().post_form("bank", &control);
    assert_eq!((page.status, page.data("state")), (404, "expired"));
}

/// The gRPC method behind the exchange.
#[tokio::test(flavor = "multi_thread")]
async fn a_started_page_is_audited_and_answered_with_the_policy() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "[pin_policy]\nlength_min = 6\nlength_max = 8");
    let mut client = engine.client().await;
    let open = |page_client: &str| OpenControlRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: "7818".into(),
        scope: Scope::ViewPin.into(),
        device_key_sha256: Vec::new(),
        page_client: page_client.into(),
    };
    let malformed = client.controls.open_control(open("\u{202e}wallet")).await.err().unwrap();
    assert_eq!((malformed.code(), reason(&malformed)), (Code::InvalidArgument, "PAGE_CLIENT_INVALID".into()));
    let of_none = client.controls.open_control(open("")).await.unwrap().into_inner().control_id;
    let control = client.controls.open_control(open("wallet")).await.unwrap().into_inner().control_id;
    let start = StartPageRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        control_id: control.clone(),
        page_client: "wallet".into(),
        page_id: vec![7; 16],
    };
    for (malformed, expected) in [
        (StartPageRequest { control_id: "x".into(), ..start.clone() }, "CONTROL_ID_INVALID"),
        (StartPageRequest { page_client: String::new(), ..start.clone() }, "PAGE_CLIENT_INVALID"),
        (StartPageRequest { page_client: "w".repeat(129), ..start.clone() }, "PAGE_CLIENT_INVALID"),
        (StartPageRequest { page_id: Vec::new(), ..start.clone() }, "PAGE_ID_INVALID"),
        (StartPageRequest { page_id: vec![7; 17], ..start.clone() }, "PAGE_ID_INVALID"),
    ] {
        let refused = client.controls.start_page(malformed).await.err().unwrap();
        assert_eq!((refused.code(), reason(&refused)), (Code::InvalidArgument, expected.into()));
    }
    let other = StartPageRequest { tenant: "other".into(), ..start.clone() };
    assert_eq!(reason(&client.controls.start_page(other).await.err().unwrap()), "TENANT_MISMATCH");
    let started = client.controls.start_page(start.clone()).await.unwrap().into_inner();
    assert!(started.scope() == Scope::ViewPin);
    assert_eq!((started.min_digit_count, started.max_digit_count), (6, 8));
    assert!(started.expire_time.is_some() && (1..=30).contains(&started.remaining_duration.unwrap().seconds));
    let again = client.controls.start_page(start.clone()).await.unwrap().into_inner();
    assert_eq!((again.scope, again.min_digit_count, again.max_digit_count), (started.scope, 6, 8), "the same answer");
    assert!(again.remaining_duration.unwrap().seconds <= started.remaining_duration.unwrap().seconds);
    for not_usable in [
        StartPageRequest { page_id: vec![8; 16], ..start.clone() },
        StartPageRequest { page_client: "Wallet".into(), ..start.clone() },
        StartPageRequest { control_id: of_none, ..start },
    ] {
        let refused = client.controls.start_page(not_usable).await.err().unwrap();
        assert_eq!((refused.code(), reason(&refused)), (Code::NotFound, "CONTROL_NOT_USABLE".into()));
    }
    assert_eq!(engine.terminate(), 0);

    let store = directory.path().join("data/store");
    let exported = std::process::Command::new(env!("CARGO_BIN_EXE_pinseal"))
        .args(["audit", "export", "--store"])
        .arg(store)
        .env("TMPDIR", directory.path())
        .output()
        .unwrap();
    let lines = String::from_utf8(exported.stdout).unwrap();
    let entries = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of_pages: Vec<_> = entries.filter(|entry| entry["event"]["action"] == "start_page").collect();
    let outcomes: Vec<_> = of_pages.iter().map(|entry| entry["outcome"].as_str().unwrap()).collect();
    let refused = ["control_not_usable"; 3];
    assert_eq!(outcomes, [&["denied", "done"], &refused[..]].concat(), "a repeat has no entry: {lines}");
    let about = of_pages.iter().filter(|entry| entry["event"]["control"] == control.as_str());
    assert_eq!(about.count(), 4, "{lines}");
}

/// The sample site of `pinseal demo`.
#[tokio::test(flavor = "multi_thread")]
async fn the_sample_bank_opens_controls_and_keeps_its_token() {
    let directory = tempfile::tempdir().unwrap();
    let ready = directory.path().join("ready");
    let mut demo = std::process::Command::new(env!("CARGO_BIN_EXE_pinseal"))
        .args(["demo", "--edge-listen", "127.0.0.1:0", "--engine-listen", "127.0.0.1:0", "--ready-file"])
        .arg(&ready)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let served = async || std::fs::read_to_string(&ready).ok();
    let ready: Value = serde_json::from_str(&soon("the demo does not serve", served).await).unwrap();
    let member = |name: &str| ready[name].as_str().unwrap();
    let bank = member("bank_app_url");
    let curl = |arguments: &[&str], path: &str| {
        let output = std::process::Command::new("curl")
            .args(["-sS", "-i", "--max-time", "60"])
            .args(arguments)
            .arg(format!("{bank}{path}"))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let (page, script) = (curl(&[], "/"), curl(&[], "/app.js"));
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("Sample Bank"), "{page}");
    assert!(page.contains(&format!("frame-src {}", member("edge_url"))), "{page}");
    let origin = format!("Origin: {bank}");
    let opened = curl(&["-H", &origin, "-d", "set-pin"], "/controls");
    let body: Value = serde_json::from_str(opened.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(body["pinURL"], format!("{}/web/demo", member("edge_url")));
    assert_eq!(body["pinFrameURL"], format!("{}/web/frame", member("edge_url")));
    for text in [&page, &script, &opened] {
        assert!(!text.contains(member("bearer_token")), "the token of the back-end is in {text}");
    }
    for refused in [
        curl(&["-d", "set-pin"], "/controls"),
        curl(&["-H", "Origin: https://evil.test", "-d", "set-pin"], "/controls"),
        curl(&["-H", &origin, "-H", "Host: evil.test", "-d", "set-pin"], "/controls"),
    ] {
        assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    }
    assert!(curl(&["-H", &origin, "-d", "change-pin"], "/controls").starts_with("HTTP/1.1 400"));
    signal(demo.id(), "TERM");
    assert!(demo.wait().unwrap().success());
}
