//! A PKCS#11 token at level `token`: the token unwraps a block under the tzpk as a sensitive object and wraps the object under
//! the storage key, and the reverse. No call of this module decrypts a block or reads a value.
//!
//! A CBC initialisation vector is an XOR inside the token: it changes the control nibble and binds the PAN.

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
use hsm_protocol::{
    Bound, DeviceKey, EncryptedBlock, Error, Kcv, KeyVersion, Mgf1Hash, Refusal, SealedTzpk, ZoneFormat,
};

use crate::{
    block::{AccountDigits, FILL_A_AS_PADDING, account_field, iso_1_to_iso_3, iso_1_to_iso_4},
    config::TokenForm,
    token::{IssuedTzpk, StorageKey, StoredBlock, Token, TokenLevel, WrappedTzpk},
    zones::ZoneKeyRef,
};

/// Random bytes that diversify the key of each stored block.
const SALT_BYTES: usize = 16;
/// The prefix of the hashed data that derives such a key. No other hashed data begins with it.
const BLOCK_KEY_HEAD: &[u8] = b"pinseal wrapped block 1 ";

impl TokenLevel for Pkcs11Token<TokenKeys> {
    fn issue_tzpk(&self, device: &DeviceKey, bound: &Bound) -> Result<IssuedTzpk, Error> {
        self.check_mgf1(device)?;
        let issued = self.call(|session, keys| {
            let tzpk = SessionObject::generate_tzpk(session)?;
            let Some(wrapped) = wrap_tzpk_for(session, device, &tzpk)? else {
                return Ok(None);
            };
            let seal = *keys.level.seal.newest();
            let key_wrap: [u8; WRAPPED_TZPK_BYTES] = tzpk.wrapped_under(&Mechanism::AesKeyWrap, seal)?;
            Ok(Some((wrapped, key_wrap)))
        })?;
        let (wrapped, key_wrap) = issued.ok_or(Error::Mgf1NotSupported)?;
        Ok(IssuedTzpk { wrapped, sealed: self.sealed(&key_wrap, bound)? })
    }

    fn reencrypt_for_storage(
        &self,
        (seal, sealed): (KeyVersion, &SealedTzpk),
        bound: &Bound,
        block: &EncryptedBlock,
        under: StorageKey,
        account: &AccountDigits,
    ) -> Result<Vec<u8>, Error> {
        let sent = SentUnder::Tzpk { seal, key_wrap: self.opened(sealed, bound, WRAPPED_TZPK_BYTES)? };
        self.store(&SentBlock { under: sent, block: block.as_bytes() }, under, account)
    }

    fn reencrypt_zone_for_storage(
        &self,
        key: ZoneKeyRef<'_>,
        block: &EncryptedBlock,
        under: StorageKey,
        account: &AccountDigits,
    ) -> Result<Vec<u8>, Error> {
        self.store(&SentBlock { under: SentUnder::Zone(key), block: block.as_bytes() }, under, account)
    }

    fn reencrypt_for_zone(
        &self,
        stored: StoredBlock<'_>,
        account: &AccountDigits,
        key: ZoneKeyRef<'_>,
        format: ZoneFormat,
    ) -> Result<[u8; 8], Error> {
        // An unwrapped block is of format 1; the CBC vector turns it into format 3.
        let mechanism = match format {
            ZoneFormat::Iso1 => Mechanism::Des3Ecb,
            ZoneFormat::Iso3 => Mechanism::Des3Cbc(iso_1_to_iso_3(account).to_be_bytes()),
            ZoneFormat::Iso0 | ZoneFormat::Iso4 => return Err(Error::TranslationNotAllowed),
        };
        let stored = Unwrapping::new(stored, account)?;
        self.call_with(|session, keys| {
            let zone = keys.zone(key)?;
            let block = stored.unwrap(session, keys)?;
            Some(block.and_then(|block| block.wrapped_under(&mechanism, zone)))
        })
    }

    fn reencrypt_for_device(
        &self,
        stored: StoredBlock<'_>,
        account: &AccountDigits,
        device: &DeviceKey,
    ) -> Result<(WrappedTzpk, EncryptedBlock), Error> {
        self.check_mgf1(device)?;
        let stored = Unwrapping::new(stored, account)?;
        let shown = self.call_with(|session, keys| {
            Some(stored.unwrap(session, keys)?.and_then(|block| wrap_block_for(session, device, &block)))
        })?;
        let (wrapped, block) = shown.ok_or(Error::Mgf1NotSupported)?;
        Ok((wrapped, EncryptedBlock::from_bytes(&block)?))
    }

