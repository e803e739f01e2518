//! ISO 9564-1 formats 0 and 3: `0 L P…P F…F` and `3 L P…P R…R` (R random, A to F), XOR the account field: `0000` and the 12
//! rightmost digits of the PAN without the check digit.

use subtle::Choice;

use super::{AccountDigits, pin_field, read_pin_field};
use crate::clear::{Block, Pin};

/// Encodes a format 0 block.
pub(crate) fn encode_iso_0(block: &mut Block, pin: &Pin, account: &AccountDigits) {
    block.set_nibbles(pin_field(0, pin, u64::MAX) ^ account.rightmost_twelve());
}

/// Decodes a format 0 block. Every fill nibble must be F.
pub(crate) fn decode_iso_0(block: &Block, pin: &mut Pin, account: &AccountDigits) -> Choice {
    read_pin_field(block.nibbles() ^ account.rightmost_twelve(), 0, pin, |fill| !fill)
}

/// Encodes a format 3 block. `fill` has random nibbles from A to F, aligned with the digits of a [`Pin`].
pub(crate) fn encode_iso_3(block: &mut Block, pin: &Pin, account: &AccountDigits, fill: u64) {
    block.set_nibbles(pin_field(3, pin, fill) ^ account.rightmost_twelve());
}

/// Decodes a format 3 block. Every fill nibble must be A to F.
pub(crate) fn decode_iso_3(block: &Block, pin: &mut Pin, account: &AccountDigits) -> Choice {
    read_pin_field(block.nibbles() ^ account.rightmost_twelve(), 3, pin, below_a)
}

/// The lowest bit of every nibble below A: bit 8 is not set, or neither bit 4 nor bit 2 is.
fn below_a(nibbles: u64) -> u64 {
    !((nibbles >> 3) & ((nibbles >> 2) | (nibbles >> 1))) & 0x1111_1111_1111_1111
}
