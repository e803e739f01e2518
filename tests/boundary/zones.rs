//! Zones in the boundary's own process: PINs go in and out under a zone key, alone and as a batch, and leave no clear block in its
//! memory, its log or its errors. Its memory holds the keys alone.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    process::Command,
    time::Duration,
};

use device::Tzpk;
use hsm_protocol::{
    Account, AccountNumber, CardBinding, Error, PinRecord, Refusal, Reply, Request, Source, Target, ZoneBlock,
    ZoneFormat, ZoneKey, ZoneName, frame,
};
use memory_search::{Planted, storage_key_of};
use support::{
    ceremony::{Ceremony, pinseal, said},
    hsm_process::HsmProcess,
};

use crate::memory::unwiped_build;

const ZONES: &str = "[[zones]]\nname = \"app-bank\"\ntenant = \"bank\"\nindex = 0\n\
                     formats = [\"iso-1\", \"iso-0\", \"iso-3\"]\nuses = [\"set-pin\", \"get-pin\", \"export\", \"translate\"]\n\
                     [[zones]]\nname = \"auth-host\"\ntenant = \"bank\"\nindex = 1\nformats = [\"iso-4\"]\n\
                     uses = [\"set-pin\", \"export\", \"translate\"]";
const PAN: &str = "5413330089020011";
/// `0000` and the 12 rightmost digits of the account number without the check digit.
const ACCOUNT_FIELD: u64 = 0x0000_3330_0890_2001;
/// A key that stays in the memory of the vault's process: a search that misses it does not work.
const STORAGE_KEY: &str = "the storage key";
/// The same of an AES zone key: its key schedule begins with the key.
pub(crate) const AES_ZONE_KEY: &str = "the AES zone key";
/// The same of a 3DES zone key, which batches need beside its key schedule.
pub(crate) const TDES_ZONE_KEY: &str = "the 3DES zone key";
const PINS: u64 = 200;

/// A connection to a boundary, as an engine opens it.
pub(crate) struct Connection {
    stream: UnixStream,
    arrived: Vec<u8>,
    number: u64,
}

