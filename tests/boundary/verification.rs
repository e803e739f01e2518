//! Verification, change, generation, another account number and verification values in the boundary's own process: they leave no clear PIN and no key
//! in its memory, its log or its errors. And the command that measures their time runs.

use device::Tzpk;
use hsm_protocol::{
    Account, AccountNumber, CardBinding, Changed, Error, ExpectedValue, PinRecord, PvkName, Refusal, Reply, Request,
    Source, Target, ValueMethod, VerificationValue, ZoneBlock, ZoneFormat, ZoneKey, ZoneName,
};
use memory_search::{Planted, storage_key_of};
use support::{
    ceremony::{pinseal, said},
    hsm_process::HsmProcess,
};

use crate::zones::{AES_ZONE_KEY, Connection, TDES_ZONE_KEY, with_zone_key, zone};

const ZONE: &str = "[[zones]]\nname = \"app-bank\"\ntenant = \"bank\"\nindex = 0\n\
                    formats = [\"iso-1\", \"iso-0\", \"iso-3\"]\nuses = [\"set-pin\", \"verify\", \"change\", \"translate\"]\n\
                    [[zones]]\nname = \"auth-host\"\ntenant = \"bank\"\nindex = 1\nformats = [\"iso-4\"]\n\
                    uses = [\"verify\", \"change\", \"translate\"]";
const PAN: &str = "5413330089020011";
/// The account number that the card gets.
const OTHER_PAN: &str = "4111111111111111";
/// The validation data of [`IBM_3624`] for [`PAN`]: its digits 5 to 15, padded.
const VALIDATION_DATA: u64 = 0x3300_8902_001F_FFFF;
const IBM_3624: &str = "ibm-3624:bank:0123456789012345:5-15-f";
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

fn account(connection: &mut Connection, number: &str) -> Account {
    let number = AccountNumber::parse(number).unwrap();
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

/// The eight digits of a clear block.
fn pin_of((format, clear): (ZoneFormat, u64)) -> u64 {
    (clear ^ if format.binds_account() { ACCOUNT_FIELD } else { 0 }) << 8 >> 32
}

fn source(key: &Tzpk, (format, clear): (ZoneFormat, u64)) -> Source {
    let block = ZoneBlock::from_bytes(format, &key.encrypt_block(&clear.to_be_bytes())).unwrap();
    Source::Zone { key: zone(), block }
}

struct Boundary {
    connection: Connection,
    key: Tzpk,
    errors: String,
    /// The generated PINs, where a zone may get them.
    generated: Option<Vec<u64>>,
}

impl Boundary {
    fn translate(&mut self, source: Source, target: Target) -> Reply {
        self.run(|account| Request::Translate { source, target, card: card(), account }).unwrap()
    }

    fn set(&mut self, clear: (ZoneFormat, u64)) -> PinRecord {
        match self.translate(source(&self.key, clear), Target::Record) {
            Reply::Record { record, .. } => record,
            _ => panic!("the reply of another request"),
        }
    }

    fn give(&mut self, source: Source, key: ZoneKey, format: ZoneFormat) -> ZoneBlock {
        match self.translate(source, Target::Zone { key, format }) {
            Reply::ZoneBlock(block) => block,
            _ => panic!("the reply of another request"),
        }
    }

    fn run(&mut self, request: impl FnOnce(Account) -> Request) -> Result<Reply, Error> {
        let account = account(&mut self.connection, PAN);
        let reply = self.connection.execute(&request(account));
        if let Err(error) = &reply {
            self.errors += &error.to_string();
        }
        reply
    }

    fn is_right(&mut self, clear: (ZoneFormat, u64), record: &PinRecord) -> Result<bool, Error> {
        self.is_right_block(source(&self.key, clear), record)
    }

    fn is_right_block(&mut self, source: Source, record: &PinRecord) -> Result<bool, Error> {
        let record = record.clone();
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
            self.use_values((format, clear), &record, one_way);
            self.use_format_4((format, clear), new, &record);
            self.bind_to_other_account((format, clear), &record);
        }
        let generated = self.run(|account| Request::Generate { digits: 8, card: card(), account });
        let Ok(Reply::Record { record, .. }) = generated else { panic!("not generated") };
        if self.generated.is_some() {
            let given = self.give(Source::Record(record.clone()), zone(), ZoneFormat::Iso1);
            let clear = u64::from_be_bytes(self.key.decrypt_block(given.as_bytes().try_into().unwrap()));
            let pin = clear << 8 >> 32;
            assert!(self.is_right(clear_blocks(pin)[0], &record).unwrap());
            self.generated.iter_mut().for_each(|generated| generated.push(pin));
        }
    }

    /// Derives a PVV and an offset, and compares a PIN with both and with the natural PIN.
    fn use_values(&mut self, clear: (ZoneFormat, u64), record: &PinRecord, one_way: bool) {
        let (pvk, ibm_3624) = (|| PvkName::parse("bank:1").unwrap(), || ZoneName::parse("bank").unwrap());
        let mut derive = |method: ValueMethod, absent: &str| {
            let record = record.clone();
            match self.run(|account| Request::DeriveValue { record, method, card: card(), account }) {
                Ok(Reply::Value(value)) => value,
                Err(Error::OneWay) if one_way => VerificationValue::parse(absent).unwrap(),
                _ => panic!("no value"),
            }
        };
        let pvv = derive(ValueMethod::Pvv(pvk()), "0000");
        let offset = derive(ValueMethod::Ibm3624Offset(ibm_3624()), "00000000");
        for (expected, is_right) in [
            (ExpectedValue::Pvv { key: pvk(), value: pvv }, true),
            (ExpectedValue::Ibm3624Offset { key: ibm_3624(), value: offset }, true),
            (ExpectedValue::Ibm3624Natural { key: ibm_3624(), digits: 8 }, false),
        ] {
            let source = source(&self.key, clear);
            let compared = self.run(|account| Request::VerifyValue { source, expected, card: card(), account });
            let Ok(Reply::Verified { right, .. }) = compared else { panic!("not compared") };
            assert!(right == is_right || one_way);
        }
    }

    /// Verifies and changes a PIN by blocks of format 4, under the AES key of a zone.
    fn use_format_4(&mut self, clear: (ZoneFormat, u64), new: (ZoneFormat, u64), record: &PinRecord) {
        let auth_host = || ZoneKey { zone: ZoneName::parse("auth-host").unwrap(), version: None };
        let [old, new] = [clear, new].map(|clear| {
            let block = self.give(source(&self.key, clear), auth_host(), ZoneFormat::Iso4);
            Source::Zone { key: auth_host(), block }
        });
        assert!(self.is_right_block(old.clone(), record).unwrap());
        assert!(!self.is_right_block(new.clone(), record).unwrap());
        let record = record.clone();
        let changed = self.run(|account| Request::Change { old, new, record, card: card(), account });
        assert!(matches!(changed, Ok(Reply::Changed(Changed::Right { .. }))));
    }

    /// Gives the card another account number: its PIN stays.
    fn bind_to_other_account(&mut self, clear: (ZoneFormat, u64), record: &PinRecord) {
        let other = account(&mut self.connection, OTHER_PAN);
        let (record, to) = (record.clone(), (card(), other.clone()));
        let bound = self.run(|account| Request::Rebind { record, from: (card(), account), to });
        let Ok(Reply::Record { record, .. }) = bound else { panic!("not bound") };
        // Format 1 has no account number inside.
        let source = source(&self.key, clear_blocks(pin_of(clear))[0]);
        let verify = Request::Verify { source, record, card: card(), account: other };
        assert!(matches!(self.connection.execute(&verify), Ok(Reply::Verified { right: true, .. })));
    }
}

