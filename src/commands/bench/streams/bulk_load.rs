//! Streams of items from two client threads.

use std::{
    iter,
    sync::{
        Arc, Barrier,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures::{StreamExt, future::try_join_all, stream};
use tokio::runtime::Builder;
use tonic::{Status, Streaming, transport::Channel};

use super::{AUDIT_USER, StreamShape, TENANT, Until, prepared_zone::Blocks};
use crate::commands::bench::{
    BenchError,
    load::{CLIENT_THREADS, stay_on_core},
    service_processes::EngineAlone,
};
use net::connect::channel;
use proto::{
    BlockOutcome, NumberedSet, NumberedTranslation, SetOutcome, SetPinsRequest, SetPinsResponse,
    TranslatePinBlocksRequest, TranslatePinBlocksResponse, block_outcome, bulk_service_client::BulkServiceClient,
    set_outcome,
};

/// The longest time for a stopped client to be stopped by the engine.
const STOP_TIME_MAX: Duration = Duration::from_secs(60);
/// The time without another item sent after which a client is stopped.
const STOPPED_AFTER: Duration = Duration::from_secs(1);

/// The work of an item.
#[derive(Clone, Copy)]
pub(super) enum Work {
    Translate,
    Set,
}

impl Work {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Translate => "translate",
            Self::Set => "set",
        }
    }
}

/// Runs streams on both client threads; returns the items with an outcome and the seconds.
///
/// # Errors
/// [`BenchError`]: a stream ended early, or an item failed.
pub(super) fn stream_rate(
    engine: &EngineAlone,
    blocks: &'static Blocks,
    work: Work,
    shape: StreamShape,
) -> Result<(u64, f64), BenchError> {
    let connected = Barrier::new(CLIENT_THREADS + 1);
    thread::scope(|scope| {
        let client = |number| {
            let connected = &connected;
            scope.spawn(move || {
                let run = || {
                    stay_on_core(number)?;
                    let runtime = Builder::new_current_thread().enable_all().build()?;
                    // A connection with its first outcome before the clock runs.
                    let clients = runtime.block_on(try_join_all((0..shape.streams).map(async |_| {
                        let mut client = client_of(engine)?;
                        stream_items(&mut client, blocks, work, StreamShape { until: Until::Items(1), ..shape })
                            .await?;
                        Ok::<_, BenchError>(client)
                    })))?;
                    Ok::<_, BenchError>((runtime, clients))
                };
                let opened = run();
                connected.wait();
                let (runtime, mut clients) = opened?;
                let streams = clients.iter_mut().map(|client| stream_items(client, blocks, work, shape));
                Ok::<_, BenchError>(runtime.block_on(try_join_all(streams))?.into_iter().sum::<u64>())
            })
        };
        let clients: Vec<_> = (0..CLIENT_THREADS).map(client).collect();
        connected.wait();
        let began = Instant::now();
        let mut items = 0;
        for client in clients {
            items += client.join().unwrap_or_else(|_| Err(BenchError::Load("a client thread panicked".into())))?;
        }
        Ok((items, began.elapsed().as_secs_f64()))
    })
}

fn client_of(engine: &EngineAlone) -> Result<BulkServiceClient<Channel>, BenchError> {
    Ok(BulkServiceClient::new(channel(&engine.address, Some(engine.tls.clone()))?))
}

/// Sends the items of one stream and reads every outcome; returns their number.
async fn stream_items(
    client: &mut BulkServiceClient<Channel>,
    blocks: &'static Blocks,
    work: Work,
    shape: StreamShape,
) -> Result<u64, BenchError> {
    let began = Instant::now();
    let mut sent = 0;
    let numbers = iter::from_fn(move || {
        let left = match shape.until {
            Until::Time(duration) if began.elapsed() >= duration => 0,
            Until::Time(_) => shape.items_per_message,
            Until::Items(items) => shape.items_per_message.min(items - sent),
        };
        let first = sent;
        sent += left;
        (left > 0).then_some((first, left))
    });
    match work {
        Work::Translate => {
            let messages = numbers.map(move |(first, items)| translations(blocks, first, items));
            let answers = client.translate_pin_blocks(stream::iter(messages)).await?.into_inner();
            count(answers, |answer: TranslatePinBlocksResponse| answer.outcomes, is_translated).await
        }
        Work::Set => {
            let messages = numbers.map(move |(first, items)| sets(blocks, first, items));
            let answers = client.set_pins(stream::iter(messages)).await?.into_inner();
            count(answers, |answer: SetPinsResponse| answer.outcomes, is_set).await
        }
    }
}

