//! The engine's side of the key boundary: the trait [`Boundary`], and its client for a boundary in a separate process.
//!
//! No clear PIN, PIN block or key, and no cipher, is in this crate. An account number passes through it to be sealed.
//!
//! ```no_run
//! use hsm_client::{AbsentKeys, OpenBoundary, ProcessConfig};
//! use hsm_protocol::{AccountNumber, CardBinding, Reply, Request};
//!
//! # async fn seal() -> Result<(), Box<dyn std::error::Error>> {
//! let process = ProcessConfig::Apart { socket: "/run/pinseal/hsm.sock".into(), user: 998 };
//! let boundary = Box::new(process).open(1, AbsentKeys::Refuse).await?;
//! let number = AccountNumber::parse("5413330089020011")?;
//! let card = CardBinding::new("bank", "1000200030")?;
//! let reply = boundary.execute(Request::SealPan { number, card }).await?;
//! assert!(matches!(reply, Reply::SealedPan(_)));
//! # Ok(())
//! # }
//! ```

mod connection;
mod generation;
mod inherit;
mod process;
mod succession;
mod supervisor;

use std::{path::PathBuf, pin::Pin, sync::Arc};

use hsm_protocol::{Error, Reply, Request, Status};
use thiserror::Error as ThisError;
use tokio::sync::watch;

pub use self::succession::{KeyMismatch, agrees, succeeds};
use self::{connection::Connection, process::Process};

/// What a boundary does at its first start when the vault is missing. Later starts, and a boundary that runs apart, never
/// create keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbsentKeys {
    /// Create the vault: the store holds nothing yet.
    Create,
    /// Fail: the store holds data under keys that are elsewhere.
    Refuse,
}

/// The future of a boundary's answer.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The opened key boundary, in a separate process or in the caller's.
pub trait Boundary: Send + Sync + 'static {
    /// The same boundary, over the connection of thread `number`, from 0.
    fn for_thread(&self, number: usize) -> Arc<dyn Boundary>;

    /// A watch on the status of the boundary, which changes when keys are reloaded.
    fn watched(&self) -> watch::Receiver<Arc<Status>>;

    /// Reloads the keys after a ceremony, without an interruption of calls. After a failure the boundary serves with the keys
    /// that it had.
    ///
    /// # Errors
    /// [`BoundaryError::ReloadInline`] and [`BoundaryError::ReloadApart`] for a boundary that only reads keys at its start;
    /// [`BoundaryError::OtherKeys`] for keys that do not open earlier data; otherwise the error of the new process.
    fn reload_keys(&self) -> Answer<'_, Result<(), BoundaryError>>;

    /// Executes one request.
    ///
    /// # Errors
    /// [`Error`] of the boundary; [`Error::Unavailable`], [`Error::Busy`] or [`Error::DeadlinePassed`] where no reply
    /// came.
    fn execute(&self, request: Request) -> Answer<'_, Result<Reply, Error>>;

    /// Checks that the token answers.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the token or the process does not answer.
    fn check(&self) -> Answer<'_, Result<(), Error>> {
        Box::pin(async {
            match self.execute(Request::Check).await? {
                Reply::Available => Ok(()),
                _ => Err(Error::UnexpectedReply),
            }
        })
    }

    /// Ends a boundary that this engine started. One that runs apart keeps running.
    fn close(&self) -> Answer<'_, ()>;

    /// The present status of the boundary.
    fn status(&self) -> Arc<Status>;
}

/// Opens a boundary. Separate from [`Boundary`], because the store decides first whether keys may be created.
pub trait OpenBoundary: Send {
    /// Opens the boundary with `connections`, one for each calling thread.
    ///
    /// # Errors
    /// [`BoundaryError`]: the process did not start or connect, or could not open its keys.
    fn open(
        self: Box<Self>,
        connections: usize,
        absent: AbsentKeys,
    ) -> Answer<'static, Result<Arc<dyn Boundary>, BoundaryError>>;
}

