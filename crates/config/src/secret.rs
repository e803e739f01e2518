//! Secrets that an operator supplies in a file, an environment variable or a descriptor. Buffers are wiped on drop.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

/// The longest secret, in bytes.
const SECRET_BYTES_MAX: usize = 4096;
/// The byte order mark of UTF-8.
const BYTE_ORDER_MARK: char = '\u{FEFF}';

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
    /// The secret is missing, empty or longer than 4096 bytes, users other than the owner may read its file, or the secret has
    /// characters that an editor or a shell adds and that no one sees: a byte order mark, a blank at an end, a line end or
    /// another control character.
    pub fn read(&self) -> Result<Zeroizing<String>, SecretError> {
        let text = self.read_lines()?;
        let problem = if text.trim().len() < text.len() {
            InvisibleCharacter::BlankAtEnd
        } else if text.contains(char::is_control) {
            InvisibleCharacter::Control
        } else {
            return Ok(text);
        };
        Err(SecretError::Invisible { origin: self.to_string(), problem })
    }

    /// Reads a secret list that has one item a line.
    ///
    /// # Errors
    /// The list is missing, empty or longer than 4096 bytes, has a byte order mark, or users other than the owner may read its
    /// file.
    pub fn read_lines(&self) -> Result<Zeroizing<String>, SecretError> {
        let text = match self {
            Self::File(path) => from_file(path)?,
            Self::Descriptor(number) => from_descriptor(*number)?,
            Self::Env(name) => from_variable(name)?,
        };
        if text.contains(BYTE_ORDER_MARK) {
            return Err(SecretError::Invisible {
                origin: self.to_string(),
                problem: InvisibleCharacter::ByteOrderMark,
            });
        }
        match text.len() {
            1..=SECRET_BYTES_MAX => Ok(text),
            _ => Err(SecretError::Length { origin: self.to_string() }),
        }
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "in the file {}", path.display()),
            Self::Env(name) => write!(f, "in the environment variable {name}"),
            Self::Descriptor(number) => write!(f, "of descriptor {number}"),
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
    #[error("the secret {origin} is empty or too long: a secret has 1 to {SECRET_BYTES_MAX} bytes")]
    Length {
        /// For example "in the file /etc/pinseal/token".
        origin: String,
    },
    /// The secret has characters that no one sees.
    #[error("the secret {origin} {problem}")]
    Invisible {
        /// For example "in the file /etc/pinseal/token".
        origin: String,
        /// The characters.
        problem: InvisibleCharacter,
    },
}

/// Characters of a secret that no one sees; with them a login fails, and nobody finds why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InvisibleCharacter {
    /// U+FEFF, which some editors write at the start of a file.
    #[error("has a byte order mark (U+FEFF): remove it, and save the file as UTF-8 without one")]
    ByteOrderMark,
    /// White space at the start or at the end.
    #[error("begins or ends with white space: remove it")]
    BlankAtEnd,
    /// A line end or another control character inside.
    #[error("has a line end or another control character: remove it, a secret is one line")]
    Control,
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};

    use super::*;

    fn read(bytes: &[u8]) -> Result<String, SecretError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        let mut file = File::options().create_new(true).write(true).mode(0o600).open(&path).unwrap();
        file.write_all(bytes).unwrap();
        SecretSource::File(path).read().map(|secret| secret.as_str().to_owned())
    }

    #[test]
    fn line_ends_at_the_end_of_a_file_are_removed() {
        for text in ["correct horse", "correct horse\n", "correct horse\r\n", "correct horse\n\n"] {
            assert_eq!(read(text.as_bytes()).unwrap(), "correct horse");
        }
    }

    #[test]
    fn characters_that_no_one_sees_are_rejected() {
        use InvisibleCharacter::{BlankAtEnd, ByteOrderMark, Control};
        for (text, expected) in [
            ("\u{feff}zebra", ByteOrderMark),
            ("ze\u{feff}bra\n", ByteOrderMark),
            (" zebra", BlankAtEnd),
            ("zebra \n", BlankAtEnd),
            ("zebra\t", BlankAtEnd),
            ("\nzebra", BlankAtEnd),
            ("zebra\u{a0}", BlankAtEnd),
            ("ze\nbra", Control),
            ("ze\0bra", Control),
        ] {
            let error = read(text.as_bytes()).unwrap_err();
            assert!(!error.to_string().contains("bra"), "{error}");
            assert!(
                matches!(error, SecretError::Invisible { problem, .. } if problem == expected),
                "{text:?}: {error}"
            );
        }
    }
}
