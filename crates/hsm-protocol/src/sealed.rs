//! Byte layouts of sealed blobs and PIN records, and the bytes that each seal authenticates. No cipher is here.
//!
//! ```text
//! sealed tzpk     01 'T' key(2)          body(44)                           48 bytes
//! sealed account  01 'A' key(2)                    ciphertext(10) tag(16)   30 bytes
//! PIN record      01 'P' key(2) form made_at  block(8, 16, 32 or 40) tag(16)   30, 38, 54 or 62 bytes
//! ```
//! The token defines the body of a sealed tzpk. Software token: nonce(12) ciphertext(16) tag(16). PKCS#11 token: key wrap(24)
//! tag(16) zero(4). Every tag authenticates the first four bytes and the binding, so a blob of one use is rejected as another.

use crate::binding::{
    Binding, BoundaryLevel, CardBinding, Isolation, MadeAt, PLASTIC_ID_BYTES_MAX, Purpose, TENANT_BYTES_MAX,
};
use crate::layout_error::LayoutError;
use crate::storage_format::StorageFormat;
use crate::zone_format::ZoneFormat;
use crate::zone_name::{ZONE_CHARACTERS_MAX, ZoneName};

/// The layout this release writes.
const VERSION: u8 = 1;
/// Version, use and key.
const HEAD_BYTES: usize = 4;
/// Bytes of an AEAD or MAC tag.
pub const TAG_BYTES: usize = 16;
/// Bytes of an AEAD nonce.
pub const NONCE_BYTES: usize = 12;
/// Bytes of a sealed account number: up to 19 digits, two a byte, filled with F.
pub const ACCOUNT_BYTES: usize = 10;
/// Bytes of a tzpk as a token seals it.
const SEALED_TZPK_BYTES: usize = NONCE_BYTES + 16 + TAG_BYTES;
/// Bytes of a sealed tzpk.
const SEALED_KEY_BYTES: usize = HEAD_BYTES + SEALED_TZPK_BYTES;

/// A tzpk as a token seals it, in the token's own layout.
pub type SealedTzpk = [u8; SEALED_TZPK_BYTES];
/// Bytes of a sealed account.
const SEALED_ACCOUNT_BYTES: usize = HEAD_BYTES + ACCOUNT_BYTES + TAG_BYTES;
/// Bytes of the salt of a one-way record.
pub const SALT_BYTES: usize = 16;
/// Bytes of salt and CMAC.
const ONE_WAY_BYTES: usize = SALT_BYTES + TAG_BYTES;
/// The most bytes of a PIN record.
const PIN_RECORD_BYTES_MAX: usize = HEAD_BYTES + 2 + 40 + TAG_BYTES;

/// The use of a blob.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Use {
    Tzpk = b'T',
    Account = b'A',
    Record = b'P',
    ZoneBlock = b'Z',
}

/// The version of a key within its use: 1, 2, 3 …
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyVersion(pub u16);

/// An ISO 9564 format 1 block under a tzpk: 8 bytes. No `Debug`: it must not be printed, even encrypted.
#[derive(Clone, Copy)]
pub struct EncryptedBlock([u8; 8]);

impl EncryptedBlock {
    /// Reads exactly 8 bytes.
    ///
    /// # Errors
    /// Another number of bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, LayoutError> {
        bytes.try_into().map(Self).map_err(|_| LayoutError::Length { what: "encrypted PIN block" })
    }

    /// Its 8 bytes.
    pub fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }
}

/// A tzpk sealed for the boundary.
#[derive(Clone)]
pub struct SealedKey([u8; SEALED_KEY_BYTES]);

impl SealedKey {
    /// A blob with the body that a token made.
    pub fn new(key: KeyVersion, body: &SealedTzpk) -> Self {
        let mut bytes = [0; SEALED_KEY_BYTES];
        fill(&mut bytes, &[&head(Use::Tzpk, key), body]);
        Self(bytes)
    }

