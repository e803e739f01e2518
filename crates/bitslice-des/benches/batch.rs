//! 3DES of a batch beside the `des` crate with its key schedule. The last lines print the ratio.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a benchmark stops at an error, and prints")]

use std::{hint::black_box, time::Instant};

use bitslice_des::Batch;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use des::{
    TdesEde2,
    cipher::{BlockCipherDecrypt, KeyInit},
};

type Entry = ([u8; 16], [u8; 8]);

/// Entries of different keys and blocks.
fn entries(count: usize) -> Vec<Entry> {
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut entry = || ((u128::from(next()) << 64 | u128::from(next())).to_be_bytes(), next().to_be_bytes());
    (0..count).map(|_| entry()).collect()
}

fn bitsliced(batch: &mut Batch, entries: &[Entry], clear: &mut [[u8; 8]]) {
    for (key, block) in entries {
        batch.push_double(key, block).unwrap();
    }
    let blocks = batch.decrypt();
    for (at, block) in clear.iter_mut().enumerate() {
        blocks.copy(at, block);
    }
}

fn by_table(entries: &[Entry], clear: &mut [[u8; 8]]) {
    for ((key, block), clear) in entries.iter().zip(clear) {
        *clear = *block;
        TdesEde2::new(key.into()).decrypt_block(clear.into());
    }
}

fn batch(c: &mut Criterion) {
    for count in [1, 8, 64, 256] {
        let entries = entries(count);
        let mut clear = vec![[0; 8]; count];
        let mut batch = Batch::new();
        let mut group = c.benchmark_group(format!("3DES, {count} keys"));
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function("bitsliced", |b| b.iter(|| bitsliced(&mut batch, black_box(&entries), &mut clear)));
        group.bench_function("des crate", |b| b.iter(|| by_table(black_box(&entries), &mut clear)));
        group.finish();
        let mut other = clear.clone();
        let [median, fastest] = alternate(
            || bitsliced(&mut batch, black_box(&entries), &mut clear),
            || by_table(black_box(&entries), black_box(&mut other)),
        );
        for (name, (fast, slow)) in [("median", median), ("fastest", fastest)] {
            println!("{count} keys, {name}: bitsliced {fast:.0} ns, des crate {slow:.0} ns, ratio {:.1}", slow / fast);
        }
    }
}

/// The median and the fastest times of both, in nanoseconds, measured in turn: other load of the machine affects both alike.
fn alternate(mut one: impl FnMut(), mut other: impl FnMut()) -> [(f64, f64); 2] {
    const RUNS: u32 = 20;
    let time = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        (0..RUNS).for_each(|_| work());
        start.elapsed().as_secs_f64() * 1e9 / f64::from(RUNS)
    };
    let (mut ones, mut others): (Vec<f64>, Vec<f64>) = (0..201).map(|_| (time(&mut one), time(&mut other))).unzip();
    ones.sort_by(f64::total_cmp);
    others.sort_by(f64::total_cmp);
    [100, 0].map(|at| (ones.get(at).copied().unwrap_or_default(), others.get(at).copied().unwrap_or_default()))
}

criterion_group!(benches, batch);
criterion_main!(benches);
