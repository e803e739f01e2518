//! One client, tenant or card at its limits leaves the others alone.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use net::{EngineChannel, connect::channel};
use proto::{ExportAuditRequest, Scope, audit_service_client::AuditServiceClient};
use support::{
    edge_process::{EdgeProcess, OTHER_TOKEN, TOKEN},
    engine_process::{EngineProcess, METRICS, device, reason},
    wait::soon,
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The unfinished bodies at a time: more than the 4,096 requests that an edge has in progress.
const CONNECTIONS: usize = 20;
const STREAMS: usize = 240;
const CALLS: usize = 180;
const OPEN: &str = "{\"scope\":\"SET_PIN\"}";

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Header fields in HPACK, as literals without indexing (RFC 7541, 6.2.2).
fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// A POST of the tests' client with this part of its body, which is complete if it is as long as [`OPEN`].
fn post(stream: u32, plastic: usize, body: &str) -> Vec<u8> {
    let (path, authorization) = (format!("/pincontrol/v2/plastic/{plastic}?auditUser=it"), format!("Bearer {TOKEN}"));
    let head = fields(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", &path),
        (":authority", "edge"),
        ("authorization", &authorization),
        ("content-length", &OPEN.len().to_string()),
    ]);
    [frame(1, 0x4, stream, &head), frame(0, u8::from(body.len() == OPEN.len()), stream, body.as_bytes())].concat()
}

/// Opens a connection with one whole request, which the edge answers, and then many whose bodies stay unfinished. Keeps them
/// open until the edge has answered them all or `stop` is set.
fn leave_bodies_unfinished(address: &str, number: usize, stop: &AtomicBool) {
    let Ok(mut stream) = TcpStream::connect(address) else { return };
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[])].concat();
    let mut said = [preface, post(1, 80_000 + number, OPEN)].concat();
    for id in 1..=STREAMS {
        said.extend(post(u32::try_from(2 * id + 1).unwrap(), 81_000, &OPEN[..1]));
    }
    // The edge may close a connection.
    if stream.write_all(&said).is_err() {
        return;
    }
    // An answer has a HEADERS frame, of type 1: each of the requests is answered at last.
    let (mut heard, mut answers, mut buffer) = (Vec::new(), 0, [0; 16 * 1024]);
    while !stop.load(Ordering::Relaxed) && answers <= STREAMS {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => heard.extend(&buffer[..length]),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
        while let Some([a, b, c, kind]) = heard.first_chunk::<4>().copied() {
            let length = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
            if heard.len() < length {
                break;
            }
            answers += usize::from(kind == 1);
            heard.drain(..length);
        }
    }
}

/// Stops the load when the test ends, also by a failure.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits for a condition.
fn until(mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(120), "the condition does not hold");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The value of a metric.
fn metric(metrics: &str, name: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {metrics}")).trim().parse().unwrap()
}

#[test]
fn unfinished_bodies_of_one_client_leave_another_alone() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start_quiet(directory.path(), "");
    let address = format!("addresses = [\"http://{}\"]", engine.address());
    let edge = EdgeProcess::start_with_metrics(directory.path(), &address);
    let (host, stop) = (edge.url.trim_start_matches("http://"), &AtomicBool::new(false));
    let refused = || metric(&edge.metrics(), "pinseal_edge_requests_refused_total{reason=\"CLIENT_BUSY\"}");
    std::thread::scope(|scope| {
        for number in 0..CONNECTIONS {
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    leave_bodies_unfinished(host, number, stop);
                }
            });
        }
        let stopped = StopOnDrop(stop);
        // The client holds its whole share.
        until(|| refused() > 0);
        let mut statuses = Vec::new();
        for number in 0..CALLS {
            let path = format!("/pincontrol/v2/plastic/{}?auditUser=it", 82_000 + number);
            statuses.push(edge.post_as(&format!("Bearer {OTHER_TOKEN}"), &path, OPEN).status);
        }
        let during = refused();
        until(|| refused() > during);
        drop(stopped);
        assert_eq!(statuses, vec![201; CALLS]);
    });
    let metrics = edge.metrics();
    assert_eq!(metric(&metrics, "pinseal_edge_requests_refused_total{reason=\"BUSY\"}"), 0);
    // The bodies that had a place were refused after their time.
    assert!(metric(&metrics, "pinseal_edge_requests_refused_total{reason=\"BODY_TIMEOUT\"}") > 0);
}

