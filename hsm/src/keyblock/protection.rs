//! The protection of a key block (TR-31:2018, 5.3.2): an encryption key and a MAC key, derived from the key block protection
//! key (KBPK).
//!
//! ```text
//! version  derivation                                         encryption                             MAC
//! A, C     KBPK XOR 'E' or 'M'                                3DES CBC, IV: first 8 header bytes     CBC-MAC of header and ciphertext, 4 bytes
//! B        3DES-CMAC of counter, use, algorithm and length    3DES CBC, IV: the MAC                  CMAC of header and payload, 8 bytes
//! D        AES-CMAC of the same                               AES CBC, IV: the MAC                   CMAC of header and payload, 16 bytes
//! E        AES-CMAC of the same                               AES CTR, from the MAC (ISO 20038)      CMAC of header and payload, 16 bytes
//! ```

use aes::{Aes128, Aes192, Aes256};
use cmac::{
    Cmac, Mac,
    digest::{KeyInit, Output},
};
use des::{
    TdesEde3,
    cipher::{Array, BlockCipherDecrypt, BlockCipherEncrypt},
};

use super::{KeyBlockError, Version};
use crate::clear::{Clear, ClearBytes};

/// The key variants of versions A and C (TR-31:2018, 5.3.2.3).
const ENCRYPTS: u8 = b'E';
const AUTHENTICATES: u8 = b'M';

/// A key block protection key: 3DES of 16 or 24 bytes, AES of 16, 24 or 32 bytes, in memory or in a token.
pub(crate) struct ProtectionKey<'a> {
    key: KeySource<'a>,
    family: Family,
}

enum KeySource<'a> {
    Bytes(ClearBytes),
    Token(Box<dyn CmacInToken + 'a>),
}

/// An AES key in a token that never leaves the token.
pub(crate) trait CmacInToken {
    /// The length of the key in bytes.
    fn bytes(&self) -> usize;

    /// CMAC of 8 bytes (NIST SP 800-38B).
    fn cmac(&self, message: &[u8; 8], tag: &mut Clear<16>) -> Result<(), KeyBlockError>;
}

/// A block cipher of any key length.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    Tdes,
    Aes,
}

/// The key usage indicator of a derivation (TR-31:2018, tables 2 and 4).
#[derive(Clone, Copy)]
enum DerivedUse {
    Cbc = 0,
    Mac = 1,
    Ctr = 2,
}

/// The bytes that a KCV begins (ANSI X9.24-1, annex A): the CMAC of 16 zero bytes for AES, the encrypted zero block for 3DES.
/// Empty for a key of another length than the cipher allows.
pub(crate) fn check_bytes(key: &ClearBytes, family: Family) -> Vec<u8> {
    match (family, key.bytes().len()) {
        (Family::Aes, 16 | 24 | 32) => cipher(family, key).cmac(&[&[0; 16]]),
        (Family::Tdes, 16 | 24) => {
            let mut zero = vec![0; 8];
            cipher(family, key).encrypt(&mut zero);
            zero
        }
        _ => Vec::new(),
    }
}

impl<'a> ProtectionKey<'a> {
    /// A key for versions A, B and C; `None` where the length is not 16 or 24 bytes.
    pub(crate) fn tdes(key: ClearBytes) -> Option<Self> {
        matches!(key.bytes().len(), 16 | 24).then_some(Self { key: KeySource::Bytes(key), family: Family::Tdes })
    }

    /// A key for versions D and E; `None` where the length is not 16, 24 or 32 bytes.
    pub(crate) fn aes(key: ClearBytes) -> Option<Self> {
        matches!(key.bytes().len(), 16 | 24 | 32).then_some(Self { key: KeySource::Bytes(key), family: Family::Aes })
    }

    /// A key in a token, for versions D and E.
    pub(crate) fn aes_in_token(key: Box<dyn CmacInToken + 'a>) -> Option<Self> {
        matches!(key.bytes(), 16 | 24 | 32).then_some(Self { key: KeySource::Token(key), family: Family::Aes })
    }

