//! The rules of the changes that use a PIN, or set one without a control. Like [`rules`](crate::rules), a store calls them on
//! the newest rows. A rule that takes a [`KeyWindow`] denies a record under a storage key above the window by
//! [`Denied::StorageKeyInactive`].

use crate::card::{CardKey, ReencryptedPin, RegisteredAccount, StoredPin};
use crate::control::{Control, ControlState, Denied, RetryTag, SealedTzpk, Transition, next_state, state_after_change};
use crate::rules::{self, CardState, FoundCard, PinOrigin, Registered, UnknownCards};
use crate::storage_key::KeyWindow;
use crate::time::UnixMillis;
use crate::tries::{ChangeVerdict, Compared, ReservedTry, TryState, Verdict};

/// Sets the PIN of a block under a zone key; `None` where this block set the PIN that stands, and nothing changes.
///
/// # Errors
/// - [`Denied::ReplacedBlock`]: the block is one of those that the tags of the card name, and its PIN was replaced.
/// - [`Denied::CardUnknown`]: the card was never registered, and `unknown` refuses such cards.
/// - [`Denied::Superseded`]: the record is for another account number, or under a storage key below the window.
pub fn set_by_zone(
    card: FoundCard,
    pin: &StoredPin,
    tag: &RetryTag,
    unknown: UnknownCards,
    window: &KeyWindow,
) -> Result<Option<CardState>, Denied> {
    let card = match card {
        FoundCard::Known(card) => card,
        FoundCard::Unregistered { .. } if unknown == UnknownCards::Refuse => return Err(Denied::CardUnknown),
        FoundCard::Unregistered { state, .. } => state.unwrap_or_default(),
    };
    if card.set_by == Some(PinOrigin::Zone) && card.zone_tags.is_newest(tag) {
        return Ok(None);
    }
    if card.zone_tags.contain(tag) {
        return Err(Denied::ReplacedBlock);
    }
    let zone_tags = card.zone_tags.with(*tag);
    Ok(Some(CardState { zone_tags, ..with_new_pin(card, pin, PinOrigin::Zone, window)? }))
}

/// Sets a PIN that the boundary generated.
///
/// # Errors
/// [`Denied::CardUnknown`], or [`Denied::Superseded`]: the record is for another account number, or under a storage key
/// outside the window.
pub fn generate(card: Option<CardState>, pin: &StoredPin, window: &KeyWindow) -> Result<CardState, Denied> {
    with_new_pin(card.ok_or(Denied::CardUnknown)?, pin, PinOrigin::Generated, window)
}

/// Checks that the record from which a block or value was made still stands.
///
/// # Errors
/// [`Denied::PinNotSet`], or [`Denied::Superseded`]: another record stands.
pub fn give(newest: Option<&StoredPin>, shown: &[u8]) -> Result<(), Denied> {
    match newest {
        None => Err(Denied::PinNotSet),
        Some(newest) if *newest.record != *shown => Err(Denied::Superseded),
        Some(_) => Ok(()),
    }
}

/// Reserves a try. It is used until a right PIN or a reset forgives it. The tries of a card are against one reference: who
/// knows a PIN and its verification value could otherwise forgive guesses at the record without end.
///
/// # Errors
/// [`Denied::CardUnknown`], [`Denied::PinNotSet`] where the card has no record to compare with, [`Denied::PinStored`] where
/// the card has a record and a value is to be compared, or [`Denied::PinLocked`].
pub fn reserve_try(
    card: Option<CardState>,
    newest: Option<StoredPin>,
    compared: Compared,
    limit: u32,
) -> Result<(CardState, ReservedTry), Denied> {
    let card = card.ok_or(Denied::CardUnknown)?;
    let pin = match (compared, newest) {
        (Compared::Record, newest) => Some(newest.ok_or(Denied::PinNotSet)?),
        (Compared::Value, None) => None,
        (Compared::Value, Some(_)) => return Err(Denied::PinStored),
    };
    let state = card.tries.reserve(limit).ok_or(Denied::PinLocked)?;
    let reserved = ReservedTry {
        number: state.tries.reserved,
        tries_left: state.tries.left(limit),
        generation: card.generation,
        pin,
        account: card.account.clone(),
    };
    Ok((CardState { tries: state, ..card }, reserved))
}

