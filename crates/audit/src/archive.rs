//! The archived part of a chain: entries that are in files alone.
//!
//! An archive file has entries as `pinseal audit export` prints them, so the files and an export of the store, one behind the
//! other, are the whole chain.

use std::collections::BTreeSet;

use base16ct::lower;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    chain::{ChainError, ChainProblem, ChainVerifier, Checkpoint},
    entry::{ArchivedSegment, Entry, decode_hash},
    note::SigningKey,
    tree::Hash,
    tree_head::ChainTree,
};

/// What a store keeps of the entries that were archived and removed: enough to verify and to prove the entries behind them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArchivedPart {
    /// The tree over these entries.
    pub tree: ChainTree,
    /// The names of the engines that started in them ([`super::entry::Body::started_engine`]).
    pub engines: BTreeSet<String>,
    /// The id of the key that made the salts of the tree ([`SigningKey::salts_id`]).
    pub salts: Hash,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonPart {
    origin: String,
    sequence: u64,
    hash: String,
    subtrees: Vec<String>,
    engines: BTreeSet<String>,
    salts: String,
}

impl ArchivedPart {
    /// The part of a chain's first entry.
    pub fn new(first: &Entry, key: &SigningKey) -> Self {
        let engines = first.event.body.started_engine().map(str::to_owned);
        Self { tree: ChainTree::new(first, key), engines: engines.into_iter().collect(), salts: key.salts_id() }
    }

    /// Appends the next entry.
    pub fn push(&mut self, entry: &Entry, key: &SigningKey) {
        self.tree.push(entry, key);
        self.engines.extend(entry.event.body.started_engine().map(str::to_owned));
    }

    /// The last entry.
    pub fn end(&self) -> Checkpoint {
        self.tree.head().head
    }

    /// The stored form, JSON.
    pub fn encode(&self) -> Vec<u8> {
        let Checkpoint { sequence, hash } = self.end();
        let part = JsonPart {
            origin: self.tree.origin().to_owned(),
            sequence,
            hash: lower::encode_string(&hash),
            subtrees: self.tree.subtrees().iter().map(|root| lower::encode_string(root)).collect(),
            engines: self.engines.clone(),
            salts: lower::encode_string(&self.salts),
        };
        serde_json::to_vec(&part).unwrap_or_default()
    }

    /// Reads the stored form; `None` for bytes that [`ArchivedPart::encode`] does not write.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let part: JsonPart = serde_json::from_slice(bytes).ok()?;
        let end = Checkpoint { sequence: part.sequence, hash: decode_hash(&part.hash).ok()? };
        let subtrees = part.subtrees.iter().map(|root| decode_hash(root)).collect::<Result<_, _>>().ok()?;
        let salts = decode_hash(&part.salts).ok()?;
        Some(Self { tree: ChainTree::from_subtrees(part.origin, end, subtrees)?, engines: part.engines, salts })
    }
}

/// Reads an archive file and verifies its entries.
pub struct SegmentReader<'a> {
    key: &'a SigningKey,
    part: Option<ArchivedPart>,
    verifier: ChainVerifier,
    digest: Sha256,
    first: u64,
}

impl<'a> SegmentReader<'a> {
    /// A reader of the file that follows the archived part of a chain; `None` for the first file.
    pub fn new(before: Option<ArchivedPart>, key: &'a SigningKey) -> Self {
        let start = before.as_ref().map_or(Checkpoint::EMPTY, ArchivedPart::end);
        let verifier = ChainVerifier::after(start, Vec::new());
        Self { key, part: before, verifier, digest: Sha256::new(), first: start.sequence.saturating_add(1) }
    }

    /// Reads the next line, without its line end.
    ///
    /// # Errors
    /// The line is not the next entry of the chain.
    pub fn line(&mut self, line: &[u8]) -> Result<(), ChainError> {
        let entry = self.verifier.check_json(line)?;
        self.digest.update(line);
        self.digest.update(b"\n");
        match &mut self.part {
            Some(part) => part.push(&entry, self.key),
            None => self.part = Some(ArchivedPart::new(&entry, self.key)),
        }
        Ok(())
    }

