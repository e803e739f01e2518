//! Live controls in memory: each as the very bytes on disk, in shards, so that a reader waits for no disk and no other
//! reader's shard.

use std::{
    hash::BuildHasher,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};

use super::codec::{ID_BYTES, decode_control, expiry_of, id_of, is_of};
use crate::{
    card::CardKey,
    clock::UnixMillis,
    control::{Control, ControlId, is_over},
};

/// How many shards; a control's own first byte chooses.
pub(super) const SHARDS: usize = 64;
/// A control as it stands on disk, its name first: two words of the table and one allocation each.
pub(super) type Row = Box<[u8]>;

/// All controls that have not been swept.
pub(super) struct LiveControls {
    shards: Vec<RwLock<HashTable<Row>>>,
    hasher: DefaultHashBuilder,
}

impl LiveControls {
    pub(super) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| RwLock::default()).collect();
        Self { shards, hasher: DefaultHashBuilder::default() }
    }

    /// A control, if it is here and can be read.
    pub(super) fn find(&self, id: ControlId) -> Option<Control> {
        let shard = self.read(id)?;
        let row = shard.find(self.hash(id.as_bytes()), |row| row.starts_with(id.as_bytes()))?;
        decode_control(row)
    }

    pub(super) fn put(&self, id: ControlId, row: Row) {
        let Some(mut shard) = self.write(id) else { return };
        let same = |row: &Row| row.starts_with(id.as_bytes());
        match shard.entry(self.hash(id.as_bytes()), same, |row| self.hash(name_of(row))) {
            Entry::Occupied(mut old) => *old.get_mut() = row,
            Entry::Vacant(place) => {
                place.insert(row);
            }
        }
    }

    /// Forgets the controls of one shard that were over at `moment`.
    pub(super) fn sweep(&self, shard: usize, moment: UnixMillis) {
        let Some(shard) = self.shards.get(shard % SHARDS) else { return };
        let live = |row: &Row| expiry_of(row).is_some_and(|expiry| !is_over(expiry, moment));
        // Readers wait only where there is something to forget.
        if shard.read().unwrap_or_else(PoisonError::into_inner).iter().all(live) {
            return;
        }
        shard.write().unwrap_or_else(PoisonError::into_inner).retain(|row| live(row));
    }

    /// Those of a card: a walk through all of them.
    pub(super) fn of_card(&self, card: &CardKey) -> Vec<ControlId> {
        let is_its = is_of(card);
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            found.extend(shard.iter().filter(|row| is_its(row)).filter_map(|row| id_of(row)));
        }
        found
    }

    /// Each that can be read. A writer of a shard waits until the walk has left it.
    pub(super) fn each(&self, mut visit: impl FnMut(Control)) {
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            shard.iter().filter_map(|row| decode_control(row)).for_each(&mut visit);
        }
    }

    pub(super) fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    fn hash(&self, name: &[u8]) -> u64 {
        self.hasher.hash_one(name)
    }

    fn read(&self, id: ControlId) -> Option<RwLockReadGuard<'_, HashTable<Row>>> {
        Some(self.shard(id)?.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, id: ControlId) -> Option<RwLockWriteGuard<'_, HashTable<Row>>> {
        Some(self.shard(id)?.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn shard(&self, id: ControlId) -> Option<&RwLock<HashTable<Row>>> {
        let [first, ..] = id.as_bytes();
        self.shards.get(usize::from(*first) % SHARDS)
    }
}

fn name_of(row: &[u8]) -> &[u8] {
    row.get(..ID_BYTES).unwrap_or_default()
}
