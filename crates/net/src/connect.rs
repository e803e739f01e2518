//! The calling side: a gRPC channel to the engine, plain on loopback or by mutual TLS.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

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

use crate::tls::{ClientTls, TlsError};

/// How long a connection may take to be made.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a quiet connection is trusted before it is asked for a sign of life.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(20);

/// A channel to the engine at `address`, such as `http://127.0.0.1:50051`; with `tls`, always by mutual TLS, and without
/// only on this machine. It connects when first used, and again when the connection breaks.
pub fn channel(address: &str, tls: Option<ClientTls>) -> Result<Channel, TlsError> {
    let wrong = || TlsError::Address(address.to_owned());
    let uri: Uri = address.parse().map_err(|_| wrong())?;
    let (Some(scheme @ ("http" | "https")), Some(host)) = (uri.scheme_str(), uri.host()) else { return Err(wrong()) };
    if tls.is_none() && !may_be_plain(scheme, host) {
        return Err(TlsError::Plain { address: address.to_owned() });
    }
    // The scheme says nothing to our connector: TLS or not is decided by the configuration alone.
    let authority = address.split_once("://").map_or(address, |(_, authority)| authority);
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|_| wrong())?
        .connect_timeout(CONNECT_TIME_MAX)
        .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
        .tcp_nodelay(true);
    Ok(endpoint.connect_with_connector_lazy(service_fn(move |uri: Uri| {
        let config = tls.as_ref().map(ClientTls::current);
        async move { connect(&uri, config).await.map(TokioIo::new) }
    })))
}

/// Whether an engine may be there that has no TLS: what is said is not to be read or changed on its way.
fn may_be_plain(scheme: &str, host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    scheme == "http" && (host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_engine_is_asked_in_the_clear_on_this_machine_alone() {
        for address in ["http://127.0.0.1:50051", "http://localhost:50051", "http://[::1]:50051"] {
            assert!(channel(address, None).is_ok(), "{address}");
        }
        for address in
            ["https://localhost:50051", "HTTPS://127.0.0.1", "http://engine.internal:50051", "http://10.0.0.1"]
        {
            assert!(matches!(channel(address, None), Err(TlsError::Plain { .. })), "{address}");
        }
    }

    #[tokio::test]
    async fn what_is_no_address_of_an_engine_is_refused_before_anybody_is_asked() {
        for address in ["localhost:50051", "127.0.0.1:50051", "ftp://127.0.0.1", "no address", "http://", ""] {
            assert!(matches!(channel(address, None), Err(TlsError::Address(_))), "{address}");
        }
    }
}