    /// Decrypts the payload of a block in place, and returns the MAC that the block should have.
    pub(super) fn open(
        &self,
        version: Version,
        header: &str,
        payload: &mut ClearBytes,
        mac: &[u8],
    ) -> Result<Vec<u8>, KeyBlockError> {
        let authentication = self.derive(version, DerivedUse::Mac)?;
        Ok(match version {
            Version::A | Version::C => {
                let expected = cbc_mac(&authentication, &[header.as_bytes(), payload.bytes()]);
                let expected = expected.get(..version.mac_bytes()).unwrap_or_default().to_vec();
                let from = header.as_bytes().get(..8).unwrap_or_default();
                cbc_decrypt(&self.derive(version, DerivedUse::Cbc)?, from, payload.bytes_mut());
                expected
            }
            Version::B | Version::D => {
                cbc_decrypt(&self.derive(version, DerivedUse::Cbc)?, mac, payload.bytes_mut());
                authentication.cmac(&[header.as_bytes(), payload.bytes()])
            }
            Version::E => {
                ctr(&self.derive(version, DerivedUse::Ctr)?, mac, payload.bytes_mut());
                authentication.cmac(&[header.as_bytes(), payload.bytes()])
            }
        })
    }

    /// Encrypts the payload of a version D or E block in place, and returns its MAC.
    pub(super) fn protect(
        &self,
        version: Version,
        header: &str,
        payload: &mut ClearBytes,
    ) -> Result<Vec<u8>, KeyBlockError> {
        let mac = self.derive(version, DerivedUse::Mac)?.cmac(&[header.as_bytes(), payload.bytes()]);
        match version {
            Version::D => cbc_encrypt(&self.derive(version, DerivedUse::Cbc)?, &mac, payload.bytes_mut()),
            Version::E => ctr(&self.derive(version, DerivedUse::Ctr)?, &mac, payload.bytes_mut()),
            Version::A | Version::B | Version::C => return Err(KeyBlockError::Version),
        }
        Ok(mac)
    }

    fn derive(&self, version: Version, derived: DerivedUse) -> Result<Cipher, KeyBlockError> {
        let mut key = ClearBytes::zeroed(self.bytes());
        match (version, self.family, &self.key) {
            (Version::A | Version::C, Family::Tdes, KeySource::Bytes(from)) => {
                let variant = match derived {
                    DerivedUse::Mac => AUTHENTICATES,
                    DerivedUse::Cbc | DerivedUse::Ctr => ENCRYPTS,
                };
                key.bytes_mut().iter_mut().zip(from.bytes()).for_each(|(place, byte)| *place = byte ^ variant);
            }
            (Version::B, Family::Tdes, _) | (Version::D | Version::E, Family::Aes, _) => {
                self.derive_by_cmac(derived, &mut key)?;
            }
            (Version::A | Version::B | Version::C, ..) => {
                return Err(KeyBlockError::ProtectionKey { version, wanted: "a 3DES key of 16 or 24 bytes" });
            }
            (Version::D | Version::E, Family::Tdes, _) => {
                return Err(KeyBlockError::ProtectionKey { version, wanted: "an AES key of 16, 24 or 32 bytes" });
            }
        }
        Ok(cipher(self.family, &key))
    }

    fn bytes(&self) -> usize {
        match &self.key {
            KeySource::Bytes(key) => key.bytes().len(),
            KeySource::Token(key) => key.bytes(),
        }
    }