    /// Reads the layout. Only the boundary can verify the tag.
    ///
    /// # Errors
    /// The bytes are of another length, use or release.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, LayoutError> {
        check_head(bytes, Use::Tzpk, "sealed tzpk")?;
        bytes.try_into().map(Self).map_err(|_| LayoutError::Length { what: "sealed tzpk" })
    }

    /// The bytes of the layout.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The version of the seal key it is under.
    pub fn key(&self) -> KeyVersion {
        key_of(&self.0)
    }

    /// The bytes that the token made.
    pub fn body(&self) -> &SealedTzpk {
        let [_, _, _, _, body @ ..] = &self.0;
        body
    }
}

/// An account number sealed for the boundary. Equal numbers of a card seal to equal bytes, so that a store detects a changed
/// number.
#[derive(Clone)]
pub struct SealedAccount([u8; SEALED_ACCOUNT_BYTES]);

impl SealedAccount {
    /// A blob of a ciphertext and its AEAD tag of 16 bytes.
    pub fn new(key: KeyVersion, ciphertext: &[u8; ACCOUNT_BYTES], tag: &[u8]) -> Self {
        let mut bytes = [0; SEALED_ACCOUNT_BYTES];
        fill(&mut bytes, &[&head(Use::Account, key), ciphertext, tag]);
        Self(bytes)
    }

    /// Reads the layout. Only the boundary can verify the tag.
    ///
    /// # Errors
    /// The bytes are of another length, use or release.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, LayoutError> {
        check_head(bytes, Use::Account, "sealed account")?;
        bytes.try_into().map(Self).map_err(|_| LayoutError::Length { what: "sealed account" })
    }

    /// The bytes of the layout.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The version of the account key.
    pub fn key(&self) -> KeyVersion {
        key_of(&self.0)
    }

    /// The ciphertext with its tag.
    pub fn ciphertext_and_tag(&self) -> &[u8] {
        self.0.get(HEAD_BYTES..).unwrap_or_default()
    }
}

/// A PIN at rest: a PAN-bound block under the storage key, with its format and origin, and a tag over all of it and its card.
#[derive(Clone)]
pub struct PinRecord {
    bytes: [u8; PIN_RECORD_BYTES_MAX],
    form: StorageFormat,
    made_at: MadeAt,
}

impl PinRecord {
    /// A record whose tag is zero until [`PinRecord::set_tag`].
    pub fn untagged(key: KeyVersion, form: StorageFormat, made_at: MadeAt, block: &[u8]) -> Self {
        let mut bytes = [0; PIN_RECORD_BYTES_MAX];
        fill(&mut bytes, &[&head(Use::Record, key), &[form_code(form), made_at_code(made_at)], block]);
        Self { bytes, form, made_at }
    }

    /// Writes the tag over [`PinRecord::tagged_bytes`].
    pub fn set_tag(&mut self, tag: &[u8; TAG_BYTES]) {
        let at = self.tagged_bytes().len();
        self.bytes.iter_mut().skip(at).zip(tag).for_each(|(place, byte)| *place = *byte);
    }

