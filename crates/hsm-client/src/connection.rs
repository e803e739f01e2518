//! One connection to the boundary's process, used by one thread. One write carries all requests that the thread queued since
//! the write before, and all replies of one read are delivered together.

use std::{
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hashbrown::HashMap;
use hsm_protocol::{Error, Reply, Request, UnavailableReason, frame};
use tokio::{
    net::UnixStream,
    sync::{Notify, oneshot, watch},
    time::{Interval, MissedTickBehavior, interval},
};

use clock::deadline::Deadline;
use clock::monotonic_milliseconds;

/// The longest time for a reply.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);
/// The period of the search for late requests: a timer for each request would cost more than its reply.
const LATE_CHECK_EVERY: Duration = Duration::from_millis(250);
/// The most requests of one connection that wait for replies.
const WAITING_MAX: usize = 4_096;
/// Bytes of one read.
const READ_BYTES: usize = 64 * 1024;

/// One thread's connection to the boundary's process. Its socket is replaced when the process is.
pub(super) struct Connection {
    state: Mutex<State>,
    /// Wakes the driver for new requests or a new socket.
    wake: Notify,
    /// Whether a task drives the sockets.
    driven: AtomicBool,
    /// The newest generation of the process whose socket was lost; the supervisor watches it.
    lost: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct State {
    /// A socket that replaces the driven one.
    new_socket: Option<std::os::unix::net::UnixStream>,
    /// The generation of the process that the socket leads to; `None` while there is no socket.
    generation: Option<u64>,
    outbox: Vec<u8>,
    waiting: HashMap<u64, Waiting>,
    /// The last number of a request.
    last: u64,
    /// The last number sent on the driven socket.
    sent: u64,
}

/// A caller that waits for its reply until a deadline.
struct Waiting {
    reply: oneshot::Sender<Answer>,
    /// In milliseconds of CLOCK_MONOTONIC.
    deadline: u64,
    late: LateCause,
}

/// The origin of a deadline: the call, or [`ANSWER_TIME_MAX`].
#[derive(Clone, Copy)]
enum LateCause {
    Call,
    Process,
}

enum Answer {
    Body(Vec<u8>),
    DeadlinePassed,
    Silence,
}

impl State {
    /// Fails the requests whose deadlines have passed.
    fn fail_late(&mut self, now: u64) {
        for (_, late) in self.waiting.extract_if(|_, waiting| waiting.deadline < now) {
            let _ = late.reply.send(match late.late {
                LateCause::Call => Answer::DeadlinePassed,
                LateCause::Process => Answer::Silence,
            });
        }
    }

    /// Fails the requests that wait and forgets the socket. Numbers are not used twice.
    fn end(&mut self) {
        *self = Self { last: self.last, ..Self::default() };
    }

    /// Whether the driven socket has answered every request.
    fn has_answered_all(&self) -> bool {
        self.waiting.keys().all(|number| *number > self.sent)
    }

    /// Returns the new socket and fails the requests that the former one did not answer.
    fn take_new_socket(&mut self) -> Option<std::os::unix::net::UnixStream> {
        let new = self.new_socket.take()?;
        let sent = self.sent;
        self.waiting.retain(|number, _| *number > sent);
        Some(new)
    }
}

impl Connection {
    pub(super) fn new(lost: Arc<watch::Sender<u64>>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), wake: Notify::new(), driven: AtomicBool::new(false), lost })
    }

    /// Replaces the socket at once; requests that wait fail.
    pub(super) fn connect(&self, generation: u64, stream: std::os::unix::net::UnixStream) {
        let mut state = self.state();
        state.end();
        (state.new_socket, state.generation) = (Some(stream), Some(generation));
        drop(state);
        self.wake.notify_one();
    }

    /// Replaces the socket once the driven one has answered every request it was sent; later requests wait for the new one.
    pub(super) fn replace(&self, generation: u64, stream: std::os::unix::net::UnixStream) {
        let mut state = self.state();
        (state.new_socket, state.generation) = (Some(stream), Some(generation));
        drop(state);
        self.wake.notify_one();
    }

    /// Whether the driven socket still has requests to answer before it is replaced.
    pub(super) fn is_being_handed_over(&self) -> bool {
        self.driven.load(Ordering::Relaxed) && self.state().new_socket.is_some()
    }

    /// Fails the requests that wait, and every request until there is another socket.
    pub(super) fn disconnect(&self) {
        let mut state = self.state();
        state.end();
        drop(state);
        self.wake.notify_one();
    }

    /// Sends a request and waits for its reply.
    pub(super) async fn execute(self: &Arc<Self>, request: &Request) -> Result<Reply, Error> {
        let body = self.send(request).await?;
        match frame::read_reply(&body) {
            Ok(Ok(reply)) if !request.is_answered_by(&reply) => Err(self.malformed_frame()),
            Ok(result) => result,
            Err(frame::FrameError) => Err(self.malformed_frame()),
        }
    }

    async fn send(self: &Arc<Self>, request: &Request) -> Result<Vec<u8>, Error> {
        if !self.driven.swap(true, Ordering::Relaxed) {
            tokio::spawn(drive(Arc::clone(self)));
        }
        let (reply, answer) = oneshot::channel();
        let pending = self.queue(request, reply)?;
        match answer.await {
            Ok(Answer::Body(body)) => {
                pending.answered();
                Ok(body)
            }
            Ok(Answer::DeadlinePassed) => Err(Error::DeadlinePassed),
            Ok(Answer::Silence) => Err(unavailable(UnavailableReason::ProcessSilent)),
            Err(_) => Err(unavailable(UnavailableReason::ProcessEnded)),
        }
    }

    fn queue(&self, request: &Request, reply: oneshot::Sender<Answer>) -> Result<Pending<'_>, Error> {
        // A call waits no longer than its own deadline.
        let limit = Deadline::within(ANSWER_TIME_MAX);
        let of_call = Deadline::of_this_call().filter(|of_call| *of_call < limit);
        let deadline = of_call.unwrap_or(limit);
        if deadline.has_passed() {
            return Err(Error::DeadlinePassed);
        }
        let late = if of_call.is_some() { LateCause::Call } else { LateCause::Process };
        let deadline = deadline.monotonic_milliseconds();
        let mut state = self.state();
        if state.generation.is_none() {
            return Err(unavailable(UnavailableReason::ProcessStarting));
        }
        if state.waiting.len() >= WAITING_MAX {
            return Err(Error::Busy { limit: WAITING_MAX });
        }
        state.last += 1;
        let number = state.last;
        let first = state.outbox.is_empty();
        frame::push_frame(&mut state.outbox, number, |body| frame::write_request(request, deadline, body));
        state.waiting.insert(number, Waiting { reply, deadline, late });
        drop(state);
        if first {
            self.wake.notify_one();
        }
        Ok(Pending { connection: self, number: Some(number) })
    }

    /// Closes the socket after a malformed frame. Its other requests fail.
    fn malformed_frame(&self) -> Error {
        tracing::error!("the boundary's process sent a malformed frame: its connection is closed");
        let generation = self.state().generation;
        generation.into_iter().for_each(|generation| self.lose(generation));
        unavailable(UnavailableReason::MalformedFrame)
    }

    /// Closes the socket of this generation, if it is still in use, and reports it to the supervisor.
    fn lose(&self, generation: u64) {
        let mut state = self.state();
        if state.generation != Some(generation) {
            return;
        }
        state.end();
        drop(state);
        self.wake.notify_one();
        self.lost.send_if_modified(|lost| std::mem::replace(lost, generation.max(*lost)) < generation);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes a request when its caller stops waiting.
struct Pending<'a> {
    connection: &'a Connection,
    /// `None` once it is answered.
    number: Option<u64>,
}

