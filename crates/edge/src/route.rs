//! The routes: read the request, ask the engine, write the answer. Who calls is judged before anything else.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{MatchedPath, Path, Request, State, rejection::PathRejection},
    http::{
        HeaderMap, HeaderValue, Method, Response, StatusCode,
        header::{CACHE_CONTROL, EXPECT},
    },
    response::IntoResponse,
    routing::{get, post},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use tokio::{sync::Semaphore, time::timeout};
use tower_http::{catch_panic::CatchPanicLayer, set_header::SetResponseHeaderLayer};
use uuid::Uuid;

use super::{
    EngineClient, Settings,
    auth::{Authenticated, Client, authenticate},
    body::{self, DeviceKeyRequest, PinControl, PinControlRequest, PinSet, Scope, SetPinRequest, ShownPin, Tzpk},
    fault::{Fault, FaultBody, Refused},
    page,
};
use domain::caller::AuditUser;
use domain::card::PlasticId;

/// How long a body may take to arrive, where half of the request's own time is not less: it holds one of the places.
const BODY_TIME_MAX: Duration = Duration::from_secs(3);
/// How long an answer given early waits for the rest of the body, and for how many times the largest body taken.
const REST_TIME_MAX: Duration = Duration::from_secs(1);
const REST_BODIES_MAX: usize = 4;
/// How long the engine may take to say whether it serves: less than a prober waits.
const READINESS_TIME_MAX: Duration = Duration::from_millis(800);
/// How much of a controlId may be logged: all of it opens a card for seconds.
const LOGGED_CONTROL_CHARACTERS: usize = 8;

/// All routes, below `/pin` and at the root.
pub(super) fn router(settings: Settings, engine: EngineClient) -> Router {
    let profile = settings.error_profile;
    let places = Semaphore::new(settings.requests_max);
    let edge = Arc::new(EdgeState { settings, engine, places });
    let api = Router::new()
        .route("/pincontrol/v2/plastic/{plastic_id}", post(open_control))
        .route("/v3/set/tzpk", post(issue_tzpk))
        .route("/v3/set", post(set_pin))
        .route("/v3/view", post(view_pin));
    Router::new()
        .merge(api.clone())
        .nest("/pin", api)
        .route("/openapi.json", get(page::contract))
        .route("/docs", get(page::serve))
        .route("/healthz", get(async || StatusCode::NO_CONTENT))
        .route("/readyz", get(ready))
        .fallback(async |edge: State<Arc<EdgeState>>, request: Request| {
            edge.refuse(Fault::ROUTE_UNKNOWN, request).await
        })
        .method_not_allowed_fallback(async |edge: State<Arc<EdgeState>>, request: Request| {
            edge.refuse(Fault::METHOD_NOT_ALLOWED, request).await
        })
        .layer(CatchPanicLayer::custom(move |_| {
            let id = Uuid::new_v4();
            // What panicked has told standard error where; what it was about may be in its words, so they are not here.
            tracing::warn!(%id, code = Fault::UNEXPECTED.code(), "a request panicked");
            Fault::UNEXPECTED.answer(profile, id)
        }))
        // Outermost: no cache keeps an answer, be it a control, a key, a block or an error (RFC 9111, section 5.2.2.5).
        .layer(SetResponseHeaderLayer::overriding(CACHE_CONTROL, HeaderValue::from_static("no-store")))
        .with_state(edge)
}

