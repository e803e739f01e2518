//! The measured flows: SetPin alone, and the whole flow of one PIN, by gRPC and by HTTP.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use device::{Device, Fill, KeyBits, Pin};
use futures::future::try_join_all;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use indicatif::ProgressBar;
use serde_json::{Map, Value, json};
use tokio::runtime::{Builder, Runtime};
use tonic::transport::Channel;

use super::{
    Api, BenchError, FlowArguments, LoadArguments, http_echo,
    load::{self, LoadShape, Measurement, Progress},
    progress_bar::progress,
    report::{self, ConcurrencyResult},
    services::Services,
};
use crate::commands::demo::TemporaryDirectory;
use proto::{
    IssueTzpkRequest, OpenControlRequest, Scope, SetPinRequest, control_service_client::ControlServiceClient,
    echo_service_client::EchoServiceClient, pin_service_client::PinServiceClient,
};

/// The cards of the load: more than the blocks of a round, because a set closes the other controls of its card.
const CARDS: usize = 1_000_000;
/// The controls of the load of new tzpks: more than the requests in flight.
const ISSUED_CONTROLS: usize = 4_096;
/// The controls that are prepared at a time.
const PREPARED_AT_ONCE: usize = 64;
const TENANT: &str = "default";
const AUDIT_USER: &str = "bench";

/// An open control with a tzpk, and the encrypted block that sets its PIN.
pub(super) struct Ready {
    control_id: String,
    block: [u8; 8],
}

/// Measures SetPin alone, and the echo.
pub(super) fn set_pin(arguments: &FlowArguments) -> Result<(), BenchError> {
    let bench = Bench::new(&arguments.load)?;
    let mut levels = Vec::new();
    for &concurrency in &bench.arguments.concurrency {
        let (mut echoes, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..bench.arguments.rounds.max(1) {
            let ready = bench.prepare(bench.arguments.prepared)?;
            echoes.push(bench.echo(arguments.via, concurrency)?);
            ours.push(bench.set(arguments.via, concurrency, &ready)?);
        }
        levels.extend(ConcurrencyResult::from_runs(concurrency, echoes, ours));
    }
    report::print(["echo", "SetPin"], &levels, bench.arguments.json.as_deref())?;
    bench.end()
}

/// A part of the flow of one PIN, or the whole.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Open,
    Issue,
    Set,
    Whole,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Issue => "tzpk",
            Self::Set => "SetPin",
            Self::Whole => "flow",
        }
    }
}

/// Measures the parts of the flow of one PIN, the whole flow, and the echo.
pub(super) fn whole(arguments: &FlowArguments) -> Result<(), BenchError> {
    let bench = Bench::new(&arguments.load)?;
    let rounds = bench.arguments.rounds.max(1);
    let mut figures = Map::new();
    for part in [Part::Open, Part::Issue, Part::Set, Part::Whole] {
        let mut levels = Vec::new();
        for &concurrency in &bench.arguments.concurrency {
            let (mut echoes, mut ours) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                echoes.push(bench.echo(arguments.via, concurrency)?);
                ours.push(bench.part(part, arguments.via, concurrency)?);
            }
            levels.extend(ConcurrencyResult::from_runs(concurrency, echoes, ours));
        }
        let names = ["echo", part.name()];
        report::print_tables(names, &levels)?;
        figures.insert(part.name().to_owned(), report::json_of(names, &levels));
    }
    report::write(&figures.into(), bench.arguments.json.as_deref())?;
    bench.end()
}

/// One run: the arguments, the services and the device.
struct Bench<'a> {
    arguments: &'a LoadArguments,
    services: Services,
    device: Arc<Device>,
    runtime: Runtime,
    _directory: TemporaryDirectory,
}

impl<'a> Bench<'a> {
    fn new(arguments: &'a LoadArguments) -> Result<Self, BenchError> {
        let directory = TemporaryDirectory::unless(arguments.directory.as_deref())?;
        let runtime = Builder::new_multi_thread().enable_all().build()?;
        let services = runtime.block_on(Services::start(arguments, directory.path()))?;
        let device = Device::generate(KeyBits::Rsa2048).map_err(|error| BenchError::Load(error.to_string()))?;
        Ok(Self { arguments, services, device: Arc::new(device), runtime, _directory: directory })
    }

