//! Converts gRPC messages to and from the domain types, and errors to statuses. No other file makes a status.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use hsm_protocol::{AccountNumber, DeviceKey, EncryptedBlock, Mgf1Hash};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::call_limits::TenantRate;
use crate::pin::{IssueTzpkError, RegisterCardError, SetPinError, ViewPinError};
use crate::rotation::{Census, KeyUsers, Progress, RotationState};
use domain::caller::AuditUser;
use domain::card::{Card, PinStatus, PlasticId, RegisteredAccount, Tenant};
use domain::control::{ControlId, Denied, Scope, Thumbprint};
use domain::request_id::{RequestId, RequestIdError};
use proto::REQUEST_ID_KEY;
use proto::reason::{ERROR_DOMAIN, Reason};
use store::{ChangeError, StoreError};

/// Parses a tenant.
pub(super) fn tenant(text: &str) -> Result<Tenant, Status> {
    Tenant::parse(text).map_err(|error| invalid(Reason::TenantInvalid, &error))
}

/// Parses an auditUser.
pub(super) fn audit_user(text: &str) -> Result<AuditUser, Status> {
    AuditUser::parse(text).map_err(|error| invalid(Reason::AuditUserInvalid, &error))
}

/// Parses a plasticId.
pub(super) fn plastic_id(text: &str) -> Result<PlasticId, Status> {
    PlasticId::parse(text).map_err(|error| invalid(Reason::PlasticIdInvalid, &error))
}

/// Parses an account number; an empty text is `None`.
pub(super) fn account_number(text: &str) -> Result<Option<AccountNumber>, Status> {
    let number = (!text.is_empty()).then(|| AccountNumber::parse(text)).transpose();
    number.map_err(|error| invalid(Reason::AccountNumberInvalid, &error))
}

/// Parses a controlId.
pub(super) fn control_id(text: &str) -> Result<ControlId, Status> {
    ControlId::parse(text).map_err(|error| invalid(Reason::ControlIdInvalid, &error))
}

/// Converts a scope.
pub(super) fn scope(scope: i32) -> Result<Scope, Status> {
    match proto::Scope::try_from(scope) {
        Ok(proto::Scope::SetPin) => Ok(Scope::SetPin),
        Ok(proto::Scope::ViewPin) => Ok(Scope::ViewPin),
        _ => Err(invalid(Reason::ScopeInvalid, &"the scope is SCOPE_SET_PIN or SCOPE_VIEW_PIN")),
    }
}

/// Converts the thumbprint of a device key; no bytes are `None`.
pub(super) fn thumbprint(bytes: &[u8]) -> Result<Option<Thumbprint>, Status> {
    match bytes {
        [] => Ok(None),
        bytes => <[u8; 32]>::try_from(bytes)
            .map(|sha256| Some(Thumbprint(sha256)))
            .map_err(|_| invalid(Reason::DeviceKeyInvalid, &"device_key_sha256 is 32 bytes, or absent")),
    }
}

/// Parses a device key, and the form of RSA-OAEP that the device decrypts.
pub(super) fn device_key(der: &[u8], oaep_mgf1: i32) -> Result<DeviceKey, Status> {
    let mgf1 = match proto::OaepMgf1::try_from(oaep_mgf1) {
        Ok(proto::OaepMgf1::Unspecified | proto::OaepMgf1::Sha256) => Mgf1Hash::Sha256,
        Ok(proto::OaepMgf1::Sha1) => Mgf1Hash::Sha1,
        Err(_) => return Err(invalid(Reason::DeviceKeyInvalid, &"oaep_mgf1 is not a hash that this engine knows")),
    };
    let key = DeviceKey::parse(der).map_err(|error| invalid(Reason::DeviceKeyInvalid, &error))?;
    Ok(key.with_mgf1(mgf1))
}

/// Converts an encrypted PIN block of 8 bytes.
pub(super) fn pin_block(bytes: &[u8]) -> Result<EncryptedBlock, Status> {
    EncryptedBlock::from_bytes(bytes).map_err(|_| invalid(Reason::PinBlockLength, &"pin_block is 8 bytes"))
}

