//! The keyring: every key of a vault or a token, with its usage, version, algorithm and dates.
//!
//! ```text
//! state(1) custody(0 or 32) last entry(32) count(2), then count keys
//! state: 1 in custody, 2 a change is unfinished
//! key: usage(1) zone(1 + text) version(2) algorithm(1) flags(1) made activated retired destroyed(8 each) uses(8)
//!      KCV(3) bytes(1 + key)
//! algorithm: index in `KeyAlgorithm::ALL`, plus 64 for encrypts only, 128 for decrypts only, 32 for derives values only, 96
//!            for compares values only
//! zone: the name of a zone or exchange key; NAME:PVKI of a PVK; NAME:TABLE:VALIDATION of an IBM 3624 key
//! flags: 1 exportable, 2 without a KCV, 4 imported with even parity
//! ```
//! Integers are big-endian; dates are Unix time in milliseconds, 0 for none. The keyring of a vault contains the keys; the
//! keyring of a token lists the keys in the token, without their bytes.
//!
//! A key is pending, then active, then retired, then destroyed, by its dates. No code that uses a key is here: ciphers are in
//! `token`.

mod layout;

use std::{fmt, path::Path};

use aws_lc_rs::{hmac, rand};
use hsm_protocol::{ENGINE_KEYS, Kcv, KeyId, KeyVersion, StorageVersions, ZoneRules};
pub(crate) use hsm_protocol::{KeyUsage, ZoneName};

use crate::{
    clear::{Clear, ClearBytes, Tzpk},
    config::{AbsentVault, HostForm, KeyFileUse, Vault},
    keyblock::{Family, check_bytes},
    tdes_key::{force_odd_parity, has_odd_parity},
    vault::{self, VaultError},
    versioned::Versioned,
};

/// The engine keys of a vault.
const VAULT_KEYS: [(KeyUsage, KeyAlgorithm); 7] = [
    (KeyUsage::Storage, KeyAlgorithm::Aes256),
    (KeyUsage::StorageTdes, KeyAlgorithm::TdesDouble),
    (KeyUsage::Seal, KeyAlgorithm::Aes256),
    (KeyUsage::Account, KeyAlgorithm::Aes256),
    (KeyUsage::Record, KeyAlgorithm::Aes256),
    (KeyUsage::Retry, KeyAlgorithm::Aes256),
    (KeyUsage::StorageOneWay, KeyAlgorithm::Aes256),
];

/// The algorithms of a zone key; the first is the default.
pub(crate) const ZONE_ALGORITHMS: &[KeyAlgorithm] = &[
    KeyAlgorithm::Aes256,
    KeyAlgorithm::Aes192,
    KeyAlgorithm::Aes128,
    KeyAlgorithm::TdesDouble,
    KeyAlgorithm::TdesTriple,
];
/// The algorithms of a key-exchange key in a token; the first is the default.
pub(crate) const EXCHANGE_ALGORITHMS: &[KeyAlgorithm] =
    &[KeyAlgorithm::Aes256, KeyAlgorithm::Aes192, KeyAlgorithm::Aes128];
/// The algorithms of a key-exchange key in a vault; the first is the default. A 3DES key unwraps key blocks of versions A, B
/// and C, and wraps none.
const EXCHANGE_ALGORITHMS_IN_VAULT: &[KeyAlgorithm] = &[
    KeyAlgorithm::Aes256,
    KeyAlgorithm::Aes192,
    KeyAlgorithm::Aes128,
    KeyAlgorithm::TdesTriple,
    KeyAlgorithm::TdesDouble,
];

/// The algorithms of a key of this usage in a vault; the first is the default. Empty where a vault has no such key.
pub(crate) fn algorithms_in_vault(usage: &KeyUsage) -> &'static [KeyAlgorithm] {
    match usage {
        KeyUsage::Zone(_) => ZONE_ALGORITHMS,
        KeyUsage::Exchange(_) => EXCHANGE_ALGORITHMS_IN_VAULT,
        // A PVV and an IBM 3624 PIN are defined with a key of 128 bits.
        KeyUsage::Pvk(_) | KeyUsage::Ibm3624(_) => &[KeyAlgorithm::TdesDouble],
        KeyUsage::StorageTdes => &[KeyAlgorithm::TdesDouble],
        engine if VAULT_KEYS.iter().any(|(name, _)| name == engine) => &[KeyAlgorithm::Aes256],
        _ => &[],
    }
}

