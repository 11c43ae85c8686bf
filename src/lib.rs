//! Hygeia.
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
