//! A broker that both the node and the bare producer speak to over loopback: librdkafka's mock cluster,
//! in a process of its own.

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use crate::Result;
use crate::role::{self, Process};

/// As many partitions as we give a topic by default.
pub(crate) const PARTITIONS: i32 = 4;
/// The topic of the relay.
pub(crate) const OURS: &str = "patient";
/// The topic of the bare producer.
pub(crate) const BARE: &str = "yardstick";

/// A running broker.
pub(crate) struct Broker {
    _process: Process,
    /// `host:port`
    pub(crate) address: String,
}

/// Starts one with the topics.
pub(crate) async fn start() -> Result<Broker> {
    let started = tokio::task::spawn_blocking(|| -> Result<Broker> {
        let mut process = Process::start("broker", &())?;
        let address = process.heard()?;
        Ok(Broker { _process: process, address })
    });
    started.await?
}

/// The other process.
pub(crate) fn role() -> Result<()> {
    let () = role::task()?;
    let cluster: MockCluster<'static, DefaultProducerContext> = MockCluster::new(1)?;
    for topic in [OURS, BARE] {
        cluster.create_topic(topic, PARTITIONS, 1)?;
    }
    role::tell(&cluster.bootstrap_servers())?;
    role::until_dismissed()
}
