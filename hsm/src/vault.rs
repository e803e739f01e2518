//! The software token's keys at rest: one sealed file, mode 0600.
//!
//! ```text
//! "PINSEAL-VAULT" version(1) unlock(1) memory_kib(4) passes(4) salt(16) nonce(12) ciphertext(176) tag(16)
//! ```
//! Sealed by AES-256-GCM-SIV under the unlock key, with all that stands before the ciphertext as authenticated data. The
//! unlock key is a key file's 32 bytes, or Argon2id (RFC 9106) of a passphrase.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::{
    aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey},
    rand,
};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use crate::{
    clear::{Clear, Tzpk},
    config::{Unlock, Vault},
};

const MAGIC: &[u8; 13] = b"PINSEAL-VAULT";
const VERSION: u8 = 1;
const BY_KEY: u8 = 0;
const BY_PASSPHRASE: u8 = 1;
const NONCE_AT: usize = 13 + 2 + 8 + 16;
const HEAD_BYTES: usize = NONCE_AT + 12;
const KEYS_BYTES: usize = 5 * 32 + 16;
const TAG_BYTES: usize = 16;
const FILE_BYTES: usize = HEAD_BYTES + KEYS_BYTES + TAG_BYTES;

/// Argon2id of a new vault: RFC 9106's second choice, 64 MiB and 3 passes.
const MEMORY_KIB: u32 = 64 * 1024;
/// See [`MEMORY_KIB`].
const PASSES: u32 = 3;
/// The most an existing vault may ask for, so that a foreign file cannot exhaust the machine.
const MEMORY_KIB_MAX: u32 = 1024 * 1024;
/// See [`MEMORY_KIB_MAX`].
const PASSES_MAX: u32 = 64;

/// Every key of the software token, in the clear.
pub(crate) struct Keys {
    /// AES-256: ISO-4 blocks.
    pub(crate) storage: Clear<32>,
    /// 3DES: ISO-3 and ISO-0 blocks.
    pub(crate) storage_tdes: Tzpk,
    /// AES-256-GCM-SIV: tzpks.
    pub(crate) seal: Clear<32>,
    /// AES-256-GCM-SIV: account numbers.
    pub(crate) account: Clear<32>,
    /// AES-256-CMAC: records.
    pub(crate) record: Clear<32>,
    /// AES-256-CMAC: retries.
    pub(crate) retry: Clear<32>,
}

impl Keys {
    /// Opens the vault, or makes it.
    pub(crate) fn open(vault: &Vault) -> Result<Box<Self>, VaultError> {
        match vault {
            Vault::Memory => Self::fresh(),
            Vault::File { path, unlock } if path.exists() => Self::read(path, unlock),
            Vault::File { path, unlock } => Self::create(path, unlock),
        }
    }

    fn zeroed() -> Box<Self> {
        Box::new(Self {
            storage: Clear::zeroed(),
            storage_tdes: Clear::zeroed(),
            seal: Clear::zeroed(),
            account: Clear::zeroed(),
            record: Clear::zeroed(),
            retry: Clear::zeroed(),
        })
    }

    fn fresh() -> Result<Box<Self>, VaultError> {
        let mut keys = Self::zeroed();
        for part in keys.parts_mut() {
            rand::fill(part).map_err(|_| VaultError::Random)?;
        }
        make_tdes_key(&mut keys.storage_tdes, |bytes| rand::fill(bytes).map_err(|_| VaultError::Random))?;
        Ok(keys)
    }

