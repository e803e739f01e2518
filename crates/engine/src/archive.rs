//! Archives audit entries that are older than the retention time.
//!
//! ```text
//! CHAIN-NUMBER.jsonl        entries from this number on, as `pinseal audit export` prints them; mode 0600
//! CHAIN-NUMBER.checkpoint   the signed checkpoint of the last of them
//! ```
//! CHAIN is the chain id, so that engines with one directory write different files. No file is replaced.
//! A file is written, synced, read back and verified; then one change of the store removes its entries and records the event.
//! After a crash at any step an entry is in the store, in a whole file, or in both, and the next run continues with that file.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use thiserror::Error;
use tokio::{sync::watch, task::spawn_blocking};

use super::checkpoints::{CheckpointError, create_directory, extend, has_entry, open_note, replace, sync_directory};
use crate::pin::Pins;
use audit::{
    archive::{ArchivedPart, SegmentReader},
    chain::{ChainError, Checkpoint},
    entry::ArchivedSegment,
    note::{NoteError, SigningKey},
    tree_head::{TreeHead, TreeHeadError},
};
use store::{Store, StoreError};

/// The number of audit entries that one read of the store returns.
const PAGE_ENTRIES: usize = 1_024;
/// The most entries in a file: about 50 MB.
const SEGMENT_ENTRIES_MAX: u64 = 65_536;
/// The interval at which entries are archived.
const EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// The time until the next try after a run that failed, or that found no checkpoint.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// The place of the archive, and how long the store keeps entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchiveConfig {
    /// The directory of the files; made, with mode 0700, where it is absent.
    pub directory: PathBuf,
    /// Entries that are older leave the store, within a day.
    pub keep: Duration,
}

/// Archives the entries of one chain.
pub(super) struct Archive {
    pub(super) config: ArchiveConfig,
    pub(super) store: Arc<dyn Store>,
    pub(super) pins: Arc<Pins>,
    pub(super) key: Arc<SigningKey>,
    /// The note of the newest checkpoint.
    pub(super) checkpoint: watch::Receiver<Option<Arc<str>>>,
}

impl Archive {
    /// Archives entries until the task is aborted.
    pub(super) async fn run(self) {
        let mut compared = None;
        loop {
            let archived = self.archive_segment(&mut compared).await;
            if let Err(error) = &archived {
                tracing::error!(%error, "audit entries were not archived: the store keeps them");
            }
            if !matches!(archived, Ok(Archived::Segment)) {
                compared = None;
            }
            tokio::time::sleep(pause_after(&archived)).await;
        }
    }

    /// Archives the oldest entries, as one file. `compared` is the head up to which the entries of the store were compared with
    /// a checkpoint.
    async fn archive_segment(&self, compared: &mut Option<TreeHead>) -> Result<Archived, ArchiveError> {
        let Some(note) = self.checkpoint.borrow().clone() else { return Ok(Archived::NoCheckpoint) };
        // The last entry of the checkpoint stays, because the next checkpoint is compared with it.
        let head = open_note(&note, &self.key)?;
        let end = head.head.sequence;
        let before = self.store.archived().await?;
        let start = before.as_ref().map_or(Checkpoint::EMPTY, ArchivedPart::end);
        let file = format!("{}-{:020}.jsonl", head.chain_id(), start.sequence.saturating_add(1));
        let path = self.config.directory.join(&file);
        let is_written = path.exists();
        let last = if is_written { None } else { self.last_old(start, end).await? };
        if !is_written && last.is_none() {
            return Ok(Archived::NoneOldEnough);
        }
        if compared.as_ref() != Some(&head) {
            let mut tree = before.as_ref().map(|archived| archived.tree.clone());
            extend(&mut tree, &*self.store, end, &self.key).await?;
            if tree.map(|tree| tree.head()).as_ref() != Some(&head) {
                return Err(ArchiveError::OtherChain);
            }
            *compared = Some(head);
        }
        if let Some(last) = last {
            self.write(&path, start, last).await?;
        }
        let (key, reads) = (Arc::clone(&self.key), path.clone());
        let read = spawn_blocking(move || read(&reads, &file, before, &key)).await;
        let (part, segment) = read.map_err(|error| ArchiveError::file(&path)(error.into()))??;
        let last = part.end();
        if last.sequence >= end || !has_entry(&*self.store, last).await? {
            return Err(ArchiveError::OtherEntries { path });
        }
        let (note, text) = (path.with_extension("checkpoint"), part.tree.head().sign(&self.key)?);
        // A run that ended before the removal wrote the same note.
        match fs::read_to_string(&note) {
            Ok(found) if found == text => {}
            Ok(_) => return Err(ArchiveError::OtherEntries { path: note }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                replace(&note, &text).map_err(ArchiveError::file(&note))?;
            }
            Err(error) => return Err(ArchiveError::file(&note)(error)),
        }
        tracing::info!(file = %path.display(), first = segment.first, last = segment.last, "audit entries are archived");
        self.pins.remove_archived(part, segment).await?;
        Ok(Archived::Segment)
    }

