//! The Merkle tree over the entries of a chain (RFC 6962, 2.1, with SHA-256), its proofs and their verification.
//!
//! A leaf is a salt of 32 bytes and the hash of an entry. Without the salt, nobody can test a guess of an entry against the
//! hashes of a proof.

use sha2::{Digest, Sha256};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// The hash of a leaf: `SHA-256(00 || salt || entry)`.
pub fn leaf_hash(salt: &Hash, entry: &Hash) -> Hash {
    Sha256::new().chain_update([0]).chain_update(salt).chain_update(entry).finalize().into()
}

fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// A tree that grows. It holds the roots of the complete subtrees only, at most 64 hashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrowingTree {
    size: u64,
    /// The roots of the complete subtrees, the largest first: one for each bit of `size`.
    subtrees: Vec<Hash>,
}

impl GrowingTree {
    /// The tree with these roots of complete subtrees, the largest first; `None` where their number does not fit the size.
    pub fn from_subtrees(size: u64, subtrees: Vec<Hash>) -> Option<Self> {
        (u32::try_from(subtrees.len()) == Ok(size.count_ones())).then_some(Self { size, subtrees })
    }

    /// The roots of the complete subtrees, the largest first.
    pub fn subtrees(&self) -> &[Hash] {
        &self.subtrees
    }

    /// The number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root of the complete subtree over the leaves from `start` on, up to `end`; `None` where it is not one of those held.
    fn subtree(&self, start: u64, end: u64) -> Option<Hash> {
        let bits = (0..u64::BITS).rev().filter(|bit| self.size >> bit & 1 == 1);
        let mut at = 0;
        for (bit, root) in bits.zip(&self.subtrees) {
            let next = at + (1 << bit);
            if (at, next) == (start, end) {
                return Some(*root);
            }
            at = next;
        }
        None
    }

    /// Appends a leaf.
    pub fn push(&mut self, leaf: Hash) {
        let (mut hash, mut left) = (leaf, self.size);
        while left & 1 == 1
            && let Some(before) = self.subtrees.pop()
        {
            hash = node_hash(&before, &hash);
            left >>= 1;
        }
        self.subtrees.push(hash);
        self.size = self.size.saturating_add(1);
    }

    /// The root; of an empty tree `SHA-256()`.
    pub fn root(&self) -> Hash {
        let mut smallest_first = self.subtrees.iter().rev();
        let Some(last) = smallest_first.next() else { return Sha256::digest([]).into() };
        smallest_first.fold(*last, |right, left| node_hash(left, &right))
    }
}

/// The root of the tree over these leaves.
pub fn root(leaves: &[Hash]) -> Hash {
    let mut tree = GrowingTree::default();
    leaves.iter().for_each(|leaf| tree.push(*leaf));
    tree.root()
}

/// The leaves of a tree, from which proofs are made. Of the first ones, the roots of their complete subtrees may be all that
/// is known: then a proof for a later leaf, or for a later tree, can still be made.
#[derive(Clone, Debug, Default)]
pub struct Leaves {
    before: GrowingTree,
    known: Vec<Hash>,
}

impl Leaves {
    /// The leaves behind those of a tree.
    pub fn after(before: GrowingTree) -> Self {
        Self { before, known: Vec::new() }
    }

    /// Appends a leaf.
    pub fn push(&mut self, leaf: Hash) {
        self.known.push(leaf);
    }

    /// The number of leaves.
    pub fn size(&self) -> u64 {
        self.before.size.saturating_add(u64::try_from(self.known.len()).unwrap_or(u64::MAX))
    }

    /// The root of the tree over the first `size` leaves; `None` where there are fewer, or it follows from no known hash.
    pub fn root(&self, size: u64) -> Option<Hash> {
        self.subtree(0, size)
    }

    /// The root over the leaves from `start` on, up to `end`.
    fn subtree(&self, start: u64, end: u64) -> Option<Hash> {
        if let Some(from) = start.checked_sub(self.before.size) {
            let to = end.checked_sub(self.before.size)?;
            return self.known.get(usize::try_from(from).ok()?..usize::try_from(to).ok()?).map(root);
        }
        if let Some(root) = self.before.subtree(start, end) {
            return Some(root);
        }
        let middle = split(start, end)?;
        Some(node_hash(&self.subtree(start, middle)?, &self.subtree(middle, end)?))
    }

    /// The proof that the leaf at `index`, from 0, is in the tree over the first `size` leaves (RFC 6962, 2.1.1); `None` where
    /// it is not, or the hashes are not known.
    pub fn prove_inclusion(&self, index: u64, size: u64) -> Option<Vec<Hash>> {
        (index < size && size <= self.size()).then_some(())?;
        let (mut start, mut end, mut proof) = (0, size, Vec::new());
        while let Some(middle) = split(start, end) {
            if index < middle {
                proof.push(self.subtree(middle, end)?);
                end = middle;
            } else {
                proof.push(self.subtree(start, middle)?);
                start = middle;
            }
        }
        proof.reverse();
        Some(proof)
    }

