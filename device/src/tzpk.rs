//! A temporary zone PIN key on the device: double-length 3DES.

use des::{
    TdesEde2,
    cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit},
};
use zeroize::Zeroize;

/// The clear tzpk of the device, K1 ‖ K2, 16 bytes; wiped on drop.
pub struct Tzpk([u8; 16]);

impl Tzpk {
    /// The tzpk in these bytes; `None` unless they are 16.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// K1 ‖ K2, 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Encrypts one block: two-key 3DES, ECB.
    pub fn encrypt_block(&self, block: &[u8; 8]) -> [u8; 8] {
        let mut block = *block;
        TdesEde2::new((&self.0).into()).encrypt_block((&mut block).into());
        block
    }

    /// Decrypts one block: two-key 3DES, ECB.
    pub fn decrypt_block(&self, block: &[u8; 8]) -> [u8; 8] {
        let mut block = *block;
        TdesEde2::new((&self.0).into()).decrypt_block((&mut block).into());
        block
    }
}

impl Drop for Tzpk {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_card_pin_api_example_block_matches() {
        let tzpk = Tzpk(0x0011_2233_4455_6677_8899_AABB_CCDD_EEFFu128.to_be_bytes());
        let clear = 0x1412_34AA_AAAA_AAAAu64.to_be_bytes();
        let encrypted = tzpk.encrypt_block(&clear);
        assert_eq!(encrypted, 0x8173_9710_556E_1518u64.to_be_bytes());
        assert_eq!(tzpk.decrypt_block(&encrypted), clear);
    }
}
