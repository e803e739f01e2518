//! The health of the engines (gRPC health checking protocol): which engines get calls, and when the edge is ready.

use std::{
    error::Error,
    fmt, io,
    iter::successors,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::FuturesUnordered};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Registry,
};
use thiserror::Error;
use tokio::{
    task::JoinSet,
    time::{sleep_until, timeout},
};
use tonic::{Code, Status, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::api_error;
use net::{EngineAddress, EngineChannel, EngineEndpoint, EngineState, Engines};

/// The interval between the health checks of an engine.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// The longest time for one health check. An engine that misses it gets a call only while no other engine is usable.
const CHECK_TIME_MAX: Duration = Duration::from_secs(2);
/// The number of checks in a row after which an engine is silent. A machine that stalls misses one.
const MISSED_MAX: u32 = 2;
/// The timeout of the health checks of a probe of `/readyz`, below the usual timeout of a probe (1 s).
const READINESS_TIME_MAX: Duration = Duration::from_millis(800);

/// The engine as a whole: NOT_SERVING while its store or key boundary does not serve, and while it stops.
const WHOLE_ENGINE: &str = "";
// The services whose health the edge reads, by their names in `proto/`; the generated clients do not export them.
const CONTROL_SERVICE: &str = "pinseal.v1.ControlService";
const PIN_SERVICE: &str = "pinseal.v1.PinService";

/// Why no control can be opened through an engine.
#[derive(Debug, Error)]
pub(crate) enum NotReady {
    /// The engine did not answer the health check in time.
    #[error("the engine did not answer within {} ms: check that it runs and is reachable", limit.as_millis())]
    Timeout {
        /// The longest time for the check.
        limit: Duration,
    },
    /// No connection to the engine could be opened in time.
    #[error("no connection to the engine could be opened: {cause}")]
    ConnectTimeout {
        /// The status of the call with its sources.
        cause: String,
    },
    /// The health check failed: the engine refused the connection, for example.
    #[error("the engine's health can't be read: {cause}")]
    Unreachable {
        /// The status of the call with its sources.
        cause: String,
    },
    /// The engine allows the certificate of this edge no call.
    #[error("the engine denies this edge: {cause}")]
    Denied {
        /// The text of the engine.
        cause: String,
    },
    /// The store of the engine is below its reserve; controls that are open are finished.
    #[error("the engine's store is low on space, and opens no control: free space on its disk")]
    LowOnSpace,
    /// The store or the key boundary of the engine does not serve, or the engine stops.
    #[error("the engine stops, or its store or key boundary does not serve: see the engine's log")]
    NotServing,
}

/// No control can be opened through any engine: each engine, and its reason.
#[derive(Debug)]
pub(crate) struct NoEngineReady(Vec<(EngineAddress, NotReady)>);

impl fmt::Display for NoEngineReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (engine, reason)) in self.0.iter().enumerate() {
            write!(f, "{}{engine}: {reason}", if number == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// The health of all engines of an edge.
#[derive(Clone)]
pub(crate) struct EnginesHealth(Arc<[EngineHealth]>);

/// The health of one engine, read on a separate connection: the calls cannot delay a check.
#[derive(Clone)]
struct EngineHealth {
    address: EngineAddress,
    endpoint: Arc<EngineEndpoint>,
    client: HealthClient<EngineChannel>,
}

/// The checks of an engine so far.
#[derive(Default)]
struct CheckHistory {
    /// The number of checks that the engine has missed since its last answer.
    missed: u32,
    /// The state after the last check; `None` before the first one.
    state: Option<EngineState>,
}

impl EnginesHealth {
    /// The health of the engines at these addresses, which are those of `engines` in the same order, each with a channel for
    /// the checks.
    pub(crate) fn new(addresses: Vec<(EngineAddress, Channel)>, engines: &Engines) -> Self {
        let engines = addresses.into_iter().zip(engines.endpoints());
        let health = engines.map(|((address, channel), endpoint)| EngineHealth {
            address,
            endpoint: Arc::clone(endpoint),
            client: HealthClient::new(channel.into()),
        });
        Self(health.collect())
    }

    /// Starts the checks of each engine. They end when the set is dropped.
    pub(crate) fn watch(&self) -> JoinSet<()> {
        self.0.iter().cloned().map(EngineHealth::watch).collect()
    }

    /// Registers the gauge `engine_usable`: 1 for an engine that gets its share of the calls, else 0.
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(UsableMetric(self.clone())));
    }