/// The algorithm of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyAlgorithm {
    /// AES-128: a key of 16 bytes.
    Aes128,
    /// AES-192: a key of 24 bytes.
    Aes192,
    /// AES-256: a key of 32 bytes.
    Aes256,
    /// 3DES with two keys: 16 bytes, K1 and K2.
    TdesDouble,
    /// 3DES with three keys: 24 bytes, K1, K2 and K3.
    TdesTriple,
    /// HMAC-SHA-256: a key of 32 bytes.
    HmacSha256,
}

impl KeyAlgorithm {
    /// All algorithms. The index of an algorithm is its code in a stored keyring.
    pub const ALL: [Self; 6] =
        [Self::Aes128, Self::Aes192, Self::Aes256, Self::TdesDouble, Self::TdesTriple, Self::HmacSha256];

    /// The length of a key, in bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Aes128 | Self::TdesDouble => 16,
            Self::Aes192 | Self::TdesTriple => 24,
            Self::Aes256 | Self::HmacSha256 => 32,
        }
    }

    /// Bits of security (NIST SP 800-57, table 2). A key is only wrapped under a key of at least the same strength.
    pub fn strength(self) -> u16 {
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

    /// Parses the text of `Display`, such as `aes-256` or `3des-double`.
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

/// The mode of use of a key (ANSI X9.143). A key that was made or loaded here has the mode `Both`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyMode {
    /// The key encrypts and decrypts.
    Both,
    /// The key only encrypts: a key-exchange key wraps keys.
    Encrypts,
    /// The key only decrypts: a key-exchange key unwraps keys.
    Decrypts,
    /// A PVK or IBM 3624 key that only derives values.
    Generates,
    /// A PVK or IBM 3624 key that only compares values.
    Verifies,
}

impl KeyMode {
    const ALL: [Self; 5] = [Self::Both, Self::Encrypts, Self::Decrypts, Self::Generates, Self::Verifies];

    /// The letter of the mode in the header of a key block; of a PVK or IBM 3624 key `C` stands for both.
    pub(crate) fn letter(self) -> char {
        match self {
            Self::Both => 'B',
            Self::Encrypts => 'E',
            Self::Decrypts => 'D',
            Self::Generates => 'G',
            Self::Verifies => 'V',
        }
    }

    /// Reads the letter in the header of a key block.
    pub(crate) fn of_letter(letter: char) -> Option<Self> {
        match letter {
            'C' => Some(Self::Both),
            _ => Self::ALL.into_iter().find(|mode| mode.letter() == letter),
        }
    }

    /// Whether a key of this mode may be used as `wanted`.
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
            Self::Generates => "derives values only",
            Self::Verifies => "compares values only",
        })
    }
}

/// The state of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// The key is made, and not used yet.
    Pending,
    /// The key is in use.
    Active,
    /// The key is out of use; its bytes still exist.
    Retired,
    /// The bytes of the key are wiped.
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

/// The public facts of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyInfo {
    /// The usage, for example `storage`.
    pub name: KeyUsage,
    /// The version within the usage: 1, 2, 3 …
    pub version: u16,
    /// The algorithm, which fixes the length of the key.
    pub algorithm: KeyAlgorithm,
    /// The mode of use.
    pub mode: KeyMode,
    /// Whether the key may be exported in a key block.
    pub exportable: bool,
    /// False for a 3DES key that was imported with a byte of even parity.
    pub odd_parity: bool,
    /// The KCV; none for a key that was made in a token and may not encrypt there.
    pub check_value: Option<Kcv>,
    /// When the key was made or loaded, in milliseconds of Unix time.
    pub made_at: u64,
    /// When the key was put in use, in milliseconds of Unix time.
    pub activated_at: Option<u64>,
    /// When the key was put out of use, in milliseconds of Unix time.
    pub retired_at: Option<u64>,
    /// When the bytes of the key were wiped, in milliseconds of Unix time.
    pub destroyed_at: Option<u64>,
    /// The number of exported and imported key blocks: under a key-exchange key, or of a zone key.
    pub uses: u64,
}

