//! Key components (split knowledge): 2 to 9 parts, each known to one custodian, whose XOR is the key. Fewer parts reveal
//! nothing of the key.
//!
//! Clear components are typed and shown only in `terminal`.

mod terminal;

use aws_lc_rs::rand;
use subtle::ConstantTimeEq;
use thiserror::Error;

pub use self::terminal::ComponentTerminal;
use hsm_protocol::Kcv;

use crate::{
    clear::ClearBytes,
    keyring::{KeyAlgorithm, check_value, is_weak, set_odd_parity},
};

/// The allowed number of components of a key.
pub const COMPONENTS: std::ops::RangeInclusive<usize> = 2..=9;

/// The components of one key, as custodians enter them.
pub struct Components {
    algorithm: KeyAlgorithm,
    entered: Vec<ClearBytes>,
    kcvs: Vec<Kcv>,
}

impl Components {
    /// No components yet, for a key of this algorithm.
    pub fn new(algorithm: KeyAlgorithm) -> Self {
        Self { algorithm, entered: Vec::new(), kcvs: Vec::new() }
    }

    /// A custodian types a component and its KCV. Returns the KCV, 3 bytes.
    ///
    /// # Errors
    /// [`ComponentError::Digits`], [`ComponentError::Kcv`], [`ComponentError::Zeros`] or [`ComponentError::Twice`] for a wrong
    /// component; [`ComponentError::Ended`] and [`ComponentError::Io`] by the terminal.
    pub fn enter(&mut self, terminal: &mut ComponentTerminal, custodian: &str) -> Result<Kcv, ComponentError> {
        let number = self.entered.len() + 1;
        let mut component = ClearBytes::zeroed(self.algorithm.bytes());
        terminal.ask_component(custodian, number, &mut component)?;
        let expected = terminal.ask_kcv(custodian, number)?;
        self.add(component, &expected)
    }

    fn add(&mut self, component: ClearBytes, expected: &[u8]) -> Result<Kcv, ComponentError> {
        let found = check_value(self.algorithm, &component);
        // 3 bytes, or 5 for AES (X9.143). The first 3 are compared.
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
        self.kcvs.push(found);
        Ok(found)
    }

    /// The KCV of each component, in the order of entry.
    pub fn kcvs(&self) -> &[Kcv] {
        &self.kcvs
    }

    /// The algorithm of the key.
    pub fn algorithm(&self) -> KeyAlgorithm {
        self.algorithm
    }

    /// The XOR of the components. A 3DES key gets odd parity, because an even number of components with odd parity gives even
    /// parity.
    ///
    /// # Errors
    /// [`ComponentError::Number`] for fewer than 2 or more than 9 components; [`ComponentError::Weak`] for a weak key.
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
    /// The KCV of the key.
    pub key: Kcv,
    /// The KCV of each component, in the order of the custodians.
    pub components: Vec<Kcv>,
}

/// Generates a key as one component for each custodian, and shows each custodian theirs. No component is stored.
///
/// # Errors
/// [`ComponentError::Number`] for fewer than 2 or more than 9 custodians; [`ComponentError::Ended`] and [`ComponentError::Io`]
/// by the terminal.
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
            components.add(component, expected.as_bytes())?;
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
    Ok(ComponentKcvs { key: check_value(algorithm, &key), components: components.kcvs })
}

/// A component, or the key of all components, is rejected.
#[derive(Debug, Error)]
pub enum ComponentError {
    /// The component has another number of digits than the key, or other characters.
    #[error("type as many hexadecimal digits as the key has: {wanted}")]
    Digits {
        /// The number of digits of the key.
        wanted: usize,
    },
    /// The typed KCV is not that of the component.
    #[error("the check value is another: the component was mistyped, or is not the one that was written down")]
    Kcv,
    /// All bytes of the component are zero.
    #[error("a component of zeros hides nothing: enter the one that was written down")]
    Zeros,
    /// The component equals an earlier one, so the two would cancel each other.
    #[error("the same component was entered already: each custodian enters their own")]
    Twice,
    /// The XOR of the components is a weak key.
    #[error("the components make a weak key, or one with two equal parts: make new ones")]
    Weak,
    /// The number of components is not 2 to 9.
    #[error("a key has {} to {} components: there are {found}", COMPONENTS.start(), COMPONENTS.end())]
    Number {
        /// The number of components.
        found: usize,
    },
    /// The random generator failed in this process.
    #[error("the random generator failed")]
    Random,
    /// The custodian pressed Ctrl-C or Ctrl-D, or the pipe ended.
    #[error("the input ended before the component did")]
    Ended,
    /// The terminal or pipe can't be read or written.
    #[error("the terminal: {0}")]
    Io(#[from] std::io::Error),
}

#[cfg(test)]
impl Components {
    /// Adds a component with its KCV.
    pub(crate) fn add_known(&mut self, component: &[u8]) {
        let component = ClearBytes::copied(component);
        let expected = check_value(self.algorithm, &component);
        self.add(component, expected.as_bytes()).unwrap();
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
            all.add(component, expected.as_bytes())?;
        }
        Ok(all)
    }

    #[test]
    fn published_components_combine_to_their_keys() {
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
                components.add(ClearBytes::copied(component), &expected).unwrap();
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
        assert!(matches!(components.add(ClearBytes::copied(&[1; 32]), &[0, 0, 0]), Err(ComponentError::Kcv)));
        assert!(matches!(entered(aes, &[&[1; 32], &[1; 32]]), Err(ComponentError::Twice)));
        assert!(matches!(entered(aes, &[&[0; 32]]), Err(ComponentError::Zeros)));
    }

    #[test]
    fn one_component_or_ten_are_rejected() {
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
                components.add(component, expected.as_bytes()).unwrap();
            }
            let key = components.combined().unwrap();
            assert!(key.bytes().iter().all(|byte| byte.count_ones() % 2 == 1));
        }
    }
}
