//! `[web_view]` of the configuration file, and its checks.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use config::{ConfigError, SecretSource, within};
use domain::control::PageClient;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{
    BuiltFile, Language, Logo, Page, PageSessions, WebView, page_session::SESSION_KEY_BYTES, page_style::StyleFile,
    web_origin::WebOrigin,
};

/// The longest key of a page, in characters.
const KEY_CHARACTERS_MAX: usize = 32;
/// The segment of a path below `web/` that is no page.
const FRAME_SEGMENT: &str = "frame";
/// The most origins of one page: they are in a header of each document.
const ORIGINS_MAX: usize = 32;
/// The largest file of a logo, in bytes.
const LOGO_BYTES_MAX: u64 = 65_536;
/// The signature of a PNG file (ISO/IEC 15948, 5.2).
const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// `[web_view]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WebViewFile {
    /// The URL at which browsers reach the edge.
    public_url: String,
    /// 32 bytes in hexadecimal that seal the sessions of pages; a random key of the process by default.
    session_key: Option<SecretSource>,
    /// The time for which a viewed PIN is shown.
    #[serde(default = "view_seconds_by_default")]
    view_seconds: u32,
    /// The exchanges of one IPv4 address or IPv6 /64 that may fail within a minute.
    #[serde(default = "failed_exchanges_by_default")]
    failed_exchanges_per_address_max: u32,
    /// At least one.
    #[serde(default)]
    pages: Vec<PageFile>,
}

/// `[[web_view.pages]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageFile {
    /// The name of the page in its addresses, and the `key` of a frame.
    key: String,
    /// The name of the client whose tenant and limits the page has.
    client: String,
    /// The origins that may frame the page; none by default.
    #[serde(default)]
    origins: Vec<String>,
    /// The language of the page; the browser's by default.
    language: Option<String>,
    /// A PNG or SVG file of at most 64 KiB.
    logo: Option<PathBuf>,
    #[serde(default)]
    style: StyleFile,
}

fn view_seconds_by_default() -> u32 {
    10
}

fn failed_exchanges_by_default() -> u32 {
    60
}

impl WebViewFile {
    /// A web view at this URL with one page, for the client and the origin that frames the page.
    pub(crate) fn with_page(public_url: &str, key: &str, client: &str, origin: &str) -> Self {
        let page = PageFile {
            key: key.to_owned(),
            client: client.to_owned(),
            origins: vec![origin.to_owned()],
            language: None,
            logo: None,
            style: StyleFile::default(),
        };
        Self {
            public_url: public_url.to_owned(),
            session_key: None,
            view_seconds: view_seconds_by_default(),
            failed_exchanges_per_address_max: failed_exchanges_by_default(),
            pages: vec![page],
        }
    }

    /// Checks the section. `clients` are the names of the edge's clients.
    ///
    /// # Errors
    /// A value is not allowed, a file can't be read, or a page has a client that the edge does not have.
    pub(crate) fn check(self, clients: &[&str]) -> Result<WebView, ConfigError> {
        let (origin, path) = WebOrigin::parse_url(&self.public_url)
            .map_err(|error| ConfigError::value("web_view.public_url", format!("{:?} {error}", self.public_url)))?;
        if self.pages.is_empty() {
            let problem = "the web view has no page, and would answer every request with 404: add [[web_view.pages]] with a \
                           key and a client (examples/edge.toml)";
            return Err(ConfigError::value("web_view.pages", problem));
        }
        let mut keys = HashSet::new();
        for page in &self.pages {
            if !keys.insert(page.key.as_str()) {
                let problem = format!("two pages have the key {:?}: give each its own", page.key);
                return Err(ConfigError::value("web_view.pages.key", problem));
            }
        }
        let view_seconds = within("web_view.view_seconds", self.view_seconds, 1..=120)?;
        let failed_exchanges_per_address_max =
            within("web_view.failed_exchanges_per_address_max", self.failed_exchanges_per_address_max, 1..=1_000_000)?;
        let sessions = sessions(self.session_key)?;
        let pages = self.pages.into_iter().map(|page| page.check(clients)).collect::<Result<_, _>>()?;
        Ok(WebView {
            public_url: format!("{}{path}", origin.as_str()),
            path,
            origin,
            view_seconds,
            failed_exchanges_per_address_max,
            sessions,
            pages,
            script: BuiltFile::script(),
            style: BuiltFile::style(),
        })
    }
}

