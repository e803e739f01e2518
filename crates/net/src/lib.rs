//! TLS, listeners and connections of the engine and the edge.
//!
//! This crate moves bytes and identifies peers. It must never depend on a message of the protocol, a key of the boundary or
//! a record.
//!
//! ```
//! let limits = net::ConnectionLimits::new(10_000, 256)?;
//! assert_eq!(limits, net::ConnectionLimits::default());
//! # Ok::<(), config::ConfigError>(())
//! ```

mod call_streams;
pub mod connect;
mod connection_age;
mod connection_table;
pub mod cores;
mod engine_address;
mod engine_channel;
mod engines;
pub mod metrics_server;
mod rate_limit;
mod served_stream;
pub mod serving_threads;
pub mod stop;
pub mod tls;

pub use self::{
    call_streams::{CallExchange, CallStreams},
    connection_age::ConnectionAge,
    connection_table::{ConnectionLimits, ConnectionPlace, ConnectionTable},
    engine_address::{AddressError, EngineAddress},
    engine_channel::EngineChannel,
    engines::{EngineEndpoint, EngineState, Engines, NoEngineAnswers},
    rate_limit::{RateExceeded, RateLimit},
};
