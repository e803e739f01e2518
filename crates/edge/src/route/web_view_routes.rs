//! The routes of the web view: the documents, the exchange of a controlId for a page session, and the calls of a page.

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, Request, State, rejection::PathRejection},
    http::{
        HeaderMap, HeaderValue, Response, StatusCode,
        header::{CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, ORIGIN, RETRY_AFTER, SET_COOKIE},
        request::Parts,
    },
    response::IntoResponse,
    routing::{get, post},
};
use flate2::Compression;
use tokio::time::timeout;

use super::{AnswerBody, ApiRequest, EdgeState, RequestLog, logged_control, network_of, query_value};
use crate::{
    api_error::{ApiError, ErrorProfile, Rejection},
    auth::Client,
    body::{self, PageCall, PageStarted},
    http_rules::{check_body_type, check_form_type},
    metrics::Limit,
    mistake::Mistake,
    security_headers::{RESOURCE_POLICY, page_policy},
    web_view::{
        BuiltFile, ICON, ICON_PATH, Page, PageControl, PageOperation, PageSession, PageState, Placement, SCRIPT_PATH,
        STYLE_PATH, UNAVAILABLE_STATE, WebView, accepts_gzip, gzip,
    },
};
use domain::{
    card::Tenant,
    control::{ControlId, PageId, RETRY_GRACE},
    request_id::RequestId,
};

/// The auditUser of a page's calls is `web-view/KEY`. The audit chain knows these calls by it, so no other user begins so.
pub(super) const AUDIT_USER_BASE: &str = "web-view";
/// The longest body of an exchange without a cookie, in bytes: a stranger can send one.
const EXCHANGE_BODY_BYTES_MAX: usize = 1_024;
/// The seconds after which a cardholder whose exchange could not be served may start again, where the error has no others, and
/// the most of them.
const UNAVAILABLE_RETRY_SECONDS: u32 = 5;
const UNAVAILABLE_RETRY_SECONDS_MAX: u32 = 60;
/// An image that is opened as a document: it runs no script and sends no request.
const IMAGE_CONTENT: &str = "default-src 'none'; sandbox; frame-ancestors 'none'";

/// The routes of the web view. A document and a file need no credentials, so they have no line in the log.
pub(super) fn routes() -> Router<Arc<EdgeState>> {
    Router::new()
        .route(SCRIPT_PATH, get(script))
        .route(STYLE_PATH, get(style))
        .route(ICON_PATH, get(async || image("image/svg+xml", ICON.into())))
        .route("/web/frame", get(frame))
        .route("/web/{page}", get(phone).post(open_phone))
        .route("/web/{page}/session", post(start_session))
        .route("/web/{page}/tzpk", post(issue_tzpk))
        .route("/web/{page}/set", post(set_pin))
        .route("/web/{page}/view", post(view_pin))
        .route("/web/{page}/style.css", get(page_style))
        .route("/web/{page}/logo", get(logo))
}

/// The key of a page in a path.
type PageKey = Result<Path<String>, PathRejection>;

async fn script(State(edge): State<Arc<EdgeState>>, headers: HeaderMap) -> Response<Body> {
    edge.web_view().map_or_else(not_found, |web_view| built(&web_view.script, &headers))
}

async fn style(State(edge): State<Arc<EdgeState>>, headers: HeaderMap) -> Response<Body> {
    edge.web_view().map_or_else(not_found, |web_view| built(&web_view.style, &headers))
}

/// `GET /web/frame?key=`: the document of a frame, which waits for the controlId of its parent.
async fn frame(State(edge): State<Arc<EdgeState>>, request: Request) -> Response<Body> {
    let key = query_value(request.uri().query(), "key").ok().flatten();
    let page = key.and_then(|key| edge.page(&key)).filter(|(_, page)| page.is_framed());
    let Some((web_view, page)) = page else { return edge.refuse(ApiError::PAGE_UNKNOWN, request).await };
    document(web_view, page, Placement::Frame, &PageState::Waiting, request.headers())
}

