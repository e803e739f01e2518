//! The gRPC service of those who operate the engine: its keys, its rotation, what its records are under. No logic.
//!
//! What takes long runs where the engine's own work does, away from the threads that serve calls.

use std::{sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Extensions, Request, Response, Status, async_trait};

use super::{
    peer::{Peers, Right},
    wire,
};
use crate::pin::Pins;
use crate::rotation::{Census, Page, Progress, Users};
use proto::{self, key_service_server};

/// How often a watcher is told how far it is.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// How many messages may wait for a watcher that does not read.
const WAITING_MESSAGES_MAX: usize = 4;
/// How many walks through the store may be under way.
const COUNTS_MAX: usize = 1;

type Messages<T> = ReceiverStream<Result<T, Status>>;

/// The service over what it tells of.
#[derive(Clone)]
pub(super) struct KeyServices {
    in_use: watch::Receiver<Arc<hsm_protocol::Status>>,
    pins: Arc<Pins>,
    rotation: watch::Receiver<Progress>,
    peers: Peers,
    own_work: Handle,
    counts: Arc<Semaphore>,
    engine_name: Arc<str>,
}

impl KeyServices {
    /// To be made on the runtime of the engine's own work.
    pub(super) fn new(
        in_use: watch::Receiver<Arc<hsm_protocol::Status>>,
        pins: Arc<Pins>,
        rotation: watch::Receiver<Progress>,
        peers: Peers,
        engine_name: Arc<str>,
    ) -> Self {
        let counts = Arc::new(Semaphore::new(COUNTS_MAX));
        Self { in_use, pins, rotation, peers, own_work: Handle::current(), counts, engine_name }
    }

    fn admit(&self, extensions: &Extensions) -> Result<(), Status> {
        let admitted = self.peers.admit(extensions, Right::Keys);
        admitted.and_then(|admitted| admitted.for_all_tenants()).map_err(|error| wire::forbidden(&error))
    }
}

#[async_trait]
impl key_service_server::KeyService for KeyServices {
    type WatchRotationStream = Messages<proto::RotationProgress>;
    type CountRecordsStream = Messages<proto::CountRecordsResponse>;

    async fn list_keys(
        &self,
        request: Request<proto::ListKeysRequest>,
    ) -> Result<Response<proto::ListKeysResponse>, Status> {
        self.admit(request.extensions())?;
        Ok(Response::new(wire::keys(&self.in_use.borrow())))
    }

    async fn watch_rotation(
        &self,
        request: Request<proto::WatchRotationRequest>,
    ) -> Result<Response<Self::WatchRotationStream>, Status> {
        self.admit(request.extensions())?;
        let (messages, stream) = mpsc::channel(WAITING_MESSAGES_MAX);
        self.own_work.spawn(tell_rotation(self.rotation.clone(), messages));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn count_records(
        &self,
        request: Request<proto::CountRecordsRequest>,
    ) -> Result<Response<Self::CountRecordsStream>, Status> {
        self.admit(request.extensions())?;
        let place = Arc::clone(&self.counts).try_acquire_owned().map_err(|_| wire::counting())?;
        let (messages, stream) = mpsc::channel(WAITING_MESSAGES_MAX);
        self.own_work.spawn(tell_counts(Arc::clone(&self.pins), Arc::clone(&self.engine_name), messages, place));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

async fn tell_rotation(
    mut rotation: watch::Receiver<Progress>,
    messages: mpsc::Sender<Result<proto::RotationProgress, Status>>,
) {
    loop {
        let progress = *rotation.borrow_and_update();
        // The watcher has gone: nothing is left to do for it.
        if messages.send(Ok(wire::rotation_progress(&progress))).await.is_err() || progress.state.has_ended() {
            return;
        }
        let ended = rotation.wait_for(|progress| progress.state.has_ended());
        let cut_off = matches!(timeout(TELL_EVERY, ended).await, Ok(Err(_)));
        if cut_off {
            let _ = messages.send(Err(wire::rotation_cut_off())).await;
            return;
        }
    }
}

async fn tell_counts(
    pins: Arc<Pins>,
    engine_name: Arc<str>,
    messages: mpsc::Sender<Result<proto::CountRecordsResponse, Status>>,
    _place: OwnedSemaphorePermit,
) {
    let (mut census, mut told) = (Census::default(), Instant::now());
    loop {
        let message = match census.take_page(&pins).await {
            Ok(Page::Last) => match Users::find(&pins).await {
                Ok(users) => Ok(wire::complete_counts(&census, users, &engine_name)),
                Err(error) => Err(wire::store_status(&error)),
            },
            Ok(Page::More) if told.elapsed() < TELL_EVERY => {
                tokio::task::yield_now().await;
                continue;
            }
            Ok(Page::More) => Ok(wire::record_counts(&census)),
            Err(error) => Err(wire::store_status(&error)),
        };
        told = Instant::now();
        let is_last = !matches!(&message, Ok(counts) if !counts.complete);
        // Who asked has gone: nothing is left to do for them.
        if messages.send(message).await.is_err() || is_last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotation::State;

    async fn told(rotation: watch::Receiver<Progress>) -> Vec<Result<proto::RotationProgress, Status>> {
        let (messages, mut stream) = mpsc::channel(WAITING_MESSAGES_MAX);
        let telling = tokio::spawn(tell_rotation(rotation, messages));
        let mut told = Vec::new();
        while let Some(message) = stream.recv().await {
            told.push(message);
        }
        telling.await.unwrap();
        told
    }

    #[tokio::test]
    async fn where_nothing_rotates_one_message_says_so() {
        let (_, rotation) = watch::channel(Progress::idle(100));
        let told = told(rotation).await;
        assert!(matches!(&told[..], [Ok(only)] if only.state() == proto::RotationState::Idle));
    }

    #[tokio::test]
    async fn the_end_of_a_rotation_is_told_at_once_and_is_the_last_message() {
        let (rotation, watched) = watch::channel(Progress::begun(100));
        let telling = tokio::spawn(told(watched));
        tokio::task::yield_now().await;
        rotation.send_modify(|progress| progress.state = State::Done);
        let told = telling.await.unwrap();
        assert!(matches!(told.last(), Some(Ok(last)) if last.state() == proto::RotationState::Done));
    }

    #[tokio::test]
    async fn a_watcher_of_an_engine_that_stops_is_told_that_the_rotation_is_cut_off() {
        let (rotation, watched) = watch::channel(Progress::begun(100));
        drop(rotation);
        let told = told(watched).await;
        assert!(matches!(&told[..], [Ok(_), Err(cut_off)] if cut_off.code() == tonic::Code::Unavailable));
    }
}
