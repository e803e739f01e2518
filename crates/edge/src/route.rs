//! The HTTP routes: authenticate the client, read the request, call the engine, write the answer.

mod pin_calls;
mod web_view_routes;

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{MatchedPath, Path, Request, State, rejection::PathRejection},
    http::{
        HeaderValue, Method, Response, StatusCode,
        header::{ALLOW, CACHE_CONTROL},
        request::Parts,
    },
    middleware::{Next, from_fn_with_state},
    response::IntoResponse,
    routing::{get, post},
};
use futures::FutureExt;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use tokio::{sync::Mutex, time::timeout};
use tonic::Status;

use self::web_view_routes::AUDIT_USER_BASE;
use super::{
    EngineClient, Settings, SharedEngines,
    api_error::{ApiError, ErrorBody, ErrorProfile, Rejection},
    auth::{Authenticated, Client, Clients, GrantedUse, ZoneGrant, authenticate},
    body::{
        self, ControlScope, DeviceKeyRequest, PageStarted, PinControl, PinControlRequest, PinSet, SetPinByZoneRequest,
        SetPinRequest, Tzpk, ViewedPin, ZonePin,
    },
    engine_exchange::{self, EngineCall},
    http_rules::{check_body_type, check_head, waits_for_continue},
    metrics::{Limit, RefusedRequests},
    mistake::Mistake,
    operation::Operation,
    page,
    request_limits::{ExchangeAdmission, RequestAdmission},
    security_headers::SecurityHeaders,
    web_view::WebView,
};
use clock::minute_limit::MinuteLimit;
use domain::caller::AuditUser;
use domain::card::PlasticId;
use domain::request_id::RequestId;
use proto::REQUEST_ID_KEY;

/// The longest time for a body to arrive; half of the request timeout if that is less. The request is in progress during this
/// time: [`RequestLimits`](super::RequestLimits).
const BODY_TIME_MAX: Duration = Duration::from_secs(3);
/// Before an early answer, the rest of the body is read for at most this time and this many bytes. The time is longer than
/// the second that curl waits for `100 Continue`.
const REST_TIME_MAX: Duration = Duration::from_secs(3);
const REST_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The time for which the health of the engines answers further readiness probes: they need no credentials.
const READINESS_VALID: Duration = Duration::from_millis(200);
/// The most lines within a minute of requests without credentials, and of requests that a limit refused: a line for each
/// request would fill the disk.
pub(super) const LINES_PER_MINUTE_MAX: u64 = 60;
/// The most reports of rejected credentials to the engine within a minute, and of denied requests: each is an audit entry.
const REPORTS_PER_MINUTE_MAX: u64 = 60;
/// The most lines within a minute of failed readiness probes.
const NOT_READY_LINES_PER_MINUTE_MAX: u64 = 1;
/// The log target of the requests that succeeded: `RUST_LOG=info,edge::access=off` leaves them out.
const ACCESS_LOG: &str = "edge::access";
/// The number of characters of a controlId in the log: a whole controlId is a credential for some seconds.
const LOGGED_CONTROL_CHARACTERS: usize = 8;

/// The documents that a listener serves beside the API.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Documents {
    /// Those of the web view, if the edge has one.
    WebView,
    /// Those below `/docs`.
    Docs,
}

/// The routes of a listener: the API below `/pin` and at the root, the documents, and the operational routes.
pub(super) fn router(edge: Arc<EdgeState>, documents: Documents) -> Router {
    let has_pages = documents == Documents::WebView && edge.shared.settings.web_view.is_some();
    let mut routes = Router::new()
        .merge(api(""))
        .merge(api("/pin"))
        .merge(page::routes(documents == Documents::Docs))
        .route("/healthz", get(async || StatusCode::NO_CONTENT))
        .route("/readyz", get(ready));
    if has_pages {
        let pages = web_view_routes::routes();
        routes = routes.merge(pages.clone()).nest("/pin", pages);
    }
    layered(routes, edge)
}

/// The API below a path. Not nested: that would copy the target of each request without this path.
fn api(base: &str) -> Router<Arc<EdgeState>> {
    let below = |path: &str| format!("{base}{path}");
    Router::new()
        .route(&below("/pincontrol/v2/plastic/{plastic_id}"), post(open_control))
        .route(&below("/v3/set/tzpk"), post(issue_tzpk))
        .route(&below("/v3/set"), post(set_pin))
        .route(&below("/v3/view"), post(view_pin))
        .route(&below("/v2/{plastic_id}"), get(get_pin_by_zone).post(set_pin_by_zone))
}

/// The routes below the layer that each answer passes.
fn layered(routes: Router<Arc<EdgeState>>, edge: Arc<EdgeState>) -> Router {
    routes
        .fallback(async |edge: State<Arc<EdgeState>>, request: Request| {
            edge.refuse(ApiError::ROUTE_UNKNOWN, request).await
        })
        .method_not_allowed_fallback(async |edge: State<Arc<EdgeState>>, request: Request| {
            edge.refuse(ApiError::METHOD_NOT_ALLOWED, request).await
        })
        // One layer: each one is an allocation of every request.
        .layer(from_fn_with_state(Arc::clone(&edge), answer_with_headers))
        .with_state(edge)
}