/// The PIN status of a card.
pub(super) fn pin_status(card: &Card) -> i32 {
    match card.pin_status {
        PinStatus::Waiting => proto::PinStatus::Waiting.into(),
        PinStatus::Set => proto::PinStatus::Set.into(),
        PinStatus::Generated => proto::PinStatus::Generated.into(),
    }
}

/// The masked account number of a card; empty without an account number.
pub(super) fn masked(account: Option<&RegisteredAccount>) -> String {
    account.map(|account| account.masked.to_string()).unwrap_or_default()
}

/// The description of the key boundary and its keys.
pub(super) fn keys(status: &hsm_protocol::Status) -> proto::ListKeysResponse {
    let key = |key: &hsm_protocol::KeyId| proto::Key {
        usage: key.usage.to_string(),
        version: key.version.0.into(),
        kcv: key.kcv.map(|kcv| kcv.as_bytes().to_vec()).unwrap_or_default(),
    };
    let isolation = match status.isolation() {
        hsm_protocol::Isolation::Process => proto::BoundaryIsolation::Process,
        hsm_protocol::Isolation::Inline => proto::BoundaryIsolation::Inline,
    };
    proto::ListKeysResponse {
        token: status.token().to_owned(),
        level: boundary_level(status.level()).into(),
        isolation: isolation.into(),
        format: storage_format(status.form()).into(),
        keys: status.keys().iter().map(key).collect(),
    }
}

fn boundary_level(level: hsm_protocol::BoundaryLevel) -> proto::BoundaryLevel {
    match level {
        hsm_protocol::BoundaryLevel::Token => proto::BoundaryLevel::Token,
        hsm_protocol::BoundaryLevel::Host => proto::BoundaryLevel::Host,
    }
}

fn storage_format(form: hsm_protocol::StorageFormat) -> proto::StorageFormat {
    match form {
        hsm_protocol::StorageFormat::Wrapped => proto::StorageFormat::Wrapped,
        hsm_protocol::StorageFormat::Iso4 => proto::StorageFormat::Iso4,
        hsm_protocol::StorageFormat::Iso3 => proto::StorageFormat::Iso3,
        hsm_protocol::StorageFormat::Iso0 => proto::StorageFormat::Iso0,
        hsm_protocol::StorageFormat::OneWay => proto::StorageFormat::OneWay,
    }
}

/// The progress of a rotation.
pub(super) fn rotation_progress(progress: &Progress) -> proto::WatchRotationResponse {
    let state = match progress.state {
        RotationState::Idle => proto::RotationState::Idle,
        RotationState::Running => proto::RotationState::Running,
        RotationState::Done => proto::RotationState::Done,
        RotationState::DoneWithFailures => proto::RotationState::DoneWithFailures,
        RotationState::Stopped => proto::RotationState::Stopped,
    };
    proto::WatchRotationResponse {
        state: state.into(),
        pass_number: progress.pass,
        total_count: progress.total,
        checked_count: progress.checked,
        reencrypted_count: progress.reencrypted,
        failed_count: progress.failed,
        records_per_second: progress.records_a_second,
        max_records_per_second: progress.records_a_second_max,
    }
}

/// The complete counts of the records, and what else needs an older key.
pub(super) fn complete_counts(census: &Census, users: KeyUsers, engine_name: &str) -> proto::CountRecordsResponse {
    let seal_key_uses = users
        .sealed
        .iter()
        .map(|(version, controls)| proto::SealKeyUse { seal_key_version: (*version).into(), control_count: *controls });
    proto::CountRecordsResponse {
        complete: true,
        unreadable_count: census.unreadable().saturating_add(users.unreadable),
        seal_key_uses: seal_key_uses.collect(),
        engine: engine_name.to_owned(),
        audit_engines: users.engines.into_iter().collect(),
        ..record_counts(census)
    }
}

