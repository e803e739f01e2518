//! The tests that every store passes.
//!
//! A store under test gives [`run`] one function, which opens a store by name. The first call with a name opens an empty
//! store; a later call, after the earlier store was closed, opens what the earlier one left. A name is a directory of the
//! embedded store; it could be a schema of a database.
//!
//! ```no_run
//! # struct MyStore;
//! # impl MyStore {
//! #     async fn open(_: std::path::PathBuf) -> std::sync::Arc<dyn store::Store> {
//! #         unimplemented!()
//! #     }
//! # }
//! # async fn it_passes_the_conformance_suite(directory: &std::path::Path) {
//! // In a test of the store's crate, on a runtime with several threads:
//! store::conformance::run(async |name| MyStore::open(directory.join(name)).await).await;
//! # }
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a suite of tests"
)]
#![allow(missing_docs, reason = "the helpers of the suite")]

pub mod pin_use;

use std::{sync::Arc, time::Duration};

use self::pin_use::{
    a_change_spends_the_control_of_its_caller, a_changed_pin_needs_the_generation_of_its_try,
    a_compared_try_is_settled_after_the_callers_deadline, a_generated_pin_waits_for_personalisation,
    a_new_pin_leaves_the_tries_and_a_reset_forgives_what_was_seen, a_pin_is_given_while_its_record_stands,
    a_reissued_card_gets_the_pin_of_its_predecessor, a_restart_keeps_tries_tags_and_the_origin_of_a_pin,
    a_right_pin_forgives_up_to_its_own_number, a_settled_try_moves_a_one_way_record, a_try_by_value_needs_no_record,
    a_zone_block_and_a_control_replace_each_others_pin, a_zone_block_sets_its_pin_once,
    an_account_number_is_replaced_with_its_record, no_change_writes_a_record_under_an_older_storage_key,
    racing_calls_have_no_more_tries_than_the_limit,
};
use crate::{ChangeError, KeysAtStart, ReportedKeys, Store, StoreError};
use audit::{
    archive::ArchivedPart,
    card_reference::{CardReference, CardReferenceKey},
    chain::{ChainVerifier, Checkpoint},
    entry::{Action, ArchivedSegment, Body, CardEvent, Entry, Event, Isolation, Level, Outcome, Stamp},
    note::SigningKey,
    tree_head::ChainTree,
};
use clock::deadline::{Deadline, under};
use domain::card::{CardKey, PinStatus, PlasticId, ReencryptedPin, RegisteredAccount, StoredPin, Tenant};
use domain::control::{
    Control, ControlId, Denied, NewControl, PageClient, PageId, RetryTag, Scope, SealedTzpk, Transition,
};
use domain::rules::{Admission, UnknownCards};
use domain::storage_key::{LoadedKeys, RecordKey, StorageKeyKind};

/// Runs every test, each on a store of its own name. `open` opens the store of a name.
///
/// # Panics
/// The store does not do what every store must.
pub async fn run(open: impl AsyncFn(&str) -> Arc<dyn Store>) {
    macro_rules! with_a_store {
        ($($test:ident,)+) => { $($test(&*open(stringify!($test)).await).await;)+ };
    }
    macro_rules! with_restarts {
        ($($test:ident,)+) => { $($test(async || open(stringify!($test)).await).await;)+ };
    }
    with_a_store! {
        a_control_is_found_as_it_was_opened,
        a_card_waits_for_its_pin_until_one_is_set,
        an_unknown_control_is_not_usable,
        a_card_has_no_more_controls_in_an_hour_than_its_cap,
        an_unknown_card_is_accepted_or_refused_as_configured,
        a_card_is_known_once_it_is_registered_or_has_a_pin,
        the_unregistered_cards_of_a_tenant_are_limited,
        an_account_number_is_not_changed_under_a_pin,
        account_numbers_are_read_in_the_order_of_the_cards,
        a_control_follows_the_account_number_of_its_card,
        a_record_under_an_older_storage_key_is_superseded,
        every_change_has_its_event_and_no_denial_has,
        a_scan_finds_each_record_once,
        a_reencrypted_record_does_not_replace_a_newer_pin,
        records_are_reencrypted_in_any_order_and_none_between_them,
        the_first_set_closes_the_other_open_controls_of_its_card,
        a_new_pin_leaves_controls_to_view_and_other_cards_alone,
        a_view_of_a_replaced_record_is_superseded_and_keeps_its_control,
        one_page_starts_a_control_and_may_repeat,
        a_page_of_another_client_starts_no_control,
        a_retry_is_confirmed_while_its_pin_stands,
        a_confirmed_retry_closes_controls_opened_before_it,
        reencryption_and_a_new_account_number_close_no_control,
        a_change_is_dropped_once_its_deadline_has_passed,
        the_live_tzpks_are_the_newest_of_usable_controls,
        a_closed_store_refuses_changes,
        a_zone_block_sets_its_pin_once,
        a_zone_block_and_a_control_replace_each_others_pin,
        a_pin_is_given_while_its_record_stands,
        a_right_pin_forgives_up_to_its_own_number,
        a_try_by_value_needs_no_record,
        a_new_pin_leaves_the_tries_and_a_reset_forgives_what_was_seen,
        a_settled_try_moves_a_one_way_record,
        a_changed_pin_needs_the_generation_of_its_try,
        a_change_spends_the_control_of_its_caller,
        a_generated_pin_waits_for_personalisation,
        an_account_number_is_replaced_with_its_record,
        a_reissued_card_gets_the_pin_of_its_predecessor,
        no_change_writes_a_record_under_an_older_storage_key,
        a_compared_try_is_settled_after_the_callers_deadline,
    }
    one_of_many_racing_changes_to_a_control_is_made(open("racing_changes").await).await;
    one_of_many_racing_pages_of_a_control_is_started(open("racing_pages").await).await;
    racing_calls_have_no_more_tries_than_the_limit(open("racing_tries").await).await;
    with_restarts! {
        a_restart_keeps_cards_controls_pins_and_the_chain,
        a_restart_keeps_the_keys_in_use_and_their_minimum_versions,
        a_restart_keeps_a_started_page,
        a_restart_keeps_the_cap_of_a_card,
        archived_entries_are_passed_over_and_the_rest_verifies,
        a_restart_keeps_the_unregistered_cards,
        a_restart_keeps_tries_tags_and_the_origin_of_a_pin,
    }
}

