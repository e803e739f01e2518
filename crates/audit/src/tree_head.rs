//! The signed checkpoint of a chain (C2SP, tlog-checkpoint), and the proofs against it.
//!
//! ```text
//! pinseal.audit/CHAIN ID      the first 16 bytes of the hash of the first entry, in hexadecimal digits
//! SIZE                        the number of entries
//! ROOT                        of the Merkle tree over the salted hashes of the entries, in base64
//! HEAD                        the hash of the last entry, in hexadecimal digits
//! ```

use base16ct::lower;
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    chain::{ChainError, ChainVerifier, Checkpoint},
    entry::{Entry, EntryError, decode_hash},
    note::{NoteError, SigningKey, VerifierKey},
    tree::{GrowingTree, Hash, Leaves, leaf_hash, verify_consistency, verify_inclusion},
};

/// The start of an origin, before the chain id.
const ORIGIN: &str = "pinseal.audit/";
/// The bytes of a chain id.
const CHAIN_ID_BYTES: usize = 16;

/// A chain up to an entry: what a signed checkpoint states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeHead {
    /// The name of the chain, and of its signing key.
    pub origin: String,
    /// The root of the Merkle tree over the entries up to the head.
    pub root: Hash,
    /// The last entry.
    pub head: Checkpoint,
}

impl TreeHead {
    /// The chain id of the origin.
    pub fn chain_id(&self) -> &str {
        self.origin.strip_prefix(ORIGIN).unwrap_or(&self.origin)
    }

    /// The note of this head.
    ///
    /// # Errors
    /// [`NoteError`] where the origin is not a name.
    pub fn sign(&self, key: &SigningKey) -> Result<String, NoteError> {
        let (root, head) = (BASE64_STANDARD.encode(self.root), lower::encode_string(&self.head.hash));
        key.sign(&self.origin, &format!("{}\n{}\n{root}\n{head}\n", self.origin, self.head.sequence))
    }

    /// The head that a note states, once its signature is verified.
    ///
    /// # Errors
    /// [`TreeHeadError::Note`], or [`TreeHeadError::Malformed`] for another text than a checkpoint of this release.
    pub fn open(note: &str, verifier: &VerifierKey) -> Result<Self, TreeHeadError> {
        let text = verifier.open(note)?;
        let mut lines = text.lines();
        let (Some(origin), Some(size), Some(root), Some(head), None) =
            (lines.next(), lines.next(), lines.next(), lines.next(), lines.next())
        else {
            return Err(TreeHeadError::Malformed);
        };
        let root = BASE64_STANDARD.decode(root).ok().and_then(|root| root.try_into().ok());
        let head = format!("{size}:{head}").parse().map_err(|_| TreeHeadError::Malformed)?;
        if origin != verifier.name() {
            return Err(TreeHeadError::OtherOrigin);
        }
        Ok(Self { origin: origin.to_owned(), root: root.ok_or(TreeHeadError::Malformed)?, head })
    }
}

/// The tree over a chain, from its first entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainTree {
    origin: String,
    tree: GrowingTree,
    head: Checkpoint,
}

impl ChainTree {
    /// The tree of a chain's first entry.
    pub fn new(first: &Entry, key: &SigningKey) -> Self {
        let mut new = Self { origin: origin_of(first), tree: GrowingTree::default(), head: Checkpoint::EMPTY };
        new.push(first, key);
        new
    }

    /// Appends the next entry.
    pub fn push(&mut self, entry: &Entry, key: &SigningKey) {
        self.tree.push(leaf_of(entry, key));
        self.head = Checkpoint { sequence: entry.sequence, hash: entry.hash };
    }

    /// Appends the next entry of a chain to its tree; `None` is the tree before the first entry.
    ///
    /// # Errors
    /// The sequence number or the previous hash does not follow the head, or the hash is not the hash of the content. The tree
    /// does not change.
    pub fn append(tree: &mut Option<Self>, entry: &Entry, key: &SigningKey) -> Result<(), ChainError> {
        let end = tree.as_ref().map_or(Checkpoint::EMPTY, |tree| tree.head);
        ChainVerifier::after(end, Vec::new()).check(entry)?;
        match tree {
            Some(tree) => tree.push(entry, key),
            None => *tree = Some(Self::new(entry, key)),
        }
        Ok(())
    }

