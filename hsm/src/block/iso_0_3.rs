//! Formats 0 and 3: `0 L P…P F…F` and `3 L P…P R…R` (R random within A to F), XOR the account number: `0000` and its 12
//! rightmost digits without the check digit.

use subtle::Choice;

use super::{AccountDigits, pin_field, read_pin_field};
use crate::clear::{Block, Pin};

/// Writes a format 0 block.
pub(crate) fn encode_iso_0(block: &mut Block, pin: &Pin, account: &AccountDigits) {
    block.set_nibbles(pin_field(0, pin, u64::MAX) ^ account.rightmost_twelve());
}

/// Reads a format 0 block; every fill nibble must be F.
pub(crate) fn decode_iso_0(block: &Block, pin: &mut Pin, account: &AccountDigits) -> Choice {
    read_pin_field(block.nibbles() ^ account.rightmost_twelve(), 0, pin, |fill| !fill)
}

/// Writes a format 3 block; `fill` gives random nibbles, each within A to F, each at the place of a digit.
pub(crate) fn encode_iso_3(block: &mut Block, pin: &Pin, account: &AccountDigits, fill: u64) {
    block.set_nibbles(pin_field(3, pin, fill) ^ account.rightmost_twelve());
}

/// Reads a format 3 block; every fill nibble must be within A to F.
pub(crate) fn decode_iso_3(block: &Block, pin: &mut Pin, account: &AccountDigits) -> Choice {
    read_pin_field(block.nibbles() ^ account.rightmost_twelve(), 3, pin, below_a)
}

/// The lowest bit of every nibble that is below A: one whose 8 is missing, or stands without its 4 and its 2.
fn below_a(nibbles: u64) -> u64 {
    !((nibbles >> 3) & ((nibbles >> 2) | (nibbles >> 1))) & 0x1111_1111_1111_1111
}
