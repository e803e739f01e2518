//! Cards as the card system names them. A full account number never enters here: only its sealed and its masked form.

use std::fmt;

use thiserror::Error;

use crate::{storage_key::RecordKey, time::UnixMillis};

/// The longest tenant name, in bytes.
pub const TENANT_BYTES_MAX: usize = 31;
/// The longest plasticId, in digits: as long as the longest account number (ISO/IEC 7812-1).
pub const PLASTIC_ID_DIGITS_MAX: usize = 19;

/// An issuer or programme, whose cards and controls are apart from those of others: 1 to 31 of `a-z`, `0-9` and `-`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(Text<TENANT_BYTES_MAX>);

impl Tenant {
    /// Reads the name of a tenant.
    ///
    /// # Errors
    /// [`CardError::Tenant`]: the text has another length or another character.
    pub fn parse(text: &str) -> Result<Self, CardError> {
        let plain = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        Text::new(text).filter(|_| plain).map(Self).ok_or(CardError::Tenant)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The card system's name for a card: 1 to 19 decimal digits, kept as text, so that leading zeros count.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlasticId(Text<PLASTIC_ID_DIGITS_MAX>);

impl PlasticId {
    /// Reads a plasticId.
    ///
    /// # Errors
    /// [`CardError::PlasticId`]: the text has another length or another character.
    pub fn parse(text: &str) -> Result<Self, CardError> {
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        Text::new(text).filter(|_| digits).map(Self).ok_or(CardError::PlasticId)
    }

    /// The digits. They may bind a stored block as an account number does: print [`PlasticId::masked`] instead.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The last four digits, stars for the rest; of a short one, the last digit alone.
    pub fn masked(&self) -> String {
        let digits = self.as_str();
        let shown = if digits.len() > 4 { 4 } else { 1 };
        let (hidden, tail) = digits.split_at(digits.len().saturating_sub(shown));
        let mut masked = String::with_capacity(digits.len());
        masked.extend(hidden.chars().map(|_| '*'));
        masked.push_str(tail);
        masked
    }
}

impl fmt::Debug for PlasticId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

/// A card's full name: the same plasticId of another tenant is another card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CardKey {
    /// The tenant of the card.
    pub tenant: Tenant,
    /// The tenant's own name for the card.
    pub plastic: PlasticId,
}

/// An account number at rest: sealed by the boundary, and its first six and last four digits for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredAccount {
    /// The boundary's sealed blob.
    pub sealed: Box<[u8]>,
    /// First six and last four digits, stars between.
    pub masked: Box<str>,
}

/// A PIN at rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredPin {
    /// The boundary's PIN record: format, key version, encrypted block and tag, opaque here.
    pub record: Box<[u8]>,
    /// The storage key that the record names.
    pub key: RecordKey,
    /// The account number that the block is bound to; `None` where the digits of the plasticId bind it.
    pub account: Option<RegisteredAccount>,
}

/// A PIN record under another storage key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReencryptedPin {
    /// The card of the PIN.
    pub card: CardKey,
    /// The record that the boundary decrypted.
    pub before: Box<[u8]>,
    /// The record that replaces it.
    pub after: Box<[u8]>,
    /// The storage key that `after` names.
    pub key: RecordKey,
}

/// The PIN status of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinStatus {
    /// `W`: the card waits for its PIN.
    Waiting,
    /// `S`: a PIN is set.
    Set,
    /// `D`: a PIN was generated, and waits for the personalisation of the card.
    Generated,
}

/// A card as callers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// The registered account number, where the card has one.
    pub account: Option<RegisteredAccount>,
    /// Whether the card has a PIN.
    pub pin_status: PinStatus,
    /// The wall-clock time at which the PIN was last set.
    pub pin_set_at: Option<UnixMillis>,
}

/// The text is not the name of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CardError {
    /// The text is not the name of a tenant.
    #[error("a tenant is 1 to {TENANT_BYTES_MAX} characters of a-z, 0-9 and -")]
    Tenant,
    /// The text is not a plasticId.
    #[error("a plasticId is 1 to {PLASTIC_ID_DIGITS_MAX} decimal digits")]
    PlasticId,
}

/// Up to `N` ASCII bytes, in place: a million live controls hold two of these each.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Text<const N: usize> {
    bytes: [u8; N],
    length: u8,
}

impl<const N: usize> Text<N> {
    fn new(text: &str) -> Option<Self> {
        let mut bytes = [0; N];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        let length = u8::try_from(text.len()).ok()?;
        (text.is_ascii() && length > 0).then_some(Self { bytes, length })
    }

    fn as_str(&self) -> &str {
        self.bytes.get(..usize::from(self.length)).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plastic_id_is_one_to_nineteen_digits_and_keeps_its_leading_zeros() {
        assert_eq!(PlasticId::parse("007").unwrap().as_str(), "007");
        assert_ne!(PlasticId::parse("007").unwrap(), PlasticId::parse("7").unwrap());
        assert!(PlasticId::parse("1234567890123456789").is_ok());
        for refused in ["", "12345678901234567890", "12a", "-1", "1 ", "١٢٣"] {
            assert_eq!(PlasticId::parse(refused), Err(CardError::PlasticId), "{refused:?}");
        }
    }

    #[test]
    fn a_plastic_id_prints_masked() {
        assert_eq!(format!("{:?}", PlasticId::parse("987654321").unwrap()), "*****4321");
        assert_eq!(format!("{:?}", PlasticId::parse("4321").unwrap()), "***1");
    }

    #[test]
    fn a_tenant_is_a_short_lower_case_name() {
        assert_eq!(Tenant::parse("bank-1").unwrap().as_str(), "bank-1");
        for refused in ["", "Bank", "a b", "a/b", &"x".repeat(32)] {
            assert_eq!(Tenant::parse(refused), Err(CardError::Tenant), "{refused:?}");
        }
    }
}
