//! Leases and fences.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep};

use super::world::{LONG, Region, SHARDS};
use crate::domain::ids::{Epoch, Kind, ShardNo};
use crate::store::AppendOutcome::{Committed, Fenced};
use crate::store::{LeaseMark, OthersLease, Store, Taken, TakenLease, Wanted};

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
    let wanted = [3, 0, 2, 1, 0].map(|shard| Wanted { shard, lapsed: None });
    let mut taken = store.take(Kind::Patient, &wanted, "c#1", LONG).await.expect("an answer");
    taken.leases.sort_by_key(|lease| lease.shard);
    taken.others.sort_by_key(|lease| lease.shard);
    assert_eq!(taken.leases.iter().map(|lease| lease.shard).collect::<Vec<_>>(), [1, 3]);
    let owners: Vec<_> = taken.others.iter().map(|other| (other.shard, &*other.owner, other.ttl)).collect();
    assert_eq!(owners, [(0, "a#1", minute), (2, "b#1", hour)]);
    assert_eq!(others(&store, "c#1").await, taken.others, "a look tells the same");
    // A taker's own lease is taken again, not listed among the others.
    let again = take(&store, &[1], "c#1", LONG).await;
    assert_eq!(again[0].epoch.0, taken.leases[0].epoch.0 + 1);
}

async fn others(store: &Arc<dyn Store>, owner: &str) -> Vec<OthersLease> {
    let mut others = store.others(Kind::Patient, owner).await.expect("an answer");
    others.sort_by_key(|other| other.shard);
    others
}

/// Takes shard 1 as a node that saw the lease lapse after `mark`.
async fn take_after(store: &Arc<dyn Store>, owner: &str, mark: LeaseMark) -> Taken {
    let wanted = [Wanted { shard: 1, lapsed: Some(mark) }];
    store.take(Kind::Patient, &wanted, owner, LONG).await.expect("an answer")
}

pub(super) async fn a_lease_that_was_not_released_is_taken_after_its_last_renewal_alone(
    store: Arc<dyn Store>,
) {
    let held = take(&store, &[1], "a#1", Duration::from_micros(1)).await;
    sleep_until_expired(&store).await;
    // Expiry by the database's clock does not matter, because that clock may have stepped.
    let seen = others(&store, "b#1").await[0].mark;
    assert_eq!(seen.epoch, held[0].epoch);
    assert!(take(&store, &[1], "b#1", LONG).await.is_empty());

    assert_eq!(store.renew(Kind::Patient, &held, "a#1", LONG).await.expect("an answer"), [1]);
    let renewed = others(&store, "b#1").await;
    let late = take_after(&store, "b#1", seen).await;
    assert_eq!((late.leases, late.others), (Vec::new(), renewed.clone()), "it was renewed meanwhile");
    let elsewhere = LeaseMark { epoch: Epoch(seen.epoch.0 + 1), ..renewed[0].mark };
    assert!(take_after(&store, "b#1", elsewhere).await.leases.is_empty(), "another tenure");

    let tasks = (0..4).map(|n| {
        let (store, mark) = (Arc::clone(&store), renewed[0].mark);
        tokio::spawn(async move { take_after(&store, &format!("b{n}#1"), mark).await.leases })
    });
    let taken: Vec<_> = join_all(tasks).await.into_iter().flat_map(|task| task.expect("no panic")).collect();
    assert_eq!(taken.len(), 1, "of all who have seen it lapse one gets it: {taken:?}");
    assert_eq!(taken[0].epoch.0, held[0].epoch.0 + 1);
    assert!(store.renew(Kind::Patient, &held, "a#1", LONG).await.expect("an answer").is_empty());
    assert!(take(&store, &[1], "a#1", LONG).await.is_empty());
}

pub(super) async fn no_renewal_looks_like_another(store: Arc<dyn Store>) {
    let mut held = take(&store, &[1], "a#1", LONG).await;
    let mut marks = vec![others(&store, "b#1").await[0].mark];
    // The expiry moves back and forth, as if the clock stepped between renewals.
    for ttl in [LONG, Duration::from_micros(1), Duration::from_micros(1), LONG * 2, LONG, LONG / 2] {
        store.renew(Kind::Patient, &held, "a#1", ttl).await.expect("an answer");
        marks.push(others(&store, "b#1").await[0].mark);
    }
    held = store.refence(Kind::Patient, &held, "a#1", LONG).await.expect("an answer").leases;
    marks.push(others(&store, "b#1").await[0].mark);
    store.renew(Kind::Patient, &held, "a#1", LONG).await.expect("an answer");
    marks.push(others(&store, "b#1").await[0].mark);
    assert!(marks.windows(2).all(|two| two[0].renewal < two[1].renewal), "{marks:?}");
}

