//! The transposition of 64 words of 64 bits: bit `j` of word `i` and bit `i` of word `j` change places, counted from the highest
//! bit. It is its own inverse.

use crate::word::SwapBits;

/// Transposes each group of 64 bits by itself, by swaps of blocks of 32, 16, 8, 4, 2 and 1 bits (H. Warren, *Hacker's Delight*,
/// 7-3). Three steps touch the same eight words, so they are done together, while these words are in registers.
#[inline(always)]
pub(crate) fn transpose<P: Copy, G: SwapBits<P>>(rows: &mut [G; 64], proof: P) {
    let (strided, _) = rows.as_chunks_mut::<8>();
    if let [a, b, c, d, e, f, g, h] = strided {
        for (((((((a, b), c), d), e), f), g), h) in a.iter_mut().zip(b).zip(c).zip(d).zip(e).zip(f).zip(g).zip(h) {
            let words = [a, b, c, d, e, f, g, h];
            eight::<P, G, 32, 16, 8>(
                words,
                [0x0000_0000_FFFF_FFFF, 0x0000_FFFF_0000_FFFF, 0x00FF_00FF_00FF_00FF],
                proof,
            );
        }
    }
    let (consecutive, _) = rows.as_chunks_mut::<8>();
    for words in consecutive {
        let words = words.each_mut();
        eight::<P, G, 4, 2, 1>(words, [0x0F0F_0F0F_0F0F_0F0F, 0x3333_3333_3333_3333, 0x5555_5555_5555_5555], proof);
    }
}

/// Three steps on eight words. The words of the first step are four apart, of the second two, of the third one.
#[inline(always)]
fn eight<P: Copy, G: SwapBits<P>, const FIRST: i32, const SECOND: i32, const THIRD: i32>(
    [a, b, c, d, e, f, g, h]: [&mut G; 8],
    [first, second, third]: [u64; 3],
    proof: P,
) {
    for (upper, lower) in [(&mut *a, &mut *e), (&mut *b, &mut *f), (&mut *c, &mut *g), (&mut *d, &mut *h)] {
        G::swap_bits::<FIRST>(lower, upper, first, proof);
    }
    for (upper, lower) in [(&mut *a, &mut *c), (&mut *b, &mut *d), (&mut *e, &mut *g), (&mut *f, &mut *h)] {
        G::swap_bits::<SECOND>(lower, upper, second, proof);
    }
    for (upper, lower) in [(a, b), (c, d), (e, f), (g, h)] {
        G::swap_bits::<THIRD>(lower, upper, third, proof);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::word::{Four, One};

    fn rows() -> [u64; 64] {
        std::array::from_fn(|row| (row as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    fn bit(word: u64, at: usize) -> u64 {
        (word >> (63 - at)) & 1
    }

    #[test]
    fn each_bit_changes_places_with_its_mirror() {
        let mut words = rows().map(|row| One([row]));
        transpose(&mut words, ());
        for (i, row) in rows().into_iter().enumerate() {
            for (j, One([word])) in words.into_iter().enumerate() {
                assert_eq!(bit(row, j), bit(word, i), "{i}, {j}");
            }
        }
        transpose(&mut words, ());
        assert_eq!(words.map(|One([word])| word), rows(), "there and back");
    }

    #[test]
    fn four_groups_are_transposed_as_one_is() {
        let start = rows().map(|row| Four([row, !row, row.rotate_left(7), row.swap_bytes()]));
        let mut portable = start;
        transpose(&mut portable, ());
        for group in 0..4 {
            let mut one = start.map(|Four(groups)| One([groups[group]]));
            transpose(&mut one, ());
            assert_eq!(portable.map(|Four(groups)| groups[group]), one.map(|One([word])| word));
        }
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = crate::word::avx2::Avx2::detect() {
            let mut wide = start;
            transpose(&mut wide, avx2);
            assert_eq!(wide.map(|Four(groups)| groups), portable.map(|Four(groups)| groups));
        }
    }
}
