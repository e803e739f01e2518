//! The connections of the edge: HTTP/1.1 and HTTP/2, with or without TLS.
//!
//! Three timeouts bound an idle client: headers (10 s), idle after a request (30 s), close (2 s). They keep an attacker who
//! opens many silent connections from holding all connections.

mod transport;

use std::{
    convert::Infallible,
    io,
    net::IpAddr,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::to_bytes,
    http::{
        HeaderValue, Request,
        header::{CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, DATE},
    },
    routing::future::RouteFuture,
};
use futures::{
    future::{BoxFuture, pending},
    stream::{FuturesUnordered, StreamExt},
};
use hyper::{body::Incoming, rt::Executor};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, watch},
    task::{JoinError, JoinSet, coop::consume_budget},
    time::{sleep, sleep_until, timeout},
};
use tower::util::{MapFuture, MapRequest};

use self::transport::{Ended, Exchange, Transport};
use super::{
    api_error::{ApiError, ErrorProfile},
    auth::Authenticated,
    http_rules::HEADER_BYTES_MAX,
    route::{ClientNetwork, LINES_PER_MINUTE_MAX},
    security_headers::SecurityHeaders,
};
use clock::minute_limit::MinuteLimit;
use domain::request_id::RequestId;
use net::{
    ConnectionAge, ConnectionPlace,
    serving_threads::Accepted,
    tls::{ServerStream, ServerTls, TlsError},
};

/// Above this many bytes of headers, h2 answers 431 by itself, with an empty body; from `HEADER_BYTES_MAX` on the edge does.
const HTTP2_HEADER_BYTES_MAX: u32 = 4 * HEADER_BYTES_MAX;
/// The most concurrent streams of one HTTP/2 connection.
const STREAMS_MAX: u32 = 256;
/// The most requests of one HTTP/2 connection that wait for their first step. Above [`STREAMS_MAX`], because a stream that its
/// client resets lets it open another.
const BEGUN_MAX: usize = 4 * STREAMS_MAX as usize;
/// The longest time for the requests in flight to finish when the edge stops. A connection that closes has the request timeout
/// beside it.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);
/// A connection beyond its age that has not begun HTTP/2 is checked again after this time.
const AGE_CHECK_EVERY: Duration = Duration::from_secs(1);
/// The interval and the timeout of HTTP/2 PING frames.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIME_MAX: Duration = Duration::from_secs(10);
/// The longest time that the edge reads, after its last answer or GOAWAY, what the client is still sending.
const LINGER_TIME_MAX: Duration = Duration::from_secs(2);

/// The lines within a minute that peers without credentials can cause. The next line has the number of suppressed ones.
static REJECTED_LINES: MinuteLimit = MinuteLimit::new(LINES_PER_MINUTE_MAX);
static MALFORMED_LINES: MinuteLimit = MinuteLimit::new(LINES_PER_MINUTE_MAX);

/// The timeouts of a connection after the TLS handshake.
#[derive(Clone, Copy)]
pub(super) struct Timeouts {
    /// From the start of the connection to the end of the first request's headers; over HTTP/1.1, for the headers of each
    /// request.
    headers: Duration,
    /// Without a request in flight, after the first request.
    idle: Duration,
    /// Without a request in flight, after the graceful shutdown.
    close: Duration,
    /// From the graceful shutdown to the end of the connection, with requests in flight.
    drain: Duration,
    /// From the start of the connection to its last request.
    age: ConnectionAge,
}

impl Timeouts {
    /// The timeouts of a production edge, with this maximum age of a connection and this timeout of a request.
    pub(super) fn new(age: ConnectionAge, request_timeout: Duration) -> Self {
        Self { age, drain: request_timeout.saturating_add(DRAIN_TIME_MAX), ..Self::DEFAULT }
    }

    const DEFAULT: Self = Self {
        headers: Duration::from_secs(10),
        idle: Duration::from_secs(30),
        close: Duration::from_secs(2),
        drain: DRAIN_TIME_MAX,
        age: ConnectionAge::DEFAULT,
    };
}

