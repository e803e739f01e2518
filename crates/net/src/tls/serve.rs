//! The accepting side: handshakes, and the identity of the peer.

mod http2;

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use x509_parser::{extensions::GeneralName, prelude::FromDer, prelude::X509Certificate};

pub use self::http2::{Http2Stream, accept_http2};
use super::{ServerTls, TlsError};

/// The longest time from the start of a connection to the first byte of the ClientHello.
const FIRST_BYTE_TIME_MAX: Duration = Duration::from_secs(3);
/// The longest time for a handshake, from its first byte.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);

/// The identity of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A process on this machine, over plain TCP.
    Loopback,
    /// A TLS client without a certificate.
    Anonymous,
    /// The holder of a certificate that the client roots verify.
    Certificate {
        /// The first DNS or URI name of the certificate, else its common name; empty if it has neither.
        name: Arc<str>,
        /// SHA-256 of the DER certificate.
        sha256: [u8; 32],
    },
}

/// A connection after its handshake.
pub enum ServerStream {
    /// A TCP connection on loopback, without TLS.
    Plain(TcpStream),
    /// A TLS connection and the identity from its client certificate.
    Tls(Box<TlsStream<TcpStream>>, Peer),
}

impl ServerStream {
    /// The identity of the peer.
    pub fn peer(&self) -> Peer {
        match self {
            Self::Plain(_) => Peer::Loopback,
            Self::Tls(_, peer) => peer.clone(),
        }
    }
}

impl ServerTls {
    /// Performs the TLS handshake on a connection.
    ///
    /// # Errors
    /// The client sends nothing, is too slow, or lacks a valid certificate where client roots are configured.
    pub async fn accept(&self, stream: TcpStream) -> Result<ServerStream, TlsError> {
        let silent = |_| TlsError::Silent { limit: FIRST_BYTE_TIME_MAX };
        timeout(FIRST_BYTE_TIME_MAX, stream.peek(&mut [0])).await.map_err(silent)?.map_err(TlsError::Handshake)?;
        let handshake = TlsAcceptor::from(self.current()).accept(stream);
        let stream = timeout(HANDSHAKE_TIME_MAX, handshake)
            .await
            .map_err(|_| TlsError::HandshakeTime { limit: HANDSHAKE_TIME_MAX })?;
        let stream = stream.map_err(TlsError::Handshake)?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let peer = certificate.map_or(Peer::Anonymous, peer_of);
        Ok(ServerStream::Tls(Box::new(stream), peer))
    }
}

fn peer_of(certificate: &CertificateDer<'_>) -> Peer {
    let name = match X509Certificate::from_der(certificate) {
        Ok((_, parsed)) => name_of(&parsed).unwrap_or_default(),
        Err(_) => String::new(),
    };
    Peer::Certificate { name: name.into(), sha256: Sha256::digest(certificate).into() }
}

fn name_of(certificate: &X509Certificate<'_>) -> Option<String> {
    let names = certificate.subject_alternative_name().ok().flatten();
    let alternative = names.and_then(|names| {
        names.value.general_names.iter().find_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::URI(name) => Some((*name).to_owned()),
            _ => None,
        })
    });
    let common = || certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    alternative.or_else(|| common().map(str::to_owned))
}

impl AsyncRead for ServerStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream, _) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream, _) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream, _) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream, _) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream, _) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream, _) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
