//! How many blocks the 3DES storage key has made, and no more than 2^20 (NIST SP 800-67 rev. 2, 3.3).
//!
//! The count is reserved on disk in steps before it is used, so that a crash can only waste a step, never lose one.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    sync::Mutex,
};

use crate::error::Error;

/// The most blocks one key makes.
pub(crate) const BLOCKS_MAX: u64 = 1 << 20;
/// How many are reserved at a time.
const STEP: u64 = 4_096;

/// The count of one key.
pub(crate) struct TdesBudget {
    /// Beside the vault; none where the keys die with the process.
    file: Option<PathBuf>,
    count: Mutex<Count>,
}

struct Count {
    made: u64,
    reserved: u64,
}

impl TdesBudget {
    /// Goes on from what the file says.
    pub(crate) fn open(file: Option<PathBuf>) -> io::Result<Self> {
        let made = match &file {
            Some(path) if path.exists() => fs::read_to_string(path)?
                .trim()
                .parse()
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not a count of 3DES blocks"))?,
            _ => 0,
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

    fn write(&self, reserved: u64) -> io::Result<()> {
        let Some(path) = &self.file else { return Ok(()) };
        let fresh = path.with_extension("count-new");
        let mut file = fs::File::create(&fresh)?;
        writeln!(file, "{reserved}")?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_makes_two_to_the_twenty_blocks_and_not_one_more_even_across_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vault.count");
        fs::write(&path, format!("{}\n", BLOCKS_MAX - 3)).unwrap();
        let budget = TdesBudget::open(Some(path.clone())).unwrap();
        for _ in 0..3 {
            budget.take().unwrap();
        }
        assert!(matches!(budget.take(), Err(Error::TdesExhausted { .. })));
        drop(budget);
        assert!(TdesBudget::open(Some(path)).unwrap().take().is_err());
    }

    #[test]
    fn a_crash_wastes_a_step_and_loses_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vault.count");
        let budget = TdesBudget::open(Some(path.clone())).unwrap();
        budget.take().unwrap();
        drop(budget);
        assert_eq!(fs::read_to_string(&path).unwrap().trim(), STEP.to_string());
    }
}
