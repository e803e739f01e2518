//! Searches circuits of AND, OR, XOR, AND-NOT and NOT for the S-boxes, and prints them as functions of `src/circuits.rs`.
//!
//! `cargo run --release -p pinseal-bitslice-des --example find_circuits [SECONDS [S-BOX [SEED]]]`: the seconds are for each S-box.
//! The committed circuits come from runs of 200 to 300 seconds on one core.
//!
//! The first circuits are built as M. Kwan describes (*Reducing the Gate Count of Bitslice DES*, 2000): a function is a gate of two
//! nodes that exist already, or a choice by one input bit between two functions that need to be right for half of the inputs only.
//! A random walk then improves them: a gate is replaced by another one of the same value, wherever this value reaches an output,
//! and a gate that nothing uses any more falls away.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::needless_range_loop,
    clippy::precedence,
    reason = "a search prints, and stops at an error"
)]

use std::{
    env,
    time::{Duration, Instant},
};

#[path = "../src/s_boxes.rs"]
mod s_boxes;

#[derive(Clone, Copy, PartialEq)]
enum Op {
    And,
    Or,
    Xor,
    AndNot,
    Not,
}

/// A gate of one or two nodes. The nodes 0 to 5 are the inputs, the others the gates in order.
#[derive(Clone, Copy, PartialEq)]
struct Gate {
    op: Op,
    a: usize,
    b: usize,
}

impl Gate {
    fn value(self, v: &[u64]) -> u64 {
        let (a, b) = (v[self.a], v[self.b]);
        match self.op {
            Op::And => a & b,
            Op::Or => a | b,
            Op::Xor => a ^ b,
            Op::AndNot => a & !b,
            Op::Not => !a,
        }
    }
}

/// The values of the inputs for all 64 inputs at once: bit `x` of each word belongs to the input `x`.
const INPUTS: [u64; 6] = [
    0xFFFF_FFFF_0000_0000,
    0xFFFF_0000_FFFF_0000,
    0xFF00_FF00_FF00_FF00,
    0xF0F0_F0F0_F0F0_F0F0,
    0xCCCC_CCCC_CCCC_CCCC,
    0xAAAA_AAAA_AAAA_AAAA,
];

/// Reproducible numbers (xorshift64, G. Marsaglia 2003).
struct Rng(u64);
impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, n: usize) -> usize {
        (((self.next() >> 32) * n as u64) >> 32) as usize
    }
}

#[derive(Clone)]
struct Circuit {
    gates: Vec<Gate>,
    outputs: [usize; 4],
}

impl Circuit {
    fn values(&self) -> Vec<u64> {
        let mut v = INPUTS.to_vec();
        for g in &self.gates {
            v.push(g.value(&v));
        }
        v
    }
    /// Drops unused gates, and orders the rest so that each gate follows its inputs.
    fn tidy(&mut self) {
        fn visit(c: &Circuit, n: usize, new: &mut [usize], gates: &mut Vec<Gate>) -> usize {
            if n < 6 {
                return n;
            }
            if new[n] != 0 {
                return new[n];
            }
            let g = c.gates[n - 6];
            let a = visit(c, g.a, new, gates);
            let b = if g.op == Op::Not { a } else { visit(c, g.b, new, gates) };
            gates.push(Gate { op: g.op, a, b });
            new[n] = gates.len() + 5;
            new[n]
        }
        let mut new = vec![0; self.gates.len() + 6];
        let mut gates = Vec::with_capacity(self.gates.len());
        let outputs = self.outputs.map(|n| visit(self, n, &mut new, &mut gates));
        self.gates = gates;
        self.outputs = outputs;
    }
}

/// Kwan's construction, in a random order of the outputs.
fn build(rng: &mut Rng, targets: &[u64; 4], most: usize) -> Option<Circuit> {
    let mut s = State { gates: vec![], v: INPUTS.to_vec() };
    let mut outputs = [0; 4];
    let mut order = [0, 1, 2, 3];
    for i in (1..4).rev() {
        order.swap(i, rng.below(i + 1));
    }
    for (k, o) in order.into_iter().enumerate() {
        outputs[o] = s.make(targets[o], !0, 0b11_1111, (most - 4 * (3 - k)).checked_sub(s.gates.len())?, rng)?;
    }
    let mut c = Circuit { gates: s.gates, outputs };
    c.tidy();
    Some(c)
}

