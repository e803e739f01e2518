//! The engine: opens the key boundary and serves the use cases over gRPC, on a store that the program opens.
//!
//! This crate must never depend on a cipher or name a store, hold a clear PIN or key, or accept a PAN together with a PIN block.
//!
//! ```
//! let config = engine::EngineConfig::load(None)?;
//! assert_eq!(config.listen, std::net::SocketAddr::from(([127, 0, 0, 1], 50_051)));
//! # Ok::<(), config::ConfigError>(())
//! ```

mod archive;
mod audit_stream;
mod bulk_service;
mod call_limits;
mod call_rules;
mod checkpoints;
pub mod command;
mod edge_service;
mod engine_config;
mod event_service;
mod gate;
mod health;
mod key_service;
mod keys_in_use;
mod method_table;
mod metrics;
mod peer;
pub mod pin;
mod pin_service;
mod refused_calls;
pub mod rotation;
mod service;
pub mod serving;
mod store_keys;
mod stream_places;
pub mod verification_keys;
mod wire;
pub mod zones;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use prometheus_client::metrics::counter::Counter;
use thiserror::Error;
use tokio::{
    sync::{Mutex, watch},
    task::JoinHandle,
};
use tonic::{server::NamedService, service::Routes};
use tonic_health::{ServingStatus, server::HealthReporter};

use self::{
    archive::Archive,
    call_limits::CallAdmission,
    call_rules::{CallRules, Streams},
    checkpoints::Checkpoints,
    edge_service::EdgeServices,
    gate::Gate,
    health::PeerHealth,
    key_service::KeyServices,
    peer::Peers,
    refused_calls::RefusedCalls,
    service::Services,
    serving::{Serving, ServingError, ServingSettings},
    stream_places::Streaming,
};
pub use self::{
    archive::ArchiveConfig,
    call_limits::CallLimits,
    checkpoints::{CheckpointConfig, CheckpointError},
    engine_config::{BoundaryPlace, EngineConfig, Peer},
    peer::Role,
};
use crate::pin::Pins;
use crate::rotation::Progress;
use audit::{card_reference::CardReferenceKey, chain::Checkpoint, entry::Body};
use domain::limits::{EXCHANGE_BYTES_MAX, REQUEST_BYTES_MAX};
use hsm_client::{AbsentKeys, Boundary, BoundaryError, KeyMismatch, OpenBoundary};
use hsm_protocol::UnavailableReason;
use net::metrics_server::{MetricsError, MetricsServer};
use net::tls::{self, ListenError, ServerTls, TlsError};
use proto::{
    self, audit_service_server::AuditServiceServer, bulk_service_server::BulkServiceServer,
    card_service_server::CardServiceServer, control_service_server::ControlServiceServer,
    edge_service_server::EdgeServiceServer, event_service_server::EventServiceServer,
    key_service_server::KeyServiceServer, pin_service_server::PinServiceServer,
};
use store::{StorageKeyError, Store, StoreError, StoreFailure, StoreState};

/// How often the boundary is checked.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// A serving engine. [`Engine::stop`] lets calls in flight finish; a drop does not.
pub struct Engine {
    boundary: Arc<dyn Boundary>,
    peers: Peers,
    tls: Option<ServerTls>,
    pins: Arc<Pins>,
    store: Arc<dyn Store>,
    health: HealthReporter,
    watch: JoinHandle<()>,
    reported: watch::Receiver<Arc<hsm_protocol::Status>>,
    follow: JoinHandle<()>,
    rotation: JoinHandle<()>,
    checkpoints: Arc<Mutex<Checkpoints>>,
    sign_checkpoints: JoinHandle<()>,
    archive: Option<JoinHandle<()>>,
    /// Its drop ends the calls that follow the audit chain.
    followed: watch::Sender<()>,
    metrics: Option<MetricsServer>,
    report_expiry: JoinHandle<()>,
    serving: Serving,
}

