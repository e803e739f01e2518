//! The errors of the boundary's process.

use std::{io, path::PathBuf};

use config::ConfigError;
use thiserror::Error;

use crate::confine::ConfineError;

/// An error that ends the boundary's process.
#[derive(Debug, Error)]
pub enum HsmProcessError {
    /// The configuration is missing or wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The keys did not open.
    #[error(transparent)]
    Open(#[from] hsm::OpenError),
    /// The process could not drop a privilege.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// Standard input is not the socket of an engine, or its signals could not be handled.
    #[error(
        "can't receive connections of an engine over standard input ({0}): use --listen, or let an engine start this"
    )]
    Inherit(io::Error),
    /// The process can't listen on its socket.
    #[error("can't listen on {}: {error}", path.display())]
    Listen {
        /// The Unix socket.
        path: PathBuf,
        /// The error of the kernel.
        error: io::Error,
    },
    /// `--try-escape` traces and signals the parent process, so one must exist in this PID namespace.
    #[error("--try-escape needs a parent process to attack: start it from a shell")]
    NoParent,
    /// The kernel allowed actions of `--try-escape`.
    #[error("{count} attempts were let through: don't waive confinement steps, or use a kernel that supports them")]
    LetThrough {
        /// The number of allowed actions.
        count: usize,
    },
    /// The report of `--try-escape` could not be written.
    #[error("can't write the report: {0}")]
    Report(io::Error),
    /// A thread, or its event loop, could not be created.
    #[error("can't start a thread: {0}")]
    Thread(io::Error),
}

impl HsmProcessError {
    /// Whether the token refused the user PIN.
    pub fn refuses_user_pin(&self) -> bool {
        matches!(self, Self::Open(error) if error.refuses_user_pin())
    }
}
