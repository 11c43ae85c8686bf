//! Access to the Kafka broker: three traits, and their implementation with librdkafka. Only this module names
//! rdkafka.
//!
//! `Kafka::connect` returns the `Broker`: either librdkafka's mock cluster inside the process (`embedded`) or
//! the configured brokers. Both use the same producer and consumer code and the real protocol.
//!
//! Invariants that callers rely on:
//! - A message that `Publisher::publish` reports as delivered is in the log of its partition, acknowledged by
//!   all in-sync replicas. A message reported as failed may still be in the log.
//! - A `Consumer` reads nothing from a partition before `Consumer::start` has set the position.
//! - Queues are bounded by `Settings`. A full queue makes the sender wait.
//! - No key, value or header of a message appears in a log line or an error.

mod client;
mod connect;
mod consumer;
mod gate;
mod look;
mod producer;
mod settings;
pub mod wire;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::domain::topic_log::{LogAnchor, PartitionSight};

pub use self::connect::Kafka;
pub use self::settings::{EMBEDDED, Properties, Secret, SecurityProtocol, Settings};

/// Why a call to the broker failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The broker cannot be reached or did not answer in time. A later call may succeed.
    #[error("the broker is away: {0}")]
    Away(String),
    /// The settings are not valid. A retry does not help.
    #[error("the settings of kafka do not hold: {0}")]
    Settings(String),
    /// The consumer has ended. The caller has to create a new one.
    #[error("the consumer has ended: {0}")]
    Ended(String),
}

/// The result of a call to the broker.
pub type Result<T> = std::result::Result<T, Error>;

/// Whether the broker can be reached, as last seen by its clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// The last contact succeeded, or there was none yet.
    Up,
    /// No broker can be reached, for this reason.
    Away(String),
    /// The embedded broker is full of unread messages. Publishing waits for the consumer.
    Full,
}

/// A message to publish.
#[derive(Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The topic.
    pub topic: Arc<str>,
    /// The key: messages with the same key go to the same partition.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub value: Option<Vec<u8>>,
    /// The headers. Never contain patient data beyond the id.
    pub headers: Vec<(&'static str, String)>,
}

/// Never prints the content.
impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing").field("topic", &self.topic).finish_non_exhaustive()
    }
}

/// The position of a message in its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// The result of publishing a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The message is in the log. The place is `None` if the broker only reported that it already had the
    /// message.
    Delivered(Option<Place>),
    /// Publishing failed, for this reason. The message may be published again.
    Failed(String),
    /// The broker rejects this message, for this reason. Publishing it again does not help unless the
    /// broker's settings change.
    Refused(String),
    /// The producer failed permanently and has been replaced. The message may be published again.
    ProducerLost(String),
}

impl Delivery {
    /// Returns whether the message is certainly in the log.
    pub fn is_delivered(&self) -> bool {
        matches!(self, Delivery::Delivered(_))
    }
}

/// Publishes messages to topics. Idempotent within one producer; acknowledged by all in-sync replicas.
#[async_trait]
pub trait Publisher: Send + Sync {
    /// Publishes the batch and returns the result of each message, in the order of the batch. The time is
    /// bounded once the queue has accepted the batch. Messages with the same key may be reordered if one of
    /// them fails; a caller that needs their order has at most one message per key in flight.
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Delivery>;
}

/// Where to continue reading a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The partition.
    pub partition: i32,
    /// The next offset to read.
    pub next_offset: i64,
}

/// A message that was read.
#[derive(Clone, PartialEq, Eq)]
pub struct Incoming {
    /// The partition of the message.
    pub partition: i32,
    /// The offset of the message in its partition.
    pub offset: i64,
    /// When it was published, in microseconds since 1970-01-01T00:00:00Z; zero if unknown.
    pub published_at_us: i64,
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub value: Option<Vec<u8>>,
    /// The header `traceparent`, if it is text.
    pub traceparent: Option<String>,
}

/// Never prints the content.
impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming")
            .field("partition", &self.partition)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

/// The partitions assigned to this member of the consumer group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The number of the assignment within this consumer. A later assignment makes an earlier one void.
    pub id: u64,
    /// The partitions.
    pub partitions: Vec<i32>,
}

/// An event of a consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsumerEvent {
    /// The group assigned these partitions. `Consumer::start` begins to read them.
    Assigned(Assignment),
    /// The group revoked all partitions.
    Revoked,
    /// The next messages, in the order of offsets within each partition. Never empty.
    Messages(Vec<Incoming>),
}

/// A member of a consumer group. Offsets are not committed to the broker; the caller stores them.
#[async_trait]
pub trait Consumer: Send + Sync {
    /// Returns the next event. Cancel safe: no event is lost if the future is dropped.
    ///
    /// # Errors
    /// `Ended`: the caller has to create a new consumer.
    async fn next(&mut self) -> Result<ConsumerEvent>;

    /// Starts to read the partitions of `assignment` at these positions; partitions without a position are
    /// read from the beginning. May be called again to go back: messages that were read but not yet returned
    /// are then dropped. Returns false if the assignment is void; another event follows.
    ///
    /// # Errors
    /// `Ended`: the caller has to create a new consumer.
    async fn start(&mut self, assignment: u64, positions: &[Position]) -> Result<bool>;

    /// Reports that everything before these positions has taken effect and need not be kept.
    fn applied(&self, positions: &[Position]);
}

/// The names of topics and groups at the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The topic of patient events.
    pub topic: Arc<str>,
    /// The topic for messages that cannot be read.
    pub dead_letter_topic: Arc<str>,
    /// The consumer group of analytics.
    pub group: Arc<str>,
}

/// The broker.
#[async_trait]
pub trait Broker: Send + Sync {
    /// Returns the id of the broker's cluster. The embedded broker has a new id at each start, because its
    /// contents are lost at exit. The id does not change once known. Creates missing topics at an external
    /// broker if the settings say so.
    ///
    /// # Errors
    /// `Away`: the broker did not answer; the caller may retry.
    async fn cluster_id(&self) -> Result<String>;

    /// Returns why the topic has another log than the one the anchors belong to; `None` if nothing indicates
    /// that. Creates a missing topic if the settings say so.
    ///
    /// # Errors
    /// `Away`: the broker did not answer; the caller may retry.
    async fn departure(&self, anchors: &[LogAnchor]) -> Result<Option<String>>;

    /// Returns how long the topic keeps messages; `None` if forever.
    ///
    /// # Errors
    /// `Away`: the broker did not answer.
    async fn retention(&self) -> Result<Option<Duration>>;

    /// Discards the producer. Its unsent messages fail. The next batch creates a new producer, which has no
    /// state from an earlier log.
    fn renew_publisher(&self);

    /// Returns the producer, which all callers share.
    fn publisher(&self) -> Arc<dyn Publisher>;

    /// Creates a new member of the consumer group, subscribed to the topic.
    ///
    /// # Errors
    /// `Settings`: librdkafka rejects the settings.
    async fn consumer(&self) -> Result<Box<dyn Consumer>>;

    /// Returns the offsets that each partition of the topic holds.
    ///
    /// # Errors
    /// `Away`: the broker did not answer.
    async fn watermarks(&self) -> Result<Vec<PartitionSight>>;

    /// Returns whether the broker can be reached, as last seen.
    fn link(&self) -> Link;

    /// Checks whether the broker answers, in bounded time. `link` returns the result afterwards.
    ///
    /// # Errors
    /// `Away`: the broker did not answer.
    async fn probe(&self) -> Result<()>;

    /// Returns the names of the topics and the group.
    fn names(&self) -> Names;
}
