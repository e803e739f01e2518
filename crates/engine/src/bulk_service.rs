//! The gRPC service of streams: reads items, works on a bounded number of them at a time, answers their outcomes in order.
//!
//! A stream is a future of its connection's task, and HTTP/2 polls the future only while the client reads. So a client that
//! stops reading has no further item begun, and keeps no thread. An export that was begun, and a segment of sets or translations,
//! is a task of its own: it ends without its stream and gives its places back, for which items of other streams wait.

use std::{collections::HashMap, iter::zip, sync::Arc, time::Duration, vec};

use futures::{
    FutureExt, Stream, StreamExt,
    future::{BoxFuture, join_all},
    stream::{self, BoxStream},
};
use tokio::sync::{OnceCell, SemaphorePermit, watch};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Request, Response, Status, Streaming, async_trait};

use super::{
    call_limits::CallAdmission,
    gate::Call,
    service::Services,
    stream_places::{ItemPlaces, StreamPermit},
    wire::{self, ToStatus},
};
use crate::pin::{AdmittedCard, BlockToTranslate, PinError, PinToSet, Pins, Translated};
use crate::zones::NamedZoneKey;
use domain::{caller::Caller, card::PlasticId};
use hsm_protocol::{ZoneBlock, ZoneFormat};
use proto::{
    BlockOutcome, ExportPinsRequest, ExportPinsResponse, NumberedExport, NumberedSet, NumberedTranslation, SetOutcome,
    SetPinsRequest, SetPinsResponse, TranslatePinBlocksRequest, TranslatePinBlocksResponse, block_outcome,
    bulk_service_server, set_outcome,
};
use store::ZoneSet;

/// The most items of a stream that the engine works on at a time: the more there are, the more share a sync of the disk.
const ITEMS_AT_ONCE: usize = 512;
/// The most translations of one audit event. Two segments at a time: one is translated while the other's event is written.
const SEGMENT_ITEMS_MAX: usize = ITEMS_AT_ONCE / 2;
/// The most sets of one segment, whose outcomes are sent together.
const SET_SEGMENT_ITEMS_MAX: usize = 64;
/// The most outcomes of one message.
const OUTCOMES_PER_MESSAGE_MAX: usize = 64;
/// The pause of an item that the store or the token has no place for.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

#[async_trait]
impl bulk_service_server::BulkService for Services {
    type TranslatePinBlocksStream = BoxStream<'static, Result<TranslatePinBlocksResponse, Status>>;
    type ExportPinsStream = BoxStream<'static, Result<ExportPinsResponse, Status>>;
    type SetPinsStream = BoxStream<'static, Result<SetPinsResponse, Status>>;

    async fn translate_pin_blocks(
        &self,
        request: Request<Streaming<TranslatePinBlocksRequest>>,
    ) -> Result<Response<Self::TranslatePinBlocksStream>, Status> {
        let (run, items) = self.open_run(request).await?;
        let segments = items.ready_chunks(SEGMENT_ITEMS_MAX).map({
            let run = Arc::clone(&run);
            move |segment| begin(translate_segment(Arc::clone(&run), segment))
        });
        let outcomes = segments.buffered(ITEMS_AT_ONCE / SEGMENT_ITEMS_MAX).flat_map(in_order);
        let respond = |outcomes| TranslatePinBlocksResponse { outcomes };
        Ok(Response::new(in_messages(outcomes, respond, run)))
    }

    async fn export_pins(
        &self,
        request: Request<Streaming<ExportPinsRequest>>,
    ) -> Result<Response<Self::ExportPinsStream>, Status> {
        let (run, items) = self.open_run(request).await?;
        let outcomes = items.map({
            let run = Arc::clone(&run);
            move |item| begin(export(Arc::clone(&run), item))
        });
        let respond = |outcomes| ExportPinsResponse { outcomes };
        let outcomes = outcomes.buffered(ITEMS_AT_ONCE).map(Result::flatten);
        Ok(Response::new(in_messages(outcomes, respond, run)))
    }

