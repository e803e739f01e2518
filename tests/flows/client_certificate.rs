//! The clients of an edge: a certificate as their credential, and their reload on SIGHUP.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::Command,
};

use support::{
    certificates::{certificates, port_of},
    edge_process::{EdgeProcess, OTHER_TOKEN, TOKEN},
    engine_process::EngineProcess,
    wait::{signal, soon},
};

/// The status of a request over TLS with the certificate of this holder and this Authorization header, by curl; `None` where
/// TLS fails.
fn status(edge: &EdgeProcess, directory: &std::path::Path, holder: &str, authorization: &str) -> Option<u16> {
    let at = |file: &str| directory.join("pki").join(file);
    let port = edge.url.rsplit(':').next().unwrap();
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "60", "--cacert"]).arg(at("ca.pem"));
    if !holder.is_empty() {
        curl.arg("--cert").arg(at(&format!("{holder}.pem"))).arg("--key").arg(at(&format!("{holder}.key")));
    }
    if !authorization.is_empty() {
        curl.arg("-H").arg(format!("authorization: {authorization}"));
    }
    curl.args(["-H", "content-type: application/json", "-d", "{\"scope\":\"SET_PIN\"}"]);
    curl.arg(format!("https://localhost:{port}/pincontrol/v2/plastic/6201?auditUser=it"));
    let output = curl.output().expect("curl is missing: install it");
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().parse().unwrap())
}

#[test]
fn a_certificate_is_a_credential_of_a_client() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    certificates(directory.path());
    let at = |file: &str| directory.path().join("pki").join(file);
    let tls = format!(
        "[tls]\ncertificates = {:?}\nprivate_key = {:?}\nclient_roots = {:?}\n",
        at("engine.pem"),
        at("engine.key"),
        at("ca.pem")
    );
    let client = "[[clients]]\nname = \"wallet\"\ntenant = \"bank\"\ncertificate_name = \"client.pinseal.test\"\n";
    let engine = format!("addresses = [\"http://localhost:{}\"]", port_of(&engine));
    let token = format!("Bearer {TOKEN}");
    for (kind, without_certificate) in [("optional", Some(401)), ("required", None)] {
        let extra = format!("{tls}client_certificate = {kind:?}\n{client}");
        let edge = EdgeProcess::start(directory.path(), &engine, &extra);
        let status = |holder: &str, authorization: &str| status(&edge, directory.path(), holder, authorization);
        assert_eq!(status("client", ""), Some(201), "{kind}: the certificate of a client");
        assert_eq!(status("operator", ""), Some(401), "{kind}: a certificate of no client");
        assert_eq!(status("operator", &token), Some(201), "{kind}: the same and a token");
        assert_eq!(status("client", &token), Some(401), "{kind}: the certificate and token of two clients");
        assert_eq!(status("client", "Bearer wrong"), Some(401), "{kind}: a certificate and a wrong token");
        assert_eq!(status("", ""), without_certificate, "{kind}: nothing");
        assert_eq!(status("", &token), without_certificate.map(|_| 201), "{kind}: a token alone");
    }
}

/// The status of a request with this token on an open connection.
fn status_on(stream: &mut TcpStream, token: &str) -> u16 {
    let body = "{\"scope\":\"SET_PIN\"}";
    let head = "POST /pincontrol/v2/plastic/6202?auditUser=it HTTP/1.1\r\nhost: edge\r\ncontent-type: application/json";
    let length = body.len();
    let request = format!("{head}\r\nauthorization: Bearer {token}\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(request.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end().split_once(": ") {
            Some(("content-length", value)) => length = value.parse().unwrap(),
            Some(_) => {}
            None => break,
        }
    }
    reader.read_exact(&mut vec![0; length]).unwrap();
    first.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {first:?}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_client_is_rejected_on_its_open_connection_after_sighup() {
    const NEW_TOKEN: &str = "new-token-0123456789abcdef";
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let edge = EdgeProcess::start(directory.path(), &format!("addresses = [\"http://{}\"]", engine.address()), "");
    let [mut story, mut other] = [edge.connect(), edge.connect()];
    assert_eq!((status_on(&mut story, TOKEN), status_on(&mut other, OTHER_TOKEN)), (201, 201));

    // A secret that is not valid changes nothing, not even a client that was removed at the same time.
    let (config, secret) = (directory.path().join("edge.toml"), directory.path().join("token"));
    let text = fs::read_to_string(&config).unwrap();
    let (before, after) = text.split_once("[[clients]]\nname = \"other\"").unwrap();
    let (_, after) = after.split_once("[[clients]]").unwrap();
    fs::write(&config, format!("{before}[[clients]]{after}")).unwrap();
    fs::write(&secret, "short").unwrap();
    signal(edge.id(), "HUP");
    soon("the secret is rejected", async || edge.log().contains("keeps its clients").then_some(())).await;
    assert_eq!((status_on(&mut story, TOKEN), status_on(&mut other, OTHER_TOKEN)), (201, 201));

    fs::write(&secret, NEW_TOKEN).unwrap();
    signal(edge.id(), "HUP");
    soon("the client is removed", async || (status_on(&mut other, OTHER_TOKEN) == 401).then_some(())).await;
    assert_eq!((status_on(&mut story, TOKEN), status_on(&mut story, NEW_TOKEN)), (401, 201));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_certificate_the_running_edge_never_asks_for_is_refused_on_sighup() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    certificates(directory.path());
    let at = |file: &str| directory.path().join("pki").join(file);
    let tls = format!("[tls]\ncertificates = {:?}\nprivate_key = {:?}\n", at("engine.pem"), at("engine.key"));
    let edge = EdgeProcess::start(directory.path(), &format!("addresses = [\"http://{}\"]", engine.address()), &tls);

    // The file asks for certificates; the listener does so after a restart.
    let config = directory.path().join("edge.toml");
    let text = fs::read_to_string(&config).unwrap();
    let roots = format!("[tls]\nclient_roots = {:?}\nclient_certificate = \"optional\"", at("ca.pem"));
    let client = "[[clients]]\nname = \"wallet\"\ntenant = \"bank\"\ncertificate_name = \"client.pinseal.test\"\n";
    fs::write(&config, text.replace("[tls]", &roots) + client).unwrap();
    signal(edge.id(), "HUP");
    soon("the clients are refused", async || edge.log().contains("keeps its clients").then_some(())).await;
    assert!(edge.log().contains("restart the edge"), "{}", edge.log());
    assert_eq!(status(&edge, directory.path(), "", &format!("Bearer {TOKEN}")), Some(201));
}
