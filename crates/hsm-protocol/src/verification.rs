//! PIN verification values: Visa PVV and IBM 3624, the names of their keys, and the outcome of a change of PIN.
//!
//! ```text
//! pvk:NAME:PVKI                       a PVK pair: 3DES double length, K1 and K2 of the PVV
//! ibm-3624:NAME:TABLE:VALIDATION      a PIN-derivation key: 3DES double length
//! ```
//! PVKI, decimalisation table and validation data are part of the name of a key, so a ceremony enters them together with the
//! key, and no caller chooses them: a caller who may choose the table learns the PIN (Bond and Zieliński, 2003).

use std::fmt;

use crate::key_usage::ZoneName;
use crate::sealed::PinRecord;

/// The fewest digits of a PIN, and of an IBM 3624 offset.
const DIGITS_MIN: usize = 4;
/// The most digits of a PIN, and of an IBM 3624 offset.
const DIGITS_MAX: usize = 12;
/// The digits of a decimalisation table: one for each hexadecimal digit.
const TABLE_DIGITS: usize = 16;

/// The PIN verification key index (PVKI): one decimal digit, which the card carries beside its PVV.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pvki(u8);

impl Pvki {
    /// An index from 0 to 9; `None` for another number.
    pub fn new(index: u8) -> Option<Self> {
        (index < 10).then_some(Self(index))
    }

    /// The index, 0 to 9.
    pub fn get(self) -> u8 {
        self.0
    }
}

/// The name of a PVK pair: `NAME:PVKI`, for example `bank:1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PvkName {
    /// The name of the set of PVK pairs.
    pub name: ZoneName,
    /// The index of the pair in its set.
    pub pvki: Pvki,
}

impl PvkName {
    /// Reads `NAME:PVKI`; `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, pvki) = text.split_once(':')?;
        let &[digit] = pvki.as_bytes() else { return None };
        Some(Self { name: ZoneName::parse(name)?, pvki: Pvki::new(digit.checked_sub(b'0')?)? })
    }
}

impl fmt::Display for PvkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name.as_str(), self.pvki.get())
    }
}

/// The name of an IBM 3624 key: `NAME:TABLE:VALIDATION`, for example `bank:0123456789012345:pan`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ibm3624Name {
    /// The name by which a request names the key. No two keys have it.
    pub name: ZoneName,
    /// The digit for each hexadecimal digit of the ciphertext.
    pub table: DecimalisationTable,
    /// The digits of the account that are encrypted.
    pub validation: ValidationData,
}

impl Ibm3624Name {
    /// Reads `NAME:TABLE:VALIDATION`; `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, rest) = text.split_once(':')?;
        let (table, validation) = rest.split_once(':')?;
        Some(Self {
            name: ZoneName::parse(name)?,
            table: DecimalisationTable::parse(table)?,
            validation: ValidationData::parse(validation)?,
        })
    }
}

impl fmt::Display for Ibm3624Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.name.as_str(), self.table, self.validation.name())
    }
}

/// A decimalisation table: 16 decimal digits, the digit for 0 first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecimalisationTable([u8; TABLE_DIGITS]);

impl DecimalisationTable {
    /// Reads 16 decimal digits; `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let text: &[u8; TABLE_DIGITS] = text.as_bytes().try_into().ok()?;
        let digits = text.map(|byte| byte.wrapping_sub(b'0'));
        digits.iter().all(|digit| *digit < 10).then_some(Self(digits))
    }

    /// The digit for each hexadecimal digit from 0 to F, each 0 to 9.
    pub fn digits(&self) -> &[u8; TABLE_DIGITS] {
        &self.0
    }
}

impl fmt::Display for DecimalisationTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|digit| write!(f, "{digit}"))
    }
}

/// The digits of the account that an IBM 3624 key encrypts: 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValidationData {
    /// The account number, left-justified and padded with zeros on the right (IBM CCA, Clear PIN Generate, `data_array`). An
    /// account number of more than 16 digits is refused.
    Pan,
    /// The 11 rightmost digits of the account number without the check digit, padded with F on the right.
    Pan11,
}

impl ValidationData {
    /// Each value and its name.
    const ALL: [(Self, &str); 2] = [(Self::Pan, "pan"), (Self::Pan11, "pan-11")];

    /// Reads `pan` or `pan-11`; `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(data, _)| *data)
    }

    /// `pan` or `pan-11`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pan => "pan",
            Self::Pan11 => "pan-11",
        }
    }
}

