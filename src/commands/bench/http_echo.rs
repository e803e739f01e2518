//! The bare HTTP service that the edge is compared with: axum on threads like those of the edge, with the body of SetPin.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    thread::JoinHandle,
};

use axum::{
    Json, Router,
    body::Bytes,
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    response::{IntoResponse, Response},
    routing::post,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::BenchError;
use net::{
    ConnectionLimits, ConnectionTable,
    serving_threads::{Accepted, accept, cores_of, spawn, worker_count},
};

/// The path of the route.
pub(super) const PATH: &str = "/echo";

/// The body of a SetPin.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    control_id: String,
    pin_block: String,
}

/// The running echo. Its threads end when it is dropped.
pub(super) struct HttpEcho {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl HttpEcho {
    /// Starts the echo on a free port, with a thread for each core.
    pub(super) fn start(connections: ConnectionLimits) -> Result<Self, BenchError> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let (mut threads, mut workers) = (Vec::new(), Vec::new());
        for (number, core) in cores_of(worker_count(0)?).into_iter().enumerate() {
            let (worker, accepted) = mpsc::channel(connections.connections_max);
            // The table of stages counts it as an edge, by this name.
            threads.push(spawn(format!("edge-echo-{number}"), core, serve(accepted))?);
            workers.push(worker);
        }
        let accepting = accept(listener, ConnectionTable::new(connections), workers, stopped);
        threads.push(spawn("echo-accept".into(), None, accepting)?);
        Ok(Self { address, stop, threads })
    }

    /// The bound address.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for HttpEcho {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Serves connections until no more are accepted.
async fn serve(mut accepted: mpsc::Receiver<Accepted>) {
    let router = Router::new().route(PATH, post(answer));
    while let Some(accepted) = accepted.recv().await {
        let Ok((stream, place)) = accepted.open() else { continue };
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(async move {
            let _place = place;
            let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(headers: HeaderMap, body: Bytes) -> Response {
    if !headers.contains_key(AUTHORIZATION) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let Ok(body) = serde_json::from_slice::<Body>(&body) else { return StatusCode::BAD_REQUEST.into_response() };
    match STANDARD.decode(&body.pin_block) {
        Ok(block) if !body.control_id.is_empty() && block.len() == 8 => Json(json!({})).into_response(),
        _ => StatusCode::BAD_REQUEST.into_response(),
    }
}
