//! The log of the topic, the replay that fills a new log, and parked rows.

use std::sync::Arc;

use uuid::Uuid;

use super::world::{Region, START, id};
use crate::domain::event::OutboxEvent;
use crate::domain::ids::EventId;
use crate::domain::time::Timestamp;
use crate::domain::topic_log::LogAnchor;
use crate::store::{
    NextLog, OutboxRead, ParkRow, PartitionOffset, ProjectionSource, Queue, Replay, Replayed, Store, TopicLog,
};

const ALWAYS: Replay = Replay::Since(Timestamp(i64::MIN));

async fn begin(store: &Arc<dyn Store>, after: i64, replay: Replay) -> TopicLog {
    let next = NextLog {
        after,
        cluster: "c".to_owned(),
        topic: "patient".to_owned(),
        at: Timestamp(START),
        reason: format!("after {after}"),
        replay,
    };
    store.begin_log(&next).await.expect("a log")
}

/// Patient number and version of each event, and whether it is a replay.
fn names(events: &[OutboxEvent]) -> Vec<(u128, i64, bool)> {
    events.iter().map(|e| (e.recorded.patient_id().0.as_u128(), e.recorded.version(), e.replay)).collect()
}

async fn read(store: &Arc<dyn Store>, replay_of: Option<i64>) -> Vec<OutboxEvent> {
    let read = OutboxRead { known: &[], now: Timestamp(START), replay_of, limit_rows: 100 };
    store.read_unpublished(read).await.expect("rows").events
}

async fn mark(store: &Arc<dyn Store>, events: &[OutboxEvent], log_no: i64) -> bool {
    let seqs: Vec<i64> = events.iter().map(|e| e.seq).collect();
    store.mark_published(&seqs, log_no, &[]).await.expect("an answer")
}

pub(super) async fn a_log_is_begun_once_and_marks_for_an_earlier_one_have_no_effect(store: Arc<dyn Store>) {
    assert_eq!(store.topic_log().await.expect("an answer"), None);
    let region = Region::start(&store).await;
    region.registered(1, "one@example.com").await;
    let events = read(&store, None).await;
    assert!(!mark(&store, &events, 1).await, "no log is known");
    let first = begin(&store, 0, Replay::Uncounted).await;
    assert_eq!((first.no, first.name.as_str(), first.replay_done), (1, "c", true));
    assert_eq!(begin(&store, 0, ALWAYS).await, first, "somebody was faster");
    assert_eq!(store.topic_log().await.expect("an answer"), Some(first));
    let second = begin(&store, 1, ALWAYS).await;
    assert_eq!((second.no, second.name.as_str(), second.replay_done), (2, "c#2", false));
    assert_eq!(second.reason, "after 1");
    assert!(!mark(&store, &events, 1).await);
    assert_eq!(read(&store, None).await.len(), 1, "the event still waits");
    assert!(mark(&store, &events, 2).await);
    assert!(read(&store, None).await.is_empty());
}

pub(super) async fn what_was_known_before_logs_had_numbers_needs_no_replay(store: Arc<dyn Store>) {
    Region::start(&store).await.registered(1, "one@example.com").await;
    let source =
        ProjectionSource { group: "g".to_owned(), broker: "c".to_owned(), topic: "patient".to_owned() };
    let offsets = [PartitionOffset { partition: 0, next_offset: 7 }];
    store.apply(&source, &offsets, &[]).await.expect("applied");
    assert!(begin(&store, 0, ALWAYS).await.replay_done);
    assert!(!begin(&store, 1, ALWAYS).await.replay_done, "the next log does");
}

pub(super) async fn anchors_rise_and_belong_to_their_log(store: Arc<dyn Store>) {
    let anchor = |partition, offset, event: Option<u128>| {
        let event_id = event.map(|n| EventId(Uuid::from_u128(n)));
        LogAnchor { partition, offset, event_id }
    };
    let known = async |no| {
        let mut anchors = store.log_anchors(no).await.expect("anchors");
        anchors.sort_by_key(|a| (a.partition, a.offset));
        anchors
    };
    begin(&store, 0, Replay::Uncounted).await;
    let note = async |no, anchors: &[LogAnchor]| store.mark_published(&[], no, anchors).await.expect("noted");
    assert!(note(1, &[anchor(0, 5, Some(1)), anchor(1, 2, Some(2))]).await);
    assert!(note(1, &[anchor(0, 4, Some(3)), anchor(1, 9, Some(4))]).await);
    assert_eq!(known(1).await, [anchor(0, 5, Some(1)), anchor(1, 9, Some(4))]);
    let source =
        ProjectionSource { group: "g".to_owned(), broker: "c".to_owned(), topic: "patient".to_owned() };
    let offsets =
        [(0, 0), (1, 4), (2, 8)].map(|(partition, next_offset)| PartitionOffset { partition, next_offset });
    store.apply(&source, &offsets, &[]).await.expect("applied");
    let told = [anchor(0, 5, Some(1)), anchor(1, 3, None), anchor(1, 9, Some(4)), anchor(2, 7, None)];
    assert_eq!(known(1).await, told, "with the last message that analytics has read");
    begin(&store, 1, Replay::Uncounted).await;
    assert!(known(2).await.is_empty());
    assert!(!note(1, &[anchor(0, 6, Some(5))]).await);
    assert!(known(1).await.is_empty() && known(2).await.is_empty());
}

