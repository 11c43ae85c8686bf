//! `hygeia topics`: creates the topics, as a job before any node runs. Nodes create them too, unless
//! `kafka.create_topics` is false. The job reports the topics and their numbers of partitions to the
//! operator.

use std::time::Duration;

use super::settings::SettingArgs;

/// The arguments of `hygeia topics`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How long to wait for the broker, in seconds
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