/// A PVV of 4 digits, or an IBM 3624 offset of 4 to 12. No `Debug`: a PVV narrows the PIN to one in 10,000 under its key.
#[derive(Clone, Copy)]
pub struct VerificationValue {
    digits: [u8; DIGITS_MAX],
    length: u8,
}

impl VerificationValue {
    /// Reads 4 to 12 decimal digits; `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let mut digits = [0; DIGITS_MAX];
        for (digit, byte) in digits.get_mut(..text.len())?.iter_mut().zip(text.bytes()) {
            *digit = byte.wrapping_sub(b'0');
        }
        Self::from_digits(digits.get(..text.len())?)
    }

    /// A value of 4 to 12 digits, each 0 to 9; `None` for anything else.
    pub fn from_digits(values: &[u8]) -> Option<Self> {
        let mut digits = [0; DIGITS_MAX];
        digits.get_mut(..values.len())?.copy_from_slice(values);
        let good = values.len() >= DIGITS_MIN && values.iter().all(|digit| *digit < 10);
        Some(Self { digits, length: u8::try_from(values.len()).ok()? }).filter(|_| good)
    }

    /// The digits, each 0 to 9.
    pub fn digits(&self) -> &[u8] {
        self.digits.get(..self.length.into()).unwrap_or_default()
    }

    /// The digits as text, for the answer to a caller that may have the value. It must not be logged.
    pub fn to_text(&self) -> String {
        self.digits().iter().map(|digit| char::from(b'0' + digit)).collect()
    }
}

/// A value that the boundary derives from a record. An IBM 3624 natural PIN is a PIN, so no request derives one.
#[derive(Clone)]
pub enum ValueMethod {
    /// The Visa PVV of a PVK pair: its first 4 PIN digits, PVKI, and 11 digits of the account.
    Pvv(PvkName),
    /// The IBM 3624 offset of the key with this name: the PIN minus the natural PIN, digit by digit modulo 10.
    Ibm3624Offset(ZoneName),
}

/// A value that the boundary compares with a PIN.
#[derive(Clone)]
pub enum ExpectedValue {
    /// The Visa PVV under a PVK pair.
    Pvv {
        /// The PVK pair.
        key: PvkName,
        /// The PVV. A value of another length than 4 digits is wrong.
        value: VerificationValue,
    },
    /// The IBM 3624 offset under a key.
    Ibm3624Offset {
        /// The name of the key.
        key: ZoneName,
        /// The offset. A value of another length than the PIN is wrong.
        value: VerificationValue,
    },
    /// The IBM 3624 natural PIN under a key: an offset of zeros.
    Ibm3624Natural {
        /// The name of the key.
        key: ZoneName,
    },
}

/// The outcome of a change of PIN whose two blocks are well-formed.
#[derive(Clone)]
pub enum Changed {
    /// The old PIN is wrong.
    Wrong,
    /// The old PIN is right, and the new one breaks the PIN policy.
    RefusedPin,
    /// The old PIN is right: the new PIN.
    Right {
        /// The record to store.
        record: PinRecord,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_keys_are_read_back_and_malformed_ones_rejected() {
        for name in ["bank:0", "bank-2:9"] {
            assert_eq!(PvkName::parse(name).unwrap().to_string(), name);
        }
        for wrong in ["bank", "bank:", "bank:10", "bank:a", ":1", "bank:1:1", "Bank:1"] {
            assert!(PvkName::parse(wrong).is_none(), "{wrong}");
        }
        for name in ["bank:0123456789012345:pan", "b:8351296477461538:pan-11"] {
            assert_eq!(Ibm3624Name::parse(name).unwrap().to_string(), name);
        }
        let wrong = [
            "bank:012345678901234:pan",
            "bank:01234567890123456:pan",
            "bank:012345678901234A:pan",
            "bank:0123456789012345",
            "bank:0123456789012345:pan-12",
            "bank:0123456789012345:pan:pan",
        ];
        for wrong in wrong {
            assert!(Ibm3624Name::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_value_has_4_to_12_digits() {
        for text in ["0511", "000000000000"] {
            assert_eq!(VerificationValue::parse(text).unwrap().to_text(), text);
        }
        for wrong in ["", "051", "0000000000000", "051a", "05 1", "051/", "051:"] {
            assert!(VerificationValue::parse(wrong).is_none(), "{wrong}");
        }
    }
}