    /// Reads the layout. Only the boundary can verify the tag.
    ///
    /// # Errors
    /// The bytes are of another length, use or release.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, LayoutError> {
        let what = "PIN record";
        check_head(bytes, Use::Record, what)?;
        let (form, made_at) = match bytes.get(HEAD_BYTES..HEAD_BYTES + 2) {
            Some([form, made_at]) => (form_of(*form)?, made_at_of(*made_at)?),
            _ => return Err(LayoutError::Length { what }),
        };
        let mut record = Self { bytes: [0; PIN_RECORD_BYTES_MAX], form, made_at };
        if bytes.len() != record.length() {
            return Err(LayoutError::Length { what });
        }
        fill(&mut record.bytes, &[bytes]);
        Ok(record)
    }

    /// The bytes of the layout.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length()).unwrap_or_default()
    }

    /// The format of its block.
    pub fn form(&self) -> StorageFormat {
        self.form
    }

    /// The storage key it is under.
    pub fn storage_key(&self) -> KeyVersion {
        key_of(&self.bytes)
    }

    /// The boundary level and the isolation that made the record.
    pub fn made_at(&self) -> MadeAt {
        self.made_at
    }

    /// The encrypted block, 8, 16 or 40 bytes by the format; of a one-way record salt and CMAC, 32 bytes.
    pub fn block(&self) -> &[u8] {
        self.tagged_bytes().get(HEAD_BYTES + 2..).unwrap_or_default()
    }

    /// The bytes before the tag.
    pub fn tagged_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length() - TAG_BYTES).unwrap_or_default()
    }

    /// The tag, 16 bytes.
    pub fn tag(&self) -> &[u8] {
        self.bytes.get(self.length() - TAG_BYTES..self.length()).unwrap_or_default()
    }

    fn length(&self) -> usize {
        let block = match self.form {
            StorageFormat::Wrapped => 40,
            StorageFormat::OneWay => ONE_WAY_BYTES,
            StorageFormat::Iso4 => 16,
            StorageFormat::Iso3 | StorageFormat::Iso0 => 8,
        };
        HEAD_BYTES + 2 + block + TAG_BYTES
    }
}

/// The authenticated data of a sealed tzpk: head, tenant, card, control, purpose, expiry.
pub fn bound_to_control(key: KeyVersion, binding: &Binding) -> Bound {
    let mut bound = bound_to_card_as(Use::Tzpk, key, &binding.card);
    bound.push(&binding.control.id);
    bound.push(&[match binding.control.purpose {
        Purpose::SetPin => 1,
        Purpose::ViewPin => 2,
    }]);
    bound.push(&binding.control.expires_at_unix_milliseconds.to_be_bytes());
    bound
}

/// The authenticated data of a sealed account: head, tenant, card.
pub fn account_bound_to(key: KeyVersion, card: &CardBinding) -> Bound {
    bound_to_card_as(Use::Account, key, card)
}

/// The authenticated data of a record, in addition to its own bytes: tenant, card.
pub fn record_bound_to(key: KeyVersion, card: &CardBinding) -> Bound {
    bound_to_card_as(Use::Record, key, card)
}

/// The authenticated data of the tag of a zone's block, in addition to the block: head with the version of the zone key,
/// tenant, card, zone, format.
pub fn zone_block_bound_to(zone: &ZoneName, key: KeyVersion, card: &CardBinding, format: ZoneFormat) -> Bound {
    let mut bound = bound_to_card_as(Use::ZoneBlock, key, card);
    bound.push_text(zone.as_str().as_bytes());
    bound.push(&[zone_format_code(format)]);
    bound
}

