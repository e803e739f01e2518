//! Calls over one long stream to each engine, which cost less than an HTTP/2 stream for each call.
//!
//! One task an engine opens the stream before it sends a call: until then, another engine may get the calls that wait. An engine
//! that drains the stream names the last call that it carries out; the calls behind that one are sent again. Any other end of
//! the stream leaves unknown what became of the calls on it, so they fail and are never sent again.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout},
};
use tonic::{ConnectError, Status};

use crate::engines::{Engines, NoEngineAnswers, NotCarriedOut, SENDS_MAX};

/// The longest time to open a stream, its connection included.
const OPEN_TIME_MAX: Duration = Duration::from_secs(5);
/// The most calls that wait for the task of an engine. Further calls wait for a place.
const WAITING_CALLS_MAX: usize = 1_024;
/// The messages that wait for HTTP/2. The next one is made when there is place, of all calls that wait by then.
const WAITING_MESSAGES_MAX: usize = 1;
/// The most calls of one message, and the most bytes of their requests. A message ends before the call that would pass a limit.
const CALLS_PER_MESSAGE_MAX: usize = 256;
const BYTES_PER_MESSAGE_MAX: usize = 128 * 1024;
/// The most cancellations of one message: 10 bytes each at most.
const CANCELLATIONS_PER_MESSAGE_MAX: usize = 4_096;

/// The messages of a service that exchanges calls and replies over a stream, and the client of one engine.
pub trait CallExchange: Clone + Send + Sync + 'static {
    /// A call without its number.
    type Call: Clone + Send + Sync + 'static;
    /// The reply to a call.
    type Reply: Send + 'static;
    /// A message of calls.
    type Request: Default + Send + 'static;
    /// A message of replies.
    type Response: Send + 'static;

    /// Opens a stream. Returns once the engine serves the stream.
    fn open(
        &self,
        requests: mpsc::Receiver<Self::Request>,
    ) -> impl Future<Output = Result<BoxStream<'static, Result<Self::Response, Status>>, Status>> + Send;

    /// The bytes of a call in a message.
    fn bytes(call: &Self::Call) -> usize;

    /// Adds a call with its number, and the time that its caller waits from now on.
    fn add_call(request: &mut Self::Request, sequence: u64, time: Duration, call: Self::Call);

    /// Adds the number of a call whose caller does not wait any more.
    fn add_cancellation(request: &mut Self::Request, sequence: u64);

    /// Passes each reply with the number of its call. Returns the number of the last call that the engine carries out, once it
    /// drains the stream.
    fn read(response: Self::Response, reply: impl FnMut(u64, Result<Self::Reply, Status>)) -> Option<u64>;
}

/// The streams of one thread to each of several engines that share a store, or to one. Each call goes to the usable engine with
/// the fewest calls in flight, of all threads together. The clones share the streams.
///
/// The task of an engine runs on the runtime of the first call.
pub struct CallStreams<E: CallExchange> {
    engines: Engines,
    /// In the order of [`Engines::endpoints`].
    streams: Arc<[EngineStream<E>]>,
}

impl<E: CallExchange> Clone for CallStreams<E> {
    fn clone(&self) -> Self {
        Self { engines: self.engines.clone(), streams: Arc::clone(&self.streams) }
    }
}

impl<E: CallExchange> CallStreams<E> {
    /// Streams to the engines, each by its exchange in the order of [`Engines::endpoints`]. A stream is opened by the first call.
    pub fn new(engines: Engines, exchanges: impl IntoIterator<Item = E>) -> Self {
        Self { engines, streams: exchanges.into_iter().map(EngineStream::new).collect() }
    }

