//! The writer: one connection, one transaction in flight. Changes that arrive while it runs go into the next one.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::time::{sleep, sleep_until, timeout};
use uuid::Uuid;

use super::{
    PostgresConfig, Shared,
    connection::Connection,
    queue::Command,
    registration::{RecoverError, Session},
    sql,
    tls::Tls,
    transaction::{Done, Failure, transact},
};
use store::{FailureCause, StoreError};

/// The shortest time between two sweeps. An idle writer sweeps when it renews its lease, three times in a lease.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// How often the changes that wait in vain are answered while the database is away.
const EXPIRE_EVERY: Duration = Duration::from_millis(50);
/// The attempts of a transaction that the server undoes or refuses.
const ATTEMPTS_MAX: u32 = 20;
/// The attempts of a transaction that may find a control whose card is not locked. A control that has lost its card costs as many.
const UNLOCKED_MAX: u32 = 3;
/// The longest pause before a transaction is repeated: engines that collided once shall not collide again.
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(50);
/// The first pause between two attempts to connect. Each is twice as long as the one before.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause between two attempts to connect.
const CONNECT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// What is not known after a lost connection.
struct InDoubt {
    attempt: Uuid,
    commands: Vec<Command>,
    done: Done,
}

pub(crate) struct Writer {
    pub(crate) shared: Arc<Shared>,
    pub(crate) config: PostgresConfig,
    pub(crate) tls: Option<Tls>,
    pub(crate) session: Session,
    pub(crate) connection: Option<Connection>,
}

/// The writer ends: the store has failed.
struct Ended;

