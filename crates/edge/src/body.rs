//! Request and response bodies of the Card PIN API. No type has `Debug`: a body holds a PIN block or a key.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::api_error::ApiError;
use domain::limits::{CONTROL_ID_CHARACTERS, PIN_BLOCK_BYTES, PIN_BLOCK_CHARACTERS, PUBLIC_KEY_CHARACTERS_MAX};

/// Opens a control. Members not named here are ignored, in this and every other request.
#[derive(Deserialize, ToSchema)]
pub(super) struct PinControlRequest {
    /// The operation that the control authorises.
    #[schema(value_type = ControlScope)]
    pub(super) scope: String,
}

/// The operation that a control authorises.
#[derive(Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum ControlScope {
    /// One PIN change.
    SetPin,
    /// One view of the PIN.
    ViewPin,
}

impl ControlScope {
    pub(super) fn parse(text: &str) -> Result<Self, ApiError> {
        match text {
            "SET_PIN" => Ok(Self::SetPin),
            "VIEW_PIN" => Ok(Self::ViewPin),
            _ => Err(ApiError::SCOPE_INVALID),
        }
    }

    pub(super) fn to_wire(self) -> i32 {
        match self {
            Self::SetPin => proto::Scope::SetPin.into(),
            Self::ViewPin => proto::Scope::ViewPin.into(),
        }
    }
}

/// An opened control.
#[derive(Serialize, ToSchema)]
pub(super) struct PinControl {
    /// The controlId, valid for 30 seconds unless configured otherwise.
    #[schema(format = Uuid)]
    pub(super) id: String,
}

/// Requests a tzpk (temporary zone PIN key), or the PIN encrypted under a tzpk.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeviceKeyRequest {
    /// The controlId of an open control.
    #[schema(format = Uuid)]
    pub(super) control_id: String,
    /// Standard base64, without PEM markers, of the DER SubjectPublicKeyInfo of the device's RSA key: 2048 to 4096 bits.
    #[schema(min_length = 392, max_length = 736, pattern = "^[A-Za-z0-9+/]+={0,2}$")]
    pub(super) public_key: String,
}

/// A tzpk for the device.
#[derive(Serialize, ToSchema)]
pub(super) struct Tzpk {
    /// Standard base64 of RSA-OAEP over the 16 raw bytes K1 ‖ K2 of a double-length 3DES key; a device whose library wants
    /// 24 bytes expands them to K1 ‖ K2 ‖ K1. The hash is SHA-256 **and so is MGF1's**, with an empty label: Java's and
    /// Android's defaults use MGF1 with SHA-1 and can't open it. Name both in an OAEPParameterSpec.
    #[schema(min_length = 344, max_length = 684)]
    pub(super) tzpk: String,
}

/// Sets a PIN.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct SetPinRequest {
    /// The controlId of an open control.
    #[schema(format = Uuid)]
    pub(super) control_id: String,
    /// Standard base64 of 8 bytes: the PIN as an ISO 9564 format 1 block under the tzpk, 3DES-ECB, no padding.
    #[schema(min_length = 12, max_length = 12, pattern = "^[A-Za-z0-9+/]{11}=$")]
    pub(super) pin_block: String,
}

/// The PIN is set.
#[derive(Serialize, ToSchema)]
pub(super) struct PinSet {}

/// The PIN, encrypted for the device.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ViewedPin {
    /// As in the answer that issues a tzpk; generated for this block.
    #[schema(min_length = 344, max_length = 684)]
    pub(super) tzpk: String,
    /// Standard base64 of 8 bytes: the PIN as an ISO 9564 format 1 block, with random fill, under that tzpk.
    #[schema(min_length = 12, max_length = 12)]
    pub(super) pin_block: String,
}

/// Parses a JSON object.
pub(super) fn parse<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, ApiError> {
    // serde also reads a struct from a JSON array; the contract allows objects only.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(ApiError::BODY_MALFORMED);
    }
    serde_json::from_slice(body).map_err(|_| ApiError::BODY_MALFORMED)
}

/// Checks the length of a controlId; the engine checks the rest.
pub(super) fn control_id(text: String) -> Result<String, ApiError> {
    if text.len() == CONTROL_ID_CHARACTERS { Ok(text) } else { Err(ApiError::CONTROL_ID_INVALID) }
}

/// Decodes a publicKey from base64 to DER.
pub(super) fn public_key(text: &str) -> Result<Vec<u8>, ApiError> {
    let short = Some(text).filter(|text| text.len() <= PUBLIC_KEY_CHARACTERS_MAX);
    short.and_then(|text| STANDARD.decode(text).ok()).ok_or(ApiError::DEVICE_KEY_INVALID)
}

/// Decodes a pinBlock from base64 to 8 bytes.
pub(super) fn pin_block(text: &str) -> Result<Vec<u8>, ApiError> {
    let right = Some(text).filter(|text| text.len() == PIN_BLOCK_CHARACTERS);
    let block = right.and_then(|text| STANDARD.decode(text).ok()).filter(|block| block.len() == PIN_BLOCK_BYTES);
    block.ok_or(ApiError::PIN_BLOCK_LENGTH)
}

/// Encodes bytes in standard base64.
pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
