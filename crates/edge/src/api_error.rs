//! The errors that the edge answers: one table, one body.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use domain::request_id::RequestId;
use proto::reason::{ERROR_DOMAIN, Reason};
use serde::{Deserialize, Serialize};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use utoipa::ToSchema;

use super::mistake::Mistake;

/// The HTTP statuses that errors may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorProfile {
    /// All statuses of the documentation.
    #[default]
    Full,
    /// Only the statuses that the vendor's document declares: 401, 403, 404 and 500.
    Strict,
}

/// The origin of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) enum ErrorType {
    /// The request itself.
    #[serde(rename = "STATIC_VALIDATION_ERROR")]
    StaticValidation,
    /// The state of the card or the control does not allow the request.
    #[serde(rename = "DYNAMIC_VALIDATION_ERROR")]
    DynamicValidation,
    /// A service behind the edge.
    #[serde(rename = "INTEGRATION_ERROR")]
    Integration,
    /// The credentials or the rights of the client.
    #[serde(rename = "SECURITY_ERROR")]
    Security,
    /// A defect of the server; the log has the cause.
    #[serde(rename = "UNEXPECTED_ERROR")]
    Unexpected,
}

/// One row of the table of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ApiError {
    status: StatusCode,
    error_type: ErrorType,
    /// The `errorCode`: stable, defined by Pinseal.
    code: &'static str,
    message: &'static str,
    retry_after_seconds: Option<u32>,
    /// The mistake of the client, if the errorCode covers several.
    mistake: Option<Mistake>,
}

