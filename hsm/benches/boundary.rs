//! The cost of the boundary's operations on one core, beside the cost of the ciphers that they need at least.

#![allow(
    clippy::unwrap_used,
    clippy::unreachable,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a benchmark stops at an unexpected result"
)]

use std::hint::black_box;

use aes::{
    Aes256,
    cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit},
};
use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rsa::{
        KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, OaepPublicEncryptingKey, PrivateDecryptingKey,
        PublicEncryptingKey,
    },
};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use des::TdesEde2;
use hsm::{
    Account, AccountNumber, Binding, CardBinding, Config, ControlBinding, DeviceKey, EncryptedBlock, FreshTzpk, Hsm,
    KeyAlgorithm, KeyFileUse, KeyStore, KeyUsage, Keys, NewRecordFormat, ParityPolicy, PinRecord, Purpose, Reply,
    Request, SealedAccount, SealedKey, Source, TOGETHER_MAX, Target, Unlock, Vault, Wanted, ZoneFormat, ZoneKey,
    ZoneName, ZoneRules, ZoneUse,
};

const CONTROL: ControlBinding =
    ControlBinding { id: [7; 16], purpose: Purpose::SetPin, expires_at_unix_milliseconds: 1_790_000_000_000 };

fn card() -> CardBinding {
    CardBinding::new("bank", "1000200030").unwrap()
}

fn issue(hsm: &Hsm, device: &DeviceKey) -> FreshTzpk {
    let binding = Binding { card: card(), control: CONTROL };
    match ready(hsm.execute(Request::IssueTzpk { public_key: device.clone(), binding })) {
        Ok(Reply::Tzpk(tzpk)) => tzpk,
        _ => unreachable!("no tzpk"),
    }
}

fn translate(hsm: &Hsm, source: Source, target: Target, account: Account) -> Reply {
    ready(hsm.execute(Request::Translate { source, target, card: card(), account })).unwrap()
}

fn device_to_record(hsm: &Hsm, tzpk: &SealedKey, block: &EncryptedBlock, account: Account) -> PinRecord {
    let sealed_tzpk = SealedKey::from_bytes(tzpk.as_bytes()).unwrap();
    let source = Source::Device { sealed_tzpk, control: CONTROL, block: *block };
    match translate(hsm, source, Target::Record, account) {
        Reply::Record { record, .. } => record,
        _ => unreachable!("no record"),
    }
}

fn seal_pan(hsm: &Hsm) -> SealedAccount {
    let number = AccountNumber::parse("5413330089020011").unwrap();
    match ready(hsm.execute(Request::SealPan { number, card: card() })) {
        Ok(Reply::SealedPan(sealed)) => sealed,
        _ => unreachable!("no sealed account"),
    }
}

/// The result of a future that is ready at the first poll: the software token works on the caller's thread.
fn ready<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    match work.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(result) => result,
        std::task::Poll::Pending => unreachable!("the software token answers inline"),
    }
}

fn device(size: KeySize) -> (DeviceKey, OaepPrivateDecryptingKey) {
    let key = PrivateDecryptingKey::generate(size).unwrap();
    let der: PublicKeyX509Der<'_> = key.public_key().as_der().unwrap();
    (DeviceKey::parse(der.as_ref()).unwrap(), OaepPrivateDecryptingKey::new(key).unwrap())
}

fn boundary(c: &mut Criterion) {
    let hsm = Hsm::open(Config::default()).unwrap();
    let (device_key, private) = device(KeySize::Rsa2048);
    let issued = issue(&hsm, &device_key);
    let mut buffer = [0; 256];
    let tzpk = private.decrypt(&OAEP_SHA256_MGF1SHA256, &issued.wrapped, &mut buffer, None).unwrap();
    let mut block = 0x1425_80A7_3C90_5EF1u64.to_be_bytes();
    let tdes = TdesEde2::new((&*tzpk).try_into().unwrap());
    tdes.encrypt_block((&mut block).into());
    let block = EncryptedBlock::from_bytes(&block).unwrap();
    let account = seal_pan(&hsm);

    let mut group = c.benchmark_group("boundary");
    group.throughput(Throughput::Elements(1));
    group.bench_function("translate ISO-1 to ISO-4, plasticId", |b| {
        b.iter(|| device_to_record(&hsm, &issued.sealed, &block, Account::PlasticId));
    });
    group.bench_function("translate ISO-1 to ISO-4, account number", |b| {
        let registered = || Account::Registered(SealedAccount::from_bytes(account.as_bytes()).unwrap());
        b.iter(|| device_to_record(&hsm, &issued.sealed, &block, registered()));
    });
    group.bench_function("minimum: 3DES with its key schedule, two AES-256 blocks", |b| {
        let aes = Aes256::new(&Array([7; 32]));
        let key = Array([0x5Bu8; 16]);
        b.iter(|| {
            let mut clear = *block.as_bytes();
            TdesEde2::new(black_box(&key)).decrypt_block((&mut clear).into());
            let mut wide = [0; 16];
            wide[..8].copy_from_slice(&clear);
            aes.encrypt_block((&mut wide).into());
            aes.encrypt_block((&mut wide).into());
            wide
        });
    });
    group.bench_function("seal an account number", |b| b.iter(|| seal_pan(&hsm).as_bytes()[4]));
    let record = device_to_record(&hsm, &issued.sealed, &block, Account::PlasticId);
    group.bench_function("translate a record to a device, RSA-2048", |b| {
        b.iter(|| {
            let target = Target::Device { public_key: device_key.clone() };
            translate(&hsm, Source::Record(record.clone()), target, Account::PlasticId)
        });
    });
    group.bench_function("re-encrypt a format 4 record, plasticId", |b| {
        b.iter(|| translate(&hsm, Source::Record(record.clone()), Target::Record, Account::PlasticId));
    });
    group.bench_function("minimum of re-encrypt: two AES-256 blocks decrypted and two encrypted", |b| {
        let aes = Aes256::new(&Array([7; 32]));
        b.iter(|| {
            let mut block = black_box([3; 16]);
            aes.decrypt_block((&mut block).into());
            aes.decrypt_block((&mut block).into());
            aes.encrypt_block((&mut block).into());
            aes.encrypt_block((&mut block).into());
            block
        });
    });
    for (name, size) in [("2048", KeySize::Rsa2048), ("3072", KeySize::Rsa3072), ("4096", KeySize::Rsa4096)] {
        let (key, _) = device(size);
        group.bench_function(format!("issue a tzpk, RSA-{name}"), |b| {
            b.iter(|| issue(&hsm, &key).wrapped);
        });
        group.bench_function(format!("minimum of issue: one RSA-OAEP encryption, RSA-{name}"), |b| {
            let key = PublicEncryptingKey::from_der(key.der()).unwrap();
            let key = OaepPublicEncryptingKey::new(key).unwrap();
            let mut wrapped = [0; 512];
            b.iter(|| key.encrypt(&OAEP_SHA256_MGF1SHA256, &[7; 16], &mut wrapped, None).unwrap().len());
        });
    }
    group.finish();
}

