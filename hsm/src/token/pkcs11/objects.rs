//! Session objects (CKA_TOKEN false) for one operation: a tzpk, a device's public key, an unwrapped PIN block. Each has only
//! the rights that its operation needs.

use cryptoki::{
    error::Error as CallError,
    mechanism::{
        Mechanism, MechanismType,
        ekdf::AesCbcDeriveParams,
        rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource},
    },
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};
use hsm_protocol::Mgf1Hash;
use zeroize::Zeroizing;

use super::ffi::Calls;
use crate::clear::{Clear, Tzpk};

/// Bytes of a double-length key under `CKM_AES_KEY_WRAP` (RFC 3394): 16 and 8.
pub(super) const WRAPPED_TZPK_BYTES: usize = 24;
/// Bytes of a PIN block under `CKM_AES_KEY_WRAP_PAD`: padded to 16 (PKCS #7), then wrapped as in RFC 3394.
pub(super) const WRAPPED_BLOCK_BYTES: usize = 24;

/// The attributes that keep a key from being read, extracted or modified, each with its PKCS#11 name and the words for
/// another value.
pub(super) const PROTECTION: [(Attribute, &str, &str); 4] = [
    (Attribute::Private(true), "CKA_PRIVATE", "not true"),
    (Attribute::Modifiable(false), "CKA_MODIFIABLE", "not false"),
    (Attribute::Sensitive(true), "CKA_SENSITIVE", "not true"),
    (Attribute::Extractable(false), "CKA_EXTRACTABLE", "not false"),
];

/// The attributes of every secret key object of one operation, and `others`.
fn secret_key(key_type: KeyType, others: &[Attribute]) -> Vec<Attribute> {
    let mut template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(key_type),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Encrypt(false),
    ];
    template.extend_from_slice(others);
    template
}

/// A session object, destroyed on drop.
pub(super) struct SessionObject<'a> {
    pub(super) session: Calls<'a>,
    pub(super) handle: ObjectHandle,
}

impl<'a> SessionObject<'a> {
    /// Imports a tzpk made on the host. The object can only be wrapped.
    pub(super) fn import_tzpk(session: Calls<'a>, tzpk: &Tzpk) -> Result<Self, CallError> {
        let template = secret_key(KeyType::DES2, &[Attribute::Extractable(true), Attribute::Decrypt(false)]);
        let handle = create_with_value(&session, template, tzpk.bytes())?;
        Ok(Self { session, handle })
    }

    /// Imports an AES-256 key made on the host. The object can only wrap.
    pub(super) fn import_wrapping_key(session: Calls<'a>, key: &Clear<32>) -> Result<Self, CallError> {
        let rights = [Attribute::Extractable(false), Attribute::Decrypt(false), Attribute::Wrap(true)];
        let handle = create_with_value(&session, secret_key(KeyType::AES, &rights), key.bytes())?;
        Ok(Self { session, handle })
    }

    /// Unwraps a tzpk that can only decrypt. It is not extractable.
    pub(super) fn unwrap_tzpk_to_decrypt(
        session: Calls<'a>,
        seal: ObjectHandle,
        key_wrap: &[u8],
    ) -> Result<Self, CallError> {
        Self::unwrap_tzpk(session, seal, key_wrap, [Attribute::Decrypt(true), Attribute::Unwrap(false)])
    }

    /// Unwraps a tzpk that can only unwrap a PIN block. It is not extractable.
    pub(super) fn unwrap_tzpk_to_unwrap(
        session: Calls<'a>,
        seal: ObjectHandle,
        key_wrap: &[u8],
    ) -> Result<Self, CallError> {
        Self::unwrap_tzpk(session, seal, key_wrap, [Attribute::Decrypt(false), Attribute::Unwrap(true)])
    }

    fn unwrap_tzpk(
        session: Calls<'a>,
        seal: ObjectHandle,
        key_wrap: &[u8],
        [decrypt, unwrap]: [Attribute; 2],
    ) -> Result<Self, CallError> {
        let rights = [Attribute::Extractable(false), decrypt, Attribute::Wrap(false), unwrap];
        let template = secret_key(KeyType::DES2, &rights);
        let handle = session.unwrap_key(&Mechanism::AesKeyWrap, seal, key_wrap, &template)?;
        Ok(Self { session, handle })
    }

    /// Generates a tzpk that can be wrapped, for its device and under the seal key, and can encrypt, for its KCV.
    pub(super) fn generate_tzpk(session: Calls<'a>) -> Result<Self, CallError> {
        Self::generate_double_length(session, Attribute::Wrap(false))
    }

    /// Generates a tzpk that can also wrap a PIN block.
    pub(super) fn generate_tzpk_to_wrap(session: Calls<'a>) -> Result<Self, CallError> {
        Self::generate_double_length(session, Attribute::Wrap(true))
    }

