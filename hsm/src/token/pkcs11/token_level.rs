//! A PKCS#11 token at level `token`: a block is unwrapped under the tzpk as a secret object and wrapped out in its stored
//! form, and so back. No call of this module decrypts, and none reads a value.
//!
//! An initialisation vector of CBC is an XOR inside the token: it changes the control nibble and binds the account.

use aws_lc_rs::digest::{Context, SHA256};
use cryptoki::{
    error::{Error as CallError, RvError},
    mechanism::Mechanism,
    object::ObjectHandle,
};

use super::{
    Pkcs11Token,
    ffi::Calls,
    keys::{KeyHandles, TokenKeys},
    objects::{SessionObject, WRAPPED_BLOCK_BYTES, WRAPPED_TZPK_BYTES},
};
use crate::{
    block::{AccountDigits, FILL_A_AS_PADDING, account_field, iso_1_to_iso_3, iso_1_to_iso_4},
    check_value::Kcv,
    config::TokenForm,
    device_key::DeviceKey,
    error::{Error, Refusal},
    sealed::{Bound, EncryptedBlock, KeyVersion, SealedTzpk},
    token::{IssuedTzpk, StoredBlock, Token, TokenLevel, WrappedTzpk},
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
            let seal = *keys.level.seal.newest();
            let key_wrap: [u8; WRAPPED_TZPK_BYTES] = tzpk.wrapped_under(&Mechanism::AesKeyWrap, seal)?;
            Ok((wrapped, key_wrap))
        })?;
        Ok(IssuedTzpk { wrapped, sealed: self.sealed(&key_wrap, bound)? })
    }

    fn take_in(
        &self,
        (seal, sealed): (KeyVersion, &SealedTzpk),
        bound: &Bound,
        block: &EncryptedBlock,
        form: TokenForm,
        account: &AccountDigits,
    ) -> Result<Vec<u8>, Error> {
        let sent =
            SentBlock { seal, key_wrap: self.opened(sealed, bound, WRAPPED_TZPK_BYTES)?, block: block.as_bytes() };
        match form {
            TokenForm::Wrapped => Ok(self.keep_wrapped(&sent, account)?),
            TokenForm::Iso3 => Ok(self.keep_iso_3(&sent, account)?.to_vec()),
            TokenForm::Iso4 => match self.keep_iso_4(&sent, account)? {
                Some(kept) => Ok(kept.to_vec()),
                None => Err(Refusal::MalformedBlock.into()),
            },
        }
    }

    fn send_out(
        &self,
        stored: StoredBlock<'_>,
        account: &AccountDigits,
        device: &DeviceKey,
    ) -> Result<(WrappedTzpk, EncryptedBlock), Error> {
        let stored = KeptBlock::of(stored, account)?;
        let (wrapped, block) = self.call_with(|session, keys| {
            Some(stored.take_in(session, keys)?.and_then(|block| give_out(session, device, &block)))
        })?;
        Ok((wrapped, EncryptedBlock::from_bytes(&block)?))
    }

    fn store_again(&self, stored: StoredBlock<'_>, account: &AccountDigits) -> Result<Vec<u8>, Error> {
        let before = KeptBlock::of(stored, account)?;
        match before {
            KeptBlock::Wrapped { .. } => {
                let (salt, data) = self.fresh_block_key(account)?;
                let wrapped = self.call_with(|session, keys| {
                    let block = before.take_in(session, keys)?;
                    Some(block.and_then(|block| wrapped_block(session, keys, &block, &data)))
                })?;
                Ok([&salt[..], &wrapped].concat())
            }
            KeptBlock::Iso3 { mask, .. } => {
                self.tdes_budget.take(self.newest.storage.tdes)?;
                let kept: [u8; 8] =
                    self.call_with(|session, keys| {
                        let block = before.take_in(session, keys)?;
                        Some(block.and_then(|block| {
                            block.wrapped_under(&Mechanism::Des3Cbc(mask), *keys.level.iso_3.newest())
                        }))
                    })?;
                Ok(kept.to_vec())
            }
        }
    }
}

/// A block as its device sent it, and the tzpk it is under.
struct SentBlock<'a> {
    seal: KeyVersion,
    key_wrap: &'a [u8],
    block: &'a [u8; 8],
}

impl SentBlock<'_> {
    /// The tzpk as an object that can only take a block in; none where its seal key is not here.
    fn tzpk<'a>(
        &self,
        session: Calls<'a>,
        keys: &KeyHandles<TokenKeys>,
    ) -> Option<Result<SessionObject<'a>, CallError>> {
        let seal = keys.level.seal.get(self.seal)?;
        Some(SessionObject::unwrap_tzpk_to_unwrap(session, *seal, self.key_wrap))
    }

    /// The block as an object that can only be wrapped.
    fn taken_in<'a>(
        &self,
        session: Calls<'a>,
        keys: &KeyHandles<TokenKeys>,
    ) -> Option<Result<SessionObject<'a>, CallError>> {
        let tzpk = self.tzpk(session, keys)?;
        Some(tzpk.and_then(|tzpk| SessionObject::take_in(session, &Mechanism::Des3Ecb, tzpk.handle, self.block)))
    }
}

