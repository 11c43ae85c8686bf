//! The consumer: a thread that owns the librdkafka consumer, and a handle that talks to it.
//!
//! All work of the consumer happens on its thread, and all its output goes through one channel with one slot,
//! in order. So a caller that holds a batch also blocks the thread, and read-ahead stays within librdkafka's
//! own limits. The thread does *not* start to read on an assignment: librdkafka waits for `assign`, which
//! `start` calls with the positions from the caller's database. The reply to `start` comes through the same
//! channel, so every message before it was read from the old positions and is dropped.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use tokio::sync::mpsc;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::client::{ClientEvents, LinkState, making};
use super::gate::Gate;
use super::{Assignment, Consumer, ConsumerEvent, Error, Incoming, Position, Result, Settings};

/// How long the thread waits for a message before it checks for orders.
const POLL: Duration = Duration::from_millis(100);
/// The same, while an assignment waits for its positions.
const POLL_FOR_START: Duration = Duration::from_millis(5);

type Native = BaseConsumer<ConsumerEvents>;

/// The callbacks of the consumer.
struct ConsumerEvents {
    client: ClientEvents,
    rebalanced: Mutex<Vec<Rebalanced>>,
}

enum Rebalanced {
    Assigned(Vec<i32>),
    Revoked,
}

impl ClientContext for ConsumerEvents {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, log_message: &str) {
        self.client.log(level, fac, log_message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.client.error(error, reason);
    }
}

impl ConsumerContext for ConsumerEvents {
    /// Handles a revocation at once, but leaves an assignment to `start`: see the module documentation.
    fn rebalance(&self, consumer: &Native, err: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let event = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                Rebalanced::Assigned(list.elements().iter().map(|e| e.partition()).collect())
            }
            _ => {
                if let Err(error) = consumer.unassign() {
                    tracing::warn!(target: "hygeia::kafka", %error, "partitions could not be given back");
                }
                Rebalanced::Revoked
            }
        };
        self.rebalanced.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}

enum Told {
    Event(ConsumerEvent),
    /// The reply to an order.
    Started(bool),
    Ended(String),
}

struct StartOrder {
    assignment: u64,
    positions: Vec<Position>,
}

/// The handle of the consumer.
pub(super) struct KafkaConsumer {
    told: mpsc::Receiver<Told>,
    orders: std::sync::mpsc::SyncSender<StartOrder>,
    /// Events that arrived while a reply was awaited.
    pending: VecDeque<ConsumerEvent>,
    gate: Option<Arc<Gate>>,
}

impl KafkaConsumer {
    /// Joins the group and starts the thread, which holds `member` until it has left the group.
    pub(super) fn join(
        settings: &Settings,
        config: &ClientConfig,
        link: LinkState,
        gate: Option<Arc<Gate>>,
        member: TaskTrackerToken,
    ) -> Result<Self> {
        let events =
            ConsumerEvents { client: ClientEvents::new("consumer", link), rebalanced: Mutex::default() };
        let native: Native = config.create_with_context(events).map_err(|e| making(&e))?;
        native.subscribe(&[settings.topic.as_str()]).map_err(|e| making(&e))?;
        let (tell, told) = mpsc::channel(1);
        let (orders, orders_in) = std::sync::mpsc::sync_channel(1);
        let reader = Reader {
            native,
            topic: settings.topic.clone(),
            tell,
            orders: orders_in,
            bounds: Bounds {
                messages: settings.batch_max_messages,
                bytes: settings.batch_max_bytes,
                wait: Duration::from_millis(settings.batch_wait_ms),
            },
            assignments: 0,
            assigned: None,
            started: false,
        };
        std::thread::Builder::new()
            .name("kafka-consumer".into())
            .spawn(move || {
                reader.run();
                // Drop the token only now, after the consumer has left the group.
                drop(member);
            })
            .map_err(|e| Error::Settings(format!("no thread for the consumer: {e}")))?;
        Ok(KafkaConsumer { told, orders, pending: VecDeque::new(), gate })
    }

    async fn hear(&mut self) -> Result<Told> {
        match self.told.recv().await {
            Some(Told::Ended(reason)) => Err(Error::Ended(reason)),
            Some(told) => Ok(told),
            None => Err(Error::Ended("its thread is gone".into())),
        }
    }
}

#[async_trait]
impl Consumer for KafkaConsumer {
    async fn next(&mut self) -> Result<ConsumerEvent> {
        if let Some(event) = self.pending.pop_front() {
            return Ok(event);
        }
        loop {
            // A reply here belongs to a call of `start` that was cancelled.
            if let Told::Event(event) = self.hear().await? {
                return Ok(event);
            }
        }
    }

    async fn start(&mut self, assignment: u64, positions: &[Position]) -> Result<bool> {
        let order = StartOrder { assignment, positions: positions.to_vec() };
        if self.orders.try_send(order).is_err() {
            return Err(Error::Ended("it takes no orders".into()));
        }
        loop {
            match self.hear().await? {
                Told::Started(started) => {
                    if started {
                        self.applied(positions);
                    }
                    return Ok(started);
                }
                Told::Event(ConsumerEvent::Messages(_)) => {}
                Told::Event(event) => self.pending.push_back(event),
                Told::Ended(reason) => return Err(Error::Ended(reason)),
            }
        }
    }

    fn applied(&self, positions: &[Position]) {
        if let Some(gate) = &self.gate {
            gate.applied(positions);
        }
    }
}

