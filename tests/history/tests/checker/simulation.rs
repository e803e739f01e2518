//! Clients and engines around the simulated store, in virtual time: everything follows from a seed.
//!
//! An engine reads, waits for the boundary, sends a transaction and answers after its commit is acknowledged. It drops a call
//! whose client is gone before each step. A transaction that was sent may hang, and run when its client and its engine are gone.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use domain::control::{Denied, Scope, SealedTzpk, Transition};
use domain::tries::{ChangeVerdict, ReservedTry, Verdict};
use history::history::{
    Answer, BlockNumber, Call, Content, ControlName, DeviceBlock, DeviceChange, End, Fault, FaultKind, GiveUp, History,
    Operation, Purpose, Refusal, Setup, TestPin, TzpkNumber,
};

use crate::simulated_store::{
    Broken, Database, Done, LIFETIME, TRIES, Transaction, pin_of, record, sealed_tzpk, tag, tenant,
};

const MILLISECOND: u64 = 1_000_000;
const DEADLINE: u64 = 300 * MILLISECOND;
const SKEW_MS_MAX: u64 = 40;
const CLIENTS: u32 = 3;
/// The client of the calls after the last fault.
const LAST_CLIENT: u32 = 99;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn milliseconds(&mut self, from: u64, to: u64) -> u64 {
        (from * 1_000 + self.below((to - from) * 1_000)) * 1_000
    }

    /// One of the last three.
    fn recent<T: Clone>(&mut self, items: &[T]) -> Option<T> {
        let back = self.below(3) as usize;
        items.iter().rev().nth(back).or(items.last()).cloned()
    }
}

enum Event {
    ClientActs(u32),
    DeadlinePasses(usize),
    EngineBegins(usize),
    EngineSends(usize, Transaction),
    Runs(usize, Transaction, u64),
    Acknowledged(usize, Result<Done, Denied>, u64),
    Failover,
    EngineCrash(u8),
    Reencryption,
}

/// A call in the engine.
struct Running {
    record: Call,
    engine: u8,
    /// The client has an end of the call.
    is_ended: bool,
    /// The engine does not work at the call any more.
    is_dropped: bool,
    reserved: Option<ReservedTry>,
    verdict: Option<ChangeVerdict>,
    /// The answer once the try is settled as a verification.
    instead: Option<Refusal>,
    shown: Option<u32>,
    /// The answer of the transaction of SetPin.
    set_answer: Option<Answer>,
    /// The tzpk under which the engine decrypts the blocks of ChangePin.
    tzpk: Option<SealedTzpk>,
    denials: u8,
}

/// What the clients know about the card.
#[derive(Default)]
struct Known {
    /// The controls to set a PIN, each with the tzpks that were answered.
    set_controls: Vec<(u64, Vec<u64>)>,
    view_controls: Vec<u64>,
    sent: Vec<(u64, DeviceBlock)>,
    zone_blocks: Vec<(u64, u32)>,
    pins: Vec<u32>,
}

pub(crate) struct Simulation {
    broken: Option<Broken>,
    random: Random,
    now: u64,
    sequence: u64,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    events: std::collections::HashMap<u64, Event>,
    database: Database,
    calls: Vec<Running>,
    known: Known,
    number: u64,
    calls_left: Vec<u32>,
    /// The next call of each client, where the call before leads to one.
    planned: Vec<Option<Operation>>,
    faults: Vec<Fault>,
    hang_percent: u64,
}

pub(crate) fn setup() -> Setup {
    Setup {
        tries_per_card: TRIES,
        control_lifetime_ms: LIFETIME.as_millis() as u64,
        clock_tolerance_ms: 2 * SKEW_MS_MAX,
        late_effects_ms: 2_000,
    }
}

fn name(control: u64) -> ControlName {
    ControlName(format!("c{control}").into())
}

fn number(name: &ControlName) -> u64 {
    name.0[1..].parse().unwrap()
}

