//! An open ceremony: the participants present, the vault or token, and the transcript, all of which agree.
//!
//! A step is written in this order: its line in a file beside the transcript; the vault or the token's inventory, with the
//! line's hash and the mark of an unfinished step; the line in the transcript; the mark removed. The next step on the
//! transcript finishes a step that stopped in between. Until then no other transcript can begin.

use std::{
    io,
    path::{Path, PathBuf},
};

use hsm::{KeyStore, KeyStoreError};
use thiserror::Error;

use super::{
    action::{CeremonyAction, Key},
    participant_key::{self, ParticipantKeyError},
    roster::{Participant, Present, Role, Roster, RosterError, Step},
    transcript::{self, Transcript, TranscriptError},
    transcript_file::{TranscriptFile, TranscriptFileError},
};

/// One step of a ceremony: the participants, the keys that they change, and the transcript.
pub struct Session {
    roster: Roster,
    present: Vec<Present>,
    /// The keys. A change stays in memory until [`Session::record`] commits it.
    pub store: KeyStore,
    // Dropped last: the lock on the transcript outlasts all else.
    transcript: TranscriptFile,
    number: u64,
    head: [u8; 32],
}

impl Session {
    /// Begins a ceremony: a new transcript, and the keys in the custody of a roster. Pass the returned action to
    /// [`Session::record`]: until then nothing is written.
    ///
    /// # Errors
    /// The transcript has lines, an earlier step is unfinished, the keys are in the custody of another roster, or the
    /// participants present are not enough.
    pub fn begin(
        mut store: KeyStore,
        transcript: TranscriptFile,
        roster: Roster,
        keys: &[PathBuf],
    ) -> Result<(Self, CeremonyAction), SessionError> {
        if !transcript.text().is_empty() {
            return Err(SessionError::Exists { path: transcript.path().to_owned() });
        }
        if store.is_unfinished() {
            return Err(SessionError::Unfinished);
        }
        if transcript.pending()?.is_some() {
            return Err(SessionError::Pending { path: transcript.next() });
        }
        let present = present(&roster, keys, Step::Frame)?;
        match store.roster_hash() {
            Some(custody) if custody != roster.hash() => return Err(SessionError::OtherRoster),
            Some(_) => {}
            None => store.set_roster(roster.hash()),
        }
        let head = store.last_entry();
        let action = CeremonyAction::Begin { roster: roster.clone(), keys: store.keys().map(Key::of).collect() };
        Ok((Self { roster, present, store, transcript, number: 0, head }, action))
    }

    /// Continues a ceremony. Nothing is written before enough participants are present; then a step that stopped before its
    /// line was in the transcript is finished.
    ///
    /// # Errors
    /// The transcript is malformed, has ended or does not belong to these keys, the participants present are not enough, or
    /// the unfinished step can't be finished.
    pub fn go_on(
        mut store: KeyStore,
        mut transcript: TranscriptFile,
        keys: &[PathBuf],
        step: Step,
    ) -> Result<Self, SessionError> {
        let pending = transcript.pending()?;
        let (read, missing) = up_to_date(&transcript, pending.as_deref(), &store)?;
        if read.has_ended() && missing.is_none() && !store.is_unfinished() {
            return Err(SessionError::Ended { path: transcript.path().to_owned() });
        }
        let present = present(&read.roster, keys, step)?;
        let still_missing = |transcript: &TranscriptFile, error| SessionError::StillMissing {
            path: transcript.path().to_owned(),
            error,
        };
        if let Some(line) = missing {
            transcript.append(line).map_err(|error| still_missing(&transcript, Box::new(error)))?;
        }
        if store.is_unfinished() {
            store.finish().map_err(|error| still_missing(&transcript, Box::new(error)))?;
        }
        // The keys store the hash of the transcript's last line: a pending line with another hash belongs to a step not done.
        if pending.is_some() {
            transcript.remove_pending()?;
        }
        if read.has_ended() {
            return Err(SessionError::Ended { path: transcript.path().to_owned() });
        }
        let Transcript { roster, entries, head } = read;
        let number = u64::try_from(entries.len()).unwrap_or(u64::MAX);
        Ok(Self { roster, present, store, transcript, number, head })
    }

    /// The names of the custodians present, in the order of their keys.
    pub fn custodians(&self) -> Vec<String> {
        let custodians = self.present.iter().filter(|present| present.person.role == Role::Custodian);
        custodians.map(|present| present.person.name.clone()).collect()
    }

    /// The path of the transcript.
    pub fn transcript(&self) -> &Path {
        self.transcript.path()
    }

    /// Commits the changed keys and appends the signed action to the transcript. Both are on disk when this returns.
    ///
    /// # Errors
    /// Nothing changed, except where [`SessionError::is_done_in_part`] says so.
    pub fn record(&mut self, action: CeremonyAction) -> Result<(), SessionError> {
        let people: Vec<Participant> = self.present.iter().map(|present| present.person.clone()).collect();
        self.roster.allows(action.step(), &people)?;
        let (number, at) = (self.number + 1, jiff::Timestamp::now().to_string());
        let (line, hash) = transcript::line(self.head, number, at, &self.present, action)?;
        self.transcript.keep_pending(&line)?;
        let path = || self.transcript.path().to_owned();
        if let Err(error) = self.store.commit(hash) {
            if error.may_have_changed() {
                return Err(SessionError::Unsure { path: path(), error });
            }
            // The line of a step not done: one that stays refuses the same `begin`, and is removed by any other step.
            let _ = self.transcript.remove_pending();
            return Err(SessionError::Store(error));
        }
        let appended = self.transcript.append(&line);
        let path = || self.transcript.path().to_owned();
        appended.map_err(|error| SessionError::LineMissing { path: path(), error })?;
        self.store.finish().map_err(|error| SessionError::Unmarked { path: path(), error })?;
        // One that stays is found to be in the transcript, and removed by the next step.
        let _ = self.transcript.remove_pending();
        (self.number, self.head) = (number, hash);
        Ok(())
    }
}

