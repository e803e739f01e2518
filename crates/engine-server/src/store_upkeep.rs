//! The upkeep of the engine's store. Another store gets its place in each of these functions.

use std::path::Path;

use audit::chain::Checkpoint;
use store::upkeep::{BackupReport, CheckReport, RestoreReport, SalvageReport, UpkeepError};
use store_embedded::upkeep;

/// Reads every row of a store or backup, of a serving engine too, and reports the damage. With a checkpoint, the store must
/// hold its entry. No byte of the store changes.
///
/// # Errors
/// There is no store in the directory, its files can't be read, `TMPDIR` has no space for a copy, or the checkpoint is older
/// than the archived entries.
pub fn check_store(directory: &Path, checkpoint: Option<Checkpoint>) -> Result<CheckReport, UpkeepError> {
    upkeep::check(directory, checkpoint)
}

/// Writes the rows of a damaged store up to the damage into a new store. No byte of the damaged store changes.
///
/// # Errors
/// There is no store in the directory, too little of it can be opened, or `target` is in use or can't be written.
pub fn salvage_store(directory: &Path, target: &Path) -> Result<SalvageReport, UpkeepError> {
    upkeep::salvage(directory, target)
}

/// Writes and verifies a backup of a store, of a serving engine too. No byte of the store changes.
///
/// # Errors
/// There is no store in the directory, the store is damaged, or `target` is in use or can't be written.
pub fn back_up_store(directory: &Path, target: &Path) -> Result<BackupReport, UpkeepError> {
    upkeep::back_up(directory, target)
}

/// Writes a store from a backup. Controls that were open at the backup are over, and the audit chain continues with the event
/// of the restore.
///
/// # Errors
/// The directory is no backup or is damaged, or `target` is in use or can't be written.
pub fn restore_store(backup: &Path, target: &Path) -> Result<RestoreReport, UpkeepError> {
    upkeep::restore(backup, target)
}
