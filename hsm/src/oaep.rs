//! Encryption of a tzpk for a device, by RSA-OAEP.

use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use hsm_protocol::{DeviceKey, DeviceKeyError, MODULUS_BITS_MAX};

use crate::clear::Tzpk;

/// The longest RSA-OAEP ciphertext, in bytes.
const CIPHERTEXT_BYTES_MAX: usize = MODULUS_BITS_MAX / 8;

/// Encrypts the 16 bytes of a tzpk: RSA-OAEP with SHA-256, MGF1 with SHA-256, empty label (RFC 8017, 7.1.1).
///
/// # Errors
/// [`DeviceKeyError::Malformed`]: the key parses, but the RSA library rejects it.
pub(crate) fn wrap(device: &DeviceKey, tzpk: &Tzpk) -> Result<Vec<u8>, DeviceKeyError> {
    let key = PublicEncryptingKey::from_der(device.der()).map_err(|_| DeviceKeyError::Malformed)?;
    let key = OaepPublicEncryptingKey::new(key).map_err(|_| DeviceKeyError::Malformed)?;
    let mut buffer = [0; CIPHERTEXT_BYTES_MAX];
    let wrapped = key.encrypt(&OAEP_SHA256_MGF1SHA256, tzpk.bytes(), &mut buffer, None);
    wrapped.map(|wrapped| wrapped.to_vec()).map_err(|_| DeviceKeyError::Malformed)
}
