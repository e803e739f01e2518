//! Published vectors, and psec as the other party, through the zones of a vault.

use std::{io::Write, process::Stdio};

use base16ct::{mixed, upper};
use serde_json::Value;

use super::{zone_tests::*, *};
use crate::{
    PinPolicy,
    clear::ClearBytes,
    keyring::{KeyAlgorithm, is_weak},
};
use hsm_protocol::{ZoneBlock, ZoneFormat, ZoneUse};

fn entries(file: &str) -> Vec<Value> {
    serde_json::from_str::<Value>(file).unwrap().as_array().unwrap().clone()
}

fn text<'a>(entry: &'a Value, member: &str) -> &'a str {
    entry[member].as_str().unwrap()
}

fn bytes(entry: &Value, member: &str) -> Vec<u8> {
    mixed::decode_vec(text(entry, member)).unwrap()
}

fn format_of(entry: &Value) -> Option<ZoneFormat> {
    ZoneFormat::parse(&format!("iso-{}", text(entry, "format")))
}

/// Zones with the keys of vectors, each key once.
#[derive(Default)]
struct VectorZones(Vec<Known>);

impl VectorZones {
    /// The zone of a key; `None` for a weak key, which no ceremony loads.
    fn add(&mut self, tdes: bool, key: &[u8]) -> Option<usize> {
        let same = |algorithm: &KeyAlgorithm| algorithm.is_tdes() == tdes && algorithm.bytes() == key.len();
        let algorithm = KeyAlgorithm::ALL.into_iter().find(same).unwrap();
        if is_weak(algorithm, &ClearBytes::copied(key)) {
            return None;
        }
        let is_there = |known: &Known| known.algorithm.is_tdes() == tdes && known.key == key;
        if let Some(at) = self.0.iter().position(is_there) {
            return Some(at);
        }
        let zone = Box::leak(format!("v{}", self.0.len()).into_boxed_str());
        self.0.push(Known { zone, algorithm, key: Vec::leak(key.to_vec()) });
        Some(self.0.len() - 1)
    }

    /// A boundary that accepts every PIN, and lets each zone do what its formats allow.
    fn open(&self) -> Hsm {
        let directory = tempfile::tempdir().unwrap();
        vault_with(directory.path(), &self.0.iter().map(|known| Import { known, mode: 'B' }).collect::<Vec<_>>());
        let rules = |known: &Known| match known.algorithm.is_tdes() {
            true => known.rules(&[ZoneFormat::Iso0, ZoneFormat::Iso1, ZoneFormat::Iso3], &ZoneUse::ALL),
            false => known.rules(&[ZoneFormat::Iso4], &[ZoneUse::SetPin, ZoneUse::Export, ZoneUse::Translate]),
        };
        let policy = PinPolicy::new(4..=12, Vec::new(), std::iter::empty()).unwrap();
        let (keys, zones) = (KeysConfig::Vault(vault_in(directory.path())), self.0.iter().map(rules).collect());
        Hsm::open(Config { keys, policy, zones, ..Config::default() }).unwrap()
    }
}

/// The card whose plasticId is the account number of a vector: some are shorter than an account number may be.
fn card_of_pan(pan: &str) -> CardBinding {
    card_of("bank", pan)
}

fn set_on(hsm: &Hsm, zone: &Known, block: &ZoneBlock, pan: &str) -> Result<PinRecord, Error> {
    set_for(hsm, zone.key(), block, card_of_pan(pan), &Account::PlasticId).map(|new| new.record)
}

fn give_on(hsm: &Hsm, record: &PinRecord, zone: &Known, format: ZoneFormat, pan: &str) -> ZoneBlock {
    let (source, target) = (Source::Record(record.clone()), to_zone(zone, format));
    zone_block(wait(hsm.translate(source, target, card_of_pan(pan), &Account::PlasticId))).unwrap()
}

fn move_on(hsm: &Hsm, (from, block): (&Known, &ZoneBlock), (to, format): (&Known, ZoneFormat), pan: &str) -> ZoneBlock {
    let account = Account::Registered(wait(hsm.seal_pan(pan, card_of_pan(pan))).unwrap());
    let (source, target) = (from_zone(from, block), to_zone(to, format));
    zone_block(wait(hsm.translate(source, target, card_of_pan(pan), &account))).unwrap()
}

/// The digits of a PIN field.
fn digits(field: u64) -> String {
    let length = (field >> 56) & 0xF;
    (0..length).map(|place| char::from(b'0' + ((field >> (52 - 4 * place)) & 0xF) as u8)).collect()
}

