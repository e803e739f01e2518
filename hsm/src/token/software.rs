//! The software token: keys in this process's memory, ciphers of RustCrypto and AWS-LC.
//!
//! Each key stays in memory as its schedule, and a 3DES key of a zone or of records also as its bytes, for batches. All other
//! copies of the key bytes are wiped.

use std::cell::RefCell;

use aes::{
    Aes256,
    cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit},
};
use aws_lc_rs::{
    aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey},
    digest, rand,
};
use bitslice_des::Batch;
use des::TdesEde2;

use super::{
    BatchKeys, HostLevel, IssuedTzpk, RETRY_HEAD, Token, VerificationKey, WrappedTzpk,
    aes_chain::{CmacKey, encrypt_chain},
    host_tzpk, ibm_3624_name,
    tdes_budget::TdesBudget,
    tdes_cipher::TdesCipher,
    zone_ciphers::{ZoneCiphers, decrypt_iso_4},
};
use hsm_protocol::{
    ACCOUNT_BYTES, Bound, DeviceKey, Error, Ibm3624Name, Kcv, KeyId, KeyVersion, LayoutError, NONCE_BYTES,
    RECORD_MESSAGE_BYTES_MAX, SealedTzpk, StorageFormat, StorageVersions, TAG_BYTES, ZoneName,
};

use crate::{
    clear::{Block, Clear, Tzpk, WideBlock},
    keyring::{ClearZoneKey, KeyMode, KeyUsage, Keys, VerificationKeyInfo, Versions, ZoneKeyInfo},
    versioned::Versioned,
    zones::ZoneKeyRef,
};

/// The prepared keys of a vault.
pub(crate) struct Software {
    storage: Versioned<Aes256>,
    storage_tdes: Versioned<TdesCipher>,
    tdes_budget: TdesBudget,
    // GCM-SIV (RFC 8452), not GCM: GCM allows 2^32 messages with random nonces (NIST SP 800-38D, 8.3), days at full load.
    seal: Versioned<LessSafeKey>,
    account: LessSafeKey,
    record: CmacKey,
    retry: CmacKey,
    one_way: Option<Versioned<CmacKey>>,
    verification: Vec<(VerificationKeyInfo, TdesEde2)>,
    zones: ZoneCiphers,
    keys: Vec<KeyId>,
    versions: Versions,
}

impl Software {
    /// Prepares the keys of an open vault. The result is boxed, so that schedules are only in the box and in stack
    /// frames below the caller's, which the caller scrubs.
    pub(crate) fn new(keys: &Keys, zone_keys: Vec<ClearZoneKey>, tdes_budget: TdesBudget) -> Result<Box<Self>, Error> {
        let versions = Versions {
            storage: StorageVersions {
                wrapped: keys.storage.version(),
                iso_4: keys.storage.version(),
                tdes: keys.storage_tdes.version(),
                one_way: keys.one_way.as_ref().map_or(KeyVersion(0), Versioned::version),
            },
            seal: keys.seal.version(),
            account: keys.account.version(),
        };
        let mut key_ids = aes_key_ids(&KeyUsage::Storage, &keys.storage);
        let tdes = keys.storage_tdes.iter();
        key_ids.extend(tdes.map(|(version, key)| key_id(&KeyUsage::StorageTdes, version, tzpk_kcv(key))));
        key_ids.extend(keys.one_way.iter().flat_map(|keys| aes_key_ids(&KeyUsage::StorageOneWay, keys)));
        key_ids.extend(aes_key_ids(&KeyUsage::Seal, &keys.seal));
        key_ids.extend(aes_key_ids(&KeyUsage::Account, &keys.account));
        Ok(Box::new(Self {
            storage: keys.storage.prepared(|key| Ok::<_, Error>(Aes256::new(key.bytes().into())))?,
            storage_tdes: keys.storage_tdes.prepared(|key| Ok::<_, Error>(TdesCipher::double(key.bytes())))?,
            tdes_budget,
            seal: keys.seal.prepared(|key| aead(key))?,
            account: aead(keys.account.newest())?,
            record: CmacKey::new(keys.record.newest()),
            retry: CmacKey::new(keys.retry.newest()),
            one_way: match &keys.one_way {
                Some(keys) => Some(keys.prepared(|key| Ok::<_, Error>(CmacKey::new(key)))?),
                None => None,
            },
            verification: keys
                .verification
                .iter()
                .map(|(info, key)| (info.clone(), TdesEde2::new(key.bytes().into())))
                .collect(),
            zones: ZoneCiphers::new(zone_keys)?,
            keys: key_ids,
            versions,
        }))
    }
}

