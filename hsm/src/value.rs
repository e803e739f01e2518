//! PIN verification values: pure functions on clear types, without keys.
//!
//! No branch and no memory access depends on a digit of the PIN or on a nibble of the ciphertext. The cipher of `des` uses
//! tables, as every other 3DES operation here.

mod ibm_3624;
#[cfg(test)]
mod psec_tests;
mod pvv;

pub(crate) use self::{
    ibm_3624::{natural_pin, offset},
    pvv::{pvv, security_parameter},
};
use hsm_protocol::VerificationValue;

/// The value of the first `length` nibbles of `digits`, each 0 to 9.
pub(crate) fn to_value(digits: u64, length: u8) -> Option<VerificationValue> {
    let mut all = [0; 12];
    for (place, digit) in (0..).zip(&mut all) {
        *digit = ((digits >> (60 - 4 * place)) & 0xF) as u8;
    }
    VerificationValue::from_digits(all.get(..length.into())?)
}

/// The digits of a value, one in each nibble, from the highest nibble down.
pub(crate) fn packed(value: &VerificationValue) -> u64 {
    (0..).zip(value.digits()).fold(0, |packed, (place, digit)| packed | (u64::from(*digit) << (60 - 4 * place)))
}