/// Checks the head of a request, runs its route, answers a panic, and adds the headers of every answer.
async fn answer_with_headers(edge: State<Arc<EdgeState>>, request: Request, next: Next) -> Response<Body> {
    let web_view = edge.shared.settings.web_view.as_ref().map(WebView::is_https);
    let security_headers = SecurityHeaders::of(request.uri().path(), web_view);
    let answered = AssertUnwindSafe(async {
        let (parts, body) = request.into_parts();
        let checked = check_head(&parts);
        let request = Request::from_parts(parts, body);
        match checked {
            Ok(()) => next.run(request).await,
            Err(error) => edge.refuse(error, request).await,
        }
    });
    let mut answer = answered.catch_unwind().await.unwrap_or_else(|_| {
        let id = RequestId::random();
        // The panic hook has written the place to standard error. The message may hold request data: do not log it.
        tracing::warn!(request = %id, code = ApiError::UNEXPECTED.code(), "a request panicked");
        ApiError::UNEXPECTED.answer(edge.shared.settings.error_profile, id)
    });
    security_headers.add_to(answer.headers_mut());
    // No cache may store any answer, errors included (RFC 9111, section 5.2.2.5).
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// `GET /readyz`: 204, or 503 while no control can be opened through this edge: see [`NoEngineReady`](super::engine_health::NoEngineReady).
async fn ready(State(edge): State<Arc<EdgeState>>) -> StatusCode {
    // One check at a time: the probes that wait for it get its result.
    let mut last = edge.shared.readiness.lock().await;
    let is_ready = match *last {
        Some((at, is_ready)) if at.elapsed() < READINESS_VALID => is_ready,
        _ => {
            let checked = edge.shared.engines.health.check_ready().await;
            match &checked {
                Ok(()) if matches!(*last, Some((_, false))) => tracing::info!("/readyz is answered 204 again"),
                Ok(()) => {}
                Err(reason) => {
                    if let Some(suppressed) = edge.shared.not_ready_lines.admit() {
                        tracing::warn!(%reason, suppressed, "/readyz is answered 503");
                    }
                }
            }
            *last = Some((Instant::now(), checked.is_ok()));
            checked.is_ok()
        }
    };
    if is_ready { StatusCode::NO_CONTENT } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// The network of a request's connection, in the extensions of the request.
#[derive(Clone, Copy)]
pub(super) struct ClientNetwork(pub(super) IpAddr);

fn network_of(parts: &Parts) -> IpAddr {
    parts.extensions.get().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ClientNetwork(network)| *network)
}

/// The state of the routes on one thread.
pub(super) struct EdgeState {
    engine: EngineClient,
    shared: Arc<SharedState>,
}

/// What the routes of all threads share.
pub(super) struct SharedState {
    settings: Settings,
    clients: Clients,
    engines: SharedEngines,
    admission: RequestAdmission,
    refused: RefusedRequests,
    exchanges: ExchangeAdmission,
    /// The last health check of the engines: its end and its result.
    readiness: Mutex<Option<(Instant, bool)>>,
    not_ready_lines: MinuteLimit,
    unauthenticated_lines: MinuteLimit,
    rejected_credentials: Arc<MinuteLimit>,
    denied_requests: Arc<MinuteLimit>,
    limit_lines: MinuteLimit,
}

/// An authenticated request with its whole body.
struct ApiRequest {
    id: RequestId,
    client: String,
    tenant: String,
    audit_user: String,
    body: Bytes,
    /// The controlId of a page's session; `None` where the body names it.
    page_control: Option<String>,
    wants_kcv: bool,
    oaep_mgf1: Result<proto::OaepMgf1, ApiError>,
    zones: Arc<[ZoneGrant]>,
}

impl ApiRequest {
    /// A request of this client without a body.
    fn of(client: &Client, id: RequestId, audit_user: String) -> Self {
        Self {
            id,
            client: client.name().to_owned(),
            tenant: client.tenant().as_str().to_owned(),
            audit_user,
            body: Bytes::new(),
            page_control: None,
            wants_kcv: client.wants_kcv(),
            oaep_mgf1: client.oaep_mgf1(),
            zones: Arc::clone(client.zones()),
        }
    }
}

/// Opens a control for a card and an operation
///
/// The next calls of the client need only the controlId of the answer.
#[utoipa::path(
    post, path = "/pincontrol/v2/plastic/{plasticId}", operation_id = Operation::OPEN_CONTROL.id, tag = "PIN control",
    params(
        ("plasticId" = String, Path, description = "The card: 1 to 19 decimal digits.", example = "1000200030", pattern = "^[0-9]{1,19}$"),
    ),
    request_body = PinControlRequest,
    responses(
        (status = 201, description = "The control is open.", body = PinControl),
        (status = 400, description = "The request is malformed.", body = ErrorBody),
        (status = 401, description = "The credentials are missing or wrong.", body = ErrorBody),
        (status = 403, description = "The engine does not allow this edge to make this call.", body = ErrorBody),
        (status = 404, description = "The card is not registered, and the engine accepts registered cards only.", body = ErrorBody),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody),
        (status = 413, description = "The body is too large.", body = ErrorBody),
        (status = 415, description = "The body is not JSON in UTF-8.", body = ErrorBody),
        (status = 422, description = "The state of the card or the control does not allow this.", body = ErrorBody),
        (status = 429, description = "A limit on the card, the tenant or the client is reached; Retry-After has the seconds to wait.", body = ErrorBody),
        (status = 500, description = "The edge or the engine failed.", body = ErrorBody),
        (status = 503, description = "The engine, its store or its key boundary is unavailable.", body = ErrorBody),
    ),
    security(("bearer" = []), ("basic" = []), ("certificate" = [])),
)]
async fn open_control(
    State(edge): State<Arc<EdgeState>>,
    plastic: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response<Body> {
    let work = async |request: ApiRequest| -> Result<_, Rejection> {
        let plastic_id = plastic_id(plastic)?;
        let body: PinControlRequest = body::parse(&request.body)?;
        let urls = edge.shared.settings.web_view.as_ref().and_then(|web_view| web_view.urls_of(&request.client));
        let call = proto::OpenControlRequest {
            tenant: request.tenant,
            audit_user: request.audit_user,
            plastic_id,
            scope: ControlScope::parse(&body.scope.text("scope")?)?.to_wire(),
            device_key_sha256: body::device_key_sha256(body.device_key_sha256)?,
            // Only a client with a page has addresses of one.
            page_client: urls.as_ref().map(|_| request.client).unwrap_or_default(),
        };
        let opened = edge.call(request.id, call).await?;
        let (pin_url, pin_frame_url) = urls.map(|urls| (urls.pin_url, urls.pin_frame_url)).unzip();
        Ok((StatusCode::CREATED, PinControl { id: opened.control_id, pin_url, pin_frame_url }))
    };
    edge.answer("pincontrol/v2/plastic", request, work).await
}

/// Issues a tzpk under a control
///
/// Each call generates a new tzpk (temporary zone PIN key), which replaces the previous one.
#[utoipa::path(
    post, path = "/pin/v3/set/tzpk", operation_id = Operation::ISSUE_TZPK.id, tag = "Set PIN",
    request_body = DeviceKeyRequest,
    responses(
        (status = 200, description = "A new tzpk, encrypted under the device's public key.", body = Tzpk),
        (status = 400, description = "The request or the device key is malformed.", body = ErrorBody),
        (status = 401, description = "The credentials are missing or wrong.", body = ErrorBody),
        (status = 403, description = "The control belongs to another tenant, or was opened for another operation or device key.", body = ErrorBody),
        (status = 404, description = "The control is unknown, expired or spent; the answer does not say which.", body = ErrorBody),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody),
        (status = 413, description = "The body is too large.", body = ErrorBody),
        (status = 415, description = "The body is not JSON in UTF-8.", body = ErrorBody),
        (status = 422, description = "The state of the card or the control does not allow this.", body = ErrorBody),
        (status = 429, description = "A limit on the card, the tenant or the client is reached; Retry-After has the seconds to wait.", body = ErrorBody),
        (status = 500, description = "The edge or the engine failed.", body = ErrorBody),
        (status = 503, description = "The engine, its store or its key boundary is unavailable.", body = ErrorBody),
    ),
    security(("bearer" = []), ("basic" = []), ("certificate" = [])),
)]
async fn issue_tzpk(State(edge): State<Arc<EdgeState>>, request: Request) -> Response<Body> {
    edge.answer("v3/set/tzpk", request, async |request| edge.issue_tzpk(request).await).await
}

