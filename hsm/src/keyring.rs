//! Every key of a vault or a token, with what it is for, its version, and what has become of it.
//!
//! ```text
//! state(1) custody(0 or 32) last entry(32) count(2)
//! state: 1 in custody, 2 a step is unfinished
//! key: name(1) zone(1 + text) version(2) algorithm(1) flags(1) made activated retired destroyed(8 each) uses(8)
//!      check value(3) bytes(1 + key)
//! algorithm: its place, and 64 encrypts only, 128 decrypts only; releases that know no mode of use read no such key
//! flags: 1 exportable, 2 without a check value
//! ```
//! A vault's keyring holds the keys themselves; a token's is a register of those inside, and holds none.
//! A key is pending, then active, then retired, then destroyed: its dates say which. What must never enter: a way to use a
//! key; that is the token's.

mod layout;

use std::{fmt, path::Path};

use aws_lc_rs::{hmac, rand};
use hsm_protocol::ENGINE_KEYS;
pub(crate) use hsm_protocol::{KeyUsage, ZoneName};

use crate::{
    check_value::Kcv,
    clear::{Clear, ClearBytes, Tzpk},
    config::{AbsentVault, KeyFileUse, Vault},
    keyblock::{Family, check_bytes},
    sealed::KeyVersion,
    status::StorageVersions,
    tdes_key::force_odd_parity,
    vault::{self, VaultError},
    versioned::Versioned,
};

/// Those of a vault, in the order a vault of six keys has them.
const VAULT_KEYS: [(KeyUsage, KeyAlgorithm); 6] = [
    (KeyUsage::Storage, KeyAlgorithm::Aes256),
    (KeyUsage::StorageTdes, KeyAlgorithm::TdesDouble),
    (KeyUsage::Seal, KeyAlgorithm::Aes256),
    (KeyUsage::Account, KeyAlgorithm::Aes256),
    (KeyUsage::Record, KeyAlgorithm::Aes256),
    (KeyUsage::Retry, KeyAlgorithm::Aes256),
];

/// What a zone key may be used with, the first where nothing is said.
pub(crate) const ZONE_ALGORITHMS: &[KeyAlgorithm] = &[
    KeyAlgorithm::Aes256,
    KeyAlgorithm::Aes192,
    KeyAlgorithm::Aes128,
    KeyAlgorithm::TdesDouble,
    KeyAlgorithm::TdesTriple,
];
/// The same of a key-exchange key in a token.
pub(crate) const EXCHANGE_ALGORITHMS: &[KeyAlgorithm] =
    &[KeyAlgorithm::Aes256, KeyAlgorithm::Aes192, KeyAlgorithm::Aes128];
/// And in a vault: a 3DES one takes in key blocks of versions A, B and C, and gives none out.
const EXCHANGE_ALGORITHMS_IN_VAULT: &[KeyAlgorithm] = &[
    KeyAlgorithm::Aes256,
    KeyAlgorithm::Aes192,
    KeyAlgorithm::Aes128,
    KeyAlgorithm::TdesTriple,
    KeyAlgorithm::TdesDouble,
];

/// What such a key may be used with in a vault, the first where nothing is said; none where a vault has no such key.
pub(crate) fn algorithms_in_vault(usage: &KeyUsage) -> &'static [KeyAlgorithm] {
    match usage {
        KeyUsage::Zone(_) => ZONE_ALGORITHMS,
        KeyUsage::Exchange(_) => EXCHANGE_ALGORITHMS_IN_VAULT,
        KeyUsage::StorageTdes => &[KeyAlgorithm::TdesDouble],
        engine if VAULT_KEYS.iter().any(|(name, _)| name == engine) => &[KeyAlgorithm::Aes256],
        _ => &[],
    }
}

/// What a key is used with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyAlgorithm {
    /// 16 bytes.
    Aes128,
    /// 24 bytes.
    Aes192,
    /// 32 bytes.
    Aes256,
    /// 16 bytes, K1 and K2.
    TdesDouble,
    /// 24 bytes.
    TdesTriple,
    /// 32 bytes.
    HmacSha256,
}

