//! AES over a chain of blocks, each XORed with the ciphertext before it: ISO 9564-1 format 4 and CMAC consist of such chains.
//!
//! A chain runs within one call of the cipher: preparing the SIMD registers for a call costs more than one block.

use aes::{
    Aes256, Block,
    cipher::{BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, KeyInit, consts::U16},
};

use hsm_protocol::TAG_BYTES;

use crate::clear::{Clear, WideBlock};

/// R_128 of NIST SP 800-38B, 5.3.
const R_128: u128 = 0x87;

/// An AES-256-CMAC key (NIST SP 800-38B): the key schedule and the two subkeys.
pub(crate) struct CmacKey {
    cipher: Aes256,
    subkeys: Clear<32>,
}

impl CmacKey {
    pub(crate) fn new(key: &Clear<32>) -> Self {
        let cipher = Aes256::new(key.bytes().into());
        let mut subkeys = Clear::zeroed();
        let mut zero = WideBlock::zeroed();
        encrypt_chain(&cipher, &mut zero, []);
        let (whole_subkey, padded_subkey) = cmac_subkeys(zero.nibbles());
        subkeys.set_halves(whole_subkey, padded_subkey);
        Self { cipher, subkeys }
    }

    /// The CMAC of `message`, 16 bytes.
    pub(crate) fn tag(&self, message: &[u8]) -> [u8; TAG_BYTES] {
        let (whole_subkey, padded_subkey) = self.subkeys.halves();
        let (blocks, rest) = message.as_chunks::<16>();
        let mut padded = [0; 16];
        padded.iter_mut().zip(rest.iter().chain(&[0x80])).for_each(|(place, byte)| *place = *byte);
        let (blocks, last) = match (blocks.split_last(), rest) {
            (Some((last, blocks)), []) => (blocks, u128::from_be_bytes(*last) ^ whole_subkey),
            _ => (blocks, u128::from_be_bytes(padded) ^ padded_subkey),
        };
        let mut blocks = blocks.iter().map(|block| u128::from_be_bytes(*block)).chain([last]);
        let mut tag = blocks.next().unwrap_or_default().to_be_bytes();
        self.cipher.encrypt_with_backend(Chain { block: (&mut tag).into(), next: blocks });
        tag
    }
}

/// Encrypts `block` in place, then XORs in each block of `next` and encrypts again.
pub(crate) fn encrypt_chain<C>(cipher: &C, block: &mut WideBlock, next: impl IntoIterator<Item = u128>)
where
    C: BlockCipherEncrypt<BlockSize = U16>,
{
    cipher.encrypt_with_backend(Chain { block: block.bytes_mut().into(), next: next.into_iter() });
}

struct Chain<'a, I> {
    block: &'a mut Block,
    next: I,
}

impl<I> BlockSizeUser for Chain<'_, I> {
    type BlockSize = U16;
}

impl<I: Iterator<Item = u128>> BlockCipherEncClosure for Chain<'_, I> {
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        backend.encrypt_block(self.block.into());
        for next in self.next {
            *self.block = (u128::from_be_bytes((*self.block).into()) ^ next).to_be_bytes().into();
            backend.encrypt_block(self.block.into());
        }
    }
}

/// The subkeys K1, for a message of whole blocks, and K2, for a padded one, from the encrypted zero block (NIST SP 800-38B,
/// 6.1).
pub(super) fn cmac_subkeys(encrypted_zero: u128) -> (u128, u128) {
    let first = double(encrypted_zero);
    (first, double(first))
}

/// Multiplies by x in GF(2^128), without a branch on the value.
fn double(value: u128) -> u128 {
    (value << 1) ^ (R_128 & 0u128.wrapping_sub(value >> 127))
}

#[cfg(test)]
mod tests {
    use cmac::{Cmac, Mac};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn tags_equal_those_of_the_cmac_crate(key in any::<[u8; 32]>(), message in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut clear = Clear::zeroed();
            clear.bytes_mut().copy_from_slice(&key);
            let theirs = Cmac::<Aes256>::new(&key.into()).chain_update(&message).finalize().into_bytes();
            prop_assert_eq!(CmacKey::new(&clear).tag(&message), <[u8; 16]>::from(theirs));
        }
    }
}