/// `POST /web/{page}`: exchanges the controlId of a form, and redirects to the document: with a session, or in the state
/// `unavailable` or `expired` if the exchange failed. A request by a script of another site is refused before it counts: it
/// could use up the failed exchanges of its visitor's network.
async fn open_phone(State(edge): State<Arc<EdgeState>>, key: PageKey, request: Request) -> Response<Body> {
    let Some((web_view, page)) = edge.page_of(key) else {
        return edge.refuse(ApiError::PAGE_UNKNOWN, request).await;
    };
    if !is_navigation(request.headers()) {
        return edge.refuse(ApiError::ORIGIN_FORBIDDEN, request).await;
    }
    let (parts, mut body) = request.into_parts();
    let mut log = RequestLog::begin("web", &parts);
    let redirect = |state| (StatusCode::SEE_OTHER, [(LOCATION, web_view.location(page, &state))]).into_response();
    match edge.exchange(&mut log, (web_view, page), Placement::Phone, &parts, &mut body).await {
        Ok((session, cookie)) => {
            log.served(StatusCode::SEE_OTHER);
            let mut answer = redirect(PageState::Opened(session.id));
            answer.headers_mut().extend(cookie.map(|cookie| (SET_COOKIE, cookie)));
            answer
        }
        Err(rejection) => {
            let error = rejection.error;
            edge.conclude_refused(ErrorProfile::Full, log, &parts, body, rejection).await;
            let may_help = error.is_server_error() || error.is_limit() || error == ApiError::BODY_TIMEOUT;
            let retry_seconds = retry_seconds(error.retry_after_seconds());
            redirect(if may_help { PageState::Unavailable { retry_seconds } } else { PageState::Expired })
        }
    }
}

/// `GET /web/{page}?id=`: the document of an app's web view. The navigation does not carry the cookie, because another site began
/// it; the page then reads its session. `?state=unavailable&retry=SECONDS`: 503, `Retry-After`, and the document in this state.
/// Else 404, and the document in the state `expired`.
async fn phone(State(edge): State<Arc<EdgeState>>, key: PageKey, request: Request) -> Response<Body> {
    let Some((web_view, page)) = edge.page_of(key) else {
        return edge.refuse(ApiError::PAGE_UNKNOWN, request).await;
    };
    let value = |name| query_value(request.uri().query(), name).ok().flatten();
    let (status, state) = match value("id").and_then(|id| PageId::parse(&id).ok()) {
        Some(id) => (StatusCode::OK, PageState::Opened(id)),
        None if value("state").as_deref() == Some(UNAVAILABLE_STATE) => {
            let retry = value("retry").and_then(|seconds| seconds.parse().ok());
            (StatusCode::SERVICE_UNAVAILABLE, PageState::Unavailable { retry_seconds: retry_seconds(retry) })
        }
        None => (StatusCode::NOT_FOUND, PageState::Expired),
    };
    let mut answer = document(web_view, page, Placement::Phone, &state, request.headers());
    *answer.status_mut() = status;
    if let PageState::Unavailable { retry_seconds } = state {
        answer.headers_mut().insert(RETRY_AFTER, retry_seconds.into());
    }
    answer
}

/// `POST /web/{page}/session`: exchanges the controlId that the parent of a frame sent and the pageId that the frame chose, or
/// reads the session of a pageId that a form POST made. A frame that lost the answer repeats the exchange with the same pageId.
async fn start_session(State(edge): State<Arc<EdgeState>>, key: PageKey, request: Request) -> Response<Body> {
    let Some((web_view, page)) = edge.page_of(key) else {
        return edge.refuse(ApiError::PAGE_UNKNOWN, request).await;
    };
    let (parts, mut body) = request.into_parts();
    let mut log = RequestLog::begin("web/session", &parts);
    let started = match check_own_origin(web_view, &parts.headers) {
        Ok(()) => edge.exchange(&mut log, (web_view, page), Placement::Frame, &parts, &mut body).await,
        Err(error) => Err(error.into()),
    };
    let (outcome, cookie) = match started {
        Ok((session, cookie)) => (Ok((StatusCode::OK, PageStarted::from(&session))), cookie),
        Err(rejection) => (Err(rejection), None),
    };
    let mut answer = edge.conclude(ErrorProfile::Full, log, &parts, body, outcome).await;
    answer.headers_mut().extend(cookie.map(|cookie| (SET_COOKIE, cookie)));
    answer
}

