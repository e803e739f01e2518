//! The rules of every change: from the newest state, the change and the time to the new state, or to a denial.
//!
//! A store calls these functions inside its transaction, on the newest rows, with the time that it read after it had them,
//! and writes what they return. It decides nothing itself, so all stores decide alike.

use std::time::Duration;

use crate::card::{Card, PinStatus, PlasticId, ReencryptedPin, RegisteredAccount, StoredPin};
use crate::control::{
    Control, ControlId, ControlState, Denied, LIFETIME_SECONDS_MAX, NewControl, PageClient, PageGrant, PageId,
    RetryTag, Transition, next_state,
};
use crate::storage_key::KeyWindow;
use crate::time::UnixMillis;
use crate::tries::TryState;
use crate::zone_tags::ZoneTags;

const HOUR_MILLISECONDS: u64 = 3_600_000;
const HOUR: Duration = Duration::from_millis(HOUR_MILLISECONDS);

/// Which controls may be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// The most controls that a card may have within a clock hour.
    pub controls_per_card_per_hour: u32,
    /// What happens to a card that was never registered.
    pub unknown_cards: UnknownCards,
    /// The most cards of one tenant that were never registered, never had a PIN, and are not [forgotten](is_forgotten).
    pub unregistered_cards_per_tenant: u32,
}

/// What a store knows about a card for which a control is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundCard {
    /// The card was registered, or has had a PIN.
    Known(CardState),
    /// The card was never registered and never had a PIN.
    Unregistered {
        /// Its state; `None` if it had no control, or is [forgotten](is_forgotten).
        state: Option<CardState>,
        /// The number of such cards of its tenant whose state the store has.
        of_tenant: u32,
    },
}

/// What happens to a card that was never registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownCards {
    /// The card waits for its PIN, and is bound by the digits of its plasticId. It is added once its PIN is set.
    Accept,
    /// No control is opened.
    Refuse,
}

/// The state of a card, without its PIN record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CardState {
    /// The registered account number.
    pub account: Option<RegisteredAccount>,
    /// The clock hour that `opened` counts in: hours since 1970-01-01T00:00:00Z.
    pub hour: u64,
    /// The number of controls opened within that hour; 0 only for a card that never had a control.
    pub opened: u32,
    /// The number of new PINs and confirmed retries of the card.
    pub generation: u64,
    /// What set the PIN; `None` for a card without a PIN.
    pub set_by: Option<PinOrigin>,
    /// The tries of the card. A new PIN leaves them as they are.
    pub tries: TryState,
    /// The tags of the newest blocks that set the PIN by a zone key.
    pub zone_tags: ZoneTags,
}

/// What set the PIN of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinOrigin {
    /// A device, under this control.
    Control(ControlId),
    /// A block under a zone key: the one of the newest tag.
    Zone,
    /// The boundary generated the PIN.
    Generated,
    /// A change that named the old PIN.
    Change,
    /// The PIN of another card of the tenant.
    Transfer {
        /// The card that had the PIN before.
        from: PlasticId,
        /// The generation of that card.
        generation: u64,
    },
}

impl CardState {
    /// The card as callers see it. `pin_set_at` is the time of its PIN record: a card without a record waits for its PIN.
    pub fn card(&self, pin_set_at: Option<UnixMillis>) -> Card {
        let pin_status = match (pin_set_at, self.set_by) {
            (None, _) => PinStatus::Waiting,
            (Some(_), Some(PinOrigin::Generated)) => PinStatus::Generated,
            (Some(_), _) => PinStatus::Set,
        };
        Card { account: self.account.clone(), pin_status, pin_set_at }
    }

    pub(crate) fn next_generation(self) -> Self {
        Self { generation: self.generation.saturating_add(1), ..self }
    }
}

/// A registered card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// The new state.
    pub card: CardState,
    /// Whether the card's controls must follow its new account number, by [`follow_account`].
    pub controls_follow: bool,
}

