//! `GET /metrics` for Prometheus over HTTP/1.1, on loopback, with limits on connections, headers and time.

use std::{collections::VecDeque, convert::Infallible, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use config::ConfigError;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use prometheus_client::{encoding::text, registry::Registry};
use serde::Deserialize;
use thiserror::Error;
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinHandle, JoinSet},
    time::timeout,
};
use tower::service_fn;

/// The most open connections: a few collectors. A new connection closes the oldest one, so silent connections do not keep a
/// collector out; a scrape takes milliseconds.
const CONNECTIONS_MAX: usize = 16;
/// The most bytes of headers of one request.
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// The longest time for the headers of a request.
const HEADER_TIME_MAX: Duration = Duration::from_secs(10);
/// The longest lifetime of a connection; a collector then opens another.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(600);
/// The content type of OpenMetrics text.
const CONTENT_TYPE: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// The section `[metrics]` of a configuration file.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsFile {
    /// The loopback address of `GET /metrics`, for example `127.0.0.1:9464`; without it, metrics are disabled.
    listen: Option<SocketAddr>,
}

impl MetricsFile {
    /// The address of the listener; `None` if metrics are disabled.
    ///
    /// # Errors
    /// The address is not a loopback address.
    pub fn check(self) -> Result<Option<SocketAddr>, ConfigError> {
        match self.listen {
            Some(address) if !address.ip().is_loopback() => {
                let problem = format!("{address} is not a loopback address: listen on 127.0.0.1");
                Err(ConfigError::value("metrics.listen", problem))
            }
            listen => Ok(listen),
        }
    }
}

/// A running metrics server.
pub struct MetricsServer {
    address: SocketAddr,
    serving: JoinHandle<()>,
}

impl MetricsServer {
    /// Binds the listener and serves the metrics of the registry, on the current Tokio runtime.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn start(listen: SocketAddr, registry: Registry) -> Result<Self, MetricsError> {
        let listen_error = |error| MetricsError { address: listen, error };
        let listener = TcpListener::bind(listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        tracing::info!(%address, "metrics are served");
        Ok(Self { address, serving: tokio::spawn(serve(listener, Arc::new(registry))) })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops the server at once.
    pub fn stop(&self) {
        self.serving.abort();
    }
}

/// The metrics listener cannot be bound.
#[derive(Debug, Error)]
#[error("cannot listen for metrics on {address}: {error}; choose another metrics.listen, or remove it")]
pub struct MetricsError {
    address: SocketAddr,
    error: io::Error,
}

/// Serves until the future is dropped.
async fn serve(listener: TcpListener, registry: Arc<Registry>) {
    let mut connections = JoinSet::new();
    let mut by_age: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a metrics connection could not be accepted");
                // Most likely the process has no free file descriptor: wait instead of spinning.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        by_age.retain(|connection| !connection.is_finished());
        if by_age.len() >= CONNECTIONS_MAX
            && let Some(oldest) = by_age.pop_front()
        {
            tracing::debug!(limit = CONNECTIONS_MAX, "the oldest metrics connection is closed for a new one");
            oldest.abort();
        }
        let registry = Arc::clone(&registry);
        let service = TowerToHyperService::new(service_fn(move |request| {
            let response = answer(&request, &registry);
            async move { Ok::<_, Infallible>(response) }
        }));
        by_age.push_back(connections.spawn(async move {
            let mut builder = Builder::new(TokioExecutor::new()).http1_only();
            builder
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIME_MAX)
                .max_buf_size(HEADER_BYTES_MAX);
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = timeout(CONNECTION_TIME_MAX, connection).await {
                tracing::debug!(%error, "a metrics connection failed");
            }
        }));
    }
}

fn answer<B>(request: &Request<B>, registry: &Registry) -> Response<String> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match exposition(registry) {
            Ok(text) => {
                let mut response = Response::new(text);
                response.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE);
                response
            }
            Err(fmt::Error) => empty(StatusCode::INTERNAL_SERVER_ERROR),
        },
        (_, "/metrics") => empty(StatusCode::METHOD_NOT_ALLOWED),
        _ => empty(StatusCode::NOT_FOUND),
    }
}

/// The metrics in OpenMetrics text.
///
/// # Errors
/// A collector of the registry failed.
pub fn exposition(registry: &Registry) -> Result<String, fmt::Error> {
    let mut encoded = String::new();
    text::encode(&mut encoded, registry)?;
    Ok(encoded)
}

fn empty(status: StatusCode) -> Response<String> {
    let mut response = Response::new(String::new());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    #[tokio::test]
    async fn silent_connections_do_not_block_a_collector() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Arc::default()));
        let mut silent = Vec::new();
        for _ in 0..4 * CONNECTIONS_MAX {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut collector = TcpStream::connect(address).await.unwrap();
        collector.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        collector.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    #[test]
    fn only_get_metrics_returns_metrics() {
        let send = |method: Method, path: &str| {
            let request = Request::builder().method(method).uri(path).body(()).unwrap();
            answer(&request, &Registry::default())
        };
        let served = send(Method::GET, "/metrics");
        assert_eq!((served.status(), served.body().as_str()), (StatusCode::OK, "# EOF\n"));
        assert_eq!(served.headers()[header::CONTENT_TYPE], CONTENT_TYPE);
        assert_eq!(send(Method::POST, "/metrics").status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(send(Method::GET, "/").status(), StatusCode::NOT_FOUND);
    }
}
