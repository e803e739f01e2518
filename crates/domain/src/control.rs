//! A control: the right to do one thing with one card, once, within seconds. Pure: no I/O, no clock, no cipher.
//!
//! ```text
//! Open ──Key──▶ Keyed ──Key──▶ Keyed (the newest tzpk wins)
//!               Keyed ──Set──▶ Spent::Set        one PIN change, and only one
//!               Keyed ──Malformed──▶ Spent::Malformed   at once: ISO-1 has almost no redundancy
//!               Keyed ──RefusedPin──▶ Keyed, three times; then Spent::Refused
//!               Keyed ──Change──▶ Spent::Changed
//! Open ──View──▶ Spent::Viewed
//! ```
//! Past its expiry every control is unusable, whatever its state. Each new PIN of a card raises the card's generation. A
//! control to set a PIN that was opened under another generation is unusable too, so of two such controls of a card the
//! first set closes the other. A control to view stays. The block that set the PIN is confirmed again while this control's
//! PIN stands, until five minutes after the expiry; that raises the generation too.

use std::{fmt, sync::Arc, time::Duration};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;
use uuid::Uuid;

use crate::caller::is_visible_text;
use crate::card::{CardKey, RegisteredAccount, StoredPin, Tenant};
use crate::limits::{CONTROL_ID_CHARACTERS, PAGE_CLIENT_CHARACTERS_MAX, PAGE_ID_BYTES};
use crate::storage_key::OutsideWindow;
use crate::time::UnixMillis;

/// The number of PINs that break the policy and leave their control usable.
pub const REFUSED_PINS_MAX: u8 = 3;

/// The longest lifetime of a control, in seconds.
pub const LIFETIME_SECONDS_MAX: u32 = 3_600;
/// The time after the expiry of a control in which a retry is confirmed.
pub const RETRY_GRACE: Duration = Duration::from_secs(300);

/// A controlId: a random UUID.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ControlId([u8; 16]);

impl ControlId {
    /// A fresh controlId: 122 random bits (RFC 9562, version 4).
    pub fn random() -> Self {
        Self(*Uuid::new_v4().as_bytes())
    }

    /// Reads the text form, 36 characters.
    ///
    /// # Errors
    /// The text is not a UUID in its hyphenated form (RFC 9562, section 4).
    pub fn parse(text: &str) -> Result<Self, ControlIdError> {
        let uuid = Uuid::try_parse(text).map_err(|_| ControlIdError)?;
        (text.len() == CONTROL_ID_CHARACTERS).then_some(Self(*uuid.as_bytes())).ok_or(ControlIdError)
    }

    /// The controlId of these 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes of the controlId.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for ControlId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Uuid::from_bytes(self.0), f)
    }
}

impl fmt::Debug for ControlId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a controlId.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a controlId is a UUID of 36 characters")]
pub struct ControlIdError;

/// The purpose of a control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One PIN change.
    SetPin,
    /// One view of the PIN.
    ViewPin,
}

/// SHA-256 of a device key's DER SubjectPublicKeyInfo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thumbprint(pub [u8; 32]);

/// The bytes of a [`PageClient`].
pub const PAGE_CLIENT_BYTES: usize = 16;
/// The characters of a pageId in its text form.
const PAGE_ID_CHARACTERS: usize = 2 * PAGE_ID_BYTES;

/// The client of an edge whose pages may start a control: the first 16 bytes of the SHA-256 of the client's name in UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageClient([u8; PAGE_CLIENT_BYTES]);

impl PageClient {
    /// The client with this name.
    ///
    /// # Errors
    /// The name is empty, longer than [`PAGE_CLIENT_CHARACTERS_MAX`], or has a character that is not visible, by the rule of an
    /// auditUser.
    pub fn of_name(name: &str) -> Result<Self, PageClientError> {
        if !is_visible_text(name, PAGE_CLIENT_CHARACTERS_MAX) {
            return Err(PageClientError);
        }
        let digest: [u8; 32] = Sha256::digest(name).into();
        digest.first_chunk().copied().map(Self).ok_or(PageClientError)
    }

