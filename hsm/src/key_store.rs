//! The keys of a vault or of a token as a ceremony changes them: they are made, loaded, imported from and exported in
//! key blocks, activated, retired, destroyed. A vault has nothing on disk before [`KeyStore::commit`]. A token holds a
//! new key before its register lists it; a step that fails removes the key again.
//!
//! Who may do it is not decided here. What must never enter: a clear key that leaves.

mod location;

use std::path::PathBuf;

use aws_lc_rs::rand;
use thiserror::Error;

use self::location::{KeptKey, KeyLocation};
use crate::{
    binding::BoundaryLevel,
    check_value::Kcv,
    clear::ClearBytes,
    component::{ComponentError, Components},
    config::{Keys, LockMemory, Wanted},
    form::StorageFormat,
    harden::harden,
    keyblock::{Header, KeyBlock, KeyBlockError, ProtectionKey, Purpose, Version},
    keyring::{
        Exportability, KeyAlgorithm, KeyInfo, KeyMode, KeyState, KeyUsage, Keyring, NewKey, RingKey, check_value,
        is_weak,
    },
    open_error::{OpenError, Pkcs11Error},
    sealed::{PinRecord, SealedKey},
    token::reserved_in,
    vault::VaultError,
};

/// How long a control may live, at most.
const CONTROL_MILLISECONDS_MAX: u64 = 3_600_000;

/// How many PIN records are under each storage key, and how many live controls have a tzpk under each seal key.
#[derive(Default)]
pub struct RecordsKept {
    under: Vec<((KeyUsage, u16), u64)>,
    /// By the version of the seal key; a vault or token has seal or seal-encrypting keys, never both in use.
    sealed: Vec<(u16, u64)>,
}

/// What is known of the use of a key that is to be retired or destroyed.
pub enum KeyUse {
    /// Nothing was counted. Enough for a key that [`KeyStore::needs_count`] says no count is needed of.
    NotCounted,
    /// The sum over every store and running engine that was asked. Each running engine uses the newest key of the name.
    Counted(RecordsKept),
    /// People confirmed that no store holds anything under the key and that no engine uses it.
    ConfirmedUnused,
}

impl RecordsKept {
    /// Counts one more.
    pub fn count(&mut self, record: &PinRecord) {
        self.count_many(record.form(), record.made_at().level, record.storage_key().0, 1);
    }

    /// Counts so many more of a form, made at a level, under a version of its storage key.
    pub fn count_many(&mut self, form: StorageFormat, level: BoundaryLevel, version: u16, records: u64) {
        let under = (KeyUsage::storage_of(level, form), version);
        match self.under.iter_mut().find(|(found, _)| *found == under) {
            Some((_, counted)) => *counted = counted.saturating_add(records),
            None => self.under.push((under, records)),
        }
    }

    /// Counts the tzpk of one live control.
    pub fn count_sealed(&mut self, tzpk: &SealedKey) {
        self.count_many_sealed(tzpk.key().0, 1);
    }

    /// Counts so many tzpks of live controls under a version of the seal key.
    pub fn count_many_sealed(&mut self, version: u16, controls: u64) {
        match self.sealed.iter_mut().find(|(found, _)| *found == version) {
            Some((_, counted)) => *counted = counted.saturating_add(controls),
            None => self.sealed.push((version, controls)),
        }
    }

    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Self) {
        for ((name, version), records) in &other.under {
            match self.under.iter_mut().find(|((found, its), _)| found == name && its == version) {
                Some((_, counted)) => *counted = counted.saturating_add(*records),
                None => self.under.push(((name.clone(), *version), *records)),
            }
        }
        other.sealed.iter().for_each(|(version, controls)| self.count_many_sealed(*version, *controls));
    }

    /// PIN records under a storage key; 0 of any other key.
    pub fn records_under(&self, name: &KeyUsage, version: u16) -> u64 {
        let of_key = self.under.iter().find(|((found, its), _)| found == name && *its == version);
        of_key.map_or(0, |(_, records)| *records)
    }

    /// Live controls with a tzpk under a seal key; 0 of any other key.
    pub fn controls_under(&self, name: &KeyUsage, version: u16) -> u64 {
        let of_key = self.sealed.iter().find(|(its, _)| name.seals() && *its == version);
        of_key.map_or(0, |(_, controls)| *controls)
    }
}