/// The process of a boundary.
pub enum ProcessConfig {
    /// A process that the engine starts, and starts again when it ends.
    Started {
        /// The program to run.
        program: PathBuf,
        /// Its arguments.
        arguments: Vec<std::ffi::OsString>,
    },
    /// A process that a service manager runs.
    Apart {
        /// The Unix socket it listens on.
        socket: PathBuf,
        /// The user it must run as.
        user: u32,
    },
}

impl OpenBoundary for ProcessConfig {
    fn open(
        self: Box<Self>,
        connections: usize,
        absent: AbsentKeys,
    ) -> Answer<'static, Result<Arc<dyn Boundary>, BoundaryError>> {
        Box::pin(async move {
            let (process, status) = Process::start(*self, connections, absent).await?;
            let connection = process.connection(0).ok_or(BoundaryError::NoConnection)?;
            Ok(Arc::new(ProcessBoundary { process, connection, status }) as Arc<dyn Boundary>)
        })
    }
}

/// The key boundary in a separate process.
struct ProcessBoundary {
    process: Arc<Process>,
    connection: Arc<Connection>,
    status: watch::Receiver<Arc<Status>>,
}

impl Boundary for ProcessBoundary {
    fn for_thread(&self, number: usize) -> Arc<dyn Boundary> {
        let connection = self.process.connection(number).unwrap_or_else(|| Arc::clone(&self.connection));
        Arc::new(Self { process: Arc::clone(&self.process), connection, status: self.status.clone() })
    }

    fn watched(&self) -> watch::Receiver<Arc<Status>> {
        self.status.clone()
    }

    fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status.borrow())
    }

    fn reload_keys(&self) -> Answer<'_, Result<(), BoundaryError>> {
        Box::pin(self.process.reload())
    }

    fn execute(&self, request: Request) -> Answer<'_, Result<Reply, Error>> {
        Box::pin(async move { self.connection.execute(&request).await })
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(self.process.close())
    }
}

/// An error of opening or reloading the boundary.
#[derive(Debug, ThisError)]
pub enum BoundaryError {
    /// The boundary could not open its keys; the text is its error.
    #[error("{0}")]
    Closed(String),
    /// The token refused the user PIN; the text is the boundary's error. Another login could lock the PIN, so the engine
    /// tries none before a reload or a restart.
    #[error("{0}")]
    PinRefused(String),
    /// The process could not be started or connected to.
    #[error("{}: {error}", path.display())]
    Io {
        /// The program or the socket.
        path: PathBuf,
        /// The error of the kernel.
        error: std::io::Error,
    },
    /// The process speaks another protocol.
    #[error("{}: {error}", path.display())]
    Frame {
        /// The program or the socket.
        path: PathBuf,
        /// The error of the frame.
        error: hsm_protocol::frame::FrameError,
    },
    /// The process has no connection, so that no thread could use it.
    #[error("the boundary's process has no connection: open it for at least one thread")]
    NoConnection,
    /// An inline boundary reads its keys only at the start of the engine.
    #[error("with boundary.isolation = \"inline\" keys are loaded when the engine starts: restart it")]
    ReloadInline,
    /// A boundary that runs apart reads its keys only at its own start.
    #[error("the boundary at {} loads its keys when it starts: restart it, and the engine connects again", path.display())]
    ReloadApart {
        /// The socket.
        path: PathBuf,
    },
    /// The new keys do not open data under the former keys.
    #[error("{0}: the keys are not reloaded")]
    OtherKeys(KeyMismatch),
    /// The engine stops.
    #[error("the engine stops: its boundary loads no more keys")]
    Stopping,
    /// The process closed the connection before its welcome.
    #[error("{} ended the connection before it served: its own log says why", path.display())]
    Ended {
        /// The program or the socket.
        path: PathBuf,
    },
}

impl BoundaryError {
    /// Whether the token refused the user PIN.
    pub fn refuses_user_pin(&self) -> bool {
        matches!(self, Self::PinRefused(_))
    }
}
