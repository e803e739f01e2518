//! The limits on the connections of a listener.
//!
//! A connection is silent until its peer has authenticated (edge) or started HTTP/2 (engine). Silent connections cost an
//! attacker nothing, so a full table closes the oldest silent connection for a new one. A client that sends its request at
//! once is served while an attacker holds connections open.

use config::{ConfigError, within};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use clock::minute_limit::MinuteLimit;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// The file descriptors that a process needs for anything but the connections of a listener and the files of a store.
const OTHER_DESCRIPTORS: usize = 256;
/// The fewest connections of a table, even if the process may open fewer descriptors.
const CONNECTIONS_MIN: usize = 16;
/// Connections above the limit, because a closed connection holds its descriptor until its task ends.
const CLOSING_MAX: usize = 64;
/// The longest time that a new connection waits for the descriptor of a closed one.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(10);
/// The most warnings within a minute that a limit is reached.
const WARNINGS_PER_MINUTE_MAX: u64 = 6;

/// The limits on the connections of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// The most open connections. Half of them may be silent.
    pub connections_max: usize,
    /// The most silent connections from one IPv4 address, or from one IPv6 network with a 64-bit prefix.
    pub silent_per_address_max: usize,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self { connections_max: 10_000, silent_per_address_max: 256 }
    }
}

impl ConnectionLimits {
    /// Checks the limits of a configuration.
    ///
    /// # Errors
    /// A number is out of its range.
    pub fn new(connections: usize, silent_per_address: usize) -> Result<Self, ConfigError> {
        Ok(Self {
            connections_max: within("connections_max", connections, 16..=1_000_000)?,
            silent_per_address_max: within("silent_connections_per_address_max", silent_per_address, 1..=1_000_000)?,
        })
    }
}

/// The file descriptors that all tables of this process want: a demo has an edge and an engine in one process.
static WANTED_DESCRIPTORS: AtomicUsize = AtomicUsize::new(OTHER_DESCRIPTORS);

/// The file descriptors that one table wants, until dropped.
struct Descriptors(usize);

impl Descriptors {
    /// Raises the soft limit of the process to what all its tables want, at most to the hard limit, and lowers
    /// `connections_max` to what that leaves beside `files` and the other descriptors.
    fn reserve(limits: &mut ConnectionLimits, files: usize) -> Self {
        let others = CLOSING_MAX.saturating_add(files);
        let wanted = limits.connections_max.saturating_add(others);
        let of_all = WANTED_DESCRIPTORS.fetch_add(wanted, Ordering::Relaxed).saturating_add(wanted);
        let open_files = raise_open_files(of_all);
        let allowed = open_files.saturating_sub(others).saturating_sub(OTHER_DESCRIPTORS).max(CONNECTIONS_MIN);
        if allowed < limits.connections_max {
            tracing::warn!(
                configured = limits.connections_max,
                allowed,
                open_files,
                "the limit of open files allows fewer connections than configured: raise it (LimitNOFILE=, ulimit -n)"
            );
            limits.connections_max = allowed;
        }
        Self(wanted)
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        WANTED_DESCRIPTORS.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// Raises the soft limit of file descriptors to `wanted`, at most to the hard limit. Returns the limit that holds then.
fn raise_open_files(wanted: usize) -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    let raised = u64::try_from(wanted).unwrap_or(u64::MAX).min(limit.maximum.unwrap_or(u64::MAX));
    if limit.current.is_some_and(|current| current < raised) {
        match setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: limit.maximum }) {
            Ok(()) => limit.current = Some(raised),
            Err(error) => tracing::warn!(%error, "the limit of open files cannot be raised"),
        }
    }
    limit.current.map_or(usize::MAX, |current| usize::try_from(current).unwrap_or(usize::MAX))
}

/// The open connections of one listener.
#[derive(Clone)]
pub struct ConnectionTable(Arc<Shared>);

