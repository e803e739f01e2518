//! Rotation of the storage key: PIN records under an older one are made anew under the newest, in the background, while
//! the engine serves. What is left to do is read off the records themselves, so that it goes on after any restart.
//!
//! What must never enter: a record's content; the use case (`pin`) hands it from the store to the boundary and back.

mod census;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

pub use self::census::{Census, Page, Users};
use crate::pin::{Pins, RemakeError};
use domain::card::CardKey;
use store::StoreError;

/// How many cards are looked at, and at most how many records kept, in one transaction.
const PAGE_CARDS: usize = 256;
/// How long a boundary or store that is busy or away is given.
const PAUSE: Duration = Duration::from_millis(500);
/// How often it is told how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// How far a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Where it stands.
    pub state: State,
    /// The pass that is under way: 1, 2, 3 …
    pub pass: u32,
    /// Records in the store when the pass began.
    pub total: u64,
    /// Records looked at, in the pass.
    pub checked: u64,
    /// Records made anew, in all passes.
    pub remade: u64,
    /// Records that would not open, in the pass.
    pub failed: u64,
    /// Records made anew a second, so far.
    pub records_a_second: u64,
    /// The same at most.
    pub records_a_second_max: u32,
}

/// Where a rotation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is nothing to make anew.
    Idle,
    /// It is under way.
    Running,
    /// Every record is under the newest key.
    Done,
    /// Every record was looked at, and some do not open.
    DoneWithFailures,
    /// The store takes no more changes; it goes on after a restart.
    Stopped,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Idle, Self::Running, Self::Done, Self::DoneWithFailures, Self::Stopped];

    /// Whether nothing more will come.
    pub fn has_ended(self) -> bool {
        self != Self::Running
    }
}

impl Progress {
    /// Of an engine with one storage key.
    pub fn idle(records_a_second_max: u32) -> Self {
        Self {
            state: State::Idle,
            pass: 0,
            total: 0,
            checked: 0,
            remade: 0,
            failed: 0,
            records_a_second: 0,
            records_a_second_max,
        }
    }

    /// Of one that begins.
    pub fn begun(records_a_second_max: u32) -> Self {
        Self { state: State::Running, ..Self::idle(records_a_second_max) }
    }

    /// At the beginning of the next pass, over so many records.
    fn next_pass(self, total: u64) -> Self {
        Self { pass: self.pass.saturating_add(1), total, checked: 0, failed: 0, ..self }
    }
}

/// Whenever an older storage key is in use beside the newest: goes through all records, again and again until a pass
/// finds every one under the newest; at most so many are made anew a second. `told` always says how far it is.
pub async fn run(
    pins: Arc<Pins>,
    mut in_use: watch::Receiver<Arc<hsm_protocol::Status>>,
    told: watch::Sender<Progress>,
) {
    let mut rotated = None;
    loop {
        let status = Arc::clone(&in_use.borrow_and_update());
        // One that was started again with the keys it had changes nothing.
        if status.rotates() && rotated.as_deref() != Some(status.keys()) {
            rotated = Some(status.keys().to_vec());
            told.send_modify(|progress| *progress = Progress::begun(progress.records_a_second_max));
            let mut rotation = Rotation { pins: Arc::clone(&pins), told: told.clone(), pace: Pace::begun() };
            if let Err(error) = rotation.finish().await {
                told.send_modify(|progress| progress.state = State::Stopped);
                return tracing::error!(%error, "rotation: the store failed; the rotation goes on after a restart");
            }
        }
        // A boundary that never takes keys up has nobody who would tell.
        if in_use.changed().await.is_err() {
            return;
        }
    }
}

struct Rotation {
    pins: Arc<Pins>,
    told: watch::Sender<Progress>,
    pace: Pace,
}