impl KeyInfo {
    /// The state, by the dates.
    pub fn state(&self) -> KeyState {
        match (self.activated_at, self.retired_at, self.destroyed_at) {
            (_, _, Some(_)) => KeyState::Destroyed,
            (_, Some(_), _) => KeyState::Retired,
            (Some(_), _, _) => KeyState::Active,
            _ => KeyState::Pending,
        }
    }

    /// The facts of a key of a zone.
    pub(crate) fn of_zone(&self, zone: &ZoneName) -> ZoneKeyInfo {
        ZoneKeyInfo {
            zone: zone.clone(),
            version: KeyVersion(self.version),
            is_tdes: self.algorithm.is_tdes(),
            mode: self.mode,
            odd_parity: Some(self.odd_parity),
            kcv: self.check_value,
        }
    }

    /// The usage and version, for example `storage/1`.
    pub fn reference(&self) -> String {
        format!("{}/{}", self.name, self.version)
    }

    /// The hexadecimal digits of the KCV; `none` without a KCV.
    pub fn kcv_text(&self) -> String {
        self.check_value.map_or_else(|| "none".to_owned(), |value| value.to_string())
    }
}

/// A key and its public facts.
pub(crate) struct RingKey {
    pub(crate) info: KeyInfo,
    /// None for a destroyed key, and for a key in a token.
    pub(crate) key: Option<ClearBytes>,
}

/// A key that is not in the keyring yet.
pub(crate) struct NewKey {
    pub(crate) name: KeyUsage,
    pub(crate) version: u16,
    pub(crate) algorithm: KeyAlgorithm,
    pub(crate) travels: Exportability,
    /// The directions that the key block of an imported zone key allows. In a token the key has these rights and no others.
    pub(crate) mode: KeyMode,
}

/// Every key of a vault, or the list of the keys in a token.
pub(crate) struct Keyring {
    /// SHA-256 of the roster of the participants who may change the keys; none before the first ceremony.
    pub(crate) custody: Option<[u8; 32]>,
    /// The hash of the transcript entry of the last change.
    pub(crate) last_entry: [u8; 32],
    /// Whether this entry may be missing in the transcript: a change writes the keyring first, then the transcript.
    pub(crate) unfinished: bool,
    pub(crate) keys: Vec<RingKey>,
}

/// The key versions that encrypt new data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Versions {
    pub(crate) storage: StorageVersions,
    pub(crate) seal: KeyVersion,
    pub(crate) account: KeyVersion,
}

/// The clear keys that an engine serves with. Account, record and retry keys have one version in use.
pub(crate) struct Keys {
    /// AES-256, for ISO-4 blocks.
    pub(crate) storage: Versioned<Box<Clear<32>>>,
    /// 3DES, for ISO-3 and ISO-0 blocks.
    pub(crate) storage_tdes: Versioned<Box<Tzpk>>,
    /// AES-256-GCM-SIV, for tzpks.
    pub(crate) seal: Versioned<Box<Clear<32>>>,
    /// AES-256-GCM-SIV, for account numbers.
    pub(crate) account: Versioned<Box<Clear<32>>>,
    /// AES-256-CMAC, for PIN records.
    pub(crate) record: Versioned<Box<Clear<32>>>,
    /// AES-256-CMAC, for retry tags.
    pub(crate) retry: Versioned<Box<Clear<32>>>,
    /// AES-256-CMAC, for one-way records; none in a vault without such a key.
    pub(crate) one_way: Option<Versioned<Box<Clear<32>>>>,
    /// 3DES: the active PVKs and IBM 3624 keys. A usage has one active version.
    pub(crate) verification: Vec<(VerificationKeyInfo, Box<Tzpk>)>,
}

/// The facts of the active version of a PVK or an IBM 3624 key.
#[derive(Clone)]
pub(crate) struct VerificationKeyInfo {
    pub(crate) mode: KeyMode,
    pub(crate) id: KeyId,
}

