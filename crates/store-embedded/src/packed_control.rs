//! A control as the live controls keep it in memory: the parts of its row on disk, in about three quarters of the bytes. A
//! store holds a million of them, so each byte counts; no format on disk depends on this one.
//!
//! ```text
//! controlId(16)  flags(1)  expiry(varint)  tenant(blob)  plasticId(digits)  generation(varint)
//! account: sealed(blob) masked(digits)   device key(32)   client of a page(16)   page(16)
//! tzpk: refused PINs(1) sealed(blob), or retry tag(16)    zeros up to a multiple of 4 bytes
//! ```
//! The flags say which of the parts in the second and third line there are.

use domain::card::{CardKey, PlasticId, RegisteredAccount, Tenant};
use domain::control::{Control, ControlId, RETRY_GRACE, Scope, Thumbprint};
use domain::time::UnixMillis;
use store::codec::ID_BYTES;
use store::control_parts::{KeptParts, SET, kind_of, page_flags, read_page, read_state, write_page, write_state};
use store::row_bytes::{BLOB_BYTES_MAX, RowReader, RowWriter};

/// The length of a packed control is a multiple of this number of bytes, so that a store has few different lengths.
pub(super) const WORD_BYTES: usize = 4;

/// The bits of the flags that hold the kind of the control's state. [`PAGE_FLAGS`](store::control_parts::PAGE_FLAGS) are the two
/// highest ones.
const KIND: u8 = 0x07;
/// The flag of [`Scope::ViewPin`].
const VIEW_PIN: u8 = 0x08;
const HAS_ACCOUNT: u8 = 0x10;
const HAS_DEVICE_KEY: u8 = 0x20;

/// Packs a control, without the parts that its row on disk does not keep either ([`KeptParts`]).
pub(super) fn pack(control: &Control) -> Vec<u8> {
    let KeptParts { device_key, account, page } = KeptParts::of_control(control);
    let flags = [
        (VIEW_PIN, control.scope == Scope::ViewPin),
        (HAS_ACCOUNT, account.is_some()),
        (HAS_DEVICE_KEY, device_key.is_some()),
    ];
    let flags = flags.into_iter().filter(|(_, is_set)| *is_set).map(|(flag, _)| flag);
    let flags = flags.fold(kind_of(&control.state) | page_flags(page.as_ref()), |flags, flag| flags | flag);

    let mut bytes = RowWriter::new();
    bytes.array(control.id.as_bytes());
    bytes.array(&[flags]);
    bytes.varint(control.expires_at.0);
    write_card(&mut bytes, &control.card);
    bytes.varint(control.opened_generation);
    if let Some(RegisteredAccount { sealed, masked }) = account {
        bytes.blob(sealed);
        bytes.digits(masked);
    }
    if let Some(Thumbprint(thumbprint)) = device_key {
        bytes.array(thumbprint);
    }
    write_page(&mut bytes, page.as_ref());
    write_state(&mut bytes, &control.state);
    let mut bytes = bytes.into_bytes();
    bytes.resize(bytes.len().next_multiple_of(WORD_BYTES), 0);
    bytes
}

/// The control of packed bytes; `None` for bytes that [`pack`] does not write.
pub(super) fn unpack(bytes: &[u8]) -> Option<Control> {
    let (mut read, mut buffer) = (RowReader::new(bytes), [0; BLOB_BYTES_MAX]);
    let id = ControlId::from_bytes(read.array()?);
    let [flags] = read.array()?;
    let has = |flag| flags & flag != 0;
    let expires_at = UnixMillis(read.varint()?);
    let tenant = Tenant::parse(read.text()?).ok()?;
    let plastic = PlasticId::parse(read.digits(&mut buffer)?).ok()?;
    let opened_generation = read.varint()?;
    let account = match has(HAS_ACCOUNT) {
        true => Some(RegisteredAccount { sealed: read.blob()?.into(), masked: read.digits(&mut buffer)?.into() }),
        false => None,
    };
    let device_key = if has(HAS_DEVICE_KEY) { Some(Thumbprint(read.array()?)) } else { None };
    let page = read_page(flags, &mut read)?;
    let state = read_state(flags & KIND, &mut read)?;
    let is_padding = read.rest().len() < WORD_BYTES && read.rest().iter().all(|byte| *byte == 0);
    let scope = if has(VIEW_PIN) { Scope::ViewPin } else { Scope::SetPin };
    let card = CardKey { tenant, plastic };
    is_padding.then_some(Control { id, card, account, scope, expires_at, opened_generation, device_key, page, state })
}

/// The controlId of a packed control.
pub(super) fn id_of(packed: &[u8]) -> Option<ControlId> {
    packed.first_chunk().map(|id| ControlId::from_bytes(*id))
}

/// Until when a packed control is kept ([`Control::keep_until`]), without unpacking the rest.
pub(super) fn keep_until(packed: &[u8]) -> Option<UnixMillis> {
    let expires_at = UnixMillis(behind_flags(packed)?.varint()?);
    Some(if has_set(packed) { expires_at.after(RETRY_GRACE) } else { expires_at })
}