fn sessions(source: Option<SecretSource>) -> Result<PageSessions, ConfigError> {
    let failed = |_| ConfigError::value("web_view.session_key", "the key can't be used: restart the edge");
    let key = match source {
        None => PageSessions::random_key().map_err(failed)?,
        Some(source) => {
            let text = source.read()?;
            let mut key = Zeroizing::new([0; SESSION_KEY_BYTES]);
            let decoded = base16ct::mixed::decode(text.as_bytes(), &mut *key);
            if !decoded.is_ok_and(|bytes| bytes.len() == SESSION_KEY_BYTES) {
                let problem = "is not 32 bytes in hexadecimal: generate one with `openssl rand -hex 32`, and give it to every \
                               edge that serves these pages";
                return Err(ConfigError::value("web_view.session_key", problem));
            }
            key
        }
    };
    PageSessions::new(&key).map_err(failed)
}

impl PageFile {
    fn check(self, clients: &[&str]) -> Result<Page, ConfigError> {
        let key = self.key;
        let is_key =
            |key: &str| key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if key.is_empty() || key.len() > KEY_CHARACTERS_MAX || !is_key(&key) || key == FRAME_SEGMENT {
            let problem =
                format!("{key:?} is not 1 to {KEY_CHARACTERS_MAX} of a-z, 0-9 and -, or it is {FRAME_SEGMENT:?}");
            return Err(ConfigError::value("web_view.pages.key", problem));
        }
        PageClient::of_name(&self.client)
            .map_err(|error| ConfigError::value("web_view.pages.client", format!("{:?}: {error}", self.client)))?;
        if !clients.contains(&self.client.as_str()) {
            let problem =
                format!("the page {key:?} has the client {:?}, and no [[clients]] has this name", self.client);
            return Err(ConfigError::value("web_view.pages.client", problem));
        }
        within("web_view.pages.origins", self.origins.len(), 0..=ORIGINS_MAX)?;
        let mut origins = Vec::with_capacity(self.origins.len());
        for text in &self.origins {
            let origin = WebOrigin::parse(text).map_err(|error| {
                ConfigError::value("web_view.pages.origins", format!("{text:?} of the page {key:?} {error}"))
            })?;
            if origins.contains(&origin) {
                let problem = format!("the page {key:?} has {text:?} twice: remove one");
                return Err(ConfigError::value("web_view.pages.origins", problem));
            }
            origins.push(origin);
        }
        let language = match self.language {
            None => None,
            Some(tag) => Some(Language::find(&tag).ok_or_else(|| {
                let problem = format!("{tag:?} of the page {key:?} is not one of {}", Language::tags());
                ConfigError::value("web_view.pages.language", problem)
            })?),
        };
        let style = self
            .style
            .check()
            .map_err(|error| ConfigError::value("web_view.pages.style", format!("the page {key:?}: {error}")))?;
        let logo = self.logo.as_deref().map(read_logo).transpose()?;
        Ok(Page { key: key.into(), client: self.client.into(), origins, language, style, logo })
    }
}

