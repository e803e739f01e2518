//! A token: keys, and the ciphers that use them. PIN logic stands once, above this trait.

mod aes_chain;
mod software;
mod tdes_budget;

#[cfg(test)]
pub(crate) use self::aes_chain::{CmacKey, encrypt_chain};
pub(crate) use self::{
    software::{Software, aes_check_value},
    tdes_budget::TdesBudget,
};
use crate::{
    check_value::CheckValue,
    clear::{Block, Tzpk, WideBlock},
    error::Error,
    sealed::{ACCOUNT_BYTES, Bound, KeyReference, NONCE_BYTES, TAG_BYTES},
};

/// What the door asks of a token. Blocking; clear values are filled in place.
pub(crate) trait Token: Send + Sync {
    /// Its name in audit lines, such as `software`.
    fn name(&self) -> &'static str;

    /// Its keys by use and version, with check values, such as `storage/1:A1B2C3`.
    fn keys(&self) -> Vec<String>;

    /// The version of every key new blobs are made under.
    fn current(&self) -> KeyReference;

    /// Random bytes from a CSPRNG.
    fn random(&self, bytes: &mut [u8]) -> Result<(), Error>;

    /// Encrypts a tzpk in place under the seal key (AES-256-GCM-SIV, RFC 8452), with what it is bound to.
    fn seal_tzpk(&self, tzpk: &mut Tzpk, nonce: &[u8; NONCE_BYTES], bound: &Bound) -> Result<[u8; TAG_BYTES], Error>;

    /// Opens a sealed tzpk in place: ciphertext and tag in, key in the first 16 bytes out.
    fn open_tzpk(&self, sealed: (&[u8], &[u8]), bound: &Bound, tzpk: &mut Tzpk) -> Result<(), Error>;

    /// Encrypts packed account digits in place, deterministically for a card.
    fn seal_account(&self, digits: &mut [u8; ACCOUNT_BYTES], bound: &Bound) -> Result<[u8; TAG_BYTES], Error>;

    /// Opens packed account digits.
    fn open_account(&self, sealed: &[u8], bound: &Bound, digits: &mut [u8; ACCOUNT_BYTES]) -> Result<(), Error>;

    /// Enciphers a format 4 PIN field in place under the AES-256 storage key: `E(E(PIN field) ⊕ account field)`.
    fn storage_encrypt_iso_4(&self, pin_field: &mut WideBlock, account_field: u128);

    /// AES-256 of one block in place, backwards, under the storage key.
    fn storage_aes_decrypt(&self, block: &mut WideBlock);

    /// 3DES of one block in place, under the 3DES storage key; counted, and at an end after 2^20 blocks.
    fn storage_tdes_encrypt(&self, block: &mut Block) -> Result<(), Error>;

    /// The way back.
    fn storage_tdes_decrypt(&self, block: &mut Block);

    /// AES-256-CMAC over a record and what it is bound to.
    fn record_tag(&self, record: &[u8], bound: &Bound) -> [u8; TAG_BYTES];

    /// AES-256-CMAC over a control and a block, under a key of its own.
    fn retry_tag(&self, control: &[u8; 16], block: &[u8; 8]) -> [u8; TAG_BYTES];
}

/// 3DES under a tzpk, which lives for one operation alone.
pub(crate) fn tzpk_decrypt(tzpk: &Tzpk, block: &mut Block) {
    software::tdes_decrypt(tzpk, block);
}

/// The other way.
pub(crate) fn tzpk_encrypt(tzpk: &Tzpk, block: &mut Block) {
    software::tdes_encrypt(tzpk, block);
}

/// The first 3 bytes of the encrypted zero block.
pub(crate) fn tzpk_check_value(tzpk: &Tzpk) -> CheckValue {
    let mut zero = Block::zeroed();
    software::tdes_encrypt(tzpk, &mut zero);
    CheckValue::first_of(zero.bytes())
}