impl Engine {
    /// Opens the boundary and begins to serve. The engine closes the store when it stops.
    ///
    /// # Errors
    /// The configuration cannot be served, the keys of the boundary are not those of the store, or the boundary, the store
    /// or the operating system fails.
    pub async fn start(
        config: EngineConfig,
        store: Arc<dyn Store>,
        opener: Box<dyn OpenBoundary>,
    ) -> Result<Self, StartError> {
        tls::may_listen_engine(config.listen, config.tls.as_ref())?;
        check_peers(config.tls.is_some(), &config.peers)?;
        let tls = config.tls.as_ref().map(ServerTls::load).transpose()?;
        let checkpoints = Checkpoints::open(&config.checkpoints, Arc::clone(&store)).await?;
        let (newest_checkpoint, signing_key) = (checkpoints.newest(), checkpoints.key());
        let covered_at = checkpoints.covered_at();
        let checkpoints = Arc::new(Mutex::new(checkpoints));
        // Each start is an audit entry and a key list: no engine has used a store without both.
        let is_new = store.checkpoint().await? == Checkpoint::EMPTY && store.keys_in_use().await?.is_none();
        let absent_keys = if is_new { AbsentKeys::Create } else { AbsentKeys::Refuse };
        // One connection for each thread that serves, and one for the engine itself.
        let boundary = opener.open(config.workers.saturating_add(1), absent_keys).await?;
        let status = boundary.status();
        if let Err(error) = store_keys::check(&*store, &status).await {
            boundary.close().await;
            return Err(error);
        }
        if is_new {
            tracing::info!(store = store.place(), "the store is new: nothing that an engine kept before is in it");
        }
        let references = store.card_reference_key().await?;
        if references.is_none() && !is_new {
            tracing::warn!(
                store = store.place(),
                "the store has no key of card references, and a new one is made: the references of earlier audit entries \
                 can't be searched any more, unless a backup of the store has their key"
            );
        }
        let mut references = references.unwrap_or_else(CardReferenceKey::random);
        let refused = RefusedCalls::default();
        let limits = Arc::new(CallAdmission::new(&config.call_limits, refused.clone()));
        let (report_loss, boundary_loss) = watch::channel(None);
        let rules = Arc::new(config.rules);
        let pins_of = |boundary, references: &CardReferenceKey| {
            let (store, limits, references) = (Arc::clone(&store), Arc::clone(&limits), references.clone());
            Arc::new(Pins::new(boundary, boundary_loss.clone(), store, Arc::clone(&rules), limits, references))
        };
        let mut pins = pins_of(boundary.for_thread(0), &references);
        loop {
            match pins.note_start(store.engine_name(), &status).await {
                Err(StartError::Store(StoreError::StorageKeys(StorageKeyError::OtherCardReferenceKey))) => {
                    // Another engine was the first on the same new database: its keys are those of the store.
                    store_keys::check(&*store, &status).await?;
                    references = store.card_reference_key().await?.unwrap_or(references);
                    pins = pins_of(boundary.for_thread(0), &references);
                }
                Err(StartError::Store(StoreError::StorageKeys(StorageKeyError::NotCompared))) => {}
                noted => break noted?,
            }
        }
        let pins_of_thread = |number| pins_of(boundary.for_thread(number), &references);

        let peers = Peers::new(config.peers);
        let gate = Gate::new(peers.clone(), Arc::clone(&pins), Arc::clone(&limits));
        let health = HealthReporter::new();
        let health_service = PeerHealth::server(&health, peers.clone());
        report(&health, &BY_BOUNDARY, ServingStatus::Serving).await;
        report(&health, &BY_ENGINE, ServingStatus::Serving).await;
        let watch = tokio::spawn(watch(Arc::clone(&boundary), report_loss, store.state(), health.clone()));
        let reflection = reflection().build_v1()?;
        // Python's grpcio and most other clients still ask by the older name.
        let reflection_before = self::reflection().build_v1alpha()?;

        let settings = ServingSettings {
            listen: config.listen,
            tls: tls.clone(),
            workers: config.workers,
            call_timeout: config.call_timeout,
            calls_per_connection_max: config.calls_per_connection_max,
            connections: config.connections,
            connection_age: config.connection_age,
        };
        let limit = config.reencrypted_per_second_max;
        let usable = pins.usable_keys(&status);
        let rotates = usable.rotates();
        let (progress, rotation) =
            watch::channel(if rotates { Progress::running(limit) } else { Progress::idle(limit) });
        let mgf1_sha1 = Counter::default();
        let certificates: Vec<_> = tls.iter().map(ServerTls::expiry).collect();
        let metrics = match config.metrics_listen {
            Some(listen) => {
                let sources = metrics::Sources {
                    boundary: boundary.watched(),
                    boundary_loss: boundary_loss.clone(),
                    rotation: rotation.clone(),
                    store: Arc::clone(&store),
                    checkpoint: covered_at,
                    certificates: certificates.clone(),
                    refused,
                    mgf1_sha1: mgf1_sha1.clone(),
                };
                Some(metrics::serve(listen, sources).await?)
            }
            None => None,
        };
        let report_expiry = tokio::spawn(tls::report_daily(certificates));
        let ((use_keys, in_use), (report_keys, reported)) = (watch::channel(Arc::new(usable)), watch::channel(status));
        let follow = keys_in_use::follow(
            Arc::clone(&pins),
            boundary.watched(),
            store.max_key_versions(),
            keys_in_use::Followed { reported: report_keys, in_use: use_keys },
        );
        let follow = tokio::spawn(follow);
        let keys = KeyServices::new(in_use.clone(), Arc::clone(&pins), rotation, store.engine_name().clone());
        let (followed, follows) = watch::channel(());
        let streaming = Streaming::new();
        let (mut threads, call_timeout) = (0, config.call_timeout);
        let serving = Serving::start(&settings, || {
            threads += 1;
            let pins = pins_of_thread(threads);
            let gate = gate.through(Arc::clone(&pins));
            let newest_checkpoint = newest_checkpoint.clone();
            let (streaming, follows, mgf1_sha1) = (streaming.clone(), follows.clone(), mgf1_sha1.clone());
            let store = Arc::clone(&store);
            let services = Services::new(pins, store, gate.clone(), streaming, follows, newest_checkpoint, mgf1_sha1);
            let routes = Routes::new(CallRules::new(health_service.clone(), call_timeout, Streams::Responses));
            let edges = EdgeServices::new(services.clone(), call_timeout, config.calls_per_connection_max);
            with_services(routes, &gate, &services, &edges, &keys, call_timeout)
                .add_service(CallRules::new(reflection.clone(), call_timeout, Streams::Both))
                .add_service(CallRules::new(reflection_before.clone(), call_timeout, Streams::Both))
        })?;
        let rotation = tokio::spawn(rotation::run(Arc::clone(&pins), in_use.clone(), progress));
        let sign_checkpoints = tokio::spawn(Checkpoints::run(Arc::clone(&checkpoints), config.checkpoints.every));
        let archive = config.archive.map(|config| {
            let (store, pins, checkpoint) = (Arc::clone(&store), Arc::clone(&pins), newest_checkpoint.clone());
            tokio::spawn(Archive { config, store, pins, key: signing_key, checkpoint }.run())
        });
        Ok(Self {
            boundary,
            peers,
            tls,
            pins,
            store,
            health,
            watch,
            reported,
            follow,
            rotation,
            checkpoints,
            sign_checkpoints,
            archive,
            followed,
            metrics,
            report_expiry,
            serving,
        })
    }

