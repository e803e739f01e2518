//! Requests together have the results that each has alone, and a batch decrypts the 3DES blocks that the rules allow.

use super::*;
use crate::boundary::BATCHED;

/// A zone that translates, and sets no PIN.
const ONLY_MOVES: Known = Known {
    zone: "only-moves",
    algorithm: KeyAlgorithm::TdesDouble,
    key: &[0xC1, 0x5E, 0x20, 0x97, 0x4A, 0x38, 0x6D, 0xF2, 0x13, 0xA4, 0x8B, 0x76, 0x9E, 0x05, 0xD9, 0x61],
};
const TENANT: &str = "bank";

/// Zones and records of one vault.
struct World {
    hsm: Hsm,
    phone: Phone,
    issued: FreshTzpk,
    account: Account,
    /// A boundary for each dated format, which makes records under the 3DES storage key.
    dated: [Hsm; 2],
    _directory: tempfile::TempDir,
}

/// A request whose result does not depend on other requests.
struct Case {
    name: String,
    source: Source,
    target: Target,
    card: CardBinding,
    account: Account,
    is_batched: bool,
}

impl Case {
    fn request(&self) -> Request {
        let target = match &self.target {
            Target::Record => Target::Record,
            Target::Device { public_key } => Target::Device { public_key: public_key.clone() },
            Target::Zone { key, format } => Target::Zone { key: key.clone(), format: *format },
        };
        let source = self.source.clone();
        Request::Translate { source, target, card: self.card, account: copy(&self.account) }
    }
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut keys = all_keys();
        keys.push(Import { known: &ONLY_MOVES, mode: 'B' });
        vault_with(directory.path(), &keys);
        let open = |form| {
            let tdes = [ZoneFormat::Iso1, ZoneFormat::Iso0, ZoneFormat::Iso3];
            let mut rules = rules_at(BoundaryLevel::Host, StorageFormat::Iso4);
            rules.push(ONLY_MOVES.rules(&tdes, &[ZoneUse::Translate]));
            open_vault(directory.path(), form, rules).unwrap()
        };
        let until = || "2999-12-31".to_owned();
        let dated = [NewRecordFormat::Iso3 { until: until() }, NewRecordFormat::Iso0 { until: until() }];
        let (hsm, dated) = (open(None), dated.map(|form| open(Some(form))));
        let phone = Phone::new();
        let issued = wait(hsm.issue(&phone.public, &binding())).unwrap();
        let account = registered(&hsm);
        Self { hsm, phone, issued, account, dated, _directory: directory }
    }

    /// A 3DES record of this PIN.
    fn record(&self, dated: usize, number: u64) -> PinRecord {
        let block = zone_block_of(&APP_BANK, ZoneFormat::Iso1, number);
        set_for(&self.dated[dated], APP_BANK.key(), &block, card(), &self.account).unwrap().record
    }

    fn device(&self, clear: u64) -> Source {
        Source::Device {
            sealed_tzpk: SealedKey::from_bytes(self.issued.sealed.as_bytes()).unwrap(),
            control: CONTROL,
            block: self.phone.block(&self.issued, clear),
        }
    }

    /// What a result says, without its random bytes: the PIN field of a record or block, or the error.
    fn meaning(&self, case: &Case, result: &Result<Reply, Error>) -> String {
        match (result, &case.target) {
            (Err(error), _) => format!("{error:?}"),
            (Ok(Reply::Record { record, retry_tag }), _) => {
                let target = to_zone(&APP_BANK, ZoneFormat::Iso1);
                let source = Source::Record(record.clone());
                let shown = wait(self.hsm.translate(source, target, case.card, &case.account));
                let field = APP_BANK.field(&zone_block(shown).unwrap()) >> 32;
                format!("{:?} under {:?}, {field:x}, {retry_tag:?}", record.form(), record.storage_key())
            }
            (Ok(Reply::ZoneBlock(block)), Target::Zone { key, format }) => {
                let known = ZONES.into_iter().chain([ONLY_MOVES]).find(|known| known.name() == key.zone).unwrap();
                // Of format 0, without random fill, the whole block.
                let is_whole = *format == ZoneFormat::Iso0;
                let whole = is_whole.then(|| hexadecimal(block.as_bytes()));
                format!("{} {:x} {whole:?}", block.format(), known.field(block) >> 32)
            }
            (Ok(Reply::Block(block)), _) => {
                let mut clear = Block::zeroed();
                clear.bytes_mut().copy_from_slice(block.block.as_bytes());
                tzpk_decrypt(&self.phone.tzpk(&block.wrapped), &mut clear);
                format!("{:x}", clear.nibbles() >> 32)
            }
            _ => panic!("{}: the reply of another request", case.name),
        }
    }
}

