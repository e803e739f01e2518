//! The key boundary: the only place where a clear PIN, a clear PIN block or a clear key exists.
//!
//! Requests and replies hold ciphertext, sealed blobs, key ids and KCVs. Types with clear values are private, in `clear`. They
//! are wiped on drop, and have no `Debug`, `Display`, `Clone`, `Eq` or serde.
//!
//! Opens a software vault in memory and seals an account number:
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use hsm::{AccountNumber, CardBinding, Config, Hsm, Reply, Request};
//!
//! let hsm = Hsm::open(Config::default())?;
//! let number = AccountNumber::parse("5413330089020011")?;
//! let request = Request::SealPan { number, card: CardBinding::new("bank", "1000200030")? };
//! let reply = futures_executor::block_on(hsm.execute(request))?;
//! assert!(matches!(reply, Reply::SealedPan(_)));
//! # Ok(())
//! # }
//! ```
//!
//! ```text
//! api ──▶ policy, block (pure, on clear values) ──▶ token (keys and ciphers) ──▶ sealed (byte layouts)
//! ```
//!
//! # Code that does not compile
//!
//! No other crate can name a clear PIN:
//! ```compile_fail
//! fn keep(_: hsm::clear::Pin) {}
//! ```
//! or a clear block, a clear key or the token that holds them:
//! ```compile_fail
//! use hsm::{clear::Clear, token::Software};
//! ```
//! An encrypted block cannot be printed:
//! ```compile_fail
//! # fn f(block: hsm::EncryptedBlock) -> String {
//! format!("{block:?}")
//! # }
//! ```
//! An account number can be printed only in its masked form:
//! ```compile_fail
//! # fn f(number: hsm::AccountNumber) -> String {
//! format!("{number:?}")
//! # }
//! ```
//! ```
//! assert_eq!(hsm::AccountNumber::parse("5413330089020011").unwrap().masked(), "541333******0011");
//! ```
//! A device key offers no encryption:
//! ```compile_fail
//! # fn f(key: &hsm::DeviceKey) {
//! key.wrap(&[0; 16]);
//! # }
//! ```
//! A refusal does not say which part of a block is malformed:
//! ```compile_fail
//! let _ = hsm::Refusal::WrongControlNibble;
//! ```

mod api;
mod block;
mod boundary;
mod clear;
mod component;
mod config;
mod harden;
mod key_place;
mod key_store;
mod keyblock;
mod keyring;
mod level;
mod oaep;
mod open_error;
mod participant_key;
mod participant_public_key;
mod policy;
mod selftest;
mod tdes_key;
mod token;
mod translation;
mod value;
mod vault;
mod versioned;
mod workers;
mod zones;

#[cfg(test)]
mod fresh_token;
#[cfg(test)]
mod vectors;

pub use hsm_protocol::{
    Account, AccountNumber, AccountNumberError, Binding, BoundaryLevel, CardBinding, Changed, ControlBinding,
    DeviceBlock, DeviceKey, DeviceKeyError, ENGINE_KEYS, EncryptedBlock, Error, ExpectedValue, FreshTzpk,
    HostOperation, Isolation, Kcv, KeyId, KeyUsage, KeyVersion, LayoutError, MadeAt, NewRecordFormat, ParityPolicy,
    PinRecord, Purpose, PvkName, Refusal, Reply, Request, SealedAccount, SealedKey, Source, Status, StorageFormat,
    TOGETHER_MAX, Target, ValueMethod, VerificationValue, ZoneBlock, ZoneFormat, ZoneKey, ZoneName, ZoneRules, ZoneUse,
};

pub use self::{
    api::{Hsm, Prepared},
    component::{COMPONENTS, ComponentError, ComponentKcvs, ComponentTerminal, Components, make_components},
    config::{
        AbsentVault, Callers, Config, KeyFileUse, KeyHandling, Keys, LockMemory, ParticipantToken, Pkcs11, SlotName,
        TokenPlace, Unlock, Vault, Wanted, WantedLevel,
    },
    key_place::KeyPlace,
    key_store::{KeyStore, KeyStoreError, KeyUse, RecordsKept},
    keyblock::{
        Field, Header, KeyBlock, KeyBlockError, OptionalBlock, Purpose as KeyBlockPurpose, Version as KeyBlockVersion,
    },
    keyring::{KeyAlgorithm, KeyInfo, KeyMode, KeyState},
    open_error::{OpenError, Pkcs11Error},
    participant_key::{ParticipantError, ParticipantFile, ParticipantKey},
    participant_public_key::{ParticipantPublicKey, SIGNATURE_BYTES},
    policy::{PinPolicy, PolicyError, Weakness},
    token::{Probe, Route, TokenReport},
    translation::{Place, TRANSLATIONS, Translation},
    vault::VaultError,
    zones::ZoneError,
};
