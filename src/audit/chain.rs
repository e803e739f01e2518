//! Checking a chain: a changed, cut or reordered entry is found, and which one it is.
//!
//! The chain is not keyed. One who can rewrite all of it can make another that holds: a checkpoint kept elsewhere tells.

use std::{fmt, str::FromStr};

use thiserror::Error;

use super::entry::{Entry, hex, unhex};

/// How far a chain goes, and what it ends in: enough to hold all of it to, when kept elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The number of the last entry; 0 for an empty chain.
    pub sequence: u64,
    /// Its hash; zeros for an empty chain.
    pub hash: [u8; 32],
}

impl Checkpoint {
    /// Of a chain without entries.
    pub const EMPTY: Self = Self { sequence: 0, hash: [0; 32] };
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sequence, hex(&self.hash))
    }
}

impl FromStr for Checkpoint {
    type Err = CheckpointError;

    fn from_str(text: &str) -> Result<Self, CheckpointError> {
        let (sequence, hash) = text.split_once(':').ok_or(CheckpointError)?;
        let sequence = sequence.parse().map_err(|_| CheckpointError)?;
        Ok(Self { sequence, hash: unhex(hash).map_err(|_| CheckpointError)? })
    }
}

/// The text is no checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a checkpoint is SEQUENCE:HASH, a number and 64 hexadecimal digits")]
pub struct CheckpointError;

/// A walk along a chain, from its first entry on.
pub struct Walk {
    reached: Checkpoint,
    expected: Vec<Checkpoint>,
}

impl Walk {
    /// Will hold the chain to these checkpoints, each kept elsewhere.
    pub fn expecting(expected: Vec<Checkpoint>) -> Self {
        Self { reached: Checkpoint::EMPTY, expected }
    }

    /// Takes the next entry.
    pub fn step(&mut self, entry: &Entry) -> Result<(), ChainError> {
        let due = self.reached.sequence.saturating_add(1);
        let at = |problem| Err(ChainError { sequence: due, problem });
        if entry.sequence != due {
            return at(Problem::Order { found: entry.sequence });
        }
        if !entry.is_whole() {
            return at(Problem::Changed);
        }
        if entry.previous != self.reached.hash {
            return at(Problem::Unlinked);
        }
        self.reached = Checkpoint { sequence: entry.sequence, hash: entry.hash };
        match self.expected.iter().find(|expected| expected.sequence == entry.sequence) {
            Some(expected) if expected.hash != entry.hash => at(Problem::OtherThanExpected),
            _ => Ok(()),
        }
    }

    /// No entry is left: whether the chain goes as far as it was expected to.
    pub fn end(self) -> Result<Checkpoint, ChainError> {
        match self.expected.iter().find(|expected| expected.sequence > self.reached.sequence) {
            Some(expected) => Err(ChainError {
                sequence: self.reached.sequence.saturating_add(1),
                problem: Problem::Cut { expected: expected.sequence },
            }),
            None => Ok(self.reached),
        }
    }
}

/// Where a chain breaks, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("audit entry {sequence}: {problem}")]
pub struct ChainError {
    /// The number of the entry that should stand here.
    pub sequence: u64,
    /// What is wrong with it.
    pub problem: Problem,
}

