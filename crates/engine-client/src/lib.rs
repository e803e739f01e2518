//! What operators ask of a running engine from the command line: how far its rotation is, what its records are under.
//!
//! It knows the generated client and TLS, and nothing else of the engine. What must never enter: a key, a record, a card.

use std::{error::Error as _, io, path::PathBuf, time::Duration};

use clap::Args;
use thiserror::Error;
use tonic::{Code, Request, Status, Streaming, transport::Channel};

use net::{
    AddressError, EngineAddress,
    connect::channel,
    tls::{ClientTls, ClientTlsConfig, TlsError},
};
use proto::{
    CountRecordsRequest, CountRecordsResponse, Key, ListKeysRequest, RotationProgress, WatchRotationRequest,
    key_service_client::KeyServiceClient,
};

/// How long an engine may take to name its keys.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// Mutual TLS to an engine: all three, or none on this machine.
#[derive(Args, Default)]
pub struct EngineTls {
    /// The roots of the engine's certificate, in PEM; not needed for an engine on this machine that has no TLS
    #[arg(long, value_name = "FILE", requires_all = ["engine", "engine_certificates", "engine_private_key"])]
    engine_roots: Option<PathBuf>,
    /// Our own certificate chain, in PEM; the engine's [[peers]] give it the right `keys`
    #[arg(long, value_name = "FILE", requires_all = ["engine_roots", "engine_private_key"])]
    engine_certificates: Option<PathBuf>,
    /// Our own private key, in PEM; only its owner may read the file
    #[arg(long, value_name = "FILE", requires_all = ["engine_roots", "engine_certificates"])]
    engine_private_key: Option<PathBuf>,
}

impl EngineTls {
    fn config(&self) -> Option<ClientTlsConfig> {
        Some(ClientTlsConfig {
            roots: self.engine_roots.clone()?,
            certificates: self.engine_certificates.clone()?,
            private_key: self.engine_private_key.clone()?,
        })
    }
}

/// A running engine, as those who operate it ask it.
pub struct RunningEngine(KeyServiceClient<Channel>);

impl RunningEngine {
    /// The one at `address`; within a runtime. It is reached with the first question.
    pub fn at(address: &str, tls: &EngineTls) -> Result<Self, OperatorError> {
        let address = EngineAddress::from_argument(address)?;
        let tls = tls.config().as_ref().map(ClientTls::load).transpose()?;
        let channel = channel(&address, tls).map_err(|error| match error {
            // In words of the command line.
            TlsError::Plain { address } => OperatorError::Plain { address },
            error => error.into(),
        })?;
        Ok(Self(KeyServiceClient::new(channel)))
    }

    /// The keys it has in use.
    pub async fn keys(&mut self) -> Result<Vec<Key>, OperatorError> {
        let mut request = Request::new(ListKeysRequest {});
        request.set_timeout(ANSWER_TIME_MAX);
        Ok(self.0.list_keys(request).await?.into_inner().keys)
    }

    /// What its records are: every one of them.
    pub async fn records(&mut self) -> Result<CountRecordsResponse, OperatorError> {
        let mut counts = self.0.count_records(CountRecordsRequest {}).await?.into_inner();
        while let Some(counted) = counts.message().await? {
            if counted.complete {
                return Ok(counted);
            }
        }
        Err(OperatorError::CutOff)
    }

    /// How far its rotation is, again and again until it has ended.
    pub async fn rotation(&mut self) -> Result<Streaming<RotationProgress>, OperatorError> {
        Ok(self.0.watch_rotation(WatchRotationRequest {}).await?.into_inner())
    }
}

/// Why an engine was not asked, or what it says that is not well.
#[derive(Debug, Error)]
pub enum OperatorError {
    /// Certificates, keys or the address are not what they should be.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address of the engine is not valid.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// It would be asked in the clear.
    #[error(
        "{address} would be asked without TLS, which is for http:// on this machine alone: give --engine-roots, \
         --engine-certificates and --engine-private-key"
    )]
    Plain {
        /// The address of the engine.
        address: EngineAddress,
    },
    /// It is not there, or does not serve now.
    #[error("the engine can't be asked ({0}): see that it runs and that the address is right")]
    Unavailable(String),
    /// It has too much to do.
    #[error("the engine is busy: {0}")]
    Busy(String),
    /// This certificate may not.
    #[error("the engine refused: {0}; in its configuration, [[peers]] give a certificate the right `keys`")]
    Forbidden(String),
    /// It knows no such question.
    #[error("the engine is of a release that can't be asked this: stop it, and count in its store")]
    Older,
    /// It answered something else.
    #[error("the engine failed ({0}): see its log")]
    Failed(String),
    /// Its answer has no end.
    #[error("the engine ended its answer in the middle: ask again")]
    CutOff,
    /// The rotation came to its end, and this is left.
    #[error("{failed} PIN records do not open: keep the older storage keys, and see the engine's log")]
    Closed {
        /// How many.
        failed: u64,
    },
    /// The rotation does not go on.
    #[error("the engine's store takes no more changes: see its log; the rotation goes on after a restart")]
    Stopped,
    /// Input or output.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl From<Status> for OperatorError {
    fn from(status: Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::PermissionDenied => Self::Forbidden(message),
            Code::Unimplemented => Self::Older,
            Code::ResourceExhausted => Self::Busy(message),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Self::Unavailable(message),
            // No answer of an engine's, but what became of the connection.
            Code::Internal | Code::Unknown if status.source().is_some() => Self::Unavailable(format!(
                "{message}; an engine with TLS takes --engine-roots, --engine-certificates and --engine-private-key"
            )),
            code => Self::Failed(format!("{code:?}: {message}")),
        }
    }
}
