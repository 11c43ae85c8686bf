//! The rules of the clinic, without I/O. Nothing here reads a clock, generates an id, or awaits; callers pass
//! clock values and ids in.
//!
//! Each aggregate has a `decide` function that returns what happens, or why it does not. The patient also has
//! `evolve`, which returns the state after an event.

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
