//! Request and response bodies of the Card PIN API. No type has `Debug`: a body holds a PIN block or a key.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use serde_json::error::Category;
use utoipa::ToSchema;

use super::{
    api_error::ApiError,
    device_key::{mistake_in_der, mistake_in_text},
    mistake::Mistake,
    web_view::{PageOperation, PageSession},
};
use domain::control::PageId;
use domain::limits::{
    CONTROL_ID_CHARACTERS, PIN_BLOCK_BYTES, PIN_BLOCK_CHARACTERS, PUBLIC_KEY_CHARACTERS_MAX, ZONE_PIN_BLOCK_CHARACTERS,
    ZPK_INDEX_MAX,
};

/// The bytes of a SHA-256.
const SHA256_BYTES: usize = 32;

/// A member of a request that is required to be a JSON string. Every JSON value deserializes, so that the error can name the
/// member.
#[derive(Default, Deserialize)]
#[serde(untagged)]
pub(super) enum Member {
    #[default]
    #[serde(skip)]
    Missing,
    Text(String),
    Other(IgnoredAny),
}

impl Member {
    /// The text of the member `name`.
    ///
    /// # Errors
    /// BODY_MALFORMED: the member is missing, or is not a string.
    pub(super) fn text(self, name: &'static str) -> Result<String, ApiError> {
        self.optional_text(name)?.ok_or_else(|| Mistake::MemberMissing(name).into())
    }

    /// The text of the member `name`; `None` if it is missing. `null` is an error: a client that loses a value by mistake
    /// must not get the behaviour of a missing one.
    ///
    /// # Errors
    /// BODY_MALFORMED: the member is not a string.
    pub(super) fn optional_text(self, name: &'static str) -> Result<Option<String>, ApiError> {
        match self {
            Self::Missing => Ok(None),
            Self::Text(text) => Ok(Some(text)),
            Self::Other(_) => Err(Mistake::MemberNotText(name).into()),
        }
    }
}

/// Opens a control. Members not named here are ignored, in this and every other request.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct PinControlRequest {
    /// The operation that the control authorises.
    #[serde(default)]
    #[schema(value_type = ControlScope, required = true)]
    pub(super) scope: Member,
    /// Standard base64 of the SHA-256 (32 bytes) of the device key's DER SubjectPublicKeyInfo. With it, the engine accepts no
    /// other device key under this control, so a machine in the middle cannot substitute its own. Recommended.
    #[serde(default)]
    #[schema(value_type = String, required = false, min_length = 44, max_length = 44, pattern = "^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$")]
    pub(super) device_key_sha256: Member,
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
    /// Only for a client with a page of the web view: the address that an app's web view sends a form POST with the field
    /// controlId to.
    #[serde(rename = "pinURL", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, format = "uri")]
    pub(super) pin_url: Option<String>,
    /// Only for a client with a page of the web view: the address of a frame on a web site, to which the site adds
    /// `?key=` and the key of its page.
    #[serde(rename = "pinFrameURL", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, format = "uri")]
    pub(super) pin_frame_url: Option<String>,
}

/// The members of a page's calls beside those of the same call of the API.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageCall {
    /// The pageId of the page's session: 32 hexadecimal digits.
    #[serde(default)]
    pub(super) page_id: Member,
    /// The controlId that a frame exchanges for a session of its pageId.
    #[serde(default)]
    pub(super) control_id: Member,
}

/// A page has its session.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageStarted {
    operation: PageOperation,
    /// The id that each call of the page names.
    page_id: String,
    /// The whole seconds to the end of the control.
    seconds_left: u64,
    digits_min: u8,
    digits_max: u8,
}

impl From<&PageSession> for PageStarted {
    fn from(session: &PageSession) -> Self {
        let [digits_min, digits_max] = session.control.digits;
        Self {
            operation: session.control.operation,
            page_id: session.id.to_string(),
            seconds_left: session.remaining().as_secs(),
            digits_min,
            digits_max,
        }
    }
}

/// Requests a tzpk (temporary zone PIN key), or the PIN encrypted under a tzpk.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeviceKeyRequest {
    /// The controlId of an open control.
    #[serde(default)]
    #[schema(value_type = String, required = true, format = Uuid)]
    pub(super) control_id: Member,
    /// Standard base64, without PEM markers, of the DER SubjectPublicKeyInfo of the device's RSA key: 2048 to 4096 bits.
    #[serde(default)]
    #[schema(value_type = String, required = true, format = "rsa-public-key", min_length = 392, max_length = 736)]
    pub(super) public_key: Member,
}

/// A tzpk for the device.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Tzpk {
    /// Standard base64 of RSA-OAEP over the 16 raw bytes K1 ‖ K2 of a double-length 3DES key; a device whose library wants
    /// 24 bytes expands them to K1 ‖ K2 ‖ K1. The hash is SHA-256 **and so is MGF1's**, with an empty label: Java's and
    /// Android's defaults use MGF1 with SHA-1 and can't open it. Name both in an OAEPParameterSpec.
    #[schema(min_length = 344, max_length = 684)]
    pub(super) tzpk: String,
    /// Only for a client whose configuration has `tzpk_kcv`: the KCV of the tzpk (the first 3 bytes of the zero block under
    /// it), in hexadecimal. The device compares it after it has decrypted the tzpk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, pattern = "^[0-9A-F]{6}$")]
    pub(super) check_value: Option<String>,
}

