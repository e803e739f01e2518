//! The tests of changes that use a PIN, or set one without a control.

use std::{sync::Arc, time::Duration};

use super::{
    account, card, card_event, close, engine_event, is_not_usable, is_superseded, iso_4_keys, keyed, record,
    reencrypted, reported, set, tzpk,
};
use crate::{ChangeError, ControlUse, Store, StoreError, ZoneSet};
use audit::entry::{Action, Body, CardEvent, Entry, Event, Outcome, TryStamp};
use clock::deadline::{Deadline, under};
use domain::card::{CardKey, PinStatus, RegisteredAccount, StoredPin, Tenant};
use domain::control::{ControlState, Denied, RetryTag, Spent};
use domain::rules::UnknownCards;
use domain::tries::{ChangeVerdict, Compared, ReservedTry, Tries, Verdict};

pub const LIMIT: u32 = 3;

fn denied<T>(answer: Result<T, ChangeError>) -> Option<Denied> {
    match answer {
        Err(ChangeError::Denied(denied)) => Some(denied),
        _ => None,
    }
}

fn bound(number: u8, account: Option<RegisteredAccount>) -> StoredPin {
    StoredPin { account, ..record(number) }
}

/// Sets the PIN [`record`] makes of `number`, by the block of this number.
pub async fn set_by_zone(store: &dyn Store, card: CardKey, number: u8) -> Result<ZoneSet, ChangeError> {
    let (tag, event) = (RetryTag([number; 16]), card_event(Action::SetPinByZone));
    store.set_pin_by_zone(card, record(number), tag, UnknownCards::Accept, event).await
}

pub async fn reserve(store: &dyn Store, card: CardKey) -> Result<ReservedTry, ChangeError> {
    store.reserve_try(card, LIMIT, Compared::Record, card_event(Action::ReserveTry)).await
}

/// Settles a try as right or wrong. Returns the tries that are left.
pub async fn settle(store: &dyn Store, card: CardKey, number: u64, is_right: bool) -> Result<u32, ChangeError> {
    let (verdict, outcome) = match is_right {
        true => (Verdict::Right { moved: None }, Outcome::Done),
        false => (Verdict::Wrong, Outcome::WrongPin),
    };
    store.settle_try(card, number, verdict, LIMIT, Event { outcome, ..card_event(Action::VerifyPin) }).await
}

async fn change(
    store: &dyn Store,
    reserved: &ReservedTry,
    verdict: ChangeVerdict,
    control: Option<ControlUse>,
) -> Result<u32, ChangeError> {
    let event = card_event(Action::ChangePin);
    store.settle_change(card(1), reserved.number, verdict, LIMIT, control, event).await
}

async fn entries(store: &dyn Store) -> Vec<Entry> {
    store.audit(1, 100_000).await.unwrap()
}

async fn tries(store: &dyn Store) -> Tries {
    store.tries(&card(1)).await.unwrap().unwrap()
}

async fn stored(store: &dyn Store, card: CardKey) -> StoredPin {
    store.pin(&card).await.unwrap().unwrap()
}

/// The tries of a chain with one card: each reservation has the next number, and no more than `limit` are used.
///
/// # Panics
/// The chain allows more tries than the limit, or settles a try twice.
pub fn tries_of_chain(entries: &[Entry], limit: u32) -> Tries {
    let (mut tries, mut settled) = (Tries::default(), Vec::new());
    for entry in entries {
        let Body::Card(CardEvent { action, tried: Some(TryStamp { number, tries_left }), .. }) = &entry.event.body
        else {
            continue;
        };
        match action {
            Action::ReserveTry => {
                tries.reserved += 1;
                assert_eq!(*number, tries.reserved);
                assert!(tries.used() <= limit.into(), "entry {}: {tries:?}", entry.sequence);
            }
            Action::VerifyPin | Action::ChangePin => {
                assert!(!settled.contains(number) && *number <= tries.reserved, "entry {}", entry.sequence);
                settled.push(*number);
                if matches!(entry.event.outcome, Outcome::Done | Outcome::RefusedPin) {
                    tries.forgiven = tries.forgiven.max(*number);
                }
            }
            _ => tries.forgiven = tries.forgiven.max(*number),
        }
        assert_eq!(*tries_left, tries.left(limit), "entry {}", entry.sequence);
    }
    tries
}

