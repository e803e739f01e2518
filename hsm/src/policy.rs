//! The PIN policy: the PINs that a cardholder may set. The check runs on the clear PIN in constant time.

use std::ops::RangeInclusive;

use hsm_protocol::PinDigits;
use subtle::{Choice, ConstantTimeLess};
use thiserror::Error;

use crate::clear::{PIN_DIGITS_MAX, PIN_DIGITS_MIN, Pin};

/// The most PINs in the list of refused PINs: each is compared with every PIN that is set.
pub(crate) const REFUSED_PINS_MAX: usize = 1_000;

/// The PINs that a cardholder may set: a range of lengths without weaknesses and without the refused PINs.
pub struct PinPolicy {
    length: RangeInclusive<u8>,
    weaknesses: Vec<Weakness>,
    refused: Vec<Pin>,
}

/// A pattern that makes a PIN easy to guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weakness {
    /// Each digit is one more than the digit before, as in 1234.
    Ascending,
    /// Each digit is one less than the digit before, as in 4321.
    Descending,
    /// All digits are equal, as in 1111.
    Repeated,
}

impl PinPolicy {
    /// Allows PINs of `length` digits, within 4 to 12, without these weaknesses and not in `refused`.
    ///
    /// # Errors
    /// [`PolicyError`] where the range or an entry of `refused` is malformed, or `refused` has more than 1,000 entries.
    pub fn new<'a>(
        length: RangeInclusive<u8>,
        weaknesses: Vec<Weakness>,
        refused: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, PolicyError> {
        let (least, most) = (PIN_DIGITS_MIN as u8, PIN_DIGITS_MAX as u8);
        if length.is_empty() || *length.start() < least || *length.end() > most {
            return Err(PolicyError::Length);
        }
        let mut policy = Self { length, weaknesses, refused: Vec::new() };
        for (index, text) in refused.into_iter().enumerate() {
            if index == REFUSED_PINS_MAX {
                return Err(PolicyError::TooManyRefused);
            }
            let mut pin = Pin::zeroed();
            let nibbles = packed(text).ok_or(PolicyError::Refused { number: index + 1 })?;
            if !bool::from(pin.fill(u8::try_from(text.len()).unwrap_or_default(), nibbles)) {
                return Err(PolicyError::Refused { number: index + 1 });
            }
            policy.refused.push(pin);
        }
        Ok(policy)
    }

    /// The number of digits that the policy allows.
    pub(crate) fn digits(&self) -> PinDigits {
        PinDigits::new(*self.length.start(), *self.length.end()).unwrap_or(PinDigits::ISO_9564)
    }

    /// Whether the policy allows a PIN, without a branch on its digits.
    pub(crate) fn judge(&self, pin: &Pin) -> Choice {
        let length = pin.length();
        let mut allowed = !length.ct_lt(self.length.start()) & !self.length.end().ct_lt(&length);
        for weakness in &self.weaknesses {
            allowed &= !weakness.is_in(pin);
        }
        for refused in &self.refused {
            allowed &= !pin.same_as(refused);
        }
        allowed
    }
}

impl Default for PinPolicy {
    fn default() -> Self {
        let weaknesses = vec![Weakness::Ascending, Weakness::Descending, Weakness::Repeated];
        Self { length: PIN_DIGITS_MIN as u8..=PIN_DIGITS_MAX as u8, weaknesses, refused: Vec::new() }
    }
}

impl Weakness {
    fn is_in(self, pin: &Pin) -> Choice {
        match self {
            Self::Ascending => pin.climbs_by(1),
            Self::Descending => pin.falls_by_one(),
            Self::Repeated => pin.climbs_by(0),
        }
    }
}

/// Packs up to 12 decimal digits, one in each nibble, from the highest nibble down; `None` for other text.
fn packed(text: &str) -> Option<u64> {
    let digits = text.bytes().map(|byte| byte.checked_sub(b'0').filter(|digit| *digit < 10));
    let packed = digits.take(PIN_DIGITS_MAX + 1).try_fold((0, 64), |(packed, shift): (u64, u32), digit| {
        let shift = shift.checked_sub(4)?;
        Some((packed | (u64::from(digit?) << shift), shift))
    });
    packed.map(|(packed, _)| packed)
}

/// A PIN policy is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// The range of lengths is empty, or exceeds 4 to 12.
    #[error("the length of a PIN is a range within {PIN_DIGITS_MIN} to {PIN_DIGITS_MAX} digits")]
    Length,
    /// An entry of the list is not a PIN. The error does not repeat the entry.
    #[error("entry {number} of the refused PINs is not {PIN_DIGITS_MIN} to {PIN_DIGITS_MAX} digits")]
    Refused {
        /// The position in the list, from 1.
        number: usize,
    },
    /// The list has more than 1,000 entries.
    #[error("at most {REFUSED_PINS_MAX} PINs can be refused by a list")]
    TooManyRefused,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(policy: &PinPolicy, text: &str) -> bool {
        let mut pin = Pin::zeroed();
        assert!(bool::from(pin.fill(u8::try_from(text.len()).unwrap(), packed(text).unwrap())));
        policy.judge(&pin).into()
    }

    #[test]
    fn the_default_policy_refuses_runs_and_repetitions_only() {
        let policy = PinPolicy::default();
        for weak in ["1234", "0123", "23456789", "4321", "9876543210", "1111", "000000000000"] {
            assert!(!allows(&policy, weak), "{weak}");
        }
        for allowed in ["2580", "1235", "1243", "1112", "2111", "7890", "121212121212"] {
            assert!(allows(&policy, allowed), "{allowed}");
        }
    }

    #[test]
    fn a_pin_outside_the_lengths_is_refused() {
        let policy = PinPolicy::new(5..=6, Vec::new(), []).unwrap();
        assert_eq!((policy.digits().min(), policy.digits().max()), (5, 6));
        assert_eq!(["2580", "25809", "258091", "2580913"].map(|pin| allows(&policy, pin)), [false, true, true, false]);
        assert_eq!(PinPolicy::new(3..=6, Vec::new(), []).err(), Some(PolicyError::Length));
        assert_eq!(PinPolicy::new(4..=13, Vec::new(), []).err(), Some(PolicyError::Length));
    }

    #[test]
    fn only_the_listed_pins_are_refused() {
        let policy = PinPolicy::new(4..=12, Vec::new(), ["2580", "196801"]).unwrap();
        assert!(!allows(&policy, "2580") && !allows(&policy, "196801"));
        assert!(allows(&policy, "2581") && allows(&policy, "25800") && allows(&policy, "1234"));
    }

    #[test]
    fn a_malformed_list_entry_is_named_by_position_not_value() {
        let error = PinPolicy::new(4..=12, Vec::new(), ["2580", "12a4"]).err().unwrap();
        assert_eq!(error, PolicyError::Refused { number: 2 });
        assert!(!error.to_string().contains("12a4"));
    }
}