macro_rules! table {
    ($(#[$meta:meta])* $table:ident; $($name:ident = $status:ident $error_type:ident $code:literal $message:literal $(retry $retry:literal)?;)+) => {
        impl ApiError {
            $(pub(super) const $name: Self = Self {
                status: StatusCode::$status,
                error_type: ErrorType::$error_type,
                code: $code,
                message: $message,
                retry_after_seconds: first(&[$($retry)?]),
                mistake: None,
            };)+

            /// Every row of the table.
            $(#[$meta])*
            pub(super) const $table: &'static [Self] = &[$(Self::$name),+];
        }
    };
}

table! {
    TABLE;

    UNAUTHENTICATED = UNAUTHORIZED Security "UNAUTHENTICATED" "the credentials are missing or wrong: send the bearer token or the password of this client, and its certificate if it has one";

    HTTP_MALFORMED = BAD_REQUEST StaticValidation "HTTP_MALFORMED" "the request is not valid HTTP: check its request line and its headers";
    HOST_INVALID = BAD_REQUEST StaticValidation "HOST_INVALID" "a request has one valid Host header, or :authority over HTTP/2";
    BODY_MALFORMED = BAD_REQUEST StaticValidation "BODY_MALFORMED" "the body is not the JSON object that the contract requires: see /openapi.json";
    AUDIT_USER_INVALID = BAD_REQUEST StaticValidation "AUDIT_USER_INVALID" "the query parameter auditUser is required once: 1 to 128 visible characters or spaces, no control or format characters";
    PLASTIC_ID_INVALID = BAD_REQUEST StaticValidation "PLASTIC_ID_INVALID" "plasticId is 1 to 19 decimal digits";
    SCOPE_INVALID = BAD_REQUEST StaticValidation "SCOPE_INVALID" "scope is SET_PIN or VIEW_PIN";
    CONTROL_ID_INVALID = BAD_REQUEST StaticValidation "CONTROL_ID_INVALID" "controlId is a UUID of 36 characters";
    DEVICE_KEY_INVALID = BAD_REQUEST StaticValidation "DEVICE_KEY_INVALID" "publicKey is the standard base64 of a DER SubjectPublicKeyInfo: RSA, 2048 to 4096 bits, an odd exponent of at least 3, no trailing bytes";
    DEVICE_KEY_SHA256_INVALID = BAD_REQUEST StaticValidation "DEVICE_KEY_SHA256_INVALID" "deviceKeySha256 is the standard base64 of 32 bytes, 44 characters: the SHA-256 of the device key's DER SubjectPublicKeyInfo";
    PIN_BLOCK_LENGTH = BAD_REQUEST StaticValidation "PIN_BLOCK_LENGTH" "pinBlock is the standard base64 of 8 bytes, 12 characters";
    ZPK_INDEX_INVALID = BAD_REQUEST StaticValidation "ZPK_INDEX_INVALID" "zpkIndex is the index of a zone key as text: 0 to 9999, in decimal digits without leading zeros";
    ZONE_BLOCK_INVALID = BAD_REQUEST StaticValidation "ZONE_BLOCK_INVALID" "pinBlock is hexadecimal: 16 characters, or 32 where the zone has ISO 9564 format 4";
    REQUEST_INVALID = BAD_REQUEST StaticValidation "REQUEST_INVALID" "the engine rejects the request as malformed: see /openapi.json";
    CONTENT_TYPE_UNSUPPORTED = UNSUPPORTED_MEDIA_TYPE StaticValidation "CONTENT_TYPE_UNSUPPORTED" "the body is application/json in UTF-8, without a Content-Encoding";
    HEADERS_TOO_LARGE = REQUEST_HEADER_FIELDS_TOO_LARGE StaticValidation "HEADERS_TOO_LARGE" "the headers have more than 16384 bytes, or are more than 100: send fewer";
    BODY_TIMEOUT = REQUEST_TIMEOUT StaticValidation "BODY_TIMEOUT" "the body did not arrive in time: send the whole request again";
    BODY_TOO_LARGE = PAYLOAD_TOO_LARGE StaticValidation "BODY_TOO_LARGE" "the body is too large: send only the members of the contract";

    OAEP_MGF1_EXPIRED = FORBIDDEN Security "OAEP_MGF1_EXPIRED" "the last day for RSA-OAEP with MGF1-SHA-1 has passed for this client: use devices that decrypt MGF1-SHA-256, or ask the operator of the edge";
    CALLER_FORBIDDEN = FORBIDDEN Security "CALLER_FORBIDDEN" "the engine does not allow this edge to make this call: ask the operator of the engine";
    TENANT_MISMATCH = FORBIDDEN Security "TENANT_MISMATCH" "the control belongs to another tenant: open a control as this client";
    SCOPE_MISMATCH = FORBIDDEN Security "SCOPE_MISMATCH" "the control was opened for another operation: open a control for this operation";
    ZONE_FORBIDDEN = FORBIDDEN Security "ZONE_FORBIDDEN" "this client may not use this zone key for this operation: ask the operators of edge and engine for the use";
    DEVICE_KEY_MISMATCH = FORBIDDEN Security "DEVICE_KEY_MISMATCH" "the control was opened for another device key: use that device key, or open another control";

    CONTROL_NOT_USABLE = NOT_FOUND DynamicValidation "CONTROL_NOT_USABLE" "the control is not usable: open another control";
    PIN_NOT_SET = NOT_FOUND DynamicValidation "PIN_NOT_SET" "no PIN is set for this card: set a PIN first";
    ZONE_UNKNOWN = NOT_FOUND DynamicValidation "ZONE_UNKNOWN" "the engine has no zone key of this zpkIndex: ask its operator for the index";
    CARD_UNKNOWN = NOT_FOUND DynamicValidation "CARD_UNKNOWN" "the card is not registered: register it with the engine first";
    NOT_FOUND = NOT_FOUND DynamicValidation "NOT_FOUND" "the engine does not know the card or the control: open another control";
    ROUTE_UNKNOWN = NOT_FOUND StaticValidation "ROUTE_UNKNOWN" "the route does not exist: see /openapi.json";
    METHOD_NOT_ALLOWED = METHOD_NOT_ALLOWED StaticValidation "METHOD_NOT_ALLOWED" "this route does not support the method: see /openapi.json";

    TZPK_MISSING = UNPROCESSABLE_ENTITY DynamicValidation "TZPK_MISSING" "no tzpk was issued under this control: request a tzpk first";
    PIN_BLOCK_MALFORMED = UNPROCESSABLE_ENTITY DynamicValidation "PIN_BLOCK_MALFORMED" "the block is not an ISO 9564 format 1 block under this control's tzpk: open another control";
    ZONE_BLOCK_MALFORMED = UNPROCESSABLE_ENTITY DynamicValidation "ZONE_BLOCK_MALFORMED" "the block is not a PIN block in the zone's format under the zone key: check zpkIndex, key and format";
    PIN_BLOCK_REPLACED = UNPROCESSABLE_ENTITY DynamicValidation "PIN_BLOCK_REPLACED" "this block set one of the last eight PINs before the present one: encrypt the PIN with other, random fill";
    PIN_NOT_SHOWN = UNPROCESSABLE_ENTITY DynamicValidation "PIN_NOT_SHOWN" "this PIN is stored in a format that cannot be viewed: set a new PIN";
    PIN_REFUSED = UNPROCESSABLE_ENTITY DynamicValidation "PIN_REFUSED" "the PIN breaks the PIN policy: choose another PIN";

    STATE_CONFLICT = UNPROCESSABLE_ENTITY DynamicValidation "STATE_CONFLICT" "the state of the card or the control does not allow this: open another control";

    CONTROL_CAP = TOO_MANY_REQUESTS DynamicValidation "CONTROL_CAP" "too many controls were opened for this card within the hour: try again later" retry 600;
    UNREGISTERED_CARDS = TOO_MANY_REQUESTS DynamicValidation "UNREGISTERED_CARDS" "too many unregistered cards of this tenant have no PIN: set their PINs, register them, or try again later" retry 600;
    CLIENT_BUSY = TOO_MANY_REQUESTS Security "CLIENT_BUSY" "this client has too many requests in progress: wait for answers before you send more" retry 1;
    TENANT_BUSY = TOO_MANY_REQUESTS Security "TENANT_BUSY" "the clients of this tenant have too many requests in progress: wait for answers before you send more" retry 1;
    CLIENT_RATE = TOO_MANY_REQUESTS Security "CLIENT_RATE" "this client sends too many requests a second: send fewer" retry 1;
    TENANT_RATE = TOO_MANY_REQUESTS Security "TENANT_RATE" "this tenant makes too many calls a second: send fewer" retry 1;
    CARD_RATE = TOO_MANY_REQUESTS Security "CARD_RATE" "too many calls for this card within the minute: try again later" retry 1;

    BUSY = SERVICE_UNAVAILABLE Integration "BUSY" "too many requests are in flight: try again" retry 1;
    STORE_LOW_ON_SPACE = SERVICE_UNAVAILABLE Integration "STORE_LOW_ON_SPACE" "the store is low on space, and opens no control: try again later" retry 30;
    STORE_UNAVAILABLE = SERVICE_UNAVAILABLE Integration "STORE_UNAVAILABLE" "the store is not available: try again later" retry 5;
    TOKEN_UNAVAILABLE = SERVICE_UNAVAILABLE Integration "TOKEN_UNAVAILABLE" "the key boundary is not available: try again later" retry 5;
    ENGINE_UNAVAILABLE = SERVICE_UNAVAILABLE Integration "ENGINE_UNAVAILABLE" "the engine is not available: try again later" retry 5;

    UNEXPECTED = INTERNAL_SERVER_ERROR Unexpected "UNEXPECTED" "the server failed: its operator finds this id in the log of the edge";
}

// The errors of the web view's routes alone, which are not part of the contract.
table! {
    #[cfg(test)]
    PAGE_TABLE;

    PAGE_UNKNOWN = NOT_FOUND StaticValidation "PAGE_UNKNOWN" "the edge has no page with this key: ask its operator for the key";
    ORIGIN_FORBIDDEN = FORBIDDEN Security "ORIGIN_FORBIDDEN" "only a page of this web view may make this call: Origin is not the origin of public_url, or Sec-Fetch-Site is not same-origin; a form POST is the navigation of a window";
    PAGE_SESSION_INVALID = UNAUTHORIZED Security "PAGE_SESSION_INVALID" "the page has no session, or another page of this browser replaced it: start again with another control";
    EXCHANGE_RATE = TOO_MANY_REQUESTS Security "EXCHANGE_RATE" "too many controls from this network were not usable within a minute: try again later" retry 60;
    PAGE_SESSION_RATE = TOO_MANY_REQUESTS Security "PAGE_SESSION_RATE" "this page sends too many requests: wait for answers before it sends more" retry 1;
}

impl ApiError {
    /// Maps a status of the engine by its reason, else by its gRPC code. The engine's text does not reach the client.
    pub(super) fn from_status(status: &Status) -> Self {
        let info = status.get_details_error_info().filter(|info| info.domain == ERROR_DOMAIN);
        match info.and_then(|info| Reason::parse(&info.reason)) {
            Some(reason) => {
                let retry = status.get_details_retry_info().and_then(|info| info.retry_delay);
                retry.map_or(Self::from_reason(reason), |after| Self::from_reason(reason).retry_after(after))
            }
            // A status with a source is an error of the connection, not a reply of the engine.
            None if std::error::Error::source(status).is_some() => Self::ENGINE_UNAVAILABLE,
            None => Self::from_code(status.code()),
        }
    }

    /// Maps a reason of the engine.
    fn from_reason(reason: Reason) -> Self {
        match reason {
            Reason::AuditUserInvalid => Self::AUDIT_USER_INVALID,
            Reason::PlasticIdInvalid => Self::PLASTIC_ID_INVALID,
            Reason::ScopeInvalid => Self::SCOPE_INVALID,
            Reason::ControlIdInvalid => Self::CONTROL_ID_INVALID,
            Reason::DeviceKeyInvalid => Self::DEVICE_KEY_INVALID,
            Reason::PinBlockLength => Self::PIN_BLOCK_LENGTH,
            Reason::TenantInvalid
            | Reason::PageClientInvalid
            | Reason::PageIdInvalid
            | Reason::AccountNumberInvalid
            | Reason::ZoneInvalid
            | Reason::DigitCountInvalid
            | Reason::ValueMethodInvalid
            | Reason::SealedAccountInvalid
            | Reason::ChangeInvalid
            | Reason::MethodInvalid
            | Reason::RequestIdInvalid
            | Reason::TryCountInvalid
            | Reason::ClientNetworkInvalid => Self::REQUEST_INVALID,
            Reason::CallerForbidden => Self::CALLER_FORBIDDEN,
            Reason::TenantMismatch => Self::TENANT_MISMATCH,
            Reason::ScopeMismatch => Self::SCOPE_MISMATCH,
            Reason::DeviceKeyMismatch => Self::DEVICE_KEY_MISMATCH,
            Reason::ControlNotUsable => Self::CONTROL_NOT_USABLE,
            Reason::PinNotSet => Self::PIN_NOT_SET,
            Reason::CardUnknown => Self::CARD_UNKNOWN,
            Reason::ZoneUnknown => Self::ZONE_UNKNOWN,
            Reason::ZoneFormat | Reason::ZoneUse => Self::ZONE_FORBIDDEN,
            Reason::ValueKeyUnknown => Self::NOT_FOUND,
            Reason::AccountBound
            | Reason::PinStored
            | Reason::PinLocked
            | Reason::AccountMismatch
            | Reason::NoAccountNumber
            | Reason::LevelUnsupported => Self::STATE_CONFLICT,
            Reason::PinBlockReplaced => Self::PIN_BLOCK_REPLACED,
            Reason::TzpkMissing => Self::TZPK_MISSING,
            Reason::PinBlockMalformed => Self::PIN_BLOCK_MALFORMED,
            Reason::PinNotShown => Self::PIN_NOT_SHOWN,
            Reason::PinRefused => Self::PIN_REFUSED,
            Reason::ControlCap => Self::CONTROL_CAP,
            Reason::UnregisteredCards => Self::UNREGISTERED_CARDS,
            Reason::TenantRate => Self::TENANT_RATE,
            Reason::CardRate => Self::CARD_RATE,
            Reason::WrongPinRate => Self::CLIENT_RATE,
            Reason::Busy
            | Reason::TokenBusy
            | Reason::Counting
            | Reason::ExportsBusy
            | Reason::StreamsBusy
            | Reason::CardChanged => Self::BUSY,
            Reason::StoreLowOnSpace => Self::STORE_LOW_ON_SPACE,
            Reason::StoreUnavailable => Self::STORE_UNAVAILABLE,
            Reason::TokenUnavailable => Self::TOKEN_UNAVAILABLE,
            Reason::RotationCutOff | Reason::EngineStops | Reason::ConnectionAge | Reason::DeadlinePassed => {
                Self::ENGINE_UNAVAILABLE
            }
            Reason::BoundaryFailed
            | Reason::MessageCount
            | Reason::ItemNumber
            | Reason::EventsArchived
            | Reason::CheckpointNotSigned => Self::UNEXPECTED,
        }
    }

    /// Maps a gRPC code without a known reason: from the transport, a proxy, or an engine of another release.
    fn from_code(code: Code) -> Self {
        match code {
            // OutOfRange is tonic's answer to a message longer than its reader decodes.
            Code::InvalidArgument | Code::OutOfRange => Self::REQUEST_INVALID,
            Code::NotFound => Self::NOT_FOUND,
            Code::FailedPrecondition | Code::AlreadyExists => Self::STATE_CONFLICT,
            // The engine rejected the credentials of the edge, not those of the client: no 401.
            Code::PermissionDenied | Code::Unauthenticated => Self::CALLER_FORBIDDEN,
            Code::ResourceExhausted | Code::Aborted => Self::BUSY,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Self::ENGINE_UNAVAILABLE,
            Code::Ok | Code::Unknown | Code::Unimplemented | Code::Internal | Code::DataLoss => Self::UNEXPECTED,
        }
    }

    /// The error with this Retry-After, in whole seconds, at least 1; unchanged if no retry helps against it.
    pub(super) fn retry_after(self, time: Duration) -> Self {
        let seconds = u32::try_from(time.as_millis().div_ceil(1_000)).unwrap_or(u32::MAX).max(1);
        Self { retry_after_seconds: self.retry_after_seconds.map(|_| seconds), ..self }
    }

    /// Whether the credentials of the request were rejected.
    pub(super) fn is_unauthenticated(self) -> bool {
        self.status == StatusCode::UNAUTHORIZED
    }

    /// Whether a limit on the client, the tenant or the card refused the request.
    pub(super) fn is_limit(self) -> bool {
        self.status == StatusCode::TOO_MANY_REQUESTS
    }

    /// The stable `errorCode`.
    pub(super) fn code(self) -> &'static str {
        self.code
    }

    /// The seconds of `Retry-After`; `None` for an error without the header.
    pub(super) fn retry_after_seconds(self) -> Option<u32> {
        self.retry_after_seconds
    }

    /// The HTTP status under the full profile.
    pub(super) fn status(self) -> StatusCode {
        self.status
    }

    /// The text of the documentation: what failed and what to do next.
    pub(super) fn message(self) -> &'static str {
        self.message
    }

    /// Whether the cause is on the server side (5xx).
    pub(super) fn is_server_error(self) -> bool {
        self.status.is_server_error()
    }

    /// The HTTP response with the id of the request.
    pub(super) fn answer(self, profile: ErrorProfile, id: RequestId) -> Response<Body> {
        let status = match profile {
            ErrorProfile::Full => self.status,
            ErrorProfile::Strict => strict(self.status),
        };
        let body = ErrorBody {
            code: status.as_str().to_owned(),
            message: self.mistake.map_or_else(|| self.message.to_owned(), |mistake| mistake.to_string()),
            id: id.to_string(),
            error_code: self.code.to_owned(),
            error_type: self.error_type,
            error_reason: status.canonical_reason().unwrap_or("Error").to_owned(),
            timestamp: jiff::Timestamp::now().to_string(),
        };
        let mut answer = Response::new(Body::from(serde_json::to_vec(&body).unwrap_or_default()));
        *answer.status_mut() = status;
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if self == Self::PAGE_SESSION_INVALID {
            // A scheme of credentials would make the browser ask the cardholder for a password.
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("PinsealPage"));
        } else if status == StatusCode::UNAUTHORIZED {
            headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"pinseal\""));
            headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"pinseal\""));
        }
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        answer
    }
}

