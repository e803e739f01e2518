//! What every store must do, run against each of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a suite of tests"
)]
#![allow(missing_docs, reason = "the helpers of the suite")]

use std::{sync::Arc, time::Duration};

use crate::{Admission, AdvanceError, OpenError, RegisterError, RemadePin, Store, StoreError, StoredPin, UnknownCards};
use audit::{
    chain::Walk,
    entry::{Action, Body, CardEvent, Entry, Event, Isolation, Level, Outcome, Stamp},
};
use clock::deadline::Deadline;
use domain::card::{CardKey, PinStatus, PlasticId, RegisteredAccount, Tenant};
use domain::control::{Control, ControlId, Denied, NewControl, RetryTag, Scope, SealedTzpk, Transition};
use domain::storage_key::{MinKeyVersions, RecordKey, StorageKeyKind};

/// Runs the whole suite; `make` gives a fresh store each time.
pub async fn run<S: Store>(make: impl Fn() -> Arc<S>) {
    a_control_is_found_as_it_was_opened(&*make()).await;
    a_card_waits_for_its_pin_until_one_is_set(&*make()).await;
    of_many_racing_changes_to_one_control_exactly_one_happens(make()).await;
    an_unknown_control_is_not_usable(&*make()).await;
    a_card_has_no_more_controls_in_an_hour_than_its_cap(&*make()).await;
    an_unknown_card_is_taken_up_or_refused_as_told(&*make()).await;
    an_account_number_is_not_changed_under_a_pin(&*make()).await;
    a_control_follows_the_account_number_of_its_card(&*make()).await;
    a_record_under_an_older_storage_key_is_superseded(&*make()).await;
    every_change_has_its_line_and_no_refusal_has(&*make()).await;
    records_come_page_by_page_and_each_once(&*make()).await;
    a_record_is_made_anew_where_it_still_stands_and_a_newer_pin_stays(&*make()).await;
    the_first_set_closes_the_other_open_controls_of_its_card(&*make()).await;
    a_new_pin_leaves_controls_to_view_and_other_cards_alone(&*make()).await;
    a_view_of_a_replaced_record_is_superseded_and_keeps_its_control(&*make()).await;
    a_retry_is_confirmed_while_its_pin_stands(&*make()).await;
    a_confirmed_retry_closes_controls_opened_before_it(&*make()).await;
    reencryption_and_a_new_account_number_close_no_control(&*make()).await;
    a_change_is_dropped_once_its_deadline_has_passed(&*make()).await;
}

pub const GENEROUS: Admission =
    Admission { controls_per_card_per_hour: 1_000_000, unknown_cards: UnknownCards::Accept };

pub fn card(number: u64) -> CardKey {
    CardKey { tenant: Tenant::parse("bank").unwrap(), plastic: PlasticId::parse(&number.to_string()).unwrap() }
}

/// A control to set a PIN, for 30 s.
pub fn control(card: CardKey) -> NewControl {
    NewControl {
        id: ControlId::random(),
        card,
        scope: Scope::SetPin,
        lifetime: Duration::from_secs(30),
        device_key: None,
    }
}

pub fn line(action: Action) -> Event {
    own_line(Body::Card(CardEvent { action, card: "***1".into(), control: None, formats: None }))
}

pub fn own_line(body: Body) -> Event {
    let stamp = Stamp { level: Level::Host, token: "software".into(), isolation: Isolation::Process, keys: [].into() };
    Event {
        at: clock::now(),
        caller: "suite".into(),
        tenant: Tenant::parse("bank").ok(),
        audit_user: "suite".into(),
        outcome: Outcome::Done,
        stamp: Arc::new(stamp),
        body,
    }
}

fn reencrypted_event(count: u64) -> Event {
    own_line(Body::RecordsReencrypted { count })
}

fn action(entry: &Entry) -> Option<Action> {
    match &entry.event.body {
        Body::Card(card) => Some(card.action),
        _ => None,
    }
}

pub fn tzpk(number: u8) -> SealedTzpk {
    SealedTzpk([number; 48].into())
}

/// The storage key of [`record`].
pub fn key(number: u8) -> RecordKey {
    RecordKey { kind: StorageKeyKind::Iso4, version: number.into() }
}

/// Re-encrypts the record of one number as the record of another.
pub fn reencrypted(card: CardKey, before: u8, after: u8) -> RemadePin {
    RemadePin { card, before: record(before).record, after: record(after).record, key: key(after) }
}

