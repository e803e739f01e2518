//! The clients: each makes one call after another, and each step of a flow goes to the other side.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use device::{Device, Fill, Pin, Tzpk};
use history::{
    history::{
        Answer, BlockNumber, Content, ControlName, DeviceBlock, DeviceChange, End, Operation, Purpose, TestPin,
        TzpkNumber,
    },
    recorder::Recorder,
};
use proto::{DevicePinChange, ZoneBlock, ZoneFormat, ZonePinChange, change_pin_request::Change};
use support::zone_party::zone;
use tokio::task::JoinSet;

use crate::{
    caller::{Caller, Ended, Unexpected},
    deployment::SIDES,
    times::PATIENCE,
};

pub const CLIENTS: u32 = 64;
/// The cards that one client alone uses.
const OWN_CARDS: u32 = 3;
/// The cards that two clients use, so that their calls race.
const SHARED_CARDS: u32 = CLIENTS / 2;
/// The clients that enter wrong PINs alone, each from both sides at the same time.
const GUESSERS: u32 = 4;
/// The cards of each guesser. No call forgives their tries.
const GUESSED_CARDS: u32 = 16;
/// The first card of the guessers.
const FIRST_GUESSED: u32 = CLIENTS * OWN_CARDS + SHARED_CARDS;
/// The clients that read after the last fault.
const READERS: u32 = 16;
/// RSA keys of devices. Clients share them: a key pair costs a tenth of a second.
const DEVICES: usize = 8;
/// How long a client waits for an answer: longer than edge and engine need to answer a call in every case.
pub const DEADLINE: Duration = Duration::from_secs(11);
/// A side serves again if its edge acknowledges this many writes,
const EDGE_WRITES_OF_SERVICE: u64 = 15;
/// and its engine this many that clients send to the engine.
const ENGINE_WRITES_OF_SERVICE: u64 = 5;
/// The longest pause of a client after a call that was given up, in milliseconds.
const BACK_OFF_MAX: u32 = 10_000;
/// The calls with one block, under one control.
const SENDS_MAX: u32 = 6;

/// Everything that the clients of one run share.
pub struct Traffic {
    pub recorder: Recorder,
    pub caller: Caller,
    zone_key: Tzpk,
    devices: Vec<Device>,
    cards: Vec<Card>,
    next_pin: AtomicU32,
    is_stopped: AtomicBool,
    /// The writes that the edge of each side acknowledged.
    by_edge: [AtomicU64; SIDES],
    /// The writes that the engine of each side acknowledged without an edge.
    by_engine: [AtomicU64; SIDES],
    unexpected: Mutex<Vec<Unexpected>>,
}

struct Card {
    number: String,
    /// The PIN that was last acknowledged or shown.
    known: Mutex<Option<TestPin>>,
}

impl Traffic {
    /// The traffic of the run with this number: its cards are used by no other run.
    pub fn new(recorder: Recorder, caller: Caller, zone_key: Tzpk, run: u32) -> Self {
        let card = |number: u32| Card { number: format!("{run:04}{number:06}"), known: Mutex::new(None) };
        Self {
            recorder,
            caller,
            zone_key,
            devices: (0..DEVICES).map(|_| support::engine_process::device()).collect(),
            cards: (0..FIRST_GUESSED + GUESSERS * GUESSED_CARDS).map(card).collect(),
            next_pin: AtomicU32::new(1),
            is_stopped: AtomicBool::new(false),
            by_edge: Default::default(),
            by_engine: Default::default(),
            unexpected: Mutex::new(Vec::new()),
        }
    }

    /// Starts the clients.
    pub fn start(self: &Arc<Self>, runtime: &tokio::runtime::Runtime) -> JoinSet<()> {
        let mut clients = JoinSet::new();
        for number in 0..CLIENTS {
            let mut client = Client::new(Arc::clone(self), number);
            clients.spawn_on(async move { client.run().await }, runtime.handle());
        }
        for guesser in 0..GUESSERS {
            let mut client = Client::new(Arc::clone(self), CLIENTS + guesser);
            clients.spawn_on(async move { client.guess(guesser).await }, runtime.handle());
        }
        clients
    }

