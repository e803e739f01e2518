//! Verification, change and generation of PINs, one-way records and verification values: on the software token, and on each
//! PKCS#11 token that the suite runs on.

use super::*;
use crate::{
    clear::ClearBytes,
    component::Components,
    config::Unlock,
    fresh_token::{Make, fresh_token},
    key_store::{KeyStore, KeyStoreError, KeyUse, RecordsKept},
    keyblock::{Header, KeyBlock, ProtectionKey, Version},
    keyring::{KeyAlgorithm, KeyUsage},
    token::pool_left,
    vault::VaultError,
    zones::ZoneError,
};
use hsm_protocol::{
    Changed, ExpectedValue, HostOperation, ParityPolicy, PvkName, ValueMethod, VerificationValue, ZoneBlock,
    ZoneFormat, ZoneKey, ZoneName, ZoneRules, ZoneUse,
};

const NOW: u64 = 1_700_000_000_000;
const PIN_4524: u64 = 0x1445_2400_0000_0000;
const PIN_1234: u64 = 0x1412_3400_0000_0000;
/// The keys, account number and PIN of the values in [`check_values`], which psec computed.
const PAN: &str = "8592613297174621";
const PIN_0912573: u64 = 0x1709_1257_3000_0000;
const PVK: [u8; 16] = 0x0123_4567_89AB_CDEF_FEDC_BA98_7654_3210u128.to_be_bytes();
const IBM_3624_KEY: [u8; 16] = 0xBC1A_5EDA_B0CB_EA85_EC51_8A85_643E_BC8Au128.to_be_bytes();
const IBM_3624: &str = "ibm-3624:bank:0123456789012345:5-15-f";

/// Each request as a function that returns its reply.
impl Hsm {
    fn device_source(&self, phone: &Phone, clear: u64) -> Source {
        let issued = wait(self.issue(&phone.public, &binding())).unwrap();
        let block = phone.block(&issued, clear);
        let sealed_tzpk = SealedKey::from_bytes(issued.sealed.as_bytes()).unwrap();
        Source::Device { sealed_tzpk, control: CONTROL, block }
    }

    fn set(&self, phone: &Phone, clear: u64) -> PinRecord {
        self.set_for(phone, clear, &Account::PlasticId)
    }

    fn set_for(&self, phone: &Phone, clear: u64, account: &Account) -> PinRecord {
        let source = self.device_source(phone, clear);
        match wait(self.translate(source, Target::Record, card(), account)).unwrap() {
            Reply::Record { record, .. } => record,
            _ => panic!("the reply of another request"),
        }
    }

    fn verify(&self, source: Source, record: &PinRecord) -> Result<(bool, Option<PinRecord>), Error> {
        self.verify_for(source, record, card())
    }

    fn verify_for(
        &self,
        source: Source,
        record: &PinRecord,
        card: CardBinding,
    ) -> Result<(bool, Option<PinRecord>), Error> {
        let request = Request::Verify { source, record: record.clone(), card, account: Account::PlasticId };
        verified(wait(self.execute(request)))
    }

    fn change(&self, old: Source, new: Source, record: &PinRecord) -> Result<Changed, Error> {
        let record = record.clone();
        let request = Request::Change { old, new, record, card: card(), account: Account::PlasticId };
        match wait(self.execute(request))? {
            Reply::Changed(changed) => Ok(changed),
            _ => panic!("the reply of another request"),
        }
    }

    fn generate(&self, digits: u8) -> Result<PinRecord, Error> {
        match wait(self.execute(Request::Generate { digits, card: card(), account: Account::PlasticId }))? {
            Reply::Record { record, retry_tag: None } => Ok(record),
            _ => panic!("the reply of another request"),
        }
    }

    fn registered(&self, number: &str) -> Account {
        Account::Registered(wait(self.seal_pan(number, card())).unwrap())
    }

    fn value(&self, record: &PinRecord, method: &ValueMethod) -> Result<String, Error> {
        let (record, method) = (record.clone(), method.clone());
        let request = Request::DeriveValue { record, method, card: card(), account: self.registered(PAN) };
        match wait(self.execute(request))? {
            Reply::Value(value) => Ok(value.to_text()),
            _ => panic!("the reply of another request"),
        }
    }

    fn has_value(&self, source: Source, expected: ExpectedValue) -> Result<bool, Error> {
        let request = Request::VerifyValue { source, expected, card: card(), account: self.registered(PAN) };
        verified(wait(self.execute(request))).map(|(right, _)| right)
    }

    /// The PIN of a record, as its device shows it: length and digits.
    fn shown(&self, phone: &Phone, record: &PinRecord) -> (u64, String) {
        let shown = wait(self.record_to_device(record, card(), &Account::PlasticId, &phone.public)).unwrap();
        let mut clear = Block::zeroed();
        clear.bytes_mut().copy_from_slice(shown.block.as_bytes());
        tzpk_decrypt(&phone.tzpk(&shown.wrapped), &mut clear);
        let length = (clear.nibbles() >> 56) & 0xF;
        (length, format!("{:016x}", clear.nibbles())[2..2 + length as usize].to_owned())
    }
}