/// The counts of the records so far.
pub(super) fn record_counts(census: &Census) -> proto::CountRecordsResponse {
    let record_groups = census.counts().iter().map(|(kind, records)| proto::RecordGroup {
        format: storage_format(kind.form).into(),
        level: boundary_level(kind.level).into(),
        storage_key_version: kind.storage_key_version.into(),
        record_count: *records,
    });
    proto::CountRecordsResponse {
        record_groups: record_groups.collect(),
        unreadable_count: census.unreadable(),
        ..proto::CountRecordsResponse::default()
    }
}

/// The engine stops before the rotation ends.
pub(super) fn rotation_cut_off() -> Status {
    let message = "the engine stops: the rotation continues when the engine starts again";
    status(Code::Unavailable, Reason::RotationCutOff, &message)
}

/// The deadline of a call passed before the call ended.
pub(super) fn deadline_passed() -> Status {
    let message = "the deadline of the call passed; a change that had begun may still be made: repeat the call";
    status(Code::DeadlineExceeded, Reason::DeadlinePassed, &message)
}

/// A response stream ends because its connection is too old.
pub(super) fn connection_age() -> Status {
    let message = "the connection reached its maximum age: repeat the call, from the entry after the last one received where \
                   it reads the audit chain";
    status(Code::Unavailable, Reason::ConnectionAge, &message)
}

/// A call has no request message, or a second one. The code is that of gRPC's table of status codes for this error.
pub(super) fn message_count() -> Status {
    status(Code::Unimplemented, Reason::MessageCount, &"a call of this method has exactly one request message")
}

/// The engine stops while a call follows the audit chain.
pub(super) fn engine_stops() -> Status {
    status(
        Code::Unavailable,
        Reason::EngineStops,
        &"the engine stops: follow the audit chain again when it has started",
    )
}

/// No checkpoint of the audit chain is signed yet.
pub(super) fn checkpoint_not_signed() -> Status {
    let message = "the engine has not signed a checkpoint yet: try again later, and see the engine's log";
    status(Code::NotFound, Reason::CheckpointNotSigned, &message)
}

/// Another count is running.
pub(super) fn counting() -> Status {
    let message = "another count of the records is running: try again when it has ended";
    status(Code::ResourceExhausted, Reason::Counting, &message)
}

/// The engine, or the caller, has reached the limit of exports at a time.
pub(super) fn exports_busy() -> Status {
    let message = "too many exports of the audit chain are running: try again when one has ended";
    status(Code::ResourceExhausted, Reason::ExportsBusy, &message)
}

/// The tenant has no call left in this second.
pub(super) fn tenant_rate(rate: &TenantRate) -> Status {
    exhausted(Reason::TenantRate, rate, rate.retry_after)
}

/// An error of a use case, and its status for the caller.
pub(super) trait ToStatus: std::fmt::Display {
    /// The status. The text has no path, no key and no detail of a PIN block.
    fn to_status(&self) -> Status;
}

impl ToStatus for RegisterCardError {
    fn to_status(&self) -> Status {
        match self {
            Self::Denied(denied) => denied_status(*denied),
            Self::Store(store) => store.to_status(),
            Self::Hsm(hsm) => hsm_status(hsm),
        }
    }
}

impl ToStatus for ChangeError {
    fn to_status(&self) -> Status {
        match self {
            Self::Denied(denied) => denied_status(*denied),
            Self::Store(store) => store.to_status(),
        }
    }
}

impl ToStatus for IssueTzpkError {
    fn to_status(&self) -> Status {
        match self {
            Self::Denied(denied) => denied_status(*denied),
            Self::Store(store) => store.to_status(),
            Self::Hsm(hsm) => hsm_status(hsm),
        }
    }
}

impl ToStatus for SetPinError {
    fn to_status(&self) -> Status {
        match self {
            Self::Denied(denied) => denied_status(*denied),
            Self::Malformed => status(Code::FailedPrecondition, Reason::PinBlockMalformed, self),
            Self::RefusedPin => status(Code::FailedPrecondition, Reason::PinRefused, self),
            Self::Store(store) => store.to_status(),
            Self::Hsm(hsm) => hsm_status(hsm),
        }
    }
}

