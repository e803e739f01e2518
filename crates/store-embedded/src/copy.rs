//! A copy of a stopped engine's store, for a command that only reads it: fjall writes to each directory that it opens, so
//! the store itself is never opened.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use tempfile::TempDir;

use super::{
    Absent, Contents, DATABASE, Embedded, EmbeddedConfig, contents,
    journal::{self, JournalError},
};
use clock::MachineTime;
use store::{StoreOpenError, engine_name};

/// How the name of the copy's directory begins.
pub(super) const PREFIX: &str = "pinseal-store-copy-";

impl Embedded {
    /// Copies a store or a backup to the directory for temporary files (`TMPDIR`), with mode 0700, and opens the copy, which is removed
    /// when the returned store is dropped. The store is locked while it is copied, and no byte of it changes. The copy has
    /// the engine name of the store; what is written to it is lost.
    ///
    /// # Errors
    /// There is no store, an engine has the store open, the store can't be copied, or the copy does not open.
    pub fn open_copy(directory: &Path) -> Result<Self, StoreOpenError> {
        if contents(directory)? == Contents::Nothing {
            return Err(StoreOpenError::Absent { path: directory.to_owned() });
        }
        let copy = copy_locked(directory)?;
        // What is written to the copy is lost, so it needs no reserve.
        let config = EmbeddedConfig { reserve_bytes: 0, ..EmbeddedConfig::existing(copy.path().to_owned()) };
        let opened = Self::open_prepared(&config, Box::new(MachineTime), Absent::Refuse);
        let mut store = opened.map_err(|error| match (directory.to_owned(), error) {
            (path, StoreOpenError::Damaged { problem, .. }) => StoreOpenError::Damaged { path, problem },
            (path, error) => StoreOpenError::OpenCopy { path, error: error.into() },
        })?;
        store.engine_name = engine_name(directory).into();
        store.copy = Some(copy);
        Ok(store)
    }
}

fn copy_locked(directory: &Path) -> Result<TempDir, StoreOpenError> {
    let path = || directory.to_owned();
    let _lock = journal::lock_to_read(&directory.join(DATABASE)).map_err(|error| match error {
        JournalError::Io(error) => StoreOpenError::Copy { path: path(), error },
        JournalError::Locked | JournalError::Damaged { .. } | JournalError::Missing(_) => {
            StoreOpenError::Locked { path: path() }
        }
    })?;
    let copied = || {
        let copy = tempfile::Builder::new().prefix(PREFIX).permissions(Permissions::from_mode(0o700)).tempdir()?;
        copy_directory(directory, copy.path())?;
        Ok(copy)
    };
    copied().map_err(|error| StoreOpenError::Copy { path: path(), error })
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