/// Sets a PIN
///
/// A control sets one PIN. The same block under the same control is answered 200 again while this PIN is still the
/// card's PIN, until five minutes after the control's expiry; any other block under a spent control is answered 404. A
/// new PIN closes the card's other open controls.
#[utoipa::path(
    post, path = "/pin/v3/set", operation_id = Operation::SET_PIN.id, tag = "Set PIN",
    request_body = SetPinRequest,
    responses(
        (status = 200, description = "The PIN is set, and the record is on disk.", body = PinSet),
        (status = 400, description = "The request is malformed.", body = ErrorBody),
        (status = 401, description = "The credentials are missing or wrong.", body = ErrorBody),
        (status = 403, description = "The control belongs to another tenant, or was opened for another operation.", body = ErrorBody),
        (status = 404, description = "The control is unknown, expired or spent; the answer does not say which.", body = ErrorBody),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody),
        (status = 413, description = "The body is too large.", body = ErrorBody),
        (status = 415, description = "The body is not JSON in UTF-8.", body = ErrorBody),
        (status = 422, description = "The block is not an ISO 9564 format 1 block under the tzpk (the control is spent), or the PIN \
            breaks the policy (the control stays usable for up to three such answers), or no tzpk was issued.", body = ErrorBody),
        (status = 429, description = "A limit on the card, the tenant or the client is reached; Retry-After has the seconds to wait.", body = ErrorBody),
        (status = 500, description = "The edge or the engine failed.", body = ErrorBody),
        (status = 503, description = "The engine, its store or its key boundary is unavailable.", body = ErrorBody),
    ),
    security(("bearer" = []), ("basic" = []), ("certificate" = [])),
)]
async fn set_pin(State(edge): State<Arc<EdgeState>>, request: Request) -> Response<Body> {
    edge.answer("v3/set", request, async |request| edge.set_pin(request).await).await
}

/// Returns a PIN, encrypted for the cardholder's device
///
/// Spends the control.
#[utoipa::path(
    post, path = "/pin/v3/view", operation_id = Operation::VIEW_PIN.id, tag = "View PIN",
    request_body = DeviceKeyRequest,
    responses(
        (status = 200, description = "The PIN, encrypted under a new tzpk for the device.", body = ViewedPin),
        (status = 400, description = "The request or the device key is malformed.", body = ErrorBody),
        (status = 401, description = "The credentials are missing or wrong.", body = ErrorBody),
        (status = 403, description = "The control belongs to another tenant, or was opened for another operation or device key.", body = ErrorBody),
        (status = 404, description = "The control is unknown, expired or spent (the answer does not say which), or no PIN is set.", body = ErrorBody),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody),
        (status = 413, description = "The body is too large.", body = ErrorBody),
        (status = 415, description = "The body is not JSON in UTF-8.", body = ErrorBody),
        (status = 422, description = "The PIN is stored in a format that cannot be viewed.", body = ErrorBody),
        (status = 429, description = "A limit on the card, the tenant or the client is reached; Retry-After has the seconds to wait.", body = ErrorBody),
        (status = 500, description = "The edge or the engine failed.", body = ErrorBody),
        (status = 503, description = "The engine, its store or its key boundary is unavailable.", body = ErrorBody),
    ),
    security(("bearer" = []), ("basic" = []), ("certificate" = [])),
)]
async fn view_pin(State(edge): State<Arc<EdgeState>>, request: Request) -> Response<Body> {
    edge.answer("v3/view", request, async |request| edge.view_pin(request).await).await
}

