//! The broker, as three traits, and librdkafka behind them. Only this room names rdkafka.
//!
//! `Kafka::connect` gives the `Broker`: librdkafka's own mock cluster inside the process (`embedded`), or
//! the brokers named. The same producer and consumer code, over the real protocol, serves both.
//!
//! Invariants that callers rely on:
//! - A message that `Publisher::publish` calls delivered is in the log of its partition, acknowledged by
//!   all replicas in sync. One that failed may be in the log all the same.
//! - A `Consumer` reads nothing from a partition before `Consumer::start` has said from where.
//! - Queues here are bounded by `Settings`; a full one makes its feeder wait.
//! - No key, value or header of a message gets into a log line or an error.

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

/// Why the broker did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It cannot be reached or does not answer in time; later it may.
    #[error("the broker is away: {0}")]
    Away(String),
    /// The settings do not hold; trying again will not help.
    #[error("the settings of kafka do not hold: {0}")]
    Settings(String),
    /// The consumer has ended; a new one has to be made.
    #[error("the consumer has ended: {0}")]
    Ended(String),
}

/// The result of a call to the broker.
pub type Result<T> = std::result::Result<T, Error>;

/// Whether the broker can be reached, as far as its clients know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// The last that was heard of it was good, or nothing was heard yet.
    Up,
    /// No broker can be reached, and why.
    Away(String),
    /// The embedded broker is full of what has not been read: publishing waits for the reader.
    Full,
}

/// A message on its way out.
#[derive(Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The topic.
    pub topic: Arc<str>,
    /// The key: messages with the same key go to the same partition.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub value: Option<Vec<u8>>,
    /// Headers. Never patient data beyond the id.
    pub headers: Vec<(&'static str, String)>,
}

/// Never prints what it carries.
impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outgoing").field("topic", &self.topic).finish_non_exhaustive()
    }
}

/// The place of a message in its topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is in the log, at this place unless the broker only said that it has it already.
    Delivered(Option<Place>),
    /// It failed, for this reason, and may be published again.
    Failed(String),
    /// The broker does not take this message, for this reason: publishing it again will not help unless the
    /// broker's settings change.
    Refused(String),
    /// The producer could not go on and has been replaced; the message may be published again.
    ProducerLost(String),
}

impl Delivery {
    /// Whether the message is in the log for certain.
    pub fn is_delivered(&self) -> bool {
        matches!(self, Delivery::Delivered(_))
    }
}

/// Puts messages into topics. Idempotent within one producer, acknowledged by all replicas in sync.
#[async_trait]
pub trait Publisher: Send + Sync {
    /// Publishes the batch; answers for each message, in the order of the batch, and in bounded time once
    /// the queue has taken it. Messages of the same key may be reordered if one of them fails: a caller
    /// who cares has at most one of each key in flight.
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Delivery>;
}

/// Where to go on reading one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The partition.
    pub partition: i32,
    /// The next offset to read.
    pub next_offset: i64,
}

/// A message read.
#[derive(Clone, PartialEq, Eq)]
pub struct Incoming {
    /// Its partition.
    pub partition: i32,
    /// Its place in the partition.
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

/// Never prints what it carries.
impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming")
            .field("partition", &self.partition)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

/// Partitions given to this member of the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Which assignment of this consumer: a later one makes it void.
    pub id: u64,
    /// The partitions.
    pub partitions: Vec<i32>,
}

/// What a consumer has to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsumerEvent {
    /// The group has given these partitions; `Consumer::start` begins reading them.
    Assigned(Assignment),
    /// The group has taken all partitions back.
    Revoked,
    /// The next messages, each partition's in the order of offsets. Never empty.
    Messages(Vec<Incoming>),
}

/// A member of a consumer group. Nothing is committed to the broker: offsets are kept by the reader.
#[async_trait]
pub trait Consumer: Send + Sync {
    /// The next event. May be dropped while it waits: nothing is lost.
    ///
    /// # Errors
    /// `Ended`: make a new consumer.
    async fn next(&mut self) -> Result<ConsumerEvent>;

    /// Reads the partitions of `assignment` from these positions on; partitions left out, from their
    /// beginning. May be called again to go back: messages read before and not yet taken are dropped then.
    /// False if the assignment is void: another event is on its way.
    ///
    /// # Errors
    /// `Ended`: make a new consumer.
    async fn start(&mut self, assignment: u64, positions: &[Position]) -> Result<bool>;

    /// Says that what lies before these positions has taken effect, and need not be kept.
    fn applied(&self, positions: &[Position]);
}

/// The names used at the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The topic of patients' events.
    pub topic: Arc<str>,
    /// Where messages go that cannot be read.
    pub dead_letter_topic: Arc<str>,
    /// The consumer group of analytics.
    pub group: Arc<str>,
}

/// The broker as a whole.
#[async_trait]
pub trait Broker: Send + Sync {
    /// The id of the broker's cluster; for the embedded broker another one for each start, as it forgets at exit.
    /// Once known it does not change. Makes the topics that are missing at a real broker, if the settings say so.
    ///
    /// # Errors
    /// `Away`: ask again.
    async fn cluster_id(&self) -> Result<String>;

    /// Why the topic has another log than the one that the anchors are of; `None` if nothing says so. Makes a
    /// topic that is missing, if the settings say so.
    ///
    /// # Errors
    /// `Away`: ask again.
    async fn departure(&self, anchors: &[LogAnchor]) -> Result<Option<String>>;

    /// How long the topic keeps messages; `None` if for ever.
    ///
    /// # Errors
    /// `Away`: the broker did not say.
    async fn retention(&self) -> Result<Option<Duration>>;

    /// Gives up the producer: what it has not sent yet fails, and the next batch makes a new one, which knows
    /// nothing of an earlier log.
    fn renew_publisher(&self);

    /// The producer, shared by all who ask.
    fn publisher(&self) -> Arc<dyn Publisher>;

    /// A new member of the group, reading the topic.
    ///
    /// # Errors
    /// `Settings`
    async fn consumer(&self) -> Result<Box<dyn Consumer>>;

    /// What each partition of the topic holds.
    ///
    /// # Errors
    /// `Away`
    async fn watermarks(&self) -> Result<Vec<PartitionSight>>;

    /// Whether the broker can be reached, as last heard.
    fn link(&self) -> Link;

    /// Asks the broker whether it is there, in bounded time; `link` says it afterwards.
    ///
    /// # Errors
    /// `Away`
    async fn probe(&self) -> Result<()>;

    /// The names used there.
    fn names(&self) -> Names;
}