    /// The proof that the tree over the first `size` leaves continues the tree over the first `old` of them (RFC 6962, 2.1.2);
    /// `None` where there are fewer, for an `old` of 0, and where the hashes are not known.
    pub fn prove_consistency(&self, old: u64, size: u64) -> Option<Vec<Hash>> {
        ((1..=size).contains(&old) && size <= self.size()).then_some(())?;
        let (mut start, mut end, mut proof) = (0, size, Vec::new());
        while old < end {
            let middle = split(start, end)?;
            if old <= middle {
                proof.push(self.subtree(middle, end)?);
                end = middle;
            } else {
                proof.push(self.subtree(start, middle)?);
                start = middle;
            }
        }
        // A verifier knows the root of the whole old tree.
        if start > 0 {
            proof.push(self.subtree(start, end)?);
        }
        proof.reverse();
        Some(proof)
    }
}

/// The end of the left subtree of the leaves `start` to `end`: the largest complete tree smaller than the whole; `None` for a
/// single leaf.
fn split(start: u64, end: u64) -> Option<u64> {
    let highest = end.checked_sub(start)?.checked_sub(1)?.checked_ilog2()?;
    start.checked_add(1 << highest)
}

/// Whether `proof` shows that the leaf at `index`, from 0, is in the tree of `size` leaves with this root (RFC 9162, 2.1.3.2).
pub fn verify_inclusion(leaf: Hash, index: u64, size: u64, root: &Hash, proof: &[Hash]) -> bool {
    let Some(mut last) = size.checked_sub(1).filter(|last| index <= *last) else { return false };
    let (mut at, mut hash) = (index, leaf);
    for other in proof {
        if last == 0 {
            return false;
        }
        hash = if is_right(at, last) { node_hash(other, &hash) } else { node_hash(&hash, other) };
        climb(&mut at, &mut last);
    }
    last == 0 && hash == *root
}

/// Whether `proof` shows that the tree `new` continues the tree `old`, each of a size and a root (RFC 9162, 2.1.4.2). Every
/// tree continues the empty tree.
pub fn verify_consistency(old: (u64, &Hash), new: (u64, &Hash), proof: &[Hash]) -> bool {
    let ((old_size, old_root), (new_size, new_root)) = (old, new);
    if old_size == new_size || old_size == 0 {
        let same = old_size > 0 && old_root == new_root;
        return proof.is_empty() && (same || (old_size == 0 && *old_root == root(&[])));
    }
    if old_size > new_size {
        return false;
    }
    let (mut at, mut last) = (old_size - 1, new_size - 1);
    while at & 1 == 1 {
        at >>= 1;
        last >>= 1;
    }
    // A complete old tree is a subtree of the new one: its root is not part of the proof.
    let known = old_size.is_power_of_two().then_some(old_root);
    let mut hashes = known.into_iter().chain(proof);
    let Some(first) = hashes.next() else { return false };
    let (mut old_hash, mut new_hash) = (*first, *first);
    for other in hashes {
        if last == 0 {
            return false;
        }
        if is_right(at, last) {
            old_hash = node_hash(other, &old_hash);
            new_hash = node_hash(other, &new_hash);
        } else {
            new_hash = node_hash(&new_hash, other);
        }
        climb(&mut at, &mut last);
    }
    last == 0 && old_hash == *old_root && new_hash == *new_root
}

/// Whether the next hash of a proof is to the left of the node at `at`, where `last` is the last node of its level.
fn is_right(at: u64, last: u64) -> bool {
    at & 1 == 1 || at == last
}

/// Goes to the level of the next hash of a proof.
fn climb(at: &mut u64, last: &mut u64) {
    // The last node of a level without a right neighbour is also the node of the next level.
    while *at == *last && *at & 1 == 0 && *at != 0 {
        *at >>= 1;
        *last >>= 1;
    }
    *at >>= 1;
    *last >>= 1;
}

#[cfg(test)]
mod tests {
    use tlog_tiles::{Hash as TlogHash, HashReader, tlog::Error as TlogError};

    use super::*;

    fn leaves(count: u64) -> Vec<Hash> {
        (0..count).map(|number| leaf_hash(&[7; 32], &Sha256::digest(number.to_be_bytes()).into())).collect()
    }

    /// All leaves, or those behind the first `archived`, of which the subtrees are known.
    fn known(all: &[Hash], archived: usize) -> Leaves {
        let mut before = GrowingTree::default();
        all[..archived].iter().for_each(|leaf| before.push(*leaf));
        let mut leaves = Leaves::after(before);
        all[archived..].iter().for_each(|leaf| leaves.push(*leaf));
        leaves
    }

    fn prove_inclusion(leaves: &[Hash], index: usize) -> Option<Vec<Hash>> {
        known(leaves, 0).prove_inclusion(index as u64, leaves.len() as u64)
    }

    fn prove_consistency(leaves: &[Hash], old: usize) -> Option<Vec<Hash>> {
        known(leaves, 0).prove_consistency(old as u64, leaves.len() as u64)
    }

    /// The stored hashes of tlog_tiles, another author's tree.
    struct Tlog(Vec<TlogHash>);

