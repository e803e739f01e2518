//! Format 4, under AES: PIN field `4 L P…P A…A` and 64 random bits, account field `M` (digits − 12), the whole account
//! number, zeros; `E(E(PIN field) ⊕ account field)`. A shorter account number is right-justified in 12, with M = 0.

use subtle::Choice;

use super::{AccountDigits, pin_field, read_pin_field};
use crate::clear::{Pin, WideBlock};

/// Writes the PIN field.
pub(crate) fn encode_iso_4(field: &mut WideBlock, pin: &Pin, random: u64) {
    let digits = pin_field(4, pin, 0xAAAA_AAAA_AAAA_AAAA);
    field.set_nibbles((u128::from(digits) << 64) | u128::from(random));
}

/// Reads the PIN field; every fill nibble must be A.
pub(crate) fn decode_iso_4(field: &WideBlock, pin: &mut Pin) -> Choice {
    read_pin_field((field.nibbles() >> 64) as u64, 4, pin, |fill| fill ^ 0xAAAA_AAAA_AAAA_AAAA)
}

/// The account field, as 32 nibbles from the highest down.
pub(crate) fn account_field(account: &AccountDigits) -> u128 {
    let digits = account.as_slice();
    let packed = digits.iter().fold(0u128, |packed, digit| (packed << 4) | u128::from(*digit));
    let length = digits.len().max(12) as u32;
    (u128::from(length - 12) << 124) | (packed << (124 - 4 * length))
}
