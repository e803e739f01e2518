//! A PKCS#11 token: every key stays in the token and has one usage.
//!
//! This file holds the operations that both levels share: tags, account numbers, and the seal of a tzpk.
//! What must never enter: a mechanism that was tried with no token (`docs/tokens.md`).

mod failure;
mod ffi;
mod host_level;
mod inventory;
mod key_manager;
mod keys;
mod objects;
mod probe;
mod session_pool;
mod signing_key;
mod token_level;

use cryptoki::{error::Error as CallError, mechanism::Mechanism};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

pub use self::probe::{Probe, Route, TokenReport};
use self::{
    failure::call_failed,
    ffi::Calls,
    inventory::Inventory,
    keys::{FoundKeys, HostKeys, InUse, KeyHandles, KeyReferences, LevelKeys, TokenKeys},
    probe::{has_mgf1_sha1, seal_way},
    session_pool::{OpenedPool, SessionPool},
};
pub(crate) use self::{
    key_manager::TokenKeyManager,
    keys::algorithms_in_token,
    probe::{probe_token, token_level_support},
    session_pool::TokenSlot,
    signing_key::SigningKey,
};
use super::{HostLevel, RETRY_HEAD, TdesBudget, Token, TokenLevel, software::joined};
use hsm_protocol::{
    ACCOUNT_BYTES, Bound, BoundaryLevel, Error, KeyId, KeyVersion, RECORD_MESSAGE_BYTES_MAX, SealedTzpk, StorageFormat,
    TAG_BYTES, ZoneRules,
};

use crate::{
    config::Pkcs11,
    keyring::{VerificationKeyInfo, Versions, ZoneKeyInfo},
    open_error::Pkcs11Error,
};

/// A connected token with the keys of one level.
struct Pkcs11Token<L> {
    link: SessionPool<L>,
    in_use: InUse,
    newest: Versions,
    references: KeyReferences,
    zone_keys: Vec<ZoneKeyInfo>,
    /// The PVKs and IBM 3624 keys.
    verification: Vec<VerificationKeyInfo>,
    tdes_budget: TdesBudget,
    /// Whether the token wraps a key by RSA-OAEP with MGF1-SHA-1; false at level `host`, which wraps on the host.
    has_mgf1_sha1: bool,
}

/// Opens a token at level `host`: logs in, finds the keys and audits their attributes.
///
/// # Errors
/// [`Pkcs11Error`] where the module, the slot or the login fails, or a key is missing or unsafe.
pub(crate) fn open_at_host_level(
    config: &Pkcs11,
    budget: TdesBudget,
    zones: &[ZoneRules],
) -> Result<Box<dyn HostLevel>, Pkcs11Error> {
    Ok(Box::new(Pkcs11Token::<HostKeys>::open(config, budget, zones)?))
}

/// Opens a token at level `token`; see [`open_at_host_level`].
pub(crate) fn open_at_token_level(
    config: &Pkcs11,
    budget: TdesBudget,
    zones: &[ZoneRules],
) -> Result<Box<dyn TokenLevel>, Pkcs11Error> {
    Ok(Box::new(Pkcs11Token::<TokenKeys>::open(config, budget, zones)?))
}

/// Generates the keys of a level in the token.
///
/// # Errors
/// [`Pkcs11Error::InCustody`] where a ceremony manages the keys; [`Pkcs11Error::Present`] where a storage key exists;
/// [`Pkcs11Error`] where a call fails.
pub(crate) fn make_keys(config: &Pkcs11, level: BoundaryLevel) -> Result<KeyReferences, Pkcs11Error> {
    let (session, functions) = session_pool::log_in_to_write(config)?;
    if Inventory::read(&session)?.is_some() {
        return Err(Pkcs11Error::InCustody);
    }
    let calls = Calls::new(&session, functions.as_deref());
    let keys = FoundKeys::make(calls, config, level, seal_way(calls))?;
    keys.audit(&session, None)?;
    keys.references(calls).map_err(call_failed("KCV"))
}

/// Imports a known key of version 1, for tests of a token without an inventory.
#[cfg(test)]
pub(crate) fn import_key(
    config: &Pkcs11,
    level: BoundaryLevel,
    name: crate::keyring::KeyUsage,
    algorithm: crate::keyring::KeyAlgorithm,
    key: &crate::clear::ClearBytes,
) -> Result<(), Pkcs11Error> {
    use crate::keyring::{Exportability, KeyMode, NewKey};
    let (session, _) = session_pool::log_in_to_write(config)?;
    let new = NewKey { name, version: 1, algorithm, travels: Exportability::Never, mode: KeyMode::Both };
    keys::import(&session, &new, level, key).map(drop).map_err(call_failed("C_CreateObject"))
}

impl<L: LevelKeys> Pkcs11Token<L> {
    fn open(config: &Pkcs11, tdes_budget: TdesBudget, zones: &[ZoneRules]) -> Result<Self, Pkcs11Error> {
        let OpenedPool { pool: link, references, zone_keys, verification } = SessionPool::open(config, zones)?;
        let in_use = link.in_use().clone();
        let newest = in_use.newest_of_all(L::LEVEL);
        // A refusal in the closure does not cost the connection.
        let has_mgf1_sha1 =
            L::LEVEL == BoundaryLevel::Token && link.call(|session, _| Ok(has_mgf1_sha1(session))).unwrap_or_default();
        Ok(Self { link, in_use, newest, references, zone_keys, verification, tdes_budget, has_mgf1_sha1 })
    }

