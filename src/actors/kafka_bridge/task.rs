//! What the bridge does outside of its mailbox: one call of the store or the broker each, bounded in time.

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

/// How many rows one call that puts back events looks at: few enough for the ordinary limit in time, and
/// for others to have their turn at the database in between.
const PUT_BACK_ROWS: u32 = 2_000;
/// How many rows of the outbox one call looks at for patients whose turn in the replay has not come.
const WAITING_ROWS: u32 = 512;
/// How many events one step of a replay looks at. Less than one read takes, so that new events are read with them.
const REPLAY_ROWS: u32 = 1_000;

/// Learns which log this is, and puts back into the outbox what only forgotten ones held and analytics has not
/// counted. Nothing is published before all of that is done.
pub(super) async fn prepare(args: KafkaBridgeArgs) -> Result<Identified, String> {
    let identified = log::identify(&args).await?;
    put_back(&*args.outbox, &identified.log.name, args.settings.store_timeout())
        .await
        .map_err(|e| e.to_string())?;
    Ok(identified)
}

/// Goes once through all that brokers have taken. What was done stays done if a call fails.
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

/// A read of the outbox.
pub(super) struct Reading {
    /// The log in use.
    pub(super) log_no: i64,
    /// Its replay is not done.
    pub(super) replaying: bool,
    /// The read before took all there was: the replay may add to it.
    pub(super) caught_up: bool,
    /// The rows in hand.
    pub(super) known: Vec<i64>,
    /// How many further ones.
    pub(super) rows_max: u32,
}

/// What a read of the outbox brought.
#[derive(Default)]
pub(super) struct Found {
    /// The rows.
    pub(super) rows: OutboxRows,
    /// The replay has put back all it has to.
    pub(super) replay_done: bool,
    /// Rows may be there at once that this read could not see.
    pub(super) more: bool,
}

/// Reads the outbox; while a log is replayed, after one step of that. New events come first: a step adds nothing
/// while a read leaves rows behind, and who has a new event does not wait for their turn.
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
        // The replay goes on without a tick.
        found.more |= !found.replay_done;
    }
    let replay_of = (replaying && !found.replay_done).then_some(log_no);
    let read = OutboxRead { known: &known, now, replay_of, limit_rows: rows_max };
    found.rows = within(limit, args.outbox.read_unpublished(read)).await?;
    Ok(found)
}

/// Publishes `rows` to the log `log_no`; answers for each what became of it.
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

/// Reads the outbox's gauges; `None` if the database does not answer.
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
        // Five calls, which together take longer than one may.
        store.slow_put_back(Duration::from_millis(450));
        put_back(&store, "new", Duration::from_secs(2)).await.expect("each call is in time");
        assert_eq!(store.unpublished_count(), 8_900);
    }
}