/// The answers to the heads of requests that hyper rejects. Their paths are unknown.
#[derive(Clone, Copy)]
pub(super) struct HeadErrors {
    pub(super) profile: ErrorProfile,
    pub(super) headers: SecurityHeaders,
}

/// How a worker serves its connections.
#[derive(Clone)]
pub(super) struct ServingSettings {
    /// `None` is allowed on loopback only.
    pub(super) tls: Option<ServerTls>,
    pub(super) head_errors: HeadErrors,
    pub(super) timeouts: Timeouts,
}

/// Serves the connections of one worker until no more are accepted and the requests in flight have finished.
pub(super) async fn serve(
    mut accepted: mpsc::Receiver<Accepted>,
    router: Router,
    settings: ServingSettings,
    stopped: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = accepted.recv() => match accepted.map(Accepted::open) {
                Some(Ok((stream, place))) => {
                    connections.spawn(serve_accepted(stream, place, router.clone(), settings.clone(), stopped.clone()));
                }
                Some(Err(error)) => tracing::warn!(%error, "a connection cannot be registered with the runtime"),
                None => break,
            },
            Some(ended) = connections.join_next() => report_end(ended),
        }
    }
    let drained = async {
        while let Some(ended) = connections.join_next().await {
            report_end(ended);
        }
    };
    if timeout(DRAIN_TIME_MAX, drained).await.is_err() {
        tracing::warn!(limit = ?DRAIN_TIME_MAX, "requests in flight were aborted: they did not finish in time");
    }
}

fn report_end(ended: Result<(), JoinError>) {
    if ended.is_err() {
        tracing::error!("the task of a connection panicked");
    }
}

/// Serves one connection to its end, the TLS handshake included.
async fn serve_accepted(
    stream: TcpStream,
    place: ConnectionPlace,
    router: Router,
    settings: ServingSettings,
    stopped: watch::Receiver<bool>,
) {
    let ServingSettings { tls, head_errors, timeouts } = settings;
    let network = place.network();
    let stream = tokio::select! {
        stream = handshake(stream, tls) => stream,
        () = place.closed() => return,
    };
    match stream {
        Ok(stream) => {
            let (place, exchange) = (Arc::new(place), Exchange::default());
            let end = serve_connection(stream, &exchange, &place, router, timeouts, stopped.clone()).await;
            if let (Some(end), Some(ended)) = (end, exchange.end()) {
                end.close(ended, &place, head_errors, stopped).await;
            }
        }
        Err(error) => {
            if let Some(suppressed) = REJECTED_LINES.admit() {
                tracing::info!(%network, %error, suppressed, "a connection was rejected");
            }
        }
    }
}

async fn handshake(stream: TcpStream, tls: Option<ServerTls>) -> Result<ServerStream, TlsError> {
    stream.set_nodelay(true).map_err(|error: io::Error| TlsError::Handshake(error))?;
    match tls {
        Some(tls) => tls.accept(stream).await,
        None => Ok(ServerStream::Plain(stream)),
    }
}

