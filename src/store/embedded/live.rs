//! Live controls in memory: each as the very bytes on disk, in shards, so that a reader waits for no disk and no other
//! reader's shard.

use std::{
    hash::BuildHasher,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};

use super::codec::{decode_control, expiry_of};
use crate::{
    clock::UnixMillis,
    control::{Control, ControlId},
};

/// How many shards; a control's own first byte chooses.
pub(super) const SHARDS: usize = 64;
/// Of a controlId.
const ID_BYTES: usize = 16;

/// A control's name and then its bytes on disk, in one piece: two words of the table and one allocation each.
type Row = Box<[u8]>;

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
        decode_control(id, bytes_of(row))
    }

    pub(super) fn put(&self, id: ControlId, bytes: &[u8]) {
        let Some(mut shard) = self.write(id) else { return };
        let row = [id.as_bytes(), bytes].concat().into_boxed_slice();
        let same = |row: &Row| row.starts_with(id.as_bytes());
        match shard.entry(self.hash(id.as_bytes()), same, |row| self.hash(name_of(row))) {
            Entry::Occupied(mut old) => *old.get_mut() = row,
            Entry::Vacant(place) => {
                place.insert(row);
            }
        }
    }

    pub(super) fn remove(&self, id: ControlId) {
        let Some(mut shard) = self.write(id) else { return };
        if let Ok(row) = shard.find_entry(self.hash(id.as_bytes()), |row| row.starts_with(id.as_bytes())) {
            row.remove();
        }
    }

    /// Up to `limit` controls of one shard that expired before `moment`.
    pub(super) fn expired(&self, shard: usize, moment: UnixMillis, limit: usize) -> Vec<ControlId> {
        let Some(shard) = self.shards.get(shard % SHARDS) else { return Vec::new() };
        let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
        let expired = shard.iter().filter(|row| expiry_of(bytes_of(row)).is_none_or(|expiry| expiry < moment));
        expired.filter_map(|row| name_of(row).try_into().ok().map(ControlId::from_bytes)).take(limit).collect()
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

fn bytes_of(row: &[u8]) -> &[u8] {
    row.get(ID_BYTES..).unwrap_or_default()
}
