//! The limits on requests in progress and on their rate, so that one client, tenant or network leaves places to the others.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::{
    api_error::ApiError,
    auth::Client,
    metrics::{Limit, RefusedRequests},
};
use domain::{card::Tenant, control::ControlId};
use net::RateLimit;

/// The most rests of bodies that are read after an early answer, and the most bodies of exchanges: of all connections, of one
/// IPv4 address or IPv6 /64, and of one IPv6 /48.
const BODIES_MAX: usize = 1_024;
const BODIES_PER_NETWORK_MAX: usize = 128;
const BODIES_PER_SITE_MAX: usize = 256;
/// The part of a client's share and rate that the exchanges of one of its pages have. Strangers can send exchanges: a quarter
/// leaves the places of the tenant to clients and to cardholders with a session.
const EXCHANGE_PART: u32 = 4;
/// The most requests of one control's page in progress. A page sends one at a time, and again after a lost connection.
const PAGE_REQUESTS_MAX: usize = 4;
/// The most requests of one control's page within a minute. A page needs about ten, and as many again for retries.
const PAGE_REQUESTS_PER_MINUTE_MAX: u32 = 60;
/// The failed exchanges of one IPv6 /48 within a minute are limited to those of this many addresses: a customer of a provider
/// may have all its 65,536 networks of /64.
const ADDRESSES_PER_SITE: u32 = 10;
/// A page has as many failed exchanges within a minute as this many addresses may have, then each network with one of them is
/// refused. A network without one is served.
const ADDRESSES_PER_PAGE: u32 = 50;
/// The most networks whose failed exchanges are counted: about 3 MB.
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
    tenants: Shares<Tenant>,
    /// Of clients, and of pages for the calls with a session.
    calls: Quota<Holder>,
    /// Of pages, for exchanges.
    exchanges: Quota<Holder>,
    controls: Quota<ControlId>,
    rests: BodyPlaces,
    exchange_bodies: BodyPlaces,
    refused: RefusedRequests,
}

/// The place of a request in progress, until dropped.
pub(super) struct RequestPlace<'a> {
    _all: SemaphorePermit<'a>,
    _tenant: Share<'a, Tenant>,
    _holder: Share<'a, Holder>,
    _controls: Vec<Share<'a, ControlId>>,
}

/// The place of a body, until dropped.
pub(super) struct BodyPlace<'a> {
    _all: SemaphorePermit<'a>,
    _network: Share<'a, IpAddr>,
    _site: Option<Share<'a, Ipv6Addr>>,
}

impl RequestAdmission {
    pub(super) fn new(limits: &RequestLimits, refused: RefusedRequests) -> Self {
        let (share, rate) = (limits.per_client_max, limits.per_client_per_second_max);
        Self {
            all: Semaphore::new(limits.requests_max),
            tenants: Shares::new(limits.per_tenant_max),
            calls: Quota::new(share, RateLimit::per_second(rate)),
            exchanges: Quota::new(
                share.div_ceil(EXCHANGE_PART as usize),
                RateLimit::per_second(rate.div_ceil(EXCHANGE_PART)),
            ),
            controls: Quota::new(PAGE_REQUESTS_MAX, RateLimit::per_minute(PAGE_REQUESTS_PER_MINUTE_MAX)),
            rests: BodyPlaces::new(),
            exchange_bodies: BodyPlaces::new(),
            refused,
        }
    }