    fn generate_double_length(session: Calls<'a>, wrap: Attribute) -> Result<Self, CallError> {
        let template = [
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(true),
            Attribute::Encrypt(true),
            Attribute::Decrypt(false),
            Attribute::Unwrap(false),
            wrap,
        ];
        let handle = session.generate_key(&Mechanism::Des2KeyGen, &template)?;
        Ok(Self { session, handle })
    }

    /// Creates the RSA public key of a device, which can only wrap. Modulus and exponent are big-endian.
    pub(super) fn device_key(session: Calls<'a>, modulus: &[u8], exponent: &[u8]) -> Result<Self, CallError> {
        let handle = session.create_object(&[
            Attribute::Class(ObjectClass::PUBLIC_KEY),
            Attribute::KeyType(KeyType::RSA),
            Attribute::Token(false),
            Attribute::Private(false),
            Attribute::Wrap(true),
            Attribute::Modulus(modulus.to_vec()),
            Attribute::PublicExponent(exponent.to_vec()),
        ])?;
        Ok(Self { session, handle })
    }

    /// Unwraps a PIN block as a sensitive object that can only be wrapped. The type is CKK_GENERIC_SECRET: NSS sets the parity
    /// bits of a CKK_DES key, which would change digits.
    pub(super) fn unwrap_block(
        session: Calls<'a>,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        block: &[u8],
    ) -> Result<Self, CallError> {
        let rights =
            [Attribute::Extractable(true), Attribute::Derive(false), Attribute::Sign(false), Attribute::Decrypt(false)];
        let template = secret_key(KeyType::GENERIC_SECRET, &rights);
        let handle = session.unwrap_key(mechanism, key, block, &template)?;
        Ok(Self { session, handle })
    }

    /// Derives the AES-256 key of one stored block (CKM_AES_CBC_ENCRYPT_DATA), which can only wrap.
    pub(super) fn block_key_to_wrap(
        session: Calls<'a>,
        storage: ObjectHandle,
        data: &[u8; 32],
    ) -> Result<Self, CallError> {
        Self::block_key(session, storage, data, [Attribute::Wrap(true), Attribute::Unwrap(false)])
    }

    /// Derives the same key, which can only unwrap.
    pub(super) fn block_key_to_unwrap(
        session: Calls<'a>,
        storage: ObjectHandle,
        data: &[u8; 32],
    ) -> Result<Self, CallError> {
        Self::block_key(session, storage, data, [Attribute::Wrap(false), Attribute::Unwrap(true)])
    }

    fn block_key(
        session: Calls<'a>,
        storage: ObjectHandle,
        data: &[u8; 32],
        [wrap, unwrap]: [Attribute; 2],
    ) -> Result<Self, CallError> {
        let value_len = Attribute::ValueLen(32.into());
        let template = secret_key(
            KeyType::AES,
            &[value_len, Attribute::Extractable(false), Attribute::Decrypt(false), wrap, unwrap],
        );
        let mechanism = Mechanism::AesCbcEncryptData(AesCbcDeriveParams::new([0; 16], data));
        let handle = session.derive_key(&mechanism, storage, &template)?;
        Ok(Self { session, handle })
    }

    /// Wraps this object under another key (C_WrapKey).
    pub(super) fn wrapped_under<const LENGTH: usize>(
        &self,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
    ) -> Result<[u8; LENGTH], CallError> {
        let mut wrapped = [0; LENGTH];
        self.session.wrap(mechanism, key, self.handle, &mut wrapped)?;
        Ok(wrapped)
    }

    /// Wraps this key for a device in the token: RSA-OAEP with SHA-256, MGF1 with the hash of the device, empty label (RFC 8017,
    /// 7.1.1).
    pub(super) fn wrapped_for(
        &self,
        device: &SessionObject<'_>,
        length: usize,
        mgf1: Mgf1Hash,
    ) -> Result<Vec<u8>, CallError> {
        let mgf1 = match mgf1 {
            Mgf1Hash::Sha256 => PkcsMgfType::MGF1_SHA256,
            Mgf1Hash::Sha1 => PkcsMgfType::MGF1_SHA1,
        };
        let oaep = PkcsOaepParams::new(MechanismType::SHA256, mgf1, PkcsOaepSource::empty());
        let mut wrapped = vec![0; length];
        self.session.wrap(&Mechanism::RsaPkcsOaep(oaep), device.handle, self.handle, &mut wrapped)?;
        Ok(wrapped)
    }
}

/// Creates an object with a clear value, and wipes the copy of the value in the template.
pub(super) fn create_with_value(
    session: &Session,
    mut template: Vec<Attribute>,
    value: &[u8],
) -> Result<ObjectHandle, CallError> {
    template.push(Attribute::Value(value.to_vec()));
    let made = session.create_object(&template);
    if let Some(Attribute::Value(value)) = template.pop() {
        drop(Zeroizing::new(value));
    }
    made
}

impl Drop for SessionObject<'_> {
    fn drop(&mut self) {
        // Where this fails the session is lost, and its objects with it.
        let _ = self.session.destroy_object(self.handle);
    }
}
