//! The watch over the threads that write: the store's own, and those of fjall, which write tables and journals in the
//! background, and over the free space of the disk. Where one of the threads ends, the store fails, though no commit meets the failure: an idle engine has none, and
//! a commit that waits for a background thread that has ended waits for ever.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::Duration,
};

use fjall::PersistMode;

use super::Shared;
use store::FailureCause;

/// How often the threads of fjall and the free space are checked.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a failed commit may take to report its cause, which is more exact than [`FailureCause::Background`].
const CAUSE_TIME_MAX: Duration = Duration::from_millis(100);
/// How long the writer of a failed store may take to end. A writer that waits for a thread that has ended never does.
const END_TIME_MAX: Duration = Duration::from_secs(2);

/// Watches until the writer has ended, or the store has failed. The writer sends a message at its end; a writer that ends
/// without a message panicked.
pub(super) fn run(shared: &Shared, writer: &Receiver<()>) {
    let mut stopped = false;
    loop {
        match writer.recv_timeout(if stopped { CAUSE_TIME_MAX } else { LOOK_EVERY }) {
            Ok(()) => return,
            Err(RecvTimeoutError::Disconnected) => return shared.fail(FailureCause::Writer),
            Err(RecvTimeoutError::Timeout) if stopped => {
                shared.fail(FailureCause::Background);
                let _ = writer.recv_timeout(END_TIME_MAX);
                return;
            }
            Err(RecvTimeoutError::Timeout) => {
                shared.check_space();
                stopped = is_stopped(shared);
            }
        }
    }
}

/// Whether fjall refuses commits: a write or a sync failed, in a commit or in one of its own threads. Nothing is written
/// here: commits leave nothing in the journal's buffer.
fn is_stopped(shared: &Shared) -> bool {
    shared.database.persist(PersistMode::Buffer).is_err()
}
