//! Counts the copies of a text in the memory of another process.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
};

use crate::{PIECE_BYTES, is_there, writable};

/// The number of copies of each pattern in memory that a process may write. A pattern is no longer than 4096 bytes.
pub fn copies_in(process: u32, patterns: &[Vec<u8>]) -> io::Result<Vec<usize>> {
    let maps = fs::read_to_string(format!("/proc/{process}/maps"))?;
    let memory = File::open(format!("/proc/{process}/mem"))?;
    let pages = File::open(format!("/proc/{process}/pagemap"))?;
    let mut copies = vec![0; patterns.len()];
    // Most bytes begin no pattern: a table excludes them.
    let mut begins = [false; 256];
    patterns.iter().filter_map(|pattern| pattern.first()).for_each(|first| {
        if let Some(begins) = begins.get_mut(usize::from(*first)) {
            *begins = true;
        }
    });
    let mut piece = vec![0; PIECE_BYTES + 4096];
    for (from, to) in maps.lines().filter_map(writable) {
        let mut at = from;
        while at < to {
            // Pieces overlap, so no pattern is lost at a border. A pattern that begins in the overlap is counted in the
            // next piece.
            let length = usize::try_from(to - at).unwrap_or(usize::MAX).min(piece.len());
            let Some(bytes) = piece.get_mut(..length) else { break };
            if is_there(&pages, at, length) && memory.read_exact_at(bytes, at).is_ok() {
                for start in 0..length.min(PIECE_BYTES) {
                    let rest = bytes.get(start..).unwrap_or_default();
                    let first = rest.first().and_then(|first| begins.get(usize::from(*first)));
                    if first != Some(&true) {
                        continue;
                    }
                    let found = patterns.iter().zip(&mut copies).filter(|(pattern, _)| rest.starts_with(pattern));
                    found.for_each(|(_, copies)| *copies += 1);
                }
            }
            at += PIECE_BYTES as u64;
        }
    }
    Ok(copies)
}