#[test]
fn no_verification_leaves_a_clear_value() {
    for form in ["iso-4", "one-way"] {
        let (ceremony, key) = with_zone_key();
        let (pvk, ibm_3624) = (ceremony.load_known("pvk:bank:1", 0x6D), ceremony.load_known(IBM_3624, 0x4E));
        let aes_key = ceremony.load_aes("zone:auth-host");
        let is_reversible = form == "iso-4";
        let zones = if is_reversible { ZONE.replace("\"set-pin\"", "\"set-pin\", \"get-pin\"") } else { ZONE.into() };
        let hsm = HsmProcess::start(ceremony.directory(), &format!("form = {form:?}\n{zones}"));
        let (mut planted, mut seen) = (Planted::default(), Vec::new());
        let data = ceremony.at("data");
        planted.plant(STORAGE_KEY, &storage_key_of(&data.join("vault"), &data.join("vault.key")).unwrap());
        planted.plant(AES_ZONE_KEY, &aes_key);
        planted.plant(TDES_ZONE_KEY, key.as_bytes());
        planted.plant("the PVK", pvk.as_bytes());
        planted.plant("the IBM 3624 key", ibm_3624.as_bytes());
        let encrypted = ibm_3624.encrypt_block(&VALIDATION_DATA.to_be_bytes());
        planted.plant("the encrypted validation data", &encrypted);
        planted.plant("the natural PIN", &natural_pin(u64::from_be_bytes(encrypted)).to_be_bytes());
        let generated = is_reversible.then(Vec::new);
        let mut boundary = Boundary { connection: Connection::open(&hsm), key, errors: String::new(), generated };
        for turn in 0..PINS {
            // Unique PINs of eight digits, one in each nibble.
            let unique = |first: &str| {
                u64::from_str_radix(&format!("{first}{:06}", (turn * 7_919 + 13) % 1_000_000), 16).unwrap()
            };
            let (pin, next) = (unique("97"), unique("86"));
            for pin in [pin, next] {
                plant_pin(&mut planted, &mut seen, pin);
            }
            boundary.use_pin(pin, next, !is_reversible);
        }
        for pin in boundary.generated.iter().flatten() {
            plant_pin(&mut planted, &mut seen, *pin);
        }
        assert_eq!(boundary.generated.as_ref().map(Vec::len), is_reversible.then_some(PINS as usize));
        let found = planted.find_in(hsm.id()).expect("run the tests as root").names;
        // The storage key of format 4 is in use in both forms.
        let expected = [TDES_ZONE_KEY, AES_ZONE_KEY, STORAGE_KEY];
        assert_eq!(found.into_iter().collect::<Vec<_>>(), expected, "left in the boundary's memory, {form}");
        let text = (hsm.log() + &boundary.errors).to_lowercase();
        assert!(seen.iter().all(|clear| !text.contains(clear.as_str())), "left in log or errors, {form}");
    }
}

/// Plants the forms that a PIN has inside the boundary.
fn plant_pin(planted: &mut Planted, seen: &mut Vec<String>, pin: u64) {
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

/// The natural PIN of encrypted validation data, by the table of [`IBM_3624`]: A to F become 0 to 5.
fn natural_pin(encrypted: u64) -> u64 {
    (0..16).map(|place| (((encrypted >> (4 * place)) & 0xF) % 10) << (4 * place)).sum()
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
