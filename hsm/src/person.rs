//! The keys of the people of a ceremony: Ed25519 (RFC 8032), each in a file that only its owner may read.
//!
//! They sign what was done; they open nothing.

use std::{fmt, path::Path};

use aws_lc_rs::{
    rand,
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use thiserror::Error;

use crate::{
    clear::Clear,
    vault::{VaultError, VaultWrite, read_private, write_private},
};

/// Bytes of a signature.
pub const SIGNATURE_BYTES: usize = 64;

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
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Somebody who is there.
pub struct PersonKey {
    pair: Ed25519KeyPair,
    public: PersonPublicKey,
}

impl PersonKey {
    /// Makes one, in a file of 32 bytes and mode 0600, never over another.
    pub fn make(path: &Path) -> Result<Self, PersonError> {
        let mut seed = Clear::<32>::zeroed();
        rand::fill(seed.bytes_mut()).map_err(|_| PersonError::Ed25519)?;
        write_private(path, seed.bytes(), VaultWrite::New)
            .map_err(|error| VaultError::Io { path: path.to_owned(), error })?;
        Self::of(&seed)
    }

    /// Reads one.
    pub fn read(path: &Path) -> Result<Self, PersonError> {
        let bytes = read_private(path, 32)?;
        let mut seed = Clear::<32>::zeroed();
        if bytes.len() != 32 {
            return Err(PersonError::Length { path: path.to_owned() });
        }
        seed.bytes_mut().copy_from_slice(&bytes);
        Self::of(&seed)
    }

    fn of(seed: &Clear<32>) -> Result<Self, PersonError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.bytes()).map_err(|_| PersonError::Ed25519)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| PersonError::Ed25519)?;
        Ok(Self { pair, public: PersonPublicKey(public) })
    }

    /// Who it is.
    pub fn public(&self) -> PersonPublicKey {
        self.public
    }

    /// Signs.
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        let mut signature = [0; SIGNATURE_BYTES];
        signature.iter_mut().zip(self.pair.sign(message).as_ref()).for_each(|(place, byte)| *place = *byte);
        signature
    }
}

/// Why somebody's key can't be used.
#[derive(Debug, Error)]
pub enum PersonError {
    /// The file.
    #[error(transparent)]
    File(#[from] VaultError),
    /// Not a key.
    #[error("{} is no key of a person: it does not have 32 bytes", path.display())]
    Length {
        /// Which file.
        path: std::path::PathBuf,
    },
    /// No randomness, or no Ed25519.
    #[error("the random generator, or Ed25519, failed")]
    Ed25519,
}
