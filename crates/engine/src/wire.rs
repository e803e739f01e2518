//! Converts gRPC messages to and from the domain types, and errors to statuses. No other file makes a status.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use hsm_protocol::{
    AccountNumber, DeviceKey, EncryptedBlock, ExpectedValue, KeyVersion, Mgf1Hash, PvkName, Pvki, Refusal,
    SealedAccount, ValueMethod, VerificationValue, ZoneFormat, ZoneName,
};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::call_limits::TenantRate;
use crate::pin::{BlockToTranslate, PinChange, PinError, VerifiedPin};
use crate::rotation::{Census, KeyUsers, Progress, RotationState};
use crate::zones::{NamedZoneBlock, NamedZoneKey, ZoneReference};
use audit::entry::Method;
use domain::caller::AuditUser;
use domain::card::{Card, PinStatus, PlasticId, RegisteredAccount, Tenant};
use domain::control::{ControlId, Denied, PageClient, PageId, Scope, Thumbprint};
use domain::limits::REQUEST_BYTES_MAX;
use domain::request_id::{RequestId, RequestIdError};
use proto::REQUEST_ID_KEY;
use proto::reason::{ERROR_DOMAIN, Reason};
use store::StoreError;

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

/// A request without the account number that it needs.
pub(super) fn no_account_number() -> Status {
    invalid(Reason::AccountNumberInvalid, &"account_number is 12 to 19 decimal digits")
}

/// Parses a controlId.
pub(super) fn control_id(text: &str) -> Result<ControlId, Status> {
    ControlId::parse(text).map_err(|error| invalid(Reason::ControlIdInvalid, &error))
}

/// Parses the name of the client of a page.
pub(super) fn page_client(name: &str) -> Result<PageClient, Status> {
    PageClient::of_name(name).map_err(|error| invalid(Reason::PageClientInvalid, &error))
}

/// Converts a pageId.
pub(super) fn page_id(bytes: &[u8]) -> Result<PageId, Status> {
    let id = bytes.try_into().map(PageId::from_bytes);
    id.map_err(|_| invalid(Reason::PageIdInvalid, &"page_id is 16 bytes"))
}

/// Converts a scope.
pub(super) fn scope(scope: i32) -> Result<Scope, Status> {
    match proto::Scope::try_from(scope) {
        Ok(proto::Scope::SetPin) => Ok(Scope::SetPin),
        Ok(proto::Scope::ViewPin) => Ok(Scope::ViewPin),
        _ => Err(invalid(Reason::ScopeInvalid, &"the scope is SCOPE_SET_PIN or SCOPE_VIEW_PIN")),
    }
}