fn verified(reply: Result<Reply, Error>) -> Result<(bool, Option<PinRecord>), Error> {
    match reply? {
        Reply::Verified { right, moved } => Ok((right, moved)),
        _ => panic!("the reply of another request"),
    }
}

/// A boundary of this process's token for each format of level `host`; none at level `token`.
fn at_host() -> Vec<(StorageFormat, Hsm)> {
    if open().status().level() == BoundaryLevel::Token {
        return Vec::new();
    }
    boundaries()
}

fn one_way() -> Option<Hsm> {
    at_host().into_iter().find(|(form, _)| *form == StorageFormat::OneWay).map(|(_, hsm)| hsm)
}

#[test]
fn a_pin_is_verified_against_a_record_of_every_format() {
    let phone = Phone::new();
    for (form, hsm) in at_host() {
        let record = hsm.set(&phone, PIN_4524);
        assert_eq!(record.form(), form);
        for (clear, right) in
            [(PIN_4524, true), (0x1445_2412_3456_789A, true), (PIN_1234, false), (0x1545_2400_0000_0000, false)]
        {
            let (found, moved) = hsm.verify(hsm.device_source(&phone, clear), &record).unwrap();
            assert_eq!((found, moved.is_some()), (right, false), "{clear:x} against {form:?}");
        }
        for malformed in MALFORMED {
            let refused = hsm.verify(hsm.device_source(&phone, malformed), &record);
            assert!(matches!(refused, Err(Error::Refused(Refusal::MalformedBlock))), "{malformed:x}");
        }
        assert!(matches!(hsm.verify(Source::Record(record.clone()), &record), Err(Error::TranslationNotAllowed)));
        let other = card_of("bank", "1000200031");
        let issued = wait(hsm.issue(&phone.public, &Binding { card: other, control: CONTROL })).unwrap();
        let sealed_tzpk = SealedKey::from_bytes(issued.sealed.as_bytes()).unwrap();
        let source = Source::Device { sealed_tzpk, control: CONTROL, block: phone.block(&issued, PIN_4524) };
        assert!(matches!(hsm.verify_for(source, &record, other), Err(Error::SealBroken { .. })));
    }
}

#[test]
fn a_change_needs_the_old_pin_and_an_allowed_new_one() {
    let phone = Phone::new();
    for (form, hsm) in at_host() {
        let record = hsm.set(&phone, PIN_4524);
        let change = |old, new| hsm.change(hsm.device_source(&phone, old), hsm.device_source(&phone, new), &record);
        let new = 0x1525_8090_0000_0000;
        assert!(matches!(change(PIN_1234, new), Ok(Changed::Wrong)));
        // The new PIN is judged only for a caller who has the old one.
        assert!(matches!(change(PIN_1234, PIN_1234), Ok(Changed::Wrong)));
        assert!(matches!(change(PIN_4524, PIN_1234), Ok(Changed::RefusedPin)));
        for malformed in MALFORMED {
            for (old, new) in [(malformed, new), (PIN_4524, malformed), (PIN_1234, malformed)] {
                assert!(matches!(change(old, new), Err(Error::Refused(Refusal::MalformedBlock))));
            }
        }
        let Ok(Changed::Right { record }) = change(PIN_4524, new) else { panic!("not changed") };
        assert_eq!(record.form(), form);
        assert!(hsm.verify(hsm.device_source(&phone, new), &record).unwrap().0);
        assert!(!hsm.verify(hsm.device_source(&phone, PIN_4524), &record).unwrap().0);
    }
}

#[test]
fn a_generated_pin_has_its_length_and_obeys_the_policy() {
    if open().status().level() == BoundaryLevel::Token {
        return;
    }
    let refused: Vec<_> = (0..1_000).map(|pin| format!("{pin:04}")).collect();
    let policy = |length| crate::policy::PinPolicy::new(length, Vec::new(), refused.iter().map(|pin| &**pin)).unwrap();
    let open = |length| {
        let wanted = Wanted { level: WantedLevel::Host, form: None };
        Hsm::open(Config { policy: policy(length), ..config_as(wanted) }).unwrap()
    };
    let (hsm, phone) = (open(4..=12), Phone::new());
    for digits in 4..=12 {
        assert_eq!(hsm.shown(&phone, &hsm.generate(digits).unwrap()).0, u64::from(digits));
    }
    for digits in [0, 3, 13, 255] {
        assert!(matches!(hsm.generate(digits), Err(Error::Refused(Refusal::PinPolicy))));
    }
    for _ in 0..40 {
        let (_, pin) = hsm.shown(&phone, &hsm.generate(4).unwrap());
        assert!(!pin.starts_with('0'), "a refused PIN was generated");
    }
    assert!(matches!(open(6..=8).generate(4), Err(Error::Refused(Refusal::PinPolicy))));
}

#[test]
fn generated_digits_are_uniform() {
    let (hsm, phone) = (Hsm::open(Config::default()).unwrap(), Phone::new());
    let mut counts = [0u32; 10];
    for _ in 0..200 {
        let (_, pin) = hsm.shown(&phone, &hsm.generate(12).unwrap());
        pin.bytes().for_each(|digit| counts[usize::from(digit - b'0')] += 1);
    }
    // Chi-square of 2,400 digits with 9 degrees of freedom: above 60 once in 10^9 runs.
    let chi_square: f64 = counts.iter().map(|count| (f64::from(*count) - 240.0).powi(2) / 240.0).sum();
    assert!(chi_square < 60.0, "{counts:?}");
}

