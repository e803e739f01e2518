//! The metrics over HTTP/1.1: `GET /metrics`, to few, with a bound on headers and on time.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use prometheus_client::registry::Registry;
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tower::service_fn;

/// How many connections may be open: a collector or two, and a person. The oldest gives way to a new one: a scrape takes
/// milliseconds, and a silent connection keeps no collector out.
const CONNECTIONS_MAX: usize = 16;
/// The most bytes of headers a request may have.
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// How long the headers of a request may take.
const HEADER_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a connection may be open: a collector makes another.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(600);
/// What OpenMetrics text is.
const CONTENT_TYPE: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// Serves until it is dropped.
pub(super) async fn serve(listener: TcpListener, registry: Arc<Registry>) {
    let mut connections = JoinSet::new();
    let mut by_age: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection for metrics could not be accepted");
                // Out of file descriptors, most likely: spinning would not bring any back.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        by_age.retain(|connection| !connection.is_finished());
        if by_age.len() >= CONNECTIONS_MAX
            && let Some(oldest) = by_age.pop_front()
        {
            tracing::debug!(limit = CONNECTIONS_MAX, "the oldest connection for metrics is closed for a new one");
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
                tracing::debug!(%error, "a connection for metrics ended in disorder");
            }
        }));
    }
}

fn answer<B>(request: &Request<B>, registry: &Registry) -> Response<String> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => match super::exposition(registry) {
            Some(text) => {
                let mut response = Response::new(text);
                response.headers_mut().insert(header::CONTENT_TYPE, CONTENT_TYPE);
                response
            }
            None => refusal(StatusCode::INTERNAL_SERVER_ERROR),
        },
        (_, "/metrics") => refusal(StatusCode::METHOD_NOT_ALLOWED),
        _ => refusal(StatusCode::NOT_FOUND),
    }
}

fn refusal(status: StatusCode) -> Response<String> {
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
    async fn silent_connections_keep_no_collector_out() {
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
    fn only_a_get_of_metrics_is_answered() {
        let asked = |method: Method, path: &str| {
            let request = Request::builder().method(method).uri(path).body(()).unwrap();
            answer(&request, &Registry::default())
        };
        let told = asked(Method::GET, "/metrics");
        assert_eq!((told.status(), told.body().as_str()), (StatusCode::OK, "# EOF\n"));
        assert_eq!(told.headers()[header::CONTENT_TYPE], CONTENT_TYPE);
        assert_eq!(asked(Method::POST, "/metrics").status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(asked(Method::GET, "/").status(), StatusCode::NOT_FOUND);
    }
}
