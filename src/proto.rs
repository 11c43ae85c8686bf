//! Code generated from `proto/`.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

include!(concat!(env!("OUT_DIR"), "/protos.rs"));

/// The messages between the nodes of one cluster.
pub mod cluster {
    include!(concat!(env!("OUT_DIR"), "/hygeia.cluster.v1.rs"));
}

/// The content of an access log entry.
pub mod audit {
    include!(concat!(env!("OUT_DIR"), "/hygeia.audit.v1.rs"));
}

/// The file descriptors of all services, for gRPC server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
