//! The store on a real PostgreSQL that each test starts.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that is surprised must fail"
)]

mod conformance;
mod copy;
mod engine_keys;
mod expiry;
mod facts;
mod fencing;
mod in_doubt;
mod migration;
mod outage;
mod proxy;
mod reads;
mod retries;
mod rotation;
mod sweep;
mod tls;
mod two_engines;
mod upkeep;

use std::sync::Arc;

use audit::chain::{ChainVerifier, Checkpoint};
use audit::entry::{Action, Body, Entry};
use domain::control::{ControlId, RetryTag, Transition};
use store::conformance::{card_event, record, tzpk};
use store::{ChangeError, Store};
use store_postgres::{Postgres, PostgresConfig};

async fn open(config: &PostgresConfig) -> Arc<Postgres> {
    Arc::new(Postgres::open(config).await.unwrap())
}

/// Sets a PIN under a control with the first tzpk, by one change without a read.
async fn set(store: &dyn Store, control: ControlId, number: u8) -> Result<(), ChangeError> {
    let set = Transition::Set { under: tzpk(1), retry: RetryTag([number; 16]), pin: record(number) };
    store.advance(control, set, card_event(Action::SetPin)).await
}

fn as_store(store: &Arc<Postgres>) -> &dyn Store {
    &**store
}

/// The entries of an engine's chain, which has no gap and no fork, and ends at its head.
async fn verified_chain(store: &Postgres, engine: &str) -> Vec<Entry> {
    let entries = store.audit_of(engine, 1, 1_000_000).await.unwrap();
    let chains = store.chains().await.unwrap();
    let head = chains.iter().find(|chain| chain.engine == engine).unwrap().head;
    let expected = if head == Checkpoint::EMPTY { vec![head] } else { Vec::new() };
    let mut walk = ChainVerifier::new(expected).with_head(head);
    entries.iter().try_for_each(|entry| walk.check(entry)).unwrap();
    walk.finish().unwrap();
    entries
}

fn count(entries: &[Entry], action: Action) -> usize {
    let is_it = |entry: &&Entry| matches!(&entry.event.body, Body::Card(card) if card.action == action);
    entries.iter().filter(is_it).count()
}
