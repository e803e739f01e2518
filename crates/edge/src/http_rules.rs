//! Rules of HTTP that hyper leaves to its user: Host, the size of headers over HTTP/2, the type of a body, `Expect`.

use axum::http::{
    HeaderMap, HeaderValue, Version,
    header::{CONTENT_ENCODING, CONTENT_TYPE, EXPECT, HOST},
    request::Parts,
    uri::Authority,
};

use super::{api_error::ApiError, mistake::Mistake};

/// The most bytes of the target and the headers of one request.
pub(super) const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// The bytes that each header costs beside its name and its value: over HTTP/2 by RFC 9113, 6.5.2.
const HTTP2_OVERHEAD_BYTES: usize = 32;
const HTTP1_OVERHEAD_BYTES: usize = b": \r\n".len();

/// Checks the headers of a request to any route. hyper checks their size over HTTP/1.1 only before each read, so one read
/// may exceed it; over HTTP/2, h2 would answer without a body.
///
/// # Errors
/// HEADERS_TOO_LARGE; HOST_INVALID.
pub(super) fn check_head(request: &Parts) -> Result<(), ApiError> {
    let overhead = if request.version == Version::HTTP_2 { HTTP2_OVERHEAD_BYTES } else { HTTP1_OVERHEAD_BYTES };
    let sizes = request.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + overhead);
    let target = request.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target + sizes.sum::<usize>() > HEADER_BYTES_MAX as usize {
        return Err(ApiError::HEADERS_TOO_LARGE);
    }
    check_host(request).map_err(ApiError::from)
}

/// One valid Host (RFC 9112, 3.2); over HTTP/2 `:authority` may stand for it (RFC 9113, 8.3.1).
fn check_host(request: &Parts) -> Result<(), Mistake> {
    let mut hosts = request.headers.get_all(HOST).iter();
    let (host, is_repeated) = (hosts.next(), hosts.next().is_some());
    if is_repeated {
        return Err(Mistake::HostRepeated);
    }
    let authority = request.uri.authority();
    let Some(host) = host else {
        let may_lack = match request.version {
            Version::HTTP_2 => authority.is_some(),
            version => version < Version::HTTP_11,
        };
        return if may_lack { Ok(()) } else { Err(Mistake::HostMissing) };
    };
    let host = Authority::try_from(host.as_bytes()).map_err(|_| Mistake::HostMalformed)?;
    if host.as_str().contains('@') || host.host().is_empty() {
        return Err(Mistake::HostMalformed);
    }
    match authority {
        Some(authority) if request.version == Version::HTTP_2 && *authority != host => Err(Mistake::HostDiffers),
        _ => Ok(()),
    }
}

/// Checks that a body is `application/json` in UTF-8, without a content coding (RFC 9110, 8.3 and 8.4; RFC 8259, 8.1). A
/// request without Content-Type is accepted: its body is read as JSON.
///
/// # Errors
/// CONTENT_TYPE_UNSUPPORTED.
pub(super) fn check_body_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (content_type, is_repeated) = (types.next(), types.next().is_some());
    let is_plain = headers.get_all(CONTENT_ENCODING).iter().all(|coding| is_token(coding, "identity"));
    if is_repeated || !is_plain || !content_type.is_none_or(is_json) {
        return Err(ApiError::CONTENT_TYPE_UNSUPPORTED);
    }
    Ok(())
}

/// Checks that a body is a form without a content coding. The type is required: a browser sends it.
///
/// # Errors
/// CONTENT_TYPE_UNSUPPORTED.
pub(super) fn check_form_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let is_form = types.next().is_some_and(|value| is_type(value, "application/x-www-form-urlencoded"));
    let is_plain = headers.get_all(CONTENT_ENCODING).iter().all(|coding| is_token(coding, "identity"));
    if is_form && is_plain && types.next().is_none() { Ok(()) } else { Err(Mistake::TypeNotForm.into()) }
}

fn is_json(value: &HeaderValue) -> bool {
    is_type(value, "application/json")
}

/// Whether a Content-Type is this media type in UTF-8.
fn is_type(value: &HeaderValue, expected: &str) -> bool {
    let mut parts = value.to_str().unwrap_or_default().split(';').map(str::trim);
    let is_expected = parts.next().is_some_and(|media_type| media_type.eq_ignore_ascii_case(expected));
    let is_utf8 = |parameter: &str| match parameter.split_once('=') {
        Some((name, value)) if name.eq_ignore_ascii_case("charset") => {
            value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        }
        _ => true,
    };
    is_expected && parts.all(is_utf8)
}

