//! The limits on requests in progress and on their rate, so that one client, tenant or network leaves places to the others.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::{
    api_error::ApiError,
    auth::Client,
    metrics::{Limit, RefusedRequests},
};
use domain::card::Tenant;
use net::RateLimit;

/// The most rests of bodies that are read after an early answer, and the most bodies of exchanges: of all connections, and of
/// one network.
const BODIES_MAX: usize = 1_024;
const BODIES_PER_NETWORK_MAX: usize = 128;
/// The most exchanges of controls of one network within a minute that fail.
const FAILED_EXCHANGES_PER_MINUTE_MAX: u32 = 60;
/// The most networks whose exchanges are counted: about 3 MB.
const EXCHANGE_NETWORKS_MAX: usize = 65_536;
const MINUTE: Duration = Duration::from_secs(60);

/// The limits on authenticated requests. A request is in progress from its authentication to its answer; its body may be
/// incomplete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// The most requests in progress.
    pub requests_max: usize,
    /// The most requests in progress of one client.
    pub per_client_max: usize,
    /// The most requests in progress of the clients of one tenant.
    pub per_tenant_max: usize,
    /// The most requests of one client that begin within a second.
    pub per_client_per_second_max: u32,
}

/// Who has a share of the requests and a rate.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Holder {
    /// By the name of the client, which is unique and outlasts a reload.
    Client(Box<str>),
    /// By the key of the page.
    Page(Box<str>),
}

/// Admits requests.
pub(super) struct RequestAdmission {
    all: Semaphore,
    clients: Shares<Holder>,
    tenants: Shares<Tenant>,
    rates: RateLimit<Holder>,
    rests: BodyPlaces,
    exchanges: BodyPlaces,
    refused: RefusedRequests,
}

/// The place of a request in progress, until dropped.
pub(super) struct RequestPlace<'a> {
    _all: SemaphorePermit<'a>,
    _client: Share<'a, Holder>,
    _tenant: Share<'a, Tenant>,
}

/// The place of a body, until dropped.
pub(super) struct BodyPlace<'a> {
    _all: SemaphorePermit<'a>,
    _network: Share<'a, IpAddr>,
}

impl RequestAdmission {
    pub(super) fn new(limits: &RequestLimits, refused: RefusedRequests) -> Self {
        Self {
            all: Semaphore::new(limits.requests_max),
            clients: Shares::new(limits.per_client_max),
            tenants: Shares::new(limits.per_tenant_max),
            rates: RateLimit::per_second(limits.per_client_per_second_max),
            rests: BodyPlaces::new(),
            exchanges: BodyPlaces::new(),
            refused,
        }
    }

    /// A place for a request of this client.
    ///
    /// # Errors
    /// CLIENT_RATE, CLIENT_BUSY, TENANT_BUSY or BUSY, by the limit that is reached. The metric of this limit counts the request.
    pub(super) fn admit(&self, client: &Client) -> Result<RequestPlace<'_>, ApiError> {
        self.admit_as(Holder::Client(client.name().into()), client.tenant())
    }

    /// A place for a call of the page with this key. It takes none of the client's own share and rate, which calls of strangers
    /// and cardholders could use up.
    ///
    /// # Errors
    /// As [`admit`](Self::admit).
    pub(super) fn admit_page(&self, key: &str, client: &Client) -> Result<RequestPlace<'_>, ApiError> {
        self.admit_as(Holder::Page(key.into()), client.tenant())
    }

    fn admit_as(&self, holder: Holder, tenant: Tenant) -> Result<RequestPlace<'_>, ApiError> {
        let refuse = |limit: Limit| {
            self.refused.count(limit);
            limit.error()
        };
        self.rates.admit(&holder).map_err(|exceeded| refuse(Limit::ClientRate).retry_after(exceeded.retry_after))?;
        Ok(RequestPlace {
            _client: self.clients.take(holder).ok_or_else(|| refuse(Limit::Client))?,
            _tenant: self.tenants.take(tenant).ok_or_else(|| refuse(Limit::Tenant))?,
            _all: self.all.try_acquire().map_err(|_| refuse(Limit::All))?,
        })
    }

    /// A place for the rest of a body from this network; `None` if a limit is reached.
    pub(super) fn admit_rest(&self, network: IpAddr) -> Option<BodyPlace<'_>> {
        self.rests.take(network)
    }

    /// A place for the body of an exchange from this network; `None` if a limit is reached.
    pub(super) fn admit_exchange(&self, network: IpAddr) -> Option<BodyPlace<'_>> {
        self.exchanges.take(network)
    }
}

