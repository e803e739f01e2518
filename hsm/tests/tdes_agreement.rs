//! The batch of 3DES agrees with AWS-LC, whose implementation is by other authors than that of the `des` crate.

#![expect(unsafe_code, reason = "aws-lc-rs has no 3DES, so the test calls AWS-LC")]
#![allow(clippy::unwrap_used, reason = "a test stops at an error")]

use std::ptr;

use aws_lc_sys::{
    EVP_CIPHER_CTX, EVP_CIPHER_CTX_free, EVP_CIPHER_CTX_new, EVP_CIPHER_CTX_set_padding, EVP_CipherInit_ex,
    EVP_CipherUpdate, EVP_des_ede3,
};
use bitslice_des::Batch;

/// A context of AWS-LC for single blocks.
struct AwsLc(*mut EVP_CIPHER_CTX);

impl AwsLc {
    fn new() -> Self {
        // SAFETY: the call has no arguments. A null pointer stops the test.
        let context = unsafe { EVP_CIPHER_CTX_new() };
        assert!(!context.is_null());
        Self(context)
    }

    fn block(&self, key: [[u8; 8]; 3], block: [u8; 8], is_encrypt: i32) -> [u8; 8] {
        let (mut out, mut length) = ([0; 16], 0);
        let key = key.as_flattened().as_ptr();
        // SAFETY: the context lives. The key has the 24 bytes of the cipher, the block 8 bytes, the output 8 more than one block.
        let done = unsafe {
            EVP_CipherInit_ex(self.0, EVP_des_ede3(), ptr::null_mut(), key, ptr::null(), is_encrypt)
                & EVP_CIPHER_CTX_set_padding(self.0, 0)
                & EVP_CipherUpdate(self.0, out.as_mut_ptr(), &mut length, block.as_ptr(), 8)
        };
        assert_eq!((done, length), (1, 8));
        *out.first_chunk().unwrap()
    }
}

impl Drop for AwsLc {
    fn drop(&mut self) {
        // SAFETY: the context is of `EVP_CIPHER_CTX_new`, and is freed once.
        unsafe { EVP_CIPHER_CTX_free(self.0) };
    }
}

#[test]
fn a_million_random_blocks_agree_with_aws_lc() {
    // Reproducible words (xorshift64, G. Marsaglia 2003).
    let mut state = 0x9E37_79B9_7F4A_7C15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()
    };
    let (aws_lc, mut batch) = (AwsLc::new(), Batch::new());
    for turn in 0..1_000_000 / Batch::BLOCKS_MAX + 1 {
        let is_double = turn.is_multiple_of(2);
        let entries: Vec<_> = (0..Batch::BLOCKS_MAX)
            .map(|_| {
                let (k1, k2) = (next(), next());
                ([k1, k2, if is_double { k1 } else { next() }], next())
            })
            .collect();
        for (key, block) in &entries {
            if is_double {
                batch.push_double(key.as_flattened()[..16].try_into().unwrap(), block).unwrap();
            } else {
                batch.push_triple(key.as_flattened().try_into().unwrap(), block).unwrap();
            }
        }
        let is_encrypt = i32::from(turn % 4 < 2);
        let blocks = if is_encrypt == 1 { batch.encrypt() } else { batch.decrypt() };
        for (at, (key, block)) in entries.iter().enumerate() {
            let mut own = [0; 8];
            assert!(blocks.copy(at, &mut own));
            assert_eq!(own, aws_lc.block(*key, *block, is_encrypt), "turn {turn}, block {at}");
        }
    }
}
