//! The store on a real PostgreSQL that each test starts.

mod conformance;
mod server;