/// Whether a packed control has set a PIN.
pub(super) fn has_set(packed: &[u8]) -> bool {
    packed.get(ID_BYTES).is_some_and(|flags| flags & KIND == SET)
}

/// Whether a packed control is this card's, without unpacking the rest.
pub(super) fn is_of(card: &CardKey) -> impl Fn(&[u8]) -> bool {
    let mut named = RowWriter::new();
    write_card(&mut named, card);
    let named = named.into_bytes();
    move |packed| {
        let card = behind_flags(packed).and_then(|mut read| read.varint().map(|_| read.rest()));
        card.is_some_and(|rest| rest.starts_with(&named))
    }
}

fn behind_flags(packed: &[u8]) -> Option<RowReader<'_>> {
    packed.get(ID_BYTES + 1..).map(RowReader::new)
}

fn write_card(bytes: &mut RowWriter, card: &CardKey) {
    bytes.blob(card.tenant.as_str().as_bytes());
    bytes.digits(card.plastic.as_str());
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::control::{ControlState, PageClient, PageGrant, PageId, RetryTag, SealedTzpk, Spent};
    use store::codec::encode_control;

    fn digits(count: usize) -> PlasticId {
        PlasticId::parse(&"0123456789012345678"[..count]).unwrap()
    }

    /// A control of each state, with and without each part that a control may have.
    fn controls() -> Vec<Control> {
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
        let masked = ["411111******1111", "411111*********1111", "no digits", "é"];
        let accounts = masked.map(|masked| Some(RegisteredAccount { sealed: [3; 30].into(), masked: masked.into() }));
        let mut controls = Vec::new();
        for state in states {
            for account in accounts.iter().cloned().chain([None]) {
                for device_key in [None, Some(Thumbprint([5; 32]))] {
                    for page in [None, Some(unstarted), Some(started)] {
                        for (scope, length) in [(Scope::SetPin, 10), (Scope::ViewPin, 19), (Scope::SetPin, 1)] {
                            let tenant = Tenant::parse("bank").unwrap();
                            controls.push(Control {
                                id: ControlId::random(),
                                card: CardKey { tenant, plastic: digits(length) },
                                account: account.clone(),
                                scope,
                                expires_at: UnixMillis(1_795_000_000_000),
                                opened_generation: 1 << (length * 3),
                                device_key,
                                page,
                                state: state.clone(),
                            });
                        }
                    }
                }
            }
        }
        controls
    }

    #[test]
    fn each_control_unpacks_to_the_row_on_disk_that_it_had() {
        for control in controls() {
            let packed = pack(&control);
            assert!(packed.len().is_multiple_of(WORD_BYTES));
            assert_eq!(encode_control(&unpack(&packed).unwrap()), encode_control(&control));
            assert_eq!(id_of(&packed), Some(control.id));
            assert_eq!(keep_until(&packed), Some(control.keep_until()));
            assert_eq!(has_set(&packed), matches!(control.state, ControlState::Spent(Spent::Set(_))));
            assert!(is_of(&control.card)(&packed));
            for length in [2, 9, 11, 18] {
                assert!(!is_of(&CardKey { plastic: digits(length), ..control.card })(&packed), "{length}");
            }
        }
    }

    #[test]
    fn a_keyed_control_with_an_account_has_at_most_124_bytes() {
        let account = RegisteredAccount { sealed: [3; 30].into(), masked: "411111******1111".into() };
        let keyed = Control {
            account: Some(account),
            state: ControlState::Keyed { tzpk: SealedTzpk([7; 48].into()), refused_pins: 0 },
            opened_generation: 1,
            ..controls().swap_remove(0)
        };
        let open = Control { state: ControlState::Open, ..keyed.clone() };
        assert_eq!((pack(&open).len(), pack(&keyed).len()), (76, 124));
    }

    #[test]
    fn a_cut_control_is_rejected_and_noise_does_not_panic() {
        for control in controls() {
            let packed = pack(&control);
            for length in 0..packed.len() {
                // A cut of zeros at the end may leave a whole control.
                let read = unpack(&packed[..length]).map(|read| encode_control(&read));
                assert!(read.is_none_or(|row| row == encode_control(&control)), "{length}");
            }
        }
        // A linear congruential generator (Knuth, MMIX): the same noise in each run.
        let mut state = 1_u64;
        let mut noise = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.to_be_bytes()[0]
        };
        for control in controls() {
            let mut packed = pack(&control);
            let length = packed.len();
            packed[usize::from(noise()) % length] = noise();
            let _ = (unpack(&packed), keep_until(&packed), is_of(&control.card)(&packed));
            let random: Vec<u8> = (0..noise()).map(|_| noise()).collect();
            let _ = (unpack(&random), keep_until(&random), is_of(&control.card)(&random));
        }
    }
}