    /// Derives by CMAC of counter(1) use(2) separator(1) algorithm(2) length in bits(2) (TR-31:2018, 5.3.2.1 and 5.3.2.2).
    fn derive_by_cmac(&self, derived: DerivedUse, key: &mut ClearBytes) -> Result<(), KeyBlockError> {
        let length = self.bytes();
        let algorithm = match (self.family, length) {
            (Family::Tdes, 16) => 0,
            (Family::Tdes, _) => 1,
            (Family::Aes, 16) => 2,
            (Family::Aes, 24) => 3,
            (Family::Aes, _) => 4,
        };
        let [high, low] = u16::try_from(8 * length).unwrap_or_default().to_be_bytes();
        for (counter, piece) in (1u8..).zip(key.bytes_mut().chunks_mut(self.family.block_bytes())) {
            let message = [counter, 0, derived as u8, 0, 0, algorithm, high, low];
            let made = match &self.key {
                KeySource::Bytes(from) => ClearBytes::taken(cipher(self.family, from).cmac(&[&message])),
                KeySource::Token(from) => {
                    let mut tag = Clear::zeroed();
                    from.cmac(&message, &mut tag)?;
                    ClearBytes::copied(tag.bytes())
                }
            };
            piece.iter_mut().zip(made.bytes()).for_each(|(place, byte)| *place = *byte);
        }
        Ok(())
    }
}

fn cipher(family: Family, key: &ClearBytes) -> Cipher {
    let bytes = key.bytes();
    match (family, bytes.len()) {
        (Family::Tdes, length) => {
            let mut triple = Clear::<24>::zeroed();
            // A double-length key becomes K1 K2 K1.
            let again = bytes.iter().take(if length == 16 { 8 } else { 0 });
            triple.bytes_mut().iter_mut().zip(bytes.iter().chain(again)).for_each(|(place, byte)| *place = *byte);
            Cipher::Tdes(triple)
        }
        (Family::Aes, 16) => Cipher::Aes128(filled(bytes)),
        (Family::Aes, 24) => Cipher::Aes192(filled(bytes)),
        (Family::Aes, _) => Cipher::Aes256(filled(bytes)),
    }
}

impl Family {
    fn block_bytes(self) -> usize {
        match self {
            Self::Tdes => 8,
            Self::Aes => 16,
        }
    }
}

fn filled<const N: usize>(bytes: &[u8]) -> Clear<N> {
    let mut key = Clear::zeroed();
    key.bytes_mut().iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
    key
}

/// A block cipher key. A key block is opened once for a key, so no key schedule is kept.
enum Cipher {
    Tdes(Clear<24>),
    Aes128(Clear<16>),
    Aes192(Clear<24>),
    Aes256(Clear<32>),
}

impl Cipher {
    fn block_bytes(&self) -> usize {
        match self {
            Self::Tdes(_) => Family::Tdes.block_bytes(),
            Self::Aes128(_) | Self::Aes192(_) | Self::Aes256(_) => Family::Aes.block_bytes(),
        }
    }

    /// NIST SP 800-38B.
    fn cmac(&self, parts: &[&[u8]]) -> Vec<u8> {
        fn tag<M: Mac>(mut mac: M, parts: &[&[u8]]) -> Vec<u8> {
            parts.iter().for_each(|part| mac.update(part));
            let tag: Output<M> = mac.finalize().into_bytes();
            tag.to_vec()
        }
        match self {
            Self::Tdes(key) => tag(Cmac::<TdesEde3>::new(key.bytes().into()), parts),
            Self::Aes128(key) => tag(Cmac::<Aes128>::new(key.bytes().into()), parts),
            Self::Aes192(key) => tag(Cmac::<Aes192>::new(key.bytes().into()), parts),
            Self::Aes256(key) => tag(Cmac::<Aes256>::new(key.bytes().into()), parts),
        }
    }

    /// Encrypts one block in place; bytes of another length stay unchanged.
    fn encrypt(&self, block: &mut [u8]) {
        fn one<C: BlockCipherEncrypt>(cipher: C, block: &mut [u8]) {
            if let Ok(block) = <&mut Array<u8, C::BlockSize>>::try_from(block) {
                cipher.encrypt_block(block);
            }
        }
        match self {
            Self::Tdes(key) => one(TdesEde3::new(key.bytes().into()), block),
            Self::Aes128(key) => one(Aes128::new(key.bytes().into()), block),
            Self::Aes192(key) => one(Aes192::new(key.bytes().into()), block),
            Self::Aes256(key) => one(Aes256::new(key.bytes().into()), block),
        }
    }