pub const GENEROUS: Admission = Admission {
    controls_per_card_per_hour: 1_000_000,
    unknown_cards: UnknownCards::Accept,
    unregistered_cards_per_tenant: 1_000_000,
};

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
        page_client: None,
    }
}

pub fn card_event(action: Action) -> Event {
    engine_event(Body::Card(CardEvent::new(action, "***1".into(), CardReference::from_bytes([7; 16]))))
}

pub fn engine_event(body: Body) -> Event {
    let stamp = Stamp { level: Level::Host, token: "software".into(), isolation: Isolation::Process, keys: [].into() };
    Event {
        at: clock::now(),
        caller: "suite".into(),
        tenant: Tenant::parse("bank").ok(),
        audit_user: "suite".into(),
        request: None,
        outcome: Outcome::Done,
        stamp: Arc::new(stamp),
        body,
    }
}

fn reencrypted_event(count: u64) -> Event {
    engine_event(Body::RecordsReencrypted { count })
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
pub fn reencrypted(card: CardKey, before: u8, after: u8) -> ReencryptedPin {
    ReencryptedPin { card, before: record(before).record, after: record(after).record, key: key(after) }
}

pub fn record(number: u8) -> StoredPin {
    StoredPin { record: [number; 38].into(), key: key(number), account: None }
}

/// The view of the record [`record`] makes of `number`.
pub fn view(number: u8) -> Transition {
    Transition::View { shown: record(number).record }
}

/// Opens a control to view the PIN.
pub async fn viewing(store: &dyn Store, card: CardKey) -> Control {
    let control = NewControl { scope: Scope::ViewPin, ..control(card) };
    store.open_control(control, GENEROUS, card_event(Action::OpenControl)).await.unwrap()
}

/// Opens a control and issues its tzpk.
pub async fn keyed(store: &dyn Store, card: CardKey) -> Control {
    keyed_as(store, control(card)).await
}

async fn keyed_as(store: &dyn Store, control: NewControl) -> Control {
    let opened = store.open_control(control, GENEROUS, card_event(Action::OpenControl)).await.unwrap();
    store
        .advance(opened.id, Transition::Key { tzpk: tzpk(1), replaces: None }, card_event(Action::IssueTzpk))
        .await
        .unwrap();
    opened
}

/// Sets a PIN bound to the number the control has.
pub async fn set(store: &dyn Store, id: ControlId, number: u8) -> Result<(), ChangeError> {
    let account = store.control(id).await.unwrap().and_then(|control| control.account);
    set_bound(store, id, number, account).await
}

async fn set_bound(
    store: &dyn Store,
    id: ControlId,
    number: u8,
    account: Option<RegisteredAccount>,
) -> Result<(), ChangeError> {
    let pin = StoredPin { account, ..record(number) };
    let set = Transition::Set { under: tzpk(1), retry: RetryTag([number; 16]), pin };
    store.advance(id, set, card_event(Action::SetPin)).await
}

fn account(number: u8) -> Option<RegisteredAccount> {
    Some(RegisteredAccount { sealed: [number; 30].into(), masked: "411111******1111".into() })
}

async fn a_control_is_found_as_it_was_opened(store: &dyn Store) {
    store.register_card(card(1), account(7), card_event(Action::RegisterCard)).await.unwrap();
    let (before, lifetime) = (store.now(), control(card(1)).lifetime);
    let opened = store.open_control(control(card(1)), GENEROUS, card_event(Action::OpenControl)).await.unwrap();
    let from_the_change = before.after(lifetime)..=store.now().after(lifetime);
    assert!(from_the_change.contains(&opened.expires_at), "{:?}", opened.expires_at);
    assert_eq!(opened.account, account(7), "the PAN comes from the card");
    let found = store.control(opened.id).await.unwrap().unwrap();
    assert_eq!((found.card, found.account, found.expires_at), (opened.card, opened.account, opened.expires_at));
    assert!(store.control(ControlId::random()).await.unwrap().is_none());
}

async fn a_card_waits_for_its_pin_until_one_is_set(store: &dyn Store) {
    let opened = keyed(store, card(1)).await;
    assert_eq!(store.card(&card(1)).await.unwrap().unwrap().pin_status, PinStatus::Waiting);
    assert!(store.pin(&card(1)).await.unwrap().is_none());
    set(store, opened.id, 9).await.unwrap();
    assert_eq!(store.card(&card(1)).await.unwrap().unwrap().pin_status, PinStatus::Set);
    assert_eq!(*store.pin(&card(1)).await.unwrap().unwrap().record, [9; 38]);
}

async fn one_of_many_racing_changes_to_a_control_is_made(store: Arc<dyn Store>) {
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
            (_, Err(ChangeError::Denied(Denied::NotUsable))) => {}
            (_, Err(error)) => panic!("{error}"),
        }
    }
    assert_eq!(winners.len(), 1);
    assert_eq!(*store.pin(&card(1)).await.unwrap().unwrap().record, [winners[0]; 38]);
}

