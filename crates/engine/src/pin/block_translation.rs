//! Blocks that are translated from zone to zone, and the account numbers that are sealed for them.

use std::iter::zip;

use super::zone_use::zone_block_format;
use super::{AdmittedCard, PinError, Pins, card_binding};
use crate::call_limits::CallAdmission;
use crate::zones::{NamedZoneBlock, NamedZoneKey};
use audit::entry::{Action, BlockFormat, Body, CardEvent, Event, Formats, Outcome, TranslatedBlocks};
use audit::items_root::ItemsRoot;
use domain::caller::Caller;
use domain::card::{CardKey, PlasticId, RegisteredAccount};
use hsm_protocol::{
    Account, AccountNumber, Error, Refusal, Reply, Request, SealedAccount, Target, ZoneBlock, ZoneFormat, ZoneUse,
};
use store::ReadEpoch;

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
    /// The account number of a card that is not registered with one; `None` for the registered one.
    pub account: Option<SealedAccount>,
}

/// A translation that was tried.
pub struct Translated {
    plastic: PlasticId,
    /// What the event says; `None` without an event.
    route: Option<Route>,
    result: Result<ZoneBlock, PinError>,
}

impl Translated {
    /// The result of a translation, with the outcome for its event.
    ///
    /// # Errors
    /// The error of a translation that did nothing, because the store or the boundary had no place for it.
    fn of(block: &BlockToTranslate, result: Result<ZoneBlock, PinError>, route: Route) -> Result<Self, PinError> {
        let (route, result) = match result {
            Err(error) if error.busy_limit().is_some() => return Err(error),
            Err(error) => (error.outcome().map(|outcome| Route { outcome, ..route }), Err(error)),
            Ok(block) => (Some(route), Ok(block)),
        };
        Ok(Self { plastic: block.plastic, route, result })
    }

    /// The block, or the error of the block. Only after the [events](Pins::translation_events) were recorded.
    pub fn into_result(self) -> Result<ZoneBlock, PinError> {
        self.result
    }
}

/// What a segment's event has in common.
#[derive(PartialEq, Eq)]
struct Route {
    source_key: Box<str>,
    target_key: Box<str>,
    formats: Formats,
    outcome: Outcome,
}

impl Route {
    /// Before the zones are known.
    fn unknown() -> Self {
        Self {
            source_key: UNKNOWN_KEY.into(),
            target_key: UNKNOWN_KEY.into(),
            formats: Formats { from: BlockFormat::Iso1, to: BlockFormat::Iso1 },
            outcome: Outcome::Done,
        }
    }
}

impl Pins {
    /// Translates one block and records its event.
    ///
    /// # Errors
    /// [`PinError`]: a zone or the block is refused, or the store or the boundary failed.
    pub async fn translate_block(
        &self,
        caller: &Caller,
        card: &AdmittedCard,
        block: &BlockToTranslate,
    ) -> Result<ZoneBlock, PinError> {
        let reads = self.read_epoch();
        let translated = [self.translate(caller, card, block).await?];
        for event in self.translation_events(caller, 1, &translated) {
            self.record_translations(event).await?;
        }
        self.check_reads(reads)?;
        translated.into_iter().next().map_or_else(|| Err(Error::UnexpectedReply.into()), Translated::into_result)
    }

    /// Translates a block. The block may leave the engine after its event was recorded.
    ///
    /// # Errors
    /// The store or the boundary has no place for the request, which did nothing.
    pub async fn translate(
        &self,
        caller: &Caller,
        card: &AdmittedCard,
        block: &BlockToTranslate,
    ) -> Result<Translated, PinError> {
        let mut route = Route::unknown();
        let result = async {
            let registered = self.store.card(card.key()).await?.and_then(|card| card.account);
            let (translate, charge) = self.begin_translation(caller, card, block, registered.as_ref(), &mut route)?;
            end_translation(charge, registered.as_ref(), self.execute(translate).await)
        };
        Translated::of(block, result.await, route)
    }

