//! Key check values (KCV). Two parties compare them to verify that they have the same key.

use std::fmt;

/// The key check value (ANSI X9.24-1, annex A), 3 bytes. AES: CMAC of a zero block. 3DES: the encrypted zero block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Kcv([u8; 3]);

impl Kcv {
    /// The first 3 bytes of `bytes`.
    pub fn first_of(bytes: &[u8]) -> Self {
        let mut first = [0; 3];
        first.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
        Self(first)
    }

    /// A KCV of its 3 bytes.
    pub fn from_bytes(bytes: [u8; 3]) -> Self {
        Self(bytes)
    }

    /// The 3 bytes.
    pub fn as_bytes(&self) -> &[u8; 3] {
        &self.0
    }
}

impl fmt::Display for Kcv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02X}"))
    }
}

impl fmt::Debug for Kcv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