    /// Makes a call, whose caller waits for `time`. If the future is dropped, the engine drops the call.
    ///
    /// # Errors
    /// The status of the engine. A status with a source is no answer of an engine: no engine carried the call out, or the
    /// stream was lost, and the call may have had an effect.
    pub async fn call(&self, call: E::Call, time: Duration) -> Result<E::Reply, Status> {
        let deadline = Instant::now() + time;
        let mut attempts = self.engines.attempts();
        let mut failed = None;
        loop {
            let next = attempts.next().and_then(|engine| Some((self.streams.get(engine.number)?, engine)));
            let Some((stream, engine)) = next else {
                return Err(failed.unwrap_or_else(|| Status::from_error(ConnectError(NoEngineAnswers.into()).into())));
            };
            let (reason, status) = match stream.call(call.clone(), deadline).await {
                Outcome::Reply(reply) => return reply,
                Outcome::NotCarriedOut(reason, status) => (reason, status),
            };
            if !attempts.may_repeat(&engine, reason) {
                return Err(status);
            }
            tracing::debug!(error = %status, "a call is sent again: the engine did not process it");
            failed = Some(status);
        }
    }
}

/// What became of a call at one engine.
enum Outcome<R> {
    Reply(Result<R, Status>),
    NotCarriedOut(NotCarriedOut, Status),
}

/// A call that waits to be sent.
struct WaitingCall<E: CallExchange> {
    call: E::Call,
    deadline: Instant,
    outcome: oneshot::Sender<Outcome<E::Reply>>,
}

/// The way to the task of one engine.
struct EngineStream<E: CallExchange> {
    exchange: E,
    /// Empty before the first call.
    calls: OnceLock<mpsc::Sender<WaitingCall<E>>>,
    /// Changes when a caller does not wait any more.
    cancelled: watch::Sender<()>,
}

impl<E: CallExchange> EngineStream<E> {
    fn new(exchange: E) -> Self {
        Self { exchange, calls: OnceLock::new(), cancelled: watch::Sender::new(()) }
    }

    async fn call(&self, call: E::Call, deadline: Instant) -> Outcome<E::Reply> {
        let (outcome, received) = oneshot::channel();
        let calls = self.calls.get_or_init(|| {
            let (calls, waiting) = mpsc::channel(WAITING_CALLS_MAX);
            let (exchange, cancelled) = (self.exchange.clone(), self.cancelled.subscribe());
            tokio::spawn(StreamTask { exchange, waiting, next: None, sequence: 0, cancelled }.run());
            calls
        });
        let ended = || StreamError::TaskEnded.into();
        if calls.send(WaitingCall { call, deadline, outcome }).await.is_err() {
            return Outcome::NotCarriedOut(NotCarriedOut::Unreachable, ended());
        }
        let received = PendingOutcome { received: Some(received), cancelled: &self.cancelled }.await;
        received.unwrap_or_else(|_| Outcome::Reply(Err(ended())))
    }
}

/// Waits for the outcome of a call. A drop before cancels the call.
struct PendingOutcome<'a, R> {
    /// `None` after the outcome.
    received: Option<oneshot::Receiver<Outcome<R>>>,
    cancelled: &'a watch::Sender<()>,
}

impl<R> Future for PendingOutcome<'_, R> {
    type Output = Result<Outcome<R>, oneshot::error::RecvError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(received) = &mut self.received else { return Poll::Pending };
        let polled = Pin::new(received).poll(context);
        if polled.is_ready() {
            self.received = None;
        }
        polled
    }
}

impl<R> Drop for PendingOutcome<'_, R> {
    fn drop(&mut self) {
        if let Some(received) = self.received.take() {
            // Before the change: the task then finds the call that nobody waits for.
            drop(received);
            self.cancelled.send_replace(());
        }
    }
}