struct State {
    gates: Vec<Gate>,
    v: Vec<u64>,
}

impl State {
    fn push(&mut self, op: Op, a: usize, b: usize) -> usize {
        let g = Gate { op, a, b };
        self.v.push(g.value(&self.v));
        self.gates.push(g);
        self.v.len() - 1
    }

    /// Adds at most `budget` gates, of which the last has the value `t` where `mask` is set.
    fn make(&mut self, t: u64, mask: u64, remaining: u8, mut budget: usize, rng: &mut Rng) -> Option<usize> {
        if let Some(n) = self.v.iter().position(|x| (x ^ t) & mask == 0) {
            return Some(n);
        }
        if budget == 0 {
            return None;
        }
        if let Some(g) = pair(&self.v, t, mask, 0, rng) {
            return Some(self.push(g.op, g.a, g.b));
        }
        if budget == 1 {
            return None;
        }
        if let Some((first, op, c, flipped)) = triple(&self.v, t, mask, 0, rng) {
            let n = self.push(first.op, first.a, first.b);
            let (a, b) = if flipped { (c, n) } else { (n, c) };
            return Some(self.push(op, a, b));
        }
        if budget < 3 || remaining == 0 {
            return None;
        }
        let base = self.gates.len();
        let mut best: Option<Vec<Gate>> = None;
        let start = rng.below(6);
        for i in 0..6 {
            let s = (start + i) % 6;
            if remaining >> s & 1 == 0 {
                continue;
            }
            let rest = remaining & !(1 << s);
            let sel = INPUTS[s];
            let first = rng.below(2);
            for k in 0..2 {
                // By t = f ^ (d & half): f is right in one half, d is the rest in the other.
                let half = if (first + k).is_multiple_of(2) { sel } else { !sel };
                let done = self.make(t, mask & !half, rest, budget - 2, rng).and_then(|f| {
                    let left = budget - 2 - (self.gates.len() - base);
                    let d = self.make(t ^ self.v[f], mask & half, rest, left, rng)?;
                    let m = self.push(if half == sel { Op::And } else { Op::AndNot }, d, s);
                    Some(self.push(Op::Xor, f, m))
                });
                if done.is_some() {
                    let used = self.gates.len() - base;
                    best = Some(self.gates[base..].to_vec());
                    budget = used - 1;
                }
                self.gates.truncate(base);
                self.v.truncate(base + 6);
                if budget < 3 {
                    break;
                }
            }
            if budget < 3 {
                break;
            }
        }
        let best = best?;
        for g in best {
            self.push(g.op, g.a, g.b);
        }
        Some(self.v.len() - 1)
    }
}

/// A random gate of two nodes outside `banned` whose value is `t` where `mask` is set.
fn pair(v: &[u64], t: u64, mask: u64, banned: u128, rng: &mut Rng) -> Option<Gate> {
    let (t1, t0) = (t & mask, !t & mask);
    let mut m = [0u64; 128];
    let mut at = [0u8; 128];
    let mut n = 0;
    let (mut above, mut below, mut apart) = ([0u8; 128], [0u8; 128], [0u8; 128]);
    let (mut na, mut nb, mut nc) = (0, 0, 0);
    for (i, x) in v.iter().enumerate() {
        if banned >> i & 1 == 1 {
            continue;
        }
        let x = x & mask;
        m[n] = x;
        at[n] = i as u8;
        above[na] = n as u8;
        na += usize::from(t1 & !x == 0);
        below[nb] = n as u8;
        nb += usize::from(x & t0 == 0);
        apart[nc] = n as u8;
        nc += usize::from(x & t1 == 0);
        n += 1;
    }
    let m = &m[..n];
    let (mut found, mut count) = (None, 0);
    let mut take = |op: Op, a: usize, b: usize, rng: &mut Rng| {
        count += 1;
        if rng.below(count) == 0 {
            found = Some(Gate { op, a: at[a].into(), b: at[b].into() });
        }
    };
    for a in 0..n {
        let want = m[a] ^ t1;
        if m[a + 1..].iter().fold(false, |any, y| any | (*y == want)) {
            for b in a + 1..n {
                if m[b] == want {
                    take(Op::Xor, a, b, rng);
                }
            }
        }
        if m[a] == t0 {
            take(Op::Not, a, a, rng);
        }
    }
    for (i, a) in above[..na].iter().enumerate() {
        let x = m[usize::from(*a)];
        for b in &above[i + 1..na] {
            if x & m[usize::from(*b)] == t1 {
                take(Op::And, (*a).into(), (*b).into(), rng);
            }
        }
        for b in &apart[..nc] {
            if x & !m[usize::from(*b)] == t1 {
                take(Op::AndNot, (*a).into(), (*b).into(), rng);
            }
        }
    }
    for (i, a) in below[..nb].iter().enumerate() {
        let x = m[usize::from(*a)];
        for b in &below[i + 1..nb] {
            if x | m[usize::from(*b)] == t1 {
                take(Op::Or, (*a).into(), (*b).into(), rng);
            }
        }
    }
    found
}