    /// Ends the clients after their present flow.
    pub async fn stop(&self, mut clients: JoinSet<()>) {
        self.is_stopped.store(true, Ordering::Relaxed);
        while let Some(ended) = clients.join_next().await {
            ended.unwrap();
        }
    }

    /// Waits until both sides serve: each edge and each engine acknowledges writes.
    pub fn wait_for_service(&self) {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = || (self.by_edge.each_ref().map(load), self.by_engine.each_ref().map(load));
        let (before, since) = (counts(), Instant::now());
        loop {
            let now = counts();
            let grew =
                |now: [u64; SIDES], before: [u64; SIDES], by| now.iter().zip(before).all(|(now, was)| *now >= was + by);
            if grew(now.0, before.0, EDGE_WRITES_OF_SERVICE) && grew(now.1, before.1, ENGINE_WRITES_OF_SERVICE) {
                return;
            }
            let waited = since.elapsed();
            assert!(waited < PATIENCE, "the service is not back: {before:?}, {now:?} writes of edges and engines");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Reads every PIN after the last fault, and the tries of every card.
    pub async fn read_all(self: &Arc<Self>, tries_max: u32) {
        let mut readers = JoinSet::new();
        for number in 0..READERS {
            let mut client = Client::new(Arc::clone(self), CLIENTS + GUESSERS + number);
            readers.spawn(async move {
                for index in (0..client.traffic.cards.len()).skip(number as usize).step_by(READERS as usize) {
                    client.read(index, tries_max).await;
                }
            });
        }
        while let Some(ended) = readers.join_next().await {
            ended.unwrap();
        }
    }

    pub fn unexpected(&self) -> Vec<String> {
        let unexpected = self.unexpected.lock().unwrap_or_else(PoisonError::into_inner);
        unexpected.iter().map(|unexpected| unexpected.0.clone()).collect()
    }

    fn note(&self, unexpected: Unexpected) {
        self.unexpected.lock().unwrap_or_else(PoisonError::into_inner).push(unexpected);
    }

    /// A PIN that no call has used.
    fn new_pin(&self) -> TestPin {
        TestPin(self.next_pin.fetch_add(1, Ordering::Relaxed))
    }
}

/// The PIN of a number: 8 digits, neither ascending nor descending nor repeated.
fn pin(number: TestPin) -> Pin {
    Pin::parse(&format!("70{:06}", number.0)).unwrap()
}

/// The number of a PIN.
fn number_of(pin: &Pin) -> TestPin {
    let digits = pin.reveal().strip_prefix("70").filter(|digits| digits.len() == 6);
    digits.and_then(|digits| digits.parse().ok()).map_or(TestPin::NOT_IN_TABLE, TestPin)
}

/// A tzpk that a client has.
struct IssuedTzpk {
    number: TzpkNumber,
    encrypted: Vec<u8>,
}

/// A call that sets a PIN.
struct Set {
    control: ControlName,
    block: DeviceBlock,
    bytes: [u8; 8],
}

/// A call that replaces a PIN by another one.
struct PinChange {
    device: Option<DeviceChange>,
    old: Content,
    new: Content,
    request: Change,
}

/// When a control is used a second time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Twice {
    /// After the first use was answered or given up, through the other side.
    After,
    /// Through both sides at the same time.
    AtOnce,
}

struct Client {
    traffic: Arc<Traffic>,
    number: u32,
    random: Random,
    /// The side of the next call.
    side: usize,
    /// The calls that were given up since the last answer.
    given_up: u32,
}

impl Client {
    fn new(traffic: Arc<Traffic>, number: u32) -> Self {
        let side = number as usize % SIDES;
        Self { traffic, number, random: Random(u64::from(number) + 1), side, given_up: 0 }
    }

    async fn run(&mut self) {
        while !self.traffic.is_stopped.load(Ordering::Relaxed) {
            let card = self.card();
            match self.random.below(100) {
                _ if self.traffic.known(card).is_none() => self.set_pin(card).await,
                0..26 => self.set_pin(card).await,
                26..32 => self.set_pin_by_zone(card).await,
                // The recording has the PIN.
                32..47 => drop(self.view_pin(card).await),
                47..68 => self.verify_pin(card).await,
                68..76 => self.change_pin_by_zone(card).await,
                76..87 => self.change_pin_by_device(card).await,
                _ => self.reset_tries(card).await,
            }
            match self.given_up {
                0 => self.think(300, 1_500).await,
                _ => self.back_off().await,
            }
        }
    }