struct Shared {
    limits: ConnectionLimits,
    places: Arc<Semaphore>,
    silent: Mutex<Silent>,
    warnings: MinuteLimit,
    _descriptors: Descriptors,
}

#[derive(Default)]
struct Silent {
    last_number: u64,
    /// By number, so that the oldest connection comes first.
    by_age: BTreeMap<u64, (IpAddr, Arc<Notify>)>,
    by_address: HashMap<IpAddr, BTreeSet<u64>>,
}

impl ConnectionTable {
    /// An empty table. Raises the soft limit of file descriptors if the limits need more, and lowers `connections_max` to
    /// what the hard limit grants; a warning in the log has both numbers.
    pub fn new(limits: ConnectionLimits) -> Self {
        Self::beside_files(limits, 0)
    }

    /// The same for a process that keeps up to `files` files open, such as those of a store.
    pub fn beside_files(mut limits: ConnectionLimits, files: usize) -> Self {
        let descriptors = Descriptors::reserve(&mut limits, files);
        let places = Arc::new(Semaphore::new(limits.connections_max.saturating_add(CLOSING_MAX)));
        let warnings = MinuteLimit::new(WARNINGS_PER_MINUTE_MAX);
        Self(Arc::new(Shared { limits, places, silent: Mutex::default(), warnings, _descriptors: descriptors }))
    }

    /// A place for a new connection, which is silent at first. `None` if no silent connection can be closed for it; the
    /// caller then drops the new connection.
    pub async fn admit(&self, address: IpAddr) -> Option<ConnectionPlace> {
        let Shared { limits, places, .. } = &*self.0;
        let address = counted(address);
        // Connections above the limit are being closed: wait for one of them to end.
        let permit = timeout(CLOSE_TIME_MAX, Arc::clone(places).acquire_owned()).await;
        let mut silent = self.0.silent();
        let Ok(Ok(permit)) = permit else {
            self.0.warn(&silent);
            return None;
        };
        let of_address = silent.by_address.get(&address).map_or(0, BTreeSet::len);
        let is_full = places.available_permits() < CLOSING_MAX;
        if of_address >= limits.silent_per_address_max {
            let oldest = silent.by_address.get(&address).and_then(BTreeSet::first).copied();
            silent.close(oldest);
            self.0.warn(&silent);
        } else if is_full || silent.by_age.len() >= (limits.connections_max / 2).max(1) {
            let oldest = silent.by_age.keys().next().copied();
            let has_closed = silent.close(oldest);
            self.0.warn(&silent);
            if !has_closed {
                return None;
            }
        }
        silent.last_number = silent.last_number.saturating_add(1);
        let (number, close) = (silent.last_number, Arc::new(Notify::new()));
        silent.by_age.insert(number, (address, Arc::clone(&close)));
        silent.by_address.entry(address).or_default().insert(number);
        Some(ConnectionPlace { number, network: address, close, table: self.clone(), _permit: permit })
    }

    /// Returns when no connection is open.
    pub async fn wait_until_empty(&self) {
        let all = self.0.limits.connections_max.saturating_add(CLOSING_MAX);
        let _ = self.0.places.acquire_many(u32::try_from(all).unwrap_or(u32::MAX)).await;
    }
}

impl Shared {
    fn silent(&self) -> MutexGuard<'_, Silent> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn warn(&self, silent: &Silent) {
        if let Some(suppressed) = self.warnings.admit() {
            tracing::warn!(
                limits = ?self.limits,
                silent = silent.by_age.len(),
                suppressed,
                "a limit of connections is reached: silent connections are closed, or new ones are dropped"
            );
        }
    }
}

impl Silent {
    fn remove(&mut self, number: u64) -> Option<Arc<Notify>> {
        let (address, close) = self.by_age.remove(&number)?;
        if let Some(numbers) = self.by_address.get_mut(&address) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_address.remove(&address);
            }
        }
        Some(close)
    }

    /// Closes a silent connection. False if no silent connection has this number.
    fn close(&mut self, number: Option<u64>) -> bool {
        let Some(close) = number.and_then(|number| self.remove(number)) else { return false };
        close.notify_one();
        true
    }
}