/// Sets a PIN by a block under a zone key
///
/// For a client that shares a zone key with the issuer and so knows the PIN: the configuration grants the use, a zone key at
/// a time. The block of the present PIN, sent again, is answered 200 and changes nothing. A new PIN closes the open controls
/// of the card.
#[utoipa::path(
    post, path = "/pin/v2/{plasticId}", operation_id = Operation::SET_PIN_BY_ZONE.id, tag = "Pre-shared key",
    params(
        ("plasticId" = String, Path, description = "The card: 1 to 19 decimal digits.", example = "1000200030", pattern = "^[0-9]{1,19}$"),
    ),
    request_body = SetPinByZoneRequest,
    responses(
        (status = 200, description = "The PIN is set, and the record is on disk.", body = PinSet),
        (status = 400, description = "The request is malformed.", body = ErrorBody),
        (status = 401, description = "The credentials are missing or wrong.", body = ErrorBody),
        (status = 403, description = "The configuration does not allow this use of the zone key.", body = ErrorBody),
        (status = 404, description = "The zone key is unknown, or the card is not registered and the engine accepts registered cards only.", body = ErrorBody),
        (status = 408, description = "The body did not arrive in time.", body = ErrorBody),
        (status = 413, description = "The body is too large.", body = ErrorBody),
        (status = 415, description = "The body is not JSON in UTF-8.", body = ErrorBody),
        (status = 422, description = "The block is malformed, its PIN breaks the policy, or it set an earlier PIN of the card.", body = ErrorBody),
        (status = 429, description = "A limit on the card, the tenant or the client is reached; Retry-After has the seconds to wait.", body = ErrorBody),
        (status = 500, description = "The edge or the engine failed.", body = ErrorBody),
        (status = 503, description = "The engine, its store or its key boundary is unavailable.", body = ErrorBody),
    ),
    security(("bearer" = []), ("basic" = []), ("certificate" = [])),
)]
async fn set_pin_by_zone(
    State(edge): State<Arc<EdgeState>>,
    plastic: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response<Body> {
    let work = async |request: ApiRequest| -> Result<_, Rejection> {
        let body: SetPinByZoneRequest = body::parse(&request.body)?;
        let index = body::zpk_index(&body.zpk_index.text("zpkIndex")?)?;
        edge.admit_zone_use(&request, index, GrantedUse::SetPin)?;
        let block = proto::ZoneBlock {
            zone_key: Some(zone_key(index)),
            format: proto::ZoneFormat::Unspecified.into(),
            pin_block: body::zone_pin_block(body.pin_block)?,
        };
        let call = proto::SetPinByZoneRequest {
            tenant: request.tenant,
            audit_user: request.audit_user,
            plastic_id: plastic_id(plastic)?,
            zone_block: Some(block),
        };
        edge.call(request.id, call).await.map_err(zone_rejection)?;
        Ok((StatusCode::OK, PinSet {}))
    };
    edge.answer("v2", request, work).await
}

/// Returns a PIN under a zone key
///
/// For a client that shares a zone key with the issuer and so learns the PIN: the configuration grants the use, a zone key at
/// a time. Each answer is audited. Needs no control and spends none.
#[utoipa::path(
    get, path = "/pin/v2/{plasticId}", operation_id = Operation::GET_PIN_BY_ZONE.id, tag = "Pre-shared key",
    params(
        ("plasticId" = String, Path, description = "The card: 1 to 19 decimal digits.", example = "1000200030", pattern = "^[0-9]{1,19}$"),
        ("zpkIndex" = String, Query, description = "The index of the zone key.", format = "zpk-index", pattern = "^(0|[1-9][0-9]{0,3})$"),
    ),
    responses(
        (status = 200, description = "The PIN, encrypted under the zone key.", body = ZonePin),
        (status = 400, description = "The request is malformed.", body = ErrorBody),
        (status = 401, description = "The credentials are missing or wrong.", body = ErrorBody),
        (status = 403, description = "The configuration does not allow this use of the zone key.", body = ErrorBody),
        (status = 404, description = "The zone key is unknown, or no PIN is set.", body = ErrorBody),
        (status = 422, description = "The PIN is stored in a format that cannot be viewed.", body = ErrorBody),
        (status = 429, description = "A limit on the card, the tenant or the client is reached; Retry-After has the seconds to wait.", body = ErrorBody),
        (status = 500, description = "The edge or the engine failed.", body = ErrorBody),
        (status = 503, description = "The engine, its store or its key boundary is unavailable.", body = ErrorBody),
    ),
    security(("bearer" = []), ("basic" = []), ("certificate" = [])),
)]
async fn get_pin_by_zone(
    State(edge): State<Arc<EdgeState>>,
    plastic: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response<Body> {
    // axum routes HEAD here too, and a PIN that nobody receives must not be read and audited.
    if request.method() == Method::HEAD {
        let mut answer = edge.refuse(ApiError::METHOD_NOT_ALLOWED, request).await;
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
        return answer;
    }
    let query = request.uri().query().map(str::to_owned);
    let work = async |request: ApiRequest| -> Result<_, Rejection> {
        let index = query_value(query.as_deref(), "zpkIndex").map_err(|found| match found {
            NotOnce::Missing => Mistake::ZpkIndexMissing,
            NotOnce::Repeated => Mistake::ZpkIndexRepeated,
        })?;
        let index = body::zpk_index(&index.unwrap_or_default())?;
        edge.admit_zone_use(&request, index, GrantedUse::GetPin)?;
        let call = proto::GetPinByZoneRequest {
            tenant: request.tenant,
            audit_user: request.audit_user,
            plastic_id: plastic_id(plastic)?,
            zone_key: Some(zone_key(index)),
        };
        let given = edge.call(request.id, call).await.map_err(zone_rejection)?;
        Ok((StatusCode::OK, ZonePin { pin_block: body::hex(&given.pin_block) }))
    };
    edge.answer("v2", request, work).await
}

/// Checks the plasticId of a path.
fn plastic_id(path: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    let plastic_id = path.ok().and_then(|Path(text)| PlasticId::parse(&text).ok());
    Ok(plastic_id.ok_or(ApiError::PLASTIC_ID_INVALID)?.as_str().to_owned())
}

/// The newest key of the zone with this index.
fn zone_key(index: u32) -> proto::ZoneKey {
    proto::ZoneKey { zone: Some(proto::zone_key::Zone::IndexNumber(index)), key_version: 0 }
}

/// The error of the engine, with the texts for a block under a zone key.
fn zone_rejection(status: Status) -> Rejection {
    let rejection = Rejection::from(status);
    if rejection.error == ApiError::PIN_BLOCK_LENGTH {
        ApiError::ZONE_BLOCK_INVALID.into()
    } else if rejection.error == ApiError::PIN_BLOCK_MALFORMED {
        ApiError::ZONE_BLOCK_MALFORMED.into()
    } else {
        rejection
    }
}

impl SharedState {
    pub(super) fn new(
        settings: Settings,
        clients: Clients,
        engines: SharedEngines,
        refused: RefusedRequests,
    ) -> Arc<Self> {
        let failed_exchanges_max =
            settings.web_view.as_ref().map_or(0, |web_view| web_view.failed_exchanges_per_address_max);
        Arc::new(Self {
            admission: RequestAdmission::new(&settings.requests, refused.clone()),
            settings,
            clients,
            engines,
            refused,
            exchanges: ExchangeAdmission::new(failed_exchanges_max),
            readiness: Mutex::default(),
            not_ready_lines: MinuteLimit::new(NOT_READY_LINES_PER_MINUTE_MAX),
            unauthenticated_lines: MinuteLimit::new(LINES_PER_MINUTE_MAX),
            rejected_credentials: Arc::new(MinuteLimit::new(REPORTS_PER_MINUTE_MAX)),
            denied_requests: Arc::new(MinuteLimit::new(REPORTS_PER_MINUTE_MAX)),
            limit_lines: MinuteLimit::new(LINES_PER_MINUTE_MAX),
        })
    }
}

impl EdgeState {
    /// The state of a thread. The connections to the engines are on the runtime of the caller.
    pub(super) fn of_thread(shared: Arc<SharedState>) -> Arc<Self> {
        Arc::new(Self { engine: shared.engines.client(), shared })
    }

    /// Authenticates the client, reads the request, runs `work` within the request timeout, and answers.
    async fn answer<T: AnswerBody>(
        &self,
        route: &'static str,
        request: Request,
        work: impl AsyncFnOnce(ApiRequest) -> Result<(StatusCode, T), Rejection>,
    ) -> Response<Body> {
        let (parts, mut body) = request.into_parts();
        let clients = self.shared.clients.current();
        let mut log = RequestLog::begin(route, &parts);
        let mut authenticated = false;
        let outcome = timeout(self.shared.settings.request_timeout, async {
            let client = authenticate(&clients, &parts)?;
            authenticated = true;
            log.client = Some(client.name());
            let _place = self.shared.admission.admit(client)?;
            let request = self.read(log.id, client, &parts, &mut body).await?;
            log.audit_user = Some(request.audit_user.clone());
            log.control = control_in(&request.body);
            work(request).await
        })
        .await
        .unwrap_or_else(|_| Err(self.engine_timeout()));
        if outcome.as_ref().is_err_and(|refused| refused.error.is_unauthenticated()) {
            self.report_rejected_credentials(log.id, &parts);
        }
        let mut answer = self.conclude(self.shared.settings.error_profile, log, &parts, body, outcome).await;
        if authenticated {
            answer.extensions_mut().insert(Authenticated);
        }
        answer
    }

    /// Logs the outcome of a request and answers with it.
    async fn conclude<T: AnswerBody>(
        &self,
        profile: ErrorProfile,
        mut log: RequestLog<'_>,
        parts: &Parts,
        body: Body,
        outcome: Result<(StatusCode, T), Rejection>,
    ) -> Response<Body> {
        match outcome {
            Ok((status, body)) => {
                log.control = body.opened_control().map(logged_control).or(log.control);
                log.served(status);
                (status, Json(body)).into_response()
            }
            Err(refused) => self.conclude_refused(profile, log, parts, body, refused).await,
        }
    }

    /// Logs a rejected request, reads the rest of its body, and answers.
    async fn conclude_refused(
        &self,
        profile: ErrorProfile,
        log: RequestLog<'_>,
        parts: &Parts,
        body: Body,
        refused: Rejection,
    ) -> Response<Body> {
        let error = refused.error;
        let answer = self.refusal(profile, log, refused);
        if error == ApiError::BODY_TIMEOUT {
            self.shared.refused.count(Limit::BodyTime);
        } else {
            self.drain_body(parts, body).await;
        }
        answer
    }

    /// Answers a request that matches no route, method or page.
    async fn refuse(&self, error: ApiError, request: Request) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let route = parts.extensions.get::<MatchedPath>().map_or("-", MatchedPath::as_str);
        let answer = self.refusal(self.shared.settings.error_profile, RequestLog::begin(route, &parts), error.into());
        self.drain_body(&parts, body).await;
        answer
    }

    fn refusal(&self, profile: ErrorProfile, log: RequestLog<'_>, refused: Rejection) -> Response<Body> {
        let answer = refused.error.answer(profile, log.id);
        let lines = match log.client {
            None => Some(&self.shared.unauthenticated_lines),
            Some(_) if refused.error.is_limit() => Some(&self.shared.limit_lines),
            Some(_) => None,
        };
        if let Some(suppressed) = lines.map_or(Some(0), MinuteLimit::admit) {
            log.refused(answer.status(), &refused, suppressed);
        }
        answer
    }

    /// Reports rejected credentials to the engine, which audits them. The answer does not wait for the engine.
    fn report_rejected_credentials(&self, id: RequestId, parts: &Parts) {
        let Some(unrecorded_count) = self.shared.rejected_credentials.admit() else { return };
        let client_network = network_of(parts).to_string();
        let message = proto::RecordRejectedCredentialsRequest { client_network, unrecorded_count };
        let (request, mut audit) = (self.engine_request(id, message), self.shared.engines.audit());
        let recorded = async move { audit.record_rejected_credentials(request).await.map(drop) };
        spawn_report(id, &self.shared.rejected_credentials, unrecorded_count, recorded);
    }

    /// Checks that the configuration grants the client this use of a zone key. A denial is reported to the engine, which
    /// audits it.
    ///
    /// # Errors
    /// ZONE_FORBIDDEN.
    fn admit_zone_use(&self, request: &ApiRequest, index: u32, wanted: GrantedUse) -> Result<(), ApiError> {
        if request.zones.iter().any(|grant| grant.index == index && grant.uses.contains(&wanted)) {
            return Ok(());
        }
        if let Some(unrecorded_count) = self.shared.denied_requests.admit() {
            let method = match wanted {
                GrantedUse::SetPin => proto::EngineMethod::SetPinByZone,
                GrantedUse::GetPin => proto::EngineMethod::GetPinByZone,
            };
            let message = proto::RecordClientDenialRequest {
                tenant: request.tenant.clone(),
                audit_user: request.audit_user.clone(),
                method: method.into(),
                unrecorded_count,
            };
            let (denial, mut audit) = (self.engine_request(request.id, message), self.shared.engines.audit());
            let recorded = async move { audit.record_client_denial(denial).await.map(drop) };
            spawn_report(request.id, &self.shared.denied_requests, unrecorded_count, recorded);
        }
        Err(ApiError::ZONE_FORBIDDEN)
    }

    fn engine_timeout(&self) -> Rejection {
        let cause = format!("the engine sent no reply within {} ms", self.shared.settings.request_timeout.as_millis());
        Rejection { error: ApiError::ENGINE_UNAVAILABLE, cause: Some(cause) }
    }

    async fn read(
        &self,
        id: RequestId,
        client: &Client,
        parts: &Parts,
        body: &mut Body,
    ) -> Result<ApiRequest, ApiError> {
        // The content of a GET has no meaning (RFC 9110, 9.3.1).
        let has_body = parts.method != Method::GET;
        if has_body {
            check_body_type(&parts.headers)?;
        }
        let audit_user = audit_user(parts.uri.query())?;
        let body =
            if has_body { self.read_body(body, self.shared.settings.body_bytes_max).await? } else { Bytes::new() };
        Ok(ApiRequest { body, ..ApiRequest::of(client, id, audit_user) })
    }

    async fn read_body(&self, body: &mut Body, bytes_max: usize) -> Result<Bytes, ApiError> {
        let time = BODY_TIME_MAX.min(self.shared.settings.request_timeout / 2);
        let read = Limited::new(body, bytes_max).collect();
        match timeout(time, read).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::BODY_TOO_LARGE),
            Ok(Err(_)) => Err(Mistake::BodyCut.into()),
            Err(_) => Err(ApiError::BODY_TIMEOUT),
        }
    }

    /// Calls an engine with the id of the HTTP request, which the engine logs and audits, and with a deadline: the engine drops
    /// the call after the client has its answer.
    async fn call<C: EngineCall>(&self, id: RequestId, call: C) -> Result<C::Response, Status> {
        engine_exchange::call(&self.engine.calls, id, call, self.shared.settings.request_timeout).await
    }

    /// A gRPC request with the id of the HTTP request, and with a deadline.
    fn engine_request<T>(&self, id: RequestId, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Ok(id) = id.to_string().parse() {
            request.metadata_mut().insert(REQUEST_ID_KEY, id);
        }
        request.set_timeout(self.shared.settings.request_timeout);
        request
    }

    /// Reads and drops the rest of a body, within limits. Over HTTP/2, libcurl loses an answer that arrives before it has sent
    /// the whole body; over HTTP/1.1, the connection could not be reused.
    async fn drain_body(&self, parts: &Parts, body: Body) {
        // Reading would ask the client to send the body.
        if waits_for_continue(parts) {
            return;
        }
        let Some(_place) = self.shared.admission.admit_rest(network_of(parts)) else { return };
        let mut rest = Limited::new(body, REST_BYTES_MAX);
        let read = async { while let Some(Ok(_)) = rest.frame().await {} };
        if timeout(REST_TIME_MAX, read).await.is_err() {
            tracing::debug!("the rest of a body did not arrive in time");
        }
    }
}

