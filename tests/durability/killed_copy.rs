//! `pinseal store copy` is killed at several points and started again: every record arrives once.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
};

use audit::{
    card_reference::CardReferenceKey,
    entry::{Body, Entry},
};
use domain::card::{CardKey, StoredPin};
use engine_server::{StoreConfig, database, open_store_copy};
use postgres_server::{PATIENCE, Server};
use store::{
    KeysAtStart, Store,
    conformance::{card, engine_event, iso_4_keys, pin_use::set_by_zone, reported},
};

use super::command::{done, text};

/// More than two pages of a copy.
const CARDS: u64 = 2_100;
/// The points at which a copy is killed, of `PARTS` parts of its bytes; all of them with `PINSEAL_COPY_KILLS_ALL`.
const POINTS: &[u64] = &[1, 5, 9];
const ALL_POINTS: &[u64] = &[1, 3, 5, 7, 9];
const PARTS: u64 = 10;

fn points() -> &'static [u64] {
    if std::env::var_os("PINSEAL_COPY_KILLS_ALL").is_some() { ALL_POINTS } else { POINTS }
}

/// A TCP proxy between a copy and its server, which counts the bytes of both directions and may hold them.
struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: u64,
    /// From this number of bytes on nothing is forwarded.
    limit: Option<u64>,
    is_held: bool,
}

impl Proxy {
    fn start(server: u16, limit: Option<u64>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Mutex::new(State { limit, ..State::default() });
        let shared = Arc::new(Shared { state, changed: Condvar::new() });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(("127.0.0.1", server)).unwrap();
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to, shared) = (from.try_clone().unwrap(), to.try_clone().unwrap(), accepting.clone());
                    thread::spawn(move || shared.forward(from, to));
                }
            }
        });
        Self { port, shared }
    }

    fn bytes(&self) -> u64 {
        self.shared.state.lock().unwrap().bytes
    }

    /// Waits until the proxy holds the bytes of a copy.
    fn wait_until_held(&self) {
        let state = self.shared.state.lock().unwrap();
        let (state, _) = self.shared.changed.wait_timeout_while(state, PATIENCE, |state| !state.is_held).unwrap();
        assert!(state.is_held, "the copy ended before its point, after {} bytes", state.bytes);
    }
}

impl Shared {
    fn forward(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 4_096];
        while let Ok(count) = from.read(&mut buffer)
            && count > 0
            && self.may_pass(count as u64)
            && to.write_all(&buffer[..count]).is_ok()
        {}
        if !self.state.lock().unwrap().is_held {
            let _ = to.shutdown(Shutdown::Write);
        }
    }

    /// Counts bytes, and returns whether they are forwarded.
    fn may_pass(&self, count: u64) -> bool {
        let mut state = self.state.lock().unwrap();
        state.bytes += count;
        state.is_held |= state.limit.is_some_and(|limit| state.bytes >= limit);
        self.changed.notify_all();
        !state.is_held
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock().unwrap();
        (state.limit, state.is_held) = (Some(0), true);
    }
}

/// A stopped store with many PINs, each with its audit entry.
async fn fill(directory: &Path) {
    let config = StoreConfig::embedded(directory);
    let store = config.open().await.unwrap();
    let start = KeysAtStart { card_reference_key: CardReferenceKey::from_bytes([9; 32]) };
    let started = engine_event(Body::EngineStarted { engine: "host:/store".into() });
    store.set_keys_at_start(reported(&[1], iso_4_keys([1])), start, started).await.unwrap();
    let sets = (1..=CARDS).map(|number| set_by_zone(&*store, card(number), 1 + (number % 200) as u8));
    for set in futures::future::join_all(sets).await {
        set.unwrap();
    }
    store.close().await;
}

/// The PINs and audit entries of a store.
async fn records(store: &dyn Store) -> (Vec<(CardKey, StoredPin)>, Vec<Entry>) {
    let pins = store.scan_pins(None, usize::MAX).await.unwrap();
    let mut entries = Vec::<Entry>::new();
    loop {
        let page = store.audit(entries.len() as u64 + 1, 1_000).await.unwrap();
        if page.is_empty() {
            return (pins, entries);
        }
        entries.extend(page);
    }
}