impl KeyAlgorithm {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Aes128, Self::Aes192, Self::Aes256, Self::TdesDouble, Self::TdesTriple, Self::HmacSha256];

    /// Bytes of a key.
    pub fn bytes(self) -> usize {
        match self {
            Self::Aes128 | Self::TdesDouble => 16,
            Self::Aes192 | Self::TdesTriple => 24,
            Self::Aes256 | Self::HmacSha256 => 32,
        }
    }

    /// Bits of security (NIST SP 800-57, table 2): a key travels only under one that has as many.
    pub(crate) fn strength(self) -> u16 {
        match self {
            Self::TdesDouble => 80,
            Self::TdesTriple => 112,
            Self::Aes128 => 128,
            Self::Aes192 => 192,
            Self::Aes256 | Self::HmacSha256 => 256,
        }
    }

    pub(crate) fn is_tdes(self) -> bool {
        matches!(self, Self::TdesDouble | Self::TdesTriple)
    }

    /// Reads `aes-256`, `3des-double` and the like.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.to_string() == text)
    }
}

impl fmt::Display for KeyAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aes128 => "aes-128",
            Self::Aes192 => "aes-192",
            Self::Aes256 => "aes-256",
            Self::TdesDouble => "3des-double",
            Self::TdesTriple => "3des-triple",
            Self::HmacSha256 => "hmac-sha-256",
        })
    }
}

/// What a key may do (ANSI X9.143, mode of use); of one that was made or loaded here, both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyMode {
    /// Encrypts and decrypts.
    Both,
    /// Encrypts only: a key-exchange key gives keys out.
    Encrypts,
    /// Decrypts only: a key-exchange key takes keys in.
    Decrypts,
}

impl KeyMode {
    const ALL: [Self; 3] = [Self::Both, Self::Encrypts, Self::Decrypts];

    /// As a key block says it.
    pub(crate) fn letter(self) -> char {
        match self {
            Self::Both => 'B',
            Self::Encrypts => 'E',
            Self::Decrypts => 'D',
        }
    }

    /// Reads what a key block says.
    pub(crate) fn of_letter(letter: char) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.letter() == letter)
    }

    /// Whether a key of this mode may do that.
    pub(crate) fn allows(self, wanted: Self) -> bool {
        self == Self::Both || self == wanted
    }
}

impl fmt::Display for KeyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Both => "encrypts and decrypts",
            Self::Encrypts => "encrypts only",
            Self::Decrypts => "decrypts only",
        })
    }
}

/// What has become of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Made, and not used yet.
    Pending,
    /// In use.
    Active,
    /// No longer used.
    Retired,
    /// Its bytes are gone.
    Destroyed,
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Destroyed => "destroyed",
        })
    }
}

/// What is told of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// What it is for.
    pub name: KeyUsage,
    /// 1, 2, 3 … within its name.
    pub version: u16,
    /// What it is used with.
    pub algorithm: KeyAlgorithm,
    /// What it may do.
    pub mode: KeyMode,
    /// Whether it may travel on, in a key block.
    pub exportable: bool,
    /// Its check value; none of a key that was made in a token and may not encrypt there.
    pub check_value: Option<Kcv>,
    /// When it came, in milliseconds of Unix time.
    pub made_at: u64,
    /// When it was first used.
    pub activated_at: Option<u64>,
    /// When it was last used.
    pub retired_at: Option<u64>,
    /// When its bytes were wiped.
    pub destroyed_at: Option<u64>,
    /// How many key blocks went or came: of a key-exchange key under it, of a zone key with it inside.
    pub uses: u64,
}

impl KeyInfo {
    /// What has become of it.
    pub fn state(&self) -> KeyState {
        match (self.activated_at, self.retired_at, self.destroyed_at) {
            (_, _, Some(_)) => KeyState::Destroyed,
            (_, Some(_), _) => KeyState::Retired,
            (Some(_), _, _) => KeyState::Active,
            _ => KeyState::Pending,
        }
    }

    /// `storage/1`.
    pub fn reference(&self) -> String {
        format!("{}/{}", self.name, self.version)
    }

    /// The digits of its check value; `none` where it has none.
    pub fn told_check_value(&self) -> String {
        self.check_value.map_or_else(|| "none".to_owned(), |value| value.to_string())
    }
}

/// A key, and what is told of it.
pub(crate) struct RingKey {
    pub(crate) info: KeyInfo,
    /// None once destroyed, and of a key that is in a token.
    pub(crate) key: Option<ClearBytes>,
}

/// A key that is to be kept.
pub(crate) struct NewKey {
    pub(crate) name: KeyUsage,
    pub(crate) version: u16,
    pub(crate) algorithm: KeyAlgorithm,
    pub(crate) travels: Exportability,
}

