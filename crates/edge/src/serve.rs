//! Connections: HTTP/1.1 and HTTP/2, plain or by TLS. Each has so long for its first request, so long between requests,
//! and so long to close: whoever opens many and says nothing keeps nobody out for long.

use std::{
    convert::Infallible,
    io,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{Router, routing::future::RouteFuture};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};
use tower::util::MapFuture;

use super::auth::Authenticated;
use net::{
    ConnectionPlace, ConnectionTable,
    tls::{ServerStream, ServerTls, TlsError},
};

/// The most bytes of headers a request may have.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// How many requests one HTTP/2 connection may have under way.
const STREAMS_MAX: u32 = 256;
/// How long requests under way may take to finish once told to stop.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);
/// How often an HTTP/2 peer is asked whether it is still there, and how long it may take to say so.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a connection may take over what nobody waits for. The handshake of TLS has a bound of its own.
#[derive(Clone, Copy)]
pub(super) struct Times {
    /// From its opening to the end of its first request's headers, and for any request's headers over HTTP/1.1.
    headers: Duration,
    /// Without a request under way, once it has had one.
    idle: Duration,
    /// To end, once told to.
    close: Duration,
}

impl Times {
    /// Those of a serving edge.
    pub(super) const USUAL: Self =
        Self { headers: Duration::from_secs(10), idle: Duration::from_secs(30), close: Duration::from_secs(2) };
}

/// Serves until told to stop.
pub(super) async fn serve(
    listener: TcpListener,
    table: ConnectionTable,
    tls: Option<ServerTls>,
    router: Router,
    times: Times,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // Out of file descriptors, most likely: spinning would not bring any back.
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Some(place) = table.admit(from.ip()).await else { continue };
        let (tls, router, stopped) = (tls.clone(), router.clone(), stopped.clone());
        tokio::spawn(async move {
            let shaken = tokio::select! {
                shaken = handshaken(stream, tls) => shaken,
                () = place.closed() => return,
            };
            match shaken {
                Ok(stream) => converse(stream, Arc::new(place), router, times, stopped).await,
                Err(error) => tracing::info!(%error, "a connection was turned away"),
            }
        });
    }
    if timeout(DRAIN_TIME_MAX, table.emptied()).await.is_err() {
        tracing::warn!(limit = ?DRAIN_TIME_MAX, "requests still under way were cut off");
    }
}

async fn handshaken(stream: TcpStream, tls: Option<ServerTls>) -> Result<ServerStream, TlsError> {
    stream.set_nodelay(true).map_err(|error: io::Error| TlsError::Handshake(error))?;
    match tls {
        Some(tls) => tls.accept(stream).await,
        None => Ok(ServerStream::Plain(stream)),
    }
}

/// Serves one connection to its end: its own, or the one that its times, the connection table or the edge's stop put to it.
/// The first authenticated request settles its place in the table.
async fn converse(
    stream: ServerStream,
    place: Arc<ConnectionPlace>,
    router: Router,
    times: Times,
    mut stopped: watch::Receiver<bool>,
) {
    let usage = Arc::new(Usage::default());
    let (counted, settled) = (Arc::clone(&usage), Arc::clone(&place));
    let service = MapFuture::new(router, move |answer: RouteFuture<Infallible>| {
        let (under_way, settled) = (counted.begin(), Arc::clone(&settled));
        async move {
            let answer = answer.await;
            if matches!(&answer, Ok(answer) if answer.extensions().get::<Authenticated>().is_some()) {
                settled.settle();
            }
            drop(under_way);
            answer
        }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(times.headers).max_buf_size(HEADER_BYTES_MAX as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_TIME_MAX);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)));

    let (mut first, mut later, mut closing) = (times.headers, times.idle, false);
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection ended in disorder");
                }
                return;
            }
            () = usage.quiet(first, later) => if closing {
                return tracing::debug!("a connection was cut off: it did not close when told to");
            },
            _ = stopped.wait_for(|stopped| *stopped), if !closing => {}
            () = place.closed(), if !closing => if usage.is_quiet() {
                return tracing::debug!("the oldest connection without credentials was closed for a new one");
            },
        }
        // A request that crosses this on its way is still answered: only a quiet connection is cut off.
        (first, later, closing) = (times.close, times.close, true);
        usage.renew();
        connection.as_mut().graceful_shutdown();
    }
}

