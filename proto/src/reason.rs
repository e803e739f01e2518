//! The reasons of `google.rpc.ErrorInfo`. The engine sends a reason with each error, and the edge maps each reason to an
//! HTTP error.

/// The `domain` of every `google.rpc.ErrorInfo`.
pub const ERROR_DOMAIN: &str = "pinseal";

macro_rules! reasons {
    ($($(#[$doc:meta])+ $name:ident = $text:literal,)+) => {
        /// The reason of an error of the engine.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])+ $name,)+
        }

        impl Reason {
            /// All reasons, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The text in `google.rpc.ErrorInfo.reason`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

reasons! {
    /// The tenant is not 1 to 31 of `[a-z0-9-]`.
    TenantInvalid = "TENANT_INVALID",
    /// The auditUser is too long, or has characters that are not visible.
    AuditUserInvalid = "AUDIT_USER_INVALID",
    /// The plasticId is not 1 to 19 digits.
    PlasticIdInvalid = "PLASTIC_ID_INVALID",
    /// The account number is not 12 to 19 digits with a valid check digit.
    AccountNumberInvalid = "ACCOUNT_NUMBER_INVALID",
    /// The controlId is not a UUID of 36 characters.
    ControlIdInvalid = "CONTROL_ID_INVALID",
    /// The scope is neither SET_PIN nor VIEW_PIN.
    ScopeInvalid = "SCOPE_INVALID",
    /// The device key, or its thumbprint, is malformed.
    DeviceKeyInvalid = "DEVICE_KEY_INVALID",
    /// The PIN block is not 8 bytes.
    PinBlockLength = "PIN_BLOCK_LENGTH",
    /// The metadata `pinseal-request-id` is not one UUID of 36 characters.
    RequestIdInvalid = "REQUEST_ID_INVALID",
    /// The network of a client is not an IP address.
    ClientNetworkInvalid = "CLIENT_NETWORK_INVALID",
    /// The certificate of the peer does not have the right for this call.
    CallerForbidden = "CALLER_FORBIDDEN",
    /// The control belongs to another tenant.
    TenantMismatch = "TENANT_MISMATCH",
    /// The control was opened for another scope.
    ScopeMismatch = "SCOPE_MISMATCH",
    /// The control was opened for another device key.
    DeviceKeyMismatch = "DEVICE_KEY_MISMATCH",
    /// The control is unknown, expired or spent.
    ControlNotUsable = "CONTROL_NOT_USABLE",
    /// The card has no PIN.
    PinNotSet = "PIN_NOT_SET",
    /// The card is not registered.
    CardUnknown = "CARD_UNKNOWN",
    /// A stored PIN is bound to the account number of the card, so the account number cannot change.
    AccountBound = "ACCOUNT_BOUND",
    /// No tzpk was issued under the control.
    TzpkMissing = "TZPK_MISSING",
    /// The block is not ISO 9564 format 1 under the control's tzpk.
    PinBlockMalformed = "PIN_BLOCK_MALFORMED",
    /// The storage format or the boundary level of the PIN record does not allow ViewPin.
    PinNotShown = "PIN_NOT_SHOWN",
    /// The PIN breaks the PIN policy.
    PinRefused = "PIN_REFUSED",
    /// The card has reached the limit of controls within the hour.
    ControlCap = "CONTROL_CAP",
    /// The tenant has reached the limit of cards that were not registered and have no PIN.
    UnregisteredCards = "UNREGISTERED_CARDS",
    /// The tenant has reached the limit of calls within a second.
    TenantRate = "TENANT_RATE",
    /// The card has reached the limit of calls within a minute.
    CardRate = "CARD_RATE",
    /// The store has reached the limit of waiting changes.
    Busy = "BUSY",
    /// The token has reached the limit of waiting operations.
    TokenBusy = "TOKEN_BUSY",
    /// Another count of the records is running.
    Counting = "COUNTING",
    /// The engine, or the caller, has reached the limit of exports of the audit chain at a time.
    ExportsBusy = "EXPORTS_BUSY",
    /// The store is low on disk space: it opens no control, and finishes those that are open.
    StoreLowOnSpace = "STORE_LOW_ON_SPACE",
    /// The engine has not signed a checkpoint of the audit chain yet.
    CheckpointNotSigned = "CHECKPOINT_NOT_SIGNED",
    /// The store is not available.
    StoreUnavailable = "STORE_UNAVAILABLE",
    /// The deadline of the call passed. A change that had begun may still be committed.
    DeadlinePassed = "DEADLINE_PASSED",
    /// The call has no request message, or more than one.
    MessageCount = "MESSAGE_COUNT",
    /// The key boundary is not available.
    TokenUnavailable = "TOKEN_UNAVAILABLE",
    /// The engine stops before the rotation ends.
    RotationCutOff = "ROTATION_CUT_OFF",
    /// The engine stops while a call follows the audit chain.
    EngineStops = "ENGINE_STOPS",
    /// The connection reached its maximum age while the call streamed its answer.
    ConnectionAge = "CONNECTION_AGE",
    /// The key boundary failed; the engine's log has the cause.
    BoundaryFailed = "BOUNDARY_FAILED",
}

impl Reason {
    /// The reason with this text; `None` for the reason of another release.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == text)
    }
}