    /// The address that the engine listens on.
    pub fn address(&self) -> SocketAddr {
        self.serving.address()
    }

    /// The address that metrics are served on; `None` where they are not served.
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(MetricsServer::address)
    }

    /// The current status of the key boundary.
    pub fn boundary(&self) -> Arc<hsm_protocol::Status> {
        self.boundary.status()
    }

    /// Reloads the keys of the boundary while calls continue. New storage keys are in use once every engine on the store has
    /// them.
    ///
    /// # Errors
    /// The boundary does not open the keys, and continues with those it has; or the store accepts no more changes.
    pub async fn reload_keys(&self) -> Result<(), ReloadError> {
        self.boundary.reload_keys().await?;
        let mut reported = self.reported.clone();
        let known = reported.wait_for(|reported| reported.has_same_keys(&self.boundary.status())).await.map(drop);
        known.map_err(|_| ReloadError::NotUsed)
    }

    /// Reloads certificates, key and roots whose files changed, for new connections. The result goes to the log.
    pub fn reload_certificates(&self) {
        self.tls.iter().for_each(ServerTls::reload);
    }

    /// Replaces the peers while calls continue. The next call of each connection is admitted by the new peers.
    ///
    /// # Errors
    /// [`StartError::NoPeers`] or [`StartError::PeersWithoutTls`]: peers and TLS need each other. The peers do not change.
    pub fn replace_peers(&self, peers: Vec<Peer>) -> Result<(), StartError> {
        check_peers(self.tls.is_some(), &peers)?;
        self.peers.replace(peers);
        Ok(())
    }

    /// Returns once the store has failed: then every call is refused, and [`Engine::stop`] returns the failure.
    pub async fn store_failure(&self) -> StoreFailure {
        failure(&*self.store).await
    }

    /// Refuses connections, lets calls in flight finish, closes the store.
    ///
    /// # Errors
    /// The store failed, before or during the stop.
    pub async fn stop(mut self) -> Result<(), StoreError> {
        self.watch.abort();
        self.follow.abort();
        self.rotation.abort();
        self.sign_checkpoints.abort();
        self.archive.iter().for_each(JoinHandle::abort);
        self.report_expiry.abort();
        drop(self.followed);
        self.metrics.iter().for_each(MetricsServer::stop);
        report_stop(&mut self.health).await;
        self.serving.stop().await;
        // A store that has failed may never answer.
        let noted = tokio::select! {
            noted = self.pins.note_engine(Body::EngineStopped) => noted,
            failure = failure(&*self.store) => Err(StoreError::Failed(failure)),
        };
        if noted.is_ok() {
            self.checkpoints.lock().await.sign_and_log().await;
        }
        self.store.close().await;
        self.boundary.close().await;
        match &*self.store.state().borrow() {
            StoreState::Failed(failure) => Err(StoreError::Failed(failure.clone())),
            _ => noted,
        }
    }
}

