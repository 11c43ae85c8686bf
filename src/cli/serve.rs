//! `hygeia serve`: a node, until it is told to stop.

use std::time::Duration;

use super::failure::Failure;
use crate::config::Loaded;
use crate::node;
use crate::telemetry::{self, Output};

/// What is still running when the node has stopped gets this long.
const RUNTIME_SHUTDOWN_MAX: Duration = Duration::from_millis(500);

/// Runs the node.
pub(super) fn run(loaded: Loaded) -> Result<(), Failure> {
    loaded.check()?;
    let mut config = loaded.config;
    config.ensure_jwt_secret()?;
    let (telemetry, _guard) = telemetry::init(&config.telemetry, &config.node.name, Output::Stdout)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("hygeia").enable_all().build()?;
    let ended = runtime.block_on(async {
        let upkeep = tokio::spawn(telemetry.clone().upkeep());
        let ended = node::run(config, telemetry).await;
        upkeep.abort();
        ended
    });
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN_MAX);
    ended.map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "the node has failed");
        error.into()
    })
}
