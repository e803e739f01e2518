//! Pages: what one commit writes of a kind, as one row. A commit of a hundred changes costs two insertions this way, not
//! two hundred, and the pages of controls, which live for seconds, are dropped whole.
//!
//! ```text
//! entries    key: number of the first entry(8)    01 (length(4) entry)…
//!                                                 02 length(4) LZ4 of the same without its 01
//! controls   key: number of the page(8)           01 (length(4) control)…
//! set        the same, of controls that set a PIN: these are kept longer, for retries
//! ```
//! Entries of one page say much that those before them said: who called, which keys. A control stands in as many pages
//! as it had states; the last of them holds.

use lz4_flex::block::{compress_into, decompress, get_maximum_output_size};

use domain::time::UnixMillis;
use store::codec::keep_until;

/// The pieces, not packed.
const VERSION: u8 = 1;
/// The pieces, packed by LZ4.
const PACKED: u8 = 2;
/// The version and the length of the pieces, before the packed bytes.
const PACKED_HEAD_BYTES: usize = 5;
/// The expiry of a page with a control that can't be read: the page is never dropped.
pub(super) const NEVER: UnixMillis = UnixMillis(u64::MAX);
/// The most bytes that LZ4 unpacks from one byte.
const UNPACKED_BYTES_MAX: usize = 255;

/// Audit entries that follow one another.
pub(super) struct EntryPage(Vec<u8>);

impl EntryPage {
    /// A page without entries.
    pub(super) fn new() -> Self {
        Self(vec![VERSION])
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.len() == 1
    }

    /// Adds the entry that `write` appends, and returns the result of `write`.
    pub(super) fn push<T>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        push(&mut self.0, write)
    }

    /// The row, packed where that is shorter.
    pub(super) fn row(&self) -> Vec<u8> {
        self.packed().filter(|packed| packed.len() < self.0.len()).unwrap_or_else(|| self.0.clone())
    }

    fn packed(&self) -> Option<Vec<u8>> {
        let pieces = self.0.get(1..)?;
        let length = u32::try_from(pieces.len()).ok()?;
        let mut row = [&[PACKED][..], &length.to_be_bytes()].concat();
        row.resize(PACKED_HEAD_BYTES + get_maximum_output_size(pieces.len()), 0);
        let packed = compress_into(pieces, row.get_mut(PACKED_HEAD_BYTES..)?).ok()?;
        row.truncate(PACKED_HEAD_BYTES + packed);
        Some(row)
    }

    /// The page of a row; `None` where the row is malformed.
    pub(super) fn read(row: &[u8]) -> Option<Self> {
        match row.split_first()? {
            (&VERSION, _) => Some(Self(row.to_vec())),
            (&PACKED, rest) => {
                let (length, packed) = rest.split_first_chunk()?;
                let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
                // A damaged length allocates no more memory than a row of this size can fill.
                let length =
                    Some(length).filter(|length| *length <= packed.len().saturating_mul(UNPACKED_BYTES_MAX))?;
                let pieces = decompress(packed, length).ok().filter(|pieces| pieces.len() == length)?;
                Some(Self([&[VERSION], pieces.as_slice()].concat()))
            }
            _ => None,
        }
    }

    /// The entries; `None` where a length is malformed.
    pub(super) fn entries(&self) -> Option<Vec<&[u8]>> {
        pieces(&self.0)
    }
}

/// States of controls.
pub(super) struct ControlPage {
    row: Vec<u8>,
    keep_until: UnixMillis,
}

impl ControlPage {
    pub(super) fn new() -> Self {
        Self { row: vec![VERSION], keep_until: UnixMillis(0) }
    }

    pub(super) fn push(&mut self, control: &[u8]) {
        push(&mut self.row, |row| row.extend_from_slice(control));
        self.keep_until = self.keep_until.max(keep_until_or_never(control));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.row.len() == 1
    }

    /// The moment from which on every control of the page has expired.
    pub(super) fn keep_until(&self) -> UnixMillis {
        self.keep_until
    }

    pub(super) fn into_row(self) -> Vec<u8> {
        self.row
    }

    /// The expiry and the controls of a row; `None` where the row is malformed.
    pub(super) fn read(row: &[u8]) -> Option<(UnixMillis, Vec<&[u8]>)> {
        let controls = pieces(row)?;
        let keep_until = controls.iter().map(|control| keep_until_or_never(control)).max();
        Some((keep_until.unwrap_or(UnixMillis(0)), controls))
    }
}

