//! The key boundary as the engine sees it: in this process, or, as is the rule, in one of its own.
//!
//! Every operation is the door's own (`hsm`). What must never enter: anything clear but an account number on its way to
//! be sealed.

mod inherit;
mod lane;
mod process;
mod succession;

use std::{path::PathBuf, sync::Arc};

use hsm::{
    Accepted, Account, AccountNumber, Binding, CardBinding, DeviceKey, EncryptedBlock, Error, Issued, PinRecord,
    Revealed, SealedAccount, SealedKey, Status, frame::Ask,
};
use thiserror::Error as ThisError;
use tokio::sync::watch;

#[cfg(feature = "keys")]
pub(crate) use self::inherit::DESCRIPTORS_PER_MESSAGE;
pub use self::succession::{KeyMismatch, succeeds};
use self::{
    lane::Lane,
    process::{Process, Source},
};

/// Where the boundary is.
pub enum BoundaryConfig {
    /// In this process.
    #[cfg(feature = "keys")]
    Inline(Box<hsm::Config>),
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

/// What a boundary does at its first start where the vault is not there. Later starts, and a boundary that somebody else
/// runs, never create keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AbsentKeys {
    /// Create the vault: the store holds nothing yet.
    Create,
    /// Fail: what the store holds is under keys that are elsewhere.
    Refuse,
}

/// The key boundary, opened. A clone is another way in, with no wait for the first.
pub struct Boundary {
    place: Place,
    status: watch::Receiver<Arc<Status>>,
}

enum Place {
    #[cfg(feature = "keys")]
    Inline(Arc<hsm::Hsm>),
    Process {
        process: Arc<Process>,
        lane: Arc<Lane>,
    },
}

impl Boundary {
    /// Opens it, with `lanes` ways in: one for each thread that asks.
    pub async fn open(config: BoundaryConfig, lanes: usize, absent: AbsentKeys) -> Result<Self, BoundaryError> {
        let source = match config {
            #[cfg(feature = "keys")]
            BoundaryConfig::Inline(mut config) => {
                config.absent_vault = match absent {
                    AbsentKeys::Create => hsm::AbsentVault::Create,
                    AbsentKeys::Refuse => hsm::AbsentVault::Refuse,
                };
                let hsm = hsm::Hsm::open(*config)?;
                let (_, status) = watch::channel(Arc::new(hsm.status().clone()));
                return Ok(Self { place: Place::Inline(Arc::new(hsm)), status });
            }
            BoundaryConfig::Started { program, arguments } => Source::Started { program, arguments },
            BoundaryConfig::Apart { socket, user } => Source::Apart { socket, user },
        };
        let (process, status) = Process::start(source, lanes, absent).await?;
        let lane = process.lane(0).ok_or(BoundaryError::NoLane)?;
        Ok(Self { place: Place::Process { process, lane }, status })
    }

    /// The same boundary by the lane of thread `number`.
    pub fn for_thread(&self, number: usize) -> Self {
        let place = match &self.place {
            #[cfg(feature = "keys")]
            Place::Inline(hsm) => Place::Inline(Arc::clone(hsm)),
            Place::Process { process, lane } => {
                let lane = process.lane(number).unwrap_or_else(|| Arc::clone(lane));
                Place::Process { process: Arc::clone(process), lane }
            }
        };
        Self { place, status: self.status.clone() }
    }

