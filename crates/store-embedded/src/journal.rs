//! The journals, checked and written to the disk again before fjall opens them.
//!
//! fjall treats a batch that it can't read as the end of a journal and cuts the rest off: where one byte of the batch has
//! changed on disk, fjall would drop every acknowledged batch behind it without an error. A last batch of which a power cut
//! left only some blocks keeps fjall from opening the journal, although no caller was answered for it. So a journal in which
//! a whole batch stands behind one that can't be read is damaged, and nothing is opened. A last batch that can't be read is
//! cut off, with a warning.
//!
//! ```text
//! batch    start, items, end                               fjall 3, little endian
//! start    01 items(4) sequence(8)
//! item     02 kind(1) compression(1) keyspace(8) key length(2) length(4) stored length(4) key value
//!          04 keyspace(8)
//! end      03 XXH3 of the items(8) 46 4A 4C 03
//! ```

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, fchown},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::{fs::SeekFrom, io::Errno};
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use store::upkeep::Damage;

/// The file that fjall locks while it has the directory open.
pub(super) const LOCK_FILE: &str = "lock";
/// How often, and how long, the lock is waited for: an engine that stops may still hold it.
const LOCK_TRIES: u32 = 3;
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// The suffix of a journal's name, behind its number.
const SUFFIX: &str = ".jnl";
/// The extension of a journal's copy while it is written. fjall ignores such a file.
const FRESH_EXTENSION: &str = "jnl.fresh";

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
/// The last bytes of every batch.
const MAGIC: [u8; 4] = *b"FJL\x03";
/// The bytes of an item before its key, without the tag and the three lengths.
const ITEM_HEAD_BYTES: usize = 10;
const ZEROS: [u8; 4_096] = [0; 4_096];

/// Why a store's journals are not opened.
#[derive(Debug, Error)]
pub(super) enum JournalError {
    #[error("another process has locked it")]
    Locked,
    #[error("journal {number} can't be read at byte {at}, and what was written later can")]
    Damaged { number: u64, at: usize },
    #[error("{0}")]
    Missing(Damage),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Checks that the journals of a directory can be read to the last batch that was acknowledged, cuts off a last batch that
/// is not whole, and writes what is left to the disk again. Takes as long as the disk takes for all of it: 64 MB a journal,
/// and one journal as a rule.
///
/// # Errors
///
/// Another process has locked the directory, `find_missing` finds an absent file, a journal is damaged, or the disk refuses.
/// Then every journal reads as before.
pub(super) fn secure(
    directory: &Path,
    find_missing: impl Fn(&Path) -> io::Result<Option<Damage>>,
) -> Result<(), JournalError> {
    let refuse_missing = || find_missing(directory)?.map_or(Ok(()), |damage| Err(JournalError::Missing(damage)));
    // A directory without a lock was never opened by fjall: it has no journal to check.
    let lock = match OpenOptions::new().read(true).write(true).open(directory.join(LOCK_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return refuse_missing(),
        lock => lock?,
    };
    // A journal that another process writes reads as if it were cut short.
    hold(&lock)?;
    refuse_missing()?;
    let numbers = numbers(directory)?;
    let newest = numbers.iter().max().copied();
    for number in numbers {
        let path = path(directory, number);
        let journal = File::open(&path)?;
        let mut bytes = written(&journal)?;
        match Ending::of(&bytes) {
            Ending::Whole { end } => bytes.truncate(end),
            Ending::CutShort { at } if Some(number) == newest => {
                tracing::warn!(number, at, "the last commit is not whole, and was never answered: it is cut off");
                bytes.truncate(at);
            }
            // Whatever was written later stands in a later journal.
            Ending::CutShort { at } | Ending::Damaged { at } => return Err(JournalError::Damaged { number, at }),
        }
        replace(&path, &journal, &bytes)?;
    }
    File::open(directory)?.sync_all()?;
    Ok(())
}

/// Locks a directory against fjall without a write to it; `None` where fjall never opened it.
pub(super) fn lock_to_read(directory: &Path) -> Result<Option<File>, JournalError> {
    let lock = match File::open(directory.join(LOCK_FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        lock => lock?,
    };
    hold(&lock)?;
    Ok(Some(lock))
}

/// Replaces a journal by a fresh file with these bytes, synced, of the same owner and mode.
fn replace(path: &Path, journal: &File, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension(FRESH_EXTENSION);
    let write = || {
        let of = journal.metadata()?;
        let mut file = File::create(&fresh)?;
        fchown(&file, Some(of.uid()), Some(of.gid()))?;
        file.set_permissions(of.permissions())?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    // On a full disk an unfinished copy would take the space that is left.
    write().inspect_err(|_| drop(fs::remove_file(&fresh)))
}

/// The numbers of the journals in a directory. The journal of the highest number is the one that fjall writes.
pub(super) fn numbers(directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in directory.read_dir()? {
        let name = entry?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.strip_suffix(SUFFIX)?.parse::<u64>().ok()));
    }
    Ok(numbers)
}

pub(super) fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number}{SUFFIX}"))
}