/// Sends a report to the engine. If it is not recorded, the next one counts its requests.
fn spawn_report(
    id: RequestId,
    limit: &Arc<MinuteLimit>,
    unrecorded_count: u64,
    recorded: impl Future<Output = Result<(), Status>> + Send + 'static,
) {
    let limit = Arc::clone(limit);
    tokio::spawn(async move {
        if let Err(status) = recorded.await {
            limit.suppress(unrecorded_count.saturating_add(1));
            let cause = status.message();
            tracing::warn!(request = %id, cause, "the engine did not record that a request was rejected");
        }
    });
}

/// The fields of a request in the log: never its path, its body or a whole controlId.
struct RequestLog<'a> {
    /// Also in the body of an error, in the engine's log and in the audit event.
    id: RequestId,
    began: Instant,
    route: &'a str,
    method: &'a str,
    network: IpAddr,
    client: Option<&'a str>,
    audit_user: Option<String>,
    control: Option<String>,
}

/// Logs one event with the fields of a request.
macro_rules! log_event {
    ($level:ident, $target:expr, $log:expr, $status:expr, $code:expr, $cause:expr, $suppressed:expr, $message:literal) => {
        tracing::$level!(
            target: $target,
            request = %$log.id,
            route = $log.route,
            method = $log.method,
            status = $status.as_u16(),
            code = $code,
            cause = $cause,
            suppressed = $suppressed,
            network = %$log.network,
            client = $log.client.unwrap_or("-"),
            audit_user = $log.audit_user.as_deref().unwrap_or("-"),
            control = $log.control.as_deref().unwrap_or("-"),
            microseconds = u64::try_from($log.began.elapsed().as_micros()).unwrap_or(u64::MAX),
            $message
        )
    };
}