#[test]
fn published_translations_pass_through_zones() {
    let all = entries(include_str!("../../../../tests/vectors/translations.json"));
    let mut zones = VectorZones::default();
    let mut zone = |entry: &Value, member: &str, tdes| zones.add(tdes, &bytes(entry, member)).unwrap();
    let keys: Vec<_> = all
        .iter()
        .map(|entry| {
            let of = |member| &entry[member];
            (
                zone(entry, "tzpk", true),
                zone(of("to_iso0"), "key", true),
                zone(of("to_iso4_aes128"), "key", false),
                zone(of("to_iso4_aes256"), "key", false),
            )
        })
        .collect();
    let hsm = zones.open();
    for (entry, (from, tdes, aes_128, aes_256)) in all.iter().zip(keys) {
        let [from, tdes, aes_128, aes_256] = [from, tdes, aes_128, aes_256].map(|at| &zones.0[at]);
        let pan = text(entry, "pan");
        let block = |format, bytes: Vec<u8>| ZoneBlock::from_bytes(format, &bytes).unwrap();
        let sources = [
            (from, block(ZoneFormat::Iso1, bytes(entry, "encrypted_iso1"))),
            (tdes, block(ZoneFormat::Iso0, bytes(&entry["to_iso0"], "encrypted"))),
            (tdes, block(ZoneFormat::Iso3, bytes(&entry["to_iso3"], "encrypted"))),
            (aes_128, block(ZoneFormat::Iso4, bytes(&entry["to_iso4_aes128"], "encrypted"))),
            (aes_256, block(ZoneFormat::Iso4, bytes(&entry["to_iso4_aes256"], "encrypted"))),
        ];
        for (zone, source) in &sources {
            // Format 0 has no random part, so its block is the published one.
            let moved = move_on(&hsm, (zone, source), (tdes, ZoneFormat::Iso0), pan);
            assert_eq!(moved.as_bytes(), bytes(&entry["to_iso0"], "encrypted"), "{entry}");
            let record = set_on(&hsm, zone, source, pan).unwrap();
            let given = give_on(&hsm, &record, tdes, ZoneFormat::Iso0, pan);
            assert_eq!(given.as_bytes(), bytes(&entry["to_iso0"], "encrypted"), "{entry}");
        }
    }
}

#[test]
fn published_blocks_under_3des_become_records() {
    let all = entries(include_str!("../../../../tests/vectors/pin_blocks_tdes_encrypted.json"));
    let mut zones = VectorZones::default();
    let keys: Vec<_> = all.iter().map(|entry| zones.add(true, &bytes(entry, "key"))).collect();
    let hsm = zones.open();
    let mut weak = 0;
    for (entry, key) in all.iter().zip(keys) {
        let Some(zone) = key.map(|at| &zones.0[at]) else {
            weak += 1;
            continue;
        };
        let block = ZoneBlock::from_bytes(format_of(entry).unwrap(), &bytes(entry, "encrypted_block")).unwrap();
        let record = set_on(&hsm, zone, &block, text(entry, "pan")).unwrap();
        let given = give_on(&hsm, &record, zone, ZoneFormat::Iso0, text(entry, "pan"));
        assert_eq!(given.as_bytes(), block.as_bytes(), "{entry}");
    }
    // Both halves of the key of jPOS are equal.
    assert_eq!((weak, all.len()), (2, 3));
}

#[test]
fn published_clear_blocks_pass_through_a_zone() {
    let mut zones = VectorZones::default();
    let at = zones.add(true, APP_BANK.key).unwrap();
    let (hsm, zone) = (zones.open(), &zones.0[at]);
    let mut passed = 0;
    for entry in entries(include_str!("../../../../tests/vectors/pin_blocks_clear.json")) {
        // A PIN field before the XOR has no account number, and format 2 is not served.
        let (Some(format), true) = (format_of(&entry), entry["kind"].is_null()) else { continue };
        let pan = entry["pan"].as_str().unwrap_or("5413330089020011");
        let clear = u64::from_be_bytes(bytes(&entry, "block").try_into().unwrap());
        let record = set_on(&hsm, zone, &zone.block(format, clear.into()), pan).unwrap();
        let given = zone.field(&give_on(&hsm, &record, zone, ZoneFormat::Iso1, pan));
        assert_eq!(digits(given), text(&entry, "pin"), "{entry}");
        passed += 1;
    }
    assert_eq!(passed, 23);
}

#[test]
fn published_format_4_blocks_become_records() {
    let mut zones = VectorZones::default();
    let tdes = zones.add(true, APP_BANK.key).unwrap();
    let all = entries(include_str!("../../../../tests/vectors/pin_blocks_iso4.json"));
    let all: Vec<_> = all.iter().filter(|entry| entry["kind"].is_null()).collect();
    let mut short = 0;
    let keys: Vec<_> = all.iter().map(|entry| zones.add(false, &bytes(entry, "key")).unwrap()).collect();
    let hsm = zones.open();
    for (entry, at) in all.iter().zip(keys) {
        let block = ZoneBlock::from_bytes(ZoneFormat::Iso4, &bytes(entry, "block")).unwrap();
        let set = set_on(&hsm, &zones.0[at], &block, text(entry, "pan"));
        if text(entry, "pan").len() < 12 {
            assert!(matches!(set, Err(Error::NoAccountNumber)), "{entry}");
            short += 1;
            continue;
        }
        let given = give_on(&hsm, &set.unwrap(), &zones.0[tdes], ZoneFormat::Iso1, text(entry, "pan"));
        assert_eq!(digits(zones.0[tdes].field(&given)), text(entry, "pin"), "{entry}");
    }
    assert_eq!((short, all.len()), (1, 12));
}

