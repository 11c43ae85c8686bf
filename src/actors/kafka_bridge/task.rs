//! The tasks of the bridge. Every call of the store or the broker has a time limit.

use std::sync::Arc;
use std::time::Duration;

use super::log::{self, Identified};
use super::window::Sent;
use super::{KafkaBridgeArgs, NAME};
use crate::actors::background::within;
use crate::context::{Hop, TraceContext};
use crate::domain::event::OutboxEvent;
use crate::domain::time::Clock;
use crate::kafka::{Delivery, wire};
use crate::store::{self, OutboxDepth, OutboxRead, OutboxRows, OutboxStore, Queue};

/// Rows per call that puts events back: few enough for the normal time limit, and for other transactions to
/// run in between.
const PUT_BACK_ROWS: u32 = 2_000;
/// Rows of the outbox per call that looks for patients that the replay has not reached.
const WAITING_ROWS: u32 = 512;
/// Events per step of a replay. Fewer than one read returns, so that new events are read together with them.
const REPLAY_ROWS: u32 = 1_000;

/// Identifies the log, and puts back into the outbox the events that only earlier logs held and that
/// analytics has not counted. Nothing is published before all of this is done.
pub(super) async fn prepare(args: KafkaBridgeArgs) -> Result<Identified, String> {
    let identified = log::identify(&args).await?;
    put_back(&*args.outbox, &identified.log.name, args.settings.store_timeout())
        .await
        .map_err(|e| e.to_string())?;
    Ok(identified)
}

/// Goes once through all published events. If a call fails, the work of earlier calls stays done.
async fn put_back(outbox: &dyn OutboxStore, log: &str, limit: Duration) -> store::Result<()> {
    let mut events = 0;
    let mut after = None;
    loop {
        let call = outbox.republish_forgotten(log, after, PUT_BACK_ROWS);
        let put_back = within(limit, call).await?;
        events += put_back.rows;
        if put_back.next.is_none() {
            break;
        }
        after = put_back.next;
    }
    if events > 0 {
        tracing::info!(
            events,
            "events that an earlier log had and analytics has not counted are published again"
        );
    }
    Ok(())
}

/// The parameters of a read of the outbox.
pub(super) struct Reading {
    /// The number of the log in use.
    pub(super) log_no: i64,
    /// Whether the replay of the log is still running.
    pub(super) replaying: bool,
    /// Whether the previous read returned all rows, so that the replay may add more.
    pub(super) caught_up: bool,
    /// The sequence numbers of the rows in hand.
    pub(super) known: Vec<i64>,
    /// The maximum number of further rows.
    pub(super) rows_max: u32,
}

/// The result of a read of the outbox.
#[derive(Default)]
pub(super) struct Found {
    /// The rows.
    pub(super) rows: OutboxRows,
    /// Whether the replay has put back every event.
    pub(super) replay_done: bool,
    /// Whether there may be further rows that this read could not see.
    pub(super) more: bool,
}

/// Reads the outbox. During a replay, first runs one step of the replay. New events have priority: a step
/// adds nothing while a read leaves rows behind, and a patient with a new event is replayed out of turn.
pub(super) async fn read(args: KafkaBridgeArgs, reading: Reading) -> store::Result<Found> {
    let (limit, now) = (args.settings.store_timeout(), args.clock.now());
    let Reading { log_no, replaying, caught_up, known, rows_max } = reading;
    let mut found = Found::default();
    if replaying {
        let waiting = args.logs.replay_waiting(log_no, &known, now, WAITING_ROWS);
        found.more = within(limit, waiting).await? > 0;
        if caught_up {
            let step = within(limit, args.logs.replay_next(log_no, REPLAY_ROWS)).await?;
            found.replay_done = step.done;
        }
        // The replay continues without a tick.
        found.more |= !found.replay_done;
    }
    let replay_of = (replaying && !found.replay_done).then_some(log_no);
    let read = OutboxRead { known: &known, now, replay_of, limit_rows: rows_max };
    found.rows = within(limit, args.outbox.read_unpublished(read)).await?;
    Ok(found)
}