    fn read(path: &Path, unlock: &Unlock) -> Result<Box<Self>, VaultError> {
        let bytes = read_private(path, FILE_BYTES)?;
        let foreign = || VaultError::Foreign { path: path.to_owned() };
        let head = bytes.get(..HEAD_BYTES).filter(|head| head.starts_with(MAGIC)).ok_or_else(foreign)?;
        match head.get(MAGIC.len()) {
            Some(&VERSION) => {}
            Some(&version) => return Err(VaultError::Version { path: path.to_owned(), version }),
            None => return Err(foreign()),
        }
        if bytes.len() != FILE_BYTES {
            return Err(VaultError::WontOpen { path: path.to_owned() });
        }
        let mut key = Clear::zeroed();
        unlock_key(path, unlock, head, KeyFile::MustExist, &mut key)?;
        let wont_open = || VaultError::WontOpen { path: path.to_owned() };
        let aead = UnboundKey::new(&AES_256_GCM_SIV, key.bytes()).map(LessSafeKey::new).map_err(|_| wont_open())?;
        let nonce = head.get(NONCE_AT..).and_then(|nonce| Nonce::try_assume_unique_for_key(nonce).ok());
        let mut sealed = Clear::<{ KEYS_BYTES + TAG_BYTES }>::zeroed();
        sealed.bytes_mut().iter_mut().zip(bytes.iter().skip(HEAD_BYTES)).for_each(|(place, byte)| *place = *byte);
        let opened = aead
            .open_in_place(nonce.ok_or_else(wont_open)?, Aad::from(head), sealed.bytes_mut())
            .map_err(|_| wont_open())?;

        let mut keys = Self::zeroed();
        let mut rest = &*opened;
        for part in keys.parts_mut() {
            let (mine, others) = rest.split_at_checked(part.len()).ok_or_else(wont_open)?;
            part.copy_from_slice(mine);
            rest = others;
        }
        Ok(keys)
    }

    fn create(path: &Path, unlock: &Unlock) -> Result<Box<Self>, VaultError> {
        let mut keys = Self::fresh()?;
        let mut head = [0; HEAD_BYTES];
        let kind = match unlock {
            Unlock::Passphrase(_) => BY_PASSPHRASE,
            Unlock::KeyFile(_) | Unlock::Key(_) => BY_KEY,
        };
        let fixed = [&MAGIC[..], &[VERSION, kind], &MEMORY_KIB.to_be_bytes(), &PASSES.to_be_bytes()].concat();
        head.iter_mut().zip(&fixed).for_each(|(place, byte)| *place = *byte);
        if let Some(salt_and_nonce) = head.get_mut(fixed.len()..) {
            rand::fill(salt_and_nonce).map_err(|_| VaultError::Random)?;
        }
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(|error| VaultError::io(path, error))?;
        }
        let mut key = Clear::zeroed();
        unlock_key(path, unlock, &head, KeyFile::MadeIfAbsent, &mut key)?;

        let mut sealed = Clear::<KEYS_BYTES>::zeroed();
        let parts = keys.parts_mut();
        let all = parts.iter().flat_map(|part| part.iter());
        sealed.bytes_mut().iter_mut().zip(all).for_each(|(place, byte)| *place = *byte);
        let aead = UnboundKey::new(&AES_256_GCM_SIV, key.bytes()).map(LessSafeKey::new);
        let nonce = head.get(NONCE_AT..).and_then(|nonce| Nonce::try_assume_unique_for_key(nonce).ok());
        let (Ok(aead), Some(nonce)) = (aead, nonce) else { return Err(VaultError::Random) };
        let tag = aead
            .seal_in_place_separate_tag(nonce, Aad::from(&head[..]), sealed.bytes_mut())
            .map_err(|_| VaultError::Random)?;
        let file = [&head[..], sealed.bytes(), tag.as_ref()].concat();
        write_private(path, &file).map_err(|error| VaultError::io(path, error))?;
        Ok(keys)
    }

    fn parts_mut(&mut self) -> [&mut [u8]; 6] {
        [
            self.storage.bytes_mut(),
            self.storage_tdes.bytes_mut(),
            self.seal.bytes_mut(),
            self.account.bytes_mut(),
            self.record.bytes_mut(),
            self.retry.bytes_mut(),
        ]
    }
}

