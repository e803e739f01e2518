//! Records the calls of many clients to many engines, and checks that the answers are right whatever failed in between.
//!
//! A harness records each call with [`recorder::Recorder`]: before it sends the call and after it has the answer or gave up. After
//! the run [`report::Report`] checks the recording, as does `cargo run -p pinseal-history -- check FILE`:
//! - card by card, whether an order of the calls explains every answer: [`order_search`], by the rules of [`card_spec`];
//! - over all cards, counts that need no search: [`totals`].
//!
//! What a harness does:
//! - A client makes one call after another. Each new PIN is another test PIN, so that an answer names the call that set it.
//! - [`End`](history::End) comes from the gRPC code and reason: a reason of [`Refusal`](history::Refusal) is `Refused`,
//!   PIN_BLOCK_MALFORMED and PIN_REFUSED are answers, UNAVAILABLE, DEADLINE_EXCEEDED and a broken connection are `GivenUp`.
//! - After a given-up IssueTzpk the client issues another tzpk before it sends a block.
//! - After the last fault, each card's PIN is returned to a zone or verified.
//!
//! Not covered: RegisterCard, GeneratePin, TransferPin, FindCard, StartPage, verification values, and the hourly limit of
//! controls. A card has no PIN and no used try when its history begins.
//!
//! ```
//! use history::history::{Answer, Content, End, History, Operation, Setup, TestPin};
//! use history::order_search::SearchOptions;
//! use history::recorder::Recorder;
//! use history::report::Report;
//!
//! let file = tempfile::NamedTempFile::new()?;
//! let setup =
//!     Setup { tries_per_card: 3, control_lifetime_ms: 30_000, clock_tolerance_ms: 1_000, late_effects_ms: 60_000 };
//! let recorder = Recorder::create(file.path(), setup)?;
//! let operation = Operation::VerifyPin { entered: Content::Pin(TestPin(1)) };
//! let call = recorder.start(1, "engine-a", "1000200030", operation)?;
//! // The card has no PIN, so this answer is not possible.
//! call.end(End::Answered(Answer::Right { tries_left: 3 }))?;
//!
//! let history = History::read(std::io::BufReader::new(std::fs::File::open(file.path())?))?;
//! assert!(!Report::new(&history, SearchOptions::default()).is_right());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod card_spec;
pub mod history;
pub mod order_search;
pub mod recorder;
pub mod report;
pub mod totals;
