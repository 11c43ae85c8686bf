//! The relay from the outbox to Kafka, beside a bare producer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hygeia::context::TraceContext;
use hygeia::domain::event::RecordedEvent;
use hygeia::domain::ids::{CommandId, EventId, PatientId};
use hygeia::domain::patient::{Patient, PatientDetails, PatientEvent};
use hygeia::domain::time::Timestamp;
use hygeia::kafka::{Outgoing, Settings, wire};
use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer, DefaultConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use serde::{Deserialize, Serialize};
use time::macros::date;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::broker::{self, BARE, Broker, OURS, PARTITIONS};
use crate::node::Site;
use crate::patients::post_task;
use crate::report::{Reach, Report, Row};
use crate::stats::{Spread, by_turns, median};
use crate::{Effort, Result, load, pg, role, say};

const EVENTS: usize = 50_000;
const PATIENCE: Duration = Duration::from_secs(120);

/// Fills an outbox, and measures how fast a node publishes it: analytics reads along.
pub(crate) async fn run(effort: Effort, report: &mut Report) -> Result<()> {
    let server = pg::Postgres::shared();
    let database = server.create_database().await;
    let broker = broker::start().await?;
    let site = Site::on(database.url(), &broker.address)?;
    let node = site.start().await?;
    let token = node.token().await?;
    load::run(post_task(&node, &token, 64, "relay", EVENTS, None)).await?;
    node.stop().await?;

    let own = async |_| {
        let waiting = pg::refill_outbox(&database).await?;
        let rate = published_rate(&site, &broker, waiting).await?;
        say(&format!("relay {rate:.0}/s"));
        Ok(rate)
    };
    let bare = async |_| {
        let rate = bare_rate(&broker).await?;
        say(&format!("bare producer {rate:.0}/s"));
        Ok(rate)
    };
    let (ours, theirs) = by_turns(effort.rounds, own, bare).await?;
    report.add(Row {
        what: format!("relay, PostgreSQL to Kafka, {EVENTS} events"),
        beside: "bare rdkafka producer, same settings and messages, same broker".into(),
        ours: format!("{:.0} events/s", median(&ours)),
        yardstick: format!("{:.0} messages/s", median(&theirs)),
        ratio: Spread::of_ratios(&ours, &theirs),
        reach: Some(Reach::AtLeast(0.5)),
    });
    Ok(())
}

/// Messages per second of the bare producer, by the same clock as ours.
pub(crate) async fn bare_rate(broker: &Broker) -> Result<f64> {
    let watched = Watched::start(broker, BARE, EVENTS).await?;
    let task = ProducerTask { brokers: broker.address.clone(), messages: EVENTS };
    let () = role::done("producer", task).await?;
    watched.rate().await
}

/// Events per second of a node that is started beside an outbox in which `waiting` events are.
async fn published_rate(site: &Site, broker: &Broker, waiting: usize) -> Result<f64> {
    let watched = Watched::start(broker, OURS, waiting).await?;
    let node = site.spawn()?;
    let rate = watched.rate().await;
    node.stop().await?;
    rate
}

/// The clock of both sides: it starts with the first message that the broker has, and stops with the last.
struct Watched(JoinHandle<Result<f64>>);

impl Watched {
    /// Looks at `topic` from now on, until `expected` messages more are in it.
    async fn start(broker: &Broker, topic: &'static str, expected: usize) -> Result<Watched> {
        let brokers = broker.address.clone();
        let watch = tokio::task::spawn_blocking(move || -> Result<(Watch, usize)> {
            let watch = Watch::new(&brokers, topic)?;
            let before = watch.messages()?;
            Ok((watch, before))
        });
        let (watch, before) = watch.await??;
        Ok(Watched(tokio::task::spawn_blocking(move || watch.rate_of(before, expected))))
    }

    /// Messages per second, when all are there.
    async fn rate(self) -> Result<f64> {
        self.0.await?
    }
}

/// Looks at how much a topic holds.
struct Watch {
    consumer: BaseConsumer,
    topic: &'static str,
}

impl Watch {
    fn new(brokers: &str, topic: &'static str) -> Result<Watch> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("group.id", "bench");
        let consumer = BaseConsumer::from_config_and_context(&config, DefaultConsumerContext)?;
        Ok(Watch { consumer, topic })
    }

