//! The limits on exports of the audit chain at a time, and the runtime that they run on.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::runtime::Handle;

/// The most exports at a time.
const EXPORTS_MAX: usize = 16;
/// The most exports of one peer at a time.
const EXPORTS_PER_PEER_MAX: usize = 4;

/// The running exports. The clones share them.
#[derive(Clone)]
pub(super) struct Exports {
    /// The main runtime of the engine: reading the store does not yield, so an export would delay the calls of its thread.
    pub(super) runtime: Handle,
    running: Arc<Mutex<HashMap<Arc<str>, usize>>>,
}

impl Exports {
    /// Call this on the main runtime of the engine.
    pub(super) fn new() -> Self {
        Self { runtime: Handle::current(), running: Arc::default() }
    }

    /// Counts an export of this peer until the permit is dropped; `None` at a limit.
    pub(super) fn admit(&self, peer: &Arc<str>) -> Option<ExportPermit> {
        let mut running = self.running();
        let of_peer = running.get(peer).copied().unwrap_or_default();
        if of_peer >= EXPORTS_PER_PEER_MAX || running.values().sum::<usize>() >= EXPORTS_MAX {
            return None;
        }
        running.insert(Arc::clone(peer), of_peer + 1);
        Some(ExportPermit { exports: self.clone(), peer: Arc::clone(peer) })
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a running export.
pub(super) struct ExportPermit {
    exports: Exports,
    peer: Arc<str>,
}

impl Drop for ExportPermit {
    fn drop(&mut self) {
        let mut running = self.exports.running();
        match running.get_mut(&self.peer) {
            Some(exports) if *exports > 1 => *exports -= 1,
            _ => drop(running.remove(&self.peer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_peer_has_a_share_of_the_exports() {
        let exports = Exports::new();
        let admit = |peer: usize| exports.admit(&peer.to_string().into());
        let mut running = Vec::new();
        for peer in 0..EXPORTS_MAX / EXPORTS_PER_PEER_MAX {
            running.extend((0..EXPORTS_PER_PEER_MAX).map(|_| admit(peer).unwrap()));
            assert!(admit(peer).is_none());
        }
        assert!(admit(EXPORTS_MAX).is_none());
        running.pop();
        assert!(admit(0).is_none());
        running.push(admit(EXPORTS_MAX).unwrap());
        running.clear();
        assert!(exports.running().is_empty());
    }
}
