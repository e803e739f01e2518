//! ISO 9564-1 PIN blocks, pure: no key, no randomness of its own, no early return on a clear value.

mod iso_0_3;
mod iso_1;
mod iso_4;

pub(crate) use self::{
    iso_0_3::{decode_iso_0, decode_iso_3, encode_iso_0, encode_iso_3},
    iso_1::{decode_iso_1, encode_iso_1},
    iso_4::{account_field, decipher_iso_4, decode_iso_4, encipher_iso_4, encode_iso_4},
};

use subtle::Choice;

use crate::clear::Pin;

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

    /// `0000` and the 12 rightmost digits without the check digit; a shorter number is padded on the left with zeros.
    pub(crate) fn rightmost_twelve(&self) -> u64 {
        let without_check_digit = self.as_slice().split_last().map_or(&[][..], |(_, rest)| rest);
        let twelve = without_check_digit.iter().rev().take(12).rev();
        twelve.fold(0, |packed, digit| (packed << 4) | u64::from(*digit))
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

/// The highest nibbles of a block: `control L P…P`, and `fill` at the places the PIN does not reach.
fn pin_field(control: u8, pin: &Pin, fill: u64) -> u64 {
    let head = (u64::from(control) << 60) | (u64::from(pin.length()) << 56);
    head | ((pin.digits() | (fill & !pin.places())) >> 8)
}

/// Reads `control L P…P`, and asks `fill_is_good` of the nibbles behind the PIN: each bit of its answer that stands at a
/// place the PIN does not reach must be zero.
fn read_pin_field(field: u64, control: u8, pin: &mut Pin, wrong_fill: impl FnOnce(u64) -> u64) -> Choice {
    let body = field << 8;
    let good = pin.fill(((field >> 56) & 0xF) as u8, body);
    // The two lowest nibbles of the shifted field are none of the block's.
    let behind = !pin.places() & !0xFF;
    let right_control = u8::from((field >> 60) as u8 == control);
    good & Choice::from(right_control & u8::from(wrong_fill(body) & behind == 0))
}