#[test]
fn a_one_way_record_is_verified_and_nothing_else() {
    let Some(hsm) = one_way() else { return };
    let phone = Phone::new();
    let record = hsm.set(&phone, PIN_4524);
    assert_ne!(record.as_bytes(), hsm.set(&phone, PIN_4524).as_bytes());
    let account = &Account::PlasticId;
    assert!(matches!(wait(hsm.record_to_device(&record, card(), account, &phone.public)), Err(Error::OneWay)));
    assert!(matches!(wait(hsm.reencrypt(&record, card(), account)), Err(Error::OneWay)));
    let method = ValueMethod::Pvv(PvkName::parse("bank:1").unwrap());
    assert!(matches!(hsm.value(&record, &method), Err(Error::OneWay)));
    for at in 0..record.as_bytes().len() {
        let mut changed = record.as_bytes().to_vec();
        changed[at] ^= 1;
        let Ok(changed) = PinRecord::from_bytes(&changed) else { continue };
        assert!(hsm.verify(hsm.device_source(&phone, PIN_4524), &changed).is_err(), "byte {at}");
    }
}

#[test]
fn a_reversible_record_becomes_one_way_when_verified_right() {
    let boundaries = at_host();
    let (Some((_, iso_4)), Some((_, one_way))) = (boundaries.first(), boundaries.last()) else { return };
    let phone = Phone::new();
    let record = iso_4.set(&phone, PIN_4524);
    assert!(iso_4.status().is_current(&record));
    assert!(
        !one_way.status().is_current(&record) && one_way.status().rotates(),
        "the rotation makes the record one-way"
    );
    let method = ValueMethod::Pvv(PvkName::parse("bank:1").unwrap());
    assert!(matches!(one_way.value(&record, &method), Err(Error::OneWay)));
    let shown = wait(one_way.record_to_device(&record, card(), &Account::PlasticId, &phone.public));
    assert!(matches!(shown, Err(Error::OneWay)));
    assert!(matches!(one_way.verify(one_way.device_source(&phone, PIN_1234), &record), Ok((false, None))));
    let moved = one_way.verify(one_way.device_source(&phone, PIN_4524), &record).unwrap().1.unwrap();
    assert_eq!(moved.form(), StorageFormat::OneWay);
    assert!(matches!(one_way.verify(one_way.device_source(&phone, PIN_4524), &moved), Ok((true, None))));
    let reencrypted = wait(one_way.reencrypt(&record, card(), &Account::PlasticId)).unwrap();
    assert_eq!(reencrypted.form(), StorageFormat::OneWay);
    assert!(one_way.status().is_current(&reencrypted));
}

#[test]
fn level_token_refuses_what_compares_pins_by_name() {
    let hsm = open();
    if hsm.status().level() == BoundaryLevel::Host {
        return;
    }
    let phone = Phone::new();
    let record = hsm.set(&phone, GOOD);
    let source = || hsm.device_source(&phone, GOOD);
    let key = PvkName::parse("bank:1").unwrap();
    let expected = ExpectedValue::Pvv { key: key.clone(), value: VerificationValue::parse("8523").unwrap() };
    // The plasticId of 10 digits is no account number: the card's registration would not help at this level.
    let account = || Account::PlasticId;
    let value = Request::VerifyValue { source: source(), expected, card: card(), account: account() };
    let derive = Request::DeriveValue {
        record: record.clone(),
        method: ValueMethod::Pvv(key),
        card: card(),
        account: account(),
    };
    let refused = [
        hsm.verify(source(), &record).err(),
        wait(hsm.execute(value)).err(),
        hsm.change(source(), source(), &record).err(),
        hsm.generate(4).err(),
        wait(hsm.execute(derive)).err(),
    ];
    for (error, wanted) in refused.into_iter().zip(HostOperation::ALL) {
        assert!(matches!(error, Some(Error::HostLevelOnly { operation }) if operation == wanted), "{wanted}");
    }
    let one_way = open_as(Wanted { level: WantedLevel::Token, form: Some(NewRecordFormat::OneWay) });
    let refused = one_way.err().unwrap();
    assert!(matches!(refused, OpenError::StorageFormat { form: StorageFormat::OneWay, level: BoundaryLevel::Token }));
}

fn vault_in(directory: &Path) -> Vault {
    Vault::File { path: directory.join("vault"), unlock: Unlock::KeyFile(directory.join("vault.key")) }
}

fn open_store(directory: &Path) -> KeyStore {
    KeyStore::open(KeysConfig::Vault(vault_in(directory)), &Wanted::default(), NOW).unwrap()
}

fn open_vault(directory: &Path, form: NewRecordFormat, zones: Vec<ZoneRules>) -> Result<Hsm, OpenError> {
    let wanted = Wanted { level: WantedLevel::Host, form: Some(form) };
    Hsm::open(Config { keys: KeysConfig::Vault(vault_in(directory)), wanted, zones, ..Config::default() })
}

