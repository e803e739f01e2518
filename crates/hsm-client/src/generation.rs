//! One run of the boundary's process: started or connected to, welcomed, and ended.

use std::{
    ffi::OsString,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use hsm_protocol::{
    Status,
    frame::{self, Welcome},
};
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    time::{Instant, timeout},
};

use super::{AbsentKeys, BoundaryError, ProcessConfig, connection::Connection, inherit};

/// From the start of the process to its welcome. It opens its keys first: Argon2id, or the login to a slow token.
const WELCOME_TIME_MAX: Duration = Duration::from_secs(60);
/// The longest time for the process to end once its connections are closed.
const END_TIME_MAX: Duration = Duration::from_secs(3);
/// uid 0. A socket may have been created by root before it dropped to hsm_user, so root is accepted as its owner.
const ROOT_UID: u32 = 0;

/// One run of the process, and its sockets.
pub(super) struct Generation {
    /// 1 for the first process of this engine, then 2, 3 …
    pub(super) number: u64,
    started: Instant,
    /// `None` for a process that a service manager runs.
    child: Option<Child>,
    /// The process ends when this end closes.
    _parent_end: Option<UnixStream>,
    streams: Vec<UnixStream>,
    pub(super) status: Status,
}

impl Generation {
    /// Starts the process or connects to it, and reads its welcome on every connection.
    pub(super) async fn start(
        source: &ProcessConfig,
        connections: usize,
        number: u64,
        absent: AbsentKeys,
    ) -> Result<Self, BoundaryError> {
        let (path, started) = match source {
            ProcessConfig::Started { program, arguments } => (program, spawn(program, arguments, connections, absent)),
            ProcessConfig::Apart { socket, user } => {
                (socket, connect(socket, *user, connections).map(|streams| (None, None, streams)))
            }
        };
        let io = |error| BoundaryError::Io { path: path.clone(), error };
        let (child, parent_end, streams) = started.map_err(io)?;
        let mut welcomed = Vec::with_capacity(connections);
        let mut status = None;
        for stream in streams {
            let (stream, welcome) = timeout(WELCOME_TIME_MAX, greet(stream, path))
                .await
                .map_err(|_| io(io::ErrorKind::TimedOut.into()))??;
            match welcome {
                Welcome::Serving(serving) => status = Some(*serving),
                Welcome::Closed(reason) => return Err(BoundaryError::Closed(reason)),
                Welcome::PinRefused(reason) => return Err(BoundaryError::PinRefused(reason)),
            }
            welcomed.push(stream);
        }
        let status = status.ok_or_else(|| BoundaryError::Ended { path: path.clone() })?;
        Ok(Self { number, started: Instant::now(), child, _parent_end: parent_end, streams: welcomed, status })
    }

    /// The time since the welcome.
    pub(super) fn served_for(&self) -> Duration {
        self.started.elapsed()
    }

    /// Connects every connection to this process at once; requests that wait fail.
    pub(super) fn connect(&mut self, connections: &[Arc<Connection>]) {
        for (connection, stream) in connections.iter().zip(self.streams.drain(..)) {
            connection.connect(self.number, stream);
        }
    }

    /// Connects every connection to this process once the process before has answered all requests of the connection.
    pub(super) fn replace(&mut self, connections: &[Arc<Connection>]) {
        for (connection, stream) in connections.iter().zip(self.streams.drain(..)) {
            connection.replace(self.number, stream);
        }
    }

    /// Waits for the end of a process that the engine started; never returns for another.
    pub(super) async fn wait_for_exit(&mut self) {
        match &mut self.child {
            Some(child) => drop(child.wait().await),
            None => std::future::pending().await,
        }
    }

    pub(super) async fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill().await;
        }
    }

    /// Closes standard input, on which the process ends; kills the process when it takes too long.
    pub(super) async fn end(self) {
        let Self { child, _parent_end: parent_end, .. } = self;
        drop(parent_end);
        let Some(mut child) = child else { return };
        if timeout(END_TIME_MAX, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
    }
}

/// The child, our end of its standard input, and our ends of the connections.
type Spawned = (Option<Child>, Option<UnixStream>, Vec<UnixStream>);

fn spawn(program: &Path, arguments: &[OsString], connections: usize, absent: AbsentKeys) -> io::Result<Spawned> {
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
    inherit::send_connections(&parent_end, &theirs)?;
    Ok((Some(child), Some(parent_end), ours))
}

/// Connects to a process that a service manager runs, and checks the user that created the socket.
fn connect(socket: &Path, user: u32, connections: usize) -> io::Result<Vec<UnixStream>> {
    let connect_one = || {
        let stream = UnixStream::connect(socket)?;
        // rustix 1.1 misreads the credentials of a peer in another PID namespace, whose process id is 0 here.
        let found = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::PeerCredentials)?.uid();
        if found == user || found == ROOT_UID {
            return Ok(stream);
        }
        let message = format!("it is served by user {found}: boundary.hsm_user says {user}");
        Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
    };
    (0..connections).map(|_| connect_one()).collect()
}

/// Sends the hello and reads the welcome.
async fn greet(stream: UnixStream, path: &Path) -> Result<(UnixStream, Welcome), BoundaryError> {
    let io = |error: io::Error| match is_closed_by_peer(&error) {
        true => BoundaryError::Ended { path: path.to_owned() },
        false => BoundaryError::Io { path: path.to_owned(), error },
    };
    stream.set_nonblocking(true).map_err(io)?;
    let mut stream = tokio::net::UnixStream::from_std(stream).map_err(io)?;
    let mut hello = Vec::new();
    frame::push_hello(&mut hello);
    match tokio::io::AsyncWriteExt::write_all(&mut stream, &hello).await {
        // A process that cannot serve sends its reason at once and ends: the welcome is still there to read.
        Err(error) if is_closed_by_peer(&error) => {}
        sent => sent.map_err(io)?,
    }
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

fn is_closed_by_peer(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn a_process_that_ends_before_the_hello_still_says_why() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut welcome = Vec::new();
        frame::push_welcome(&mut welcome, &Welcome::Closed("no passphrase".to_owned()));
        theirs.write_all(&welcome).unwrap();
        drop(theirs);
        let (_, welcome) = greet(ours, Path::new("hsm")).await.unwrap();
        assert!(matches!(welcome, Welcome::Closed(reason) if reason == "no passphrase"));
    }

    #[tokio::test]
    async fn a_process_that_ends_without_a_welcome_is_named() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let ended = greet(ours, Path::new("hsm")).await;
        assert!(matches!(ended, Err(BoundaryError::Ended { path }) if path == Path::new("hsm")));
    }
}