    fn end(self) -> Result<(), BenchError> {
        self.runtime.block_on(self.services.clear())
    }

    fn load(&self, concurrency: usize) -> LoadShape {
        self.arguments.shape(concurrency)
    }

    fn prepare(&self, count: usize) -> Result<Vec<Ready>, BenchError> {
        prepare(&self.runtime, &self.device, count, |_| self.services.engine_channel())
    }

    /// A load of the bare service that the API is compared with.
    fn echo(&self, via: Api, concurrency: usize) -> Result<Measurement, BenchError> {
        // The size of a real SetPin.
        const CONTROL: &str = "00000000-0000-4000-8000-000000000000";
        match via {
            Api::Grpc => load::run(self.load(concurrency), async || {
                let clients = self.connections(|| Ok(EchoServiceClient::new(self.services.echo_channel()?)))?;
                Ok(async move |number: usize| {
                    pick(&clients, number)?.echo(set_request(CONTROL, [7; 8])).await?;
                    Ok(Progress::Completed)
                })
            }),
            Api::Http => load::run(self.load(concurrency), async || {
                let http = Http::new(self.services.http_echo_address(), &self.services.token);
                Ok(async move |_: usize| {
                    http.post(http_echo::PATH, set_body(CONTROL, [7; 8])).await?;
                    Ok(Progress::Completed)
                })
            }),
        }
    }

    /// A load of one part of the flow, or of the whole.
    fn part(&self, part: Part, via: Api, concurrency: usize) -> Result<Measurement, BenchError> {
        match part {
            Part::Open => self.open(via, concurrency),
            Part::Issue => self.issue(via, concurrency),
            Part::Set => self.set(via, concurrency, &self.prepare(self.arguments.prepared)?),
            Part::Whole => self.whole(via, concurrency),
        }
    }

    fn open(&self, via: Api, concurrency: usize) -> Result<Measurement, BenchError> {
        match via {
            Api::Grpc => load::run(self.load(concurrency), async || {
                let channels = self.connections(|| self.services.engine_channel())?;
                Ok(async move |number: usize| {
                    open(&pick(&channels, number)?, number).await?;
                    Ok(Progress::Completed)
                })
            }),
            Api::Http => load::run(self.load(concurrency), async || {
                let http = Http::new(self.services.edge_address(), &self.services.token);
                Ok(async move |number: usize| {
                    http.post(&open_path(number), open_body(Scope::SetPin)).await?;
                    Ok(Progress::Completed)
                })
            }),
        }
    }

    /// New tzpks under the same controls, without their decryption by the device.
    fn issue(&self, via: Api, concurrency: usize) -> Result<Measurement, BenchError> {
        let controls: Arc<[String]> = self.runtime.block_on(async {
            let channel = self.services.engine_channel()?;
            try_join_all((0..ISSUED_CONTROLS).map(|number| open(&channel, number))).await.map(Into::into)
        })?;
        match via {
            Api::Grpc => load::run(self.load(concurrency), async || {
                let channels = self.connections(|| self.services.engine_channel())?;
                let (controls, device) = (Arc::clone(&controls), Arc::clone(&self.device));
                Ok(async move |number: usize| {
                    issue(&pick(&channels, number)?, &device, &pick(&controls, number)?).await?;
                    Ok(Progress::Completed)
                })
            }),
            Api::Http => load::run(self.load(concurrency), async || {
                let http = Http::new(self.services.edge_address(), &self.services.token);
                let (controls, device) = (Arc::clone(&controls), Arc::clone(&self.device));
                Ok(async move |number: usize| {
                    http.post("/pin/v3/set/tzpk", issue_body(&device, &pick(&controls, number)?)).await?;
                    Ok(Progress::Completed)
                })
            }),
        }
    }