fn hold(lock: &File) -> Result<(), JournalError> {
    for _ in 1..LOCK_TRIES {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
            outcome => return outcome.map_err(locked),
        }
    }
    lock.try_lock().map_err(locked)
}

fn locked(error: TryLockError) -> JournalError {
    match error {
        TryLockError::WouldBlock => JournalError::Locked,
        TryLockError::Error(error) => error.into(),
    }
}

/// A journal without the hole at its end, which would be read as zeros.
pub(super) fn written(journal: &File) -> io::Result<Vec<u8>> {
    let mut end = 0;
    loop {
        match rustix::fs::seek(journal, SeekFrom::Data(end)) {
            Ok(data) => end = rustix::fs::seek(journal, SeekFrom::Hole(data))?,
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        }
    }
    rustix::fs::seek(journal, SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    journal.take(end).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// How a journal ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// With a whole batch, and zeros that later batches overwrite.
    Whole { end: usize },
    /// With bytes that can't be read.
    CutShort { at: usize },
    /// Bytes that can't be read stand before a whole batch.
    Damaged { at: usize },
}

impl Ending {
    pub(super) fn of(journal: &[u8]) -> Self {
        let (mut at, mut rest, mut last) = (0, journal, None);
        while let Some((sequence, behind)) = behind_batch(rest) {
            // No checksum covers the sequence number.
            if last.is_some_and(|last| sequence <= last) {
                return Self::Damaged { at };
            }
            at += rest.len() - behind.len();
            (rest, last) = (behind, Some(sequence));
        }
        if rest.chunks(ZEROS.len()).all(|chunk| ZEROS.starts_with(chunk)) {
            return Self::Whole { end: at };
        }
        let whole = |from: usize| rest.get(from..).and_then(behind_batch).is_some();
        let mut starts = rest.iter().enumerate().skip(1).filter(|(_, byte)| **byte == START);
        if starts.any(|(from, _)| whole(from)) { Self::Damaged { at } } else { Self::CutShort { at } }
    }
}

/// The sequence number of the batch at the beginning, and the bytes behind it; `None` where the batch is not whole.
fn behind_batch(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (sequence, _, rest) = read_batch(bytes)?;
    Some((sequence, rest))
}

/// The sequence number and the items of the batch at the beginning, and the bytes behind it.
fn read_batch(bytes: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    let (items, rest) = tagged(START, bytes)?.split_first_chunk()?;
    let (sequence, all) = rest.split_first_chunk()?;
    let mut rest = all;
    for _ in 0..u32::from_le_bytes(*items) {
        (_, rest) = read_item(rest)?;
    }
    let items = all.get(..all.len() - rest.len())?;
    let (checksum, rest) = tagged(END, rest)?.split_first_chunk()?;
    let rest = rest.strip_prefix(&MAGIC)?;
    (u64::from_le_bytes(*checksum) == xxh3_64(items)).then_some((u64::from_le_bytes(*sequence), items, rest))
}

/// A row that a batch writes or removes.
pub(super) struct Item<'a> {
    pub(super) keyspace: u64,
    pub(super) key: &'a [u8],
    /// Empty for a row that the batch removes.
    pub(super) value: &'a [u8],
}

