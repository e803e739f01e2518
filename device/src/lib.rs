//! A simulator of the cardholder's device, and of the back-end it talks to.
//!
//! The clear PIN here is the device's own, outside the key boundary by definition. No engine or edge links this crate.

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

/// How large a device's RSA key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyBits {
    /// 2048 bits.
    Rsa2048,
    /// 3072 bits.
    Rsa3072,
    /// 4096 bits.
    Rsa4096,
}

/// A device with its RSA key pair.
pub struct Device {
    key: OaepPrivateDecryptingKey,
    public_key: Vec<u8>,
}

impl Device {
    /// Makes a fresh key pair.
    pub fn generate(bits: KeyBits) -> Result<Self, DeviceError> {
        let size = match bits {
            KeyBits::Rsa2048 => KeySize::Rsa2048,
            KeyBits::Rsa3072 => KeySize::Rsa3072,
            KeyBits::Rsa4096 => KeySize::Rsa4096,
        };
        Self::with(PrivateDecryptingKey::generate(size).map_err(|_| DeviceError::Key)?)
    }

    /// With a key pair in PKCS#8 form.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, DeviceError> {
        Self::with(PrivateDecryptingKey::from_pkcs8(der).map_err(|_| DeviceError::Key)?)
    }

    fn with(key: PrivateDecryptingKey) -> Result<Self, DeviceError> {
        let public: PublicKeyX509Der<'_> = key.public_key().as_der().map_err(|_| DeviceError::Key)?;
        let public_key = public.as_ref().to_vec();
        Ok(Self { key: OaepPrivateDecryptingKey::new(key).map_err(|_| DeviceError::Key)?, public_key })
    }

    /// The DER SubjectPublicKeyInfo.
    pub fn public_key_der(&self) -> &[u8] {
        &self.public_key
    }

    /// SHA-256 of it.
    pub fn thumbprint(&self) -> [u8; 32] {
        let mut thumbprint = [0; 32];
        thumbprint.copy_from_slice(digest::digest(&digest::SHA256, &self.public_key).as_ref());
        thumbprint
    }

    /// Opens an encrypted tzpk: RSA-OAEP, SHA-256, MGF1 with SHA-256, empty label.
    pub fn decrypt_tzpk(&self, encrypted: &[u8]) -> Result<Tzpk, DeviceError> {
        let mut buffer = vec![0; self.key.key_size_bytes()];
        let decrypted = self.key.decrypt(&OAEP_SHA256_MGF1SHA256, encrypted, &mut buffer, None);
        Tzpk::from_bytes(decrypted.map_err(|_| DeviceError::Tzpk)?).ok_or(DeviceError::Tzpk)
    }

    /// Opens the tzpk and encrypts a PIN under it, as an ISO 9564 format 1 block.
    pub fn encrypt_pin(&self, encrypted_tzpk: &[u8], pin: &Pin, fill: Fill) -> Result<[u8; 8], DeviceError> {
        Ok(self.decrypt_tzpk(encrypted_tzpk)?.encrypt_block(&pin.to_block(fill)))
    }

    /// Opens the tzpk and decrypts a PIN under it.
    pub fn decrypt_pin(&self, encrypted_tzpk: &[u8], block: &[u8; 8]) -> Result<Pin, DeviceError> {
        Pin::from_block(&self.decrypt_tzpk(encrypted_tzpk)?.decrypt_block(block)).ok_or(DeviceError::Block)
    }
}

/// Why a device could not do its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DeviceError {
    /// No key pair.
    #[error("the device could not make or read its RSA key pair")]
    Key,
    /// Not encrypted to this device.
    #[error("the tzpk does not open with this device's key: RSA-OAEP needs SHA-256 for both the hash and MGF1")]
    Tzpk,
    /// No PIN in it.
    #[error("the block holds no PIN in ISO 9564 format 1")]
    Block,
}