/// Plays one run of a store that breaks a rule, or none.
pub(crate) fn play(seed: u64, broken: Option<Broken>) -> History {
    play_calls(seed, broken, 16, 3)
}

/// Plays a run in which each client makes this many calls about the card. Each step of a call hangs with `hang_percent`, and
/// each transaction is cut off with `hang_percent`.
pub(crate) fn play_calls(seed: u64, broken: Option<Broken>, calls_per_client: u32, hang_percent: u64) -> History {
    let mut simulation = Simulation {
        broken,
        random: Random(seed),
        now: 0,
        sequence: 0,
        queue: BinaryHeap::new(),
        events: std::collections::HashMap::new(),
        database: Database::new(broken),
        calls: Vec::new(),
        known: Known::default(),
        number: 0,
        calls_left: vec![calls_per_client; CLIENTS as usize],
        planned: vec![None; CLIENTS as usize],
        faults: Vec::new(),
        hang_percent,
    };
    for client in 0..CLIENTS {
        let at = simulation.random.milliseconds(0, 20);
        simulation.after(at, Event::ClientActs(client));
    }
    for _ in 0..simulation.random.below(3) {
        let at = simulation.random.milliseconds(100, 2_000);
        simulation.after(at, Event::Failover);
    }
    for _ in 0..simulation.random.below(3) {
        let at = simulation.random.milliseconds(100, 2_000);
        let engine = simulation.random.below(2) as u8;
        simulation.after(at, Event::EngineCrash(engine));
    }
    simulation.run();
    simulation.hang_percent = 0;
    simulation.now += 10_000 * MILLISECOND;
    simulation.verify_at_the_end();
    let mut calls: Vec<Call> = simulation.calls.into_iter().map(|call| call.record).collect();
    calls.sort_by_key(|call| (call.invoked_at, call.id));
    History { setup: setup(), calls, faults: simulation.faults }
}

impl Simulation {
    fn is(&self, broken: Broken) -> bool {
        self.broken == Some(broken)
    }

