//! The Visa PIN verification value (PVV): 4 digits of the encrypted security parameter under a PVK pair.

use subtle::{Choice, ConditionallySelectable, ConstantTimeLess};

use hsm_protocol::Pvki;

use crate::{block::AccountDigits, clear::Pin};

/// The digits of a PVV.
const PVV_DIGITS: u8 = 4;

/// The transformed security parameter, 16 nibbles: the 11 rightmost digits of the account without the check digit, the PVKI,
/// the first 4 digits of the PIN.
pub(crate) fn security_parameter(account: &AccountDigits, pvki: Pvki, pin: &Pin) -> u64 {
    let eleven = account.rightmost_twelve() & 0xFFF_FFFF_FFFF;
    (eleven << 20) | (u64::from(pvki.get()) << 16) | (pin.digits() >> 48)
}

/// The PVV of the encrypted security parameter, in the 4 highest nibbles: the decimal digits from left to right; if there are
/// fewer than 4, a second pass takes A to F as 0 to 5. Both passes always run.
pub(crate) fn pvv(encrypted: u64) -> u64 {
    let (mut pvv, mut found) = (0u32, 0u8);
    for pass in [Choice::from(0), Choice::from(1)] {
        for place in 0..16 {
            let nibble = ((encrypted >> (60 - 4 * place)) & 0xF) as u8;
            let is_letter = !nibble.ct_lt(&10);
            let take = !(is_letter ^ pass) & found.ct_lt(&PVV_DIGITS);
            let digit = u8::conditional_select(&nibble, &nibble.wrapping_sub(10), pass);
            pvv = u32::conditional_select(&pvv, &((pvv << 4) | u32::from(digit)), take);
            found = found.wrapping_add(take.unwrap_u8());
        }
    }
    u64::from(pvv) << 48
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The two passes over text, as Visa describes them.
    fn by_text(encrypted: u64) -> String {
        let text = format!("{encrypted:016x}");
        let decimal = text.chars().filter(char::is_ascii_digit);
        let letters = text.bytes().filter(u8::is_ascii_lowercase).map(|letter| char::from(letter - b'a' + b'0'));
        decimal.chain(letters).take(4).collect()
    }

    proptest! {
        #[test]
        fn both_passes_agree_with_the_description(encrypted in any::<u64>(), letters in any::<u64>()) {
            // The second one has few decimal digits: every nibble has its two highest bits set where `letters` has.
            for encrypted in [encrypted, encrypted | (letters & 0xAAAA_AAAA_AAAA_AAAA), encrypted | 0xAAAA_AAAA_AAAA_AAAA] {
                prop_assert_eq!(format!("{:016x}", pvv(encrypted)), format!("{:0<16}", by_text(encrypted)));
            }
        }
    }
}
