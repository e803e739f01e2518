//! Why the boundary did not open, and what to do. No error holds a secret.

use std::{io, path::PathBuf};

use thiserror::Error;

use crate::{binding::BoundaryLevel, form::StorageFormat, policy::PolicyError, vault::VaultError};

/// Why the boundary did not open.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The PKCS#11 token.
    #[error(transparent)]
    Pkcs11(#[from] Pkcs11Error),
    /// A level that can't be had.
    #[error("boundary.level = \"token\" can't be had of a {token} token here: {why}; set level = \"host\" or \"best\"")]
    BoundaryLevel {
        /// Its name.
        token: &'static str,
        /// What it can't do.
        why: String,
    },
    /// A form that a level can't make.
    #[error("boundary.form = \"{}\" is not made at level {level}: {}", .form.name(), forms_of(*.level))]
    StorageFormat {
        /// The form.
        form: StorageFormat,
        /// The level.
        level: BoundaryLevel,
    },
    /// A known answer came out wrong: this build, or this machine, must not be used.
    #[error("the self-test failed at {step}: this build or this machine computes wrongly, don't use it")]
    SelfTest {
        /// Which known answer.
        step: &'static str,
    },
    /// Memory can't be locked, and the configuration requires it.
    #[error(
        "memory can't be locked ({reason}): raise RLIMIT_MEMLOCK or grant CAP_IPC_LOCK, or set lock_memory = \"try\""
    )]
    MemoryNotLocked {
        /// Why.
        reason: String,
    },
    /// Core dumps and tracers can't be kept out.
    #[error("the process can't be kept from core dumps and tracers: {reason}")]
    Dumpable {
        /// Why.
        reason: String,
    },
    /// The machine refused something.
    #[error("{}: {error}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
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
    /// Whether the token refused the user PIN, or would: another login could lock the PIN, so that none is tried before an
    /// operator asks for it.
    pub fn refuses_user_pin(&self) -> bool {
        matches!(self, Self::WrongPin | Self::Expired | Self::NoUserPin | Self::LastTry | Self::Locked)
    }
}

fn forms_of(level: BoundaryLevel) -> &'static str {
    match level {
        BoundaryLevel::Token => "set it to wrapped, iso-3 or iso-4",
        BoundaryLevel::Host => "set it to iso-4, iso-3 or iso-0",
    }
}

