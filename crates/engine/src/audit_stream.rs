//! A call that streams entries of the audit chain, or events made of them.

use std::{sync::Arc, time::Duration};

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{gate::Call, peer::AdmittedPeer, stream_places::StreamPermit, wire};
use audit::entry::Entry;
use domain::card::Tenant;
use store::Store;

/// The number of audit entries that one read of the store returns.
const PAGE_ENTRIES: usize = 256;
/// The most messages that wait for a client that does not read. A client that loses its role still gets them.
const WAITING_MESSAGES_MAX: usize = 16;
/// The interval at which a call that follows the chain looks for entries.
const FOLLOW_EVERY: Duration = Duration::from_millis(250);

/// The messages of a call.
pub(super) trait Projection: Send + Sync + 'static {
    /// The message of the call.
    type Message: Send + 'static;

    /// The tenant that the caller named; `None` for a call about the tenants of the caller.
    fn tenant(&self) -> Option<&Tenant>;

    /// The message of an entry, for the caller by the present configuration; `None` for an entry that the call does not show.
    fn message(&self, entry: &Entry, caller: &AdmittedPeer) -> Option<Self::Message>;

    /// The message that says how far the chain was read; `None` where the call has no such message.
    fn progress(&self, sequence: u64) -> Option<Self::Message>;
}

/// A running call.
pub(super) struct AuditStream<P: Projection> {
    store: Arc<dyn Store>,
    call: Call,
    projection: P,
    messages: mpsc::Sender<Result<P::Message, Status>>,
    _permit: StreamPermit,
}

impl<P: Projection> AuditStream<P> {
    /// A call, and the stream of its messages.
    pub(super) fn new(
        store: Arc<dyn Store>,
        call: Call,
        projection: P,
        permit: StreamPermit,
    ) -> (Self, ReceiverStream<Result<P::Message, Status>>) {
        let (messages, stream) = mpsc::channel(WAITING_MESSAGES_MAX);
        (Self { store, call, projection, messages, _permit: permit }, ReceiverStream::new(stream))
    }

    /// Sends the entries `from` to `end`; with `follows`, also those after `end`, until the engine drops its sender.
    pub(super) async fn run(self, mut from: u64, mut end: u64, mut follows: Option<watch::Receiver<()>>) {
        loop {
            match self.send(from, end).await {
                Some(next) => from = next,
                None => return,
            }
            let Some(follows) = &mut follows else { return };
            while end < from {
                tokio::select! {
                    _ = follows.changed() => {
                        let _ = self.messages.send(Err(wire::engine_stops())).await;
                        return;
                    }
                    () = self.messages.closed() => return,
                    () = tokio::time::sleep(FOLLOW_EVERY) => {}
                }
                end = match self.store.checkpoint().await {
                    Ok(checkpoint) => checkpoint.sequence,
                    Err(error) => {
                        let _ = self.messages.send(Err(self.call.failed(&error))).await;
                        return;
                    }
                };
            }
        }
    }

    /// Sends the entries `from` to `end`. Returns the number after the last one; `None` where the call has ended.
    async fn send(&self, mut from: u64, end: u64) -> Option<u64> {
        while from <= end {
            let page = match self.store.audit(from, PAGE_ENTRIES).await {
                Ok(page) => page,
                Err(error) => {
                    let _ = self.messages.send(Err(self.call.failed(&error))).await;
                    return None;
                }
            };
            // A page may have no entry for this reader; then no send would fail after the reader left.
            if self.messages.is_closed() {
                return None;
            }
            // Entries from `from` were archived after the call began: without an error, the caller would miss them.
            if let Some(oldest) = oldest_after_gap(page.first().map(|entry| entry.sequence), from, end) {
                let archived = wire::with_request_id(wire::events_archived(oldest), self.call.id);
                let _ = self.messages.send(Err(archived)).await;
                return None;
            }
            let last = page.last()?.sequence.min(end);
            // Reading the store does not yield: let the other tasks of this thread run between two pages.
            tokio::task::yield_now().await;
            let mut is_shown = page.len() < PAGE_ENTRIES;
            for entry in page.iter().take_while(|entry| entry.sequence <= end) {
                let message = self.call.peer_now(self.projection.tenant()).await;
                let message = message.map(|peer| self.projection.message(entry, &peer));
                let Some(message) = message.transpose() else { continue };
                let is_last = message.is_err();
                if self.messages.send(message).await.is_err() || is_last {
                    return None;
                }
                is_shown = true;
            }
            let progress = if is_shown { None } else { self.projection.progress(last) };
            if let Some(progress) = progress {
                self.messages.send(Ok(progress)).await.ok()?;
            }
            from = last.saturating_add(1);
        }
        Some(from)
    }
}

/// The number of the oldest entry in the store, where a read of the entries `from` to `end` did not begin with `from`.
fn oldest_after_gap(first: Option<u64>, from: u64, end: u64) -> Option<u64> {
    let first = first.unwrap_or_else(|| end.saturating_add(1));
    (first != from).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_that_were_archived_while_a_call_reads_leave_a_gap() {
        assert_eq!(oldest_after_gap(Some(7), 7, 9), None);
        assert_eq!(oldest_after_gap(Some(9), 7, 9), Some(9));
        assert_eq!(oldest_after_gap(Some(12), 7, 9), Some(12));
        assert_eq!(oldest_after_gap(None, 7, 9), Some(10), "every entry of the range was archived");
    }
}