impl From<Mistake> for ApiError {
    /// The row of the mistake's errorCode, with the text of the mistake.
    fn from(mistake: Mistake) -> Self {
        let row = match mistake {
            Mistake::AuthorizationRepeated => ApiError::UNAUTHENTICATED,
            Mistake::HostMissing | Mistake::HostRepeated | Mistake::HostMalformed | Mistake::HostDiffers => {
                ApiError::HOST_INVALID
            }
            Mistake::AuditUserOfPage => ApiError::AUDIT_USER_INVALID,
            Mistake::BodyEmpty
            | Mistake::BodyCut
            | Mistake::BodyNotJson
            | Mistake::BodyNotObject
            | Mistake::MemberRepeated
            | Mistake::MemberMissing(_)
            | Mistake::MemberNotText(_)
            | Mistake::PageId
            | Mistake::BodyNotForm => ApiError::BODY_MALFORMED,
            Mistake::FormControlId => ApiError::CONTROL_ID_INVALID,
            Mistake::TypeNotForm => ApiError::CONTENT_TYPE_UNSUPPORTED,
            Mistake::ZpkIndexMissing | Mistake::ZpkIndexRepeated => ApiError::ZPK_INDEX_INVALID,
            Mistake::BlockLength(_) | Mistake::BlockNotHex => ApiError::ZONE_BLOCK_INVALID,
            Mistake::KeyPem
            | Mistake::KeyBlanks
            | Mistake::KeyUrlSafe
            | Mistake::KeyNotBase64
            | Mistake::KeyCertificate
            | Mistake::KeyPrivate
            | Mistake::KeyPkcs1
            | Mistake::KeyEc
            | Mistake::KeyNotRsa
            | Mistake::KeySize(_)
            | Mistake::KeyExponent
            | Mistake::KeyTrailing
            | Mistake::KeyMalformed => ApiError::DEVICE_KEY_INVALID,
        };
        Self { mistake: Some(mistake), ..row }
    }
}

