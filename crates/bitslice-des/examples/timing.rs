//! Whether the time of a batch depends on its keys and blocks, by the method of *dudect* (O. Reparaz, J. Balasch, I. Verbauwhede,
//! *Dude, is my code constant time?*, DATE 2017): the times of a fixed input and of random inputs, in random turns, compared by
//! Welch's t. A |t| above 4.5 is taken as a difference.
//!
//! `cargo run --release -p pinseal-bitslice-des --example timing`. The `des` crate is measured too, as a comparison.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a measurement prints, and stops at an error"
)]

use std::{hint::black_box, time::Instant};

use bitslice_des::Batch;
use des::{
    TdesEde2,
    cipher::{BlockCipherDecrypt, KeyInit},
};

/// Measurements of one implementation.
const MEASUREMENTS: usize = 200_000;
/// The blocks of a batch.
const BLOCKS: usize = 64;

type Entry = ([u8; 16], [u8; 8]);

/// Reproducible words (xorshift64, G. Marsaglia 2003).
struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn entry(&mut self) -> Entry {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&self.word().to_be_bytes());
        key[8..].copy_from_slice(&self.word().to_be_bytes());
        (key, self.word().to_be_bytes())
    }
}

fn main() {
    let mut batch = Batch::new();
    report("bitsliced, 64 blocks", |entries| {
        for (key, block) in entries {
            batch.push_double(key, block).unwrap();
        }
        let mut block = [0; 8];
        batch.decrypt().copy(0, &mut block);
        black_box(block);
    });
    report("des crate, 64 blocks", |entries| {
        for (key, block) in entries {
            let mut block = *block;
            TdesEde2::new(key.into()).decrypt_block((&mut block).into());
            black_box(block);
        }
    });
}

/// Prints t for all times, and for the fastest parts of them: the slow times are interrupts of the machine.
fn report(name: &str, mut work: impl FnMut(&[Entry])) {
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let fixed = vec![random.entry(); BLOCKS];
    let mut times = Vec::with_capacity(MEASUREMENTS);
    let mut entries = fixed.clone();
    for _ in 0..MEASUREMENTS {
        let is_fixed = random.word() >> 63 == 1;
        // Both classes draw and write the same, so that the caches are alike.
        for (place, fixed) in entries.iter_mut().zip(&fixed) {
            let drawn = random.entry();
            *place = if is_fixed { *fixed } else { drawn };
        }
        let start = Instant::now();
        work(black_box(&entries));
        times.push((start.elapsed().as_nanos() as f64, is_fixed));
    }
    let mut sorted: Vec<f64> = times.iter().map(|(time, _)| *time).collect();
    sorted.sort_by(f64::total_cmp);
    print!("{name}: median {:.0} ns", sorted[MEASUREMENTS / 2]);
    for percent in [50, 90, 99, 100] {
        let limit = sorted[(MEASUREMENTS * percent / 100).min(MEASUREMENTS - 1)];
        print!(", fastest {percent} %: t = {:+.2}", welch(times.iter().filter(|(time, _)| *time <= limit)));
    }
    println!();
}

/// Welch's t of the times of fixed against random inputs.
fn welch<'a>(times: impl Iterator<Item = &'a (f64, bool)>) -> f64 {
    // Count, sum and sum of squares of each class.
    let mut classes = [[0.0; 3]; 2];
    for (time, is_fixed) in times {
        let class = &mut classes[usize::from(*is_fixed)];
        class[0] += 1.0;
        class[1] += time;
        class[2] += time * time;
    }
    let [random, fixed] = classes.map(|[count, sum, squares]| {
        let mean = sum / count;
        (mean, (squares / count - mean * mean) / count)
    });
    (fixed.0 - random.0) / (fixed.1 + random.1).sqrt()
}
