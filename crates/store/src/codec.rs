//! Rows as bytes, the same in every store: versioned, texts and blobs with their length before them. So a copy from one store
//! into another moves rows as they are.

use audit::card_reference::CardReferenceKey;
use domain::card::{CardKey, PlasticId, RegisteredAccount, StoredPin, Tenant};
use domain::control::{Control, ControlId, RETRY_GRACE, RetryTag, Scope, Thumbprint};
use domain::rules::{CardState, PinOrigin};
use domain::storage_key::{MinKeyVersions, RecordKey, StorageKeyKind};
use domain::time::UnixMillis;
use domain::tries::{Tries, TryState, UNSETTLED_TRIES_MAX};
use domain::zone_tags::ZoneTags;

use crate::control_parts::{
    KeptParts, PAGE_FLAGS, SET, kind_of as kind_of_state, page_flags, read_page, read_state, write_page, write_state,
};
use crate::row_bytes::{RowReader, RowWriter};

/// The layout this release writes.
const VERSION: u8 = 6;
/// The bytes of a controlId, which begins a control's row.
pub const ID_BYTES: usize = 16;
/// The offset of the kind of a control's state.
const KIND_AT: usize = ID_BYTES + 1;
/// The offset of a control's expiry, so that the sweep need not decode the rest.
const EXPIRY_AT: usize = KIND_AT + 1;

/// A control's scope, in one byte with the bits of its page, so that a control without a page uses no memory for one.
const SET_PIN: u8 = 1;
const VIEW_PIN: u8 = 2;

/// The kinds of what set a PIN.
const NO_PIN: u8 = 0;
const BY_CONTROL: u8 = 1;
const BY_ZONE: u8 = 2;
const BY_GENERATION: u8 = 3;
const BY_CHANGE: u8 = 4;
const BY_TRANSFER: u8 = 5;

/// A PIN record and the time at which its PIN was set.
pub struct PinRow {
    /// The wall-clock time at which the PIN was set.
    pub set_at: UnixMillis,
    /// The record, with its key and account number.
    pub pin: StoredPin,
}

/// The key of a card: tenant NUL plasticId. A tenant holds no NUL.
pub fn card_key(card: &CardKey) -> Vec<u8> {
    [card.tenant.as_str().as_bytes(), &[0], card.plastic.as_str().as_bytes()].concat()
}

/// The card of a key by [`card_key`].
pub fn card_of_key(key: &[u8]) -> Option<CardKey> {
    let at = key.iter().position(|byte| *byte == 0)?;
    let (tenant, plastic) = (key.get(..at)?, key.get(at + 1..)?);
    let text = |bytes| std::str::from_utf8(bytes).ok();
    Some(CardKey { tenant: Tenant::parse(text(tenant)?).ok()?, plastic: PlasticId::parse(text(plastic)?).ok()? })
}

/// The row of a card: version, hour, controls in the hour, generation, origin of the PIN, account, tries, tags.
pub fn encode_card(row: &CardState) -> Vec<u8> {
    let mut bytes = versioned();
    bytes.array(&row.hour.to_be_bytes());
    bytes.array(&row.opened.to_be_bytes());
    bytes.array(&row.generation.to_be_bytes());
    match &row.set_by {
        None => bytes.array(&[NO_PIN]),
        Some(PinOrigin::Control(control)) => {
            bytes.array(&[BY_CONTROL]);
            bytes.array(control.as_bytes());
        }
        Some(PinOrigin::Zone) => bytes.array(&[BY_ZONE]),
        Some(PinOrigin::Generated) => bytes.array(&[BY_GENERATION]),
        Some(PinOrigin::Change) => bytes.array(&[BY_CHANGE]),
        Some(PinOrigin::Transfer { from, generation }) => {
            bytes.array(&[BY_TRANSFER]);
            bytes.blob(from.as_str().as_bytes());
            bytes.array(&generation.to_be_bytes());
        }
    }
    write_account(&mut bytes, row.account.as_ref());
    bytes.array(&row.tries.tries.reserved.to_be_bytes());
    bytes.array(&row.tries.tries.forgiven.to_be_bytes());
    bytes.list(row.tries.unsettled.iter().map(|number| number.to_be_bytes()));
    bytes.list(row.zone_tags.as_slice().iter().map(|tag| tag.0));
    bytes.into_bytes()
}