/// Fills in a fresh double-length 3DES key: odd parity, no weak or semi-weak half, the halves different.
pub(crate) fn make_tdes_key<E>(key: &mut Tzpk, mut random: impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
    loop {
        random(key.bytes_mut())?;
        for byte in key.bytes_mut() {
            *byte = (*byte & 0xFE) | ((byte.count_ones() as u8 & 1) ^ (*byte & 1) ^ 1);
        }
        if des::weak_key_test(key.bytes()).is_ok() {
            return Ok(());
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum KeyFile {
    MustExist,
    MadeIfAbsent,
}

fn unlock_key(
    vault: &Path,
    unlock: &Unlock,
    head: &[u8],
    key_file: KeyFile,
    key: &mut Clear<32>,
) -> Result<(), VaultError> {
    let by = head.get(MAGIC.len() + 1).copied();
    match unlock {
        Unlock::Passphrase(passphrase) if by == Some(BY_PASSPHRASE) => derive(vault, passphrase, head, key),
        Unlock::Key(bytes) if by == Some(BY_KEY) => {
            key.bytes_mut().copy_from_slice(&bytes[..]);
            Ok(())
        }
        Unlock::KeyFile(path) if by == Some(BY_KEY) => {
            if key_file == KeyFile::MadeIfAbsent && !path.exists() {
                rand::fill(key.bytes_mut()).map_err(|_| VaultError::Random)?;
                return write_private(path, key.bytes()).map_err(|error| VaultError::io(path, error));
            }
            let bytes = read_private(path, 32)?;
            if bytes.len() != 32 {
                return Err(VaultError::KeyFile { path: path.clone() });
            }
            key.bytes_mut().copy_from_slice(&bytes);
            Ok(())
        }
        _ => Err(VaultError::OtherUnlock { path: vault.to_owned() }),
    }
}

fn derive(vault: &Path, passphrase: &str, head: &[u8], key: &mut Clear<32>) -> Result<(), VaultError> {
    let foreign = || VaultError::Foreign { path: vault.to_owned() };
    let number = |at: usize| {
        let bytes = head.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        bytes.map(u32::from_be_bytes).ok_or_else(foreign)
    };
    let (memory, passes) = (number(MAGIC.len() + 2)?, number(MAGIC.len() + 6)?);
    if memory > MEMORY_KIB_MAX || passes > PASSES_MAX {
        return Err(foreign());
    }
    let salt = head.get(NONCE_AT - 16..NONCE_AT).ok_or_else(foreign)?;
    let params = Params::new(memory, passes, 1, Some(32)).map_err(|_| foreign())?;
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon.hash_password_into(passphrase.as_bytes(), salt, key.bytes_mut()).map_err(|_| foreign())
}

/// Reads a file that nobody but its owner may read, up to one byte more than it should have.
fn read_private(path: &Path, bytes: usize) -> Result<Zeroizing<Vec<u8>>, VaultError> {
    let io = |error| VaultError::io(path, error);
    let file = fs::File::open(path).map_err(io)?;
    let mode = file.metadata().map_err(io)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(VaultError::OpenToOthers { path: path.to_owned(), mode: mode & 0o777 });
    }
    let mut read = Zeroizing::new(Vec::with_capacity(bytes + 1));
    file.take(bytes as u64 + 1).read_to_end(&mut read).map_err(io)?;
    Ok(read)
}

/// Writes a file that only its owner may read, whole or not at all, and never over another.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    // A hard link, unlike a rename, fails where another process has made the file meanwhile.
    let linked = fs::hard_link(&fresh, path);
    fs::remove_file(&fresh)?;
    linked?;
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => fs::File::open(directory)?.sync_all(),
        _ => fs::File::open(".")?.sync_all(),
    }
}

impl Drop for Unlock {
    fn drop(&mut self) {
        if let Self::Passphrase(passphrase) = self {
            passphrase.zeroize();
        }
    }
}

