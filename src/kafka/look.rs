//! A look at single messages of the topic, by a consumer that joins no group and ends with the look: what it knows
//! of the topic is of this moment.

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

/// The ear of the consumer.
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

/// The messages at the places of `anchors`, one anchor of a partition at most. A message that is not there any more
/// is left out. Blocks until `deadline` at most.
///
/// # Errors
/// `Away`: the broker did not give them in time. `Settings`
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
                // One behind the place means that the message itself is gone.
                let (partition, offset) = (message.partition(), message.offset());
                if open.remove(&partition) == Some(offset) {
                    found.push(MessageSight { partition, offset, event_id: event_id(&message) });
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(open.remove(&partition)),
            // The log was cut between the look at its ends and this one: the next look sees that.
            Some(Err(error)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AutoOffsetReset) => {
                return Err(away(&error));
            }
            // Whatever else it is, librdkafka tries again, until the time is up.
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
