//! TLS, for both services: 1.3 alone, by rustls and AWS-LC. Certificates, keys and roots are read again when their files
//! change, without a restart; a broken new file keeps the old one serving.

mod files;
mod serve;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use serde::Deserialize;
use thiserror::Error;

use crate::engine_address::{AddressError, EngineAddress};

pub use self::files::ClientTls;
pub use self::serve::{Http2Stream, greeted};
pub use self::{
    files::ServerTls,
    serve::{Peer, ServerStream},
};

/// What a TLS server needs.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerTlsConfig {
    /// Its certificate chain, in PEM.
    pub certificates: PathBuf,
    /// Its private key, in PEM; only its owner may read the file.
    pub private_key: PathBuf,
    /// The roots of client certificates, in PEM. An engine must have them; an edge asks for no certificate without.
    pub client_roots: Option<PathBuf>,
}

/// What a client of the engine needs for mutual TLS.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientTlsConfig {
    /// The roots of the engine's certificate, in PEM.
    pub roots: PathBuf,
    /// Its own certificate chain, in PEM.
    pub certificates: PathBuf,
    /// Its own private key, in PEM; only its owner may read the file.
    pub private_key: PathBuf,
}

/// Whether an engine may listen there: without mutual TLS, on loopback alone.
pub fn may_listen_engine(address: SocketAddr, tls: Option<&ServerTlsConfig>) -> Result<(), ListenError> {
    match tls {
        Some(tls) if tls.client_roots.is_some() => Ok(()),
        Some(_) => Err(ListenError::NoClientRoots),
        None if address.ip().is_loopback() => Ok(()),
        None => Err(ListenError::EngineWithoutTls { address }),
    }
}

/// Whether an edge may listen there: without TLS, on loopback alone.
pub fn may_listen_edge(address: SocketAddr, tls: Option<&ServerTlsConfig>) -> Result<(), ListenError> {
    match tls {
        None if !address.ip().is_loopback() => Err(ListenError::EdgeWithoutTls { address }),
        _ => Ok(()),
    }
}

/// Why a service may not listen somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ListenError {
    /// An engine beyond loopback without TLS.
    #[error(
        "the engine may not listen on {address} without mutual TLS: any client that reaches it could request any PIN. \
         Set [tls], or listen on 127.0.0.1"
    )]
    EngineWithoutTls {
        /// Where.
        address: SocketAddr,
    },
    /// An edge beyond loopback without TLS.
    #[error(
        "the edge may not listen on {address} without TLS: credentials would cross the network in the clear. \
         Set [tls], or listen on 127.0.0.1"
    )]
    EdgeWithoutTls {
        /// Where.
        address: SocketAddr,
    },
    /// An engine's TLS that asks for no certificate.
    #[error("the engine's [tls] has no client_roots: without them anyone could call it")]
    NoClientRoots,
}

/// Why TLS can't be set up.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file can't be read, or is not what it should be.
    #[error("{}: {problem}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Others may read a private key.
    #[error("{} can be read by others than its owner: chmod 600 it", path.display())]
    OpenToOthers {
        /// Which file.
        path: PathBuf,
    },
    /// The pieces do not fit.
    #[error("certificate, key and roots do not fit together: {0}")]
    Unfit(String),
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
    /// The other side did not shake hands.
    #[error("the TLS handshake failed: {0}")]
    Handshake(io::Error),
    /// The client's handshake was not complete in time.
    #[error("the TLS handshake took longer than {} s", limit.as_secs())]
    HandshakeTime {
        /// How long it may take.
        limit: Duration,
    },
    /// The client sent no byte of its ClientHello in time.
    #[error("the client sent nothing for {} s", limit.as_secs())]
    Silent {
        /// How long it may take.
        limit: Duration,
    },
    /// The client did not begin HTTP/2 (RFC 9113, 3.4) in time, or spoke something else.
    #[error("the client sent no HTTP/2 preface within {} s", limit.as_secs())]
    Preface {
        /// How long it may take.
        limit: Duration,
    },
    /// The connection was the oldest silent one when a limit was reached.
    #[error("the oldest silent connection was closed for a new one")]
    Displaced,
}

/// The one place where the cryptography of TLS is chosen.
fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