    fn reencrypt_stored(
        &self,
        stored: StoredBlock<'_>,
        under: KeyVersion,
        account: &AccountDigits,
    ) -> Result<Vec<u8>, Error> {
        let stored = Unwrapping::new(stored, account)?;
        match stored {
            Unwrapping::Wrapped { .. } => {
                let (salt, data) = self.fresh_block_key(account)?;
                let wrapped = self.call_with(|session, keys| {
                    let (block, storage) = (stored.unwrap(session, keys)?, *keys.level.wrapped.get(under)?);
                    Some(block.and_then(|block| wrap_block(session, storage, &block, &data)))
                })?;
                Ok([&salt[..], &wrapped].concat())
            }
            Unwrapping::Iso3 { mask, .. } => {
                self.tdes_budget.take(under)?;
                let rewrapped: [u8; 8] = self.call_with(|session, keys| {
                    let (block, storage) = (stored.unwrap(session, keys)?, *keys.level.iso_3.get(under)?);
                    Some(block.and_then(|block| block.wrapped_under(&Mechanism::Des3Cbc(mask), storage)))
                })?;
                Ok(rewrapped.to_vec())
            }
        }
    }
}

/// A block as its device or zone sent it.
struct SentBlock<'a> {
    under: SentUnder<'a>,
    block: &'a [u8; 8],
}

/// The key of a sent block.
enum SentUnder<'a> {
    /// A tzpk, wrapped under a version of the seal key.
    Tzpk { seal: KeyVersion, key_wrap: &'a [u8] },
    /// A zone key, which is an object of the token.
    Zone(ZoneKeyRef<'a>),
}

/// The key object of a sent block, which can unwrap.
enum SentKey<'a> {
    Tzpk(SessionObject<'a>),
    Zone(ObjectHandle),
}

impl SentKey<'_> {
    fn handle(&self) -> ObjectHandle {
        match self {
            Self::Tzpk(tzpk) => tzpk.handle,
            Self::Zone(zone) => *zone,
        }
    }
}

impl SentBlock<'_> {
    /// The key as an object that unwraps and does not decrypt; `None` where the token lacks the seal key or zone key.
    fn key<'a>(&self, session: Calls<'a>, keys: &KeyHandles<TokenKeys>) -> Option<Result<SentKey<'a>, CallError>> {
        match self.under {
            SentUnder::Tzpk { seal, key_wrap } => {
                let seal = keys.level.seal.get(seal)?;
                Some(SessionObject::unwrap_tzpk_to_unwrap(session, *seal, key_wrap).map(SentKey::Tzpk))
            }
            SentUnder::Zone(key) => keys.zone(key).map(|zone| Ok(SentKey::Zone(zone))),
        }
    }

    /// The block as an object that can only be wrapped; `None` where the token lacks the seal key or zone key.
    fn unwrap<'a>(
        &self,
        session: Calls<'a>,
        keys: &KeyHandles<TokenKeys>,
    ) -> Option<Result<SessionObject<'a>, CallError>> {
        let key = self.key(session, keys)?;
        Some(key.and_then(|key| SessionObject::unwrap_block(session, &Mechanism::Des3Ecb, key.handle(), self.block)))
    }
}

