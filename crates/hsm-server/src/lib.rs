//! `pinseal hsm`: the key boundary as a process of its own. It opens the keys, gives up whatever it needs no more, and
//! answers the door's operations over Unix sockets: inherited from an engine that started it, or its own.

mod confine;
mod escape;
mod inherit;
mod serve;

use std::{
    fs, io,
    mem::ManuallyDrop,
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Barrier},
    thread,
    time::Duration,
};

use clap::Args;
use hsm::Hsm;
use hsm_protocol::frame::{self, Welcome};
use thiserror::Error;
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

pub use self::confine::ConfineError;
use self::confine::Confiner;
use self::inherit::{connections_from_parent, outlive_hangup, outlive_signals, parent_is_gone};
use config::ConfigError;
use hsm_config::{HsmProcess, Ipc};

/// How many connections may wait for one thread.
const WAITING_CONNECTIONS_MAX: usize = 256;
/// How long the next connection waits after one that could not be taken.
const AFTER_A_FAILED_CONNECTION: Duration = Duration::from_millis(100);

/// `pinseal hsm`.
#[derive(Args)]
pub struct HsmArguments {
    /// The engine's configuration: its [boundary], [vault] or [token] and [pin_policy]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Without a configuration: where the vault is
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    data_directory: Option<PathBuf>,
    /// How many connections an engine hands over by standard input; engines say this themselves
    #[arg(long, value_name = "COUNT", hide = true)]
    connections: Option<usize>,
    /// Create the vault where it is not there; an engine says this itself, at its first start
    #[arg(long, hide = true, requires = "connections")]
    create_vault: bool,
    /// Listen on this Unix socket, for an engine that runs apart
    #[arg(long, value_name = "PATH", conflicts_with = "connections")]
    #[arg(required_unless_present_any = ["connections", "try_escape"])]
    listen: Option<PathBuf>,
    /// Do not serve: open the keys, confine, try from inside what was given up, reading this file among it, and fail if
    /// anything is let through
    #[arg(long, value_name = "FILE", conflicts_with_all = ["connections", "listen"])]
    try_escape: Option<PathBuf>,
}

/// Serves until the engine is gone, or for ever on a socket of its own.
pub fn run(arguments: HsmArguments) -> Result<(), HsmProcessError> {
    // Before anything that takes time: the signals of a process group may come at once.
    if arguments.connections.is_some() {
        outlive_signals().map_err(HsmProcessError::Inherit)?;
    }
    if arguments.listen.is_some() {
        outlive_hangup().map_err(HsmProcessError::Thread)?;
    }
    let loaded = match &arguments.data_directory {
        Some(directory) => HsmProcess::embedded(directory),
        None => HsmProcess::load(arguments.config.as_deref()),
    };
    // After the secrets that the configuration names by descriptor are read.
    confine::close_inherited()?;
    if let Some(file) = arguments.try_escape {
        let config = loaded?;
        let may = match &config.confinement.token {
            None => escape::May::default(),
            Some(token) => {
                escape::May { start_threads: true, connect_to_unix_sockets: token.ipc.contains(&Ipc::UnixSocket) }
            }
        };
        // Asked before: a confined process does not even learn that.
        let parent = rustix::process::getppid().ok_or(HsmProcessError::NoParent)?;
        // Never dropped: a token's sessions, closed by threads of their own, would meet its module at its end.
        let _hands = ManuallyDrop::new(open_confined(config)?);
        return match escape::try_all(may, parent, &file, &mut io::stdout()).map_err(HsmProcessError::Told)? {
            0 => Ok(()),
            count => Err(HsmProcessError::LetThrough { count }),
        };
    }
    match (arguments.listen, arguments.connections) {
        (Some(path), _) => {
            let config = loaded?;
            // Made before the filter of system calls, and after the inherited descriptors were closed: it has some.
            let accepting = Accepting::prepare().map_err(HsmProcessError::Thread)?;
            let io = |error| HsmProcessError::Listen { path: path.clone(), error };
            let user = config.engine_user;
            let listener = listen(&path, user).map_err(io)?;
            let hands = open_confined(config)?;
            accepting.run(listener, user, &hands).map_err(|error| HsmProcessError::Listen { path, error })
        }
        (None, connections) => {
            let connections =
                connections_from_parent(connections.unwrap_or_default()).map_err(HsmProcessError::Inherit)?;
            let opened = loaded.map_err(HsmProcessError::from).and_then(|mut config| {
                if arguments.create_vault {
                    config.hsm.absent_vault = hsm::AbsentVault::Create;
                }
                open_confined(config)
            });
            match opened {
                Ok(hands) => {
                    deal(connections, &hands);
                    parent_is_gone();
                }
                // The engine says so, once.
                Err(error) => refuse(connections, &error),
            }
            Ok(())
        }
    }
}

