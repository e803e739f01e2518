//! A simulator of the cardholder's device, and of the back-end that calls the Card PIN API.
//!
//! The clear PIN in this crate belongs to the device, which is outside the key boundary. The engine and the edge services do
//! not link this crate.
//!
//! ```
//! use device::{Fill, Pin, Tzpk};
//!
//! let tzpk = Tzpk::from_bytes(&[0x2B; 16]).ok_or("a tzpk is 16 bytes")?;
//! let encrypted = tzpk.encrypt_block(&Pin::parse("2580")?.to_block(Fill::Random));
//!
//! let decrypted = Pin::from_block(&tzpk.decrypt_block(&encrypted)).ok_or("the block holds no PIN")?;
//! assert_eq!(decrypted.reveal(), "2580");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

pub mod client;
mod pin;
mod tzpk;

use aws_lc_rs::{
    digest,
    encoding::{AsDer, PublicKeyX509Der},
    rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey},
};
use thiserror::Error;

pub use self::{
    pin::{Fill, Pin, PinError},
    tzpk::Tzpk,
};

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

    /// The public key: a DER SubjectPublicKeyInfo (RFC 5280).
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
        let mut buffer = vec![0; self.key.key_size_bytes()];
        let decrypted = self.key.decrypt(&OAEP_SHA256_MGF1SHA256, encrypted, &mut buffer, None);
        Tzpk::from_bytes(decrypted.map_err(|_| DeviceError::Tzpk)?).ok_or(DeviceError::Tzpk)
    }

    /// Decrypts the tzpk and encrypts a PIN under it, as an ISO 9564 format 1 block.
    ///
    /// # Errors
    /// The tzpk is not encrypted to this device, or is not 16 bytes.
    pub fn encrypt_pin(&self, encrypted_tzpk: &[u8], pin: &Pin, fill: Fill) -> Result<[u8; 8], DeviceError> {
        Ok(self.decrypt_tzpk(encrypted_tzpk)?.encrypt_block(&pin.to_block(fill)))
    }

    /// Decrypts the tzpk and the ISO 9564 format 1 block under it.
    ///
    /// # Errors
    /// The tzpk is not encrypted to this device, or the block holds no PIN.
    pub fn decrypt_pin(&self, encrypted_tzpk: &[u8], block: &[u8; 8]) -> Result<Pin, DeviceError> {
        Pin::from_block(&self.decrypt_tzpk(encrypted_tzpk)?.decrypt_block(block)).ok_or(DeviceError::Block)
    }
}

/// The device can't use a key, a tzpk or a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// The RSA key pair can't be made or read.
    #[error("the device could not make or read its RSA key pair")]
    Key,
    /// The tzpk can't be decrypted with the private key of this device.
    #[error("this device's key does not decrypt the tzpk: RSA-OAEP needs SHA-256 for both the hash and MGF1")]
    Tzpk,
    /// The decrypted block is not an ISO 9564 format 1 block with 4 to 12 digits.
    #[error("the block holds no PIN in ISO 9564 format 1")]
    Block,
}
