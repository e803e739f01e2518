//! Account numbers: read, masked, and how they bind a block to its card. They are cardholder data, not PINs.

mod digits;

use thiserror::Error;

pub use self::digits::AccountDigits;

use crate::sealed::SealedAccount;

/// What binds a stored block to its card.
#[derive(Clone, Copy)]
pub enum Account<'a> {
    /// The account number registered for it.
    Registered(&'a SealedAccount),
    /// The digits of its plasticId.
    PlasticId,
}

impl Account<'_> {
    pub fn copied(self) -> Option<SealedAccount> {
        match self {
            Self::Registered(sealed) => Some(sealed.copied()),
            Self::PlasticId => None,
        }
    }
}

/// An account number: 12 to 19 digits. No `Debug`: print [`AccountNumber::masked`].
pub struct AccountNumber {
    digits: AccountDigits,
}

/// The fewest digits of an account number.
const ACCOUNT_NUMBER_DIGITS_MIN: usize = 12;

impl AccountNumber {
    /// Reads decimal digits. The check digit is not checked: test cards have any.
    pub fn parse(text: &str) -> Result<Self, AccountNumberError> {
        let long_enough = text.len() >= ACCOUNT_NUMBER_DIGITS_MIN;
        AccountDigits::parse(text).filter(|_| long_enough).map(|digits| Self { digits }).ok_or(AccountNumberError)
    }

    /// From its digits, each 0 to 9.
    pub fn from_digits(digits: &[u8]) -> Option<Self> {
        let long_enough = digits.len() >= ACCOUNT_NUMBER_DIGITS_MIN;
        AccountDigits::of(digits).filter(|_| long_enough).map(|digits| Self { digits })
    }

    /// Not `Clone`: only the door copies one, for a worker.
    pub fn copied(&self) -> Self {
        Self { digits: self.digits.copied() }
    }

    pub fn digits(&self) -> &AccountDigits {
        &self.digits
    }

    /// The first six and the last four digits, stars between (PCI DSS 3.4.1).
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