/// The facts of one active version of a zone key.
pub(crate) struct ZoneKeyInfo {
    pub(crate) zone: ZoneName,
    pub(crate) version: KeyVersion,
    /// 3DES, else AES.
    pub(crate) is_tdes: bool,
    pub(crate) mode: KeyMode,
    /// Whether a 3DES key has odd parity in every byte; `None` for a key in a token without an inventory, which nobody can
    /// read.
    pub(crate) odd_parity: Option<bool>,
    pub(crate) kcv: Option<Kcv>,
}

impl ZoneKeyInfo {
    pub(crate) fn key_id(&self) -> KeyId {
        KeyId { usage: KeyUsage::Zone(self.zone.clone()), version: self.version, kcv: self.kcv }
    }
}

/// An active version of a zone key, in clear.
pub(crate) struct ClearZoneKey {
    pub(crate) info: ZoneKeyInfo,
    pub(crate) algorithm: KeyAlgorithm,
    pub(crate) key: ClearBytes,
}

impl Keyring {
    /// A keyring without keys and without a roster.
    pub(crate) fn empty() -> Self {
        Self { custody: None, last_entry: [0; 32], unfinished: false, keys: Vec::new() }
    }

    /// Opens a vault file. A missing file is created where `absent` allows it, with every engine key, active.
    ///
    /// # Errors
    /// [`VaultError::Absent`] for a missing file that may not be created; otherwise the errors of reading, opening or writing
    /// the file.
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

    /// Creates a vault file with every engine key, active.
    ///
    /// # Errors
    /// [`VaultError::Present`] where the file exists; [`VaultError::Missing`] where only its key file exists and `key_file` does
    /// not allow its use; otherwise the errors of writing the file.
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

    /// A key of the next version of a usage.
    pub(crate) fn next(&self, name: KeyUsage, algorithm: KeyAlgorithm, travels: Exportability) -> NewKey {
        let version = self.of(&name).map(|key| key.info.version).max().unwrap_or(0).saturating_add(1);
        NewKey { name, version, algorithm, travels, mode: KeyMode::Both }
    }

    /// Adds a pending key.
    pub(crate) fn put(
        &mut self,
        NewKey { name, version, algorithm, travels, mode }: NewKey,
        check_value: Option<Kcv>,
        key: Option<ClearBytes>,
        now: u64,
    ) -> &mut KeyInfo {
        let info = KeyInfo {
            name,
            version,
            algorithm,
            mode,
            exportable: travels == Exportability::On,
            odd_parity: true,
            check_value,
            made_at: now,
            activated_at: None,
            retired_at: None,
            destroyed_at: None,
            uses: 0,
        };
        &mut self.keys.push_mut(RingKey { info, key }).info
    }

    /// The keys of a usage, in every version.
    pub(crate) fn of(&self, name: &KeyUsage) -> impl Iterator<Item = &RingKey> {
        self.keys.iter().filter(move |key| key.info.name == *name)
    }

    /// An IBM 3624 key that is not destroyed and has the name of another one, with another table or other validation data.
    pub(crate) fn of_same_name(&self, name: &KeyUsage) -> Option<&KeyUsage> {
        let KeyUsage::Ibm3624(wanted) = name else { return None };
        let same = |info: &&KeyInfo| match &info.name {
            KeyUsage::Ibm3624(found) => found.name == wanted.name && found != wanted,
            _ => false,
        };
        let kept = self.keys.iter().map(|key| &key.info).filter(|info| info.state() != KeyState::Destroyed);
        kept.filter(same).map(|info| &info.name).next()
    }

    pub(crate) fn find_mut(&mut self, name: &KeyUsage, version: u16) -> Option<&mut RingKey> {
        self.keys.iter_mut().find(|key| key.info.name == *name && key.info.version == version)
    }

    /// The active versions of a usage, the oldest first.
    pub(crate) fn active_versions(&self, name: &KeyUsage) -> Vec<u16> {
        let active = self.of(name).filter(|key| key.info.state() == KeyState::Active);
        let mut versions: Vec<_> = active.map(|key| key.info.version).collect();
        versions.sort_unstable();
        versions
    }

    /// The newest active key of a usage.
    pub(crate) fn active(&self, name: &KeyUsage) -> Option<&RingKey> {
        self.of(name).filter(|key| key.info.state() == KeyState::Active).max_by_key(|key| key.info.version)
    }

