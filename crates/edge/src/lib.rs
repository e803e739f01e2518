//! The edge: an HTTP service that translates the Card PIN API into gRPC calls to an engine.
//!
//! The edge authenticates clients and checks the shape of requests; the engine makes all other decisions. This crate must
//! never depend on a cipher of PINs, a key store or a record store, and must never log a body or a PIN block.
//!
//! ```
//! let document = edge::openapi_json();
//! assert!(document.contains("/pin/v3/set/tzpk"));
//! ```

mod api_error;
mod auth;
mod body;
pub mod command;
mod contract;
mod device_key;
mod edge_config;
mod http_rules;
mod metrics;
mod mistake;
mod operation;
mod page;
mod request_limits;
mod route;
mod security_headers;
mod serve;
mod web_view;

use std::{io, net::SocketAddr, time::Duration};

use thiserror::Error;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use self::metrics::RefusedRequests;
pub use self::{
    api_error::ErrorProfile,
    auth::{Client, Credential, GrantedUse, SECRET_CHARACTERS_MIN, ZoneGrant},
    contract::openapi_json,
    edge_config::{ClientGrants, EdgeConfig},
    request_limits::RequestLimits,
    web_view::WebView,
};
use auth::Clients;
use config::ConfigError;
use domain::limits::REQUEST_BYTES_MAX;
use net::{
    ConnectionTable, EngineChannel, connect,
    metrics_server::{MetricsError, MetricsServer},
    tls::{self, ClientTls, ListenError, ServerTls, TlsError},
};
use proto::{
    audit_service_client::AuditServiceClient, control_service_client::ControlServiceClient,
    pin_service_client::PinServiceClient,
};
use route::EdgeState;
use security_headers::SecurityHeaders;

/// The clients of an edge and the limits of their requests.
pub struct Settings {
    /// The clients that may call the API when the edge starts.
    pub clients: Vec<Client>,
    /// The HTTP statuses that errors may have.
    pub error_profile: ErrorProfile,
    /// The timeout of one request.
    pub request_timeout: Duration,
    /// The longest body, in bytes.
    pub body_bytes_max: usize,
    /// The limits on the number and the rate of requests.
    pub requests: RequestLimits,
    /// The pages on which cardholders set and view PINs; `None` for none.
    pub web_view: Option<WebView>,
}

/// The gRPC clients of the engine.
#[derive(Clone)]
pub(crate) struct EngineClient {
    controls: ControlServiceClient<EngineChannel>,
    pins: PinServiceClient<EngineChannel>,
    audit: AuditServiceClient<EngineChannel>,
    health: HealthClient<EngineChannel>,
}

// The services whose health the edge reads, by their names in `proto/`; the generated clients do not export them.
const CONTROL_SERVICE: &str = "pinseal.v1.ControlService";
const PIN_SERVICE: &str = "pinseal.v1.PinService";

/// Why no control can be opened through an edge.
#[derive(Debug, Error)]
pub(crate) enum NotReady {
    /// The engine did not answer the health check in time.
    #[error("the engine did not answer within {} ms: check that it runs and is reachable", limit.as_millis())]
    Timeout {
        /// The longest time for the check.
        limit: Duration,
    },
    /// The health check failed: no connection, for example.
    #[error("the engine's health can't be read: {cause}")]
    Unreachable {
        /// The status of the call with its sources.
        cause: String,
    },
    /// The engine allows the certificate of this edge no call.
    #[error("the engine denies this edge: {cause}")]
    Denied {
        /// The text of the engine.
        cause: String,
    },
    /// The store of the engine is below its reserve; controls that are open are finished.
    #[error("the engine's store is low on space, and opens no control: free space on its disk")]
    LowOnSpace,
    /// The store or the key boundary of the engine does not serve.
    #[error("the engine's store or key boundary does not serve: see the engine's log")]
    NotServing,
}

impl EngineClient {
    fn new(channel: &EngineChannel) -> Self {
        Self {
            controls: ControlServiceClient::new(channel.clone()).max_encoding_message_size(REQUEST_BYTES_MAX),
            pins: PinServiceClient::new(channel.clone()).max_encoding_message_size(REQUEST_BYTES_MAX),
            audit: AuditServiceClient::new(channel.clone()),
            health: HealthClient::new(channel.clone()),
        }
    }

    /// Checks by the health of the engine (gRPC health checking protocol) that this edge can open controls.
    ///
    /// # Errors
    /// [`NotReady`]: the engine does not answer, denies this edge, or opens no control.
    pub(crate) async fn check_ready(&self) -> Result<(), NotReady> {
        if self.serves(CONTROL_SERVICE).await? {
            return Ok(());
        }
        Err(if self.serves(PIN_SERVICE).await? { NotReady::LowOnSpace } else { NotReady::NotServing })
    }

    async fn serves(&self, service: &str) -> Result<bool, NotReady> {
        match self.health.clone().check(HealthCheckRequest { service: service.to_owned() }).await {
            Ok(reply) => Ok(reply.into_inner().status() == ServingStatus::Serving),
            Err(status) if status.code() == Code::PermissionDenied => {
                Err(NotReady::Denied { cause: status.message().to_owned() })
            }
            Err(status) => Err(NotReady::Unreachable { cause: api_error::cause_of(&status) }),
        }
    }
}