pub fn record(number: u8) -> StoredPin {
    StoredPin { record: [number; 38].into(), key: key(number), account: None }
}

/// The view of the record [`record`] makes of `number`.
pub fn view(number: u8) -> Transition {
    Transition::View { shown: record(number).record }
}

/// Opens a control to view the PIN.
pub async fn viewing(store: &impl Store, card: CardKey) -> Control {
    let control = NewControl { scope: Scope::ViewPin, ..control(card) };
    store.open(control, GENEROUS, line(Action::OpenControl)).await.unwrap()
}

/// Opens a control and issues its tzpk.
pub async fn keyed(store: &impl Store, card: CardKey) -> Control {
    let opened = store.open(control(card), GENEROUS, line(Action::OpenControl)).await.unwrap();
    store.advance(opened.id, Transition::Key { tzpk: tzpk(1), replaces: None }, line(Action::IssueTzpk)).await.unwrap();
    opened
}

/// Sets a PIN bound to the number the control has.
pub async fn set(store: &impl Store, id: ControlId, number: u8) -> Result<(), AdvanceError> {
    let account = store.control(id).await.unwrap().and_then(|control| control.account);
    set_bound(store, id, number, account).await
}

async fn set_bound(
    store: &impl Store,
    id: ControlId,
    number: u8,
    account: Option<RegisteredAccount>,
) -> Result<(), AdvanceError> {
    let event = Transition::Set { under: tzpk(1), retry: RetryTag([number; 16]) };
    let pin = StoredPin { account, ..record(number) };
    store.set_pin(id, event, pin, line(Action::SetPin)).await
}

fn account(number: u8) -> Option<RegisteredAccount> {
    Some(RegisteredAccount { sealed: [number; 30].into(), masked: "411111******1111".into() })
}

async fn a_control_is_found_as_it_was_opened(store: &impl Store) {
    store.register(card(1), account(7), line(Action::RegisterCard)).await.unwrap();
    let (before, lifetime) = (store.now(), control(card(1)).lifetime);
    let opened = store.open(control(card(1)), GENEROUS, line(Action::OpenControl)).await.unwrap();
    let lives_from_the_change = before.after(lifetime)..=store.now().after(lifetime);
    assert!(lives_from_the_change.contains(&opened.expires_at), "{:?}", opened.expires_at);
    assert_eq!(opened.account, account(7), "the PAN comes from the card");
    let found = store.control(opened.id).await.unwrap().unwrap();
    assert_eq!((found.card, found.account, found.expires_at), (opened.card, opened.account, opened.expires_at));
    assert!(store.control(ControlId::random()).await.unwrap().is_none());
}

async fn a_card_waits_for_its_pin_until_one_is_set(store: &impl Store) {
    let opened = keyed(store, card(1)).await;
    assert_eq!(store.card(&card(1)).await.unwrap().unwrap().pin_status, PinStatus::Waiting);
    assert!(store.pin(&card(1)).await.unwrap().is_none());
    set(store, opened.id, 9).await.unwrap();
    assert_eq!(store.card(&card(1)).await.unwrap().unwrap().pin_status, PinStatus::Set);
    assert_eq!(*store.pin(&card(1)).await.unwrap().unwrap().record, [9; 38]);
}

async fn of_many_racing_changes_to_one_control_exactly_one_happens<S: Store>(store: Arc<S>) {
    let opened = keyed(&*store, card(1)).await;
    let racers: Vec<_> = (0..64)
        .map(|number| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { (number, set(&*store, opened.id, number).await) })
        })
        .collect();
    let mut winners = Vec::new();
    for racer in racers {
        match racer.await.unwrap() {
            (number, Ok(())) => winners.push(number),
            (_, Err(AdvanceError::Denied(Denied::NotUsable))) => {}
            (_, Err(error)) => panic!("{error}"),
        }
    }
    assert_eq!(winners.len(), 1);
    assert_eq!(*store.pin(&card(1)).await.unwrap().unwrap().record, [winners[0]; 38]);
}

async fn an_unknown_control_is_not_usable(store: &impl Store) {
    let answer = set(store, ControlId::random(), 1).await;
    assert!(matches!(answer, Err(AdvanceError::Denied(Denied::NotUsable))));
}

