//! The operations of the contract: their operationIds and their errors.

use super::api_error::ApiError;

/// An operation of the contract.
pub(super) struct Operation {
    /// The operationId.
    pub(super) id: &'static str,
    errors: &'static [&'static [ApiError]],
}

impl Operation {
    pub(super) const OPEN_CONTROL: Self = Self {
        id: "openControl",
        errors: &[
            &[ApiError::PLASTIC_ID_INVALID, ApiError::SCOPE_INVALID, ApiError::DEVICE_KEY_SHA256_INVALID],
            &[
                ApiError::CARD_UNKNOWN,
                ApiError::CONTROL_CAP,
                ApiError::UNREGISTERED_CARDS,
                ApiError::STORE_LOW_ON_SPACE,
            ],
            COMMON,
            BODY,
        ],
    };
    pub(super) const ISSUE_TZPK: Self = Self { id: "issueTzpk", errors: &[CONTROL, DEVICE_KEY, COMMON, BODY] };
    pub(super) const SET_PIN: Self = Self {
        id: "setPin",
        errors: &[
            CONTROL,
            &[ApiError::PIN_BLOCK_LENGTH, ApiError::TZPK_MISSING, ApiError::PIN_BLOCK_MALFORMED, ApiError::PIN_REFUSED],
            COMMON,
            BODY,
        ],
    };
    pub(super) const VIEW_PIN: Self = Self {
        id: "viewPin",
        errors: &[CONTROL, DEVICE_KEY, &[ApiError::PIN_NOT_SET, ApiError::PIN_NOT_SHOWN], COMMON, BODY],
    };
    pub(super) const SET_PIN_BY_ZONE: Self = Self {
        id: "setPinByZone",
        errors: &[
            ZONE,
            &[
                ApiError::ZONE_BLOCK_INVALID,
                ApiError::ZONE_BLOCK_MALFORMED,
                ApiError::PIN_REFUSED,
                ApiError::PIN_BLOCK_REPLACED,
                ApiError::CARD_UNKNOWN,
                ApiError::STORE_LOW_ON_SPACE,
            ],
            COMMON,
            BODY,
        ],
    };
    pub(super) const GET_PIN_BY_ZONE: Self =
        Self { id: "getPinByZone", errors: &[ZONE, &[ApiError::PIN_NOT_SET, ApiError::PIN_NOT_SHOWN], COMMON] };
    const ALL: [Self; 6] = [
        Self::OPEN_CONTROL,
        Self::ISSUE_TZPK,
        Self::SET_PIN,
        Self::VIEW_PIN,
        Self::SET_PIN_BY_ZONE,
        Self::GET_PIN_BY_ZONE,
    ];

    /// The operation with this operationId.
    pub(super) fn find(id: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.id == id)
    }

    /// The errors that the operation can answer.
    pub(super) fn errors(&self) -> impl Iterator<Item = &'static ApiError> {
        self.errors.iter().copied().flatten()
    }
}

/// The errors of every operation.
const COMMON: &[ApiError] = &[
    ApiError::AUDIT_USER_INVALID,
    ApiError::REQUEST_INVALID,
    ApiError::UNAUTHENTICATED,
    ApiError::CALLER_FORBIDDEN,
    ApiError::NOT_FOUND,
    ApiError::STATE_CONFLICT,
    ApiError::CLIENT_BUSY,
    ApiError::TENANT_BUSY,
    ApiError::CLIENT_RATE,
    ApiError::TENANT_RATE,
    ApiError::CARD_RATE,
    ApiError::UNEXPECTED,
    ApiError::BUSY,
    ApiError::STORE_UNAVAILABLE,
    ApiError::TOKEN_UNAVAILABLE,
    ApiError::ENGINE_UNAVAILABLE,
];
/// The errors of an operation with a body.
const BODY: &[ApiError] =
    &[ApiError::BODY_MALFORMED, ApiError::CONTENT_TYPE_UNSUPPORTED, ApiError::BODY_TIMEOUT, ApiError::BODY_TOO_LARGE];
/// The errors of an operation with a zone key.
const ZONE: &[ApiError] =
    &[ApiError::PLASTIC_ID_INVALID, ApiError::ZPK_INDEX_INVALID, ApiError::ZONE_FORBIDDEN, ApiError::ZONE_UNKNOWN];
/// The errors of an operation under a control.
const CONTROL: &[ApiError] =
    &[ApiError::CONTROL_ID_INVALID, ApiError::TENANT_MISMATCH, ApiError::SCOPE_MISMATCH, ApiError::CONTROL_NOT_USABLE];
/// The errors of an operation with a device key.
const DEVICE_KEY: &[ApiError] =
    &[ApiError::DEVICE_KEY_INVALID, ApiError::DEVICE_KEY_MISMATCH, ApiError::OAEP_MGF1_EXPIRED];
