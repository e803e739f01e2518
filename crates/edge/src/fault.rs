//! Every error the edge answers: one table, one body.

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use serde::Serialize;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use utoipa::ToSchema;
use uuid::Uuid;

use proto::reason::{ERROR_DOMAIN, Reason};

/// Which statuses errors may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ErrorProfile {
    /// As documented.
    #[default]
    Full,
    /// Only those the vendor's own document declares: 401, 403, 404 and 500.
    Strict,
}

/// Where an error comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub(super) enum ErrorType {
    /// The request itself.
    #[serde(rename = "STATIC_VALIDATION_ERROR")]
    StaticValidation,
    /// What the request asks for, as things stand.
    #[serde(rename = "DYNAMIC_VALIDATION_ERROR")]
    DynamicValidation,
    /// A service behind the edge.
    #[serde(rename = "INTEGRATION_ERROR")]
    Integration,
    /// Who asks.
    #[serde(rename = "SECURITY_ERROR")]
    Security,
    /// We don't know.
    #[serde(rename = "UNEXPECTED_ERROR")]
    Unexpected,
}

/// An error, as one row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    status: StatusCode,
    error_type: ErrorType,
    /// Stable, ours.
    code: &'static str,
    message: &'static str,
    retry_after_seconds: Option<u32>,
}

macro_rules! table {
    ($($name:ident = $status:ident $error_type:ident $code:literal $message:literal $(retry $retry:literal)?;)+) => {
        impl Fault {
            $(pub(super) const $name: Self = Self {
                status: StatusCode::$status,
                error_type: ErrorType::$error_type,
                code: $code,
                message: $message,
                retry_after_seconds: first(&[$($retry)?]),
            };)+

            /// Every row, for the documentation.
            pub(super) const TABLE: &'static [Self] = &[$(Self::$name),+];
        }
    };
}

table! {
    UNAUTHENTICATED = UNAUTHORIZED Security "UNAUTHENTICATED" "the credentials are missing or wrong: send this client's own, Bearer or Basic";

    BODY_MALFORMED = BAD_REQUEST StaticValidation "BODY_MALFORMED" "the body is not the JSON object this route takes: see the contract";
    AUDIT_USER_INVALID = BAD_REQUEST StaticValidation "AUDIT_USER_INVALID" "the query parameter auditUser is required once: 1 to 128 visible characters or spaces, no control or format characters";
    PLASTIC_ID_INVALID = BAD_REQUEST StaticValidation "PLASTIC_ID_INVALID" "plasticId is 1 to 19 decimal digits";
    SCOPE_INVALID = BAD_REQUEST StaticValidation "SCOPE_INVALID" "scope is SET_PIN or VIEW_PIN";
    CONTROL_ID_INVALID = BAD_REQUEST StaticValidation "CONTROL_ID_INVALID" "controlId is a UUID of 36 characters";
    DEVICE_KEY_INVALID = BAD_REQUEST StaticValidation "DEVICE_KEY_INVALID" "publicKey is the standard base64 of a DER SubjectPublicKeyInfo: RSA, 2048 to 4096 bits, an odd exponent of at least 3, no trailing bytes";
    PIN_BLOCK_LENGTH = BAD_REQUEST StaticValidation "PIN_BLOCK_LENGTH" "pinBlock is the standard base64 of 8 bytes, 12 characters";
    REQUEST_INVALID = BAD_REQUEST StaticValidation "REQUEST_INVALID" "the request is not one this service can read: see the contract";
    BODY_TIMEOUT = REQUEST_TIMEOUT StaticValidation "BODY_TIMEOUT" "the body did not arrive in time: send the request again, whole";
    BODY_TOO_LARGE = PAYLOAD_TOO_LARGE StaticValidation "BODY_TOO_LARGE" "the body is larger than this service takes: send only the members of the contract";

    CALLER_FORBIDDEN = FORBIDDEN Security "CALLER_FORBIDDEN" "the engine does not give this edge the right to ask for this: ask the engine's operator";
    TENANT_MISMATCH = FORBIDDEN Security "TENANT_MISMATCH" "the control belongs to another tenant: open one of your own";
    SCOPE_MISMATCH = FORBIDDEN Security "SCOPE_MISMATCH" "the control was opened for another purpose: open one for this";
    DEVICE_KEY_MISMATCH = FORBIDDEN Security "DEVICE_KEY_MISMATCH" "the control was opened for another device key: use that one, or open another control";

    CONTROL_NOT_USABLE = NOT_FOUND DynamicValidation "CONTROL_NOT_USABLE" "the control is not usable: open another";
    PIN_NOT_SET = NOT_FOUND DynamicValidation "PIN_NOT_SET" "no PIN is set for this card: set one first";
    CARD_UNKNOWN = NOT_FOUND DynamicValidation "CARD_UNKNOWN" "the card is not registered: register it with the engine first";
    NOT_FOUND = NOT_FOUND DynamicValidation "NOT_FOUND" "the engine does not know what the request names: open another control";
    ROUTE_UNKNOWN = NOT_FOUND StaticValidation "ROUTE_UNKNOWN" "there is no such route: see /openapi.json";
    METHOD_NOT_ALLOWED = METHOD_NOT_ALLOWED StaticValidation "METHOD_NOT_ALLOWED" "this route takes another method: see /openapi.json";

    TZPK_MISSING = UNPROCESSABLE_ENTITY DynamicValidation "TZPK_MISSING" "no tzpk was issued under this control: ask for one first";
    PIN_BLOCK_MALFORMED = UNPROCESSABLE_ENTITY DynamicValidation "PIN_BLOCK_MALFORMED" "the block is not an ISO 9564 format 1 block under this control's tzpk: open another control";
    PIN_NOT_SHOWN = UNPROCESSABLE_ENTITY DynamicValidation "PIN_NOT_SHOWN" "this card's PIN is kept in a form that is not shown: it can only be set anew";
    PIN_REFUSED = UNPROCESSABLE_ENTITY DynamicValidation "PIN_REFUSED" "the PIN breaks the PIN policy: choose another";

    STATE_CONFLICT = UNPROCESSABLE_ENTITY DynamicValidation "STATE_CONFLICT" "the engine can't do this in the present state: open another control";

    CONTROL_CAP = TOO_MANY_REQUESTS DynamicValidation "CONTROL_CAP" "this card has had too many controls within the hour: try again later" retry 600;

    BUSY = SERVICE_UNAVAILABLE Integration "BUSY" "too many requests are under way: try again" retry 1;
    STORE_UNAVAILABLE = SERVICE_UNAVAILABLE Integration "STORE_UNAVAILABLE" "the store is not available: try again later" retry 5;
    TOKEN_UNAVAILABLE = SERVICE_UNAVAILABLE Integration "TOKEN_UNAVAILABLE" "the key boundary is not available: try again later" retry 5;
    ENGINE_UNAVAILABLE = SERVICE_UNAVAILABLE Integration "ENGINE_UNAVAILABLE" "the engine is not available: try again later" retry 5;

    UNEXPECTED = INTERNAL_SERVER_ERROR Unexpected "UNEXPECTED" "something went wrong that should not: the operator finds this id in the edge's log";
}

