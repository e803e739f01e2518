//! The device's part of the Card PIN API.
//!
//! A device makes an RSA key pair. The issuer encrypts the tzpk, a double-length 3DES key, to the public key: RSA-OAEP with
//! SHA-256 for the hash and SHA-256 for MGF1 (RFC 8017). The device encrypts the PIN under the tzpk as an ISO 9564-1 format 1
//! block. The clear PIN in this crate belongs to the device, which is outside the key boundary: the engine and the edge services
//! do not link this crate.
//!
//! ```
//! use card_pin::{Fill, Pin, Tzpk};
//!
//! let tzpk = Tzpk::from_bytes(&[0x2B; 16]).ok_or("a tzpk is 16 bytes")?;
//! let encrypted = tzpk.encrypt_block(&Pin::parse("2580")?.to_block(Fill::Random));
//!
//! let decrypted = Pin::from_block(&tzpk.decrypt_block(&encrypted)).ok_or("the block holds no PIN")?;
//! assert_eq!(decrypted.reveal(), "2580");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

use aws_lc_rs::{
    digest,
    encoding::{AsDer, PublicKeyX509Der},
    rand,
    rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey},
};
use des::{
    TdesEde2,
    cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit},
};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

/// The size of the device's RSA modulus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyBits {
    /// A modulus of 2048 bits.
    Rsa2048,
    /// A modulus of 3072 bits.
    Rsa3072,
    /// A modulus of 4096 bits.
    Rsa4096,
}

/// A device with its RSA key pair.
pub struct Device {
    key: OaepPrivateDecryptingKey,
    public_key: Vec<u8>,
}

impl Device {
    /// Makes a device with a fresh key pair.
    ///
    /// # Errors
    /// The key pair can't be made.
    pub fn generate(bits: KeyBits) -> Result<Self, DeviceError> {
        let size = match bits {
            KeyBits::Rsa2048 => KeySize::Rsa2048,
            KeyBits::Rsa3072 => KeySize::Rsa3072,
            KeyBits::Rsa4096 => KeySize::Rsa4096,
        };
        Self::with(PrivateDecryptingKey::generate(size).map_err(|_| DeviceError::Key)?)
    }

    /// Makes a device with a given key pair, in PKCS#8 DER.
    ///
    /// # Errors
    /// The bytes are not an RSA key pair in PKCS#8.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, DeviceError> {
        Self::with(PrivateDecryptingKey::from_pkcs8(der).map_err(|_| DeviceError::Key)?)
    }

    fn with(key: PrivateDecryptingKey) -> Result<Self, DeviceError> {
        let public: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|_| DeviceError::Key)?;
        let public_key = public.as_ref().to_vec();
        Ok(Self { key: OaepPrivateDecryptingKey::new(key).map_err(|_| DeviceError::Key)?, public_key })
    }

    /// The public key: a DER SubjectPublicKeyInfo (RFC 5280). Its base64 is the member `publicKey`.
    pub fn public_key_der(&self) -> &[u8] {
        &self.public_key
    }

    /// SHA-256 of the DER SubjectPublicKeyInfo, 32 bytes.
    pub fn thumbprint(&self) -> [u8; 32] {
        let mut thumbprint = [0; 32];
        thumbprint.copy_from_slice(digest::digest(&digest::SHA256, &self.public_key).as_ref());
        thumbprint
    }

    /// Decrypts a tzpk: RSA-OAEP (RFC 8017), SHA-256, MGF1 with SHA-256, empty label.
    ///
    /// # Errors
    /// The tzpk is not encrypted to this device, or is not 16 bytes.
    pub fn decrypt_tzpk(&self, encrypted: &[u8]) -> Result<Tzpk, DeviceError> {
        let mut buffer = Zeroizing::new(vec![0; self.key.key_size_bytes()]);
        let decrypted = self.key.decrypt(&OAEP_SHA256_MGF1SHA256, encrypted, &mut buffer, None);
        Tzpk::from_bytes(decrypted.map_err(|_| DeviceError::Tzpk)?).ok_or(DeviceError::Tzpk)
    }

    /// Decrypts the tzpk and encrypts a PIN under it, as an ISO 9564 format 1 block.
    ///
    /// # Errors
    /// The tzpk is not encrypted to this device, or is not 16 bytes.
    pub fn encrypt_pin(&self, encrypted_tzpk: &[u8], pin: &Pin, fill: Fill) -> Result<[u8; 8], DeviceError> {
        let block = Zeroizing::new(pin.to_block(fill));
        Ok(self.decrypt_tzpk(encrypted_tzpk)?.encrypt_block(&block))
    }

    /// Decrypts the tzpk and the ISO 9564 format 1 block under it.
    ///
    /// # Errors
    /// The tzpk is not encrypted to this device, or the block holds no PIN.
    pub fn decrypt_pin(&self, encrypted_tzpk: &[u8], block: &[u8; 8]) -> Result<Pin, DeviceError> {
        let clear = Zeroizing::new(self.decrypt_tzpk(encrypted_tzpk)?.decrypt_block(block));
        Pin::from_block(&clear).ok_or(DeviceError::Block)
    }
}

