//! What an operation answers with: ciphertext, sealed blobs and check values. Nothing clear can be put in.

use crate::check_value::Kcv;
use crate::sealed::{EncryptedBlock, PinRecord, SealedKey};

/// A fresh tzpk.
pub struct Issued {
    /// For ourselves, with its binding.
    pub sealed: SealedKey,
    /// For the device: RSA-OAEP.
    pub wrapped: Vec<u8>,
    /// To compare.
    pub check_value: Kcv,
}

/// An accepted PIN.
pub struct Accepted {
    /// To keep.
    pub record: PinRecord,
    /// Tells a retry from another block.
    pub retry_tag: [u8; 16],
}

/// A PIN on its way to its device.
pub struct Revealed {
    /// The fresh tzpk, for the device: RSA-OAEP.
    pub wrapped: Vec<u8>,
    /// The PIN, as an ISO-1 block under it.
    pub block: EncryptedBlock,
    /// Of the tzpk.
    pub check_value: Kcv,
}