fn bound_to_card_as(r#use: Use, key: KeyVersion, card: &CardBinding) -> Bound {
    let mut bound = Bound { bytes: [0; BOUND_BYTES_MAX], length: 0 };
    bound.push(&head(r#use, key));
    bound.push_text(card.tenant());
    bound.push_text(card.plastic_id());
    bound
}

/// Head, two texts with their lengths; then control, purpose, expiry, or the name of a zone with its length, and a format.
const BOUND_BYTES_MAX: usize = HEAD_BYTES + 2 * (1 + TENANT_BYTES_MAX) + 1 + ZONE_CHARACTERS_MAX + 1;
/// The head, the card, and what follows the card: every binding fits, so that none is shortened.
const CARD_BOUND_BYTES_MAX: usize = HEAD_BYTES + (1 + TENANT_BYTES_MAX) + (1 + PLASTIC_ID_BYTES_MAX);
const _: () = assert!(CARD_BOUND_BYTES_MAX + 16 + 1 + 8 <= BOUND_BYTES_MAX, "a control fits");
const _: () = assert!(CARD_BOUND_BYTES_MAX + (1 + ZONE_CHARACTERS_MAX) < BOUND_BYTES_MAX, "a zone fits");
/// The most bytes under a record's tag: the binding, and the record before the tag.
pub const RECORD_MESSAGE_BYTES_MAX: usize = BOUND_BYTES_MAX + PIN_RECORD_BYTES_MAX;

/// Bytes to authenticate, without an allocation. A length precedes each text, so that different bindings have different
/// bytes.
pub struct Bound {
    bytes: [u8; BOUND_BYTES_MAX],
    length: usize,
}

impl Bound {
    fn push(&mut self, bytes: &[u8]) {
        if let Some(free) = self.bytes.get_mut(self.length..self.length + bytes.len()) {
            free.copy_from_slice(bytes);
            self.length += bytes.len();
        }
    }

    fn push_text(&mut self, text: &[u8]) {
        self.push(&[u8::try_from(text.len()).unwrap_or_default()]);
        self.push(text);
    }
}

impl AsRef<[u8]> for Bound {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

fn head(r#use: Use, KeyVersion(key): KeyVersion) -> [u8; HEAD_BYTES] {
    let [high, low] = key.to_be_bytes();
    [VERSION, r#use as u8, high, low]
}

fn check_head(bytes: &[u8], r#use: Use, what: &'static str) -> Result<(), LayoutError> {
    match bytes {
        [VERSION, found, _, _, ..] if *found == r#use as u8 => Ok(()),
        _ => Err(LayoutError::Kind { what }),
    }
}

fn key_of(bytes: &[u8]) -> KeyVersion {
    match bytes {
        [_, _, high, low, ..] => KeyVersion(u16::from_be_bytes([*high, *low])),
        _ => KeyVersion(0),
    }
}

pub(crate) fn form_code(form: StorageFormat) -> u8 {
    match form {
        StorageFormat::Wrapped => b'w',
        StorageFormat::Iso4 => 4,
        StorageFormat::Iso3 => 3,
        StorageFormat::Iso0 => 0,
        StorageFormat::OneWay => b'o',
    }
}

pub(crate) fn form_of(code: u8) -> Result<StorageFormat, LayoutError> {
    match code {
        b'w' => Ok(StorageFormat::Wrapped),
        4 => Ok(StorageFormat::Iso4),
        3 => Ok(StorageFormat::Iso3),
        0 => Ok(StorageFormat::Iso0),
        b'o' => Ok(StorageFormat::OneWay),
        _ => Err(LayoutError::Kind { what: "PIN record" }),
    }
}

pub(crate) fn zone_format_code(format: ZoneFormat) -> u8 {
    match format {
        ZoneFormat::Iso0 => 0,
        ZoneFormat::Iso1 => 1,
        ZoneFormat::Iso3 => 3,
        ZoneFormat::Iso4 => 4,
    }
}

pub(crate) fn level_code(level: BoundaryLevel) -> u8 {
    match level {
        BoundaryLevel::Token => b't',
        BoundaryLevel::Host => b'h',
    }
}

pub(crate) fn level_of(code: u8) -> Result<BoundaryLevel, LayoutError> {
    match code {
        b't' => Ok(BoundaryLevel::Token),
        b'h' => Ok(BoundaryLevel::Host),
        _ => Err(LayoutError::Kind { what: "PIN record" }),
    }
}

/// One byte for level and isolation: a capital letter for a separate process.
fn made_at_code(MadeAt { level, isolation }: MadeAt) -> u8 {
    match isolation {
        Isolation::Inline => level_code(level),
        Isolation::Process => level_code(level).to_ascii_uppercase(),
    }
}

fn made_at_of(code: u8) -> Result<MadeAt, LayoutError> {
    let isolation = if code.is_ascii_uppercase() { Isolation::Process } else { Isolation::Inline };
    Ok(MadeAt { level: level_of(code.to_ascii_lowercase())?, isolation })
}

fn fill(bytes: &mut [u8], parts: &[&[u8]]) {
    let all = parts.iter().flat_map(|part| part.iter());
    bytes.iter_mut().zip(all).for_each(|(place, byte)| *place = *byte);
}
