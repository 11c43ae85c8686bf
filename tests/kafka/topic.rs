//! What tests do with a topic: change it, write foreign messages into it, and read everything that is in it.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test stops at its first surprise")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{ClientConfig, Message as _};

/// How long a topic is read at most.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one question to the broker may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// A message as the broker keeps it.
#[derive(Clone, Debug)]
pub struct Message {
    pub partition: i32,
    pub offset: i64,
    /// When its producer says it was made, in milliseconds since 1970.
    pub at_ms: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
}

fn config(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    config
}

fn admin(bootstrap: &str) -> AdminClient<DefaultClientContext> {
    config(bootstrap).create().expect("a client")
}

fn within_limits() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(ASK_TIMEOUT)).request_timeout(Some(ASK_TIMEOUT))
}

/// Deletes a topic with everything in it.
pub async fn delete(bootstrap: &str, topic: &str) {
    let deleted = admin(bootstrap).delete_topics(&[topic], &within_limits()).await.expect("an answer");
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
}

/// Gives a topic more partitions: `count` in all.
pub async fn add_partitions(bootstrap: &str, topic: &str, count: usize) {
    let more = NewPartitions::new(topic, count);
    let added = admin(bootstrap).create_partitions([&more], &within_limits()).await.expect("an answer");
    assert!(added.iter().all(Result::is_ok), "{added:?}");
}

/// The key and the value of a message that is none of ours.
pub type Foreign = (Option<Vec<u8>>, Option<Vec<u8>>);

/// Writes messages that are none of ours, each of them acknowledged.
pub async fn write(bootstrap: &str, topic: &str, messages: &[Foreign]) {
    let producer: FutureProducer = config(bootstrap).create().expect("a producer");
    for (key, value) in messages {
        let mut record: FutureRecord<'_, [u8], [u8]> = FutureRecord::to(topic);
        record.key = key.as_deref();
        record.payload = value.as_deref();
        producer.send(record, ASK_TIMEOUT).await.expect("acknowledged");
    }
}

/// Every message of a topic, in the order of each partition. Takes what was there when it was asked.
///
/// # Errors
/// The topic is not there, or could not be read, in words.
pub async fn read(bootstrap: &str, topic: &str) -> Result<Vec<Message>, String> {
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
    let reading = tokio::task::spawn_blocking(move || read_all(&bootstrap, &topic));
    reading.await.map_err(|error| error.to_string())?
}

fn read_all(bootstrap: &str, topic: &str) -> Result<Vec<Message>, String> {
    let said = |error: rdkafka::error::KafkaError| error.to_string();
    let mut config = config(bootstrap);
    config.set("group.id", "hygeia-test-reader").set("fetch.wait.max.ms", "20");
    let consumer: BaseConsumer = config.create().map_err(said)?;
    let metadata = consumer.fetch_metadata(Some(topic), ASK_TIMEOUT).map_err(said)?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    let mut list = TopicPartitionList::new();
    let mut ends = BTreeMap::new();
    for partition in 0..i32::try_from(partitions).map_err(|error| error.to_string())? {
        let (low, high) = consumer.fetch_watermarks(topic, partition, ASK_TIMEOUT).map_err(said)?;
        if high > low {
            ends.insert(partition, high);
            list.add_partition_offset(topic, partition, Offset::Beginning).map_err(said)?;
        }
    }
    consumer.assign(&list).map_err(said)?;
    let deadline = Instant::now() + READ_TIMEOUT;
    let mut messages = Vec::new();
    while !ends.is_empty() {
        if Instant::now() > deadline {
            return Err(format!("not read to the end in {READ_TIMEOUT:?}: {ends:?}"));
        }
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message.map_err(said)?;
        let (partition, offset) = (message.partition(), message.offset());
        messages.push(Message {
            partition,
            offset,
            at_ms: message.timestamp().to_millis().unwrap_or_default(),
            key: message.key().map(<[u8]>::to_vec),
            value: message.payload().map(<[u8]>::to_vec),
        });
        if ends.get(&partition).is_some_and(|end| offset + 1 >= *end) {
            ends.remove(&partition);
        }
    }
    Ok(messages)
}