/// The client whose pages may start the controls of [`paged`].
fn wallet() -> PageClient {
    PageClient::of_name("wallet").unwrap()
}

/// Opens a control that pages of [`wallet`] may start, and issues its tzpk.
async fn paged(store: &dyn Store, card: CardKey) -> Control {
    keyed_as(store, NewControl { page_client: Some(wallet()), ..control(card) }).await
}

async fn start_page(store: &dyn Store, id: ControlId, page: PageId) -> Result<(), ChangeError> {
    store.start_page(id, wallet(), page, card_event(Action::StartPage)).await
}

async fn one_page_starts_a_control_and_may_repeat(store: &dyn Store) {
    let (opened, other) = (paged(store, card(1)).await, paged(store, card(1)).await);
    let (page, second) = (PageId::random(), PageId::random());
    start_page(store, opened.id, page).await.unwrap();
    let entries = store.audit(1, 1_000).await.unwrap();
    assert_eq!(action(entries.last().unwrap()), Some(Action::StartPage));
    start_page(store, opened.id, page).await.unwrap();
    for (id, page) in [(opened.id, second), (ControlId::random(), page)] {
        assert!(is_not_usable(&start_page(store, id, page).await));
    }
    let count = store.audit(1, 1_000).await.unwrap().len();
    assert_eq!(count, entries.len(), "a repeated or refused page has no event of the change");
    let newer = Transition::Key { tzpk: tzpk(2), replaces: Some(tzpk(1)) };
    store.advance(opened.id, newer, card_event(Action::IssueTzpk)).await.unwrap();
    assert!(is_not_usable(&start_page(store, opened.id, second).await), "a newer tzpk allows no second page");
    start_page(store, opened.id, page).await.unwrap();
    let set = Transition::Set { under: tzpk(2), retry: RetryTag([1; 16]), pin: record(1) };
    store.advance(opened.id, set, card_event(Action::SetPin)).await.unwrap();
    for (id, page) in [(opened.id, page), (other.id, second)] {
        assert!(is_not_usable(&start_page(store, id, page).await), "spent, or closed by a newer PIN");
    }
}

async fn a_page_of_another_client_starts_no_control(store: &dyn Store) {
    let (of_wallet, of_none) = (paged(store, card(1)).await, keyed(store, card(2)).await);
    let (page, other) = (PageId::random(), PageClient::of_name("other").unwrap());
    for (id, client) in [(of_wallet.id, other), (of_none.id, other), (of_none.id, wallet())] {
        let refused = store.start_page(id, client, page, card_event(Action::StartPage)).await;
        assert!(is_not_usable(&refused), "{refused:?}");
    }
    start_page(store, of_wallet.id, page).await.unwrap();
}

async fn one_of_many_racing_pages_of_a_control_is_started(store: Arc<dyn Store>) {
    let opened = paged(&*store, card(1)).await;
    let pages: Vec<_> = (0..16).map(|_| PageId::random()).collect();
    let racers: Vec<_> = pages
        .iter()
        .cycle()
        .take(64)
        .map(|page| {
            let (store, page) = (Arc::clone(&store), *page);
            tokio::spawn(async move { (page, start_page(&*store, opened.id, page).await) })
        })
        .collect();
    let mut started = Vec::new();
    for racer in racers {
        match racer.await.unwrap() {
            (page, Ok(())) => started.push(page),
            (_, refused) => assert!(is_not_usable(&refused), "{refused:?}"),
        }
    }
    assert_eq!(started, [started[0]; 4], "each call of one page");
    let entries = store.audit(1, 1_000).await.unwrap();
    assert_eq!(entries.iter().filter(|entry| action(entry) == Some(Action::StartPage)).count(), 1);
    set(&*store, opened.id, 1).await.unwrap();
}

async fn a_restart_keeps_a_started_page(open: impl AsyncFn() -> Arc<dyn Store>) {
    let store = open().await;
    let (started, other, of_none) =
        (paged(&*store, card(1)).await, paged(&*store, card(2)).await, keyed(&*store, card(3)).await);
    let (page, second) = (PageId::random(), PageId::random());
    start_page(&*store, started.id, page).await.unwrap();
    let count = store.audit(1, 1_000).await.unwrap().len();
    close(store).await;

    let store = open().await;
    start_page(&*store, started.id, page).await.unwrap();
    for (id, page) in [(started.id, second), (of_none.id, page)] {
        assert!(is_not_usable(&start_page(&*store, id, page).await));
    }
    assert_eq!(store.audit(1, 1_000).await.unwrap().len(), count, "the repeat has no event");
    start_page(&*store, other.id, second).await.unwrap();
    set(&*store, started.id, 1).await.unwrap();
    close(store).await;
}

