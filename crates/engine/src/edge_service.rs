//! The gRPC service of edges: many calls over one stream. Each call passes the gate and the service of its method, as a call of
//! its own HTTP/2 stream does.
//!
//! One task serves a stream, on the thread of its connection. The task is no part of the answer's body, which HTTP/2 polls only
//! while the client reads: so a client that does not read gets no further call begun, and stops none that has begun.

use std::{
    collections::HashMap,
    future::poll_fn,
    mem,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
    vec,
};

use futures::{
    FutureExt, StreamExt,
    future::{AbortHandle, Abortable, BoxFuture},
    stream::FuturesUnordered,
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Extensions, Request, Response, Status, Streaming, async_trait};

use super::{
    gate::Call,
    service::Services,
    serving::{ConnectionHold, StreamsEnd},
    wire,
};
use clock::deadline::Deadline;
use domain::limits::REQUEST_BYTES_MAX;
use proto::{
    ExchangeCallsRequest, ExchangeCallsResponse, LastCall, NumberedCall, NumberedReply,
    control_service_server::ControlService, edge_service_server, numbered_call::Method, numbered_reply,
    pin_service_server::PinService,
};

/// The most replies of one message, which is then far below the 4 MiB that a client decodes.
const REPLIES_PER_MESSAGE_MAX: usize = 256;
/// The messages that wait for HTTP/2: the next one is made when there is place, of all replies that are there by then.
const WAITING_MESSAGES_MAX: usize = 1;

/// The service of edges over the services of one thread.
#[derive(Clone)]
pub(super) struct EdgeServices(Arc<Callee>);

/// What the calls of a stream need.
struct Callee {
    services: Services,
    call_timeout: Duration,
    /// The most calls of a stream at a time.
    calls_max: usize,
}

impl EdgeServices {
    pub(super) fn new(services: Services, call_timeout: Duration, calls_max: u32) -> Self {
        let calls_max = usize::try_from(calls_max).unwrap_or(usize::MAX);
        Self(Arc::new(Callee { services, call_timeout, calls_max }))
    }
}

#[async_trait]
impl edge_service_server::EdgeService for EdgeServices {
    type ExchangeCallsStream = ReceiverStream<Result<ExchangeCallsResponse, Status>>;

    async fn exchange_calls(
        &self,
        request: Request<Streaming<ExchangeCallsRequest>>,
    ) -> Result<Response<Self::ExchangeCallsStream>, Status> {
        let (_, connection, messages) = request.into_parts();
        let call = Call::of(&connection)?;
        let StreamsEnd { hold, exchange, .. } = connection.get().cloned().ok_or_else(wire::not_admitted)?;
        let place = exchange.try_acquire_owned().map_err(|_| call.refused(wire::streams_busy()))?;
        let (outgoing, replies) = mpsc::channel(WAITING_MESSAGES_MAX);
        let exchange = Exchange {
            callee: Arc::clone(&self.0),
            connection: Arc::new(connection),
            messages: Some(messages),
            read_at: Instant::now(),
            read: 0,
            held: Vec::new().into_iter(),
            begun: 0,
            running: FuturesUnordered::new(),
            in_progress: HashMap::new(),
            replies: Vec::new(),
            drain: Drain::NotYet,
            _place: place,
        };
        let mut response = Response::new(ReceiverStream::new(replies));
        response.extensions_mut().insert(hold.clone());
        tokio::spawn(exchange.run(outgoing, hold));
        Ok(response)
    }
}

/// Whether the connection of a stream drains.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Drain {
    /// The engine carries out the calls that it reads.
    NotYet,
    /// The engine begins no further call, and the client does not know yet.
    Unannounced,
    /// The engine begins no further call, and has sent the number of the last one.
    Announced,
}

type Outgoing = mpsc::Sender<Result<ExchangeCallsResponse, Status>>;
type RunningCall = Abortable<BoxFuture<'static, NumberedReply>>;

/// A stream of calls.
struct Exchange {
    callee: Arc<Callee>,
    /// The extensions of the stream's request, with the peer of its connection.
    connection: Arc<Extensions>,
    /// `None` after the client has ended its half of the stream.
    messages: Option<Streaming<ExchangeCallsRequest>>,
    /// When the last message was read.
    read_at: Instant,
    /// The sequence of the last call that was read.
    read: u64,
    /// The calls of the last message that have not begun: as many as are allowed are in progress.
    held: vec::IntoIter<NumberedCall>,
    /// The sequence of the last call that has begun.
    begun: u64,
    running: FuturesUnordered<RunningCall>,
    /// By sequence: cancels a call in progress.
    in_progress: HashMap<u64, AbortHandle>,
    /// The replies that are not sent yet.
    replies: Vec<NumberedReply>,
    drain: Drain,
    _place: OwnedSemaphorePermit,
}

