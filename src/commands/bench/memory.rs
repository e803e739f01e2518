//! `pinseal bench memory`: the resident memory of an edge, an engine and its key boundary, each a process, under a steady load of
//! whole flows by HTTP.

use std::{
    io::{self, Write},
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use clap::Args;
use device::{Device, KeyBits};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::{
    BenchError, Transport,
    edge_client::EdgeClient,
    flow,
    load::{self, LoadShape, Progress},
    process_memory::ProcessMemory,
    report,
    service_processes::{ServiceProcesses, Target},
};
use crate::commands::demo::TemporaryDirectory;
use proto::Scope;

/// Of so many flows one views the PIN that it set, and another leaves a control to its end.
const FLOWS_OF_A_KIND: usize = 4;
/// The longest time for one flow; then the flow has failed.
const FLOW_TIME_MAX: Duration = Duration::from_secs(30);
/// The flows in flight at a time, so that a stalled one holds up no other.
const IN_FLIGHT: usize = 1_024;

/// The arguments of `pinseal bench memory`.
#[derive(Args)]
pub(crate) struct MemoryArguments {
    /// Open loop: flows a second to start, whatever the answers
    #[arg(long, default_value_t = 200.0, value_name = "N")]
    rate: f64,
    /// Minutes of load; growth counts from the memory after a sixth of them
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=1_440), value_name = "N")]
    minutes: u32,
    /// Cards of the load; once each has a PIN, the store has a constant number of records
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000), value_name = "N")]
    cards: u32,
    /// Mutual TLS, as in production, or plain TCP
    #[arg(long, value_enum, default_value_t)]
    transport: Transport,
    /// Where to keep the store and the logs of the services during the run; a temporary directory by default
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Also write the figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl MemoryArguments {
    fn duration(&self) -> Duration {
        Duration::from_secs(u64::from(self.minutes) * 60)
    }

    /// The times of the readings before the end: at the start, each minute, and after the warm-up.
    fn reading_times(&self) -> Vec<Duration> {
        let minutes = (0..self.minutes).map(|minute| Duration::from_secs(u64::from(minute) * 60));
        let mut times: Vec<_> = minutes.chain([self.warm_up()]).collect();
        times.sort();
        times.dedup();
        times
    }

    fn warm_up(&self) -> Duration {
        self.duration() / 6
    }
}

/// Drives the load, prints the memory each minute and its growth after the warm-up.
///
/// # Errors
/// [`BenchError::FlowsFailed`]: a flow failed. The figures are printed first.
pub(super) fn run(arguments: &MemoryArguments) -> Result<(), BenchError> {
    let directory = TemporaryDirectory::unless(arguments.directory.as_deref())?;
    let services = ServiceProcesses::start(arguments.transport, &directory.path().join("services"))?;
    let device = Device::generate(KeyBits::Rsa2048).map_err(|error| BenchError::Load(error.to_string()))?;
    let (device, counts) = (Arc::new(device), Arc::new(FlowCounts::default()));
    writeln!(io::stdout(), "{HEAD}")?;
    let readings = thread::scope(|scope| {
        let (ends, ended) = mpsc::channel();
        let load = scope.spawn(|| {
            // Dropped when the load ends.
            let _ends = ends;
            drive(arguments, &services, &device, &counts)
        });
        let began = Instant::now();
        let readings = read_until_end(arguments, &services, &counts, (began, &ended));
        if readings.is_err() {
            counts.stopped.store(true, Ordering::Relaxed);
        }
        let load = load.join().unwrap_or_else(|_| Err(BenchError::Load("the load panicked".into())));
        let mut readings = readings?;
        load?;
        readings.push(Reading::take(&services, &counts, began.elapsed())?);
        Ok::<_, BenchError>(readings)
    })?;
    let growth = Growth::all(&readings, arguments.warm_up());
    Growth::print(&growth, arguments.warm_up())?;
    report::write(&json_of(arguments, &readings, &growth), arguments.json.as_deref())?;
    counts.result()
}

/// The flows of a run so far.
#[derive(Default)]
struct FlowCounts {
    done: AtomicU64,
    failed: AtomicU64,
    first_failure: OnceLock<String>,
    /// The readings have failed: the load ends.
    stopped: AtomicBool,
}