/// `POST /web/{page}/tzpk`.
async fn issue_tzpk(State(edge): State<Arc<EdgeState>>, key: PageKey, request: Request) -> Response<Body> {
    let work = async |request| edge.issue_tzpk(request).await;
    edge.answer_page("web/tzpk", key, Duration::ZERO, request, work).await
}

/// `POST /web/{page}/set`. The session lasts as long as the engine confirms a retry of the same block.
async fn set_pin(State(edge): State<Arc<EdgeState>>, key: PageKey, request: Request) -> Response<Body> {
    edge.answer_page("web/set", key, RETRY_GRACE, request, async |request| edge.set_pin(request).await).await
}

/// `POST /web/{page}/view`.
async fn view_pin(State(edge): State<Arc<EdgeState>>, key: PageKey, request: Request) -> Response<Body> {
    let work = async |request| edge.view_pin(request).await;
    edge.answer_page("web/view", key, Duration::ZERO, request, work).await
}

/// `GET /web/{page}/style.css`.
async fn page_style(State(edge): State<Arc<EdgeState>>, key: PageKey, request: Request) -> Response<Body> {
    match edge.page_of(key) {
        Some((_, page)) => ([(CONTENT_TYPE, "text/css; charset=utf-8")], page.style.css.to_string()).into_response(),
        None => edge.refuse(ApiError::PAGE_UNKNOWN, request).await,
    }
}

/// `GET /web/{page}/logo`.
async fn logo(State(edge): State<Arc<EdgeState>>, key: PageKey, request: Request) -> Response<Body> {
    match edge.page_of(key).and_then(|(_, page)| page.logo.as_ref()) {
        Some(logo) => image(logo.content_type, logo.bytes.to_vec()),
        None => edge.refuse(ApiError::PAGE_UNKNOWN, request).await,
    }
}

impl EdgeState {
    fn web_view(&self) -> Option<&WebView> {
        self.shared.settings.web_view.as_ref()
    }

    fn page(&self, key: &str) -> Option<(&WebView, &Page)> {
        let web_view = self.web_view()?;
        Some((web_view, web_view.page(key)?))
    }

    fn page_of(&self, key: PageKey) -> Option<(&WebView, &Page)> {
        self.page(&key.ok()?)
    }

    /// Exchanges the controlId in the body for a page session, or reads the session that a form POST made. Returns the session
    /// and the cookie of an exchange.
    async fn exchange<'a>(
        self: &Arc<Self>,
        log: &mut RequestLog<'a>,
        (web_view, page): (&WebView, &'a Page),
        placement: Placement,
        parts: &Parts,
        body: &mut Body,
    ) -> Result<(PageSession, Option<HeaderValue>), Rejection> {
        let work = async {
            let clients = self.shared.clients.current();
            let client = client_of(&clients, page)?;
            let body = self.read_start(web_view, page, client, placement, parts, body).await?;
            let (control_id, started_by, session_id) = match PageStart::parse(placement, &body)? {
                PageStart::Read { session } => {
                    let session = find_session(web_view, page, &parts.headers, &session, Duration::ZERO)?;
                    log.client = Some(page.client());
                    log.control = Some(logged_control(&session.control.id.to_string()));
                    return Ok((session, None));
                }
                PageStart::Exchange { control_id, started_by, session } => (control_id, started_by, session),
            };
            log.control = Some(logged_control(&control_id));
            let id = ControlId::parse(&control_id).map_err(|_| ApiError::CONTROL_ID_INVALID)?;
            let request = proto::StartPageRequest {
                tenant: client.tenant().as_str().to_owned(),
                audit_user: audit_user(page),
                control_id,
                page_client: page.client().to_owned(),
                page_id: started_by.as_bytes().to_vec(),
            };
            let of_page = (page.key().into(), client.tenant(), network_of(parts));
            let call = Arc::clone(self).start_page(of_page, id, log.id, request);
            // A task: a browser that disconnects, as a page does after its timeout, must not hide whether its exchange failed.
            let started = tokio::spawn(call).await.map_err(|_| ApiError::UNEXPECTED)??;
            log.client = Some(page.client());
            let (control, remaining) = page_control(id, &started)?;
            let session = PageSession::begin(page.key(), session_id, control, remaining);
            let cookie = web_view.sessions().set_cookie(&session, placement).map_err(|_| ApiError::UNEXPECTED)?;
            Ok((session, Some(cookie)))
        };
        timeout(self.shared.settings.request_timeout, work).await.unwrap_or_else(|_| Err(self.engine_timeout()))
    }