async fn an_unknown_control_is_not_usable(store: &dyn Store) {
    let answer = set(store, ControlId::random(), 1).await;
    assert!(matches!(answer, Err(ChangeError::Denied(Denied::NotUsable))));
}

async fn a_card_has_no_more_controls_in_an_hour_than_its_cap(store: &dyn Store) {
    let admission = Admission { controls_per_card_per_hour: 2, ..GENEROUS };
    let mut opened = 0;
    // The hour may turn in between.
    let refused = loop {
        match store.open_control(control(card(1)), admission, card_event(Action::OpenControl)).await {
            Ok(_) => opened += 1,
            Err(error) => break error,
        }
    };
    assert!(
        matches!(refused, ChangeError::Denied(Denied::Cap { cap: 2, .. })) && (2..=4).contains(&opened),
        "{opened}: {refused}"
    );
    store.open_control(control(card(2)), admission, card_event(Action::OpenControl)).await.unwrap();
}

async fn an_unknown_card_is_accepted_or_refused_as_configured(store: &dyn Store) {
    let strict = Admission { unknown_cards: UnknownCards::Refuse, ..GENEROUS };
    let refused = store.open_control(control(card(1)), strict, card_event(Action::OpenControl)).await;
    assert!(matches!(refused, Err(ChangeError::Denied(Denied::CardUnknown))));
    assert!(store.card(&card(1)).await.unwrap().is_none());
    store.register_card(card(1), None, card_event(Action::RegisterCard)).await.unwrap();
    store.open_control(control(card(1)), strict, card_event(Action::OpenControl)).await.unwrap();
}

async fn a_card_is_known_once_it_is_registered_or_has_a_pin(store: &dyn Store) {
    let strict = Admission { unknown_cards: UnknownCards::Refuse, ..GENEROUS };
    let open = async |number, admission| {
        store.open_control(control(card(number)), admission, card_event(Action::OpenControl)).await
    };
    let (set_later, registered_later) = (keyed(store, card(1)).await, open(2, GENEROUS).await.unwrap());
    for number in 1..=2 {
        let refused = open(number, strict).await;
        assert!(matches!(refused, Err(ChangeError::Denied(Denied::CardUnknown))), "a control alone adds no card");
    }
    set(store, set_later.id, 1).await.unwrap();
    store.register_card(card(2), account(1), card_event(Action::RegisterCard)).await.unwrap();
    assert_eq!(store.control(registered_later.id).await.unwrap().unwrap().account, account(1));
    for number in 1..=2 {
        open(number, strict).await.unwrap();
    }
}

/// An admission of this many unregistered cards of a tenant.
fn with_unregistered(cards: u32) -> Admission {
    Admission { unregistered_cards_per_tenant: cards, ..GENEROUS }
}

async fn the_unregistered_cards_of_a_tenant_are_limited(store: &dyn Store) {
    let open = async |card, max| {
        store.open_control(control(card), with_unregistered(max), card_event(Action::OpenControl)).await
    };
    let is_limited = |answer: &Result<Control, ChangeError>| {
        matches!(answer, Err(ChangeError::Denied(Denied::UnregisteredCards { max: 2 })))
    };
    let first = keyed(store, card(1)).await;
    open(card(2), 2).await.unwrap();
    assert!(is_limited(&open(card(3), 2).await));
    assert!(store.card(&card(3)).await.unwrap().is_none());
    open(card(2), 2).await.unwrap();
    let elsewhere = CardKey { tenant: Tenant::parse("other").unwrap(), ..card(3) };
    open(elsewhere, 2).await.unwrap();

    set(store, first.id, 1).await.unwrap();
    open(card(3), 2).await.unwrap();
    assert!(is_limited(&open(card(4), 2).await));
    store.register_card(card(3), None, card_event(Action::RegisterCard)).await.unwrap();
    open(card(4), 2).await.unwrap();
    assert!(is_limited(&open(card(5), 2).await));
}

async fn an_account_number_is_not_changed_under_a_pin(store: &dyn Store) {
    store.register_card(card(1), account(1), card_event(Action::RegisterCard)).await.unwrap();
    store.register_card(card(1), account(2), card_event(Action::RegisterCard)).await.unwrap();
    let opened = keyed(store, card(1)).await;
    set(store, opened.id, 1).await.unwrap();
    let bound = store.register_card(card(1), account(3), card_event(Action::RegisterCard)).await;
    assert!(matches!(bound, Err(ChangeError::Denied(Denied::AccountBound))));
    let same = store.register_card(card(1), account(2), card_event(Action::RegisterCard)).await.unwrap();
    assert_eq!((same.account, same.pin_status), (account(2), PinStatus::Set));
    let left = store.register_card(card(1), None, card_event(Action::RegisterCard)).await.unwrap();
    assert_eq!(left.account, account(2), "an absent number leaves the registered one");
}

async fn account_numbers_are_read_in_the_order_of_the_cards(store: &dyn Store) {
    for (number, account) in [(1, account(1)), (2, None), (3, account(3))] {
        store.register_card(card(number), account, card_event(Action::RegisterCard)).await.unwrap();
    }
    let cards = [3, 2, 9, 1, 3].map(card);
    let accounts = store.accounts(&cards).await.unwrap();
    assert_eq!(accounts, [account(3), None, None, account(1), account(3)]);
    assert!(store.accounts(&[]).await.unwrap().is_empty());
}

