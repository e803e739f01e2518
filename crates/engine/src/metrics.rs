//! Metrics for Prometheus: the state of the store and its free space, the state of the boundary, the time of the newest
//! checkpoint, the expiry of the certificate, the progress of the rotation, the number of storage keys in use, the release; and
//! [`RefusedCalls`]. They are collected at each request, and disabled unless configured.
//!
//! A label must have an enum as its type, of this file or of the messages. No metric may contain data of a card, a record or a key.

use std::{fmt, net::SocketAddr, sync::Arc};

use hsm_protocol::{KeyUsage, UnavailableReason};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelValue, EncodeMetric, LabelValueEncoder},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        gauge::ConstGauge,
        info::Info,
    },
    registry::Registry,
};
use tokio::sync::watch;

use crate::refused_calls::RefusedCalls;
use crate::rotation::{Progress, RotationState};
use domain::time::UnixMillis;
use net::metrics_server::{MetricsError, MetricsServer};
use net::tls::{self, CertificateExpiry};
use store::{Store, StoreState};

/// What the metrics are read from.
pub(super) struct Sources {
    pub(super) boundary: watch::Receiver<Arc<hsm_protocol::Status>>,
    /// Why the boundary is lost; `None` while it serves.
    pub(super) boundary_loss: watch::Receiver<Option<UnavailableReason>>,
    pub(super) rotation: watch::Receiver<Progress>,
    pub(super) store: Arc<dyn Store>,
    /// When the newest checkpoint was last found to cover the newest audit entry.
    pub(super) checkpoint: watch::Receiver<Option<UnixMillis>>,
    pub(super) certificates: Vec<CertificateExpiry>,
    pub(super) refused: RefusedCalls,
    pub(super) mgf1_sha1: Counter,
}

/// Starts to serve the metrics, on the current Tokio runtime.
///
/// # Errors
/// The address cannot be bound.
pub(super) async fn serve(listen: SocketAddr, sources: Sources) -> Result<MetricsServer, MetricsError> {
    MetricsServer::start(listen, registry(sources)).await
}

fn registry(sources: Sources) -> Registry {
    let Sources { boundary, boundary_loss, rotation, store, checkpoint, certificates, refused, mgf1_sha1 } = sources;
    let mut registry = Registry::with_prefix("pinseal");
    registry.register("build", "This build of the engine", Info::new([("version", Version::This)]));
    let help = "Tzpks encrypted for devices by RSA-OAEP with MGF1-SHA-1 since the start";
    registry.register("oaep_mgf1_sha1", help, mgf1_sha1);
    let help = "Calls refused with RESOURCE_EXHAUSTED, by the reason of the ErrorInfo";
    registry.register("calls_refused", help, refused.family());
    tls::register_expiry(&mut registry, certificates);
    let storage_keys = move || StorageKey::ALL.map(|key| (key, key.versions_in_use(&boundary.borrow())));
    registry.register_collector(Box::new(EngineCollector {
        storage_keys: Box::new(storage_keys),
        boundary_loss,
        rotation,
        store: store.state(),
        free_bytes: Box::new(move || store.free_bytes()),
        checkpoint,
    }));
    registry
}

/// Collects the values of a request.
struct EngineCollector {
    storage_keys: Box<dyn Fn() -> StorageKeys + Send + Sync>,
    boundary_loss: watch::Receiver<Option<UnavailableReason>>,
    rotation: watch::Receiver<Progress>,
    store: watch::Receiver<StoreState>,
    free_bytes: Box<dyn Fn() -> Option<u64> + Send + Sync>,
    checkpoint: watch::Receiver<Option<UnixMillis>>,
}

type StorageKeys = [(StorageKey, u64); StorageKey::ALL.len()];

impl fmt::Debug for EngineCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineCollector").field("rotation", &self.rotation).finish_non_exhaustive()
    }
}