    /// The client with these 16 bytes of the digest.
    pub fn from_bytes(bytes: [u8; PAGE_CLIENT_BYTES]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes of the digest.
    pub fn as_bytes(&self) -> &[u8; PAGE_CLIENT_BYTES] {
        &self.0
    }
}

/// The text is not the name of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the name of a client with a page is 1 to {PAGE_CLIENT_CHARACTERS_MAX} visible characters or spaces")]
pub struct PageClientError;

/// A pageId: 16 random bytes that name a page of the web view in a browser.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PageId([u8; PAGE_ID_BYTES]);

impl PageId {
    /// A fresh pageId: 122 random bits.
    pub fn random() -> Self {
        Self(*Uuid::new_v4().as_bytes())
    }

    /// Reads the text form: 32 hexadecimal digits in lower case.
    ///
    /// # Errors
    /// Any other text.
    pub fn parse(text: &str) -> Result<Self, PageIdError> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() != PAGE_ID_CHARACTERS || !text.bytes().all(is_hex) {
            return Err(PageIdError);
        }
        Uuid::try_parse(text).map(|id| Self(*id.as_bytes())).map_err(|_| PageIdError)
    }

    /// The pageId of these 16 bytes.
    pub fn from_bytes(bytes: [u8; PAGE_ID_BYTES]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes of the pageId.
    pub fn as_bytes(&self) -> &[u8; PAGE_ID_BYTES] {
        &self.0
    }
}

impl fmt::Display for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(Uuid::from_bytes(self.0).as_simple(), f)
    }
}

impl fmt::Debug for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a pageId.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a pageId is {PAGE_ID_CHARACTERS} hexadecimal digits in lower case")]
pub struct PageIdError;

/// The right of a client's pages to start a control: one page does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageGrant {
    /// The client whose pages may start the control.
    pub client: PageClient,
    /// The page that started the control; `None` until one did.
    pub started_by: Option<PageId>,
}

/// A tzpk as the boundary sealed it: opaque bytes here.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedTzpk(pub Arc<[u8]>);

/// A keyed tag over the block that set the PIN, made inside the boundary. It distinguishes a retry from another block.
#[derive(Clone, Copy)]
pub struct RetryTag(pub [u8; 16]);

