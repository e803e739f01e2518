//! `pinseal bench rotation`: the re-encryption of PIN records by the key boundary alone on one core, and a durable rotation of the
//! storage key by an engine with its separate boundary process.
//!
//! Each round makes the next version of the storage key, as a ceremony does, and moves the same records to it.

use std::{
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use clap::Args;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use tokio::runtime::Builder;

use super::{BenchError, progress_bar::progress, report};
use crate::commands::demo::TemporaryDirectory;
use crate::isolation::{Isolation, embedded_engine};
use audit::{
    card_reference::CardReference,
    entry::{self, Action, Body, CardEvent, Event, Level, Outcome, Stamp},
};
use domain::card::{CardKey, PlasticId, StoredPin, Tenant};
use domain::storage_key::{RecordKey, StorageKeyKind};
use engine::Engine;
use engine_client::{EngineTls, RunningEngine};
use engine_server::StoreConfig;
use hsm::{
    Account, CardBinding, Config, Hsm, KeyAlgorithm, KeyStore, KeyUsage, PinRecord, Reply, Request, Source,
    TOGETHER_MAX, Target,
};
use hsm_config::HsmProcess;
use proto::RotationState;
use store::Store;

/// The store changes in flight while the records are made.
const IN_FLIGHT: usize = 512;
/// The highest configurable limit of records a second: no rotation reaches the limit.
const PER_SECOND_MAX: u32 = 1_000_000;
const TENANT: &str = "bank";

/// The arguments of `pinseal bench rotation`.
#[derive(Args)]
pub(crate) struct RotationBenchArguments {
    /// PIN records to make and re-encrypt
    #[arg(long, default_value_t = 100_000, value_name = "N")]
    records: u64,
    /// Rounds; the one with the median ratio is the result
    #[arg(long, default_value_t = 3, value_name = "N")]
    rounds: u16,
    /// Where to keep keys and store during the run; a temporary directory by default
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Also write the figures to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The records re-encrypted a second in one round.
#[derive(Clone, Copy)]
struct Round {
    /// By the boundary alone, in this process, on one core.
    boundary: f64,
    /// By the rotation, from the end of its first count to the end of its last pass.
    rotation: f64,
}

impl Round {
    fn ratio(self) -> f64 {
        self.rotation / self.boundary.max(f64::MIN_POSITIVE)
    }

    fn json(self) -> Value {
        json!({ "boundary_per_second": self.boundary, "rotation_per_second": self.rotation, "ratio": self.ratio() })
    }
}

/// Measures each round and prints the figures.
pub(super) fn run(arguments: &RotationBenchArguments) -> Result<(), BenchError> {
    let directory = TemporaryDirectory::unless(arguments.directory.as_deref())?;
    let data = directory.path().join("data");
    std::fs::create_dir_all(&data)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // The first start of an engine makes the vault, and the store's list of its keys.
        start_engine(&data).await?.stop().await?;
        make_records(&data, arguments.records).await
    })?;

    let mut out = io::stdout().lock();
    writeln!(out, "records    boundary a second   rotation a second   ratio")?;
    let mut rounds = Vec::new();
    for _ in 0..arguments.rounds.max(1) {
        activate_next_storage_key(&data)?;
        let boundary = runtime.block_on(measure_boundary(&data))?;
        let rotation = runtime.block_on(measure_rotation(&data, arguments.records))?;
        let round = Round { boundary, rotation };
        writeln!(out, "{:<10} {boundary:>17.0} {rotation:>19.0} {:>7.2}", arguments.records, round.ratio())?;
        rounds.push(round);
    }
    let Some(median) = median(&rounds) else { return Ok(()) };
    writeln!(out, "median     {:>17.0} {:>19.0} {:>7.2}", median.boundary, median.rotation, median.ratio())?;
    let all: Vec<_> = rounds.into_iter().map(Round::json).collect();
    let figures = json!({ "records": arguments.records, "rounds": all, "median": median.json() });
    Ok(report::write(&figures, arguments.json.as_deref())?)
}

/// The round in the middle, by its ratio.
fn median(rounds: &[Round]) -> Option<Round> {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(|one, other| one.ratio().total_cmp(&other.ratio()));
    sorted.get(sorted.len() / 2).copied()
}

/// The boundary of the embedded defaults, in this process.
fn config(data: &Path) -> Result<Config, BenchError> {
    Ok(HsmProcess::embedded_inline(data)?)
}

fn activate_next_storage_key(data: &Path) -> Result<(), BenchError> {
    let Config { keys, wanted, .. } = config(data)?;
    let now = clock::now().0;
    let mut store = KeyStore::open(keys, &wanted, now).map_err(failed)?;
    let made = store.make(KeyUsage::Storage, KeyAlgorithm::Aes256, now).map_err(failed)?;
    store.activate(&KeyUsage::Storage, made.version, now).map_err(failed)?;
    store.commit([0; 32]).map_err(failed)?;
    store.finish().map_err(failed)
}

/// Registers cards and stores a generated PIN for each.
async fn make_records(data: &Path, records: u64) -> Result<(), BenchError> {
    let hsm = Hsm::open(config(data)?).map_err(failed)?;
    let store = StoreConfig::embedded(data).open().await?;
    let bar = progress(records).with_message("makes records");
    let made = stream::iter(0..records).map(|number| make_record(&hsm, &*store, number, &bar));
    made.buffer_unordered(IN_FLIGHT).try_collect::<Vec<()>>().await?;
    bar.finish_and_clear();
    store.close().await;
    Ok(())
}

