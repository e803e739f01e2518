//! The security headers of every answer, by the path of its request: strict ones that a route may replace by its own.

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
/// A page needs none of these features, the ones of Chromium 156 and a few of other browsers. An empty list denies the feature to
/// the page and to its frames.
const NO_PERMISSIONS: &str = "accelerometer=(), autoplay=(), bluetooth=(), browsing-topics=(), camera=(), \
                              captured-surface-control=(), clipboard-read=(), clipboard-write=(), compute-pressure=(), \
                              digital-credentials-create=(), digital-credentials-get=(), display-capture=(), \
                              encrypted-media=(), fullscreen=(), gamepad=(), geolocation=(), gyroscope=(), hid=(), \
                              identity-credentials-get=(), idle-detection=(), keyboard-map=(), language-detector=(), \
                              language-model=(), local-fonts=(), magnetometer=(), microphone=(), midi=(), \
                              on-device-speech-recognition=(), otp-credentials=(), payment=(), picture-in-picture=(), \
                              private-state-token-issuance=(), private-state-token-redemption=(), \
                              publickey-credentials-create=(), publickey-credentials-get=(), screen-wake-lock=(), \
                              serial=(), speaker-selection=(), storage-access=(), summarizer=(), sync-xhr=(), \
                              translator=(), usb=(), web-share=(), window-management=(), xr-spatial-tracking=()";
/// A year.
const HTTPS_ALONE: &str = "max-age=31536000";

/// The paths of the web view.
const WEB_VIEW_PATHS: [&str; 2] = ["/web", "/pin/web"];
/// The paths of the pages for developers.
const DOCS_PATHS: [&str; 2] = ["/docs", "/openapi.json"];

/// The security headers of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SecurityHeaders {
    /// Those of an answer that no browser shows.
    Api,
    /// Those of the pages for developers.
    Docs,
    /// Those of the web view.
    WebView {
        /// Whether browsers reach the web view over HTTPS.
        is_https: bool,
    },
}

impl SecurityHeaders {
    /// The headers of each answer to a request for this path, of an edge whose web view has HTTPS or not; `None` for an edge
    /// without a web view.
    pub(super) fn of(path: &str, web_view: Option<bool>) -> Self {
        let is_below =
            |base: &&str| path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        match web_view {
            Some(is_https) if WEB_VIEW_PATHS.iter().any(is_below) => Self::WebView { is_https },
            _ if DOCS_PATHS.iter().any(is_below) => Self::Docs,
            _ => Self::Api,
        }
    }

    /// The headers of the answer to a request whose path is unknown: the strictest of the edge.
    pub(super) fn of_unknown_path(web_view: Option<bool>) -> Self {
        web_view.map_or(Self::Docs, |is_https| Self::WebView { is_https })
    }

    /// Adds the headers that an answer lacks.
    pub(super) fn add_to(self, headers: &mut HeaderMap) {
        add(headers, CONTENT_SECURITY_POLICY, NO_CONTENT);
        add(headers, X_CONTENT_TYPE_OPTIONS, "nosniff");
        add(headers, REFERRER_POLICY, "no-referrer");
        if self == Self::Api {
            return;
        }
        add(headers, OPENER_POLICY, "same-origin");
        add(headers, RESOURCE_POLICY, "same-origin");
        if let Self::WebView { is_https } = self {
            // A page loads from the edge alone, so a parent with this policy can frame the page.
            add(headers, EMBEDDER_POLICY, "require-corp");
            add(headers, PERMISSIONS_POLICY, NO_PERMISSIONS);
            if is_https {
                add(headers, STRICT_TRANSPORT_SECURITY, HTTPS_ALONE);
            }
        }
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
    fn the_path_of_a_request_selects_the_headers() {
        let of_web_view = SecurityHeaders::WebView { is_https: true };
        for (path, expected) in [
            ("/web", of_web_view),
            ("/web/", of_web_view),
            ("/web/no/such/route", of_web_view),
            ("/pin/web/bank/set", of_web_view),
            ("/website", SecurityHeaders::Api),
            ("/pin/v3/set", SecurityHeaders::Api),
            ("/docs", SecurityHeaders::Docs),
            ("/docs/no/such/file", SecurityHeaders::Docs),
            ("/openapi.json", SecurityHeaders::Docs),
            ("*", SecurityHeaders::Api),
        ] {
            assert_eq!(SecurityHeaders::of(path, Some(true)), expected, "{path}");
            assert_ne!(SecurityHeaders::of(path, None), of_web_view, "{path}");
        }
        assert_eq!(SecurityHeaders::of_unknown_path(Some(true)), of_web_view);
    }

    #[test]
    fn a_header_of_a_route_stays() {
        let mut headers = HeaderMap::from_iter([(CONTENT_SECURITY_POLICY, page_policy("https://a.example"))]);
        SecurityHeaders::WebView { is_https: true }.add_to(&mut headers);
        assert_eq!(headers[CONTENT_SECURITY_POLICY], page_policy("https://a.example"));
        assert_eq!(headers.len(), 8);
        assert!(headers.values().all(|value| !value.to_str().unwrap().contains("  ")));
    }
}