/// A running edge.
pub struct Edge {
    address: SocketAddr,
    clients: Clients,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
    server_tls: Option<ServerTls>,
    engine_tls: Option<ClientTls>,
    metrics: Option<MetricsServer>,
    report_expiry: JoinHandle<()>,
}

impl Edge {
    /// Binds the listener and starts to serve. The engine may start later.
    ///
    /// # Errors
    /// The address may not be used without TLS, a certificate or key cannot be loaded, or an address cannot be bound.
    pub async fn start(config: EdgeConfig) -> Result<Self, EdgeError> {
        tls::may_listen_edge(config.listen, config.tls.as_ref())?;
        let listener = Self::bind(config.listen).await?;
        Self::start_on(listener, config).await
    }

    /// Binds the address of an edge, for a configuration that names its port.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn bind(address: SocketAddr) -> Result<TcpListener, EdgeError> {
        TcpListener::bind(address).await.map_err(|error| EdgeError::Listen { address, error })
    }

    /// Starts to serve on a bound listener instead of `config.listen`.
    ///
    /// # Errors
    /// As [`Edge::start`].
    pub async fn start_on(listener: TcpListener, mut config: EdgeConfig) -> Result<Self, EdgeError> {
        let address = listener.local_addr().map_err(|error| EdgeError::Listen { address: config.listen, error })?;
        tls::may_listen_edge(address, config.tls.as_ref())?;
        let server_tls = config.tls.as_ref().map(ServerTls::load).transpose()?;
        let engine_tls = config.engine_tls.as_ref().map(ClientTls::load).transpose()?;
        let channel = connect::channel(&config.engine_address, engine_tls.clone())?;
        let engine = EngineClient::new(&channel.into());

        let (stop, stopped) = watch::channel(false);
        let table = ConnectionTable::new(config.connections);
        let refused = RefusedRequests::default();
        let certificates = server_tls.iter().map(ServerTls::expiry).chain(engine_tls.iter().map(ClientTls::expiry));
        let certificates: Vec<_> = certificates.collect();
        let metrics = match config.metrics_listen {
            Some(listen) => {
                let mut registry = refused.registry();
                tls::register_expiry(&mut registry, certificates.clone());
                Some(MetricsServer::start(listen, registry).await?)
            }
            None => None,
        };
        let report_expiry = tokio::spawn(tls::report_daily(certificates));
        let head_errors = serve::HeadErrors {
            profile: config.settings.error_profile,
            headers: SecurityHeaders::of_unknown_path(config.settings.web_view.as_ref().map(WebView::is_https)),
        };
        let clients = Clients::new(std::mem::take(&mut config.settings.clients));
        let timeouts = serve::Timeouts::new(config.connection_age, config.settings.request_timeout);
        let router = route::router(EdgeState::new(config.settings, clients.clone(), engine, refused));
        let serving = serve::serve(listener, table, server_tls.clone(), router, head_errors, timeouts, stopped);
        let serving = tokio::spawn(serving);
        Ok(Self { address, clients, stop, serving, server_tls, engine_tls, metrics, report_expiry })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address that metrics are served on; `None` where they are not served.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(MetricsServer::address)
    }

    /// Reloads certificates, keys and roots whose files changed, for new connections. The result goes to the log.
    pub fn reload_certificates(&self) {
        self.server_tls.iter().for_each(ServerTls::reload);
        self.engine_tls.iter().for_each(ClientTls::reload);
    }

    /// Replaces the clients while requests continue. The next request of each connection is authenticated by the new clients.
    ///
    /// # Errors
    /// A client has a certificate, and the running listener asks for none. The edge keeps its clients.
    pub fn replace_clients(&self, clients: Vec<Client>) -> Result<(), ConfigError> {
        let asks_for_certificates = self.server_tls.as_ref().is_some_and(ServerTls::asks_for_certificates);
        if !asks_for_certificates && clients.iter().any(|client| client.certificate_name().is_some()) {
            let problem = "a client has a certificate, and the running edge asks for none, because it started without \
                           client_roots: restart the edge";
            return Err(ConfigError::value("clients.certificate_name", problem));
        }
        self.clients.replace(clients);
        Ok(())
    }

    /// Stops accepting connections and waits for the requests in flight.
    ///
    /// # Errors
    /// The serving task panicked.
    pub async fn stop(self) -> Result<(), EdgeError> {
        self.metrics.iter().for_each(MetricsServer::stop);
        self.report_expiry.abort();
        self.stop.send_replace(true);
        self.serving.await.map_err(|_| EdgeError::Stopped)
    }
}

/// The error of an edge that does not start or stop.
#[derive(Debug, Error)]
pub enum EdgeError {
    /// The listen address is not allowed without TLS.
    #[error(transparent)]
    MayNotListen(#[from] ListenError),
    /// A certificate, a key or the engine's address is not valid.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address cannot be bound.
    #[error("can't listen on {address}: {error}; choose a free local address in `listen`")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The metrics can't be served.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The serving task panicked.
    #[error("the edge failed while serving: see its log")]
    Stopped,
}
