//! Worker threads for a token whose calls block, behind a bounded queue.
//!
//! A worker executes queued jobs for up to 200 µs before it wakes the callers, because waking a thread takes as long as an
//! operation of a fast token.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use futures_channel::oneshot;

use hsm_protocol::Error;

use crate::boundary::Boundary;

/// The longest time that an answer waits for other answers.
const ANSWER_DELAY_MAX: Duration = Duration::from_micros(200);

/// Executes an operation, and returns its answer for a later delivery.
type Job = Box<dyn FnOnce(&Boundary) -> Answer + Send>;
/// Delivers an answer to its caller.
type Answer = Box<dyn FnOnce()>;

/// The longest time that a drop waits for the threads.
const END_WAIT_MAX: Duration = Duration::from_secs(5);

/// The threads end when this is dropped and the queue is empty. The drop waits for them: a module may not survive the end of
/// the process while a thread is in one of its calls. A call that hangs is waited for no longer than [`END_WAIT_MAX`].
pub(crate) struct Workers {
    queue: Sender<Job>,
    waiting_max: usize,
    /// Disconnected when all threads have ended.
    ended: Receiver<()>,
}

impl Workers {
    /// Starts `threads` workers over one boundary. At most `waiting_max` jobs wait.
    ///
    /// # Errors
    /// A thread could not be created.
    pub(crate) fn start(boundary: &Arc<Boundary>, threads: usize, waiting_max: usize) -> io::Result<Self> {
        let (queue, jobs) = bounded::<Job>(waiting_max);
        let (running, ended) = bounded::<()>(0);
        for number in 0..threads {
            let (boundary, jobs, running) = (Arc::clone(boundary), jobs.clone(), running.clone());
            thread::Builder::new().name(format!("token-{number}")).spawn(move || {
                work(&boundary, &jobs);
                // The last thread closes the token here.
                drop(boundary);
                drop(running);
            })?;
        }
        Ok(Self { queue, waiting_max, ended })
    }

    /// Executes `work` on a worker. A caller that stops waiting loses only the answer.
    ///
    /// # Errors
    /// [`Error::Busy`] when the queue is full; [`Error::Unavailable`] when the workers have ended or one panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Boundary) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |boundary| {
            // The caller stopped waiting, for example at its deadline: the work is not started.
            if reply.is_canceled() {
                return Box::new(|| {});
            }
            let result = work(boundary);
            Box::new(move || drop(reply.send(result)))
        });
        self.queue.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => Error::Busy { limit: self.waiting_max },
            TrySendError::Disconnected(_) => Error::Unavailable { reason: "its workers have ended".into() },
        })?;
        answer.await.map_err(|_| Error::Unavailable { reason: "a worker failed".into() })
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // Replaces the queue, so that the threads see its end.
        let (closed, _) = bounded(0);
        drop(std::mem::replace(&mut self.queue, closed));
        // An error in either case: the threads have ended, or the time is over.
        let _ = self.ended.recv_timeout(END_WAIT_MAX);
    }
}

fn work(boundary: &Boundary, jobs: &Receiver<Job>) {
    let mut answers: Vec<Answer> = Vec::new();
    while let Ok(first) = jobs.recv() {
        let start = Instant::now();
        answers.push(first(boundary));
        while start.elapsed() < ANSWER_DELAY_MAX {
            let Ok(next) = jobs.try_recv() else { break };
            answers.push(next(boundary));
        }
        answers.drain(..).for_each(|answer| answer());
    }
}
