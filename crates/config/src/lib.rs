//! Reads configuration files and the secrets that they name. It knows no section: each crate reads its own.
//!
//! The files are TOML; an unknown key is an error; every key has a default; secrets are named by file or environment
//! variable and never stand in the file itself.

mod reader;
mod secret;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use thiserror::Error;

pub use self::{
    reader::{TomlError, parse_toml},
    secret::{SecretError, SecretSource},
};

/// The data directory where the configuration names none.
pub const DATA_DIRECTORY: &str = "pinseal-data";

/// A configuration that can't be served, and what to change.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration {}: {error}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{}: {message}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// A value is out of its range.
    #[error("{key}: {problem}")]
    Value {
        /// The key, as in the file.
        key: &'static str,
        /// What is wrong, and what is right.
        problem: String,
    },
    /// A secret can't be had.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

impl ConfigError {
    /// A value of `key` that is out of its range.
    pub fn value(key: &'static str, problem: impl ToString) -> Self {
        Self::Value { key, problem: problem.to_string() }
    }
}

/// Reads a file; without one, the defaults.
///
/// # Errors
/// The file cannot be read, or is not what `T` expects.
pub fn read_file<T: DeserializeOwned + Default>(path: Option<&Path>) -> Result<T, ConfigError> {
    let Some(path) = path else { return Ok(T::default()) };
    let text =
        std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
    parse_toml(&text).map_err(|error| ConfigError::Malformed { path: path.to_owned(), message: error.to_string() })
}

/// A number within its range.
///
/// # Errors
/// The number is out of its range.
pub fn within<T: PartialOrd + std::fmt::Display>(
    key: &'static str,
    value: T,
    range: std::ops::RangeInclusive<T>,
) -> Result<T, ConfigError> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::value(key, format!("{value} is not within {} to {}", range.start(), range.end())))
}