pub(super) async fn a_zone_block_sets_its_pin_once(store: &dyn Store) {
    assert_eq!(set_by_zone(store, card(1), 1).await.unwrap(), ZoneSet::New);
    assert_eq!(store.card(&card(1)).await.unwrap().unwrap().pin_status, PinStatus::Set);
    let before = entries(store).await.len();
    assert_eq!(set_by_zone(store, card(1), 1).await.unwrap(), ZoneSet::Repeated);
    for number in 2..=9 {
        assert_eq!(set_by_zone(store, card(1), number).await.unwrap(), ZoneSet::New);
    }
    for replaced in 1..=8 {
        assert_eq!(denied(set_by_zone(store, card(1), replaced).await), Some(Denied::ReplacedBlock));
    }
    assert_eq!(entries(store).await.len(), before + 8, "a repeated or replaced block has no event");
    assert_eq!(stored(store, card(1)).await.record, record(9).record);
    assert_eq!(set_by_zone(store, card(2), 1).await.unwrap(), ZoneSet::New, "tags belong to a card");

    let strict = store
        .set_pin_by_zone(card(3), record(1), RetryTag([1; 16]), UnknownCards::Refuse, card_event(Action::SetPinByZone))
        .await;
    assert_eq!(denied(strict), Some(Denied::CardUnknown));
    assert!(store.card(&card(3)).await.unwrap().is_none());
}

pub(super) async fn a_zone_block_and_a_control_replace_each_others_pin(store: &dyn Store) {
    let waiting = keyed(store, card(1)).await;
    set_by_zone(store, card(1), 1).await.unwrap();
    assert!(is_not_usable(&set(store, waiting.id, 2).await), "the zone's block has closed it");
    let later = keyed(store, card(1)).await;
    set(store, later.id, 2).await.unwrap();
    assert_eq!(denied(set_by_zone(store, card(1), 1).await), Some(Denied::ReplacedBlock));
    assert_eq!(stored(store, card(1)).await.record, record(2).record);
}

pub(super) async fn a_pin_is_given_while_its_record_stands(store: &dyn Store) {
    let give = async |number| store.give_pin(card(1), record(number).record, card_event(Action::ExportPin)).await;
    assert_eq!(denied(give(1).await), Some(Denied::PinNotSet));
    set_by_zone(store, card(1), 1).await.unwrap();
    let before = entries(store).await.len();
    give(1).await.unwrap();
    give(1).await.unwrap();
    assert_eq!(entries(store).await.len(), before + 2, "given again, audited again");
    set_by_zone(store, card(1), 2).await.unwrap();
    assert!(is_superseded(&give(1).await));
}

pub(super) async fn a_right_pin_forgives_up_to_its_own_number(store: &dyn Store) {
    assert_eq!(denied(reserve(store, card(1)).await), Some(Denied::CardUnknown));
    store.register_card(card(1), None, card_event(Action::RegisterCard)).await.unwrap();
    assert_eq!(denied(reserve(store, card(1)).await), Some(Denied::PinNotSet));
    set_by_zone(store, card(1), 1).await.unwrap();
    for number in 1..=3 {
        let reserved = reserve(store, card(1)).await.unwrap();
        assert_eq!((reserved.number, reserved.tries_left), (number, LIMIT - number as u32));
        assert_eq!((reserved.generation, reserved.pin), (1, Some(record(1))));
    }
    assert_eq!(denied(reserve(store, card(1)).await), Some(Denied::PinLocked));
    assert_eq!(settle(store, card(1), 3, false).await.unwrap(), 0);
    assert_eq!(settle(store, card(1), 2, true).await.unwrap(), 2, "the third try stays used");
    let before = entries(store).await.len();
    for (number, is_right) in [(3, true), (2, true), (99, true)] {
        assert_eq!(denied(settle(store, card(1), number, is_right).await), Some(Denied::TrySettled));
    }
    assert_eq!(entries(store).await.len(), before, "a second settlement has no event");
    assert_eq!(settle(store, card(1), 1, false).await.unwrap(), 2, "a late settlement takes no try back");
    assert_eq!(tries(store).await, Tries { reserved: 3, forgiven: 2 });
    assert_eq!(tries_of_chain(&entries(store).await, LIMIT), tries(store).await);
}