#[derive(Clone, Copy)]
struct Bounds {
    messages: usize,
    bytes: usize,
    wait: Duration,
}

/// The state of the thread, which ends when the handle is dropped.
struct Reader {
    native: Native,
    topic: String,
    tell: mpsc::Sender<Told>,
    orders: std::sync::mpsc::Receiver<StartOrder>,
    bounds: Bounds,
    assignments: u64,
    assigned: Option<Vec<i32>>,
    started: bool,
}

impl Reader {
    fn run(mut self) {
        while self.turn() {}
        // Leaving the group blocks until a pending assignment is accepted or given back.
        if let Err(error) = self.native.unassign() {
            tracing::debug!(target: "hygeia::kafka", %error, "partitions could not be given back");
        }
    }

    /// Handles one order, the next messages and pending rebalances. Returns false when the thread has to end.
    fn turn(&mut self) -> bool {
        if let Ok(order) = self.orders.try_recv() {
            let answer = self.take(&order);
            let goes_on = answer.is_ok();
            if !self.say(answer.map_or_else(Told::Ended, Told::Started)) || !goes_on {
                return false;
            }
        }
        let wait = if self.assigned.is_some() && !self.started { POLL_FOR_START } else { POLL };
        let gathered = self.gather(wait);
        match gathered {
            Ok(messages) if messages.is_empty() => {}
            Ok(messages) => {
                self.native.context().client.link().up();
                if !self.say(Told::Event(ConsumerEvent::Messages(messages))) {
                    return false;
                }
            }
            Err(reason) => {
                self.say(Told::Ended(reason));
                return false;
            }
        }
        self.tell_rebalances() && !self.tell.is_closed()
    }

    fn say(&self, told: Told) -> bool {
        self.tell.blocking_send(told).is_ok()
    }

    fn tell_rebalances(&mut self) -> bool {
        let events = std::mem::take(
            &mut *self.native.context().rebalanced.lock().unwrap_or_else(PoisonError::into_inner),
        );
        events.into_iter().all(|event| {
            self.started = false;
            self.assigned = None;
            let event = match event {
                Rebalanced::Revoked => ConsumerEvent::Revoked,
                Rebalanced::Assigned(partitions) => {
                    self.assignments += 1;
                    self.assigned = Some(partitions.clone());
                    ConsumerEvent::Assigned(Assignment { id: self.assignments, partitions })
                }
            };
            self.say(Told::Event(event))
        })
    }

    /// Assigns the partitions at these positions. Returns false if the assignment is void by now.
    fn take(&mut self, order: &StartOrder) -> std::result::Result<bool, String> {
        let current = order.assignment == self.assignments;
        let Some(partitions) = self.assigned.as_ref().filter(|_| current) else { return Ok(false) };
        positioned(&self.topic, partitions, &order.positions)
            .and_then(|list| self.native.assign(&list))
            .map_err(|error| error.to_string())?;
        self.started = true;
        Ok(true)
    }

    /// Waits for the first message and returns it with the available further ones, bounded in number, bytes
    /// and time.
    fn gather(&self, wait: Duration) -> std::result::Result<Vec<Incoming>, String> {
        let mut messages = Vec::new();
        let mut bytes = 0;
        let mut since = Instant::now();
        let mut timeout = wait;
        while let Some(polled) = self.native.poll(timeout) {
            match polled {
                Ok(message) => {
                    if messages.is_empty() {
                        since = Instant::now();
                    }
                    bytes += message.payload_len() + message.key_len();
                    messages.push(incoming(&message));
                }
                Err(KafkaError::MessageConsumptionFatal(code)) => return Err(code.to_string()),
                // librdkafka recovers from all other errors. The error callback has already recorded an
                // unreachable broker.
                Err(error) if is_about_link(&error) => {}
                Err(error) => tracing::warn!(target: "hygeia::kafka", %error, "while reading"),
            }
            let full = messages.len() >= self.bounds.messages
                || bytes >= self.bounds.bytes
                || since.elapsed() >= self.bounds.wait.max(wait);
            if full {
                break;
            }
            timeout = Duration::ZERO;
        }
        Ok(messages)
    }
}

fn is_about_link(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{AllBrokersDown, BrokerTransportFailure, Resolve};
    matches!(error.rdkafka_error_code(), Some(AllBrokersDown | BrokerTransportFailure | Resolve))
}

fn positioned(topic: &str, partitions: &[i32], positions: &[Position]) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for partition in partitions {
        let known = positions.iter().find(|p| p.partition == *partition);
        let offset = known.map_or(Offset::Beginning, |p| Offset::Offset(p.next_offset));
        list.add_partition_offset(topic, *partition, offset)?;
    }
    Ok(list)
}

pub(super) fn incoming(message: &BorrowedMessage<'_>) -> Incoming {
    let traceparent = message.headers().and_then(|headers| {
        let header = headers.iter().find(|h| h.key == super::wire::TRACEPARENT)?;
        header.value.and_then(|v| std::str::from_utf8(v).ok()).map(str::to_owned)
    });
    Incoming {
        partition: message.partition(),
        offset: message.offset(),
        published_at_us: message.timestamp().to_millis().unwrap_or(0).saturating_mul(1_000),
        key: message.key().map(<[u8]>::to_vec),
        value: message.payload().map(<[u8]>::to_vec),
        traceparent,
    }
}