/// How a chain breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// Another number.
    #[error("number {found} stands in its place: an entry was cut out, doubled or moved")]
    Order {
        /// The number found.
        found: u64,
    },
    /// Its hash is not of what it says.
    #[error("it was changed: its hash is not the hash of what it says")]
    Changed,
    /// It does not follow the entry before.
    #[error("it does not follow the entry before it: one of the two was replaced")]
    Unlinked,
    /// It is not what the checkpoint says.
    #[error("its hash is not the expected one: the chain was rewritten up to here")]
    OtherThanExpected,
    /// The chain ends too soon.
    #[error("it is missing: the chain was expected to go on to {expected}")]
    Cut {
        /// How far.
        expected: u64,
    },
    /// It can't be read.
    #[error("it can't be read")]
    Unreadable,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        audit::entry::{Action, Line, Outcome},
        card::Tenant,
        clock::UnixMillis,
        control::ControlId,
    };

    fn line(number: u64) -> Line {
        Line {
            at: UnixMillis(1_790_000_000_000 + number),
            caller: "edge-1".into(),
            tenant: number.is_multiple_of(2).then(|| Tenant::parse("bank").unwrap()),
            audit_user: format!("user \"{number}\" ü").into(),
            action: Action::SetPin,
            card: "411111******1111".into(),
            control: number.is_multiple_of(3).then(ControlId::random),
            keys: "storage/1:A1B2C3".into(),
            formats: "iso-1>iso-4".into(),
            boundary: "host/software".into(),
            outcome: Outcome::Done,
        }
    }

    fn chain(length: u64) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        for sequence in 1..=length {
            let previous = entries.last().map_or([0; 32], |entry| entry.hash);
            entries.push(Entry::chain(sequence, previous, line(sequence)));
        }
        entries
    }

    fn verify(entries: &[Entry], expected: Vec<Checkpoint>) -> Result<Checkpoint, ChainError> {
        let mut walk = Walk::expecting(expected);
        entries.iter().try_for_each(|entry| walk.step(entry))?;
        walk.end()
    }

    #[test]
    fn a_whole_chain_verifies_and_ends_in_its_checkpoint() {
        let entries = chain(20);
        let end = verify(&entries, Vec::new()).unwrap();
        assert_eq!(end, Checkpoint { sequence: 20, hash: entries[19].hash });
        assert_eq!(end.to_string().parse(), Ok(end));
    }

    #[test]
    fn an_entry_survives_both_of_its_forms() {
        for entry in chain(7) {
            assert_eq!(Entry::decode(&entry.encode()), Ok(entry.clone()));
            assert_eq!(Entry::from_json(&entry.to_json()), Ok(entry));
        }
    }

    #[test]
    fn a_changed_entry_is_named_whichever_of_its_bytes_was_changed() {
        let entries = chain(5);
        let stored = entries[2].encode();
        for at in 0..stored.len() {
            let mut changed = stored.clone();
            changed[at] ^= 1;
            let Ok(entry) = Entry::decode(&changed) else { continue };
            let mut entries = entries.clone();
            entries[2] = entry;
            let error = verify(&entries, Vec::new()).unwrap_err();
            assert_eq!(error.sequence, 3, "byte {at}: {error}");
        }
    }

    #[test]
    fn a_cut_doubled_or_moved_entry_is_named() {
        let mut cut = chain(5);
        cut.remove(2);
        assert_eq!(verify(&cut, Vec::new()), Err(ChainError { sequence: 3, problem: Problem::Order { found: 4 } }));
        let mut doubled = chain(5);
        doubled.insert(3, doubled[2].clone());
        assert_eq!(verify(&doubled, Vec::new()).unwrap_err().sequence, 4);
        let mut moved = chain(5);
        moved.swap(1, 3);
        assert_eq!(verify(&moved, Vec::new()).unwrap_err().sequence, 2);
    }

    #[test]
    fn a_replaced_entry_with_a_hash_of_its_own_breaks_the_link_behind_it() {
        let mut entries = chain(5);
        entries[2] = Entry::chain(3, entries[1].hash, line(77));
        assert_eq!(verify(&entries, Vec::new()), Err(ChainError { sequence: 4, problem: Problem::Unlinked }));
    }

    #[test]
    fn a_cut_tail_and_a_rewritten_chain_are_told_by_a_checkpoint_kept_elsewhere() {
        let entries = chain(5);
        let end = verify(&entries, Vec::new()).unwrap();
        let cut = verify(&entries[..3], vec![end]).unwrap_err();
        assert_eq!(cut, ChainError { sequence: 4, problem: Problem::Cut { expected: 5 } });
        let rewritten = verify(&chain(6), vec![end]).unwrap_err();
        assert_eq!(rewritten, ChainError { sequence: 5, problem: Problem::OtherThanExpected });
    }
}
