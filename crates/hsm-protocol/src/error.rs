//! Errors of the boundary. None holds a clear value.

use std::{borrow::Cow, fmt};

use thiserror::Error;

use crate::binding::BoundaryLevel;
use crate::device_key::DeviceKeyError;
use crate::layout_error::LayoutError;
use crate::zone::ZoneUse;
use crate::zone_format::ZoneFormat;
use crate::zone_name::ZoneName;

/// The cause of a refused block. Every malformed block has one variant, so that a caller learns nothing about its digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Not a block of its format under its key.
    #[error("the block is not a PIN block of its format under its key")]
    MalformedBlock,
    /// Well-formed, with a PIN that breaks the policy.
    #[error("the PIN breaks the PIN policy")]
    PinPolicy,
}

/// The error of an operation.
#[derive(Debug, Error)]
pub enum Error {
    /// The block was decrypted, checked and refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The pair of source and target is not in the table of translations (`pinseal policy explain`).
    #[error("this translation is not allowed at this boundary level: pinseal policy explain lists the allowed ones")]
    TranslationNotAllowed,
    /// The tenant of the card has no such zone, or the version of its key is not active or, for a block to encrypt, not the
    /// newest.
    #[error(
        "the zone {zone} is not configured for the tenant, or this version of its key is not active, or encrypts and is not the newest: see [[zones]] and the ceremony"
    )]
    ZoneUnknown {
        /// The zone of the request.
        zone: ZoneName,
    },
    /// The rules of the zone do not allow the format.
    #[error("the zone does not use {format}: add it to its formats in [[zones]]")]
    ZoneFormat {
        /// The format of the request.
        format: ZoneFormat,
    },
    /// The rules of the zone, or the mode of use of its key, do not allow the operation.
    #[error("the zone, or the mode of its key, does not allow {needed}: add it to its uses in [[zones]]")]
    ZoneUse {
        /// The use that the request needs.
        needed: ZoneUse,
    },
    /// The deadline of the call passed before the boundary answered.
    #[error("the deadline of the call passed before the key boundary answered: call again")]
    DeadlinePassed,
    /// The boundary replied with the result of another operation.
    #[error("the key boundary replied to another request: run engine and boundary of one release")]
    UnexpectedReply,
    /// A blob or record is of another card or control, or was changed: its tag is wrong.
    #[error("the tag of a sealed {what} is wrong: it belongs to another card or control, or was changed")]
    SealBroken {
        /// The kind of blob.
        what: Cow<'static, str>,
    },
    /// A blob or record has a layout that this release does not know.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The boundary does not have the key of a blob or record.
    #[error("encrypted under a key that this boundary does not have: open the vault that holds the key")]
    UnknownKey,
    /// The record was made at the other boundary level, whose storage keys are not loaded.
    #[error("made at boundary level {made_at}: set boundary.level = \"{made_at}\" to open it")]
    OtherLevel {
        /// The level that made the record.
        made_at: BoundaryLevel,
    },
    /// A format 4 record of level `token`: the storage key may only encrypt.
    #[error("a format 4 record of level token cannot be shown: its storage key may only encrypt")]
    WriteOnly,
    /// A one-way record, or a boundary that stores PINs one-way.
    #[error(
        "PINs are stored one-way (boundary.form = \"one-way\"): a PIN is set, changed and verified, and not shown, exported or re-encrypted"
    )]
    OneWay,
    /// The boundary level cannot do the operation: no clear PIN leaves the token, so none is compared.
    #[error("{operation} is not possible at level token, where no PIN is compared: set boundary.level = \"host\"")]
    HostLevelOnly {
        /// The operation.
        operation: HostOperation,
    },
    /// No active key with this name may do the operation.
    #[error("no active PVK or IBM 3624 key with this name may do this: pinseal ceremony list shows the keys")]
    NoVerificationKey,
    /// The account number has fewer digits than the validation data of an IBM 3624 key.
    #[error(
        "the account number has fewer digits than the validation data of this IBM 3624 key: use a key for such accounts"
    )]
    ValidationData,
    /// The operation needs an account number, and the card has none: no registered one, and a plasticId of fewer than 12 digits.
    #[error(
        "the card has no account number: register its account number (RegisterCard), or use a plasticId of at least 12 digits"
    )]
    NoAccountNumber,
    /// A PIN goes to another card of another tenant or account number.
    #[error(
        "the two cards have different tenants or account numbers: a PIN goes to a card of the same tenant and account number alone"
    )]
    OtherAccount,
    /// The public key of the device parses, but cannot encrypt.
    #[error(transparent)]
    DeviceKey(#[from] DeviceKeyError),
    /// The token does not encrypt by RSA-OAEP with MGF1-SHA-1.
    #[error(
        "the token has no RSA-OAEP with SHA-256 and MGF1-SHA-1: remove oaep_mgf1 = \"sha-1\" from the edge's clients, or use level host"
    )]
    Mgf1NotSupported,
    /// The binding holds no plasticId.
    #[error("a plasticId is 1 to 19 decimal digits")]
    PlasticId,
    /// The 3DES storage key has encrypted its last block.
    #[error("the 3DES storage key has encrypted {limit} blocks, its limit: change boundary.stored_format to iso-4")]
    TdesExhausted {
        /// The most blocks of one key.
        limit: u64,
    },
    /// Too many operations wait.
    #[error("{limit} operations wait for the token already: try again")]
    Busy {
        /// The most operations that wait.
        limit: usize,
    },
    /// The token, or the process of the boundary, does not answer.
    #[error("the key boundary is not available: {reason}")]
    Unavailable {
        /// The cause.
        reason: UnavailableReason,
    },
}

