//! 3DES (FIPS 46-3, keying option 2) for one block at a time, without a memory access or a branch that depends on a key
//! or a block.
//!
//! An S-box is not looked up. Each of its four output bits is a word of 64 bits, one for each input; rotating the word by
//! the input brings the bit to its place behind the permutation P, and all but that bit is masked away.

use crate::clear::{Block, Clear, Tzpk};

/// Rounds of DES.
const ROUNDS: usize = 16;
/// Bits of a half of the key schedule's register.
const HALF_BITS: u32 = 28;
/// One half for each of two keys, 32 bits apart.
const HALVES: u64 = 0x0FFF_FFFF_0FFF_FFFF;

/// The schedules of a double-length key: for each round 24 bits for S-boxes 1 to 4, then 24 for 5 to 8; of K1 in the
/// lower half of a word, of K2 in the upper.
pub(super) struct Schedule {
    left: Clear<{ 8 * ROUNDS }>,
    right: Clear<{ 8 * ROUNDS }>,
}

impl Schedule {
    /// Prepares both keys at once.
    pub(super) fn new(key: &Tzpk) -> Self {
        let mut schedule = Self { left: Clear::zeroed(), right: Clear::zeroed() };
        let (first, second) = ((key.nibbles() >> 64) as u64, key.nibbles() as u64);
        let (mut c, mut d) = (gather(&PC_1_C, first, second), gather(&PC_1_D, first, second));
        let words = schedule.left.words_mut().iter_mut().zip(schedule.right.words_mut());
        for (round, (left, right)) in words.enumerate() {
            // FIPS 46-3: one place in rounds 1, 2, 9 and 16, two in the others.
            let places = if matches!(round, 0 | 1 | 8 | 15) { 1 } else { 2 };
            (c, d) = (rotate(c, places), rotate(d, places));
            *left = choose(&PC_2_C, c).to_ne_bytes();
            *right = choose(&PC_2_D, d).to_ne_bytes();
        }
        schedule
    }

    /// E(K1) D(K2) E(K1).
    pub(super) fn encrypt(&self, block: &mut Block) {
        self.three_passes(block, [Pass::forward(0), Pass::backward(32), Pass::forward(0)]);
    }

    /// D(K1) E(K2) D(K1).
    pub(super) fn decrypt(&self, block: &mut Block) {
        self.three_passes(block, [Pass::backward(0), Pass::forward(32), Pass::backward(0)]);
    }

    /// The permutations between two passes undo each other.
    fn three_passes(&self, block: &mut Block, passes: [Pass; 3]) {
        let mut halves = initial_permutation(block.nibbles());
        for pass in passes {
            halves = self.pass(halves, pass);
        }
        block.set_nibbles(final_permutation(halves));
    }

    fn pass(&self, (mut left, mut right): (u32, u32), pass: Pass) -> (u32, u32) {
        let words = || self.left.words().iter().zip(self.right.words());
        let mut round = |(first, second): (&[u8; 8], &[u8; 8])| {
            let first = (u64::from_ne_bytes(*first) >> pass.key) as u32;
            let second = (u64::from_ne_bytes(*second) >> pass.key) as u32;
            (left, right) = (right, left ^ f(right, first, second));
        };
        if pass.backward {
            words().rev().for_each(&mut round)
        } else {
            words().for_each(&mut round)
        }
        (right, left)
    }
}

/// Once through the rounds: which way, and how far up the key's words stand.
#[derive(Clone, Copy)]
struct Pass {
    backward: bool,
    key: u32,
}

impl Pass {
    const fn forward(key: u32) -> Self {
        Self { backward: false, key }
    }

    const fn backward(key: u32) -> Self {
        Self { backward: true, key }
    }
}

/// Expansion, key, S-boxes and P. The six bits into S-box `i` are neighbours in `half`, from one before its nibble on.
#[inline(always)]
fn f(half: u32, first: u32, second: u32) -> u32 {
    let mut out = 0;
    for (i, bits) in (0u32..).zip(&S_BOXES) {
        let key = if i < 4 { first >> (18 - 6 * i) } else { second >> (42 - 6 * i) };
        // Rotation takes the lowest six bits of its distance alone.
        let input = (half.rotate_left(4 * i + 31) >> 26) ^ key;
        for bit in bits {
            out |= bit.table.rotate_right(input & 63) as u32 & bit.place;
        }
    }
    out
}