pub(super) async fn a_new_epoch_is_had_once_and_by_its_holder_alone(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let sent = region.register(1, "one@example.com");
    let shard = sent.shard;
    let before: Vec<_> = region.held.clone();
    let raise = async |held: &[TakenLease], owner: &str| {
        let mut refenced = store.refence(Kind::Patient, held, owner, LONG).await.expect("an answer");
        refenced.leases.sort_by_key(|lease| lease.shard);
        assert!(refenced.busy.is_empty(), "{refenced:?}");
        refenced.leases
    };
    assert!(raise(&before, "b#1").await.is_empty(), "another owner");
    let next: Vec<_> =
        before.iter().map(|lease| TakenLease { epoch: Epoch(lease.epoch.0 + 1), ..*lease }).collect();
    assert_eq!(raise(&before, region.owner).await, next);
    assert_eq!(raise(&before, region.owner).await, next, "asked again, since the answer was lost");
    assert_eq!(region.commit(&sent).await, Fenced);
    let region = Region { held: next.clone(), ..region };
    assert_eq!(region.commit(&region.register(1, "one@example.com")).await, Committed);

    // Another owner has held one of the leases meanwhile. It is not raised, whoever holds it now.
    store
        .release(Kind::Patient, &next[usize::from(shard)..=usize::from(shard)], region.owner)
        .await
        .expect("ok");
    let others = take(&store, &[shard], "b#1", LONG).await;
    store.release(Kind::Patient, &others, "b#1").await.expect("an answer");
    let kept: Vec<_> = raise(&next, region.owner).await.iter().map(|lease| lease.shard).collect();
    assert_eq!(kept, ALL.into_iter().filter(|n| *n != shard).collect::<Vec<_>>());
    let again = take(&store, &[shard], region.owner, LONG).await;
    assert_eq!(again[0].epoch.0, next[usize::from(shard)].epoch.0 + 2);
    assert!(raise(&next, region.owner).await.iter().all(|lease| lease.shard != shard), "two takings later");
}

pub(super) async fn a_released_lease_is_free(store: Arc<dyn Store>) {
    let first = take(&store, &ALL, "a#1", LONG).await;
    // A release by another owner has no effect.
    store.release(Kind::Patient, &first, "b#1").await.expect("an answer");
    assert!(take(&store, &ALL, "b#1", LONG).await.is_empty());
    // A release under another epoch has no effect.
    let stale = [TakenLease { shard: 0, epoch: Epoch(first[0].epoch.0 - 1) }];
    store.release(Kind::Patient, &stale, "a#1").await.expect("an answer");
    assert!(take(&store, &[0], "b#1", LONG).await.is_empty());

    store.release(Kind::Patient, &first[..2], "a#1").await.expect("an answer");
    let rows = store.leases(Kind::Patient).await.expect("rows");
    assert_eq!(rows.iter().map(|row| row.expired).collect::<Vec<_>>(), [true, true, false, false]);
    assert_eq!(rows[0].epoch, first[0].epoch, "the epoch outlives the lease");
    let second = take(&store, &ALL, "b#1", LONG).await;
    assert_eq!(second.iter().map(|lease| lease.shard).collect::<Vec<_>>(), [0, 1]);
    assert!(second.iter().zip(&first).all(|(new, old)| new.epoch.0 == old.epoch.0 + 1));
}

pub(super) async fn renewal_keeps_the_epoch(store: Arc<dyn Store>) {
    let held = take(&store, &ALL, "a#1", Duration::from_millis(1)).await;
    sleep_until_expired(&store).await;
    // The lease has expired, but no other owner has taken it, so it is renewed.
    let mut renewed = store.renew(Kind::Patient, &held, "a#1", LONG).await.expect("an answer");
    renewed.sort_unstable();
    assert_eq!(renewed, ALL);
    let rows = store.leases(Kind::Patient).await.expect("rows");
    assert!(rows.iter().zip(&held).all(|(row, held)| row.epoch == held.epoch && !row.expired));
    // A lease under another epoch or of another owner is not renewed.
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
    // A released lease that nobody has taken still commits, because only the epoch counts.
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
