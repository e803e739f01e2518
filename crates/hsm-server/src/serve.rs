//! The threads that serve connections. A thread executes all requests of one read, and sends their replies in one write.

use std::{
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::{Arc, Barrier},
    task::Poll,
    thread,
    time::Duration,
};

use futures::{StreamExt, poll, stream::FuturesUnordered};
use hsm::Hsm;
use hsm_protocol::{
    Error,
    frame::{self, Welcome},
};
use tokio::{net::UnixStream, runtime::Builder, sync::mpsc, task::LocalSet, time::sleep};

use clock::monotonic_milliseconds;

/// The most requests of one connection that wait for the token.
const WAITING_MAX: usize = 4_096;
/// The most connections of one thread. An engine opens one for each of its own threads.
const CONNECTIONS_MAX: usize = 256;
/// The most new connections that wait for one thread.
const NEW_CONNECTIONS_MAX: usize = 256;
/// From the start of a connection to the end of its hello. An engine sends the hello at once.
const HELLO_TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes of one read.
const READ_BYTES: usize = 64 * 1024;

/// The queue of new connections of one thread.
pub(super) struct ServingThread(mpsc::Sender<std::os::unix::net::UnixStream>);

/// The threads of the process that serve connections.
pub(super) struct ServingThreads(Vec<ServingThread>);

/// Threads that run, but do not serve yet.
pub(super) struct PausedThreads {
    threads: ServingThreads,
    resume: Arc<Barrier>,
}

impl ServingThreads {
    /// Starts `count` threads, and returns when each of them runs.
    pub(super) fn start(hsm: &Arc<Hsm>, count: usize) -> io::Result<PausedThreads> {
        let resume = Arc::new(Barrier::new(count.saturating_add(1)));
        let mut threads = Vec::with_capacity(count);
        for number in 0..count {
            let (sender, connections) = mpsc::channel(NEW_CONNECTIONS_MAX);
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let (hsm, resume) = (Arc::clone(hsm), Arc::clone(&resume));
            thread::Builder::new().name(format!("hsm-{number}")).spawn(move || {
                // The thread runs; then it may serve.
                resume.wait();
                resume.wait();
                runtime.block_on(serve(hsm, connections));
            })?;
            threads.push(ServingThread(sender));
        }
        resume.wait();
        Ok(PausedThreads { threads: Self(threads), resume })
    }

    /// The threads in turn, without end.
    pub(super) fn in_turn(&self) -> impl Iterator<Item = &ServingThread> {
        self.0.iter().cycle()
    }
}

impl PausedThreads {
    /// Lets the threads serve.
    pub(super) fn resume(self) -> ServingThreads {
        self.resume.wait();
        self.threads
    }
}

impl ServingThread {
    /// Serves a connection on this thread; drops the connection when the thread's queue is full.
    pub(super) fn serve(&self, connection: std::os::unix::net::UnixStream) {
        if self.0.try_send(connection).is_err() {
            tracing::warn!(limit = NEW_CONNECTIONS_MAX, "a connection was dropped: too many wait already");
        }
    }
}

/// Serves all connections of one thread.
async fn serve(hsm: Arc<Hsm>, mut new_connections: mpsc::Receiver<std::os::unix::net::UnixStream>) {
    let hsm = Rc::new(hsm);
    let connections = LocalSet::new();
    let accepting = connections.run_until(async {
        let open = Rc::new(());
        while let Some(stream) = new_connections.recv().await {
            if Rc::strong_count(&open) > CONNECTIONS_MAX {
                tracing::warn!(
                    limit = CONNECTIONS_MAX,
                    "a connection was dropped: its thread serves the most connections already"
                );
                continue;
            }
            let (hsm, open) = (Rc::clone(&hsm), Rc::clone(&open));
            tokio::task::spawn_local(async move {
                let _open = open;
                // A malformed frame closes the connection; no other request is affected.
                if let Err(error) = serve_connection(&hsm, stream).await {
                    tracing::warn!(%error, "a connection ended");
                }
            });
        }
    });
    accepting.await;
    connections.await;
}

/// A request in work: its number and its encoded reply.
type PendingReply<'a> = Pin<Box<dyn Future<Output = (u64, Vec<u8>)> + 'a>>;

async fn serve_connection(hsm: &Hsm, stream: std::os::unix::net::UnixStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let stream = UnixStream::from_std(stream)?;
    let mut arrived = Vec::with_capacity(READ_BYTES);
    let mut out = Vec::new();
    let mut waiting: FuturesUnordered<PendingReply<'_>> = FuturesUnordered::new();
    let mut greeted = false;
    let mut hello_time = pin!(sleep(HELLO_TIME_MAX));
    loop {
        tokio::select! {
            () = hello_time.as_mut(), if !greeted => return Err(io::Error::other("no hello came in time")),
            readable = stream.readable() => {
                readable?;
                match stream.try_read_buf(&mut arrived) {
                    Ok(0) => return Ok(()),
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                    Err(error) => return Err(error),
                }
            }
            Some((number, reply)) = waiting.next() => frame::push_frame(&mut out, number, |body| body.extend(reply)),
        }
        let mut rest = arrived.as_slice();
        // Read once for all frames that arrived: under a seccomp filter each read of the clock is a system call.
        let now = monotonic_milliseconds();
        let (mut numbers, mut requests) = (Vec::new(), Vec::new());
        while let Some(frame) = frame::take_frame(&mut rest).map_err(io::Error::other)? {
            if !greeted {
                frame::read_hello(&frame).map_err(io::Error::other)?;
                frame::push_welcome(&mut out, &Welcome::Serving(Box::new(hsm.status().clone())));
                greeted = true;
                continue;
            }
            let (deadline, request) = frame::read_request(frame.body).map_err(io::Error::other)?;
            // No caller waits for a late reply.
            if deadline < now {
                continue;
            }
            numbers.push(frame.number);
            requests.push(request);
        }
        let requests = match hsm.execute_together(requests) {
            Ok(replies) => {
                for (number, reply) in numbers.drain(..).zip(replies) {
                    frame::push_frame(&mut out, number, |body| frame::write_reply(&reply, body));
                }
                Vec::new()
            }
            Err(requests) => requests,
        };
        for (number, request) in numbers.into_iter().zip(requests) {
            if waiting.len() >= WAITING_MAX {
                let busy = Err(Error::Busy { limit: WAITING_MAX });
                frame::push_frame(&mut out, number, |body| frame::write_reply(&busy, body));
                continue;
            }
            let mut pending: PendingReply<'_> = Box::pin(async move {
                let mut reply = Vec::with_capacity(128);
                frame::write_reply(&hsm.execute(request).await, &mut reply);
                (number, reply)
            });
            match poll!(&mut pending) {
                Poll::Ready((number, reply)) => frame::push_frame(&mut out, number, |body| body.extend(reply)),
                Poll::Pending => waiting.push(pending),
            }
        }
        let consumed = arrived.len() - rest.len();
        arrived.drain(..consumed);
        arrived.reserve(READ_BYTES.saturating_sub(arrived.len()));
        while let Poll::Ready(Some((number, reply))) = poll!(waiting.next()) {
            frame::push_frame(&mut out, number, |body| body.extend(reply));
        }
        write_all(&stream, &out).await?;
        out.clear();
    }
}

async fn write_all(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
