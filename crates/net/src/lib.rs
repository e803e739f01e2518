//! TLS, listeners and connections of both services.

pub mod connect;
mod connection_table;
pub mod cores;
pub mod stop;
pub mod tls;

pub use self::connection_table::{ConnectionLimits, ConnectionPlace, ConnectionTable};
