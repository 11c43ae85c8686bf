//! Watches whether the database is reachable, and its clock.

use std::sync::Arc;
use std::time::Duration;

use super::clock_skew::Watch;
use crate::domain::time::Clock;
use crate::health::{Health, Status};
use crate::store::{self, Store};

/// The pause between two checks of the database.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long one check may take before the database counts as unavailable.
const LOOK_LIMIT: Duration = Duration::from_secs(2);
/// The pause between two attempts to reach the database at start.
const TRY_EVERY: Duration = Duration::from_millis(250);

/// Waits until the database is reachable. Returns the cluster's number of shards.
///
/// # Errors
/// `Broken`: the database is reachable and its schema does not fit, which waiting does not fix.
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
            Err(error) => health.report("store", Status::NotReady(error.reason())),
        }
        tokio::time::sleep(TRY_EVERY).await;
    }
}

/// Reports the state of the database, and the difference between its wall clock and the node's, until the
/// task is aborted.
pub(super) async fn follow(store: Arc<dyn Store>, health: Health, clock: Arc<dyn Clock>, mut skew: Watch) {
    loop {
        look(&*store, &health, &*clock, &mut skew).await;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(store: &dyn Store, health: &Health, clock: &dyn Clock, skew: &mut Watch) {
    let (asked_at, begun) = (clock.now(), clock.mono());
    let status = match limited(store.ping()).await {
        Ok(theirs) => {
            skew.learn(asked_at, clock.mono().since(begun), theirs);
            Status::Ready
        }
        Err(error) => Status::NotReady(error.reason()),
    };
    health.report("store", status);
}

async fn limited<T>(look: impl Future<Output = store::Result<T>>) -> store::Result<T> {
    let away = || store::Error::Unavailable(format!("no answer within {} ms", LOOK_LIMIT.as_millis()));
    tokio::time::timeout(LOOK_LIMIT, look).await.unwrap_or_else(|_| Err(away()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::domain::time::{MonoTime, Timestamp};

    /// The machine's clock, shifted by a number of microseconds.
    struct Shifted(i64);

    impl Clock for Shifted {
        fn now(&self) -> Timestamp {
            Timestamp(SystemClock.now().0 + self.0)
        }

        fn mono(&self) -> MonoTime {
            SystemClock.mono()
        }
    }

    #[tokio::test]
    async fn a_wall_clock_that_is_off_is_told_until_it_is_right_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let url = format!("sqlite:{}", directory.path().join("skew.db").display());
        let settings = store::Settings { url, ..store::Settings::default() };
        let store = store::open(&settings, store::Use::Serve).await.expect("a database");
        store.prepare().await.expect("tables");
        let health = Health::default();
        let mut skew = Watch::new(health.clone(), Duration::from_secs(60));
        let part = |health: &Health| health.snapshot().1.get("clock").cloned();
        look(&*store, &health, &Shifted(0), &mut skew).await;
        assert_eq!(part(&health), Some(Status::Ready));
        look(&*store, &health, &Shifted(-90_000_000), &mut skew).await;
        let Some(Status::Explained(told)) = part(&health) else { panic!("{:?}", part(&health)) };
        assert!(told.contains("behind") && told.contains("90 s"), "{told}");
        assert!(health.snapshot().0, "the node serves on");
        look(&*store, &health, &Shifted(0), &mut skew).await;
        assert_eq!(part(&health), Some(Status::Ready));
        store.close().await;
    }
}
