//! The commands of `pinseal`, one a module.

pub(crate) mod audit;
pub(crate) mod bench;
pub(crate) mod bulk;
pub(crate) mod card;
mod card_list;
pub(crate) mod ceremony;
pub(crate) mod demo;
pub(crate) mod device;
pub(crate) mod events;
pub(crate) mod keyblock;
pub(crate) mod pki;
pub(crate) mod policy;
pub(crate) mod rotation;
mod signed_checkpoint;
pub(crate) mod store;
pub(crate) mod token;
pub(crate) mod vault;