/// The input for unwrapping a stored block.
enum Unwrapping<'a> {
    Wrapped { key: KeyVersion, data: [u8; 32], wrapped: &'a [u8] },
    Iso3 { key: KeyVersion, mask: [u8; 8], block: &'a [u8] },
}

impl<'a> Unwrapping<'a> {
    /// Format 4 needs a decryption, which no key at this level allows.
    fn new(StoredBlock { form, key, bytes }: StoredBlock<'a>, account: &AccountDigits) -> Result<Self, Error> {
        match form {
            TokenForm::Wrapped => {
                let (salt, wrapped) = bytes.split_at_checked(SALT_BYTES).unwrap_or_default();
                Ok(Self::Wrapped { key, data: block_key_data(salt, account), wrapped })
            }
            TokenForm::Iso3 => Ok(Self::Iso3 { key, mask: iso_1_to_iso_3(account).to_be_bytes(), block: bytes }),
            TokenForm::Iso4 => Err(Error::WriteOnly),
        }
    }

    /// The block as an object that can only be wrapped; `None` where the token lacks the storage key.
    fn unwrap<'s>(
        &self,
        session: Calls<'s>,
        keys: &KeyHandles<TokenKeys>,
    ) -> Option<Result<SessionObject<'s>, CallError>> {
        match self {
            Self::Wrapped { key, data, wrapped } => {
                let storage = *keys.level.wrapped.get(*key)?;
                Some(SessionObject::block_key_to_unwrap(session, storage, data).and_then(|key| {
                    SessionObject::unwrap_block(session, &Mechanism::AesKeyWrapPad, key.handle, wrapped)
                }))
            }
            Self::Iso3 { key, mask, block } => {
                let storage = *keys.level.iso_3.get(*key)?;
                Some(SessionObject::unwrap_block(session, &Mechanism::Des3Cbc(*mask), storage, block))
            }
        }
    }
}

/// Wraps a block under a key derived from a storage key, the salt and the PAN.
fn wrap_block(
    session: Calls<'_>,
    storage: ObjectHandle,
    block: &SessionObject<'_>,
    data: &[u8; 32],
) -> Result<[u8; WRAPPED_BLOCK_BYTES], CallError> {
    let key = SessionObject::block_key_to_wrap(session, storage, data)?;
    block.wrapped_under(&Mechanism::AesKeyWrapPad, key.handle)
}

impl Pkcs11Token<TokenKeys> {
    /// A call with MGF1-SHA-1 that fails costs the connection, so a token that failed its probe gets none.
    fn check_mgf1(&self, device: &DeviceKey) -> Result<(), Error> {
        let is_refused = device.mgf1() == Mgf1Hash::Sha1 && !self.has_mgf1_sha1;
        if is_refused { Err(Error::Mgf1NotSupported) } else { Ok(()) }
    }

    /// A random salt and the derivation data of the block's key. The salt makes equal blocks differ in storage.
    fn fresh_block_key(&self, account: &AccountDigits) -> Result<([u8; SALT_BYTES], [u8; 32]), Error> {
        let mut salt = [0; SALT_BYTES];
        self.random(&mut salt)?;
        Ok((salt, block_key_data(&salt, account)))
    }

    fn store(
        &self,
        sent: &SentBlock<'_>,
        StorageKey { form, version }: StorageKey,
        account: &AccountDigits,
    ) -> Result<Vec<u8>, Error> {
        match form {
            TokenForm::Wrapped => Ok(self.store_wrapped(sent, version, account)?),
            TokenForm::Iso3 => Ok(self.store_iso_3(sent, version, account)?.to_vec()),
            TokenForm::Iso4 => match self.store_iso_4(sent, version, account)? {
                Some(stored) => Ok(stored.to_vec()),
                None => Err(Refusal::MalformedBlock.into()),
            },
        }
    }

    /// Stores a block with any fill, unchanged.
    fn store_wrapped(
        &self,
        sent: &SentBlock<'_>,
        version: KeyVersion,
        account: &AccountDigits,
    ) -> Result<Vec<u8>, Error> {
        let (salt, data) = self.fresh_block_key(account)?;
        let wrapped = self.call_with(|session, keys| {
            let (block, storage) = (sent.unwrap(session, keys)?, *keys.level.wrapped.get(version)?);
            Some(block.and_then(|block| wrap_block(session, storage, &block, &data)))
        })?;
        Ok([&salt[..], &wrapped].concat())
    }

    /// Stores a block with a fill of A to F. The token can't check the fill.
    fn store_iso_3(
        &self,
        sent: &SentBlock<'_>,
        version: KeyVersion,
        account: &AccountDigits,
    ) -> Result<[u8; 8], Error> {
        self.tdes_budget.take(version)?;
        let mask = iso_1_to_iso_3(account).to_be_bytes();
        self.call_with(|session, keys| {
            let (block, storage) = (sent.unwrap(session, keys)?, *keys.level.iso_3.get(version)?);
            Some(block.and_then(|block| block.wrapped_under(&Mechanism::Des3Cbc(mask), storage)))
        })
    }