/// Loads a known key from two components and activates it.
fn load(store: &mut KeyStore, name: &str, key: [u8; 16]) {
    let mut components = Components::new(KeyAlgorithm::TdesDouble);
    let other = 0x1313_1313_1515_1515_1616_1616_1919_1919u128.to_be_bytes();
    let first: Vec<_> = key.iter().zip(other).map(|(key, other)| key ^ other).collect();
    [&first[..], &other].iter().for_each(|component| components.add_known(component));
    let key = store.load(KeyUsage::parse(name).unwrap(), &components, NOW).unwrap();
    store.activate(&key.name, key.version, NOW).unwrap();
}

fn pvk() -> PvkName {
    PvkName::parse("bank:1").unwrap()
}

fn ibm_3624() -> ZoneName {
    ZoneName::parse("bank").unwrap()
}

fn pvv(text: &str) -> ExpectedValue {
    ExpectedValue::Pvv { key: pvk(), value: VerificationValue::parse(text).unwrap() }
}

fn offset(text: &str) -> ExpectedValue {
    ExpectedValue::Ibm3624Offset { key: ibm_3624(), value: VerificationValue::parse(text).unwrap() }
}

/// Derives the values of a PIN, and compares right and wrong ones.
fn check_values(hsm: &Hsm) {
    let phone = Phone::new();
    let record = hsm.set_for(&phone, PIN_0912573, &hsm.registered(PAN));
    assert_eq!(hsm.value(&record, &ValueMethod::Pvv(pvk())).unwrap(), "7416");
    assert_eq!(hsm.value(&record, &ValueMethod::Ibm3624Offset(ibm_3624())).unwrap(), "7864624");
    let has = |clear, expected: &ExpectedValue| hsm.has_value(hsm.device_source(&phone, clear), expected.clone());
    let natural_of = |digits| ExpectedValue::Ibm3624Natural { key: ibm_3624(), digits };
    let natural = natural_of(7);
    let right = [pvv("7416"), offset("7864624")];
    let wrong = [pvv("0000"), pvv("74160"), offset("7864625"), offset("78646240"), offset("7864"), natural.clone()];
    for (expected, is_right) in right.iter().map(|value| (value, true)).chain(wrong.iter().map(|value| (value, false)))
    {
        assert_eq!(has(PIN_0912573, expected).unwrap(), is_right);
        assert!(!has(PIN_4524, expected).unwrap());
        assert!(matches!(has(MALFORMED[0], expected), Err(Error::Refused(Refusal::MalformedBlock))));
    }
    // A natural PIN is right in its own length alone.
    for (clear, length) in [(0x1731_5895_9000_0000, 7), (0x1431_5800_0000_0000, 4)] {
        for digits in 4..=12 {
            assert_eq!(has(clear, &natural_of(digits)).unwrap(), digits == length, "{digits}");
        }
    }
    assert!(!has(0x1531_5800_0000_0000, &natural_of(5)).unwrap());
    // A PVV knows the first four digits only.
    assert!(has(0x1409_1200_0000_0000, &pvv("7416")).unwrap());
    for missing in ["bank:2", "other:1"] {
        let missing = ValueMethod::Pvv(PvkName::parse(missing).unwrap());
        assert!(matches!(hsm.value(&record, &missing), Err(Error::NoVerificationKey)));
    }
    let missing = ExpectedValue::Ibm3624Natural { key: ZoneName::parse("other").unwrap(), digits: 7 };
    assert!(matches!(has(PIN_0912573, &missing), Err(Error::NoVerificationKey)));
    let request = Request::VerifyValue {
        source: hsm.device_source(&phone, PIN_0912573),
        expected: natural,
        card: card(),
        account: Account::PlasticId,
    };
    assert!(matches!(wait(hsm.execute(request)), Err(Error::NoAccountNumber)), "a plasticId of 10 digits");
    let method = ValueMethod::Pvv(pvk());
    let derive = Request::DeriveValue { record, method, card: card(), account: Account::PlasticId };
    assert!(matches!(wait(hsm.execute(derive)), Err(Error::NoAccountNumber)), "a plasticId of 10 digits");
    let listed: Vec<_> = hsm.status().verification_keys().iter().map(|key| key.usage.to_string()).collect();
    assert_eq!(listed, ["pvk:bank:1", IBM_3624]);
    assert!(hsm.status().verification_keys().iter().all(|key| key.kcv.is_some()));
}

#[test]
fn values_are_derived_and_compared_under_keys_of_a_vault() {
    let directory = tempfile::tempdir().unwrap();
    Hsm::create_vault(&vault_in(directory.path()), KeyFileUse::Refuse).unwrap();
    let mut store = open_store(directory.path());
    load(&mut store, "pvk:bank:1", PVK);
    load(&mut store, IBM_3624, IBM_3624_KEY);
    store.commit([0; 32]).unwrap();
    drop(store);
    check_values(&open_vault(directory.path(), NewRecordFormat::Iso4, Vec::new()).unwrap());
}

