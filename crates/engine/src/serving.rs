//! Connections and threads: one thread accepts and deals the connections out in turn to workers, each a thread with a
//! runtime of its own, so that a connection stays on one core and no port is shared with another process.
//!
//! Where there are as many workers as cores, each has a core of its own and stays on it: left to itself the kernel often
//! puts threads that wake one another on one core, to wait for each other, while the next core is idle.

use std::{
    io,
    net::SocketAddr,
    thread::{self, JoinHandle},
    time::Duration,
};

use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Builder,
    sync::{mpsc, watch},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::transport::{Server, server::Router};

use net::cores;
use net::{
    ConnectionLimits, ConnectionPlace, ConnectionTable,
    tls::{self, ServerTls},
};

/// The most bytes of headers a request may have.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// How long a quiet connection is trusted before its peer is asked for a sign of life, and how long that may take: one that
/// went without a word would hold its place for ever.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIME_MAX: Duration = Duration::from_secs(10);
/// How long calls in flight may take to finish once told to stop.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// How a server serves.
#[derive(Clone)]
pub struct ServingSettings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Mutual TLS; none on loopback alone.
    pub tls: Option<ServerTls>,
    /// How many threads serve.
    pub workers: usize,
    /// How long one call may take.
    pub call_timeout: Duration,
    /// How many calls one connection may have in flight.
    pub calls_per_connection_max: u32,
    /// How many connections all threads together may have.
    pub connections: ConnectionLimits,
}

/// An accepted connection on its way to a worker. The connection table bounds how many there are.
type Dealt = (std::net::TcpStream, ConnectionPlace);

/// A gRPC server at work.
pub struct Serving {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl Serving {
    /// Listens and serves what `route` adds to each worker's server.
    pub fn start(settings: &ServingSettings, mut route: impl FnMut(Server) -> Router) -> Result<Self, ServingError> {
        let listen_error = |error| ServingError::Listen { address: settings.listen, error };
        let listener = std::net::TcpListener::bind(settings.listen).map_err(listen_error)?;
        listener.set_nonblocking(true).map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;

        let table = ConnectionTable::new(settings.connections);
        let (stop, stopped) = watch::channel(false);
        let mut threads = Vec::with_capacity(settings.workers.saturating_add(1));
        let mut hands = Vec::with_capacity(settings.workers);
        for (number, core) in places(settings.workers).into_iter().enumerate() {
            let (hand, dealt) = mpsc::channel(settings.connections.connections_max);
            let server = Server::builder()
                .tcp_nodelay(true)
                .timeout(settings.call_timeout)
                .max_concurrent_streams(settings.calls_per_connection_max)
                .http2_keepalive_interval(Some(KEEP_ALIVE_EVERY))
                .http2_keepalive_timeout(Some(KEEP_ALIVE_TIME_MAX))
                .http2_max_header_list_size(HEADER_BYTES_MAX);
            let worker = serve(route(server), dealt, settings.tls.clone(), stopped.clone());
            threads.push(spawn(format!("serve-{number}"), core, worker)?);
            hands.push(hand);
        }
        threads.push(spawn("accept".into(), None, accept(listener, table, hands, stopped))?);
        Ok(Self { address, stop, threads })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections and lets calls in flight finish.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let mut threads = self.threads.into_iter();
        let joined = tokio::task::spawn_blocking(move || threads.try_for_each(JoinHandle::join));
        if !matches!(joined.await, Ok(Ok(()))) {
            tracing::error!("a thread of the server had panicked");
        }
    }
}

/// Why a server did not start.
#[derive(Debug, Error)]
pub enum ServingError {
    /// It can't listen there.
    #[error("can't listen on {address}: {error}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// A thread or its runtime could not be made.
    #[error("can't start a thread: {0}")]
    Thread(io::Error),
}

/// The core each worker stays on; none where there is not just one for each.
fn places(workers: usize) -> Vec<Option<usize>> {
    match cores::allowed() {
        Ok(cores) if cores.len() == workers => cores.into_iter().map(Some).collect(),
        _ => vec![None; workers],
    }
}

/// A thread with a runtime of its own, for as long as `work` takes.
fn spawn(
    name: String,
    core: Option<usize>,
    work: impl Future<Output = ()> + Send + 'static,
) -> Result<JoinHandle<()>, ServingError> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(ServingError::Thread)?;
    let run = move || {
        if let Some(Err(error)) = core.map(cores::pin_thread_to) {
            tracing::warn!(%error, "a worker can't stay on a core of its own: the kernel places it");
        }
        runtime.block_on(work);
    };
    thread::Builder::new().name(name).spawn(run).map_err(ServingError::Thread)
}

/// Accepts until told to stop, and deals the connections out in turn.
async fn accept(
    listener: std::net::TcpListener,
    table: ConnectionTable,
    hands: Vec<mpsc::Sender<Dealt>>,
    mut stopped: watch::Receiver<bool>,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "can't listen"),
    };
    for hand in hands.iter().cycle() {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => return,
        };
        match accepted.and_then(|(stream, from)| Ok((stream.into_std()?, from.ip()))) {
            Ok((stream, address)) => {
                if let Some(place) = table.admit(address).await
                    && hand.try_send((stream, place)).is_err()
                {
                    tracing::warn!(
                        "a connection was dropped: its worker has ended, or as many wait for it as may be open"
                    );
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // Out of file descriptors, most likely: spinning would not bring any back.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Serves the connections dealt to one worker until told to stop and the calls in flight are done.
async fn serve(
    router: Router,
    dealt: mpsc::Receiver<Dealt>,
    tls: Option<ServerTls>,
    mut stopped: watch::Receiver<bool>,
) {
    let streams =
        ReceiverStream::new(dealt).filter_map(|(stream, place)| Some((TcpStream::from_std(stream).ok()?, place)));
    let mut ending = stopped.clone();
    let served = router.serve_with_incoming_shutdown(tls::accept_http2(streams, tls), async move {
        let _ = ending.wait_for(|stopped| *stopped).await;
    });
    let drained = async {
        let _ = stopped.wait_for(|stopped| *stopped).await;
        tokio::time::sleep(DRAIN_TIME_MAX).await;
    };
    tokio::select! {
        result = served => if let Err(error) = result {
            tracing::error!(%error, "a worker of the server failed");
        },
        () = drained => tracing::warn!(limit = ?DRAIN_TIME_MAX, "calls still in flight were cut off"),
    }
}