/// Whether requests would be served now: 204, or 503 while the engine or its token is away.
async fn ready(State(edge): State<Arc<EdgeState>>) -> StatusCode {
    match timeout(READINESS_TIME_MAX, edge.engine.serves()).await {
        Ok(true) => StatusCode::NO_CONTENT,
        Ok(false) | Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

struct EdgeState {
    settings: Settings,
    engine: EngineClient,
    places: Semaphore,
}

/// A request from a known client, read whole.
struct Asked {
    tenant: String,
    audit_user: String,
    body: Bytes,
}

/// Opens a control for a card and a purpose
///
/// The controlId in the answer is all a client needs to go on.
#[utoipa::path(
    post, path = "/pincontrol/v2/plastic/{plasticId}", operation_id = "openControl", tag = "PIN control",
    params(
        ("plasticId" = String, Path, description = "The card: 1 to 19 decimal digits.", pattern = "^[0-9]{1,19}$"),
        ("auditUser" = String, Query, description = "Who asks; logged, never trusted. Visible characters and spaces: no control, format, invisible, private-use or unassigned ones.", min_length = 1, max_length = 128),
    ),
    request_body = PinControlRequest,
    responses(
        (status = 201, description = "The control is open.", body = PinControl),
        (status = 400, description = "The request is malformed.", body = FaultBody),
        (status = 401, description = "The credentials are missing or wrong.", body = FaultBody),
        (status = 403, description = "The engine does not let this edge ask.", body = FaultBody),
        (status = 404, description = "The card is not registered, where only registered cards are served.", body = FaultBody),
        (status = 408, description = "The body did not arrive in time.", body = FaultBody),
        (status = 413, description = "The body is too large.", body = FaultBody),
        (status = 422, description = "The engine can't do this in the present state.", body = FaultBody),
        (status = 429, description = "Too many controls for this card within the hour.", body = FaultBody),
        (status = 500, description = "Something went wrong that should not.", body = FaultBody),
        (status = 503, description = "The engine, its store or its key boundary is away.", body = FaultBody),
    ),
    security(("bearer" = []), ("basic" = [])),
)]
async fn open_control(
    State(edge): State<Arc<EdgeState>>,
    plastic_id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Response<Body> {
    let work = async |asked: Asked| -> Result<_, Refused> {
        let plastic_id = plastic_id.ok().and_then(|Path(text)| PlasticId::parse(&text).ok());
        let plastic_id = plastic_id.ok_or(Fault::PLASTIC_ID_INVALID)?;
        let body: PinControlRequest = body::parse(&asked.body)?;
        let request = edge.timed(proto::OpenControlRequest {
            tenant: asked.tenant,
            audit_user: asked.audit_user,
            plastic_id: plastic_id.as_str().to_owned(),
            scope: Scope::parse(&body.scope)?.to_wire(),
            device_key_sha256: Vec::new(),
        });
        let opened = edge.engine.controls.clone().open_control(request).await?;
        Ok((StatusCode::CREATED, PinControl { id: opened.into_inner().control_id }))
    };
    edge.answer("pincontrol/v2/plastic", request, work).await
}

/// Issues a tzpk under a control
///
/// Fresh each time; the newest one wins.
#[utoipa::path(
    post, path = "/pin/v3/set/tzpk", operation_id = "issueTzpk", tag = "Set PIN",
    params(("auditUser" = String, Query, description = "Who asks; logged, never trusted. Visible characters and spaces: no control, format, invisible, private-use or unassigned ones.", min_length = 1, max_length = 128)),
    request_body = DeviceKeyRequest,
    responses(
        (status = 200, description = "A fresh tzpk, encrypted to the device's key.", body = Tzpk),
        (status = 400, description = "The request is malformed, or the device key is not one.", body = FaultBody),
        (status = 401, description = "The credentials are missing or wrong.", body = FaultBody),
        (status = 403, description = "The control is another tenant's, or for another purpose or device key.", body = FaultBody),
        (status = 404, description = "The control is unknown, expired or spent: one answer.", body = FaultBody),
        (status = 408, description = "The body did not arrive in time.", body = FaultBody),
        (status = 413, description = "The body is too large.", body = FaultBody),
        (status = 422, description = "The engine can't do this in the present state.", body = FaultBody),
        (status = 500, description = "Something went wrong that should not.", body = FaultBody),
        (status = 503, description = "The engine, its store or its key boundary is away.", body = FaultBody),
    ),
    security(("bearer" = []), ("basic" = [])),
)]
async fn issue_tzpk(State(edge): State<Arc<EdgeState>>, request: Request) -> Response<Body> {
    let work = async |asked: Asked| -> Result<_, Refused> {
        let body: DeviceKeyRequest = body::parse(&asked.body)?;
        let request = edge.timed(proto::IssueTzpkRequest {
            tenant: asked.tenant,
            audit_user: asked.audit_user,
            control_id: body::control_id(body.control_id)?,
            device_public_key: body::public_key(&body.public_key)?,
        });
        let issued = edge.engine.pins.clone().issue_tzpk(request).await?;
        Ok((StatusCode::OK, Tzpk { tzpk: body::base64(&issued.into_inner().encrypted_tzpk) }))
    };
    edge.answer("v3/set/tzpk", request, work).await
}