impl Pending<'_> {
    /// Marks the request as answered, so that the drop takes no lock.
    fn answered(mut self) {
        self.number = None;
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.connection.state().waiting.remove(&number);
        }
    }
}

fn unavailable(reason: UnavailableReason) -> Error {
    Error::Unavailable { reason }
}

/// Drives the sockets of a connection, one after another, until the thread's runtime ends.
async fn drive(connection: Arc<Connection>) {
    let mut late = interval(LATE_CHECK_EVERY);
    late.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let (socket, generation) = {
            let mut state = connection.state();
            (state.take_new_socket(), state.generation.unwrap_or_default())
        };
        match socket.map(UnixStream::from_std) {
            Some(Ok(stream)) => {
                let ended = pump(&connection, &stream, &mut late).await;
                tracing::debug!(?ended, "a socket of the boundary's process closed");
                connection.lose(generation);
            }
            Some(Err(error)) => {
                tracing::error!(%error, "a socket of the boundary's process cannot be used");
                connection.lose(generation);
            }
            None => connection.wake.notified().await,
        }
    }
}

/// Sends and receives until either end closes the socket.
async fn pump(connection: &Connection, stream: &UnixStream, late: &mut Interval) -> io::Result<()> {
    let mut arrived = Vec::with_capacity(READ_BYTES);
    let mut sending = Vec::new();
    loop {
        {
            let mut state = connection.state();
            let is_replaced = state.new_socket.is_some();
            if state.generation.is_none() || (is_replaced && state.has_answered_all()) {
                return Ok(());
            }
            sending.clear();
            if !is_replaced {
                std::mem::swap(&mut sending, &mut state.outbox);
                state.sent = state.last;
            }
        }
        if !sending.is_empty() {
            write_all(connection, stream, &sending, &mut arrived, late).await?;
            continue;
        }
        tokio::select! {
            readable = stream.readable() => {
                readable?;
                receive(connection, stream, &mut arrived)?;
            }
            () = connection.wake.notified() => {}
            _ = late.tick() => fail_late(connection, stream, &mut arrived)?,
        }
    }
}