/// Places for bodies that are read before a client is known.
struct BodyPlaces {
    all: Semaphore,
    networks: Shares<IpAddr>,
}

impl BodyPlaces {
    fn new() -> Self {
        Self { all: Semaphore::new(BODIES_MAX), networks: Shares::new(BODIES_PER_NETWORK_MAX) }
    }

    fn take(&self, network: IpAddr) -> Option<BodyPlace<'_>> {
        Some(BodyPlace { _network: self.networks.take(network)?, _all: self.all.try_acquire().ok()? })
    }
}

/// Limits the exchanges of controls of one network within a minute that fail or are in progress, so that a stranger causes few
/// calls and audit entries of the engine. Whole minutes since the edge started are counted.
#[derive(Default)]
pub(super) struct ExchangeAdmission(Mutex<ExchangeMinute>);

#[derive(Default)]
struct ExchangeMinute {
    began: Option<Instant>,
    of_networks: HashMap<IpAddr, u32>,
}

/// An exchange of a control: it counts as failed unless [`ExchangePlace::uncount`] is called.
pub(super) struct ExchangePlace<'a> {
    network: IpAddr,
    admission: &'a ExchangeAdmission,
}

impl ExchangeAdmission {
    /// Counts an exchange of this network.
    ///
    /// # Errors
    /// EXCHANGE_RATE, until the minute ends.
    pub(super) fn begin(&self, network: IpAddr) -> Result<ExchangePlace<'_>, ApiError> {
        let mut minute = self.lock();
        let age = minute.began.map(|began| began.elapsed()).filter(|age| *age < MINUTE);
        if age.is_none() {
            *minute = ExchangeMinute { began: Some(Instant::now()), of_networks: HashMap::new() };
        }
        // More networks than these are not counted: a limit that many networks share would refuse cardholders.
        if minute.of_networks.len() < EXCHANGE_NETWORKS_MAX || minute.of_networks.contains_key(&network) {
            let count = minute.of_networks.entry(network).or_default();
            if *count >= FAILED_EXCHANGES_PER_MINUTE_MAX {
                return Err(ApiError::EXCHANGE_RATE.retry_after(MINUTE.saturating_sub(age.unwrap_or_default())));
            }
            *count += 1;
        }
        Ok(ExchangePlace { network, admission: self })
    }

    fn lock(&self) -> MutexGuard<'_, ExchangeMinute> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ExchangePlace<'_> {
    /// Counts the exchange no more: it succeeded, or failed without any part of the control.
    pub(super) fn uncount(self) {
        if let Some(count) = self.admission.lock().of_networks.get_mut(&self.network) {
            *count = count.saturating_sub(1);
        }
    }
}

/// Counts what each key holds. A key that holds nothing takes no memory.
struct Shares<K> {
    max: usize,
    held: Mutex<HashMap<K, usize>>,
}

struct Share<'a, K: Hash + Eq> {
    key: K,
    shares: &'a Shares<K>,
}

impl<K: Hash + Eq + Clone> Shares<K> {
    fn new(max: usize) -> Self {
        Self { max, held: Mutex::default() }
    }

    /// One more for this key; `None` if it holds `max`.
    fn take(&self, key: K) -> Option<Share<'_, K>> {
        let mut all = self.lock();
        let held = all.entry(key.clone()).or_default();
        if *held >= self.max {
            return None;
        }
        *held += 1;
        Some(Share { key, shares: self })
    }
}

