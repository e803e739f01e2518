//! The client of an engine for operators and auditors: the keys in use, the progress of a rotation, the count of records, the
//! audit chain.
//!
//! This crate uses the generated gRPC client and TLS. It must never depend on the engine, a store or the key boundary, and
//! never handle a key, a record or a card.
//!
//! ```no_run
//! use clap::Args;
//! use engine_client::{EngineTls, RunningEngine};
//!
//! #[derive(clap::Parser)]
//! struct Arguments {
//!     #[arg(long)]
//!     engine: String,
//!     #[command(flatten)]
//!     tls: EngineTls,
//! }
//!
//! # async fn example() -> Result<(), engine_client::OperatorError> {
//! let Arguments { engine, tls } = clap::Parser::parse();
//! let mut engine = RunningEngine::at(&engine, &tls)?;
//! println!("{} keys in use", engine.keys().await?.len());
//! # Ok(())
//! # }
//! ```

use std::{error::Error as _, io, path::PathBuf, time::Duration};

use clap::Args;
use thiserror::Error;
use tonic::{Code, Request, Status, Streaming, transport::Channel};
use tonic_types::StatusExt;

use audit::{
    chain::{ChainError, ChainProblem, Checkpoint},
    entry::Entry,
};
use audit_wire::EntryMessageError;
use net::{
    AddressError, EngineAddress, EngineChannel,
    connect::channel,
    tls::{ClientTls, ClientTlsConfig, TlsError},
};
use proto::{
    CountRecordsRequest, CountRecordsResponse, ExportAuditRequest, ExportAuditResponse, GetCheckpointRequest, Key,
    ListKeysRequest, START_SEQUENCE_KEY, WatchRotationRequest, WatchRotationResponse,
    audit_service_client::AuditServiceClient,
    key_service_client::KeyServiceClient,
    reason::{ERROR_DOMAIN, Reason},
};

/// The timeout of a call with one reply.
const REPLY_TIME_MAX: Duration = Duration::from_secs(10);

/// The arguments of mutual TLS to an engine: all three, or none for an engine on this machine without TLS.
#[derive(Args, Default)]
pub struct EngineTls {
    /// Roots of the engine's certificate, in PEM; not needed for an engine on this machine without TLS
    #[arg(long, value_name = "FILE", requires_all = ["engine", "engine_certificates", "engine_private_key"])]
    engine_roots: Option<PathBuf>,
    /// Certificate chain of this client, in PEM; an entry in the engine's [[peers]] gives it its roles
    #[arg(long, value_name = "FILE", requires_all = ["engine_roots", "engine_private_key"])]
    engine_certificates: Option<PathBuf>,
    /// Private key of this client, in PEM; only the owner may read the file
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

/// A client of a running engine.
pub struct RunningEngine {
    keys: KeyServiceClient<EngineChannel>,
    audit: AuditServiceClient<EngineChannel>,
}

impl RunningEngine {
    /// A client of the engine at `address`: a URL or `HOST:PORT`. Call this inside a Tokio runtime. The first call connects.
    ///
    /// # Errors
    /// The address is not valid, it requires TLS that `tls` does not have, or a file of `tls` cannot be loaded.
    pub fn at(address: &str, tls: &EngineTls) -> Result<Self, OperatorError> {
        let channel = EngineChannel::from(channel_to(address, tls)?);
        Ok(Self { keys: KeyServiceClient::new(channel.clone()), audit: AuditServiceClient::new(channel) })
    }

    /// The keys that the engine has in use.
    ///
    /// # Errors
    /// The call fails, or its reply does not arrive within 10 seconds.
    pub async fn keys(&mut self) -> Result<Vec<Key>, OperatorError> {
        let mut request = Request::new(ListKeysRequest {});
        request.set_timeout(REPLY_TIME_MAX);
        Ok(self.keys.list_keys(request).await?.into_inner().keys)
    }

