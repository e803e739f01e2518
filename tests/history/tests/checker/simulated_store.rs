//! A database with a standby, for tests: runs the rules of `domain` on the rows of cards, and breaks one of them on demand.
//!
//! A transaction runs at once on the primary and is acknowledged when the standby has its commit. A failover takes the
//! primary back to the state of the standby.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use domain::card::{CardKey, PlasticId, StoredPin, Tenant};
use domain::control::{
    Control, ControlId, ControlState, Denied, NewControl, RetryTag, Scope, SealedTzpk, Spent, Transition,
};
use domain::pin_rules;
use domain::rules::{self, Admission, CardState, FoundCard, PinOrigin, UnknownCards};
use domain::storage_key::{KeyWindow, RecordKey, StorageKeyKind};
use domain::time::UnixMillis;
use domain::tries::{ChangeVerdict, Compared, ReservedTry, Verdict};
use domain::zone_tags::ZoneTags;

/// A rule that the store or an engine breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    // Late effects.
    LateTzpk,
    LateZoneSet,
    DeadlineIgnored,
    RefusedThenSet,
    // Durability.
    AnsweredBeforeReplication,
    AcknowledgedUnwritten,
    ReencryptedOverNewer,
    StaleRead,
    // Controls.
    ControlUsedTwice,
    ControlViewedTwice,
    AnyGeneration,
    AnyTzpk,
    SetAfterExpiry,
    MalformedLeavesControl,
    RefusedPinsUnlimited,
    // Repeated calls.
    RetryAfterReplacement,
    RetryKeepsGeneration,
    ReplacedBlockSetsAgain,
    ChangeOverNewer,
    // Tries.
    OneTryMore,
    OneTryLess,
    WrongNotCounted,
    NewPinForgives,
    RightForgivesAll,
    ResetForgivesAll,
    RightAnsweredWrong,
    ChargedTwice,
}

/// The tries of a card.
pub(crate) const TRIES: u32 = 3;
/// The lifetime of a control.
pub(crate) const LIFETIME: Duration = Duration::from_secs(30);

/// The rows of one card.
#[derive(Clone, Default)]
pub(crate) struct Rows {
    pub(crate) card: Option<CardState>,
    pub(crate) pin: Option<StoredPin>,
    /// The record before the last one.
    pub(crate) previous: Option<StoredPin>,
    pub(crate) controls: BTreeMap<u64, Control>,
}

/// A transaction about one card.
#[derive(Clone)]
pub(crate) enum Transaction {
    Open { control: u64, scope: Scope },
    Advance { control: u64, transition: Transition },
    ConfirmRetry { control: u64, tag: RetryTag },
    SetByZone { tag: RetryTag, pin: StoredPin, generation: u64 },
    Give { shown: StoredPin },
    Reserve,
    Settle { number: u64, verdict: Verdict },
    SettleChange { control: Option<(u64, SealedTzpk)>, number: u64, verdict: ChangeVerdict },
    Reset { up_to: u64 },
}

/// What a transaction did.
#[derive(Clone)]
pub(crate) enum Done {
    Changed,
    Unchanged,
    Reserved(Box<ReservedTry>),
    Settled { tries_left: u32 },
    Reset { used: u64 },
}

pub(crate) struct Database {
    broken: Option<Broken>,
    pub(crate) primary: Rows,
    standby: Rows,
    /// The commits that the standby does not have, with the time at which it has them.
    waiting: VecDeque<(u64, Rows)>,
    /// Raised by a failover.
    pub(crate) epoch: u64,
    /// The clock of the primary is this far ahead, in milliseconds.
    pub(crate) skew: u64,
}

impl Database {
    pub(crate) fn new(broken: Option<Broken>) -> Self {
        let (primary, standby) = (Rows::default(), Rows::default());
        Self { broken, primary, standby, waiting: VecDeque::new(), epoch: 0, skew: 0 }
    }

    fn is(&self, broken: Broken) -> bool {
        self.broken == Some(broken)
    }

    /// The clock of the database.
    pub(crate) fn clock(&self, now: u64) -> UnixMillis {
        UnixMillis(1_800_000_000_000 + now / 1_000_000 + self.skew)
    }

    /// When the standby has everything that the primary has.
    pub(crate) fn replicated_at(&self, now: u64) -> u64 {
        self.waiting.back().map_or(now, |(at, _)| *at)
    }

    fn replicate(&mut self, now: u64) {
        while let Some((_, rows)) = self.waiting.pop_front_if(|(at, _)| *at <= now) {
            self.standby = rows;
        }
    }

    pub(crate) fn fail_over(&mut self, now: u64, skew: u64) {
        self.replicate(now);
        self.waiting.clear();
        self.primary = self.standby.clone();
        self.epoch += 1;
        self.skew = skew;
    }

