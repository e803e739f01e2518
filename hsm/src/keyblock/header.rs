//! The header of a key block and its optional blocks, as text, without ciphers.
//!
//! ```text
//! version(1) length(4) usage(2) algorithm(1) mode(1) key version(2) exportability(1) number of optional blocks(2) context(2)
//! optional block: id(2) length(2) data                       length: hexadecimal, of the whole optional block
//!                 id(2) "00" digits(2) length(digits) data   an extended length, for more than 255 characters
//! ```

use std::fmt;

use super::{CHARACTERS_MAX, KeyBlockError, registry};

/// The characters of the header without optional blocks.
const HEADER_CHARACTERS: usize = 16;
/// The optional block that pads the optional blocks to whole cipher blocks.
const PADDING_ID: &str = "PB";
/// The most characters of an optional block with a two-digit length.
const SHORT_CHARACTERS_MAX: usize = 0xFF;
/// The digits of an extended length that this crate writes, and the most that it reads.
const EXTENDED_DIGITS: usize = 4;

/// The version of a key block: the cipher and the key derivation that protect it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 3DES, derivation by XOR with a constant. Superseded by C.
    A,
    /// 3DES, derivation by CMAC.
    B,
    /// 3DES, derivation by XOR with a constant.
    C,
    /// AES-CBC, derivation by CMAC.
    D,
    /// AES-CTR, derivation by CMAC (ISO 20038).
    E,
}

impl Version {
    /// Parses the first character of a block.
    fn read(letter: u8) -> Result<Self, KeyBlockError> {
        match letter {
            b'A' => Ok(Self::A),
            b'B' => Ok(Self::B),
            b'C' => Ok(Self::C),
            b'D' => Ok(Self::D),
            b'E' => Ok(Self::E),
            _ => Err(KeyBlockError::Version),
        }
    }

    /// Whether this crate writes the version.
    pub fn is_written(self) -> bool {
        matches!(self, Self::D | Self::E)
    }

    /// The length of the MAC in bytes.
    pub fn mac_bytes(self) -> usize {
        match self {
            Self::A | Self::C => 4,
            Self::B => 8,
            Self::D | Self::E => 16,
        }
    }

    /// The encrypted part is a multiple of this many bytes.
    pub(super) fn encrypted_multiple(self) -> usize {
        match self {
            Self::A | Self::B | Self::C => 8,
            Self::D => 16,
            Self::E => 1,
        }
    }

    /// The optional blocks together are a multiple of this many characters.
    fn optional_multiple(self) -> usize {
        match self {
            Self::A | Self::B | Self::C => 8,
            Self::D | Self::E => 16,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self {
            Self::A => "A",
            Self::B => "B",
            Self::C => "C",
            Self::D => "D",
            Self::E => "E",
        };
        f.write_str(letter)
    }
}

/// The header of a key block: the attributes of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    version: Version,
    usage: [char; 2],
    algorithm: char,
    mode: char,
    key_version: [char; 2],
    exportability: char,
    context: [char; 2],
    optional: Vec<OptionalBlock>,
}

/// An optional block of a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionalBlock {
    id: [char; 2],
    data: String,
}

impl OptionalBlock {
    /// The two letters of the id.
    pub fn id(&self) -> String {
        self.id.iter().collect()
    }

    /// The data after the length.
    pub fn data(&self) -> &str {
        &self.data
    }

    fn write(&self) -> String {
        let (id, short) = (self.id(), 4 + self.data.len());
        if short <= SHORT_CHARACTERS_MAX {
            return format!("{id}{short:02X}{}", self.data);
        }
        let extended = short + 2 + EXTENDED_DIGITS;
        format!("{id}00{EXTENDED_DIGITS:02X}{extended:0EXTENDED_DIGITS$X}{}", self.data)
    }
}

impl Header {
    /// A header to be written, without optional blocks.
    pub(crate) fn new(version: Version, usage: [char; 2], algorithm: char, mode: char, exportability: char) -> Self {
        let (key_version, context, optional) = (['0', '0'], ['0', '0'], Vec::new());
        Self { version, usage, algorithm, mode, key_version, exportability, context, optional }
    }

    /// The header with one more optional block.
    #[cfg(test)]
    pub(crate) fn with_optional(mut self, id: [char; 2], data: &str) -> Self {
        self.optional.push(OptionalBlock { id, data: data.to_owned() });
        self
    }

    /// The version of the block.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The key usage: two characters, such as `P0`.
    pub fn usage(&self) -> String {
        self.usage.iter().collect()
    }

    pub(super) fn usage_code(&self) -> [char; 2] {
        self.usage
    }

    /// The algorithm of the key: `A` for AES, `T` for 3DES.
    pub fn algorithm(&self) -> char {
        self.algorithm
    }

    /// The mode of use: `E` encrypts, `D` decrypts, `B` does both.
    pub fn mode(&self) -> char {
        self.mode
    }

    /// The key version number; `00` for none.
    pub fn key_version(&self) -> String {
        self.key_version.iter().collect()
    }

    /// The exportability: `E`, `N` or `S`.
    pub fn exportability(&self) -> char {
        self.exportability
    }

    /// The key context; `00` for no restriction.
    pub fn context(&self) -> String {
        self.context.iter().collect()
    }

    /// The optional blocks in their order.
    pub fn optional(&self) -> &[OptionalBlock] {
        &self.optional
    }

