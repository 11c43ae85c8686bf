//! Hygeia: a patient-management back end made of supervised actors.
//!
//! The way of a request, and where to look:
//!
//! ```text
//! REST ──► http ──┐  who asks: auth                    rules without I/O: domain
//!                 ├─► actors::patients, actors::billing (handles)
//! gRPC ──► grpc ──┘        │
//!                          ▼
//!        actors::directory ─► region ─► shard (core) ─► journal ─► store (PostgreSQL, SQLite)
//!                                         ▲                │ one commit: state and event
//!                                         └── answer ◄─────┤
//!                          actors::kafka_bridge ◄── nudge ─┴─ nudge ──► actors::billing_relay
//!                                  │
//!                                  ▼
//!                     kafka (topic `patient`) ──► actors::analytics ──► store (projection)
//! ```
//!
//! `node` puts the parts together and takes them apart, `config` finds their settings, `cli` is the
//! program. `context` (trace, deadline, caller), `error`, `health` and `clock` go everywhere.
//! `docs/ARCHITECTURE.md` says what is promised and how it is kept.

pub mod actors;
pub mod auth;
pub mod cli;
pub mod clock;
pub mod config;
pub mod context;
pub mod domain;
pub mod error;
pub mod grpc;
pub mod health;
pub mod http;
pub mod kafka;
pub mod node;
pub mod proto;
pub mod store;
pub mod telemetry;