    async fn set_pins(
        &self,
        request: Request<Streaming<SetPinsRequest>>,
    ) -> Result<Response<Self::SetPinsStream>, Status> {
        let (run, items) = self.open_run(request).await?;
        let mut order = CardOrder::default();
        let segments = items.ready_chunks(SET_SEGMENT_ITEMS_MAX).map({
            let run = Arc::clone(&run);
            move |items| begin(set_segment(Arc::clone(&run), order.segment(items)))
        });
        let outcomes = segments.buffered(ITEMS_AT_ONCE / SET_SEGMENT_ITEMS_MAX).flat_map(in_order);
        let respond = |outcomes| SetPinsResponse { outcomes };
        Ok(Response::new(in_messages(outcomes, respond, run)))
    }
}

/// A running stream.
struct Run {
    pins: Arc<Pins>,
    call: Call,
    caller: Caller,
    /// The status that an item ended the stream with. No later item is begun.
    ended: OnceCell<Status>,
    places: Arc<ItemPlaces>,
    _permit: StreamPermit,
}

impl Run {
    /// Admits the work of an item or a segment.
    ///
    /// # Errors
    /// The status that ends the stream: an item before ended the stream, or the caller has lost its right.
    async fn admit(&self) -> Result<(), Status> {
        let tenant = Some(&self.caller.tenant);
        // One task records the denial; the others wait for its status, and the last one records what a dropped task did not.
        let ended = self.ended.get_or_try_init(async || match self.call.peer_now(tenant).await {
            Ok(_) => Err(()),
            Err(status) => Ok(status),
        });
        ended.await.map_or(Ok(()), |status| Err(status.clone()))
    }

    /// Ends the stream. Returns the status of its end.
    async fn end(&self, status: Status) -> Status {
        self.ended.get_or_init(async || status).await.clone()
    }

    /// Does the work of an item, again while the store or the token is full: so a stream waits, and the calls that others make
    /// are not refused because of it. What is done again did nothing before.
    async fn work<T, F: Future<Output = Result<T, PinError>>>(&self, work: impl Fn() -> F) -> Result<T, PinError> {
        loop {
            let place = self.places.take().await;
            let done = self.call.serve(work()).await;
            match done.as_ref().err().and_then(PinError::busy_limit) {
                Some(limit) => self.places.give_back_busy(place, limit),
                None => return done,
            }
            tokio::time::sleep(BUSY_PAUSE).await;
        }
    }

    async fn export(
        &self,
        plastic: PlasticId,
        key: &NamedZoneKey,
        format: Option<ZoneFormat>,
    ) -> Result<ZoneBlock, PinError> {
        let card = self.pins.admit_card(&self.caller, plastic)?;
        self.work(|| self.pins.export_pin(&self.caller, &card, key, format)).await
    }

    /// Does the work of items together. What the store or the boundary has no place for is done alone.
    async fn work_together<I: TogetherItem>(&self, items: &[I]) -> Vec<Result<I::Done, PinError>> {
        let mut results = Vec::with_capacity(items.len());
        while let Some(left @ [_, ..]) = items.get(results.len()..) {
            let mut places = self.places.take_free(left.len()).await;
            let count = places.as_ref().map_or(left.len(), SemaphorePermit::num_permits);
            let part = left.get(..count).unwrap_or(left);
            let done = self.call.serve(I::do_together(self, part)).await;
            let Ok(done) = done else {
                drop(places);
                results.extend(join_all(part.iter().map(|item| item.do_alone(self))).await);
                continue;
            };
            let busy_limit = |result: &Result<_, PinError>| result.as_ref().err().and_then(PinError::busy_limit);
            let limits: Vec<usize> = done.iter().filter_map(busy_limit).collect();
            for limit in &limits {
                self.places.give_back_busy(places.as_mut().and_then(|places| places.split(1)), *limit);
            }
            drop(places);
            if limits.is_empty() {
                results.extend(done);
                continue;
            }
            tokio::time::sleep(BUSY_PAUSE).await;
            let again = async |item: &I, result: Result<_, PinError>| match busy_limit(&result) {
                Some(_) => item.do_alone(self).await,
                None => result,
            };
            results.extend(join_all(zip(part, done).map(|(item, result)| again(item, result))).await);
        }
        results
    }

