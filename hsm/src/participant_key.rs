//! The private keys of the participants of a ceremony: Ed25519 (RFC 8032), each in a file with mode 0600 or in a PKCS#11
//! token. A participant signs the transcript with this key. The key decrypts nothing.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    rand,
    signature::{Ed25519KeyPair, KeyPair},
};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{
    clear::Clear,
    component::ComponentTerminal,
    config::{LockMemory, ParticipantToken, SlotName},
    harden::harden,
    open_error::{OpenError, Pkcs11Error},
    participant_public_key::{ParticipantPublicKey, SIGNATURE_BYTES},
    token::{SigningKey, TokenSlot},
    vault::{VaultError, VaultWrite, check_private, write_private},
};

/// Bytes of a key file: the private key of RFC 8032, 5.1.5.
const KEY_BYTES: usize = 32;
/// The most bytes of a file that names a token.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// The content of a participant's file.
pub enum ParticipantFile {
    /// The file has 32 bytes: the private key.
    Key(ParticipantKey),
    /// The file has another length: its text, which names a token. Wiped on drop, since it may hold a user PIN.
    Text(Zeroizing<String>),
}

impl ParticipantFile {
    /// Reads a participant's file. No error repeats its text: the text may be a key in another notation.
    ///
    /// # Errors
    /// [`ParticipantError::File`] where the file can't be read, or is a key that others may read;
    /// [`ParticipantError::Length`] where it is longer than 16 KiB or not UTF-8.
    pub fn read(path: &Path) -> Result<Self, ParticipantError> {
        let io = |error| VaultError::Io { path: path.to_owned(), error };
        let file = File::open(path).map_err(io)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(TEXT_BYTES_MAX + 1));
        (&file).take(TEXT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() == KEY_BYTES {
            check_private(&file, path)?;
            let mut seed = Clear::<KEY_BYTES>::zeroed();
            seed.bytes_mut().copy_from_slice(&bytes);
            return ParticipantKey::from_seed(&seed).map(Self::Key);
        }
        match str::from_utf8(&bytes) {
            Ok(text) if bytes.len() <= TEXT_BYTES_MAX => Ok(Self::Text(Zeroizing::new(text.to_owned()))),
            _ => Err(ParticipantError::Length { path: path.to_owned() }),
        }
    }
}

/// The private key of a participant who is present.
pub struct ParticipantKey {
    location: KeyLocation,
    public: ParticipantPublicKey,
}

enum KeyLocation {
    File(Ed25519KeyPair),
    Token(SlotName, Box<SigningKey>),
}

impl ParticipantKey {
    /// Generates a key and writes it to a new file of 32 bytes and mode 0600.
    ///
    /// # Errors
    /// [`ParticipantError::File`] where the file exists or can't be written.
    pub fn make(path: &Path) -> Result<Self, ParticipantError> {
        let mut seed = Clear::<KEY_BYTES>::zeroed();
        rand::fill(seed.bytes_mut()).map_err(|_| ParticipantError::Ed25519)?;
        write_private(path, seed.bytes(), VaultWrite::New)
            .map_err(|error| VaultError::Io { path: path.to_owned(), error })?;
        Self::from_seed(&seed)
    }

    /// Generates a key inside a token that has none yet.
    ///
    /// # Errors
    /// [`ParticipantError::Token`] where the token has a key or no Ed25519, refuses the login, or a call fails.
    pub fn make_in(token: &ParticipantToken) -> Result<Self, ParticipantError> {
        Self::in_token(token, SigningKey::make)
    }

    /// Finds the one key of a token.
    ///
    /// # Errors
    /// [`ParticipantError::Token`] where the token has no key, several or an unsafe one, refuses the login, or a call
    /// fails.
    pub fn find_in(token: &ParticipantToken) -> Result<Self, ParticipantError> {
        Self::in_token(token, SigningKey::find)
    }

    fn in_token(
        token: &ParticipantToken,
        get: impl FnOnce(&TokenSlot, &str) -> Result<SigningKey, Pkcs11Error>,
    ) -> Result<Self, ParticipantError> {
        // Before a user PIN is in memory.
        harden(LockMemory::Try)?;
        let slot = &token.place.slot;
        let failed = |error| ParticipantError::Token { slot: slot.clone(), error };
        let found = TokenSlot::find(&token.place).map_err(failed)?;
        let key = match &token.user_pin {
            Some(user_pin) => get(&found, user_pin),
            None => get(&found, &typed_user_pin(slot)?),
        };
        let key = key.map_err(failed)?;
        let public = key.public();
        Ok(Self { location: KeyLocation::Token(slot.clone(), Box::new(key)), public })
    }

