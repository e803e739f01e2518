//! The gRPC service for operators: the keys in use, the progress of the rotation, the count of records. No logic.
//!
//! Streams run on the main runtime of the engine, not on the threads that serve calls.

use std::{sync::Arc, time::Duration};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, mpsc, watch},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use super::{gate::Call, serving::StreamsEnd, wire};
use crate::pin::Pins;
use crate::rotation::{Census, KeyUsers, Progress};
use proto::{self, key_service_server};

/// The interval of the messages of a stream.
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// The most messages that wait for a client that does not read.
const WAITING_MESSAGES_MAX: usize = 4;
/// The longest time for a client to make place for the last message of a count.
const LAST_MESSAGE_TIME_MAX: Duration = Duration::from_secs(60);
/// The most scans of the store at a time.
const COUNTS_MAX: usize = 1;

type Messages<T> = ReceiverStream<Result<T, Status>>;

/// The gRPC service of keys.
#[derive(Clone)]
pub(super) struct KeyServices {
    in_use: watch::Receiver<Arc<hsm_protocol::Status>>,
    pins: Arc<Pins>,
    rotation: watch::Receiver<Progress>,
    runtime: Handle,
    counts: Arc<Semaphore>,
    engine_name: Arc<str>,
}

impl KeyServices {
    /// Call this on the main runtime of the engine.
    pub(super) fn new(
        in_use: watch::Receiver<Arc<hsm_protocol::Status>>,
        pins: Arc<Pins>,
        rotation: watch::Receiver<Progress>,
        engine_name: Arc<str>,
    ) -> Self {
        let counts = Arc::new(Semaphore::new(COUNTS_MAX));
        Self { in_use, pins, rotation, runtime: Handle::current(), counts, engine_name }
    }
}

#[async_trait]
impl key_service_server::KeyService for KeyServices {
    type WatchRotationStream = Messages<proto::WatchRotationResponse>;
    type CountRecordsStream = Messages<proto::CountRecordsResponse>;

    async fn list_keys(&self, _: Request<proto::ListKeysRequest>) -> Result<Response<proto::ListKeysResponse>, Status> {
        Ok(Response::new(wire::keys(&self.in_use.borrow())))
    }