    fn after(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((self.now + delay, self.sequence)));
        self.events.insert(self.sequence, event);
    }

    fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    fn run(&mut self) {
        while let Some(Reverse((at, sequence))) = self.queue.pop() {
            self.now = at;
            match self.events.remove(&sequence).unwrap() {
                Event::ClientActs(client) => self.act(client),
                Event::DeadlinePasses(call) => self.end(call, End::GivenUp(GiveUp::DeadlinePassed)),
                Event::EngineBegins(call) => self.begin(call),
                Event::EngineSends(call, transaction) => self.send(call, transaction),
                Event::Runs(call, transaction, epoch) => self.run_transaction(call, transaction, epoch),
                Event::Acknowledged(call, result, epoch) => self.acknowledged(call, result, epoch),
                Event::Failover => {
                    let skew = self.random.below(SKEW_MS_MAX);
                    self.database.fail_over(self.now, skew);
                    self.faults.push(Fault { at: self.now, kind: FaultKind::LeaderKilled, node: "leader".into() });
                }
                Event::EngineCrash(engine) => self.crash(engine),
                Event::Reencryption => self.database.reencrypt_previous(self.now),
            }
        }
    }

    fn crash(&mut self, engine: u8) {
        self.faults.push(Fault { at: self.now, kind: FaultKind::EngineKilled, node: engine.to_string() });
        for call in 0..self.calls.len() {
            if self.calls[call].engine == engine && !self.calls[call].is_dropped {
                self.calls[call].is_dropped = true;
                self.end(call, End::GivenUp(GiveUp::ConnectionLost));
            }
        }
    }

    // The clients.

    fn act(&mut self, client: u32) {
        let left = &mut self.calls_left[client as usize];
        if *left == 0 {
            return;
        }
        *left -= 1;
        let planned = self.planned[client as usize].take().filter(|_| self.random.percent(60));
        let operation = planned.unwrap_or_else(|| self.choose());
        self.call(client, operation);
    }

    fn call(&mut self, client: u32, operation: Operation) {
        let id = self.next_number();
        let engine = self.random.below(2) as u8;
        let end = End::GivenUp(GiveUp::NotRecorded);
        let record = Call {
            id,
            client,
            engine: engine.to_string(),
            card: "1".into(),
            invoked_at: self.now,
            ended_at: u64::MAX,
            operation,
            end,
        };
        let call = self.calls.len();
        self.calls.push(Running {
            record,
            engine,
            is_ended: false,
            is_dropped: false,
            reserved: None,
            verdict: None,
            instead: None,
            shown: None,
            set_answer: None,
            tzpk: None,
            denials: 0,
        });
        let sleeps = self.random.percent(self.hang_percent);
        let delay = if sleeps { self.random.milliseconds(100, 900) } else { self.random.milliseconds(0, 3) };
        self.after(delay, Event::EngineBegins(call));
        if client != LAST_CLIENT {
            self.after(DEADLINE, Event::DeadlinePasses(call));
        }
    }

    fn choose(&mut self) -> Operation {
        loop {
            if let Some(operation) = self.try_to_choose() {
                return operation;
            }
        }
    }

    fn try_to_choose(&mut self) -> Option<Operation> {
        let operation = match self.random.below(100) {
            0..12 => Operation::OpenControl { purpose: Purpose::SetPin },
            12..18 => Operation::OpenControl { purpose: Purpose::ViewPin },
            18..32 => {
                let (control, _) = self.random.recent(&self.known.set_controls)?;
                Operation::IssueTzpk { control: name(control) }
            }
            32..50 => {
                let (control, tzpks) = self.random.recent(&self.known.set_controls)?;
                let newest = match tzpks.last() {
                    None if self.random.percent(80) => return None,
                    newest => newest.copied().unwrap_or(0),
                };
                let under = if self.random.percent(8) { tzpks.first().copied().unwrap_or(0) } else { newest };
                let content = match self.random.below(100) {
                    0..10 => Content::WeakPin,
                    10..16 => Content::Malformed,
                    _ => Content::Pin(TestPin(self.new_pin())),
                };
                let block = DeviceBlock { number: BlockNumber(self.next_number()), under: TzpkNumber(under), content };
                self.known.sent.push((control, block));
                Operation::SetPin { control: name(control), block }
            }
            50..58 => {
                let (control, block) = self.random.recent(&self.known.sent)?;
                Operation::SetPin { control: name(control), block }
            }
            58..64 => Operation::ViewPin { control: name(self.random.recent(&self.known.view_controls)?) },
            // A control of the other purpose.
            64 => match self.random.percent(50) {
                true => Operation::ViewPin { control: name(self.random.recent(&self.known.set_controls)?.0) },
                false => Operation::IssueTzpk { control: name(self.random.recent(&self.known.view_controls)?) },
            },
            65..68 => {
                let (block, pin) = (self.next_number(), self.new_pin());
                self.known.zone_blocks.push((block, pin));
                Operation::SetPinByZone { block: BlockNumber(block), pin: TestPin(pin) }
            }
            68..71 => {
                let (block, pin) = self.random.recent(&self.known.zone_blocks)?;
                Operation::SetPinByZone { block: BlockNumber(block), pin: TestPin(pin) }
            }
            71..76 => Operation::GetPinByZone,
            76..90 => Operation::VerifyPin { entered: self.entered()? },
            90..96 => {
                let old = self.entered()?;
                let new =
                    if self.random.percent(90) { Content::Pin(TestPin(self.new_pin())) } else { Content::WeakPin };
                let device = match self.random.recent(&self.known.set_controls) {
                    Some((control, tzpks)) if self.random.percent(40) => {
                        tzpks.last().map(|tzpk| DeviceChange { control: name(control), under: TzpkNumber(*tzpk) })
                    }
                    _ => None,
                };
                Operation::ChangePin { device, old, new }
            }
            // A number that an operator saw before, or that no operator saw.
            96..99 => {
                let seen = self.database.primary.card.as_ref().map_or(0, |card| card.tries.tries.reserved);
                Operation::ResetTries { up_to: (seen + 1).saturating_sub(self.random.below(4)) }
            }
            _ => {
                let control = DeviceChange {
                    control: name(self.random.recent(&self.known.set_controls)?.0),
                    under: TzpkNumber(0),
                };
                Operation::ChangePin { device: Some(control), old: self.entered()?, new: Content::WeakPin }
            }
        };
        Some(operation)
    }

    fn new_pin(&mut self) -> u32 {
        let pin = self.next_number() as u32;
        self.known.pins.push(pin);
        pin
    }

    fn entered(&mut self) -> Option<Content> {
        Some(match self.random.below(100) {
            0..60 => Content::Pin(TestPin(self.database.primary.pin.as_ref().map(pin_of)?)),
            60..80 => Content::Pin(TestPin(self.random.recent(&self.known.pins)?)),
            80..95 => Content::Pin(TestPin(0)),
            _ => Content::Malformed,
        })
    }

    fn verify_at_the_end(&mut self) {
        self.call(LAST_CLIENT, Operation::GetPinByZone);
        self.run();
        let pins = self.known.pins.clone();
        let shown = match self.calls.last().map(|call| &call.record.end) {
            Some(End::Answered(Answer::PinShown { pin })) => Some(*pin),
            _ => None,
        };
        if let Some(pin) = shown.or(pins.last().copied().map(TestPin)) {
            for _ in 0..2 {
                self.call(LAST_CLIENT, Operation::VerifyPin { entered: Content::Pin(pin) });
                self.run();
            }
            for _ in 0..=TRIES {
                self.call(LAST_CLIENT, Operation::VerifyPin { entered: Content::Pin(TestPin(0)) });
                self.run();
            }
        }
    }

    /// The client of the call has its end, and goes on.
    fn end(&mut self, call: usize, end: End) {
        let running = &mut self.calls[call];
        if running.is_ended {
            return;
        }
        running.is_ended = true;
        running.record.ended_at = self.now;
        running.record.end = end.clone();
        if let End::Answered(answer) = end {
            match (&running.record.operation, answer) {
                (Operation::OpenControl { purpose: Purpose::SetPin }, Answer::Opened { control }) => {
                    self.known.set_controls.push((number(&control), Vec::new()));
                }
                (Operation::OpenControl { purpose: Purpose::ViewPin }, Answer::Opened { control }) => {
                    self.known.view_controls.push(number(&control));
                }
                (Operation::IssueTzpk { control }, Answer::Issued { tzpk }) => {
                    let control = number(control);
                    let known = self.known.set_controls.iter_mut().find(|(known, _)| *known == control);
                    known.unwrap().1.push(tzpk.0);
                }
                _ => {}
            }
        }
        let client = self.calls[call].record.client;
        if client == LAST_CLIENT {
            return;
        }
        self.planned[client as usize] = self.next_in_flow(call);
        let pause = match self.random.below(100) {
            0..3 => LIFETIME.as_nanos() as u64 + self.random.milliseconds(0, 300) - 150 * MILLISECOND,
            3..10 => self.random.milliseconds(50, 400),
            _ => self.random.milliseconds(0, 10),
        };
        self.after(pause, Event::ClientActs(client));
    }

    /// What a phone does after the call.
    fn next_in_flow(&mut self, call: usize) -> Option<Operation> {
        let Call { operation, end, .. } = self.calls[call].record.clone();
        match (operation, end) {
            (Operation::OpenControl { purpose }, End::Answered(Answer::Opened { control })) => Some(match purpose {
                Purpose::SetPin => Operation::IssueTzpk { control },
                Purpose::ViewPin => Operation::ViewPin { control },
            }),
            (Operation::IssueTzpk { control }, End::Answered(Answer::Issued { tzpk })) => {
                let content = Content::Pin(TestPin(self.new_pin()));
                let block = DeviceBlock { number: BlockNumber(self.next_number()), under: tzpk, content };
                self.known.sent.push((number(&control), block));
                Some(Operation::SetPin { control, block })
            }
            (Operation::SetPin { control, block }, End::Answered(Answer::PinRefused)) => {
                let block = DeviceBlock { number: BlockNumber(self.next_number()), ..block };
                Some(Operation::SetPin { control, block })
            }
            (again @ (Operation::IssueTzpk { .. } | Operation::SetPin { .. }), End::GivenUp(_)) => Some(again),
            (Operation::SetPinByZone { .. }, End::GivenUp(_)) => {
                let (block, pin) = (self.next_number(), self.new_pin());
                self.known.zone_blocks.push((block, pin));
                Some(Operation::SetPinByZone { block: BlockNumber(block), pin: TestPin(pin) })
            }
            _ => None,
        }
    }

    // The engines.

    fn finish(&mut self, call: usize, end: End) {
        self.calls[call].is_dropped = true;
        self.end(call, end);
    }

    fn is_gone(&self, call: usize) -> bool {
        self.calls[call].is_ended && !self.is(Broken::DeadlineIgnored)
    }

    fn begin(&mut self, call: usize) {
        if self.calls[call].is_dropped || self.is_gone(call) {
            return;
        }
        match self.plan(call) {
            Ok(transaction) => {
                let delay = self.random.milliseconds(1, 8);
                self.after(delay, Event::EngineSends(call, transaction));
            }
            // What was read may be lost by a failover: the refusal waits for the standby.
            Err(denied) => self.acknowledge(call, Err(denied)),
        }
    }

    /// Reads what the call needs, and makes the first transaction of it.
    fn plan(&mut self, call: usize) -> Result<Transaction, Denied> {
        let now = self.database.clock(self.now);
        let rows = &self.database.primary;
        let control = |name: &ControlName| rows.controls.get(&number(name)).ok_or(Denied::NotUsable);
        match self.calls[call].record.operation.clone() {
            Operation::OpenControl { purpose } => {
                let scope = if purpose == Purpose::SetPin { Scope::SetPin } else { Scope::ViewPin };
                Ok(Transaction::Open { control: self.next_number(), scope })
            }
            Operation::IssueTzpk { control: name } => {
                let control = control(&name)?;
                control.admit(&tenant(), Scope::SetPin, now)?;
                let replaces = control.tzpk().ok().cloned();
                let tzpk = sealed_tzpk(self.next_number());
                Ok(Transaction::Advance { control: number(&name), transition: Transition::Key { tzpk, replaces } })
            }
            Operation::SetPin { control: name, block } => {
                let (found, retry) = (control(&name)?, tag(block.number.0));
                if found.set_by(&tenant(), now).is_some_and(|set_by| set_by.matches(&retry)) {
                    self.calls[call].set_answer = Some(Answer::PinSet);
                    return Ok(Transaction::ConfirmRetry { control: number(&name), tag: retry });
                }
                found.admit(&tenant(), Scope::SetPin, now)?;
                let under = found.tzpk()?.clone();
                let decrypts = under == sealed_tzpk(block.under.0) || self.is(Broken::AnyTzpk);
                let (transition, answer) = match block.content {
                    Content::Pin(pin) if decrypts => {
                        (Transition::Set { under, retry, pin: record(pin.0) }, Answer::PinSet)
                    }
                    Content::WeakPin if decrypts => (Transition::RefusedPin { under }, Answer::PinRefused),
                    _ => (Transition::Malformed { under }, Answer::Malformed),
                };
                self.calls[call].set_answer = Some(answer);
                Ok(Transaction::Advance { control: number(&name), transition })
            }
            Operation::ViewPin { control: name } => {
                control(&name)?.admit(&tenant(), Scope::ViewPin, now)?;
                let shown = self.read_pin(call)?;
                let transition = Transition::View { shown: shown.record };
                Ok(Transaction::Advance { control: number(&name), transition })
            }
            Operation::SetPinByZone { block, pin } => {
                let generation = rows.card.as_ref().map_or(0, |card| card.generation);
                Ok(Transaction::SetByZone { tag: tag(block.0), pin: record(pin.0), generation })
            }
            Operation::GetPinByZone => Ok(Transaction::Give { shown: self.read_pin(call)? }),
            Operation::VerifyPin { .. } | Operation::ChangePin { device: None, .. } => Ok(Transaction::Reserve),
            Operation::ChangePin { device: Some(DeviceChange { control: name, .. }), .. } => {
                let control = control(&name)?;
                control.admit(&tenant(), Scope::SetPin, now)?;
                let tzpk = control.tzpk()?.clone();
                self.calls[call].tzpk = Some(tzpk);
                Ok(Transaction::Reserve)
            }
            Operation::ResetTries { up_to } => Ok(Transaction::Reset { up_to }),
        }
    }

    fn read_pin(&mut self, call: usize) -> Result<domain::card::StoredPin, Denied> {
        let rows = &self.database.primary;
        let newest = rows.pin.clone().ok_or(Denied::PinNotSet)?;
        let is_stale = self.is(Broken::StaleRead) && self.random.percent(50);
        let stale = self.database.primary.previous.clone().filter(|_| is_stale);
        let shown = stale.unwrap_or(newest);
        self.calls[call].shown = Some(pin_of(&shown));
        Ok(shown)
    }

    fn send(&mut self, call: usize, mut transaction: Transaction) {
        if self.calls[call].is_dropped {
            return;
        }
        if self.is_gone(call) {
            // A try is settled although its client is gone; the PIN does not change any more.
            match transaction {
                Transaction::Settle { .. } => {}
                Transaction::SettleChange { number, verdict: ChangeVerdict::Right { .. }, .. } => {
                    transaction = Transaction::Settle { number, verdict: Verdict::Right { moved: None } };
                }
                Transaction::SettleChange { .. } => {}
                _ => {
                    self.calls[call].is_dropped = true;
                    return;
                }
            }
        }
        let epoch = self.database.epoch;
        let is_cut = self.random.percent(self.hang_percent);
        let hangs = is_cut || self.random.percent(self.hang_percent);
        let delay = if hangs { self.random.milliseconds(50, 900) } else { self.random.milliseconds(1, 5) };
        if !is_cut {
            self.after(delay, Event::Runs(call, transaction, epoch));
            return;
        }
        // The connection breaks: the transaction runs later, or never.
        let runs_late = self.random.percent(60);
        if self.is(Broken::ChargedTwice) && matches!(transaction, Transaction::Reserve) {
            self.after(1, Event::Runs(call, transaction.clone(), epoch));
            self.after(MILLISECOND, Event::Runs(call, transaction, epoch));
            return;
        }
        let is_set = matches!(&transaction, Transaction::Advance { transition: Transition::Set { .. }, .. });
        let end = if self.is(Broken::RefusedThenSet) && is_set {
            End::Refused(Refusal::ControlNotUsable)
        } else if self.is(Broken::RightAnsweredWrong)
            && matches!(transaction, Transaction::Settle { verdict: Verdict::Right { .. }, .. })
        {
            let tries = self.database.primary.card.as_ref().map_or(0, |card| card.tries.tries.left(TRIES));
            End::Answered(Answer::Wrong { tries_left: tries })
        } else {
            End::GivenUp(GiveUp::Unavailable)
        };
        if runs_late {
            self.after(delay, Event::Runs(call, transaction, epoch));
        }
        self.finish(call, end);
    }

    fn run_transaction(&mut self, call: usize, transaction: Transaction, epoch: u64) {
        if epoch != self.database.epoch {
            return self.finish(call, End::GivenUp(GiveUp::Unavailable));
        }
        let (delay, chance) = (self.random.milliseconds(1, 30), self.random.percent(25));
        // A standby that is far behind.
        let delay = if self.random.percent(self.hang_percent) { delay * 20 } else { delay };
        if let Transaction::Advance { transition: Transition::Key { tzpk, .. }, .. } = &transaction {
            self.calls[call].shown = Some(u64::from_be_bytes(tzpk.0.as_ref().try_into().unwrap()) as u32);
        }
        if let Transaction::Open { control, .. } = &transaction {
            self.calls[call].shown = Some(*control as u32);
        }
        let result = self.database.run(transaction, self.now, delay, chance);
        if self.is(Broken::ReencryptedOverNewer) && result.is_ok() && self.random.percent(5) {
            let later = self.random.milliseconds(5, 50);
            self.after(later, Event::Reencryption);
        }
        self.acknowledge(call, result);
    }

    /// Waits until the standby has everything that the result depends on.
    fn acknowledge(&mut self, call: usize, result: Result<Done, Denied>) {
        let epoch = self.database.epoch;
        let at = self.database.replicated_at(self.now).max(self.now);
        let at = if self.is(Broken::AnsweredBeforeReplication) { self.now } else { at };
        self.after(at - self.now + MILLISECOND / 2, Event::Acknowledged(call, result, epoch));
    }

    fn acknowledged(&mut self, call: usize, result: Result<Done, Denied>, epoch: u64) {
        if self.calls[call].is_dropped {
            return;
        }
        if epoch != self.database.epoch && !self.is(Broken::AnsweredBeforeReplication) {
            return self.finish(call, End::GivenUp(GiveUp::Unavailable));
        }
        match result {
            Ok(done) => self.done(call, done),
            Err(denied) => self.denied(call, denied),
        }
    }

    fn denied(&mut self, call: usize, denied: Denied) {
        let operation = self.calls[call].record.operation.clone();
        let refusal = match denied {
            Denied::NotUsable => Refusal::ControlNotUsable,
            Denied::NoTzpk => Refusal::TzpkMissing,
            Denied::OtherScope => Refusal::ScopeMismatch,
            Denied::PinNotSet => Refusal::PinNotSet,
            Denied::CardUnknown => Refusal::CardUnknown,
            Denied::PinLocked => Refusal::PinLocked,
            Denied::ReplacedBlock => Refusal::BlockReplaced,
            Denied::TryUnknown => Refusal::TryCountInvalid,
            Denied::Superseded => Refusal::CardChanged,
            _ => Refusal::TryLater,
        };
        // The old PIN is right, and the new one is not stored.
        if let (Some(ChangeVerdict::Right { .. }), Some(reserved)) =
            (&self.calls[call].verdict, &self.calls[call].reserved)
        {
            let (number, verdict) = (reserved.number, Verdict::Right { moved: None });
            self.calls[call].instead = Some(refusal);
            self.calls[call].verdict = None;
            return self.after(MILLISECOND, Event::EngineSends(call, Transaction::Settle { number, verdict }));
        }
        let is_first = self.calls[call].denials == 0;
        let begins_again = match refusal {
            Refusal::CardChanged => !operation.uses_try(),
            Refusal::ControlNotUsable => matches!(operation, Operation::SetPin { .. }) && is_first,
            _ => false,
        };
        if begins_again {
            self.calls[call].denials += u8::from(refusal == Refusal::ControlNotUsable);
            return self.after(MILLISECOND, Event::EngineBegins(call));
        }
        self.finish(call, End::Refused(refusal));
    }

    fn done(&mut self, call: usize, done: Done) {
        let running = &self.calls[call];
        let answer = match (&running.record.operation, done) {
            (Operation::OpenControl { .. }, _) => Answer::Opened { control: name(running.shown.unwrap().into()) },
            (Operation::IssueTzpk { .. }, _) => Answer::Issued { tzpk: TzpkNumber(running.shown.unwrap().into()) },
            (Operation::SetPin { .. }, _) => running.set_answer.clone().unwrap(),
            (Operation::SetPinByZone { .. }, Done::Unchanged) => Answer::PinUnchanged,
            (Operation::SetPinByZone { .. }, _) => Answer::PinSet,
            (Operation::ViewPin { .. } | Operation::GetPinByZone, _) => {
                Answer::PinShown { pin: TestPin(running.shown.unwrap()) }
            }
            (Operation::ResetTries { .. }, Done::Reset { used }) => Answer::TriesReset { used },
            (_, Done::Reserved(reserved)) => return self.compare(call, *reserved),
            (_, Done::Settled { tries_left }) => match (running.instead, &running.verdict) {
                (Some(refusal), _) => return self.finish(call, End::Refused(refusal)),
                (None, Some(ChangeVerdict::Right { .. })) => Answer::Right { tries_left },
                (None, Some(ChangeVerdict::Wrong)) => Answer::Wrong { tries_left },
                (None, Some(ChangeVerdict::Malformed)) => Answer::Malformed,
                (None, Some(ChangeVerdict::RefusedPin)) => Answer::PinRefused,
                (None, None) => return,
            },
            _ => return,
        };
        self.finish(call, End::Answered(answer));
    }

    /// Compares once, with the record that was read with the reservation.
    fn compare(&mut self, call: usize, reserved: ReservedTry) {
        let compared = reserved.pin.as_ref().map(pin_of).unwrap();
        let is_right = |content: Content| content == Content::Pin(TestPin(compared));
        let number = reserved.number;
        let (transaction, verdict) = match self.calls[call].record.operation.clone() {
            Operation::ChangePin { device, old, new } => {
                let tzpk = self.calls[call].tzpk.clone();
                let is_under = |device: &DeviceChange| tzpk == Some(sealed_tzpk(device.under.0));
                let decrypts = device.as_ref().is_none_or(is_under);
                let verdict = match (old, new) {
                    _ if !decrypts => ChangeVerdict::Malformed,
                    (Content::Malformed, _) | (_, Content::Malformed) => ChangeVerdict::Malformed,
                    (old, _) if !is_right(old) => ChangeVerdict::Wrong,
                    (_, Content::WeakPin) => ChangeVerdict::RefusedPin,
                    (_, Content::Pin(pin)) => {
                        ChangeVerdict::Right { generation: reserved.generation, pin: record(pin.0) }
                    }
                };
                let control = device.map(|device| self::number(&device.control)).zip(tzpk);
                (Transaction::SettleChange { control, number, verdict: verdict.clone() }, verdict)
            }
            Operation::VerifyPin { entered } => {
                let pin = record(compared);
                let right = ChangeVerdict::Right { generation: reserved.generation, pin };
                match entered {
                    Content::Malformed => {
                        (Transaction::Settle { number, verdict: Verdict::Malformed }, ChangeVerdict::Malformed)
                    }
                    entered if is_right(entered) => {
                        (Transaction::Settle { number, verdict: Verdict::Right { moved: None } }, right)
                    }
                    _ => (Transaction::Settle { number, verdict: Verdict::Wrong }, ChangeVerdict::Wrong),
                }
            }
            _ => return,
        };
        self.calls[call].reserved = Some(reserved);
        self.calls[call].verdict = Some(verdict);
        let delay = self.random.milliseconds(1, 8);
        self.after(delay, Event::EngineSends(call, transaction));
    }
}