pub(super) async fn a_try_by_value_needs_no_record(store: &dyn Store) {
    store.register_card(card(1), account(1), card_event(Action::RegisterCard)).await.unwrap();
    let reserved = store.reserve_try(card(1), 1, Compared::Value, card_event(Action::ReserveTry)).await.unwrap();
    assert_eq!((reserved.pin, reserved.account, reserved.tries_left), (None, account(1), 0));
    let event = Event { outcome: Outcome::Malformed, ..card_event(Action::VerifyPin) };
    assert_eq!(store.settle_try(card(1), 1, Verdict::Malformed, 1, event).await.unwrap(), 0);
    set_by_zone(store, card(2), 1).await.unwrap();
    let stored = store.reserve_try(card(2), LIMIT, Compared::Value, card_event(Action::ReserveTry)).await;
    assert_eq!(denied(stored), Some(Denied::PinStored));
}

pub(super) async fn a_new_pin_leaves_the_tries_and_a_reset_forgives_what_was_seen(store: &dyn Store) {
    set_by_zone(store, card(1), 1).await.unwrap();
    let reset = async |up_to| store.reset_tries(card(1), up_to, LIMIT, card_event(Action::ResetTries)).await;
    for _ in 0..2 {
        reserve(store, card(1)).await.unwrap();
    }
    let seen = tries(store).await.reserved;
    reserve(store, card(1)).await.unwrap();
    set_by_zone(store, card(1), 2).await.unwrap();
    assert_eq!(denied(reserve(store, card(1)).await), Some(Denied::PinLocked));
    for _ in 0..2 {
        assert_eq!(reset(seen).await.unwrap(), Tries { reserved: 3, forgiven: 2 });
    }
    for unseen in [4, u64::MAX] {
        assert_eq!(denied(reset(unseen).await), Some(Denied::TryUnknown));
    }
    assert_eq!(reset(3).await.unwrap(), Tries { reserved: 3, forgiven: 3 });
    assert_eq!(reserve(store, card(1)).await.unwrap().tries_left, LIMIT - 1);
    let unknown = store.reset_tries(card(2), 1, LIMIT, card_event(Action::ResetTries)).await;
    assert_eq!(denied(unknown), Some(Denied::CardUnknown));
    assert_eq!(tries_of_chain(&entries(store).await, LIMIT), tries(store).await);
}

pub(super) async fn a_settled_try_moves_a_one_way_record(store: &dyn Store) {
    set_by_zone(store, card(1), 1).await.unwrap();
    let set_at = store.card(&card(1)).await.unwrap().unwrap().pin_set_at;
    let right = async |before| {
        let number = reserve(store, card(1)).await.unwrap().number;
        let moved = Some(reencrypted(card(1), before, 9));
        let event = card_event(Action::VerifyPin);
        store.settle_try(card(1), number, Verdict::Right { moved }, LIMIT, event).await.unwrap()
    };
    assert_eq!(right(5).await, LIMIT, "right, and the record is another one");
    assert_eq!(stored(store, card(1)).await, record(1));
    right(1).await;
    assert_eq!(stored(store, card(1)).await, record(9));
    assert_eq!(store.card(&card(1)).await.unwrap().unwrap().pin_set_at, set_at, "the PIN is as old as it was");
    assert_eq!(set_by_zone(store, card(1), 1).await.unwrap(), ZoneSet::Repeated, "the PIN still stands");
}

