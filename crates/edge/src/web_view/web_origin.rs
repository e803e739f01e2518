//! An origin (RFC 6454) as a browser sends it: scheme, host and a port that is not the default.

use std::net::Ipv4Addr;

use axum::http::Uri;
use thiserror::Error;

/// An origin of HTTPS, or of HTTP on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WebOrigin(String);

/// The text is not an origin that a page may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum OriginError {
    #[error("is not a URL: write for example https://bank.example")]
    NotUrl,
    #[error("has http:// beyond this machine: write https://")]
    NotHttps,
    #[error("has a host that no browser sends as an origin: write lower case and no user")]
    Host,
    #[error(
        "has an IPv6 address, which no Content-Security-Policy can name: write a host name, or localhost or 127.0.0.1"
    )]
    Ipv6,
    #[error("has a port that no browser sends in an origin: write a number of 1 to 65535 without leading zeros")]
    Port,
    #[error("has the default port of its scheme, which no browser sends in an origin: remove :{0}")]
    DefaultPort(u16),
    #[error("has a query or a fragment: remove it")]
    Query,
    #[error("has a path: write scheme, host and port alone")]
    Path,
    #[error("has a path with other characters than letters, digits, - . _ ~ and /")]
    PathCharacters,
}

impl WebOrigin {
    /// Reads a URL: its origin, and its path without a slash at the end.
    ///
    /// # Errors
    /// [`OriginError`]: what the URL has that no page may have.
    pub(crate) fn parse_url(text: &str) -> Result<(Self, String), OriginError> {
        let url: Uri = text.parse().map_err(|_| OriginError::NotUrl)?;
        let (Some(scheme), Some(authority)) = (url.scheme_str(), url.authority()) else {
            return Err(OriginError::NotUrl);
        };
        let host = authority.host();
        if host.starts_with('[') {
            return Err(OriginError::Ipv6);
        }
        let is_https = match scheme {
            "https" => true,
            "http" if is_loopback(host) => false,
            "http" => return Err(OriginError::NotHttps),
            _ => return Err(OriginError::NotUrl),
        };
        let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        let is_host = !host.is_empty() && host.bytes().all(is_name);
        let Some(after_host) = authority.as_str().strip_prefix(host).filter(|_| is_host) else {
            return Err(OriginError::Host);
        };
        if let Some(text) = after_host.strip_prefix(':') {
            let port = text.parse().ok().filter(|port: &u16| *port > 0 && port.to_string() == text);
            let port = port.ok_or(OriginError::Port)?;
            if port == if is_https { 443 } else { 80 } {
                return Err(OriginError::DefaultPort(port));
            }
        } else if !after_host.is_empty() {
            return Err(OriginError::Host);
        }
        // The parser of `http` drops a fragment.
        if url.query().is_some() || text.contains('#') {
            return Err(OriginError::Query);
        }
        let path = url.path().trim_end_matches('/');
        // A browser reads `//` at the start of a redirect as another host, and removes `.` and `..`.
        let is_segment = |segment: &str| !matches!(segment, "" | "." | "..");
        if !path.split('/').skip(1).all(is_segment)
            || !path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte))
        {
            return Err(OriginError::PathCharacters);
        }
        Ok((Self(format!("{scheme}://{authority}")), path.to_owned()))
    }

    /// Reads an origin.
    ///
    /// # Errors
    /// [`OriginError`]: the text is a URL with a path, or not one that a page may have.
    pub(crate) fn parse(text: &str) -> Result<Self, OriginError> {
        let (origin, path) = Self::parse_url(text)?;
        if path.is_empty() { Ok(origin) } else { Err(OriginError::Path) }
    }

    /// The text in an Origin header.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the scheme is https.
    pub(crate) fn is_https(&self) -> bool {
        self.0.starts_with("https:")
    }
}

/// Whether browsers treat the host as trustworthy without TLS: this machine (W3C Secure Contexts, 3.1).
fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: Ipv4Addr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_the_text_that_a_browser_sends() {
        for text in [
            "https://bank.example",
            "https://bank.example:8443",
            "http://localhost:8081",
            "http://127.0.0.1",
            "https://127.0.0.1:1",
            "https://bank.example:65535",
        ] {
            assert_eq!(WebOrigin::parse(text).unwrap().as_str(), text);
            assert_eq!(WebOrigin::parse(&format!("{text}/")).unwrap().as_str(), text);
        }
        for (text, error) in [
            ("", OriginError::NotUrl),
            ("bank.example", OriginError::NotUrl),
            ("/web", OriginError::NotUrl),
            ("ftp://bank.example", OriginError::NotUrl),
            ("*", OriginError::NotUrl),
            ("http://bank.example", OriginError::NotHttps),
            ("http://192.0.2.1", OriginError::NotHttps),
            ("https://*.bank.example", OriginError::Host),
            ("https://Bank.example", OriginError::Host),
            ("https://user@bank.example", OriginError::Host),
            ("https://bank.example@bank.example", OriginError::Host),
            ("https://bank.example:443", OriginError::DefaultPort(443)),
            ("https://bank.example:0443", OriginError::Port),
            ("http://localhost:80", OriginError::DefaultPort(80)),
            ("https://bank.example:08443", OriginError::Port),
            ("https://bank.example:0", OriginError::Port),
            ("https://bank.example:", OriginError::Port),
            ("http://[::1]:8080", OriginError::Ipv6),
            ("http://[::1]", OriginError::Ipv6),
            ("https://[2001:db8::1]", OriginError::Ipv6),
            ("https://[::ffff:127.0.0.1]:8443/pin", OriginError::Ipv6),
            ("https://b\u{e4}nk.example", OriginError::NotUrl),
            ("https://bank.example?a", OriginError::Query),
            ("https://bank.example#a", OriginError::Query),
            ("https://bank.example/pin", OriginError::Path),
        ] {
            assert_eq!(WebOrigin::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_public_url_may_have_a_path() {
        for (text, origin, path) in [
            ("https://pin.bank.example/pin", "https://pin.bank.example", "/pin"),
            ("https://pin.bank.example/a/b/", "https://pin.bank.example", "/a/b"),
            ("https://pin.bank.example", "https://pin.bank.example", ""),
        ] {
            assert_eq!(WebOrigin::parse_url(text), Ok((WebOrigin(origin.into()), path.into())));
        }
        assert_eq!(WebOrigin::parse_url("https://bank.example/a\"b").err(), Some(OriginError::PathCharacters));
        for path in ["a%20b", "/pin", "/other.example/pin", "a//b", "a/../b", "./a"] {
            let url = format!("https://bank.example/{path}");
            assert_eq!(WebOrigin::parse_url(&url).err(), Some(OriginError::PathCharacters), "{url}");
        }
    }
}
