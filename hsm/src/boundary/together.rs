//! Requests that arrived together. The 3DES blocks that they translate are decrypted as one batch, in constant time and for a
//! fraction of the cost of single blocks; each request then runs as a single request would.

use std::cell::RefCell;

use bitslice_des::{Batch, Blocks};
use hsm_protocol::{
    Binding, Error, KeyVersion, Reply, Request, SealedKey, Source, StorageFormat, StorageVersions, Target, ZoneUse,
    bound_to_control,
};

use super::Boundary;
use crate::{
    clear::{Block, Tzpk, Workspace, in_workspace},
    token::BatchKeys,
    zones::ZoneKeyRef,
};

/// The fewest blocks that are decrypted as a batch: a batch takes the time of about four single blocks, however few it has.
const BATCH_MIN: usize = 6;

thread_local! {
    /// Wiped after each batch.
    static BATCH: RefCell<Batch> = RefCell::new(Batch::new());
}

#[cfg(test)]
thread_local! {
    /// The blocks that batches of this thread have decrypted.
    pub(crate) static BATCHED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// A block that a batch has decrypted.
#[derive(Clone, Copy)]
pub(crate) struct Decrypted<'a> {
    blocks: &'a Blocks<'a>,
    at: usize,
}

impl Decrypted<'_> {
    /// Copies the clear block.
    pub(super) fn copy(self, block: &mut Block) {
        self.blocks.copy(self.at, block.bytes_mut());
    }
}

/// A block that a batch decrypts, and its key.
enum BatchBlock<'a> {
    Device {
        tzpk: &'a SealedKey,
        binding: Binding,
        block: &'a [u8; 8],
    },
    /// The rules of the zone allow the key for the request.
    Zone {
        key: ZoneKeyRef<'a>,
        block: &'a [u8; 8],
    },
    /// A record's block. The request checks the record's tag before it uses the decrypted block.
    Stored {
        key: KeyVersion,
        block: &'a [u8; 8],
    },
}

impl BatchBlock<'_> {
    /// Adds the block to a batch and returns its place; none where its key does not open or is missing.
    fn push(self, keys: &dyn BatchKeys, tzpk: &mut Tzpk, batch: &mut Batch) -> Option<usize> {
        match self {
            Self::Device { tzpk: sealed, binding, block } => {
                let bound = bound_to_control(sealed.key(), &binding);
                keys.push_device_block((sealed.key(), sealed.body()), &bound, tzpk, block, batch)
            }
            Self::Zone { key, block } => keys.push_zone_block(key, block, batch),
            Self::Stored { key, block } => keys.push_stored_block(key, block, batch),
        }
    }
}

impl Boundary {
    /// Executes each request. The replies are in the order of the requests.
    pub(crate) fn execute_together(&self, requests: &[Request]) -> Vec<Result<Reply, Error>> {
        self.execute_all(self.token().current().storage, requests)
    }

    /// Executes each request, with new records under `storage`.
    pub(super) fn execute_all(&self, storage: StorageVersions, requests: &[Request]) -> Vec<Result<Reply, Error>> {
        let mut replies = Vec::with_capacity(requests.len());
        // A request that holds others has a batch of its own.
        let groups = requests.chunk_by(|one, next| !holds_requests(one) && !holds_requests(next));
        for requests in groups.flat_map(in_parts) {
            match self.batch_keys() {
                Some(keys) if self.has_batch(requests) => {
                    BATCH.with_borrow_mut(|batch| self.execute_batch(keys, batch, storage, requests, &mut replies))
                }
                _ => replies.extend(requests.iter().map(|request| self.execute_under(storage, request, None))),
            }
        }
        replies
    }

    /// Whether the requests have enough blocks for a batch.
    fn has_batch(&self, requests: &[Request]) -> bool {
        let blocks = requests.iter().filter_map(|request| self.batch_block(request));
        blocks.take(BATCH_MIN).count() == BATCH_MIN
    }

    fn batch_keys(&self) -> Option<&dyn BatchKeys> {
        match self {
            Self::Host(at_host) => at_host.token.batch_keys(),
            Self::Token(_) => None,
        }
    }

    fn execute_batch(
        &self,
        keys: &dyn BatchKeys,
        batch: &mut Batch,
        storage: StorageVersions,
        requests: &[Request],
        replies: &mut Vec<Result<Reply, Error>>,
    ) {
        // The place in the batch of each request's block. A request without a place decrypts its block itself, or fails.
        let places: Vec<Option<usize>> = in_workspace(|Workspace { tzpk, .. }| {
            requests.iter().map(|request| self.batch_block(request)?.push(keys, tzpk, batch)).collect()
        });
        #[cfg(test)]
        BATCHED.set(BATCHED.get() + batch.len());
        let blocks = in_workspace(|_| batch.decrypt());
        // No clear block waits while requests without one are executed, such as the RSA operation of a tzpk.
        let with_blocks = places.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        let (requests, others) = requests.split_at(with_blocks);
        for (request, place) in requests.iter().zip(places) {
            let decrypted = place.map(|at| Decrypted { blocks: &blocks, at });
            replies.push(self.execute_under(storage, request, decrypted));
        }
        drop(blocks);
        replies.extend(others.iter().map(|request| self.execute_under(storage, request, None)));
    }

    /// The 3DES block that a request translates. None where the rules of its zone refuse the key: the request fails.
    fn batch_block<'a>(&self, request: &'a Request) -> Option<BatchBlock<'a>> {
        let (source, target, card) = match request {
            Request::UpTo { request, .. } => return self.batch_block(request),
            Request::Translate { source, target, card, .. } => (source, target, card),
            _ => return None,
        };
        match (source, target) {
            (Source::Device { sealed_tzpk: tzpk, control, block }, Target::Record) => {
                let binding = Binding { card: *card, control: *control };
                Some(BatchBlock::Device { tzpk, binding, block: block.as_bytes() })
            }
            (Source::Zone { key, block }, Target::Record | Target::Zone { .. }) => {
                let needed = if matches!(target, Target::Record) { ZoneUse::SetPin } else { ZoneUse::Translate };
                // Of format 4, which has AES keys, the block has 16 bytes.
                let bytes = block.as_bytes().try_into().ok()?;
                let key = self.source_key((key, block), needed, card).ok()?;
                Some(BatchBlock::Zone { key, block: bytes })
            }
            (Source::Record(record), _) if matches!(record.form(), StorageFormat::Iso3 | StorageFormat::Iso0) => {
                Some(BatchBlock::Stored { key: record.storage_key(), block: record.block().try_into().ok()? })
            }
            _ => None,
        }
    }
}

/// Equal parts of a group, each of at most one batch: the rest of a division would be too small for one.
fn in_parts(group: &[Request]) -> impl Iterator<Item = &[Request]> {
    let parts = group.len().div_ceil(Batch::BLOCKS_MAX).max(1);
    group.chunks(group.len().div_ceil(parts).max(1))
}

fn holds_requests(request: &Request) -> bool {
    match request {
        Request::UpTo { request, .. } => holds_requests(request),
        Request::Together { .. } => true,
        _ => false,
    }
}
