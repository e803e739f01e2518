//! The calling side: a gRPC channel to the engine, plain on loopback or by mutual TLS.

use std::{io, sync::Arc, time::Duration};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::{ClientTls, TlsError};

/// How long a connection may take to be made.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a quiet connection is trusted before it is asked for a sign of life.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(20);

/// A channel to the engine at `address`, such as `http://127.0.0.1:50051`; with `tls`, always by mutual TLS. It connects
/// when first used, and again when the connection breaks.
pub fn channel(address: &str, tls: Option<ClientTls>) -> Result<Channel, TlsError> {
    let wrong = || TlsError::Address(address.to_owned());
    // The scheme says nothing to our connector: TLS or not is decided by the configuration alone.
    let plain = address.replacen("https://", "http://", 1);
    let endpoint = Endpoint::from_shared(plain)
        .map_err(|_| wrong())?
        .connect_timeout(CONNECT_TIME_MAX)
        .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
        .tcp_nodelay(true);
    if endpoint.uri().host().is_none() {
        return Err(wrong());
    }
    Ok(endpoint.connect_with_connector_lazy(service_fn(move |uri: Uri| {
        let config = tls.as_ref().map(ClientTls::current);
        async move { connect(&uri, config).await.map(TokioIo::new) }
    })))
}

/// One connection.
async fn connect(uri: &Uri, tls: Option<Arc<ClientConfig>>) -> io::Result<Box<dyn Duplex>> {
    let no_host = || io::Error::new(io::ErrorKind::InvalidInput, "the engine's address has no host");
    let host = uri.host().ok_or_else(no_host)?.trim_matches(['[', ']']);
    let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(50_051))).await?;
    stream.set_nodelay(true)?;
    let Some(config) = tls else { return Ok(Box::new(stream)) };
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    Ok(Box::new(TlsConnector::from(config).connect(name, stream).await?))
}

/// Plain or TLS.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
