//! The rules of the clinic, without I/O: no clock is read, no id is drawn, nothing is awaited here.
//!
//! Each aggregate has a `decide(state, command, now)` that says what happens or why not, and an
//! `evolve(state, event)` that says what the state is afterwards. Callers pass clock and ids in.

pub mod access;
pub mod account;
pub mod analytics;
pub mod audit;
pub mod cluster;
pub mod conditions;
pub mod email;
pub mod event;
mod idna;
pub mod ids;
pub mod patient;
pub mod search;
pub mod secret;
pub mod sight;
pub mod text;
pub mod time;
pub mod topic_log;
pub mod validate;
