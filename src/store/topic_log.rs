//! Which log of the topic events are published to, and what a new one has to be told again.
//!
//! A new log gets the next number. It is filled by a replay: events of earlier logs are put back into the outbox,
//! in the order of patients and versions, a bounded number per call. The place that the replay has reached is in
//! the database, so a restart goes on from there. A patient who has a new event before the replay has come to them
//! is put back out of turn (`replay_waiting`). Until the replay is done, a reader of the outbox gets the rows of
//! those patients only whose events are all put back: so the order of each patient's events holds.

use async_trait::async_trait;

use super::Result;
use crate::domain::ids::PatientId;
use crate::domain::time::Timestamp;
use crate::domain::topic_log::LogAnchor;

/// The log of a topic that events are published to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicLog {
    /// Its number: 1 for the first, and one more for each that took its place.
    pub no: i64,
    /// The name that marks in the outbox and offsets of analytics are kept under.
    pub name: String,
    /// The id of the broker's cluster.
    pub cluster: String,
    /// The topic.
    pub topic: String,
    /// When it was first seen.
    pub began_at: Timestamp,
    /// Why it took the place of the one before.
    pub reason: String,
    /// Whether everything that it must hold is put back into the outbox.
    pub replay_done: bool,
    /// How many events were put back for it.
    pub replayed_rows: u64,
}

/// What a new log has to be told of what earlier ones had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// Only what analytics has not counted; see `OutboxStore::republish_forgotten`.
    Uncounted,
    /// All events since this moment.
    Since(Timestamp),
}

/// A log that takes the place of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextLog {
    /// The number of the log whose place it takes; zero if none is known.
    pub after: i64,
    /// `TopicLog::cluster`
    pub cluster: String,
    /// `TopicLog::topic`
    pub topic: String,
    /// `TopicLog::began_at`
    pub at: Timestamp,
    /// `TopicLog::reason`
    pub reason: String,
    /// What it has to be told.
    pub replay: Replay,
}

impl NextLog {
    /// The name of the log. The first one has the bare name of its cluster, under which programs from before logs
    /// had numbers kept their marks and offsets.
    pub(super) fn name(&self) -> String {
        match self.after {
            0 => self.cluster.clone(),
            after => format!("{}#{}", self.cluster, after + 1),
        }
    }

    /// `replay_since` and `replay_done`
    pub(super) fn replay_columns(&self) -> (Option<i64>, bool) {
        match self.replay {
            Replay::Uncounted => (None, true),
            Replay::Since(at) => (Some(at.0), false),
        }
    }
}

/// What a step of a replay did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Events put back.
    pub rows: u64,
    /// Nothing is left to be put back.
    pub done: bool,
}

/// The log of the topic.
#[async_trait]
pub trait TopicLogStore: Send + Sync {
    /// The log in use; `None` before the first.
    async fn topic_log(&self) -> Result<Option<TopicLog>>;

    /// What is known to be in the log `no`: the last event marked in each partition, and the message before each
    /// offset that analytics has reached.
    async fn log_anchors(&self, no: i64) -> Result<Vec<LogAnchor>>;

    /// Notes that `next` takes the place of `next.after`, unless another log has done so already. Answers with the
    /// log in use afterwards. Marks for the log before have no effect from then on. A first log whose offsets or
    /// marks are known from before logs had numbers needs no replay.
    async fn begin_log(&self, next: &NextLog) -> Result<TopicLog>;

    /// Puts back all events of patients who have a row among the first `rows_max` of the outbox (besides those
    /// `known` and those parked at `now`) and whose turn has not come. Answers with the number of those patients.
    async fn replay_waiting(&self, no: i64, known: &[i64], now: Timestamp, rows_max: u32) -> Result<u64>;

    /// Puts back what is due of the next `rows_max` events.
    async fn replay_next(&self, no: i64, rows_max: u32) -> Result<Replayed>;
}

/// What reads the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Events that wait for Kafka.
    Kafka,
    /// Registrations that wait for an account.
    Billing,
}

impl Queue {
    /// As it stands in the database and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Queue::Kafka => "kafka",
            Queue::Billing => "billing",
        }
    }
}

/// A row to be parked: neither it nor what follows it for its patient is read before `retry_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParkRow {
    /// `OutboxEvent::seq`
    pub seq: i64,
    /// Whose event it is.
    pub patient_id: PatientId,
    /// How often the row is parked with this time.
    pub parks: u32,
    /// When it is tried again.
    pub retry_at: Timestamp,
    /// Why, in a word.
    pub reason: &'static str,
}
