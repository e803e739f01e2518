//! `pinseal bench timing`: whether the time of a verification, a change or a set reveals the outcome.
//!
//! Welch's t between the times of two classes of blocks, in process, with the classes interleaved at random (Reparaz, Balasch
//! and Verbauwhede, "Dude, is my code constant time?", 2017).

use std::{
    fmt,
    io::{self, Write},
    path::Path,
    time::Instant,
};

use clap::Args;
use device::{Device, KeyBits, Tzpk};
use futures::FutureExt;
use hsm::{
    Account, AccountNumber, Binding, CardBinding, Changed, Config, ControlBinding, DeviceKey, EncryptedBlock, Error,
    ExpectedValue, Hsm, KeyAlgorithm, KeyFileUse, KeyStore, KeyUsage, Keys, NewRecordFormat, ParityPolicy, PinRecord,
    Purpose, PvkName, Refusal, Reply, Request, SealedAccount, SealedKey, Source, Target, Unlock, ValueMethod, Vault,
    Wanted, WantedLevel, ZoneBlock, ZoneFormat, ZoneKey, ZoneName, ZoneRules, ZoneUse,
};
use uuid::Uuid;

use super::BenchError;
use crate::commands::demo::TemporaryDirectory;

/// The limit of |t| that the literature uses: random times exceed it once in 100,000 comparisons.
const T_MAX: f64 = 4.5;
/// Different blocks of each class, so that no class has a block that the processor knows better.
const BLOCKS: usize = 1_024;
/// The slowest calls of a comparison, in a hundred, that are left out: a call that was interrupted says nothing.
const SLOWEST_PERCENT: usize = 1;

/// The arguments of `pinseal bench timing`.
#[derive(Args)]
pub(crate) struct TimingArguments {
    /// The calls of each comparison: right and wrong PINs, and the malformed classes together. The command fails where one
    /// |t| is not below 4.5
    #[arg(long, default_value_t = 1_000_000, value_name = "N")]
    calls: usize,
}

/// A class of blocks: of a device's format 1, each with random fill; of a zone in each format.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Right,
    Wrong,
    Control,
    LengthLow,
    LengthHigh,
    Digit,
    Fill,
    OtherAccount,
    RandomBytes,
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
            // A block of a device has no fill to check and no account number.
            Self::Digit | Self::Fill | Self::OtherAccount | Self::RandomBytes => (1, 4, wrong | 0xA000),
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
            Self::Fill => "wrong fill",
            Self::OtherAccount => "another account number",
            Self::RandomBytes => "random bytes",
        })
    }
}

/// The PIN of the measured record: 2580.
const RIGHT_PIN: u64 = 0x2580;

/// The account number of the measured card.
const PAN: &str = "5413330089020011";
/// Of these 12 rightmost digits the last has another bit 8: every fill nibble of formats 0 and 3 there becomes wrong.
const PAN_OF_OTHER_FILL: &str = "5413330089020091";
/// Of these 12 rightmost digits the first makes the third digit of the PIN 2580, an 8, an A.
const PAN_OF_OTHER_DIGIT: &str = "5411330089020011";
const TDES_ZONE: &str = "bench";
const AES_ZONE: &str = "bench-aes";
const IBM_3624: &str = "ibm-3624:bench:0123456789012345:5-15-f";

/// The measured operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Verify,
    Change,
    VerifyPvv,
    VerifyOffset,
    Set,
}

impl Operation {
    /// The classes that are compared with each other. A right change or set returns a record, and a wrong one does not: the
    /// answers differ in any case.
    fn compares_right_and_wrong(self) -> bool {
        matches!(self, Self::Verify | Self::VerifyPvv | Self::VerifyOffset)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verify => "verify a record",
            Self::Change => "change a record",
            Self::VerifyPvv => "verify a PVV",
            Self::VerifyOffset => "verify an offset",
            Self::Set => "set a record",
        })
    }
}

/// The origin of the measured blocks.
#[derive(Clone, Copy)]
enum Origin {
    Device,
    Zone(ZoneFormat),
}

impl Origin {
    fn malformed(self) -> &'static [Class] {
        match self {
            Self::Device => &Class::MALFORMED,
            Self::Zone(ZoneFormat::Iso0 | ZoneFormat::Iso3) => &[Class::Control, Class::Digit, Class::Fill],
            Self::Zone(ZoneFormat::Iso1) => &[],
            Self::Zone(ZoneFormat::Iso4) => &[Class::OtherAccount, Class::RandomBytes],
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device => f.write_str("a device"),
            Self::Zone(format) => write!(f, "a zone in {format}"),
        }
    }
}

