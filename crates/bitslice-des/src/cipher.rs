//! DES in the bitsliced form (FIPS 46-3). A permutation of bits is a choice of words, so it costs nothing.

#![expect(clippy::indexing_slicing, reason = "the indexes are constants of FIPS 46-3, below the sizes of the arrays")]

use crate::{
    circuits::{s1, s2, s3, s4, s5, s6, s7, s8},
    fips_46_3::{E, IP, P, PC_1, PC_2, SHIFTS},
    word::Word,
};

/// The bits of C, and of D.
const HALF: usize = 28;

/// A DES key in the bitsliced form: C and D, each twice in a row. A rotation of C is then a view that begins later.
pub(crate) struct Key<G> {
    pub(crate) c: [G; 2 * HALF],
    pub(crate) d: [G; 2 * HALF],
}

impl<G> Key<G> {
    /// C and D after a rotation by at most 28 places.
    #[inline(always)]
    fn rotated(&self, by: usize) -> Option<[&[G; HALF]; 2]> {
        Some([self.c.get(by..)?.first_chunk()?, self.d.get(by..)?.first_chunk()?])
    }
}

/// The order of the round keys.
#[derive(Clone, Copy)]
pub(crate) enum Order {
    Encrypt,
    Decrypt,
}

/// By how many places C and D are rotated in each round.
const ROTATIONS: [usize; 16] = {
    let mut sums = [0; 16];
    let mut round = 0;
    let mut sum = 0;
    while round < 16 {
        sum += SHIFTS[round];
        sums[round] = sum;
        round += 1;
    }
    sums
};

/// The bit of the round's result that each bit of the S-boxes' output becomes: the inverse of P.
const RESULT_BIT: [usize; 32] = {
    let mut inverse = [0; 32];
    let mut bit = 0;
    while bit < 32 {
        inverse[P[bit] - 1] = bit;
        bit += 1;
    }
    inverse
};

/// Copies the key bits out of 64 rows. `copy` writes a row, by its number, to a word. The parity bits are not used.
#[inline(always)]
pub(crate) fn load_key<G>(key: &mut Key<G>, copy: impl Fn(usize, &mut G)) {
    for bit in 0..HALF {
        copy(PC_1[bit] - 1, &mut key.c[bit]);
        copy(PC_1[bit] - 1, &mut key.c[HALF + bit]);
        copy(PC_1[HALF + bit] - 1, &mut key.d[bit]);
        copy(PC_1[HALF + bit] - 1, &mut key.d[HALF + bit]);
    }
}

/// The initial permutation, from 64 rows to the two halves. `copy` writes a row, by its number, to a word.
#[inline(always)]
pub(crate) fn load_block<G>(left: &mut [G; 32], right: &mut [G; 32], copy: impl Fn(usize, &mut G)) {
    for bit in 0..32 {
        copy(IP[bit] - 1, &mut left[bit]);
        copy(IP[32 + bit] - 1, &mut right[bit]);
    }
}

/// The final permutation, from the two halves of the last round's result to 64 rows.
#[inline(always)]
pub(crate) fn store_block<G: Copy>(left: &[G; 32], right: &[G; 32], rows: &mut [G; 64]) {
    for bit in 0..32 {
        rows[IP[bit] - 1] = right[bit];
        rows[IP[32 + bit] - 1] = left[bit];
    }
}

/// The 16 rounds. The halves stay unswapped after the last: the next DES takes them with their roles exchanged.
#[inline(always)]
pub(crate) fn rounds<W: Word>(
    left: &mut [W::Groups; 32],
    right: &mut [W::Groups; 32],
    key: &Key<W::Groups>,
    order: Order,
    proof: W::Proof,
) {
    for pair in 0..8 {
        let (first, second) = match order {
            Order::Encrypt => (2 * pair, 2 * pair + 1),
            Order::Decrypt => (15 - 2 * pair, 14 - 2 * pair),
        };
        odd_round::<W>(left, right, key, first, proof);
        even_round::<W>(right, left, key, second, proof);
    }
}

/// One round: `left ^= f(right, round key)`.
///
/// A processor works ahead, so the order of the S-boxes, here and in [`even_round`], puts two others at least between an output
/// and the S-box of the next round that needs it.
#[inline(always)]
fn odd_round<W: Word>(
    left: &mut [W::Groups; 32],
    right: &[W::Groups; 32],
    key: &Key<W::Groups>,
    round: usize,
    proof: W::Proof,
) {
    let Some(key) = key.rotated(ROTATIONS[round]) else { return };
    add::<W, 3>(left, s4(input::<W, 3>(right, &key, proof)), proof);
    add::<W, 1>(left, s2(input::<W, 1>(right, &key, proof)), proof);
    add::<W, 5>(left, s6(input::<W, 5>(right, &key, proof)), proof);
    add::<W, 6>(left, s7(input::<W, 6>(right, &key, proof)), proof);
    add::<W, 4>(left, s5(input::<W, 4>(right, &key, proof)), proof);
    add::<W, 0>(left, s1(input::<W, 0>(right, &key, proof)), proof);
    add::<W, 7>(left, s8(input::<W, 7>(right, &key, proof)), proof);
    add::<W, 2>(left, s3(input::<W, 2>(right, &key, proof)), proof);
}

/// One round, as [`odd_round`].
#[inline(always)]
fn even_round<W: Word>(
    left: &mut [W::Groups; 32],
    right: &[W::Groups; 32],
    key: &Key<W::Groups>,
    round: usize,
    proof: W::Proof,
) {
    let Some(key) = key.rotated(ROTATIONS[round]) else { return };
    add::<W, 2>(left, s3(input::<W, 2>(right, &key, proof)), proof);
    add::<W, 0>(left, s1(input::<W, 0>(right, &key, proof)), proof);
    add::<W, 7>(left, s8(input::<W, 7>(right, &key, proof)), proof);
    add::<W, 4>(left, s5(input::<W, 4>(right, &key, proof)), proof);
    add::<W, 6>(left, s7(input::<W, 6>(right, &key, proof)), proof);
    add::<W, 1>(left, s2(input::<W, 1>(right, &key, proof)), proof);
    add::<W, 5>(left, s6(input::<W, 5>(right, &key, proof)), proof);
    add::<W, 3>(left, s4(input::<W, 3>(right, &key, proof)), proof);
}

/// The input of an S-box: its bits of E(right), and of the round key. The first four boxes take bits of C, the others of D.
#[inline(always)]
fn input<W: Word, const BOX: usize>(
    right: &[W::Groups; 32],
    [c, d]: &[&[W::Groups; HALF]; 2],
    proof: W::Proof,
) -> [W; 6] {
    let half = if BOX < 4 { c } else { d };
    let mut bits = [W::load(proof, &right[0]); 6];
    let mut bit = 0;
    while bit < 6 {
        let at = 6 * BOX + bit;
        bits[bit] = W::load(proof, &right[E[at] - 1]) ^ W::load(proof, &half[(PC_2[at] - 1) % HALF]);
        bit += 1;
    }
    bits
}

/// Adds the output of an S-box to the bits of `left` that P names.
#[inline(always)]
fn add<W: Word, const BOX: usize>(left: &mut [W::Groups; 32], output: [W; 4], proof: W::Proof) {
    let mut bit = 0;
    while bit < 4 {
        let target = &mut left[RESULT_BIT[4 * BOX + bit]];
        (W::load(proof, target) ^ output[bit]).store(target);
        bit += 1;
    }
}
