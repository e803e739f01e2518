//! Counts the blocks under each version of the 3DES storage key: at most 2^20 (NIST SP 800-67 rev. 2, 3.3).
//!
//! ```text
//! one line for each reservation: version " +" blocks
//! ```
//! Blocks are reserved on disk before they are encrypted, so a crash can waste a reservation but lose no count. Lines are
//! appended and summed, so two processes that overlap at a restart lose no count either. What must never enter: a key.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hsm_protocol::{Error, KeyVersion};

/// The most blocks under one key.
pub(crate) const BLOCKS_MAX: u64 = 1 << 20;
/// The blocks of one reservation.
const STEP: u64 = 4_096;
/// The bytes of one read.
const READ_BYTES: usize = 4_096;

/// The block counts of the versions of the 3DES storage key.
pub(crate) struct TdesBudget {
    /// The count file, which stays open: a confined process can't open files. `None` for keys in memory.
    file: Option<File>,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    /// Blocks reserved by all processes, by version.
    reserved: HashMap<u16, u64>,
    /// Blocks that this process has reserved and not encrypted yet, by version.
    left: HashMap<u16, u64>,
    /// The offset after the last complete line that was read.
    read_to: u64,
}

impl TdesBudget {
    /// Opens or creates the count file and sums its lines.
    ///
    /// # Errors
    /// The operating system's error, or [`io::ErrorKind::InvalidData`] for a foreign file.
    pub(crate) fn open(path: Option<&Path>) -> io::Result<Self> {
        let mut counts = Counts::default();
        let file = match path {
            Some(path) => {
                if let Some(directory) = path.parent() {
                    std::fs::create_dir_all(directory)?;
                }
                let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
                counts.read_on(&file)?;
                Some(file)
            }
            None => None,
        };
        Ok(Self { file, counts: Mutex::new(counts) })
    }

