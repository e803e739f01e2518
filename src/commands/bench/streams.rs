//! `pinseal bench streams`: translations and durable sets in streams beside the same work in calls of one item, in one run over
//! mutual TLS; the memory of the engine while many items pass; a client that stops reading.

mod bulk_load;
mod prepared_zone;

use std::{
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use serde_json::{Value, json};
use tokio::runtime::Builder;

use self::{
    bulk_load::{Work, stopped_client, stream_rate},
    prepared_zone::{PreparedZone, ZONE_INDEX},
};
use super::{
    BenchError,
    load::{self, LoadShape, Progress},
    processor_time::own_processor_seconds,
    service_processes::{EngineAlone, Usage},
};
use crate::commands::demo::TemporaryDirectory;
use net::connect::channel;
use proto::{SetPinByZoneRequest, TranslatePinBlockRequest, ZoneKey, pin_service_client::PinServiceClient, zone_key};

/// The tenant of the cards.
pub(super) const TENANT: &str = "bank";
/// The user of each call.
pub(super) const AUDIT_USER: &str = "bench";
/// The readings of the engine's memory while items pass.
const MEMORY_READINGS: usize = 10;
/// The least rate of a stream in calls of one item: of translations, and of sets.
const WANTED: [(Work, f64); 2] = [(Work::Translate, 6.0), (Work::Set, 4.0)];

/// The arguments of `pinseal bench streams`.
#[derive(Args)]
pub(crate) struct StreamArguments {
    /// Seconds of each round
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS")]
    duration_seconds: f64,
    /// Rounds of each; the median is printed
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: usize,
    /// Connections of each of the two client threads; in a stream run each has one stream
    #[arg(long, default_value_t = 2, value_name = "N")]
    connections: usize,
    /// Calls of one item in flight
    #[arg(long, default_value_t = 256, value_name = "N")]
    concurrency: usize,
    /// Items of one message
    #[arg(long, default_value_t = 64, value_name = "N")]
    items_per_message: usize,
    /// Items that pass while the engine's memory is read; 0 for no such run
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    items: usize,
    /// Where to keep the store during the run; a temporary directory by default
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Also write the figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The load of a stream run.
#[derive(Clone, Copy)]
pub(super) struct StreamShape {
    /// Streams of each client thread, each on its own connection.
    pub(super) streams: usize,
    pub(super) items_per_message: usize,
    pub(super) until: Until,
}

/// The end of a stream run.
#[derive(Clone, Copy)]
pub(super) enum Until {
    Time(Duration),
    /// So many items of each stream.
    Items(usize),
}

/// Measures streams and calls, and prints the figures.
pub(super) fn run(arguments: &StreamArguments) -> Result<(), BenchError> {
    let directory = TemporaryDirectory::unless(arguments.directory.as_deref())?;
    let zone = PreparedZone::make(directory.path())?;
    let bench = Bench { arguments, engine: EngineAlone::start(&zone.config, directory.path())?, zone };
    let mut out = io::stdout();
    writeln!(out, "what        calls a second   cpu µs   stream items a second   cpu µs   ratio   wanted")?;
    let mut figures = Vec::new();
    for (work, wanted) in WANTED {
        let rounds = (0..arguments.rounds.max(1)).map(|_| Ok([bench.calls(work)?, bench.streams(work)?]));
        let rounds = rounds.collect::<Result<Vec<[Rate; 2]>, BenchError>>()?;
        let [calls, stream] = [0, 1].map(|which| Rate::median(rounds.iter().filter_map(|round| round.get(which))));
        let ratio = stream.per_second / calls.per_second.max(f64::MIN_POSITIVE);
        writeln!(
            out,
            "{:<10} {:>15.0} {:>8.1} {:>23.0} {:>8.1} {ratio:>7.2} {wanted:>8.1}",
            work.name(),
            calls.per_second,
            calls.processor_microseconds,
            stream.per_second,
            stream.processor_microseconds
        )?;
        figures.push(json!({ "work": work.name(), "calls": calls.json(), "stream": stream.json(), "ratio": ratio }));
    }
    let memory = bench.memory(&mut out)?;
    let stopped = bench.stopped(&mut out)?;
    let Some(file) = &arguments.json else { return Ok(()) };
    let figures = json!({ "rates": figures, "resident_bytes": memory, "stopped_client": stopped });
    Ok(std::fs::write(file, format!("{figures:#}\n"))?)
}

/// A rate, and the processor time of each item: client, engine and boundary together.
#[derive(Clone, Copy)]
struct Rate {
    per_second: f64,
    processor_microseconds: f64,
}

impl Rate {
    fn median<'r>(rounds: impl Iterator<Item = &'r Self>) -> Self {
        let mut rounds: Vec<Self> = rounds.copied().collect();
        rounds.sort_by(|one, other| one.per_second.total_cmp(&other.per_second));
        rounds.get(rounds.len() / 2).copied().unwrap_or(Self { per_second: 0.0, processor_microseconds: 0.0 })
    }

    fn json(&self) -> Value {
        json!({ "per_second": self.per_second, "processor_microseconds": self.processor_microseconds })
    }
}

struct Bench<'a> {
    arguments: &'a StreamArguments,
    zone: PreparedZone,
    engine: EngineAlone,
}

