//! The allowed translations of PIN blocks: one table (PCI PIN 3-3).

use hsm_protocol::{BoundaryLevel, Error, StorageFormat, ZoneFormat};

/// One end of a translation: the holder of the key, and the format of the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The cardholder's device: an ISO 9564 format 1 block under a tzpk.
    Device,
    /// Storage: a record of this format under a storage key.
    Record(StorageFormat),
    /// Another party: a block of this format under a zone key.
    Zone(ZoneFormat),
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The place that the block comes from.
    pub source: Place,
    /// The place that the block goes to.
    pub target: Place,
    /// The boundary level that does this translation.
    pub level: BoundaryLevel,
}

use BoundaryLevel::{Host, Token};
use Place::{Device, Record, Zone};
use StorageFormat::{Iso0, Iso3, Iso4, OneWay, Wrapped};

/// Every allowed translation. Each keeps the account of the source; a block of format 1 gets the account of its control or
/// card. A block of format 1 is made of a record alone, for a view or a zone's client: no block of another format becomes one
/// on its way between zones. A one-way record is the source of none.
pub const TRANSLATIONS: &[Translation] = &[
    row(Device, Record(Iso4), Host),
    row(Device, Record(Iso3), Host),
    row(Device, Record(Iso0), Host),
    row(Device, Record(OneWay), Host),
    row(Record(Iso4), Device, Host),
    row(Record(Iso3), Device, Host),
    row(Record(Iso0), Device, Host),
    row(Record(Iso4), Record(Iso4), Host),
    row(Record(Iso4), Record(Iso3), Host),
    row(Record(Iso4), Record(Iso0), Host),
    row(Record(Iso3), Record(Iso4), Host),
    row(Record(Iso3), Record(Iso3), Host),
    row(Record(Iso3), Record(Iso0), Host),
    row(Record(Iso0), Record(Iso4), Host),
    row(Record(Iso0), Record(Iso3), Host),
    row(Record(Iso0), Record(Iso0), Host),
    row(Record(Iso4), Record(OneWay), Host),
    row(Record(Iso3), Record(OneWay), Host),
    row(Record(Iso0), Record(OneWay), Host),
    row(Device, Record(Wrapped), Token),
    row(Device, Record(Iso4), Token),
    row(Device, Record(Iso3), Token),
    row(Record(Wrapped), Device, Token),
    row(Record(Iso3), Device, Token),
    row(Record(Wrapped), Record(Wrapped), Token),
    row(Record(Iso3), Record(Iso3), Token),
    row(Zone(ZoneFormat::Iso0), Record(Iso4), Host),
    row(Zone(ZoneFormat::Iso0), Record(Iso3), Host),
    row(Zone(ZoneFormat::Iso0), Record(Iso0), Host),
    row(Zone(ZoneFormat::Iso1), Record(Iso4), Host),
    row(Zone(ZoneFormat::Iso1), Record(Iso3), Host),
    row(Zone(ZoneFormat::Iso1), Record(Iso0), Host),
    row(Zone(ZoneFormat::Iso3), Record(Iso4), Host),
    row(Zone(ZoneFormat::Iso3), Record(Iso3), Host),
    row(Zone(ZoneFormat::Iso3), Record(Iso0), Host),
    row(Zone(ZoneFormat::Iso4), Record(Iso4), Host),
    row(Zone(ZoneFormat::Iso4), Record(Iso3), Host),
    row(Zone(ZoneFormat::Iso4), Record(Iso0), Host),
    row(Zone(ZoneFormat::Iso0), Record(OneWay), Host),
    row(Zone(ZoneFormat::Iso1), Record(OneWay), Host),
    row(Zone(ZoneFormat::Iso3), Record(OneWay), Host),
    row(Zone(ZoneFormat::Iso4), Record(OneWay), Host),
    row(Record(Iso4), Zone(ZoneFormat::Iso0), Host),
    row(Record(Iso4), Zone(ZoneFormat::Iso1), Host),
    row(Record(Iso4), Zone(ZoneFormat::Iso3), Host),
    row(Record(Iso4), Zone(ZoneFormat::Iso4), Host),
    row(Record(Iso3), Zone(ZoneFormat::Iso0), Host),
    row(Record(Iso3), Zone(ZoneFormat::Iso1), Host),
    row(Record(Iso3), Zone(ZoneFormat::Iso3), Host),
    row(Record(Iso3), Zone(ZoneFormat::Iso4), Host),
    row(Record(Iso0), Zone(ZoneFormat::Iso0), Host),
    row(Record(Iso0), Zone(ZoneFormat::Iso1), Host),
    row(Record(Iso0), Zone(ZoneFormat::Iso3), Host),
    row(Record(Iso0), Zone(ZoneFormat::Iso4), Host),
    row(Zone(ZoneFormat::Iso0), Zone(ZoneFormat::Iso0), Host),
    row(Zone(ZoneFormat::Iso0), Zone(ZoneFormat::Iso3), Host),
    row(Zone(ZoneFormat::Iso0), Zone(ZoneFormat::Iso4), Host),
    row(Zone(ZoneFormat::Iso1), Zone(ZoneFormat::Iso0), Host),
    row(Zone(ZoneFormat::Iso1), Zone(ZoneFormat::Iso3), Host),
    row(Zone(ZoneFormat::Iso1), Zone(ZoneFormat::Iso4), Host),
    row(Zone(ZoneFormat::Iso3), Zone(ZoneFormat::Iso0), Host),
    row(Zone(ZoneFormat::Iso3), Zone(ZoneFormat::Iso3), Host),
    row(Zone(ZoneFormat::Iso3), Zone(ZoneFormat::Iso4), Host),
    row(Zone(ZoneFormat::Iso4), Zone(ZoneFormat::Iso0), Host),
    row(Zone(ZoneFormat::Iso4), Zone(ZoneFormat::Iso3), Host),
    row(Zone(ZoneFormat::Iso4), Zone(ZoneFormat::Iso4), Host),
    row(Zone(ZoneFormat::Iso1), Record(Wrapped), Token),
    row(Zone(ZoneFormat::Iso1), Record(Iso4), Token),
    row(Zone(ZoneFormat::Iso1), Record(Iso3), Token),
    row(Record(Wrapped), Zone(ZoneFormat::Iso1), Token),
    row(Record(Iso3), Zone(ZoneFormat::Iso1), Token),
    row(Record(Iso3), Zone(ZoneFormat::Iso3), Token),
];

const fn row(source: Place, target: Place, level: BoundaryLevel) -> Translation {
    Translation { source, target, level }
}

/// Checks that the table contains a translation.
///
/// # Errors
/// [`Error::OneWay`] for a one-way record; [`Error::WriteOnly`] for a format 4 record of level `token`, which no storage key
/// there decrypts; [`Error::TranslationNotAllowed`] for every other pair that is not in the table.
pub(crate) fn check_translation(level: BoundaryLevel, source: Place, target: Place) -> Result<(), Error> {
    if TRANSLATIONS.contains(&row(source, target, level)) {
        return Ok(());
    }
    match (level, source) {
        (_, Record(OneWay)) => Err(Error::OneWay),
        (Token, Record(Iso4)) => Err(Error::WriteOnly),
        _ => Err(Error::TranslationNotAllowed),
    }
}
