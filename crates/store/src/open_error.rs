//! Why a store is not opened.

use std::{error::Error, io, path::PathBuf};

use config::ConfigError;
use thiserror::Error;

/// Why a store is not opened. Nothing was written where another program's files are.
#[derive(Debug, Error)]
pub enum StoreOpenError {
    /// The configuration can't be read, or its section `[store]` is malformed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another process has locked the store.
    #[error("the store {} is in use by another process: stop that engine first", path.display())]
    Locked {
        /// The directory of the store.
        path: PathBuf,
    },
    /// The directory is absent or empty, and a store must exist.
    #[error("there is no store in {}: name the directory of a store, such as pinseal-data/store", path.display())]
    Absent {
        /// The directory of the store.
        path: PathBuf,
    },
    /// The directory holds files that are not a store's.
    #[error("{} is not empty and not a Pinseal store: choose another directory", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
    },
    /// The directory holds a backup.
    #[error("{} is a backup of a store: restore it into another directory with `pinseal store restore`", path.display())]
    Backup {
        /// The directory of the backup.
        path: PathBuf,
    },
    /// The store has the format of another release.
    #[error("the store {} has format {version}, and this release reads format {supported}: use the release that wrote it", path.display())]
    Version {
        /// The directory of the store.
        path: PathBuf,
        /// The format of the store.
        version: u32,
        /// The format that this release reads and writes.
        supported: u32,
    },
    /// The store can't be read.
    #[error(
        "the store {} is damaged ({problem}): restore a backup (`pinseal store restore`), or rescue what can be read \
         (`pinseal store salvage`)",
        path.display()
    )]
    Damaged {
        /// The directory of the store.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// The disk has no space for what a start writes.
    #[error("the disk of the store {} is full: free space, then start again", path.display())]
    DiskFull {
        /// The directory of the store.
        path: PathBuf,
    },
    /// The operating system refused to read or write a file, or to start a thread.
    #[error("can't open the store {}: {error}; check its disk, its mount and its permissions", path.display())]
    Io {
        /// The directory of the store.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The files of the store can't be copied.
    #[error("can't copy the store {} to read it: {error}; TMPDIR names a directory with space for the copy", path.display())]
    Copy {
        /// The directory of the store.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The copy of the store does not open.
    #[error("the store {}, read from a copy, does not open: {error}", path.display())]
    OpenCopy {
        /// The directory of the store.
        path: PathBuf,
        /// The error that names the copy.
        error: Box<StoreOpenError>,
    },
    /// The database can't be opened.
    #[error(transparent)]
    Database(Box<dyn Error + Send + Sync>),
}