impl Collector for EngineCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let progress = *self.rotation.borrow();
        let help = "Versions of a storage key in use: the newest encrypts, older ones only decrypt";
        let mut family = encoder.encode_descriptor("storage_key_versions", help, None, MetricType::Gauge)?;
        for (key, versions) in (self.storage_keys)() {
            ConstGauge::new(versions).encode(family.encode_family(&[("key", key)])?)?;
        }
        let help = "State of the store: 1 for the present state, 0 for the others";
        let mut family = encoder.encode_descriptor("store_state", help, None, MetricType::Gauge)?;
        let present = StoreLabel::of(&self.store.borrow());
        for state in StoreLabel::ALL {
            ConstGauge::new(u64::from(state == present)).encode(family.encode_family(&[("state", state)])?)?;
        }
        if let Some(free) = (self.free_bytes)() {
            let help = "Free space on the disk of the store, in bytes; 0 where it can't be read";
            let gauge = encoder.encode_descriptor("store_free_bytes", help, None, MetricType::Gauge)?;
            ConstGauge::new(free).encode(gauge)?;
        }
        let help = "State of the key boundary: 1 for the present state, 0 for the other";
        let mut family = encoder.encode_descriptor("boundary_state", help, None, MetricType::Gauge)?;
        let is_lost = self.boundary_loss.borrow().is_some();
        for (state, is_present) in [(BoundaryLabel::Serving, !is_lost), (BoundaryLabel::Lost, is_lost)] {
            ConstGauge::new(u64::from(is_present)).encode(family.encode_family(&[("state", state)])?)?;
        }
        if let Some(UnixMillis(milliseconds)) = *self.checkpoint.borrow() {
            let help = "When the newest checkpoint was last found to cover every audit entry, in seconds since 1970";
            let name = "audit_checkpoint_timestamp_seconds";
            let gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(milliseconds / 1_000).encode(gauge)?;
        }
        let help = "State of the rotation of the storage key: 1 for the present state, 0 for the others";
        let mut family = encoder.encode_descriptor("rotation_state", help, None, MetricType::Gauge)?;
        for state in RotationState::ALL {
            let is_current = u64::from(state == progress.state);
            ConstGauge::new(is_current).encode(family.encode_family(&[("state", state)])?)?;
        }
        let help = "PIN records re-encrypted under the newest storage key, in the latest rotation";
        let reencrypted = encoder.encode_descriptor("rotation_records_reencrypted", help, None, MetricType::Counter)?;
        ConstCounter::new(progress.reencrypted).encode(reencrypted)?;
        let gauges = [
            ("rotation_pass", "The number of the running pass over all records", u64::from(progress.pass)),
            ("rotation_records", "PIN records to check in the pass", progress.total),
            ("rotation_records_checked", "PIN records checked in the pass", progress.checked),
            ("rotation_records_failed", "PIN records that did not decrypt in the pass", progress.failed),
            (
                "rotation_records_a_second_max",
                "The configured limit of PIN records re-encrypted a second",
                u64::from(progress.records_a_second_max),
            ),
        ];
        for (name, help, value) in gauges {
            let gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(gauge)?;
        }
        Ok(())
    }
}

/// The release of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Version {
    This,
}

impl EncodeLabelValue for Version {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        let Self::This = self;
        EncodeLabelValue::encode(&env!("CARGO_PKG_VERSION"), encoder)
    }
}

/// The usages of storage keys: three of level `host`, three of level `token`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StorageKey {
    Aes,
    Tdes,
    Wrapped,
    Iso3,
    Iso4,
    OneWay,
}

impl StorageKey {
    const ALL: [Self; 6] = [Self::Aes, Self::Tdes, Self::Wrapped, Self::Iso3, Self::Iso4, Self::OneWay];

    fn usage(self) -> KeyUsage {
        match self {
            Self::Aes => KeyUsage::Storage,
            Self::Tdes => KeyUsage::StorageTdes,
            Self::Wrapped => KeyUsage::StorageWrapped,
            Self::Iso3 => KeyUsage::StorageIso3,
            Self::Iso4 => KeyUsage::StorageIso4,
            Self::OneWay => KeyUsage::StorageOneWay,
        }
    }

    fn versions_in_use(self, boundary: &hsm_protocol::Status) -> u64 {
        boundary.keys().iter().filter(|key| key.usage == self.usage()).map(|_| 1).sum()
    }
}

