//! In which form a PIN is kept.

/// In which form PINs are kept from now on. Records of every form of the same level go on being read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredForm {
    /// The device's own block, unread, wrapped under a key of its account and its own: level `token` alone.
    Wrapped,
    /// ISO 9564 format 4 under an AES-256 storage key. At level `token` for devices that fill with A, and never shown.
    Iso4,
    /// Format 3 under a 3DES storage key: an exception, with the date it ends as the operator wrote it. At level `token`
    /// for devices that fill within A to F.
    Iso3 {
        /// The date.
        until: String,
    },
    /// Format 0 under the 3DES storage key, level `host` alone: an exception, with the date it ends.
    Iso0 {
        /// The date.
        until: String,
    },
}

impl StoredForm {
    /// The form without its date.
    pub fn form(&self) -> StorageFormat {
        match self {
            Self::Wrapped => StorageFormat::Wrapped,
            Self::Iso4 => StorageFormat::Iso4,
            Self::Iso3 { .. } => StorageFormat::Iso3,
            Self::Iso0 { .. } => StorageFormat::Iso0,
        }
    }

    /// The date a 3DES form ends.
    pub fn until(&self) -> Option<&str> {
        match self {
            Self::Wrapped | Self::Iso4 => None,
            Self::Iso3 { until } | Self::Iso0 { until } => Some(until),
        }
    }
}

/// The form of a stored block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageFormat {
    /// The device's own block under `CKM_AES_KEY_WRAP_PAD` and a key of its own, AES-256, derived from the account and a
    /// salt: salt(16) and wrapped block(24).
    Wrapped,
    /// ISO 9564 format 4, AES-256.
    Iso4,
    /// ISO 9564 format 3, 3DES.
    Iso3,
    /// ISO 9564 format 0, 3DES.
    Iso0,
}

impl StorageFormat {
    /// As configurations and audit lines name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wrapped => "wrapped",
            Self::Iso4 => "iso-4",
            Self::Iso3 => "iso-3",
            Self::Iso0 => "iso-0",
        }
    }
}

impl StorageFormat {
    /// For people.
    pub fn told(self) -> &'static str {
        match self {
            Self::Wrapped => "the device's own block",
            Self::Iso4 => "ISO 9564 format 4",
            Self::Iso3 => "ISO 9564 format 3",
            Self::Iso0 => "ISO 9564 format 0",
        }
    }
}
