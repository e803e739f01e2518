//! The cards that were never registered and never had a PIN: the writer's index of their rows, which are removed once they
//! are forgotten.

use std::collections::BTreeSet;

use hashbrown::HashMap;

use domain::card::{CardKey, Tenant};
use domain::rules::{CardState, is_forgotten};
use domain::time::UnixMillis;

/// The unregistered cards on disk, and those of the present batch. About 300 bytes for each card.
#[derive(Default)]
pub(super) struct UnregisteredCards {
    cards: HashMap<CardKey, CardState>,
    of_tenant: HashMap<Tenant, u32>,
    /// Each card under the hour of its last control alone.
    by_hour: BTreeSet<(u64, CardKey)>,
}

impl UnregisteredCards {
    /// The index of rows on disk.
    pub(super) fn of_rows(rows: Vec<(CardKey, CardState)>) -> Self {
        let mut unregistered = Self::default();
        rows.into_iter().for_each(|(card, state)| unregistered.put(card, state));
        unregistered
    }

    pub(super) fn get(&self, card: &CardKey) -> Option<&CardState> {
        self.cards.get(card)
    }

    pub(super) fn of_tenant(&self, tenant: &Tenant) -> u32 {
        self.of_tenant.get(tenant).copied().unwrap_or_default()
    }

    pub(super) fn put(&mut self, card: CardKey, state: CardState) {
        let hour = state.hour;
        match self.cards.insert(card, state) {
            Some(before) => {
                self.by_hour.remove(&(before.hour, card));
            }
            None => {
                let held = self.of_tenant.entry(card.tenant).or_default();
                *held = held.saturating_add(1);
            }
        }
        self.by_hour.insert((hour, card));
    }

    /// Removes a card that is registered or has a PIN from now on. Returns whether it was here.
    pub(super) fn remove(&mut self, card: &CardKey) -> bool {
        let Some(removed) = self.cards.remove(card) else { return false };
        self.by_hour.remove(&(removed.hour, *card));
        if let Some(held) = self.of_tenant.get_mut(&card.tenant) {
            *held = held.saturating_sub(1);
            if *held == 0 {
                self.of_tenant.remove(&card.tenant);
            }
        }
        true
    }

    /// Removes the cards that are forgotten at `now`, at most `max` of them.
    pub(super) fn remove_forgotten(&mut self, now: UnixMillis, max: usize) -> Vec<CardKey> {
        let mut forgotten = Vec::new();
        while forgotten.len() < max
            && let Some((hour, card)) = self.by_hour.first().copied()
            && is_forgotten(hour, now)
        {
            self.by_hour.pop_first();
            self.remove(&card);
            forgotten.push(card);
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::card::PlasticId;

    fn card(tenant: &str, number: &str) -> CardKey {
        CardKey { tenant: Tenant::parse(tenant).unwrap(), plastic: PlasticId::parse(number).unwrap() }
    }

    fn opened_in(hour: u64) -> CardState {
        CardState { hour, opened: 1, ..CardState::default() }
    }

    fn in_hour(hour: u64) -> UnixMillis {
        UnixMillis(hour * 3_600_000)
    }

    #[test]
    fn a_card_is_forgotten_two_hours_after_its_last_control() {
        let [first, second, other] = [card("bank", "1"), card("bank", "2"), card("other", "1")];
        let mut cards =
            UnregisteredCards::of_rows(vec![(second, opened_in(8)), (first, opened_in(7)), (other, opened_in(7))]);
        assert_eq!((cards.of_tenant(&first.tenant), cards.of_tenant(&other.tenant)), (2, 1));
        cards.put(first, opened_in(9));
        assert!(cards.remove_forgotten(in_hour(8), 10).is_empty());
        assert_eq!(cards.remove_forgotten(in_hour(9), 10), [other]);
        assert_eq!(cards.remove_forgotten(in_hour(10), 10), [second]);
        assert_eq!(cards.get(&first), Some(&opened_in(9)));
        assert!(cards.remove(&first) && !cards.remove(&first));
        assert!(cards.remove_forgotten(in_hour(20), 10).is_empty());
        assert!(cards.of_tenant.is_empty() && cards.by_hour.is_empty());
    }

    #[test]
    fn a_card_that_gets_a_pin_leaves_nothing_behind() {
        let mut cards = UnregisteredCards::default();
        for number in 1..=50_u8 {
            let card = card("bank", &number.to_string());
            cards.put(card, opened_in(7));
            cards.put(card, opened_in(8));
            assert_eq!(cards.by_hour.len(), 1);
            assert!(cards.remove(&card));
        }
        assert!(cards.cards.is_empty() && cards.by_hour.is_empty());
    }

    #[test]
    fn one_call_removes_no_more_cards_than_asked() {
        let rows = (1..=5).map(|number: u8| (card("bank", &number.to_string()), opened_in(1))).collect();
        let mut cards = UnregisteredCards::of_rows(rows);
        assert_eq!(cards.remove_forgotten(in_hour(3), 2).len(), 2);
        assert_eq!(cards.remove_forgotten(in_hour(3), 10).len(), 3);
    }
}