async fn a_card_has_no_more_controls_in_an_hour_than_its_cap(store: &impl Store) {
    let admission = Admission { controls_per_card_per_hour: 2, ..GENEROUS };
    let mut opened = 0;
    // The hour may turn in between.
    let refused = loop {
        match store.open(control(card(1)), admission, line(Action::OpenControl)).await {
            Ok(_) => opened += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, OpenError::Cap { cap: 2 }) && (2..=4).contains(&opened), "{opened}: {refused}");
    store.open(control(card(2)), admission, line(Action::OpenControl)).await.unwrap();
}

async fn an_unknown_card_is_taken_up_or_refused_as_told(store: &impl Store) {
    let strict = Admission { unknown_cards: UnknownCards::Refuse, ..GENEROUS };
    let refused = store.open(control(card(1)), strict, line(Action::OpenControl)).await;
    assert!(matches!(refused, Err(OpenError::CardUnknown)));
    assert!(store.card(&card(1)).await.unwrap().is_none());
    store.register(card(1), None, line(Action::RegisterCard)).await.unwrap();
    store.open(control(card(1)), strict, line(Action::OpenControl)).await.unwrap();
}

async fn an_account_number_is_not_changed_under_a_pin(store: &impl Store) {
    store.register(card(1), account(1), line(Action::RegisterCard)).await.unwrap();
    store.register(card(1), account(2), line(Action::RegisterCard)).await.unwrap();
    let opened = keyed(store, card(1)).await;
    set(store, opened.id, 1).await.unwrap();
    let bound = store.register(card(1), account(3), line(Action::RegisterCard)).await;
    assert!(matches!(bound, Err(RegisterError::AccountBound)));
    let same = store.register(card(1), account(2), line(Action::RegisterCard)).await.unwrap();
    assert_eq!((same.account, same.pin_status), (account(2), PinStatus::Set));
    let left = store.register(card(1), None, line(Action::RegisterCard)).await.unwrap();
    assert_eq!(left.account, account(2), "an absent number leaves the registered one");
}

async fn a_control_follows_the_account_number_of_its_card(store: &impl Store) {
    for number in 1..=2 {
        store.register(card(number), account(1), line(Action::RegisterCard)).await.unwrap();
    }
    let (opened, others) = (keyed(store, card(1)).await, keyed(store, card(2)).await);
    store.register(card(1), account(2), line(Action::RegisterCard)).await.unwrap();
    let account_of = async |id| store.control(id).await.unwrap().unwrap().account;
    assert_eq!((account_of(opened.id).await, account_of(others.id).await), (account(2), account(1)));

    let before = set_bound(store, opened.id, 1, account(1)).await;
    assert!(matches!(before, Err(AdvanceError::Denied(Denied::Superseded))), "judged for the number before");
    assert!(store.pin(&card(1)).await.unwrap().is_none());
    set_bound(store, opened.id, 1, account(2)).await.unwrap();
    assert_eq!(store.pin(&card(1)).await.unwrap().unwrap().account, account(2));
}

async fn a_record_under_an_older_storage_key_is_superseded(store: &impl Store) {
    let opened = keyed(store, card(1)).await;
    let min = MinKeyVersions { iso_4: 2, ..MinKeyVersions::default() };
    store.note_keys([].into(), min, own_line(Body::KeysReloaded)).await.unwrap();
    assert!(is_superseded(&set(store, opened.id, 1).await));
    assert!(store.pin(&card(1)).await.unwrap().is_none());
    set(store, opened.id, 2).await.unwrap();
    let kept = store.pin(&card(1)).await.unwrap().unwrap();
    assert_eq!((kept.record, kept.key), (record(2).record, key(2)));

    let reencrypt = async |after| store.remake(vec![reencrypted(card(1), 2, after)], reencrypted_event(0)).await;
    assert_eq!(reencrypt(1).await.unwrap(), 0, "under an older key");
    assert_eq!(reencrypt(3).await.unwrap(), 1);
    assert_eq!(store.pin(&card(1)).await.unwrap().unwrap().key, key(3));
}

async fn every_change_has_its_line_and_no_refusal_has(store: &impl Store) {
    let opened = keyed(store, card(1)).await;
    set(store, opened.id, 1).await.unwrap();
    set(store, opened.id, 2).await.unwrap_err();
    store.advance(opened.id, view(1), line(Action::ViewPin)).await.unwrap_err();
    store.note(own_line(Body::EngineStopped)).await.unwrap();

    let entries = store.audit(1, 100).await.unwrap();
    let actions: Vec<_> = entries.iter().map(action).collect();
    assert_eq!(actions, [Some(Action::OpenControl), Some(Action::IssueTzpk), Some(Action::SetPin), None]);
    assert_eq!(entries[3].event.body, Body::EngineStopped);
    let mut walk = Walk::expecting(Vec::new());
    entries.iter().try_for_each(|entry| walk.step(entry)).unwrap();
    assert_eq!(store.audit(3, 1).await.unwrap(), entries[2..3]);
}

