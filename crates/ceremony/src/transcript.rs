//! The transcript: one JSON object a line, each with the hash of the line before and signed by all who were present.
//!
//! ```text
//! {"entry":{"number":1,"previous":"…","at":"…","present":["alice",…],"did":"make-key",…},"hash":"…","signatures":["…",…]}
//! ```
//! `hash` is SHA-256 of the entry's bytes, `previous` the hash of the line before (in the first line of a ceremony, the hash
//! that the vault or token stores). The reader accepts a line only byte for byte as the writer writes it.

use std::collections::HashMap;

use base16ct::lower;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::{
    action::{CeremonyAction, Key},
    roster::{Participant, Present, Roster, RosterError, decode_exact},
};

/// The prefix of every signed message. It keeps a transcript's signature from being valid for any other purpose.
const SIGNED_AS: &[u8] = b"pinseal ceremony transcript 2\0";

/// The signed content of one line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The number of the line, from 1.
    pub number: u64,
    /// The hash of the line before: 64 lower-case hexadecimal digits.
    pub previous: String,
    /// The time in UTC (RFC 3339).
    pub at: String,
    /// The names of the participants who were present.
    pub present: Vec<String>,
    /// The completed action.
    #[serde(flatten)]
    pub action: CeremonyAction,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    entry: Entry,
    hash: String,
    /// One signature for each name in `present`, in the same order.
    signatures: Vec<String>,
}

/// A transcript that was checked from its first line to its last.
#[derive(Debug)]
pub struct Transcript {
    /// The roster of the first line.
    pub roster: Roster,
    /// The entries, in order; at least one.
    pub entries: Vec<Entry>,
    /// The hash of the last line: SHA-256 of its entry.
    pub head: [u8; 32],
}

impl Transcript {
    /// Whether the last entry ends the ceremony.
    pub fn has_ended(&self) -> bool {
        self.entries.last().is_some_and(|entry| entry.action == CeremonyAction::End)
    }

    /// Reads a transcript and checks every line: format, chain, signatures, participants and key states.
    ///
    /// # Errors
    /// The text is empty, or a line fails one of the checks.
    pub fn read(text: &str) -> Result<Self, TranscriptError> {
        let mut read: Option<Self> = None;
        let mut keys = Replay::default();
        for (number, line) in (1u64..).zip(text.split_inclusive('\n')) {
            let at = |problem| TranscriptError::Line { line: number, problem };
            let text = line.strip_suffix('\n').ok_or_else(|| at(Problem::CutShort))?;
            let line: Line = serde_json::from_str(text).map_err(|_| at(Problem::Unreadable))?;
            if serde_json::to_string(&line).ok().as_deref() != Some(text) {
                return Err(at(Problem::Unreadable));
            }
            let Line { entry, hash, signatures } = line;
            let found = hash_of(&entry);
            if hash != lower::encode_string(&found) {
                return Err(at(Problem::Changed));
            }
            let roster = match (&read, &entry.action) {
                (None, CeremonyAction::Begin { roster, .. }) => {
                    roster.check().map_err(|error| at(Problem::Roster(error.to_string())))?;
                    roster.clone()
                }
                (Some(read), action) if !matches!(action, CeremonyAction::Begin { .. }) && !read.has_ended() => {
                    read.roster.clone()
                }
                _ => return Err(at(Problem::OutOfPlace)),
            };
            let previous = read.as_ref().map_or(entry.previous.clone(), |read| lower::encode_string(&read.head));
            if (entry.number, &entry.previous) != (number, &previous) {
                return Err(at(Problem::OutOfPlace));
            }
            let present = people(&roster, &entry.present).ok_or_else(|| at(Problem::Stranger))?;
            roster.allows(entry.action.step(), &present).map_err(|error| at(Problem::Roster(error.to_string())))?;
            if !all_signed(&present, &found, &signatures) {
                return Err(at(Problem::Signature));
            }
            keys.play(&entry.action).map_err(at)?;
            let read = read.get_or_insert_with(|| Self { roster, entries: Vec::new(), head: found });
            read.entries.push(entry);
            read.head = found;
        }
        read.ok_or(TranscriptError::Empty)
    }
}

