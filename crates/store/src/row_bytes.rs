//! The parts of a row: arrays, blobs and lists with their length before them, varints, and short texts of digits and stars.

/// The longest text and the longest blob of a row, in bytes.
pub const BLOB_BYTES_MAX: usize = u8::MAX as usize;

/// The nibble before the number of stars in a run, 1 to 15.
const STARS: u8 = 0xA;
/// The most stars of a run.
const STARS_MAX: usize = 15;
/// The byte before a text with other characters than digits and stars. The text is a blob behind it.
const PLAIN: u8 = 0xEE;
/// The nibble behind the last character.
const END: u8 = 0xF;

/// Writes a row.
pub struct RowWriter(Vec<u8>);

impl RowWriter {
    /// An empty row, with capacity for most rows.
    pub fn new() -> Self {
        Self(Vec::with_capacity(256))
    }

    /// These bytes, without their length.
    pub fn array(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Up to [`BLOB_BYTES_MAX`] bytes, behind their number: every blob and text of a row is far shorter.
    pub fn blob(&mut self, bytes: &[u8]) {
        let kept = bytes.get(..BLOB_BYTES_MAX).unwrap_or(bytes);
        self.0.push(u8::try_from(kept.len()).unwrap_or(u8::MAX));
        self.0.extend_from_slice(kept);
    }

    /// Up to 255 items, behind their number.
    pub fn list<const N: usize>(&mut self, items: impl ExactSizeIterator<Item = [u8; N]>) {
        let count = u8::try_from(items.len()).unwrap_or(u8::MAX);
        self.0.push(count);
        items.take(count.into()).for_each(|item| self.array(&item));
    }

    /// A number as LEB128: 7 bits a byte, the lowest first.
    pub fn varint(&mut self, mut number: u64) {
        while number > 0x7F {
            self.0.push(0x80 | number.to_le_bytes()[0]);
            number >>= 7;
        }
        self.0.push(number.to_le_bytes()[0]);
    }

    /// A text, two digits a byte; a run of up to 15 stars is one byte. Other texts are blobs.
    pub fn digits(&mut self, text: &str) {
        let text = text.as_bytes().get(..BLOB_BYTES_MAX).unwrap_or(text.as_bytes());
        if !text.iter().all(|byte| byte.is_ascii_digit() || *byte == b'*') {
            self.0.push(PLAIN);
            return self.blob(text);
        }
        let mut high = None;
        let mut push = |nibble: u8| match high.take() {
            Some(high) => self.0.push(high << 4 | nibble),
            None => high = Some(nibble),
        };
        let mut rest = text;
        while let Some((first, behind)) = rest.split_first() {
            if *first != b'*' {
                push(first & 0x0F);
                rest = behind;
                continue;
            }
            let stars = rest.iter().take(STARS_MAX).take_while(|byte| **byte == b'*').count();
            push(STARS);
            push(u8::try_from(stars).unwrap_or_default());
            rest = rest.get(stars..).unwrap_or_default();
        }
        push(END);
        if let Some(high) = high {
            self.0.push(high << 4 | END);
        }
    }

    /// The bytes of the row, in the order in which they were written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl Default for RowWriter {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads what [`RowWriter`] wrote. `None` for other bytes.
pub struct RowReader<'a>(&'a [u8]);

impl<'a> RowReader<'a> {
    /// Reads these bytes from their begin.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    /// The next [`RowWriter::blob`].
    pub fn blob(&mut self) -> Option<&'a [u8]> {
        let [length] = self.array()?;
        let (taken, rest) = self.0.split_at_checked(length.into())?;
        self.0 = rest;
        Some(taken)
    }

    /// The next [`RowWriter::blob`], where it is UTF-8.
    pub fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.blob()?).ok()
    }

    /// The next [`RowWriter::list`].
    pub fn list<const N: usize>(&mut self) -> Option<Vec<[u8; N]>> {
        let [count] = self.array()?;
        (0..count).map(|_| self.array()).collect()
    }

    /// The next [`RowWriter::varint`].
    pub fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7F);
            let shifted = bits << shift;
            if shifted >> shift != bits {
                return None;
            }
            number |= shifted;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    /// The next [`RowWriter::digits`]. The text is written into `buffer`.
    pub fn digits<'b>(&mut self, buffer: &'b mut [u8; BLOB_BYTES_MAX]) -> Option<&'b str> {
        if self.0.first() == Some(&PLAIN) {
            self.array::<1>()?;
            let text = self.blob()?;
            let buffer = buffer.get_mut(..text.len())?;
            buffer.copy_from_slice(text);
            return std::str::from_utf8(buffer).ok();
        }
        let (mut length, mut has_run, mut has_ended) = (0, false, false);
        while !has_ended {
            let [byte] = self.array()?;
            for nibble in [byte >> 4, byte & 0x0F] {
                let (character, count) = match nibble {
                    count if has_run => (b'*', usize::from(count)),
                    STARS if !has_ended => {
                        has_run = true;
                        continue;
                    }
                    END => {
                        has_ended = true;
                        continue;
                    }
                    digit @ 0..=9 if !has_ended => (b'0' | digit, 1),
                    _ => return None,
                };
                has_run = false;
                buffer.get_mut(length..length + count)?.fill(character);
                length += count;
            }
        }
        std::str::from_utf8(buffer.get(..length)?).ok()
    }

    /// The bytes that were not read.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// The value, where every byte was read.
    pub fn end<T>(self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_varint_of_any_size_is_read_back() {
        let numbers = (0..64).flat_map(|bit| [(1 << bit) - 1, 1 << bit]).chain([u64::MAX]);
        for number in numbers {
            let mut row = RowWriter::new();
            row.varint(number);
            let row = row.into_bytes();
            let mut read = RowReader::new(&row);
            assert_eq!((read.varint(), read.rest()), (Some(number), &[][..]));
        }
        assert_eq!(RowReader::new(&[0xFF; 11]).varint(), None, "more than 64 bits");
        assert_eq!(RowReader::new(&[0x80; 3]).varint(), None, "cut");
    }

    #[test]
    fn digits_and_stars_of_any_length_are_read_back() {
        let texts =
            ["", "0", "007", "1234567890123456789", "411111******1111", "***1", "0*1**2", "4111 1111", "١٢٣", "+"];
        let runs = [14, 15, 16, 30, 31, 255].map(|length| "*".repeat(length));
        for text in texts.into_iter().map(str::to_owned).chain(runs).chain(["9".repeat(255)]) {
            let mut row = RowWriter::new();
            row.digits(&text);
            row.array(&[7]);
            let row = row.into_bytes();
            let (mut read, mut buffer) = (RowReader::new(&row), [0; BLOB_BYTES_MAX]);
            assert_eq!((read.digits(&mut buffer), read.rest()), (Some(&*text), &[7][..]), "{row:02x?}");
        }
    }

    #[test]
    fn a_masked_account_number_of_sixteen_digits_has_seven_bytes() {
        let mut row = RowWriter::new();
        row.digits("411111******1111");
        assert_eq!(row.into_bytes(), [0x41, 0x11, 0x11, 0xA6, 0x11, 0x11, 0xFF]);
    }

    #[test]
    fn malformed_digits_are_rejected() {
        let long = [&[0xAF; 18][..], &[0xFF]].concat();
        for row in [&[0x1B][..], &[0x12], &[0x1A], &[0xF1], &[0xEE, 2, 0xFF, 0xFF], &[0xEE, 2, b'a'], &long] {
            assert_eq!(RowReader::new(row).digits(&mut [0; BLOB_BYTES_MAX]), None, "{row:02x?}");
        }
    }
}
