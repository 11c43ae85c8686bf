//! The producer: idempotent, `acks=all`, one per process, replaced after a permanent failure.
//!
//! A batch is complete when librdkafka has reported each of its messages, or when the time is up. librdkafka
//! reports a full queue as an error; the batch then waits and retries.
//!
//! An idempotent producer fails permanently ("fatal") after an error that it cannot reconcile with its
//! sequence numbers. All its messages fail, and the next batch creates a new producer. A producer is also
//! replaced if it delivers nothing for `delivery_timeout_ms` (at least `SILENCE_MIN`) while the broker
//! answers, because a fenced producer does not always report an error.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, PurgeConfig, ThreadedProducer};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::client::{ClientEvents, LinkState, making};
use super::gate::{Gate, Reservation};
use super::{Delivery, Link, Outgoing, Place, Publisher, Result, Settings};

/// The pause before a retry when the queue is full.
const QUEUE_FULL_PAUSE: Duration = Duration::from_millis(5);
/// The minimum time that a new producer has for its first delivery, however short the delivery timeout is. It
/// first has to find its broker and get a producer id.
const SILENCE_MIN: Duration = Duration::from_secs(5);
/// Upper estimates of the wire overhead of a message, and of a header.
const OVERHEAD_BYTES: usize = 80;
const HEADER_OVERHEAD_BYTES: usize = 4;

type Native = ThreadedProducer<ProducerEvents>;

/// The callbacks of the producer.
pub(super) struct ProducerEvents(pub(super) ClientEvents);

impl ClientContext for ProducerEvents {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, log_message: &str) {
        self.0.log(level, fac, log_message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl ProducerContext for ProducerEvents {
    type DeliveryOpaque = Box<Ticket>;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: Box<Ticket>) {
        match result {
            Ok(message) => ticket.delivered(message.partition(), message.offset()),
            Err((error, _)) => ticket.failed(error),
        }
    }
}

/// The obligation to report one message of a batch.
pub(super) struct Ticket {
    batch: Arc<BatchReport>,
    index: usize,
    bytes: u64,
}

/// Returns whether an error is about the message itself, not about the broker or the connection.
fn is_of_the_message(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode::{InvalidMessage, InvalidMessageSize, InvalidRecord, InvalidTimestamp};
    use RDKafkaErrorCode::{MessageSizeTooLarge, PolicyViolation, UnsupportedForMessageFormat};
    matches!(
        code,
        InvalidMessage
            | InvalidMessageSize
            | InvalidRecord
            | InvalidTimestamp
            | MessageSizeTooLarge
            | PolicyViolation
            | UnsupportedForMessageFormat
    )
}

/// The reports of a batch so far. It lives until each message is reported, even if no caller waits any more,
/// so that the gate still counts the messages in the log.
struct BatchReport {
    state: Mutex<BatchState>,
    complete: Notify,
    /// The gate to notify of delivered messages, and the batch's reservation.
    claim: Option<(Arc<Gate>, Reservation)>,
}

struct BatchState {
    open: usize,
    deliveries: Vec<Option<Delivery>>,
    /// Per partition: the last offset and the bytes that the gate does not know of yet.
    landed: Vec<(i32, i64, u64)>,
    /// Whether the caller has stopped waiting. The gate is then notified of each message separately.
    left: bool,
}

/// A caller that waits for a batch. On drop, also by cancellation, the gate is notified of the messages
/// delivered so far.
struct Awaited(Arc<BatchReport>);

impl Drop for Awaited {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.left = true;
        self.0.tell_gate(&mut state);
    }
}

impl BatchReport {
    fn new(messages: usize, claim: Option<(Arc<Gate>, Reservation)>) -> Arc<Self> {
        let deliveries = vec![None; messages];
        let state = BatchState { open: messages, deliveries, landed: Vec::new(), left: false };
        Arc::new(BatchReport { state: Mutex::new(state), complete: Notify::new(), claim })
    }

