//! The recorded calls, as types.
//!
//! PINs are recorded as numbers of test PINs, which are no secrets. A run with real PINs must never be recorded.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A moment: nanoseconds of the monotonic clock of the recording process, since the start of the run.
pub type Nanos = u64;

/// The number of a test PIN in the table of the harness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TestPin(pub u32);

impl TestPin {
    /// A PIN that was shown and is not in the table of the harness.
    pub const NOT_IN_TABLE: Self = Self(u32::MAX);
}

/// The controlId that OpenControl answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct ControlName(pub Arc<str>);

impl From<String> for ControlName {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<ControlName> for String {
    fn from(name: ControlName) -> Self {
        name.0.as_ref().into()
    }
}

/// The number that the harness gives an issued tzpk: [`Recorder::next_number`](crate::recorder::Recorder::next_number).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TzpkNumber(pub u64);

impl TzpkNumber {
    /// The tzpk of a call that its client gave up. No client can encrypt under this tzpk.
    pub const UNKNOWN: Self = Self(u64::MAX);
}

/// The number that the harness gives the bytes of a PIN block. The same bytes have the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockNumber(pub u64);

/// The content of a PIN block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// A PIN that the policy allows.
    Pin(TestPin),
    /// A PIN that breaks the policy.
    WeakPin,
    /// No PIN: the block is malformed under its key.
    Malformed,
}

/// A PIN block that a device encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DeviceBlock {
    /// Distinguishes the block from others. A retry has the number of the first call.
    pub number: BlockNumber,
    /// The tzpk that encrypts the block. A block under a tzpk that was replaced may decrypt to another PIN, in less than 1 % of
    /// the cases: after a given-up IssueTzpk the harness issues another before it sends a block.
    pub under: TzpkNumber,
    /// What the block holds.
    pub content: Content,
}

/// The use of a control.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// One PIN change.
    SetPin,
    /// One view of the PIN.
    ViewPin,
}

/// The control and the tzpk of a change by a device.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DeviceChange {
    /// A control to set a PIN.
    pub control: ControlName,
    /// The tzpk that encrypts both blocks.
    pub under: TzpkNumber,
}

/// A call about one card. The names are those of the gRPC methods.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// Opens a control.
    OpenControl {
        /// The purpose of the control.
        purpose: Purpose,
    },
    /// Issues a tzpk to the device of the control.
    IssueTzpk {
        /// The control.
        control: ControlName,
    },
    /// Sets the PIN under a control, or repeats a call that did.
    SetPin {
        /// The control.
        control: ControlName,
        /// The block of the device.
        block: DeviceBlock,
    },
    /// Shows the PIN under a control.
    ViewPin {
        /// The control.
        control: ControlName,
    },
    /// Sets the PIN by a block of a zone, or repeats a call that did.
    SetPinByZone {
        /// The number of the block.
        block: BlockNumber,
        /// The PIN of the block.
        pin: TestPin,
    },
    /// Returns the PIN to a zone. An `ExportPin` may be recorded as this call.
    GetPinByZone,
    /// Compares a PIN with the card's.
    VerifyPin {
        /// The block that is compared.
        entered: Content,
    },
    /// Compares the old PIN with the card's, and replaces it if it is right.
    ChangePin {
        /// `None` for blocks of a zone.
        device: Option<DeviceChange>,
        /// The block of the old PIN.
        old: Content,
        /// The block of the new PIN.
        new: Content,
    },
    /// Forgives the tries that the caller saw.
    ResetTries {
        /// The `reserved_try_count` that the caller saw.
        up_to: u64,
    },
}

impl Operation {
    /// The control that the call uses. OpenControl uses none.
    pub fn control(&self) -> Option<&ControlName> {
        match self {
            Self::IssueTzpk { control } | Self::SetPin { control, .. } | Self::ViewPin { control } => Some(control),
            Self::ChangePin { device, .. } => device.as_ref().map(|device| &device.control),
            _ => None,
        }
    }

    /// The PIN that the card has if the call succeeds, of a call that sets one.
    pub fn new_pin(&self) -> Option<TestPin> {
        match self {
            Self::SetPin { block: DeviceBlock { content: Content::Pin(pin), .. }, .. }
            | Self::SetPinByZone { pin, .. }
            | Self::ChangePin { new: Content::Pin(pin), .. } => Some(*pin),
            _ => None,
        }
    }