async fn a_control_follows_the_account_number_of_its_card(store: &dyn Store) {
    for number in 1..=2 {
        store.register_card(card(number), account(1), card_event(Action::RegisterCard)).await.unwrap();
    }
    let (opened, others) = (keyed(store, card(1)).await, keyed(store, card(2)).await);
    store.register_card(card(1), account(2), card_event(Action::RegisterCard)).await.unwrap();
    let account_of = async |id| store.control(id).await.unwrap().unwrap().account;
    assert_eq!((account_of(opened.id).await, account_of(others.id).await), (account(2), account(1)));

    let before = set_bound(store, opened.id, 1, account(1)).await;
    assert!(matches!(before, Err(ChangeError::Denied(Denied::Superseded))), "judged for the number before");
    assert!(store.pin(&card(1)).await.unwrap().is_none());
    set_bound(store, opened.id, 1, account(2)).await.unwrap();
    assert_eq!(store.pin(&card(1)).await.unwrap().unwrap().account, account(2));
}

/// The report of an engine that has compared its keys with no other's.
pub fn reported(list: &[u8], loaded: LoadedKeys) -> ReportedKeys {
    ReportedKeys { list: list.into(), loaded, ..ReportedKeys::default() }
}

/// Versions of the ISO-4 storage key.
pub fn iso_4_keys(versions: impl IntoIterator<Item = u16>) -> LoadedKeys {
    versions.into_iter().map(|version| RecordKey { kind: StorageKeyKind::Iso4, version }).collect()
}

async fn a_record_under_an_older_storage_key_is_superseded(store: &dyn Store) {
    let opened = keyed(store, card(1)).await;
    store.set_keys_in_use(reported(&[], iso_4_keys([1, 2])), engine_event(Body::KeysReloaded)).await.unwrap();
    assert!(is_superseded(&set(store, opened.id, 1).await));
    assert!(store.pin(&card(1)).await.unwrap().is_none());
    set(store, opened.id, 2).await.unwrap();
    let kept = store.pin(&card(1)).await.unwrap().unwrap();
    assert_eq!((kept.record, kept.key), (record(2).record, key(2)));

    let reencrypt = async |after| store.reencrypt(vec![reencrypted(card(1), 2, after)], reencrypted_event(0)).await;
    assert_eq!(reencrypt(1).await.unwrap(), 0, "under an older key");
    assert_eq!(reencrypt(3).await.unwrap(), 1);
    assert_eq!(store.pin(&card(1)).await.unwrap().unwrap().key, key(3));
}

async fn every_change_has_its_event_and_no_denial_has(store: &dyn Store) {
    let opened = keyed(store, card(1)).await;
    set(store, opened.id, 1).await.unwrap();
    set(store, opened.id, 2).await.unwrap_err();
    store.advance(opened.id, view(1), card_event(Action::ViewPin)).await.unwrap_err();
    store.record_event(engine_event(Body::EngineStopped)).await.unwrap();

    let entries = store.audit(1, 100).await.unwrap();
    let actions: Vec<_> = entries.iter().map(action).collect();
    assert_eq!(actions, [Some(Action::OpenControl), Some(Action::IssueTzpk), Some(Action::SetPin), None]);
    assert_eq!(entries[3].event.body, Body::EngineStopped);
    let mut walk = ChainVerifier::new(Vec::new());
    entries.iter().try_for_each(|entry| walk.check(entry)).unwrap();
    assert_eq!(store.audit(3, 1).await.unwrap(), entries[2..3]);
}

async fn a_scan_finds_each_record_once(store: &dyn Store) {
    for number in 1..=5 {
        let opened = keyed(store, card(number)).await;
        set(store, opened.id, number as u8).await.unwrap();
    }
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = store.scan_pins(after.as_ref(), 2).await.unwrap();
        assert!(page.len() <= 2);
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        found.extend(page.into_iter().map(|(card, pin)| (card, pin.record[0])));
    }
    found.sort();
    assert_eq!(found, (1..=5).map(|number| (card(number), number as u8)).collect::<Vec<_>>());
}

async fn a_reencrypted_record_does_not_replace_a_newer_pin(store: &dyn Store) {
    for number in 1..=2 {
        let opened = keyed(store, card(number)).await;
        set(store, opened.id, 1).await.unwrap();
    }
    let set_at = store.card(&card(1)).await.unwrap().unwrap().pin_set_at;
    let newer = keyed(store, card(2)).await;
    set(store, newer.id, 2).await.unwrap();
    let replacing = |number| reencrypted(card(number), 1, 9);

    assert_eq!(store.reencrypt(vec![replacing(1), replacing(2), replacing(3)], reencrypted_event(0)).await.unwrap(), 1);
    assert_eq!(*store.pin(&card(1)).await.unwrap().unwrap().record, [9; 38]);
    assert_eq!(*store.pin(&card(2)).await.unwrap().unwrap().record, [2; 38]);
    assert_eq!(store.card(&card(1)).await.unwrap().unwrap().pin_set_at, set_at, "the PIN is as old as it was");
    let entries = store.audit(1, 1_000).await.unwrap();
    assert_eq!(entries.last().unwrap().event.body, Body::RecordsReencrypted { count: 1 });
    let entries = entries.len();
    assert_eq!(store.reencrypt(vec![replacing(1)], reencrypted_event(0)).await.unwrap(), 0);
    assert_eq!(store.audit(1, 1_000).await.unwrap().len(), entries, "nothing was replaced, so nothing is recorded");
}

