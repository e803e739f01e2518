//! The checksums of fjall's tables. A read of rows checks the blocks that it reads; these checksums cover every byte.
//!
//! ```text
//! current    version(8) XXH3-128 of the file vVERSION(16) 00             lsm-tree 3, little endian
//! vVERSION   an sfa archive; section "tables":
//!            levels(1), each: runs(1), each: tables(4), each: id(8) 00 XXH3-128 of tables/ID(16) sequence(8)
//! ```

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use xxhash_rust::xxh3::Xxh3;

use super::store_files::{CURRENT_FILE, KEYSPACES, VERSION_FILE, missing_files};
use store::upkeep::Damage;

/// The section of a table list that names the tables.
const TABLES_SECTION: &[u8] = b"tables";
/// The code of XXH3-128.
const CHECKSUM_KIND: u8 = 0;

/// The reason why fjall can't open a database: the first damage, or, without damage, the error of fjall.
pub(super) fn problem(database: &Path, error: &fjall::Error) -> String {
    let found = find_damage(database).ok().and_then(|damage| damage.into_iter().next());
    found.map_or_else(|| words(error), |damage| damage.to_string())
}

/// An error of fjall at the start, for people.
pub(super) fn words(error: &fjall::Error) -> String {
    match error {
        fjall::Error::InvalidVersion(_) => format!("{VERSION_FILE}: the file was changed"),
        error => format!("the library fjall reports: {error}"),
    }
}

/// The files of a database that are absent, and the tables and table lists whose bytes are not those that were written.
pub(super) fn find_damage(database: &Path) -> io::Result<Vec<Damage>> {
    let mut damage = missing_files(database)?;
    if !database.join(KEYSPACES).is_dir() {
        return Ok(damage);
    }
    for entry in database.join(KEYSPACES).read_dir()? {
        let directory = entry?.path();
        if !directory.join(CURRENT_FILE).exists() {
            continue;
        }
        let shown = |file: &str| {
            let path = directory.join(file);
            path.strip_prefix(database).unwrap_or(&path).display().to_string()
        };
        let Some((version, expected)) = current(&directory) else {
            damage.push(Damage::at(shown(CURRENT_FILE), "the name of the table list can't be read"));
            continue;
        };
        let list = format!("v{version}");
        if checksum(&directory.join(&list))? != Some(expected) {
            damage.push(Damage::at(shown(&list), "the table list was changed or is absent: its checksum differs"));
            continue;
        }
        let Some(tables) = tables(&directory.join(&list)) else {
            damage.push(Damage::at(shown(&list), "the table list can't be read"));
            continue;
        };
        for (id, expected) in tables {
            let table = format!("tables/{id}");
            if checksum(&directory.join(&table))? != Some(expected) {
                damage.push(Damage::at(shown(&table), "the table was changed or is absent: its checksum differs"));
            }
        }
    }
    Ok(damage)
}

/// The version and the checksum of a keyspace's table list; `None` where the file is malformed.
fn current(keyspace: &Path) -> Option<(u64, u128)> {
    let bytes = fs::read(keyspace.join(CURRENT_FILE)).ok()?;
    let (version, rest) = bytes.split_first_chunk()?;
    let (checksum, rest) = rest.split_first_chunk()?;
    (rest == [CHECKSUM_KIND]).then_some((u64::from_le_bytes(*version), u128::from_le_bytes(*checksum)))
}

/// The XXH3-128 of a file; `None` where it is absent.
fn checksum(path: &Path) -> io::Result<Option<u128>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let (mut hasher, mut buffer) = (Xxh3::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Some(hasher.digest128())),
            read => hasher.update(buffer.get(..read).unwrap_or_default()),
        }
    }
}

/// The number and the checksum of each table of a list; `None` where the list is malformed.
fn tables(list: &Path) -> Option<Vec<(u64, u128)>> {
    let archive = sfa::Reader::new(list).ok()?;
    let section = archive.toc().section(TABLES_SECTION)?;
    let bytes = fs::read(list).ok()?;
    let start = usize::try_from(section.pos()).ok()?;
    let mut read = Bytes(bytes.get(start..start.checked_add(usize::try_from(section.len()).ok()?)?)?);
    let mut tables = Vec::new();
    for _ in 0..read.byte()? {
        for _ in 0..read.byte()? {
            for _ in 0..u32::from_le_bytes(read.array()?) {
                let id = u64::from_le_bytes(read.array()?);
                let kind = read.byte()?;
                tables.push((id, u128::from_le_bytes(read.array()?)));
                let _sequence: [u8; 8] = read.array()?;
                if kind != CHECKSUM_KIND {
                    return None;
                }
            }
        }
    }
    Some(tables)
}

struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }
}
