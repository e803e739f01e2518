//! What an operator writes → what the house works with, once, at start.
//!
//! The files are TOML; an unknown key is an error; every key has a default; secrets are named by file or environment
//! variable and never stand in the file itself.

#[cfg(feature = "engine")]
#[cfg_attr(not(feature = "keys"), allow(dead_code, reason = "an engine that holds no key reads past it"))]
mod boundary;
#[cfg(feature = "edge")]
mod edge;
#[cfg(feature = "engine")]
mod engine;
#[cfg(feature = "keys")]
mod hsm;
#[cfg(feature = "keys")]
mod person;
#[cfg_attr(not(any(feature = "keys", feature = "edge")), allow(dead_code, reason = "an engine reads no secret"))]
mod secret;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use thiserror::Error;

#[cfg(feature = "keys")]
pub use self::hsm::{HsmProcess, Token, load_keys, load_token};
#[cfg(feature = "keys")]
pub use self::person::person_token;
#[cfg(feature = "edge")]
pub use edge::Edge;
#[cfg(feature = "keys")]
pub use engine::Isolation;
#[cfg(feature = "engine")]
pub use engine::{Engine, Peer};
pub use secret::SecretError;

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
    fn value(key: &'static str, problem: impl ToString) -> Self {
        Self::Value { key, problem: problem.to_string() }
    }
}

/// Reads a file of low configuration; none stands for the defaults.
fn low<T: DeserializeOwned + Default>(path: Option<&Path>) -> Result<T, ConfigError> {
    let Some(path) = path else { return Ok(T::default()) };
    let text =
        std::fs::read_to_string(path).map_err(|error| ConfigError::Unreadable { path: path.to_owned(), error })?;
    toml::from_str(&text).map_err(|error| ConfigError::Malformed { path: path.to_owned(), message: error.to_string() })
}

/// A number within its range.
fn within<T: PartialOrd + std::fmt::Display>(
    key: &'static str,
    value: T,
    range: std::ops::RangeInclusive<T>,
) -> Result<T, ConfigError> {
    if range.contains(&value) {
        return Ok(value);
    }
    Err(ConfigError::value(key, format!("{value} is not within {} to {}", range.start(), range.end())))
}
