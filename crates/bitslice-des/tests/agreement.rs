//! The batch computes what NIST published, and what the `des` crate computes.

#![allow(clippy::unwrap_used, reason = "a test stops at an error")]

use bitslice_des::{Batch, Full};
use des::{
    TdesEde2, TdesEde3,
    cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit},
};
use serde_json::Value;

/// A key of double or triple length.
#[derive(Clone, Copy)]
enum Key {
    Double([u8; 16]),
    Triple([u8; 24]),
}

impl Key {
    fn push(&self, batch: &mut Batch, block: &[u8; 8]) -> Result<(), Full> {
        match self {
            Self::Double(key) => batch.push_double(key, block),
            Self::Triple(key) => batch.push_triple(key, block),
        }
    }

    fn encrypt(&self, mut block: [u8; 8]) -> [u8; 8] {
        match self {
            Self::Double(key) => TdesEde2::new(key.into()).encrypt_block((&mut block).into()),
            Self::Triple(key) => TdesEde3::new(key.into()).encrypt_block((&mut block).into()),
        }
        block
    }

    fn decrypt(&self, mut block: [u8; 8]) -> [u8; 8] {
        match self {
            Self::Double(key) => TdesEde2::new(key.into()).decrypt_block((&mut block).into()),
            Self::Triple(key) => TdesEde3::new(key.into()).decrypt_block((&mut block).into()),
        }
        block
    }
}

/// Reproducible bytes (xorshift64, G. Marsaglia 2003).
struct Random(u64);

impl Random {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 24) as u8
        })
    }

    /// A key of double length, or of triple length where `number` is odd.
    fn key(&mut self, number: usize) -> Key {
        if number.is_multiple_of(2) { Key::Double(self.bytes()) } else { Key::Triple(self.bytes()) }
    }
}

type Entry = (Key, [u8; 8]);

fn encrypted(batch: &mut Batch, entries: &[Entry]) -> Vec<[u8; 8]> {
    entries.iter().for_each(|(key, block)| key.push(batch, block).unwrap());
    all(&batch.encrypt(), entries.len())
}

fn decrypted(batch: &mut Batch, entries: &[Entry]) -> Vec<[u8; 8]> {
    entries.iter().for_each(|(key, block)| key.push(batch, block).unwrap());
    all(&batch.decrypt(), entries.len())
}

fn all(blocks: &bitslice_des::Blocks<'_>, count: usize) -> Vec<[u8; 8]> {
    let mut block = [0; 8];
    let copied = (0..count).map(|at| blocks.copy(at, &mut block).then_some(block).unwrap()).collect();
    assert!(!blocks.copy(count, &mut block), "no block after the last");
    copied
}

/// NIST CAVP: TECBMMT, TECBvartext, TECBvarkey, TECBpermop, TECBsubtab and TECBinvperm, both directions.
#[test]
fn every_nist_vector_agrees() {
    let vectors: Vec<Value> = serde_json::from_str(include_str!("../../../tests/vectors/tdes_ecb_nist.json")).unwrap();
    let bytes = |entry: &Value, member: &str| base16ct::mixed::decode_vec(entry[member].as_str().unwrap()).unwrap();
    let mut entries = Vec::new();
    for vector in &vectors {
        let key = Key::Triple(bytes(vector, "key").try_into().unwrap());
        let (plain, cipher) = (bytes(vector, "plaintext"), bytes(vector, "ciphertext"));
        for (plain, cipher) in plain.as_chunks().0.iter().zip(cipher.as_chunks().0) {
            entries.push((key, *plain, *cipher));
        }
    }
    assert!(entries.len() >= 530);
    let mut batch = Batch::new();
    // A full batch, and each length that leaves a group partly filled.
    for length in [Batch::BLOCKS_MAX, 64, 7] {
        for entries in entries.chunks(length) {
            let plain: Vec<Entry> = entries.iter().map(|(key, plain, _)| (*key, *plain)).collect();
            let cipher: Vec<Entry> = entries.iter().map(|(key, _, cipher)| (*key, *cipher)).collect();
            assert!(encrypted(&mut batch, &plain).iter().eq(entries.iter().map(|(_, _, cipher)| cipher)));
            assert!(decrypted(&mut batch, &cipher).iter().eq(entries.iter().map(|(_, plain, _)| plain)));
        }
    }
}

#[test]
fn batches_of_every_length_agree_with_des() {
    let (mut random, mut batch) = (Random(0x9E37_79B9_7F4A_7C15), Batch::new());
    for length in 0..=Batch::BLOCKS_MAX {
        let entries: Vec<Entry> = (0..length).map(|number| (random.key(number), random.bytes())).collect();
        assert!(encrypted(&mut batch, &entries).into_iter().eq(entries.iter().map(|(key, block)| key.encrypt(*block))));
        assert!(decrypted(&mut batch, &entries).into_iter().eq(entries.iter().map(|(key, block)| key.decrypt(*block))));
    }
}

#[test]
fn a_million_random_blocks_agree_with_des() {
    let (mut random, mut batch) = (Random(0xD134_2543_DE82_EF95), Batch::new());
    for turn in 0..1_000_000 / 2 / Batch::BLOCKS_MAX + 1 {
        let entries: Vec<Entry> = (0..Batch::BLOCKS_MAX).map(|_| (random.key(turn), random.bytes())).collect();
        assert!(encrypted(&mut batch, &entries).into_iter().eq(entries.iter().map(|(key, block)| key.encrypt(*block))));
        assert!(decrypted(&mut batch, &entries).into_iter().eq(entries.iter().map(|(key, block)| key.decrypt(*block))));
    }
}

#[test]
fn a_full_batch_takes_no_more_and_is_empty_after_use() {
    let mut batch = Batch::new();
    for _ in 0..Batch::BLOCKS_MAX {
        batch.push_double(&[1; 16], &[2; 8]).unwrap();
    }
    assert_eq!(batch.push_double(&[1; 16], &[2; 8]), Err(Full));
    assert_eq!(batch.len(), Batch::BLOCKS_MAX);
    drop(batch.encrypt());
    assert!(batch.is_empty());
}