    fn tell_gate(&self, state: &mut BatchState) {
        let landed = std::mem::take(&mut state.landed);
        if let Some((gate, _)) = &self.claim {
            for (partition, last_offset, bytes) in landed {
                gate.landed(partition, last_offset, bytes);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BatchState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the result of each message, as far as known.
    fn deliveries(&self) -> Vec<Delivery> {
        let unknown = || Delivery::Failed("no report in time".into());
        self.lock().deliveries.iter().map(|d| d.clone().unwrap_or_else(unknown)).collect()
    }

    fn report(&self, index: usize, delivery: Delivery, landed: Option<(i32, i64, u64)>) {
        let mut state = self.lock();
        if let Some((partition, offset, bytes)) = landed {
            match state.landed.iter_mut().find(|l| l.0 == partition) {
                Some(run) => *run = (partition, run.1.max(offset), run.2 + bytes),
                None => state.landed.push((partition, offset, bytes)),
            }
        }
        if state.deliveries[index].replace(delivery).is_none() {
            state.open -= 1;
        }
        if state.left {
            self.tell_gate(&mut state);
        }
        let complete = state.open == 0;
        drop(state);
        if complete {
            self.complete.notify_one();
        }
    }
}

impl Ticket {
    fn delivered(self, partition: i32, offset: i64) {
        // The broker returns no offset for a message that it already has.
        let place = (offset >= 0).then_some(Place { partition, offset });
        self.batch.report(self.index, Delivery::Delivered(place), Some((partition, offset, self.bytes)));
    }

    fn failed(self, error: &KafkaError) {
        let reason = error.to_string();
        let refused = error.rdkafka_error_code().is_some_and(is_of_the_message);
        let delivery = if refused { Delivery::Refused(reason) } else { Delivery::Failed(reason) };
        self.batch.report(self.index, delivery, None);
    }
}

/// The producer of a `Kafka`.
pub(super) struct KafkaPublisher {
    config: ClientConfig,
    link: LinkState,
    /// The topic that the gate limits, and the gate.
    gate: Option<(Arc<str>, Arc<Gate>)>,
    /// How long a batch waits for its reports after the queue has accepted it.
    report_timeout: Duration,
    /// How long a producer may fail to deliver anything before it is replaced.
    silence_max: Duration,
    current: Mutex<Option<Current>>,
}

/// The producer in use.
struct Current {
    native: Arc<Native>,
    /// When the producer was created or last delivered a message.
    heard_at: Instant,
}

impl KafkaPublisher {
    /// Creates a publisher and its first producer. The producer gets its id from the broker before there is
    /// anything to publish; this takes half a second.
    ///
    /// # Errors
    /// `Settings`: librdkafka rejects the settings.
    pub(super) fn new(
        settings: &Settings,
        config: ClientConfig,
        link: LinkState,
        gate: Option<(Arc<str>, Arc<Gate>)>,
    ) -> Result<Self> {
        // librdkafka reports each message at its delivery timeout at the latest, and checks its queues once a
        // second.
        let delivery_timeout = Duration::from_millis(settings.delivery_timeout_ms);
        let report_timeout = delivery_timeout + Duration::from_secs(5);
        let silence_max = delivery_timeout.max(SILENCE_MIN);
        let current = Mutex::new(None);
        let publisher = KafkaPublisher { config, link, gate, report_timeout, silence_max, current };
        publisher.current()?;
        Ok(publisher)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Result<Arc<Native>> {
        let mut current = self.lock();
        if let Some(current) = &*current {
            return Ok(Arc::clone(&current.native));
        }
        let events = ProducerEvents(ClientEvents::new("producer", self.link.clone()));
        let made = Native::from_config_and_context(&self.config, events).map_err(|e| making(&e))?;
        let made = Arc::new(made);
        *current = Some(Current { native: Arc::clone(&made), heard_at: Instant::now() });
        Ok(made)
    }

    /// Records the results of a batch of `producer`, and discards the producer if it cannot go on. Returns
    /// whether it was discarded. Its messages then fail.
    fn is_retired(&self, producer: &Arc<Native>, deliveries: &[Delivery]) -> bool {
        if deliveries.iter().any(Delivery::is_delivered) {
            self.link.up();
            if let Some(current) = self.lock().as_mut().filter(|c| Arc::ptr_eq(&c.native, producer)) {
                current.heard_at = Instant::now();
            }
        }
        if deliveries.iter().all(Delivery::is_delivered) {
            return false;
        }
        let fatal = producer.client().fatal_error();
        // While the broker is away, a new producer would not deliver either.
        let looks_silent =
            deliveries.iter().all(|d| matches!(d, Delivery::Failed(_))) && self.link.get() == Link::Up;
        let mut current = self.lock();
        let Some(ours) = current.as_ref().filter(|c| Arc::ptr_eq(&c.native, producer)) else {
            return fatal.is_some();
        };
        let is_silent = looks_silent && ours.heard_at.elapsed() >= self.silence_max;
        let reason = match fatal {
            Some((code, reason)) => format!("it failed for good: {code}: {reason}"),
            None if is_silent => format!("it has delivered nothing for {} ms", self.silence_max.as_millis()),
            None => return false,
        };
        *current = None;
        drop(current);
        tracing::warn!(target: "hygeia::kafka", reason, "the producer is replaced");
        metrics::counter!("hygeia_kafka_producers_replaced_total").increment(1);
        producer.purge(PurgeConfig::default().queue().inflight());
        true
    }

    /// Discards the producer. Its messages fail.
    pub(super) fn renew(&self) {
        if let Some(Current { native, .. }) = self.lock().take() {
            native.purge(PurgeConfig::default().queue().inflight());
            release(native);
        }
    }

    /// Passes the batch to librdkafka. Waits for room in the queue without a time limit.
    async fn enqueue(&self, producer: &Arc<Native>, batch: &[Outgoing], report: &Arc<BatchReport>) {
        for (index, message) in batch.iter().enumerate() {
            let bytes = wire_bytes(message);
            let mut ticket = Box::new(Ticket { batch: Arc::clone(report), index, bytes });
            while let Err((error, returned)) = producer.send(record(message, ticket)) {
                ticket = returned.delivery_opaque;
                if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                    ticket.failed(&error);
                    break;
                }
                tokio::time::sleep(QUEUE_FULL_PAUSE).await;
            }
        }
    }

    async fn reserve(&self, batch: &[Outgoing]) -> Option<(Arc<Gate>, Reservation)> {
        let (topic, gate) = self.gate.as_ref()?;
        let bytes = batch.iter().filter(|m| m.topic == *topic).map(wire_bytes).sum::<u64>();
        if bytes == 0 { None } else { Some((Arc::clone(gate), gate.reserve(bytes).await)) }
    }
}

#[async_trait]
impl Publisher for KafkaPublisher {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Delivery> {
        if batch.is_empty() {
            return Vec::new();
        }
        let claim = self.reserve(batch).await;
        let producer = match self.current() {
            Ok(producer) => producer,
            Err(error) => return vec![Delivery::Failed(error.to_string()); batch.len()],
        };
        let awaited = Awaited(BatchReport::new(batch.len(), claim));
        self.enqueue(&producer, batch, &awaited.0).await;
        let deadline = Instant::now() + self.report_timeout;
        // After the deadline, unreported messages count as failed, although they may be in the log.
        let _ = tokio::time::timeout_at(deadline, awaited.0.complete.notified()).await;
        let mut deliveries = awaited.0.deliveries();
        drop(awaited);
        if self.is_retired(&producer, &deliveries) {
            for delivery in &mut deliveries {
                if let Delivery::Failed(reason) = delivery {
                    *delivery = Delivery::ProducerLost(std::mem::take(reason));
                }
            }
        }
        release(producer);
        deliveries
    }
}

/// Drops a reference to a producer. Dropping the last one blocks until its threads end, so that happens on a
/// blocking thread.
fn release(producer: Arc<Native>) {
    if let Some(last) = Arc::into_inner(producer) {
        tokio::task::spawn_blocking(move || drop(last));
    }
}

fn record<'a>(message: &'a Outgoing, ticket: Box<Ticket>) -> BaseRecord<'a, [u8], [u8], Box<Ticket>> {
    let mut headers = OwnedHeaders::new_with_capacity(message.headers.len());
    for (key, value) in &message.headers {
        headers = headers.insert(Header { key, value: Some(value) });
    }
    BaseRecord {
        topic: &message.topic,
        partition: None,
        payload: message.value.as_deref(),
        key: message.key.as_deref(),
        timestamp: None,
        headers: Some(headers),
        delivery_opaque: ticket,
    }
}

fn wire_bytes(message: &Outgoing) -> u64 {
    let parts = message.key.as_ref().map_or(0, Vec::len) + message.value.as_ref().map_or(0, Vec::len);
    let headers: usize = message.headers.iter().map(|(k, v)| k.len() + v.len() + HEADER_OVERHEAD_BYTES).sum();
    (parts + headers + OVERHEAD_BYTES) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_batch_is_complete_when_each_message_was_reported_once() {
        let report = BatchReport::new(3, None);
        let ticket = |index| Ticket { batch: Arc::clone(&report), index, bytes: 10 };
        ticket(0).delivered(1, 7);
        ticket(2).delivered(1, 9);
        ticket(1).failed(&KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut));
        report.complete.notified().await;
        let state = report.lock();
        assert_eq!(state.landed, [(1, 9, 20)]);
        assert!(matches!(state.deliveries[1], Some(Delivery::Failed(_))));
    }

    async fn is_held(gate: &Arc<Gate>, bytes: u64) -> bool {
        tokio::time::timeout(Duration::from_millis(20), gate.reserve(bytes)).await.is_err()
    }

    #[tokio::test]
    async fn the_gate_hears_of_messages_that_are_reported_when_nobody_waits_any_more() {
        let gate = Arc::new(Gate::new(100));
        let claim = (Arc::clone(&gate), gate.reserve(60).await);
        let awaited = Awaited(BatchReport::new(3, Some(claim)));
        let ticket = |index| Ticket { batch: Arc::clone(&awaited.0), index, bytes: 20 };
        let (first, second, third) = (ticket(0), ticket(1), ticket(2));
        first.delivered(0, 5);
        drop(awaited);
        assert!(is_held(&gate, 30).await, "20 are unread, and the claim holds: 40 may still land");
        second.delivered(0, 6);
        third.failed(&KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut));
        assert!(!is_held(&gate, 60).await, "the claim ends with the last report");
        assert!(is_held(&gate, 61).await, "40 are unread");
        gate.applied(&[crate::kafka::Position { partition: 0, next_offset: 7 }]);
        assert!(!is_held(&gate, 100).await);
    }
}