/// Every key of a vault, or a register of those in a token.
pub(crate) struct Keyring {
    /// SHA-256 of the roster of those who may change it; none before the first ceremony.
    pub(crate) custody: Option<[u8; 32]>,
    /// The hash of the transcript's entry that told of the last change.
    pub(crate) last_entry: [u8; 32],
    /// Whether the line of that entry may not be in its transcript yet.
    pub(crate) unfinished: bool,
    pub(crate) keys: Vec<RingKey>,
}

/// Versions that new blobs are made under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Versions {
    pub(crate) storage: StorageVersions,
    pub(crate) seal: KeyVersion,
    pub(crate) account: KeyVersion,
}

/// The keys an engine serves with, in the clear. Account, record and retry keys have one version in use.
pub(crate) struct Keys {
    /// AES-256: ISO-4 blocks.
    pub(crate) storage: Versioned<Box<Clear<32>>>,
    /// 3DES: ISO-3 and ISO-0 blocks.
    pub(crate) storage_tdes: Versioned<Box<Tzpk>>,
    /// AES-256-GCM-SIV: tzpks.
    pub(crate) seal: Versioned<Box<Clear<32>>>,
    /// AES-256-GCM-SIV: account numbers.
    pub(crate) account: Versioned<Box<Clear<32>>>,
    /// AES-256-CMAC: records.
    pub(crate) record: Versioned<Box<Clear<32>>>,
    /// AES-256-CMAC: retries.
    pub(crate) retry: Versioned<Box<Clear<32>>>,
}

impl Keyring {
    /// No key, and nobody's.
    pub(crate) fn empty() -> Self {
        Self { custody: None, last_entry: [0; 32], unfinished: false, keys: Vec::new() }
    }

    /// Reads a vault file. One that is not there is created, where `absent` says so, with every key an engine needs, active.
    pub(crate) fn open(vault: &Vault, absent: AbsentVault, now: u64) -> Result<Self, VaultError> {
        let Vault::File { path, unlock } = vault else { return Self::fresh(now) };
        match absent {
            AbsentVault::Refuse if vault::is_there(path, unlock)? => {
                Self::from_vault(&vault::read(path, unlock)?, path)
            }
            AbsentVault::Refuse => Err(VaultError::Absent { path: path.clone() }),
            AbsentVault::Create => {
                let _lock = vault::lock_directory(path)?;
                let bytes = match vault::is_there(path, unlock)? {
                    true => vault::read(path, unlock)?,
                    false => vault::make(path, unlock, Self::fresh(now)?.bytes())?,
                };
                Self::from_vault(&bytes, path)
            }
        }
    }

    /// Creates a vault file that must not be there.
    pub(crate) fn create(vault: &Vault, key_file: KeyFileUse, now: u64) -> Result<Self, VaultError> {
        let Vault::File { path, unlock } = vault else { return Self::fresh(now) };
        let _lock = vault::lock_directory(path)?;
        match (vault::is_there(path, unlock), key_file) {
            (Ok(true), _) => Err(VaultError::Present { path: path.clone() }),
            (Ok(false), _) | (Err(VaultError::Missing { .. }), KeyFileUse::Existing) => {
                Self::from_vault(&vault::make(path, unlock, Self::fresh(now)?.bytes())?, path)
            }
            (Err(error), _) => Err(error),
        }
    }

    fn from_vault(bytes: &ClearBytes, path: &Path) -> Result<Self, VaultError> {
        Self::read(bytes.bytes()).ok_or_else(|| VaultError::WontOpen { path: path.to_owned() })
    }

    fn fresh(now: u64) -> Result<Self, VaultError> {
        let mut keyring = Self::empty();
        for (name, algorithm) in VAULT_KEYS {
            keyring.put_active(name, algorithm, random_key(algorithm)?, now);
        }
        Ok(keyring)
    }

    fn put_active(&mut self, name: KeyUsage, algorithm: KeyAlgorithm, key: ClearBytes, now: u64) {
        let (new, found) = (self.next(name, algorithm, Exportability::Never), check_value(algorithm, &key));
        self.put(new, Some(found), Some(key), now).activated_at = Some(now);
    }

    /// The next version of a name.
    pub(crate) fn next(&self, name: KeyUsage, algorithm: KeyAlgorithm, travels: Exportability) -> NewKey {
        let version = self.of(&name).map(|key| key.info.version).max().unwrap_or(0).saturating_add(1);
        NewKey { name, version, algorithm, travels }
    }

