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
    history::{Answer, BlockNumber, Content, ControlName, DeviceBlock, End, Operation, Purpose, TestPin, TzpkNumber},
    recorder::Recorder,
};
use proto::{ZoneBlock, ZoneFormat};
use support::zone_party::zone;
use tokio::task::JoinSet;

use crate::{
    caller::{Caller, Ended, Unexpected},
    cluster::PATIENCE,
    deployment::SIDES,
};

pub const CLIENTS: u32 = 64;
/// The cards that one client alone uses.
const OWN_CARDS: u32 = 3;
/// The cards that two clients use, so that their calls race.
const SHARED_CARDS: u32 = CLIENTS / 2;
/// RSA keys of devices. Clients share them: a key pair costs a tenth of a second.
const DEVICES: usize = 8;
/// How long a client waits for an answer: longer than edge and engine need to answer a call in every case.
pub const DEADLINE: Duration = Duration::from_secs(11);
/// A side that acknowledges this many writes serves again.
const WRITES_OF_SERVICE: u64 = 20;
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
    /// The acknowledged writes of each side.
    acknowledged: [AtomicU64; SIDES],
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
            cards: (0..CLIENTS * OWN_CARDS + SHARED_CARDS).map(card).collect(),
            next_pin: AtomicU32::new(1),
            is_stopped: AtomicBool::new(false),
            acknowledged: Default::default(),
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
        clients
    }

    /// Ends the clients after their present flow.
    pub async fn stop(&self, mut clients: JoinSet<()>) {
        self.is_stopped.store(true, Ordering::Relaxed);
        while let Some(ended) = clients.join_next().await {
            ended.unwrap();
        }
    }

    /// Waits until both sides serve: each acknowledges writes.
    pub fn wait_for_service(&self) {
        let counts = || self.acknowledged.each_ref().map(|count| count.load(Ordering::Relaxed));
        let (before, since) = (counts(), Instant::now());
        while counts().iter().zip(before).any(|(now, before)| *now < before + WRITES_OF_SERVICE) {
            assert!(
                since.elapsed() < PATIENCE,
                "the service is not back: {before:?}, {:?} acknowledged writes",
                counts()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Reads every PIN after the last fault, and the tries of every card.
    pub async fn read_all(self: &Arc<Self>, tries_max: u32) {
        let mut readers = JoinSet::new();
        for number in 0..16 {
            let mut client = Client::new(Arc::clone(self), CLIENTS + number);
            readers.spawn(async move {
                for index in (0..client.traffic.cards.len()).skip(number as usize).step_by(16) {
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
                0..50 => self.set_pin(card).await,
                // The recording has the PIN.
                50..70 => drop(self.view_pin(card).await),
                70..96 => self.verify_pin(card).await,
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

    /// Records a call, sends it, and records how it ended. Returns its answer, if it was answered with one.
    async fn call<T>(
        &mut self,
        card: usize,
        operation: Operation,
        send: impl AsyncFnOnce(&Traffic, usize, &str, Duration) -> Ended<(Answer, T)>,
    ) -> Result<T, End> {
        let (side, deadline) = (self.next_side(), self.deadline());
        let traffic = Arc::clone(&self.traffic);
        let number = &traffic.cards[card].number;
        let open = traffic.recorder.start(self.number, &format!("{side}"), number, operation).unwrap();
        let (end, value) = match send(&traffic, side, number, deadline).await {
            Ended::Answered((answer, value)) => {
                traffic.acknowledged[side].fetch_add(1, Ordering::Relaxed);
                (End::Answered(answer), Some(value))
            }
            Ended::Other(end) => (end, None),
            Ended::Unexpected(unexpected) => {
                traffic.note(unexpected);
                // The harness does not know what the call did.
                (End::GivenUp(history::history::GiveUp::Unavailable), None)
            }
        };
        self.given_up = if matches!(end, End::GivenUp(_)) { self.given_up + 1 } else { 0 };
        open.end(end.clone()).unwrap();
        value.ok_or(end)
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
        let traffic = Arc::clone(&self.traffic);
        let device = &traffic.devices[self.device()];
        let encrypt = |pin: &Pin| device.encrypt_pin(&tzpk.encrypted, pin, Fill::Random).unwrap();
        let (content, bytes) = match self.random.below(50) {
            0 => (Content::WeakPin, encrypt(&Pin::parse("1234").unwrap())),
            // No format 1 block begins with F.
            1 => (Content::Malformed, device.decrypt_tzpk(&tzpk.encrypted).unwrap().encrypt_block(&[0xFF; 8])),
            _ => {
                let number = traffic.new_pin();
                (Content::Pin(number), encrypt(&pin(number)))
            }
        };
        let number = BlockNumber(traffic.recorder.next_number());
        let operation =
            Operation::SetPin { control: control.clone(), block: DeviceBlock { number, under: tzpk.number, content } };
        self.think(20, 300).await;
        for _ in 0..SENDS_MAX {
            let send = async |traffic: &Traffic, side, _: &str, deadline| {
                answered(traffic.caller.set(side, &control.0, &bytes, deadline).await, |()| (Answer::PinSet, ()))
            };
            match self.call(card, operation.clone(), send).await {
                Ok(()) => {
                    if let Content::Pin(pin) = content {
                        traffic.know(card, pin);
                    }
                    return;
                }
                Err(End::GivenUp(_)) => self.back_off().await,
                Err(_) => return,
            }
        }
    }

    /// How the view of the card's PIN ended: `Ok` if a PIN was shown.
    async fn view_pin(&mut self, card: usize) -> Result<TestPin, Option<End>> {
        let control = self.open(card, Purpose::ViewPin).await.ok_or(None)?;
        let device = self.device();
        let send = async |traffic: &Traffic, side, _: &str, deadline| {
            let device = &traffic.devices[device];
            answered(traffic.caller.view(side, &control.0, device.public_key_der(), deadline).await, |(block, tzpk)| {
                let pin = device.decrypt_pin(&tzpk, &block).map_or(TestPin::NOT_IN_TABLE, |pin| number_of(&pin));
                (Answer::PinShown { pin }, pin)
            })
        };
        let pin = self.call(card, Operation::ViewPin { control: control.clone() }, send).await.map_err(Some)?;
        self.traffic.know(card, pin);
        Ok(pin)
    }

    async fn verify_pin(&mut self, card: usize) {
        let known = self.traffic.known(card).filter(|_| self.random.below(100) < 55);
        let entered = known.unwrap_or_else(|| self.traffic.new_pin());
        let send = async |traffic: &Traffic, side, number: &str, deadline| {
            let pin_block = traffic.zone_key.encrypt_block(&pin(entered).to_block(Fill::Random)).to_vec();
            let block = ZoneBlock { zone_key: Some(zone("app")), format: ZoneFormat::Iso1.into(), pin_block };
            answered(traffic.caller.verify(side, number, block, deadline).await, |(is_right, tries_left)| {
                (if is_right { Answer::Right { tries_left } } else { Answer::Wrong { tries_left } }, ())
            })
        };
        let end = self.call(card, Operation::VerifyPin { entered: Content::Pin(entered) }, send).await;
        if matches!(end, Err(End::Refused(history::history::Refusal::PinLocked))) {
            self.think(100, 500).await;
            self.reset_tries(card).await;
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
