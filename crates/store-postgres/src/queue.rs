//! The changes that wait for the writer, and the state of the store.

use std::{
    collections::VecDeque,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, oneshot, watch};

use audit::entry::Event;
use clock::deadline::Deadline;
use store::{Change, FailureCause, Outcome, StoreError, StoreFailure, StoreState};

/// The most changes of one transaction: bounds how long it holds the rows of its cards.
const BATCH_CHANGES_MAX: usize = 1_024;

/// The answer to a change.
pub(crate) type Reply = Result<Outcome, StoreError>;

/// A change, its audit event and the place of its answer.
pub(crate) struct Command {
    pub(crate) change: Change,
    pub(crate) event: Event,
    /// The moment after which a change that may be dropped is not sent.
    deadline: Option<Deadline>,
    /// The moment after which a change is given up that a lost connection undid; while the database is away, one without a
    /// caller too.
    given_up_at: Instant,
    reply: oneshot::Sender<Reply>,
}

impl Command {
    pub(crate) fn answer(self, reply: Reply) {
        // The caller may have gone.
        let _ = self.reply.send(reply);
    }

    /// Whether the change is made: not for a caller who has gone or whose deadline has passed (R5).
    pub(crate) fn is_due(&self) -> bool {
        let is_over = || self.reply.is_closed() || self.deadline.is_some_and(Deadline::has_passed);
        !self.change.may_be_dropped() || !is_over()
    }

    /// The command, unless it is not due: then it is answered.
    fn due(self) -> Option<Self> {
        if self.is_due() {
            return Some(self);
        }
        self.answer(Err(StoreError::DeadlinePassed));
        None
    }
}

/// The queue of a store.
pub(crate) struct Queue {
    waiting: Mutex<VecDeque<Command>>,
    wake: Notify,
    /// Written only while `waiting` is locked.
    state: watch::Sender<StoreState>,
    waiting_changes_max: usize,
    waits_for: Duration,
    place: String,
}

impl Queue {
    pub(crate) fn new(waiting_changes_max: usize, waits_for: Duration, place: String) -> Self {
        Self {
            waiting: Mutex::default(),
            wake: Notify::new(),
            state: watch::Sender::new(StoreState::Open),
            waiting_changes_max,
            waits_for,
            place,
        }
    }

    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    pub(crate) fn state(&self) -> watch::Receiver<StoreState> {
        self.state.subscribe()
    }

    /// Adds a change. Returns the place of its answer.
    ///
    /// # Errors
    /// The queue is full, or the store does not make the change now.
    pub(crate) fn add(
        &self,
        change: Change,
        event: Event,
        deadline: Option<Deadline>,
    ) -> Result<oneshot::Receiver<Reply>, StoreError> {
        let mut waiting = self.lock();
        match &*self.state.borrow() {
            StoreState::Open | StoreState::LowOnSpace => {}
            StoreState::Unreachable if waits_for_database(&change) => {}
            StoreState::Unreachable => return Err(self.away()),
            StoreState::Closing => return Err(StoreError::Unavailable("it is closing".into())),
            StoreState::Failed(failure) => return Err(StoreError::Failed(failure.clone())),
        }
        let limit = self.waiting_changes_max;
        if waiting.len() >= limit && !change.passes_the_queue_limit() {
            return Err(StoreError::Busy { limit });
        }
        let (reply, answer) = oneshot::channel();
        let given_up_at = Instant::now() + self.waits_for;
        waiting.push_back(Command { change, event, deadline, given_up_at, reply });
        drop(waiting);
        self.wake.notify_one();
        Ok(answer)
    }

    /// Returns as soon as a change waits or the store closes.
    pub(crate) async fn changed(&self) {
        self.wake.notified().await;
    }

    /// The changes for one transaction; empty where none waits.
    pub(crate) fn take(&self) -> Vec<Command> {
        let mut waiting = self.lock();
        let mut taken = Vec::with_capacity(waiting.len().min(BATCH_CHANGES_MAX));
        while taken.len() < BATCH_CHANGES_MAX
            && let Some(command) = waiting.pop_front()
        {
            taken.extend(command.due());
        }
        if !waiting.is_empty() {
            self.wake.notify_one();
        }
        taken
    }

    /// Puts changes back that were not made, in front of the others.
    pub(crate) fn put_back(&self, commands: Vec<Command>) {
        let mut waiting = self.lock();
        for command in commands.into_iter().rev() {
            waiting.push_front(command);
        }
        drop(waiting);
        self.wake.notify_one();
    }

    /// The same for changes that a lost connection has undone, but for those that have waited long enough: the statement of one
    /// may be what the connection was lost by.
    pub(crate) fn put_back_lost(&self, commands: Vec<Command>) {
        let now = Instant::now();
        let (given_up, kept): (Vec<_>, _) = commands.into_iter().partition(|command| now >= command.given_up_at);
        given_up.into_iter().for_each(|command| command.answer(Err(self.away())));
        self.put_back(kept);
    }