/// Why a call has no answer of an engine.
#[derive(Debug, Error)]
enum StreamError {
    #[error("the engine did not serve a stream of calls within {} s: check that it runs and is reachable", OPEN_TIME_MAX.as_secs())]
    OpenTime,
    #[error("the engine drained the stream before it read the call")]
    Drained,
    #[error("the stream of calls to the engine ended before the reply; the call may have been carried out")]
    Ended,
    #[error("the stream of calls to the engine was lost before the reply; the call may have been carried out")]
    Lost(#[source] Status),
    #[error("the deadline passed before the call was sent")]
    DeadlinePassed,
    #[error("the thread that sends calls to the engine ends")]
    TaskEnded,
}

impl From<StreamError> for Status {
    fn from(error: StreamError) -> Self {
        let mut status = Self::unavailable(error.to_string());
        status.set_source(Arc::new(error));
        status
    }
}

/// The task that sends the calls to one engine.
struct StreamTask<E: CallExchange> {
    exchange: E,
    waiting: mpsc::Receiver<WaitingCall<E>>,
    /// The call that is sent next.
    next: Option<WaitingCall<E>>,
    /// The number of the last call.
    sequence: u64,
    cancelled: watch::Receiver<()>,
}

/// An open stream.
struct OpenStream<E: CallExchange> {
    responses: BoxStream<'static, Result<E::Response, Status>>,
    /// The calls that were sent, by number.
    sent: HashMap<u64, oneshot::Sender<Outcome<E::Reply>>>,
    cancelled: watch::Receiver<()>,
    /// The numbers of cancelled calls that the engine does not know yet.
    cancellations: Vec<u64>,
}

/// Whether an open stream takes more calls.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    Open,
    Drained,
    Ended,
}

impl<E: CallExchange> StreamTask<E> {
    /// Sends calls until the clients are dropped.
    async fn run(mut self) {
        // The streams in a row that took no call, though one waited.
        let mut unused = 0;
        loop {
            if self.next.is_none() {
                self.next = self.waiting.recv().await;
            }
            if self.next.is_none() {
                return;
            }
            let last = self.sequence;
            match self.open().await {
                Ok((requests, stream)) => {
                    self.exchange(requests, stream).await;
                    unused = if self.next.is_some() && self.sequence == last { unused + 1 } else { 0 };
                }
                Err(status) => self.return_calls(&status),
            }
            if unused >= SENDS_MAX {
                self.return_calls(&StreamError::Drained.into());
                unused = 0;
            }
        }
    }

    async fn open(&self) -> Result<(mpsc::Sender<E::Request>, OpenStream<E>), Status> {
        let mut sends = 0;
        loop {
            sends += 1;
            let (requests, receiver) = mpsc::channel(WAITING_MESSAGES_MAX);
            let opened = timeout(OPEN_TIME_MAX, self.exchange.open(receiver)).await;
            match opened.unwrap_or_else(|_| Err(StreamError::OpenTime.into())) {
                Ok(responses) => {
                    let (sent, cancelled) = (HashMap::new(), self.cancelled.clone());
                    return Ok((requests, OpenStream { responses, sent, cancelled, cancellations: Vec::new() }));
                }
                // The connection reached its age: the stream is opened on a new one.
                Err(status) if sends < SENDS_MAX && NotCarriedOut::of(&status) == Some(NotCarriedOut::Unprocessed) => {}
                Err(status) => return Err(status),
            }
        }
    }

    /// Returns the calls that wait: another engine may get them.
    fn return_calls(&mut self, status: &Status) {
        while let Some(call) = self.next.take().or_else(|| self.waiting.try_recv().ok()) {
            // An error: the caller does not wait any more.
            let _ = call.outcome.send(Outcome::NotCarriedOut(NotCarriedOut::Unreachable, status.clone()));
        }
    }

    /// Sends calls over a stream and reads their replies, until the stream takes no more calls.
    async fn exchange(&mut self, requests: mpsc::Sender<E::Request>, mut stream: OpenStream<E>) {
        loop {
            let has_message = self.next.is_some() || !stream.cancellations.is_empty();
            tokio::select! {
                biased;
                response = stream.responses.next() => match stream.read(response) {
                    Reading::Open => {}
                    Reading::Drained => break,
                    Reading::Ended => return,
                },
                Ok(()) = stream.cancelled.changed() => stream.find_cancelled(),
                waiting = self.waiting.recv(), if self.next.is_none() => match waiting {
                    Some(waiting) => self.next = Some(waiting),
                    None => return,
                },
                place = requests.reserve(), if has_message => match place {
                    Ok(place) => {
                        let mut request = E::Request::default();
                        add_cancellations::<E>(&mut request, &mut stream.cancellations);
                        self.add_calls(&mut request, &mut stream.sent);
                        place.send(request);
                    }
                    // The engine has ended the stream; its last replies may be on the way.
                    Err(_) => break,
                }
            }
        }
        tokio::spawn(stream.finish(requests));
    }