    /// Checks the type of a request that starts a page, and reads its body.
    async fn read_start(
        &self,
        web_view: &WebView,
        page: &Page,
        client: &Client,
        placement: Placement,
        parts: &Parts,
        body: &mut Body,
    ) -> Result<Bytes, ApiError> {
        match placement {
            Placement::Phone => check_form_type(&parts.headers)?,
            Placement::Frame => check_body_type(&parts.headers)?,
        }
        let controls = controls_of(web_view, page, &parts.headers);
        if controls.is_empty() {
            // The credential is in the body, so a stranger can send one: it takes no place of the page.
            let _place = self.shared.admission.admit_exchange_body(network_of(parts))?;
            self.read_body(body, EXCHANGE_BODY_BYTES_MAX).await
        } else {
            let _place = self.shared.admission.admit_page(page.key(), client, &controls)?;
            self.read_body(body, self.shared.settings.body_bytes_max).await
        }
    }

    /// Starts the page with this key by a call of the engine, within the limits on exchanges.
    async fn start_page(
        self: Arc<Self>,
        (page, tenant, network): (Box<str>, Tenant, IpAddr),
        control: ControlId,
        id: RequestId,
        request: proto::StartPageRequest,
    ) -> Result<proto::StartPageResponse, Rejection> {
        let begun = self.shared.exchanges.begin(&page, network);
        let exchange = begun.inspect_err(|_| self.shared.refused.count(Limit::Exchanges))?;
        let _place = self.shared.admission.admit_exchange(&page, tenant, control)?;
        let Ok(answer) = timeout(self.shared.settings.request_timeout, self.call(id, request)).await else {
            return Err(self.engine_timeout());
        };
        let started = answer.map_err(Rejection::from);
        // An engine that is away, or a limit, must not use up the exchanges of a network.
        let is_guess =
            |refused: &Rejection| [ApiError::CONTROL_NOT_USABLE, ApiError::TENANT_MISMATCH].contains(&refused.error);
        if started.as_ref().is_err_and(is_guess) {
            exchange.fail();
        }
        started
    }

    /// Finds the session of a page's call, reads the request, runs `work` within the request timeout, and answers. The session
    /// is accepted until `grace` after the end of its control.
    async fn answer_page<T: AnswerBody>(
        &self,
        route: &'static str,
        key: PageKey,
        grace: Duration,
        request: Request,
        work: impl AsyncFnOnce(ApiRequest) -> Result<(StatusCode, T), Rejection>,
    ) -> Response<Body> {
        let Some((web_view, page)) = self.page_of(key) else {
            return self.refuse(ApiError::PAGE_UNKNOWN, request).await;
        };
        let (parts, mut body) = request.into_parts();
        let mut log = RequestLog::begin(route, &parts);
        let outcome = timeout(self.shared.settings.request_timeout, async {
            check_own_origin(web_view, &parts.headers)?;
            // The sealed cookie is the credential: only with one does the request take a place of the page.
            let controls = controls_of(web_view, page, &parts.headers);
            if controls.is_empty() {
                return Err(ApiError::PAGE_SESSION_INVALID.into());
            }
            log.client = Some(page.client());
            let clients = self.shared.clients.current();
            let client = client_of(&clients, page)?;
            let _place = self.shared.admission.admit_page(page.key(), client, &controls)?;
            check_body_type(&parts.headers)?;
            let body = self.read_body(&mut body, self.shared.settings.body_bytes_max).await?;
            let id = body::parse::<PageCall>(&body)?.page_id.text("pageId")?;
            let session = find_session(web_view, page, &parts.headers, &id, grace)?;
            let control_id = session.control.id.to_string();
            log.control = Some(logged_control(&control_id));
            let of_client = ApiRequest::of(client, log.id, audit_user(page));
            // A browser decrypts MGF1-SHA-256, whatever the client's own devices decrypt.
            let of_page = ApiRequest { oaep_mgf1: Ok(proto::OaepMgf1::Sha256), wants_kcv: false, ..of_client };
            work(ApiRequest { body, page_control: Some(control_id), ..of_page }).await
        })
        .await
        .unwrap_or_else(|_| Err(self.engine_timeout()));
        // The connection stays one without an authenticated request: a cardholder's may not stay while a client's finds no place.
        self.conclude(ErrorProfile::Full, log, &parts, body, outcome).await
    }
}

