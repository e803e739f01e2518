//! Connections that have started HTTP/2, the only protocol of the engine.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tonic::transport::server::Connected;

use super::{Peer, ServerStream, ServerTls, TlsError};
use crate::{ConnectionPlace, served_stream::PREFACE};
use clock::minute_limit::MinuteLimit;

/// The longest time from the end of the handshake to the end of the preface.
const PREFACE_TIME_MAX: Duration = Duration::from_secs(5);

/// The lines within a minute that peers without a certificate can cause. The next line has the number of suppressed ones.
static REJECTED_LINES: MinuteLimit = MinuteLimit::new(60);

/// A connection whose client has sent the preface. Holds its place in the connection table until dropped.
pub struct Http2Stream {
    stream: ServerStream,
    /// The part of the preface that the reader of this stream has not received yet.
    preface: &'static [u8],
    _place: ConnectionPlace,
}

/// The connections of `streams` that start HTTP/2, each as soon as its preface is complete. Each handshake is a separate
/// task; the connection table limits their number. The log reports a connection that fails before.
pub fn accept_http2<S>(streams: S, tls: Option<ServerTls>) -> impl Stream<Item = Result<Http2Stream, io::Error>>
where
    S: Stream<Item = (TcpStream, ConnectionPlace)>,
{
    let accept = move |(stream, place): (TcpStream, ConnectionPlace)| {
        let (network, accepted) = (place.network(), tokio::spawn(accept(stream, place, tls.clone())));
        async move { (network, accepted.await) }
    };
    streams.map(accept).buffer_unordered(usize::MAX).filter_map(async |(network, accepted)| match accepted {
        Ok(Ok(stream)) => Some(Ok(stream)),
        Ok(Err(error @ TlsError::Displaced)) => {
            tracing::debug!(%network, %error, "a connection was rejected");
            None
        }
        Ok(Err(error)) => {
            if let Some(suppressed) = REJECTED_LINES.admit() {
                tracing::info!(%network, %error, suppressed, "a connection was rejected");
            }
            None
        }
        Err(error) => {
            tracing::error!(%error, "the task of a handshake panicked");
            None
        }
    })
}

async fn accept(stream: TcpStream, place: ConnectionPlace, tls: Option<ServerTls>) -> Result<Http2Stream, TlsError> {
    stream.set_nodelay(true).map_err(TlsError::Handshake)?;
    let handshake = async {
        let mut stream = match tls {
            Some(tls) => tls.accept(stream).await?,
            None => ServerStream::Plain(stream),
        };
        let mut read = [0; PREFACE.len()];
        match timeout(PREFACE_TIME_MAX, stream.read_exact(&mut read)).await {
            Ok(Ok(_)) if read == *PREFACE => Ok(stream),
            Ok(Err(error)) => Err(TlsError::Handshake(error)),
            Ok(Ok(_)) | Err(_) => Err(TlsError::Preface { limit: PREFACE_TIME_MAX }),
        }
    };
    let stream = tokio::select! {
        stream = handshake => stream?,
        () = place.closed() => return Err(TlsError::Displaced),
    };
    place.settle();
    Ok(Http2Stream { stream, preface: PREFACE, _place: place })
}

impl Connected for Http2Stream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.stream.peer()
    }
}

impl AsyncRead for Http2Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.preface.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let (now, later) = this.preface.split_at(this.preface.len().min(buf.remaining()));
        buf.put_slice(now);
        this.preface = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Http2Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
