//! Encryption of a tzpk for a device, by RSA-OAEP.
//!
//! aws-lc-rs has no RSA-OAEP with two hashes, so the form with MGF1-SHA-1 calls the functions of AWS-LC.

#![expect(unsafe_code, reason = "aws-lc-rs has no RSA-OAEP with SHA-256 and MGF1-SHA-1")]

use std::{mem::MaybeUninit, ptr::NonNull};

use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use aws_lc_sys::{
    CBS_init, EVP_PKEY, EVP_PKEY_CTX, EVP_PKEY_CTX_free, EVP_PKEY_CTX_new, EVP_PKEY_CTX_set_rsa_mgf1_md,
    EVP_PKEY_CTX_set_rsa_oaep_md, EVP_PKEY_CTX_set_rsa_padding, EVP_PKEY_encrypt, EVP_PKEY_encrypt_init, EVP_PKEY_free,
    EVP_parse_public_key, EVP_sha1, EVP_sha256, RSA_PKCS1_OAEP_PADDING,
};
use hsm_protocol::{DeviceKey, DeviceKeyError, MODULUS_BITS_MAX, Mgf1Hash};

use crate::clear::Tzpk;

/// The longest RSA-OAEP ciphertext, in bytes.
const CIPHERTEXT_BYTES_MAX: usize = MODULUS_BITS_MAX / 8;

/// Encrypts the 16 bytes of a tzpk: RSA-OAEP with SHA-256, MGF1 with the hash of the device, empty label (RFC 8017, 7.1.1).
///
/// # Errors
/// [`DeviceKeyError::Malformed`]: the key parses, but the RSA library rejects it.
pub(crate) fn wrap(device: &DeviceKey, tzpk: &Tzpk) -> Result<Vec<u8>, DeviceKeyError> {
    let mut buffer = [0; CIPHERTEXT_BYTES_MAX];
    let wrapped = match device.mgf1() {
        Mgf1Hash::Sha256 => with_mgf1_sha256(device, tzpk.bytes(), &mut buffer),
        Mgf1Hash::Sha1 => with_mgf1_sha1(device, tzpk.bytes(), &mut buffer),
    };
    wrapped.map(<[u8]>::to_vec).ok_or(DeviceKeyError::Malformed)
}

fn with_mgf1_sha256<'a>(
    device: &DeviceKey,
    clear: &[u8],
    buffer: &'a mut [u8; CIPHERTEXT_BYTES_MAX],
) -> Option<&'a [u8]> {
    let key = OaepPublicEncryptingKey::new(PublicEncryptingKey::from_der(device.der()).ok()?).ok()?;
    key.encrypt(&OAEP_SHA256_MGF1SHA256, clear, buffer, None).ok().map(|wrapped| &*wrapped)
}

fn with_mgf1_sha1<'a>(
    device: &DeviceKey,
    clear: &[u8],
    buffer: &'a mut [u8; CIPHERTEXT_BYTES_MAX],
) -> Option<&'a [u8]> {
    let context = Context::new(&PublicKey::parse(device.der())?)?;
    let mut length = buffer.len();
    // SAFETY: the context is valid. AWS-LC keeps the static digests only. It reads `clear`, and writes at most `length` bytes
    // to `buffer`; `length` is then the number of bytes that it wrote.
    let encrypted = unsafe {
        EVP_PKEY_encrypt_init(context.0.as_ptr()) == 1
            && EVP_PKEY_CTX_set_rsa_padding(context.0.as_ptr(), RSA_PKCS1_OAEP_PADDING) == 1
            && EVP_PKEY_CTX_set_rsa_oaep_md(context.0.as_ptr(), EVP_sha256()) == 1
            && EVP_PKEY_CTX_set_rsa_mgf1_md(context.0.as_ptr(), EVP_sha1()) == 1
            && EVP_PKEY_encrypt(context.0.as_ptr(), buffer.as_mut_ptr(), &mut length, clear.as_ptr(), clear.len()) == 1
    };
    buffer.get(..length).filter(|_| encrypted)
}

