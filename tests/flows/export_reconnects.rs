//! A client of the audit chain continues on the next connection, without a gap and without a change of the chain.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use audit::entry::{Body, Entry, Event, Isolation, Level, Outcome, Stamp};
use domain::time::UnixMillis;
use engine::serving::{Serving, ServingSettings};
use engine_client::{AuditEntries, EngineTls, OperatorError, RunningEngine};
use net::{ConnectionAge, ConnectionLimits};
use proto::{
    ExportAuditRequest, ExportAuditResponse, GetCheckpointRequest, GetCheckpointResponse, RecordClientDenialRequest,
    RecordClientDenialResponse, RecordRejectedCredentialsRequest, RecordRejectedCredentialsResponse,
    START_SEQUENCE_KEY,
    audit_service_server::{AuditService, AuditServiceServer},
    reason::{ERROR_DOMAIN, Reason},
};
use tonic::{Code, Request, Response, Status, async_trait, service::Routes};
use tonic_types::{ErrorDetails, StatusExt};

type Messages = Vec<Result<ExportAuditResponse, Status>>;

/// Answers each call of `ExportAudit` with the next stream, and keeps the requests.
#[derive(Clone)]
struct ScriptedEngine {
    streams: Arc<Mutex<VecDeque<Messages>>>,
    requests: Arc<Mutex<Vec<ExportAuditRequest>>>,
}

/// The entry from which the scripted engine reads the chain where the newest ones are asked for.
const NEWEST: u64 = 7;

#[async_trait]
impl AuditService for ScriptedEngine {
    type ExportAuditStream = tokio_stream::Iter<std::vec::IntoIter<Result<ExportAuditResponse, Status>>>;

    async fn export_audit(
        &self,
        request: Request<ExportAuditRequest>,
    ) -> Result<Response<Self::ExportAuditStream>, Status> {
        let request = request.into_inner();
        self.requests.lock().unwrap().push(request);
        let messages = self.streams.lock().unwrap().pop_front().unwrap_or_default();
        let mut response = Response::new(tokio_stream::iter(messages));
        let start = if request.newest_count == 0 { request.start_sequence } else { NEWEST };
        response.metadata_mut().insert(START_SEQUENCE_KEY, start.into());
        Ok(response)
    }

    async fn get_checkpoint(
        &self,
        _: Request<GetCheckpointRequest>,
    ) -> Result<Response<GetCheckpointResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn record_rejected_credentials(
        &self,
        _: Request<RecordRejectedCredentialsRequest>,
    ) -> Result<Response<RecordRejectedCredentialsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn record_client_denial(
        &self,
        _: Request<RecordClientDenialRequest>,
    ) -> Result<Response<RecordClientDenialResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

fn connection_age() -> Result<ExportAuditResponse, Status> {
    let details =
        ErrorDetails::with_error_info(Reason::ConnectionAge.as_str(), ERROR_DOMAIN, HashMap::<String, String>::new());
    Err(Status::with_error_details(Code::Unavailable, "", details))
}

fn entry(sequence: u64, previous: [u8; 32]) -> Entry {
    let stamp =
        Stamp { level: Level::Host, token: "software".into(), isolation: Isolation::Process, keys: Box::default() };
    let event = Event {
        at: UnixMillis(1_790_000_000_000),
        caller: "engine".into(),
        tenant: None,
        audit_user: "engine".into(),
        request: None,
        outcome: Outcome::Done,
        stamp: Arc::new(stamp),
        body: Body::EngineStopped,
    };
    Entry::chain(sequence, previous, event)
}

fn message(entry: &Entry) -> Result<ExportAuditResponse, Status> {
    Ok(ExportAuditResponse { entry: Some(audit_wire::entry_message(entry)) })
}

/// The newest entries of an engine that sends these streams, and the requests that it gets.
async fn newest(streams: Vec<Messages>) -> (Serving, AuditEntries, Arc<Mutex<Vec<ExportAuditRequest>>>) {
    let requests = Arc::default();
    let engine = ScriptedEngine { streams: Arc::new(Mutex::new(streams.into())), requests: Arc::clone(&requests) };
    let settings = ServingSettings {
        listen: ([127, 0, 0, 1], 0).into(),
        tls: None,
        workers: 1,
        call_timeout: Duration::from_secs(60),
        calls_per_connection_max: 8,
        connections: ConnectionLimits::default(),
        connection_age: ConnectionAge::default(),
    };
    let serving = Serving::start(&settings, || Routes::new(AuditServiceServer::new(engine.clone()))).unwrap();
    let mut running = RunningEngine::at(&serving.address().to_string(), &EngineTls::default()).unwrap();
    let request = ExportAuditRequest { start_sequence: 0, newest_count: 1, continuous: true };
    let entries = running.audit(request).await.unwrap();
    (serving, entries, requests)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_link_to_the_entry_before_a_reconnect_is_verified() {
    let first = entry(NEWEST, [1; 32]);
    let (sound, forged) = (entry(NEWEST + 1, first.hash), entry(NEWEST + 2, [2; 32]));
    let streams =
        vec![vec![message(&first), connection_age()], vec![message(&sound), connection_age()], vec![message(&forged)]];
    let (_serving, mut entries, requests) = newest(streams).await;
    assert_eq!(entries.next().await.unwrap(), Some(first));
    assert_eq!(entries.next().await.unwrap(), Some(sound));
    let refused = entries.next().await;
    assert!(matches!(refused, Err(OperatorError::Chain(_))), "{refused:?}");
    let starts: Vec<_> = requests.lock().unwrap().iter().map(|request| request.start_sequence).collect();
    assert_eq!(starts, [0, NEWEST + 1, NEWEST + 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reconnect_before_the_first_entry_skips_none() {
    let first = entry(NEWEST, [1; 32]);
    let (_serving, mut entries, requests) =
        newest(vec![vec![connection_age()], vec![connection_age()], vec![message(&first)]]).await;
    assert_eq!(entries.next().await.unwrap(), Some(first));
    assert_eq!(entries.next().await.unwrap(), None);
    let requests: Vec<_> =
        requests.lock().unwrap().iter().map(|request| (request.start_sequence, request.newest_count)).collect();
    assert_eq!(requests, [(0, 1), (NEWEST, 0), (NEWEST, 0)]);
}