    /// The archived part with the entries of the file, and the event of its removal from the store.
    ///
    /// # Errors
    /// The file has no entry.
    pub fn finish(self, file: &str) -> Result<(ArchivedPart, ArchivedSegment), ChainError> {
        let empty = ChainError { sequence: self.first, problem: ChainProblem::Empty };
        let part = self.part.filter(|part| part.end().sequence >= self.first).ok_or(empty)?;
        let Checkpoint { sequence: last, hash } = part.end();
        let file_sha256 = self.digest.finalize().into();
        Ok((part, ArchivedSegment { first: self.first, last, hash, file: file.into(), file_sha256 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::tests::chain;
    use crate::entry::{Body, Event};

    fn key() -> SigningKey {
        SigningKey::from_text(&"07".repeat(32)).unwrap()
    }

    fn read(before: Option<ArchivedPart>, entries: &[Entry]) -> Result<(ArchivedPart, ArchivedSegment), ChainError> {
        let key = key();
        let mut reader = SegmentReader::new(before, &key);
        entries.iter().try_for_each(|entry| reader.line(entry.to_json().as_bytes()))?;
        reader.finish("segment")
    }

    #[test]
    fn segments_continue_each_other_and_survive_their_stored_form() {
        let mut entries = chain(9);
        let started = Body::EngineStarted { engine: "host:/store".into() };
        let first = Entry::chain(1, [0; 32], Event { body: started, ..entries[0].event.clone() });
        for at in 0..9 {
            let previous = if at == 0 { first.clone() } else { entries[at - 1].clone() };
            let event = entries[at].event.clone();
            entries[at] = if at == 0 { previous } else { Entry::chain(at as u64 + 1, previous.hash, event) };
        }
        let (part, segment) = read(None, &entries[..4]).unwrap();
        assert_eq!((segment.first, segment.last, segment.hash), (1, 4, entries[3].hash));
        let decoded = ArchivedPart::decode(&part.encode()).unwrap();
        assert_eq!(decoded, part);
        assert_eq!(decoded.salts, key().salts_id());
        assert_ne!(decoded.salts, SigningKey::from_text(&"08".repeat(32)).unwrap().salts_id());
        let (both, segment) = read(Some(decoded), &entries[4..]).unwrap();
        assert_eq!((segment.first, segment.last), (5, 9));
        assert_eq!(both, read(None, &entries).unwrap().0);
        assert_eq!(both.engines, BTreeSet::from(["host:/store".to_owned()]));
        let text: Vec<u8> = entries[4..].iter().flat_map(|entry| (entry.to_json() + "\n").into_bytes()).collect();
        assert_eq!(segment.file_sha256, <[u8; 32]>::from(Sha256::digest(&text)));
    }

    #[test]
    fn a_segment_of_other_entries_or_none_is_rejected() {
        let entries = chain(9);
        let part = read(None, &entries[..4]).unwrap().0;
        let order = |found| ChainError { sequence: 5, problem: ChainProblem::Order { found } };
        assert_eq!(read(Some(part.clone()), &entries[5..]), Err(order(6)));
        assert_eq!(read(Some(part.clone()), &entries[..4]), Err(order(1)));
        assert_eq!(read(Some(part.clone()), &[]), Err(ChainError { sequence: 5, problem: ChainProblem::Empty }));
        let other = chain(9);
        let unlinked = ChainError { sequence: 5, problem: ChainProblem::Unlinked };
        assert_eq!(read(Some(part.clone()), &other[4..]), Err(unlinked));
        for cut in 0..part.encode().len() {
            assert_eq!(ArchivedPart::decode(&part.encode()[..cut]), None);
        }
    }
}
