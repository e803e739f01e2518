//! Blocks that are translated from zone to zone, and the account numbers that are sealed for them.

use futures::future::join_all;

use super::zone_use::zone_block_format;
use super::{PinError, Pins, account, card_binding};
use crate::zones::{NamedZoneBlock, NamedZoneKey};
use audit::entry::{BlockFormat, Body, Event, Formats, Outcome, TranslatedBlocks};
use audit::items_root::ItemsRoot;
use domain::caller::Caller;
use domain::card::{CardKey, PlasticId};
use hsm_protocol::{
    Account, AccountNumber, Error, Reply, Request, SealedAccount, Target, ZoneBlock, ZoneFormat, ZoneUse,
};

/// The blocks of a segment in the boundary at a time: the segments of all streams leave places in the queues of the boundary.
const BLOCKS_AT_ONCE: usize = 64;

/// The key in the event of a block whose zone is not known.
const UNKNOWN_KEY: &str = "-";

/// A block to translate.
pub struct BlockToTranslate {
    /// The card that the account number is sealed for.
    pub plastic: PlasticId,
    /// The block and its zone.
    pub source: NamedZoneBlock,
    /// The key of the other zone.
    pub target: NamedZoneKey,
    /// The format in the other zone; `None` for the first format of that zone.
    pub target_format: Option<ZoneFormat>,
    /// The account number; `None` for the registered one.
    pub account: Option<SealedAccount>,
}

/// What a segment's event has in common.
#[derive(PartialEq, Eq)]
struct Route {
    source_key: Box<str>,
    target_key: Box<str>,
    formats: Formats,
    outcome: Outcome,
}

impl Pins {
    /// Translates one block.
    ///
    /// # Errors
    /// [`PinError`]: a zone or the block is refused, or the store or the boundary failed.
    pub async fn translate_block(&self, caller: &Caller, block: BlockToTranslate) -> Result<ZoneBlock, PinError> {
        let translated = self.translate_blocks(caller, 1, &[block]).await?;
        translated.into_iter().next().unwrap_or_else(|| Err(Error::UnexpectedReply.into()))
    }

    /// Translates the blocks of a segment of a stream, whose first item has the number `first`. One event is recorded for each
    /// pair of zones, formats and outcome before this returns.
    ///
    /// # Errors
    /// [`PinError`]: the events were not recorded, or the boundary is busy; no block is returned.
    pub async fn translate_blocks(
        &self,
        caller: &Caller,
        first: u64,
        blocks: &[BlockToTranslate],
    ) -> Result<Vec<Result<ZoneBlock, PinError>>, PinError> {
        let mut results = Vec::with_capacity(blocks.len());
        let mut routes: Vec<(Route, ItemsRoot)> = Vec::new();
        let mut translated = Vec::with_capacity(blocks.len());
        for part in blocks.chunks(BLOCKS_AT_ONCE) {
            translated.extend(join_all(part.iter().map(|block| self.translated(caller, block))).await);
        }
        for (block, (route, result)) in blocks.iter().zip(translated) {
            match result {
                Err(error) if error.is_busy() => return Err(error),
                result => results.push(result),
            }
            let Some(route) = route else { continue };
            let at = routes.iter().position(|(other, _)| *other == route).unwrap_or_else(|| {
                routes.push((route, ItemsRoot::new(&self.references, &caller.request, first)));
                routes.len() - 1
            });
            let card = CardKey { tenant: caller.tenant, plastic: block.plastic };
            let reference = self.references.reference(&card);
            routes.get_mut(at).iter_mut().for_each(|(_, items)| items.push(reference.as_bytes()));
        }
        for (route, items) in routes {
            let body = Body::BlocksTranslated(TranslatedBlocks {
                count: items.count(),
                source_key: route.source_key,
                target_key: route.target_key,
                formats: route.formats,
                root: items.root(),
            });
            self.store.record_access(Event { outcome: route.outcome, ..self.caller_event(caller, body) }).await?;
        }
        Ok(results)
    }

    /// The translated block, and what its event says; `None` for a block without an event.
    async fn translated(
        &self,
        caller: &Caller,
        block: &BlockToTranslate,
    ) -> (Option<Route>, Result<ZoneBlock, PinError>) {
        let mut route = Route {
            source_key: UNKNOWN_KEY.into(),
            target_key: UNKNOWN_KEY.into(),
            formats: Formats { from: BlockFormat::Iso1, to: BlockFormat::Iso1 },
            outcome: Outcome::Done,
        };
        let result = self.translate_to(caller, block, &mut route).await;
        if let Err(error) = &result {
            let Some(outcome) = error.outcome() else { return (None, result) };
            route.outcome = outcome;
        }
        (Some(route), result)
    }

    async fn translate_to(
        &self,
        caller: &Caller,
        block: &BlockToTranslate,
        route: &mut Route,
    ) -> Result<ZoneBlock, PinError> {
        let card = CardKey { tenant: caller.tenant, plastic: block.plastic };
        self.limits.admit_card(&card)?;
        let from = self.zone(&caller.tenant, &block.source.key)?;
        route.source_key = from.key_text();
        let to = self.zone(&caller.tenant, &block.target)?;
        route.target_key = to.key_text();
        let (source, source_format) = from.source(&block.source, ZoneUse::Translate)?;
        let format = to.format(block.target_format, ZoneUse::Translate)?;
        route.formats = Formats { from: zone_block_format(source_format), to: zone_block_format(format) };
        let account = match &block.account {
            Some(sealed) => Account::Registered(SealedAccount::from_bytes(sealed.as_bytes())?),
            None => {
                let registered = self.store.card(&card).await?.and_then(|card| card.account);
                account(Some(&registered.ok_or(PinError::SealedAccount)?))?
            }
        };
        let target = Target::Zone { key: to.key(), format };
        let translate = Request::Translate { source, target, card: card_binding(&card)?, account };
        match self.boundary.execute(translate).await {
            Ok(Reply::ZoneBlock(block)) => Ok(block),
            Ok(_) => Err(Error::UnexpectedReply.into()),
            // The tag of the record is not part of this request: the seal of the account number is broken.
            Err(Error::SealBroken { .. }) if block.account.is_some() => Err(PinError::SealedAccount),
            Err(error) => Err(error.into()),
        }
    }

    /// Seals an account number for [`BlockToTranslate::account`].
    ///
    /// # Errors
    /// [`PinError`]: the boundary failed, or the card has reached its rate of calls.
    pub async fn seal_account(
        &self,
        caller: &Caller,
        plastic: PlasticId,
        number: AccountNumber,
    ) -> Result<SealedAccount, PinError> {
        let card = CardKey { tenant: caller.tenant, plastic };
        self.limits.admit_card(&card)?;
        self.seal(&card, number).await
    }

    /// Seals an account number for a card.
    pub(super) async fn seal(&self, card: &CardKey, number: AccountNumber) -> Result<SealedAccount, PinError> {
        match self.boundary.execute(Request::SealPan { number, card: card_binding(card)? }).await? {
            Reply::SealedPan(sealed) => Ok(sealed),
            _ => Err(Error::UnexpectedReply.into()),
        }
    }
}
