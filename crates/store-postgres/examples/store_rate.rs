//! The rate of a store alone: each flow opens a control, issues its tzpk and sets the PIN of a card, three changes.
//!
//! `cargo run -p pinseal-store-postgres --example store_rate -- PORT USER DATABASE ENGINES IN_FLIGHT FLOWS`

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used, reason = "a measurement for people")]

use std::{env, sync::Arc, time::Instant};

use audit::entry::Action;
use domain::control::{RetryTag, Transition};
use store::Store;
use store::conformance::{GENEROUS, card, card_event, control, record, tzpk};
use store_postgres::{DatabaseHost, Postgres, PostgresConfig};

async fn flow(store: &dyn Store, number: u64) {
    let opened = store.open_control(control(card(number)), GENEROUS, card_event(Action::OpenControl)).await.unwrap();
    let key = Transition::Key { tzpk: tzpk(1), replaces: None };
    store.advance(opened.id, key, card_event(Action::IssueTzpk)).await.unwrap();
    let set = Transition::Set { under: tzpk(1), retry: RetryTag([1; 16]), pin: record(1) };
    store.advance(opened.id, set, card_event(Action::SetPin)).await.unwrap();
}

#[tokio::main]
async fn main() {
    let mut arguments = env::args().skip(1);
    let mut next = || arguments.next().expect("PORT USER DATABASE ENGINES IN_FLIGHT FLOWS");
    let (port, user, database) = (next().parse().unwrap(), next(), next());
    let (engines, in_flight, flows): (u64, u64, u64) =
        (next().parse().unwrap(), next().parse().unwrap(), next().parse().unwrap());
    let mut stores = Vec::new();
    for number in 1..=engines {
        let host = DatabaseHost { name: "127.0.0.1".into(), port };
        let config = PostgresConfig::new(host, &database, &user, &format!("engine-{number}"));
        stores.push(Arc::new(Postgres::open(&config).await.unwrap()));
    }
    let started = Instant::now();
    let tasks: Vec<_> = (0..in_flight)
        .map(|task| {
            let store = Arc::clone(stores.get((task % engines) as usize).unwrap());
            tokio::spawn(async move {
                for number in 0..flows / in_flight {
                    flow(&*store, 1 + task * flows + number).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let (made, seconds) = (flows / in_flight * in_flight, started.elapsed().as_secs_f64());
    println!("{engines} engines, {in_flight} in flight: {:.0} flows/s ({made} flows)", made as f64 / seconds);
    for store in stores {
        store.close().await;
    }
}
