//! The files of a store at one moment, opened without a write to any of them, while an engine serves too.
//!
//! fjall's tables never change, `current` in a keyspace's directory names the tables in use, and journals only grow. So if
//! no `current` changed while every file was opened, the open tables and the whole batches at the beginning of the open
//! journals are what a kill of the engine at one moment leaves, and fjall opens them. Files that the engine removes later
//! stay readable, because they are open. The copy may hold a last commit that was not synced yet.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Seek, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{
    DATABASE,
    journal::{self, Ending, LOCK_FILE},
};
use store::upkeep::Damage;

/// The directory of fjall's keyspaces.
pub(super) const KEYSPACES: &str = "keyspaces";
/// The file that names the tables of a keyspace.
pub(super) const CURRENT_FILE: &str = "current";
/// fjall's format of the directory. Its bytes are the same in each database of a release of fjall.
pub(super) const VERSION_FILE: &str = "version";
/// The attempts to open the files of one moment. An attempt takes milliseconds; a busy engine writes tables every few seconds.
pub(super) const ATTEMPTS_MAX: u32 = 100;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(50);

/// Open files of a store. Tables and journals are named by their paths in the database's directory.
pub(super) struct StoreFiles {
    journals: BTreeMap<u64, File>,
    others: Vec<(PathBuf, File)>,
}

/// How the journals were copied.
#[derive(Default)]
pub(super) struct CopiedJournals {
    /// The first byte that can't be read and has whole batches behind it. Nothing from there on is copied.
    pub(super) damage: Option<Damage>,
    /// The bytes behind the damage, of this and later journals.
    pub(super) behind: Vec<Vec<u8>>,
    /// The start of a last batch that is not whole; not copied.
    pub(super) unfinished: Option<Damage>,
}

impl StoreFiles {
    /// Opens the files of one moment; `None` where they changed during each attempt.
    pub(super) fn open(database: &Path) -> io::Result<Option<Self>> {
        raise_open_files_max();
        for _ in 0..ATTEMPTS_MAX {
            match Self::attempt(database) {
                Ok(Some(files)) => return Ok(Some(files)),
                Ok(None) => {}
                // An engine removes files that no table list names any more.
                Err(error) if error.kind() == io::ErrorKind::NotFound && database.join(KEYSPACES).is_dir() => {}
                Err(error) => return Err(error),
            }
            thread::sleep(ATTEMPT_PAUSE);
        }
        Ok(None)
    }

    fn attempt(database: &Path) -> io::Result<Option<Self>> {
        let before = table_lists(database)?;
        let mut journals = BTreeMap::new();
        for number in journal::numbers(database)? {
            journals.insert(number, File::open(journal::path(database, number))?);
        }
        let mut others = Vec::new();
        if database.join(VERSION_FILE).exists() {
            others.push((VERSION_FILE.into(), File::open(database.join(VERSION_FILE))?));
        }
        open_all(database, Path::new(KEYSPACES), &mut others)?;
        Ok((table_lists(database)? == before).then_some(Self { journals, others }))
    }

    /// Copies the files into `database`, which is made. Journals are copied to their last whole batch, or to the damage.
    pub(super) fn copy_to(&self, database: &Path) -> io::Result<CopiedJournals> {
        fs::create_dir_all(database.join(KEYSPACES))?;
        File::create_new(database.join(LOCK_FILE))?;
        for (path, file) in &self.others {
            let target = database.join(path);
            target.parent().map_or(Ok(()), fs::create_dir_all)?;
            let mut file = file;
            file.rewind()?;
            io::copy(&mut file, &mut File::create_new(target)?)?;
        }
        let newest = self.journals.keys().next_back();
        let mut copied = CopiedJournals::default();
        for (number, file) in &self.journals {
            let (mut bytes, ending) = settled(file)?;
            if copied.damage.is_some() {
                copied.behind.push(bytes);
                continue;
            }
            let place = |at: usize| format!("{}, byte {at}", journal::path(Path::new(""), *number).display());
            match ending {
                Ending::Whole { end } => bytes.truncate(end),
                Ending::CutShort { at } if Some(number) == newest => {
                    copied.unfinished = Some(Damage::at(place(at), "the last commit is not whole"));
                    bytes.truncate(at);
                }
                Ending::CutShort { at } | Ending::Damaged { at } => {
                    let problem = "a commit can't be read, and what was written later can";
                    copied.damage = Some(Damage::at(place(at), problem));
                    copied.behind.push(bytes.split_off(at));
                }
            }
            File::create_new(journal::path(database, *number))?.write_all(&bytes)?;
        }
        Ok(copied)
    }
}

