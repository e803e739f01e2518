//! Load: two client threads with a runtime each, closed or open loop.

use std::{
    cell::RefCell,
    io,
    rc::Rc,
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use tokio::{
    runtime::{Builder, Runtime},
    sync::Semaphore,
    task::LocalSet,
};

use super::{
    BenchError,
    stages::{Stage, StageTimes},
};
use net::cores;

/// Client threads: one for each core of the smallest machine we measure on.
pub(super) const CLIENT_THREADS: usize = 2;
/// The highest latency that the histogram resolves, in microseconds.
const LATENCY_MICROSECONDS_MAX: u64 = 60_000_000;

/// The number of requests in flight, their connections, duration and rate.
#[derive(Clone, Copy)]
pub(super) struct LoadShape {
    pub(super) concurrency: usize,
    /// Connections of each client thread.
    pub(super) connections: usize,
    pub(super) duration: Duration,
    /// Requests a second of an open loop; `None` for a closed loop.
    pub(super) rate: Option<f64>,
}

/// The result of one run.
pub(super) struct Measurement {
    pub(super) requests: u64,
    pub(super) seconds: f64,
    /// Processor time of this process (clients and servers) and of the boundary process, by stage.
    pub(super) times: StageTimes,
    pub(super) latency: Histogram<u64>,
}

impl Measurement {
    /// Completed requests a second.
    pub(super) fn rate(&self) -> f64 {
        self.requests as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }

    /// Processor time a request took, in microseconds: clients, servers and boundary together.
    pub(super) fn processor_microseconds(&self) -> f64 {
        self.microseconds_of(&Stage::ALL)
    }

    /// Processor time of these stages for a request, in microseconds.
    pub(super) fn microseconds_of(&self, stages: &[Stage]) -> f64 {
        self.times.of_all(stages) * 1e6 / (self.requests as f64).max(1.0)
    }

    /// A quantile of the latency, in microseconds.
    pub(super) fn quantile(&self, quantile: f64) -> u64 {
        self.latency.value_at_quantile(quantile)
    }
}

/// Whether an operation sent a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The operation completed one request.
    Completed,
    /// Every prepared block is used.
    OutOfBlocks,
}

/// Runs `connect` once on each client thread, then its operation until the duration ends or the prepared blocks are used.
/// The operation receives the number of its request within the whole run. The clock starts when every connection has
/// answered once.
pub(super) fn run<C, O>(load: LoadShape, connect: C) -> Result<Measurement, BenchError>
where
    C: AsyncFn() -> Result<O, BenchError> + Sync,
    O: AsyncFn(usize) -> Result<Progress, BenchError> + 'static,
{
    let next = AtomicUsize::new(0);
    // The client threads and this one.
    let connected = Barrier::new(CLIENT_THREADS + 1);
    thread::scope(|scope| {
        let spawn = |number| {
            let (connected, connect, next) = (&connected, &connect, &next);
            scope.spawn(move || {
                let client = Client::connect(number, load.connections, connect, next);
                connected.wait();
                client?.run(load, next)
            })
        };
        let clients: Vec<_> = (0..CLIENT_THREADS).map(spawn).collect();
        connected.wait();
        let (began, times_began) = (Instant::now(), StageTimes::now()?);
        let mut latency = histogram()?;
        for client in clients {
            let panicked = |_| Err(BenchError::Load("a client thread panicked".into()));
            let measured = client.join().unwrap_or_else(panicked)?;
            latency.add(measured).map_err(|error| BenchError::Load(error.to_string()))?;
        }
        let seconds = began.elapsed().as_secs_f64();
        let times = StageTimes::now()?.since(times_began);
        Ok(Measurement { requests: latency.len(), seconds, times, latency })
    })
}

/// The runtime and operation of one client thread.
struct Client<O> {
    runtime: Runtime,
    tasks: LocalSet,
    operation: Rc<O>,
}