    /// One of the client's cards, or the one that it shares.
    fn card(&mut self) -> usize {
        match self.random.below(OWN_CARDS + 1) {
            OWN_CARDS => (CLIENTS * OWN_CARDS + self.number % SHARED_CARDS) as usize,
            own => (self.number * OWN_CARDS + own) as usize,
        }
    }

    async fn think(&mut self, least: u32, most: u32) {
        let pause = least + self.random.below(most - least);
        tokio::time::sleep(Duration::from_millis(pause.into())).await;
    }

    /// The pause after a call that was given up: each doubles the next one.
    async fn back_off(&mut self) {
        let most = (1_000 << self.given_up.min(4)).min(BACK_OFF_MAX);
        self.think(most / 2, most).await;
    }

    /// Most clients wait until the edge answers. A few give up early.
    fn deadline(&mut self) -> Duration {
        if self.random.below(50) == 0 { Duration::from_millis((20 + self.random.below(400)).into()) } else { DEADLINE }
    }

    /// The side of this call. The next call goes to the other side.
    fn next_side(&mut self) -> usize {
        self.side = (self.side + 1) % SIDES;
        self.side
    }

    /// Makes a call to the next side. Returns its answer, if it was answered with one.
    async fn call<T>(
        &mut self,
        card: usize,
        operation: Operation,
        send: impl AsyncFnOnce(&Traffic, usize, &str, Duration) -> Ended<(Answer, T)>,
    ) -> Result<T, End> {
        let (side, deadline) = (self.next_side(), self.deadline());
        let ended = self.traffic.call(self.number, side, deadline, card, operation, send).await;
        self.note_end(&ended);
        ended
    }

    async fn open(&mut self, card: usize, purpose: Purpose) -> Option<ControlName> {
        let scope = match purpose {
            Purpose::SetPin => "SET_PIN",
            Purpose::ViewPin => "VIEW_PIN",
        };
        let send = async |traffic: &Traffic, side, number: &str, deadline| {
            answered(traffic.caller.open(side, number, scope, deadline).await, |id| {
                let control = ControlName::from(id);
                (Answer::Opened { control: control.clone() }, control)
            })
        };
        self.call(card, Operation::OpenControl { purpose }, send).await.ok()
    }

    /// After a given-up call the client requests another tzpk: the control may have one that it does not know.
    async fn issue_tzpk(&mut self, card: usize, control: &ControlName) -> Option<IssuedTzpk> {
        for _ in 0..SENDS_MAX {
            let device = self.device();
            let send = async |traffic: &Traffic, side, _: &str, deadline| {
                let key = traffic.devices[device].public_key_der();
                answered(traffic.caller.tzpk(side, &control.0, key, deadline).await, |encrypted| {
                    let number = TzpkNumber(traffic.recorder.next_number());
                    (Answer::Issued { tzpk: number }, IssuedTzpk { number, encrypted })
                })
            };
            match self.call(card, Operation::IssueTzpk { control: control.clone() }, send).await {
                Ok(tzpk) => return Some(tzpk),
                Err(End::GivenUp(_)) => self.back_off().await,
                Err(_) => return None,
            }
        }
        None
    }

    fn device(&self) -> usize {
        self.number as usize % DEVICES
    }

    async fn set_pin(&mut self, card: usize) {
        let Some(control) = self.open(card, Purpose::SetPin).await else { return };
        let Some(tzpk) = self.issue_tzpk(card, &control).await else { return };
        let set = self.new_set(&control, &tzpk);
        let use_twice = self.use_twice();
        self.think(20, 300).await;
        if use_twice == Some(Twice::AtOnce) {
            let (second, [here, there], most) = (self.new_set(&control, &tzpk), self.both_sides(), DEADLINE);
            let traffic = &self.traffic;
            let first = traffic.send_set(self.number, here, most, card, &set);
            let second = traffic.send_set(self.number, there, most, card, &second);
            let _ = tokio::join!(first, second);
            return;
        }
        for _ in 0..SENDS_MAX {
            let (side, deadline) = (self.next_side(), self.deadline());
            let ended = self.traffic.send_set(self.number, side, deadline, card, &set).await;
            let is_given_up = self.note_end(&ended);
            if use_twice.is_some() && (is_given_up || ended.is_ok()) {
                let (second, side) = (self.new_set(&control, &tzpk), self.next_side());
                let ended = self.traffic.send_set(self.number, side, DEADLINE, card, &second).await;
                self.note_end(&ended);
                return;
            }
            if !is_given_up {
                return;
            }
            self.back_off().await;
        }
    }

