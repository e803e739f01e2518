//! The codes of a header (ANSI X9.143:2021, tables 3 to 8), and the codes that an imported key may have.

use std::fmt;

use super::{Header, KeyBlockError, OptionalBlock};

/// The problem of an optional block whose data are not hexadecimal.
const NO_PAIRS_OF_DIGITS: &str = "holds something other than pairs of hexadecimal digits";

/// A field of a key block and its meaning, for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// The name of the field.
    pub name: &'static str,
    /// The value of the field.
    pub value: String,
    /// The meaning of the value.
    pub meaning: String,
    /// What in the value breaks X9.143 or contradicts another field; `None` for a sound field.
    pub warning: Option<String>,
}

/// The purpose of an imported key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Encrypts PINs between two parties: usage P0.
    ZoneKey,
    /// Protects keys between two parties: usage K0, K1 or K4.
    ExchangeKey,
    /// A Visa PVK pair: usage V2.
    Pvk,
    /// An IBM 3624 key: usage V1.
    Ibm3624Key,
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ZoneKey => "a zone key",
            Self::ExchangeKey => "a key-exchange key",
            Self::Pvk => "a PVK pair",
            Self::Ibm3624Key => "an IBM 3624 key",
        })
    }
}

/// Checks that a header allows a purpose: a key has one usage.
pub(super) fn check(header: &Header, purpose: Purpose) -> Result<(), KeyBlockError> {
    let refuse = |field, found, wanted| Err(KeyBlockError::Purpose { field, found, purpose, wanted });
    let usage = header.usage();
    match (purpose, header.usage_code()) {
        (Purpose::ZoneKey, ['P', '0'])
        | (Purpose::ExchangeKey, ['K', '0' | '1' | '4'])
        | (Purpose::Pvk, ['V', '2'])
        | (Purpose::Ibm3624Key, ['V', '1']) => {}
        (Purpose::ZoneKey, _) => return refuse("usage", usage, "P0, a PIN encryption key"),
        (Purpose::ExchangeKey, _) => return refuse("usage", usage, "K0, K1 or K4, a key that protects keys"),
        (Purpose::Pvk, _) => return refuse("usage", usage, "V2, a key of the PVV"),
        (Purpose::Ibm3624Key, _) => return refuse("usage", usage, "V1, a key of IBM 3624 PINs"),
    }
    match (purpose, header.algorithm()) {
        (Purpose::ZoneKey, 'A' | 'T') | (Purpose::ExchangeKey, 'A') | (Purpose::Pvk | Purpose::Ibm3624Key, 'T') => {}
        (Purpose::ZoneKey, other) => return refuse("algorithm", other.into(), "A or T"),
        (Purpose::Pvk | Purpose::Ibm3624Key, other) => return refuse("algorithm", other.into(), "T"),
        (Purpose::ExchangeKey, other) => {
            return refuse("algorithm", other.into(), "A: only AES protects key blocks of versions D and E");
        }
    }
    match (purpose, header.mode()) {
        (Purpose::ZoneKey | Purpose::ExchangeKey, 'B' | 'D' | 'E') => {}
        (Purpose::Pvk | Purpose::Ibm3624Key, 'C' | 'G' | 'V') => {}
        (Purpose::ZoneKey | Purpose::ExchangeKey, mode) => {
            return refuse("mode of use", mode.into(), "B, D or E: to encrypt, to decrypt, or both");
        }
        (Purpose::Pvk | Purpose::Ibm3624Key, mode) => {
            return refuse("mode of use", mode.into(), "C, G or V: to derive values, to compare values, or both");
        }
    }
    let (key_version, context) = (header.key_version(), header.context());
    if is_component(&key_version) {
        return refuse(
            "key version",
            key_version,
            "a whole key; each custodian types a component at a ceremony's load",
        );
    }
    if !matches!(header.exportability(), 'E' | 'N' | 'S') {
        return refuse("exportability", header.exportability().into(), "E, N or S");
    }
    // Another context restricts the key to storage or to exchange; an imported key needs both.
    if context != "00" {
        return refuse("context", context, "00, a key that may be both exchanged and stored: ask for such a block");
    }
    Ok(())
}

/// Whether a key version number marks a component (X9.143:2021, table 5).
fn is_component(key_version: &str) -> bool {
    key_version.starts_with('c')
}

/// The bytes of the longest key of an algorithm. Padding to this length hides the length of a shorter key.
pub(super) fn longest_key_bytes(algorithm: char) -> usize {
    match algorithm {
        'T' | 'D' => 24,
        'A' => 32,
        _ => 0,
    }
}