impl Connection {
    pub(crate) fn open(hsm: &HsmProcess) -> Self {
        let stream = UnixStream::connect(hsm.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut connection = Self { stream, arrived: Vec::new(), number: 0 };
        let mut hello = Vec::new();
        frame::push_hello(&mut hello);
        connection.stream.write_all(&hello).unwrap();
        connection.answer(|frame| assert!(frame::read_welcome(frame).is_ok()));
        connection
    }

    pub(crate) fn execute(&mut self, request: &Request) -> Result<Reply, Error> {
        self.number += 1;
        let mut bytes = Vec::new();
        frame::push_frame(&mut bytes, self.number, |body| frame::write_request(request, u64::MAX, body));
        self.stream.write_all(&bytes).unwrap();
        self.answer(|frame| frame::read_reply(frame.body).unwrap())
    }

    fn answer<T>(&mut self, read: impl Fn(&frame::Frame<'_>) -> T) -> T {
        loop {
            let mut rest = self.arrived.as_slice();
            if let Some(frame) = frame::take_frame(&mut rest).unwrap() {
                assert_eq!(frame.number, self.number);
                let answer = read(&frame);
                self.arrived = rest.to_vec();
                return answer;
            }
            let mut piece = [0; 4_096];
            let length = self.stream.read(&mut piece).unwrap();
            assert!(length > 0, "the boundary closed the connection");
            self.arrived.extend_from_slice(&piece[..length]);
        }
    }

    fn translate(&mut self, source: Source, target: Target) -> Result<Reply, Error> {
        let account = self.account();
        self.execute(&Request::Translate { source, target, card: card(), account })
    }

    fn account(&mut self) -> Account {
        let (card, number) = (card(), AccountNumber::parse(PAN).unwrap());
        match self.execute(&Request::SealPan { number, card }).unwrap() {
            Reply::SealedPan(sealed) => Account::Registered(sealed),
            _ => panic!("the reply of another request"),
        }
    }

    /// Sets the PINs of several blocks in one request. The boundary decrypts six or more as a batch.
    fn set_together(&mut self, blocks: &[ZoneBlock]) -> Vec<Result<Reply, Error>> {
        let (card, account) = (card(), self.account());
        let set = |block: &ZoneBlock| {
            let (source, account) = (from_zone(block.clone()), account.clone());
            Request::Translate { source, target: Target::Record, card, account }
        };
        match self.execute(&Request::Together { requests: blocks.iter().map(set).collect() }).unwrap() {
            Reply::Together(results) => results,
            _ => panic!("the reply of another request"),
        }
    }

    fn set(&mut self, block: &ZoneBlock) -> Result<PinRecord, Error> {
        match self.translate(from_zone(block.clone()), Target::Record)? {
            Reply::Record { record, .. } => Ok(record),
            _ => panic!("the reply of another request"),
        }
    }

    fn give(&mut self, source: Source, format: ZoneFormat) -> ZoneBlock {
        match self.translate(source, Target::Zone { key: zone_of(format), format }).unwrap() {
            Reply::ZoneBlock(block) => block,
            _ => panic!("the reply of another request"),
        }
    }
}

fn card() -> CardBinding {
    CardBinding::new("bank", "1000200030").unwrap()
}

pub(crate) fn zone() -> ZoneKey {
    ZoneKey { zone: ZoneName::parse("app-bank").unwrap(), version: None }
}

/// The zone that carries blocks of a format.
fn zone_of(format: ZoneFormat) -> ZoneKey {
    if format.needs_aes() { ZoneKey { zone: ZoneName::parse("auth-host").unwrap(), version: None } } else { zone() }
}

fn from_zone(block: ZoneBlock) -> Source {
    Source::Zone { key: zone_of(block.format()), block }
}

/// A ceremony's vault with an engine's keys and an active zone key that the test knows.
pub(crate) fn with_zone_key() -> (Ceremony, Tzpk) {
    let ceremony = Ceremony::prepared();
    let created = pinseal().args(["vault", "create", "--config"]).arg(ceremony.at("engine.toml")).output().unwrap();
    assert!(created.status.success(), "{}", said(&created));
    ceremony.begin();
    let key = ceremony.load_known("zone:app-bank", 0x5B);
    (ceremony, key)
}

#[test]
fn no_zone_operation_leaves_a_clear_value() {
    let Traces { memory, text, clear } = traces_of(pinseal());
    assert_eq!(memory, [TDES_ZONE_KEY, AES_ZONE_KEY, STORAGE_KEY], "left in the boundary's memory");
    assert!(clear.iter().all(|clear| !text.contains(clear.as_str())), "left in log or errors");
}

#[test]
fn the_search_finds_clear_zone_blocks_where_nothing_is_wiped() {
    let Traces { memory, .. } = traces_of(Command::new(unwiped_build()));
    assert!(memory.contains(&STORAGE_KEY) && memory.contains(&"a clear block"), "not found: {memory:?}");
}

/// What a boundary left of zone operations.
struct Traces {
    /// The names of the planted values in its memory.
    memory: Vec<&'static str>,
    /// Its log and its errors, in small letters.
    text: String,
    /// The clear PINs and blocks, as hexadecimal digits in small letters.
    clear: Vec<String>,
}

/// Sets, gives, exports and translates PINs under a zone key in a boundary by a prepared command that ends with the program.
fn traces_of(boundary: Command) -> Traces {
    let (ceremony, key) = with_zone_key();
    let aes_key = ceremony.load_aes("zone:auth-host");
    let hsm = HsmProcess::start_with(boundary, ceremony.directory(), ZONES);
    let (mut planted, mut seen) = (Planted::default(), Vec::new());
    let data = ceremony.at("data");
    planted.plant(STORAGE_KEY, &storage_key_of(&data.join("vault"), &data.join("vault.key")).unwrap());
    planted.plant(TDES_ZONE_KEY, key.as_bytes());
    planted.plant(AES_ZONE_KEY, &aes_key);
    let mut connection = Connection::open(&hsm);
    let mut errors = String::new();
    for turn in 0..PINS {
        // A unique PIN of eight digits, one in each nibble.
        let pin = u64::from_str_radix(&format!("97{:06}", (turn * 7_919 + 13) % 1_000_000), 16).unwrap();
        let head = |control: u64| (control << 60) | (8 << 56) | (pin << 24);
        let clear = [
            (ZoneFormat::Iso1, head(1) | 0x7A_3C90),
            (ZoneFormat::Iso0, (head(0) | 0xFF_FFFF) ^ ACCOUNT_FIELD),
            (ZoneFormat::Iso3, (head(3) | 0xAB_CDEF) ^ ACCOUNT_FIELD),
        ];
        // The first half of a format 4 block holds only the PIN.
        planted.plant("a PIN in block form", &(head(4) | 0xAA_AAAA).to_be_bytes());
        let mut together = Vec::new();
        for (format, clear) in clear {
            planted.plant("a clear block", &clear.to_be_bytes());
            let block = ZoneBlock::from_bytes(format, &key.encrypt_block(&clear.to_be_bytes())).unwrap();
            let record = connection.set(&block).unwrap();
            together.push(block.clone());
            let mut sources = vec![(Source::Record(record.clone()), ZoneFormat::Iso1)];
            sources.push((Source::Record(record.clone()), ZoneFormat::Iso0));
            sources.push((from_zone(block.clone()), ZoneFormat::Iso3));
            // Blocks of format 4: exported, translated from and to, and set as a record.
            let exported = connection.give(Source::Record(record), ZoneFormat::Iso4);
            sources.push((from_zone(exported.clone()), ZoneFormat::Iso0));
            sources.push((Source::Record(connection.set(&exported).unwrap()), ZoneFormat::Iso1));
            let moved = connection.give(from_zone(block), ZoneFormat::Iso4);
            sources.push((from_zone(moved), ZoneFormat::Iso3));
            let mut changed = exported.as_bytes().to_vec();
            changed[0] ^= 1;
            let refused = connection.set(&ZoneBlock::from_bytes(ZoneFormat::Iso4, &changed).unwrap()).err().unwrap();
            assert!(matches!(refused, Error::Refused(Refusal::MalformedBlock)));
            for (source, target) in sources {
                let given = connection.give(source, target);
                let given = key.decrypt_block(given.as_bytes().try_into().unwrap());
                planted.plant("a clear block", &given);
                let bound = if target.binds_account() { ACCOUNT_FIELD } else { 0 };
                assert_eq!((u64::from_be_bytes(given) ^ bound) << 8 >> 32, pin, "{format} to {target}");
            }
            // The second digit, 7, becomes F.
            let malformed = clear ^ (0x8 << 48);
            planted.plant("a clear block", &malformed.to_be_bytes());
            let block = ZoneBlock::from_bytes(format, &key.encrypt_block(&malformed.to_be_bytes())).unwrap();
            let refused = connection.set(&block).err().unwrap();
            assert!(matches!(refused, Error::Refused(Refusal::MalformedBlock)));
            errors += &refused.to_string();
            together.push(block);
            seen.push(format!("{clear:016x}"));
        }
        for pair in connection.set_together(&together).chunks(2) {
            assert!(matches!(pair, [Ok(_), Err(Error::Refused(Refusal::MalformedBlock))]));
        }
        seen.push(format!("{pin:08x}"));
    }
    let memory = planted.find_in(hsm.id()).expect("run the tests as root").names.into_iter().collect();
    Traces { memory, text: (hsm.log() + &errors).to_lowercase(), clear: seen }
}