    /// A block with a new PIN, or now and then a block that is refused.
    fn new_set(&mut self, control: &ControlName, tzpk: &IssuedTzpk) -> Set {
        let traffic = Arc::clone(&self.traffic);
        let content = self.new_content();
        let bytes = traffic.device_block(self.device(), tzpk, content);
        let block = DeviceBlock { number: BlockNumber(traffic.recorder.next_number()), under: tzpk.number, content };
        Set { control: control.clone(), block, bytes }
    }

    /// A new PIN, or now and then what is refused.
    fn new_content(&mut self) -> Content {
        match self.random.below(50) {
            0 => Content::WeakPin,
            1 => Content::Malformed,
            _ => Content::Pin(self.traffic.new_pin()),
        }
    }

    /// The PIN of the card as the client knows it, or now and then another one.
    fn old_content(&mut self, card: usize) -> Content {
        let known = self.traffic.known(card).filter(|_| self.random.below(100) < 80);
        Content::Pin(known.unwrap_or_else(|| self.traffic.new_pin()))
    }

    /// Sets a PIN by a block of the zone. A given-up set is repeated once, with the same block.
    async fn set_pin_by_zone(&mut self, card: usize) {
        let (number, block) = (self.traffic.new_pin(), BlockNumber(self.traffic.recorder.next_number()));
        let zone_block = self.traffic.zone_block(Content::Pin(number));
        for _ in 0..2 {
            let send = async |traffic: &Traffic, side, card: &str, deadline| {
                answered(traffic.caller.set_by_zone(side, card, zone_block.clone(), deadline).await, |unchanged| {
                    (if unchanged { Answer::PinUnchanged } else { Answer::PinSet }, ())
                })
            };
            match self.call(card, Operation::SetPinByZone { block, pin: number }, send).await {
                Ok(()) => return self.traffic.know(card, number),
                Err(End::GivenUp(_)) => self.back_off().await,
                Err(_) => return,
            }
        }
    }

    /// A customer changes the PIN at a terminal.
    async fn change_pin_by_zone(&mut self, card: usize) {
        let (old, new) = (self.old_content(card), self.new_content());
        let traffic = &self.traffic;
        let request = Change::ZoneChange(ZonePinChange {
            plastic_id: traffic.cards[card].number.clone(),
            old_block: Some(traffic.zone_block(old)),
            new_block: Some(traffic.zone_block(new)),
        });
        let change = PinChange { device: None, old, new, request };
        let (side, deadline) = (self.next_side(), self.deadline());
        let ended = self.traffic.send_change(self.number, side, deadline, card, &change).await;
        self.note_end(&ended);
    }

    /// A customer changes the PIN on a device, under a control.
    async fn change_pin_by_device(&mut self, card: usize) {
        let Some(control) = self.open(card, Purpose::SetPin).await else { return };
        let Some(tzpk) = self.issue_tzpk(card, &control).await else { return };
        let change = self.new_device_change(card, &control, &tzpk);
        // Fewer clients change a PIN than set one, so each uses its control twice.
        let use_twice = self.use_twice().unwrap_or(Twice::After);
        let second = self.new_device_change(card, &control, &tzpk);
        match use_twice {
            Twice::AtOnce => {
                let [here, there] = self.both_sides();
                let first = self.traffic.send_change(self.number, here, DEADLINE, card, &change);
                let second = self.traffic.send_change(self.number, there, DEADLINE, card, &second);
                let _ = tokio::join!(first, second);
            }
            Twice::After => {
                let (side, deadline) = (self.next_side(), self.deadline());
                let ended = self.traffic.send_change(self.number, side, deadline, card, &change).await;
                if self.note_end(&ended) || ended.is_ok() {
                    let side = self.next_side();
                    let ended = self.traffic.send_change(self.number, side, DEADLINE, card, &second).await;
                    self.note_end(&ended);
                }
            }
        }
    }

