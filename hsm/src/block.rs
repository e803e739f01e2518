//! ISO 9564-1 PIN blocks, pure: no key, no randomness of its own, no early return on a clear value.

mod iso_0_3;
mod iso_1;
mod iso_4;

pub(crate) use self::{
    iso_0_3::{decode_iso_0, decode_iso_3, encode_iso_0, encode_iso_3},
    iso_1::{decode_iso_1, encode_iso_1},
    iso_4::{account_field, decode_iso_4, encode_iso_4},
};

use crate::clear::{Clear, PIN_DIGITS_MAX, Pin};

/// The digits that bind a block to an account: 1 to 19 of them, each 0 to 9.
pub(crate) struct AccountDigits {
    digits: [u8; ACCOUNT_DIGITS_MAX],
    length: usize,
}

/// The longest account number (ISO/IEC 7812-1).
pub(crate) const ACCOUNT_DIGITS_MAX: usize = 19;

impl AccountDigits {
    /// From decimal text; none where it is anything else, or empty, or longer than 19.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut digits = [0; ACCOUNT_DIGITS_MAX];
        let length = text.len();
        for (digit, byte) in digits.get_mut(..length)?.iter_mut().zip(text.bytes()) {
            *digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        }
        (length > 0).then_some(Self { digits, length })
    }

    /// From two digits a byte, filled with F on the right.
    pub(crate) fn unpack(packed: &[u8]) -> Option<Self> {
        let nibbles = packed.iter().flat_map(|byte| [byte >> 4, byte & 0x0F]);
        let mut digits = [0; ACCOUNT_DIGITS_MAX];
        let mut length = 0;
        for (place, nibble) in digits.iter_mut().zip(nibbles.take_while(|nibble| *nibble < 10)) {
            *place = nibble;
            length += 1;
        }
        (length > 0).then_some(Self { digits, length })
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        self.digits.get(..self.length).unwrap_or_default()
    }
}

impl Drop for AccountDigits {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.digits);
    }
}

/// Writes control nibble, length and digits, and at the places the PIN does not reach what `fill` gives for each.
fn write_pin_field<const N: usize>(field: &mut Clear<N>, control: u8, pin: &Pin, fill: impl Fn(usize) -> u8) {
    use subtle::{ConditionallySelectable, ConstantTimeLess};

    field.set_nibble(0, control);
    field.set_nibble(1, pin.length());
    for (index, digit) in pin.digits().iter().enumerate() {
        let counts = (index as u8).ct_lt(&pin.length());
        field.set_nibble(2 + index, u8::conditional_select(&fill(index), digit, counts));
    }
    for index in PIN_DIGITS_MAX..14 {
        field.set_nibble(2 + index, fill(index));
    }
}

/// Reads control nibble, length and digits, and asks `fill_is_good` of every nibble at a place the PIN does not reach.
fn read_pin_field<const N: usize>(
    field: &Clear<N>,
    control: u8,
    pin: &mut Pin,
    fill_is_good: impl Fn(u8) -> subtle::Choice,
) -> subtle::Choice {
    use subtle::{ConstantTimeEq, ConstantTimeLess};

    let mut good = field.nibble(0).ct_eq(&control);
    good &= pin.fill(field.nibble(1), |index| field.nibble(2 + index));
    for index in 0..14 {
        let counts = (index as u8).ct_lt(&pin.length());
        good &= counts | fill_is_good(field.nibble(2 + index));
    }
    good
}
