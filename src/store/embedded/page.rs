//! Pages: what one commit writes of a kind, as one row. A commit of a hundred changes costs two insertions this way, not
//! two hundred, and the pages of controls, which live for seconds, are dropped whole.
//!
//! ```text
//! entries    key: number of the first entry(8)    01 (length(4) entry)…
//! controls   key: number of the page(8)           01 (length(4) control)…
//! ```
//! A control stands in as many pages as it had states; the last of them holds.

use crate::clock::UnixMillis;

use super::codec::expiry_of;

/// The layout this release writes.
const VERSION: u8 = 1;

/// Audit entries that follow one another.
pub(super) struct EntryPage(Vec<u8>);

impl EntryPage {
    /// An empty one, in bytes that an earlier one was in.
    pub(super) fn within(mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        bytes.push(VERSION);
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.len() == 1
    }

    /// Takes in the entry that `write` appends, and gives back what `write` does.
    pub(super) fn push<T>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        push(&mut self.0, write)
    }

    pub(super) fn row(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// The entries of a row; none where it is not one.
    pub(super) fn read(row: &[u8]) -> Option<Vec<&[u8]>> {
        pieces(row)
    }
}

/// States of controls.
pub(super) struct ControlPage {
    row: Vec<u8>,
    latest_expiry: UnixMillis,
}

impl ControlPage {
    pub(super) fn new() -> Self {
        Self { row: vec![VERSION], latest_expiry: UnixMillis(0) }
    }

    pub(super) fn push(&mut self, control: &[u8]) {
        push(&mut self.row, |row| row.extend_from_slice(control));
        self.latest_expiry = self.latest_expiry.max(expiry_or_never(control));
    }

    /// From this moment on no control of it is usable.
    pub(super) fn latest_expiry(&self) -> UnixMillis {
        self.latest_expiry
    }

    pub(super) fn into_row(self) -> Vec<u8> {
        self.row
    }

    /// The latest expiry and the controls of a row; none where it is not one.
    pub(super) fn read(row: &[u8]) -> Option<(UnixMillis, Vec<&[u8]>)> {
        let controls = pieces(row)?;
        let latest_expiry = controls.iter().map(|control| expiry_or_never(control)).max();
        Some((latest_expiry.unwrap_or(UnixMillis(0)), controls))
    }
}

/// A control that can't be read is never dropped.
fn expiry_or_never(control: &[u8]) -> UnixMillis {
    expiry_of(control).unwrap_or(UnixMillis(u64::MAX))
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

    fn control(expiry: u64) -> Vec<u8> {
        [&[7; 16][..], &[1], &expiry.to_be_bytes(), b"the rest"].concat()
    }

    #[test]
    fn what_a_page_took_in_it_gives_back_in_order() {
        let mut entries = EntryPage::within(b"what was there".to_vec());
        assert!(entries.is_empty());
        assert_eq!(entries.push(|bytes| bytes.extend_from_slice(b"one")), ());
        entries.push(|bytes| bytes.extend_from_slice(b""));
        entries.push(|bytes| bytes.extend_from_slice(b"three"));
        assert_eq!(EntryPage::read(entries.row()), Some(vec![&b"one"[..], b"", b"three"]));

        let mut controls = ControlPage::new();
        controls.push(&control(500));
        controls.push(&control(400));
        let row = controls.into_row();
        assert_eq!(ControlPage::read(&row), Some((UnixMillis(500), vec![&control(500)[..], &control(400)])));
    }

    #[test]
    fn a_page_with_a_control_that_has_no_expiry_is_never_old_enough() {
        let mut controls = ControlPage::new();
        controls.push(b"short");
        assert_eq!(controls.latest_expiry(), UnixMillis(u64::MAX));
    }

    #[test]
    fn a_cut_page_is_no_page_unless_it_is_cut_between_two_pieces() {
        let mut controls = ControlPage::new();
        controls.push(&control(1));
        controls.push(&control(2));
        let row = controls.into_row();
        let whole = [1, 1 + 4 + control(1).len(), row.len()];
        for length in 0..=row.len() {
            assert_eq!(ControlPage::read(&row[..length]).is_some(), whole.contains(&length), "{length}");
        }
        assert_eq!(ControlPage::read(&[2; 40]), None);
        assert_eq!(EntryPage::read(&[1, 0xFF, 0xFF, 0xFF, 0xFF, 0]), None);
    }
}