pub(super) async fn a_changed_pin_needs_the_generation_of_its_try(store: &dyn Store) {
    let right = |reserved: &ReservedTry, number| {
        let (generation, pin) = (reserved.generation, record(number));
        ChangeVerdict::Right { generation, pin }
    };
    set_by_zone(store, card(1), 1).await.unwrap();
    let (late, reserved) = (reserve(store, card(1)).await.unwrap(), reserve(store, card(1)).await.unwrap());
    assert_eq!(change(store, &reserved, right(&reserved, 2), None).await.unwrap(), LIMIT);
    assert_eq!(stored(store, card(1)).await, record(2));
    let before = entries(store).await.len();
    assert_eq!(denied(change(store, &reserved, right(&reserved, 3), None).await), Some(Denied::TrySettled));
    assert_eq!(denied(change(store, &late, right(&late, 3), None).await), Some(Denied::Superseded));
    assert_eq!(entries(store).await.len(), before);
    settle(store, card(1), late.number, true).await.unwrap();
    let refused = reserve(store, card(1)).await.unwrap();
    assert_eq!(change(store, &refused, ChangeVerdict::RefusedPin, None).await.unwrap(), LIMIT);
    let wrong = reserve(store, card(1)).await.unwrap();
    assert_eq!(change(store, &wrong, ChangeVerdict::Wrong, None).await.unwrap(), LIMIT - 1);
    assert_eq!(stored(store, card(1)).await, record(2));
}

pub(super) async fn a_change_spends_the_control_of_its_caller(store: &dyn Store) {
    set_by_zone(store, card(1), 1).await.unwrap();
    let (opened, other) = (keyed(store, card(1)).await, keyed(store, card(2)).await);
    let under = |number| Some(ControlUse { id: opened.id, under: tzpk(number) });
    let wrong = reserve(store, card(1)).await.unwrap();
    change(store, &wrong, ChangeVerdict::Wrong, under(1)).await.unwrap();
    let reserved = reserve(store, card(1)).await.unwrap();
    let right = ChangeVerdict::Right { generation: reserved.generation, pin: record(2) };
    let another = Some(ControlUse { id: other.id, under: tzpk(1) });
    assert_eq!(denied(change(store, &reserved, right.clone(), another).await), Some(Denied::NotUsable));
    assert_eq!(denied(change(store, &reserved, right.clone(), under(2)).await), Some(Denied::Superseded));
    change(store, &reserved, right, under(1)).await.unwrap();
    let spent = store.control(opened.id).await.unwrap().unwrap();
    assert!(matches!(spent.state, ControlState::Spent(Spent::Changed)));
    assert!(is_not_usable(&set(store, opened.id, 3).await));
    assert_eq!(stored(store, card(1)).await, record(2));
    let last = reserve(store, card(1)).await.unwrap();
    change(store, &last, ChangeVerdict::Malformed, under(1)).await.unwrap();
    assert_eq!(tries(store).await.used(), 1, "a malformed block is recorded although its control is spent");
}

pub(super) async fn a_generated_pin_waits_for_personalisation(store: &dyn Store) {
    let generate = async |card, number| store.generate_pin(card, record(number), card_event(Action::GeneratePin)).await;
    let status = async || store.card(&card(1)).await.unwrap().unwrap().pin_status;
    assert_eq!(denied(generate(card(1), 1).await), Some(Denied::CardUnknown));
    store.register_card(card(1), None, card_event(Action::RegisterCard)).await.unwrap();
    let opened = keyed(store, card(1)).await;
    generate(card(1), 1).await.unwrap();
    assert_eq!(status().await, PinStatus::Generated);
    assert!(is_not_usable(&set(store, opened.id, 2).await));
    generate(card(1), 3).await.unwrap();
    assert_eq!(stored(store, card(1)).await, record(3));
    let later = keyed(store, card(1)).await;
    set(store, later.id, 2).await.unwrap();
    assert_eq!(status().await, PinStatus::Set);
}

pub(super) async fn an_account_number_is_replaced_with_its_record(store: &dyn Store) {
    let replace = async |number: u8, pin| {
        let event = card_event(Action::ChangeAccount);
        store.replace_account(card(1), account(number).unwrap(), pin, event).await
    };
    replace(1, None).await.unwrap();
    let first = keyed(store, card(1)).await;
    set(store, first.id, 1).await.unwrap();
    let opened = keyed(store, card(1)).await;
    let card_before = store.card(&card(1)).await.unwrap().unwrap();
    assert!(is_superseded(&replace(2, None).await.map(drop)), "the card has a PIN");
    assert!(is_superseded(&replace(2, Some(reencrypted(card(1), 7, 2))).await.map(drop)));
    let replaced = replace(2, Some(reencrypted(card(1), 1, 2))).await.unwrap();
    assert_eq!((replaced.account, replaced.pin_set_at), (account(2), card_before.pin_set_at));
    assert_eq!(stored(store, card(1)).await, bound(2, account(2)));
    assert_eq!(store.control(opened.id).await.unwrap().unwrap().account, account(2), "open controls follow");
    replace(2, None).await.unwrap();
    assert_eq!(stored(store, card(1)).await, bound(2, account(2)), "a repeat changes nothing");
    set(store, opened.id, 3).await.unwrap();
    assert_eq!(stored(store, card(1)).await, bound(3, account(2)));
}

