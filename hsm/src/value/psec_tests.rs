//! Values of random inputs, beside those of psec of PyPI, an independent implementation.

use std::{
    io::Write,
    process::{Command, Stdio},
    thread,
};

use aws_lc_rs::rand;
use hsm_protocol::{DecimalisationTable, Pvki, ValidationData};

use super::{natural_pin, offset, pvv, security_parameter, to_value};
use crate::{
    block::AccountDigits,
    clear::{Block, Pin, Tzpk},
    tdes_key::fill_tdes_key,
    token::tzpk_encrypt,
};

/// The random inputs of each method.
const INPUTS: usize = 10_000;

fn below(bound: u32) -> u32 {
    let mut bytes = [0; 4];
    rand::fill(&mut bytes).unwrap();
    u32::from_be_bytes(bytes) % bound
}

fn digits(count: u32) -> String {
    (0..count).map(|_| char::from_digit(below(10), 10).unwrap()).collect()
}

fn pin_of(digits: &str) -> Pin {
    let mut pin = Pin::zeroed();
    let nibbles = u64::from_str_radix(&format!("{digits:0<16}"), 16).unwrap();
    assert!(bool::from(pin.fill(u8::try_from(digits.len()).unwrap(), nibbles)));
    pin
}

struct Key(Tzpk);

impl Key {
    fn random() -> Self {
        let mut key = Tzpk::zeroed();
        fill_tdes_key(&mut key, rand::fill).unwrap();
        Self(key)
    }

    fn hexadecimal(&self) -> String {
        base16ct::upper::encode_string(self.0.bytes())
    }

    fn encrypt(&self, nibbles: u64) -> u64 {
        let mut block = Block::zeroed();
        block.set_nibbles(nibbles);
        tzpk_encrypt(&self.0, &mut block);
        block.nibbles()
    }
}

/// One line for psec, and our value.
fn pvv_input() -> (String, String) {
    let (key, pvki, pin, pan) = (Key::random(), below(10), digits(4), digits(12 + below(8)));
    let account = AccountDigits::parse(&pan).unwrap();
    let index = Pvki::new(u8::try_from(pvki).unwrap()).unwrap();
    let value = pvv(key.encrypt(security_parameter(&account, index, &pin_of(&pin))));
    (format!("pvv {} {pvki} {pin} {pan}", key.hexadecimal()), to_value(value, 4).unwrap().to_text())
}

/// A random table that a key may have.
fn table() -> String {
    std::iter::repeat_with(|| digits(16)).find(|table| DecimalisationTable::parse(table).is_some()).unwrap()
}

fn offset_input() -> (String, String) {
    let (key, table, pin, pan) = (Key::random(), table(), digits(4 + below(9)), digits(12 + below(8)));
    let first = below(u32::try_from(pan.len()).unwrap());
    let length = 1 + below((u32::try_from(pan.len()).unwrap() - first).min(16));
    let pad = below(16);
    let account = AccountDigits::parse(&pan).unwrap();
    let rule = ValidationData::parse(&format!("{}-{}-{pad:x}", first + 1, first + length)).unwrap();
    let natural = natural_pin(key.encrypt(rule.of(&account).unwrap()), &DecimalisationTable::parse(&table).unwrap());
    let value = to_value(offset(&pin_of(&pin), natural), u8::try_from(pin.len()).unwrap()).unwrap();
    let line = format!("offset {} {table} {pin} {pan} {first} {length} {pad:x}", key.hexadecimal());
    (line, value.to_text())
}

fn agrees_with_psec(input: fn() -> (String, String)) {
    let python = std::env::var("PINSEAL_TEST_PYTHON").unwrap_or_else(|_| {
        panic!("PINSEAL_TEST_PYTHON is not set: run scripts/test, or point it to a Python with tests/clients/python/requirements.lock")
    });
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/clients/python/psec_pin_values.py");
    let mut psec = Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (lines, ours): (Vec<_>, Vec<_>) = (0..INPUTS).map(|_| input()).unzip();
    let mut stdin = psec.stdin.take().unwrap();
    let sent = lines.join("\n");
    // psec answers while it reads.
    let writer = thread::spawn(move || stdin.write_all(sent.as_bytes()).unwrap());
    let output = psec.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    let theirs = String::from_utf8(output.stdout).unwrap();
    assert_eq!(theirs.lines().count(), INPUTS);
    for ((line, ours), theirs) in lines.iter().zip(&ours).zip(theirs.lines()) {
        assert_eq!(ours, theirs, "{line}");
    }
}

#[test]
fn pvvs_of_10_000_random_inputs_agree_with_psec() {
    agrees_with_psec(pvv_input);
}

#[test]
fn offsets_of_10_000_random_inputs_agree_with_psec() {
    agrees_with_psec(offset_input);
}
