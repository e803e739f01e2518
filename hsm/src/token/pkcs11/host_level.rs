//! A PKCS#11 token at level `host`: a clear block is in this process's memory for one operation, to be judged.
//!
//! A tzpk is made here, of the token's random bytes: not every token has RSA-OAEP with SHA-256. It is in host memory
//! while it is made and never after.

use cryptoki::mechanism::Mechanism;
use zeroize::Zeroizing;

use super::{Pkcs11Token, fill, keys::HostStorage, objects::SessionObject};
use crate::{
    clear::{Block, Tzpk, WideBlock},
    device_key::DeviceKey,
    error::Error,
    sealed::{Bound, SealedTzpk},
    token::{HostLevel, IssuedTzpk, Token, WrappedTzpk, host_tzpk, software, software::joined},
};

impl HostLevel for Pkcs11Token<HostStorage> {
    fn issue_tzpk(&self, device: &DeviceKey, bound: &Bound, tzpk: &mut Tzpk) -> Result<IssuedTzpk, Error> {
        let wrapped = host_tzpk(device, tzpk, |bytes| self.random(bytes))?;
        let key_wrap = self.call(|session, keys| {
            SessionObject::import_tzpk(session, tzpk)?.wrapped_under(&Mechanism::AesKeyWrap, keys.seal)
        })?;
        Ok(IssuedTzpk { wrapped, sealed: self.sealed(&key_wrap, bound)? })
    }

    fn open_block(&self, sealed: &SealedTzpk, bound: &Bound, _: &mut Tzpk, block: &mut Block) -> Result<(), Error> {
        let key_wrap = self.opened(sealed, bound)?;
        let clear = self.call(|session, keys| {
            let object = SessionObject::unwrap_tzpk_to_decrypt(session, keys.seal, key_wrap)?;
            session.decrypt(&Mechanism::Des3Ecb, object.handle, block.bytes()).map(Zeroizing::new)
        })?;
        fill(block.bytes_mut(), &clear)
    }

    fn send_block(&self, device: &DeviceKey, tzpk: &mut Tzpk, block: &mut Block) -> Result<WrappedTzpk, Error> {
        let wrapped = host_tzpk(device, tzpk, |bytes| self.random(bytes))?;
        software::tdes_encrypt(tzpk, block);
        Ok(wrapped)
    }

    fn storage_encrypt_iso_4(&self, pin_field: &mut WideBlock, account_field: u128) -> Result<(), Error> {
        // The second block of a CBC is `E(E(PIN field) ⊕ account field)`: one call.
        let mut fields = Zeroizing::new([0; 32]);
        joined(&mut *fields, &[pin_field.bytes(), &account_field.to_be_bytes()]);
        let chained =
            self.call(|session, keys| session.encrypt(&Mechanism::AesCbc([0; 16]), keys.storage.iso_4, &*fields))?;
        fill(pin_field.bytes_mut(), chained.get(16..).unwrap_or_default())
    }

    fn storage_decrypt_iso_4(&self, block: &mut WideBlock, account_field: u128) -> Result<(), Error> {
        let decrypt = |block: &mut WideBlock| {
            let clear = self.call(|session, keys| {
                session.decrypt(&Mechanism::AesEcb, keys.storage.iso_4, block.bytes()).map(Zeroizing::new)
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
            self.call(|session, keys| session.encrypt(&Mechanism::Des3Ecb, keys.storage.tdes, block.bytes()))?;
        fill(block.bytes_mut(), &cipher)
    }

    fn storage_tdes_decrypt(&self, block: &mut Block) -> Result<(), Error> {
        let clear = self.call(|session, keys| {
            session.decrypt(&Mechanism::Des3Ecb, keys.storage.tdes, block.bytes()).map(Zeroizing::new)
        })?;
        fill(block.bytes_mut(), &clear)
    }
}
