//! The threads of the gRPC server. One thread accepts connections and passes them in turn to the workers. Each worker is a
//! thread with its own runtime, so a connection stays on one core.
//!
//! If the workers equal the cores, each worker is pinned to a core: the kernel often puts threads that wake each other on
//! one core, while another core is idle.

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

use net::{
    ConnectionLimits, ConnectionPlace, ConnectionTable, cores,
    tls::{self, ServerTls},
};

/// The most bytes of headers of one request.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// The interval and the timeout of HTTP/2 PING frames. Without them, a connection whose peer is gone would stay open.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIME_MAX: Duration = Duration::from_secs(10);
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
}

/// An accepted connection that waits for its worker. The connection table limits their number.
type Accepted = (std::net::TcpStream, ConnectionPlace);

/// A running gRPC server.
pub struct Serving {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl Serving {
    /// Binds the listener and starts the threads. `route` adds the services to the server of each worker.
    ///
    /// # Errors
    /// The address cannot be bound, or a thread cannot be started.
    pub fn start(settings: &ServingSettings, mut route: impl FnMut(Server) -> Router) -> Result<Self, ServingError> {
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
            let server = Server::builder()
                .tcp_nodelay(true)
                .timeout(settings.call_timeout)
                .max_concurrent_streams(settings.calls_per_connection_max)
                .http2_keepalive_interval(Some(KEEP_ALIVE_EVERY))
                .http2_keepalive_timeout(Some(KEEP_ALIVE_TIME_MAX))
                .http2_max_header_list_size(HEADER_BYTES_MAX);
            let serving = serve(route(server), accepted, settings.tls.clone(), stopped.clone());
            threads.push(spawn(format!("serve-{number}"), core, serving)?);
            workers.push(to_worker);
        }
        threads.push(spawn("accept".into(), None, accept(listener, table, workers, stopped))?);
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

/// The core of each worker; `None` unless the workers equal the cores.
fn cores_of(workers: usize) -> Vec<Option<usize>> {
    match cores::allowed() {
        Ok(cores) if cores.len() == workers => cores.into_iter().map(Some).collect(),
        _ => vec![None; workers],
    }
}

/// Starts a thread with its own runtime, which ends with `work`.
fn spawn(
    name: String,
    core: Option<usize>,
    work: impl Future<Output = ()> + Send + 'static,
) -> Result<JoinHandle<()>, ServingError> {
    let runtime = Builder::new_current_thread().enable_all().build().map_err(ServingError::Thread)?;
    let run = move || {
        if let Some(Err(error)) = core.map(cores::pin_thread_to) {
            tracing::warn!(%error, "a worker cannot be pinned to a core: the kernel places it");
        }
        runtime.block_on(work);
    };
    thread::Builder::new().name(name).spawn(run).map_err(ServingError::Thread)
}

/// Accepts connections until the server stops, and passes them to the workers in turn.
async fn accept(
    listener: std::net::TcpListener,
    table: ConnectionTable,
    workers: Vec<mpsc::Sender<Accepted>>,
    mut stopped: watch::Receiver<bool>,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the listener cannot be registered with the runtime"),
    };
    for worker in workers.iter().cycle() {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => return,
        };
        match accepted.and_then(|(stream, from)| Ok((stream.into_std()?, from.ip()))) {
            Ok((stream, address)) => {
                if let Some(place) = table.admit(address).await
                    && worker.try_send((stream, place)).is_err()
                {
                    tracing::warn!("a connection was dropped: its worker ended, or its queue is full");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // Most likely the process has no free file descriptor: wait instead of spinning.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Serves the connections of one worker until the server stops and the calls in flight have finished.
async fn serve(
    router: Router,
    accepted: mpsc::Receiver<Accepted>,
    tls: Option<ServerTls>,
    mut stopped: watch::Receiver<bool>,
) {
    let streams =
        ReceiverStream::new(accepted).filter_map(|(stream, place)| Some((TcpStream::from_std(stream).ok()?, place)));
    let mut shutdown = stopped.clone();
    let served = router.serve_with_incoming_shutdown(tls::accept_http2(streams, tls), async move {
        let _ = shutdown.wait_for(|stopped| *stopped).await;
    });
    let drained = async {
        let _ = stopped.wait_for(|stopped| *stopped).await;
        tokio::time::sleep(DRAIN_TIME_MAX).await;
    };
    tokio::select! {
        result = served => if let Err(error) = result {
            tracing::error!(%error, "a worker of the server failed");
        },
        () = drained => tracing::warn!(limit = ?DRAIN_TIME_MAX, "calls in flight were aborted: they did not finish in time"),
    }
}
