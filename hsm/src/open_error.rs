//! Why the boundary does not open, and what an operator can do. No error holds a secret.

use std::{io, path::PathBuf};

use thiserror::Error;

use hsm_protocol::{BoundaryLevel, StorageFormat};

use crate::{policy::PolicyError, vault::VaultError, zones::ZoneError};

/// The boundary does not open.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The vault can't be read or created.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The PIN policy is malformed.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The PKCS#11 token can't be used.
    #[error(transparent)]
    Pkcs11(#[from] Pkcs11Error),
    /// The token does not support the configured boundary level.
    #[error(
        "boundary.level = \"token\" is not possible with this {token} token: {why}; set level = \"host\" or \"best\""
    )]
    BoundaryLevel {
        /// `software` or `PKCS#11`.
        token: &'static str,
        /// The operation that the token does not support.
        why: String,
    },
    /// The boundary level does not support the configured storage format.
    #[error("boundary.form = \"{}\" is not made at level {level}: {}", .form.name(), forms_at(*.level))]
    StorageFormat {
        /// The configured format.
        form: StorageFormat,
        /// The level in use.
        level: BoundaryLevel,
    },
    /// A configured zone can't work.
    #[error(transparent)]
    Zone(#[from] ZoneError),
    /// A known-answer test failed: the build or the machine computes wrongly.
    #[error("the self-test failed at {step}: this build or this machine computes wrongly, do not use it")]
    SelfTest {
        /// The algorithm under test.
        step: &'static str,
    },
    /// The process can't lock its memory, and the configuration requires the lock.
    #[error(
        "memory can't be locked ({reason}): raise RLIMIT_MEMLOCK or grant CAP_IPC_LOCK, or set lock_memory = \"try\""
    )]
    MemoryNotLocked {
        /// The kernel's error, or the limit.
        reason: String,
    },
    /// The kernel refuses to disable core dumps and ptrace.
    #[error("core dumps and ptrace of this process can't be disabled: {reason}")]
    Dumpable {
        /// The kernel's error.
        reason: String,
    },
    /// The operating system refuses to read or write a file.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        error: io::Error,
    },
}

impl OpenError {
    /// Whether the token refused the user PIN; see [`Pkcs11Error::refuses_user_pin`].
    pub fn refuses_user_pin(&self) -> bool {
        matches!(self, Self::Pkcs11(error) if error.refuses_user_pin())
    }
}

impl Pkcs11Error {
    /// Whether the token refused the user PIN, or would refuse it. Another login could lock the PIN, so the boundary tries
    /// none until an operator asks for it.
    pub fn refuses_user_pin(&self) -> bool {
        matches!(self, Self::WrongPin | Self::Expired | Self::NoUserPin | Self::LastTry | Self::Locked)
    }

    /// Whether the token certainly has no new inventory after this error of writing one.
    pub(crate) fn left_inventory_unwritten(&self) -> bool {
        matches!(self, Self::ChangedByOther | Self::TwoInventories { .. } | Self::NoDataObjects)
    }
}

fn forms_at(level: BoundaryLevel) -> &'static str {
    match level {
        BoundaryLevel::Token => "set it to wrapped, iso-3 or iso-4",
        BoundaryLevel::Host => "set it to iso-4, iso-3, iso-0 or one-way",
    }
}