    impl HashReader for Tlog {
        fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<TlogHash>, TlogError> {
            Ok(indexes.iter().map(|index| self.0[usize::try_from(*index).unwrap()]).collect())
        }
    }

    impl Tlog {
        fn of(leaves: &[Hash]) -> Self {
            let mut stored = Self(Vec::new());
            for (number, leaf) in (0..).zip(leaves) {
                let more = tlog_tiles::stored_hashes_for_record_hash(number, TlogHash(*leaf), &stored).unwrap();
                stored.0.extend(more);
            }
            stored
        }
    }

    #[test]
    fn roots_and_proofs_are_those_of_tlog_tiles() {
        let all = leaves(40);
        for size in 1..=40 {
            let (leaves, tlog) = (&all[..size], Tlog::of(&all[..size]));
            let (count, ours) = (size as u64, root(leaves));
            assert_eq!(ours, tlog_tiles::tree_hash(count, &tlog).unwrap().0);
            for index in 0..size {
                let proof = prove_inclusion(leaves, index).unwrap();
                let theirs = tlog_tiles::prove_record(count, index as u64, &tlog).unwrap();
                assert_eq!(proof, theirs.iter().map(|hash| hash.0).collect::<Vec<_>>(), "{index} of {size}");
                assert!(verify_inclusion(leaves[index], index as u64, count, &ours, &proof), "{index} of {size}");
            }
            for old in 1..=size {
                let proof = prove_consistency(leaves, old).unwrap();
                let theirs = tlog_tiles::prove_tree(count, old as u64, &tlog).unwrap();
                assert_eq!(proof, theirs.iter().map(|hash| hash.0).collect::<Vec<_>>(), "{old} to {size}");
                let before = root(&leaves[..old]);
                assert!(verify_consistency((old as u64, &before), (count, &ours), &proof), "{old} to {size}");
            }
        }
    }

    #[test]
    fn proofs_behind_archived_leaves_are_the_same() {
        let all = leaves(40);
        let whole = known(&all, 0);
        for archived in 0..=40_usize {
            let kept = known(&all, archived);
            let first = archived as u64;
            assert_eq!(kept.size(), 40);
            for size in 1..=40 {
                // The root of a smaller tree than the archived one does not follow from its subtrees, with few exceptions.
                let root = kept.root(size);
                assert!(root == whole.root(size) || (root.is_none() && size < first), "{archived} {size}");
                for index in 0..40 {
                    let proof = kept.prove_inclusion(index, size);
                    let same = proof == whole.prove_inclusion(index, size);
                    assert!(same || (proof.is_none() && index.min(size - 1) < first), "{archived} {index} {size}");
                    let proof = kept.prove_consistency(index, size);
                    let same = proof == whole.prove_consistency(index, size);
                    assert!(same || (proof.is_none() && index.min(size) < first), "{archived} {index} to {size}");
                }
            }
        }
    }

    #[test]
    fn a_changed_proof_root_or_position_is_rejected() {
        for size in 1..=17_usize {
            let leaves = leaves(size as u64);
            let (root, count) = (root(&leaves), size as u64);
            for index in 0..size {
                let proof = prove_inclusion(&leaves, index).unwrap();
                let verify = |at, of, root: &Hash, proof: &[Hash]| verify_inclusion(leaves[index], at, of, root, proof);
                let at = index as u64;
                assert!(!verify(at, count, &[1; 32], &proof));
                assert!(!verify(count, count, &root, &proof) && !verify(at, 0, &root, &proof));
                assert!(!verify(at, count, &root, &[&*proof, &[[1; 32]]].concat()));
                (0..size).filter(|other| *other != index).for_each(|other| {
                    assert!(!verify(other as u64, count, &root, &proof), "{index} as {other} of {size}");
                });
                for cut in 0..proof.len() {
                    assert!(!verify(at, count, &root, &proof[..cut]));
                    let mut changed = proof.clone();
                    changed[cut][0] ^= 1;
                    assert!(!verify(at, count, &root, &changed));
                }
            }
        }
    }

    #[test]
    fn a_tree_with_a_changed_past_is_not_consistent() {
        let honest = leaves(23);
        let mut changed = honest.clone();
        changed[2][0] ^= 1;
        for old in 3..=22_usize {
            let (before, after) = (root(&honest[..old]), root(&changed));
            let proof = prove_consistency(&changed, old).unwrap();
            let (old, new) = ((old as u64, &before), (23, &after));
            assert!(!verify_consistency(old, new, &proof));
            assert!(!verify_consistency(new, old, &proof) && !verify_consistency(old, new, &[]));
        }
        assert!(!verify_consistency((5, &[1; 32]), (5, &[2; 32]), &[]));
        assert!(verify_consistency((0, &root(&[])), (23, &root(&honest)), &[]));
        assert_eq!(GrowingTree::from_subtrees(23, vec![[0; 32]; 3]), None);
        assert_eq!(
            (prove_inclusion(&honest, 23), prove_consistency(&honest, 24), prove_consistency(&honest, 0)),
            (None, None, None)
        );
    }
}
