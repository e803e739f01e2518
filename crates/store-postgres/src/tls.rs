//! TLS to the database, by rustls: the server's certificate is verified for the name of the host (`verify-full`).

use std::{
    fs, io,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::{
    Socket,
    tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream},
};
use tokio_rustls::TlsConnector;

use super::{DatabaseTls, PostgresOpenError};

/// Makes the connector of a host.
#[derive(Clone)]
pub(crate) struct Tls(Arc<ClientConfig>);

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`PostgresOpenError::Tls`]: a file can't be read, or has no certificate or key.
    pub(crate) fn load(files: &DatabaseTls) -> Result<Self, PostgresOpenError> {
        let certificates = |path: &Path| {
            let pem = fs::read(path).map_err(|error| problem(path, &error))?;
            let read = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
            match read {
                Ok(certificates) if certificates.is_empty() => Err(problem(path, &"it has no certificate")),
                read => read.map_err(|error| problem(path, &error)),
            }
        };
        let mut roots = RootCertStore::empty();
        for root in certificates(&files.roots)? {
            roots.add(root).map_err(|error| problem(&files.roots, &error))?;
        }
        let builder = ClientConfig::builder().with_root_certificates(roots);
        let config = match &files.client {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let pem = fs::read(key).map(zeroize::Zeroizing::new).map_err(|error| problem(key, &error))?;
                let private_key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| problem(key, &error))?;
                let config = builder.with_client_auth_cert(certificates(chain)?, private_key);
                config.map_err(|error| problem(chain, &error))?
            }
        };
        Ok(Self(Arc::new(config)))
    }
}

fn problem(path: &Path, problem: &dyn std::fmt::Display) -> PostgresOpenError {
    PostgresOpenError::Tls { path: path.to_owned(), problem: problem.to_string() }
}

impl MakeTlsConnect<Socket> for Tls {
    type Stream = TlsSocket;
    type TlsConnect = TlsHandshake;
    type Error = rustls_pki_types::InvalidDnsNameError;

    fn make_tls_connect(&mut self, host: &str) -> Result<TlsHandshake, Self::Error> {
        Ok(TlsHandshake { config: Arc::clone(&self.0), host: ServerName::try_from(host)?.to_owned() })
    }
}

pub(crate) struct TlsHandshake {
    config: Arc<ClientConfig>,
    host: ServerName<'static>,
}

impl TlsConnect<Socket> for TlsHandshake {
    type Stream = TlsSocket;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TlsSocket>> + Send>>;

    fn connect(self, socket: Socket) -> Self::Future {
        Box::pin(async move { TlsConnector::from(self.config).connect(self.host, socket).await.map(TlsSocket) })
    }
}

pub(crate) struct TlsSocket(tokio_rustls::client::TlsStream<Socket>);

impl TlsStream for TlsSocket {
    /// The certificate is verified, so SCRAM needs no channel binding.
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for TlsSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TlsSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