/// Registers a card, or changes its account number. An absent `account` leaves the registered one.
///
/// # Errors
/// [`Denied::AccountBound`]: the card has a PIN, and the number would change.
pub fn register(
    card: Option<CardState>,
    has_pin: bool,
    account: Option<RegisteredAccount>,
) -> Result<Registered, Denied> {
    let mut card = card.unwrap_or_default();
    let changes = account.is_some() && account != card.account;
    if changes {
        if has_pin {
            return Err(Denied::AccountBound);
        }
        card.account = account;
    }
    let controls_follow = changes && card.opened > 0;
    Ok(Registered { card, controls_follow })
}

/// The control with the new account number of its card; `None` for a spent control, which keeps no number.
pub fn follow_account(control: Control, account: Option<&RegisteredAccount>) -> Option<Control> {
    let is_spent = matches!(control.state, ControlState::Spent(_));
    (!is_spent).then(|| Control { account: account.cloned(), ..control })
}

/// Opens a control with the card's account number and generation; it expires its lifetime after `now`.
///
/// # Errors
/// [`Denied::CardUnknown`], [`Denied::UnregisteredCards`] or [`Denied::Cap`], by the `admission`.
pub fn open(
    card: FoundCard,
    new: NewControl,
    admission: Admission,
    now: UnixMillis,
) -> Result<(CardState, Control), Denied> {
    let mut card = match card {
        FoundCard::Known(card) => card,
        FoundCard::Unregistered { .. } if admission.unknown_cards == UnknownCards::Refuse => {
            return Err(Denied::CardUnknown);
        }
        FoundCard::Unregistered { state: Some(card), .. } => card,
        FoundCard::Unregistered { state: None, of_tenant } => {
            let max = admission.unregistered_cards_per_tenant;
            if of_tenant >= max {
                return Err(Denied::UnregisteredCards { max });
            }
            CardState::default()
        }
    };
    let hour = hour_of(now);
    if card.hour != hour {
        (card.hour, card.opened) = (hour, 0);
    }
    let cap = admission.controls_per_card_per_hour;
    if card.opened >= cap {
        let retry_after = HOUR.saturating_sub(now.since(UnixMillis(hour.saturating_mul(HOUR_MILLISECONDS))));
        return Err(Denied::Cap { cap, retry_after });
    }
    card.opened = card.opened.saturating_add(1);
    let control = Control {
        id: new.id,
        card: new.card,
        account: card.account.clone(),
        scope: new.scope,
        expires_at: now.after(new.lifetime),
        opened_generation: card.generation,
        device_key: new.device_key,
        page: new.page_client.map(|client| PageGrant { client, started_by: None }),
        state: ControlState::Open,
    };
    Ok((card, control))
}

/// Starts the page `id` of a client under a control. The control stays as usable as before: for the page, and for the client
/// that opened the control. Returns `None` if this page started it before: its first answer may have been lost, and nothing
/// changes. `generation` is the card's.
///
/// # Errors
/// [`Denied::NotUsable`]: the control names another client or none, another page started it, it is expired or spent, or a
/// newer PIN of the card closed it. A store returns it too for a control that does not exist.
pub fn start_page(
    control: Control,
    client: PageClient,
    id: PageId,
    generation: u64,
    now: UnixMillis,
) -> Result<Option<Control>, Denied> {
    control.usable_under(generation, now)?;
    let is_repeat = control.is_started_by(client, id)?;
    let page = Some(PageGrant { client, started_by: Some(id) });
    Ok((!is_repeat).then_some(Control { page, ..control }))
}

/// Whether a store removes the state of a card that was never registered and never had a PIN, by the clock hour of its last
/// control: that hour and the next one are over, and with them every control of the card.
pub fn is_forgotten(hour: u64, now: UnixMillis) -> bool {
    hour_of(now) > hour.saturating_add(1)
}

/// The clock hour of a time: hours since 1970-01-01T00:00:00Z.
fn hour_of(time: UnixMillis) -> u64 {
    time.0 / HOUR_MILLISECONDS
}

// A control that is opened in an hour expires within the next one.
const _: () = assert!(LIFETIME_SECONDS_MAX as u64 <= HOUR.as_secs());

/// A control after a transition.
#[derive(Clone)]
pub struct Advanced {
    /// The new state.
    pub control: Control,
    /// The new state of the card and its PIN record, for [`Transition::Set`].
    pub set: Option<(CardState, StoredPin)>,
}