/// The tokens of level `host`, under a ceremony: keys, values and one-way records are used inside the token.
#[test]
fn values_are_derived_and_compared_under_keys_of_a_token() {
    if env::var_os(TOKEN_VARIABLE).is_some() {
        return;
    }
    let make = fresh_token!([Make::SoftHsm, Make::OpenCryptoki]);
    let wanted = |form| Wanted { level: WantedLevel::Host, form };
    Hsm::make_token_keys(&make.config(), &wanted(None)).unwrap();
    let mut store = KeyStore::open(KeysConfig::Pkcs11(make.config()), &wanted(None), NOW).unwrap();
    load(&mut store, "pvk:bank:1", PVK);
    load(&mut store, IBM_3624, IBM_3624_KEY);
    store.commit([0; 32]).unwrap();
    drop(store);
    let open = |form| {
        let keys = KeysConfig::Pkcs11(make.config());
        Hsm::open(Config { keys, wanted: wanted(Some(form)), ..Config::default() }).unwrap()
    };
    check_values(&open(NewRecordFormat::Iso4));
    let (hsm, phone) = (open(NewRecordFormat::OneWay), Phone::new());
    let record = hsm.set(&phone, PIN_4524);
    assert!(matches!(hsm.verify(hsm.device_source(&phone, PIN_4524), &record), Ok((true, None))));
    assert!(matches!(hsm.verify(hsm.device_source(&phone, PIN_1234), &record), Ok((false, None))));
}

#[test]
fn a_verification_key_has_one_usage_one_table_and_one_version() {
    let directory = tempfile::tempdir().unwrap();
    Hsm::create_vault(&vault_in(directory.path()), KeyFileUse::Refuse).unwrap();
    let mut store = open_store(directory.path());
    load(&mut store, "pvk:bank:1", PVK);
    load(&mut store, IBM_3624, IBM_3624_KEY);
    let mut again = |name: &str, key: [u8; 16]| {
        let mut components = Components::new(KeyAlgorithm::TdesDouble);
        let other = [0x13; 16];
        let first: Vec<_> = key.iter().zip(other).map(|(key, other)| key ^ other).collect();
        [&first[..], &other].iter().for_each(|component| components.add_known(component));
        store.load(KeyUsage::parse(name).unwrap(), &components, NOW)
    };
    assert!(matches!(again("pvk:bank:2", PVK), Err(KeyStoreError::Known { .. })));
    // The same key with another table: the attack of Bond and Zieliński needs several.
    let other_table = "ibm-3624:other:9876543210987654:5-15-f";
    assert!(matches!(again(other_table, IBM_3624_KEY), Err(KeyStoreError::Known { .. })));
    for other in ["ibm-3624:bank:9876543210987654:5-15-f", "ibm-3624:bank:0123456789012345:1-16-0"] {
        assert!(matches!(again(other, [0x34; 16]), Err(KeyStoreError::NameTaken { .. })));
    }
    let aes = store.make(KeyUsage::parse("pvk:bank:3").unwrap(), KeyAlgorithm::Aes128, NOW);
    assert!(matches!(aes, Err(KeyStoreError::Algorithm { .. })));
    for name in ["pvk:bank:1", IBM_3624] {
        let name = KeyUsage::parse(name).unwrap();
        let next = store.make(name.clone(), KeyAlgorithm::TdesDouble, NOW).unwrap();
        assert!(!next.exportable);
        // The values under version 1 are in the card system, and do not name their key.
        let refused = store.activate(&name, next.version, NOW);
        assert!(matches!(refused, Err(KeyStoreError::NoRotation { .. })));
        store.retire(&name, 1, &KeyUse::NotCounted, NOW).unwrap();
        store.activate(&name, next.version, NOW).unwrap();
    }
}

#[test]
fn a_verification_key_in_a_key_block_keeps_its_usage_and_mode() {
    let directory = tempfile::tempdir().unwrap();
    Hsm::create_vault(&vault_in(directory.path()), KeyFileUse::Refuse).unwrap();
    let mut store = open_store(directory.path());
    let exchange = KeyUsage::parse("exchange:issuer").unwrap();
    let mut components = Components::new(KeyAlgorithm::Aes256);
    [[1; 32], [2; 32]].iter().for_each(|component| components.add_known(component));
    store.load(exchange.clone(), &components, NOW).unwrap();
    store.activate(&exchange, 1, NOW).unwrap();
    let under = ProtectionKey::aes(ClearBytes::copied(&[3; 32])).unwrap();
    let block = |usage, mode, key: &[u8]| {
        let header = Header::new(Version::D, usage, 'T', mode, 'E');
        KeyBlock::write(&header, &under, &ClearBytes::copied(key), |_| Ok(())).unwrap()
    };
    let (pvv_usage, ibm_usage) = (['V', '2'], ['V', '1']);
    let import = |store: &mut KeyStore, name, block: String| {
        store.import(KeyUsage::parse(name).unwrap(), &block, &exchange, NOW)
    };
    for (name, block) in [
        ("pvk:bank:1", block(ibm_usage, 'C', &PVK)),
        ("pvk:bank:1", block(['P', '0'], 'B', &PVK)),
        ("pvk:bank:1", block(pvv_usage, 'E', &PVK)),
        (IBM_3624, block(pvv_usage, 'C', &IBM_3624_KEY)),
        ("zone:bank", block(pvv_usage, 'C', &PVK)),
    ] {
        assert!(matches!(import(&mut store, name, block), Err(KeyStoreError::KeyBlock(_))), "{name}");
    }
    for (name, block) in [
        ("pvk:bank:1", block(pvv_usage, 'V', &PVK)),
        ("pvk:bank:2", block(pvv_usage, 'C', &[0x34; 8].into_iter().chain([0x43; 8]).collect::<Vec<_>>())),
        (IBM_3624, block(ibm_usage, 'G', &IBM_3624_KEY)),
    ] {
        let key = import(&mut store, name, block).unwrap();
        assert!(!key.exportable, "{name}");
        store.activate(&key.name, 1, NOW).unwrap();
    }
    store.commit([0; 32]).unwrap();
    drop(store);
    let hsm = open_vault(directory.path(), NewRecordFormat::Iso4, Vec::new()).unwrap();
    let phone = Phone::new();
    let record = hsm.set_for(&phone, PIN_0912573, &hsm.registered(PAN));
    let source = || hsm.device_source(&phone, PIN_0912573);
    // The PVK compares only, the IBM 3624 key derives only.
    assert!(hsm.has_value(source(), pvv("7416")).unwrap());
    assert!(matches!(hsm.value(&record, &ValueMethod::Pvv(pvk())), Err(Error::NoVerificationKey)));
    assert!(hsm.value(&record, &ValueMethod::Pvv(PvkName::parse("bank:2").unwrap())).is_ok());
    assert_eq!(hsm.value(&record, &ValueMethod::Ibm3624Offset(ibm_3624())).unwrap(), "7864624");
    assert!(matches!(hsm.has_value(source(), offset("7864624")), Err(Error::NoVerificationKey)));
}

