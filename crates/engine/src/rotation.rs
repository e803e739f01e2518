//! Rotation of the storage key: re-encrypts PIN records under older keys under the newest key, in the background, while the
//! engine serves. Each record names its key, so a rotation continues after any restart.
//!
//! This module never handles the content of a record; `pin` passes it from the store to the boundary and back.

mod census;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{future::OptionFuture, join};
use tokio::sync::watch;

pub use self::census::{Census, KeyUsers};
use crate::pin::{Pins, ReencryptError, TranslatedPage};
use domain::card::CardKey;
use store::StoreError;

/// The fewest cards of a page, which one transaction writes.
const PAGE_CARDS_MIN: usize = 256;
/// The most cards of a page: a change of a cardholder waits for the commit of one page.
const PAGE_CARDS_MAX: usize = 1_024;
/// The pause before a retry while the boundary or the store is busy or unavailable.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// The interval of log events about the progress.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// The progress of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The state of the rotation.
    pub state: RotationState,
    /// The number of the running pass, from 1; 0 before the first pass.
    pub pass: u32,
    /// Records to check in the pass: counted before the first pass, and those that the pass before has checked.
    pub total: u64,
    /// Records checked in the pass.
    pub checked: u64,
    /// Records re-encrypted in all passes.
    pub reencrypted: u64,
    /// Records that failed to decrypt in the pass.
    pub failed: u64,
    /// Records re-encrypted a second, the average so far.
    pub records_a_second: u64,
    /// The configured limit of records re-encrypted a second.
    pub records_a_second_max: u32,
}

/// The state of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotationState {
    /// One storage key is in use, of a reversible format: no record needs to be re-encrypted.
    Idle,
    /// Passes over the records run.
    Running,
    /// Every record is under the newest key.
    Done,
    /// All records were checked, and some failed to decrypt.
    DoneWithFailures,
    /// The store rejects changes; the rotation continues after a restart of the engine.
    Stopped,
    /// Another engine on the store lacks the newest storage key. The rotation runs once that engine has reloaded its keys, or is deregistered.
    Waiting,
}

impl RotationState {
    /// All states, in the order of their declaration.
    pub const ALL: [Self; 6] =
        [Self::Idle, Self::Running, Self::Done, Self::DoneWithFailures, Self::Stopped, Self::Waiting];

    /// Whether the rotation neither runs nor waits.
    pub fn has_ended(self) -> bool {
        !matches!(self, Self::Running | Self::Waiting)
    }
}

impl Progress {
    /// The progress of an engine with one storage key.
    pub fn idle(records_a_second_max: u32) -> Self {
        Self {
            state: RotationState::Idle,
            pass: 0,
            total: 0,
            checked: 0,
            reencrypted: 0,
            failed: 0,
            records_a_second: 0,
            records_a_second_max,
        }
    }

    /// The progress of a rotation that starts.
    pub fn running(records_a_second_max: u32) -> Self {
        Self { state: RotationState::Running, ..Self::idle(records_a_second_max) }
    }

    /// The progress at the start of the next pass over `total` records.
    fn next_pass(self, total: u64) -> Self {
        Self { pass: self.pass.saturating_add(1), total, checked: 0, failed: 0, ..self }
    }
}

/// Runs a rotation each time that the keys in use change and have an older storage key, or PINs are stored one-way. A rotation makes passes over all
/// records until a pass finds no record to re-encrypt, within the configured rate. `progress` always has the progress.
/// Returns when the store fails or the keys can no longer change.
pub async fn run(
    pins: Arc<Pins>,
    mut in_use: watch::Receiver<Arc<hsm_protocol::Status>>,
    progress: watch::Sender<Progress>,
) {
    let mut rotated = None;
    loop {
        let status = Arc::clone(&in_use.borrow_and_update());
        // A restarted boundary with the same keys needs no second rotation.
        let keys_and_form = (status.keys().to_vec(), status.form());
        if status.rotates() && rotated.as_ref() != Some(&keys_and_form) {
            rotated = Some(keys_and_form);
            progress.send_modify(|progress| *progress = Progress::running(progress.records_a_second_max));
            let mut rotation =
                Rotation { pins: Arc::clone(&pins), progress: progress.clone(), pace: Pace::start(), one_way: 0 };
            if let Err(error) = rotation.run().await {
                progress.send_modify(|progress| progress.state = RotationState::Stopped);
                return tracing::error!(%error, "rotation: the store failed; the rotation continues after a restart");
            }
        }
        if pins.waits_for_engine(&status) {
            progress.send_modify(|progress| progress.state = RotationState::Waiting);
        }
        // An error: nothing is left that could change the keys.
        if in_use.changed().await.is_err() {
            return;
        }
    }
}

