//! The stream that carries the calls of an edge: each call is checked, limited, cancelled and audited as a call of its own, and a
//! drained stream finishes what it has begun.

use std::{
    collections::VecDeque,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use device::Device;
use domain::request_id::RequestId;
use proto::{
    CallError, ExchangeCallsRequest, ExchangeCallsResponse, IssueTzpkRequest, NumberedCall, NumberedReply,
    OpenControlRequest, Scope, ViewPinRequest, edge_service_client::EdgeServiceClient, numbered_call::Method,
    numbered_reply,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};

use support::{
    ceremony::pinseal,
    certificates::{certificates, channel_as, peer},
    engine_process::{AUDIT_USER, EngineProcess, TENANT, device, reason},
    wait::{signal, soon, stop, within},
};

/// The client's end of a stream.
struct EdgeStream {
    calls: mpsc::Sender<ExchangeCallsRequest>,
    messages: Streaming<ExchangeCallsResponse>,
    /// The replies that were received, and not yet asked for.
    replies: VecDeque<NumberedReply>,
    last_call: Option<u64>,
}

impl EdgeStream {
    async fn open(channel: Channel) -> Result<Self, Status> {
        let (calls, requests) = mpsc::channel(1);
        let messages =
            EdgeServiceClient::new(channel).exchange_calls(ReceiverStream::new(requests)).await?.into_inner();
        Ok(Self { calls, messages, replies: VecDeque::new(), last_call: None })
    }

    async fn send(&self, calls: Vec<NumberedCall>) {
        self.calls.send(ExchangeCallsRequest { calls, cancelled_sequences: Vec::new() }).await.unwrap();
    }

    async fn cancel(&self, sequence: u64) {
        let cancelled_sequences = vec![sequence];
        self.calls.send(ExchangeCallsRequest { calls: Vec::new(), cancelled_sequences }).await.unwrap();
    }

    /// Reads a message; `None` at the end of the stream.
    async fn read(&mut self) -> Result<Option<()>, Status> {
        let Some(message) = self.messages.message().await? else { return Ok(None) };
        self.replies.extend(message.replies);
        self.last_call = message.last_call.map(|last| last.sequence).or(self.last_call);
        Ok(Some(()))
    }

    /// The number of the next reply, and its result.
    async fn reply(&mut self) -> (u64, Result<numbered_reply::Result, Status>) {
        while self.replies.is_empty() {
            self.read().await.unwrap().expect("the stream ended before the reply");
        }
        let reply = self.replies.pop_front().unwrap();
        let result = match reply.result.unwrap() {
            numbered_reply::Result::Error(error) => Err(status(error)),
            result => Ok(result),
        };
        (reply.sequence, result)
    }

    /// The status that ends the stream.
    async fn end(&mut self) -> Option<Status> {
        loop {
            match self.read().await {
                Ok(Some(())) => {}
                Ok(None) => return None,
                Err(status) => return Some(status),
            }
        }
    }

    /// Waits until the engine drains the stream, and returns the number of the last call.
    async fn last_call(&mut self) -> u64 {
        loop {
            if let Some(last) = self.last_call {
                return last;
            }
            self.read().await.unwrap().expect("the stream ended without the last call");
        }
    }
}

fn status(error: CallError) -> Status {
    Status::with_details(Code::from(error.code_number), error.message, error.details.into())
}

fn call(sequence: u64, method: Method) -> NumberedCall {
    let request_id = RequestId::random().as_bytes().to_vec();
    NumberedCall { sequence, request_id, timeout_duration: None, method: Some(method) }
}

fn within_time(call: NumberedCall, time: Duration) -> NumberedCall {
    NumberedCall { timeout_duration: Some(time.try_into().unwrap()), ..call }
}

fn open_control(plastic_id: &str) -> Method {
    Method::OpenControl(OpenControlRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: plastic_id.into(),
        scope: Scope::SetPin.into(),
        device_key_sha256: Vec::new(),
        page_client: String::new(),
    })
}

/// A call that needs the key boundary.
fn issue_tzpk(control_id: &str, device: &Device) -> Method {
    Method::IssueTzpk(IssueTzpkRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        control_id: control_id.into(),
        device_public_key: device.public_key_der().to_vec(),
        oaep_mgf1: proto::OaepMgf1::Unspecified.into(),
    })
}