    /// Adds the calls that wait to a message, up to its limits.
    fn add_calls(&mut self, request: &mut E::Request, sent: &mut HashMap<u64, oneshot::Sender<Outcome<E::Reply>>>) {
        let now = Instant::now();
        let (mut calls, mut bytes) = (0, 0);
        while let Some(WaitingCall { call, deadline, outcome }) = self.next.take() {
            bytes += E::bytes(&call);
            if calls == CALLS_PER_MESSAGE_MAX || calls > 0 && bytes > BYTES_PER_MESSAGE_MAX {
                self.next = Some(WaitingCall { call, deadline, outcome });
                return;
            }
            self.next = self.waiting.try_recv().ok();
            if outcome.is_closed() {
                continue;
            }
            let time = deadline.saturating_duration_since(now);
            if time.is_zero() {
                let _ = outcome.send(Outcome::Reply(Err(StreamError::DeadlinePassed.into())));
                continue;
            }
            self.sequence += 1;
            calls += 1;
            E::add_call(request, self.sequence, time, call);
            sent.insert(self.sequence, outcome);
        }
    }
}

impl<E: CallExchange> OpenStream<E> {
    /// Passes the replies of a message to their callers.
    fn read(&mut self, response: Option<Result<E::Response, Status>>) -> Reading {
        let response = match response {
            Some(Ok(response)) => response,
            Some(Err(status)) => {
                self.fail(|| StreamError::Lost(status.clone()).into());
                return Reading::Ended;
            }
            None => {
                self.fail(|| StreamError::Ended.into());
                return Reading::Ended;
            }
        };
        let last = E::read(response, |sequence, reply| {
            if let Some(outcome) = self.sent.remove(&sequence) {
                let _ = outcome.send(Outcome::Reply(reply));
            }
        });
        let Some(last) = last else { return Reading::Open };
        for (_, outcome) in self.sent.extract_if(|sequence, _| *sequence > last) {
            let _ = outcome.send(Outcome::NotCarriedOut(NotCarriedOut::Unprocessed, StreamError::Drained.into()));
        }
        Reading::Drained
    }

    /// Fails the calls without a reply.
    fn fail(&mut self, status: impl Fn() -> Status) {
        for (_, outcome) in self.sent.drain() {
            let _ = outcome.send(Outcome::Reply(Err(status())));
        }
    }

    /// Finds the calls whose callers do not wait any more.
    fn find_cancelled(&mut self) {
        let cancelled = self.sent.extract_if(|_, outcome| outcome.is_closed());
        self.cancellations.extend(cancelled.map(|(sequence, _)| sequence));
    }

    /// Reads the replies to the calls that were sent, and sends no further call.
    async fn finish(mut self, requests: mpsc::Sender<E::Request>) {
        loop {
            tokio::select! {
                biased;
                response = self.responses.next() => if self.read(response) == Reading::Ended {
                    return;
                },
                Ok(()) = self.cancelled.changed() => self.find_cancelled(),
                place = requests.reserve(), if !self.cancellations.is_empty() => match place {
                    Ok(place) => {
                        let mut request = E::Request::default();
                        add_cancellations::<E>(&mut request, &mut self.cancellations);
                        place.send(request);
                    }
                    Err(_) => self.cancellations.clear(),
                }
            }
        }
    }
}

