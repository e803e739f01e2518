use super::*;
use crate::{ARCHIVED_KEY, CARD_REFERENCE_KEY, Embedded, EmbeddedConfig, journal};
use audit::{card_reference::CardReferenceKey, chain::ChainVerifier, entry::Action};
use domain::control::Denied;
use store::codec::card_key;
use store::{
    ChangeError, Store, ZoneSet,
    conformance::{
        archived_event, card, card_event, confirm, keyed, part_to,
        pin_use::{LIMIT, reserve, set_by_zone, settle},
        set,
    },
};

fn open(directory: &Path, memory_bytes_max: u64) -> Embedded {
    Embedded::open(&EmbeddedConfig { memory_bytes_max, ..EmbeddedConfig::new(directory.to_owned()) }).unwrap()
}

/// The tables of a store, by path.
fn tables(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for keyspace in directory.join("db/keyspaces").read_dir().unwrap() {
        let path = keyspace.unwrap().path();
        // Keyspace 0 is fjall's list of keyspaces.
        if path.file_name().unwrap() != "0"
            && let Ok(tables) = path.join("tables").read_dir()
        {
            found.extend(tables.map(|table| table.unwrap().path()));
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in from.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

/// Far more events than fill the memory after which fjall writes a table.
const EVENTS_MAX: u32 = 200_000;

/// A store with a PIN on each of these cards, and tables of fjall.
async fn with_tables(directory: &Path, cards: u64) {
    // With so little memory fjall writes tables soon.
    let store = open(directory, 64 << 10);
    for number in 1..=cards {
        let opened = keyed(&store, card(number)).await;
        set(&store, opened.id, 5).await.unwrap();
    }
    let as_store: &dyn Store = &store;
    let mut events = 0;
    while tables(directory).len() < 4 {
        as_store.record_event(card_event(Action::OpenControl)).await.unwrap();
        events += 1;
        assert!(events < EVENTS_MAX, "fjall writes no tables");
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_store_with_tables_is_whole_while_it_serves_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    with_tables(&path, 40).await;
    let closed = check(&path, None).unwrap();
    assert_eq!((closed.damage.as_slice(), closed.unfinished.is_some()), (&[][..], false));
    assert_eq!((closed.rows.unwrap().counts.cards, closed.rows.unwrap().counts.pins), (40, 40));
    let store = open(&path, 64 << 10);
    let opened = keyed(&store, card(41)).await;
    let serving = check(&path, None).unwrap();
    assert_eq!((serving.damage.as_slice(), serving.rows.unwrap().counts.open_controls), (&[][..], 1));
    assert_eq!(serving.rows.unwrap().end, store.checkpoint().await.unwrap());
    set(&store, opened.id, 5).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_with_archived_entries_is_checked_backed_up_and_salvaged() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let store = open(&at("store"), 64 << 10);
    for number in 1..=10 {
        let opened = keyed(&store, card(number)).await;
        set(&store, opened.id, 5).await.unwrap();
    }
    let part = part_to(&store, 14).await;
    let as_store: &dyn Store = &store;
    as_store.remove_archived(part.clone(), archived_event(&part)).await.unwrap();
    let end = store.checkpoint().await.unwrap();
    store.close().await;
    drop(store);

    let whole = check(&at("store"), None).unwrap();
    assert_eq!(
        (whole.damage.as_slice(), whole.rows.unwrap().end, whole.rows.unwrap().counts.audit_entries),
        (&[][..], end, 17)
    );
    let backup = back_up(&at("store"), &at("backup")).unwrap();
    assert_eq!((backup.end, backup.archived), (end, 14));
    restore(&at("backup"), &at("restored")).unwrap();
    salvage(&at("store"), &at("salvaged")).unwrap();
    for name in ["restored", "salvaged"] {
        let store = open(&at(name), 64 << 10);
        assert_eq!(store.archived().await.unwrap(), Some(part.clone()), "{name}");
        let entries = store.audit(1, 100).await.unwrap();
        assert_eq!((entries[0].sequence, entries.len()), (15, 18), "{name}");
        let mut chain = ChainVerifier::after(part.end(), vec![end]);
        entries.iter().try_for_each(|entry| chain.check(entry)).unwrap();
        chain.finish().unwrap();
    }
}

/// Changes rows of a closed store.
fn change(directory: &Path, change: impl FnOnce(&Tables, &mut WriteBatch)) {
    let tables = Tables::open(&directory.join(DATABASE), MEMORY_BYTES, Absent::Refuse).unwrap();
    let mut batch = tables.database.batch();
    change(&tables, &mut batch);
    batch.durability(Some(PersistMode::SyncAll)).commit().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_entries_outlive_an_unreadable_end_of_the_archived_ones() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let store = open(&at("store"), 64 << 10);
    for number in 1..=10 {
        let opened = keyed(&store, card(number)).await;
        set(&store, opened.id, 5).await.unwrap();
    }
    let part = part_to(&store, 14).await;
    let as_store: &dyn Store = &store;
    as_store.remove_archived(part.clone(), archived_event(&part)).await.unwrap();
    let end = store.checkpoint().await.unwrap();
    store.close().await;
    drop(store);
    let key = CardReferenceKey::from_bytes([7; 32]);
    change(&at("store"), |tables, batch| batch.insert(&tables.meta, CARD_REFERENCE_KEY, key.as_bytes()));
    assert!(salvage(&at("store"), &at("with-key")).unwrap().has_card_reference_key);
    change(&at("store"), |tables, batch| {
        batch.insert(&tables.meta, ARCHIVED_KEY, "no JSON");
        batch.insert(&tables.meta, CARD_REFERENCE_KEY, "no key");
        // As the writer does, in steps.
        (1..=part.end().sequence).for_each(|number| batch.remove(&tables.audit, number.to_be_bytes()));
    });

    assert_eq!(check(&at("store"), None).unwrap().damage[0].place, "meta");
    let report = salvage(&at("store"), &at("salvaged")).unwrap();
    assert_eq!((report.end, report.lost.audit_entries, report.has_card_reference_key), (end, 0, false));
    let whole = check(&at("salvaged"), None).unwrap();
    assert_eq!((whole.damage.as_slice(), whole.rows.unwrap().end), (&[][..], report.event));
    let store = open(&at("salvaged"), 64 << 10);
    let entries = store.audit(1, 100).await.unwrap();
    assert_eq!(entries.first().map(|first| first.sequence), Some(15));
    assert_eq!(entries.last().map(|last| last.sequence), Some(report.event.sequence));
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_entries_do_not_pass_as_archived_ones() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = open(&path, 64 << 10);
    for number in 1..=10 {
        let opened = keyed(&store, card(number)).await;
        set(&store, opened.id, 5).await.unwrap();
    }
    let as_store: &dyn Store = &store;
    let parts = [part_to(&store, 14).await, part_to(&store, 18).await];
    as_store.remove_archived(parts[0].clone(), archived_event(&parts[0])).await.unwrap();
    store.close().await;
    drop(store);
    assert!(check(&path, None).unwrap().damage.is_empty());
    let damage = || check(&path, None).unwrap().damage.into_iter().map(|damage| damage.place).collect::<Vec<_>>();
    change(&path, |tables, batch| batch.insert(&tables.meta, ARCHIVED_KEY, parts[1].encode()));
    assert_eq!(damage(), ["audit"]);
    change(&path, |tables, batch| batch.remove(&tables.meta, ARCHIVED_KEY));
    assert_eq!(damage(), ["audit"]);
    change(&path, |tables, batch| batch.insert(&tables.meta, ARCHIVED_KEY, parts[0].encode()));
    assert!(damage().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_byte_of_any_table_or_list_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    with_tables(&path, 40).await;
    // The list that is in use; an older one may stand beside it.
    let lists = path.join("db/keyspaces").read_dir().unwrap().flat_map(|keyspace| {
        let current = keyspace.unwrap().path().join("current");
        let version = u64::from_le_bytes(fs::read(&current).unwrap()[..8].try_into().unwrap());
        [current.with_file_name(format!("v{version}")), current]
    });
    let mut salvaged = 0;
    for (number, file) in tables(&path).into_iter().chain(lists.collect::<Vec<_>>()).enumerate() {
        let whole = fs::read(&file).unwrap();
        let name = file.strip_prefix(path.join("db")).unwrap().display().to_string();
        for part in 0..2 {
            let mut changed = whole.clone();
            changed[(whole.len() - 1) * (part + 1) / 2] ^= 0x40;
            fs::write(&file, changed).unwrap();
            let report = check(&path, None).unwrap();
            // A store opens, or the error names the damage: a damaged position makes an invalid argument of a read.
            match Embedded::open_copy(&path).map(drop) {
                Ok(()) | Err(StoreOpenError::Damaged { .. }) => {}
                Err(error) => panic!("{name}: {error}"),
            }
            // A changed `current` names another list.
            let keyspace = file.parent().unwrap().strip_prefix(path.join("db")).unwrap().display().to_string();
            let is_found = |damage: &Damage| damage.place == name || damage.place.starts_with(&keyspace);
            assert!(report.damage.iter().any(is_found), "{name}: {:?}", report.damage);
            let target = directory.path().join(format!("salvaged-{number}-{part}"));
            match salvage(&path, &target) {
                Ok(_) => {
                    check(&target, None).unwrap();
                    drop(open(&target, 64 << 10));
                    salvaged += 1;
                }
                Err(UpkeepError::NotRescued { .. }) => assert!(!target.exists()),
                Err(error) => panic!("{name}: {error}"),
            }
        }
        fs::write(&file, whole).unwrap();
    }
    assert!(salvaged > 0, "no store with a changed table was salvaged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_byte_of_the_journal_loses_only_what_follows() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = open(&path, 64 << 20);
    for number in 1..=4 {
        let opened = keyed(&store, card(number)).await;
        set(&store, opened.id, 5).await.unwrap();
    }
    let last = keyed(&store, card(5)).await;
    let end = store.checkpoint().await.unwrap();
    store.close().await;
    drop(store);
    let journal = path.join("db/0.jnl");
    let whole = fs::read(&journal).unwrap();
    let written = whole.iter().rposition(|byte| *byte != 0).unwrap();
    for (number, at) in (0..written).step_by(written / 9).enumerate() {
        let mut changed = whole.clone();
        changed[at] ^= 0x40;
        fs::write(&journal, &changed).unwrap();
        let report = check(&path, None).unwrap();
        let target = directory.path().join(format!("salvaged-{number}"));
        let salvage = salvage(&path, &target).unwrap();
        assert_eq!(fs::read(&journal).unwrap(), changed, "byte {at}: the damaged store changed");
        if report.damage.is_empty() {
            // No checksum covers the number of the last batch; a last batch that is not whole is an unfinished commit.
            assert!(salvage.end.sequence + 2 >= end.sequence, "byte {at}");
        } else {
            assert_eq!(
                salvage.end.sequence + salvage.lost.audit_entries,
                end.sequence,
                "byte {at}: {:?}",
                salvage.lost
            );
        }
        let store = open(&target, 64 << 20);
        assert_eq!(store.checkpoint().await.unwrap(), salvage.event);
        for number in 1..=salvage.kept.pins {
            assert_eq!(*store.pin(&card(number)).await.unwrap().unwrap().record, [5; 38]);
        }
        let refused = set(&store, last.id, 6).await;
        assert!(matches!(refused, Err(ChangeError::Denied(Denied::NotUsable))), "byte {at}: a control is usable");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_salvaged_store_has_no_fewer_used_tries() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let embedded = open(&path, 64 << 20);
    let store: &dyn Store = &embedded;
    for number in 1..=6 {
        set_by_zone(store, card(number), 1).await.unwrap();
        let reserved = reserve(store, card(number)).await.unwrap();
        settle(store, card(number), reserved.number, number % 2 == 0).await.unwrap();
    }
    drop(embedded);
    let used = async |store: &Embedded, number| store.tries(&card(number)).await.unwrap().map(|tries| tries.used());

    let whole = directory.path().join("whole");
    assert_eq!(salvage(&path, &whole).unwrap().locked_cards, 0);
    let store = open(&whole, 64 << 20);
    assert_eq!((used(&store, 1).await, used(&store, 2).await), (Some(1), Some(0)), "nothing is lost");
    drop(store);

    let journal = path.join("db/0.jnl");
    let mut bytes = fs::read(&journal).unwrap();
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[written / 2] ^= 0x40;
    fs::write(&journal, bytes).unwrap();
    let rescued = directory.path().join("rescued");
    let report = salvage(&path, &rescued).unwrap();
    assert!((1..6).contains(&report.locked_cards), "{report:?}");
    assert_eq!(report.locked_cards, report.kept.cards);
    let embedded = open(&rescued, 64 << 20);
    let store: &dyn Store = &embedded;
    for number in 1..=report.kept.cards {
        let refused = reserve(store, card(number)).await;
        assert!(matches!(refused, Err(ChangeError::Denied(Denied::PinLocked))), "{refused:?}");
        let seen = store.tries(&card(number)).await.unwrap().unwrap().reserved;
        store.reset_tries(card(number), seen, LIMIT, card_event(Action::ResetTries)).await.unwrap();
        assert_eq!(reserve(store, card(number)).await.unwrap().tries_left, LIMIT - 1);
    }
    assert!(check(&rescued, None).unwrap().damage.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_salvage_of_lost_cards_locks_their_pins_and_every_other_card() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = open(&path, 64 << 20);
    for number in 1..=3 {
        set_by_zone(&store, card(number), 1).await.unwrap();
        reserve(&store, card(number)).await.unwrap();
    }
    store.close().await;
    drop(store);
    // The walk alone finds these two.
    let tables = Tables::open(&path.join(DATABASE), MEMORY_BYTES, Absent::Refuse).unwrap();
    let mut batch = tables.database.batch();
    batch.insert(&tables.cards, card_key(&card(1)), b"unreadable");
    batch.remove(&tables.cards, card_key(&card(2)));
    batch.durability(Some(PersistMode::SyncAll)).commit().unwrap();
    drop(tables);

    let rescued = directory.path().join("rescued");
    let report = salvage(&path, &rescued).unwrap();
    assert_eq!((report.locked_cards, report.kept.cards, report.kept.pins), (3, 3, 3));
    let store = open(&rescued, 64 << 20);
    for number in 1..=3 {
        let refused = reserve(&store, card(number)).await;
        assert!(matches!(refused, Err(ChangeError::Denied(Denied::PinLocked))), "{number} {refused:?}");
    }
    assert!(check(&rescued, None).unwrap().damage.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_store_has_the_tries_of_its_backup() {
    let directory = tempfile::tempdir().unwrap();
    let [path, backup, restored] = ["store", "backup", "restored"].map(|name| directory.path().join(name));
    let store = open(&path, 64 << 20);
    set_by_zone(&store, card(1), 1).await.unwrap();
    reserve(&store, card(1)).await.unwrap();
    back_up(&path, &backup).unwrap();
    restore(&backup, &restored).unwrap();
    let store = open(&restored, 64 << 20);
    assert_eq!(store.tries(&card(1)).await.unwrap().unwrap().used(), 1);
    assert_eq!(set_by_zone(&store, card(1), 1).await.unwrap(), ZoneSet::Repeated);
}

/// fjall rotates a journal when it writes a table and the journal has more bytes than this.
const JOURNAL_BYTES: usize = 64_000_000;
/// The caller of a long event: its page does not compress.
const LONG_CALLER_BYTES: usize = 60_000;

fn long_event() -> Event {
    let mut state = 1_u64;
    let character = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(b'!' + u8::try_from(state >> 57).unwrap() % 90)
    };
    let caller: String = (0..LONG_CALLER_BYTES).map(character).collect();
    Event { caller: caller.into(), ..card_event(Action::OpenControl) }
}

fn newest_journal(directory: &Path) -> u64 {
    journal::numbers(&directory.join(DATABASE)).unwrap().into_iter().max().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_whole_while_the_journal_rotates() {
    let directory = tempfile::tempdir().unwrap();
    let [path, backup, copy] = ["store", "backup", "copy"].map(|name| directory.path().join(name));
    // With so little memory each long event makes fjall write a table.
    let embedded = open(&path, 64 << 10);
    let store: &dyn Store = &embedded;
    let opened = keyed(store, card(1)).await;
    set(store, opened.id, 5).await.unwrap();
    let event = long_event();
    for _ in 0..JOURNAL_BYTES / LONG_CALLER_BYTES - 20 {
        store.record_event(event.clone()).await.unwrap();
    }
    assert_eq!(newest_journal(&path), 0, "the journal rotated before the backup");

    let acknowledged = store.checkpoint().await.unwrap();
    // Opened before the rotation and copied after it, whatever the backup meets.
    let opened_before = StoreFiles::open(&path.join(DATABASE)).unwrap().unwrap();
    let back_up = {
        let (from, to) = (path.clone(), backup.clone());
        move || back_up(&from, &to).unwrap()
    };
    let backing_up = tokio::task::spawn_blocking(back_up);
    for number in 0.. {
        assert!(number < 1_000, "the journal does not rotate");
        store.record_event(event.clone()).await.unwrap();
        if newest_journal(&path) > 0 {
            break;
        }
    }
    let report = backing_up.await.unwrap();
    assert_eq!((report.counts.cards, report.counts.pins), (1, 1));

    assert!(opened_before.copy_to(&copy).unwrap().damage.is_none());
    let walk = walk(&Tables::open(&copy, MEMORY_BYTES, Absent::Refuse).unwrap(), &mut |_, _, _| Ok(())).unwrap();
    assert!(walk.damage.is_empty(), "{:?}", walk.damage);
    for end in [report.end, walk.end] {
        assert!(end.sequence >= acknowledged.sequence, "an acknowledged entry is missing");
        assert_eq!(store.audit(end.sequence, 1).await.unwrap()[0].hash, end.hash);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_store_confirms_retries_and_ends_open_controls() {
    let directory = tempfile::tempdir().unwrap();
    let [path, backup, restored] = ["store", "backup", "restored"].map(|name| directory.path().join(name));
    let store = open(&path, 64 << 20);
    let (spent, waiting) = (keyed(&store, card(1)).await, keyed(&store, card(2)).await);
    set(&store, spent.id, 1).await.unwrap();
    let report = back_up(&path, &backup).unwrap();
    assert_eq!(report.end, store.checkpoint().await.unwrap());
    set(&store, waiting.id, 2).await.unwrap();

    let Err(StoreOpenError::Backup { .. }) = Embedded::open(&EmbeddedConfig::existing(backup.clone())) else {
        panic!("a backup serves")
    };
    assert!(matches!(restore(&path, &restored), Err(UpkeepError::NotABackup { .. })));
    assert!(matches!(restore(&backup, &path), Err(UpkeepError::TargetNotEmpty { .. })));
    let report = restore(&backup, &restored).unwrap();
    assert_eq!((report.ended_controls, report.counts.retry_controls, report.counts.pins), (1, 1, 1));
    let store = open(&restored, 64 << 20);
    confirm(&store, spent.id, 1).await.unwrap();
    assert!(set(&store, spent.id, 3).await.is_err());
    assert!(matches!(set(&store, waiting.id, 2).await, Err(ChangeError::Denied(Denied::NotUsable))));
    assert!(matches!(store.audit(report.event.sequence, 1).await.unwrap()[0].event.body, Body::StoreRestored(_)));
    assert_eq!(Embedded::open_copy(&backup).unwrap().checkpoint().await.unwrap(), report.end);
}

#[tokio::test]
async fn a_damaged_backup_is_not_restored_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let [path, backup, restored] = ["store", "backup", "restored"].map(|name| directory.path().join(name));
    let store = open(&path, 64 << 20);
    (&store as &dyn Store).record_event(card_event(Action::OpenControl)).await.unwrap();
    drop(store);
    back_up(&path, &backup).unwrap();
    let broken = directory.path().join("broken");
    copy(&backup, &broken);
    let list = broken.join("db/keyspaces/1/current");
    let mut bytes = fs::read(&list).unwrap();
    bytes[0] ^= 1;
    fs::write(&list, bytes).unwrap();
    assert!(matches!(restore(&broken, &restored), Err(UpkeepError::Damaged { .. })));
    fs::write(broken.join(FORMAT_FILE), "pinseal stora").unwrap();
    assert_eq!(check(&broken, None).unwrap().damage[0].place, FORMAT_FILE);
    let names: Vec<_> = directory.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

/// A closed store with a PIN on each of five cards.
async fn with_pins(directory: &Path) -> Checkpoint {
    let store = open(directory, 64 << 20);
    for number in 1..=5 {
        let opened = keyed(&store, card(number)).await;
        set(&store, opened.id, 5).await.unwrap();
    }
    let end = store.checkpoint().await.unwrap();
    store.close().await;
    end
}

#[tokio::test]
async fn a_checkpoint_shows_that_newest_commits_are_lost() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let end = with_pins(&path).await;
    assert!(check(&path, Some(end)).unwrap().damage.is_empty());
    let other = Checkpoint { hash: [7; 32], ..end };
    assert_eq!(check(&path, Some(other)).unwrap().damage[0].place, "audit");
    let journal = path.join("db/0.jnl");
    let whole = fs::read(&journal).unwrap();
    let written = whole.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for part in 0..8 {
        fs::write(&journal, &whole[..written * part / 8]).unwrap();
        let report = check(&path, Some(end)).unwrap();
        assert_eq!(report.damage[0].place, "audit", "{part}: {:?}", report.damage);
        assert_eq!(report.rows.unwrap().end == Checkpoint::EMPTY, part == 0);
    }
    // An emptied journal is found without a checkpoint, and not backed up.
    fs::write(&journal, "").unwrap();
    assert_eq!(check(&path, None).unwrap().damage[0].place, "audit");
    assert!(matches!(back_up(&path, &directory.path().join("backup")), Err(UpkeepError::Damaged { .. })));
}

#[tokio::test]
async fn each_absent_file_of_a_store_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    with_pins(&path).await;
    for (number, file) in [
        "FORMAT",
        "db",
        "db/lock",
        "db/version",
        "db/0.jnl",
        "db/keyspaces",
        "db/keyspaces/0",
        "db/keyspaces/0/current",
        "db/keyspaces/3",
        "db/keyspaces/3/current",
    ]
    .into_iter()
    .enumerate()
    {
        let damaged = directory.path().join(format!("damaged-{number}"));
        copy(&path, &damaged);
        let absent = damaged.join(file);
        if absent.is_dir() {
            fs::remove_dir_all(&absent).unwrap()
        } else {
            fs::remove_file(&absent).unwrap()
        }
        for _ in 0..2 {
            for config in [EmbeddedConfig::new(damaged.clone()), EmbeddedConfig::existing(damaged.clone())] {
                let refused = Embedded::open(&config).err();
                assert!(matches!(refused, Some(StoreOpenError::Damaged { .. })), "{file}: {refused:?}");
            }
            let refused = Embedded::open_copy(&damaged).err();
            assert!(matches!(refused, Some(StoreOpenError::Damaged { .. })), "{file}: {refused:?}");
            assert!(!absent.exists(), "{file} was made");
        }
        let report = check(&damaged, None).unwrap();
        assert!(!report.damage.is_empty(), "{file}");
        let target = directory.path().join(format!("salvaged-{number}"));
        match salvage(&damaged, &target) {
            Ok(report) => {
                assert!(!report.damage.is_empty() && check(&target, None).unwrap().rows.is_some(), "{file}")
            }
            Err(UpkeepError::NotRescued { .. }) => assert!(!target.exists(), "{file}"),
            Err(error) => panic!("{file}: {error}"),
        }
    }
}

#[tokio::test]
async fn an_absent_journal_between_two_others_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    with_pins(&path).await;
    fs::copy(path.join("db/0.jnl"), path.join("db/2.jnl")).unwrap();
    let refused = Embedded::open(&EmbeddedConfig::existing(path.clone())).err().unwrap().to_string();
    assert!(refused.contains("1.jnl"), "{refused}");
    assert!(check(&path, None).unwrap().damage.iter().any(|damage| damage.place == "1.jnl"));
}

#[tokio::test]
async fn a_salvage_lists_the_cards_with_a_lost_pin() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    with_pins(&path).await;
    change(&path, |tables, batch| batch.remove(&tables.pins, card_key(&card(2))));
    let journal = path.join("db/0.jnl");
    let mut bytes = fs::read(&journal).unwrap();
    assert_eq!(salvage(&path, &directory.path().join("row")).unwrap().lost_pins, [card(2)]);
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[written / 2] ^= 0x40;
    fs::write(&journal, bytes).unwrap();
    let report = salvage(&path, &directory.path().join("journal")).unwrap();
    assert_eq!(report.lost_pins.len() as u64, report.lost.pins);
    assert!(report.lost_pins.contains(&card(5)), "{:?}", report.lost_pins);
}
