//! The reserve: below so much free space the store begins no work, so that the controls that are open can be finished. A
//! commit that finds the disk full fails the store.

use std::path::PathBuf;

use rustix::fs::statvfs;

use super::{Shared, locked};
use store::StoreState;

/// The free space that a store keeps.
pub(super) struct Reserve {
    /// The directory of the store.
    pub(super) directory: PathBuf,
    /// 0 where the store keeps none.
    pub(super) bytes: u64,
}

impl Reserve {
    /// The free bytes of the disk for users other than root. A disk whose free space can't be read has none.
    pub(super) fn free_bytes(&self) -> u64 {
        statvfs(&self.directory).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// The free bytes from which a store that is low on space opens again: an eighth more than the reserve. Files that the
    /// store writes and removes in the background change its state once, not many times.
    fn reopens_at_bytes(&self) -> u64 {
        self.bytes.saturating_add(self.bytes / 8)
    }

    /// Whether so much free space is too little.
    fn is_low(&self, free_bytes: u64, was_low: bool) -> bool {
        free_bytes < if was_low { self.reopens_at_bytes() } else { self.bytes }
    }
}

impl Shared {
    /// Reads the free space. Changes the state between [`StoreState::Open`] and [`StoreState::LowOnSpace`], and no other.
    pub(super) fn check_space(&self) {
        let (free_bytes, reserve_bytes) = (self.reserve.free_bytes(), self.reserve.bytes);
        let reopens_at_bytes = self.reserve.reopens_at_bytes();
        let _queue = locked(&self.queue);
        self.state.send_if_modified(|state| {
            let is_low = self.reserve.is_low(free_bytes, *state == StoreState::LowOnSpace);
            match (&*state, is_low) {
                (StoreState::Open, true) => {
                    tracing::error!(
                        store = self.place,
                        free_bytes,
                        reserve_bytes,
                        reopens_at_bytes,
                        "low on space: no control is opened"
                    );
                    *state = StoreState::LowOnSpace;
                    true
                }
                (StoreState::LowOnSpace, false) => {
                    tracing::info!(store = self.place, free_bytes, reserve_bytes, "space again: controls are opened");
                    *state = StoreState::Open;
                    true
                }
                _ => false,
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_low_on_space_needs_an_eighth_more_than_its_reserve() {
        let reserve = Reserve { directory: "/".into(), bytes: 800 };
        assert_eq!([799, 800].map(|free| reserve.is_low(free, false)), [true, false]);
        assert_eq!([899, 900].map(|free| reserve.is_low(free, true)), [true, false]);
        let none = Reserve { bytes: 0, ..reserve };
        assert!(!none.is_low(0, false) && !none.is_low(0, true));
    }

    #[test]
    fn a_disk_that_cannot_be_read_has_no_free_space() {
        let absent = Reserve { directory: "/nonexistent/store".into(), bytes: 1 };
        assert_eq!(absent.free_bytes(), 0);
        assert!(Reserve { directory: "/".into(), bytes: 1 }.free_bytes() > 0);
    }
}