impl<'a> RequestLog<'a> {
    fn begin(route: &'a str, parts: &'a Parts) -> Self {
        let (id, began) = (RequestId::random(), Instant::now());
        let (method, network) = (logged_method(&parts.method), network_of(parts));
        Self { id, began, route, method, network, client: None, audit_user: None, control: None }
    }

    /// Logged at a default level: the engine knows the edge, and the edge alone its client.
    fn served(self, status: StatusCode) {
        log_event!(info, ACCESS_LOG, self, status, "OK", None::<&str>, None::<u64>, "request");
    }

    /// Logged at a default level: an operator finds the id of an error in the log. `suppressed` is the number of requests of
    /// this kind without a line since the last one.
    fn refused(self, status: StatusCode, refused: &Rejection, suppressed: u64) {
        let (code, cause, suppressed) =
            (refused.error.code(), refused.cause.as_deref(), Some(suppressed).filter(|n| *n > 0));
        if refused.error.is_server_error() {
            log_event!(warn, module_path!(), self, status, code, cause, suppressed, "a request failed");
        } else {
            log_event!(info, module_path!(), self, status, code, cause, suppressed, "a request was rejected");
        }
    }
}

/// The name of a standard method; `-` for any other, because a client can send any text.
fn logged_method(method: &Method) -> &str {
    match *method {
        Method::GET | Method::POST | Method::PUT | Method::DELETE | Method::HEAD | Method::OPTIONS | Method::PATCH => {
            method.as_str()
        }
        _ => "-",
    }
}

/// The value of the query parameter `auditUser`, if it occurs once, [`AuditUser`] accepts it, and it is no user of a page.
fn audit_user(query: Option<&str>) -> Result<String, ApiError> {
    let value = query_value(query, "auditUser").ok().flatten().ok_or(ApiError::AUDIT_USER_INVALID)?;
    // A reader of the audit chain may overlook spaces and case.
    let is_of_page = |start: &str| start.eq_ignore_ascii_case(AUDIT_USER_BASE);
    if value.trim_start().get(..AUDIT_USER_BASE.len()).is_some_and(is_of_page) {
        return Err(Mistake::AuditUserOfPage.into());
    }
    AuditUser::parse(&value).map(|_| value).map_err(|_| ApiError::AUDIT_USER_INVALID)
}

/// A query parameter does not occur exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NotOnce {
    Missing,
    Repeated,
}

/// The decoded value of a query parameter that occurs once; `None` if it is not UTF-8.
fn query_value(query: Option<&str>, name: &str) -> Result<Option<String>, NotOnce> {
    let pairs = query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut values = pairs.filter(|(key, _)| decoded(key).as_deref() == Some(name)).map(|(_, value)| value);
    let value = values.next().ok_or(NotOnce::Missing)?;
    if values.next().is_some() { Err(NotOnce::Repeated) } else { Ok(decoded(value).map(Cow::into_owned)) }
}