    fn new_device_change(&mut self, card: usize, control: &ControlName, tzpk: &IssuedTzpk) -> PinChange {
        let (old, new) = (self.old_content(card), self.new_content());
        let block = |content| self.traffic.device_block(self.device(), tzpk, content).to_vec();
        let request = Change::DeviceChange(DevicePinChange {
            control_id: control.0.to_string(),
            old_pin_block: block(old),
            new_pin_block: block(new),
        });
        let device = Some(DeviceChange { control: control.clone(), under: tzpk.number });
        PinChange { device, old, new, request }
    }

    /// Whether the client uses a control a second time, which a right service refuses after the first use.
    fn use_twice(&mut self) -> Option<Twice> {
        match self.random.below(100) {
            0..15 => Some(Twice::After),
            15..22 => Some(Twice::AtOnce),
            _ => None,
        }
    }

    /// The sides of two calls at the same time.
    fn both_sides(&mut self) -> [usize; 2] {
        [self.next_side(), self.next_side()]
    }

    /// Counts a call that was given up, and returns whether this one was.
    fn note_end<T>(&mut self, ended: &Result<T, End>) -> bool {
        let is_given_up = matches!(ended, Err(End::GivenUp(_)));
        self.given_up = if is_given_up { self.given_up + 1 } else { 0 };
        is_given_up
    }

    /// How the view of the card's PIN ended: `Ok` if a PIN was shown.
    async fn view_pin(&mut self, card: usize) -> Result<TestPin, Option<End>> {
        let control = self.open(card, Purpose::ViewPin).await.ok_or(None)?;
        let use_twice = self.use_twice();
        let ended = if use_twice == Some(Twice::AtOnce) {
            let [here, there] = self.both_sides();
            let first = self.traffic.send_view(self.number, here, DEADLINE, card, &control);
            let second = self.traffic.send_view(self.number, there, DEADLINE, card, &control);
            let (first, second) = tokio::join!(first, second);
            first.or(second)
        } else {
            let (side, deadline) = (self.next_side(), self.deadline());
            self.traffic.send_view(self.number, side, deadline, card, &control).await
        };
        let is_given_up = self.note_end(&ended);
        if use_twice == Some(Twice::After) && (is_given_up || ended.is_ok()) {
            let side = self.next_side();
            let again = self.traffic.send_view(self.number, side, DEADLINE, card, &control).await;
            self.note_end(&again);
        }
        ended.map_err(Some)
    }

    async fn verify_pin(&mut self, card: usize) {
        let known = self.traffic.known(card).filter(|_| self.random.below(100) < 55);
        let entered = known.unwrap_or_else(|| self.traffic.new_pin());
        let (side, deadline) = (self.next_side(), self.deadline());
        let ended = self.traffic.send_verify(self.number, side, deadline, card, entered).await;
        self.note_end(&ended);
        if matches!(ended, Err(End::Refused(history::history::Refusal::PinLocked))) {
            self.think(100, 500).await;
            self.reset_tries(card).await;
        }
    }

    /// Enters wrong PINs of one card after another, through both sides at the same time, until the PIN is locked on both.
    /// From the last card on, the first one again: it must still be locked.
    async fn guess(&mut self, guesser: u32) {
        for number in (0..GUESSED_CARDS).cycle() {
            let card = (FIRST_GUESSED + guesser * GUESSED_CARDS + number) as usize;
            while !self.traffic.is_stopped.load(Ordering::Relaxed) {
                if self.traffic.known(card).is_none() {
                    self.set_pin(card).await;
                } else {
                    let ([here, there], pins) = (self.both_sides(), [self.traffic.new_pin(), self.traffic.new_pin()]);
                    let first = self.traffic.send_verify(self.number, here, DEADLINE, card, pins[0]);
                    let second = self.traffic.send_verify(self.number, there, DEADLINE, card, pins[1]);
                    let (first, second) = tokio::join!(first, second);
                    let is_locked = |end: &_| matches!(end, Err(End::Refused(history::history::Refusal::PinLocked)));
                    if is_locked(&first) && is_locked(&second) {
                        break;
                    }
                    self.note_end(&first);
                    self.note_end(&second);
                }
                match self.given_up {
                    0 => self.think(100, 400).await,
                    _ => self.back_off().await,
                }
            }
            if self.traffic.is_stopped.load(Ordering::Relaxed) {
                return;
            }
            self.think(500, 1_500).await;
        }
    }

