//! Pinseal: an issuer-side PIN translation engine.
//!
//! ```text
//! device → back-end → edge (HTTP) → engine (gRPC) → control → hsm → store (record + spend + audit) → reply
//! ```
//! Data flows one way along that path. A clear PIN, block or key exists in the `hsm` crate alone.

#![forbid(unsafe_code)]

#[cfg(feature = "engine")]
pub mod audit;
#[cfg(feature = "simulator")]
pub mod bench;
#[cfg(feature = "engine")]
pub mod boundary;
#[cfg(any(feature = "engine", feature = "edge"))]
pub mod caller;
pub mod card;
#[cfg(feature = "keys")]
pub mod ceremony;
pub mod clock;
#[cfg(any(feature = "engine", feature = "edge"))]
pub mod command;
#[cfg(any(feature = "engine", feature = "edge"))]
pub mod config;
#[cfg(feature = "engine")]
pub mod control;
#[cfg(feature = "engine")]
pub mod cores;
#[cfg(feature = "engine")]
pub mod deadline;
#[cfg(feature = "simulator")]
pub mod demo;
#[cfg(feature = "edge")]
pub mod edge;
#[cfg(feature = "engine")]
pub mod engine;
#[cfg(feature = "keys")]
pub mod hsm_process;
#[cfg(feature = "keys")]
pub mod keyblock;
#[cfg(any(feature = "engine", feature = "edge"))]
pub mod limits;
#[cfg(feature = "engine")]
pub mod metrics;
#[cfg(feature = "operator")]
pub mod operator;
#[cfg(feature = "engine")]
pub mod pin;
pub mod pki;
pub mod proto;
#[cfg(any(feature = "engine", feature = "edge"))]
pub mod reason;
#[cfg(feature = "engine")]
pub mod rotation;
#[cfg(feature = "simulator")]
pub mod simulate;
#[cfg(feature = "engine")]
pub mod store;
pub mod telemetry;
pub mod tls;
#[cfg(feature = "keys")]
pub mod token;
#[cfg(feature = "keys")]
pub mod vault;
