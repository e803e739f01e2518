//! Checking a chain: a changed, cut or reordered entry is found, and which one it is.
//!
//! The chain is not keyed. One who can rewrite all of it can make another that holds: a checkpoint kept elsewhere tells.

use std::{fmt, str::FromStr};

use thiserror::Error;

use super::entry::{Entry, EntryError, hex, unhex};

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
        let checkpoint = Self { sequence, hash: unhex(hash).map_err(|_| CheckpointError)? };
        // An empty chain has one checkpoint, and a number one text: no sign, no leading zero.
        let sound = (sequence > 0 || checkpoint == Self::EMPTY) && checkpoint.to_string() == text;
        sound.then_some(checkpoint).ok_or(CheckpointError)
    }
}

/// The text is no checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a checkpoint is SEQUENCE:HASH, a number and 64 lower-case hexadecimal digits; of an empty chain zeros alone")]
pub struct CheckpointError;

/// A walk along a chain, from its first entry on.
pub struct Walk {
    reached: Checkpoint,
    expected: Vec<Checkpoint>,
    head: Option<Checkpoint>,
}

impl Walk {
    /// Will hold the chain to these checkpoints, each kept elsewhere.
    pub fn expecting(expected: Vec<Checkpoint>) -> Self {
        Self { reached: Checkpoint::EMPTY, expected, head: None }
    }

    /// Will hold the chain to end in what its store names as its last entry.
    pub fn ending_in(self, head: Checkpoint) -> Self {
        Self { head: Some(head), ..self }
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
        let of_this = |expected: &&Checkpoint| expected.sequence == entry.sequence;
        if self.expected.iter().filter(of_this).any(|expected| expected.hash != entry.hash) {
            return at(Problem::OtherThanExpected);
        }
        Ok(())
    }

    /// Takes the next entry as a line of an export.
    ///
    /// # Errors
    /// As [`Walk::step`]; and of a line that is not the very text of an entry.
    pub fn step_json(&mut self, line: &[u8]) -> Result<(), ChainError> {
        let entry = std::str::from_utf8(line).map_err(|_| EntryError::Unreadable).and_then(Entry::from_json);
        let problem = match entry {
            Ok(entry) => return self.step(&entry),
            Err(EntryError::Unreadable) => Problem::Unreadable,
            Err(EntryError::Rewritten) => Problem::Rewritten,
        };
        Err(ChainError { sequence: self.reached.sequence.saturating_add(1), problem })
    }

