//! Verification, change, generation and verification values in the boundary's own process: they leave no clear PIN and no key
//! in its memory, its log or its errors. And the command that measures their time runs.

use device::Tzpk;
use hsm_protocol::{
    Account, AccountNumber, CardBinding, Changed, Error, ExpectedValue, PinRecord, PvkName, Refusal, Reply, Request,
    Source, Target, ValueMethod, VerificationValue, ZoneBlock, ZoneFormat,
};
use memory_search::{Planted, storage_key_of};
use support::{
    ceremony::{pinseal, said},
    hsm_process::HsmProcess,
};

use crate::zones::{Connection, load_known, with_zone_key, zone};

const ZONE: &str = "[[zones]]\nname = \"app-bank\"\ntenant = \"bank\"\nindex = 0\n\
                    formats = [\"iso-1\", \"iso-0\", \"iso-3\"]\nuses = [\"set-pin\", \"verify\", \"change\"]";
const PAN: &str = "5413330089020011";
/// `0000` and the 12 rightmost digits of the account number without the check digit.
const ACCOUNT_FIELD: u64 = 0x0000_3330_0890_2001;
/// The PVKI of the key under test.
const PVKI: u64 = 1;
/// A key that stays in the memory of the vault's process: a search that misses it does not work.
const STORAGE_KEY: &str = "the storage key";
const PINS: u64 = 200;

fn card() -> CardBinding {
    CardBinding::new("bank", "1000200030").unwrap()
}

fn account(connection: &mut Connection) -> Account {
    let number = AccountNumber::parse(PAN).unwrap();
    match connection.execute(&Request::SealPan { number, card: card() }).unwrap() {
        Reply::SealedPan(sealed) => Account::Registered(sealed),
        _ => panic!("the reply of another request"),
    }
}

fn head(control: u64, pin: u64) -> u64 {
    (control << 60) | (8 << 56) | (pin << 24)
}

/// The clear block of a PIN of eight digits in each format of the zone.
fn clear_blocks(pin: u64) -> [(ZoneFormat, u64); 3] {
    [
        (ZoneFormat::Iso1, head(1, pin) | 0x7A_3C90),
        (ZoneFormat::Iso0, (head(0, pin) | 0xFF_FFFF) ^ ACCOUNT_FIELD),
        (ZoneFormat::Iso3, (head(3, pin) | 0xAB_CDEF) ^ ACCOUNT_FIELD),
    ]
}

fn source(key: &Tzpk, (format, clear): (ZoneFormat, u64)) -> Source {
    let block = ZoneBlock::from_bytes(format, &key.encrypt_block(&clear.to_be_bytes())).unwrap();
    Source::Zone { key: zone(), block }
}

struct Boundary {
    connection: Connection,
    key: Tzpk,
    errors: String,
}

impl Boundary {
    fn set(&mut self, clear: (ZoneFormat, u64)) -> PinRecord {
        let account = account(&mut self.connection);
        let request =
            Request::Translate { source: source(&self.key, clear), target: Target::Record, card: card(), account };
        match self.connection.execute(&request).unwrap() {
            Reply::Record { record, .. } => record,
            _ => panic!("the reply of another request"),
        }
    }

    fn run(&mut self, request: impl FnOnce(Account) -> Request) -> Result<Reply, Error> {
        let account = account(&mut self.connection);
        let reply = self.connection.execute(&request(account));
        if let Err(error) = &reply {
            self.errors += &error.to_string();
        }
        reply
    }

    fn is_right(&mut self, clear: (ZoneFormat, u64), record: &PinRecord) -> Result<bool, Error> {
        let (source, record) = (source(&self.key, clear), record.clone());
        match self.run(|account| Request::Verify { source, record, card: card(), account })? {
            Reply::Verified { right, .. } => Ok(right),
            _ => panic!("the reply of another request"),
        }
    }

    /// Every operation on one PIN: `next` is the PIN after a change.
    fn use_pin(&mut self, pin: u64, next: u64, one_way: bool) {
        for ((format, clear), new) in clear_blocks(pin).into_iter().zip(clear_blocks(next)) {
            let record = self.set((format, clear));
            assert!(self.is_right((format, clear), &record).unwrap());
            assert!(!self.is_right(new, &record).unwrap());
            // A digit above 9 makes the block malformed.
            let refused = self.is_right((format, clear | (0xF << 48)), &record);
            assert!(matches!(refused, Err(Error::Refused(Refusal::MalformedBlock))));
            let (old, new_source) = (source(&self.key, (format, clear)), source(&self.key, new));
            let kept = record.clone();
            let changed =
                self.run(|account| Request::Change { old, new: new_source, record: kept, card: card(), account });
            let Ok(Reply::Changed(Changed::Right { record: changed })) = changed else { panic!("not changed") };
            assert!(self.is_right(new, &changed).unwrap());
            let pvk = || PvkName::parse("bank:1").unwrap();
            let method = ValueMethod::Pvv(pvk());
            let derived = self.run(|account| Request::DeriveValue { record, method, card: card(), account });
            let value = match derived {
                Ok(Reply::Value(value)) => value,
                Err(Error::OneWay) if one_way => VerificationValue::parse("0000").unwrap(),
                _ => panic!("no value"),
            };
            let source = source(&self.key, (format, clear));
            let expected = ExpectedValue::Pvv { key: pvk(), value };
            let compared = self.run(|account| Request::VerifyValue { source, expected, card: card(), account });
            assert!(matches!(compared, Ok(Reply::Verified { right, .. }) if right || one_way));
        }
        let generated = self.run(|account| Request::Generate { digits: 8, card: card(), account });
        assert!(matches!(generated, Ok(Reply::Record { .. })));
    }
}

