//! Connections: HTTP/1.1 and HTTP/2, plain or by TLS, with a bound on headers and on the time they take.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto::Builder, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
};

use crate::tls::{ServerStream, ServerTls, TlsError};

/// The most bytes of headers a request may have.
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// How long the headers of a request may take.
const HEADER_TIME_MAX: Duration = Duration::from_secs(10);
/// How many connections may be open.
const CONNECTIONS_MAX: usize = 10_000;
/// How long requests under way may take to finish once told to stop.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// Serves until told to stop.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<ServerTls>,
    router: Router,
    mut stopped: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // Out of file descriptors, most likely: spinning would not bring any back.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!(limit = CONNECTIONS_MAX, "a connection was dropped: too many are open");
            continue;
        };
        let (tls, service, watcher) = (tls.clone(), TowerToHyperService::new(router.clone()), graceful.watcher());
        tokio::spawn(async move {
            let _place = place;
            let stream = match handshaken(stream, tls).await {
                Ok(stream) => stream,
                Err(error) => return tracing::info!(%error, "a connection was turned away"),
            };
            let mut builder = Builder::new(TokioExecutor::new());
            builder
                .http1()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIME_MAX)
                .max_buf_size(HEADER_BYTES_MAX);
            builder.http2().timer(TokioTimer::new()).max_header_list_size(16 * 1024).max_concurrent_streams(256);
            let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
            if let Err(error) = watcher.watch(connection).await {
                tracing::debug!(%error, "a connection ended in disorder");
            }
        });
    }
    if tokio::time::timeout(DRAIN_TIME_MAX, graceful.shutdown()).await.is_err() {
        tracing::warn!(limit = ?DRAIN_TIME_MAX, "requests still under way were cut off");
    }
}

async fn handshaken(stream: TcpStream, tls: Option<ServerTls>) -> Result<ServerStream, TlsError> {
    stream.set_nodelay(true).map_err(|error: io::Error| TlsError::Handshake(error))?;
    match tls {
        Some(tls) => tls.accept(stream).await,
        None => Ok(ServerStream::Plain(stream)),
    }
}
