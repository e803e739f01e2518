//! Requests that arrived together. The blocks of their devices are decrypted as one batch, in constant time and for a fraction of
//! the cost of single blocks; each request then runs as a single request would.

use std::cell::RefCell;

use bitslice_des::{Batch, Blocks};
use hsm_protocol::{
    Binding, EncryptedBlock, Error, Reply, Request, SealedKey, Source, StorageVersions, Target, bound_to_control,
};

use super::Boundary;
use crate::{
    clear::{Block, Workspace, in_workspace},
    token::TzpkOpener,
};

/// The fewest blocks that are decrypted as a batch: a batch takes the time of about four single blocks, however few it has.
const BATCH_MIN: usize = 6;

thread_local! {
    /// Wiped after each batch.
    static BATCH: RefCell<Batch> = RefCell::new(Batch::new());
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

/// What a batch needs of a request: the sealed tzpk, its binding, and the block.
type DeviceBlock<'a> = (&'a SealedKey, Binding, &'a EncryptedBlock);

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
        for requests in groups.flat_map(|group| group.chunks(Batch::BLOCKS_MAX)) {
            match self.tzpk_opener().filter(|_| device_blocks(requests).count() >= BATCH_MIN) {
                Some(opener) => {
                    BATCH.with_borrow_mut(|batch| self.execute_batch(opener, batch, storage, requests, &mut replies))
                }
                None => replies.extend(requests.iter().map(|request| self.execute_under(storage, request, None))),
            }
        }
        replies
    }

    fn tzpk_opener(&self) -> Option<&dyn TzpkOpener> {
        match self {
            Self::Host(at_host) => at_host.token.tzpk_opener(),
            Self::Token(_) => None,
        }
    }

    fn execute_batch(
        &self,
        opener: &dyn TzpkOpener,
        batch: &mut Batch,
        storage: StorageVersions,
        requests: &[Request],
        replies: &mut Vec<Result<Reply, Error>>,
    ) {
        // The place in the batch of each request's block. A block whose tzpk does not open has none: its request fails below.
        let places: Vec<Option<usize>> = in_workspace(|Workspace { tzpk, .. }| {
            let mut place = |(sealed, binding, block): DeviceBlock<'_>| {
                opener
                    .open_tzpk((sealed.key(), sealed.body()), &bound_to_control(sealed.key(), &binding), tzpk)
                    .ok()?;
                let place = batch.len();
                batch.push_double(tzpk.bytes(), block.as_bytes()).ok()?;
                Some(place)
            };
            requests.iter().map(|request| device_block(request).and_then(&mut place)).collect()
        });
        let blocks = in_workspace(|_| batch.decrypt());
        for (request, place) in requests.iter().zip(places) {
            let decrypted = place.map(|at| Decrypted { blocks: &blocks, at });
            replies.push(self.execute_under(storage, request, decrypted));
        }
    }
}

fn holds_requests(request: &Request) -> bool {
    match request {
        Request::UpTo { request, .. } => holds_requests(request),
        Request::Together { .. } => true,
        _ => false,
    }
}

fn device_blocks(requests: &[Request]) -> impl Iterator<Item = DeviceBlock<'_>> {
    requests.iter().filter_map(device_block)
}

/// The block of a device that a request re-encrypts as a record.
fn device_block(request: &Request) -> Option<DeviceBlock<'_>> {
    match request {
        Request::UpTo { request, .. } => device_block(request),
        Request::Translate {
            source: Source::Device { sealed_tzpk, control, block },
            target: Target::Record,
            card,
            ..
        } => Some((sealed_tzpk, Binding { card: *card, control: *control }, block)),
        _ => None,
    }
}