/// Settles a try to verify the PIN. Returns the one-way record that replaces `newest`, where the verdict has one and the
/// compared record still stands.
///
/// # Errors
/// [`Denied::TrySettled`].
pub fn settle_try(
    card: CardState,
    newest: Option<StoredPin>,
    number: u64,
    verdict: Verdict,
    window: &KeyWindow,
) -> Result<(CardState, Option<StoredPin>), Denied> {
    let is_right = matches!(verdict, Verdict::Right { .. });
    let card = settled(card, number, is_right)?;
    let moved = match verdict {
        Verdict::Right { moved: Some(moved) } => newest.and_then(|newest| rules::reencrypt(newest, moved, window)),
        _ => None,
    };
    Ok((card, moved))
}

/// A settled try to change the PIN.
#[derive(Clone)]
pub struct SettledChange {
    /// The new state of the card.
    pub card: CardState,
    /// The record of the new PIN, where the PIN changed.
    pub pin: Option<StoredPin>,
    /// The new state of the caller's control, where it changed.
    pub control: Option<Control>,
}

/// Settles a try to change the PIN. `control` is the caller's control and the tzpk that encrypted its blocks. A changed PIN
/// or a malformed block spends the control, a PIN that breaks the policy counts as in [`advance`](rules::advance), and a
/// wrong PIN leaves it.
///
/// # Errors
/// - [`Denied::TrySettled`].
/// - The try stays reserved, and may be settled by [`settle_try`], where a right verdict gets [`Denied::Superseded`]: the
///   card has a newer PIN, another account number or tzpk, or the record is under a storage key below the window; or
///   [`Denied::NotUsable`], [`Denied::OtherScope`] or [`Denied::NoTzpk`], by the control.
pub fn settle_change(
    card: CardState,
    control: Option<(Control, SealedTzpk)>,
    number: u64,
    verdict: ChangeVerdict,
    window: &KeyWindow,
    now: UnixMillis,
) -> Result<SettledChange, Denied> {
    let is_right = matches!(verdict, ChangeVerdict::Right { .. } | ChangeVerdict::RefusedPin);
    let card = settled(card, number, is_right)?;
    let advanced = |control: Control, transition: Transition| {
        // The verdict stands where the control is over: its expiry hides no wrong or malformed block.
        let state = next_state(&control, &transition, card.generation, now).ok()?;
        Some(Control { state, ..control })
    };
    match verdict {
        ChangeVerdict::Right { generation, pin } => {
            if card.generation != generation {
                return Err(Denied::Superseded);
            }
            let spent: Option<Result<_, Denied>> = control.map(|(control, under)| {
                let state: ControlState = state_after_change(&control, &under, generation, now)?;
                Ok(Control { state, ..control })
            });
            let control = spent.transpose()?;
            Ok(SettledChange { card: with_new_pin(card, &pin, PinOrigin::Change, window)?, pin: Some(pin), control })
        }
        ChangeVerdict::Wrong => Ok(SettledChange { card, pin: None, control: None }),
        ChangeVerdict::Malformed => {
            let control = control.and_then(|(control, under)| advanced(control, Transition::Malformed { under }));
            Ok(SettledChange { card, pin: None, control })
        }
        ChangeVerdict::RefusedPin => {
            let control = control.and_then(|(control, under)| advanced(control, Transition::RefusedPin { under }));
            Ok(SettledChange { card, pin: None, control })
        }
    }
}

/// Forgives the tries of a card up to this number.
///
/// # Errors
/// [`Denied::CardUnknown`], or [`Denied::TryUnknown`] for a number that no caller has seen.
pub fn reset_tries(card: Option<CardState>, up_to: u64) -> Result<CardState, Denied> {
    let card = card.ok_or(Denied::CardUnknown)?;
    if up_to > card.tries.tries.reserved {
        return Err(Denied::TryUnknown);
    }
    Ok(CardState { tries: card.tries.forgive(up_to), ..card })
}

