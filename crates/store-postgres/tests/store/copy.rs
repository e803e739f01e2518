//! The copy of an embedded store into a database, and back.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::open;
use crate::proxy::{Cut, Proxy};
use audit::card_reference::CardReferenceKey;
use audit::chain::Checkpoint;
use audit::entry::{Body, Entry};
use domain::card::{CardKey, PinStatus};
use domain::control::{ControlId, Denied};
use postgres_server::Server;
use store::conformance::pin_use::{reserve, set_by_zone};
use store::conformance::{archived_event, card, confirm, engine_event, iso_4_keys, keyed, part_to, reported, set};
use store::copy::{Begun, Copied, CopiedCard, CopyError, CopyFacts, CopyReport, CopySource, CopyTarget, copy};
use store::upkeep::UpkeepError;
use store::{ChangeError, KeysAtStart, Store};
use store_embedded::store_copy::{EmbeddedSource, EmbeddedTarget};
use store_embedded::{Embedded, EmbeddedConfig};
use store_postgres::copy::{PostgresSource, PostgresTarget};
use store_postgres::upkeep::check;
use store_postgres::{Postgres, PostgresConfig, PostgresOpenError};

/// More than two pages of cards.
const CARDS: u64 = 2_500;

/// Every file of a directory, with its bytes.
fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push((path.clone(), fs::read(&path).unwrap())) }
    }
    found.sort();
    found
}

fn embedded(directory: &Path) -> Embedded {
    Embedded::open(&EmbeddedConfig { reserve_bytes: 0, ..EmbeddedConfig::new(directory.to_owned()) }).unwrap()
}

/// A store with cards, tries, an open control, one that has set a PIN, an archived part. Returns the two controls.
async fn filled(directory: &Path, cards: u64) -> [ControlId; 2] {
    let store: Arc<dyn Store> = Arc::new(embedded(directory));
    let start = KeysAtStart { card_reference_key: CardReferenceKey::from_bytes([9; 32]) };
    let started = engine_event(Body::EngineStarted { engine: "host:/store".into() });
    store.set_keys_at_start(reported(&[1], iso_4_keys([1])), start, started).await.unwrap();
    let sets = (1..=cards).map(|number| set_by_zone(&*store, card(number), 1 + (number % 200) as u8));
    for set in futures::future::join_all(sets).await {
        set.unwrap();
    }
    for _ in 0..2 {
        reserve(&*store, card(1)).await.unwrap();
    }
    let done = keyed(&*store, card(2)).await.id;
    set(&*store, done, 7).await.unwrap();
    let open = keyed(&*store, card(3)).await.id;
    keyed(&*store, card(cards + 1)).await;
    let part = part_to(&*store, 5).await;
    store.remove_archived(part.clone(), archived_event(&part)).await.unwrap();
    store.close().await;
    [done, open]
}

fn now(copied: Copied) -> CopyReport {
    let Copied::Now(report) = copied else { panic!("the copy was complete before: {copied:?}") };
    report
}

async fn to_database(directory: &Path, config: &PostgresConfig) -> Result<Copied, CopyError> {
    let mut source = EmbeddedSource::open(directory)?;
    let mut target = PostgresTarget::open(config).await?;
    copy(&mut source, &mut target, "uid 0", &mut |_| ()).await
}

async fn to_directory(config: &PostgresConfig, directory: &Path) -> Result<Copied, CopyError> {
    let mut source = PostgresSource::open(config, false).await?;
    let mut target = EmbeddedTarget::new(directory)?;
    copy(&mut source, &mut target, "uid 0", &mut |_| ()).await
}