/// Sets a PIN
///
/// A control sets one PIN. The same block under the same control is answered 200 again while this PIN is still the
/// card's PIN, until five minutes after the control's expiry; any other block under a spent control is answered 404. A
/// new PIN closes the card's other open controls.
#[utoipa::path(
    post, path = "/pin/v3/set", operation_id = "setPin", tag = "Set PIN",
    params(("auditUser" = String, Query, description = "Who asks; logged, never trusted. Visible characters and spaces: no control, format, invisible, private-use or unassigned ones.", min_length = 1, max_length = 128)),
    request_body = SetPinRequest,
    responses(
        (status = 200, description = "The PIN is set, and on disk.", body = PinSet),
        (status = 400, description = "The request is malformed.", body = FaultBody),
        (status = 401, description = "The credentials are missing or wrong.", body = FaultBody),
        (status = 403, description = "The control is another tenant's, or for another purpose.", body = FaultBody),
        (status = 404, description = "The control is unknown, expired or spent: one answer.", body = FaultBody),
        (status = 408, description = "The body did not arrive in time.", body = FaultBody),
        (status = 413, description = "The body is too large.", body = FaultBody),
        (status = 422, description = "The block is not an ISO 9564 format 1 block under the tzpk (one answer, the control is spent), \
            or the PIN breaks the policy (the control is left usable three times), or no tzpk was issued.", body = FaultBody),
        (status = 500, description = "Something went wrong that should not.", body = FaultBody),
        (status = 503, description = "The engine, its store or its key boundary is away.", body = FaultBody),
    ),
    security(("bearer" = []), ("basic" = [])),
)]
async fn set_pin(State(edge): State<Arc<EdgeState>>, request: Request) -> Response<Body> {
    let work = async |asked: Asked| -> Result<_, Refused> {
        let body: SetPinRequest = body::parse(&asked.body)?;
        let request = edge.timed(proto::SetPinRequest {
            tenant: asked.tenant,
            audit_user: asked.audit_user,
            control_id: body::control_id(body.control_id)?,
            pin_block: body::pin_block(&body.pin_block)?,
        });
        edge.engine.pins.clone().set_pin(request).await?;
        Ok((StatusCode::OK, PinSet {}))
    };
    edge.answer("v3/set", request, work).await
}

/// Shows a PIN to its cardholder's device
///
/// Spends the control.
#[utoipa::path(
    post, path = "/pin/v3/view", operation_id = "viewPin", tag = "View PIN",
    params(("auditUser" = String, Query, description = "Who asks; logged, never trusted. Visible characters and spaces: no control, format, invisible, private-use or unassigned ones.", min_length = 1, max_length = 128)),
    request_body = DeviceKeyRequest,
    responses(
        (status = 200, description = "The PIN, under a fresh tzpk for the device.", body = ShownPin),
        (status = 400, description = "The request is malformed, or the device key is not one.", body = FaultBody),
        (status = 401, description = "The credentials are missing or wrong.", body = FaultBody),
        (status = 403, description = "The control is another tenant's, or for another purpose or device key.", body = FaultBody),
        (status = 404, description = "The control is unknown, expired or spent (one answer), or no PIN is set.", body = FaultBody),
        (status = 408, description = "The body did not arrive in time.", body = FaultBody),
        (status = 413, description = "The body is too large.", body = FaultBody),
        (status = 422, description = "The PIN is kept in a form that is not shown.", body = FaultBody),
        (status = 500, description = "Something went wrong that should not.", body = FaultBody),
        (status = 503, description = "The engine, its store or its key boundary is away.", body = FaultBody),
    ),
    security(("bearer" = []), ("basic" = [])),
)]
async fn view_pin(State(edge): State<Arc<EdgeState>>, request: Request) -> Response<Body> {
    let work = async |asked: Asked| -> Result<_, Refused> {
        let body: DeviceKeyRequest = body::parse(&asked.body)?;
        let request = edge.timed(proto::ViewPinRequest {
            tenant: asked.tenant,
            audit_user: asked.audit_user,
            control_id: body::control_id(body.control_id)?,
            device_public_key: body::public_key(&body.public_key)?,
        });
        let shown = edge.engine.pins.clone().view_pin(request).await?.into_inner();
        let shown = ShownPin { tzpk: body::base64(&shown.encrypted_tzpk), pin_block: body::base64(&shown.pin_block) };
        Ok((StatusCode::OK, shown))
    };
    edge.answer("v3/view", request, work).await
}

