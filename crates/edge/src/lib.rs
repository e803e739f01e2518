//! The edge: an HTTP service that translates the Card PIN API into gRPC calls to the engines.
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
mod engine_exchange;
mod engine_health;
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

use std::{io, net::SocketAddr, sync::Arc, thread, time::Duration};

use futures::future::join_all;
use thiserror::Error;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
};

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
use engine_exchange::EngineExchange;
use engine_health::EnginesHealth;
use net::{
    CallStreams, ConnectionTable, EngineAddress, EngineChannel, Engines,
    connect::EngineConnector,
    metrics_server::{MetricsError, MetricsServer},
    serving_threads::{accept, cores_of, spawn},
    tls::{self, ClientTls, ListenError, ServerTls, TlsError},
};
use proto::audit_service_client::AuditServiceClient;
use route::{Documents, EdgeState, SharedState};
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

/// The timeout of a connection to one of several engines: below that of a health check, and a part of that of a call, which
/// another engine may still answer.
const CONNECT_TIME_MAX: Duration = Duration::from_millis(1_800);

/// The engines of an edge: what its threads share.
pub(crate) struct SharedEngines {
    connectors: Vec<EngineConnector>,
    engines: Engines,
    /// For reports: calls of their own, on connections of the runtime that starts the edge.
    channel: EngineChannel,
    health: EnginesHealth,
}

/// The client of the engines on one thread: one connection to each engine, with a stream that carries the calls of the routes
/// ([`EngineCall`](engine_exchange::EngineCall)).
#[derive(Clone)]
pub(crate) struct EngineClient {
    calls: CallStreams<EngineExchange>,
}

impl SharedEngines {
    /// The engines at these addresses. The health checks of each engine, and the reports to it, have connections on the runtime
    /// of the caller.
    ///
    /// # Errors
    /// [`TlsError::Plain`]: an address requires TLS, and `tls` is `None`.
    fn new(addresses: &[EngineAddress], tls: Option<&ClientTls>) -> Result<Self, TlsError> {
        let connector = |address: &EngineAddress| {
            let connector = EngineConnector::new(address, tls.cloned())?;
            Ok(if addresses.len() == 1 { connector } else { connector.within(CONNECT_TIME_MAX) })
        };
        let connectors = addresses.iter().map(connector).collect::<Result<Vec<_>, TlsError>>()?;
        let engines = Engines::new(connectors.len());
        let channel = EngineChannel::to(engines.clone(), connectors.iter().map(EngineConnector::channel));
        let checked = addresses.iter().cloned().zip(connectors.iter().map(EngineConnector::channel));
        let health = EnginesHealth::new(checked.collect(), &engines);
        Ok(Self { connectors, engines, channel, health })
    }

    /// The client of a thread. Its connections are on the runtime of the first call.
    fn client(&self) -> EngineClient {
        let exchanges = self.connectors.iter().map(|connector| EngineExchange::new(connector.channel()));
        EngineClient { calls: CallStreams::new(self.engines.clone(), exchanges) }
    }

    /// The client of reports to the engines.
    fn audit(&self) -> AuditServiceClient<EngineChannel> {
        AuditServiceClient::new(self.channel.clone())
    }
}

/// A running edge.
pub struct Edge {
    address: SocketAddr,
    docs_address: Option<SocketAddr>,
    clients: Clients,
    stop: watch::Sender<bool>,
    threads: Vec<thread::JoinHandle<()>>,
    server_tls: Option<ServerTls>,
    engine_tls: Option<ClientTls>,
    metrics: Option<MetricsServer>,
    report_expiry: JoinHandle<()>,
    _health_checks: JoinSet<()>,
}

impl Edge {
    /// Binds the listeners and starts to serve, on threads of its own. The engines may start later. The health checks, the
    /// reports to the engines and the metrics are on the runtime of the caller.
    ///
    /// # Errors
    /// An address may not be used without TLS, a certificate or key cannot be loaded, an address cannot be bound, or a thread
    /// cannot be started.
    pub async fn start(config: EdgeConfig) -> Result<Self, EdgeError> {
        for address in [config.listen].into_iter().chain(config.docs_listen) {
            tls::may_listen_edge(address, config.tls.as_ref())?;
        }
        let listener = Self::bind(config.listen).await?;
        let docs = match config.docs_listen {
            Some(address) => Some(Self::bind(address).await?),
            None => None,
        };
        Self::start_on(listener, docs, config).await
    }