    fn set(&self, via: Api, concurrency: usize, ready: &[Ready]) -> Result<Measurement, BenchError> {
        match via {
            Api::Grpc => set_by_grpc(self.load(concurrency), ready, |_| self.services.engine_channel()),
            Api::Http => {
                let ready: &'static [Ready] = Box::leak(clone_of(ready).into_boxed_slice());
                load::run(self.load(concurrency), async || {
                    let http = Http::new(self.services.edge_address(), &self.services.token);
                    Ok(async move |number: usize| {
                        let Some(ready) = ready.get(number) else { return Ok(Progress::OutOfBlocks) };
                        http.post("/pin/v3/set", set_body(&ready.control_id, ready.block)).await?;
                        Ok(Progress::Completed)
                    })
                })
            }
        }
    }

    fn whole(&self, via: Api, concurrency: usize) -> Result<Measurement, BenchError> {
        match via {
            Api::Grpc => load::run(self.load(concurrency), async || {
                let channels = self.connections(|| self.services.engine_channel())?;
                let device = Arc::clone(&self.device);
                Ok(async move |number: usize| {
                    whole_over(pick(&channels, number)?, &device, number).await?;
                    Ok(Progress::Completed)
                })
            }),
            Api::Http => load::run(self.load(concurrency), async || {
                let http = Http::new(self.services.edge_address(), &self.services.token);
                let device = Arc::clone(&self.device);
                Ok(async move |number: usize| {
                    whole_by_posts(async |path, body| http.post(path, body).await, &device, number).await?;
                    Ok(Progress::Completed)
                })
            }),
        }
    }

    /// One client for each connection.
    fn connections<T>(&self, connect: impl Fn() -> Result<T, BenchError>) -> Result<Vec<T>, BenchError> {
        (0..self.arguments.connection_count()).map(|_| connect()).collect()
    }
}

/// Opens controls with a tzpk each, and encrypts a block for each. `channel` makes a channel for a connection number.
pub(super) fn prepare(
    runtime: &Runtime,
    device: &Arc<Device>,
    count: usize,
    channel: impl Fn(usize) -> Result<Channel, BenchError>,
) -> Result<Vec<Ready>, BenchError> {
    let bar = progress(count as u64).with_message("preparing controls and blocks");
    let left = Arc::new(AtomicUsize::new(count));
    // A channel must be made within the runtime that drives it.
    let _inside = runtime.enter();
    let workers: Vec<_> = (0..PREPARED_AT_ONCE)
        .map(|number| {
            let (channel, device, left, bar) = (channel(number)?, Arc::clone(device), Arc::clone(&left), bar.clone());
            Ok(runtime.spawn(async move { prepare_while_any_is_left(channel, &device, &left, &bar).await }))
        })
        .collect::<Result<_, BenchError>>()?;
    let mut ready = Vec::with_capacity(count);
    for worker in workers {
        let prepared = runtime.block_on(worker).map_err(|error| BenchError::Load(error.to_string()))?;
        ready.extend(prepared?);
    }
    bar.finish_and_clear();
    Ok(ready)
}

/// SetPin by gRPC with these blocks. `channel` makes a channel for a connection number.
pub(super) fn set_by_grpc(
    load: LoadShape,
    ready: &[Ready],
    channel: impl Fn(usize) -> Result<Channel, BenchError> + Sync,
) -> Result<Measurement, BenchError> {
    let ready: &'static [Ready] = Box::leak(clone_of(ready).into_boxed_slice());
    load::run(load, async || {
        let clients = (0..load.connections).map(|number| channel(number).map(PinServiceClient::new));
        let clients = clients.collect::<Result<Vec<_>, _>>()?;
        Ok(async move |number: usize| {
            let Some(ready) = ready.get(number) else { return Ok(Progress::OutOfBlocks) };
            pick(&clients, number)?.set_pin(set_request(&ready.control_id, ready.block)).await?;
            Ok(Progress::Completed)
        })
    })
}