/// A measured block.
#[derive(Clone)]
enum MadeBlock {
    Device(EncryptedBlock),
    Zone(ZoneBlock),
}

/// An open boundary with a record, a tzpk, zones and verification keys.
struct Bench {
    hsm: Hsm,
    tzpk: Tzpk,
    sealed: SealedKey,
    account: SealedAccount,
    record: PinRecord,
    random: Random,
    // The vault of the boundary, removed at the end.
    _directory: TemporaryDirectory,
}

/// Measures each operation, prints |t| of each pair of classes, and fails where one is too large.
pub(super) fn run(arguments: &TimingArguments) -> Result<(), BenchError> {
    let zones = [ZoneFormat::Iso0, ZoneFormat::Iso1, ZoneFormat::Iso3, ZoneFormat::Iso4].map(Origin::Zone);
    let mut largest = 0f64;
    for form in [NewRecordFormat::Iso4, NewRecordFormat::OneWay] {
        let stored = form.form().name();
        let is_reversible = form == NewRecordFormat::Iso4;
        let mut bench = Bench::open(form)?;
        let mut measured = vec![(Operation::Verify, Origin::Device)];
        if is_reversible {
            measured.push((Operation::Change, Origin::Device));
            measured.push((Operation::VerifyPvv, Origin::Device));
            measured.push((Operation::VerifyOffset, Origin::Device));
            measured.extend(zones.map(|zone| (Operation::Verify, zone)));
            measured.extend(zones.map(|zone| (Operation::Set, zone)));
        }
        for (operation, origin) in measured {
            let well_formed = operation.compares_right_and_wrong().then_some(&Class::WELL_FORMED[..]);
            for classes in well_formed.into_iter().chain([origin.malformed()]).filter(|classes| classes.len() > 1) {
                let times = bench.measure((operation, origin), classes, arguments.calls)?;
                for (at, (one, first)) in times.iter().enumerate() {
                    for (other, second) in times.iter().skip(at + 1) {
                        let t = welch(first, second).abs();
                        largest = largest.max(t);
                        writeln!(
                            io::stdout(),
                            "{operation} of {stored} from {origin}: {one} against {other}: |t| = {t:.2}"
                        )?;
                    }
                }
            }
        }
    }
    let is_below = largest < T_MAX;
    let verdict = if is_below { "below" } else { "NOT below" };
    writeln!(
        io::stdout(),
        "{} calls of each comparison: the largest |t| is {largest:.2}, {verdict} {T_MAX}",
        arguments.calls
    )?;
    if is_below { Ok(()) } else { Err(BenchError::Timing { largest, limit: T_MAX }) }
}

impl Bench {
    fn open(form: NewRecordFormat) -> Result<Self, BenchError> {
        let directory = TemporaryDirectory::unless(None)?;
        let keys = make_keys(directory.path())?;
        let is_reversible = form == NewRecordFormat::Iso4;
        let wanted = Wanted { level: WantedLevel::Host, form: Some(form) };
        let zones = if is_reversible { zones()? } else { Vec::new() };
        let hsm = Hsm::open(Config { keys, wanted, zones, ..Config::default() }).map_err(failed)?;
        let device = Device::generate(KeyBits::Rsa2048).map_err(failed)?;
        let public_key = DeviceKey::parse(device.public_key_der()).map_err(failed)?;
        let issue = Request::IssueTzpk { public_key, binding: Binding { card: card()?, control: CONTROL } };
        let Reply::Tzpk(issued) = execute(&hsm, issue).map_err(failed)? else { return Err(unexpected()) };
        let tzpk = device.decrypt_tzpk(&issued.wrapped).map_err(failed)?;
        let account = sealed(&hsm, PAN)?;
        let mut random = Random::new();
        let clear = Class::Right.clear(random.next());
        let record = set(&hsm, source(&issued.sealed, encrypted(&tzpk, clear)?)?, &account)?.ok_or_else(unexpected)?;
        Ok(Self { hsm, tzpk, sealed: issued.sealed, account, record, random, _directory: directory })
    }