    /// The count of all records. The engine scans its whole store, which can take minutes.
    ///
    /// # Errors
    /// The call fails, or the stream ends before the count is complete.
    pub async fn records(&mut self) -> Result<CountRecordsResponse, OperatorError> {
        let mut counts = self.keys.count_records(CountRecordsRequest {}).await?.into_inner();
        while let Some(counted) = counts.message().await? {
            if counted.complete {
                return Ok(counted);
            }
        }
        Err(OperatorError::CutOff)
    }

    /// The progress of the rotation: one message at once, then about one a second until the rotation ends.
    ///
    /// # Errors
    /// The call fails.
    pub async fn rotation(&mut self) -> Result<Streaming<WatchRotationResponse>, OperatorError> {
        Ok(self.keys.watch_rotation(WatchRotationRequest {}).await?.into_inner())
    }

    /// The newest signed checkpoint of the audit chain: a signed note, which is not verified here.
    ///
    /// # Errors
    /// The call fails, for example because no checkpoint is signed yet, or its reply does not arrive within 10 seconds.
    pub async fn checkpoint(&mut self) -> Result<String, OperatorError> {
        let mut request = Request::new(GetCheckpointRequest {});
        request.set_timeout(REPLY_TIME_MAX);
        Ok(self.audit.get_checkpoint(request).await?.into_inner().signed_note)
    }

