//! The stream below hyper.
//!
//! hyper answers a malformed or too large head of HTTP/1.1 by itself, with an empty body. This stream withholds each byte that
//! is written while no answer of the service is due, so that the edge can send its own answer. When hyper drops the stream,
//! the stream returns to the edge, which also reads what the client is still sending: closing a socket with unread bytes sends
//! RST, and the client would lose the answer (RFC 9112, 9.6).

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use axum::{
    body::{Body, Bytes},
    http::Response,
};
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use net::tls::ServerStream;

/// The first bytes of HTTP/2 (RFC 9113, 3.4). A connection that begins with other bytes has HTTP/1.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The state of a connection that its [`Transport`] and its service share.
#[derive(Clone, Default)]
pub(super) struct Exchange(Arc<Mutex<ExchangeState>>);

#[derive(Default)]
struct ExchangeState {
    protocol: Protocol,
    phase: Phase,
    /// The stream, after hyper has dropped it.
    stream: Option<ServerStream>,
}

enum Protocol {
    /// The bytes of the preface that have arrived.
    Unknown(usize),
    Http1,
    Http2,
}

impl Default for Protocol {
    fn default() -> Self {
        Self::Unknown(0)
    }
}

/// Whose bytes hyper writes over HTTP/1.
#[derive(Default, PartialEq, Eq)]
enum Phase {
    /// No answer of the service is due.
    #[default]
    Idle,
    /// An answer of the service is due, or in part written.
    Answering,
    /// hyper has the whole answer of the service, and has not flushed it.
    Flushing,
    /// hyper answered by itself; its bytes are withheld.
    Withheld,
}

/// The end of a connection whose client has begun HTTP.
pub(super) struct Ended {
    pub(super) stream: ServerStream,
    /// Whether hyper rejected the head of a request, and the client has no answer to it.
    pub(super) is_unanswered: bool,
}

impl Exchange {
    fn lock(&self) -> MutexGuard<'_, ExchangeState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the client has begun HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        matches!(self.lock().protocol, Protocol::Http2)
    }

    /// A request begins.
    pub(super) fn begin(&self) {
        self.lock().phase = Phase::Answering;
    }

    /// The answer to the request that began; its body notes when hyper has read it whole.
    pub(super) fn answer(&self, answer: Response<Body>) -> Response<Body> {
        answer.map(|body| Body::new(AnswerBody { body, exchange: self.clone() }))
    }

    /// The stream of a connection that has ended; `None` where the client has not begun HTTP.
    pub(super) fn end(&self) -> Option<Ended> {
        let mut state = self.lock();
        let stream = state.stream.take()?;
        (!matches!(state.protocol, Protocol::Unknown(_)))
            .then(|| Ended { stream, is_unanswered: state.phase == Phase::Withheld })
    }
}

impl ExchangeState {
    /// Compares the first bytes of the client with the preface.
    fn read(&mut self, bytes: &[u8]) {
        if let Protocol::Unknown(arrived) = self.protocol {
            let expected = PREFACE.get(arrived..).unwrap_or_default();
            let length = expected.len().min(bytes.len());
            self.protocol = match expected.get(..length) == bytes.get(..length) {
                false => Protocol::Http1,
                true if length == expected.len() => Protocol::Http2,
                true => Protocol::Unknown(arrived + length),
            };
        }
    }

    /// Whether bytes that hyper writes are withheld.
    fn withholds(&mut self) -> bool {
        if matches!(self.protocol, Protocol::Http1) && self.phase == Phase::Idle {
            self.phase = Phase::Withheld;
        }
        self.phase == Phase::Withheld
    }
}

/// The body of an answer; dropped when all its bytes are in hyper's buffer.
struct AnswerBody {
    body: Body,
    exchange: Exchange,
}

impl hyper::body::Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        let mut state = self.exchange.lock();
        if state.phase == Phase::Answering {
            state.phase = Phase::Flushing;
        }
    }
}

/// The stream of a connection, for hyper.
pub(super) struct Transport {
    /// `Some` until dropped.
    stream: Option<ServerStream>,
    exchange: Exchange,
}

impl Transport {
    pub(super) fn new(stream: ServerStream, exchange: Exchange) -> Self {
        Self { stream: Some(stream), exchange }
    }

    fn stream(&mut self) -> io::Result<Pin<&mut ServerStream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.exchange.lock().stream = self.stream.take();
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        std::task::ready!(this.stream()?.poll_read(cx, buf))?;
        this.exchange.lock().read(buf.filled().get(before..).unwrap_or_default());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.exchange.lock().withholds() {
            return Poll::Ready(Ok(buf.len()));
        }
        this.stream()?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.exchange.lock().withholds() {
            return Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()));
        }
        this.stream()?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.as_ref().is_some_and(ServerStream::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        {
            let mut state = this.exchange.lock();
            match state.phase {
                Phase::Withheld => return Poll::Ready(Ok(())),
                // hyper flushes the stream after it has written its whole buffer.
                Phase::Flushing => state.phase = Phase::Idle,
                Phase::Idle | Phase::Answering => {}
            }
        }
        this.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // The answer of the edge follows.
        if this.exchange.lock().phase == Phase::Withheld {
            return Poll::Ready(Ok(()));
        }
        this.stream()?.poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    #[tokio::test]
    async fn the_stream_of_a_client_that_began_http_returns_to_the_edge() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for (bytes, returns) in [(&PREFACE[..], true), (b"GET / HTTP/1.1\r\n", true), (&PREFACE[..8], false)] {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            client.write_all(bytes).await.unwrap();
            let exchange = Exchange::default();
            let mut transport =
                Transport::new(ServerStream::Plain(listener.accept().await.unwrap().0), exchange.clone());
            transport.read_exact(&mut vec![0; bytes.len()]).await.unwrap();
            drop(transport);
            assert_eq!(exchange.end().map(|ended| ended.is_unanswered), returns.then_some(false), "{bytes:?}");
        }
    }
}
