//! The location of a ceremony's keys: a vault file, or a PKCS#11 token that holds the keys and their inventory.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::KeyStoreError;
use hsm_protocol::Kcv;

use crate::{
    clear::ClearBytes,
    config::{AbsentVault, Keys, Unlock, Vault, Wanted},
    keyblock::ProtectionKey,
    keyring::{KeyAlgorithm, KeyUsage, Keyring, NewKey, RingKey, algorithms_in_vault, check_value, random_key},
    level,
    token::TokenKeyManager,
    vault::{self, VaultError, VaultWrite},
};

/// A locked vault, or a token. A token has no lock: a step is rejected where another ceremony changed the token first.
pub(super) enum KeyLocation {
    Vault(VaultLocation),
    Token(Box<TokenKeyManager>),
}

/// A locked vault file.
pub(super) struct VaultLocation {
    path: PathBuf,
    unlock: Unlock,
    write: VaultWrite,
    _lock: File,
}

/// The KCV of a new key, and its bytes for the keyring of a vault.
pub(super) struct StoredKey {
    pub(super) kcv: Option<Kcv>,
    pub(super) bytes: Option<ClearBytes>,
}

impl KeyLocation {
    /// Opens the vault or token and reads its keyring. A missing vault is empty; the first commit creates it.
    pub(super) fn open(keys: Keys, wanted: &Wanted, now: u64) -> Result<(Self, Keyring), KeyStoreError> {
        match keys {
            Keys::Vault(vault) => {
                let (location, keyring) = VaultLocation::open(vault, now)?;
                Ok((Self::Vault(location), keyring))
            }
            Keys::Pkcs11(token) => {
                let level = level::choose_for_token(&token, wanted)?.level();
                let (manager, keyring) = TokenKeyManager::open(&token, level, now)?;
                Ok((Self::Token(Box::new(manager)), keyring))
            }
        }
    }

    /// The algorithms that a key of this usage may have here, the default first; empty where there is no such key.
    pub(super) fn algorithms(&self, name: &KeyUsage) -> &'static [KeyAlgorithm] {
        match self {
            Self::Vault(_) => algorithms_in_vault(name),
            Self::Token(manager) => manager.algorithms(name),
        }
    }

    /// Generates a key, in the token where the location is one.
    pub(super) fn make(&mut self, new: &NewKey) -> Result<StoredKey, KeyStoreError> {
        match self {
            Self::Vault(_) => {
                let key = random_key(new.algorithm)?;
                Ok(StoredKey { kcv: Some(check_value(new.algorithm, &key)), bytes: Some(key) })
            }
            Self::Token(manager) => Ok(StoredKey { kcv: manager.make(new)?, bytes: None }),
        }
    }

    /// Stores a loaded or imported key.
    pub(super) fn store(&mut self, new: &NewKey, key: ClearBytes) -> Result<StoredKey, KeyStoreError> {
        let kcv = Some(check_value(new.algorithm, &key));
        match self {
            Self::Vault(_) => Ok(StoredKey { kcv, bytes: Some(key) }),
            Self::Token(manager) => {
                manager.import(new, &key)?;
                Ok(StoredKey { kcv, bytes: None })
            }
        }
    }

    /// Exports a key in clear, for a key block; `None` where the key is destroyed.
    pub(super) fn export(&self, key: &RingKey) -> Result<Option<ClearBytes>, KeyStoreError> {
        match self {
            Self::Vault(_) => Ok(key.key.as_ref().map(|key| ClearBytes::copied(key.bytes()))),
            Self::Token(manager) => Ok(Some(manager.export(&key.info)?)),
        }
    }

    /// A key-exchange key as the protection key of a key block; `None` where the key is destroyed.
    pub(super) fn protection_key(&self, key: &RingKey) -> Result<Option<ProtectionKey<'_>>, KeyStoreError> {
        match self {
            Self::Vault(_) => {
                let bytes = key.key.as_ref().map(|key| ClearBytes::copied(key.bytes()));
                let of_family = if key.info.algorithm.is_tdes() { ProtectionKey::tdes } else { ProtectionKey::aes };
                Ok(bytes.and_then(of_family))
            }
            Self::Token(manager) => Ok(ProtectionKey::aes_in_token(manager.kek(&key.info)?)),
        }
    }

    /// Writes the keyring to the vault file or the token.
    pub(super) fn commit(&mut self, keyring: &Keyring) -> Result<(), KeyStoreError> {
        match self {
            Self::Vault(VaultLocation { path, unlock, write, .. }) => {
                // The first start of an engine creates vault and key file under the same lock.
                let _directory = match write {
                    VaultWrite::New => Some(vault::lock_directory(path)?),
                    VaultWrite::Over => None,
                };
                vault::write(path, unlock, keyring.bytes(), *write)?;
                *write = VaultWrite::Over;
            }
            Self::Token(manager) => manager.commit(keyring)?,
        }
        Ok(())
    }
}

impl VaultLocation {
    fn open(vault: Vault, now: u64) -> Result<(Self, Keyring), KeyStoreError> {
        let Vault::File { path, unlock } = vault else { return Err(KeyStoreError::Memory) };
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(|error| VaultError::Io { path: path.clone(), error })?;
        }
        // Resolved first, so that the file and not the symbolic link is locked, read and replaced.
        let path = match fs::canonicalize(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => path,
            resolved => resolved.map_err(|error| VaultError::Io { path, error })?,
        };
        let lock = lock(&path)?;
        if !vault::is_there(&path, &unlock)? {
            return Ok((Self { path, unlock, write: VaultWrite::New, _lock: lock }, Keyring::empty()));
        }
        let io = |error| VaultError::Io { path: path.clone(), error };
        let names = || fs::metadata(&path).map(|file| file.nlink()).map_err(io);
        if names()? > 1 {
            vault::remove_leftover(&path).map_err(io)?;
        }
        let names = names()?;
        if names > 1 {
            return Err(VaultError::HardLinks { path, names }.into());
        }
        let vault = Vault::File { path, unlock };
        let keyring = Keyring::open(&vault, AbsentVault::Refuse, now)?;
        let Vault::File { path, unlock } = vault else { return Err(KeyStoreError::Memory) };
        Ok((Self { path, unlock, write: VaultWrite::Over, _lock: lock }, keyring))
    }
}

/// Locks a vault by a lock file beside the vault. The lock file has the vault's owner, so that the owner can also lock the
/// vault after root has.
fn lock(vault: &Path) -> Result<File, KeyStoreError> {
    let path = vault.with_extension("lock");
    let io = |error| VaultError::Io { path: path.clone(), error };
    let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(io)?;
    if let Ok(vault) = fs::metadata(vault) {
        vault::own_as(&lock, &vault).map_err(io)?;
    }
    lock.try_lock().map_err(|_| KeyStoreError::Locked { path: vault.to_owned() })?;
    Ok(lock)
}
