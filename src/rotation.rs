//! Rotation of the storage key: PIN records under an older one are made anew under the newest, in the background, while
//! the engine serves. What is left to do is read off the records themselves, so that it goes on after any restart.
//!
//! What must never enter: a record's content; the use case (`pin`) hands it from the store to the boundary and back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    card::CardKey,
    pin::{Pins, RemakeError},
    store::StoreError,
};

/// How many cards are looked at, and at most how many records kept, in one transaction.
const PAGE_CARDS: usize = 256;
/// How long a boundary or store that is busy or away is given.
const PAUSE: Duration = Duration::from_millis(500);
/// How often it is told how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// How much was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Records looked at, in the pass that is under way.
    pub checked: u64,
    /// Records made anew, in all passes.
    pub remade: u64,
    /// Records that would not open, in the pass that is under way.
    pub failed: u64,
}

/// Goes through all records, again and again until a pass finds every one under the newest key; at most so many are made
/// anew a second.
pub async fn run(pins: Arc<Pins>, per_second: u32) {
    let began = Instant::now();
    let mut pace = Pace { per_second, began, remade: 0 };
    loop {
        let remade_before = pace.remade;
        let Ok(progress) = pass(&pins, &mut pace).await else {
            return tracing::error!("rotation: the store takes no more changes; it goes on after a restart");
        };
        if pace.remade > remade_before {
            continue;
        }
        if let Err(error) = pins.note_rotated(progress.checked, progress.failed).await {
            tracing::error!(%error, "rotation: its end is not in the audit chain; the next start tells it");
        }
        let Progress { checked, remade, failed } = progress;
        let (records_a_second, took) = (pace.rate(), began.elapsed());
        return match failed {
            0 => tracing::info!(
                checked,
                remade,
                records_a_second,
                ?took,
                "rotation: every PIN record is under the newest storage key"
            ),
            _ => {
                tracing::error!(checked, failed, "rotation: some PIN records do not open; keep the older storage keys")
            }
        };
    }
}

/// Looks at every record once.
async fn pass(pins: &Pins, pace: &mut Pace) -> Result<Progress, StoreError> {
    let (mut progress, mut after, mut told): (_, Option<CardKey>, _) = (Progress::default(), None, Instant::now());
    loop {
        let page = match pins.remake_page(after.as_ref(), PAGE_CARDS).await {
            Ok(page) => page,
            Err(RemakeError::Store(error @ StoreError::Damaged { .. })) => return Err(error),
            Err(RemakeError::Store(StoreError::Unavailable(reason))) => return Err(StoreError::Unavailable(reason)),
            Err(error) => {
                tracing::warn!(%error, "rotation: waits");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        progress.checked += page.checked;
        progress.failed += page.failed;
        pace.remade += page.remade;
        progress.remade = pace.remade;
        let Some(last) = page.last else { return Ok(progress) };
        after = Some(last);
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            let Progress { checked, remade, failed } = progress;
            tracing::info!(checked, remade, failed, records_a_second = pace.rate(), "rotation: goes on");
        }
        pace.keep().await;
    }
}

/// Holds the rate.
struct Pace {
    per_second: u32,
    began: Instant,
    remade: u64,
}

impl Pace {
    async fn keep(&self) {
        let due = Duration::from_micros(self.remade.saturating_mul(1_000_000) / u64::from(self.per_second.max(1)));
        match due.checked_sub(self.began.elapsed()) {
            Some(early) if !early.is_zero() => tokio::time::sleep(early).await,
            // However far behind, calls come first.
            _ => tokio::task::yield_now().await,
        }
    }

    fn rate(&self) -> u64 {
        let milliseconds = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        self.remade.saturating_mul(1_000) / milliseconds
    }
}
