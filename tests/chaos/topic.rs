//! What is in the topic.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hygeia::proto::patient::events::PatientEvent;
use prost::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{ClientConfig, Message};

/// How long the topic is read at most.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Every event of the topic, in the order of each partition. Takes what was there when it was asked.
pub(crate) async fn events(bootstrap: &str, topic: &str) -> Result<Vec<PatientEvent>, String> {
    let (bootstrap, topic) = (bootstrap.to_owned(), topic.to_owned());
    let reading = tokio::task::spawn_blocking(move || read_all(&bootstrap, &topic));
    reading.await.map_err(|error| error.to_string())?
}

fn read_all(bootstrap: &str, topic: &str) -> Result<Vec<PatientEvent>, String> {
    let said = |error: rdkafka::error::KafkaError| error.to_string();
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("group.id", "hygeia-chaos-reader");
    config.set("fetch.wait.max.ms", "20");
    let consumer: BaseConsumer = config.create().map_err(said)?;
    let metadata = consumer.fetch_metadata(Some(topic), ASK_TIMEOUT).map_err(said)?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    let mut list = TopicPartitionList::new();
    let mut missing = BTreeMap::new();
    for partition in 0..i32::try_from(partitions).map_err(|error| error.to_string())? {
        let (low, high) = consumer.fetch_watermarks(topic, partition, ASK_TIMEOUT).map_err(said)?;
        if low > 0 {
            return Err(format!("the broker has dropped the first {low} events of partition {partition}"));
        }
        if high > 0 {
            missing.insert(partition, high);
            list.add_partition_offset(topic, partition, Offset::Beginning).map_err(said)?;
        }
    }
    consumer.assign(&list).map_err(said)?;
    let deadline = Instant::now() + READ_TIMEOUT;
    let mut events = Vec::new();
    while !missing.is_empty() {
        if Instant::now() > deadline {
            return Err(format!("not read to the end in {READ_TIMEOUT:?}: {missing:?}"));
        }
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        let message = message.map_err(said)?;
        let value = message.payload().ok_or("a message without a value")?;
        events.push(PatientEvent::decode(value).map_err(|error| error.to_string())?);
        if missing.get(&message.partition()).is_some_and(|high| message.offset() + 1 >= *high) {
            missing.remove(&message.partition());
        }
    }
    Ok(events)
}
