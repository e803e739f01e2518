//! `pinseal hsm`: the key boundary as a process of its own. It opens the keys, gives up whatever it needs no more, and
//! answers the door's operations over Unix sockets: inherited from an engine that started it, or its own.

mod confine;
mod inherit;
mod serve;

use std::{
    io,
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::{Arc, Barrier},
    thread,
};

use clap::Args;
use hsm::{
    Hsm,
    frame::{self, Welcome},
};
use thiserror::Error;
use tokio::{runtime::Builder, sync::mpsc};

pub use self::confine::{ConfineError, Confinement, Step, TokenNeeds};
use self::inherit::{lanes_from_parent, parent_is_gone};
use crate::config::{self, ConfigError};

/// How many connections may wait for one thread.
const WAITING_CONNECTIONS_MAX: usize = 256;

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
    lanes: Option<usize>,
    /// Listen on this Unix socket, for an engine that runs apart
    #[arg(long, value_name = "PATH", required_unless_present = "lanes", conflicts_with = "lanes")]
    listen: Option<PathBuf>,
}

/// Serves until the engine is gone, or for ever on a socket of its own.
pub fn run(arguments: HsmArguments) -> Result<(), HsmProcessError> {
    let loaded = match &arguments.data_directory {
        Some(directory) => config::HsmProcess::embedded(directory),
        None => config::HsmProcess::load(arguments.config.as_deref()),
    };
    match (arguments.listen, arguments.lanes) {
        (Some(path), _) => {
            let config = loaded?;
            let io = |error| HsmProcessError::Listen { path: path.clone(), error };
            let listener = listen(&path).map_err(io)?;
            let users = config.engine_user;
            let hands = open_confined(config)?;
            accept(&listener, users, &hands).map_err(io)
        }
        (None, lanes) => {
            let lanes = lanes_from_parent(lanes.unwrap_or_default()).map_err(HsmProcessError::Inherit)?;
            match loaded.map_err(HsmProcessError::from).and_then(open_confined) {
                Ok(hands) => {
                    deal(lanes, &hands);
                    parent_is_gone();
                }
                // The engine says so, once.
                Err(error) => refuse(lanes, &error),
            }
            Ok(())
        }
    }
}

/// Opens the keys and gives up the rest; what comes back serves whatever connection it is handed.
fn open_confined(config: config::HsmProcess) -> Result<Vec<mpsc::Sender<UnixStream>>, HsmProcessError> {
    let config::HsmProcess { hsm, confinement, threads, .. } = config;
    let confined = confinement.before_opening()?;
    let hsm = Arc::new(Hsm::open(hsm)?);
    let confined = confined.before_threads()?;

    let started = Arc::new(Barrier::new(threads.saturating_add(1)));
    let mut hands = Vec::with_capacity(threads);
    for number in 0..threads {
        let (hand, dealt) = mpsc::channel(WAITING_CONNECTIONS_MAX);
        let runtime = Builder::new_current_thread().enable_io().build().map_err(HsmProcessError::Thread)?;
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

fn deal(lanes: Vec<UnixStream>, hands: &[mpsc::Sender<UnixStream>]) {
    for (lane, hand) in lanes.into_iter().zip(hands.iter().cycle()) {
        if hand.try_send(lane).is_err() {
            tracing::warn!("a connection was dropped: too many wait already");
        }
    }
}

/// Tells every lane why it is not served.
fn refuse(lanes: Vec<UnixStream>, error: &HsmProcessError) {
    let mut welcome = Vec::new();
    frame::push_welcome(&mut welcome, &Welcome::Closed(error.to_string()));
    for mut lane in lanes {
        let _ = io::Write::write_all(&mut lane, &welcome);
    }
}

/// A socket that its own user and group alone may reach; one that nobody listens on any more is replaced.
fn listen(path: &PathBuf) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;

    if UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

/// Takes connections of one user, and deals them out in turn.
fn accept(listener: &UnixListener, user: u32, hands: &[mpsc::Sender<UnixStream>]) -> io::Result<()> {
    for hand in hands.iter().cycle() {
        let (stream, _) = listener.accept()?;
        let found = rustix::net::sockopt::socket_peercred(&stream)?.uid.as_raw();
        if found != user {
            tracing::warn!(user = found, expected = user, "a connection of another user was refused");
        } else if hand.try_send(stream).is_err() {
            tracing::warn!("a connection was dropped: too many wait already");
        }
    }
    Ok(())
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
    /// A thread or its runtime could not be made.
    #[error("can't start a thread: {0}")]
    Thread(io::Error),
}
