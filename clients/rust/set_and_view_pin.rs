//! Sets and views a PIN through an edge, or checks the vectors of `clients/vectors.json`.

use std::{
    collections::HashMap,
    env, fs,
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use card_pin::{Device, DeviceError, Fill, KeyBits, Pin, PinError, Tzpk};
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;
use ureq::Agent;

const USAGE: &str =
    "usage: set-and-view-pin --edge URL --token TOKEN --plastic-id N\n       set-and-view-pin --vectors FILE";
/// The PIN that the command sets. The key boundary refuses PINs such as 1234.
const COMMAND_PIN: &str = "2580";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match run(&arguments) {
        Ok(line) if writeln!(io::stdout(), "{line}").is_ok() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error}");
            if matches!(error, CommandError::Usage) { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

fn run(arguments: &[String]) -> Result<String, CommandError> {
    let (pairs, []) = arguments.as_chunks::<2>() else { return Err(CommandError::Usage) };
    let options: HashMap<&str, &str> = pairs.iter().map(|[name, value]| (name.as_str(), value.as_str())).collect();
    let option = |name| options.get(name).copied().ok_or(CommandError::Usage);
    if let Ok(file) = option("--vectors") {
        return Ok(format!("{} vectors: ok", Vectors::read(file)?.check()?));
    }
    set_and_view(&BackEnd::new(option("--edge")?, option("--token")?), option("--plastic-id")?)?;
    Ok("ok".to_owned())
}

fn set_and_view(back_end: &BackEnd, plastic_id: &str) -> Result<(), CommandError> {
    let device = Device::generate(KeyBits::Rsa2048)?;
    let public_key = STANDARD.encode(device.public_key_der());

    let control = back_end.open_control(plastic_id, "SET_PIN")?;
    let issued = back_end.post("/pin/v3/set/tzpk", &json!({ "controlId": control, "publicKey": public_key }))?;
    let block = device.encrypt_pin(&bytes(&issued, "tzpk")?, &Pin::parse(COMMAND_PIN)?, Fill::Random)?;
    back_end.post("/pin/v3/set", &json!({ "controlId": control, "pinBlock": STANDARD.encode(block) }))?;

    let control = back_end.open_control(plastic_id, "VIEW_PIN")?;
    let shown = back_end.post("/pin/v3/view", &json!({ "controlId": control, "publicKey": public_key }))?;
    let block = bytes(&shown, "pinBlock")?.try_into().map_err(|_| CommandError::Answer("pinBlock"))?;
    let pin = device.decrypt_pin(&bytes(&shown, "tzpk")?, &block)?;
    if pin.reveal() == COMMAND_PIN { Ok(()) } else { Err(CommandError::OtherPin) }
}

/// The calls of the back-end, which authenticates the cardholder, opens controls and passes the device's values on. They go over
/// `http`: for `https`, enable a TLS feature of ureq.
struct BackEnd {
    agent: Agent,
    edge: String,
    authorization: String,
}

impl BackEnd {
    fn new(edge: &str, token: &str) -> Self {
        let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(30)));
        let edge = edge.trim_end_matches('/').to_owned();
        Self { agent: config.build().into(), edge, authorization: format!("Bearer {token}") }
    }

    fn open_control(&self, plastic_id: &str, scope: &str) -> Result<String, CommandError> {
        let opened = self.post(&format!("/pincontrol/v2/plastic/{plastic_id}"), &json!({ "scope": scope }))?;
        Ok(member(&opened, "id")?.to_owned())
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value, CommandError> {
        let post = self.agent.post(format!("{}{path}", self.edge)).query("auditUser", "card_pin.rs");
        let post = post.header("authorization", &self.authorization).content_type("application/json");
        let mut answer = post.send(body.to_string())?;
        let (status, text) = (answer.status().as_u16(), answer.body_mut().read_to_string()?);
        if status >= 400 {
            return Err(CommandError::Refused { path: path.to_owned(), status, text });
        }
        Ok(serde_json::from_str(&text)?)
    }
}

fn member<'a>(answer: &'a Value, name: &'static str) -> Result<&'a str, CommandError> {
    answer.get(name).and_then(Value::as_str).ok_or(CommandError::Answer(name))
}

fn bytes(answer: &Value, name: &'static str) -> Result<Vec<u8>, CommandError> {
    STANDARD.decode(member(answer, name)?).map_err(|_| CommandError::Answer(name))
}

/// `clients/vectors.json`: bytes in hexadecimal, keys and the members of the API in base64.
#[derive(Deserialize)]
struct Vectors {
    rsa_private_key: String,
    rsa_public_key: String,
    iso1: Vec<Format1>,
    iso1_refused: Vec<RefusedBlock>,
    tdes_ecb: Vec<TripleDes>,
    kcv: Vec<Kcv>,
    oaep: Vec<Oaep>,
    oaep_refused: Vec<RefusedTzpk>,
    set: Vec<SetPin>,
}

#[derive(Deserialize)]
struct Format1 {
    pin: String,
    filler: String,
    block: String,
}

#[derive(Deserialize)]
struct RefusedBlock {
    block: String,
}

#[derive(Deserialize)]
struct TripleDes {
    key: String,
    clear: String,
    encrypted: String,
}

#[derive(Deserialize)]
struct Kcv {
    key: String,
    kcv: String,
}

#[derive(Deserialize)]
struct Oaep {
    tzpk: String,
    key: String,
}

#[derive(Deserialize)]
struct RefusedTzpk {
    tzpk: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SetPin {
    tzpk: String,
    pin: String,
    filler: String,
    pin_block: String,
}

impl Vectors {
    fn read(file: &str) -> Result<Self, CommandError> {
        Ok(serde_json::from_str(&fs::read_to_string(file)?)?)
    }

    /// The number of vectors, all of which the device passed.
    fn check(&self) -> Result<usize, CommandError> {
        let device = Device::from_pkcs8(&STANDARD.decode(&self.rsa_private_key)?)?;
        expect(STANDARD.encode(device.public_key_der()) == self.rsa_public_key, &self.rsa_public_key)?;
        for Format1 { pin, filler, block } in &self.iso1 {
            let block = hex(block)?;
            expect(Pin::parse(pin)?.to_block(fill(filler)?) == block, pin)?;
            expect(Pin::from_block(&block).is_some_and(|found| found.reveal() == pin), pin)?;
        }
        for RefusedBlock { block } in &self.iso1_refused {
            expect(Pin::from_block(&hex(block)?).is_none(), block)?;
        }
        for vector in &self.tdes_ecb {
            let tzpk = key(&vector.key)?;
            let (clear, encrypted) = (blocks(&vector.clear)?, blocks(&vector.encrypted)?);
            expect(clear.len() == encrypted.len(), &vector.clear)?;
            for (clear, encrypted) in clear.iter().zip(&encrypted) {
                expect(tzpk.encrypt_block(clear) == *encrypted, &vector.clear)?;
                expect(tzpk.decrypt_block(encrypted) == *clear, &vector.clear)?;
            }
        }
        for vector in &self.kcv {
            let kcv: [u8; 3] = hex(&vector.kcv)?;
            expect(key(&vector.key)?.encrypt_block(&[0; 8]).starts_with(&kcv), &vector.key)?;
        }
        for vector in &self.oaep {
            let tzpk = device.decrypt_tzpk(&STANDARD.decode(&vector.tzpk)?)?;
            expect(*tzpk.as_bytes() == hex(&vector.key)?, &vector.key)?;
        }
        for RefusedTzpk { tzpk } in &self.oaep_refused {
            let error = device.encrypt_pin(&STANDARD.decode(tzpk)?, &Pin::parse(COMMAND_PIN)?, Fill::Random).err();
            expect(error.is_some_and(|error| error.to_string().contains("MGF1")), tzpk)?;
        }
        for vector in &self.set {
            let (tzpk, pin) = (STANDARD.decode(&vector.tzpk)?, Pin::parse(&vector.pin)?);
            let block = device.encrypt_pin(&tzpk, &pin, fill(&vector.filler)?)?;
            expect(STANDARD.encode(block) == vector.pin_block, &vector.pin_block)?;
            for block in [block, device.encrypt_pin(&tzpk, &pin, Fill::Random)?] {
                expect(device.decrypt_pin(&tzpk, &block)?.reveal() == vector.pin, &vector.pin_block)?;
            }
        }
        let refused = self.iso1_refused.len() + self.oaep_refused.len();
        Ok(refused + self.iso1.len() + self.tdes_ecb.len() + self.kcv.len() + self.oaep.len() + self.set.len())
    }
}

fn expect(passed: bool, vector: &str) -> Result<(), CommandError> {
    if passed { Ok(()) } else { Err(CommandError::Vector(vector.to_owned())) }
}

fn hex<const N: usize>(text: &str) -> Result<[u8; N], CommandError> {
    let bytes = base16ct::upper::decode_vec(text).unwrap_or_default();
    bytes.try_into().map_err(|_| CommandError::Vector(text.to_owned()))
}

fn blocks(text: &str) -> Result<Vec<[u8; 8]>, CommandError> {
    let bytes = base16ct::upper::decode_vec(text).unwrap_or_default();
    match bytes.as_chunks() {
        ([], _) | (_, [_, ..]) => Err(CommandError::Vector(text.to_owned())),
        (blocks, []) => Ok(blocks.to_vec()),
    }
}

fn key(text: &str) -> Result<Tzpk, CommandError> {
    Tzpk::from_bytes(&hex::<16>(text)?).ok_or_else(|| CommandError::Vector(text.to_owned()))
}

/// The filler stands at the end of the block.
fn fill(filler: &str) -> Result<Fill, CommandError> {
    Ok(Fill::Bytes(hex(&format!("{filler:0>16}"))?))
}

#[derive(Debug, Error)]
enum CommandError {
    #[error("{}", USAGE)]
    Usage,
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error("no answer from the edge: {0}")]
    Http(#[from] ureq::Error),
    #[error("{path}: {status} {text}")]
    Refused { path: String, status: u16, text: String },
    #[error("the answer has no readable {0}")]
    Answer(&'static str),
    #[error("the PIN viewed is not the PIN set")]
    OtherPin,
    #[error("a vector fails: {0}")]
    Vector(String),
    #[error("the file of vectors: {0}")]
    File(#[from] io::Error),
    #[error("JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("base64: {0}")]
    Base64(#[from] base64::DecodeError),
}
