//! A word of 256 bits.

#![expect(unsafe_code, reason = "instructions of AVX2, which only a `Avx2` allows")]

use std::{
    arch::x86_64::{
        __m256i, _mm256_and_si256, _mm256_andnot_si256, _mm256_or_si256, _mm256_set1_epi64x, _mm256_slli_epi64,
        _mm256_srli_epi64, _mm256_xor_si256,
    },
    mem::transmute,
    ops::{BitAnd, BitOr, BitXor, Not},
};

use super::{Four, SwapBits, Word};

/// Exists only where the processor has AVX2 and BMI1.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("bmi1")).then_some(Self(()))
    }

    /// Runs `work` as code that is compiled for AVX2 and BMI1. The functions that `work` calls have to be `inline(always)`.
    #[inline(always)]
    pub(crate) fn run<I: Inlined>(self, work: I) {
        #[target_feature(enable = "avx2,bmi1")]
        fn compiled_for_avx2<I: Inlined>(work: I) {
            work.call();
        }
        // SAFETY: an `Avx2` exists, so the processor has both.
        unsafe { compiled_for_avx2(work) }
    }
}

/// Work whose code is copied into its caller, and compiled for the processor of the caller.
pub(crate) trait Inlined {
    fn call(self);
}

/// 256 bits in a register. A value is made only by [`Word::load`], whose proof is an [`Avx2`], and from other values: so every
/// operation of a value runs on a processor that has AVX2.
#[derive(Clone, Copy)]
pub(crate) struct Wide(__m256i);

impl BitAnd for Wide {
    type Output = Self;

    #[inline(always)]
    fn bitand(self, other: Self) -> Self {
        // SAFETY: a `Wide` exists.
        Self(unsafe { _mm256_and_si256(self.0, other.0) })
    }
}

impl BitOr for Wide {
    type Output = Self;

    #[inline(always)]
    fn bitor(self, other: Self) -> Self {
        // SAFETY: a `Wide` exists.
        Self(unsafe { _mm256_or_si256(self.0, other.0) })
    }
}

impl BitXor for Wide {
    type Output = Self;

    #[inline(always)]
    fn bitxor(self, other: Self) -> Self {
        // SAFETY: a `Wide` exists.
        Self(unsafe { _mm256_xor_si256(self.0, other.0) })
    }
}

impl Not for Wide {
    type Output = Self;

    #[inline(always)]
    fn not(self) -> Self {
        // SAFETY: a `Wide` exists.
        Self(unsafe { _mm256_xor_si256(self.0, _mm256_set1_epi64x(-1)) })
    }
}

impl Word for Wide {
    type Groups = Four;
    type Proof = Avx2;

    #[inline(always)]
    fn load(_proof: Avx2, Four(groups): &Four) -> Self {
        // SAFETY: both types are 32 bytes without invariants.
        Self(unsafe { transmute::<[u64; 4], __m256i>(*groups) })
    }

    #[inline(always)]
    fn store(self, groups: &mut Four) {
        // SAFETY: both types are 32 bytes without invariants.
        groups.0 = unsafe { transmute::<__m256i, [u64; 4]>(self.0) };
    }

    #[inline(always)]
    fn and_not(self, other: Self) -> Self {
        // SAFETY: a `Wide` exists.
        Self(unsafe { _mm256_andnot_si256(other.0, self.0) })
    }
}

impl SwapBits<Avx2> for Four {
    #[inline(always)]
    fn swap_bits<const BY: i32>(low: &mut Self, high: &mut Self, mask: u64, proof: Avx2) {
        let (below, above) = (Wide::load(proof, low), Wide::load(proof, high));
        // SAFETY: an `Avx2` exists.
        let (shifted, mask) =
            unsafe { (Wide(_mm256_srli_epi64::<BY>(below.0)), Wide(_mm256_set1_epi64x(mask.cast_signed()))) };
        let differ = (shifted ^ above) & mask;
        (above ^ differ).store(high);
        // SAFETY: an `Avx2` exists.
        (below ^ Wide(unsafe { _mm256_slli_epi64::<BY>(differ.0) })).store(low);
    }
}
