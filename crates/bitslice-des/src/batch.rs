//! Blocks with their keys, and the transposition to and from the bitsliced form.

use std::fmt;

use zeroize::optimization_barrier;

#[cfg(target_arch = "x86_64")]
use crate::word::avx2::{Avx2, Inlined, Wide};
use crate::{
    cipher::{Key, Order, load_block, load_key, rounds, store_block},
    transpose::transpose,
    word::{Four, One, SwapBits, Word},
};

/// The blocks of one group: the bits of a machine word.
const GROUP: usize = 64;

/// Up to 256 blocks, each with its own key of double or triple length. The keys are wiped once the blocks are processed, the
/// blocks after use, and both on drop.
pub struct Batch {
    // Boxed: a moved value would leave a copy of its keys behind.
    memory: Box<Memory>,
    len: usize,
    keys: Keys,
}

/// The processed blocks of a batch, in the order in which they were added. Its drop wipes them.
pub struct Blocks<'a>(&'a mut Batch);

/// The batch has [`Batch::BLOCKS_MAX`] blocks already: encrypt or decrypt them, and clear the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the batch has {} blocks already: process them before you add more", Batch::BLOCKS_MAX)
    }
}

impl std::error::Error for Full {}

/// Which keys of three-key 3DES differ in the batch.
#[derive(Clone, Copy, PartialEq)]
enum Keys {
    /// K3 = K1 in every entry.
    Double,
    Triple,
}

struct Memory {
    /// K1, K2, K3 and the block of each entry.
    entries: [Four; Batch::BLOCKS_MAX],
    sliced: Width,
}

/// The bitsliced form, in the words of the processor.
enum Width {
    #[cfg(target_arch = "x86_64")]
    Wide(Box<Sliced<Four>>, Avx2),
    /// One group after the other.
    Portable(Box<Sliced<One>>),
}

/// Keys and blocks in the bitsliced form.
struct Sliced<G> {
    keys: [Key<G>; 3],
    left: [G; 32],
    right: [G; 32],
    rows: [G; 64],
}

impl Batch {
    /// The most blocks of one batch.
    pub const BLOCKS_MAX: usize = 4 * GROUP;

    /// An empty batch.
    pub fn new() -> Self {
        Self::of_width(Width::new())
    }

    fn of_width(sliced: Width) -> Self {
        let memory = Memory { entries: [Four::default(); Self::BLOCKS_MAX], sliced };
        Self { memory: Box::new(memory), len: 0, keys: Keys::Double }
    }

    /// The number of blocks.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the batch has no block.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a block under a double-length key, K1 ‖ K2.
    ///
    /// # Errors
    /// [`Full`] after [`Batch::BLOCKS_MAX`] blocks.
    #[inline]
    pub fn push_double(&mut self, key: &[u8; 16], block: &[u8; 8]) -> Result<(), Full> {
        let [k1, k2] = words(key);
        self.push([k1, k2, k1, u64::from_be_bytes(*block)])
    }

    /// Adds a block under a triple-length key, K1 ‖ K2 ‖ K3.
    ///
    /// # Errors
    /// [`Full`] after [`Batch::BLOCKS_MAX`] blocks.
    #[inline]
    pub fn push_triple(&mut self, key: &[u8; 24], block: &[u8; 8]) -> Result<(), Full> {
        let [k1, k2, k3] = words(key);
        self.push([k1, k2, k3, u64::from_be_bytes(*block)])?;
        self.keys = Keys::Triple;
        Ok(())
    }

    #[inline]
    fn push(&mut self, entry: [u64; 4]) -> Result<(), Full> {
        *self.memory.entries.get_mut(self.len).ok_or(Full)? = Four(entry);
        self.len += 1;
        Ok(())
    }

