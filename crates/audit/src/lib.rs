//! The audit chain: what an entry says, how entries are chained, how a chain is checked. Pure: no I/O, no clock.
//!
//! What must never enter: a PIN block, even encrypted, a hash of one, a full account number.

pub mod chain;
pub mod entry;