    /// Translates blocks, as [`Pins::translate`] each, together in the boundary. The results are in the order of the blocks.
    ///
    /// # Errors
    /// The store could not read the cards.
    pub async fn translate_together(
        &self,
        caller: &Caller,
        blocks: &[(AdmittedCard, BlockToTranslate)],
    ) -> Result<Vec<Result<Translated, PinError>>, PinError> {
        let cards: Vec<CardKey> = blocks.iter().map(|(card, _)| *card.key()).collect();
        let accounts = self.store.accounts(&cards).await?;
        let mut requests = Vec::with_capacity(blocks.len());
        let mut in_progress = Vec::with_capacity(blocks.len());
        for ((card, block), registered) in zip(blocks, &accounts) {
            let mut route = Route::unknown();
            let begun = self.begin_translation(caller, card, block, registered.as_ref(), &mut route);
            let charge = begun.map(|(request, charge)| {
                requests.push(request);
                charge
            });
            in_progress.push((charge, route));
        }
        let mut replies = self.execute_all(requests, blocks.len()).await.into_iter();
        let mut translated = Vec::with_capacity(blocks.len());
        for (((_, block), registered), (charge, route)) in zip(zip(blocks, &accounts), in_progress) {
            let result = charge.and_then(|charge| {
                let reply = replies.next().unwrap_or(Err(Error::UnexpectedReply));
                end_translation(charge, registered.as_ref(), reply)
            });
            translated.push(Translated::of(block, result, route));
        }
        Ok(translated)
    }

    /// The events of a segment of a stream, whose first item has the number `first`: one for each pair of zones, formats and
    /// outcome.
    pub fn translation_events<'t>(
        &self,
        caller: &Caller,
        first: u64,
        segment: impl IntoIterator<Item = &'t Translated>,
    ) -> Vec<Event> {
        let mut routes: Vec<(&'t Route, ItemsRoot)> = Vec::new();
        for Translated { plastic, route, .. } in segment {
            let Some(route) = route else { continue };
            let at = routes.iter().position(|(other, _)| *other == route).unwrap_or_else(|| {
                routes.push((route, ItemsRoot::new(&self.references, &caller.request, first)));
                routes.len() - 1
            });
            let reference = self.references.reference(&CardKey { tenant: caller.tenant, plastic: *plastic });
            routes.get_mut(at).iter_mut().for_each(|(_, items)| items.push(reference.as_bytes()));
        }
        let event = |(route, items): (&Route, ItemsRoot)| {
            let body = Body::BlocksTranslated(TranslatedBlocks {
                count: items.count(),
                source_key: route.source_key.clone(),
                target_key: route.target_key.clone(),
                formats: route.formats,
                root: items.root(),
            });
            Event { outcome: route.outcome, ..self.caller_event(caller, body) }
        };
        routes.into_iter().map(event).collect()
    }

    /// Records an event of [`Pins::translation_events`].
    ///
    /// # Errors
    /// The store failed.
    pub async fn record_translations(&self, event: Event) -> Result<(), PinError> {
        Ok(self.store.record_access(event).await?)
    }

    /// Where reads come from, for [`Pins::check_reads`].
    pub fn read_epoch(&self) -> ReadEpoch {
        self.store.read_epoch()
    }

    /// Checks, after the events of translations were recorded, that the reads since `epoch` showed durable state (R11).
    ///
    /// # Errors
    /// The store has connected to its database again.
    pub fn check_reads(&self, epoch: ReadEpoch) -> Result<(), PinError> {
        Ok(self.store.check_reads(epoch)?)
    }

    /// The request that translates a block, for which the caller is charged a try.
    ///
    /// # Errors
    /// [`PinError`]: the rules of a zone or the account number do not allow it, or the caller has used up its tries.
    fn begin_translation<'a>(
        &'a self,
        caller: &'a Caller,
        card: &AdmittedCard,
        block: &BlockToTranslate,
        registered: Option<&RegisteredAccount>,
        route: &mut Route,
    ) -> Result<(Request, ChargedTry<'a>), PinError> {
        let from = self.zone(&caller.tenant, &block.source.key)?;
        route.source_key = from.key_text();
        let to = self.zone(&caller.tenant, &block.target)?;
        route.target_key = to.key_text();
        let (source, source_format) = from.source(&block.source, ZoneUse::Translate)?;
        let format = to.format(block.target_format, ZoneUse::Translate)?;
        route.formats = Formats { from: zone_block_format(source_format), to: zone_block_format(format) };
        let account = match (registered, &block.account) {
            (Some(registered), sealed) => {
                let number = SealedAccount::from_bytes(&registered.sealed)?;
                // Equal numbers have equal seals under one key. A seal under another key is of the number by its visible digits.
                if sealed
                    .as_ref()
                    .is_some_and(|sealed| sealed.key() == number.key() && sealed.as_bytes() != number.as_bytes())
                {
                    return Err(PinError::SealedAccount);
                }
                Account::Registered(number)
            }
            (None, Some(sealed)) => Account::Registered(SealedAccount::from_bytes(sealed.as_bytes())?),
            (None, None) => return Err(PinError::SealedAccount),
        };
        let (card, target) = (card_binding(card.key())?, Target::Zone { key: to.key(), format });
        self.charge_try(caller)?;
        let charge = ChargedTry { limits: Some(&self.limits), caller };
        Ok((Request::Translate { source, target, card, account }, charge))
    }

    /// Seals an account number for [`BlockToTranslate::account`]. The seal is audited with the masked number.
    ///
    /// # Errors
    /// [`PinError`]: the card is registered with another number, the store or the boundary failed, or the card has reached its
    /// rate of calls.
    pub async fn seal_account(
        &self,
        caller: &Caller,
        plastic: PlasticId,
        number: AccountNumber,
    ) -> Result<SealedAccount, PinError> {
        let card = CardKey { tenant: caller.tenant, plastic };
        let reads = self.store.read_epoch();
        let sealed = self.seal_for_translation(caller, &card, number, reads).await;
        self.audit_refusal(caller, reads, || self.about_refused(Action::SealAccount, &card), sealed).await
    }

    async fn seal_for_translation(
        &self,
        caller: &Caller,
        card: &CardKey,
        number: AccountNumber,
        reads: ReadEpoch,
    ) -> Result<SealedAccount, PinError> {
        self.limits.admit_card(card)?;
        let registered = self.store.card(card).await?.and_then(|card| card.account);
        let masked: Box<str> = number.masked().into();
        let sealed = self.seal(card, number).await?;
        if let Some(registered) = registered {
            let known = SealedAccount::from_bytes(&registered.sealed)?;
            let is_other = sealed.key() == known.key() && sealed.as_bytes() != known.as_bytes();
            if is_other || masked != registered.masked {
                return Err(PinError::RegisteredAccount);
            }
        }
        let about = CardEvent::new(Action::SealAccount, masked, self.references.reference(card));
        self.store.record_access(self.card_event(caller, about)).await?;
        self.check_reads(reads)?;
        Ok(sealed)
    }

    /// Seals an account number for a card.
    pub(super) async fn seal(&self, card: &CardKey, number: AccountNumber) -> Result<SealedAccount, PinError> {
        match self.execute(Request::SealPan { number, card: card_binding(card)? }).await? {
            Reply::SealedPan(sealed) => Ok(sealed),
            _ => Err(Error::UnexpectedReply.into()),
        }
    }
}

