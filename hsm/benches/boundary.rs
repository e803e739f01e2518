//! What the boundary's operations cost on one core, beside the bare ciphers they cannot do without.

#![allow(
    clippy::unwrap_used,
    clippy::unreachable,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a bench that is surprised must stop"
)]

use std::hint::black_box;

use aes::{
    Aes256,
    cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt, KeyInit},
};
use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use des::TdesEde2;
use hsm::{Account, AccountNumber, Binding, CardBinding, Config, DeviceKey, EncryptedBlock, Hsm, Purpose};

const CARD: CardBinding<'static> = CardBinding { tenant: "bank", plastic_id: "1000200030" };

fn binding(purpose: Purpose) -> Binding<'static> {
    Binding { card: CARD, control: &[7; 16], purpose, expires_at_unix_milliseconds: 1_790_000_000_000 }
}

/// The operations answer inline: one poll is all they take.
fn now<T>(work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    match work.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(done) => done,
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
    let issued = now(hsm.issue(&device_key, &binding(Purpose::SetPin))).unwrap();
    let mut room = [0; 256];
    let tzpk = private.decrypt(&OAEP_SHA256_MGF1SHA256, &issued.wrapped, &mut room, None).unwrap();
    let mut block = 0x1425_80A7_3C90_5EF1u64.to_be_bytes();
    let tdes = TdesEde2::new((&*tzpk).try_into().unwrap());
    tdes.encrypt_block((&mut block).into());
    let block = EncryptedBlock::from_bytes(&block).unwrap();
    let number = AccountNumber::parse("5413330089020011").unwrap();
    let account = now(hsm.seal_account(&number, CARD)).unwrap();

    let mut group = c.benchmark_group("boundary");
    group.throughput(Throughput::Elements(1));
    group.bench_function("accept ISO-1 to ISO-4, plasticId", |b| {
        b.iter(|| {
            now(hsm.accept(&issued.sealed, &binding(Purpose::SetPin), &block, Account::PlasticId)).unwrap().retry_tag
        });
    });
    group.bench_function("accept ISO-1 to ISO-4, account number", |b| {
        let account = Account::Registered(&account);
        b.iter(|| now(hsm.accept(&issued.sealed, &binding(Purpose::SetPin), &block, account)).unwrap().retry_tag);
    });
    group.bench_function("ceiling: bare 3DES with its key schedule, two AES-256 blocks", |b| {
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
    group.bench_function("seal an account number", |b| {
        b.iter(|| now(hsm.seal_account(&number, CARD)).unwrap().as_bytes()[4])
    });
    let accepted = now(hsm.accept(&issued.sealed, &binding(Purpose::SetPin), &block, Account::PlasticId)).unwrap();
    group.bench_function("reveal, RSA-2048", |b| {
        b.iter(|| {
            now(hsm.reveal(&accepted.record, &binding(Purpose::ViewPin), Account::PlasticId, &device_key))
                .unwrap()
                .wrapped
        });
    });
    group.bench_function("remake a format 4 record, plasticId", |b| {
        b.iter(|| now(hsm.remake(&accepted.record, CARD, Account::PlasticId)).unwrap().as_bytes()[8]);
    });
    group.bench_function("ceiling of remake: two AES-256 blocks decrypted and two encrypted", |b| {
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
        group.bench_function(format!("issue, RSA-{name}"), |b| {
            b.iter(|| now(hsm.issue(&key, &binding(Purpose::SetPin))).unwrap().wrapped);
        });
    }
    group.finish();
}

criterion_group!(benches, boundary);
criterion_main!(benches);
