//! Check, salvage, backup and restore of an embedded store. A check, a salvage and a backup read a store, also while an engine
//! serves, by [`StoreFiles`], and change no byte in its directory.
//!
//! A new directory is built beside its place and renamed when it is complete and synced, so no incomplete store or backup has
//! the name that the operator gave.
//!
//! Controls: a backup has the states of controls at one moment. A control that was usable then may have been spent since, so a
//! restore ends all of them; those that had set a PIN stay spent, and their retries are confirmed while that PIN stands. A
//! salvage ends all controls, because tables may be newer than the damaged journal, and a card's row may be older than its PIN.
//! An unknown control is unusable, so no control sets or views twice.
//!
//! Tries: a damaged store may have lost the newest tries of any card. So a salvage uses up the tries of every card, until they
//! are reset; of a store without damage it keeps them. A restore has the tries of the backup.

use std::{
    collections::HashSet,
    fs::{self, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use fjall::{OwnedWriteBatch as WriteBatch, PersistMode};
use tempfile::TempDir;

use super::{
    BACKUP_TEXT, Contents, DATABASE, FORMAT_FILE, FORMAT_TEXT, HEAD_KEY, Tables,
    codec::lock_tries,
    contents,
    copy::PREFIX,
    decode_head, encode_head,
    journal::{LOCK_FILE, each_whole_batch},
    page::EntryPage,
    store_files::{ATTEMPTS_MAX, CopiedJournals, StoreFiles, VERSION_FILE},
    table_checksum,
    walk::{RowKind, Walk, walk},
    write_format,
};
use audit::{
    chain::Checkpoint,
    entry::{self, Body, Event, Isolation, Level, Outcome, Stamp, StoreOrigin},
};
use domain::time::UnixMillis;
use store::{
    StoreOpenError, engine_name,
    upkeep::{
        BackupReport, CheckReport, DAMAGE_MAX, Damage, LostRows, RestoreReport, RowCounts, SalvageReport, UpkeepError,
    },
};

/// The memory of the buffers and caches of a database that a command opens, in bytes.
const MEMORY_BYTES: u64 = 64 << 20;
/// The rows that a salvage writes in one batch.
const BATCH_ROWS: usize = 1_024;
/// The caller of an event that these commands record.
const CALLER: &str = "store";

/// Reads every byte and every row of a store or backup, from a copy in the directory for temporary files (`TMPDIR`).
///
/// # Errors
/// There is no store, its files can't be read, or the copy can't be written. Damage is in the report.
pub fn check(directory: &Path) -> Result<CheckReport, UpkeepError> {
    let format_damage = readable_format(directory)?;
    let copy = temporary()?;
    let copied = copy_files(directory, copy.path())?;
    let mut damage: Vec<_> = format_damage.into_iter().chain(copied.damage).collect();
    damage.extend(table_damage(directory, copy.path())?);
    let (mut counts, mut end) = (RowCounts::default(), Checkpoint::EMPTY);
    match Tables::open(&copy.path().join(DATABASE), MEMORY_BYTES) {
        Ok(tables) => {
            let walk = walk(&tables, &mut |_, _, _| Ok(())).map_err(|error| write_error(copy.path(), &error))?;
            (counts, end) = (walk.counts, walk.end);
            damage.extend(walk.damage);
        }
        Err(error) => damage.push(Damage::at(DATABASE, format!("the database does not open: {error}"))),
    }
    damage.truncate(DAMAGE_MAX);
    Ok(CheckReport { counts, end, unfinished: copied.unfinished, damage })
}

/// Writes the rows of a damaged store up to the damage into a new store.
///
/// # Errors
/// There is no store, its lists of tables or a whole table can't be opened, or `target` is in use or can't be written.
pub fn salvage(directory: &Path, target: &Path) -> Result<SalvageReport, UpkeepError> {
    let format_damage = readable_format(directory)?;
    let building = Building::begin(target)?;
    let scratch = building.beside("damaged")?;
    let copied = copy_files(directory, &scratch)?;
    let mut damage: Vec<_> = format_damage.into_iter().chain(copied.damage.clone()).collect();
    damage.extend(table_damage(directory, &scratch)?);
    let write = |error: fjall::Error| write_error(target, &error);
    let (source, built) = (scratch.join(DATABASE), building.path().join(DATABASE));
    let rescued = Tables::open(&built, MEMORY_BYTES).map_err(write)?;
    // fjall opens nothing by a damaged version file.
    fs::copy(built.join(VERSION_FILE), source.join(VERSION_FILE))
        .map_err(|error| UpkeepError::write(target, &error))?;
    let damaged = Tables::open(&source, MEMORY_BYTES).map_err(|error| {
        let problem = damage.first().map_or_else(|| error.to_string(), Damage::to_string);
        StoreOpenError::Damaged { path: directory.to_owned(), problem }
    })?;
    let mut batch = rescued.database.batch();
    let (may_lack_tries, mut locked_cards) = (!damage.is_empty(), 0);
    let walk = walk(&damaged, &mut |kind, key, row| {
        let locked = (may_lack_tries && kind == RowKind::Card).then(|| lock_tries(row)).flatten();
        locked_cards += u64::from(locked.is_some());
        let row = locked.as_deref().unwrap_or(row);
        let keyspace = match kind {
            RowKind::Card => &rescued.cards,
            RowKind::Pin => &rescued.pins,
            RowKind::Audit => &rescued.audit,
            RowKind::Meta => &rescued.meta,
        };
        batch.insert(keyspace, key, row);
        if batch.len() < BATCH_ROWS {
            return Ok(());
        }
        std::mem::replace(&mut batch, rescued.database.batch()).commit()
    })
    .map_err(write)?;
    let ended_controls = walk.counts.open_controls + walk.counts.retry_controls;
    let lost = lost(&damaged, &copied, &walk);
    let origin = origin(directory, walk.end, ended_controls);
    let event = append_event(&mut batch, &rescued, &walk, Body::StoreSalvaged(origin));
    batch.durability(Some(PersistMode::SyncAll)).commit().map_err(write)?;
    drop((rescued, damaged));
    fs::remove_dir_all(&scratch).map_err(|error| UpkeepError::write(target, &error))?;
    let kept = RowCounts { open_controls: 0, retry_controls: 0, ..walk.counts };
    damage.extend(walk.damage);
    damage.truncate(DAMAGE_MAX);
    checked(building.path(), target, event)?;
    building.finish(FORMAT_TEXT)?;
    let Walk { end, has_key_list, has_card_reference_key, .. } = walk;
    Ok(SalvageReport {
        kept,
        end,
        event,
        ended_controls,
        locked_cards,
        lost,
        has_key_list,
        has_card_reference_key,
        damage,
    })
}

/// Writes a backup of a store, opens it, and verifies all its rows and its audit chain.
///
/// # Errors
/// There is no store, the store is damaged, or `target` is in use or can't be written.
pub fn back_up(directory: &Path, target: &Path) -> Result<BackupReport, UpkeepError> {
    if contents(directory)? != Contents::Store {
        return Err(StoreOpenError::Absent { path: directory.to_owned() }.into());
    }
    let building = Building::begin(target)?;
    let walk = copy_whole(directory, &building, &mut |_, _| Ok(()))?;
    building.finish(BACKUP_TEXT)?;
    Ok(BackupReport { counts: walk.counts, end: walk.end, archived: walk.archived.sequence })
}

/// Writes a store with the rows of a backup and without its open controls. The next entry of its audit chain is the event of
/// the restore.
///
/// # Errors
/// `backup` is no backup or is damaged, or `target` is in use or can't be written.
pub fn restore(backup: &Path, target: &Path) -> Result<RestoreReport, UpkeepError> {
    match contents(backup)? {
        Contents::Backup => {}
        Contents::Store | Contents::Nothing => return Err(UpkeepError::NotABackup { path: backup.to_owned() }),
    }
    let building = Building::begin(target)?;
    let mut event = Checkpoint::EMPTY;
    let walk = copy_whole(backup, &building, &mut |tables, walk| {
        let mut batch = tables.database.batch();
        for row in tables.controls.iter() {
            batch.remove(&tables.controls, row.key()?);
        }
        let origin = origin(backup, walk.end, walk.counts.open_controls);
        event = append_event(&mut batch, tables, walk, Body::StoreRestored(origin));
        batch.durability(Some(PersistMode::SyncAll)).commit()
    })?;
    if let Some(damage) = checked(building.path(), target, event)?.damage.first() {
        return Err(write_problem(target, damage.to_string()));
    }
    building.finish(FORMAT_TEXT)?;
    let counts = RowCounts { open_controls: 0, ..walk.counts };
    Ok(RestoreReport { counts, end: walk.end, event, ended_controls: walk.counts.open_controls })
}

/// Copies a store that must be whole, and calls `finish` on the open copy.
fn copy_whole(
    directory: &Path,
    building: &Building,
    finish: &mut dyn FnMut(&Tables, &Walk) -> Result<(), fjall::Error>,
) -> Result<Walk, UpkeepError> {
    let damaged = |damage| UpkeepError::Damaged { path: directory.to_owned(), damage };
    let copied = copy_files(directory, building.path())?;
    if let Some(damage) = copied.damage {
        return Err(damaged(damage));
    }
    if let Some(damage) = table_damage(directory, building.path())?.into_iter().next() {
        return Err(damaged(damage));
    }
    let write = |error: fjall::Error| write_error(&building.target, &error);
    let tables = Tables::open(&building.path().join(DATABASE), MEMORY_BYTES)
        .map_err(|error| damaged(Damage::at(DATABASE, format!("the database does not open: {error}"))))?;
    let mut walk = walk(&tables, &mut |_, _, _| Ok(())).map_err(write)?;
    if !walk.damage.is_empty() {
        return Err(damaged(walk.damage.swap_remove(0)));
    }
    finish(&tables, &walk).map_err(write)?;
    Ok(walk)
}

/// Opens a database that was written just now, and walks through it. Its chain must end with the event, and no control may
/// be usable.
fn checked(directory: &Path, target: &Path, event: Checkpoint) -> Result<Walk, UpkeepError> {
    let write = |error: fjall::Error| write_error(target, &error);
    let tables = Tables::open(&directory.join(DATABASE), MEMORY_BYTES).map_err(write)?;
    let walk = walk(&tables, &mut |_, _, _| Ok(())).map_err(write)?;
    if walk.end != event || walk.counts.open_controls != 0 {
        return Err(write_problem(target, "what was written does not read back".to_owned()));
    }
    Ok(walk)
}

/// Damage of the format file alone; the files of a store are there.
fn readable_format(directory: &Path) -> Result<Option<Damage>, StoreOpenError> {
    let is_database = directory.join(DATABASE).join(LOCK_FILE).exists();
    match contents(directory) {
        Ok(_) if !is_database => Err(StoreOpenError::Absent { path: directory.to_owned() }),
        Ok(_) => Ok(None),
        Err(error @ (StoreOpenError::Foreign { .. } | StoreOpenError::Version { .. })) if is_database => {
            Ok(Some(Damage::at(FORMAT_FILE, error.to_string())))
        }
        Err(error) => Err(error),
    }
}

/// Copies the files of one moment into the directory of a store.
fn copy_files(from: &Path, to: &Path) -> Result<CopiedJournals, UpkeepError> {
    let read = |error| StoreOpenError::Io { path: from.to_owned(), error };
    let files = StoreFiles::open(&from.join(DATABASE)).map_err(read)?;
    let files = files.ok_or_else(|| UpkeepError::Unsettled { path: from.to_owned(), attempts: ATTEMPTS_MAX })?;
    let copied = files.copy_to(&to.join(DATABASE));
    Ok(copied.map_err(|error| StoreOpenError::Copy { path: from.to_owned(), error })?)
}

fn table_damage(directory: &Path, copy: &Path) -> Result<Vec<Damage>, UpkeepError> {
    let found = table_checksum::find_damage(&copy.join(DATABASE));
    Ok(found.map_err(|error| StoreOpenError::Io { path: directory.to_owned(), error })?)
}

/// What the batches behind the damage changed, and what the walk could not read.
fn lost(damaged: &Tables, copied: &CopiedJournals, walk: &Walk) -> LostRows {
    let (cards, pins, meta) = (damaged.cards.id(), damaged.pins.id(), damaged.meta.id());
    let (mut lost_cards, mut lost_pins, mut newest) = (HashSet::new(), HashSet::new(), walk.end.sequence);
    let mut commits = 0;
    for bytes in &copied.behind {
        commits += each_whole_batch(bytes, |item| {
            if item.keyspace == cards {
                lost_cards.insert(item.key);
            } else if item.keyspace == pins {
                lost_pins.insert(item.key);
            } else if item.keyspace == meta && item.key == HEAD_KEY.as_bytes() {
                newest = decode_head(item.value).map_or(newest, |(head, _)| newest.max(head.sequence));
            }
        });
    }
    let count = |keys: &HashSet<&[u8]>| u64::try_from(keys.len()).unwrap_or(u64::MAX);
    LostRows {
        commits,
        cards: count(&lost_cards),
        pins: count(&lost_pins),
        audit_entries: newest.saturating_sub(walk.end.sequence),
        damaged_places: walk.damaged_places,
    }
}

fn origin(source: &Path, end: Checkpoint, ended_controls: u64) -> StoreOrigin {
    let Checkpoint { sequence, hash } = end;
    StoreOrigin { source: engine_name(source).into(), sequence, hash, ended_controls }
}

/// Adds the event, and the head of the chain that ends with it.
fn append_event(batch: &mut WriteBatch, tables: &Tables, walk: &Walk, body: Body) -> Checkpoint {
    // No boundary takes part.
    let stamp = Stamp { level: Level::Host, token: "none".into(), isolation: Isolation::Inline, keys: [].into() };
    let event = Event {
        at: clock::now(),
        caller: CALLER.into(),
        tenant: None,
        audit_user: format!("uid {}", rustix::process::getuid().as_raw()).into(),
        request: None,
        outcome: Outcome::Done,
        stamp: Arc::new(stamp),
        body,
    };
    let (sequence, mut page) = (walk.end.sequence.saturating_add(1), EntryPage::new());
    let hash = page.push(|bytes| entry::append(bytes, sequence, &walk.end.hash, &event));
    let head = Checkpoint { sequence, hash };
    let time: UnixMillis = walk.time;
    batch.insert(&tables.audit, sequence.to_be_bytes(), page.row());
    batch.insert(&tables.meta, HEAD_KEY, encode_head(&head, time));
    head
}

/// A directory that is built beside its place. A drop before [`Building::finish`] removes the directory.
struct Building {
    directory: TempDir,
    target: PathBuf,
}

impl Building {
    fn begin(target: &Path) -> Result<Self, UpkeepError> {
        let write = |error: io::Error| UpkeepError::write(target, &error);
        if target.exists() && target.read_dir().map_err(write)?.next().is_some() {
            return Err(UpkeepError::TargetNotEmpty { path: target.to_owned() });
        }
        let target = std::path::absolute(target).map_err(write)?;
        let parent = target.parent().unwrap_or(&target);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(write)?;
        let directory = tempfile::Builder::new().prefix(PREFIX).permissions(private()).tempdir_in(parent);
        Ok(Self { directory: directory.map_err(write)?, target })
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A directory for the time of the building.
    fn beside(&self, name: &str) -> Result<PathBuf, UpkeepError> {
        let path = self.path().join(name);
        fs::create_dir(&path).map_err(|error| UpkeepError::write(&self.target, &error))?;
        Ok(path)
    }

    /// Writes the format file, syncs everything, and gives the directory its name.
    fn finish(self, format_text: &str) -> Result<(), UpkeepError> {
        let finish = || {
            sync_all(self.path())?;
            write_format(self.path(), format_text)?;
            fs::rename(self.path(), &self.target)?;
            self.target.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
        };
        finish().map_err(|error| UpkeepError::write(&self.target, &error))
    }
}

fn private() -> Permissions {
    Permissions::from_mode(0o700)
}

/// A directory in `TMPDIR`.
fn temporary() -> Result<TempDir, UpkeepError> {
    let copy = tempfile::Builder::new().prefix(PREFIX).permissions(private()).tempdir();
    copy.map_err(|error| UpkeepError::write(&std::env::temp_dir(), &error))
}

/// Syncs every file and directory in a directory, at any depth.
fn sync_all(directory: &Path) -> io::Result<()> {
    for entry in directory.read_dir()? {
        let path = entry?.path();
        if path.is_dir() { sync_all(&path)? } else { File::open(&path)?.sync_all()? }
    }
    File::open(directory)?.sync_all()
}

fn write_error(path: &Path, error: &fjall::Error) -> UpkeepError {
    write_problem(path, error.to_string())
}

fn write_problem(path: &Path, problem: String) -> UpkeepError {
    UpkeepError::Write { path: path.to_owned(), problem }
}

#[cfg(test)]
mod tests;