pub(super) async fn a_reissued_card_gets_the_pin_of_its_predecessor(store: &dyn Store) {
    for number in 1..=2 {
        store.register_card(card(number), account(1), card_event(Action::RegisterCard)).await.unwrap();
    }
    let transfer = async |before: u8, to, pin: StoredPin| {
        let event = card_event(Action::TransferPin);
        store.transfer_pin(card(1), record(before).record, to, pin, event).await
    };
    assert_eq!(denied(transfer(1, card(2), bound(2, account(1))).await), Some(Denied::PinNotSet));
    let opened = keyed(store, card(1)).await;
    set(store, opened.id, 1).await.unwrap();
    let waiting = keyed(store, card(2)).await;
    store.reserve_try(card(2), LIMIT, Compared::Value, card_event(Action::ReserveTry)).await.unwrap();
    assert!(is_superseded(&transfer(9, card(2), bound(2, account(1))).await));
    assert!(is_superseded(&transfer(1, card(2), bound(2, account(2))).await), "for another account number");
    let elsewhere = CardKey { tenant: Tenant::parse("other").unwrap(), ..card(2) };
    store.register_card(elsewhere, account(1), card_event(Action::RegisterCard)).await.unwrap();
    assert_eq!(denied(transfer(1, elsewhere, bound(2, account(1))).await), Some(Denied::OtherAccount));

    let before = entries(store).await.len();
    transfer(1, card(2), bound(2, account(1))).await.unwrap();
    transfer(1, card(2), bound(3, account(1))).await.unwrap();
    assert_eq!(entries(store).await.len(), before + 1, "a repeat changes nothing");
    assert_eq!(stored(store, card(2)).await, bound(2, account(1)));
    assert_eq!(stored(store, card(1)).await, bound(1, account(1)), "the predecessor keeps its PIN");
    assert_eq!(store.tries(&card(2)).await.unwrap().unwrap(), Tries { reserved: 1, forgiven: 1 });
    assert!(is_not_usable(&set(store, waiting.id, 4).await));
}

pub(super) async fn no_change_writes_a_record_under_an_older_storage_key(store: &dyn Store) {
    for number in 1..=3 {
        store.register_card(card(number), account(1), card_event(Action::RegisterCard)).await.unwrap();
    }
    let generate =
        async |card, number| store.generate_pin(card, bound(number, account(1)), card_event(Action::GeneratePin)).await;
    generate(card(1), 3).await.unwrap();
    let reserved = reserve(store, card(1)).await.unwrap();
    store.set_keys_in_use(reported(&[], iso_4_keys(1..=3)), engine_event(Body::KeysReloaded)).await.unwrap();
    let (old, tag) = (bound(2, account(1)), RetryTag([2; 16]));
    let answers = [
        generate(card(2), 2).await,
        store
            .set_pin_by_zone(card(2), old.clone(), tag, UnknownCards::Accept, card_event(Action::SetPinByZone))
            .await
            .map(drop),
        store.transfer_pin(card(1), record(3).record, card(2), old.clone(), card_event(Action::TransferPin)).await,
        store
            .replace_account(
                card(1),
                account(2).unwrap(),
                Some(reencrypted(card(1), 3, 2)),
                card_event(Action::ChangeAccount),
            )
            .await
            .map(drop),
        change(store, &reserved, ChangeVerdict::Right { generation: 1, pin: old }, None).await.map(drop),
    ];
    for (at, answer) in answers.iter().enumerate() {
        assert!(is_superseded(answer), "{at}: {answer:?}");
    }
    assert_eq!(stored(store, card(1)).await, bound(3, account(1)));
    let moved = Some(reencrypted(card(1), 3, 2));
    let event = card_event(Action::VerifyPin);
    store.settle_try(card(1), reserved.number, Verdict::Right { moved }, LIMIT, event).await.unwrap();
    assert_eq!(stored(store, card(1)).await, bound(3, account(1)), "right, and the record stays");
    assert!(store.pin(&card(2)).await.unwrap().is_none());
}

