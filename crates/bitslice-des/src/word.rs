//! A word of the bitsliced form: one bit of each of several blocks.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;

use std::ops::{BitAnd, BitOr, BitXor, Not};

/// One bit of each of several blocks, in a register. All operations are bitwise: no block affects another, and the time does
/// not depend on a bit.
pub(crate) trait Word:
    Copy + BitAnd<Output = Self> + BitOr<Output = Self> + BitXor<Output = Self> + Not<Output = Self>
{
    /// The word in memory: groups of 64 bits.
    type Groups: Copy + Default + AsRef<[u64]> + AsMut<[u64]>;
    /// Shows that the processor has the instructions.
    type Proof: Copy;

    fn load(proof: Self::Proof, groups: &Self::Groups) -> Self;

    fn store(self, groups: &mut Self::Groups);

    /// `self & !other`, one instruction on processors that have it.
    fn and_not(self, other: Self) -> Self;
}

/// Words in memory whose bits can be exchanged, with the instructions that `Proof` allows.
pub(crate) trait SwapBits<Proof> {
    /// Swaps, in each group of 64 bits, the bits of `low` that `mask` names with the bits of `high` that are `BY` places above.
    fn swap_bits<const BY: i32>(low: &mut Self, high: &mut Self, mask: u64, proof: Proof);
}

/// One group of 64 bits in memory.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub(crate) struct One(pub(crate) [u64; 1]);

impl AsRef<[u64]> for One {
    fn as_ref(&self) -> &[u64] {
        &self.0
    }
}

impl AsMut<[u64]> for One {
    fn as_mut(&mut self) -> &mut [u64] {
        &mut self.0
    }
}

/// Four groups of 64 bits in memory.
#[derive(Clone, Copy, Default)]
#[repr(C, align(32))]
pub(crate) struct Four(pub(crate) [u64; 4]);

impl AsRef<[u64]> for Four {
    fn as_ref(&self) -> &[u64] {
        &self.0
    }
}

impl AsMut<[u64]> for Four {
    fn as_mut(&mut self) -> &mut [u64] {
        &mut self.0
    }
}

impl Word for u64 {
    type Groups = One;
    type Proof = ();

    #[inline(always)]
    fn load((): (), One([group]): &One) -> Self {
        *group
    }

    #[inline(always)]
    fn store(self, groups: &mut One) {
        groups.0 = [self];
    }

    #[inline(always)]
    fn and_not(self, other: Self) -> Self {
        self & !other
    }
}

impl SwapBits<()> for One {
    #[inline(always)]
    fn swap_bits<const BY: i32>(One([low]): &mut Self, One([high]): &mut Self, mask: u64, (): ()) {
        swap_bits::<BY>(low, high, mask);
    }
}

impl SwapBits<()> for Four {
    #[inline(always)]
    fn swap_bits<const BY: i32>(Self(low): &mut Self, Self(high): &mut Self, mask: u64, (): ()) {
        low.iter_mut().zip(high).for_each(|(low, high)| swap_bits::<BY>(low, high, mask));
    }
}

#[inline(always)]
fn swap_bits<const BY: i32>(low: &mut u64, high: &mut u64, mask: u64) {
    let differ = ((*low >> BY) ^ *high) & mask;
    *high ^= differ;
    *low ^= differ << BY;
}