    /// Binds the address of an edge, for a configuration that names its port.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn bind(address: SocketAddr) -> Result<TcpListener, EdgeError> {
        TcpListener::bind(address).await.map_err(|error| EdgeError::Listen { address, error })
    }

    /// Starts to serve on bound listeners instead of `config.listen` and `config.docs_listen`.
    ///
    /// # Errors
    /// As [`Edge::start`].
    pub async fn start_on(
        listener: TcpListener,
        docs: Option<TcpListener>,
        mut config: EdgeConfig,
    ) -> Result<Self, EdgeError> {
        let address_of = |listener: &TcpListener| {
            let address = listener.local_addr().map_err(|error| EdgeError::Listen { address: config.listen, error })?;
            tls::may_listen_edge(address, config.tls.as_ref())?;
            Ok::<_, EdgeError>(address)
        };
        let (address, docs_address) = (address_of(&listener)?, docs.as_ref().map(address_of).transpose()?);
        let server_tls = config.tls.as_ref().map(ServerTls::load).transpose()?;
        let engine_tls = config.engine_tls.as_ref().map(ClientTls::load).transpose()?;
        let engines = SharedEngines::new(&config.engine_addresses, engine_tls.as_ref())?;

        let (stop, stopped) = watch::channel(false);
        let table = ConnectionTable::new(config.connections);
        let refused = RefusedRequests::default();
        let certificates = server_tls.iter().map(ServerTls::expiry).chain(engine_tls.iter().map(ClientTls::expiry));
        let certificates: Vec<_> = certificates.collect();
        let metrics = match config.metrics_listen {
            Some(listen) => {
                let mut registry = refused.registry();
                tls::register_expiry(&mut registry, certificates.clone());
                engines.health.register(&mut registry);
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
        let has_web_view = config.settings.web_view.is_some();
        let health_checks = engines.health.watch();
        let (workers, connections_max) = (config.workers, config.connections.connections_max);
        let shared = SharedState::new(config.settings, clients.clone(), engines, refused);
        // A browser gives the documents of one origin to each other's scripts.
        let main = if has_web_view || docs.is_some() { Documents::WebView } else { Documents::Docs };
        let listeners = [(listener, main)].into_iter().chain(docs.map(|docs| (docs, Documents::Docs)));
        let mut dealers = Vec::new();
        let mut queues: Vec<_> = (0..workers).map(|_| Vec::new()).collect();
        for (listener, documents) in listeners {
            let mut senders = Vec::with_capacity(workers);
            for queue in &mut queues {
                let (sender, accepted) = mpsc::channel(connections_max);
                senders.push(sender);
                queue.push((accepted, documents));
            }
            let listener = listener.into_std().map_err(|error| EdgeError::Listen { address, error })?;
            dealers.push(accept(listener, table.clone(), senders, stopped.clone()));
        }
        let mut threads = Vec::with_capacity(workers.saturating_add(1));
        for (number, (core, queues)) in cores_of(workers).into_iter().zip(queues).enumerate() {
            let shared = Arc::clone(&shared);
            let settings = serve::ServingSettings { tls: server_tls.clone(), head_errors, timeouts };
            let stopped = stopped.clone();
            let work = async move {
                // Here, so that the connections to the engines are on this thread.
                let state = EdgeState::of_thread(shared);
                let served = queues.into_iter().map(|(accepted, documents)| {
                    let router = route::router(Arc::clone(&state), documents);
                    serve::serve(accepted, router, settings.clone(), stopped.clone())
                });
                join_all(served).await;
            };
            threads.push(spawn(format!("edge-{number}"), core, work).map_err(EdgeError::Thread)?);
        }
        let dealing = async move { drop(join_all(dealers).await) };
        threads.push(spawn("edge-accept".into(), None, dealing).map_err(EdgeError::Thread)?);
        Ok(Self {
            address,
            docs_address,
            clients,
            stop,
            threads,
            server_tls,
            engine_tls,
            metrics,
            report_expiry,
            _health_checks: health_checks,
        })
    }

    /// The bound address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The bound address of the listener for `/docs`; `None` where it has none of its own.
    pub fn docs_address(&self) -> Option<SocketAddr> {
        self.docs_address
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
    /// A serving thread panicked.
    pub async fn stop(self) -> Result<(), EdgeError> {
        self.metrics.iter().for_each(MetricsServer::stop);
        self.report_expiry.abort();
        self.stop.send_replace(true);
        let mut threads = self.threads.into_iter();
        let joined = tokio::task::spawn_blocking(move || threads.try_for_each(thread::JoinHandle::join)).await;
        joined.ok().and_then(Result::ok).ok_or(EdgeError::Stopped)
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
    #[error("can't listen on {address}: {error}; choose a free local address in `listen` or `docs_listen`")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// The error of the operating system.
        error: io::Error,
    },
    /// The metrics can't be served.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A thread or its runtime could not be started.
    #[error("cannot start a thread: {0}; check the limits on processes and memory")]
    Thread(io::Error),
    /// A serving thread panicked.
    #[error("the edge failed while serving: see its log")]
    Stopped,
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;

    /// The status of the answer to a GET.
    async fn status(address: SocketAddr, path: &str) -> u16 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap().parse().unwrap()
    }

    #[tokio::test]
    async fn docs_beside_a_web_view_have_a_listener_of_their_own() {
        const PATHS: [&str; 4] = ["/docs", "/web/page.js", "/openapi.json", "/v3/set"];
        let free = "127.0.0.1:0".parse().unwrap();
        let config = || EdgeConfig::embedded(free, "127.0.0.1:1".parse().unwrap()).unwrap();
        let with_page = || config().with_page("https://pin.bank.test", "bank", "https://bank.test").unwrap();
        let with_docs = |config| EdgeConfig { docs_listen: Some(free), ..config };
        for (config, docs, page) in [
            (config(), 200, 404),
            (with_page(), 404, 200),
            (with_docs(config()), 404, 404),
            (with_docs(with_page()), 404, 200),
        ] {
            let has_docs = config.docs_listen.is_some();
            let edge = Edge::start(config).await.unwrap();
            assert_eq!(edge.docs_address().is_some(), has_docs);
            let of_docs = edge.docs_address().map(|address| (address, [200, 404, 200, 405]));
            for (address, expected) in [(edge.address(), [docs, page, 200, 405])].into_iter().chain(of_docs) {
                for (path, expected) in PATHS.into_iter().zip(expected) {
                    assert_eq!(status(address, path).await, expected, "{path}");
                }
            }
            edge.stop().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_listener_for_docs_needs_tls_beyond_loopback() {
        let config = EdgeConfig::embedded("127.0.0.1:0".parse().unwrap(), "127.0.0.1:1".parse().unwrap()).unwrap();
        let config = EdgeConfig { docs_listen: Some("0.0.0.0:0".parse().unwrap()), ..config };
        assert!(matches!(Edge::start(config).await.err(), Some(EdgeError::MayNotListen(_))));
    }
}
