//! A PKCS#11 token at level `host`: a clear block is in this process's memory for one operation, for the PIN policy.
//!
//! A tzpk is made in this process from random bytes of the token, because not every token has RSA-OAEP with SHA-256. A token
//! with `CKM_AES_KEY_WRAP` unwraps the tzpk later as an object, so the clear tzpk is in host memory only while it is made. A
//! token without the mechanism, or behind a socket that does not forward it, decrypts the tzpk for each operation.

use cryptoki::{mechanism::Mechanism, object::ObjectHandle};

use super::{
    Pkcs11Token,
    keys::{HostKeys, KeyHandles, SealKey, long_cmac},
    objects::{SessionObject, WRAPPED_TZPK_BYTES},
};
use hsm_protocol::{Bound, DeviceKey, Error, Ibm3624Name, KeyVersion, SealedTzpk, TAG_BYTES, ZoneName};

use crate::{
    clear::{Block, Tzpk, WideBlock},
    keyring::KeyMode,
    token::{HostLevel, IssuedTzpk, Token, VerificationKey, WrappedTzpk, host_tzpk, ibm_3624_name, software},
    zones::ZoneKeyRef,
};

/// Bytes of a tzpk: a double-length 3DES key, one AES block.
const TZPK_BYTES: usize = 16;

impl Pkcs11Token<HostKeys> {
    fn newest_seal_key(&self) -> Result<SealKey, Error> {
        self.call(|_, keys| Ok(*keys.level.seal.newest()))
    }

    /// Encrypts a PIN field in place to a format 4 block: `E(E(PIN field) ⊕ account field)`.
    fn encrypt_iso_4(
        &self,
        key: impl Fn(&KeyHandles<HostKeys>) -> Option<ObjectHandle>,
        pin_field: &mut WideBlock,
        account_field: u128,
    ) -> Result<(), Error> {
        let encrypt = |block: &mut WideBlock| {
            let mut cipher = [0; 16];
            self.call_with(|session, keys| {
                Some(session.encrypt(&Mechanism::AesEcb, key(keys)?, block.bytes(), &mut cipher))
            })?;
            *block.bytes_mut() = cipher;
            Ok(())
        };
        encrypt(pin_field)?;
        pin_field.set_nibbles(pin_field.nibbles() ^ account_field);
        encrypt(pin_field)
    }

    /// Decrypts a format 4 block in place to its PIN field.
    fn decrypt_iso_4(
        &self,
        key: impl Fn(&KeyHandles<HostKeys>) -> Option<ObjectHandle>,
        block: &mut WideBlock,
        account_field: u128,
    ) -> Result<(), Error> {
        let decrypt = |block: &mut WideBlock| {
            // First the block, then the intermediate block of format 4.
            let cipher = *block.bytes();
            self.call_with(|session, keys| {
                Some(session.decrypt(&Mechanism::AesEcb, key(keys)?, &cipher, block.bytes_mut()))
            })
        };
        decrypt(block)?;
        block.set_nibbles(block.nibbles() ^ account_field);
        decrypt(block)
    }
}

impl HostLevel for Pkcs11Token<HostKeys> {
    fn issue_tzpk(&self, device: &DeviceKey, bound: &Bound, tzpk: &mut Tzpk) -> Result<IssuedTzpk, Error> {
        let wrapped = host_tzpk(device, tzpk, |bytes| self.random(bytes))?;
        let sealed = match self.newest_seal_key()? {
            SealKey::Wrapping(seal) => {
                let key_wrap: [u8; WRAPPED_TZPK_BYTES] = self.call(|session, _| {
                    SessionObject::import_tzpk(session, tzpk)?.wrapped_under(&Mechanism::AesKeyWrap, seal)
                })?;
                self.sealed(&key_wrap, bound)?
            }
            SealKey::Encrypting(seal) => {
                // ECB is safe for one block of fresh random bytes: no two plaintexts are equal.
                let mut cipher = [0; TZPK_BYTES];
                self.call(|session, _| session.encrypt(&Mechanism::AesEcb, seal, tzpk.bytes(), &mut cipher))?;
                self.sealed(&cipher, bound)?
            }
        };
        Ok(IssuedTzpk { wrapped, sealed })
    }

    fn open_block(
        &self,
        (key, sealed): (KeyVersion, &SealedTzpk),
        bound: &Bound,
        tzpk: &mut Tzpk,
        block: &mut Block,
    ) -> Result<(), Error> {
        match self.call_with(|_, keys| keys.level.seal.get(key).copied().map(Ok))? {
            SealKey::Wrapping(seal) => {
                let key_wrap = self.opened(sealed, bound, WRAPPED_TZPK_BYTES)?;
                let cipher = *block.bytes();
                self.call(|session, _| {
                    let object = SessionObject::unwrap_tzpk_to_decrypt(session, seal, key_wrap)?;
                    session.decrypt(&Mechanism::Des3Ecb, object.handle, &cipher, block.bytes_mut())
                })
            }
            SealKey::Encrypting(seal) => {
                let cipher = self.opened(sealed, bound, TZPK_BYTES)?;
                self.call(|session, _| session.decrypt(&Mechanism::AesEcb, seal, cipher, tzpk.bytes_mut()))?;
                software::tzpk_decrypt(tzpk, block);
                Ok(())
            }
        }
    }

