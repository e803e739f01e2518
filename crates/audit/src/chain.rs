//! The verification of a chain: finds the first entry that was changed, removed, repeated or moved.
//!
//! The chain has no key: an attacker who can rewrite the whole chain can build another valid one. A checkpoint that is kept
//! elsewhere shows such a rewrite.

use std::{cmp::Ordering, fmt, str::FromStr};

use base16ct::lower;
use thiserror::Error;

use super::entry::{Entry, EntryError, decode_hash};

/// A position in a chain. A checkpoint that is kept elsewhere proves all entries up to it. Its text is `SEQUENCE:HASH`, with
/// the hash in 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The sequence number of the last entry; 0 for an empty chain.
    pub sequence: u64,
    /// The hash of the last entry; 32 zero bytes for an empty chain.
    pub hash: [u8; 32],
}

impl Checkpoint {
    /// The checkpoint of a chain without entries.
    pub const EMPTY: Self = Self { sequence: 0, hash: [0; 32] };
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sequence, lower::encode_string(&self.hash))
    }
}

impl FromStr for Checkpoint {
    type Err = CheckpointError;

    fn from_str(text: &str) -> Result<Self, CheckpointError> {
        let (sequence, hash) = text.split_once(':').ok_or(CheckpointError)?;
        let sequence = sequence.parse().map_err(|_| CheckpointError)?;
        let checkpoint = Self { sequence, hash: decode_hash(hash).map_err(|_| CheckpointError)? };
        // An empty chain has one checkpoint. A number has one text: no sign, no leading zero.
        let sound = (sequence > 0 || checkpoint == Self::EMPTY) && checkpoint.to_string() == text;
        sound.then_some(checkpoint).ok_or(CheckpointError)
    }
}

/// The text is not a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "a checkpoint is SEQUENCE:HASH, a number and 64 lower-case hexadecimal digits; for an empty chain all are zeros"
)]
pub struct CheckpointError;

/// Verifies a chain from its first entry.
pub struct ChainVerifier {
    /// The end of the entries that are not checked.
    start: Checkpoint,
    reached: Checkpoint,
    expected: Vec<Checkpoint>,
    head: Option<Checkpoint>,
}

impl ChainVerifier {
    /// A verifier that compares the chain with these checkpoints, each kept elsewhere.
    pub fn new(expected: Vec<Checkpoint>) -> Self {
        Self::after(Checkpoint::EMPTY, expected)
    }

    /// The same, for the entries behind a checkpoint: the entries up to it were archived, for example.
    pub fn after(start: Checkpoint, expected: Vec<Checkpoint>) -> Self {
        Self { start, reached: start, expected, head: None }
    }

    /// The last entry that was checked.
    pub fn reached(&self) -> Checkpoint {
        self.reached
    }

    /// Requires that the chain ends at the last entry that its store names.
    pub fn with_head(self, head: Checkpoint) -> Self {
        Self { head: Some(head), ..self }
    }

    /// Checks the next entry.
    ///
    /// # Errors
    /// The sequence number or the previous hash does not follow the entry before, the hash is not the hash of the content, or
    /// a checkpoint differs.
    pub fn check(&mut self, entry: &Entry) -> Result<(), ChainError> {
        let due = self.reached.sequence.saturating_add(1);
        let at = |problem| Err(ChainError { sequence: due, problem });
        if entry.sequence != due {
            return at(ChainProblem::Order { found: entry.sequence });
        }
        if !entry.has_valid_hash() {
            return at(ChainProblem::Changed);
        }
        if entry.previous != self.reached.hash {
            return at(ChainProblem::Unlinked);
        }
        self.reached = Checkpoint { sequence: entry.sequence, hash: entry.hash };
        let of_this = |expected: &&Checkpoint| expected.sequence == entry.sequence;
        if self.expected.iter().filter(of_this).any(|expected| expected.hash != entry.hash) {
            return at(ChainProblem::OtherThanExpected);
        }
        Ok(())
    }

    /// Checks the next entry, given as a line of an export, and returns the entry.
    ///
    /// # Errors
    /// As [`ChainVerifier::check`], and for a line that differs from what [`Entry::to_json`] writes.
    pub fn check_json(&mut self, line: &[u8]) -> Result<Entry, ChainError> {
        let entry = self.read_json(line)?;
        self.check(&entry).map(|()| entry)
    }