    /// An operator looks at the card, and forgives the tries that it has by then.
    async fn reset_tries(&mut self, card: usize) {
        let (side, deadline) = (self.next_side(), self.deadline());
        let found = self.traffic.caller.find(side, &self.traffic.cards[card].number, deadline).await;
        let Ended::Answered((up_to, _)) = found else { return };
        let send = async |traffic: &Traffic, side, number: &str, deadline| {
            answered(traffic.caller.reset(side, number, up_to, deadline).await, |used| {
                (Answer::TriesReset { used }, ())
            })
        };
        // A reset of a card without a try is refused; a given-up one is not repeated.
        let _ = self.call(card, Operation::ResetTries { up_to }, send).await;
    }

    /// Reads the PIN of a card until an engine answers, and compares the used tries with the limit.
    async fn read(&mut self, card: usize, tries_max: u32) {
        let since = Instant::now();
        loop {
            use history::history::Refusal::{CardUnknown, PinNotSet};
            match self.view_pin(card).await {
                Ok(_) | Err(Some(End::Refused(PinNotSet | CardUnknown))) => break,
                Err(_) => assert!(since.elapsed() < PATIENCE, "card {card} can't be read"),
            }
            self.think(200, 1_000).await;
        }
        loop {
            let side = self.next_side();
            match self.traffic.caller.find(side, &self.traffic.cards[card].number, DEADLINE).await {
                Ended::Answered((_, used)) => {
                    if used > u64::from(tries_max) {
                        self.traffic.note(Unexpected(format!("card {card} has {used} used tries")));
                    }
                    return;
                }
                Ended::Unexpected(unexpected) => return self.traffic.note(unexpected),
                Ended::Other(_) => assert!(since.elapsed() < PATIENCE, "card {card} can't be found"),
            }
            self.think(200, 1_000).await;
        }
    }
}

impl Traffic {
    /// Records a call, sends it, and records how it ended. Returns its answer, if it was answered with one.
    async fn call<T>(
        &self,
        client: u32,
        side: usize,
        deadline: Duration,
        card: usize,
        operation: Operation,
        send: impl AsyncFnOnce(&Self, usize, &str, Duration) -> Ended<(Answer, T)>,
    ) -> Result<T, End> {
        let number = &self.cards[card].number;
        let passes_edge = !matches!(
            operation,
            Operation::VerifyPin { .. }
                | Operation::ChangePin { .. }
                | Operation::SetPinByZone { .. }
                | Operation::ResetTries { .. }
        );
        let open = self.recorder.start(client, &format!("{side}"), number, operation).unwrap();
        let (end, value) = match send(self, side, number, deadline).await {
            Ended::Answered((answer, value)) => {
                let writes = if passes_edge { &self.by_edge } else { &self.by_engine };
                writes[side].fetch_add(1, Ordering::Relaxed);
                (End::Answered(answer), Some(value))
            }
            Ended::Other(end) => (end, None),
            Ended::Unexpected(unexpected) => {
                self.note(unexpected);
                // The harness does not know what the call did.
                (End::GivenUp(history::history::GiveUp::Unavailable), None)
            }
        };
        open.end(end.clone()).unwrap();
        value.ok_or(end)
    }

    /// Sets a PIN by this block.
    async fn send_set(&self, client: u32, side: usize, deadline: Duration, card: usize, set: &Set) -> Result<(), End> {
        let operation = Operation::SetPin { control: set.control.clone(), block: set.block };
        let send = async |traffic: &Self, side, _: &str, deadline| {
            answered(traffic.caller.set(side, &set.control.0, &set.bytes, deadline).await, |()| (Answer::PinSet, ()))
        };
        let ended = self.call(client, side, deadline, card, operation, send).await;
        if let (Ok(()), Content::Pin(pin)) = (&ended, set.block.content) {
            self.know(card, pin);
        }
        ended
    }

