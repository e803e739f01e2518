//! The keys of a vault or token as a ceremony changes them: generate, load from components, import and export in key blocks,
//! activate, retire, destroy. A vault writes nothing before [`KeyStore::commit`]. A token holds a new key before its inventory
//! lists the key; a step that fails destroys the key again.
//!
//! The caller decides who may change a key. What must never enter: a clear key that leaves this crate.

mod location;

use std::path::PathBuf;

use aws_lc_rs::rand;
use thiserror::Error;

use self::location::{KeyLocation, StoredKey};
use hsm_protocol::{BoundaryLevel, Kcv, PinRecord, SealedKey, StorageFormat};

use crate::{
    clear::ClearBytes,
    component::{ComponentError, Components},
    config::{Keys, LockMemory, Wanted},
    harden::harden,
    keyblock::{Header, KeyBlock, KeyBlockError, ProtectionKey, Purpose, Version},
    keyring::{
        Exportability, KeyAlgorithm, KeyInfo, KeyMode, KeyState, KeyUsage, Keyring, NewKey, RingKey, check_value,
        has_right_parity, is_weak,
    },
    open_error::{OpenError, Pkcs11Error},
    token::reserved_in,
    vault::VaultError,
};

/// The longest lifetime of a control, one hour.
const CONTROL_MILLISECONDS_MAX: u64 = 3_600_000;

/// Counts of stored values by key: PIN records by storage key, and tzpks of live controls by seal key.
#[derive(Default)]
pub struct RecordsKept {
    records: Vec<((KeyUsage, u16), u64)>,
    /// By version of the seal key. A vault or token never has active seal and seal-encrypting keys at once.
    controls: Vec<(u16, u64)>,
}

/// The known use of a key that is to be retired or destroyed.
pub enum KeyUse {
    /// Nothing was counted. Sufficient for a key that [`KeyStore::needs_count`] answers false for.
    NotCounted,
    /// The sum over every store and every running engine. Each running engine uses the newest key of the usage.
    Counted(RecordsKept),
    /// As [`KeyUse::Counted`], and the participants give up the PINs of the one-way records under the key. For any other key
    /// the same as [`KeyUse::Counted`].
    Abandoned(RecordsKept),
    /// The participants confirm that no store holds a value under the key and that no engine uses the key.
    ConfirmedUnused,
}

impl RecordsKept {
    /// Counts one PIN record.
    pub fn count(&mut self, record: &PinRecord) {
        self.count_many(record.form(), record.made_at().level, record.storage_key().0, 1);
    }

    /// Counts PIN records of a format and level under a version of the storage key.
    pub fn count_many(&mut self, form: StorageFormat, level: BoundaryLevel, version: u16, records: u64) {
        increase(&mut self.records, (KeyUsage::storage_of(level, form), version), records);
    }

    /// Counts the tzpk of one live control.
    pub fn count_sealed(&mut self, tzpk: &SealedKey) {
        self.count_many_sealed(tzpk.key().0, 1);
    }

    /// Counts the tzpks of live controls under a version of the seal key.
    pub fn count_many_sealed(&mut self, version: u16, controls: u64) {
        increase(&mut self.controls, version, controls);
    }

    /// Adds the counts of another store or engine.
    pub fn add(&mut self, other: &Self) {
        other.records.iter().for_each(|(key, records)| increase(&mut self.records, key.clone(), *records));
        other.controls.iter().for_each(|(version, controls)| increase(&mut self.controls, *version, *controls));
    }

    /// The PIN records under a storage key; 0 for any other usage.
    pub fn records_under(&self, name: &KeyUsage, version: u16) -> u64 {
        let counted = self.records.iter().find(|((usage, counted), _)| usage == name && *counted == version);
        counted.map_or(0, |(_, records)| *records)
    }