/// The card of a row; `None` for bytes that [`encode_card`] does not write, or more forgiven than reserved tries.
pub fn decode_card(bytes: &[u8]) -> Option<CardState> {
    let mut read = read_versioned(bytes)?;
    let (hour, opened) = (u64::from_be_bytes(read.array()?), u32::from_be_bytes(read.array()?));
    let generation = u64::from_be_bytes(read.array()?);
    let set_by = match read.array()? {
        [NO_PIN] => None,
        [BY_CONTROL] => Some(PinOrigin::Control(ControlId::from_bytes(read.array()?))),
        [BY_ZONE] => Some(PinOrigin::Zone),
        [BY_GENERATION] => Some(PinOrigin::Generated),
        [BY_CHANGE] => Some(PinOrigin::Change),
        [BY_TRANSFER] => {
            let from = PlasticId::parse(read.text()?).ok()?;
            Some(PinOrigin::Transfer { from, generation: u64::from_be_bytes(read.array()?) })
        }
        _ => return None,
    };
    let account = read_account(&mut read)?;
    let (reserved, forgiven) = (u64::from_be_bytes(read.array()?), u64::from_be_bytes(read.array()?));
    let unsettled: Box<[u64]> = read.list()?.into_iter().map(u64::from_be_bytes).collect();
    let tags = read.list()?.into_iter().map(RetryTag).collect();
    let is_possible = forgiven <= reserved && unsettled.len() <= UNSETTLED_TRIES_MAX;
    let tries = TryState { tries: Tries { reserved, forgiven }, unsettled };
    let zone_tags = ZoneTags::new(tags).filter(|_| is_possible)?;
    read.end(CardState { account, hour, opened, generation, set_by, tries, zone_tags })
}

/// The row of a card with every try used; `None` where the row can't be read.
pub fn lock_tries(row: &[u8]) -> Option<Vec<u8>> {
    let card = decode_card(row)?;
    Some(encode_card(&CardState { tries: card.tries.locked(), ..card }))
}

/// The row of a card with every try used, for a PIN whose own card row is lost; `None` where the PIN can't be read.
pub fn locked_card_of(pin_row: &[u8]) -> Option<Vec<u8>> {
    let PinRow { pin, .. } = decode_pin(pin_row)?;
    // No control and no zone block made this PIN as far as the store knows, so no repeat of either is confirmed.
    let set_by = Some(PinOrigin::Change);
    let tries = TryState::default().locked();
    Some(encode_card(&CardState { account: pin.account, generation: 1, set_by, tries, ..CardState::default() }))
}

/// The row of a PIN: version, time, record, storage key, account.
pub fn encode_pin(set_at: UnixMillis, pin: &StoredPin) -> Vec<u8> {
    let mut bytes = versioned();
    bytes.array(&set_at.0.to_be_bytes());
    bytes.blob(&pin.record);
    bytes.array(&[kind_code(pin.key.kind)]);
    bytes.array(&pin.key.version.to_be_bytes());
    write_account(&mut bytes, pin.account.as_ref());
    bytes.into_bytes()
}

/// The PIN of a row; `None` for bytes that [`encode_pin`] does not write.
pub fn decode_pin(bytes: &[u8]) -> Option<PinRow> {
    let mut read = read_versioned(bytes)?;
    let set_at = UnixMillis(u64::from_be_bytes(read.array()?));
    let record = read.blob()?.into();
    let [kind] = read.array()?;
    let key = RecordKey { kind: kind_of(kind)?, version: u16::from_be_bytes(read.array()?) };
    let account = read_account(&mut read)?;
    read.end(PinRow { set_at, pin: StoredPin { record, key, account } })
}

/// The code of a kind of storage key, 1 to 4.
pub fn kind_code(kind: StorageKeyKind) -> u8 {
    match kind {
        StorageKeyKind::Wrapped => 1,
        StorageKeyKind::Iso4 => 2,
        StorageKeyKind::Tdes => 3,
        StorageKeyKind::OneWay => 4,
    }
}

fn kind_of(code: u8) -> Option<StorageKeyKind> {
    [StorageKeyKind::Wrapped, StorageKeyKind::Iso4, StorageKeyKind::Tdes, StorageKeyKind::OneWay]
        .into_iter()
        .find(|kind| kind_code(*kind) == code)
}

/// The minimum versions as a version byte and four numbers of 2 bytes.
pub fn encode_min(min: &MinKeyVersions) -> Vec<u8> {
    let mut bytes = versioned();
    [min.wrapped, min.iso_4, min.tdes, min.one_way].iter().for_each(|version| bytes.array(&version.to_be_bytes()));
    bytes.into_bytes()
}

/// The minimum versions of [`encode_min`]; `None` for other bytes.
pub fn decode_min(bytes: &[u8]) -> Option<MinKeyVersions> {
    let mut read = read_versioned(bytes)?;
    let mut version = || read.array().map(u16::from_be_bytes);
    let min = MinKeyVersions { wrapped: version()?, iso_4: version()?, tdes: version()?, one_way: version()? };
    read.end(min)
}

