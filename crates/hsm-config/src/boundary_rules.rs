//! The rules of a boundary's configuration without its secrets, so that a report needs no access to them.

use std::{ops::RangeInclusive, path::Path};

use config::{ConfigError, read_file};
use zone_config::{Zone, check_zones};

use crate::{BoundaryFile, wanted, weaknesses};

/// The rules of a boundary.
pub struct BoundaryRules {
    /// The place of the keys.
    pub keys: hsm::KeyPlace,
    /// The level and the format of new records.
    pub wanted: hsm::Wanted,
    /// The lengths of a PIN, in digits.
    pub pin_lengths: RangeInclusive<u8>,
    /// The patterns of refused PINs.
    pub weaknesses: Vec<hsm::Weakness>,
    /// Whether a file lists further refused PINs.
    pub has_refused_list: bool,
    /// The zones, with tenant and index.
    pub zones: Vec<Zone>,
}

impl BoundaryRules {
    /// Reads the rules of a file, and no secret that the file names; without a path, those of the embedded defaults.
    ///
    /// # Errors
    /// The file cannot be read, is malformed, or has a value out of range.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = read_file::<BoundaryFile>(path)?;
        let (policy, weaknesses) = (&file.pin_policy, weaknesses(&file.pin_policy));
        let pin_lengths = policy.length_min..=policy.length_max;
        hsm::PinPolicy::new(pin_lengths.clone(), weaknesses.clone(), [])
            .map_err(|error| ConfigError::value("pin_policy", error))?;
        Ok(Self {
            keys: if file.token.is_some() { hsm::KeyPlace::Token } else { hsm::KeyPlace::Vault },
            wanted: wanted(&file.boundary)?,
            pin_lengths,
            weaknesses,
            has_refused_list: policy.refused_pins.is_some(),
            zones: check_zones(file.zones)?,
        })
    }
}
