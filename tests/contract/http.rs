//! HTTP by its standards (RFC 9110, 9112, 9113), with curl and with bytes of the test.

use std::{io::Write, path::PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use device::{Fill, Pin};
use serde_json::json;

use support::{
    edge_process::{Answer, EdgeProcess, PASSWORD, TOKEN},
    engine_process::{EngineProcess, device},
};

const OPEN: &str = "/pincontrol/v2/plastic/3101?auditUser=it";

struct Services {
    _engine: EngineProcess,
    edge: EdgeProcess,
    directory: tempfile::TempDir,
}

impl Services {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let engine = EngineProcess::start_quiet(directory.path(), "");
        let edge =
            EdgeProcess::start_quiet(directory.path(), &format!("addresses = [\"http://{}\"]", engine.address()));
        Self { _engine: engine, edge, directory }
    }

    /// A file of this many bytes.
    fn file(&self, bytes: usize) -> PathBuf {
        let path = self.directory.path().join(format!("body-{bytes}"));
        std::fs::File::create(&path).unwrap().write_all(&vec![b'x'; bytes]).unwrap();
        path
    }

    /// A request of HTTP/1.1 with these header lines and a body that opens a control.
    fn request(&self, headers: &str) -> (String, Answer) {
        let body = "{\"scope\":\"SET_PIN\"}";
        let request = format!(
            "POST {OPEN} HTTP/1.1\r\n{headers}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        self.edge.raw(request.as_bytes())
    }
}

#[test]
fn a_request_has_one_host_header() {
    let services = Services::new();
    let authorization = format!("authorization: Bearer {TOKEN}");
    let (_, good) = services.request(&format!("host: edge\r\n{authorization}"));
    assert_eq!(good.status, 201, "{}", good.text);
    for (headers, text) in [
        (authorization.clone(), "is missing"),
        (format!("host: edge\r\nHost: edge\r\n{authorization}"), "more than once"),
        (format!("host: e dge\r\n{authorization}"), "is not a host name"),
        (format!("host:\r\n{authorization}"), "is not a host name"),
    ] {
        let (_, answer) = services.request(&headers);
        assert_eq!(answer.fault(), (400, "HOST_INVALID"), "{headers}");
        assert!(answer.member("message").contains(text), "{}", answer.text);
    }
}

#[test]
fn two_authorization_headers_are_unauthorized() {
    let services = Services::new();
    for second in [TOKEN, "wrong"] {
        let headers = format!("host: edge\r\nauthorization: Bearer {TOKEN}\r\nauthorization: Bearer {second}");
        let (_, answer) = services.request(&headers);
        assert_eq!(answer.fault(), (401, "UNAUTHENTICATED"));
        assert!(answer.member("message").contains("more than once"), "{}", answer.text);
    }
}

#[test]
fn a_head_that_hyper_rejects_has_the_error_body() {
    let services = Services::new();
    let long = "x".repeat(20_000);
    let many = "a: b\r\n".repeat(200);
    for (request, expected) in [
        ("NONSENSE\r\n\r\n".to_owned(), (400, "HTTP_MALFORMED")),
        ("GET / HTTP/9.9\r\n\r\n".to_owned(), (400, "HTTP_MALFORMED")),
        ("GET / HTTP/1.1\r\nhost: edge\r\nno colon\r\n\r\n".to_owned(), (400, "HTTP_MALFORMED")),
        ("POST / HTTP/1.1\r\nhost: edge\r\ncontent-length: 1x\r\n\r\n".to_owned(), (400, "HTTP_MALFORMED")),
        (format!("GET /{long} HTTP/1.1\r\nhost: edge\r\n\r\n"), (431, "HEADERS_TOO_LARGE")),
        (format!("GET / HTTP/1.1\r\nhost: edge\r\nlong: {long}\r\n\r\n"), (431, "HEADERS_TOO_LARGE")),
        (format!("GET / HTTP/1.1\r\nhost: edge\r\n{many}\r\n"), (431, "HEADERS_TOO_LARGE")),
    ] {
        // Also after a good request on the same connection, and with bytes behind that no one reads.
        for before in ["", "GET /v9 HTTP/1.1\r\nhost: edge\r\n\r\n"] {
            let mut stream = services.edge.connect();
            stream.write_all(before.as_bytes()).unwrap();
            if !before.is_empty() {
                let mut first = [0; 4096];
                let length = std::io::Read::read(&mut stream, &mut first).unwrap();
                assert!(first[..length].starts_with(b"HTTP/1.1 404"));
            }
            let _ = stream.write_all(format!("{request}{}", "y".repeat(200_000)).as_bytes());
            let mut answer = String::new();
            std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
            let (head, text) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            // The bytes behind a head that hyper has read whole are a second malformed head, with its own answer.
            let body: serde_json::Value = serde_json::Deserializer::from_str(text).into_iter().next().unwrap().unwrap();
            let answer = Answer { status, text: body.to_string(), body, retry_after: false };
            assert_eq!(answer.fault(), expected, "{head}");
            for header in ["content-type: application/json", "cache-control: no-store", "content-length: ", "date: "] {
                assert!(head.contains(header), "{header} is missing: {head}");
            }
        }
    }
}

#[test]
fn large_headers_over_http2_have_the_error_body() {
    let services = Services::new();
    let long = format!("long: {}", "x".repeat(20_000));
    let (version, answer) = services.edge.curl("/healthz", &["--http2-prior-knowledge", "-H", &long]).unwrap();
    assert_eq!((version.as_str(), answer.fault()), ("2", (431, "HEADERS_TOO_LARGE")));
}

#[test]
fn curl_receives_an_early_answer_to_a_large_body() {
    let services = Services::new();
    let (right, wrong) = (format!("Authorization: Bearer {TOKEN}"), "Authorization: Bearer wrong".to_owned());
    for bytes in [200, 20_000, 200_000, 2_000_000, 8_000_000] {
        let file = format!("@{}", services.file(bytes).display());
        for protocol in ["--http1.1", "--http2-prior-knowledge"] {
            for expect in ["Expect:", "Expect: 100-continue"] {
                for (credential, status) in [(&wrong, 401), (&right, if bytes > 16_384 { 413 } else { 400 })] {
                    let json = "Content-Type: application/json";
                    let arguments = [protocol, "-H", expect, "-H", credential, "-H", json, "--data-binary", &file];
                    let answer = services.edge.curl(OPEN, &arguments);
                    let (_, answer) =
                        answer.unwrap_or_else(|| panic!("no answer: {protocol} {expect} {bytes} {status}"));
                    assert_eq!(answer.fault().0, status, "{protocol} {expect} {bytes}");
                }
            }
        }
    }
}

#[test]
fn curl_is_served_when_it_expects_100_continue() {
    let services = Services::new();
    let authorization = format!("Authorization: Bearer {TOKEN}");
    for protocol in ["--http1.1", "--http2-prior-knowledge"] {
        let json = "Content-Type: application/json";
        let arguments =
            [protocol, "-H", "Expect: 100-continue", "-H", &authorization, "-H", json, "-d", "{\"scope\":\"SET_PIN\"}"];
        assert_eq!(services.edge.curl(OPEN, &arguments).unwrap().1.status, 201, "{protocol}");
    }
}

#[test]
fn a_body_that_is_not_json_is_415() {
    let services = Services::new();
    let authorization = format!("host: edge\r\nauthorization: Bearer {TOKEN}");
    for (headers, status) in [
        ("content-type: application/json; charset=utf-8", 201),
        ("accept: */*", 201),
        ("content-type: application/x-www-form-urlencoded", 415),
        ("content-type: application/json; charset=iso-8859-1", 415),
        ("content-type: application/json\r\ncontent-type: text/plain", 415),
        ("content-type: application/json\r\ncontent-encoding: gzip", 415),
    ] {
        let (_, answer) = services.request(&format!("{authorization}\r\n{headers}"));
        assert_eq!(answer.status, status, "{headers}: {}", answer.text);
        if status == 415 {
            assert_eq!(answer.fault(), (415, "CONTENT_TYPE_UNSUPPORTED"), "{headers}");
        }
    }
}

/// Runs openssl, and returns its standard output.
fn openssl(arguments: &[&str]) -> Vec<u8> {
    let output =
        std::process::Command::new("openssl").args(arguments).output().expect("openssl is missing: install it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn each_mistake_in_a_device_key_has_one_text() {
    let services = Services::new();
    let der = device().public_key_der().to_vec();
    let base64 = STANDARD.encode(&der);
    let at = |name: &str| services.directory.path().join(name).to_str().unwrap().to_owned();
    openssl(&["genrsa", "-out", &at("rsa.pem"), "2048"]);
    openssl(&["genrsa", "-out", &at("small.pem"), "1024"]);
    openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", &at("ec.pem")]);
    let public = |name: &str| STANDARD.encode(openssl(&["pkey", "-in", &at(name), "-pubout", "-outform", "DER"]));
    let pem = String::from_utf8(openssl(&["pkey", "-in", &at("rsa.pem"), "-pubout"])).unwrap();
    let pkcs1 = STANDARD.encode(openssl(&["rsa", "-in", &at("rsa.pem"), "-RSAPublicKey_out", "-outform", "DER"]));
    let private = STANDARD.encode(openssl(&["pkcs8", "-topk8", "-nocrypt", "-in", &at("rsa.pem"), "-outform", "DER"]));
    let certificate = STANDARD.encode(openssl(&[
        "req",
        "-x509",
        "-key",
        &at("rsa.pem"),
        "-subj",
        "/CN=device",
        "-days",
        "1",
        "-outform",
        "DER",
    ]));
    let (mut trailing, mut even) = (der.clone(), der.clone());
    trailing.push(0);
    *even.last_mut().unwrap() = 2;

    let mut texts = std::collections::HashSet::new();
    let control = json!({ "scope": "SET_PIN" }).to_string();
    let control = services.edge.post(OPEN, &control).member("id").to_owned();
    for (key, text) in [
        (pem, "PEM markers"),
        (format!("{}\n{}", &base64[..64], &base64[64..]), "blanks or line ends"),
        (base64.replacen(['A', 'B', 'C'], "-", 1), "URL alphabet"),
        (base64.replacen(['A', 'B', 'C'], "!", 1), "not standard base64"),
        (public("ec.pem"), "EC key"),
        (public("small.pem"), "1024 bits"),
        (pkcs1, "PKCS #1"),
        (private, "private key"),
        (certificate, "certificate"),
        (STANDARD.encode(trailing), "bytes after"),
        (STANDARD.encode(even), "exponent"),
        (STANDARD.encode(&der[..200]), "not a DER SubjectPublicKeyInfo"),
    ] {
        let body = json!({ "controlId": control, "publicKey": key }).to_string();
        let answer = services.edge.post("/v3/set/tzpk?auditUser=it", &body);
        assert_eq!(answer.fault(), (400, "DEVICE_KEY_INVALID"), "{text}");
        assert!(answer.member("message").contains(text), "{text}: {}", answer.text);
        assert!(texts.insert(answer.member("message").to_owned()), "{text} shares its text");
    }
    let body = json!({ "controlId": control }).to_string();
    let answer = services.edge.post("/v3/set/tzpk?auditUser=it", &body);
    assert_eq!(answer.fault(), (400, "BODY_MALFORMED"));
    assert!(answer.member("message").contains("publicKey is missing"), "{}", answer.text);
    let body = json!({ "controlId": control, "publicKey": base64 }).to_string();
    assert_eq!(services.edge.post("/v3/set/tzpk?auditUser=it", &body).status, 200, "a mistake cost the control");
}

#[test]
fn a_control_with_a_thumbprint_admits_no_other_device_key() {
    let services = Services::new();
    let (ours, other) = (device(), device());
    let open = |sha256: serde_json::Value| {
        services.edge.post(OPEN, &json!({ "scope": "SET_PIN", "deviceKeySha256": sha256 }).to_string())
    };
    let control = open(STANDARD.encode(ours.thumbprint()).into());
    assert_eq!(control.status, 201, "{}", control.text);
    let tzpk = |device: &device::Device| {
        let key = STANDARD.encode(device.public_key_der());
        let body = json!({ "controlId": control.member("id"), "publicKey": key }).to_string();
        services.edge.post("/v3/set/tzpk?auditUser=it", &body)
    };
    assert_eq!(tzpk(&other).fault(), (403, "DEVICE_KEY_MISMATCH"));
    assert_eq!(tzpk(&ours).status, 200);

    let hex: String = ours.thumbprint().iter().map(|byte| format!("{byte:02x}")).collect();
    for wrong in ["", "AAAA", &hex, &STANDARD.encode([7; 31]), &STANDARD.encode([7; 33])] {
        assert_eq!(open(wrong.into()).fault(), (400, "DEVICE_KEY_SHA256_INVALID"), "{wrong}");
    }
    // A client that loses the thumbprint by mistake must not get a control without one.
    assert_eq!(open(serde_json::Value::Null).fault(), (400, "BODY_MALFORMED"));
}

#[test]
fn only_a_configured_client_receives_the_kcv_of_the_tzpk() {
    let services = Services::new();
    let device = device();
    let with_kcv = format!("Basic {}", STANDARD.encode(format!("backoffice:{PASSWORD}")));
    let key = STANDARD.encode(device.public_key_der());
    let ask = |authorization: &str, scope: &str, path: &str| {
        let control = services.edge.post_as(authorization, OPEN, &json!({ "scope": scope }).to_string());
        let body = json!({ "controlId": control.member("id"), "publicKey": key }).to_string();
        (control.member("id").to_owned(), services.edge.post_as(authorization, path, &body))
    };
    let kcv_of = |answer: &Answer| {
        let tzpk = device.decrypt_tzpk(&STANDARD.decode(answer.member("tzpk")).unwrap()).unwrap();
        tzpk.encrypt_block(&[0; 8])[..3].iter().map(|byte| format!("{byte:02X}")).collect::<String>()
    };
    let (control, answer) = ask(&with_kcv, "SET_PIN", "/v3/set/tzpk?auditUser=it");
    assert_eq!(answer.member("checkValue"), kcv_of(&answer));
    let tzpk = STANDARD.decode(answer.member("tzpk")).unwrap();
    let block = device.encrypt_pin(&tzpk, &Pin::parse("2580").unwrap(), Fill::Random).unwrap();
    let set = json!({ "controlId": control, "pinBlock": STANDARD.encode(block) }).to_string();
    assert_eq!(services.edge.post("/v3/set?auditUser=it", &set).status, 200);
    let (_, answer) = ask(&with_kcv, "VIEW_PIN", "/v3/view?auditUser=it");
    assert_eq!(answer.member("checkValue"), kcv_of(&answer));

    let bearer = format!("Bearer {TOKEN}");
    for (scope, path) in [("SET_PIN", "/v3/set/tzpk?auditUser=it"), ("VIEW_PIN", "/v3/view?auditUser=it")] {
        let (_, answer) = ask(&bearer, scope, path);
        assert_eq!(answer.status, 200);
        assert!(answer.body.get("checkValue").is_none(), "{}", answer.text);
    }
}