/// A rejected request: the error for the client, and the cause for the log.
pub(super) struct Rejection {
    pub(super) error: ApiError,
    /// The cause of a server error or of rejected credentials; written to the log only.
    pub(super) cause: Option<String>,
}

impl From<ApiError> for Rejection {
    fn from(error: ApiError) -> Self {
        Self { error, cause: None }
    }
}

impl From<Mistake> for Rejection {
    fn from(mistake: Mistake) -> Self {
        ApiError::from(mistake).into()
    }
}

impl From<Status> for Rejection {
    fn from(status: Status) -> Self {
        let error = ApiError::from_status(&status);
        Self { error, cause: error.is_server_error().then(|| cause_of(&status)) }
    }
}

/// The engine's status and all its sources: the reason of a failed connection is the last one.
pub(super) fn cause_of(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// The first element: an optional macro argument as an `Option`.
const fn first(seconds: &[u32]) -> Option<u32> {
    match seconds {
        [seconds, ..] => Some(*seconds),
        [] => None,
    }
}

/// The nearest status that the vendor's document declares.
fn strict(status: StatusCode) -> StatusCode {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => status,
        StatusCode::TOO_MANY_REQUESTS => StatusCode::FORBIDDEN,
        status if status.is_client_error() => StatusCode::NOT_FOUND,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The body of every error: seven string members.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ErrorBody {
    /// The HTTP status, as text.
    #[schema(example = "404", pattern = "^[0-9]{3}$")]
    code: String,
    /// What went wrong and what to do next, for people.
    message: String,
    /// The id of this request, also in the logs of edge and engine and in the audit event.
    #[schema(format = Uuid)]
    id: String,
    /// What went wrong, for programs; stable. The description of each answer lists its codes with their remedies.
    #[schema(example = "CONTROL_NOT_USABLE")]
    error_code: String,
    /// The origin of the error.
    error_type: ErrorType,
    /// The HTTP status in words.
    error_reason: String,
    /// The time of the error, RFC 3339.
    #[schema(format = DateTime)]
    timestamp: String,
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn engine_status(code: Code, reason: &str) -> Status {
        let details = ErrorDetails::with_error_info(reason, "pinseal", HashMap::<String, String>::new());
        Status::with_error_details(code, "text of the engine", details)
    }

    /// The status under the full and the strict profile, and the errorType.
    type Answered = (u16, u16, ErrorType);

    fn answered(status: &Status) -> Answered {
        let error = ApiError::from_status(status);
        let [full, strict] = [ErrorProfile::Full, ErrorProfile::Strict]
            .map(|profile| error.answer(profile, RequestId::from_bytes([0; 16])));
        let retried = full.headers().contains_key(header::RETRY_AFTER);
        assert_eq!(retried, matches!(full.status().as_u16(), 429 | 503), "{}: Retry-After", error.code);
        (full.status().as_u16(), strict.status().as_u16(), error.error_type)
    }

    #[test]
    fn every_engine_reason_maps_to_its_documented_error() {
        use ErrorType::{DynamicValidation, Integration, Security, StaticValidation, Unexpected};
        let answers: &[(&[&str], Answered)] = &[
            (
                &[
                    "TENANT_INVALID",
                    "AUDIT_USER_INVALID",
                    "PLASTIC_ID_INVALID",
                    "ACCOUNT_NUMBER_INVALID",
                    "ZONE_INVALID",
                    "DIGIT_COUNT_INVALID",
                    "VALUE_METHOD_INVALID",
                    "SEALED_ACCOUNT_INVALID",
                    "CHANGE_INVALID",
                    "TRY_COUNT_INVALID",
                    "METHOD_INVALID",
                    "CONTROL_ID_INVALID",
                    "PAGE_CLIENT_INVALID",
                    "PAGE_ID_INVALID",
                    "SCOPE_INVALID",
                    "DEVICE_KEY_INVALID",
                    "PIN_BLOCK_LENGTH",
                    "REQUEST_ID_INVALID",
                    "CLIENT_NETWORK_INVALID",
                ],
                (400, 404, StaticValidation),
            ),
            (
                &[
                    "CALLER_FORBIDDEN",
                    "TENANT_MISMATCH",
                    "SCOPE_MISMATCH",
                    "DEVICE_KEY_MISMATCH",
                    "ZONE_FORMAT",
                    "ZONE_USE",
                ],
                (403, 403, Security),
            ),
            (
                &["CONTROL_NOT_USABLE", "PIN_NOT_SET", "CARD_UNKNOWN", "ZONE_UNKNOWN", "VALUE_KEY_UNKNOWN"],
                (404, 404, DynamicValidation),
            ),
            (
                &[
                    "ACCOUNT_BOUND",
                    "TZPK_MISSING",
                    "PIN_BLOCK_MALFORMED",
                    "PIN_NOT_SHOWN",
                    "PIN_REFUSED",
                    "PIN_STORED",
                    "PIN_LOCKED",
                    "PIN_BLOCK_REPLACED",
                    "ACCOUNT_MISMATCH",
                    "NO_ACCOUNT_NUMBER",
                    "LEVEL_UNSUPPORTED",
                ],
                (422, 404, DynamicValidation),
            ),
            (&["CONTROL_CAP", "UNREGISTERED_CARDS"], (429, 403, DynamicValidation)),
            (&["TENANT_RATE", "CARD_RATE", "WRONG_PIN_RATE"], (429, 403, Security)),
            (
                &[
                    "BUSY",
                    "TOKEN_BUSY",
                    "COUNTING",
                    "EXPORTS_BUSY",
                    "STREAMS_BUSY",
                    "CARD_CHANGED",
                    "STORE_LOW_ON_SPACE",
                    "STORE_UNAVAILABLE",
                    "TOKEN_UNAVAILABLE",
                    "ROTATION_CUT_OFF",
                    "ENGINE_STOPS",
                    "CONNECTION_AGE",
                    "DEADLINE_PASSED",
                ],
                (503, 500, Integration),
            ),
            (
                &["BOUNDARY_FAILED", "MESSAGE_COUNT", "ITEM_NUMBER", "EVENTS_ARCHIVED", "CHECKPOINT_NOT_SIGNED"],
                (500, 500, Unexpected),
            ),
        ];
        for reason in Reason::ALL {
            let row = answers.iter().find(|(reasons, _)| reasons.contains(&reason.as_str()));
            let (_, answer) = row.unwrap_or_else(|| panic!("{} has no answer here", reason.as_str()));
            // The reason takes precedence over the gRPC code.
            for code in [Code::Unknown, Code::Unavailable, Code::NotFound] {
                assert_eq!(answered(&engine_status(code, reason.as_str())), *answer, "{}", reason.as_str());
            }
        }
    }

    #[test]
    fn every_grpc_code_maps_to_an_error_without_a_known_reason() {
        use ErrorType::{DynamicValidation, Integration, Security, StaticValidation, Unexpected};
        let codes = (0..17).map(Code::from_i32).collect::<Vec<_>>();
        for code in codes {
            let answer = match code {
                Code::InvalidArgument | Code::OutOfRange => (400, 404, StaticValidation),
                Code::PermissionDenied | Code::Unauthenticated => (403, 403, Security),
                Code::NotFound => (404, 404, DynamicValidation),
                Code::FailedPrecondition | Code::AlreadyExists => (422, 404, DynamicValidation),
                Code::ResourceExhausted
                | Code::Aborted
                | Code::Unavailable
                | Code::DeadlineExceeded
                | Code::Cancelled => (503, 500, Integration),
                Code::Ok | Code::Unknown | Code::Unimplemented | Code::Internal | Code::DataLoss => {
                    (500, 500, Unexpected)
                }
            };
            assert_eq!(answered(&Status::new(code, "words")), answer, "{code:?}");
            assert_eq!(answered(&engine_status(code, "OF_A_LATER_RELEASE")), answer, "{code:?}");
        }
    }

    #[test]
    fn an_unavailable_engine_is_503_with_retry_after() {
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled] {
            let answer = ApiError::from_status(&Status::new(code, "connection refused"))
                .answer(ErrorProfile::Full, RequestId::from_bytes([0; 16]));
            assert_eq!(answer.status(), 503);
            assert!(answer.headers().contains_key(header::RETRY_AFTER));
        }
    }

    #[test]
    fn retry_after_is_the_retry_info_of_the_engine() {
        let answered = |reason: &str, delay: Duration| {
            let mut details = ErrorDetails::with_error_info(reason, "pinseal", HashMap::<String, String>::new());
            details.set_retry_info(Some(delay));
            let status = Status::with_error_details(Code::ResourceExhausted, "text of the engine", details);
            let answer = ApiError::from_status(&status).answer(ErrorProfile::Full, RequestId::from_bytes([0; 16]));
            answer.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(answered("CONTROL_CAP", Duration::from_millis(1_234_001)).as_deref(), Some("1235"));
        assert_eq!(answered("CARD_RATE", Duration::from_millis(3)).as_deref(), Some("1"));
        assert_eq!(answered("PIN_REFUSED", Duration::from_secs(9)), None);
    }

    #[test]
    fn only_a_server_error_has_a_cause_for_the_log() {
        let broken = std::io::Error::other(std::io::Error::other("the certificate's issuer is unknown"));
        let cause = Rejection::from(Status::from_error(Box::new(broken))).cause.unwrap();
        assert!(cause.starts_with("Unknown: ") && cause.ends_with(": the certificate's issuer is unknown"), "{cause}");
        assert!(Rejection::from(engine_status(Code::NotFound, "CONTROL_NOT_USABLE")).cause.is_none());
    }

    #[test]
    fn the_strict_profile_uses_four_statuses() {
        for error in ApiError::TABLE.iter().chain(ApiError::PAGE_TABLE) {
            let status = error.answer(ErrorProfile::Strict, RequestId::from_bytes([0; 16])).status().as_u16();
            assert!([401, 403, 404, 500].contains(&status), "{}: {status}", error.code);
        }
    }

    #[test]
    fn error_codes_are_unique() {
        let all = || ApiError::TABLE.iter().chain(ApiError::PAGE_TABLE);
        let mut codes: Vec<_> = all().map(|error| error.code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), all().count());
    }

    #[test]
    fn the_audit_user_message_states_the_length_of_the_domain() {
        let length = format!("1 to {} visible characters", domain::limits::AUDIT_USER_CHARACTERS_MAX);
        assert!(ApiError::AUDIT_USER_INVALID.message.contains(&length));
    }
}
