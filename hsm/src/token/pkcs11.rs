//! A PKCS#11 token at level `host`: keys stay inside it; a clear block is in this process's memory for one operation.
//!
//! Every key has one use. A tzpk is put under the seal key by `CKM_AES_KEY_WRAP` and comes back as an object of the
//! token, so its clear bytes are in host memory while it is made and never after. What it is bound to is under a CMAC.
//! What must never enter: a mechanism no token here was measured with.

mod examine;
mod keys;
mod link;

use cryptoki::{
    error::Error as CallError,
    mechanism::Mechanism,
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

pub use self::examine::{Probe, Route, TokenReport};
use self::{
    keys::{KeyHandles, KeyReferences},
    link::Link,
};
use super::{IssuedTzpk, TdesBudget, Token, WrappedTzpk, host_tzpk, software, software::joined};
use crate::{
    clear::{Block, Tzpk, WideBlock},
    config::Pkcs11,
    device_key::DeviceKey,
    error::{Error, Pkcs11Error},
    sealed::{ACCOUNT_BYTES, Bound, KeyReference, RECORD_MESSAGE_BYTES_MAX, SealedTzpk, TAG_BYTES},
};

/// Bytes of a double-length key under `CKM_AES_KEY_WRAP` (RFC 3394): the key and 8 more.
const WRAPPED_TZPK_BYTES: usize = 24;
/// Before what a retry tag is over: no other message under the MAC key begins so.
const RETRY_HEAD: [u8; 4] = [1, b'R', 0, 0];

/// A token, logged in to.
pub(crate) struct Pkcs11Token {
    link: Link,
    version: KeyReference,
    references: KeyReferences,
    tdes_budget: TdesBudget,
}

impl Pkcs11Token {
    /// Logs in, finds the keys, and refuses those that may be used for more than they are for.
    pub(crate) fn open(config: &Pkcs11, tdes_budget: TdesBudget) -> Result<Self, Pkcs11Error> {
        let (link, references) = Link::open(config)?;
        Ok(Self { link, version: KeyReference(config.key_version), references, tdes_budget })
    }

    /// Makes every key that a boundary needs, in the token, for one use each.
    pub(crate) fn make_keys(config: &Pkcs11) -> Result<KeyReferences, Pkcs11Error> {
        link::make_keys(config)
    }

    /// What the token is and can do.
    pub(crate) fn examine(config: &Pkcs11) -> Result<TokenReport, Pkcs11Error> {
        examine::examine(config)
    }

    fn call<T>(&self, work: impl Fn(&Session, &KeyHandles) -> Result<T, CallError>) -> Result<T, Error> {
        self.link.call(work)
    }

    fn tag(&self, message: &[u8]) -> Result<[u8; TAG_BYTES], Error> {
        let tag = self.call(|session, keys| session.sign(&Mechanism::AesCMac, keys.mac, message))?;
        tag.get(..TAG_BYTES).and_then(|tag| tag.try_into().ok()).ok_or(Error::Unavailable { reason: "a CMAC is short" })
    }

    fn tag_over(&self, bound: &Bound, bytes: &[u8]) -> Result<[u8; TAG_BYTES], Error> {
        self.tag(joined(&mut [0; RECORD_MESSAGE_BYTES_MAX], &[bound.as_ref(), bytes]))
    }

    /// The bytes that account digits are XORed with: AES of their tag, which no other digits of that card have.
    fn account_pad(&self, tag: &[u8; TAG_BYTES]) -> Result<Zeroizing<Vec<u8>>, Error> {
        self.call(|session, keys| session.encrypt(&Mechanism::AesEcb, keys.account, tag)).map(Zeroizing::new)
    }
}

impl Token for Pkcs11Token {
    fn name(&self) -> &'static str {
        "pkcs11"
    }

    fn keys(&self) -> Vec<String> {
        self.references.to_vec()
    }

    fn current(&self) -> KeyReference {
        self.version
    }

    fn check(&self) -> Result<(), Error> {
        self.random(&mut [0; 8])
    }

    fn random(&self, bytes: &mut [u8]) -> Result<(), Error> {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let drawn = self.call(|session, _| session.generate_random_vec(length).map(Zeroizing::new))?;
        fill(bytes, &drawn)
    }

    fn issue_tzpk(&self, device: &DeviceKey, bound: &Bound, tzpk: &mut Tzpk) -> Result<IssuedTzpk, Error> {
        let wrapped = host_tzpk(device, tzpk, |bytes| self.random(bytes))?;
        let key_wrap = self.call(|session, keys| {
            let object = SessionObject::import(session, tzpk)?;
            session.wrap_key(&Mechanism::AesKeyWrap, keys.seal, object.handle)
        })?;
        // Some tokens answer with a longer buffer than they filled.
        let key_wrap =
            key_wrap.get(..WRAPPED_TZPK_BYTES).ok_or(Error::Unavailable { reason: "a key wrap is short" })?;
        let tag = self.tag_over(bound, key_wrap)?;
        let mut sealed = [0; size_of::<SealedTzpk>()];
        joined(&mut sealed, &[key_wrap, &tag]);
        Ok(IssuedTzpk { wrapped, sealed })
    }

    fn open_block(&self, sealed: &SealedTzpk, bound: &Bound, _: &mut Tzpk, block: &mut Block) -> Result<(), Error> {
        let broken = Error::SealBroken { what: "tzpk" };
        let Some((key_wrap, rest)) = sealed.split_at_checked(WRAPPED_TZPK_BYTES) else { return Err(broken) };
        let tag = self.tag_over(bound, key_wrap)?;
        let Some((sealed_tag, [0, 0, 0, 0])) = rest.split_at_checked(TAG_BYTES) else { return Err(broken) };
        if !bool::from(tag.ct_eq(sealed_tag)) {
            return Err(broken);
        }
        let clear = self.call(|session, keys| {
            let object = SessionObject::unwrap(session, keys.seal, key_wrap)?;
            session.decrypt(&Mechanism::Des3Ecb, object.handle, block.bytes()).map(Zeroizing::new)
        })?;
        fill(block.bytes_mut(), &clear)
    }

    fn send_block(&self, device: &DeviceKey, tzpk: &mut Tzpk, block: &mut Block) -> Result<WrappedTzpk, Error> {
        let wrapped = host_tzpk(device, tzpk, |bytes| self.random(bytes))?;
        software::tdes_encrypt(tzpk, block);
        Ok(wrapped)
    }

    fn seal_account(&self, digits: &mut [u8; ACCOUNT_BYTES], bound: &Bound) -> Result<[u8; TAG_BYTES], Error> {
        let tag = self.tag_over(bound, digits)?;
        let pad = self.account_pad(&tag)?;
        digits.iter_mut().zip(pad.iter()).for_each(|(digit, pad)| *digit ^= pad);
        Ok(tag)
    }

    fn open_account(&self, sealed: &[u8], bound: &Bound, digits: &mut [u8; ACCOUNT_BYTES]) -> Result<(), Error> {
        let broken = Error::SealBroken { what: "account" };
        let Some((ciphertext, tag)) = sealed.split_at_checked(ACCOUNT_BYTES) else { return Err(broken) };
        let Ok(tag) = <[u8; TAG_BYTES]>::try_from(tag) else { return Err(broken) };
        let pad = self.account_pad(&tag)?;
        for (digit, (cipher, pad)) in digits.iter_mut().zip(ciphertext.iter().zip(pad.iter())) {
            *digit = cipher ^ pad;
        }
        if bool::from(self.tag_over(bound, digits)?.ct_eq(&tag)) { Ok(()) } else { Err(broken) }
    }

    fn storage_encrypt_iso_4(&self, pin_field: &mut WideBlock, account_field: u128) -> Result<(), Error> {
        // The second block of a CBC is `E(E(PIN field) ⊕ account field)`: one call.
        let mut fields = Zeroizing::new([0; 32]);
        joined(&mut *fields, &[pin_field.bytes(), &account_field.to_be_bytes()]);
        let chained =
            self.call(|session, keys| session.encrypt(&Mechanism::AesCbc([0; 16]), keys.storage, &*fields))?;
        fill(pin_field.bytes_mut(), chained.get(16..).unwrap_or_default())
    }

    fn storage_decrypt_iso_4(&self, block: &mut WideBlock, account_field: u128) -> Result<(), Error> {
        let decrypt = |block: &mut WideBlock| {
            let clear = self.call(|session, keys| {
                session.decrypt(&Mechanism::AesEcb, keys.storage, block.bytes()).map(Zeroizing::new)
            })?;
            fill(block.bytes_mut(), &clear)
        };
        decrypt(block)?;
        block.set_nibbles(block.nibbles() ^ account_field);
        decrypt(block)
    }

    fn storage_tdes_encrypt(&self, block: &mut Block) -> Result<(), Error> {
        self.tdes_budget.take()?;
        let cipher =
            self.call(|session, keys| session.encrypt(&Mechanism::Des3Ecb, keys.storage_tdes, block.bytes()))?;
        fill(block.bytes_mut(), &cipher)
    }

    fn storage_tdes_decrypt(&self, block: &mut Block) -> Result<(), Error> {
        let clear = self.call(|session, keys| {
            session.decrypt(&Mechanism::Des3Ecb, keys.storage_tdes, block.bytes()).map(Zeroizing::new)
        })?;
        fill(block.bytes_mut(), &clear)
    }

    fn record_tag(&self, record: &[u8], bound: &Bound) -> Result<[u8; TAG_BYTES], Error> {
        self.tag_over(bound, record)
    }

    fn retry_tag(&self, control: &[u8; 16], block: &[u8; 8]) -> Result<[u8; TAG_BYTES], Error> {
        self.tag(joined(&mut [0; 28], &[&RETRY_HEAD, control, block]))
    }
}