/// Checks the data of an optional block by its id, but for identifiers.
pub(super) fn check_optional(id: &str, data: &str) -> Result<(), &'static str> {
    match id {
        "KC" | "KP" | "HM" if !is_pairs_of_digits(data) => Err(NO_PAIRS_OF_DIGITS),
        _ => Ok(()),
    }
}

/// Checks the identifiers among optional blocks.
pub(super) fn check_identifiers(optional: &[OptionalBlock]) -> Result<(), KeyBlockError> {
    match (1..).zip(optional).find(|(_, block)| is_malformed_identifier(block)) {
        Some((number, block)) => Err(KeyBlockError::Optional { number, id: block.id(), problem: NO_PAIRS_OF_DIGITS }),
        None => Ok(()),
    }
}

fn is_malformed_identifier(block: &OptionalBlock) -> bool {
    matches!(&*block.id(), "KS" | "IK" | "BI") && !is_pairs_of_digits(block.data())
}

fn is_pairs_of_digits(data: &str) -> bool {
    data.len().is_multiple_of(2) && data.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'))
}

/// Method and KCV of an optional block KC or KP, each as hexadecimal digits (X9.143:2021, table 15).
pub(super) fn named_kcv(block: &OptionalBlock) -> Option<(&str, &str)> {
    block.data().split_at_checked(2).filter(|_| matches!(&*block.id(), "KC" | "KP"))
}

/// Whether two KCVs of hexadecimal digits differ within the length of the shorter one.
pub(super) fn differ(one: &str, other: &str) -> bool {
    one.bytes().zip(other.bytes()).any(|(one, other)| one != other)
}

/// The warning of the optional block at `at`.
fn optional_warning(optional: &[OptionalBlock], at: usize) -> Option<String> {
    let block = optional.get(at)?;
    if is_malformed_identifier(block) {
        return Some("not pairs of upper-case hexadecimal digits (X9.143): shown as text".to_owned());
    }
    let (method, kcv) = named_kcv(block)?;
    let contradicts = |other: &OptionalBlock| {
        other.id() == block.id() && named_kcv(other).is_some_and(|(of, other)| of == method && differ(kcv, other))
    };
    let others: Vec<_> =
        (1..).zip(optional).filter(|(_, other)| contradicts(other)).map(|(n, _)| n.to_string()).collect();
    let id = block.id();
    (!others.is_empty())
        .then(|| format!("contradicts optional block {} ({id}): one key has one KCV", others.join(", ")))
}

/// The fields of a header, and the lengths of the encrypted part and the MAC.
pub(super) fn fields(header: &Header, encrypted_bytes: usize) -> Vec<Field> {
    let version = header.version();
    let field = |name, value: String, meaning: &str| Field { name, value, meaning: meaning.to_owned(), warning: None };
    let letter = |letter: char| letter.to_string();
    let mut fields = vec![
        field("version", version.to_string(), version_meaning(header)),
        field("usage", header.usage(), usage_meaning(&header.usage())),
        field("algorithm", letter(header.algorithm()), algorithm_meaning(header.algorithm())),
        field("mode of use", letter(header.mode()), mode_meaning(header.mode())),
        field("key version", header.key_version(), key_version_meaning(&header.key_version())),
        field("exportability", letter(header.exportability()), exportability_meaning(header.exportability())),
        field("context", header.context(), context_meaning(&header.context())),
    ];
    let optional = header.optional();
    fields.extend(optional.iter().enumerate().map(|(at, block)| {
        let (value, meaning) = (format!("{} {}", block.id(), block.data()), optional_meaning(block).to_owned());
        Field { name: "optional block", value, meaning, warning: optional_warning(optional, at) }
    }));
    let hidden = match longest_key_bytes(header.algorithm()) {
        0 => "the key and its padding; the length of the key is hidden".to_owned(),
        _ => format!(
            "the key, at most {} bytes, and its padding",
            encrypted_bytes.saturating_sub(super::KEY_LENGTH_BYTES)
        ),
    };
    fields.push(field("encrypted", format!("{encrypted_bytes} bytes"), &hidden));
    fields.push(field(
        "MAC",
        format!("{} bytes", version.mac_bytes()),
        "over the whole block before it; verified with the protection key",
    ));
    fields
}

fn optional_meaning(block: &OptionalBlock) -> &'static str {
    match &*block.id() {
        "AL" => "lifetime of an asymmetric key",
        "BI" => "identifier of a base derivation key",
        "CT" => "certificate of a public key",
        "DA" => "keys that may be derived",
        "FL" => "flags",
        "HM" => "hash algorithm of an HMAC key",
        "IK" => "identifier of an initial DUKPT key",
        "KC" => "KCV of this key",
        "KP" => "KCV of the protection key",
        "KS" => "key set identifier, or key serial number",
        "KV" => "version of the values in this block",
        "LB" => "label",
        "PA" => "algorithm of an asymmetric key",
        "PB" => "padding",
        "PK" => "protection key's own block",
        "TC" => "time of the key's creation",
        "TS" => "time of the block's creation",
        "WP" => "earlier protection of the key",
        _ => "not in X9.143: proprietary",
    }
}