    /// The outcome of a set, for the client.
    ///
    /// # Errors
    /// The status that ends the stream: the client sends the item again, so no later item of the card may be carried out before.
    async fn set_result(&self, result: Result<ZoneSet, PinError>) -> Result<set_outcome::Result, Status> {
        match result {
            Ok(set) => Ok(set_outcome::Result::Unchanged(set == ZoneSet::Repeated)),
            Err(error) if is_transient(error.to_status().code()) => Err(self.end(self.call.failed(&error)).await),
            Err(error) => Ok(set_outcome::Result::Error(self.item_error(&error))),
        }
    }

    /// Translates the blocks of a segment, whose first item has the number `first`, and records their events.
    ///
    /// # Errors
    /// An event was not recorded: no item has a block.
    async fn translate_all(
        &self,
        first: u64,
        blocks: Vec<BlockToTranslate>,
    ) -> Result<Vec<Result<ZoneBlock, PinError>>, PinError> {
        let reads = self.pins.read_epoch();
        let (mut admitted, mut refused) = (Vec::with_capacity(blocks.len()), Vec::new());
        for (at, block) in blocks.into_iter().enumerate() {
            match self.pins.admit_card(&self.caller, block.plastic) {
                Ok(card) => admitted.push((card, block)),
                Err(error) => refused.push((at, error)),
            }
        }
        let translated = self.work_together(&admitted).await;
        for event in self.pins.translation_events(&self.caller, first, translated.iter().flatten()) {
            self.work(|| self.pins.record_translations(event.clone())).await?;
        }
        self.pins.check_reads(reads)?;
        let mut results: Vec<_> = translated.into_iter().map(|done| done.and_then(Translated::into_result)).collect();
        // In rising order, so each place is that of the item.
        refused.into_iter().for_each(|(at, error)| results.insert(at, Err(error)));
        Ok(results)
    }

    fn block_result(&self, result: Result<ZoneBlock, PinError>) -> block_outcome::Result {
        match result {
            Ok(block) => block_outcome::Result::PinBlock(block.as_bytes().to_vec()),
            Err(error) => block_outcome::Result::Error(self.item_error(&error)),
        }
    }

    fn item_error(&self, error: &PinError) -> proto::ItemError {
        self.call.log_item(error);
        wire::item_error(&error.to_status())
    }
}

/// The results of items that were done together, or why none of them was done.
type TogetherResults<T> = Result<Vec<Result<T, PinError>>, PinError>;

/// An item of a stream whose work is done with that of others.
trait TogetherItem: Sync + Sized {
    type Done: Send;

    /// Does the work of the items with shared reads and requests. The results are in the order of the items.
    ///
    /// # Errors
    /// The store could not read the cards: no item is done.
    fn do_together<'a>(run: &'a Run, items: &'a [Self]) -> BoxFuture<'a, TogetherResults<Self::Done>>;

    /// Waits while the store or the boundary has no place.
    fn do_alone<'a>(&'a self, run: &'a Run) -> BoxFuture<'a, Result<Self::Done, PinError>>;
}

/// A PIN to set. The items that are done together are of different cards.
impl TogetherItem for PinToSet {
    type Done = ZoneSet;

    fn do_together<'a>(
        Run { pins, caller, .. }: &'a Run,
        items: &'a [Self],
    ) -> BoxFuture<'a, TogetherResults<ZoneSet>> {
        pins.set_pins_by_zone(caller, items).boxed()
    }

    fn do_alone<'a>(&'a self, run: &'a Run) -> BoxFuture<'a, Result<ZoneSet, PinError>> {
        run.work(|| run.pins.set_pin_by_zone(&run.caller, &self.card, &self.block)).boxed()
    }
}

/// A block to translate, and the card whose account number goes with it.
impl TogetherItem for (AdmittedCard, BlockToTranslate) {
    type Done = Translated;

