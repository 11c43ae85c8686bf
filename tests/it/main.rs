//! The tests that look at the package from outside: its source, its program, and nodes as processes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "random tests print their seed")]

mod access;
mod amplification;
mod architecture;
mod bad_input;
mod broker;
mod cli;
mod clients;
mod cluster;
mod core_dumps;
mod crash;
mod faults;
mod first_admin;
mod flow;
mod grpc_billing;
mod harness;
mod http_edge;
mod http_manners;
mod http_patients;
#[path = "../kafka/cluster.rs"]
mod kafka;
mod observability;
mod pause;
mod peers;
#[path = "../harness/postgres.rs"]
mod postgres;
#[path = "../harness/process.rs"]
mod process;
mod roles;
mod schemathesis;
mod security_map;
mod sessions;
mod signals;
mod texts;
mod tracing;

// Those of the program that breaks clusters.
#[path = "../chaos/machinery.rs"]
#[allow(dead_code, reason = "the program `chaos` uses it; its tests run here")]
mod chaos_machinery;
