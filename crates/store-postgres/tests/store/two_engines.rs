//! Two engines on one database.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::proxy::{Cut, Proxy};
use crate::{count, open, set, verified_chain};
use audit::entry::Action;
use domain::control::Denied;
use postgres_server::{PATIENCE, Server, until};
use store::conformance::pin_use::{LIMIT, reserve, set_by_zone, settle};
use store::conformance::{GENEROUS, card, card_event, control, keyed, record};
use store::{ChangeError, Store, ZoneSet};
use store_postgres::PostgresConfig;

const CARDS: u64 = 8;
const ROUNDS: u8 = 12;

/// Each card has one caller that sets PIN after PIN, its steps on different engines, and racers with controls of their own.
#[tokio::test(flavor = "multi_thread")]
async fn two_engines_lose_no_pin_and_fork_no_chain() {
    let server = Server::start();
    let engines = [open(&server.config("engine-1")).await, open(&server.config("engine-2")).await];
    let mut tasks = Vec::new();
    for number in 1..=CARDS {
        let engines = engines.clone();
        tasks.push(tokio::spawn(async move {
            let mut sets = 0;
            for round in 1..=ROUNDS {
                let at = usize::from(round) % 2;
                let opened = keyed(&*engines[at], card(number)).await;
                let (own, other) =
                    (set(&*engines[1 - at], opened.id, round), set(&*engines[at], opened.id, 100 + round));
                let (own, other) = tokio::join!(own, other);
                let last = match (&own, &other) {
                    (Ok(()), Err(ChangeError::Denied(Denied::NotUsable))) => round,
                    (Err(ChangeError::Denied(Denied::NotUsable)), Ok(())) => 100 + round,
                    answers => panic!("one set of two under a control is made: {answers:?}"),
                };
                sets += 1;
                let stored = engines[at].pin(&card(number)).await.unwrap().unwrap();
                assert_eq!(stored.record, record(last).record, "an acknowledged PIN is lost");
            }
            sets
        }));
    }
    let mut sets = 0;
    for task in tasks {
        sets += task.await.unwrap();
    }
    let mut events = 0;
    for engine in ["engine-1", "engine-2"] {
        events += count(&verified_chain(&engines[0], engine).await, Action::SetPin);
    }
    assert_eq!((events, sets), (usize::from(ROUNDS) * CARDS as usize, events));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_engines_allow_no_more_tries_than_the_limit() {
    let server = Server::start();
    let engines = [open(&server.config("engine-1")).await, open(&server.config("engine-2")).await];
    set_by_zone(&*engines[0], card(1), 1).await.unwrap();
    let racers: Vec<_> = (0..64)
        .map(|racer: usize| {
            let engine = Arc::clone(&engines[racer % 2]);
            tokio::spawn(async move {
                match reserve(&*engine, card(1)).await {
                    Ok(reserved) => Some(reserved.number),
                    Err(ChangeError::Denied(Denied::PinLocked)) => None,
                    Err(error) => panic!("{error}"),
                }
            })
        })
        .collect();
    let mut numbers = Vec::new();
    for racer in racers {
        numbers.extend(racer.await.unwrap());
    }
    numbers.sort_unstable();
    assert_eq!(numbers, [1, 2, 3]);
    // A right PIN forgives up to its own number, whichever engine settles it.
    assert_eq!(settle(&*engines[1], card(1), 2, true).await.unwrap(), LIMIT - 1);
    assert_eq!(settle(&*engines[0], card(1), 3, false).await.unwrap(), LIMIT - 1);
    assert_eq!(engines[0].tries(&card(1)).await.unwrap().unwrap().used(), 1);
}

/// Every set of one card is made, in some order: the engines wait for each other's locks.
#[tokio::test(flavor = "multi_thread")]
async fn two_engines_set_the_pin_of_one_card_in_turn() {
    let server = Server::start();
    let engines = [open(&server.config("engine-1")).await, open(&server.config("engine-2")).await];
    let racers: Vec<_> = (1..=60)
        .map(|number: u8| {
            let engine = Arc::clone(&engines[usize::from(number) % 2]);
            tokio::spawn(async move { set_by_zone(&*engine, card(1), number).await.unwrap() })
        })
        .collect();
    for racer in racers {
        assert_eq!(racer.await.unwrap(), ZoneSet::New);
    }
    let admin = server.admin().await;
    let row = admin.query_one("SELECT generation FROM cards", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 60);
}

/// Each acknowledged set is made once, whatever happens to the connections: a change in doubt is found or made again.
#[tokio::test(flavor = "multi_thread")]
async fn cut_connections_lose_and_repeat_no_change() {
    let server = Server::start();
    let proxies = [Proxy::start(server.port), Proxy::start(server.port)];
    let mut engines = Vec::new();
    for (number, proxy) in proxies.iter().enumerate() {
        let unreachable_after = PATIENCE;
        let config = server.config_at(proxy.port, &format!("engine-{number}"));
        engines.push(open(&PostgresConfig { unreachable_after, ..config }).await);
    }
    let done = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (1..=CARDS)
        .map(|number| {
            let (engines, done) = (engines.clone(), Arc::clone(&done));
            tokio::spawn(async move {
                for round in 1..=ROUNDS {
                    let engine = &*engines[(number as usize + usize::from(round)) % 2];
                    assert_eq!(set_by_zone(engine, card(number), round).await.unwrap(), ZoneSet::New);
                    done.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    // One cut after another: the COMMIT of a recovery may be cut too, and some changes are made in between.
    let (mut cuts, sets) = (0, usize::from(ROUNDS) * CARDS as usize);
    while done.load(Ordering::SeqCst) + CARDS as usize * 2 < sets {
        let (proxy, cut) =
            [(0, Cut::AfterCommit), (1, Cut::BeforeCommit), (1, Cut::AfterCommit), (0, Cut::BeforeCommit)][cuts % 4];
        proxies[proxy].cut(cut);
        let before = done.load(Ordering::SeqCst);
        until("a connection is cut, and changes are made", async || {
            let made = done.load(Ordering::SeqCst).saturating_sub(before);
            (proxies[proxy].has_cut() && made > 2 || made > CARDS as usize * 3).then_some(())
        })
        .await;
        cuts += 1;
    }
    proxies.iter().for_each(|proxy| proxy.cut(Cut::Never));
    for task in tasks {
        task.await.unwrap();
    }
    assert!(cuts >= 3, "{cuts} cuts");
    let mut events = 0;
    for engine in ["engine-0", "engine-1"] {
        events += count(&verified_chain(&engines[0], engine).await, Action::SetPinByZone);
    }
    assert_eq!(events, usize::from(ROUNDS) * CARDS as usize);
    for number in 1..=CARDS {
        assert_eq!(engines[0].pin(&card(number)).await.unwrap().unwrap().record, record(ROUNDS).record);
    }
}

/// Both engines add the card: one of them finds the row of the other, and opens its control too.
#[tokio::test(flavor = "multi_thread")]
async fn two_engines_add_one_card_at_once() {
    let server = Server::start();
    let engines = [open(&server.config("engine-1")).await, open(&server.config("engine-2")).await];
    for number in 1..=20 {
        let opened = async |engine: usize| {
            let store: &dyn Store = &*engines[engine];
            store.open_control(control(card(number)), GENEROUS, card_event(Action::OpenControl)).await.unwrap()
        };
        let (one, two) = tokio::join!(opened(0), opened(1));
        for id in [one.id, two.id] {
            assert!(engines[0].control(id).await.unwrap().is_some());
        }
    }
    for engine in ["engine-1", "engine-2"] {
        assert_eq!(count(&verified_chain(&engines[0], engine).await, Action::OpenControl), 20);
    }
}
