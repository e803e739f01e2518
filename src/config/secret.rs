//! Secrets an operator hands in: named by file or environment variable, read once, wiped.

use std::path::PathBuf;

use serde::Deserialize;
use thiserror::Error;
use zeroize::Zeroizing;

/// The longest secret taken, in bytes.
const SECRET_BYTES_MAX: usize = 4096;

/// Where a secret comes from: `{ file = "…" }`, `{ env = "…" }` or `{ descriptor = 3 }`.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum SecretSource {
    /// A file that only its owner reads; a newline at its end is cut.
    File(PathBuf),
    /// An environment variable.
    Env(String),
    /// A descriptor this process was started with, read to its end.
    Descriptor(u32),
}

impl SecretSource {
    /// Reads it.
    pub(super) fn read(&self) -> Result<Zeroizing<String>, SecretError> {
        let text = match self {
            Self::File(path) => from_file(path)?,
            Self::Descriptor(number) => from_descriptor(*number)?,
            Self::Env(name) => {
                Zeroizing::new(std::env::var(name).map_err(|_| SecretError::NoVariable { name: name.clone() })?)
            }
        };
        match text.len() {
            1..=SECRET_BYTES_MAX => Ok(text),
            _ => Err(SecretError::Length),
        }
    }
}

fn from_descriptor(number: u32) -> Result<Zeroizing<String>, SecretError> {
    let path = PathBuf::from(format!("/dev/fd/{number}"));
    let read = std::fs::read_to_string(&path).map(Zeroizing::new);
    let mut text = read.map_err(|error| SecretError::Unreadable { path, error })?;
    let kept = text.trim_end_matches(['\n', '\r']).len();
    text.truncate(kept);
    Ok(text)
}

fn from_file(path: &PathBuf) -> Result<Zeroizing<String>, SecretError> {
    use std::os::unix::fs::PermissionsExt;

    let unreadable = |error| SecretError::Unreadable { path: path.clone(), error };
    let mode = std::fs::metadata(path).map_err(unreadable)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(SecretError::OpenToOthers { path: path.clone() });
    }
    let mut text = Zeroizing::new(std::fs::read_to_string(path).map_err(unreadable)?);
    let kept = text.trim_end_matches(['\n', '\r']).len();
    text.truncate(kept);
    Ok(text)
}

/// Why a secret can't be had.
#[derive(Debug, Error)]
pub enum SecretError {
    /// The file can't be read.
    #[error("can't read the secret file {}: {error}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// Others may read the file.
    #[error("the secret file {} can be read by others than its owner: chmod 600 it", path.display())]
    OpenToOthers {
        /// Which file.
        path: PathBuf,
    },
    /// The variable is not set.
    #[error("the environment variable {name} is not set, or is not text")]
    NoVariable {
        /// Which variable.
        name: String,
    },
    /// Empty or too long.
    #[error("a secret is 1 to {SECRET_BYTES_MAX} bytes")]
    Length,
}
