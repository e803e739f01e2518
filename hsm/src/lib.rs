//! The key boundary: the only place where a clear PIN, a clear PIN block or a clear key exists.
//!
//! What crosses its door is ciphertext, sealed blobs, key references, check values and outcomes. Types that hold
//! anything clear live in `clear`, are private, wiped on drop, and have no `Debug`, `Display`, `Clone`, `Eq` or serde.
//!
//! ```text
//! door ──▶ policy, block (pure, on clear values) ──▶ token (keys and ciphers) ──▶ sealed (byte layouts)
//! ```
//!
//! # What cannot be written
//!
//! A clear PIN has no name outside:
//! ```compile_fail
//! fn keep(_: hsm::clear::Pin) {}
//! ```
//! nor has a clear block, a clear key or the token that holds them:
//! ```compile_fail
//! use hsm::{clear::Clear, token::Software};
//! ```
//! An encrypted block is not printed:
//! ```compile_fail
//! # fn f(block: hsm::EncryptedBlock) -> String {
//! format!("{block:?}")
//! # }
//! ```
//! nor an account number, but for its mask:
//! ```compile_fail
//! # fn f(number: hsm::AccountNumber) -> String {
//! format!("{number:?}")
//! # }
//! ```
//! ```
//! assert_eq!(hsm::AccountNumber::parse("5413330089020011").unwrap().masked(), "541333******0011");
//! ```
//! A sealed key is not copied, and a device key encrypts nothing for its holder:
//! ```compile_fail
//! # fn f(key: &hsm::SealedKey) -> hsm::SealedKey {
//! key.clone()
//! # }
//! ```
//! ```compile_fail
//! # fn f(key: &hsm::DeviceKey) {
//! key.wrap(&[0; 16]);
//! # }
//! ```
//! A refusal cannot say what was wrong with a block:
//! ```compile_fail
//! let _ = hsm::Refusal::WrongControlNibble;
//! ```

mod account;
mod binding;
mod block;
mod boundary;
mod check_value;
mod clear;
mod config;
mod device_key;
mod door;
mod error;
mod harden;
mod level;
mod outcome;
mod policy;
mod sealed;
mod selftest;
mod status;
mod token;
mod vault;
mod workers;

#[cfg(test)]
mod vectors;

pub use self::{
    account::{Account, AccountNumber, AccountNumberError},
    binding::{Binding, CardBinding, Level, Purpose},
    check_value::CheckValue,
    config::{
        Callers, Config, Form, KeyHandling, Keys, LockMemory, Pkcs11, SlotName, StoredForm, Unlock, Vault, Wanted,
        WantedLevel,
    },
    device_key::{DeviceKey, DeviceKeyError},
    door::Hsm,
    error::{AcceptError, Error, OpenError, Pkcs11Error, Refusal},
    outcome::{Accepted, Issued, Revealed},
    policy::{PinPolicy, PolicyError, Weakness},
    sealed::{EncryptedBlock, KeyReference, LayoutError, PinRecord, SealedAccount, SealedKey},
    status::Status,
    token::{Probe, Route, TokenReport},
    vault::VaultError,
};