    fn send_block(&self, device: &DeviceKey, tzpk: &mut Tzpk, block: &mut Block) -> Result<WrappedTzpk, Error> {
        let wrapped = host_tzpk(device, tzpk, |bytes| self.random(bytes))?;
        software::tzpk_encrypt(tzpk, block);
        Ok(wrapped)
    }

    fn storage_encrypt_iso_4(
        &self,
        key: KeyVersion,
        pin_field: &mut WideBlock,
        account_field: u128,
    ) -> Result<(), Error> {
        self.encrypt_iso_4(|keys| keys.level.iso_4.get(key).copied(), pin_field, account_field)
    }

    fn storage_decrypt_iso_4(&self, key: KeyVersion, block: &mut WideBlock, account_field: u128) -> Result<(), Error> {
        self.decrypt_iso_4(|keys| keys.level.iso_4.get(key).copied(), block, account_field)
    }

    fn storage_tdes_encrypt(&self, key: KeyVersion, block: &mut Block) -> Result<(), Error> {
        self.tdes_budget.take(key)?;
        let mut cipher = [0; 8];
        self.call_with(|session, keys| {
            let key = keys.level.tdes.get(key)?;
            Some(session.encrypt(&Mechanism::Des3Ecb, *key, block.bytes(), &mut cipher))
        })?;
        *block.bytes_mut() = cipher;
        Ok(())
    }

    fn storage_tdes_decrypt(&self, key: KeyVersion, block: &mut Block) -> Result<(), Error> {
        let cipher = *block.bytes();
        self.call_with(|session, keys| {
            let key = keys.level.tdes.get(key)?;
            Some(session.decrypt(&Mechanism::Des3Ecb, *key, &cipher, block.bytes_mut()))
        })
    }

    fn one_way_tag(&self, key: KeyVersion, message: &[u8]) -> Result<[u8; TAG_BYTES], Error> {
        let mut tag = [0; TAG_BYTES];
        self.call_with(|session, keys| {
            let key = keys.level.one_way.as_ref()?.get(key)?;
            Some(long_cmac(session, *key, message, &mut tag))
        })?;
        Ok(tag)
    }

    fn random_for_secrets(&self, bytes: &mut [u8]) -> Result<(), Error> {
        self.random(bytes)
    }

    fn ibm_3624(&self, name: &ZoneName) -> Result<Ibm3624Name, Error> {
        ibm_3624_name(self.verification.iter().map(|info| &info.id.usage), name)
    }

    fn verification_encrypt(&self, key: VerificationKey<'_>, wanted: KeyMode, block: &mut Block) -> Result<(), Error> {
        if !self.verification.iter().any(|info| key.names(&info.id.usage) && info.mode.allows(wanted)) {
            return Err(Error::NoVerificationKey);
        }
        let mut cipher = [0; 8];
        self.call_with(|session, keys| {
            Some(session.encrypt(&Mechanism::Des3Ecb, keys.level.verification(key)?, block.bytes(), &mut cipher))
        })?;
        *block.bytes_mut() = cipher;
        Ok(())
    }

    fn zone_encrypt(&self, key: ZoneKeyRef<'_>, block: &mut Block) -> Result<(), Error> {
        let mut cipher = [0; 8];
        self.call_with(|session, keys| {
            Some(session.encrypt(&Mechanism::Des3Ecb, keys.zone(key)?, block.bytes(), &mut cipher))
        })?;
        *block.bytes_mut() = cipher;
        Ok(())
    }

    fn zone_decrypt(&self, key: ZoneKeyRef<'_>, block: &mut Block) -> Result<(), Error> {
        let cipher = *block.bytes();
        self.call_with(|session, keys| {
            Some(session.decrypt(&Mechanism::Des3Ecb, keys.zone(key)?, &cipher, block.bytes_mut()))
        })
    }

    fn zone_encrypt_iso_4(
        &self,
        key: ZoneKeyRef<'_>,
        pin_field: &mut WideBlock,
        account_field: u128,
    ) -> Result<(), Error> {
        self.encrypt_iso_4(|keys| keys.zone(key), pin_field, account_field)
    }

    fn zone_decrypt_iso_4(&self, key: ZoneKeyRef<'_>, block: &mut WideBlock, account_field: u128) -> Result<(), Error> {
        self.decrypt_iso_4(|keys| keys.zone(key), block, account_field)
    }
}
