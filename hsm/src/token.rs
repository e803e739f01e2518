//! A token holds the keys and runs the ciphers: in software, or by PKCS#11. The PIN rules are above these traits.

mod aes_chain;
mod pkcs11;
mod software;
mod tdes_budget;
mod tdes_cipher;
mod zone_ciphers;

pub use self::pkcs11::{Probe, Route, TokenReport};
#[cfg(test)]
pub(crate) use self::{
    aes_chain::{CmacKey, encrypt_chain},
    pkcs11::import_key,
    software::pool_left,
};
pub(crate) use self::{
    pkcs11::{
        SigningKey, TokenKeyManager, TokenSlot, algorithms_in_token, make_keys, open_at_host_level,
        open_at_token_level, probe_token, token_level_support,
    },
    software::{Software, aes_kcv, joined, tzpk_decrypt, tzpk_encrypt, tzpk_kcv},
    tdes_budget::{TdesBudget, reserved_in},
};
use bitslice_des::Batch;
use hsm_protocol::{
    ACCOUNT_BYTES, Bound, DeviceKey, EncryptedBlock, Error, Ibm3624Name, Kcv, KeyId, KeyVersion, PvkName, SealedTzpk,
    StorageFormat, StorageVersions, TAG_BYTES, ZoneFormat, ZoneName,
};

use crate::{
    block::AccountDigits,
    clear::{Block, Tzpk, WideBlock},
    config::TokenForm,
    keyring::{KeyMode, KeyUsage, Versions, ZoneKeyInfo},
    oaep,
    tdes_key::fill_tdes_key,
    zones::ZoneKeyRef,
};

/// The operations of both boundary levels. Calls block. Every operation fails with [`Error::Unavailable`] where the token
/// fails, and with [`Error::UnknownKey`] where a version of a key is missing.
pub(crate) trait Token: Send + Sync {
    /// The name in audit events: `software` or `pkcs11`.
    fn name(&self) -> &'static str;

    /// The ids of the keys in use.
    fn keys(&self) -> Vec<KeyId>;

    /// The newest key versions, which seal new values.
    fn current(&self) -> Versions;

    /// Whether the token has this version of the storage key of a format.
    fn has_storage_key(&self, form: StorageFormat, key: KeyVersion) -> bool;

    /// For each kind of storage key the newest version that is not above `limit`. A kind without such a version has the newest:
    /// the store refuses its records.
    fn storage_up_to(&self, limit: StorageVersions) -> StorageVersions {
        let newest = self.current().storage;
        let up_to = |form| match (newest.of(form), limit.of(form)) {
            (newest, limit) if newest <= limit => newest,
            (newest, KeyVersion(limit)) => {
                let mut lower = (1..=limit).rev().map(KeyVersion);
                lower.find(|version| self.has_storage_key(form, *version)).unwrap_or(newest)
            }
        };
        StorageVersions {
            wrapped: up_to(StorageFormat::Wrapped),
            iso_4: up_to(StorageFormat::Iso4),
            tdes: up_to(StorageFormat::Iso3),
            one_way: up_to(StorageFormat::OneWay),
        }
    }

    /// Checks that the token answers. A lost token is reconnected.
    fn check(&self) -> Result<(), Error>;

    /// Fills `bytes` from the token's random generator.
    fn random(&self, bytes: &mut [u8]) -> Result<(), Error>;

    /// Encrypts packed account digits in place, deterministically for one card, and returns the tag.
    fn seal_account(&self, digits: &mut [u8; ACCOUNT_BYTES], bound: &Bound) -> Result<[u8; TAG_BYTES], Error>;

    /// Decrypts packed account digits and verifies their tag; [`Error::SealBroken`] where the tag is wrong.
    fn open_account(&self, sealed: &[u8], bound: &Bound, digits: &mut [u8; ACCOUNT_BYTES]) -> Result<(), Error>;

    /// The MAC over a record and its binding, 16 bytes: AES-256-CMAC in software, HMAC-SHA-256 in a PKCS#11 token.
    fn record_tag(&self, record: &[u8], bound: &Bound) -> Result<[u8; TAG_BYTES], Error>;

    /// The MAC over a control and a block, 16 bytes, distinct from every other tag.
    fn retry_tag(&self, control: &[u8; 16], block: &[u8; 8]) -> Result<[u8; TAG_BYTES], Error>;

    /// The MAC over a zone's block and its binding, 16 bytes, distinct from every other tag.
    fn zone_block_tag(&self, bound: &Bound, block: &[u8]) -> Result<[u8; TAG_BYTES], Error>;

    /// The facts of the active versions of the configured zone keys.
    fn zone_keys(&self) -> &[ZoneKeyInfo];

    /// The ids of the active PVKs and IBM 3624 keys.
    fn verification_keys(&self) -> Vec<KeyId>;
}

