//! The vault: the software token's keys in one sealed file with mode 0600.
//!
//! ```text
//! "PINSEAL-VAULT" version(1) unlock(1) memory_kib(4) passes(4) salt(16) nonce(12) ciphertext tag(16)
//! ```
//! The plaintext is a keyring, in the layout of `keyring::layout`. The cipher is AES-256-GCM-SIV (RFC 8452) under the unlock
//! key; the bytes before the ciphertext are its associated data. The unlock key is the 32 bytes of a key file, or Argon2id
//! (RFC 9106) of a passphrase.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    },
    path::{Path, PathBuf},
};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use aws_lc_rs::{
    aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey},
    rand,
};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

use crate::{
    clear::{Clear, ClearBytes},
    config::Unlock,
};

const MAGIC: &[u8; 13] = b"PINSEAL-VAULT";
const VERSION: u8 = 2;
const BY_KEY: u8 = 0;
const BY_PASSPHRASE: u8 = 1;
const NONCE_AT: usize = 13 + 2 + 8 + 16;
const HEAD_BYTES: usize = NONCE_AT + 12;
/// The most bytes of a vault file, enough for thousands of keys.
const FILE_BYTES_MAX: usize = 1 << 20;

/// Argon2id memory of a new vault: the second recommended option of RFC 9106, section 4 (64 MiB, 3 passes).
const MEMORY_KIB: u32 = 64 * 1024;
/// Argon2id passes of a new vault.
const PASSES: u32 = 3;
/// The most memory that an existing vault may ask for: a foreign file must not exhaust the machine.
const MEMORY_KIB_MAX: u32 = 1024 * 1024;
/// The most passes that an existing vault may ask for.
const PASSES_MAX: u32 = 64;

/// Whether a write creates a file or replaces one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum VaultWrite {
    /// Creates the file; fails where the file exists.
    New,
    /// Replaces the existing file.
    Over,
}

/// Decrypts a vault file and returns its keyring as bytes.
///
/// # Errors
/// [`VaultError`] where the file or key file can't be read, is malformed or is not private, or where the secret is wrong.
pub(crate) fn read(path: &Path, unlock: &Unlock) -> Result<ClearBytes, VaultError> {
    let bytes = read_private(path, FILE_BYTES_MAX)?;
    let foreign = || VaultError::Foreign { path: path.to_owned() };
    let wont_open = || VaultError::WontOpen { path: path.to_owned() };
    let (head, sealed) =
        bytes.split_at_checked(HEAD_BYTES).filter(|(head, _)| head.starts_with(MAGIC)).ok_or_else(foreign)?;
    match head.get(MAGIC.len()) {
        Some(&VERSION) => {}
        Some(&version) => return Err(VaultError::Version { path: path.to_owned(), version }),
        None => return Err(foreign()),
    }
    let mut key = Clear::zeroed();
    unlock_key(path, unlock, head, &mut key)?;
    let aead = UnboundKey::new(&AES_256_GCM_SIV, key.bytes()).map(LessSafeKey::new).map_err(|_| wont_open())?;
    let nonce = head.get(NONCE_AT..).and_then(|nonce| Nonce::try_assume_unique_for_key(nonce).ok());
    let mut buffer = ClearBytes::copied(sealed);
    let opened = aead
        .open_in_place(nonce.ok_or_else(wont_open)?, Aad::from(head), buffer.bytes_mut())
        .map_err(|_| wont_open())?;
    Ok(ClearBytes::copied(opened))
}

/// Seals a keyring into a file, atomically.
///
/// # Errors
/// [`VaultError`] where the file can't be written. The old file is unchanged, except for [`VaultError::NotSynced`].
pub(crate) fn write(path: &Path, unlock: &Unlock, keyring: ClearBytes, how: VaultWrite) -> Result<(), VaultError> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(|error| VaultError::io(path, error))?;
    }
    let created = match (unlock, how) {
        (Unlock::KeyFile(key_file), VaultWrite::New) if make_key_file(key_file)? => Some(key_file),
        _ => None,
    };
    let written = seal_into(path, unlock, keyring, how);
    // A key file without a vault means a missing vault. Without both files, the next start creates the vault.
    if let (Err(_), Some(key_file), Ok(false)) = (&written, created, path.try_exists()) {
        let _ = fs::remove_file(key_file).and_then(|()| sync_directory(key_file));
    }
    written
}

