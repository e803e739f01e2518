//! What one card does, call after call: a plain specification, written to be read, that shares no code with `crates/domain`.
//!
//! - A card has one PIN. A new PIN closes the open controls that set a PIN, and so does a confirmed retry.
//! - A control is used once, until it expires. Only the newest tzpk counts.
//! - A try is reserved before the comparison and settled after. A right PIN forgives the tries up to its own, a reset up to the
//!   number that the operator saw.
//!
//! The specification does not know when exactly the store read its clock. A call takes effect within a [`Moment`], so near
//! the end of a control it may find the control usable or expired. What one call found, a later one finds too.

use std::collections::BTreeMap;
use std::fmt;

use crate::history::{
    Answer, BlockNumber, Content, ControlName, DeviceBlock, DeviceChange, End, Nanos, Operation, Purpose, Refusal,
    Setup, TestPin, TzpkNumber,
};

/// The PINs that break the policy and leave their control usable.
const REFUSED_PINS_MAX: u8 = 3;
/// A retry is confirmed for this long after the expiry of its control.
const RETRY_GRACE: Nanos = 300 * 1_000_000_000;
/// The blocks of zones that a card remembers: the newest and eight before it.
const ZONE_BLOCKS_MAX: usize = 9;
/// Holds the place of a block that no later call sends.
const FORGOTTEN_BLOCK: BlockNumber = BlockNumber(u64::MAX);

/// The time span in which a call takes effect.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Not earlier than this.
    pub earliest: Nanos,
    /// Not later than this.
    pub latest: Nanos,
}

/// What a card allows, from [`Setup`].
#[derive(Clone, Copy, Debug)]
pub struct CardLimits {
    tries: u64,
    lifetime: Nanos,
    tolerance: Nanos,
}

impl CardLimits {
    /// The limits of a run.
    pub fn new(setup: &Setup) -> Self {
        Self {
            tries: setup.tries_per_card.into(),
            lifetime: setup.control_lifetime_ms.saturating_mul(1_000_000),
            tolerance: setup.clock_tolerance_ms.saturating_mul(1_000_000),
        }
    }
}

/// The state of a card.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct CardSpec {
    pin: Option<TestPin>,
    set_by: SetBy,
    /// The blocks that set the PIN by a zone, newest first.
    zone_blocks: Vec<BlockNumber>,
    controls: BTreeMap<ControlName, Control>,
    /// The number of the last reserved try.
    reserved: u64,
    /// The tries up to this number are forgiven.
    forgiven: u64,
    /// The reserved tries that wait for their settlement, by the number of their call.
    waiting: BTreeMap<u64, Try>,
}

/// What set the PIN, as far as a repeated call depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
enum SetBy {
    #[default]
    NothingRepeatable,
    Control(ControlName, BlockNumber),
    Zone(BlockNumber),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Control {
    purpose: Purpose,
    /// The control expires at one moment between these two.
    expires: (Nanos, Nanos),
    /// A newer PIN closed the control.
    is_closed: bool,
    state: ControlState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum ControlState {
    Open,
    Keyed {
        tzpk: TzpkNumber,
        refused_pins: u8,
    },
    /// Spent, or found expired.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Try {
    number: u64,
    found: Found,
    /// No new PIN since the reservation.
    is_pin_unchanged: bool,
}

/// What the comparison of a try finds. The record is read with the reservation, so later PINs do not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Found {
    Right,
    Wrong,
    Malformed,
}

/// What a call does in one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The call ends with this answer.
    Answered(Answer),
    /// The call ends with this refusal.
    Refused(Refusal),
    /// A try is reserved; the call has a second step.
    Reserved,
    /// The try is settled without an answer: the client is gone, and the new PIN is not stored.
    SettledAlone,
}

/// The card after a step of a call, and what the step did.
pub struct Effect {
    /// The new state.
    pub card: CardSpec,
    /// What the step did.
    pub outcome: Outcome,
}

