//! The address of an engine, parsed once.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use http::{Uri, uri::Scheme};
use rustls_pki_types::ServerName;
use thiserror::Error;

/// The port of an address without a port.
const DEFAULT_PORT: u16 = 50_051;

/// The address of an engine. [`FromStr`] reads a URL with `http` or `https`, for example `https://engine.internal:50051`;
/// without a port, the port is 50051. The path of the URL is ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineAddress {
    scheme: Scheme,
    pub(super) host: ServerName<'static>,
    pub(super) port: u16,
}

impl EngineAddress {
    /// Reads an address of the command line: a URL, or `HOST[:PORT]`, which means `http`.
    ///
    /// # Errors
    /// The text is neither.
    pub fn from_argument(text: &str) -> Result<Self, AddressError> {
        Self::parse(text, Some(Scheme::HTTP))
    }

    fn parse(text: &str, default_scheme: Option<Scheme>) -> Result<Self, AddressError> {
        let wrong = || AddressError(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let scheme = uri.scheme().cloned().or(default_scheme);
        let scheme = scheme.filter(|scheme| [Scheme::HTTP, Scheme::HTTPS].contains(scheme)).ok_or_else(wrong)?;
        let (host, port) = (uri.host().ok_or_else(wrong)?, uri.port_u16().unwrap_or(DEFAULT_PORT));
        // A URL has brackets around an IPv6 address, as the text of a socket address has.
        let host = match format!("{host}:{port}").parse::<SocketAddr>() {
            Ok(address) => ServerName::from(address.ip()),
            Err(_) => ServerName::try_from(host.to_owned()).map_err(|_| wrong())?,
        };
        Ok(Self { scheme, host, port })
    }

    /// Whether the URL has `https`.
    pub fn has_https(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// Whether a connection without TLS is allowed: only to this machine, where no network can read or change the calls.
    pub(super) fn may_be_plain(&self) -> bool {
        let is_local = match &self.host {
            ServerName::IpAddress(address) => IpAddr::from(*address).is_loopback(),
            ServerName::DnsName(name) => name.as_ref().eq_ignore_ascii_case("localhost"),
            _ => false,
        };
        self.scheme == Scheme::HTTP && is_local
    }

    pub(super) fn with_http(&self) -> Self {
        Self { scheme: Scheme::HTTP, ..self.clone() }
    }
}

impl FromStr for EngineAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        Self::parse(text, None)
    }
}

impl From<SocketAddr> for EngineAddress {
    /// The address of an engine without TLS.
    fn from(address: SocketAddr) -> Self {
        Self { scheme: Scheme::HTTP, host: address.ip().into(), port: address.port() }
    }
}

impl fmt::Display for EngineAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scheme, host, port } = self;
        match host {
            ServerName::IpAddress(address) => write!(f, "{scheme}://{}", SocketAddr::new((*address).into(), *port)),
            name => write!(f, "{scheme}://{}:{port}", name.to_str()),
        }
    }
}

/// The text is not the address of an engine.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0} is not the address of an engine: write a URL, for example https://engine.internal:50051")]
pub struct AddressError(pub(super) String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_not_a_url_of_an_engine_is_rejected() {
        for address in ["localhost:50051", "127.0.0.1:50051", "ftp://127.0.0.1", "no address", "http://", ""] {
            assert_eq!(address.parse::<EngineAddress>(), Err(AddressError(address.into())));
        }
    }

    #[test]
    fn a_command_line_address_without_a_scheme_is_http() {
        for (argument, url) in [
            ("127.0.0.1:50051", "http://127.0.0.1:50051"),
            ("[::1]:7", "http://[::1]:7"),
            ("localhost", "http://localhost:50051"),
            ("https://engine.internal", "https://engine.internal:50051"),
        ] {
            assert_eq!(EngineAddress::from_argument(argument).unwrap().to_string(), url);
        }
        assert!(EngineAddress::from_argument("ftp://127.0.0.1").is_err());
    }
}
