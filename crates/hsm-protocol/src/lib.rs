//! What crosses the key boundary: encrypted blocks, sealed blobs, key ids, requests and replies, and their bytes.
//!
//! What must never enter: a clear PIN, a clear block, a clear key, a cipher.
//!
//! # What cannot be written
//!
//! An encrypted block is not printed:
//! ```compile_fail
//! # fn f(block: hsm_protocol::EncryptedBlock) -> String {
//! format!("{block:?}")
//! # }
//! ```
//! nor an account number, but for its mask:
//! ```compile_fail
//! # fn f(number: hsm_protocol::AccountNumber) -> String {
//! format!("{number:?}")
//! # }
//! ```
//! ```
//! assert_eq!(hsm_protocol::AccountNumber::parse("5413330089020011").unwrap().masked(), "541333******0011");
//! ```
//! A sealed key is not copied:
//! ```compile_fail
//! # fn f(key: &hsm_protocol::SealedKey) -> hsm_protocol::SealedKey {
//! key.clone()
//! # }
//! ```
//! A refusal cannot say what was wrong with a block:
//! ```compile_fail
//! let _ = hsm_protocol::Refusal::WrongControlNibble;
//! ```

#![allow(missing_docs, reason = "written with the request type")]

pub mod account;
pub mod binding;
pub mod check_value;
pub mod device_key;
pub mod error;
pub mod form;
pub mod frame;
pub mod key_id;
pub mod outcome;
pub mod sealed;
pub mod status;

pub use self::{
    account::{Account, AccountNumber, AccountNumberError},
    binding::{Binding, BoundaryLevel, CardBinding, Isolation, MadeAt, Purpose},
    check_value::Kcv,
    device_key::{DeviceKey, DeviceKeyError},
    error::{AcceptError, Error, Refusal},
    form::{StorageFormat, StoredForm},
    key_id::KeyId,
    outcome::{Accepted, Issued, Revealed},
    sealed::{EncryptedBlock, KeyVersion, LayoutError, PinRecord, SealedAccount, SealedKey},
    status::Status,
};
