//! TLS 1.3 of both services, with rustls and AWS-LC. Certificates, keys and roots are reloaded when their files change,
//! without a restart. If a new file is not valid, the service keeps the old certificates.

mod expiry;
mod files;
mod pem;
mod serve;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use serde::Deserialize;
use thiserror::Error;

use crate::engine_address::{AddressError, EngineAddress};

pub use self::{
    expiry::{CertificateExpiry, register_expiry, report_daily},
    files::{ClientTls, ServerTls},
    serve::{Http2Stream, Peer, ServerStream, accept_http2},
};

/// The files of a TLS server.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerTlsConfig {
    /// The certificate chain of the server, in PEM.
    pub certificates: PathBuf,
    /// The private key, in PEM; only the owner may read the file.
    pub private_key: PathBuf,
    /// The roots of client certificates, in PEM. Required for an engine. An edge without roots requests no client
    /// certificate.
    pub client_roots: Option<PathBuf>,
    /// Whether a client without a certificate may connect, where `client_roots` are set.
    #[serde(default)]
    pub client_certificate: ClientCertificate,
}

/// Whether a handshake needs a client certificate. The configuration file uses the names in lower case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientCertificate {
    /// A handshake without a certificate fails.
    #[default]
    Required,
    /// A client without a certificate may connect, and has another credential. An engine does not allow this.
    Optional,
}

/// The files of a client of the engine, for mutual TLS.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientTlsConfig {
    /// The roots of the engine's certificate, in PEM.
    pub roots: PathBuf,
    /// The certificate chain of the client, in PEM.
    pub certificates: PathBuf,
    /// The private key, in PEM; only the owner may read the file.
    pub private_key: PathBuf,
}

/// Checks that an engine without mutual TLS listens on loopback only.
///
/// # Errors
/// The address is not loopback and mutual TLS is not configured, or TLS has no client roots or an optional certificate.
pub fn may_listen_engine(address: SocketAddr, tls: Option<&ServerTlsConfig>) -> Result<(), ListenError> {
    match tls {
        Some(tls) if tls.client_certificate == ClientCertificate::Optional => Err(ListenError::OptionalCertificate),
        Some(tls) if tls.client_roots.is_some() => Ok(()),
        Some(_) => Err(ListenError::NoClientRoots),
        None if address.ip().is_loopback() => Ok(()),
        None => Err(ListenError::EngineWithoutTls { address }),
    }
}

/// Checks that an edge without TLS listens on loopback only.
///
/// # Errors
/// The address is not loopback and TLS is not configured.
pub fn may_listen_edge(address: SocketAddr, tls: Option<&ServerTlsConfig>) -> Result<(), ListenError> {
    match tls {
        None if !address.ip().is_loopback() => Err(ListenError::EdgeWithoutTls { address }),
        _ => Ok(()),
    }
}

/// The listen address and the TLS configuration do not go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ListenError {
    /// The engine has no TLS and the address is not loopback.
    #[error(
        "the engine may not listen on {address} without mutual TLS: any client that reaches it could request any PIN. \
         Set [tls], or listen on 127.0.0.1"
    )]
    EngineWithoutTls {
        /// The configured listen address.
        address: SocketAddr,
    },
    /// The edge has no TLS and the address is not loopback.
    #[error(
        "the edge may not listen on {address} without TLS: credentials would cross the network in the clear. \
         Set [tls], or listen on 127.0.0.1"
    )]
    EdgeWithoutTls {
        /// The configured listen address.
        address: SocketAddr,
    },
    /// The TLS of the engine would request no client certificate.
    #[error(
        "[tls] of the engine has no client_roots: any client could call the engine. Set client_roots to the roots of the callers"
    )]
    NoClientRoots,
    /// The TLS of the engine would allow a client without a certificate.
    #[error(
        "[tls] of the engine has client_certificate = \"optional\", and a certificate is the only credential of a peer: remove the key"
    )]
    OptionalCertificate,
}

/// The error of a TLS configuration, or of one connection.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read, or has the wrong content.
    #[error("{}: {problem}", path.display())]
    File {
        /// The configured file.
        path: PathBuf,
        /// The error of the operating system, of the PEM parser or of rustls.
        problem: String,
    },
    /// A PEM file has no section of the expected kind.
    #[error("{}: {problem}", path.display())]
    Pem {
        /// The configured file.
        path: PathBuf,
        /// What the file has instead.
        problem: PemProblem,
    },
    /// Other users may read a private key.
    #[error("users other than the owner can read {}: run chmod 600 on it", path.display())]
    OpenToOthers {
        /// The file of the private key.
        path: PathBuf,
    },
    /// rustls rejects the certificate, key and roots together.
    #[error("certificate, key and roots do not fit together: {0}")]
    Rejected(String),
    /// The text is not the address of an engine.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The engine would be called without TLS.
    #[error(
        "the engine at {address} would be called without TLS, which is allowed only with http:// on this machine: set its \
         roots, certificates and private key ([engine.tls] of an edge)"
    )]
    Plain {
        /// The address of the engine.
        address: EngineAddress,
    },
    /// The TLS handshake failed, or the connection broke before HTTP/2 started.
    #[error("the TLS handshake failed: {0}")]
    Handshake(io::Error),
    /// The handshake was not complete in time.
    #[error("the TLS handshake took longer than {} s", limit.as_secs())]
    HandshakeTime {
        /// The longest time for it.
        limit: Duration,
    },
    /// The client sent no byte of its ClientHello in time.
    #[error("the client sent nothing for {} s", limit.as_secs())]
    Silent {
        /// The longest time for it.
        limit: Duration,
    },
    /// The client did not start HTTP/2 (RFC 9113, 3.4) in time, or sent other bytes.
    #[error("the client sent no HTTP/2 preface within {} s", limit.as_secs())]
    Preface {
        /// The longest time for it.
        limit: Duration,
    },
    /// The connection was the oldest silent one when the connection table was full.
    #[error("the oldest silent connection was closed for a new one")]
    Displaced,
}

/// The content of a file in which a PEM section was expected (RFC 7468).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PemProblem {
    /// A private key under a passphrase (PKCS #8, or the older `Proc-Type: 4,ENCRYPTED`).
    #[error(
        "the private key is encrypted, and a service has no passphrase for it: decrypt it with `openssl pkey -in FILE -out \
         NEW`, run chmod 600 on NEW, and name NEW in the configuration"
    )]
    EncryptedKey,
    /// A byte order mark hides the first section.
    #[error("the file begins with a byte order mark: save it as ASCII or UTF-8 without one")]
    ByteOrderMark,
    /// The file is empty.
    #[error("the file is empty: write the certificate or the key to it, in PEM")]
    Empty,
    /// The file is not PEM.
    #[error("the file has no PEM section: if it is DER, convert it with openssl; it needs a section {expected}")]
    NoSection {
        /// The label, for example `CERTIFICATE`.
        expected: &'static str,
    },
    /// The file has sections of other kinds only.
    #[error("the file has no PEM section {expected}, only {}: name another file", found.join(", "))]
    OtherSections {
        /// The label, for example `CERTIFICATE`.
        expected: &'static str,
        /// The labels of the file.
        found: Vec<String>,
    },
}

/// The only place that selects the cryptography of TLS. Its first key exchange is X25519MLKEM768 (the feature
/// `prefer-post-quantum` of rustls), so a recording of today cannot be decrypted by a quantum computer later.
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