/// The 32 bytes of the key.
pub fn decode_card_reference_key(bytes: &[u8]) -> Option<CardReferenceKey> {
    bytes.try_into().ok().map(CardReferenceKey::from_bytes)
}

/// The controlId, then the other fields. A spent control keeps its retry tag, and no device key, account number or page.
pub fn encode_control(control: &Control) -> Box<[u8]> {
    let KeptParts { device_key, account, page } = KeptParts::of_control(control);
    let mut bytes = RowWriter::new();
    bytes.array(control.id.as_bytes());
    bytes.array(&[VERSION, kind_of_state(&control.state)]);
    bytes.array(&control.expires_at.0.to_be_bytes());
    let scope = match control.scope {
        Scope::SetPin => SET_PIN,
        Scope::ViewPin => VIEW_PIN,
    };
    bytes.array(&[scope | page_flags(page.as_ref())]);
    bytes.blob(control.card.tenant.as_str().as_bytes());
    bytes.blob(control.card.plastic.as_str().as_bytes());
    bytes.blob(device_key.map_or(&[][..], |key| &key.0));
    write_account(&mut bytes, account);
    bytes.array(&control.opened_generation.to_be_bytes());
    write_page(&mut bytes, page.as_ref());
    write_state(&mut bytes, &control.state);
    // Copied, not shrunk: the allocator leaves a block that shrinks by less than half as large as it was.
    bytes.into_bytes().as_slice().into()
}

/// The control of a row; `None` for bytes that [`encode_control`] does not write.
pub fn decode_control(row: &[u8]) -> Option<Control> {
    let (id, bytes) = row.split_first_chunk().map(|(id, bytes)| (ControlId::from_bytes(*id), bytes))?;
    let mut read = read_versioned(bytes)?;
    let [kind] = read.array()?;
    let expires_at = UnixMillis(u64::from_be_bytes(read.array()?));
    let [flags] = read.array()?;
    let scope = match flags & !PAGE_FLAGS {
        SET_PIN => Scope::SetPin,
        VIEW_PIN => Scope::ViewPin,
        _ => return None,
    };
    let card = CardKey { tenant: Tenant::parse(read.text()?).ok()?, plastic: PlasticId::parse(read.text()?).ok()? };
    let device_key = match read.blob()? {
        [] => None,
        bytes => Some(Thumbprint(bytes.try_into().ok()?)),
    };
    let account = read_account(&mut read)?;
    let opened_generation = u64::from_be_bytes(read.array()?);
    let page = read_page(flags, &mut read)?;
    let state = read_state(kind, &mut read)?;
    read.end(Control { id, card, account, scope, expires_at, opened_generation, device_key, page, state })
}

/// Until when an encoded control is kept ([`Control::keep_until`]), without reading the rest.
pub fn keep_until(control: &[u8]) -> Option<UnixMillis> {
    let bytes = control.get(EXPIRY_AT..EXPIRY_AT + 8)?;
    let expires_at = UnixMillis(u64::from_be_bytes(bytes.try_into().ok()?));
    Some(if has_set(control) { expires_at.after(RETRY_GRACE) } else { expires_at })
}

/// Whether an encoded control has set a PIN, without reading the rest.
pub fn has_set(control: &[u8]) -> bool {
    control.get(KIND_AT) == Some(&SET)
}

/// A row of this release, behind its version.
fn versioned() -> RowWriter {
    let mut bytes = RowWriter::new();
    bytes.array(&[VERSION]);
    bytes
}

/// Reads a row of this release; `None` for another version.
fn read_versioned(bytes: &[u8]) -> Option<RowReader<'_>> {
    bytes.split_first().filter(|(version, _)| **version == VERSION).map(|(_, rest)| RowReader::new(rest))
}

fn write_account(bytes: &mut RowWriter, account: Option<&RegisteredAccount>) {
    bytes.blob(account.map_or(&[][..], |account| &account.sealed));
    if let Some(account) = account {
        bytes.blob(account.masked.as_bytes());
    }
}