    /// A place for a request of this client.
    ///
    /// # Errors
    /// CLIENT_RATE, CLIENT_BUSY, TENANT_BUSY or BUSY, by the limit that is reached. The metric of this limit counts the request.
    pub(super) fn admit(&self, client: &Client) -> Result<RequestPlace<'_>, ApiError> {
        self.admit_as(&self.calls, Holder::Client(client.name().into()), client.tenant(), &[])
    }

    /// A place for a call of the page with this key, with sessions of these controls. It takes none of the client's own share
    /// and rate, which cardholders could use up.
    ///
    /// # Errors
    /// As [`admit`](Self::admit); PAGE_SESSION_RATE.
    pub(super) fn admit_page(
        &self,
        key: &str,
        client: &Client,
        controls: &[ControlId],
    ) -> Result<RequestPlace<'_>, ApiError> {
        self.admit_as(&self.calls, Holder::Page(key.into()), client.tenant(), controls)
    }

    /// A place for the exchange of a control by the page with this key. It takes none of the share and the rate of calls with a
    /// session, which strangers could use up.
    ///
    /// # Errors
    /// As [`admit_page`](Self::admit_page).
    pub(super) fn admit_exchange(
        &self,
        key: &str,
        tenant: Tenant,
        control: ControlId,
    ) -> Result<RequestPlace<'_>, ApiError> {
        self.admit_as(&self.exchanges, Holder::Page(key.into()), tenant, &[control])
    }

    fn admit_as<'a>(
        &'a self,
        quota: &'a Quota<Holder>,
        holder: Holder,
        tenant: Tenant,
        controls: &[ControlId],
    ) -> Result<RequestPlace<'a>, ApiError> {
        let refuse = |limit: Limit| {
            self.refused.count(limit);
            limit.error()
        };
        Ok(RequestPlace {
            // First: a session beyond its limit uses none of its page's rate.
            _controls: controls
                .iter()
                .map(|control| self.controls.take(*control, [Limit::PageSession; 2], refuse))
                .collect::<Result<_, _>>()?,
            _holder: quota.take(holder, [Limit::ClientRate, Limit::Client], refuse)?,
            _tenant: self.tenants.take(tenant).ok_or_else(|| refuse(Limit::Tenant))?,
            _all: self.all.try_acquire().map_err(|_| refuse(Limit::All))?,
        })
    }

    /// A place for the rest of a body from this network; `None` if a limit is reached.
    pub(super) fn admit_rest(&self, network: IpAddr) -> Option<BodyPlace<'_>> {
        self.rests.take(network)
    }

    /// A place for the body of an exchange from this network.
    ///
    /// # Errors
    /// BUSY, which the metric counts.
    pub(super) fn admit_exchange_body(&self, network: IpAddr) -> Result<BodyPlace<'_>, ApiError> {
        self.exchange_bodies.take(network).ok_or_else(|| {
            self.refused.count(Limit::All);
            ApiError::BUSY
        })
    }
}

/// Places for bodies that are read before a client is known.
struct BodyPlaces {
    all: Semaphore,
    networks: Shares<IpAddr>,
    sites: Shares<Ipv6Addr>,
}

impl BodyPlaces {
    fn new() -> Self {
        Self {
            all: Semaphore::new(BODIES_MAX),
            networks: Shares::new(BODIES_PER_NETWORK_MAX),
            sites: Shares::new(BODIES_PER_SITE_MAX),
        }
    }

    fn take(&self, network: IpAddr) -> Option<BodyPlace<'_>> {
        Some(BodyPlace {
            _network: self.networks.take(network)?,
            _site: match site_of(network) {
                Some(site) => Some(self.sites.take(site)?),
                None => None,
            },
            _all: self.all.try_acquire().ok()?,
        })
    }
}

/// Limits the failed exchanges of controls within a minute, of one network and of one page, so that a stranger causes few calls
/// and audit entries of the engine. Whole minutes since the edge started are counted.
pub(super) struct ExchangeAdmission {
    /// The most failed exchanges of one IPv4 address or IPv6 /64. Many cardholders may share an address.
    failed_per_address_max: u32,
    minute: Mutex<ExchangeMinute>,
}

#[derive(Default)]
struct ExchangeMinute {
    began: Option<Instant>,
    of_networks: HashMap<Network, Exchanges>,
    /// The failed exchanges, by the key of the page.
    of_pages: HashMap<Box<str>, u32>,
}

/// A network whose exchanges are counted.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Network {
    /// An IPv4 address, or an IPv6 /64.
    Address(IpAddr),
    /// An IPv6 /48.
    Site(Ipv6Addr),
}

/// The exchanges of a network.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Exchanges {
    failed: u32,
    in_progress: u32,
}

