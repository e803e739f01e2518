//! The output of a run: a first line that names the run, then a line an item, `plasticId,result,reason`. The file says how far
//! the run came, so that the same command continues after a cut, a crash or a kill without an item lost or doubled.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, BufWriter, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use proto::ItemError;

use super::{
    BulkError,
    item_file::{Item, ItemFile, LineReader},
};

/// The lines after which the file is synced: a power cut repeats at most the items of so many lines.
const LINES_PER_SYNC: u64 = 4_096;

/// What became of an item.
pub(super) type Outcome = Result<String, ItemError>;

/// An open, locked output file.
pub(super) struct OutcomeFile {
    path: PathBuf,
    file: BufWriter<File>,
    counts: Counts,
    /// The lines since the last sync.
    unsynced: u64,
}

/// The items with an outcome.
#[derive(Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) done: u64,
    /// Those of `done` that have an error.
    pub(super) failed: u64,
}

impl OutcomeFile {
    /// Opens the file, or creates it for its owner alone. Reads past the items that have their line.
    ///
    /// # Errors
    /// [`BulkError::Locked`]: another process writes the file; [`BulkError::OtherRun`], [`BulkError::Line`]: the file is not
    /// the output of this run; [`BulkError::File`]: the file cannot be read or written.
    pub(super) fn open(path: &Path, run: &str, items: &mut ItemFile) -> Result<Self, BulkError> {
        let failed = |error| BulkError::File { path: path.to_owned(), error };
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let mut file = opened.map_err(failed)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => BulkError::Locked { path: path.to_owned() },
            TryLockError::Error(error) => failed(error),
        })?;
        let (end, counts) = read_past(path, file.try_clone().map_err(failed)?, run, items)?;
        file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(failed)?;
        let mut opened = Self { path: path.to_owned(), file: BufWriter::new(file), counts, unsynced: 0 };
        if end == 0 {
            writeln!(opened.file, "{run}").map_err(failed)?;
            opened.sync()?;
            // The entry of a new file in its directory.
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
        }
        Ok(opened)
    }

    /// The items with a line, those of earlier runs included.
    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Adds the line of an item.
    ///
    /// # Errors
    /// [`BulkError::File`]: the file cannot be written.
    pub(super) fn write(&mut self, item: &Item, outcome: &Outcome) -> Result<(), BulkError> {
        let (result, reason) = match outcome {
            Ok(result) => (&**result, ""),
            Err(error) => ("", &*error.reason),
        };
        writeln!(self.file, "{},{result},{reason}", item.plastic.as_str()).map_err(|error| self.failed(error))?;
        self.counts.done += 1;
        self.counts.failed += u64::from(outcome.is_err());
        self.unsynced += 1;
        Ok(())
    }

    /// Passes the lines to the operating system, so that they outlive a kill; from time to time also to the disk.
    ///
    /// # Errors
    /// [`BulkError::File`]: the file cannot be written.
    pub(super) fn flush(&mut self) -> Result<(), BulkError> {
        if self.unsynced >= LINES_PER_SYNC {
            return self.sync();
        }
        self.file.flush().map_err(|error| self.failed(error))
    }

    /// Writes all lines to the disk.
    ///
    /// # Errors
    /// [`BulkError::File`]: the file cannot be written.
    pub(super) fn sync(&mut self) -> Result<(), BulkError> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_data());
        synced.map_err(|error| self.failed(error))?;
        self.unsynced = 0;
        Ok(())
    }

    fn failed(&self, error: io::Error) -> BulkError {
        BulkError::File { path: self.path.clone(), error }
    }
}

