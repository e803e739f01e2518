//! The formats of PIN blocks under zone keys.

use std::fmt;

/// Bytes of the longest block.
pub(crate) const BLOCK_BYTES_MAX: usize = 16;

/// The format of a PIN block under a zone key (ISO 9564-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneFormat {
    /// Format 0: 8 bytes under 3DES, bound to the account number.
    Iso0,
    /// Format 1: 8 bytes under 3DES, bound to no account number.
    Iso1,
    /// Format 3: 8 bytes under 3DES, bound to the account number.
    Iso3,
    /// Format 4: 16 bytes under AES, bound to the account number.
    Iso4,
}

impl ZoneFormat {
    /// The formats, in ascending order.
    pub const ALL: [Self; 4] = [Self::Iso0, Self::Iso1, Self::Iso3, Self::Iso4];

    /// The name in configurations, requests and audit events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iso0 => "iso-0",
            Self::Iso1 => "iso-1",
            Self::Iso3 => "iso-3",
            Self::Iso4 => "iso-4",
        }
    }

    /// Reads the text of [`ZoneFormat::name`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == text)
    }

    /// The bytes of an encrypted block: 8, or 16 for format 4.
    pub fn block_bytes(self) -> usize {
        if self.needs_aes() { BLOCK_BYTES_MAX } else { 8 }
    }

    /// Whether the zone key is an AES key; a 3DES key otherwise.
    pub fn needs_aes(self) -> bool {
        self == Self::Iso4
    }

    /// Whether a block is bound to the account number.
    pub fn binds_account(self) -> bool {
        self != Self::Iso1
    }
}

impl fmt::Display for ZoneFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
