//! The Kafka bridge: publishes events from the outbox to the topic. Child of the node's supervisor; it keeps
//! no state that a restart would miss. One bridge of the cluster is active, under a lease; the others stand
//! by.
//!
//! **Order.** For each patient, events first appear in the log in the order of their versions. The window
//! hands an event to the producer only after every earlier event of that patient was acknowledged, either to
//! this bridge or, as its mark in the outbox shows, to an earlier one. So when an event can first enter the
//! log, all earlier ones are in it, despite retries, timeouts, a replaced producer, a restart, or two bridges
//! that both believe they hold the lease. These may repeat an event, even after a later one (a request of an
//! abandoned producer); readers recognize a repeat by its version. The order relies neither on idempotence,
//! which makes repeats rare, nor on the lease, which avoids duplicate work. The cost is that each patient's
//! events take one round trip each.
//!
//! **Speed.** Reading, publishing and marking overlap, over different patients: see `window`.
//!
//! Other invariants:
//! - Nothing is published until the bridge knows the topic's log, and has put back the events of earlier logs
//!   that analytics has not counted. A replay fills a new log: see `log` and `store::TopicLogStore`.
//! - The bridge checks whether the topic has another log every `log_check_ms`, after the broker was
//!   unavailable, and when an event gets an offset that the log had before. If it has, nothing is published
//!   until the new log is known.
//! - A row is marked only after its event was acknowledged, and only under the log to which it was published.
//! - A row that cannot be read, or that fails repeatedly, is parked for a while. It holds back the later rows
//!   of its own patient and no others.
//! - `handle` never awaits. Every call of the store or the broker is a task that reports back; the death of a
//!   task is noticed. Failed calls are repeated at the next tick.
//! - Messages are hints: if every nudge is lost, the tick still finds each row.

mod log;
mod state;
mod task;
mod window;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use ractor_cluster::RactorMessage;

use self::log::Identified;
pub use self::state::BridgeState;
use self::task::Found;
use self::window::{Limits, Sent};
use super::background::Backoff;
use super::members::{Members, ReleasedHook};
use super::slice_lease::Answer;
use crate::domain::time::Clock;
use crate::health::{Health, Status};
use crate::kafka::Broker;
use crate::store::{self, LeaseStore, OutboxDepth, OutboxStore, TopicLogStore};

/// The actor's name in logs.
pub const NAME: &str = "kafka-bridge";
/// The actor's name in health.
const PART: &str = "bridge";

/// The limits of the bridge.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Interval between reads of the outbox without a nudge, and between retries of failed calls, in
    /// milliseconds.
    pub poll_ms: u64,
    /// Pause between two reads of the outbox while events keep coming, in milliseconds. Events that gather
    /// meanwhile share one read, one batch and one mark. Zero means no pause.
    pub gather_ms: u64,
    /// How long the lease lasts after it was taken or last renewed, in milliseconds.
    pub lease_ttl_ms: u64,
    /// Interval between measurements of the outbox's depth, in milliseconds.
    pub depth_poll_ms: u64,
    /// Timeout of one store call, in milliseconds.
    pub store_timeout_ms: u64,
    /// Maximum number of rows in hand: waiting, at the producer, or delivered but not yet marked.
    pub window_rows_max: usize,
    /// Maximum number of rows per read.
    pub read_rows_max: usize,
    /// Maximum number of rows per batch for the producer.
    pub batch_rows_max: usize,
    /// Maximum number of batches at the producer.
    pub batches_max: usize,
    /// Maximum number of rows marked as published in one call.
    pub mark_rows_max: usize,
    /// How long a row rests after its first failure, in milliseconds. Doubles with each further failure.
    pub retry_min_ms: u64,
    /// Longest rest after a failure, in milliseconds.
    pub retry_max_ms: u64,
    /// How long a graceful stop waits for what is in flight, in milliseconds.
    pub drain_timeout_ms: u64,
    /// Interval between checks that the topic still has the known log, in milliseconds.
    pub log_check_ms: u64,
    /// Which events are published again to a new log. Always `uncounted` with the embedded broker.
    pub replay: ReplayOf,
    /// Number of failures after which a row is parked, while other rows succeed.
    pub park_after_failures: u32,
    /// How long a row is parked the first time, in milliseconds. Doubles with each further time.
    pub park_min_ms: u64,
    /// Longest time that a row is parked, in milliseconds.
    pub park_max_ms: u64,
    /// How long an event may wait for Kafka before health reports it, in milliseconds.
    pub waiting_max_ms: u64,
}