    /// Whether the call reserves a try.
    pub fn uses_try(&self) -> bool {
        matches!(self, Self::VerifyPin { .. } | Self::ChangePin { .. })
    }
}

/// A call of a client and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The number of the call in its run.
    pub id: u64,
    /// The number of the client, which calls one thing after another.
    pub client: u32,
    /// The name of the engine, or of the edge before it.
    pub engine: String,
    /// The plasticId. A history has the cards of one tenant.
    pub card: String,
    /// The call was sent at this moment or later.
    pub invoked_at: Nanos,
    /// The call ended for its client at this moment or earlier; `Nanos::MAX` for a call without a recorded end.
    pub ended_at: Nanos,
    /// What was called.
    pub operation: Operation,
    /// How the call ended for its client.
    pub end: End,
}

/// How a call ended for its client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The call was carried out.
    Answered(Answer),
    /// The call was refused: nothing was changed.
    Refused(Refusal),
    /// The client has no answer: the call may take effect, once, or never.
    GivenUp(GiveUp),
}

/// The answer to a call that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The answer to OpenControl.
    Opened {
        /// The controlId.
        control: ControlName,
    },
    /// The answer to IssueTzpk.
    Issued {
        /// The number that the harness gives this tzpk.
        tzpk: TzpkNumber,
    },
    /// The PIN is set: to SetPin, also to a retry, and to SetPinByZone.
    PinSet,
    /// The answer to SetPinByZone with `unchanged`: the block is the one that set the present PIN.
    PinUnchanged,
    /// The answer to ViewPin and GetPinByZone.
    PinShown {
        /// The PIN.
        pin: TestPin,
    },
    /// The PIN of VerifyPin is right, or ChangePin replaced it.
    Right {
        /// `remaining_try_count`.
        tries_left: u32,
    },
    /// The PIN of VerifyPin or ChangePin is wrong.
    Wrong {
        /// `remaining_try_count`.
        tries_left: u32,
    },
    /// The answer to ResetTries.
    TriesReset {
        /// `used_try_count`.
        used: u64,
    },
    /// PIN_BLOCK_MALFORMED: a control is spent, or a try is used.
    Malformed,
    /// PIN_REFUSED: the PIN breaks the policy, and the answer counts against its control.
    PinRefused,
}

/// Why a call was refused. Nothing was changed, except that ChangePin has compared the old PIN and found it right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// CONTROL_NOT_USABLE: the control is unknown, expired, spent, or closed by a newer PIN.
    ControlNotUsable,
    /// TZPK_MISSING: no tzpk was issued under the control.
    TzpkMissing,
    /// SCOPE_MISMATCH: the control has another purpose.
    ScopeMismatch,
    /// PIN_NOT_SET: the card has no PIN.
    PinNotSet,
    /// CARD_UNKNOWN: the card has no PIN and was never registered.
    CardUnknown,
    /// PIN_LOCKED: the card has no try left.
    PinLocked,
    /// PIN_BLOCK_REPLACED: a newer PIN replaced the one of this block.
    BlockReplaced,
    /// TRY_COUNT_INVALID: no try with this number was reserved.
    TryCountInvalid,
    /// CARD_CHANGED: other calls changed the card at the same time.
    CardChanged,
    /// A limit or the load of an engine, before the call did anything: TENANT_RATE, CARD_RATE, CONTROL_CAP,
    /// UNREGISTERED_CARDS, WRONG_PIN_RATE, BUSY, TOKEN_BUSY, STORE_LOW_ON_SPACE. Allowed at any time.
    TryLater,
}

/// Why the client has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GiveUp {
    /// The client's deadline passed: DEADLINE_EXCEEDED, or a timer of the client.
    DeadlinePassed,
    /// UNAVAILABLE, whatever its reason: the change may be in doubt.
    Unavailable,
    /// The connection to the engine broke.
    ConnectionLost,
    /// The task of the client ended before the call did.
    Cancelled,
    /// The recording has no end of the call: the run crashed.
    NotRecorded,
}

/// A fault that the harness caused. The checker does not use faults: they are printed and counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// When the harness caused the fault.
    pub at: Nanos,
    /// What it did.
    pub kind: FaultKind,
    /// The engine or database node.
    pub node: String,
}

