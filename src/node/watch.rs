//! Whether the database is there.

use std::sync::Arc;
use std::time::Duration;

use crate::health::{Health, Status};
use crate::store::{self, Store};

/// The pause between two looks at the database.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long one look may take before the database counts as away.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// The pause between two tries to reach a database that is away at the start.
const TRY_EVERY: Duration = Duration::from_millis(250);

/// Waits until the database is there; answers with the cluster's number of shards.
///
/// # Errors
/// `Broken`: the database is there and does not fit, which no waiting mends.
pub(super) async fn database(store: &dyn Store, health: &Health, proposed_shards: u16) -> store::Result<u16> {
    loop {
        let asked = async {
            store.prepare().await?;
            limited(store.shard_count(proposed_shards)).await
        };
        match asked.await {
            Ok(shards) => {
                health.report("store", Status::Ready);
                return Ok(shards);
            }
            Err(error @ store::Error::Broken(_)) => return Err(error),
            Err(error) => health.report("store", Status::NotReady(error.to_string())),
        }
        tokio::time::sleep(TRY_EVERY).await;
    }
}

/// Says for ever how the database is.
pub(super) async fn follow(store: Arc<dyn Store>, health: Health) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let status = match limited(store.ping()).await {
            Ok(()) => Status::Ready,
            Err(error) => Status::NotReady(error.to_string()),
        };
        health.report("store", status);
    }
}

async fn limited<T>(look: impl Future<Output = store::Result<T>>) -> store::Result<T> {
    let away = || store::Error::Unavailable(format!("no answer within {} ms", LOOK_LIMIT.as_millis()));
    tokio::time::timeout(LOOK_LIMIT, look).await.unwrap_or_else(|_| Err(away()))
}