/// Replaces the account number of a card, with the record that was re-encrypted for the new number. Generation, tries and
/// tags stay. Nothing changes where the card has the number.
///
/// # Errors
/// [`Denied::Superseded`]: the record that was re-encrypted does not stand, the card has a record and none was
/// re-encrypted, or the new record is under a storage key below the window.
pub fn replace_account(
    card: Option<CardState>,
    newest: Option<StoredPin>,
    account: RegisteredAccount,
    reencrypted: Option<ReencryptedPin>,
    window: &KeyWindow,
) -> Result<(Registered, Option<StoredPin>), Denied> {
    let pin = match (newest, reencrypted) {
        _ if card.as_ref().is_some_and(|card| card.account.as_ref() == Some(&account)) => None,
        (None, None) => None,
        // A record that is not bound to the account number stays as it is, under whichever key.
        (Some(newest), Some(same)) if newest.record == same.before && same.before == same.after => Some(newest),
        (Some(newest), Some(reencrypted)) => {
            window.check(reencrypted.key)?;
            Some(rules::reencrypt(newest, reencrypted, window).ok_or(Denied::Superseded)?)
        }
        (Some(_), None) | (None, Some(_)) => return Err(Denied::Superseded),
    };
    let registered = rules::register(card, false, Some(account.clone()))?;
    Ok((registered, pin.map(|pin| StoredPin { account: Some(account), ..pin })))
}

/// A card of a transfer, by the rows of a store.
#[derive(Clone, Debug)]
pub struct TransferCard {
    /// The name of the card.
    pub card: CardKey,
    /// The state of the card; `None` for a card that was never registered and never had a PIN.
    pub state: Option<CardState>,
    /// The PIN record of the card.
    pub pin: Option<StoredPin>,
}

/// Gives a card the PIN of its predecessor, which keeps it; `None` where this transfer was made before, and nothing changes.
/// The boundary re-encrypts the record, and compares the full account numbers. The tries of the new card are forgiven.
///
/// # Errors
/// - [`Denied::CardUnknown`], [`Denied::PinNotSet`]: of the predecessor, or the new card is unknown.
/// - [`Denied::OtherAccount`]: the tenants or masked account numbers differ, or a card has no account number.
/// - [`Denied::Superseded`]: the predecessor has another record, the new record is for another account number, or it is
///   under a storage key below the window.
pub fn transfer(
    from: TransferCard,
    before: &[u8],
    to: TransferCard,
    pin: &StoredPin,
    window: &KeyWindow,
) -> Result<Option<CardState>, Denied> {
    let (Some(state), Some(card)) = (from.state, to.state) else { return Err(Denied::CardUnknown) };
    let masked = |card: &CardState| card.account.as_ref().map(|account| account.masked.clone());
    let is_same_account = masked(&card).is_some() && masked(&card) == masked(&state);
    if from.card.tenant != to.card.tenant || from.card == to.card || !is_same_account {
        return Err(Denied::OtherAccount);
    }
    give(from.pin.as_ref(), before)?;
    let origin = PinOrigin::Transfer { from: from.card.plastic, generation: state.generation };
    if card.set_by == Some(origin) && to.pin.is_some() {
        return Ok(None);
    }
    let card = with_new_pin(card, pin, origin, window)?;
    let reserved = card.tries.tries.reserved;
    Ok(Some(CardState { tries: card.tries.forgive(reserved), ..card }))
}

fn settled(card: CardState, number: u64, is_right: bool) -> Result<CardState, Denied> {
    let tries: TryState = card.tries.settle(number, is_right).ok_or(Denied::TrySettled)?;
    Ok(CardState { tries, ..card })
}