async fn prepare_while_any_is_left(
    channel: Channel,
    device: &Device,
    left: &AtomicUsize,
    bar: &ProgressBar,
) -> Result<Vec<Ready>, BenchError> {
    let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).ok();
    let mut ready = Vec::new();
    while let Some(number) = take() {
        ready.push(make_ready(&channel, device, number).await?);
        bar.inc(1);
    }
    Ok(ready)
}

/// The whole flow of one PIN by gRPC.
pub(super) async fn whole_over(channel: Channel, device: &Device, number: usize) -> Result<(), BenchError> {
    let ready = make_ready(&channel, device, number).await?;
    PinServiceClient::new(channel).set_pin(set_request(&ready.control_id, ready.block)).await?;
    Ok(())
}

/// The whole flow of one PIN by HTTP: `post` sends a body to a path, and returns the body of the answer.
pub(super) async fn whole_by_posts(
    post: impl AsyncFn(&str, Value) -> Result<Value, BenchError>,
    device: &Device,
    number: usize,
) -> Result<(), BenchError> {
    let control_id = open_by_posts(&post, number, Scope::SetPin).await?;
    let tzpk = post("/pin/v3/set/tzpk", issue_body(device, &control_id)).await?;
    let block = block_of(device, &bytes_member(&tzpk, "tzpk")?, number)?;
    post("/pin/v3/set", set_body(&control_id, block)).await?;
    Ok(())
}

/// Opens a control by HTTP. Returns its controlId.
pub(super) async fn open_by_posts(
    post: impl AsyncFn(&str, Value) -> Result<Value, BenchError>,
    number: usize,
    scope: Scope,
) -> Result<String, BenchError> {
    member(&post(&open_path(number), open_body(scope)).await?, "id")
}

/// Views by HTTP the PIN that [`whole_by_posts`] set with this number.
///
/// # Errors
/// A request fails, or the device decrypts another PIN.
pub(super) async fn view_by_posts(
    post: impl AsyncFn(&str, Value) -> Result<Value, BenchError>,
    device: &Device,
    number: usize,
) -> Result<(), BenchError> {
    let failed = |error: &dyn std::fmt::Display| BenchError::Load(error.to_string());
    let control_id = open_by_posts(&post, number, Scope::ViewPin).await?;
    let viewed = post("/pin/v3/view", issue_body(device, &control_id)).await?;
    let block = bytes_member(&viewed, "pinBlock")?.try_into();
    let block: [u8; 8] = block.map_err(|_| BenchError::Load("the answer's pinBlock has not 8 bytes".into()))?;
    let pin = device.decrypt_pin(&bytes_member(&viewed, "tzpk")?, &block).map_err(|error| failed(&error))?;
    if pin.reveal() != pin_of(number)?.reveal() {
        return Err(BenchError::Load("the viewed PIN is not the one that was set".into()));
    }
    Ok(())
}

fn open_path(number: usize) -> String {
    format!("/pincontrol/v2/plastic/{}", plastic_id(number))
}

fn open_body(scope: Scope) -> Value {
    json!({ "scope": scope.as_str_name().trim_start_matches("SCOPE_") })
}

fn issue_body(device: &Device, control_id: &str) -> Value {
    json!({ "controlId": control_id, "publicKey": STANDARD.encode(device.public_key_der()) })
}

fn set_body(control_id: &str, block: [u8; 8]) -> Value {
    json!({ "controlId": control_id, "pinBlock": STANDARD.encode(block) })
}

async fn make_ready(channel: &Channel, device: &Device, number: usize) -> Result<Ready, BenchError> {
    let control_id = open(channel, number).await?;
    let tzpk = issue(channel, device, &control_id).await?;
    Ok(Ready { control_id, block: block_of(device, &tzpk, number)? })
}

/// Opens a control by gRPC. Returns its controlId.
async fn open(channel: &Channel, number: usize) -> Result<String, BenchError> {
    let open = OpenControlRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        plastic_id: plastic_id(number),
        scope: Scope::SetPin.into(),
        device_key_sha256: Vec::new(),
        page_client: String::new(),
    };
    Ok(ControlServiceClient::new(channel.clone()).open_control(open).await?.into_inner().control_id)
}