    /// The live controls with a tzpk under a seal key; 0 for any other usage.
    pub fn controls_under(&self, name: &KeyUsage, version: u16) -> u64 {
        let counted = self.controls.iter().find(|(counted, _)| name.seals() && *counted == version);
        counted.map_or(0, |(_, controls)| *controls)
    }
}

fn increase<K: PartialEq>(counts: &mut Vec<(K, u64)>, key: K, by: u64) {
    match counts.iter_mut().find(|(counted, _)| *counted == key) {
        Some((_, count)) => *count = count.saturating_add(by),
        None => counts.push((key, by)),
    }
}

/// The open keys of a vault or token. An open vault is locked. A token has no lock: a step is rejected where another
/// ceremony changed the token first.
pub struct KeyStore {
    keyring: Keyring,
    location: KeyLocation,
    tdes_count: Option<PathBuf>,
}

impl KeyStore {
    /// Hardens the process, then opens a vault or logs in to a token at the wanted level. A missing vault is empty; the first
    /// commit creates the file.
    ///
    /// # Errors
    /// [`KeyStoreError::Memory`] for a vault in memory; [`KeyStoreError::Locked`] while another process has the vault open;
    /// [`KeyStoreError::Vault`], [`KeyStoreError::Token`] or [`KeyStoreError::Open`] where the vault or token does not open.
    pub fn open(keys: Keys, wanted: &Wanted, now: u64) -> Result<Self, KeyStoreError> {
        // A ceremony does not need locked memory: the ceremony is short, and its leader chose the machine.
        harden(LockMemory::Try)?;
        let tdes_count = keys.tdes_count();
        let (location, keyring) = KeyLocation::open(keys, wanted, now)?;
        Ok(Self { keyring, location, tdes_count })
    }

