//! The services under load: an engine, an edge and a bare echo, with the same settings.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};

use tonic::{Request, Response, Status, async_trait, service::Routes};
use zeroize::Zeroizing;

use super::{BenchError, LoadArguments, Transport, http_echo::HttpEcho};
use crate::commands::pki;
use crate::isolation::embedded_engine;
use edge::{Edge, RequestLimits};
use engine::{
    CallLimits, Engine, EngineConfig, Role,
    serving::{Serving, ServingSettings},
};
use engine_server::{EmbeddedConfig, StoreConfig};
use hsm_client::OpenBoundary;
use net::{
    EngineAddress,
    connect::channel,
    tls::{ClientCertificate, ClientTls, ClientTlsConfig, ServerTls, ServerTlsConfig, TlsError},
};
use proto::{
    SetPinRequest, SetPinResponse,
    echo_service_server::{EchoService, EchoServiceServer},
};

/// The lifetime of a control: a prepared control waits this long at most.
const CONTROL_LIFETIME: std::time::Duration = std::time::Duration::from_secs(3_600);
/// The changes that may wait for the disk: all requests in flight of the largest run.
pub(super) const WAITING_CHANGES_MAX: usize = 16_384;

/// Calls a second or a minute that no load reaches.
const RATE_MAX: u32 = 1_000_000_000;

/// The running services, and the client's credentials for them.
pub(super) struct Services {
    engine: Engine,
    edge: Edge,
    echo: Serving,
    http_echo: HttpEcho,
    client_tls: Option<ClientTls>,
    pub(super) token: Zeroizing<String>,
}

impl Services {
    /// Starts the services on free ports.
    pub(super) async fn start(arguments: &LoadArguments, directory: &Path) -> Result<Self, BenchError> {
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let (server_tls, client_tls) = transport(arguments, directory)?;
        let data = directory.join("data");
        let (engine, boundary) = engine(arguments, &data, server_tls.as_ref())?;
        let settings = ServingSettings {
            listen: anywhere,
            tls: server_tls.as_ref().map(ServerTls::load).transpose()?,
            workers: engine.workers,
            call_timeout: engine.call_timeout,
            calls_per_connection_max: engine.calls_per_connection_max,
            connections: engine.connections,
            connection_age: engine.connection_age,
        };
        let echo = Serving::start(&settings, || Routes::new(EchoServiceServer::new(Echo)))?;
        let http_echo = HttpEcho::start(engine.connections)?;
        let engine = Engine::start(engine, embedded_store(&data).open().await?, boundary).await?;

        let mut edge = edge::EdgeConfig::embedded(anywhere, engine.address())?;
        edge.engine_addresses = vec![address_by_name(engine.address().port(), client_tls.is_some())?];
        edge.engine_tls.clone_from(&client_tls);
        let all = edge.settings.requests.requests_max;
        edge.settings.requests = RequestLimits {
            requests_max: all,
            per_client_max: all,
            per_tenant_max: all,
            per_client_per_second_max: RATE_MAX,
        };
        let token = edge.made_token.clone().unwrap_or_default();
        let edge = Edge::start(edge).await?;
        let client_tls = client_tls.as_ref().map(ClientTls::load).transpose()?;
        Ok(Self { engine, edge, echo, http_echo, client_tls, token })
    }

    /// A fresh connection to the engine.
    pub(super) fn engine_channel(&self) -> Result<tonic::transport::Channel, BenchError> {
        Ok(channel(
            &address_by_name(self.engine.address().port(), self.client_tls.is_some())?,
            self.client_tls.clone(),
        )?)
    }

    /// A fresh connection to the echo.
    pub(super) fn echo_channel(&self) -> Result<tonic::transport::Channel, BenchError> {
        Ok(channel(&address_by_name(self.echo.address().port(), self.client_tls.is_some())?, self.client_tls.clone())?)
    }

    /// The address of the bare HTTP service.
    pub(super) fn http_echo_address(&self) -> SocketAddr {
        self.http_echo.address()
    }

    /// The address on which the edge listens.
    pub(super) fn edge_address(&self) -> SocketAddr {
        self.edge.address()
    }

    /// Stops the services, the edge first.
    pub(super) async fn clear(self) -> Result<(), BenchError> {
        self.edge.stop().await?;
        self.echo.stop().await;
        Ok(self.engine.stop().await?)
    }
}

/// The TLS of servers and clients, where the load has any.
pub(super) fn transport(
    arguments: &LoadArguments,
    directory: &Path,
) -> Result<(Option<ServerTlsConfig>, Option<ClientTlsConfig>), BenchError> {
    Ok(match arguments.transport {
        Transport::Plain => (None, None),
        Transport::Mtls => {
            let (server, client) = certificates(&directory.join("pki"))?;
            (Some(server), Some(client))
        }
    })
}

/// An engine on a free port, with the keys of `data`, and its boundary. The bench measures the services, not their limits.
pub(super) fn engine(
    arguments: &LoadArguments,
    data: &Path,
    tls: Option<&ServerTlsConfig>,
) -> Result<(EngineConfig, Box<dyn OpenBoundary>), BenchError> {
    let (mut engine, boundary) = embedded_engine(data, arguments.isolation)?;
    engine.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    engine.tls = tls.cloned();
    let client = engine::Peer {
        certificate_name: "client.pinseal.test".into(),
        roles: vec![Role::EdgeSet, Role::EdgeView],
        tenants: Vec::new(),
    };
    engine.peers = tls.map(|_| client).into_iter().collect();
    engine.rules.control_lifetime = CONTROL_LIFETIME;
    engine.rules.admission.controls_per_card_per_hour = 1_000_000;
    engine.rules.admission.unregistered_cards_per_tenant = u32::MAX;
    engine.call_limits = CallLimits {
        per_tenant_per_second: RATE_MAX,
        per_card_per_minute: RATE_MAX,
        stream_items_per_tenant_per_second: RATE_MAX,
        wrong_pins_per_caller_per_minute: RATE_MAX,
    };
    Ok((engine, boundary))
}

/// The embedded store of an engine.
pub(super) fn embedded_store(data: &Path) -> StoreConfig {
    let store = EmbeddedConfig::new(data.join("store"));
    StoreConfig::Embedded(EmbeddedConfig { waiting_changes_max: WAITING_CHANGES_MAX, ..store })
}

/// The bare gRPC service that the engine is compared with.
#[derive(Clone, Copy)]
struct Echo;

#[async_trait]
impl EchoService for Echo {
    async fn echo(&self, _: Request<SetPinRequest>) -> Result<Response<SetPinResponse>, Status> {
        Ok(Response::new(SetPinResponse {}))
    }
}

/// The address of a service by name, for its certificate.
pub(super) fn address_by_name(port: u16, has_tls: bool) -> Result<EngineAddress, TlsError> {
    let scheme = if has_tls { "https" } else { "http" };
    Ok(format!("{scheme}://localhost:{port}").parse()?)
}

pub(super) fn certificates(directory: &Path) -> Result<(ServerTlsConfig, ClientTlsConfig), BenchError> {
    pki::make(&pki::DevArguments { out: directory.to_owned(), name: Vec::new() })?;
    let at = |file: &str| directory.join(file);
    let server = ServerTlsConfig {
        certificates: at("engine.pem"),
        private_key: at("engine.key"),
        client_roots: Some(at("ca.pem")),
        client_certificate: ClientCertificate::Required,
    };
    let client = ClientTlsConfig { roots: at("ca.pem"), certificates: at("client.pem"), private_key: at("client.key") };
    Ok((server, client))
}
