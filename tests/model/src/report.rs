//! Runs a checker and reports what it found.

use std::{fmt, hash::Hash};

use stateright::{Checker, Expectation, HasDiscoveries, Model};

use crate::graph::Graph;

/// The name of the property that [`Report::check_recovery`] checks.
pub const SERVICE: &str = "g: from each state there is a path to service";

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

    /// Visits the states breadth first, up to the first violation of a property that always holds in a recommended design. The
    /// report has no depth.
    pub fn check_rejected<M>(model: &M, property: &'static str) -> Self
    where
        M: Model,
        M::State: Clone + Hash,
        M::Action: Clone + fmt::Debug,
    {
        let condition =
            model.properties().into_iter().find(|other| other.name == property).map(|found| found.condition);
        let is_violated = |state: &M::State| condition.is_some_and(|condition| !condition(model, state));
        Self::of_path(property, Graph::first(model, is_violated))
    }

    /// Visits every state, and checks [`SERVICE`]. The report has no depth.
    pub fn check_recovery<M>(model: &M, serves: impl Fn(&M::State) -> bool) -> Self
    where
        M: Model,
        M::State: Clone + Hash,
        M::Action: Clone + fmt::Debug,
    {
        Self::of_path(SERVICE, Graph::stuck(model, serves))
    }

    fn of_path<A: fmt::Debug>(property: &'static str, (states, path): (usize, Option<Vec<A>>)) -> Self {
        let steps = path.map(|path| path.iter().map(|action| format!("{action:?}")).collect());
        Self { states, depth: 0, violated: steps.map(|steps| (property, steps)).into_iter().collect() }
    }

    /// The shortest path to the violation of a property.
    pub fn path_to(&self, property: &str) -> Option<&[String]> {
        self.violated.iter().find(|(name, _)| *name == property).map(|(_, steps)| steps.as_slice())
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