async fn records_come_page_by_page_and_each_once(store: &impl Store) {
    for number in 1..=5 {
        let opened = keyed(store, card(number)).await;
        set(store, opened.id, number as u8).await.unwrap();
    }
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.pins_after(after.as_ref(), 2).await.unwrap();
        assert!(page.len() <= 2);
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        found.extend(page.into_iter().map(|(card, pin)| (card, pin.record[0])));
    }
    found.sort();
    assert_eq!(found, (1..=5).map(|number| (card(number), number as u8)).collect::<Vec<_>>());
}

async fn a_record_is_made_anew_where_it_still_stands_and_a_newer_pin_stays(store: &impl Store) {
    for number in 1..=2 {
        let opened = keyed(store, card(number)).await;
        set(store, opened.id, 1).await.unwrap();
    }
    let set_at = store.card(&card(1)).await.unwrap().unwrap().pin_set_at;
    let newer = keyed(store, card(2)).await;
    set(store, newer.id, 2).await.unwrap();
    let remade = |number| reencrypted(card(number), 1, 9);

    assert_eq!(store.remake(vec![remade(1), remade(2), remade(3)], reencrypted_event(0)).await.unwrap(), 1);
    assert_eq!(*store.pin(&card(1)).await.unwrap().unwrap().record, [9; 38]);
    assert_eq!(*store.pin(&card(2)).await.unwrap().unwrap().record, [2; 38]);
    assert_eq!(store.card(&card(1)).await.unwrap().unwrap().pin_set_at, set_at, "the PIN is as old as it was");
    let entries = store.audit(1, 1_000).await.unwrap();
    assert_eq!(entries.last().unwrap().event.body, Body::RecordsReencrypted { count: 1 });
    let entries = entries.len();
    assert_eq!(store.remake(vec![remade(1)], reencrypted_event(0)).await.unwrap(), 0);
    assert_eq!(store.audit(1, 1_000).await.unwrap().len(), entries, "nothing happened, and a line says so");
}

pub async fn confirm(store: &impl Store, id: ControlId, number: u8) -> Result<(), AdvanceError> {
    store.confirm_retry(id, RetryTag([number; 16]), line(Action::ConfirmSetPin)).await
}

fn is_not_usable(answer: &Result<(), AdvanceError>) -> bool {
    matches!(answer, Err(AdvanceError::Denied(Denied::NotUsable)))
}

fn is_superseded(answer: &Result<(), AdvanceError>) -> bool {
    matches!(answer, Err(AdvanceError::Denied(Denied::Superseded)))
}

async fn the_first_set_closes_the_other_open_controls_of_its_card(store: &impl Store) {
    let (first, other) = (keyed(store, card(1)).await, keyed(store, card(1)).await);
    set(store, other.id, 2).await.unwrap();
    assert!(is_not_usable(&set(store, first.id, 1).await));
    let malformed = Transition::Malformed { under: tzpk(1) };
    for event in [
        Transition::Key { tzpk: tzpk(2), replaces: Some(tzpk(1)) },
        malformed,
        Transition::RefusedPin { under: tzpk(1) },
    ] {
        assert!(is_not_usable(&store.advance(first.id, event, line(Action::SetPin)).await));
    }
    assert_eq!(*store.pin(&card(1)).await.unwrap().unwrap().record, [2; 38]);
    let later = keyed(store, card(1)).await;
    set(store, later.id, 3).await.unwrap();
}

async fn a_new_pin_leaves_controls_to_view_and_other_cards_alone(store: &impl Store) {
    let viewer = viewing(store, card(1)).await;
    let (setter, other) = (keyed(store, card(1)).await, keyed(store, card(2)).await);
    set(store, setter.id, 1).await.unwrap();
    store.advance(viewer.id, view(1), line(Action::ViewPin)).await.unwrap();
    set(store, other.id, 2).await.unwrap();
}

