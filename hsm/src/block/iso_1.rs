//! Format 1: `1 L P…P T…T`, T any nibble. Bound to no account; nothing but control, length and digits can be checked.

use subtle::Choice;

use super::{pin_field, read_pin_field};
use crate::clear::{Block, Pin};

/// Writes the block; `fill` gives the transaction field, each of its nibbles at the place of a digit.
pub(crate) fn encode_iso_1(block: &mut Block, pin: &Pin, fill: u64) {
    block.set_nibbles(pin_field(1, pin, fill));
}

/// Reads the block; any fill is taken.
pub(crate) fn decode_iso_1(block: &Block, pin: &mut Pin) -> Choice {
    read_pin_field(block.nibbles(), 1, pin, |_| 0)
}
