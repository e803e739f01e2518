//! The page of a web view (StartPage): one control, two engines, and two pages with their page ids. The first page id that is
//! committed gets the session of the control, each time that it asks; the other one is refused.
//!
//! Each start writes, so its answer is durable (R11), and a page whose answer was lost sends its page id again. The rule has two
//! cases and is written here: a control's other guards are in [`set_pin_model`](crate::set_pin_model).

use stateright::{Model, Property};

use crate::database::{Database, DatabaseStep, Faults, Notice, Tx};

/// The name of the property.
pub const J: &str = "j: one page at most gets the session of a control";

/// What a started control answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartRule {
    /// A refusal, to each page.
    Refuses,
    /// The same answer to the page id that started the control, a refusal to another one.
    RepeatsForThePage,
}

/// R11: when a page that asks again is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// As soon as a plain read shows its page id.
    FromRead,
    /// After an acknowledged commit.
    AfterCommit,
}

/// The choices that the model compares.
#[derive(Clone, Copy, Debug)]
pub struct Design {
    pub start_rule: StartRule,
    pub repeat: Repeat,
}

impl Design {
    pub const RECOMMENDED: Self = Self { start_rule: StartRule::RepeatsForThePage, repeat: Repeat::AfterCommit };
}

/// How much may happen. A page may ask without end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Connections that break.
    pub cuts: u8,
    pub faults: Faults,
}

/// The page id that started the control.
type Data = Option<u8>;

/// The page id of a start.
type Start = u8;

/// How much has happened.
#[derive(Clone, Copy, Debug, Default, Hash, PartialEq, Eq)]
pub struct Counters {
    cuts: u8,
    faults: Faults,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq)]
pub struct State {
    db: Database<Data, Start>,
    /// Of each engine the page that waits for its transaction.
    engines: [Option<Start>; 2],
    /// Of each page whether it got the session.
    has_session: [bool; 2],
    used: Counters,
}

#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub enum Action {
    PageAsks { engine: u8, page: Start },
    ServerExecutes { tx: usize },
    Database(DatabaseStep),
    ConnectionBreaks { engine: u8 },
}

#[derive(Clone, Copy, Debug)]
pub struct PageModel {
    pub design: Design,
    pub limits: Limits,
}

impl PageModel {
    fn admits(&self, started: Data, page: Start) -> bool {
        match started {
            None => true,
            Some(first) => self.design.start_rule == StartRule::RepeatsForThePage && first == page,
        }
    }

    /// Whether a page got the session and the database is quiet.
    pub fn serves(state: &State) -> bool {
        state.db.is_quiet() && state.has_session.contains(&true)
    }
}

impl Model for PageModel {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State { db: Database::new(None), engines: [None; 2], has_session: [false; 2], used: Counters::default() }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (engine, waiting) in (0u8..).zip(&state.engines) {
            match waiting {
                // The model stays finite: at most one transaction of an engine is abandoned at a time.
                None if state.db.sent.len() < 3 => {
                    actions.extend([0, 1].map(|page| Action::PageAsks { engine, page }));
                }
                Some(_) if state.used.cuts < self.limits.cuts => actions.push(Action::ConnectionBreaks { engine }),
                _ => {}
            }
        }
        if state.db.flushed.is_none() {
            actions.extend((0..state.db.sent.len()).map(|tx| Action::ServerExecutes { tx }));
        }
        actions.extend(state.db.steps(state.used.faults, self.limits.faults).map(Action::Database));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::PageAsks { page, .. }
                if self.design.repeat == Repeat::FromRead && state.db.visible == Some(page) =>
            {
                state.has_session[usize::from(page)] = true;
            }
            Action::PageAsks { engine, page } => {
                state.engines[usize::from(engine)] = Some(page);
                state.db.send(engine, page);
            }
            Action::ServerExecutes { tx } => {
                let Tx { client, work: page, .. } = state.db.sent.remove(tx);
                if self.admits(state.db.visible, page) {
                    state.db.flush(client, Some(page));
                } else if let Some(engine) = client {
                    state.engines[usize::from(engine)] = None;
                }
            }
            Action::Database(step) => match state.db.make(step, &mut state.used.faults) {
                Notice::Nothing => {}
                Notice::Acknowledged(engine) => {
                    let page = state.engines[usize::from(engine)].take()?;
                    state.has_session[usize::from(page)] = true;
                }
                // R3: UNAVAILABLE. The page asks again with its page id.
                Notice::Disconnected => state.engines = [None; 2],
            },
            Action::ConnectionBreaks { engine } => {
                state.used.cuts += 1;
                state.db.abandon(engine);
                state.engines[usize::from(engine)] = None;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(J, |_, state: &State| state.has_session != [true; 2]),
            Property::sometimes("a page gets the session", |_, state: &State| state.has_session.contains(&true)),
        ]
    }
}
