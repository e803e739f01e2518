//! Reads the storage key from a vault, so that a test can search for it.

use std::{fs, io, path::Path};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey};

/// The offsets of the nonce and of the ciphertext (`hsm/src/vault.rs`).
const NONCE_AT: usize = 39;
const HEAD_BYTES: usize = NONCE_AT + 12;

/// The offset of the first key's length in a keyring without custody; the key follows it
/// (`hsm/src/keyring/layout.rs`); its name's code, that of the storage key, is the first byte of its entry.
const KEY_LENGTH_AT: usize = CODE_AT + 49;
const CODE_AT: usize = 1 + 32 + 2;

/// The AES-256 storage key: the first in a vault that an engine made and that a key file opens.
pub fn storage_key_of(vault: &Path, key_file: &Path) -> io::Result<[u8; 32]> {
    let sealed = || io::Error::other("the vault does not open");
    let (vault, key) = (fs::read(vault)?, fs::read(key_file)?);
    let (head, ciphertext) = vault.split_at_checked(HEAD_BYTES).ok_or_else(sealed)?;
    let nonce = Nonce::try_assume_unique_for_key(head.get(NONCE_AT..).unwrap_or_default()).map_err(|_| sealed())?;
    let key = UnboundKey::new(&AES_256_GCM_SIV, &key).map(LessSafeKey::new).map_err(|_| sealed())?;
    let mut keys = ciphertext.to_vec();
    let opened = key.open_in_place(nonce, Aad::from(head), &mut keys).map_err(|_| sealed())?;
    // In custody, the hash of the roster follows the state.
    let custody = if opened.first().is_some_and(|state| state & 1 == 1) { 32 } else { 0 };
    let opened = opened.get(custody..).unwrap_or_default();
    match (opened.get(CODE_AT), opened.get(KEY_LENGTH_AT..).and_then(|rest| rest.split_first())) {
        (Some(0), Some((32, key))) => key.first_chunk().copied().ok_or_else(sealed),
        _ => Err(io::Error::other("the vault does not begin with a storage key")),
    }
}
