//! Zones, on the software token and on each PKCS#11 token: the translations of the table, the rules of a zone, and what keeps
//! the boundary from opening.

use aes::{
    Aes128, Aes256,
    cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit},
};
use des::{TdesEde2, TdesEde3};

use super::*;
use crate::{
    block::{AccountDigits, account_field},
    clear::ClearBytes,
    component::Components,
    config::Unlock,
    fresh_token::{Make, fresh_token},
    key_store::KeyStore,
    keyblock::{Header, KeyBlock, ProtectionKey, Version},
    keyring::{KeyAlgorithm, KeyUsage},
    zones::ZoneError,
};
use hsm_protocol::{KeyVersion, ParityPolicy, ZoneBlock, ZoneFormat, ZoneKey, ZoneName, ZoneRules, ZoneUse};

const NOW: u64 = 1_700_000_000_000;
const PAN: &str = "5413330089020011";

/// A zone key that both parties know.
pub(super) struct Known {
    pub(super) zone: &'static str,
    pub(super) algorithm: KeyAlgorithm,
    pub(super) key: &'static [u8],
}

/// The key of the vendor's example: it has bytes of even parity.
pub(super) const APP_BANK: Known = Known {
    zone: "app-bank",
    algorithm: KeyAlgorithm::TdesDouble,
    key: &[0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xAA, 0xBB, 0xCC, 0xDD, 0xEE, 0xFF],
};
pub(super) const BUREAU: Known = Known {
    zone: "bureau",
    algorithm: KeyAlgorithm::TdesTriple,
    key: &[
        0xF9, 0x4B, 0x8C, 0xD6, 0x2A, 0x20, 0xB8, 0x5A, 0xA9, 0xB8, 0xE0, 0x6D, 0xB6, 0xB0, 0xBA, 0x67, 0x85, 0xEC,
        0x02, 0x9C, 0xB6, 0x04, 0xE8, 0x61,
    ],
};
pub(super) const AUTH_HOST: Known = Known { zone: "auth-host", algorithm: KeyAlgorithm::Aes256, key: &[0x5C; 32] };
pub(super) const WALLET: Known = Known { zone: "wallet", algorithm: KeyAlgorithm::Aes128, key: &[0x3A; 16] };
const ZONES: [Known; 4] = [APP_BANK, BUREAU, AUTH_HOST, WALLET];

impl Known {
    fn name(&self) -> ZoneName {
        ZoneName::parse(self.zone).unwrap()
    }

    pub(super) fn key(&self) -> ZoneKey {
        ZoneKey { zone: self.name(), version: None }
    }

    pub(super) fn rules(&self, formats: &[ZoneFormat], uses: &[ZoneUse]) -> ZoneRules {
        let (name, tenant) = (self.name(), "bank".into());
        ZoneRules { name, tenant, formats: formats.into(), uses: uses.into(), parity: ParityPolicy::Ignore }
    }

    fn usage(&self) -> KeyUsage {
        KeyUsage::Zone(self.name())
    }

    /// Encrypts a clear block: of format 4 the PIN field, of the others the block after the XOR with the account number.
    pub(super) fn block(&self, format: ZoneFormat, clear: u128) -> ZoneBlock {
        let mut wide = clear.to_be_bytes();
        let mut narrow = (clear as u64).to_be_bytes();
        match self.algorithm {
            KeyAlgorithm::TdesDouble => TdesEde2::new_from_slice(self.key).unwrap().encrypt_block((&mut narrow).into()),
            KeyAlgorithm::TdesTriple => TdesEde3::new_from_slice(self.key).unwrap().encrypt_block((&mut narrow).into()),
            _ => {
                self.aes_encrypt(&mut wide);
                wide = (u128::from_be_bytes(wide) ^ account_field(&account_number())).to_be_bytes();
                self.aes_encrypt(&mut wide);
            }
        }
        ZoneBlock::from_bytes(format, if format.needs_aes() { &wide } else { &narrow }).unwrap()
    }

    /// Decrypts a block to its PIN field: control, length, digits and fill in the 16 last nibbles.
    pub(super) fn field(&self, block: &ZoneBlock) -> u64 {
        let account = account_number();
        if block.format().needs_aes() {
            let mut wide: [u8; 16] = block.as_bytes().try_into().unwrap();
            self.aes_decrypt(&mut wide);
            wide = (u128::from_be_bytes(wide) ^ account_field(&account)).to_be_bytes();
            self.aes_decrypt(&mut wide);
            return (u128::from_be_bytes(wide) >> 64) as u64;
        }
        let mut narrow: [u8; 8] = block.as_bytes().try_into().unwrap();
        match self.algorithm {
            KeyAlgorithm::TdesDouble => TdesEde2::new_from_slice(self.key).unwrap().decrypt_block((&mut narrow).into()),
            _ => TdesEde3::new_from_slice(self.key).unwrap().decrypt_block((&mut narrow).into()),
        }
        let bound = if block.format().binds_account() { account.rightmost_twelve() } else { 0 };
        u64::from_be_bytes(narrow) ^ bound
    }

    fn aes_encrypt(&self, block: &mut [u8; 16]) {
        match self.algorithm {
            KeyAlgorithm::Aes128 => Aes128::new_from_slice(self.key).unwrap().encrypt_block(block.into()),
            _ => Aes256::new_from_slice(self.key).unwrap().encrypt_block(block.into()),
        }
    }

    fn aes_decrypt(&self, block: &mut [u8; 16]) {
        match self.algorithm {
            KeyAlgorithm::Aes128 => Aes128::new_from_slice(self.key).unwrap().decrypt_block(block.into()),
            _ => Aes256::new_from_slice(self.key).unwrap().decrypt_block(block.into()),
        }
    }
}

fn account_number() -> AccountDigits {
    AccountDigits::parse(PAN).unwrap()
}

/// The clear block of a PIN field: bound to the account number in formats 0 and 3, with a random half in format 4.
fn clear_block(format: ZoneFormat, field: u64) -> u128 {
    match format {
        ZoneFormat::Iso0 | ZoneFormat::Iso3 => (field ^ account_number().rightmost_twelve()).into(),
        ZoneFormat::Iso1 => field.into(),
        ZoneFormat::Iso4 => (u128::from(field) << 64) | 0x0123_4567_89AB_CDEF,
    }
}

/// The PIN field of 2580 in a format. The fill of format 1 suits every storage format of level `token`.
fn good_field(format: ZoneFormat) -> u64 {
    match format {
        ZoneFormat::Iso0 => 0x0425_80FF_FFFF_FFFF,
        ZoneFormat::Iso1 => 0x1425_80AA_AAAA_AAAA,
        ZoneFormat::Iso3 => 0x3425_80AB_CDEF_ABCD,
        ZoneFormat::Iso4 => 0x4425_80AA_AAAA_AAAA,
    }
}