/// A vault with the key of a zone that sets, gives and translates PINs.
struct ZoneVault(tempfile::TempDir);

impl ZoneVault {
    fn new() -> Self {
        let vault = Self(tempfile::tempdir().unwrap());
        Hsm::create_vault(&vault.place(), KeyFileUse::Refuse).unwrap();
        let mut store = KeyStore::open(Keys::Vault(vault.place()), &Wanted::default(), 1).unwrap();
        let usage = KeyUsage::Zone(Self::key().zone);
        store.make(usage.clone(), KeyAlgorithm::TdesDouble, 1).unwrap();
        store.activate(&usage, 1, 1).unwrap();
        store.commit([0; 32]).unwrap();
        vault
    }

    fn place(&self) -> Vault {
        Vault::File { path: self.0.path().join("vault"), unlock: Unlock::KeyFile(self.0.path().join("vault.key")) }
    }

    fn open(&self, form: NewRecordFormat) -> Hsm {
        let rules = ZoneRules {
            name: Self::key().zone,
            tenant: "bank".into(),
            formats: vec![ZoneFormat::Iso1, ZoneFormat::Iso0],
            uses: vec![ZoneUse::SetPin, ZoneUse::GetPin, ZoneUse::Export, ZoneUse::Translate],
            parity: ParityPolicy::Ignore,
        };
        let wanted = Wanted { form: Some(form), ..Wanted::default() };
        Hsm::open(Config { keys: Keys::Vault(self.place()), wanted, zones: vec![rules], ..Config::default() }).unwrap()
    }

    fn key() -> ZoneKey {
        ZoneKey { zone: ZoneName::parse("app-bank").unwrap(), version: None }
    }
}

/// As many translations as one request has, of blocks of one source to one target.
fn together(source: impl Fn() -> Source, target: impl Fn() -> Target, account: impl Fn() -> Account) -> Request {
    let one = || Request::Translate { source: source(), target: target(), card: card(), account: account() };
    Request::Together { requests: (0..TOGETHER_MAX).map(|_| one()).collect() }
}

fn many(c: &mut Criterion) {
    let vault = ZoneVault::new();
    let (hsm, dated) =
        (vault.open(NewRecordFormat::Iso4), vault.open(NewRecordFormat::Iso3 { until: "2999-12-31".into() }));
    let generate = |hsm: &Hsm| match ready(hsm.execute(Request::Generate {
        digits: 6,
        card: card(),
        account: Account::PlasticId,
    })) {
        Ok(Reply::Record { record, .. }) => record,
        _ => unreachable!("no record"),
    };
    let to_zone = |format| Target::Zone { key: ZoneVault::key(), format };
    let block = match translate(&hsm, Source::Record(generate(&hsm)), to_zone(ZoneFormat::Iso1), Account::PlasticId) {
        Reply::ZoneBlock(block) => block,
        _ => unreachable!("no block"),
    };
    let record = generate(&dated);
    let zone = || Source::Zone { key: ZoneVault::key(), block: block.clone() };
    let account = seal_pan(&hsm);
    let registered = || Account::Registered(SealedAccount::from_bytes(account.as_bytes()).unwrap());

    let mut group = c.benchmark_group("together");
    group.throughput(Throughput::Elements(TOGETHER_MAX as u64));
    let mut bench = |name: &str, request: &dyn Fn() -> Request| {
        group.bench_function(name, |b| {
            b.iter_batched(
                request,
                |request| match ready(hsm.execute(request)) {
                    Ok(Reply::Together(replies)) if replies.iter().all(Result::is_ok) => replies,
                    _ => unreachable!("no replies"),
                },
                BatchSize::SmallInput,
            );
        });
    };
    bench("translate zone blocks to records", &|| together(zone, || Target::Record, || Account::PlasticId));
    bench("translate zone blocks to zone blocks", &|| together(zone, || to_zone(ZoneFormat::Iso0), registered));
    bench("re-encrypt 3DES records", &|| {
        together(|| Source::Record(record.clone()), || Target::Record, || Account::PlasticId)
    });
    group.finish();
}

criterion_group!(benches, boundary, many);
criterion_main!(benches);
