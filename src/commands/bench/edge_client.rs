//! An HTTP/2 client of an edge process, with or without TLS.

use std::{
    cell::RefCell,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;

use super::{
    BenchError, flow,
    service_processes::{Aim, ServiceProcesses, Target},
};
use net::connect::connect;

/// The longest use of a connection, below the edge's `connection_age_seconds_max` (600 s): a request never meets the end of
/// its connection.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(300);

/// A client with one connection, which it opens when a request needs it.
pub(super) struct EdgeClient {
    aim: Aim,
    authority: String,
    authorization: String,
    open: RefCell<Option<OpenConnection>>,
}

#[derive(Clone)]
struct OpenConnection {
    sender: SendRequest<Full<Bytes>>,
    opened: Instant,
}

impl OpenConnection {
    fn is_usable(&self) -> bool {
        !self.sender.is_closed() && self.opened.elapsed() < CONNECTION_TIME_MAX
    }
}

impl EdgeClient {
    /// The client that these services know.
    pub(super) fn new(services: &ServiceProcesses) -> Result<Self, BenchError> {
        Ok(Self {
            aim: services.aim(Target::Edge)?,
            authority: format!("localhost:{}", services.service(Target::Edge).port),
            authorization: format!("Bearer {}", services.token),
            open: RefCell::new(None),
        })
    }

    /// Sends a body to a path, and returns the body of the answer.
    ///
    /// # Errors
    /// The edge can't be reached, or its answer is an error.
    pub(super) async fn post(&self, path: &str, body: Value) -> Result<Value, BenchError> {
        let request = flow::request_of(&self.authority, path, &self.authorization, &body)?;
        let sent = self.sender().await?.send_request(request).await;
        flow::body_of(sent.map_err(|error| BenchError::Load(error.to_string()))?).await
    }

    async fn sender(&self) -> Result<SendRequest<Full<Bytes>>, BenchError> {
        let open = self.open.borrow().clone().filter(OpenConnection::is_usable);
        if let Some(open) = open {
            return Ok(open.sender);
        }
        let stream = connect(&self.aim.address, self.aim.tls.as_ref()).await?;
        let shaken = handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = shaken.map_err(|error| BenchError::Load(error.to_string()))?;
        tokio::spawn(connection);
        self.open.replace(Some(OpenConnection { sender: sender.clone(), opened: Instant::now() }));
        Ok(sender)
    }
}
