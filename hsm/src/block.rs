//! ISO 9564-1 PIN blocks of formats 0, 1, 3 and 4: pure functions without keys or randomness, in constant time.

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
pub(crate) use hsm_protocol::AccountDigits;

use subtle::Choice;

use crate::clear::Pin;

/// The PIN field of 16 nibbles: control, length, PIN, and `fill` in the remaining nibbles.
fn pin_field(control: u8, pin: &Pin, fill: u64) -> u64 {
    let head = (u64::from(control) << 60) | (u64::from(pin.length()) << 56);
    head | ((pin.digits() | (fill & !pin.places())) >> 8)
}

/// Reads a PIN field. `wrong_fill` returns a bit for each wrong nibble; the bits in the nibbles after the PIN must be zero.
fn read_pin_field(field: u64, control: u8, pin: &mut Pin, wrong_fill: impl FnOnce(u64) -> u64) -> Choice {
    let body = field << 8;
    let good = pin.fill(((field >> 56) & 0xF) as u8, body);
    // The shift filled the two lowest nibbles with zeros, which are no part of the field.
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

    /// Checks each nibble of a block one by one: an independent check of the arithmetic.
    fn is_format(control: u8, nibbles: u64, fill: impl Fn(u8) -> bool) -> bool {
        let all: Vec<u8> = (0..16).map(|place| ((nibbles >> (60 - 4 * place)) & 0xF) as u8).collect();
        let length = usize::from(all[1]);
        let digits_and_fill =
            |()| all[2..2 + length].iter().all(|digit| *digit < 10) && all[2 + length..].iter().all(|n| fill(*n));
        all[0] == control && (4..=12).contains(&length) && digits_and_fill(())
    }

    /// Maps each random nibble into A to F.
    fn within_a_to_f(random: u64) -> u64 {
        (0..16).fold(0, |all, place| (all << 4) | (0xA + ((random >> (4 * place)) & 0xF) % 6))
    }

    /// Replaces the nibble at a position, counted from the highest.
    fn with_nibble(nibbles: u64, place: u32, nibble: u64) -> u64 {
        let shift = 60 - 4 * place;
        (nibbles & !(0xF << shift)) | (nibble << shift)
    }

    fn block_of(nibbles: u64) -> Block {
        let mut block = Block::zeroed();
        block.set_nibbles(nibbles);
        block
    }

    fn reads_iso_0(field: u64, account: &AccountDigits) -> bool {
        decode_iso_0(&block_of(field ^ account.rightmost_twelve()), &mut Pin::zeroed(), account).into()
    }

    fn reads_iso_1(field: u64) -> bool {
        decode_iso_1(&block_of(field), &mut Pin::zeroed()).into()
    }

    fn reads_iso_3(field: u64, account: &AccountDigits) -> bool {
        decode_iso_3(&block_of(field ^ account.rightmost_twelve()), &mut Pin::zeroed(), account).into()
    }

    fn reads_iso_4(field: u64, random: u64) -> bool {
        let mut wide = WideBlock::zeroed();
        wide.set_nibbles((u128::from(field) << 64) | u128::from(random));
        decode_iso_4(&wide, &mut Pin::zeroed()).into()
    }

    /// Checks every decoder on a field, before the XOR with the account number.
    fn check_decoders(field: u64, random: u64, account: &AccountDigits) -> Result<(), TestCaseError> {
        prop_assert_eq!(reads_iso_0(field, account), is_format(0, field, |n| n == 0xF));
        prop_assert_eq!(reads_iso_1(field), is_format(1, field, |_| true));
        prop_assert_eq!(reads_iso_3(field, account), is_format(3, field, |n| n >= 0xA));
        prop_assert_eq!(reads_iso_4(field, random), is_format(4, field, |n| n == 0xA));
        Ok(())
    }

    proptest! {
        #[test]
        fn every_format_decodes_its_own_encoding(
            digits in "[0-9]{4,12}", account in "[0-9]{1,19}", fill in any::<u64>(), random in any::<u64>(),
        ) {
            let (expected, account) = (pin(&digits), AccountDigits::parse(&account).unwrap());
            let (mut block, mut wide, mut found) = (Block::zeroed(), WideBlock::zeroed(), Pin::zeroed());
            encode_iso_1(&mut block, &expected, fill);
            prop_assert!(same(decode_iso_1(&block, &mut found), &found, &expected));
            encode_iso_0(&mut block, &expected, &account);
            prop_assert!(same(decode_iso_0(&block, &mut found, &account), &found, &expected));
            encode_iso_3(&mut block, &expected, &account, within_a_to_f(fill));
            prop_assert!(same(decode_iso_3(&block, &mut found, &account), &found, &expected));
            encode_iso_4(&mut wide, &expected, random);
            prop_assert!(same(decode_iso_4(&wide, &mut found), &found, &expected));
        }

        #[test]
        fn decoders_follow_the_standard_on_any_bytes(
            nibbles in any::<u64>(), random in any::<u64>(), account in "[0-9]{1,19}",
        ) {
            check_decoders(nibbles, random, &AccountDigits::parse(&account).unwrap())?;
        }

        // Random nibbles are almost never a block, so these are a block with at most one changed nibble.
        #[test]
        fn decoders_follow_the_standard_on_one_changed_nibble(
            format in prop::sample::select(&[0u8, 1, 3, 4][..]), digits in "[0-9]{4,12}", fill in any::<u64>(),
            changed in prop::option::of((0..16u32, 0..16u64)), random in any::<u64>(), account in "[0-9]{1,19}",
        ) {
            let fill = match format {
                0 => u64::MAX,
                1 => fill,
                3 => within_a_to_f(fill),
                _ => 0xAAAA_AAAA_AAAA_AAAA,
            };
            let whole = pin_field(format, &pin(&digits), fill);
            prop_assert!(is_format(format, whole, |_| true));
            let nibbles = changed.map_or(whole, |(place, nibble)| with_nibble(whole, place, nibble));
            check_decoders(nibbles, random, &AccountDigits::parse(&account).unwrap())?;
        }
    }

    #[test]
    fn a_wrong_fill_nibble_is_rejected_except_in_format_1() {
        let account = AccountDigits::parse("5413339000001513").unwrap();
        for length in 4..=12u32 {
            let expected = pin(&"918273645509"[..length as usize]);
            for (place, nibble) in (2 + length..16).flat_map(|place| (0..16).map(move |nibble| (place, nibble))) {
                let field = |control, fill| with_nibble(pin_field(control, &expected, fill), place, nibble);
                let read = [
                    reads_iso_0(field(0, u64::MAX), &account),
                    reads_iso_1(field(1, 0)),
                    reads_iso_3(field(3, 0xABCD_EFAB_CDEF_ABCD), &account),
                    reads_iso_4(field(4, 0xAAAA_AAAA_AAAA_AAAA), 0),
                ];
                let right = [nibble == 0xF, true, nibble >= 0xA, nibble == 0xA];
                assert_eq!(read, right, "{length} digits, {nibble:X} at place {place}");
            }
        }
    }
}
