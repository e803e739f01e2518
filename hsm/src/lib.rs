//! The key boundary: the only place where a clear PIN, a clear PIN block or a clear key exists.
//!
//! What crosses its door is ciphertext, sealed blobs, key references, check values and outcomes. Types that hold
//! anything clear live in `clear`, are private, wiped on drop, and have no `Debug`, `Display`, `Clone`, `Eq` or serde.
//!
//! ```text
//! door ──▶ policy, block (pure, on clear values) ──▶ token (keys and ciphers) ──▶ sealed (byte layouts)
//! ```

mod block;
mod check_value;
mod clear;
mod config;
mod device_key;
mod door;
mod error;
mod harden;
mod policy;
mod sealed;
mod selftest;
mod token;
mod vault;

#[cfg(test)]
mod vectors;

pub use self::{
    check_value::CheckValue,
    config::{Config, Form, LockMemory, StoredForm, Unlock, Vault},
    device_key::{DeviceKey, DeviceKeyError},
    door::{
        Accepted, Account, AccountNumber, AccountNumberError, Binding, CardBinding, Hsm, Issued, Purpose, Revealed,
    },
    door::{Level, Status},
    error::{AcceptError, Error, OpenError, Refusal},
    policy::{PinPolicy, PolicyError, Weakness},
    sealed::{EncryptedBlock, KeyReference, LayoutError, PinRecord, SealedAccount, SealedKey},
    vault::VaultError,
};