/// Every row that a copy takes along.
async fn rows(source: &mut impl CopySource) -> (Vec<CopiedCard>, Vec<Vec<u8>>, Vec<Entry>) {
    let (mut cards, mut controls, mut entries) = (Vec::<CopiedCard>::new(), Vec::new(), Vec::<Entry>::new());
    loop {
        let after: Option<CardKey> = cards.last().map(|card| card.card);
        let page = source.cards(after.as_ref(), 100).await.unwrap();
        if page.is_empty() {
            break;
        }
        cards.extend(page);
    }
    loop {
        let page = source.controls().await.unwrap();
        if page.is_empty() {
            break;
        }
        controls.extend(page);
    }
    let mut after = source.facts().archived_end;
    loop {
        let page = source.entries(after, 100).await.unwrap();
        if page.is_empty() {
            break;
        }
        after += page.len() as u64;
        entries.extend(page.iter().map(|entry| Entry::decode(entry).unwrap()));
    }
    (cards, controls, entries)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_there_and_back_has_the_same_rows() {
    let (server, directory) = (Server::start(), tempfile::tempdir().unwrap());
    let (from, back) = (directory.path().join("store"), directory.path().join("back"));
    let config = server.config("engine-1");
    let [done, opened] = filled(&from, CARDS).await;
    let before = files(&from);
    let report = now(to_database(&from, &config).await.unwrap());
    assert_eq!(files(&from), before, "the source changed");
    let counts = (report.cards, report.pins, report.retry_controls, report.ended_controls, report.continued);
    assert_eq!(counts, (CARDS, CARDS, 1, 2, false));
    let checked = check(&config, None).await.unwrap();
    assert_eq!((checked.damage, checked.chains[0].head), (vec![], report.event));

    let store = open(&config).await;
    let [next] = store.audit(report.event.sequence, 10).await.unwrap().try_into().unwrap();
    let Body::StoreRestored(origin) = next.event.body else { panic!("{next:?}") };
    assert_eq!((origin.sequence, origin.hash, origin.ended_controls), (report.end.sequence, report.end.hash, 2));
    assert_eq!(store.tries(&card(1)).await.unwrap().unwrap().used(), 2);
    assert_eq!(store.card(&card(2)).await.unwrap().unwrap().pin_status, PinStatus::Set);
    assert_eq!(store.keys_in_use().await.unwrap(), Some([1].into()));
    assert_eq!(*store.card_reference_key().await.unwrap().unwrap().as_bytes(), [9; 32]);
    assert_eq!(store.archived().await.unwrap().unwrap().end().sequence, 5);
    let unusable = set(&*store, opened, 8).await;
    assert!(matches!(unusable, Err(ChangeError::Denied(Denied::NotUsable))), "{unusable:?}");
    store.close().await;
    drop(store);

    let returned = now(to_directory(&config, &back).await.unwrap());
    assert_eq!((returned.cards, returned.retry_controls, returned.end), (CARDS, 1, report.event));
    let (mut first, mut last) = (EmbeddedSource::open(&from).unwrap(), EmbeddedSource::open(&back).unwrap());
    let facts = |source: &EmbeddedSource| CopyFacts {
        source: String::new(),
        end: Checkpoint::EMPTY,
        time: Default::default(),
        rows: 0,
        ..source.facts().clone()
    };
    assert_eq!(facts(&first), facts(&last));
    let (kept, copied) = (rows(&mut first).await, rows(&mut last).await);
    assert_eq!((&kept.0, &kept.1), (&copied.0, &copied.1));
    assert_eq!(kept.2, copied.2[..kept.2.len()]);
    assert_eq!(copied.2.len(), kept.2.len() + 2);
    drop((first, last));
    // A retry of the PIN that stands is confirmed, as after a restore.
    let store = embedded(&back);
    confirm(&store, done, 7).await.unwrap();
    store.close().await;
}

/// A target that fails before one of its operations.
struct Failing<T> {
    target: T,
    /// The operations until the failure.
    left: usize,
}

impl<T> Failing<T> {
    fn count(&mut self) -> Result<(), CopyError> {
        let failed = || CopyError::Database { place: "the test".into(), problem: "it fails".into() };
        self.left = self.left.checked_sub(1).ok_or_else(failed)?;
        Ok(())
    }
}

impl<T: CopyTarget> CopyTarget for Failing<T> {
    async fn begin(&mut self, facts: &CopyFacts) -> Result<Begun, CopyError> {
        self.target.begin(facts).await
    }

    async fn put_cards(&mut self, cards: &[CopiedCard]) -> Result<(), CopyError> {
        self.count()?;
        self.target.put_cards(cards).await
    }

    async fn put_controls(&mut self, controls: &[Vec<u8>]) -> Result<(), CopyError> {
        self.count()?;
        self.target.put_controls(controls).await
    }

    async fn put_entries(&mut self, first: u64, entries: &[Vec<u8>]) -> Result<(), CopyError> {
        self.count()?;
        self.target.put_entries(first, entries).await
    }

    async fn cards(&mut self, after: Option<&CardKey>, limit: usize) -> Result<Vec<CopiedCard>, CopyError> {
        self.count()?;
        self.target.cards(after, limit).await
    }

    async fn has_controls(&mut self, controls: &[Vec<u8>]) -> Result<(bool, u64), CopyError> {
        self.count()?;
        self.target.has_controls(controls).await
    }

    async fn entries(&mut self, after: u64, limit: usize) -> Result<Vec<Vec<u8>>, CopyError> {
        self.count()?;
        self.target.entries(after, limit).await
    }

    async fn finish(&mut self, facts: &CopyFacts, entry: Vec<u8>, head: Checkpoint) -> Result<(), CopyError> {
        self.count()?;
        self.target.finish(facts, entry, head).await
    }
}

/// Each attempt fails one operation later than the one before, until one ends.
async fn continued<S: CopySource, T: CopyTarget>(
    source: impl AsyncFn() -> S,
    target: impl AsyncFn() -> T,
    refused: impl AsyncFn(),
) -> CopyReport {
    let mut failures = 0;
    loop {
        let mut target = Failing { target: target().await, left: failures };
        match copy(&mut source().await, &mut target, "uid 0", &mut |_| ()).await {
            Ok(copied) => {
                assert!(failures > 8, "{failures}");
                return now(copied);
            }
            Err(CopyError::Database { place, .. }) if place == "the test" => {}
            Err(error) => panic!("{error}"),
        }
        drop(target);
        refused().await;
        failures += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_ended_anywhere_is_continued_and_serves_no_engine_before() {
    let (server, directory) = (Server::start(), tempfile::tempdir().unwrap());
    let (from, back) = (directory.path().join("store"), directory.path().join("back"));
    let config = server.config("engine-1");
    filled(&from, CARDS).await;
    let report = continued(
        async || EmbeddedSource::open(&from).unwrap(),
        async || PostgresTarget::open(&config).await.unwrap(),
        async || {
            let refused = Postgres::open(&config).await.err().unwrap();
            assert!(matches!(refused, PostgresOpenError::Unfinished { .. }), "{refused}");
            let found = check(&config, None).await.unwrap().damage;
            assert!(found.iter().any(|damage| damage.place == "store_copy"), "{found:?}");
        },
    )
    .await;
    assert_eq!((report.cards, report.continued), (CARDS, true));
    assert_eq!(check(&config, None).await.unwrap().damage, []);
    let report = continued(
        async || PostgresSource::open(&config, false).await.unwrap(),
        async || EmbeddedTarget::new(&back).unwrap(),
        async || assert!(!back.exists(), "an engine would open a part of a copy"),
    )
    .await;
    assert_eq!((report.cards, report.continued), (CARDS, true));
    let (mut first, mut last) = (EmbeddedSource::open(&from).unwrap(), EmbeddedSource::open(&back).unwrap());
    let (first, last) = (rows(&mut first).await, rows(&mut last).await);
    assert_eq!((&first.0, &first.1), (&last.0, &last.1));
}

/// The connection is lost at each commit in turn, once before the server receives the commit, and once after.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_commit_is_in_doubt_is_continued() {
    let (server, directory) = (Server::start(), tempfile::tempdir().unwrap());
    let from = directory.path().join("store");
    filled(&from, 20).await;
    for cut in [Cut::BeforeCommit, Cut::AfterCommit] {
        let mut config = server.config("engine-1");
        config.schema = format!("cut_{cut:?}").to_lowercase();
        store_postgres::upkeep::migrate(&config).await.unwrap();
        let mut attempts = 0;
        let event = loop {
            let proxy = Proxy::start(server.port);
            let through = PostgresConfig { hosts: server.config_at(proxy.port, "engine-1").hosts, ..config.clone() };
            let through = PostgresConfig { migrates: false, ..through };
            let mut source = EmbeddedSource::open(&from).unwrap();
            let mut target = PostgresTarget::open(&through).await.unwrap();
            let mut target = Cutting { target: &mut target, proxy: &proxy, cut, step: attempts };
            match copy(&mut source, &mut target, "uid 0", &mut |_| ()).await {
                Ok(Copied::Now(report)) => break report.event,
                Ok(Copied::Before(event)) => break event,
                Err(CopyError::Database { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            attempts += 1;
        };
        assert_eq!(attempts, 5);
        let found = check(&config, None).await.unwrap();
        assert_eq!((found.damage, found.counts.cards, found.chains[0].head), (vec![], 20, event), "{cut:?}");
        assert_eq!(to_database(&from, &config).await.unwrap(), Copied::Before(event));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_ended_behind_its_event_is_continued() {
    let (server, directory) = (Server::start(), tempfile::tempdir().unwrap());
    let (from, back) = (directory.path().join("store"), directory.path().join("back"));
    let config = server.config("engine-1");
    filled(&from, 3).await;
    to_database(&from, &config).await.unwrap();
    let mut source = PostgresSource::open(&config, false).await.unwrap();
    let mut target = EmbeddedTarget::new(&back).unwrap();
    // The event is written before the directory gets its name, which a file has by then.
    let mut progress = |_| fs::write(&back, "in use").unwrap();
    let failed = copy(&mut source, &mut target, "uid 0", &mut progress).await;
    assert!(matches!(failed, Err(CopyError::Upkeep(_))), "{failed:?}");
    drop((source, target));
    fs::remove_file(&back).unwrap();
    let report = now(to_directory(&config, &back).await.unwrap());
    assert!(report.continued);
    EmbeddedSource::open(&back).unwrap();
}

/// Cuts the connection at the commit of one step.
struct Cutting<'a> {
    target: &'a mut PostgresTarget,
    proxy: &'a Proxy,
    cut: Cut,
    step: usize,
}

impl Cutting<'_> {
    fn at(&mut self, step: usize) {
        if self.step == step {
            self.proxy.cut(self.cut);
        }
    }
}

impl CopyTarget for Cutting<'_> {
    async fn begin(&mut self, facts: &CopyFacts) -> Result<Begun, CopyError> {
        self.at(0);
        self.target.begin(facts).await
    }

    async fn put_cards(&mut self, cards: &[CopiedCard]) -> Result<(), CopyError> {
        self.at(1);
        self.target.put_cards(cards).await
    }

    async fn put_controls(&mut self, controls: &[Vec<u8>]) -> Result<(), CopyError> {
        self.at(2);
        self.target.put_controls(controls).await
    }

    async fn put_entries(&mut self, first: u64, entries: &[Vec<u8>]) -> Result<(), CopyError> {
        self.at(3);
        self.target.put_entries(first, entries).await
    }

    async fn cards(&mut self, after: Option<&CardKey>, limit: usize) -> Result<Vec<CopiedCard>, CopyError> {
        self.target.cards(after, limit).await
    }

    async fn has_controls(&mut self, controls: &[Vec<u8>]) -> Result<(bool, u64), CopyError> {
        self.target.has_controls(controls).await
    }

    async fn entries(&mut self, after: u64, limit: usize) -> Result<Vec<Vec<u8>>, CopyError> {
        self.target.entries(after, limit).await
    }

    async fn finish(&mut self, facts: &CopyFacts, entry: Vec<u8>, head: Checkpoint) -> Result<(), CopyError> {
        self.at(4);
        self.target.finish(facts, entry, head).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_row_of_the_target_is_found_before_the_copy_is_complete() {
    let (server, directory) = (Server::start(), tempfile::tempdir().unwrap());
    let from = directory.path().join("store");
    let config = server.config("engine-1");
    filled(&from, 20).await;
    // All rows are written, and none is compared.
    let mut target = Failing { target: PostgresTarget::open(&config).await.unwrap(), left: 3 };
    let mut source = EmbeddedSource::open(&from).unwrap();
    copy(&mut source, &mut target, "uid 0", &mut |_| ()).await.unwrap_err();
    drop((source, target));
    let admin = server.admin().await;
    const CHANGES: &[(&str, &str)] = &[
        ("cards", "UPDATE cards SET pin = (SELECT pin FROM cards WHERE plastic_id = '5') WHERE plastic_id = '4'"),
        ("cards", "UPDATE cards SET generation = generation + 1 WHERE plastic_id = '4'"),
        ("cards", "DELETE FROM cards WHERE plastic_id = '4'"),
        (
            "cards",
            "INSERT INTO cards SELECT tenant, '77', registered, opened_hour, generation, tries_reserved, \
            tries_forgiven, state, pin, pin_kind, pin_version FROM cards WHERE plastic_id = '4'",
        ),
        ("controls", "UPDATE controls SET state = state || '\\x00'::bytea"),
        (
            "controls",
            "INSERT INTO controls SELECT gen_random_uuid(), tenant, plastic_id, expires_at, opened_generation, \
            phase, state FROM controls",
        ),
        ("audit", "UPDATE audit SET entry = entry || '\\x00'::bytea WHERE sequence = 9"),
        ("audit", "DELETE FROM audit WHERE sequence = 9"),
    ];
    for (table, change) in CHANGES {
        admin.batch_execute(&format!("CREATE TABLE saved AS SELECT * FROM {table}")).await.unwrap();
        assert!(admin.execute(*change, &[]).await.unwrap() > 0, "{change}");
        let refused = to_database(&from, &config).await;
        assert!(matches!(refused, Err(CopyError::Differs { .. } | CopyError::Damaged { .. })), "{change}: {refused:?}");
        let undo = format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM saved; DROP TABLE saved");
        admin.batch_execute(&undo).await.unwrap();
    }
    now(to_database(&from, &config).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_into_or_out_of_a_store_in_use_is_refused() {
    let (server, directory) = (Server::start(), tempfile::tempdir().unwrap());
    let (from, other) = (directory.path().join("store"), directory.path().join("other"));
    let config = server.config("engine-1");
    filled(&from, 3).await;
    filled(&other, 3).await;
    // The source is locked, and the lock is held by a copy too.
    let engine = embedded(&from);
    let locked = EmbeddedSource::open(&from).err().unwrap();
    assert!(matches!(locked, UpkeepError::Open(store::StoreOpenError::Locked { .. })), "{locked}");
    engine.close().await;
    drop(engine);
    let mut source = EmbeddedSource::open(&from).unwrap();
    let config_of_engine = EmbeddedConfig::existing(from.clone());
    assert!(matches!(Embedded::open(&config_of_engine), Err(store::StoreOpenError::Locked { .. })));

    // Two copies at once, and the copy of another source.
    let facts = source.facts().clone();
    let (mut first, mut second) =
        (PostgresTarget::open(&config).await.unwrap(), PostgresTarget::open(&config).await.unwrap());
    first.begin(&facts).await.unwrap();
    second.begin(&facts).await.unwrap();
    let cards = source.cards(None, 10).await.unwrap();
    let displaced = first.put_cards(&cards).await;
    assert!(matches!(displaced, Err(CopyError::Displaced { .. })), "{displaced:?}");
    drop((first, second, source));
    let refused = to_database(&other, &config).await;
    assert!(matches!(refused, Err(CopyError::OtherSource { .. })), "{refused:?}");
    // A record under a retired version never gets into the database.
    let admin = server.admin().await;
    admin.execute("UPDATE key_versions SET retired_versions = '{0,255,0,0}'", &[]).await.unwrap();
    let retired = to_database(&from, &config).await;
    assert!(matches!(retired, Err(CopyError::Retired { .. })), "{retired:?}");
    admin.execute("UPDATE key_versions SET retired_versions = '{0,0,0,0}'", &[]).await.unwrap();
    now(to_database(&from, &config).await.unwrap());
    let refused = to_database(&other, &config).await;
    assert!(matches!(refused, Err(CopyError::NotEmpty { .. })), "{refused:?}");

    // Out of the database: its engines stop first, and each chain needs a place.
    let target = directory.path().join("target");
    let [one, two] = [open(&config).await, open(&server.config("engine-2")).await];
    (&*two as &dyn Store).record_event(engine_event(Body::KeysReloaded)).await.unwrap();
    two.close().await;
    let refused = to_directory(&config, &target).await;
    assert!(
        matches!(refused, Err(CopyError::EnginesRegistered { ref engines, .. }) if engines == "engine-1"),
        "{refused:?}"
    );
    one.close().await;
    let refused = to_directory(&config, &target).await;
    assert!(matches!(refused, Err(CopyError::OtherChains { ref engines, .. }) if engines == "engine-2"), "{refused:?}");
    // An engine that serves during the copy.
    let mut source = PostgresSource::open(&config, true).await.unwrap();
    let one = open(&config).await;
    reserve(&*one, card(2)).await.unwrap();
    one.close().await;
    let mut into = EmbeddedTarget::new(&target).unwrap();
    let changed = copy(&mut source, &mut into, "uid 0", &mut |_| ()).await;
    assert!(matches!(changed, Err(CopyError::Changed { .. })), "{changed:?}");
    drop((source, into));
    assert!(!target.exists());
    let mut source = PostgresSource::open(&config, true).await.unwrap();
    let mut into = EmbeddedTarget::new(&target).unwrap();
    let refused = copy(&mut source, &mut into, "uid 0", &mut |_| ()).await;
    assert!(matches!(refused, Err(CopyError::OtherSource { .. })), "{refused:?}");
    fs::remove_dir_all(directory.path().join("target.copying")).unwrap();
    let mut into = EmbeddedTarget::new(&target).unwrap();
    let report = now(copy(&mut source, &mut into, "uid 0", &mut |_| ()).await.unwrap());
    assert!(!directory.path().join("target.copying").exists());
    let mut into = EmbeddedTarget::new(&target).unwrap();
    let again = copy(&mut source, &mut into, "uid 0", &mut |_| ()).await.unwrap();
    assert_eq!(again, Copied::Before(report.event));
    let used = EmbeddedTarget::new(&from).unwrap().begin(source.facts()).await;
    assert!(matches!(used, Err(CopyError::Upkeep(UpkeepError::TargetNotEmpty { .. }))), "{used:?}");
}