/// The keys of a vault or a token, opened to be changed. A vault is locked while it is open. A token has no lock: a
/// step is rejected where another ceremony changed the token first.
pub struct KeyStore {
    keyring: Keyring,
    location: KeyLocation,
    tdes_count: Option<PathBuf>,
}

impl KeyStore {
    /// Hardens the process and opens a vault or logs in to a token, whose keys are those of the wanted level. A vault that is
    /// not there yet is empty, and made with the first commit.
    pub fn open(keys: Keys, wanted: &Wanted, now: u64) -> Result<Self, KeyStoreError> {
        // Where memory can't be locked a ceremony goes on: it is short, and its leader chose the machine.
        harden(LockMemory::Try).map_err(|error| KeyStoreError::Harden(error.to_string()))?;
        let tdes_count = keys.tdes_count();
        let (location, keyring) = KeyLocation::open(keys, wanted, now)?;
        Ok(Self { keyring, location, tdes_count })
    }

    /// What a key may be used with here, the first where nothing is said; none where there is no such key.
    pub fn algorithms(&self, name: &KeyUsage) -> &'static [KeyAlgorithm] {
        self.location.algorithms(name)
    }

    /// Every key without its value, in the order of creation.
    pub fn keys(&self) -> impl Iterator<Item = &KeyInfo> {
        self.keyring.keys.iter().map(|key| &key.info)
    }

    /// How many blocks a 3DES storage key may have made, of 2^20; none of another key.
    pub fn tdes_blocks(&self, info: &KeyInfo) -> Result<Option<u64>, KeyStoreError> {
        let Some(path) = self.tdes_count.as_ref().filter(|_| info.name.keeps_records() && info.algorithm.is_tdes())
        else {
            return Ok(None);
        };
        let reserved = reserved_in(path).map_err(|error| VaultError::Io { path: path.clone(), error })?;
        Ok(Some(reserved.get(&info.version).copied().unwrap_or_default()))
    }

    /// SHA-256 of the roster of those who may change it; none before the first ceremony.
    pub fn roster_hash(&self) -> Option<[u8; 32]> {
        self.keyring.custody
    }

    /// The hash of the transcript's entry of the last change; zeros before the first.
    pub fn last_entry(&self) -> [u8; 32] {
        self.keyring.last_entry
    }

    /// Gives it into the custody of a roster.
    pub fn set_roster(&mut self, roster: [u8; 32]) {
        self.keyring.custody = Some(roster);
    }

    /// Makes a fresh key, pending.
    pub fn make(&mut self, name: KeyUsage, algorithm: KeyAlgorithm, now: u64) -> Result<KeyInfo, KeyStoreError> {
        let new = self.next(name, algorithm)?;
        let kept = self.location.make(&new)?;
        Ok(self.put(new, KeyMode::Both, kept, now))
    }

    /// Loads a key from its components, pending.
    pub fn load(&mut self, name: KeyUsage, components: &Components, now: u64) -> Result<KeyInfo, KeyStoreError> {
        let new = self.next(name, components.algorithm())?;
        let key = components.combined()?;
        self.is_new(check_value(new.algorithm, &key), &new.name)?;
        let kept = self.location.keep(&new, key)?;
        Ok(self.put(new, KeyMode::Both, kept, now))
    }

    /// Puts a pending key into use. The newest of its name makes from then on; older ones open what they made, until they
    /// are retired.
    pub fn activate(&mut self, name: &KeyUsage, version: u16, now: u64) -> Result<KeyInfo, KeyStoreError> {
        if !name.rotates()
            && let Some(active) = self.keyring.active(name)
        {
            return Err(KeyStoreError::NoRotation { active: active.info.reference() });
        }
        self.moved(name, version, &[KeyState::Pending], KeyState::Active, |info| info.activated_at = Some(now))
    }

    /// Takes a key out of use: of an engine's keys only an older one, a storage key once no record is under it, a seal key
    /// once no control can have begun before the newer one.
    pub fn retire(
        &mut self,
        name: &KeyUsage,
        version: u16,
        key_use: &KeyUse,
        now: u64,
    ) -> Result<KeyInfo, KeyStoreError> {
        self.may_retire(name, version, key_use, now)?;
        let from = [KeyState::Pending, KeyState::Active];
        self.moved(name, version, &from, KeyState::Retired, |info| info.retired_at = Some(now))
    }

    /// Whether a key may be needed by PIN records or live controls, so that it is retired and destroyed only after a count:
    /// a storage or seal key that was in use.
    pub fn needs_count(&self, name: &KeyUsage, version: u16) -> bool {
        let was_active = |key: &RingKey| key.info.version == version && key.info.activated_at.is_some();
        (name.keeps_records() || name.seals()) && self.keyring.of(name).any(was_active)
    }

    /// Refuses a key that something needs, and one of which nobody knows whether something does.
    fn is_unused(&self, name: &KeyUsage, version: u16, key_use: &KeyUse) -> Result<(), KeyStoreError> {
        if !self.needs_count(name, version) {
            return Ok(());
        }
        let key = format!("{name}/{version}");
        let counted = match key_use {
            KeyUse::NotCounted => return Err(KeyStoreError::NotCounted { key }),
            KeyUse::ConfirmedUnused => return Ok(()),
            KeyUse::Counted(counted) => counted,
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
        // A pending one is newer than any in use, and nothing was made with it.
        if newest.info.version < version {
            return Ok(());
        }
        if newest.info.version == version {
            return Err(KeyStoreError::Newest { key: reference });
        }
        self.is_unused(name, version, key_use)?;
        let since = now.saturating_sub(newest.info.activated_at.unwrap_or(now));
        if name.seals() && since < CONTROL_MILLISECONDS_MAX {
            return Err(KeyStoreError::TooSoon { key: reference });
        }
        Ok(())
    }

    /// Wipes a retired key; its description stays. `confirmed` is its check value, read off by a second person, or `none`
    /// where it has none. A key that [`Self::needs_count`] is counted again: a store may have come back from a backup.
    pub fn destroy(
        &mut self,
        name: &KeyUsage,
        version: u16,
        confirmed: &str,
        key_use: &KeyUse,
        now: u64,
    ) -> Result<KeyInfo, KeyStoreError> {
        let found = self.keyring.find_mut(name, version).ok_or_else(|| unknown(name, version))?;
        if !found.info.told_check_value().eq_ignore_ascii_case(confirmed) {
            return Err(KeyStoreError::NotConfirmed { key: found.info.reference() });
        }
        let (key, state) = (found.info.reference(), found.info.state());
        if state != KeyState::Retired {
            return Err(KeyStoreError::State { key, state, wanted: "retired" });
        }
        match self.is_unused(name, version, key_use) {
            Err(KeyStoreError::InUse { key, records }) => return Err(KeyStoreError::StillNeeded { key, records }),
            unused => unused?,
        }
        let destroyed =
            self.moved(name, version, &[KeyState::Retired], KeyState::Destroyed, |info| info.destroyed_at = Some(now))?;
        if let Some(found) = self.keyring.find_mut(name, version) {
            found.key = None;
        }
        Ok(destroyed)
    }

    /// Gives a zone key out, under a key-exchange key of at least its strength: a key block, in which it may do what it may
    /// do here.
    pub fn export(
        &mut self,
        (name, version): (&KeyUsage, u16),
        under: &KeyUsage,
        block_version: Version,
    ) -> Result<String, KeyStoreError> {
        let (block, exchange) = self.written((name, version), under, block_version)?;
        self.count_use(name, version);
        self.count_use(under, exchange);
        Ok(block)
    }

    /// The block, and the version of the key it is under.
    fn written(
        &self,
        (name, version): (&KeyUsage, u16),
        under: &KeyUsage,
        block_version: Version,
    ) -> Result<(String, u16), KeyStoreError> {
        let exchange = self.exchange(under, KeyMode::Encrypts)?;
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
        strong_enough(info.algorithm, exchange.algorithm)?;
        let key = self.location.taken_out(found)?.ok_or_else(wrong_state)?;
        let letter = if info.algorithm.is_tdes() { 'T' } else { 'A' };
        // What came with S may leave in more forms than with E: E is the narrower.
        let header = Header::new(block_version, ['P', '0'], letter, info.mode.letter(), 'E');
        let fill = |bytes: &mut [u8]| rand::fill(bytes).map_err(|_| KeyBlockError::Random);
        Ok((KeyBlock::write(&header, &exchange.key, &key, fill)?, exchange.version))
    }

    /// Takes a key in from a key block under a key-exchange key, pending. It may do here what its block says.
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
            _ => return Err(KeyStoreError::StaysHere { key: name.to_string() }),
        };
        let block = KeyBlock::parse(block)?;
        block.check_purpose(purpose)?;
        let header = block.header();
        let mode = KeyMode::of_letter(header.mode()).ok_or(KeyBlockError::Header { field: "mode of use" })?;
        let (key, algorithm, exchange) = self.opened(&block, under)?;
        let travels = if header.exportability() == 'N' { Exportability::Never } else { Exportability::On };
        let new = NewKey { travels, ..self.next(name, algorithm)? };
        self.is_new(check_value(algorithm, &key), &new.name)?;
        let kept = self.location.keep(&new, key)?;
        let info = self.put(new, mode, kept, now);
        self.count_use(under, exchange);
        Ok(info)
    }

    /// The key of a block, what it is used with, and the version of the key it was under.
    fn opened(&self, block: &KeyBlock, under: &KeyUsage) -> Result<(ClearBytes, KeyAlgorithm, u16), KeyStoreError> {
        let exchange = self.exchange(under, KeyMode::Decrypts)?;
        let key = block.open(&exchange.key)?;
        let algorithm = algorithm_of(block, &key).ok_or(KeyBlockError::KeyLength)?;
        strong_enough(algorithm, exchange.algorithm)?;
        if is_weak(algorithm, &key) {
            return Err(KeyStoreError::Weak);
        }
        Ok((key, algorithm, exchange.version))
    }

    /// Puts every change on disk, or into the token, with the hash of the transcript's entry, and the mark
    /// that the step is unfinished until [`KeyStore::finish`].
    ///
    /// # Errors
    /// Nothing changed, but where [`KeyStoreError::may_have_changed`] says otherwise.
    pub fn commit(&mut self, entry: [u8; 32]) -> Result<(), KeyStoreError> {
        self.keyring.last_entry = entry;
        self.keyring.unfinished = true;
        self.location.commit(&self.keyring)
    }

    /// Whether the entry of [`KeyStore::last_entry`] may not be in its transcript yet.
    pub fn is_unfinished(&self) -> bool {
        self.keyring.unfinished
    }

    /// Removes the mark of an unfinished step: its entry is on disk in its transcript.
    ///
    /// # Errors
    /// The mark may still be there; the keys are what they were.
    pub fn finish(&mut self) -> Result<(), KeyStoreError> {
        self.keyring.unfinished = false;
        self.location.commit(&self.keyring)
    }

    /// The next version of a name, where there may be such a key here. An engine's keys never travel.
    fn next(&self, name: KeyUsage, algorithm: KeyAlgorithm) -> Result<NewKey, KeyStoreError> {
        match self.location.algorithms(&name) {
            [] => Err(KeyStoreError::NotHere { key: name.to_string() }),
            known if !known.contains(&algorithm) => Err(KeyStoreError::Algorithm { key: name.to_string(), algorithm }),
            _ => {
                let travels = if name.is_an_engines() { Exportability::Never } else { Exportability::On };
                Ok(self.keyring.next(name, algorithm, travels))
            }
        }
    }

    fn put(&mut self, new: NewKey, mode: KeyMode, KeptKey { check_value, bytes }: KeptKey, now: u64) -> KeyInfo {
        let info = self.keyring.put(new, check_value, bytes, now);
        info.mode = mode;
        info.clone()
    }

    fn moved(
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

    /// Two uses never share a key, nor do two parties.
    fn is_new(&self, found: Kcv, name: &KeyUsage) -> Result<(), KeyStoreError> {
        let same = self.keyring.keys.iter().find(|key| key.info.check_value == Some(found));
        same.map_or(Ok(()), |same| Err(KeyStoreError::Known { key: name.to_string(), same: same.info.reference() }))
    }

    /// The key-exchange key of a name, to do one thing with.
    fn exchange(&self, name: &KeyUsage, wanted: KeyMode) -> Result<Exchange<'_>, KeyStoreError> {
        let missing = || KeyStoreError::NoExchange { key: name.to_string() };
        let KeyUsage::Exchange(_) = name else { return Err(missing()) };
        let found = self.keyring.active(name).ok_or_else(missing)?;
        let mode = found.info.mode;
        if !mode.allows(wanted) {
            return Err(KeyStoreError::Mode { key: found.info.reference(), mode });
        }
        let key = self.location.protection_key(found)?.ok_or_else(missing)?;
        Ok(Exchange { key, algorithm: found.info.algorithm, version: found.info.version })
    }

    fn count_use(&mut self, name: &KeyUsage, version: u16) {
        if let Some(found) = self.keyring.find_mut(name, version) {
            found.info.uses += 1;
        }
    }
}

