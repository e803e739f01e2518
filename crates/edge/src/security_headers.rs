//! The security headers of every answer: strict ones that a route may replace by its own.

use axum::http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONTENT_SECURITY_POLICY, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, X_CONTENT_TYPE_OPTIONS},
};

const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const EMBEDDER_POLICY: HeaderName = HeaderName::from_static("cross-origin-embedder-policy");
/// Who may load the answer of a route.
pub(super) const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const PERMISSIONS_POLICY: HeaderName = HeaderName::from_static("permissions-policy");

/// An answer that is no document: nothing loads with it, and nothing frames it.
const NO_CONTENT: &str = "default-src 'none'; frame-ancestors 'none'";
/// Everything of the page is a file of the edge; no script makes markup of text.
const PAGE_CONTENT: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                            form-action 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'; \
                            frame-ancestors ";
/// A page needs no feature of the device. An empty list denies the feature to the page and to its frames.
const NO_PERMISSIONS: &str = "accelerometer=(), autoplay=(), browsing-topics=(), camera=(), \
                              clipboard-read=(), clipboard-write=(), display-capture=(), encrypted-media=(), \
                              fullscreen=(), gamepad=(), geolocation=(), gyroscope=(), hid=(), \
                              identity-credentials-get=(), idle-detection=(), local-fonts=(), magnetometer=(), \
                              microphone=(), midi=(), payment=(), picture-in-picture=(), \
                              publickey-credentials-create=(), publickey-credentials-get=(), screen-wake-lock=(), \
                              serial=(), storage-access=(), usb=(), window-management=(), \
                              xr-spatial-tracking=()";
/// A year.
const HTTPS_ALONE: &str = "max-age=31536000";

/// Adds the headers of every answer that lacks them.
pub(super) fn secure(headers: &mut HeaderMap) {
    add(headers, CONTENT_SECURITY_POLICY, NO_CONTENT);
    add(headers, X_CONTENT_TYPE_OPTIONS, "nosniff");
    add(headers, REFERRER_POLICY, "no-referrer");
}

/// Adds the headers of the web view's answers that lack them.
pub(super) fn secure_web_view(headers: &mut HeaderMap, is_https: bool) {
    add(headers, OPENER_POLICY, "same-origin");
    // A page loads from the edge alone, so a parent with this policy can frame the page.
    add(headers, EMBEDDER_POLICY, "require-corp");
    add(headers, RESOURCE_POLICY, "same-origin");
    add(headers, PERMISSIONS_POLICY, NO_PERMISSIONS);
    if is_https {
        add(headers, STRICT_TRANSPORT_SECURITY, HTTPS_ALONE);
    }
}

/// The Content-Security-Policy of a document that these origins may frame; none for no text.
pub(super) fn page_policy(origins: &str) -> HeaderValue {
    let ancestors = if origins.is_empty() { "'none'" } else { origins };
    HeaderValue::try_from(format!("{PAGE_CONTENT}{ancestors}")).unwrap_or(HeaderValue::from_static(NO_CONTENT))
}

fn add(headers: &mut HeaderMap, name: HeaderName, value: &'static str) {
    headers.entry(name).or_insert(HeaderValue::from_static(value));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_framed_by_its_origins_alone() {
        let ancestors = |origins: &str| page_policy(origins).to_str().unwrap().rsplit("; ").next().unwrap().to_owned();
        assert_eq!(ancestors(""), "frame-ancestors 'none'");
        assert_eq!(
            ancestors("https://a.example https://b.example"),
            "frame-ancestors https://a.example https://b.example"
        );
    }

    #[test]
    fn a_header_of_a_route_stays() {
        let mut headers = HeaderMap::from_iter([(CONTENT_SECURITY_POLICY, page_policy("https://a.example"))]);
        secure(&mut headers);
        secure_web_view(&mut headers, true);
        assert_eq!(headers[CONTENT_SECURITY_POLICY], page_policy("https://a.example"));
        assert_eq!(headers.len(), 8);
        assert!(headers.values().all(|value| !value.to_str().unwrap().contains("  ")));
    }
}
