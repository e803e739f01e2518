//! A simulator of the cardholder's device, and of the back-end that calls the Card PIN API.
//!
//! The device's part is the Rust client that integrators copy, `clients/rust/card_pin.rs`. The clear PIN there belongs to the
//! device, which is outside the key boundary. The engine and the edge services do not link this crate.

#![forbid(unsafe_code)]

pub mod client;

pub use card_pin::{Device, DeviceError, Fill, KeyBits, Pin, PinError, Tzpk};