struct Rotation {
    pins: Arc<Pins>,
    progress: watch::Sender<Progress>,
    pace: Pace,
    /// One-way records under an older key, checked in the pass.
    one_way: u64,
}

impl Rotation {
    async fn run(&mut self) -> Result<(), StoreError> {
        let mut total = self.count().await?;
        // The rate does not compensate for the time of the count.
        self.pace = Pace::start();
        loop {
            let before = self.progress().reencrypted;
            self.progress.send_modify(|progress| *progress = progress.next_pass(total));
            self.run_pass().await?;
            let Progress { checked, reencrypted, .. } = self.progress();
            if reencrypted == before {
                break;
            }
            total = checked;
        }
        let Progress { checked, reencrypted, failed, records_a_second, .. } = self.progress();
        if let Err(error) = self.pins.note_rotated(checked, failed).await {
            tracing::error!(%error, "rotation: its end is not in the audit chain; the next start of the engine records it");
        }
        let (state, took) = (
            if failed == 0 { RotationState::Done } else { RotationState::DoneWithFailures },
            self.pace.start.elapsed(),
        );
        self.progress.send_modify(|progress| progress.state = state);
        match failed {
            0 if self.one_way > 0 => tracing::warn!(
                checked,
                reencrypted,
                one_way = self.one_way,
                "rotation: one-way PIN records are under an older key; each moves when its PIN is set or verified right"
            ),
            0 => tracing::info!(
                checked,
                reencrypted,
                records_a_second,
                ?took,
                "rotation: every PIN record is under the newest storage key"
            ),
            _ => {
                tracing::error!(
                    checked,
                    failed,
                    "rotation: some PIN records do not decrypt; keep the older storage keys"
                )
            }
        }
        Ok(())
    }

    fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// The number of records in the store.
    async fn count(&self) -> Result<u64, StoreError> {
        let mut census = Census::default();
        while census.count_page(&self.pins).await? {
            tokio::task::yield_now().await;
        }
        Ok(census.total())
    }

    /// Checks every record once. While the store writes a page, the boundary re-encrypts the next one.
    async fn run_pass(&mut self) -> Result<(), StoreError> {
        let cards = page_cards(self.progress().records_a_second_max);
        self.one_way = 0;
        let (mut done, mut ahead, mut logged): (Option<CardKey>, Option<TranslatedPage>, _) =
            (None, None, Instant::now());
        loop {
            let page = match ahead.take() {
                Some(page) => page,
                None => match self.pins.translate_page(done.as_ref(), cards).await {
                    Ok(page) => page,
                    Err(error) => {
                        wait_to_retry(error).await?;
                        continue;
                    }
                },
            };
            // A page that would wait for the rate is not read ahead: its records may change while it waits.
            let next_after = page.last.filter(|_| self.pace.is_behind(&self.progress(), page.reencrypted()));
            let translate_next =
                OptionFuture::from(next_after.as_ref().map(|last| self.pins.translate_page(Some(last), cards)));
            let (written, next) = join!(self.pins.write_page(page), translate_next);
            let page = match written {
                Ok(page) => page,
                Err(error) => {
                    wait_to_retry(error.into()).await?;
                    continue;
                }
            };
            self.progress.send_modify(|progress| {
                progress.checked += page.checked;
                progress.failed += page.failed;
                progress.reencrypted += page.reencrypted;
                progress.records_a_second = self.pace.rate(progress);
            });
            self.one_way += page.older_one_way;
            let Some(last) = page.last else { return Ok(()) };
            done = Some(last);
            match next {
                Some(Ok(page)) => ahead = Some(page),
                Some(Err(error)) => wait_to_retry(error).await?,
                None => {}
            }
            let progress = self.progress();
            if logged.elapsed() >= LOG_EVERY {
                logged = Instant::now();
                let Progress { total, checked, reencrypted, failed, records_a_second, .. } = progress;
                tracing::info!(total, checked, reencrypted, failed, records_a_second, "rotation: running");
            }
            self.pace.wait(&progress).await;
        }
    }
}

