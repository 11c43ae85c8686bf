//! The tests that look at the package from outside: its source, its program, and nodes as processes.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]
#![allow(clippy::print_stdout, reason = "random tests print their seed")]

mod architecture;
mod cli;
mod crash;
mod faults;
mod flow;
mod grpc_billing;
mod harness;
mod http_edge;
mod http_patients;
mod pause;
#[path = "../harness/postgres.rs"]
mod postgres;
mod tracing;