/// A public key of AWS-LC.
struct PublicKey(NonNull<EVP_PKEY>);

impl PublicKey {
    /// Parses a DER SubjectPublicKeyInfo.
    fn parse(der: &[u8]) -> Option<Self> {
        let mut bytes = MaybeUninit::uninit();
        // SAFETY: CBS_init initialises `bytes` with a pointer to `der`, which outlives both calls. The key has no pointer to
        // `der`, and the caller owns the key.
        NonNull::new(unsafe {
            CBS_init(bytes.as_mut_ptr(), der.as_ptr(), der.len());
            EVP_parse_public_key(bytes.as_mut_ptr())
        })
        .map(Self)
    }
}

impl Drop for PublicKey {
    fn drop(&mut self) {
        // SAFETY: this value owns one reference to the key.
        unsafe { EVP_PKEY_free(self.0.as_ptr()) }
    }
}

/// The context of one operation of AWS-LC. It has its own reference to the key.
struct Context(NonNull<EVP_PKEY_CTX>);

impl Context {
    fn new(key: &PublicKey) -> Option<Self> {
        // SAFETY: the key is valid, and a null engine is the default.
        NonNull::new(unsafe { EVP_PKEY_CTX_new(key.0.as_ptr(), std::ptr::null_mut()) }).map(Self)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: this value owns the context.
        unsafe { EVP_PKEY_CTX_free(self.0.as_ptr()) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        io::Write,
        path::PathBuf,
        process::{Command, Stdio},
    };

    use aws_lc_rs::{
        encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
        rsa::{KeySize, PrivateDecryptingKey},
    };

    use super::*;

    /// A device whose RSA is that of OpenSSL.
    pub(crate) struct OpensslDevice {
        pub(crate) public: DeviceKey,
        directory: tempfile::TempDir,
    }

    impl OpensslDevice {
        pub(crate) fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
            let private: Pkcs8V1Der<'_> = key.as_der().unwrap();
            let public: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
            let device = Self { public: DeviceKey::parse(public.as_ref()).unwrap(), directory };
            std::fs::write(device.key_file(), private.as_ref()).unwrap();
            device
        }

        fn key_file(&self) -> PathBuf {
            self.directory.path().join("device.der")
        }

        /// Decrypts RSA-OAEP with SHA-256 and this hash in MGF1; `None` where the padding is wrong.
        pub(crate) fn decrypt(&self, wrapped: &[u8], mgf1: Mgf1Hash) -> Option<Vec<u8>> {
            let mgf1 = match mgf1 {
                Mgf1Hash::Sha256 => "rsa_mgf1_md:sha256",
                Mgf1Hash::Sha1 => "rsa_mgf1_md:sha1",
            };
            let mut openssl = Command::new("openssl")
                .args(["pkeyutl", "-decrypt", "-keyform", "DER", "-pkeyopt", "rsa_padding_mode:oaep"])
                .args(["-pkeyopt", "rsa_oaep_md:sha256", "-pkeyopt", mgf1, "-inkey"])
                .arg(self.key_file())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("openssl is missing: install it");
            openssl.stdin.take().unwrap().write_all(wrapped).unwrap();
            let output = openssl.wait_with_output().unwrap();
            output.status.success().then_some(output.stdout)
        }
    }

    #[test]
    fn openssl_decrypts_each_form_by_its_mgf1_hash_alone() {
        let device = OpensslDevice::new();
        let mut tzpk = Tzpk::zeroed();
        tzpk.bytes_mut().fill(0x5A);
        for (mgf1, other) in [(Mgf1Hash::Sha256, Mgf1Hash::Sha1), (Mgf1Hash::Sha1, Mgf1Hash::Sha256)] {
            let wrapped = wrap(&device.public.clone().with_mgf1(mgf1), &tzpk).unwrap();
            assert_eq!(device.decrypt(&wrapped, mgf1).as_deref(), Some(&[0x5A; 16][..]), "{mgf1:?}");
            assert_eq!(device.decrypt(&wrapped, other), None, "{mgf1:?}");
        }
    }
}
