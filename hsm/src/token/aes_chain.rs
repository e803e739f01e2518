//! AES-256 over a chain of blocks, each XORed with the ciphertext before it: what ISO 9564 format 4 and CMAC are made of.
//!
//! A chain runs within one call of the cipher: preparing its wide registers for a call costs more than a block.

use aes::{
    Aes256, Block,
    cipher::{BlockCipherEncBackend, BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, KeyInit, consts::U16},
};

use crate::{
    clear::{Clear, WideBlock},
    sealed::TAG_BYTES,
};

/// The polynomial of NIST SP 800-38B for blocks of 128 bits.
const R_128: u128 = 0x87;

/// A prepared AES-256-CMAC key (NIST SP 800-38B): the schedule and its two subkeys.
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
        let first = double(zero.nibbles());
        subkeys.set_halves(first, double(first));
        Self { cipher, subkeys }
    }

    /// The tag over `message`.
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

/// Encrypts `block` in place; then, for each of `next`, XORs it in and encrypts again.
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

/// Multiplied by x in GF(2^128), without a branch on the value.
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
        fn tags_are_those_of_the_cmac_crate(key in any::<[u8; 32]>(), message in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut clear = Clear::zeroed();
            clear.bytes_mut().copy_from_slice(&key);
            let theirs = Cmac::<Aes256>::new(&key.into()).chain_update(&message).finalize().into_bytes();
            prop_assert_eq!(CmacKey::new(&clear).tag(&message), <[u8; 16]>::from(theirs));
        }
    }
}
