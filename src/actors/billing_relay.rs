//! The billing relay: every patient created gets exactly one account.
//!
//! Registrations without an account are rows of the outbox. The relay takes them in rounds, opens each
//! account through the billing region and marks the row. Supervised by the node; it keeps nothing that
//! a restart would miss.
//!
//! Invariants:
//! - At least once: a row is marked only after its account is open. Opening is idempotent by patient
//!   id, so a row that comes twice has no second effect.
//! - One round at a time, as a task that reports back; `handle` never waits. A round that dies is
//!   noticed and counts as a failure. A round dies with its actor.
//! - A row that cannot be read is held back and concerns nobody else: see `held`.
//! - A row that fails waits by itself (`row_backoff_*`) and does not keep others from their accounts;
//!   when nothing works, the whole relay pauses (`pause_*`).
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
use super::held::Held;
use super::open_accounts::OpenAccounts;
use crate::domain::time::Clock;
use crate::health::{Health, Status};
use crate::store::OutboxStore;

/// The actor's name in logs, health and metrics.
pub const NAME: &str = "billing-relay";

/// The limits of the relay.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How often the outbox is read when nobody nudges, in milliseconds.
    pub poll_ms: u64,
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
    /// How many failing rows are remembered at most; rows beyond that are tried every round.
    pub failing_rows_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            poll_ms: 1_000,
            batch_rows_max: 256,
            concurrency_max: 32,
            open_timeout_ms: 2_000,
            store_timeout_ms: 5_000,
            pause_min_ms: 100,
            pause_max_ms: 5_000,
            row_backoff_min_ms: 500,
            row_backoff_max_ms: 15_000,
            failing_rows_max: 4_096,
        }
    }
}

impl Settings {
    /// The keys whose values are not allowed, each with what is.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        const DAY_MS: u64 = 86_400_000;
        let checks = [
            ("poll_ms", (1..=DAY_MS).contains(&self.poll_ms), "1 to 86400000"),
            ("open_timeout_ms", (1..=DAY_MS).contains(&self.open_timeout_ms), "1 to 86400000"),
            ("store_timeout_ms", (1..=DAY_MS).contains(&self.store_timeout_ms), "1 to 86400000"),
            ("pause_min_ms", (1..=DAY_MS).contains(&self.pause_min_ms), "1 to 86400000"),
            ("pause_max_ms", (1..=DAY_MS).contains(&self.pause_max_ms), "1 to 86400000"),
            ("row_backoff_min_ms", (1..=DAY_MS).contains(&self.row_backoff_min_ms), "1 to 86400000"),
            ("row_backoff_max_ms", (1..=DAY_MS).contains(&self.row_backoff_max_ms), "1 to 86400000"),
            ("batch_rows_max", self.batch_rows_max >= 1, "at least 1"),
            ("concurrency_max", self.concurrency_max >= 1, "at least 1"),
            ("failing_rows_max", self.failing_rows_max >= 1, "at least 1"),
        ];
        let broken = checks.into_iter().filter(|(_, holds, _)| !holds);
        broken.map(|(key, _, allowed)| (key, allowed.to_owned())).collect()
    }
}

/// The relay's messages.
#[derive(Debug, ractor_cluster::RactorMessage)]
pub enum BillingRelayMessage {
    /// From the journal, after a commit with a registration. Any number of them cause one round.
    Nudge,
    /// From the relay's own timers: the safety net, and the end of a pause.
    Tick,
    /// From the task that watches the round; `None` if the round died.
    RoundEnded(Option<Report>),
    /// From the node when it stops: no further round begins; the reply comes when none is running.
    Drain(RpcReplyPort<()>),
}

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
    held: Held,
    /// Watches the round in flight, which ends with it.
    round: Option<AbortOnDropHandle<()>>,
    /// A nudge came during the round: the outbox may hold what the round has not read.
    nudged: bool,
    draining: bool,
    drained: Option<RpcReplyPort<()>>,
}

impl Actor for BillingRelay {
    type Msg = BillingRelayMessage;
    type State = State;
    type Arguments = Args;

    async fn pre_start(&self, myself: ActorRef<Self::Msg>, args: Args) -> Result<State, ActorProcessingErr> {
        args.health.report(NAME, Status::Explained("the outbox has not been read yet".into()));
        // The timer ends with the actor.
        myself
            .send_interval(Duration::from_millis(args.settings.poll_ms.max(1)), || BillingRelayMessage::Tick);
        Ok(State {
            args,
            backlog: Backlog::default(),
            held: Held::new(NAME),
            round: None,
            nudged: false,
            draining: false,
            drained: None,
        })
    }

    async fn post_start(
        &self,
        myself: ActorRef<Self::Msg>,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        state.begin_round(&myself);
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
            BillingRelayMessage::RoundEnded(report) => state.end_round(&myself, report.as_ref()),
            BillingRelayMessage::Drain(reply) => state.drain(reply),
        }
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
        if self.draining {
            return;
        }
        let Some(plan) = self.backlog.plan(&self.args.settings, self.args.clock.mono()) else {
            return;
        };
        self.nudged = false;
        let myself = myself.clone();
        let round =
            AbortOnDropHandle::new(tokio::spawn(round::run(self.args.clone(), plan, self.held.patients())));
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
        let holds_more = report.is_some_and(|r| self.held.note(&r.unreadable));
        self.tell(report);
        if let Some(reply) = self.drained.take() {
            let _ = reply.send(());
        }
        // A full window may hide more rows. Without progress the next tick is soon enough.
        let further = holds_more || self.backlog.failing_rows() > failing_before;
        let more = report.is_some_and(|r| r.full && (further || !r.billed.is_empty()));
        match self.backlog.resume_in(now) {
            Some(left) => drop(myself.send_after(left, || BillingRelayMessage::Tick)),
            None if self.nudged || more => self.begin_round(myself),
            None => {}
        }
    }

    fn drain(&mut self, reply: RpcReplyPort<()>) {
        self.draining = true;
        if self.round.is_some() {
            self.drained = Some(reply);
        } else {
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
        let status = status.map(str::to_owned).or_else(|| self.held.explanation());
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
