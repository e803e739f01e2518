//! The signed checkpoints of the audit chain, as files of the engine.
//!
//! ```text
//! signing-key     the Ed25519 seed, in hexadecimal digits; mode 0600
//! verifier-key    the public key, as `NAME+ID+KEY`
//! checkpoint      the newest checkpoint, a signed note
//! tree            the roots of the complete subtrees of that checkpoint's tree, a line each
//! ```
//! The engine decides what it signs, so a key in the token would not protect a checkpoint from the engine. What a checkpoint
//! proves is that entries did not change after a copy of the checkpoint left this machine.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tokio::sync::watch;

use audit::{
    chain::{ChainError, Checkpoint},
    note::{NoteError, SigningKey},
    tree_head::{ChainTree, TreeHead, TreeHeadError},
};
use config::{SecretError, SecretSource};
use domain::time::UnixMillis;
use store::{Store, StoreError};

/// The number of audit entries that one read of the store returns.
const PAGE_ENTRIES: usize = 1_024;
/// The file of the newest checkpoint.
const CHECKPOINT: &str = "checkpoint";
/// The file of the subtrees of the newest checkpoint.
const TREE: &str = "tree";
/// The file of the public key.
const VERIFIER_KEY: &str = "verifier-key";
/// The name of the signing key's file, unless the configuration names another.
pub(super) const SIGNING_KEY: &str = "signing-key";

/// The place and the pace of the checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointConfig {
    /// The directory of the files; made, with mode 0700, where it is absent.
    pub directory: PathBuf,
    /// The file of the signing key; made where neither it nor a checkpoint exists.
    pub signing_key: PathBuf,
    /// The time between two checkpoints.
    pub every: Duration,
}

/// Signs the checkpoints of one chain.
pub(super) struct Checkpoints {
    store: Arc<dyn Store>,
    key: Arc<SigningKey>,
    directory: PathBuf,
    /// `None` before the first entry.
    tree: Option<ChainTree>,
    /// The checkpoint on disk.
    signed: Option<TreeHead>,
    /// The note of the checkpoint on disk.
    note: watch::Sender<Option<Arc<str>>>,
    /// When the checkpoint on disk was last found to cover the newest entry.
    covered_at: watch::Sender<Option<UnixMillis>>,
}