    /// Adds a key, pending; it may do all that a key of its name does.
    pub(crate) fn put(
        &mut self,
        NewKey { name, version, algorithm, travels }: NewKey,
        check_value: Option<Kcv>,
        key: Option<ClearBytes>,
        now: u64,
    ) -> &mut KeyInfo {
        let info = KeyInfo {
            name,
            version,
            algorithm,
            mode: KeyMode::Both,
            exportable: travels == Exportability::On,
            check_value,
            made_at: now,
            activated_at: None,
            retired_at: None,
            destroyed_at: None,
            uses: 0,
        };
        &mut self.keys.push_mut(RingKey { info, key }).info
    }

    pub(crate) fn of(&self, name: &KeyUsage) -> impl Iterator<Item = &RingKey> {
        self.keys.iter().filter(move |key| key.info.name == *name)
    }

    pub(crate) fn find_mut(&mut self, name: &KeyUsage, version: u16) -> Option<&mut RingKey> {
        self.keys.iter_mut().find(|key| key.info.name == *name && key.info.version == version)
    }

    /// The versions of a name that are in use, the oldest first.
    pub(crate) fn active_versions(&self, name: &KeyUsage) -> Vec<u16> {
        let active = self.of(name).filter(|key| key.info.state() == KeyState::Active);
        let mut versions: Vec<_> = active.map(|key| key.info.version).collect();
        versions.sort_unstable();
        versions
    }

    /// The newest that is in use.
    pub(crate) fn active(&self, name: &KeyUsage) -> Option<&RingKey> {
        self.of(name).filter(|key| key.info.state() == KeyState::Active).max_by_key(|key| key.info.version)
    }

    /// What an engine serves with: of every use the versions that are in use.
    pub(crate) fn serving(&self, vault: &Vault) -> Result<Keys, VaultError> {
        Ok(Keys {
            storage: self.versions(vault, &KeyUsage::Storage)?,
            storage_tdes: self.versions(vault, &KeyUsage::StorageTdes)?,
            seal: self.versions(vault, &KeyUsage::Seal)?,
            account: self.versions(vault, &KeyUsage::Account)?,
            record: self.versions(vault, &KeyUsage::Record)?,
            retry: self.versions(vault, &KeyUsage::Retry)?,
        })
    }

    fn versions<const N: usize>(&self, vault: &Vault, name: &KeyUsage) -> Result<Versioned<Box<Clear<N>>>, VaultError> {
        let active = self.of(name).filter(|key| key.info.state() == KeyState::Active);
        let all = active.filter_map(|RingKey { info, key }| {
            // Filled where it stays.
            let mut clear = Box::new(Clear::zeroed());
            clear.bytes_mut().iter_mut().zip(key.as_ref()?.bytes()).for_each(|(place, byte)| *place = *byte);
            Some((KeyVersion(info.version), clear))
        });
        Versioned::new(all.collect()).ok_or_else(|| VaultError::Lacks {
            path: match vault {
                Vault::Memory => "the vault in memory".into(),
                Vault::File { path, .. } => path.clone(),
            },
            missing: name.to_string(),
        })
    }
}

/// Whether a key may leave in a key block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exportability {
    On,
    Never,
}

/// A fresh key: of 3DES with odd parity, no weak part and no two alike.
pub(crate) fn random_key(algorithm: KeyAlgorithm) -> Result<ClearBytes, VaultError> {
    let mut key = ClearBytes::zeroed(algorithm.bytes());
    loop {
        rand::fill(key.bytes_mut()).map_err(|_| VaultError::Random)?;
        set_odd_parity(algorithm, &mut key);
        if !is_weak(algorithm, &key) {
            return Ok(key);
        }
    }
}

/// Odd parity in every byte of a 3DES key; others stay as they are.
pub(crate) fn set_odd_parity(algorithm: KeyAlgorithm, key: &mut ClearBytes) {
    if algorithm.is_tdes() {
        force_odd_parity(key.bytes_mut());
    }
}

/// A 3DES key with a weak or semi-weak part or two equal ones, whatever its parity; any key of zeros. Of a triple-length
/// key no two parts may be equal, the first and the last neither: it would be a double-length one, and travel as if it were
/// stronger.
pub(crate) fn is_weak(algorithm: KeyAlgorithm, key: &ClearBytes) -> bool {
    let zeros = key.bytes().iter().fold(0, |all, byte| all | byte) == 0;
    zeros || (algorithm.is_tdes() && has_weak_part(key))
}

