//! Hygeia.
pub mod actors;
pub mod auth;
pub mod clock;
pub mod context;
pub mod domain;
pub mod error;
pub mod grpc;
pub mod health;
pub mod kafka;
pub mod proto;
pub mod store;
