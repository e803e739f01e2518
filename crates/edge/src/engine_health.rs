//! The health of the engines (gRPC health checking protocol): which engines get calls, and when the edge is ready.

use std::{
    fmt,
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
use tonic::{Code, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::api_error;
use net::{EngineAddress, EngineChannel, EngineEndpoint, EngineState};

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
    /// The health check failed: no connection, for example.
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

impl EnginesHealth {
    /// The health of the engines at these addresses, which are those of `engines` in the same order, each with a channel for
    /// the checks.
    pub(crate) fn new(addresses: Vec<(EngineAddress, Channel)>, engines: &EngineChannel) -> Self {
        let engines = addresses.into_iter().zip(engines.engines());
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
            Err(status) => Err(NotReady::Unreachable { cause: api_error::cause_of(&status) }),
        }
    }

    /// Checks the engine at a steady interval, without end, and sets which calls it gets.
    async fn watch(self) {
        let mut missed: u32 = 0;
        loop {
            let began = Instant::now();
            let checked = timeout(CHECK_TIME_MAX, self.serves(WHOLE_ENGINE)).await;
            missed = if checked.is_err() { missed.saturating_add(1) } else { 0 };
            let reason = match checked {
                Ok(Ok(true)) => None,
                Ok(Ok(false)) => Some(NotReady::NotServing),
                Ok(Err(reason)) => Some(reason),
                Err(_) => Some(NotReady::Timeout { limit: CHECK_TIME_MAX }),
            };
            self.set(reason, missed);
            sleep_until((began + CHECK_EVERY).into()).await;
        }
    }

    /// Sets the state of the engine by its last check, and logs a change.
    fn set(&self, reason: Option<NotReady>, missed: u32) {
        let state = match &reason {
            None => EngineState::Usable,
            Some(_) if missed < MISSED_MAX => EngineState::LastResort,
            Some(_) => EngineState::Silent,
        };
        let (before, engine) = (self.endpoint.set_state(state), &self.address);
        match reason {
            _ if before == state => {}
            None => tracing::info!(%engine, "an engine is usable again"),
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

    /// The health of engines at ports on which no process listens, and the channel over them.
    fn away<const N: usize>() -> (EnginesHealth, EngineChannel) {
        let addresses = std::array::from_fn::<EngineAddress, N, _>(|engine| {
            format!("http://127.0.0.1:{}", engine + 1).parse().unwrap()
        });
        let channel_to = |address: &EngineAddress| channel(address, None).unwrap();
        let engines = EngineChannel::over(addresses.iter().map(channel_to));
        (EnginesHealth::new(addresses.iter().map(|it| (it.clone(), channel_to(it))).collect(), &engines), engines)
    }

    #[tokio::test]
    async fn an_engine_that_misses_two_checks_is_silent() {
        let (health, _) = away::<1>();
        let engine = &health.0[0];
        let timeout = || Some(NotReady::Timeout { limit: CHECK_TIME_MAX });
        for (reason, missed, state) in [
            (None, 0, EngineState::Usable),
            (Some(NotReady::NotServing), 0, EngineState::LastResort),
            (None, 0, EngineState::Usable),
            (timeout(), 1, EngineState::LastResort),
            (timeout(), 2, EngineState::Silent),
            (timeout(), 3, EngineState::Silent),
            (Some(NotReady::Unreachable { cause: String::new() }), 0, EngineState::LastResort),
        ] {
            engine.set(reason, missed);
            assert_eq!(engine.endpoint.state(), state, "{missed}");
        }
    }

    #[tokio::test]
    async fn the_metric_has_each_engine() {
        let (health, engines) = away::<2>();
        engines.engines()[1].set_state(EngineState::Silent);
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
