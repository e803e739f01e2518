//! Zones: parties that share a zone PIN key (ZPK) with this engine. Their PIN blocks, and the rules of each zone.

use std::fmt;

use crate::layout_error::LayoutError;
use crate::sealed::KeyVersion;
use crate::zone_format::{BLOCK_BYTES_MAX, ZoneFormat};
use crate::zone_name::ZoneName;

/// An encrypted PIN block under a zone key: 8 bytes, or 16 in format 4. No `Debug`: it must not be printed, even encrypted.
#[derive(Clone)]
pub struct ZoneBlock {
    bytes: [u8; BLOCK_BYTES_MAX],
    format: ZoneFormat,
}

impl ZoneBlock {
    /// Reads a block of exactly the bytes that its format has.
    ///
    /// # Errors
    /// Another number of bytes.
    pub fn from_bytes(format: ZoneFormat, block: &[u8]) -> Result<Self, LayoutError> {
        let mut bytes = [0; BLOCK_BYTES_MAX];
        match bytes.get_mut(..format.block_bytes()) {
            Some(place) if place.len() == block.len() => place.copy_from_slice(block),
            _ => return Err(LayoutError::Length { what: "PIN block under a zone key" }),
        }
        Ok(Self { bytes, format })
    }

    /// The format that the sender names. Only the boundary can check it.
    pub fn format(&self) -> ZoneFormat {
        self.format
    }

    /// The 8 or 16 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.format.block_bytes()).unwrap_or_default()
    }
}

/// The key of a block under a zone key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneKey {
    /// The zone: the key is `zone:NAME` of the key inventory.
    pub zone: ZoneName,
    /// An active version; `None` for the newest, which alone encrypts.
    pub version: Option<KeyVersion>,
}

/// An operation that the configuration allows a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneUse {
    /// The zone's client sets PINs: a block becomes a record.
    SetPin,
    /// The zone's client reads PINs: a record becomes a format 1 block.
    GetPin,
    /// A block of the zone is compared with a record or a verification value.
    Verify,
    /// A block of the zone that proves the old PIN, and another that holds the new one: the zone sets the PIN.
    Change,
    /// Records are exported as blocks of format 0, 3 or 4.
    Export,
    /// Blocks are translated between this zone and another, for the same account number.
    Translate,
}

impl ZoneUse {
    /// The uses, in the order in which reports list them.
    pub const ALL: [Self; 6] = [Self::SetPin, Self::GetPin, Self::Verify, Self::Change, Self::Export, Self::Translate];

    /// The name in configurations and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::SetPin => "set-pin",
            Self::GetPin => "get-pin",
            Self::Verify => "verify",
            Self::Change => "change",
            Self::Export => "export",
            Self::Translate => "translate",
        }
    }

    /// Reads the text of [`ZoneUse::name`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == text)
    }
}

impl fmt::Display for ZoneUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The treatment of a 3DES zone key with a byte of even parity. The cipher ignores the parity bits (FIPS 46-3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ParityPolicy {
    /// The key is used.
    #[default]
    Ignore,
    /// The key is used, and the status names the key.
    Warn,
    /// The boundary does not open.
    Reject,
}

/// The rules of one zone. A zone without rules is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneRules {
    /// The zone: its key is `zone:NAME` of the key inventory.
    pub name: ZoneName,
    /// The tenant whose cards the zone may name.
    pub tenant: String,
    /// The formats of its blocks; the first is the format of a request that names none.
    pub formats: Vec<ZoneFormat>,
    /// The allowed operations.
    pub uses: Vec<ZoneUse>,
    /// The treatment of a 3DES key with even parity.
    pub parity: ParityPolicy,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_has_exactly_the_bytes_of_its_format() {
        for format in ZoneFormat::ALL {
            for length in 0..=24 {
                let read = ZoneBlock::from_bytes(format, &vec![9; length]);
                let right = length == if format == ZoneFormat::Iso4 { 16 } else { 8 };
                assert_eq!(read.is_ok_and(|block| block.as_bytes() == vec![9; length]), right, "{format} {length}");
            }
        }
    }

    #[test]
    fn the_name_of_a_format_or_use_is_read_back() {
        assert!(ZoneFormat::ALL.into_iter().all(|format| ZoneFormat::parse(format.name()) == Some(format)));
        assert!(ZoneUse::ALL.into_iter().all(|one| ZoneUse::parse(one.name()) == Some(one)));
        assert!(ZoneFormat::parse("iso-2").is_none() && ZoneUse::parse("view").is_none());
    }
}
