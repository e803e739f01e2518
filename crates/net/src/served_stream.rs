//! A connection to a server that has begun to serve HTTP/2.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// The first bytes that an HTTP/2 client sends (RFC 9113, 3.4).
pub(crate) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection whose client has sent its preface, and whose server has sent its first byte.
///
/// The operating system or a proxy may accept a connection for a server that has stopped or is frozen. Such a connection ends
/// before this type is made, so a call is never sent on it, and is safe to send to another server. A server of HTTP/2 that
/// stops names the calls that it did not process (GOAWAY).
pub(crate) struct ServedStream<S> {
    stream: S,
    /// The first byte of the server, until the reader of this stream has received it.
    first: Option<u8>,
    /// The number of bytes that the writer of this stream has yet to write of the preface, which was sent before.
    preface_bytes: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> ServedStream<S> {
    /// Sends the preface and waits for the first byte of the server.
    ///
    /// # Errors
    /// The connection ends before.
    pub(crate) async fn start(mut stream: S) -> io::Result<Self> {
        stream.write_all(PREFACE).await?;
        stream.flush().await?;
        let first = stream.read_u8().await.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the peer closed the connection before it served HTTP/2: check that it runs and does not stop",
            ),
            _ => error,
        })?;
        Ok(Self { stream, first: Some(first), preface_bytes: PREFACE.len() })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ServedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buffer.remaining() > 0
            && let Some(first) = self.first.take()
        {
            buffer.put_slice(&[first]);
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ServedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.preface_bytes > 0 {
            let written = bytes.len().min(self.preface_bytes);
            self.preface_bytes = self.preface_bytes.saturating_sub(written);
            return Poll::Ready(Ok(written));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.preface_bytes > 0 {
            let first = parts.iter().find(|part| !part.is_empty()).map_or(&[][..], |part| part);
            return self.poll_write(cx, first);
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_preface_is_sent_once_and_the_first_byte_is_read() {
        let (client, mut server) = tokio::io::duplex(64);
        server.write_all(b"settings").await.unwrap();
        let mut client = ServedStream::start(client).await.unwrap();
        for part in PREFACE.chunks(10) {
            client.write_all(part).await.unwrap();
        }
        client.write_all(b"frames").await.unwrap();
        let mut read = [0; 8];
        client.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"settings");
        drop(client);
        let mut sent = Vec::new();
        server.read_to_end(&mut sent).await.unwrap();
        assert_eq!(sent, [&PREFACE[..], b"frames"].concat());
    }

    #[tokio::test]
    async fn a_connection_that_ends_before_http2_fails() {
        let (client, server) = tokio::io::duplex(64);
        let started = tokio::spawn(ServedStream::start(client));
        drop(server);
        assert!(started.await.unwrap().is_err());
    }
}