/// The first bytes of the message of a retry tag. The message of every other tag begins with the head of a blob, whose second
/// byte is another.
const RETRY_HEAD: [u8; 4] = [1, b'R', 0, 0];

/// The operations of level `host`. Clear values are written into the caller's wiped memory.
pub(crate) trait HostLevel: Token {
    /// Makes a tzpk, wraps it for the device, and seals it with its binding. `tzpk` is working memory.
    fn issue_tzpk(&self, device: &DeviceKey, bound: &Bound, tzpk: &mut Tzpk) -> Result<IssuedTzpk, Error>;

    /// Decrypts a block in place under a sealed tzpk. `tzpk` is working memory.
    fn open_block(
        &self,
        sealed: (KeyVersion, &SealedTzpk),
        bound: &Bound,
        tzpk: &mut Tzpk,
        block: &mut Block,
    ) -> Result<(), Error>;

    /// The part of the token that adds blocks to a batch. None where the keys are not in this process.
    fn batch_keys(&self) -> Option<&dyn BatchKeys> {
        None
    }

    /// Encrypts a block in place under a fresh tzpk, wrapped for the device. `tzpk` is working memory.
    fn send_block(&self, device: &DeviceKey, tzpk: &mut Tzpk, block: &mut Block) -> Result<WrappedTzpk, Error>;

    /// Fills `bytes` from the generator itself, for PINs and keys: no byte was drawn ahead and waited in memory.
    fn random_for_secrets(&self, bytes: &mut [u8]) -> Result<(), Error>;

    /// Encrypts a format 4 PIN field in place under an AES-256 storage key: `E(E(PIN field) ⊕ account field)` (ISO 9564-1,
    /// format 4).
    fn storage_encrypt_iso_4(
        &self,
        key: KeyVersion,
        pin_field: &mut WideBlock,
        account_field: u128,
    ) -> Result<(), Error>;

    /// Decrypts a format 4 block in place: `D(D(block) ⊕ account field)`.
    fn storage_decrypt_iso_4(&self, key: KeyVersion, block: &mut WideBlock, account_field: u128) -> Result<(), Error>;

    /// Encrypts one block in place under a 3DES storage key. [`Error::TdesExhausted`] after 2^20 blocks.
    fn storage_tdes_encrypt(&self, key: KeyVersion, block: &mut Block) -> Result<(), Error>;

    /// Decrypts one block in place under a 3DES storage key.
    fn storage_tdes_decrypt(&self, key: KeyVersion, block: &mut Block) -> Result<(), Error>;