/// The cards of a page under this limit of records a second: those of 10 ms, so that a slow rotation does not stop for long.
fn page_cards(records_a_second_max: u32) -> usize {
    let of_10_ms = usize::try_from(records_a_second_max / 100).unwrap_or(PAGE_CARDS_MAX);
    of_10_ms.clamp(PAGE_CARDS_MIN, PAGE_CARDS_MAX)
}

/// Waits before a page is tried again.
///
/// # Errors
/// The store failed otherwise than by a full queue or disk: no retry succeeds.
async fn wait_to_retry(error: ReencryptError) -> Result<(), StoreError> {
    match error {
        ReencryptError::Store(error) if !matches!(error, StoreError::Busy { .. } | StoreError::LowOnSpace) => {
            Err(error)
        }
        error => {
            tracing::warn!(%error, "rotation: waits to retry");
            tokio::time::sleep(RETRY_AFTER).await;
            Ok(())
        }
    }
}

/// Limits the rate of re-encryption.
struct Pace {
    start: Instant,
}

impl Pace {
    fn start() -> Self {
        Self { start: Instant::now() }
    }

    async fn wait(&self, progress: &Progress) {
        match Self::due(progress).checked_sub(self.start.elapsed()) {
            Some(early) if !early.is_zero() => tokio::time::sleep(early).await,
            // Even if the rotation is behind its rate, calls run first.
            _ => tokio::task::yield_now().await,
        }
    }

    /// Whether no wait follows, if this many records are re-encrypted in addition.
    fn is_behind(&self, progress: &Progress, more: u64) -> bool {
        let after = Progress { reencrypted: progress.reencrypted.saturating_add(more), ..*progress };
        Self::due(&after) <= self.start.elapsed()
    }

    /// Records re-encrypted a second. A page is re-encrypted at once and then waited for, so the time is at least the time
    /// that the limit allows for these records.
    fn rate(&self, progress: &Progress) -> u64 {
        let took = self.start.elapsed().max(Self::due(progress));
        let milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
        progress.reencrypted.saturating_mul(1_000) / milliseconds
    }

    /// The shortest time for this many records under the limit.
    fn due(progress: &Progress) -> Duration {
        let per_second = u64::from(progress.records_a_second_max.max(1));
        Duration::from_micros(progress.reencrypted.saturating_mul(1_000_000) / per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_next_pass_keeps_only_the_reencrypted_count() {
        let first = Progress { checked: 7, failed: 1, reencrypted: 6, ..Progress::running(100).next_pass(7) };
        let second = first.next_pass(9);
        assert_eq!(second, Progress { pass: 2, total: 9, reencrypted: 6, ..Progress::running(100) });
    }

    #[test]
    fn the_reported_rate_does_not_exceed_the_limit() {
        let progress = Progress { reencrypted: 256, ..Progress::running(10) };
        assert_eq!(Pace::start().rate(&progress), 10);
    }

    #[test]
    fn a_slow_rotation_does_not_read_ahead() {
        let pace = Pace { start: Instant::now().checked_sub(Duration::from_secs(60)).unwrap() };
        let progress = Progress { reencrypted: 100, ..Progress::running(10) };
        assert!(pace.is_behind(&progress, 400) && !pace.is_behind(&progress, 100_000));
    }

    #[test]
    fn a_page_is_larger_where_the_limit_allows_it() {
        assert_eq!([1, 2_000, 50_000, 1_000_000].map(page_cards), [256, 256, 500, 1_024]);
    }

    #[test]
    fn a_running_and_a_waiting_rotation_have_not_ended() {
        let running: Vec<_> = RotationState::ALL.into_iter().filter(|state| !state.has_ended()).collect();
        assert_eq!(running, [RotationState::Running, RotationState::Waiting]);
    }
}
