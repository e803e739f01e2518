//! Packed controls without gaps: those of one length stand one behind the other, and a hash table finds them.
//!
//! A row that is removed leaves its place to the last row of its length, so no place is ever free: no allocator rounds the
//! length of a row up, no row needs a pointer, and memory is freed as rows are removed. A place in the hash table is 4 bytes.

use std::{hash::BuildHasher, mem};

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};

use super::packed_control::WORD_BYTES;
use domain::control::ControlId;
use store::codec::ID_BYTES;

/// The bytes of a chunk of rows: so much is allocated, and freed, at a time.
const CHUNK_BYTES: usize = 8 << 10;
/// The bits of a [`Place`] that hold the position; the others hold the length.
const POSITION_BITS: u32 = 24;
/// A hash table that is less than this part full after rows were removed gives its memory back.
const SPARSE: usize = 4;

/// Rows of any length, each found by the controlId that it begins with.
#[derive(Default)]
pub(super) struct PackedRows {
    places: HashTable<Place>,
    /// There are few lengths: a tzpk, a plasticId and an account number have few lengths each.
    lengths: Vec<RowsOfLength>,
}

/// A row is not kept: it is empty or longer than 1,020 bytes, or 2^24 rows have its length.
#[derive(Debug)]
pub(super) struct NoPlace;

impl PackedRows {
    /// The row with this controlId. `hash` is the hash of the controlId.
    pub(super) fn find(&self, hash: u64, id: ControlId) -> Option<&[u8]> {
        let Self { places, lengths } = self;
        let place = places.find(hash, |place| row_at(lengths, *place).starts_with(id.as_bytes()))?;
        Some(row_at(lengths, *place))
    }

    /// Adds a row, instead of the row with the same controlId.
    ///
    /// # Errors
    /// [`NoPlace`]: neither row is kept, because an earlier state of a control must not be found after a later one.
    pub(super) fn put(&mut self, id: ControlId, row: &[u8], hasher: &DefaultHashBuilder) -> Result<(), NoPlace> {
        let Some(place) = push(&mut self.lengths, row) else {
            self.remove(id, hasher);
            return Err(NoPlace);
        };
        let Self { places, lengths } = self;
        let hash_of = |place: &Place| hasher.hash_one(id_bytes(row_at(lengths, *place)));
        let is_same = |other: &Place| row_at(lengths, *other).starts_with(id.as_bytes());
        match places.entry(hasher.hash_one(id.as_bytes()), is_same, hash_of) {
            Entry::Occupied(mut of_id) => {
                let before = mem::replace(of_id.get_mut(), place);
                self.fill(before, hasher);
            }
            Entry::Vacant(vacant) => {
                vacant.insert(place);
            }
        }
        Ok(())
    }

    /// Removes the row with this controlId, where there is one.
    pub(super) fn remove(&mut self, id: ControlId, hasher: &DefaultHashBuilder) {
        let Self { places, lengths } = self;
        let is_same = |place: &Place| row_at(lengths, *place).starts_with(id.as_bytes());
        if let Ok(of_id) = places.find_entry(hasher.hash_one(id.as_bytes()), is_same) {
            let (place, _) = of_id.remove();
            self.fill(place, hasher);
        }
    }

    /// Moves the last row of a length to a place that the hash table no longer names.
    fn fill(&mut self, place: Place, hasher: &DefaultHashBuilder) {
        let Self { places, lengths } = self;
        let Some(rows) = lengths.iter_mut().find(|rows| rows.words == place.words()) else { return };
        let Some(last) = rows.last_place() else { return };
        if last != place {
            let moved = rows.row(last.position()).unwrap_or_default();
            let hash = hasher.hash_one(id_bytes(moved));
            if let Some(of_moved) = places.find_mut(hash, |place| *place == last) {
                *of_moved = place;
            }
        }
        rows.swap_remove(place.position());
    }

    /// Removes the rows that are not kept.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&[u8]) -> bool, hasher: &DefaultHashBuilder) {
        for at in 0..self.lengths.len() {
            let count = self.lengths.get(at).map_or(0, |rows| rows.count);
            // From the last row on: the row that moves into a free place is one that is kept.
            for position in (0..count).rev() {
                let Some(rows) = self.lengths.get(at) else { continue };
                let row = rows.row(position).unwrap_or_default();
                if is_kept(row) {
                    continue;
                }
                let (Some(place), hash) = (rows.place(position), hasher.hash_one(id_bytes(row))) else { continue };
                if let Ok(found) = self.places.find_entry(hash, |other| *other == place) {
                    found.remove();
                }
                self.fill(place, hasher);
            }
        }
        if self.places.len() < self.places.capacity() / SPARSE {
            let Self { places, lengths } = self;
            places.shrink_to_fit(|place| hasher.hash_one(id_bytes(row_at(lengths, *place))));
        }
    }

    /// Every row once, those of one length one behind the other.
    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.lengths.iter().flat_map(RowsOfLength::iter)
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.places.len()
    }
}