    /// Checks that this edge can open controls through one of the engines.
    ///
    /// # Errors
    /// [`NoEngineReady`]: each engine does not answer, denies this edge, or opens no control.
    pub(crate) async fn check_ready(&self) -> Result<(), NoEngineReady> {
        let check = async |engine: &EngineHealth| {
            let checked = timeout(READINESS_TIME_MAX, engine.check_ready()).await;
            let checked = checked.unwrap_or(Err(NotReady::Timeout { limit: READINESS_TIME_MAX }));
            checked.map_err(|reason| (engine.address.clone(), reason))
        };
        let mut checks: FuturesUnordered<_> = self.0.iter().map(check).collect();
        let mut reasons = Vec::new();
        while let Some(checked) = checks.next().await {
            match checked {
                Ok(()) => return Ok(()),
                Err(reason) => reasons.push(reason),
            }
        }
        Err(NoEngineReady(reasons))
    }
}

impl EngineHealth {
    async fn check_ready(&self) -> Result<(), NotReady> {
        if self.serves(CONTROL_SERVICE).await? {
            return Ok(());
        }
        Err(if self.serves(PIN_SERVICE).await? { NotReady::LowOnSpace } else { NotReady::NotServing })
    }

    async fn serves(&self, service: &str) -> Result<bool, NotReady> {
        match self.client.clone().check(HealthCheckRequest { service: service.to_owned() }).await {
            Ok(reply) => Ok(reply.into_inner().status() == ServingStatus::Serving),
            // An engine that stops removes its services.
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) if status.code() == Code::PermissionDenied => {
                Err(NotReady::Denied { cause: status.message().to_owned() })
            }
            Err(status) if is_timeout(&status) => Err(NotReady::ConnectTimeout { cause: api_error::cause_of(&status) }),
            Err(status) => Err(NotReady::Unreachable { cause: api_error::cause_of(&status) }),
        }
    }

    /// Checks the engine at a steady interval, without end, and sets which calls it gets.
    async fn watch(self) {
        let mut checks = CheckHistory::default();
        loop {
            let began = Instant::now();
            let checked = timeout(CHECK_TIME_MAX, self.serves(WHOLE_ENGINE)).await;
            self.set(checked.unwrap_or(Err(NotReady::Timeout { limit: CHECK_TIME_MAX })), &mut checks);
            sleep_until((began + CHECK_EVERY).into()).await;
        }
    }

    /// Sets the state of the engine by its last check, and logs the first state and each change.
    fn set(&self, checked: Result<bool, NotReady>, checks: &mut CheckHistory) {
        let reason = match checked {
            Ok(true) => None,
            Ok(false) => Some(NotReady::NotServing),
            Err(reason) => Some(reason),
        };
        checks.missed = match &reason {
            Some(NotReady::Timeout { .. } | NotReady::ConnectTimeout { .. }) => checks.missed.saturating_add(1),
            // No answer: a network that reports a lost host at times must not end the silence of its engine.
            Some(NotReady::Unreachable { .. }) => checks.missed,
            None | Some(NotReady::Denied { .. } | NotReady::LowOnSpace | NotReady::NotServing) => 0,
        };
        let state = match &reason {
            None => EngineState::Usable,
            Some(_) if checks.missed < MISSED_MAX => EngineState::LastResort,
            Some(_) => EngineState::Silent,
        };
        self.endpoint.set_state(state);
        let (before, engine) = (checks.state.replace(state), &self.address);
        match reason {
            _ if before == Some(state) => {}
            None => tracing::info!(%engine, "an engine is usable"),
            Some(reason) if state == EngineState::Silent => {
                tracing::warn!(%engine, %reason, "an engine is silent, and gets no call until it answers a health check");
            }
            Some(reason) => {
                tracing::warn!(%engine, %reason, "an engine is not usable, and gets a call only while no other engine is");
            }
        }
    }
}

