//! Live controls in memory, packed, in shards: a reader waits neither for the disk nor for another shard.

use std::{
    collections::BTreeMap,
    hash::BuildHasher,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use hashbrown::DefaultHashBuilder;

use super::packed_control::{has_set, id_of, is_of, keep_until, unpack};
use super::packed_rows::PackedRows;
use domain::card::CardKey;
use domain::control::{Control, ControlId};
use domain::time::UnixMillis;

/// The number of shards. The first byte of a controlId selects the shard.
pub(super) const SHARDS: usize = 64;

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
    open: PackedRows,
    /// Controls that have set a PIN, by the span of time in which their retry may be confirmed last. These are many: a span
    /// is dropped whole, and a sweep need not look at each control.
    set: BTreeMap<u64, PackedRows>,
}

impl Shard {
    fn find(&self, hash: u64, id: ControlId) -> Option<&[u8]> {
        let in_spans = || self.set.values().find_map(|span| span.find(hash, id));
        self.open.find(hash, id).or_else(in_spans)
    }

    #[cfg(test)]
    fn count(&self) -> usize {
        self.open.count() + self.set.values().map(PackedRows::count).sum::<usize>()
    }
}

impl LiveControls {
    pub(super) fn new() -> Self {
        let shards = (0..SHARDS).map(|_| RwLock::default()).collect();
        Self { shards, hasher: DefaultHashBuilder::default() }
    }

    /// A control; `None` where it is not in memory or can't be unpacked.
    pub(super) fn find(&self, id: ControlId) -> Option<Control> {
        unpack(self.read(id)?.find(self.hasher.hash_one(id.as_bytes()), id)?)
    }

    /// Adds a control, or its newest state, as [`pack`](super::packed_control::pack) returns it.
    pub(super) fn put(&self, id: ControlId, packed: &[u8]) {
        let Some(mut shard) = self.write(id) else { return };
        let put = if has_set(packed) {
            shard.open.remove(id, &self.hasher);
            let until = keep_until(packed).map_or(u64::MAX, |until| until.0);
            shard.set.entry(until / SPAN_MILLISECONDS).or_default().put(id, packed, &self.hasher)
        } else {
            shard.open.put(id, packed, &self.hasher)
        };
        if put.is_err() {
            tracing::error!("a control has no place in memory: it is not usable before a restart of the engine");
        }
    }

    /// Removes the controls of one shard that had expired at `moment`; controls that have set a PIN once their whole span
    /// has expired.
    pub(super) fn sweep(&self, shard: usize, moment: UnixMillis) {
        let Some(shard) = self.shards.get(shard % SHARDS) else { return };
        let is_kept = |packed: &[u8]| keep_until(packed).is_some_and(|until| moment < until);
        let is_over = |span: u64| span.saturating_add(1).saturating_mul(SPAN_MILLISECONDS) <= moment.0;
        // Readers wait only where there is a control to remove.
        let held = shard.read().unwrap_or_else(PoisonError::into_inner);
        if held.open.iter().all(is_kept) && held.set.first_key_value().is_none_or(|(span, _)| !is_over(*span)) {
            return;
        }
        drop(held);
        let mut held = shard.write().unwrap_or_else(PoisonError::into_inner);
        held.open.retain(is_kept, &self.hasher);
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
            found.extend(shard.open.iter().filter(|packed| is_its(packed)).filter_map(id_of));
        }
        found
    }

    /// Visits each control that can be unpacked and has not set a PIN. The writer waits while its shard is visited.
    pub(super) fn each(&self, mut visit: impl FnMut(Control)) {
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            shard.open.iter().filter_map(unpack).for_each(&mut visit);
        }
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner).count()).sum()
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

#[cfg(test)]
mod tests {
    use super::super::packed_control::pack;
    use super::*;
    use domain::card::{PlasticId, Tenant};
    use domain::control::{ControlState, RETRY_GRACE, RetryTag, Scope, SealedTzpk, Spent};
    use std::sync::atomic::{AtomicBool, Ordering};

    const EXPIRY: UnixMillis = UnixMillis(1_000_000);

    fn card() -> CardKey {
        CardKey { tenant: Tenant::parse("bank").unwrap(), plastic: PlasticId::parse("007").unwrap() }
    }

    fn control(expires_at: UnixMillis) -> Control {
        Control {
            id: ControlId::random(),
            card: card(),
            account: None,
            scope: Scope::SetPin,
            expires_at,
            opened_generation: 1,
            device_key: None,
            page: None,
            state: ControlState::Open,
        }
    }

    fn put(live: &LiveControls, control: &Control) -> ControlId {
        live.put(control.id, &pack(control));
        control.id
    }

    fn sweep(live: &LiveControls, moment: UnixMillis) {
        (0..SHARDS).for_each(|shard| live.sweep(shard, moment));
    }

    #[test]
    fn a_control_that_set_a_pin_is_found_and_is_not_open() {
        let live = LiveControls::new();
        let mut control = control(EXPIRY);
        let states = [
            ControlState::Open,
            ControlState::Keyed { tzpk: SealedTzpk([7; 48].into()), refused_pins: 0 },
            ControlState::Keyed { tzpk: SealedTzpk([8; 48].into()), refused_pins: 1 },
        ];
        for state in states {
            control.state = state;
            put(&live, &control);
            assert_eq!((live.count(), live.of_card(&card())), (1, vec![control.id]));
            assert_eq!(pack(&live.find(control.id).unwrap()), pack(&control));
        }
        control.state = ControlState::Spent(Spent::Set(RetryTag([9; 16])));
        put(&live, &control);
        assert_eq!((live.count(), live.of_card(&card())), (1, Vec::new()));
        live.each(|_| panic!("no control is open"));
        assert_eq!(pack(&live.find(control.id).unwrap()), pack(&control));
    }

    #[test]
    fn a_control_that_set_a_pin_is_swept_with_its_whole_span() {
        let live = LiveControls::new();
        let id = put(&live, &Control { state: ControlState::Spent(Spent::Set(RetryTag([9; 16]))), ..control(EXPIRY) });
        sweep(&live, EXPIRY.after(RETRY_GRACE));
        assert!(live.find(id).is_some());
        sweep(&live, UnixMillis(EXPIRY.after(RETRY_GRACE).0 + SPAN_MILLISECONDS));
        assert!(live.find(id).is_none());
        assert_eq!(live.count(), 0);
    }

    #[test]
    fn readers_find_every_kept_control_while_expired_ones_are_swept() {
        let live = LiveControls::new();
        let kept: Vec<_> = (0..2_000).map(|_| put(&live, &control(UnixMillis(EXPIRY.0 + 1)))).collect();
        let has_ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let read_all = || {
                while !has_ended.load(Ordering::Relaxed) {
                    assert!(kept.iter().all(|id| live.find(*id).is_some_and(|control| control.id == *id)));
                }
            };
            let reader = scope.spawn(read_all);
            let are_swept = (0..10).all(|_| {
                let expired: Vec<_> = (0..2_000).map(|_| put(&live, &control(EXPIRY))).collect();
                sweep(&live, EXPIRY);
                expired.iter().all(|id| live.find(*id).is_none())
            });
            has_ended.store(true, Ordering::Relaxed);
            reader.join().unwrap();
            assert!(are_swept);
        });
        assert_eq!(live.count(), kept.len());
    }
}