#[test]
fn published_malformed_blocks_have_one_answer() {
    let mut zones = VectorZones::default();
    let tdes = zones.add(true, APP_BANK.key).unwrap();
    let all = entries(include_str!("../../../../tests/vectors/decode_must_reject.json"));
    let all: Vec<_> = all.iter().filter_map(|entry| Some((entry, format_of(entry)?))).collect();
    let zone = |entry: &Value| entry["key"].as_str().map(|_| bytes(entry, "key"));
    let keys: Vec<_> = all.iter().map(|(entry, _)| zone(entry).map(|key| zones.add(false, &key).unwrap())).collect();
    let hsm = zones.open();
    for ((entry, format), at) in all.iter().zip(keys) {
        let pan = entry["pan"].as_str().unwrap_or("5413330089020011");
        let found = bytes(entry, "block");
        if found.len() != format.block_bytes() {
            assert!(ZoneBlock::from_bytes(*format, &found).is_err(), "{entry}");
            continue;
        }
        let (zone, block) = match at {
            Some(at) => (&zones.0[at], ZoneBlock::from_bytes(*format, &found).unwrap()),
            None => {
                let clear = u64::from_be_bytes(found.try_into().unwrap());
                (&zones.0[tdes], zones.0[tdes].block(*format, clear.into()))
            }
        };
        let refused = set_on(&hsm, zone, &block, pan).err();
        assert!(matches!(refused, Some(Error::Refused(Refusal::MalformedBlock))), "{entry}");
    }
    assert_eq!(all.len(), 21);
}

/// Sends lines to psec of PyPI, and returns its answers.
fn psec(lines: &[String]) -> Vec<String> {
    let python = std::env::var("PINSEAL_TEST_PYTHON").unwrap_or_else(|_| {
        panic!("PINSEAL_TEST_PYTHON is not set: run scripts/test, or point it to a Python with tests/clients/python/requirements.lock")
    });
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/clients/python/psec_pin_block.py");
    let mut child = Command::new(python)
        .args(["-W", "ignore"])
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let text = lines.join("\n") + "\n";
    let writer = thread::spawn(move || input.write_all(text.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// An account number, a PIN of 4 to 12 digits, and a zone with a format.
fn psec_cases() -> Vec<(&'static str, String, Known, ZoneFormat)> {
    let mut cases = Vec::new();
    for pan in ["4012345678909", "5413330089020011", "6799998900000070017"] {
        for length in 4..=12usize {
            let pin: String = "918273645509".chars().cycle().skip(length + pan.len()).take(length).collect();
            for format in [ZoneFormat::Iso0, ZoneFormat::Iso3] {
                cases.push((pan, pin.clone(), APP_BANK, format));
                cases.push((pan, pin.clone(), BUREAU, format));
            }
            for zone in [AUTH_HOST, WALLET] {
                cases.push((pan, pin.clone(), zone, ZoneFormat::Iso4));
            }
        }
    }
    cases
}

#[test]
fn psec_opens_our_exported_blocks_and_we_open_those_of_psec() {
    let zones = VectorZones(vec![APP_BANK, BUREAU, AUTH_HOST, WALLET]);
    let (hsm, cases) = (zones.open(), psec_cases());
    let line = |command: &str, (pan, _, zone, format): &(&str, String, Known, ZoneFormat), value: &str| {
        format!("{command} {format} {} {pan} {value}", upper::encode_string(zone.key))
    };
    let made = psec(&cases.iter().map(|case| line("make", case, &case.1)).collect::<Vec<_>>());
    assert_eq!(made.len(), cases.len());
    let mut exported = Vec::new();
    for (case @ (pan, pin, zone, format), block) in cases.iter().zip(&made) {
        let block = ZoneBlock::from_bytes(*format, &mixed::decode_vec(block).unwrap()).unwrap();
        let record = set_on(&hsm, zone, &block, pan).unwrap();
        let given = give_on(&hsm, &record, &APP_BANK, ZoneFormat::Iso1, pan);
        assert_eq!(digits(APP_BANK.field(&given)), *pin);
        exported.push(line("open", case, &upper::encode_string(give_on(&hsm, &record, zone, *format, pan).as_bytes())));
        exported.push(line(
            "open",
            case,
            &upper::encode_string(move_on(&hsm, (zone, &block), (zone, *format), pan).as_bytes()),
        ));
    }
    let opened = psec(&exported);
    let expected: Vec<_> = cases.iter().flat_map(|(_, pin, ..)| [pin.clone(), pin.clone()]).collect();
    assert_eq!(opened, expected);
}