    /// Runs a transaction. The standby has its commit `delay` later, and after the commits before it. `chance` decides between
    /// the ways in which a broken rule fails.
    pub(crate) fn run(&mut self, transaction: Transaction, now: u64, delay: u64, chance: bool) -> Result<Done, Denied> {
        self.replicate(now);
        let mut rows = self.primary.clone();
        let done = self.change(&mut rows, transaction, self.clock(now), chance)?;
        if rows.pin != self.primary.pin {
            rows.previous = self.primary.pin.clone();
        }
        let at = self.replicated_at(now).max(now + delay);
        self.waiting.push_back((at, rows.clone()));
        self.primary = rows;
        Ok(done)
    }

    fn change(&self, rows: &mut Rows, transaction: Transaction, now: UnixMillis, chance: bool) -> Result<Done, Denied> {
        let window = KeyWindow::default();
        match transaction {
            Transaction::Open { control, scope } => {
                let found = match rows.card.clone() {
                    None => FoundCard::Unregistered { state: None, of_tenant: 0 },
                    Some(card) => FoundCard::Known(card),
                };
                let forever = self.is(Broken::SetAfterExpiry) && scope == Scope::SetPin;
                let lifetime = if forever { LIFETIME * 1_000 } else { LIFETIME };
                let new = NewControl {
                    id: control_id(control),
                    card: card_key(),
                    scope,
                    lifetime,
                    device_key: None,
                    page_client: None,
                };
                let (card, opened) = rules::open(found, new, ADMISSION, now)?;
                rows.card = Some(card);
                rows.controls.insert(control, opened);
                Ok(Done::Changed)
            }
            Transaction::Advance { control, transition } => {
                self.advance(rows, control, transition, now, chance)?;
                Ok(Done::Changed)
            }
            Transaction::ConfirmRetry { control, tag } => {
                let control = rows.controls.get(&control).ok_or(Denied::NotUsable)?;
                let mut card = rows.card.clone().ok_or(Denied::NotUsable)?;
                if self.is(Broken::RetryAfterReplacement) {
                    card.set_by = Some(PinOrigin::Control(control.id));
                }
                let card = rules::confirm_retry(control, card, &tag, now)?;
                if !self.is(Broken::RetryKeepsGeneration) {
                    rows.card = Some(card);
                }
                Ok(Done::Changed)
            }
            Transaction::SetByZone { tag, pin, generation } => {
                let mut card = rows.card.clone();
                if card.as_ref().map_or(0, |card| card.generation) != generation && !self.is(Broken::LateZoneSet) {
                    return Err(Denied::Superseded);
                }
                if self.is(Broken::ReplacedBlockSetsAgain)
                    && let Some(card) = &mut card
                    && card.zone_tags.as_slice().last().is_some_and(|newest| !newest.matches(&tag))
                {
                    card.zone_tags = ZoneTags::default();
                }
                let found = match card {
                    None => FoundCard::Unregistered { state: None, of_tenant: 0 },
                    Some(card) => FoundCard::Known(card),
                };
                match pin_rules::set_by_zone(found, &pin, &tag, UnknownCards::Accept, &window)? {
                    None => Ok(Done::Unchanged),
                    Some(card) => {
                        self.store_pin(rows, card, pin, chance);
                        Ok(Done::Changed)
                    }
                }
            }
            Transaction::Give { shown } => {
                if !self.is(Broken::StaleRead) {
                    pin_rules::give(rows.pin.as_ref(), &shown.record)?;
                }
                Ok(Done::Changed)
            }
            Transaction::Reserve => {
                let limit = match self.broken {
                    Some(Broken::OneTryMore) => TRIES + 1,
                    Some(Broken::OneTryLess) => TRIES - 1,
                    _ => TRIES,
                };
                let (card, reserved) =
                    pin_rules::reserve_try(rows.card.clone(), rows.pin.clone(), Compared::Record, limit)?;
                rows.card = Some(card);
                Ok(Done::Reserved(Box::new(reserved)))
            }
            Transaction::Settle { number, verdict } => {
                let is_right = matches!(verdict, Verdict::Right { .. });
                let card = rows.card.clone().ok_or(Denied::TrySettled)?;
                let (card, _) = pin_rules::settle_try(card, rows.pin.clone(), number, verdict, &window)?;
                rows.card = Some(card);
                Ok(self.settled(rows, is_right))
            }
            Transaction::SettleChange { control, number, mut verdict } => {
                let card = rows.card.clone().ok_or(Denied::TrySettled)?;
                if self.is(Broken::ChangeOverNewer)
                    && let ChangeVerdict::Right { generation, .. } = &mut verdict
                {
                    *generation = card.generation;
                }
                let is_right = matches!(verdict, ChangeVerdict::Right { .. } | ChangeVerdict::RefusedPin);
                let number_of_control = control.as_ref().map(|(control, _)| *control);
                let control = match control {
                    None => None,
                    Some((control, under)) => {
                        Some((rows.controls.get(&control).cloned().ok_or(Denied::NotUsable)?, under))
                    }
                };
                let settled = pin_rules::settle_change(card, control, number, verdict, &window, now)?;
                match settled.pin {
                    Some(pin) => self.store_pin(rows, settled.card, pin, chance),
                    None => rows.card = Some(settled.card),
                }
                if let (Some(number), Some(control)) = (number_of_control, settled.control) {
                    rows.controls.insert(number, control);
                }
                Ok(self.settled(rows, is_right))
            }
            Transaction::Reset { up_to } => {
                let mut card = pin_rules::reset_tries(rows.card.clone(), up_to)?;
                if self.is(Broken::ResetForgivesAll) {
                    card.tries.tries.forgiven = card.tries.tries.reserved;
                }
                let used = card.tries.tries.used();
                rows.card = Some(card);
                Ok(Done::Reset { used })
            }
        }
    }

