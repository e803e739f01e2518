//! The wire's messages and the house's own types, one into the other; each error into its status, here and nowhere else.

use std::collections::HashMap;

use hsm_protocol::{AccountNumber, DeviceKey, EncryptedBlock};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::pin::{IssueTzpkError, RegisterCardError, SetPinError, ViewPinError};
use crate::rotation::{Census, Progress, State, Users};
use domain::caller::AuditUser;
use domain::card::{Card, PinStatus, PlasticId, RegisteredAccount, Tenant};
use domain::control::{ControlId, Denied, Scope, Thumbprint};
use proto::reason::{ERROR_DOMAIN, Reason};
use store::{ChangeError, StoreError};

/// Reads a tenant.
pub(super) fn tenant(text: &str) -> Result<Tenant, Status> {
    Tenant::parse(text).map_err(|error| invalid(Reason::TenantInvalid, &error))
}

/// Reads an auditUser.
pub(super) fn audit_user(text: &str) -> Result<AuditUser, Status> {
    AuditUser::parse(text).map_err(|error| invalid(Reason::AuditUserInvalid, &error))
}

/// Reads a plasticId.
pub(super) fn plastic_id(text: &str) -> Result<PlasticId, Status> {
    PlasticId::parse(text).map_err(|error| invalid(Reason::PlasticIdInvalid, &error))
}

/// Reads an account number; an empty text is none.
pub(super) fn account_number(text: &str) -> Result<Option<AccountNumber>, Status> {
    let number = (!text.is_empty()).then(|| AccountNumber::parse(text)).transpose();
    number.map_err(|error| invalid(Reason::AccountNumberInvalid, &error))
}

/// Reads a controlId.
pub(super) fn control_id(text: &str) -> Result<ControlId, Status> {
    ControlId::parse(text).map_err(|error| invalid(Reason::ControlIdInvalid, &error))
}

/// Reads a scope.
pub(super) fn scope(scope: i32) -> Result<Scope, Status> {
    match proto::Scope::try_from(scope) {
        Ok(proto::Scope::SetPin) => Ok(Scope::SetPin),
        Ok(proto::Scope::ViewPin) => Ok(Scope::ViewPin),
        _ => Err(invalid(Reason::ScopeInvalid, &"the scope is SCOPE_SET_PIN or SCOPE_VIEW_PIN")),
    }
}

/// Reads the thumbprint of a device key; no bytes are none.
pub(super) fn thumbprint(bytes: &[u8]) -> Result<Option<Thumbprint>, Status> {
    match bytes {
        [] => Ok(None),
        bytes => <[u8; 32]>::try_from(bytes)
            .map(|sha256| Some(Thumbprint(sha256)))
            .map_err(|_| invalid(Reason::DeviceKeyInvalid, &"device_key_sha256 is 32 bytes, or absent")),
    }
}

/// Reads a device key.
pub(super) fn device_key(der: &[u8]) -> Result<DeviceKey, Status> {
    DeviceKey::parse(der).map_err(|error| invalid(Reason::DeviceKeyInvalid, &error))
}

/// Reads an encrypted block.
pub(super) fn pin_block(bytes: &[u8]) -> Result<EncryptedBlock, Status> {
    EncryptedBlock::from_bytes(bytes).map_err(|_| invalid(Reason::PinBlockLength, &"pin_block is 8 bytes"))
}

/// A card's status.
pub(super) fn pin_status(card: &Card) -> i32 {
    match card.pin_status {
        PinStatus::Waiting => proto::PinStatus::Waiting.into(),
        PinStatus::Set => proto::PinStatus::Set.into(),
    }
}

/// A card's masked account number; empty where it has none.
pub(super) fn masked(account: Option<&RegisteredAccount>) -> String {
    account.map(|account| account.masked.to_string()).unwrap_or_default()
}

/// What a key boundary is, and its keys.
pub(super) fn keys(status: &hsm_protocol::Status) -> proto::ListKeysResponse {
    let key = |key: &hsm_protocol::KeyId| proto::Key {
        reference: key.reference(),
        check_value: key.kcv.map(|kcv| kcv.to_string()).unwrap_or_default(),
    };
    let isolation = match status.isolation() {
        hsm_protocol::Isolation::Process => proto::BoundaryIsolation::Process,
        hsm_protocol::Isolation::Inline => proto::BoundaryIsolation::Inline,
    };
    proto::ListKeysResponse {
        token: status.token().to_owned(),
        level: boundary_level(status.level()).into(),
        isolation: isolation.into(),
        form: stored_form(status.form()).into(),
        keys: status.keys().iter().map(key).collect(),
    }
}

