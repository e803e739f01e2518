//! The masks that turn a format 1 block into another format by XOR, inside a token that can't read the block.

use super::AccountDigits;

/// The mask from format 1 to format 3, and back: control nibble and account field. The fill must be A to F.
pub(crate) fn iso_1_to_iso_3(account: &AccountDigits) -> u64 {
    (0x2 << 60) ^ account.rightmost_twelve()
}

/// The mask from format 1 to a format 4 PIN field: control nibble and random half. The fill must be A.
pub(crate) fn iso_1_to_iso_4(random: u64) -> u128 {
    (0x5 << 124) | u128::from(random)
}

/// The mask that turns a last byte of AA into 01, a PKCS #7 padding of one byte.
pub(crate) const FILL_A_AS_PADDING: u64 = 0xAB;

#[cfg(test)]
mod tests {
    use super::*;

    // Measured on NSS and openCryptoki, checked with OpenSSL.
    #[test]
    fn the_mask_turns_format_1_into_format_3() {
        let account = AccountDigits::parse("5413339000001513").unwrap();
        let masked = 0x1512_345A_BCDE_FACBu64 ^ iso_1_to_iso_3(&account);
        assert_eq!(masked ^ account.rightmost_twelve(), 0x3512_345A_BCDE_FACB);
    }

    #[test]
    fn the_mask_turns_format_1_with_fill_a_into_format_4() {
        let block = 0x1512_345A_AAAA_AAAAu64;
        let field = (u128::from(block) << 64) ^ iso_1_to_iso_4(7);
        assert_eq!(field, 0x4512_345A_AAAA_AAAA_0000_0000_0000_0007);
        assert_eq!((block ^ FILL_A_AS_PADDING) & 0xFF, 1);
    }
}
