//! Objects that live in a session for one operation: a tzpk, a device's public key, an unwrapped PIN block. Each can
//! do what its one operation needs, and nothing else.

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
use zeroize::Zeroizing;

use super::ffi::Calls;
use crate::clear::{Clear, Tzpk};

/// Bytes of a double-length key under `CKM_AES_KEY_WRAP` (RFC 3394): the key and 8 more.
pub(super) const WRAPPED_TZPK_BYTES: usize = 24;
/// Bytes of a block under `CKM_AES_KEY_WRAP_PAD`: padded to 16 (PKCS #7), then as RFC 3394.
pub(super) const WRAPPED_BLOCK_BYTES: usize = 24;

/// An object of a session, gone when this is.
pub(super) struct SessionObject<'a> {
    pub(super) session: Calls<'a>,
    pub(super) handle: ObjectHandle,
}

impl<'a> SessionObject<'a> {
    /// A tzpk made on the host, that can do nothing but be wrapped.
    pub(super) fn import_tzpk(session: Calls<'a>, tzpk: &Tzpk) -> Result<Self, CallError> {
        let template = vec![
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::DES2),
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(true),
            Attribute::Encrypt(false),
            Attribute::Decrypt(false),
        ];
        let handle = create_of(&session, template, tzpk.bytes())?;
        Ok(Self { session, handle })
    }

    /// An AES-256 key made on the host, that can do nothing but wrap, and not leave again.
    pub(super) fn import_wrapping_key(session: Calls<'a>, key: &Clear<32>) -> Result<Self, CallError> {
        let template = vec![
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(false),
            Attribute::Decrypt(false),
            Attribute::Wrap(true),
        ];
        let handle = create_of(&session, template, key.bytes())?;
        Ok(Self { session, handle })
    }

    /// A tzpk that can only decrypt, and not leave again.
    pub(super) fn unwrap_tzpk_to_decrypt(
        session: Calls<'a>,
        seal: ObjectHandle,
        key_wrap: &[u8],
    ) -> Result<Self, CallError> {
        Self::unwrap_tzpk(session, seal, key_wrap, [Attribute::Decrypt(true), Attribute::Unwrap(false)])
    }

    /// A tzpk that can only take a block in, and not leave again.
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
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::DES2),
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(false),
            decrypt,
            Attribute::Wrap(false),
            unwrap,
        ];
        let handle = session.unwrap_key(&Mechanism::AesKeyWrap, seal, key_wrap, &template)?;
        Ok(Self { session, handle })
    }

    /// A fresh tzpk, made in the token, to be wrapped for its device and for ourselves. It encrypts its check value.
    pub(super) fn generate_tzpk(session: Calls<'a>) -> Result<Self, CallError> {
        Self::generate_double_length(session, Attribute::Wrap(false))
    }

    /// The same, under which a block goes out.
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

    /// A device's public key, to wrap with. Big-endian bytes.
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

    /// A block unwrapped, unread, as a secret that can do nothing but be wrapped. A generic secret: of one that is said to
    /// be a DES key NSS sets the parity, and so changes digits.
    pub(super) fn take_in(
        session: Calls<'a>,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
        block: &[u8],
    ) -> Result<Self, CallError> {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(true),
            Attribute::Derive(false),
            Attribute::Sign(false),
            Attribute::Encrypt(false),
            Attribute::Decrypt(false),
        ];
        let handle = session.unwrap_key(mechanism, key, block, &template)?;
        Ok(Self { session, handle })
    }

    /// The AES-256 key of one stored block, to wrap it.
    pub(super) fn block_key_to_wrap(
        session: Calls<'a>,
        storage: ObjectHandle,
        data: &[u8; 32],
    ) -> Result<Self, CallError> {
        Self::block_key(session, storage, data, [Attribute::Wrap(true), Attribute::Unwrap(false)])
    }

    /// The same, to take it in again.
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
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::ValueLen(32.into()),
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(false),
            Attribute::Decrypt(false),
            wrap,
            unwrap,
        ];
        let mechanism = Mechanism::AesCbcEncryptData(AesCbcDeriveParams::new([0; 16], data));
        let handle = session.derive_key(&mechanism, storage, &template)?;
        Ok(Self { session, handle })
    }

    /// This object under another key.
    pub(super) fn wrapped_under<const LENGTH: usize>(
        &self,
        mechanism: &Mechanism<'_>,
        key: ObjectHandle,
    ) -> Result<[u8; LENGTH], CallError> {
        let mut wrapped = [0; LENGTH];
        self.session.wrap(mechanism, key, self.handle, &mut wrapped)?;
        Ok(wrapped)
    }

    /// This key for a device: RSA-OAEP with SHA-256, MGF1 with SHA-256, empty label (RFC 8017, 7.1.1), inside the token.
    pub(super) fn wrapped_for(&self, device: &SessionObject<'_>, length: usize) -> Result<Vec<u8>, CallError> {
        let sha_256 = PkcsOaepParams::new(MechanismType::SHA256, PkcsMgfType::MGF1_SHA256, PkcsOaepSource::empty());
        let mut wrapped = vec![0; length];
        self.session.wrap(&Mechanism::RsaPkcsOaep(sha_256), device.handle, self.handle, &mut wrapped)?;
        Ok(wrapped)
    }
}

/// Creates an object of a clear value, whose copy on its way is wiped.
pub(super) fn create_of(
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
        // Where it fails the session is lost, and the object with it.
        let _ = self.session.destroy_object(self.handle);
    }
}
