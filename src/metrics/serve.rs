//! The metrics over HTTP/1.1: `GET /metrics`, to few, with a bound on headers and on time.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, task::JoinSet, time::timeout};
use tower::service_fn;

/// How many connections may be open: a collector or two, and somebody who looks.
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
        if connections.len() >= CONNECTIONS_MAX {
            tracing::warn!(limit = CONNECTIONS_MAX, "a connection for metrics was dropped: too many are open");
            continue;
        }
        let registry = Arc::clone(&registry);
        let service = TowerToHyperService::new(service_fn(move |request| {
            let response = answer(&request, &registry);
            async move { Ok::<_, Infallible>(response) }
        }));
        connections.spawn(async move {
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
        });
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
    use super::*;

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