/// The body of a request that starts a page.
enum PageStart {
    /// Reads a session that a form POST made.
    Read {
        /// The pageId of the session, as sent.
        session: String,
    },
    /// Exchanges a control for a session.
    Exchange {
        /// The controlId, as sent.
        control_id: String,
        /// The pageId by which the engine recognises a repeat of the exchange.
        started_by: PageId,
        /// The pageId of the session.
        session: PageId,
    },
}

impl PageStart {
    fn parse(placement: Placement, body: &[u8]) -> Result<Self, ApiError> {
        if placement == Placement::Phone {
            // A form POST works once: another pageId starts the page than the one in its address, which is not secret.
            let (started_by, session) = (PageId::random(), PageId::random());
            return Ok(Self::Exchange { control_id: form_control_id(body)?, started_by, session });
        }
        let call: PageCall = body::parse(body)?;
        let Some(control_id) = call.control_id.optional_text("controlId")? else {
            return Ok(Self::Read { session: call.page_id.text("pageId")? });
        };
        let session = body::page_id(call.page_id)?;
        Ok(Self::Exchange { control_id, started_by: session, session })
    }
}

/// The control of a page that the engine started, and the time to its end.
fn page_control(id: ControlId, started: &proto::StartPageResponse) -> Result<(PageControl, Duration), ApiError> {
    let operation = match started.scope() {
        proto::Scope::SetPin => PageOperation::SetPin,
        proto::Scope::ViewPin => PageOperation::ViewPin,
        proto::Scope::Unspecified => return Err(ApiError::UNEXPECTED),
    };
    let remaining = started.remaining_duration.and_then(|left| left.try_into().ok()).unwrap_or_default();
    let digits =
        [started.min_digit_count, started.max_digit_count].map(|digits| u8::try_from(digits).unwrap_or(u8::MAX));
    Ok((PageControl { id, operation, digits }, remaining))
}

/// The auditUser of a page's calls.
fn audit_user(page: &Page) -> String {
    format!("{AUDIT_USER_BASE}/{}", page.key())
}

/// The client of a page. A reload may have removed it, and then the page is unknown.
fn client_of<'a>(clients: &'a [Client], page: &Page) -> Result<&'a Client, ApiError> {
    clients.iter().find(|client| client.name() == page.client()).ok_or(ApiError::PAGE_UNKNOWN)
}

/// The controls of the page's sessions among the cookies of a request.
fn controls_of(web_view: &WebView, page: &Page, headers: &HeaderMap) -> Vec<ControlId> {
    web_view.sessions().all(headers, page.key()).map(|session| session.control.id).collect()
}

/// The session with this id among the cookies of a page's call, until `grace` after the end of its control.
fn find_session(
    web_view: &WebView,
    page: &Page,
    headers: &HeaderMap,
    id: &str,
    grace: Duration,
) -> Result<PageSession, ApiError> {
    let session = PageId::parse(id).ok().and_then(|id| web_view.sessions().find(headers, page.key(), id));
    let is_over = |session: &PageSession| clock::now() >= session.expires_at.after(grace);
    session.filter(|session| !is_over(session)).ok_or(ApiError::PAGE_SESSION_INVALID)
}

