//! The types of clear values: filled in place, wiped on drop.
//!
//! No type here has `Debug`, `Display`, `Clone`, `PartialEq` or serde, and no other crate can name one.

use std::{cell::RefCell, hint::black_box};

use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use zeroize::{DefaultIsZeroes, Zeroize};

/// The most digits a PIN has (ISO 9564-1, 8.1).
pub(crate) const PIN_DIGITS_MAX: usize = 12;
/// The fewest digits a PIN has (ISO 9564-1, 8.1).
pub(crate) const PIN_DIGITS_MIN: usize = 4;

/// Bytes of stack that are wiped after an operation. Measured use: 3.2 KiB, and 16 KiB without optimisation. The test
/// `the_stack_of_every_operation_is_scrubbed_to_its_end` checks that this is enough.
const STACK_BYTES_SCRUBBED: usize = if cfg!(debug_assertions) { 32 * 1024 } else { 4 * 1024 };

/// `N` clear bytes.
pub(crate) struct Clear<const N: usize>([u8; N]);

/// A double-length 3DES key, K1 ‖ K2.
pub(crate) type Tzpk = Clear<16>;
/// A clear PIN block of 8 bytes: ISO 9564 formats 0, 1 and 3.
pub(crate) type Block = Clear<8>;
/// A clear block of 16 bytes: the fields of ISO 9564 format 4.
pub(crate) type WideBlock = Clear<16>;

impl<const N: usize> Clear<N> {
    pub(crate) const ZEROED: Self = Self([0; N]);

    /// Zeros, to be filled in place.
    pub(crate) fn zeroed() -> Self {
        Self::ZEROED
    }

    /// A copy of these bytes, filled in place.
    pub(crate) fn boxed(bytes: &[u8; N]) -> Box<Self> {
        let mut boxed = Box::new(Self::ZEROED);
        boxed.0.copy_from_slice(bytes);
        boxed
    }

    pub(crate) fn bytes(&self) -> &[u8; N] {
        &self.0
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8; N] {
        &mut self.0
    }
}

impl Clear<8> {
    /// The block as 16 nibbles, the first nibble in the highest bits.
    pub(crate) fn nibbles(&self) -> u64 {
        u64::from_be_bytes(self.0)
    }

    pub(crate) fn set_nibbles(&mut self, nibbles: u64) {
        self.0 = nibbles.to_be_bytes();
    }
}

impl Clear<16> {
    /// The field as 32 nibbles, the first nibble in the highest bits.
    pub(crate) fn nibbles(&self) -> u128 {
        u128::from_be_bytes(self.0)
    }

    pub(crate) fn set_nibbles(&mut self, nibbles: u128) {
        self.0 = nibbles.to_be_bytes();
    }
}

impl Clear<32> {
    /// The two halves, each big-endian.
    pub(crate) fn halves(&self) -> (u128, u128) {
        let (halves, _) = self.0.as_chunks();
        match halves {
            [first, second] => (u128::from_be_bytes(*first), u128::from_be_bytes(*second)),
            _ => (0, 0),
        }
    }

    pub(crate) fn set_halves(&mut self, first: u128, second: u128) {
        let (halves, _) = self.0.as_chunks_mut();
        halves.iter_mut().zip([first, second]).for_each(|(place, half)| *place = half.to_be_bytes());
    }
}

impl<const N: usize> Drop for Clear<N> {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// Clear bytes of a length known at run time, such as a key from a key block.
pub(crate) struct ClearBytes(Box<[u8]>);

impl ClearBytes {
    /// Zeros, to be filled in place.
    pub(crate) fn zeroed(length: usize) -> Self {
        Self(vec![0; length].into())
    }

