//! The Unix socket of a boundary that a service manager runs.

use std::{
    fs,
    io::{self, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::Path,
    thread,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
};

use crate::serve::ServingThreads;

/// The pause after a connection that could not be accepted.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Accepts the connections of one user, and logs SIGHUP.
pub(super) struct Listener {
    runtime: Runtime,
    hangup: Signal,
    listener: UnixListener,
    /// The engine's user id.
    user: u32,
}

impl Listener {
    /// Listens on `path`, and opens every descriptor that accepting needs: the filter of system calls forbids it later.
    pub(super) fn bind(path: &Path, user: u32) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let hangup = runtime.block_on(async { signal(SignalKind::hangup()) })?;
        Ok(Self { runtime, hangup, listener: bind(path, user)?, user })
    }

    /// Prints that the socket at `path` is served. Accepts connections and distributes them over the threads. SIGHUP is only logged: keys are read at a start.
    pub(super) fn run(self, path: &Path, threads: &ServingThreads) -> io::Result<()> {
        let Self { runtime, mut hangup, listener, user } = self;
        runtime.block_on(async {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::UnixListener::from_std(listener)?;
            // A closed pipe is ignored: the process keeps serving.
            let _ = writeln!(io::stdout(), "pinseal hsm listens on {}", path.display());
            for thread in threads.in_turn() {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    _ = hangup.recv() => {
                        tracing::info!("SIGHUP changes nothing here: to load other keys, restart this process");
                        continue;
                    }
                };
                let stream = accepted.and_then(|(stream, _)| stream.into_std());
                match stream.and_then(|stream| Ok((user_of(&stream)?, stream))) {
                    Ok((found, stream)) if found == user => thread.serve(stream),
                    Ok((found, _)) => {
                        tracing::warn!(user = found, expected = user, "a connection of another user was refused");
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a connection was not accepted");
                        thread::sleep(PAUSE_AFTER_FAILURE);
                    }
                }
            }
            Ok(())
        })
    }
}

/// Creates the socket: for the engine's user alone where this process is root, else for this process's user and group.
/// A socket file without a listener is replaced.
fn bind(path: &Path, engine_user: u32) -> io::Result<UnixListener> {
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

fn user_of(stream: &UnixStream) -> io::Result<u32> {
    // Not by rustix 1.1: it misreads the credentials of a peer in another PID namespace, whose process id is 0 here.
    Ok(nix::sys::socket::getsockopt(stream, nix::sys::socket::sockopt::PeerCredentials)?.uid())
}