    /// The leaves behind those of this tree, which are not known yet.
    pub fn leaves_after(&self) -> Leaves {
        Leaves::after(self.tree.clone())
    }

    /// The name of the chain, and of its signing key.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The roots of the complete subtrees, the largest first.
    pub fn subtrees(&self) -> &[Hash] {
        self.tree.subtrees()
    }

    /// The tree of a chain up to an entry, with these roots of complete subtrees; `None` where their number does not fit.
    pub fn from_subtrees(origin: String, head: Checkpoint, subtrees: Vec<Hash>) -> Option<Self> {
        Some(Self { origin, tree: GrowingTree::from_subtrees(head.sequence, subtrees)?, head })
    }

    /// The roots of the complete subtrees, in hexadecimal digits, a line each.
    pub fn subtrees_text(&self) -> String {
        to_text(self.tree.subtrees()).join("\n") + "\n"
    }

    /// The tree of a head whose subtrees [`ChainTree::subtrees_text`] wrote; `None` where they are not those of the head.
    pub fn from_subtrees_text(text: &str, head: &TreeHead) -> Option<Self> {
        let subtrees = text.lines().map(decode_hash).collect::<Result<_, _>>().ok()?;
        let tree = GrowingTree::from_subtrees(head.head.sequence, subtrees)?;
        (tree.root() == head.root).then(|| Self { origin: head.origin.clone(), tree, head: head.head })
    }

    /// The head at the last entry.
    pub fn head(&self) -> TreeHead {
        TreeHead { origin: self.origin.clone(), root: self.tree.root(), head: self.head }
    }
}

/// The name of the chain that begins with this entry.
pub fn origin_of(first: &Entry) -> String {
    let id = first.hash.get(..CHAIN_ID_BYTES).unwrap_or(&first.hash);
    format!("{ORIGIN}{}", lower::encode_string(id))
}

/// The leaf of an entry under the salts of a key.
pub fn leaf_of(entry: &Entry, key: &SigningKey) -> Hash {
    leaf_hash(&key.salt(entry.sequence), &entry.hash)
}

/// A proof against a signed checkpoint, as JSON. It needs no chain and no signing key to verify.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "proof", rename_all = "snake_case", deny_unknown_fields)]
pub enum Proof {
    /// The entry is in the chain of the checkpoint.
    Inclusion {
        /// The entry, as [`Entry::to_json`] writes it.
        entry: String,
        /// The salt of the entry's leaf, in hexadecimal digits.
        salt: String,
        /// The hashes of the proof (RFC 6962, 2.1.1), in hexadecimal digits.
        hashes: Vec<String>,
        /// The signed note.
        checkpoint: String,
    },
    /// The chain of the newer checkpoint continues the chain of the older one.
    Consistency {
        /// The hashes of the proof (RFC 6962, 2.1.2), in hexadecimal digits.
        hashes: Vec<String>,
        /// The older signed note.
        old: String,
        /// The newer signed note.
        new: String,
    },
}

/// What a verified proof shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proven {
    /// The entry is in the chain that ends at the head.
    Inclusion {
        /// The entry.
        entry: Box<Entry>,
        /// The last entry of the chain.
        head: Checkpoint,
    },
    /// The chain that ends at `new` continues the chain that ends at `old`.
    Consistency {
        /// The last entry of the older chain.
        old: Checkpoint,
        /// The last entry of the newer chain.
        new: Checkpoint,
    },
}