/// Whether the client sends its body only after `100 Continue`. hyper sends it over HTTP/1.1, when the body is read, and
/// never over HTTP/2: there the client waits for some time (curl: 1 s) and then sends the body.
pub(super) fn waits_for_continue(request: &Parts) -> bool {
    request.version == Version::HTTP_11
        && request.headers.get(EXPECT).is_some_and(|value| is_token(value, "100-continue"))
}

fn is_token(value: &HeaderValue, token: &str) -> bool {
    value.as_bytes().eq_ignore_ascii_case(token.as_bytes())
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn parts(version: Version, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().version(version).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn one_valid_host_is_required() {
        let (h1, h2) = (Version::HTTP_11, Version::HTTP_2);
        for (version, uri, hosts, expected) in [
            (h1, "/", &[("host", "edge")][..], Ok(())),
            (h1, "/", &[("host", "[::1]:8080")], Ok(())),
            (h1, "http://edge/", &[("host", "other:80")], Ok(())),
            (Version::HTTP_10, "/", &[], Ok(())),
            (h1, "/", &[], Err(Mistake::HostMissing)),
            (h1, "http://edge/", &[], Err(Mistake::HostMissing)),
            (h1, "/", &[("host", "edge"), ("host", "edge")], Err(Mistake::HostRepeated)),
            (h1, "/", &[("host", "")], Err(Mistake::HostMalformed)),
            (h1, "/", &[("host", "a b")], Err(Mistake::HostMalformed)),
            (h1, "/", &[("host", "user@edge")], Err(Mistake::HostMalformed)),
            (h1, "/", &[("host", "edge/path")], Err(Mistake::HostMalformed)),
            (h2, "http://edge:80/", &[], Ok(())),
            (h2, "http://edge:80/", &[("host", "EDGE:80")], Ok(())),
            (h2, "/", &[("host", "edge")], Ok(())),
            (h2, "/", &[], Err(Mistake::HostMissing)),
            (h2, "http://edge/", &[("host", "other")], Err(Mistake::HostDiffers)),
        ] {
            assert_eq!(check_host(&parts(version, uri, hosts)), expected, "{version:?} {uri} {hosts:?}");
        }
    }

    #[test]
    fn only_json_in_utf8_without_a_coding_is_supported() {
        let accepted =
            |headers: &[(&str, &str)]| check_body_type(&parts(Version::HTTP_11, "/", headers).headers).is_ok();
        for value in ["application/json", "Application/JSON; charset=UTF-8", "application/json;charset=\"utf-8\"; x=1"]
        {
            assert!(accepted(&[("content-type", value)]), "{value}");
        }
        assert!(accepted(&[]));
        assert!(accepted(&[("content-encoding", "identity")]));
        for value in ["text/plain", "", "application/json; charset=utf-16", "application/problem+json", "*/*"] {
            assert!(!accepted(&[("content-type", value)]), "{value}");
        }
        assert!(!accepted(&[("content-type", "application/json"), ("content-type", "application/json")]));
        assert!(!accepted(&[("content-encoding", "gzip")]));
    }

    #[test]
    fn a_form_has_its_type() {
        let accepted =
            |headers: &[(&str, &str)]| check_form_type(&parts(Version::HTTP_11, "/", headers).headers).is_ok();
        assert!(accepted(&[("content-type", "application/x-www-form-urlencoded")]));
        assert!(accepted(&[("content-type", "application/x-www-form-urlencoded; charset=UTF-8")]));
        assert!(!accepted(&[]));
        for value in ["application/json", "multipart/form-data; boundary=x", "text/plain"] {
            assert!(!accepted(&[("content-type", value)]), "{value}");
        }
        let form = ("content-type", "application/x-www-form-urlencoded");
        assert!(!accepted(&[form, form]) && !accepted(&[form, ("content-encoding", "gzip")]));
    }

    #[test]
    fn the_size_of_target_and_headers_is_limited() {
        let long = "x".repeat(16 * 1024);
        for version in [Version::HTTP_11, Version::HTTP_2] {
            let header = parts(version, "http://edge/", &[("x-long", &long)]);
            assert_eq!(check_head(&header), Err(ApiError::HEADERS_TOO_LARGE));
            let target = parts(version, &format!("http://edge/{long}"), &[]);
            assert_eq!(check_head(&target), Err(ApiError::HEADERS_TOO_LARGE));
        }
    }
}
