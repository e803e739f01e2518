//! Sends the items of a file in a stream and writes their outcomes. Opens another stream after a cut, from the first item
//! without an outcome.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use indicatif::ProgressBar;
use tokio::sync::mpsc;
use tonic::{Code, transport::Channel};

use super::{
    BulkError,
    bulk_call::{BulkCall, Requests},
    item_file::{Item, ItemFile},
    outcome_file::{Counts, Outcome, OutcomeFile},
};
use engine_client::OperatorError;
use proto::{ItemError, bulk_service_client::BulkServiceClient};

/// The items of one message: far below the 16 KiB that an engine accepts.
const ITEMS_PER_MESSAGE: usize = 64;
/// The most items that wait for their outcomes: more than an engine works on at a time.
const WAITING_ITEMS_MAX: usize = 1_024;
/// The pause before the first stream after a cut; it doubles until an item has an outcome.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The sender of a file's items.
pub(super) struct ItemStream<C> {
    pub(super) call: C,
    pub(super) client: BulkServiceClient<Channel>,
    pub(super) tenant: String,
    pub(super) audit_user: String,
    pub(super) items: ItemFile,
    pub(super) outcomes: OutcomeFile,
    pub(super) bar: ProgressBar,
    /// The longest time that streams may be cut without an outcome.
    pub(super) retry_time_max: Duration,
    /// The items without an outcome, in their order.
    pub(super) waiting: VecDeque<Item>,
    /// Whether `items` has no item left.
    pub(super) is_read: bool,
}

/// Why a stream ended before its last item.
enum Cut {
    /// Another stream may continue.
    Stream(OperatorError),
    /// The item may succeed in another stream.
    Item {
        reason: String,
        message: String,
    },
    Failed(BulkError),
}

impl From<BulkError> for Cut {
    fn from(error: BulkError) -> Self {
        Self::Failed(error)
    }
}

impl From<OperatorError> for Cut {
    fn from(error: OperatorError) -> Self {
        if error.is_transient() { Self::Stream(error) } else { Self::Failed(error.into()) }
    }
}

impl<C: BulkCall> ItemStream<C> {
    /// Sends every item that has no outcome.
    ///
    /// # Errors
    /// [`BulkError`]: a file failed, the engine refuses the stream, or no item had an outcome for the longest time.
    pub(super) async fn run(mut self) -> Result<Counts, BulkError> {
        let (mut done, mut done_at, mut pause) = (self.outcomes.counts().done, Instant::now(), PAUSE_MIN);
        while self.has_items_left()? {
            let ended = self.send().await;
            self.outcomes.flush()?;
            let cut = match ended {
                Ok(()) => continue,
                Err(Cut::Failed(error)) => return Err(error),
                Err(Cut::Stream(error)) => BulkError::from(error),
                Err(Cut::Item { reason, message }) => BulkError::Item { reason, message },
            };
            if self.outcomes.counts().done > done {
                (done, done_at, pause) = (self.outcomes.counts().done, Instant::now(), PAUSE_MIN);
            }
            if done_at.elapsed() >= self.retry_time_max {
                self.outcomes.sync()?;
                return Err(cut);
            }
            self.bar.suspend(|| tracing::warn!(error = %cut, done, "the stream was cut: another one continues"));
            tokio::time::sleep(pause).await;
            pause = PAUSE_MAX.min(pause * 2);
        }
        self.outcomes.sync()?;
        Ok(self.outcomes.counts())
    }

    /// Sends items in one stream until all have an outcome.
    async fn send(&mut self) -> Result<(), Cut> {
        let (messages, requests) = mpsc::channel(1);
        let mut messages = Some(messages);
        // The items at the front of `waiting` that this stream has sent.
        let mut sent = 0;
        if let Some(messages) = &messages {
            let (tenant, audit_user) = (self.tenant.clone(), self.audit_user.clone());
            let first = self.message(&mut sent, tenant, audit_user)?;
            // The channel is empty, and its receiver is in this function.
            let _ = messages.try_send(first);
        }
        let opened = self.call.open(&mut self.client, Requests(requests)).await;
        let mut responses = opened.map_err(OperatorError::from)?.into_inner();
        loop {
            if sent == self.waiting.len() && !self.has_items_to_send(sent)? {
                // The end of this half of the stream: the engine answers what is left, and ends the other half.
                messages = None;
            }
            let has_place = sent < WAITING_ITEMS_MAX;
            let place = async {
                match &messages {
                    Some(messages) if has_place => messages.reserve().await.ok(),
                    _ => None,
                }
            };
            tokio::select! {
                biased;
                response = responses.message() => {
                    let Some(response) = response.map_err(OperatorError::from)? else {
                        return if self.has_items_left()? { Err(OperatorError::CutOff.into()) } else { Ok(()) };
                    };
                    let outcomes = self.call.outcomes(response);
                    sent -= self.write(outcomes, sent)?;
                }
                Some(place) = place => place.send(self.message(&mut sent, String::new(), String::new())?),
            }
        }
    }

    /// A message of the next items.
    fn message(&mut self, sent: &mut usize, tenant: String, audit_user: String) -> Result<C::Request, BulkError> {
        let end = WAITING_ITEMS_MAX.min(*sent + ITEMS_PER_MESSAGE);
        while self.waiting.len() < end && self.read()? {}
        let items = self.waiting.range(*sent..end.min(self.waiting.len())).map(|item| self.call.item(item)).collect();
        *sent = end.min(self.waiting.len());
        Ok(self.call.request(tenant, audit_user, items))
    }

    /// Writes the outcomes of the first items that wait. Returns their number.
    fn write(&mut self, outcomes: Vec<(u64, Option<Outcome>)>, sent: usize) -> Result<usize, Cut> {
        let mut written = 0;
        for (number, outcome) in outcomes {
            let item = self.waiting.front().filter(|item| written < sent && item.number == number);
            let (Some(item), Some(outcome)) = (item, outcome) else {
                return Err(BulkError::Response { number }.into());
            };
            if let Err(error) = &outcome
                && is_transient(error)
            {
                let (reason, message) = (error.reason.clone(), error.message.clone());
                return Err(Cut::Item { reason, message });
            }
            self.outcomes.write(item, &outcome)?;
            self.waiting.pop_front();
            written += 1;
        }
        self.outcomes.flush()?;
        self.bar.set_position(self.outcomes.counts().done);
        Ok(written)
    }

    fn has_items_left(&mut self) -> Result<bool, BulkError> {
        self.has_items_to_send(0)
    }

    /// Whether there are more items than the `sent` ones; reads one to find out.
    fn has_items_to_send(&mut self, sent: usize) -> Result<bool, BulkError> {
        Ok(self.waiting.len() > sent || (sent < WAITING_ITEMS_MAX && self.read()?) || !self.is_read)
    }

    /// Reads an item; false at the end of the file.
    fn read(&mut self) -> Result<bool, BulkError> {
        if self.is_read {
            return Ok(false);
        }
        let item = self.items.next()?;
        self.is_read = item.is_none();
        self.waiting.extend(item);
        Ok(!self.is_read)
    }
}

/// Whether the same item may succeed later.
fn is_transient(error: &ItemError) -> bool {
    matches!(
        Code::from_i32(error.code_number),
        Code::Unavailable | Code::ResourceExhausted | Code::Aborted | Code::DeadlineExceeded | Code::Cancelled
    )
}