fn seal_into(path: &Path, unlock: &Unlock, mut keyring: ClearBytes, how: VaultWrite) -> Result<(), VaultError> {
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
    let mut key = Clear::zeroed();
    unlock_key(path, unlock, &head, &mut key)?;

    let aead = UnboundKey::new(&AES_256_GCM_SIV, key.bytes()).map(LessSafeKey::new);
    let nonce = head.get(NONCE_AT..).and_then(|nonce| Nonce::try_assume_unique_for_key(nonce).ok());
    let (Ok(aead), Some(nonce)) = (aead, nonce) else { return Err(VaultError::Random) };
    let tag = aead
        .seal_in_place_separate_tag(nonce, Aad::from(&head[..]), keyring.bytes_mut())
        .map_err(|_| VaultError::Random)?;
    let file = [&head[..], keyring.bytes(), tag.as_ref()].concat();
    if file.len() > FILE_BYTES_MAX {
        return Err(VaultError::Full { path: path.to_owned() });
    }
    place_private(path, &file, how).map_err(|error| VaultError::io(path, error))?;
    sync_directory(path).map_err(|error| VaultError::NotSynced { path: path.to_owned(), error })
}

/// Whether the vault file exists.
///
/// # Errors
/// [`VaultError::Missing`] where only the key file exists. Where only the vault file exists, [`read`] fails: the file says
/// whether a key file opens it.
pub(crate) fn is_there(path: &Path, unlock: &Unlock) -> Result<bool, VaultError> {
    let exists = |path: &Path| path.try_exists().map_err(|error| VaultError::io(path, error));
    let Unlock::KeyFile(key_file) = unlock else { return exists(path) };
    match exists(path)? {
        false if exists(key_file)? => Err(VaultError::Missing { path: path.to_owned(), key_file: key_file.clone() }),
        found => Ok(found),
    }
}

/// Locks the directory of a vault until the returned file is dropped, so that no other process creates a vault there. Creates
/// a missing directory.
pub(crate) fn lock_directory(path: &Path) -> Result<File, VaultError> {
    let io = |error| VaultError::io(path, error);
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    fs::create_dir_all(directory).map_err(io)?;
    let lock = File::open(directory).map_err(io)?;
    lock.lock().map_err(io)?;
    Ok(lock)
}

/// Creates a vault. Where several processes do so at once, one creates the vault and all open the same one.
pub(crate) fn make(path: &Path, unlock: &Unlock, keyring: ClearBytes) -> Result<ClearBytes, VaultError> {
    match write(path, unlock, keyring, VaultWrite::New) {
        Err(VaultError::Io { path: failed, error }) if failed == path => accept_existing(path, Err(error))?,
        other => other?,
    }
    read(path, unlock)
}

/// Accepts a file that another process created first: syncs its directory, so that the name survives a power cut.
fn accept_existing(path: &Path, created: io::Result<()>) -> Result<(), VaultError> {
    match created {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => sync_directory(path),
        other => other,
    }
    .map_err(|error| VaultError::io(path, error))
}

/// Creates a key file unless one exists. Returns whether this call created it.
fn make_key_file(path: &Path) -> Result<bool, VaultError> {
    if path.exists() {
        return Ok(false);
    }
    let mut key = Clear::<32>::zeroed();
    rand::fill(key.bytes_mut()).map_err(|_| VaultError::Random)?;
    match place_private(path, key.bytes(), VaultWrite::New) {
        Ok(()) => sync_directory(path).map(|()| true).map_err(|error| {
            let _ = fs::remove_file(path);
            VaultError::io(path, error)
        }),
        failed => accept_existing(path, failed).map(|()| false),
    }
}

