//! The outbox.

use std::sync::Arc;

use super::world::{Region, START, id};
use crate::domain::analytics::Observation;
use crate::domain::event::OutboxEvent;
use crate::domain::time::Timestamp;
use crate::store::{
    NextLog, OutboxDepth, OutboxRead, OutboxRows, PartitionOffset, ProjectionSource, PutBack, Replay, Store,
    TopicLog,
};

async fn waiting(store: &Arc<dyn Store>) -> Vec<OutboxEvent> {
    let events = store.unpublished(100).await.expect("events");
    assert!(events.windows(2).all(|pair| pair[0].seq < pair[1].seq), "in order");
    events
}

/// Makes the log of the cluster `broker` the log in use.
pub(super) async fn in_use(store: &Arc<dyn Store>, broker: &str) -> TopicLog {
    let known = store.topic_log().await.expect("an answer");
    match known {
        Some(log) if log.cluster == broker => log,
        known => {
            let next = NextLog {
                after: known.map_or(0, |log| log.no),
                cluster: broker.to_owned(),
                topic: "patient".to_owned(),
                at: Timestamp(START),
                reason: "as the test wants".to_owned(),
                replay: Replay::Uncounted,
            };
            store.begin_log(&next).await.expect("a log")
        }
    }
}

/// Reads unpublished events other than `known`.
async fn read(store: &Arc<dyn Store>, known: &[i64], limit_rows: u32) -> OutboxRows {
    let read = OutboxRead { known, now: Timestamp(START), replay_of: None, limit_rows };
    store.read_unpublished(read).await.expect("rows")
}

/// Patient number and version of each event.
fn names(events: &[OutboxEvent]) -> Vec<(u128, i64)> {
    events.iter().map(|e| (e.recorded.patient_id().0.as_u128(), e.recorded.version())).collect()
}

async fn mark(store: &Arc<dyn Store>, events: &[OutboxEvent], broker: &str) {
    let seqs: Vec<i64> = events.iter().map(|e| e.seq).collect();
    let log = in_use(store, broker).await;
    assert!(store.mark_published(&seqs, log.no, &[]).await.expect("marked"));
}

/// Puts back everything that other brokers lost, two rows per call. Returns the number of rows.
async fn put_back(store: &Arc<dyn Store>, broker: &str) -> u64 {
    let broker = &in_use(store, broker).await.name;
    let (mut rows, mut after) = (0, None);
    let any = store.any_forgotten(broker).await.expect("an answer");
    loop {
        let done = store.republish_forgotten(broker, after, 2).await.expect("an answer");
        assert!(done.rows <= 2 && (done.next.is_none() || done.next > after), "{done:?} after {after:?}");
        rows += done.rows;
        if done.next.is_none() {
            assert_eq!(any, rows > 0, "what is put back was forgotten before");
            assert!(!store.any_forgotten(broker).await.expect("an answer"));
            return rows;
        }
        after = done.next;
    }
}

/// Applies the events to analytics.
async fn observe(store: &Arc<dyn Store>, events: &[OutboxEvent]) {
    let source =
        ProjectionSource { group: "g".to_owned(), broker: "b".to_owned(), topic: "patient".to_owned() };
    let observations: Vec<Observation> = events
        .iter()
        .map(|e| Observation {
            patient_id: e.recorded.patient_id(),
            version: e.recorded.version(),
            event_type: e.recorded.event_type(),
            at: e.recorded.at,
            date_of_birth: None,
        })
        .collect();
    let offsets = [PartitionOffset { partition: 0, next_offset: 1 }];
    store.apply(&source, &offsets, &observations).await.expect("applied");
}

pub(super) async fn events_wait_in_the_order_of_commits(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    assert!(waiting(&store).await.is_empty());
    let one = region.registered(1, "one@example.com").await;
    let row = region.register(2, "two@example.com");
    region.done(row.clone()).await;
    let one = region.done(region.update(&one, "uno@example.com")).await;
    region.done(region.delete(&one)).await;
    let events = waiting(&store).await;
    assert_eq!(names(&events), [(1, 1), (2, 1), (1, 2), (1, 3)]);
    assert!(events[1].recorded == row.recorded && events[1].shard == row.shard);
    assert_eq!(names(&store.unpublished(2).await.expect("events")), [(1, 1), (2, 1)]);
    assert!(store.unpublished(0).await.expect("events").is_empty());
    let first = store.unpublished(1).await.expect("events")[0].seq;
    assert_eq!(names(&read(&store, &[first], 1).await.events), [(2, 1)]);
}

pub(super) async fn what_is_marked_does_not_come_back(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    for n in 1..=5 {
        region.registered(n, &format!("p{n}@example.com")).await;
    }
    let events = waiting(&store).await;
    mark(&store, &events[..2], "b1").await;
    mark(&store, &events[..3], "b1").await;
    mark(&store, &[], "b1").await;
    assert_eq!(names(&waiting(&store).await), [(4, 1), (5, 1)]);
    let log = in_use(&store, "b1").await;
    store.mark_published(&[-1, 1 << 40], log.no, &[]).await.expect("unknown numbers do no harm");
    assert_eq!(put_back(&store, "b1").await, 0);
    assert_eq!(names(&waiting(&store).await), [(4, 1), (5, 1)]);
    assert_eq!(
        store.history(id(1), 0, 9).await.expect("events").len(),
        1,
        "history keeps what was published"
    );
}