    /// The keys that an engine serves with: the active versions of each usage.
    ///
    /// # Errors
    /// [`VaultError::Lacks`] for a usage without an active key. One-way records alone need a one-way key.
    pub(crate) fn serving(&self, vault: &Vault, form: HostForm) -> Result<Keys, VaultError> {
        Ok(Keys {
            storage: self.versions(vault, &KeyUsage::Storage)?,
            storage_tdes: self.versions(vault, &KeyUsage::StorageTdes)?,
            seal: self.versions(vault, &KeyUsage::Seal)?,
            account: self.versions(vault, &KeyUsage::Account)?,
            record: self.versions(vault, &KeyUsage::Record)?,
            retry: self.versions(vault, &KeyUsage::Retry)?,
            one_way: match (self.active(&KeyUsage::StorageOneWay), form) {
                (None, HostForm::Iso4 | HostForm::Iso3 | HostForm::Iso0) => None,
                _ => Some(self.versions(vault, &KeyUsage::StorageOneWay)?),
            },
            verification: self.verification(),
        })
    }

    fn verification(&self) -> Vec<(VerificationKeyInfo, Box<Tzpk>)> {
        let active = |key: &&RingKey| key.info.name.verifies() && key.info.state() == KeyState::Active;
        let keys = self.keys.iter().filter(active);
        keys.filter_map(|RingKey { info, key }| {
            let (version, kcv) = (KeyVersion(info.version), info.check_value);
            let id = KeyId { usage: info.name.clone(), version, kcv };
            Some((VerificationKeyInfo { mode: info.mode, id }, boxed(key.as_ref()?)))
        })
        .collect()
    }

    /// Every active version of the keys of zones.
    pub(crate) fn zone_keys(&self, zones: &[ZoneRules]) -> Vec<ClearZoneKey> {
        let in_use = |RingKey { info, key }: &RingKey| {
            let KeyUsage::Zone(zone) = &info.name else { return None };
            let is_used = info.state() == KeyState::Active && zones.iter().any(|rules| rules.name == *zone);
            let key = ClearBytes::copied(key.as_ref().filter(|_| is_used)?.bytes());
            let odd_parity = Some(has_right_parity(info.algorithm, &key));
            let algorithm = info.algorithm;
            Some(ClearZoneKey { info: ZoneKeyInfo { odd_parity, ..info.of_zone(zone) }, algorithm, key })
        };
        self.keys.iter().filter_map(in_use).collect()
    }

    fn versions<const N: usize>(&self, vault: &Vault, name: &KeyUsage) -> Result<Versioned<Box<Clear<N>>>, VaultError> {
        let active = self.of(name).filter(|key| key.info.state() == KeyState::Active);
        let all = active.filter_map(|RingKey { info, key }| Some((KeyVersion(info.version), boxed(key.as_ref()?))));
        Versioned::new(all.collect()).ok_or_else(|| VaultError::Lacks {
            path: match vault {
                Vault::Memory => "the vault in memory".into(),
                Vault::File { path, .. } => path.clone(),
            },
            missing: name.to_string(),
        })
    }
}

/// Fills a key in its box: a clear key is not moved.
fn boxed<const N: usize>(key: &ClearBytes) -> Box<Clear<N>> {
    let mut clear = Box::new(Clear::zeroed());
    clear.bytes_mut().iter_mut().zip(key.bytes()).for_each(|(place, byte)| *place = *byte);
    clear
}

/// Whether a key may be exported in a key block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exportability {
    On,
    Never,
}

/// A random key. A 3DES key has odd parity, no weak part and no equal parts.
///
/// # Errors
/// [`VaultError::Random`]: the random generator failed.
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

/// Whether every byte of a 3DES key has odd parity; true for other keys.
pub(crate) fn has_right_parity(algorithm: KeyAlgorithm, key: &ClearBytes) -> bool {
    !algorithm.is_tdes() || has_odd_parity(key.bytes())
}

/// Whether a key is weak: a key of zeros, or a 3DES key with a weak or semi-weak part or two equal parts, parity ignored. A
/// triple-length key with K1 = K3 is weak too: it has the strength of a double-length key, but would be exported as a
/// stronger one.
pub(crate) fn is_weak(algorithm: KeyAlgorithm, key: &ClearBytes) -> bool {
    let zeros = key.bytes().iter().fold(0, |all, byte| all | byte) == 0;
    zeros || (algorithm.is_tdes() && has_weak_part(key))
}

