//! The gRPC server: its connections, each on one worker thread.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, thread::JoinHandle, time::Duration};

use http::Request;
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use thiserror::Error;
use tokio::{
    io::AsyncReadExt,
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{body::Body, service::Routes, transport::server::Connected};
use tower::util::MapRequest;

use net::{
    ConnectionAge, ConnectionLimits, ConnectionTable,
    serving_threads::{Accepted, accept, cores_of, spawn},
    tls::{self, Http2Stream, ServerTls},
};

/// The most bytes of headers of one request.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// The interval and the timeout of HTTP/2 PING frames. Without them, a connection whose peer is gone would stay open.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIME_MAX: Duration = Duration::from_secs(10);
/// The longest time for a client to close its connection after GOAWAY and the last answer.
const LINGER_TIME_MAX: Duration = Duration::from_secs(2);
/// The longest time for the calls in flight to finish when the server stops.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// The most files that the embedded store keeps open: fjall caches 900, and has journals and locks.
const STORE_FILES_MAX: usize = 1_024;

/// The settings of a gRPC server.
#[derive(Clone)]
pub struct ServingSettings {
    /// The address of the listener.
    pub listen: SocketAddr,
    /// Mutual TLS; `None` is allowed on loopback only.
    pub tls: Option<ServerTls>,
    /// The number of worker threads.
    pub workers: usize,
    /// The timeout of one call.
    pub call_timeout: Duration,
    /// The most calls in flight on one connection.
    pub calls_per_connection_max: u32,
    /// The limits on the connections of all workers together.
    pub connections: ConnectionLimits,
    /// The age at which a connection gets no more calls.
    pub connection_age: ConnectionAge,
}

/// When the streamed answers of a connection end. The extensions of each request have this value.
#[derive(Clone)]
pub(super) struct StreamsEnd {
    pub(super) at: Instant,
    pub(super) hold: ConnectionHold,
    /// The place of the one stream of calls that a connection may have at a time: more streams would multiply
    /// `calls_per_connection_max`.
    pub(super) exchange: Arc<Semaphore>,
}

/// A connection is not aborted while a call has this. A response with this in its extensions does not end at the age of its
/// connection: the call must end by itself, even if its client does not read.
#[derive(Clone, Default)]
pub(super) struct ConnectionHold {
    /// Whether the connection drains. `None` without a connection.
    drains: Option<watch::Receiver<bool>>,
}

impl ConnectionHold {
    /// Returns once the connection drains: at its age, or when the server stops. Its client has GOAWAY or gets it.
    pub(super) async fn until_drained(&mut self) {
        match &mut self.drains {
            // The connection has ended where its sender is dropped.
            Some(drains) => drop(drains.wait_for(|drains| *drains).await),
            None => std::future::pending().await,
        }
    }
}

/// A running gRPC server.
pub struct Serving {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl Serving {
    /// Binds the listener and starts the threads. `routes` makes the services of each worker.
    ///
    /// # Errors
    /// The address cannot be bound, or a thread cannot be started.
    pub fn start(settings: &ServingSettings, mut routes: impl FnMut() -> Routes) -> Result<Self, ServingError> {
        let listen_error = |error| ServingError::Listen { address: settings.listen, error };
        let listener = std::net::TcpListener::bind(settings.listen).map_err(listen_error)?;
        listener.set_nonblocking(true).map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;

        let table = ConnectionTable::beside_files(settings.connections, STORE_FILES_MAX);
        let (stop, stopped) = watch::channel(false);
        let mut threads = Vec::with_capacity(settings.workers.saturating_add(1));
        let mut workers = Vec::with_capacity(settings.workers);
        for (number, core) in cores_of(settings.workers).into_iter().enumerate() {
            let (to_worker, accepted) = mpsc::channel(settings.connections.connections_max);
            let serving = serve(routes(), accepted, settings.clone(), stopped.clone());
            threads.push(spawn(format!("serve-{number}"), core, serving).map_err(ServingError::Thread)?);
            workers.push(to_worker);
        }
        let accepting = accept(listener, table, workers, stopped);
        threads.push(spawn("accept".into(), None, accepting).map_err(ServingError::Thread)?);
        Ok(Self { address, stop, threads })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting connections and waits for the calls in flight.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let mut threads = self.threads.into_iter();
        let joined = tokio::task::spawn_blocking(move || threads.try_for_each(JoinHandle::join));
        if !matches!(joined.await, Ok(Ok(()))) {
            tracing::error!("a thread of the server panicked");
        }
    }
}

/// The error of a server that does not start.
#[derive(Debug, Error)]
pub enum ServingError {
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {error}; choose a free local address in `listen`")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// The error of the operating system.
        error: io::Error,
    },
    /// A thread or its runtime could not be started.
    #[error("cannot start a thread: {0}; check the limits on processes and memory")]
    Thread(io::Error),
}

/// Serves the connections of one worker until the server stops and the calls in flight have finished.
async fn serve(
    routes: Routes,
    accepted: mpsc::Receiver<Accepted>,
    settings: ServingSettings,
    mut stopped: watch::Receiver<bool>,
) {
    let streams = ReceiverStream::new(accepted).filter_map(|accepted| accepted.open().ok());
    let mut streams = Box::pin(tls::accept_http2(streams, settings.tls.clone()));
    let (routes, mut connections, of_connection) = (routes.prepare(), JoinSet::new(), stopped.clone());
    loop {
        tokio::select! {
            Some(Ok(stream)) = streams.next() => {
                connections.spawn(serve_connection(stream, routes.clone(), settings.clone(), of_connection.clone()));
            }
            Some(ended) = connections.join_next() => if ended.is_err() {
                tracing::error!("the task of a connection panicked");
            },
            _ = stopped.wait_for(|stopped| *stopped) => break,
        }
    }
    // A client whose connection is not served yet uses another engine at once.
    drop(streams);
    let drained = async { while connections.join_next().await.is_some() {} };
    if timeout(DRAIN_TIME_MAX, drained).await.is_err() {
        tracing::warn!(limit = ?DRAIN_TIME_MAX, "calls in flight were aborted: they did not finish in time");
    }
}

/// Serves one connection. At its age, or when the server stops, the client gets GOAWAY, and the calls in flight finish.
///
/// tonic's own server has no such end: with `max_connection_age_grace` it sends no GOAWAY, and aborts calls in flight (tonic
/// 0.14); without, a stream keeps the connection open.
async fn serve_connection(
    mut stream: Http2Stream,
    routes: Routes,
    settings: ServingSettings,
    mut stopped: watch::Receiver<bool>,
) {
    let age = settings.connection_age.of_one_connection();
    // A call that begins last has its whole time.
    let streams_end = Instant::now() + age + settings.call_timeout;
    let peer = stream.connect_info();
    let holds = Arc::new(watch::Sender::new(false));
    let exchange = Arc::new(Semaphore::new(1));
    let held = Arc::clone(&holds);
    let service = MapRequest::new(routes, move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let hold = ConnectionHold { drains: Some(held.subscribe()) };
        request.extensions_mut().insert(StreamsEnd { at: streams_end, hold, exchange: Arc::clone(&exchange) });
        request.map(Body::new)
    });
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.calls_per_connection_max)
        .keep_alive_interval(KEEP_ALIVE_EVERY)
        .keep_alive_timeout(KEEP_ALIVE_TIME_MAX)
        .max_header_list_size(HEADER_BYTES_MAX);
    {
        let mut connection = pin!(http2.serve_connection(TokioIo::new(&mut stream), TowerToHyperService::new(service)));
        tokio::select! {
            ended = connection.as_mut() => return report_end(ended),
            () = sleep(age) => tracing::debug!("a connection reached its maximum age"),
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
        connection.as_mut().graceful_shutdown();
        holds.send_replace(true);
        let drained = async {
            sleep_until(streams_end).await;
            holds.closed().await;
            sleep(DRAIN_TIME_MAX).await;
        };
        tokio::select! {
            ended = connection => report_end(ended),
            () = drained => {
                tracing::warn!("a connection was aborted after its maximum age: its client did not read the answers");
                return;
            }
        }
    }
    // A socket that is closed with unread bytes sends a reset. The client of a call that crossed the GOAWAY could lose the
    // GOAWAY by it, and not know that the call was not processed.
    let mut rest = [0; 4_096];
    let read = async { while matches!(stream.read(&mut rest).await, Ok(1..)) {} };
    let _is_late = timeout(LINGER_TIME_MAX, read).await.is_err();
}

