//! The good clients: one sets PINs by HTTP/2 through the edge, one by gRPC at the engine, each at a steady rate.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use device::Device;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::commands::bench::{
    Api, BenchError,
    edge_client::EdgeClient,
    flow,
    load::{self, LoadShape, Measurement, Progress},
    service_processes::{ServiceProcesses, Target},
};
use net::connect::channel;

/// The longest time for one PIN; then it counts as an error.
const FLOW_TIME_MAX: Duration = Duration::from_secs(30);
/// The PINs in flight at a time, so that a stalled one holds up no other.
const IN_FLIGHT: usize = 256;

/// What a good client saw.
pub(super) struct ClientFigures {
    pub(super) api: Api,
    pub(super) pins: u64,
    pub(super) seconds: f64,
    pub(super) errors: u64,
    /// Microseconds for one PIN, three calls, from when it was due.
    pub(super) p50: u64,
    pub(super) p99: u64,
}

impl ClientFigures {
    fn new(api: Api, measured: &Measurement, errors: u64) -> Self {
        let (p50, p99) = (measured.quantile(0.5), measured.quantile(0.99));
        Self { api, pins: measured.requests, seconds: measured.seconds, errors, p50, p99 }
    }

    pub(super) fn json(&self) -> Value {
        json!({ "pins": self.pins, "p50_microseconds": self.p50, "p99_microseconds": self.p99 })
    }
}

/// Sets PINs with both clients at the same time, `rate` a second each.
pub(super) fn measure(
    services: &ServiceProcesses,
    device: &Arc<Device>,
    duration: Duration,
    rate: f64,
) -> Result<[ClientFigures; 2], BenchError> {
    let shape = LoadShape { concurrency: IN_FLIGHT, connections: 1, duration, rate: Some(rate) };
    thread::scope(|scope| {
        let http = scope.spawn(|| by_http(services, device, shape));
        let grpc = by_grpc(services, device, shape);
        let http = http.join().unwrap_or_else(|_| Err(BenchError::Load("a good client panicked".into())));
        Ok([http?, grpc?])
    })
}

fn by_http(services: &ServiceProcesses, device: &Arc<Device>, shape: LoadShape) -> Result<ClientFigures, BenchError> {
    let errors = Arc::new(AtomicU64::new(0));
    let measured = load::run(shape, async || {
        let (device, errors, edge) = (Arc::clone(device), Arc::clone(&errors), EdgeClient::new(services)?);
        Ok(async move |number: usize| {
            let post = async |path: &str, body: Value| edge.post(path, body).await;
            count_error(&errors, flow::whole_by_posts(post, &device, number)).await;
            Ok(Progress::Completed)
        })
    })?;
    Ok(ClientFigures::new(Api::Http, &measured, errors.load(Ordering::Relaxed)))
}

fn by_grpc(services: &ServiceProcesses, device: &Arc<Device>, shape: LoadShape) -> Result<ClientFigures, BenchError> {
    let (aim, errors) = (services.aim(Target::Engine)?, Arc::new(AtomicU64::new(0)));
    let measured = load::run(shape, async || {
        let (device, errors) = (Arc::clone(device), Arc::clone(&errors));
        let engine = channel(&aim.address, aim.tls.clone())?;
        Ok(async move |number: usize| {
            count_error(&errors, flow::whole_over(engine.clone(), &device, number)).await;
            Ok(Progress::Completed)
        })
    })?;
    Ok(ClientFigures::new(Api::Grpc, &measured, errors.load(Ordering::Relaxed)))
}

/// An error of a good client is a result of the measurement, not its end.
async fn count_error(errors: &AtomicU64, work: impl Future<Output = Result<(), BenchError>>) {
    let problem = match timeout(FLOW_TIME_MAX, work).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", FLOW_TIME_MAX.as_secs()),
    };
    if errors.fetch_add(1, Ordering::Relaxed) == 0 {
        tracing::warn!(problem, "a good client was not served");
    }
}