    fn do_together<'a>(
        Run { pins, caller, .. }: &'a Run,
        items: &'a [Self],
    ) -> BoxFuture<'a, TogetherResults<Translated>> {
        pins.translate_together(caller, items).boxed()
    }

    fn do_alone<'a>(&'a self, run: &'a Run) -> BoxFuture<'a, Result<Translated, PinError>> {
        let (card, block) = self;
        run.work(|| run.pins.translate(&run.caller, card, block)).boxed()
    }
}

/// The outcomes of a segment, or the status that ended it.
fn in_order<T>(segment: Result<Vec<Result<T, Status>>, Status>) -> impl Stream<Item = Result<T, Status>> {
    stream::iter(segment.unwrap_or_else(|ended| vec![Err(ended)]))
}

/// Begins the work of an item or a segment. The drop of the result cancels the work.
fn begin<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = Result<T, Status>> + Send {
    let task = AbortOnDropHandle::new(tokio::spawn(work));
    async move { task.await.map_err(|_| wire::engine_stops()) }
}

async fn translate_segment(
    run: Arc<Run>,
    segment: Vec<Result<NumberedTranslation, Status>>,
) -> Vec<Result<BlockOutcome, Status>> {
    if let Err(status) = run.admit().await {
        return vec![Err(status)];
    }
    let mut outcomes: Vec<Result<BlockOutcome, Status>> = Vec::with_capacity(segment.len());
    let mut places = Vec::with_capacity(segment.len());
    let mut blocks: Vec<BlockToTranslate> = Vec::with_capacity(segment.len());
    let first = segment.iter().flatten().map(|item| item.sequence).next().unwrap_or_default();
    for item in segment {
        let item = match item {
            Ok(item) => item,
            Err(status) => {
                outcomes.push(Err(status));
                break;
            }
        };
        let result = match wire::translation(item.item) {
            Ok(block) => {
                places.push(outcomes.len());
                blocks.push(block);
                None
            }
            Err(status) => Some(block_outcome::Result::Error(wire::item_error(&status))),
        };
        outcomes.push(Ok(BlockOutcome { sequence: item.sequence, result }));
    }
    let results: Vec<_> = match run.translate_all(first, blocks).await {
        Ok(results) => results.into_iter().map(|result| run.block_result(result)).collect(),
        // The event of the segment is not on disk: no item has a block.
        Err(error) => vec![block_outcome::Result::Error(run.item_error(&error)); places.len()],
    };
    for (place, result) in places.into_iter().zip(results) {
        if let Some(Ok(outcome)) = outcomes.get_mut(place) {
            outcome.result = Some(result);
        }
    }
    outcomes
}

async fn export(run: Arc<Run>, item: Result<NumberedExport, Status>) -> Result<BlockOutcome, Status> {
    let NumberedExport { sequence, plastic_id, zone_key, format } = item?;
    run.admit().await?;
    let parsed = wire::plastic_id(&plastic_id)
        .and_then(|plastic| Ok((plastic, wire::zone_key(zone_key)?, wire::zone_format(format)?)));
    let result = match parsed {
        Ok((plastic, key, format)) => run.block_result(run.export(plastic, &key, format).await),
        Err(status) => block_outcome::Result::Error(wire::item_error(&status)),
    };
    Ok(BlockOutcome { sequence, result: Some(result) })
}

