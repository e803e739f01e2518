//! The lengths that the HTTP contract and the gRPC messages allow, for the edge and the engine alike.
//!
//! The edge checks each field before it calls: a message that the engine does not decode is never sent.

use crate::card::{PLASTIC_ID_DIGITS_MAX, TENANT_BYTES_MAX};

/// The length of a controlId: a UUID in its hyphenated form (RFC 9562, section 4).
pub const CONTROL_ID_CHARACTERS: usize = 36;
/// The most characters of an auditUser.
pub const AUDIT_USER_CHARACTERS_MAX: usize = 128;
/// The most characters of the name of a client that has a page of the web view.
pub const PAGE_CLIENT_CHARACTERS_MAX: usize = 128;
/// The bytes of a pageId.
pub const PAGE_ID_BYTES: usize = 16;
/// The most bytes of a device key: a DER SubjectPublicKeyInfo of RSA with 4,096 bits and an exponent of 4 bytes.
pub const DEVICE_KEY_BYTES_MAX: usize = 552;
/// The most characters of a `publicKey`: [`DEVICE_KEY_BYTES_MAX`] in base64.
pub const PUBLIC_KEY_CHARACTERS_MAX: usize = base64_characters(DEVICE_KEY_BYTES_MAX);
/// The bytes of a PIN block (ISO 9564-1, under 3DES).
pub const PIN_BLOCK_BYTES: usize = 8;
/// The characters of a `pinBlock`: [`PIN_BLOCK_BYTES`] in base64.
pub const PIN_BLOCK_CHARACTERS: usize = base64_characters(PIN_BLOCK_BYTES);
/// The characters of a `pinBlock` under a zone key: 8 bytes in hexadecimal, or 16 of format 4.
pub const ZONE_PIN_BLOCK_CHARACTERS: [usize; 2] = [2 * PIN_BLOCK_BYTES, 2 * ZONE_PIN_BLOCK_BYTES_MAX];
/// The most bytes of a PIN block under a zone key (ISO 9564-1 format 4, under AES).
const ZONE_PIN_BLOCK_BYTES_MAX: usize = 16;
/// The largest `zpkIndex`.
pub const ZPK_INDEX_MAX: u32 = 9_999;
/// The most bytes of an HTTP body, unless configured.
pub const BODY_BYTES_MAX: usize = 16 * 1024;
/// The most bytes of a gRPC request that the engine decodes.
pub const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// The most bytes of a message with the calls of an edge that the engine decodes.
pub const EXCHANGE_BYTES_MAX: usize = 256 * 1024;

/// The most bytes that all fields of one request of the edge take, whatever the client sends.
const FIELD_BYTES_MAX: usize = TENANT_BYTES_MAX
    + AUDIT_USER_CHARACTERS_MAX * char::MAX.len_utf8()
    + PLASTIC_ID_DIGITS_MAX
    + CONTROL_ID_CHARACTERS
    + PAGE_CLIENT_CHARACTERS_MAX * char::MAX.len_utf8()
    + PAGE_ID_BYTES
    + DEVICE_KEY_BYTES_MAX
    + ZONE_PIN_BLOCK_BYTES_MAX;

// Tags and lengths of fewer than ten fields take 4 bytes each: half of the limit is more than enough for both.
const _: () = assert!(FIELD_BYTES_MAX <= REQUEST_BYTES_MAX / 2);

/// The length of `bytes` bytes in padded base64 (RFC 4648, section 4).
const fn base64_characters(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}
