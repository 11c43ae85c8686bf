//! Hygeia: a patient-management back end made of supervised actors.
//!
//! The path of a request through the modules:
//!
//! ```text
//! REST ──► http ──┐  authentication: auth              rules without I/O: domain
//!                 ├─► actors::patients, actors::billing (handles)
//! gRPC ──► grpc ──┘        │
//!                          ▼
//!        actors::directory ─► region ─► shard (core) ─► journal ─► store (PostgreSQL, SQLite)
//!                 │   on another node: link ─► peers ┄┄► peers ─► link (gate) ─► its region
//!                                         ▲                │ one commit: state and event
//!                                         └── reply ◄──────┤
//!                          actors::kafka_bridge ◄── nudge ─┴─ nudge ──► actors::billing_relay
//!                                  │
//!                                  ▼
//!                     kafka (topic `patient`) ──► actors::analytics ──► store (projection)
//! ```
//!
//! Placement: `domain::cluster` assigns shards to the reachable nodes (`actors::members`, published by
//! `actors::peers`). A lease in the database decides which node really serves a shard (`actors::region`).
//!
//! Every access to patient data is recorded before the request is answered. `http::accesses` and `grpc`
//! describe the access, `actors::audit` batches the entries, and `audit` seals them in chains and verifies
//! the chains.
//!
//! `node` starts and stops the parts, `config` loads their settings, and `cli` is the command line. `context`
//! (trace, deadline, caller), `error`, `health` and `clock` are used everywhere. `rate` limits the requests
//! of each caller at both edges.
//!
//! `docs/ARCHITECTURE.md` states the guarantees and explains how they are kept.

pub mod actors;
pub mod audit;
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
pub mod rate;
pub mod store;
pub mod telemetry;