impl ToStatus for ViewPinError {
    fn to_status(&self) -> Status {
        match self {
            Self::Denied(denied) => denied_status(*denied),
            Self::PinNotSet => status(Code::NotFound, Reason::PinNotSet, self),
            Self::Store(store) => store.to_status(),
            Self::Hsm(hsm) => hsm_status(hsm),
        }
    }
}

/// The log has the paths of the store's files; the caller does not get them.
impl ToStatus for StoreError {
    fn to_status(&self) -> Status {
        match self {
            Self::Busy { .. } => status(Code::ResourceExhausted, Reason::Busy, self),
            Self::LowOnSpace => {
                let message = "the store is low on space, and begins no work: try again later";
                status(Code::ResourceExhausted, Reason::StoreLowOnSpace, &message)
            }
            Self::DeadlinePassed => status(Code::DeadlineExceeded, Reason::DeadlinePassed, self),
            Self::Unavailable(_) | Self::Failed(_) | Self::InDoubt(_) | Self::OtherOutcome | Self::Damaged { .. } => {
                status(Code::Unavailable, Reason::StoreUnavailable, &"the store is not available: try again later")
            }
        }
    }
}

/// The status of a caller without the right for its call.
pub(super) fn forbidden(error: &impl std::fmt::Display) -> Status {
    status(Code::PermissionDenied, Reason::CallerForbidden, error)
}

/// Parses the network of an edge's client.
pub(super) fn client_network(text: &str) -> Result<IpAddr, Status> {
    text.parse().map_err(|_| invalid(Reason::ClientNetworkInvalid, &"the client_network is an address of IPv4 or IPv6"))
}

/// The metadata of a request has no id that can be read.
pub(super) fn request_id(error: &RequestIdError) -> Status {
    invalid(Reason::RequestIdInvalid, error)
}

/// A method that no engine serves.
pub(super) fn unknown_method() -> Status {
    Status::unimplemented("the engine does not have this method: list its methods by reflection")
}

/// A request that did not pass the gate.
pub(super) fn not_admitted() -> Status {
    forbidden(&"the call was not checked for its right: report this defect of the engine")
}

/// The status with the id of the request in its metadata.
pub(super) fn with_request_id(mut status: Status, id: RequestId) -> Status {
    if let Ok(id) = id.to_string().parse() {
        status.metadata_mut().insert(REQUEST_ID_KEY, id);
    }
    status
}

fn hsm_status(error: &hsm_protocol::Error) -> Status {
    match error {
        hsm_protocol::Error::Unavailable { .. } => {
            status(Code::Unavailable, Reason::TokenUnavailable, &"the key boundary is not available: try again later")
        }
        hsm_protocol::Error::WriteOnly | hsm_protocol::Error::OtherLevel { .. } => status(
            Code::FailedPrecondition,
            Reason::PinNotShown,
            &"this PIN is stored in a format that cannot be viewed: set a new PIN",
        ),
        hsm_protocol::Error::DeadlinePassed => status(Code::DeadlineExceeded, Reason::DeadlinePassed, error),
        hsm_protocol::Error::Busy { .. } => status(Code::ResourceExhausted, Reason::TokenBusy, error),
        hsm_protocol::Error::DeviceKey(error) => invalid(Reason::DeviceKeyInvalid, error),
        _ => status(Code::Internal, Reason::BoundaryFailed, &"the key boundary failed: see the engine's log"),
    }
}

