//! The error of a use case, and its outcome in the audit chain.

use std::time::Duration;

use thiserror::Error;

use audit::entry::Outcome;
use domain::control::Denied;
use hsm_protocol::Refusal;
use store::{ChangeError, StoreError};

/// The error of a use case.
#[derive(Debug, Error)]
pub enum PinError {
    /// A rule of cards and controls denies the request.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The block is malformed, and recorded in the transaction that spent a control or settled a try. All malformed blocks have
    /// one error, so that a caller learns nothing about the digits.
    #[error("{}", hsm_protocol::Refusal::MalformedBlock)]
    Malformed,
    /// The PIN breaks the policy, and is recorded in the transaction that changed a control or settled a try.
    #[error("the PIN breaks the PIN policy: choose another")]
    RefusedPin,
    /// The card has no PIN.
    #[error("no PIN is set for this card")]
    PinNotSet,
    /// Other requests changed the card at the same time.
    #[error("other requests changed the card at the same time: repeat the call")]
    CardChanged,
    /// The tenant has no such zone.
    #[error("the tenant has no such zone: check its name or index with the operator of the engine")]
    ZoneUnknown,
    /// The block does not have the length of its format.
    #[error("pin_block is 8 bytes, or 16 of format 4")]
    BlockLength,
    /// The seal of an account number is of another card, was changed, or is missing for a card without a registered number.
    #[error("sealed_account is not the answer of SealPan for this card, or the card has no registered account number")]
    SealedAccount,
    /// The card is registered with another account number than the one to seal.
    #[error("the card is registered with another account number: check the number, or register the card's new one")]
    RegisteredAccount,
    /// The caller sent too many wrong PINs or malformed blocks.
    #[error("this caller has sent too many wrong PINs or malformed blocks within a minute: try again later")]
    WrongPinRate {
        /// The time until the caller may verify a PIN or translate a block.
        retry_after: Duration,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The boundary failed, or refused a block.
    #[error(transparent)]
    Hsm(#[from] hsm_protocol::Error),
}

impl From<ChangeError> for PinError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Denied(denied) => Self::Denied(denied),
            ChangeError::Store(store) => Self::Store(store),
        }
    }
}

impl From<hsm_protocol::LayoutError> for PinError {
    fn from(error: hsm_protocol::LayoutError) -> Self {
        Self::Hsm(error.into())
    }
}

impl PinError {
    /// The size of the queue of the store or the boundary that has no place for the request now, which did nothing.
    pub(crate) fn busy_limit(&self) -> Option<usize> {
        match self {
            Self::Store(StoreError::Busy { limit }) | Self::Hsm(hsm_protocol::Error::Busy { limit }) => Some(*limit),
            _ => None,
        }
    }

    /// The outcome in the audit event of the refusal; `None` where the use case has recorded it, the store failed, or the
    /// boundary executed nothing because of the load.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Denied(denied) => denied_outcome(*denied),
            Self::Malformed | Self::RefusedPin | Self::Store(_) => None,
            // No rule was broken, or the request was malformed, or the event would fill the audit chain.
            Self::CardChanged | Self::BlockLength | Self::WrongPinRate { .. } => None,
            Self::ZoneUnknown => Some(Outcome::ZoneRefused),
            Self::SealedAccount | Self::RegisteredAccount => Some(Outcome::OtherAccount),
            Self::PinNotSet => Some(Outcome::PinNotSet),
            Self::Hsm(error) => boundary_outcome(error),
        }
    }
}

/// `None` for a malformed request, and for a call that a rate refused: it would fill the audit chain.
fn denied_outcome(denied: Denied) -> Option<Outcome> {
    Some(match denied {
        Denied::AccountBound => Outcome::AccountBound,
        Denied::CardUnknown => Outcome::CardUnknown,
        Denied::Cap { .. } => Outcome::ControlCap,
        Denied::UnregisteredCards { .. } => Outcome::UnregisteredCards,
        Denied::NotUsable | Denied::Superseded => Outcome::ControlNotUsable,
        Denied::OtherTenant | Denied::OtherScope | Denied::OtherDeviceKey => Outcome::Denied,
        Denied::NoTzpk => Outcome::TzpkMissing,
        Denied::PinNotSet => Outcome::PinNotSet,
        Denied::PinStored => Outcome::PinStored,
        Denied::PinLocked => Outcome::PinLocked,
        Denied::ReplacedBlock => Outcome::ReplacedBlock,
        Denied::OtherAccount => Outcome::OtherAccount,
        Denied::CardRate { .. } | Denied::TrySettled | Denied::TryUnknown | Denied::StorageKeyInactive => return None,
    })
}

fn boundary_outcome(error: &hsm_protocol::Error) -> Option<Outcome> {
    match error {
        hsm_protocol::Error::DeadlinePassed | hsm_protocol::Error::Busy { .. } => None,
        hsm_protocol::Error::WriteOnly | hsm_protocol::Error::OneWay | hsm_protocol::Error::OtherLevel { .. } => {
            Some(Outcome::PinNotShown)
        }
        hsm_protocol::Error::ZoneUnknown { .. }
        | hsm_protocol::Error::ZoneFormat { .. }
        | hsm_protocol::Error::ZoneUse { .. } => Some(Outcome::ZoneRefused),
        hsm_protocol::Error::NoAccountNumber => Some(Outcome::NoAccountNumber),
        hsm_protocol::Error::NoVerificationKey => Some(Outcome::ValueKeyRefused),
        hsm_protocol::Error::OtherAccount => Some(Outcome::OtherAccount),
        hsm_protocol::Error::DeviceKey(_) => Some(Outcome::DeviceKeyInvalid),
        hsm_protocol::Error::Refused(Refusal::MalformedBlock) => Some(Outcome::Malformed),
        hsm_protocol::Error::Refused(Refusal::PinPolicy) => Some(Outcome::RefusedPin),
        _ => Some(Outcome::BoundaryFailed),
    }
}
