//! Key check values: enough to tell that two hold the same key, too little to find it.

use std::fmt;

/// A key check value of 3 bytes: for 3DES the first of the encrypted zero block, for AES the first of CMAC over 16 zero
/// bytes (X9.24-1, annex A).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Kcv([u8; 3]);

impl Kcv {
    pub fn first_of(bytes: &[u8]) -> Self {
        let mut first = [0; 3];
        first.iter_mut().zip(bytes).for_each(|(kept, byte)| *kept = *byte);
        Self(first)
    }

    /// A KCV that was written before, of 3 bytes.
    pub fn from_bytes(bytes: [u8; 3]) -> Self {
        Self(bytes)
    }

    /// Its 3 bytes.
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