/// The scope in a message.
pub(super) fn scope_message(scope: Scope) -> proto::Scope {
    match scope {
        Scope::SetPin => proto::Scope::SetPin,
        Scope::ViewPin => proto::Scope::ViewPin,
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

/// Converts the name of a zone key.
pub(super) fn zone_key(key: Option<proto::ZoneKey>) -> Result<NamedZoneKey, Status> {
    let key = key.ok_or_else(|| invalid(Reason::ZoneInvalid, &"zone_key names a zone"))?;
    let zone = match key.zone {
        Some(proto::zone_key::Zone::Name(name)) => ZoneName::parse(&name).map(ZoneReference::Name),
        Some(proto::zone_key::Zone::IndexNumber(index)) => Some(ZoneReference::Index(index)),
        None => None,
    };
    let zone = zone.ok_or_else(|| invalid(Reason::ZoneInvalid, &"zone_key has the name or the index of a zone"))?;
    let version = u16::try_from(key.key_version)
        .map_err(|_| invalid(Reason::ZoneInvalid, &"key_version is 1 to 65535, or absent for the newest version"))?;
    Ok(NamedZoneKey { zone, version: (version > 0).then_some(KeyVersion(version)) })
}

/// Converts a format; `None` for the first format of the zone.
pub(super) fn zone_format(format: i32) -> Result<Option<ZoneFormat>, Status> {
    match proto::ZoneFormat::try_from(format) {
        Ok(proto::ZoneFormat::Unspecified) => Ok(None),
        Ok(proto::ZoneFormat::Iso0) => Ok(Some(ZoneFormat::Iso0)),
        Ok(proto::ZoneFormat::Iso1) => Ok(Some(ZoneFormat::Iso1)),
        Ok(proto::ZoneFormat::Iso3) => Ok(Some(ZoneFormat::Iso3)),
        Ok(proto::ZoneFormat::Iso4) => Ok(Some(ZoneFormat::Iso4)),
        Err(_) => Err(invalid(Reason::ZoneInvalid, &"format is not a format that this engine knows")),
    }
}

/// Converts a block with its zone. Only the rules of the zone give the format and so the length of a block without a format.
pub(super) fn zone_block(block: Option<proto::ZoneBlock>) -> Result<NamedZoneBlock, Status> {
    let block = block.ok_or_else(|| invalid(Reason::ZoneInvalid, &"the request has a PIN block and its zone"))?;
    if ![8, 16].contains(&block.pin_block.len()) {
        return Err(invalid(Reason::PinBlockLength, &"pin_block is 8 bytes, or 16 of format 4"));
    }
    let (key, format) = (zone_key(block.zone_key)?, zone_format(block.format)?);
    Ok(NamedZoneBlock { key, format, block: block.pin_block })
}

/// Converts a block to translate.
pub(super) fn translation(item: Option<proto::TranslationItem>) -> Result<BlockToTranslate, Status> {
    let item = item.ok_or_else(|| invalid(Reason::ZoneInvalid, &"item has a PIN block and two zones"))?;
    let account = (!item.sealed_account.is_empty()).then(|| SealedAccount::from_bytes(&item.sealed_account));
    Ok(BlockToTranslate {
        plastic: plastic_id(&item.plastic_id)?,
        source: zone_block(item.source_block)?,
        target: zone_key(item.target_key)?,
        target_format: zone_format(item.target_format)?,
        account: account.transpose().map_err(|_| {
            invalid(Reason::SealedAccountInvalid, &"sealed_account is the answer of SealPan, 30 bytes, or absent")
        })?,
    })
}

/// Converts the algorithm of a verification value.
pub(super) fn value_method(method: Option<proto::ValueMethod>) -> Result<ValueMethod, Status> {
    match method.and_then(|method| method.algorithm) {
        Some(proto::value_method::Algorithm::Pvv(key)) => Ok(ValueMethod::Pvv(pvk_pair(&key)?)),
        Some(proto::value_method::Algorithm::Ibm3624Offset(key)) => Ok(ValueMethod::Ibm3624Offset(ibm_3624_key(&key)?)),
        None => Err(invalid(Reason::ValueMethodInvalid, &"method has an algorithm and its key")),
    }
}

/// Converts the value that a PIN is compared with; `None` for the PIN record of the card.
pub(super) fn expected_value(reference: Option<proto::VerificationReference>) -> Result<Option<ExpectedValue>, Status> {
    use proto::verification_reference::Expected;
    let Some(reference) = reference else { return Ok(None) };
    let missing = || invalid(Reason::ValueMethodInvalid, &"reference has a value and its key");
    let digits = |digits: &str| {
        VerificationValue::parse(digits)
            .ok_or_else(|| invalid(Reason::ValueMethodInvalid, &"a value is 4 to 12 decimal digits"))
    };
    Ok(Some(match reference.expected.ok_or_else(missing)? {
        Expected::Pvv(pvv) => {
            ExpectedValue::Pvv { key: pvk_pair(&pvv.key_pair.ok_or_else(missing)?)?, value: digits(&pvv.digits)? }
        }
        Expected::Ibm3624Offset(offset) => ExpectedValue::Ibm3624Offset {
            key: ibm_3624_key(&offset.key.ok_or_else(missing)?)?,
            value: digits(&offset.digits)?,
        },
        Expected::Ibm3624Natural(natural) => ExpectedValue::Ibm3624Natural {
            key: ibm_3624_key(&natural.key.ok_or_else(missing)?)?,
            digits: digit_count(natural.digit_count)?,
        },
    }))
}

fn pvk_pair(key: &proto::PvkPair) -> Result<PvkName, Status> {
    let pvki = u8::try_from(key.pvki_number).ok().and_then(Pvki::new);
    let name = ZoneName::parse(&key.name).zip(pvki).map(|(name, pvki)| PvkName { name, pvki });
    name.ok_or_else(|| {
        invalid(Reason::ValueMethodInvalid, &"a key pair has a name of a-z, 0-9 and -, and a PVKI of 0 to 9")
    })
}

fn ibm_3624_key(key: &proto::Ibm3624Key) -> Result<ZoneName, Status> {
    ZoneName::parse(&key.name)
        .ok_or_else(|| invalid(Reason::ValueMethodInvalid, &"a key has a name of 1 to 31 characters of a-z, 0-9 and -"))
}

/// Converts the number of digits of a PIN to generate.
pub(super) fn digit_count(count: u32) -> Result<u8, Status> {
    let digits = u8::try_from(count).ok().filter(|digits| (4..=12).contains(digits));
    digits.ok_or_else(|| invalid(Reason::DigitCountInvalid, &"digit_count is 4 to 12"))
}

/// Converts the two blocks of a change.
pub(super) fn pin_change(change: Option<proto::change_pin_request::Change>) -> Result<PinChange, Status> {
    use proto::change_pin_request::Change;
    match change {
        Some(Change::ZoneChange(change)) => Ok(PinChange::Zone {
            plastic: plastic_id(&change.plastic_id)?,
            old: zone_block(change.old_block)?,
            new: zone_block(change.new_block)?,
        }),
        Some(Change::DeviceChange(change)) => Ok(PinChange::Device {
            control: control_id(&change.control_id)?,
            old: pin_block(&change.old_pin_block)?,
            new: pin_block(&change.new_pin_block)?,
        }),
        None => Err(invalid(Reason::ChangeInvalid, &"change has the old and the new PIN block")),
    }
}

/// The error of an item, from the status that a call for the item alone gets.
pub(super) fn item_error(status: &Status) -> proto::ItemError {
    proto::ItemError {
        code_number: status.code().into(),
        reason: reason_of(status).map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
        message: status.message().to_owned(),
    }
}

/// The PIN status of a card.
pub(super) fn pin_status(card: &Card) -> i32 {
    match card.pin_status {
        PinStatus::Waiting => proto::PinStatus::Waiting.into(),
        PinStatus::Set => proto::PinStatus::Set.into(),
        PinStatus::Generated => proto::PinStatus::Generated.into(),
    }
}

/// The result of a verification.
pub(super) fn verification_result(verified: &VerifiedPin) -> i32 {
    match verified.is_right {
        true => proto::VerificationResult::Right.into(),
        false => proto::VerificationResult::Wrong.into(),
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
        keys: [status.keys(), status.zone_keys(), status.verification_keys()].concat().iter().map(key).collect(),
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
        RotationState::Waiting => proto::RotationState::Waiting,
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

/// The engine stops while a call streams.
pub(super) fn engine_stops() -> Status {
    status(Code::Unavailable, Reason::EngineStops, &"the engine stops: repeat the call when it has started")
}

/// A call of a stream is too long. The code is that of tonic for a message that is too long.
pub(super) fn call_length() -> Status {
    Status::out_of_range(format!("a call has at most {REQUEST_BYTES_MAX} bytes: send a shorter one"))
}

/// A call panicked. The panic hook has written the place to standard error.
pub(super) fn call_panicked() -> Status {
    Status::internal("the engine failed: see its log")
}

/// The error of a call of a stream.
pub(super) fn call_error(status: &Status) -> proto::CallError {
    proto::CallError {
        code_number: status.code().into(),
        message: status.message().to_owned(),
        details: status.details().to_vec(),
    }
}

/// Converts the id of a request.
pub(super) fn request_id_bytes(bytes: &[u8]) -> Result<RequestId, Status> {
    let id = bytes.try_into().map(RequestId::from_bytes);
    id.map_err(|_| invalid(Reason::RequestIdInvalid, &"request_id is 16 bytes"))
}

/// A call of a stream does not follow the call before it.
pub(super) fn call_number() -> Status {
    invalid(Reason::ItemNumber, &"the sequence of a call is above that of the call before, and above 0")
}

/// The engine, or the caller, has reached the limit of streams at a time.
pub(super) fn streams_busy() -> Status {
    let message = "too many streams of this kind are running: try again when one has ended";
    status(Code::ResourceExhausted, Reason::StreamsBusy, &message)
}

/// A message after the first one of a stream names a tenant or a user.
pub(super) fn tenant_again() -> Status {
    invalid(Reason::TenantInvalid, &"the first message of a stream alone has tenant and audit_user")
}

/// An item does not follow the item before it.
pub(super) fn item_number() -> Status {
    invalid(Reason::ItemNumber, &"the number of an item is the number after that of the item before")
}

/// The events from the requested number are not in the store any more.
pub(super) fn events_archived(first: u64) -> Status {
    let message = format!("the store has no entries before {first}: read the older ones in the archive files");
    status(Code::OutOfRange, Reason::EventsArchived, &message)
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

impl ToStatus for PinError {
    fn to_status(&self) -> Status {
        match self {
            Self::Denied(denied) => denied_status(*denied),
            Self::Malformed => status(Code::FailedPrecondition, Reason::PinBlockMalformed, self),
            Self::RefusedPin => status(Code::FailedPrecondition, Reason::PinRefused, self),
            Self::PinNotSet => status(Code::NotFound, Reason::PinNotSet, self),
            Self::CardChanged => status(Code::Aborted, Reason::CardChanged, self),
            Self::ZoneUnknown => status(Code::NotFound, Reason::ZoneUnknown, self),
            Self::BlockLength => invalid(Reason::PinBlockLength, self),
            Self::SealedAccount => invalid(Reason::SealedAccountInvalid, self),
            Self::RegisteredAccount => status(Code::FailedPrecondition, Reason::AccountMismatch, self),
            Self::WrongPinRate { retry_after } => exhausted(Reason::WrongPinRate, self, *retry_after),
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
            Self::Unavailable(_)
            | Self::Failed(_)
            | Self::InDoubt(_)
            | Self::Unresolved { .. }
            | Self::StorageKeys(_)
            | Self::OtherOutcome
            | Self::Damaged { .. } => {
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

/// Converts the method that an edge would have called.
pub(super) fn method(method: i32) -> Result<Method, Status> {
    let known = proto::EngineMethod::try_from(method).ok().and_then(audit_wire::engine_method);
    known.ok_or_else(|| invalid(Reason::MethodInvalid, &"method is not a method that this engine knows"))
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
        hsm_protocol::Error::WriteOnly | hsm_protocol::Error::OneWay | hsm_protocol::Error::OtherLevel { .. } => {
            status(
                Code::FailedPrecondition,
                Reason::PinNotShown,
                &"this PIN is stored in a format that cannot be viewed: set a new PIN",
            )
        }
        hsm_protocol::Error::Refused(Refusal::MalformedBlock) => {
            status(Code::FailedPrecondition, Reason::PinBlockMalformed, error)
        }
        hsm_protocol::Error::Refused(Refusal::PinPolicy) => {
            status(Code::FailedPrecondition, Reason::PinRefused, &PinError::RefusedPin)
        }
        hsm_protocol::Error::ZoneUnknown { .. } => status(Code::NotFound, Reason::ZoneUnknown, error),
        hsm_protocol::Error::ZoneFormat { .. } => status(Code::FailedPrecondition, Reason::ZoneFormat, error),
        hsm_protocol::Error::ZoneUse { .. } => status(Code::FailedPrecondition, Reason::ZoneUse, error),
        // The zones and their formats were checked: what is left is the level, or a pair that no level translates.
        hsm_protocol::Error::TranslationNotAllowed => status(Code::FailedPrecondition, Reason::LevelUnsupported, error),
        hsm_protocol::Error::HostLevelOnly { .. } => status(Code::FailedPrecondition, Reason::LevelUnsupported, error),
        hsm_protocol::Error::NoVerificationKey => status(Code::NotFound, Reason::ValueKeyUnknown, error),
        hsm_protocol::Error::ValidationData => invalid(Reason::ValueMethodInvalid, error),
        hsm_protocol::Error::NoAccountNumber => status(Code::FailedPrecondition, Reason::NoAccountNumber, error),
        hsm_protocol::Error::OtherAccount => status(Code::FailedPrecondition, Reason::AccountMismatch, error),
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
        Denied::PinNotSet => status(Code::NotFound, Reason::PinNotSet, &denied),
        Denied::PinStored => status(Code::FailedPrecondition, Reason::PinStored, &denied),
        Denied::TryUnknown => invalid(Reason::TryCountInvalid, &denied),
        Denied::PinLocked => status(Code::FailedPrecondition, Reason::PinLocked, &denied),
        Denied::ReplacedBlock => status(Code::FailedPrecondition, Reason::PinBlockReplaced, &denied),
        Denied::OtherAccount => status(Code::FailedPrecondition, Reason::AccountMismatch, &denied),
        Denied::StorageKeyInactive => status(Code::Unavailable, Reason::StoreUnavailable, &denied),
        // The try is used, and its result is not known.
        Denied::TrySettled => status(Code::Unavailable, Reason::StoreUnavailable, &denied),
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
        | Reason::ExportsBusy
        | Reason::StreamsBusy => 5,
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
            streams_busy(),
        ];
        let denied = [
            cap,
            cards,
            Denied::CardRate { retry_after: minute },
            Denied::StorageKeyInactive,
            Denied::NotUsable,
            Denied::CardUnknown,
        ];
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