/// An operation that needs level `host`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostOperation {
    /// A PIN is compared with a record.
    Verify,
    /// A PIN is compared with a verification value.
    VerifyValue,
    /// A PIN is changed with proof of the old one.
    Change,
    /// A random PIN is made.
    Generate,
    /// A verification value is derived.
    DeriveValue,
    /// A record is re-encrypted for another account number or card.
    Rebind,
}

impl HostOperation {
    /// Every operation. The index of an operation is its code in a frame.
    pub const ALL: [Self; 6] =
        [Self::Verify, Self::VerifyValue, Self::Change, Self::Generate, Self::DeriveValue, Self::Rebind];
}

impl fmt::Display for HostOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verify => "verification of a PIN",
            Self::VerifyValue => "verification of a PIN by its value",
            Self::Change => "change of a PIN",
            Self::Generate => "generation of a PIN",
            Self::DeriveValue => "derivation of a verification value",
            Self::Rebind => "re-encryption for another account number or card",
        })
    }
}

/// The cause of an unavailable token. A decision reads the variant, never the text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UnavailableReason {
    /// The token refused the user PIN when it was opened again. The boundary does not log in again, because another login
    /// could lock the PIN.
    #[error("it refused the user PIN")]
    UserPinRefused,
    /// The process of the boundary did not answer in time.
    #[error("its process does not answer")]
    ProcessSilent,
    /// The process of the boundary ended.
    #[error("its process ended")]
    ProcessEnded,
    /// The process of the boundary is being started again.
    #[error("its process is being started again")]
    ProcessStarting,
    /// The process of the boundary sent a malformed frame.
    #[error("its process sent a malformed frame")]
    MalformedFrame,
    /// Any other reason, as text for people.
    #[error("{0}")]
    Other(Cow<'static, str>),
}

impl UnavailableReason {
    /// Whether the process of the boundary failed, and not its token.
    pub fn is_of_the_process(&self) -> bool {
        match self {
            Self::ProcessSilent | Self::ProcessEnded | Self::ProcessStarting | Self::MalformedFrame => true,
            Self::UserPinRefused | Self::Other(_) => false,
        }
    }
}

impl From<&'static str> for UnavailableReason {
    fn from(reason: &'static str) -> Self {
        Self::Other(reason.into())
    }
}