impl Fault {
    /// What the engine's status is to a client: by its reason, else by its code. The engine's own text stays inside.
    pub(super) fn of(status: &Status) -> Self {
        let info = status.get_details_error_info().filter(|info| info.domain == ERROR_DOMAIN);
        match info.and_then(|info| Reason::parse(&info.reason)) {
            Some(reason) => Self::of_reason(reason),
            // A status with a source never came from the engine: the connection broke, or was never made.
            None if std::error::Error::source(status).is_some() => Self::ENGINE_UNAVAILABLE,
            None => Self::of_code(status.code()),
        }
    }

    /// The row of a reason of the engine.
    fn of_reason(reason: Reason) -> Self {
        match reason {
            Reason::AuditUserInvalid => Self::AUDIT_USER_INVALID,
            Reason::PlasticIdInvalid => Self::PLASTIC_ID_INVALID,
            Reason::ScopeInvalid => Self::SCOPE_INVALID,
            Reason::ControlIdInvalid => Self::CONTROL_ID_INVALID,
            Reason::DeviceKeyInvalid => Self::DEVICE_KEY_INVALID,
            Reason::PinBlockLength => Self::PIN_BLOCK_LENGTH,
            Reason::TenantInvalid | Reason::AccountNumberInvalid => Self::REQUEST_INVALID,
            Reason::CallerForbidden => Self::CALLER_FORBIDDEN,
            Reason::TenantMismatch => Self::TENANT_MISMATCH,
            Reason::ScopeMismatch => Self::SCOPE_MISMATCH,
            Reason::DeviceKeyMismatch => Self::DEVICE_KEY_MISMATCH,
            Reason::ControlNotUsable => Self::CONTROL_NOT_USABLE,
            Reason::PinNotSet => Self::PIN_NOT_SET,
            Reason::CardUnknown => Self::CARD_UNKNOWN,
            Reason::AccountBound => Self::STATE_CONFLICT,
            Reason::TzpkMissing => Self::TZPK_MISSING,
            Reason::PinBlockMalformed => Self::PIN_BLOCK_MALFORMED,
            Reason::PinNotShown => Self::PIN_NOT_SHOWN,
            Reason::PinRefused => Self::PIN_REFUSED,
            Reason::ControlCap => Self::CONTROL_CAP,
            Reason::Busy | Reason::TokenBusy | Reason::Counting => Self::BUSY,
            Reason::StoreUnavailable => Self::STORE_UNAVAILABLE,
            Reason::TokenUnavailable => Self::TOKEN_UNAVAILABLE,
            Reason::RotationCutOff | Reason::DeadlinePassed => Self::ENGINE_UNAVAILABLE,
            Reason::BoundaryFailed => Self::UNEXPECTED,
        }
    }

