//! The tries of a card: how many comparisons with its PIN are left.
//!
//! A try is reserved, durably, before the boundary compares, and settled after. Each reservation has a number. A right PIN
//! forgives the tries up to its own number, so a settlement that comes late forgives no later try. A try whose call ended
//! without a settlement stays used.

use crate::card::{ReencryptedPin, RegisteredAccount, StoredPin};

/// The most reserved tries of a card that wait for their settlement. One more, and the oldest can't be settled: it stays
/// used, unless a later right PIN or a reset forgives it.
pub const UNSETTLED_TRIES_MAX: usize = 32;

/// The numbers of a card's tries. They never decrease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tries {
    /// The number of the last reserved try; 0 before the first.
    pub reserved: u64,
    /// The tries up to this number are forgiven.
    pub forgiven: u64,
}

impl Tries {
    /// The number of tries that are used.
    pub fn used(&self) -> u64 {
        self.reserved.saturating_sub(self.forgiven)
    }

    /// The number of tries that a card with this limit has left; 0 for a locked PIN.
    pub fn left(&self, limit: u32) -> u32 {
        u32::try_from(u64::from(limit).saturating_sub(self.used())).unwrap_or(limit)
    }

    /// The tries, those up to `number` forgiven. A number that was not reserved yet forgives no later try.
    fn forgive(self, number: u64) -> Self {
        Self { forgiven: self.forgiven.max(number.min(self.reserved)), ..self }
    }
}

/// The tries of a card, with those that wait for their settlement.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TryState {
    /// The numbers of the tries.
    pub tries: Tries,
    /// The numbers of reserved tries that are not settled, oldest first, at most [`UNSETTLED_TRIES_MAX`]. A try of a call
    /// that a crash ended stays here until newer ones push it out.
    pub unsettled: Box<[u64]>,
}

impl TryState {
    /// Reserves the next try; `None` where no try is left.
    pub(crate) fn reserve(&self, limit: u32) -> Option<Self> {
        let (reserved, forgiven) = (self.tries.reserved.checked_add(1)?, self.tries.forgiven);
        if self.tries.left(limit) == 0 {
            return None;
        }
        let kept = self.unsettled.len().saturating_add(1).saturating_sub(UNSETTLED_TRIES_MAX);
        let unsettled = self.unsettled.iter().copied().skip(kept).chain([reserved]).collect();
        Some(Self { tries: Tries { reserved, forgiven }, unsettled })
    }

    /// Settles a try; `None` where the number was not reserved, or was settled before.
    pub(crate) fn settle(&self, number: u64, is_right: bool) -> Option<Self> {
        if !self.unsettled.contains(&number) {
            return None;
        }
        let unsettled = self.unsettled.iter().copied().filter(|other| *other != number).collect();
        let tries = if is_right { self.tries.forgive(number) } else { self.tries };
        Some(Self { tries, unsettled })
    }

    /// Forgives the tries up to this number.
    pub(crate) fn forgive(self, number: u64) -> Self {
        Self { tries: self.tries.forgive(number), ..self }
    }

    /// All tries used, whatever the limit, until a reset forgives them: for a card whose newest tries are not known.
    pub fn locked(self) -> Self {
        let Tries { reserved, forgiven } = self.tries;
        let reserved = reserved.max(forgiven.saturating_add(u32::MAX.into()));
        Self { tries: Tries { reserved, forgiven }, unsettled: Box::default() }
    }
}

/// What the boundary compares in a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compared {
    /// The block with the card's PIN record.
    Record,
    /// The block with a verification value that the caller sends. The card has no PIN record.
    Value,
}

/// A reserved try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservedTry {
    /// The number of the try.
    pub number: u64,
    /// The tries that are left behind this one.
    pub tries_left: u32,
    /// The generation of the card.
    pub generation: u64,
    /// The PIN record to compare with; `None` for [`Compared::Value`].
    pub pin: Option<StoredPin>,
    /// The registered account number of the card.
    pub account: Option<RegisteredAccount>,
}

/// What the boundary found in a try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The PIN is right.
    Right {
        /// The one-way record under the newest key, where the compared record is under an older one.
        moved: Option<ReencryptedPin>,
    },
    /// The PIN is wrong.
    Wrong,
    /// The block is malformed. The try stays used.
    Malformed,
}