/// How a connection is used.
#[derive(Default)]
struct Usage(Mutex<Used>);

struct Used {
    under_way: usize,
    /// Whether it has had a request at all.
    any: bool,
    /// When the last request ended, or the connection began.
    since: Instant,
}

impl Default for Used {
    fn default() -> Self {
        Self { under_way: 0, any: false, since: Instant::now() }
    }
}

/// A request under way, until dropped.
struct UnderWay(Arc<Usage>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut used = self.0.lock();
        used.under_way = used.under_way.saturating_sub(1);
        used.since = Instant::now();
    }
}

impl Usage {
    fn lock(&self) -> MutexGuard<'_, Used> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>) -> UnderWay {
        let mut used = self.lock();
        used.under_way = used.under_way.saturating_add(1);
        used.any = true;
        UnderWay(Arc::clone(self))
    }

    fn renew(&self) {
        self.lock().since = Instant::now();
    }

    /// Whether no request is under way.
    fn is_quiet(&self) -> bool {
        self.lock().under_way == 0
    }

    /// Returns once no request has been under way for so long: one time before the first request, another after it.
    async fn quiet(&self, first: Duration, later: Duration) {
        while let Some(left) = self.left(first, later) {
            sleep(left).await;
        }
    }

    /// How long it may stay quiet yet; none where it has been for too long.
    fn left(&self, first: Duration, later: Duration) -> Option<Duration> {
        let used = self.lock();
        let limit = if used.any { later } else { first };
        if used.under_way > 0 {
            return Some(limit);
        }
        limit.checked_sub(used.since.elapsed()).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use net::ConnectionLimits;

    const SHORT: Times = Times {
        headers: Duration::from_millis(300),
        idle: Duration::from_millis(1_000),
        close: Duration::from_millis(200),
    };
    /// An HTTP/2 client's first words: the preface, and empty SETTINGS.
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
            let serving = tokio::spawn(serve(listener, ConnectionTable::new(limits), None, router, SHORT, stopped));
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

    /// Whether the other side closes it, told or cut, well before any usual time is over.
    async fn is_closed(stream: &mut TcpStream) -> bool {
        let mut heard = [0; 1024];
        let closed = async { while !matches!(stream.read(&mut heard).await, Ok(0) | Err(_)) {} };
        timeout(Duration::from_secs(5), closed).await.is_ok()
    }

    #[tokio::test]
    async fn a_connection_that_says_nothing_or_not_enough_is_closed() {
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
    async fn a_connection_that_has_been_used_is_closed_once_idle() {
        let serving = Serving::start().await;
        for words in [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), [HELLO, &headers(1, 0x5)].concat()] {
            let mut stream = serving.open(&words).await;
            assert!(is_closed(&mut stream).await, "an idle connection stays open");
        }
    }

    #[tokio::test]
    async fn an_unauthenticated_connection_gives_way_even_after_a_request() {
        let serving = Serving::start_within(ConnectionLimits { connections_max: 16, silent_per_address_max: 1 }).await;
        let mut first = serving.open(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(first.read(&mut [0; 1024]).await.unwrap() > 0);
        let mut second = serving.open(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(second.read(&mut [0; 1024]).await.unwrap() > 0);
        assert!(is_closed(&mut first).await);
    }

    #[tokio::test]
    async fn a_request_under_way_is_answered_before_its_connection_gives_way() {
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
        // Its answers, and no GOAWAY: a frame of type 7 on stream 0.
        let mut heard = vec![0; 4096];
        let length = stream.read(&mut heard).await.unwrap();
        heard.truncate(length);
        assert_eq!(heard.windows(5).filter(|bytes| *bytes == b"quick").count(), 10);
        assert!(!heard.windows(6).any(|bytes| bytes == [7, 0, 0, 0, 0, 0]), "told to go while in use");
        stream.write_all(&headers(21, 0x5)).await.unwrap();
        assert!(stream.read(&mut [0; 64]).await.unwrap() > 0);
    }

    #[tokio::test]
    async fn a_request_that_takes_longer_than_a_connection_may_be_idle_is_answered() {
        let serving = Serving::start().await;
        let mut stream = serving.open(b"GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("slow"), "{answer}");
    }

    #[tokio::test]
    async fn a_stop_waits_for_a_request_under_way_and_for_no_idle_connection() {
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
