//! Live controls in memory: each as the very bytes on disk, in shards, so that a reader waits for no disk and no other
//! reader's shard.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use super::codec::{decode_control, expiry_of};
use crate::{
    clock::UnixMillis,
    control::{Control, ControlId},
};

/// How many shards; a control's own first byte chooses.
pub(super) const SHARDS: usize = 64;

/// Controls by name, each as its bytes on disk.
type Shard = RwLock<HashMap<ControlId, Box<[u8]>>>;

/// All controls that have not been swept.
pub(super) struct LiveControls {
    shards: Vec<Shard>,
}

impl LiveControls {
    pub(super) fn new() -> Self {
        Self { shards: (0..SHARDS).map(|_| RwLock::default()).collect() }
    }

    /// A control, if it is here and can be read.
    pub(super) fn find(&self, id: ControlId) -> Option<Control> {
        let shard = self.shard(id)?.read().unwrap_or_else(PoisonError::into_inner);
        shard.get(&id).and_then(|bytes| decode_control(id, bytes))
    }

    pub(super) fn put(&self, id: ControlId, bytes: Box<[u8]>) {
        if let Some(shard) = self.shard(id) {
            shard.write().unwrap_or_else(PoisonError::into_inner).insert(id, bytes);
        }
    }

    pub(super) fn remove(&self, id: ControlId) {
        if let Some(shard) = self.shard(id) {
            shard.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
    }

    /// Up to `limit` controls of one shard that expired before `moment`.
    pub(super) fn expired(&self, shard: usize, moment: UnixMillis, limit: usize) -> Vec<ControlId> {
        let Some(shard) = self.shards.get(shard % SHARDS) else { return Vec::new() };
        let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
        let expired = shard.iter().filter(|(_, bytes)| expiry_of(bytes).is_none_or(|expiry| expiry < moment));
        expired.map(|(id, _)| *id).take(limit).collect()
    }

    pub(super) fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }

    fn shard(&self, id: ControlId) -> Option<&Shard> {
        let [first, ..] = id.as_bytes();
        self.shards.get(usize::from(*first) % SHARDS)
    }
}
