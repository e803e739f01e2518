//! Key blocks (ANSI X9.143, before it TR-31; version E also ISO 20038): how a key travels between two parties.
//!
//! ```text
//! header(16) optional blocks … | encrypted: length in bits(2) key padding | MAC(4, 8 or 16)
//! ```
//! Everything is text: the header as it is, what is encrypted and the MAC as hexadecimal digits. The header is under the
//! MAC, so a key keeps what it is for. Versions A to E are read, D and E are written: the others protect with 3DES.
//!
//! `header` reads the text, `registry` says what its codes mean and allow, `protection` holds the ciphers. What must never
//! enter: a key that is taken before its MAC was right.

mod header;
mod protection;
mod registry;

use base16ct::upper;
use subtle::ConstantTimeEq;
use thiserror::Error;

#[cfg(test)]
pub(crate) use self::protection::known_answers;
pub(crate) use self::protection::{AesElsewhere, Family, ProtectionKey, check_bytes};
pub use self::{
    header::{Header, OptionalBlock, Version},
    registry::{Field, Purpose},
};
use crate::clear::ClearBytes;

/// The most characters a block has: its length field has four digits.
const CHARACTERS_MAX: usize = 9_999;
/// Bytes before a key in what is encrypted: its length in bits.
const KEY_LENGTH_BYTES: usize = 2;

/// A key block, read but not opened.
pub struct KeyBlock {
    header: Header,
    /// All that stands before what is encrypted, as it stands there: the MAC is over it.
    clear_text: String,
    encrypted: Vec<u8>,
    mac: Vec<u8>,
}

impl KeyBlock {
    /// Reads a block; whether its MAC is right is known only to who opens it.
    pub fn parse(text: &str) -> Result<Self, KeyBlockError> {
        if text.len() > CHARACTERS_MAX || !text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
            return Err(KeyBlockError::Characters);
        }
        let (header, rest) = Header::read(text)?;
        let clear_text = text.get(..text.len().saturating_sub(rest.len())).unwrap_or_default().to_owned();
        let version = header.version();
        let mac_digits = 2 * version.mac_bytes();
        let (encrypted, mac) = rest
            .len()
            .checked_sub(mac_digits)
            .and_then(|at| rest.split_at_checked(at))
            .ok_or(KeyBlockError::Length { written: text.len(), found: text.len() })?;
        let encrypted = upper::decode_vec(encrypted).map_err(|_| KeyBlockError::Encrypted)?;
        let mac = upper::decode_vec(mac).map_err(|_| KeyBlockError::Encrypted)?;
        if encrypted.len() <= KEY_LENGTH_BYTES || !encrypted.len().is_multiple_of(version.encrypted_multiple()) {
            return Err(KeyBlockError::Encrypted);
        }
        Ok(Self { header, clear_text, encrypted, mac })
    }

    /// What it says of its key.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Its header as it stands: 16 characters and the optional blocks.
    pub fn header_text(&self) -> String {
        self.clear_text.clone()
    }

    /// How many bytes are encrypted: the key, its length, and what hides the length.
    pub fn encrypted_bytes(&self) -> usize {
        self.encrypted.len()
    }

    /// What its codes mean, field by field, in the order they stand.
    pub fn fields(&self) -> Vec<Field> {
        registry::fields(&self.header, self.encrypted.len())
    }

    /// Whether its key may be taken for this.
    pub fn check_purpose(&self, purpose: Purpose) -> Result<(), KeyBlockError> {
        registry::check(&self.header, purpose)
    }

    /// Its key, where the MAC is right.
    pub(crate) fn open(&self, under: &ProtectionKey<'_>) -> Result<ClearBytes, KeyBlockError> {
        let version = self.header.version();
        let mut payload = ClearBytes::copied(&self.encrypted);
        let expected = under.open(version, &self.clear_text, &mut payload, &self.mac)?;
        if !bool::from(expected.as_slice().ct_eq(&self.mac)) {
            return Err(KeyBlockError::Mac);
        }
        let Some(([high, low], rest)) = payload.bytes().split_first_chunk() else {
            return Err(KeyBlockError::KeyLength);
        };
        let bits = usize::from(u16::from_be_bytes([*high, *low]));
        match rest.get(..bits / 8) {
            Some(key) if bits.is_multiple_of(8) && bits > 0 => Ok(ClearBytes::copied(key)),
            _ => Err(KeyBlockError::KeyLength),
        }
    }

    /// A key under another, as text. What hides its length is random, and as long as the longest key of its algorithm
    /// would need: 24 bytes of 3DES, 32 of AES.
    pub(crate) fn write(
        header: &Header,
        under: &ProtectionKey<'_>,
        key: &ClearBytes,
        random: impl FnOnce(&mut [u8]) -> Result<(), KeyBlockError>,
    ) -> Result<String, KeyBlockError> {
        let version = header.version();
        if !version.is_written() {
            return Err(KeyBlockError::Version);
        }
        let bits = u16::try_from(key.bytes().len().saturating_mul(8)).map_err(|_| KeyBlockError::KeyLength)?;
        let key_at = KEY_LENGTH_BYTES..KEY_LENGTH_BYTES + key.bytes().len();
        let bytes = KEY_LENGTH_BYTES + key.bytes().len().max(registry::longest_key_bytes(header.algorithm()));
        let mut payload = ClearBytes::zeroed(bytes.next_multiple_of(version.encrypted_multiple()));
        random(payload.bytes_mut())?;
        payload.bytes_mut().iter_mut().zip(bits.to_be_bytes()).for_each(|(place, byte)| *place = byte);
        if let Some(place) = payload.bytes_mut().get_mut(key_at) {
            place.copy_from_slice(key.bytes());
        }
        protect(header, under, payload)
    }
}