/// Writes all bytes, and receives while the peer's buffer is full, so that neither end waits for the other.
async fn write_all(
    connection: &Connection,
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
                        receive(connection, stream, arrived)?;
                    }
                    _ = late.tick() => fail_late(connection, stream, arrived)?,
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Fails the late requests after it has read every reply that arrived: after a stall of this thread, a reply may have
/// arrived in time.
fn fail_late(connection: &Connection, stream: &UnixStream, arrived: &mut Vec<u8>) -> io::Result<()> {
    while receive(connection, stream, arrived)? == Received::Bytes {}
    connection.state().fail_late(monotonic_milliseconds());
    Ok(())
}

/// Whether a read returned bytes.
#[derive(PartialEq, Eq)]
enum Received {
    Bytes,
    Nothing,
}

/// Reads what has arrived and delivers each whole reply.
fn receive(connection: &Connection, stream: &UnixStream, arrived: &mut Vec<u8>) -> io::Result<Received> {
    match stream.try_read_buf(arrived) {
        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Received::Nothing),
        Err(error) => return Err(error),
    }
    let mut rest = arrived.as_slice();
    let mut state = connection.state();
    while let Some(frame) = frame::take_frame(&mut rest).map_err(io::Error::other)? {
        // A caller that stopped waiting is not in `waiting`; a number that was never used is malformed.
        if frame.number > state.last || frame.number == 0 {
            return Err(io::Error::other(frame::FrameError));
        }
        if let Some(Waiting { reply, .. }) = state.waiting.remove(&frame.number) {
            let _ = reply.send(Answer::Body(frame.body.to_vec()));
        }
    }
    drop(state);
    let consumed = arrived.len() - rest.len();
    arrived.drain(..consumed);
    arrived.reserve(READ_BYTES.saturating_sub(arrived.len()));
    Ok(Received::Bytes)
}
