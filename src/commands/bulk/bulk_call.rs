//! The three calls of the bulk service, as one trait.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures::Stream;
use tokio::sync::mpsc;
use tonic::{Response, Status, Streaming, transport::Channel};

use super::{item_file::Item, outcome_file::Outcome};
use proto::{
    BlockOutcome, ExportPinsRequest, ExportPinsResponse, NumberedExport, NumberedSet, NumberedTranslation,
    SetPinsRequest, SetPinsResponse, TranslatePinBlocksRequest, TranslatePinBlocksResponse, TranslationItem, ZoneBlock,
    ZoneFormat, ZoneKey, block_outcome, bulk_service_client::BulkServiceClient, set_outcome,
};

/// The result of an item whose PIN was set.
const SET: &str = "set";
/// The result of an item whose block is the one that set the present PIN.
const UNCHANGED: &str = "unchanged";

/// A call of the bulk service.
pub(super) trait BulkCall {
    type Item;
    type Request: Send + 'static;
    type Response;

    fn item(&self, item: &Item) -> Self::Item;

    /// A message of items. The first message of a stream names tenant and user; both are empty in later ones.
    fn request(&self, tenant: String, audit_user: String, items: Vec<Self::Item>) -> Self::Request;

    async fn open(
        &self,
        client: &mut BulkServiceClient<Channel>,
        requests: Requests<Self::Request>,
    ) -> Result<Response<Streaming<Self::Response>>, Status>;

    /// The number of each item and its outcome; `None` for an outcome without a result.
    fn outcomes(&self, response: Self::Response) -> Vec<(u64, Option<Outcome>)>;
}

/// The messages of a stream.
pub(super) struct Requests<R>(pub(super) mpsc::Receiver<R>);

impl<R> Stream for Requests<R> {
    type Item = R;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<R>> {
        self.0.poll_recv(context)
    }
}

/// Exports the PIN of each card.
pub(super) struct Export {
    pub(super) key: ZoneKey,
    pub(super) format: ZoneFormat,
}

impl BulkCall for Export {
    type Item = NumberedExport;
    type Request = ExportPinsRequest;
    type Response = ExportPinsResponse;

    fn item(&self, item: &Item) -> NumberedExport {
        NumberedExport {
            sequence: item.number,
            plastic_id: item.plastic.as_str().to_owned(),
            zone_key: Some(self.key.clone()),
            format: self.format.into(),
        }
    }

    fn request(&self, tenant: String, audit_user: String, items: Vec<NumberedExport>) -> ExportPinsRequest {
        ExportPinsRequest { tenant, audit_user, items }
    }

    async fn open(
        &self,
        client: &mut BulkServiceClient<Channel>,
        requests: Requests<ExportPinsRequest>,
    ) -> Result<Response<Streaming<ExportPinsResponse>>, Status> {
        client.export_pins(requests).await
    }

    fn outcomes(&self, response: ExportPinsResponse) -> Vec<(u64, Option<Outcome>)> {
        block_outcomes(response.outcomes)
    }
}

/// Sets the PIN of each card.
pub(super) struct Import {
    pub(super) key: ZoneKey,
    pub(super) format: ZoneFormat,
}

impl BulkCall for Import {
    type Item = NumberedSet;
    type Request = SetPinsRequest;
    type Response = SetPinsResponse;

    fn item(&self, item: &Item) -> NumberedSet {
        NumberedSet {
            sequence: item.number,
            plastic_id: item.plastic.as_str().to_owned(),
            zone_block: Some(block_of(item, &self.key, self.format)),
        }
    }

    fn request(&self, tenant: String, audit_user: String, items: Vec<NumberedSet>) -> SetPinsRequest {
        SetPinsRequest { tenant, audit_user, items }
    }

    async fn open(
        &self,
        client: &mut BulkServiceClient<Channel>,
        requests: Requests<SetPinsRequest>,
    ) -> Result<Response<Streaming<SetPinsResponse>>, Status> {
        client.set_pins(requests).await
    }

    fn outcomes(&self, response: SetPinsResponse) -> Vec<(u64, Option<Outcome>)> {
        let outcome = |result| match result {
            set_outcome::Result::Unchanged(unchanged) => Ok(if unchanged { UNCHANGED } else { SET }.to_owned()),
            set_outcome::Result::Error(error) => Err(error),
        };
        response.outcomes.into_iter().map(|one| (one.sequence, one.result.map(outcome))).collect()
    }
}

/// Translates each block from zone to zone.
pub(super) struct Translate {
    pub(super) source: (ZoneKey, ZoneFormat),
    pub(super) target: (ZoneKey, ZoneFormat),
}

impl BulkCall for Translate {
    type Item = NumberedTranslation;
    type Request = TranslatePinBlocksRequest;
    type Response = TranslatePinBlocksResponse;

    fn item(&self, item: &Item) -> NumberedTranslation {
        let ((key, format), (target_key, target_format)) = (&self.source, &self.target);
        let translation = TranslationItem {
            plastic_id: item.plastic.as_str().to_owned(),
            source_block: Some(block_of(item, key, *format)),
            target_key: Some(target_key.clone()),
            target_format: (*target_format).into(),
            sealed_account: item.sealed_account.clone(),
        };
        NumberedTranslation { sequence: item.number, item: Some(translation) }
    }

    fn request(
        &self,
        tenant: String,
        audit_user: String,
        items: Vec<NumberedTranslation>,
    ) -> TranslatePinBlocksRequest {
        TranslatePinBlocksRequest { tenant, audit_user, items }
    }

    async fn open(
        &self,
        client: &mut BulkServiceClient<Channel>,
        requests: Requests<TranslatePinBlocksRequest>,
    ) -> Result<Response<Streaming<TranslatePinBlocksResponse>>, Status> {
        client.translate_pin_blocks(requests).await
    }

    fn outcomes(&self, response: TranslatePinBlocksResponse) -> Vec<(u64, Option<Outcome>)> {
        block_outcomes(response.outcomes)
    }
}

fn block_of(item: &Item, key: &ZoneKey, format: ZoneFormat) -> ZoneBlock {
    ZoneBlock { zone_key: Some(key.clone()), format: format.into(), pin_block: item.block.clone() }
}

fn block_outcomes(outcomes: Vec<BlockOutcome>) -> Vec<(u64, Option<Outcome>)> {
    let outcome = |result| match result {
        block_outcome::Result::PinBlock(block) => Ok(base16ct::upper::encode_string(&block)),
        block_outcome::Result::Error(error) => Err(error),
    };
    outcomes.into_iter().map(|one| (one.sequence, one.result.map(outcome))).collect()
}
