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
use uuid::Uuid;

use crate::broker::{self, BARE, Broker, OURS, PARTITIONS};
use crate::node::Site;
use crate::patients::post_task;
use crate::report::{Reach, Report, Row};
use crate::stats::median;
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

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        theirs.push(bare_rate(&broker).await?);
        let waiting = pg::refill_outbox(&database).await?;
        ours.push(published_rate(&site, &broker, waiting).await?);
        let last = |rates: &[f64]| rates.last().copied().unwrap_or(f64::NAN);
        say(&format!("bare producer {:.0}/s, relay {:.0}/s", last(&theirs), last(&ours)));
    }
    let (our_rate, their_rate) = (median(&ours), median(&theirs));
    report.add(Row {
        what: format!("relay, PostgreSQL to Kafka, {EVENTS} events"),
        beside: "bare rdkafka producer, same settings and messages, same broker".into(),
        ours: format!("{our_rate:.0} events/s"),
        yardstick: format!("{their_rate:.0} messages/s"),
        ratio: our_rate / their_rate,
        reach: Some(Reach::AtLeast(0.5)),
    });
    Ok(())
}

/// Messages per second of the bare producer.
pub(crate) async fn bare_rate(broker: &Broker) -> Result<f64> {
    role::done("producer", ProducerTask { brokers: broker.address.clone(), messages: EVENTS }).await
}

/// Events per second from the first one that the broker has to the last.
async fn published_rate(site: &Site, broker: &Broker, waiting: usize) -> Result<f64> {
    let brokers = broker.address.clone();
    let before = tokio::task::spawn_blocking({
        let brokers = brokers.clone();
        move || Watch::new(&brokers)?.messages()
    })
    .await??;
    let watched = tokio::task::spawn_blocking(move || -> Result<f64> {
        let watch = Watch::new(&brokers)?;
        let deadline = Instant::now() + PATIENCE;
        let mut first = None;
        while Instant::now() < deadline {
            let published = watch.messages()? - before;
            match first {
                None if published > 0 => first = Some((Instant::now(), published)),
                Some((at, seen)) if published >= waiting => {
                    return Ok((published - seen) as f64 / at.elapsed().as_secs_f64());
                }
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        Err(format!("not all of {waiting} events were published within {PATIENCE:?}").into())
    });
    let node = site.spawn()?;
    let rate = watched.await?;
    node.stop().await?;
    rate
}

/// Looks at how much a topic holds.
struct Watch {
    consumer: BaseConsumer,
}

impl Watch {
    fn new(brokers: &str) -> Result<Watch> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("group.id", "bench");
        Ok(Watch { consumer: BaseConsumer::from_config_and_context(&config, DefaultConsumerContext)? })
    }

    fn messages(&self) -> Result<usize> {
        let mut sum = 0;
        for partition in 0..PARTITIONS {
            let (_, high) = self.consumer.fetch_watermarks(OURS, partition, Duration::from_secs(10))?;
            sum += usize::try_from(high)?;
        }
        Ok(sum)
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

/// The other process: the bare producer. Tells messages per second, from the first one sent to the last
/// acknowledgement.
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
    role::tell(&(task.messages as f64 / began.elapsed().as_secs_f64()))
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