/// A random pair of gates: `first` of two nodes, and then `op` of it and a third.
fn triple(v: &[u64], t: u64, mask: u64, banned: u128, rng: &mut Rng) -> Option<(Gate, Op, usize, bool)> {
    let start = rng.below(v.len());
    for i in 0..v.len() {
        let c = (start + i) % v.len();
        if banned >> c & 1 == 1 {
            continue;
        }
        let z = v[c];
        let first = rng.below(5);
        for k in 0..5 {
            let (op, flipped, need, care) = match (first + k) % 5 {
                0 => (Op::Xor, false, t ^ z, mask),
                1 if t & !z & mask == 0 => (Op::And, false, t, mask & z),
                2 if !t & z & mask == 0 => (Op::Or, false, t, mask & !z),
                3 if t & z & mask == 0 => (Op::AndNot, false, t, mask & !z),
                4 if t & !z & mask == 0 => (Op::AndNot, true, !t, mask & z),
                _ => continue,
            };
            if let Some(g) = pair(v, need, care, banned, rng) {
                return Some((g, op, c, flipped));
            }
        }
    }
    None
}

/// One random change that keeps the outputs. Returns whether the circuit changed.
fn step(c: &mut Circuit, rng: &mut Rng, may_grow: usize, scratch: &mut Vec<u64>) -> bool {
    let v = c.values();
    let n = 6 + rng.below(c.gates.len());
    // Where a flip of the node reaches an output, and the nodes that depend on it.
    scratch.clear();
    scratch.extend_from_slice(&v);
    scratch[n] = !v[n];
    let mut banned = 1u128 << n;
    for i in n + 1..v.len() {
        let g = c.gates[i - 6];
        if (banned >> g.a | banned >> g.b) & 1 == 1 {
            banned |= 1 << i;
            scratch[i] = g.value(scratch);
        }
    }
    let care = c.outputs.iter().fold(0, |all, o| all | (scratch[*o] ^ v[*o]));
    let t = v[n];
    let replace = |c: &mut Circuit, by: usize| {
        for g in &mut c.gates {
            if g.a == n {
                g.a = by;
            }
            if g.b == n {
                g.b = by;
            }
        }
        for o in &mut c.outputs {
            if *o == n {
                *o = by;
            }
        }
        c.tidy();
    };
    if let Some(by) = (0..v.len()).find(|i| banned >> i & 1 == 0 && (v[*i] ^ t) & care == 0) {
        replace(c, by);
        return true;
    }
    if rng.below(24) == 0 {
        if let Some((first, op, z, flipped)) = triple(&v, t, care, banned, rng) {
            let before = c.clone();
            let at = c.gates.len() + 6;
            c.gates.push(first);
            c.gates[n - 6] = if flipped { Gate { op, a: z, b: at } } else { Gate { op, a: at, b: z } };
            c.tidy();
            if c.gates.len() > may_grow {
                *c = before;
                return false;
            }
            return true;
        }
        return false;
    }
    let Some(g) = pair(&v, t, care, banned, rng) else { return false };
    c.gates[n - 6] = g;
    c.tidy();
    true
}

/// The circuits that the walk improves in turn.
const POOL: usize = 16;

