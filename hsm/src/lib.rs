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

#![cfg_attr(not(feature = "keys"), allow(dead_code, reason = "what the keys alone use"))]

// What crosses: built into an engine too that holds no key.
mod account;
mod binding;
mod check_value;
mod device_key;
mod error;
mod form;
pub mod frame;
mod key_id;
mod outcome;
mod sealed;
mod status;

// What holds keys and clear values.
#[cfg(feature = "keys")]
mod block;
#[cfg(feature = "keys")]
mod boundary;
#[cfg(feature = "keys")]
mod clear;
#[cfg(feature = "keys")]
mod component;
#[cfg(feature = "keys")]
mod config;
#[cfg(feature = "keys")]
mod door;
#[cfg(feature = "keys")]
mod harden;
#[cfg(feature = "keys")]
mod key_store;
#[cfg(feature = "keys")]
mod keyblock;
#[cfg(feature = "keys")]
mod keyring;
#[cfg(feature = "keys")]
mod level;
#[cfg(feature = "keys")]
mod open_error;
#[cfg(feature = "keys")]
mod person;
#[cfg(feature = "keys")]
mod policy;
#[cfg(feature = "keys")]
mod selftest;
#[cfg(feature = "keys")]
mod token;
#[cfg(feature = "keys")]
mod vault;
#[cfg(feature = "keys")]
mod versioned;
#[cfg(feature = "keys")]
mod workers;

#[cfg(feature = "keys")]
#[cfg(test)]
mod fresh_token;
#[cfg(feature = "keys")]
#[cfg(test)]
mod vectors;

pub use self::{
    account::{Account, AccountNumber, AccountNumberError},
    binding::{Binding, CardBinding, Isolation, Level, MadeAt, Purpose},
    check_value::CheckValue,
    device_key::{DeviceKey, DeviceKeyError},
    error::{AcceptError, Error, Refusal},
    form::{Form, StoredForm},
    key_id::KeyId,
    outcome::{Accepted, Issued, Revealed},
    sealed::{EncryptedBlock, KeyReference, LayoutError, PinRecord, SealedAccount, SealedKey},
    status::Status,
};
#[cfg(feature = "keys")]
pub use self::{
    component::{COMPONENTS, ComponentError, Components, Desk, MadeComponents, make_components},
    config::{
        AbsentVault, Callers, Config, KeyFileUse, KeyHandling, Keys, LockMemory, PersonToken, Pkcs11, SlotName,
        TokenPlace, Unlock, Vault, Wanted, WantedLevel,
    },
    door::{Hsm, Prepared},
    key_store::{KeyStore, KeyStoreError, KeyUse, RecordsKept},
    keyblock::{
        Field, Header, KeyBlock, KeyBlockError, OptionalBlock, Purpose as KeyBlockPurpose, Version as KeyBlockVersion,
    },
    keyring::{KeyAlgorithm, KeyInfo, KeyMode, KeyName, KeyState, ZoneName},
    open_error::{OpenError, Pkcs11Error},
    person::{PersonError, PersonKey, PersonPublicKey, SIGNATURE_BYTES, Shown},
    policy::{PinPolicy, PolicyError, Weakness},
    token::{Probe, Route, TokenReport},
    vault::VaultError,
};