    /// Entries of the audit chain, as the request says.
    ///
    /// # Errors
    /// The call fails.
    pub async fn audit(&mut self, mut request: ExportAuditRequest) -> Result<AuditEntries, OperatorError> {
        let mut audit = self.audit.clone();
        let responses = export(&mut audit, &mut request).await?;
        Ok(AuditEntries { audit, request, responses, reached: None })
    }
}

/// A channel to the engine at `address`: a URL or `HOST:PORT`. Call this inside a Tokio runtime. The first call connects, and
/// each call after a failed connection.
///
/// # Errors
/// The address is not valid, it requires TLS that `tls` does not have, or a file of `tls` cannot be loaded.
pub fn channel_to(address: &str, tls: &EngineTls) -> Result<Channel, OperatorError> {
    let address = EngineAddress::from_argument(address)?;
    let tls = tls.config().as_ref().map(ClientTls::load).transpose()?;
    channel(&address, tls).map_err(|error| match error {
        // This error names the arguments of the command line, not the sections of a configuration file.
        TlsError::Plain { address } => OperatorError::Plain { address },
        error => error.into(),
    })
}

/// Calls `ExportAudit`. A repeat of the request then begins with the same entry, also where the request has a number of newest
/// entries.
async fn export(
    audit: &mut AuditServiceClient<EngineChannel>,
    request: &mut ExportAuditRequest,
) -> Result<Streaming<ExportAuditResponse>, OperatorError> {
    let response = audit.export_audit(*request).await?;
    let start = response.metadata().get(START_SEQUENCE_KEY).and_then(|start| start.to_str().ok()?.parse().ok());
    if let Some(start) = start {
        (request.start_sequence, request.newest_count) = (start, 0);
    }
    Ok(response.into_inner())
}

/// Entries of the audit chain of a running engine, rebuilt from the fields of their messages.
pub struct AuditEntries {
    audit: AuditServiceClient<EngineChannel>,
    /// Asks for the entries after [`Self::reached`].
    request: ExportAuditRequest,
    responses: Streaming<ExportAuditResponse>,
    /// The entry before.
    reached: Option<Checkpoint>,
}

impl AuditEntries {
    /// The next entry; `None` after the last one. Continues on another connection where the age of one ends the stream.
    ///
    /// # Errors
    /// The call fails, the hash of the entry is not the hash of its content, or the entry does not follow the entry with the
    /// sequence number before it. A peer that is limited to tenants does not get every entry.
    pub async fn next(&mut self) -> Result<Option<Entry>, OperatorError> {
        let response = loop {
            match self.responses.message().await.map_err(OperatorError::from) {
                Ok(Some(response)) => break response,
                Ok(None) => return Ok(None),
                Err(OperatorError::ConnectionAge) => {
                    let wanted = self.request.start_sequence;
                    self.responses = export(&mut self.audit, &mut self.request).await?;
                    if self.request.start_sequence > wanted {
                        return Err(OperatorError::Archived { first: wanted });
                    }
                }
                Err(error) => return Err(error),
            }
        };
        let entry = audit_wire::read_entry(response.entry.unwrap_or_default())?;
        let follows =
            |before: Checkpoint| before.sequence.saturating_add(1) != entry.sequence || before.hash == entry.previous;
        if !self.reached.is_none_or(follows) {
            return Err(ChainError { sequence: entry.sequence, problem: ChainProblem::Unlinked }.into());
        }
        self.reached = Some(Checkpoint { sequence: entry.sequence, hash: entry.hash });
        (self.request.start_sequence, self.request.newest_count) = (entry.sequence.saturating_add(1), 0);
        Ok(Some(entry))
    }
}

/// The error of a call to a running engine, or a result that needs the operator.
#[derive(Debug, Error)]
pub enum OperatorError {
    /// A certificate, key or root cannot be loaded.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address of the engine is not valid.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// The engine would be called without TLS.
    #[error(
        "{address} would be called without TLS, which is allowed only with http:// on this machine: give --engine-roots, \
         --engine-certificates and --engine-private-key"
    )]
    Plain {
        /// The address of the engine.
        address: EngineAddress,
    },
    /// The engine cannot be reached, or does not serve.
    #[error("the engine is not available ({0}): check that it runs and that the address is right")]
    Unavailable(String),
    /// The engine is busy, for example with another count.
    #[error("the engine is busy: {0}; try again later")]
    Busy(String),
    /// The certificate of this client does not have a role for the call.
    #[error(
        "the engine rejected the call: {0}; the entries of [[peers]] in its configuration give a certificate its roles"
    )]
    Forbidden(String),
    /// The engine does not implement the call.
    #[error("the engine is of an older release without this call: stop the engine, and count in its store")]
    Older,
    /// The engine failed.
    #[error("the engine failed ({0}): see its log")]
    Failed(String),
    /// The stream ended before its last message.
    #[error("the engine ended its reply early: repeat the command")]
    CutOff,
    /// The entries after the last one received were archived, and removed from the store.
    #[error("the store has no entry {first} any more: read the entries from {first} on in the archive files")]
    Archived {
        /// The number of the first entry that is missing.
        first: u64,
    },
    /// A stream ended because its connection reached its maximum age.
    #[error("the connection reached its maximum age: repeat the command")]
    ConnectionAge,
    /// The rotation ended, and some records do not decrypt.
    #[error("{failed} PIN records do not decrypt: keep the older storage keys, and see the engine's log")]
    RecordsFailed {
        /// The number of these records.
        failed: u64,
    },
    /// The rotation stopped before its end.
    #[error("the engine's store rejects changes: see the engine's log; the rotation continues after a restart")]
    Stopped,
    /// The engine sent a message that is not an entry.
    #[error(transparent)]
    Entry(#[from] EntryMessageError),
    /// The engine sent an entry that does not follow the entry before it.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The runtime could not start, or the output failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl OperatorError {
    /// Whether the same call may succeed later: the engine or the connection was not available, or the engine was busy.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Busy(_) | Self::CutOff | Self::ConnectionAge)
    }
}

impl From<Status> for OperatorError {
    fn from(status: Status) -> Self {
        let info = status.get_details_error_info().filter(|info| info.domain == ERROR_DOMAIN);
        if info.and_then(|info| Reason::parse(&info.reason)) == Some(Reason::ConnectionAge) {
            return Self::ConnectionAge;
        }
        let message = status.message().to_owned();
        match status.code() {
            Code::PermissionDenied => Self::Forbidden(message),
            Code::Unimplemented => Self::Older,
            Code::ResourceExhausted | Code::Aborted => Self::Busy(message),
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Self::Unavailable(message),
            // A status with a source is an error of the connection, not a reply of the engine.
            Code::Internal | Code::Unknown if status.source().is_some() => Self::Unavailable(format!(
                "{message}; an engine with TLS requires --engine-roots, --engine-certificates and --engine-private-key"
            )),
            code => Self::Failed(format!("{code:?}: {message}")),
        }
    }
}