impl Bench<'_> {
    fn shape(&self, until: Until) -> StreamShape {
        StreamShape {
            streams: self.arguments.connections.max(1),
            items_per_message: self.arguments.items_per_message.clamp(1, 128),
            until,
        }
    }

    fn round(&self) -> Duration {
        Duration::from_secs_f64(self.arguments.duration_seconds.clamp(0.1, 3_600.0))
    }

    /// Measures a load; returns its items a second and processor time.
    fn measured(&self, load: impl FnOnce() -> Result<(u64, f64), BenchError>) -> Result<Rate, BenchError> {
        let processor = || Ok::<_, BenchError>(self.engine.usage()?.processor_seconds + own_processor_seconds()?);
        let before = processor()?;
        let (items, seconds) = load()?;
        let used = processor()? - before;
        Ok(Rate {
            per_second: items as f64 / seconds.max(f64::MIN_POSITIVE),
            processor_microseconds: used * 1e6 / (items as f64).max(1.0),
        })
    }

    fn calls(&self, work: Work) -> Result<Rate, BenchError> {
        let shape = LoadShape {
            concurrency: self.arguments.concurrency,
            connections: self.arguments.connections.max(1),
            duration: self.round(),
            rate: None,
        };
        let zone = self.zone.blocks;
        self.measured(|| {
            let measured = load::run(shape, async || {
                let connect =
                    || Ok(PinServiceClient::new(channel(&self.engine.address, Some(self.engine.tls.clone()))?));
                let clients = (0..shape.connections).map(|_| connect()).collect::<Result<Vec<_>, BenchError>>()?;
                Ok(async move |_: usize| {
                    let number = zone.next_number();
                    let client = clients.get(number % clients.len().max(1)).cloned();
                    let mut client = client.ok_or_else(|| BenchError::Load("no connection".into()))?;
                    let (tenant, audit_user) = (TENANT.to_owned(), AUDIT_USER.to_owned());
                    match work {
                        Work::Translate => {
                            let item = Some(zone.translation(number));
                            client.translate_pin_block(TranslatePinBlockRequest { tenant, audit_user, item }).await?;
                        }
                        Work::Set => {
                            let (plastic_id, zone_block) = zone.set(number);
                            let zone_block = Some(zone_block);
                            let request = SetPinByZoneRequest { tenant, audit_user, plastic_id, zone_block };
                            client.set_pin_by_zone(request).await?;
                        }
                    }
                    Ok(Progress::Completed)
                })
            })?;
            Ok((measured.requests, measured.seconds))
        })
    }

    fn streams(&self, work: Work) -> Result<Rate, BenchError> {
        let shape = self.shape(Until::Time(self.round()));
        self.measured(|| stream_rate(&self.engine, self.zone.blocks, work, shape))
    }

    /// Reads the resident memory of the engine while items of each kind pass.
    fn memory(&self, out: &mut impl Write) -> Result<Value, BenchError> {
        let part = self.arguments.items / MEMORY_READINGS;
        let mut figures = Vec::new();
        for work in [Work::Translate, Work::Set].into_iter().filter(|_| part > 0) {
            let mut readings = vec![self.engine.usage()?];
            for _ in 0..MEMORY_READINGS {
                let streams = load::CLIENT_THREADS * self.arguments.connections.max(1);
                stream_rate(&self.engine, self.zone.blocks, work, self.shape(Until::Items(part.div_ceil(streams))))?;
                readings.push(self.engine.usage()?);
            }
            let bytes: Vec<u64> = readings.iter().map(|usage: &Usage| usage.resident_bytes).collect();
            let text: Vec<String> = bytes.iter().map(|bytes| format!("{}", bytes >> 20)).collect();
            let (name, items) = (work.name(), self.arguments.items);
            writeln!(out, "resident MiB of the engine before and during {items} items of {name}: {}", text.join(" "))?;
            figures.push(json!({ "work": name, "items": items, "readings": bytes }));
        }
        Ok(json!(figures))
    }

    /// Compares the rate of a client while another one has stopped reading with its rate alone.
    fn stopped(&self, out: &mut impl Write) -> Result<Value, BenchError> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut figures = Vec::new();
        for work in [Work::Translate, Work::Set] {
            let rate = |_| self.streams(work).map(|rate| rate.per_second);
            let median = |mut rates: Vec<f64>| {
                rates.sort_by(f64::total_cmp);
                rates.get(rates.len() / 2).copied().unwrap_or_default()
            };
            let rounds = self.arguments.rounds.max(1);
            let alone = median((0..rounds).map(rate).collect::<Result<_, _>>()?);
            let stopped = runtime.block_on(stopped_client(&self.engine, self.zone.blocks, work))?;
            let accepted = stopped.sent();
            let beside = median((0..rounds).map(rate).collect::<Result<_, _>>()?);
            let later = stopped.sent().saturating_sub(accepted);
            writeln!(
                out,
                "{}: a client that stops reading has sent {accepted} items, and {later} more during the runs of another; that \
                 one's items a second: {alone:.0} alone, {beside:.0} beside it",
                work.name()
            )?;
            figures.push(json!({
                "work": work.name(), "sent": accepted, "sent_later": later, "alone": alone, "beside": beside,
            }));
        }
        Ok(json!(figures))
    }
}

/// The newest key of the zone with this index.
pub(super) fn zone_key(index: u32) -> ZoneKey {
    ZoneKey { zone: Some(zone_key::Zone::IndexNumber(index)), key_version: 0 }
}

/// The key of the prepared blocks.
pub(super) fn source_key() -> ZoneKey {
    zone_key(ZONE_INDEX)
}