    /// The last entry before `end` that is old enough, and has only such entries before it; `None` where none is.
    async fn last_old(&self, start: Checkpoint, end: u64) -> Result<Option<u64>, ArchiveError> {
        let keep = u64::try_from(self.config.keep.as_millis()).unwrap_or(u64::MAX);
        let now = clock::now().0;
        let mut age = Age { until: now.saturating_sub(keep), now, last: None };
        let first = start.sequence.saturating_add(1);
        let end = end.min(first.saturating_add(SEGMENT_ENTRIES_MAX));
        let mut from = first;
        loop {
            let page = self.store.audit(from, PAGE_ENTRIES).await?;
            if from == first
                && let Some(oldest) = page.first().filter(|oldest| oldest.event.at.0 > now)
            {
                tracing::warn!(
                    sequence = oldest.sequence,
                    "the oldest audit entry has a time in the future: it is archived with the entries behind it; check the clock"
                );
            }
            if page.iter().any(|entry| entry.sequence >= end || !age.passes(entry.sequence, entry.event.at.0))
                || page.is_empty()
            {
                return Ok(age.last);
            }
            from = page.last().map_or(end, |last| last.sequence.saturating_add(1));
            // Reading the store does not yield: let other tasks run between two pages.
            tokio::task::yield_now().await;
        }
    }

    /// Writes the entries behind `start`, up to `last`.
    async fn write(&self, path: &Path, start: Checkpoint, last: u64) -> Result<(), ArchiveError> {
        let next = path.with_extension("next");
        let mut file = BufWriter::new(create(&next).map_err(ArchiveError::file(&next))?);
        let mut from = start.sequence.saturating_add(1);
        while from <= last {
            let page = self.store.audit(from, PAGE_ENTRIES).await?;
            for entry in page.iter().take_while(|entry| entry.sequence <= last) {
                writeln!(file, "{}", entry.to_json()).map_err(ArchiveError::file(&next))?;
            }
            from = page.last().map_or(u64::MAX, |last| last.sequence.saturating_add(1));
            tokio::task::yield_now().await;
        }
        let path = path.to_owned();
        let finish = move || {
            let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            publish(&file, &next, &path)
        };
        let finished = spawn_blocking(finish).await.map_err(io::Error::from).flatten();
        finished.map_err(ArchiveError::file(&self.config.directory))
    }
}

