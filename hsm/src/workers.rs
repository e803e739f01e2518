//! Threads for a token that blocks: a bounded queue, and an answer for whoever waits.
//!
//! A thread that finds more work waiting does that too before it wakes those who wait for its answers, for a while: to
//! wake another thread takes as long as a fast token's whole operation.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use futures_channel::oneshot;

use crate::{boundary::Boundary, error::Error};

/// How long an answer may wait for others.
const ANSWERS_WAIT_MAX: Duration = Duration::from_micros(200);

/// Does its work, and keeps the answer until it is asked to hand it over.
type Job = Box<dyn FnOnce(&Boundary) -> Answer + Send>;
type Answer = Box<dyn FnOnce()>;

/// The threads end when this is dropped and the queue is empty.
pub(crate) struct Workers {
    queue: Sender<Job>,
    waiting_max: usize,
}

impl Workers {
    /// Starts `threads` of them over one boundary.
    pub(crate) fn start(boundary: &Arc<Boundary>, threads: usize, waiting_max: usize) -> io::Result<Self> {
        let (queue, jobs) = bounded::<Job>(waiting_max);
        for number in 0..threads {
            let (boundary, jobs) = (Arc::clone(boundary), jobs.clone());
            thread::Builder::new().name(format!("token-{number}")).spawn(move || work(&boundary, &jobs))?;
        }
        Ok(Self { queue, waiting_max })
    }

    /// Lets a worker do it. Whoever stops waiting loses the answer alone.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Boundary) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |boundary| {
            // Nobody waits any more: a call past its deadline need not be answered, nor begun.
            if reply.is_canceled() {
                return Box::new(|| {});
            }
            let done = work(boundary);
            Box::new(move || drop(reply.send(done)))
        });
        self.queue.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => Error::Busy { limit: self.waiting_max },
            TrySendError::Disconnected(_) => Error::Unavailable { reason: "its workers have ended".into() },
        })?;
        answer.await.map_err(|_| Error::Unavailable { reason: "a worker failed".into() })
    }
}

fn work(boundary: &Boundary, jobs: &Receiver<Job>) {
    let mut answers: Vec<Answer> = Vec::new();
    while let Ok(first) = jobs.recv() {
        let began = Instant::now();
        answers.push(first(boundary));
        while began.elapsed() < ANSWERS_WAIT_MAX {
            let Ok(next) = jobs.try_recv() else { break };
            answers.push(next(boundary));
        }
        answers.drain(..).for_each(|answer| answer());
    }
}
