//! ISO 9564-1 PIN blocks, pure: no key, no randomness of its own, no early return on a clear value.

mod iso_0_3;
mod iso_1;
mod iso_4;
mod mask;

pub(crate) use self::{
    iso_0_3::{decode_iso_0, decode_iso_3, encode_iso_0, encode_iso_3},
    iso_1::{decode_iso_1, encode_iso_1},
    iso_4::{account_field, decode_iso_4, encode_iso_4},
    mask::{FILL_A_AS_PADDING, iso_1_to_iso_3, iso_1_to_iso_4},
};
pub(crate) use crate::account::AccountDigits;

use subtle::Choice;

use crate::clear::Pin;

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clear::{Block, WideBlock};

    fn pin(digits: &str) -> Pin {
        let mut pin = Pin::zeroed();
        let nibbles = u64::from_str_radix(&format!("{digits:0<16}"), 16).unwrap();
        assert!(bool::from(pin.fill(u8::try_from(digits.len()).unwrap(), nibbles)));
        pin
    }

    fn same(read: Choice, pin: &Pin, expected: &Pin) -> bool {
        bool::from(read & pin.same_as(expected))
    }

    /// What each nibble of a block must be, said the slow way: a second opinion on the arithmetic.
    fn is_format(control: u8, nibbles: u64, fill: impl Fn(u8) -> bool) -> bool {
        let all: Vec<u8> = (0..16).map(|place| ((nibbles >> (60 - 4 * place)) & 0xF) as u8).collect();
        let length = usize::from(all[1]);
        let digits_and_fill =
            |()| all[2..2 + length].iter().all(|digit| *digit < 10) && all[2 + length..].iter().all(|n| fill(*n));
        all[0] == control && (4..=12).contains(&length) && digits_and_fill(())
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_in_every_format(
            digits in "[0-9]{4,12}", account in "[0-9]{1,19}", fill in any::<u64>(), random in any::<u64>(),
        ) {
            let (expected, account) = (pin(&digits), AccountDigits::parse(&account).unwrap());
            let (mut block, mut wide, mut found) = (Block::zeroed(), WideBlock::zeroed(), Pin::zeroed());
            encode_iso_1(&mut block, &expected, fill);
            prop_assert!(same(decode_iso_1(&block, &mut found), &found, &expected));
            encode_iso_0(&mut block, &expected, &account);
            prop_assert!(same(decode_iso_0(&block, &mut found, &account), &found, &expected));
            let within_a_to_f = (fill | 0x8888_8888_8888_8888) | 0x2222_2222_2222_2222;
            encode_iso_3(&mut block, &expected, &account, within_a_to_f);
            prop_assert!(same(decode_iso_3(&block, &mut found, &account), &found, &expected));
            encode_iso_4(&mut wide, &expected, random);
            prop_assert!(same(decode_iso_4(&wide, &mut found), &found, &expected));
        }

        #[test]
        fn any_eight_bytes_are_judged_as_the_standard_says_and_none_makes_it_panic(
            head in 0u64..256, rest in any::<u64>(), tame in any::<u64>(),
        ) {
            // Wholly random nibbles are almost never a block: half of the time digits are made likely.
            let rest = if tame % 2 == 0 { rest } else { rest & 0x7777_7777_7777_7777 | 0x00FF_FFFF_FFFF_FFFF << 28 };
            let nibbles = (head << 56) | (rest >> 8);
            let account = AccountDigits::parse("0").unwrap();
            let (mut block, mut found) = (Block::zeroed(), Pin::zeroed());
            block.set_nibbles(nibbles);
            prop_assert_eq!(bool::from(decode_iso_1(&block, &mut found)), is_format(1, nibbles, |_| true));
            prop_assert_eq!(bool::from(decode_iso_0(&block, &mut found, &account)), is_format(0, nibbles, |n| n == 0xF));
            prop_assert_eq!(bool::from(decode_iso_3(&block, &mut found, &account)), is_format(3, nibbles, |n| n >= 0xA));
        }
    }
}