/// The device can't use a key, a tzpk or a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// The RSA key pair can't be made or read.
    #[error("the device could not make or read its RSA key pair")]
    Key,
    /// The tzpk can't be decrypted with the private key of this device, or is not 16 bytes.
    #[error(
        "this device's key does not decrypt the tzpk to 16 bytes: RSA-OAEP needs SHA-256 for the hash and for MGF1, and no \
         label. If the edge makes tzpks with MGF1-SHA-1, remove oaep_mgf1 = \"sha-1\" from its client"
    )]
    Tzpk,
    /// The decrypted block is not an ISO 9564 format 1 block with 4 to 12 digits.
    #[error("the block holds no PIN in ISO 9564-1 format 1: start again with a new control")]
    Block,
}

/// A clear PIN of the device: 4 to 12 ASCII digits. It has no `Debug` and no `Clone`, and is wiped on drop.
pub struct Pin(Zeroizing<Vec<u8>>);

/// The fill of a block behind the PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// A random nibble at each place.
    Random,
    /// One nibble throughout: the vendor's documented device uses `0xA`.
    Constant(u8),
    /// The nibbles of these bytes that stand at the places of the fill.
    Bytes([u8; 8]),
}

impl Pin {
    /// Reads 4 to 12 ASCII digits. The caller wipes the text.
    ///
    /// # Errors
    /// The text has another length or another character.
    pub fn parse(text: &str) -> Result<Self, PinError> {
        let digits = text.as_bytes();
        let good = (4..=12).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
        good.then(|| Self(Zeroizing::new(digits.to_vec()))).ok_or(PinError)
    }

    /// The digits, for the phone's screen.
    pub fn reveal(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The ISO 9564 format 1 block: the nibbles `1`, length, PIN digits, fill; 8 bytes.
    pub fn to_block(&self, fill: Fill) -> [u8; 8] {
        let mut block = [0; 8];
        match fill {
            // Without randomness the fill is zeros: the block is still well-formed.
            Fill::Random => drop(rand::fill(&mut block)),
            Fill::Constant(nibble) => block.fill((nibble << 4) | (nibble & 0x0F)),
            Fill::Bytes(bytes) => block = bytes,
        }
        let head = [1, u8::try_from(self.0.len()).unwrap_or_default()];
        let nibbles = head.into_iter().chain(self.0.iter().map(|byte| byte - b'0'));
        for (index, nibble) in nibbles.enumerate() {
            if let Some(byte) = block.get_mut(index / 2) {
                *byte = if index.is_multiple_of(2) { (*byte & 0x0F) | (nibble << 4) } else { (*byte & 0xF0) | nibble };
            }
        }
        block
    }

    /// The PIN in an ISO 9564 format 1 block; `None` where the block is malformed.
    pub fn from_block(block: &[u8; 8]) -> Option<Self> {
        let [head, rest @ ..] = block;
        let length = usize::from(head & 0x0F);
        if head >> 4 != 1 || !(4..=12).contains(&length) {
            return None;
        }
        let mut digits = Zeroizing::new(Vec::with_capacity(length));
        digits.extend(rest.iter().flat_map(|byte| [byte >> 4, byte & 0x0F]).take(length).map(|nibble| b'0' + nibble));
        digits.iter().all(u8::is_ascii_digit).then_some(Self(digits))
    }
}

/// The text is not 4 to 12 digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a PIN is 4 to 12 digits")]
pub struct PinError;

/// The clear tzpk of the device, a temporary zone PIN key: double-length 3DES, K1 ‖ K2, 16 bytes; wiped on drop.
pub struct Tzpk([u8; 16]);

impl Tzpk {
    /// The tzpk in these bytes; `None` unless they are 16.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// K1 ‖ K2, 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Encrypts one block: two-key 3DES, ECB.
    pub fn encrypt_block(&self, block: &[u8; 8]) -> [u8; 8] {
        let mut block = *block;
        TdesEde2::new((&self.0).into()).encrypt_block((&mut block).into());
        block
    }

    /// Decrypts one block: two-key 3DES, ECB.
    pub fn decrypt_block(&self, block: &[u8; 8]) -> [u8; 8] {
        let mut block = *block;
        TdesEde2::new((&self.0).into()).decrypt_block((&mut block).into());
        block
    }
}

impl Drop for Tzpk {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_returns_its_pin_for_every_fill() {
        for text in ["1234", "25801", "123456789012"] {
            for fill in [Fill::Random, Fill::Constant(0xA), Fill::Constant(0), Fill::Bytes([0xF7; 8])] {
                let block = Pin::parse(text).unwrap().to_block(fill);
                assert_eq!(Pin::from_block(&block).unwrap().reveal(), text);
            }
        }
    }

    #[test]
    fn malformed_pins_and_blocks_are_rejected() {
        for refused in ["", "123", "1234567890123", "12a4"] {
            assert!(Pin::parse(refused).is_err());
        }
        assert!(Pin::from_block(&0x0412_34FF_FFFF_FFFFu64.to_be_bytes()).is_none());
        assert!(Pin::from_block(&0x1F12_34FF_FFFF_FFFFu64.to_be_bytes()).is_none());
    }

    #[test]
    fn the_card_pin_api_example_block_matches() {
        let tzpk = Tzpk(0x0011_2233_4455_6677_8899_AABB_CCDD_EEFFu128.to_be_bytes());
        let clear = Pin::parse("1234").unwrap().to_block(Fill::Constant(0xA));
        assert_eq!(clear, 0x1412_34AA_AAAA_AAAAu64.to_be_bytes());
        let encrypted = tzpk.encrypt_block(&clear);
        assert_eq!(encrypted, 0x8173_9710_556E_1518u64.to_be_bytes());
        assert_eq!(tzpk.decrypt_block(&encrypted), clear);
    }
}