/// Requests a tzpk by gRPC. Returns it as encrypted for the device.
async fn issue(channel: &Channel, device: &Device, control_id: &str) -> Result<Vec<u8>, BenchError> {
    let issue = IssueTzpkRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        control_id: control_id.into(),
        device_public_key: device.public_key_der().to_vec(),
        oaep_mgf1: proto::OaepMgf1::Unspecified.into(),
    };
    Ok(PinServiceClient::new(channel.clone()).issue_tzpk(issue).await?.into_inner().encrypted_tzpk)
}

fn block_of(device: &Device, encrypted_tzpk: &[u8], number: usize) -> Result<[u8; 8], BenchError> {
    let failed = |error: &dyn std::fmt::Display| BenchError::Load(error.to_string());
    device.encrypt_pin(encrypted_tzpk, &pin_of(number)?, Fill::Random).map_err(|error| failed(&error))
}

/// The PIN of a number: never a sequence, never one repeated digit, so that the PIN policy accepts every one.
fn pin_of(number: usize) -> Result<Pin, BenchError> {
    Pin::parse(&format!("19{:04}", number % 10_000)).map_err(|error| BenchError::Load(error.to_string()))
}

fn set_request(control_id: &str, block: [u8; 8]) -> SetPinRequest {
    SetPinRequest {
        tenant: TENANT.into(),
        audit_user: AUDIT_USER.into(),
        control_id: control_id.into(),
        pin_block: block.to_vec(),
    }
}

fn plastic_id(number: usize) -> String {
    format!("{}", 4_000_000_000 + number % CARDS)
}

fn pick<T: Clone>(clients: &[T], number: usize) -> Result<T, BenchError> {
    let chosen = clients.get(number % clients.len().max(1));
    chosen.cloned().ok_or_else(|| BenchError::Load("no connection".into()))
}

fn clone_of(ready: &[Ready]) -> Vec<Ready> {
    ready.iter().map(|ready| Ready { control_id: ready.control_id.clone(), block: ready.block }).collect()
}

/// A client of the edge, with a pool of connections.
struct Http {
    client: Client<HttpConnector, Full<bytes::Bytes>>,
    edge: SocketAddr,
    authorization: String,
}

impl Http {
    fn new(edge: SocketAddr, token: &str) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Self { client, edge, authorization: format!("Bearer {token}") }
    }

    async fn post(&self, path: &str, body: Value) -> Result<Value, BenchError> {
        let request = request_of(&self.edge.to_string(), path, &self.authorization, &body)?;
        body_of(self.client.request(request).await.map_err(|error| BenchError::Load(error.to_string()))?).await
    }
}

/// A request to an edge.
pub(super) fn request_of(
    authority: &str,
    path: &str,
    authorization: &str,
    body: &Value,
) -> Result<Request<Full<bytes::Bytes>>, BenchError> {
    Request::post(format!("http://{authority}{path}?auditUser={AUDIT_USER}"))
        .header(header::AUTHORIZATION, authorization)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::from(body.to_string()))
        .map_err(|error| BenchError::Load(error.to_string()))
}

/// The body of an edge's answer.
///
/// # Errors
/// The answer is an error.
pub(super) async fn body_of(answer: Response<hyper::body::Incoming>) -> Result<Value, BenchError> {
    let failed = |error: &dyn std::fmt::Display| BenchError::Load(error.to_string());
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(|error| failed(&error))?.to_bytes();
    if ![StatusCode::OK, StatusCode::CREATED].contains(&status) {
        return Err(BenchError::Load(format!("{status}: {}", String::from_utf8_lossy(&body))));
    }
    serde_json::from_slice(&body).map_err(|error| failed(&error))
}

fn member(body: &Value, name: &str) -> Result<String, BenchError> {
    let text = body.get(name).and_then(Value::as_str);
    text.map(str::to_owned).ok_or_else(|| BenchError::Load(format!("the answer has no {name}")))
}

fn bytes_member(body: &Value, name: &str) -> Result<Vec<u8>, BenchError> {
    STANDARD.decode(member(body, name)?).map_err(|error| BenchError::Load(error.to_string()))
}