async fn set_segment(run: Arc<Run>, segment: SetSegment) -> Vec<Result<SetOutcome, Status>> {
    let SetSegment { items, turn } = segment;
    let _done = turn.wait().await;
    if let Err(status) = run.admit().await {
        return vec![Err(status)];
    }
    let mut unfinished = Unfinished { ended: &run.ended, is_finished: false };
    let mut sets = SetsInRounds::default();
    let (mut numbers, mut results) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
    let (mut end, mut refused_for_now) = (None, None);
    for (at, item) in items.into_iter().enumerate() {
        let NumberedSet { sequence, plastic_id, zone_block } = match item {
            Ok(item) => item,
            Err(status) => {
                end = Some(status);
                break;
            }
        };
        let parsed = wire::plastic_id(&plastic_id).and_then(|plastic| Ok((plastic, wire::zone_block(zone_block)?)));
        let refused = match parsed {
            Ok((plastic, block)) => match run.pins.admit_card(&run.caller, plastic) {
                Ok(card) => {
                    sets.push(at, plastic, PinToSet { card, block });
                    None
                }
                // The items before are carried out first.
                Err(error) if is_transient(error.to_status().code()) => {
                    refused_for_now = Some(error);
                    break;
                }
                Err(error) => Some(Ok(set_outcome::Result::Error(run.item_error(&error)))),
            },
            Err(status) => Some(Ok(set_outcome::Result::Error(wire::item_error(&status)))),
        };
        numbers.push(sequence);
        results.push(refused);
    }
    for SetRound { places, sets } in sets.rounds {
        // The client sends the item that ended the stream again, and then each later one.
        if run.admit().await.is_err() {
            break;
        }
        for (place, result) in zip(places, run.work_together(&sets).await) {
            let result = run.set_result(result).await;
            results.get_mut(place).into_iter().for_each(|place| *place = Some(result.clone()));
        }
    }
    if let Some(error) = refused_for_now {
        end = run.set_result(Err(error)).await.err();
    }
    let mut outcomes = Vec::with_capacity(numbers.len() + 1);
    for (sequence, result) in zip(numbers, results) {
        let result = match result {
            Some(result) => result,
            // The stream was ended before its round.
            None => run.admit().await.and(Err(wire::engine_stops())),
        };
        outcomes.push(result.map(|result| SetOutcome { sequence, result: Some(result) }));
    }
    outcomes.extend(end.map(Err));
    unfinished.is_finished = true;
    outcomes
}

/// The sets of a segment: a card has one set in each round, so that its sets keep their order.
#[derive(Default)]
struct SetsInRounds {
    rounds: Vec<SetRound>,
    /// The number of sets of each card.
    of_card: HashMap<PlasticId, usize>,
}

#[derive(Default)]
struct SetRound {
    /// The places in the segment.
    places: Vec<usize>,
    sets: Vec<PinToSet>,
}

impl SetsInRounds {
    fn push(&mut self, place: usize, card: PlasticId, set: PinToSet) {
        let number = self.of_card.entry(card).or_default();
        if self.rounds.len() <= *number {
            self.rounds.push(SetRound::default());
        }
        if let Some(round) = self.rounds.get_mut(*number) {
            round.places.push(place);
            round.sets.push(set);
        }
        *number += 1;
    }
}

/// A set without an outcome. Dropped, it ends the stream before the turn of its card: the client sends the set again, and no
/// newer PIN of the card may be set before.
struct Unfinished<'a> {
    ended: &'a OnceCell<Status>,
    is_finished: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            // An error: the stream has ended for another reason.
            let _ = self.ended.set(wire::engine_stops());
        }
    }
}

/// Whether the same item may succeed later.
fn is_transient(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::ResourceExhausted | Code::Aborted | Code::DeadlineExceeded | Code::Cancelled
    )
}

/// Keeps the items of one card in their order.
#[derive(Default)]
struct CardOrder {
    /// Ends with the newest segment that has an item of the card.
    newest: HashMap<PlasticId, watch::Receiver<()>>,
}

/// Items whose outcomes are sent together.
struct SetSegment {
    items: Vec<Result<NumberedSet, Status>>,
    turn: Turn,
}

/// The place of a segment behind the earlier ones that have an item of one of its cards.
struct Turn {
    before: Vec<watch::Receiver<()>>,
    done: watch::Sender<()>,
}

impl CardOrder {
    /// The segment of these items.
    fn segment(&mut self, items: Vec<Result<NumberedSet, Status>>) -> SetSegment {
        if self.newest.len() >= 2 * ITEMS_AT_ONCE {
            self.newest.retain(|_, segment| segment.has_changed().is_ok());
        }
        let (done, running) = watch::channel(());
        let mut before = Vec::new();
        // An item with a malformed plasticId carries nothing out.
        let cards = items.iter().flatten().filter_map(|item| PlasticId::parse(&item.plastic_id).ok());
        for card in cards {
            if let Some(earlier) = self.newest.insert(card, running.clone())
                && !earlier.same_channel(&running)
                // An error: the segment has ended.
                && earlier.has_changed().is_ok()
            {
                before.push(earlier);
            }
        }
        SetSegment { items, turn: Turn { before, done } }
    }
}