fn aes_key_ids(name: &KeyUsage, keys: &Versioned<Box<Clear<32>>>) -> Vec<KeyId> {
    keys.iter().map(|(version, key)| key_id(name, version, aes_kcv(key))).collect()
}

fn key_id(name: &KeyUsage, version: KeyVersion, kcv: Kcv) -> KeyId {
    KeyId { usage: name.clone(), version, kcv: Some(kcv) }
}

impl Token for Software {
    fn name(&self) -> &'static str {
        "software"
    }

    fn keys(&self) -> Vec<KeyId> {
        self.keys.clone()
    }

    fn current(&self) -> Versions {
        self.versions
    }

    fn has_storage_key(&self, form: StorageFormat, key: KeyVersion) -> bool {
        match form {
            StorageFormat::Wrapped | StorageFormat::Iso4 => self.storage.get(key).is_some(),
            StorageFormat::Iso3 | StorageFormat::Iso0 => self.storage_tdes.get(key).is_some(),
            StorageFormat::OneWay => self.one_way.as_ref().is_some_and(|keys| keys.get(key).is_some()),
        }
    }

    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    fn random(&self, bytes: &mut [u8]) -> Result<(), Error> {
        RANDOM.with_borrow_mut(|pool| pool.take(bytes))
    }

    fn seal_account(&self, digits: &mut [u8; ACCOUNT_BYTES], bound: &Bound) -> Result<[u8; TAG_BYTES], Error> {
        seal(&self.account, &account_nonce(bound), bound, digits)
    }

    fn open_account(&self, sealed: &[u8], bound: &Bound, digits: &mut [u8; ACCOUNT_BYTES]) -> Result<(), Error> {
        let mut buffer = Clear::<{ ACCOUNT_BYTES + TAG_BYTES }>::zeroed();
        let nonce = Nonce::assume_unique_for_key(account_nonce(bound));
        open(&self.account, nonce, bound, sealed, buffer.bytes_mut(), digits).ok_or(broken("account"))
    }

    fn record_tag(&self, record: &[u8], bound: &Bound) -> Result<[u8; TAG_BYTES], Error> {
        Ok(self.record.tag(joined(&mut [0; RECORD_MESSAGE_BYTES_MAX], &[bound.as_ref(), record])?))
    }

    fn retry_tag(&self, control: &[u8; 16], block: &[u8; 8]) -> Result<[u8; TAG_BYTES], Error> {
        Ok(self.retry.tag(joined(&mut [0; 28], &[&RETRY_HEAD, control, block])?))
    }

    fn zone_block_tag(&self, bound: &Bound, block: &[u8]) -> Result<[u8; TAG_BYTES], Error> {
        Ok(self.retry.tag(joined(&mut [0; RECORD_MESSAGE_BYTES_MAX], &[bound.as_ref(), block])?))
    }

    fn zone_keys(&self) -> &[ZoneKeyInfo] {
        self.zones.infos()
    }

    fn verification_keys(&self) -> Vec<KeyId> {
        self.verification.iter().map(|(info, _)| info.id.clone()).collect()
    }
}

impl HostLevel for Software {
    fn issue_tzpk(&self, device: &DeviceKey, bound: &Bound, tzpk: &mut Tzpk) -> Result<IssuedTzpk, Error> {
        let wrapped = host_tzpk(device, tzpk, fresh)?;
        let mut nonce = [0; NONCE_BYTES];
        self.random(&mut nonce)?;
        // Sealed in place: from here on `tzpk` holds ciphertext.
        let tag = seal(self.seal.newest(), &nonce, bound, tzpk.bytes_mut())?;
        let mut sealed = [0; size_of::<SealedTzpk>()];
        joined(&mut sealed, &[&nonce, tzpk.bytes(), &tag])?;
        Ok(IssuedTzpk { wrapped, sealed })
    }