impl Exchange {
    /// Serves the stream until its end. A drop of the task cancels the calls in progress, and so does a client that resets the
    /// stream.
    async fn run(mut self, outgoing: Outgoing, mut hold: ConnectionHold) {
        let mut drained = pin!(hold.until_drained());
        // The time that the calls in progress have from the drain on, and the client to read their replies.
        let mut given_up = pin!(sleep_until(Instant::now()));
        while !self.has_ended() {
            let reads = self.reads();
            let has_replies = !self.replies.is_empty() || self.drain == Drain::Unannounced;
            tokio::select! {
                biased;
                () = outgoing.closed() => return,
                () = &mut drained, if self.drain == Drain::NotYet => {
                    self.drain = Drain::Unannounced;
                    self.held = Vec::new().into_iter();
                    given_up.as_mut().reset(Instant::now() + 2 * self.callee.call_timeout);
                }
                () = &mut given_up, if self.drain != Drain::NotYet => return,
                message = next_message(&mut self.messages), if reads => match message {
                    Ok(Some(message)) => if let Err(status) = self.read(message) {
                        return self.fail(&outgoing, status).await;
                    },
                    Ok(None) => self.messages = None,
                    // The connection or the stream is lost, or the client sends what is no message.
                    Err(status) => return self.fail(&outgoing, status).await,
                },
                () = poll_fn(|context| {
                    poll_replies(&mut self.running, &mut self.in_progress, &mut self.replies, context)
                }), if !self.running.is_empty() => self.begin_held(),
                place = outgoing.reserve(), if has_replies => {
                    // Closed: the client has left.
                    let Ok(place) = place else { return };
                    let later = self.replies.split_off(self.replies.len().min(REPLIES_PER_MESSAGE_MAX));
                    let replies = mem::replace(&mut self.replies, later);
                    let last_call = (self.drain == Drain::Unannounced).then(|| {
                        self.drain = Drain::Announced;
                        LastCall { sequence: self.begun }
                    });
                    place.send(Ok(ExchangeCallsResponse { replies, last_call }));
                }
            }
        }
        // The client may open another stream once this one has ended.
        drop(self);
    }

    /// Whether no call can come any more, and every reply is sent.
    fn has_ended(&self) -> bool {
        let gets_calls = match self.drain {
            Drain::NotYet => self.messages.is_some() || self.held.len() > 0,
            Drain::Unannounced => true,
            Drain::Announced => false,
        };
        !gets_calls && self.running.is_empty() && self.replies.is_empty()
    }

    /// Whether the next message is read. While the connection drains, only its cancellations count.
    fn reads(&self) -> bool {
        let has_place =
            self.replies.is_empty() && self.held.len() == 0 && self.in_progress.len() < self.callee.calls_max;
        self.messages.is_some() && (has_place || self.drain != Drain::NotYet)
    }

    /// Begins the calls of a message, and cancels those that the client does not need any more.
    ///
    /// # Errors
    /// The message is malformed: the status that ends the stream.
    fn read(&mut self, message: ExchangeCallsRequest) -> Result<(), Status> {
        for call in &message.calls {
            if call.sequence <= self.read {
                return Err(wire::call_number());
            }
            wire::request_id_bytes(&call.request_id)?;
            self.read = call.sequence;
        }
        if self.drain == Drain::NotYet {
            self.read_at = Instant::now();
            self.held = message.calls.into_iter();
            self.begin_held();
        }
        for sequence in message.cancelled_sequences {
            if let Some(call) = self.in_progress.remove(&sequence) {
                call.abort();
            }
        }
        Ok(())
    }

    /// Begins the calls of the last message for which there is place.
    fn begin_held(&mut self) {
        while self.in_progress.len() < self.callee.calls_max
            && let Some(call) = self.held.next()
        {
            let sequence = call.sequence;
            self.begun = sequence;
            let (handle, registration) = AbortHandle::new_pair();
            self.in_progress.insert(sequence, handle);
            let (callee, connection) = (Arc::clone(&self.callee), Arc::clone(&self.connection));
            let work = reply(callee, connection, call, self.read_at);
            self.running.push(Abortable::new(Box::pin(work), registration));
        }
    }