#[allow(clippy::option_option, reason = "outer: readable; inner: there is one")]
fn read_account(read: &mut RowReader<'_>) -> Option<Option<RegisteredAccount>> {
    match read.blob()? {
        [] => Some(None),
        sealed => Some(Some(RegisteredAccount { sealed: sealed.into(), masked: read.text()?.into() })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::control::{ControlState, PageClient, PageGrant, PageId, SealedTzpk, Spent};

    #[test]
    fn every_state_of_a_control_survives_its_encoding() {
        let states = [
            ControlState::Open,
            ControlState::Keyed { tzpk: SealedTzpk([7; 48].into()), refused_pins: 2 },
            ControlState::Spent(Spent::Set(RetryTag([9; 16]))),
            ControlState::Spent(Spent::Changed),
            ControlState::Spent(Spent::Viewed),
            ControlState::Spent(Spent::Malformed),
            ControlState::Spent(Spent::Refused),
        ];
        let unstarted = PageGrant { client: PageClient::from_bytes([8; 16]), started_by: None };
        let started = PageGrant { started_by: Some(PageId::random()), ..unstarted };
        let pages = [(None, 0), (Some(unstarted), 16), (Some(started), 32)];
        for (number, state) in states.into_iter().enumerate() {
            let without_page = Control {
                id: ControlId::random(),
                card: CardKey { tenant: Tenant::parse("bank").unwrap(), plastic: PlasticId::parse("007").unwrap() },
                account: (number % 2 == 0)
                    .then(|| RegisteredAccount { sealed: [3; 30].into(), masked: "411111******1111".into() }),
                scope: if number % 3 == 0 { Scope::ViewPin } else { Scope::SetPin },
                expires_at: UnixMillis(123_456),
                opened_generation: 1 << 40,
                device_key: (number % 2 == 1).then_some(Thumbprint([5; 32])),
                page: None,
                state,
            };
            let length = encode_control(&without_page).len();
            for (page, page_bytes) in pages {
                let control = Control { page, ..without_page.clone() };
                let bytes = encode_control(&control);
                let read = decode_control(&bytes).unwrap();
                assert_eq!(keep_until(&bytes), Some(control.keep_until()));
                assert_eq!(has_set(&bytes), matches!(control.state, ControlState::Spent(Spent::Set(_))));
                assert_eq!((read.opened_generation, read.expires_at), (1 << 40, control.expires_at));
                assert_eq!((read.id, read.card, read.scope), (control.id, control.card, control.scope));
                let spent = matches!(control.state, ControlState::Spent(_));
                assert_eq!(read.account, control.account.filter(|_| !spent));
                assert_eq!(read.device_key, control.device_key.filter(|_| !spent));
                assert_eq!(read.page, control.page.filter(|_| !spent));
                assert_eq!(bytes.len(), length + if spent { 0 } else { page_bytes });
                assert_eq!(encode_control(&read), bytes);
            }
        }
    }

    fn card_row(set_by: Option<PinOrigin>) -> CardState {
        let tries = TryState { tries: Tries { reserved: 9, forgiven: 6 }, unsettled: [4, 8, 9].into() };
        let zone_tags = ZoneTags::new((0..9).map(|n| RetryTag([n; 16])).collect()).unwrap();
        CardState { account: None, hour: 7, opened: 3, generation: 5, set_by, tries, zone_tags }
    }

    #[test]
    fn every_origin_of_a_pin_survives_its_encoding() {
        let from = PlasticId::parse("007").unwrap();
        for set_by in [
            None,
            Some(PinOrigin::Control(ControlId::random())),
            Some(PinOrigin::Zone),
            Some(PinOrigin::Generated),
            Some(PinOrigin::Change),
            Some(PinOrigin::Transfer { from, generation: 1 << 40 }),
        ] {
            let row = card_row(set_by);
            assert_eq!(decode_card(&encode_card(&row)), Some(row));
        }
    }

    #[test]
    fn a_card_with_more_forgiven_than_reserved_tries_is_unreadable() {
        let mut row = card_row(None);
        row.tries.tries.forgiven = 10;
        assert_eq!(decode_card(&encode_card(&row)), None);
    }

    #[test]
    fn storage_keys_survive_their_encoding() {
        for kind in [StorageKeyKind::Wrapped, StorageKeyKind::Iso4, StorageKeyKind::Tdes, StorageKeyKind::OneWay] {
            let key = RecordKey { kind, version: 0x0102 };
            let pin = StoredPin { record: [7; 38].into(), key, account: None };
            assert_eq!(decode_pin(&encode_pin(UnixMillis(5), &pin)).unwrap().pin.key, key);
        }
        let min = MinKeyVersions { wrapped: 1, iso_4: 0x0203, tdes: u16::MAX, one_way: 4 };
        assert_eq!(decode_min(&encode_min(&min)), Some(min));
    }

    #[test]
    fn no_bytes_make_the_reader_panic_and_a_cut_row_is_no_row() {
        let row = card_row(Some(PinOrigin::Control(ControlId::random())));
        let bytes = encode_card(&row);
        assert_eq!(decode_card(&bytes), Some(row));
        for length in 0..bytes.len() {
            assert!(decode_card(&bytes[..length]).is_none());
        }
        for first in 0..=255u8 {
            let noise: Vec<u8> = (0..64).map(|n: u8| n.wrapping_mul(first).wrapping_add(first)).collect();
            let _ = (decode_card(&noise), decode_pin(&noise), decode_control(&noise));
        }
    }
}
