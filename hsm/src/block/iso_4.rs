//! Format 4, under AES: PIN field `4 L P…P A…A` and 64 random bits, account field `M` (digits − 12), the whole account
//! number, zeros; `E(E(PIN field) ⊕ account field)`. A shorter account number is right-justified in 12, with M = 0.

use subtle::{Choice, ConstantTimeEq};

use super::{AccountDigits, read_pin_field, write_pin_field};
use crate::clear::{Clear, Pin, WideBlock};

/// Writes the PIN field.
pub(crate) fn encode_iso_4(field: &mut WideBlock, pin: &Pin, random: &[u8; 8]) {
    write_pin_field(field, 4, pin, |_| 0xA);
    if let Some(tail) = field.bytes_mut().get_mut(8..) {
        tail.copy_from_slice(random);
    }
}

/// Reads the PIN field; every fill nibble must be A.
pub(crate) fn decode_iso_4(field: &WideBlock, pin: &mut Pin) -> Choice {
    read_pin_field(field, 4, pin, |fill| fill.ct_eq(&0xA))
}

/// The account field.
pub(crate) fn account_field(account: &AccountDigits) -> WideBlock {
    let digits = account.as_slice();
    let mut field = Clear::zeroed();
    field.set_nibble(0, u8::try_from(digits.len().saturating_sub(12)).unwrap_or_default());
    let padding = 12usize.saturating_sub(digits.len());
    for (place, digit) in digits.iter().enumerate() {
        field.set_nibble(1 + padding + place, *digit);
    }
    field
}