#[test]
fn a_client_beyond_its_rate_gets_429_and_another_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start_quiet(directory.path(), "");
    let address = format!("addresses = [\"http://{}\"]", engine.address());
    let edge = EdgeProcess::start(directory.path(), &address, "requests_per_client_per_second_max = 1");
    let open = |token: &str, number: usize| {
        edge.post_as(&format!("Bearer {token}"), &format!("/pincontrol/v2/plastic/{number}?auditUser=it"), OPEN)
    };
    let refused = (83_000..84_000).map(|number| open(TOKEN, number)).find(|answer| answer.status != 201);
    let refused = refused.expect("no request was refused");
    assert_eq!((refused.fault(), refused.retry_after), ((429, "CLIENT_RATE"), true));
    assert_eq!(open(OTHER_TOKEN, 84_000).status, 201);
}

/// The reason of a refused call, and whether it has a RetryInfo.
fn refusal(status: &Status) -> (Code, String, bool) {
    let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
    (status.code(), reason(status), retry.is_some_and(|delay| !delay.is_zero()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_beyond_its_rate_is_refused_with_a_retry_info() {
    let directory = tempfile::tempdir().unwrap();
    let engine =
        EngineProcess::start(directory.path(), &format!("[limits]\ncalls_per_tenant_per_second = 1\n{METRICS}"));
    let mut client = engine.client().await;
    let mut refused = None;
    for number in 84_100..85_100 {
        refused = client.open(&number.to_string(), Scope::SetPin).await.err();
        if refused.is_some() {
            break;
        }
    }
    assert_eq!(refusal(&refused.unwrap()), (Code::ResourceExhausted, "TENANT_RATE".into(), true));
    assert!(metric(&engine.metrics(), "pinseal_calls_refused_total{reason=\"TENANT_RATE\"}") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_beyond_its_exports_is_refused_until_one_ends() {
    const EXPORTS_PER_PEER_MAX: usize = 4;
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), METRICS);
    let channel = channel(&format!("http://{}", engine.address()).parse().unwrap(), None).unwrap();
    let mut audit = AuditServiceClient::new(EngineChannel::from(channel));
    let request = ExportAuditRequest { start_sequence: 1, newest_count: 0, continuous: true };
    let mut running = Vec::new();
    for _ in 0..EXPORTS_PER_PEER_MAX {
        running.push(audit.export_audit(request).await.unwrap().into_inner());
    }
    let refused = audit.export_audit(request).await.map(drop).unwrap_err();
    assert_eq!(refusal(&refused), (Code::ResourceExhausted, "EXPORTS_BUSY".into(), true));
    assert!(metric(&engine.metrics(), "pinseal_calls_refused_total{reason=\"EXPORTS_BUSY\"}") > 0);
    engine.client().await.open("85250", Scope::SetPin).await.unwrap();
    running.pop();
    let mut again = audit.clone();
    soon("the place of an ended export stays occupied", async || again.export_audit(request).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_beyond_its_rate_is_refused_and_another_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), &format!("[limits]\ncalls_per_card_per_minute = 3\n{METRICS}"));
    let edge = EdgeProcess::start_quiet(directory.path(), &format!("addresses = [\"http://{}\"]", engine.address()));
    let mut client = engine.client().await;
    let device = device();
    let control = client.open("85200", Scope::SetPin).await.unwrap().control_id;
    let mut refused = None;
    for _ in 0..1_000 {
        refused = client.tzpk(&control, &device).await.err();
        if refused.is_some() {
            break;
        }
    }
    assert_eq!(refusal(&refused.unwrap()), (Code::ResourceExhausted, "CARD_RATE".into(), true));
    assert!(metric(&engine.metrics(), "pinseal_calls_refused_total{reason=\"CARD_RATE\"}") > 0);
    client.open("85201", Scope::SetPin).await.unwrap();

    // The edge sends the RetryInfo as Retry-After. The quota is renewed by one call in 20 seconds.
    let answers = (0..1_000).map(|_| edge.post("/pincontrol/v2/plastic/85200?auditUser=it", OPEN));
    let refused = answers.into_iter().find(|answer| answer.status != 201).expect("no request was refused");
    assert_eq!((refused.fault(), refused.retry_after), ((429, "CARD_RATE"), true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_control_is_not_usable_also_beyond_the_rate_of_its_card() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "[limits]\ncalls_per_card_per_minute = 4");
    let (device, mut client) = (device(), engine.client().await);
    let (spent, block) = client.ready_to_set(&device, "85210", "271828").await.unwrap();
    client.set_block(&spent, &block).await.unwrap();
    let mut limited = false;
    for _ in 0..1_000 {
        limited = client.open("85210", Scope::SetPin).await.is_err_and(|status| reason(&status) == "CARD_RATE");
        if limited {
            break;
        }
    }
    assert!(limited, "the card is not beyond its rate");
    let other = client.set_block(&spent, &[7; 8]).await.unwrap_err();
    assert_eq!((other.code(), reason(&other).as_str()), (Code::NotFound, "CONTROL_NOT_USABLE"));
    let tzpk = client.tzpk(&spent, &device).await.unwrap_err();
    assert_eq!((tzpk.code(), reason(&tzpk).as_str()), (Code::NotFound, "CONTROL_NOT_USABLE"));
    // The retry of the block that set the PIN is confirmed.
    client.set_block(&spent, &block).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn unregistered_cards_without_a_pin_are_limited() {
    let directory = tempfile::tempdir().unwrap();
    let engine =
        EngineProcess::start(directory.path(), &format!("[control]\nunregistered_cards_per_tenant_max = 2\n{METRICS}"));
    let mut client = engine.client().await;
    let device = device();
    for plastic in ["85300", "85301"] {
        client.open(plastic, Scope::SetPin).await.unwrap();
    }
    let refused = client.open("85302", Scope::SetPin).await.err().unwrap();
    assert_eq!(refusal(&refused), (Code::ResourceExhausted, "UNREGISTERED_CARDS".into(), true));
    assert!(metric(&engine.metrics(), "pinseal_calls_refused_total{reason=\"UNREGISTERED_CARDS\"}") > 0);
    client.set(&device, "85300", "4826").await.unwrap();
    client.open("85302", Scope::SetPin).await.unwrap();
}

#[test]
fn lines_of_requests_without_credentials_are_limited() {
    const REQUESTS: usize = 400;
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start_quiet(directory.path(), "");
    let address = format!("addresses = [\"http://{}\"]", engine.address());
    let edge = EdgeProcess::start_with_default_log(directory.path(), &address);
    let before = Instant::now();
    for _ in 0..REQUESTS {
        assert_eq!(edge.post_as("Bearer wrong", "/v3/set?auditUser=it", "{}").status, 401);
    }
    // A client with credentials finds the line of its error.
    let answer = edge.post("/v3/set?auditUser=it", "{}");
    let log = edge.log();
    let lines = log.lines().filter(|line| line.contains("UNAUTHENTICATED")).count();
    let minutes = usize::try_from(before.elapsed().as_secs() / 60 + 2).unwrap();
    assert!((1..=60 * minutes).contains(&lines), "{lines} lines in {minutes} minutes");
    assert!(log.contains(answer.member("id")), "{log}");
}
