//! The calling side: a gRPC channel to the engine, with mutual TLS or, on loopback, without.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::engine_address::{AddressError, EngineAddress};
use crate::served_stream::ServedStream;
use crate::tls::{ClientTls, TlsError};

/// The timeout of a TCP connection, its TLS handshake and the first byte of HTTP/2.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
/// The time after a timeout in which no connection is tried: the calls that wait for it fail together, and another engine gets
/// them. Without it, each of them would wait for a timeout after the other.
const PAUSE_AFTER_TIMEOUT: Duration = Duration::from_millis(250);
/// The interval of HTTP/2 PING frames, also without a call in flight.
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(5);
/// The timeout of the answer to a PING frame.
const KEEP_ALIVE_TIME_MAX: Duration = Duration::from_secs(10);

/// A channel to the engine at `address`, whose tasks run on the runtime of the caller.
///
/// # Errors
/// [`TlsError::Plain`], as [`EngineConnector::new`].
pub fn channel(address: &EngineAddress, tls: Option<ClientTls>) -> Result<Channel, TlsError> {
    Ok(EngineConnector::new(address, tls)?.channel())
}

/// Connects to one engine: with TLS, always by mutual TLS; without, only to `http` on this machine.
#[derive(Clone)]
pub struct EngineConnector {
    address: EngineAddress,
    endpoint: Endpoint,
    tls: Option<ClientTls>,
    limit: Duration,
}

impl EngineConnector {
    /// Checks that the engine at `address` may be called with this TLS.
    ///
    /// # Errors
    /// [`TlsError::Plain`] without `tls` and with an address that requires TLS.
    pub fn new(address: &EngineAddress, tls: Option<ClientTls>) -> Result<Self, TlsError> {
        if tls.is_none() && !address.may_be_plain() {
            return Err(TlsError::Plain { address: address.clone() });
        }
        // `tls` alone decides whether our connector uses TLS, so the URI of the endpoint is always plain.
        let address = address.with_http();
        let endpoint = Endpoint::from_shared(address.to_string())
            .map_err(|_| AddressError(address.to_string()))?
            .http2_keep_alive_interval(KEEP_ALIVE_EVERY)
            .keep_alive_timeout(KEEP_ALIVE_TIME_MAX)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        Ok(Self { address, endpoint, tls, limit: CONNECT_TIME_MAX })
    }

    /// The same, with a timeout for each connection until it serves HTTP/2, instead of 5 s.
    #[must_use]
    pub fn within(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// A new channel, whose tasks run on the runtime of the caller. The channel connects at the first call, and again after a
    /// failed connection. No call is sent before the engine serves HTTP/2 on the connection: until then, the error of the call
    /// has a [`tonic::ConnectError`] among its sources.
    pub fn channel(&self) -> Channel {
        let Self { address, endpoint, tls, limit } = self.clone();
        // `Endpoint::connect_timeout` would end with an error without `ConnectError`.
        let timed_out = Arc::new(Mutex::new(None::<Instant>));
        endpoint.connect_with_connector_lazy(service_fn(move |_| {
            let (address, tls, timed_out) = (address.clone(), tls.clone(), Arc::clone(&timed_out));
            async move {
                if lock(&timed_out).is_some_and(|at| at.elapsed() < PAUSE_AFTER_TIMEOUT) {
                    return Err(not_served_in_time(limit));
                }
                let connecting = async { ServedStream::start(connect(&address, tls.as_ref()).await?).await };
                if let Ok(connected) = timeout(limit, connecting).await {
                    return connected.map(TokioIo::new);
                }
                *lock(&timed_out) = Some(Instant::now());
                Err(not_served_in_time(limit))
            }
        }))
    }
}

/// A poisoned lock still holds a valid time.
fn lock(timed_out: &Mutex<Option<Instant>>) -> MutexGuard<'_, Option<Instant>> {
    timed_out.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_served_in_time(limit: Duration) -> io::Error {
    let text =
        format!("the peer did not serve HTTP/2 within {} ms: check that it runs and is reachable", limit.as_millis());
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// A connection to `address`: by mutual TLS and for HTTP/2 with `tls`, else by TCP alone.
///
/// # Errors
/// The TCP connection or the handshake fails.
pub async fn connect(address: &EngineAddress, tls: Option<&ClientTls>) -> io::Result<Box<dyn Duplex>> {
    let stream = TcpStream::connect((&*address.host.to_str(), address.port)).await?;
    stream.set_nodelay(true)?;
    let Some(tls) = tls else { return Ok(Box::new(stream)) };
    Ok(Box::new(TlsConnector::from(tls.current()).connect(address.host.clone(), stream).await?))
}

/// A TCP or a TLS stream.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_engine_without_tls_is_called_on_this_machine_only() {
        for address in ["http://127.0.0.1:50051", "http://localhost:50051", "http://[::1]:50051", "http://[::1]"] {
            assert!(channel(&address.parse().unwrap(), None).is_ok(), "{address}");
        }
        for address in
            ["https://localhost:50051", "HTTPS://127.0.0.1", "http://engine.internal:50051", "http://10.0.0.1"]
        {
            assert!(matches!(channel(&address.parse().unwrap(), None), Err(TlsError::Plain { .. })), "{address}");
        }
    }
}
