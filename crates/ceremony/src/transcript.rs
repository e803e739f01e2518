//! The transcript: a JSON object a line, each with the hash of the one before and signed by all who were there. Pure.
//!
//! ```text
//! {"entry":{"number":1,"previous":"…","at":"…","present":["alice",…],"did":"make-key",…},"hash":"…","signatures":["…",…]}
//! ```
//! `hash` is SHA-256 of the entry's own bytes, `previous` the hash of the line before it (of a ceremony's first line, the
//! hash the vault or token remembered). A line is taken only as it would be written: any other byte in it is found.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::{
    action::{CeremonyAction, Key},
    hexadecimal::{hex, unhex},
    roster::{Participant, Present, Roster, RosterError},
};

/// Before what is signed: a signature of a transcript is nothing else's.
const SIGNED_AS: &[u8] = b"pinseal ceremony transcript 2\0";

/// One line's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// 1, 2, 3 …
    pub number: u64,
    /// The hash before it.
    pub previous: String,
    /// When, in UTC.
    pub at: String,
    /// Who was there.
    pub present: Vec<String>,
    /// What was done.
    #[serde(flatten)]
    pub action: CeremonyAction,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    entry: Entry,
    hash: String,
    /// Of each who was there, in the same order.
    signatures: Vec<String>,
}

/// A transcript that was checked from its first line to its last.
#[derive(Debug)]
pub struct Transcript {
    /// Who may take part.
    pub roster: Roster,
    /// What was done.
    pub entries: Vec<Entry>,
    /// The hash of the last line.
    pub head: [u8; 32],
}

impl Transcript {
    /// Whether its last entry says that nothing follows.
    pub fn has_ended(&self) -> bool {
        self.entries.last().is_some_and(|entry| entry.action == CeremonyAction::End)
    }

    /// Checks every line: form, chain, signatures, who was there, and what may become of a key.
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
            if hash != hex(&found) {
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
            let previous = read.as_ref().map_or(entry.previous.clone(), |read| hex(&read.head));
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

/// A line to be written after `previous`, and its hash; none unless all who are there have signed it.
pub fn line(
    previous: [u8; 32],
    number: u64,
    at: String,
    present: &[Present],
    action: CeremonyAction,
) -> Result<(String, [u8; 32]), RosterError> {
    let names = present.iter().map(|present| present.person.name.clone()).collect();
    let entry = Entry { number, previous: hex(&previous), at, present: names, action };
    let hash = hash_of(&entry);
    let signatures = present.iter().map(|present| present.sign(&message(&hash))).collect::<Result<_, _>>()?;
    let line = Line { entry, hash: hex(&hash), signatures };
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
    let signed = |(person, signature): (&Participant, &String)| matches!((person.public(), unhex(signature)), (Some(public), Some(signature)) if public.signed(&message(hash), &signature));
    present.len() == signatures.len() && present.iter().zip(signatures).all(signed)
}

/// What has become of each key so far.
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

/// Why a transcript is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TranscriptError {
    /// There is nothing.
    #[error("the transcript is empty")]
    Empty,
    /// Some line breaks it.
    #[error("line {line} {problem}")]
    Line {
        /// Which, from 1.
        line: u64,
        /// Why.
        problem: Problem,
    },
}

/// What breaks a line.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// No end of line.
    #[error("is cut short")]
    CutShort,
    /// Not as it would be written.
    #[error("is not as a transcript's line is written: it was changed")]
    Unreadable,
    /// Its hash is another.
    #[error("was changed: its hash is another")]
    Changed,
    /// It does not follow.
    #[error("does not follow the one before it: a line is missing, moved or added")]
    OutOfPlace,
    /// Somebody who is not on the roster.
    #[error("names somebody who is not on the roster")]
    Stranger,
    /// Not enough people, or a roster that can't be.
    #[error("was not allowed: {0}")]
    Roster(String),
    /// Somebody did not sign this.
    #[error("is not signed by all who were there")]
    Signature,
    /// What it tells of the key can't be.
    #[error("tells of a key what can't have become of it")]
    Impossible,
}
