//! The protocol of the key boundary: requests and replies, the encrypted blocks, sealed blobs and key ids in them, and their
//! byte layouts. No clear PIN, PIN block or key, and no cipher, is in this crate.
//!
//! # Code that does not compile
//!
//! An encrypted block cannot be printed:
//! ```compile_fail
//! # fn f(block: hsm_protocol::EncryptedBlock) -> String {
//! format!("{block:?}")
//! # }
//! ```
//! ```compile_fail
//! # fn f(block: hsm_protocol::ZoneBlock) -> String {
//! format!("{block:?}")
//! # }
//! ```
//! A block of a zone names its format, and no format 2 exists:
//! ```compile_fail
//! let _ = hsm_protocol::ZoneFormat::Iso2;
//! ```
//! A translation to a zone names a zone key, and no account number:
//! ```compile_fail
//! # fn f(key: hsm_protocol::ZoneKey, account: hsm_protocol::AccountNumber) -> hsm_protocol::Target {
//! hsm_protocol::Target::Zone { key, format: hsm_protocol::ZoneFormat::Iso0, account }
//! # }
//! ```
//! An account number can be printed only in its masked form:
//! ```compile_fail
//! # fn f(number: hsm_protocol::AccountNumber) -> String {
//! format!("{number:?}")
//! # }
//! ```
//! ```
//! assert_eq!(hsm_protocol::AccountNumber::parse("5413330089020011").unwrap().masked(), "541333******0011");
//! ```
//! A refusal does not say which part of a block is malformed:
//! ```compile_fail
//! let _ = hsm_protocol::Refusal::WrongControlNibble;
//! ```

mod account;
mod binding;
mod device_key;
mod error;

pub mod frame;
mod kcv;
mod key_id;
mod key_usage;
mod layout_error;
mod request;
mod sealed;
mod status;
mod storage_format;
mod verification;
mod zone;
mod zone_format;
mod zone_name;

pub use self::{
    account::{Account, AccountDigits, AccountNumber, AccountNumberError},
    binding::{Binding, BoundaryLevel, CardBinding, ControlBinding, Isolation, MadeAt, Purpose},
    device_key::{DeviceKey, DeviceKeyError, MODULUS_BITS_MAX, Mgf1Hash},
    error::{Error, HostOperation, Refusal, UnavailableReason},
    kcv::Kcv,
    key_id::KeyId,
    key_usage::{ENGINE_KEYS, KeyUsage},
    layout_error::LayoutError,
    request::{DeviceBlock, FreshTzpk, Reply, Request, Source, TOGETHER_MAX, Target},
    sealed::{
        ACCOUNT_BYTES, Bound, EncryptedBlock, KeyVersion, NONCE_BYTES, PinRecord, RECORD_MESSAGE_BYTES_MAX, SALT_BYTES,
        SealedAccount, SealedKey, SealedTzpk, TAG_BYTES, account_bound_to, bound_to_control, record_bound_to,
        zone_block_bound_to,
    },
    status::{MemoryLock, Persistence, PinDigits, Status, StorageVersions},
    storage_format::{NewRecordFormat, StorageFormat},
    verification::{
        Changed, DecimalisationTable, ExpectedValue, Ibm3624Name, PvkName, Pvki, ValidationData, ValueMethod,
        VerificationValue,
    },
    zone::{ParityPolicy, ZoneBlock, ZoneKey, ZoneRules, ZoneUse},
    zone_format::ZoneFormat,
    zone_name::ZoneName,
};
