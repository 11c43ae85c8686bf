//! What the bridge does outside of its mailbox: one call of the store or the broker each, bounded in time.

use std::sync::Arc;
use std::time::Duration;

use crate::actors::background::within;
use crate::context::{Hop, TraceContext};
use crate::domain::event::OutboxEvent;
use crate::domain::time::Clock;
use crate::kafka::{Broker, Delivery, wire};
use crate::store::{self, OutboxStore};

/// How many rows one call that puts back events looks at: few enough for the ordinary limit in time, and
/// for others to have their turn at the database in between.
const PUT_BACK_ROWS: u32 = 2_000;

/// Learns which log this is, and puts back into the outbox what only forgotten ones held. Nothing is
/// published before all of that is done. `limit` is for each call of the store.
pub(super) async fn prepare(
    broker: Arc<dyn Broker>,
    outbox: Arc<dyn OutboxStore>,
    limit: Duration,
) -> Result<Arc<str>, String> {
    let incarnation = broker.incarnation().await.map_err(|e| e.to_string())?;
    put_back(&*outbox, &incarnation, limit).await.map_err(|e| e.to_string())?;
    Ok(incarnation.into())
}

/// Goes once through all that brokers have taken. What was done stays done if a call fails.
async fn put_back(outbox: &dyn OutboxStore, incarnation: &str, limit: Duration) -> store::Result<()> {
    let mut events = 0;
    let mut after = None;
    loop {
        let call = outbox.republish_forgotten(incarnation, after, PUT_BACK_ROWS);
        let put_back = within(limit, call).await?;
        events += put_back.rows;
        if put_back.next.is_none() {
            break;
        }
        after = put_back.next;
    }
    if events > 0 {
        tracing::info!(events, "events that an earlier broker has forgotten are published again");
    }
    Ok(())
}

/// Publishes `rows`; answers for each whether it was delivered.
pub(super) async fn publish(
    broker: Arc<dyn Broker>,
    clock: Arc<dyn Clock>,
    topic: Arc<str>,
    rows: Arc<Vec<OutboxEvent>>,
) -> Vec<bool> {
    let (began, now) = (clock.mono(), clock.now());
    let hops: Vec<_> = rows
        .iter()
        .map(|row| TraceContext::parse(&row.recorded.traceparent))
        .map(|parent| parent.map_or_else(TraceContext::root, |p| p.child()))
        .collect();
    let messages: Vec<_> =
        rows.iter().zip(&hops).map(|(row, hop)| wire::encode(&topic, &row.recorded, hop)).collect();
    let deliveries = broker.publisher().publish(&messages).await;
    let took = clock.mono().since(began);
    for ((row, hop), delivery) in rows.iter().zip(&hops).zip(&deliveries) {
        let waited_us = u64::try_from(now.0 - row.recorded.at.0).unwrap_or(0);
        Hop {
            actor: super::NAME,
            message: "Publish",
            entity: Some(row.recorded.patient_id().0),
            trace: hop,
            queued: Duration::from_micros(waited_us),
            handled: took,
            outcome: if delivery.is_delivered() { "ok" } else { "failed" },
        }
        .log();
    }
    count(&deliveries, took);
    deliveries.iter().map(Delivery::is_delivered).collect()
}

fn count(deliveries: &[Delivery], took: Duration) {
    let failed: Vec<_> = deliveries.iter().filter(|d| !d.is_delivered()).collect();
    metrics::counter!("hygeia_bridge_published_total").increment((deliveries.len() - failed.len()) as u64);
    metrics::counter!("hygeia_bridge_failed_total").increment(failed.len() as u64);
    metrics::histogram!("hygeia_bridge_batch_rows").record(deliveries.len() as f64);
    metrics::histogram!("hygeia_bridge_publish_seconds").record(took.as_secs_f64());
    if let Some(Delivery::Failed(reason) | Delivery::ProducerLost(reason)) = failed.first() {
        tracing::warn!(events = failed.len(), reason, "events could not be published and are tried again");
    }
}

/// Reads the outbox's gauges.
pub(super) async fn depth(outbox: Arc<dyn OutboxStore>, clock: Arc<dyn Clock>, limit: Duration) {
    if let Ok(depth) = within(limit, outbox.outbox_depth()).await {
        let age_us = depth.oldest_at.map_or(0, |oldest| (clock.now().0 - oldest.0).max(0));
        metrics::gauge!("hygeia_outbox_unpublished_rows").set(depth.unpublished_rows as f64);
        metrics::gauge!("hygeia_outbox_unbilled_rows").set(depth.unbilled_rows as f64);
        metrics::gauge!("hygeia_outbox_age_seconds").set(age_us as f64 / 1e6);
    }
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
        store.mark_published(&seqs, "old").await.expect("marked");
        store.mark_published(&seqs[..100], "new").await.expect("marked");
        // Five calls, which together take longer than one may.
        store.slow_put_back(Duration::from_millis(450));
        put_back(&store, "new", Duration::from_secs(2)).await.expect("each call is in time");
        assert_eq!(store.unpublished_count(), 8_900);
    }
}