fn version_meaning(header: &Header) -> &'static str {
    match header.version() {
        super::Version::A => "3DES, key variants; superseded, read only",
        super::Version::B => "3DES, derived keys; read only",
        super::Version::C => "3DES, key variants; read only",
        super::Version::D => "AES in CBC, derived keys",
        super::Version::E => "AES in CTR, derived keys (ISO 20038)",
    }
}

fn usage_meaning(usage: &str) -> &'static str {
    match usage {
        "B0" => "base derivation key of DUKPT",
        "B1" => "initial key of DUKPT",
        "B2" => "base key of variants",
        "B3" => "key derivation key",
        "C0" => "card verification",
        "D0" => "data encryption",
        "D1" => "data encryption, asymmetric",
        "D2" => "decimalisation tables",
        "D3" => "sensitive data",
        "E0" => "EMV issuer master key: application cryptograms",
        "E1" => "EMV issuer master key: secure messaging, confidentiality",
        "E2" => "EMV issuer master key: secure messaging, integrity",
        "E3" => "EMV issuer master key: data authentication code",
        "E4" => "EMV issuer master key: dynamic numbers",
        "E5" => "EMV issuer master key: card personalisation",
        "E6" => "EMV issuer master key: other",
        "E7" => "EMV master personalisation key",
        "I0" => "initialisation vector",
        "K0" => "key encryption or wrapping",
        "K1" => "key block protection (TR-31)",
        "K2" => "asymmetric key of TR-34",
        "K3" => "asymmetric key agreement",
        "K4" => "key block protection (ISO 20038)",
        "M0" => "MAC of ISO 16609, algorithm 1",
        "M1" => "MAC of ISO 9797-1, algorithm 1",
        "M2" => "MAC of ISO 9797-1, algorithm 2",
        "M3" => "MAC of ISO 9797-1, algorithm 3",
        "M4" => "MAC of ISO 9797-1, algorithm 4",
        "M5" => "MAC of ISO 9797-1:1999, algorithm 5",
        "M6" => "CMAC",
        "M7" => "HMAC",
        "M8" => "MAC of ISO 9797-1, algorithm 6",
        "P0" => "PIN encryption",
        "P1" => "PIN generation",
        "S0" => "digital signature",
        "S1" => "digital signature of a certificate authority",
        "S2" => "asymmetric key, other",
        "V0" => "PIN verification, other",
        "V1" => "PIN verification, IBM 3624",
        "V2" => "PIN verification value, Visa",
        "V3" => "PIN verification, X9.132 algorithm 1",
        "V4" => "PIN verification, X9.132 algorithm 2",
        "V5" => "PIN verification, X9.132 algorithm 3",
        _ => "not in X9.143: proprietary",
    }
}

fn algorithm_meaning(algorithm: char) -> &'static str {
    match algorithm {
        'A' => "AES",
        'D' => "DES, single",
        'E' => "elliptic curve",
        'H' => "HMAC",
        'R' => "RSA",
        'S' => "DSA",
        'T' => "3DES",
        _ => "not in X9.143: proprietary",
    }
}

fn mode_meaning(mode: char) -> &'static str {
    match mode {
        'B' => "encrypts and decrypts",
        'C' => "makes and checks MACs",
        'D' => "decrypts only",
        'E' => "encrypts only",
        'G' => "makes MACs only",
        'N' => "no restriction",
        'S' => "signs only",
        'T' => "signs and decrypts",
        'V' => "verifies only",
        'X' => "derives keys",
        'Y' => "makes variants of itself",
        _ => "not in X9.143: proprietary",
    }
}

fn key_version_meaning(version: &str) -> &'static str {
    match version {
        "00" => "none",
        component if is_component(component) => "a component, not a whole key",
        _ => "the version of the key",
    }
}

/// X9.143:2021, table 1: the first character; the second is reserved.
fn context_meaning(context: &str) -> &'static str {
    match context {
        "00" => "as the protection key",
        "10" => "may be stored, not exchanged",
        "20" => "may be exchanged, not stored",
        _ => "reserved",
    }
}

fn exportability_meaning(exportability: char) -> &'static str {
    match exportability {
        'E' => "exportable under a trusted key",
        'N' => "not exportable",
        'S' => "exportable under a trusted key, also in other formats",
        _ => "not in X9.143",
    }
}
