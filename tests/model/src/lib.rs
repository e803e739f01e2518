//! Model checking with stateright: every order of the steps of callers, engines, stores and faults, within small limits.
//!
//! - One engine and its embedded store: [`card_model`], [`try_model`].
//! - Several engines on one PostgreSQL, by the rules R1 to R11 of docs/model.md: [`set_pin_model`], [`verify_pin_model`],
//!   [`rotation_model`], on the [`database`].
//!
//! The models call the functions of `domain` themselves, and add what surrounds them. A *design* is a set of choices, for
//! example how an engine resolves a commit in doubt. The recommended design satisfies every property in each
//! [`Scenario`](scenario::Scenario). Each [`RejectedDesign`](rejected_design::RejectedDesign) violates a named property, which
//! shows that the model can see the fault.

#![allow(clippy::indexing_slicing, missing_docs, reason = "a test that meets a surprise must fail")]

pub mod batch_model;
pub mod card_model;
pub mod change_pin_model;
pub mod database;
pub mod graph;
pub mod page_model;
pub mod rejected_design;
pub mod report;
pub mod revocation_model;
pub mod rotation_model;
mod rows;
pub mod scenario;
pub mod set_pin_model;
pub mod try_model;
pub mod verify_pin_model;
pub mod zone_set_model;
