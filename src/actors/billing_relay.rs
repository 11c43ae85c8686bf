//! The billing relay: every registered patient gets exactly one account.
//!
//! Registrations without an account are rows of the outbox. The relay takes them in rounds, opens each
//! account through the billing region and marks the row. Supervised by the node; it keeps no state that a
//! restart would miss. One relay of the cluster is active, under a lease; the others stand by.
//!
//! Invariants:
//! - At least once: a row is marked only after its account is open. Opening is idempotent by patient id, so a
//!   repeated row has no second effect.
//! - One round runs at a time, as a task that reports back; `handle` never awaits. A round that dies is
//!   noticed and counts as a failure. A round dies with its actor.
//! - A row that cannot be read is parked for a while and does not delay other rows.
//! - A row that fails is retried on its own schedule (`row_backoff_*`) and does not delay other rows. When
//!   nothing works, the whole relay pauses (`pause_*`). A row that fails repeatedly is parked (`park_*`): the
//!   store does not return it for a while, so any number of failing rows leaves room for others.
//! - The lease avoids duplicate work; it is not a fence. If two relays open the same account, it is opened
//!   once.
//! - Messages are hints: if every nudge is lost, the poll still finds each row.

mod backlog;
mod round;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tokio_util::task::AbortOnDropHandle;

use self::backlog::Backlog;
use self::round::Report;
use super::background::{Backoff, Look, Pace, Tasks};
use super::members::{Members, ReleasedHook};
use super::open_accounts::OpenAccounts;
use super::slice_lease::{Answer, RELAY_SLICE, SliceArgs, SliceLease, Standing};
use crate::domain::cluster::NodeRole;
use crate::domain::time::Clock;
use crate::health::{Health, Status};
use crate::store::{LeaseStore, OutboxStore};

/// The actor's name in logs, health and metrics.
pub const NAME: &str = "billing-relay";

/// The limits of the relay.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Interval between reads of the outbox without a nudge, in milliseconds.
    pub poll_ms: u64,
    /// Pause between the starts of two rounds while registrations keep coming, in milliseconds. Zero means no
    /// pause.
    pub gather_ms: u64,
    /// How long the lease lasts after it was taken or last renewed, in milliseconds.
    pub lease_ttl_ms: u64,
    /// Maximum number of due rows per round.
    pub batch_rows_max: u32,
    /// Maximum number of accounts being opened at the same time.
    pub concurrency_max: usize,
    /// Timeout for opening one account, in milliseconds.
    pub open_timeout_ms: u64,
    /// Timeout of one store call, in milliseconds.
    pub store_timeout_ms: u64,
    /// Shortest pause when nothing works, in milliseconds. Doubles with each further failure.
    pub pause_min_ms: u64,
    /// Longest pause when nothing works, in milliseconds.
    pub pause_max_ms: u64,
    /// Shortest wait before a failed row is retried, in milliseconds. Doubles with each further failure.
    pub row_backoff_min_ms: u64,
    /// Longest wait before a failed row is retried, in milliseconds.
    pub row_backoff_max_ms: u64,
    /// Maximum number of failing rows kept in memory. Further rows are parked at their first failure.
    pub failing_rows_max: usize,
    /// Number of failures after which a row is parked, while other rows succeed.
    pub park_after_failures: u32,
    /// How long a row is parked the first time, in milliseconds. Doubles with each further time.
    pub park_min_ms: u64,
    /// Longest time that a row is parked, in milliseconds.
    pub park_max_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            poll_ms: 1_000,
            gather_ms: 20,
            lease_ttl_ms: 3_000,
            batch_rows_max: 256,
            concurrency_max: 32,
            open_timeout_ms: 2_000,
            store_timeout_ms: 5_000,
            pause_min_ms: 100,
            pause_max_ms: 5_000,
            row_backoff_min_ms: 500,
            row_backoff_max_ms: 15_000,
            failing_rows_max: 4_096,
            park_after_failures: 5,
            park_min_ms: 30_000,
            park_max_ms: 600_000,
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
            ("open_timeout_ms", (1..=DAY_MS).contains(&self.open_timeout_ms), "1 to 86400000"),
            ("store_timeout_ms", (1..=DAY_MS).contains(&self.store_timeout_ms), "1 to 86400000"),
            ("pause_min_ms", (1..=DAY_MS).contains(&self.pause_min_ms), "1 to 86400000"),
            ("pause_max_ms", (1..=DAY_MS).contains(&self.pause_max_ms), "1 to 86400000"),
            ("row_backoff_min_ms", (1..=DAY_MS).contains(&self.row_backoff_min_ms), "1 to 86400000"),
            ("row_backoff_max_ms", (1..=DAY_MS).contains(&self.row_backoff_max_ms), "1 to 86400000"),
            ("batch_rows_max", self.batch_rows_max >= 1, "at least 1"),
            ("concurrency_max", self.concurrency_max >= 1, "at least 1"),
            ("failing_rows_max", self.failing_rows_max >= 1, "at least 1"),
            ("park_after_failures", self.park_after_failures >= 1, "at least 1"),
            ("park_min_ms", (1..=DAY_MS).contains(&self.park_min_ms), "1 to 86400000"),
            ("park_max_ms", (1..=DAY_MS).contains(&self.park_max_ms), "1 to 86400000"),
        ];
        let broken = checks.into_iter().filter(|(_, holds, _)| !holds);
        broken.map(|(key, _, allowed)| (key, allowed.to_owned())).collect()
    }
}