impl CardSpec {
    /// Everything that the next step of a call may do. `id` is the number of the call. `end` only names what the call made: the
    /// control or tzpk.
    pub fn effects(&self, id: u64, operation: &Operation, end: &End, at: Moment, limits: &CardLimits) -> Vec<Effect> {
        match operation {
            Operation::OpenControl { purpose } => self.open_control(*purpose, end, at, limits),
            Operation::IssueTzpk { control } => self.issue_tzpk(control, end, at),
            Operation::SetPin { control, block } => self.set_pin(control, block, at),
            Operation::ViewPin { control } => self.view_pin(control, at),
            Operation::SetPinByZone { block, pin } => self.set_pin_by_zone(*block, *pin),
            Operation::GetPinByZone => match self.pin {
                Some(pin) => vec![self.answers(Answer::PinShown { pin })],
                None => vec![self.refuses(Refusal::PinNotSet)],
            },
            Operation::VerifyPin { entered } => match self.waiting.get(&id) {
                None => self.reserve(id, &[self.compare(*entered)], limits),
                Some(&reserved) => vec![self.settle_verify(id, reserved, limits)],
            },
            Operation::ChangePin { device, old, new } => match self.waiting.get(&id) {
                None => self.reserve_change(id, device.as_ref(), *old, *new, at, limits),
                Some(&reserved) => self.settle_change(id, reserved, device.as_ref(), *new, at, limits),
            },
            Operation::ResetTries { up_to } => self.reset_tries(*up_to),
        }
    }

    fn open_control(&self, purpose: Purpose, end: &End, at: Moment, limits: &CardLimits) -> Vec<Effect> {
        let End::Answered(Answer::Opened { control }) = end else { return Vec::new() };
        let earliest = at.earliest.saturating_add(limits.lifetime).saturating_sub(limits.tolerance);
        let latest = at.latest.saturating_add(limits.lifetime).saturating_add(limits.tolerance);
        let opened = Control { purpose, expires: (earliest, latest), is_closed: false, state: ControlState::Open };
        let mut card = self.clone();
        card.controls.insert(control.clone(), opened);
        vec![card.into_answer(Answer::Opened { control: control.clone() })]
    }

    fn issue_tzpk(&self, name: &ControlName, end: &End, at: Moment) -> Vec<Effect> {
        self.use_control(name, Purpose::SetPin, at, |control| {
            if control.is_closed {
                return vec![self.refuses(Refusal::ControlNotUsable)];
            }
            let refused_pins = match control.state {
                ControlState::Keyed { refused_pins, .. } => refused_pins,
                _ => 0,
            };
            let tzpk = match end {
                End::Answered(Answer::Issued { tzpk }) => *tzpk,
                _ => TzpkNumber::UNKNOWN,
            };
            let card = self.with_control_state(name, ControlState::Keyed { tzpk, refused_pins });
            vec![card.into_answer(Answer::Issued { tzpk })]
        })
    }

    fn set_pin(&self, name: &ControlName, block: &DeviceBlock, at: Moment) -> Vec<Effect> {
        if self.set_by == SetBy::Control(name.clone(), block.number) {
            return self.confirm_retry(name, at);
        }
        self.use_control(name, Purpose::SetPin, at, |control| match control.state {
            ControlState::Over => Vec::new(),
            ControlState::Open if control.is_closed => {
                vec![self.refuses(Refusal::TzpkMissing), self.refuses(Refusal::ControlNotUsable)]
            }
            ControlState::Open => vec![self.refuses(Refusal::TzpkMissing)],
            ControlState::Keyed { .. } if control.is_closed => vec![self.refuses(Refusal::ControlNotUsable)],
            ControlState::Keyed { tzpk, .. } if tzpk != block.under => vec![self.malformed(name)],
            ControlState::Keyed { .. } => match block.content {
                Content::Malformed => vec![self.malformed(name)],
                Content::WeakPin => vec![self.refused_pin(name).into_answer(Answer::PinRefused)],
                Content::Pin(pin) => {
                    let card = self.with_control_state(name, ControlState::Over);
                    vec![card.with_pin(pin, SetBy::Control(name.clone(), block.number)).into_answer(Answer::PinSet)]
                }
            },
        })
    }

    /// The block has set the PIN that stands, under this control.
    fn confirm_retry(&self, name: &ControlName, at: Moment) -> Vec<Effect> {
        let Some(control) = self.controls.get(name) else { return Vec::new() };
        let mut effects = Vec::new();
        if at.earliest < control.expires.1.saturating_add(RETRY_GRACE) {
            effects.push(self.clone().with_controls_closed().into_answer(Answer::PinSet));
        }
        if at.latest >= control.expires.0.saturating_add(RETRY_GRACE) {
            effects.push(self.refuses(Refusal::ControlNotUsable));
        }
        effects
    }

    fn view_pin(&self, name: &ControlName, at: Moment) -> Vec<Effect> {
        self.use_control(name, Purpose::ViewPin, at, |_| match self.pin {
            None => vec![self.refuses(Refusal::PinNotSet)],
            Some(pin) => {
                vec![self.with_control_state(name, ControlState::Over).into_answer(Answer::PinShown { pin })]
            }
        })
    }