/// The PIN field of a PIN of six digits, a different one for each number below 10,000.
fn field_of(format: ZoneFormat, number: u64) -> u64 {
    let digits = (0..4).fold(0, |digits, place| digits | ((number / 10u64.pow(place) % 10) << (4 * place)));
    let (control, fill) = match format {
        ZoneFormat::Iso0 => (0, 0xFFFF_FFFF),
        ZoneFormat::Iso1 => (1, 0x3C90_5EF1),
        ZoneFormat::Iso3 => (3, 0xABCD_EFAB),
        ZoneFormat::Iso4 => (4, 0xAAAA_AAAA),
    };
    (control << 60) | (6 << 56) | (0x91 << 48) | (digits << 32) | fill
}

fn zone_block_of(zone: &Known, format: ZoneFormat, number: u64) -> ZoneBlock {
    zone.block(format, clear_block(format, field_of(format, number)))
}

/// The cases, each with another PIN from `first` on.
fn cases(world: &World, first: u64) -> Vec<Case> {
    let numbers = std::cell::Cell::new(first);
    let next = || numbers.replace(numbers.get() + 1);
    let mut cases: Vec<Case> = Vec::new();
    let mut add = |name: String, source, target, is_batched| {
        cases.push(Case { name, source, target, card: card(), account: copy(&world.account), is_batched });
    };
    let zone = |zone: &Known, format| from_zone(zone, &zone_block_of(zone, format, next()));
    let tdes = [ZoneFormat::Iso0, ZoneFormat::Iso1, ZoneFormat::Iso3];
    for (known, format) in [&APP_BANK, &BUREAU].into_iter().flat_map(|known| tdes.map(|format| (known, format))) {
        let named = |what: &str| format!("{} {format} {what}", known.zone);
        add(named("to a record"), zone(known, format), Target::Record, true);
        add(named("to a zone"), zone(known, format), to_zone(&ONLY_MOVES, ZoneFormat::Iso0), true);
        add(named("to an AES zone"), zone(known, format), to_zone(&WALLET, ZoneFormat::Iso4), true);
        for (wrong, what) in [(0x8 << 60, "control"), (0xF << 56, "length"), (0xF << 52, "digit")] {
            let block = known.block(format, clear_block(format, field_of(format, next()) | wrong));
            add(named(what), from_zone(known, &block), Target::Record, true);
            add(named(what), from_zone(known, &block), to_zone(&BUREAU, ZoneFormat::Iso3), true);
        }
        let weak = known.block(format, clear_block(format, (good_field(format) & !(0xFFFF << 40)) | (0x1234 << 40)));
        add(named("weak"), from_zone(known, &weak), Target::Record, true);
        let other = if known.zone == APP_BANK.zone { &BUREAU } else { &APP_BANK };
        let block = zone_block_of(known, format, next());
        add(named("under another zone's key"), from_zone(other, &block), Target::Record, true);
        let unknown = Known { zone: "nobody", ..APP_BANK };
        add(named("of no zone"), from_zone(&unknown, &block), Target::Record, false);
        let key = ZoneKey { version: Some(KeyVersion(9)), ..known.key() };
        add(named("of no version"), Source::Zone { key, block: block.clone() }, Target::Record, false);
        add(named("to no zone"), from_zone(known, &block), to_zone(&unknown, ZoneFormat::Iso0), true);
        let to_device = Target::Device { public_key: world.phone.public.clone() };
        add(named("to a device"), from_zone(known, &block), to_device, false);
    }
    add("a use that is refused".into(), zone(&ONLY_MOVES, ZoneFormat::Iso1), Target::Record, false);
    add(
        "a use that is allowed".into(),
        zone(&ONLY_MOVES, ZoneFormat::Iso1),
        to_zone(&APP_BANK, ZoneFormat::Iso3),
        true,
    );
    add("format 4 to a record".into(), zone(&AUTH_HOST, ZoneFormat::Iso4), Target::Record, false);
    add("format 4 to a zone".into(), zone(&WALLET, ZoneFormat::Iso4), to_zone(&BUREAU, ZoneFormat::Iso0), false);
    let block = zone_block_of(&APP_BANK, ZoneFormat::Iso1, next());
    add("format 1 under an AES key".into(), from_zone(&AUTH_HOST, &block), Target::Record, false);
    add("a device's block".into(), world.device(field_of(ZoneFormat::Iso1, next())), Target::Record, true);
    add("a malformed block of a device".into(), world.device(field_of(ZoneFormat::Iso3, 1)), Target::Record, true);
    for (dated, format) in [(0, "iso-3"), (1, "iso-0")] {
        let record = || world.record(dated, next());
        add(format!("{format} to a record"), Source::Record(record()), Target::Record, true);
        add(format!("{format} to a zone"), Source::Record(record()), to_zone(&BUREAU, ZoneFormat::Iso0), true);
        let to_device = Target::Device { public_key: world.phone.public.clone() };
        add(format!("{format} to a device"), Source::Record(record()), to_device, true);
        let record = record();
        // Its block, and its tag.
        for at in [record.as_bytes().len() - 17, record.as_bytes().len() - 1] {
            let mut changed = record.as_bytes().to_vec();
            changed[at] ^= 1;
            let changed = Source::Record(PinRecord::from_bytes(&changed).unwrap());
            add(format!("{format} with byte {at} changed"), changed, Target::Record, true);
        }
    }
    let moved = set(&world.hsm, &APP_BANK, &zone_block_of(&APP_BANK, ZoneFormat::Iso1, next())).unwrap().record;
    add("a format 4 record".into(), Source::Record(moved), Target::Record, false);

    // The same under another card, without an account number, and with a changed one.
    let mut changed = match &world.account {
        Account::Registered(sealed) => sealed.as_bytes().to_vec(),
        Account::PlasticId => panic!("the world has a registered account"),
    };
    *changed.last_mut().unwrap() ^= 1;
    let changed = Account::Registered(SealedAccount::from_bytes(&changed).unwrap());
    let sources = [
        (zone(&APP_BANK, ZoneFormat::Iso1), true),
        (zone(&BUREAU, ZoneFormat::Iso0), true),
        (zone(&AUTH_HOST, ZoneFormat::Iso4), false),
        (Source::Record(world.record(0, next())), true),
    ];
    for (source, has_tdes) in sources {
        let is_zone = matches!(source, Source::Zone { .. });
        let mut add = |what: &str, card, account: &Account, is_batched| {
            let (source, name) = (source.clone(), format!("{what}, {has_tdes}"));
            cases.push(Case { name, source, target: Target::Record, card, account: copy(account), is_batched });
        };
        add("another tenant", card_of("other", "1000200030"), &world.account, has_tdes && !is_zone);
        add("another card", card_of(TENANT, "1000200031"), &world.account, has_tdes);
        add("the plasticId", card(), &Account::PlasticId, has_tdes);
        add("a changed account number", card(), &changed, has_tdes);
    }
    cases
}

