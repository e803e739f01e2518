//! The formats of stored PIN blocks.

/// The format of new records. The boundary reads records of every format of its level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewRecordFormat {
    /// The device's block, wrapped under a key of the account and the record: level `token` only.
    Wrapped,
    /// ISO 9564 format 4 under an AES-256 storage key. At level `token` for devices that fill with A, and write-only.
    Iso4,
    /// ISO 9564 format 3 under a 3DES storage key: an exception with an end date. At level `token` for devices that fill
    /// with A to F.
    Iso3 {
        /// The end date as the operator wrote it.
        until: String,
    },
    /// ISO 9564 format 0 under a 3DES storage key, level `host` only: an exception with an end date.
    Iso0 {
        /// The end date as the operator wrote it.
        until: String,
    },
    /// A CMAC of the PIN, level `host` only: the PIN can be verified, and not decrypted.
    OneWay,
}

impl NewRecordFormat {
    /// The format without its end date.
    pub fn form(&self) -> StorageFormat {
        match self {
            Self::Wrapped => StorageFormat::Wrapped,
            Self::Iso4 => StorageFormat::Iso4,
            Self::Iso3 { .. } => StorageFormat::Iso3,
            Self::Iso0 { .. } => StorageFormat::Iso0,
            Self::OneWay => StorageFormat::OneWay,
        }
    }

    /// The end date of a 3DES format.
    pub fn until(&self) -> Option<&str> {
        match self {
            Self::Wrapped | Self::Iso4 | Self::OneWay => None,
            Self::Iso3 { until } | Self::Iso0 { until } => Some(until),
        }
    }
}

/// The format of a stored block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorageFormat {
    /// The device's block, wrapped by `CKM_AES_KEY_WRAP_PAD` under an AES-256 key that is derived from the account and a salt:
    /// salt(16) and wrapped block(24).
    Wrapped,
    /// ISO 9564 format 4, AES-256.
    Iso4,
    /// ISO 9564 format 3, 3DES.
    Iso3,
    /// ISO 9564 format 0, 3DES.
    Iso0,
    /// A salted AES-256-CMAC of the PIN and its card: salt(16) and CMAC(16). It has no block to decrypt.
    OneWay,
}

impl StorageFormat {
    /// The name in configurations and audit events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wrapped => "wrapped",
            Self::Iso4 => "iso-4",
            Self::Iso3 => "iso-3",
            Self::Iso0 => "iso-0",
            Self::OneWay => "one-way",
        }
    }

    /// The name for people.
    pub fn description(self) -> &'static str {
        match self {
            Self::Wrapped => "the device's block",
            Self::Iso4 => "ISO 9564 format 4",
            Self::Iso3 => "ISO 9564 format 3",
            Self::Iso0 => "ISO 9564 format 0",
            Self::OneWay => "a one-way value of the PIN",
        }
    }
}
