//! The threads of a server. One thread accepts connections and passes them in turn to the workers. Each worker is a thread with
//! its own runtime, so a connection stays on one core.
//!
//! If the workers equal the cores, each worker is pinned to a core: the kernel often puts threads that wake each other on one
//! core, while another core is idle.

use std::{
    io,
    net::TcpListener as BoundListener,
    num::NonZero,
    thread::{self, JoinHandle},
    time::Duration,
};

use clock::minute_limit::MinuteLimit;
use config::{ConfigError, within};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Builder,
    sync::{mpsc, watch},
    time::sleep,
};

use crate::connection_table::{ConnectionPlace, ConnectionTable};
use crate::cores;

/// The most worker threads of a server.
const WORKERS_MAX: usize = 240;
/// The most lines within a minute that peers without credentials can cause. The next line has the number of suppressed ones.
const LINES_PER_MINUTE_MAX: u64 = 60;
static DROPPED_LINES: MinuteLimit = MinuteLimit::new(LINES_PER_MINUTE_MAX);
static NOT_ACCEPTED_LINES: MinuteLimit = MinuteLimit::new(LINES_PER_MINUTE_MAX);

/// An accepted connection that waits for its worker. The connection table limits their number.
pub struct Accepted {
    stream: std::net::TcpStream,
    place: ConnectionPlace,
}

impl Accepted {
    /// The connection, registered with the runtime of the worker, and its place in the connection table.
    ///
    /// # Errors
    /// The runtime cannot register the connection.
    pub fn open(self) -> io::Result<(TcpStream, ConnectionPlace)> {
        Ok((TcpStream::from_std(self.stream)?, self.place))
    }
}

/// The number of workers that the key `workers` of a configuration names: 0 for one a core.
///
/// # Errors
/// The number is out of its range.
pub fn worker_count(configured: usize) -> Result<usize, ConfigError> {
    match configured {
        0 => Ok(thread::available_parallelism().map_or(1, NonZero::get)),
        workers => within("workers", workers, 1..=WORKERS_MAX),
    }
}

/// The core of each worker; `None` unless the workers equal the cores.
pub fn cores_of(workers: usize) -> Vec<Option<usize>> {
    match cores::allowed() {
        Ok(cores) if cores.len() == workers => cores.into_iter().map(Some).collect(),
        _ => vec![None; workers],
    }
}

/// Starts a thread with its own runtime, which ends with `work`. With a `core`, the thread is pinned to it.
///
/// # Errors
/// The runtime cannot be built, or the thread cannot be started.
pub fn spawn(
    name: String,
    core: Option<usize>,
    work: impl Future<Output = ()> + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let run = move || {
        if let Some(Err(error)) = core.map(cores::pin_thread_to) {
            tracing::warn!(%error, "a worker cannot be pinned to a core: the kernel places it");
        }
        runtime.block_on(work);
    };
    thread::Builder::new().name(name).spawn(run)
}

/// Accepts connections until `stopped` is true, and passes them to the workers in turn. `listener` is non-blocking.
pub async fn accept(
    listener: BoundListener,
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
                    && worker.try_send(Accepted { stream, place }).is_err()
                    && let Some(suppressed) = DROPPED_LINES.admit()
                {
                    tracing::warn!(suppressed, "a connection was dropped: its worker ended, or its queue is full");
                }
            }
            Err(error) => {
                if let Some(suppressed) = NOT_ACCEPTED_LINES.admit() {
                    tracing::warn!(%error, suppressed, "a connection could not be accepted");
                }
                // Most likely the process has no free file descriptor: wait instead of spinning.
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream as ClientStream};

    use super::*;
    use crate::ConnectionLimits;

    #[tokio::test]
    async fn connections_go_to_the_workers_in_turn() {
        let listener = BoundListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let (senders, mut receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| mpsc::channel(8)).unzip();
        let table = ConnectionTable::new(ConnectionLimits::default());
        let accepting = tokio::spawn(accept(listener, table, senders, stopped));
        for _ in 0..2 {
            for worker in &mut receivers {
                let client = ClientStream::connect(address).unwrap();
                let (stream, _place) = worker.recv().await.unwrap().open().unwrap();
                assert_eq!(stream.peer_addr().unwrap(), client.local_addr().unwrap());
            }
        }
        stop.send_replace(true);
        accepting.await.unwrap();
        assert!(receivers[0].recv().await.is_none());
    }

    #[test]
    fn workers_are_pinned_only_if_they_equal_the_cores() {
        let cores = cores::allowed().unwrap();
        let of_workers = |workers: usize| {
            let (sender, receiver) = std::sync::mpsc::channel();
            for core in cores_of(workers) {
                let sender = sender.clone();
                let work = async move { sender.send(cores::allowed().unwrap()).unwrap() };
                spawn("worker".into(), core, work).unwrap().join().unwrap();
            }
            drop(sender);
            receiver.iter().collect::<Vec<_>>()
        };
        assert_eq!(of_workers(cores.len()), cores.iter().map(|core| vec![*core]).collect::<Vec<_>>());
        assert_eq!(of_workers(cores.len() + 1), vec![cores.clone(); cores.len() + 1]);
    }
}
