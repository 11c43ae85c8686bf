//! `hygeia serve`: runs a node until a signal stops it.

use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use tokio_util::sync::CancellationToken;

use super::core_dumps;
use super::failure::{Exit, Failure};
use super::settings::SettingArgs;
use crate::config::Loaded;
use crate::node;
use crate::telemetry::{self, Output};

/// How long tasks that still run when the node has stopped may take to end.
const RUNTIME_SHUTDOWN_MAX: Duration = Duration::from_millis(500);

/// The arguments of `hygeia serve`.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct ServeArgs {
    #[command(flatten)]
    pub(super) settings: SettingArgs,
    /// Stop when the parent process with this PID ends (used by `cluster up`)
    #[arg(long, value_name = "PID", hide = true)]
    stop_with_parent: Option<i32>,
}

impl ServeArgs {
    /// Asks the kernel to send SIGTERM when the parent process ends, for whatever reason.
    pub(super) fn bind_to_parent(&self) -> Result<(), Failure> {
        let Some(parent) = self.stop_with_parent else { return Ok(()) };
        set_parent_process_death_signal(Some(Signal::TERM)).map_err(std::io::Error::from)?;
        // The parent may have ended before the call.
        if getppid() == Pid::from_raw(parent) {
            return Ok(());
        }
        Err(Failure::new(Exit::Failed, "the process that started this node has ended"))
    }
}

/// Runs the node.
pub(super) fn run(loaded: Loaded) -> Result<(), Failure> {
    loaded.check()?;
    let mut config = loaded.config;
    if config.node.core_dumps {
        core_dumps::allow()?;
    }
    config.ensure_data_dir()?;
    config.ensure_secrets()?;
    let (telemetry, _guard) = telemetry::init(&config.telemetry, &config.node.name, Output::Stdout)?;
    if !loaded.ignored_variables.is_empty() {
        let variables = loaded.ignored_variables.join(", ");
        tracing::warn!(variables, "ignored: these are no settings; the form is HYGEIA__SECTION__KEY");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().thread_name("hygeia").enable_all().build()?;
    let ended = runtime.block_on(async {
        let upkeep = tokio::spawn(telemetry.clone().upkeep());
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let spans = telemetry.exporter().map(|exporter| tokio::spawn(exporter.run(stopped)));
        let ended = Box::pin(node::run(config, telemetry)).await;
        stop.cancel();
        if let Some(spans) = spans {
            // The exporter has its own time limit. If it panicked, the panic hook has logged that.
            let _ = spans.await;
        }
        upkeep.abort();
        ended
    });
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN_MAX);
    ended.map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "the node has failed");
        error.into()
    })
}