pub(super) async fn a_replay_goes_on_where_it_was_and_new_events_do_not_wait_for_it(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    begin(&store, 0, Replay::Uncounted).await;
    let mut states = Vec::new();
    for n in 1..=4 {
        let state = region.registered(n, &format!("p{n}@example.com")).await;
        states.push(region.done(region.update(&state, &format!("q{n}@example.com"))).await);
    }
    assert!(mark(&store, &read(&store, None).await, 1).await);
    // One event of a patient late in the order was not published when the log was lost.
    states[3] = region.done(region.update(&states[3], "r4@example.com")).await;
    begin(&store, 1, ALWAYS).await;
    assert!(read(&store, Some(2)).await.is_empty(), "what came before it is not put back");

    let waiting = store.replay_waiting(2, &[], Timestamp(START), 10).await.expect("an answer");
    assert_eq!(waiting, 1);
    assert_eq!(store.replay_waiting(2, &[], Timestamp(START), 10).await.expect("an answer"), 0);
    let first = read(&store, Some(2)).await;
    assert_eq!(names(&first), [(4, 1, true), (4, 2, true), (4, 3, false)]);
    assert!(mark(&store, &first, 2).await);
    // A further event of a patient who is already replayed does not wait.
    region.done(region.update(&states[3], "s4@example.com")).await;
    assert_eq!(names(&read(&store, Some(2)).await), [(4, 4, false)]);

    let step = store.replay_next(2, 3).await.expect("a step");
    assert_eq!(step, Replayed { rows: 3, done: false });
    // The position lies between the events of the second patient, so the first of them is not returned yet.
    assert_eq!(names(&read(&store, Some(2)).await), [(1, 1, true), (1, 2, true), (4, 4, false)]);
    region.done(region.update(&states[1], "r2@example.com")).await;
    assert_eq!(store.replay_waiting(2, &[], Timestamp(START), 10).await.expect("an answer"), 1);
    let second = read(&store, Some(2)).await;
    let all_of_two: Vec<_> = names(&second).into_iter().filter(|(n, ..)| *n == 2).collect();
    assert_eq!(all_of_two, [(2, 1, true), (2, 2, true), (2, 3, false)]);
    assert!(mark(&store, &second, 2).await);

    let mut rows = 0;
    for steps in 1.. {
        let step = store.replay_next(2, 3).await.expect("a step");
        rows += step.rows;
        assert!(steps < 9, "it comes to an end");
        if step.done {
            break;
        }
    }
    assert_eq!(rows, 2, "of the third patient; those of the others were put back before");
    let log = store.topic_log().await.expect("an answer").expect("a log");
    assert_eq!((log.replay_done, log.replayed_rows), (true, 8));
    assert_eq!(names(&read(&store, Some(2)).await), [(3, 1, true), (3, 2, true)]);
    assert_eq!(store.replay_next(2, 3).await.expect("a step"), Replayed { rows: 0, done: true });
    // A log is lost in the middle of its replay; the replay of the next log starts over.
    begin(&store, 2, ALWAYS).await;
    assert_eq!(store.replay_next(2, 9).await.expect("a step").rows, 0, "that log is not in use");
    assert_eq!(store.replay_next(3, 99).await.expect("a step"), Replayed { rows: 9, done: true });
    assert_eq!(read(&store, Some(3)).await.len(), 11);
}

pub(super) async fn a_replay_leaves_out_what_is_too_old(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    begin(&store, 0, Replay::Uncounted).await;
    let one = region.registered(1, "one@example.com").await;
    region.done(region.update(&one, "uno@example.com")).await;
    let events = read(&store, None).await;
    assert!(mark(&store, &events, 1).await);
    begin(&store, 1, Replay::Since(events[1].recorded.at)).await;
    assert_eq!(store.replay_next(2, 9).await.expect("a step"), Replayed { rows: 1, done: true });
    assert_eq!(names(&read(&store, Some(2)).await), [(1, 2, true)]);
}

pub(super) async fn a_parked_row_holds_back_its_patient_until_its_time(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    begin(&store, 0, Replay::Uncounted).await;
    let one = region.registered(1, "one@example.com").await;
    region.registered(2, "two@example.com").await;
    region.done(region.update(&one, "uno@example.com")).await;
    let first = read(&store, None).await.remove(0);
    let park = async |queue, parks, retry_at| {
        let row = ParkRow {
            seq: first.seq,
            patient_id: id(1),
            parks,
            retry_at: Timestamp(retry_at),
            reason: "refused",
        };
        store.park(queue, &[row]).await.expect("parked");
    };
    park(Queue::Kafka, 1, START + 1).await;
    assert_eq!(names(&read(&store, None).await), [(2, 1, false)]);
    let depth = store.outbox_depth().await.expect("a depth");
    assert_eq!((depth.unpublished_rows, depth.parked_events, depth.parked_registrations), (3, 1, 0));
    let owed = store.unbilled(Timestamp(START), 9).await.expect("rows");
    assert_eq!(owed.events.len(), 2, "accounts are another matter");
    park(Queue::Billing, 1, START + 1).await;
    assert_eq!(store.unbilled(Timestamp(START), 9).await.expect("rows").events.len(), 1);
    let owed = store.unbilled(Timestamp(START + 1), 9).await.expect("rows").events;
    assert_eq!(owed.iter().map(|e| e.parks).collect::<Vec<_>>(), [1, 0]);
    store.mark_billed(&[first.seq]).await.expect("marked");
    // The row is due again, and fails once more.
    park(Queue::Kafka, 2, START).await;
    let again = read(&store, None).await;
    assert_eq!(again.iter().map(|e| e.parks).collect::<Vec<_>>(), [2, 0, 0]);
    assert!(mark(&store, &again[..1], 1).await);
    let depth = store.outbox_depth().await.expect("a depth");
    assert_eq!((depth.unpublished_rows, depth.parked_events, depth.parked_registrations), (2, 0, 0));
    assert_eq!(names(&read(&store, None).await), [(2, 1, false), (1, 2, false)]);
}
