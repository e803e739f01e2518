//! The public key of a participant of a ceremony: Ed25519 (RFC 8032).

use std::fmt;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};

/// Bytes of an Ed25519 signature (RFC 8032, 5.1.6).
pub const SIGNATURE_BYTES: usize = 64;

/// The Ed25519 public key that identifies a participant: 32 bytes. `Display` writes 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParticipantPublicKey([u8; 32]);

impl ParticipantPublicKey {
    /// Takes the encoding of RFC 8032, 5.1.2. A point that is not on the curve verifies no signature.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The encoding of RFC 8032, 5.1.2.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether `signature` is this participant's signature of `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(message, signature).is_ok()
    }
}

impl fmt::Display for ParticipantPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", base16ct::HexDisplay(&self.0))
    }
}
