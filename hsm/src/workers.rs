//! Threads for a token that blocks: a bounded queue, and an answer for whoever waits.

use std::{io, sync::Arc, thread};

use crossbeam_channel::{Sender, TrySendError, bounded};
use futures_channel::oneshot;

use crate::{boundary::Boundary, error::Error};

type Job = Box<dyn FnOnce(&Boundary) + Send>;

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
            let work = move || jobs.iter().for_each(|job| job(&boundary));
            thread::Builder::new().name(format!("token-{number}")).spawn(work)?;
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
            if !reply.is_canceled() {
                let _ = reply.send(work(boundary));
            }
        });
        self.queue.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => Error::Busy { limit: self.waiting_max },
            TrySendError::Disconnected(_) => Error::Unavailable { reason: "its workers have ended" },
        })?;
        answer.await.map_err(|_| Error::Unavailable { reason: "a worker failed" })
    }
}
