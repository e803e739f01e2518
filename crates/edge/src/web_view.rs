//! The web view: pages of the edge on which a cardholder sets or views a PIN, so that neither the app nor its back-end
//! touches the PIN. The routes are in `route/web_view_routes.rs`.
//!
//! ```text
//! form POST, or postMessage to a frame ──▶ controlId ──StartPage──▶ page session (cookie) ──▶ tzpk, set, view
//! ```
//! One page exchanges a controlId, and a frame that lost the answer repeats its exchange. After that the sealed cookie is the
//! credential, and the edge has no state of a page. A form POST is answered with a redirect to the document: Chromium writes
//! the body of a POST that a document answers, and so the controlId, to the session file of its profile.

mod built_page;
mod page_html;
mod page_session;
mod page_style;
mod web_origin;
mod web_view_file;

use std::sync::Arc;

pub(crate) use self::{
    built_page::{BuiltFile, accepts_gzip, gzip},
    page_html::{Language, PageState, UNAVAILABLE_STATE},
    page_session::{PageControl, PageOperation, PageSession, PageSessions, Placement},
    web_view_file::WebViewFile,
};
use page_style::PageStyle;
use web_origin::WebOrigin;

/// The path of the icon of every page, below the base of the web view. Without an icon, browsers ask for `/favicon.ico`.
pub(crate) const ICON_PATH: &str = "/web/icon.svg";
/// The icon of every page.
pub(crate) const ICON: &str = include_str!("web_view/icon.svg");
/// The path of the script of every page, below the base of the web view.
pub(crate) const SCRIPT_PATH: &str = "/web/page.js";
/// The path of the style of every page, below the base of the web view.
pub(crate) const STYLE_PATH: &str = "/web/page.css";

/// The checked configuration of a web view.
pub struct WebView {
    /// The public URL without a slash at its end.
    public_url: String,
    /// The path of the public URL without a slash at its end; empty for the root.
    path: String,
    origin: WebOrigin,
    view_seconds: u32,
    /// The exchanges of one IPv4 address or IPv6 /64 that may fail within a minute.
    pub(crate) failed_exchanges_per_address_max: u32,
    sessions: PageSessions,
    pages: Vec<Page>,
    pub(crate) script: BuiltFile,
    pub(crate) style: BuiltFile,
}

/// A page of a client.
pub(crate) struct Page {
    key: Box<str>,
    client: Box<str>,
    /// The origins that may frame the page; none for a page that is not framed.
    origins: Vec<WebOrigin>,
    /// `None` for the language of the browser.
    language: Option<&'static Language>,
    pub(crate) style: PageStyle,
    pub(crate) logo: Option<Logo>,
}

/// The logo of an operator.
pub(crate) struct Logo {
    pub(crate) content_type: &'static str,
    pub(crate) bytes: Arc<[u8]>,
}

/// The addresses of a page in the answer that opens a control.
pub(crate) struct PageUrls {
    /// The address of the form POST.
    pub(crate) pin_url: String,
    /// The address of the frame, without its query.
    pub(crate) pin_frame_url: String,
}

impl WebView {
    /// The page with this key.
    pub(crate) fn page(&self, key: &str) -> Option<&Page> {
        self.pages.iter().find(|page| &*page.key == key)
    }

    /// The addresses of the first page of a client; `None` for a client without a page.
    pub(crate) fn urls_of(&self, client: &str) -> Option<PageUrls> {
        let page = self.pages.iter().find(|page| &*page.client == client)?;
        Some(PageUrls {
            pin_url: format!("{}/web/{}", self.public_url, page.key),
            pin_frame_url: format!("{}/web/frame", self.public_url),
        })
    }

    /// The address of the document of a page in this state, as a path.
    pub(crate) fn location(&self, page: &Page, state: &PageState) -> String {
        let query = match state {
            PageState::Opened(id) => format!("?id={id}"),
            PageState::Unavailable { retry_seconds } => format!("?state={UNAVAILABLE_STATE}&retry={retry_seconds}"),
            PageState::Waiting | PageState::Expired => String::new(),
        };
        format!("{}/web/{}{query}", self.path, page.key)
    }

    /// Whether an Origin header is the origin of the web view.
    pub(crate) fn is_own_origin(&self, origin: &[u8]) -> bool {
        self.origin.as_str().as_bytes() == origin
    }

    /// Whether browsers reach the web view over TLS.
    pub(crate) fn is_https(&self) -> bool {
        self.origin.is_https()
    }

    /// The page sessions.
    pub(crate) fn sessions(&self) -> &PageSessions {
        &self.sessions
    }
}

impl Page {
    /// The key of the page in its addresses.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The name of the client whose tenant and limits the page has.
    pub(crate) fn client(&self) -> &str {
        &self.client
    }

    /// Whether an origin may frame the page.
    pub(crate) fn is_framed(&self) -> bool {
        !self.origins.is_empty()
    }

    /// The origins that may frame the page, with a space between them.
    pub(crate) fn origins(&self) -> String {
        let origins: Vec<_> = self.origins.iter().map(WebOrigin::as_str).collect();
        origins.join(" ")
    }
}