fn read_logo(path: &Path) -> Result<Logo, ConfigError> {
    let wrong = |problem: &str| ConfigError::value("web_view.pages.logo", format!("{}: {problem}", path.display()));
    let is_png = match path.extension().and_then(|extension| extension.to_str()) {
        Some("png") => true,
        Some("svg") => false,
        _ => return Err(wrong("is neither .png nor .svg: convert the logo to one of them")),
    };
    let length = fs::metadata(path).map_err(|error| wrong(&error.to_string()))?.len();
    if length > LOGO_BYTES_MAX {
        return Err(wrong(&format!("has {length} bytes: use a logo of at most {LOGO_BYTES_MAX}")));
    }
    let bytes = fs::read(path).map_err(|error| wrong(&error.to_string()))?;
    if is_png != bytes.starts_with(PNG_SIGNATURE) {
        return Err(wrong("has another format than its name: name a PNG .png and an SVG .svg"));
    }
    let content_type = if is_png { "image/png" } else { "image/svg+xml" };
    Ok(Logo { content_type, bytes: bytes.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "[[pages]]\nkey = \"bank\"\nclient = \"wallet\"\n";

    fn checked(text: &str) -> Result<WebView, String> {
        let file: WebViewFile = toml::from_str(text).map_err(|error| error.to_string())?;
        file.check(&["wallet"]).map_err(|error| error.to_string())
    }

    fn with(page: &str) -> String {
        format!("public_url = \"https://pin.bank.example/pin/\"\n{PAGE}{page}")
    }

    #[test]
    fn a_page_has_its_addresses_below_the_public_url() {
        let view = checked(&with("origins = [\"https://bank.example\", \"https://app.example:8443\"]")).unwrap();
        let urls = view.urls_of("wallet").unwrap();
        assert_eq!(urls.pin_url, "https://pin.bank.example/pin/web/bank");
        assert_eq!(urls.pin_frame_url, "https://pin.bank.example/pin/web/frame");
        assert!(view.urls_of("other").is_none() && view.page("other").is_none());
        assert_eq!(view.page("bank").unwrap().origins(), "https://bank.example https://app.example:8443");
        assert!(view.is_own_origin(b"https://pin.bank.example") && !view.is_own_origin(b"https://bank.example"));
        assert!(!checked(&with("")).unwrap().page("bank").unwrap().is_framed());
    }

    #[test]
    fn each_mistake_in_a_web_view_is_named() {
        for (text, named) in [
            ("public_url = \"https://pin.bank.example\"".to_owned(), "has no page"),
            (format!("public_url = \"http://pin.bank.example\"\n{PAGE}"), "write https://"),
            (format!("public_url = \"https://pin.bank.example\"\nview_seconds = 0\n{PAGE}"), "web_view.view_seconds"),
            (format!("{}{PAGE}", with("")), "two pages have the key \"bank\""),
            (with("").replace("\"bank\"", "\"frame\""), "is not 1 to 32 of a-z"),
            (with("").replace("\"bank\"", "\"page.js\""), "is not 1 to 32 of a-z"),
            (with("").replace("\"bank\"", "\"\""), "is not 1 to 32 of a-z"),
            (with("").replace("\"wallet\"", "\"other\""), "no [[clients]] has this name"),
            (with("").replace("\"wallet\"", "\"wal\u{200b}let\""), "is 1 to 128 visible characters"),
            (with("origins = [\"*\"]"), "is not a URL"),
            (with("origins = [\"https://bank.example:08443\"]"), "without leading zeros"),
            (with("origins = [\"https://bank.example:443\"]"), "remove :443"),
            (with("origins = [\"http://[::1]:8080\"]"), "write a host name, or localhost or 127.0.0.1"),
            (format!("public_url = \"http://[::1]:8080\"\n{PAGE}"), "write a host name, or localhost or 127.0.0.1"),
            (with("origins = [\"https://bank.example/\", \"https://bank.example\"]"), "twice"),
            (with("language = \"nl\""), "is not one of en, fi, sv, de, fr, ar"),
            (with("[pages.style.light]\naccent = \"blue\""), "write it as #rrggbb"),
            (with("logo = \"/no/such.png\""), "No such file"),
            (with("logo = \"/no/such.gif\""), "neither .png nor .svg"),
            (with("colour = \"#000000\""), "colour"),
        ] {
            let error = checked(&text).err().unwrap_or_else(|| panic!("accepted: {text}"));
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn a_logo_has_the_format_of_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let logo = |name: &str, bytes: &[u8]| {
            let path = directory.path().join(name);
            fs::write(&path, bytes).unwrap();
            read_logo(&path).map(|logo| logo.content_type).map_err(|error| error.to_string())
        };
        assert_eq!(logo("a.png", PNG_SIGNATURE), Ok("image/png"));
        assert_eq!(logo("a.svg", b"<svg/>"), Ok("image/svg+xml"));
        assert!(logo("b.png", b"<svg/>").unwrap_err().contains("another format"));
        assert!(logo("b.svg", PNG_SIGNATURE).unwrap_err().contains("another format"));
        assert!(logo("c.svg", &[b' '; 65_537]).unwrap_err().contains("at most 65536"));
    }

    #[test]
    fn a_session_key_is_32_bytes_in_hexadecimal() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let checked_with = |secret: &str| {
            let path = directory.path().join("key");
            fs::write(&path, secret).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            checked(&format!("session_key = {{ file = {path:?} }}\n{}", with(""))).map(|_| ())
        };
        assert_eq!(checked_with(&"0f".repeat(32)), Ok(()));
        for wrong in ["0f".repeat(31), "0f".repeat(33), "0g".repeat(32)] {
            let error = checked_with(&wrong).unwrap_err();
            assert!(error.contains("openssl rand -hex 32") && !error.contains(&wrong), "{error}");
        }
    }
}