/// Serves one connection until the client, a timeout, its age, the connection table or the stop of the edge ends it. The first
/// authenticated request settles its place in the table. `None` if the edge aborted the connection.
///
/// At its age, a connection of HTTP/2 gets GOAWAY. HTTP/1.1 has no such frame: a request could arrive while the edge closes an
/// idle connection. So the next answer has `Connection: close`, and without a next request the idle timeout ends the connection.
///
/// h2 accepts requests until the client has acknowledged the PING of the graceful shutdown. A client that never does is
/// disconnected after `Timeouts::drain`, in which a request that began before the shutdown has ended.
async fn serve_connection(
    stream: ServerStream,
    exchange: &Exchange,
    place: &Arc<ConnectionPlace>,
    router: Router,
    timeouts: Timeouts,
    mut stopped: watch::Receiver<bool>,
) -> Option<End> {
    let (usage, peer, network) = (Arc::new(Usage::default()), stream.peer(), ClientNetwork(place.network()));
    let identified = MapRequest::new(router, move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(network);
        request
    });
    let (counted, settled, answered) = (Arc::clone(&usage), Arc::clone(place), exchange.clone());
    let old_at = tokio::time::Instant::now() + timeouts.age.of_one_connection();
    let service = MapFuture::new(identified, move |answer: RouteFuture<Infallible>| {
        let (in_flight, settled, answered) = (counted.begin(), Arc::clone(&settled), answered.clone());
        answered.begin();
        async move {
            let answer = answer.await;
            if matches!(&answer, Ok(answer) if answer.extensions().get::<Authenticated>().is_some()) {
                settled.settle();
            }
            drop(in_flight);
            answer.map(|mut answer| {
                if old_at <= tokio::time::Instant::now() && !answered.is_http2() {
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                answered.answer(answer)
            })
        }
    });
    let (executor, mut requests) = ConnectionExecutor::new();
    let mut builder = Builder::new(executor);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(timeouts.headers)
        .max_buf_size(HEADER_BYTES_MAX as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HTTP2_HEADER_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_TIME_MAX);
    let stream = TokioIo::new(Transport::new(stream, exchange.clone()));
    let mut connection = pin!(builder.serve_connection(stream, TowerToHyperService::new(service)));

    let (mut first, mut later, mut closing, mut until) = (timeouts.headers, timeouts.idle, false, old_at);
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                let mut rejected = ApiError::HTTP_MALFORMED;
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection failed");
                    if error.downcast_ref().is_some_and(hyper::Error::is_parse_too_large) {
                        rejected = ApiError::HEADERS_TOO_LARGE;
                    }
                }
                // Over HTTP/2, a request may cross the GOAWAY: without it, the client could not send the request again.
                let is_late = if exchange.is_http2() { closing } else { !closing };
                return Some(End { rejected, lingers: is_late && usage.had_request() });
            }
            () = requests.run() => continue,
            () = usage.quiet(first, later) => if closing {
                tracing::debug!("a connection was aborted: it did not close in time");
                return None;
            },
            _ = stopped.wait_for(|stopped| *stopped), if !closing => {}
            () = sleep_until(until) => {
                if closing {
                    tracing::debug!("a connection was aborted: its requests did not end in time");
                    return None;
                }
                if until == old_at {
                    tracing::debug!("a connection reached its maximum age");
                }
                if !exchange.is_http2() {
                    until += AGE_CHECK_EVERY;
                    continue;
                }
            }
            () = place.closed(), if !closing => if usage.is_quiet() {
                tracing::debug!("the oldest unauthenticated connection was closed for a new one");
                return None;
            },
        }
        // A request that arrives during the shutdown is still answered, until the hard end.
        (first, later, closing) = (timeouts.close, timeouts.close, true);
        until = tokio::time::Instant::now() + timeouts.drain;
        usage.renew();
        connection.as_mut().graceful_shutdown();
    }
}