/// Decodes `application/x-www-form-urlencoded` text; `None` if it is not UTF-8, because the audit chain records exactly what
/// was sent. A `%` without two hexadecimal digits is a literal `%` (URL Standard, 1.3).
fn decoded(text: &str) -> Option<Cow<'_, str>> {
    if !text.contains('+') {
        return percent_decode_str(text).decode_utf8().ok();
    }
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8().ok().map(|text| text.into_owned().into())
}

/// The body of an answer.
trait AnswerBody: Serialize {
    /// The controlId of the control that the request opened.
    fn opened_control(&self) -> Option<&str> {
        None
    }
}

impl AnswerBody for PinControl {
    fn opened_control(&self) -> Option<&str> {
        Some(&self.id)
    }
}

impl AnswerBody for PageStarted {}
impl AnswerBody for Tzpk {}
impl AnswerBody for PinSet {}
impl AnswerBody for ViewedPin {}
impl AnswerBody for ZonePin {}

/// The first characters of the controlId in the body, for the log.
fn control_in(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Named<'a> {
        #[serde(borrow)]
        control_id: Cow<'a, str>,
    }
    let named: Named<'_> = serde_json::from_slice(body).ok()?;
    Some(logged_control(&named.control_id))
}

fn logged_control(id: &str) -> String {
    id.chars().filter(char::is_ascii_graphic).take(LOGGED_CONTROL_CHARACTERS).collect()
}

/// The operations of the OpenAPI document.
#[derive(utoipa::OpenApi)]
#[openapi(paths(open_control, issue_tzpk, set_pin, view_pin, set_pin_by_zone, get_pin_by_zone))]
pub(super) struct Operations;

#[cfg(test)]
mod tests {
    use std::path::Path as FilePath;

    use domain::control::{ControlId, PageId};
    use serde_json::json;
    use tower::ServiceExt;

    use super::*;
    use crate::{
        EdgeConfig,
        web_view::{ICON_PATH, PageControl, PageOperation, PageSession, Placement, SCRIPT_PATH, STYLE_PATH},
    };

    const PUBLIC_URL: &str = "https://pin.bank.test";
    /// The headers of every answer, and those that only answers of the web view have.
    const EVERYWHERE: [&str; 4] =
        ["cache-control", "content-security-policy", "referrer-policy", "x-content-type-options"];
    const OF_DOCUMENTS: [&str; 2] = ["cross-origin-opener-policy", "cross-origin-resource-policy"];
    const OF_PAGES: [&str; 3] = ["cross-origin-embedder-policy", "permissions-policy", "strict-transport-security"];

    /// The state of an edge with a web view, in front of an engine that is away.
    fn edge_state() -> Arc<EdgeState> {
        let away = "127.0.0.1:1".parse().unwrap();
        let config = EdgeConfig::embedded(away, away).unwrap();
        let config = config.with_page(PUBLIC_URL, "bank", "https://bank.test").unwrap();
        let engines = SharedEngines::new(&config.engine_addresses, None).unwrap();
        let mut settings = config.settings;
        let clients = Clients::new(std::mem::take(&mut settings.clients));
        EdgeState::of_thread(SharedState::new(settings, clients, engines, RefusedRequests::default()))
    }

    /// The first argument of each `.route(` in the sources, with a value for each parameter, and the files for developers.
    fn paths() -> Vec<String> {
        let mut paths: Vec<_> = page::paths().map(str::to_owned).collect();
        for source in [include_str!("route.rs"), include_str!("route/web_view_routes.rs")] {
            let source = source.split("#[cfg(test)]").next().unwrap();
            for call in source.split(".route(").skip(1) {
                let argument = call.split(',').next().unwrap().trim();
                let path = match argument {
                    "SCRIPT_PATH" => SCRIPT_PATH,
                    "STYLE_PATH" => STYLE_PATH,
                    "ICON_PATH" => ICON_PATH,
                    literal => literal.trim_start_matches("&below(").trim_end_matches(')').trim_matches('"'),
                };
                assert!(path.starts_with('/'), "{argument}");
                paths.push(path.replace("{plastic_id}", "1").replace("{page}", "bank"));
            }
        }
        paths
    }

    fn check_headers(path: &str, method: &Method, answer: &Response<Body>) {
        let (status, headers) = (answer.status(), answer.headers());
        let below = |base: &str| FilePath::new(path).starts_with(base);
        let is_of_page = below("/web") || below("/pin/web");
        let is_document = is_of_page || below("/docs") || below("/openapi.json");
        let expected = EVERYWHERE.iter().chain(OF_DOCUMENTS.iter().filter(|_| is_document));
        for name in expected.chain(OF_PAGES.iter().filter(|_| is_of_page)) {
            assert_eq!(headers.get_all(*name).iter().count(), 1, "{method} {path} {status}: {name}");
        }
        let value = |name: &str| headers[name].to_str().unwrap();
        assert_eq!((value("cache-control"), value("referrer-policy")), ("no-store", "no-referrer"), "{path}");
        assert_eq!(value("x-content-type-options"), "nosniff", "{path}");
        let policy = value("content-security-policy");
        let is_strict = policy.starts_with("default-src 'none'") && !policy.contains("unsafe");
        assert!(is_strict && policy.contains("frame-ancestors "), "{method} {path}: {policy}");
        let is_frame = path.contains("/web/frame") && status.is_success();
        assert_eq!(policy.contains("frame-ancestors 'none'"), !is_frame, "{method} {path}: {policy}");
        if is_document {
            let resource = if is_frame { "cross-origin" } else { "same-origin" };
            assert_eq!(value("cross-origin-resource-policy"), resource, "{path}");
            assert_eq!(value("cross-origin-opener-policy"), "same-origin", "{path}");
        }
        assert!(!headers.contains_key("access-control-allow-origin"), "{path}");
        assert!(!headers.contains_key("set-cookie") && !headers.contains_key("server"), "{path}");
    }

    async fn send(edge: &Router, request: Request) -> Response<Body> {
        let (path, method) = (request.uri().path().to_owned(), request.method().clone());
        let answer = edge.clone().oneshot(request).await.unwrap();
        check_headers(&path, &method, &answer);
        answer
    }