    /// The algorithms that a key of this usage may have here, the default first; empty where this vault or token has no such
    /// key.
    pub fn algorithms(&self, name: &KeyUsage) -> &'static [KeyAlgorithm] {
        self.location.algorithms(name)
    }

    /// The description of every key, in the order of creation.
    pub fn keys(&self) -> impl Iterator<Item = &KeyInfo> {
        self.keyring.keys.iter().map(|key| &key.info)
    }

    /// The blocks that a 3DES storage key has encrypted at most, of the 2^20 allowed; `None` for another key.
    ///
    /// # Errors
    /// [`KeyStoreError::Vault`] where the count file can't be read.
    pub fn tdes_blocks(&self, info: &KeyInfo) -> Result<Option<u64>, KeyStoreError> {
        let Some(path) = self.tdes_count.as_ref().filter(|_| info.name.keeps_records() && info.algorithm.is_tdes())
        else {
            return Ok(None);
        };
        let reserved = reserved_in(path).map_err(|error| VaultError::Io { path: path.clone(), error })?;
        Ok(Some(reserved.get(&info.version).copied().unwrap_or_default()))
    }

    /// SHA-256 of the roster whose participants may change the keys; `None` before the first ceremony.
    pub fn roster_hash(&self) -> Option<[u8; 32]> {
        self.keyring.custody
    }

    /// The hash of the transcript's entry of the last change; zeros before the first change.
    pub fn last_entry(&self) -> [u8; 32] {
        self.keyring.last_entry
    }

    /// Puts the keys in the custody of a roster, given by its SHA-256.
    pub fn set_roster(&mut self, roster: [u8; 32]) {
        self.keyring.custody = Some(roster);
    }

    /// Generates a pending key.
    ///
    /// # Errors
    /// [`KeyStoreError::NotHere`] or [`KeyStoreError::Algorithm`] where this vault or token has no such key;
    /// [`KeyStoreError::Token`] where the token fails.
    pub fn make(&mut self, name: KeyUsage, algorithm: KeyAlgorithm, now: u64) -> Result<KeyInfo, KeyStoreError> {
        let new = self.next(name, algorithm)?;
        let kept = self.location.make(&new)?;
        Ok(self.put(new, kept, now))
    }

    /// Loads a pending key from its components.
    ///
    /// # Errors
    /// As [`Self::make`]; [`KeyStoreError::Component`] where the components make no good key; [`KeyStoreError::Known`] where a
    /// key with this KCV exists.
    pub fn load(&mut self, name: KeyUsage, components: &Components, now: u64) -> Result<KeyInfo, KeyStoreError> {
        let new = self.next(name, components.algorithm())?;
        let key = components.combined()?;
        self.check_new(check_value(new.algorithm, &key), &new.name)?;
        let kept = self.location.store(&new, key)?;
        Ok(self.put(new, kept, now))
    }

    /// Activates a pending key. The newest active version encrypts; older active versions only decrypt.
    ///
    /// # Errors
    /// [`KeyStoreError::NoRotation`] where a usage that does not rotate has an active key; [`KeyStoreError::Unknown`] and
    /// [`KeyStoreError::State`].
    pub fn activate(&mut self, name: &KeyUsage, version: u16, now: u64) -> Result<KeyInfo, KeyStoreError> {
        if !name.rotates()
            && let Some(active) = self.keyring.active(name)
        {
            return Err(KeyStoreError::NoRotation { active: active.info.reference() });
        }
        self.change_state(name, version, &[KeyState::Pending], KeyState::Active, |info| info.activated_at = Some(now))
    }

    /// Retires a key. Of an engine's keys only an older version can be retired: a storage key when no record is under the key,
    /// a seal key one hour after the newer key was activated.
    ///
    /// # Errors
    /// [`KeyStoreError::Newest`], [`KeyStoreError::NotCounted`], [`KeyStoreError::InUse`], [`KeyStoreError::Sealed`] or
    /// [`KeyStoreError::TooSoon`] where the key may be needed; [`KeyStoreError::Unknown`] and [`KeyStoreError::State`].
    pub fn retire(
        &mut self,
        name: &KeyUsage,
        version: u16,
        key_use: &KeyUse,
        now: u64,
    ) -> Result<KeyInfo, KeyStoreError> {
        self.may_retire(name, version, key_use, now)?;
        let from = [KeyState::Pending, KeyState::Active];
        self.change_state(name, version, &from, KeyState::Retired, |info| info.retired_at = Some(now))
    }

    /// Whether PIN records or live controls may be under a key: a storage or seal key that was active. Such a key is retired
    /// and destroyed only after a count.
    pub fn needs_count(&self, name: &KeyUsage, version: u16) -> bool {
        let was_active = |key: &RingKey| key.info.version == version && key.info.activated_at.is_some();
        (name.keeps_records() || name.seals()) && self.keyring.of(name).any(was_active)
    }

    /// Fails for a key that a record or control needs, and for a key without a count.
    fn check_unused(&self, name: &KeyUsage, version: u16, key_use: &KeyUse) -> Result<(), KeyStoreError> {
        if !self.needs_count(name, version) {
            return Ok(());
        }
        let key = format!("{name}/{version}");
        let counted = match key_use {
            KeyUse::NotCounted => return Err(KeyStoreError::NotCounted { key }),
            KeyUse::ConfirmedUnused => return Ok(()),
            KeyUse::Abandoned(_) if *name == KeyUsage::StorageOneWay => return Ok(()),
            KeyUse::Counted(counted) | KeyUse::Abandoned(counted) => counted,
        };
        match (counted.records_under(name, version), counted.controls_under(name, version)) {
            (0, 0) => Ok(()),
            (0, controls) => Err(KeyStoreError::Sealed { key, controls }),
            (records, _) => Err(KeyStoreError::InUse { key, records }),
        }
    }

    fn may_retire(&self, name: &KeyUsage, version: u16, key_use: &KeyUse, now: u64) -> Result<(), KeyStoreError> {
        let Some(newest) = self.keyring.active(name).filter(|_| name.is_an_engines()) else { return Ok(()) };
        let reference = format!("{name}/{version}");
        // A pending key is newer than every active one, and no value is under a pending key.
        if newest.info.version < version {
            return Ok(());
        }
        if newest.info.version == version {
            return Err(KeyStoreError::Newest { key: reference });
        }
        self.check_unused(name, version, key_use)?;
        let since = now.saturating_sub(newest.info.activated_at.unwrap_or(now));
        if name.seals() && since < CONTROL_MILLISECONDS_MAX {
            return Err(KeyStoreError::TooSoon { key: reference });
        }
        Ok(())
    }

    /// Destroys the value of a retired key; the description stays. `confirmed` is the KCV as a second participant read it,
    /// `none` for a key without a KCV. A key that [`Self::needs_count`] is counted again: an operator may have restored a store
    /// from a backup.
    ///
    /// # Errors
    /// [`KeyStoreError::NotConfirmed`] where `confirmed` differs; [`KeyStoreError::NotCounted`], [`KeyStoreError::StillNeeded`]
    /// or [`KeyStoreError::Sealed`] where the key may be needed; [`KeyStoreError::Unknown`] and [`KeyStoreError::State`].
    pub fn destroy(
        &mut self,
        name: &KeyUsage,
        version: u16,
        confirmed: &str,
        key_use: &KeyUse,
        now: u64,
    ) -> Result<KeyInfo, KeyStoreError> {
        let found = self.keyring.find_mut(name, version).ok_or_else(|| unknown(name, version))?;
        if parse_confirmation(confirmed) != Some(found.info.check_value) {
            return Err(KeyStoreError::NotConfirmed { key: found.info.reference() });
        }
        let (key, state) = (found.info.reference(), found.info.state());
        if state != KeyState::Retired {
            return Err(KeyStoreError::State { key, state, wanted: "retired" });
        }
        match self.check_unused(name, version, key_use) {
            Err(KeyStoreError::InUse { key, records }) => return Err(KeyStoreError::StillNeeded { key, records }),
            unused => unused?,
        }
        let destroyed = self.change_state(name, version, &[KeyState::Retired], KeyState::Destroyed, |info| {
            info.destroyed_at = Some(now)
        })?;
        if let Some(found) = self.keyring.find_mut(name, version) {
            found.key = None;
        }
        Ok(destroyed)
    }

    /// Exports a zone key in a key block, under a key-exchange key of at least its strength. The block has the key's mode of
    /// use.
    ///
    /// # Errors
    /// [`KeyStoreError::StaysHere`] for a key that is not exportable; [`KeyStoreError::NoExchange`],
    /// [`KeyStoreError::Mode`] or [`KeyStoreError::Strength`] where `under` does not suit; [`KeyStoreError::KeyBlock`] for a
    /// version that is not written; [`KeyStoreError::Unknown`] and [`KeyStoreError::State`].
    pub fn export(
        &mut self,
        (name, version): (&KeyUsage, u16),
        under: &KeyUsage,
        block_version: Version,
    ) -> Result<String, KeyStoreError> {
        let (block, kek_version) = self.key_block((name, version), under, block_version)?;
        self.count_use(name, version);
        self.count_use(under, kek_version);
        Ok(block)
    }

    /// The key block, and the version of its key-exchange key.
    fn key_block(
        &self,
        (name, version): (&KeyUsage, u16),
        under: &KeyUsage,
        block_version: Version,
    ) -> Result<(String, u16), KeyStoreError> {
        let kek = self.kek(under, KeyMode::Encrypts)?;
        let found = self.keyring.of(name).find(|key| key.info.version == version);
        let found = found.ok_or_else(|| unknown(name, version))?;
        let (info, state) = (&found.info, found.info.state());
        if !matches!(name, KeyUsage::Zone(_)) || !info.exportable {
            return Err(KeyStoreError::StaysHere { key: info.reference() });
        }
        let wrong_state = || KeyStoreError::State { key: info.reference(), state, wanted: "pending or active" };
        if !matches!(state, KeyState::Pending | KeyState::Active) {
            return Err(wrong_state());
        }
        check_strength(info.algorithm, kek.algorithm)?;
        let key = self.location.export(found)?.ok_or_else(wrong_state)?;
        let letter = if info.algorithm.is_tdes() { 'T' } else { 'A' };
        // Exportability E is narrower than S (ANSI X9.143), so a key that came with S leaves with E.
        let header = Header::new(block_version, ['P', '0'], letter, info.mode.letter(), 'E');
        let fill = |bytes: &mut [u8]| rand::fill(bytes).map_err(|_| KeyBlockError::Random);
        Ok((KeyBlock::write(&header, &kek.key, &key, fill)?, kek.version))
    }

    /// Imports a pending key from a key block under a key-exchange key. The block sets the key's mode of use and
    /// exportability. The parity of a 3DES key stays; [`KeyInfo::odd_parity`] reports the parity.
    ///
    /// # Errors
    /// [`KeyStoreError::KeyBlock`] where the block is malformed, does not open, has another purpose or names another KCV;
    /// [`KeyStoreError::NoExchange`], [`KeyStoreError::Mode`] or [`KeyStoreError::Strength`] where `under` does not suit;
    /// [`KeyStoreError::Weak`] and [`KeyStoreError::Known`] by the key; [`KeyStoreError::StaysHere`] for an engine's key.
    pub fn import(
        &mut self,
        name: KeyUsage,
        block: &str,
        under: &KeyUsage,
        now: u64,
    ) -> Result<KeyInfo, KeyStoreError> {
        let purpose = match name {
            KeyUsage::Zone(_) => Purpose::ZoneKey,
            KeyUsage::Exchange(_) => Purpose::ExchangeKey,
            KeyUsage::Pvk(_) => Purpose::Pvk,
            KeyUsage::Ibm3624(_) => Purpose::Ibm3624Key,
            _ => return Err(KeyStoreError::StaysHere { key: name.to_string() }),
        };
        let block = KeyBlock::parse(block)?;
        block.check_purpose(purpose)?;
        let header = block.header();
        let mode = KeyMode::of_letter(header.mode()).ok_or(KeyBlockError::Header { field: "mode of use" })?;
        let (key, algorithm, kek_version) = self.open_block(&block, under)?;
        let new = self.next(name, algorithm)?;
        let travels = if header.exportability() == 'N' { Exportability::Never } else { new.travels };
        let new = NewKey { travels, mode, ..new };
        let kcv = check_value(algorithm, &key);
        block.check_kcv(if algorithm.is_tdes() { "00" } else { "01" }, kcv.as_bytes())?;
        self.check_new(kcv, &new.name)?;
        let odd_parity = has_right_parity(algorithm, &key);
        let kept = self.location.store(&new, key)?;
        let mut info = self.put(new, kept, now);
        info.odd_parity = odd_parity;
        if let Some(found) = self.keyring.find_mut(&info.name, info.version) {
            found.info.odd_parity = odd_parity;
        }
        self.count_use(under, kek_version);
        Ok(info)
    }

    /// The key of a block, its algorithm, and the version of its key-exchange key.
    fn open_block(&self, block: &KeyBlock, under: &KeyUsage) -> Result<(ClearBytes, KeyAlgorithm, u16), KeyStoreError> {
        let kek = self.kek(under, KeyMode::Decrypts)?;
        let key = block.open(&kek.key)?;
        let algorithm = algorithm_of(block, &key).ok_or(KeyBlockError::KeyLength)?;
        check_strength(algorithm, kek.algorithm)?;
        if is_weak(algorithm, &key) {
            return Err(KeyStoreError::Weak);
        }
        Ok((key, algorithm, kek.version))
    }

    /// Writes every change to the vault or token, with the hash of the transcript's entry and the mark of an unfinished step.
    /// [`KeyStore::finish`] removes the mark.
    ///
    /// # Errors
    /// [`KeyStoreError::Vault`] or [`KeyStoreError::Token`]. The keys are unchanged unless
    /// [`KeyStoreError::may_have_changed`].
    pub fn commit(&mut self, entry: [u8; 32]) -> Result<(), KeyStoreError> {
        self.keyring.last_entry = entry;
        self.keyring.unfinished = true;
        self.location.commit(&self.keyring)
    }

    /// Whether the transcript may lack the entry of [`KeyStore::last_entry`].
    pub fn is_unfinished(&self) -> bool {
        self.keyring.unfinished
    }

    /// Removes the mark of an unfinished step, after its entry is on disk in the transcript.
    ///
    /// # Errors
    /// [`KeyStoreError::Vault`] or [`KeyStoreError::Token`]. The mark may stay; the keys are unchanged.
    pub fn finish(&mut self) -> Result<(), KeyStoreError> {
        self.keyring.unfinished = false;
        self.location.commit(&self.keyring)
    }

    /// The next version of a usage. Keys of an engine, PVKs and IBM 3624 keys are never exportable.
    fn next(&self, name: KeyUsage, algorithm: KeyAlgorithm) -> Result<NewKey, KeyStoreError> {
        if let Some(other) = self.keyring.of_same_name(&name) {
            return Err(KeyStoreError::NameTaken { key: name.to_string(), other: other.to_string() });
        }
        match self.location.algorithms(&name) {
            [] => Err(KeyStoreError::NotHere { key: name.to_string() }),
            known if !known.contains(&algorithm) => Err(KeyStoreError::Algorithm { key: name.to_string(), algorithm }),
            _ => {
                let stays = name.is_an_engines() || name.verifies();
                let travels = if stays { Exportability::Never } else { Exportability::On };
                Ok(self.keyring.next(name, algorithm, travels))
            }
        }
    }

    fn put(&mut self, new: NewKey, StoredKey { kcv, bytes }: StoredKey, now: u64) -> KeyInfo {
        self.keyring.put(new, kcv, bytes, now).clone()
    }

    fn change_state(
        &mut self,
        name: &KeyUsage,
        version: u16,
        from: &[KeyState],
        to: KeyState,
        change: impl FnOnce(&mut KeyInfo),
    ) -> Result<KeyInfo, KeyStoreError> {
        let found = self.keyring.find_mut(name, version).ok_or_else(|| unknown(name, version))?;
        if !from.contains(&found.info.state()) {
            let wanted = match to {
                KeyState::Active => "pending",
                KeyState::Retired => "pending or active",
                _ => "retired",
            };
            return Err(KeyStoreError::State { key: found.info.reference(), state: found.info.state(), wanted });
        }
        change(&mut found.info);
        Ok(found.info.clone())
    }

    /// Fails where another key has this KCV: two usages or two parties never share a key.
    fn check_new(&self, found: Kcv, name: &KeyUsage) -> Result<(), KeyStoreError> {
        let same = self.keyring.keys.iter().find(|key| key.info.check_value == Some(found));
        same.map_or(Ok(()), |same| Err(KeyStoreError::Known { key: name.to_string(), same: same.info.reference() }))
    }

    /// The active key-exchange key of a party, for encryption or decryption.
    fn kek(&self, name: &KeyUsage, wanted: KeyMode) -> Result<Kek<'_>, KeyStoreError> {
        let missing = || KeyStoreError::NoExchange { key: name.to_string() };
        let KeyUsage::Exchange(_) = name else { return Err(missing()) };
        let found = self.keyring.active(name).ok_or_else(missing)?;
        let mode = found.info.mode;
        if !mode.allows(wanted) {
            return Err(KeyStoreError::Mode { key: found.info.reference(), mode });
        }
        let key = self.location.protection_key(found)?.ok_or_else(missing)?;
        Ok(Kek { key, algorithm: found.info.algorithm, version: found.info.version })
    }

    fn count_use(&mut self, name: &KeyUsage, version: u16) {
        if let Some(found) = self.keyring.find_mut(name, version) {
            found.info.uses += 1;
        }
    }
}