#[cfg(test)]
impl KeyBlock {
    /// Protects the same header and payload again, padding included.
    pub(crate) fn written_again(&self, under: &ProtectionKey<'_>) -> Result<String, KeyBlockError> {
        let mut payload = ClearBytes::copied(&self.encrypted);
        under.open(self.header.version(), &self.clear_text, &mut payload, &self.mac)?;
        protect(&self.header, under, payload)
    }
}

/// The block of a payload that is whole: length, key and padding.
fn protect(header: &Header, under: &ProtectionKey<'_>, mut payload: ClearBytes) -> Result<String, KeyBlockError> {
    let version = header.version();
    let text = header.write(2 * (payload.bytes().len() + version.mac_bytes()))?;
    let mac = under.protect(version, &text, &mut payload)?;
    Ok(text + &upper::encode_string(payload.bytes()) + &upper::encode_string(&mac))
}

/// Why a key block is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyBlockError {
    /// Not text of a key block.
    #[error("a key block is at most {CHARACTERS_MAX} printable ASCII characters, on one line")]
    Characters,
    /// Its first character.
    #[error("a key block's version is A, B, C, D or E (D and E are written)")]
    Version,
    /// Its length field says otherwise.
    #[error("the length field says {written} characters, and there are {found}: some are missing, or too many")]
    Length {
        /// What the header says.
        written: usize,
        /// How many there are.
        found: usize,
    },
    /// A header field that is not what it should be.
    #[error("the header's {field} can't be read")]
    Header {
        /// Which.
        field: &'static str,
    },
    /// An optional block that is not what it should be.
    #[error("optional block {number} ({id}) {problem}")]
    Optional {
        /// 1, 2, 3 …
        number: usize,
        /// Its two letters, as far as they can be read.
        id: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// What is encrypted, or the MAC.
    #[error("the encrypted part is not upper-case hexadecimal digits in whole cipher blocks")]
    Encrypted,
    /// The MAC is wrong.
    #[error("the MAC is wrong: the key it is under is another, or the block was changed")]
    Mac,
    /// The MAC is right, and the length of the key inside is not.
    #[error("the key inside has a length that can't be")]
    KeyLength,
    /// The key that protects.
    #[error("a key block of version {version} is under {wanted}")]
    ProtectionKey {
        /// Of the block.
        version: Version,
        /// What protects it.
        wanted: &'static str,
    },
    /// It is for something else.
    #[error("{field} {found} does not suit {purpose}: {wanted}")]
    Purpose {
        /// Which field.
        field: &'static str,
        /// What stands there.
        found: String,
        /// What the key was to be taken for.
        purpose: Purpose,
        /// What may stand there.
        wanted: &'static str,
    },
    /// The token that holds it.
    #[error("the token failed to derive the keys of the block from the key-exchange key")]
    Elsewhere,
    /// No randomness.
    #[error("the random generator failed")]
    Random,
}

#[cfg(test)]
mod block_tests;
