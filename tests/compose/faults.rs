//! What is done to the containers, one after the other, while clients work.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, JOINING};
use crate::docker::docker;
use crate::process::within;

/// How long anything is broken: longer than a lease holds.
const BROKEN: Duration = Duration::from_secs(6);
/// Undisturbed work between two faults.
const CALM: Duration = Duration::from_secs(3);
/// How long a node that joins may take to hold shards.
const JOIN_PATIENCE: Duration = Duration::from_secs(60);
/// How many nodes join.
const JOINING_NODES: usize = 2;

/// Something that is done to a service, and undone.
pub(crate) enum Fault {
    /// Two more nodes join, until they hold shards.
    Join,
    /// SIGKILL; the restart policy brings it back.
    Kill(&'static str),
    /// It is frozen.
    Pause(&'static str),
    /// It is taken out of a network.
    Cut(&'static str, &'static str),
    /// Every node is told to end and starts again, in turn.
    RestartInTurn,
    /// The database is told to end and starts again.
    RestartDatabase,
}

/// One of each kind that comes to the quick, for `make test`.
pub(crate) const SHORT: [Fault; 5] = [
    Fault::Kill("patient-1"),
    Fault::Kill("kafka"),
    Fault::Pause("patient-2"),
    Fault::Cut("patient-1", "nodes"),
    Fault::RestartDatabase,
];

/// All of them.
pub(crate) const LONG: [Fault; 13] = [
    Fault::Join,
    Fault::Kill("patient-1"),
    Fault::Kill("front"),
    Fault::Kill("bridge"),
    Fault::Kill("kafka"),
    Fault::Pause("patient-2"),
    Fault::Pause("analytics"),
    Fault::Pause("kafka"),
    Fault::Cut("patient-1", "nodes"),
    Fault::Cut("patient-2", "data"),
    Fault::Cut("billing", "nodes"),
    Fault::RestartInTurn,
    Fault::RestartDatabase,
];

/// Does one after the other, each once the cluster has recovered from the one before.
pub(crate) async fn all(cluster: &Cluster, faults: &[Fault]) -> Result<(), String> {
    let begun = Instant::now();
    let say = |what: &str| println!("  {:>6.1} s  {what}", begun.elapsed().as_secs_f64());
    tokio::time::sleep(CALM).await;
    for fault in faults {
        say(&fault.what());
        fault.happens(cluster).await?;
        say("and is well again");
        tokio::time::sleep(CALM).await;
    }
    say("done");
    Ok(())
}

impl Fault {
    fn what(&self) -> String {
        match self {
            Fault::Join => "two more nodes join".into(),
            Fault::Kill(service) => format!("{service} is killed"),
            Fault::Pause(service) => format!("{service} is paused"),
            Fault::Cut(service, network) => format!("{service} is cut off from the network {network}"),
            Fault::RestartInTurn => "every node is restarted in turn".into(),
            Fault::RestartDatabase => "the database is restarted".into(),
        }
    }

    async fn happens(&self, cluster: &Cluster) -> Result<(), String> {
        match self {
            Fault::Join => {
                let compose = cluster.compose.with("HYGEIA_JOINED_NODES", JOINING_NODES.to_string());
                compose.run(&["up", "-d", "--no-build"]).await?;
                joined(cluster).await?;
                // Another `up` leaves them there.
                compose.run(&["up", "-d", "--no-build"]).await?;
                joined(cluster).await
            }
            Fault::Kill(service) => {
                cluster.kill(service).await?;
                tokio::time::sleep(BROKEN).await;
                cluster.healthy(service).await
            }
            Fault::Pause(service) => {
                cluster.pause(service, BROKEN).await?;
                cluster.healthy(service).await
            }
            Fault::Cut(service, network) => {
                cluster.disconnect(service, network, BROKEN).await?;
                cluster.healthy(service).await
            }
            Fault::RestartInTurn => cluster.restart_in_turn().await,
            Fault::RestartDatabase => {
                docker(&["restart", "--time", "30", &cluster.compose.container("postgres").await?]).await?;
                cluster.all_healthy().await
            }
        }
    }
}

/// Awaits that the nodes that join hold shards.
async fn joined(cluster: &Cluster) -> Result<(), String> {
    let containers = cluster.compose.containers(JOINING).await?;
    if containers.len() != JOINING_NODES {
        return Err(format!("{} nodes have joined instead of {JOINING_NODES}", containers.len()));
    }
    let names: Vec<String> = containers.iter().map(|id| id.chars().take(12).collect()).collect();
    let hold = || async {
        let holders = cluster.holders().await.ok()?;
        names.iter().all(|name| holders.get(name).is_some_and(|shards| *shards > 0)).then_some(())
    };
    match within(JOIN_PATIENCE, hold).await {
        Some(()) => Ok(()),
        None => Err(format!("{names:?} do not hold shards: {:?}", cluster.holders().await)),
    }
}