impl EdgeState {
    /// Judges who calls, reads the request, does the work within its time, and answers.
    async fn answer<T: Serialize>(
        &self,
        route: &'static str,
        request: Request,
        work: impl AsyncFnOnce(Asked) -> Result<(StatusCode, T), Refused>,
    ) -> Response<Body> {
        let (parts, mut body) = request.into_parts();
        let mut log = RequestLog::begin(route, &parts.method);
        let mut authenticated = false;
        let outcome = timeout(self.settings.request_timeout, async {
            let client = self.authenticate(&parts.headers)?;
            authenticated = true;
            log.client = Some(client.name());
            let _place = self.places.try_acquire().map_err(|_| Fault::BUSY)?;
            let asked = self.read(client, parts.uri.query(), &mut body).await?;
            log.audit_user = Some(asked.audit_user.clone());
            log.control = logged_control(&asked.body);
            work(asked).await
        })
        .await
        .unwrap_or_else(|_| Err(self.took_too_long()));
        let mut answer = match outcome {
            Ok((status, body)) => {
                log.served(status);
                (status, Json(body)).into_response()
            }
            Err(refused) => {
                let fault = refused.fault;
                let answer = self.refusal(log, refused);
                if fault != Fault::BODY_TIMEOUT {
                    self.read_off(&parts.headers, body).await;
                }
                answer
            }
        };
        if authenticated {
            answer.extensions_mut().insert(Authenticated);
        }
        answer
    }

    /// Answers what no route takes.
    async fn refuse(&self, fault: Fault, request: Request) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let route = parts.extensions.get::<MatchedPath>().map_or("-", MatchedPath::as_str);
        let answer = self.refusal(RequestLog::begin(route, &parts.method), fault.into());
        self.read_off(&parts.headers, body).await;
        answer
    }

    /// Reads on to the end of a body that nobody wants, so far and so long: over HTTP/2 libcurl loses an answer that
    /// comes before it has said everything, and over HTTP/1.1 the connection would not serve again.
    async fn read_off(&self, headers: &HeaderMap, body: Body) {
        // Who asks before it sends has sent nothing, and would be told to.
        if headers.contains_key(EXPECT) {
            return;
        }
        let mut rest = Limited::new(body, self.settings.body_bytes_max.saturating_mul(REST_BODIES_MAX));
        let read = async { while let Some(Ok(_)) = rest.frame().await {} };
        if timeout(REST_TIME_MAX, read).await.is_err() {
            tracing::debug!("the rest of a body did not arrive in time");
        }
    }

    fn refusal(&self, log: RequestLog<'_>, refused: Refused) -> Response<Body> {
        let answer = refused.fault.answer(self.settings.error_profile, log.id);
        log.refused(answer.status(), &refused);
        answer
    }

    fn took_too_long(&self) -> Refused {
        let cause = format!("no answer within {} ms", self.settings.request_timeout.as_millis());
        Refused { fault: Fault::ENGINE_UNAVAILABLE, cause: Some(cause) }
    }

    fn authenticate(&self, headers: &HeaderMap) -> Result<&Client, Fault> {
        authenticate(&self.settings.clients, headers).ok_or(Fault::UNAUTHENTICATED)
    }

    async fn read(&self, client: &Client, query: Option<&str>, body: &mut Body) -> Result<Asked, Fault> {
        let audit_user = audit_user(query).ok_or(Fault::AUDIT_USER_INVALID)?;
        let time = BODY_TIME_MAX.min(self.settings.request_timeout / 2);
        let read = Limited::new(body, self.settings.body_bytes_max).collect();
        let body = match timeout(time, read).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(Fault::BODY_TOO_LARGE),
            Ok(Err(_)) => return Err(Fault::BODY_MALFORMED),
            Err(_) => return Err(Fault::BODY_TIMEOUT),
        };
        Ok(Asked { tenant: client.tenant().as_str().to_owned(), audit_user, body })
    }

    /// A gRPC request that the engine need not go on with once the client has had its answer.
    fn timed<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(self.settings.request_timeout);
        request
    }
}

