//! PINs that a zone sets, gets and exports, without a control.

use std::iter::zip;

use super::zone_use::zone_block_format;
use super::{ATTEMPTS_MAX, AdmittedCard, PinError, Pins, account, block_format, card_binding, record_key};
use crate::zones::{NamedZoneBlock, NamedZoneKey};
use audit::entry::{Action, CardEvent, Formats};
use domain::caller::Caller;
use domain::card::{CardKey, RegisteredAccount, StoredPin};
use domain::control::{Denied, RetryTag};
use futures::future::join_all;
use hsm_protocol::{Error, PinRecord, Reply, Request, Target, ZoneBlock, ZoneFormat, ZoneUse};
use store::{ChangeError, ZoneSet};

/// A PIN to set.
pub struct PinToSet {
    /// The card to set it for.
    pub card: AdmittedCard,
    /// The block of a zone.
    pub block: NamedZoneBlock,
}

/// What a set by a zone keeps while the boundary translates its block.
struct ZoneSetInProgress {
    card: CardKey,
    registered: Option<RegisteredAccount>,
    zone_key: Box<str>,
    format: ZoneFormat,
}

impl Pins {
    /// Translates the block of a zone to a record and stores it. The block that set the present PIN changes nothing.
    ///
    /// # Errors
    /// [`PinError`]: the zone or the block is refused, the block was replaced, or the store or the boundary failed.
    pub async fn set_pin_by_zone(
        &self,
        caller: &Caller,
        card: &AdmittedCard,
        block: &NamedZoneBlock,
    ) -> Result<ZoneSet, PinError> {
        let card = *card.key();
        let reads = self.store.read_epoch();
        let set = self.set_by_zone(caller, card, block).await;
        self.audit_refusal(caller, reads, || self.about_refused(Action::SetPinByZone, &card), set).await
    }

    /// Sets the PINs of different cards, as [`Pins::set_pin_by_zone`] each, together in the boundary and in the store. The results
    /// are in the order of the sets.
    ///
    /// # Errors
    /// The store could not read the cards: no PIN is set.
    pub async fn set_pins_by_zone(
        &self,
        caller: &Caller,
        sets: &[PinToSet],
    ) -> Result<Vec<Result<ZoneSet, PinError>>, PinError> {
        let reads = self.store.read_epoch();
        let cards: Vec<CardKey> = sets.iter().map(|set| *set.card.key()).collect();
        let accounts = self.store.accounts(&cards).await?;
        let mut requests = Vec::with_capacity(sets.len());
        let mut in_progress = Vec::with_capacity(sets.len());
        for (PinToSet { card, block }, registered) in zip(sets, accounts) {
            in_progress.push(self.begin_set(caller, *card.key(), block, registered).map(|(request, set)| {
                requests.push(request);
                set
            }));
        }
        let mut replies = self.execute_all(requests, sets.len()).await.into_iter();
        let mut queued = Vec::with_capacity(sets.len());
        for set in in_progress {
            queued.push(set.and_then(|set| {
                let reply = replies.next().unwrap_or(Err(Error::UnexpectedReply))?;
                self.store_set(caller, set, reply)
            }));
        }
        let mut results = Vec::with_capacity(sets.len());
        for stored in queued {
            results.push(match stored {
                Ok(stored) => stored.await.map_err(PinError::from),
                Err(error) => Err(error),
            });
        }
        if results.iter().all(Result::is_ok) {
            return Ok(results);
        }
        let end = async |set: &PinToSet, result: Result<ZoneSet, PinError>| match result {
            Err(PinError::Denied(Denied::Superseded | Denied::StorageKeyInactive)) => {
                self.set_pin_by_zone(caller, &set.card, &set.block).await
            }
            result => {
                let about = || self.about_refused(Action::SetPinByZone, set.card.key());
                self.audit_refusal(caller, reads, about, result).await
            }
        };
        Ok(join_all(zip(sets, results).map(|(set, result)| end(set, result))).await)
    }

    async fn set_by_zone(&self, caller: &Caller, card: CardKey, named: &NamedZoneBlock) -> Result<ZoneSet, PinError> {
        for attempt in 0..ATTEMPTS_MAX {
            let registered = self.store.card(&card).await?.and_then(|card| card.account);
            let (request, set) = self.begin_set(caller, card, named, registered)?;
            let reply = self.execute(request).await?;
            match self.store_set(caller, set, reply)?.await {
                // The account number or the storage key changed: start over with the present ones.
                Err(ChangeError::Denied(Denied::Superseded)) => {}
                // Another engine that lacks the key registered: once more, under the key that it has.
                Err(ChangeError::Denied(Denied::StorageKeyInactive)) if attempt == 0 => {}
                set => return Ok(set?),
            }
        }
        Err(PinError::CardChanged)
    }

