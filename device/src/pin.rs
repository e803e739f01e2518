//! The PIN that the cardholder types, and its ISO 9564 format 1 block.

use aws_lc_rs::rand;
use thiserror::Error;
use zeroize::Zeroize;

/// A clear PIN of the device: 4 to 12 digits. It has no `Debug` and no `Clone`, and is wiped on drop.
pub struct Pin(String);

/// The fill of a block behind the PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// A random nibble at each place.
    Random,
    /// One nibble throughout: the vendor's documented device uses `0xA`.
    Constant(u8),
}

impl Pin {
    /// Reads 4 to 12 ASCII digits.
    ///
    /// # Errors
    /// The text has another length or another character.
    pub fn parse(text: &str) -> Result<Self, PinError> {
        let good = (4..=12).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        good.then(|| Self(text.to_owned())).ok_or(PinError)
    }

    /// The digits, for the phone's screen.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The ISO 9564 format 1 block: the nibbles `1`, length, PIN digits, fill; 8 bytes.
    pub fn to_block(&self, fill: Fill) -> [u8; 8] {
        let mut block = [0; 8];
        match fill {
            // Without randomness the fill is zeros: the block is still well-formed.
            Fill::Random => drop(rand::fill(&mut block)),
            Fill::Constant(nibble) => block.fill((nibble << 4) | (nibble & 0x0F)),
        }
        let head = [1, u8::try_from(self.0.len()).unwrap_or_default()];
        let nibbles = head.into_iter().chain(self.0.bytes().map(|byte| byte - b'0'));
        for (index, nibble) in nibbles.enumerate() {
            if let Some(byte) = block.get_mut(index / 2) {
                *byte = if index.is_multiple_of(2) { (*byte & 0x0F) | (nibble << 4) } else { (*byte & 0xF0) | nibble };
            }
        }
        block
    }

    /// The PIN in an ISO 9564 format 1 block; `None` where the block is malformed.
    pub fn from_block(block: &[u8; 8]) -> Option<Self> {
        let nibbles: Vec<u8> = block.iter().flat_map(|byte| [byte >> 4, byte & 0x0F]).collect();
        let [1, length, digits @ ..] = nibbles.as_slice() else { return None };
        let digits = digits.get(..usize::from(*length))?;
        let text: Option<String> = digits.iter().map(|digit| char::from_digit((*digit).into(), 10)).collect();
        Self::parse(&text?).ok()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The text is not 4 to 12 digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a PIN is 4 to 12 digits")]
pub struct PinError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_returns_its_pin_for_every_fill() {
        for text in ["1234", "25801", "123456789012"] {
            for fill in [Fill::Random, Fill::Constant(0xA), Fill::Constant(0)] {
                let block = Pin::parse(text).unwrap().to_block(fill);
                assert_eq!(Pin::from_block(&block).unwrap().reveal(), text);
            }
        }
    }

    #[test]
    fn the_vendors_device_fills_with_a() {
        let block = Pin::parse("1234").unwrap().to_block(Fill::Constant(0xA));
        assert_eq!(block, 0x1412_34AA_AAAA_AAAAu64.to_be_bytes());
    }

    #[test]
    fn malformed_pins_and_blocks_are_rejected() {
        for refused in ["", "123", "1234567890123", "12a4"] {
            assert!(Pin::parse(refused).is_err());
        }
        assert!(Pin::from_block(&0x0412_34FF_FFFF_FFFFu64.to_be_bytes()).is_none());
        assert!(Pin::from_block(&0x1F12_34FF_FFFF_FFFFu64.to_be_bytes()).is_none());
    }
}
