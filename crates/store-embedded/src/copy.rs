//! A copy of a stopped engine's store, for a command that only reads it: fjall writes to each directory that it opens, so
//! the store itself is never opened.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tempfile::TempDir;
use thiserror::Error;

use super::{
    DATABASE, Embedded, EmbeddedConfig, StoreOpenError,
    journal::{self, JournalError},
    prepare,
};

/// How the name of the copy's directory begins.
const PREFIX: &str = "pinseal-store-copy-";

/// A store opened from a copy, which is removed when this is dropped.
pub struct StoreCopy {
    // Dropped in this order: the directory goes once the store is closed.
    store: Embedded,
    _directory: TempDir,
}

impl StoreCopy {
    /// Copies a store to the directory for temporary files (`TMPDIR`), with mode 0700, and opens the copy. The store is
    /// locked while it is copied, and no byte of it changes.
    ///
    /// # Errors
    /// There is no store, an engine has it, it can't be copied, or the copy does not open.
    pub fn open(directory: &Path) -> Result<Self, StoreCopyError> {
        // Writes nothing to a directory that must exist already.
        prepare(&EmbeddedConfig::existing(directory.to_owned()))?;
        let copy = copy_locked(directory)?;
        let store = Embedded::open(&EmbeddedConfig::existing(copy.path().to_owned()));
        let store = store.map_err(|error| StoreCopyError::Open { path: directory.to_owned(), error })?;
        Ok(Self { store, _directory: copy })
    }

    /// The store. What is written to it is lost.
    pub fn store(&self) -> &Embedded {
        &self.store
    }
}

fn copy_locked(directory: &Path) -> Result<TempDir, StoreCopyError> {
    let path = || directory.to_owned();
    let _lock = journal::lock_to_read(&directory.join(DATABASE)).map_err(|error| match error {
        JournalError::Io(error) => StoreCopyError::Copy { path: path(), error },
        JournalError::Locked | JournalError::Damaged { .. } => StoreOpenError::Locked { path: path() }.into(),
    })?;
    let copied = || {
        let copy = tempfile::Builder::new().prefix(PREFIX).permissions(Permissions::from_mode(0o700)).tempdir()?;
        copy_directory(directory, copy.path())?;
        Ok(copy)
    };
    copied().map_err(|error| StoreCopyError::Copy { path: path(), error })
}

/// Copies the files and directories in `from` into `to`, which exists.
fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    for entry in from.read_dir()? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let metadata = fs::metadata(&source)?;
        if metadata.is_dir() {
            fs::create_dir(&target)?;
            copy_directory(&source, &target)?;
        } else if metadata.is_file() {
            io::copy(&mut File::open(&source)?, &mut File::create_new(&target)?)?;
        } else {
            let problem = format!("{} is neither a file nor a directory", source.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
    }
    Ok(())
}

/// Why a store is not read.
#[derive(Debug, Error)]
pub enum StoreCopyError {
    /// There is no store in the directory, or an engine has it.
    #[error(transparent)]
    Store(#[from] StoreOpenError),
    /// The files of the store can't be copied.
    #[error("can't copy the store {} to read it: {error}; TMPDIR names a directory with room for it", path.display())]
    Copy {
        /// The store's directory.
        path: PathBuf,
        /// What the machine said.
        error: io::Error,
    },
    /// The copy does not open.
    #[error("the store {}, read from a copy, does not open: {error}", path.display())]
    Open {
        /// The store's directory.
        path: PathBuf,
        /// Of the copy.
        error: StoreOpenError,
    },
}