    fn open_block(
        &self,
        sealed: (KeyVersion, &SealedTzpk),
        bound: &Bound,
        tzpk: &mut Tzpk,
        block: &mut Block,
    ) -> Result<(), Error> {
        self.open_tzpk(sealed, bound, tzpk)?;
        tzpk_decrypt(tzpk, block);
        Ok(())
    }

    fn batch_keys(&self) -> Option<&dyn BatchKeys> {
        Some(self)
    }

    fn send_block(&self, device: &DeviceKey, tzpk: &mut Tzpk, block: &mut Block) -> Result<WrappedTzpk, Error> {
        let wrapped = host_tzpk(device, tzpk, fresh)?;
        tzpk_encrypt(tzpk, block);
        Ok(wrapped)
    }

    fn random_for_secrets(&self, bytes: &mut [u8]) -> Result<(), Error> {
        fresh(bytes)
    }

    fn storage_encrypt_iso_4(
        &self,
        key: KeyVersion,
        pin_field: &mut WideBlock,
        account_field: u128,
    ) -> Result<(), Error> {
        encrypt_chain(self.storage.get(key).ok_or(Error::UnknownKey)?, pin_field, [account_field]);
        Ok(())
    }

    fn storage_decrypt_iso_4(&self, key: KeyVersion, block: &mut WideBlock, account_field: u128) -> Result<(), Error> {
        decrypt_iso_4(self.storage.get(key).ok_or(Error::UnknownKey)?, block, account_field);
        Ok(())
    }

    fn storage_tdes_encrypt(&self, key: KeyVersion, block: &mut Block) -> Result<(), Error> {
        let cipher = self.storage_tdes.get(key).ok_or(Error::UnknownKey)?;
        self.tdes_budget.take(key)?;
        cipher.encrypt(block);
        Ok(())
    }

    fn storage_tdes_decrypt(&self, key: KeyVersion, block: &mut Block) -> Result<(), Error> {
        self.storage_tdes.get(key).ok_or(Error::UnknownKey)?.decrypt(block);
        Ok(())
    }

    fn one_way_tag(&self, key: KeyVersion, message: &[u8]) -> Result<[u8; TAG_BYTES], Error> {
        let key = self.one_way.as_ref().and_then(|keys| keys.get(key)).ok_or(Error::UnknownKey)?;
        Ok(key.tag(message))
    }

    fn ibm_3624(&self, name: &ZoneName) -> Result<Ibm3624Name, Error> {
        ibm_3624_name(self.verification.iter().map(|(info, _)| &info.id.usage), name)
    }

    fn verification_encrypt(&self, key: VerificationKey<'_>, wanted: KeyMode, block: &mut Block) -> Result<(), Error> {
        let found = self.verification.iter().find(|(info, _)| key.names(&info.id.usage));
        let Some((_, cipher)) = found.filter(|(info, _)| info.mode.allows(wanted)) else {
            return Err(Error::NoVerificationKey);
        };
        cipher.encrypt_block(block.bytes_mut().into());
        Ok(())
    }

    fn zone_encrypt(&self, key: ZoneKeyRef<'_>, block: &mut Block) -> Result<(), Error> {
        self.zones.cipher(key)?.encrypt(block)
    }

    fn zone_decrypt(&self, key: ZoneKeyRef<'_>, block: &mut Block) -> Result<(), Error> {
        self.zones.cipher(key)?.decrypt(block)
    }

    fn zone_encrypt_iso_4(
        &self,
        key: ZoneKeyRef<'_>,
        pin_field: &mut WideBlock,
        account_field: u128,
    ) -> Result<(), Error> {
        self.zones.cipher(key)?.encrypt_iso_4(pin_field, account_field)
    }

    fn zone_decrypt_iso_4(&self, key: ZoneKeyRef<'_>, block: &mut WideBlock, account_field: u128) -> Result<(), Error> {
        self.zones.cipher(key)?.decrypt_iso_4(block, account_field)
    }
}

