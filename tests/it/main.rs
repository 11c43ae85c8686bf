//! The tests that look at the package from outside: its source, its program, and nodes as processes.

mod architecture;
mod cli;
mod crash;
mod faults;
mod flow;
mod grpc_billing;
mod harness;
mod http_edge;
mod http_patients;
#[path = "../harness/postgres.rs"]
mod postgres;
mod tracing;