impl Turn {
    /// Waits for the segments before. The drop of the result ends the turn.
    async fn wait(self) -> watch::Sender<()> {
        for mut before in self.before {
            // An error: the sender is dropped, which is the end of the segment.
            let _ = before.changed().await;
        }
        self.done
    }
}

/// A message of items.
trait ItemMessage: Send + 'static {
    type Item: Send + 'static;

    /// The tenant, the user and the items of the message.
    fn into_parts(self) -> (String, String, Vec<Self::Item>);

    fn number(item: &Self::Item) -> u64;
}

macro_rules! item_messages {
    ($($message:ident of $item:ident,)+) => {$(
        impl ItemMessage for $message {
            type Item = $item;

            fn into_parts(self) -> (String, String, Vec<$item>) {
                (self.tenant, self.audit_user, self.items)
            }

            fn number(item: &$item) -> u64 {
                item.sequence
            }
        }
    )+};
}

item_messages! {
    TranslatePinBlocksRequest of NumberedTranslation,
    ExportPinsRequest of NumberedExport,
    SetPinsRequest of NumberedSet,
}

/// Reads the items of a stream.
struct Items<M: ItemMessage> {
    run: Arc<Run>,
    messages: Streaming<M>,
    /// The items of the last message that are left.
    left: vec::IntoIter<M::Item>,
    /// The number of the next item; `None` before the first.
    next: Option<u64>,
    limits: Arc<CallAdmission>,
    /// Its sender is dropped when the engine stops.
    follows: watch::Receiver<()>,
}

impl Services {
    /// Reads the first message of a stream.
    async fn open_run<M: ItemMessage>(
        &self,
        request: Request<Streaming<M>>,
    ) -> Result<(Arc<Run>, BoxStream<'static, Result<M::Item, Status>>), Status> {
        let (_, extensions, mut messages) = request.into_parts();
        let call = Call::of(&extensions)?.clone();
        let first = messages.message().await?.ok_or_else(wire::message_count)?;
        let (tenant, audit_user, items) = first.into_parts();
        let caller = self.caller(&call, &tenant, &audit_user).await?;
        let permit = self.streaming.bulk.admit(&call.peer.name).ok_or_else(|| call.refused(wire::streams_busy()))?;
        let places = Arc::clone(&self.streaming.items);
        let run = Arc::new(Run {
            pins: Arc::clone(&self.pins),
            call,
            caller,
            ended: OnceCell::new(),
            places,
            _permit: permit,
        });
        let items = Items {
            run: Arc::clone(&run),
            messages,
            left: items.into_iter(),
            next: None,
            limits: self.gate.limits(),
            follows: self.follows.clone(),
        };
        let items =
            stream::try_unfold(items, async |mut items: Items<M>| Ok(items.read().await?.map(|item| (item, items))));
        Ok((run, items.boxed()))
    }
}

impl<M: ItemMessage> Items<M> {
    /// The next item; `None` after the client has ended its half of the stream.
    ///
    /// # Errors
    /// The status that ends the stream.
    async fn read(&mut self) -> Result<Option<M::Item>, Status> {
        let item = loop {
            if let Some(item) = self.left.next() {
                break item;
            }
            let message = tokio::select! {
                biased;
                _ = self.follows.changed() => return Err(wire::engine_stops()),
                message = self.messages.message() => message?,
            };
            let Some(message) = message else { return Ok(None) };
            let (tenant, audit_user, items) = message.into_parts();
            if !tenant.is_empty() || !audit_user.is_empty() {
                return Err(wire::tenant_again());
            }
            self.left = items.into_iter();
        };
        let number = M::number(&item);
        if self.next.is_some_and(|next| next != number) {
            return Err(wire::item_number());
        }
        self.next = Some(number.checked_add(1).ok_or_else(wire::item_number)?);
        // A stream waits where a call of its own would be refused.
        while let Err(wait) = self.limits.admit_item(&self.run.caller.tenant) {
            tokio::time::sleep(wait).await;
        }
        Ok(Some(item))
    }
}

