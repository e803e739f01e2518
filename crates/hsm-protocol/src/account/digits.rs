//! The digits that a PIN block is bound to.

/// The digits that bind a block to an account: 1 to 19 of them, each 0 to 9.
pub struct AccountDigits {
    digits: [u8; ACCOUNT_DIGITS_MAX],
    length: usize,
}

/// The longest account number (ISO/IEC 7812-1).
pub(crate) const ACCOUNT_DIGITS_MAX: usize = 19;

impl AccountDigits {
    /// Parses 1 to 19 decimal digits; `None` for any other text.
    pub fn parse(text: impl AsRef<[u8]>) -> Option<Self> {
        let text = text.as_ref();
        let mut digits = [0; ACCOUNT_DIGITS_MAX];
        let length = text.len();
        for (digit, byte) in digits.get_mut(..length)?.iter_mut().zip(text) {
            *digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        }
        (length > 0).then_some(Self { digits, length })
    }

    /// Takes 1 to 19 digits, each 0 to 9; `None` for other values.
    pub fn of(values: &[u8]) -> Option<Self> {
        let mut digits = [0; ACCOUNT_DIGITS_MAX];
        let length = values.len();
        digits.get_mut(..length)?.copy_from_slice(values);
        (length > 0 && values.iter().all(|digit| *digit < 10)).then_some(Self { digits, length })
    }

    /// Reads two digits a byte, padded with F on the right; `None` without a digit.
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

    /// The account field of ISO 9564-1 formats 0 and 3: `0000` and the 12 rightmost digits without the check digit. A shorter
    /// number is padded with zeros on the left.
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