impl Proof {
    /// The proof that an entry is in the chain of a checkpoint. `leaves` are those of the chain up to the checkpoint.
    ///
    /// # Errors
    /// [`TreeHeadError`] where the note does not open; [`TreeHeadError::OtherChain`] where `leaves` are not the chain of the
    /// checkpoint; [`TreeHeadError::Archived`] where the checkpoint is older than the first leaf that is known; [`TreeHeadError::NotCovered`] where the checkpoint is older than the entry.
    pub fn of_entry(entry: &Entry, checkpoint: &str, leaves: &Leaves, key: &SigningKey) -> Result<Self, TreeHeadError> {
        let size = head_of(checkpoint, leaves, key)?.head.sequence;
        let not_covered = TreeHeadError::NotCovered { sequence: entry.sequence, size };
        let hashes = entry.sequence.checked_sub(1).and_then(|index| leaves.prove_inclusion(index, size));
        Ok(Self::Inclusion {
            entry: entry.to_json(),
            salt: lower::encode_string(&key.salt(entry.sequence)),
            hashes: to_text(&hashes.ok_or(not_covered)?),
            checkpoint: checkpoint.to_owned(),
        })
    }

    /// The proof that the chain of `new` continues the chain of `old`. `leaves` are those of the chain up to `new`.
    ///
    /// # Errors
    /// As [`Proof::of_entry`]; [`TreeHeadError::Swapped`] where `old` is newer than `new`.
    pub fn of_checkpoints(old: &str, new: &str, leaves: &Leaves, key: &SigningKey) -> Result<Self, TreeHeadError> {
        let [before, after] = [head_of(old, leaves, key)?, head_of(new, leaves, key)?];
        check_order(&before, &after)?;
        let hashes = leaves.prove_consistency(before.head.sequence, after.head.sequence);
        let hashes = hashes.ok_or(TreeHeadError::Inconsistent)?;
        Ok(Self::Consistency { hashes: to_text(&hashes), old: old.to_owned(), new: new.to_owned() })
    }

    /// Verifies the notes and the proof.
    ///
    /// # Errors
    /// [`TreeHeadError`] by the first part that does not verify.
    pub fn verify(&self, verifier: &VerifierKey) -> Result<Proven, TreeHeadError> {
        match self {
            Self::Inclusion { entry, salt, hashes, checkpoint } => {
                let (head, entry) = (TreeHead::open(checkpoint, verifier)?, Entry::from_json(entry)?);
                let leaf = leaf_hash(&decode_hash(salt)?, &entry.hash);
                let hashes = from_text(hashes)?;
                let index = entry.sequence.checked_sub(1).ok_or(TreeHeadError::NotIncluded)?;
                let included = verify_inclusion(leaf, index, head.head.sequence, &head.root, &hashes);
                match entry.has_valid_hash() && included {
                    true => Ok(Proven::Inclusion { entry: Box::new(entry), head: head.head }),
                    false => Err(TreeHeadError::NotIncluded),
                }
            }
            Self::Consistency { hashes, old, new } => {
                let [old, new] = [TreeHead::open(old, verifier)?, TreeHead::open(new, verifier)?];
                check_order(&old, &new)?;
                let (before, after) = ((old.head.sequence, &old.root), (new.head.sequence, &new.root));
                let same = old.head.sequence != new.head.sequence || old.head == new.head;
                match same && verify_consistency(before, after, &from_text(hashes)?) {
                    true => Ok(Proven::Consistency { old: old.head, new: new.head }),
                    false => Err(TreeHeadError::Inconsistent),
                }
            }
        }
    }
}

fn check_order(old: &TreeHead, new: &TreeHead) -> Result<(), TreeHeadError> {
    let (old, new) = (old.head.sequence, new.head.sequence);
    if old <= new { Ok(()) } else { Err(TreeHeadError::Swapped { old, new }) }
}

/// Opens a note and compares its root with the leaves.
fn head_of(note: &str, leaves: &Leaves, key: &SigningKey) -> Result<TreeHead, TreeHeadError> {
    let origin = note.lines().next().unwrap_or_default();
    let head = TreeHead::open(note, &key.verifier(origin)?)?;
    match leaves.root(head.head.sequence) {
        Some(root) if root == head.root => Ok(head),
        None if head.head.sequence <= leaves.size() => Err(TreeHeadError::Archived { size: head.head.sequence }),
        _ => Err(TreeHeadError::OtherChain),
    }
}

