//! Key blocks (ANSI X9.143, formerly TR-31; version E also ISO 20038): the format in which two parties exchange a key.
//!
//! ```text
//! header(16) optional blocks … | encrypted: length in bits(2) key padding | MAC(4, 8 or 16)
//! ```
//! A key block is text: the header in clear, the encrypted part and the MAC as upper-case hexadecimal digits. The MAC covers
//! the header, so nobody can change the usage of a key. This crate reads versions A to E and writes D and E; the others
//! protect with 3DES.
//!
//! `header` reads the text, `registry` holds the codes and the rules, `protection` the ciphers. What must never enter: a key
//! that is used before its MAC was verified.

mod header;
mod protection;
mod registry;

use base16ct::upper;
use subtle::ConstantTimeEq;
use thiserror::Error;

#[cfg(test)]
pub(crate) use self::protection::known_answers;
pub(crate) use self::protection::{CmacInToken, Family, ProtectionKey, check_bytes};
pub use self::{
    header::{Header, OptionalBlock, Version},
    registry::{Field, Purpose},
};
use crate::clear::ClearBytes;

/// The most characters of a key block: the length field has four decimal digits.
const CHARACTERS_MAX: usize = 9_999;
/// Bytes of the key length, in bits, at the start of the encrypted part.
const KEY_LENGTH_BYTES: usize = 2;
/// The optional block with the KCV of the key in the block.
const KCV_ID: &str = "KC";

/// A parsed key block. The key is still encrypted, and the MAC is not verified.
pub struct KeyBlock {
    header: Header,
    /// Header and optional blocks as received. The MAC covers them.
    clear_text: String,
    encrypted: Vec<u8>,
    mac: Vec<u8>,
}

impl KeyBlock {
    /// Parses a key block, without its protection key.
    ///
    /// # Errors
    /// [`KeyBlockError`] by the first field that is malformed.
    pub fn parse(text: &str) -> Result<Self, KeyBlockError> {
        let block = Self::parse_to_explain(text)?;
        registry::check_identifiers(block.header.optional())?;
        Ok(block)
    }

    /// Parses a key block whose identifiers (KS, IK, BI) may be any text: [`KeyBlock::fields`] warns of them.
    ///
    /// # Errors
    /// As [`KeyBlock::parse`].
    pub fn parse_to_explain(text: &str) -> Result<Self, KeyBlockError> {
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

    /// The parsed header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The header as received: 16 characters and the optional blocks.
    pub fn header_text(&self) -> String {
        self.clear_text.clone()
    }

    /// Bytes of the encrypted part: length, key and padding.
    pub fn encrypted_bytes(&self) -> usize {
        self.encrypted.len()
    }

    /// The fields in the order of the block, each with the meaning of its code.
    pub fn fields(&self) -> Vec<Field> {
        registry::fields(&self.header, self.encrypted.len())
    }

    /// Checks that the header allows a purpose.
    ///
    /// # Errors
    /// [`KeyBlockError::Purpose`] with the first field that does not.
    pub fn check_purpose(&self, purpose: Purpose) -> Result<(), KeyBlockError> {
        registry::check(&self.header, purpose)
    }

    /// Checks that each optional block KC agrees with the KCV of the opened key, as far as both were made by `method`: `00`
    /// for the encrypted zero block, `01` for CMAC (X9.143:2021, table 15).
    ///
    /// # Errors
    /// [`KeyBlockError::Optional`] with the first KC that names another KCV.
    pub(crate) fn check_kcv(&self, method: &str, kcv: &[u8]) -> Result<(), KeyBlockError> {
        let digits = upper::encode_string(kcv);
        let differs = |block: &OptionalBlock| {
            block.id() == KCV_ID
                && registry::named_kcv(block).is_some_and(|(of, kcv)| of == method && registry::differ(kcv, &digits))
        };
        let problem = "names another KCV than the key in the block has: ask the sender for another block";
        match self.header.optional().iter().position(differs) {
            Some(at) => Err(KeyBlockError::Optional { number: at + 1, id: KCV_ID.to_owned(), problem }),
            None => Ok(()),
        }
    }

    /// Verifies the MAC and decrypts the key.
    ///
    /// # Errors
    /// [`KeyBlockError::Mac`] where the MAC is wrong; [`KeyBlockError::ProtectionKey`] where the version needs another cipher;
    /// [`KeyBlockError::KeyLength`] where the key's length is impossible.
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

    /// Writes a key block of version D or E. Random padding hides the key's length: it fills up to the longest key of the
    /// algorithm, 24 bytes for 3DES and 32 for AES.
    ///
    /// # Errors
    /// [`KeyBlockError::Version`] for another version; [`KeyBlockError::ProtectionKey`] for a 3DES protection key.
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

/// Encrypts a complete payload (length, key, padding) and writes the block.
fn protect(header: &Header, under: &ProtectionKey<'_>, mut payload: ClearBytes) -> Result<String, KeyBlockError> {
    let version = header.version();
    let text = header.write(2 * (payload.bytes().len() + version.mac_bytes()))?;
    let mac = under.protect(version, &text, &mut payload)?;
    Ok(text + &upper::encode_string(payload.bytes()) + &upper::encode_string(&mac))
}

/// A key block is malformed, or does not open, or can't be written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KeyBlockError {
    /// The text is too long, or has other characters than printable ASCII.
    #[error("a key block is at most {CHARACTERS_MAX} printable ASCII characters, on one line")]
    Characters,
    /// The version, the first character, is unknown, or is not one that this crate writes.
    #[error("a key block has version A, B, C, D or E, and is written in version D or E")]
    Version,
    /// The length field differs from the length of the text.
    #[error("the length field says {written} characters and the block has {found}: copy the whole block again")]
    Length {
        /// The length field.
        written: usize,
        /// The characters of the text.
        found: usize,
    },
    /// A header field is malformed.
    #[error("the header's {field} can't be read")]
    Header {
        /// For example `usage`.
        field: &'static str,
    },
    /// An optional block is malformed.
    #[error("optional block {number} ({id}) {problem}")]
    Optional {
        /// The position of the optional block, from 1.
        number: usize,
        /// The two letters of its id, as far as they can be read.
        id: String,
        /// The rest of the sentence that begins with the block.
        problem: &'static str,
    },
    /// The encrypted part or the MAC has other characters or another length than the version allows.
    #[error("the encrypted part is not upper-case hexadecimal digits in whole cipher blocks")]
    Encrypted,
    /// The MAC does not verify.
    #[error("the MAC is wrong: the block is under another key, or was changed")]
    Mac,
    /// The MAC verifies, but the length of the key is impossible.
    #[error("the key in the block has an impossible length: ask the sender for another block")]
    KeyLength,
    /// The version of the block needs a protection key of another cipher.
    #[error("a key block of version {version} is under {wanted}")]
    ProtectionKey {
        /// The version of the block.
        version: Version,
        /// The cipher and lengths of its protection keys.
        wanted: &'static str,
    },
    /// The header does not allow the purpose.
    #[error("{field} {found} does not suit {purpose}: {wanted}")]
    Purpose {
        /// The header field.
        field: &'static str,
        /// The value of the field.
        found: String,
        /// The purpose that was asked for.
        purpose: Purpose,
        /// The values that the purpose allows.
        wanted: &'static str,
    },
    /// The token failed to derive the keys of the block.
    #[error("the token failed to derive the keys of the block from the key-exchange key")]
    Token,
    /// The random generator failed, so the block has no padding.
    #[error("the random generator failed")]
    Random,
}

#[cfg(test)]
mod block_tests;
