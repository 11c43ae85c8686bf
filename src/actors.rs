//! The actors, and the handles through which the edges talk to them.
//!
//! A request takes this path: a handle (`patients`, `billing`) sends it to its `directory`. The directory
//! routes it to the `region` that serves the shard. The `shard` decides, and the `journal` commits. If the
//! region is on another node, `link` carries the request and the reply over the sessions of `peers`.

pub mod address;
pub mod analytics;
pub mod audit;
mod background;
pub mod billing;
pub mod billing_relay;
pub mod directory;
pub mod entity;
#[cfg(test)]
mod fake_store;
pub mod journal;
pub mod kafka_bridge;
mod lease_watch;
pub mod link;
pub mod members;
pub mod open_accounts;
pub mod patients;
pub mod peers;
pub mod region;
pub mod reply;
pub mod restart;
pub mod sessions;
pub mod settings;
pub mod shard;
pub mod slice_lease;
pub mod status;
pub mod supervisor;
pub mod system;