/// The place of a connection in the table. The place is free again when this value is dropped.
pub struct ConnectionPlace {
    number: u64,
    network: IpAddr,
    close: Arc<Notify>,
    table: ConnectionTable,
    _permit: OwnedSemaphorePermit,
}

impl ConnectionPlace {
    /// Returns when the table closes this connection. The table never closes a settled connection.
    pub async fn closed(&self) {
        self.close.notified().await;
    }

    /// The IPv4 address of the peer, or its IPv6 network with a 64-bit prefix.
    pub fn network(&self) -> IpAddr {
        self.network
    }

    /// Marks the connection as not silent.
    pub fn settle(&self) {
        self.table.0.silent().remove(self.number);
    }
}

impl Drop for ConnectionPlace {
    fn drop(&mut self) {
        self.settle();
    }
}

/// The address that a limit counts: an IPv4 address, or the 64-bit prefix of an IPv6 address, because a host gets a whole
/// network of that size.
fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const LIMITS: ConnectionLimits = ConnectionLimits { connections_max: 6, silent_per_address_max: 2 };

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    fn is_closed(place: &ConnectionPlace) -> bool {
        place.closed().now_or_never().is_some()
    }

    async fn admitted(table: &ConnectionTable, last: u8) -> ConnectionPlace {
        table.admit(address(last)).await.unwrap()
    }

    #[tokio::test]
    async fn the_oldest_silent_connection_of_an_address_is_displaced() {
        let table = ConnectionTable::new(LIMITS);
        let other = admitted(&table, 2).await;
        let [first, second, third] = [admitted(&table, 1).await, admitted(&table, 1).await, admitted(&table, 1).await];
        assert!(is_closed(&first) && !is_closed(&second) && !is_closed(&third) && !is_closed(&other));
    }

    #[tokio::test]
    async fn half_the_connections_may_be_silent() {
        let table = ConnectionTable::new(LIMITS);
        let mut places = Vec::new();
        for last in 1..=4 {
            places.push(admitted(&table, last).await);
        }
        assert_eq!(places.iter().map(is_closed).collect::<Vec<_>>(), [true, false, false, false]);
    }

    #[tokio::test]
    async fn a_full_table_drops_new_connections_and_keeps_settled_ones() {
        let table = ConnectionTable::new(LIMITS);
        let mut settled = Vec::new();
        for _ in 1..=6 {
            let place = admitted(&table, 1).await;
            place.settle();
            settled.push(place);
        }
        assert!(table.admit(address(2)).await.is_none());
        assert!(!settled.iter().any(is_closed));
        settled.pop();
        assert!(table.admit(address(2)).await.is_some());
    }

    #[tokio::test]
    async fn a_new_connection_waits_for_closing_ones() {
        let table = ConnectionTable::new(LIMITS);
        let mut closing = Vec::new();
        while table.0.places.available_permits() > 0 {
            closing.push(admitted(&table, 1).await);
        }
        let waiting = table.admit(address(1));
        let closes = async {
            tokio::task::yield_now().await;
            closing.clear();
        };
        assert!(tokio::join!(waiting, closes).0.is_some());
    }

    #[tokio::test]
    async fn an_ipv6_network_counts_as_one_address() {
        let table = ConnectionTable::new(LIMITS);
        let mut places = Vec::new();
        for text in ["2001:db8::1", "2001:db8::2:0:0:2", "2001:db8:0:0:ffff::3"] {
            places.push(table.admit(text.parse().unwrap()).await.unwrap());
        }
        assert_eq!(places.iter().map(is_closed).collect::<Vec<_>>(), [true, false, false]);
    }
}
