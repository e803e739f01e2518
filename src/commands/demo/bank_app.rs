//! The sample site of the demo: a bank's back-end, and its page with the frame and the phone window of the web view. The site has
//! another origin than the edge, and the token of the edge's client stays in its back-end.

use std::{io, net::SocketAddr, sync::Arc};

use super::bind_after;
use axum::{
    Json, Router,
    extract::{Request, State},
    http::{
        HeaderMap, StatusCode,
        header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, ORIGIN, X_CONTENT_TYPE_OPTIONS},
    },
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use device::client::{Backend, Scope};
use serde_json::json;
use tokio::{net::TcpListener, task::JoinHandle};

/// The key of the demo's page.
pub(super) const PAGE_KEY: &str = "demo";

const PAGE: &str = include_str!("bank_app/index.html");
const SCRIPT: &str = include_str!("bank_app/app.js");
const STYLE: &str = include_str!("bank_app/app.css");

/// A bound listener of the site, before the edge runs: the configuration of the edge names the origin of the site.
pub(super) struct BankAppListener(TcpListener);

/// The running site; it ends when dropped.
pub(super) struct BankApp {
    serving: JoinHandle<()>,
}

struct Site {
    backend: Backend,
    plastic_id: &'static str,
    port: u16,
    policy: String,
    page: String,
}

impl BankAppListener {
    /// Binds the address; without one, the port after the edge's, or a free one.
    ///
    /// # Errors
    /// The address is not on this machine, or can't be bound.
    pub(super) async fn bind(address: Option<SocketAddr>, edge: SocketAddr) -> io::Result<Self> {
        if address.is_some_and(|address| !address.ip().is_loopback()) {
            let problem = "the sample site opens controls without a login: choose a loopback address";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        Ok(Self(bind_after(edge, 1, address).await?))
    }

    /// The origin of the site, which the browser's address bar has. The edge has an IP address, so that browsers treat the two
    /// as sites of different owners, as in production.
    ///
    /// # Errors
    /// The operating system does not name the address.
    pub(super) fn origin(&self) -> io::Result<String> {
        Ok(format!("http://localhost:{}", self.0.local_addr()?.port()))
    }

    /// Serves the site for a card, through this back-end and the page of the edge at this URL.
    ///
    /// # Errors
    /// The operating system does not name the address.
    pub(super) fn serve(
        self,
        backend: Backend,
        edge_url: &str,
        plastic_id: &'static str,
        masked: &str,
    ) -> io::Result<BankApp> {
        let policy = format!(
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-src {edge_url}; \
             form-action {edge_url}; base-uri 'none'; frame-ancestors 'none'"
        );
        let page = PAGE.replace("{{edge}}", edge_url).replace("{{key}}", PAGE_KEY).replace("{{card}}", masked);
        let site = Arc::new(Site { backend, plastic_id, port: self.0.local_addr()?.port(), policy, page });
        let router = Router::new()
            .route("/", get(async |State(site): State<Arc<Site>>| file("text/html; charset=utf-8", site.page.clone())))
            .route("/app.js", get(async || file("text/javascript; charset=utf-8", SCRIPT)))
            .route("/app.css", get(async || file("text/css; charset=utf-8", STYLE)))
            .route("/controls", post(open_control))
            .layer(from_fn_with_state(Arc::clone(&site), guard))
            .with_state(site);
        let serving = tokio::spawn(async move {
            if let Err(error) = axum::serve(self.0, router).await {
                tracing::warn!(%error, "the sample site ended");
            }
        });
        Ok(BankApp { serving })
    }
}

impl Drop for BankApp {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn file(content_type: &'static str, content: impl IntoResponse) -> Response {
    ([(CONTENT_TYPE, content_type), (CACHE_CONTROL, "no-store"), (X_CONTENT_TYPE_OPTIONS, "nosniff")], content)
        .into_response()
}

/// Serves the browsers of this machine alone: another site can neither name this one by its own DNS name nor open controls.
async fn guard(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    let own = format!("localhost:{}", site.port);
    if request.headers().get(HOST).is_none_or(|host| host != own.as_str()) {
        return (StatusCode::FORBIDDEN, "open the address that the demo printed\n").into_response();
    }
    let mut answer = next.run(request).await;
    if let Ok(policy) = site.policy.parse() {
        answer.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    }
    answer
}

/// `POST /controls` with the operation as the body. A back-end of a bank authenticates its customer first.
async fn open_control(State(site): State<Arc<Site>>, headers: HeaderMap, operation: String) -> Response {
    let own = format!("http://localhost:{}", site.port);
    let scope = match operation.as_str() {
        "set-pin" => Scope::SetPin,
        "view-pin" => Scope::ViewPin,
        _ => return StatusCode::BAD_REQUEST.into_response(),
    };
    if headers.get(ORIGIN).is_none_or(|origin| origin != own.as_str()) {
        return StatusCode::FORBIDDEN.into_response();
    }
    let opened = tokio::task::spawn_blocking(move || site.backend.open_control(site.plastic_id, scope)).await;
    match opened {
        Ok(Ok((control_id, exchange))) => {
            let url = |member: &str| exchange.response.get(member).cloned().unwrap_or_default();
            let control =
                json!({ "controlId": control_id, "pinURL": url("pinURL"), "pinFrameURL": url("pinFrameURL") });
            ([(CACHE_CONTROL, "no-store")], Json(control)).into_response()
        }
        Ok(Err(error)) => {
            tracing::warn!(%error, "the edge opened no control for the sample site");
            StatusCode::BAD_GATEWAY.into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