struct Exchange<'a> {
    key: ProtectionKey<'a>,
    algorithm: KeyAlgorithm,
    version: u16,
}

fn unknown(name: &KeyUsage, version: u16) -> KeyStoreError {
    KeyStoreError::Unknown { key: format!("{name}/{version}") }
}

/// What the key of a block is used with.
fn algorithm_of(block: &KeyBlock, key: &ClearBytes) -> Option<KeyAlgorithm> {
    let tdes = block.header().algorithm() == 'T';
    KeyAlgorithm::ALL.into_iter().find(|one| one.is_tdes() == tdes && one.bytes() == key.bytes().len())
}

fn strong_enough(key: KeyAlgorithm, under: KeyAlgorithm) -> Result<(), KeyStoreError> {
    if key.strength() <= under.strength() { Ok(()) } else { Err(KeyStoreError::Strength { key, under }) }
}

/// Why a key was not changed. Nothing was, but where a token failed as it wrote: then the next step finds out.
#[derive(Debug, Error)]
pub enum KeyStoreError {
    /// There is nothing to keep.
    #[error("a vault in memory has no ceremony: name a file")]
    Memory,
    /// The kernel refused what keeps a key from others.
    #[error("{0}")]
    Harden(String),
    /// Another ceremony is under way.
    #[error("{} is being changed by another process", path.display())]
    Locked {
        /// The vault.
        path: PathBuf,
    },
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The token.
    #[error(transparent)]
    Token(#[from] Pkcs11Error),
    /// The level a token would be used at.
    #[error(transparent)]
    BoundaryLevel(#[from] OpenError),
    /// A component.
    #[error(transparent)]
    Component(#[from] ComponentError),
    /// A key block.
    #[error(transparent)]
    KeyBlock(#[from] KeyBlockError),
    /// No key with this usage and version exists in the vault or token.
    #[error("there is no {key}")]
    Unknown {
        /// Which.
        key: String,
    },
    /// What has become of it does not allow it.
    #[error("{key} is {state}: it would have to be {wanted}")]
    State {
        /// Which.
        key: String,
        /// What has become of it.
        state: KeyState,
        /// What it would have to be.
        wanted: &'static str,
    },
    /// Records would have to be re-encrypted under the new key.
    #[error("{active} is in use, and this release can't rotate it: what it made would not open any more")]
    NoRotation {
        /// Which.
        active: String,
    },
    /// It makes what an engine keeps.
    #[error("{key} is the newest in use: put a newer one into use first")]
    Newest {
        /// Which.
        key: String,
    },
    /// Records are under it.
    #[error(
        "{records} PIN records are under {key}: start the engine, which re-encrypts them, and wait until it logs that all are done"
    )]
    InUse {
        /// Which.
        key: String,
        /// How many.
        records: u64,
    },
    /// Records are under a key that is retired: no engine opens them, and none re-encrypts them.
    #[error("{records} PIN records are under {key}: they would be lost, so nothing was destroyed; keep the key")]
    StillNeeded {
        /// For example `storage/1`.
        key: String,
        /// The sum over all that were asked.
        records: u64,
    },
    /// Live controls have a tzpk under it.
    #[error("{controls} live controls have a tzpk under {key}: wait until they expire, an hour at most")]
    Sealed {
        /// For example `seal/1`.
        key: String,
        /// The sum over all that were asked.
        controls: u64,
    },
    /// Nothing was counted.
    #[error("nobody counted what is under {key}: name every store and every running engine that uses it")]
    NotCounted {
        /// For example `storage/1`.
        key: String,
    },
    /// Controls may have begun under it.
    #[error("{key} may be needed for an hour after the newer one was put into use, by controls that began before")]
    TooSoon {
        /// Which.
        key: String,
    },
    /// The key belongs to a token or vault, or to a token at another level.
    #[error("there is no {key} here: a vault, and a token at each level, have keys of their own (docs/ceremony.md)")]
    NotHere {
        /// Which.
        key: String,
    },
    /// It is used with something else.
    #[error("{key} can't be an {algorithm} key")]
    Algorithm {
        /// Which.
        key: String,
        /// What it is not.
        algorithm: KeyAlgorithm,
    },
    /// It would travel under a weaker one.
    #[error("an {key} key does not travel under an {under} key, which is weaker")]
    Strength {
        /// What would travel.
        key: KeyAlgorithm,
        /// Under what.
        under: KeyAlgorithm,
    },
    /// It does not travel.
    #[error("{key} neither leaves nor comes in a key block")]
    StaysHere {
        /// Which.
        key: String,
    },
    /// No key to travel under.
    #[error("there is no active key-exchange key {key}: make or load exchange:NAME, and make it active")]
    NoExchange {
        /// Which.
        key: String,
    },
    /// It does one thing alone, and was to do the other.
    #[error("{key} {mode}: keys go out under an exchange key that encrypts, and come in under one that decrypts")]
    Mode {
        /// Which.
        key: String,
        /// What it may do.
        mode: KeyMode,
    },
    /// It is here already, for something else or the same.
    #[error("{key} would have the check value of {same}: one key is for one thing")]
    Known {
        /// What it was to be.
        key: String,
        /// The key that has this check value.
        same: String,
    },
    /// From a key block.
    #[error("the key is weak, or has two equal parts: ask for another")]
    Weak,
    /// The second confirmation is another key's.
    #[error("that is not the check value of {key}: nothing was destroyed")]
    NotConfirmed {
        /// Which.
        key: String,
    },
}

impl KeyStoreError {
    /// Of an error of [`KeyStore::commit`]: whether the keys may have changed all the same.
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
