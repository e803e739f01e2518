//! The gRPC messages, clients and servers, generated from `proto/` at build time. No message has `Debug`, because a message
//! can hold a PIN block. Logic must never enter this crate, except the codec and the error reasons.
//!
//! ```
//! assert_eq!(proto::reason::Reason::parse("BUSY"), Some(proto::reason::Reason::Busy));
//! ```

#![allow(missing_docs, reason = "the .proto files have the documentation")]
#![allow(clippy::all, clippy::indexing_slicing, reason = "generated")]

#[cfg(test)]
mod aip;
mod codec;
pub mod reason;

tonic::include_proto!("pinseal.v1");

/// The metadata key of the id of a request, a UUID of 36 characters: the edge sends it, the engine writes it to its log and the
/// audit event. The engine makes an id for a call without one. An error carries the id in the same key.
pub const REQUEST_ID_KEY: &str = "pinseal-request-id";

/// The metadata key of the sequence number from which `ExportAudit` reads the chain, in decimal: a client that asked for the
/// newest entries continues from it on another connection.
pub const START_SEQUENCE_KEY: &str = "pinseal-start-sequence";

/// The compiled `.proto` files of the services that an engine serves, for reflection: a `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pinseal.bin"));
