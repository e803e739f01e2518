//! The choice of an engine for a call, and whether a call that failed is sent again.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
};

use h2::Reason;
use thiserror::Error;
use tonic::ConnectError;

/// How often a call is sent at most. With one engine the second connection is new, so a third is needed only if an engine
/// refuses streams. An engine to which no connection could be opened does not count.
pub(crate) const SENDS_MAX: u32 = 3;

/// Several engines that share a store, or one. The clones share the states and the counts of calls, so that the threads of an
/// edge choose together.
#[derive(Clone)]
pub struct Engines {
    engines: Arc<[Arc<EngineEndpoint>]>,
    /// The number of calls: where the search for an engine begins, so that engines with equally many calls take turns.
    rotation: Arc<AtomicUsize>,
}

/// One engine of [`Engines`].
#[derive(Default)]
pub struct EngineEndpoint {
    state: AtomicU8,
    calls: AtomicUsize,
}

/// Which calls an engine gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum EngineState {
    /// The engine gets its share of the calls.
    Usable,
    /// The engine gets a call only while no engine is usable. The state at the start, before the engine has answered.
    #[default]
    LastResort,
    /// The engine does not answer and gets no call: a call would wait until its deadline.
    Silent,
}

/// No engine has answered its health checks, so the call was not sent.
#[derive(Clone, Copy, Debug, Error)]
#[error("no engine answers its health checks, and the call was not sent: check that an engine runs and is reachable")]
pub struct NoEngineAnswers;

/// A call in flight at an engine.
pub(crate) struct CallInFlight {
    /// The number of the engine, in the order of [`Engines::endpoints`].
    pub(crate) number: usize,
    engine: Arc<EngineEndpoint>,
}

/// Why an engine did not carry out a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotCarriedOut {
    /// No connection or no stream for the call could be opened: the call was not sent.
    Unreachable,
    /// The engine did not process the call that it got.
    Unprocessed,
}

/// The engines that one call was sent to.
pub(crate) struct Attempts<'a> {
    engines: &'a Engines,
    // No allocation before a call fails.
    unreachable: Vec<usize>,
    tried: Vec<usize>,
    sent: u32,
}

impl EngineEndpoint {
    /// The state that was set last.
    pub fn state(&self) -> EngineState {
        EngineState::from_byte(self.state.load(Ordering::Relaxed))
    }

    /// Sets the state for the calls that begin from now on. Returns the state before.
    pub fn set_state(&self, state: EngineState) -> EngineState {
        EngineState::from_byte(self.state.swap(state as u8, Ordering::Relaxed))
    }
}

impl EngineState {
    fn from_byte(byte: u8) -> Self {
        [Self::Usable, Self::LastResort].into_iter().find(|state| *state as u8 == byte).unwrap_or(Self::Silent)
    }
}

impl Drop for CallInFlight {
    fn drop(&mut self) {
        self.engine.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Engines {
    /// This number of engines, in state [`EngineState::LastResort`].
    pub fn new(count: usize) -> Self {
        let engine =
            || Arc::new(EngineEndpoint { state: AtomicU8::new(EngineState::default() as u8), ..Default::default() });
        Self { engines: (0..count).map(|_| engine()).collect(), rotation: Arc::default() }
    }

    /// The engines, in the order in which clients name them.
    pub fn endpoints(&self) -> &[Arc<EngineEndpoint>] {
        &self.engines
    }

    /// Begins to choose engines for one call.
    pub(crate) fn attempts(&self) -> Attempts<'_> {
        Attempts { engines: self, unreachable: Vec::new(), tried: Vec::new(), sent: 0 }
    }

    /// The engine for a call, but none of these. `None` if every other engine is silent.
    fn select(&self, excluded: &[usize]) -> Option<CallInFlight> {
        let count = self.engines.len();
        let first = self.rotation.fetch_add(1, Ordering::Relaxed).checked_rem(count)?;
        let others = (first..count).chain(0..first).filter(|number| !excluded.contains(number));
        let engines = others.filter_map(|number| Some((number, self.engines.get(number)?)));
        let by_state = engines.map(|(number, engine)| (engine.state(), number, engine));
        let usable = by_state.filter(|(state, ..)| *state != EngineState::Silent);
        let (_, number, engine) =
            usable.min_by_key(|(state, _, engine)| (*state as u8, engine.calls.load(Ordering::Relaxed)))?;
        engine.calls.fetch_add(1, Ordering::Relaxed);
        Some(CallInFlight { number, engine: Arc::clone(engine) })
    }
}

impl Attempts<'_> {
    /// The engine that gets the call next. `None` if no engine is left that could answer.
    pub(crate) fn next(&self) -> Option<CallInFlight> {
        // An engine that did not process the call is asked again only if there is no other.
        self.engines.select(&self.tried).or_else(|| self.engines.select(&self.unreachable))
    }

    /// Whether the call may be sent again, after this engine did not carry it out.
    pub(crate) fn may_repeat(&mut self, engine: &CallInFlight, reason: NotCarriedOut) -> bool {
        self.tried.push(engine.number);
        match reason {
            NotCarriedOut::Unreachable => self.unreachable.push(engine.number),
            NotCarriedOut::Unprocessed => self.sent += 1,
        }
        self.sent < SENDS_MAX
    }
}

impl NotCarriedOut {
    /// Why the call was not carried out that failed with this error. `None` if the call may have had an effect.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        if is_unreachable(error) {
            Some(Self::Unreachable)
        } else if is_unprocessed(error) {
            Some(Self::Unprocessed)
        } else {
            None
        }
    }
}

/// Whether no connection for the call could be opened.
fn is_unreachable(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source()).any(|error| error.is::<ConnectError>())
}

/// Whether the engine did not process the call that failed with this error.
fn is_unprocessed(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source()).any(|error| {
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && error.is_canceled()
        {
            // hyper did not send the request: the connection ended while the request waited for its stream.
            return true;
        }
        error.downcast_ref::<h2::Error>().is_some_and(|error| {
            // A stream above the last one that the peer names in GOAWAY, or a stream that it refuses.
            let goes_away = error.is_go_away() && error.reason() == Some(Reason::NO_ERROR);
            error.is_remote() && (goes_away || error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_with_equally_many_calls_take_turns() {
        let engines = Engines::new(3);
        let calls =
            || engines.endpoints().iter().map(|engine| engine.calls.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let mut in_flight: Vec<_> = (0..6).map(|_| engines.select(&[]).unwrap()).collect();
        assert_eq!(calls(), [2, 2, 2]);
        in_flight.retain(|call| call.number != 1);
        let next: Vec<_> = (0..2).map(|_| engines.select(&[]).unwrap()).collect();
        assert!(next.iter().all(|call| call.number == 1));
        drop((in_flight, next));
        assert_eq!(calls(), [0, 0, 0]);
    }

    #[test]
    fn a_call_is_sent_three_times_at_most() {
        let engines = Engines::new(1);
        let mut attempts = engines.attempts();
        for may_repeat in [true, true, false] {
            let engine = attempts.next().unwrap();
            assert_eq!(attempts.may_repeat(&engine, NotCarriedOut::Unprocessed), may_repeat);
        }
        let mut attempts = engines.attempts();
        let engine = attempts.next().unwrap();
        assert!(attempts.may_repeat(&engine, NotCarriedOut::Unreachable));
        assert!(attempts.next().is_none(), "an engine that cannot be reached is asked once");
    }
}
