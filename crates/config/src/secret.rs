//! Secrets that an operator supplies in a file, an environment variable or a descriptor. Buffers are wiped on drop.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

/// The longest secret, in bytes.
const SECRET_BYTES_MAX: usize = 4096;

/// Where a secret comes from: `{ file = "…" }`, `{ env = "…" }` or `{ descriptor = 3 }`.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum SecretSource {
    /// A file that only its owner may read (mode 0600). Line ends at its end are removed.
    File(PathBuf),
    /// An environment variable.
    Env(String),
    /// The number of an open descriptor that the process inherited; it is read to its end.
    Descriptor(u32),
}

impl SecretSource {
    /// Reads the secret.
    ///
    /// # Errors
    /// The secret is missing, empty or longer than 4096 bytes, or users other than the owner may read its file.
    pub fn read(&self) -> Result<Zeroizing<String>, SecretError> {
        let text = match self {
            Self::File(path) => from_file(path)?,
            Self::Descriptor(number) => from_descriptor(*number)?,
            Self::Env(name) => from_variable(name)?,
        };
        match text.len() {
            1..=SECRET_BYTES_MAX => Ok(text),
            _ => Err(SecretError::Length),
        }
    }
}

fn from_variable(name: &str) -> Result<Zeroizing<String>, SecretError> {
    let missing = || SecretError::NoVariable { name: name.to_owned() };
    let value = std::env::var_os(name).ok_or_else(missing)?;
    text(value.into_encoded_bytes()).ok_or_else(missing)
}

fn from_descriptor(number: u32) -> Result<Zeroizing<String>, SecretError> {
    let path = PathBuf::from(format!("/dev/fd/{number}"));
    let read = File::open(&path).and_then(read_whole);
    read.map_err(|error| SecretError::Unreadable { path, error })
}

fn from_file(path: &Path) -> Result<Zeroizing<String>, SecretError> {
    use std::os::unix::fs::PermissionsExt;

    let unreadable = |error| SecretError::Unreadable { path: path.to_owned(), error };
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(SecretError::OpenToOthers { path: path.to_owned() });
    }
    read_whole(file).map_err(unreadable)
}

/// Reads a text without the line ends at its end. The buffer never grows: a growing vector leaves copies in freed memory. A
/// text that is too long is read in part; the part is too long as well, so the caller rejects it.
fn read_whole(mut file: File) -> io::Result<Zeroizing<String>> {
    let mut buffer = Zeroizing::new(vec![0; SECRET_BYTES_MAX + 3]);
    let mut length = 0;
    while let Some(place) = buffer.get_mut(length..).filter(|place| !place.is_empty()) {
        match file.read(place) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer.truncate(length);
    let mut text = text(std::mem::take(&mut *buffer)).ok_or(io::ErrorKind::InvalidData)?;
    let kept = text.trim_end_matches(['\n', '\r']).len();
    text.truncate(kept);
    Ok(text)
}

/// Converts bytes to text. Bytes that are not UTF-8 are wiped.
fn text(bytes: Vec<u8>) -> Option<Zeroizing<String>> {
    match String::from_utf8(bytes) {
        Ok(text) => Some(Zeroizing::new(text)),
        Err(error) => {
            error.into_bytes().zeroize();
            None
        }
    }
}

/// A secret that cannot be read.
#[derive(Debug, Error)]
pub enum SecretError {
    /// The file can't be read.
    #[error("can't read the secret file {}: {error}", path.display())]
    Unreadable {
        /// The secret file, or `/dev/fd/N` of a descriptor.
        path: PathBuf,
        /// The error of the operating system.
        error: std::io::Error,
    },
    /// Users other than the owner may read the file.
    #[error("the secret file {} can be read by others than its owner: chmod 600 it", path.display())]
    OpenToOthers {
        /// The secret file.
        path: PathBuf,
    },
    /// The variable is not set, or is not UTF-8.
    #[error("the environment variable {name} is not set, or is not UTF-8: set it, or name a file")]
    NoVariable {
        /// The name of the variable.
        name: String,
    },
    /// The secret is empty or longer than 4096 bytes.
    #[error("the secret is empty or too long: a secret has 1 to {SECRET_BYTES_MAX} bytes")]
    Length,
}