/// The zone whose key carries a format at every level that has the format.
fn zone_of(format: ZoneFormat) -> Known {
    match format {
        ZoneFormat::Iso0 | ZoneFormat::Iso1 => APP_BANK,
        ZoneFormat::Iso3 => BUREAU,
        ZoneFormat::Iso4 => AUTH_HOST,
    }
}

fn good_block(format: ZoneFormat) -> ZoneBlock {
    zone_of(format).block(format, clear_block(format, good_field(format)))
}

pub(super) fn from_zone(zone: &Known, block: &ZoneBlock) -> Source {
    Source::Zone { key: zone.key(), block: block.clone() }
}

pub(super) fn to_zone(zone: &Known, format: ZoneFormat) -> Target {
    Target::Zone { key: zone.key(), format }
}

fn registered(hsm: &Hsm) -> Account {
    Account::Registered(wait(hsm.seal_pan(PAN, card())).unwrap())
}

fn set(hsm: &Hsm, zone: &Known, block: &ZoneBlock) -> Result<NewRecord, Error> {
    set_for(hsm, zone.key(), block, card(), &registered(hsm))
}

pub(super) fn set_for(
    hsm: &Hsm,
    key: ZoneKey,
    block: &ZoneBlock,
    card: CardBinding,
    account: &Account,
) -> Result<NewRecord, Error> {
    match wait(hsm.translate(Source::Zone { key, block: block.clone() }, Target::Record, card, account))? {
        Reply::Record { record, retry_tag: Some(retry_tag) } => Ok(NewRecord { record, retry_tag }),
        _ => panic!("the reply of another request"),
    }
}

pub(super) fn zone_block(reply: Result<Reply, Error>) -> Result<ZoneBlock, Error> {
    match reply? {
        Reply::ZoneBlock(block) => Ok(block),
        _ => panic!("the reply of another request"),
    }
}

fn give(hsm: &Hsm, record: &PinRecord, zone: &Known, format: ZoneFormat) -> Result<ZoneBlock, Error> {
    let target = to_zone(zone, format);
    zone_block(wait(hsm.translate(Source::Record(record.clone()), target, card(), &registered(hsm))))
}

fn move_block(
    hsm: &Hsm,
    (source, block): (&Known, &ZoneBlock),
    (target, format): (&Known, ZoneFormat),
) -> Result<ZoneBlock, Error> {
    let (source, target) = (from_zone(source, block), to_zone(target, format));
    zone_block(wait(hsm.translate(source, target, card(), &registered(hsm))))
}

/// A key to import: the key, its mode of use and whether to activate it.
pub(super) struct Import<'a> {
    pub(super) known: &'a Known,
    pub(super) mode: char,
}

pub(super) fn all_keys() -> Vec<Import<'static>> {
    const ALL: &[Known] = &ZONES;
    ALL.iter().map(|known| Import { known, mode: 'B' }).collect()
}

pub(super) fn vault_in(directory: &Path) -> Vault {
    Vault::File { path: directory.join("vault"), unlock: Unlock::KeyFile(directory.join("vault.key")) }
}