/// The kind of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// An engine was killed.
    EngineKilled,
    /// An engine was stopped past its lease, and continued.
    EnginePaused,
    /// An engine was stopped past its lease, another process registered under its name, and the engine was continued.
    EngineDisplaced,
    /// The leader of the database was killed.
    LeaderKilled,
    /// The leader of the database was stopped, and continued.
    LeaderFrozen,
    /// The leader of the database was stopped for less than its time to live, and continued.
    LeaderStalled,
    /// The PostgreSQL of the leader was stopped, and continued; its Patroni ran on.
    PostgresStalled,
    /// The PostgreSQL of the leader was killed.
    PostgresKilled,
    /// An edge was killed.
    EdgeKilled,
    /// The database was stopped, and started again.
    DatabaseStopped,
}

/// What a run allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// The tries of a card.
    pub tries_per_card: u32,
    /// The lifetime of a control, in milliseconds.
    pub control_lifetime_ms: u64,
    /// How far the store's clock may be from an even run of the recorder's, in milliseconds. A control may be usable or
    /// expired within this time of its end.
    pub clock_tolerance_ms: u64,
    /// How long after its give-up a try, a reset or the confirmation of a retry may still take effect, in milliseconds: longer
    /// than a frozen database or engine may hold a call.
    pub late_effects_ms: u64,
}

/// The calls of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// What the run allows.
    pub setup: Setup,
    /// The calls, in the order of their invocation.
    pub calls: Vec<Call>,
    /// The faults, in the order of time.
    pub faults: Vec<Fault>,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to ", Seconds(self.invoked_at))?;
        match self.ended_at {
            Nanos::MAX => write!(f, "the end")?,
            at => write!(f, "{}", Seconds(at))?,
        }
        write!(f, ", client {} at engine {}: {}: {}", self.client, self.engine, self.operation, self.end)
    }
}

/// A moment or a time span as seconds with microseconds.
pub(crate) struct Seconds(pub(crate) Nanos);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06} s", self.0 / 1_000_000_000, self.0 % 1_000_000_000 / 1_000)
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pin(pin) => write!(f, "PIN {}", pin.0),
            Self::WeakPin => write!(f, "a weak PIN"),
            Self::Malformed => write!(f, "a malformed block"),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OpenControl { purpose: Purpose::SetPin } => write!(f, "OpenControl to set the PIN"),
            Self::OpenControl { purpose: Purpose::ViewPin } => write!(f, "OpenControl to view the PIN"),
            Self::IssueTzpk { control } => write!(f, "IssueTzpk under control {}", control.0),
            Self::SetPin { control, block: DeviceBlock { number, under, content } } => {
                write!(
                    f,
                    "SetPin under control {} with block {}, {content} under tzpk {}",
                    control.0, number.0, under.0
                )
            }
            Self::ViewPin { control } => write!(f, "ViewPin under control {}", control.0),
            Self::SetPinByZone { block, pin } => write!(f, "SetPinByZone with block {}, PIN {}", block.0, pin.0),
            Self::GetPinByZone => write!(f, "GetPinByZone"),
            Self::VerifyPin { entered } => write!(f, "VerifyPin with {entered}"),
            Self::ChangePin { device: None, old, new } => write!(f, "ChangePin by a zone from {old} to {new}"),
            Self::ChangePin { device: Some(DeviceChange { control, under }), old, new } => {
                write!(f, "ChangePin under control {} and tzpk {} from {old} to {new}", control.0, under.0)
            }
            Self::ResetTries { up_to } => write!(f, "ResetTries up to {up_to}"),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(Answer::Opened { control }) => write!(f, "opened control {}", control.0),
            Self::Answered(Answer::Issued { tzpk }) => write!(f, "issued tzpk {}", tzpk.0),
            Self::Answered(Answer::PinSet) => write!(f, "PIN set"),
            Self::Answered(Answer::PinUnchanged) => write!(f, "PIN unchanged"),
            Self::Answered(Answer::PinShown { pin }) => write!(f, "shown PIN {}", pin.0),
            Self::Answered(Answer::Right { tries_left }) => write!(f, "right, {tries_left} tries left"),
            Self::Answered(Answer::Wrong { tries_left }) => write!(f, "wrong, {tries_left} tries left"),
            Self::Answered(Answer::TriesReset { used }) => write!(f, "reset, {used} tries used"),
            Self::Answered(Answer::Malformed) => write!(f, "malformed"),
            Self::Answered(Answer::PinRefused) => write!(f, "PIN refused by the policy"),
            Self::Refused(refusal) => write!(f, "refused, {refusal:?}"),
            Self::GivenUp(reason) => write!(f, "given up, {reason:?}"),
        }
    }
}