/// Returns once the store has failed.
async fn failure(store: &dyn Store) -> StoreFailure {
    let mut state = store.state();
    loop {
        if let StoreState::Failed(failure) = &*state.borrow_and_update() {
            return failure.clone();
        }
        if state.changed().await.is_err() {
            // The store holds the sender.
            std::future::pending::<()>().await;
        }
    }
}

/// Why the engine did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The key boundary did not open.
    #[error(transparent)]
    Boundary(#[from] BoundaryError),
    /// The boundary has other keys than the store was last used with.
    #[error(
        "the store {store} does not fit these keys: {mismatch}; start the engine with the vault or token of this store"
    )]
    OtherKeys {
        /// [`Store::place`].
        store: String,
        /// The first key that differs.
        mismatch: KeyMismatch,
    },
    /// The store holds PINs or cards, and its list of keys can't be read.
    #[error(
        "the store {store} holds PINs or cards, and no list of their keys that can be read: restore it from a backup"
    )]
    NoKeyList {
        /// [`Store::place`].
        store: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The engine may not listen on the configured address.
    #[error(transparent)]
    MayNotListen(#[from] ListenError),
    /// Mutual TLS is configured, and no certificate may call.
    #[error(
        "the engine has [tls] and no [[peers]]: no certificate would have a right. Add [[peers]] with certificate_name and \
         roles for each certificate that calls, such as the edge's: roles = [\"edge-set\", \"edge-view\"]"
    )]
    NoPeers,
    /// Peers are configured, and the engine does not use TLS.
    #[error(
        "the engine has [[peers]] and no [tls]: each process of this machine would have every right. Add [tls], or remove \
         [[peers]]"
    )]
    PeersWithoutTls,
    /// A certificate or private key can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The checkpoints of the audit chain can't be opened.
    #[error(transparent)]
    Checkpoints(#[from] CheckpointError),
    /// The metrics can't be served.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The engine can't listen or start its threads.
    #[error(transparent)]
    Serving(#[from] ServingError),
    /// The descriptor set in the binary is malformed.
    #[error("can't serve reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Why the keys were not reloaded.
#[derive(Debug, Error)]
pub enum ReloadError {
    /// The boundary continues with the keys it has.
    #[error(transparent)]
    Boundary(#[from] BoundaryError),
    /// The boundary has reloaded the keys, and the store accepts no more changes.
    #[error("the keys are reloaded, but the store accepts no more changes: restart the engine")]
    NotUsed,
}

/// The services that need the boundary. The empty name is the engine as a whole (gRPC health checking protocol).
const BY_BOUNDARY: [&str; 6] = [
    "",
    EdgeServiceServer::<EdgeServices>::NAME,
    ControlServiceServer::<Services>::NAME,
    PinServiceServer::<Services>::NAME,
    BulkServiceServer::<Services>::NAME,
    CardServiceServer::<Services>::NAME,
];
const BY_ENGINE: [&str; 3] =
    [AuditServiceServer::<Services>::NAME, EventServiceServer::<Services>::NAME, KeyServiceServer::<KeyServices>::NAME];

/// The services of which no method works on a store that is low on space.
const BY_SPACE: [&str; 2] = [ControlServiceServer::<Services>::NAME, BulkServiceServer::<Services>::NAME];

async fn report(health: &HealthReporter, services: &[&str], status: ServingStatus) {
    for service in services {
        health.set_service_status(service, status).await;
    }
}

/// Reports that no service is served, and ends the health watches: a stop would wait for them.
async fn report_stop(health: &mut HealthReporter) {
    for service in BY_BOUNDARY.iter().chain(&BY_ENGINE) {
        health.set_service_status(service, ServingStatus::NotServing).await;
        health.clear_service_status(service).await;
    }
}

/// Reports the health of the store and the boundary: a failed store ends all services for good, a lost boundary the services
/// that need it until it is back, a store that is low on space [`BY_SPACE`] until it has space.
async fn watch(
    boundary: Arc<dyn Boundary>,
    loss: watch::Sender<Option<UnavailableReason>>,
    mut store: watch::Receiver<StoreState>,
    health: HealthReporter,
) {
    let space = store.clone();
    let failed = store.wait_for(|state| matches!(state, StoreState::Failed(_)));
    tokio::select! {
        // The watch of the boundary ends here, so it reports nothing after the code below.
        _ = failed => {}
        () = watch_boundary_and_space(&*boundary, &loss, &space, &health) => {}
    }
    for services in [&BY_BOUNDARY[..], &BY_ENGINE] {
        report(&health, services, ServingStatus::NotServing).await;
    }
}

async fn watch_boundary_and_space(
    boundary: &dyn Boundary,
    loss: &watch::Sender<Option<UnavailableReason>>,
    store: &watch::Receiver<StoreState>,
    health: &HealthReporter,
) {
    let serves = |service: &str, there: bool, store: &StoreState| match store {
        StoreState::LowOnSpace => there && !BY_SPACE.contains(&service),
        StoreState::Unreachable => false,
        _ => there,
    };
    let (mut was_there, mut was) = (true, StoreState::Open);
    loop {
        tokio::time::sleep(WATCH_EVERY).await;
        // A full queue is a busy token, not a lost one.
        let reason = match boundary.check().await {
            Err(hsm_protocol::Error::Unavailable { reason }) => Some(reason),
            _ => None,
        };
        let there = reason.is_none();
        match (was_there, &reason) {
            (true, Some(reason)) => tracing::error!(%reason, "the key boundary is lost: not serving until it is back"),
            (false, None) => tracing::info!("the key boundary is back"),
            _ => {}
        }
        loss.send_if_modified(|known| std::mem::replace(known, reason.clone()) != reason);
        let is = store.borrow().clone();
        for service in BY_BOUNDARY {
            match (serves(service, was_there, &was), serves(service, there, &is)) {
                (false, true) => report(health, &[service], ServingStatus::Serving).await,
                (true, false) => report(health, &[service], ServingStatus::NotServing).await,
                _ => {}
            }
        }
        (was_there, was) = (there, is);
    }
}

fn check_peers(uses_tls: bool, peers: &[Peer]) -> Result<(), StartError> {
    match (uses_tls, peers) {
        (true, []) => Err(StartError::NoPeers),
        (false, [_, ..]) => Err(StartError::PeersWithoutTls),
        _ => Ok(()),
    }
}

fn with_services(
    routes: Routes,
    gate: &Gate,
    services: &Services,
    edges: &EdgeServices,
    keys: &KeyServices,
    call_timeout: Duration,
) -> Routes {
    macro_rules! served {
        ($server:ident, $service:expr, $streams:ident) => {
            served!($server, $service, $streams, REQUEST_BYTES_MAX)
        };
        ($server:ident, $service:expr, $streams:ident, $bytes_max:expr) => {{
            let server = $server::new($service.clone()).max_decoding_message_size($bytes_max);
            CallRules::new(gate.guard(server), call_timeout, Streams::$streams)
        }};
    }
    routes
        .add_service(served!(ControlServiceServer, services, None))
        .add_service(served!(PinServiceServer, services, None))
        .add_service(served!(BulkServiceServer, services, Both))
        .add_service(served!(CardServiceServer, services, None))
        .add_service(served!(AuditServiceServer, services, Responses))
        .add_service(served!(EdgeServiceServer, edges, Both, EXCHANGE_BYTES_MAX))
        .add_service(served!(EventServiceServer, services, Responses))
        .add_service(served!(KeyServiceServer, keys, Responses))
}

/// Describes every service of an engine and no other. Both versions of reflection are served, so each lists both.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .include_reflection_service(false)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(proto::DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
