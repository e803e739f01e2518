//! The embedded store as the source and as the target of [`store::copy::copy`].

use std::{
    fs::{self, File},
    io,
    ops::Bound,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use fjall::PersistMode;
use tempfile::TempDir;

use super::{
    ARCHIVED_KEY, Absent, CARD_REFERENCE_KEY, Contents, DATABASE, Embedded, FORMAT_TEXT, HEAD_KEY, KEYS_KEY,
    MIN_KEY_VERSIONS_KEY, Tables, begin_format, contents, encode_head, finish_format,
    journal::{self, JournalError},
    number_of,
    page::{ControlPage, EntryPage},
    store_files::VERSION_FILE,
    upkeep::{MEMORY_BYTES, checked, copy_files, sync_all, table_damage, temporary, write_error, write_problem},
    walk::walk,
};
use audit::chain::Checkpoint;
use domain::card::CardKey;
use store::{
    Store, StoreOpenError,
    codec::{card_key, card_of_key, decode_min, encode_min},
    copy::{Begun, CopiedCard, CopyError, CopyFacts, CopySource, CopyTarget, is_event_of},
    engine_name,
    upkeep::{Damage, UpkeepError},
};

/// What the name of the directory of an unfinished copy has behind the name of its target.
const BUILDING: &str = ".copying";
/// The file of such a directory that names the source, and its subdirectory of the store.
const SOURCE_FILE: &str = "source";
const STORE: &str = "store";

/// The store of a stopped engine, or a backup, read from a copy in the directory for temporary files (`TMPDIR`). The store is
/// locked until this is dropped.
pub struct EmbeddedSource {
    directory: PathBuf,
    facts: CopyFacts,
    ended_controls: u64,
    /// The number of the last page of controls that was read.
    page: Option<u64>,
    // In the order of their drop.
    tables: Tables,
    _copy: TempDir,
    _lock: Option<File>,
}

impl EmbeddedSource {
    /// Locks the store, copies its files and reads every row.
    ///
    /// # Errors
    /// There is no store, an engine has the store open, the store is damaged, or `TMPDIR` has no space.
    pub fn open(directory: &Path) -> Result<Self, UpkeepError> {
        let path = || directory.to_owned();
        if contents(directory)? == Contents::Nothing {
            return Err(StoreOpenError::Absent { path: path() }.into());
        }
        let lock = journal::lock_to_read(&directory.join(DATABASE)).map_err(|error| match error {
            JournalError::Io(error) => StoreOpenError::Io { path: path(), error },
            JournalError::Locked | JournalError::Damaged { .. } | JournalError::Missing(_) => {
                StoreOpenError::Locked { path: path() }
            }
        })?;
        let damaged = |damage| UpkeepError::Damaged { path: path(), damage };
        let copy = temporary()?;
        let copied = copy_files(directory, copy.path())?;
        if let Some(damage) = copied.damage.or(table_damage(directory, copy.path())?.into_iter().next()) {
            return Err(damaged(damage));
        }
        let tables = Tables::open(&copy.path().join(DATABASE), MEMORY_BYTES, Absent::Refuse)
            .map_err(|error| damaged(Damage::at(DATABASE, error.to_string())))?;
        let read = |error: fjall::Error| write_error(copy.path(), &error);
        let mut walk = walk(&tables, &mut |_, _, _| Ok(())).map_err(read)?;
        if !walk.damage.is_empty() {
            return Err(damaged(walk.damage.swap_remove(0)));
        }
        let meta = |key: &str| Ok::<_, UpkeepError>(tables.meta.get(key).map_err(read)?.map(|row| row.to_vec()));
        let min = meta(MIN_KEY_VERSIONS_KEY)?.and_then(|min| decode_min(&min)).unwrap_or_default();
        let facts = CopyFacts {
            source: engine_name(directory),
            end: walk.end,
            archived: meta(ARCHIVED_KEY)?,
            archived_end: walk.archived.sequence,
            keys: meta(KEYS_KEY)?,
            card_reference_key: meta(CARD_REFERENCE_KEY)?,
            min,
            time: walk.time,
            rows: walk.counts.cards + walk.counts.retry_controls + walk.counts.audit_entries,
        };
        let (directory, ended_controls) = (directory.to_owned(), walk.counts.open_controls);
        Ok(Self { directory, facts, ended_controls, page: None, tables, _copy: copy, _lock: lock })
    }

    fn read_error(&self) -> impl Fn(fjall::Error) -> UpkeepError + use<> {
        let path = self.directory.clone();
        move |error| UpkeepError::Damaged { path: path.clone(), damage: Damage::at(DATABASE, error.to_string()) }
    }
}

impl CopySource for EmbeddedSource {
    fn facts(&self) -> &CopyFacts {
        &self.facts
    }

    async fn cards(&mut self, after: Option<&CardKey>, limit: usize) -> Result<Vec<CopiedCard>, CopyError> {
        Ok(read_cards(&self.tables, after, limit).map_err(self.read_error())?)
    }

    async fn controls(&mut self) -> Result<Vec<Vec<u8>>, CopyError> {
        let (page, controls) = read_controls(&self.tables, self.page).map_err(self.read_error())?;
        self.page = page;
        Ok(controls)
    }

    fn ended_controls(&self) -> u64 {
        self.ended_controls
    }

    async fn entries(&mut self, after: u64, limit: usize) -> Result<Vec<Vec<u8>>, CopyError> {
        Ok(read_entries(&self.tables, after, limit).map_err(self.read_error())?)
    }

    /// The store is locked.
    async fn check_unchanged(&mut self) -> Result<(), CopyError> {
        Ok(())
    }
}

/// A directory that a copy fills. It is built beside its place, so no engine finds it before it is complete.
pub struct EmbeddedTarget {
    target: PathBuf,
    building: PathBuf,
    tables: Option<Tables>,
    /// The number of the last page of controls that was written.
    written_page: u64,
    /// The number of the last page of controls that was compared.
    compared_page: Option<u64>,
}

impl EmbeddedTarget {
    /// A target in this directory, which is absent or empty.
    ///
    /// # Errors
    /// The path has no last part.
    pub fn new(target: &Path) -> Result<Self, UpkeepError> {
        let target = std::path::absolute(target).map_err(|error| UpkeepError::write(target, &error))?;
        let no_name = || write_problem(&target, "the path has no last part".to_owned());
        let mut name = target.file_name().ok_or_else(no_name)?.to_owned();
        name.push(BUILDING);
        let building = target.with_file_name(name);
        Ok(Self { target, building, tables: None, written_page: 0, compared_page: None })
    }

    fn tables(&self) -> Result<&Tables, UpkeepError> {
        self.tables.as_ref().ok_or_else(|| write_problem(&self.target, "the copy has not begun".to_owned()))
    }

    fn write_error(&self) -> impl Fn(fjall::Error) -> UpkeepError + use<> {
        let path = self.building.clone();
        move |error| write_error(&path, &error)
    }

    /// Makes the directory, or finds the one of an earlier copy of the same source.
    fn reserve(&self, facts: &CopyFacts) -> Result<(), CopyError> {
        let write = |error: io::Error| UpkeepError::write(&self.building, &error);
        let mark = self.building.join(SOURCE_FILE);
        let wanted = format!("{}\n{}\n", facts.end, facts.source);
        match fs::read_to_string(&mark) {
            Ok(found) if found == wanted => return Ok(()),
            Ok(found) => {
                let (end, source) = found.trim_end().split_once('\n').unwrap_or_default();
                let end = end.parse::<Checkpoint>().map_or(0, |end| end.sequence);
                let (place, source_name) = (self.building.display().to_string(), source.to_owned());
                return Err(CopyError::OtherSource { place, source_name, end });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(write(error).into()),
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.building).map_err(write)?;
        if self.building.join(STORE).exists() {
            return Err(UpkeepError::TargetNotEmpty { path: self.building.clone() }.into());
        }
        let fresh = mark.with_extension("new");
        fs::write(&fresh, wanted).and_then(|()| File::open(&fresh)?.sync_all()).map_err(write)?;
        fs::rename(&fresh, &mark).and_then(|()| File::open(&self.building)?.sync_all()).map_err(write)?;
        Ok(())
    }
}

impl CopyTarget for EmbeddedTarget {
    async fn begin(&mut self, facts: &CopyFacts) -> Result<Begun, CopyError> {
        let write = |error: io::Error| UpkeepError::write(&self.building, &error);
        if self.target.exists() && self.target.read_dir().map_err(write)?.next().is_some() {
            if matches!(contents(&self.target), Ok(Contents::Store)) {
                let next = facts.end.sequence.saturating_add(1);
                let entries = Embedded::open_copy(&self.target)?.audit(next, 1).await;
                let entry = entries.ok().and_then(|entries| entries.into_iter().next());
                if let Some(entry) = entry.filter(|entry| is_event_of(facts, &entry.event.body)) {
                    return Ok(Begun::Complete(Checkpoint { sequence: entry.sequence, hash: entry.hash }));
                }
            }
            return Err(UpkeepError::TargetNotEmpty { path: self.target.clone() }.into());
        }
        self.reserve(facts)?;
        let files = self.building.join(STORE).join(DATABASE);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(self.building.join(STORE)).map_err(write)?;
        // fjall does not continue a database without the file that it writes last.
        if files.exists() && !files.join(VERSION_FILE).exists() {
            fs::remove_dir_all(&files).map_err(write)?;
        }
        journal::secure(&files, |_| Ok(None)).map_err(|error| match error {
            JournalError::Locked => CopyError::Displaced { place: self.building.display().to_string() },
            error => write_error(&self.building, &error).into(),
        })?;
        let tables =
            Tables::open(&files, MEMORY_BYTES, Absent::Create).map_err(|error| write_error(&self.building, &error))?;
        let failed = self.write_error();
        // All controls are written again: they are few.
        let mut batch = tables.database.batch();
        for row in tables.set.iter() {
            batch.remove(&tables.set, row.key().map_err(&failed)?);
        }
        // The event of a copy whose directory did not get its name yet is written again: it is no entry of the source.
        batch.remove(&tables.audit, facts.end.sequence.saturating_add(1).to_be_bytes());
        batch.durability(Some(PersistMode::SyncAll)).commit().map_err(&failed)?;
        let card = tables.cards.iter().next_back().map(|row| row.key()).transpose().map_err(&failed)?;
        let entry = match tables.audit.iter().next_back().map(|row| row.into_inner()).transpose().map_err(&failed)? {
            None => facts.archived_end,
            Some((first, row)) => {
                let entries = EntryPage::read(&row).and_then(|page| Some(page.entries()?.len()));
                let count = entries.and_then(|count| u64::try_from(count).ok()).unwrap_or_default();
                number_of(&first).unwrap_or_default().saturating_add(count).saturating_sub(1)
            }
        };
        self.tables = Some(tables);
        Ok(Begun::At { card: card.and_then(|key| card_of_key(&key)), entry })
    }

    async fn put_cards(&mut self, cards: &[CopiedCard]) -> Result<(), CopyError> {
        let tables = self.tables()?;
        let mut batch = tables.database.batch();
        for CopiedCard { card, state, pin } in cards {
            let key = card_key(card);
            if let Some(pin) = pin {
                batch.insert(&tables.pins, key.clone(), pin.as_slice());
            }
            batch.insert(&tables.cards, key, state.as_slice());
        }
        Ok(batch.durability(Some(PersistMode::SyncAll)).commit().map_err(self.write_error())?)
    }

    async fn put_controls(&mut self, controls: &[Vec<u8>]) -> Result<(), CopyError> {
        self.written_page += 1;
        let tables = self.tables()?;
        let mut page = ControlPage::new();
        controls.iter().for_each(|control| page.push(control));
        let mut batch = tables.database.batch();
        batch.insert(&tables.set, self.written_page.to_be_bytes(), page.into_row());
        Ok(batch.durability(Some(PersistMode::SyncAll)).commit().map_err(self.write_error())?)
    }

    async fn put_entries(&mut self, first: u64, entries: &[Vec<u8>]) -> Result<(), CopyError> {
        let tables = self.tables()?;
        let mut page = EntryPage::new();
        entries.iter().for_each(|entry| page.push(|bytes| bytes.extend_from_slice(entry)));
        let mut batch = tables.database.batch();
        batch.insert(&tables.audit, first.to_be_bytes(), page.row());
        Ok(batch.durability(Some(PersistMode::SyncAll)).commit().map_err(self.write_error())?)
    }

    async fn cards(&mut self, after: Option<&CardKey>, limit: usize) -> Result<Vec<CopiedCard>, CopyError> {
        Ok(read_cards(self.tables()?, after, limit).map_err(self.write_error())?)
    }

    /// Pages are compared in the order in which they were written.
    async fn has_controls(&mut self, controls: &[Vec<u8>]) -> Result<(bool, u64), CopyError> {
        let (page, found) = read_controls(self.tables()?, self.compared_page).map_err(self.write_error())?;
        self.compared_page = page;
        let mut count = 0;
        for row in self.tables()?.set.iter() {
            let (_, page) = row.into_inner().map_err(self.write_error())?;
            count += ControlPage::read(&page).map_or(0, |(_, controls)| controls.len());
        }
        Ok((found == controls, u64::try_from(count).unwrap_or(u64::MAX)))
    }

    async fn entries(&mut self, after: u64, limit: usize) -> Result<Vec<Vec<u8>>, CopyError> {
        Ok(read_entries(self.tables()?, after, limit).map_err(self.write_error())?)
    }

    async fn finish(&mut self, facts: &CopyFacts, entry: Vec<u8>, head: Checkpoint) -> Result<(), CopyError> {
        let tables = self.tables()?;
        let mut page = EntryPage::new();
        page.push(|bytes| bytes.extend_from_slice(&entry));
        let mut batch = tables.database.batch();
        batch.insert(&tables.audit, head.sequence.to_be_bytes(), page.row());
        batch.insert(&tables.meta, HEAD_KEY, encode_head(&head, facts.time));
        batch.insert(&tables.meta, MIN_KEY_VERSIONS_KEY, encode_min(&facts.min));
        let rows =
            [(KEYS_KEY, &facts.keys), (CARD_REFERENCE_KEY, &facts.card_reference_key), (ARCHIVED_KEY, &facts.archived)];
        for (key, value) in rows {
            if let Some(value) = value {
                batch.insert(&tables.meta, key, value.as_slice());
            }
        }
        batch.durability(Some(PersistMode::SyncAll)).commit().map_err(self.write_error())?;
        self.tables = None;
        let store = self.building.join(STORE);
        if let Some(damage) = checked(&store, &self.target, head)?.damage.first() {
            return Err(write_problem(&self.target, damage.to_string()).into());
        }
        let finish = || {
            sync_all(&store)?;
            begin_format(&store, FORMAT_TEXT)?;
            finish_format(&store)?;
            fs::rename(&store, &self.target)?;
            fs::remove_dir_all(&self.building)?;
            self.target.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
        };
        Ok(finish().map_err(|error| UpkeepError::write(&self.target, &error))?)
    }
}

fn read_cards(tables: &Tables, after: Option<&CardKey>, limit: usize) -> Result<Vec<CopiedCard>, fjall::Error> {
    let from = after.map_or(Bound::Unbounded, |card| Bound::Excluded(card_key(card)));
    let mut cards = Vec::new();
    for row in tables.cards.range((from, Bound::Unbounded)).take(limit) {
        let (key, state) = row.into_inner()?;
        let pin = tables.pins.get(&key)?.map(|pin| pin.to_vec());
        // The walk has read each key.
        if let Some(card) = card_of_key(&key) {
            cards.push(CopiedCard { card, state: state.to_vec(), pin });
        }
    }
    Ok(cards)
}

/// The controls of the next page that has some, and its number; `None` at the end.
fn read_controls(tables: &Tables, after: Option<u64>) -> Result<(Option<u64>, Vec<Vec<u8>>), fjall::Error> {
    let from = after.map_or(Bound::Unbounded, |number| Bound::Excluded(number.to_be_bytes()));
    for row in tables.set.range((from, Bound::Unbounded)) {
        let (number, page) = row.into_inner()?;
        let controls = ControlPage::read(&page).map(|(_, controls)| controls).unwrap_or_default();
        if !controls.is_empty() {
            return Ok((number_of(&number), controls.into_iter().map(<[u8]>::to_vec).collect()));
        }
    }
    Ok((None, Vec::new()))
}

fn read_entries(tables: &Tables, after: u64, limit: usize) -> Result<Vec<Vec<u8>>, fjall::Error> {
    let next = after.saturating_add(1);
    let first = tables.audit.range(..=next.to_be_bytes()).next_back().map(|row| row.key()).transpose()?;
    let first = first.and_then(|key| number_of(&key)).unwrap_or(next);
    let mut found = Vec::new();
    for row in tables.audit.range(first.to_be_bytes()..) {
        let (key, row) = row.into_inner()?;
        let number = number_of(&key).unwrap_or_default();
        let passed_over = usize::try_from(next.saturating_sub(number)).unwrap_or(usize::MAX);
        let page = EntryPage::read(&row);
        let entries = page.as_ref().and_then(EntryPage::entries).unwrap_or_default();
        let left = limit.saturating_sub(found.len());
        found.extend(entries.into_iter().skip(passed_over).take(left).map(<[u8]>::to_vec));
        if found.len() == limit {
            break;
        }
    }
    Ok(found)
}
