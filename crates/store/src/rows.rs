//! A change, applied to the newest rows of a store: the one place where a [`Change`] meets its rule, for every store. R4 to R10
//! are the rules of a store that several engines share; the embedded store keeps them by its one writer.

use crate::codec::PinRow;
use crate::{Change, ChangeError, ControlUse, KeysAtStart, Outcome, ReportedKeys, StoreError, ZoneSet};
use audit::archive::ArchivedPart;
use domain::card::{CardKey, ReencryptedPin, RegisteredAccount, StoredPin, Tenant};
use domain::control::{Control, ControlId, Denied, NewControl, PageClient, PageId, RetryTag, Transition};
use domain::pin_rules::{self, SettledChange, TransferCard};
use domain::rules::{self, Admission, Advanced, CardState, FoundCard, Registered, UnknownCards};
use domain::storage_key::KeyWindow;
use domain::time::UnixMillis;
use domain::tries::{ChangeVerdict, Compared, Verdict};

/// The rows of a store inside one transaction. What an earlier change of the transaction wrote, a later one reads.
pub trait Rows {
    /// The time of the store's clock, read after the rows were locked.
    fn now(&self) -> UnixMillis;

    /// [`Rows::now`] as wall time.
    fn wall_now(&self) -> UnixMillis;

    /// The storage keys that a record to be written may be under.
    fn key_window(&self) -> KeyWindow;

    /// A card that was registered, or has had a PIN.
    ///
    /// # Errors
    /// The row can't be read.
    fn known_card(&self, card: &CardKey) -> Result<Option<CardState>, StoreError>;

    /// A card that had a control lately, and neither registration nor PIN.
    ///
    /// # Errors
    /// The row can't be read.
    fn unregistered_card(&self, card: &CardKey) -> Result<Option<CardState>, StoreError>;

    /// The number of unregistered cards of a tenant.
    fn unregistered_cards_of(&self, tenant: &Tenant) -> u32;

    /// The newest PIN of a card.
    ///
    /// # Errors
    /// The row can't be read.
    fn pin(&self, card: &CardKey) -> Result<Option<PinRow>, StoreError>;

    /// The newest PIN of each of these cards, in their order. A store may read neighbours at once.
    ///
    /// # Errors
    /// A row can't be read.
    fn pins(&self, cards: &[CardKey]) -> Result<Vec<Option<PinRow>>, StoreError> {
        cards.iter().map(|card| self.pin(card)).collect()
    }

    /// A control; `None` where it does not exist or can't be read.
    fn control(&self, id: ControlId) -> Option<Control>;

    /// Writes a card that is registered or has had a PIN.
    fn put_card(&mut self, card: CardKey, state: CardState);

    /// Writes a card without registration and PIN.
    fn put_unregistered_card(&mut self, card: CardKey, state: CardState);

    /// Writes the PIN of a card.
    fn put_pin(&mut self, card: CardKey, set_at: UnixMillis, pin: &StoredPin);

    /// Writes a control.
    fn put_control(&mut self, control: &Control);

    /// Gives the controls of a card its new account number, by [`rules::follow_account`].
    fn controls_follow(&mut self, card: &CardKey, account: Option<&RegisteredAccount>);

    /// Writes the list of keys, the minimum versions and, of an engine that starts, the key of the card references.
    ///
    /// # Errors
    /// The store refuses the keys.
    fn put_keys_in_use(&mut self, keys: &ReportedKeys, start: Option<&KeysAtStart>) -> Result<(), StoreError>;

    /// Removes the entries of an archived part.
    ///
    /// # Errors
    /// [`StoreError::Damaged`]: the part does not end with an entry of the store.
    fn remove_archived(&mut self, part: &ArchivedPart) -> Result<(), StoreError>;
}

/// Applies a change by the rule that its variant names.
///
/// # Errors
/// A row can't be read, or the store refuses the keys. Nothing was written then.
pub fn make_change(rows: &mut impl Rows, change: Change) -> Result<Outcome, StoreError> {
    match Changing(rows).change(change) {
        Ok(outcome) => Ok(outcome),
        Err(ChangeError::Denied(denied)) => Ok(Outcome::Denied(denied)),
        Err(ChangeError::Store(error)) => Err(error),
    }
}

