//! Files of signed checkpoints, and the public key that opens them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use audit::{
    note::{NoteError, VerifierKey},
    tree_head::{TreeHead, TreeHeadError},
};

/// Reads the argument `--verifier-key`: a public key, or the file that holds one.
///
/// # Errors
/// The text is no key, and no file of this name holds one.
pub(crate) fn verifier_key(text: &str) -> Result<VerifierKey, SignedCheckpointError> {
    text.parse().or_else(|_| read_verifier_key(Path::new(text)))
}

fn read_verifier_key(path: &Path) -> Result<VerifierKey, SignedCheckpointError> {
    let key = |problem: String| SignedCheckpointError::VerifierKey { path: path.to_owned(), problem };
    let text = fs::read_to_string(path).map_err(|error| key(error.to_string()))?;
    text.trim().parse().map_err(|error: NoteError| key(error.to_string()))
}

/// Opens a signed checkpoint. Without a key, the file `verifier-key` beside the checkpoint is read.
///
/// # Errors
/// A file can't be read, or the checkpoint is not signed by the key.
pub(crate) fn read(path: &Path, key: Option<&VerifierKey>) -> Result<TreeHead, SignedCheckpointError> {
    let note =
        fs::read_to_string(path).map_err(|error| SignedCheckpointError::File { path: path.to_owned(), error })?;
    let opened = match key {
        Some(key) => TreeHead::open(&note, key),
        None => TreeHead::open(&note, &read_verifier_key(&path.with_file_name("verifier-key"))?),
    };
    opened.map_err(|error| SignedCheckpointError::Note { path: path.to_owned(), error })
}

/// Why a signed checkpoint or its key is not used.
#[derive(Debug, Error)]
pub(crate) enum SignedCheckpointError {
    /// The file can't be read.
    #[error("{}: {error}", path.display())]
    File {
        /// The checkpoint.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// Neither a key nor a file with one.
    #[error(
        "{}: {problem}; --verifier-key takes the file `verifier-key` of the engine, or its text NAME+ID+KEY", path.display()
    )]
    VerifierKey {
        /// The text, as a path.
        path: PathBuf,
        /// The error of the file or of its text.
        problem: String,
    },
    /// The note does not open.
    #[error("{}: {error}", path.display())]
    Note {
        /// The checkpoint.
        path: PathBuf,
        /// The part that does not hold.
        error: TreeHeadError,
    },
}