    fn settled(&self, rows: &mut Rows, is_right: bool) -> Done {
        let Some(card) = &mut rows.card else { return Done::Unchanged };
        let tries = &mut card.tries.tries;
        if is_right && self.is(Broken::RightForgivesAll) {
            tries.forgiven = tries.reserved;
        }
        if !is_right && self.is(Broken::WrongNotCounted) && tries.forgiven < tries.reserved {
            tries.forgiven += 1;
        }
        Done::Settled { tries_left: tries.left(TRIES) }
    }

    fn advance(
        &self,
        rows: &mut Rows,
        number: u64,
        mut transition: Transition,
        now: UnixMillis,
        chance: bool,
    ) -> Result<(), Denied> {
        let mut control = rows.controls.get(&number).cloned().ok_or(Denied::NotUsable)?;
        let card = rows.card.clone().ok_or(Denied::NotUsable)?;
        let newest = control.tzpk().ok().cloned();
        if self.is(Broken::AnyGeneration) {
            control.opened_generation = card.generation;
        }
        let mut pin = rows.pin.as_ref();
        match &mut transition {
            Transition::Key { replaces, .. } if self.is(Broken::LateTzpk) => *replaces = newest,
            Transition::Set { under, .. } if self.is(Broken::AnyTzpk) => *under = newest.ok_or(Denied::NotUsable)?,
            Transition::View { .. } if self.is(Broken::StaleRead) => pin = rows.previous.as_ref().or(pin),
            _ => {}
        }
        let stays = match transition {
            Transition::Set { .. } => self.is(Broken::ControlUsedTwice),
            Transition::View { .. } => self.is(Broken::ControlViewedTwice),
            Transition::Malformed { .. } => self.is(Broken::MalformedLeavesControl),
            Transition::RefusedPin { .. } => self.is(Broken::RefusedPinsUnlimited),
            Transition::Key { .. } => false,
        };
        // A view of a stale record is not compared.
        if self.is(Broken::StaleRead) && matches!(transition, Transition::View { .. }) {
            control.state = ControlState::Spent(Spent::Viewed);
            rows.controls.insert(number, control);
            return Ok(());
        }
        let advanced = rules::advance(control.clone(), card, pin, transition, &KeyWindow::default(), now)?;
        let mut next = if stays { control } else { advanced.control };
        if let Some((card, pin)) = advanced.set {
            if stays {
                next.opened_generation = card.generation;
            }
            self.store_pin(rows, card, pin, chance);
        }
        rows.controls.insert(number, next);
        Ok(())
    }

    fn store_pin(&self, rows: &mut Rows, mut card: CardState, pin: StoredPin, chance: bool) {
        if self.is(Broken::AcknowledgedUnwritten) && chance {
            return;
        }
        if self.is(Broken::NewPinForgives) {
            card.tries.tries.forgiven = card.tries.tries.reserved;
        }
        rows.card = Some(card);
        rows.pin = Some(pin);
    }

    /// Writes the record before the last one again, as a re-encryption without a comparison does.
    pub(crate) fn reencrypt_previous(&mut self, now: u64) {
        self.replicate(now);
        let mut rows = self.primary.clone();
        if rows.previous.is_some() {
            rows.pin = rows.previous.clone();
            self.waiting.push_back((self.replicated_at(now), rows.clone()));
            self.primary = rows;
        }
    }
}

const ADMISSION: Admission = Admission {
    controls_per_card_per_hour: 1_000_000,
    unknown_cards: UnknownCards::Accept,
    unregistered_cards_per_tenant: 1_000_000,
};

pub(crate) fn tenant() -> Tenant {
    Tenant::parse("bank").unwrap()
}

fn card_key() -> CardKey {
    CardKey { tenant: tenant(), plastic: PlasticId::parse("1").unwrap() }
}

fn control_id(number: u64) -> ControlId {
    ControlId::from_bytes(u128::from(number).to_be_bytes())
}

pub(crate) fn sealed_tzpk(number: u64) -> SealedTzpk {
    SealedTzpk(number.to_be_bytes().into())
}

pub(crate) fn tag(block: u64) -> RetryTag {
    RetryTag(u128::from(block).to_be_bytes())
}

pub(crate) fn record(pin: u32) -> StoredPin {
    let key = RecordKey { kind: StorageKeyKind::Iso4, version: 1 };
    StoredPin { record: pin.to_be_bytes().into(), key, account: None }
}

pub(crate) fn pin_of(stored: &StoredPin) -> u32 {
    u32::from_be_bytes(stored.record.as_ref().try_into().unwrap())
}