impl Settings {
    fn lease_tick(&self) -> Duration {
        Duration::from_millis(self.poll_ms.min(self.lease_ttl_ms / 3).max(1))
    }

    fn parking(&self) -> Backoff {
        Backoff { min: Duration::from_millis(self.park_min_ms), max: Duration::from_millis(self.park_max_ms) }
    }
}

/// The messages of the relay.
#[derive(Debug, ractor_cluster::RactorMessage)]
pub enum BillingRelayMessage {
    /// From the journal, after a commit with a registration. Any number of nudges cause one round.
    Nudge,
    /// From the relay's own timers: the periodic poll, and the end of a pause.
    Tick,
    /// From the relay's own timer: the pause between two rounds is over.
    Gathered,
    /// From the task that watches the round. `None` if the round died.
    RoundEnded(Option<Report>),
    /// From the relay's own timer: take or renew the lease.
    LeaseTick,
    /// From the relay that was active, over the link: it has released its lease. The message may get lost.
    LeaseReleased,
    /// From the relay's own task: a statement about the lease has ended.
    Leased(LeaseAnswer),
    /// From the relay's own task: the lease is released, or will expire.
    Released,
    /// From the node when it stops: no further round begins. The reply comes when no round runs and the lease
    /// is released.
    Drain(RpcReplyPort<()>),
}

/// The result of a statement about the lease.
#[derive(Debug)]
pub struct LeaseAnswer(Answer);

/// What the relay needs from the node. A supervisor keeps a clone to restart the relay.
#[derive(Clone)]
pub struct Args {
    /// The outbox, with the registrations that wait for an account.
    pub store: Arc<dyn OutboxStore>,
    /// Opens the accounts.
    pub accounts: Arc<dyn OpenAccounts>,
    /// The clock, for deadlines and waits.
    pub clock: Arc<dyn Clock>,
    /// Where the relay reports its health.
    pub health: Health,
    /// The store of the lease.
    pub leases: Arc<dyn LeaseStore>,
    /// The owner of the lease: `node-name#boot-id`.
    pub owner: Arc<str>,
    /// The reachable nodes.
    pub members: Members,
    /// Called after the lease was given up for another node.
    pub released: ReleasedHook,
    /// The limits of the relay.
    pub settings: Settings,
}

/// The actor.
#[derive(Default)]
pub struct BillingRelay;

/// The state of one incarnation.
pub struct State {
    args: Args,
    backlog: Backlog,
    /// Rows that this incarnation has parked and that were not billed since.
    parked: usize,
    /// Watches the running round, which ends with it.
    round: Option<AbortOnDropHandle<()>>,
    /// A nudge came during the round, so the outbox may hold rows that the round has not read.
    nudged: bool,
    pace: Pace,
    lease: SliceLease,
    tasks: Tasks,
    releasing: bool,
    draining: bool,
    /// The callers that wait for the end of the drain.
    drained: Vec<RpcReplyPort<()>>,
}