/// Why a vault did not open.
#[derive(Debug, Error)]
pub enum VaultError {
    /// The file is something else.
    #[error("{} is not a Pinseal vault", path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
    },
    /// The file is of another release.
    #[error("{} is a vault of version {version}: this release reads version {VERSION}", path.display())]
    Version {
        /// Which file.
        path: PathBuf,
        /// Its version.
        version: u8,
    },
    /// The seal does not open.
    #[error("{} does not open: the passphrase or key is another, or the file is damaged", path.display())]
    WontOpen {
        /// Which file.
        path: PathBuf,
    },
    /// A key where a passphrase belongs, or the other way round.
    #[error("{} opens by the other way: a key file and a passphrase are not exchangeable", path.display())]
    OtherUnlock {
        /// Which file.
        path: PathBuf,
    },
    /// Not 32 bytes.
    #[error("the key file {} does not have 32 bytes", path.display())]
    KeyFile {
        /// Which file.
        path: PathBuf,
    },
    /// Others may read it.
    #[error("{} has mode {mode:o}: others may read it, chmod 600 it", path.display())]
    OpenToOthers {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The machine refused something.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// No randomness, or no cipher.
    #[error("the random generator or the cipher failed")]
    Random,
}

impl VaultError {
    fn io(path: &Path, error: io::Error) -> Self {
        Self::Io { path: path.to_owned(), error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vault(directory: &Path, unlock: Unlock) -> Vault {
        Vault::File { path: directory.join("vault"), unlock }
    }

    fn by_key_file(directory: &Path) -> Vault {
        vault(directory, Unlock::KeyFile(directory.join("vault.key")))
    }

    #[test]
    fn a_vault_is_made_once_and_opens_to_the_same_keys() {
        let directory = tempfile::tempdir().unwrap();
        let made = Keys::open(&by_key_file(directory.path())).unwrap();
        let opened = Keys::open(&by_key_file(directory.path())).unwrap();
        assert!(made.storage.bytes() == opened.storage.bytes() && made.retry.bytes() == opened.retry.bytes());
        for file in ["vault", "vault.key"] {
            let mode = fs::metadata(directory.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn no_key_stands_in_the_vault_file() {
        let directory = tempfile::tempdir().unwrap();
        let keys = Keys::open(&by_key_file(directory.path())).unwrap();
        let file = fs::read(directory.path().join("vault")).unwrap();
        assert!(!file.windows(16).any(|window| keys.storage.bytes().starts_with(window)));
    }

    #[test]
    fn a_passphrase_opens_its_vault_and_another_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let by = |passphrase: &str| vault(directory.path(), Unlock::Passphrase(Zeroizing::new(passphrase.to_owned())));
        Keys::open(&by("correct horse")).unwrap();
        Keys::open(&by("correct horse")).unwrap();
        assert!(matches!(Keys::open(&by("wrong horse")), Err(VaultError::WontOpen { .. })));
        assert!(matches!(Keys::open(&by_key_file(directory.path())), Err(VaultError::OtherUnlock { .. })));
    }

    #[test]
    fn a_changed_vault_does_not_open_whichever_byte_was_changed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vault");
        Keys::open(&by_key_file(directory.path())).unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert!(Keys::open(&by_key_file(directory.path())).is_err(), "byte {at}");
        }
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(matches!(Keys::open(&by_key_file(directory.path())), Err(VaultError::WontOpen { .. })));
    }

    #[test]
    fn a_foreign_or_newer_file_and_an_open_one_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vault");
        Keys::open(&by_key_file(directory.path())).unwrap();
        let whole = fs::read(&path).unwrap();

        let mut newer = whole.clone();
        newer[MAGIC.len()] = 9;
        fs::write(&path, newer).unwrap();
        assert!(matches!(Keys::open(&by_key_file(directory.path())), Err(VaultError::Version { version: 9, .. })));
        fs::write(&path, b"hello").unwrap();
        assert!(matches!(Keys::open(&by_key_file(directory.path())), Err(VaultError::Foreign { .. })));
        fs::write(&path, whole).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Keys::open(&by_key_file(directory.path())).err().unwrap();
        assert!(matches!(error, VaultError::OpenToOthers { mode: 0o640, .. }), "{error}");
    }

    #[test]
    fn a_made_3des_key_has_odd_parity_and_different_halves() {
        for _ in 0..1_000 {
            let mut key = Clear::zeroed();
            make_tdes_key(&mut key, rand::fill).unwrap();
            assert!(key.bytes().iter().all(|byte| byte.count_ones() % 2 == 1));
            assert!(key.bytes()[..8] != key.bytes()[8..]);
        }
    }
}
