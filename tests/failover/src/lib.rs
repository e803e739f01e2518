//! Two engines on one replicated PostgreSQL, two edges, one SoftHSM token, 68 clients and faults. Every call is recorded, and the
//! history checker judges every answer.
//!
//! What must never enter: a PIN that is no test PIN.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "a test that meets a surprise must fail"
)]

pub mod caller;
pub mod chain_events;
pub mod cluster;
pub mod deployment;
pub mod fault;
pub mod guard;
pub mod outage;
pub mod program;
pub mod run;
pub mod run_report;
pub mod single_server;
pub mod times;
pub mod traffic;