/// One output bit of an S-box.
#[derive(Clone, Copy)]
struct OutputBit {
    /// Bit `x + log2(place)` is the output for the input `x`.
    table: u64,
    /// Where it stands behind P.
    place: u32,
}

/// FIPS 46-3, appendix 1: 4 rows of 16; the first and last input bit choose the row.
const S: [[u64; 4]; 8] = [
    [0xE4D1_2FB8_3A6C_5907, 0x0F74_E2D1_A6CB_9538, 0x41E8_D62B_FC97_3A50, 0xFC82_4917_5B3E_A06D],
    [0xF18E_6B34_972D_C05A, 0x3D47_F28E_C01A_69B5, 0x0E7B_A4D1_58C6_932F, 0xD8A1_3F42_B67C_05E9],
    [0xA09E_63F5_1DC7_B428, 0xD709_346A_285E_CBF1, 0xD649_8F30_B12C_5AE7, 0x1AD0_6987_4FE3_B52C],
    [0x7DE3_069A_1285_BC4F, 0xD8B5_6F03_472C_1AE9, 0xA690_CB7D_F13E_5284, 0x3F06_A1D8_945B_C72E],
    [0x2C41_7AB6_853F_D0E9, 0xEB2C_47D1_50FA_3986, 0x421B_AD78_F9C5_630E, 0xB8C7_1E2D_6F09_A453],
    [0xC1AF_9268_0D34_E75B, 0xAF42_7C95_61DE_0B38, 0x9EF5_28C3_704A_1DB6, 0x432C_95FA_BE17_608D],
    [0x4B2E_F08D_3C97_5A61, 0xD0B7_491A_E35C_2F86, 0x14BD_C37E_AF68_0592, 0x6BD8_14A7_950F_E23C],
    [0xD284_6FB1_A93E_50C7, 0x1FD8_A374_C56B_0E92, 0x7B41_9CE2_06AD_F358, 0x21E7_4A8D_FC90_356B],
];

/// FIPS 46-3: behind P, bit `j` is bit `P[j - 1]` of the S-boxes' output; counted from 1, the highest first.
const P: [u32; 32] = [
    16, 7, 20, 21, 29, 12, 28, 17, 1, 15, 23, 26, 5, 18, 31, 10, 2, 8, 24, 14, 32, 27, 3, 9, 19, 13, 30, 6, 22, 11, 4,
    25,
];

#[allow(clippy::indexing_slicing, reason = "computed by the compiler")]
const S_BOXES: [[OutputBit; 4]; 8] = {
    let mut boxes = [[OutputBit { table: 0, place: 0 }; 4]; 8];
    let mut i = 0;
    while i < 32 {
        let (mut place, mut j) = (0, 0);
        while j < 32 {
            if P[j] as usize == i + 1 {
                place = 31 - j as u32;
            }
            j += 1;
        }
        let (mut table, mut x) = (0u64, 0);
        while x < 64 {
            let row = S[i / 4][((x >> 5) << 1 | (x & 1)) as usize];
            let nibble = row >> (60 - 4 * ((x >> 1) & 15));
            table |= ((nibble >> (3 - i as u64 % 4)) & 1) << x;
            x += 1;
        }
        boxes[i / 4][i % 4] = OutputBit { table: table.rotate_left(place), place: 1 << place };
        i += 1;
    }
    boxes
};

/// FIPS 46-3, PC-1: of the key's 64 bits, counted from 1, the highest first.
const PC_1_C: [u32; 28] =
    [57, 49, 41, 33, 25, 17, 9, 1, 58, 50, 42, 34, 26, 18, 10, 2, 59, 51, 43, 35, 27, 19, 11, 3, 60, 52, 44, 36];
const PC_1_D: [u32; 28] =
    [63, 55, 47, 39, 31, 23, 15, 7, 62, 54, 46, 38, 30, 22, 14, 6, 61, 53, 45, 37, 29, 21, 13, 5, 28, 20, 12, 4];

/// The bits of one half for each of two keys.
fn gather(places: &[u32; 28], first: u64, second: u64) -> u64 {
    places.iter().fold(0, |half, place| {
        let bit = |key: u64| (key >> (64 - place)) & 1;
        (half << 1) | bit(first) | (bit(second) << 32)
    })
}

