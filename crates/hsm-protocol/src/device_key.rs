//! The public key of a cardholder's device, parsed strictly. The engine and the boundary do no RSA private operation.

use std::sync::Arc;

use pkcs1::RsaPublicKeyRef;
use sha2::{Digest, Sha256};
use spki::{
    ObjectIdentifier, SubjectPublicKeyInfoRef,
    der::{Decode, Encode},
};
use thiserror::Error;

/// The fewest bits of a modulus: RSA-2048 carries a double-length 3DES key (NIST SP 800-57, 112 bits of strength).
const MODULUS_BITS_MIN: usize = 2048;
/// The most bits of a modulus.
pub const MODULUS_BITS_MAX: usize = 4096;
/// The most bytes of a public exponent: the RSA library accepts at most 33 bits.
const EXPONENT_BYTES_MAX: usize = 4;
/// `rsaEncryption` (RFC 8017, appendix C).
const RSA_ENCRYPTION: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// A device's RSA public key of 2048 to 4096 bits, and the form of RSA-OAEP that the device decrypts.
#[derive(Clone)]
pub struct DeviceKey {
    key: Arc<PublicKey>,
    mgf1: Mgf1Hash,
}

/// The hash in the mask generation function (MGF1) of RSA-OAEP (RFC 8017, B.2.1). The hash of the label is SHA-256 in both forms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mgf1Hash {
    /// SHA-256, as for the label.
    #[default]
    Sha256,
    /// SHA-1: the default of Java for "OAEPWithSHA-256AndMGF1Padding", and the only form that the key store of Android
    /// decrypts before API 35. Its security does not rest on the collision resistance of SHA-1.
    Sha1,
}

/// The key as DER, and its numbers for a PKCS#11 token.
struct PublicKey {
    der: Box<[u8]>,
    modulus: Box<[u8]>,
    exponent: Box<[u8]>,
}

impl DeviceKey {
    /// Parses a canonical DER SubjectPublicKeyInfo (RFC 5280, 4.1) without trailing bytes: rsaEncryption with NULL parameters,
    /// an odd modulus, an odd exponent of at least 3.
    ///
    /// # Errors
    /// [`DeviceKeyError`]: the bytes are malformed, the algorithm is not RSA, or the size or the exponent is out of range.
    pub fn parse(der: &[u8]) -> Result<Self, DeviceKeyError> {
        let malformed = |_| DeviceKeyError::Malformed;
        let info = SubjectPublicKeyInfoRef::from_der(der).map_err(malformed)?;
        if info.algorithm.oid != RSA_ENCRYPTION {
            return Err(DeviceKeyError::NotRsa);
        }
        if !info.algorithm.parameters.is_some_and(|parameters| parameters.is_null()) {
            return Err(DeviceKeyError::Malformed);
        }
        if info.to_der().map_err(malformed)? != der {
            return Err(DeviceKeyError::Malformed);
        }
        let bits = info.subject_public_key.as_bytes().ok_or(DeviceKeyError::Malformed)?;
        let rsa = RsaPublicKeyRef::from_der(bits).map_err(malformed)?;
        if rsa.to_der().map_err(malformed)? != bits {
            return Err(DeviceKeyError::Malformed);
        }
        check_modulus(rsa.modulus.as_bytes())?;
        check_exponent(rsa.public_exponent.as_bytes())?;

        let key = PublicKey {
            der: der.into(),
            modulus: rsa.modulus.as_bytes().into(),
            exponent: rsa.public_exponent.as_bytes().into(),
        };
        Ok(Self { key: Arc::new(key), mgf1: Mgf1Hash::default() })
    }

    /// The same key of a device that decrypts RSA-OAEP with this hash in MGF1.
    #[must_use]
    pub fn with_mgf1(self, mgf1: Mgf1Hash) -> Self {
        Self { mgf1, ..self }
    }

    /// The hash in MGF1 of the RSA-OAEP that the device decrypts.
    pub fn mgf1(&self) -> Mgf1Hash {
        self.mgf1
    }

    /// SHA-256 of the DER it was read from. Computed at each call: the boundary needs none.
    pub fn thumbprint(&self) -> [u8; 32] {
        Sha256::digest(&self.key.der).into()
    }

    /// The size of its modulus, in bits.
    pub fn bits(&self) -> usize {
        bits_of(&self.key.modulus)
    }

    /// The DER it was read from.
    pub fn der(&self) -> &[u8] {
        &self.key.der
    }

    /// Modulus and exponent, big-endian, without leading zeros.
    pub fn numbers(&self) -> (&[u8], &[u8]) {
        (&self.key.modulus, &self.key.exponent)
    }
}

