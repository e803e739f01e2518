//! The reviewed OpenAPI document and an HTML page that shows it, without any external script or style.

use axum::{http::header, response::IntoResponse};
use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};

/// The reviewed OpenAPI document; a test compares it with the routes.
const CONTRACT: &str = include_str!("../../../docs/openapi.json");
const PAGE: &str = include_str!("page/docs.html");

/// `GET /openapi.json`.
pub(super) async fn contract() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], CONTRACT)
}

/// `GET /docs`.
pub(super) async fn serve() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8".to_owned()),
        (header::CONTENT_SECURITY_POLICY, policy()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
    ];
    (headers, PAGE)
}

/// The Content-Security-Policy: only the script and style of this page, by hash, and requests to this server.
fn policy() -> String {
    format!(
        "default-src 'none'; connect-src 'self'; script-src {}; style-src {}; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'",
        hash_of("<script>", "</script>"),
        hash_of("<style>", "</style>")
    )
}

fn hash_of(from: &str, to: &str) -> String {
    let inner = PAGE.split_once(from).and_then(|(_, rest)| rest.split_once(to)).map_or("", |(inner, _)| inner);
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(inner)))
}