async fn records_are_reencrypted_in_any_order_and_none_between_them(store: &dyn Store) {
    for number in [2, 3, 5, 7, 8] {
        let opened = keyed(store, card(number)).await;
        set(store, opened.id, 1).await.unwrap();
    }
    // Cards 1, 4, 6 and 9 have no PIN.
    let rounds = [(vec![1, 2, 4, 5, 6, 8, 9], 20, 3), (vec![8, 2, 5], 30, 3), (vec![1, 4], 50, 0), (vec![7], 60, 1)];
    for (numbers, after, count) in rounds {
        let mut replacing = Vec::new();
        for &number in &numbers {
            let stands = store.pin(&card(number)).await.unwrap();
            let before = stands.map_or(record(1).record, |pin| pin.record);
            replacing.push(ReencryptedPin { before, ..reencrypted(card(number), 1, after) });
        }
        assert_eq!(store.reencrypt(replacing, reencrypted_event(0)).await.unwrap(), count, "{numbers:?}");
    }
    for (number, expected) in [(2, Some(30)), (3, Some(1)), (5, Some(30)), (7, Some(60)), (8, Some(30)), (4, None)] {
        assert_eq!(store.pin(&card(number)).await.unwrap(), expected.map(record), "{number}");
    }
}

pub async fn confirm(store: &dyn Store, id: ControlId, number: u8) -> Result<(), ChangeError> {
    store.confirm_retry(id, RetryTag([number; 16]), card_event(Action::ConfirmSetPin)).await
}

fn is_not_usable(answer: &Result<(), ChangeError>) -> bool {
    matches!(answer, Err(ChangeError::Denied(Denied::NotUsable)))
}

fn is_superseded(answer: &Result<(), ChangeError>) -> bool {
    matches!(answer, Err(ChangeError::Denied(Denied::Superseded)))
}

async fn the_first_set_closes_the_other_open_controls_of_its_card(store: &dyn Store) {
    let (first, other) = (keyed(store, card(1)).await, keyed(store, card(1)).await);
    set(store, other.id, 2).await.unwrap();
    assert!(is_not_usable(&set(store, first.id, 1).await));
    let malformed = Transition::Malformed { under: tzpk(1) };
    for event in [
        Transition::Key { tzpk: tzpk(2), replaces: Some(tzpk(1)) },
        malformed,
        Transition::RefusedPin { under: tzpk(1) },
    ] {
        assert!(is_not_usable(&store.advance(first.id, event, card_event(Action::SetPin)).await));
    }
    assert_eq!(*store.pin(&card(1)).await.unwrap().unwrap().record, [2; 38]);
    let later = keyed(store, card(1)).await;
    set(store, later.id, 3).await.unwrap();
}

async fn a_new_pin_leaves_controls_to_view_and_other_cards_alone(store: &dyn Store) {
    let viewer = viewing(store, card(1)).await;
    let (setter, other) = (keyed(store, card(1)).await, keyed(store, card(2)).await);
    set(store, setter.id, 1).await.unwrap();
    store.advance(viewer.id, view(1), card_event(Action::ViewPin)).await.unwrap();
    set(store, other.id, 2).await.unwrap();
}

async fn a_view_of_a_replaced_record_is_superseded_and_keeps_its_control(store: &dyn Store) {
    let (viewer, setter) = (viewing(store, card(1)).await, keyed(store, card(1)).await);
    let shown = async |number| store.advance(viewer.id, view(number), card_event(Action::ViewPin)).await;
    assert!(is_superseded(&shown(1).await), "the card has no PIN");
    set(store, setter.id, 1).await.unwrap();
    let later = keyed(store, card(1)).await;
    set(store, later.id, 2).await.unwrap();
    let entries = store.audit(1, 1_000).await.unwrap().len();
    assert!(is_superseded(&shown(1).await), "a newer PIN");
    let replacing = reencrypted(card(1), 2, 3);
    assert_eq!(store.reencrypt(vec![replacing], reencrypted_event(0)).await.unwrap(), 1);
    assert!(is_superseded(&shown(2).await), "the record was re-encrypted");
    assert_eq!(store.audit(1, 1_000).await.unwrap().len(), entries + 1, "a superseded view has no event");
    shown(3).await.unwrap();
    assert!(is_not_usable(&shown(3).await), "one control shows a PIN once");
}

async fn a_retry_is_confirmed_while_its_pin_stands(store: &dyn Store) {
    let first = keyed(store, card(1)).await;
    assert!(is_not_usable(&confirm(store, first.id, 1).await), "nothing is set yet");
    set(store, first.id, 1).await.unwrap();
    let before = store.audit(1, 1_000).await.unwrap().len();
    confirm(store, first.id, 1).await.unwrap();
    confirm(store, first.id, 1).await.unwrap();
    let entries = store.audit(1, 1_000).await.unwrap();
    assert!(entries[before..].iter().all(|entry| action(entry) == Some(Action::ConfirmSetPin)));
    assert_eq!(entries.len(), before + 2, "a confirmed retry has its event");
    assert!(is_not_usable(&confirm(store, first.id, 2).await), "another block");
    assert!(is_not_usable(&confirm(store, ControlId::random(), 1).await));

    let second = keyed(store, card(1)).await;
    set(store, second.id, 2).await.unwrap();
    assert!(is_not_usable(&confirm(store, first.id, 1).await), "its PIN was replaced");
    confirm(store, second.id, 2).await.unwrap();
    assert_eq!(store.audit(1, 1_000).await.unwrap().len(), before + 6);
}

