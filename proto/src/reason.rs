//! Why the engine refuses a call: the reasons of `google.rpc.ErrorInfo`. The engine sends them, and the edge has an HTTP
//! answer for each.

/// The `domain` of every `google.rpc.ErrorInfo`.
pub const ERROR_DOMAIN: &str = "pinseal";

macro_rules! reasons {
    ($($(#[$doc:meta])+ $name:ident = $text:literal,)+) => {
        /// Why the engine refuses a call.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason {
            $($(#[$doc])+ $name,)+
        }

        impl Reason {
            /// Every reason.
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
    /// The tenant is not a tenant's name.
    TenantInvalid = "TENANT_INVALID",
    /// The auditUser is too long, or has characters that are not visible.
    AuditUserInvalid = "AUDIT_USER_INVALID",
    /// The plasticId is not 1 to 19 digits.
    PlasticIdInvalid = "PLASTIC_ID_INVALID",
    /// The account number is not an account number.
    AccountNumberInvalid = "ACCOUNT_NUMBER_INVALID",
    /// The controlId is not a UUID of 36 characters.
    ControlIdInvalid = "CONTROL_ID_INVALID",
    /// The scope is neither SET_PIN nor VIEW_PIN.
    ScopeInvalid = "SCOPE_INVALID",
    /// The device key, or its thumbprint, is malformed.
    DeviceKeyInvalid = "DEVICE_KEY_INVALID",
    /// The PIN block is not 8 bytes.
    PinBlockLength = "PIN_BLOCK_LENGTH",
    /// The peer's certificate does not give it this right.
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
    /// A PIN is bound to the account number that the card has.
    AccountBound = "ACCOUNT_BOUND",
    /// No tzpk was issued under the control.
    TzpkMissing = "TZPK_MISSING",
    /// The block is not ISO 9564 format 1 under the control's tzpk.
    PinBlockMalformed = "PIN_BLOCK_MALFORMED",
    /// The PIN is kept in a form that is not shown.
    PinNotShown = "PIN_NOT_SHOWN",
    /// The PIN breaks the PIN policy.
    PinRefused = "PIN_REFUSED",
    /// The card's cap of controls within the hour is reached.
    ControlCap = "CONTROL_CAP",
    /// The store's bound on waiting changes is reached.
    Busy = "BUSY",
    /// The token's bound on waiting operations is reached.
    TokenBusy = "TOKEN_BUSY",
    /// The records are being counted already.
    Counting = "COUNTING",
    /// The store is not available.
    StoreUnavailable = "STORE_UNAVAILABLE",
    /// The caller's deadline passed before the change was made.
    DeadlinePassed = "DEADLINE_PASSED",
    /// The key boundary is not available.
    TokenUnavailable = "TOKEN_UNAVAILABLE",
    /// The engine stops before a rotation is at its end.
    RotationCutOff = "ROTATION_CUT_OFF",
    /// The key boundary failed: the engine's log says why.
    BoundaryFailed = "BOUNDARY_FAILED",
}

impl Reason {
    /// The reason with this text; none for a text that this release does not know.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == text)
    }
}