    /// Reads a line of an export as the next entry, which is not checked.
    ///
    /// # Errors
    /// The line differs from what [`Entry::to_json`] writes.
    pub fn read_json(&self, line: &[u8]) -> Result<Entry, ChainError> {
        let entry = std::str::from_utf8(line).map_err(|_| EntryError::Unreadable).and_then(Entry::from_json);
        let problem = match entry {
            Ok(entry) => return Ok(entry),
            Err(EntryError::Unreadable) => ChainProblem::Unreadable,
            Err(EntryError::Rewritten) => ChainProblem::Rewritten,
        };
        Err(ChainError { sequence: self.reached.sequence.saturating_add(1), problem })
    }

    /// Checks, after the last entry, that the chain is complete. Returns the checkpoint of its end.
    ///
    /// # Errors
    /// The chain is shorter than a checkpoint, does not end at the store's last entry, or is empty while
    /// [`Checkpoint::EMPTY`] is not expected; or a checkpoint is one of an entry that was not checked.
    pub fn finish(self) -> Result<Checkpoint, ChainError> {
        let at = |problem| Err(ChainError { sequence: self.reached.sequence.saturating_add(1), problem });
        for expected in self.expected.iter().filter(|expected| **expected != Checkpoint::EMPTY) {
            let problem = match expected.sequence.cmp(&self.start.sequence) {
                Ordering::Less => ChainProblem::NotRead,
                Ordering::Equal if *expected != self.start => ChainProblem::OtherThanExpected,
                _ => continue,
            };
            return Err(ChainError { sequence: expected.sequence, problem });
        }
        let ends = self.expected.iter().chain(&self.head).map(|expected| expected.sequence);
        match ends.max() {
            Some(expected) if expected > self.reached.sequence => return at(ChainProblem::Cut { expected }),
            _ => {}
        }
        if self.head.is_some_and(|head| head != self.reached) {
            return at(ChainProblem::OtherThanHead);
        }
        if self.reached == Checkpoint::EMPTY && self.expected.is_empty() {
            return at(ChainProblem::Empty);
        }
        Ok(self.reached)
    }
}

/// The first broken entry of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("audit entry {sequence}: {problem}")]
pub struct ChainError {
    /// The expected sequence number of the entry.
    pub sequence: u64,
    /// What is wrong with the entry.
    pub problem: ChainProblem,
}