fn present(roster: &Roster, keys: &[PathBuf], step: Step) -> Result<Vec<Present>, SessionError> {
    let keys = keys.iter().map(|path| participant_key::read(path)).collect::<Result<Vec<_>, _>>()?;
    let present = roster.present(keys)?;
    let people: Vec<Participant> = present.iter().map(|present| present.person.clone()).collect();
    roster.allows(step, &people)?;
    Ok(present)
}

/// The transcript whose last line has the hash that the keys store; and the pending line, where the file lacks it.
fn up_to_date<'line>(
    file: &TranscriptFile,
    pending: Option<&'line str>,
    store: &KeyStore,
) -> Result<(Transcript, Option<&'line str>), SessionError> {
    let remembered =
        |read: &Transcript| store.roster_hash() == Some(read.roster.hash()) && read.head == store.last_entry();
    let read = Transcript::read(file.text());
    if let Ok(read) = read
        && remembered(&read)
    {
        return Ok((read, None));
    }
    let whole = pending.and_then(|line| Some((line, Transcript::read(&file.text_with(line)?).ok()?)));
    if let Some((line, read)) = whole
        && remembered(&read)
    {
        return Ok((read, Some(line)));
    }
    match Transcript::read(file.text())?.roster.hash() {
        roster if store.roster_hash() == Some(roster) => {
            Err(SessionError::OtherTranscript { path: file.path().to_owned() })
        }
        _ => Err(SessionError::OtherRoster),
    }
}

/// The end of every error of a step that was done in part: what to do next.
const GO_ON: &str =
    "run any step again on this transcript: it recovers the line; `pinseal ceremony list` shows the keys";

/// A step failed. Nothing was done, except where [`SessionError::is_done_in_part`] says so.
#[derive(Debug, Error)]
pub enum SessionError {
    /// A new ceremony was to begin on a transcript with lines.
    #[error("{} has lines already: name a new file for a new ceremony", path.display())]
    Exists {
        /// The path of the transcript.
        path: PathBuf,
    },
    /// The transcript has its last line.
    #[error("the ceremony of {} has ended: begin another", path.display())]
    Ended {
        /// The path of the transcript.
        path: PathBuf,
    },
    /// The vault or token stores the hash of another roster.
    #[error("the keys are in the custody of another roster: use the roster and transcript of their last ceremony")]
    OtherRoster,
    /// The last line is not the one whose hash the keys store.
    #[error("{} does not record the keys' last change: it belongs to another ceremony, or was cut; use the last transcript", path.display())]
    OtherTranscript {
        /// The path of the transcript.
        path: PathBuf,
    },
    /// The transcript fails a check.
    #[error("the transcript is refused: {0}")]
    Transcript(#[from] TranscriptError),
    /// The roster does not allow the step with these participants.
    #[error(transparent)]
    Roster(#[from] RosterError),
    /// A participant's key can't be read.
    #[error(transparent)]
    Participant(#[from] ParticipantKeyError),
    /// The vault or token can't be read or written.
    #[error(transparent)]
    Store(#[from] KeyStoreError),
    /// The transcript's file can't be read, written or locked.
    #[error(transparent)]
    File(#[from] TranscriptFileError),
    /// The keys store the hash of a line that its transcript may lack. The keys do not know that transcript's path.
    #[error(
        "a step of the ceremony before is unfinished: its line may be in no transcript; run any step on that transcript \
         first, it recovers the line"
    )]
    Unfinished,
    /// A pending line beside an empty transcript: of a ceremony that did not begin, or of other keys.
    #[error(
        "{} holds the line of a step that is in no transcript: any step on that transcript, with the configuration of \
         its keys, recovers it; where that is refused too, the step was not done: move the file away and begin again, or \
         name another transcript",
        path.display()
    )]
    Pending {
        /// The path of the file with the line.
        path: PathBuf,
    },
    /// The line of the step before can't be appended. This step did nothing.
    #[error(
        "nothing was done: the step before changed the keys, and its line is not yet settled in {}: {error}; run this step \
         again when that is repaired",
        path.display()
    )]
    StillMissing {
        /// The path of the transcript.
        path: PathBuf,
        /// The reason of the vault, token or file.
        error: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The keys may have changed: the write failed, and its outcome is not known.
    #[error("the keys may have changed, and {} has no line of it yet: {error}; {GO_ON}", path.display())]
    Unsure {
        /// The path of the transcript.
        path: PathBuf,
        /// The vault's or the token's reason.
        error: KeyStoreError,
    },
    /// The keys changed; the line is not in the transcript.
    #[error("the step was done, but its line is not in {}: {error}; {GO_ON}", path.display())]
    LineMissing {
        /// The path of the transcript.
        path: PathBuf,
        /// The operating system's reason.
        error: io::Error,
    },
    /// The keys changed and the line is in the transcript; the keys still have the mark of an unfinished step.
    #[error(
        "the step was done, and its line is in {}, but the keys are still marked as unfinished: {error}; {GO_ON}",
        path.display()
    )]
    Unmarked {
        /// The path of the transcript.
        path: PathBuf,
        /// The vault's or the token's reason.
        error: KeyStoreError,
    },
}

impl SessionError {
    /// Whether the failed step changed the keys, or may have.
    pub fn is_done_in_part(&self) -> bool {
        matches!(self, Self::Unsure { .. } | Self::LineMissing { .. } | Self::Unmarked { .. })
    }
}
