//! Reads TOML configuration files and the secrets that they name. Each crate defines its own sections.
//!
//! A secret never stands in the file: the file names a file, an environment variable or a descriptor ([`SecretSource`]).
//! Errors name the line and the key, and never the value, which may be a secret in the wrong place.
//!
//! ```
//! use serde::Deserialize;
//!
//! #[derive(Default, Deserialize)]
//! #[serde(default, deny_unknown_fields)]
//! struct Section {
//!     workers: usize,
//! }
//!
//! let section: Section = config::parse_toml("workers = 4")?;
//! assert_eq!(config::within("workers", section.workers, 1..=240).unwrap(), 4);
//!
//! let error = config::parse_toml::<Section>("workers = 4\nworker = 5").err().unwrap();
//! assert_eq!(error.to_string(), "line 2: unknown field `worker`, expected one of: workers");
//! # Ok::<(), config::TomlError>(())
//! ```

mod known_keys;
mod reader;
mod secret;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use thiserror::Error;

pub use self::{
    known_keys::{KnownKey, known_keys},
    reader::{TomlError, parse_toml},
    secret::{InvisibleCharacter, SecretError, SecretSource},
};

/// The data directory of a configuration without `data_directory`, relative to the working directory.
pub const DATA_DIRECTORY: &str = "pinseal-data";

/// A configuration file that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("can't read the configuration {}: {error}", path.display())]
    Unreadable {
        /// The configuration file.
        path: PathBuf,
        /// The error of the operating system.
        error: std::io::Error,
    },
    /// The file is not TOML, or has an unknown, missing or malformed key.
    #[error("{}: {message}", path.display())]
    Malformed {
        /// The configuration file.
        path: PathBuf,
        /// The line, the key and what is expected; never the value.
        message: String,
    },
    /// A value is out of its range.
    #[error("{key}: {problem}")]
    Value {
        /// The key with its section, for example `token.sessions`.
        key: &'static str,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// A secret that the file names cannot be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

impl ConfigError {
    /// An error in the value of `key`.
    pub fn value(key: &'static str, problem: impl ToString) -> Self {
        Self::Value { key, problem: problem.to_string() }
    }
}

/// Reads a configuration file. Without a path, returns the defaults.
///
/// # Errors
/// The file cannot be read, is not TOML, or does not fit `T`.
pub fn read_file<T: DeserializeOwned + Default>(path: Option<&Path>) -> Result<T, ConfigError> {
    let Some(path) = path else { return Ok(T::default()) };
    let text =
        std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
    parse_toml(&text).map_err(|error| ConfigError::Malformed { path: path.to_owned(), message: error.to_string() })
}

/// Checks that the value of `key` is within `range`, and returns it.
///
/// # Errors
/// The value is out of its range.
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
