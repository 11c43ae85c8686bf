//! `hygeia cluster …`: several nodes as one thing, on this machine or from afar.

mod status;
mod table;
mod up;

use std::ffi::OsString;
use std::io::Write;

use clap::Subcommand;

use super::failure::Failure;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start every node of a file as a process on this machine, with their logs merged; Ctrl-C stops them all
    Up(up::UpArgs),
    /// Show the nodes, their roles, who holds which shards at which epoch, sessions, what is in flight, the outbox
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