    /// The request that translates a block to a record.
    ///
    /// # Errors
    /// [`PinError`]: the zone is not known, or its rules do not allow the block.
    fn begin_set(
        &self,
        caller: &Caller,
        card: CardKey,
        named: &NamedZoneBlock,
        registered: Option<RegisteredAccount>,
    ) -> Result<(Request, ZoneSetInProgress), PinError> {
        let zone = self.zone(&caller.tenant, &named.key)?;
        let (source, format) = zone.source(named, ZoneUse::SetPin)?;
        let translate = Request::Translate {
            source,
            target: Target::Record,
            card: card_binding(&card)?,
            account: account(registered.as_ref())?,
        };
        Ok((translate, ZoneSetInProgress { card, registered, zone_key: zone.key_text(), format }))
    }

    /// Queues the change that stores the record of a reply.
    ///
    /// # Errors
    /// [`Error::UnexpectedReply`]: the reply has no record.
    fn store_set(
        &self,
        caller: &Caller,
        set: ZoneSetInProgress,
        reply: Reply,
    ) -> Result<impl Future<Output = Result<ZoneSet, ChangeError>>, PinError> {
        let ZoneSetInProgress { card, registered, zone_key, format } = set;
        let Reply::Record { record, retry_tag: Some(tag) } = reply else { return Err(Error::UnexpectedReply.into()) };
        let event = self.card_event(
            caller,
            CardEvent {
                key: Some(zone_key),
                formats: Some(Formats { from: zone_block_format(format), to: block_format(record.form()) }),
                ..self.about_card(Action::SetPinByZone, &card, registered.as_ref())
            },
        );
        let (key, record) = (record_key(&record), record.as_bytes().into());
        let pin = StoredPin { key, record, account: registered };
        let unknown = self.rules.admission.unknown_cards;
        Ok(self.store.set_pin_by_zone(card, pin, RetryTag(tag), unknown, event))
    }

    /// Translates the stored PIN to a format 1 block of a zone.
    ///
    /// # Errors
    /// [`PinError`]: the zone is refused, the card has no PIN, the PIN may not leave the store, or the store or the boundary
    /// failed.
    pub async fn get_pin_by_zone(
        &self,
        caller: &Caller,
        card: &AdmittedCard,
        key: &NamedZoneKey,
    ) -> Result<ZoneBlock, PinError> {
        let card = *card.key();
        let reads = self.store.read_epoch();
        let given = self.give(caller, card, Action::GetPinByZone, key, None).await;
        self.audit_refusal(caller, reads, || self.about_refused(Action::GetPinByZone, &card), given).await
    }

    /// Translates the stored PIN to a block of a zone that is bound to the account number.
    ///
    /// # Errors
    /// As [`Pins::get_pin_by_zone`].
    pub async fn export_pin(
        &self,
        caller: &Caller,
        card: &AdmittedCard,
        key: &NamedZoneKey,
        format: Option<ZoneFormat>,
    ) -> Result<ZoneBlock, PinError> {
        let card = *card.key();
        let reads = self.store.read_epoch();
        let given = self.give(caller, card, Action::ExportPin, key, format).await;
        self.audit_refusal(caller, reads, || self.about_refused(Action::ExportPin, &card), given).await
    }

    async fn give(
        &self,
        caller: &Caller,
        card: CardKey,
        action: Action,
        key: &NamedZoneKey,
        format: Option<ZoneFormat>,
    ) -> Result<ZoneBlock, PinError> {
        let zone = self.zone(&caller.tenant, key)?;
        let needed = if action == Action::GetPinByZone { ZoneUse::GetPin } else { ZoneUse::Export };
        let format = zone.format(format, needed)?;
        for _ in 0..ATTEMPTS_MAX {
            let pin = self.store.pin(&card).await?.ok_or(PinError::PinNotSet)?;
            let record = PinRecord::from_bytes(&pin.record)?;
            let formats = Formats { from: block_format(record.form()), to: zone_block_format(format) };
            let translate = Request::Translate {
                source: hsm_protocol::Source::Record(record),
                target: Target::Zone { key: zone.key(), format },
                card: card_binding(&card)?,
                account: account(pin.account.as_ref())?,
            };
            let Reply::ZoneBlock(block) = self.execute(translate).await? else {
                return Err(Error::UnexpectedReply.into());
            };
            let about = self.about_card(action, &card, pin.account.as_ref());
            let given = CardEvent { key: Some(zone.key_text()), formats: Some(formats), ..about };
            match self.store.give_pin(card, pin.record, self.card_event(caller, given)).await {
                Ok(()) => return Ok(block),
                // Another request replaced the record: start over with the newest one.
                Err(ChangeError::Denied(Denied::Superseded)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(PinError::CardChanged)
    }
}
