//! ISO 9564-1 format 4: `E(E(PIN field) ⊕ account field)` under AES. The PIN field is `4 L P…P A…A` and 64 random bits. The
//! account field is M (PAN digits − 12), the whole PAN, zeros; a PAN of fewer than 12 digits is right-justified in 12, M = 0.

use subtle::Choice;

use super::{AccountDigits, pin_field, read_pin_field};
use crate::clear::{Pin, WideBlock};

/// Encodes the PIN field of format 4.
pub(crate) fn encode_iso_4(field: &mut WideBlock, pin: &Pin, random: u64) {
    let digits = pin_field(4, pin, 0xAAAA_AAAA_AAAA_AAAA);
    field.set_nibbles((u128::from(digits) << 64) | u128::from(random));
}

/// Decodes the PIN field of format 4. Every fill nibble must be A.
pub(crate) fn decode_iso_4(field: &WideBlock, pin: &mut Pin) -> Choice {
    read_pin_field((field.nibbles() >> 64) as u64, 4, pin, |fill| fill ^ 0xAAAA_AAAA_AAAA_AAAA)
}

/// The account field of format 4: 32 nibbles, the first in the highest bits.
pub(crate) fn account_field(account: &AccountDigits) -> u128 {
    let digits = account.as_slice();
    let packed = digits.iter().fold(0u128, |packed, digit| (packed << 4) | u128::from(*digit));
    let length = digits.len().max(12) as u32;
    (u128::from(length - 12) << 124) | (packed << (124 - 4 * length))
}