impl<O> Client<O>
where
    O: AsyncFn(usize) -> Result<Progress, BenchError> + 'static,
{
    fn connect(
        number: usize,
        connections: usize,
        connect: &impl AsyncFn() -> Result<O, BenchError>,
        next: &AtomicUsize,
    ) -> Result<Self, BenchError> {
        stay_on_core(number)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let tasks = LocalSet::new();
        let operation = tasks.block_on(&runtime, async {
            let operation = connect().await?;
            // A client takes numbers in runs, so that each connection receives consecutive requests.
            let first = next.fetch_add(connections, Ordering::Relaxed);
            for number in first..first + connections {
                operation(number).await?;
            }
            Ok::<_, BenchError>(Rc::new(operation))
        })?;
        Ok(Self { runtime, tasks, operation })
    }

    fn run(self, load: LoadShape, next: &AtomicUsize) -> Result<Histogram<u64>, BenchError> {
        let Self { runtime, tasks, operation } = self;
        tasks.block_on(&runtime, async {
            match load.rate {
                None => closed(load, next, &operation).await,
                Some(rate) => open(load, rate / CLIENT_THREADS as f64, next, &operation).await,
            }
        })
    }
}

/// Binds this thread to one of its allowed cores. The kernel likes to place threads that wake one another on one core;
/// clients on one core would limit the measured rate.
pub(super) fn stay_on_core(number: usize) -> io::Result<()> {
    cores::allowed()?.into_iter().cycle().nth(number).map_or(Ok(()), cores::pin_thread_to)
}

async fn closed<O>(load: LoadShape, next: &AtomicUsize, operation: &Rc<O>) -> Result<Histogram<u64>, BenchError>
where
    O: AsyncFn(usize) -> Result<Progress, BenchError> + 'static,
{
    let ends = Instant::now() + load.duration;
    let latency = RefCell::new(histogram()?);
    let one = async || {
        while Instant::now() < ends {
            let began = Instant::now();
            if operation(next.fetch_add(1, Ordering::Relaxed)).await? == Progress::OutOfBlocks {
                break;
            }
            latency.borrow_mut().saturating_record(micros(began));
        }
        Ok::<_, BenchError>(())
    };
    let in_flight = load.concurrency.div_ceil(CLIENT_THREADS);
    futures::future::try_join_all((0..in_flight).map(|_| one())).await?;
    Ok(latency.into_inner())
}

async fn open<O>(
    load: LoadShape,
    rate: f64,
    next: &AtomicUsize,
    operation: &Rc<O>,
) -> Result<Histogram<u64>, BenchError>
where
    O: AsyncFn(usize) -> Result<Progress, BenchError> + 'static,
{
    let began = Instant::now();
    let places = Semaphore::new(load.concurrency.div_ceil(CLIENT_THREADS));
    let due_times = (0u32..).map(|number| began + Duration::from_secs_f64(f64::from(number) / rate.max(0.001)));
    let one = async |due: Instant| {
        // Waiting for a place counts: the request was due.
        let _place = places.acquire().await.map_err(|error| BenchError::Load(error.to_string()))?;
        let done = operation(next.fetch_add(1, Ordering::Relaxed)).await?;
        Ok::<_, BenchError>((done == Progress::Completed).then(|| micros(due)))
    };
    let mut latency = histogram()?;
    let mut under_way = futures::stream::FuturesUnordered::new();
    use futures::StreamExt;
    for due in due_times.take_while(|due| due.duration_since(began) < load.duration) {
        let mut timer = std::pin::pin!(tokio::time::sleep_until(due.into()));
        loop {
            tokio::select! {
                biased;
                Some(answer) = under_way.next(), if !under_way.is_empty() => record(&mut latency, answer)?,
                () = &mut timer => break,
            }
        }
        under_way.push(one(due));
    }
    while let Some(answer) = under_way.next().await {
        record(&mut latency, answer)?;
    }
    Ok(latency)
}

fn record(latency: &mut Histogram<u64>, answer: Result<Option<u64>, BenchError>) -> Result<(), BenchError> {
    if let Some(microseconds) = answer? {
        latency.saturating_record(microseconds);
    }
    Ok(())
}

fn histogram() -> Result<Histogram<u64>, BenchError> {
    Histogram::new_with_max(LATENCY_MICROSECONDS_MAX, 3).map_err(|error| BenchError::Load(error.to_string()))
}

fn micros(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}