/// The item at the beginning, `None` inside for one that clears a keyspace, and the bytes behind it.
fn read_item(bytes: &[u8]) -> Option<(Option<Item<'_>>, &[u8])> {
    if let Some(clear) = tagged(CLEAR, bytes) {
        return Some((None, clear.get(8..)?));
    }
    let (head, rest) = tagged(ITEM, bytes)?.split_at_checked(ITEM_HEAD_BYTES)?;
    let keyspace = u64::from_le_bytes(*head.last_chunk()?);
    let (key, rest) = rest.split_first_chunk()?;
    let (stored, rest) = rest.get(4..)?.split_first_chunk()?;
    let (key, rest) = rest.split_at_checked(u16::from_le_bytes(*key).into())?;
    let (value, rest) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*stored)).ok()?)?;
    Some((Some(Item { keyspace, key, value }), rest))
}

/// Visits the items of each whole batch, wherever a batch begins. Returns the number of the batches.
pub(super) fn each_whole_batch<'a>(mut bytes: &'a [u8], mut visit: impl FnMut(Item<'a>)) -> u64 {
    let mut batches = 0;
    while !bytes.is_empty() {
        let Some((_, mut items, rest)) = read_batch(bytes) else {
            let next = bytes.iter().skip(1).position(|byte| *byte == START);
            bytes = next.and_then(|next| bytes.get(next + 1..)).unwrap_or_default();
            continue;
        };
        while let Some((item, behind)) = read_item(items) {
            item.into_iter().for_each(&mut visit);
            items = behind;
        }
        (batches, bytes) = (batches + 1, rest);
    }
    batches
}