fn rotate(halves: u64, places: u32) -> u64 {
    ((halves << places) | ((halves & HALVES) >> (HALF_BITS - places)) & 0x0000_0003_0000_0003) & HALVES
}

/// The bits of PC-2 that move equally far, as one: a mask of where they are, and how far left or right.
#[derive(Clone, Copy)]
struct Move {
    from: u64,
    left: u32,
    right: u32,
}

/// FIPS 46-3, PC-2, of either half; the second half's numbers less 28.
const PC_2_C: [Move; 53] =
    moves(&[14, 17, 11, 24, 1, 5, 3, 28, 15, 6, 21, 10, 23, 19, 12, 4, 26, 8, 16, 7, 27, 20, 13, 2]);
const PC_2_D: [Move; 53] =
    moves(&[13, 24, 3, 9, 19, 27, 2, 12, 23, 17, 5, 20, 16, 21, 11, 28, 6, 25, 18, 14, 22, 8, 1, 4]);

/// A move for every distance from 26 to the left to 26 to the right; most have nothing to move.
#[allow(clippy::indexing_slicing, reason = "computed by the compiler")]
const fn moves(chosen: &[u32; 24]) -> [Move; 53] {
    let mut moves = [Move { from: 0, left: 0, right: 0 }; 53];
    let mut o = 0;
    while o < 24 {
        let (from, to) = (HALF_BITS - chosen[o], 23 - o as u32);
        let distance = (26 + from - to) as usize;
        moves[distance].from |= (1 << from) | (1 << (from + 32));
        (moves[distance].left, moves[distance].right) = if to > from { (to - from, 0) } else { (0, from - to) };
        o += 1;
    }
    moves
}

#[inline(always)]
fn choose(moves: &[Move; 53], halves: u64) -> u64 {
    moves
        .iter()
        .filter(|each| each.from != 0)
        .fold(0, |chosen, each| chosen | (((halves & each.from) << each.left) >> each.right))
}

/// IP as five exchanges of bits between the halves.
fn initial_permutation(block: u64) -> (u32, u32) {
    let (mut left, mut right) = ((block >> 32) as u32, block as u32);
    exchange(&mut left, &mut right, 4, 0x0F0F_0F0F);
    exchange(&mut left, &mut right, 16, 0x0000_FFFF);
    exchange(&mut right, &mut left, 2, 0x3333_3333);
    exchange(&mut right, &mut left, 8, 0x00FF_00FF);
    exchange(&mut left, &mut right, 1, 0x5555_5555);
    (left, right)
}

/// The way back.
fn final_permutation((mut left, mut right): (u32, u32)) -> u64 {
    exchange(&mut left, &mut right, 1, 0x5555_5555);
    exchange(&mut right, &mut left, 8, 0x00FF_00FF);
    exchange(&mut right, &mut left, 2, 0x3333_3333);
    exchange(&mut left, &mut right, 16, 0x0000_FFFF);
    exchange(&mut left, &mut right, 4, 0x0F0F_0F0F);
    (u64::from(left) << 32) | u64::from(right)
}

/// Exchanges the bits of `one` that lie `places` above those of `mask` with those of `other` under it.
#[inline(always)]
fn exchange(one: &mut u32, other: &mut u32, places: u32, mask: u32) {
    let different = ((*one >> places) ^ *other) & mask;
    *other ^= different;
    *one ^= different << places;
}

#[cfg(test)]
mod tests {
    use des::{
        TdesEde2,
        cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit},
    };
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn blocks_are_those_of_the_des_crate(key in any::<[u8; 16]>(), block in any::<[u8; 8]>()) {
            let (mut clear, mut ours) = (Tzpk::zeroed(), Block::zeroed());
            clear.bytes_mut().copy_from_slice(&key);
            ours.bytes_mut().copy_from_slice(&block);
            let (schedule, theirs) = (Schedule::new(&clear), TdesEde2::new(&key.into()));

            let mut expected = block.into();
            theirs.encrypt_block(&mut expected);
            schedule.encrypt(&mut ours);
            prop_assert_eq!(ours.bytes(), &<[u8; 8]>::from(expected));
            theirs.decrypt_block(&mut expected);
            theirs.decrypt_block(&mut expected);
            schedule.decrypt(&mut ours);
            schedule.decrypt(&mut ours);
            prop_assert_eq!(ours.bytes(), &<[u8; 8]>::from(expected));
        }
    }
}