impl EncodeLabelValue for StorageKey {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        EncodeLabelValue::encode(&self.usage().to_string(), encoder)
    }
}

/// A [`StoreState`] without its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StoreLabel {
    Open,
    LowOnSpace,
    Unreachable,
    Closing,
    Failed,
}

impl StoreLabel {
    const ALL: [Self; 5] = [Self::Open, Self::LowOnSpace, Self::Unreachable, Self::Closing, Self::Failed];

    fn of(state: &StoreState) -> Self {
        match state {
            StoreState::Open => Self::Open,
            StoreState::LowOnSpace => Self::LowOnSpace,
            StoreState::Unreachable => Self::Unreachable,
            StoreState::Closing => Self::Closing,
            StoreState::Failed(_) => Self::Failed,
        }
    }
}

impl EncodeLabelValue for StoreLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        let name = match self {
            Self::Open => "open",
            Self::LowOnSpace => "low_on_space",
            Self::Unreachable => "unreachable",
            Self::Closing => "closing",
            Self::Failed => "failed",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

/// Whether the boundary answered the last check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BoundaryLabel {
    Serving,
    Lost,
}

impl EncodeLabelValue for BoundaryLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        let name = match self {
            Self::Serving => "serving",
            Self::Lost => "lost",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

impl EncodeLabelValue for RotationState {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        let name = match self {
            Self::Idle => "idle",
            Self::Running => "running",
            Self::Done => "done",
            Self::DoneWithFailures => "done_with_failures",
            Self::Stopped => "stopped",
            Self::Waiting => "waiting",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

#[cfg(test)]
mod tests {
    use net::metrics_server::exposition;

    use super::*;

    #[test]
    fn a_request_returns_the_present_values_and_one_state() {
        let (rotation, watched) = watch::channel(Progress::running(2_000));
        let mut registry = Registry::with_prefix("pinseal");
        let storage_keys = || StorageKey::ALL.map(|key| (key, if key == StorageKey::Aes { 2 } else { 1 }));
        let (_space, store) = watch::channel(StoreState::LowOnSpace);
        let (_lost, boundary_loss) = watch::channel(Some(UnavailableReason::ProcessEnded));
        let (_signed, checkpoint) = watch::channel(Some(UnixMillis(1_700_000_000_999)));
        let collector = EngineCollector {
            storage_keys: Box::new(storage_keys),
            boundary_loss,
            rotation: watched,
            store,
            free_bytes: Box::new(|| Some(4_096)),
            checkpoint,
        };
        registry.register_collector(Box::new(collector));
        rotation.send_modify(|progress| (progress.total, progress.reencrypted, progress.failed) = (9, 7, 1));
        let text = exposition(&registry).unwrap();
        for line in [
            "pinseal_storage_key_versions{key=\"storage\"} 2",
            "pinseal_storage_key_versions{key=\"storage-3des\"} 1",
            "pinseal_store_state{state=\"low_on_space\"} 1",
            "pinseal_store_state{state=\"open\"} 0",
            "pinseal_store_free_bytes 4096",
            "pinseal_boundary_state{state=\"serving\"} 0",
            "pinseal_boundary_state{state=\"lost\"} 1",
            "pinseal_audit_checkpoint_timestamp_seconds 1700000000",
            "pinseal_rotation_state{state=\"running\"} 1",
            "pinseal_rotation_state{state=\"done\"} 0",
            "pinseal_rotation_records 9",
            "pinseal_rotation_records_failed 1",
            "pinseal_rotation_records_reencrypted_total 7",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in {text}");
        }
        rotation.send_modify(|progress| progress.state = RotationState::Done);
        let text = exposition(&registry).unwrap();
        let current: Vec<_> =
            text.lines().filter(|line| line.starts_with("pinseal_rotation_state{") && line.ends_with(" 1")).collect();
        assert_eq!(current, ["pinseal_rotation_state{state=\"done\"} 1"]);
    }

    #[test]
    fn the_release_is_reported() {
        let mut registry = Registry::with_prefix("pinseal");
        registry.register("build", "This build of the engine", Info::new([("version", Version::This)]));
        let line = concat!("pinseal_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1");
        assert!(exposition(&registry).unwrap().contains(line));
    }
}