    fn set_pin_by_zone(&self, block: BlockNumber, pin: TestPin) -> Vec<Effect> {
        if self.set_by == SetBy::Zone(block) {
            return vec![self.answers(Answer::PinUnchanged)];
        }
        if self.zone_blocks.contains(&block) {
            return vec![self.refuses(Refusal::BlockReplaced)];
        }
        let mut card = self.clone().with_pin(pin, SetBy::Zone(block));
        card.zone_blocks.insert(0, block);
        card.zone_blocks.truncate(ZONE_BLOCKS_MAX);
        vec![card.into_answer(Answer::PinSet)]
    }

    fn reset_tries(&self, up_to: u64) -> Vec<Effect> {
        if self.reserved < up_to {
            return vec![self.refuses(Refusal::TryCountInvalid), self.refuses(Refusal::CardUnknown)];
        }
        let card = self.clone().with_forgiven(up_to);
        let used = card.used();
        let reset = card.into_answer(Answer::TriesReset { used });
        if self.pin.is_some() { vec![reset] } else { vec![reset, self.refuses(Refusal::CardUnknown)] }
    }

    fn compare(&self, entered: Content) -> Found {
        match entered {
            Content::Malformed => Found::Malformed,
            Content::Pin(pin) if self.pin == Some(pin) => Found::Right,
            Content::Pin(_) | Content::WeakPin => Found::Wrong,
        }
    }

    /// Reserves a try that finds one of these.
    fn reserve(&self, id: u64, finds: &[Found], limits: &CardLimits) -> Vec<Effect> {
        if self.pin.is_none() {
            return vec![self.refuses(Refusal::PinNotSet), self.refuses(Refusal::CardUnknown)];
        }
        if self.used() >= limits.tries {
            return vec![self.refuses(Refusal::PinLocked)];
        }
        let number = self.reserved.saturating_add(1);
        let reserved = |found: &Found| {
            let mut card = Self { reserved: number, ..self.clone() };
            card.waiting.insert(id, Try { number, found: *found, is_pin_unchanged: true });
            Effect { card, outcome: Outcome::Reserved }
        };
        finds.iter().map(reserved).collect()
    }

    /// The engine checks the control before it reserves a try, and the store when it settles the try.
    fn reserve_change(
        &self,
        id: u64,
        device: Option<&DeviceChange>,
        old: Content,
        new: Content,
        at: Moment,
        limits: &CardLimits,
    ) -> Vec<Effect> {
        let mut finds = match new {
            Content::Malformed if old == Content::Malformed => vec![Found::Malformed],
            // Which block is decrypted first is not specified.
            Content::Malformed => vec![Found::Malformed, self.compare(old)],
            _ => vec![self.compare(old)],
        };
        let mut effects = Vec::new();
        if let Some(DeviceChange { control: name, under }) = device {
            effects = self.use_control(name, Purpose::SetPin, at, |control| match control.state {
                ControlState::Open => vec![self.refuses(Refusal::TzpkMissing)],
                _ => Vec::new(),
            });
            let newest = self.controls.get(name).map(|control| control.state);
            if !matches!(newest, Some(ControlState::Keyed { tzpk, .. }) if tzpk == *under) {
                finds.push(Found::Malformed);
            }
        }
        effects.extend(self.reserve(id, &finds, limits));
        effects
    }

    fn settle_verify(&self, id: u64, reserved: Try, limits: &CardLimits) -> Effect {
        let (card, answer) = self.settled(id, reserved, limits);
        card.into_answer(answer)
    }