    fn messages(&self) -> Result<usize> {
        let mut sum = 0;
        for partition in 0..PARTITIONS {
            let (_, high) = self.consumer.fetch_watermarks(self.topic, partition, Duration::from_secs(10))?;
            sum += usize::try_from(high)?;
        }
        Ok(sum)
    }

    /// Messages per second, from the first one beyond `before` to the last of `expected`.
    fn rate_of(&self, before: usize, expected: usize) -> Result<f64> {
        let deadline = Instant::now() + PATIENCE;
        let mut first = None;
        while Instant::now() < deadline {
            let published = self.messages()? - before;
            match first {
                None if published > 0 => first = Some((Instant::now(), published)),
                Some((at, seen)) if published >= expected => {
                    return Ok((published - seen) as f64 / at.elapsed().as_secs_f64());
                }
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        Err(format!("not all of {expected} messages were published within {PATIENCE:?}").into())
    }
}

#[derive(Clone, Serialize, Deserialize)]
struct ProducerTask {
    brokers: String,
    messages: usize,
}

/// Counts what was delivered.
struct Deliveries(Arc<AtomicUsize>);

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if result.is_ok() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The other process: the bare producer. It ends when everything is acknowledged.
pub(crate) fn producer_role() -> Result<()> {
    let task: ProducerTask = role::task()?;
    let delivered = Arc::new(AtomicUsize::new(0));
    let mut config = ClientConfig::new();
    let ours = Settings::default();
    config
        .set("bootstrap.servers", &task.brokers)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("max.in.flight.requests.per.connection", "5")
        .set("partitioner", "murmur2_random")
        .set("linger.ms", ours.linger_ms.to_string())
        .set("queue.buffering.max.messages", ours.queue_max_messages.to_string())
        .set("queue.buffering.max.kbytes", (ours.queue_max_bytes / 1024).to_string())
        .set("socket.nagle.disable", "true");
    let producer: BaseProducer<Deliveries> =
        BaseProducer::from_config_and_context(&config, Deliveries(Arc::clone(&delivered)))?;
    // The connection and the producer's id are not what is measured.
    producer.client().fetch_metadata(Some(BARE), Duration::from_secs(10))?;
    let topic: Arc<str> = BARE.into();
    let messages: Vec<Prepared> = (0..task.messages).map(|number| Prepared::new(&topic, number)).collect();
    let began = Instant::now();
    for message in messages {
        message.send(&producer)?;
    }
    while delivered.load(Ordering::Relaxed) < task.messages {
        producer.poll(Duration::from_millis(100));
        if began.elapsed() > PATIENCE {
            return Err("not all messages were delivered".into());
        }
    }
    role::tell(&())
}

/// A message as our own producer would get it: key, value and headers.
struct Prepared {
    message: Outgoing,
    headers: OwnedHeaders,
}

impl Prepared {
    fn new(topic: &Arc<str>, number: usize) -> Prepared {
        let patient = Patient {
            restricted: false,
            id: PatientId(Uuid::now_v7()),
            version: 1,
            created_at: Timestamp(1_767_225_600_000_000),
            details: PatientDetails {
                name: "Bench Patient".into(),
                email: format!("relay-{number}@example.com").into(),
                address: "1 Bench Street, Benchtown".into(),
                date_of_birth: date!(1980 - 05 - 17),
                registered_date: date!(2026 - 01 - 02),
            },
        };
        let event = RecordedEvent {
            event_id: EventId(Uuid::now_v7()),
            command_id: CommandId(Uuid::now_v7()),
            at: patient.created_at,
            event: PatientEvent::Registered(Arc::new(patient)),
            subject: "bench".into(),
            traceparent: TraceContext::root().to_string().into(),
            fingerprint: None,
        };
        let message = wire::encode(topic, &event, &TraceContext::root());
        let headers = message.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(value) })
        });
        Prepared { message, headers }
    }

    /// Queues it; when the queue is full, waits for deliveries.
    fn send(self, producer: &BaseProducer<Deliveries>) -> Result<()> {
        let key = self.message.key.as_deref().unwrap_or_default();
        let value = self.message.value.as_deref().unwrap_or_default();
        let mut record = BaseRecord::to(BARE).key(key).payload(value).headers(self.headers);
        loop {
            match producer.send(record) {
                Ok(()) => {
                    producer.poll(Duration::ZERO);
                    return Ok(());
                }
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    producer.poll(Duration::from_millis(10));
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
    }
}
