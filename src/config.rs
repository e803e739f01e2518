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

#[cfg(any(feature = "engine", feature = "edge"))]
use crate::tls::ConnectionLimits;

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
    toml::from_str(&text)
        .map_err(|error| ConfigError::Malformed { path: path.to_owned(), message: told(&text, &error) })
}

/// Where a file is wrong and what would be right, but no value of it: that may be a PIN or a token where none belongs.
fn told(text: &str, error: &toml::de::Error) -> String {
    let line = line_of(text, error);
    let message = error.message();
    match message.split_once(", expected ") {
        Some((found, expected)) if !found.starts_with("unknown field") => format!("line {line}: expected {expected}"),
        _ => format!("line {line}: {message}"),
    }
}

/// 1, 2, 3 …
fn line_of(text: &str, error: &toml::de::Error) -> usize {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    before.matches('\n').count() + 1
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

/// The bounds on a listener's connections.
#[cfg(any(feature = "engine", feature = "edge"))]
fn connection_limits(connections: usize, silent_per_address: usize) -> Result<ConnectionLimits, ConfigError> {
    Ok(ConnectionLimits {
        connections_max: within("connections_max", connections, 16..=1_000_000)?,
        silent_per_address_max: within("silent_connections_per_address_max", silent_per_address, 1..=1_000_000)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_stands_in_the_file_itself_is_refused_by_its_line_and_not_repeated() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("engine.toml");
        for wrong in ["user_pin = \"2468\"", "user_pin = 2468", "user_pin = { file = 2468 }", "user_pin = \"24\\\"68\""]
        {
            std::fs::write(&path, format!("[token]\nmodule = \"m.so\"\nlabel = \"a\"\n{wrong}\n")).unwrap();
            let refused = Engine::load(Some(&path)).err().unwrap().to_string();
            assert!(refused.contains("line 4"), "{refused}");
            assert!(!refused.contains("2468") && !refused.contains("68"), "{refused}");
        }
    }

    #[test]
    fn an_unknown_word_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("engine.toml");
        std::fs::write(&path, "listen = \"127.0.0.1:0\"\nlissen = 1\n").unwrap();
        let refused = Engine::load(Some(&path)).err().unwrap().to_string();
        assert!(refused.contains("line 2: unknown field `lissen`"), "{refused}");
    }
}