    fn settle_change(
        &self,
        id: u64,
        reserved: Try,
        device: Option<&DeviceChange>,
        new: Content,
        at: Moment,
        limits: &CardLimits,
    ) -> Vec<Effect> {
        let (card, answer) = self.settled(id, reserved, limits);
        // The control as the settlement finds it, if it allows the change.
        let usable = device.map(|DeviceChange { control: name, under }| {
            let control = self.controls.get(name);
            let is_keyed = matches!(control.map(|control| control.state),
                Some(ControlState::Keyed { tzpk, .. }) if tzpk == *under);
            let is_usable = control.is_some_and(|control| !control.is_closed && control.may_be_usable(at));
            (name, is_keyed && is_usable)
        });
        match reserved.found {
            Found::Wrong => vec![card.into_answer(answer)],
            Found::Malformed => {
                // The control is spent, unless another tzpk replaced the one under which the engine decrypted the blocks.
                let spent = device.map(|device| card.with_control_state(&device.control, ControlState::Over));
                let spent = spent.map(|card| card.into_answer(Answer::Malformed));
                [card.into_answer(Answer::Malformed)].into_iter().chain(spent).collect()
            }
            Found::Right => {
                // The old PIN is right and the new one is not stored: the try is settled as a verification.
                let alone = |outcome| Effect { card: card.clone(), outcome };
                let mut effects = vec![alone(Outcome::SettledAlone), alone(Outcome::Refused(Refusal::CardChanged))];
                if device.is_some() {
                    effects.push(alone(Outcome::Refused(Refusal::ControlNotUsable)));
                    effects.push(alone(Outcome::Refused(Refusal::TzpkMissing)));
                }
                match (new, usable) {
                    (Content::Pin(pin), None) if reserved.is_pin_unchanged => {
                        effects.push(card.clone().with_pin(pin, SetBy::NothingRepeatable).into_answer(answer));
                    }
                    (Content::Pin(pin), Some((name, true))) if reserved.is_pin_unchanged => {
                        let card = card.with_control_state(name, ControlState::Over);
                        effects.push(card.with_pin(pin, SetBy::NothingRepeatable).into_answer(answer));
                    }
                    (Content::WeakPin, Some((name, true))) => {
                        effects.push(card.refused_pin(name).into_answer(Answer::PinRefused));
                    }
                    (Content::WeakPin, _) => effects.push(card.clone().into_answer(Answer::PinRefused)),
                    _ => {}
                }
                effects
            }
        }
    }

    /// The card with a settled try, and the answer to a verification.
    fn settled(&self, id: u64, reserved: Try, limits: &CardLimits) -> (Self, Answer) {
        let mut card = self.clone();
        card.waiting.remove(&id);
        if reserved.found == Found::Right {
            card = card.with_forgiven(reserved.number);
        }
        let tries_left = u32::try_from(limits.tries.saturating_sub(card.used())).unwrap_or(u32::MAX);
        let answer = match reserved.found {
            Found::Right => Answer::Right { tries_left },
            Found::Wrong => Answer::Wrong { tries_left },
            Found::Malformed => Answer::Malformed,
        };
        (card, answer)
    }

    /// What a use of a control does: `usable` if it may still be usable, and a refusal if it may be expired.
    fn use_control(
        &self,
        name: &ControlName,
        purpose: Purpose,
        at: Moment,
        usable: impl FnOnce(&Control) -> Vec<Effect>,
    ) -> Vec<Effect> {
        let Some(control) = self.controls.get(name) else { return vec![self.refuses(Refusal::ControlNotUsable)] };
        if control.state == ControlState::Over {
            return vec![self.refuses(Refusal::ControlNotUsable)];
        }
        let mut effects = Vec::new();
        if at.latest >= control.expires.0 {
            let card = self.with_control_state(name, ControlState::Over);
            effects.push(Effect { card, outcome: Outcome::Refused(Refusal::ControlNotUsable) });
        }
        if control.may_be_usable(at) {
            if control.purpose == purpose {
                effects.extend(usable(control));
            } else {
                effects.push(self.refuses(Refusal::ScopeMismatch));
            }
        }
        effects
    }

    fn answers(&self, answer: Answer) -> Effect {
        self.clone().into_answer(answer)
    }

    fn refuses(&self, refusal: Refusal) -> Effect {
        Effect { card: self.clone(), outcome: Outcome::Refused(refusal) }
    }

    fn into_answer(self, answer: Answer) -> Effect {
        Effect { card: self, outcome: Outcome::Answered(answer) }
    }

    fn malformed(&self, name: &ControlName) -> Effect {
        self.with_control_state(name, ControlState::Over).into_answer(Answer::Malformed)
    }

    fn refused_pin(&self, name: &ControlName) -> Self {
        match self.controls.get(name).map(|control| control.state) {
            Some(ControlState::Keyed { tzpk, refused_pins }) if refused_pins < REFUSED_PINS_MAX => {
                let refused_pins = refused_pins.saturating_add(1);
                self.with_control_state(name, ControlState::Keyed { tzpk, refused_pins })
            }
            _ => self.with_control_state(name, ControlState::Over),
        }
    }

    fn with_control_state(&self, name: &ControlName, state: ControlState) -> Self {
        let mut card = self.clone();
        if let Some(control) = card.controls.get_mut(name) {
            control.state = state;
        }
        card
    }

    fn with_pin(self, pin: TestPin, set_by: SetBy) -> Self {
        Self { pin: Some(pin), set_by, ..self.with_controls_closed() }
    }

