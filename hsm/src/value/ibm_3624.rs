//! IBM 3624 PINs and offsets (IBM CCA, "3624 PIN generation algorithm" and "PIN offset generation algorithm"). The offset has
//! as many digits as the PIN: the PIN check length of IBM equals the PIN length.

use subtle::{Choice, ConditionallySelectable, ConstantTimeLess};

use hsm_protocol::DecimalisationTable;

use crate::clear::Pin;

/// The lowest bit of every nibble.
const ONES: u64 = 0x1111_1111_1111_1111;
/// The nibbles of a 3DES block.
const NIBBLES: usize = 16;

/// The natural PIN of encrypted validation data, 16 digits: each nibble replaced by its digit of the table. Every entry of the
/// table is read for every nibble.
pub(crate) fn natural_pin(encrypted: u64, table: &DecimalisationTable) -> u64 {
    (0..).zip(table.digits()).fold(0, |natural, (nibble, digit)| {
        let differs = encrypted ^ (ONES * nibble);
        let equal = !(differs | (differs >> 1) | (differs >> 2) | (differs >> 3)) & ONES;
        natural | (equal * u64::from(*digit))
    })
}

/// The offset of a PIN: PIN minus natural PIN, digit by digit modulo 10, in as many nibbles as the PIN has digits.
pub(crate) fn offset(pin: &Pin, natural: u64) -> u64 {
    let mut offset = 0;
    for place in 0..NIBBLES {
        let digit = |digits: u64| ((digits >> (4 * place)) & 0xF) as u8;
        let difference = digit(pin.digits()).wrapping_add(10).wrapping_sub(digit(natural));
        let wrapped: Choice = !difference.ct_lt(&10);
        let difference = u8::conditional_select(&difference, &difference.wrapping_sub(10), wrapped);
        offset |= u64::from(difference) << (4 * place);
    }
    offset & pin.places()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// IBM 4758 CCA Basic Services, appendix E: the example of the 3624 PIN-calculation method.
    #[test]
    fn the_example_of_ibm_decimalises_to_its_pin() {
        let table = DecimalisationTable::parse("8351296477461538").unwrap();
        assert_eq!(natural_pin(0xE5C1_BD67_B66A_E7C6, &table), 0x3913_6564_6664_3416);
    }

    proptest! {
        #[test]
        fn every_nibble_is_replaced_by_its_digit(encrypted in any::<u64>(), table in "[0-9]{16}") {
            prop_assume!(DecimalisationTable::parse(&table).is_some());
            let expected: String = format!("{encrypted:016x}")
                .chars()
                .map(|nibble| table.as_bytes()[nibble.to_digit(16).unwrap() as usize] as char)
                .collect();
            let table = DecimalisationTable::parse(&table).unwrap();
            prop_assert_eq!(format!("{:016x}", natural_pin(encrypted, &table)), expected);
        }

        #[test]
        fn natural_pin_plus_offset_is_the_pin(digits in "[0-9]{4,12}", natural in "[0-9]{16}") {
            let mut pin = Pin::zeroed();
            let nibbles = u64::from_str_radix(&format!("{digits:0<16}"), 16).unwrap();
            prop_assert!(bool::from(pin.fill(u8::try_from(digits.len()).unwrap(), nibbles)));
            let offset = format!("{:016x}", offset(&pin, u64::from_str_radix(&natural, 16).unwrap()));
            let sum = |(a, b): (u8, u8)| char::from(b'0' + (a - b'0' + b - b'0') % 10);
            let added: String = natural.bytes().zip(offset.bytes()).map(sum).take(digits.len()).collect();
            prop_assert_eq!(added, digits.clone());
            prop_assert!(offset[digits.len()..].bytes().all(|byte| byte == b'0'));
        }
    }
}