async fn make_record(
    hsm: &Hsm,
    store: &dyn Store,
    number: u64,
    bar: &indicatif::ProgressBar,
) -> Result<(), BenchError> {
    let plastic = PlasticId::parse(&format!("{:010}", 1_000_000_000 + number)).map_err(failed)?;
    let card = CardKey { tenant: Tenant::parse(TENANT).map_err(failed)?, plastic };
    let generate = Request::Generate { digits: 5, card: binding(&card)?, account: Account::PlasticId };
    let record = record_of(execute(hsm, generate)?)?;
    let pin = StoredPin {
        record: record.as_bytes().into(),
        key: RecordKey { kind: StorageKeyKind::Iso4, version: record.storage_key().0 },
        account: None,
    };
    store.register_card(card, None, event(&card, Action::RegisterCard)).await.map_err(failed)?;
    store.generate_pin(card, pin, event(&card, Action::GeneratePin)).await.map_err(failed)?;
    bar.inc(1);
    Ok(())
}

/// Re-encrypts every record of the store under the newest storage key, without writing it, on this thread.
async fn measure_boundary(data: &Path) -> Result<f64, BenchError> {
    let hsm = Hsm::open(config(data)?).map_err(failed)?;
    let store = StoreConfig::embedded(data).open().await?;
    let pins = store.scan_pins(None, usize::MAX).await?;
    store.close().await;
    let mut requests = Vec::new();
    for pins in pins.chunks(TOGETHER_MAX) {
        let reencrypt = pins.iter().map(|(card, pin)| {
            let source = Source::Record(PinRecord::from_bytes(&pin.record).map_err(failed)?);
            let (target, card) = (Target::Record, binding(card)?);
            Ok::<_, BenchError>(Request::Translate { source, target, card, account: Account::PlasticId })
        });
        requests.push(Request::Together { requests: reencrypt.collect::<Result<_, _>>()? });
    }
    let start = Instant::now();
    for request in requests {
        let Reply::Together(results) = execute(&hsm, request)? else { return Err(other_reply()) };
        results.into_iter().try_for_each(|result| result.map(drop).map_err(failed))?;
    }
    Ok(pins.len() as f64 / start.elapsed().as_secs_f64())
}

/// Starts an engine with its boundary process and waits until every record is under the newest storage key.
async fn measure_rotation(data: &Path, records: u64) -> Result<f64, BenchError> {
    let engine = start_engine(data).await?;
    let mut watched = RunningEngine::at(&engine.address().to_string(), &EngineTls::default()).map_err(failed)?;
    let mut messages = watched.rotation().await.map_err(failed)?;
    let mut last = None;
    while let Some(message) = messages.message().await? {
        last = Some(message);
    }
    engine.stop().await?;
    match last {
        Some(last) if last.state() == RotationState::Done && last.reencrypted_count == records => {
            Ok(last.records_per_second as f64)
        }
        Some(last) => Err(failed(format!(
            "the rotation ended as {} with {} of {records} records re-encrypted",
            last.state().as_str_name(),
            last.reencrypted_count
        ))),
        None => Err(failed("the engine reported no rotation")),
    }
}

/// An engine without a limit of the rotation, with a separate boundary process.
async fn start_engine(data: &Path) -> Result<Engine, BenchError> {
    let (mut config, boundary) = embedded_engine(data, Isolation::Process)?;
    config.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.reencrypted_per_second_max = PER_SECOND_MAX;
    Ok(Engine::start(config, StoreConfig::embedded(data).open().await?, boundary).await?)
}

fn binding(card: &CardKey) -> Result<CardBinding, BenchError> {
    CardBinding::new(card.tenant.as_str(), card.plastic.as_str()).map_err(failed)
}

/// The software token answers at the first poll.
fn execute(hsm: &Hsm, request: Request) -> Result<Reply, BenchError> {
    hsm.execute(request).now_or_never().ok_or_else(|| failed("the boundary did not answer at once"))?.map_err(failed)
}

fn record_of(reply: Reply) -> Result<PinRecord, BenchError> {
    match reply {
        Reply::Record { record, .. } => Ok(record),
        _ => Err(other_reply()),
    }
}

fn other_reply() -> BenchError {
    failed("the boundary gave the reply of another request")
}

fn event(card: &CardKey, action: Action) -> Event {
    let stamp =
        Stamp { level: Level::Host, token: "software".into(), isolation: entry::Isolation::Process, keys: [].into() };
    Event {
        at: clock::now(),
        caller: "bench".into(),
        tenant: Some(card.tenant),
        audit_user: "bench".into(),
        request: None,
        outcome: Outcome::Done,
        stamp: Arc::new(stamp),
        body: Body::Card(CardEvent::new(action, card.plastic.as_str().into(), CardReference::from_bytes([7; 16]))),
    }
}

fn failed(error: impl ToString) -> BenchError {
    BenchError::Load(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_round_with_the_middle_ratio() {
        let round = |rotation| Round { boundary: 100.0, rotation };
        let found = median(&[round(30.0), round(10.0), round(20.0)]).unwrap();
        assert!((found.ratio() - 0.2).abs() < 1e-9);
        assert!(median(&[]).is_none());
    }
}
