//! The Kafka bridge: takes events from the outbox to the topic. Child of the node's supervisor; it keeps
//! nothing that a restart would miss. One bridge of the cluster is active, under a lease; others stand by.
//!
//! **Order.** For each patient, the first appearances of events in the log are in the order of versions.
//! The window hands an event to the producer only when every earlier event of that patient is either marked
//! as published in the outbox, hence was acknowledged, or was acknowledged to this bridge itself. So at
//! the moment an event can first enter the log, all earlier ones are in it, whatever becomes of requests:
//! retries, timeouts, a replaced producer, a restart, or two bridges that both think they hold the lease.
//! Those may repeat an event, even after a later one (a request of a producer that was given up); readers
//! know a repeat by its version. Nothing here relies on idempotence or on the lease: the one makes repeats
//! rare, the other spares double work. The price: events of one patient go at one per round trip.
//!
//! **Speed.** Reading, publishing and marking overlap, over different patients: see `window`.
//!
//! Other invariants:
//! - Nothing is published before it is known which log the topic has, and before what earlier logs had and
//!   analytics has not counted is put back. A new log is filled by a replay: see `log` and `store::TopicLogStore`.
//! - Whether the topic has another log is looked at every `log_check_ms`, after the broker was away, and when an
//!   event gets an offset that the log had before. Then nothing is published until it is known.
//! - A row is marked only after its event was acknowledged, and only under the log that it was published to.
//! - A row that cannot be read, or fails again and again, is parked for a while. It holds back its own patient's
//!   later rows and nobody else's.
//! - `handle` never awaits: every call of the store or the broker is a task that reports back, or that is
//!   noticed when it dies. Failed calls are made again at the next tick.
//! - Messages are hints: with every nudge lost, the tick still finds each row.

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
    /// How often the outbox is read when nobody nudges, and failed calls are made again, in milliseconds.
    pub poll_ms: u64,
    /// The pause between two reads of the outbox while events keep coming, in milliseconds: what gathers
    /// meanwhile goes in one read, one batch and one mark. Zero: none.
    pub gather_ms: u64,
    /// How long the lease holds from its taking or its last renewal, in milliseconds.
    pub lease_ttl_ms: u64,
    /// How often the outbox's depth is measured, in milliseconds.
    pub depth_poll_ms: u64,
    /// How long one call of the store may take, in milliseconds.
    pub store_timeout_ms: u64,
    /// Rows in hand at most: waiting, at the producer, or delivered and not yet marked.
    pub window_rows_max: usize,
    /// Rows of one read at most.
    pub read_rows_max: usize,
    /// Rows of one batch for the producer at most.
    pub batch_rows_max: usize,
    /// Batches at the producer at most.
    pub batches_max: usize,
    /// Rows marked as published at once at most.
    pub mark_rows_max: usize,
    /// How long a row rests after its first failure, in milliseconds; it doubles with each further one.
    pub retry_min_ms: u64,
    /// The longest such rest, in milliseconds.
    pub retry_max_ms: u64,
    /// How long a graceful stop waits for what is in flight, in milliseconds.
    pub drain_timeout_ms: u64,
    /// How often it is checked that the topic still has the log that is known, in milliseconds.
    pub log_check_ms: u64,
    /// Which events a new log gets again. At the embedded broker always `uncounted`.
    pub replay: ReplayOf,
    /// How often a row fails before it is parked, while others get through.
    pub park_after_failures: u32,
    /// How long a row is parked for the first time, in milliseconds; it doubles with each further time.
    pub park_min_ms: u64,
    /// The longest such time, in milliseconds.
    pub park_max_ms: u64,
    /// How long an event may wait for Kafka before health says so, in milliseconds.
    pub waiting_max_ms: u64,
}

/// Which events a new log of the topic gets again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayOf {
    /// All events.
    Everything,
    /// The events within the topic's retention, which is what the lost log would hold.
    Retention,
    /// Only what analytics has not counted.
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
    /// The keys whose values are not allowed, each with what is.
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

/// What the bridge is told.
#[derive(RactorMessage)]
pub enum BridgeMessage {
    /// By the journal, after a commit: there are new events. May be lost.
    Nudge,
    /// By the node at its stop: no event is taken up any more. Answered when nothing is in flight and the
    /// lease is given up (true), or when the time for it is up (false).
    Drain(RpcReplyPort<bool>),
    /// By the link, from the bridge that was active: it has released its lease. May be lost.
    LeaseReleased,
    /// By the bridge's own clock.
    Tick,
    /// By the bridge's own timer: the pause between two reads is over.
    Gathered,
    /// By the bridge's own tasks.
    Report(Report),
}

/// What a task of the bridge reports.
pub struct Report(Outcome);

enum Outcome {
    Lease(Answer),
    LeaseDue,
    Prepared(Result<Box<Identified>, String>),
    /// What a look at the log brought: why it seems to be another one, if it does.
    Checked(Result<Option<String>, String>),
    /// For the log of this number.
    Read(i64, store::Result<Found>),
    Published {
        batch: u64,
        floor: Arc<Tops>,
        sent: Vec<Sent>,
    },
    Rested(u64),
    /// For the log of this number: whether it is still in use.
    Marked(i64, store::Result<bool>),
    /// For the log of this number.
    Parked(i64, store::Result<()>),
    Measured(Option<OutboxDepth>),
    Probed,
    Released,
    DrainTimeout,
}

/// The highest offset known of each partition.
type Tops = HashMap<i32, i64>;

/// What the bridge needs.
#[derive(Clone)]
pub struct KafkaBridgeArgs {
    /// Where the events are.
    pub outbox: Arc<dyn OutboxStore>,
    /// Where it stands which log the topic has.
    pub logs: Arc<dyn TopicLogStore>,
    /// Where the lease is.
    pub leases: Arc<dyn LeaseStore>,
    /// Where the events go.
    pub broker: Arc<dyn Broker>,
    /// Where the bridge says how it is, as the part `bridge`.
    pub health: Health,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// Who holds the lease: `node-name#boot-id`.
    pub owner: Arc<str>,
    /// The nodes in sight.
    pub members: Members,
    /// Called when the lease was given up for another node.
    pub released: ReleasedHook,
    /// The limits.
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
        // The bridge has no children; the default would stop it at any event.
        Ok(())
    }
}
