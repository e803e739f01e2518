//! A token: keys, and the ciphers that use them. PIN logic stands once, above this trait.

mod aes_chain;
mod pkcs11;
mod software;
mod tdes_budget;

#[cfg(test)]
pub(crate) use self::aes_chain::{CmacKey, encrypt_chain};
pub use self::pkcs11::{Probe, Route, TokenReport};
pub(crate) use self::{
    pkcs11::{
        SigningKey, TokenKeyManager, TokenSlot, ability, examine, make_keys, open_at_host_level, open_at_token_level,
    },
    software::{Software, aes_check_value},
    tdes_budget::{TdesBudget, reserved_in},
};
use crate::{
    block::AccountDigits,
    check_value::Kcv,
    clear::{Block, Tzpk, WideBlock},
    config::TokenForm,
    device_key::DeviceKey,
    error::Error,
    form::StorageFormat,
    key_id::KeyId,
    keyring::Versions,
    oaep,
    sealed::{ACCOUNT_BYTES, Bound, EncryptedBlock, KeyVersion, SealedTzpk, TAG_BYTES},
    tdes_key::fill_tdes_key,
};

/// What every token does, at either level. Blocking.
pub(crate) trait Token: Send + Sync {
    /// Its name in audit lines, such as `software`.
    fn name(&self) -> &'static str;

    /// Its keys by usage and version, with KCVs.
    fn keys(&self) -> Vec<KeyId>;

    /// The versions of the keys that new blobs are made under.
    fn current(&self) -> Versions;

    /// Whether it can open a block of this form under the storage key of this version.
    fn has_storage_key(&self, form: StorageFormat, key: KeyVersion) -> bool;

    /// Whether it answers now; one that was lost is looked for.
    fn check(&self) -> Result<(), Error>;

    /// Random bytes from a CSPRNG.
    fn random(&self, bytes: &mut [u8]) -> Result<(), Error>;

    /// Encrypts packed account digits in place, deterministically for a card.
    fn seal_account(&self, digits: &mut [u8; ACCOUNT_BYTES], bound: &Bound) -> Result<[u8; TAG_BYTES], Error>;

    /// Opens packed account digits.
    fn open_account(&self, sealed: &[u8], bound: &Bound, digits: &mut [u8; ACCOUNT_BYTES]) -> Result<(), Error>;

    /// AES-256-CMAC over a record and what it is bound to.
    fn record_tag(&self, record: &[u8], bound: &Bound) -> Result<[u8; TAG_BYTES], Error>;

    /// AES-256-CMAC over a control and a block, distinct from every other tag.
    fn retry_tag(&self, control: &[u8; 16], block: &[u8; 8]) -> Result<[u8; TAG_BYTES], Error>;
}

/// What a token does at level `host`: clear values are filled in place, for the boundary to judge.
pub(crate) trait HostLevel: Token {
    /// Makes a tzpk: wrapped for the device, and sealed with what it is bound to.
    fn issue_tzpk(&self, device: &DeviceKey, bound: &Bound, tzpk: &mut Tzpk) -> Result<IssuedTzpk, Error>;

    /// Decrypts a block in place under a sealed tzpk; `tzpk` is a buffer that a token may need.
    fn open_block(
        &self,
        sealed: (KeyVersion, &SealedTzpk),
        bound: &Bound,
        tzpk: &mut Tzpk,
        block: &mut Block,
    ) -> Result<(), Error>;

    /// Encrypts a block in place under a fresh tzpk, which is then known to the device alone.
    fn send_block(&self, device: &DeviceKey, tzpk: &mut Tzpk, block: &mut Block) -> Result<WrappedTzpk, Error>;

    /// Enciphers a format 4 PIN field in place under the AES-256 storage key: `E(E(PIN field) ⊕ account field)`.
    fn storage_encrypt_iso_4(&self, pin_field: &mut WideBlock, account_field: u128) -> Result<(), Error>;

    /// The way back: `D(D(block) ⊕ account field)`.
    fn storage_decrypt_iso_4(&self, key: KeyVersion, block: &mut WideBlock, account_field: u128) -> Result<(), Error>;

    /// 3DES of one block in place, under the 3DES storage key; counted, and at an end after 2^20 blocks.
    fn storage_tdes_encrypt(&self, block: &mut Block) -> Result<(), Error>;

    /// The way back.
    fn storage_tdes_decrypt(&self, key: KeyVersion, block: &mut Block) -> Result<(), Error>;
}

/// What a token does at level `token`: no parameter and no answer holds anything clear.
pub(crate) trait TokenLevel: Token {
    /// Makes a tzpk inside: wrapped for the device, and sealed with what it is bound to.
    fn issue_tzpk(&self, device: &DeviceKey, bound: &Bound) -> Result<IssuedTzpk, Error>;

    /// Takes a block in under its sealed tzpk and gives it out in a stored form, of the length of that form. A fill that
    /// does not suit the form is refused where it can be found out.
    fn take_in(
        &self,
        sealed: (KeyVersion, &SealedTzpk),
        bound: &Bound,
        block: &EncryptedBlock,
        form: TokenForm,
        account: &AccountDigits,
    ) -> Result<Vec<u8>, Error>;

    /// Takes a stored block in and gives it out under a fresh tzpk: the block its device sent.
    fn send_out(
        &self,
        stored: StoredBlock<'_>,
        account: &AccountDigits,
        device: &DeviceKey,
    ) -> Result<(WrappedTzpk, EncryptedBlock), Error>;

    /// Takes a stored block in and gives it out under the newest storage key, in the same form.
    fn store_again(&self, stored: StoredBlock<'_>, account: &AccountDigits) -> Result<Vec<u8>, Error>;
}

/// A block as a token made it to be kept: in which form, and under which version of the storage key.
#[derive(Clone, Copy)]
pub(crate) struct StoredBlock<'a> {
    pub(crate) form: TokenForm,
    pub(crate) key: KeyVersion,
    pub(crate) bytes: &'a [u8],
}

/// A tzpk as its device gets it.
pub(crate) struct WrappedTzpk {
    /// RSA-OAEP.
    pub(crate) wrapped: Vec<u8>,
    pub(crate) check_value: Kcv,
}

/// A tzpk as its device gets it, and as we get it back.
pub(crate) struct IssuedTzpk {
    pub(crate) wrapped: WrappedTzpk,
    pub(crate) sealed: SealedTzpk,
}

/// A tzpk made on the host, for a token that can't wrap one for a device: from the token's random source.
fn host_tzpk(
    device: &DeviceKey,
    tzpk: &mut Tzpk,
    random: impl FnMut(&mut [u8]) -> Result<(), Error>,
) -> Result<WrappedTzpk, Error> {
    fill_tdes_key(tzpk, random)?;
    let check_value = tzpk_check_value(tzpk);
    let wrapped = oaep::wrap(device, tzpk)?;
    Ok(WrappedTzpk { wrapped, check_value })
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
pub(crate) fn tzpk_check_value(tzpk: &Tzpk) -> Kcv {
    let mut zero = Block::zeroed();
    software::tdes_encrypt(tzpk, &mut zero);
    Kcv::first_of(zero.bytes())
}