    /// Views the PIN under this control.
    async fn send_view(
        &self,
        client: u32,
        side: usize,
        deadline: Duration,
        card: usize,
        control: &ControlName,
    ) -> Result<TestPin, End> {
        let device = &self.devices[client as usize % DEVICES];
        let send = async |traffic: &Self, side, _: &str, deadline| {
            answered(traffic.caller.view(side, &control.0, device.public_key_der(), deadline).await, |(block, tzpk)| {
                let pin = device.decrypt_pin(&tzpk, &block).map_or(TestPin::NOT_IN_TABLE, |pin| number_of(&pin));
                (Answer::PinShown { pin }, pin)
            })
        };
        let operation = Operation::ViewPin { control: control.clone() };
        let ended = self.call(client, side, deadline, card, operation, send).await;
        if let Ok(pin) = &ended {
            self.know(card, *pin);
        }
        ended
    }

    /// Compares a PIN with the card's.
    async fn send_verify(
        &self,
        client: u32,
        side: usize,
        deadline: Duration,
        card: usize,
        entered: TestPin,
    ) -> Result<(), End> {
        let send = async |traffic: &Self, side, number: &str, deadline| {
            let block = traffic.zone_block(Content::Pin(entered));
            answered(traffic.caller.verify(side, number, block, deadline).await, |(is_right, tries_left)| {
                (if is_right { Answer::Right { tries_left } } else { Answer::Wrong { tries_left } }, ())
            })
        };
        let operation = Operation::VerifyPin { entered: Content::Pin(entered) };
        self.call(client, side, deadline, card, operation, send).await
    }

    /// Replaces the PIN by another one.
    async fn send_change(
        &self,
        client: u32,
        side: usize,
        deadline: Duration,
        card: usize,
        change: &PinChange,
    ) -> Result<(), End> {
        let send = async |traffic: &Self, side, _: &str, deadline| {
            let ended = traffic.caller.change(side, change.request.clone(), deadline).await;
            answered(ended, |(is_right, tries_left)| match is_right {
                true => (Answer::Right { tries_left }, true),
                false => (Answer::Wrong { tries_left }, false),
            })
        };
        let PinChange { device, old, new, .. } = change;
        let operation = Operation::ChangePin { device: device.clone(), old: *old, new: *new };
        let is_changed = self.call(client, side, deadline, card, operation, send).await?;
        if let (true, Content::Pin(pin)) = (is_changed, new) {
            self.know(card, *pin);
        }
        Ok(())
    }

    /// The clear block of a content. No format 1 block begins with F.
    fn clear_block(content: Content) -> [u8; 8] {
        match content {
            Content::Pin(number) => pin(number).to_block(Fill::Random),
            Content::WeakPin => Pin::parse("1234").unwrap().to_block(Fill::Random),
            Content::Malformed => [0xFF; 8],
        }
    }

    fn device_block(&self, device: usize, tzpk: &IssuedTzpk, content: Content) -> [u8; 8] {
        self.devices[device].decrypt_tzpk(&tzpk.encrypted).unwrap().encrypt_block(&Self::clear_block(content))
    }

    fn zone_block(&self, content: Content) -> ZoneBlock {
        let pin_block = self.zone_key.encrypt_block(&Self::clear_block(content)).to_vec();
        ZoneBlock { zone_key: Some(zone("app")), format: ZoneFormat::Iso1.into(), pin_block }
    }

    fn know(&self, card: usize, pin: TestPin) {
        *self.cards[card].known.lock().unwrap_or_else(PoisonError::into_inner) = Some(pin);
    }

    fn known(&self, card: usize) -> Option<TestPin> {
        *self.cards[card].known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answered<T, U>(ended: Ended<T>, read: impl FnOnce(T) -> U) -> Ended<U> {
    match ended {
        Ended::Answered(answer) => Ended::Answered(read(answer)),
        Ended::Other(end) => Ended::Other(end),
        Ended::Unexpected(unexpected) => Ended::Unexpected(unexpected),
    }
}

/// Numbers that look random, the same in each run (SplitMix64, Steele et al. 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        u32::try_from((mixed ^ (mixed >> 31)) % u64::from(limit)).unwrap()
    }
}