/// The card with another PIN: its generation rises, so that every open control to set a PIN is over.
fn with_new_pin(card: CardState, pin: &StoredPin, origin: PinOrigin, window: &KeyWindow) -> Result<CardState, Denied> {
    if pin.account != card.account {
        return Err(Denied::Superseded);
    }
    window.check(pin.key)?;
    Ok(CardState { set_by: Some(origin), ..card.next_generation() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::card::{PinStatus, PlasticId, Tenant};
    use crate::control::{ControlId, NewControl, REFUSED_PINS_MAX, Scope, Spent};
    use crate::rules::{Admission, advance, open};
    use crate::storage_key::{MinKeyVersions, RecordKey, StorageKeyKind};
    use crate::tries::Tries;

    const NOW: UnixMillis = UnixMillis(1_000);

    fn card_key(tenant: &str, plastic: &str) -> CardKey {
        CardKey { tenant: Tenant::parse(tenant).unwrap(), plastic: PlasticId::parse(plastic).unwrap() }
    }

    fn account(n: u8) -> RegisteredAccount {
        RegisteredAccount { sealed: [n; 30].into(), masked: format!("411111******000{n}").into() }
    }

    fn pin(n: u8, version: u16) -> StoredPin {
        StoredPin { record: [n; 38].into(), key: RecordKey { kind: StorageKeyKind::Iso4, version }, account: None }
    }

    fn tag(n: u8) -> RetryTag {
        RetryTag([n; 16])
    }

    fn tzpk(n: u8) -> SealedTzpk {
        SealedTzpk([n; 48].into())
    }

    fn min(iso_4: u16) -> KeyWindow {
        MinKeyVersions { iso_4, ..MinKeyVersions::default() }.into()
    }

    fn reencrypted(before: u8, after: u8, version: u16) -> ReencryptedPin {
        let (before, after, key) = ([before; 38].into(), [after; 38].into(), pin(after, version).key);
        ReencryptedPin { card: card_key("bank", "1"), before, after, key }
    }

    /// A card with the PIN of record 1, under a control to set a PIN that has a tzpk.
    fn card() -> (CardState, Control) {
        let lifetime = Duration::from_secs(30);
        let id = ControlId::random();
        let (card, scope) = (card_key("bank", "1"), Scope::SetPin);
        let new = NewControl { id, card, scope, lifetime, device_key: None, page_client: None };
        let admission = Admission {
            controls_per_card_per_hour: 1,
            unknown_cards: UnknownCards::Refuse,
            unregistered_cards_per_tenant: 0,
        };
        let set_by = Some(PinOrigin::Zone);
        let card = CardState { generation: 4, set_by, ..CardState::default() };
        let (card, control) = open(FoundCard::Known(card), new, admission, NOW).unwrap();
        let key = Transition::Key { tzpk: tzpk(1), replaces: None };
        let control = advance(control, card.clone(), None, key, &min(0), NOW).unwrap().control;
        (card, control)
    }

    fn set_zone(card: CardState, n: u8) -> Result<Option<CardState>, Denied> {
        set_by_zone(FoundCard::Known(card), &pin(n, 1), &tag(n), UnknownCards::Refuse, &min(0))
    }

    #[test]
    fn the_current_zone_block_changes_nothing_and_the_eight_before_it_are_refused() {
        let mut card = CardState::default();
        for n in 1..=10 {
            card = set_zone(card, n).unwrap().unwrap();
            assert_eq!((card.generation, card.set_by), (u64::from(n), Some(PinOrigin::Zone)));
        }
        assert_eq!(set_zone(card.clone(), 10), Ok(None));
        for replaced in 2..=9 {
            assert_eq!(set_zone(card.clone(), replaced), Err(Denied::ReplacedBlock), "{replaced}");
        }
        assert!(set_zone(card.clone(), 1).unwrap().is_some(), "the tag is not kept");
        let later = CardState { set_by: Some(PinOrigin::Change), ..card };
        assert_eq!(set_zone(later, 10), Err(Denied::ReplacedBlock), "its PIN was replaced");
    }

    #[test]
    fn a_zone_block_closes_open_controls_and_leaves_the_tries() {
        let (card, control) = card();
        let (card, _) = reserve_try(Some(card), Some(pin(1, 1)), Compared::Record, 3).unwrap();
        let set = set_zone(card.clone(), 2).unwrap().unwrap();
        assert_eq!(set.tries, card.tries);
        let late = Transition::Malformed { under: tzpk(1) };
        assert_eq!(advance(control, set, None, late, &min(0), NOW).err(), Some(Denied::NotUsable));
    }

    #[test]
    fn an_unknown_card_gets_its_pin_by_zone_where_configured() {
        let set = |unknown| {
            let unregistered = FoundCard::Unregistered { state: None, of_tenant: 9 };
            set_by_zone(unregistered, &pin(1, 1), &tag(1), unknown, &min(0))
        };
        assert_eq!(set(UnknownCards::Refuse), Err(Denied::CardUnknown));
        assert_eq!(set(UnknownCards::Accept).unwrap().unwrap().generation, 1);
    }

    #[test]
    fn a_new_record_is_for_the_cards_account_under_a_key_not_below_the_minimum() {
        let registered = CardState { account: Some(account(1)), ..CardState::default() };
        let other_account = StoredPin { account: Some(account(2)), ..pin(1, 1) };
        for (card, pin, lowest) in
            [(registered.clone(), other_account, 0), (registered, pin(1, 1), 0), (CardState::default(), pin(1, 1), 2)]
        {
            assert_eq!(generate(Some(card.clone()), &pin, &min(lowest)), Err(Denied::Superseded));
            let found = FoundCard::Known(card);
            let set = set_by_zone(found, &pin, &tag(1), UnknownCards::Accept, &min(lowest));
            assert_eq!(set, Err(Denied::Superseded));
        }
    }

    #[test]
    fn a_generated_pin_has_the_status_d_until_one_is_set() {
        let status = |card: &CardState| card.card(Some(NOW)).pin_status;
        let generated = generate(Some(CardState::default()), &pin(1, 1), &min(0)).unwrap();
        assert_eq!((status(&generated), generated.generation), (PinStatus::Generated, 1));
        assert_eq!(generated.card(None).pin_status, PinStatus::Waiting);
        assert_eq!(status(&set_zone(generated, 2).unwrap().unwrap()), PinStatus::Set);
        assert_eq!(generate(None, &pin(1, 1), &min(0)), Err(Denied::CardUnknown));
    }

    #[test]
    fn a_pin_is_given_while_its_record_stands() {
        assert_eq!(give(None, &[1; 38]), Err(Denied::PinNotSet));
        assert_eq!(give(Some(&pin(2, 1)), &[1; 38]), Err(Denied::Superseded));
        assert_eq!(give(Some(&pin(1, 1)), &[1; 38]), Ok(()));
    }

    #[test]
    fn a_try_needs_a_known_card_with_a_record_and_a_try_left() {
        let reserve = |card, newest, compared| reserve_try(card, newest, compared, 1).map(|(card, _)| card);
        assert_eq!(reserve(None, None, Compared::Value), Err(Denied::CardUnknown));
        let known = Some(CardState { generation: 7, ..CardState::default() });
        assert_eq!(reserve(known.clone(), None, Compared::Record), Err(Denied::PinNotSet));
        assert_eq!(reserve(known.clone(), Some(pin(1, 1)), Compared::Value), Err(Denied::PinStored));
        let by_value = reserve(known.clone(), None, Compared::Value).unwrap();
        assert_eq!(by_value.tries.tries, Tries { reserved: 1, forgiven: 0 });
        let (card, reserved) = reserve_try(known, Some(pin(1, 1)), Compared::Record, 1).unwrap();
        assert_eq!((reserved.number, reserved.tries_left, reserved.generation), (1, 0, 7));
        assert_eq!(reserved.pin, Some(pin(1, 1)));
        assert_eq!(reserve(Some(card), Some(pin(1, 1)), Compared::Record), Err(Denied::PinLocked));
    }

    /// The card with a reserved try.
    fn tried(card: CardState) -> CardState {
        reserve_try(Some(card), Some(pin(1, 1)), Compared::Record, 9).unwrap().0
    }

    #[test]
    fn a_right_verdict_moves_the_compared_record_and_no_newer_one() {
        let card = tried(CardState::default());
        let verify = |newest: u8, lowest| {
            let moved = Some(reencrypted(1, 9, 2));
            settle_try(card.clone(), Some(pin(newest, 1)), 1, Verdict::Right { moved }, &min(lowest))
        };
        let (settled, moved) = verify(1, 2).unwrap();
        assert_eq!((settled.tries.tries.used(), settled.generation, moved), (0, 0, Some(pin(9, 2))));
        assert_eq!(verify(2, 2).unwrap().1, None, "a newer PIN");
        assert_eq!(verify(1, 3).unwrap().1, None, "below the minimum");
        for verdict in [Verdict::Wrong, Verdict::Malformed] {
            let (settled, moved) = settle_try(card.clone(), Some(pin(1, 1)), 1, verdict, &min(0)).unwrap();
            assert_eq!((settled.tries.tries.used(), moved), (1, None));
            let again = settle_try(settled, None, 1, Verdict::Right { moved: None }, &min(0));
            assert_eq!(again, Err(Denied::TrySettled));
        }
    }

    fn right(generation: u64, pin: StoredPin) -> ChangeVerdict {
        ChangeVerdict::Right { generation, pin }
    }

    #[test]
    fn a_changed_pin_needs_the_generation_of_its_try() {
        let card = tried(CardState { generation: 4, ..CardState::default() });
        let change = |card: &CardState, verdict| settle_change(card.clone(), None, 1, verdict, &min(2), NOW);
        let changed = change(&card, right(4, pin(2, 2))).unwrap();
        assert_eq!((changed.card.generation, changed.card.set_by), (5, Some(PinOrigin::Change)));
        assert_eq!((changed.pin, changed.card.tries.tries.used()), (Some(pin(2, 2)), 0));
        assert_eq!(change(&changed.card, right(5, pin(3, 2))).err(), Some(Denied::TrySettled));
        let newer = CardState { generation: 5, ..card.clone() };
        for (card, pin) in [(&newer, pin(2, 2)), (&card, pin(2, 1))] {
            assert_eq!(change(card, right(4, pin)).err(), Some(Denied::Superseded));
        }
        let bound = StoredPin { account: Some(account(1)), ..pin(2, 2) };
        assert_eq!(change(&card, right(4, bound)).err(), Some(Denied::Superseded));
    }

    #[test]
    fn a_change_that_is_not_right_writes_nothing_and_only_a_right_old_pin_forgives() {
        let card = tried(CardState { generation: 4, ..CardState::default() });
        for (verdict, used) in
            [(ChangeVerdict::Wrong, 1), (ChangeVerdict::Malformed, 1), (ChangeVerdict::RefusedPin, 0)]
        {
            let settled = settle_change(card.clone(), None, 1, verdict.clone(), &min(0), NOW).unwrap();
            assert_eq!(settled.card.tries.tries.used(), used, "{verdict:?}");
            assert_eq!((settled.pin, settled.card.generation), (None, 4), "{verdict:?}");
        }
    }

    #[test]
    fn a_change_spends_its_control_and_a_wrong_pin_leaves_it() {
        let (card, control) = card();
        let card = (0..9).fold(card, |card, _| tried(card));
        let change = |control: &Control, under: u8, verdict, now| {
            settle_change(card.clone(), Some((control.clone(), tzpk(under))), 1, verdict, &min(0), now)
        };
        let changed = change(&control, 1, right(4, pin(2, 1)), NOW).unwrap().control.unwrap();
        assert!(matches!(changed.state, ControlState::Spent(Spent::Changed)));
        assert_eq!(change(&changed, 1, right(4, pin(3, 1)), NOW).err(), Some(Denied::NotUsable));
        assert_eq!(change(&control, 2, right(4, pin(2, 1)), NOW).err(), Some(Denied::Superseded));
        let late = control.expires_at;
        assert_eq!(change(&control, 1, right(4, pin(2, 1)), late).err(), Some(Denied::NotUsable));
        assert!(change(&control, 1, ChangeVerdict::Wrong, NOW).unwrap().control.is_none());
        let malformed = change(&control, 1, ChangeVerdict::Malformed, NOW).unwrap().control.unwrap();
        assert!(matches!(malformed.state, ControlState::Spent(Spent::Malformed)));
        assert!(change(&control, 1, ChangeVerdict::Malformed, late).unwrap().control.is_none());
        let mut refused = control;
        for _ in 0..=REFUSED_PINS_MAX {
            refused = change(&refused, 1, ChangeVerdict::RefusedPin, NOW).unwrap().control.unwrap();
        }
        assert!(matches!(refused.state, ControlState::Spent(Spent::Refused)));
    }

    #[test]
    fn a_new_account_number_keeps_generation_tries_and_tags() {
        let card = tried(set_zone(CardState { opened: 1, ..CardState::default() }, 1).unwrap().unwrap());
        let replace = |newest, pin, lowest| replace_account(Some(card.clone()), newest, account(1), pin, &min(lowest));
        let (registered, stored) = replace(Some(pin(1, 1)), Some(reencrypted(1, 2, 2)), 2).unwrap();
        assert_eq!(registered.card, CardState { account: Some(account(1)), ..card.clone() });
        assert!(registered.controls_follow);
        assert_eq!(stored, Some(StoredPin { account: Some(account(1)), ..pin(2, 2) }));
        for (newest, pin, lowest) in [
            (Some(pin(3, 1)), Some(reencrypted(1, 2, 2)), 0),
            (Some(pin(1, 1)), Some(reencrypted(1, 2, 2)), 3),
            (Some(pin(1, 1)), None, 0),
            (None, Some(reencrypted(1, 2, 2)), 0),
        ] {
            assert_eq!(replace(newest, pin, lowest), Err(Denied::Superseded));
        }
        let (_, same) = replace(Some(pin(1, 1)), Some(reencrypted(1, 1, 1)), 3).unwrap();
        assert_eq!(same, Some(StoredPin { account: Some(account(1)), ..pin(1, 1) }), "bound to the card alone");
        let again = replace_account(Some(registered.card.clone()), stored, account(1), None, &min(0)).unwrap();
        assert_eq!(again, (Registered { card: registered.card, controls_follow: false }, None));
    }

    #[test]
    fn a_transfer_keeps_tenant_and_account_and_forgives_the_tries_of_the_new_card() {
        let with_account = |card: CardState| Some(CardState { account: Some(account(1)), ..card });
        let bound = |n: u8| StoredPin { account: Some(account(1)), ..pin(n, 1) };
        let from = TransferCard {
            card: card_key("bank", "1"),
            state: with_account(CardState { generation: 3, ..CardState::default() }),
            pin: Some(bound(1)),
        };
        let to = TransferCard {
            card: card_key("bank", "2"),
            state: with_account(tried(CardState { generation: 7, ..CardState::default() })),
            pin: None,
        };
        let move_pin = |from: &TransferCard, before: u8, to: &TransferCard, pin: StoredPin| {
            transfer(from.clone(), &[before; 38], to.clone(), &pin, &min(0))
        };
        let card = move_pin(&from, 1, &to, bound(2)).unwrap().unwrap();
        let origin = PinOrigin::Transfer { from: from.card.plastic, generation: 3 };
        assert_eq!((card.generation, card.set_by), (8, Some(origin)));
        assert_eq!(card.tries.tries, Tries { reserved: 1, forgiven: 1 }, "numbers are not used twice");
        let moved = TransferCard { state: Some(card), pin: Some(bound(2)), ..to.clone() };
        assert_eq!(move_pin(&from, 1, &moved, bound(2)), Ok(None), "made before");
        let newer = with_account(CardState { generation: 4, ..CardState::default() });
        let again = TransferCard { state: newer, ..from.clone() };
        assert!(move_pin(&again, 1, &moved, bound(3)).unwrap().is_some(), "the predecessor has another PIN");

        let denied = |from: TransferCard, to: TransferCard| move_pin(&from, 1, &to, bound(2)).err();
        let elsewhere = TransferCard { card: card_key("other", "2"), ..to.clone() };
        let without_account = TransferCard { state: Some(CardState::default()), ..from.clone() };
        let mut other_account = to.clone();
        other_account.state = other_account.state.map(|card| CardState { account: Some(account(2)), ..card });
        for (from, to) in [
            (from.clone(), elsewhere),
            (without_account.clone(), to.clone()),
            (from.clone(), other_account),
            (without_account, TransferCard { state: Some(CardState::default()), ..to.clone() }),
            (from.clone(), from.clone()),
        ] {
            assert_eq!(denied(from, to), Some(Denied::OtherAccount));
        }
        assert_eq!(denied(TransferCard { pin: None, ..from.clone() }, to.clone()), Some(Denied::PinNotSet));
        assert_eq!(denied(TransferCard { state: None, ..from.clone() }, to.clone()), Some(Denied::CardUnknown));
        assert_eq!(move_pin(&from, 9, &to, bound(2)), Err(Denied::Superseded));
        assert_eq!(move_pin(&from, 1, &to, pin(2, 1)), Err(Denied::Superseded), "for no account number");
    }

    /// One change of one card.
    #[derive(Clone, Debug)]
    enum Step {
        ZoneSet(u8),
        Generate { version: u16 },
        Reserve,
        Settle { number: u64, is_right: bool },
        Change { number: u64, late: bool, version: u16 },
        Reset { up_to: u64 },
        ReplaceAccount { number: u8, version: u16 },
        RaiseMin(u16),
    }

    fn step() -> impl Strategy<Value = Step> {
        let (number, version) = (1..12u64, 1..4u16);
        prop_oneof![
            (1..20u8).prop_map(Step::ZoneSet),
            version.clone().prop_map(|version| Step::Generate { version }),
            Just(Step::Reserve),
            (number.clone(), any::<bool>()).prop_map(|(number, is_right)| Step::Settle { number, is_right }),
            (number.clone(), any::<bool>(), version.clone()).prop_map(|(number, late, version)| Step::Change {
                number,
                late,
                version
            }),
            number.prop_map(|up_to| Step::Reset { up_to }),
            (1..4u8, version.clone()).prop_map(|(number, version)| Step::ReplaceAccount { number, version }),
            version.prop_map(Step::RaiseMin),
        ]
    }

    const LIMIT: u32 = 3;

    proptest! {
        /// The simplest store there can be, over any sequence of changes to one card.
        #[test]
        fn no_sequence_of_changes_breaks_the_rules(steps in prop::collection::vec(step(), 1..60)) {
            let (mut card, mut stored, mut lowest) = (CardState::default(), None::<StoredPin>, 0);
            for (at, step) in steps.into_iter().enumerate() {
                let (before, newest, n) = (card.clone(), stored.clone(), 100 + at as u8);
                let record = |version| StoredPin { account: before.account.clone(), ..pin(n, version) };
                let set = match step {
                    Step::ZoneSet(block) => {
                        let (found, pin) = (FoundCard::Known(before.clone()), record(3));
                        match set_by_zone(found, &pin, &tag(block), UnknownCards::Refuse, &min(lowest)) {
                            Ok(Some(after)) => Some((after, pin)),
                            Ok(None) => {
                                prop_assert!(before.set_by == Some(PinOrigin::Zone), "the block's PIN stands");
                                None
                            }
                            Err(denied) => {
                                prop_assert_eq!(denied, Denied::ReplacedBlock);
                                None
                            }
                        }
                    }
                    Step::Generate { version } => {
                        let made = generate(Some(before.clone()), &record(version), &min(lowest));
                        made.ok().map(|after| (after, record(version)))
                    }
                    Step::Change { number, late, version } => {
                        let generation = before.generation - u64::from(late && before.generation > 0);
                        let verdict = right(generation, record(version));
                        let settled = settle_change(before.clone(), None, number, verdict, &min(lowest), NOW).ok();
                        if let Some(SettledChange { card, .. }) = &settled {
                            prop_assert_eq!(generation, before.generation);
                            prop_assert!(card.tries.tries.forgiven <= before.tries.tries.forgiven.max(number));
                        }
                        settled.and_then(|settled| Some((settled.card, settled.pin?)))
                    }
                    Step::Reserve => {
                        match reserve_try(Some(before.clone()), newest.clone(), Compared::Record, LIMIT) {
                            Ok((after, reserved)) => {
                                prop_assert_eq!(reserved.pin, newest.clone());
                                card = after;
                            }
                            Err(Denied::PinLocked) => prop_assert!(before.tries.tries.used() >= LIMIT.into()),
                            Err(denied) => prop_assert!(denied == Denied::PinNotSet && newest.is_none()),
                        }
                        None
                    }
                    Step::Settle { number, is_right } => {
                        let verdict = if is_right { Verdict::Right { moved: None } } else { Verdict::Wrong };
                        if let Ok((after, _)) = settle_try(before.clone(), newest.clone(), number, verdict, &min(lowest)) {
                            prop_assert!(before.tries.unsettled.contains(&number));
                            card = after;
                        }
                        None
                    }
                    Step::Reset { up_to } => {
                        match reset_tries(Some(before.clone()), up_to) {
                            Ok(after) => card = after,
                            Err(denied) => {
                                prop_assert_eq!(denied, Denied::TryUnknown);
                                prop_assert!(up_to > before.tries.tries.reserved);
                            }
                        }
                        None
                    }
                    Step::ReplaceAccount { number, version } => {
                        let made = newest.as_ref().map(|newest| ReencryptedPin {
                            before: newest.record.clone(),
                            ..reencrypted(0, n, version)
                        });
                        let replaced = replace_account(Some(before.clone()), newest.clone(), account(number), made, &min(lowest));
                        if let Ok((registered, pin)) = replaced {
                            prop_assert_eq!(&registered.card.set_by, &before.set_by);
                            card = registered.card;
                            stored = pin.or(newest.clone());
                        }
                        None
                    }
                    Step::RaiseMin(version) => {
                        lowest = lowest.max(version);
                        None
                    }
                };
                let is_new = set.is_some();
                if let Some((after, pin)) = set {
                    (card, stored) = (after, Some(pin));
                }
                prop_assert_eq!(card.generation, before.generation + u64::from(is_new), "a new PIN alone raises it");
                if stored != newest {
                    prop_assert!(stored.as_ref().is_some_and(|pin| pin.key.version >= lowest), "not below the minimum");
                }
                prop_assert!(stored.as_ref().is_none_or(|pin| pin.account == card.account), "the card's account");
                prop_assert!(card.tries.tries.used() <= LIMIT.into());
                prop_assert!(card.tries.tries.forgiven >= before.tries.tries.forgiven);
                prop_assert!(card.zone_tags.as_slice().len() <= crate::zone_tags::ZONE_TAGS_MAX);
            }
        }
    }
}