#[test]
fn a_one_way_record_moves_to_the_newest_key_when_verified_right() {
    let directory = tempfile::tempdir().unwrap();
    Hsm::create_vault(&vault_in(directory.path()), KeyFileUse::Refuse).unwrap();
    let phone = Phone::new();
    let open = || open_vault(directory.path(), NewRecordFormat::OneWay, Vec::new()).unwrap();
    let hsm = open();
    let old = hsm.set(&phone, PIN_4524);
    assert!(hsm.status().is_current(&old));

    let name = KeyUsage::StorageOneWay;
    let mut store = open_store(directory.path());
    store.make(name.clone(), KeyAlgorithm::Aes256, NOW).unwrap();
    store.activate(&name, 2, NOW).unwrap();
    store.commit([0; 32]).unwrap();
    let hsm = open();
    assert!(!hsm.status().is_current(&old));
    assert!(matches!(hsm.verify(hsm.device_source(&phone, PIN_1234), &old), Ok((false, None))));
    let malformed = hsm.verify(hsm.device_source(&phone, MALFORMED[0]), &old);
    assert!(matches!(malformed, Err(Error::Refused(Refusal::MalformedBlock))));
    let moved = hsm.verify(hsm.device_source(&phone, PIN_4524), &old).unwrap().1.unwrap();
    assert!(hsm.status().is_current(&moved));
    assert!(matches!(hsm.verify(hsm.device_source(&phone, PIN_4524), &moved), Ok((true, None))));

    // The key of the record that did not move is kept.
    let mut kept = RecordsKept::default();
    kept.count(&old);
    assert!(matches!(store.retire(&name, 1, &KeyUse::NotCounted, NOW), Err(KeyStoreError::NotCounted { .. })));
    let refused = store.retire(&name, 1, &KeyUse::Counted(kept), NOW);
    assert!(matches!(refused, Err(KeyStoreError::InUse { records: 1, .. })));
    // Only the PINs of one-way records can be given up.
    let storage = KeyUsage::Storage;
    store.make(storage.clone(), KeyAlgorithm::Aes256, NOW).unwrap();
    store.activate(&storage, 2, NOW).unwrap();
    let mut reversible = RecordsKept::default();
    reversible.count_many(StorageFormat::Iso4, BoundaryLevel::Host, 1, 7);
    let refused = store.retire(&storage, 1, &KeyUse::Abandoned(reversible), NOW);
    assert!(matches!(refused, Err(KeyStoreError::InUse { records: 7, .. })));
    let mut given_up = RecordsKept::default();
    given_up.count(&old);
    store.retire(&name, 1, &KeyUse::Abandoned(given_up), NOW).unwrap();
    store.commit([0; 32]).unwrap();
    let hsm = open();
    assert!(matches!(hsm.verify(hsm.device_source(&phone, PIN_4524), &old), Err(Error::UnknownKey)));
    assert!(matches!(hsm.verify(hsm.device_source(&phone, PIN_4524), &moved), Ok((true, None))));
}

#[test]
fn a_vault_without_a_one_way_key_serves_every_other_format() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = open_store(directory.path());
    for (name, algorithm) in ["storage", "storage-3des", "seal", "account", "record", "retry"].map(|name| {
        (
            KeyUsage::parse(name).unwrap(),
            if name == "storage-3des" { KeyAlgorithm::TdesDouble } else { KeyAlgorithm::Aes256 },
        )
    }) {
        store.make(name.clone(), algorithm, NOW).unwrap();
        store.activate(&name, 1, NOW).unwrap();
    }
    store.commit([0; 32]).unwrap();
    drop(store);
    assert!(open_vault(directory.path(), NewRecordFormat::Iso4, Vec::new()).is_ok());
    let refused = open_vault(directory.path(), NewRecordFormat::OneWay, Vec::new()).err();
    assert!(
        matches!(refused, Some(OpenError::Vault(VaultError::Lacks { missing, .. })) if missing == "storage-one-way")
    );
}

