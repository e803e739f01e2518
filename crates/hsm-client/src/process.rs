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
    KeyId, Status,
    frame::{self, Ask, UnavailableReason, Welcome},
};
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::{AbsentKeys, BoundaryError, ProcessConfig, inherit, lane::Lane, succession::succeeds};

/// How long it may take to open its keys: Argon2id and a slow token's login among it.
const WELCOME_TIME_MAX: Duration = Duration::from_secs(60);
/// How often it is asked whether it is there.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// The first pause before it is started again, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// One that served for so long is started again at once.
const STEADY: Duration = Duration::from_millis(100);
/// How long it may take to end once its lanes are closed.
const END_TIME_MAX: Duration = Duration::from_secs(3);

/// How long calls that one process was asked may take to be answered before the next has its place.
const HAND_OVER_TIME_MAX: Duration = Duration::from_secs(4);
/// How often it is looked whether they were.
const HANDED_OVER_EVERY: Duration = Duration::from_millis(5);

/// Who may be anybody.
const ROOT: u32 = 0;

/// The process, or the one in its place.
pub(super) struct Process {
    lanes: Vec<Arc<Lane>>,
    /// Where somebody else starts it.
    apart: Option<PathBuf>,
    want: mpsc::Sender<Reply>,
    stop: watch::Sender<bool>,
    supervisor: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

/// What the supervisor looks after, and at.
struct Watched {
    lanes: Vec<Arc<Lane>>,
    watcher: Arc<Lane>,
    lost: watch::Receiver<u64>,
}

/// One life of it.
struct Life {
    /// 1, 2, 3 …
    number: u64,
    began: Instant,
    child: Option<Child>,
    /// While this end is open, the process lives.
    _parent_end: Option<UnixStream>,
    streams: Vec<UnixStream>,
    status: Status,
}

impl Process {
    /// Starts it and waits for its welcome.
    pub(super) async fn start(
        source: ProcessConfig,
        lanes: usize,
        absent: AbsentKeys,
    ) -> Result<(Arc<Self>, watch::Receiver<Arc<Status>>), BoundaryError> {
        let (lose, lost) = watch::channel(0);
        let lose = Arc::new(lose);
        let lane = || Lane::new(Arc::clone(&lose));
        let lanes: Vec<_> = (0..lanes.max(1)).map(|_| lane()).collect();
        // One more than the threads have, to ask whether it is there.
        let watcher = lane();
        let all: Vec<_> = lanes.iter().cloned().chain([Arc::clone(&watcher)]).collect();
        let mut life = begin(&source, all.len(), 1, absent).await?;
        connect(&all, &mut life);
        let (stop, stopped) = watch::channel(false);
        let (told, status) = watch::channel(Arc::new(life.status.clone()));
        let (want, wanted) = mpsc::channel(1);
        let apart = match &source {
            ProcessConfig::Started { .. } => None,
            ProcessConfig::Apart { socket, .. } => Some(socket.clone()),
        };
        let watched = Watched { lanes: all, watcher, lost };
        let supervised = Supervised { source: Arc::new(source), told, wanted, pin_refused: false };
        let supervisor = tokio::spawn(supervise(supervised, watched, life, stopped));
        let process = Self { lanes, apart, want, stop, supervisor: tokio::sync::Mutex::new(Some(supervisor)) };
        Ok((Arc::new(process), status))
    }

    pub(super) fn lane(&self, number: usize) -> Option<Arc<Lane>> {
        self.lanes.get(number % self.lanes.len().max(1)).cloned()
    }

