use std::sync::atomic::Ordering;

use super::*;
use audit::entry::{Action, Body};
use clock::set_time::SetTime;
use domain::control::{Denied, RetryTag, Transition};
use domain::tries::{Compared, Verdict};
use store::ChangeError;
use store::conformance::pin_use::{LIMIT, reserve, set_by_zone, settle};
use store::conformance::{self, GENEROUS, card, card_event, confirm, control, engine_event, keyed, set};

/// Opens a store whose clocks the test moves.
fn open_at(directory: &Path, time: &Arc<SetTime>) -> Embedded {
    Embedded::open_at(&EmbeddedConfig::new(directory.to_owned()), Box::new(Arc::clone(time))).unwrap()
}

fn open(directory: &Path) -> Result<Embedded, StoreOpenError> {
    Embedded::open(&EmbeddedConfig::new(directory.to_owned()))
}

fn head(store: &Embedded) -> Checkpoint {
    *locked(&store.shared.head)
}

fn as_store(store: &Embedded) -> &dyn Store {
    store
}

/// Puts a change in the queue while it is locked: the writer takes all of them at once.
fn push(queue: &mut Queue, change: Change) -> reply::Promised {
    let (promise, promised) = promise();
    queue.waiting.push(Command { change, event: card_event(Action::SetPin), deadline: None, promise });
    promised
}

fn set_pin(control: ControlId, number: u8) -> Change {
    let pin = conformance::record(number);
    let transition = Transition::Set { under: conformance::tzpk(1), retry: RetryTag([number; 16]), pin };
    Change::Advance { control, transition }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_does_what_every_store_must() {
    let directory = tempfile::tempdir().unwrap();
    conformance::run(async |name| Arc::new(open(&directory.path().join(name)).unwrap()) as Arc<dyn Store>).await;
}

#[tokio::test]
async fn rows_of_archived_entries_are_removed_step_by_step() {
    let directory = tempfile::tempdir().unwrap();
    let rows = |store: &Embedded| store.shared.audit.iter().count();
    let store = open(directory.path()).unwrap();
    // Each commit is a row.
    for _ in 0..40 {
        as_store(&store).record_event(card_event(Action::OpenControl)).await.unwrap();
    }
    // The last row has three entries, of which two are archived.
    let answers: Vec<_> = {
        let mut queue = locked(&store.shared.queue);
        (0..3).map(|_| push(&mut queue, Change::RecordEvent)).collect()
    };
    for answer in answers {
        answer.await.unwrap().unwrap();
    }
    assert_eq!((rows(&store), head(&store).sequence), (41, 43));
    let part = conformance::part_to(&store, 42).await;
    as_store(&store).remove_archived(part.clone(), conformance::archived_event(&part)).await.unwrap();
    let entries = store.audit(1, 100).await.unwrap();
    assert_eq!(entries.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [43, 44]);
    drop(store);
    let store = open(directory.path()).unwrap();
    // A sweep removes the rows: 41 with the entry 43, and 42 with the event of the removal, stay.
    for _ in 0..1_000 {
        if rows(&store) == 2 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(rows(&store), 2);
    assert_eq!(store.audit(1, 100).await.unwrap(), entries);
}

#[tokio::test]
async fn a_change_whose_caller_has_gone_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let opened = keyed(&store, card(1)).await;
    let before = head(&store).sequence;
    // The writer looks at neither before both callers have gone.
    {
        let mut queue = locked(&store.shared.queue);
        drop((push(&mut queue, set_pin(opened.id, 1)), push(&mut queue, Change::RecordEvent)));
    }
    as_store(&store).record_event(engine_event(Body::EngineStopped)).await.unwrap();
    assert_eq!(head(&store).sequence, before + 2, "both events, and no set");
    assert!(store.pin(&card(1)).await.unwrap().is_none());
    set(&store, opened.id, 2).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_a_reservation_and_settles_a_try() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    set_by_zone(&store, card(1), 1).await.unwrap();
    let reserved = reserve(&store, card(1)).await.unwrap();
    drop(store);
    let full = EmbeddedConfig { waiting_changes_max: 0, ..EmbeddedConfig::new(directory.path().to_owned()) };
    let store = Embedded::open(&full).unwrap();
    let refused = reserve(&store, card(1)).await;
    assert!(matches!(refused, Err(ChangeError::Store(StoreError::Busy { limit: 0 }))), "{refused:?}");
    assert_eq!(settle(&store, card(1), reserved.number, true).await.unwrap(), LIMIT);
}

#[tokio::test]
async fn of_two_sets_for_a_card_in_one_commit_the_first_stands() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let (one, other) = (keyed(&store, card(1)).await, keyed(&store, card(1)).await);
    let (first, second) = tokio::join!(biased; set(&store, one.id, 5), set(&store, other.id, 6));
    first.unwrap();
    assert!(matches!(second, Err(ChangeError::Denied(Denied::NotUsable))));
    assert_eq!(*store.pin(&card(1)).await.unwrap().unwrap().record, [5; 38]);
}

