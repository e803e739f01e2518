//! The engine's side of the key boundary: the trait [`Boundary`], and its client for a boundary in a separate process.
//!
//! What must never enter: a clear PIN, block or key, or a cipher. An account number may pass on its way to be sealed.
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
mod inherit;
mod process;
mod succession;

use std::{path::PathBuf, pin::Pin, sync::Arc};

use hsm_protocol::{Error, Reply, Request, Status};
use thiserror::Error as ThisError;
use tokio::sync::watch;

pub use self::succession::{KeyMismatch, succeeds};
use self::{connection::Connection, process::Process};

/// What a boundary does at its first start when the vault is missing. Later starts, and a boundary that runs apart, never
/// create keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbsentKeys {
    /// Create the vault: the store holds nothing yet.
    Create,
    /// Fail: what the store holds is under keys that are elsewhere.
    Refuse,
}

/// The future of a boundary's answer.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The opened key boundary, in a separate process or in the caller's.
pub trait Boundary: Send + Sync + 'static {
    /// The same boundary over the connection of thread `number`.
    fn for_thread(&self, number: usize) -> Arc<dyn Boundary>;

    /// The status of the boundary; it changes when keys are reloaded.
    fn watched(&self) -> watch::Receiver<Arc<Status>>;

    /// Reloads the keys after a ceremony, while calls go on. Nothing changes when it fails.
    fn reload_keys(&self) -> Answer<'_, Result<(), BoundaryError>>;

    /// Does one operation.
    fn execute(&self, request: Request) -> Answer<'_, Result<Reply, Error>>;

    /// Checks that the token answers.
    fn check(&self) -> Answer<'_, Result<(), Error>> {
        Box::pin(async {
            match self.execute(Request::Check).await? {
                Reply::Available => Ok(()),
                _ => Err(Error::UnexpectedReply),
            }
        })
    }

    /// Ends a boundary that this engine started.
    fn close(&self) -> Answer<'_, ()>;

    /// What the boundary is and promises, now.
    fn status(&self) -> Arc<Status>;
}

/// How a boundary is opened, once the store says whether it may create keys.
pub trait OpenBoundary: Send {
    /// Opens the boundary with `connections`: one for each thread that asks.
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
        Box::pin(self.process.renew())
    }

    fn execute(&self, request: Request) -> Answer<'_, Result<Reply, Error>> {
        Box::pin(async move { self.connection.execute(&request).await })
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(self.process.close())
    }
}

impl BoundaryError {
    /// Whether the token refused the user PIN.
    pub fn refuses_user_pin(&self) -> bool {
        matches!(self, Self::PinRefused(_))
    }
}

/// Why the boundary did not open.
#[derive(Debug, ThisError)]
pub enum BoundaryError {
    /// In its own process: what that said.
    #[error("{0}")]
    Closed(String),
    /// The token refused the user PIN: what its process said. Another login could lock the PIN, so that none is tried before
    /// a reload or a restart.
    #[error("{0}")]
    PinRefused(String),
    /// Its process can't be started or reached.
    #[error("{}: {error}", path.display())]
    Io {
        /// The program or the socket.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Something else answers there.
    #[error("{}: {error}", path.display())]
    Frame {
        /// The program or the socket.
        path: PathBuf,
        /// Why.
        error: hsm_protocol::frame::FrameError,
    },
    /// No thread would have a way in.
    #[error("no connection to the boundary's process was asked for")]
    NoConnection,
    /// There is no other process that could open them.
    #[error("with boundary.isolation = \"inline\" keys are loaded when the engine starts: restart it")]
    ReloadInline,
    /// Somebody else starts it.
    #[error("the boundary at {} loads its keys when it starts: restart it, and the engine connects again", path.display())]
    ReloadApart {
        /// The socket.
        path: PathBuf,
    },
    /// It would not open what is there.
    #[error("{0}: the keys are not reloaded")]
    OtherKeys(KeyMismatch),
    /// The engine stops.
    #[error("the engine stops: its boundary loads no more keys")]
    Stopping,
    /// It ended before it said anything.
    #[error("{} ended the connection before it served: its own log says why", path.display())]
    Ended {
        /// The program or the socket.
        path: PathBuf,
    },
}