    fn from_seed(seed: &Clear<KEY_BYTES>) -> Result<Self, ParticipantError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.bytes()).map_err(|_| ParticipantError::Ed25519)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| ParticipantError::Ed25519)?;
        Ok(Self { location: KeyLocation::File(pair), public: ParticipantPublicKey::from_bytes(public) })
    }

    /// The public key, which identifies the participant.
    pub fn public(&self) -> ParticipantPublicKey {
        self.public
    }

    /// Signs a message (RFC 8032, 5.1.6).
    ///
    /// # Errors
    /// [`ParticipantError::Token`] where the token fails, or its signature does not verify.
    pub fn sign(&self, message: &[u8]) -> Result<[u8; SIGNATURE_BYTES], ParticipantError> {
        match &self.location {
            KeyLocation::File(pair) => pair.sign(message).as_ref().try_into().map_err(|_| ParticipantError::Ed25519),
            KeyLocation::Token(slot, key) => {
                key.sign(message).map_err(|error| ParticipantError::Token { slot: slot.clone(), error })
            }
        }
    }
}

fn typed_user_pin(slot: &SlotName) -> Result<Zeroizing<String>, ParticipantError> {
    let mut terminal =
        ComponentTerminal::terminal().map_err(|_| ParticipantError::NoTerminal { slot: slot.clone() })?;
    terminal.ask_user_pin(slot).ok().flatten().ok_or_else(|| ParticipantError::NotTyped { slot: slot.clone() })
}

/// A participant's key can't be read, made or used.
#[derive(Debug, Error)]
pub enum ParticipantError {
    /// The file can't be read or written, or others may read it.
    #[error(transparent)]
    File(#[from] VaultError),
    /// The file is neither a key nor a text that names a token.
    #[error("{} is neither a participant's key of 32 bytes nor a text that names a token", path.display())]
    Length {
        /// The participant's file.
        path: PathBuf,
    },
    /// The token fails, or its key can't be used.
    #[error("the participant's token with the {slot}: {error}")]
    Token {
        /// The slot as configured.
        slot: SlotName,
        /// The token's error.
        error: Pkcs11Error,
    },
    /// The process has no terminal to ask for the user PIN.
    #[error(
        "the participant's token with the {slot}: there is no terminal to ask for its user PIN; name the PIN's file in the \
         participant's file, as user_pin = {{ file = \"…\" }}"
    )]
    NoTerminal {
        /// The slot as configured.
        slot: SlotName,
    },
    /// The participant typed no user PIN.
    #[error("the participant's token with the {slot}: no user PIN was typed, and none was tried")]
    NotTyped {
        /// The slot as configured.
        slot: SlotName,
    },
    /// The kernel refuses to keep other processes from this process's memory.
    #[error(transparent)]
    Harden(#[from] OpenError),
    /// The random generator or Ed25519 failed in this process.
    #[error("the random generator or Ed25519 failed")]
    Ed25519,
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_file_is_a_private_key_or_a_token_text() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lea.key");
        let made = ParticipantKey::make(&path).unwrap();
        let Ok(ParticipantFile::Key(read)) = ParticipantFile::read(&path) else { panic!("no key") };
        assert_eq!(read.public(), made.public());
        assert!(made.public().verifies(b"done", &read.sign(b"done").unwrap()));
        assert!(!made.public().verifies(b"not done", &read.sign(b"done").unwrap()));

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(ParticipantFile::read(&path), Err(ParticipantError::File(VaultError::OpenToOthers { .. }))));

        let text = "[token]\nmodule = \"m.so\"\nlabel = \"lea\"\n";
        fs::write(&path, text).unwrap();
        assert!(matches!(ParticipantFile::read(&path), Ok(ParticipantFile::Text(read)) if **read == *text));
        fs::write(&path, [0xFF; 33]).unwrap();
        assert!(matches!(ParticipantFile::read(&path), Err(ParticipantError::Length { .. })));
        fs::write(&path, vec![b' '; TEXT_BYTES_MAX + 1]).unwrap();
        assert!(matches!(ParticipantFile::read(&path), Err(ParticipantError::Length { .. })));
    }
}