/// All of `place` from the same number of bytes, or an error: a token that answers too little is not to be trusted.
fn fill(place: &mut [u8], bytes: &[u8]) -> Result<(), Error> {
    if place.len() != bytes.len() {
        return Err(Error::Unavailable { reason: "it answered with the wrong number of bytes" });
    }
    place.copy_from_slice(bytes);
    Ok(())
}

/// An object of a session, gone when this is.
struct SessionObject<'a> {
    session: &'a Session,
    handle: ObjectHandle,
}

impl<'a> SessionObject<'a> {
    /// A double-length key that can do nothing but be wrapped.
    fn import(session: &'a Session, tzpk: &Tzpk) -> Result<Self, CallError> {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::DES2),
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(true),
            Attribute::Encrypt(false),
            Attribute::Decrypt(false),
            Attribute::Value(tzpk.bytes().to_vec()),
        ];
        let made = session.create_object(&template);
        let [.., Attribute::Value(value)] = template else { return made.map(|handle| Self { session, handle }) };
        drop(Zeroizing::new(value));
        made.map(|handle| Self { session, handle })
    }

    /// A double-length key that can do nothing but decrypt, and not leave again.
    fn unwrap(session: &'a Session, seal: ObjectHandle, key_wrap: &[u8]) -> Result<Self, CallError> {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::DES2),
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(false),
            Attribute::Decrypt(true),
            Attribute::Wrap(false),
            Attribute::Unwrap(false),
        ];
        let handle = session.unwrap_key(&Mechanism::AesKeyWrap, seal, key_wrap, &template)?;
        Ok(Self { session, handle })
    }
}

impl Drop for SessionObject<'_> {
    fn drop(&mut self) {
        // Where it fails the session is lost, and the object with it.
        let _ = self.session.destroy_object(self.handle);
    }
}
