//! Where the keys of a ceremony are kept: in a vault's file, or in a PKCS#11 token that holds them and a register of them.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::KeyStoreError;
use crate::{
    check_value::Kcv,
    clear::ClearBytes,
    config::{AbsentVault, Keys, Unlock, Vault, Wanted},
    keyblock::ProtectionKey,
    keyring::{KeyAlgorithm, KeyUsage, Keyring, NewKey, RingKey, algorithms_in_vault, check_value, random_key},
    level,
    token::TokenKeyManager,
    vault::{self, VaultError, VaultWrite},
};

/// A vault, locked while it is open; or a token, which has no lock: a step after another ceremony's change is rejected.
pub(super) enum KeyLocation {
    Vault(VaultLocation),
    Token(Box<TokenKeyManager>),
}

/// A vault's file.
pub(super) struct VaultLocation {
    path: PathBuf,
    unlock: Unlock,
    write: VaultWrite,
    _lock: File,
}

/// A key as the vault or token keeps it: its check value, and its bytes where a vault holds them.
pub(super) struct KeptKey {
    pub(super) check_value: Option<Kcv>,
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
                let level = level::of_token(&token, wanted)?.level();
                let (manager, keyring) = TokenKeyManager::open(&token, level, now)?;
                Ok((Self::Token(Box::new(manager)), keyring))
            }
        }
    }

    /// What a key may be used with here, the first where nothing is said; none where there is no such key.
    pub(super) fn algorithms(&self, name: &KeyUsage) -> &'static [KeyAlgorithm] {
        match self {
            Self::Vault(_) => algorithms_in_vault(name),
            Self::Token(manager) => manager.algorithms(name),
        }
    }

    /// Makes a key of random bytes: inside the token, where there is one.
    pub(super) fn make(&mut self, new: &NewKey) -> Result<KeptKey, KeyStoreError> {
        match self {
            Self::Vault(_) => {
                let key = random_key(new.algorithm)?;
                Ok(KeptKey { check_value: Some(check_value(new.algorithm, &key)), bytes: Some(key) })
            }
            Self::Token(manager) => Ok(KeptKey { check_value: manager.make(new)?, bytes: None }),
        }
    }

    /// Keeps a key that came from elsewhere.
    pub(super) fn keep(&mut self, new: &NewKey, key: ClearBytes) -> Result<KeptKey, KeyStoreError> {
        let check_value = Some(check_value(new.algorithm, &key));
        match self {
            Self::Vault(_) => Ok(KeptKey { check_value, bytes: Some(key) }),
            Self::Token(manager) => {
                manager.import(new, &key)?;
                Ok(KeptKey { check_value, bytes: None })
            }
        }
    }

    /// A key that travels; none where it is gone.
    pub(super) fn taken_out(&self, key: &RingKey) -> Result<Option<ClearBytes>, KeyStoreError> {
        match self {
            Self::Vault(_) => Ok(key.key.as_ref().map(|key| ClearBytes::copied(key.bytes()))),
            Self::Token(manager) => Ok(Some(manager.export(&key.info)?)),
        }
    }

    /// A key-exchange key, to protect a key block with; none where it is gone.
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

    /// Puts every change on disk, or into the token.
    pub(super) fn commit(&mut self, keyring: &Keyring) -> Result<(), KeyStoreError> {
        match self {
            Self::Vault(VaultLocation { path, unlock, write, .. }) => {
                // An engine's first start makes a key file too, under this lock.
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
        // A symbolic link stays one: the file that it names is locked, read and replaced.
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

/// Locks a vault by a file beside it, which belongs to the vault's owner, so that the owner can lock it after root did.
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