    /// Encrypts all blocks and wipes the keys. The drop of the result empties the batch.
    pub fn encrypt(&mut self) -> Blocks<'_> {
        self.run(Direction::Encrypt);
        Blocks(self)
    }

    /// Decrypts all blocks and wipes the keys. The drop of the result empties the batch.
    pub fn decrypt(&mut self) -> Blocks<'_> {
        self.run(Direction::Decrypt);
        Blocks(self)
    }

    /// Wipes the entries and empties the batch.
    fn clear(&mut self) {
        if let Some(used) = self.memory.entries.get_mut(..self.len.next_multiple_of(GROUP)) {
            used.fill(Four::default());
            optimization_barrier(used);
        }
        self.len = 0;
        self.keys = Keys::Double;
    }

    fn run(&mut self, direction: Direction) {
        let (groups, keys) = (self.len.div_ceil(GROUP), self.keys);
        let Memory { entries, sliced } = &mut *self.memory;
        let Some(entries) = entries.as_chunks_mut::<GROUP>().0.get_mut(..groups) else { return };
        match sliced {
            #[cfg(target_arch = "x86_64")]
            Width::Wide(sliced, avx2) => {
                let (proof, slicing) = (*avx2, *avx2);
                avx2.run(Work::<Wide, _> { entries, sliced, keys, direction, proof, slicing });
            }
            Width::Portable(sliced) => {
                for entries in entries.chunks_mut(1) {
                    work::<u64, _>(Work { entries, sliced: &mut *sliced, keys, direction, proof: (), slicing: () });
                }
            }
        }
        sliced.wipe(keys);
        // `work` has overwritten the keys of the entries.
        optimization_barrier(entries);
    }
}

impl Width {
    fn new() -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(avx2) = Avx2::detect() {
            return Self::Wide(Box::new(Sliced::zeroed()), avx2);
        }
        Self::Portable(Box::new(Sliced::zeroed()))
    }

    /// Overwrites keys and blocks.
    fn wipe(&mut self, used: Keys) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Wide(sliced, _) => sliced.wipe(used),
            Self::Portable(sliced) => sliced.wipe(used),
        }
    }
}

/// The big-endian words of a key.
fn words<const BYTES: usize, const WORDS: usize>(key: &[u8; BYTES]) -> [u64; WORDS] {
    let mut words = [0; WORDS];
    words.iter_mut().zip(key.as_chunks().0).for_each(|(word, bytes)| *word = u64::from_be_bytes(*bytes));
    words
}

impl Blocks<'_> {
    /// Copies the block that was added as number `at`, from 0. Returns whether there is such a block.
    #[inline]
    pub fn copy(&self, at: usize, block: &mut [u8; 8]) -> bool {
        let found = self.0.memory.entries.get(..self.0.len).and_then(|entries| entries.get(at));
        if let Some(Four([_, _, _, word])) = found {
            *block = word.to_be_bytes();
        }
        found.is_some()
    }
}

impl Drop for Blocks<'_> {
    fn drop(&mut self) {
        self.0.clear();
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.memory.sliced.wipe(Keys::Triple);
        self.len = Self::BLOCKS_MAX;
        self.clear();
    }
}

impl<G: Default + Copy> Sliced<G> {
    fn zeroed() -> Self {
        let key = || Key { c: [G::default(); _], d: [G::default(); _] };
        Self {
            keys: [key(), key(), key()],
            left: [G::default(); 32],
            right: [G::default(); 32],
            rows: [G::default(); 64],
        }
    }

    /// Overwrites keys and blocks. The barrier keeps the compiler from leaving the write out.
    fn wipe(&mut self, used: Keys) {
        let Self { keys: [k1, k2, k3], left, right, rows } = self;
        for Key { c, d } in [k1, k2].into_iter().chain((used == Keys::Triple).then_some(k3)) {
            c.fill(G::default());
            d.fill(G::default());
        }
        left.fill(G::default());
        right.fill(G::default());
        rows.fill(G::default());
        optimization_barrier(self);
    }
}

#[derive(Clone, Copy)]
enum Direction {
    Encrypt,
    Decrypt,
}

/// The blocks of one to four groups, and the memory to process them.
struct Work<'a, W: Word, S> {
    entries: &'a mut [[Four; GROUP]],
    sliced: &'a mut Sliced<W::Groups>,
    keys: Keys,
    direction: Direction,
    proof: W::Proof,
    slicing: S,
}

#[cfg(target_arch = "x86_64")]
impl<W: Word, S: Copy> Inlined for Work<'_, W, S>
where
    Four: SwapBits<S>,
    W::Groups: SwapBits<W::Proof>,
{
    #[inline(always)]
    fn call(self) {
        work(self);
    }
}