    /// Answers, while the writer waits for the database, the changes that wait in vain: those whose deadline has passed; in the
    /// state [`StoreState::Unreachable`] those of callers too, and others after a while.
    pub(crate) fn expire(&self) {
        let mut waiting = self.lock();
        let (is_away, now) = (*self.state.borrow() == StoreState::Unreachable, Instant::now());
        let kept = mem::take(&mut *waiting).into_iter().filter_map(Command::due);
        let (given_up, kept): (Vec<_>, _) =
            kept.partition(|command| is_away && (!waits_for_database(&command.change) || now >= command.given_up_at));
        *waiting = kept.into();
        drop(waiting);
        given_up.into_iter().for_each(|command| command.answer(Err(self.away())));
    }

    fn away(&self) -> StoreError {
        StoreError::Unavailable(format!("{} does not answer", self.place))
    }

    /// Notes whether the database answers.
    pub(crate) fn set_reachable(&self, is_reachable: bool) {
        let waiting = self.lock();
        let changed = self.state.send_if_modified(|state| match (&*state, is_reachable) {
            (StoreState::Open, false) => {
                *state = StoreState::Unreachable;
                true
            }
            (StoreState::Unreachable, true) => {
                *state = StoreState::Open;
                true
            }
            _ => false,
        });
        drop(waiting);
        match (changed, is_reachable) {
            (true, false) => {
                tracing::error!(store = self.place, "the database does not answer: not serving until it does")
            }
            (true, true) => tracing::info!(store = self.place, "the database answers again"),
            _ => {}
        }
    }

    /// Refuses further changes.
    pub(crate) fn close(&self) {
        let waiting = self.lock();
        self.state.send_if_modified(|state| {
            let closes = matches!(state, StoreState::Open | StoreState::LowOnSpace | StoreState::Unreachable);
            if closes {
                *state = StoreState::Closing;
            }
            closes
        });
        drop(waiting);
        self.wake.notify_one();
    }

    pub(crate) fn is_closing(&self) -> bool {
        matches!(&*self.state.borrow(), StoreState::Closing | StoreState::Failed(_))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Fails the store. The changes that wait are not made.
    pub(crate) fn fail(&self, cause: FailureCause) {
        let mut waiting = self.lock();
        let failure = StoreFailure { place: self.place.clone(), cause };
        let failed = self.state.send_if_modified(|state| {
            let first = !matches!(state, StoreState::Failed(_));
            if first {
                tracing::error!(%failure, "no change is accepted any more");
                *state = StoreState::Failed(failure);
            }
            first
        });
        let given_up = mem::take(&mut *waiting);
        drop(waiting);
        if failed {
            self.wake.notify_one();
        }
        given_up.into_iter().for_each(|command| command.answer(Err(self.refusal())));
    }

    /// Answers the changes that wait at the end of the writer.
    pub(crate) fn end(&self) {
        let given_up = mem::take(&mut *self.lock());
        given_up.into_iter().for_each(|command| command.answer(Err(self.refusal())));
    }

    /// Whether reads are sent.
    ///
    /// # Errors
    /// The store has failed, or the database is away.
    pub(crate) fn check_reads(&self) -> Result<(), StoreError> {
        // Cloned: `refusal` borrows too, and waits for a writer of the state that waits for this borrow.
        let state = self.state.borrow().clone();
        match state {
            StoreState::Failed(_) | StoreState::Unreachable => Err(self.refusal()),
            _ => Ok(()),
        }
    }

    /// Why the store serves nothing any more.
    fn refusal(&self) -> StoreError {
        match &*self.state.borrow() {
            StoreState::Failed(failure) => StoreError::Failed(failure.clone()),
            StoreState::Unreachable => self.away(),
            _ => StoreError::Unavailable("it is closing".into()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Command>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a change is kept while the database is away. Callers cause any number of the others.
fn waits_for_database(change: &Change) -> bool {
    !change.may_be_dropped() && !matches!(change, Change::RecordAccess)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, sync::mpsc, thread};

    use super::*;

    #[test]
    fn reads_are_checked_while_the_state_changes() {
        let queue = Arc::new(Queue::new(1, Duration::ZERO, "a store".to_owned()));
        let (done, ends) = mpsc::channel();
        for changes in [false, false, true] {
            let (queue, done) = (Arc::clone(&queue), done.clone());
            thread::spawn(move || {
                for round in 0..1_000_000 {
                    match changes {
                        true => queue.set_reachable(round % 2 == 0),
                        false => drop(queue.check_reads()),
                    }
                }
                done.send(()).unwrap();
            });
        }
        (0..3).for_each(|_| {
            ends.recv_timeout(Duration::from_secs(120)).expect("a borrow of the state waits for another")
        });
    }
}