#[test]
fn zone_blocks_and_3des_records_together_have_the_results_of_single_requests() {
    let world = World::new();
    // More blocks than one batch holds, so that a batch begins inside the list.
    let cases: Vec<Case> = (0..4).flat_map(|turn| cases(&world, 1_000 * turn)).collect();
    assert!(cases.len() > bitslice_des::Batch::BLOCKS_MAX);
    let alone: Vec<_> = cases.iter().map(|case| wait(world.hsm.execute(case.request()))).collect();
    assert_eq!(BATCHED.get(), 0, "a single request needs no batch");
    let succeeded: Vec<bool> = alone.iter().map(Result::is_ok).collect();
    let alone: Vec<_> = cases.iter().zip(&alone).map(|(case, result)| world.meaning(case, result)).collect();
    let successes: Vec<_> = alone.iter().zip(&succeeded).filter(|(_, succeeded)| **succeeded).collect();
    let distinct: std::collections::HashSet<_> = successes.iter().collect();
    // No PIN is twice in the list, so a block in the place of another is found.
    assert!(successes.len() > 100 && distinct.len() == successes.len(), "{} of {}", distinct.len(), successes.len());

    let check = |cases: &[Case], alone: &[String], execute: &dyn Fn(Vec<Request>) -> Vec<Result<Reply, Error>>| {
        let before = BATCHED.get();
        let together = execute(cases.iter().map(Case::request).collect());
        let batched = BATCHED.get() - before;
        assert_eq!(together.len(), cases.len());
        for ((case, result), alone) in cases.iter().zip(&together).zip(alone) {
            assert_eq!(world.meaning(case, result), *alone, "{}", case.name);
        }
        assert_eq!(batched, cases.iter().filter(|case| case.is_batched).count());
    };
    let on_arrival = |requests| match world.hsm.execute_together(requests) {
        Ok(results) => results,
        Err(_) => panic!("the software token has no workers"),
    };
    let in_one_frame = |requests| match wait(world.hsm.execute(Request::Together { requests })) {
        Ok(Reply::Together(results)) => results,
        _ => panic!("the reply of another request"),
    };
    let up_to = |requests: Vec<Request>| {
        let versions = world.hsm.status().storage;
        on_arrival(requests.into_iter().map(|request| Request::UpTo { versions, request: request.into() }).collect())
    };
    check(&cases, &alone, &on_arrival);
    check(&cases, &alone, &up_to);
    for (cases, alone) in cases.chunks(64).zip(alone.chunks(64)) {
        check(cases, alone, &in_one_frame);
    }
}

#[test]
fn too_few_zone_blocks_are_not_decrypted_as_a_batch() {
    let world = World::new();
    let execute = |blocks: u64, refused: u64| {
        let one = |known: &Known, number| Request::Translate {
            source: from_zone(known, &zone_block_of(known, ZoneFormat::Iso1, number)),
            target: Target::Record,
            card: card(),
            account: Account::PlasticId,
        };
        let blocks = (0..blocks).map(|number| one(&APP_BANK, number));
        let requests = blocks.chain((0..refused).map(|number| one(&ONLY_MOVES, number))).collect();
        let before = BATCHED.get();
        assert!(wait(world.hsm.execute(Request::Together { requests })).is_ok());
        BATCHED.get() - before
    };
    // A request that the rules refuse has no block.
    assert_eq!([execute(5, 20), execute(6, 20), execute(6, 0), execute(1, 0)], [0, 6, 6, 0]);
}