/// Reads the whole lines, each of which must be that of the next item. Returns where they end, and their counts.
fn read_past(path: &Path, file: File, run: &str, items: &mut ItemFile) -> Result<(u64, Counts), BulkError> {
    let mut lines = LineReader::new(path, file);
    match lines.next()? {
        // Killed within its first line: nothing was done.
        None => return Ok((0, Counts::default())),
        Some(first) if !first.is_whole && run.starts_with(&first.text) => return Ok((0, Counts::default())),
        Some(first) if first.text != run => return Err(BulkError::OtherRun { path: path.to_owned(), run: first.text }),
        Some(_) => {}
    }
    let (mut end, mut counts) = (run.len() as u64 + 1, Counts::default());
    while let Some(line) = lines.next()?.filter(|line| line.is_whole) {
        let mut columns = line.text.split(',');
        let (plastic, result, reason) = (columns.next(), columns.next(), columns.next());
        let is_outcome =
            matches!((result, reason), (Some(result), Some(reason)) if result.is_empty() != reason.is_empty());
        if !is_outcome || columns.next().is_some() {
            return Err(lines.malformed("is not an outcome: remove the lines from there on, and run the command again"));
        }
        if items.next()?.is_none_or(|item| Some(item.plastic.as_str()) != plastic) {
            return Err(lines.malformed("is not of the same item as in the input: give another --output"));
        }
        end += line.text.len() as u64 + 1;
        counts.done += 1;
        counts.failed += u64::from(result == Some(""));
    }
    Ok((end, counts))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::commands::bulk::item_file::Columns;

    const RUN: &str = "# export of bank to app";

    struct Files {
        directory: tempfile::TempDir,
    }

    impl Files {
        fn new() -> Self {
            let files = Self { directory: tempfile::tempdir().unwrap() };
            fs::write(files.directory.path().join("in"), "4000\n4001\n4002\n").unwrap();
            files
        }

        fn output(&self) -> PathBuf {
            self.directory.path().join("out")
        }

        fn open(&self) -> Result<(OutcomeFile, ItemFile), BulkError> {
            let mut items = ItemFile::open(&self.directory.path().join("in"), Columns::Card)?;
            Ok((OutcomeFile::open(&self.output(), RUN, &mut items)?, items))
        }
    }

    fn refused() -> Outcome {
        Err(ItemError { code_number: 5, reason: "PIN_NOT_SET".into(), message: "no PIN".into() })
    }

    #[test]
    fn a_file_cut_at_any_byte_continues_with_the_first_item_without_a_line() {
        let files = Files::new();
        let (mut out, mut items) = files.open().unwrap();
        for outcome in [Ok("AA".to_owned()), refused(), Ok("BB".to_owned())] {
            out.write(&items.next().unwrap().unwrap(), &outcome).unwrap();
        }
        out.sync().unwrap();
        drop(out);
        let whole = fs::read_to_string(files.output()).unwrap();
        assert_eq!(whole, format!("{RUN}\n4000,AA,\n4001,,PIN_NOT_SET\n4002,BB,\n"));
        for length in 0..=whole.len() {
            fs::write(files.output(), &whole[..length]).unwrap();
            let (mut out, mut items) = files.open().unwrap();
            let lines = whole[..length].matches('\n').count().saturating_sub(1) as u64;
            assert_eq!((out.counts().done, out.counts().failed), (lines, u64::from(lines > 1)), "{length}");
            let next = items.next().unwrap();
            assert_eq!(next.as_ref().map(|item| item.number), (lines < 3).then_some(lines + 1));
            if let Some(item) = next {
                out.write(&item, &Ok("CC".to_owned())).unwrap();
                out.sync().unwrap();
                let kept: String = whole.split_inclusive('\n').take(1 + lines as usize).collect();
                let kept = if kept.ends_with('\n') { kept } else { format!("{RUN}\n") };
                assert_eq!(
                    fs::read_to_string(files.output()).unwrap(),
                    format!("{kept}{},CC,\n", item.plastic.as_str())
                );
            }
        }
    }

    #[test]
    fn the_output_of_another_run_or_input_is_not_touched() {
        let files = Files::new();
        for text in [
            "# another run\n",
            "4000\n",
            &format!("{RUN}\n4001,AA,\n"),
            &format!("{RUN}\n4000,AA\n"),
            &format!("{RUN}\n4000,,\n"),
            &format!("{RUN}\n4000,A,\n4001,A,\n4002,A,\n4003,A,\n"),
        ] {
            fs::write(files.output(), text).unwrap();
            assert!(matches!(files.open(), Err(BulkError::OtherRun { .. } | BulkError::Line { .. })), "{text}");
            assert_eq!(fs::read_to_string(files.output()).unwrap(), text);
        }
    }

    #[test]
    fn two_processes_do_not_write_one_file() {
        let files = Files::new();
        let _open = files.open().unwrap();
        assert!(matches!(files.open(), Err(BulkError::Locked { .. })));
    }
}
