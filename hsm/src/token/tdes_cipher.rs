//! A 3DES key of the software token, for single blocks and for batches.

use bitslice_des::Batch;
use des::{
    TdesEde2, TdesEde3,
    cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit},
};

use crate::clear::{Block, Clear};

/// A double-length or triple-length key: its schedule for single blocks, and the key itself for batches, because a schedule does
/// not give its key back. A reader of the schedule can compute the key, so the key reveals nothing more.
pub(super) enum TdesCipher {
    Double { schedule: TdesEde2, key: Box<Clear<16>> },
    Triple { schedule: TdesEde3, key: Box<Clear<24>> },
}

impl TdesCipher {
    /// Prepares a key K1 ‖ K2.
    pub(super) fn double(key: &[u8; 16]) -> Self {
        Self::Double { schedule: TdesEde2::new(key.into()), key: Clear::boxed(key) }
    }

    /// Prepares a key K1 ‖ K2 ‖ K3.
    pub(super) fn triple(key: &[u8; 24]) -> Self {
        Self::Triple { schedule: TdesEde3::new(key.into()), key: Clear::boxed(key) }
    }

    /// Encrypts one block in place.
    pub(super) fn encrypt(&self, block: &mut Block) {
        match self {
            Self::Double { schedule, .. } => schedule.encrypt_block(block.bytes_mut().into()),
            Self::Triple { schedule, .. } => schedule.encrypt_block(block.bytes_mut().into()),
        }
    }

    /// Decrypts one block in place.
    pub(super) fn decrypt(&self, block: &mut Block) {
        match self {
            Self::Double { schedule, .. } => schedule.decrypt_block(block.bytes_mut().into()),
            Self::Triple { schedule, .. } => schedule.decrypt_block(block.bytes_mut().into()),
        }
    }

    /// Adds a block to a batch under this key. Returns the place of the block, from 0; none in a full batch.
    pub(super) fn push(&self, block: &[u8; 8], batch: &mut Batch) -> Option<usize> {
        let place = batch.len();
        match self {
            Self::Double { key, .. } => batch.push_double(key.bytes(), block),
            Self::Triple { key, .. } => batch.push_triple(key.bytes(), block),
        }
        .ok()?;
        Some(place)
    }
}