    /// Stores a block with a fill of A; `None` where the last byte shows another fill.
    fn store_iso_4(
        &self,
        sent: &SentBlock<'_>,
        version: KeyVersion,
        account: &AccountDigits,
    ) -> Result<Option<[u8; 16]>, Error> {
        let mut random = [0; 8];
        self.random(&mut random)?;
        let mask = iso_1_to_iso_4(u64::from_be_bytes(random)).to_be_bytes();
        let store = |session: Calls<'_>, storage: ObjectHandle, key: &SentKey<'_>| {
            if !ends_with_a(session, key.handle(), sent.block)? {
                return Ok(None);
            }
            let block = SessionObject::unwrap_block(session, &Mechanism::Des3Ecb, key.handle(), sent.block)?;
            // C_WrapKey pads the 8 bytes with zeros, so the last 8 bytes of the vector become the random half of the PIN field.
            let first: [u8; 16] = block.wrapped_under(&Mechanism::AesCbc(mask), storage)?;
            let second = (u128::from_be_bytes(first) ^ account_field(account)).to_be_bytes();
            let mut stored = [0; 16];
            session.encrypt(&Mechanism::AesEcb, storage, &second, &mut stored)?;
            Ok(Some(stored))
        };
        self.call_with(|session, keys| {
            let (key, storage) = (sent.key(session, keys)?, *keys.level.iso_4.get(version)?);
            Some(key.and_then(|key| store(session, storage, &key)))
        })
    }
}

/// Whether the last byte of a block, which is fill for every PIN length, is AA. The CBC vector turns AA into 01, a valid PKCS
/// #7 padding. Of the 255 other values at most seven give a valid padding.
pub(super) fn ends_with_a(session: Calls<'_>, key: ObjectHandle, block: &[u8]) -> Result<bool, CallError> {
    let padded = Mechanism::Des3CbcPad(FILL_A_AS_PADDING.to_be_bytes());
    match SessionObject::unwrap_block(session, &padded, key, block) {
        Ok(_) => Ok(true),
        Err(CallError::Pkcs11(RvError::EncryptedDataInvalid | RvError::WrappedKeyInvalid, _)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Wraps a block under a fresh tzpk. Only the device learns the tzpk. `None` where the token refuses MGF1-SHA-1.
fn wrap_block_for(
    session: Calls<'_>,
    device: &DeviceKey,
    block: &SessionObject<'_>,
) -> Result<Option<(WrappedTzpk, [u8; 8])>, CallError> {
    let tzpk = SessionObject::generate_tzpk_to_wrap(session)?;
    let Some(wrapped) = wrap_tzpk_for(session, device, &tzpk)? else { return Ok(None) };
    Ok(Some((wrapped, block.wrapped_under(&Mechanism::Des3Ecb, tzpk.handle)?)))
}

/// Wraps a tzpk for its device, and computes its KCV. `None` where the token refuses MGF1-SHA-1.
fn wrap_tzpk_for(
    session: Calls<'_>,
    device: &DeviceKey,
    tzpk: &SessionObject<'_>,
) -> Result<Option<WrappedTzpk>, CallError> {
    use RvError::{ArgumentsBad, MechanismInvalid, MechanismParamInvalid};
    let ((modulus, exponent), mgf1) = (device.numbers(), device.mgf1());
    let device = SessionObject::device_key(session, modulus, exponent)?;
    let wrapped = match tzpk.wrapped_for(&device, modulus.len(), mgf1) {
        Err(CallError::Pkcs11(ArgumentsBad | MechanismInvalid | MechanismParamInvalid, _))
            if mgf1 == Mgf1Hash::Sha1 =>
        {
            return Ok(None);
        }
        wrapped => wrapped?,
    };
    let mut zero = [0; 8];
    session.encrypt(&Mechanism::Des3Ecb, tzpk.handle, &[0; 8], &mut zero)?;
    Ok(Some(WrappedTzpk { wrapped, check_value: Kcv::first_of(&zero) }))
}

/// The derivation data of a block's key: SHA-256 of prefix, salt and PAN digits.
fn block_key_data(salt: &[u8], account: &AccountDigits) -> [u8; 32] {
    let mut hash = Context::new(&SHA256);
    hash.update(BLOCK_KEY_HEAD);
    hash.update(salt);
    hash.update(account.as_slice());
    let mut data = [0; 32];
    data.iter_mut().zip(hash.finish().as_ref()).for_each(|(place, byte)| *place = *byte);
    data
}