#[test]
fn a_generated_pin_is_not_of_bytes_drawn_ahead() {
    let form = Some(NewRecordFormat::Iso0 { until: "2099-12-31".into() });
    let wanted = Wanted { level: WantedLevel::Host, form };
    let hsm = Hsm::open(Config { wanted, ..Config::default() }).unwrap();
    hsm.set(&Phone::new(), PIN_4524);
    let before = pool_left();
    assert!(before > 0, "the tzpk took its nonce from the pool");
    hsm.generate(12).unwrap();
    assert_eq!(pool_left(), before);
}

fn zone_rules(uses: &[ZoneUse]) -> ZoneRules {
    let formats = vec![ZoneFormat::Iso1, ZoneFormat::Iso0, ZoneFormat::Iso3];
    let name = ZoneName::parse("auth-host").unwrap();
    ZoneRules { name, tenant: "bank".into(), formats, uses: uses.into(), parity: ParityPolicy::Ignore }
}

#[test]
fn a_block_of_a_zone_needs_the_use_verify_and_nothing_reversible_starts_one_way() {
    let directory = tempfile::tempdir().unwrap();
    Hsm::create_vault(&vault_in(directory.path()), KeyFileUse::Refuse).unwrap();
    let mut store = open_store(directory.path());
    load(&mut store, "zone:auth-host", PVK);
    store.commit([0; 32]).unwrap();
    drop(store);
    let open = |form, uses: &[ZoneUse]| open_vault(directory.path(), form, vec![zone_rules(uses)]);
    let phone = Phone::new();
    let account = crate::block::AccountDigits::parse(PAN).unwrap();
    let source = |format: ZoneFormat, field: u64| {
        let mut key = Tzpk::zeroed();
        key.bytes_mut().copy_from_slice(&PVK);
        let mut block = Block::zeroed();
        block.set_nibbles(if format.binds_account() { field ^ account.rightmost_twelve() } else { field });
        tzpk_encrypt(&key, &mut block);
        let key = ZoneKey { zone: ZoneName::parse("auth-host").unwrap(), version: None };
        Source::Zone { key, block: ZoneBlock::from_bytes(format, block.bytes()).unwrap() }
    };
    let blocks = |digits: u64| {
        let control = |control: u64, fill: u64| (control << 60) | (4 << 56) | (digits << 40) | fill;
        [
            (ZoneFormat::Iso0, control(0, 0xFF_FFFF_FFFF)),
            (ZoneFormat::Iso1, control(1, 0x12_3456_789A)),
            (ZoneFormat::Iso3, control(3, 0xAB_CDEF_ABCD)),
        ]
    };
    let verify = |hsm: &Hsm, source: Source, record: &PinRecord| {
        let (record, account) = (record.clone(), hsm.registered(PAN));
        verified(wait(hsm.execute(Request::Verify { source, record, card: card(), account })))
    };
    for form in [NewRecordFormat::Iso4, NewRecordFormat::OneWay] {
        let hsm = open(form.clone(), &[ZoneUse::Verify, ZoneUse::Change]).unwrap();
        let record = hsm.set_for(&phone, PIN_4524, &hsm.registered(PAN));
        for ((format, right), (_, wrong)) in blocks(0x4524).into_iter().zip(blocks(0x4525)) {
            assert!(matches!(verify(&hsm, source(format, right), &record), Ok((true, None))), "{format}");
            assert!(matches!(verify(&hsm, source(format, wrong), &record), Ok((false, None))), "{format}");
            let malformed = verify(&hsm, source(format, right ^ (0xF << 60)), &record);
            assert!(matches!(malformed, Err(Error::Refused(Refusal::MalformedBlock))), "{format}");
            let [_, (_, new_field), _] = blocks(0x8090);
            let (old, new, account) = (source(format, right), source(ZoneFormat::Iso1, new_field), hsm.registered(PAN));
            let change = Request::Change { old, new, record: record.clone(), card: card(), account };
            assert!(matches!(wait(hsm.execute(change)), Ok(Reply::Changed(Changed::Right { .. }))), "{format}");
            // The plasticId of 10 digits is no account number, and format 1 has none inside.
            let unregistered = hsm.set(&phone, PIN_4524);
            let refused = hsm.verify(source(format, right), &unregistered);
            assert_eq!(matches!(refused, Err(Error::NoAccountNumber)), format.binds_account(), "{format}");
            let refused = hsm.change(source(ZoneFormat::Iso1, new_field), source(format, right), &unregistered);
            assert_eq!(matches!(refused, Err(Error::NoAccountNumber)), format.binds_account(), "{format}");
        }
        let hsm = open(form, &[ZoneUse::SetPin]).unwrap();
        let [(format, right), ..] = blocks(0x4524);
        let refused = verify(&hsm, source(format, right), &record);
        assert!(matches!(refused, Err(Error::ZoneUse { needed: ZoneUse::Verify })));
    }
    // A zone that may verify sets no PIN, and both blocks of a change are of one party. The card has no account number.
    let [_, (format, right), _] = blocks(0x4524);
    let verifies = open(NewRecordFormat::Iso4, &[ZoneUse::Verify]).unwrap();
    let record = verifies.set(&phone, PIN_4524);
    assert!(matches!(verifies.verify(source(format, right), &record), Ok((true, None))));
    let refused = verifies.change(source(format, right), source(format, right), &record);
    assert!(matches!(refused, Err(Error::ZoneUse { needed: ZoneUse::Change })));
    let changes = open(NewRecordFormat::Iso4, &[ZoneUse::Change]).unwrap();
    let device = || changes.device_source(&phone, PIN_4524);
    let mixed = [changes.change(source(format, right), device(), &record), {
        changes.change(device(), source(format, right), &record)
    }];
    assert!(mixed.iter().all(|result| matches!(result, Err(Error::TranslationNotAllowed))));
    for needed in [ZoneUse::GetPin, ZoneUse::Export] {
        let refused = open(NewRecordFormat::OneWay, &[needed]).err();
        assert!(matches!(refused, Some(OpenError::Zone(ZoneError::Use { needed: found, .. })) if found == needed));
    }
}