    pub(crate) fn copied(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// Copies the bytes and wipes the vector: converting a vector with spare capacity into a box would leave a copy behind.
    pub(crate) fn taken(mut bytes: Vec<u8>) -> Self {
        let kept = Self::copied(&bytes);
        wipe(&mut bytes);
        kept
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for ClearBytes {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// A clear PIN: 4 to 12 digits, one in each nibble, from the highest nibble down. The nibbles after the PIN are zero.
///
/// Every test of a PIN is arithmetic on all digits at once: no branch and no memory access depends on a digit.
pub(crate) struct Pin {
    digits: u64,
    length: u8,
}

/// The lowest bit of every nibble.
const ONES: u64 = 0x1111_1111_1111_1111;

impl Pin {
    /// `0000`, to be filled in place.
    pub(crate) fn zeroed() -> Self {
        Self { digits: 0, length: 4 }
    }

    /// Takes the first `length` nibbles as digits, and returns whether they form a PIN. The work is the same for every input,
    /// and the result can always be encoded.
    pub(crate) fn fill(&mut self, length: u8, nibbles: u64) -> Choice {
        let (least, most) = (PIN_DIGITS_MIN as u8, PIN_DIGITS_MAX as u8);
        let good_length = u8::from(length >= least) & u8::from(length <= most);
        self.length = u8::conditional_select(&least, &length, Choice::from(good_length));
        self.digits = nibbles & self.places();
        // A nibble is above 9 where bit 8 is set together with bit 4 or bit 2.
        let above_nine = (self.digits >> 3) & ((self.digits >> 2) | (self.digits >> 1)) & ONES;
        Choice::from(good_length & u8::from(above_nine == 0))
    }

    pub(crate) fn length(&self) -> u8 {
        self.length
    }

    /// The digits, from the highest nibble down.
    pub(crate) fn digits(&self) -> u64 {
        self.digits
    }

    /// A mask of the nibbles that hold the PIN.
    pub(crate) fn places(&self) -> u64 {
        !(u64::MAX >> (4 * u32::from(self.length)))
    }

    /// Whether each digit is the digit before plus `step`.
    pub(crate) fn climbs_by(&self, step: u8) -> Choice {
        let pairs = self.places() << 4;
        let climbed = self.digits.wrapping_add(ONES.wrapping_mul(step.into()));
        Choice::from(u8::from((climbed ^ (self.digits << 4)) & pairs == 0))
    }

    /// Whether each digit is the digit before minus one.
    pub(crate) fn falls_by_one(&self) -> Choice {
        let pairs = self.places() << 4;
        let climbed = (self.digits << 4).wrapping_add(ONES);
        Choice::from(u8::from((climbed ^ self.digits) & pairs == 0))
    }

    fn wipe(&mut self) {
        wipe(std::slice::from_mut(&mut self.digits));
        wipe(std::slice::from_mut(&mut self.length));
    }

    /// Compares two PINs in constant time.
    pub(crate) fn same_as(&self, other: &Self) -> Choice {
        self.digits.ct_eq(&other.digits) & self.length.ct_eq(&other.length)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.wipe();
    }
}

/// The clear values of one operation: one workspace for each thread, at a fixed address, wiped after each operation.
pub(crate) struct Workspace {
    pub(crate) tzpk: Tzpk,
    pub(crate) block: Block,
    pub(crate) wide: WideBlock,
    pub(crate) pin: Pin,
}

impl Workspace {
    fn new() -> Self {
        Self { tzpk: Clear::zeroed(), block: Clear::zeroed(), wide: Clear::zeroed(), pin: Pin::zeroed() }
    }

    fn wipe(&mut self) {
        wipe(&mut self.tzpk.0);
        wipe(&mut self.block.0);
        wipe(&mut self.wide.0);
        self.pin.wipe();
    }
}

thread_local! {
    static WORKSPACE: RefCell<Box<Workspace>> = RefCell::new(Box::new(Workspace::new()));
}

/// Runs `work` in this thread's workspace, then wipes the workspace and the stack that `work` used.
pub(crate) fn in_workspace<T>(work: impl FnOnce(&mut Workspace) -> T) -> T {
    /// A separate stack frame, so that the caller's scrub reaches all of it.
    #[inline(never)]
    fn in_a_frame_below<T>(workspace: &mut Workspace, work: impl FnOnce(&mut Workspace) -> T) -> T {
        work(workspace)
    }
    WORKSPACE.with(|workspace| {
        let done = match workspace.try_borrow_mut() {
            Ok(mut workspace) => {
                let done = in_a_frame_below(&mut workspace, work);
                workspace.wipe();
                done
            }
            // Operations do not nest. A nested operation would get a fresh workspace.
            Err(_) => in_a_frame_below(&mut Workspace::new(), work),
        };
        scrub_stack();
        done
    })
}

/// Overwrites the stack below the caller, where the frames of an operation were: moves and spilled registers leave copies there
/// that no `Drop` reaches.
#[inline(never)]
pub(crate) fn scrub_stack() {
    // Words of eight bytes, because the compiler may not merge volatile writes.
    let mut below = [0u64; STACK_BYTES_SCRUBBED / 8];
    wipe(&mut below);
    #[cfg(test)]
    SCRUBBED_TO.set(std::ptr::from_ref(&below).addr());
    black_box(&mut below);
}

#[cfg(test)]
thread_local! {
    /// The lowest address of the last scrub.
    pub(crate) static SCRUBBED_TO: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Writes zeros that the compiler may not omit.
#[cfg(not(feature = "unwiped-for-test"))]
fn wipe<T: DefaultIsZeroes>(values: &mut [T]) {
    values.zeroize();
}

/// Wipes nothing, in a build for one test: the test proves that its search of the process's memory finds clear values.
#[cfg(feature = "unwiped-for-test")]
fn wipe<T: DefaultIsZeroes>(values: &mut [T]) {
    black_box(values);
    let _ = <[T] as Zeroize>::zeroize;
}

#[cfg(all(test, not(feature = "unwiped-for-test")))]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_wiped_after_an_operation() {
        in_workspace(|workspace| {
            workspace.tzpk.bytes_mut().fill(1);
            workspace.block.bytes_mut().fill(2);
            workspace.wide.bytes_mut().fill(3);
            assert!(bool::from(workspace.pin.fill(12, 0x1234_5678_9012_0000)));
        });
        in_workspace(|Workspace { tzpk, block, wide, pin }| {
            assert!(tzpk.bytes() == &[0; 16] && block.bytes() == &[0; 8] && wide.bytes() == &[0; 16]);
            assert_eq!((pin.digits(), pin.length()), (0, 0));
        });
    }
}
