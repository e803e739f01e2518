//! The pages for developers: the OpenAPI document, its viewer and the guide. Beside a web view, only `docs_listen` serves
//! viewer and guide: a flaw of the viewer must not reach the origin of the web view's pages. `docs/viewer/README.md` says how
//! `docs/viewer/dist` is built, and why the policies allow what they allow.

use axum::{
    Router,
    http::{HeaderMap, HeaderValue, header},
    response::IntoResponse,
    routing::get,
};

/// Only the files of this server, and requests to it. `data:` images are the icons of the viewer's style sheet.
const REFERENCE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; \
     require-trusted-types-for 'script'; trusted-types default dompurify 'allow-duplicates'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'";
/// As above, without scripts and requests.
const GUIDE_POLICY: &str =
    "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// A file that is no page loads nothing, wherever a browser shows it.
const FILE_POLICY: &str = "default-src 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// A file that the edge serves.
#[derive(Clone, Copy)]
struct PageFile {
    path: &'static str,
    content_type: &'static str,
    policy: &'static str,
    bytes: &'static [u8],
    /// The bytes are gzip. Browsers accept it; `curl` shows the text with `--compressed`.
    is_gzip: bool,
}

macro_rules! file {
    ($path:literal $content_type:ident $policy:ident $(gzip $gzip:literal)? $(plain $plain:literal)?) => {
        PageFile {
            path: $path,
            content_type: $content_type,
            policy: $policy,
            bytes: include_bytes!(concat!("../../../docs/" $(, "viewer/dist/", $gzip)? $(, $plain)?)),
            is_gzip: !concat!("" $(, $gzip)?).is_empty(),
        }
    };
}

/// The reviewed OpenAPI document, which a test compares with the routes. It runs no script.
const OPENAPI: PageFile = file!("/openapi.json" JSON FILE_POLICY plain "openapi.json");
/// The viewer and the guide.
const FILES: &[PageFile] = &[
    file!("/docs" HTML REFERENCE_POLICY plain "viewer/dist/reference.html"),
    file!("/docs/guide" HTML GUIDE_POLICY plain "viewer/dist/guide.html"),
    file!("/docs/licences.txt" TEXT FILE_POLICY plain "viewer/dist/licences.txt"),
    file!("/docs/docs.js" SCRIPT FILE_POLICY gzip "docs.js.gz"),
    file!("/docs/docs.css" STYLE FILE_POLICY gzip "docs.css.gz"),
    file!("/docs/swagger-ui-bundle.js" SCRIPT FILE_POLICY gzip "swagger-ui-bundle.js.gz"),
    file!("/docs/swagger-ui.css" STYLE FILE_POLICY gzip "swagger-ui.css.gz"),
];

/// The paths of the files.
#[cfg(test)]
pub(super) fn paths() -> impl Iterator<Item = &'static str> {
    [&OPENAPI].into_iter().chain(FILES).map(|file| file.path)
}

/// The routes of the files, or that of the OpenAPI document alone.
pub(super) fn routes<S: Clone + Send + Sync + 'static>(has_docs: bool) -> Router<S> {
    let files = FILES.iter().filter(|_| has_docs);
    [&OPENAPI]
        .into_iter()
        .chain(files)
        .fold(Router::new(), |router, file| router.route(file.path, get(async || file.answer())))
}

impl PageFile {
    fn answer(&self) -> impl IntoResponse + use<> {
        let headers = [(header::CONTENT_TYPE, self.content_type), (header::CONTENT_SECURITY_POLICY, self.policy)];
        let headers = headers.into_iter().chain(self.is_gzip.then_some((header::CONTENT_ENCODING, "gzip")));
        let headers: HeaderMap = headers.map(|(name, value)| (name, HeaderValue::from_static(value))).collect();
        (headers, self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::api_error::ApiError;

    const GUIDE: &str = include_str!("../../../docs/guide.md");

    /// The rows "| `CODE` | status | what to do |" of the guide: status and remedy by code.
    fn rows() -> BTreeMap<&'static str, (&'static str, &'static str)> {
        let cells = |line: &'static str| line.trim_matches('|').split(" | ").map(str::trim).collect::<Vec<_>>();
        let rows = GUIDE.lines().map(cells).filter_map(|cells| match cells[..] {
            [code, status, remedy] if code.starts_with('`') && status.parse::<u16>().is_ok() => {
                Some((code.trim_matches('`'), (status, remedy)))
            }
            _ => None,
        });
        let (list, map): (Vec<_>, BTreeMap<_, _>) = (rows.clone().collect(), rows.collect());
        assert_eq!(list.len(), map.len(), "an errorCode has two rows");
        map
    }

    #[test]
    fn the_guide_explains_each_error_code_once_and_no_other() {
        let explained = rows();
        let errors = || ApiError::TABLE.iter().chain(ApiError::PAGE_TABLE);
        for error in errors() {
            let (status, remedy) = explained.get(error.code()).unwrap_or_else(|| panic!("no row: {}", error.code()));
            assert_eq!(*status, error.status().as_str(), "{}", error.code());
            assert!(remedy.split(' ').count() >= 4, "{}: {remedy}", error.code());
        }
        assert_eq!(explained.len(), errors().count(), "the guide has a row for a code that does not exist");
    }
}