/// A control that can't be read is never dropped.
fn keep_until_or_never(control: &[u8]) -> UnixMillis {
    keep_until(control).unwrap_or(NEVER)
}

fn push<T>(row: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    let at = row.len();
    row.extend_from_slice(&[0; 4]);
    let written = write(row);
    let length = u32::try_from(row.len().saturating_sub(at + 4)).unwrap_or(u32::MAX);
    row.iter_mut().skip(at).zip(length.to_be_bytes()).for_each(|(place, byte)| *place = byte);
    written
}

fn pieces(row: &[u8]) -> Option<Vec<&[u8]>> {
    let (_, mut rest) = row.split_first().filter(|(version, _)| **version == VERSION)?;
    let mut pieces = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk() {
        let (piece, behind) = behind.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        pieces.push(piece);
        rest = behind;
    }
    rest.is_empty().then_some(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries_of(row: &[u8]) -> Option<Vec<Vec<u8>>> {
        Some(EntryPage::read(row)?.entries()?.into_iter().map(<[u8]>::to_vec).collect())
    }

    fn control(expiry: u64) -> Vec<u8> {
        [&[7; 16][..], &[2, 1], &expiry.to_be_bytes(), b"the rest"].concat()
    }

    #[test]
    fn a_page_returns_its_entries_and_controls_in_order() {
        let mut entries = EntryPage::new();
        assert!(entries.is_empty());
        assert_eq!(entries.push(|bytes| bytes.extend_from_slice(b"one")), ());
        entries.push(|bytes| bytes.extend_from_slice(b""));
        entries.push(|bytes| bytes.extend_from_slice(b"three"));
        assert_eq!(entries_of(&entries.row()), Some(vec![b"one".to_vec(), b"".to_vec(), b"three".to_vec()]));

        let mut controls = ControlPage::new();
        controls.push(&control(500));
        controls.push(&control(400));
        let row = controls.into_row();
        assert_eq!(ControlPage::read(&row), Some((UnixMillis(500), vec![&control(500)[..], &control(400)])));
    }

    #[test]
    fn a_page_with_a_control_without_expiry_is_never_dropped() {
        let mut controls = ControlPage::new();
        controls.push(b"short");
        assert_eq!(controls.keep_until(), UnixMillis(u64::MAX));
    }

    #[test]
    fn a_cut_page_is_malformed_unless_cut_between_two_pieces() {
        let mut controls = ControlPage::new();
        controls.push(&control(1));
        controls.push(&control(2));
        let row = controls.into_row();
        let whole = [1, 1 + 4 + control(1).len(), row.len()];
        for length in 0..=row.len() {
            assert_eq!(ControlPage::read(&row[..length]).is_some(), whole.contains(&length), "{length}");
        }
        assert_eq!(ControlPage::read(&[2; 40]), None);
        assert_eq!(entries_of(&[1, 0xFF, 0xFF, 0xFF, 0xFF, 0]), None);
    }

    #[test]
    fn similar_entries_are_packed_and_unpacked() {
        let mut page = EntryPage::new();
        let entry = |number: u8| [&[number; 32][..], b"edge-1 default storage/1:A1B2C3 host/software/process"].concat();
        (0..40).for_each(|number| page.push(|bytes| bytes.extend_from_slice(&entry(number))));
        let row = page.row();
        assert!(row.len() * 2 < page.0.len(), "{}", row.len());
        assert_eq!(entries_of(&row), Some((0..40).map(entry).collect()));
    }

    #[test]
    fn a_page_that_is_not_packed_is_read() {
        let row = [&[1][..], &[0, 0, 0, 3], b"one", &[0, 0, 0, 0]].concat();
        assert_eq!(entries_of(&row), Some(vec![b"one".to_vec(), Vec::new()]));
    }

    #[test]
    fn a_damaged_packed_page_neither_panics_nor_exhausts_memory() {
        let mut page = EntryPage::new();
        (0..9).for_each(|_| page.push(|bytes| bytes.extend_from_slice(&[7; 100])));
        let row = page.row();
        for at in 0..row.len() {
            assert_eq!(entries_of(&row[..at]), None, "{at}");
            for bit in 0..8 {
                let mut changed = row.clone();
                changed[at] ^= 1 << bit;
                let _ = entries_of(&changed);
            }
        }
        assert_eq!(entries_of(&[2, 0xFF, 0xFF, 0xFF, 0xFF, 0x1F, 7, 1, 0]), None);
    }
}
