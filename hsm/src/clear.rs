//! Everything clear: filled in place, never returned filled, wiped on drop.
//!
//! Nothing here has `Debug`, `Display`, `Clone`, `PartialEq` or serde, and no other crate can name any of it.

use std::hint::black_box;

use subtle::{Choice, ConditionallySelectable, ConstantTimeEq, ConstantTimeLess};
use zeroize::Zeroize;

/// The most digits a PIN has (ISO 9564-1, 8.1).
pub(crate) const PIN_DIGITS_MAX: usize = 12;
/// The fewest digits a PIN has (ISO 9564-1, 8.1).
pub(crate) const PIN_DIGITS_MIN: usize = 4;

/// How much of the stack an operation may have used, in bytes, with some to spare.
const STACK_BYTES_SCRUBBED: usize = 4 * 1024;

/// `N` clear bytes.
pub(crate) struct Clear<const N: usize>([u8; N]);

/// A double-length 3DES key, K1 ‖ K2.
pub(crate) type Tzpk = Clear<16>;
/// A clear PIN block of 8 bytes: ISO 9564 formats 0, 1 and 3.
pub(crate) type Block = Clear<8>;
/// A clear block of 16 bytes: the fields of ISO 9564 format 4.
pub(crate) type WideBlock = Clear<16>;

impl<const N: usize> Clear<N> {
    /// All zeros, to be filled in place.
    pub(crate) fn zeroed() -> Self {
        Self([0; N])
    }

    pub(crate) fn bytes(&self) -> &[u8; N] {
        &self.0
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8; N] {
        &mut self.0
    }

    /// The nibble at `index`, counted from the left; zero past the end.
    pub(crate) fn nibble(&self, index: usize) -> u8 {
        let byte = self.0.get(index / 2).copied().unwrap_or_default();
        if index.is_multiple_of(2) { byte >> 4 } else { byte & 0x0F }
    }

    /// Writes the nibble at `index`, counted from the left; past the end nothing is written.
    pub(crate) fn set_nibble(&mut self, index: usize, nibble: u8) {
        let Some(byte) = self.0.get_mut(index / 2) else { return };
        *byte = if index.is_multiple_of(2) { (*byte & 0x0F) | (nibble << 4) } else { (*byte & 0xF0) | (nibble & 0x0F) };
    }
}

impl<const N: usize> Drop for Clear<N> {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// A clear PIN: 4 to 12 digits. What stands behind its length is zero.
pub(crate) struct Pin {
    digits: [u8; PIN_DIGITS_MAX],
    length: u8,
}

impl Pin {
    /// `0000`, to be filled in place.
    pub(crate) fn zeroed() -> Self {
        Self { digits: [0; PIN_DIGITS_MAX], length: 4 }
    }

    /// Takes `length` and, of the nibbles `nibble` gives, that many as digits; tells whether all of them are what a
    /// PIN is made of. Does the same work whatever it finds, and leaves a PIN that can be encoded.
    pub(crate) fn fill(&mut self, length: u8, nibble: impl Fn(usize) -> u8) -> Choice {
        let (least, most) = (PIN_DIGITS_MIN as u8, PIN_DIGITS_MAX as u8);
        let mut good = !length.ct_lt(&least) & !most.ct_lt(&length);
        self.length = u8::conditional_select(&least, &length, good);
        for (index, digit) in self.digits.iter_mut().enumerate() {
            let found = nibble(index);
            let counts = (index as u8).ct_lt(&self.length);
            good &= !counts | found.ct_lt(&10);
            *digit = u8::conditional_select(&0, &found, counts);
        }
        good
    }

    pub(crate) fn length(&self) -> u8 {
        self.length
    }

    /// All twelve places.
    pub(crate) fn digits(&self) -> &[u8; PIN_DIGITS_MAX] {
        &self.digits
    }

    /// Whether two PINs are the same, in constant time.
    pub(crate) fn same_as(&self, other: &Self) -> Choice {
        self.digits.ct_eq(&other.digits) & self.length.ct_eq(&other.length)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        wipe(&mut self.digits);
        wipe(std::slice::from_mut(&mut self.length));
    }
}

/// Overwrites the stack below the caller, where the frames of an operation lay: moves and spilled registers leave
/// copies there that no `Drop` can reach.
#[inline(never)]
pub(crate) fn scrub_stack() {
    let mut below = [0u8; STACK_BYTES_SCRUBBED];
    wipe(&mut below);
    black_box(&mut below);
}

/// Writes zeros that the compiler may not leave out.
#[cfg(not(feature = "unwiped-for-test"))]
fn wipe(bytes: &mut [u8]) {
    bytes.zeroize();
}

/// In a build for one test alone nothing is wiped, so that the search of the process's memory is known to find.
#[cfg(feature = "unwiped-for-test")]
fn wipe(bytes: &mut [u8]) {
    black_box(bytes);
    let _ = <[u8] as Zeroize>::zeroize;
}
