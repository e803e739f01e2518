//! The edge: a thin HTTP service that speaks the Card PIN API and asks the engine by gRPC. It knows the generated client
//! and nothing else of the engine; it holds no key, keeps nothing, and logs neither a body nor a block.

mod auth;
mod body;
pub mod command;
mod contract;
mod edge_config;
mod fault;
mod page;
mod route;
mod serve;

use std::{io, net::SocketAddr, time::Duration};

use thiserror::Error;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

pub use self::{
    auth::{Client, Credential, SECRET_CHARACTERS_MIN},
    contract::openapi_json,
    edge_config::EdgeConfig,
    fault::ErrorProfile,
};
use domain::limits::REQUEST_BYTES_MAX;
use net::{
    ConnectionTable, connect,
    tls::{self, ClientTls, ListenError, ServerTls, TlsError},
};
use proto::{control_service_client::ControlServiceClient, pin_service_client::PinServiceClient};

/// Whom an edge serves, and how.
pub struct Settings {
    /// Who may call.
    pub clients: Vec<Client>,
    /// Which statuses errors may have.
    pub error_profile: ErrorProfile,
    /// How long one request may take.
    pub request_timeout: Duration,
    /// The longest body taken, in bytes.
    pub body_bytes_max: usize,
    /// How many requests may be under way.
    pub requests_max: usize,
}

/// The engine, as the edge calls it.
#[derive(Clone)]
pub(crate) struct EngineClient {
    controls: ControlServiceClient<Channel>,
    pins: PinServiceClient<Channel>,
    health: HealthClient<Channel>,
}

// What an engine must serve for an edge to be of use: the names of `proto/`, which generated clients do not carry.
const CONTROL_SERVICE: &str = "pinseal.v1.ControlService";
const PIN_SERVICE: &str = "pinseal.v1.PinService";

impl EngineClient {
    fn over(channel: &Channel) -> Self {
        Self {
            controls: ControlServiceClient::new(channel.clone()).max_encoding_message_size(REQUEST_BYTES_MAX),
            pins: PinServiceClient::new(channel.clone()).max_encoding_message_size(REQUEST_BYTES_MAX),
            health: HealthClient::new(channel.clone()),
        }
    }

    /// Whether the engine, its store and its key boundary serve now.
    pub(crate) async fn serves(&self) -> bool {
        let serves = async |service: &str| {
            let told = self.health.clone().check(HealthCheckRequest { service: service.to_owned() }).await;
            told.is_ok_and(|told| told.into_inner().status() == ServingStatus::Serving)
        };
        serves(CONTROL_SERVICE).await && serves(PIN_SERVICE).await
    }
}

/// A serving edge.
pub struct Edge {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
    server_tls: Option<ServerTls>,
    engine_tls: Option<ClientTls>,
}

impl Edge {
    /// Listens and begins to serve. The engine need not be there yet.
    pub async fn start(config: EdgeConfig) -> Result<Self, EdgeError> {
        tls::may_listen_edge(config.listen, config.tls.as_ref())?;
        let server_tls = config.tls.as_ref().map(ServerTls::load).transpose()?;
        let engine_tls = config.engine_tls.as_ref().map(ClientTls::load).transpose()?;
        let channel = connect::channel(&config.engine_address, engine_tls.clone())?;
        let engine = EngineClient::over(&channel);

        let listen_error = |error| EdgeError::Listen { address: config.listen, error };
        let listener = TcpListener::bind(config.listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let (stop, stopped) = watch::channel(false);
        let table = ConnectionTable::new(config.connections);
        let router = route::router(config.settings, engine);
        let serving =
            tokio::spawn(serve::serve(listener, table, server_tls.clone(), router, serve::Times::USUAL, stopped));
        Ok(Self { address, stop, serving, server_tls, engine_tls })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Reads certificates, keys and roots again where their files changed; the log says what came of it. New connections
    /// use them.
    pub fn reload_certificates(&self) {
        self.server_tls.iter().for_each(ServerTls::reload);
        self.engine_tls.iter().for_each(ClientTls::reload);
    }

    /// Takes no more connections and lets requests under way finish.
    pub async fn stop(self) -> Result<(), EdgeError> {
        self.stop.send_replace(true);
        self.serving.await.map_err(|_| EdgeError::Stopped)
    }
}

/// Why an edge does not serve.
#[derive(Debug, Error)]
pub enum EdgeError {
    /// It may not listen there.
    #[error(transparent)]
    MayNotListen(#[from] ListenError),
    /// Certificates, keys or the engine's address are not what they should be.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It can't listen there.
    #[error("can't listen on {address}: {error}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        error: io::Error,
    },
    /// It ended in disorder.
    #[error("the edge ended in disorder: see its log")]
    Stopped,
}