    /// The row of a gRPC code that comes without a reason that the edge knows: from the transport, a proxy, or an engine of
    /// another release.
    fn of_code(code: Code) -> Self {
        match code {
            // OutOfRange is tonic's answer to a message longer than its reader decodes.
            Code::InvalidArgument | Code::OutOfRange => Self::REQUEST_INVALID,
            Code::NotFound => Self::NOT_FOUND,
            Code::FailedPrecondition | Code::AlreadyExists => Self::STATE_CONFLICT,
            // The edge's own credentials at the engine, not those of the edge's client: no 401.
            Code::PermissionDenied | Code::Unauthenticated => Self::CALLER_FORBIDDEN,
            Code::ResourceExhausted | Code::Aborted => Self::BUSY,
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => Self::ENGINE_UNAVAILABLE,
            Code::Ok | Code::Unknown | Code::Unimplemented | Code::Internal | Code::DataLoss => Self::UNEXPECTED,
        }
    }

    /// Its stable code.
    pub(super) fn code(self) -> &'static str {
        self.code
    }

    /// Its status, unless the profile is strict.
    pub(super) fn status(self) -> StatusCode {
        self.status
    }

    /// What went wrong and what to do next.
    pub(super) fn message(self) -> &'static str {
        self.message
    }

    /// Whether it is ours, not the client's.
    pub(super) fn is_ours(self) -> bool {
        self.status.is_server_error()
    }

    /// The answer. `id` is also in the log.
    pub(super) fn answer(self, profile: ErrorProfile, id: Uuid) -> Response<Body> {
        let status = match profile {
            ErrorProfile::Full => self.status,
            ErrorProfile::Strict => strict(self.status),
        };
        let body = FaultBody {
            code: status.as_str().to_owned(),
            message: self.message.to_owned(),
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
        if status == StatusCode::UNAUTHORIZED {
            headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"pinseal\""));
            headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"pinseal\""));
        }
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        answer
    }
}

/// Why a request is not served: what its client is told, and what only the log is.
pub(super) struct Refused {
    pub(super) fault: Fault,
    /// Of a fault of ours, what was behind it.
    pub(super) cause: Option<String>,
}

impl From<Fault> for Refused {
    fn from(fault: Fault) -> Self {
        Self { fault, cause: None }
    }
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        let fault = Fault::of(&status);
        Self { fault, cause: fault.is_ours().then(|| cause_of(&status)) }
    }
}

/// The engine's status and every cause below it: a connection that could not be made says why only at the end.
fn cause_of(status: &Status) -> String {
    let mut told = format!("{:?}: {}", status.code(), status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        told.push_str(": ");
        told.push_str(&error.to_string());
        cause = error.source();
    }
    told
}

/// The one there is, if there is one.
const fn first(seconds: &[u32]) -> Option<u32> {
    match seconds {
        [seconds, ..] => Some(*seconds),
        [] => None,
    }
}

