//! A vault as a ceremony changes it: keys are made, loaded, taken from key blocks and given out in them, made active,
//! retired, destroyed. Nothing is on disk before [`KeyStore::commit`].
//!
//! Who may do it is not decided here. What must never enter: a clear key that leaves.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

use aws_lc_rs::rand;
use thiserror::Error;

use crate::{
    binding::Level,
    check_value::CheckValue,
    component::{ComponentError, Components},
    config::{LockMemory, Unlock, Vault},
    form::Form,
    harden::harden,
    keyblock::{Header, KeyBlock, KeyBlockError, ProtectionKey, Purpose, Version},
    keyring::{KeyAlgorithm, KeyInfo, KeyName, KeyState, Keyring, RingKey, Travels, check_value, is_weak, random_key},
    sealed::PinRecord,
    vault::{self, VaultError, VaultWrite},
};

/// How long a control may live, at most.
const CONTROL_MILLISECONDS_MAX: u64 = 3_600_000;

/// How many PIN records are under each storage key, as whoever has counted them says.
#[derive(Default)]
pub struct RecordsKept {
    under: HashMap<(StorageFamily, u16), u64>,
}

#[derive(PartialEq, Eq, Hash)]
enum StorageFamily {
    Aes,
    Tdes,
}

impl RecordsKept {
    /// Counts one more.
    pub fn count(&mut self, record: &PinRecord) {
        self.count_many(record.form(), record.made_at().level, record.storage_key().0, 1);
    }

    /// Counts so many more that are alike.
    pub fn count_many(&mut self, form: Form, _level: Level, version: u16, records: u64) {
        let family = match form {
            Form::Wrapped | Form::Iso4 => StorageFamily::Aes,
            Form::Iso3 | Form::Iso0 => StorageFamily::Tdes,
        };
        let under = self.under.entry((family, version)).or_default();
        *under = under.saturating_add(records);
    }

    fn under(&self, name: &KeyName, version: u16) -> u64 {
        let family = match name {
            KeyName::Storage => StorageFamily::Aes,
            KeyName::StorageTdes => StorageFamily::Tdes,
            _ => return 0,
        };
        self.under.get(&(family, version)).copied().unwrap_or_default()
    }
}

/// A vault, opened to be changed; nobody else may change it meanwhile.
pub struct KeyStore {
    keyring: Keyring,
    path: PathBuf,
    unlock: Unlock,
    write: VaultWrite,
    _lock: File,
}