impl Actor for BillingRelay {
    type Msg = BillingRelayMessage;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, myself: ActorRef<Self::Msg>, args: Args) -> Result<State, ActorProcessingErr> {
        args.health.report(NAME, Status::Explained("the outbox has not been read yet".into()));
        // Register the counter at zero, so that a rate includes the first event.
        let _ = metrics::counter!("hygeia_outbox_unreadable_total", "reader" => NAME);
        // The timers end with the actor.
        myself.send_interval(args.settings.lease_tick(), || BillingRelayMessage::LeaseTick);
        myself
            .send_interval(Duration::from_millis(args.settings.poll_ms.max(1)), || BillingRelayMessage::Tick);
        let lease = SliceLease::new(SliceArgs {
            slice: RELAY_SLICE,
            role: NodeRole::Billing,
            leases: Arc::clone(&args.leases),
            clock: Arc::clone(&args.clock),
            owner: Arc::clone(&args.owner),
            members: args.members.clone(),
            released: Arc::clone(&args.released),
            ttl: Duration::from_millis(args.settings.lease_ttl_ms),
            tick: args.settings.lease_tick(),
        });
        Ok(State {
            pace: Pace::new(Duration::from_millis(args.settings.gather_ms)),
            args,
            backlog: Backlog::default(),
            parked: 0,
            round: None,
            nudged: false,
            lease,
            tasks: Tasks::default(),
            releasing: false,
            draining: false,
            drained: Vec::new(),
        })
    }

    async fn post_start(
        &self,
        myself: ActorRef<Self::Msg>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.ask_for_lease(&myself);
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            BillingRelayMessage::Nudge | BillingRelayMessage::Tick => state.begin_round(&myself),
            BillingRelayMessage::Gathered => {
                state.pace.waited();
                state.begin_round(&myself);
            }
            BillingRelayMessage::RoundEnded(report) => state.end_round(&myself, report.as_ref()),
            BillingRelayMessage::LeaseTick | BillingRelayMessage::LeaseReleased => {
                state.ask_for_lease(&myself);
            }
            BillingRelayMessage::Leased(LeaseAnswer(answer)) => state.leased(&myself, answer),
            BillingRelayMessage::Released => state.releasing = false,
            BillingRelayMessage::Drain(reply) => {
                state.draining = true;
                state.drained.push(reply);
            }
        }
        state.end_drain(&myself);
        Ok(())
    }

    /// The relay has no children. The default would stop the actor at any event.
    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Self::Msg>,
        _event: SupervisionEvent,
        _state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        Ok(())
    }
}

