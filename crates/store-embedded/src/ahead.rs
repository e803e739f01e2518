//! Blocks of the journal, written before they are needed.
//!
//! fjall makes a journal as one long hole, so every commit that fills new blocks of it has the file system note them,
//! and `fdatasync` waits for the file system's own journal besides. Blocks that have been written once are only written
//! over. So the blocks just ahead are filled with zeros, many at a time, as PostgreSQL does with the files of its log
//! (`wal_init_zero`).
//!
//! Invariant: a journal reads the same before and after. Zeros are written only where zeros were read and never past
//! the journal's end, and by the thread that commits, so nothing else is written there in between.

use std::{
    fs::{File, OpenOptions},
    io, mem,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rustix::fs::{Advice, AtFlags, OFlags, StatxFlags, fadvise, fcntl_getfl, fcntl_setfl, fstatfs, statx};

use super::journal::{self, path};

/// How much is written at a time.
const STRETCH_BYTES: usize = 256 * 1024;
/// The next stretch follows once the journal has come within so much of the end of the last.
const RESERVE_BYTES: u64 = 128 * 1024;
/// Blocks of a file system are no larger.
const BLOCK_BYTES: usize = 4_096;
/// File systems that write over a block where it stands, by number (statfs(2)): ext4, XFS. Others put what is written
/// over elsewhere, or on no disk.
const OVERWRITING: [u64; 2] = [0xEF53, 0x5846_5342];

/// The journal that is written now, and how far it has been filled.
pub(super) struct Ahead {
    directory: PathBuf,
    number: u64,
    journal: File,
    /// Not past its end, nor after a failure.
    fills: bool,
    filled: u64,
    stretch: Vec<u8>,
}

impl Ahead {
    /// Of the newest journal in the directory of an open database; none where nothing is to be gained.
    pub(super) fn of(directory: &Path) -> io::Result<Option<Self>> {
        let newest = Self::newest(directory)?;
        Ok(is_overwritten_in_place(&newest.journal).then_some(newest))
    }

    fn newest(directory: &Path) -> io::Result<Self> {
        let number = journal::numbers(directory)?.into_iter().max().unwrap_or_default();
        let journal = OpenOptions::new().read(true).write(true).open(path(directory, number))?;
        // Nothing is read but what is asked for: read ahead, a hole comes as memory to be cleared, all 64 MiB of it.
        let _ = fadvise(&journal, 0, None, Advice::Random);
        // When it was read is not noted: every commit would have that to write too. Who does not own it may not say so.
        let _ = fcntl_getfl(&journal).and_then(|flags| fcntl_setfl(&journal, flags | OFlags::NOATIME));
        let stretch = vec![0; STRETCH_BYTES];
        Ok(Self { directory: directory.to_owned(), number, journal, fills: true, filled: 0, stretch })
    }

    /// Fills the next stretch where the journal, after a commit, has come near the end of the last.
    pub(super) fn follow(&mut self) {
        let followed = match self.is_the_newest() {
            Ok(true) => Ok(()),
            Ok(false) => Self::newest(&self.directory).map(|newest| *self = newest),
            Err(error) => Err(error),
        };
        let filled = followed.and_then(|()| if self.fills { self.fill() } else { Ok(()) });
        // Said once, not at every commit.
        if let Err(error) = filled
            && mem::take(&mut self.fills)
        {
            tracing::warn!(%error, "can't write ahead in the journal: commits take longer until the next one");
        }
    }

    /// One that fjall has removed is not, and the one after it may be gone too.
    fn is_the_newest(&self) -> io::Result<bool> {
        // Asked for its links alone: a file system that was asked when a file changed tells the next change's moment
        // exactly (Linux 6.13, multigrain timestamps), and then has that to write at every commit too.
        let links = statx(&self.journal, "", AtFlags::EMPTY_PATH, StatxFlags::NLINK)?;
        let removed = links.stx_nlink == 0;
        Ok(!removed && !path(&self.directory, self.number.saturating_add(1)).try_exists()?)
    }

    fn fill(&mut self) -> io::Result<()> {
        while !reserve_is_left(&self.journal, self.filled)? {
            let read = self.journal.read_at(&mut self.stretch, self.filled)?;
            if read == 0 {
                self.fills = false;
                break;
            }
            // What the journal holds already stays as it is.
            let held = self.stretch.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            let from = held.next_multiple_of(BLOCK_BYTES).min(read);
            let zeros = self.stretch.get(from..read).unwrap_or_default();
            self.journal.write_all_at(zeros, self.filled.saturating_add(from as u64))?;
            self.filled = self.filled.saturating_add(read as u64);
        }
        Ok(())
    }
}

/// Whether the journal, filled so far, still ends before the last of it.
fn reserve_is_left(journal: &File, filled: u64) -> io::Result<bool> {
    let mut block = [0; BLOCK_BYTES];
    let read = journal.read_at(&mut block, filled.saturating_sub(RESERVE_BYTES))?;
    Ok(filled > 0 && block.iter().take(read).all(|byte| *byte == 0))
}

/// Whether what is written over stays where it stands. Where the file system can't be told, nothing is done.
fn is_overwritten_in_place(journal: &File) -> bool {
    fstatfs(journal).is_ok_and(|of| u64::try_from(of.f_type).is_ok_and(|number| OVERWRITING.contains(&number)))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt, thread, time::Duration};

    use super::*;

    /// A journal as fjall makes it: so long, and all a hole.
    fn journal(directory: &Path, number: u64, bytes: u64) -> File {
        let file = File::create_new(directory.join(format!("{number}.jnl"))).unwrap();
        file.set_len(bytes).unwrap();
        file
    }

    /// Whatever the file system.
    fn ahead(directory: &Path) -> Ahead {
        Ahead::newest(directory).unwrap()
    }

    fn bytes_on_disk(file: &File) -> u64 {
        file.sync_all().unwrap();
        file.metadata().unwrap().blocks() * 512
    }

    const STRETCH: u64 = STRETCH_BYTES as u64;

    #[test]
    fn a_journal_reads_the_same_when_blocks_ahead_are_written_and_they_are_on_disk() {
        let directory = tempfile::tempdir().unwrap();
        let file = journal(directory.path(), 0, 4 * STRETCH);
        let mut ahead = ahead(directory.path());
        let path = directory.path().join("0.jnl");
        // Odd lengths, and a commit longer than what was written ahead.
        for (at, length) in [(0, 1), (1, 5_000), (5_001, 70_000), (75_001, 100_000), (175_001, 600_001)] {
            file.write_all_at(&vec![0xA5; length], at).unwrap();
            let before = fs::read(&path).unwrap();
            ahead.follow();
            assert!(fs::read(&path).unwrap() == before);
            let end = at + length as u64;
            let filled = (end + RESERVE_BYTES - BLOCK_BYTES as u64).min(4 * STRETCH);
            assert!(bytes_on_disk(&file) >= filled, "after {end}");
        }
    }

    #[test]
    fn a_journal_is_never_made_longer() {
        let directory = tempfile::tempdir().unwrap();
        let file = journal(directory.path(), 7, 100);
        let mut ahead = ahead(directory.path());
        ahead.follow();
        // As after a restart: fjall cuts off what is no commit, and goes on at the end.
        file.write_all_at(&[1; 300_000], 100).unwrap();
        (0..3).for_each(|_| ahead.follow());
        assert_eq!(file.metadata().unwrap().len(), 300_100);
        assert!(fs::read(directory.path().join("7.jnl")).unwrap()[100..] == [1; 300_000]);
    }

    #[test]
    fn nothing_is_noted_of_when_a_journal_was_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = journal(directory.path(), 0, 4 * STRETCH);
        let mut ahead = ahead(directory.path());
        let read_at = |file: &File| file.metadata().map(|metadata| (metadata.atime(), metadata.atime_nsec())).unwrap();
        let before = read_at(&file);
        for at in [0, 100_000, 300_000] {
            // File systems tell time in ticks, of 10 ms at most.
            thread::sleep(Duration::from_millis(20));
            file.write_all_at(&[1; 100_000], at).unwrap();
            ahead.follow();
        }
        assert_eq!(read_at(&file), before);
    }

    #[test]
    fn the_newest_journal_is_followed_though_those_between_are_gone() {
        let directory = tempfile::tempdir().unwrap();
        journal(directory.path(), 9, 4 * STRETCH);
        journal(directory.path(), 10, 4 * STRETCH);
        let mut ahead = ahead(directory.path());
        assert_eq!(ahead.number, 10);
        journal(directory.path(), 11, 4 * STRETCH);
        ahead.follow();
        assert_eq!(ahead.number, 11);
        let newest = journal(directory.path(), 13, 4 * STRETCH);
        fs::remove_file(directory.path().join("11.jnl")).unwrap();
        ahead.follow();
        assert_eq!((ahead.number, bytes_on_disk(&newest)), (13, STRETCH));
    }
}
