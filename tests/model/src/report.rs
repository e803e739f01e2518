//! Runs a checker and reports what it found.

use std::{fmt, hash::Hash};

use stateright::{Checker, Expectation, HasDiscoveries, Model};

/// The result of a run.
pub struct Report {
    /// The number of distinct states.
    pub states: usize,
    /// Steps from the start to the farthest state.
    pub depth: usize,
    /// Each property that does not hold, with the shortest path to its violation. A state that must be reachable and is not
    /// has no path.
    pub violated: Vec<(&'static str, Vec<String>)>,
}

impl Report {
    /// Visits every state, breadth first. With `until` the run ends at the first violation of that property.
    pub fn check<M>(model: M, until: Option<&'static str>) -> Self
    where
        M: Model + Clone + Send + Sync + 'static,
        M::State: Clone + fmt::Debug + Hash + PartialEq + Send + Sync,
        M::Action: Clone + fmt::Debug + PartialEq + Send + Sync,
    {
        let properties = model.properties();
        let finish = match until {
            Some(name) => HasDiscoveries::AnyOf([name].into_iter().collect()),
            None => HasDiscoveries::All,
        };
        let checker = model.checker().finish_when(finish).spawn_bfs().join();
        let mut violated = Vec::new();
        for property in &properties {
            match (&property.expectation, checker.discovery(property.name)) {
                (Expectation::Sometimes, None) if until.is_none() => violated.push((property.name, Vec::new())),
                (Expectation::Always, Some(path)) => {
                    let steps = path.into_actions().iter().map(|action| format!("{action:?}")).collect();
                    violated.push((property.name, steps));
                }
                _ => {}
            }
        }
        Self { states: checker.unique_state_count(), depth: checker.max_depth(), violated }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} states, {} steps deep", self.states, self.depth)?;
        for (name, steps) in &self.violated {
            write!(f, "\nviolated: {name}\n  {}", steps.join("\n  "))?;
        }
        Ok(())
    }
}