impl Writer {
    /// Writes until the store is closed and nothing waits, or the engine is displaced.
    pub(crate) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let expire = async {
            loop {
                sleep(EXPIRE_EVERY).await;
                shared.queue.expire();
            }
        };
        tokio::select! {
            biased;
            _ = self.serve() => {}
            () = expire => {}
        }
        shared.queue.end();
        if let Some(connection) = &self.connection
            && let Err(error) = self.session.deregister(connection).await
        {
            tracing::warn!(%error, "the engine is still registered: its name is free after its lease");
        }
    }

    async fn serve(&mut self) -> Result<(), Ended> {
        let mut swept = Instant::now();
        let mut renewed = Instant::now();
        loop {
            let commands = self.shared.queue.take();
            let renews_in = (self.config.lease / 3).saturating_sub(renewed.elapsed());
            if commands.is_empty() && !renews_in.is_zero() {
                if self.shared.queue.is_closing() && self.shared.queue.is_empty() {
                    return Ok(());
                }
                // Woken by a change, or by the time.
                let _ = timeout(renews_in, self.shared.queue.changed()).await;
                continue;
            }
            let sweeps = swept.elapsed() >= SWEEP_EVERY;
            if sweeps {
                swept = Instant::now();
            }
            renewed = Instant::now();
            self.commit(commands, sweeps).await?;
            if self.connection.is_none() && self.shared.queue.is_closing() {
                return Ok(());
            }
        }
    }

    /// Makes the changes, by as many transactions as it takes, and answers them.
    async fn commit(&mut self, mut commands: Vec<Command>, sweeps: bool) -> Result<(), Ended> {
        let mut unlocked = 0;
        for attempt in 1..=ATTEMPTS_MAX {
            let Some(connection) = &mut self.connection else {
                self.shared.queue.put_back(commands);
                return self.reconnect(None).await;
            };
            let clock = &self.shared.clock;
            let may_be_unlocked = unlocked < UNLOCKED_MAX;
            match transact(connection, &self.session, &self.config, clock, &commands, sweeps, may_be_unlocked).await {
                Ok(done) => {
                    self.acknowledge(done, commands);
                    return Ok(());
                }
                Err(failure @ (Failure::Undone(_) | Failure::Unlocked)) => {
                    match failure {
                        Failure::Undone(problem) => tracing::debug!(problem, attempt, "a transaction is repeated"),
                        _ => unlocked += 1,
                    }
                    self.roll_back().await;
                    // A call whose deadline has passed meantime is dropped before it is sent again (R5).
                    self.shared.queue.put_back(commands);
                    sleep(RETRY_PAUSE_MAX.mul_f64(fraction(attempt))).await;
                    commands = self.shared.queue.take();
                }
                Err(Failure::Lost(problem)) => {
                    tracing::warn!(problem, "the connection to the database is lost");
                    self.connection = None;
                    self.shared.queue.put_back_lost(commands);
                    return self.reconnect(None).await;
                }
                Err(Failure::InDoubt { attempt, done, problem }) => {
                    tracing::warn!(problem, %attempt, "a commit is in doubt");
                    self.connection = None;
                    return self.reconnect(Some(InDoubt { attempt, commands, done })).await;
                }
                Err(Failure::Refused(problem)) => {
                    tracing::error!(problem, "the database refuses a transaction");
                    self.roll_back().await;
                    let refused = || StoreError::Unavailable(problem.clone());
                    commands.into_iter().for_each(|command| command.answer(Err(refused())));
                    return Ok(());
                }
                Err(Failure::Fenced) => {
                    // R1: another incarnation ends this process; another session is found by the recovery.
                    self.connection = None;
                    self.shared.queue.put_back(commands);
                    return self.reconnect(None).await;
                }
            }
        }
        let given_up = || StoreError::Unavailable("other engines change the same cards: try again".into());
        commands.into_iter().for_each(|command| command.answer(Err(given_up())));
        Ok(())
    }

    fn acknowledge(&mut self, done: Done, commands: Vec<Command>) {
        let Done { answers, head, archived, max_keys } = done;
        self.session.head = head;
        if let Some(archived) = archived {
            self.session.archived = archived;
            self.shared.archived.store(archived, Ordering::Release);
        }
        self.shared.set_head(head);
        // Before the answers: a caller that is refused for its key repeats under the right one.
        self.shared.set_max_keys(max_keys);
        commands.into_iter().zip(answers).for_each(|(command, answer)| command.answer(answer));
    }

    /// Ends a transaction that failed. A connection that does not answer is closed.
    async fn roll_back(&mut self) {
        let Some(connection) = &self.connection else { return };
        if connection.is_over() || connection.within(connection.send(sql::ROLLBACK)).await.is_err() {
            self.connection = None;
        }
    }

    /// R3: connects, fences what the earlier connection sent, and answers the changes in doubt: those of a commit that is
    /// found with its answers; those of one that is not found can never be committed, and are made again.
    async fn reconnect(&mut self, mut in_doubt: Option<InDoubt>) -> Result<(), Ended> {
        let (since, attempt) = (Instant::now(), in_doubt.as_ref().map(|in_doubt| in_doubt.attempt));
        let (mut first, mut pause) = (0, CONNECT_PAUSE);
        let mut is_away = false;
        let shared = Arc::clone(&self.shared);
        let away_at = tokio::time::Instant::from_std(since + self.config.unreachable_after);
        let is_committed = loop {
            let mut recovery = pin!(self.recover(first, attempt));
            let recovered = tokio::select! {
                biased;
                recovered = &mut recovery => recovered,
                // The database may accept the connection and answer nothing, or the fence may wait for a lock.
                () = sleep_until(away_at), if !is_away => {
                    is_away = true;
                    set_away(&shared, in_doubt.as_mut());
                    recovery.await
                }
            };
            match recovered {
                Ok(is_committed) => break is_committed,
                Err(RecoverProblem::Fenced(cause)) => {
                    answer_unresolved(&shared, in_doubt.as_mut());
                    shared.queue.fail(cause);
                    return Err(Ended);
                }
                Err(RecoverProblem::Again(problem)) => {
                    tracing::debug!(problem, "the database does not answer yet");
                    first += 1;
                }
            }
            if is_away && shared.queue.is_closing() {
                return Ok(());
            }
            sleep(pause).await;
            pause = CONNECT_PAUSE_MAX.min(pause * 2);
        };
        self.shared.queue.set_reachable(true);
        self.shared.set_head(self.session.head);
        if let Some(InDoubt { commands, done, .. }) = in_doubt {
            if is_committed {
                // The head was read by the fence; it is the one of this commit, for no other came behind.
                self.acknowledge(done, commands);
            } else {
                self.shared.queue.put_back(commands);
            }
        }
        Ok(())
    }

    async fn recover(&mut self, first: usize, attempt: Option<Uuid>) -> Result<bool, RecoverProblem> {
        let again = |error: &dyn std::fmt::Display| RecoverProblem::Again(error.to_string());
        let connection = Connection::open(&self.config, self.tls.as_ref(), first, sql::WRITER).await;
        let connection = connection.map_err(|error| again(&error))?;
        match self.session.recover(&connection, &self.config, attempt).await {
            Ok(is_committed) => {
                self.shared.reader.follow(connection.host);
                self.connection = Some(connection);
                Ok(is_committed)
            }
            Err(RecoverError::Displaced) => Err(RecoverProblem::Fenced(FailureCause::Displaced)),
            Err(RecoverError::Migrated) => Err(RecoverProblem::Fenced(FailureCause::Migrated)),
            Err(error) => Err(again(&error)),
        }
    }
}

/// Nothing is refused: the callers learn that it is not known.
fn answer_unresolved(shared: &Shared, in_doubt: Option<&mut InDoubt>) {
    let commands = in_doubt.map(|in_doubt| std::mem::take(&mut in_doubt.commands)).unwrap_or_default();
    let unresolved = || StoreError::Unresolved { place: shared.queue.place().to_owned() };
    commands.into_iter().for_each(|command| command.answer(Err(unresolved())));
}

fn set_away(shared: &Shared, in_doubt: Option<&mut InDoubt>) {
    shared.queue.set_reachable(false);
    answer_unresolved(shared, in_doubt);
}

enum RecoverProblem {
    /// This process writes nothing more.
    Fenced(FailureCause),
    Again(String),
}

/// A number between 0 and 1 that grows with the attempts and differs between engines.
fn fraction(attempt: u32) -> f64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let seed = Uuid::new_v4().as_u128() as u64 ^ CALLS.fetch_add(1, Ordering::Relaxed);
    (seed % 1_000) as f64 / 1_000.0 * f64::from(attempt.min(10)) / 10.0
}
