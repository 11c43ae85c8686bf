//! The outcome of a command: exit code and message.

use std::io::Write;

use crate::error::{self, ErrorCode};
use crate::{config, kafka, node, store, telemetry};

/// The exit codes. Those from 64 on follow `sysexits.h` (4.3BSD).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The command succeeded.
    Done,
    /// The command failed.
    Failed,
    /// The arguments are wrong.
    Usage,
    /// An external service (the database, the broker) or the node is not available.
    Unavailable,
    /// The configuration is wrong.
    Config,
}

impl Exit {
    /// All exit codes.
    pub const ALL: [Exit; 5] = [Exit::Done, Exit::Failed, Exit::Usage, Exit::Unavailable, Exit::Config];

    /// The code as a number.
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
    /// The exit code of the process.
    pub exit: Exit,
    /// The reason, for a person; empty if the log shows it already.
    pub message: String,
}

impl Failure {
    /// Creates a failure.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Failure { exit, message: message.into() }
    }

    /// Prints the reason.
    pub(super) fn tell(&self, out: &mut dyn Write) {
        for line in self.message.lines() {
            // If even this cannot be printed, nothing is left to do.
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

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        let exit = match error {
            store::Error::Unavailable(_) | store::Error::Unknown(_) => Exit::Unavailable,
            store::Error::Broken(_) => Exit::Failed,
        };
        Failure::new(exit, error.to_string())
    }
}

impl From<kafka::Error> for Failure {
    fn from(error: kafka::Error) -> Self {
        let exit = match error {
            kafka::Error::Away(_) => Exit::Unavailable,
            kafka::Error::Settings(_) => Exit::Config,
            kafka::Error::Ended(_) => Exit::Failed,
        };
        Failure::new(exit, error.to_string())
    }
}

/// Errors of domain operations that a command calls directly.
impl From<error::Error> for Failure {
    fn from(error: error::Error) -> Self {
        let exit = match error.code {
            ErrorCode::Unavailable | ErrorCode::DeadlineExceeded | ErrorCode::OutcomeUnknown => {
                Exit::Unavailable
            }
            _ => Exit::Failed,
        };
        let fields = error.fields.iter().map(|(field, message)| format!("\n{field}: {message}"));
        Failure::new(exit, format!("{}{}", error.detail, fields.collect::<String>()))
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
