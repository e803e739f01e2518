//! The salted root of the items of a stream: one hash in the event of many items.

use sha2::{Digest, Sha256};

use super::card_reference::CardReferenceKey;
use super::tree::{GrowingTree, Hash, leaf_hash};
use domain::request_id::RequestId;

/// The root of the tree over the items of a segment of a stream (RFC 6962, 2.1). A leaf is a salt and the SHA-256 of an item.
///
/// The salt follows from the store's key of the card references, so the owner of the store can show that an item is in the
/// segment, and a reader of the event can test no guess of an item.
///
/// ```
/// use audit::{card_reference::CardReferenceKey, items_root::ItemsRoot};
/// use domain::request_id::RequestId;
///
/// let (key, request) = (CardReferenceKey::from_bytes([1; 32]), RequestId::from_bytes([2; 16]));
/// let mut items = ItemsRoot::new(&key, &request, 1);
/// items.push(b"an item");
/// assert_eq!(items.count(), 1);
/// assert_ne!(items.root(), ItemsRoot::new(&key, &request, 1).root());
/// ```
#[derive(Clone, Debug)]
pub struct ItemsRoot {
    salt: Hash,
    tree: GrowingTree,
}

impl ItemsRoot {
    /// The root of the segment of the stream of `request` that begins with item `first`.
    pub fn new(key: &CardReferenceKey, request: &RequestId, first: u64) -> Self {
        Self { salt: key.items_salt(request, first), tree: GrowingTree::default() }
    }

    /// Adds the next item.
    pub fn push(&mut self, item: &[u8]) {
        self.tree.push(leaf_hash(&self.salt, &Sha256::digest(item).into()));
    }

    /// The number of items.
    pub fn count(&self) -> u64 {
        self.tree.size()
    }

    /// The root; of no item `SHA-256()`.
    pub fn root(&self) -> Hash {
        self.tree.root()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(key: u8, request: u8, first: u64, items: &[&[u8]]) -> Hash {
        let request = RequestId::from_bytes([request; 16]);
        let mut root = ItemsRoot::new(&CardReferenceKey::from_bytes([key; 32]), &request, first);
        items.iter().for_each(|item| root.push(item));
        root.root()
    }

    #[test]
    fn the_root_depends_on_the_salt_the_items_and_their_order() {
        let whole = root(1, 1, 1, &[b"a", b"b"]);
        assert_eq!(whole, root(1, 1, 1, &[b"a", b"b"]));
        let others = [
            root(2, 1, 1, &[b"a", b"b"]),
            root(1, 2, 1, &[b"a", b"b"]),
            root(1, 1, 2, &[b"a", b"b"]),
            root(1, 1, 1, &[b"b", b"a"]),
            root(1, 1, 1, &[b"a"]),
            root(1, 1, 1, &[b"ab"]),
        ];
        assert!(others.iter().all(|other| *other != whole));
    }
}
