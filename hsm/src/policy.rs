//! Which PINs are taken: data, judged on the clear PIN inside the boundary, without an early return.

use std::ops::RangeInclusive;

use subtle::{Choice, ConstantTimeLess};
use thiserror::Error;

use crate::clear::{PIN_DIGITS_MAX, PIN_DIGITS_MIN, Pin};

/// The most PINs a list of refused ones may have: each is compared with every PIN that is set.
pub(crate) const REFUSED_PINS_MAX: usize = 1_000;

/// Which PINs are taken.
pub struct PinPolicy {
    length: RangeInclusive<u8>,
    weaknesses: Vec<Weakness>,
    refused: Vec<Pin>,
}

/// A pattern that makes a PIN easy to guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weakness {
    /// Each digit one more than the one before, as in 1234.
    Ascending,
    /// Each digit one less than the one before, as in 4321.
    Descending,
    /// One digit throughout, as in 1111.
    Repeated,
}

impl PinPolicy {
    /// PINs of `length` digits, within 4 to 12, that have none of these weaknesses and are not among `refused`.
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

    /// Whether a PIN is taken.
    pub(crate) fn judge(&self, pin: &Pin) -> Choice {
        let length = pin.length();
        let mut taken = !length.ct_lt(self.length.start()) & !self.length.end().ct_lt(&length);
        for weakness in &self.weaknesses {
            taken &= !weakness.is_in(pin);
        }
        for refused in &self.refused {
            taken &= !pin.same_as(refused);
        }
        taken
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

/// Up to 12 decimal digits, a nibble each, from the highest down.
fn packed(text: &str) -> Option<u64> {
    let digits = text.bytes().map(|byte| byte.checked_sub(b'0').filter(|digit| *digit < 10));
    let packed = digits.take(PIN_DIGITS_MAX + 1).try_fold((0, 64), |(packed, shift): (u64, u32), digit| {
        let shift = shift.checked_sub(4)?;
        Some((packed | (u64::from(digit?) << shift), shift))
    });
    packed.map(|(packed, _)| packed)
}

/// Why a policy can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PolicyError {
    /// The range of lengths.
    #[error("the length of a PIN is a range within {PIN_DIGITS_MIN} to {PIN_DIGITS_MAX} digits")]
    Length,
    /// An entry of the list; which, not what.
    #[error("entry {number} of the refused PINs is not {PIN_DIGITS_MIN} to {PIN_DIGITS_MAX} digits")]
    Refused {
        /// Its place, from 1.
        number: usize,
    },
    /// The list is too long.
    #[error("at most {REFUSED_PINS_MAX} PINs can be refused by a list")]
    TooManyRefused,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(policy: &PinPolicy, text: &str) -> bool {
        let mut pin = Pin::zeroed();
        assert!(bool::from(pin.fill(u8::try_from(text.len()).unwrap(), packed(text).unwrap())));
        policy.judge(&pin).into()
    }

    #[test]
    fn the_default_policy_refuses_runs_and_repetitions_and_takes_the_rest() {
        let policy = PinPolicy::default();
        for weak in ["1234", "0123", "23456789", "4321", "9876543210", "1111", "000000000000"] {
            assert!(!judged(&policy, weak), "{weak}");
        }
        for taken in ["2580", "1235", "1243", "1112", "2111", "7890", "121212121212"] {
            assert!(judged(&policy, taken), "{taken}");
        }
    }

    #[test]
    fn a_pin_outside_the_lengths_is_refused() {
        let policy = PinPolicy::new(5..=6, Vec::new(), []).unwrap();
        assert_eq!(["2580", "25809", "258091", "2580913"].map(|pin| judged(&policy, pin)), [false, true, true, false]);
        assert_eq!(PinPolicy::new(3..=6, Vec::new(), []).err(), Some(PolicyError::Length));
        assert_eq!(PinPolicy::new(4..=13, Vec::new(), []).err(), Some(PolicyError::Length));
    }

    #[test]
    fn a_listed_pin_is_refused_and_its_neighbours_are_not() {
        let policy = PinPolicy::new(4..=12, Vec::new(), ["2580", "196801"]).unwrap();
        assert!(!judged(&policy, "2580") && !judged(&policy, "196801"));
        assert!(judged(&policy, "2581") && judged(&policy, "25800") && judged(&policy, "1234"));
    }

    #[test]
    fn a_list_with_something_else_than_pins_is_refused_by_place_and_not_by_value() {
        let error = PinPolicy::new(4..=12, Vec::new(), ["2580", "12a4"]).err().unwrap();
        assert_eq!(error, PolicyError::Refused { number: 2 });
        assert!(!error.to_string().contains("12a4"));
    }
}
