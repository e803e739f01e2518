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
//! are reset, and writes a card for each PIN whose card is lost; of a store without damage it keeps the tries. A restore has the tries of the backup.

use std::{
    collections::{BTreeSet, HashSet},
    fmt::Display,
    fs::{self, File, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use fjall::{OwnedWriteBatch as WriteBatch, PersistMode};
use tempfile::TempDir;

use super::{
    Absent, BACKUP_TEXT, Contents, DATABASE, FORMAT_FILE, FORMAT_TEXT, HEAD_KEY, Tables, begin_format, contents,
    copy::PREFIX,
    decode_head, encode_head, finish_format,
    journal::{LOCK_FILE, each_whole_batch},
    number_of,
    page::EntryPage,
    store_files::{ATTEMPTS_MAX, CURRENT_FILE, CopiedJournals, KEYSPACES, StoreFiles, VERSION_FILE},
    table_checksum,
    walk::{RowKind, Walk, walk},
};
use audit::{
    chain::Checkpoint,
    entry::{self, Body, Entry, Event, Isolation, Level, Outcome, Stamp, StoreOrigin},
};
use domain::{card::CardKey, time::UnixMillis};
use store::{
    StoreOpenError,
    codec::{card_of_key, lock_tries, locked_card_of},
    engine_name,
    upkeep::{
        BackupReport, CheckReport, DAMAGE_MAX, Damage, LostRows, ReadRows, RestoreReport, RowCounts, SalvageReport,
        UpkeepError,
    },
};

/// The memory of the buffers and caches of a database that a command opens, in bytes.
pub(super) const MEMORY_BYTES: u64 = 64 << 20;
/// The rows that a salvage writes in one batch.
const BATCH_ROWS: usize = 1_024;
/// The caller of an event that these commands record.
const CALLER: &str = "store";

/// Reads every byte and every row of a store or backup, from a copy in the directory for temporary files (`TMPDIR`). With a
/// checkpoint, the store must hold its entry.
///
/// # Errors
/// There is no store, its files can't be read, the copy can't be written, or the checkpoint is older than the archived
/// entries. Damage is in the report.
pub fn check(directory: &Path, checkpoint: Option<Checkpoint>) -> Result<CheckReport, UpkeepError> {
    let mut damage = layout_damage(directory)?;
    if !can_be_copied(directory) {
        return Ok(CheckReport { rows: None, unfinished: None, damage });
    }
    let copy = temporary()?;
    let copied = copy_files(directory, copy.path())?;
    damage.extend(copied.damage);
    damage.extend(table_damage(directory, copy.path())?);
    let mut rows = None;
    match Tables::open(&copy.path().join(DATABASE), MEMORY_BYTES, Absent::Refuse) {
        Ok(tables) => {
            let walk = walk(&tables, &mut |_, _, _| Ok(())).map_err(|error| write_error(copy.path(), &error))?;
            rows = Some(ReadRows { counts: walk.counts, end: walk.end });
            damage.extend(checkpoint.map(|checkpoint| compare(&tables, &walk, checkpoint)).transpose()?.flatten());
            damage.extend(walk.damage);
        }
        // The damage that was found first is the cause.
        Err(_) if !damage.is_empty() => {}
        Err(error) => damage.push(Damage::at(DATABASE, error.to_string())),
    }
    damage.truncate(DAMAGE_MAX);
    Ok(CheckReport { rows, unfinished: copied.unfinished, damage })
}

/// The damage that a checkpoint shows; `None` where the store holds the entry of the checkpoint.
fn compare(tables: &Tables, walk: &Walk, checkpoint: Checkpoint) -> Result<Option<Damage>, UpkeepError> {
    let (Checkpoint { sequence, hash }, archived, end) = (checkpoint, walk.archived, walk.end.sequence);
    if sequence < archived.sequence {
        return Err(UpkeepError::CheckpointArchived { checkpoint: sequence, archived: archived.sequence });
    }
    if sequence > end {
        let problem = format!(
            "the chain holds to entry {end}, and the checkpoint is of entry {sequence}: later changes are lost"
        );
        return Ok(Some(Damage::at("audit", problem)));
    }
    let found = if sequence == archived.sequence { Some(archived.hash) } else { hash_of_entry(tables, sequence) };
    let problem = format!("entry {sequence} is not the entry of the checkpoint: the store is older, or another one");
    Ok((found != Some(hash)).then(|| Damage::at("audit", problem)))
}

fn hash_of_entry(tables: &Tables, sequence: u64) -> Option<[u8; 32]> {
    let (first, row) = tables.audit.range(..=sequence.to_be_bytes()).next_back()?.into_inner().ok()?;
    let place = usize::try_from(sequence.checked_sub(number_of(&first)?)?).ok()?;
    Entry::decode(EntryPage::read(&row)?.entries()?.into_iter().nth(place)?).ok().map(|entry| entry.hash)
}

/// Writes the rows of a damaged store up to the damage into a new store.
///
/// # Errors
/// There is no store, its lists of tables or a whole table can't be opened, or `target` is in use or can't be written.
pub fn salvage(directory: &Path, target: &Path) -> Result<SalvageReport, UpkeepError> {
    let mut damage = layout_damage(directory)?;
    let not_rescued = |damage: &[Damage], error: &dyn Display| {
        let problem = damage.first().map_or_else(|| error.to_string(), Damage::to_string);
        UpkeepError::NotRescued { path: directory.to_owned(), problem }
    };
    if !can_be_copied(directory) {
        return Err(not_rescued(&damage, &"it has no tables"));
    }
    let building = Building::begin(target)?;
    let scratch = building.beside("damaged")?;
    let copied = copy_files(directory, &scratch)?;
    damage.extend(copied.damage.clone());
    damage.extend(table_damage(directory, &scratch)?);
    let write = |error: fjall::Error| write_error(target, &error);
    let (source, built) = (scratch.join(DATABASE), building.path().join(DATABASE));
    let rescued = Tables::open(&built, MEMORY_BYTES, Absent::Create).map_err(|error| write_error(target, &error))?;
    // fjall opens nothing by a damaged version file.
    fs::copy(built.join(VERSION_FILE), source.join(VERSION_FILE))
        .map_err(|error| UpkeepError::write(target, &error))?;
    // Without its list of keyspaces, fjall removes all keyspaces.
    if !source.join(KEYSPACES).join("0").join(CURRENT_FILE).exists() {
        return Err(not_rescued(&damage, &"its list of keyspaces is absent"));
    }
    let damaged = Tables::open(&source, MEMORY_BYTES, Absent::Create).map_err(|error| not_rescued(&damage, &error))?;
    damage.extend(damaged.made.iter().map(|name| Damage::at(*name, "the keyspace is absent")));
    let mut batch = rescued.database.batch();
    let mut walk = walk(&damaged, &mut |kind, key, row| {
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
    batch.commit().map_err(write)?;
    let is_damaged = !damage.is_empty() || walk.damaged_places > 0;
    let locked_cards = if is_damaged { lock_cards(&rescued, &mut walk).map_err(write)? } else { 0 };
    let mut batch = rescued.database.batch();
    let ended_controls = walk.counts.open_controls + walk.counts.retry_controls;
    let (lost, lost_pins) = lost(&damaged, &copied, &walk);
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
    let lost_pins = lost_pins.into_iter().collect();
    Ok(SalvageReport {
        kept,
        end,
        event,
        ended_controls,
        locked_cards,
        lost,
        lost_pins,
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
    let tables = Tables::open(&building.path().join(DATABASE), MEMORY_BYTES, Absent::Refuse)
        .map_err(|error| damaged(Damage::at(DATABASE, error.to_string())))?;
    let mut walk = walk(&tables, &mut |_, _, _| Ok(())).map_err(write)?;
    if !walk.damage.is_empty() {
        return Err(damaged(walk.damage.swap_remove(0)));
    }
    finish(&tables, &walk).map_err(write)?;
    Ok(walk)
}

/// Opens a database that was written just now, and walks through it. Its chain must end with the event, and no control may
/// be usable.
pub(super) fn checked(directory: &Path, target: &Path, event: Checkpoint) -> Result<Walk, UpkeepError> {
    let write = |error: fjall::Error| write_error(target, &error);
    let tables = Tables::open(&directory.join(DATABASE), MEMORY_BYTES, Absent::Refuse)
        .map_err(|error| write_error(target, &error))?;
    let walk = walk(&tables, &mut |_, _, _| Ok(())).map_err(write)?;
    if walk.end != event || walk.counts.open_controls != 0 {
        return Err(write_problem(target, "what was written does not read back".to_owned()));
    }
    Ok(walk)
}

/// The damage of the files that are not copied, and of a database that is absent.
///
/// # Errors
/// There is no store, or the operating system refuses.
fn layout_damage(directory: &Path) -> Result<Vec<Damage>, StoreOpenError> {
    let mut damage = match contents(directory) {
        Ok(Contents::Nothing) => return Err(StoreOpenError::Absent { path: directory.to_owned() }),
        Ok(Contents::Store | Contents::Backup) => Vec::new(),
        Err(StoreOpenError::Damaged { problem, .. }) => vec![Damage::at(FORMAT_FILE, problem)],
        Err(error @ StoreOpenError::Version { .. }) if can_be_copied(directory) => {
            vec![Damage::at(FORMAT_FILE, error.to_string())]
        }
        Err(error) => return Err(error),
    };
    let files = directory.join(DATABASE);
    if !files.is_dir() {
        damage.push(Damage::at(DATABASE, "the directory is absent"));
    } else if !can_be_copied(directory) {
        damage.push(Damage::at(format!("{DATABASE}/{KEYSPACES}"), "the directory is absent"));
    } else if !files.join(LOCK_FILE).exists() {
        damage.push(Damage::at(LOCK_FILE, "the file is absent"));
    }
    Ok(damage)
}

fn can_be_copied(directory: &Path) -> bool {
    directory.join(DATABASE).join(KEYSPACES).is_dir()
}

/// Copies the files of one moment into the directory of a store.
pub(super) fn copy_files(from: &Path, to: &Path) -> Result<CopiedJournals, UpkeepError> {
    let read = |error| StoreOpenError::Io { path: from.to_owned(), error };
    let files = StoreFiles::open(&from.join(DATABASE)).map_err(read)?;
    let files = files.ok_or_else(|| UpkeepError::Unsettled { path: from.to_owned(), attempts: ATTEMPTS_MAX })?;
    let copied = files.copy_to(&to.join(DATABASE));
    Ok(copied.map_err(|error| StoreOpenError::Copy { path: from.to_owned(), error })?)
}

pub(super) fn table_damage(directory: &Path, copy: &Path) -> Result<Vec<Damage>, UpkeepError> {
    let found = table_checksum::find_damage(&copy.join(DATABASE));
    Ok(found.map_err(|error| StoreOpenError::Io { path: directory.to_owned(), error })?)
}

/// What the batches behind the damage changed, and what the walk could not read; the cards whose PIN is lost or older.
fn lost(damaged: &Tables, copied: &CopiedJournals, walk: &Walk) -> (LostRows, BTreeSet<CardKey>) {
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
    let rows = LostRows {
        commits,
        cards: count(&lost_cards),
        pins: count(&lost_pins),
        audit_entries: newest.saturating_sub(walk.end.sequence),
        damaged_places: walk.damaged_places,
    };
    let absent = walk.absent_pins.iter().map(|key| &**key);
    (rows, lost_pins.iter().copied().chain(absent).filter_map(card_of_key).collect())
}

/// Uses up the tries of every card of a rescued store, also of the PINs without a card. Returns the number of cards.
fn lock_cards(rescued: &Tables, walk: &mut Walk) -> Result<u64, fjall::Error> {
    let mut batch = rescued.database.batch();
    let mut locked_cards = 0;
    let mut put = |key: &[u8], row: Vec<u8>| {
        batch.insert(&rescued.cards, key, row);
        locked_cards += 1;
        if batch.len() < BATCH_ROWS {
            return Ok(());
        }
        std::mem::replace(&mut batch, rescued.database.batch()).commit()
    };
    for row in rescued.pins.iter() {
        let (key, row) = row.into_inner()?;
        if !rescued.cards.contains_key(&key)?
            && let Some(card) = locked_card_of(&row)
        {
            put(&key, card)?;
            walk.counts.cards += 1;
        }
    }
    for row in rescued.cards.iter() {
        let (key, row) = row.into_inner()?;
        if let Some(card) = lock_tries(&row).filter(|card| **card != *row) {
            put(&key, card)?;
        }
    }
    batch.commit()?;
    Ok(locked_cards)
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
            begin_format(self.path(), format_text)?;
            finish_format(self.path())?;
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
pub(super) fn temporary() -> Result<TempDir, UpkeepError> {
    let copy = tempfile::Builder::new().prefix(PREFIX).permissions(private()).tempdir();
    copy.map_err(|error| UpkeepError::write(&std::env::temp_dir(), &error))
}

/// Syncs every file and directory in a directory, at any depth.
pub(super) fn sync_all(directory: &Path) -> io::Result<()> {
    for entry in directory.read_dir()? {
        let path = entry?.path();
        if path.is_dir() { sync_all(&path)? } else { File::open(&path)?.sync_all()? }
    }
    File::open(directory)?.sync_all()
}

pub(super) fn write_error(path: &Path, error: &dyn Display) -> UpkeepError {
    write_problem(path, error.to_string())
}

pub(super) fn write_problem(path: &Path, problem: String) -> UpkeepError {
    UpkeepError::Write { path: path.to_owned(), problem }
}

#[cfg(test)]
mod tests;