/// On the software token, which works on the caller's stack.
#[test]
fn the_stack_of_every_verification_is_scrubbed_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    Hsm::create_vault(&vault_in(directory.path()), KeyFileUse::Refuse).unwrap();
    let mut store = open_store(directory.path());
    load(&mut store, "pvk:bank:1", PVK);
    load(&mut store, IBM_3624, IBM_3624_KEY);
    store.commit([0; 32]).unwrap();
    drop(store);
    let phone = Phone::new();
    let hsm = open_vault(directory.path(), NewRecordFormat::Iso4, Vec::new()).unwrap();
    let one_way = open_vault(directory.path(), NewRecordFormat::OneWay, Vec::new()).unwrap();
    let account = hsm.registered(PAN);
    let (reversible, one_way_record) = (hsm.set_for(&phone, PIN_0912573, &account), one_way.set(&phone, PIN_4524));
    let issued = wait(hsm.issue(&phone.public, &binding())).unwrap();
    let source = |clear| {
        let sealed_tzpk = SealedKey::from_bytes(issued.sealed.as_bytes()).unwrap();
        Source::Device { sealed_tzpk, control: CONTROL, block: phone.block(&issued, clear) }
    };
    let (seven, four) = (source(PIN_0912573), source(PIN_4524));
    let copy_of = |source: &Source| match source {
        Source::Device { sealed_tzpk, control, block } => {
            let sealed_tzpk = SealedKey::from_bytes(sealed_tzpk.as_bytes()).unwrap();
            Source::Device { sealed_tzpk, control: *control, block: *block }
        }
        _ => panic!("not from a device"),
    };
    let verify = |hsm: &Hsm, source: &Source, record: &PinRecord, account: &Account| {
        let (source, record, account) = (copy_of(source), record.clone(), copy(account));
        verified(wait(hsm.execute(Request::Verify { source, record, card: card(), account })))
            .is_ok_and(|(right, _)| right)
    };
    let change = |hsm: &Hsm, source: &Source, record: &PinRecord, account: &Account| {
        let (old, new, record, account) = (copy_of(source), copy_of(source), record.clone(), copy(account));
        wait(hsm.execute(Request::Change { old, new, record, card: card(), account })).is_ok()
    };
    let derive = |method: &ValueMethod| hsm.value(&reversible, method).is_ok();
    let compare = |expected: ExpectedValue| hsm.has_value(copy_of(&seven), expected).is_ok_and(|right| right);
    let compare_natural = || {
        let natural = ExpectedValue::Ibm3624Natural { key: ibm_3624(), digits: 7 };
        hsm.has_value(copy_of(&seven), natural).is_ok()
    };
    let plastic = Account::PlasticId;
    let other_account = hsm.registered("5413330089020011");
    let rebind = || {
        let (from, to) = ((card(), copy(&account)), (card(), copy(&other_account)));
        wait(hsm.execute(Request::Rebind { record: reversible.clone(), from, to })).is_ok()
    };
    check_scrubbed(&[
        ("verify", &|| verify(&hsm, &seven, &reversible, &account)),
        ("verify a one-way record", &|| verify(&one_way, &four, &one_way_record, &plastic)),
        ("make a record one-way", &|| verify(&one_way, &seven, &reversible, &account)),
        ("change", &|| change(&hsm, &seven, &reversible, &account)),
        ("change a one-way record", &|| change(&one_way, &four, &one_way_record, &plastic)),
        ("generate", &|| hsm.generate(12).is_ok()),
        ("generate one-way", &|| one_way.generate(12).is_ok()),
        ("derive a PVV", &|| derive(&ValueMethod::Pvv(pvk()))),
        ("derive an offset", &|| derive(&ValueMethod::Ibm3624Offset(ibm_3624()))),
        ("compare a PVV", &|| compare(pvv("7416"))),
        ("compare an offset", &|| compare(offset("7864624"))),
        ("compare a natural PIN", &compare_natural),
        ("bind to another account number", &rebind),
    ]);
}