    /// The times of each class, in nanoseconds.
    fn measure(
        &mut self,
        (operation, origin): (Operation, Origin),
        classes: &[Class],
        calls: usize,
    ) -> Result<Vec<(Class, Vec<f64>)>, BenchError> {
        let mut blocks = Vec::new();
        for class in classes {
            let made = (0..BLOCKS).map(|_| self.block(origin, *class));
            blocks.push((*class, made.collect::<Result<Vec<_>, _>>()?));
        }
        let new = self.block(Origin::Device, Class::Right)?;
        let expected = match operation {
            Operation::VerifyPvv => Some(self.expected(&ValueMethod::Pvv(pvk()?))?),
            Operation::VerifyOffset => Some(self.expected(&ValueMethod::Ibm3624Offset(name(TDES_ZONE)?))?),
            Operation::Verify | Operation::Change | Operation::Set => None,
        };
        let mut times: Vec<_> = classes.iter().map(|class| (*class, Vec::with_capacity(calls))).collect();
        for _ in 0..calls {
            let (which, at) = (self.random.below(classes.len()), self.random.below(BLOCKS));
            let Some((class, block)) = blocks.get(which).and_then(|(class, made)| Some((*class, made.get(at)?))) else {
                continue;
            };
            let (source, record) = (self.source(block)?, self.record.clone());
            let (card, account) = (card()?, registered(&self.account)?);
            let request = match (operation, &expected) {
                (Operation::Set, _) => Request::Translate { source, target: Target::Record, card, account },
                (Operation::Change, _) => {
                    Request::Change { old: source, new: self.source(&new)?, record, card, account }
                }
                (_, Some(expected)) => Request::VerifyValue { source, expected: expected.clone(), card, account },
                (_, None) => Request::Verify { source, record, card, account },
            };
            let start = Instant::now();
            let reply = execute(&self.hsm, request);
            let took = start.elapsed();
            // One wrong PIN in 10,000 has the PVV of the right one.
            let may_share_a_pvv = operation == Operation::VerifyPvv && class == Class::Wrong;
            if may_share_a_pvv && matches!(reply, Ok(Reply::Verified { right: true, .. })) {
                continue;
            }
            check(class, &reply)?;
            if let Some((_, times)) = times.get_mut(which) {
                times.push(took.as_nanos() as f64);
            }
        }
        crop(&mut times);
        Ok(times)
    }

    fn source(&self, block: &MadeBlock) -> Result<Source, BenchError> {
        Ok(match block {
            MadeBlock::Device(block) => source(&self.sealed, *block)?,
            MadeBlock::Zone(block) => Source::Zone { key: zone_key(block.format())?, block: block.clone() },
        })
    }

    fn block(&mut self, origin: Origin, class: Class) -> Result<MadeBlock, BenchError> {
        Ok(match origin {
            Origin::Device => MadeBlock::Device(encrypted(&self.tzpk, class.clear(self.random.next()))?),
            Origin::Zone(format) => MadeBlock::Zone(self.zone_block(format, class)?),
        })
    }

    /// A block of a zone, exported by the boundary: nobody here knows the zone key. A malformed block is one that was exported
    /// for another account number or in another format.
    fn zone_block(&mut self, format: ZoneFormat, class: Class) -> Result<ZoneBlock, BenchError> {
        let export = |bench: &mut Self, format, class: Class, pan: &str| {
            let account = sealed(&bench.hsm, pan)?;
            // A random wrong PIN may break the PIN policy.
            let record = loop {
                let clear = class.clear(bench.random.next());
                if let Some(record) = set(&bench.hsm, source(&bench.sealed, encrypted(&bench.tzpk, clear)?)?, &account)?
                {
                    break record;
                }
            };
            let target = Target::Zone { key: zone_key(format)?, format };
            let account = registered(&account)?;
            let export = Request::Translate { source: Source::Record(record), target, card: card()?, account };
            match execute(&bench.hsm, export).map_err(failed)? {
                Reply::ZoneBlock(block) => Ok(block),
                _ => Err(unexpected()),
            }
        };
        match class {
            Class::Right | Class::Wrong => export(self, format, class, PAN),
            Class::Control => {
                let block = export(self, ZoneFormat::Iso1, Class::Right, PAN)?;
                ZoneBlock::from_bytes(format, block.as_bytes()).map_err(failed)
            }
            Class::Digit => export(self, format, Class::Right, PAN_OF_OTHER_DIGIT),
            Class::Fill | Class::OtherAccount => export(self, format, Class::Right, PAN_OF_OTHER_FILL),
            Class::RandomBytes => {
                let (high, low) = (self.random.next().to_be_bytes(), self.random.next().to_be_bytes());
                ZoneBlock::from_bytes(format, &[high, low].concat()).map_err(failed)
            }
            Class::LengthLow | Class::LengthHigh => Err(unexpected()),
        }
    }

