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

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDS: [StorageFormat; 5] = [Wrapped, Iso4, Iso3, Iso0, OneWay];

    fn places() -> Vec<Place> {
        let zones = ZoneFormat::ALL.map(Zone);
        [Device].into_iter().chain(RECORDS.map(Record)).chain(zones).collect()
    }

    /// The number of the block's ISO 9564 format; `None` for a one-way record, which is no block. A wrapped record is the
    /// device's block of format 1, bound to its account by the key.
    fn format_of(place: Place) -> Option<u8> {
        match place {
            Device | Zone(ZoneFormat::Iso1) => Some(1),
            Zone(ZoneFormat::Iso0) | Record(Iso0) => Some(0),
            Zone(ZoneFormat::Iso3) | Record(Iso3) => Some(3),
            Zone(ZoneFormat::Iso4) | Record(Iso4) => Some(4),
            Record(Wrapped) => Some(1),
            Record(OneWay) => None,
        }
    }

    /// PCI PIN 3-3: format 1 becomes 0, 3 or 4; 0, 3 and 4 become each other; 0, 3 and 4 become no format 1 between parties.
    /// A stored PIN is given in format 1 for a view and to a zone that may get PINs, which the reference judges apart. Nothing
    /// passes between a device and a zone, and a device gets no PIN but from storage.
    fn is_legal(source: Place, target: Place) -> bool {
        match (source, target) {
            (Record(OneWay), _) | (Device | Zone(_), Device) | (Device, Zone(_)) => false,
            (Zone(_), Zone(_)) => format_of(target) != Some(1),
            (Record(_), Record(_) | Device | Zone(_)) | (Device | Zone(_), Record(_)) => true,
        }
    }

    /// What a level adds. `host` decrypts, and makes every block but a wrapped one. In a token a block of format 1 is stored as it is or by an XOR of known bytes, nothing decrypts a format 4
    /// record, and format 3 leaves as format 3 or 1.
    fn is_possible(source: Place, target: Place, level: BoundaryLevel) -> bool {
        match level {
            Host => ![source, target].contains(&Record(Wrapped)),
            Token if [source, target].iter().any(|place| matches!(place, Record(Iso0 | OneWay))) => false,
            Token => match (source, target) {
                (Device | Zone(_), Record(_)) => format_of(source) == Some(1),
                (Record(Iso4), _) | (Zone(_) | Device, Zone(_) | Device) => false,
                (Record(from), Record(to)) => from == to,
                (Record(_), Device) => true,
                (Record(Iso3), Zone(format)) => matches!(format, ZoneFormat::Iso1 | ZoneFormat::Iso3),
                (Record(_), Zone(format)) => format == ZoneFormat::Iso1,
            },
        }
    }

    #[test]
    fn the_table_is_what_pci_pin_3_3_and_each_level_allow() {
        let mut allowed = 0;
        for level in [Host, Token] {
            for source in places() {
                for target in places() {
                    let expected = is_legal(source, target) && is_possible(source, target, level);
                    let row = row(source, target, level);
                    assert_eq!(TRANSLATIONS.contains(&row), expected, "{row:?}");
                    allowed += usize::from(expected);
                }
            }
        }
        assert_eq!(TRANSLATIONS.len(), allowed, "a row is in the table twice");
    }

    #[test]
    fn no_row_turns_a_bound_block_of_a_party_into_format_1() {
        for Translation { source, target, .. } in TRANSLATIONS {
            let is_bound = matches!(source, Zone(format) if format.binds_account());
            assert!(!(is_bound && format_of(*target) == Some(1)), "{source:?} to {target:?}");
        }
    }
}