/// An exchange of a control in progress, until dropped.
pub(super) struct ExchangePlace<'a> {
    page: Box<str>,
    network: IpAddr,
    is_failed: bool,
    admission: &'a ExchangeAdmission,
}

impl ExchangeAdmission {
    pub(super) fn new(failed_per_address_max: u32) -> Self {
        Self { failed_per_address_max, minute: Mutex::default() }
    }

    /// Counts an exchange of the page with this key from this network: an IPv4 address, or an IPv6 /64.
    ///
    /// # Errors
    /// EXCHANGE_RATE, until the minute ends.
    pub(super) fn begin(&self, page: &str, network: IpAddr) -> Result<ExchangePlace<'_>, ApiError> {
        self.begin_at(Instant::now(), page, network)
    }

    fn begin_at(&self, now: Instant, page: &str, network: IpAddr) -> Result<ExchangePlace<'_>, ApiError> {
        let mut minute = self.lock();
        let age = minute.began.map(|began| now.saturating_duration_since(began)).filter(|age| *age < MINUTE);
        if age.is_none() {
            minute.turn(now);
        }
        let page_max = ADDRESSES_PER_PAGE.saturating_mul(self.failed_per_address_max);
        let is_page_attacked = minute.of_pages.get(page).is_some_and(|failed| *failed >= page_max);
        let is_refused = |network: Network| {
            let Exchanges { failed, in_progress } = minute.of_networks.get(&network).copied().unwrap_or_default();
            failed + in_progress >= network.addresses().saturating_mul(self.failed_per_address_max)
                || (is_page_attacked && failed > 0)
        };
        if Network::all_of(network).any(is_refused) {
            return Err(ApiError::EXCHANGE_RATE.retry_after(MINUTE.saturating_sub(age.unwrap_or_default())));
        }
        Network::all_of(network).for_each(|network| minute.count(network, |exchanges| exchanges.in_progress += 1));
        Ok(ExchangePlace { page: page.into(), network, is_failed: false, admission: self })
    }

    fn lock(&self) -> MutexGuard<'_, ExchangeMinute> {
        self.minute.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ExchangeMinute {
    /// Begins a minute. The exchanges in progress stay counted.
    fn turn(&mut self, now: Instant) {
        self.began = Some(now);
        self.of_pages.clear();
        self.of_networks.retain(|_, exchanges| {
            exchanges.failed = 0;
            exchanges.in_progress > 0
        });
    }

    /// Changes the count of a network. More networks than the map may have are not counted: a limit that many networks share
    /// would refuse cardholders.
    fn count(&mut self, network: Network, change: impl FnOnce(&mut Exchanges)) {
        let mut exchanges = self.of_networks.remove(&network).unwrap_or_default();
        change(&mut exchanges);
        if exchanges != Exchanges::default() && self.of_networks.len() < EXCHANGE_NETWORKS_MAX {
            self.of_networks.insert(network, exchanges);
        }
    }
}

/// The /48 of an IPv6 address.
fn site_of(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(Ipv6Addr::from_bits(address.to_bits() >> 80 << 80)),
    }
}

impl Network {
    fn all_of(address: IpAddr) -> impl Iterator<Item = Self> {
        [Self::Address(address)].into_iter().chain(site_of(address).map(Self::Site))
    }

    /// The number of addresses whose failed exchanges the network may have.
    fn addresses(self) -> u32 {
        match self {
            Self::Address(_) => 1,
            Self::Site(_) => ADDRESSES_PER_SITE,
        }
    }
}

impl ExchangePlace<'_> {
    /// Ends the exchange and counts it as failed: its control was not usable by the page.
    pub(super) fn fail(mut self) {
        self.is_failed = true;
    }
}

impl Drop for ExchangePlace<'_> {
    fn drop(&mut self) {
        let (mut minute, failed) = (self.admission.lock(), u32::from(self.is_failed));
        for network in Network::all_of(self.network) {
            minute.count(network, |exchanges| {
                // The exchange may have begun while the map was full.
                exchanges.in_progress = exchanges.in_progress.saturating_sub(1);
                exchanges.failed += failed;
            });
        }
        if failed > 0 {
            *minute.of_pages.entry(std::mem::take(&mut self.page)).or_default() += 1;
        }
    }
}

