//! The connections of one thread: all requests of one read are executed, and their replies leave in one write.

use std::{
    io,
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use futures::{StreamExt, poll, stream::FuturesUnordered};
use hsm::Hsm;
use hsm_protocol::{
    Error,
    frame::{self, Welcome},
};
use tokio::{net::UnixStream, sync::mpsc, task::LocalSet, time::sleep};

use clock::monotonic_milliseconds;

/// The most requests of one connection that wait for the token.
const WAITING_MAX: usize = 4_096;
/// The most connections of one thread. An engine opens one for each of its own threads.
const CONNECTIONS_MAX: usize = 256;
/// From the start of a connection to the end of its hello. An engine sends the hello at once.
const HELLO_TIME_MAX: Duration = Duration::from_secs(10);
/// Bytes of one read.
const READ_BYTES: usize = 64 * 1024;

/// Serves each connection that is dealt, all on this thread.
pub(super) async fn serve(hsm: Arc<Hsm>, mut dealt: mpsc::Receiver<std::os::unix::net::UnixStream>) {
    let hsm = Rc::new(hsm);
    let connections = LocalSet::new();
    let all = connections.run_until(async {
        let counted = Rc::new(());
        while let Some(stream) = dealt.recv().await {
            if Rc::strong_count(&counted) > CONNECTIONS_MAX {
                tracing::warn!(limit = CONNECTIONS_MAX, "a connection was dropped: so many are served already");
                continue;
            }
            let (hsm, counted) = (Rc::clone(&hsm), Rc::clone(&counted));
            tokio::task::spawn_local(async move {
                let _counted = counted;
                // A malformed frame closes the connection; no other request is affected.
                if let Err(error) = serve_one(&hsm, stream).await {
                    tracing::warn!(%error, "a connection ended");
                }
            });
        }
    });
    all.await;
    connections.await;
}

type Answering<'a> = Pin<Box<dyn Future<Output = (u64, Vec<u8>)> + 'a>>;

async fn serve_one(hsm: &Hsm, stream: std::os::unix::net::UnixStream) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let stream = UnixStream::from_std(stream)?;
    let mut arrived = Vec::with_capacity(READ_BYTES);
    let mut out = Vec::new();
    let mut waiting: FuturesUnordered<Answering<'_>> = FuturesUnordered::new();
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
        // Once for all that has arrived: behind a filter of system calls each look at the clock is one.
        let now = monotonic_milliseconds();
        while let Some(frame) = frame::take_frame(&mut rest).map_err(io::Error::other)? {
            if !greeted {
                frame::read_hello(&frame).map_err(io::Error::other)?;
                frame::push_welcome(&mut out, &Welcome::Serving(Box::new(hsm.status().clone())));
                greeted = true;
                continue;
            }
            let number = frame.number;
            let (deadline, request) = frame::read_request(frame.body).map_err(io::Error::other)?;
            // No caller waits for a late reply.
            if deadline < now {
                continue;
            }
            if waiting.len() >= WAITING_MAX {
                let busy = Err(Error::Busy { limit: WAITING_MAX });
                frame::push_frame(&mut out, number, |body| frame::write_reply(&busy, body));
                continue;
            }
            let mut answering: Answering<'_> = Box::pin(async move {
                let mut reply = Vec::with_capacity(128);
                frame::write_reply(&hsm.execute(request).await, &mut reply);
                (number, reply)
            });
            match poll!(&mut answering) {
                Poll::Ready((number, reply)) => frame::push_frame(&mut out, number, |body| body.extend(reply)),
                Poll::Pending => waiting.push(answering),
            }
        }
        let taken = arrived.len() - rest.len();
        arrived.drain(..taken);
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