pub(super) async fn what_a_broker_forgot_is_told_again(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let one = region.registered(1, "one@example.com").await;
    region.registered(2, "two@example.com").await;
    let one = region.done(region.update(&one, "uno@example.com")).await;
    let first = waiting(&store).await;
    mark(&store, &first, "b1").await;
    region.done(region.update(&one, "ein@example.com")).await;
    region.registered(3, "three@example.com").await;
    let second = waiting(&store).await;
    mark(&store, &second[1..], "b2").await;
    // b1 is lost with three events; b2 has one; one event waits.
    assert_eq!(put_back(&store, "b2").await, 3);
    let again = waiting(&store).await;
    assert_eq!(names(&again), [(1, 1), (2, 1), (1, 2), (1, 3)]);
    let replayed = |e: &OutboxEvent| OutboxEvent { replay: true, ..e.clone() };
    assert!(
        again[..3] == first.iter().map(replayed).collect::<Vec<_>>(),
        "the same events under the same numbers, and marked"
    );
    assert_eq!(put_back(&store, "b2").await, 0);
    mark(&store, &again, "b2").await;
    assert_eq!(put_back(&store, "b3").await, 5);
}

pub(super) async fn what_is_applied_is_not_told_again(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let one = region.registered(1, "one@example.com").await;
    region.registered(2, "two@example.com").await;
    region.done(region.update(&one, "uno@example.com")).await;
    let events = waiting(&store).await;
    mark(&store, &events, "b1").await;
    observe(&store, &events[..1]).await;
    assert_eq!(put_back(&store, "b2").await, 2);
    assert_eq!(names(&waiting(&store).await), [(2, 1), (1, 2)]);
    let events = waiting(&store).await;
    mark(&store, &events, "b2").await;
    observe(&store, &events).await;
    assert_eq!(put_back(&store, "b3").await, 0);
    // Analytics may apply an event before it is marked as published.
    region.registered(3, "three@example.com").await;
    let events = waiting(&store).await;
    observe(&store, &events).await;
    mark(&store, &events, "b3").await;
    assert_eq!(put_back(&store, "b4").await, 0);
}

pub(super) async fn what_is_counted_ahead_keeps_what_is_missing(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let one = region.registered(1, "one@example.com").await;
    region.done(region.update(&one, "uno@example.com")).await;
    let events = waiting(&store).await;
    mark(&store, &events, "b1").await;
    observe(&store, &events[1..]).await;
    assert_eq!(put_back(&store, "b2").await, 2);
    let again = waiting(&store).await;
    assert_eq!(names(&again), [(1, 1), (1, 2)]);
    observe(&store, &again).await;
    mark(&store, &again, "b2").await;
    assert_eq!(put_back(&store, "b3").await, 0);
}

pub(super) async fn registrations_wait_for_an_account(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let one = region.registered(1, "one@example.com").await;
    region.done(region.delete(&one)).await;
    region.registered(2, "two@example.com").await;
    region.registered(3, "three@example.com").await;
    let owed = store.unbilled(Timestamp(0), 10).await.expect("rows").events;
    assert_eq!(names(&owed), [(1, 1), (2, 1), (3, 1)]);
    store.mark_billed(&[owed[0].seq, owed[2].seq]).await.expect("marked");
    store.mark_billed(&[owed[0].seq]).await.expect("marked twice");
    store.mark_billed(&[]).await.expect("nothing marked");
    assert_eq!(names(&store.unbilled(Timestamp(0), 10).await.expect("rows").events), [(2, 1)]);
    assert_eq!(waiting(&store).await.len(), 4, "Kafka is another matter");
}

pub(super) async fn depth_tells_the_oldest(store: Arc<dyn Store>) {
    assert_eq!(store.outbox_depth().await.expect("a depth"), OutboxDepth::default());
    let region = Region::start(&store).await;
    let one = region.registered(1, "one@example.com").await;
    region.done(region.update(&one, "uno@example.com")).await;
    let depth = store.outbox_depth().await.expect("a depth");
    assert_eq!((depth.unpublished_rows, depth.unbilled_rows), (2, 1));
    assert_eq!(depth.oldest_at, Some(Timestamp(START + 1)));
    mark(&store, &waiting(&store).await[..1], "b1").await;
    assert_eq!(store.outbox_depth().await.expect("a depth").oldest_at, Some(Timestamp(START + 2)));
}

pub(super) async fn a_call_that_puts_back_is_bounded(store: Arc<dyn Store>) {
    assert_eq!(store.republish_forgotten("b2", None, 2).await.expect("an answer"), PutBack::default());
    let region = Region::start(&store).await;
    for n in 1..=4 {
        region.registered(n, &format!("p{n}@example.com")).await;
    }
    let events = waiting(&store).await;
    mark(&store, &events, "b1").await;
    let next = Some(events[2].seq);
    let done = store.republish_forgotten("b2", None, 3).await.expect("an answer");
    assert_eq!(done, PutBack { rows: 3, next });
    assert_eq!(names(&waiting(&store).await), [(1, 1), (2, 1), (3, 1)]);
    let done = store.republish_forgotten("b2", next, 3).await.expect("an answer");
    assert_eq!(done, PutBack { rows: 1, next: None });
    assert_eq!(names(&waiting(&store).await), names(&events));
}
