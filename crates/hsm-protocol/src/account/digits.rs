//! The digits of an account, and how they stand in a block that is bound to it.

/// The digits that bind a block to an account: 1 to 19 of them, each 0 to 9.
pub struct AccountDigits {
    digits: [u8; ACCOUNT_DIGITS_MAX],
    length: usize,
}

/// The longest account number (ISO/IEC 7812-1).
const ACCOUNT_DIGITS_MAX: usize = 19;

impl AccountDigits {
    /// From decimal text; none where it is anything else, or empty, or longer than 19.
    pub fn parse(text: &str) -> Option<Self> {
        let mut digits = [0; ACCOUNT_DIGITS_MAX];
        let length = text.len();
        for (digit, byte) in digits.get_mut(..length)?.iter_mut().zip(text.bytes()) {
            *digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        }
        (length > 0).then_some(Self { digits, length })
    }

    /// From digits, each 0 to 9.
    pub fn of(values: &[u8]) -> Option<Self> {
        let mut digits = [0; ACCOUNT_DIGITS_MAX];
        let length = values.len();
        digits.get_mut(..length)?.copy_from_slice(values);
        (length > 0 && values.iter().all(|digit| *digit < 10)).then_some(Self { digits, length })
    }

    /// From two digits a byte, filled with F on the right.
    pub fn unpack(packed: &[u8]) -> Option<Self> {
        let nibbles = packed.iter().flat_map(|byte| [byte >> 4, byte & 0x0F]);
        let mut digits = [0; ACCOUNT_DIGITS_MAX];
        let mut length = 0;
        for (place, nibble) in digits.iter_mut().zip(nibbles.take_while(|nibble| *nibble < 10)) {
            *place = nibble;
            length += 1;
        }
        (length > 0).then_some(Self { digits, length })
    }

    /// `0000` and the 12 rightmost digits without the check digit; a shorter number is padded on the left with zeros.
    pub fn rightmost_twelve(&self) -> u64 {
        let without_check_digit = self.as_slice().split_last().map_or(&[][..], |(_, rest)| rest);
        let twelve = without_check_digit.iter().rev().take(12).rev();
        twelve.fold(0, |packed, digit| (packed << 4) | u64::from(*digit))
    }

    /// The digits, each 0 to 9.
    pub fn as_slice(&self) -> &[u8] {
        self.digits.get(..self.length).unwrap_or_default()
    }
}

impl Drop for AccountDigits {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.digits);
    }
}
