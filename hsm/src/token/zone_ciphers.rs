//! The prepared zone keys of the software token.

use std::collections::HashMap;

use aes::{
    Aes128, Aes192, Aes256,
    cipher::{BlockCipherDecrypt, KeyInit, consts::U16},
};
use bitslice_des::Batch;
use hsm_protocol::{Error, KeyVersion, ZoneName};

use super::{aes_chain::encrypt_chain, tdes_cipher::TdesCipher};
use crate::{
    clear::{Block, ClearBytes, WideBlock, scrub_stack},
    keyring::{ClearZoneKey, KeyAlgorithm, ZoneKeyInfo},
    zones::ZoneKeyRef,
};

/// The prepared keys of every configured zone.
pub(super) struct ZoneCiphers {
    // Boxed: a map that grows would leave key schedules in freed memory.
    ciphers: HashMap<ZoneName, Vec<(KeyVersion, Box<ZoneCipher>)>>,
    infos: Vec<ZoneKeyInfo>,
}

/// One version of a zone key.
pub(super) enum ZoneCipher {
    Tdes(TdesCipher),
    Aes128(Aes128),
    Aes192(Aes192),
    Aes256(Aes256),
}

impl ZoneCiphers {
    /// Prepares the keys. The given bytes are wiped.
    ///
    /// # Errors
    /// [`Error::UnknownKey`] where a key has another length than its algorithm.
    pub(super) fn new(keys: Vec<ClearZoneKey>) -> Result<Self, Error> {
        let mut ciphers = HashMap::<_, Vec<_>>::with_capacity(keys.len());
        let mut infos = Vec::with_capacity(keys.len());
        for ClearZoneKey { info, algorithm, key } in keys {
            let cipher = ZoneCipher::new(algorithm, &key);
            scrub_stack();
            ciphers.entry(info.zone.clone()).or_default().push((info.version, cipher?));
            infos.push(info);
        }
        Ok(Self { ciphers, infos })
    }

    pub(super) fn infos(&self) -> &[ZoneKeyInfo] {
        &self.infos
    }

    /// The prepared key of a version; [`Error::UnknownKey`] without one.
    pub(super) fn cipher(&self, key: ZoneKeyRef<'_>) -> Result<&ZoneCipher, Error> {
        let versions = self.ciphers.get(key.zone).ok_or(Error::UnknownKey)?;
        let found = versions.iter().find(|(version, _)| *version == key.version);
        found.map(|(_, cipher)| &**cipher).ok_or(Error::UnknownKey)
    }
}

impl ZoneCipher {
    #[inline(never)]
    fn new(algorithm: KeyAlgorithm, key: &ClearBytes) -> Result<Box<Self>, Error> {
        let key = key.bytes();
        let cipher = match algorithm {
            KeyAlgorithm::TdesDouble => key.try_into().ok().map(TdesCipher::double).map(Self::Tdes),
            KeyAlgorithm::TdesTriple => key.try_into().ok().map(TdesCipher::triple).map(Self::Tdes),
            KeyAlgorithm::Aes128 => Aes128::new_from_slice(key).ok().map(Self::Aes128),
            KeyAlgorithm::Aes192 => Aes192::new_from_slice(key).ok().map(Self::Aes192),
            KeyAlgorithm::Aes256 => Aes256::new_from_slice(key).ok().map(Self::Aes256),
            KeyAlgorithm::HmacSha256 => None,
        };
        cipher.map(Box::new).ok_or(Error::UnknownKey)
    }

    /// Encrypts one block in place; [`Error::UnknownKey`] under an AES key.
    pub(super) fn encrypt(&self, block: &mut Block) -> Result<(), Error> {
        self.tdes().map(|cipher| cipher.encrypt(block)).ok_or(Error::UnknownKey)
    }

    /// Decrypts one block in place; [`Error::UnknownKey`] under an AES key.
    pub(super) fn decrypt(&self, block: &mut Block) -> Result<(), Error> {
        self.tdes().map(|cipher| cipher.decrypt(block)).ok_or(Error::UnknownKey)
    }

    /// Adds a block to a batch. Returns its place; none under an AES key or in a full batch.
    pub(super) fn push(&self, block: &[u8; 8], batch: &mut Batch) -> Option<usize> {
        self.tdes()?.push(block, batch)
    }

    fn tdes(&self) -> Option<&TdesCipher> {
        match self {
            Self::Tdes(cipher) => Some(cipher),
            Self::Aes128(_) | Self::Aes192(_) | Self::Aes256(_) => None,
        }
    }

    /// Encrypts a format 4 PIN field in place; [`Error::UnknownKey`] under a 3DES key.
    pub(super) fn encrypt_iso_4(&self, pin_field: &mut WideBlock, account_field: u128) -> Result<(), Error> {
        match self {
            Self::Aes128(cipher) => encrypt_chain(cipher, pin_field, [account_field]),
            Self::Aes192(cipher) => encrypt_chain(cipher, pin_field, [account_field]),
            Self::Aes256(cipher) => encrypt_chain(cipher, pin_field, [account_field]),
            Self::Tdes(_) => return Err(Error::UnknownKey),
        }
        Ok(())
    }

    /// Decrypts a format 4 block in place to its PIN field; [`Error::UnknownKey`] under a 3DES key.
    pub(super) fn decrypt_iso_4(&self, block: &mut WideBlock, account_field: u128) -> Result<(), Error> {
        match self {
            Self::Aes128(cipher) => decrypt_iso_4(cipher, block, account_field),
            Self::Aes192(cipher) => decrypt_iso_4(cipher, block, account_field),
            Self::Aes256(cipher) => decrypt_iso_4(cipher, block, account_field),
            Self::Tdes(_) => return Err(Error::UnknownKey),
        }
        Ok(())
    }
}

/// Decrypts a format 4 block in place to its PIN field: `D(D(block) ⊕ account field)`.
pub(super) fn decrypt_iso_4<C>(cipher: &C, block: &mut WideBlock, account_field: u128)
where
    C: BlockCipherDecrypt<BlockSize = U16>,
{
    cipher.decrypt_block(block.bytes_mut().into());
    block.set_nibbles(block.nibbles() ^ account_field);
    cipher.decrypt_block(block.bytes_mut().into());
}
