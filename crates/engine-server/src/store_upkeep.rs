//! The upkeep of the engine's store. Another store gets its place in each of these functions.

use std::path::Path;

use audit::chain::Checkpoint;
use store::copy::{Copied, CopyError, CopySource, copy};
use store::upkeep::{BackupReport, CheckReport, RestoreReport, SalvageReport, UpkeepError};
use store_embedded::{
    store_copy::{EmbeddedSource, EmbeddedTarget},
    upkeep,
};
use store_postgres::{
    PostgresConfig,
    copy::{PostgresSource, PostgresTarget},
};

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

/// A store as the source or the target of a copy.
#[derive(Clone, Copy)]
pub enum StorePlace<'a> {
    /// The directory of an embedded store.
    Directory(&'a Path),
    /// A database, with the name of the engine whose chain is copied.
    Database(&'a PostgresConfig),
}

/// Copies a store whose engines have stopped, and compares each row. A copy that ended early is continued. `total` gets the number
/// of rows to write and to compare, `progress` the number since its last call. `leaves_chains` leaves the chains of the other
/// engines of a database.
///
/// # Errors
/// See [`CopyError`]. The source is as it was.
pub async fn copy_store(
    from: StorePlace<'_>,
    to: StorePlace<'_>,
    leaves_chains: bool,
    total: &mut dyn FnMut(u64),
    progress: &mut dyn FnMut(u64),
) -> Result<Copied, CopyError> {
    match from {
        StorePlace::Directory(directory) => copy_from(EmbeddedSource::open(directory)?, to, total, progress).await,
        StorePlace::Database(config) => {
            copy_from(PostgresSource::open(config, leaves_chains).await?, to, total, progress).await
        }
    }
}

/// The auditUser of the events of a command: the number of the operating system's user who runs it, such as `uid 1000`. Its name
/// may belong to another user on another machine, or to none.
pub fn audit_user() -> String {
    format!("uid {}", rustix::process::getuid().as_raw())
}

async fn copy_from(
    mut source: impl CopySource,
    to: StorePlace<'_>,
    total: &mut dyn FnMut(u64),
    progress: &mut dyn FnMut(u64),
) -> Result<Copied, CopyError> {
    total(source.facts().rows.saturating_mul(2));
    let user = audit_user();
    match to {
        StorePlace::Directory(target) => copy(&mut source, &mut EmbeddedTarget::new(target)?, &user, progress).await,
        StorePlace::Database(config) => {
            copy(&mut source, &mut PostgresTarget::open(config).await?, &user, progress).await
        }
    }
}