/// Changes the circuit at random until `patience` changes in a row made it no smaller.
fn walk(c: &mut Circuit, rng: &mut Rng, patience: u32, scratch: &mut Vec<u64>) {
    let mut own = c.clone();
    let mut since = 0;
    while since < patience {
        since += 1;
        step(c, rng, own.gates.len() + 1, scratch);
        if c.gates.len() < own.gates.len() {
            since = 0;
        }
        if c.gates.len() <= own.gates.len() {
            own.clone_from(c);
        } else if since % 512 == 0 {
            c.clone_from(&own);
        }
    }
    *c = own;
}

fn main() {
    let mut args = env::args().skip(1);
    let seconds: u64 = args.next().and_then(|a| a.parse().ok()).unwrap_or(10);
    let only: Option<usize> = args.next().and_then(|a| a.parse().ok());
    let seed: u64 = args.next().and_then(|a| a.parse().ok()).unwrap_or(1);
    for (number, table) in s_boxes::S_BOXES.iter().enumerate().filter(|(n, _)| only.is_none_or(|o| o == n + 1)) {
        let mut targets = [0u64; 4];
        for x in 0..64usize {
            let value = table[(x >> 5) << 1 | x & 1][x >> 1 & 15];
            for (o, t) in targets.iter_mut().enumerate() {
                *t |= u64::from(value >> (3 - o) & 1) << x;
            }
        }
        let mut rng = Rng(0x9E37_79B9_7F4A_7C15 ^ seed.wrapping_mul(0xD134_2543_DE82_EF95) ^ number as u64);
        for _ in 0..10 {
            rng.next();
        }
        let start = Instant::now();
        let limit = Duration::from_secs(seconds);
        let mut scratch = vec![];
        let mut pool: Vec<Circuit> = vec![];
        let mut best = usize::MAX;
        while start.elapsed() < limit / 4 {
            let most = pool.iter().map(|c| c.gates.len()).max().filter(|_| pool.len() >= POOL).map_or(100, |n| n + 4);
            let Some(mut c) = build(&mut rng, &targets, most) else { continue };
            walk(&mut c, &mut rng, 20_000, &mut scratch);
            pool.push(c);
            pool.sort_by_key(|c| c.gates.len());
            pool.truncate(POOL);
            if pool[0].gates.len() < best {
                best = pool[0].gates.len();
                eprintln!("S{} {best} {:?}", number + 1, start.elapsed());
            }
        }
        while start.elapsed() < limit {
            let at = rng.below(pool.len()).min(rng.below(pool.len()));
            let mut c = pool[at].clone();
            walk(&mut c, &mut rng, 200_000, &mut scratch);
            if c.gates.len() <= pool[at].gates.len() {
                pool[at] = c;
            }
            pool.sort_by_key(|c| c.gates.len());
            if pool[0].gates.len() < best {
                best = pool[0].gates.len();
                eprintln!("S{} {best} {:?}", number + 1, start.elapsed());
            }
        }
        let best = pool.swap_remove(0);
        let v = best.values();
        for o in 0..4 {
            assert_eq!(v[best.outputs[o]], targets[o]);
        }
        println!("{}", function(number + 1, &best));
    }
}

/// The circuit as a function of `src/circuits.rs`.
fn function(number: usize, circuit: &Circuit) -> String {
    let name = |node: usize| match node {
        0..6 => char::from(b"abcdef"[node]).to_string(),
        gate => format!("t{}", gate - 5),
    };
    let mut text = format!(
        "/// S-box {number}, {} operations.\n#[inline(always)]\npub(crate) fn s{number}<W: Word>([a, b, c, d, e, f]: [W; 6]) -> [W; 4] {{\n",
        circuit.gates.len()
    );
    for (place, gate) in circuit.gates.iter().enumerate() {
        let (a, b) = (name(gate.a), name(gate.b));
        let value = match gate.op {
            Op::And => format!("{a} & {b}"),
            Op::Or => format!("{a} | {b}"),
            Op::Xor => format!("{a} ^ {b}"),
            Op::AndNot => format!("{a}.and_not({b})"),
            Op::Not => format!("!{a}"),
        };
        text += &format!("    let t{} = {value};\n", place + 1);
    }
    text + &format!("    [{}]\n}}\n", circuit.outputs.map(name).join(", "))
}