fn has_weak_part(key: &ClearBytes) -> bool {
    // `weak_key_test` compares all 64 bits, so the 8 parity bits are set first.
    let mut odd = ClearBytes::copied(key.bytes());
    force_odd_parity(odd.bytes_mut());
    // `weak_key_test` panics at other lengths.
    matches!(odd.bytes().len(), 16 | 24) && des::weak_key_test(odd.bytes()).is_err()
}

/// The KCV (ANSI X9.24-1, annex A), the first 3 bytes: of the CMAC of a zero block for AES, of the encrypted zero block for
/// 3DES, of the HMAC of 16 zero bytes for HMAC-SHA-256.
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

    /// Three strong parts with odd parity.
    const PARTS: [[u8; 8]; 3] = [
        [0x13, 0x34, 0x57, 0x79, 0x9B, 0xBC, 0xDF, 0xF1],
        [0xDF, 0xE9, 0x31, 0x10, 0x16, 0x5B, 0x34, 0x23],
        [0x0D, 0x6D, 0x5B, 0x31, 0x8A, 0x2C, 0x15, 0xAE],
    ];

    fn is_weak_tdes(parts: &[[u8; 8]]) -> bool {
        let algorithm = if parts.len() == 2 { KeyAlgorithm::TdesDouble } else { KeyAlgorithm::TdesTriple };
        is_weak(algorithm, &ClearBytes::copied(parts.as_flattened()))
    }

    /// Flips every parity bit, which the cipher ignores.
    fn flip_parity(part: [u8; 8]) -> [u8; 8] {
        part.map(|byte| byte ^ 1)
    }

    #[test]
    fn a_key_of_different_strong_parts_is_strong_in_any_parity() {
        let [a, b, c] = PARTS;
        assert!(!is_weak_tdes(&[a, b]) && !is_weak_tdes(&[a, b, c]));
        assert!(!is_weak_tdes(&[a, flip_parity(b)]) && !is_weak_tdes(&[flip_parity(a), b, flip_parity(c)]));
    }

    #[test]
    fn two_parts_equal_but_for_parity_are_weak_in_any_position() {
        let [a, b, _] = PARTS;
        for equal in [a, flip_parity(a), [0x13, 0x34, 0x57, 0x79, 0x9B, 0xBC, 0xDF, 0xF0]] {
            assert!(is_weak_tdes(&[a, equal]), "K1 = K2");
            assert!(is_weak_tdes(&[a, equal, b]), "K1 = K2 of three");
            assert!(is_weak_tdes(&[b, a, equal]), "K2 = K3");
            assert!(is_weak_tdes(&[a, b, equal]), "K1 = K3");
        }
    }

    #[test]
    fn a_weak_or_semi_weak_part_is_weak_in_any_parity() {
        let [a, b, _] = PARTS;
        let weak = [[0x01; 8], [0xFE; 8], [0x1F, 0x1F, 0x1F, 0x1F, 0x0E, 0x0E, 0x0E, 0x0E]];
        let semi_weak =
            [[0x01, 0xFE, 0x01, 0xFE, 0x01, 0xFE, 0x01, 0xFE], [0x1F, 0xE0, 0x1F, 0xE0, 0x0E, 0xF1, 0x0E, 0xF1]];
        for part in weak.into_iter().chain(semi_weak) {
            for part in [part, flip_parity(part)] {
                assert!(
                    is_weak_tdes(&[part, a]) && is_weak_tdes(&[a, part]) && is_weak_tdes(&[a, b, part]),
                    "{part:02X?}"
                );
            }
        }
    }

    #[test]
    fn zero_keys_and_keys_of_only_parity_bits_are_weak() {
        for algorithm in KeyAlgorithm::ALL {
            assert!(is_weak(algorithm, &ClearBytes::zeroed(algorithm.bytes())), "{algorithm}");
        }
        assert!(is_weak_tdes(&[[1; 8], [0; 8]]) && is_weak_tdes(&[[0; 8], [1; 8], [0; 8]]));
    }
}
