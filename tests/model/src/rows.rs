//! The rows of `domain`, made from the small numbers of a state. The state of a model stays small, and each execution of a
//! transaction builds its rows, calls the rule, and reads the result back.

use std::{sync::OnceLock, time::Duration};

use domain::card::{CardKey, StoredPin, Tenant};
use domain::control::{Control, ControlId, ControlState, Denied, NewControl, RetryTag, Scope, SealedTzpk};
use domain::rules::{self, Admission, CardState, FoundCard, PinOrigin, UnknownCards};
use domain::storage_key::{MinKeyVersions, RecordKey, StorageKeyKind};
use domain::time::UnixMillis;
use domain::tries::{Tries, TryState};

use crate::card_model::new_control;

const ADMISSION: Admission = Admission {
    controls_per_card_per_hour: 1_000,
    unknown_cards: UnknownCards::Accept,
    unregistered_cards_per_tenant: 1,
};

/// The time after this number of minutes.
pub(crate) fn time(minute: u8) -> UnixMillis {
    UnixMillis(1_000_000).after(Duration::from_secs(60) * u32::from(minute))
}

/// A control to set a PIN, keyed or spent, with this number as its id.
pub(crate) fn control(
    number: u8,
    state: ControlState,
    opened_generation: u8,
    expires_at: UnixMillis,
) -> Option<Control> {
    let opened = opened()?.clone();
    Some(Control { id: id(number), state, opened_generation: opened_generation.into(), expires_at, ..opened })
}

/// A control to set a PIN, from which others are made.
fn opened() -> Option<&'static Control> {
    static OPENED: OnceLock<Option<Control>> = OnceLock::new();
    OPENED.get_or_init(|| open(CardState::default(), time(0)).ok()).as_ref()
}

/// Opens a control to set a PIN at `now`.
pub(crate) fn open(card: CardState, now: UnixMillis) -> Result<Control, Denied> {
    let new: NewControl = new_control(0, Scope::SetPin);
    rules::open(FoundCard::Known(card), new, ADMISSION, now).map(|(_, control)| control)
}

/// The tenant of every control.
pub(crate) fn tenant(control: &Control) -> &Tenant {
    &control.card.tenant
}

/// The name of the card.
pub(crate) fn card_key() -> Option<CardKey> {
    opened().map(|control| control.card)
}

pub(crate) fn id(number: u8) -> ControlId {
    ControlId::from_bytes([number; 16])
}

/// A card whose PIN was set under this control.
pub(crate) fn card(generation: u8, set_by: Option<u8>) -> CardState {
    let set_by = set_by.map(|number| PinOrigin::Control(id(number)));
    CardState { generation: generation.into(), set_by, ..CardState::default() }
}

/// A card with these tries.
pub(crate) fn card_with_tries(
    generation: u8,
    reserved: u8,
    forgiven: u8,
    unsettled: impl Iterator<Item = u8>,
) -> CardState {
    let tries = Tries { reserved: reserved.into(), forgiven: forgiven.into() };
    let tries = TryState { tries, unsettled: unsettled.map(u64::from).collect() };
    CardState { tries, ..card(generation, Some(0)) }
}

pub(crate) fn sealed(tzpk: u8) -> SealedTzpk {
    SealedTzpk([tzpk].into())
}

pub(crate) fn tag(bytes: [u8; 2]) -> RetryTag {
    let mut tag = [0; 16];
    tag[..2].copy_from_slice(&bytes);
    RetryTag(tag)
}

/// A record of these bytes under this version of the storage key.
pub(crate) fn record(bytes: &[u8], version: u8) -> StoredPin {
    StoredPin { record: bytes.into(), key: key(version), account: None }
}

pub(crate) fn key(version: u8) -> RecordKey {
    RecordKey { kind: StorageKeyKind::Iso4, version: version.into() }
}

/// The lowest version of a record's key, as the rule takes it.
pub(crate) fn min<W: From<MinKeyVersions>>(version: u8) -> W {
    MinKeyVersions { iso_4: version.into(), ..MinKeyVersions::default() }.into()
}

#[allow(clippy::unwrap_used, reason = "the model counts a few")]
pub(crate) fn small(number: u64) -> u8 {
    number.try_into().unwrap()
}
