//! `hygeia cluster …`: runs several nodes on this machine, or shows the status of a cluster.

mod status;
mod table;
mod up;

use std::ffi::OsString;
use std::io::Write;

use clap::Subcommand;

use super::failure::Failure;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start every node of a file as a process on this machine and merge their logs; Ctrl-C stops all of them
    Up(up::UpArgs),
    /// Show nodes, roles, shards with their owners and epochs, sessions, requests in flight, and the outbox
    Status(Box<status::StatusArgs>),
}

pub(super) fn run(
    command: Command,
    environment: Vec<(OsString, OsString)>,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    match command {
        Command::Up(args) => up::run(args, environment),
        Command::Status(args) => status::run(*args, environment, out),
    }
}
