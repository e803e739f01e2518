//! PIN verification values: Visa PVV and IBM 3624, the names of their keys, and the outcome of a change of PIN.
//!
//! ```text
//! pvk:NAME:PVKI                       a PVK pair: 3DES double length, K1 and K2 of the PVV
//! ibm-3624:NAME:TABLE:VALIDATION      a PIN-derivation key: 3DES double length; VALIDATION is FIRST-LAST-PAD
//! ```
//! PVKI, decimalisation table and validation data are part of the name of a key, so a ceremony enters them together with the
//! key, and no caller chooses them: a caller who may choose the table learns the PIN (Bond and Zieliński, 2003).

use std::fmt;

use crate::account::{ACCOUNT_DIGITS_MAX, AccountDigits};
use crate::sealed::PinRecord;
use crate::zone_name::ZoneName;

/// The fewest digits of a PIN, and of an IBM 3624 offset.
pub(crate) const DIGITS_MIN: usize = 4;
/// The most digits of a PIN, and of an IBM 3624 offset.
pub(crate) const DIGITS_MAX: usize = 12;
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
        write!(f, "{}:{}", self.name, self.pvki.get())
    }
}

/// The name of an IBM 3624 key: `NAME:TABLE:VALIDATION`, for example `bank:0123456789012345:1-16-0`.
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
        write!(f, "{}:{}:{}", self.name, self.table, self.validation)
    }
}

/// The fewest different digits of a decimalisation table.
const TABLE_DIFFERENT_DIGITS_MIN: usize = 8;
/// The most places of one digit in a decimalisation table.
const TABLE_PLACES_MAX: usize = 4;

/// A decimalisation table: 16 decimal digits, the digit for 0 first. It has at least 8 different digits, and none at more than
/// 4 places: a table of one digit makes each natural PIN that digit, so that an offset shows the PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecimalisationTable([u8; TABLE_DIGITS]);

impl DecimalisationTable {
    /// Reads 16 decimal digits that are varied enough; `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let text: &[u8; TABLE_DIGITS] = text.as_bytes().try_into().ok()?;
        let digits = text.map(|byte| byte.wrapping_sub(b'0'));
        let places = |digit: u8| digits.iter().filter(|found| **found == digit).count();
        let is_varied = (0..10).filter(|digit| places(*digit) > 0).count() >= TABLE_DIFFERENT_DIGITS_MIN
            && (0..10).all(|digit| places(digit) <= TABLE_PLACES_MAX);
        (is_varied && digits.iter().all(|digit| *digit < 10)).then_some(Self(digits))
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

/// The digits of the account that an IBM 3624 key encrypts: `FIRST-LAST-PAD`. The digits from position FIRST to LAST, counted
/// from 1 on the left, are left-justified and padded to 16 with one hexadecimal digit. `1-16-0` is a whole account number of 16
/// digits, and `5-15-f` its 11 rightmost digits without the check digit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValidationData {
    first: u8,
    last: u8,
    pad: u8,
}

impl ValidationData {
    /// Reads `FIRST-LAST-PAD`, of 1 to 16 digits within the 19 of the longest account number; `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let (first, rest) = text.split_once('-')?;
        let (last, pad) = rest.split_once('-')?;
        let &[pad @ (b'0'..=b'9' | b'a'..=b'f')] = pad.as_bytes() else { return None };
        let pad = u8::try_from(char::from(pad).to_digit(16)?).ok()?;
        let data = Self { first: first.parse().ok()?, last: last.parse().ok()?, pad };
        let Self { first, last, .. } = data;
        let good = (1..=last).contains(&first)
            && usize::from(last) <= ACCOUNT_DIGITS_MAX
            && usize::from(last - first) < TABLE_DIGITS;
        // Each value has one text: no sign, no leading zero.
        (good && data.to_string() == text).then_some(data)
    }

    /// The digits of an account and their padding, 16 nibbles; `None` for an account of fewer than LAST digits.
    pub fn of(self, account: &AccountDigits) -> Option<u64> {
        let digits = account.as_slice().get(usize::from(self.first - 1)..self.last.into())?;
        let padding = std::iter::repeat_n(&self.pad, TABLE_DIGITS.saturating_sub(digits.len()));
        Some(digits.iter().chain(padding).fold(0, |packed, digit| (packed << 4) | u64::from(*digit)))
    }
}

impl fmt::Display for ValidationData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{:x}", self.first, self.last, self.pad)
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
        /// The digits of the natural PIN (the PIN check length of IBM), 4 to 12. A PIN of another length is wrong.
        digits: u8,
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
        for name in ["bank:0123456789012345:1-16-0", "b:8351296477461538:4-19-f"] {
            assert_eq!(Ibm3624Name::parse(name).unwrap().to_string(), name);
        }
        let wrong = [
            "bank:012345678901234:1-16-0",
            "bank:01234567890123456:1-16-0",
            "bank:012345678901234A:1-16-0",
            "bank:0123456789012345",
            "bank:0123456789012345:0-15-0",
            "bank:0123456789012345:1-17-0",
            "bank:0123456789012345:5-20-0",
            "bank:0123456789012345:5-4-0",
            "bank:0123456789012345:01-16-0",
            "bank:0123456789012345:+1-16-0",
            "bank:0123456789012345:1-16-F",
            "bank:0123456789012345:1-16-00",
            "bank:0123456789012345:1-16-0:1",
        ];
        for wrong in wrong {
            assert!(Ibm3624Name::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_table_has_8_different_digits_and_none_at_more_than_4_places() {
        for good in ["0123456789012345", "0000111123456677", "0123456700112233"] {
            assert!(DecimalisationTable::parse(good).is_some(), "{good}");
        }
        for wrong in ["0000000000000000", "0000000012345678", "0000012345678912", "0123456012345601"] {
            assert!(DecimalisationTable::parse(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn validation_data_is_left_justified_and_padded() {
        let of = |account, rule| ValidationData::parse(rule).unwrap().of(&AccountDigits::parse(account).unwrap());
        assert_eq!(of("8592613297174621", "1-16-0"), Some(0x8592_6132_9717_4621));
        assert_eq!(of("8592613297174621", "5-15-f"), Some(0x6132_9717_462F_FFFF));
        assert_eq!(of("1234567890123456789", "4-19-0"), Some(0x4567_8901_2345_6789));
        assert_eq!(of("123456789012", "1-12-0"), Some(0x1234_5678_9012_0000));
        assert_eq!(of("123456789012", "1-13-0"), None);
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
