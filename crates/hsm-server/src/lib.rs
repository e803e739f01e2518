//! The key boundary in a separate process. It opens the keys, drops every privilege that serving does not need, and
//! executes requests that arrive over Unix sockets: sockets that the engine which started it passes over standard input,
//! or connections that it accepts on a socket.
//!
//! ```no_run
//! use clap::Parser;
//! use hsm_server::HsmArguments;
//!
//! #[derive(Parser)]
//! struct Arguments {
//!     #[command(flatten)]
//!     hsm: HsmArguments,
//! }
//!
//! let arguments = Arguments::parse_from(["hsm", "--data-directory", "/var/lib/pinseal", "--listen", "/run/pinseal/hsm"]);
//! hsm_server::run(arguments.hsm)?;
//! # Ok::<(), hsm_server::HsmProcessError>(())
//! ```

mod arguments;
mod confine;
mod escape;
mod inherit;
mod listener;
mod process_error;
mod serve;

use std::{
    io,
    mem::ManuallyDrop,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
};

use hsm::Hsm;
use hsm_protocol::frame::{self, Welcome};

pub use self::{arguments::HsmArguments, confine::ConfineError, process_error::HsmProcessError};
use self::{
    confine::Confiner,
    inherit::{connections_from_parent, survive_hangup, survive_signals, wait_for_parent_exit},
    listener::Listener,
    serve::ServingThreads,
};
use hsm_config::{HsmProcess, Ipc};

/// Serves until the engine that started the process has ended; with `--listen`, without end.
///
/// # Errors
/// [`HsmProcessError`]: the configuration, the keys, a privilege or the socket failed; or `--try-escape` succeeded in an
/// attempt. An engine that started the process receives the error of the configuration, the keys or a privilege as the
/// welcome of each connection; the result is then `Ok`.
pub fn run(arguments: HsmArguments) -> Result<(), HsmProcessError> {
    // First, because a signal to the process group may arrive at any time.
    if arguments.connections.is_some() {
        survive_signals().map_err(HsmProcessError::Inherit)?;
    }
    if arguments.listen.is_some() {
        survive_hangup().map_err(HsmProcessError::Thread)?;
    }
    let config = match &arguments.data_directory {
        Some(directory) => HsmProcess::embedded(directory),
        None => HsmProcess::load(arguments.config.as_deref()),
    };
    // After the configuration was read: it may name secrets by inherited descriptor.
    confine::close_inherited()?;
    match (arguments.try_escape, arguments.listen) {
        (Some(file), _) => try_escape(config?, &file),
        (None, Some(path)) => serve_socket(config?, path),
        (None, None) => {
            let count = arguments.connections.unwrap_or_default();
            let connections = connections_from_parent(count).map_err(HsmProcessError::Inherit)?;
            let started = config.map_err(HsmProcessError::from).and_then(|mut config| {
                if arguments.create_vault {
                    config.hsm.absent_vault = hsm::AbsentVault::Create;
                }
                open_confined(config)
            });
            serve_parent(connections, started);
            Ok(())
        }
    }
}

fn try_escape(config: HsmProcess, file: &Path) -> Result<(), HsmProcessError> {
    let allowed = match &config.confinement.token {
        None => escape::Allowed::default(),
        Some(token) => escape::Allowed { threads: true, unix_sockets: token.ipc.contains(&Ipc::UnixSocket) },
    };
    // Read before the filter: a confined process cannot call getppid.
    let parent = rustix::process::getppid().ok_or(HsmProcessError::NoParent)?;
    // Never dropped: the threads of a dropped token close its sessions while its module unloads.
    let _threads = ManuallyDrop::new(open_confined(config)?);
    match escape::try_all(allowed, parent, file, &mut io::stdout()).map_err(HsmProcessError::Report)? {
        0 => Ok(()),
        count => Err(HsmProcessError::LetThrough { count }),
    }
}

fn serve_socket(config: HsmProcess, path: PathBuf) -> Result<(), HsmProcessError> {
    let failed = |error| HsmProcessError::Listen { path: path.clone(), error };
    let listener = Listener::bind(&path, config.engine_user).map_err(failed)?;
    let threads = open_confined(config)?;
    listener.run(&path, &threads).map_err(failed)
}

/// Serves the connections of the engine that started this process until it has ended. When the start failed, the engine
/// receives the error on each connection, and logs it.
fn serve_parent(connections: Vec<UnixStream>, started: Result<ServingThreads, HsmProcessError>) {
    match started {
        Ok(threads) => {
            connections.into_iter().zip(threads.in_turn()).for_each(|(connection, thread)| thread.serve(connection));
            wait_for_parent_exit();
        }
        Err(error) => refuse(connections, &error),
    }
}

/// Opens the keys, drops the privileges in between, and starts the threads that serve.
fn open_confined(config: HsmProcess) -> Result<ServingThreads, HsmProcessError> {
    let HsmProcess { hsm, confinement, threads, .. } = config;
    let prepared = Hsm::prepare(hsm)?;
    let confined = Confiner(confinement).before_opening()?;
    let hsm = Arc::new(prepared.open()?);
    let confined = confined.before_threads()?;
    // The filter applies to every existing thread, and forbids new ones; so the threads start before it, and serve after.
    let paused = ServingThreads::start(&hsm, threads).map_err(HsmProcessError::Thread)?;
    confined.before_serving()?;
    Ok(paused.resume())
}

/// Sends the error as the welcome of every connection.
fn refuse(connections: Vec<UnixStream>, error: &HsmProcessError) {
    let mut welcome = Vec::new();
    let refused = if error.refuses_user_pin() { Welcome::PinRefused } else { Welcome::Closed };
    frame::push_welcome(&mut welcome, &refused(error.to_string()));
    for mut connection in connections {
        // An engine that has ended reads nothing.
        let _ = io::Write::write_all(&mut connection, &welcome);
    }
}