impl BatchKeys for Software {
    fn push_device_block(
        &self,
        sealed: (KeyVersion, &SealedTzpk),
        bound: &Bound,
        tzpk: &mut Tzpk,
        block: &[u8; 8],
        batch: &mut Batch,
    ) -> Option<usize> {
        self.open_tzpk(sealed, bound, tzpk).ok()?;
        let place = batch.len();
        batch.push_double(tzpk.bytes(), block).ok()?;
        Some(place)
    }

    fn push_zone_block(&self, key: ZoneKeyRef<'_>, block: &[u8; 8], batch: &mut Batch) -> Option<usize> {
        self.zones.cipher(key).ok()?.push(block, batch)
    }

    fn push_stored_block(&self, key: KeyVersion, block: &[u8; 8], batch: &mut Batch) -> Option<usize> {
        self.storage_tdes.get(key)?.push(block, batch)
    }
}

impl Software {
    /// Opens a sealed tzpk into `tzpk`. [`Error::SealBroken`] where it was changed or has another binding.
    fn open_tzpk(&self, (key, sealed): (KeyVersion, &SealedTzpk), bound: &Bound, tzpk: &mut Tzpk) -> Result<(), Error> {
        let seal = self.seal.get(key).ok_or(Error::UnknownKey)?;
        let mut buffer = Clear::<{ 16 + TAG_BYTES }>::zeroed();
        let (nonce, sealed) = sealed.split_at_checked(NONCE_BYTES).ok_or(broken("tzpk"))?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| broken("tzpk"))?;
        open(seal, nonce, bound, sealed, buffer.bytes_mut(), tzpk.bytes_mut()).ok_or(broken("tzpk"))
    }
}

thread_local! {
    static RANDOM: RefCell<RandomPool> = const { RefCell::new(RandomPool { bytes: Clear::ZEROED, left: 0 }) };
}

/// Random bytes drawn ahead, one pool for each thread: every call of the generator asks the processor for entropy, which takes
/// longer than all ciphers of a translation. The pool serves nonces, salts and fill; keys and PINs come from the generator itself.
struct RandomPool {
    bytes: Clear<RANDOM_POOL_BYTES>,
    left: usize,
}

/// Bytes drawn at a time.
const RANDOM_POOL_BYTES: usize = 1_024;

impl RandomPool {
    /// Moves bytes out of the pool. No byte is returned twice, and no copy stays in the pool.
    fn take(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        let failed = Error::Unavailable { reason: "the random generator failed".into() };
        if bytes.len() > RANDOM_POOL_BYTES {
            return rand::fill(bytes).map_err(|_| failed);
        }
        if bytes.len() > self.left {
            rand::fill(self.bytes.bytes_mut()).map_err(|_| failed)?;
            self.left = RANDOM_POOL_BYTES;
        }
        let from = self.left.saturating_sub(bytes.len());
        for (place, drawn) in bytes.iter_mut().zip(self.bytes.bytes_mut().iter_mut().skip(from)) {
            *place = std::mem::take(drawn);
        }
        self.left = from;
        Ok(())
    }
}

/// The bytes of this thread's pool that are left.
#[cfg(test)]
pub(crate) fn pool_left() -> usize {
    RANDOM.with_borrow(|pool| pool.left)
}

/// Random bytes for keys and PINs, from the generator itself.
fn fresh(bytes: &mut [u8]) -> Result<(), Error> {
    rand::fill(bytes).map_err(|_| Error::Unavailable { reason: "the random generator failed".into() })
}

/// Encrypts one block in place under a double-length key (3DES-EDE2).
pub(crate) fn tzpk_encrypt(key: &Tzpk, block: &mut Block) {
    TdesEde2::new(key.bytes().into()).encrypt_block(block.bytes_mut().into());
}

/// Decrypts one block in place under a double-length key.
pub(crate) fn tzpk_decrypt(key: &Tzpk, block: &mut Block) {
    TdesEde2::new(key.bytes().into()).decrypt_block(block.bytes_mut().into());
}