/// What is wrong with an entry or with the end of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChainProblem {
    /// The entry has another sequence number.
    #[error("entry {found} is in its place: an entry was removed, repeated or moved")]
    Order {
        /// The sequence number of the entry.
        found: u64,
    },
    /// The hash is not the hash of the content.
    #[error("the entry was changed: its hash is not the hash of its content")]
    Changed,
    /// The previous hash is not the hash of the entry before.
    #[error("the entry does not follow the entry before it: one of the two was replaced")]
    Unlinked,
    /// The hash differs from a checkpoint.
    #[error("the hash is not the expected one: the chain was rewritten up to here")]
    OtherThanExpected,
    /// The chain does not end at the last entry that its store names.
    #[error("the store names another entry than the one before as its last: the store was changed")]
    OtherThanHead,
    /// The chain is shorter than expected.
    #[error(
        "the entry is missing, and the chain was expected to continue to {expected}: its end was cut, or what was read is older \
         than the checkpoint"
    )]
    Cut {
        /// The expected sequence number of the last entry.
        expected: u64,
    },
    /// The entry of a checkpoint is before the first one that was checked.
    #[error("the entry is not in the chain that was read, and was not compared: give its archive with --archive")]
    NotRead,
    /// The bytes are not an entry of this release.
    #[error("this release cannot read the entry")]
    Unreadable,
    /// The text differs from what the engine writes for this entry.
    #[error("the text was changed: it means the same, in other characters than the engine exports")]
    Rewritten,
    /// The chain has no entries, and no empty chain is expected.
    #[error(
        "the entry is missing: the chain is empty, and nothing was verified; --expect 0:0000… (64 zeros) expects an empty chain"
    )]
    Empty,
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::card_reference::CardReference;
    use crate::entry::{
        Action, ArchivedSegment, BlockFormat, Body, CallDenial, CardEvent, Event, Formats, Isolation, KeyStamp, Level,
        Method, Outcome, RetiredStorageKeys, Stamp, StorageKeyVersions, StoreOrigin, TranslatedBlocks, TryStamp,
    };
    use domain::card::Tenant;
    use domain::control::ControlId;
    use domain::request_id::RequestId;
    use domain::time::UnixMillis;

    pub(crate) fn event(number: u64) -> Event {
        let key = |usage: &str, kcv| KeyStamp { usage: usage.into(), version: 1, kcv };
        Event {
            at: UnixMillis(1_790_000_000_000 + number),
            caller: "edge-1".into(),
            tenant: number.is_multiple_of(2).then(|| Tenant::parse("bank").unwrap()),
            audit_user: format!("user \"{number}\" ü").into(),
            request: (!number.is_multiple_of(4)).then(|| RequestId::from_bytes([0xAB; 16])),
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
                reference: CardReference::from_bytes([0xCD; 16]),
                control: number.is_multiple_of(3).then(ControlId::random),
                formats: number.is_multiple_of(2).then_some(Formats { from: BlockFormat::Iso1, to: BlockFormat::Iso4 }),
                key: number.is_multiple_of(5).then(|| "zone:app-bank".into()),
                tried: number.is_multiple_of(3).then_some(TryStamp { number: 1 << 40, tries_left: 2 }),
                predecessor: number.is_multiple_of(2).then_some(CardReference::from_bytes([0xEF; 16])),
            }),
        }
    }

    fn origin() -> StoreOrigin {
        StoreOrigin { source: "host:/backup".into(), sequence: 9, hash: [0xA7; 32], ended_controls: 2 }
    }

    pub(crate) fn chain(length: u64) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::new();
        for sequence in 1..=length {
            let previous = entries.last().map_or([0; 32], |entry| entry.hash);
            entries.push(Entry::chain(sequence, previous, event(sequence)));
        }
        entries
    }

    fn verify(entries: &[Entry], expected: Vec<Checkpoint>) -> Result<Checkpoint, ChainError> {
        let mut verifier = ChainVerifier::new(expected);
        entries.iter().try_for_each(|entry| verifier.check(entry))?;
        verifier.finish()
    }

    #[test]
    fn a_complete_chain_verifies_and_returns_its_checkpoint() {
        let entries = chain(20);
        let end = verify(&entries, Vec::new()).unwrap();
        assert_eq!(end, Checkpoint { sequence: 20, hash: entries[19].hash });
        assert_eq!(end.to_string().parse(), Ok(end));
    }

    #[test]
    fn an_entry_survives_its_stored_form_and_its_json() {
        let bodies = [
            Body::EngineStarted { engine: "host:/var/lib/pinseal".into() },
            Body::EngineStopped,
            Body::KeysReloaded,
            Body::RecordsReencrypted { count: 256 },
            Body::RotationEnded { checked: 300, failed: 1 },
            Body::StoreRestored(origin()),
            Body::StoreSalvaged(origin()),
            Body::AuditArchived(ArchivedSegment {
                first: 1,
                last: 9,
                hash: [4; 32],
                file: "1.jsonl".into(),
                file_sha256: [5; 32],
            }),
            Body::StorageKeysActivated(StorageKeyVersions { wrapped: 1, iso_4: 2, tdes: 3, one_way: 0 }),
            Body::StorageKeysRetired(RetiredStorageKeys {
                versions: StorageKeyVersions { wrapped: 0, iso_4: 1, tdes: 2, one_way: u16::MAX },
                abandoned_records: u64::MAX - 1,
            }),
            Body::EngineDeregistered { engine: "engine-2".into() },
            Body::UnknownControl { action: Action::SetPin, control: ControlId::random(), unrecorded: 2 },
            Body::CallDenied { method: Method::ViewPin, reason: CallDenial::Tenant, unrecorded: 7 },
            Body::CredentialsRejected { network: [192, 0, 2, 7].into(), unrecorded: 8 },
            Body::BlocksTranslated(TranslatedBlocks {
                count: 1_000,
                source_key: "zone:app-bank".into(),
                target_key: "zone:switch".into(),
                formats: Formats { from: BlockFormat::Iso0, to: BlockFormat::Iso4 },
                root: [6; 32],
            }),
        ];
        let own = bodies.map(|body| Entry::chain(1, [0; 32], Event { body, ..event(1) }));
        for entry in chain(7).into_iter().chain(own) {
            assert_eq!(Entry::decode(&entry.encode()), Ok(entry.clone()));
            assert_eq!(Entry::from_json(&entry.to_json()), Ok(entry));
        }
    }

    #[test]
    fn a_time_has_three_digits_of_the_second() {
        for (millisecond, time) in [(0, "2026-09-21T14:13:20.000Z"), (60, "2026-09-21T14:13:20.060Z")] {
            let entry = Entry::chain(1, [0; 32], event(millisecond));
            assert!(entry.to_json().contains(&format!("\"at\":\"{time}\"")), "{}", entry.to_json());
            assert_eq!(Entry::from_json(&entry.to_json()), Ok(entry));
        }
    }

    #[test]
    fn a_transfer_is_about_both_cards() {
        let [reissued, before, other] = [[1; 16], [2; 16], [3; 16]].map(CardReference::from_bytes);
        let card = CardEvent::new(Action::TransferPin, "***1".into(), reissued);
        let body = Body::Card(CardEvent { predecessor: Some(before), ..card });
        assert!(body.is_about(reissued) && body.is_about(before) && !body.is_about(other));
        assert!(!Body::EngineStopped.is_about(reissued));
    }

    #[test]
    fn a_change_of_any_byte_is_reported_at_its_entry() {
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
    fn a_removed_repeated_or_moved_entry_is_reported() {
        let mut cut = chain(5);
        cut.remove(2);
        assert_eq!(
            verify(&cut, Vec::new()),
            Err(ChainError { sequence: 3, problem: ChainProblem::Order { found: 4 } })
        );
        let mut doubled = chain(5);
        doubled.insert(3, doubled[2].clone());
        assert_eq!(verify(&doubled, Vec::new()).unwrap_err().sequence, 4);
        let mut moved = chain(5);
        moved.swap(1, 3);
        assert_eq!(verify(&moved, Vec::new()).unwrap_err().sequence, 2);
    }

    #[test]
    fn a_replaced_entry_breaks_the_link_of_the_next() {
        let mut entries = chain(5);
        entries[2] = Entry::chain(3, entries[1].hash, event(77));
        assert_eq!(verify(&entries, Vec::new()), Err(ChainError { sequence: 4, problem: ChainProblem::Unlinked }));
    }

    #[test]
    fn two_checkpoints_of_one_entry_are_both_compared() {
        let entries = chain(5);
        let [right, other] = [entries[2].hash, [7; 32]].map(|hash| Checkpoint { sequence: 3, hash });
        for expected in [vec![right, other], vec![other, right], vec![right, right, other]] {
            let error = ChainError { sequence: 3, problem: ChainProblem::OtherThanExpected };
            assert_eq!(verify(&entries, expected), Err(error));
        }
        verify(&entries, vec![right, right]).unwrap();
    }

    #[test]
    fn an_empty_chain_verifies_only_if_expected() {
        assert_eq!(verify(&[], Vec::new()), Err(ChainError { sequence: 1, problem: ChainProblem::Empty }));
        assert_eq!(verify(&[], vec![Checkpoint::EMPTY]), Ok(Checkpoint::EMPTY));
        let end = ChainVerifier::new(Vec::new()).with_head(Checkpoint::EMPTY).finish();
        assert_eq!(end, Err(ChainError { sequence: 1, problem: ChainProblem::Empty }));
    }

    #[test]
    fn a_chain_must_end_at_the_entry_of_its_store() {
        let entries = chain(5);
        let end_at = |sequence: usize| {
            let head = match sequence {
                0 => Checkpoint::EMPTY,
                _ => Checkpoint { sequence: sequence as u64, hash: entries[sequence - 1].hash },
            };
            let mut verifier = ChainVerifier::new(Vec::new()).with_head(head);
            entries[..4].iter().try_for_each(|entry| verifier.check(entry))?;
            verifier.finish()
        };
        assert_eq!(end_at(4).unwrap().sequence, 4);
        assert_eq!(end_at(5), Err(ChainError { sequence: 5, problem: ChainProblem::Cut { expected: 5 } }));
        for head in [0, 3] {
            assert_eq!(end_at(head), Err(ChainError { sequence: 5, problem: ChainProblem::OtherThanHead }));
        }
    }

    #[test]
    fn a_checkpoint_has_one_text_form() {
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
    fn another_text_with_the_same_meaning_is_rejected() {
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
            ("the request in capitals", text.replace("abababab", "ABABABAB")),
            ("the card reference in capitals", text.replace("cdcdcdcd", "CDCDCDCD")),
            (
                "the hash in capitals",
                text.replace(&lower::encode_string(&entry.hash), &lower::encode_string(&entry.hash).to_uppercase()),
            ),
            ("another member", text.replace("{\"sequence\"", "{\"more\":1,\"sequence\"")),
            ("a member twice", text.replace("{\"sequence\"", "{\"sequence\":1,\"sequence\"")),
            ("a sign", text.replace("\"sequence\":1", "\"sequence\":+1")),
            ("a fraction", text.replace("\"sequence\":1", "\"sequence\":1.0")),
            ("an exponent", text.replace("\"sequence\":1", "\"sequence\":1e0")),
        ];
        for (what, changed) in rewritten {
            assert_ne!(changed, text, "{what}: nothing was changed");
            assert!(Entry::from_json(&changed).is_err(), "{what}: {changed}");
            let error = ChainVerifier::new(Vec::new()).check_json(changed.as_bytes()).unwrap_err();
            assert_eq!(error.sequence, 1, "{what}");
        }
        let replaced = Entry::chain(1, [0; 32], Event { audit_user: "\u{FFFD}".into(), ..event(6) }).to_json();
        ChainVerifier::new(Vec::new()).check_json(replaced.as_bytes()).unwrap();
        let (before, after) = replaced.split_once('\u{FFFD}').unwrap();
        let no_text = [before.as_bytes(), &[0xFF], after.as_bytes()].concat();
        let error = ChainError { sequence: 1, problem: ChainProblem::Unreadable };
        assert_eq!(ChainVerifier::new(Vec::new()).check_json(&no_text), Err(error));
        let no_tenant = Entry::chain(1, [0; 32], event(7)).to_json();
        assert_eq!(Entry::from_json(&no_tenant.replace("\"tenant\":null,", "")), Err(EntryError::Rewritten));
    }

    #[test]
    fn a_chain_behind_archived_entries_verifies_from_their_end() {
        let entries = chain(5);
        let at = |sequence: usize| Checkpoint { sequence: sequence as u64, hash: entries[sequence - 1].hash };
        let verify = |expected: Vec<Checkpoint>, start: Checkpoint| {
            let mut verifier = ChainVerifier::after(start, expected);
            entries[3..].iter().try_for_each(|entry| verifier.check(entry))?;
            verifier.finish()
        };
        assert_eq!(verify(vec![Checkpoint::EMPTY, at(3), at(4)], at(3)), Ok(at(5)));
        let other = Checkpoint { hash: [7; 32], ..at(3) };
        let error = |sequence, problem| Err(ChainError { sequence, problem });
        assert_eq!(verify(Vec::new(), other), error(4, ChainProblem::Unlinked));
        assert_eq!(verify(vec![other], at(3)), error(3, ChainProblem::OtherThanExpected));
        assert_eq!(verify(vec![at(2)], at(3)), error(2, ChainProblem::NotRead));
        assert_eq!(verify(Vec::new(), at(2)), error(3, ChainProblem::Order { found: 4 }));
    }

    #[test]
    fn a_checkpoint_shows_a_cut_or_rewritten_chain() {
        let entries = chain(5);
        let end = verify(&entries, Vec::new()).unwrap();
        let cut = verify(&entries[..3], vec![end]).unwrap_err();
        assert_eq!(cut, ChainError { sequence: 4, problem: ChainProblem::Cut { expected: 5 } });
        let rewritten = verify(&chain(6), vec![end]).unwrap_err();
        assert_eq!(rewritten, ChainError { sequence: 5, problem: ChainProblem::OtherThanExpected });
    }
}
