//! A person's own key as they bring it: in a file, or in a token that a file names.
//!
//! What must never enter: a key, or a user PIN that was typed. Both stay inside `hsm`.

use std::path::Path;

use hsm::{PersonError, PersonKey, Shown};
use thiserror::Error;

use config::ConfigError;

/// The key that a file holds, or that the token holds which it names.
pub fn read(path: &Path) -> Result<PersonKey, ParticipantKeyError> {
    match Shown::read(path)? {
        Shown::Key(key) => Ok(key),
        Shown::Text(text) => Ok(PersonKey::find_in(&hsm_config::person_token(path, &text)?)?),
    }
}

/// Makes a key in the token that a file names.
pub fn make_in_token(path: &Path) -> Result<PersonKey, ParticipantKeyError> {
    match Shown::read(path)? {
        Shown::Key(_) => Err(ParticipantKeyError::NoToken { path: path.to_owned() }),
        Shown::Text(text) => Ok(PersonKey::make_in(&hsm_config::person_token(path, &text)?)?),
    }
}

/// Why somebody's key can't be had.
#[derive(Debug, Error)]
pub enum ParticipantKeyError {
    /// A key where a token was to be named.
    #[error("{} is a key, and names no token: nothing was made", path.display())]
    NoToken {
        /// Which file.
        path: std::path::PathBuf,
    },
    /// The file that names a token.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The key, or the token.
    #[error(transparent)]
    Key(#[from] PersonError),
}
