//! Searches the memory of another process for byte patterns. Built optimised even for tests: a search of hundreds of
//! mebibytes for hundreds of thousands of patterns takes a second or two, so a test can repeat it.

#![forbid(unsafe_code)]

mod copies;
mod vault;

pub use self::{copies::copies_in, vault::storage_key_of};

use std::{
    collections::{BTreeSet, HashMap},
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
};

/// The length of every pattern, in bytes.
pub const PATTERN_BYTES: usize = 8;
/// The bytes read at a time.
const PIECE_BYTES: usize = 64 << 10;
/// The smallest page size, in bytes.
const PAGE_BYTES: usize = 4 << 10;
/// Bits of the filter in front of the table: 2 MiB.
const FILTER_BITS: u32 = 24;

/// The byte patterns of a search.
#[derive(Clone)]
pub struct Planted {
    names: HashMap<u64, &'static str>,
    /// One bit for the hash of each pattern: most memory is excluded by it.
    filter: Vec<u64>,
}

impl Default for Planted {
    fn default() -> Self {
        Self { names: HashMap::new(), filter: vec![0; 1 << (FILTER_BITS - 6)] }
    }
}

impl Planted {
    /// Adds the first and the last eight of these bytes, in both byte orders: a number may be stored in either.
    pub fn plant(&mut self, what: &'static str, bytes: &[u8]) {
        for window in [bytes.first_chunk::<PATTERN_BYTES>(), bytes.last_chunk()].into_iter().flatten() {
            let value = u64::from_ne_bytes(*window);
            for value in [value, value.swap_bytes()] {
                self.names.insert(value, what);
                let (word, bit) = place(value);
                if let Some(word) = self.filter.get_mut(word) {
                    *word |= bit;
                }
            }
        }
    }

    /// The patterns in the memory of a process, and the number of bytes read.
    pub fn find_in(&self, process: u32) -> io::Result<Found> {
        let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
        let memory = File::open(format!("/proc/{process}/mem"))?;
        let pages = File::open(format!("/proc/{process}/pagemap"))?;
        let mut found = Found { names: BTreeSet::new(), bytes: 0 };
        let mut piece = vec![0; PIECE_BYTES + PATTERN_BYTES];
        for (from, to) in maps.lines().filter_map(writable) {
            let mut at = from;
            while at < to {
                // Pieces overlap, so no pattern is lost at a border.
                let length = usize::try_from(to - at).unwrap_or(usize::MAX).min(piece.len());
                let Some(bytes) = piece.get_mut(..length) else { break };
                // Memory that was reserved and never touched reads as zeros.
                if is_there(&pages, at, length) && memory.read_exact_at(bytes, at).is_ok() {
                    found.bytes += length;
                    self.find_among(bytes, &mut found.names);
                }
                at += PIECE_BYTES as u64;
            }
        }
        Ok(found)
    }

    fn find_among(&self, bytes: &[u8], found: &mut BTreeSet<&'static str>) {
        for window in bytes.windows(PATTERN_BYTES) {
            let Ok(window) = window.try_into() else { continue };
            let value = u64::from_ne_bytes(window);
            if value == 0 {
                continue;
            }
            let (word, bit) = place(value);
            if self.filter.get(word).is_some_and(|word| word & bit != 0)
                && let Some(name) = self.names.get(&value)
            {
                found.insert(name);
            }
        }
    }
}

/// Whether `bytes` holds `pattern`. Not inlined: this crate is built optimised, its callers are not.
#[inline(never)]
pub fn contains(bytes: &[u8], pattern: &[u8]) -> bool {
    let Some((first, rest)) = pattern.split_first() else { return true };
    let mut left = bytes;
    while let Some(at) = left.iter().position(|byte| byte == first) {
        left = left.get(at + 1..).unwrap_or_default();
        if left.starts_with(rest) {
            return true;
        }
    }
    false
}

/// The result of a search.
pub struct Found {
    /// The names of the patterns that were found.
    pub names: BTreeSet<&'static str>,
    /// The bytes of memory that were read.
    pub bytes: usize,
}

/// Whether any page is in memory or in swap: the two highest bits of its entry in the page map (proc_pid_pagemap(5)).
fn is_there(pages: &File, at: u64, length: usize) -> bool {
    const ENTRY_BYTES: usize = 8;
    let mut entries = [0; (PIECE_BYTES / PAGE_BYTES + 2) * ENTRY_BYTES];
    let count = length.div_ceil(PAGE_BYTES) * ENTRY_BYTES;
    let Some(entries) = entries.get_mut(..count) else { return true };
    let first = at / PAGE_BYTES as u64 * ENTRY_BYTES as u64;
    // Without a readable entry the page is searched.
    pages.read_exact_at(entries, first).is_err()
        || entries.iter().skip(ENTRY_BYTES - 1).step_by(ENTRY_BYTES).any(|highest| highest & 0xC0 != 0)
}

fn place(value: u64) -> (usize, u64) {
    let hash = value.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - FILTER_BITS);
    (usize::try_from(hash >> 6).unwrap_or_default(), 1 << (hash & 63))
}

/// The bounds of a region that can be written.
fn writable(line: &str) -> Option<(u64, u64)> {
    let (bounds, rest) = line.split_once(' ')?;
    let (from, to) = bounds.split_once('-')?;
    let bounds = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
    rest.starts_with("rw").then_some(bounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn present_bytes_are_found_in_either_order_and_absent_are_not() {
        let here: Vec<u8> = (0..8).map(|at| at * 31 + 7).collect();
        let mut planted = Planted::default();
        planted.plant("here", &here);
        let searched = planted.find_in(std::process::id()).unwrap();
        assert!(searched.names.contains("here") && searched.bytes > 0);
        let backwards: Vec<u8> = here.iter().rev().copied().collect();
        let found_among = |bytes: &[u8]| {
            let mut found = BTreeSet::new();
            planted.find_among(bytes, &mut found);
            !found.is_empty()
        };
        assert!(found_among(&[&[0; 9], &backwards[..]].concat()));
        assert!(!found_among(&[&[0; 9], &backwards[1..], &[0; 9]].concat()));
    }
}