    /// Parses a header. Returns the rest of the text too, the encrypted part and the MAC.
    pub(super) fn read(text: &str) -> Result<(Self, &str), KeyBlockError> {
        let found = text.len();
        let short = |_| KeyBlockError::Length { written: HEADER_CHARACTERS, found };
        let fixed: &[u8; HEADER_CHARACTERS] =
            text.as_bytes().get(..HEADER_CHARACTERS).unwrap_or_default().try_into().map_err(short)?;
        let [version, l1, l2, l3, l4, u1, u2, algorithm, mode, v1, v2, exportability, n1, n2, c1, c2] = *fixed;
        let version = Version::read(version)?;
        let field = |field: &'static str| move || KeyBlockError::Header { field };
        let written = number(&[l1, l2, l3, l4], 10).ok_or_else(field("length"))?;
        if written != found {
            return Err(KeyBlockError::Length { written, found });
        }
        let count = number(&[n1, n2], 10).ok_or_else(field("number of optional blocks"))?;
        let code = |bytes: &[u8], name| match bytes.iter().all(u8::is_ascii_alphanumeric) {
            true => Ok(()),
            false => Err(KeyBlockError::Header { field: name }),
        };
        code(&[u1, u2], "usage")?;
        code(&[algorithm], "algorithm")?;
        code(&[mode], "mode of use")?;
        code(&[v1, v2], "key version")?;
        code(&[exportability], "exportability")?;
        code(&[c1, c2], "context")?;

        let mut rest = text.get(HEADER_CHARACTERS..).unwrap_or_default();
        let optional = (1..=count).map(|number| take_optional(&mut rest, number)).collect::<Result<Vec<_>, _>>()?;
        let length = found.saturating_sub(HEADER_CHARACTERS + rest.len());
        if !length.is_multiple_of(version.optional_multiple()) {
            return Err(KeyBlockError::Header { field: "optional blocks, which do not fill whole cipher blocks," });
        }
        if let Some(at) = optional.iter().position(|block| block.id() == PADDING_ID).filter(|at| at + 1 < count) {
            let problem = "pads, and is not the last";
            return Err(KeyBlockError::Optional { number: at + 1, id: PADDING_ID.into(), problem });
        }
        let header = Self {
            version,
            usage: [u1.into(), u2.into()],
            algorithm: algorithm.into(),
            mode: mode.into(),
            key_version: [v1.into(), v2.into()],
            exportability: exportability.into(),
            context: [c1.into(), c2.into()],
            optional,
        };
        Ok((header, rest))
    }

    /// Writes the header of a block with `rest` characters after the header.
    pub(super) fn write(&self, rest: usize) -> Result<String, KeyBlockError> {
        let optional: String = self.optional.iter().map(OptionalBlock::write).collect();
        let length = HEADER_CHARACTERS + optional.len() + rest;
        if length > CHARACTERS_MAX {
            return Err(KeyBlockError::Length { written: CHARACTERS_MAX, found: length });
        }
        let Self { version, algorithm, mode, exportability, .. } = self;
        let (usage, key_version, context) = (self.usage(), self.key_version(), self.context());
        let count = self.optional.len();
        Ok(format!(
            "{version}{length:04}{usage}{algorithm}{mode}{key_version}{exportability}{count:02}{context}{optional}"
        ))
    }
}

fn take_optional(text: &mut &str, number_of_block: usize) -> Result<OptionalBlock, KeyBlockError> {
    let whole = *text;
    let id = whole.get(..2).unwrap_or(whole).to_owned();
    let problem = |problem| KeyBlockError::Optional { number: number_of_block, id: id.clone(), problem };
    let missing = || problem("is cut short");
    let mut name = id.chars();
    let (Some(first), Some(second)) = (name.next(), name.next()) else { return Err(missing()) };
    if !first.is_ascii_alphanumeric() || !second.is_ascii_alphanumeric() {
        return Err(problem("has no name of two letters"));
    }
    let hexadecimal = |at: usize, digits: usize| {
        let digits = whole.as_bytes().get(at..at + digits).ok_or_else(missing)?;
        number(digits, 16).ok_or_else(|| problem("has a length that is no hexadecimal number"))
    };
    let (length, data_at) = match hexadecimal(2, 2)? {
        0 => {
            let digits = hexadecimal(4, 2)?;
            // Four digits exceed the longest block.
            if digits == 0 || digits > EXTENDED_DIGITS {
                return Err(problem("has an impossible extended length"));
            }
            (hexadecimal(6, digits)?, 6 + digits)
        }
        length => (length, 4),
    };
    if length < data_at {
        return Err(problem("has a length shorter than itself"));
    }
    let data = whole.get(data_at..length).ok_or_else(missing)?.to_owned();
    registry::check_optional(&id, &data).map_err(problem)?;
    *text = whole.get(length..).unwrap_or_default();
    Ok(OptionalBlock { id: [first, second], data })
}

/// Parses a number of a few upper-case digits.
fn number(digits: &[u8], radix: usize) -> Option<usize> {
    let value = |digit: &u8| match digit {
        b'0'..=b'9' => Some(usize::from(digit - b'0')),
        b'A'..=b'F' if radix == 16 => Some(usize::from(digit - b'A') + 10),
        _ => None,
    };
    digits.iter().try_fold(0usize, |number, digit| Some(number.checked_mul(radix)? + value(digit)?))
}