    /// Cancels the calls in progress, and ends the stream with this status.
    async fn fail(self, outgoing: &Outgoing, status: Status) {
        let limit = self.callee.call_timeout;
        // The client may open another stream once it has the status.
        drop(self);
        // An error: the client has left, or does not read.
        let _ = timeout(limit, outgoing.send(Err(status))).await;
    }
}

/// Collects every reply that is ready. Ready if there is one, or if a call was cancelled.
fn poll_replies(
    running: &mut FuturesUnordered<RunningCall>,
    in_progress: &mut HashMap<u64, AbortHandle>,
    replies: &mut Vec<NumberedReply>,
    context: &mut Context<'_>,
) -> Poll<()> {
    let mut polled = Poll::Pending;
    while let Poll::Ready(Some(done)) = running.poll_next_unpin(context) {
        polled = Poll::Ready(());
        if let Ok(reply) = done {
            in_progress.remove(&reply.sequence);
            replies.push(reply);
        }
    }
    polled
}

/// The next message; `None` at the end of the client's half of the stream.
async fn next_message(
    messages: &mut Option<Streaming<ExchangeCallsRequest>>,
) -> Result<Option<ExchangeCallsRequest>, Status> {
    match messages {
        Some(messages) => messages.message().await,
        None => Ok(None),
    }
}

/// Carries out a call that was read at this time.
async fn reply(
    callee: Arc<Callee>,
    connection: Arc<Extensions>,
    call: NumberedCall,
    read_at: Instant,
) -> NumberedReply {
    let sequence = call.sequence;
    let asked = call.timeout_duration.map(|asked| Duration::try_from(asked).unwrap_or_default());
    let limit = asked.map_or(callee.call_timeout, |asked| asked.min(callee.call_timeout));
    // A panic of a call ends the call alone, as in an HTTP/2 stream.
    let work = AssertUnwindSafe(carry_out(&callee, &connection, call, asked, read_at)).catch_unwind();
    let done = timeout_at(read_at + limit, work).await;
    let done =
        done.map_or_else(|_| Err(wire::deadline_passed()), |done| done.unwrap_or_else(|_| Err(wire::call_panicked())));
    let result = done.unwrap_or_else(|status| numbered_reply::Result::Error(wire::call_error(&status)));
    NumberedReply { sequence, result: Some(result) }
}

async fn carry_out(
    callee: &Callee,
    connection: &Extensions,
    call: NumberedCall,
    asked: Option<Duration>,
    read_at: Instant,
) -> Result<numbered_reply::Result, Status> {
    let method = call.method.ok_or_else(wire::unknown_method)?;
    let id = wire::request_id_bytes(&call.request_id)?;
    let deadline = asked.map(|asked| Deadline::within(asked.saturating_sub(read_at.elapsed())));
    let gate = &callee.services.gate;
    let admitted = gate.admit_in_stream(path_of(&method), id, connection, deadline).await?;
    if method.encoded_len() > REQUEST_BYTES_MAX {
        return Err(wire::call_length());
    }
    serve(&callee.services, admitted, method).await
}

/// Defines the calls of a stream by the services of their methods.
macro_rules! calls {
    ($($name:ident: $service:ident / $path:ident, $method:ident;)+) => {
        /// The path of the method, as in the table of access.
        fn path_of(method: &Method) -> &'static str {
            match method {
                $(Method::$name(_) => concat!("/pinseal.v1.", stringify!($service), "/", stringify!($path)),)+
            }
        }

        /// Calls the service of the method.
        async fn serve(services: &Services, call: Call, method: Method) -> Result<numbered_reply::Result, Status> {
            match method {
                $(Method::$name(message) => {
                    let mut request = Request::new(message);
                    request.extensions_mut().insert(call);
                    let response = $service::$method(services, request).await?;
                    Ok(numbered_reply::Result::$name(response.into_inner()))
                })+
            }
        }
    };
}

calls! {
    OpenControl: ControlService / OpenControl, open_control;
    StartPage: ControlService / StartPage, start_page;
    IssueTzpk: PinService / IssueTzpk, issue_tzpk;
    SetPin: PinService / SetPin, set_pin;
    ViewPin: PinService / ViewPin, view_pin;
    SetZonePin: PinService / SetPinByZone, set_pin_by_zone;
    GetZonePin: PinService / GetPinByZone, get_pin_by_zone;
}
