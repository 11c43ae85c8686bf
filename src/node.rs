//! The composition root: starts the parts of a node in order and stops them in reverse.

pub mod runtime_file;

use crate::config::Config;
use crate::telemetry::TelemetryHandle;

/// Why a node did not start, or stopped other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A part outside the process is away: the database, the broker.
    #[error("{0}")]
    Unavailable(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// Runs the node until it is told to stop.
///
/// # Errors
/// See `Error`.
pub async fn run(_config: Config, _telemetry: TelemetryHandle) -> Result<(), Error> {
    Err(Error::Failed("this build has no parts to run".to_owned()))
}
