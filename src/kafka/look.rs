//! Reads single messages of the topic with a short-lived consumer that joins no group. Because the consumer
//! is new, it has no outdated metadata of the topic.

use std::collections::HashMap;

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use uuid::Uuid;

use super::client::{ClientEvents, Deadline, making};
use super::wire::EVENT_ID;
use super::{Error, Result};
use crate::domain::ids::EventId;
use crate::domain::topic_log::{LogAnchor, MessageSight};

/// The callbacks of the consumer.
struct LookEvents(ClientEvents);

impl ClientContext for LookEvents {
    fn log(&self, level: RDKafkaLogLevel, fac: &str, log_message: &str) {
        self.0.log(level, fac, log_message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.error(error, reason);
    }
}

impl ConsumerContext for LookEvents {}

/// Returns the messages at the places of `anchors`, at most one anchor per partition. Messages that no longer
/// exist are omitted. Blocks until `deadline` at most.
///
/// # Errors
/// `Away`: the broker did not deliver the messages in time. `Settings`: librdkafka rejects the settings.
pub(super) fn at(
    config: &ClientConfig,
    events: ClientEvents,
    topic: &str,
    anchors: &[LogAnchor],
    deadline: Deadline,
) -> Result<Vec<MessageSight>> {
    let consumer: BaseConsumer<LookEvents> =
        config.create_with_context(LookEvents(events)).map_err(|e| making(&e))?;
    let mut list = TopicPartitionList::with_capacity(anchors.len());
    let mut open: HashMap<i32, i64> = HashMap::new();
    for anchor in anchors {
        open.insert(anchor.partition, anchor.offset);
        list.add_partition_offset(topic, anchor.partition, Offset::Offset(anchor.offset))
            .map_err(|e| away(&e))?;
    }
    consumer.assign(&list).map_err(|e| away(&e))?;
    let mut found = Vec::new();
    while !open.is_empty() {
        if deadline.is_over() {
            return Err(Error::Away("the last known messages could not be read in time".into()));
        }
        match consumer.poll(deadline.left()) {
            Some(Ok(message)) => {
                // A later offset than requested means that the message no longer exists.
                let (partition, offset) = (message.partition(), message.offset());
                if open.remove(&partition) == Some(offset) {
                    found.push(MessageSight { partition, offset, event_id: event_id(&message) });
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            // The log was truncated between reading its ends and reading the message. The next call sees
            // that.
            Some(Err(error)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) => {
                return Err(away(&error));
            }
            // librdkafka retries after any other error, until the deadline.
            Some(Err(_)) | None => {}
        }
    }
    Ok(found)
}

fn event_id(message: &BorrowedMessage<'_>) -> Option<EventId> {
    let header = message.headers()?.iter().find(|header| header.key == EVENT_ID)?;
    let text = std::str::from_utf8(header.value?).ok()?;
    Uuid::try_parse(text).ok().map(EventId)
}

fn away(error: &KafkaError) -> Error {
    Error::Away(error.to_string())
}