    fn call<T>(&self, work: impl FnMut(Calls<'_>, &KeyHandles<L>) -> Result<T, CallError>) -> Result<T, Error> {
        self.link.call(work)
    }

    /// Runs `work` with a key of a certain version; [`Error::UnknownKey`] where `work` returns `None`.
    fn call_with<T>(
        &self,
        mut work: impl FnMut(Calls<'_>, &KeyHandles<L>) -> Option<Result<T, CallError>>,
    ) -> Result<T, Error> {
        self.link.call(|session, keys| work(session, keys).transpose())?.ok_or(Error::UnknownKey)
    }

    /// Appends a tag over the binding and the ciphertext of a tzpk.
    fn sealed(&self, ciphertext: &[u8], bound: &Bound) -> Result<SealedTzpk, Error> {
        let tag = self.tag_over(bound, ciphertext)?;
        let mut sealed = [0; size_of::<SealedTzpk>()];
        joined(&mut sealed, &[ciphertext, &tag])?;
        Ok(sealed)
    }

    /// Verifies the tag of a sealed tzpk and returns its ciphertext of `length` bytes.
    fn opened<'a>(&self, sealed: &'a SealedTzpk, bound: &Bound, length: usize) -> Result<&'a [u8], Error> {
        let broken = Error::SealBroken { what: "tzpk".into() };
        let Some((ciphertext, rest)) = sealed.split_at_checked(length) else { return Err(broken) };
        let Some((sealed_tag, rest)) = rest.split_at_checked(TAG_BYTES) else { return Err(broken) };
        let right = self.tag_over(bound, ciphertext)?.ct_eq(sealed_tag);
        if bool::from(right) && rest.iter().all(|byte| *byte == 0) { Ok(ciphertext) } else { Err(broken) }
    }

    /// HMAC-SHA-256, truncated to 16 bytes: the MAC that every measured token has.
    fn tag(&self, message: &[u8]) -> Result<[u8; TAG_BYTES], Error> {
        let mut hmac = [0; 32];
        self.call(|session, keys| session.sign(&Mechanism::Sha256Hmac, keys.mac, message, &mut hmac))?;
        let [tag @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = hmac;
        Ok(tag)
    }

    fn tag_over(&self, bound: &Bound, bytes: &[u8]) -> Result<[u8; TAG_BYTES], Error> {
        self.tag(joined(&mut [0; RECORD_MESSAGE_BYTES_MAX], &[bound.as_ref(), bytes])?)
    }

    /// The pad for account digits: the AES encryption of their tag. Other digits of the same card have another tag.
    fn account_pad(&self, tag: &[u8; TAG_BYTES]) -> Result<Zeroizing<[u8; TAG_BYTES]>, Error> {
        let mut pad = Zeroizing::new([0; TAG_BYTES]);
        self.call(|session, keys| session.encrypt(&Mechanism::AesEcb, keys.account, tag, &mut *pad))?;
        Ok(pad)
    }
}

impl<L: LevelKeys> Token for Pkcs11Token<L> {
    fn name(&self) -> &'static str {
        "pkcs11"
    }

    fn keys(&self) -> Vec<KeyId> {
        self.references.to_vec()
    }

    fn current(&self) -> Versions {
        self.newest
    }

    fn has_storage_key(&self, form: StorageFormat, key: KeyVersion) -> bool {
        self.in_use.has_storage_key(L::LEVEL, form, key)
    }

    fn check(&self) -> Result<(), Error> {
        self.random(&mut [0; 8])
    }

    fn random(&self, bytes: &mut [u8]) -> Result<(), Error> {
        self.call(|session, _| session.generate_random_slice(bytes))
    }

    fn seal_account(&self, digits: &mut [u8; ACCOUNT_BYTES], bound: &Bound) -> Result<[u8; TAG_BYTES], Error> {
        let tag = self.tag_over(bound, digits)?;
        let pad = self.account_pad(&tag)?;
        digits.iter_mut().zip(pad.iter()).for_each(|(digit, pad)| *digit ^= pad);
        Ok(tag)
    }

    fn open_account(&self, sealed: &[u8], bound: &Bound, digits: &mut [u8; ACCOUNT_BYTES]) -> Result<(), Error> {
        let broken = Error::SealBroken { what: "account".into() };
        let Some((ciphertext, tag)) = sealed.split_at_checked(ACCOUNT_BYTES) else { return Err(broken) };
        let Ok(tag) = <[u8; TAG_BYTES]>::try_from(tag) else { return Err(broken) };
        let pad = self.account_pad(&tag)?;
        for (digit, (cipher, pad)) in digits.iter_mut().zip(ciphertext.iter().zip(pad.iter())) {
            *digit = cipher ^ pad;
        }
        if bool::from(self.tag_over(bound, digits)?.ct_eq(&tag)) { Ok(()) } else { Err(broken) }
    }

    fn record_tag(&self, record: &[u8], bound: &Bound) -> Result<[u8; TAG_BYTES], Error> {
        self.tag_over(bound, record)
    }

    fn retry_tag(&self, control: &[u8; 16], block: &[u8; 8]) -> Result<[u8; TAG_BYTES], Error> {
        self.tag(joined(&mut [0; 28], &[&RETRY_HEAD, control, block])?)
    }

    fn zone_block_tag(&self, bound: &Bound, block: &[u8]) -> Result<[u8; TAG_BYTES], Error> {
        self.tag_over(bound, block)
    }

    fn zone_keys(&self) -> &[ZoneKeyInfo] {
        &self.zone_keys
    }

    fn verification_keys(&self) -> Vec<KeyId> {
        self.verification.iter().map(|info| info.id.clone()).collect()
    }
}