impl Rotation {
    async fn finish(&mut self) -> Result<(), StoreError> {
        loop {
            let remade_before = self.progress().remade;
            self.begin_pass().await?;
            self.pass().await?;
            if self.progress().remade == remade_before {
                break;
            }
        }
        let Progress { checked, remade, failed, records_a_second, .. } = self.progress();
        if let Err(error) = self.pins.note_rotated(checked, failed).await {
            tracing::error!(%error, "rotation: its end is not in the audit chain; the next start tells it");
        }
        let (state, took) =
            (if failed == 0 { State::Done } else { State::DoneWithFailures }, self.pace.began.elapsed());
        self.told.send_modify(|progress| progress.state = state);
        match failed {
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
        }
        Ok(())
    }

    fn progress(&self) -> Progress {
        *self.told.borrow()
    }

    /// Finds out how many records there are to look at.
    async fn begin_pass(&mut self) -> Result<(), StoreError> {
        let mut census = Census::default();
        while census.take_page(&self.pins).await? == Page::More {
            tokio::task::yield_now().await;
        }
        if self.progress().pass == 0 {
            // What only counted is not made up for at a higher rate.
            self.pace = Pace::begun();
        }
        self.told.send_modify(|progress| *progress = progress.next_pass(census.total()));
        Ok(())
    }

    /// Looks at every record once.
    async fn pass(&mut self) -> Result<(), StoreError> {
        let (mut after, mut logged): (Option<CardKey>, _) = (None, Instant::now());
        loop {
            let page = match self.pins.remake_page(after.as_ref(), PAGE_CARDS).await {
                Ok(page) => page,
                Err(RemakeError::Store(error)) if !matches!(error, StoreError::Busy { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(%error, "rotation: waits");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            self.told.send_modify(|progress| {
                progress.checked += page.checked;
                progress.failed += page.failed;
                progress.remade += page.remade;
                progress.records_a_second = self.pace.rate(progress);
            });
            let Some(last) = page.last else { return Ok(()) };
            after = Some(last);
            let progress = self.progress();
            if logged.elapsed() >= TELL_EVERY {
                logged = Instant::now();
                let Progress { total, checked, remade, failed, records_a_second, .. } = progress;
                tracing::info!(total, checked, remade, failed, records_a_second, "rotation: goes on");
            }
            self.pace.keep(&progress).await;
        }
    }
}

/// Holds the rate.
struct Pace {
    began: Instant,
}

impl Pace {
    fn begun() -> Self {
        Self { began: Instant::now() }
    }

    async fn keep(&self, progress: &Progress) {
        match Self::due(progress).checked_sub(self.began.elapsed()) {
            Some(early) if !early.is_zero() => tokio::time::sleep(early).await,
            // However far behind, calls come first.
            _ => tokio::task::yield_now().await,
        }
    }

    /// Over the time that what was made anew takes at the least: a page is made at once, and then waited for.
    fn rate(&self, progress: &Progress) -> u64 {
        let took = self.began.elapsed().max(Self::due(progress));
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
        progress.remade.saturating_mul(1_000) / milliseconds
    }

    /// How long after the beginning so many may have been made anew.
    fn due(progress: &Progress) -> Duration {
        let per_second = u64::from(progress.records_a_second_max.max(1));
        Duration::from_micros(progress.remade.saturating_mul(1_000_000) / per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_next_pass_begins_at_nothing_and_keeps_what_was_made_anew() {
        let first = Progress { checked: 7, failed: 1, remade: 6, ..Progress::begun(100).next_pass(7) };
        let second = first.next_pass(9);
        assert_eq!(second, Progress { pass: 2, total: 9, remade: 6, ..Progress::begun(100) });
    }

    #[test]
    fn the_rate_of_a_page_that_was_made_at_once_is_the_one_that_is_kept() {
        let progress = Progress { remade: 256, ..Progress::begun(10) };
        assert_eq!(Pace::begun().rate(&progress), 10);
    }

    #[test]
    fn a_rotation_has_ended_in_every_state_but_one() {
        let on: Vec<_> = State::ALL.into_iter().filter(|state| !state.has_ended()).collect();
        assert_eq!(on, [State::Running]);
    }
}