/// Asserts that a target has each record of the source once, and the event of the copy behind them.
async fn assert_copied(source: &dyn Store, target: &dyn Store) {
    let ((pins, entries), (copied_pins, copied_entries)) = (records(source).await, records(target).await);
    assert!(pins.len() == CARDS as usize && pins == copied_pins, "{} PINs of {}", copied_pins.len(), pins.len());
    let (event, before) = copied_entries.split_last().unwrap();
    assert!(matches!(event.event.body, Body::StoreRestored(_)), "{event:?}");
    assert!(before == entries, "{} entries of {}", before.len(), entries.len());
}

fn config_at(directory: &Path, server: &Server, port: u16) -> PathBuf {
    let path = directory.join(format!("port-{port}.toml"));
    let section = server.section("engine-1");
    fs::write(&path, section.replace(&format!(":{}", server.port), &format!(":{port}"))).unwrap();
    path
}

/// The arguments of a copy to or from the database of a configuration.
type Arguments<'a> = &'a dyn Fn(&Path) -> Vec<String>;

/// The number of bytes between a whole copy and its server.
fn bytes_of(directory: &Path, server: &Server, arguments: Arguments<'_>) -> u64 {
    let proxy = Proxy::start(server.port, None);
    let arguments = arguments(&config_at(directory, server, proxy.port));
    done(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    proxy.bytes()
}

/// Kills a copy with SIGKILL after this number of bytes.
fn kill_copy(directory: &Path, server: &Server, arguments: Arguments<'_>, bytes: u64) {
    let proxy = Proxy::start(server.port, Some(bytes));
    let mut copy = Killed::start(&arguments(&config_at(directory, server, proxy.port)));
    proxy.wait_until_held();
    copy.0.kill().unwrap();
    assert_eq!(copy.0.wait().unwrap().signal(), Some(9), "the copy ended before it was killed");
}

/// A process that ends with its test.
struct Killed(Child);

impl Killed {
    fn start(arguments: &[String]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pinseal"));
        Self(command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn strings(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|argument| (*argument).to_owned()).collect()
}

/// Makes the tables of an empty database again.
async fn make_empty(server: &Server, config: &Path) {
    server.admin().await.batch_execute("DROP SCHEMA IF EXISTS pinseal CASCADE").await.unwrap();
    done(&["store", "migrate", "--config", text(config)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_copy_into_a_database_continues_without_loss() {
    let (server, directory) = (Server::start(), tempfile::tempdir().unwrap());
    let directory = directory.path();
    fill(directory).await;
    let from = directory.join("store");
    let source = open_store_copy(&from).unwrap();
    let config = config_at(directory, &server, server.port);
    let copy = |config: &Path| strings(&["store", "copy", "--from-store", text(&from), "--to-config", text(config)]);
    make_empty(&server, &config).await;
    let bytes = bytes_of(directory, &server, &copy);
    for point in points() {
        make_empty(&server, &config).await;
        kill_copy(directory, &server, &copy, bytes * point / PARTS);
        let again = copy(&config);
        let printed = done(&again.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(printed.contains(&format!("compared: cards: {CARDS}, PINs: {CARDS}")), "{point}: {printed}");
        let target = database::open_to_read(&server.config("engine-1"), "engine-1").await.unwrap();
        assert_copied(&*source, &*target).await;
        target.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_copy_out_of_a_database_continues_without_loss() {
    let (server, directory) = (Server::start(), tempfile::tempdir().unwrap());
    let directory = directory.path();
    fill(directory).await;
    let from = directory.join("store");
    let config = config_at(directory, &server, server.port);
    make_empty(&server, &config).await;
    done(&["store", "copy", "--from-store", text(&from), "--to-config", text(&config)]);
    let source = database::open_to_read(&server.config("engine-1"), "engine-1").await.unwrap();
    let measured = directory.join("measured");
    let bytes = bytes_of(directory, &server, &|config| {
        strings(&["store", "copy", "--from-config", text(config), "--to-store", text(&measured)])
    });
    for point in points() {
        let to = directory.join(format!("back-{point}"));
        let copy = |config: &Path| strings(&["store", "copy", "--from-config", text(config), "--to-store", text(&to)]);
        kill_copy(directory, &server, &copy, bytes * point / PARTS);
        assert!(!to.exists(), "{point}: an engine would start on a part of a copy");
        let again = copy(&config);
        let printed = done(&again.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(printed.contains(&format!("compared: cards: {CARDS}, PINs: {CARDS}")), "{point}: {printed}");
        assert_copied(&*source, &*open_store_copy(&to).unwrap()).await;
    }
    source.close().await;
}