struct Changing<'a, R>(&'a mut R);

impl<R: Rows> Changing<'_, R> {
    fn change(&mut self, change: Change) -> Result<Outcome, ChangeError> {
        match change {
            Change::RegisterCard { card, account } => self.register(card, account),
            Change::OpenControl { control, admission } => self.open(control, admission),
            Change::Advance { control, transition } => self.advance(control, transition),
            Change::StartPage { control, client, id } => self.start_page(control, client, id),
            Change::ConfirmRetry { control, retry } => self.confirm_retry(control, &retry),
            Change::Reencrypt(pins) => self.reencrypt(pins),
            Change::SetPinByZone { card, pin, tag, unknown } => self.set_by_zone(card, &pin, &tag, unknown),
            Change::GivePin { card, shown } => {
                pin_rules::give(self.stored_pin(&card)?.as_ref(), &shown)?;
                Ok(Outcome::Done)
            }
            Change::ReserveTry { card, limit, compared } => self.reserve_try(card, limit, compared),
            Change::SettleTry { card, number, verdict, limit } => self.settle_try(card, number, verdict, limit),
            Change::SettleChange { card, number, verdict, limit, control } => {
                self.settle_change(card, number, verdict, limit, control)
            }
            Change::ResetTries { card, up_to, limit } => {
                let state = pin_rules::reset_tries(self.0.known_card(&card)?, up_to)?;
                let tries = state.tries.tries;
                self.0.put_card(card, state);
                Ok(Outcome::TriesReset { tries, tries_left: tries.left(limit) })
            }
            Change::GeneratePin { card, pin } => {
                let state = pin_rules::generate(self.0.known_card(&card)?, &pin, &self.0.key_window())?;
                self.put_new_pin(card, state, &pin);
                Ok(Outcome::Done)
            }
            Change::ReplaceAccount { card, account, pin } => self.replace_account(card, account, pin),
            Change::TransferPin { from, before, to, pin } => self.transfer(from, &before, to, &pin),
            Change::SetKeysInUse { keys, start } => {
                self.0.put_keys_in_use(&keys, start.as_deref())?;
                Ok(Outcome::Done)
            }
            Change::RemoveArchived(part) => {
                self.0.remove_archived(&part)?;
                Ok(Outcome::Done)
            }
            Change::ConfirmReads => Ok(Outcome::Unchanged),
            Change::RecordEvent | Change::RecordAccess => Ok(Outcome::Done),
        }
    }

    fn register(&mut self, card: CardKey, account: Option<RegisteredAccount>) -> Result<Outcome, ChangeError> {
        let pin_set_at = self.0.pin(&card)?.map(|row| row.set_at);
        let registered = rules::register(self.card(&card)?, pin_set_at.is_some(), account)?;
        Ok(self.put_registered(card, registered, pin_set_at))
    }

    /// Writes a registered card, and the controls that follow its account number.
    fn put_registered(&mut self, card: CardKey, registered: Registered, pin_set_at: Option<UnixMillis>) -> Outcome {
        let Registered { card: state, controls_follow } = registered;
        if controls_follow {
            self.0.controls_follow(&card, state.account.as_ref());
        }
        let registered = state.card(pin_set_at);
        self.0.put_card(card, state);
        Outcome::Registered(registered)
    }

    fn replace_account(
        &mut self,
        card: CardKey,
        account: RegisteredAccount,
        reencrypted: Option<ReencryptedPin>,
    ) -> Result<Outcome, ChangeError> {
        let row = self.0.pin(&card)?;
        let pin_set_at = row.as_ref().map(|row| row.set_at);
        let (state, newest) = (self.card(&card)?, row.map(|row| row.pin));
        let (registered, pin) = pin_rules::replace_account(state, newest, account, reencrypted, &self.0.key_window())?;
        if let Some((set_at, pin)) = pin_set_at.zip(pin) {
            self.0.put_pin(card, set_at, &pin);
        }
        Ok(self.put_registered(card, registered, pin_set_at))
    }

    fn set_by_zone(
        &mut self,
        card: CardKey,
        pin: &StoredPin,
        tag: &RetryTag,
        unknown: UnknownCards,
    ) -> Result<Outcome, ChangeError> {
        let found = self.found_card(&card)?;
        let Some(state) = pin_rules::set_by_zone(found, pin, tag, unknown, &self.0.key_window())? else {
            return Ok(Outcome::SetByZone(ZoneSet::Repeated));
        };
        self.put_new_pin(card, state, pin);
        Ok(Outcome::SetByZone(ZoneSet::New))
    }

    fn reserve_try(&mut self, card: CardKey, limit: u32, compared: Compared) -> Result<Outcome, ChangeError> {
        let newest = self.stored_pin(&card)?;
        // R9: the try has its number before the boundary compares.
        let (state, reserved) = pin_rules::reserve_try(self.0.known_card(&card)?, newest, compared, limit)?;
        self.0.put_card(card, state);
        Ok(Outcome::TryReserved(Box::new(reserved)))
    }

    fn settle_try(&mut self, card: CardKey, number: u64, verdict: Verdict, limit: u32) -> Result<Outcome, ChangeError> {
        let state = self.0.known_card(&card)?.ok_or(Denied::CardUnknown)?;
        let row = match &verdict {
            Verdict::Right { moved: Some(_) } => self.0.pin(&card)?,
            _ => None,
        };
        let set_at = row.as_ref().map(|row| row.set_at);
        let newest = row.map(|row| row.pin);
        let (state, moved) = pin_rules::settle_try(state, newest, number, verdict, &self.0.key_window())?;
        if let Some((set_at, moved)) = set_at.zip(moved) {
            self.0.put_pin(card, set_at, &moved);
        }
        Ok(self.put_settled(card, state, number, limit))
    }

    fn settle_change(
        &mut self,
        card: CardKey,
        number: u64,
        verdict: ChangeVerdict,
        limit: u32,
        control: Option<ControlUse>,
    ) -> Result<Outcome, ChangeError> {
        let state = self.0.known_card(&card)?.ok_or(Denied::CardUnknown)?;
        let control = match control {
            // A wrong or malformed block is recorded although the control is gone.
            Some(ControlUse { id, under }) => match self.0.control(id).filter(|control| control.card == card) {
                Some(control) => Some((control, under)),
                None if matches!(verdict, ChangeVerdict::Right { .. }) => return Err(Denied::NotUsable.into()),
                None => None,
            },
            None => None,
        };
        let SettledChange { card: state, pin, control } =
            pin_rules::settle_change(state, control, number, verdict, &self.0.key_window(), self.0.now())?;
        if let Some(control) = control {
            self.0.put_control(&control);
        }
        let left = self.put_settled(card, state.clone(), number, limit);
        if let Some(pin) = pin {
            self.put_new_pin(card, state, &pin);
        }
        Ok(left)
    }

    fn put_settled(&mut self, card: CardKey, state: CardState, number: u64, limit: u32) -> Outcome {
        let tries_left = state.tries.tries.left(limit);
        self.0.put_card(card, state);
        Outcome::TrySettled { number, tries_left }
    }

    fn transfer(&mut self, from: CardKey, before: &[u8], to: CardKey, pin: &StoredPin) -> Result<Outcome, ChangeError> {
        let card = |card: CardKey| {
            let (state, pin) = (self.0.known_card(&card)?, self.stored_pin(&card)?);
            Ok::<_, StoreError>(TransferCard { card, state, pin })
        };
        let Some(state) = pin_rules::transfer(card(from)?, before, card(to)?, pin, &self.0.key_window())? else {
            return Ok(Outcome::Unchanged);
        };
        self.put_new_pin(to, state, pin);
        Ok(Outcome::Done)
    }

    fn open(&mut self, new: NewControl, admission: Admission) -> Result<Outcome, ChangeError> {
        let found = self.found_card(&new.card)?;
        let is_known = matches!(found, FoundCard::Known(_));
        // R4: the control keeps the generation of the locked card, and expires by the time read behind the lock.
        let (card, control) = rules::open(found, new, admission, self.0.now())?;
        if is_known {
            self.0.put_card(control.card, card);
        } else {
            self.0.put_unregistered_card(control.card, card);
        }
        self.0.put_control(&control);
        Ok(Outcome::Opened(Box::new(control)))
    }

    fn advance(&mut self, id: ControlId, transition: Transition) -> Result<Outcome, ChangeError> {
        let control = self.control(id)?;
        let card = self.card(&control.card)?.unwrap_or_default();
        let newest = match transition {
            Transition::View { .. } => self.stored_pin(&control.card)?,
            _ => None,
        };
        // R5, R6, R8: tzpk, state, expiry, generation and key versions are compared on the locked rows.
        let Advanced { control, set } =
            rules::advance(control, card, newest.as_ref(), transition, &self.0.key_window(), self.0.now())?;
        self.0.put_control(&control);
        if let Some((card, pin)) = set {
            self.put_new_pin(control.card, card, &pin);
        }
        Ok(Outcome::Done)
    }

    fn start_page(&mut self, id: ControlId, client: PageClient, page: PageId) -> Result<Outcome, ChangeError> {
        let control = self.control(id)?;
        let generation = self.card(&control.card)?.unwrap_or_default().generation;
        let Some(control) = rules::start_page(control, client, page, generation, self.0.now())? else {
            return Ok(Outcome::Unchanged);
        };
        self.0.put_control(&control);
        Ok(Outcome::Done)
    }

    fn confirm_retry(&mut self, id: ControlId, retry: &RetryTag) -> Result<Outcome, ChangeError> {
        let control = self.control(id)?;
        let card = self.card(&control.card)?.unwrap_or_default();
        // R7: confirmed by a change, which raises the generation.
        let card = rules::confirm_retry(&control, card, retry, self.0.now())?;
        self.0.put_card(control.card, card);
        Ok(Outcome::Done)
    }

    fn reencrypt(&mut self, pins: Vec<ReencryptedPin>) -> Result<Outcome, ChangeError> {
        let cards: Vec<_> = pins.iter().map(|reencrypted| reencrypted.card).collect();
        let mut replaced = Vec::with_capacity(pins.len());
        for (reencrypted, row) in pins.into_iter().zip(self.0.pins(&cards)?) {
            let card = reencrypted.card;
            let Some(PinRow { set_at, pin }) = row else { continue };
            // R10: only the exact bytes that were decrypted are replaced, under a key of the window.
            if let Some(pin) = rules::reencrypt(pin, reencrypted, &self.0.key_window()) {
                replaced.push((card, set_at, pin));
            }
        }
        let count = u64::try_from(replaced.len()).unwrap_or(u64::MAX);
        replaced.into_iter().for_each(|(card, set_at, pin)| self.0.put_pin(card, set_at, &pin));
        Ok(Outcome::Reencrypted(count))
    }

    fn control(&self, id: ControlId) -> Result<Control, Denied> {
        self.0.control(id).ok_or(Denied::NotUsable)
    }

    fn card(&self, card: &CardKey) -> Result<Option<CardState>, StoreError> {
        match self.0.known_card(card)? {
            Some(known) => Ok(Some(known)),
            None => self.0.unregistered_card(card),
        }
    }

    fn found_card(&self, card: &CardKey) -> Result<FoundCard, StoreError> {
        Ok(match self.0.known_card(card)? {
            Some(card) => FoundCard::Known(card),
            None => FoundCard::Unregistered {
                state: self.0.unregistered_card(card)?,
                of_tenant: self.0.unregistered_cards_of(&card.tenant),
            },
        })
    }

    fn stored_pin(&self, card: &CardKey) -> Result<Option<StoredPin>, StoreError> {
        Ok(self.0.pin(card)?.map(|row| row.pin))
    }

    /// Writes a card and its new PIN.
    fn put_new_pin(&mut self, card: CardKey, state: CardState, pin: &StoredPin) {
        self.0.put_pin(card, self.0.wall_now(), pin);
        self.0.put_card(card, state);
    }
}