fn tagged(tag: u8, bytes: &[u8]) -> Option<&[u8]> {
    bytes.split_first().filter(|(first, _)| **first == tag).map(|(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(sequence: u64, value: &[u8]) -> Vec<u8> {
        let mut items = vec![ITEM, 0, 0];
        items.extend_from_slice(&7u64.to_le_bytes());
        items.extend_from_slice(&3u16.to_le_bytes());
        (0..2).for_each(|_| items.extend_from_slice(&(value.len() as u32).to_le_bytes()));
        items.extend_from_slice(b"key");
        items.extend_from_slice(value);
        let start = [&[START][..], &1u32.to_le_bytes(), &sequence.to_le_bytes()].concat();
        let end = [&[END][..], &xxh3_64(&items).to_le_bytes(), &MAGIC].concat();
        [start, items, end].concat()
    }

    /// Three batches, and zeros.
    fn journal() -> (Vec<u8>, [usize; 3]) {
        let batches = [batch(0x80, b"one"), batch(0x81, &[1; 300]), batch(0x82, b"three")];
        let starts = [0, batches[0].len(), batches[0].len() + batches[1].len()];
        ([batches.concat(), vec![0; 9_000]].concat(), starts)
    }

    #[test]
    fn whole_batches_are_whole_with_or_without_zeros_behind() {
        let (journal, [.., last]) = journal();
        assert_eq!(Ending::of(&journal), Ending::Whole { end: journal.len() - 9_000 });
        assert_eq!(Ending::of(&journal[..last]), Ending::Whole { end: last });
        assert_eq!(Ending::of(&[]), Ending::Whole { end: 0 });
    }

    #[test]
    fn a_changed_byte_is_damage_but_in_the_last_batch() {
        let (journal, [_, second, last]) = journal();
        for at in 0..journal.len() - 9_000 {
            let mut changed = journal.clone();
            changed[at] ^= 0x40;
            let found = Ending::of(&changed);
            // No checksum covers the number of a batch: one that is too high shows at the next.
            let in_number_of = |start: usize| (start + 5..start + 13).contains(&at);
            let expected = match at {
                _ if in_number_of(last) => Ending::Whole { end: journal.len() - 9_000 },
                at if at >= last => Ending::CutShort { at: last },
                _ if in_number_of(second) => Ending::Damaged { at: last },
                at if at >= second || in_number_of(0) => Ending::Damaged { at: second },
                _ => Ending::Damaged { at: 0 },
            };
            assert_eq!(found, expected, "byte {at}");
        }
    }

    #[test]
    fn whole_batches_behind_damage_are_found() {
        let (mut journal, [_, second, _]) = journal();
        journal[second + 40] ^= 1;
        let mut values = Vec::new();
        let batches = each_whole_batch(&journal[second..], |item| values.push((item.keyspace, item.key, item.value)));
        assert_eq!((batches, values), (1, vec![(7, &b"key"[..], &b"three"[..])]));
        assert_eq!(each_whole_batch(&journal, |_| ()), 2);
    }

    #[test]
    fn an_unfinished_batch_is_cut_off_wherever_it_ends() {
        let (journal, [.., last]) = journal();
        for end in last + 1..journal.len() - 9_000 {
            assert_eq!(Ending::of(&journal[..end]), Ending::CutShort { at: last }, "byte {end}");
            let blocks = [&journal[..end], &[0; 5_000]].concat();
            assert_eq!(Ending::of(&blocks), Ending::CutShort { at: last }, "byte {end}");
        }
    }

    /// What the journals of a directory hold, by number.
    fn journals(directory: &Path) -> Vec<(u64, u64, Vec<u8>)> {
        let mut found: Vec<_> = numbers(directory)
            .unwrap()
            .into_iter()
            .map(|number| {
                let file = File::open(path(directory, number)).unwrap();
                let mut bytes = written(&file).unwrap();
                bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
                (number, file.metadata().unwrap().ino(), bytes)
            })
            .collect();
        found.sort();
        found
    }

    #[test]
    fn a_journal_of_the_pinned_fjall_is_read_whole() {
        let directory = tempfile::tempdir().unwrap();
        let database = fjall::Database::builder(directory.path()).open().unwrap();
        let keyspace = database.keyspace("keyspace", fjall::KeyspaceCreateOptions::default).unwrap();
        for number in 0..100u32 {
            keyspace.insert(number.to_be_bytes(), [7; 300]).unwrap();
        }
        keyspace.remove(5u32.to_be_bytes()).unwrap();
        database.persist(fjall::PersistMode::SyncAll).unwrap();
        let [(0, _, bytes)] = &journals(directory.path())[..] else { panic!("there is not just one journal") };
        assert!(bytes.len() > 100 * 300);
        assert_eq!(Ending::of(bytes), Ending::Whole { end: bytes.len() });
        let manifest = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml")).unwrap();
        assert!(manifest.contains("fjall = \"=3.1.13\""), "this module reads the journals of fjall 3.1.13");
    }

    #[test]
    fn every_journal_is_written_to_a_fresh_file_of_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        File::create(directory.path().join(LOCK_FILE)).unwrap();
        let (first, [.., last]) = journal();
        fs::write(path(directory.path(), 3), &first).unwrap();
        // A commit that a power cut left in pieces.
        fs::write(path(directory.path(), 4), &first[..last + 20]).unwrap();
        let owner = |number| File::open(path(directory.path(), number)).unwrap().metadata().unwrap();
        let before = journals(directory.path());
        if owner(3).uid() == 0 {
            fchown(File::open(path(directory.path(), 3)).unwrap(), Some(1_234), Some(1_235)).unwrap();
        }
        let (uid, mode) = (owner(3).uid(), owner(3).mode());

        secure(directory.path(), |_| Ok(None)).unwrap();

        let after = journals(directory.path());
        assert_eq!(after.iter().map(|(number, ..)| *number).collect::<Vec<_>>(), [3, 4]);
        assert!(before.iter().zip(&after).all(|((_, before, _), (_, after, _))| before != after));
        assert!(after[0].2 == before[0].2 && after[1].2 == first[..last]);
        assert_eq!((owner(3).uid(), owner(3).mode()), (uid, mode));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3, "a copy is left behind");
    }
}
