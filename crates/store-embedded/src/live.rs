//! Live controls in memory, each as its bytes on disk, in shards: a reader waits neither for the disk nor for another shard.

use std::{
    collections::BTreeMap,
    hash::BuildHasher,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};

use domain::card::CardKey;
use domain::control::{Control, ControlId};
use domain::time::UnixMillis;
use store::codec::{ID_BYTES, decode_control, has_set, id_of, is_of, keep_until};

/// The number of shards. The first byte of a controlId selects the shard.
pub(super) const SHARDS: usize = 64;
/// A control as on disk, its controlId first: two words of the table and one allocation each.
pub(super) type Row = Box<[u8]>;

/// The length of a span of [`Shard::set`], in milliseconds.
const SPAN_MILLISECONDS: u64 = 30_000;

/// All controls that have not been swept.
pub(super) struct LiveControls {
    shards: Vec<RwLock<Shard>>,
    hasher: DefaultHashBuilder,
}

#[derive(Default)]
struct Shard {
    /// Controls that have not set a PIN.
    open: HashTable<Row>,
    /// Controls that have set a PIN, by the span of time in which their retry may be confirmed last. These are many: a span
    /// is dropped whole, and a sweep need not look at each control.
    set: BTreeMap<u64, HashTable<Row>>,
}

impl Shard {
    fn find(&self, hash: u64, id: ControlId) -> Option<&Row> {
        let same = |row: &Row| row.starts_with(id.as_bytes());
        self.open.find(hash, same).or_else(|| self.set.values().find_map(|span| span.find(hash, same)))
    }

    #[cfg(test)]
    fn count(&self) -> usize {
        self.open.len() + self.set.values().map(HashTable::len).sum::<usize>()
    }
}

impl LiveControls {
    pub(super) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| RwLock::default()).collect();
        Self { shards, hasher: DefaultHashBuilder::default() }
    }

    /// A control; `None` where it is not in memory or can't be decoded.
    pub(super) fn find(&self, id: ControlId) -> Option<Control> {
        let shard = self.read(id)?;
        let row = shard.find(self.hash(id.as_bytes()), id)?;
        decode_control(row)
    }

    pub(super) fn put(&self, id: ControlId, row: Row) {
        let Some(mut shard) = self.write(id) else { return };
        let same = |row: &Row| row.starts_with(id.as_bytes());
        let (hash, rehash) = (self.hash(id.as_bytes()), |row: &Row| self.hash(name_of(row)));
        let shard = &mut *shard;
        let table = if has_set(&row) {
            if let Ok(before) = shard.open.find_entry(hash, same) {
                before.remove();
            }
            let until = keep_until(&row).map_or(u64::MAX, |until| until.0);
            shard.set.entry(until / SPAN_MILLISECONDS).or_default()
        } else {
            &mut shard.open
        };
        match table.entry(hash, same, rehash) {
            Entry::Occupied(mut old) => *old.get_mut() = row,
            Entry::Vacant(place) => {
                place.insert(row);
            }
        }
    }

    /// Removes the controls of one shard that had expired at `moment`; controls that have set a PIN once their whole span
    /// has expired.
    pub(super) fn sweep(&self, shard: usize, moment: UnixMillis) {
        let Some(shard) = self.shards.get(shard % SHARDS) else { return };
        let is_kept = |row: &Row| keep_until(row).is_some_and(|until| moment < until);
        let is_over = |span: u64| span.saturating_add(1).saturating_mul(SPAN_MILLISECONDS) <= moment.0;
        // Readers wait only where there is a control to remove.
        let held = shard.read().unwrap_or_else(PoisonError::into_inner);
        if held.open.iter().all(is_kept) && held.set.first_key_value().is_none_or(|(span, _)| !is_over(*span)) {
            return;
        }
        drop(held);
        let mut held = shard.write().unwrap_or_else(PoisonError::into_inner);
        held.open.retain(|row| is_kept(row));
        let kept = held.set.iter().find_map(|(span, _)| (!is_over(*span)).then_some(*span));
        let kept = kept.map(|span| held.set.split_off(&span)).unwrap_or_default();
        let over = std::mem::replace(&mut held.set, kept);
        // No reader waits while the memory of many rows is freed.
        drop(held);
        drop(over);
    }

    /// The controls of a card that have not set a PIN. Walks through all controls.
    pub(super) fn of_card(&self, card: &CardKey) -> Vec<ControlId> {
        let is_its = is_of(card);
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            found.extend(shard.open.iter().filter(|row| is_its(row)).filter_map(|row| id_of(row)));
        }
        found
    }

    /// Visits each control that can be decoded and has not set a PIN. The writer waits while its shard is visited.
    pub(super) fn each(&self, mut visit: impl FnMut(Control)) {
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            shard.open.iter().filter_map(|row| decode_control(row)).for_each(&mut visit);
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner).count()).sum()
    }

    fn hash(&self, name: &[u8]) -> u64 {
        self.hasher.hash_one(name)
    }

    fn read(&self, id: ControlId) -> Option<RwLockReadGuard<'_, Shard>> {
        Some(self.shard(id)?.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self, id: ControlId) -> Option<RwLockWriteGuard<'_, Shard>> {
        Some(self.shard(id)?.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn shard(&self, id: ControlId) -> Option<&RwLock<Shard>> {
        let [first, ..] = id.as_bytes();
        self.shards.get(usize::from(*first) % SHARDS)
    }
}

fn name_of(row: &[u8]) -> &[u8] {
    row.get(..ID_BYTES).unwrap_or_default()
}