/// The nearest status the vendor's document declares.
fn strict(status: StatusCode) -> StatusCode {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => status,
        StatusCode::TOO_MANY_REQUESTS => StatusCode::FORBIDDEN,
        status if status.is_client_error() => StatusCode::NOT_FOUND,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The body of every error: seven members, all of them strings.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct FaultBody {
    /// The HTTP status, as text.
    #[schema(example = "404", pattern = "^[0-9]{3}$")]
    code: String,
    /// What went wrong and what to do next, for people.
    message: String,
    /// This answer's own name, also in the edge's log.
    #[schema(format = Uuid)]
    id: String,
    /// What went wrong, for programs: stable. Each stands with what to do at the answers that have it.
    #[schema(example = "CONTROL_NOT_USABLE")]
    error_code: String,
    /// Where it comes from.
    error_type: ErrorType,
    /// The HTTP status in words.
    error_reason: String,
    /// When, RFC 3339.
    #[schema(format = DateTime)]
    timestamp: String,
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn engine_says(code: Code, reason: &str) -> Status {
        let details = ErrorDetails::with_error_info(reason, "pinseal", HashMap::<String, String>::new());
        Status::with_error_details(code, "words of the engine's own", details)
    }

    /// The status by the full and by the strict profile, and the errorType.
    type Answered = (u16, u16, ErrorType);

    /// As the Card PIN API has them.
    fn answered(status: &Status) -> Answered {
        let fault = Fault::of(status);
        let [full, strict] =
            [ErrorProfile::Full, ErrorProfile::Strict].map(|profile| fault.answer(profile, Uuid::nil()));
        let retried = full.headers().contains_key(header::RETRY_AFTER);
        assert_eq!(retried, matches!(full.status().as_u16(), 429 | 503), "{}: Retry-After", fault.code);
        (full.status().as_u16(), strict.status().as_u16(), fault.error_type)
    }

    #[test]
    fn each_reason_of_the_engine_has_its_answer() {
        use ErrorType::{DynamicValidation, Integration, Security, StaticValidation, Unexpected};
        let answers: &[(&[&str], Answered)] = &[
            (
                &[
                    "TENANT_INVALID",
                    "AUDIT_USER_INVALID",
                    "PLASTIC_ID_INVALID",
                    "ACCOUNT_NUMBER_INVALID",
                    "CONTROL_ID_INVALID",
                    "SCOPE_INVALID",
                    "DEVICE_KEY_INVALID",
                    "PIN_BLOCK_LENGTH",
                ],
                (400, 404, StaticValidation),
            ),
            (&["CALLER_FORBIDDEN", "TENANT_MISMATCH", "SCOPE_MISMATCH", "DEVICE_KEY_MISMATCH"], (403, 403, Security)),
            (&["CONTROL_NOT_USABLE", "PIN_NOT_SET", "CARD_UNKNOWN"], (404, 404, DynamicValidation)),
            (
                &["ACCOUNT_BOUND", "TZPK_MISSING", "PIN_BLOCK_MALFORMED", "PIN_NOT_SHOWN", "PIN_REFUSED"],
                (422, 404, DynamicValidation),
            ),
            (&["CONTROL_CAP"], (429, 403, DynamicValidation)),
            (
                &[
                    "BUSY",
                    "TOKEN_BUSY",
                    "COUNTING",
                    "STORE_UNAVAILABLE",
                    "TOKEN_UNAVAILABLE",
                    "ROTATION_CUT_OFF",
                    "DEADLINE_PASSED",
                ],
                (503, 500, Integration),
            ),
            (&["BOUNDARY_FAILED"], (500, 500, Unexpected)),
        ];
        for reason in Reason::ALL {
            let row = answers.iter().find(|(reasons, _)| reasons.contains(&reason.as_str()));
            let (_, answer) = row.unwrap_or_else(|| panic!("{} has no answer here", reason.as_str()));
            // The reason decides, whatever the code.
            for code in [Code::Unknown, Code::Unavailable, Code::NotFound] {
                assert_eq!(answered(&engine_says(code, reason.as_str())), *answer, "{}", reason.as_str());
            }
        }
    }

    #[test]
    fn each_grpc_code_has_its_answer_without_a_known_reason() {
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
            assert_eq!(answered(&engine_says(code, "OF_A_LATER_RELEASE")), answer, "{code:?}");
        }
    }

    #[test]
    fn an_engine_that_is_away_or_slow_is_503_with_retry_after() {
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled] {
            let answer = Fault::of(&Status::new(code, "connection refused")).answer(ErrorProfile::Full, Uuid::nil());
            assert_eq!(answer.status(), 503);
            assert!(answer.headers().contains_key(header::RETRY_AFTER));
        }
    }

    #[test]
    fn the_log_is_told_what_is_behind_a_fault_of_ours_alone() {
        let broken = std::io::Error::other(std::io::Error::other("the certificate's issuer is unknown"));
        let told = Refused::from(Status::from_error(Box::new(broken))).cause.unwrap();
        assert!(told.starts_with("Unknown: ") && told.ends_with(": the certificate's issuer is unknown"), "{told}");
        assert!(Refused::from(engine_says(Code::NotFound, "CONTROL_NOT_USABLE")).cause.is_none());
    }

    #[test]
    fn the_strict_profile_knows_four_statuses_alone() {
        for fault in Fault::TABLE {
            let status = fault.answer(ErrorProfile::Strict, Uuid::nil()).status().as_u16();
            assert!([401, 403, 404, 500].contains(&status), "{}: {status}", fault.code);
        }
    }

    #[test]
    fn codes_are_unique_and_stable_in_form() {
        let mut codes: Vec<_> = Fault::TABLE.iter().map(|fault| fault.code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Fault::TABLE.len());
    }
}