async fn count<R, O>(
    mut answers: Streaming<R>,
    outcomes: fn(R) -> Vec<O>,
    is_done: fn(&O) -> Result<(), BenchError>,
) -> Result<u64, BenchError> {
    let mut count = 0;
    while let Some(answer) = answers.message().await? {
        for outcome in &outcomes(answer) {
            is_done(outcome)?;
            count += 1;
        }
    }
    Ok(count)
}

fn is_translated(outcome: &BlockOutcome) -> Result<(), BenchError> {
    match &outcome.result {
        Some(block_outcome::Result::PinBlock(_)) => Ok(()),
        Some(block_outcome::Result::Error(error)) => Err(BenchError::Load(error.message.clone())),
        None => Err(BenchError::Load("an outcome without a result".into())),
    }
}

fn is_set(outcome: &SetOutcome) -> Result<(), BenchError> {
    match &outcome.result {
        Some(set_outcome::Result::Unchanged(false)) => Ok(()),
        Some(set_outcome::Result::Unchanged(true)) => Err(BenchError::Load("a block came twice".into())),
        Some(set_outcome::Result::Error(error)) => Err(BenchError::Load(error.message.clone())),
        None => Err(BenchError::Load("an outcome without a result".into())),
    }
}

/// Tenant and user of a message: of the first one alone.
fn named(first: usize) -> (String, String) {
    if first == 0 { (TENANT.to_owned(), AUDIT_USER.to_owned()) } else { (String::new(), String::new()) }
}

fn translations(blocks: &Blocks, first: usize, items: usize) -> TranslatePinBlocksRequest {
    let (tenant, audit_user) = named(first);
    let item = |sequence: usize| NumberedTranslation {
        sequence: sequence as u64,
        item: Some(blocks.translation(blocks.next_number())),
    };
    TranslatePinBlocksRequest { tenant, audit_user, items: (first..first + items).map(item).collect() }
}

fn sets(blocks: &Blocks, first: usize, items: usize) -> SetPinsRequest {
    let (tenant, audit_user) = named(first);
    let item = |sequence: usize| {
        let (plastic_id, zone_block) = blocks.set(blocks.next_number());
        NumberedSet { sequence: sequence as u64, plastic_id, zone_block: Some(zone_block) }
    };
    SetPinsRequest { tenant, audit_user, items: (first..first + items).map(item).collect() }
}

/// A client that sends items, and does not read their outcomes. Dropped, it closes its stream.
pub(super) struct StoppedClient {
    sent: Arc<AtomicU64>,
    _answers: Box<dyn Send>,
}

impl StoppedClient {
    /// The items that the client has sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// A client that does not read, after the engine has stopped to accept its items.
///
/// # Errors
/// [`BenchError`]: the stream does not open, or the engine accepts items without end.
pub(super) async fn stopped_client(
    engine: &EngineAlone,
    blocks: &'static Blocks,
    work: Work,
) -> Result<StoppedClient, BenchError> {
    const ITEMS: usize = 64;
    let sent = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&sent);
    let firsts = stream::iter((0..).map(move |message: usize| {
        counted.fetch_add(ITEMS as u64, Ordering::Relaxed);
        message * ITEMS
    }));
    let mut client = client_of(engine)?;
    let answers: Result<Box<dyn Send>, Status> = match work {
        Work::Translate => {
            let messages = firsts.map(move |first| translations(blocks, first, ITEMS));
            client.translate_pin_blocks(messages).await.map(|answers| Box::new(answers) as Box<dyn Send>)
        }
        Work::Set => {
            let messages = firsts.map(move |first| sets(blocks, first, ITEMS));
            client.set_pins(messages).await.map(|answers| Box::new(answers) as Box<dyn Send>)
        }
    };
    let stopped = StoppedClient { sent, _answers: answers? };
    let began = Instant::now();
    let mut before = u64::MAX;
    while stopped.sent() != before {
        if began.elapsed() > STOP_TIME_MAX {
            return Err(BenchError::Load("the engine does not stop a client that does not read".into()));
        }
        before = stopped.sent();
        tokio::time::sleep(STOPPED_AFTER).await;
    }
    Ok(stopped)
}