/// Publishes `rows` to the log `log_no`. Returns the result of each row.
pub(super) async fn publish(args: KafkaBridgeArgs, log_no: i64, rows: Arc<Vec<OutboxEvent>>) -> Vec<Sent> {
    let (clock, topic) = (&args.clock, args.broker.names().topic);
    let (began, now) = (clock.mono(), clock.now());
    let hops: Vec<_> = rows
        .iter()
        .map(|row| TraceContext::parse(&row.recorded.traceparent))
        .map(|parent| parent.map_or_else(TraceContext::root, |p| p.child()))
        .collect();
    let message = |(row, hop): (&OutboxEvent, &TraceContext)| match row.replay {
        true => wire::encode_replay(&topic, &row.recorded, hop, log_no),
        false => wire::encode(&topic, &row.recorded, hop),
    };
    let messages: Vec<_> = rows.iter().zip(&hops).map(message).collect();
    let deliveries = args.broker.publisher().publish(&messages).await;
    let took = clock.mono().since(began);
    for ((row, hop), delivery) in rows.iter().zip(&hops).zip(&deliveries) {
        let waited_us = u64::try_from(now.0 - row.recorded.at.0).unwrap_or(0);
        Hop {
            actor: NAME,
            message: "Publish",
            entity: Some(row.recorded.patient_id().0),
            trace: hop,
            queued: Duration::from_micros(waited_us),
            handled: took,
            outcome: if delivery.is_delivered() { "ok" } else { "failed" },
        }
        .log();
    }
    let replayed = rows.iter().zip(&deliveries).filter(|(row, d)| row.replay && d.is_delivered()).count();
    metrics::counter!("hygeia_bridge_replayed_total").increment(replayed as u64);
    count(&deliveries, took);
    deliveries.into_iter().map(sent).collect()
}

fn sent(delivery: Delivery) -> Sent {
    match delivery {
        Delivery::Delivered(place) => Sent::Delivered(place),
        Delivery::Refused(_) => Sent::Refused,
        Delivery::Failed(_) | Delivery::ProducerLost(_) => Sent::Failed,
    }
}

fn count(deliveries: &[Delivery], took: Duration) {
    let failed: Vec<_> = deliveries.iter().filter(|d| !d.is_delivered()).collect();
    metrics::counter!("hygeia_bridge_published_total").increment((deliveries.len() - failed.len()) as u64);
    metrics::counter!("hygeia_bridge_failed_total").increment(failed.len() as u64);
    metrics::histogram!("hygeia_bridge_batch_rows").record(deliveries.len() as f64);
    metrics::histogram!("hygeia_bridge_publish_seconds").record(took.as_secs_f64());
    if let Some(Delivery::Failed(reason) | Delivery::Refused(reason) | Delivery::ProducerLost(reason)) =
        failed.first()
    {
        tracing::warn!(events = failed.len(), reason, "events could not be published and are tried again");
    }
}

/// Measures the outbox and sets its gauges. Returns `None` if the database does not answer.
pub(super) async fn depth(
    outbox: Arc<dyn OutboxStore>,
    clock: Arc<dyn Clock>,
    limit: Duration,
) -> Option<OutboxDepth> {
    let depth = within(limit, outbox.outbox_depth()).await.ok()?;
    let age_us = depth.oldest_at.map_or(0, |oldest| (clock.now().0 - oldest.0).max(0));
    metrics::gauge!("hygeia_outbox_unpublished_rows").set(depth.unpublished_rows as f64);
    metrics::gauge!("hygeia_outbox_unbilled_rows").set(depth.unbilled_rows as f64);
    metrics::gauge!("hygeia_outbox_age_seconds").set(age_us as f64 / 1e6);
    let parked = [(Queue::Kafka, depth.parked_events), (Queue::Billing, depth.parked_registrations)];
    for (queue, rows) in parked {
        metrics::gauge!("hygeia_outbox_parked_rows", "queue" => queue.as_str()).set(rows as f64);
    }
    Some(depth)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actors::fake_store::{FakeStore, event};

    #[tokio::test]
    async fn however_much_was_forgotten_no_call_takes_long() {
        let store = FakeStore::default();
        store.commit_all((0..9_000).map(|n| event(n, 1)));
        let seqs: Vec<i64> = (1..=9_000).collect();
        store.begin("old");
        store.mark_published(&seqs, 1, &[]).await.expect("marked");
        store.begin("new");
        store.mark_published(&seqs[..100], 2, &[]).await.expect("marked");
        // Five calls, which together take longer than the limit of one.
        store.slow_put_back(Duration::from_millis(450));
        put_back(&store, "new", Duration::from_secs(2)).await.expect("each call is in time");
        assert_eq!(store.unpublished_count(), 8_900);
    }
}
