//! The log of the Kafka topic that events are published to, and the replay of events into a new log.
//!
//! A new log gets the next number and is filled by a replay. The replay puts events of earlier logs back into
//! the outbox, in the order of patients and versions, a bounded number per call. Its position is in the
//! database, so a restart continues from there. A patient with a new event who is still ahead of that
//! position is put back out of turn (`replay_waiting`). Until the replay is done, a reader of the outbox sees
//! only rows of patients whose events are all put back. That preserves the order of each patient's events.

use async_trait::async_trait;

use super::Result;
use crate::domain::ids::PatientId;
use crate::domain::time::Timestamp;
use crate::domain::topic_log::LogAnchor;

/// The log of a topic that events are published to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicLog {
    /// The log's number: 1 for the first log, and one more for each replacement.
    pub no: i64,
    /// The name under which outbox marks and the offsets of analytics are stored.
    pub name: String,
    /// The id of the broker's cluster.
    pub cluster: String,
    /// The topic.
    pub topic: String,
    /// When the log was first seen.
    pub began_at: Timestamp,
    /// Why the log replaced the previous one.
    pub reason: String,
    /// Whether all events that the log must hold are put back into the outbox.
    pub replay_done: bool,
    /// Number of events put back for this log.
    pub replayed_rows: u64,
}

/// Which events of earlier logs a new log needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// Only events that analytics has not counted; see `OutboxStore::republish_forgotten`.
    Uncounted,
    /// All events since this time.
    Since(Timestamp),
}

/// A log that replaces another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextLog {
    /// The number of the log that it replaces; zero if none is known.
    pub after: i64,
    /// `TopicLog::cluster`
    pub cluster: String,
    /// `TopicLog::topic`
    pub topic: String,
    /// `TopicLog::began_at`
    pub at: Timestamp,
    /// `TopicLog::reason`
    pub reason: String,
    /// The events that the log needs.
    pub replay: Replay,
}

impl NextLog {
    /// The name of the log. The first log has the bare name of its cluster, because versions before numbered
    /// logs stored marks and offsets under that name.
    pub(super) fn name(&self) -> String {
        match self.after {
            0 => self.cluster.clone(),
            after => format!("{}#{}", self.cluster, after + 1),
        }
    }

    /// The columns `replay_since` and `replay_done`.
    pub(super) fn replay_columns(&self) -> (Option<i64>, bool) {
        match self.replay {
            Replay::Uncounted => (None, true),
            Replay::Since(at) => (Some(at.0), false),
        }
    }
}

/// The result of one step of a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Number of events put back.
    pub rows: u64,
    /// Whether no event is left to put back.
    pub done: bool,
}

/// The log of the topic.
#[async_trait]
pub trait TopicLogStore: Send + Sync {
    /// Returns the log in use; `None` before the first.
    async fn topic_log(&self) -> Result<Option<TopicLog>>;

    /// Returns the known content of the log `no`: the last published event of each partition, and the message
    /// before each offset that analytics has reached.
    async fn log_anchors(&self, no: i64) -> Result<Vec<LogAnchor>>;

    /// Records that `next` replaces the log `next.after`, unless another log has done so already. Returns the
    /// log in use afterwards. Marks for the previous log have no effect from then on. A first log needs no
    /// replay if its offsets or marks were stored by a version before numbered logs.
    async fn begin_log(&self, next: &NextLog) -> Result<TopicLog>;

    /// Puts back all events of patients who have a row among the first `rows_max` of the outbox and whom the
    /// replay has not reached. Rows in `known` and rows parked at `now` do not count. Returns the number of
    /// those patients.
    async fn replay_waiting(&self, no: i64, known: &[i64], now: Timestamp, rows_max: u32) -> Result<u64>;

    /// Scans the next `rows_max` events and puts back those that are due.
    async fn replay_next(&self, no: i64, rows_max: u32) -> Result<Replayed>;
}

/// A consumer of the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// Events that wait for Kafka.
    Kafka,
    /// Registrations that wait for an account.
    Billing,
}

impl Queue {
    /// The name in the database and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Queue::Kafka => "kafka",
            Queue::Billing => "billing",
        }
    }
}

/// A row to park. Neither the row nor later rows of its patient are read before `retry_at`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParkRow {
    /// `OutboxEvent::seq`
    pub seq: i64,
    /// The patient of the event.
    pub patient_id: PatientId,
    /// How often the row has been parked, including this time.
    pub parks: u32,
    /// When it is tried again.
    pub retry_at: Timestamp,
    /// The reason, one word.
    pub reason: &'static str,
}
