//! The files of the page that `web/build.mjs` makes, as they are and compressed.

use std::{io::Write, sync::Arc};

use axum::http::{HeaderMap, header::ACCEPT_ENCODING};
use flate2::{Compression, write::GzEncoder};

const SCRIPT: &str = include_str!("../../../../web/dist/page.js");
const STYLE: &str = include_str!("../../../../web/dist/page.css");

/// A file in both content codings.
pub(crate) struct BuiltFile {
    pub(crate) content_type: &'static str,
    pub(crate) plain: &'static str,
    pub(crate) gzip: Arc<[u8]>,
}

impl BuiltFile {
    /// The script of the page.
    pub(crate) fn script() -> Self {
        Self::new("text/javascript; charset=utf-8", SCRIPT)
    }

    /// The style of the page.
    pub(crate) fn style() -> Self {
        Self::new("text/css; charset=utf-8", STYLE)
    }

    fn new(content_type: &'static str, plain: &'static str) -> Self {
        Self { content_type, plain, gzip: gzip(plain.as_bytes(), Compression::best()).into() }
    }
}

/// Compresses bytes (RFC 1952).
pub(crate) fn gzip(bytes: &[u8], level: Compression) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), level);
    // A vector takes every byte.
    let written = encoder.write_all(bytes).and_then(|()| encoder.finish());
    written.unwrap_or_default()
}

/// Whether a client accepts the content coding gzip (RFC 9110, 12.5.3).
pub(crate) fn accepts_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let is_gzip = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        is_gzip && !parts.any(|parameter| matches!(parameter, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_sent_to_clients_that_accept_it() {
        for (value, accepted) in [
            ("gzip, deflate, br, zstd", true),
            ("br;q=1, GZIP;q=0.5", true),
            ("gzip;q=0", false),
            ("identity", false),
            ("xgzip", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, value.parse().unwrap())]);
            assert_eq!(accepts_gzip(&headers), accepted, "{value}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    #[test]
    fn the_page_is_less_than_25_kilobytes() {
        let [script, style] = [BuiltFile::script(), BuiltFile::style()].map(|file| {
            assert_eq!(&file.gzip[..2], [0x1f, 0x8b]);
            file.gzip.len()
        });
        assert!(script + style < 20_000, "{script} + {style} bytes, without the document");
    }
}