/// The requests of each key in progress, and the rate of each key.
struct Quota<K: Hash + Eq + Clone> {
    shares: Shares<K>,
    rates: RateLimit<K>,
}

impl<K: Hash + Eq + Clone> Quota<K> {
    fn new(max: usize, rates: RateLimit<K>) -> Self {
        Self { shares: Shares::new(max), rates }
    }

    /// A share for a request of this key.
    ///
    /// # Errors
    /// `refuse` makes the error of the limit that is reached: that of the rate, or that of the requests in progress.
    fn take(
        &self,
        key: K,
        [rate, share]: [Limit; 2],
        refuse: impl Fn(Limit) -> ApiError,
    ) -> Result<Share<'_, K>, ApiError> {
        self.rates.admit(&key).map_err(|exceeded| refuse(rate).retry_after(exceeded.retry_after))?;
        self.shares.take(key).ok_or_else(|| refuse(share))
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
    use std::net::Ipv4Addr;

    use super::*;
    use crate::Credential;

    const LIMITS: RequestLimits =
        RequestLimits { requests_max: 5, per_client_max: 2, per_tenant_max: 3, per_client_per_second_max: 1_000_000 };

    fn client(name: &str, tenant: &str) -> Client {
        Client::new(name, Tenant::parse(tenant).unwrap(), Credential::bearer(name))
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn admission(limits: &RequestLimits) -> RequestAdmission {
        RequestAdmission::new(limits, RefusedRequests::default())
    }

    #[test]
    fn a_page_uses_none_of_its_clients_share_and_rate() {
        let admission = admission(&RequestLimits { per_client_per_second_max: 2, ..LIMITS });
        let wallet = client("wallet", "bank");
        let held: Vec<_> = (0..2).map(|_| admission.admit_page("wallet", &wallet, &[]).unwrap()).collect();
        assert_eq!(admission.admit_page("wallet", &wallet, &[]).err().map(ApiError::code), Some("CLIENT_RATE"));
        assert!(admission.admit(&wallet).is_ok());
        drop(held);
        let rests: Vec<_> =
            (0..BODIES_PER_NETWORK_MAX).map(|_| admission.admit_rest(IpAddr::from([192, 0, 2, 1]))).collect();
        assert!(rests.iter().all(Option::is_some) && admission.admit_rest(IpAddr::from([192, 0, 2, 1])).is_none());
        assert!(admission.admit_exchange_body(IpAddr::from([192, 0, 2, 1])).is_ok());
    }

    #[test]
    fn exchanges_of_a_page_leave_its_sessions_their_share_and_rate() {
        let wide = RequestLimits { requests_max: 100, per_client_max: 40, per_tenant_max: 60, ..LIMITS };
        let (of_shares, wallet) = (admission(&wide), client("wallet", "bank"));
        let exchange = |admission: &'_ RequestAdmission| {
            admission.admit_exchange("wallet", wallet.tenant(), ControlId::random()).map(drop).err().map(ApiError::code)
        };
        let guesses: Vec<_> = (0..60)
            .map_while(|_| of_shares.admit_exchange("wallet", wallet.tenant(), ControlId::random()).ok())
            .collect();
        assert_eq!((guesses.len(), exchange(&of_shares)), (10, Some("CLIENT_BUSY")));
        let sessions: Vec<_> =
            (0..60).map_while(|_| of_shares.admit_page("wallet", &wallet, &[ControlId::random()]).ok()).collect();
        assert_eq!(sessions.len(), 40);

        let of_rates = admission(&RequestLimits { per_client_per_second_max: 4, ..wide });
        assert_eq!((exchange(&of_rates), exchange(&of_rates)), (None, Some("CLIENT_RATE")));
        assert!((0..4).all(|_| of_rates.admit_page("wallet", &wallet, &[ControlId::random()]).is_ok()));
    }