impl State {
    fn begin_round(&mut self, myself: &ActorRef<BillingRelayMessage>) {
        if self.round.is_some() {
            self.nudged = true;
            return;
        }
        if self.draining || !self.lease.is_believed() {
            return;
        }
        let Some(plan) = self.backlog.plan(&self.args.settings, self.args.clock.mono()) else {
            return;
        };
        match self.pace.look(self.args.clock.mono()) {
            Look::Now => {}
            Look::In(left) => {
                myself.send_after(left, || BillingRelayMessage::Gathered);
                return;
            }
            Look::Later => return,
        }
        self.nudged = false;
        let myself = myself.clone();
        let round = AbortOnDropHandle::new(tokio::spawn(round::run(self.args.clone(), plan)));
        self.round = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let report = round.await.ok();
            // If the actor has ended, the report is not needed.
            let _ = myself.cast(BillingRelayMessage::RoundEnded(report));
        })));
    }

    fn end_round(&mut self, myself: &ActorRef<BillingRelayMessage>, report: Option<&Report>) {
        self.round = None;
        let now = self.args.clock.mono();
        let failing_before = self.backlog.failing_rows();
        self.backlog.round_ended(&self.args.settings, report, now);
        let parks = report.map_or(0, |r| r.parked.len());
        let newly = report.map_or(0, |r| r.parked_first);
        self.parked = (self.parked + newly).saturating_sub(report.map_or(0, |r| r.unparked));
        self.tell(report);
        // A full window may hide more rows. Without progress, the next tick is soon enough.
        let further = parks > 0 || self.backlog.failing_rows() > failing_before;
        let more = report.is_some_and(|r| r.full && (further || !r.billed.is_empty()));
        if more {
            self.pace.hurry();
        }
        match self.backlog.resume_in(now) {
            Some(left) => drop(myself.send_after(left, || BillingRelayMessage::Tick)),
            None if self.nudged || more => self.begin_round(myself),
            None => {}
        }
    }

    fn ask_for_lease(&mut self, myself: &ActorRef<BillingRelayMessage>) {
        if self.draining {
            return;
        }
        if let Some(question) = self.lease.ask() {
            let lost = BillingRelayMessage::Leased(LeaseAnswer(Answer::lost()));
            self.tasks.run(
                myself,
                lost,
                async move { BillingRelayMessage::Leased(LeaseAnswer(question.await)) },
            );
        }
    }

    fn leased(&mut self, myself: &ActorRef<BillingRelayMessage>, answer: Answer) {
        let began = !self.lease.is_held();
        let explained = |reason: String| self.args.health.report(NAME, Status::Explained(reason));
        match self.lease.learn(answer) {
            Standing::Ours if began => self.begin_round(myself),
            Standing::Ours => {}
            Standing::Others(again) => {
                explained("another node opens the accounts; this one stands by".into());
                if let Some(pause) = again {
                    myself.send_after(pause, || BillingRelayMessage::LeaseTick);
                }
            }
            Standing::Unknown(_) if self.lease.is_believed() => {}
            Standing::Unknown(reason) => explained(format!("no lease: {reason}")),
        }
    }

    /// Ends a drain. Once nothing is in progress, releases the lease, so that other nodes need not wait for
    /// it to expire.
    fn end_drain(&mut self, myself: &ActorRef<BillingRelayMessage>) {
        if !self.draining || self.round.is_some() || self.lease.is_asking() || self.releasing {
            return;
        }
        let limit = Duration::from_millis(self.args.settings.store_timeout_ms);
        if let Some(release) = self.lease.release(limit) {
            self.releasing = true;
            self.tasks.run(myself, BillingRelayMessage::Released, async move {
                release.await;
                BillingRelayMessage::Released
            });
            return;
        }
        for reply in self.drained.drain(..) {
            let _ = reply.send(());
        }
    }

    /// Reports health and metrics, and logs what the log lines of single rows do not say.
    fn tell(&self, report: Option<&Report>) {
        let status = match report {
            None => Some("a round of the relay died"),
            Some(Report { store_failure: Some(error), .. }) => {
                tracing::warn!(actor = NAME, %error, "the outbox does not answer");
                Some("the outbox does not answer")
            }
            Some(report) if report.nothing_works() => Some("accounts cannot be opened"),
            Some(_) if self.backlog.failing_rows() > 0 => Some("some accounts could not be opened yet"),
            Some(_) => None,
        };
        let parked = || {
            let rows = self.parked;
            (rows > 0).then(|| format!("{rows} patients are parked: their accounts could not be opened"))
        };
        let status = status.map(str::to_owned).or_else(parked);
        let status = status.map_or(Status::Ready, Status::Explained);
        self.args.health.report(NAME, status);
        let Some(report) = report else { return };
        metrics::counter!("hygeia_billing_relay_billed_total").increment(report.billed.len() as u64);
        for (_, code) in &report.failed {
            metrics::counter!("hygeia_billing_relay_failed_total", "code" => code.as_str()).increment(1);
        }
        if let Some(window) = &report.window {
            // Counts only the rows of the window. The outbox's own gauge has the full depth.
            let waiting = window.len().saturating_sub(report.billed.len());
            metrics::gauge!("hygeia_billing_relay_waiting_rows").set(waiting as f64);
        }
    }
}