    /// Encrypts one block in place under a 3DES zone key. The count of blocks under the storage key does not change.
    fn zone_encrypt(&self, key: ZoneKeyRef<'_>, block: &mut Block) -> Result<(), Error>;

    /// Decrypts one block in place under a 3DES zone key.
    fn zone_decrypt(&self, key: ZoneKeyRef<'_>, block: &mut Block) -> Result<(), Error>;

    /// Encrypts a format 4 PIN field in place under an AES zone key; see [`Self::storage_encrypt_iso_4`].
    fn zone_encrypt_iso_4(
        &self,
        key: ZoneKeyRef<'_>,
        pin_field: &mut WideBlock,
        account_field: u128,
    ) -> Result<(), Error>;

    /// Decrypts a format 4 block in place to its PIN field, under an AES zone key.
    fn zone_decrypt_iso_4(&self, key: ZoneKeyRef<'_>, block: &mut WideBlock, account_field: u128) -> Result<(), Error>;

    /// The AES-256-CMAC of a message under a one-way storage key, 16 bytes.
    fn one_way_tag(&self, key: KeyVersion, message: &[u8]) -> Result<[u8; TAG_BYTES], Error>;

    /// The name of an active IBM 3624 key; [`Error::NoVerificationKey`] without such a key.
    fn ibm_3624(&self, name: &ZoneName) -> Result<Ibm3624Name, Error>;

    /// Encrypts one block in place under an active PVK or IBM 3624 key; [`Error::NoVerificationKey`] without such a key, and
    /// where its mode does not allow `wanted`.
    fn verification_encrypt(&self, key: VerificationKey<'_>, wanted: KeyMode, block: &mut Block) -> Result<(), Error>;
}

/// The 3DES keys of a token that are in this process, so that it decrypts blocks in batches. Each method adds a block to a batch
/// and returns the place of the block, from 0: none where the key is missing or not of this kind, or the batch is full.
pub(crate) trait BatchKeys {
    /// Adds a device's block under its sealed tzpk: none where the tzpk was changed or has another binding. `tzpk` is working
    /// memory.
    fn push_device_block(
        &self,
        sealed: (KeyVersion, &SealedTzpk),
        bound: &Bound,
        tzpk: &mut Tzpk,
        block: &[u8; 8],
        batch: &mut Batch,
    ) -> Option<usize>;

    /// Adds a zone's block under its 3DES key.
    fn push_zone_block(&self, key: ZoneKeyRef<'_>, block: &[u8; 8], batch: &mut Batch) -> Option<usize>;

    /// Adds the block of a record under its 3DES storage key.
    fn push_stored_block(&self, key: KeyVersion, block: &[u8; 8], batch: &mut Batch) -> Option<usize>;
}

/// The IBM 3624 key with this name among the usages of active keys.
fn ibm_3624_name<'a>(mut usages: impl Iterator<Item = &'a KeyUsage>, name: &ZoneName) -> Result<Ibm3624Name, Error> {
    let found = usages.find_map(|usage| match usage {
        KeyUsage::Ibm3624(found) if found.name == *name => Some(found.clone()),
        _ => None,
    });
    found.ok_or(Error::NoVerificationKey)
}

/// A key that values are derived under, by the name in a request.
#[derive(Clone, Copy)]
pub(crate) enum VerificationKey<'a> {
    Pvk(&'a PvkName),
    Ibm3624(&'a ZoneName),
}

impl VerificationKey<'_> {
    /// Whether a key of this usage has the name.
    fn names(self, usage: &KeyUsage) -> bool {
        match (self, usage) {
            (Self::Pvk(name), KeyUsage::Pvk(found)) => name == found,
            (Self::Ibm3624(name), KeyUsage::Ibm3624(found)) => *name == found.name,
            _ => false,
        }
    }
}

/// The operations of level `token`. No parameter and no result is clear.
pub(crate) trait TokenLevel: Token {
    /// Generates a tzpk in the token, wraps it for the device, and seals it with its binding.
    fn issue_tzpk(&self, device: &DeviceKey, bound: &Bound) -> Result<IssuedTzpk, Error>;

    /// Re-encrypts a device's block under a storage key of a format. [`AcceptError`] with a refusal where the token
    /// detects a fill that the format does not allow.
    fn reencrypt_for_storage(
        &self,
        sealed: (KeyVersion, &SealedTzpk),
        bound: &Bound,
        block: &EncryptedBlock,
        under: StorageKey,
        account: &AccountDigits,
    ) -> Result<Vec<u8>, Error>;

    /// Re-encrypts a stored block under a fresh tzpk. The clear block is the one that its device sent.
    fn reencrypt_for_device(
        &self,
        stored: StoredBlock<'_>,
        account: &AccountDigits,
        device: &DeviceKey,
    ) -> Result<(WrappedTzpk, EncryptedBlock), Error>;

    /// Re-encrypts a stored block under another version of its storage key, in the same format.
    fn reencrypt_stored(
        &self,
        stored: StoredBlock<'_>,
        under: KeyVersion,
        account: &AccountDigits,
    ) -> Result<Vec<u8>, Error>;

    /// Re-encrypts a zone's format 1 block under a storage key of a format; see [`Self::reencrypt_for_storage`].
    fn reencrypt_zone_for_storage(
        &self,
        key: ZoneKeyRef<'_>,
        block: &EncryptedBlock,
        under: StorageKey,
        account: &AccountDigits,
    ) -> Result<Vec<u8>, Error>;

    /// Re-encrypts a stored block under a zone key, as format 1, or as format 3 where the stored block has this format.
    fn reencrypt_for_zone(
        &self,
        stored: StoredBlock<'_>,
        account: &AccountDigits,
        key: ZoneKeyRef<'_>,
        format: ZoneFormat,
    ) -> Result<[u8; 8], Error>;
}

/// The format of a stored block to be made, and the version of its storage key.
#[derive(Clone, Copy)]
pub(crate) struct StorageKey {
    pub(crate) form: TokenForm,
    pub(crate) version: KeyVersion,
}

/// A stored block, its format and the version of its storage key.
#[derive(Clone, Copy)]
pub(crate) struct StoredBlock<'a> {
    pub(crate) form: TokenForm,
    pub(crate) key: KeyVersion,
    pub(crate) bytes: &'a [u8],
}

/// A tzpk for its device.
pub(crate) struct WrappedTzpk {
    /// RSA-OAEP ciphertext, as long as the device key's modulus.
    pub(crate) wrapped: Vec<u8>,
    pub(crate) check_value: Kcv,
}

/// A tzpk for its device, and sealed for the boundary.
pub(crate) struct IssuedTzpk {
    pub(crate) wrapped: WrappedTzpk,
    pub(crate) sealed: SealedTzpk,
}

/// Makes a tzpk on the host and wraps it for a device.
fn host_tzpk(
    device: &DeviceKey,
    tzpk: &mut Tzpk,
    random: impl FnMut(&mut [u8]) -> Result<(), Error>,
) -> Result<WrappedTzpk, Error> {
    fill_tdes_key(tzpk, random)?;
    let check_value = tzpk_kcv(tzpk);
    let wrapped = oaep::wrap(device, tzpk)?;
    Ok(WrappedTzpk { wrapped, check_value })
}