/// A kept block, and what it takes to take it in again.
enum KeptBlock<'a> {
    Wrapped { key: KeyVersion, data: [u8; 32], wrapped: &'a [u8] },
    Iso3 { key: KeyVersion, mask: [u8; 8], block: &'a [u8] },
}

impl<'a> KeptBlock<'a> {
    /// Format 4 takes a decryption to open, and so stays closed.
    fn of(StoredBlock { form, key, bytes }: StoredBlock<'a>, account: &AccountDigits) -> Result<Self, Error> {
        match form {
            TokenForm::Wrapped => {
                let (salt, wrapped) = bytes.split_at_checked(SALT_BYTES).unwrap_or_default();
                Ok(Self::Wrapped { key, data: block_key_data(salt, account), wrapped })
            }
            TokenForm::Iso3 => Ok(Self::Iso3 { key, mask: iso_1_to_iso_3(account).to_be_bytes(), block: bytes }),
            TokenForm::Iso4 => Err(Error::WriteOnly),
        }
    }

    /// As an object that can only be wrapped; none where its storage key is not here.
    fn take_in<'s>(
        &self,
        session: Calls<'s>,
        keys: &KeyHandles<TokenKeys>,
    ) -> Option<Result<SessionObject<'s>, CallError>> {
        match self {
            Self::Wrapped { key, data, wrapped } => {
                let storage = *keys.level.wrapped.get(*key)?;
                Some(
                    SessionObject::block_key_to_unwrap(session, storage, data).and_then(|key| {
                        SessionObject::take_in(session, &Mechanism::AesKeyWrapPad, key.handle, wrapped)
                    }),
                )
            }
            Self::Iso3 { key, mask, block } => {
                let storage = *keys.level.iso_3.get(*key)?;
                Some(SessionObject::take_in(session, &Mechanism::Des3Cbc(*mask), storage, block))
            }
        }
    }
}

/// A block under a key of its account and of a salt, derived from the newest storage key.
fn wrapped_block(
    session: Calls<'_>,
    keys: &KeyHandles<TokenKeys>,
    block: &SessionObject<'_>,
    data: &[u8; 32],
) -> Result<[u8; WRAPPED_BLOCK_BYTES], CallError> {
    let key = SessionObject::block_key_to_wrap(session, *keys.level.wrapped.newest(), data)?;
    block.wrapped_under(&Mechanism::AesKeyWrapPad, key.handle)
}

impl Pkcs11Token<TokenKeys> {
    /// A salt, and what a block's key is derived from: the same block is never stored alike.
    fn fresh_block_key(&self, account: &AccountDigits) -> Result<([u8; SALT_BYTES], [u8; 32]), Error> {
        let mut salt = [0; SALT_BYTES];
        self.random(&mut salt)?;
        Ok((salt, block_key_data(&salt, account)))
    }

    /// Of any fill, as it came.
    fn keep_wrapped(&self, sent: &SentBlock<'_>, account: &AccountDigits) -> Result<Vec<u8>, Error> {
        let (salt, data) = self.fresh_block_key(account)?;
        let wrapped = self.call_with(|session, keys| {
            let taken = sent.taken_in(session, keys)?;
            Some(taken.and_then(|taken| wrapped_block(session, keys, &taken, &data)))
        })?;
        Ok([&salt[..], &wrapped].concat())
    }

    /// Of a fill within A to F. Another one is not found out here: the token can't read digits.
    fn keep_iso_3(&self, sent: &SentBlock<'_>, account: &AccountDigits) -> Result<[u8; 8], Error> {
        self.tdes_budget.take(self.newest.storage.tdes)?;
        let mask = iso_1_to_iso_3(account).to_be_bytes();
        self.call_with(|session, keys| {
            let taken = sent.taken_in(session, keys)?;
            Some(taken.and_then(|taken| taken.wrapped_under(&Mechanism::Des3Cbc(mask), *keys.level.iso_3.newest())))
        })
    }

    /// Of a fill of A; none where the last byte says that it is another.
    fn keep_iso_4(&self, sent: &SentBlock<'_>, account: &AccountDigits) -> Result<Option<[u8; 16]>, Error> {
        let mut random = [0; 8];
        self.random(&mut random)?;
        let mask = iso_1_to_iso_4(u64::from_be_bytes(random)).to_be_bytes();
        let keep = |session: Calls<'_>, storage: ObjectHandle, tzpk: &SessionObject<'_>| {
            if !ends_with_a(session, tzpk, sent.block)? {
                return Ok(None);
            }
            let taken = SessionObject::take_in(session, &Mechanism::Des3Ecb, tzpk.handle, sent.block)?;
            // The 8 bytes are filled up with zeros, so that the vector's last 8 are the random half: `E(PIN field)`.
            let first: [u8; 16] = taken.wrapped_under(&Mechanism::AesCbc(mask), storage)?;
            let second = (u128::from_be_bytes(first) ^ account_field(account)).to_be_bytes();
            let mut kept = [0; 16];
            session.encrypt(&Mechanism::AesEcb, storage, &second, &mut kept)?;
            Ok(Some(kept))
        };
        self.call_with(|session, keys| {
            let tzpk = sent.tzpk(session, keys)?;
            Some(tzpk.and_then(|tzpk| keep(session, *keys.level.iso_4.newest(), &tzpk)))
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
    Ok(WrappedTzpk { wrapped, check_value: Kcv::first_of(&zero) })
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