fn to_text(hashes: &[Hash]) -> Vec<String> {
    hashes.iter().map(|hash| lower::encode_string(hash)).collect()
}

fn from_text(hashes: &[String]) -> Result<Vec<Hash>, EntryError> {
    hashes.iter().map(|hash| decode_hash(hash)).collect()
}

/// A checkpoint or a proof does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TreeHeadError {
    /// The note does not open.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The entry or a hash of a proof can't be read.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The text of the note is not a checkpoint.
    #[error("the note is not a checkpoint of an audit chain that this release can read")]
    Malformed,
    /// The checkpoint names another chain than the key that signed it.
    #[error("the checkpoint is of another chain than its signing key")]
    OtherOrigin,
    /// The chain is not that of the checkpoint.
    #[error("the chain has another Merkle root than the checkpoint: the chain was rewritten or cut, or is another one")]
    OtherChain,
    /// The text is not a proof.
    #[error("the file is not a proof: give what `pinseal audit prove` printed")]
    NotProof,
    /// The entry is newer than the checkpoint.
    #[error("the checkpoint covers entries 1 to {size}, not entry {sequence}: take a newer checkpoint")]
    NotCovered {
        /// The sequence number of the entry.
        sequence: u64,
        /// The last sequence number that the checkpoint covers.
        size: u64,
    },
    /// The checkpoint ends within entries that were archived, and whose archive was not read.
    #[error("the checkpoint covers entries 1 to {size}, which were archived: give their archives with --archive")]
    Archived {
        /// The last sequence number that the checkpoint covers.
        size: u64,
    },
    /// The proof of an entry does not verify.
    #[error("the proof does not show the entry in the chain of the checkpoint: entry, proof or checkpoint was changed")]
    NotIncluded,
    /// The newer chain does not continue the older one.
    #[error("the newer checkpoint does not continue the older one: the chain was rewritten between them")]
    Inconsistent,
    /// The checkpoint that was given as the older one is the newer one.
    #[error("the first checkpoint is of entry {old}, and the second of entry {new}: give the older one first")]
    Swapped {
        /// The number of the entry of the first checkpoint.
        old: u64,
        /// The number of the entry of the second checkpoint.
        new: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{ChainProblem, tests::chain};

    fn key(byte: u8) -> SigningKey {
        SigningKey::from_text(&lower::encode_string(&[byte; 32])).unwrap()
    }

    /// The notes of a chain after each entry, and its leaves.
    fn notes(entries: &[Entry], key: &SigningKey) -> (Vec<String>, Leaves) {
        let mut tree = ChainTree::new(&entries[0], key);
        let mut notes = vec![tree.head().sign(key).unwrap()];
        for entry in &entries[1..] {
            tree.push(entry, key);
            notes.push(tree.head().sign(key).unwrap());
        }
        let mut leaves = Leaves::default();
        entries.iter().for_each(|entry| leaves.push(leaf_of(entry, key)));
        (notes, leaves)
    }

    fn verifier(entries: &[Entry], key: &SigningKey) -> VerifierKey {
        key.verifier(ChainTree::new(&entries[0], key).origin()).unwrap()
    }

    #[test]
    fn a_checkpoint_is_that_of_tlog_tiles_and_opens_to_its_head() {
        let (entries, key) = (chain(5), key(7));
        let (notes, leaves) = notes(&entries, &key);
        let head = TreeHead::open(&notes[4], &verifier(&entries, &key)).unwrap();
        assert_eq!(head.head, Checkpoint { sequence: 5, hash: entries[4].hash });
        assert_eq!(Some(head.root), leaves.root(5));
        assert_eq!(head.chain_id(), lower::encode_string(&entries[0].hash[..16]));
        let text = notes[4].split_once("\n\n").unwrap().0.to_owned() + "\n";
        let theirs = tlog_tiles::Checkpoint::from_bytes(text.as_bytes()).unwrap();
        assert_eq!((theirs.origin(), theirs.size(), theirs.hash().0), (&*head.origin, 5, head.root));
    }

    #[test]
    fn a_tree_refuses_an_entry_that_does_not_follow_its_head() {
        let (entries, key) = (chain(5), key(7));
        let mut tree = None;
        let problem = |sequence, problem| Err(ChainError { sequence, problem });
        assert_eq!(ChainTree::append(&mut tree, &entries[1], &key), problem(1, ChainProblem::Order { found: 2 }));
        entries[..2].iter().for_each(|entry| ChainTree::append(&mut tree, entry, &key).unwrap());
        let before = tree.clone();
        // A gap, and an entry of a rewritten chain.
        assert_eq!(ChainTree::append(&mut tree, &entries[3], &key), problem(3, ChainProblem::Order { found: 4 }));
        let rewritten = Entry::chain(3, [7; 32], entries[2].event.clone());
        assert_eq!(ChainTree::append(&mut tree, &rewritten, &key), problem(3, ChainProblem::Unlinked));
        let changed = Entry { hash: [7; 32], ..entries[2].clone() };
        assert_eq!(ChainTree::append(&mut tree, &changed, &key), problem(3, ChainProblem::Changed));
        assert_eq!(tree, before);
    }

    #[test]
    fn a_tree_resumes_from_the_subtrees_of_its_own_head_only() {
        let (entries, key) = (chain(9), key(7));
        for size in 1..9 {
            let mut tree = ChainTree::new(&entries[0], &key);
            entries[1..size].iter().for_each(|entry| tree.push(entry, &key));
            let (text, head) = (tree.subtrees_text(), tree.head());
            let mut resumed = ChainTree::from_subtrees_text(&text, &head).unwrap();
            tree.push(&entries[size], &key);
            resumed.push(&entries[size], &key);
            assert_eq!(resumed, tree);
            for (text, head) in [(&tree.subtrees_text(), &head), (&text, &tree.head()), (&String::new(), &head)] {
                assert_eq!(ChainTree::from_subtrees_text(text, head), None);
            }
        }
    }

    #[test]
    fn every_entry_is_proven_in_every_later_checkpoint() {
        let (entries, key) = (chain(9), key(7));
        let (notes, leaves) = notes(&entries, &key);
        let verifier = verifier(&entries, &key);
        for (at, note) in notes.iter().enumerate() {
            for entry in &entries[..=at] {
                let proof = Proof::of_entry(entry, note, &leaves, &key).unwrap();
                let Proven::Inclusion { entry: proven, head } = proof.verify(&verifier).unwrap() else { panic!() };
                assert_eq!((&*proven, head.sequence), (entry, at as u64 + 1));
            }
            for entry in &entries[at + 1..] {
                let refused = Proof::of_entry(entry, note, &leaves, &key);
                let not_covered = TreeHeadError::NotCovered { sequence: entry.sequence, size: at as u64 + 1 };
                assert_eq!(refused, Err(not_covered));
            }
        }
    }

    #[test]
    fn a_proof_behind_archived_entries_is_the_same() {
        let (entries, key) = (chain(9), key(7));
        let (notes, all) = notes(&entries, &key);
        let mut archived = ChainTree::new(&entries[0], &key);
        entries[1..5].iter().for_each(|entry| archived.push(entry, &key));
        let mut kept = archived.leaves_after();
        entries[5..].iter().for_each(|entry| kept.push(leaf_of(entry, &key)));
        for at in 5..9 {
            let prove = |leaves: &Leaves| Proof::of_entry(&entries[5], &notes[at], leaves, &key);
            assert_eq!(prove(&kept), prove(&all));
            let prove = |leaves: &Leaves| Proof::of_checkpoints(&notes[4], &notes[at], leaves, &key);
            assert_eq!(prove(&kept), prove(&all));
        }
        let refused = Proof::of_checkpoints(&notes[2], &notes[8], &kept, &key);
        assert_eq!(refused, Err(TreeHeadError::Archived { size: 3 }));
    }

    #[test]
    fn a_proof_of_another_entry_salt_or_checkpoint_is_rejected() {
        let (entries, key) = (chain(9), key(7));
        let (notes, leaves) = notes(&entries, &key);
        let verifier = verifier(&entries, &key);
        let Ok(Proof::Inclusion { entry, salt, hashes, checkpoint }) =
            Proof::of_entry(&entries[3], &notes[8], &leaves, &key)
        else {
            panic!()
        };
        let sound = Proof::Inclusion {
            entry: entry.clone(),
            salt: salt.clone(),
            hashes: hashes.clone(),
            checkpoint: checkpoint.clone(),
        };
        assert!(sound.verify(&verifier).is_ok());
        let with = |entry: &str, salt: &str, checkpoint: &str| {
            let (entry, salt, checkpoint) = (entry.to_owned(), salt.to_owned(), checkpoint.to_owned());
            Proof::Inclusion { entry, salt, hashes: hashes.clone(), checkpoint }.verify(&verifier)
        };
        assert_eq!(with(&entries[4].to_json(), &salt, &checkpoint), Err(TreeHeadError::NotIncluded));
        let changed = Entry { event: entries[4].event.clone(), ..entries[3].clone() };
        assert_eq!(with(&changed.to_json(), &salt, &checkpoint), Err(TreeHeadError::NotIncluded));
        assert_eq!(with(&entry, &"0".repeat(64), &checkpoint), Err(TreeHeadError::NotIncluded));
        assert_eq!(with(&entry, &salt, &notes[7]), Err(TreeHeadError::NotIncluded));
        let other = super::tests::key(8);
        let foreign = self::notes(&entries, &other).0;
        assert!(matches!(with(&entry, &salt, &foreign[8]), Err(TreeHeadError::Note(NoteError::Unsigned { .. }))));
    }

    #[test]
    fn a_rewritten_chain_does_not_continue_an_older_checkpoint() {
        let (honest, key) = (chain(9), key(7));
        // The same first entry, so the same origin and key.
        let mut forged = honest[..3].to_vec();
        for sequence in 4..=9 {
            let event = honest[sequence as usize - 2].event.clone();
            forged.push(Entry::chain(sequence, forged.last().unwrap().hash, event));
        }
        let ((notes, leaves), (forged_notes, forged_leaves)) = (notes(&honest, &key), notes(&forged, &key));
        let verifier = verifier(&honest, &key);
        for (old, new) in [(0, 0), (0, 8), (3, 8), (6, 7), (8, 8)] {
            let proof = Proof::of_checkpoints(&notes[old], &notes[new], &leaves, &key).unwrap();
            assert!(matches!(proof.verify(&verifier), Ok(Proven::Consistency { .. })), "{old} {new}");
        }
        let refused = Proof::of_checkpoints(&notes[5], &forged_notes[8], &forged_leaves, &key);
        assert_eq!(refused, Err(TreeHeadError::OtherChain));
        let Ok(Proof::Consistency { hashes, new, .. }) =
            Proof::of_checkpoints(&forged_notes[5], &forged_notes[8], &forged_leaves, &key)
        else {
            panic!()
        };
        let mixed = Proof::Consistency { hashes, old: notes[5].clone(), new };
        assert_eq!(mixed.verify(&verifier), Err(TreeHeadError::Inconsistent));
        let swapped = Err(TreeHeadError::Swapped { old: 9, new: 4 });
        assert_eq!(Proof::of_checkpoints(&notes[8], &notes[3], &leaves, &key), swapped);
        let forks = Proof::Consistency { hashes: Vec::new(), old: notes[8].clone(), new: forged_notes[8].clone() };
        assert_eq!(forks.verify(&verifier), Err(TreeHeadError::Inconsistent));
    }
}