    /// Lets another take its place, which opens the keys as they are now.
    pub(super) async fn renew(&self) -> Result<(), BoundaryError> {
        if let Some(path) = &self.apart {
            return Err(BoundaryError::TakeUpApart { path: path.clone() });
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

fn connect(lanes: &[Arc<Lane>], life: &mut Life) {
    lanes.iter().zip(life.streams.drain(..)).for_each(|(lane, stream)| lane.connect(life.number, stream));
}

/// Whoever wants another process in its place, and waits for that.
type Reply = oneshot::Sender<Result<(), BoundaryError>>;

/// What a supervisor starts a process from, tells of it, and hears of those who want another.
struct Supervised {
    source: Arc<ProcessConfig>,
    told: watch::Sender<Arc<Status>>,
    wanted: mpsc::Receiver<Reply>,
    /// Whether the token refused the user PIN at the last try.
    pin_refused: bool,
}

/// Another process that is opening the keys while the one before it serves.
struct Succession {
    next: JoinHandle<Result<Life, BoundaryError>>,
    reply: Reply,
}

/// How a process came to be without a place.
enum Left {
    /// It is lost; whoever wanted another waits for what is started in its place.
    Lost { why: &'static str, asked: Option<Reply> },
    /// It is no longer wanted.
    Stopped,
}

/// Keeps one alive until told to stop.
async fn supervise(
    mut supervised: Supervised,
    mut watched: Watched,
    mut life: Life,
    mut stopped: watch::Receiver<bool>,
) {
    let lanes = watched.lanes.clone();
    let mut pause = PAUSE_MIN;
    loop {
        let left = serve(&mut supervised, &mut watched, &mut life, &mut stopped).await;
        lanes.iter().for_each(|lane| lane.disconnect());
        let mut asked = match left {
            Left::Stopped => return end(life).await,
            Left::Lost { why, asked } => {
                tracing::error!(why, "the boundary's process is lost: starting it again");
                asked
            }
        };
        kill(&mut life).await;
        if life.began.elapsed() >= STEADY {
            pause = PAUSE_MIN;
        }
        life = loop {
            let attempt = async {
                tokio::select! {
                    // Each start is a login: after a refused PIN none is tried before a reload asks for it.
                    () = sleep(pause), if !supervised.pin_refused || asked.is_some() => {}
                    // Somebody has put right what it lacked, as they think.
                    Some(reply) = supervised.wanted.recv(), if asked.is_none() => asked = Some(reply),
                    // Nobody is left who could ask: the engine stops.
                    else => std::future::pending().await,
                }
                successor(Arc::clone(&supervised.source), life.number, life.status.keys().to_vec(), lanes.len()).await
            };
            let started = tokio::select! {
                started = attempt => started,
                () = told_to_stop(&mut stopped) => return,
            };
            pause = (pause * 2).min(PAUSE_MAX);
            match started {
                Ok(life) => break life,
                Err(error) => {
                    supervised.pin_refused = error.refuses_user_pin();
                    if supervised.pin_refused {
                        tracing::error!(%error, "the boundary's process is not started again before a reload (SIGHUP)");
                    } else {
                        tracing::error!(%error, "the boundary's process did not start");
                    }
                    tell(asked.take(), Err(error));
                }
            }
        };
        supervised.pin_refused = false;
        supervised.told.send_replace(Arc::new(life.status.clone()));
        connect(&lanes, &mut life);
        tracing::info!("the boundary's process is back");
        tell(asked, Ok(()));
    }
}

/// Watches the process, and whichever comes in its place, until one is lost or none is wanted.
async fn serve(
    supervised: &mut Supervised,
    watched: &mut Watched,
    life: &mut Life,
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
            why = ending(life, watched, &supervised.source, &mut supervised.pin_refused) => {
                let asked = succession.map(|Succession { next, reply }| {
                    next.abort();
                    reply
                });
                return Left::Lost { why, asked };
            }
            () = told_to_stop(stopped) => {
                succession.iter().for_each(|succession| succession.next.abort());
                return Left::Stopped;
            }
            next = opened => next,
            Some(reply) = supervised.wanted.recv(), if nobody_comes => {
                let (source, keys) = (Arc::clone(&supervised.source), life.status.keys().to_vec());
                let next = tokio::spawn(successor(source, life.number, keys, watched.lanes.len()));
                succession = Some(Succession { next, reply });
                continue;
            }
        };
        let Some(Succession { reply, .. }) = succession.take() else { continue };
        match next.unwrap_or(Err(BoundaryError::Stopping)) {
            Ok(next) => {
                supervised.pin_refused = false;
                let before = std::mem::replace(life, next);
                hand_over(&watched.lanes, life, &supervised.told);
                tokio::spawn(leave(watched.lanes.clone(), before, KeyId::list_to_text(life.status.keys()), reply));
            }
            Err(error) => {
                supervised.pin_refused = error.refuses_user_pin();
                tell(Some(reply), Err(error));
            }
        }
    }
}

/// Whoever asked may have gone.
fn tell(asked: Option<Reply>, outcome: Result<(), BoundaryError>) {
    if let Some(reply) = asked {
        let _ = reply.send(outcome);
    }
}

/// Another process after one of this number, where its keys allow that.
async fn successor(
    source: Arc<ProcessConfig>,
    number: u64,
    keys_before: Vec<KeyId>,
    lanes: usize,
) -> Result<Life, BoundaryError> {
    let mut life = begin(&source, lanes, number + 1, AbsentKeys::Refuse).await?;
    let Err(mismatch) = succeeds(&keys_before, life.status.keys()) else { return Ok(life) };
    kill(&mut life).await;
    Err(BoundaryError::OtherKeys(mismatch))
}

/// Lets every lane lead to the next process once the one before has answered what it was asked.
fn hand_over(lanes: &[Arc<Lane>], next: &mut Life, told: &watch::Sender<Arc<Status>>) {
    // Told first: who makes a line after the boundary's answer names the keys it may have used.
    told.send_replace(Arc::new(next.status.clone()));
    lanes.iter().zip(next.streams.drain(..)).for_each(|(lane, stream)| lane.succeed(next.number, stream));
}

/// Lets the process before end once no lane needs it any more.
async fn leave(lanes: Vec<Arc<Lane>>, before: Life, keys: String, reply: Reply) {
    let all = async {
        while lanes.iter().any(|lane| lane.is_being_handed_over()) {
            sleep(HANDED_OVER_EVERY).await;
        }
    };
    // What takes longer has no caller any more.
    let _ = timeout(HAND_OVER_TIME_MAX, all).await;
    tracing::info!(keys, "the boundary has reloaded its keys");
    tell(Some(reply), Ok(()));
    end(before).await;
}

async fn told_to_stop(stopped: &mut watch::Receiver<bool>) {
    drop(stopped.wait_for(|stopped| *stopped).await);
}

/// Waits until the process has ended, has lost a lane or answers no more; returns which of these, for the log. Sets
/// `pin_refused` when a started process answers that its token refused the user PIN: another start would log in again.
async fn ending(
    life: &mut Life,
    Watched { watcher, lost, .. }: &mut Watched,
    source: &ProcessConfig,
    pin_refused: &mut bool,
) -> &'static str {
    let number = life.number;
    let lane_lost = async {
        drop(lost.wait_for(|lost| *lost >= number).await);
        "a connection to it ended"
    };
    let silent = async {
        loop {
            sleep(WATCH_EVERY).await;
            // A token that is away answers so; a process that hangs does not.
            match watcher.ask::<()>(&Ask::Check).await {
                Err(error) if is_silence(&error) => return "it does not answer",
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
        match &mut life.child {
            Some(child) => drop(child.wait().await),
            None => std::future::pending().await,
        }
        "it ended"
    };
    tokio::select! {
        biased;
        why = ended => why,
        why = lane_lost => why,
        why = silent => why,
    }
}

fn is_silence(error: &hsm_protocol::Error) -> bool {
    let hsm_protocol::Error::Unavailable { reason: UnavailableReason::Other(reason) } = error else { return false };
    reason.starts_with("its process")
}

async fn kill(life: &mut Life) {
    if let Some(child) = &mut life.child {
        let _ = child.kill().await;
    }
}

/// Lets it end by itself, for a while.
async fn end(life: Life) {
    let Life { child, _parent_end: parent_end, .. } = life;
    drop(parent_end);
    let Some(mut child) = child else { return };
    if timeout(END_TIME_MAX, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// Starts or reaches it, and hears its welcome on every lane.
async fn begin(source: &ProcessConfig, lanes: usize, number: u64, absent: AbsentKeys) -> Result<Life, BoundaryError> {
    let (path, begun) = match source {
        ProcessConfig::Started { program, arguments } => (program, spawn(program, arguments, lanes, absent)),
        ProcessConfig::Apart { socket, user } => {
            (socket, reach(socket, *user, lanes).map(|streams| (None, None, streams)))
        }
    };
    let io = |error| BoundaryError::Io { path: path.clone(), error };
    let (child, parent_end, streams) = begun.map_err(io)?;
    let mut welcomed = Vec::with_capacity(lanes);
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
    Ok(Life { number, began: Instant::now(), child, _parent_end: parent_end, streams: welcomed, status })
}

type Begun = (Option<Child>, Option<UnixStream>, Vec<UnixStream>);

fn spawn(program: &Path, arguments: &[OsString], lanes: usize, absent: AbsentKeys) -> io::Result<Begun> {
    let (parent_end, child_end) = UnixStream::pair()?;
    let (ours, theirs): (Vec<_>, Vec<_>) =
        (0..lanes).map(|_| UnixStream::pair()).collect::<io::Result<Vec<_>>>()?.into_iter().unzip();
    let child = Command::new(program)
        .args(arguments)
        .arg("--lanes")
        .arg(lanes.to_string())
        .args((absent == AbsentKeys::Create).then_some("--create-vault"))
        .stdin(Stdio::from(OwnedFd::from(child_end)))
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    inherit::hand_over(&parent_end, &theirs)?;
    Ok((Some(child), Some(parent_end), ours))
}

fn reach(socket: &Path, user: u32, lanes: usize) -> io::Result<Vec<UnixStream>> {
    let connect = || {
        let stream = UnixStream::connect(socket)?;
        let found = rustix::net::sockopt::socket_peercred(&stream)?.uid.as_raw();
        // Root is the one it was before it became that user: the socket was made then.
        if found == user || found == ROOT {
            return Ok(stream);
        }
        let said = format!("it is served by user {found}: boundary.hsm_user says {user}");
        Err(io::Error::new(io::ErrorKind::PermissionDenied, said))
    };
    (0..lanes).map(|_| connect()).collect()
}

/// Hello, and what comes back.
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