    #[test]
    fn a_session_uses_up_no_share_and_rate_of_its_page() {
        let admission =
            admission(&RequestLimits { requests_max: 100, per_client_max: 40, per_tenant_max: 60, ..LIMITS });
        let (wallet, [busy, fast, other]) = (client("wallet", "bank"), [(); 3].map(|()| ControlId::random()));
        let call = |control: ControlId| admission.admit_page("wallet", &wallet, &[control]);
        let held: Vec<_> = (0..PAGE_REQUESTS_MAX).map(|_| call(busy).unwrap()).collect();
        assert_eq!(call(busy).err().map(ApiError::code), Some("PAGE_SESSION_RATE"));
        assert!(admission.admit_page("wallet", &wallet, &[other, busy]).is_err(), "each session of a request counts");
        assert!(
            admission.admit_exchange("wallet", wallet.tenant(), busy).is_err(),
            "an exchange of the control counts"
        );
        drop(held);
        assert!(call(busy).is_ok());
        // The quota is renewed by one request a second while this test runs.
        let admitted = (0..10_000).take_while(|_| call(fast).is_ok()).count();
        assert!((60..10_000).contains(&admitted), "{admitted}");
        assert!(call(other).is_ok());
    }

    #[test]
    fn client_tenant_and_edge_have_bounds_on_requests_in_progress() {
        let admission = admission(&LIMITS);
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
        assert!(admission.calls.shares.lock().is_empty() && admission.tenants.lock().is_empty());
        assert!(admission.admit(&client("d", "third")).is_ok());
    }

    #[test]
    fn a_client_beyond_its_rate_waits_and_another_does_not() {
        let admission = admission(&RequestLimits { per_client_per_second_max: 1, ..LIMITS });
        let (fast, slow) = (client("a", "bank"), client("b", "bank"));
        // The quota is renewed while this test runs.
        let refused = (0..10_000).find_map(|_| admission.admit(&fast).err());
        assert_eq!(refused.map(ApiError::code), Some("CLIENT_RATE"));
        assert!(admission.admit(&slow).is_ok());
    }