/// Opens the keys and gives up the rest; what comes back serves whatever connection it is handed.
fn open_confined(config: HsmProcess) -> Result<Vec<mpsc::Sender<UnixStream>>, HsmProcessError> {
    let HsmProcess { hsm, confinement, threads, .. } = config;
    let prepared = Hsm::prepare(hsm)?;
    let confined = Confiner(confinement).before_opening()?;
    let hsm = Arc::new(prepared.open()?);
    let confined = confined.before_threads()?;

    let started = Arc::new(Barrier::new(threads.saturating_add(1)));
    let mut hands = Vec::with_capacity(threads);
    for number in 0..threads {
        let (hand, dealt) = mpsc::channel(WAITING_CONNECTIONS_MAX);
        let runtime = Builder::new_current_thread().enable_all().build().map_err(HsmProcessError::Thread)?;
        let (hsm, started) = (Arc::clone(&hsm), Arc::clone(&started));
        let serving = move || {
            started.wait();
            started.wait();
            runtime.block_on(serve::serve(hsm, dealt));
        };
        thread::Builder::new().name(format!("hsm-{number}")).spawn(serving).map_err(HsmProcessError::Thread)?;
        hands.push(hand);
    }
    // The filter takes in every thread there is, once each has begun; after it none can be made.
    started.wait();
    confined.before_serving()?;
    started.wait();
    Ok(hands)
}

fn deal(connections: Vec<UnixStream>, hands: &[mpsc::Sender<UnixStream>]) {
    for (connection, hand) in connections.into_iter().zip(hands.iter().cycle()) {
        if hand.try_send(connection).is_err() {
            tracing::warn!("a connection was dropped: too many wait already");
        }
    }
}

/// Sends the reason to every connection and serves none.
fn refuse(connections: Vec<UnixStream>, error: &HsmProcessError) {
    let mut welcome = Vec::new();
    let closed = if error.refuses_user_pin() { Welcome::PinRefused } else { Welcome::Closed };
    frame::push_welcome(&mut welcome, &closed(error.to_string()));
    for mut connection in connections {
        let _ = io::Write::write_all(&mut connection, &welcome);
    }
}

/// A socket for the engine's user alone where root makes it, else for its own user and group; one that nobody listens on
/// any more is replaced.
fn listen(path: &Path, engine_user: u32) -> io::Result<UnixListener> {
    if UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    let by_root = nix::unistd::getuid().is_root();
    fs::set_permissions(path, fs::Permissions::from_mode(if by_root { 0o600 } else { 0o660 }))?;
    if by_root {
        std::os::unix::fs::chown(path, Some(engine_user), None)?;
    }
    Ok(listener)
}

/// What accepts connections on a socket of its own, and hears SIGHUP.
struct Accepting {
    runtime: Runtime,
    hangup: Signal,
}

impl Accepting {
    fn prepare() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let hangup = runtime.block_on(async { signal(SignalKind::hangup()) })?;
        Ok(Self { runtime, hangup })
    }

    fn run(self, listener: UnixListener, user: u32, hands: &[mpsc::Sender<UnixStream>]) -> io::Result<()> {
        self.runtime.block_on(accept(listener, user, hands, self.hangup))
    }
}

/// Accepts connections of one user and deals them out in turn. SIGHUP ends nothing: keys are read at a start.
async fn accept(
    listener: UnixListener,
    user: u32,
    hands: &[mpsc::Sender<UnixStream>],
    mut hangup: Signal,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    for hand in hands.iter().cycle() {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = hangup.recv() => {
                tracing::info!("SIGHUP changes nothing here: to load other keys, restart this process");
                continue;
            }
        };
        match accepted.and_then(|(stream, _)| stream.into_std()).and_then(|stream| Ok((user_of(&stream)?, stream))) {
            Ok((found, stream)) if found == user => deal(vec![stream], std::slice::from_ref(hand)),
            Ok((found, _)) => {
                tracing::warn!(user = found, expected = user, "a connection of another user was refused");
            }
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                thread::sleep(AFTER_A_FAILED_CONNECTION);
            }
        }
    }
    Ok(())
}

fn user_of(stream: &UnixStream) -> io::Result<u32> {
    // Not by rustix 1.1: it misreads the credentials of a peer in another PID namespace, whose process id is 0 here.
    Ok(nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials)?.uid())
}

impl HsmProcessError {
    /// Whether the token refused the user PIN.
    pub fn refuses_user_pin(&self) -> bool {
        matches!(self, Self::Open(error) if error.refuses_user_pin())
    }
}

/// Why the boundary's process does not serve.
#[derive(Debug, Error)]
pub enum HsmProcessError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The keys did not open.
    #[error(transparent)]
    Open(#[from] hsm::OpenError),
    /// Something could not be given up.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// No engine handed anything over.
    #[error("no engine hands its connections over by standard input ({0}): use --listen, or let an engine start this")]
    Inherit(io::Error),
    /// It can't listen there.
    #[error("can't listen on {}: {error}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Nobody started it.
    #[error("there is no parent to look at: start it from a shell")]
    NoParent,
    /// It got out.
    #[error("{count} of what it tried was let through: don't waive those steps, or use a kernel that takes them")]
    LetThrough {
        /// How much.
        count: usize,
    },
    /// The report could not be written.
    #[error("can't write the report: {0}")]
    Told(io::Error),
    /// A thread or its runtime could not be made.
    #[error("can't start a thread: {0}")]
    Thread(io::Error),
}
