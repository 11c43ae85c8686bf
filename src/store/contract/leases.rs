//! Leases and fences.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep};

use super::world::{LONG, Region, SHARDS};
use crate::domain::ids::{Epoch, Kind, ShardNo};
use crate::store::AppendOutcome::{Committed, Fenced};
use crate::store::{Store, TakenLease};

const ALL: [ShardNo; 4] = [0, 1, 2, 3];

async fn take(store: &Arc<dyn Store>, shards: &[ShardNo], owner: &str, ttl: Duration) -> Vec<TakenLease> {
    let mut taken = store.acquire(Kind::Patient, shards, owner, ttl).await.expect("an answer");
    taken.sort_by_key(|lease| lease.shard);
    taken
}

pub(super) async fn the_number_of_shards_is_set_once(store: Arc<dyn Store>) {
    let answers = join_all((0..6u16).map(|n| {
        let store = Arc::clone(&store);
        async move { store.shard_count(60 + n).await.expect("a number") }
    }))
    .await;
    assert!(answers.iter().all(|n| *n == answers[0] && (60..66).contains(n)), "{answers:?}");
    assert_eq!(store.shard_count(128).await.expect("a number"), answers[0]);
}

pub(super) async fn a_lease_is_taken_once(store: Arc<dyn Store>) {
    let taken = take(&store, &[2, 1, 2], "a#1", LONG).await;
    assert_eq!(taken.iter().map(|lease| lease.shard).collect::<Vec<_>>(), [1, 2]);
    let rest = take(&store, &ALL, "b#1", LONG).await;
    assert_eq!(rest.iter().map(|lease| lease.shard).collect::<Vec<_>>(), [0, 3]);
    let rows = store.leases(Kind::Patient).await.expect("rows");
    let owners: Vec<_> = rows.iter().map(|row| (row.shard, row.owner.as_str(), row.expired)).collect();
    assert_eq!(owners, [(0, "b#1", false), (1, "a#1", false), (2, "a#1", false), (3, "b#1", false)]);
    assert!(take(&store, &[], "c#1", LONG).await.is_empty());
}

pub(super) async fn a_taker_learns_who_holds_what_it_did_not_get(store: Arc<dyn Store>) {
    let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3_600));
    take(&store, &[0], "a#1", minute).await;
    take(&store, &[2], "b#1", hour).await;
    let released = take(&store, &[3], "b#1", hour).await;
    store.release(Kind::Patient, &released, "b#1").await.expect("an answer");
    let mut taken = store.take(Kind::Patient, &[3, 0, 2, 1, 0], "c#1", LONG).await.expect("an answer");
    taken.leases.sort_by_key(|lease| lease.shard);
    taken.others.sort_by_key(|lease| lease.shard);
    assert_eq!(taken.leases.iter().map(|lease| lease.shard).collect::<Vec<_>>(), [1, 3]);
    let owners: Vec<_> = taken.others.iter().map(|other| (other.shard, &*other.owner)).collect();
    assert_eq!(owners, [(0, "a#1"), (2, "b#1")]);
    for (other, ttl) in taken.others.iter().zip([minute, hour]) {
        assert!(other.left <= ttl && other.left > ttl - Duration::from_secs(30), "{other:?}");
    }
    // One's own is taken anew, not told of.
    let again = store.take(Kind::Patient, &[1], "c#1", LONG).await.expect("an answer");
    assert!(again.others.is_empty() && again.leases[0].epoch > taken.leases[0].epoch);
}

pub(super) async fn what_is_left_of_anothers_lease_is_when_it_can_be_taken(store: Arc<dyn Store>) {
    let ttl = Duration::from_millis(300);
    take(&store, &[1], "a#1", ttl).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut tries = 0;
    loop {
        let taken = store.take(Kind::Patient, &[1], "b#1", LONG).await.expect("an answer");
        let Some(other) = taken.others.first() else {
            assert_eq!(taken.leases.len(), 1);
            break;
        };
        assert!(other.left <= ttl && Instant::now() < deadline, "{other:?}");
        tries += 1;
        sleep(other.left + Duration::from_millis(2)).await;
    }
    assert!(tries <= 2, "{tries} tries");
}

pub(super) async fn a_lease_runs_out(store: Arc<dyn Store>) {
    let first = take(&store, &[1], "a#1", Duration::from_millis(50)).await;
    let deadline = Instant::now() + Duration::from_secs(20);
    let second = loop {
        let taken = take(&store, &[1], "b#1", LONG).await;
        if let Some(lease) = taken.first() {
            break *lease;
        }
        assert!(Instant::now() < deadline, "the lease does not run out");
        sleep(Duration::from_millis(5)).await;
    };
    assert!(second.epoch > first[0].epoch);
    assert!(store.renew(Kind::Patient, &first, "a#1", LONG).await.expect("an answer").is_empty());
    assert!(take(&store, &[1], "a#1", LONG).await.is_empty());
}

