//! The gRPC health service, which also answers a caller whether the service that it asks about serves the caller.

use tonic::{Request, Response, Status, async_trait};
use tonic_health::{
    pb::{
        HealthCheckRequest, HealthCheckResponse,
        health_server::{Health, HealthServer},
    },
    server::{HealthReporter, HealthService},
};

use super::{
    method_table::METHOD_TABLE,
    peer::{Forbidden, Peers},
    wire,
};

/// The health of an engine's services for each peer.
pub(super) struct PeerHealth {
    health: HealthService,
    peers: Peers,
}

impl PeerHealth {
    /// A server of the health that `reporter` reports.
    pub(super) fn server(reporter: &HealthReporter, peers: Peers) -> HealthServer<Self> {
        HealthServer::new(Self { health: HealthService::from_health_reporter(reporter.clone()), peers })
    }

    /// Checks that the caller has a right for a method of the service that the request names. The engine as a whole (the empty
    /// name) has no right, and serves every certificate of `client_roots`.
    fn admit(&self, request: &Request<HealthCheckRequest>) -> Result<(), Status> {
        let mut denied: Option<Forbidden> = None;
        for access in METHOD_TABLE.iter().filter(|access| access.service() == request.get_ref().service) {
            match self.peers.admit(request.extensions(), access.rights) {
                Ok(_) => return Ok(()),
                Err(forbidden) => denied = denied.or(Some(forbidden)),
            }
        }
        denied.map_or(Ok(()), |forbidden| Err(wire::forbidden(&forbidden)))
    }
}

#[async_trait]
impl Health for PeerHealth {
    type WatchStream = <HealthService as Health>::WatchStream;

    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        self.admit(&request)?;
        self.health.check(request).await
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.admit(&request)?;
        self.health.watch(request).await
    }
}