#[tokio::test]
async fn a_view_in_one_commit_with_a_newer_pin_is_superseded() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let first = keyed(&store, card(1)).await;
    set(&store, first.id, 1).await.unwrap();
    let (setter, viewer) = (keyed(&store, card(1)).await, conformance::viewing(&store, card(1)).await);
    let view = Change::Advance { control: viewer.id, transition: conformance::view(1) };
    let (set, viewed) = {
        let mut queue = locked(&store.shared.queue);
        (push(&mut queue, set_pin(setter.id, 2)), push(&mut queue, view))
    };
    assert!(matches!(set.await, Some(Ok(Outcome::Done))));
    assert!(matches!(viewed.await, Some(Ok(Outcome::Denied(Denied::Superseded)))));
    as_store(&store).advance(viewer.id, conformance::view(2), card_event(Action::ViewPin)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_does_not_outlive_its_time_when_the_clock_steps_back() {
    let directory = tempfile::tempdir().unwrap();
    let time = SetTime::at(1_000_000);
    let store = open_at(directory.path(), &time);
    let (in_time, late) = (keyed(&store, card(1)).await, keyed(&store, card(2)).await);
    time.step(-3_600);
    time.pass(29);
    set(&store, in_time.id, 1).await.unwrap();
    time.pass(4);
    assert!(matches!(set(&store, late.id, 2).await, Err(ChangeError::Denied(Denied::NotUsable))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_behind_the_last_commit_ends_open_controls_alone() {
    let directory = tempfile::tempdir().unwrap();
    let time = SetTime::at(1_000_000);
    let store = open_at(directory.path(), &time);
    let (spent, waiting) = (keyed(&store, card(1)).await, keyed(&store, card(2)).await);
    set(&store, spent.id, 1).await.unwrap();
    let before = store.now();
    drop(store);

    time.step(-3_600);
    let store = open_at(directory.path(), &time);
    assert!(store.now() >= before, "the clock ran backwards");
    assert!(matches!(set(&store, waiting.id, 2).await, Err(ChangeError::Denied(Denied::NotUsable))));
    confirm(&store, spent.id, 1).await.unwrap();
    let fresh = keyed(&store, card(2)).await;
    set(&store, fresh.id, 2).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_open_controls_where_the_clock_runs_on() {
    let directory = tempfile::tempdir().unwrap();
    let time = SetTime::at(1_000_000);
    let store = open_at(directory.path(), &time);
    let (in_time, late) = (keyed(&store, card(1)).await, keyed(&store, card(2)).await);
    drop(store);
    time.pass(20);
    let store = open_at(directory.path(), &time);
    set(&store, in_time.id, 1).await.unwrap();
    time.pass(10);
    assert!(matches!(set(&store, late.id, 2).await, Err(ChangeError::Denied(Denied::NotUsable))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_was_years_ahead_stops_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let time = SetTime::at(1_000_000);
    let years = 10 * 365 * 86_400;
    time.step(years);
    let store = open_at(directory.path(), &time);
    let opened = keyed(&store, card(1)).await;
    set(&store, opened.id, 1).await.unwrap();
    time.step(-years);
    for restart in 1..=2 {
        let opened = keyed(&store, card(10 + restart)).await;
        assert!(store.wall_time(opened.expires_at) <= UnixMillis(1_000_031_000), "reported as wall time");
        set(&store, opened.id, 1).await.unwrap();
    }
    drop(store);
    for restart in 1..=2 {
        let store = open_at(directory.path(), &time);
        let (opened, late) = (keyed(&store, card(20 + restart)).await, keyed(&store, card(30 + restart)).await);
        time.pass(29);
        set(&store, opened.id, 1).await.unwrap();
        time.pass(1);
        assert!(set(&store, late.id, 1).await.is_err());
        let set_at = store.card(&card(20 + restart)).await.unwrap().unwrap().pin_set_at.unwrap();
        assert!(set_at < UnixMillis(2_000_000_000), "{set_at:?} is not wall time");
    }
}

/// Nothing is committed between the control's expiry and the restart but the time.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_store_keeps_its_time_while_a_control_is_usable() {
    let directory = tempfile::tempdir().unwrap();
    let time = SetTime::at(1_000_000);
    let store = open_at(directory.path(), &time);
    let opened = keyed(&store, card(1)).await;
    time.pass(31);
    let is_kept = || decode_head(&store.shared.meta.get(HEAD_KEY).unwrap().unwrap()).unwrap().1 >= opened.expires_at;
    while !is_kept() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    drop(store);
    time.step(-31);
    let store = open_at(directory.path(), &time);
    assert!(matches!(set(&store, opened.id, 1).await, Err(ChangeError::Denied(Denied::NotUsable))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_confirmed_until_five_minutes_after_expiry() {
    let directory = tempfile::tempdir().unwrap();
    let time = SetTime::at(1_000_000);
    let store = open_at(directory.path(), &time);
    let opened = keyed(&store, card(1)).await;
    set(&store, opened.id, 1).await.unwrap();
    time.pass(200);
    drop(store);
    let store = open_at(directory.path(), &time);
    time.pass(129);
    confirm(&store, opened.id, 1).await.unwrap();
    time.pass(1);
    assert!(matches!(confirm(&store, opened.id, 1).await, Err(ChangeError::Denied(Denied::NotUsable))));
    // Its span of 30 s passes, and the grace of the sweep.
    time.pass(40);
    while store.shared.live.count() > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    drop(store);
    assert_eq!(open_at(directory.path(), &time).shared.live.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_control_is_swept_from_memory_and_disk() {
    let directory = tempfile::tempdir().unwrap();
    let time = SetTime::at(1_000_000);
    let store = open_at(directory.path(), &time);
    as_store(&store).open_control(control(card(1)), GENEROUS, card_event(Action::OpenControl)).await.unwrap();
    // The lifetime, and the grace of the sweep.
    time.pass(36);
    as_store(&store).open_control(control(card(1)), GENEROUS, card_event(Action::OpenControl)).await.unwrap();
    // Every shard has its turn within two seconds; the loop waits for the fact, not for the time.
    while store.shared.live.count() > 1 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    store.close().await;
    drop(store);
    assert_eq!(open_at(directory.path(), &time).shared.live.count(), 1);
}

#[tokio::test]
async fn a_store_low_on_space_finishes_open_controls_and_opens_none() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let opened = keyed(&store, card(1)).await;
    drop(store);
    let config = EmbeddedConfig { reserve_bytes: u64::MAX, ..EmbeddedConfig::new(directory.path().to_owned()) };
    let store = Embedded::open(&config).unwrap();
    assert_eq!(*Store::state(&store).borrow(), StoreState::LowOnSpace);
    let event = card_event(Action::OpenControl);
    let refused = as_store(&store).open_control(control(card(2)), GENEROUS, event.clone()).await;
    assert!(matches!(refused, Err(ChangeError::Store(StoreError::LowOnSpace))));
    let refused = as_store(&store).register_card(card(2), None, event.clone()).await;
    assert!(matches!(refused, Err(ChangeError::Store(StoreError::LowOnSpace))));
    assert!(matches!(as_store(&store).reencrypt(Vec::new(), event.clone()).await, Err(StoreError::LowOnSpace)));
    assert!(matches!(as_store(&store).record_access(event).await, Err(StoreError::LowOnSpace)));
    set(&store, opened.id, 1).await.unwrap();
    confirm(&store, opened.id, 1).await.unwrap();
    as_store(&store).record_event(engine_event(Body::EngineStopped)).await.unwrap();
    assert_eq!(Store::audit(&store, 1, 100).await.unwrap().len(), 5, "a control, a tzpk, a set, a retry and a stop");
    // The tries of a card go on.
    let event = card_event(Action::VerifyPin);
    let reserved = as_store(&store).reserve_try(card(1), 3, Compared::Record, event.clone()).await.unwrap();
    let settled = as_store(&store).settle_try(card(1), reserved.number, Verdict::Wrong, 3, event.clone()).await;
    assert_eq!(settled.unwrap(), 2);
    assert_eq!(as_store(&store).reset_tries(card(1), 1, 3, event).await.unwrap().used(), 0);
    store.close().await;
    assert!(matches!(set(&store, opened.id, 1).await, Err(ChangeError::Store(StoreError::Unavailable(_)))));
}

#[test]
fn one_process_has_a_store_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let _first = open(directory.path()).unwrap();
    let second = open(directory.path()).err().unwrap();
    assert!(matches!(second, StoreOpenError::Locked { .. }), "{second}");
}

#[test]
fn a_foreign_directory_is_refused_and_nothing_is_written_into_it() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("somebody's"), "work").unwrap();
    assert!(matches!(open(directory.path()), Err(StoreOpenError::Foreign { .. })));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_newer_format_and_an_absent_store_have_their_own_errors() {
    let directory = tempfile::tempdir().unwrap();
    let newer = FORMAT + 1;
    fs::write(directory.path().join(FORMAT_FILE), format!("pinseal store, format {newer}\n")).unwrap();
    assert!(matches!(open(directory.path()), Err(StoreOpenError::Version { version, .. }) if version == newer));
    let nowhere = EmbeddedConfig::existing(directory.path().join("nowhere"));
    assert!(matches!(Embedded::open(&nowhere), Err(StoreOpenError::Absent { .. })));
}

#[test]
fn a_store_without_its_database_is_damaged_not_empty() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()).unwrap());
    fs::remove_dir_all(directory.path().join(DATABASE)).unwrap();
    assert!(matches!(open(directory.path()), Err(StoreOpenError::Damaged { .. })));
    assert!(!directory.path().join(DATABASE).exists());
}

#[test]
fn a_store_that_was_not_made_to_the_end_is_made() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()).unwrap());
    fs::rename(directory.path().join(FORMAT_FILE), directory.path().join(UNFINISHED_FORMAT_FILE)).unwrap();
    drop(open(directory.path()).unwrap());
    assert!(directory.path().join(FORMAT_FILE).exists());
    fs::rename(directory.path().join(FORMAT_FILE), directory.path().join(UNFINISHED_FORMAT_FILE)).unwrap();
    fs::remove_file(directory.path().join(DATABASE).join(VERSION_FILE)).unwrap();
    drop(open(directory.path()).unwrap());
    drop(open(directory.path()).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_loses_at_most_its_last_commit() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let opened = keyed(&store, card(1)).await;
    set(&store, opened.id, 5).await.unwrap();
    let before_last = head(&store).sequence;
    as_store(&store).record_event(engine_event(Body::EngineStopped)).await.unwrap();
    store.close().await;
    drop(store);

    let mut files = Vec::new();
    collect(&directory.path().join(DATABASE), &mut files);
    let largest = files.iter().max_by_key(|file| fs::read(file).unwrap().iter().filter(|byte| **byte != 0).count());
    let largest = largest.unwrap();
    let whole = fs::read(largest).unwrap();
    let written = whole.iter().rposition(|byte| *byte != 0).unwrap();
    for at in (0..written).step_by(97) {
        let mut changed = whole.clone();
        changed[at] ^= 0x40;
        fs::write(largest, &changed).unwrap();
        let Ok(store) = open(directory.path()) else { continue };
        let pin = store.pin(&card(1)).await.unwrap().expect("a PIN is gone");
        assert_eq!(*pin.record, [5; 38], "byte {at}: a damaged record was read as a good one");
        assert!(head(&store).sequence >= before_last, "byte {at}: acknowledged changes are gone");
        set(&store, opened.id, 6).await.unwrap_err();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_last_commit_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    // Its time stands: no commit of the time alone comes behind the last.
    let seconds = clock::now().0 / 1_000;
    let store = open_at(directory.path(), &SetTime::at(seconds as i64));
    let opened = keyed(&store, card(1)).await;
    let journal = directory.path().join(DATABASE).join("0.jnl");
    let written = || fs::read(&journal).unwrap().iter().rposition(|byte| *byte != 0).unwrap();
    let (acknowledged, kept) = (written(), head(&store));
    set(&store, opened.id, 5).await.unwrap();
    let end = written();
    store.close().await;
    drop(store);

    // A block in the middle of it did not come to the disk, its end did.
    let mut torn = fs::read(&journal).unwrap();
    torn[(acknowledged + end) / 2..][..20].fill(0);
    fs::write(&journal, torn).unwrap();
    let store = open(directory.path()).unwrap();
    assert_eq!(head(&store), kept);
    set(&store, opened.id, 6).await.unwrap();
    assert_eq!(*store.pin(&card(1)).await.unwrap().unwrap().record, [6; 38]);
}

/// Its last state, once it has one.
async fn failure(store: &Embedded) -> StoreFailure {
    let mut state = store.state();
    let failed = state.wait_for(|state| matches!(state, StoreState::Failed(_)));
    let failed = tokio::time::timeout(std::time::Duration::from_secs(60), failed).await.expect("it does not fail");
    match &*failed.unwrap() {
        StoreState::Failed(failure) => failure.clone(),
        other => panic!("{other:?}"),
    }
}

async fn assert_refuses_all(store: &dyn Store) {
    assert!(matches!(store.record_event(card_event(Action::OpenControl)).await, Err(StoreError::Failed(_))));
    assert!(matches!(store.card(&card(1)).await, Err(StoreError::Failed(_))));
    assert!(matches!(store.pin(&card(1)).await, Err(StoreError::Failed(_))));
    assert!(matches!(store.audit(1, 1).await, Err(StoreError::Failed(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_store_fails_when_a_table_can_t_be_written() {
    let directory = tempfile::tempdir().unwrap();
    // With so little memory one large commit makes fjall write a table.
    let config = EmbeddedConfig { memory_bytes_max: 64 << 10, ..EmbeddedConfig::new(directory.path().to_owned()) };
    let store = Embedded::open(&config).unwrap();
    let (tables, away) = (directory.path().join("db/keyspaces"), directory.path().join("db/away"));
    fs::rename(&tables, &away).unwrap();
    let events = (0..1_000).map(|_| as_store(&store).record_event(card_event(Action::OpenControl)));
    let kept = futures::future::join_all(events).await.into_iter().filter(Result::is_ok).count() as u64;
    let failure = failure(&store).await;
    assert_eq!(failure.cause, FailureCause::Background);
    assert_refuses_all(&store).await;
    store.close().await;
    drop(store);

    fs::rename(&away, &tables).unwrap();
    let store = open(directory.path()).unwrap();
    assert!(kept > 0 && head(&store).sequence >= kept, "acknowledged changes are gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_the_writer_fails_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let opened = keyed(&store, card(1)).await;
    store.shared.writer_panics.store(true, Ordering::Relaxed);
    let refused = set(&store, opened.id, 5).await;
    assert!(matches!(refused, Err(ChangeError::Store(StoreError::InDoubt(_)))), "{refused:?}");
    assert_eq!(failure(&store).await.cause, FailureCause::Writer);
    assert_refuses_all(&store).await;
    store.close().await;
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { collect(&path, files) } else { files.push(path) }
    }
}
