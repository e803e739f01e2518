//! The private key of a participant: in a file, or in a token that a file names.
//!
//! What must never enter: a key, or a user PIN that was typed. Both stay inside `hsm`.

use std::path::Path;

use hsm::{ParticipantError, ParticipantFile, ParticipantKey};
use thiserror::Error;

use config::ConfigError;

/// Opens the key in a file, or in the token that the file names.
///
/// # Errors
/// The file can't be read or is malformed, or the token refuses the login or has no key.
pub fn read(path: &Path) -> Result<ParticipantKey, ParticipantKeyError> {
    match ParticipantFile::read(path)? {
        ParticipantFile::Key(key) => Ok(key),
        ParticipantFile::Text(text) => Ok(ParticipantKey::find_in(&hsm_config::person_token(path, &text)?)?),
    }
}

/// Makes a key in the token that a file names.
///
/// # Errors
/// The file holds a key, can't be read or is malformed; or the token refuses the login or has a key already.
pub fn make_in_token(path: &Path) -> Result<ParticipantKey, ParticipantKeyError> {
    match ParticipantFile::read(path)? {
        ParticipantFile::Key(_) => Err(ParticipantKeyError::NoToken { path: path.to_owned() }),
        ParticipantFile::Text(text) => Ok(ParticipantKey::make_in(&hsm_config::person_token(path, &text)?)?),
    }
}

/// A participant's key can't be opened or made.
#[derive(Debug, Error)]
pub enum ParticipantKeyError {
    /// The file holds a key; it must name a token.
    #[error("{} is a key and names no token: nothing was made; name a file with a [token] section", path.display())]
    NoToken {
        /// The path of the file.
        path: std::path::PathBuf,
    },
    /// The file that names a token is malformed.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The key file or the token fails.
    #[error(transparent)]
    Key(#[from] ParticipantError),
}
