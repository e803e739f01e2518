//! A file of items, a line an item: `plasticId`, or `plasticId,block`, or `plasticId,block,sealedAccount`; bytes in
//! hexadecimal digits. Empty lines, and lines that begin with `#`, are no items.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use domain::card::PlasticId;

use super::BulkError;

/// The longest line in bytes, with its end: an item of each kind is shorter.
const LINE_BYTES_MAX: u64 = 256;

/// The columns of a file.
#[derive(Clone, Copy)]
pub(super) enum Columns {
    /// The plasticId of a card.
    Card,
    /// The plasticId and the block of a zone.
    Block,
    /// The same, and for each block that needs one a sealed account number.
    SealedBlock,
}

/// An item of a file.
pub(super) struct Item {
    /// The number of the item in the file, from 1; the sequence number in a stream.
    pub(super) number: u64,
    pub(super) plastic: PlasticId,
    /// The block; empty in a file of cards.
    pub(super) block: Vec<u8>,
    /// The sealed account number; empty without one.
    pub(super) sealed_account: Vec<u8>,
}

/// Reads the items of a file in their order.
pub(super) struct ItemFile {
    lines: LineReader,
    columns: Columns,
    /// The number of the last item.
    number: u64,
}

impl ItemFile {
    /// Opens a file of items.
    ///
    /// # Errors
    /// [`BulkError::File`]: the file cannot be opened.
    pub(super) fn open(path: &Path, columns: Columns) -> Result<Self, BulkError> {
        let file = File::open(path).map_err(|error| BulkError::File { path: path.to_owned(), error })?;
        Ok(Self { lines: LineReader::new(path, file), columns, number: 0 })
    }

    /// The number of items in a file, all of which are well-formed.
    ///
    /// # Errors
    /// As [`ItemFile::open`] and [`ItemFile::next`].
    pub(super) fn count(path: &Path, columns: Columns) -> Result<u64, BulkError> {
        let mut items = Self::open(path, columns)?;
        while items.next()?.is_some() {}
        Ok(items.number)
    }

    /// The next item; `None` at the end of the file.
    ///
    /// # Errors
    /// [`BulkError::File`]: the file cannot be read; [`BulkError::Line`]: a line is not an item.
    pub(super) fn next(&mut self) -> Result<Option<Item>, BulkError> {
        while let Some(line) = self.lines.next()? {
            if line.text.is_empty() || line.text.starts_with('#') {
                continue;
            }
            let malformed =
                || self.lines.malformed("is not an item: give a plasticId, and as the command needs a block");
            let (plastic, block, sealed_account) = self.columns.read(&line.text).ok_or_else(malformed)?;
            self.number += 1;
            return Ok(Some(Item { number: self.number, plastic, block, sealed_account }));
        }
        Ok(None)
    }
}

impl Columns {
    fn read(self, line: &str) -> Option<(PlasticId, Vec<u8>, Vec<u8>)> {
        let hex = |text: &str| base16ct::mixed::decode_vec(text).ok().filter(|bytes| !bytes.is_empty());
        let mut columns = line.split(',');
        let plastic = PlasticId::parse(columns.next()?).ok()?;
        let block = if matches!(self, Self::Card) { Vec::new() } else { hex(columns.next()?)? };
        let sealed = match (self, columns.next()) {
            // The last column of an output without an error.
            (_, None | Some("")) => Vec::new(),
            (Self::SealedBlock, Some(text)) => hex(text)?,
            (Self::Card | Self::Block, Some(_)) => return None,
        };
        columns.next().is_none().then_some((plastic, block, sealed))
    }
}

/// A line of a file.
pub(super) struct Line {
    /// The line without its end.
    pub(super) text: String,
    /// Whether the line has its end: a killed writer may leave a part of a line.
    pub(super) is_whole: bool,
}

/// Reads lines of bounded length.
pub(super) struct LineReader {
    path: PathBuf,
    file: BufReader<File>,
    /// The number of the last line, from 1.
    number: u64,
}

impl LineReader {
    pub(super) fn new(path: &Path, file: File) -> Self {
        Self { path: path.to_owned(), file: BufReader::new(file), number: 0 }
    }

    /// The next line; `None` at the end of the file.
    ///
    /// # Errors
    /// [`BulkError::File`]: the file cannot be read; [`BulkError::Line`]: the line is too long, or not text.
    pub(super) fn next(&mut self) -> Result<Option<Line>, BulkError> {
        let mut bytes = Vec::new();
        let read = (&mut self.file).take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes);
        read.map_err(|error| BulkError::File { path: self.path.clone(), error })?;
        if bytes.is_empty() {
            return Ok(None);
        }
        self.number += 1;
        if bytes.len() as u64 == LINE_BYTES_MAX && !bytes.ends_with(b"\n") {
            return Err(self.malformed("is too long"));
        }
        let is_whole = bytes.pop_if(|last| *last == b'\n').is_some();
        let text = String::from_utf8(bytes).map_err(|_| self.malformed("is not text"))?;
        Ok(Some(Line { text, is_whole }))
    }

    /// The error of the last line.
    pub(super) fn malformed(&self, problem: &'static str) -> BulkError {
        BulkError::Line { path: self.path.clone(), line: self.number, problem }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_line_has_the_columns_of_its_file() {
        let accepts = |columns: Columns, line: &str| columns.read(line).is_some();
        let lines = ["4000", "4000,0123456789abcdef", "4000,0123456789ABCDEF,00ff"];
        let accepted = [Columns::Card, Columns::Block, Columns::SealedBlock]
            .map(|columns| lines.map(|line| accepts(columns, line)));
        assert_eq!(accepted, [[true, false, false], [false, true, false], [false, true, true]]);
        assert!(accepts(Columns::Block, "4000,00,"), "a line of an export is a line of an import");
        for line in ["", "40x0,00", "4000,", "4000,,PIN_NOT_SET", "4000,0", "4000,0g", "4000,00,00,00"] {
            assert!(!accepts(Columns::SealedBlock, line), "{line}");
        }
    }

    #[test]
    fn items_are_numbered_without_comments_and_a_wrong_line_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cards");
        fs::write(&path, "# cards\n4000\n\n4001\n4002").unwrap();
        assert_eq!(ItemFile::count(&path, Columns::Card).unwrap(), 3);
        let mut items = ItemFile::open(&path, Columns::Card).unwrap();
        let numbers: Vec<u64> = std::iter::from_fn(|| items.next().unwrap()).map(|item| item.number).collect();
        assert_eq!(numbers, [1, 2, 3]);
        for (text, wrong) in [("4000\nx\n", 2), ("4000\n4001,00\n", 2), (&*"4".repeat(300), 1), ("\n\n4000\u{e9}\n", 3)]
        {
            fs::write(&path, text).unwrap();
            let error = ItemFile::count(&path, Columns::Card).unwrap_err();
            assert!(matches!(error, BulkError::Line { line, .. } if line == wrong), "{error}");
        }
    }
}