impl RetryTag {
    /// Whether two tags are the same, in constant time.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// A control to be opened. The store reads the time and the card, in its transaction.
#[derive(Clone)]
pub struct NewControl {
    /// The name of the control.
    pub id: ControlId,
    /// The card that the control is for.
    pub card: CardKey,
    /// The purpose of the control.
    pub scope: Scope,
    /// How long the control is usable, from the moment of the store's transaction.
    pub lifetime: Duration,
    /// The only device key to serve; `None` for any.
    pub device_key: Option<Thumbprint>,
    /// The client whose pages may start the control; `None` for no page.
    pub page_client: Option<PageClient>,
}

/// A control and its state.
#[derive(Clone)]
pub struct Control {
    /// The name of the control.
    pub id: ControlId,
    /// The card that the control is for.
    pub card: CardKey,
    /// The account number of the card, by [`follow_account`](crate::rules::follow_account). The PAN comes from here, never
    /// from a request.
    pub account: Option<RegisteredAccount>,
    /// The purpose of the control.
    pub scope: Scope,
    /// From this moment of the store's clock on the control is unusable.
    pub expires_at: UnixMillis,
    /// The card's generation when the control was opened.
    pub opened_generation: u64,
    /// The only device key to serve; `None` for any.
    pub device_key: Option<Thumbprint>,
    /// The right of a client's pages to start the control; `None` for no page.
    pub page: Option<PageGrant>,
    /// The state of the control.
    pub state: ControlState,
}

/// The state of a control.
#[derive(Clone)]
pub enum ControlState {
    /// Opened; no tzpk yet.
    Open,
    /// A tzpk was issued.
    Keyed {
        /// The newest tzpk.
        tzpk: SealedTzpk,
        /// The number of PINs that broke the policy.
        refused_pins: u8,
    },
    /// The control was used.
    Spent(Spent),
}

/// The use that spent a control.
#[derive(Clone)]
pub enum Spent {
    /// A PIN was set, by the block of this tag.
    Set(RetryTag),
    /// The PIN was changed: the old one was right.
    Changed,
    /// The PIN was shown.
    Viewed,
    /// A block was not an ISO 9564 format 1 block under the tzpk.
    Malformed,
    /// More than [`REFUSED_PINS_MAX`] PINs broke the policy.
    Refused,
}

/// The use of a control that changes its state.
#[derive(Clone)]
pub enum Transition {
    /// A fresh tzpk was issued for the control in the state that was read.
    Key {
        /// The fresh tzpk.
        tzpk: SealedTzpk,
        /// The tzpk of the control when it was read; `None` for an open control. The newest request wins, not the slowest.
        replaces: Option<SealedTzpk>,
    },
    /// A block under this tzpk was translated.
    Set {
        /// The tzpk that encrypts the block.
        under: SealedTzpk,
        /// The tag of the block.
        retry: RetryTag,
        /// The record of the PIN, encrypted by the boundary.
        pin: StoredPin,
    },
    /// A block was not ISO-1 under this tzpk.
    Malformed {
        /// The tzpk that the block was decrypted under.
        under: SealedTzpk,
    },
    /// A well-formed block under this tzpk holds a PIN that breaks the policy.
    RefusedPin {
        /// The tzpk that encrypts the block.
        under: SealedTzpk,
    },
    /// The PIN is to be shown.
    View {
        /// The PIN record that was translated for the device. The store compares this record with the card's newest one.
        shown: Box<[u8]>,
    },
}

/// Why a change was not made. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Denied {
    /// A PIN is bound to the account number that the card has.
    #[error("a PIN is kept for this card, bound to the account number it has: it can't be changed")]
    AccountBound,
    /// The card was never registered, and [`UnknownCards::Refuse`](crate::rules::UnknownCards::Refuse) is configured.
    #[error("the card is not registered")]
    CardUnknown,
    /// The card had as many controls within this clock hour as configured.
    #[error("this card has had {cap} controls within the hour: try again later")]
    Cap {
        /// The configured number.
        cap: u32,
        /// The time until the hour ends.
        retry_after: Duration,
    },
    /// The tenant has as many cards as configured that were never registered and never had a PIN.
    #[error("{max} unregistered cards of this tenant have no PIN: set their PINs, register them, or try again later")]
    UnregisteredCards {
        /// The configured number.
        max: u32,
    },
    /// The card had as many calls within a minute as configured. The engine counts them, not the store.
    #[error("too many calls for this card within the minute: try again later")]
    CardRate {
        /// The time until the card may have one more call.
        retry_after: Duration,
    },
    /// Unknown, expired, spent, closed by a newer PIN of its card, or for another page: one answer for all of them.
    #[error("the control is not usable: open another")]
    NotUsable,
    /// The control belongs to another tenant.
    #[error("the control belongs to another tenant")]
    OtherTenant,
    /// The control was opened for another purpose.
    #[error("the control was opened for another purpose")]
    OtherScope,
    /// The control was opened for another device key.
    #[error("the control was opened for another device key")]
    OtherDeviceKey,
    /// No tzpk was issued under the control.
    #[error("no tzpk was issued under this control: ask for one first")]
    NoTzpk,
    /// A newer tzpk, PIN record, account number or storage key replaced the one that this change used: read the control
    /// again, then retry.
    #[error("a newer tzpk, PIN record, account number or storage key replaced the one used: retry")]
    Superseded,
    /// The record is under a newer storage key than every engine on the store has: nothing is wrong with the request, and a retry
    /// succeeds once the other engines have reloaded their keys.
    #[error("another engine on the store has not loaded the newest storage key yet: try again")]
    StorageKeyInactive,
    /// The card has no PIN.
    #[error("the card has no PIN: set one first")]
    PinNotSet,
    /// The card has a PIN record, and the caller asked for a comparison with a verification value.
    #[error("the card has a stored PIN: verify against it, without pvv, ibm_3624_offset or ibm_3624_natural")]
    PinStored,
    /// No try with this number was reserved.
    #[error("no try with this number was reserved: send the reserved_try_count of FindCard")]
    TryUnknown,
    /// No try is left.
    #[error("no try is left: the PIN is locked until its tries are reset")]
    PinLocked,
    /// The try was settled before, was never reserved, or is too old: [`UNSETTLED_TRIES_MAX`](crate::tries::UNSETTLED_TRIES_MAX).
    #[error("the try was settled before, or can't be settled any more: reserve another")]
    TrySettled,
    /// The block set a PIN of the card that was replaced.
    #[error("a newer PIN replaced the one that this block set: encrypt the PIN again to set it again")]
    ReplacedBlock,
    /// The cards of a transfer have different tenants or account numbers, or one has no account number.
    #[error("the two cards need one tenant and one account number: register it for both")]
    OtherAccount,
}

