//! ISO 9564-1 format 1: `1 L P…P T…T`, T any nibble. The block is not bound to an account. A decoder can check only control,
//! length and digits.

use subtle::Choice;

use super::{pin_field, read_pin_field};
use crate::clear::{Block, Pin};

/// Encodes a format 1 block. `fill` is the transaction field, aligned with the digits of a [`Pin`].
pub(crate) fn encode_iso_1(block: &mut Block, pin: &Pin, fill: u64) {
    block.set_nibbles(pin_field(1, pin, fill));
}

/// Decodes a format 1 block with any fill.
pub(crate) fn decode_iso_1(block: &Block, pin: &mut Pin) -> Choice {
    read_pin_field(block.nibbles(), 1, pin, |_| 0)
}