fn bits_of(modulus: &[u8]) -> usize {
    let leading = modulus.first().map_or(8, |byte| byte.leading_zeros() as usize);
    (modulus.len() * 8).saturating_sub(leading)
}

fn check_modulus(modulus: &[u8]) -> Result<(), DeviceKeyError> {
    let bits = bits_of(modulus);
    if !(MODULUS_BITS_MIN..=MODULUS_BITS_MAX).contains(&bits) {
        return Err(DeviceKeyError::Size { bits });
    }
    modulus.last().filter(|byte| *byte % 2 == 1).map(drop).ok_or(DeviceKeyError::Malformed)
}

fn check_exponent(exponent: &[u8]) -> Result<(), DeviceKeyError> {
    let odd = exponent.last().is_some_and(|byte| byte % 2 == 1);
    let good = odd && exponent != [1] && exponent.len() <= EXPONENT_BYTES_MAX;
    good.then_some(()).ok_or(DeviceKeyError::Exponent)
}

/// A device key that was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DeviceKeyError {
    /// The bytes are not a canonical DER SubjectPublicKeyInfo of an RSA key.
    #[error("the device key is not a DER SubjectPublicKeyInfo of an RSA key, without trailing bytes")]
    Malformed,
    /// The algorithm is not `rsaEncryption`.
    #[error("the device key is not an rsaEncryption key")]
    NotRsa,
    /// The modulus is too short or too long.
    #[error("the device key has {bits} bits: use a key of {MODULUS_BITS_MIN} to {MODULUS_BITS_MAX} bits")]
    Size {
        /// The bits of the modulus.
        bits: usize,
    },
    /// The public exponent is even, is 1, or has more than 4 bytes.
    #[error("the exponent of the device key is not an odd number from 3 to 4294967295")]
    Exponent,
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        encoding::{AsDer, PublicKeyX509Der},
        rsa::{KeySize, PrivateDecryptingKey},
    };

    use super::*;

    fn der() -> Vec<u8> {
        let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap().public_key();
        let der: PublicKeyX509Der<'_> = key.as_der().unwrap();
        der.as_ref().to_vec()
    }

    fn refused(der: &[u8]) -> DeviceKeyError {
        DeviceKey::parse(der).err().expect("the key was accepted")
    }

    #[test]
    fn a_key_of_2048_bits_is_taken_and_known_by_its_thumbprint() {
        let der = der();
        let key = DeviceKey::parse(&der).unwrap();
        assert_eq!(key.bits(), 2048);
        assert_eq!(key.thumbprint()[..], *aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der).as_ref());
    }

    #[test]
    fn trailing_bytes_and_cut_ones_are_refused() {
        let whole = der();
        assert_eq!(refused(&[&whole[..], &[0]].concat()), DeviceKeyError::Malformed);
        for length in [0, 1, 20, whole.len() - 1] {
            assert_eq!(refused(&whole[..length]), DeviceKeyError::Malformed);
        }
    }

    #[test]
    fn no_change_of_a_byte_of_its_frame_makes_another_key_of_it() {
        let whole = der();
        // All before the sign byte of the modulus, and the head of the exponent behind it.
        let frame = (0..32).chain(whole.len() - 5..whole.len() - 3);
        for at in frame {
            for bit in 0..8 {
                let mut changed = whole.clone();
                changed[at] ^= 1 << bit;
                assert!(DeviceKey::parse(&changed).is_err(), "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn an_even_modulus_and_an_even_or_trivial_exponent_are_refused() {
        let whole = der();
        let mut even_modulus = whole.clone();
        even_modulus[whole.len() - 6] &= 0xFE;
        assert_eq!(refused(&even_modulus), DeviceKeyError::Malformed);
        let mut even_exponent = whole.clone();
        even_exponent[whole.len() - 1] = 0;
        assert_eq!(refused(&even_exponent), DeviceKeyError::Exponent);
        assert_eq!(check_exponent(&[1]), Err(DeviceKeyError::Exponent));
        assert_eq!(check_exponent(&[3]), Ok(()));
        assert_eq!(check_exponent(&[1, 0, 0, 0, 1]), Err(DeviceKeyError::Exponent));
    }

    #[test]
    fn a_modulus_outside_2048_to_4096_bits_is_refused_with_its_size() {
        assert_eq!(check_modulus(&[0xFF; 128]), Err(DeviceKeyError::Size { bits: 1024 }));
        assert_eq!(check_modulus(&[0x7F; 256]), Err(DeviceKeyError::Size { bits: 2047 }));
        assert_eq!(check_modulus(&[0xFF; 513]), Err(DeviceKeyError::Size { bits: 4104 }));
        assert_eq!(check_modulus(&[0xFF; 512]), Ok(()));
    }
}
