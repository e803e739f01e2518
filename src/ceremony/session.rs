//! A ceremony under way: who is there, the vault or token, and the transcript, all of which agree.
//!
//! A step is kept in this order: its line in a file beside the transcript, the vault or the token's register with the line's
//! hash, the line in the transcript. Whoever finds the first two without the third finishes what was begun.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use hsm::{KeyStore, KeyStoreError};
use thiserror::Error;

use super::{
    deed::{Deed, Key},
    person::{self, BringError},
    roster::{Person, Present, Role, Roster, RosterError, Step},
    transcript::{self, Transcript, TranscriptError},
};

/// Those who are there, what they change, and where it is told.
pub(super) struct Session {
    roster: Roster,
    present: Vec<Present>,
    pub(super) store: KeyStore,
    transcript: PathBuf,
    number: u64,
    head: [u8; 32],
}

impl Session {
    /// Begins a ceremony: a new transcript, and the keys in the custody of a roster. The deed is to be recorded first.
    pub(super) fn begin(
        mut store: KeyStore,
        transcript: &Path,
        roster: Roster,
        keys: &[PathBuf],
    ) -> Result<(Self, Deed), SessionError> {
        if transcript.exists() {
            return Err(SessionError::Exists { path: transcript.to_owned() });
        }
        let present = present(&roster, keys, Step::Frame)?;
        match store.custody() {
            Some(custody) if custody != roster.hash() => return Err(SessionError::OtherRoster),
            Some(_) => {}
            None => store.take_into_custody(roster.hash()),
        }
        let head = store.last_entry();
        let deed = Deed::Begin { roster: roster.clone(), keys: store.keys().map(Key::of).collect() };
        Ok((Self { roster, present, store, transcript: transcript.to_owned(), number: 0, head }, deed))
    }

    /// Goes on with one.
    pub(super) fn go_on(
        store: KeyStore,
        transcript: &Path,
        keys: &[PathBuf],
        step: Step,
    ) -> Result<Self, SessionError> {
        let read = Transcript::read(&finished(transcript, &store)?)?;
        if read.has_ended() {
            return Err(SessionError::Ended { path: transcript.to_owned() });
        }
        let Transcript { roster, entries, head } = read;
        if store.custody() != Some(roster.hash()) {
            return Err(SessionError::OtherRoster);
        }
        if store.last_entry() != head {
            return Err(SessionError::OtherTranscript { path: transcript.to_owned() });
        }
        let present = present(&roster, keys, step)?;
        let number = u64::try_from(entries.len()).unwrap_or(u64::MAX);
        Ok(Self { roster, present, store, transcript: transcript.to_owned(), number, head })
    }

    /// The custodians who are there, in the order they were named.
    pub(super) fn custodians(&self) -> Vec<String> {
        let custodians = self.present.iter().filter(|present| present.person.role == Role::Custodian);
        custodians.map(|present| present.person.name.clone()).collect()
    }

    /// Tells what was done; it is done once this returns. Where somebody can't sign, nothing is written.
    pub(super) fn record(&mut self, deed: Deed) -> Result<(), SessionError> {
        let people: Vec<Person> = self.present.iter().map(|present| present.person.clone()).collect();
        self.roster.allows(deed.step(), &people)?;
        let (number, at) = (self.number + 1, jiff::Timestamp::now().to_string());
        let (line, hash) = transcript::line(self.head, number, at, &self.present, deed)?;
        let next = next(&self.transcript);
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| SessionError::Io { path, error }
        };
        write(&next, &line, OpenOptions::new().write(true).create(true).truncate(true)).map_err(io(&next))?;
        self.store.commit(hash)?;
        append(&self.transcript, &line).map_err(io(&self.transcript))?;
        fs::remove_file(&next).map_err(io(&next))?;
        (self.number, self.head) = (number, hash);
        Ok(())
    }
}

fn present(roster: &Roster, keys: &[PathBuf], step: Step) -> Result<Vec<Present>, SessionError> {
    let keys = keys.iter().map(|path| person::bring(path)).collect::<Result<Vec<_>, _>>()?;
    let present = roster.present(keys)?;
    let people: Vec<Person> = present.iter().map(|present| present.person.clone()).collect();
    roster.allows(step, &people)?;
    Ok(present)
}

/// The transcript's text, with the line that a process which died had written but not put there.
fn finished(path: &Path, store: &KeyStore) -> Result<String, SessionError> {
    let io = |error| SessionError::Io { path: path.to_owned(), error };
    let mut text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && next(path).exists() => String::new(),
        read => read.map_err(io)?,
    };
    let Ok(line) = fs::read_to_string(next(path)) else { return Ok(text) };
    // A line that was torn on its way is written again, whole.
    text.truncate(text.rfind('\n').map_or(0, |at| at + 1));
    let whole = text.clone() + &line;
    let told = Transcript::read(&whole).is_ok_and(|read| read.head == store.last_entry());
    if told {
        write(path, &whole, OpenOptions::new().write(true).create(true).truncate(true)).map_err(io)?;
        text = whole;
    }
    fs::remove_file(next(path)).map_err(io)?;
    Ok(text)
}

fn next(transcript: &Path) -> PathBuf {
    let mut name = transcript.as_os_str().to_owned();
    name.push(".next");
    name.into()
}

fn append(path: &Path, line: &str) -> io::Result<()> {
    write(path, line, OpenOptions::new().append(true).create(true))?;
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

fn write(path: &Path, text: &str, how: &mut OpenOptions) -> io::Result<()> {
    let mut file = how.mode(0o644).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Why a ceremony does not go on. Nothing was done.
#[derive(Debug, Error)]
pub enum SessionError {
    /// There is one already.
    #[error("{} is there already: a ceremony has a transcript of its own", path.display())]
    Exists {
        /// The transcript.
        path: PathBuf,
    },
    /// It has ended.
    #[error("the ceremony of {} has ended: begin another", path.display())]
    Ended {
        /// The transcript.
        path: PathBuf,
    },
    /// Somebody else's.
    #[error("the keys are in the custody of another roster")]
    OtherRoster,
    /// It does not tell of the last change.
    #[error("{} does not tell of the keys' last change: it is another ceremony's, or was cut", path.display())]
    OtherTranscript {
        /// The transcript.
        path: PathBuf,
    },
    /// The transcript.
    #[error("the transcript is refused: {0}")]
    Transcript(#[from] TranscriptError),
    /// Who is there.
    #[error(transparent)]
    Roster(#[from] RosterError),
    /// Somebody's key.
    #[error(transparent)]
    Person(#[from] BringError),
    /// The keys.
    #[error(transparent)]
    Store(#[from] KeyStoreError),
    /// A file.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}