async fn a_confirmed_retry_closes_controls_opened_before_it(store: &dyn Store) {
    let first = keyed(store, card(1)).await;
    set(store, first.id, 1).await.unwrap();
    let second = keyed(store, card(1)).await;
    confirm(store, first.id, 1).await.unwrap();
    assert!(is_not_usable(&set(store, second.id, 2).await));
    assert_eq!(*store.pin(&card(1)).await.unwrap().unwrap().record, [1; 38]);
}

async fn reencryption_and_a_new_account_number_close_no_control(store: &dyn Store) {
    let (first, waiting) = (keyed(store, card(1)).await, keyed(store, card(2)).await);
    set(store, first.id, 1).await.unwrap();
    let second = keyed(store, card(1)).await;
    let replacing = reencrypted(card(1), 1, 9);
    assert_eq!(store.reencrypt(vec![replacing], reencrypted_event(0)).await.unwrap(), 1);
    confirm(store, first.id, 1).await.unwrap();
    assert!(is_not_usable(&set(store, second.id, 2).await), "the retry has closed it");
    let third = keyed(store, card(1)).await;
    let replacing = reencrypted(card(1), 9, 8);
    assert_eq!(store.reencrypt(vec![replacing], reencrypted_event(0)).await.unwrap(), 1);
    set(store, third.id, 3).await.unwrap();

    store.register_card(card(2), account(2), card_event(Action::RegisterCard)).await.unwrap();
    set(store, waiting.id, 1).await.unwrap();
}

async fn a_change_is_dropped_once_its_deadline_has_passed(store: &dyn Store) {
    let opened = keyed(store, card(1)).await;
    let entries = store.audit(1, 1_000).await.unwrap().len();
    let late = under(Some(Deadline::within(Duration::ZERO)), set(store, opened.id, 1)).await;
    assert!(matches!(late, Err(ChangeError::Store(StoreError::DeadlinePassed))), "{late:?}");
    assert_eq!(store.audit(1, 1_000).await.unwrap().len(), entries);
    under(Some(Deadline::within(Duration::from_secs(3_600))), set(store, opened.id, 2)).await.unwrap();
    assert_eq!(*store.pin(&card(1)).await.unwrap().unwrap().record, [2; 38]);
}

async fn the_live_tzpks_are_the_newest_of_usable_controls(store: &dyn Store) {
    let (keyed, spent) = (keyed(store, card(1)).await, keyed(store, card(2)).await);
    store.open_control(control(card(3)), GENEROUS, card_event(Action::OpenControl)).await.unwrap();
    set(store, spent.id, 1).await.unwrap();
    let newer = Transition::Key { tzpk: tzpk(2), replaces: Some(tzpk(1)) };
    store.advance(keyed.id, newer, card_event(Action::IssueTzpk)).await.unwrap();
    assert!(store.live_tzpks().await.unwrap() == [tzpk(2)]);
}

async fn a_closed_store_refuses_changes(store: &dyn Store) {
    let opened = keyed(store, card(1)).await;
    store.close().await;
    let refused = set(store, opened.id, 1).await;
    assert!(matches!(refused, Err(ChangeError::Store(StoreError::Unavailable(_)))), "{refused:?}");
}

async fn a_restart_keeps_cards_controls_pins_and_the_chain(open: impl AsyncFn() -> Arc<dyn Store>) {
    let store = open().await;
    let spent = keyed(&*store, card(1)).await;
    set(&*store, spent.id, 5).await.unwrap();
    let half_way = keyed(&*store, card(2)).await;
    let checkpoint = store.checkpoint().await.unwrap();
    close(store).await;

    let store = open().await;
    assert_eq!(store.checkpoint().await.unwrap(), checkpoint);
    assert_eq!(*store.pin(&card(1)).await.unwrap().unwrap().record, [5; 38]);
    set(&*store, spent.id, 6).await.unwrap_err();
    set(&*store, half_way.id, 7).await.unwrap();
    let mut walk = ChainVerifier::new(vec![checkpoint]);
    store.audit(1, 100).await.unwrap().iter().try_for_each(|entry| walk.check(entry)).unwrap();
    walk.finish().unwrap();
    close(store).await;
}

async fn a_restart_keeps_the_keys_in_use_and_their_minimum_versions(open: impl AsyncFn() -> Arc<dyn Store>) {
    let keys = async |store: &Arc<dyn Store>| (store.keys_in_use().await.unwrap(), store.needs_keys().await.unwrap());
    let store = open().await;
    assert_eq!(keys(&store).await, (None, false));
    let started = engine_event(Body::EngineStarted { engine: "host:/store".into() });
    assert!(store.card_reference_key().await.unwrap().is_none());
    let references = CardReferenceKey::random();
    let start = KeysAtStart { card_reference_key: references.clone() };
    store.set_keys_at_start(reported(&[1], LoadedKeys::default()), start, started).await.unwrap();
    store.set_keys_in_use(reported(&[2, 3], iso_4_keys([1, 2])), engine_event(Body::KeysReloaded)).await.unwrap();
    let control = keyed(&*store, card(1)).await;
    assert!(store.needs_keys().await.unwrap(), "a card may have an account number");
    close(store).await;

    let store = open().await;
    assert_eq!(keys(&store).await, (Some(vec![2, 3]), true));
    assert_eq!(store.card_reference_key().await.unwrap().unwrap().as_bytes(), references.as_bytes());
    assert!(is_superseded(&set(&*store, control.id, 1).await));
    set(&*store, control.id, 2).await.unwrap();
    close(store).await;
}

