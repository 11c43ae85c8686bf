//! Code generated from `proto/`.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

include!(concat!(env!("OUT_DIR"), "/protos.rs"));

/// What nodes of one cluster say to each other.
pub mod cluster {
    include!(concat!(env!("OUT_DIR"), "/hygeia.cluster.v1.rs"));
}

/// What a row of the access audit holds.
pub mod audit {
    include!(concat!(env!("OUT_DIR"), "/hygeia.audit.v1.rs"));
}

/// The descriptors of all services, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