/// Sets a PIN.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct SetPinRequest {
    /// The controlId of an open control.
    #[serde(default)]
    #[schema(value_type = String, required = true, format = Uuid)]
    pub(super) control_id: Member,
    /// Standard base64 of 8 bytes: the PIN as an ISO 9564 format 1 block under the tzpk, 3DES-ECB, no padding.
    #[serde(default)]
    #[schema(value_type = String, required = true, min_length = 12, max_length = 12, pattern = "^[A-Za-z0-9+/]{10}[AEIMQUYcgkosw048]=$")]
    pub(super) pin_block: Member,
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
    /// As in the answer that issues a tzpk.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, pattern = "^[0-9A-F]{6}$")]
    pub(super) check_value: Option<String>,
}

/// Sets a PIN by a block under a zone key.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct SetPinByZoneRequest {
    /// The index of the zone key that encrypts the block.
    #[serde(default)]
    #[schema(value_type = String, required = true, format = "zpk-index", pattern = "^(0|[1-9][0-9]{0,3})$")]
    pub(super) zpk_index: Member,
    /// The PIN in the zone's format of ISO 9564-1, in hexadecimal of either case: format 1 unless configured, 8 bytes under
    /// 3DES-ECB, 16 characters. Format 4 has 16 bytes under AES, 32 characters.
    #[serde(default)]
    #[schema(value_type = String, required = true, format = "zone-pin-block")]
    pub(super) pin_block: Member,
}

/// A PIN under a zone key.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ZonePin {
    /// The PIN as an ISO 9564 format 1 block with random fill under the zone key: 8 bytes, 3DES-ECB, in hexadecimal.
    #[schema(pattern = "^[0-9A-F]{16}$")]
    pub(super) pin_block: String,
}

/// Parses a JSON object whose members are [`Member`]s.
///
/// # Errors
/// BODY_MALFORMED, with the mistake.
pub(super) fn parse<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, ApiError> {
    let body = body.trim_ascii_start();
    let mistake = match body.first() {
        None => Mistake::BodyEmpty,
        Some(b'{') => match serde_json::from_slice(body) {
            Ok(parsed) => return Ok(parsed),
            Err(error) => match error.classify() {
                // A member takes any value, so the only error of data is a repeated member.
                Category::Data => Mistake::MemberRepeated,
                Category::Syntax | Category::Eof | Category::Io => Mistake::BodyNotJson,
            },
        },
        // serde also reads a struct from a JSON array; the contract allows objects only.
        Some(_) => match serde_json::from_slice::<IgnoredAny>(body) {
            Ok(_) => Mistake::BodyNotObject,
            Err(_) => Mistake::BodyNotJson,
        },
    };
    Err(mistake.into())
}

/// Checks the length of a controlId; the engine checks the rest.
///
/// # Errors
/// BODY_MALFORMED; CONTROL_ID_INVALID.
pub(super) fn control_id(member: Member) -> Result<String, ApiError> {
    let text = member.text("controlId")?;
    if text.len() == CONTROL_ID_CHARACTERS { Ok(text) } else { Err(ApiError::CONTROL_ID_INVALID) }
}

/// Reads the pageId that a frame chose.
///
/// # Errors
/// BODY_MALFORMED, with the mistake.
pub(super) fn page_id(member: Member) -> Result<PageId, ApiError> {
    PageId::parse(&member.text("pageId")?).map_err(|_| Mistake::PageId.into())
}

/// Decodes a publicKey from base64 to DER.
///
/// # Errors
/// BODY_MALFORMED; DEVICE_KEY_INVALID, with the mistake: the text is not standard base64, or too long.
pub(super) fn public_key(member: Member) -> Result<Vec<u8>, ApiError> {
    let text = member.text("publicKey")?;
    let der = STANDARD.decode(&text).map_err(|_| mistake_in_text(&text))?;
    if text.len() > PUBLIC_KEY_CHARACTERS_MAX {
        return Err(mistake_in_der(&der).into());
    }
    Ok(der)
}

/// Decodes a deviceKeySha256 from base64 to 32 bytes; no bytes if it is missing.
///
/// # Errors
/// BODY_MALFORMED; DEVICE_KEY_SHA256_INVALID.
pub(super) fn device_key_sha256(member: Member) -> Result<Vec<u8>, ApiError> {
    let Some(text) = member.optional_text("deviceKeySha256")? else { return Ok(Vec::new()) };
    let hash = STANDARD.decode(text).ok().filter(|hash| hash.len() == SHA256_BYTES);
    hash.ok_or(ApiError::DEVICE_KEY_SHA256_INVALID)
}