/// Raises the limit of open files to what the system allows: a large store has thousands of tables, and all are open at once.
fn raise_open_files_max() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

/// Reads a journal until two reads agree on its first unreadable byte: an engine may be writing a batch there.
fn settled(journal: &File) -> io::Result<(Vec<u8>, Ending)> {
    let mut last = None;
    loop {
        let bytes = journal::written(journal)?;
        let ending = Ending::of(&bytes);
        if matches!(ending, Ending::Whole { .. }) || last == Some(ending) {
            return Ok((bytes, ending));
        }
        last = Some(ending);
        thread::sleep(ATTEMPT_PAUSE);
    }
}

/// The files without which fjall makes a new database or an empty keyspace, and does not report that rows are lost.
pub(super) fn missing_files(database: &Path) -> io::Result<Vec<Damage>> {
    if !database.is_dir() {
        return Ok(vec![Damage::at(DATABASE, "the directory is absent")]);
    }
    let mut missing = Vec::new();
    let mut absent = |path: &Path| {
        if !database.join(path).exists() {
            missing.push(Damage::at(path.display().to_string(), "the file is absent"));
        }
    };
    let list_of_keyspaces = Path::new(KEYSPACES).join("0").join(CURRENT_FILE);
    [Path::new(LOCK_FILE), Path::new(VERSION_FILE), &list_of_keyspaces].into_iter().for_each(&mut absent);
    let keyspaces = database.join(KEYSPACES);
    if keyspaces.is_dir() {
        for keyspace in keyspaces.read_dir()? {
            let keyspace = keyspace?;
            let list = Path::new(KEYSPACES).join(keyspace.file_name()).join(CURRENT_FILE);
            if keyspace.file_type()?.is_dir() && list != list_of_keyspaces {
                absent(&list);
            }
        }
    }
    // fjall numbers journals one after the other, and removes the oldest first.
    let mut journals = journal::numbers(database)?;
    journals.sort_unstable();
    if journals.is_empty() {
        missing.push(Damage::at(DATABASE, "there is no journal"));
    }
    for pair in journals.windows(2) {
        if let &[number, next] = pair
            && next != number.saturating_add(1)
        {
            let path = journal::path(Path::new(""), number.saturating_add(1));
            missing.push(Damage::at(path.display().to_string(), "the journal is absent, and a later one is there"));
        }
    }
    Ok(missing)
}

/// The list of tables of each keyspace.
fn table_lists(database: &Path) -> io::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut lists = BTreeMap::new();
    for keyspace in database.join(KEYSPACES).read_dir()? {
        let path = keyspace?.path().join(CURRENT_FILE);
        if path.exists() {
            lists.insert(path.clone(), fs::read(path)?);
        }
    }
    Ok(lists)
}

/// Opens every file in a directory, at any depth.
fn open_all(database: &Path, directory: &Path, files: &mut Vec<(PathBuf, File)>) -> io::Result<()> {
    for entry in database.join(directory).read_dir()? {
        let entry = entry?;
        let path = directory.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            open_all(database, &path, files)?;
        } else if kind.is_file() {
            files.push((path.clone(), File::open(database.join(&path))?));
        }
    }
    Ok(())
}