    /// What it is and promises, now.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status.borrow())
    }

    /// The same, as it changes: when keys were taken up.
    pub fn watched(&self) -> watch::Receiver<Arc<Status>> {
        self.status.clone()
    }

    /// Takes up the keys as a ceremony has left them, while calls go on: another process opens them, and whatever is asked
    /// from then on is asked there. Nothing changes where it fails.
    pub async fn take_up_keys(&self) -> Result<(), BoundaryError> {
        match &self.place {
            #[cfg(feature = "keys")]
            Place::Inline(_) => Err(BoundaryError::TakeUpInline),
            Place::Process { process, .. } => process.renew().await,
        }
    }

    /// See `hsm::Hsm::check`.
    pub async fn check(&self) -> Result<(), Error> {
        match &self.place {
            #[cfg(feature = "keys")]
            Place::Inline(hsm) => hsm.check().await,
            Place::Process { lane, .. } => lane.ask(&Ask::Check).await,
        }
    }

    /// See `hsm::Hsm::issue`.
    pub async fn issue(&self, device: &DeviceKey, binding: &Binding<'_>) -> Result<Issued, Error> {
        match &self.place {
            #[cfg(feature = "keys")]
            Place::Inline(hsm) => hsm.issue(device, binding).await,
            Place::Process { lane, .. } => lane.ask(&Ask::Issue { device, binding }).await,
        }
    }

    /// See `hsm::Hsm::accept`.
    pub async fn accept(
        &self,
        tzpk: &SealedKey,
        binding: &Binding<'_>,
        block: &EncryptedBlock,
        account: Account<'_>,
    ) -> Result<Accepted, hsm::AcceptError> {
        match &self.place {
            #[cfg(feature = "keys")]
            Place::Inline(hsm) => hsm.accept(tzpk, binding, block, account).await,
            Place::Process { lane, .. } => lane.ask_accept(&Ask::Accept { tzpk, binding, block, account }).await,
        }
    }

    /// See `hsm::Hsm::retry_tag`.
    pub async fn retry_tag(&self, binding: &Binding<'_>, block: &EncryptedBlock) -> Result<[u8; 16], Error> {
        match &self.place {
            #[cfg(feature = "keys")]
            Place::Inline(hsm) => hsm.retry_tag(binding, block).await,
            Place::Process { lane, .. } => lane.ask(&Ask::RetryTag { binding, block }).await,
        }
    }

    /// See `hsm::Hsm::reveal`.
    pub async fn reveal(
        &self,
        record: &PinRecord,
        binding: &Binding<'_>,
        account: Account<'_>,
        device: &DeviceKey,
    ) -> Result<Revealed, Error> {
        match &self.place {
            #[cfg(feature = "keys")]
            Place::Inline(hsm) => hsm.reveal(record, binding, account, device).await,
            Place::Process { lane, .. } => lane.ask(&Ask::Reveal { record, binding, account, device }).await,
        }
    }

    /// See `hsm::Hsm::seal_account`.
    pub async fn seal_account(&self, number: &AccountNumber, card: CardBinding<'_>) -> Result<SealedAccount, Error> {
        match &self.place {
            #[cfg(feature = "keys")]
            Place::Inline(hsm) => hsm.seal_account(number, card).await,
            Place::Process { lane, .. } => lane.ask(&Ask::SealAccount { number, card }).await,
        }
    }

    /// See `hsm::Hsm::remake`.
    pub async fn remake(
        &self,
        record: &PinRecord,
        card: CardBinding<'_>,
        account: Account<'_>,
    ) -> Result<PinRecord, Error> {
        match &self.place {
            #[cfg(feature = "keys")]
            Place::Inline(hsm) => hsm.remake(record, card, account).await,
            Place::Process { lane, .. } => lane.ask(&Ask::Remake { record, card, account }).await,
        }
    }

    /// Lets a boundary that this engine started end.
    pub async fn close(&self) {
        match &self.place {
            #[cfg(feature = "keys")]
            Place::Inline(_) => {}
            Place::Process { process, .. } => process.close().await,
        }
    }
}

impl BoundaryError {
    /// Whether the token refused the user PIN.
    pub fn refuses_user_pin(&self) -> bool {
        match self {
            #[cfg(feature = "keys")]
            Self::Hsm(error) => error.refuses_user_pin(),
            Self::PinRefused(_) => true,
            _ => false,
        }
    }
}

/// Why the boundary did not open.
#[derive(Debug, ThisError)]
pub enum BoundaryError {
    /// In this process.
    #[cfg(feature = "keys")]
    #[error(transparent)]
    Hsm(#[from] hsm::OpenError),
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
        error: hsm::frame::FrameError,
    },
    /// No thread would have a way in.
    #[error("no way into the boundary's process was asked for")]
    NoLane,
    /// There is no other process that could open them.
    #[cfg(feature = "keys")]
    #[error("with boundary.isolation = \"inline\" keys are taken up when the engine starts: restart it")]
    TakeUpInline,
    /// Somebody else starts it.
    #[error("the boundary at {} takes up its keys when it starts: restart it, and the engine follows", path.display())]
    TakeUpApart {
        /// The socket.
        path: PathBuf,
    },
    /// It would not open what is there.
    #[error("{0}: the keys are not reloaded")]
    OtherKeys(KeyMismatch),
    /// The engine stops.
    #[error("the engine stops: its boundary takes up no more keys")]
    Stopping,
    /// It ended before it said anything.
    #[error("{} ended the connection before it served: its own log says why", path.display())]
    Ended {
        /// The program or the socket.
        path: PathBuf,
    },
}