    /// The value of the record's PIN.
    fn expected(&self, method: &ValueMethod) -> Result<ExpectedValue, BenchError> {
        let (record, method, account) = (self.record.clone(), method.clone(), registered(&self.account)?);
        let derive = Request::DeriveValue { record, method: method.clone(), card: card()?, account };
        let Reply::Value(value) = execute(&self.hsm, derive).map_err(failed)? else { return Err(unexpected()) };
        Ok(match method {
            ValueMethod::Pvv(key) => ExpectedValue::Pvv { key, value },
            ValueMethod::Ibm3624Offset(key) => ExpectedValue::Ibm3624Offset { key, value },
        })
    }
}

/// A vault with zone keys and verification keys.
fn make_keys(directory: &Path) -> Result<Keys, BenchError> {
    let vault = || Vault::File { path: directory.join("vault"), unlock: Unlock::KeyFile(directory.join("vault.key")) };
    Hsm::create_vault(&vault(), KeyFileUse::Refuse).map_err(failed)?;
    let now = clock::now().0;
    let mut store = KeyStore::open(Keys::Vault(vault()), &Wanted::default(), now).map_err(failed)?;
    for (usage, algorithm) in [
        (KeyUsage::Zone(name(TDES_ZONE)?), KeyAlgorithm::TdesDouble),
        (KeyUsage::Zone(name(AES_ZONE)?), KeyAlgorithm::Aes256),
        (KeyUsage::Pvk(pvk()?), KeyAlgorithm::TdesDouble),
        (KeyUsage::parse(IBM_3624).ok_or_else(unexpected)?, KeyAlgorithm::TdesDouble),
    ] {
        let made = store.make(usage.clone(), algorithm, now).map_err(failed)?;
        store.activate(&usage, made.version, now).map_err(failed)?;
    }
    store.commit([0; 32]).map_err(failed)?;
    store.finish().map_err(failed)?;
    Ok(Keys::Vault(vault()))
}

fn zones() -> Result<Vec<ZoneRules>, BenchError> {
    let uses = vec![ZoneUse::SetPin, ZoneUse::GetPin, ZoneUse::Verify, ZoneUse::Export];
    let rules = |name, formats, uses| {
        let tenant = "bank".to_owned();
        ZoneRules { name, tenant, formats, uses, parity: ParityPolicy::Ignore }
    };
    let aes_uses = vec![ZoneUse::SetPin, ZoneUse::Verify, ZoneUse::Export];
    Ok(vec![
        rules(name(TDES_ZONE)?, vec![ZoneFormat::Iso1, ZoneFormat::Iso0, ZoneFormat::Iso3], uses),
        rules(name(AES_ZONE)?, vec![ZoneFormat::Iso4], aes_uses),
    ])
}

fn name(text: &str) -> Result<ZoneName, BenchError> {
    ZoneName::parse(text).ok_or_else(unexpected)
}

fn pvk() -> Result<PvkName, BenchError> {
    PvkName::parse("bench:1").ok_or_else(unexpected)
}

fn zone_key(format: ZoneFormat) -> Result<ZoneKey, BenchError> {
    Ok(ZoneKey { zone: name(if format.needs_aes() { AES_ZONE } else { TDES_ZONE })?, version: None })
}

fn sealed(hsm: &Hsm, pan: &str) -> Result<SealedAccount, BenchError> {
    let seal = Request::SealPan { number: AccountNumber::parse(pan).map_err(failed)?, card: card()? };
    match execute(hsm, seal).map_err(failed)? {
        Reply::SealedPan(sealed) => Ok(sealed),
        _ => Err(unexpected()),
    }
}

fn registered(account: &SealedAccount) -> Result<Account, BenchError> {
    SealedAccount::from_bytes(account.as_bytes()).map(Account::Registered).map_err(failed)
}

/// Sets a PIN; `None` where the PIN breaks the PIN policy.
fn set(hsm: &Hsm, source: Source, account: &SealedAccount) -> Result<Option<PinRecord>, BenchError> {
    let account = registered(account)?;
    let set = Request::Translate { source, target: Target::Record, card: card()?, account };
    match execute(hsm, set) {
        Ok(Reply::Record { record, .. }) => Ok(Some(record)),
        Err(Error::Refused(Refusal::PinPolicy)) => Ok(None),
        Ok(_) => Err(unexpected()),
        Err(error) => Err(failed(error)),
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