/// What the boundary found in a try to change the PIN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeVerdict {
    /// The old PIN is right, and the new one may replace it.
    Right {
        /// The generation of the card when the try was reserved.
        generation: u64,
        /// The record of the new PIN.
        pin: StoredPin,
    },
    /// The old PIN is wrong.
    Wrong,
    /// A block is malformed. The try stays used.
    Malformed,
    /// The old PIN is right, and the new one breaks the policy. The tries are forgiven as by a right PIN.
    RefusedPin,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reserved(times: u64) -> TryState {
        (0..times).fold(TryState::default(), |state, _| state.reserve(u32::MAX).unwrap())
    }

    #[test]
    fn a_right_pin_forgives_up_to_its_own_number_and_no_later_try() {
        let state = reserved(3).settle(3, false).unwrap();
        let late = state.settle(2, true).unwrap();
        assert_eq!(late.tries, Tries { reserved: 3, forgiven: 2 });
        assert_eq!((late.tries.used(), late.tries.left(3)), (1, 2));
    }

    #[test]
    fn a_second_settlement_of_a_number_changes_nothing() {
        let state = reserved(1).settle(1, false).unwrap();
        assert_eq!(state.settle(1, true), None);
        assert_eq!(state.settle(2, true), None, "never reserved");
        let forgiven = reserved(2).settle(2, true).unwrap();
        assert!(forgiven.settle(1, false).is_some(), "a try that is forgiven is settled once too");
    }

    #[test]
    fn a_reset_forgives_what_the_operator_saw_and_nothing_beyond() {
        let state = reserved(3);
        assert_eq!(state.clone().forgive(2).tries, Tries { reserved: 3, forgiven: 2 });
        assert_eq!(state.clone().forgive(99).tries, Tries { reserved: 3, forgiven: 3 });
        assert_eq!(state.forgive(2).forgive(1).tries.forgiven, 2);
    }

    #[test]
    fn a_locked_card_has_no_try_left_until_a_reset_forgives_all() {
        let locked = reserved(1).locked();
        assert_eq!(locked.tries.left(u32::MAX), 0);
        assert_eq!(locked.settle(1, true), None);
        let seen = locked.tries.reserved;
        assert_eq!(locked.forgive(seen).tries.left(3), 3);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Reserve,
        Settle { number: u64, is_right: bool },
        Reset { up_to: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Reserve),
            3 => (1..40u64, any::<bool>()).prop_map(|(number, is_right)| Step::Settle { number, is_right }),
            1 => (0..40u64).prop_map(|up_to| Step::Reset { up_to }),
        ]
    }

    proptest! {
        #[test]
        fn no_order_of_calls_allows_more_tries_than_the_limit(
            limit in 0..6u32,
            steps in prop::collection::vec(step(), 1..80),
        ) {
            // By number: the verdict, once settled, and whether a reset covers the try.
            let (mut state, mut tries) = (TryState::default(), Vec::<(Option<bool>, bool)>::new());
            for step in steps {
                let before = state.clone();
                match step {
                    Step::Reserve => if let Some(after) = state.reserve(limit) {
                        tries.push((None, false));
                        prop_assert_eq!(after.tries.reserved, tries.len() as u64);
                        state = after;
                    } else {
                        prop_assert!(state.tries.used() >= limit.into());
                    },
                    Step::Settle { number, is_right } => {
                        let known = tries.get_mut(number as usize - 1);
                        let is_open = known.as_ref().is_some_and(|(verdict, _)| verdict.is_none());
                        let settled = state.settle(number, is_right);
                        prop_assert!(settled.is_none() || is_open, "settled once");
                        if let (Some(after), Some(known)) = (settled, known) {
                            known.0 = Some(is_right);
                            state = after;
                        }
                    }
                    Step::Reset { up_to } => {
                        tries.iter_mut().take(up_to as usize).for_each(|known| known.1 = true);
                        state = state.forgive(up_to);
                    }
                }
                prop_assert!(state.tries.reserved >= before.tries.reserved);
                prop_assert!(state.tries.forgiven >= before.tries.forgiven);
                // The tries behind the last one that is right or reset are used, and no more than the limit.
                let forgives = |(verdict, reset): &(Option<bool>, bool)| *verdict == Some(true) || *reset;
                let used = tries.iter().rev().take_while(|known| !forgives(known)).count() as u64;
                prop_assert_eq!(state.tries.used(), used);
                prop_assert!(used <= limit.into());
                prop_assert!(state.unsettled.len() <= UNSETTLED_TRIES_MAX);
            }
        }
    }
}