/// Gives the requests of a connection of HTTP/2 to the task of the connection. With a task for each request, one client with
/// thousands of requests would delay every step of another client behind all of them: a runtime of one thread runs its tasks in
/// the order in which they became ready.
#[derive(Clone)]
struct ConnectionExecutor(mpsc::Sender<BoxFuture<'static, ()>>);

/// The requests in flight of a connection of HTTP/2. Their number is at most [`STREAMS_MAX`].
struct ConnectionRequests {
    begun: mpsc::Receiver<BoxFuture<'static, ()>>,
    in_flight: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl ConnectionExecutor {
    fn new() -> (Self, ConnectionRequests) {
        let (executor, begun) = mpsc::channel(BEGUN_MAX);
        (Self(executor), ConnectionRequests { begun, in_flight: FuturesUnordered::new() })
    }
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for ConnectionExecutor {
    fn execute(&self, request: F) {
        // A request begins only while the task of the connection has a part of its turn left.
        let request = async {
            consume_budget().await;
            request.await;
        };
        // An error: the client resets its requests as fast as it begins them. The request is reset too.
        let _ = self.0.try_send(Box::pin(request));
    }
}

impl ConnectionRequests {
    /// Runs the requests until one ends.
    async fn run(&mut self) {
        loop {
            tokio::select! {
                biased;
                Some(request) = self.begun.recv() => self.in_flight.push(request),
                Some(()) = self.in_flight.next() => return,
                else => pending().await,
            }
        }
    }
}

/// The end of a connection that hyper has served.
struct End {
    /// The answer to the head that hyper rejected, if it rejected one.
    rejected: ApiError,
    /// Whether the client may still be sending a request that has its answer.
    lingers: bool,
}

impl End {
    /// Answers the head of a request that hyper rejected, and reads what the client is still sending, for at most
    /// `LINGER_TIME_MAX`.
    async fn close(
        self,
        ended: Ended,
        place: &ConnectionPlace,
        head_errors: HeadErrors,
        mut stopped: watch::Receiver<bool>,
    ) {
        let Ended { mut stream, is_unanswered } = ended;
        if !is_unanswered && !self.lingers {
            return;
        }
        let work = async {
            if is_unanswered {
                stream.write_all(&answer_bytes(self.rejected, head_errors, place.network()).await).await?;
                stream.shutdown().await?;
            }
            let mut rest = [0; 4096];
            while stream.read(&mut rest).await? > 0 {}
            io::Result::Ok(())
        };
        tokio::select! {
            _ = work => {}
            () = sleep(LINGER_TIME_MAX) => {}
            () = place.closed() => {}
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
    }
}

/// The bytes of an error in HTTP/1.1, after which the connection closes. Logs the error.
async fn answer_bytes(error: ApiError, head_errors: HeadErrors, network: IpAddr) -> Vec<u8> {
    let id = RequestId::random();
    let (mut head, body) = error.answer(head_errors.profile, id).into_parts();
    if let Some(suppressed) = MALFORMED_LINES.admit() {
        let (status, code) = (head.status.as_u16(), error.code());
        tracing::info!(request = %id, %network, status, code, suppressed, "a request was rejected");
    }
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let headers = &mut head.headers;
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    head_errors.headers.add_to(headers);
    let date = DateTimePrinter::new().timestamp_to_rfc9110_string(&Timestamp::now()).ok();
    if let Some(date) = date.and_then(|date| HeaderValue::try_from(date).ok()) {
        headers.insert(DATE, date);
    }
    let reason = head.status.canonical_reason().unwrap_or("Error");
    let mut bytes = format!("HTTP/1.1 {} {reason}\r\n", head.status.as_str()).into_bytes();
    for (name, value) in &head.headers {
        bytes.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    bytes.extend(b"\r\n");
    bytes.extend(body);
    bytes
}

/// The activity of a connection.
#[derive(Default)]
struct Usage(Mutex<UsageState>);

struct UsageState {
    in_flight: usize,
    /// Whether the connection had a request.
    had_request: bool,
    /// The end of the last request, or the start of the connection.
    since: Instant,
}

impl Default for UsageState {
    fn default() -> Self {
        Self { in_flight: 0, had_request: false, since: Instant::now() }
    }
}

/// A request in flight, until dropped.
struct InFlight(Arc<Usage>);

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut used = self.0.lock();
        used.in_flight = used.in_flight.saturating_sub(1);
        used.since = Instant::now();
    }
}

impl Usage {
    fn lock(&self) -> MutexGuard<'_, UsageState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>) -> InFlight {
        let mut used = self.lock();
        used.in_flight = used.in_flight.saturating_add(1);
        used.had_request = true;
        InFlight(Arc::clone(self))
    }

    fn renew(&self) {
        self.lock().since = Instant::now();
    }

    /// Whether no request is in flight.
    fn is_quiet(&self) -> bool {
        self.lock().in_flight == 0
    }

    /// Whether the connection had a request.
    fn had_request(&self) -> bool {
        self.lock().had_request
    }

    /// Returns after no request was in flight for `first` (before the first request) or `later` (after it).
    async fn quiet(&self, first: Duration, later: Duration) {
        while let Some(left) = self.left(first, later) {
            sleep(left).await;
        }
    }

    /// The remaining idle time; `None` if it has passed.
    fn left(&self, first: Duration, later: Duration) -> Option<Duration> {
        let used = self.lock();
        let limit = if used.had_request { later } else { first };
        if used.in_flight > 0 {
            return Some(limit);
        }
        limit.checked_sub(used.since.elapsed()).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use net::{ConnectionLimits, ConnectionTable, serving_threads::accept};

    const SHORT: Timeouts = Timeouts {
        headers: Duration::from_millis(300),
        idle: Duration::from_millis(1_000),
        close: Duration::from_millis(200),
        drain: Duration::from_secs(5),
        age: ConnectionAge::DEFAULT,
    };
    /// The timeout of an idle connection never ends one that sends a request now and then.
    const STUBBORN: Timeouts =
        Timeouts { close: Duration::from_secs(60), drain: Duration::from_secs(2), ..Timeouts::DEFAULT };
    /// The first bytes of an HTTP/2 client: the preface and an empty SETTINGS frame.
    const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    /// `GET /` in HPACK's static table.
    const GET_ROOT: [u8; 3] = [0x82, 0x86, 0x84];

    struct Serving {
        address: SocketAddr,
        stop: watch::Sender<bool>,
        serving: tokio::task::JoinHandle<()>,
    }

    impl Serving {
        async fn start() -> Self {
            Self::start_within(ConnectionLimits::default()).await
        }

        async fn start_within(limits: ConnectionLimits) -> Self {
            Self::start_with(limits, SHORT).await
        }

        async fn start_with(limits: ConnectionLimits, timeouts: Timeouts) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let router = Router::new().route("/", get(async || "quick")).route(
                "/slow",
                get(async || {
                    sleep(Duration::from_millis(1_200)).await;
                    "slow"
                }),
            );
            let (stop, stopped) = watch::channel(false);
            let (to_worker, accepted) = mpsc::channel(16);
            let table = ConnectionTable::new(limits);
            let accepting = accept(listener.into_std().unwrap(), table, vec![to_worker], stopped.clone());
            let head_errors =
                HeadErrors { profile: ErrorProfile::Full, headers: SecurityHeaders::of_unknown_path(Some(true)) };
            let settings = ServingSettings { tls: None, head_errors, timeouts };
            let served = serve(accepted, router, settings, stopped);
            let serving = tokio::spawn(async {
                let ((), ()) = tokio::join!(accepting, served);
            });
            Self { address, stop, serving }
        }

        async fn open(&self, words: &[u8]) -> TcpStream {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(words).await.unwrap();
            stream
        }
    }

    fn headers(stream: u8, flags: u8) -> Vec<u8> {
        [&[0, 0, 3, 1, flags, 0, 0, 0, stream], GET_ROOT.as_slice()].concat()
    }

    /// Whether GOAWAY, a frame of type 7 on stream 0, is in these bytes.
    fn has_goaway(heard: &[u8]) -> bool {
        heard.windows(6).any(|bytes| bytes == [7, 0, 0, 0, 0, 0])
    }

    /// Whether the server closes the connection, gracefully or not, within a generous limit.
    async fn is_closed(stream: &mut TcpStream) -> bool {
        let mut heard = [0; 1024];
        let closed = async { while !matches!(stream.read(&mut heard).await, Ok(0) | Err(_)) {} };
        timeout(Duration::from_secs(5), closed).await.is_ok()
    }

    #[tokio::test]
    async fn a_silent_or_incomplete_connection_is_closed() {
        let serving = Serving::start().await;
        let unfinished = [HELLO, &headers(1, 0x1)].concat();
        let words: [(&str, &[u8]); 6] = [
            ("silence", b""),
            ("two bytes", b"PR"),
            ("half a preface", HELLO.get(..14).unwrap()),
            ("half a request", b"GET / HTTP/1.1\r\nhost: x\r\n"),
            ("HTTP/2 without a request", HELLO),
            ("HEADERS without their end", &unfinished),
        ];
        for (said, words) in words {
            let mut stream = serving.open(words).await;
            assert!(is_closed(&mut stream).await, "{said} kept a connection open");
        }
    }

    #[tokio::test]
    async fn the_answer_to_a_rejected_head_has_the_security_headers() {
        let serving = Serving::start().await;
        let long = [b"GET /web/bank HTTP/1.1\r\nhost: x\r\nx-long: ".as_slice(), &[b'x'; 64 * 1024]].concat();
        for (words, status) in [(b"GET /web bank HTTP/1.1\r\n\r\n".as_slice(), "400"), (&long, "431")] {
            let mut stream = serving.open(words).await;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
            for name in ["cache-control", "content-security-policy", "permissions-policy", "strict-transport-security"]
            {
                assert!(answer.contains(&format!("\r\n{name}: ")), "{name}: {answer}");
            }
        }
    }

    #[tokio::test]
    async fn a_used_connection_is_closed_when_idle() {
        let serving = Serving::start().await;
        for words in [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), [HELLO, &headers(1, 0x5)].concat()] {
            let mut stream = serving.open(&words).await;
            assert!(is_closed(&mut stream).await, "an idle connection stays open");
        }
    }

    #[tokio::test]
    async fn an_unauthenticated_connection_is_displaced_after_a_request() {
        let serving = Serving::start_within(ConnectionLimits { connections_max: 16, silent_per_address_max: 1 }).await;
        let mut first = serving.open(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(first.read(&mut [0; 1024]).await.unwrap() > 0);
        let mut second = serving.open(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(second.read(&mut [0; 1024]).await.unwrap() > 0);
        assert!(is_closed(&mut first).await);
    }

    #[tokio::test]
    async fn a_request_in_flight_is_answered_before_displacement() {
        let serving = Serving::start_within(ConnectionLimits { connections_max: 16, silent_per_address_max: 1 }).await;
        let mut busy = serving.open(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
        sleep(Duration::from_millis(100)).await;
        let _new = serving.open(b"").await;
        let mut answer = String::new();
        busy.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("slow"), "{answer}");
    }

    #[tokio::test]
    async fn a_connection_in_use_stays_open() {
        let serving = Serving::start().await;
        let mut stream = serving.open(HELLO).await;
        for id in (1..20).step_by(2) {
            stream.write_all(&headers(id, 0x5)).await.unwrap();
            sleep(SHORT.idle / 6).await;
        }
        let mut heard = vec![0; 4096];
        let length = stream.read(&mut heard).await.unwrap();
        heard.truncate(length);
        assert_eq!(heard.windows(5).filter(|bytes| *bytes == b"quick").count(), 10);
        assert!(!has_goaway(&heard), "GOAWAY on a connection in use");
        stream.write_all(&headers(21, 0x5)).await.unwrap();
        assert!(stream.read(&mut [0; 64]).await.unwrap() > 0);
    }

    async fn start_with_age_of_a_second() -> Serving {
        let timeouts = Timeouts { age: ConnectionAge::from_seconds(1).unwrap(), ..STUBBORN };
        Serving::start_with(ConnectionLimits::default(), timeouts).await
    }

    #[tokio::test]
    async fn an_old_http1_connection_closes_after_an_answer() {
        let serving = start_with_age_of_a_second().await;
        let mut stream = serving.open(b"").await;
        let (mut answers, mut is_last) = (0, false);
        while !is_last {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"quick") {
                assert!(stream.read_buf(&mut answer).await.unwrap() > 0, "closed without an answer");
            }
            is_last = String::from_utf8(answer).unwrap().contains("connection: close");
            answers += 1;
            sleep(Duration::from_millis(50)).await;
        }
        assert!(answers > 1, "a new connection was closed");
        assert!(is_closed(&mut stream).await);
    }

    #[tokio::test]
    async fn an_old_http2_connection_gets_goaway() {
        let serving = start_with_age_of_a_second().await;
        let mut stream = serving.open(&[HELLO, &headers(1, 0x5)].concat()).await;
        let mut heard = Vec::new();
        while !has_goaway(&heard) {
            assert!(stream.read_buf(&mut heard).await.unwrap() > 0, "closed without GOAWAY");
        }
        assert!(heard.windows(5).any(|bytes| bytes == b"quick"));
    }

    /// Sends requests and never acknowledges the PING of the graceful shutdown, so that hyper accepts the requests. Returns
    /// what the client has read when the server closes the connection.
    async fn until_closed(stream: &mut TcpStream, first_id: u8) -> Vec<u8> {
        let mut heard = Vec::new();
        for id in (first_id..=u8::MAX).step_by(2) {
            let pause = async { while !matches!(stream.read_buf(&mut heard).await, Ok(0) | Err(_)) {} };
            if timeout(Duration::from_millis(100), pause).await.is_ok() {
                return heard;
            }
            let _ = stream.write_all(&headers(id, 0x5)).await;
        }
        panic!("a client without an ACK keeps its connection");
    }

    #[tokio::test]
    async fn an_old_http2_client_without_ack_of_ping_is_closed() {
        let serving = start_with_age_of_a_second().await;
        let mut stream = serving.open(&[HELLO, &headers(1, 0x5)].concat()).await;
        let heard = until_closed(&mut stream, 3).await;
        assert!(has_goaway(&heard) && heard.windows(5).any(|bytes| bytes == b"quick"));
    }

    #[tokio::test]
    async fn an_http2_connection_that_begins_after_its_age_is_closed() {
        let serving = start_with_age_of_a_second().await;
        let mut stream = serving.open(b"").await;
        sleep(Duration::from_millis(1_200)).await;
        stream.write_all(&[HELLO, &headers(1, 0x5)].concat()).await.unwrap();
        assert!(has_goaway(&until_closed(&mut stream, 3).await));
    }

    #[tokio::test]
    async fn a_displaced_http2_client_without_ack_of_ping_is_closed() {
        let limits = ConnectionLimits { connections_max: 16, silent_per_address_max: 1 };
        let serving = Serving::start_with(limits, STUBBORN).await;
        // `GET /slow`: the path is a literal without indexing (RFC 7541, 6.2.2).
        let slow = [&[0, 0, 9, 1, 0x5, 0, 0, 0, 1], [0x82, 0x86, 0x04, 5].as_slice(), b"/slow"].concat();
        let mut stream = serving.open(&[HELLO, &slow, &headers(3, 0x5)].concat()).await;
        let mut heard = Vec::new();
        // Streams begin in their order, so the slow request is in flight.
        while !heard.windows(5).any(|bytes| bytes == b"quick") {
            assert!(stream.read_buf(&mut heard).await.unwrap() > 0);
        }
        let _new = serving.open(b"").await;
        assert!(has_goaway(&until_closed(&mut stream, 5).await));
    }

    #[tokio::test]
    async fn a_request_longer_than_the_idle_timeout_is_answered() {
        let serving = Serving::start().await;
        let mut stream = serving.open(b"GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("slow"), "{answer}");
    }

    #[tokio::test]
    async fn a_stop_waits_for_requests_but_not_for_idle_connections() {
        let serving = Serving::start().await;
        let mut busy = serving.open(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let _idle = serving.open(HELLO).await;
        sleep(Duration::from_millis(100)).await;
        serving.stop.send_replace(true);
        let mut answer = String::new();
        busy.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("slow"), "{answer}");
        timeout(Duration::from_secs(5), serving.serving).await.unwrap().unwrap();
    }
}