/// A key-exchange key: the key-encrypting key (usage K0) shared with another party.
struct Kek<'a> {
    key: ProtectionKey<'a>,
    algorithm: KeyAlgorithm,
    version: u16,
}

/// A KCV of 6 hexadecimal digits, or `none` for a key without a KCV.
fn parse_confirmation(text: &str) -> Option<Option<Kcv>> {
    if text.eq_ignore_ascii_case("none") {
        return Some(None);
    }
    let mut kcv = [0; 3];
    let digits = base16ct::mixed::decode(text, &mut kcv).ok()?;
    (digits.len() == 3).then_some(Some(Kcv::from_bytes(kcv)))
}

fn unknown(name: &KeyUsage, version: u16) -> KeyStoreError {
    KeyStoreError::Unknown { key: format!("{name}/{version}") }
}

/// The algorithm of a key block's key, by header and length.
fn algorithm_of(block: &KeyBlock, key: &ClearBytes) -> Option<KeyAlgorithm> {
    let tdes = block.header().algorithm() == 'T';
    KeyAlgorithm::ALL.into_iter().find(|one| one.is_tdes() == tdes && one.bytes() == key.bytes().len())
}

fn check_strength(key: KeyAlgorithm, under: KeyAlgorithm) -> Result<(), KeyStoreError> {
    if key.strength() <= under.strength() { Ok(()) } else { Err(KeyStoreError::Strength { key, under }) }
}