impl fmt::Debug for EnginesHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|engine| (&engine.address, engine.endpoint.state()))).finish()
    }
}

/// Whether the call failed because a connection timed out.
fn is_timeout(status: &Status) -> bool {
    successors(Some(status as &(dyn Error + 'static)), |&error| error.source())
        .any(|error| error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut))
}

#[derive(Debug)]
struct UsableMetric(EnginesHealth);

impl Collector for UsableMetric {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let help = "Whether an engine gets its share of the calls, by its last health check";
        let mut family = encoder.encode_descriptor("engine_usable", help, None, MetricType::Gauge)?;
        for engine in &*self.0.0 {
            let is_usable = i64::from(engine.endpoint.state() == EngineState::Usable);
            ConstGauge::new(is_usable).encode(family.encode_family(&[("engine", engine.address.to_string())])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use net::{connect::channel, metrics_server::exposition};

    use super::*;

    /// The health of engines at ports on which no process listens, and the engines.
    fn away<const N: usize>() -> (EnginesHealth, Engines) {
        let addresses = std::array::from_fn::<EngineAddress, N, _>(|engine| {
            format!("http://127.0.0.1:{}", engine + 1).parse().unwrap()
        });
        let channel_to = |address: &EngineAddress| channel(address, None).unwrap();
        let engines = Engines::new(N);
        (EnginesHealth::new(addresses.iter().map(|it| (it.clone(), channel_to(it))).collect(), &engines), engines)
    }

    #[tokio::test]
    async fn an_engine_that_misses_two_checks_is_silent() {
        let (health, _) = away::<1>();
        let engine = &health.0[0];
        let timeout = || Err(NotReady::Timeout { limit: CHECK_TIME_MAX });
        let connect_timeout = || Err(NotReady::ConnectTimeout { cause: String::new() });
        let unreachable = || Err(NotReady::Unreachable { cause: String::new() });
        let mut checks = CheckHistory::default();
        for (number, (checked, state)) in [
            (unreachable(), EngineState::LastResort),
            (Ok(true), EngineState::Usable),
            (Ok(false), EngineState::LastResort),
            (Ok(true), EngineState::Usable),
            (timeout(), EngineState::LastResort),
            (unreachable(), EngineState::LastResort),
            (connect_timeout(), EngineState::Silent),
            // Only an answer ends the silence.
            (unreachable(), EngineState::Silent),
            (timeout(), EngineState::Silent),
            (Err(NotReady::Denied { cause: String::new() }), EngineState::LastResort),
            (timeout(), EngineState::LastResort),
            (timeout(), EngineState::Silent),
            (Ok(true), EngineState::Usable),
        ]
        .into_iter()
        .enumerate()
        {
            engine.set(checked, &mut checks);
            assert_eq!(engine.endpoint.state(), state, "check {number}");
        }
    }

    #[tokio::test]
    async fn a_check_of_a_host_that_sends_nothing_is_missed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address: EngineAddress = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let engines = Engines::new(1);
        let health = EnginesHealth::new(vec![(address.clone(), channel(&address, None).unwrap())], &engines);
        let reason = health.0[0].serves(WHOLE_ENGINE).await.unwrap_err();
        assert!(matches!(reason, NotReady::ConnectTimeout { .. }), "{reason}");
    }

    #[tokio::test]
    async fn the_metric_has_each_engine() {
        let (health, engines) = away::<2>();
        engines.endpoints()[0].set_state(EngineState::Usable);
        let mut registry = Registry::with_prefix("pinseal_edge");
        health.register(&mut registry);
        let text = exposition(&registry).unwrap();
        for line in [
            "pinseal_edge_engine_usable{engine=\"http://127.0.0.1:1\"} 1",
            "pinseal_edge_engine_usable{engine=\"http://127.0.0.1:2\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in {text}");
        }
    }

    #[tokio::test]
    async fn an_edge_without_a_ready_engine_names_each_reason() {
        let reasons = away::<2>().0.check_ready().await.unwrap_err().to_string();
        for engine in ["http://127.0.0.1:1: ", "http://127.0.0.1:2: "] {
            assert!(reasons.contains(engine), "{reasons}");
        }
    }
}
