//! The schedule of the audit's witness, which records the heads of the chains: at start, periodically, and at
//! stop.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::audit::Witness;

/// How long the last note may take when the node stops.
const LAST_NOTE_LIMIT: Duration = Duration::from_millis(500);

/// The witness of a running node.
pub(super) struct Following {
    witness: Arc<Witness>,
    task: JoinHandle<()>,
}

impl Following {
    /// Starts the task: `witness` makes a note now, and then once per `every`.
    pub(super) fn start(witness: Witness, every: Duration) -> Self {
        let witness = Arc::new(witness);
        let following = Arc::clone(&witness);
        let task = tokio::spawn(async move {
            loop {
                note(&following).await;
                sleep(every).await;
            }
        });
        Following { witness, task }
    }

    /// Stops the task and makes a last note. By now nothing records accesses any more.
    pub(super) async fn end(self) {
        self.task.abort();
        if timeout(LAST_NOTE_LIMIT, note(&self.witness)).await.is_err() {
            tracing::warn!("it was not noted in time where the chains of the audit end");
        }
    }
}

async fn note(witness: &Witness) {
    if let Err(error) = witness.note().await {
        tracing::warn!(%error, "where the chains of the audit are was not noted; it is tried again");
    }
}
