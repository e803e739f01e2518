//! The file of a transcript, locked for a whole step, and `FILE.next` beside it: the line of the unfinished step.
//!
//! No byte of the transcript is ever overwritten or cut: a line is appended, and of a line that is there in part, the rest.
//! `FILE.next` is written beside and renamed, and removed only when its line is on disk in the transcript.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use thiserror::Error;

/// A transcript that no other step reads or writes until this is dropped (`flock(2)` on the file).
pub struct TranscriptFile {
    /// Every symbolic link is resolved, so that `FILE.next` has one place.
    path: PathBuf,
    file: File,
    /// Of a torn last line that is cut inside a character, U+FFFD stands for that character.
    text: String,
    /// What stands after the last end of a line, byte for byte.
    torn: Vec<u8>,
    created: bool,
}

impl TranscriptFile {
    /// Locks and reads the transcript of a ceremony that has begun.
    ///
    /// # Errors
    /// Another step holds the lock, or the file can't be opened or read.
    pub fn open(path: &Path) -> Result<Self, TranscriptFileError> {
        Self::lock(path, beside(path, ".next").exists())
    }

    /// Locks the transcript of a ceremony that is about to begin. An empty file is created; it is removed again when
    /// nothing was written.
    ///
    /// # Errors
    /// Another step holds the lock, or the file can't be created, opened or read.
    pub fn create(path: &Path) -> Result<Self, TranscriptFileError> {
        Self::lock(path, true)
    }

    fn lock(path: &Path, create: bool) -> Result<Self, TranscriptFileError> {
        let io = |error| TranscriptFileError::Io { path: path.to_owned(), error };
        let busy = || TranscriptFileError::Busy { path: path.to_owned() };
        let created = create && !path.exists();
        let mut file = OpenOptions::new().read(true).append(true).create(create).mode(0o644).open(path).map_err(io)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => busy(),
            TryLockError::Error(error) => io(error),
        })?;
        // Another step may have removed the empty file of a refused `begin` between the opening and the lock.
        let (locked, named) = (file.metadata().map_err(io)?, fs::metadata(path).map_err(|_| busy())?);
        if (locked.dev(), locked.ino()) != (named.dev(), named.ino()) {
            return Err(busy());
        }
        let path = fs::canonicalize(path).map_err(io)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        let torn = bytes.split_off(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1));
        let lines = String::from_utf8(bytes).map_err(|error| io(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        let text = lines + &String::from_utf8_lossy(&torn);
        Ok(Self { path, file, text, torn, created })
    }

    /// The path of the file, without symbolic links.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The content of the file.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The content with this line appended; `None` where the last line is torn and is not the beginning of this one.
    pub fn text_with(&self, line: &str) -> Option<String> {
        line.as_bytes().starts_with(&self.torn).then(|| self.whole_lines().to_owned() + line)
    }

    /// The line of an unfinished step; `None` where there is no such step.
    ///
    /// # Errors
    /// `FILE.next` exists and can't be read.
    pub fn pending(&self) -> Result<Option<String>, TranscriptFileError> {
        let path = self.next();
        match fs::read_to_string(&path) {
            Ok(line) => Ok(Some(line)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(TranscriptFileError::Io { path, error }),
        }
    }

    /// Writes the line of a step to `FILE.next` and syncs it.
    ///
    /// # Errors
    /// The line can't be written. No pending line is left.
    pub fn keep_pending(&self, line: &str) -> Result<(), TranscriptFileError> {
        let (fresh, next) = (beside(&self.path, ".next.new"), self.next());
        let written = write_new(&fresh, line).and_then(|()| fs::rename(&fresh, &next)).and_then(|()| self.sync_names());
        written.map_err(|error| {
            // One that stays is overwritten by the next step. Its own step does nothing, so it leaves no pending line.
            let _ = fs::remove_file(&fresh);
            let _ = fs::remove_file(&next);
            TranscriptFileError::Io { path: next, error }
        })
    }

    /// Appends the part of this line that the file lacks, and syncs it.
    ///
    /// # Errors
    /// The line can't be written, or the file ends in a torn line that is not the beginning of this one.
    pub fn append(&mut self, line: &str) -> io::Result<()> {
        let rest = line.as_bytes().strip_prefix(&self.torn[..]).ok_or(io::ErrorKind::InvalidData)?;
        self.file.write_all(rest)?;
        self.file.sync_all()?;
        self.sync_names()?;
        self.text = self.whole_lines().to_owned() + line;
        self.torn.clear();
        Ok(())
    }

    /// Removes `FILE.next`. Its line is in the transcript, or its step was not done.
    ///
    /// # Errors
    /// The file can't be removed.
    pub fn remove_pending(&self) -> Result<(), TranscriptFileError> {
        let path = self.next();
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(TranscriptFileError::Io { path, error }),
            _ => Ok(()),
        }
    }

    /// The path of `FILE.next`.
    pub fn next(&self) -> PathBuf {
        beside(&self.path, ".next")
    }

    fn whole_lines(&self) -> &str {
        let end = self.text.rfind('\n').map_or(0, |at| at + 1);
        self.text.get(..end).unwrap_or_default()
    }

    fn sync_names(&self) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        File::open(directory)?.sync_all()
    }
}

impl Drop for TranscriptFile {
    /// Removes the file that a refused `begin` created, while the lock is still held.
    fn drop(&mut self) {
        let empty = self.file.metadata().is_ok_and(|file| file.len() == 0);
        if self.created && empty && !self.next().exists() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// A transcript's file can't be used. The transcript is unchanged.
#[derive(Debug, Error)]
pub enum TranscriptFileError {
    /// Another process holds the lock.
    #[error("another step is under way on {}: wait until it has ended, then run this one again", path.display())]
    Busy {
        /// The path of the transcript.
        path: PathBuf,
    },
    /// A file or directory can't be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The path of the file or directory.
        path: PathBuf,
        /// The operating system's reason.
        error: io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_torn_inside_a_character_is_completed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("transcript.jsonl");
        let (first, line) = ("{\"name\":\"Zoë\"}\n", "{\"name\":\"José\"}\n");
        for end in 0..line.len() {
            fs::write(&path, [first.as_bytes(), &line.as_bytes()[..end]].concat()).unwrap();
            let mut file = TranscriptFile::open(&path).unwrap();
            assert_eq!(file.text_with("another\n").is_some(), end == 0, "{end}");
            assert_eq!(file.text_with(line).unwrap(), first.to_owned() + line);
            file.append(line).unwrap();
            assert_eq!(file.text(), first.to_owned() + line);
            assert_eq!(fs::read_to_string(&path).unwrap(), file.text());
        }
    }

    #[test]
    fn lines_that_are_not_utf_8_are_rejected() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("transcript.jsonl");
        fs::write(&path, b"\xff\n{}\n").unwrap();
        assert!(matches!(TranscriptFile::open(&path), Err(TranscriptFileError::Io { .. })));
    }
}