/// Which events are published again to a new log of the topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayOf {
    /// All events.
    Everything,
    /// The events within the topic's retention, which is what the lost log would hold.
    Retention,
    /// Only the events that analytics has not counted.
    Uncounted,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            poll_ms: 1_000,
            gather_ms: 20,
            lease_ttl_ms: 3_000,
            depth_poll_ms: 5_000,
            store_timeout_ms: 5_000,
            window_rows_max: 8_192,
            read_rows_max: 2_048,
            batch_rows_max: 1_024,
            batches_max: 4,
            mark_rows_max: 2_048,
            retry_min_ms: 100,
            retry_max_ms: 5_000,
            drain_timeout_ms: 5_000,
            log_check_ms: 10_000,
            replay: ReplayOf::Retention,
            park_after_failures: 5,
            park_min_ms: 30_000,
            park_max_ms: 600_000,
            waiting_max_ms: 60_000,
        }
    }
}

impl Settings {
    /// Returns the keys whose values are not allowed, each with the allowed values.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        const DAY_MS: u64 = 86_400_000;
        let checks = [
            ("poll_ms", (1..=DAY_MS).contains(&self.poll_ms), "1 to 86400000"),
            ("gather_ms", self.gather_ms <= 60_000, "0 to 60000"),
            ("lease_ttl_ms", (1..=DAY_MS).contains(&self.lease_ttl_ms), "1 to 86400000"),
            ("depth_poll_ms", (1..=DAY_MS).contains(&self.depth_poll_ms), "1 to 86400000"),
            ("store_timeout_ms", (1..=DAY_MS).contains(&self.store_timeout_ms), "1 to 86400000"),
            ("retry_min_ms", (1..=DAY_MS).contains(&self.retry_min_ms), "1 to 86400000"),
            ("retry_max_ms", (1..=DAY_MS).contains(&self.retry_max_ms), "1 to 86400000"),
            ("drain_timeout_ms", (1..=DAY_MS).contains(&self.drain_timeout_ms), "1 to 86400000"),
            ("log_check_ms", (1..=DAY_MS).contains(&self.log_check_ms), "1 to 86400000"),
            ("park_after_failures", self.park_after_failures >= 1, "at least 1"),
            ("park_min_ms", (1..=DAY_MS).contains(&self.park_min_ms), "1 to 86400000"),
            ("park_max_ms", (1..=DAY_MS).contains(&self.park_max_ms), "1 to 86400000"),
            ("waiting_max_ms", (1..=DAY_MS).contains(&self.waiting_max_ms), "1 to 86400000"),
            ("window_rows_max", self.window_rows_max >= 1, "at least 1"),
            ("read_rows_max", self.read_rows_max >= 1, "at least 1"),
            ("batch_rows_max", self.batch_rows_max >= 1, "at least 1"),
            ("batches_max", self.batches_max >= 1, "at least 1"),
            ("mark_rows_max", self.mark_rows_max >= 1, "at least 1"),
        ];
        let broken = checks.into_iter().filter(|(_, holds, _)| !holds);
        broken.map(|(key, _, allowed)| (key, allowed.to_owned())).collect()
    }
}

impl Settings {
    fn limits(&self) -> Limits {
        Limits {
            window_rows: self.window_rows_max.max(1),
            read_rows: self.read_rows_max.max(1),
            batch_rows: self.batch_rows_max.max(1),
            batches: self.batches_max.max(1),
            mark_rows: self.mark_rows_max.max(1),
            park_after: self.park_after_failures.max(1),
        }
    }

    fn tick(&self) -> Duration {
        Duration::from_millis(self.poll_ms.min(self.lease_ttl_ms / 3).max(1))
    }

    fn store_timeout(&self) -> Duration {
        Duration::from_millis(self.store_timeout_ms)
    }

