//! The stored bytes of a list of key ids.

use super::{
    FrameError,
    value_codec::{FrameValue, Reader},
};
use crate::key_id::KeyId;

/// The bytes of a list: of each key a length (2 bytes, big-endian) and the usage in UTF-8, the version (2 bytes, big-endian),
/// and 00, or 01 and the 3 bytes of the KCV.
pub fn write_key_list(keys: &[KeyId]) -> Vec<u8> {
    let mut bytes = Vec::new();
    keys.iter().for_each(|key| key.write(&mut bytes));
    bytes
}

/// Reads the bytes of [`write_key_list`].
///
/// # Errors
/// The bytes are cut, or name a usage that this release does not know.
pub fn read_key_list(bytes: &[u8]) -> Result<Vec<KeyId>, FrameError> {
    let (mut read, mut keys) = (Reader(bytes), Vec::new());
    while !read.0.is_empty() {
        keys.push(KeyId::read(&mut read)?);
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kcv::Kcv, key_usage::KeyUsage, sealed::KeyVersion};

    #[test]
    fn a_list_is_read_back_and_a_truncated_list_is_rejected() {
        let key = |usage, kcv| KeyId { usage, version: KeyVersion(258), kcv };
        let keys = [key(KeyUsage::Storage, Some(Kcv::first_of(&[1, 2, 3]))), key(KeyUsage::Account, None)];
        let bytes = write_key_list(&keys);
        assert_eq!(read_key_list(&bytes).unwrap(), keys);
        assert_eq!(read_key_list(&[]).unwrap(), []);
        let first = write_key_list(&keys[..1]).len();
        for cut in (1..bytes.len()).filter(|cut| *cut != first) {
            assert!(read_key_list(&bytes[..cut]).is_err(), "cut at {cut}");
        }
    }
}
