//! Account numbers (PAN), parsed and masked. They are cardholder data, not PINs.

mod digits;

use thiserror::Error;

pub(crate) use self::digits::ACCOUNT_DIGITS_MAX;
pub use self::digits::AccountDigits;

use crate::sealed::SealedAccount;

/// The digits that a stored block is bound to.
#[derive(Clone)]
pub enum Account {
    /// The account number registered for the card, sealed.
    Registered(SealedAccount),
    /// The digits of the card's plasticId.
    PlasticId,
}

/// An account number: 12 to 19 digits. No `Debug`: print [`AccountNumber::masked`].
pub struct AccountNumber {
    digits: AccountDigits,
}

/// The fewest digits of an account number.
const ACCOUNT_NUMBER_DIGITS_MIN: usize = 12;

impl AccountNumber {
    /// Parses decimal digits. The check digit is not verified, because test cards have wrong ones.
    ///
    /// # Errors
    /// The text is not 12 to 19 decimal digits.
    pub fn parse(text: &str) -> Result<Self, AccountNumberError> {
        let long_enough = text.len() >= ACCOUNT_NUMBER_DIGITS_MIN;
        AccountDigits::parse(text).filter(|_| long_enough).map(|digits| Self { digits }).ok_or(AccountNumberError)
    }

    /// The account number of 12 to 19 digits, each 0 to 9; `None` for anything else.
    pub fn from_digits(digits: &[u8]) -> Option<Self> {
        let long_enough = digits.len() >= ACCOUNT_NUMBER_DIGITS_MIN;
        AccountDigits::of(digits).filter(|_| long_enough).map(|digits| Self { digits })
    }

    /// The digits, each 0 to 9.
    pub fn digits(&self) -> &AccountDigits {
        &self.digits
    }

    /// The first six and the last four digits with stars between (PCI DSS 3.4.1).
    pub fn masked(&self) -> String {
        let digits = self.digits.as_slice();
        let shown = |place: usize| place < 6 || place + 4 >= digits.len();
        let print = |(place, digit): (usize, &u8)| if shown(place) { char::from(b'0' + digit) } else { '*' };
        digits.iter().enumerate().map(print).collect()
    }
}

/// The text is not an account number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("an account number is {ACCOUNT_NUMBER_DIGITS_MIN} to 19 decimal digits")]
pub struct AccountNumberError;