    fn parking(&self) -> Backoff {
        Backoff { min: Duration::from_millis(self.park_min_ms), max: Duration::from_millis(self.park_max_ms) }
    }

    fn backoff(&self) -> Backoff {
        Backoff {
            min: Duration::from_millis(self.retry_min_ms),
            max: Duration::from_millis(self.retry_max_ms),
        }
    }
}

/// The messages of the bridge.
#[derive(RactorMessage)]
pub enum BridgeMessage {
    /// From the journal, after a commit: there are new events. The message may get lost.
    Nudge,
    /// From the node when it stops: no further event is read or published. Answered with `true` when nothing
    /// is in flight and the lease is released, or with `false` when the time for that has run out.
    Drain(RpcReplyPort<bool>),
    /// From the bridge that was active, over the link: it has released its lease. The message may get lost.
    LeaseReleased,
    /// From the bridge's own timer.
    Tick,
    /// From the bridge's own timer: the pause between two reads is over.
    Gathered,
    /// From the bridge's own tasks.
    Report(Report),
}

/// The report of a task of the bridge.
pub struct Report(Outcome);

enum Outcome {
    Lease(Answer),
    LeaseDue,
    Prepared(Result<Box<Identified>, String>),
    /// The result of a check of the log. Carries the reason if the topic seems to have another log.
    Checked(Result<Option<String>, String>),
    /// Carries the number of the log.
    Read(i64, store::Result<Found>),
    Published {
        batch: u64,
        floor: Arc<Tops>,
        sent: Vec<Sent>,
    },
    Rested(u64),
    /// Carries the number of the log, and whether it is still in use.
    Marked(i64, store::Result<bool>),
    /// Carries the number of the log.
    Parked(i64, store::Result<()>),
    Measured(Option<OutboxDepth>),
    Probed,
    Released,
    DrainTimeout,
}

/// The highest known offset of each partition.
type Tops = HashMap<i32, i64>;

/// What the bridge needs from the node.
#[derive(Clone)]
pub struct KafkaBridgeArgs {
    /// The outbox.
    pub outbox: Arc<dyn OutboxStore>,
    /// The store of the topic's logs.
    pub logs: Arc<dyn TopicLogStore>,
    /// The store of the lease.
    pub leases: Arc<dyn LeaseStore>,
    /// The broker to which events are published.
    pub broker: Arc<dyn Broker>,
    /// Where the bridge reports its health, as the part `bridge`.
    pub health: Health,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The owner of the lease: `node-name#boot-id`.
    pub owner: Arc<str>,
    /// The reachable nodes.
    pub members: Members,
    /// Called after the lease was given up for another node.
    pub released: ReleasedHook,
    /// The limits of the bridge.
    pub settings: Settings,
}

/// The actor.
pub struct KafkaBridge;

impl Actor for KafkaBridge {
    type Msg = BridgeMessage;
    type State = BridgeState;
    type Arguments = KafkaBridgeArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<BridgeMessage>,
        args: KafkaBridgeArgs,
    ) -> Result<BridgeState, ActorProcessingErr> {
        args.health.report(PART, Status::Explained("starting".into()));
        myself.cast(BridgeMessage::Tick)?;
        myself.send_interval(args.settings.tick(), || BridgeMessage::Tick);
        Ok(BridgeState::new(args))
    }

    async fn handle(
        &self,
        myself: ActorRef<BridgeMessage>,
        message: BridgeMessage,
        state: &mut BridgeState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            BridgeMessage::Nudge => state.nudged(),
            BridgeMessage::Gathered => state.gathered(),
            BridgeMessage::LeaseReleased => state.ask_for_lease(&myself),
            BridgeMessage::Tick => state.tick(&myself),
            BridgeMessage::Drain(reply) => state.drain(&myself, reply),
            BridgeMessage::Report(Report(outcome)) => state.learn(&myself, outcome),
        }
        state.pump(&myself);
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<BridgeMessage>,
        _event: SupervisionEvent,
        _state: &mut BridgeState,
    ) -> Result<(), ActorProcessingErr> {
        // The bridge has no children. The default would stop the actor at any event.
        Ok(())
    }
}
