//! A PKCS#11 token at level `token`: a block is unwrapped under the tzpk as a secret object and wrapped out in its stored
//! form, and so back. No call of this room decrypts, and none reads a value.
//!
//! An initialisation vector of CBC is an XOR inside the token: it changes the control nibble and binds the account.

use aws_lc_rs::digest::{Context, SHA256};
use cryptoki::{
    error::{Error as CallError, RvError},
    mechanism::Mechanism,
};

use super::{
    Pkcs11Token,
    calls::Calls,
    keys::TokenKeys,
    objects::{SessionObject, WRAPPED_BLOCK_BYTES, WRAPPED_TZPK_BYTES},
};
use crate::{
    block::{AccountDigits, FILL_A_AS_PADDING, account_field, iso_1_to_iso_3, iso_1_to_iso_4},
    check_value::CheckValue,
    config::TokenForm,
    device_key::DeviceKey,
    error::{AcceptError, Error, Refusal},
    sealed::{Bound, EncryptedBlock, SealedTzpk},
    token::{IssuedTzpk, Token, TokenLevel, WrappedTzpk},
};

/// Random bytes that give each stored block a key of its own.
const SALT_BYTES: usize = 16;
/// Before what such a key is derived from: no other use of SHA-256 here begins so.
const BLOCK_KEY_HEAD: &[u8] = b"pinseal wrapped block 1 ";

impl TokenLevel for Pkcs11Token<TokenKeys> {
    fn issue_tzpk(&self, device: &DeviceKey, bound: &Bound) -> Result<IssuedTzpk, Error> {
        let (wrapped, key_wrap) = self.call(|session, keys| {
            let tzpk = SessionObject::generate_tzpk(session)?;
            let wrapped = wrapped_for(session, device, &tzpk)?;
            let key_wrap: [u8; WRAPPED_TZPK_BYTES] = tzpk.wrapped_under(&Mechanism::AesKeyWrap, keys.level.seal)?;
            Ok((wrapped, key_wrap))
        })?;
        Ok(IssuedTzpk { wrapped, sealed: self.sealed(&key_wrap, bound)? })
    }

    fn take_in(
        &self,
        (sealed, bound): (&SealedTzpk, &Bound),
        block: &EncryptedBlock,
        form: TokenForm,
        account: &AccountDigits,
    ) -> Result<Vec<u8>, AcceptError> {
        let (key_wrap, block) = (self.opened(sealed, bound, WRAPPED_TZPK_BYTES)?, block.as_bytes());
        match form {
            TokenForm::Wrapped => Ok(self.keep_wrapped(key_wrap, block, account)?),
            TokenForm::Iso3 => Ok(self.keep_iso_3(key_wrap, block, account)?.to_vec()),
            TokenForm::Iso4 => match self.keep_iso_4(key_wrap, block, account)? {
                Some(kept) => Ok(kept.to_vec()),
                None => Err(Refusal::MalformedBlock.into()),
            },
        }
    }

    fn send_out(
        &self,
        form: TokenForm,
        stored: &[u8],
        account: &AccountDigits,
        device: &DeviceKey,
    ) -> Result<(WrappedTzpk, EncryptedBlock), Error> {
        let (wrapped, block) = match form {
            TokenForm::Wrapped => {
                let (salt, wrapped) = stored.split_at_checked(SALT_BYTES).unwrap_or_default();
                let data = block_key_data(salt, account);
                self.call(|session, keys| {
                    let key = SessionObject::block_key_to_unwrap(session, keys.level.wrapped, &data)?;
                    let block = SessionObject::take_in(session, &Mechanism::AesKeyWrapPad, key.handle, wrapped)?;
                    give_out(session, device, &block)
                })?
            }
            TokenForm::Iso3 => {
                let mask = iso_1_to_iso_3(account).to_be_bytes();
                self.call(|session, keys| {
                    let key = keys.level.iso_3;
                    let block = SessionObject::take_in(session, &Mechanism::Des3Cbc(mask), key, stored)?;
                    give_out(session, device, &block)
                })?
            }
            TokenForm::Iso4 => return Err(Error::WriteOnly),
        };
        Ok((wrapped, EncryptedBlock::from_bytes(&block)?))
    }
}

impl Pkcs11Token<TokenKeys> {
    /// Of any fill, as it came: under a key of the account and of a salt, so that the same block is never stored alike.
    fn keep_wrapped(&self, key_wrap: &[u8], block: &[u8; 8], account: &AccountDigits) -> Result<Vec<u8>, Error> {
        let mut salt = [0; SALT_BYTES];
        self.random(&mut salt)?;
        let data = block_key_data(&salt, account);
        let wrapped: [u8; WRAPPED_BLOCK_BYTES] = self.call(|session, keys| {
            let tzpk = SessionObject::unwrap_tzpk_to_unwrap(session, keys.level.seal, key_wrap)?;
            let taken = SessionObject::take_in(session, &Mechanism::Des3Ecb, tzpk.handle, block)?;
            let key = SessionObject::block_key_to_wrap(session, keys.level.wrapped, &data)?;
            taken.wrapped_under(&Mechanism::AesKeyWrapPad, key.handle)
        })?;
        Ok([&salt[..], &wrapped].concat())
    }