/// The KCV of a double-length key (ANSI X9.24-1, annex A): the first 3 bytes of the encrypted zero block.
pub(crate) fn tzpk_kcv(key: &Tzpk) -> Kcv {
    let mut zero = Block::zeroed();
    tzpk_encrypt(key, &mut zero);
    Kcv::first_of(zero.bytes())
}

/// The KCV of an AES-256 key (ANSI X9.24-1, annex A): the first 3 bytes of CMAC over 16 zero bytes.
pub(crate) fn aes_kcv(key: &Clear<32>) -> Kcv {
    Kcv::first_of(&CmacKey::new(key).tag(&[0; 16]))
}

fn aead(key: &Clear<32>) -> Result<LessSafeKey, Error> {
    let key = UnboundKey::new(&AES_256_GCM_SIV, key.bytes());
    key.map(LessSafeKey::new).map_err(|_| Error::Unavailable { reason: "AES-256-GCM-SIV is not available".into() })
}

fn seal(
    key: &LessSafeKey,
    nonce: &[u8; NONCE_BYTES],
    bound: &Bound,
    clear: &mut [u8],
) -> Result<[u8; TAG_BYTES], Error> {
    let failed = Error::Unavailable { reason: "AES-256-GCM-SIV failed".into() };
    let nonce = Nonce::assume_unique_for_key(*nonce);
    match key.seal_in_place_separate_tag(nonce, Aad::from(bound), clear) {
        Ok(tag) => tag.as_ref().try_into().map_err(|_| failed),
        Err(_) => Err(failed),
    }
}

fn open(
    key: &LessSafeKey,
    nonce: Nonce,
    bound: &Bound,
    sealed: &[u8],
    buffer: &mut [u8],
    clear: &mut [u8],
) -> Option<()> {
    if sealed.len() != buffer.len() {
        return None;
    }
    buffer.copy_from_slice(sealed);
    let opened = key.open_in_place(nonce, Aad::from(bound), buffer).ok()?;
    clear.copy_from_slice(opened.get(..clear.len())?);
    Some(())
}

/// The nonce of a card's account number: the same number of the same card always has the same ciphertext. With a repeated
/// nonce GCM-SIV only reveals whether two plaintexts of the card are equal (RFC 8452, section 9).
fn account_nonce(bound: &Bound) -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    let hash = digest::digest(&digest::SHA256, bound.as_ref());
    nonce.iter_mut().zip(hash.as_ref()).for_each(|(place, byte)| *place = *byte);
    nonce
}

/// Concatenates the parts in the buffer.
///
/// # Errors
/// [`Error::Layout`]: the parts are longer than the buffer. A message is never shortened: two messages would have one tag.
pub(crate) fn joined<'a>(buffer: &'a mut [u8], parts: &[&[u8]]) -> Result<&'a [u8], Error> {
    let too_long = LayoutError::Length { what: "message to authenticate" };
    let mut length = 0;
    for part in parts {
        buffer.get_mut(length..length + part.len()).ok_or(too_long)?.copy_from_slice(part);
        length += part.len();
    }
    Ok(buffer.get(..length).ok_or(too_long)?)
}

fn broken(what: &'static str) -> Error {
    Error::SealBroken { what: what.into() }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_message_that_does_not_fit_is_an_error_and_not_shortened() {
        assert_eq!(joined(&mut [0; 4], &[&[1, 2], &[3]]).unwrap(), [1, 2, 3]);
        assert!(matches!(joined(&mut [0; 4], &[&[1, 2], &[3, 4, 5], &[6]]), Err(Error::Layout(_))));
    }

    #[test]
    fn the_pool_returns_each_random_byte_once_and_keeps_none() {
        let mut pool = RandomPool { bytes: Clear::ZEROED, left: 0 };
        let mut seen = HashSet::new();
        for _ in 0..1_000 {
            let mut drawn = [0; 12];
            pool.take(&mut drawn).unwrap();
            assert!(seen.insert(drawn), "a nonce came twice");
            let left = pool.left;
            assert!(pool.bytes.bytes()[left..].iter().all(|byte| *byte == 0));
        }
    }
}