/// The outcomes in messages. Each message has the outcomes that are there; an error is the last one.
fn in_messages<O: Send + 'static, R: Send + 'static>(
    outcomes: impl Stream<Item = Result<O, Status>> + Send + 'static,
    respond: fn(Vec<O>) -> R,
    run: Arc<Run>,
) -> BoxStream<'static, Result<R, Status>> {
    let messages = outcomes.ready_chunks(OUTCOMES_PER_MESSAGE_MAX).flat_map(move |chunk| {
        // The place of the stream is held until its last outcome.
        let _held = &run;
        let mut end = None;
        let mut done = Vec::with_capacity(chunk.len());
        for outcome in chunk {
            match outcome {
                Ok(outcome) => done.push(outcome),
                // Outcomes behind it are of items that the client sends again.
                Err(status) => {
                    end = Some(Err(status));
                    break;
                }
            }
        }
        let done = (!done.is_empty()).then(|| Ok(respond(done)));
        stream::iter(done.into_iter().chain(end))
    });
    messages.boxed()
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    /// One item of each card.
    fn items(cards: &[&str]) -> Vec<Result<NumberedSet, Status>> {
        let item = |card: &&str| Ok(NumberedSet { plastic_id: (*card).to_owned(), ..NumberedSet::default() });
        cards.iter().map(item).collect()
    }

    fn turn(order: &mut CardOrder, cards: &[&str]) -> Turn {
        order.segment(items(cards)).turn
    }

    #[tokio::test]
    async fn segments_of_one_card_wait_for_each_other_and_no_others_do() {
        let mut order = CardOrder::default();
        let cards: [&[&str]; 3] = [&["1", "2", "1"], &["3", "4"], &["2", "5"]];
        let [first, other, second] = cards.map(|cards| turn(&mut order, cards));
        let first = first.wait().await;
        drop(other.wait().await);
        let mut second = std::pin::pin!(second.wait());
        assert!(futures::poll!(second.as_mut()).is_pending());
        drop(first);
        drop(second.await);
    }

    #[tokio::test]
    async fn a_begun_item_gives_its_place_back_while_nobody_polls_its_stream() {
        let places = Arc::new(ItemPlaces::default());
        let (answer, answered) = oneshot::channel::<()>();
        let begun = begin({
            let places = Arc::clone(&places);
            async move {
                let _place = places.take().await;
                answered.await
            }
        });
        tokio::task::yield_now().await;
        assert_eq!(places.free(), ItemPlaces::MAX - 1);
        answer.send(()).unwrap();
        while places.free() < ItemPlaces::MAX {
            tokio::task::yield_now().await;
        }
        begun.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_panic_within_a_set_ends_the_stream_before_the_turn_of_its_card() {
        let mut order = CardOrder::default();
        let [first, second] = [["1"], ["1"]].map(|cards| turn(&mut order, &cards));
        let ended = Arc::new(OnceCell::new());
        let panicked = begin({
            let ended = Arc::clone(&ended);
            async move {
                let _done = first.wait().await;
                let _unfinished = Unfinished { ended: &ended, is_finished: false };
                panic!("within the set");
            }
        });
        drop(second.wait().await);
        assert_eq!(ended.get().map(Status::code), Some(Code::Unavailable));
        assert_eq!(panicked.await.map_err(|status| status.code()), Err::<(), _>(Code::Unavailable));
    }

    #[tokio::test]
    async fn an_item_of_a_dropped_stream_is_cancelled() {
        let (held, cancelled) = oneshot::channel::<()>();
        let begun = begin(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        drop(begun);
        assert!(cancelled.await.is_err());
    }

    #[test]
    fn the_order_forgets_cards_whose_items_are_done() {
        let mut order = CardOrder::default();
        for card in 0..100 * ITEMS_AT_ONCE {
            drop(turn(&mut order, &[&card.to_string()]));
        }
        assert!(order.newest.len() <= 2 * ITEMS_AT_ONCE);
    }
}