fn denied_status(denied: Denied) -> Status {
    match denied {
        Denied::AccountBound => status(Code::FailedPrecondition, Reason::AccountBound, &denied),
        Denied::CardUnknown => status(Code::NotFound, Reason::CardUnknown, &denied),
        Denied::Cap { retry_after, .. } => exhausted(Reason::ControlCap, &denied, retry_after),
        Denied::UnregisteredCards { .. } => status(Code::ResourceExhausted, Reason::UnregisteredCards, &denied),
        Denied::CardRate { retry_after } => exhausted(Reason::CardRate, &denied, retry_after),
        Denied::NotUsable | Denied::Superseded => status(Code::NotFound, Reason::ControlNotUsable, &Denied::NotUsable),
        Denied::OtherTenant => status(Code::PermissionDenied, Reason::TenantMismatch, &denied),
        Denied::OtherScope => status(Code::PermissionDenied, Reason::ScopeMismatch, &denied),
        Denied::OtherDeviceKey => status(Code::PermissionDenied, Reason::DeviceKeyMismatch, &denied),
        Denied::NoTzpk => status(Code::FailedPrecondition, Reason::TzpkMissing, &denied),
        Denied::PinNotSet | Denied::PinLocked | Denied::TrySettled | Denied::ReplacedBlock | Denied::OtherAccount => {
            status(Code::FailedPrecondition, Reason::PinNotSet, &denied)
        }
    }
}

fn invalid(reason: Reason, message: &impl std::fmt::Display) -> Status {
    status(Code::InvalidArgument, reason, message)
}

fn status(code: Code, reason: Reason, message: &impl std::fmt::Display) -> Status {
    Status::with_error_details(code, message.to_string(), details(reason))
}

/// RESOURCE_EXHAUSTED with this time in its `google.rpc.RetryInfo`.
fn exhausted(reason: Reason, message: &impl std::fmt::Display, retry_after: Duration) -> Status {
    let mut details = details(reason);
    details.set_retry_info(Some(retry_after));
    Status::with_error_details(Code::ResourceExhausted, message.to_string(), details)
}

fn details(reason: Reason) -> ErrorDetails {
    let mut details = ErrorDetails::with_error_info(reason.as_str(), ERROR_DOMAIN, HashMap::<String, String>::new());
    if let Some(after) = retry_after(reason) {
        details.set_retry_info(Some(after));
    }
    details
}

/// The time of the `google.rpc.RetryInfo` of an error after which a retry makes sense, unless the error has another. The edge
/// sends it as Retry-After.
fn retry_after(reason: Reason) -> Option<Duration> {
    let seconds = match reason {
        Reason::Busy | Reason::TokenBusy => 1,
        Reason::StoreUnavailable
        | Reason::TokenUnavailable
        | Reason::RotationCutOff
        | Reason::EngineStops
        | Reason::Counting
        | Reason::ExportsBusy => 5,
        Reason::StoreLowOnSpace => 30,
        Reason::UnregisteredCards => 600,
        _ => return None,
    };
    Some(Duration::from_secs(seconds))
}

/// The reason in a status of this engine.
pub(super) fn reason_of(status: &Status) -> Option<Reason> {
    Reason::parse(&status.get_details_error_info()?.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_a_retry_info_where_a_retry_makes_sense() {
        let minute = Duration::from_secs(60);
        let (cap, cards) = (Denied::Cap { cap: 1, retry_after: minute }, Denied::UnregisteredCards { max: 1 });
        let statuses = [
            StoreError::Busy { limit: 1 }.to_status(),
            StoreError::LowOnSpace.to_status(),
            StoreError::Unavailable("full".into()).to_status(),
            StoreError::DeadlinePassed.to_status(),
            hsm_status(&hsm_protocol::Error::Busy { limit: 1 }),
            hsm_status(&hsm_protocol::Error::DeadlinePassed),
            tenant_rate(&TenantRate { retry_after: minute }),
            rotation_cut_off(),
            engine_stops(),
            counting(),
            exports_busy(),
        ];
        let denied = [cap, cards, Denied::CardRate { retry_after: minute }, Denied::NotUsable, Denied::CardUnknown];
        for status in statuses.into_iter().chain(denied.map(denied_status)) {
            let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
            let is_worth_it = matches!(status.code(), Code::ResourceExhausted | Code::Unavailable);
            assert_eq!(retry.is_some_and(|delay| !delay.is_zero()), is_worth_it, "{status:?}");
            assert!(reason_of(&status).is_some(), "{status:?}");
        }
        let retry = denied_status(cap).get_details_retry_info().and_then(|info| info.retry_delay);
        assert_eq!(retry, Some(minute));
    }
}