fn view_pin(tenant: &str) -> Method {
    Method::ViewPin(ViewPinRequest { tenant: tenant.into(), audit_user: AUDIT_USER.into(), ..Default::default() })
}

fn opened(result: Result<numbered_reply::Result, Status>) -> String {
    match result.unwrap() {
        numbered_reply::Result::OpenControl(opened) => opened.control_id,
        _ => panic!("the response of another method"),
    }
}

/// Opens a control over the stream, as its call with this number.
async fn control(stream: &mut EdgeStream, sequence: u64, plastic_id: &str) -> String {
    stream.send(vec![call(sequence, open_control(plastic_id))]).await;
    let (replied, result) = stream.reply().await;
    assert_eq!(replied, sequence);
    opened(result)
}

/// The audit entries of a stopped engine.
fn audited(directory: &Path) -> Vec<serde_json::Value> {
    let exported = pinseal().args(["audit", "export", "--store"]).arg(directory.join("data/store")).output().unwrap();
    String::from_utf8(exported.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_end_at_their_deadline_and_when_they_are_cancelled() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let device = device();
    let mut stream = EdgeStream::open(engine.channel().await).await.unwrap();
    let mut controls = Vec::new();
    for number in 1..=3 {
        controls.push(control(&mut stream, number, &format!("641{number}")).await);
    }
    let hsm = engine.hsm_id().unwrap();
    stop(hsm);
    let short = within_time(call(10, issue_tzpk(&controls[0], &device)), Duration::from_millis(300));
    stream.send(vec![short, call(11, issue_tzpk(&controls[1], &device)), call(12, open_control("6414"))]).await;
    // A call that waits for the boundary delays no other one.
    let (sequence, result) = stream.reply().await;
    assert_eq!(sequence, 12);
    result.unwrap();
    let (sequence, result) = stream.reply().await;
    let passed = result.err().unwrap();
    assert_eq!((sequence, passed.code(), &*reason(&passed)), (10, Code::DeadlineExceeded, "DEADLINE_PASSED"));
    stream.cancel(11).await;
    // The engine reads the messages of a stream in order: with this reply, it has read the cancellation.
    control(&mut stream, 13, "6415").await;
    signal(hsm, "CONT");
    stream.send(vec![call(14, issue_tzpk(&controls[2], &device))]).await;
    let (sequence, result) = stream.reply().await;
    assert_eq!(sequence, 14, "a cancelled call has no reply");
    result.unwrap();
    drop(stream.calls);
    drop(stream.messages);
    assert_eq!(engine.terminate(), 0);
    let issued = audited(directory.path()).into_iter().filter(|entry| entry["event"]["action"] == "issue_tzpk");
    let issued: Vec<_> = issued.map(|entry| entry["event"]["control"].clone()).collect();
    assert_eq!(issued, [controls[2].clone()], "a call past its end was carried out");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_of_a_stream_is_admitted_and_audited_by_its_own_right() {
    let directory = tempfile::tempdir().unwrap();
    let (tls, _) = certificates(directory.path());
    let peers = peer("edge", "\"edge-set\"") + "tenants = [\"bank\"]\n" + &peer("operator", "\"edge-view\"");
    let engine = EngineProcess::start(directory.path(), &format!("{tls}\n{peers}"));
    let refused = EdgeStream::open(channel_as("client", directory.path(), &engine)).await.err().unwrap();
    assert_eq!((refused.code(), &*reason(&refused)), (Code::PermissionDenied, "CALLER_FORBIDDEN"));

    let mut stream = EdgeStream::open(channel_as("edge", directory.path(), &engine)).await.unwrap();
    let mut other_tenant = open_control("6421");
    if let Method::OpenControl(request) = &mut other_tenant {
        request.tenant = "other".into();
    }
    let denied = [call(1, view_pin(TENANT)), call(2, other_tenant)];
    for denied in &denied {
        stream.send(vec![denied.clone()]).await;
        let (sequence, result) = stream.reply().await;
        let refused = result.err().unwrap();
        assert_eq!(sequence, denied.sequence);
        assert_eq!((refused.code(), &*reason(&refused)), (Code::PermissionDenied, "CALLER_FORBIDDEN"));
    }
    control(&mut stream, 3, "6422").await;

    // A reload takes the role from the peer of the open stream.
    let file = directory.path().join("engine.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("edge.pinseal.test", "away.pinseal.test")).unwrap();
    signal(engine.id(), "HUP");
    let mut sequence = 3;
    let refused = soon("the peer keeps its role", async || {
        sequence += 1;
        stream.send(vec![call(sequence, open_control("6423"))]).await;
        stream.reply().await.1.err()
    })
    .await;
    assert_eq!((refused.code(), &*reason(&refused)), (Code::PermissionDenied, "CALLER_FORBIDDEN"));
    drop(stream);
    assert_eq!(engine.terminate(), 0);
    let denials = audited(directory.path()).into_iter().filter(|entry| entry["event"]["type"] == "call_denied");
    let denials: Vec<_> = denials.collect();
    let parts = |entry: &serde_json::Value| {
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        (text(&entry["event"]["method"]), text(&entry["event"]["reason"]))
    };
    let expected = [
        ("exchange_calls", "unknown_peer"),
        ("view_pin", "right"),
        ("open_control", "tenant"),
        ("open_control", "unknown_peer"),
    ];
    let expected = expected.map(|(method, reason)| (method.to_owned(), reason.to_owned()));
    assert_eq!(denials.iter().map(parts).collect::<Vec<_>>(), expected);
    for (entry, call) in denials[1..].iter().zip(&denied) {
        let id = RequestId::from_bytes(call.request_id.as_slice().try_into().unwrap());
        assert_eq!(entry["request"], id.to_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_stream_names_its_last_call_and_finishes_it() {
    for age in ["connection_age_seconds_max = 1\n", ""] {
        let directory = tempfile::tempdir().unwrap();
        let engine = EngineProcess::start(directory.path(), age);
        let device = device();
        let hsm = engine.hsm_id().unwrap();
        // The connection may reach its age before the call is sent: then on the next one.
        let mut stream = within(Duration::from_secs(60), "no call is in flight", async || {
            let mut stream = EdgeStream::open(engine.channel().await).await.unwrap();
            let control = match open_first(&mut stream).await {
                Some(control) => control,
                None => return None,
            };
            stop(hsm);
            stream.send(vec![call(2, issue_tzpk(&control, &device)), call(3, open_control("6432"))]).await;
            let begun = loop {
                let is_drained = !matches!(stream.read().await, Ok(Some(()))) || stream.last_call.is_some();
                if is_drained || stream.replies.iter().any(|reply| reply.sequence == 3) {
                    break !is_drained;
                }
            };
            if !begun {
                signal(hsm, "CONT");
            }
            begun.then_some(stream)
        })
        .await;
        let process = engine.id();
        let stopping = age.is_empty().then(|| signal(process, "TERM"));
        assert_eq!(stream.last_call().await, 3);
        // Behind the last call.
        stream.send(vec![call(4, open_control("6433"))]).await;
        signal(hsm, "CONT");
        for expected in [3, 2] {
            let (sequence, result) = stream.reply().await;
            assert_eq!(sequence, expected);
            result.unwrap();
        }
        assert!(stream.end().await.is_none(), "the stream ends with OK");
        assert!(stream.replies.is_empty());
        let code = if stopping.is_some() { engine.wait() } else { engine.terminate() };
        assert_eq!(code, 0);
        let entries = audited(directory.path());
        let last_opened = entries.iter().rev().find(|entry| entry["event"]["action"] == "open_control").unwrap();
        assert!(
            last_opened["event"]["card"].as_str().unwrap().ends_with('2'),
            "the call behind the last one: {last_opened}"
        );
    }
}

/// Opens a control as the first call of a stream; `None` if the stream drains before.
async fn open_first(stream: &mut EdgeStream) -> Option<String> {
    stream
        .calls
        .send(ExchangeCallsRequest { calls: vec![call(1, open_control("6431"))], ..Default::default() })
        .await
        .ok()?;
    while stream.replies.is_empty() {
        stream.read().await.ok()??;
        if stream.last_call.is_some() {
            return None;
        }
    }
    Some(opened(stream.reply().await.1))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_message_ends_the_stream_and_an_unknown_method_its_call() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start(directory.path(), "");
    let channel = engine.channel().await;
    let short_id = NumberedCall { request_id: vec![7; 15], ..call(3, open_control("6443")) };
    for (calls, expected) in [
        (vec![call(2, open_control("6441")), call(2, open_control("6442"))], "ITEM_NUMBER"),
        (vec![call(0, open_control("6441"))], "ITEM_NUMBER"),
        (vec![call(1, open_control("6441"))], "ITEM_NUMBER"),
        (vec![short_id], "REQUEST_ID_INVALID"),
    ] {
        // The place of the stream before is free.
        let mut stream = EdgeStream::open(channel.clone()).await.unwrap();
        let busy = EdgeStream::open(channel.clone()).await.err().unwrap();
        assert_eq!((busy.code(), &*reason(&busy)), (Code::ResourceExhausted, "STREAMS_BUSY"));
        stream.send(vec![NumberedCall { method: None, ..call(1, open_control("6440")) }]).await;
        let (sequence, result) = stream.reply().await;
        assert_eq!((sequence, result.err().unwrap().code()), (1, Code::Unimplemented));
        stream.send(calls).await;
        let ended = stream.end().await.unwrap();
        assert_eq!((ended.code(), &*reason(&ended)), (Code::InvalidArgument, expected));
    }
    let mut stream = EdgeStream::open(channel).await.unwrap();
    let mut long = open_control("6444");
    if let Method::OpenControl(request) = &mut long {
        request.page_client = "x".repeat(16 * 1024);
    }
    stream.send(vec![call(1, long)]).await;
    let (_, result) = stream.reply().await;
    assert_eq!(result.err().unwrap().code(), Code::OutOfRange);
    drop(stream);
    assert_eq!(engine.terminate(), 0);
    let opened = audited(directory.path()).into_iter().filter(|entry| entry["event"]["action"] == "open_control");
    assert_eq!(opened.count(), 0, "a call of a malformed message was carried out");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_gets_no_further_call_begun() {
    const CALLS: u64 = 400_000;
    const CALLS_PER_MESSAGE: u64 = 400;
    const WINDOW: u32 = 65_535;
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start_quiet(directory.path(), "calls_per_connection_max = 16");
    let endpoint: Endpoint = format!("http://{}", engine.address()).parse().unwrap();
    let channel = endpoint.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let mut stream = EdgeStream::open(channel.connect().await.unwrap()).await.unwrap();
    let sent = Arc::<AtomicU64>::default();
    let (calls, counted) = (stream.calls.clone(), Arc::clone(&sent));
    let sending = tokio::spawn(async move {
        let mut number = 0;
        while number < CALLS {
            let of_message = (1..=CALLS_PER_MESSAGE).map(|next| NumberedCall {
                sequence: number + next,
                request_id: vec![7; 16],
                ..Default::default()
            });
            let message = ExchangeCallsRequest { calls: of_message.collect(), cancelled_sequences: Vec::new() };
            calls.send(message).await.unwrap();
            number += CALLS_PER_MESSAGE;
            counted.store(number, Ordering::Relaxed);
        }
    });
    let mut before = 0;
    within(Duration::from_secs(120), "the engine reads calls without end", async || {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = sent.load(Ordering::Relaxed);
        (std::mem::replace(&mut before, now) == now && now > 0).then_some(())
    })
    .await;
    assert!(before < CALLS, "every call was read");
    // Another connection is served.
    engine.client().await.open("6451", Scope::SetPin).await.unwrap();
    let mut replied = vec![false; usize::try_from(CALLS).unwrap()];
    for _ in 0..CALLS {
        let (sequence, result) = stream.reply().await;
        assert_eq!(result.err().unwrap().code(), Code::Unimplemented);
        assert!(!std::mem::replace(&mut replied[usize::try_from(sequence).unwrap() - 1], true));
    }
    sending.await.unwrap();
}
