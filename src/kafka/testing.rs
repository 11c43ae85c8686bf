//! Test support: settings with unique names, faults of the embedded broker, and reading a topic.
//!
//! If `HYGEIA_TEST_KAFKA` (bootstrap servers) is set, tests that need no faults run against those servers.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::Producer;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};

use super::{EMBEDDED, Incoming, Kafka, Settings};

/// How long a test waits for an expected event.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Returns settings for the embedded broker with a topic and a group for this test only.
pub(crate) fn embedded(test: &str) -> Settings {
    let unique = uuid::Uuid::now_v7().simple().to_string();
    Settings {
        topic: format!("{test}-{unique}"),
        dead_letter_topic: format!("{test}-{unique}.dlq"),
        group: format!("{test}-{unique}"),
        delivery_timeout_ms: 5_000,
        request_timeout_ms: 2_000,
        metadata_timeout_ms: 2_000,
        // A mock broker in another process does not wake a waiting fetch either.
        fetch_wait_ms: 40,
        ..Settings::default()
    }
}

/// Returns the same for the broker in `HYGEIA_TEST_KAFKA`, if set.
pub(crate) fn settings(test: &str) -> Settings {
    let brokers = std::env::var("HYGEIA_TEST_KAFKA").unwrap_or_else(|_| EMBEDDED.into());
    Settings { brokers, ..embedded(test) }
}

/// The error that the broker returns instead of accepting a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Refusal {
    /// Too few replicas: the producer retries.
    NotEnoughReplicas,
    /// Not the leader: the producer looks up the leader and retries.
    NotLeader,
    /// The broker drops the connection.
    Disconnect,
    /// Writing to the topic is forbidden: the message fails.
    NotAllowed,
    /// The broker has lost the producer's sequence: the producer fails permanently.
    Desynchronized,
}

impl Refusal {
    fn code(self) -> RDKafkaRespErr {
        match self {
            Refusal::NotEnoughReplicas => RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
            Refusal::NotLeader => RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
            Refusal::Disconnect => RDKafkaRespErr::RD_KAFKA_RESP_ERR__TRANSPORT,
            Refusal::Desynchronized => RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
            Refusal::NotAllowed => RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED,
        }
    }
}

/// Faults of the embedded broker.
impl Kafka {
    pub(crate) fn go_down(&self) {
        self.with_control(|c| c.client().mock_cluster().expect("embedded").broker_down(-1).expect("down"));
    }

    pub(crate) fn come_up(&self) {
        self.with_control(|c| c.client().mock_cluster().expect("embedded").broker_up(-1).expect("up"));
    }

    /// Makes the next produce requests fail with these errors, one after another.
    pub(crate) fn refuse(&self, refusals: &[Refusal]) {
        let codes: Vec<_> = refusals.iter().map(|r| r.code()).collect();
        self.with_control(|c| {
            let broker = c.client().mock_cluster().expect("embedded");
            broker.request_errors(RDKafkaApiKey::Produce, &codes);
        });
    }

    /// Makes every fetch fail from now on.
    pub(crate) fn serve_nothing(&self) {
        self.with_control(|c| {
            let broker = c.client().mock_cluster().expect("embedded");
            broker.request_errors(RDKafkaApiKey::Fetch, &[Refusal::NotLeader.code(); 10_000]);
        });
    }

    /// Serves fetches again.
    pub(crate) fn serve_again(&self) {
        self.with_control(|c| {
            c.client().mock_cluster().expect("embedded").clear_request_errors(RDKafkaApiKey::Fetch);
        });
    }

    /// Accepts produce requests again.
    pub(crate) fn refuse_no_more(&self) {
        self.with_control(|c| {
            c.client().mock_cluster().expect("embedded").clear_request_errors(RDKafkaApiKey::Produce);
        });
    }
}

/// Reads `topic` from its beginning until `enough` returns true or `PATIENCE` is over.
pub(crate) async fn read_topic(
    kafka: &Kafka,
    topic: &str,
    enough: impl Fn(&[Incoming]) -> bool + Send + 'static,
) -> Vec<Incoming> {
    let (bootstrap, topic) = (kafka.bootstrap_servers().to_owned(), topic.to_owned());
    let read = tokio::task::spawn_blocking(move || read_blocking(&bootstrap, &topic, &enough));
    read.await.expect("read")
}

fn read_blocking(bootstrap: &str, topic: &str, enough: &dyn Fn(&[Incoming]) -> bool) -> Vec<Incoming> {
    let deadline = Instant::now() + PATIENCE;
    let mut config = rdkafka::ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("group.id", "looking").set("fetch.wait.max.ms", "20");
    let consumer: BaseConsumer = config.create().expect("consumer");
    let partitions = loop {
        let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(5)).expect("metadata");
        let found = metadata.topics().first().map_or(0, |t| t.partitions().len());
        if found > 0 {
            break found;
        }
        assert!(Instant::now() < deadline, "no topic {topic}");
    };
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition as i32, Offset::Beginning).expect("partition");
    }
    consumer.assign(&list).expect("assign");
    let mut messages = Vec::new();
    while !enough(&messages) && Instant::now() < deadline {
        if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
            messages.push(super::consumer::incoming(&message));
        }
    }
    messages
}