async fn a_view_of_a_replaced_record_is_superseded_and_keeps_its_control(store: &impl Store) {
    let (viewer, setter) = (viewing(store, card(1)).await, keyed(store, card(1)).await);
    let shown = async |number| store.advance(viewer.id, view(number), line(Action::ViewPin)).await;
    assert!(is_superseded(&shown(1).await), "the card has no PIN");
    set(store, setter.id, 1).await.unwrap();
    let later = keyed(store, card(1)).await;
    set(store, later.id, 2).await.unwrap();
    let entries = store.audit(1, 1_000).await.unwrap().len();
    assert!(is_superseded(&shown(1).await), "a newer PIN");
    let remade = reencrypted(card(1), 2, 3);
    assert_eq!(store.remake(vec![remade], reencrypted_event(0)).await.unwrap(), 1);
    assert!(is_superseded(&shown(2).await), "the record was re-encrypted");
    assert_eq!(store.audit(1, 1_000).await.unwrap().len(), entries + 1, "a superseded view has no line");
    shown(3).await.unwrap();
    assert!(is_not_usable(&shown(3).await), "one control shows a PIN once");
}

async fn a_retry_is_confirmed_while_its_pin_stands(store: &impl Store) {
    let first = keyed(store, card(1)).await;
    assert!(is_not_usable(&confirm(store, first.id, 1).await), "nothing is set yet");
    set(store, first.id, 1).await.unwrap();
    let before = store.audit(1, 1_000).await.unwrap().len();
    confirm(store, first.id, 1).await.unwrap();
    confirm(store, first.id, 1).await.unwrap();
    let entries = store.audit(1, 1_000).await.unwrap();
    assert!(entries[before..].iter().all(|entry| action(entry) == Some(Action::ConfirmSetPin)));
    assert_eq!(entries.len(), before + 2, "a confirmed retry has its line");
    assert!(is_not_usable(&confirm(store, first.id, 2).await), "another block");
    assert!(is_not_usable(&confirm(store, ControlId::random(), 1).await));

    let second = keyed(store, card(1)).await;
    set(store, second.id, 2).await.unwrap();
    assert!(is_not_usable(&confirm(store, first.id, 1).await), "its PIN was replaced");
    confirm(store, second.id, 2).await.unwrap();
    assert_eq!(store.audit(1, 1_000).await.unwrap().len(), before + 6);
}

async fn a_confirmed_retry_closes_controls_opened_before_it(store: &impl Store) {
    let first = keyed(store, card(1)).await;
    set(store, first.id, 1).await.unwrap();
    let second = keyed(store, card(1)).await;
    confirm(store, first.id, 1).await.unwrap();
    assert!(is_not_usable(&set(store, second.id, 2).await));
    assert_eq!(*store.pin(&card(1)).await.unwrap().unwrap().record, [1; 38]);
}

async fn reencryption_and_a_new_account_number_close_no_control(store: &impl Store) {
    let (first, waiting) = (keyed(store, card(1)).await, keyed(store, card(2)).await);
    set(store, first.id, 1).await.unwrap();
    let second = keyed(store, card(1)).await;
    let remade = reencrypted(card(1), 1, 9);
    assert_eq!(store.remake(vec![remade], reencrypted_event(0)).await.unwrap(), 1);
    confirm(store, first.id, 1).await.unwrap();
    assert!(is_not_usable(&set(store, second.id, 2).await), "the retry has closed it");
    let third = keyed(store, card(1)).await;
    let remade = reencrypted(card(1), 9, 8);
    assert_eq!(store.remake(vec![remade], reencrypted_event(0)).await.unwrap(), 1);
    set(store, third.id, 3).await.unwrap();

    store.register(card(2), account(2), line(Action::RegisterCard)).await.unwrap();
    set(store, waiting.id, 1).await.unwrap();
}

async fn a_change_is_dropped_once_its_deadline_has_passed(store: &impl Store) {
    let opened = keyed(store, card(1)).await;
    let entries = store.audit(1, 1_000).await.unwrap().len();
    let late = Deadline::within(Duration::ZERO).serve(set(store, opened.id, 1)).await;
    assert!(matches!(late, Err(AdvanceError::Store(StoreError::DeadlinePassed))), "{late:?}");
    assert_eq!(store.audit(1, 1_000).await.unwrap().len(), entries);
    Deadline::within(Duration::from_secs(3_600)).serve(set(store, opened.id, 2)).await.unwrap();
    assert_eq!(*store.pin(&card(1)).await.unwrap().unwrap().record, [2; 38]);
}
