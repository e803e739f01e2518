//! What can go wrong at the door. No error tells what a clear value was.

use std::{io, path::PathBuf};

use thiserror::Error;

use crate::{binding::Level, config::Form, policy::PolicyError, sealed::LayoutError, vault::VaultError};

/// Why a block was not taken. A malformed block has one variant, so that what was wrong with it cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Not an ISO 9564 format 1 block under this tzpk.
    #[error("the block is not an ISO 9564 format 1 block under this tzpk")]
    MalformedBlock,
    /// Well-formed, with a PIN that breaks the policy.
    #[error("the PIN breaks the PIN policy")]
    PinPolicy,
}

/// Why `accept` made no record.
#[derive(Debug, Error)]
pub enum AcceptError {
    /// The block was judged and refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The boundary could not judge it.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// Why an operation failed.
#[derive(Debug, Error)]
pub enum Error {
    /// A blob or record does not open under this binding: another card's, another control's, or changed.
    #[error("a sealed {what} does not open here: it was made for something else, or was changed")]
    SealBroken {
        /// What kind of blob.
        what: &'static str,
    },
    /// A blob or record has a layout this release does not know.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A blob was made under a key that is not here.
    #[error("made under a key this boundary does not have: open the vault it was made with")]
    UnknownKey,
    /// A record that was made at the other boundary level: its storage key is not here.
    #[error("made at boundary level {made_at}: set boundary.level = \"{made_at}\" to open it")]
    OtherLevel {
        /// Where it was made.
        made_at: Level,
    },
    /// A record that this boundary makes and can't open.
    #[error("a format 4 block made at level token is not shown: a partition of its own, which may decrypt, opens it")]
    WriteOnly,
    /// The binding holds no plasticId.
    #[error("a plasticId is 1 to 19 decimal digits")]
    PlasticId,
    /// The stored 3DES form has reached its end.
    #[error("the 3DES storage key has made {limit} blocks and makes no more: change the form to iso-4")]
    TdesExhausted {
        /// The most blocks it makes.
        limit: u64,
    },
    /// The bound on waiting operations is reached.
    #[error("{limit} operations wait for the token already: try again")]
    Busy {
        /// The bound.
        limit: usize,
    },
    /// The token is away.
    #[error("the token is not available: {reason}")]
    Unavailable {
        /// Why, in words of ours.
        reason: &'static str,
    },
}

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
    Level {
        /// Its name.
        token: &'static str,
        /// What it can't do.
        why: String,
    },
    /// A form that a level can't make.
    #[error("boundary.form = \"{}\" is not made at level {level}: {}", .form.name(), forms_of(*.level))]
    Form {
        /// The form.
        form: Form,
        /// The level.
        level: Level,
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
    /// The machine refused something.
    #[error("{}: {error}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

fn forms_of(level: Level) -> &'static str {
    match level {
        Level::Token => "set it to wrapped, iso-3 or iso-4",
        Level::Host => "set it to iso-4, iso-3 or iso-0",
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
    #[error("the token refused the user PIN: correct it; it was tried once and is not tried again")]
    WrongPin,
    /// One more wrong PIN would lock it.
    #[error(
        "the user PIN has one try left: log in by hand with the right PIN first, so that a wrong one can't lock it"
    )]
    LastTry,
    /// The user PIN is locked.
    #[error("the user PIN is locked: the token's security officer must unlock it")]
    Locked,
    /// A key is not there, or there more than once.
    #[error("{found} keys have the label {label:?} and the id {version:04x}: make it with `pinseal token make-keys`")]
    Key {
        /// Its CKA_LABEL.
        label: &'static str,
        /// Its CKA_ID.
        version: u16,
        /// How many.
        found: usize,
    },
    /// A key may be used for more than it is for.
    #[error("the key {label:?} is unsafe: {attribute} is {found}; make it anew with `pinseal token make-keys`")]
    Unsafe {
        /// Its CKA_LABEL.
        label: &'static str,
        /// Which attribute.
        attribute: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// The keys are there already.
    #[error("a key with the label {label:?} and the id {version:04x} is there already: nothing was made")]
    Present {
        /// Its CKA_LABEL.
        label: &'static str,
        /// Its CKA_ID.
        version: u16,
    },
    /// A call failed.
    #[error("the token failed at {call}: {reason}")]
    Call {
        /// Which call.
        call: &'static str,
        /// What the token said.
        reason: String,
    },
}
