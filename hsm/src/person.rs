//! The keys of the people of a ceremony: Ed25519 (RFC 8032), each in a file that only its owner may read, or in a PKCS#11
//! token that its owner alone logs in to.
//!
//! They sign what was done; they open nothing.

use std::{
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    rand,
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{
    clear::Clear,
    component::ComponentTerminal,
    config::{LockMemory, PersonToken, SlotName},
    harden::harden,
    open_error::Pkcs11Error,
    token::{OwnToken, SigningKey},
    vault::{VaultError, VaultWrite, is_private, write_private},
};

/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 64;
/// Bytes of a key in a file.
const KEY_BYTES: usize = 32;
/// The longest text that says where a key is.
const TEXT_BYTES_MAX: usize = 16 * 1024;

/// Who somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PersonPublicKey([u8; 32]);

impl PersonPublicKey {
    /// From 32 bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether they signed this.
    pub fn signed(&self, message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }
}

impl fmt::Display for PersonPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", base16ct::HexDisplay(&self.0))
    }
}

/// What a file of somebody's holds.
pub enum Shown {
    /// Their key: 32 bytes that nobody else may read.
    Key(PersonKey),
    /// Of any other length: the text that says where their key is.
    Text(Zeroizing<String>),
}

impl Shown {
    /// Reads a participant's file. No error repeats its text: the text may be a key in another notation.
    pub fn read(path: &Path) -> Result<Self, PersonError> {
        let io = |error| VaultError::Io { path: path.to_owned(), error };
        let file = File::open(path).map_err(io)?;
        let mut bytes = Zeroizing::new(Vec::with_capacity(TEXT_BYTES_MAX + 1));
        (&file).take(TEXT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).map_err(io)?;
        if bytes.len() == KEY_BYTES {
            is_private(&file, path)?;
            let mut seed = Clear::<KEY_BYTES>::zeroed();
            seed.bytes_mut().copy_from_slice(&bytes);
            return PersonKey::of(&seed).map(Self::Key);
        }
        match str::from_utf8(&bytes) {
            Ok(text) if bytes.len() <= TEXT_BYTES_MAX => Ok(Self::Text(Zeroizing::new(text.to_owned()))),
            _ => Err(PersonError::Length { path: path.to_owned() }),
        }
    }
}

/// Somebody who is there.
pub struct PersonKey {
    location: KeyLocation,
    public: PersonPublicKey,
}

enum KeyLocation {
    File(Ed25519KeyPair),
    Token(SlotName, Box<SigningKey>),
}

impl PersonKey {
    /// Makes one, in a file of 32 bytes and mode 0600, never over another.
    pub fn make(path: &Path) -> Result<Self, PersonError> {
        let mut seed = Clear::<KEY_BYTES>::zeroed();
        rand::fill(seed.bytes_mut()).map_err(|_| PersonError::Ed25519)?;
        write_private(path, seed.bytes(), VaultWrite::New)
            .map_err(|error| VaultError::Io { path: path.to_owned(), error })?;
        Self::of(&seed)
    }

    /// Makes one inside a token, never a second.
    pub fn make_in(token: &PersonToken) -> Result<Self, PersonError> {
        Self::in_token(token, SigningKey::make)
    }

    /// Finds the one in a token.
    pub fn find_in(token: &PersonToken) -> Result<Self, PersonError> {
        Self::in_token(token, SigningKey::find)
    }

    fn in_token(
        token: &PersonToken,
        get: impl FnOnce(&OwnToken, &str) -> Result<SigningKey, Pkcs11Error>,
    ) -> Result<Self, PersonError> {
        // A user PIN is about to be in memory.
        harden(LockMemory::Try).map_err(|error| PersonError::Harden(error.to_string()))?;
        let slot = &token.place.slot;
        let refused = |error| PersonError::Token { slot: slot.clone(), error };
        let found = OwnToken::find(&token.place).map_err(refused)?;
        let key = match &token.user_pin {
            Some(user_pin) => get(&found, user_pin),
            None => get(&found, &typed_user_pin(slot)?),
        };
        let key = key.map_err(refused)?;
        let public = key.public();
        Ok(Self { location: KeyLocation::Token(slot.clone(), Box::new(key)), public })
    }

    fn of(seed: &Clear<KEY_BYTES>) -> Result<Self, PersonError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.bytes()).map_err(|_| PersonError::Ed25519)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| PersonError::Ed25519)?;
        Ok(Self { location: KeyLocation::File(pair), public: PersonPublicKey(public) })
    }

    /// Who it is.
    pub fn public(&self) -> PersonPublicKey {
        self.public
    }

    /// Signs.
    pub fn sign(&self, message: &[u8]) -> Result<[u8; SIGNATURE_BYTES], PersonError> {
        match &self.location {
            KeyLocation::File(pair) => pair.sign(message).as_ref().try_into().map_err(|_| PersonError::Ed25519),
            KeyLocation::Token(slot, key) => {
                key.sign(message).map_err(|error| PersonError::Token { slot: slot.clone(), error })
            }
        }
    }
}

fn typed_user_pin(slot: &SlotName) -> Result<Zeroizing<String>, PersonError> {
    let mut terminal = ComponentTerminal::terminal().map_err(|_| PersonError::NoTerminal { slot: slot.clone() })?;
    terminal.ask_user_pin(slot).ok().flatten().ok_or_else(|| PersonError::NotTyped { slot: slot.clone() })
}

/// Why somebody's key can't be used.
#[derive(Debug, Error)]
pub enum PersonError {
    /// The file.
    #[error(transparent)]
    File(#[from] VaultError),
    /// Not a key.
    #[error("{} is no key of a person, of 32 bytes, nor the text that says which token holds one", path.display())]
    Length {
        /// Which file.
        path: PathBuf,
    },
    /// The token.
    #[error("a person's token, with the {slot}: {error}")]
    Token {
        /// Which.
        slot: SlotName,
        /// Why.
        error: Pkcs11Error,
    },
    /// Nobody can be asked.
    #[error(
        "a person's token, with the {slot}: there is no terminal to ask for its user PIN on; let its file say where that is, \
         as user_pin = {{ file = \"…\" }}"
    )]
    NoTerminal {
        /// Which.
        slot: SlotName,
    },
    /// Nothing was typed.
    #[error("a person's token, with the {slot}: no user PIN was typed, and none was tried")]
    NotTyped {
        /// Which.
        slot: SlotName,
    },
    /// Core dumps and tracers can't be kept out.
    #[error("{0}")]
    Harden(String),
    /// No randomness, or no Ed25519.
    #[error("the random generator, or Ed25519, failed")]
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
        let made = PersonKey::make(&path).unwrap();
        let Ok(Shown::Key(read)) = Shown::read(&path) else { panic!("no key") };
        assert_eq!(read.public(), made.public());
        assert!(made.public().signed(b"done", &read.sign(b"done").unwrap()));
        assert!(!made.public().signed(b"not done", &read.sign(b"done").unwrap()));

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Shown::read(&path), Err(PersonError::File(VaultError::OpenToOthers { .. }))));

        let text = "[token]\nmodule = \"m.so\"\nlabel = \"lea\"\n";
        fs::write(&path, text).unwrap();
        assert!(matches!(Shown::read(&path), Ok(Shown::Text(read)) if **read == *text));
        fs::write(&path, [0xFF; 33]).unwrap();
        assert!(matches!(Shown::read(&path), Err(PersonError::Length { .. })));
        fs::write(&path, vec![b' '; TEXT_BYTES_MAX + 1]).unwrap();
        assert!(matches!(Shown::read(&path), Err(PersonError::Length { .. })));
    }
}
