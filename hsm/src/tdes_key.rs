//! Fresh 3DES keys, and the parity bits of DES (FIPS 46-3): the lowest bit of each byte makes the number of ones odd.

use crate::clear::Tzpk;

/// Sets the parity bit of every byte.
pub(crate) fn force_odd_parity(bytes: &mut [u8]) {
    for byte in bytes {
        *byte = (*byte & 0xFE) | u8::from((*byte & 0xFE).count_ones().is_multiple_of(2));
    }
}

/// Whether every byte has odd parity.
pub(crate) fn has_odd_parity(bytes: &[u8]) -> bool {
    bytes.iter().fold(1, |all, byte| all & byte.count_ones()) & 1 == 1
}

/// Fills `key` with a random double-length key: odd parity, no weak or semi-weak half (NIST SP 800-67, 3.3.2), two
/// different halves.
pub(crate) fn fill_tdes_key<E>(key: &mut Tzpk, mut random: impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<(), E> {
    loop {
        random(key.bytes_mut())?;
        force_odd_parity(key.bytes_mut());
        if des::weak_key_test(key.bytes()).is_ok() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand;

    use super::*;

    #[test]
    fn a_fresh_3des_key_has_odd_parity_and_different_halves() {
        for _ in 0..1_000 {
            let mut key = Tzpk::zeroed();
            fill_tdes_key(&mut key, rand::fill).unwrap();
            assert!(key.bytes().iter().all(|byte| byte.count_ones() % 2 == 1));
            assert!(key.bytes()[..8] != key.bytes()[8..]);
        }
    }
}