pub(super) async fn a_compared_try_is_settled_after_the_callers_deadline(store: &dyn Store) {
    set_by_zone(store, card(1), 1).await.unwrap();
    let number = reserve(store, card(1)).await.unwrap().number;
    let late = Deadline::within(Duration::ZERO);
    let reserved = under(Some(late), reserve(store, card(1))).await;
    assert!(matches!(reserved, Err(ChangeError::Store(StoreError::DeadlinePassed))), "{reserved:?}");
    assert_eq!(under(Some(late), settle(store, card(1), number, false)).await.unwrap(), LIMIT - 1);
    let reserved = reserve(store, card(1)).await.unwrap();
    let right = ChangeVerdict::Right { generation: reserved.generation, pin: record(2) };
    let changed = under(Some(late), change(store, &reserved, right, None)).await;
    assert!(matches!(changed, Err(ChangeError::Store(StoreError::DeadlinePassed))), "a late new PIN is not written");
    under(Some(late), change(store, &reserved, ChangeVerdict::Wrong, None)).await.unwrap();
}

const RACERS: usize = 64;

pub(super) async fn racing_calls_have_no_more_tries_than_the_limit(store: Arc<dyn Store>) {
    set_by_zone(&*store, card(1), 1).await.unwrap();
    let reserve_at_once = async || {
        let racers: Vec<_> = (0..RACERS)
            .map(|_| {
                let store = Arc::clone(&store);
                tokio::spawn(async move { reserve(&*store, card(1)).await })
            })
            .collect();
        let mut numbers = Vec::new();
        for racer in racers {
            match racer.await.unwrap() {
                Ok(reserved) => numbers.push(reserved.number),
                Err(ChangeError::Denied(Denied::PinLocked)) => {}
                Err(error) => panic!("{error}"),
            }
        }
        numbers.sort_unstable();
        numbers
    };
    assert_eq!(reserve_at_once().await, [1, 2, 3]);
    for number in 1..=3 {
        settle(&*store, card(1), number, false).await.unwrap();
    }
    assert_eq!(reserve_at_once().await, [0; 0]);
    store.reset_tries(card(1), 3, LIMIT, card_event(Action::ResetTries)).await.unwrap();

    let racers: Vec<_> = (0..RACERS)
        .map(|racer| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let reserved = reserve(&*store, card(1)).await.ok()?;
                settle(&*store, card(1), reserved.number, racer % 4 == 0).await.ok()
            })
        })
        .collect();
    for racer in racers {
        racer.await.unwrap();
    }
    // The chain has the order of the commits.
    assert_eq!(tries_of_chain(&entries(&*store).await, LIMIT), tries(&*store).await);
}

pub(super) async fn a_restart_keeps_tries_tags_and_the_origin_of_a_pin(open: impl AsyncFn() -> Arc<dyn Store>) {
    let store = open().await;
    for number in 1..=2 {
        set_by_zone(&*store, card(1), number).await.unwrap();
        reserve(&*store, card(1)).await.unwrap();
    }
    store.register_card(card(2), None, card_event(Action::RegisterCard)).await.unwrap();
    store.generate_pin(card(2), record(1), card_event(Action::GeneratePin)).await.unwrap();
    settle(&*store, card(1), 1, true).await.unwrap();
    let before = tries(&*store).await;
    close(store).await;

    let store = open().await;
    assert_eq!(tries(&*store).await, before);
    assert_eq!(denied(settle(&*store, card(1), 1, true).await), Some(Denied::TrySettled));
    assert_eq!(settle(&*store, card(1), 2, false).await.unwrap(), LIMIT - 1);
    assert_eq!(set_by_zone(&*store, card(1), 2).await.unwrap(), ZoneSet::Repeated);
    assert_eq!(denied(set_by_zone(&*store, card(1), 1).await), Some(Denied::ReplacedBlock));
    assert_eq!(store.card(&card(2)).await.unwrap().unwrap().pin_status, PinStatus::Generated);
    close(store).await;
}