impl Checkpoints {
    /// Opens the key, or makes one at the first start, and the newest checkpoint.
    ///
    /// # Errors
    /// [`CheckpointError`] where a file can't be read or made, or is not what its name says; the key is another one than that
    /// of archived entries; the store does not hold the entry of the newest checkpoint; or the store can't be read.
    pub(super) async fn open(config: &CheckpointConfig, store: Arc<dyn Store>) -> Result<Self, CheckpointError> {
        let directory = config.directory.clone();
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| CheckpointError::File { path, error }
        };
        create_directory(&directory).map_err(failed(&directory))?;
        let path = directory.join(CHECKPOINT);
        let note = if path.exists() { Some(fs::read_to_string(&path).map_err(failed(&path))?) } else { None };
        if note.is_none() && !config.signing_key.exists() {
            let text = SigningKey::random_text()?;
            write_new(&config.signing_key, &text).map_err(failed(&config.signing_key))?;
            tracing::info!(file = %config.signing_key.display(), "a signing key for audit checkpoints was made");
        }
        let key = Arc::new(SigningKey::from_text(&SecretSource::File(config.signing_key.clone()).read()?)?);
        if store.archived().await?.is_some_and(|archived| archived.salts != key.salts_id()) {
            return Err(CheckpointError::OtherKey);
        }
        let signed = note
            .as_ref()
            .map(|note| open_note(note, &key))
            .transpose()
            .map_err(|error| CheckpointError::Note { path: path.clone(), error })?;
        if let Some(signed) = &signed {
            check_entry(&*store, signed.head, path).await?;
        }
        let tree = signed.as_ref().and_then(|head| read_tree(&directory.join(TREE), head));
        let note = watch::Sender::new(note.map(Arc::from));
        Ok(Self { store, key, directory, tree, signed, note, covered_at: watch::Sender::new(None) })
    }

    /// The signing key.
    pub(super) fn key(&self) -> Arc<SigningKey> {
        Arc::clone(&self.key)
    }

    /// The note of the newest checkpoint; `None` before the first one, and where the store has another chain.
    pub(super) fn newest(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.note.subscribe()
    }

    /// When the checkpoint on disk was last found to cover the newest entry; `None` before.
    pub(super) fn covered_at(&self) -> watch::Receiver<Option<UnixMillis>> {
        self.covered_at.subscribe()
    }

    /// Signs checkpoints until the task is aborted.
    pub(super) async fn run(checkpoints: Arc<tokio::sync::Mutex<Self>>, every: Duration) {
        loop {
            if !checkpoints.lock().await.sign_and_log().await {
                return;
            }
            tokio::time::sleep(every).await;
        }
    }

    /// Signs the newest entry; `false` where no later call can succeed. The log has the error.
    pub(super) async fn sign_and_log(&mut self) -> bool {
        let Err(error) = self.sign().await else {
            self.covered_at.send_replace(Some(clock::now()));
            return true;
        };
        tracing::error!(%error, "the audit chain has no new checkpoint");
        let is_other = matches!(error, CheckpointError::OtherChain { .. });
        if is_other {
            self.note.send_replace(None);
        }
        !is_other
    }

    /// Signs the newest entry, unless the checkpoint on disk covers it.
    async fn sign(&mut self) -> Result<(), CheckpointError> {
        let other_chain = CheckpointError::OtherChain { path: self.directory.join(CHECKPOINT) };
        let end = self.store.checkpoint().await?.sequence;
        if let Some(signed) = &self.signed
            && !has_entry(&*self.store, signed.head).await?
        {
            return Err(other_chain);
        }
        if self.tree.is_none() {
            self.tree = self.store.archived().await?.map(|archived| archived.tree);
        }
        if let Err(error) = extend(&mut self.tree, &*self.store, end, &self.key).await {
            // The next call reads from the first entry of the store: entries were archived between two reads, for example.
            self.tree = None;
            return Err(error);
        }
        let Some(tree) = &self.tree else { return Ok(()) };
        let head = tree.head();
        match &self.signed {
            Some(signed) if signed.origin != head.origin => return Err(other_chain),
            Some(signed) if *signed == head => return Ok(()),
            _ => {}
        }
        let (verifier, note) = (format!("{}\n", self.key.verifier(&head.origin)?), head.sign(&self.key)?);
        // The checkpoint is the last: without it, the others are not used.
        for (name, text) in [(VERIFIER_KEY, &verifier), (TREE, &tree.subtrees_text()), (CHECKPOINT, &note)] {
            let path = self.directory.join(name);
            replace(&path, text).map_err(|error| CheckpointError::File { path, error })?;
        }
        self.signed = Some(head);
        self.note.send_replace(Some(note.into()));
        Ok(())
    }
}

/// Opens a note of the key.
pub(super) fn open_note(note: &str, key: &SigningKey) -> Result<TreeHead, TreeHeadError> {
    let origin = note.lines().next().unwrap_or_default();
    TreeHead::open(note, &key.verifier(origin)?)
}

/// Checks that the store holds the entry of the checkpoint in a file.
async fn check_entry(store: &dyn Store, signed: Checkpoint, path: PathBuf) -> Result<(), CheckpointError> {
    if has_entry(store, signed).await? {
        return Ok(());
    }
    let (place, signed, end) = (store.place().to_owned(), signed.sequence, store.checkpoint().await?.sequence);
    let archived = store.archived().await?.map_or(0, |archived| archived.end().sequence);
    Err(if signed <= archived {
        CheckpointError::Archived { path, store: place, signed, archived }
    } else if end < signed {
        CheckpointError::EndsBefore { path, store: place, signed, end }
    } else {
        CheckpointError::OtherChain { path }
    })
}

/// Whether the store has this entry of the chain.
pub(super) async fn has_entry(store: &dyn Store, entry: Checkpoint) -> Result<bool, StoreError> {
    let found = store.audit(entry.sequence, 1).await?;
    Ok(found.first().is_some_and(|found| (found.sequence, found.hash) == (entry.sequence, entry.hash)))
}