/// Checks that a call comes from a page of this web view: a browser sets both headers, and no script can change them.
fn check_own_origin(web_view: &WebView, headers: &HeaderMap) -> Result<(), ApiError> {
    let mut origins = headers.get_all(ORIGIN).iter();
    let is_own = origins.next().is_some_and(|origin| web_view.is_own_origin(origin.as_bytes()));
    let is_same_origin = headers.get_all("sec-fetch-site").iter().all(|site| site == "same-origin");
    if is_own && is_same_origin && origins.next().is_none() { Ok(()) } else { Err(ApiError::ORIGIN_FORBIDDEN) }
}

/// The seconds that a document in the state `unavailable` asks the cardholder to wait.
fn retry_seconds(asked: Option<u32>) -> u32 {
    asked
        .filter(|seconds| *seconds > 0)
        .map_or(UNAVAILABLE_RETRY_SECONDS, |seconds| seconds.min(UNAVAILABLE_RETRY_SECONDS_MAX))
}

/// Whether a browser navigates a window by this request, where the browser says so (Fetch Metadata).
fn is_navigation(headers: &HeaderMap) -> bool {
    let only = |name: &str, value: &str| headers.get_all(name).iter().all(|found| found == value);
    only("sec-fetch-mode", "navigate") && only("sec-fetch-dest", "document")
}

/// The controlId of a form.
fn form_control_id(body: &[u8]) -> Result<String, ApiError> {
    let form = std::str::from_utf8(body).map_err(|_| Mistake::BodyNotForm)?;
    let control_id = query_value(Some(form), "controlId").map_err(|_| Mistake::FormControlId)?;
    control_id.ok_or_else(|| Mistake::FormControlId.into())
}

fn image(content_type: &'static str, bytes: Vec<u8>) -> Response<Body> {
    ([(CONTENT_TYPE, content_type), (CONTENT_SECURITY_POLICY, IMAGE_CONTENT)], bytes).into_response()
}

/// A file of the page, compressed for a client that accepts it.
fn built(file: &BuiltFile, headers: &HeaderMap) -> Response<Body> {
    let mut answer = if accepts_gzip(headers) {
        ([(CONTENT_ENCODING, "gzip")], file.gzip.to_vec()).into_response()
    } else {
        file.plain.into_response()
    };
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(file.content_type));
    answer
}

/// The document of a page. A frame's parent of another origin may load it.
fn document(
    web_view: &WebView,
    page: &Page,
    placement: Placement,
    state: &PageState,
    headers: &HeaderMap,
) -> Response<Body> {
    let html = web_view.document(page, placement, state, headers);
    let mut answer = if accepts_gzip(headers) {
        ([(CONTENT_ENCODING, "gzip")], gzip(html.as_bytes(), Compression::fast())).into_response()
    } else {
        html.into_response()
    };
    let answered = answer.headers_mut();
    answered.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    let policy = match placement {
        Placement::Phone => page_policy(""),
        Placement::Frame => {
            answered.insert(RESOURCE_POLICY, HeaderValue::from_static("cross-origin"));
            page_policy(&page.origins())
        }
    };
    answered.insert(CONTENT_SECURITY_POLICY, policy);
    answer
}

fn not_found() -> Response<Body> {
    StatusCode::NOT_FOUND.into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_has_one_control_id() {
        const ID: &str = "0b5cfc7d-4b1e-4a37-8a5c-9d2f4f6b8a10";
        let read = |form: &str| form_control_id(form.as_bytes());
        assert_eq!(read(&format!("controlId={ID}")), Ok(ID.to_owned()));
        assert_eq!(read(&format!("lang=fi&controlId={}", ID.replace('-', "%2D"))), Ok(ID.to_owned()));
        for wrong in ["", "controlId", &format!("controlId={ID}&controlId={ID}"), "controlId=%ff"] {
            assert_ne!(read(wrong).ok().as_deref(), Some(ID), "{wrong}");
        }
        assert_eq!(form_control_id(&[0xff]), Err(Mistake::BodyNotForm.into()));
    }
}
