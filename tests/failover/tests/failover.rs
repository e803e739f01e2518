//! The failover harness with three faults, and a database that is away for seconds. `pinseal-failover` runs them whole.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test that meets a surprise must fail")]

use std::time::Duration;

use failover::{
    cluster::Patroni,
    fault::THREE,
    outage::{self, Away},
    run::Harness,
};

#[test]
fn three_faults_lose_no_acknowledged_pin() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let harness = Harness::start(Patroni::Pinned);
    let report = harness.run(0, THREE, file.path());
    println!("{report}");
    assert!(report.is_right(), "see the report above; {}", harness.deployment.logs());
}

#[test]
fn an_absent_database_is_reported_as_unavailable() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let outage = outage::run(Away::Stopped, Duration::from_secs(6), file.path());
    println!("{outage}");
    assert!(outage.is_right(), "see the report above");
}
