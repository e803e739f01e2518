//! Formats 0 and 3: `0 L P…P F…F` and `3 L P…P R…R` (R random within A to F), XOR the account number: `0000` and its 12
//! rightmost digits without the check digit.

use subtle::{Choice, ConstantTimeEq, ConstantTimeLess};

use super::{AccountDigits, read_pin_field, write_pin_field};
use crate::clear::{Block, Clear, Pin};

/// Writes a format 0 block.
pub(crate) fn encode_iso_0(block: &mut Block, pin: &Pin, account: &AccountDigits) {
    write_pin_field(block, 0, pin, |_| 0xF);
    combine(block, account);
}

/// Reads a format 0 block; every fill nibble must be F.
pub(crate) fn decode_iso_0(block: &Block, pin: &mut Pin, account: &AccountDigits) -> Choice {
    read_pin_field(&without_account(block, account), 0, pin, |fill| fill.ct_eq(&0xF))
}

/// Writes a format 3 block; `fill` gives random nibbles, each within A to F.
pub(crate) fn encode_iso_3(block: &mut Block, pin: &Pin, account: &AccountDigits, fill: &[u8; 14]) {
    write_pin_field(block, 3, pin, |index| fill.get(index).copied().unwrap_or(0xA));
    combine(block, account);
}

/// Reads a format 3 block; every fill nibble must be within A to F.
pub(crate) fn decode_iso_3(block: &Block, pin: &mut Pin, account: &AccountDigits) -> Choice {
    read_pin_field(&without_account(block, account), 3, pin, |fill| !fill.ct_lt(&0xA))
}

fn without_account(block: &Block, account: &AccountDigits) -> Block {
    let mut field = Clear::zeroed();
    field.bytes_mut().copy_from_slice(block.bytes());
    combine(&mut field, account);
    field
}

/// A shorter account number is padded on the left with zeros.
fn combine(block: &mut Block, account: &AccountDigits) {
    let without_check_digit = account.as_slice().split_last().map_or(&[][..], |(_, rest)| rest);
    for (place, digit) in without_check_digit.iter().rev().take(12).enumerate() {
        let index = 15 - place;
        block.set_nibble(index, block.nibble(index) ^ digit);
    }
}