impl KeyStore {
    /// Hardens the process and opens a vault; where there is none yet it is empty, and made with the first commit.
    pub fn open(vault: Vault, now: u64) -> Result<Self, KeyStoreError> {
        // Where memory can't be locked a ceremony goes on: it is short, and whoever leads it has chosen the machine.
        harden(LockMemory::Try).map_err(|error| KeyStoreError::Harden(error.to_string()))?;
        let Vault::File { path, unlock } = vault else { return Err(KeyStoreError::Memory) };
        let lock_path = path.with_extension("lock");
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).map_err(|error| VaultError::Io { path: path.clone(), error })?;
        }
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
        let lock = lock.map_err(|error| VaultError::Io { path: lock_path, error })?;
        lock.try_lock().map_err(|_| KeyStoreError::Locked { path: path.clone() })?;
        if !path.exists() {
            return Ok(Self { keyring: Keyring::empty(), path, unlock, write: VaultWrite::New, _lock: lock });
        }
        let vault = Vault::File { path, unlock };
        let keyring = Keyring::open_or_make(&vault, now)?;
        let Vault::File { path, unlock } = vault else { return Err(KeyStoreError::Memory) };
        Ok(Self { keyring, path, unlock, write: VaultWrite::Over, _lock: lock })
    }

    /// What is told of every key, in the order they came.
    pub fn keys(&self) -> impl Iterator<Item = &KeyInfo> {
        self.keyring.keys.iter().map(|key| &key.info)
    }

    /// SHA-256 of the roster of those who may change it; none before the first ceremony.
    pub fn custody(&self) -> Option<[u8; 32]> {
        self.keyring.custody
    }

    /// The hash of the transcript's entry that told of the last change; zeros before the first.
    pub fn last_entry(&self) -> [u8; 32] {
        self.keyring.last_entry
    }

    /// Gives it into the custody of a roster.
    pub fn take_into_custody(&mut self, roster: [u8; 32]) {
        self.keyring.custody = Some(roster);
    }

    /// Makes a fresh key, pending.
    pub fn make(&mut self, name: KeyName, algorithm: KeyAlgorithm, now: u64) -> Result<KeyInfo, KeyStoreError> {
        suits(&name, algorithm)?;
        let key = random_key(algorithm)?;
        let travels = if name.is_an_engines() { Travels::Never } else { Travels::On };
        Ok(self.keyring.put(name, algorithm, travels, key, now).clone())
    }

    /// Loads a key from its components, pending.
    pub fn load(&mut self, name: KeyName, components: &Components, now: u64) -> Result<KeyInfo, KeyStoreError> {
        let algorithm = components.algorithm();
        suits(&name, algorithm)?;
        let key = components.combined()?;
        let found = check_value(algorithm, &key);
        self.is_new(found, &name)?;
        let travels = if name.is_an_engines() { Travels::Never } else { Travels::On };
        Ok(self.keyring.put(name, algorithm, travels, key, now).clone())
    }

    /// Puts a pending key into use. The newest of its name makes from then on; older ones open what they made, until they
    /// are retired.
    pub fn activate(&mut self, name: &KeyName, version: u16, now: u64) -> Result<KeyInfo, KeyStoreError> {
        if matches!(name, KeyName::Account | KeyName::Record | KeyName::Retry)
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
        name: &KeyName,
        version: u16,
        kept: &RecordsKept,
        now: u64,
    ) -> Result<KeyInfo, KeyStoreError> {
        self.may_retire(name, version, kept, now)?;
        let from = [KeyState::Pending, KeyState::Active];
        self.moved(name, version, &from, KeyState::Retired, |info| info.retired_at = Some(now))
    }

    fn may_retire(&self, name: &KeyName, version: u16, kept: &RecordsKept, now: u64) -> Result<(), KeyStoreError> {
        let Some(newest) = self.keyring.active(name).filter(|_| name.is_an_engines()) else { return Ok(()) };
        let reference = format!("{name}/{version}");
        // A pending one is newer than any in use, and nothing was made with it.
        if newest.info.version < version {
            return Ok(());
        }
        if newest.info.version == version {
            return Err(KeyStoreError::Newest { key: reference });
        }
        let records = kept.under(name, version);
        if records > 0 {
            return Err(KeyStoreError::InUse { key: reference, records });
        }
        let since = now.saturating_sub(newest.info.activated_at.unwrap_or(now));
        if *name == KeyName::Seal && since < CONTROL_MILLISECONDS_MAX {
            return Err(KeyStoreError::TooSoon { key: reference });
        }
        Ok(())
    }

    /// Wipes a retired key; what is told of it stays. `confirmed` is its check value, read off by a second person.
    pub fn destroy(
        &mut self,
        name: &KeyName,
        version: u16,
        confirmed: &str,
        now: u64,
    ) -> Result<KeyInfo, KeyStoreError> {
        let found = self.keyring.find_mut(name, version).ok_or_else(|| unknown(name, version))?;
        if found.info.check_value.to_string() != confirmed.to_ascii_uppercase() {
            return Err(KeyStoreError::NotConfirmed { key: found.info.reference() });
        }
        let destroyed =
            self.moved(name, version, &[KeyState::Retired], KeyState::Destroyed, |info| info.destroyed_at = Some(now))?;
        if let Some(found) = self.keyring.find_mut(name, version) {
            found.key = None;
        }
        Ok(destroyed)
    }

    /// Gives a zone key out, under a key-exchange key of at least its strength: a key block.
    pub fn export(
        &mut self,
        (name, version): (&KeyName, u16),
        under: &KeyName,
        block_version: Version,
    ) -> Result<String, KeyStoreError> {
        let exchange = self.exchange(under)?;
        let found = self.keyring.find_mut(name, version).ok_or_else(|| unknown(name, version))?;
        let info = &mut found.info;
        if !matches!(name, KeyName::Zone(_)) || !info.exportable {
            return Err(KeyStoreError::StaysHere { key: info.reference() });
        }
        let (Some(key), KeyState::Pending | KeyState::Active) = (&found.key, info.state()) else {
            return Err(KeyStoreError::State {
                key: info.reference(),
                state: info.state(),
                wanted: "pending or active",
            });
        };
        strong_enough(info.algorithm, exchange.algorithm)?;
        let letter = if info.algorithm.is_tdes() { 'T' } else { 'A' };
        let header = Header::new(block_version, ['P', '0'], letter, 'B', 'E');
        let fill = |bytes: &mut [u8]| rand::fill(bytes).map_err(|_| KeyBlockError::Random);
        let block = KeyBlock::write(&header, &exchange.key, key, fill)?;
        info.uses += 1;
        self.count_use(under, exchange.version);
        Ok(block)
    }

    /// Takes a key in from a key block under a key-exchange key, pending.
    pub fn import(&mut self, name: KeyName, block: &str, under: &KeyName, now: u64) -> Result<KeyInfo, KeyStoreError> {
        let purpose = match name {
            KeyName::Zone(_) => Purpose::ZoneKey,
            KeyName::Exchange(_) => Purpose::ExchangeKey,
            _ => return Err(KeyStoreError::StaysHere { key: name.to_string() }),
        };
        let exchange = self.exchange(under)?;
        let block = KeyBlock::parse(block)?;
        block.check_purpose(purpose)?;
        let key = block.open(&exchange.key)?;
        let tdes = block.header().algorithm() == 'T';
        let algorithm =
            KeyAlgorithm::ALL.into_iter().find(|one| one.is_tdes() == tdes && one.bytes() == key.bytes().len());
        let algorithm = algorithm.ok_or(KeyBlockError::KeyLength)?;
        suits(&name, algorithm)?;
        strong_enough(algorithm, exchange.algorithm)?;
        if is_weak(algorithm, &key) {
            return Err(KeyStoreError::Weak);
        }
        self.is_new(check_value(algorithm, &key), &name)?;
        let travels = if block.header().exportability() == 'N' { Travels::Never } else { Travels::On };
        let info = self.keyring.put(name, algorithm, travels, key, now).clone();
        self.count_use(under, exchange.version);
        Ok(info)
    }

    /// Writes every change to disk, with the hash of the transcript's entry that tells of it.
    pub fn commit(&mut self, entry: [u8; 32]) -> Result<(), KeyStoreError> {
        self.keyring.last_entry = entry;
        vault::write(&self.path, &self.unlock, self.keyring.bytes(), self.write)?;
        self.write = VaultWrite::Over;
        Ok(())
    }

    fn moved(
        &mut self,
        name: &KeyName,
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
    fn is_new(&self, found: CheckValue, name: &KeyName) -> Result<(), KeyStoreError> {
        let same = self.keyring.keys.iter().find(|key| key.info.check_value == found);
        same.map_or(Ok(()), |same| Err(KeyStoreError::Known { key: name.to_string(), same: same.info.reference() }))
    }

    fn exchange(&self, name: &KeyName) -> Result<Exchange, KeyStoreError> {
        let KeyName::Exchange(_) = name else { return Err(KeyStoreError::NoExchange { key: name.to_string() }) };
        let missing = || KeyStoreError::NoExchange { key: name.to_string() };
        let RingKey { info, key } = self.keyring.active(name).ok_or_else(missing)?;
        let bytes = crate::clear::ClearBytes::copied(key.as_ref().ok_or_else(missing)?.bytes());
        let key = ProtectionKey::aes(bytes).ok_or_else(missing)?;
        Ok(Exchange { key, algorithm: info.algorithm, version: info.version })
    }

    fn count_use(&mut self, name: &KeyName, version: u16) {
        if let Some(found) = self.keyring.find_mut(name, version) {
            found.info.uses += 1;
        }
    }
}