fn unlock_key(vault: &Path, unlock: &Unlock, head: &[u8], key: &mut Clear<32>) -> Result<(), VaultError> {
    let by = head.get(MAGIC.len() + 1).copied();
    match unlock {
        Unlock::Passphrase(passphrase) if by == Some(BY_PASSPHRASE) => derive(vault, passphrase, head, key),
        Unlock::Key(bytes) if by == Some(BY_KEY) => {
            key.bytes_mut().copy_from_slice(&bytes[..]);
            Ok(())
        }
        Unlock::KeyFile(path) if by == Some(BY_KEY) => {
            let bytes = read_private(path, 32).map_err(|error| match error {
                VaultError::Io { error, .. } if error.kind() == io::ErrorKind::NotFound => {
                    VaultError::KeyFileMissing { path: vault.to_owned(), key_file: path.clone() }
                }
                error => error,
            })?;
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
    // Of the last block, a reader computes the key: argon2 itself does not wipe its blocks.
    let mut blocks = Zeroizing::new(Vec::new());
    // The head of a foreign file may ask for more memory than there is.
    blocks.try_reserve_exact(params.block_count()).map_err(|_| foreign())?;
    blocks.resize(params.block_count(), Block::new());
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon
        .hash_password_into_with_memory(passphrase.as_bytes(), salt, key.bytes_mut(), &mut *blocks)
        .map_err(|_| foreign())
}

/// Reads a private file, at most `bytes` and one more, so that the caller detects a longer file.
pub(crate) fn read_private(path: &Path, bytes: usize) -> Result<Zeroizing<Vec<u8>>, VaultError> {
    let io = |error| VaultError::io(path, error);
    let file = File::open(path).map_err(io)?;
    check_private(&file, path)?;
    let mut read = Zeroizing::new(Vec::with_capacity(bytes + 1));
    file.take(bytes as u64 + 1).read_to_end(&mut read).map_err(io)?;
    Ok(read)
}

/// Fails where users other than the owner have any right to a file.
pub(crate) fn check_private(file: &File, path: &Path) -> Result<(), VaultError> {
    let mode = file.metadata().map_err(|error| VaultError::io(path, error))?.permissions().mode();
    match mode & 0o077 {
        0 => Ok(()),
        _ => Err(VaultError::OpenToOthers { path: path.to_owned(), mode: mode & 0o777 }),
    }
}

/// Writes a file with mode 0600, atomically, and syncs its directory.
pub(crate) fn write_private(path: &Path, bytes: &[u8], how: VaultWrite) -> io::Result<()> {
    place_private(path, bytes, how)?;
    sync_directory(path)
}

/// Writes a private file without syncing its directory. A replaced file keeps its owner, group and mode.
fn place_private(path: &Path, bytes: &[u8], how: VaultWrite) -> io::Result<()> {
    let before = match how {
        VaultWrite::New => None,
        VaultWrite::Over => Some(fs::metadata(path)?),
    };
    let fresh = name_beside(path)?;
    // `create_new`: two processes that shared this file could link a name to bytes that the other overwrites.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    let filled = file.write_all(bytes).and_then(|()| before.map_or(Ok(()), |before| belong_as(&file, &before)));
    let written = filled.and_then(|()| file.sync_all()).and_then(|()| match how {
        VaultWrite::Over => fs::rename(&fresh, path),
        // A hard link, unlike a rename, fails where another process created the file first.
        VaultWrite::New => fs::hard_link(&fresh, path),
    });
    if written.is_err() || how == VaultWrite::New {
        // Where this fails a second name stays, which `remove_leftover` removes.
        let _ = fs::remove_file(&fresh);
    }
    written
}

/// Removes the second names of a file, `NAME.<16 hex digits>.new` with the same inode, which a kill between link and removal
/// leaves. The caller holds the file's lock.
pub(crate) fn remove_leftover(path: &Path) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let file = fs::metadata(path)?;
    let prefix = [name.as_bytes(), b"."].concat();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let found = entry.file_name();
        let middle = found.as_bytes().strip_prefix(&prefix[..]).and_then(|rest| rest.strip_suffix(b".new"));
        if !middle.is_some_and(|random| random.len() == 16 && random.iter().all(u8::is_ascii_hexdigit)) {
            continue;
        }
        // The metadata of the entry itself, also of a symbolic link.
        let other = entry.metadata()?;
        if (other.dev(), other.ino()) == (file.dev(), file.ino()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Gives a file the owner, group and mode of another: root may replace a file that an engine's user reads.
fn belong_as(file: &File, other: &fs::Metadata) -> io::Result<()> {
    own_as(file, other)?;
    file.set_permissions(fs::Permissions::from_mode(other.mode() & 0o777))
}

/// Gives a file the owner and group of another.
pub(crate) fn own_as(file: &File, other: &fs::Metadata) -> io::Result<()> {
    let has = file.metadata()?;
    if (has.uid(), has.gid()) == (other.uid(), other.gid()) {
        return Ok(());
    }
    fchown(file, Some(other.uid()), Some(other.gid()))
}

/// A unique path in the same directory: the file's name and a random suffix.
fn name_beside(path: &Path) -> io::Result<PathBuf> {
    let mut random = [0; 8];
    rand::fill(&mut random).map_err(|_| io::Error::other("the random generator failed"))?;
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{:016x}.new", u64::from_be_bytes(random)));
    Ok(path.with_file_name(name))
}

/// Syncs the directory of a file, so that its name survives a power cut.
fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => File::open(directory)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

impl Drop for Unlock {
    fn drop(&mut self) {
        if let Self::Passphrase(passphrase) = self {
            passphrase.zeroize();
        }
    }
}

/// A vault or another private file can't be read or written.
#[derive(Debug, Error)]
pub enum VaultError {
    /// Neither the vault nor its key file exists.
    #[error(
        "there is no vault at {}: mount or restore it; `pinseal vault create`, a ceremony, or an engine with an empty store \
         creates one",
        path.display()
    )]
    Absent {
        /// The vault.
        path: PathBuf,
    },
    /// Only the key file exists.
    #[error(
        "the vault {} is missing, and its key file {} exists: mount or restore the vault; where no vault was ever sealed with \
         this key file, run `pinseal vault create --use-key-file`",
        path.display(),
        key_file.display()
    )]
    Missing {
        /// The vault.
        path: PathBuf,
        /// The key file of the vault.
        key_file: PathBuf,
    },
    /// Only the vault exists, and a key file opens it.
    #[error("the key file {} of the vault {} is missing: mount or restore it", key_file.display(), path.display())]
    KeyFileMissing {
        /// The vault.
        path: PathBuf,
        /// The key file of the vault.
        key_file: PathBuf,
    },
    /// The vault to be created exists.
    #[error("the vault {} is there already: nothing was made", path.display())]
    Present {
        /// The vault.
        path: PathBuf,
    },
    /// The file does not begin as a vault does.
    #[error("{} is not a Pinseal vault", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// Another release wrote the file.
    #[error("{} is a vault of version {version}: this release reads version {VERSION} only; run the release that wrote the file", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The version byte of the file.
        version: u8,
    },
    /// The secret is wrong, or the file was changed.
    #[error("{} does not open: the passphrase or key is wrong, or the file is damaged", path.display())]
    WontOpen {
        /// The file.
        path: PathBuf,
    },
    /// A key file is configured for a vault with a passphrase, or the reverse.
    #[error("{} needs the other kind of secret: configure a key file instead of a passphrase, or the reverse", path.display())]
    OtherUnlock {
        /// The file.
        path: PathBuf,
    },
    /// The vault has reached its largest size.
    #[error("{} would be larger than {FILE_BYTES_MAX} bytes; destroyed keys count too: begin a new vault", path.display())]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// The vault has no active key of a usage that an engine needs.
    #[error("{} has no {missing}: make it in a key ceremony, and make it active", path.display())]
    Lacks {
        /// The vault.
        path: PathBuf,
        /// The missing usage, for example `storage`.
        missing: String,
    },
    /// The key file has another length than 32 bytes.
    #[error("the key file {} does not have 32 bytes", path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
    },
    /// Users other than the owner have rights to the file.
    #[error("{} has mode {mode:o}: others may read it, chmod 600 it", path.display())]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// The permission bits.
        mode: u32,
    },
    /// The vault was replaced, but a power cut may bring back the old one.
    #[error("{} was replaced, but its directory does not sync: {error}", path.display())]
    NotSynced {
        /// The vault.
        path: PathBuf,
        /// The operating system's reason.
        error: io::Error,
    },
    /// The vault has several hard links. A change would replace one of them; the others would keep the old keys.
    #[error(
        "{} has {names} names (hard links), and a change would reach only this one: find them with `find DIRECTORY -samefile \
         {}`, remove all but one, and link symbolically where another is needed",
        path.display(),
        path.display()
    )]
    HardLinks {
        /// The vault.
        path: PathBuf,
        /// The number of its hard links.
        names: u64,
    },
    /// The operating system refuses to read or write a file.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error.
        error: io::Error,
    },
    /// The random generator or the cipher failed in this process.
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

    use crate::{
        config::{AbsentVault, KeyFileUse, Vault},
        keyring::{Keyring, Keys},
    };

    fn vault(directory: &Path, unlock: Unlock) -> Vault {
        Vault::File { path: directory.join("vault"), unlock }
    }

    fn by_key_file(directory: &Path) -> Vault {
        vault(directory, Unlock::KeyFile(directory.join("vault.key")))
    }

    fn open(vault: &Vault) -> Result<Keys, VaultError> {
        Keyring::open(vault, AbsentVault::Create, 1)
            .and_then(|keyring| keyring.serving(vault, crate::config::HostForm::Iso4))
    }

    #[test]
    fn a_vault_is_made_once_and_opens_to_the_same_keys() {
        let directory = tempfile::tempdir().unwrap();
        let made = open(&by_key_file(directory.path())).unwrap();
        let opened = open(&by_key_file(directory.path())).unwrap();
        assert!(
            made.storage.newest().bytes() == opened.storage.newest().bytes()
                && made.retry.newest().bytes() == opened.retry.newest().bytes()
        );
        for file in ["vault", "vault.key"] {
            let mode = fs::metadata(directory.path().join(file)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
    }

    #[test]
    fn a_missing_vault_is_created_only_on_request() {
        let directory = tempfile::tempdir().unwrap();
        let vault = by_key_file(&directory.path().join("keys"));
        let refused = Keyring::open(&vault, AbsentVault::Refuse, 1).err().unwrap();
        assert!(matches!(refused, VaultError::Absent { .. }), "{refused}");
        assert!(names_in(directory.path()).is_empty());
        Keyring::create(&vault, KeyFileUse::Refuse, 1).unwrap();
        let again = Keyring::create(&vault, KeyFileUse::Existing, 1).err().unwrap();
        assert!(matches!(again, VaultError::Present { .. }), "{again}");
        Keyring::open(&vault, AbsentVault::Refuse, 1).unwrap();
    }

    #[test]
    fn a_missing_vault_or_key_file_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let vault = by_key_file(directory.path());
        open(&vault).unwrap();
        let (file, key_file) = (directory.path().join("vault"), directory.path().join("vault.key"));
        let refused = |absent| Keyring::open(&vault, absent, 1).err().unwrap().to_string();
        for (missing, prefix) in [(&file, "the vault "), (&key_file, "the key file ")] {
            let kept = fs::read(missing).unwrap();
            fs::remove_file(missing).unwrap();
            for absent in [AbsentVault::Create, AbsentVault::Refuse] {
                let refused = refused(absent);
                let expected = format!("{prefix}{}", missing.display());
                assert!(refused.starts_with(&expected) && refused.contains("is missing"), "{refused}");
                assert!(!missing.exists());
            }
            write_private(missing, &kept, VaultWrite::New).unwrap();
        }
        let before = open(&vault).unwrap();
        fs::remove_file(&file).unwrap();
        assert!(matches!(Keyring::create(&vault, KeyFileUse::Refuse, 1), Err(VaultError::Missing { .. })));
        let key = fs::read(&key_file).unwrap();
        Keyring::create(&vault, KeyFileUse::Existing, 1).unwrap();
        assert_eq!(fs::read(&key_file).unwrap(), key);
        assert!(open(&vault).unwrap().storage.newest().bytes() != before.storage.newest().bytes());
    }

    #[test]
    fn concurrent_first_openings_get_the_same_keys() {
        const OPENINGS: usize = 8;
        for round in 0..50 {
            let directory = tempfile::tempdir().unwrap();
            let start = std::sync::Barrier::new(OPENINGS);
            let opened: Vec<_> = std::thread::scope(|scope| {
                let open = || {
                    start.wait();
                    open(&by_key_file(directory.path())).unwrap()
                };
                let all: Vec<_> = (0..OPENINGS).map(|_| scope.spawn(open)).collect();
                all.into_iter().map(|one| one.join().unwrap()).collect()
            });
            let afterwards = open(&by_key_file(directory.path())).unwrap();
            for keys in &opened {
                assert!(keys.storage.newest().bytes() == afterwards.storage.newest().bytes(), "round {round}");
                assert!(keys.retry.newest().bytes() == afterwards.retry.newest().bytes(), "round {round}");
            }
            assert_eq!(names_in(directory.path()), ["vault", "vault.key"]);
        }
    }

    fn names_in(directory: &Path) -> Vec<String> {
        let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn a_private_file_leaves_its_neighbours_unchanged() {
        let directory = tempfile::tempdir().unwrap();
        let (path, neighbour) = (directory.path().join("lea.2"), directory.path().join("lea.new"));
        fs::write(&neighbour, "another's").unwrap();
        write_private(&path, b"first", VaultWrite::New).unwrap();
        let taken = write_private(&path, b"second", VaultWrite::New).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        write_private(&path, b"third", VaultWrite::Over).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"third");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read(&neighbour).unwrap(), b"another's");
        assert_eq!(names_in(directory.path()), ["lea.2", "lea.new"]);
    }

    #[test]
    fn a_failed_private_write_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vault");
        fs::create_dir_all(path.join("full")).unwrap();
        for how in [VaultWrite::New, VaultWrite::Over] {
            assert!(write_private(&path, b"key", how).is_err());
            assert_eq!(names_in(directory.path()), ["vault"]);
        }
    }

    #[test]
    fn a_failed_first_write_leaves_no_key_file() {
        let directory = tempfile::tempdir().unwrap();
        // With its suffix the name is longer than the 255 bytes that a file system allows.
        let path = directory.path().join("v".repeat(240));
        let key_file = directory.path().join("vault.key");
        let unlock = Unlock::KeyFile(key_file.clone());
        let write = || write(&path, &unlock, Keyring::empty().bytes(), VaultWrite::New);
        assert!(matches!(write(), Err(VaultError::Io { .. })));
        assert!(names_in(directory.path()).is_empty());
        assert!(!is_there(&path, &unlock).unwrap());
        // A key file that existed before stays.
        write_private(&key_file, &[7; 32], VaultWrite::New).unwrap();
        assert!(write().is_err());
        assert_eq!(fs::read(&key_file).unwrap(), [7; 32]);
    }

    #[test]
    fn only_leftover_names_of_the_same_file_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("vault"), "sealed").unwrap();
        for linked in ["vault.0123456789abcdef.new", "vault.copy.new", "second", "vault.0123456789abcdef"] {
            fs::hard_link(at("vault"), at(linked)).unwrap();
        }
        fs::write(at("vault.fedcba9876543210.new"), "another's").unwrap();
        remove_leftover(&at("vault")).unwrap();
        let kept = ["second", "vault", "vault.0123456789abcdef", "vault.copy.new", "vault.fedcba9876543210.new"];
        assert_eq!(names_in(directory.path()), kept);
    }

    #[test]
    fn the_vault_file_holds_no_clear_key() {
        let directory = tempfile::tempdir().unwrap();
        let keys = open(&by_key_file(directory.path())).unwrap();
        let file = fs::read(directory.path().join("vault")).unwrap();
        assert!(!file.windows(16).any(|window| keys.storage.newest().bytes().starts_with(window)));
    }

    #[test]
    fn a_passphrase_opens_its_vault_and_another_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let by = |passphrase: &str| vault(directory.path(), Unlock::Passphrase(Zeroizing::new(passphrase.to_owned())));
        open(&by("correct horse")).unwrap();
        open(&by("correct horse")).unwrap();
        assert!(matches!(open(&by("wrong horse")), Err(VaultError::WontOpen { .. })));
        assert!(matches!(open(&by_key_file(directory.path())), Err(VaultError::OtherUnlock { .. })));
    }

    #[test]
    fn a_vault_with_any_changed_byte_does_not_open() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vault");
        open(&by_key_file(directory.path())).unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(&path, &changed).unwrap();
            assert!(open(&by_key_file(directory.path())).is_err(), "byte {at}");
        }
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(matches!(open(&by_key_file(directory.path())), Err(VaultError::WontOpen { .. })));
    }

    #[test]
    fn foreign_newer_and_readable_files_give_distinct_errors() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vault");
        open(&by_key_file(directory.path())).unwrap();
        let whole = fs::read(&path).unwrap();

        let mut newer = whole.clone();
        newer[MAGIC.len()] = 9;
        fs::write(&path, newer).unwrap();
        assert!(matches!(open(&by_key_file(directory.path())), Err(VaultError::Version { version: 9, .. })));
        fs::write(&path, b"hello").unwrap();
        assert!(matches!(open(&by_key_file(directory.path())), Err(VaultError::Foreign { .. })));
        fs::write(&path, whole).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = open(&by_key_file(directory.path())).err().unwrap();
        assert!(matches!(error, VaultError::OpenToOthers { mode: 0o640, .. }), "{error}");
    }
}
