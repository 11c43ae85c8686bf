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
//!                 │   on another node: link ─► peers ┄┄► peers ─► link (gate) ─► its region
//!                                         ▲                │ one commit: state and event
//!                                         └── answer ◄─────┤
//!                          actors::kafka_bridge ◄── nudge ─┴─ nudge ──► actors::billing_relay
//!                                  │
//!                                  ▼
//!                     kafka (topic `patient`) ──► actors::analytics ──► store (projection)
//! ```
//!
//! Which node has which shard: `domain::cluster` places them over the nodes in sight (`actors::members`, which
//! `actors::peers` publishes), and a lease in the database says who really serves one (`actors::region`).
//!
//! Every access to what is known of a patient is recorded before it is answered: `http::accesses` and `grpc` say what,
//! `actors::audit` gathers, `audit` seals it in chains and checks them.
//!
//! `node` puts the parts together and takes them apart, `config` finds their settings, `cli` is the
//! program. `context` (trace, deadline, caller), `error`, `health` and `clock` go everywhere; `rate` is what both edges limit
//! their callers with.
//! `docs/ARCHITECTURE.md` says what is promised and how it is kept.

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