struct Exchange {
    key: ProtectionKey,
    algorithm: KeyAlgorithm,
    version: u16,
}

fn unknown(name: &KeyName, version: u16) -> KeyStoreError {
    KeyStoreError::Unknown { key: format!("{name}/{version}") }
}

fn suits(name: &KeyName, algorithm: KeyAlgorithm) -> Result<(), KeyStoreError> {
    if name.algorithms().contains(&algorithm) {
        return Ok(());
    }
    Err(KeyStoreError::Algorithm { key: name.to_string(), algorithm })
}

fn strong_enough(key: KeyAlgorithm, under: KeyAlgorithm) -> Result<(), KeyStoreError> {
    if key.strength() <= under.strength() { Ok(()) } else { Err(KeyStoreError::Strength { key, under }) }
}

/// Why a key was not changed. Nothing was.
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
    /// A component.
    #[error(transparent)]
    Component(#[from] ComponentError),
    /// A key block.
    #[error(transparent)]
    KeyBlock(#[from] KeyBlockError),
    /// There is none.
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
    /// Records would have to be made anew under the new key.
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
        "{records} PIN records are under {key}: start the engine, which makes them anew, and wait until it says so"
    )]
    InUse {
        /// Which.
        key: String,
        /// How many.
        records: u64,
    },
    /// Controls may have begun under it.
    #[error("{key} may be needed for an hour after the newer one was put into use, by controls that began before")]
    TooSoon {
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
    /// It is here already, for something else or the same.
    #[error("{key} would have the check value of {same}: one key is for one thing")]
    Known {
        /// What it was to be.
        key: String,
        /// What has it.
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

#[cfg(test)]
mod tests;
