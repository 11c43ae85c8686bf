//! How much memory the nodes hold.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;

use crate::cluster::Cluster;

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// Bytes by the name of the node.
pub(crate) type Memory = BTreeMap<&'static str, u64>;

/// What each node that runs holds now.
pub(crate) async fn now(cluster: &Cluster) -> Memory {
    let mut held = Memory::new();
    for node in &cluster.nodes {
        if let Some(bytes) = node.memory_bytes().await {
            held.insert(node.name, bytes);
        }
    }
    held
}

/// Remembers the most that each node ever held.
pub(crate) struct Watch {
    _looking: AbortOnDropHandle<()>,
    most: Arc<Mutex<Memory>>,
}

impl Watch {
    pub(crate) fn start(cluster: &Arc<Cluster>) -> Self {
        let most = Arc::new(Mutex::new(Memory::new()));
        let (cluster, kept) = (Arc::clone(cluster), Arc::clone(&most));
        let looking = tokio::spawn(async move {
            loop {
                for (name, bytes) in now(&cluster).await {
                    let mut most = kept.lock().expect("sane");
                    let known: &mut u64 = most.entry(name).or_default();
                    *known = bytes.max(*known);
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        Watch { _looking: AbortOnDropHandle::new(looking), most }
    }

    /// The most that each node held so far.
    pub(crate) fn most(&self) -> Memory {
        self.most.lock().expect("sane").clone()
    }
}