    /// Decrypts one block in place; bytes of another length stay unchanged.
    fn decrypt(&self, block: &mut [u8]) {
        fn one<C: BlockCipherDecrypt>(cipher: C, block: &mut [u8]) {
            if let Ok(block) = <&mut Array<u8, C::BlockSize>>::try_from(block) {
                cipher.decrypt_block(block);
            }
        }
        match self {
            Self::Tdes(key) => one(TdesEde3::new(key.bytes().into()), block),
            Self::Aes128(key) => one(Aes128::new(key.bytes().into()), block),
            Self::Aes192(key) => one(Aes192::new(key.bytes().into()), block),
            Self::Aes256(key) => one(Aes256::new(key.bytes().into()), block),
        }
    }
}

fn xor(place: &mut [u8], with: &[u8]) {
    place.iter_mut().zip(with).for_each(|(place, with)| *place ^= with);
}

fn cbc_encrypt(cipher: &Cipher, from: &[u8], bytes: &mut [u8]) {
    let mut before = from.to_vec();
    for block in bytes.chunks_mut(cipher.block_bytes()) {
        xor(block, &before);
        cipher.encrypt(block);
        before.copy_from_slice(block);
    }
}

fn cbc_decrypt(cipher: &Cipher, from: &[u8], bytes: &mut [u8]) {
    let mut before = from.to_vec();
    for block in bytes.chunks_mut(cipher.block_bytes()) {
        let ciphertext = block.to_vec();
        cipher.decrypt(block);
        xor(block, &before);
        before = ciphertext;
    }
}

/// Encrypts or decrypts with a 16-byte big-endian counter.
fn ctr(cipher: &Cipher, from: &[u8], bytes: &mut [u8]) {
    let mut counter = u128::from_be_bytes(from.try_into().unwrap_or_default());
    for piece in bytes.chunks_mut(cipher.block_bytes()) {
        let mut pad = ClearBytes::copied(&counter.to_be_bytes());
        cipher.encrypt(pad.bytes_mut());
        xor(piece, pad.bytes());
        counter = counter.wrapping_add(1);
    }
}

/// CBC-MAC with a zero IV (ISO 9797-1, algorithm 1). The parts together are whole blocks.
fn cbc_mac(cipher: &Cipher, parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = vec![0; cipher.block_bytes()];
    for block in parts.concat().chunks(cipher.block_bytes()) {
        xor(&mut mac, block);
        cipher.encrypt(&mut mac);
    }
    mac
}

#[cfg(test)]
pub(crate) mod known_answers {
    use super::*;

    /// The encryption and MAC keys derived from a key, by the method's name in `vectors.json`.
    pub(crate) fn derive_both(key: &[u8], method: &str) -> (Vec<u8>, Vec<u8>) {
        let key = ClearBytes::copied(key);
        let (version, protection) = match method.as_bytes() {
            [b'A', ..] => (Version::A, ProtectionKey::tdes(key)),
            [b'B', ..] => (Version::B, ProtectionKey::tdes(key)),
            _ => (Version::D, ProtectionKey::aes(key)),
        };
        let protection = protection.unwrap();
        let made = |derived| {
            let cipher = protection.derive(version, derived).unwrap();
            let bytes = match &cipher {
                Cipher::Tdes(key) => &key.bytes()[..protection.bytes()],
                Cipher::Aes128(key) => &key.bytes()[..],
                Cipher::Aes192(key) => &key.bytes()[..],
                Cipher::Aes256(key) => &key.bytes()[..],
            };
            bytes.to_vec()
        };
        (made(DerivedUse::Cbc), made(DerivedUse::Mac))
    }
}
