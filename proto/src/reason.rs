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
    /// The name of the client of a page is not 1 to 128 visible characters.
    PageClientInvalid = "PAGE_CLIENT_INVALID",
    /// The pageId is not 16 bytes.
    PageIdInvalid = "PAGE_ID_INVALID",
    /// The scope is neither SET_PIN nor VIEW_PIN.
    ScopeInvalid = "SCOPE_INVALID",
    /// The device key, or its thumbprint, is malformed.
    DeviceKeyInvalid = "DEVICE_KEY_INVALID",
    /// The PIN block is not 8 bytes, or of ISO 9564 format 4 not 16.
    PinBlockLength = "PIN_BLOCK_LENGTH",
    /// The request names no zone, or the name, index, key version or format of a zone is out of range.
    ZoneInvalid = "ZONE_INVALID",
    /// The digits of a PIN to generate are not 4 to 12.
    DigitCountInvalid = "DIGIT_COUNT_INVALID",
    /// The request names no algorithm of verification values, or a parameter or the value of the algorithm is out of range.
    ValueMethodInvalid = "VALUE_METHOD_INVALID",
    /// The sealed account number is not 30 bytes of SealPan, was sealed for another card, or is missing for a card without a
    /// registered account number.
    SealedAccountInvalid = "SEALED_ACCOUNT_INVALID",
    /// The request has not both PIN blocks of a change.
    ChangeInvalid = "CHANGE_INVALID",
    /// An item of a stream does not have the number after the item before.
    ItemNumber = "ITEM_NUMBER",
    /// The metadata `pinseal-request-id` is not one UUID of 36 characters.
    RequestIdInvalid = "REQUEST_ID_INVALID",
    /// The network of a client is not an IP address.
    ClientNetworkInvalid = "CLIENT_NETWORK_INVALID",
    /// The `method` is not a method that this engine knows.
    MethodInvalid = "METHOD_INVALID",
    /// The certificate of the peer does not have the right for this call.
    CallerForbidden = "CALLER_FORBIDDEN",
    /// The control belongs to another tenant.
    TenantMismatch = "TENANT_MISMATCH",
    /// The control was opened for another scope.
    ScopeMismatch = "SCOPE_MISMATCH",
    /// The control was opened for another device key.
    DeviceKeyMismatch = "DEVICE_KEY_MISMATCH",
    /// The control is unknown, expired or spent, or another page's.
    ControlNotUsable = "CONTROL_NOT_USABLE",
    /// The card has no PIN.
    PinNotSet = "PIN_NOT_SET",
    /// The card is not registered.
    CardUnknown = "CARD_UNKNOWN",
    /// A stored PIN is bound to the account number of the card and cannot be re-encrypted, so the account number cannot change.
    AccountBound = "ACCOUNT_BOUND",
    /// No tzpk was issued under the control.
    TzpkMissing = "TZPK_MISSING",
    /// The PIN block is malformed: one reason for every block and every cause.
    PinBlockMalformed = "PIN_BLOCK_MALFORMED",
    /// The storage format or the boundary level of the PIN record does not allow the PIN to leave the store.
    PinNotShown = "PIN_NOT_SHOWN",
    /// The card has a stored PIN, so no verification value is compared.
    PinStored = "PIN_STORED",
    /// No try with this `reserved_try_count` was reserved.
    TryCountInvalid = "TRY_COUNT_INVALID",
    /// The card has no try left.
    PinLocked = "PIN_LOCKED",
    /// The block set a PIN of the card that another PIN has replaced.
    PinBlockReplaced = "PIN_BLOCK_REPLACED",
    /// Another request changed the card at the same time.
    CardChanged = "CARD_CHANGED",
    /// The operation needs an account number: the card has no registered one, and a plasticId of fewer than 12 digits.
    NoAccountNumber = "NO_ACCOUNT_NUMBER",
    /// The two cards of a transfer do not have the same registered account number.
    AccountMismatch = "ACCOUNT_MISMATCH",
    /// The tenant has no such zone, or the zone has no such key version.
    ZoneUnknown = "ZONE_UNKNOWN",
    /// The zone, its key or the translation does not allow this format.
    ZoneFormat = "ZONE_FORMAT",
    /// The configuration does not allow this use of the zone.
    ZoneUse = "ZONE_USE",
    /// The key inventory has no such verification key or decimalisation table.
    ValueKeyUnknown = "VALUE_KEY_UNKNOWN",
    /// The level of the key boundary does not support the operation.
    LevelUnsupported = "LEVEL_UNSUPPORTED",
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
    /// The caller has sent too many wrong PINs within a minute.
    WrongPinRate = "WRONG_PIN_RATE",
    /// The store has reached the limit of waiting changes.
    Busy = "BUSY",
    /// The token has reached the limit of waiting operations.
    TokenBusy = "TOKEN_BUSY",
    /// Another count of the records is running.
    Counting = "COUNTING",
    /// The engine, or the caller, has reached the limit of exports of the audit chain at a time.
    ExportsBusy = "EXPORTS_BUSY",
    /// The engine, or the caller, has reached the limit of streams at a time.
    StreamsBusy = "STREAMS_BUSY",
    /// The events from the requested number were archived and removed from the store.
    EventsArchived = "EVENTS_ARCHIVED",
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
    /// The engine stops while a call streams.
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