/// A vault with the engine's keys and zone keys, which come in key blocks: a key block keeps parity and mode of use.
pub(super) fn vault_with(directory: &Path, keys: &[Import<'_>]) {
    Hsm::create_vault(&vault_in(directory), KeyFileUse::Refuse).unwrap();
    let mut store = KeyStore::open(KeysConfig::Vault(vault_in(directory)), &Wanted::default(), NOW).unwrap();
    import_all(&mut store, keys);
}

/// Imports and activates zone keys under a key-exchange key that is loaded from components.
fn import_all(store: &mut KeyStore, keys: &[Import<'_>]) {
    let exchange = KeyUsage::parse("exchange:test").unwrap();
    let mut components = Components::new(KeyAlgorithm::Aes256);
    [[1; 32], [2; 32]].iter().for_each(|component| components.add_known(component));
    store.load(exchange.clone(), &components, NOW).unwrap();
    store.activate(&exchange, 1, NOW).unwrap();
    let under = ProtectionKey::aes(ClearBytes::copied(&[3; 32])).unwrap();
    for Import { known, mode } in keys {
        let letter = if known.algorithm.is_tdes() { 'T' } else { 'A' };
        let header = Header::new(Version::D, ['P', '0'], letter, *mode, 'E');
        let block = KeyBlock::write(&header, &under, &ClearBytes::copied(known.key), |_| Ok(())).unwrap();
        let key = store.import(known.usage(), &block, &exchange, NOW).unwrap();
        store.activate(&key.name, key.version, NOW).unwrap();
    }
    store.commit([0; 32]).unwrap();
}

/// Imports the keys of every zone into a token, as its owner would without a ceremony.
pub(super) fn import_zone_keys(token: &Pkcs11, level: BoundaryLevel) {
    for known in &ZONES {
        let key = ClearBytes::copied(known.key);
        token::import_key(token, level, known.usage(), known.algorithm, &key).unwrap();
    }
}

/// The rules of every zone that a level serves with a storage format.
fn rules_at(level: BoundaryLevel, form: StorageFormat) -> Vec<ZoneRules> {
    use ZoneUse::{Change, Export, GetPin, SetPin, Translate, Verify};
    let tdes = [ZoneFormat::Iso1, ZoneFormat::Iso0, ZoneFormat::Iso3];
    let aes_uses = [SetPin, Verify, Change, Export, Translate];
    match (level, form) {
        (BoundaryLevel::Host, StorageFormat::OneWay) => {
            let aes = [AUTH_HOST, WALLET].map(|zone| zone.rules(&[ZoneFormat::Iso4], &[SetPin, Verify, Translate]));
            let tdes = [APP_BANK, BUREAU].map(|zone| zone.rules(&tdes, &[SetPin, Verify, Translate]));
            tdes.into_iter().chain(aes).collect()
        }
        (BoundaryLevel::Host, _) => vec![
            APP_BANK.rules(&tdes, &ZoneUse::ALL),
            BUREAU.rules(&tdes, &ZoneUse::ALL),
            AUTH_HOST.rules(&[ZoneFormat::Iso4], &aes_uses),
            WALLET.rules(&[ZoneFormat::Iso4], &aes_uses),
        ],
        (BoundaryLevel::Token, StorageFormat::Iso3) => {
            vec![APP_BANK.rules(&[ZoneFormat::Iso1], &[SetPin, GetPin]), BUREAU.rules(&[ZoneFormat::Iso3], &[Export])]
        }
        (BoundaryLevel::Token, StorageFormat::Iso4) => vec![APP_BANK.rules(&[ZoneFormat::Iso1], &[SetPin])],
        (BoundaryLevel::Token, _) => vec![APP_BANK.rules(&[ZoneFormat::Iso1], &[SetPin, GetPin])],
    }
}

/// The level of the token of this process.
fn level_here() -> BoundaryLevel {
    open().status().level()
}

/// Opens the token of this process with zones. The directory has the vault of the software token.
fn try_open(
    directory: &Path,
    form: Option<NewRecordFormat>,
    zones: impl FnOnce(BoundaryLevel) -> Vec<ZoneRules>,
) -> Result<Hsm, OpenError> {
    let level = level_here();
    let wanted = Wanted {
        level: match level {
            BoundaryLevel::Host => WantedLevel::Host,
            BoundaryLevel::Token => WantedLevel::Token,
        },
        form,
    };
    let mut config = Config { zones: zones(level), ..config_as(wanted) };
    if let KeysConfig::Vault(vault) = &mut config.keys {
        *vault = vault_in(directory);
    }
    Hsm::open(config)
}

/// Opens the vault of a directory, also where the token of this process is another.
fn open_vault(directory: &Path, form: Option<NewRecordFormat>, zones: Vec<ZoneRules>) -> Result<Hsm, OpenError> {
    let (keys, wanted) = (KeysConfig::Vault(vault_in(directory)), Wanted { form, ..Wanted::default() });
    Hsm::open(Config { keys, wanted, zones, ..Config::default() })
}

fn default_form(level: BoundaryLevel) -> StorageFormat {
    match level {
        BoundaryLevel::Host => StorageFormat::Iso4,
        BoundaryLevel::Token => StorageFormat::Wrapped,
    }
}

/// Opens the token of this process with every zone that its level serves.
fn open_with_zones() -> Hsm {
    let directory = tempfile::tempdir().unwrap();
    if env::var_os(TOKEN_VARIABLE).is_none() {
        vault_with(directory.path(), &all_keys());
    }
    try_open(directory.path(), None, |level| rules_at(level, default_form(level))).unwrap()
}

/// A boundary for each storage format of this level, on the same keys.
fn boundaries_with_zones() -> Vec<(StorageFormat, Hsm)> {
    let until = || "2999-12-31".to_owned();
    let other = match level_here() {
        BoundaryLevel::Host => NewRecordFormat::Iso0 { until: until() },
        BoundaryLevel::Token => NewRecordFormat::Wrapped,
    };
    let directory = tempfile::tempdir().unwrap();
    if env::var_os(TOKEN_VARIABLE).is_none() {
        vault_with(directory.path(), &all_keys());
    }
    let open = |form: NewRecordFormat| {
        let stored = form.form();
        (stored, try_open(directory.path(), Some(form), |level| rules_at(level, stored)).unwrap())
    };
    let one_way = (level_here() == BoundaryLevel::Host).then_some(NewRecordFormat::OneWay);
    let formats = [NewRecordFormat::Iso4, NewRecordFormat::Iso3 { until: until() }, other];
    formats.into_iter().chain(one_way).map(open).collect()
}

#[test]
fn every_translation_of_a_zone_in_the_table_works_and_no_other() {
    let phone = Phone::new();
    let (mut seen, boundaries) = (0, boundaries_with_zones());
    let level = boundaries[0].1.status().level();
    for (form, hsm) in &boundaries {
        let check = |source, target, result: Result<Reply, Error>| {
            let allowed = TRANSLATIONS.contains(&Translation { source, target, level });
            assert_eq!(result.is_ok(), allowed, "{source:?} to {target:?}: {:?}", result.err());
            match result {
                Ok(_) => 1,
                Err(Error::TranslationNotAllowed | Error::WriteOnly | Error::OneWay) => 0,
                Err(error) => panic!("{error}"),
            }
        };
        let run = |source, target| wait(hsm.translate(source, target, card(), &registered(hsm)));
        let record = || set(hsm, &APP_BANK, &good_block(ZoneFormat::Iso1)).unwrap().record;
        let issued = wait(hsm.issue(&phone.public, &binding())).unwrap();
        for format in ZoneFormat::ALL {
            let (place, zone) = (Place::Zone(format), zone_of(format));
            let source = || from_zone(&zone, &good_block(format));
            let target = || to_zone(&zone, format);
            seen += check(place, Place::Record(*form), run(source(), Target::Record));
            seen += check(Place::Record(*form), place, run(Source::Record(record()), target()));
            let device = Source::Device {
                sealed_tzpk: SealedKey::from_bytes(issued.sealed.as_bytes()).unwrap(),
                control: CONTROL,
                block: phone.block(&issued, GOOD),
            };
            assert_eq!(check(Place::Device, place, run(device, target())), 0);
            let to_device = Target::Device { public_key: phone.public.clone() };
            assert_eq!(check(place, Place::Device, run(source(), to_device)), 0);
            for other in ZoneFormat::ALL {
                let moved = run(source(), to_zone(&zone_of(other), other));
                // These pairs do not depend on the storage format: they are counted once.
                let counted = check(place, Place::Zone(other), moved);
                seen += if *form == boundaries[0].0 { counted } else { 0 };
            }
        }
    }
    let has_zone = |place| matches!(place, Place::Zone(_));
    let rows = TRANSLATIONS.iter().filter(|row| row.level == level && (has_zone(row.source) || has_zone(row.target)));
    assert_eq!(seen, rows.count());
}

#[test]
fn a_block_keeps_its_pin_from_zone_to_record_to_zone() {
    for (form, hsm) in boundaries_with_zones() {
        let level = hsm.status().level();
        for source in ZoneFormat::ALL {
            let Ok(new) = set(&hsm, &zone_of(source), &good_block(source)) else {
                assert_eq!(level, BoundaryLevel::Token);
                continue;
            };
            assert_eq!(new.record.form(), form);
            for target in ZoneFormat::ALL {
                let zone = zone_of(target);
                let Ok(block) = give(&hsm, &new.record, &zone, target) else {
                    assert!(level == BoundaryLevel::Token || form == StorageFormat::OneWay);
                    continue;
                };
                let (field, good) = (zone.field(&block), good_field(target));
                // Control, length and digits; the fill of formats 1 and 3 is random.
                assert_eq!(field >> 40, good >> 40, "{source} by {form:?} to {target}");
                match target {
                    ZoneFormat::Iso0 | ZoneFormat::Iso4 => assert_eq!(field, good),
                    ZoneFormat::Iso3 => assert!((0..10).all(|nibble| (field >> (4 * nibble)) & 0xF >= 0xA)),
                    ZoneFormat::Iso1 => {}
                }
            }
        }
    }
}

#[test]
fn a_block_keeps_its_pin_from_zone_to_zone() {
    let hsm = open_with_zones();
    if hsm.status().level() == BoundaryLevel::Token {
        return;
    }
    for source in ZoneFormat::ALL {
        for target in [ZoneFormat::Iso0, ZoneFormat::Iso3, ZoneFormat::Iso4] {
            let other = if target.needs_aes() { WALLET } else { BUREAU };
            let moved = move_block(&hsm, (&zone_of(source), &good_block(source)), (&other, target)).unwrap();
            assert_eq!(other.field(&moved) >> 40, good_field(target) >> 40, "{source} to {target}");
        }
    }
}

/// A block for another account number is malformed, and its account number never comes from the plasticId. What the level or
/// the storage format cannot do is refused by that name first.
#[test]
fn a_block_with_an_account_number_needs_one() {
    for (form, hsm) in boundaries_with_zones() {
        let level = hsm.status().level();
        let record = set(&hsm, &APP_BANK, &good_block(ZoneFormat::Iso1)).unwrap().record;
        let run = |source, target| wait(hsm.translate(source, target, card(), &Account::PlasticId));
        let mut needed = 0;
        for format in [ZoneFormat::Iso0, ZoneFormat::Iso3, ZoneFormat::Iso4] {
            let (zone, place) = (zone_of(format), Place::Zone(format));
            let block = good_block(format);
            for (source, target, is_set) in [(Place::Record(form), place, false), (place, Place::Record(form), true)] {
                let answer = match is_set {
                    true => run(from_zone(&zone, &block), Target::Record),
                    false => run(Source::Record(record.clone()), to_zone(&zone, format)),
                };
                let translation = Translation { source, target, level };
                match answer.err().unwrap() {
                    Error::NoAccountNumber => {
                        assert!(TRANSLATIONS.contains(&translation), "{translation:?}");
                        needed += 1;
                    }
                    Error::TranslationNotAllowed | Error::WriteOnly | Error::OneWay => {
                        assert!(!TRANSLATIONS.contains(&translation), "{translation:?}");
                    }
                    error => panic!("{translation:?}: {error}"),
                }
            }
        }
        // At level token only the export of an ISO-3 record has the account number inside.
        let expected = match (level, form) {
            (BoundaryLevel::Host, StorageFormat::OneWay) => 3,
            (BoundaryLevel::Host, _) => 6,
            (BoundaryLevel::Token, form) => usize::from(form == StorageFormat::Iso3),
        };
        assert_eq!(needed, expected, "{form:?} at level {level}");
        assert!(run(from_zone(&APP_BANK, &good_block(ZoneFormat::Iso1)), Target::Record).is_ok());
    }
}

#[test]
fn a_block_between_zones_keeps_its_account_number() {
    let hsm = open_with_zones();
    if hsm.status().level() == BoundaryLevel::Token {
        return;
    }
    let run = |account: &Account| {
        let source = from_zone(&AUTH_HOST, &good_block(ZoneFormat::Iso4));
        wait(hsm.translate(source, to_zone(&BUREAU, ZoneFormat::Iso0), card(), account))
    };
    assert!(run(&registered(&hsm)).is_ok());
    let other = Account::Registered(wait(hsm.seal_pan("5413330089020029", card())).unwrap());
    assert!(matches!(run(&other), Err(Error::Refused(Refusal::MalformedBlock))));
    assert!(matches!(run(&Account::PlasticId), Err(Error::NoAccountNumber)));
}

#[test]
fn a_malformed_block_has_one_answer_and_only_a_set_judges_the_pin() {
    let hsm = open_with_zones();
    if hsm.status().level() == BoundaryLevel::Token {
        return;
    }
    for format in ZoneFormat::ALL {
        let zone = zone_of(format);
        let good = good_field(format);
        let head = good >> 60 << 60;
        let block = |field| zone.block(format, clear_block(format, field));
        // Control, length, digit and, but in format 1, fill.
        let mut malformed = vec![good ^ (0x8 << 60), head | 0x0325_8FFF_FFFF_FFFF, head | 0x0D25_8025_8025_8025];
        malformed.push(good ^ (0xF << 48));
        if format != ZoneFormat::Iso1 {
            malformed.push(good & !0xF);
        }
        for field in malformed {
            let block = block(field);
            let refused = |result: Option<Error>| matches!(result, Some(Error::Refused(Refusal::MalformedBlock)));
            assert!(refused(set(&hsm, &zone, &block).err()), "{format} {field:x}");
            assert!(refused(move_block(&hsm, (&zone, &block), (&WALLET, ZoneFormat::Iso4)).err()), "{format}");
        }
        let weak = block((good & !(0xFFFF << 40)) | (0x1234 << 40));
        assert!(matches!(set(&hsm, &zone, &weak).err(), Some(Error::Refused(Refusal::PinPolicy))), "{format}");
        assert!(move_block(&hsm, (&zone, &weak), (&BUREAU, ZoneFormat::Iso0)).is_ok(), "{format}");
    }
}

#[test]
fn a_zone_does_only_what_its_rules_allow() {
    use ZoneUse::{Export, GetPin, SetPin};
    let directory = tempfile::tempdir().unwrap();
    if env::var_os(TOKEN_VARIABLE).is_none() {
        vault_with(directory.path(), &all_keys());
    }
    let open = |rules: Vec<ZoneRules>| try_open(directory.path(), None, |_| rules).unwrap();
    let both = open(vec![APP_BANK.rules(&[ZoneFormat::Iso1], &[SetPin, GetPin])]);
    let good = good_block(ZoneFormat::Iso1);
    let record = set(&both, &APP_BANK, &good).unwrap().record;
    let only_gets = open(vec![APP_BANK.rules(&[ZoneFormat::Iso1], &[GetPin])]);
    assert!(matches!(set(&only_gets, &APP_BANK, &good).err(), Some(Error::ZoneUse { needed: SetPin })));
    let only_sets = open(vec![APP_BANK.rules(&[ZoneFormat::Iso1], &[SetPin])]);
    let refused = give(&only_sets, &record, &APP_BANK, ZoneFormat::Iso1).err();
    assert!(matches!(refused, Some(Error::ZoneUse { needed: GetPin })));
    assert!(matches!(set(&both, &BUREAU, &good).err(), Some(Error::ZoneUnknown { zone }) if zone == BUREAU.name()));
    let other_version = ZoneKey { version: Some(KeyVersion(9)), ..APP_BANK.key() };
    let refused = set_for(&both, other_version, &good, card(), &registered(&both)).err();
    assert!(matches!(refused, Some(Error::ZoneUnknown { .. })));
    if both.status().level() == BoundaryLevel::Token {
        return;
    }
    let refused = set(&both, &APP_BANK, &good_block(ZoneFormat::Iso0)).err();
    assert!(matches!(refused, Some(Error::ZoneFormat { format: ZoneFormat::Iso0 })));
    let refused = give(&both, &record, &APP_BANK, ZoneFormat::Iso3).err();
    assert!(matches!(refused, Some(Error::ZoneUse { needed: Export })));
    let refused = move_block(&both, (&APP_BANK, &good), (&APP_BANK, ZoneFormat::Iso0)).err();
    assert!(matches!(refused, Some(Error::ZoneUse { needed: ZoneUse::Translate })));
}

#[test]
fn a_zone_that_gives_and_accepts_format_1_is_named_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    if env::var_os(TOKEN_VARIABLE).is_none() {
        vault_with(directory.path(), &all_keys());
    }
    let warned = |uses: &[ZoneUse]| {
        let hsm = try_open(directory.path(), None, |_| vec![APP_BANK.rules(&[ZoneFormat::Iso1], uses)]).unwrap();
        let is_line = |line: &String| line.starts_with("warning: zones that give PINs") && line.contains("app-bank");
        assert_eq!(hsm.status().reusable_answers.is_empty(), !hsm.status().lines().iter().any(is_line));
        !hsm.status().reusable_answers.is_empty()
    };
    assert!(warned(&[ZoneUse::SetPin, ZoneUse::GetPin]));
    assert!(!warned(&[ZoneUse::SetPin]) && !warned(&[ZoneUse::GetPin]));
    if level_here() == BoundaryLevel::Host {
        assert!(warned(&[ZoneUse::GetPin, ZoneUse::Verify]) && warned(&[ZoneUse::GetPin, ZoneUse::Change]));
        assert!(!warned(&[ZoneUse::SetPin, ZoneUse::Verify, ZoneUse::Change]));
    }
}

#[test]
fn a_zone_is_unknown_to_a_card_of_another_tenant() {
    let hsm = open_with_zones();
    let other = card_of("other", "1000200030");
    let account = || Account::Registered(wait(hsm.seal_pan(PAN, other)).unwrap());
    let refused = |result: Option<Error>| assert!(matches!(result, Some(Error::ZoneUnknown { .. })), "{result:?}");
    refused(set_for(&hsm, APP_BANK.key(), &good_block(ZoneFormat::Iso1), other, &account()).err());
    let phone = Phone::new();
    let binding = Binding { card: other, ..binding() };
    let issued = wait(hsm.issue(&phone.public, &binding)).unwrap();
    let source = Source::Device {
        sealed_tzpk: SealedKey::from_bytes(issued.sealed.as_bytes()).unwrap(),
        control: CONTROL,
        block: phone.block(&issued, GOOD),
    };
    let Reply::Record { record, .. } = wait(hsm.translate(source, Target::Record, other, &account())).unwrap() else {
        panic!("the reply of another request")
    };
    let give = |format| {
        let target = to_zone(&APP_BANK, format);
        wait(hsm.translate(Source::Record(record.clone()), target, other, &account())).err()
    };
    refused(give(ZoneFormat::Iso1));
    if hsm.status().level() == BoundaryLevel::Host {
        refused(give(ZoneFormat::Iso0));
        let source = from_zone(&APP_BANK, &good_block(ZoneFormat::Iso0));
        refused(wait(hsm.translate(source, to_zone(&BUREAU, ZoneFormat::Iso0), other, &account())).err());
    }
}

#[test]
fn only_the_same_block_of_a_zone_and_card_has_the_same_tag() {
    let hsm = open_with_zones();
    let good = good_block(ZoneFormat::Iso1);
    let first = set(&hsm, &APP_BANK, &good).unwrap();
    let again = set(&hsm, &APP_BANK, &good).unwrap();
    assert_eq!(first.retry_tag, again.retry_tag);
    assert_ne!(first.record.as_bytes(), again.record.as_bytes());
    let other_block = APP_BANK.block(ZoneFormat::Iso1, 0x1436_91AA_AAAA_AAAA);
    assert_ne!(set(&hsm, &APP_BANK, &other_block).unwrap().retry_tag, first.retry_tag);
    let other_card = card_of("bank", "1000200031");
    let of_other_card = set_for(&hsm, APP_BANK.key(), &good, other_card, &Account::PlasticId).unwrap();
    assert_ne!(of_other_card.retry_tag, first.retry_tag);
    let as_device = EncryptedBlock::from_bytes(good.as_bytes()).unwrap();
    assert_ne!(wait(hsm.retry_tag(&as_device)).unwrap(), first.retry_tag);
}

#[test]
fn the_status_names_each_active_version_of_a_zone_key() {
    let hsm = open_with_zones();
    let (status, level) = (hsm.status(), hsm.status().level());
    assert_eq!(status.zone_keys().len(), rules_at(level, default_form(level)).len());
    let app_bank = status.zone_keys().iter().find(|key| key.usage == APP_BANK.usage()).unwrap();
    // The vendor's KCV of its example key. At level token the key may not encrypt, so it has none.
    let kcv = (level == BoundaryLevel::Host).then(|| "FB0975".to_owned());
    assert_eq!((app_bank.version, app_bank.kcv.map(|kcv| kcv.to_string())), (KeyVersion(1), kcv));
    assert!(status.keys().iter().all(|key| key.usage.is_an_engines()) && status.even_parity.is_empty());
}

/// The vendor's known-good block, through the boundary.
#[test]
fn the_vendors_block_opens_under_its_key_of_even_parity() {
    let hsm = open_with_zones();
    let block = ZoneBlock::from_bytes(ZoneFormat::Iso1, &0x8173_9710_556E_1518u64.to_be_bytes()).unwrap();
    let set = set(&hsm, &APP_BANK, &block);
    match hsm.status().level() {
        // The PIN is 1234.
        BoundaryLevel::Host => assert!(matches!(set.err(), Some(Error::Refused(Refusal::PinPolicy)))),
        BoundaryLevel::Token => {
            let given = give(&hsm, &set.unwrap().record, &APP_BANK, ZoneFormat::Iso1).unwrap();
            assert_eq!(APP_BANK.field(&given), 0x1412_34AA_AAAA_AAAA);
        }
    }
}

#[test]
fn a_zone_that_the_level_cannot_serve_keeps_the_boundary_closed() {
    let directory = tempfile::tempdir().unwrap();
    if env::var_os(TOKEN_VARIABLE).is_none() {
        vault_with(directory.path(), &all_keys());
    }
    let refused = |rules: ZoneRules| match try_open(directory.path(), None, |_| vec![rules]).err() {
        Some(OpenError::Zone(error)) => error,
        other => panic!("{other:?}"),
    };
    let nobody = Known { zone: "nobody", ..APP_BANK };
    let no_key = refused(nobody.rules(&[ZoneFormat::Iso1], &[ZoneUse::SetPin]));
    assert_eq!(no_key, ZoneError::NoKey { zone: nobody.name() });
    assert!(no_key.to_string().contains("no active key zone:nobody"), "{no_key}");
    let unsuited = refused(AUTH_HOST.rules(&[ZoneFormat::Iso1], &[ZoneUse::SetPin]));
    assert!(matches!(unsuited, ZoneError::Algorithm { format: ZoneFormat::Iso1, .. }), "{unsuited}");
    let unsuited = refused(APP_BANK.rules(&[ZoneFormat::Iso4], &[]));
    assert!(matches!(unsuited, ZoneError::Algorithm { format: ZoneFormat::Iso4, .. }), "{unsuited}");
    if level_here() == BoundaryLevel::Host {
        return;
    }
    for needed in [ZoneUse::Verify, ZoneUse::Change, ZoneUse::Translate, ZoneUse::Export] {
        let error = refused(APP_BANK.rules(&[ZoneFormat::Iso1, ZoneFormat::Iso3], &[ZoneUse::SetPin, needed]));
        assert!(matches!(error, ZoneError::Use { needed: named, .. } if named == needed), "{error}");
    }
    let error = refused(APP_BANK.rules(&[ZoneFormat::Iso1, ZoneFormat::Iso0], &[ZoneUse::SetPin]));
    assert!(matches!(error, ZoneError::Format { format: ZoneFormat::Iso0, .. }), "{error}");
    let reject = ZoneRules { parity: ParityPolicy::Reject, ..APP_BANK.rules(&[ZoneFormat::Iso1], &[ZoneUse::SetPin]) };
    assert!(matches!(refused(reject), ZoneError::ParityUnknown { .. }));
}

/// The file to which the shim adds a line for each call: its name, then its output in hexadecimal.
pub(super) const TRACE_VARIABLE: &str = "PINSEAL_SHIM_TRACE";

/// Behind the shim, in a process of its own.
#[test]
fn the_shim_records_no_clear_value() {
    /// 12 digits: no output has them by chance.
    const DIGITS: u64 = 0x9078_5634_1290;
    if env::var_os(MODULE_VARIABLE).is_none() {
        return;
    }
    let trace = env::var_os(TRACE_VARIABLE).unwrap();
    let boundaries = boundaries_with_zones();
    assert_eq!(level_here(), BoundaryLevel::Token);
    std::fs::write(&trace, "").unwrap();
    let field = |control: u64| (control << 60) | (0xC << 56) | (DIGITS << 8) | 0xAA;
    let (iso_1, iso_3) = (field(1), field(3) ^ account_number().rightmost_twelve());
    let block = APP_BANK.block(ZoneFormat::Iso1, iso_1.into());
    let mut outputs = Vec::new();
    for (form, hsm) in &boundaries {
        let record = set(hsm, &APP_BANK, &block).unwrap().record;
        let gives: &[(&Known, ZoneFormat)] = match form {
            // Write-only.
            StorageFormat::Iso4 => continue,
            StorageFormat::Iso3 => &[(&APP_BANK, ZoneFormat::Iso1), (&BUREAU, ZoneFormat::Iso3)],
            _ => &[(&APP_BANK, ZoneFormat::Iso1)],
        };
        for (zone, format) in gives {
            let given = give(hsm, &record, zone, *format).unwrap();
            assert_eq!(zone.field(&given) << 8 >> 16, DIGITS, "{form:?} to {format}");
            outputs.push(given);
        }
        wait(hsm.reencrypt(&record, card(), &registered(hsm))).unwrap();
    }
    let trace = std::fs::read_to_string(trace).unwrap();
    assert!(outputs.iter().all(|given| trace.contains(&hexadecimal(given.as_bytes()))), "the trace is blind");
    let clear = [format!("{DIGITS:012x}"), format!("{iso_1:016x}"), format!("{iso_3:016x}")];
    let keys = ZONES.iter().flat_map(|zone| zone.key.chunks(8).map(hexadecimal));
    for clear in clear.into_iter().chain(keys) {
        let found = trace.lines().find(|line| line.contains(&clear));
        assert!(found.is_none(), "{:?}", found.and_then(|line| line.split(' ').next()));
    }
    for call in ["C_Decrypt ", "C_DecryptInit ", "C_GetAttributeValue(CKA_VALUE)"] {
        assert!(trace.lines().all(|line| !line.starts_with(call)), "{call}");
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// At level `token` a block of format 3 of one card, named as format 1 of another card, would become the PIN of that card.
#[test]
fn a_zone_that_sets_pins_at_level_token_has_format_1_alone() {
    if level_here() == BoundaryLevel::Host {
        return;
    }
    let opened = |uses: &[ZoneUse], formats: &[ZoneFormat]| {
        let form = NewRecordFormat::Iso3 { until: "2999-12-31".into() };
        try_open(Path::new("/"), Some(form), |_| vec![APP_BANK.rules(formats, uses)]).err()
    };
    let both = [ZoneFormat::Iso1, ZoneFormat::Iso3];
    match opened(&[ZoneUse::SetPin, ZoneUse::Export], &both) {
        Some(OpenError::Zone(error @ ZoneError::SetBesideBound { format: ZoneFormat::Iso3, .. })) => {
            assert!(error.to_string().contains("may carry iso-1 only"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert!(opened(&[ZoneUse::GetPin, ZoneUse::Export], &both).is_none());
    assert!(opened(&[ZoneUse::SetPin, ZoneUse::GetPin], &[ZoneFormat::Iso1]).is_none());
}

/// What the inventory of a ceremony notes of a key that nothing can read.
#[test]
fn a_zone_key_of_a_ceremony_keeps_mode_and_parity_in_a_token() {
    if env::var_os(TOKEN_VARIABLE).is_some() {
        return;
    }
    let make = fresh_token!([Make::SoftHsm, Make::OpenCryptoki]);
    let wanted = || Wanted { level: WantedLevel::Host, form: None };
    let mut store = KeyStore::open(KeysConfig::Pkcs11(make.config()), &wanted(), NOW).unwrap();
    for name in ["storage", "storage-3des", "seal", "seal-encrypting", "account", "mac"] {
        let usage = KeyUsage::parse(name).unwrap();
        // A token has one of the seal keys.
        let Some(algorithm) = store.algorithms(&usage).first().copied() else { continue };
        store.make(usage.clone(), algorithm, NOW).unwrap();
        store.activate(&usage, 1, NOW).unwrap();
    }
    import_all(&mut store, &[Import { known: &APP_BANK, mode: 'D' }]);
    drop(store);
    let open = |rules: ZoneRules| {
        let keys = KeysConfig::Pkcs11(make.config());
        Hsm::open(Config { keys, wanted: wanted(), zones: vec![rules], ..Config::default() })
    };
    let refused = |rules| match open(rules).err() {
        Some(OpenError::Zone(error)) => error,
        other => panic!("{other:?}"),
    };
    let sets = APP_BANK.rules(&[ZoneFormat::Iso1], &[ZoneUse::SetPin]);
    let error = refused(APP_BANK.rules(&[ZoneFormat::Iso1], &[ZoneUse::GetPin]));
    assert!(matches!(error, ZoneError::Mode { needed: ZoneUse::GetPin, .. }), "{error}");
    let error = refused(ZoneRules { parity: ParityPolicy::Reject, ..sets.clone() });
    assert_eq!(error, ZoneError::EvenParity { key: "zone:app-bank/1".into() });
    let hsm = open(ZoneRules { parity: ParityPolicy::Warn, ..sets.clone() }).unwrap();
    assert_eq!(hsm.status().even_parity, hsm.status().zone_keys());
    assert!(set(&hsm, &APP_BANK, &good_block(ZoneFormat::Iso1)).is_ok());
    drop(hsm);

    let mut store = KeyStore::open(KeysConfig::Pkcs11(make.config()), &wanted(), NOW).unwrap();
    store.retire(&APP_BANK.usage(), 1, &crate::key_store::KeyUse::NotCounted, NOW).unwrap();
    store.commit([1; 32]).unwrap();
    drop(store);
    assert_eq!(refused(sets), ZoneError::NoKey { zone: APP_BANK.name() });
}

mod together_tests;

mod in_a_vault {
    //! What only a vault shows: parity, modes of use and versions, which a ceremony put there.

    use super::*;

    fn open_in(directory: &Path, zones: Vec<ZoneRules>) -> Result<Hsm, OpenError> {
        open_vault(directory, None, zones)
    }

    fn refused(directory: &Path, rules: ZoneRules) -> ZoneError {
        match open_in(directory, vec![rules]).err() {
            Some(OpenError::Zone(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_key_of_even_parity_is_used_named_or_refused() {
        let directory = tempfile::tempdir().unwrap();
        vault_with(directory.path(), &[&APP_BANK, &BUREAU].map(|known| Import { known, mode: 'B' }));
        let rules = |known: &Known, parity| ZoneRules { parity, ..known.rules(&[ZoneFormat::Iso1], &[]) };
        let named = |parity| {
            let hsm = open_in(directory.path(), vec![rules(&APP_BANK, parity), rules(&BUREAU, parity)]).unwrap();
            let status = hsm.status();
            assert_eq!(
                status.lines().iter().any(|line| line.contains("without odd parity: zone:app-bank/1")),
                parity == ParityPolicy::Warn
            );
            status.even_parity.iter().map(hsm_protocol::KeyId::reference).collect::<Vec<_>>()
        };
        assert!(named(ParityPolicy::Ignore).is_empty());
        // The key of the Mastercard sandbox has bytes of even parity too.
        assert_eq!(named(ParityPolicy::Warn), ["zone:app-bank/1", "zone:bureau/1"]);
        let error = refused(directory.path(), rules(&APP_BANK, ParityPolicy::Reject));
        assert_eq!(error, ZoneError::EvenParity { key: "zone:app-bank/1".into() });

        let odd = tempfile::tempdir().unwrap();
        let made = Known { zone: "made", ..APP_BANK };
        let mut store = {
            Hsm::create_vault(&vault_in(odd.path()), KeyFileUse::Refuse).unwrap();
            KeyStore::open(KeysConfig::Vault(vault_in(odd.path())), &Wanted::default(), NOW).unwrap()
        };
        store.make(made.usage(), KeyAlgorithm::TdesDouble, NOW).unwrap();
        store.activate(&made.usage(), 1, NOW).unwrap();
        store.commit([0; 32]).unwrap();
        drop(store);
        assert!(open_in(odd.path(), vec![rules(&made, ParityPolicy::Reject)]).is_ok());
    }

    #[test]
    fn a_key_of_one_direction_serves_only_its_uses() {
        let directory = tempfile::tempdir().unwrap();
        vault_with(directory.path(), &[Import { known: &APP_BANK, mode: 'D' }, Import { known: &BUREAU, mode: 'E' }]);
        let formats = [ZoneFormat::Iso1, ZoneFormat::Iso0];
        let error = refused(directory.path(), APP_BANK.rules(&formats, &[ZoneUse::SetPin, ZoneUse::GetPin]));
        assert!(matches!(error, ZoneError::Mode { needed: ZoneUse::GetPin, .. }), "{error}");
        let error = refused(directory.path(), BUREAU.rules(&formats, &[ZoneUse::Verify]));
        assert!(matches!(error, ZoneError::Mode { needed: ZoneUse::Verify, .. }), "{error}");
        let zones = vec![
            APP_BANK.rules(&formats, &[ZoneUse::SetPin, ZoneUse::Translate]),
            BUREAU.rules(&formats, &[ZoneUse::Export, ZoneUse::Translate]),
        ];
        let hsm = open_in(directory.path(), zones).unwrap();
        let good = good_block(ZoneFormat::Iso0);
        assert!(move_block(&hsm, (&APP_BANK, &good), (&BUREAU, ZoneFormat::Iso0)).is_ok());
        let back = BUREAU.block(ZoneFormat::Iso0, clear_block(ZoneFormat::Iso0, good_field(ZoneFormat::Iso0)));
        let refused = move_block(&hsm, (&BUREAU, &back), (&APP_BANK, ZoneFormat::Iso0)).err();
        assert!(matches!(refused, Some(Error::ZoneUse { needed: ZoneUse::Translate })));
    }

    #[test]
    fn the_newest_version_encrypts_and_each_active_one_decrypts() {
        let directory = tempfile::tempdir().unwrap();
        let newer = Known { key: &[0x2F; 16], ..WALLET };
        vault_with(directory.path(), &[&WALLET, &newer].map(|known| Import { known, mode: 'B' }));
        let rules = WALLET.rules(&[ZoneFormat::Iso4], &[ZoneUse::SetPin, ZoneUse::Export]);
        let hsm = open_in(directory.path(), vec![rules.clone()]).unwrap();
        let block =
            |known: &Known| known.block(ZoneFormat::Iso4, clear_block(ZoneFormat::Iso4, good_field(ZoneFormat::Iso4)));
        let account = registered(&hsm);
        let of_version = |version| ZoneKey { version, ..WALLET.key() };
        let older = set_for(&hsm, of_version(Some(KeyVersion(1))), &block(&WALLET), card(), &account).unwrap();
        let newest = set_for(&hsm, of_version(None), &block(&newer), card(), &account).unwrap();
        let named = set_for(&hsm, of_version(Some(KeyVersion(2))), &block(&newer), card(), &account).unwrap();
        assert_eq!(newest.retry_tag, named.retry_tag);
        assert_ne!(older.retry_tag, newest.retry_tag);
        assert!(set_for(&hsm, of_version(None), &block(&WALLET), card(), &account).is_err());
        let given = give(&hsm, &older.record, &WALLET, ZoneFormat::Iso4).unwrap();
        assert_eq!(newer.field(&given), good_field(ZoneFormat::Iso4));
        let give_under = |version| {
            let target = Target::Zone { key: of_version(version), format: ZoneFormat::Iso4 };
            wait(hsm.translate(Source::Record(older.record.clone()), target, card(), &account)).err()
        };
        assert!(give_under(Some(KeyVersion(2))).is_none());
        assert!(matches!(give_under(Some(KeyVersion(1))), Some(Error::ZoneUnknown { .. })));

        let mut store = KeyStore::open(KeysConfig::Vault(vault_in(directory.path())), &Wanted::default(), NOW).unwrap();
        store.retire(&WALLET.usage(), 1, &crate::key_store::KeyUse::NotCounted, NOW).unwrap();
        store.commit([0; 32]).unwrap();
        drop(store);
        let hsm = open_in(directory.path(), vec![rules]).unwrap();
        let refused = set_for(&hsm, of_version(Some(KeyVersion(1))), &block(&WALLET), card(), &registered(&hsm)).err();
        assert!(matches!(refused, Some(Error::ZoneUnknown { .. })));
    }

    #[test]
    fn the_stack_of_every_zone_operation_is_scrubbed_to_its_end() {
        let directory = tempfile::tempdir().unwrap();
        vault_with(directory.path(), &all_keys());
        let hsm = open_in(directory.path(), rules_at(BoundaryLevel::Host, StorageFormat::Iso4)).unwrap();
        for source in ZoneFormat::ALL {
            let (zone, block) = (zone_of(source), good_block(source));
            let record = set(&hsm, &zone, &block).unwrap().record;
            let account = registered(&hsm);
            let verify = || {
                let (source, record, account) = (from_zone(&zone, &block), record.clone(), copy(&account));
                let request = Request::Verify { source, record, card: card(), account };
                matches!(wait(hsm.execute(request)), Ok(Reply::Verified { right: true, .. }))
            };
            let change = || {
                let (old, new) = (from_zone(&zone, &block), from_zone(&zone, &block));
                let request =
                    Request::Change { old, new, record: record.clone(), card: card(), account: copy(&account) };
                wait(hsm.execute(request)).is_ok()
            };
            check_scrubbed(&[
                ("zone to record", &|| set(&hsm, &zone, &block).is_ok()),
                ("record to zone", &|| give(&hsm, &record, &zone, source).is_ok()),
                ("zone to 3DES zone", &|| move_block(&hsm, (&zone, &block), (&BUREAU, ZoneFormat::Iso3)).is_ok()),
                ("zone to AES zone", &|| move_block(&hsm, (&zone, &block), (&WALLET, ZoneFormat::Iso4)).is_ok()),
                ("verify by a zone's block", &verify),
                ("change by a zone's blocks", &change),
            ]);
        }
        let dated = Some(NewRecordFormat::Iso3 { until: "2999-12-31".into() });
        let dated = open_vault(directory.path(), dated, rules_at(BoundaryLevel::Host, StorageFormat::Iso3)).unwrap();
        let account = registered(&hsm);
        let record = set_for(&dated, APP_BANK.key(), &good_block(ZoneFormat::Iso1), card(), &account).unwrap().record;
        let together = |source: &dyn Fn() -> Source, target: &dyn Fn() -> Target| {
            let one = || {
                let (source, target, account) = (source(), target(), copy(&account));
                Request::Translate { source, target, card: card(), account }
            };
            let replies = wait(hsm.execute(Request::Together { requests: (0..8).map(|_| one()).collect() }));
            matches!(replies, Ok(Reply::Together(replies)) if replies.iter().all(Result::is_ok))
        };
        let of_zone = |format| move || from_zone(&zone_of(format), &good_block(format));
        let (double, triple, stored) =
            (of_zone(ZoneFormat::Iso0), of_zone(ZoneFormat::Iso3), || Source::Record(record.clone()));
        let (to_record, to_zone) = (|| Target::Record, || to_zone(&BUREAU, ZoneFormat::Iso3));
        // The first batch of a thread makes the memory of its batches on the stack, all zeros.
        assert!(together(&double, &to_record));
        check_scrubbed(&[
            ("a batch of zone blocks to records", &|| together(&double, &to_record)),
            ("a batch of zone blocks under a triple-length key", &|| together(&triple, &to_record)),
            ("a batch of zone blocks to a zone", &|| together(&double, &to_zone)),
            ("a batch of 3DES records to records", &|| together(&stored, &to_record)),
            ("a batch of 3DES records to a zone", &|| together(&stored, &to_zone)),
        ]);
    }

    #[test]
    fn a_3des_zone_key_has_no_block_limit_of_the_storage_key() {
        let directory = tempfile::tempdir().unwrap();
        vault_with(directory.path(), &all_keys());
        let hsm = open_in(directory.path(), rules_at(BoundaryLevel::Host, StorageFormat::Iso4)).unwrap();
        let record = set(&hsm, &APP_BANK, &good_block(ZoneFormat::Iso1)).unwrap().record;
        give(&hsm, &record, &BUREAU, ZoneFormat::Iso0).unwrap();
        // The count is reserved on disk with the first block under the storage key.
        let count = std::fs::read(directory.path().join("vault.3des-count")).unwrap_or_default();
        assert!(count.iter().all(|byte| *byte == 0), "{count:?}");
    }

    #[test]
    fn a_zone_key_of_every_length_serves() {
        let keys = [
            Known { zone: "aes-128", algorithm: KeyAlgorithm::Aes128, key: &[9; 16] },
            Known { zone: "aes-192", algorithm: KeyAlgorithm::Aes192, key: &[8; 24] },
            Known { zone: "aes-256", algorithm: KeyAlgorithm::Aes256, key: &[7; 32] },
        ];
        let directory = tempfile::tempdir().unwrap();
        let imports: Vec<_> = keys.iter().map(|known| Import { known, mode: 'B' }).collect();
        vault_with(directory.path(), &imports);
        let uses = [ZoneUse::SetPin, ZoneUse::Export, ZoneUse::Translate];
        let rules = keys.iter().map(|known| known.rules(&[ZoneFormat::Iso4], &uses)).collect();
        let hsm = open_in(directory.path(), rules).unwrap();
        let [short, middle, long] = keys;
        let good = short.block(ZoneFormat::Iso4, clear_block(ZoneFormat::Iso4, good_field(ZoneFormat::Iso4)));
        let moved = move_block(&hsm, (&short, &good), (&middle, ZoneFormat::Iso4)).unwrap();
        let moved = move_block(&hsm, (&middle, &moved), (&long, ZoneFormat::Iso4)).unwrap();
        assert_eq!(long.field(&moved), good_field(ZoneFormat::Iso4));
    }
}
