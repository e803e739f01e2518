//! The software token's keys at rest: one sealed file, mode 0600.
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

use argon2::{Algorithm, Argon2, Params, Version};
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
/// The longest file: thousands of keys.
const FILE_BYTES_MAX: usize = 1 << 20;

/// Argon2id of a new vault: RFC 9106's second choice, 64 MiB and 3 passes.
const MEMORY_KIB: u32 = 64 * 1024;
/// See [`MEMORY_KIB`].
const PASSES: u32 = 3;
/// The most an existing vault may ask for, so that a foreign file cannot exhaust the machine.
const MEMORY_KIB_MAX: u32 = 1024 * 1024;
/// See [`MEMORY_KIB_MAX`].
const PASSES_MAX: u32 = 64;

/// Whether a file may be there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum VaultWrite {
    /// It is made, and never over another.
    New,
    /// It stands, and this takes its place.
    Over,
}

/// Decrypts a vault file and returns its keyring as bytes.
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

/// Seals a keyring into a file: whole or not at all.
pub(crate) fn write(path: &Path, unlock: &Unlock, keyring: ClearBytes, how: VaultWrite) -> Result<(), VaultError> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(|error| VaultError::io(path, error))?;
    }
    let made = match (unlock, how) {
        (Unlock::KeyFile(key_file), VaultWrite::New) if make_key_file(key_file)? => Some(key_file),
        _ => None,
    };
    let written = seal_into(path, unlock, keyring, how);
    // A key file alone says that its vault is missing. Without either, the next start is the first again.
    if let (Err(_), Some(key_file), Ok(false)) = (&written, made, path.try_exists()) {
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

/// Whether a vault is there.
///
/// # Errors
/// [`VaultError::Missing`] where its key file alone is there. The other way round [`read`] fails, which knows whether a key
/// file opens the vault.
pub(crate) fn is_there(path: &Path, unlock: &Unlock) -> Result<bool, VaultError> {
    let there = |path: &Path| path.try_exists().map_err(|error| VaultError::io(path, error));
    let Unlock::KeyFile(key_file) = unlock else { return there(path) };
    match there(path)? {
        false if there(key_file)? => Err(VaultError::Missing { path: path.to_owned(), key_file: key_file.clone() }),
        found => Ok(found),
    }
}

/// Keeps other processes from creating a vault in the same directory until the file is dropped; makes the directory.
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

/// Makes a vault. Of several processes that do so at once one does, and all of them open what it made.
pub(crate) fn make(path: &Path, unlock: &Unlock, keyring: ClearBytes) -> Result<ClearBytes, VaultError> {
    match write(path, unlock, keyring, VaultWrite::New) {
        Err(VaultError::Io { path: of, error }) if of == path => made_here_or_elsewhere(path, Err(error))?,
        other => other?,
    }
    read(path, unlock)
}

/// Accepts a file that another process created first: syncs its directory, so that the name survives a power cut.
fn made_here_or_elsewhere(path: &Path, made: io::Result<()>) -> Result<(), VaultError> {
    match made {
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
        failed => made_here_or_elsewhere(path, failed).map(|()| false),
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
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon.hash_password_into(passphrase.as_bytes(), salt, key.bytes_mut()).map_err(|_| foreign())
}

/// Reads a file that nobody but its owner may read, up to one byte more than it should have.
pub(crate) fn read_private(path: &Path, bytes: usize) -> Result<Zeroizing<Vec<u8>>, VaultError> {
    let io = |error| VaultError::io(path, error);
    let file = File::open(path).map_err(io)?;
    check_private(&file, path)?;
    let mut read = Zeroizing::new(Vec::with_capacity(bytes + 1));
    file.take(bytes as u64 + 1).read_to_end(&mut read).map_err(io)?;
    Ok(read)
}

/// Whether nobody but its owner may read a file.
pub(crate) fn check_private(file: &File, path: &Path) -> Result<(), VaultError> {
    let mode = file.metadata().map_err(|error| VaultError::io(path, error))?.permissions().mode();
    match mode & 0o077 {
        0 => Ok(()),
        _ => Err(VaultError::OpenToOthers { path: path.to_owned(), mode: mode & 0o777 }),
    }
}

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn write_private(path: &Path, bytes: &[u8], how: VaultWrite) -> io::Result<()> {
    place_private(path, bytes, how)?;
    sync_directory(path)
}

/// The same, with its name not yet synced. A file that takes another's place has its owner, group and mode.
fn place_private(path: &Path, bytes: &[u8], how: VaultWrite) -> io::Result<()> {
    let before = match how {
        VaultWrite::New => None,
        VaultWrite::Over => Some(fs::metadata(path)?),
    };
    let fresh = name_beside(path)?;
    // Made, never opened: two processes that share one could each link what the other then writes over.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    let filled = file.write_all(bytes).and_then(|()| before.map_or(Ok(()), |before| belong_as(&file, &before)));
    let written = filled.and_then(|()| file.sync_all()).and_then(|()| match how {
        VaultWrite::Over => fs::rename(&fresh, path),
        // A hard link, unlike a rename, fails where another process created the file first.
        VaultWrite::New => fs::hard_link(&fresh, path),
    });
    if written.is_err() || how == VaultWrite::New {
        // A second name that stays does not undo the file: `remove_leftover` finds it.
        let _ = fs::remove_file(&fresh);
    }
    written
}

/// Removes the second names that a kill between the link and the removal leaves beside a file: `NAME.<hex>.new` that is
/// the same inode. The caller has the file's lock.
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
        // Of a symbolic link, its own inode.
        let same = entry.metadata()?;
        if (same.dev(), same.ino()) == (file.dev(), file.ino()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Gives a file the owner, group and mode of another: root may replace what an engine's user reads.
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

/// A name that nobody else has, in the same directory: the whole name of the file, and something random.
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

/// Why a vault did not open.
#[derive(Debug, Error)]
pub enum VaultError {
    /// Neither the vault nor its key file is there.
    #[error(
        "there is no vault at {}: mount or restore it; keys are made by `pinseal vault create`, by a ceremony, or by an engine \
         whose store holds nothing yet",
        path.display()
    )]
    Absent {
        /// The vault.
        path: PathBuf,
    },
    /// The key file is there, and its vault is not.
    #[error(
        "the vault {} is missing, and its key file {} is there: mount or restore the vault; where none was ever sealed with \
         that key file, run `pinseal vault create --use-key-file`",
        path.display(),
        key_file.display()
    )]
    Missing {
        /// The vault.
        path: PathBuf,
        /// Its key file.
        key_file: PathBuf,
    },
    /// The vault is there, and its key file is not.
    #[error("the key file {} of the vault {} is missing: mount or restore it", key_file.display(), path.display())]
    KeyFileMissing {
        /// The vault.
        path: PathBuf,
        /// Its key file.
        key_file: PathBuf,
    },
    /// It was to be created.
    #[error("the vault {} is there already: nothing was made", path.display())]
    Present {
        /// The vault.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("{} is not a Pinseal vault", path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
    },
    /// The file is of another release.
    #[error("{} is a vault of version {version}: this release reads version {VERSION} only; run the release that wrote the file", path.display())]
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
    /// It holds as much as it may.
    #[error("{} would be larger than {FILE_BYTES_MAX} bytes: destroyed keys count too", path.display())]
    Full {
        /// Which file.
        path: PathBuf,
    },
    /// What is inside can't be read, or lacks a key.
    #[error("{} has no {missing}: make it in a key ceremony, and make it active", path.display())]
    Lacks {
        /// Which file.
        path: PathBuf,
        /// What an engine needs.
        missing: String,
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
    /// The vault was replaced, and whether its name survives a power cut is not known.
    #[error("{} was replaced, but its directory does not sync: {error}", path.display())]
    NotSynced {
        /// The vault.
        path: PathBuf,
        /// The operating system's reason.
        error: io::Error,
    },
    /// A change would replace one of the names and leave the others with the keys of before.
    #[error(
        "{} has {names} names (hard links), and a change would reach this one alone: find them with `find DIRECTORY -samefile \
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
        Keyring::open(vault, AbsentVault::Create, 1).and_then(|keyring| keyring.serving(vault))
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
        // The name beside it is longer than the 255 bytes that a file system takes.
        let path = directory.path().join("v".repeat(240));
        let key_file = directory.path().join("vault.key");
        let unlock = Unlock::KeyFile(key_file.clone());
        let write = || write(&path, &unlock, Keyring::empty().bytes(), VaultWrite::New);
        assert!(matches!(write(), Err(VaultError::Io { .. })));
        assert!(names_in(directory.path()).is_empty());
        assert!(!is_there(&path, &unlock).unwrap());
        // One that was there before stays.
        write_private(&key_file, &[7; 32], VaultWrite::New).unwrap();
        assert!(write().is_err());
        assert_eq!(fs::read(&key_file).unwrap(), [7; 32]);
    }

    #[test]
    fn a_leftover_name_of_the_same_file_alone_is_removed() {
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
    fn no_key_stands_in_the_vault_file() {
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
