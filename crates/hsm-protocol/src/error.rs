//! Errors of the boundary. None holds a clear value.

use std::borrow::Cow;

use thiserror::Error;

use crate::binding::BoundaryLevel;
use crate::device_key::DeviceKeyError;
use crate::sealed::LayoutError;

/// Why a block was refused. Every malformed block has one variant, so that a caller learns nothing about its digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Not an ISO 9564 format 1 block under this tzpk.
    #[error("the block is not an ISO 9564 format 1 block under this tzpk")]
    MalformedBlock,
    /// Well-formed, with a PIN that breaks the policy.
    #[error("the PIN breaks the PIN policy")]
    PinPolicy,
}

/// Why an operation failed.
#[derive(Debug, Error)]
pub enum Error {
    /// The block was decrypted, checked and refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The pair of source and target is not in the table of translations (`pinseal policy explain`).
    #[error("this translation is not allowed at this boundary level: pinseal policy explain lists the allowed ones")]
    TranslationNotAllowed,
    /// The deadline of the call passed before the boundary answered.
    #[error("the deadline of the call passed before the key boundary answered: call again")]
    DeadlinePassed,
    /// The boundary replied with the result of another operation.
    #[error("the key boundary replied to another request: run engine and boundary of one release")]
    UnexpectedReply,
    /// A blob or record does not open under this binding: another card's, another control's, or changed.
    #[error("a sealed {what} does not open here: it was made for something else, or was changed")]
    SealBroken {
        /// What kind of blob.
        what: Cow<'static, str>,
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
        made_at: BoundaryLevel,
    },
    /// A record that this boundary makes and can't open.
    #[error("a format 4 block made at level token is not shown: a partition of its own, which may decrypt, opens it")]
    WriteOnly,
    /// A device key that reads as one, and is none.
    #[error(transparent)]
    DeviceKey(#[from] DeviceKeyError),
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
        reason: UnavailableReason,
    },
}

/// Why a token is not available. A decision reads the variant, never the text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UnavailableReason {
    /// The token refused the user PIN when it was opened again. The boundary logs in no more: another login could lock the PIN.
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
    /// Whether the process of the boundary, not its token, is what failed.
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