/// Adds a row behind the last one of its length; `None` where no [`Place`] can name it.
fn push(lengths: &mut Vec<RowsOfLength>, row: &[u8]) -> Option<Place> {
    let words = u8::try_from(row.len().div_ceil(WORD_BYTES)).ok().filter(|words| *words > 0)?;
    if let Some(rows) = lengths.iter_mut().find(|rows| rows.words == words) {
        return rows.push(row);
    }
    lengths.push(RowsOfLength { words, count: 0, chunks: Vec::new() });
    lengths.last_mut()?.push(row)
}

/// The row in a place; empty where there is no such place.
fn row_at(lengths: &[RowsOfLength], place: Place) -> &[u8] {
    let rows = lengths.iter().find(|rows| rows.words == place.words());
    rows.and_then(|rows| rows.row(place.position())).unwrap_or_default()
}

fn id_bytes(row: &[u8]) -> &[u8] {
    row.get(..ID_BYTES).unwrap_or_default()
}

/// Where a row is: its length in words (8 bits), and its position among the rows of this length (24 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place(u32);

impl Place {
    fn new(words: u8, position: usize) -> Option<Self> {
        let position = u32::try_from(position).ok().filter(|position| *position < 1 << POSITION_BITS)?;
        Some(Self(u32::from(words) << POSITION_BITS | position))
    }

    fn words(self) -> u8 {
        let [words, ..] = self.0.to_be_bytes();
        words
    }

    fn position(self) -> usize {
        usize::try_from(self.0 & ((1 << POSITION_BITS) - 1)).unwrap_or(usize::MAX)
    }
}

/// Rows of one length.
struct RowsOfLength {
    /// The length in words of [`WORD_BYTES`]; never 0.
    words: u8,
    count: usize,
    /// Whole rows; every chunk but the last is full.
    chunks: Vec<Vec<u8>>,
}

impl RowsOfLength {
    fn row_bytes(&self) -> usize {
        usize::from(self.words) * WORD_BYTES
    }

    fn rows_per_chunk(&self) -> usize {
        CHUNK_BYTES / self.row_bytes().max(1)
    }

    fn place(&self, position: usize) -> Option<Place> {
        Place::new(self.words, position)
    }

    fn last_place(&self) -> Option<Place> {
        self.place(self.count.checked_sub(1)?)
    }

    fn row(&self, position: usize) -> Option<&[u8]> {
        let (chunk, row) = (position / self.rows_per_chunk(), position % self.rows_per_chunk());
        let start = row * self.row_bytes();
        self.chunks.get(chunk)?.get(start..start + self.row_bytes())
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.chunks.iter().flat_map(|chunk| chunk.chunks_exact(self.row_bytes()))
    }

    /// Adds a row behind the last one; `None` where no [`Place`] can name it.
    fn push(&mut self, row: &[u8]) -> Option<Place> {
        let place = self.place(self.count)?;
        let (row_bytes, chunk_bytes) = (self.row_bytes(), self.rows_per_chunk() * self.row_bytes());
        if self.count.is_multiple_of(self.rows_per_chunk()) {
            self.chunks.push(Vec::new());
        }
        let chunk = self.chunks.last_mut()?;
        if chunk.capacity() - chunk.len() < row_bytes {
            // The last chunk grows by half. The full ones, which are most of the memory, have no unused bytes.
            let grown = (chunk.len() + chunk.len() / 2).clamp(chunk.len() + row_bytes, chunk_bytes);
            chunk.reserve_exact(grown - chunk.len());
        }
        chunk.extend_from_slice(row);
        chunk.resize(chunk.len().next_multiple_of(WORD_BYTES), 0);
        self.count += 1;
        Some(place)
    }