    /// Takes one block of a version from the budget.
    ///
    /// # Errors
    /// [`Error::TdesExhausted`] after 2^20 blocks; [`Error::Unavailable`] where the count can't be written.
    pub(crate) fn take(&self, KeyVersion(version): KeyVersion) -> Result<(), Error> {
        let mut counts = self.counts();
        if counts.left.get(&version).is_none_or(|left| *left == 0) {
            let unwritten = |_| Error::Unavailable { reason: "the count of 3DES blocks can't be written".into() };
            if !counts.reserve(version, self.file.as_ref()).map_err(unwritten)? {
                return Err(Error::TdesExhausted { limit: BLOCKS_MAX });
            }
        }
        if let Some(left) = counts.left.get_mut(&version) {
            *left = left.saturating_sub(1);
        }
        Ok(())
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The blocks reserved for each version, read from a count file that another process may have open. A missing file has none.
///
/// # Errors
/// As [`TdesBudget::open`].
pub(crate) fn reserved_in(path: &Path) -> io::Result<HashMap<u16, u64>> {
    let mut counts = Counts::default();
    match File::open(path) {
        Ok(file) => counts.read_on(&file)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(counts.reserved)
}

impl Counts {
    /// Reserves blocks of a version; false where none are left.
    fn reserve(&mut self, version: u16, file: Option<&File>) -> io::Result<bool> {
        let step = STEP.min(BLOCKS_MAX.saturating_sub(self.reserved_of(version)));
        if step == 0 {
            return Ok(false);
        }
        match file {
            None => *self.reserved.entry(version).or_default() += step,
            Some(mut file) => {
                // Begins with a line break, because a crash may have cut the last line short.
                file.write_all(format!("\n{version} +{step}\n").as_bytes())?;
                file.sync_data()?;
                // Reads this line too, and the lines that another process has written before it.
                self.read_on(file)?;
            }
        }
        if self.reserved_of(version) > BLOCKS_MAX {
            return Ok(false);
        }
        self.left.insert(version, step);
        Ok(true)
    }

    fn reserved_of(&self, version: u16) -> u64 {
        self.reserved.get(&version).copied().unwrap_or_default()
    }

    /// Reads the new complete lines. A line without a line break was never synced, so nothing depends on it yet.
    fn read_on(&mut self, file: &File) -> io::Result<()> {
        let (mut text, mut buffer) = (Vec::new(), [0; READ_BYTES]);
        loop {
            let at = self.read_to + u64::try_from(text.len()).unwrap_or_default();
            match file.read_at(&mut buffer, at)? {
                0 => break,
                read => text.extend_from_slice(buffer.get(..read).unwrap_or_default()),
            }
        }
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let text = text.get(..whole).unwrap_or_default();
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            self.add_line(std::str::from_utf8(line).unwrap_or_default())?;
        }
        self.read_to += u64::try_from(whole).unwrap_or_default();
        Ok(())
    }

    fn add_line(&mut self, line: &str) -> io::Result<()> {
        let foreign = || io::Error::new(io::ErrorKind::InvalidData, "not a count of 3DES blocks");
        // A line that a crash cut short has no complete number, or a smaller one. Nothing was encrypted under either.
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        match line.split_once(" +") {
            Some((version, step)) if digits(version) && digits(step) => {
                let version = version.parse().map_err(|_| foreign())?;
                let reserved = self.reserved.entry(version).or_default();
                *reserved = reserved.saturating_add(step.parse().unwrap_or_default());
                Ok(())
            }
            None if digits(line.strip_suffix(' ').unwrap_or(line)) => Ok(()),
            _ => Err(foreign()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const FIRST: KeyVersion = KeyVersion(1);

    #[test]
    fn the_limit_of_a_version_holds_across_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vault.count");
        fs::write(&path, format!("1 +{}\n1 +4096\n", BLOCKS_MAX - 4099)).unwrap();
        let budget = TdesBudget::open(Some(&path)).unwrap();
        for _ in 0..3 {
            budget.take(FIRST).unwrap();
        }
        assert!(matches!(budget.take(FIRST), Err(Error::TdesExhausted { .. })));
        budget.take(KeyVersion(2)).unwrap();
        drop(budget);
        let again = TdesBudget::open(Some(&path)).unwrap();
        assert!(again.take(FIRST).is_err() && again.take(KeyVersion(2)).is_ok());
    }

    #[test]
    fn a_crash_wastes_a_reservation_and_loses_no_count() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vault.count");
        let budget = TdesBudget::open(Some(&path)).unwrap();
        budget.take(FIRST).unwrap();
        drop(budget);
        assert_eq!(reserved_in(&path).unwrap(), HashMap::from([(1, STEP)]));
    }

    #[test]
    fn a_line_cut_short_leaves_later_lines_readable() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vault.count");
        for (cut_short, expected) in
            [("1 +8192\n12", 12_288), ("1 +8192\n1 +40", 12_328), ("1 +8192\n1 +", 12_288), ("1 +8192\n1 ", 12_288)]
        {
            fs::write(&path, cut_short).unwrap();
            let budget = TdesBudget::open(Some(&path)).unwrap();
            budget.take(FIRST).unwrap();
            drop(budget);
            assert_eq!(reserved_in(&path).unwrap(), HashMap::from([(1, expected)]), "{cut_short:?}");
        }
        for foreign in ["1 +8192\nmany\n", "1 + 2\n", "1 +2+3\n", "70000 +1\n"] {
            fs::write(&path, foreign).unwrap();
            assert!(reserved_in(&path).is_err(), "{foreign:?}");
        }
    }

    #[test]
    fn two_overlapping_processes_share_one_budget() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vault.count");
        fs::write(&path, format!("1 +{}\n", BLOCKS_MAX - 2 * STEP)).unwrap();
        let (before, next) = (TdesBudget::open(Some(&path)).unwrap(), TdesBudget::open(Some(&path)).unwrap());
        let all_of = |budget: &TdesBudget| (0..3 * STEP).filter(|_| budget.take(FIRST).is_ok()).count() as u64;
        before.take(FIRST).unwrap();
        next.take(FIRST).unwrap();
        assert_eq!(1 + all_of(&before) + 1 + all_of(&next), 2 * STEP);
    }
}