    async fn watch_rotation(
        &self,
        request: Request<proto::WatchRotationRequest>,
    ) -> Result<Response<Self::WatchRotationStream>, Status> {
        let call = Call::of(request.extensions())?.clone();
        let (messages, stream) = mpsc::channel(WAITING_MESSAGES_MAX);
        let is_admitted = move || {
            let call = call.clone();
            async move { call.peer_now(None).await.map(drop) }
        };
        self.runtime.spawn(report_rotation(self.rotation.clone(), messages, is_admitted));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn count_records(
        &self,
        request: Request<proto::CountRecordsRequest>,
    ) -> Result<Response<Self::CountRecordsStream>, Status> {
        let call = Call::of(request.extensions())?.clone();
        let permit = Arc::clone(&self.counts).try_acquire_owned().map_err(|_| call.refused(wire::counting()))?;
        // A count of a large store takes longer than the age of a connection, and cannot continue on another one.
        let hold = request.extensions().get::<StreamsEnd>().map(|end| end.hold.clone()).unwrap_or_default();
        let (messages, stream) = mpsc::channel(WAITING_MESSAGES_MAX);
        let mut response = Response::new(ReceiverStream::new(stream));
        response.extensions_mut().insert(hold.clone());
        let (pins, engine_name) = (Arc::clone(&self.pins), Arc::clone(&self.engine_name));
        self.runtime.spawn(async move {
            until_closed(&messages, report_counts(&call, &pins, &engine_name, &messages)).await;
            drop((permit, hold));
        });
        Ok(response)
    }
}

async fn report_rotation<F: Future<Output = Result<(), Status>>>(
    mut rotation: watch::Receiver<Progress>,
    messages: mpsc::Sender<Result<proto::WatchRotationResponse, Status>>,
    is_admitted: impl Fn() -> F,
) {
    loop {
        let progress = *rotation.borrow_and_update();
        let message = is_admitted().await.map(|()| wire::rotation_progress(&progress));
        let is_last = message.is_err() || progress.state.has_ended();
        // A failed send: the client has left.
        if messages.send(message).await.is_err() || is_last {
            return;
        }
        let ended = rotation.wait_for(|progress| progress.state.has_ended());
        let engine_stops = matches!(timeout(REPORT_EVERY, ended).await, Ok(Err(_)));
        if engine_stops {
            let _ = messages.send(Err(wire::rotation_cut_off())).await;
            return;
        }
    }
}

/// Runs the work of a stream until its end, or until the client has left.
async fn until_closed<T>(messages: &mpsc::Sender<T>, work: impl Future<Output = ()>) {
    tokio::select! {
        () = messages.closed() => {}
        () = work => {}
    }
}

/// Counts at the speed of the store: a count so far that the client has no place for is not sent.
async fn report_counts(
    call: &Call,
    pins: &Pins,
    engine_name: &str,
    messages: &mpsc::Sender<Result<proto::CountRecordsResponse, Status>>,
) {
    let (mut census, mut reported) = (Census::default(), Instant::now());
    loop {
        let message = match census.count_page(pins).await {
            Ok(false) => match KeyUsers::find(pins).await {
                Ok(users) => Ok(wire::complete_counts(&census, users, engine_name)),
                Err(error) => Err(call.failed(&error)),
            },
            Ok(true) if reported.elapsed() < REPORT_EVERY => {
                tokio::task::yield_now().await;
                continue;
            }
            Ok(true) => Ok(wire::record_counts(&census)),
            Err(error) => Err(call.failed(&error)),
        };
        let message = match message {
            Ok(counts) => call.peer_now(None).await.map(|_| counts),
            Err(status) => Err(status),
        };
        reported = Instant::now();
        let is_last = !matches!(&message, Ok(counts) if !counts.complete);
        if is_last {
            let _ = timeout(LAST_MESSAGE_TIME_MAX, messages.send(message)).await;
            return;
        }
        let _ = messages.try_send(message);
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotation::RotationState;

    async fn messages_of(rotation: watch::Receiver<Progress>) -> Vec<Result<proto::WatchRotationResponse, Status>> {
        let (messages, mut stream) = mpsc::channel(WAITING_MESSAGES_MAX);
        let reporting = tokio::spawn(report_rotation(rotation, messages, || std::future::ready(Ok(()))));
        let mut received = Vec::new();
        while let Some(message) = stream.recv().await {
            received.push(message);
        }
        reporting.await.unwrap();
        received
    }

    #[tokio::test]
    async fn the_work_of_a_stream_ends_when_its_client_leaves() {
        let (messages, stream) = mpsc::channel::<()>(1);
        let working = tokio::spawn(async move { until_closed(&messages, std::future::pending()).await });
        drop(stream);
        working.await.unwrap();
    }

    #[tokio::test]
    async fn without_a_rotation_the_stream_has_one_message() {
        let (_, rotation) = watch::channel(Progress::idle(100));
        let received = messages_of(rotation).await;
        assert!(matches!(&received[..], [Ok(only)] if only.state() == proto::RotationState::Idle));
    }

    #[tokio::test]
    async fn the_end_of_a_rotation_is_the_last_message() {
        let (rotation, watched) = watch::channel(Progress::running(100));
        let receiving = tokio::spawn(messages_of(watched));
        tokio::task::yield_now().await;
        rotation.send_modify(|progress| progress.state = RotationState::Done);
        let received = receiving.await.unwrap();
        assert!(matches!(received.last(), Some(Ok(last)) if last.state() == proto::RotationState::Done));
    }

    #[tokio::test]
    async fn an_engine_that_stops_ends_the_stream_with_unavailable() {
        let (rotation, watched) = watch::channel(Progress::running(100));
        drop(rotation);
        let received = messages_of(watched).await;
        assert!(matches!(&received[..], [Ok(_), Err(cut_off)] if cut_off.code() == tonic::Code::Unavailable));
    }
}
