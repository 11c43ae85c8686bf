//! `hygeia topics`: makes the topics, as a job that runs before the nodes do. Nodes make them as well, if they may
//! (`kafka.create_topics`); whoever sets a cluster up wants to see that it is done, and with how many partitions.

use std::time::Duration;

use super::settings::SettingArgs;

/// What to wait for.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How long to wait for a broker that is away, in seconds
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(0..=3_600))]
    wait_seconds: u32,
    #[command(flatten)]
    settings: SettingArgs,
}

impl Args {
    pub(super) fn into_parts(self) -> (SettingArgs, Duration) {
        (self.settings, Duration::from_secs(self.wait_seconds.into()))
    }
}