/// What the log says of a request: never its path, a body, or a whole controlId.
struct RequestLog<'a> {
    /// Also in the body of an error.
    id: Uuid,
    began: Instant,
    route: &'a str,
    method: &'a str,
    client: Option<&'a str>,
    audit_user: Option<String>,
    control: Option<String>,
}

/// One event of these fields, at a level.
macro_rules! tell {
    ($level:ident, $log:expr, $status:expr, $code:expr, $cause:expr, $message:literal) => {
        tracing::$level!(
            id = %$log.id,
            route = $log.route,
            method = $log.method,
            status = $status.as_u16(),
            code = $code,
            cause = $cause,
            client = $log.client.unwrap_or("-"),
            audit_user = $log.audit_user.as_deref().unwrap_or("-"),
            control = $log.control.as_deref().unwrap_or("-"),
            microseconds = u64::try_from($log.began.elapsed().as_micros()).unwrap_or(u64::MAX),
            $message
        )
    };
}

impl<'a> RequestLog<'a> {
    fn begin(route: &'a str, method: &'a Method) -> Self {
        let (id, began) = (Uuid::new_v4(), Instant::now());
        Self { id, began, route, method: logged_method(method), client: None, audit_user: None, control: None }
    }

    fn served(self, status: StatusCode) {
        tell!(debug, self, status, "OK", None::<&str>, "request");
    }

    /// At a level that is written unless told otherwise: the contract promises the id to whoever asks about an error.
    fn refused(self, status: StatusCode, refused: &Refused) {
        let (code, cause) = (refused.fault.code(), refused.cause.as_deref());
        if refused.fault.is_ours() {
            tell!(warn, self, status, code, cause, "a request failed");
        } else {
            tell!(info, self, status, code, cause, "a request was refused");
        }
    }
}

/// A method that has a name of its own; a client may make up any other.
fn logged_method(method: &Method) -> &str {
    match *method {
        Method::GET | Method::POST | Method::PUT | Method::DELETE | Method::HEAD | Method::OPTIONS | Method::PATCH => {
            method.as_str()
        }
        _ => "-",
    }
}

/// The value of `auditUser`, where it is there once and [`AuditUser`] allows it.
fn audit_user(query: Option<&str>) -> Option<String> {
    let pairs = query.unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let mut values = pairs.filter(|(name, _)| decoded(name).as_deref() == Some("auditUser")).map(|(_, value)| value);
    let value = values.next().filter(|_| values.next().is_none()).and_then(decoded)?;
    AuditUser::parse(&value).is_ok().then_some(value)
}

/// A form's text; none where it is no UTF-8: what stands in the audit chain is what was sent. A `%` that escapes nothing
/// stands for itself, as in any form.
fn decoded(text: &str) -> Option<String> {
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8().ok().map(Cow::into_owned)
}

/// The first characters of the body's controlId, where it has one.
fn logged_control(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Named {
        control_id: String,
    }
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return None;
    }
    let named: Named = serde_json::from_slice(body).ok()?;
    Some(named.control_id.chars().filter(char::is_ascii_graphic).take(LOGGED_CONTROL_CHARACTERS).collect())
}

/// The operations, for the contract.
#[derive(utoipa::OpenApi)]
#[openapi(paths(open_control, issue_tzpk, set_pin, view_pin))]
pub(super) struct Operations;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audit_user_is_what_was_sent() {
        for (query, value) in [
            ("auditUser=it", "it"),
            ("zpkIndex=0&auditUser=%C3%A5sa+b%c3%a4ck", "\u{e5}sa b\u{e4}ck"),
            ("audit%55ser=a%2Bb", "a+b"),
            ("auditUser=100%25%zz%4", "100%%zz%4"),
            ("auditUser=%ef%bf%bd", "\u{fffd}"),
        ] {
            assert_eq!(audit_user(Some(query)).as_deref(), Some(value), "{query}");
        }
    }

    #[test]
    fn an_audit_user_that_is_missing_double_long_or_no_text_is_none() {
        let long = format!("auditUser={}", "x".repeat(129));
        let wrong =
            ["", "auditUser", "auditUser=", "auditUser=a&auditUser=b", "auditUser=%ff", "auditUser=a%00", &long];
        assert!(audit_user(None).is_none());
        for query in wrong {
            assert!(audit_user(Some(query)).is_none(), "{query}");
        }
    }
}