impl From<OutsideWindow> for Denied {
    fn from(outside: OutsideWindow) -> Self {
        match outside {
            OutsideWindow::Below => Self::Superseded,
            OutsideWindow::Above => Self::StorageKeyInactive,
        }
    }
}

impl Control {
    /// Admits `tenant` to use the control for `scope` at `now`.
    ///
    /// # Errors
    /// [`Denied::NotUsable`] first, then [`Denied::OtherTenant`], then [`Denied::OtherScope`].
    pub fn admit(&self, tenant: &Tenant, scope: Scope, now: UnixMillis) -> Result<(), Denied> {
        self.usable(now)?;
        if self.card.tenant != *tenant {
            return Err(Denied::OtherTenant);
        }
        if self.scope != scope {
            return Err(Denied::OtherScope);
        }
        Ok(())
    }

    /// Admits the page `id` of a client of `tenant` to start the control at `now`, or to repeat its start.
    ///
    /// # Errors
    /// As [`Control::admit`], then [`Denied::NotUsable`]: the control names another client or none, or another page started it.
    pub fn admit_page(&self, tenant: &Tenant, client: PageClient, id: PageId, now: UnixMillis) -> Result<(), Denied> {
        self.admit(tenant, self.scope, now)?;
        self.is_started_by(client, id).map(drop)
    }

    /// Whether this page started the control.
    ///
    /// # Errors
    /// [`Denied::NotUsable`]: the page can't start it.
    pub(crate) fn is_started_by(&self, client: PageClient, id: PageId) -> Result<bool, Denied> {
        match self.page.filter(|grant| grant.client == client).ok_or(Denied::NotUsable)?.started_by {
            None => Ok(false),
            Some(started_by) if started_by == id => Ok(true),
            Some(_) => Err(Denied::NotUsable),
        }
    }

    /// Admits a device key.
    ///
    /// # Errors
    /// [`Denied::OtherDeviceKey`]: the control was opened for another device key.
    pub fn admit_device_key(&self, thumbprint: &Thumbprint) -> Result<(), Denied> {
        match &self.device_key {
            Some(pinned) if pinned != thumbprint => Err(Denied::OtherDeviceKey),
            _ => Ok(()),
        }
    }

    /// The newest tzpk.
    ///
    /// # Errors
    /// [`Denied::NoTzpk`] for an open control, [`Denied::NotUsable`] for a spent one.
    pub fn tzpk(&self) -> Result<&SealedTzpk, Denied> {
        match &self.state {
            ControlState::Keyed { tzpk, .. } => Ok(tzpk),
            ControlState::Open => Err(Denied::NoTzpk),
            ControlState::Spent(_) => Err(Denied::NotUsable),
        }
    }

    /// The tag of the block that set the PIN, while a retry may be confirmed to this tenant. Whether the PIN still stands is
    /// checked by [`confirm_retry`](crate::rules::confirm_retry).
    pub fn set_by(&self, tenant: &Tenant, now: UnixMillis) -> Option<&RetryTag> {
        self.retry_tag(now).filter(|_| self.card.tenant == *tenant)
    }

    /// Whether a retry with this tag is confirmed at `now`, where the card's PIN was last set under control `set_by`.
    pub(crate) fn confirm_retry(
        &self,
        tag: &RetryTag,
        set_by: Option<ControlId>,
        now: UnixMillis,
    ) -> Result<(), Denied> {
        let is_retry = self.retry_tag(now).is_some_and(|set| set.matches(tag));
        if is_retry && set_by == Some(self.id) { Ok(()) } else { Err(Denied::NotUsable) }
    }

    /// Until this moment the store keeps the control: a PIN it set may be confirmed for longer than it was usable.
    pub fn keep_until(&self) -> UnixMillis {
        match self.state {
            ControlState::Spent(Spent::Set(_)) => self.expires_at.after(RETRY_GRACE),
            _ => self.expires_at,
        }
    }

    fn retry_tag(&self, now: UnixMillis) -> Option<&RetryTag> {
        match &self.state {
            ControlState::Spent(Spent::Set(tag)) if now < self.keep_until() => Some(tag),
            _ => None,
        }
    }

    /// The time from `now` to the expiry.
    pub fn remaining(&self, now: UnixMillis) -> Duration {
        self.expires_at.since(now)
    }

    /// Whether the control is neither spent nor expired.
    pub fn is_usable(&self, now: UnixMillis) -> bool {
        self.usable(now).is_ok()
    }

