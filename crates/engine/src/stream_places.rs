//! The limits on long streams at a time, and the runtime of those that read the audit chain.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, SemaphorePermit},
};

/// The running streams of an engine, by kind. The clones share them.
#[derive(Clone)]
pub(super) struct Streaming {
    /// The main runtime of the engine: reading the store does not yield, so an export would delay the calls of its thread.
    pub(super) runtime: Handle,
    /// The exports of the audit chain.
    pub(super) exports: StreamPlaces,
    /// The calls that follow the events of a tenant.
    pub(super) events: StreamPlaces,
    /// The streams of items.
    pub(super) bulk: StreamPlaces,
    /// The items of all streams at a time.
    pub(super) items: Arc<ItemPlaces>,
}

impl Streaming {
    /// Call this on the main runtime of the engine.
    pub(super) fn new() -> Self {
        Self {
            runtime: Handle::current(),
            exports: StreamPlaces::new(16, 4),
            events: StreamPlaces::new(64, 4),
            bulk: StreamPlaces::new(16, 8),
            items: Arc::default(),
        }
    }
}

/// The places of the items that are worked on, of all streams. They leave half of the queues of store and boundary to calls
/// of one item: half of the default of `store.waiting_changes_max`, where an item waits longest, and half of a smaller queue
/// after an item found it full.
pub(super) struct ItemPlaces {
    free: Semaphore,
    max: Mutex<usize>,
}

impl Default for ItemPlaces {
    fn default() -> Self {
        Self { free: Semaphore::new(Self::MAX), max: Mutex::new(Self::MAX) }
    }
}

impl ItemPlaces {
    /// The most items at a time.
    pub(super) const MAX: usize = 2_048;

    /// Waits for a place, in the order of the calls. `None`: the semaphore is closed, which nothing does.
    pub(super) async fn take(&self) -> Option<SemaphorePermit<'_>> {
        self.free.acquire().await.ok()
    }

    /// Waits for a place, and takes as many as are free then, at most `wanted`.
    pub(super) async fn take_free(&self, wanted: usize) -> Option<SemaphorePermit<'_>> {
        let mut places = self.take().await?;
        let more = wanted.saturating_sub(1).min(self.free.available_permits());
        if let Some(more) = u32::try_from(more).ok().and_then(|more| self.free.try_acquire_many(more).ok()) {
            places.merge(more);
        }
        Some(places)
    }

    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.free.available_permits()
    }

    /// Gives a place back, of an item that found a queue of `limit` operations full.
    pub(super) fn give_back_busy(&self, place: Option<SemaphorePermit<'_>>, limit: usize) {
        let mut max = self.max.lock().unwrap_or_else(PoisonError::into_inner);
        if *max > (limit / 2).max(1)
            && let Some(place) = place
        {
            *max -= 1;
            place.forget();
        }
    }
}

/// The running streams of one kind. The clones share them.
#[derive(Clone)]
pub(super) struct StreamPlaces {
    max: usize,
    per_peer_max: usize,
    running: Arc<Mutex<HashMap<Arc<str>, usize>>>,
}

impl StreamPlaces {
    /// At most `max` streams at a time, of which one peer has at most `per_peer_max`.
    fn new(max: usize, per_peer_max: usize) -> Self {
        Self { max, per_peer_max, running: Arc::default() }
    }

    /// Counts a stream of this peer until the permit is dropped; `None` at a limit.
    pub(super) fn admit(&self, peer: &Arc<str>) -> Option<StreamPermit> {
        let mut running = self.running();
        let of_peer = running.get(peer).copied().unwrap_or_default();
        if of_peer >= self.per_peer_max || running.values().sum::<usize>() >= self.max {
            return None;
        }
        running.insert(Arc::clone(peer), of_peer + 1);
        Some(StreamPermit { places: self.clone(), peer: Arc::clone(peer) })
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a running stream.
pub(super) struct StreamPermit {
    places: StreamPlaces,
    peer: Arc<str>,
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        let mut running = self.places.running();
        match running.get_mut(&self.peer) {
            Some(streams) if *streams > 1 => *streams -= 1,
            _ => drop(running.remove(&self.peer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn items_leave_half_of_a_full_queue_to_calls() {
        let places = ItemPlaces::default();
        for _ in 0..2 * ItemPlaces::MAX {
            // A queue that is larger than the items changes nothing.
            places.give_back_busy(places.take().await, 4_096);
        }
        assert_eq!(places.free(), ItemPlaces::MAX);
        for (limit, left) in [(100, 50), (64, 32), (1, 1)] {
            for _ in 0..2 * ItemPlaces::MAX {
                places.give_back_busy(places.take().await, limit);
            }
            assert_eq!(places.free(), left);
        }
    }

    #[tokio::test]
    async fn items_together_take_the_places_that_are_free() {
        let places = ItemPlaces::default();
        let taken = |places: &Option<SemaphorePermit<'_>>| places.as_ref().map(SemaphorePermit::num_permits);
        let most = places.take_free(ItemPlaces::MAX - 10).await;
        assert_eq!(taken(&most), Some(ItemPlaces::MAX - 10));
        let rest = places.take_free(64).await;
        assert_eq!(taken(&rest), Some(10));
        let mut waiting = std::pin::pin!(places.take_free(64));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        drop(rest);
        assert_eq!(taken(&waiting.await), Some(10));
        drop(most);
        assert_eq!(places.free(), ItemPlaces::MAX);
    }

    #[test]
    fn a_peer_has_a_share_of_the_streams() {
        let places = StreamPlaces::new(16, 4);
        let admit = |peer: usize| places.admit(&peer.to_string().into());
        let mut running = Vec::new();
        for peer in 0..4 {
            running.extend((0..4).map(|_| admit(peer).unwrap()));
            assert!(admit(peer).is_none());
        }
        assert!(admit(5).is_none());
        running.pop();
        assert!(admit(0).is_none());
        running.push(admit(5).unwrap());
        running.clear();
        assert!(places.running().is_empty());
    }
}