    fn code<T>(begun: Result<T, ApiError>) -> Option<&'static str> {
        begun.err().map(ApiError::code)
    }

    #[test]
    fn a_network_has_a_bound_on_failed_exchanges_and_none_on_others() {
        let (exchanges, now) = (ExchangeAdmission::new(60), Instant::now());
        let begin = |at: Instant, last: u8| exchanges.begin_at(at, "bank", IpAddr::from([192, 0, 2, last]));
        (0..1_000).for_each(|_| drop(begin(now, 1).unwrap()));
        assert!(exchanges.lock().of_networks.is_empty());
        let failed = (0..1_000).filter(|_| begin(now, 1).map(ExchangePlace::fail).is_ok()).count();
        assert_eq!((failed, code(begin(now, 1))), (60, Some("EXCHANGE_RATE")));
        let held: Vec<_> = (0..1_000).map_while(|_| begin(now, 2).ok()).collect();
        assert_eq!(held.len(), 60, "an exchange in progress counts");
        drop(held);
        assert!(begin(now, 2).is_ok() && begin(now + 59 * SECOND, 1).is_err() && begin(now + 60 * SECOND, 1).is_ok());
    }

    #[test]
    fn an_exchange_in_progress_counts_in_the_next_minute() {
        let (exchanges, now) = (ExchangeAdmission::new(60), Instant::now());
        let begin = |at: Instant| exchanges.begin_at(at, "bank", IpAddr::from([192, 0, 2, 1]));
        let old: Vec<_> = (0..1_000).map_while(|_| begin(now).ok()).collect();
        assert_eq!((old.len(), code(begin(now + 60 * SECOND))), (60, Some("EXCHANGE_RATE")));
        drop(old);
        let new: Vec<_> = (0..1_000).map_while(|_| begin(now + 61 * SECOND).ok()).collect();
        assert_eq!((new.len(), code(begin(now + 62 * SECOND))), (60, Some("EXCHANGE_RATE")));
        assert!(begin(now + 122 * SECOND).is_err());
    }

    #[test]
    fn an_ipv6_site_has_a_bound_on_failed_exchanges() {
        let (exchanges, now) = (ExchangeAdmission::new(60), Instant::now());
        let begin = |site: u16, network: u16| {
            let address = Ipv6Addr::new(0x2001, 0xdb8, site, network, 0, 0, 0, 0);
            exchanges.begin_at(now, "bank", address.into()).map(ExchangePlace::fail)
        };
        assert_eq!((0..1_000).filter(|_| begin(1, 0).is_ok()).count(), 60);
        assert_eq!((1..1_000).filter(|network| begin(1, *network).is_ok()).count(), 540);
        assert_eq!((code(begin(1, 2_000)), code(begin(2, 0))), (Some("EXCHANGE_RATE"), None));
    }

    #[test]
    fn the_limits_of_sites_and_pages_follow_that_of_an_address() {
        let (exchanges, now) = (ExchangeAdmission::new(2), Instant::now());
        let begin = |page: &str, site: u16, network: u16| {
            let address = Ipv6Addr::new(0x2001, 0xdb8, site, network, 0, 0, 0, 0);
            exchanges.begin_at(now, page, address.into()).map(ExchangePlace::fail)
        };
        assert_eq!((0..10).filter(|_| begin("bank", 1, 0).is_ok()).count(), 2);
        assert_eq!((1..100).filter(|network| begin("bank", 1, *network).is_ok()).count(), 18);
        assert!((2..82).all(|site| begin("bank", site, 0).is_ok()));
        assert_eq!((code(begin("bank", 81, 0)), code(begin("other", 81, 0))), (Some("EXCHANGE_RATE"), None));
    }

    #[test]
    fn an_attacked_page_serves_networks_without_a_failed_exchange() {
        let (exchanges, now) = (ExchangeAdmission::new(60), Instant::now());
        let begin = |page: &str, network: u32| exchanges.begin_at(now, page, Ipv4Addr::from_bits(network).into());
        let fail = |network: u32| begin("bank", network).map(ExchangePlace::fail);
        assert!((1..=3_000).all(|network| fail(network).is_ok()));
        assert_eq!(code(begin("bank", 1)), Some("EXCHANGE_RATE"));
        assert_eq!(code(begin("other", 1)), None);
        let first = begin("bank", 3_001).unwrap();
        assert_eq!(code(begin("bank", 3_001)), None, "cardholders may share an address");
        first.fail();
        assert_eq!(code(begin("bank", 3_001)), Some("EXCHANGE_RATE"));
    }

    #[test]
    fn a_network_has_a_bound_on_rests_of_bodies() {
        let admission = admission(&LIMITS);
        let rest = |last: u8| admission.admit_rest([192, 0, 2, last].into());
        let rests: Vec<_> = (0..1_000).filter_map(|_| rest(1)).collect();
        assert_eq!(rests.len(), BODIES_PER_NETWORK_MAX);
        assert!(rest(2).is_some());
    }

    #[test]
    fn an_ipv6_site_leaves_bodies_of_exchanges_to_others() {
        let refused = RefusedRequests::default();
        let admission = RequestAdmission::new(&LIMITS, refused.clone());
        let body = |site: u16, network: u16| {
            admission.admit_exchange_body(Ipv6Addr::new(0x2001, 0xdb8, site, network, 0, 0, 0, 0).into())
        };
        let held: Vec<_> = (0..1_000).map_while(|network| body(1, network).ok()).collect();
        assert_eq!((held.len(), code(body(1, 2_000))), (256, Some("BUSY")));
        assert!(body(2, 0).is_ok() && admission.admit_exchange_body([192, 0, 2, 1].into()).is_ok());
        let text = net::metrics_server::exposition(&refused.registry()).unwrap();
        assert!(text.contains("pinseal_edge_requests_refused_total{reason=\"BUSY\"} 2"), "{text}");
        drop(held);
        assert!(body(1, 2_000).is_ok());
    }
}