/// Advances a control. `newest` is the card's PIN record; only [`Transition::View`] compares it.
///
/// # Errors
/// - [`Denied::NotUsable`]: the control is expired or spent, or the card has another generation. A store returns it too
///   for a control that does not exist.
/// - [`Denied::Superseded`]: the transition used a tzpk, PIN record, account number or storage key that was replaced.
/// - [`Denied::StorageKeyInactive`]: the storage key is above the window.
/// - [`Denied::NoTzpk`], [`Denied::OtherScope`]: the transition does not fit the control.
pub fn advance(
    control: Control,
    card: CardState,
    newest: Option<&StoredPin>,
    transition: Transition,
    window: &KeyWindow,
    now: UnixMillis,
) -> Result<Advanced, Denied> {
    let state = next_state(&control, &transition, card.generation, now)?;
    let set = match transition {
        Transition::View { shown } if newest.is_none_or(|newest| newest.record != shown) => {
            return Err(Denied::Superseded);
        }
        Transition::Set { pin, .. } if pin.account != control.account => return Err(Denied::Superseded),
        Transition::Set { pin, .. } => {
            window.check(pin.key)?;
            let set_by = Some(PinOrigin::Control(control.id));
            Some((CardState { set_by, ..card.next_generation() }, pin))
        }
        _ => None,
    };
    Ok(Advanced { control: Control { state, ..control }, set })
}

/// Confirms a retry of the block that set the PIN under this control. The generation of the card rises, so that a set
/// under a control opened earlier comes too late.
///
/// # Errors
/// [`Denied::NotUsable`]: the PIN of this control does not stand any more, another block set it, or
/// [`RETRY_GRACE`](crate::control::RETRY_GRACE) is over.
pub fn confirm_retry(
    control: &Control,
    card: CardState,
    retry: &RetryTag,
    now: UnixMillis,
) -> Result<CardState, Denied> {
    let set_by = match card.set_by {
        Some(PinOrigin::Control(id)) => Some(id),
        _ => None,
    };
    control.confirm_retry(retry, set_by, now)?;
    Ok(card.next_generation())
}

