//! The end of validity of a service's certificates: in the log, and as a metric.

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelValue, EncodeMetric, LabelValueEncoder},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Registry,
};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

const DAY_SECONDS: i64 = 86_400;
/// A certificate with fewer days left is reported.
const REPORTED_DAYS: i64 = 30;
/// How often the certificates in use are reported.
const REPORT_EVERY: Duration = Duration::from_secs(86_400);
/// The time of a chain that has none that can be read.
const UNKNOWN: i64 = i64::MAX;

/// What a service uses a certificate for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CertificateUse {
    /// The listener of the service.
    Listener,
    /// The client of the engine.
    EngineClient,
}

/// The end of validity of the certificate chain in use. Its clones share the newest one.
#[derive(Clone, Debug)]
pub struct CertificateExpiry(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    usage: CertificateUse,
    file: PathBuf,
    /// Seconds since 1970-01-01T00:00:00Z.
    expires_at: AtomicI64,
}

/// How near the end of validity is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Validity {
    Long,
    /// The whole days that are left, fewer than [`REPORTED_DAYS`].
    Short {
        days: i64,
    },
    Expired,
}

impl Validity {
    fn at(now: i64, expires_at: i64) -> Self {
        match expires_at.saturating_sub(now) {
            ..=0 => Self::Expired,
            left if left < REPORTED_DAYS * DAY_SECONDS => Self::Short { days: left / DAY_SECONDS },
            _ => Self::Long,
        }
    }
}

impl CertificateExpiry {
    pub(super) fn new(usage: CertificateUse, file: PathBuf, expires_at: Option<i64>) -> Self {
        let expiry = Self(Arc::new(Shared { usage, file, expires_at: AtomicI64::new(UNKNOWN) }));
        expiry.set(expires_at);
        expiry
    }

    /// Sets the end of validity of a chain that comes into use, and reports it.
    pub(super) fn set(&self, expires_at: Option<i64>) {
        self.0.expires_at.store(expires_at.unwrap_or(UNKNOWN), Ordering::Relaxed);
        self.report();
    }

    fn expires_at(&self) -> Option<i64> {
        Some(self.0.expires_at.load(Ordering::Relaxed)).filter(|at| *at != UNKNOWN)
    }

    /// Logs a chain that has expired, or has fewer than 30 days left.
    fn report(&self) {
        let Some(at) = self.expires_at() else { return };
        let now = i64::try_from(clock::now().0 / 1_000).unwrap_or(i64::MAX);
        let (file, expires) = (self.0.file.display(), ASN1Time::from_timestamp(at).map(|time| time.to_string()));
        let expires = expires.unwrap_or_default();
        match Validity::at(now, at) {
            Validity::Long => {}
            Validity::Short { days } => tracing::warn!(
                %file,
                expires,
                days,
                "a certificate expires soon: replace the file, which is read again without a restart"
            ),
            Validity::Expired => tracing::error!(
                %file,
                expires,
                "a certificate has expired: replace the file, which is read again without a restart"
            ),
        }
    }
}

/// The first end of validity in a chain, in seconds since 1970-01-01T00:00:00Z; `None` if no certificate can be read.
pub(super) fn first_expiry(chain: &[CertificateDer<'_>]) -> Option<i64> {
    let end = |der: &CertificateDer<'_>| Some(X509Certificate::from_der(der).ok()?.1.validity().not_after.timestamp());
    chain.iter().filter_map(end).min()
}

/// Reports the certificates once a day, without end.
pub async fn report_daily(certificates: Vec<CertificateExpiry>) {
    loop {
        tokio::time::sleep(REPORT_EVERY).await;
        certificates.iter().for_each(CertificateExpiry::report);
    }
}

/// Registers the gauge `certificate_expiry_timestamp_seconds` of these certificates.
pub fn register_expiry(registry: &mut Registry, certificates: Vec<CertificateExpiry>) {
    registry.register_collector(Box::new(ExpiryMetric(certificates)));
}

#[derive(Debug)]
struct ExpiryMetric(Vec<CertificateExpiry>);

impl Collector for ExpiryMetric {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let help = "End of validity of a certificate chain in use, in seconds since 1970";
        let name = "certificate_expiry_timestamp_seconds";
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for certificate in &self.0 {
            if let Some(at) = certificate.expires_at() {
                ConstGauge::new(at).encode(family.encode_family(&[("certificate", certificate.0.usage)])?)?;
            }
        }
        Ok(())
    }
}

impl EncodeLabelValue for CertificateUse {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        let name = match self {
            Self::Listener => "listener",
            Self::EngineClient => "engine_client",
        };
        EncodeLabelValue::encode(&name, encoder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics_server::exposition;

    #[test]
    fn a_certificate_with_fewer_than_30_days_is_reported() {
        let at = |days: i64| Validity::at(1_000, 1_000 + days * DAY_SECONDS);
        assert_eq!(at(31), Validity::Long);
        assert_eq!(at(30), Validity::Long);
        assert_eq!(at(29), Validity::Short { days: 29 });
        assert_eq!(Validity::at(1_000, 1_001), Validity::Short { days: 0 });
        assert_eq!(at(0), Validity::Expired);
        assert_eq!(at(-1), Validity::Expired);
    }

    #[test]
    fn the_metric_has_the_newest_chain_of_each_use() {
        let expiry = |usage| CertificateExpiry::new(usage, "c.pem".into(), Some(4_000_000_000));
        let (listener, client) = (expiry(CertificateUse::Listener), expiry(CertificateUse::EngineClient));
        let mut registry = Registry::with_prefix("pinseal");
        register_expiry(&mut registry, vec![listener, client.clone()]);
        client.set(Some(4_100_000_000));
        let text = exposition(&registry).unwrap();
        for line in [
            "pinseal_certificate_expiry_timestamp_seconds{certificate=\"listener\"} 4000000000",
            "pinseal_certificate_expiry_timestamp_seconds{certificate=\"engine_client\"} 4100000000",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in {text}");
        }
    }
}