    /// Of a fill within A to F. Another one is not found out here: the token can't read digits.
    fn keep_iso_3(&self, key_wrap: &[u8], block: &[u8; 8], account: &AccountDigits) -> Result<[u8; 8], Error> {
        self.tdes_budget.take()?;
        let mask = iso_1_to_iso_3(account).to_be_bytes();
        self.call(|session, keys| {
            let tzpk = SessionObject::unwrap_tzpk_to_unwrap(session, keys.level.seal, key_wrap)?;
            let taken = SessionObject::take_in(session, &Mechanism::Des3Ecb, tzpk.handle, block)?;
            taken.wrapped_under(&Mechanism::Des3Cbc(mask), keys.level.iso_3)
        })
    }

    /// Of a fill of A; none where the last byte says that it is another.
    fn keep_iso_4(&self, key_wrap: &[u8], block: &[u8; 8], account: &AccountDigits) -> Result<Option<[u8; 16]>, Error> {
        let mut random = [0; 8];
        self.random(&mut random)?;
        let mask = iso_1_to_iso_4(u64::from_be_bytes(random)).to_be_bytes();
        self.call(|session, keys| {
            let tzpk = SessionObject::unwrap_tzpk_to_unwrap(session, keys.level.seal, key_wrap)?;
            if !ends_with_a(session, &tzpk, block)? {
                return Ok(None);
            }
            let taken = SessionObject::take_in(session, &Mechanism::Des3Ecb, tzpk.handle, block)?;
            // The 8 bytes are filled up with zeros, so that the vector's last 8 are the random half: `E(PIN field)`.
            let first: [u8; 16] = taken.wrapped_under(&Mechanism::AesCbc(mask), keys.level.iso_4)?;
            let second = (u128::from_be_bytes(first) ^ account_field(account)).to_be_bytes();
            let mut kept = [0; 16];
            session.encrypt(&Mechanism::AesEcb, keys.level.iso_4, &second, &mut kept)?;
            Ok(Some(kept))
        })
    }
}

/// The last byte of a block is fill for every length of PIN. Made to look like padding of one byte, it lets the block
/// pass where it is AA; of 256 other bytes at most seven could.
pub(super) fn ends_with_a(session: Calls<'_>, tzpk: &SessionObject<'_>, block: &[u8]) -> Result<bool, CallError> {
    let padded = Mechanism::Des3CbcPad(FILL_A_AS_PADDING.to_be_bytes());
    match SessionObject::take_in(session, &padded, tzpk.handle, block) {
        Ok(_) => Ok(true),
        Err(CallError::Pkcs11(RvError::EncryptedDataInvalid | RvError::WrappedKeyInvalid, _)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Under a fresh tzpk, which is then known to the device alone.
fn give_out(
    session: Calls<'_>,
    device: &DeviceKey,
    block: &SessionObject<'_>,
) -> Result<(WrappedTzpk, [u8; 8]), CallError> {
    let tzpk = SessionObject::generate_tzpk_to_wrap(session)?;
    let wrapped = wrapped_for(session, device, &tzpk)?;
    Ok((wrapped, block.wrapped_under(&Mechanism::Des3Ecb, tzpk.handle)?))
}

fn wrapped_for(session: Calls<'_>, device: &DeviceKey, tzpk: &SessionObject<'_>) -> Result<WrappedTzpk, CallError> {
    let (modulus, exponent) = device.numbers();
    let device = SessionObject::device_key(session, modulus, exponent)?;
    let wrapped = tzpk.wrapped_for(&device, modulus.len())?;
    let mut zero = [0; 8];
    session.encrypt(&Mechanism::Des3Ecb, tzpk.handle, &[0; 8], &mut zero)?;
    Ok(WrappedTzpk { wrapped, check_value: CheckValue::first_of(&zero) })
}

/// What the key of a block is derived from: SHA-256 of what it is for, a salt and the account number.
fn block_key_data(salt: &[u8], account: &AccountDigits) -> [u8; 32] {
    let mut hash = Context::new(&SHA256);
    hash.update(BLOCK_KEY_HEAD);
    hash.update(salt);
    hash.update(account.as_slice());
    let mut data = [0; 32];
    data.iter_mut().zip(hash.finish().as_ref()).for_each(|(place, byte)| *place = *byte);
    data
}