fn boundary_level(level: hsm_protocol::BoundaryLevel) -> proto::BoundaryLevel {
    match level {
        hsm_protocol::BoundaryLevel::Token => proto::BoundaryLevel::Token,
        hsm_protocol::BoundaryLevel::Host => proto::BoundaryLevel::Host,
    }
}

fn stored_form(form: hsm_protocol::StorageFormat) -> proto::StorageFormat {
    match form {
        hsm_protocol::StorageFormat::Wrapped => proto::StorageFormat::Wrapped,
        hsm_protocol::StorageFormat::Iso4 => proto::StorageFormat::Iso4,
        hsm_protocol::StorageFormat::Iso3 => proto::StorageFormat::Iso3,
        hsm_protocol::StorageFormat::Iso0 => proto::StorageFormat::Iso0,
    }
}

/// How far a rotation is.
pub(super) fn rotation_progress(progress: &Progress) -> proto::RotationProgress {
    let state = match progress.state {
        State::Idle => proto::RotationState::Idle,
        State::Running => proto::RotationState::Running,
        State::Done => proto::RotationState::Done,
        State::DoneWithFailures => proto::RotationState::DoneWithFailures,
        State::Stopped => proto::RotationState::Stopped,
    };
    proto::RotationProgress {
        state: state.into(),
        pass: progress.pass,
        total: progress.total,
        checked: progress.checked,
        reencrypted: progress.remade,
        failed: progress.failed,
        records_a_second: progress.records_a_second,
        records_a_second_max: progress.records_a_second_max,
    }
}

/// What the records of a store are, and what else needs an older key.
pub(super) fn complete_counts(census: &Census, users: Users, engine_name: &str) -> proto::CountRecordsResponse {
    let seals = users.sealed.iter();
    let seals = seals.map(|(version, controls)| proto::SealCount { version: (*version).into(), controls: *controls });
    proto::CountRecordsResponse {
        complete: true,
        unreadable: census.unreadable().saturating_add(users.unreadable),
        seals: seals.collect(),
        engine: engine_name.to_owned(),
        audit_engines: users.engines.into_iter().collect(),
        ..record_counts(census)
    }
}

/// What the records of a store are, as far as the walk has come.
pub(super) fn record_counts(census: &Census) -> proto::CountRecordsResponse {
    let counts = census.counts().iter().map(|(kind, records)| proto::RecordCount {
        form: stored_form(kind.form).into(),
        level: boundary_level(kind.level).into(),
        storage_key_version: kind.storage_key_version.into(),
        records: *records,
    });
    proto::CountRecordsResponse {
        counts: counts.collect(),
        unreadable: census.unreadable(),
        ..proto::CountRecordsResponse::default()
    }
}

/// The engine stops before the rotation is at its end.
pub(super) fn rotation_cut_off() -> Status {
    let message = "the engine stops: the rotation goes on when it starts again";
    status(Code::Unavailable, Reason::RotationCutOff, &message)
}

/// One count at a time.
pub(super) fn counting() -> Status {
    let message = "the records are being counted already: try again when that is done";
    status(Code::ResourceExhausted, Reason::Counting, &message)
}

/// Why a card was not registered.
pub(super) fn register_status(error: RegisterCardError) -> Status {
    match error {
        RegisterCardError::Change(error) => change_status(error),
        RegisterCardError::Hsm(hsm) => hsm_status(&hsm),
    }
}

/// Why a change was not made.
pub(super) fn change_status(error: ChangeError) -> Status {
    match error {
        ChangeError::Denied(denied) => denied_status(denied),
        ChangeError::Store(store) => store_status(&store),
    }
}

/// A card nobody knows.
pub(super) fn card_unknown() -> Status {
    status(Code::NotFound, Reason::CardUnknown, &Denied::CardUnknown)
}

/// Why no tzpk was issued.
pub(super) fn issue_status(error: IssueTzpkError) -> Status {
    match error {
        IssueTzpkError::Denied(denied) => denied_status(denied),
        IssueTzpkError::Store(store) => store_status(&store),
        IssueTzpkError::Hsm(hsm) => hsm_status(&hsm),
    }
}