impl<K> Shares<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq> Drop for Share<'_, K> {
    fn drop(&mut self) {
        let mut all = self.shares.lock();
        if let Some(held) = all.get_mut(&self.key) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                all.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Credential;

    const LIMITS: RequestLimits =
        RequestLimits { requests_max: 5, per_client_max: 2, per_tenant_max: 3, per_client_per_second_max: 1_000_000 };

    fn client(name: &str, tenant: &str) -> Client {
        Client::new(name, Tenant::parse(tenant).unwrap(), Credential::bearer(name))
    }

    #[test]
    fn a_page_uses_none_of_its_clients_share_and_rate() {
        let limits = RequestLimits { per_client_per_second_max: 2, ..LIMITS };
        let admission = RequestAdmission::new(&limits, RefusedRequests::default());
        let wallet = client("wallet", "bank");
        let held: Vec<_> = (0..2).map(|_| admission.admit_page("wallet", &wallet).unwrap()).collect();
        assert_eq!(admission.admit_page("wallet", &wallet).err().map(ApiError::code), Some("CLIENT_RATE"));
        assert!(admission.admit(&wallet).is_ok());
        drop(held);
        let rests: Vec<_> =
            (0..BODIES_PER_NETWORK_MAX).map(|_| admission.admit_rest(IpAddr::from([192, 0, 2, 1]))).collect();
        assert!(rests.iter().all(Option::is_some) && admission.admit_rest(IpAddr::from([192, 0, 2, 1])).is_none());
        assert!(admission.admit_exchange(IpAddr::from([192, 0, 2, 1])).is_some());
    }

    #[test]
    fn client_tenant_and_edge_have_bounds_on_requests_in_progress() {
        let admission = RequestAdmission::new(&LIMITS, RefusedRequests::default());
        let mut places = Vec::new();
        for (name, tenant, expected) in [
            ("a", "bank", None),
            ("a", "bank", None),
            ("a", "bank", Some(ApiError::CLIENT_BUSY)),
            ("b", "bank", None),
            ("b", "bank", Some(ApiError::TENANT_BUSY)),
            ("c", "other", None),
            ("c", "other", None),
            ("d", "third", Some(ApiError::BUSY)),
        ] {
            match admission.admit(&client(name, tenant)) {
                Ok(place) => places.push(place),
                Err(error) => assert_eq!(Some(error), expected, "{name}"),
            }
        }
        assert_eq!(places.len(), 5);
        places.clear();
        assert!(admission.clients.lock().is_empty() && admission.tenants.lock().is_empty());
        assert!(admission.admit(&client("d", "third")).is_ok());
    }

    #[test]
    fn a_client_beyond_its_rate_waits_and_another_does_not() {
        let limits = RequestLimits { per_client_per_second_max: 1, ..LIMITS };
        let admission = RequestAdmission::new(&limits, RefusedRequests::default());
        let (fast, slow) = (client("a", "bank"), client("b", "bank"));
        // The quota is renewed while this test runs.
        let refused = (0..10_000).find_map(|_| admission.admit(&fast).err());
        assert_eq!(refused.map(ApiError::code), Some("CLIENT_RATE"));
        assert!(admission.admit(&slow).is_ok());
    }

    #[test]
    fn a_network_has_a_bound_on_failed_exchanges_and_none_on_others() {
        let exchanges = ExchangeAdmission::default();
        let network = |last: u8| IpAddr::from([192, 0, 2, last]);
        for _ in 0..1_000 {
            exchanges.begin(network(1)).unwrap().uncount();
        }
        // The minute may turn once while the test runs.
        let failed = (0..1_000).filter(|_| exchanges.begin(network(1)).is_ok()).count();
        assert!([60, 120].contains(&failed), "{failed}");
        assert_eq!(exchanges.begin(network(1)).err().map(ApiError::code), Some("EXCHANGE_RATE"));
        assert!(exchanges.begin(network(2)).is_ok());
    }

    #[test]
    fn a_network_has_a_bound_on_rests_of_bodies() {
        let admission = RequestAdmission::new(&LIMITS, RefusedRequests::default());
        let rest = |last: u8| admission.admit_rest([192, 0, 2, last].into());
        let rests: Vec<_> = (0..1_000).filter_map(|_| rest(1)).collect();
        assert_eq!(rests.len(), BODIES_PER_NETWORK_MAX);
        assert!(rest(2).is_some());
    }
}