/// The re-encrypted record, where the record that was decrypted still stands and the window admits the new key.
pub fn reencrypt(newest: StoredPin, reencrypted: ReencryptedPin, window: &KeyWindow) -> Option<StoredPin> {
    let stands = newest.record == reencrypted.before && window.admit(reencrypted.key);
    stands.then_some(StoredPin { record: reencrypted.after, key: reencrypted.key, ..newest })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::card::{CardKey, PlasticId, Tenant};
    use crate::control::{Scope, SealedTzpk, Spent};
    use crate::storage_key::{MinKeyVersions, RecordKey, StorageKeyKind};

    const NOW: UnixMillis = UnixMillis(1_000);
    const LIFETIME: Duration = Duration::from_secs(30);
    const GENEROUS: Admission = Admission {
        controls_per_card_per_hour: 1_000,
        unknown_cards: UnknownCards::Accept,
        unregistered_cards_per_tenant: 1_000,
    };

    fn found(card: Option<CardState>) -> FoundCard {
        card.map_or(FoundCard::Unregistered { state: None, of_tenant: 0 }, FoundCard::Known)
    }

    fn card_key() -> CardKey {
        CardKey { tenant: Tenant::parse("bank").unwrap(), plastic: PlasticId::parse("1").unwrap() }
    }

    fn new_control(scope: Scope) -> NewControl {
        NewControl {
            id: ControlId::random(),
            card: card_key(),
            scope,
            lifetime: LIFETIME,
            device_key: None,
            page_client: None,
        }
    }

    fn account(n: u8) -> Option<RegisteredAccount> {
        Some(RegisteredAccount { sealed: [n; 30].into(), masked: "411111******1111".into() })
    }

    fn tzpk() -> SealedTzpk {
        SealedTzpk([1; 48].into())
    }

    /// A PIN under version `version` of the storage key.
    fn pin(n: u8, version: u16) -> StoredPin {
        StoredPin { record: [n; 38].into(), key: RecordKey { kind: StorageKeyKind::Iso4, version }, account: None }
    }

    fn set(pin: StoredPin) -> Transition {
        Transition::Set { under: tzpk(), retry: RetryTag([pin.record[0]; 16]), pin }
    }

    fn min(iso_4: u16) -> KeyWindow {
        MinKeyVersions { iso_4, ..MinKeyVersions::default() }.into()
    }

    /// A card with an open control that has a tzpk.
    fn keyed(card: Option<CardState>) -> (CardState, Control) {
        let (card, control) = open(found(card), new_control(Scope::SetPin), GENEROUS, NOW).unwrap();
        let key = Transition::Key { tzpk: tzpk(), replaces: None };
        let keyed = advance(control, card.clone(), None, key, &min(0), NOW).unwrap();
        (card, keyed.control)
    }

    #[test]
    fn a_control_has_the_account_and_generation_of_its_card() {
        let card = CardState { account: account(1), generation: 4, ..CardState::default() };
        let (card, control) = open(FoundCard::Known(card), new_control(Scope::SetPin), GENEROUS, NOW).unwrap();
        assert_eq!((control.account, control.opened_generation), (account(1), 4));
        assert_eq!((control.expires_at, card.opened), (UnixMillis(31_000), 1));
    }

    #[test]
    fn the_cap_of_a_card_counts_one_clock_hour() {
        let admission = Admission { controls_per_card_per_hour: 2, ..GENEROUS };
        let open_at = |card, now| open(found(card), new_control(Scope::ViewPin), admission, UnixMillis(now));
        let (card, _) = open_at(None, 3_599_998).unwrap();
        let (card, _) = open_at(Some(card), 3_599_999).unwrap();
        assert_eq!(
            open_at(Some(card.clone()), 3_599_999).err(),
            Some(Denied::Cap { cap: 2, retry_after: Duration::from_millis(1) })
        );
        let (card, _) = open_at(Some(card), 3_600_000).unwrap();
        assert_eq!((card.hour, card.opened), (1, 1));
    }

    #[test]
    fn an_unknown_card_is_refused_where_configured() {
        let strict = Admission { unknown_cards: UnknownCards::Refuse, ..GENEROUS };
        assert_eq!(open(found(None), new_control(Scope::SetPin), strict, NOW).err(), Some(Denied::CardUnknown));
        assert!(open(found(Some(CardState::default())), new_control(Scope::SetPin), strict, NOW).is_ok());
    }

    #[test]
    fn the_unregistered_cards_of_a_tenant_are_limited() {
        let admission = Admission { unregistered_cards_per_tenant: 2, ..GENEROUS };
        let open_one = |card| open(card, new_control(Scope::SetPin), admission, NOW).map(|(card, _)| card.opened);
        let unregistered = |opened: u32, of_tenant| {
            let state = (opened > 0).then(|| CardState { opened, ..CardState::default() });
            FoundCard::Unregistered { state, of_tenant }
        };
        assert_eq!(open_one(unregistered(0, 1)), Ok(1));
        assert_eq!(open_one(unregistered(0, 2)), Err(Denied::UnregisteredCards { max: 2 }));
        assert_eq!(open_one(unregistered(1, 2)), Ok(2), "the store has its state");
        assert_eq!(open_one(FoundCard::Known(CardState::default())), Ok(1));
    }

    #[test]
    fn an_unregistered_card_is_forgotten_after_its_last_control() {
        let opened = UnixMillis(2 * 3_600_000 - 1);
        let longest = Duration::from_secs(LIFETIME_SECONDS_MAX.into());
        assert!(!is_forgotten(1, opened.after(longest)));
        assert!(is_forgotten(1, UnixMillis(3 * 3_600_000)));
    }

    #[test]
    fn a_pin_binds_the_account_number_of_its_card() {
        let Registered { card, controls_follow } = register(None, false, account(1)).unwrap();
        assert!(!controls_follow, "the card never had a control");
        let (card, _) = keyed(Some(card));
        assert!(register(Some(card.clone()), false, account(2)).unwrap().controls_follow);
        assert_eq!(register(Some(card.clone()), true, account(2)), Err(Denied::AccountBound));
        for unchanged in [account(1), None] {
            let registered = register(Some(card.clone()), true, unchanged).unwrap();
            assert_eq!(registered, Registered { card: card.clone(), controls_follow: false });
        }
    }

    #[test]
    fn an_open_control_follows_the_account_number_and_a_spent_one_does_not() {
        let (card, control) = keyed(None);
        let followed = follow_account(control.clone(), account(2).as_ref()).unwrap();
        let bound_to_none = advance(followed.clone(), card.clone(), None, set(pin(1, 1)), &min(0), NOW);
        assert_eq!(bound_to_none.err(), Some(Denied::Superseded));
        let bound = StoredPin { account: account(2), ..pin(1, 1) };
        assert!(advance(followed, card.clone(), None, set(bound), &min(0), NOW).is_ok());
        let spent = advance(control, card, None, set(pin(1, 1)), &min(0), NOW).unwrap().control;
        assert!(follow_account(spent, account(2).as_ref()).is_none());
    }

    fn client(name: &str) -> PageClient {
        PageClient::of_name(name).unwrap()
    }

    /// The control with the right of the pages of the client `wallet`.
    fn for_pages(control: Control) -> Control {
        Control { page: Some(PageGrant { client: client("wallet"), started_by: None }), ..control }
    }

    #[test]
    fn one_page_of_the_named_client_starts_a_control_and_may_repeat() {
        let (card, control) = keyed(None);
        let (control, wallet, page, other) = (for_pages(control), client("wallet"), PageId::random(), PageId::random());
        let start = |control: &Control, client, page, now| {
            start_page(control.clone(), client, page, card.generation, now).map(|started| started.map(|now| now.page))
        };
        let grant = |started_by| Some(PageGrant { client: wallet, started_by });
        assert_eq!(start(&control, client("other"), page, NOW), Err(Denied::NotUsable));
        assert_eq!(start(&control, wallet, page, control.expires_at), Err(Denied::NotUsable));
        assert_eq!(start(&control, wallet, page, NOW), Ok(Some(grant(Some(page)))));
        let started = start_page(control.clone(), wallet, page, card.generation, NOW).unwrap().unwrap();
        assert_eq!(start(&started, wallet, page, NOW), Ok(None), "a repeat changes nothing");
        for (client, page) in [(wallet, other), (client("other"), page)] {
            assert_eq!(start(&started, client, page, NOW), Err(Denied::NotUsable));
        }
        let spent = advance(started, card.clone(), None, set(pin(1, 1)), &min(0), NOW).unwrap();
        let generation = spent.set.unwrap().0.generation;
        for control in [spent.control, control] {
            let late = start_page(control, wallet, page, generation, NOW);
            assert_eq!(late.err(), Some(Denied::NotUsable), "spent, or closed by a newer PIN");
        }
    }

    #[test]
    fn a_control_without_a_page_client_is_started_by_no_page() {
        let (card, control) = keyed(None);
        let started = start_page(control, client("wallet"), PageId::random(), card.generation, NOW);
        assert_eq!(started.err(), Some(Denied::NotUsable));
    }

    #[test]
    fn a_page_is_admitted_by_tenant_then_client_then_id() {
        let (bank, other) = (card_key().tenant, Tenant::parse("other").unwrap());
        let (control, wallet, page) = (for_pages(keyed(None).1), client("wallet"), PageId::random());
        assert_eq!(control.admit_page(&bank, wallet, page, NOW), Ok(()));
        assert_eq!(control.admit_page(&other, client("other"), page, NOW), Err(Denied::OtherTenant));
        assert_eq!(control.admit_page(&bank, client("other"), page, NOW), Err(Denied::NotUsable));
        assert_eq!(control.admit_page(&other, wallet, page, control.expires_at), Err(Denied::NotUsable));
        let page_of_wallet = Some(PageGrant { client: wallet, started_by: Some(page) });
        let started = Control { page: page_of_wallet, ..control };
        assert_eq!(started.admit_page(&bank, wallet, page, NOW), Ok(()));
        assert_eq!(started.admit_page(&bank, wallet, PageId::random(), NOW), Err(Denied::NotUsable));
    }

    #[test]
    fn a_newer_pin_leaves_the_page_of_a_view_alone() {
        let (card, control) = open(found(None), new_control(Scope::ViewPin), GENEROUS, NOW).unwrap();
        let started = start_page(for_pages(control), client("wallet"), PageId::random(), card.generation + 1, NOW);
        assert!(started.unwrap().is_some());
    }

    #[test]
    fn an_opened_control_keeps_the_client_of_its_pages() {
        let new = NewControl { page_client: Some(client("wallet")), ..new_control(Scope::SetPin) };
        let (_, control) = open(found(None), new, GENEROUS, NOW).unwrap();
        assert_eq!(control.page, Some(PageGrant { client: client("wallet"), started_by: None }));
    }

    #[test]
    fn a_set_raises_the_generation_and_names_its_control() {
        let (card, control) = keyed(None);
        let Advanced { control, set } = advance(control, card, None, set(pin(1, 2)), &min(2), NOW).unwrap();
        let (card, stored) = set.unwrap();
        assert_eq!((card.generation, card.set_by), (1, Some(PinOrigin::Control(control.id))));
        assert_eq!(stored, pin(1, 2));
    }

    #[test]
    fn a_record_under_a_key_below_the_minimum_is_superseded() {
        let (card, control) = keyed(None);
        assert_eq!(advance(control, card, None, set(pin(1, 1)), &min(2), NOW).err(), Some(Denied::Superseded));
    }

    #[test]
    fn a_view_shows_the_newest_record_alone() {
        let (card, control) = open(found(None), new_control(Scope::ViewPin), GENEROUS, NOW).unwrap();
        let view = |newest: Option<StoredPin>| {
            let shown = Transition::View { shown: pin(1, 1).record };
            advance(control.clone(), card.clone(), newest.as_ref(), shown, &min(0), NOW).map(|advanced| advanced.set)
        };
        assert_eq!(view(None), Err(Denied::Superseded));
        assert_eq!(view(Some(pin(2, 1))), Err(Denied::Superseded));
        assert_eq!(view(Some(pin(1, 1))), Ok(None));
    }

    #[test]
    fn a_confirmed_retry_closes_controls_opened_before_it() {
        let (card, control) = keyed(None);
        let first = advance(control, card, None, set(pin(1, 1)), &min(0), NOW).unwrap();
        let (card, second) = keyed(first.set.map(|(card, _)| card));
        let card = confirm_retry(&first.control, card, &RetryTag([1; 16]), NOW).unwrap();
        assert_eq!(card.generation, 2);
        let late = advance(second.clone(), card.clone(), None, set(pin(2, 1)), &min(0), NOW);
        assert_eq!(late.err(), Some(Denied::NotUsable));
        assert_eq!(confirm_retry(&second, card, &RetryTag([2; 16]), NOW), Err(Denied::NotUsable));
    }

    #[test]
    fn a_reencrypted_record_replaces_the_record_it_was_made_of_alone() {
        let bound = StoredPin { account: account(1), ..pin(1, 1) };
        let reencrypted = |before: u8| ReencryptedPin {
            card: card_key(),
            before: [before; 38].into(),
            after: [9; 38].into(),
            key: pin(9, 2).key,
        };
        assert_eq!(reencrypt(bound.clone(), reencrypted(2), &min(0)), None);
        assert_eq!(reencrypt(bound.clone(), reencrypted(1), &min(3)), None);
        assert_eq!(reencrypt(bound, reencrypted(1), &min(2)), Some(StoredPin { account: account(1), ..pin(9, 2) }));
    }

    /// One change of one card, by the number of its control.
    #[derive(Clone, Debug)]
    enum Step {
        Open,
        Set { control: usize, version: u16 },
        Retry { control: usize },
        Malformed { control: usize },
        Register(u8),
        Reencrypt { version: u16 },
        RaiseMin(u16),
        Wait { seconds: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        let (control, version) = (0..6usize, 1..4u16);
        prop_oneof![
            Just(Step::Open),
            (control.clone(), version.clone()).prop_map(|(control, version)| Step::Set { control, version }),
            control.clone().prop_map(|control| Step::Retry { control }),
            control.prop_map(|control| Step::Malformed { control }),
            (1..3u8).prop_map(Step::Register),
            version.clone().prop_map(|version| Step::Reencrypt { version }),
            version.prop_map(Step::RaiseMin),
            (1..20u64).prop_map(|seconds| Step::Wait { seconds }),
        ]
    }

    proptest! {
        /// The simplest store there can be, over any sequence of changes to one card.
        #[test]
        fn no_sequence_of_changes_breaks_the_rules(steps in prop::collection::vec(step(), 1..60)) {
            let (mut card, mut stored, mut now) = (None::<CardState>, None::<StoredPin>, NOW);
            let (mut controls, mut lowest, mut sets) = (Vec::<Control>::new(), 0, HashMap::<_, u32>::new());
            for (number, step) in steps.into_iter().enumerate() {
                let (before, n) = (card.clone().unwrap_or_default(), number as u8);
                match step {
                    Step::Open => {
                        let (opened, control) = keyed(card.take());
                        card = Some(opened);
                        let expires_at = now.after(LIFETIME);
                        controls.push(Control { expires_at, ..control });
                    }
                    Step::Set { control, version } => {
                        let Some(control) = controls.get_mut(control) else { continue };
                        let pin = StoredPin { account: before.account.clone(), ..pin(n, version) };
                        let at_rest = stored.as_ref();
                        let outcome = advance(control.clone(), before.clone(), at_rest, set(pin), &min(lowest), now);
                        let Ok(Advanced { control: spent, set: Some((after, pin)) }) = outcome else { continue };
                        *sets.entry(control.id).or_default() += 1;
                        prop_assert_eq!(sets[&control.id], 1, "one PIN a control");
                        prop_assert!(now < control.expires_at && version >= lowest);
                        prop_assert_eq!(control.opened_generation, before.generation);
                        prop_assert_eq!(after.generation, before.generation + 1);
                        (*control, card, stored) = (spent, Some(after), Some(pin));
                    }
                    Step::Retry { control } => {
                        let Some(control) = controls.get(control) else { continue };
                        let ControlState::Spent(Spent::Set(tag)) = control.state else { continue };
                        let Ok(after) = confirm_retry(control, before.clone(), &tag, now) else { continue };
                        prop_assert_eq!(before.set_by, Some(PinOrigin::Control(control.id)), "its PIN stands");
                        prop_assert_eq!(after.generation, before.generation + 1);
                        card = Some(after);
                    }
                    Step::Malformed { control } => {
                        let Some(control) = controls.get_mut(control) else { continue };
                        let malformed = Transition::Malformed { under: tzpk() };
                        let outcome = advance(control.clone(), before, None, malformed, &min(lowest), now);
                        let Ok(advanced) = outcome else { continue };
                        prop_assert!(advanced.set.is_none());
                        *control = advanced.control;
                    }
                    Step::Register(number) => match register(card.clone(), stored.is_some(), account(number)) {
                        Ok(Registered { card: after, controls_follow }) => {
                            if controls_follow {
                                for control in &mut controls {
                                    let followed = follow_account(control.clone(), after.account.as_ref());
                                    *control = followed.unwrap_or_else(|| control.clone());
                                }
                            }
                            prop_assert_eq!(after.generation, before.generation);
                            card = Some(after);
                        }
                        Err(denied) => prop_assert!(denied == Denied::AccountBound && stored.is_some()),
                    },
                    Step::Reencrypt { version } => {
                        let Some(newest) = stored.clone() else { continue };
                        let reencrypted = ReencryptedPin {
                            card: card_key(),
                            before: newest.record.clone(),
                            after: [n; 38].into(),
                            key: pin(n, version).key,
                        };
                        let account = newest.account.clone();
                        let Some(after) = reencrypt(newest, reencrypted, &min(lowest)) else { continue };
                        prop_assert!(version >= lowest && after.account == account);
                        stored = Some(after);
                    }
                    Step::RaiseMin(version) => lowest = lowest.max(version),
                    Step::Wait { seconds } => now = now.after(Duration::from_secs(seconds)),
                }
                let pin_account = stored.as_ref().map(|pin| pin.account.clone());
                let card_account = card.as_ref().map(|card| card.account.clone());
                prop_assert!(pin_account.is_none() || pin_account == card_account, "the PIN's account is the card's");
            }
        }
    }
}
