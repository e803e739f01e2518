//! The graph of a model's states, visited breadth first: the shortest path to a violation, and the property "from each reachable
//! state there is a path to service". stateright has no such property, and reports a path that may be some steps longer.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash},
};

use stateright::Model;

/// Each visited state by its number, in the order of the visits.
pub struct Graph<M: Model> {
    /// The state before it, and the step between them; `None` for a first state.
    parents: Vec<(usize, Option<M::Action>)>,
}

impl<M> Graph<M>
where
    M: Model,
    M::State: Clone + Hash,
    M::Action: Clone,
{
    /// Visits each state of `model`, until `at_state` returns true: the graph, and the number of that state. `at_edge` gets two
    /// numbers of states, to and from.
    fn visit(
        model: &M,
        mut at_state: impl FnMut(&M::State) -> bool,
        mut at_edge: impl FnMut(usize, usize),
    ) -> (Self, Option<usize>) {
        let hash = |state: &M::State| BuildHasherDefault::<DefaultHasher>::default().hash_one(state);
        let mut numbers: HashMap<u64, usize> = HashMap::new();
        let mut parents = Vec::new();
        let mut queue = VecDeque::new();
        for state in model.init_states() {
            numbers.insert(hash(&state), parents.len());
            queue.push_back((parents.len(), state));
            parents.push((0, None));
        }
        while let Some((number, state)) = queue.pop_front() {
            if at_state(&state) {
                return (Self { parents }, Some(number));
            }
            let mut actions = Vec::new();
            model.actions(&state, &mut actions);
            for action in actions {
                let Some(next) = model.next_state(&state, action.clone()) else { continue };
                let new = parents.len();
                let at = *numbers.entry(hash(&next)).or_insert(new);
                if at == new {
                    parents.push((number, Some(action)));
                    queue.push_back((new, next));
                }
                at_edge(at, number);
            }
        }
        (Self { parents }, None)
    }

    /// The number of states that were visited before the first one that satisfies `is_found`, and the shortest path to it.
    pub fn first(model: &M, is_found: impl Fn(&M::State) -> bool) -> (usize, Option<Vec<M::Action>>) {
        let (graph, found) = Self::visit(model, is_found, |_, _| {});
        (graph.parents.len(), found.map(|at| graph.path_to(at)))
    }

    /// The number of all states, and the shortest path to one that has no path to a state that `serves`.
    pub fn stuck(model: &M, serves: impl Fn(&M::State) -> bool) -> (usize, Option<Vec<M::Action>>) {
        let (mut is_served, mut edges) = (Vec::new(), Vec::new());
        let at_state = |state: &M::State| {
            is_served.push(serves(state));
            false
        };
        let (graph, _) = Self::visit(model, at_state, |to, from| edges.push((short(to), short(from))));
        walk_back(&mut is_served, edges);
        // The numbers rise with the distance from the start: the first is the nearest.
        let stuck = is_served.iter().position(|served| !served);
        (graph.parents.len(), stuck.map(|at| graph.path_to(at)))
    }

    fn path_to(&self, mut at: usize) -> Vec<M::Action> {
        let mut path = Vec::new();
        while let (parent, Some(action)) = &self.parents[at] {
            path.push(action.clone());
            at = *parent;
        }
        path.reverse();
        path
    }
}

/// Marks each state that has a path to a marked one. An edge is a state and the one before it.
fn walk_back(is_served: &mut [bool], mut edges: Vec<(u32, u32)>) {
    edges.sort_unstable();
    let mut left: Vec<_> = (0..is_served.len()).filter(|at| is_served[*at]).map(short).collect();
    while let Some(to) = left.pop() {
        let first = edges.partition_point(|edge| edge.0 < to);
        for &(_, from) in edges[first..].iter().take_while(|edge| edge.0 == to) {
            if let Some(served) = is_served.get_mut(from as usize).filter(|served| !**served) {
                *served = true;
                left.push(from);
            }
        }
    }
}

#[allow(clippy::unwrap_used, reason = "no machine has the memory for so many states")]
fn short(number: usize) -> u32 {
    number.try_into().unwrap()
}
