//! The key boundary as the engine sees it: in this process, or, as is the rule, in one of its own.
//!
//! Every operation is the door's own (`hsm`). What must never enter: anything clear but an account number on its way to
//! be sealed.

mod inherit;
mod lane;
mod process;
mod succession;

use std::{path::PathBuf, pin::Pin, sync::Arc};

use hsm_protocol::{
    AcceptError, Accepted, Account, AccountNumber, Binding, CardBinding, DeviceKey, EncryptedBlock, Error, Issued,
    PinRecord, Revealed, SealedAccount, SealedKey, Status, frame::Ask,
};
use thiserror::Error as ThisError;
use tokio::sync::watch;

pub use self::succession::{KeyMismatch, succeeds};
use self::{lane::Lane, process::Process};

/// What a boundary does at its first start where the vault is not there. Later starts, and a boundary that somebody else
/// runs, never create keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbsentKeys {
    /// Create the vault: the store holds nothing yet.
    Create,
    /// Fail: what the store holds is under keys that are elsewhere.
    Refuse,
}

/// The answer of a boundary, in time.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The key boundary, opened: in a process of its own ([`ProcessBoundary`]), or in the caller's.
pub trait Boundary: Send + Sync + 'static {
    /// The same boundary by the connection of thread `number`.
    fn for_thread(&self, number: usize) -> Arc<dyn Boundary>;

    /// What it is and promises, as that changes: when keys were reloaded.
    fn watched(&self) -> watch::Receiver<Arc<Status>>;

    /// Reloads the keys as a ceremony has left them, while calls go on. Nothing changes where it fails.
    fn reload_keys(&self) -> Answer<'_, Result<(), BoundaryError>>;

    /// Whether the keys can be used now.
    fn check(&self) -> Answer<'_, Result<(), Error>>;

    /// Makes a fresh tzpk, for the device and sealed for ourselves.
    fn issue<'a>(&'a self, device: &'a DeviceKey, binding: &'a Binding<'a>) -> Answer<'a, Result<Issued, Error>>;

    /// Translates a block under a tzpk to a record.
    fn accept<'a>(
        &'a self,
        tzpk: &'a SealedKey,
        binding: &'a Binding<'a>,
        block: &'a EncryptedBlock,
        account: Account<'a>,
    ) -> Answer<'a, Result<Accepted, AcceptError>>;

    /// The tag by which a retry of a block is known.
    fn retry_tag<'a>(
        &'a self,
        binding: &'a Binding<'a>,
        block: &'a EncryptedBlock,
    ) -> Answer<'a, Result<[u8; 16], Error>>;

    /// Translates a record to a block under a fresh tzpk.
    fn reveal<'a>(
        &'a self,
        record: &'a PinRecord,
        binding: &'a Binding<'a>,
        account: Account<'a>,
        device: &'a DeviceKey,
    ) -> Answer<'a, Result<Revealed, Error>>;

    /// Seals an account number.
    fn seal_account<'a>(
        &'a self,
        number: &'a AccountNumber,
        card: CardBinding<'a>,
    ) -> Answer<'a, Result<SealedAccount, Error>>;

    /// Re-encrypts a record under the newest storage key.
    fn remake<'a>(
        &'a self,
        record: &'a PinRecord,
        card: CardBinding<'a>,
        account: Account<'a>,
    ) -> Answer<'a, Result<PinRecord, Error>>;

    /// Lets a boundary that this engine started end.
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

/// Where the process of a boundary is.
pub enum ProcessConfig {
    /// In a process that the engine starts and, should it fail, starts again.
    Started {
        /// What to run.
        program: PathBuf,
        /// With which arguments.
        arguments: Vec<std::ffi::OsString>,
    },
    /// In a process that somebody else runs.
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
            let lane = process.lane(0).ok_or(BoundaryError::NoLane)?;
            Ok(Arc::new(ProcessBoundary { process, lane, status }) as Arc<dyn Boundary>)
        })
    }
}

/// The key boundary in a process of its own.
struct ProcessBoundary {
    process: Arc<Process>,
    lane: Arc<Lane>,
    status: watch::Receiver<Arc<Status>>,
}

impl Boundary for ProcessBoundary {
    fn for_thread(&self, number: usize) -> Arc<dyn Boundary> {
        let lane = self.process.lane(number).unwrap_or_else(|| Arc::clone(&self.lane));
        Arc::new(Self { process: Arc::clone(&self.process), lane, status: self.status.clone() })
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

    fn check(&self) -> Answer<'_, Result<(), Error>> {
        Box::pin(self.lane.ask(&Ask::Check))
    }

    fn issue<'a>(&'a self, device: &'a DeviceKey, binding: &'a Binding<'a>) -> Answer<'a, Result<Issued, Error>> {
        Box::pin(async move { self.lane.ask(&Ask::Issue { device, binding }).await })
    }

    fn accept<'a>(
        &'a self,
        tzpk: &'a SealedKey,
        binding: &'a Binding<'a>,
        block: &'a EncryptedBlock,
        account: Account<'a>,
    ) -> Answer<'a, Result<Accepted, AcceptError>> {
        Box::pin(async move { self.lane.ask_accept(&Ask::Accept { tzpk, binding, block, account }).await })
    }

    fn retry_tag<'a>(
        &'a self,
        binding: &'a Binding<'a>,
        block: &'a EncryptedBlock,
    ) -> Answer<'a, Result<[u8; 16], Error>> {
        Box::pin(async move { self.lane.ask(&Ask::RetryTag { binding, block }).await })
    }

    fn reveal<'a>(
        &'a self,
        record: &'a PinRecord,
        binding: &'a Binding<'a>,
        account: Account<'a>,
        device: &'a DeviceKey,
    ) -> Answer<'a, Result<Revealed, Error>> {
        Box::pin(async move { self.lane.ask(&Ask::Reveal { record, binding, account, device }).await })
    }

    fn seal_account<'a>(
        &'a self,
        number: &'a AccountNumber,
        card: CardBinding<'a>,
    ) -> Answer<'a, Result<SealedAccount, Error>> {
        Box::pin(async move { self.lane.ask(&Ask::SealAccount { number, card }).await })
    }

    fn remake<'a>(
        &'a self,
        record: &'a PinRecord,
        card: CardBinding<'a>,
        account: Account<'a>,
    ) -> Answer<'a, Result<PinRecord, Error>> {
        Box::pin(async move { self.lane.ask(&Ask::Remake { record, card, account }).await })
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
    #[error("no way into the boundary's process was asked for")]
    NoLane,
    /// There is no other process that could open them.
    #[error("with boundary.isolation = \"inline\" keys are loaded when the engine starts: restart it")]
    TakeUpInline,
    /// Somebody else starts it.
    #[error("the boundary at {} loads its keys when it starts: restart it, and the engine follows", path.display())]
    TakeUpApart {
        /// The socket.
        path: PathBuf,
    },
    /// It would not open what is there.
    #[error("{0}: the keys are not reloaded")]
    OtherKeys(KeyMismatch),
    /// The engine stops.
    #[error("the engine stops: its boundary reloads no keys")]
    Stopping,
    /// It ended before it said anything.
    #[error("{} ended the connection before it served: its own log says why", path.display())]
    Ended {
        /// The program or the socket.
        path: PathBuf,
    },
}