fn has_weak_part(key: &ClearBytes) -> bool {
    // The test compares every bit, and those of parity are none of a part's 56.
    let mut odd = ClearBytes::copied(key.bytes());
    force_odd_parity(odd.bytes_mut());
    // It panics at another length than these.
    matches!(odd.bytes().len(), 16 | 24) && des::weak_key_test(odd.bytes()).is_err()
}

/// Of AES the first 3 bytes of CMAC over 16 zero bytes, of 3DES those of the encrypted zero block, of HMAC those of it over
/// 16 zero bytes.
pub(crate) fn check_value(algorithm: KeyAlgorithm, key: &ClearBytes) -> Kcv {
    if algorithm == KeyAlgorithm::HmacSha256 {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key.bytes());
        return Kcv::first_of(hmac::sign(&key, &[0; 16]).as_ref());
    }
    Kcv::first_of(&check_bytes(key, if algorithm.is_tdes() { Family::Tdes } else { Family::Aes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three good parts, of odd parity.
    const PARTS: [[u8; 8]; 3] = [
        [0x13, 0x34, 0x57, 0x79, 0x9B, 0xBC, 0xDF, 0xF1],
        [0xDF, 0xE9, 0x31, 0x10, 0x16, 0x5B, 0x34, 0x23],
        [0x0D, 0x6D, 0x5B, 0x31, 0x8A, 0x2C, 0x15, 0xAE],
    ];

    fn judged(parts: &[[u8; 8]]) -> bool {
        let algorithm = if parts.len() == 2 { KeyAlgorithm::TdesDouble } else { KeyAlgorithm::TdesTriple };
        is_weak(algorithm, &ClearBytes::copied(parts.as_flattened()))
    }

    /// The same part to the cipher: every parity bit is the other.
    fn of_other_parity(part: [u8; 8]) -> [u8; 8] {
        part.map(|byte| byte ^ 1)
    }

    #[test]
    fn a_key_of_different_parts_is_good_whatever_its_parity() {
        let [a, b, c] = PARTS;
        assert!(!judged(&[a, b]) && !judged(&[a, b, c]));
        assert!(!judged(&[a, of_other_parity(b)]) && !judged(&[of_other_parity(a), b, of_other_parity(c)]));
    }

    #[test]
    fn two_parts_that_are_equal_or_differ_in_parity_alone_are_weak_wherever_they_stand() {
        let [a, b, _] = PARTS;
        for again in [a, of_other_parity(a), [0x13, 0x34, 0x57, 0x79, 0x9B, 0xBC, 0xDF, 0xF0]] {
            assert!(judged(&[a, again]), "K1 = K2");
            assert!(judged(&[a, again, b]), "K1 = K2 of three");
            assert!(judged(&[b, a, again]), "K2 = K3");
            assert!(judged(&[a, b, again]), "K1 = K3");
        }
    }

    #[test]
    fn a_weak_or_semi_weak_part_is_weak_whatever_its_parity() {
        let [a, b, _] = PARTS;
        let weak = [[0x01; 8], [0xFE; 8], [0x1F, 0x1F, 0x1F, 0x1F, 0x0E, 0x0E, 0x0E, 0x0E]];
        let semi_weak =
            [[0x01, 0xFE, 0x01, 0xFE, 0x01, 0xFE, 0x01, 0xFE], [0x1F, 0xE0, 0x1F, 0xE0, 0x0E, 0xF1, 0x0E, 0xF1]];
        for part in weak.into_iter().chain(semi_weak) {
            for part in [part, of_other_parity(part)] {
                assert!(judged(&[part, a]) && judged(&[a, part]) && judged(&[a, b, part]), "{part:02X?}");
            }
        }
    }

    #[test]
    fn a_key_of_zeros_is_weak_of_every_algorithm_and_so_is_one_of_parity_bits_alone() {
        for algorithm in KeyAlgorithm::ALL {
            assert!(is_weak(algorithm, &ClearBytes::zeroed(algorithm.bytes())), "{algorithm}");
        }
        assert!(judged(&[[1; 8], [0; 8]]) && judged(&[[0; 8], [1; 8], [0; 8]]));
    }
}
