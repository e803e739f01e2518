//! The rules of cards and controls: pure, no I/O, no clock, no cipher.
//!
//! What must never enter: a clear PIN, block or key, an account number that is not sealed.

pub mod caller;
pub mod card;
pub mod control;
pub mod limits;
pub mod rules;
pub mod storage_key;
pub mod time;