/// Opens an empty file that no other engine writes. A file that a crash left is emptied.
fn create(path: &Path) -> io::Result<File> {
    path.parent().map_or(Ok(()), create_directory)?;
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.try_lock()?;
    // The engine that wrote the file may have renamed it before the lock.
    if fs::metadata(path)?.ino() != file.metadata()?.ino() {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    file.set_len(0)?;
    Ok(file)
}

/// Syncs a file of [`create`] and gives it its name, unless another file has that name.
fn publish(file: &File, next: &Path, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    renameat_with(CWD, next, CWD, path, RenameFlags::NOREPLACE)?;
    sync_directory(path)
}

/// The result of a run.
enum Archived {
    /// One file has entries that left the store. More entries may be old enough.
    Segment,
    NoneOldEnough,
    /// The engine has not signed a checkpoint yet.
    NoCheckpoint,
}

/// The time from a run to the next one.
fn pause_after(run: &Result<Archived, ArchiveError>) -> Duration {
    match run {
        Ok(Archived::Segment) => Duration::ZERO,
        Ok(Archived::NoneOldEnough) => EVERY,
        Ok(Archived::NoCheckpoint) | Err(_) => RETRY_AFTER,
    }
}

/// Finds the last entry that is old enough.
struct Age {
    until: u64,
    now: u64,
    last: Option<u64>,
}

impl Age {
    /// Whether entries behind this one may be old enough. A clock that was wrong wrote times in the future: such an entry does
    /// not stop the archive, and is archived once an entry behind it is old enough.
    fn passes(&mut self, sequence: u64, at: u64) -> bool {
        if at < self.until {
            self.last = Some(sequence);
        }
        at < self.until || at > self.now
    }
}

/// Reads a whole file and verifies its entries.
fn read(
    path: &Path,
    name: &str,
    before: Option<ArchivedPart>,
    key: &SigningKey,
) -> Result<(ArchivedPart, ArchivedSegment), ArchiveError> {
    let chain = |error| ArchiveError::Segment { path: path.to_owned(), error };
    let mut reader = SegmentReader::new(before, key);
    for line in BufReader::new(File::open(path).map_err(ArchiveError::file(path))?).split(b'\n') {
        reader.line(&line.map_err(ArchiveError::file(path))?).map_err(chain)?;
    }
    reader.finish(name).map_err(chain)
}

/// Entries were not archived. The store keeps them.
#[derive(Debug, Error)]
pub(super) enum ArchiveError {
    /// A file can't be read or written.
    #[error("{}: {error}; audit.archive_directory names the directory", path.display())]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The file does not continue the chain.
    #[error("{}: {error}; keep the file as evidence, and move it elsewhere", path.display())]
    Segment {
        /// The file.
        path: PathBuf,
        /// The first entry that does not.
        error: ChainError,
    },
    /// The file has entries that the store or its checkpoint does not have: the store was restored, for example.
    #[error(
        "{} has other entries than the store: keep the file as evidence, and move it elsewhere",
        path.display()
    )]
    OtherEntries {
        /// The file.
        path: PathBuf,
    },
    /// The entries of the store are not those that the newest checkpoint signs.
    #[error(
        "the audit entries of the store are not those of the newest checkpoint: keep a copy of both as evidence, and restore \
         the store from a backup"
    )]
    OtherChain,
    /// The entries of the store are not a chain, or the store can't be read.
    #[error(transparent)]
    Compare(#[from] CheckpointError),
    /// The newest checkpoint does not open.
    #[error(transparent)]
    Checkpoint(#[from] TreeHeadError),
    /// The checkpoint of the file can't be made.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The store can't be read or changed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ArchiveError {
    fn file(path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |error| Self::File { path: path.clone(), error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_failed_is_repeated_in_a_minute() {
        assert_eq!(pause_after(&Err(StoreError::Busy { limit: 1 }.into())), RETRY_AFTER);
        assert_eq!(pause_after(&Ok(Archived::NoCheckpoint)), RETRY_AFTER);
        assert_eq!(pause_after(&Ok(Archived::NoneOldEnough)), EVERY);
        assert_eq!(pause_after(&Ok(Archived::Segment)), Duration::ZERO);
    }

    #[test]
    fn an_entry_of_the_future_does_not_stop_the_archive() {
        let last = |times: &[u64]| {
            let mut age = Age { until: 100, now: 200, last: None };
            let _stop = (1..).zip(times).find(|(sequence, at)| !age.passes(*sequence, **at));
            age.last
        };
        assert_eq!(last(&[10, 20, 100, 30]), Some(2));
        assert_eq!(last(&[900, 10, 900, 20, 150, 30]), Some(4));
        assert_eq!(last(&[10, 900, 150]), Some(1));
        assert_eq!(last(&[900, 900]), None);
    }

    #[test]
    fn engines_with_one_directory_replace_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let above = directory.path().join("audit/archive");
        let [next, path] = ["1.next", "1.jsonl"].map(|name| above.join(name));
        let mut file = create(&next).unwrap();
        file.write_all(b"whole").unwrap();
        assert_eq!(create(&next).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(fs::read(&next).unwrap(), b"whole");
        publish(&file, &next, &path).unwrap();
        drop(file);
        // A crash leaves a file that is not whole.
        fs::write(&next, "remains").unwrap();
        let other = create(&next).unwrap();
        assert_eq!(fs::read(&next).unwrap(), b"");
        assert_eq!(publish(&other, &next, &path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"whole");
    }
}