/// A key was not changed. Only where [`KeyStoreError::may_have_changed`], the change may have happened; the next step checks.
#[derive(Debug, Error)]
pub enum KeyStoreError {
    /// A vault in memory has no file to change.
    #[error("a vault in memory has no ceremony: name a file")]
    Memory,
    /// Another process has the vault open.
    #[error("another process is changing {}: wait until its ceremony step ends", path.display())]
    Locked {
        /// The vault.
        path: PathBuf,
    },
    /// The vault can't be read or written.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The token fails or rejects the change.
    #[error(transparent)]
    Token(#[from] Pkcs11Error),
    /// The process can't be hardened, or the token does not support the wanted level.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The components make no good key.
    #[error(transparent)]
    Component(#[from] ComponentError),
    /// The key block is malformed, does not open or can't be written.
    #[error(transparent)]
    KeyBlock(#[from] KeyBlockError),
    /// No key with this usage and version exists in the vault or token.
    #[error("there is no {key}")]
    Unknown {
        /// For example `storage/2`.
        key: String,
    },
    /// The state of the key does not allow the change.
    #[error("{key} is {state}: it would have to be {wanted}")]
    State {
        /// For example `storage/1`.
        key: String,
        /// The state of the key.
        state: KeyState,
        /// The states that allow the change.
        wanted: &'static str,
    },
    /// The usage has an active key and does not rotate: this release can't re-encrypt or re-tag the values under the key.
    #[error("{active} is active, and this release can't rotate it: values under it would not open under another key")]
    NoRotation {
        /// The active key, for example `account/1`.
        active: String,
    },
    /// An engine encrypts under this key.
    #[error("{key} is the newest active version: activate a newer one first")]
    Newest {
        /// For example `storage/1`.
        key: String,
    },
    /// PIN records are under the key.
    #[error(
        "{records} PIN records are under {key}: start the engine, which re-encrypts them, and wait until it logs that all are done; a one-way record moves when its PIN is set or verified right, and --abandon gives it up"
    )]
    InUse {
        /// For example `storage/1`.
        key: String,
        /// The sum over all stores and engines.
        records: u64,
    },
    /// PIN records are under a retired key. No engine decrypts or re-encrypts them.
    #[error("{records} PIN records are under {key}: they would be lost, so nothing was destroyed; keep the key")]
    StillNeeded {
        /// For example `storage/1`.
        key: String,
        /// The sum over all stores and engines.
        records: u64,
    },
    /// Live controls have a tzpk under the key.
    #[error("{controls} live controls have a tzpk under {key}: wait until they expire, an hour at most")]
    Sealed {
        /// For example `seal/1`.
        key: String,
        /// The sum over all stores and engines.
        controls: u64,
    },
    /// The use of the key was not counted.
    #[error(
        "the records and controls under {key} are not counted: name every store and every running engine that uses it"
    )]
    NotCounted {
        /// For example `storage/1`.
        key: String,
    },
    /// Controls that are still alive may have a tzpk under the key.
    #[error("{key} may be needed for an hour after the newer version was activated, by controls opened before: wait")]
    TooSoon {
        /// For example `seal/1`.
        key: String,
    },
    /// This vault, or this token at this level, has no such usage.
    #[error("there is no {key} here: a vault, and a token at each level, have different keys (docs/ceremony.md)")]
    NotHere {
        /// The usage, for example `mac`.
        key: String,
    },
    /// The usage does not allow the algorithm.
    #[error("{key} can't be an {algorithm} key")]
    Algorithm {
        /// The usage, for example `storage`.
        key: String,
        /// The rejected algorithm.
        algorithm: KeyAlgorithm,
    },
    /// The key-exchange key is weaker than the key (PCI PIN, annex C).
    #[error("an {key} key does not travel under an {under} key, which is weaker")]
    Strength {
        /// The algorithm of the key.
        key: KeyAlgorithm,
        /// The algorithm of the key-exchange key.
        under: KeyAlgorithm,
    },
    /// The key is not exportable, or its usage is never exported or imported.
    #[error("{key} is neither exported nor imported in a key block")]
    StaysHere {
        /// For example `storage/1`.
        key: String,
    },
    /// The party has no active key-exchange key.
    #[error("there is no active key-exchange key {key}: make or load exchange:NAME, and activate it")]
    NoExchange {
        /// For example `exchange:acquirer`.
        key: String,
    },
    /// The mode of use of the key-exchange key does not allow the operation.
    #[error("{key} {mode}: an export needs a key-exchange key that encrypts, an import one that decrypts")]
    Mode {
        /// For example `exchange:acquirer/1`.
        key: String,
        /// The mode of use of the key-exchange key.
        mode: KeyMode,
    },
    /// A key with the same KCV exists.
    #[error("{key} would have the check value of {same}: a key has one usage")]
    Known {
        /// The usage of the new key.
        key: String,
        /// The existing key.
        same: String,
    },
    /// An IBM 3624 key with this name and another decimalisation table or other validation data exists. A request names the
    /// key by its name alone.
    #[error("{key} would have the name of {other}: an IBM 3624 key has one decimalisation table; choose another name")]
    NameTaken {
        /// The new key.
        key: String,
        /// The existing key.
        other: String,
    },
    /// The imported key is a weak 3DES key, has two equal parts, or is zero.
    #[error("the key is weak, or has two equal parts: ask for another")]
    Weak,
    /// The confirmed KCV is not that of the key.
    #[error("that is not the check value of {key}: nothing was destroyed")]
    NotConfirmed {
        /// For example `zone:acquirer/1`.
        key: String,
    },
}

impl KeyStoreError {
    /// Whether the keys may have changed despite this error of [`KeyStore::commit`].
    pub fn may_have_changed(&self) -> bool {
        match self {
            Self::Vault(error) => matches!(error, VaultError::NotSynced { .. }),
            Self::Token(error) => !error.left_inventory_unwritten(),
            _ => false,
        }
    }
}

#[cfg(test)]
mod store_tests;