fn report_end(ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection failed");
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::ready, task::Poll};

    use bytes::Bytes;
    use http::Response;
    use http_body::Frame;
    use http_body_util::{BodyExt, Full, StreamBody};
    use tonic::{Status, server::NamedService};
    use tower::Service;

    use super::*;
    use crate::call_rules::{CallRules, RequestBody, Streams};
    use net::{EngineChannel, connect::channel};

    /// Streams one frame, when its connection would be aborted without a hold.
    #[derive(Clone)]
    struct LateFrame;

    impl NamedService for LateFrame {
        const NAME: &'static str = "test.LateFrame";
    }

    impl Service<Request<RequestBody>> for LateFrame {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
            let StreamsEnd { at, hold, .. } = request.extensions().get::<StreamsEnd>().unwrap().clone();
            let of_task = hold.clone();
            let (frames, stream) = mpsc::channel(1);
            tokio::spawn(async move {
                sleep_until(at + DRAIN_TIME_MAX + Duration::from_secs(1)).await;
                frames.send(Ok::<_, Status>(Frame::data(Bytes::from_static(b"late")))).await.unwrap();
                drop(of_task);
            });
            let mut response = Response::new(Body::new(StreamBody::new(ReceiverStream::new(stream))));
            response.extensions_mut().insert(hold);
            ready(Ok(response))
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_call_with_a_hold_outlives_the_age_of_its_connection() {
        let settings = ServingSettings {
            listen: ([127, 0, 0, 1], 0).into(),
            tls: None,
            workers: 1,
            call_timeout: Duration::from_millis(100),
            calls_per_connection_max: 8,
            connections: ConnectionLimits::default(),
            connection_age: ConnectionAge::from_seconds(1).unwrap(),
        };
        let routes = || Routes::new(CallRules::new(LateFrame, settings.call_timeout, Streams::Responses));
        let serving = Serving::start(&settings, routes).unwrap();
        let address = format!("http://{}", serving.address()).parse().unwrap();
        let mut connection = EngineChannel::from(channel(&address, None).unwrap());
        let request = Request::post("/test.LateFrame/Stream").header("content-type", "application/grpc");
        let request = request.body(Body::new(Full::from(&[0; 5][..]))).unwrap();
        let answer = connection.call(request).await.unwrap();
        let read = answer.into_body().collect().await.unwrap();
        assert_eq!(read.trailers(), None);
        assert_eq!(read.to_bytes(), "late");
        serving.stop().await;
    }
}