    fn usable(&self, now: UnixMillis) -> Result<(), Denied> {
        match self.state {
            ControlState::Spent(_) => Err(Denied::NotUsable),
            _ if now >= self.expires_at => Err(Denied::NotUsable),
            _ => Ok(()),
        }
    }

    /// Checks that the control is usable at `now`, where the card has this generation.
    pub(crate) fn usable_under(&self, generation: u64, now: UnixMillis) -> Result<(), Denied> {
        self.usable(now)?;
        // A new PIN closes no control to view: whichever control set it, the card's PIN is shown.
        if self.scope == Scope::SetPin && self.opened_generation != generation {
            return Err(Denied::NotUsable);
        }
        Ok(())
    }
}

/// The state of a control after the PIN was changed under this tzpk at `now`, where the card has this generation.
pub(crate) fn state_after_change(
    control: &Control,
    under: &SealedTzpk,
    generation: u64,
    now: UnixMillis,
) -> Result<ControlState, Denied> {
    control.admit(&control.card.tenant, Scope::SetPin, now)?;
    if control.opened_generation != generation {
        return Err(Denied::NotUsable);
    }
    newest(control.tzpk()?, under)?;
    Ok(ControlState::Spent(Spent::Changed))
}

/// The state of a control after `transition` at `now`, where the card has this generation.
pub(crate) fn next_state(
    control: &Control,
    transition: &Transition,
    generation: u64,
    now: UnixMillis,
) -> Result<ControlState, Denied> {
    control.usable_under(generation, now)?;
    match (&control.state, control.scope, transition) {
        (ControlState::Open, Scope::SetPin, Transition::Key { tzpk, replaces: None }) => {
            Ok(ControlState::Keyed { tzpk: tzpk.clone(), refused_pins: 0 })
        }
        // A fresh tzpk does not forgive refused PINs.
        (
            ControlState::Keyed { tzpk: before, refused_pins },
            Scope::SetPin,
            Transition::Key { tzpk, replaces: Some(replaces) },
        ) => {
            newest(before, replaces)?;
            Ok(ControlState::Keyed { tzpk: tzpk.clone(), refused_pins: *refused_pins })
        }
        (_, Scope::SetPin, Transition::Key { .. }) => Err(Denied::Superseded),
        (ControlState::Keyed { tzpk, .. }, Scope::SetPin, Transition::Set { under, retry, .. }) => {
            newest(tzpk, under)?;
            Ok(ControlState::Spent(Spent::Set(*retry)))
        }
        (ControlState::Keyed { tzpk, .. }, Scope::SetPin, Transition::Malformed { under }) => {
            newest(tzpk, under)?;
            Ok(ControlState::Spent(Spent::Malformed))
        }
        (ControlState::Keyed { tzpk, refused_pins }, Scope::SetPin, Transition::RefusedPin { under }) => {
            newest(tzpk, under)?;
            Ok(if *refused_pins < REFUSED_PINS_MAX {
                ControlState::Keyed { tzpk: tzpk.clone(), refused_pins: refused_pins.saturating_add(1) }
            } else {
                ControlState::Spent(Spent::Refused)
            })
        }
        (
            ControlState::Open,
            Scope::SetPin,
            Transition::Set { .. } | Transition::Malformed { .. } | Transition::RefusedPin { .. },
        ) => Err(Denied::NoTzpk),
        (ControlState::Open, Scope::ViewPin, Transition::View { .. }) => Ok(ControlState::Spent(Spent::Viewed)),
        (ControlState::Spent(_), ..) => Err(Denied::NotUsable),
        (_, Scope::SetPin, Transition::View { .. }) | (_, Scope::ViewPin, _) => Err(Denied::OtherScope),
    }
}