/// Decodes a pinBlock from base64 to 8 bytes.
///
/// # Errors
/// BODY_MALFORMED; PIN_BLOCK_LENGTH.
pub(super) fn pin_block(member: Member) -> Result<Vec<u8>, ApiError> {
    let text = member.text("pinBlock")?;
    let right = Some(text).filter(|text| text.len() == PIN_BLOCK_CHARACTERS);
    let block = right.and_then(|text| STANDARD.decode(text).ok()).filter(|block| block.len() == PIN_BLOCK_BYTES);
    block.ok_or(ApiError::PIN_BLOCK_LENGTH)
}

/// Decodes a pinBlock under a zone key from hexadecimal to 8 or 16 bytes. The engine knows which of them the zone has.
///
/// # Errors
/// BODY_MALFORMED; ZONE_BLOCK_INVALID, with the mistake.
pub(super) fn zone_pin_block(member: Member) -> Result<Vec<u8>, ApiError> {
    let text = member.text("pinBlock")?;
    if !ZONE_PIN_BLOCK_CHARACTERS.contains(&text.len()) {
        return Err(Mistake::BlockLength(text.chars().count()).into());
    }
    base16ct::mixed::decode_vec(&text).map_err(|_| Mistake::BlockNotHex.into())
}

/// Reads a zpkIndex.
///
/// # Errors
/// ZPK_INDEX_INVALID: another text than that of a number of 0 to 9999 has.
pub(super) fn zpk_index(text: &str) -> Result<u32, ApiError> {
    let index = text.parse().ok().filter(|index: &u32| *index <= ZPK_INDEX_MAX && index.to_string() == text);
    index.ok_or(ApiError::ZPK_INDEX_INVALID)
}

/// Encodes bytes in standard base64.
pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Encodes bytes in hexadecimal, in upper case.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistake_in(body: &[u8]) -> Option<ApiError> {
        parse::<PinControlRequest>(body).and_then(|request| request.scope.text("scope")).err()
    }

    #[test]
    fn each_mistake_in_a_block_of_a_zone_is_named() {
        let block = |text: &str| zone_pin_block(Member::Text(text.into()));
        assert_eq!(block("81739710556e1518"), block("81739710556E1518"));
        assert_eq!(block("81739710556E1518").map(|block| block.len()), Ok(8));
        assert_eq!(block(&"0f".repeat(16)).map(|block| block.len()), Ok(16));
        for (text, mistake) in [
            ("", Mistake::BlockLength(0)),
            ("81739710556E151", Mistake::BlockLength(15)),
            ("81739710556E15180", Mistake::BlockLength(17)),
            ("tACuB41yyfU=", Mistake::BlockLength(12)),
            ("81739710556E151G", Mistake::BlockNotHex),
            ("81 73 97 10 55 6", Mistake::BlockNotHex),
            ("\u{e9}81739710556E15", Mistake::BlockNotHex),
        ] {
            assert_eq!(block(text), Err(mistake.into()), "{text}");
        }
    }

    #[test]
    fn a_zpk_index_is_decimal_without_leading_zeros() {
        assert_eq!((zpk_index("0"), zpk_index("9999")), (Ok(0), Ok(9_999)));
        for wrong in ["", "00", "01", "+1", "-1", "1 ", "1.0", "10000", "0x1", "99999999999", "\u{661}"] {
            assert_eq!(zpk_index(wrong), Err(ApiError::ZPK_INDEX_INVALID), "{wrong}");
        }
    }

    #[test]
    fn each_malformed_body_has_a_text_for_its_mistake() {
        for (body, mistake) in [
            (&b""[..], Mistake::BodyEmpty),
            (b" \r\n", Mistake::BodyEmpty),
            (b"{\"scope\":", Mistake::BodyNotJson),
            (b"{\"scope\":\"SET_PIN\"}}", Mistake::BodyNotJson),
            (b"\xEF\xBB\xBF{}", Mistake::BodyNotJson),
            (b"{\"scope\":\"\xFF\"}", Mistake::BodyNotJson),
            (b"scope=SET_PIN", Mistake::BodyNotJson),
            (b"[\"SET_PIN\"]", Mistake::BodyNotObject),
            (b"null", Mistake::BodyNotObject),
            (b"{\"scope\":\"SET_PIN\",\"scope\":\"SET_PIN\"}", Mistake::MemberRepeated),
            (b"{}", Mistake::MemberMissing("scope")),
            (b"{\"Scope\":\"SET_PIN\"}", Mistake::MemberMissing("scope")),
            (b"{\"scope\":null}", Mistake::MemberNotText("scope")),
            (b"{\"scope\":{\"SET_PIN\":[1,2.5,true]}}", Mistake::MemberNotText("scope")),
        ] {
            assert_eq!(mistake_in(body), Some(mistake.into()), "{}", String::from_utf8_lossy(body));
        }
        assert_eq!(mistake_in(b"{\"scope\":\"SET_PIN\",\"more\":[null,{\"a\":-1e9}]}"), None);
    }
}
