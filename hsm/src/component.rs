//! Components: a key in 2 to 9 parts, each known to one custodian, that are the key together and nothing apart (XOR).
//!
//! Clear components are typed and shown here and nowhere else; `terminal` is where.

mod terminal;

use aws_lc_rs::rand;
use subtle::ConstantTimeEq;
use thiserror::Error;

pub use self::terminal::ComponentTerminal;
use crate::{
    check_value::Kcv,
    clear::ClearBytes,
    keyring::{KeyAlgorithm, check_value, is_weak, set_odd_parity},
};

/// How many components a key may have.
pub const COMPONENTS: std::ops::RangeInclusive<usize> = 2..=9;

/// The components of one key, as custodians enter them.
pub struct Components {
    algorithm: KeyAlgorithm,
    entered: Vec<ClearBytes>,
    check_values: Vec<Kcv>,
}

impl Components {
    /// None yet.
    pub fn new(algorithm: KeyAlgorithm) -> Self {
        Self { algorithm, entered: Vec::new(), check_values: Vec::new() }
    }

    /// A custodian enters one, and the check value that stands with it.
    pub fn enter(&mut self, terminal: &mut ComponentTerminal, custodian: &str) -> Result<Kcv, ComponentError> {
        let number = self.entered.len() + 1;
        let mut component = ClearBytes::zeroed(self.algorithm.bytes());
        terminal.ask_component(custodian, number, &mut component)?;
        let expected = terminal.ask_check_value(custodian, number)?;
        self.take(component, &expected)
    }

    fn take(&mut self, component: ClearBytes, expected: &[u8]) -> Result<Kcv, ComponentError> {
        let found = check_value(self.algorithm, &component);
        // Three bytes, or the five that X9.143 has for AES, of which three are compared.
        if expected.get(..3) != Some(&found.as_bytes()[..]) {
            return Err(ComponentError::Kcv);
        }
        if component.bytes().iter().all(|byte| *byte == 0) {
            return Err(ComponentError::Zeros);
        }
        if self.entered.iter().any(|other| bool::from(other.bytes().ct_eq(component.bytes()))) {
            return Err(ComponentError::Twice);
        }
        self.entered.push(component);
        self.check_values.push(found);
        Ok(found)
    }

    /// Of each component, in the order they were entered.
    pub fn kcvs(&self) -> &[Kcv] {
        &self.check_values
    }

    /// What it is a key of.
    pub fn algorithm(&self) -> KeyAlgorithm {
        self.algorithm
    }

    /// The key: 3DES with odd parity, which an even number of odd components does not give by itself.
    pub(crate) fn combined(&self) -> Result<ClearBytes, ComponentError> {
        if !COMPONENTS.contains(&self.entered.len()) {
            return Err(ComponentError::Number { found: self.entered.len() });
        }
        let mut key = ClearBytes::zeroed(self.algorithm.bytes());
        for component in &self.entered {
            key.bytes_mut().iter_mut().zip(component.bytes()).for_each(|(place, byte)| *place ^= byte);
        }
        set_odd_parity(self.algorithm, &mut key);
        if is_weak(self.algorithm, &key) { Err(ComponentError::Weak) } else { Ok(key) }
    }
}

/// The KCVs of a key made by [`make_components`] and of its components.
pub struct ComponentKcvs {
    /// Of the key they are together.
    pub key: Kcv,
    /// Of each.
    pub components: Vec<Kcv>,
}

/// Makes a fresh key in as many components as there are custodians, and shows each its own. Nothing of it is kept.
pub fn make_components(
    terminal: &mut ComponentTerminal,
    algorithm: KeyAlgorithm,
    custodians: &[&str],
) -> Result<ComponentKcvs, ComponentError> {
    let (components, key) = loop {
        let mut components = Components::new(algorithm);
        for _ in custodians {
            let mut component = ClearBytes::zeroed(algorithm.bytes());
            rand::fill(component.bytes_mut()).map_err(|_| ComponentError::Random)?;
            set_odd_parity(algorithm, &mut component);
            let expected = check_value(algorithm, &component);
            components.take(component, expected.as_bytes())?;
        }
        match components.combined() {
            Ok(key) => break (components, key),
            Err(ComponentError::Weak) => {}
            Err(error) => return Err(error),
        }
    };
    for (number, (custodian, component)) in (1..).zip(custodians.iter().zip(&components.entered)) {
        terminal.show_component(custodian, number, component, check_value(algorithm, component))?;
    }
    Ok(ComponentKcvs { key: check_value(algorithm, &key), components: components.check_values })
}