/// Why a PKCS#11 token did not open.
#[derive(Debug, Error)]
pub enum Pkcs11Error {
    /// The module can't be loaded.
    #[error("can't load the PKCS#11 module {}: {reason}", path.display())]
    Module {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// No such slot, or more than one.
    #[error("{found} tokens have the {slot}: name one of {present}")]
    Slot {
        /// As configured.
        slot: String,
        /// How many match.
        found: usize,
        /// What there is.
        present: String,
    },
    /// The user PIN is wrong. It is tried once, never again by itself.
    #[error(
        "the token refused the user PIN: it was tried once, and is not tried again before a restart or a reload (SIGHUP); \
         correct the PIN first"
    )]
    WrongPin,
    /// The user PIN has expired (PKCS#11: CKR_PIN_EXPIRED). Another login does not help.
    #[error("the user PIN has expired: set another one with the token's own tool")]
    Expired,
    /// The token has no user PIN (PKCS#11: CKR_USER_PIN_NOT_INITIALIZED). Its security officer sets one.
    #[error("the token has no user PIN: its security officer must set one")]
    NoUserPin,
    /// One more wrong PIN would lock it.
    #[error(
        "the user PIN has one try left: log in by hand with the right PIN first, so that a wrong one can't lock it"
    )]
    LastTry,
    /// The user PIN is locked.
    #[error("the user PIN is locked: the token's security officer must unlock it")]
    Locked,
    /// Somebody logged in already, so a PIN would not be tried.
    #[error(
        "this process is logged in to it already: it is an engine's token, or was given twice; a person's token is theirs \
         alone"
    )]
    LoggedIn,
    /// A person's token without a key.
    #[error("it holds no key of a person: make one with `pinseal ceremony person --token FILE`")]
    NoPersonKey,
    /// A person has one key.
    #[error(
        "it holds {found} keys with the label \"pinseal person\": a person has one; destroy the others with the token's own tool"
    )]
    PersonKeys {
        /// How many there are.
        found: usize,
    },
    /// The person's key is there already.
    #[error(
        "it holds a person's key already, and nothing was made: `pinseal ceremony person --show FILE` prints its public half"
    )]
    PersonKeyPresent,
    /// The person's key may be used for more than it is for.
    #[error("its key of a person is unsafe: {attribute} is {found}; make another in a fresh token")]
    PersonKeyUnsafe {
        /// Which attribute.
        attribute: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// It does not have the mechanisms.
    #[error("it has no Ed25519 (CKM_EC_EDWARDS_KEY_PAIR_GEN, CKM_EDDSA): take another token, or a key file")]
    NoEd25519,
    /// It signs otherwise than Ed25519, or with another key than it shows.
    #[error(
        "its signature does not verify as Ed25519 under the public key it shows: take another token, or a key file"
    )]
    PersonSignature,
    /// A key is not there, or there more than once.
    #[error("{found} keys have the label {label:?} and the id {version:04x}: make it with `pinseal token make-keys`")]
    Key {
        /// Its CKA_LABEL.
        label: String,
        /// Its CKA_ID.
        version: u16,
        /// How many.
        found: usize,
    },
    /// A key may be used for more than it is for.
    #[error("the key {label:?} is unsafe: {attribute} is {found}; make it again with `pinseal token make-keys`")]
    Unsafe {
        /// Its CKA_LABEL.
        label: String,
        /// Which attribute.
        attribute: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// The keys are there already.
    #[error("a key with the label {label:?} and the id {version:04x} is there already: nothing was made")]
    Present {
        /// Its CKA_LABEL.
        label: String,
        /// Its CKA_ID.
        version: u16,
    },
    /// No version of a key is in use.
    #[error("no {key} key is in use in the token: make or load one in a ceremony, and put it into use")]
    Lacks {
        /// Which.
        key: String,
    },
    /// A key is another than the one a ceremony put there.
    #[error("{key} has another check value than the register says: it is not the key that a ceremony put there")]
    Exchanged {
        /// Which.
        key: String,
    },
    /// People hold its keys together.
    #[error("the token's keys are in the custody of a roster: change them with `pinseal ceremony`")]
    InCustody,
    /// It can hold no register.
    #[error(
        "the token keeps no data objects, so it can't hold the register of a ceremony: use `pinseal token make-keys`"
    )]
    NoDataObjects,
    /// The register can't be read.
    #[error("the register of keys in the token can't be read by this release: use the one that wrote it")]
    Register,
    /// Two wrote at once, and one of them died before it saw the other.
    #[error(
        "two registers of keys in the token have the number {number}: two ceremonies wrote at once; try again, and where both \
         stay, find out by the transcripts which one a step recorded, and destroy the other with the token's own tool"
    )]
    Registers {
        /// Their number.
        number: u64,
    },
    /// There is a key at a place that the register says is free.
    #[error(
        "the token holds a key with the label {label:?} and the id {version:04x} that its register does not tell of, and \
         nothing was done: another ceremony may be making it, so try again; where it stays, a step that died left it: destroy \
         it with the token's own tool, once it is known that nothing uses it"
    )]
    Unregistered {
        /// Its CKA_LABEL.
        label: String,
        /// Its CKA_ID.
        version: u16,
    },
    /// Another ceremony changed the token after this one read its register.
    #[error("another ceremony changed the token during this step: begin the step again")]
    ChangedByOther,
    /// The key does not come out.
    #[error("the token did not give out what it was asked to wrap")]
    TakeOut,
    /// A call failed.
    #[error("the token failed at {call}: {reason}")]
    Call {
        /// Which call.
        call: &'static str,
        /// What the token said.
        reason: String,
    },
}

impl Pkcs11Error {
    /// Of an error in writing the register: whether it is certain that nothing was written.
    pub(crate) fn left_register_unwritten(&self) -> bool {
        matches!(self, Self::ChangedByOther | Self::Registers { .. } | Self::NoDataObjects)
    }
}
