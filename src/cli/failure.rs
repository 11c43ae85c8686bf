//! How a command ends.

use std::io::Write;

use crate::{config, node, telemetry};

/// The exit codes. Those from 64 on are as in `sysexits.h` (4.3BSD).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It is done.
    Done,
    /// It failed.
    Failed,
    /// The arguments are wrong.
    Usage,
    /// A part outside the process is away.
    Unavailable,
    /// The configuration is wrong.
    Config,
}

impl Exit {
    /// All of them.
    pub const ALL: [Exit; 5] = [Exit::Done, Exit::Failed, Exit::Usage, Exit::Unavailable, Exit::Config];

    /// The number.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 64,
            Exit::Unavailable => 69,
            Exit::Config => 78,
        }
    }
}

/// A command that failed.
#[derive(Debug)]
pub struct Failure {
    /// How the process ends.
    pub exit: Exit,
    /// Why, for a person; empty if the log has it already.
    pub message: String,
}

impl Failure {
    /// A failure of this kind.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Failure { exit, message: message.into() }
    }

    /// Says why.
    pub(super) fn tell(&self, out: &mut dyn Write) {
        for line in self.message.lines() {
            // Nothing is left to do if even that cannot be printed.
            let _ = writeln!(out, "hygeia: {line}");
        }
    }
}

impl From<config::Error> for Failure {
    fn from(error: config::Error) -> Self {
        Failure::new(Exit::Config, error.to_string())
    }
}

impl From<telemetry::Error> for Failure {
    fn from(error: telemetry::Error) -> Self {
        Failure::new(Exit::Failed, error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::new(Exit::Failed, error.to_string())
    }
}

impl From<node::Error> for Failure {
    fn from(error: node::Error) -> Self {
        let exit = match error {
            node::Error::Unavailable(_) => Exit::Unavailable,
            node::Error::Failed(_) => Exit::Failed,
        };
        Failure::new(exit, error.to_string())
    }
}
