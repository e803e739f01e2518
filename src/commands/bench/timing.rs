//! `pinseal bench timing`: whether the time of a verification or a change reveals the outcome.
//!
//! Welch's t between the times of two classes of blocks, in process, with the classes interleaved at random (Reparaz, Balasch
//! and Verbauwhede, "Dude, is my code constant time?", 2017).

use std::{
    fmt,
    io::{self, Write},
    time::Instant,
};

use clap::Args;
use device::{Device, KeyBits, Tzpk};
use futures::FutureExt;
use hsm::{
    Account, Binding, CardBinding, Changed, Config, ControlBinding, DeviceKey, EncryptedBlock, Error, Hsm,
    NewRecordFormat, PinRecord, Purpose, Refusal, Reply, Request, SealedKey, Source, Target, Wanted, WantedLevel,
};
use uuid::Uuid;

use super::BenchError;

/// The limit of |t| that the literature uses: random times exceed it once in 100,000 comparisons.
const T_MAX: f64 = 4.5;
/// Different blocks of each class, so that no class has a block that the processor knows better.
const BLOCKS: usize = 1_024;
/// The slowest calls of a comparison, in a hundred, that are left out: a call that was interrupted says nothing.
const SLOWEST_PERCENT: usize = 1;

/// The arguments of `pinseal bench timing`.
#[derive(Args)]
pub(crate) struct TimingArguments {
    /// The calls of each comparison: right and wrong PINs, and the malformed classes together
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    calls: usize,
}

/// A class of ISO 9564 format 1 blocks, each with random fill.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Right,
    Wrong,
    Control,
    LengthLow,
    LengthHigh,
    Digit,
}

impl Class {
    const WELL_FORMED: [Self; 2] = [Self::Right, Self::Wrong];
    const MALFORMED: [Self; 4] = [Self::Control, Self::LengthLow, Self::LengthHigh, Self::Digit];

    /// A block: control, length, digits, and random fill.
    fn clear(self, random: u64) -> u64 {
        let fill = random & 0xFF_FFFF_FFFF;
        let wrong = (0..4).fold(0, |digits, place| (digits << 4) | ((random >> (40 + 4 * place)) % 10));
        let (control, length, digits) = match self {
            Self::Right => (1, 4, RIGHT_PIN),
            Self::Wrong if wrong == RIGHT_PIN => (1, 4, wrong ^ 1),
            Self::Wrong => (1, 4, wrong),
            Self::Control => (2, 4, wrong),
            Self::LengthLow => (1, 3, wrong),
            Self::LengthHigh => (1, 13, wrong),
            Self::Digit => (1, 4, wrong | 0xA000),
        };
        (control << 60) | (length << 56) | (digits << 40) | fill
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Right => "right",
            Self::Wrong => "wrong",
            Self::Control => "a wrong control nibble",
            Self::LengthLow => "a length of 3",
            Self::LengthHigh => "a length of 13",
            Self::Digit => "a digit above 9",
        })
    }
}

/// The PIN of the measured record: 2580.
const RIGHT_PIN: u64 = 0x2580;

/// The measured operation.
#[derive(Clone, Copy)]
enum Operation {
    Verify,
    Change,
}

/// An open boundary with a record and a tzpk.
struct Bench {
    hsm: Hsm,
    tzpk: Tzpk,
    sealed: SealedKey,
    record: PinRecord,
    random: Random,
}