#[inline(always)]
fn work<W: Word, S: Copy>(work: Work<'_, W, S>)
where
    Four: SwapBits<S>,
    W::Groups: SwapBits<W::Proof>,
{
    let Work { entries, sliced, keys, direction, proof, slicing } = work;
    let Sliced { keys: [k1, k2, k3], left, right, rows: out } = sliced;
    for (group, rows) in entries.iter_mut().enumerate() {
        transpose::<S, Four>(rows, slicing);
        copy_columns(rows, group, keys, [&mut *k1, &mut *k2, &mut *k3], (&mut *left, &mut *right));
    }
    let k3 = if keys == Keys::Double { &*k1 } else { &*k3 };
    let steps = match direction {
        Direction::Encrypt => [(&*k1, Order::Encrypt), (&*k2, Order::Decrypt), (k3, Order::Encrypt)],
        Direction::Decrypt => [(k3, Order::Decrypt), (&*k2, Order::Encrypt), (&*k1, Order::Decrypt)],
    };
    three_times::<W>(left, right, steps, proof);
    store_block(left, right, out);
    transpose::<W::Proof, W::Groups>(out, proof);
    for (group, entries) in entries.iter_mut().enumerate() {
        for (entry, row) in entries.iter_mut().zip(&*out) {
            if let Some(word) = row.as_ref().get(group) {
                *entry = Four([0, 0, 0, *word]);
            }
        }
    }
}

/// Copies the keys and blocks of one group, transposed, to their places.
#[inline(always)]
fn copy_columns<G: AsMut<[u64]>>(
    rows: &[Four; 64],
    group: usize,
    keys: Keys,
    [k1, k2, k3]: [&mut Key<G>; 3],
    (left, right): (&mut [G; 32], &mut [G; 32]),
) {
    fn column<G: AsMut<[u64]>>(rows: &[Four; 64], number: usize, group: usize) -> impl Fn(usize, &mut G) {
        move |row, target| {
            let word = rows.get(row).and_then(|Four(columns)| columns.get(number));
            if let (Some(word), Some(target)) = (word, target.as_mut().get_mut(group)) {
                *target = *word;
            }
        }
    }
    load_key(k1, column(rows, 0, group));
    load_key(k2, column(rows, 1, group));
    if keys == Keys::Triple {
        load_key(k3, column(rows, 2, group));
    }
    load_block(left, right, column(rows, 3, group));
}

/// Three times DES. The halves change their roles between two of them.
#[inline(always)]
fn three_times<W: Word>(
    left: &mut [W::Groups; 32],
    right: &mut [W::Groups; 32],
    steps: [(&Key<W::Groups>, Order); 3],
    proof: W::Proof,
) {
    let mut halves = (left, right);
    for (key, order) in steps {
        rounds::<W>(halves.0, halves.1, key, order, proof);
        halves = (halves.1, halves.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn portable() -> Width {
        Width::Portable(Box::new(Sliced::zeroed()))
    }

    fn filled(count: usize, sliced: Width) -> Batch {
        let mut batch = Batch::of_width(sliced);
        for number in 0..count {
            let word = (number as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            batch.push([word, !word, word.rotate_left(9), word.swap_bytes()]).unwrap();
        }
        batch.keys = Keys::Triple;
        batch
    }

    #[test]
    fn the_portable_form_agrees_with_that_of_the_processor() {
        let blocks = |batch: &Batch| batch.memory.entries.map(|Four([_, _, _, block])| block);
        for count in [1, 64, 65, 130, 256] {
            for direction in [Direction::Encrypt, Direction::Decrypt] {
                let mut one_by_one = filled(count, portable());
                let mut own = filled(count, Width::new());
                one_by_one.run(direction);
                own.run(direction);
                assert_eq!(blocks(&one_by_one)[..count], blocks(&own)[..count], "{count}");
            }
        }
    }

    #[test]
    fn keys_are_wiped_after_the_work_and_blocks_after_their_use() {
        for (count, width) in [(1, Width::new()), (256, Width::new()), (256, portable())] {
            let mut batch = filled(count, width);
            let processed = batch.decrypt();
            let Memory { entries, sliced } = &*processed.0.memory;
            let sliced: Vec<u64> = match sliced {
                #[cfg(target_arch = "x86_64")]
                Width::Wide(sliced, _) => words_of(sliced).flat_map(|Four(groups)| *groups).collect(),
                Width::Portable(sliced) => words_of(sliced).flat_map(|One(group)| *group).collect(),
            };
            assert!(sliced.iter().all(|word| *word == 0), "{count}");
            assert!(entries.iter().all(|Four([k1, k2, k3, _])| [*k1, *k2, *k3] == [0; 3]), "{count}");
            drop(processed);
            assert!(batch.memory.entries.iter().flat_map(|Four(entry)| entry).all(|word| *word == 0), "{count}");
        }
    }

    fn words_of<G>(sliced: &Sliced<G>) -> impl Iterator<Item = &G> {
        let keys = sliced.keys.iter().flat_map(|key| key.c.iter().chain(&key.d));
        keys.chain(&sliced.left).chain(&sliced.right).chain(&sliced.rows)
    }
}