/// The signed line that follows the line with the hash `previous`, and its own hash.
///
/// # Errors
/// One of the participants present does not sign.
pub fn line(
    previous: [u8; 32],
    number: u64,
    at: String,
    present: &[Present],
    action: CeremonyAction,
) -> Result<(String, [u8; 32]), RosterError> {
    let names = present.iter().map(|present| present.person.name.clone()).collect();
    let entry = Entry { number, previous: lower::encode_string(&previous), at, present: names, action };
    let hash = hash_of(&entry);
    let signatures = present.iter().map(|present| present.sign(&message(&hash))).collect::<Result<_, _>>()?;
    let line = Line { entry, hash: lower::encode_string(&hash), signatures };
    Ok((serde_json::to_string(&line).unwrap_or_default() + "\n", hash))
}

fn hash_of(entry: &Entry) -> [u8; 32] {
    Sha256::digest(serde_json::to_string(entry).unwrap_or_default()).into()
}

fn message(hash: &[u8; 32]) -> Vec<u8> {
    [SIGNED_AS, hash].concat()
}

fn people(roster: &Roster, names: &[String]) -> Option<Vec<Participant>> {
    names.iter().map(|name| roster.person.iter().find(|person| person.name == *name).cloned()).collect()
}

fn all_signed(present: &[Participant], hash: &[u8; 32], signatures: &[String]) -> bool {
    let signed = |(person, signature): (&Participant, &String)| matches!((person.public(), decode_exact(signature)), (Some(public), Some(signature)) if public.verifies(&message(hash), &signature));
    present.len() == signatures.len() && present.iter().zip(signatures).all(signed)
}

/// The state of each key after the lines read so far.
#[derive(Default)]
struct Replay(HashMap<String, Key>);

impl Replay {
    fn play(&mut self, action: &CeremonyAction) -> Result<(), Problem> {
        let (key, from, to): (_, &[&str], _) = match action {
            CeremonyAction::Begin { keys, .. } => {
                self.0.extend(keys.iter().map(|key| (key.key.clone(), key.clone())));
                return Ok(());
            }
            CeremonyAction::MakeComponents { .. } | CeremonyAction::End => return Ok(()),
            CeremonyAction::MakeKey { key }
            | CeremonyAction::LoadKey { key, .. }
            | CeremonyAction::ImportKey { key, .. } => (key, &["none"], "pending"),
            CeremonyAction::ExportKey { key, .. } => (key, &["pending", "active"], &*key.state),
            CeremonyAction::Activate { key } => (key, &["pending"], "active"),
            CeremonyAction::Retire { key, .. } => (key, &["pending", "active"], "retired"),
            CeremonyAction::Destroy { key, .. } => (key, &["retired"], "destroyed"),
        };
        let before = self.0.get(&key.key);
        let same =
            before.is_none_or(|before| (&before.check_value, &before.algorithm) == (&key.check_value, &key.algorithm));
        if !from.contains(&before.map_or("none", |before| &*before.state)) || key.state != to || !same {
            return Err(Problem::Impossible);
        }
        self.0.insert(key.key.clone(), key.clone());
        Ok(())
    }
}

/// A transcript is rejected.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TranscriptError {
    /// The text has no line.
    #[error("the transcript is empty")]
    Empty,
    /// A line fails a check; the lines before it passed.
    #[error("line {line} {problem}")]
    Line {
        /// The number of the line, from 1.
        line: u64,
        /// The failed check.
        problem: Problem,
    },
}

/// The check that a line fails.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// The line has no line end.
    #[error("is cut short")]
    CutShort,
    /// The line is not byte for byte as the writer writes it.
    #[error("is not in the transcript's format: it was changed")]
    Unreadable,
    /// The hash in the line is not the hash of its entry.
    #[error("was changed: its hash does not match")]
    Changed,
    /// The number or the previous hash does not continue the line before.
    #[error("does not follow the line before it: a line is missing, moved or added")]
    OutOfPlace,
    /// A name is not on the roster.
    #[error("names a participant who is not on the roster")]
    Stranger,
    /// The roster is invalid, or does not allow the step with these participants.
    #[error("was not allowed: {0}")]
    Roster(String),
    /// A signature is absent or wrong.
    #[error("is not signed by all participants present")]
    Signature,
    /// The key can't be in the stated state after the lines before.
    #[error("states a change of a key that its earlier state does not allow")]
    Impossible,
}
