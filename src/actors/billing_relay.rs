//! The billing relay: every patient created gets exactly one account.
//!
//! Registrations without an account are rows of the outbox. The relay takes them in rounds, opens each
//! account through the billing region and marks the row. Supervised by the node; it keeps nothing that
//! a restart would miss. One relay of the cluster is at work, under a lease; others stand by.
//!
//! Invariants:
//! - At least once: a row is marked only after its account is open. Opening is idempotent by patient
//!   id, so a row that comes twice has no second effect.
//! - One round at a time, as a task that reports back; `handle` never waits. A round that dies is
//!   noticed and counts as a failure. A round dies with its actor.
//! - A row that cannot be read is parked for a while and concerns nobody else.
//! - A row that fails waits by itself (`row_backoff_*`) and does not keep others from their accounts;
//!   when nothing works, the whole relay pauses (`pause_*`). One that fails again and again is parked (`park_*`):
//!   the store does not give it out for a while, so that any number of them leaves room for others.
//! - The lease spares double work. Nothing relies on it: two relays open the same account once.
//! - Messages are hints: with every nudge lost, the poll still finds each row.

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
    /// How often the outbox is read when nobody nudges, in milliseconds.
    pub poll_ms: u64,
    /// The pause between the beginnings of two rounds while registrations keep coming, in milliseconds. Zero:
    /// none.
    pub gather_ms: u64,
    /// How long the lease holds from its taking or its last renewal, in milliseconds.
    pub lease_ttl_ms: u64,
    /// How many due rows a round takes at most.
    pub batch_rows_max: u32,
    /// How many accounts are being opened at the same time at most.
    pub concurrency_max: usize,
    /// How long opening one account may take, in milliseconds.
    pub open_timeout_ms: u64,
    /// How long one call of the store may take, in milliseconds.
    pub store_timeout_ms: u64,
    /// The shortest pause when nothing works, in milliseconds; it doubles with each further failure.
    pub pause_min_ms: u64,
    /// The longest such pause, in milliseconds.
    pub pause_max_ms: u64,
    /// How long a row that failed waits, in milliseconds; it doubles with each further failure.
    pub row_backoff_min_ms: u64,
    /// The longest such wait, in milliseconds.
    pub row_backoff_max_ms: u64,
    /// How many failing rows are remembered at most; further ones are parked at their first failure.
    pub failing_rows_max: usize,
    /// How often a row fails before it is parked, while others get through.
    pub park_after_failures: u32,
    /// How long a row is parked for the first time, in milliseconds; it doubles with each further time.
    pub park_min_ms: u64,
    /// The longest such time, in milliseconds.
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
    /// The keys whose values are not allowed, each with what is.
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

/// The relay's messages.
#[derive(Debug, ractor_cluster::RactorMessage)]
pub enum BillingRelayMessage {
    /// From the journal, after a commit with a registration. Any number of them cause one round.
    Nudge,
    /// From the relay's own timers: the safety net, and the end of a pause.
    Tick,
    /// From the relay's own timer: the pause between two rounds is over.
    Gathered,
    /// From the task that watches the round; `None` if the round died.
    RoundEnded(Option<Report>),
    /// From the relay's own timer: the lease is to be taken or renewed.
    LeaseTick,
    /// From the link, by the relay that was at work: it has released its lease. May be lost.
    LeaseReleased,
    /// From the relay's own task.
    Leased(LeaseAnswer),
    /// From the relay's own task: the lease is given up, or will run out.
    Released,
    /// From the node when it stops: no further round begins; the reply comes when none is running and the
    /// lease is given up.
    Drain(RpcReplyPort<()>),
}

/// What the database said of the lease.
#[derive(Debug)]
pub struct LeaseAnswer(Answer);

/// What the relay works with. A supervisor keeps a clone to start it again.
#[derive(Clone)]
pub struct Args {
    /// Where the registrations wait.
    pub store: Arc<dyn OutboxStore>,
    /// What opens the accounts.
    pub accounts: Arc<dyn OpenAccounts>,
    /// For deadlines and waits.
    pub clock: Arc<dyn Clock>,
    /// Where the relay says how it is.
    pub health: Health,
    /// Where the lease is.
    pub leases: Arc<dyn LeaseStore>,
    /// Who holds the lease: `node-name#boot-id`.
    pub owner: Arc<str>,
    /// The nodes in sight.
    pub members: Members,
    /// Called when the lease was given up for another node.
    pub released: ReleasedHook,
    /// Its limits.
    pub settings: Settings,
}

/// The relay.
#[derive(Default)]
pub struct BillingRelay;

/// What the relay keeps while it lives.
pub struct State {
    args: Args,
    backlog: Backlog,
    /// Rows that this actor has parked and not seen billed since.
    parked: usize,
    /// Watches the round in flight, which ends with it.
    round: Option<AbortOnDropHandle<()>>,
    /// A nudge came during the round: the outbox may hold what the round has not read.
    nudged: bool,
    pace: Pace,
    lease: SliceLease,
    tasks: Tasks,
    releasing: bool,
    draining: bool,
    /// Who waits for the end of the drain.
    drained: Vec<RpcReplyPort<()>>,
}

impl Actor for BillingRelay {
    type Msg = BillingRelayMessage;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, myself: ActorRef<Self::Msg>, args: Args) -> Result<State, ActorProcessingErr> {
        args.health.report(NAME, Status::Explained("the outbox has not been read yet".into()));
        // There from the start, so that a rate sees the first one.
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

    /// The relay has no children; whatever ends elsewhere does not end it.
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
            // Without the actor nobody is left to tell.
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
        // A full window may hide more rows. Without progress the next tick is soon enough.
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

    /// Once nothing is in hand the lease is given up, so that others need not wait.
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

    /// Health, metrics, and one log line for what a row's own line does not tell.
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
            // As far as the window reaches; the outbox's own gauge has the whole depth.
            let waiting = window.len().saturating_sub(report.billed.len());
            metrics::gauge!("hygeia_billing_relay_waiting_rows").set(waiting as f64);
        }
    }
}