    /// Removes a row; the last one takes its position.
    fn swap_remove(&mut self, position: usize) {
        let (chunk, row) = (position / self.rows_per_chunk(), position % self.rows_per_chunk());
        let (row_bytes, start) = (self.row_bytes(), row * self.row_bytes());
        let Some(mut last_chunk) = self.chunks.pop() else { return };
        let kept = last_chunk.len().saturating_sub(row_bytes);
        let (before, last) = last_chunk.split_at_mut(kept);
        let its_chunk = self.chunks.get_mut(chunk).map_or(before, Vec::as_mut_slice);
        // The last row itself has no other to take its position.
        if let Some(removed) = its_chunk.get_mut(start..start + row_bytes) {
            removed.copy_from_slice(last);
        }
        last_chunk.truncate(kept);
        if !last_chunk.is_empty() {
            self.chunks.push(last_chunk);
        }
        self.count = self.count.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn row(id: ControlId, length: usize, byte: u8) -> Vec<u8> {
        let mut row = id.as_bytes().to_vec();
        row.resize(length, byte);
        row
    }

    fn allocated_bytes(rows: &PackedRows) -> usize {
        let chunks = rows.lengths.iter().flat_map(|rows| &rows.chunks);
        chunks.map(Vec::capacity).sum::<usize>() + rows.places.allocation_size()
    }

    /// The same operations on the rows and on a map, with rows of 20 lengths.
    #[test]
    fn rows_that_come_and_go_are_those_of_a_map() {
        let (mut rows, mut expected) = (PackedRows::default(), HashMap::new());
        let hasher = DefaultHashBuilder::default();
        // A linear congruential generator (Knuth, MMIX): the same noise in each run.
        let mut state = 7_u64;
        let mut below = |end: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % end
        };
        let ids: Vec<_> = (0..3_000).map(|_| ControlId::random()).collect();
        for step in 0..40_000_usize {
            let id = ids[below(ids.len())];
            match below(5) {
                0 | 1 => {
                    rows.remove(id, &hasher);
                    expected.remove(&id);
                }
                _ => {
                    let row = row(id, 16 + WORD_BYTES * below(20), step.to_le_bytes()[0]);
                    rows.put(id, &row, &hasher).unwrap();
                    expected.insert(id, row);
                }
            }
            if step % 10_000 == 9_999 {
                let limit = u8::try_from(step / 1_000).unwrap();
                let is_kept = |row: &[u8]| row.last().is_some_and(|byte| *byte > limit);
                rows.retain(is_kept, &hasher);
                expected.retain(|_, row| is_kept(row));
            }
            assert_eq!(rows.find(hasher.hash_one(id.as_bytes()), id), expected.get(&id).map(Vec::as_slice));
        }
        assert!(expected.len() > 500);
        let found = |id: ControlId| rows.find(hasher.hash_one(id.as_bytes()), id);
        assert!(ids.iter().all(|id| found(*id) == expected.get(id).map(Vec::as_slice)));
        let mut all: Vec<_> = rows.iter().map(<[u8]>::to_vec).collect();
        let mut expected: Vec<_> = expected.into_values().collect();
        all.sort();
        expected.sort();
        assert_eq!(all, expected);
    }

    #[test]
    fn a_row_costs_at_most_twelve_bytes_beside_its_own() {
        let (mut rows, hasher) = (PackedRows::default(), DefaultHashBuilder::default());
        // One more than fits into 2^14 places, so that the hash table has just grown: the worst case.
        let count = (1 << 14) * 7 / 8 + 1;
        for _ in 0..count {
            let id = ControlId::random();
            rows.put(id, &row(id, 100, 1), &hasher).unwrap();
        }
        assert!(allocated_bytes(&rows) <= count * 112, "{}", allocated_bytes(&rows));
    }

    #[test]
    fn the_memory_of_removed_rows_is_freed() {
        let (mut rows, hasher) = (PackedRows::default(), DefaultHashBuilder::default());
        for number in 0..10_000_usize {
            let id = ControlId::random();
            rows.put(id, &row(id, 80 + 40 * (number % 2), u8::from(number % 100 == 0)), &hasher).unwrap();
        }
        let before = allocated_bytes(&rows);
        rows.retain(|row| row.ends_with(&[1]), &hasher);
        assert_eq!(rows.count(), 100);
        assert!(allocated_bytes(&rows) < before / 40, "{} of {before}", allocated_bytes(&rows));
        rows.retain(|_| false, &hasher);
        assert_eq!((rows.count(), allocated_bytes(&rows)), (0, 0));
    }

    #[test]
    fn an_empty_or_too_long_row_has_no_place() {
        let (mut rows, hasher) = (PackedRows::default(), DefaultHashBuilder::default());
        let id = ControlId::random();
        assert!(rows.put(id, &[], &hasher).is_err());
        assert!(rows.put(id, &row(id, 1_021, 1), &hasher).is_err());
        rows.put(id, &row(id, 1_020, 1), &hasher).unwrap();
        // The earlier row is not found after a later one that has no place.
        assert!(rows.put(id, &row(id, 1_021, 2), &hasher).is_err());
        assert!(rows.find(hasher.hash_one(id.as_bytes()), id).is_none());
        assert_eq!((rows.count(), rows.iter().count()), (0, 0));
        assert_eq!(Place::new(1, 1 << POSITION_BITS), None);
    }
}