pub(super) async fn a_released_lease_is_free(store: Arc<dyn Store>) {
    let first = take(&store, &ALL, "a#1", LONG).await;
    // Another's lease is not released by this.
    store.release(Kind::Patient, &first, "b#1").await.expect("an answer");
    assert!(take(&store, &ALL, "b#1", LONG).await.is_empty());
    // Nor one of another epoch.
    let stale = [TakenLease { shard: 0, epoch: Epoch(first[0].epoch.0 - 1) }];
    store.release(Kind::Patient, &stale, "a#1").await.expect("an answer");
    assert!(take(&store, &[0], "b#1", LONG).await.is_empty());

    store.release(Kind::Patient, &first[..2], "a#1").await.expect("an answer");
    let rows = store.leases(Kind::Patient).await.expect("rows");
    assert_eq!(rows.iter().map(|row| row.expired).collect::<Vec<_>>(), [true, true, false, false]);
    assert_eq!(rows[0].epoch, first[0].epoch, "the epoch outlives the lease");
    let second = take(&store, &ALL, "b#1", LONG).await;
    assert_eq!(second.iter().map(|lease| lease.shard).collect::<Vec<_>>(), [0, 1]);
    assert!(second.iter().zip(&first).all(|(new, old)| new.epoch > old.epoch));
}

pub(super) async fn renewal_keeps_the_epoch(store: Arc<dyn Store>) {
    let held = take(&store, &ALL, "a#1", Duration::from_millis(1)).await;
    sleep_until_expired(&store).await;
    // Run out, but nobody has had it: it goes on.
    let mut renewed = store.renew(Kind::Patient, &held, "a#1", LONG).await.expect("an answer");
    renewed.sort_unstable();
    assert_eq!(renewed, ALL);
    let rows = store.leases(Kind::Patient).await.expect("rows");
    assert!(rows.iter().zip(&held).all(|(row, held)| row.epoch == held.epoch && !row.expired));
    // Of what is held under another epoch or by another owner nothing is renewed.
    let mixed = [held[0], TakenLease { shard: 1, epoch: Epoch(held[1].epoch.0 + 1) }];
    assert_eq!(store.renew(Kind::Patient, &mixed, "a#1", LONG).await.expect("an answer"), [0]);
    assert!(store.renew(Kind::Patient, &held, "a#2", LONG).await.expect("an answer").is_empty());
    assert!(store.renew(Kind::Patient, &[], "a#1", LONG).await.expect("an answer").is_empty());
}

async fn sleep_until_expired(store: &Arc<dyn Store>) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !store.leases(Kind::Patient).await.expect("rows").iter().all(|row| row.expired) {
        assert!(Instant::now() < deadline, "the leases do not run out");
        sleep(Duration::from_millis(5)).await;
    }
}

pub(super) async fn taking_ones_own_lease_again_fences_what_was_sent(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let sent = region.register(1, "one@example.com");
    let again = take(&store, &ALL, region.owner, LONG).await;
    assert_eq!(again.len(), usize::from(SHARDS));
    assert!(again.iter().zip(&region.held).all(|(new, old)| new.epoch > old.epoch));
    assert_eq!(region.commit(&sent).await, Fenced);
}

pub(super) async fn a_commit_under_an_old_epoch_is_fenced(store: Arc<dyn Store>) {
    let old = Region::start(&store).await;
    let row = old.register(1, "one@example.com");
    store.release(Kind::Patient, &old.held, old.owner).await.expect("an answer");
    // A released lease that nobody has taken still commits: the epoch is what counts.
    assert_eq!(old.commit(&old.register(2, "two@example.com")).await, Committed);
    let held = take(&store, &ALL, "b#1", LONG).await;
    let new = Region { store: Arc::clone(&store), owner: "b#1", held };
    assert_eq!(old.commit(&row).await, Fenced);
    let mut unknown = new.register(1, "one@example.com");
    unknown.shard = 77;
    assert_eq!(new.commit(&unknown).await, Fenced, "a shard without a lease");
    assert_eq!(new.commit(&new.register(1, "one@example.com")).await, Committed);
}

pub(super) async fn kinds_do_not_touch_each_other(store: Arc<dyn Store>) {
    let patient = take(&store, &ALL, "a#1", LONG).await;
    let billing = store.acquire(Kind::Billing, &ALL, "b#1", LONG).await.expect("an answer");
    assert_eq!((patient.len(), billing.len()), (4, 4));
    store.release(Kind::Billing, &billing, "b#1").await.expect("an answer");
    assert!(take(&store, &ALL, "c#1", LONG).await.is_empty());
    assert!(store.leases(Kind::Outbox).await.expect("rows").is_empty());
}

pub(super) async fn one_taker_wins(store: Arc<dyn Store>) {
    let tasks = (0..8).map(|n| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { take(&store, &ALL, &format!("n{n}#1"), LONG).await })
    });
    let mut taken: Vec<ShardNo> = Vec::new();
    for task in join_all(tasks).await {
        taken.extend(task.expect("no panic").iter().map(|lease| lease.shard));
    }
    taken.sort_unstable();
    assert_eq!(taken, ALL, "each shard has one owner");
}