    fn with_controls_closed(mut self) -> Self {
        for control in self.controls.values_mut().filter(|control| control.purpose == Purpose::SetPin) {
            control.is_closed = true;
            // Which tzpk a closed control has does not matter. Whether the control has one does.
            if let ControlState::Keyed { tzpk, refused_pins } = &mut control.state {
                (*tzpk, *refused_pins) = (TzpkNumber::UNKNOWN, 0);
            }
        }
        for waiting in self.waiting.values_mut() {
            waiting.is_pin_unchanged = false;
        }
        self
    }

    fn with_forgiven(self, up_to: u64) -> Self {
        Self { forgiven: self.forgiven.max(up_to), ..self }
    }

    fn used(&self) -> u64 {
        self.reserved.saturating_sub(self.forgiven)
    }

    /// Whether the call is a retry of the block that set the PIN.
    pub fn would_confirm(&self, operation: &Operation) -> bool {
        matches!(operation, Operation::SetPin { control, block }
            if self.set_by == SetBy::Control(control.clone(), block.number))
    }

    /// Whether a call that uses a control, or resets tries, can change anything from `now` on.
    pub fn can_still_change(&self, operation: &Operation, now: Nanos) -> bool {
        if let Operation::ResetTries { up_to } = operation {
            return *up_to > self.forgiven;
        }
        let Some(name) = operation.control() else { return true };
        let Some(control) = self.controls.get(name) else { return false };
        if self.would_confirm(operation) {
            return now < control.expires.1.saturating_add(RETRY_GRACE);
        }
        control.state != ControlState::Over && !control.is_closed && now < control.expires.1
    }

    /// Whether a try of this call waits for its settlement.
    pub fn has_reserved(&self, id: u64) -> bool {
        self.waiting.contains_key(&id)
    }

    /// Whether the settlement of a call's try can change the card.
    pub fn can_settle(&self, id: u64, operation: &Operation) -> bool {
        self.waiting.get(&id).is_some_and(|waiting| {
            let forgives = waiting.found == Found::Right && waiting.number > self.forgiven;
            let changes = match operation {
                Operation::ChangePin { device: None, .. } => waiting.found == Found::Right && waiting.is_pin_unchanged,
                // A malformed block spends the control, and a weak PIN counts.
                Operation::ChangePin { device: Some(_), .. } => waiting.found != Found::Wrong,
                _ => false,
            };
            forgives || changes
        })
    }

    /// Drops a try that is never settled: it stays used.
    pub fn forget_try(&mut self, id: u64) {
        self.waiting.remove(&id);
    }

    /// Numbers the tries from the first one that is not forgiven, for a card whose tries no later call names by number.
    pub fn renumber_tries(&mut self) {
        for waiting in self.waiting.values_mut() {
            waiting.number = waiting.number.saturating_sub(self.forgiven);
        }
        self.reserved = self.used();
        self.forgiven = 0;
    }

    /// Drops what no later call names.
    pub fn forget(&mut self, is_named: impl Fn(&ControlName) -> bool, is_sent: impl Fn(BlockNumber) -> bool) {
        self.controls.retain(|name, _| is_named(name));
        for block in &mut self.zone_blocks {
            if !is_sent(*block) {
                *block = FORGOTTEN_BLOCK;
            }
        }
        while self.zone_blocks.last() == Some(&FORGOTTEN_BLOCK) {
            self.zone_blocks.pop();
        }
        let is_repeatable = match &self.set_by {
            SetBy::NothingRepeatable => false,
            SetBy::Control(name, _) => is_named(name),
            SetBy::Zone(block) => is_sent(*block),
        };
        if !is_repeatable {
            self.set_by = SetBy::NothingRepeatable;
        }
    }
}

impl Control {
    fn may_be_usable(&self, at: Moment) -> bool {
        at.earliest < self.expires.1
    }
}

impl fmt::Display for CardSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pin {
            Some(pin) => write!(f, "PIN {}", pin.0)?,
            None => write!(f, "no PIN")?,
        }
        write!(f, ", {} tries used of {} reserved", self.used(), self.reserved)?;
        for (name, control) in &self.controls {
            write!(f, ", control {} ", name.0)?;
            match control.state {
                ControlState::Over => write!(f, "spent or expired")?,
                _ if control.is_closed => write!(f, "closed by a newer PIN")?,
                ControlState::Open => write!(f, "open")?,
                ControlState::Keyed { tzpk: TzpkNumber::UNKNOWN, .. } => write!(f, "with a tzpk that no client has")?,
                ControlState::Keyed { tzpk, .. } => write!(f, "with tzpk {}", tzpk.0)?,
            }
        }
        Ok(())
    }
}