/// The block of a reply to a request of [`Pins::begin_translation`].
fn end_translation(
    charge: ChargedTry<'_>,
    registered: Option<&RegisteredAccount>,
    translated: Result<Reply, Error>,
) -> Result<ZoneBlock, PinError> {
    match translated {
        Ok(Reply::ZoneBlock(block)) => Ok(block),
        Ok(_) => Err(Error::UnexpectedReply.into()),
        // A block that is malformed for one account number says something about its PIN: it stays charged as a wrong PIN.
        Err(Error::Refused(Refusal::MalformedBlock)) => {
            charge.keep();
            Err(Error::Refused(Refusal::MalformedBlock).into())
        }
        // The tag of the record is not part of this request: the seal of the account number is broken.
        Err(Error::SealBroken { .. }) if registered.is_none() => Err(PinError::SealedAccount),
        Err(error) => Err(error.into()),
    }
}

/// A try that the caller of a translation is charged. Dropped, it is refunded.
struct ChargedTry<'a> {
    /// `None` for a try that stays charged.
    limits: Option<&'a CallAdmission>,
    caller: &'a Caller,
}

impl ChargedTry<'_> {
    fn keep(mut self) {
        self.limits = None;
    }
}

impl Drop for ChargedTry<'_> {
    fn drop(&mut self) {
        self.limits.into_iter().for_each(|limits| limits.refund_try(self.caller));
    }
}