    /// No entry is left: whether the chain goes as far as it was expected to.
    ///
    /// # Errors
    /// The chain is shorter than expected, or ends in another entry than the store's last; or it is empty, and
    /// [`Checkpoint::EMPTY`] is not among those expected.
    pub fn end(self) -> Result<Checkpoint, ChainError> {
        let at = |problem| Err(ChainError { sequence: self.reached.sequence.saturating_add(1), problem });
        let ends = self.expected.iter().chain(&self.head).map(|expected| expected.sequence);
        match ends.max() {
            Some(expected) if expected > self.reached.sequence => return at(Problem::Cut { expected }),
            _ => {}
        }
        if self.head.is_some_and(|head| head != self.reached) {
            return at(Problem::OtherThanHead);
        }
        if self.reached == Checkpoint::EMPTY && self.expected.is_empty() {
            return at(Problem::Empty);
        }
        Ok(self.reached)
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
    /// The store names another entry as the last.
    #[error("the store names another entry as the last than the one before: the store was changed")]
    OtherThanHead,
    /// The chain ends too soon.
    #[error("it is missing: the chain was expected to go on to {expected}")]
    Cut {
        /// How far.
        expected: u64,
    },
    /// It can't be read.
    #[error("it can't be read")]
    Unreadable,
    /// Its text is not the one that the engine writes for it.
    #[error("its text was changed: it says the same in other characters than the engine exports")]
    Rewritten,
    /// There is no entry.
    #[error(
        "it is missing: there are no entries, and nothing was verified; --expect 0:0000… (64 zeros) expects an empty chain"
    )]
    Empty,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::entry::{
        Action, BlockFormat, Body, CardEvent, Event, Formats, Isolation, KeyStamp, Level, Outcome, Stamp,
    };
    use domain::card::Tenant;
    use domain::control::ControlId;
    use domain::time::UnixMillis;

    fn event(number: u64) -> Event {
        let key = |usage: &str, kcv| KeyStamp { usage: usage.into(), version: 1, kcv };
        Event {
            at: UnixMillis(1_790_000_000_000 + number),
            caller: "edge-1".into(),
            tenant: number.is_multiple_of(2).then(|| Tenant::parse("bank").unwrap()),
            audit_user: format!("user \"{number}\" ü").into(),
            outcome: Outcome::Done,
            stamp: Arc::new(Stamp {
                level: Level::Host,
                token: "software".into(),
                isolation: Isolation::Process,
                keys: [key("storage", Some([0xA1, 0xB2, 0xC3])), key("seal", None)].into(),
            }),
            body: Body::Card(CardEvent {
                action: Action::SetPin,
                card: "411111******1111".into(),
                control: number.is_multiple_of(3).then(ControlId::random),
                formats: number.is_multiple_of(2).then_some(Formats { from: BlockFormat::Iso1, to: BlockFormat::Iso4 }),
            }),
        }
    }

    fn chain(length: u64) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        for sequence in 1..=length {
            let previous = entries.last().map_or([0; 32], |entry| entry.hash);
            entries.push(Entry::chain(sequence, previous, event(sequence)));
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
        let bodies = [
            Body::EngineStarted { engine: "host:/var/lib/pinseal".into() },
            Body::EngineStopped,
            Body::KeysReloaded,
            Body::RecordsReencrypted { count: 256 },
            Body::RotationEnded { checked: 300, failed: 1 },
        ];
        let own = bodies.map(|body| Entry::chain(1, [0; 32], Event { body, ..event(1) }));
        for entry in chain(7).into_iter().chain(own) {
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
        entries[2] = Entry::chain(3, entries[1].hash, event(77));
        assert_eq!(verify(&entries, Vec::new()), Err(ChainError { sequence: 4, problem: Problem::Unlinked }));
    }

    #[test]
    fn each_of_two_checkpoints_with_one_number_is_compared() {
        let entries = chain(5);
        let [right, other] = [entries[2].hash, [7; 32]].map(|hash| Checkpoint { sequence: 3, hash });
        for expected in [vec![right, other], vec![other, right], vec![right, right, other]] {
            let error = ChainError { sequence: 3, problem: Problem::OtherThanExpected };
            assert_eq!(verify(&entries, expected), Err(error));
        }
        verify(&entries, vec![right, right]).unwrap();
    }

    #[test]
    fn an_empty_chain_holds_only_where_it_is_expected() {
        assert_eq!(verify(&[], Vec::new()), Err(ChainError { sequence: 1, problem: Problem::Empty }));
        assert_eq!(verify(&[], vec![Checkpoint::EMPTY]), Ok(Checkpoint::EMPTY));
        let end = Walk::expecting(Vec::new()).ending_in(Checkpoint::EMPTY).end();
        assert_eq!(end, Err(ChainError { sequence: 1, problem: Problem::Empty }));
    }

    #[test]
    fn a_chain_ends_in_the_entry_that_its_store_names() {
        let entries = chain(5);
        let end_at = |sequence: usize| {
            let head = match sequence {
                0 => Checkpoint::EMPTY,
                _ => Checkpoint { sequence: sequence as u64, hash: entries[sequence - 1].hash },
            };
            let mut walk = Walk::expecting(Vec::new()).ending_in(head);
            entries[..4].iter().try_for_each(|entry| walk.step(entry))?;
            walk.end()
        };
        assert_eq!(end_at(4).unwrap().sequence, 4);
        assert_eq!(end_at(5), Err(ChainError { sequence: 5, problem: Problem::Cut { expected: 5 } }));
        for head in [0, 3] {
            assert_eq!(end_at(head), Err(ChainError { sequence: 5, problem: Problem::OtherThanHead }));
        }
    }

    #[test]
    fn a_checkpoint_has_one_text() {
        let zeros = "0".repeat(64);
        let text = format!("7:{}", "ab".repeat(32));
        assert_eq!(text.parse::<Checkpoint>().unwrap().to_string(), text);
        assert_eq!(format!("0:{zeros}").parse(), Ok(Checkpoint::EMPTY));
        let signed = format!("7:{}", "+b".repeat(32));
        let refused =
            [text.to_uppercase(), format!("+{text}"), format!("0{text}"), signed, format!("0:1{}", &zeros[1..])];
        for refused in refused.iter().map(String::as_str).chain(["7:", "7", ":", ""]) {
            assert_eq!(refused.parse::<Checkpoint>(), Err(CheckpointError), "{refused}");
        }
    }

    #[test]
    fn another_text_with_the_same_meaning_is_found() {
        let entry = Entry::chain(1, [0; 32], event(6));
        let text = entry.to_json();
        assert_eq!(Entry::from_json(&text), Ok(entry.clone()));
        let members: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
        let reversed = members.iter().rev().map(|(name, value)| format!("{name:?}:{value}")).collect::<Vec<_>>();
        let Body::Card(CardEvent { control: Some(control), .. }) = &entry.event.body else { panic!("no control") };
        let control = control.to_string();
        let rewritten = [
            ("digits of the time", text.replace("06Z\"", "060Z\"")),
            ("microseconds", text.replace("06Z\"", "06999Z\"")),
            ("offset", text.replace("06Z\"", "06+00:00\"")),
            ("small letter in the time", text.replacen('T', "t", 1)),
            ("space in the time", text.replacen('T', " ", 1)),
            ("spaces", text.replace(',', ", ")),
            ("a space before", format!(" {text}")),
            ("a line end of another kind", format!("{text}\r")),
            ("order", format!("{{{}}}", reversed.join(","))),
            ("an escape", text.replace("edge-1", "\\u0065dge-1")),
            ("an escaped slash", text.replace("storage/1", "storage\\/1")),
            ("the KCV in small letters", text.replace("A1B2C3", "a1b2c3")),
            ("a version with a zero", text.replace("storage/1", "storage/01")),
            ("a member more in the event", text.replace("{\"type\"", "{\"more\":1,\"type\"")),
            (
                "order in the event",
                text.replace("\"from\":\"iso-1\",\"to\":\"iso-4\"", "\"to\":\"iso-4\",\"from\":\"iso-1\""),
            ),
            ("ü as an escape", text.replace('ü', "\\u00fc")),
            ("the control in capitals", text.replace(&control, &control.to_uppercase())),
            ("the control without hyphens", text.replace(&control, &control.replace('-', ""))),
            ("the hash in capitals", text.replace(&hex(&entry.hash), &hex(&entry.hash).to_uppercase())),
            ("another member", text.replace("{\"sequence\"", "{\"more\":1,\"sequence\"")),
            ("a member twice", text.replace("{\"sequence\"", "{\"sequence\":1,\"sequence\"")),
            ("a sign", text.replace("\"sequence\":1", "\"sequence\":+1")),
            ("a fraction", text.replace("\"sequence\":1", "\"sequence\":1.0")),
            ("an exponent", text.replace("\"sequence\":1", "\"sequence\":1e0")),
        ];
        for (what, changed) in rewritten {
            assert_ne!(changed, text, "{what}: nothing was changed");
            assert!(Entry::from_json(&changed).is_err(), "{what}: {changed}");
            let error = Walk::expecting(Vec::new()).step_json(changed.as_bytes()).unwrap_err();
            assert_eq!(error.sequence, 1, "{what}");
        }
        let replaced = Entry::chain(1, [0; 32], Event { audit_user: "\u{FFFD}".into(), ..event(6) }).to_json();
        Walk::expecting(Vec::new()).step_json(replaced.as_bytes()).unwrap();
        let (before, after) = replaced.split_once('\u{FFFD}').unwrap();
        let no_text = [before.as_bytes(), &[0xFF], after.as_bytes()].concat();
        let error = ChainError { sequence: 1, problem: Problem::Unreadable };
        assert_eq!(Walk::expecting(Vec::new()).step_json(&no_text), Err(error));
        let no_tenant = Entry::chain(1, [0; 32], event(7)).to_json();
        assert_eq!(Entry::from_json(&no_tenant.replace("\"tenant\":null,", "")), Err(EntryError::Rewritten));
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