/// Measures each operation and prints |t| of each pair of classes.
pub(super) fn run(arguments: &TimingArguments) -> Result<(), BenchError> {
    let mut largest = 0f64;
    for (operation, form) in [
        (Operation::Verify, NewRecordFormat::Iso4),
        (Operation::Verify, NewRecordFormat::OneWay),
        (Operation::Change, NewRecordFormat::Iso4),
    ] {
        let name = match operation {
            Operation::Verify => "verify",
            Operation::Change => "change",
        };
        let stored = form.form().name();
        let mut bench = Bench::open(form)?;
        let compared: &[&[Class]] = match operation {
            Operation::Verify => &[&Class::WELL_FORMED, &Class::MALFORMED],
            // A right change returns a record, and a wrong one does not: the answers differ in any case.
            Operation::Change => &[&Class::MALFORMED],
        };
        for classes in compared {
            let times = bench.measure(operation, classes, arguments.calls)?;
            for (at, (one, first)) in times.iter().enumerate() {
                for (other, second) in times.iter().skip(at + 1) {
                    let t = welch(first, second).abs();
                    largest = largest.max(t);
                    writeln!(io::stdout(), "{name} a record of {stored}: {one} against {other}: |t| = {t:.2}")?;
                }
            }
        }
    }
    let verdict = if largest < T_MAX { "below" } else { "NOT below" };
    writeln!(
        io::stdout(),
        "{} calls of each comparison: the largest |t| is {largest:.2}, {verdict} {T_MAX}",
        arguments.calls
    )?;
    Ok(())
}

impl Bench {
    fn open(form: NewRecordFormat) -> Result<Self, BenchError> {
        let wanted = Wanted { level: WantedLevel::Host, form: Some(form) };
        let hsm = Hsm::open(Config { wanted, ..Config::default() }).map_err(failed)?;
        let device = Device::generate(KeyBits::Rsa2048).map_err(failed)?;
        let public_key = DeviceKey::parse(device.public_key_der()).map_err(failed)?;
        let issue = Request::IssueTzpk { public_key, binding: Binding { card: card()?, control: CONTROL } };
        let Reply::Tzpk(issued) = execute(&hsm, issue).map_err(failed)? else { return Err(unexpected()) };
        let tzpk = device.decrypt_tzpk(&issued.wrapped).map_err(failed)?;
        let mut random = Random::new();
        let source = source(&issued.sealed, encrypted(&tzpk, Class::Right.clear(random.next()))?)?;
        let set = Request::Translate { source, target: Target::Record, card: card()?, account: Account::PlasticId };
        let Reply::Record { record, .. } = execute(&hsm, set).map_err(failed)? else { return Err(unexpected()) };
        Ok(Self { hsm, tzpk, sealed: issued.sealed, record, random })
    }

    /// The times of each class, in nanoseconds.
    fn measure(
        &mut self,
        operation: Operation,
        classes: &[Class],
        calls: usize,
    ) -> Result<Vec<(Class, Vec<f64>)>, BenchError> {
        let mut blocks = Vec::new();
        for class in classes {
            let made = (0..BLOCKS).map(|_| encrypted(&self.tzpk, class.clear(self.random.next())));
            blocks.push((*class, made.collect::<Result<Vec<_>, _>>()?));
        }
        let new = encrypted(&self.tzpk, Class::Right.clear(self.random.next()))?;
        let mut times: Vec<_> = classes.iter().map(|class| (*class, Vec::with_capacity(calls))).collect();
        for _ in 0..calls {
            let (which, at) = (self.random.below(classes.len()), self.random.below(BLOCKS));
            let Some((class, block)) = blocks.get(which).and_then(|(class, made)| Some((*class, *made.get(at)?)))
            else {
                continue;
            };
            let (source, record) = (source(&self.sealed, block)?, self.record.clone());
            let (card, account) = (card()?, Account::PlasticId);
            let request = match operation {
                Operation::Verify => Request::Verify { source, record, card, account },
                Operation::Change => {
                    let new = self::source(&self.sealed, new)?;
                    Request::Change { old: source, new, record, card, account }
                }
            };
            let start = Instant::now();
            let reply = execute(&self.hsm, request);
            let took = start.elapsed();
            check(class, &reply)?;
            if let Some((_, times)) = times.get_mut(which) {
                times.push(took.as_nanos() as f64);
            }
        }
        crop(&mut times);
        Ok(times)
    }
}