fn add_cancellations<E: CallExchange>(request: &mut E::Request, cancellations: &mut Vec<u64>) {
    let count = cancellations.len().min(CANCELLATIONS_PER_MESSAGE_MAX);
    cancellations.drain(..count).for_each(|sequence| E::add_cancellation(request, sequence));
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::task::JoinHandle;
    use tokio_stream::wrappers::ReceiverStream;
    use tonic::Code;

    use super::*;
    use crate::EngineState;

    const LONG: Duration = Duration::from_secs(3_600);
    /// More messages than a test sends at a time.
    const MESSAGES_MAX: usize = 64;

    /// A message to the engine of a test. A call is a number.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Calls {
        calls: Vec<(u64, u32)>,
        cancelled: Vec<u64>,
    }

    /// A message of the engine.
    #[derive(Default)]
    struct Replies {
        replies: Vec<(u64, Result<u32, Status>)>,
        last_call: Option<u64>,
    }

    /// The engine's end of a stream.
    struct ServedCalls {
        requests: mpsc::Receiver<Calls>,
        responses: mpsc::Sender<Result<Replies, Status>>,
    }

    /// An engine that the test plays.
    #[derive(Clone)]
    struct PlayedEngine {
        opened: mpsc::Sender<ServedCalls>,
        refuses: Arc<AtomicBool>,
    }

    impl PlayedEngine {
        fn new() -> (Self, mpsc::Receiver<ServedCalls>) {
            let (opened, streams) = mpsc::channel(MESSAGES_MAX);
            (Self { opened, refuses: Arc::default() }, streams)
        }
    }

    impl CallExchange for PlayedEngine {
        type Call = u32;
        type Reply = u32;
        type Request = Calls;
        type Response = Replies;

        async fn open(
            &self,
            requests: mpsc::Receiver<Calls>,
        ) -> Result<BoxStream<'static, Result<Replies, Status>>, Status> {
            if self.refuses.load(Ordering::Relaxed) {
                return Err(Status::permission_denied("refused"));
            }
            let (responses, received) = mpsc::channel(MESSAGES_MAX);
            self.opened.try_send(ServedCalls { requests, responses }).unwrap();
            Ok(ReceiverStream::new(received).boxed())
        }

        fn bytes(_: &u32) -> usize {
            1_024
        }

        fn add_call(request: &mut Calls, sequence: u64, time: Duration, call: u32) {
            assert!(!time.is_zero() && time <= LONG, "{time:?}");
            request.calls.push((sequence, call));
        }

        fn add_cancellation(request: &mut Calls, sequence: u64) {
            request.cancelled.push(sequence);
        }

        fn read(response: Replies, mut reply: impl FnMut(u64, Result<u32, Status>)) -> Option<u64> {
            response.replies.into_iter().for_each(|(sequence, result)| reply(sequence, result));
            response.last_call
        }
    }

    impl ServedCalls {
        /// The next calls, at least this many.
        async fn calls(&mut self, count: usize) -> Vec<(u64, u32)> {
            let mut calls = Vec::new();
            while calls.len() < count {
                calls.extend(self.requests.recv().await.unwrap().calls);
            }
            calls
        }

        fn reply(&self, sequence: u64, reply: u32) {
            self.responses.try_send(Ok(Replies { replies: vec![(sequence, Ok(reply))], last_call: None })).unwrap();
        }

        fn drain(&self, last_call: u64) {
            self.responses.try_send(Ok(Replies { replies: Vec::new(), last_call: Some(last_call) })).unwrap();
        }
    }

    type Called = JoinHandle<Result<u32, Status>>;

    fn call(streams: &CallStreams<PlayedEngine>, call: u32) -> Called {
        let streams = streams.clone();
        tokio::spawn(async move { streams.call(call, LONG).await })
    }

    /// Streams to one engine, and two calls that it has got.
    async fn two_calls() -> (CallStreams<PlayedEngine>, mpsc::Receiver<ServedCalls>, ServedCalls, [Called; 2]) {
        let (engine, mut opened) = PlayedEngine::new();
        let streams = CallStreams::new(Engines::new(1), [engine]);
        let called = [call(&streams, 10), call(&streams, 20)];
        let mut stream = opened.recv().await.unwrap();
        assert_eq!(stream.calls(2).await, [(1, 10), (2, 20)]);
        (streams, opened, stream, called)
    }

    #[tokio::test]
    async fn each_call_gets_its_reply_in_any_order() {
        let (streams, _opened, mut stream, [first, second]) = two_calls().await;
        stream.reply(2, 21);
        assert_eq!(second.await.unwrap().unwrap(), 21);
        let third = call(&streams, 30);
        assert_eq!(stream.calls(1).await, [(3, 30)]);
        let error = Status::not_found("no card");
        stream
            .responses
            .try_send(Ok(Replies { replies: vec![(3, Err(error)), (1, Ok(11))], last_call: None }))
            .unwrap();
        assert_eq!(third.await.unwrap().unwrap_err().code(), Code::NotFound);
        assert_eq!(first.await.unwrap().unwrap(), 11);
    }

    #[tokio::test]
    async fn a_call_behind_the_last_one_of_a_drained_stream_is_sent_again_once() {
        let (streams, mut opened, drained, [first, second]) = two_calls().await;
        drained.drain(1);
        let mut next = opened.recv().await.unwrap();
        assert_eq!(next.calls(1).await, [(3, 20)], "the numbers of a task rise");
        next.reply(3, 21);
        assert_eq!(second.await.unwrap().unwrap(), 21);
        // The drained stream finishes its calls beside the next one.
        drained.reply(1, 11);
        assert_eq!(first.await.unwrap().unwrap(), 11);
        let third = call(&streams, 30);
        assert_eq!(next.calls(1).await, [(4, 30)]);
        next.reply(4, 31);
        assert_eq!(third.await.unwrap().unwrap(), 31);
    }

    #[tokio::test]
    async fn a_call_that_an_engine_did_not_read_goes_to_another_one() {
        let (engines, mut opened): (Vec<_>, Vec<_>) = [PlayedEngine::new(), PlayedEngine::new()].into_iter().unzip();
        let streams = CallStreams::new(Engines::new(2), engines);
        let called = call(&streams, 10);
        let mut first = opened[0].recv().await.unwrap();
        assert_eq!(first.calls(1).await, [(1, 10)]);
        first.drain(0);
        let mut other = opened[1].recv().await.unwrap();
        assert_eq!(other.calls(1).await, [(1, 10)]);
        other.reply(1, 11);
        assert_eq!(called.await.unwrap().unwrap(), 11);
        assert!(opened[0].try_recv().is_err(), "the first engine got the call twice");
    }

    #[tokio::test]
    async fn a_call_is_given_up_after_three_drained_streams() {
        let (engine, mut opened) = PlayedEngine::new();
        let streams = CallStreams::new(Engines::new(1), [engine]);
        let called = call(&streams, 10);
        for _ in 0..SENDS_MAX {
            let mut stream = opened.recv().await.unwrap();
            assert_eq!(stream.calls(1).await.len(), 1);
            stream.drain(0);
        }
        assert_eq!(called.await.unwrap().unwrap_err().code(), Code::Unavailable);
        // An engine that drains each stream before a call is sent on it.
        let called = call(&streams, 20);
        let draining = tokio::spawn(async move {
            while let Some(stream) = opened.recv().await {
                stream.drain(0);
            }
        });
        assert_eq!(called.await.unwrap().unwrap_err().code(), Code::Unavailable);
        draining.abort();
    }

    #[tokio::test]
    async fn calls_of_a_lost_stream_fail_and_are_not_sent_again() {
        for lost in [Some(Status::internal("reset")), None] {
            let (streams, mut opened, stream, called) = two_calls().await;
            stream.reply(1, 11);
            let ended = lost.map(|status| stream.responses.try_send(Err(status)));
            assert!(ended.is_none_or(|sent| sent.is_ok()));
            drop(stream);
            let [first, second] = called;
            assert_eq!(first.await.unwrap().unwrap(), 11);
            let status = second.await.unwrap().unwrap_err();
            assert_eq!(status.code(), Code::Unavailable);
            assert!(std::error::Error::source(&status).is_some(), "the status is no answer of the engine");
            let third = call(&streams, 30);
            let mut next = opened.recv().await.unwrap();
            assert_eq!(next.calls(1).await, [(3, 30)]);
            next.reply(3, 31);
            assert_eq!(third.await.unwrap().unwrap(), 31);
        }
    }

    #[tokio::test]
    async fn a_call_goes_past_an_engine_that_opens_no_stream() {
        let ((refusing, _), (serving, mut opened)) = (PlayedEngine::new(), PlayedEngine::new());
        refusing.refuses.store(true, Ordering::Relaxed);
        let alone = CallStreams::new(Engines::new(1), [refusing.clone()]);
        let refused = alone.call(10, LONG).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, "refused"));
        let streams = CallStreams::new(Engines::new(2), [refusing, serving]);
        let called: Vec<_> = (0..4).map(|number| call(&streams, number)).collect();
        let mut stream = opened.recv().await.unwrap();
        for (sequence, number) in stream.calls(4).await {
            stream.reply(sequence, number);
        }
        for (number, called) in (0..).zip(called) {
            assert_eq!(called.await.unwrap().unwrap(), number);
        }
    }

    #[tokio::test]
    async fn an_engine_that_is_silent_gets_no_call() {
        let (engine, _opened) = PlayedEngine::new();
        let engines = Engines::new(1);
        engines.endpoints()[0].set_state(EngineState::Silent);
        let refused = CallStreams::new(engines, [engine]).call(10, LONG).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable);
        assert!(std::error::Error::source(&refused).is_some());
    }

    #[tokio::test]
    async fn a_dropped_call_is_cancelled_at_the_engine() {
        let (streams, mut opened, mut stream, [first, second]) = two_calls().await;
        first.abort();
        let cancelled = stream.requests.recv().await.unwrap();
        assert_eq!(cancelled, Calls { calls: Vec::new(), cancelled: vec![1] });
        // A late reply has no effect.
        stream.reply(1, 11);
        // Also on a stream that is drained.
        stream.drain(2);
        let third = call(&streams, 30);
        assert_eq!(opened.recv().await.unwrap().calls(1).await, [(3, 30)]);
        second.abort();
        let cancelled = stream.requests.recv().await.unwrap();
        assert_eq!(cancelled, Calls { calls: Vec::new(), cancelled: vec![2] });
        third.abort();
    }

    #[tokio::test]
    async fn calls_that_wait_share_messages_within_their_limits() {
        const CALLS: usize = 600;
        let (engine, mut opened) = PlayedEngine::new();
        let streams = CallStreams::new(Engines::new(1), [engine]);
        let called: Vec<_> = (0..600).map(|number| call(&streams, number)).collect();
        // A call that is dropped before it is sent is not sent.
        called[CALLS - 1].abort();
        let mut stream = opened.recv().await.unwrap();
        let (mut messages, mut calls) = (0, Vec::new());
        while calls.len() < CALLS - 1 {
            let message = stream.requests.recv().await.unwrap();
            assert!(message.calls.len() <= BYTES_PER_MESSAGE_MAX / 1_024);
            messages += 1;
            calls.extend(message.calls);
        }
        assert!(calls.iter().map(|(sequence, _)| *sequence).eq(1..600));
        assert!(messages < CALLS / 10, "{messages} messages");
        called.iter().for_each(JoinHandle::abort);
    }

    #[tokio::test]
    async fn a_call_past_its_deadline_is_not_sent() {
        let (streams, _opened, mut stream, [_first, _second]) = two_calls().await;
        let status = streams.call(30, Duration::ZERO).await.unwrap_err();
        assert!(status.message().contains("deadline"), "{status}");
        let next = call(&streams, 40);
        assert_eq!(stream.calls(1).await, [(3, 40)]);
        next.abort();
    }
}