    #[tokio::test]
    async fn every_answer_of_every_route_has_its_security_headers() {
        let (state, paths) = (edge_state(), paths());
        assert!(paths.len() > 23, "{paths:?}");
        let below = paths.iter().map(|path| format!("/pin{path}"));
        let others = [
            "/web",
            "/web/",
            "/web/frame?key=bank",
            "/web/bank?id=00112233445566778899aabbccddeeff",
            "/web/other",
            "/web/other/set",
            "/web/no/such/route",
            "/pin/web/no/such/route",
            "/docs/no/such/file",
            "/no/such/route",
        ];
        let edges = [Documents::WebView, Documents::Docs].map(|documents| router(Arc::clone(&state), documents));
        let paths = paths.iter().cloned().chain(below).chain(others.map(str::to_owned));
        for (path, edge) in paths.flat_map(|path| edges.iter().map(move |edge| (path.clone(), edge))) {
            for method in [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::OPTIONS] {
                let request = Request::builder().method(&method).uri(&path).header("host", "edge");
                send(edge, request.body(Body::empty()).unwrap()).await;
                // No Host, and headers beyond their limit.
                let request = Request::builder().method(&method).uri(&path);
                assert_eq!(send(edge, request.body(Body::empty()).unwrap()).await.status(), 400, "{path}");
                let request = Request::builder().method(&method).uri(&path).header("x-long", "x".repeat(16_384));
                assert_eq!(send(edge, request.body(Body::empty()).unwrap()).await.status(), 431, "{path}");
            }
        }
    }

    #[tokio::test]
    async fn every_answer_to_a_page_has_its_security_headers() {
        let state = edge_state();
        let web_view = state.shared.settings.web_view.as_ref().unwrap();
        let control = PageControl { id: ControlId::random(), operation: PageOperation::SetPin, digits: [4, 12] };
        let session = PageSession::begin("bank", PageId::random(), control, Duration::from_secs(600));
        let cookie = web_view.sessions().set_cookie(&session, Placement::Frame).unwrap();
        let cookie = cookie.to_str().unwrap().split(';').next().unwrap().to_owned();
        let (page, form) = (json!({ "pageId": session.id.to_string() }), "application/x-www-form-urlencoded");
        let edge = router(Arc::clone(&state), Documents::WebView);
        let call = async |path: &str, content_type: &str, cookie: &str, body: &str| {
            let request =
                Request::post(path).header("host", "edge").header("origin", PUBLIC_URL).header("cookie", cookie);
            let request = request.header("content-type", content_type).body(Body::from(body.to_owned())).unwrap();
            send(&edge, request).await.status().as_u16()
        };
        let json = "application/json";
        assert_eq!(call("/web/bank/session", json, &cookie, &page.to_string()).await, 200);
        assert_eq!(call("/web/bank/session", json, "", &page.to_string()).await, 401);
        assert_eq!(call("/web/bank/session", json, "", "{}").await, 400);
        assert_eq!(call("/web/bank/session", json, "", &"x".repeat(20_000)).await, 413);
        let (control, page_id) = (ControlId::random().to_string(), PageId::random().to_string());
        let unknown = json!({ "controlId": control, "pageId": page_id }).to_string();
        // The session has four requests in progress or sixty a minute: the calls below are fewer.
        for path in ["/web/bank/tzpk", "/web/bank/set", "/web/bank/view"] {
            assert_eq!(call(path, json, "", &page.to_string()).await, 401, "{path}");
            assert_eq!(call(path, form, &cookie, &page.to_string()).await, 415, "{path}");
            assert_eq!(call(path, json, &cookie, &page.to_string()).await, 400, "{path}");
        }
        let block = json!({ "pageId": session.id.to_string(), "pinBlock": "gXOXEFVuFRg=" }).to_string();
        assert_eq!(call("/web/bank/set", json, &cookie, &block).await, 503);
        for body in [format!("controlId={}", ControlId::random()), "controlId=".to_owned()] {
            assert_eq!(call("/web/bank", form, "", &body).await, 303, "{body}");
        }
        let held: Vec<_> = (0..4)
            .map(|_| {
                state.shared.admission.admit_page("bank", &state.shared.clients.current()[0], &[session.control.id])
            })
            .collect();
        assert!(held.iter().all(Result::is_ok));
        assert_eq!(call("/web/bank/set", json, &cookie, &block).await, 429);
        assert_eq!(call("/web/bank/session", json, "", &unknown).await, 503);
    }

    #[tokio::test]
    async fn a_panic_is_answered_with_the_headers_of_its_path() {
        async fn panics() -> StatusCode {
            panic!("a test")
        }
        let routes = Router::new().route("/web/panic", get(panics)).route("/docs/panic", get(panics));
        let edge = layered(routes, edge_state());
        for path in ["/web/panic", "/docs/panic"] {
            let request = Request::get(path).header("host", "edge").body(Body::empty()).unwrap();
            assert_eq!(send(&edge, request).await.status(), 500);
        }
    }

    #[test]
    fn an_audit_user_is_decoded_exactly_as_sent() {
        for (query, value) in [
            ("auditUser=it", "it"),
            ("zpkIndex=0&auditUser=%C3%A5sa+b%c3%a4ck", "\u{e5}sa b\u{e4}ck"),
            ("audit%55ser=a%2Bb", "a+b"),
            ("auditUser=100%25%zz%4", "100%%zz%4"),
            ("auditUser=%ef%bf%bd", "\u{fffd}"),
            ("auditUser=a+web-view", "a web-view"),
        ] {
            assert_eq!(audit_user(Some(query)), Ok(value.to_owned()), "{query}");
        }
    }

    #[test]
    fn a_missing_repeated_long_or_malformed_audit_user_is_rejected() {
        let long = format!("auditUser={}", "x".repeat(129));
        let wrong =
            ["", "auditUser", "auditUser=", "auditUser=a&auditUser=b", "auditUser=%ff", "auditUser=a%00", &long];
        assert_eq!(audit_user(None), Err(ApiError::AUDIT_USER_INVALID));
        for query in wrong {
            assert_eq!(audit_user(Some(query)), Err(ApiError::AUDIT_USER_INVALID), "{query}");
        }
    }

    #[test]
    fn no_client_names_the_audit_user_of_a_page() {
        let page = format!("auditUser={AUDIT_USER_BASE}/bank");
        let others =
            ["web-view", "%77eb-view%2Fbank", "web-viewer", "Web-View/bank", "+web-view/bank", "%C2%A0WEB-VIEW"];
        for query in others.map(|user| format!("auditUser={user}")).iter().chain([&page]) {
            assert_eq!(audit_user(Some(query)), Err(Mistake::AuditUserOfPage.into()), "{query}");
        }
    }
}
