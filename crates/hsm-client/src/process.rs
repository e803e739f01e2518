//! The boundary's process: started, welcomed, watched, and started again when it ends or hangs.

use std::{
    ffi::OsString,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use hsm_protocol::{
    KeyId, Request, Status, UnavailableReason,
    frame::{self, Welcome},
};
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{AbsentKeys, BoundaryError, ProcessConfig, connection::Connection, inherit, succession::succeeds};

/// How long it may take to open its keys: Argon2id and a slow token's login among it.
const WELCOME_TIME_MAX: Duration = Duration::from_secs(60);
/// The period of the check that the process answers.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// The first pause before it is started again, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// One that served for so long is started again at once.
const STEADY: Duration = Duration::from_millis(100);
/// How long it may take to end once its connections are closed.
const END_TIME_MAX: Duration = Duration::from_secs(3);

/// How long calls that one process was asked may take to be answered before the next has its place.
const HAND_OVER_TIME_MAX: Duration = Duration::from_secs(4);
/// How often it is looked whether they were.
const HANDED_OVER_EVERY: Duration = Duration::from_millis(5);

/// uid 0. A socket may have been created by root before it dropped to hsm_user, so root is accepted as its owner.
const ROOT_UID: u32 = 0;

/// The supervised process of the boundary.
pub(super) struct Process {
    connections: Vec<Arc<Connection>>,
    /// The socket of a process that runs apart.
    apart: Option<PathBuf>,
    want: mpsc::Sender<Reply>,
    stop: watch::Sender<bool>,
    supervisor: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

/// The connections that the supervisor watches.
struct Watched {
    connections: Vec<Arc<Connection>>,
    watcher: Arc<Connection>,
    lost: watch::Receiver<u64>,
}

/// One started process and its sockets.
struct Generation {
    /// 1, 2, 3 …
    number: u64,
    began: Instant,
    child: Option<Child>,
    /// The process ends when this end closes.
    _parent_end: Option<UnixStream>,
    streams: Vec<UnixStream>,
    status: Status,
}

impl Process {
    /// Starts it and waits for its welcome.
    pub(super) async fn start(
        source: ProcessConfig,
        connections: usize,
        absent: AbsentKeys,
    ) -> Result<(Arc<Self>, watch::Receiver<Arc<Status>>), BoundaryError> {
        let (lose, lost) = watch::channel(0);
        let lose = Arc::new(lose);
        let connection = || Connection::new(Arc::clone(&lose));
        let connections: Vec<_> = (0..connections.max(1)).map(|_| connection()).collect();
        // One more than the threads have, to ask whether it is there.
        let watcher = connection();
        let all: Vec<_> = connections.iter().cloned().chain([Arc::clone(&watcher)]).collect();
        let mut generation = begin(&source, all.len(), 1, absent).await?;
        connect(&all, &mut generation);
        let (stop, stopped) = watch::channel(false);
        let (publish, status) = watch::channel(Arc::new(generation.status.clone()));
        let (want, wanted) = mpsc::channel(1);
        let apart = match &source {
            ProcessConfig::Started { .. } => None,
            ProcessConfig::Apart { socket, .. } => Some(socket.clone()),
        };
        let watched = Watched { connections: all, watcher, lost };
        let supervised = Supervised { source: Arc::new(source), status: publish, wanted, pin_refused: false };
        let supervisor = tokio::spawn(supervise(supervised, watched, generation, stopped));
        let process = Self { connections, apart, want, stop, supervisor: tokio::sync::Mutex::new(Some(supervisor)) };
        Ok((Arc::new(process), status))
    }

    pub(super) fn connection(&self, number: usize) -> Option<Arc<Connection>> {
        self.connections.get(number % self.connections.len().max(1)).cloned()
    }

    /// Lets another take its place, which opens the keys as they are now.
    pub(super) async fn renew(&self) -> Result<(), BoundaryError> {
        if let Some(path) = &self.apart {
            return Err(BoundaryError::ReloadApart { path: path.clone() });
        }
        let (reply, renewed) = oneshot::channel();
        self.want.send(reply).await.map_err(|_| BoundaryError::Stopping)?;
        renewed.await.unwrap_or(Err(BoundaryError::Stopping))
    }

    /// Ends it, and waits until it has ended.
    pub(super) async fn close(&self) {
        self.stop.send_replace(true);
        if let Some(supervisor) = self.supervisor.lock().await.take() {
            let _ = supervisor.await;
        }
    }
}

fn connect(connections: &[Arc<Connection>], generation: &mut Generation) {
    connections
        .iter()
        .zip(generation.streams.drain(..))
        .for_each(|(connection, stream)| connection.connect(generation.number, stream));
}

/// A caller that waits for a reload.
type Reply = oneshot::Sender<Result<(), BoundaryError>>;

/// The supervisor's configuration, the status that it publishes, and the requests to reload.
struct Supervised {
    source: Arc<ProcessConfig>,
    status: watch::Sender<Arc<Status>>,
    wanted: mpsc::Receiver<Reply>,
    /// Whether the token refused the user PIN at the last try.
    pin_refused: bool,
}

/// Another process that is opening the keys while the one before it serves.
struct Succession {
    next: JoinHandle<Result<Generation, BoundaryError>>,
    reply: Reply,
}

/// Why a process no longer serves.
enum Left {
    /// The process is lost; a caller that asked for a reload waits for the process that replaces it.
    Lost { why: &'static str, asked: Option<Reply> },
    /// It is no longer wanted.
    Stopped,
}

/// Keeps one process running until a stop is requested.
async fn supervise(
    mut supervised: Supervised,
    mut watched: Watched,
    mut generation: Generation,
    mut stopped: watch::Receiver<bool>,
) {
    let connections = watched.connections.clone();
    let mut pause = PAUSE_MIN;
    loop {
        let left = serve(&mut supervised, &mut watched, &mut generation, &mut stopped).await;
        connections.iter().for_each(|connection| connection.disconnect());
        let mut asked = match left {
            Left::Stopped => return end(generation).await,
            Left::Lost { why, asked } => {
                tracing::error!(why, "the boundary's process is lost: starting it again");
                asked
            }
        };
        kill(&mut generation).await;
        if generation.began.elapsed() >= STEADY {
            pause = PAUSE_MIN;
        }
        generation = loop {
            let attempt = async {
                tokio::select! {
                    // Each start is a login: after a refused PIN none is tried before a reload asks for it.
                    () = sleep(pause), if !supervised.pin_refused || asked.is_some() => {}
                    // An operator asks for a reload after a repair.
                    Some(reply) = supervised.wanted.recv(), if asked.is_none() => asked = Some(reply),
                    // No caller is left: the engine stops.
                    else => std::future::pending().await,
                }
                successor(
                    Arc::clone(&supervised.source),
                    generation.number,
                    generation.status.keys().to_vec(),
                    connections.len(),
                )
                .await
            };
            let started = tokio::select! {
                started = attempt => started,
                () = stop_requested(&mut stopped) => return,
            };
            pause = (pause * 2).min(PAUSE_MAX);
            match started {
                Ok(generation) => break generation,
                Err(error) => {
                    supervised.pin_refused = error.refuses_user_pin();
                    if supervised.pin_refused {
                        tracing::error!(%error, "the boundary's process is not started again before a reload (SIGHUP)");
                    } else {
                        tracing::error!(%error, "the boundary's process did not start");
                    }
                    answer(asked.take(), Err(error));
                }
            }
        };
        supervised.pin_refused = false;
        supervised.status.send_replace(Arc::new(generation.status.clone()));
        connect(&connections, &mut generation);
        tracing::info!("the boundary's process is back");
        answer(asked, Ok(()));
    }
}

/// Watches the process, and whichever comes in its place, until one is lost or none is wanted.
async fn serve(
    supervised: &mut Supervised,
    watched: &mut Watched,
    generation: &mut Generation,
    stopped: &mut watch::Receiver<bool>,
) -> Left {
    let mut succession: Option<Succession> = None;
    loop {
        let nobody_comes = succession.is_none();
        let opened = async {
            match &mut succession {
                Some(succession) => (&mut succession.next).await,
                None => std::future::pending().await,
            }
        };
        let next = tokio::select! {
            why = ending(generation, watched, &supervised.source, &mut supervised.pin_refused) => {
                let asked = succession.map(|Succession { next, reply }| {
                    next.abort();
                    reply
                });
                return Left::Lost { why, asked };
            }
            () = stop_requested(stopped) => {
                succession.iter().for_each(|succession| succession.next.abort());
                return Left::Stopped;
            }
            next = opened => next,
            Some(reply) = supervised.wanted.recv(), if nobody_comes => {
                let (source, keys) = (Arc::clone(&supervised.source), generation.status.keys().to_vec());
                let next = tokio::spawn(successor(source, generation.number, keys, watched.connections.len()));
                succession = Some(Succession { next, reply });
                continue;
            }
        };
        let Some(Succession { reply, .. }) = succession.take() else { continue };
        match next.unwrap_or(Err(BoundaryError::Stopping)) {
            Ok(next) => {
                supervised.pin_refused = false;
                let before = std::mem::replace(generation, next);
                hand_over(&watched.connections, generation, &supervised.status);
                tokio::spawn(leave(
                    watched.connections.clone(),
                    before,
                    KeyId::list_to_text(generation.status.keys()),
                    reply,
                ));
            }
            Err(error) => {
                supervised.pin_refused = error.refuses_user_pin();
                answer(Some(reply), Err(error));
            }
        }
    }
}

/// The caller may have stopped waiting.
fn answer(asked: Option<Reply>, outcome: Result<(), BoundaryError>) {
    if let Some(reply) = asked {
        let _ = reply.send(outcome);
    }
}

/// Another process after one of this number, where its keys allow that.
async fn successor(
    source: Arc<ProcessConfig>,
    number: u64,
    keys_before: Vec<KeyId>,
    connections: usize,
) -> Result<Generation, BoundaryError> {
    let mut generation = begin(&source, connections, number + 1, AbsentKeys::Refuse).await?;
    let Err(mismatch) = succeeds(&keys_before, generation.status.keys()) else { return Ok(generation) };
    kill(&mut generation).await;
    Err(BoundaryError::OtherKeys(mismatch))
}

/// Lets every connection lead to the next process once the one before has answered what it was asked.
fn hand_over(connections: &[Arc<Connection>], next: &mut Generation, status: &watch::Sender<Arc<Status>>) {
    // Published first: an audit event made after the boundary's answer names the keys that it may have used.
    status.send_replace(Arc::new(next.status.clone()));
    connections
        .iter()
        .zip(next.streams.drain(..))
        .for_each(|(connection, stream)| connection.replace(next.number, stream));
}

/// Lets the process before end once no connection needs it any more.
async fn leave(connections: Vec<Arc<Connection>>, before: Generation, keys: String, reply: Reply) {
    let all = async {
        while connections.iter().any(|connection| connection.is_being_handed_over()) {
            sleep(HANDED_OVER_EVERY).await;
        }
    };
    // What takes longer has no caller any more.
    let _ = timeout(HAND_OVER_TIME_MAX, all).await;
    tracing::info!(keys, "the boundary has reloaded its keys");
    answer(Some(reply), Ok(()));
    end(before).await;
}

async fn stop_requested(stopped: &mut watch::Receiver<bool>) {
    drop(stopped.wait_for(|stopped| *stopped).await);
}

/// Waits until the process has ended, has lost a connection or answers no more; returns which of these, for the log. Sets
/// `pin_refused` when a started process answers that its token refused the user PIN: another start would log in again.
async fn ending(
    generation: &mut Generation,
    Watched { watcher, lost, .. }: &mut Watched,
    source: &ProcessConfig,
    pin_refused: &mut bool,
) -> &'static str {
    let number = generation.number;
    let connection_lost = async {
        drop(lost.wait_for(|lost| *lost >= number).await);
        "a connection to it ended"
    };
    let silent = async {
        loop {
            sleep(WATCH_EVERY).await;
            // A process whose token is away answers; a process that hangs does not.
            match watcher.execute(&Request::Check).await {
                Err(hsm_protocol::Error::Unavailable { reason }) if reason.is_of_the_process() => {
                    return "it does not answer";
                }
                // A process that runs apart is started by others: to connect to it again is no login.
                Err(hsm_protocol::Error::Unavailable { reason: UnavailableReason::UserPinRefused })
                    if matches!(source, ProcessConfig::Started { .. }) && !*pin_refused =>
                {
                    *pin_refused = true;
                    tracing::error!("the token refused the user PIN: put it right, then reload (SIGHUP)");
                }
                _ => {}
            }
        }
    };
    let ended = async {
        match &mut generation.child {
            Some(child) => drop(child.wait().await),
            None => std::future::pending().await,
        }
        "it ended"
    };
    tokio::select! {
        biased;
        why = ended => why,
        why = connection_lost => why,
        why = silent => why,
    }
}

async fn kill(generation: &mut Generation) {
    if let Some(child) = &mut generation.child {
        let _ = child.kill().await;
    }
}

/// Lets it end by itself, for a while.
async fn end(generation: Generation) {
    let Generation { child, _parent_end: parent_end, .. } = generation;
    drop(parent_end);
    let Some(mut child) = child else { return };
    if timeout(END_TIME_MAX, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// Starts the process or connects to it, and reads its welcome on every connection.
async fn begin(
    source: &ProcessConfig,
    connections: usize,
    number: u64,
    absent: AbsentKeys,
) -> Result<Generation, BoundaryError> {
    let (path, begun) = match source {
        ProcessConfig::Started { program, arguments } => (program, spawn(program, arguments, connections, absent)),
        ProcessConfig::Apart { socket, user } => {
            (socket, reach(socket, *user, connections).map(|streams| (None, None, streams)))
        }
    };
    let io = |error| BoundaryError::Io { path: path.clone(), error };
    let (child, parent_end, streams) = begun.map_err(io)?;
    let mut welcomed = Vec::with_capacity(connections);
    let mut status = None;
    for stream in streams {
        let (stream, welcome) =
            timeout(WELCOME_TIME_MAX, greet(stream, path)).await.map_err(|_| io(io::ErrorKind::TimedOut.into()))??;
        match welcome {
            Welcome::Serving(serving) => status = Some(*serving),
            Welcome::Closed(reason) => return Err(BoundaryError::Closed(reason)),
            Welcome::PinRefused(reason) => return Err(BoundaryError::PinRefused(reason)),
        }
        welcomed.push(stream);
    }
    let status = status.ok_or_else(|| BoundaryError::Ended { path: path.clone() })?;
    Ok(Generation { number, began: Instant::now(), child, _parent_end: parent_end, streams: welcomed, status })
}

type Begun = (Option<Child>, Option<UnixStream>, Vec<UnixStream>);

fn spawn(program: &Path, arguments: &[OsString], connections: usize, absent: AbsentKeys) -> io::Result<Begun> {
    let (parent_end, child_end) = UnixStream::pair()?;
    let (ours, theirs): (Vec<_>, Vec<_>) =
        (0..connections).map(|_| UnixStream::pair()).collect::<io::Result<Vec<_>>>()?.into_iter().unzip();
    let child = Command::new(program)
        .args(arguments)
        .arg("--connections")
        .arg(connections.to_string())
        .args((absent == AbsentKeys::Create).then_some("--create-vault"))
        .stdin(Stdio::from(OwnedFd::from(child_end)))
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    inherit::hand_over(&parent_end, &theirs)?;
    Ok((Some(child), Some(parent_end), ours))
}

fn reach(socket: &Path, user: u32, connections: usize) -> io::Result<Vec<UnixStream>> {
    let connect = || {
        let stream = UnixStream::connect(socket)?;
        // rustix 1.1 misreads the credentials of a peer in another PID namespace, whose process id is 0 here.
        let found = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials)?.uid();
        if found == user || found == ROOT_UID {
            return Ok(stream);
        }
        let said = format!("it is served by user {found}: boundary.hsm_user says {user}");
        Err(io::Error::new(io::ErrorKind::PermissionDenied, said))
    };
    (0..connections).map(|_| connect()).collect()
}

/// Sends the hello and reads the welcome.
async fn greet(stream: UnixStream, path: &Path) -> Result<(UnixStream, Welcome), BoundaryError> {
    let io = |error: io::Error| match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => BoundaryError::Ended { path: path.to_owned() },
        _ => BoundaryError::Io { path: path.to_owned(), error },
    };
    stream.set_nonblocking(true).map_err(io)?;
    let mut stream = tokio::net::UnixStream::from_std(stream).map_err(io)?;
    let mut hello = Vec::new();
    frame::push_hello(&mut hello);
    tokio::io::AsyncWriteExt::write_all(&mut stream, &hello).await.map_err(io)?;
    let mut arrived = Vec::with_capacity(frame::FRAME_BYTES_MAX);
    loop {
        let refused = |error| BoundaryError::Frame { path: path.to_owned(), error };
        if let Some(frame) = frame::take_frame(&mut arrived.as_slice()).map_err(refused)? {
            let welcome = frame::read_welcome(&frame).map_err(refused)?;
            return Ok((stream.into_std().map_err(io)?, welcome));
        }
        if stream.read_buf(&mut arrived).await.map_err(io)? == 0 {
            return Err(BoundaryError::Ended { path: path.to_owned() });
        }
    }
}