impl FlowCounts {
    /// Counts the flow. A failed flow is a result of the measurement, not its end.
    async fn count(&self, flow: impl Future<Output = Result<(), BenchError>>) {
        let failure = match timeout(FLOW_TIME_MAX, flow).await {
            Ok(Ok(())) => {
                self.done.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", FLOW_TIME_MAX.as_secs()),
        };
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.first_failure.get_or_init(|| failure);
    }

    fn result(&self) -> Result<(), BenchError> {
        let Some(first) = self.first_failure.get() else { return Ok(()) };
        Err(BenchError::FlowsFailed {
            failed: self.failed.load(Ordering::Relaxed),
            done: self.done.load(Ordering::Relaxed),
            first: first.clone(),
        })
    }
}

fn drive(
    arguments: &MemoryArguments,
    services: &ServiceProcesses,
    device: &Arc<Device>,
    counts: &Arc<FlowCounts>,
) -> Result<(), BenchError> {
    let shape = LoadShape {
        concurrency: IN_FLIGHT,
        connections: 1,
        duration: arguments.duration(),
        rate: Some(arguments.rate),
    };
    let cards = arguments.cards as usize;
    let measured = load::run(shape, async || {
        let (device, counts, edge) = (Arc::clone(device), Arc::clone(counts), EdgeClient::new(services)?);
        Ok(async move |number: usize| {
            if counts.stopped.load(Ordering::Relaxed) {
                return Err(BenchError::Load("the memory could not be read".into()));
            }
            counts.count(flow_of(&edge, &device, number, cards)).await;
            Ok(Progress::Completed)
        })
    });
    measured.map(drop)
}

/// The flow of this number: sets a PIN; one kind also views it, one also opens a control that is never used and expires.
async fn flow_of(edge: &EdgeClient, device: &Device, number: usize, cards: usize) -> Result<(), BenchError> {
    let post = async |path: &str, body: Value| edge.post(path, body).await;
    let card = number % cards;
    flow::whole_by_posts(&post, device, card).await?;
    match number % FLOWS_OF_A_KIND {
        0 => flow::view_by_posts(&post, device, card).await,
        1 => flow::open_by_posts(&post, card, Scope::SetPin).await.map(drop),
        _ => Ok(()),
    }
}

/// The processes whose memory is read.
#[derive(Clone, Copy)]
enum Process {
    Edge,
    Engine,
    Boundary,
}

impl Process {
    const ALL: [Self; 3] = [Self::Edge, Self::Engine, Self::Boundary];

    fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Engine => "engine",
            Self::Boundary => "boundary",
        }
    }

    fn memory(self, services: &ServiceProcesses) -> Result<ProcessMemory, BenchError> {
        ProcessMemory::read(match self {
            Self::Edge => services.service(Target::Edge).id(),
            Self::Engine => services.service(Target::Engine).id(),
            Self::Boundary => services.boundary_id()?,
        })
    }
}

const HEAD: &str = "seconds      flows  failed   edge MiB  engine MiB  boundary MiB  boundary locked MiB";

/// The flows and the memory at one time of the run.
struct Reading {
    at: Duration,
    done: u64,
    failed: u64,
    edge: ProcessMemory,
    engine: ProcessMemory,
    boundary: ProcessMemory,
}

impl Reading {
    /// Reads and prints.
    fn take(services: &ServiceProcesses, counts: &FlowCounts, at: Duration) -> Result<Self, BenchError> {
        let reading = Self {
            at,
            done: counts.done.load(Ordering::Relaxed),
            failed: counts.failed.load(Ordering::Relaxed),
            edge: Process::Edge.memory(services)?,
            engine: Process::Engine.memory(services)?,
            boundary: Process::Boundary.memory(services)?,
        };
        writeln!(
            io::stdout(),
            "{:>7}  {:>9}  {:>6}  {:>9.1}  {:>10.1}  {:>12.1}  {:>19.1}",
            at.as_secs(),
            reading.done,
            reading.failed,
            mebibytes(reading.edge.resident_bytes),
            mebibytes(reading.engine.resident_bytes),
            mebibytes(reading.boundary.resident_bytes),
            mebibytes(reading.boundary.locked_bytes),
        )?;
        Ok(reading)
    }

    fn of(&self, process: Process) -> ProcessMemory {
        match process {
            Process::Edge => self.edge,
            Process::Engine => self.engine,
            Process::Boundary => self.boundary,
        }
    }

    fn json(&self) -> Value {
        let memory = |process: Process| {
            let ProcessMemory { resident_bytes, locked_bytes } = self.of(process);
            (process.name().to_owned(), json!({ "resident_bytes": resident_bytes, "locked_bytes": locked_bytes }))
        };
        json!({
            "seconds": self.at.as_secs_f64(),
            "flows": self.done,
            "failed": self.failed,
            "processes": Process::ALL.into_iter().map(memory).collect::<Map<_, _>>(),
        })
    }
}