/// Why a component, or the key of them all, is not taken.
#[derive(Debug, Error)]
pub enum ComponentError {
    /// Not as many digits as the key has, or not digits.
    #[error("a component is as many hexadecimal digits as the key has: {wanted}")]
    Digits {
        /// How many.
        wanted: usize,
    },
    /// Its check value says otherwise.
    #[error("the check value is another: the component was mistyped, or is not the one that was written down")]
    Kcv,
    /// It would hide nothing.
    #[error("a component of zeros hides nothing: enter the one that was written down")]
    Zeros,
    /// Entered twice, it would cancel itself.
    #[error("the same component was entered already")]
    Twice,
    /// Together they are no key.
    #[error("the components make a weak key, or one with two equal parts: make new ones")]
    Weak,
    /// Too few or too many.
    #[error("a key has {} to {} components: there are {found}", COMPONENTS.start(), COMPONENTS.end())]
    Number {
        /// How many.
        found: usize,
    },
    /// No randomness.
    #[error("the random generator failed")]
    Random,
    /// The custodian went away.
    #[error("the input ended before the component did")]
    Ended,
    /// The terminal or the pipe.
    #[error("the terminal: {0}")]
    Io(#[from] std::io::Error),
}

#[cfg(test)]
impl Components {
    /// One whose check value is right.
    pub(crate) fn take_known(&mut self, component: &[u8]) {
        let component = ClearBytes::copied(component);
        let expected = check_value(self.algorithm, &component);
        self.take(component, expected.as_bytes()).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use base16ct::mixed;

    use super::*;

    fn entered(algorithm: KeyAlgorithm, components: &[&[u8]]) -> Result<Components, ComponentError> {
        let mut all = Components::new(algorithm);
        for component in components {
            let component = ClearBytes::copied(component);
            let expected = check_value(algorithm, &component);
            all.take(component, expected.as_bytes())?;
        }
        Ok(all)
    }

    #[test]
    fn the_published_components_make_their_keys() {
        let entries: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/components.json")).unwrap();
        for entry in entries.as_array().unwrap() {
            let text = |value: &serde_json::Value| mixed::decode_vec(value.as_str().unwrap()).unwrap();
            let list = |name: &str| entry[name].as_array().unwrap().iter().map(text).collect::<Vec<_>>();
            let key = text(&entry["key"]);
            let algorithm = match (entry["algorithm"].as_str().unwrap(), key.len()) {
                ("TDES", 16) => KeyAlgorithm::TdesDouble,
                ("TDES", _) => KeyAlgorithm::TdesTriple,
                ("AES", 16) => KeyAlgorithm::Aes128,
                _ => KeyAlgorithm::Aes256,
            };
            let mut components = Components::new(algorithm);
            for (component, expected) in list("components").iter().zip(list("component_kcvs")) {
                components.take(ClearBytes::copied(component), &expected).unwrap();
            }
            let combined = components.combined().unwrap();
            assert!(combined.bytes() == key, "{entry}");
            assert_eq!(check_value(algorithm, &combined).as_bytes()[..], text(&entry["key_kcv"])[..3], "{entry}");
        }
    }

    #[test]
    fn wrong_kcv_repeated_and_zero_components_are_rejected() {
        let aes = KeyAlgorithm::Aes256;
        let mut components = Components::new(aes);
        assert!(matches!(components.take(ClearBytes::copied(&[1; 32]), &[0, 0, 0]), Err(ComponentError::Kcv)));
        assert!(matches!(entered(aes, &[&[1; 32], &[1; 32]]), Err(ComponentError::Twice)));
        assert!(matches!(entered(aes, &[&[0; 32]]), Err(ComponentError::Zeros)));
    }

    #[test]
    fn one_component_is_no_key_and_ten_are_too_many() {
        for number in [1, 10u8] {
            let all: Vec<_> = (1..=number).map(|byte| [byte; 32]).collect();
            let all: Vec<_> = all.iter().map(|component| &component[..]).collect();
            let combined = entered(KeyAlgorithm::Aes256, &all).unwrap().combined().err();
            assert!(matches!(combined, Some(ComponentError::Number { .. })));
        }
    }

    #[test]
    fn a_weak_combined_key_is_rejected() {
        let half = [0x13, 0x34, 0x57, 0x79, 0x9B, 0xBC, 0xDF, 0xF1];
        let other = mixed::decode_vec("DFE93110165B34230D6D5B318A2C15AE").unwrap();
        let key = [half, half].concat();
        let last: Vec<_> = other.iter().zip(&key).map(|(a, b)| a ^ b).collect();
        let combined = entered(KeyAlgorithm::TdesDouble, &[&other, &last]).unwrap().combined().err();
        assert!(matches!(combined, Some(ComponentError::Weak)));
    }

    #[test]
    fn components_combine_to_a_key_with_odd_parity() {
        for number in COMPONENTS {
            let mut components = Components::new(KeyAlgorithm::TdesDouble);
            for _ in 0..number {
                let component = crate::keyring::random_key(KeyAlgorithm::TdesDouble).unwrap();
                let expected = check_value(KeyAlgorithm::TdesDouble, &component);
                components.take(component, expected.as_bytes()).unwrap();
            }
            let key = components.combined().unwrap();
            assert!(key.bytes().iter().all(|byte| byte.count_ones() % 2 == 1));
        }
    }
}