fn newest(newest: &SealedTzpk, under: &SealedTzpk) -> Result<(), Denied> {
    if newest == under { Ok(()) } else { Err(Denied::Superseded) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        card::PlasticId,
        storage_key::{RecordKey, StorageKeyKind},
    };

    const NOW: UnixMillis = UnixMillis(1_000);

    fn control(scope: Scope, state: ControlState) -> Control {
        Control {
            id: ControlId::random(),
            card: CardKey { tenant: Tenant::parse("bank").unwrap(), plastic: PlasticId::parse("1").unwrap() },
            account: None,
            scope,
            expires_at: UnixMillis(31_000),
            opened_generation: 4,
            device_key: None,
            page: None,
            state,
        }
    }

    fn tzpk(n: u8) -> SealedTzpk {
        SealedTzpk([n].into())
    }

    fn keyed() -> Control {
        control(Scope::SetPin, ControlState::Keyed { tzpk: tzpk(1), refused_pins: 0 })
    }

    fn set(n: u8) -> Transition {
        let key = RecordKey { kind: StorageKeyKind::Iso4, version: 1 };
        let pin = StoredPin { record: [n; 38].into(), key, account: None };
        Transition::Set { under: tzpk(n), retry: RetryTag([n; 16]), pin }
    }

    fn view() -> Transition {
        Transition::View { shown: [1; 38].into() }
    }

    /// A fresh tzpk in the place of another.
    fn key(n: u8, replaces: u8) -> Transition {
        Transition::Key { tzpk: tzpk(n), replaces: Some(tzpk(replaces)) }
    }

    fn advance(
        control: &Control,
        transition: Transition,
        generation: u64,
        now: UnixMillis,
    ) -> Result<ControlState, Denied> {
        next_state(control, &transition, generation, now)
    }

    fn after(mut control: Control, transition: Transition) -> Control {
        control.state = advance(&control, transition, 4, NOW).unwrap();
        control
    }

    #[test]
    fn a_control_sets_one_pin_and_then_no_other() {
        let spent = after(keyed(), set(1));
        for event in [set(1), key(2, 1), Transition::Malformed { under: tzpk(1) }, view()] {
            assert_eq!(advance(&spent, event, 4, NOW).err(), Some(Denied::NotUsable));
        }
    }

    #[test]
    fn the_newest_tzpk_wins() {
        let rekeyed = after(keyed(), key(2, 1));
        assert_eq!(advance(&rekeyed, set(1), 4, NOW).err(), Some(Denied::Superseded));
        assert!(advance(&rekeyed, set(2), 4, NOW).is_ok());
    }

    #[test]
    fn a_late_tzpk_does_not_replace_a_newer_one() {
        let first = Transition::Key { tzpk: tzpk(9), replaces: None };
        let rekeyed = after(keyed(), key(2, 1));
        for late in [first, key(9, 1)] {
            assert_eq!(advance(&rekeyed, late, 4, NOW).err(), Some(Denied::Superseded));
        }
        assert!(advance(&rekeyed, set(2), 4, NOW).is_ok());
    }

    #[test]
    fn a_malformed_block_spends_the_control_at_once() {
        let spent = after(keyed(), Transition::Malformed { under: tzpk(1) });
        assert_eq!(advance(&spent, set(1), 4, NOW).err(), Some(Denied::NotUsable));
    }

    #[test]
    fn three_refused_pins_leave_a_control_usable_and_the_fourth_spends_it() {
        let mut control = keyed();
        for _ in 0..3 {
            control = after(control, Transition::RefusedPin { under: tzpk(1) });
            assert!(advance(&control, set(1), 4, NOW).is_ok());
        }
        control = after(control, Transition::RefusedPin { under: tzpk(1) });
        assert_eq!(advance(&control, set(1), 4, NOW).err(), Some(Denied::NotUsable));
    }

    #[test]
    fn a_fresh_tzpk_does_not_forgive_refused_pins() {
        let mut control = keyed();
        for n in 1..=3 {
            control = after(control, Transition::RefusedPin { under: tzpk(n) });
            control = after(control, key(n + 1, n));
        }
        control = after(control, Transition::RefusedPin { under: tzpk(4) });
        assert!(matches!(control.state, ControlState::Spent(Spent::Refused)));
    }

    #[test]
    fn an_expired_control_is_unusable_from_its_last_millisecond_on() {
        assert!(advance(&keyed(), set(1), 4, UnixMillis(30_999)).is_ok());
        assert_eq!(advance(&keyed(), set(1), 4, UnixMillis(31_000)).err(), Some(Denied::NotUsable));
    }

    #[test]
    fn a_block_before_any_tzpk_leaves_the_control_open() {
        let open = control(Scope::SetPin, ControlState::Open);
        assert_eq!(advance(&open, set(1), 4, NOW).err(), Some(Denied::NoTzpk));
        assert_eq!(open.tzpk().err(), Some(Denied::NoTzpk));
    }

    #[test]
    fn a_control_to_view_shows_once_and_sets_nothing() {
        let opened = control(Scope::ViewPin, ControlState::Open);
        for event in [Transition::Key { tzpk: tzpk(1), replaces: None }, set(1)] {
            assert_eq!(advance(&opened, event, 4, NOW).err(), Some(Denied::OtherScope));
        }
        let spent = after(opened, view());
        assert_eq!(advance(&spent, view(), 4, NOW).err(), Some(Denied::NotUsable));
    }

    #[test]
    fn a_spent_control_is_unusable_to_every_tenant_alike() {
        let spent = after(keyed(), set(1));
        let other = Tenant::parse("other").unwrap();
        assert_eq!(spent.admit(&other, Scope::SetPin, NOW), Err(Denied::NotUsable));
        assert_eq!(keyed().admit(&other, Scope::SetPin, NOW), Err(Denied::OtherTenant));
        assert!(spent.set_by(&other, NOW).is_none());
    }

    #[test]
    fn a_retry_is_confirmed_while_its_pin_stands_until_five_minutes_after_expiry() {
        let spent = after(keyed(), set(1));
        let confirm = |tag: u8, set_by, now| spent.confirm_retry(&RetryTag([tag; 16]), set_by, UnixMillis(now));
        assert_eq!(confirm(1, Some(spent.id), 330_999), Ok(()));
        for (tag, set_by, now) in [
            (2, Some(spent.id), 1_000),
            (1, Some(ControlId::random()), 1_000),
            (1, None, 1_000),
            (1, Some(spent.id), 331_000),
        ] {
            assert_eq!(confirm(tag, set_by, now), Err(Denied::NotUsable), "{tag} {set_by:?} {now}");
        }
        assert!(spent.set_by(&spent.card.tenant, NOW).unwrap().matches(&RetryTag([1; 16])));
    }

    #[test]
    fn a_newer_pin_closes_a_control_to_set_and_not_to_view() {
        for event in [set(1), key(2, 1), Transition::Malformed { under: tzpk(1) }] {
            assert_eq!(advance(&keyed(), event, 5, NOW).err(), Some(Denied::NotUsable));
        }
        assert!(advance(&control(Scope::ViewPin, ControlState::Open), view(), 5, NOW).is_ok());
    }

    #[test]
    fn a_pinned_device_key_admits_no_other() {
        let mut pinned = keyed();
        pinned.device_key = Some(Thumbprint([7; 32]));
        assert!(pinned.admit_device_key(&Thumbprint([7; 32])).is_ok());
        assert_eq!(pinned.admit_device_key(&Thumbprint([8; 32])), Err(Denied::OtherDeviceKey));
    }

    #[test]
    fn a_control_id_is_read_in_its_36_character_form_alone() {
        let id = ControlId::random();
        assert_eq!(ControlId::parse(&id.to_string()), Ok(id));
        assert!(ControlId::parse(&id.to_string().replace('-', "")).is_err());
        assert!(ControlId::parse("not-a-uuid").is_err());
    }

    #[test]
    fn a_page_client_is_the_start_of_the_digest_of_its_name() {
        // printf wallet | sha256sum
        let digest = PageClient::of_name("wallet").unwrap();
        assert_eq!(digest.as_bytes()[..4], [0xe8, 0xd4, 0x40, 0x50]);
        assert!(PageClient::of_name(&"\u{e4}".repeat(PAGE_CLIENT_CHARACTERS_MAX)).is_ok());
        for wrong in ["", "wal\u{200b}let", "wallet\n", &"a".repeat(PAGE_CLIENT_CHARACTERS_MAX + 1)] {
            assert_eq!(PageClient::of_name(wrong), Err(PageClientError), "{wrong:?}");
        }
    }

    #[test]
    fn a_page_id_is_32_hexadecimal_digits_in_lower_case() {
        let id = PageId::random();
        assert_eq!(PageId::parse(&id.to_string()), Ok(id));
        assert_eq!(PageId::parse("000102030405060708090a0b0c0d0e0f").map(|id| id.as_bytes()[15]), Ok(15));
        let uuid = "00010203-0405-0607-0809-0a0b0c0d0e0f";
        for wrong in ["", "x", uuid, &"A".repeat(32), &"a".repeat(31), &"a".repeat(33), &"g".repeat(32)] {
            assert_eq!(PageId::parse(wrong), Err(PageIdError), "{wrong}");
        }
    }
}
