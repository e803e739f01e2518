//! The verdict on a history, for people and for a test.

use std::fmt;

use crate::history::{Call, History, Seconds};
use crate::order_search::{NoOrder, SearchOptions, Verdict, search};
use crate::totals::{EngineTotals, Totals, calls_by_card};

/// The verdict on a history.
#[derive(Debug)]
pub struct Report {
    /// The counts, and what is certainly wrong.
    pub totals: Totals,
    /// The cards whose answers no order of the calls explains.
    pub no_order: Vec<NoOrder>,
    /// The cards without a verdict: the call at which the search gave up, and the states that it visited.
    pub undecided: Vec<(Call, usize)>,
}

impl Report {
    /// Checks a history.
    pub fn new(history: &History, options: SearchOptions) -> Self {
        let mut report = Self { totals: Totals::new(history), no_order: Vec::new(), undecided: Vec::new() };
        for calls in calls_by_card(history).values() {
            match search(calls, &history.setup, options) {
                Verdict::Explained => {}
                Verdict::NoOrder(found) => report.no_order.push(found),
                Verdict::TooMuchConcurrency { call, states } => report.undecided.push((*call, states)),
            }
        }
        report
    }

    /// Whether something is certainly wrong.
    pub fn is_wrong(&self) -> bool {
        let Totals { lost_pins, reused_controls, exceeded_tries, .. } = &self.totals;
        !(self.no_order.is_empty() && lost_pins.is_empty() && reused_controls.is_empty() && exceeded_tries.is_empty())
    }

    /// Whether every card has a verdict, and nothing is wrong.
    pub fn is_right(&self) -> bool {
        self.undecided.is_empty() && !self.is_wrong()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals { cards, faults, all, engines, .. } = &self.totals;
        writeln!(f, "{cards} cards, {faults} faults")?;
        writeln!(f, "all engines: {all}")?;
        for (name, engine) in engines {
            writeln!(f, "engine {name}: {engine}")?;
        }
        writeln!(f, "{} acknowledged PINs, {} lost", self.totals.acknowledged_pins, self.totals.lost_pins.len())?;
        writeln!(f, "{} cards whose last PIN no later call compared", self.totals.unverified_cards)?;
        writeln!(f, "{} right PINs after the first fault", self.totals.right_after_fault)?;
        writeln!(f, "{} controls used twice", self.totals.reused_controls.len())?;
        writeln!(f, "{} cards with more tries than the limit", self.totals.exceeded_tries.len())?;
        writeln!(f, "{} cards whose answers no order of the calls explains", self.no_order.len())?;
        writeln!(f, "{} cards without a verdict", self.undecided.len())?;
        for lost in &self.totals.lost_pins {
            writeln!(f, "\nA PIN is lost:\n  {}\n  {}", lost.acknowledged, lost.found)?;
        }
        for reused in &self.totals.reused_controls {
            writeln!(f, "\nA control is used twice:\n  {}\n  {}", reused.first, reused.second)?;
        }
        for exceeded in &self.totals.exceeded_tries {
            writeln!(f, "\nMore wrong PINs than the limit, without a right PIN or a reset in between:")?;
            for call in &exceeded.wrong {
                writeln!(f, "  {call}")?;
            }
        }
        for no_order in &self.no_order {
            write!(f, "\n{no_order}")?;
        }
        for (call, states) in &self.undecided {
            writeln!(f, "\nCard {} has no verdict: too many calls at once, {states} states at\n  {call}", call.card)?;
        }
        Ok(())
    }
}

impl fmt::Display for EngineTotals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answered, refused, given_up, writes, longest_gap } = self;
        write!(f, "{answered} answered, {refused} refused, {given_up} given up, {writes} acknowledged writes, ")?;
        write!(f, "longest time without one {}", Seconds(*longest_gap))
    }
}