/// A PKCS#11 token can't be opened, or an operation on its keys failed.
#[derive(Debug, Error)]
pub enum Pkcs11Error {
    /// The PKCS#11 module can't be loaded or initialised.
    #[error("can't load the PKCS#11 module {}: {reason}", path.display())]
    Module {
        /// The module as configured.
        path: PathBuf,
        /// The error of the loader or of `C_Initialize`.
        reason: String,
    },
    /// No slot matches the configuration, or several do.
    #[error("{found} tokens have the {slot}: name one of {present}")]
    Slot {
        /// The slot as configured.
        slot: String,
        /// The number of matching slots.
        found: usize,
        /// The labels and serial numbers of the tokens present.
        present: String,
    },
    /// The user PIN is wrong (CKR_PIN_INCORRECT). The boundary logs in once and does not repeat the attempt by itself.
    #[error(
        "the token refused the user PIN: it was tried once, and is not tried again before a restart or a reload (SIGHUP); \
         correct the PIN first"
    )]
    WrongPin,
    /// The user PIN has expired (CKR_PIN_EXPIRED). Another login does not help.
    #[error("the user PIN has expired: set another one with the token's own tool")]
    Expired,
    /// The token has no user PIN (CKR_USER_PIN_NOT_INITIALIZED). Its security officer sets one.
    #[error("the token has no user PIN: its security officer must set one")]
    NoUserPin,
    /// One more wrong PIN would lock the user PIN (CKF_USER_PIN_FINAL_TRY). No login was tried.
    #[error(
        "the user PIN has one try left: log in by hand with the right PIN first, so that a wrong one can't lock it"
    )]
    LastTry,
    /// The user PIN is locked (CKF_USER_PIN_LOCKED or CKR_PIN_LOCKED).
    #[error("the user PIN is locked: the token's security officer must unlock it")]
    Locked,
    /// This process has a login already (CKR_USER_ALREADY_LOGGED_IN), so the token would not check the PIN.
    #[error(
        "this process is logged in to it already: the token is an engine's or was named twice; each participant needs a token \
         of their own"
    )]
    LoggedIn,
    /// A participant's token has no signing key.
    #[error("the token has no participant's key: make one with `pinseal ceremony person --token FILE`")]
    NoParticipantKey,
    /// A participant's token has several signing keys.
    #[error(
        "the token has {found} keys with the label \"pinseal person\" and must have one: destroy the others with the token's own \
         tool"
    )]
    ParticipantKeys {
        /// The number of keys found.
        found: usize,
    },
    /// A participant's token has a signing key already.
    #[error(
        "the token has a participant's key already, and nothing was made: `pinseal ceremony person --show FILE` prints its \
         public key"
    )]
    ParticipantKeyPresent,
    /// The participant's key has a right beside signing, or can leave the token.
    #[error("the participant's key is unsafe: {attribute} is {found}; make another in a fresh token")]
    ParticipantKeyUnsafe {
        /// The PKCS#11 attribute.
        attribute: &'static str,
        /// The attribute's value.
        found: &'static str,
    },
    /// The token has no Ed25519 mechanisms.
    #[error("the token has no Ed25519 (CKM_EC_EDWARDS_KEY_PAIR_GEN, CKM_EDDSA): use another token, or a key file")]
    NoEd25519,
    /// The token's signature does not verify under the public key it returns.
    #[error("the token's signature does not verify as Ed25519 under its public key: use another token, or a key file")]
    ParticipantSignature,
    /// A key is missing, or several have its label and id.
    #[error("{found} keys have the label {label:?} and the id {version:04x}: make it with `pinseal token make-keys`")]
    Key {
        /// The CKA_LABEL searched for.
        label: String,
        /// The version in the CKA_ID searched for.
        version: u16,
        /// The number of keys found.
        found: usize,
    },
    /// A key has a right that its usage forbids, lacks one it needs, or can leave the token.
    #[error("the key {label:?} is unsafe: {attribute} is {found}; make it again with `pinseal token make-keys`")]
    Unsafe {
        /// The key's CKA_LABEL.
        label: String,
        /// The PKCS#11 attribute.
        attribute: &'static str,
        /// The attribute's value.
        found: &'static str,
    },
    /// A key to be made exists already.
    #[error("a key with the label {label:?} and the id {version:04x} exists already: nothing was made")]
    Present {
        /// The key's CKA_LABEL.
        label: String,
        /// The version in the key's CKA_ID.
        version: u16,
    },
    /// No version of a key is active.
    #[error("no {key} key is active in the token: make or load one in a ceremony, and activate it")]
    Lacks {
        /// The key's usage.
        key: String,
    },
    /// The KCV of a key in the token differs from the KCV in the inventory.
    #[error("{key} has another check value than the inventory says: it is not the key that a ceremony put there")]
    Exchanged {
        /// For example `storage/1`.
        key: String,
    },
    /// Only a ceremony may change the keys.
    #[error("the token's keys are in the custody of a roster: change them with `pinseal ceremony`")]
    InCustody,
    /// The token does not store private data objects.
    #[error(
        "the token keeps no data objects, so it can't hold the inventory of a ceremony: use `pinseal token make-keys`"
    )]
    NoDataObjects,
    /// The inventory is malformed, or another release wrote it.
    #[error("this release can't read the key inventory in the token: use the release that wrote it")]
    Inventory,
    /// Two ceremonies wrote an inventory at the same time, and one of them was killed before it removed its own.
    #[error(
        "two key inventories in the token have the number {number}: two ceremonies wrote at once; try again, and where both \
         stay, find out by the transcripts which one a step recorded, and destroy the other with the token's own tool"
    )]
    TwoInventories {
        /// The number of both inventories.
        number: u64,
    },
    /// The token holds a key that the inventory does not list, under the label and id of the key to be made.
    #[error(
        "the token holds a key with the label {label:?} and the id {version:04x} that its inventory does not list, and \
         nothing was done: another ceremony may be making it, so try again; where it stays, a killed step left it: destroy it \
         with the token's own tool, once nothing uses it for certain"
    )]
    NotInInventory {
        /// The key's CKA_LABEL.
        label: String,
        /// The version in the key's CKA_ID.
        version: u16,
    },
    /// Another ceremony changed the token after this one read the inventory.
    #[error("another ceremony changed the token during this step: begin the step again")]
    ChangedByOther,
    /// The token returned a wrapped key of the wrong length, or one that does not unwrap.
    #[error("the token returned no usable key from C_WrapKey")]
    Export,
    /// A PKCS#11 call failed.
    #[error("the token failed at {call}: {reason}")]
    Call {
        /// The PKCS#11 function, or the step.
        call: &'static str,
        /// The token's return value.
        reason: String,
    },
}