/// Leaves out the slowest calls of all classes, by one limit for all.
fn crop(times: &mut [(Class, Vec<f64>)]) {
    let mut all: Vec<_> = times.iter().flat_map(|(_, times)| times.iter().copied()).collect();
    all.sort_by(f64::total_cmp);
    let kept = all.len() - all.len() * SLOWEST_PERCENT / 100;
    let limit = all.get(kept.saturating_sub(1)).copied().unwrap_or_default();
    times.iter_mut().for_each(|(_, times)| times.retain(|time| *time <= limit));
}

/// Welch's t of two samples.
fn welch(one: &[f64], other: &[f64]) -> f64 {
    let moments = |sample: &[f64]| {
        let count = sample.len().max(2) as f64;
        let mean = sample.iter().sum::<f64>() / count;
        let variance = sample.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / (count - 1.0);
        (mean, variance / count)
    };
    let ((mean, error), (other_mean, other_error)) = (moments(one), moments(other));
    let error = (error + other_error).sqrt();
    if error > 0.0 { (mean - other_mean) / error } else { 0.0 }
}

/// Fails where the boundary gave a class another answer than its own: the figures would compare other things.
fn check(class: Class, reply: &Result<Reply, Error>) -> Result<(), BenchError> {
    let expected = match (class, reply) {
        (Class::Right, Ok(Reply::Verified { right: true, .. } | Reply::Changed(Changed::Right { .. })))
        | (Class::Wrong, Ok(Reply::Verified { right: false, .. } | Reply::Changed(Changed::Wrong))) => true,
        (Class::Right | Class::Wrong, _) => false,
        (_, reply) => matches!(reply, Err(Error::Refused(Refusal::MalformedBlock))),
    };
    if expected { Ok(()) } else { Err(unexpected()) }
}

const CONTROL: ControlBinding =
    ControlBinding { id: [7; 16], purpose: Purpose::SetPin, expires_at_unix_milliseconds: u64::MAX };

fn card() -> Result<CardBinding, BenchError> {
    CardBinding::new("bank", "1000200030").map_err(failed)
}

fn source(sealed: &SealedKey, block: EncryptedBlock) -> Result<Source, BenchError> {
    let sealed_tzpk = SealedKey::from_bytes(sealed.as_bytes()).map_err(failed)?;
    Ok(Source::Device { sealed_tzpk, control: CONTROL, block })
}

fn encrypted(tzpk: &Tzpk, clear: u64) -> Result<EncryptedBlock, BenchError> {
    EncryptedBlock::from_bytes(&tzpk.encrypt_block(&clear.to_be_bytes())).map_err(failed)
}

/// The software token answers at the first poll.
fn execute(hsm: &Hsm, request: Request) -> Result<Reply, Error> {
    hsm.execute(request).now_or_never().unwrap_or(Err(Error::DeadlinePassed))
}

fn failed(error: impl fmt::Display) -> BenchError {
    BenchError::Load(error.to_string())
}

fn unexpected() -> BenchError {
    BenchError::Load("the boundary gave another answer than the block has".to_owned())
}

/// SplitMix64, from a random start: the order of the classes must not repeat.
struct Random(u64);

impl Random {
    fn new() -> Self {
        Self(Uuid::new_v4().as_u64_pair().0)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn welch_finds_a_difference_of_means_and_none_in_one_sample() {
        let sample = |mean: f64| (0..1_000).map(|n| mean + f64::from(n % 10)).collect::<Vec<_>>();
        assert!(welch(&sample(100.0), &sample(100.0)).abs() < 1e-9);
        assert!(welch(&sample(100.0), &sample(101.0)).abs() > T_MAX);
    }

    #[test]
    fn the_slowest_calls_are_left_out_by_one_limit() {
        let mut times = [(Class::Right, vec![1.0; 99]), (Class::Wrong, vec![2.0; 101])];
        times[1].1.extend([1e9, 1e9]);
        crop(&mut times);
        assert_eq!(times.map(|(_, times)| times.len()), [99, 101]);
    }
}
