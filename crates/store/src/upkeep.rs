//! The reports and errors of the upkeep of a store: check, salvage, backup and restore.
//!
//! A store crate offers the four as functions, because they need files or a connection of that store, not an open
//! [`Store`](super::Store). Rules for each of them:
//! - A check, a salvage and a backup change no byte of the store that they read.
//! - A salvaged store has no fewer used tries of any card than the damaged one had.
//! - A salvaged and a restored store hold no control that was usable: a control of the older state may have been spent
//!   since. The first event behind the rescued audit chain states the origin of the store.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use thiserror::Error;

use super::open_error::StoreOpenError;
use audit::chain::Checkpoint;
use domain::card::CardKey;

/// The most places that a report names.
pub const DAMAGE_MAX: usize = 100;

/// A part of a store that can't be read, or that contradicts another part.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{place}: {problem}")]
pub struct Damage {
    /// The file and the byte, or the kind of row.
    pub place: String,
    /// The error at this place.
    pub problem: String,
}

impl Damage {
    /// Damage at this place.
    pub fn at(place: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { place: place.into(), problem: problem.into() }
    }
}

/// The numbers of rows in a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// Cards, with or without a PIN.
    pub cards: u64,
    /// PIN records: one for each card with a PIN.
    pub pins: u64,
    /// Controls that were usable at the store's last commit.
    pub open_controls: u64,
    /// Controls that have set a PIN, kept for retries.
    pub retry_controls: u64,
    /// Entries of the audit chain.
    pub audit_entries: u64,
}

impl fmt::Display for RowCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cards, pins, open_controls, retry_controls, audit_entries } = self;
        write!(
            f,
            "cards: {cards}, PINs: {pins}, open controls: {open_controls}, controls kept for retries: {retry_controls}, \
             audit entries: {audit_entries}"
        )
    }
}

/// The rows of a store that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRows {
    /// The numbers of these rows.
    pub counts: RowCounts,
    /// The last entry of the audit chain that holds.
    pub end: Checkpoint,
}

/// The result of a check.
#[derive(Clone, Debug)]
pub struct CheckReport {
    /// `None` for a store whose database does not open.
    pub rows: Option<ReadRows>,
    /// The start of a last commit that is not whole. A power cut leaves such a commit, and no caller got an answer for it;
    /// the next start of an engine removes the commit.
    pub unfinished: Option<Damage>,
    /// At most [`DAMAGE_MAX`] places; empty for a store that is whole.
    pub damage: Vec<Damage>,
}

/// The result of a salvage.
#[derive(Clone, Debug)]
pub struct SalvageReport {
    /// The rows that the new store holds, without the event of the salvage.
    pub kept: RowCounts,
    /// The last rescued entry of the audit chain.
    pub end: Checkpoint,
    /// The last entry of the new store: the event of the salvage.
    pub event: Checkpoint,
    /// The number of controls that were open or kept for retries, and are over.
    pub ended_controls: u64,
    /// The number of cards whose tries are used up, because newer tries of theirs may be lost.
    pub locked_cards: u64,
    /// The rows behind the damage.
    pub lost: LostRows,
    /// The cards whose PIN the commits behind the damage wrote, or that have a PIN by their row and no PIN record: the new
    /// store has an older PIN of them or none.
    pub lost_pins: Vec<CardKey>,
    /// Whether the new store has the list of the keys that encrypt its rows. Without the list no engine serves its PINs.
    pub has_key_list: bool,
    /// Whether the new store has the key of the card references in audit entries. Without it an engine makes another key.
    pub has_card_reference_key: bool,
    /// At most [`DAMAGE_MAX`] places in the damaged store.
    pub damage: Vec<Damage>,
}

/// What a salvage does not rescue, as far as it can be known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LostRows {
    /// Whole commits behind the damage.
    pub commits: u64,
    /// Cards that these commits changed.
    pub cards: u64,
    /// PINs that these commits wrote.
    pub pins: u64,
    /// Audit entries between the end of the rescued chain and the newest entry that any readable commit names.
    pub audit_entries: u64,
    /// Places before the damage in the journals where rows can't be read or contradict each other.
    pub damaged_places: u64,
}

impl fmt::Display for LostRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { commits, cards, pins, audit_entries, damaged_places } = self;
        write!(
            f,
            "commits behind the damage: {commits} (cards: {cards}, PINs: {pins}), audit entries: {audit_entries}, other \
             damaged places: {damaged_places}"
        )
    }
}

/// The result of a backup.
#[derive(Clone, Copy, Debug)]
pub struct BackupReport {
    /// The rows of the backup.
    pub counts: RowCounts,
    /// The last entry of its audit chain, which was verified.
    pub end: Checkpoint,
    /// The number of the last audit entry that is in archive files and not in the backup; 0 where all are in the backup.
    pub archived: u64,
}

/// The result of a restore.
#[derive(Clone, Copy, Debug)]
pub struct RestoreReport {
    /// The rows of the restored store, without the event of the restore.
    pub counts: RowCounts,
    /// The last entry of the backup's audit chain, which was verified.
    pub end: Checkpoint,
    /// The last entry of the restored store: the event of the restore.
    pub event: Checkpoint,
    /// The number of controls that were open at the backup, and are over.
    pub ended_controls: u64,
}

/// Why a store was not checked, salvaged, backed up or restored. The target directory does not exist then.
#[derive(Debug, Error)]
pub enum UpkeepError {
    /// The store can't be opened or read.
    #[error(transparent)]
    Open(#[from] StoreOpenError),
    /// The directory to write is in use.
    #[error("{} is not empty: name a directory that is absent or empty", path.display())]
    TargetNotEmpty {
        /// The directory to write.
        path: PathBuf,
    },
    /// The directory to restore from is no backup.
    #[error("{} is not a backup: name a directory that `pinseal store backup` wrote", path.display())]
    NotABackup {
        /// The directory to restore from.
        path: PathBuf,
    },
    /// The store or the backup is damaged.
    #[error("{} is damaged ({damage}): use an older backup, or rescue the rest with `pinseal store salvage`", path.display())]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// The first place.
        damage: Damage,
    },
    /// The database of the store does not open without its damaged files.
    #[error(
        "nothing of {} can be rescued ({problem}): restore a backup (`pinseal store restore`), and keep this store as evidence",
        path.display()
    )]
    NotRescued {
        /// The directory of the store.
        path: PathBuf,
        /// The first damage.
        problem: String,
    },
    /// The checkpoint is older than the entries of the store.
    #[error(
        "the checkpoint is of audit entry {checkpoint}, and entries 1 to {archived} were archived: give the newest checkpoint, or          verify with the archive files (`pinseal audit verify --archive`)"
    )]
    CheckpointArchived {
        /// The number of the checkpoint's entry.
        checkpoint: u64,
        /// The number of the last archived entry.
        archived: u64,
    },
    /// The engine wrote tables during every attempt to open the files of one moment.
    #[error("the files of {} changed during each of {attempts} attempts: try again when the engine is less busy", path.display())]
    Unsettled {
        /// The directory of the store.
        path: PathBuf,
        /// The number of attempts.
        attempts: u32,
    },
    /// The new directory can't be written.
    #[error("can't write {}: {problem}; check its disk, its mount and its free space", path.display())]
    Write {
        /// The directory to write.
        path: PathBuf,
        /// The error.
        problem: String,
    },
}

impl UpkeepError {
    /// The operating system refused to write the new directory.
    pub fn write(path: &Path, error: &io::Error) -> Self {
        Self::Write { path: path.to_owned(), problem: error.to_string() }
    }
}
