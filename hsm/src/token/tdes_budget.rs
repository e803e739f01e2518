//! How many blocks the 3DES storage key has made, and no more than 2^20 (NIST SP 800-67 rev. 2, 3.3).
//!
//! The count is reserved on disk in steps before it is used, so that a crash can only waste a step, never lose one.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Mutex,
};

use crate::error::Error;

/// The most blocks one key makes.
pub(crate) const BLOCKS_MAX: u64 = 1 << 20;
/// How many are reserved at a time.
const STEP: u64 = 4_096;
/// The longest file: a line for each step, and room for lines that a full disk cut short.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The count of one key.
pub(crate) struct TdesBudget {
    /// Beside the vault, and open for good: a confined process opens no file. None where the keys die with the process.
    file: Option<File>,
    count: Mutex<Count>,
}

struct Count {
    made: u64,
    reserved: u64,
}

impl TdesBudget {
    /// Goes on from the last line of the file, which is made where it is missing.
    pub(crate) fn open(path: Option<&Path>) -> io::Result<Self> {
        let (file, made) = match path {
            Some(path) => {
                if let Some(directory) = path.parent() {
                    std::fs::create_dir_all(directory)?;
                }
                let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
                let mut text = String::new();
                (&file).take(FILE_BYTES_MAX).read_to_string(&mut text)?;
                (Some(file), last_count(&text)?)
            }
            None => (None, 0),
        };
        Ok(Self { file, count: Mutex::new(Count { made, reserved: made }) })
    }

    /// Takes one.
    pub(crate) fn take(&self) -> Result<(), Error> {
        let mut count = self.count.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if count.made >= BLOCKS_MAX {
            return Err(Error::TdesExhausted { limit: BLOCKS_MAX });
        }
        if count.made == count.reserved {
            let reserved = (count.reserved + STEP).min(BLOCKS_MAX);
            self.write(reserved)
                .map_err(|_| Error::Unavailable { reason: "the count of 3DES blocks can't be written".into() })?;
            count.reserved = reserved;
        }
        count.made += 1;
        Ok(())
    }

    /// A line of its own, even behind one that was cut short.
    fn write(&self, reserved: u64) -> io::Result<()> {
        let Some(mut file) = self.file.as_ref() else { return Ok(()) };
        file.write_all(format!("\n{reserved}\n").as_bytes())?;
        file.sync_data()
    }
}

/// The last line that is whole; a line without its end was never relied on.
fn last_count(text: &str) -> io::Result<u64> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    match whole.lines().rfind(|line| !line.is_empty()) {
        None => Ok(0),
        Some(line) => {
            line.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not a count of 3DES blocks"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_key_makes_two_to_the_twenty_blocks_and_not_one_more_even_across_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vault.count");
        fs::write(&path, format!("{}\n", BLOCKS_MAX - 3)).unwrap();
        let budget = TdesBudget::open(Some(&path)).unwrap();
        for _ in 0..3 {
            budget.take().unwrap();
        }
        assert!(matches!(budget.take(), Err(Error::TdesExhausted { .. })));
        drop(budget);
        assert!(TdesBudget::open(Some(&path)).unwrap().take().is_err());
    }

    #[test]
    fn a_crash_wastes_a_step_and_loses_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vault.count");
        let budget = TdesBudget::open(Some(&path)).unwrap();
        budget.take().unwrap();
        drop(budget);
        assert_eq!(fs::read_to_string(&path).unwrap().trim(), STEP.to_string());
    }

    #[test]
    fn a_line_that_was_cut_short_is_not_counted_and_spoils_no_later_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vault.count");
        fs::write(&path, "8192\n12").unwrap();
        let budget = TdesBudget::open(Some(&path)).unwrap();
        budget.take().unwrap();
        drop(budget);
        assert_eq!(fs::read_to_string(&path).unwrap(), "8192\n12\n12288\n");
        assert_eq!(last_count(&fs::read_to_string(&path).unwrap()).unwrap(), 12_288);
        assert!(last_count("8192\nmany\n").is_err());
    }
}