/// Takes each reading at its time, until the load ends.
fn read_until_end(
    arguments: &MemoryArguments,
    services: &ServiceProcesses,
    counts: &FlowCounts,
    (began, ended): (Instant, &Receiver<()>),
) -> Result<Vec<Reading>, BenchError> {
    let mut readings = Vec::new();
    for at in arguments.reading_times() {
        match ended.recv_timeout(at.saturating_sub(began.elapsed())) {
            Err(RecvTimeoutError::Timeout) => readings.push(Reading::take(services, counts, at)?),
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    Ok(readings)
}

/// The resident memory of a process after the warm-up and at the end, in bytes.
struct Growth {
    process: Process,
    warm: u64,
    end: u64,
}

impl Growth {
    fn all(readings: &[Reading], warm_up: Duration) -> Vec<Self> {
        let warm = readings.iter().find(|reading| reading.at >= warm_up);
        let ends = warm.zip(readings.last());
        let growth = |process| {
            let (warm, end) = ends?;
            Some(Self { process, warm: warm.of(process).resident_bytes, end: end.of(process).resident_bytes })
        };
        Process::ALL.into_iter().filter_map(growth).collect()
    }

    fn percent(&self) -> f64 {
        (self.end as f64 - self.warm as f64) * 100.0 / self.warm.max(1) as f64
    }

    fn print(all: &[Self], warm_up: Duration) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "\nprocess   MiB after {:>4} s  MiB at the end  growth %", warm_up.as_secs())?;
        for growth in all {
            writeln!(
                out,
                "{:<8}  {:>16.1}  {:>14.1}  {:>8.1}",
                growth.process.name(),
                mebibytes(growth.warm),
                mebibytes(growth.end),
                growth.percent()
            )?;
        }
        Ok(())
    }

    fn json(&self) -> (String, Value) {
        let Self { process, warm, end } = self;
        let figures =
            json!({ "warm_resident_bytes": warm, "end_resident_bytes": end, "growth_percent": self.percent() });
        (process.name().to_owned(), figures)
    }
}

fn json_of(arguments: &MemoryArguments, readings: &[Reading], growth: &[Growth]) -> Value {
    json!({
        "rate": arguments.rate,
        "minutes": arguments.minutes,
        "cards": arguments.cards,
        "readings": readings.iter().map(Reading::json).collect::<Vec<_>>(),
        "growth": growth.iter().map(Growth::json).collect::<Map<_, _>>(),
    })
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(minutes: u32) -> MemoryArguments {
        MemoryArguments {
            rate: 200.0,
            minutes,
            cards: 100_000,
            transport: Transport::Mtls,
            directory: None,
            json: None,
        }
    }

    fn reading(seconds: u64, edge: u64, engine: u64) -> Reading {
        let memory = |resident_bytes| ProcessMemory { resident_bytes, locked_bytes: 0 };
        Reading {
            at: Duration::from_secs(seconds),
            done: 0,
            failed: 0,
            edge: memory(edge),
            engine: memory(engine),
            boundary: memory(50),
        }
    }

    #[test]
    fn memory_is_read_each_minute_and_after_the_warm_up() {
        let seconds = |minutes| arguments(minutes).reading_times().iter().map(Duration::as_secs).collect::<Vec<_>>();
        assert_eq!(seconds(2), [0, 20, 60]);
        assert_eq!(seconds(6), [0, 60, 120, 180, 240, 300]);
    }

    #[test]
    fn growth_counts_from_the_reading_after_the_warm_up() {
        let readings = [reading(0, 10, 10), reading(20, 100, 40), reading(60, 300, 80), reading(121, 90, 50)];
        let growth = Growth::all(&readings, arguments(2).warm_up());
        let percents: Vec<f64> = growth.iter().map(Growth::percent).collect();
        assert_eq!(percents, [-10.0, 25.0, 0.0]);
    }

    #[tokio::test]
    async fn a_failed_flow_fails_the_run_with_the_first_failure() {
        let counts = FlowCounts::default();
        counts.count(async { Ok(()) }).await;
        assert!(counts.result().is_ok());
        for failure in ["first", "second"] {
            counts.count(async { Err(BenchError::Load(failure.into())) }).await;
        }
        let Err(BenchError::FlowsFailed { failed: 2, done: 1, first }) = counts.result() else {
            panic!("two of three flows failed")
        };
        assert!(first.ends_with("first"), "{first}");
    }
}