/// Why no PIN was set.
pub(super) fn set_status(error: SetPinError) -> Status {
    match &error {
        SetPinError::Denied(denied) => denied_status(*denied),
        SetPinError::Malformed => status(Code::FailedPrecondition, Reason::PinBlockMalformed, &error),
        SetPinError::RefusedPin => status(Code::FailedPrecondition, Reason::PinRefused, &error),
        SetPinError::Store(store) => store_status(store),
        SetPinError::Hsm(hsm) => hsm_status(hsm),
    }
}

/// Why no PIN was shown.
pub(super) fn view_status(error: ViewPinError) -> Status {
    match &error {
        ViewPinError::Denied(denied) => denied_status(*denied),
        ViewPinError::PinNotSet => status(Code::NotFound, Reason::PinNotSet, &error),
        ViewPinError::Store(store) => store_status(store),
        ViewPinError::Hsm(hsm) => hsm_status(hsm),
    }
}

/// The caller's certificate does not give it this right.
pub(super) fn forbidden(error: &impl std::fmt::Display) -> Status {
    status(Code::PermissionDenied, Reason::CallerForbidden, error)
}

/// The store failed. What it says of its files is for the log, not for the caller.
pub(super) fn store_status(error: &StoreError) -> Status {
    match error {
        StoreError::Busy { .. } => status(Code::ResourceExhausted, Reason::Busy, error),
        StoreError::DeadlinePassed => status(Code::DeadlineExceeded, Reason::DeadlinePassed, error),
        StoreError::Unavailable(_)
        | StoreError::Failed(_)
        | StoreError::InDoubt(_)
        | StoreError::OtherOutcome
        | StoreError::Damaged { .. } => {
            tracing::error!(%error, "the store failed");
            status(Code::Unavailable, Reason::StoreUnavailable, &"the store is not available: try again later")
        }
    }
}

fn hsm_status(error: &hsm_protocol::Error) -> Status {
    tracing::error!(%error, "the boundary failed");
    match error {
        hsm_protocol::Error::Unavailable { .. } => {
            status(Code::Unavailable, Reason::TokenUnavailable, &"the key boundary is not available: try again later")
        }
        hsm_protocol::Error::WriteOnly | hsm_protocol::Error::OtherLevel { .. } => {
            status(Code::FailedPrecondition, Reason::PinNotShown, &"this PIN is kept in a form that is not shown here")
        }
        hsm_protocol::Error::DeadlinePassed => status(Code::DeadlineExceeded, Reason::DeadlinePassed, error),
        hsm_protocol::Error::Busy { .. } => status(Code::ResourceExhausted, Reason::TokenBusy, error),
        hsm_protocol::Error::DeviceKey(error) => invalid(Reason::DeviceKeyInvalid, error),
        _ => {
            status(Code::Internal, Reason::BoundaryFailed, &"the key boundary could not do this: see the engine's log")
        }
    }
}

fn denied_status(denied: Denied) -> Status {
    match denied {
        Denied::AccountBound => status(Code::FailedPrecondition, Reason::AccountBound, &denied),
        Denied::CardUnknown => card_unknown(),
        Denied::Cap { .. } => status(Code::ResourceExhausted, Reason::ControlCap, &denied),
        Denied::NotUsable | Denied::Superseded => status(Code::NotFound, Reason::ControlNotUsable, &Denied::NotUsable),
        Denied::OtherTenant => status(Code::PermissionDenied, Reason::TenantMismatch, &denied),
        Denied::OtherScope => status(Code::PermissionDenied, Reason::ScopeMismatch, &denied),
        Denied::OtherDeviceKey => status(Code::PermissionDenied, Reason::DeviceKeyMismatch, &denied),
        Denied::NoTzpk => status(Code::FailedPrecondition, Reason::TzpkMissing, &denied),
    }
}

fn invalid(reason: Reason, message: &impl std::fmt::Display) -> Status {
    status(Code::InvalidArgument, reason, message)
}

fn status(code: Code, reason: Reason, message: &impl std::fmt::Display) -> Status {
    let details = ErrorDetails::with_error_info(reason.as_str(), ERROR_DOMAIN, HashMap::<String, String>::new());
    Status::with_error_details(code, message.to_string(), details)
}
