//! A lane: one connection to the boundary's process, used by one thread. What is asked while the thread runs leaves in
//! one write, and what has arrived is answered after one read.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hashbrown::HashMap;
use hsm_protocol::{
    AcceptError, Error,
    frame::{self, Ask, Crosses},
};
use tokio::{
    net::UnixStream,
    sync::{Notify, oneshot, watch},
    time::{Interval, MissedTickBehavior, interval},
};

use clock::deadline::Deadline;
use clock::monotonic_milliseconds;

/// How long an answer may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);
/// How often it is looked for those that took longer: a timer for each request would cost more than its answer.
const LATE_ANSWERS_EVERY: Duration = Duration::from_millis(250);
/// How many requests of one lane may wait for their answers.
const WAITING_MAX: usize = 4_096;
/// How much is read at a time.
const READ_BYTES: usize = 64 * 1024;

/// One thread's way to the boundary's process.
pub(super) struct Lane {
    state: Mutex<State>,
    /// Something is to be sent, or there is a connection.
    wake: Notify,
    driven: AtomicBool,
    /// The newest life of the process to which a lane was lost: the supervisor looks at it.
    lost: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct State {
    /// A connection that nobody drives yet.
    arrived: Option<std::os::unix::net::UnixStream>,
    /// Which life of the process it leads to; none while there is no connection.
    life: Option<u64>,
    outbox: Vec<u8>,
    waiting: HashMap<u64, Waiting>,
    last: u64,
    /// The last that was sent on the connection that is driven now.
    sent: u64,
}

/// Who waits for an answer, and until when.
struct Waiting {
    reply: oneshot::Sender<Answer>,
    /// In milliseconds of CLOCK_MONOTONIC.
    deadline: u64,
}

enum Answer {
    Body(Vec<u8>),
    None,
}

impl State {
    /// Tells those who have waited for too long.
    fn give_up(&mut self, now: u64) {
        for (_, late) in self.waiting.extract_if(|_, waiting| waiting.deadline < now) {
            let _ = late.reply.send(Answer::None);
        }
    }

    /// Fails what waits and forgets the connection; numbers are not given twice.
    fn end(&mut self) {
        *self = Self { last: self.last, ..Self::default() };
    }

    /// Whether the connection that is driven owes no answer.
    fn owes_nothing(&self) -> bool {
        self.waiting.keys().all(|number| *number > self.sent)
    }

    /// Takes the connection that came in place of the one before; what that still owes it will not give.
    fn take_arrived(&mut self) -> Option<std::os::unix::net::UnixStream> {
        let arrived = self.arrived.take()?;
        let sent = self.sent;
        self.waiting.retain(|number, _| *number > sent);
        Some(arrived)
    }
}

impl Lane {
    pub(super) fn new(lost: Arc<watch::Sender<u64>>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), wake: Notify::new(), driven: AtomicBool::new(false), lost })
    }

    /// Takes a connection that has been welcomed, in place of the one before.
    pub(super) fn connect(&self, life: u64, stream: std::os::unix::net::UnixStream) {
        let mut state = self.state();
        state.end();
        (state.arrived, state.life) = (Some(stream), Some(life));
        drop(state);
        self.wake.notify_one();
    }

    /// Takes a connection that has been welcomed, once the one before has answered what it was asked; what is asked
    /// meanwhile waits for it.
    pub(super) fn succeed(&self, life: u64, stream: std::os::unix::net::UnixStream) {
        let mut state = self.state();
        (state.arrived, state.life) = (Some(stream), Some(life));
        drop(state);
        self.wake.notify_one();
    }

    /// Whether it has yet to come to the connection that is to be the next; one that nobody has used is there at once.
    pub(super) fn is_being_handed_over(&self) -> bool {
        self.driven.load(Ordering::Relaxed) && self.state().arrived.is_some()
    }

    /// Fails what waits, and all that comes until there is another connection.
    pub(super) fn disconnect(&self) {
        let mut state = self.state();
        state.end();
        drop(state);
        self.wake.notify_one();
    }

    pub(super) async fn ask<T: Crosses>(self: &Arc<Self>, ask: &Ask<'_>) -> Result<T, Error> {
        let body = self.send(ask).await?;
        frame::read_reply(&body).unwrap_or_else(|_| Err(self.nonsense()))
    }

    pub(super) async fn ask_accept<T: Crosses>(self: &Arc<Self>, ask: &Ask<'_>) -> Result<T, AcceptError> {
        let body = self.send(ask).await?;
        frame::read_accept_reply(&body).unwrap_or_else(|_| Err(self.nonsense().into()))
    }

    async fn send(self: &Arc<Self>, ask: &Ask<'_>) -> Result<Vec<u8>, Error> {
        if !self.driven.swap(true, Ordering::Relaxed) {
            tokio::spawn(drive(Arc::clone(self)));
        }
        let (reply, answer) = oneshot::channel();
        let asked = self.post(ask, reply)?;
        match answer.await {
            Ok(Answer::Body(body)) => {
                asked.answered();
                Ok(body)
            }
            Ok(Answer::None) => Err(unavailable("its process does not answer")),
            Err(_) => Err(unavailable("its process ended")),
        }
    }

    fn post(&self, ask: &Ask<'_>, reply: oneshot::Sender<Answer>) -> Result<Asked<'_>, Error> {
        // Nobody waits for longer than the call does.
        let deadline = Deadline::within(ANSWER_TIME_MAX);
        let deadline = Deadline::of_this_call().map_or(deadline, |of_call| of_call.min(deadline));
        if deadline.has_passed() {
            return Err(unavailable("the call's deadline has passed"));
        }
        let deadline = deadline.monotonic_milliseconds();
        let mut state = self.state();
        if state.life.is_none() {
            return Err(unavailable("its process is being started again"));
        }
        if state.waiting.len() >= WAITING_MAX {
            return Err(Error::Busy { limit: WAITING_MAX });
        }
        state.last += 1;
        let number = state.last;
        let first = state.outbox.is_empty();
        frame::push_frame(&mut state.outbox, number, |body| ask.push(deadline, body));
        state.waiting.insert(number, Waiting { reply, deadline });
        drop(state);
        if first {
            self.wake.notify_one();
        }
        Ok(Asked { lane: self, number: Some(number) })
    }

    /// What can't be read ends the connection; nobody's data is touched.
    fn nonsense(&self) -> Error {
        tracing::error!("the boundary's process sent a frame that is none: its connection is ended");
        let life = self.state().life;
        life.into_iter().for_each(|life| self.lose(life));
        unavailable("its process sent nonsense")
    }

    /// Ends a connection that can't be used, unless another has come in its place, and says so to the supervisor.
    fn lose(&self, life: u64) {
        let mut state = self.state();
        if state.life != Some(life) {
            return;
        }
        state.end();
        drop(state);
        self.wake.notify_one();
        self.lost.send_if_modified(|lost| std::mem::replace(lost, life.max(*lost)) < life);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a request when its caller does.
struct Asked<'a> {
    lane: &'a Lane,
    /// None once it is answered.
    number: Option<u64>,
}

impl Asked<'_> {
    /// There is nothing left to forget, and nothing to be locked for it.
    fn answered(mut self) {
        self.number = None;
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.lane.state().waiting.remove(&number);
        }
    }
}