/// Continues a tree over the entries of the store, up to the entry `end`.
///
/// # Errors
/// [`CheckpointError::Chain`] where an entry does not follow the one before; the store can't be read.
pub(super) async fn extend(
    tree: &mut Option<ChainTree>,
    store: &dyn Store,
    end: u64,
    key: &SigningKey,
) -> Result<(), CheckpointError> {
    loop {
        let from = tree.as_ref().map_or(0, |tree| tree.head().head.sequence).saturating_add(1);
        let page = store.audit(from, PAGE_ENTRIES).await?;
        for entry in page.iter().take_while(|entry| entry.sequence <= end) {
            ChainTree::append(tree, entry, key)?;
        }
        if page.last().is_none_or(|last| last.sequence >= end) {
            return Ok(());
        }
        // Reading the store does not yield: let other tasks run between two pages.
        tokio::task::yield_now().await;
    }
}

/// The tree of a checkpoint; `None` where the file is not that tree, so that the whole chain is read once.
fn read_tree(path: &Path, head: &TreeHead) -> Option<ChainTree> {
    ChainTree::from_subtrees_text(&fs::read_to_string(path).ok()?, head)
}

/// Writes a file that does not exist, readable by its owner alone.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    sync_directory(path)
}

/// Replaces a file in one step.
pub(super) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let next = path.with_extension("next");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&next)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    sync_directory(path)
}

/// Makes a directory with mode 0700, and those above it, where they are absent. Each is durable in the one above it.
pub(super) fn create_directory(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), create_directory)?;
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !path.is_dir() => Err(error),
        _ => sync_directory(path),
    }
}

/// Syncs the directory that holds this file or directory.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// The audit chain can't be signed.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// A file can't be read, written or made.
    #[error("{}: {error}; [audit] in the configuration names the directory of the checkpoints", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The signing key can't be read.
    #[error("audit.signing_key: {0}")]
    Secret(#[from] SecretError),
    /// The text of the signing key is not a key, or a note can't be made.
    #[error("audit.signing_key: {0}")]
    Key(#[from] NoteError),
    /// Entries were archived under another signing key, so the tree can't be continued under this one.
    #[error(
        "audit.signing_key is not the key under which the archived audit entries of this store were signed: put that key back. \
         The key of a chain with archived entries can't be replaced"
    )]
    OtherKey,
    /// The newest checkpoint does not open under the signing key.
    #[error("{}: {error}; if the signing key was replaced on purpose, keep this file elsewhere and remove it here", path.display())]
    Note {
        /// The checkpoint.
        path: PathBuf,
        /// The part that does not hold.
        error: TreeHeadError,
    },
    /// The chain does not continue the newest checkpoint.
    #[error(
        "the audit chain does not continue the checkpoint {}: entries were cut or rewritten, or the store is older or another \
         one. Keep a copy of both as evidence. If the store was restored or salvaged on purpose, move the checkpoint elsewhere \
         and start the engine again", path.display()
    )]
    OtherChain {
        /// The checkpoint.
        path: PathBuf,
    },
    /// The store lacks the newest entries that were signed.
    #[error(
        "the store {store} ends with audit entry {end}, and the checkpoint {} is of entry {signed}: its newest \
         entries are lost, with the PINs that were set and the controls that were spent under them. Keep a copy of the store. \
         Rescue what can be read (`pinseal store salvage`) or restore a backup (`pinseal store restore`); recover a database to \
         a later moment by PostgreSQL. To serve a store without these entries, move the checkpoint elsewhere, keep it, and start the engine again", path.display()
    )]
    EndsBefore {
        /// The checkpoint.
        path: PathBuf,
        /// [`Store::place`].
        store: String,
        /// The number of the checkpoint's entry.
        signed: u64,
        /// The number of the store's last entry.
        end: u64,
    },
    /// The entry of the newest checkpoint is in an archive file, so the checkpoint is not the newest one of this store.
    #[error(
        "the checkpoint {} is of audit entry {signed}, and entries 1 to {archived} of the store {store} were archived: the \
         checkpoint is an older one. Put the newest checkpoint back. If it is lost, move this one elsewhere, keep it, and start \
         the engine again", path.display()
    )]
    Archived {
        /// The checkpoint.
        path: PathBuf,
        /// [`Store::place`].
        store: String,
        /// The number of the checkpoint's entry.
        signed: u64,
        /// The number of the last archived entry.
        archived: u64,
    },
    /// The entries of the store are not a chain.
    #[error("{0}; keep a copy of the store as evidence, and restore it from a backup")]
    Chain(#[from] ChainError),
    /// The store can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}