#[test]
fn no_verification_leaves_a_clear_value() {
    for form in ["iso-4", "one-way"] {
        let (ceremony, key) = with_zone_key();
        let pvk = load_known(&ceremony, "pvk:bank:1", 0x6D);
        let hsm = HsmProcess::start(ceremony.directory(), &format!("form = {form:?}\n{ZONE}"));
        let (mut planted, mut seen) = (Planted::default(), Vec::new());
        let data = ceremony.at("data");
        planted.plant(STORAGE_KEY, &storage_key_of(&data.join("vault"), &data.join("vault.key")).unwrap());
        planted.plant("the zone key", key.as_bytes());
        planted.plant("the PVK", pvk.as_bytes());
        let mut boundary = Boundary { connection: Connection::open(&hsm), key, errors: String::new() };
        for turn in 0..PINS {
            // Unique PINs of eight digits, one in each nibble.
            let unique = |first: &str| {
                u64::from_str_radix(&format!("{first}{:06}", (turn * 7_919 + 13) % 1_000_000), 16).unwrap()
            };
            let (pin, next) = (unique("97"), unique("86"));
            for pin in [pin, next] {
                // The first half of a format 4 block, and the field under the CMAC of a one-way record.
                planted.plant("a PIN in block form", &(head(4, pin) | 0xAA_AAAA).to_be_bytes());
                planted.plant("a PIN of a one-way record", &head(0, pin).to_be_bytes());
                let parameter = ((ACCOUNT_FIELD & 0xFFF_FFFF_FFFF) << 20) | (PVKI << 16) | (pin >> 16);
                planted.plant("a security parameter", &parameter.to_be_bytes());
                for (_, clear) in clear_blocks(pin) {
                    planted.plant("a clear block", &clear.to_be_bytes());
                    planted.plant("a clear block", &(clear | (0xF << 48)).to_be_bytes());
                    seen.push(format!("{clear:016x}"));
                }
                seen.push(format!("{pin:08x}"));
            }
            boundary.use_pin(pin, next, form == "one-way");
        }
        let found = planted.find_in(hsm.id()).expect("run the tests as root").names;
        // The storage key of format 4 is in use in both forms.
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [STORAGE_KEY], "left in the boundary's memory, {form}");
        let text = (hsm.log() + &boundary.errors).to_lowercase();
        assert!(seen.iter().all(|clear| !text.contains(clear.as_str())), "left in log or errors, {form}");
    }
}

#[test]
fn the_timing_command_compares_every_pair_of_outcomes() {
    let output = pinseal().args(["bench", "timing", "--calls", "2000"]).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let last = printed.lines().last().unwrap_or_default();
    assert!(last.starts_with("2000 calls of each comparison: the largest |t| is "), "{}", said(&output));
    // A busy machine may exceed the limit; the command then fails.
    assert_eq!(output.status.success(), !last.contains("NOT below"), "{}", said(&output));
    // Right against wrong, and the pairs of the malformed classes.
    for (operation, pairs) in [
        ("verify a record of iso-4 from a device", 1 + 6),
        ("verify a record of one-way from a device", 1 + 6),
        ("change a record of iso-4 from a device", 6),
        ("verify a PVV of iso-4 from a device", 1 + 6),
        ("verify an offset of iso-4 from a device", 1 + 6),
        ("verify a record of iso-4 from a zone in iso-0", 1 + 3),
        ("verify a record of iso-4 from a zone in iso-1", 1),
        ("verify a record of iso-4 from a zone in iso-3", 1 + 3),
        ("verify a record of iso-4 from a zone in iso-4", 1 + 1),
        ("set a record of iso-4 from a zone in iso-0", 3),
        ("set a record of iso-4 from a zone in iso-3", 3),
        ("set a record of iso-4 from a zone in iso-4", 1),
    ] {
        assert_eq!(printed.lines().filter(|line| line.starts_with(operation)).count(), pairs, "{operation}: {printed}");
    }
}