fn unavailable(reason: &'static str) -> Error {
    Error::Unavailable { reason: reason.into() }
}

/// Drives a lane's connections, one after another, for as long as the thread's runtime lives.
async fn drive(lane: Arc<Lane>) {
    let mut late = interval(LATE_ANSWERS_EVERY);
    late.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (arrived, life) = {
            let mut state = lane.state();
            (state.take_arrived(), state.life.unwrap_or_default())
        };
        match arrived.map(UnixStream::from_std) {
            Some(Ok(stream)) => {
                let ended = pump(&lane, &stream, &mut late).await;
                tracing::debug!(?ended, "a lane to the boundary's process ended");
                lane.lose(life);
            }
            Some(Err(error)) => {
                tracing::error!(%error, "a lane to the boundary's process can't be used");
                lane.lose(life);
            }
            None => lane.wake.notified().await,
        }
    }
}

/// Sends and receives until either end ends it.
async fn pump(lane: &Lane, stream: &UnixStream, late: &mut Interval) -> io::Result<()> {
    let mut arrived = Vec::with_capacity(READ_BYTES);
    let mut sending = Vec::new();
    loop {
        {
            let mut state = lane.state();
            let succeeded = state.arrived.is_some();
            if state.life.is_none() || (succeeded && state.owes_nothing()) {
                return Ok(());
            }
            sending.clear();
            if !succeeded {
                std::mem::swap(&mut sending, &mut state.outbox);
                state.sent = state.last;
            }
        }
        if !sending.is_empty() {
            write_all(lane, stream, &sending, &mut arrived, late).await?;
            continue;
        }
        tokio::select! {
            readable = stream.readable() => {
                readable?;
                receive(lane, stream, &mut arrived)?;
            }
            () = lane.wake.notified() => {}
            _ = late.tick() => give_up(lane, stream, &mut arrived)?,
        }
    }
}

/// Writes all of it, and goes on receiving where the other end takes no more until it is heard.
async fn write_all(
    lane: &Lane,
    stream: &UnixStream,
    mut bytes: &[u8],
    arrived: &mut Vec<u8>,
    late: &mut Interval,
) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::select! {
                    writable = stream.writable() => writable?,
                    readable = stream.readable() => {
                        readable?;
                        receive(lane, stream, arrived)?;
                    }
                    _ = late.tick() => give_up(lane, stream, arrived)?,
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Tells those who have waited for too long, unless their answers are there: after a stall of this thread both are due.
fn give_up(lane: &Lane, stream: &UnixStream, arrived: &mut Vec<u8>) -> io::Result<()> {
    while receive(lane, stream, arrived)? == Received::Some {}
    lane.state().give_up(monotonic_milliseconds());
    Ok(())
}

/// Whether anything had arrived.
#[derive(PartialEq, Eq)]
enum Received {
    Some,
    Nothing,
}

/// Takes in what is there, and answers those whose answers are whole.
fn receive(lane: &Lane, stream: &UnixStream, arrived: &mut Vec<u8>) -> io::Result<Received> {
    match stream.try_read_buf(arrived) {
        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Nothing),
        Err(error) => return Err(error),
    }
    let mut rest = arrived.as_slice();
    let mut state = lane.state();
    while let Some(frame) = frame::take_frame(&mut rest).map_err(io::Error::other)? {
        // Whoever has stopped waiting is not there any more; a number never given is nonsense.
        if frame.number > state.last || frame.number == 0 {
            return Err(io::Error::other(frame::FrameError));
        }
        if let Some(Waiting { reply, .. }) = state.waiting.remove(&frame.number) {
            let _ = reply.send(Answer::Body(frame.body.to_vec()));
        }
    }
    drop(state);
    let taken = arrived.len() - rest.len();
    arrived.drain(..taken);
    arrived.reserve(READ_BYTES.saturating_sub(arrived.len()));
    Ok(Received::Some)
}
