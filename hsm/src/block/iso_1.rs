//! Format 1: `1 L P…P T…T`, T any nibble. Bound to no account; nothing but control, length and digits can be checked.

use subtle::Choice;

use super::{read_pin_field, write_pin_field};
use crate::clear::{Block, Pin};

/// Writes the block; `fill` gives the transaction field, of which each nibble of 7 bytes has its place.
pub(crate) fn encode_iso_1(block: &mut Block, pin: &Pin, fill: &[u8; 7]) {
    write_pin_field(block, 1, pin, |index| nibble_of(fill, index));
}

/// Reads the block; any fill is taken.
pub(crate) fn decode_iso_1(block: &Block, pin: &mut Pin) -> Choice {
    read_pin_field(block, 1, pin, |_| Choice::from(1))
}

fn nibble_of(fill: &[u8; 7], index: usize) -> u8 {
    let byte = fill.get(index / 2).copied().unwrap_or_default();
    if index.is_multiple_of(2) { byte >> 4 } else { byte & 0x0F }
}