/// The event of a removal.
pub fn archived_event(part: &ArchivedPart) -> Event {
    let Checkpoint { sequence: last, hash } = part.end();
    let file = "00000000000000000001.jsonl".into();
    engine_event(Body::AuditArchived(ArchivedSegment { first: 1, last, hash, file, file_sha256: [5; 32] }))
}

/// The archived part of a chain up to an entry.
pub async fn part_to(store: &dyn Store, last: usize) -> ArchivedPart {
    let key = SigningKey::from_text(&"07".repeat(32)).unwrap();
    let mut entries = store.audit(1, last).await.unwrap().into_iter();
    let before = store.archived().await.unwrap();
    let mut part = before.unwrap_or_else(|| ArchivedPart::new(&entries.next().unwrap(), &key));
    entries.for_each(|entry| part.push(&entry, &key));
    part
}

async fn archived_entries_are_passed_over_and_the_rest_verifies(open: impl AsyncFn() -> Arc<dyn Store>) {
    let store = open().await;
    let started = engine_event(Body::EngineStarted { engine: "host:/store".into() });
    store.record_event(started).await.unwrap();
    for _ in 2..=10 {
        store.record_event(card_event(Action::OpenControl)).await.unwrap();
    }
    assert_eq!(store.archived().await.unwrap(), None);
    let part = part_to(&*store, 4).await;
    for end in [Checkpoint { hash: [7; 32], ..part.end() }, Checkpoint { sequence: 99, ..part.end() }] {
        let tree = ChainTree::from_subtrees("other".into(), end, vec![[0; 32]; end.sequence.count_ones() as usize]);
        let part = ArchivedPart { tree: tree.unwrap(), ..part.clone() };
        let event = archived_event(&part);
        let refused = store.remove_archived(part, event).await;
        assert!(matches!(refused, Err(StoreError::Damaged { .. })), "{refused:?}");
    }
    assert_eq!(store.audit(1, 100).await.unwrap().len(), 10, "a refused removal has no event");
    store.remove_archived(part.clone(), archived_event(&part)).await.unwrap();
    let (end, whole) = (part.end(), store.checkpoint().await.unwrap());

    let verified = async |store: &dyn Store, part: &ArchivedPart, whole: Checkpoint| {
        let entries = store.audit(1, 100).await.unwrap();
        assert_eq!(entries[0].sequence, part.end().sequence + 1);
        assert_eq!(store.audit(part.end().sequence, 1).await.unwrap(), entries[..1]);
        let mut walk = ChainVerifier::after(part.end(), vec![whole]);
        entries.iter().try_for_each(|entry| walk.check(entry)).unwrap();
        walk.finish().unwrap();
        assert_eq!(store.archived().await.unwrap().as_ref(), Some(part));
        assert_eq!(part.engines.iter().collect::<Vec<_>>(), ["host:/store"]);
    };
    assert_eq!((end.sequence, whole.sequence), (4, 11));
    verified(&*store, &part, whole).await;
    close(store).await;
    let store = open().await;
    verified(&*store, &part, whole).await;
    let more = part_to(&*store, 3).await;
    store.remove_archived(more.clone(), archived_event(&more)).await.unwrap();
    verified(&*store, &more, store.checkpoint().await.unwrap()).await;
    // The entries before are gone.
    let event = archived_event(&part);
    assert!(matches!(store.remove_archived(part, event).await, Err(StoreError::Damaged { .. })));
    close(store).await;
}

async fn a_restart_keeps_the_cap_of_a_card(open: impl AsyncFn() -> Arc<dyn Store>) {
    let admission = Admission { controls_per_card_per_hour: 1, ..GENEROUS };
    let mut refused = false;
    // The hour may turn once in between, and not twice.
    for _ in 0..3 {
        let store = open().await;
        refused |= store.open_control(control(card(1)), admission, card_event(Action::OpenControl)).await.is_err();
        close(store).await;
    }
    assert!(refused);
}

async fn a_restart_keeps_the_unregistered_cards(open: impl AsyncFn() -> Arc<dyn Store>) {
    let store = open().await;
    let waiting = keyed(&*store, card(1)).await;
    close(store).await;

    let store = open().await;
    let refused =
        store.open_control(control(card(2)), with_unregistered(1), card_event(Action::OpenControl)).await.err();
    assert!(matches!(refused, Some(ChangeError::Denied(Denied::UnregisteredCards { max: 1 }))), "{refused:?}");
    store.register_card(card(1), account(1), card_event(Action::RegisterCard)).await.unwrap();
    assert_eq!(store.control(waiting.id).await.unwrap().unwrap().account, account(1));
    close(store).await;
}

/// Closes a store and lets go of it, so that it can be opened again.
async fn close(store: Arc<dyn Store>) {
    store.close().await;
    drop(store);
}
