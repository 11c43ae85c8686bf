//! Analytics: counts every published event once, and answers summaries of the counts. Child of the node's
//! supervisor; all its state is in the database.
//!
//! A reader task consumes the topic as a member of the consumer group (see `reader`). The actor restarts the
//! reader when it ends, and answers summaries, each in a task of its own.
//!
//! Invariants:
//! - Offsets and counts change in one transaction, and reading starts at the offsets in the database. So a
//!   message counts once, even if the broker, the group, a retry or a restart repeats it.
//! - A message that is not one of our events is in the dead letter topic before its offset is passed, unless
//!   the settings say that such messages are skipped.
//! - No event is skipped. While the database or the dead letter topic is unavailable, the batch is kept and
//!   retried.
//! - Offsets of another log are never a starting point. The bridge records which log the topic has. While the
//!   topic does not match that log, nothing is read. A new log is read from its beginning.
//! - `handle` never awaits. At most `summaries_max` summaries are in progress.

mod progress;
mod reader;
mod summary;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use ractor_cluster::RactorMessage;

use self::summary::Lag;
use super::address::Address;
use super::background::{Backoff, Tasks};
use super::directory::no_node;
use super::entity::Failure;
use super::link::Links;
use super::reply::ReplyTo;
use crate::context::{Hop, RequestContext};
use crate::domain::analytics::Summary;
use crate::domain::cluster::NodeRole;
use crate::domain::time::{Clock, MonoTime, Timestamp};
use crate::error::{Error, ErrorCode, Result};
use crate::health::{Health, Status};
use crate::kafka::Broker;
use crate::store::{OutboxStore, ProjectionStore, TopicLogStore};

/// The actor's name in logs and health.
pub const NAME: &str = "analytics";

/// A summary, with how current it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SummaryView {
    /// The counts.
    pub summary: Summary,
    /// The number of events that were decided but are not counted yet, in the outbox or in Kafka, including
    /// events that are replayed to a new log. `None` if it cannot be determined in time. Exact while at most
    /// `store::OUTBOX_DEPTH_ROWS_MAX` rows wait in the outbox; with more rows, the outbox counts as one row
    /// more than that limit.
    pub lag_events: Option<u64>,
    /// The time at which the read of the summary began.
    pub as_of: Timestamp,
}

/// Sends requests to analytics, on this node if it runs here, otherwise on another node. Cloning is cheap.
#[derive(Clone)]
pub struct AnalyticsHandle {
    actor: Address<AnalyticsMessage>,
    links: Option<Links>,
    clock: Arc<dyn Clock>,
}

impl AnalyticsHandle {
    /// Creates a handle for the actor at `actor`.
    pub fn new(actor: Address<AnalyticsMessage>, clock: Arc<dyn Clock>) -> Self {
        AnalyticsHandle { actor, links: None, clock }
    }

    /// Returns a handle that asks other nodes over `links` if analytics does not run here.
    pub fn over(self, links: Links) -> Self {
        AnalyticsHandle { links: Some(links), ..self }
    }

    /// Returns the current summary.
    ///
    /// # Errors
    /// `Unavailable`, `Overloaded`, `DeadlineExceeded`.
    pub async fn summary(&self, ctx: &RequestContext) -> Result<SummaryView> {
        if ctx.deadline.since(self.clock.mono()).is_zero() {
            return Err(late());
        }
        match (self.actor.actor(), &self.links) {
            (Some(actor), _) => self.ask_here(ctx, &actor).await,
            (None, Some(links)) => self.ask_elsewhere(ctx, links).await,
            (None, None) => Err(away()),
        }
    }

    async fn ask_here(
        &self,
        ctx: &RequestContext,
        actor: &ActorRef<AnalyticsMessage>,
    ) -> Result<SummaryView> {
        let sent_at = self.clock.mono();
        let (reply, answer) = ReplyTo::here();
        let ask = SummaryAsk { ctx: ctx.clone(), sent_at, reply };
        actor.send_message(AnalyticsMessage::Summary(Box::new(ask))).map_err(|_| away())?;
        match tokio::time::timeout(ctx.deadline.since(sent_at), answer).await {
            Ok(Ok(Ok(view))) => Ok(view),
            Ok(Ok(Err(failure))) => Err(refused(&failure)),
            Ok(Err(_)) => Err(away()),
            Err(_) => Err(late()),
        }
    }

    /// Asks the live analytics nodes in turn, until one answers or the time is up. A summary changes nothing,
    /// so it is safe to ask again.
    async fn ask_elsewhere(&self, ctx: &RequestContext, links: &Links) -> Result<SummaryView> {
        let mut turn = fastrand::usize(..1 << 16);
        let mut last = away();
        for _ in 0..TRIES_MAX {
            let view = Arc::clone(&links.members().borrow());
            let nodes: Vec<_> = view.with_role(NodeRole::Analytics).filter(|m| m.wire.is_some()).collect();
            if nodes.is_empty() {
                last = no_node(NodeRole::Analytics);
            } else {
                turn += 1;
                match links.summary(ctx, &nodes[turn % nodes.len()].owner).await {
                    Ok(summary) => return Ok(summary),
                    Err(None) => return Err(late()),
                    Err(Some(Failure::NotServing(_) | Failure::Unknown)) => last = away(),
                    Err(Some(failure)) => return Err(refused(&failure)),
                }
            }
            if self.clock.mono().plus(TRY_PAUSE) >= ctx.deadline {
                break;
            }
            tokio::time::sleep(TRY_PAUSE).await;
        }
        Err(last)
    }
}

/// The number of attempts to get a summary from another node, and the pause between them: about a second in
/// total, in which a node may restart.
const TRIES_MAX: u32 = 20;
const TRY_PAUSE: Duration = Duration::from_millis(50);

fn away() -> Error {
    Error::new(ErrorCode::Unavailable, "Analytics is not running here")
}

fn late() -> Error {
    Error::new(ErrorCode::DeadlineExceeded, "The summary was not ready in time")
}

fn refused(failure: &Failure) -> Error {
    match failure {
        Failure::Busy => Error::new(ErrorCode::Overloaded, "Too many summaries are being read"),
        Failure::Expired => late(),
        Failure::Unavailable => Error::new(ErrorCode::Unavailable, "The counts cannot be read at the moment"),
        _ => away(),
    }
}

/// The limits of analytics.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Timeout of one store call, in milliseconds.
    pub store_timeout_ms: u64,
    /// Shortest wait after a failure, in milliseconds. Doubles with each further failure.
    pub retry_min_ms: u64,
    /// Longest wait after a failure, in milliseconds.
    pub retry_max_ms: u64,
    /// Interval between checks of the link to the broker while no messages arrive, in milliseconds.
    pub idle_ms: u64,
    /// Maximum number of summaries in progress. Further ones are refused.
    pub summaries_max: usize,
    /// How long a summary waits for the lag, in milliseconds. After that it is answered without the lag.
    pub lag_timeout_ms: u64,
    /// Interval between measurements of the lag for the metrics, in milliseconds.
    pub lag_poll_ms: u64,
    /// How long an event may wait to be counted before health reports it, in milliseconds.
    pub waiting_max_ms: u64,
    /// How messages that are not our events are treated.
    pub foreign_messages: ForeignMessages,
}

/// How messages in the topic that are not our events are treated. In either case they are counted and logged,
/// and reading continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForeignMessages {
    /// They are copied to the dead letter topic, each with a reason.
    DeadLetter,
    /// They are skipped. Useful on a topic that another system has written to before.
    Skip,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            store_timeout_ms: 5_000,
            retry_min_ms: 50,
            retry_max_ms: 5_000,
            idle_ms: 1_000,
            summaries_max: 64,
            lag_timeout_ms: 500,
            lag_poll_ms: 5_000,
            waiting_max_ms: 60_000,
            foreign_messages: ForeignMessages::DeadLetter,
        }
    }
}

impl Settings {
    /// Returns the keys whose values are not allowed, each with the allowed values.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        const DAY_MS: u64 = 86_400_000;
        let checks = [
            ("store_timeout_ms", (1..=DAY_MS).contains(&self.store_timeout_ms), "1 to 86400000"),
            ("retry_min_ms", (1..=DAY_MS).contains(&self.retry_min_ms), "1 to 86400000"),
            ("retry_max_ms", (1..=DAY_MS).contains(&self.retry_max_ms), "1 to 86400000"),
            ("idle_ms", (1..=DAY_MS).contains(&self.idle_ms), "1 to 86400000"),
            ("lag_timeout_ms", (1..=DAY_MS).contains(&self.lag_timeout_ms), "1 to 86400000"),
            ("lag_poll_ms", (1..=DAY_MS).contains(&self.lag_poll_ms), "1 to 86400000"),
            ("waiting_max_ms", (1..=DAY_MS).contains(&self.waiting_max_ms), "1 to 86400000"),
            ("summaries_max", self.summaries_max >= 1, "at least 1"),
        ];
        let broken = checks.into_iter().filter(|(_, holds, _)| !holds);
        broken.map(|(key, _, allowed)| (key, allowed.to_owned())).collect()
    }
}

impl Settings {
    fn backoff(&self) -> Backoff {
        Backoff {
            min: Duration::from_millis(self.retry_min_ms),
            max: Duration::from_millis(self.retry_max_ms),
        }
    }
}

/// The messages of analytics.
#[derive(RactorMessage)]
pub enum AnalyticsMessage {
    /// From a handle: answered by the deadline of its context. If the task dies, the reply handle is dropped.
    Summary(Box<SummaryAsk>),
    /// From the actor's own timer: measure the lag.
    Measure,
    /// From the actor's own tasks.
    Report(Report),
}

/// A request for a summary.
pub struct SummaryAsk {
    ctx: RequestContext,
    sent_at: MonoTime,
    pub(super) reply: ReplyTo<SummaryView>,
}

impl SummaryAsk {
    /// Creates the request of `ctx`, sent at `sent_at`.
    pub fn new(ctx: RequestContext, sent_at: MonoTime, reply: ReplyTo<SummaryView>) -> Self {
        SummaryAsk { ctx, sent_at, reply }
    }
}

/// The report of a task of analytics.
pub struct Report(Outcome);

enum Outcome {
    /// The reader has ended, for this reason.
    ReaderEnded(String),
    /// The pause before the reader restarts is over.
    ReaderDue,
    Summarized,
    Measured,
}

/// What analytics needs from the node.
#[derive(Clone)]
pub struct AnalyticsArgs {
    /// The store of counts and offsets.
    pub projections: Arc<dyn ProjectionStore>,
    /// The outbox. Its unpublished events are part of the lag.
    pub outbox: Arc<dyn OutboxStore>,
    /// The store of the topic's logs.
    pub logs: Arc<dyn TopicLogStore>,
    /// The broker from which events are read.
    pub broker: Arc<dyn Broker>,
    /// Where analytics reports its health, as the part `analytics`.
    pub health: Health,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The limits of analytics.
    pub settings: Settings,
}

/// The actor.
pub struct Analytics;

/// The state of one incarnation.
pub struct AnalyticsState {
    args: AnalyticsArgs,
    tasks: Tasks,
    lag: Arc<Lag>,
    summaries: usize,
    measuring: bool,
    reader_since: MonoTime,
    reader_failures: u32,
}

impl Actor for Analytics {
    type Msg = AnalyticsMessage;
    type State = AnalyticsState;
    type Arguments = AnalyticsArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<AnalyticsMessage>,
        args: AnalyticsArgs,
    ) -> std::result::Result<AnalyticsState, ActorProcessingErr> {
        args.health.report(NAME, Status::Explained("starting".into()));
        let every = Duration::from_millis(args.settings.lag_poll_ms.max(1));
        myself.send_interval(every, || AnalyticsMessage::Measure);
        let mut state = AnalyticsState {
            tasks: Tasks::default(),
            lag: Arc::new(Lag::new(&args)),
            summaries: 0,
            measuring: false,
            reader_since: args.clock.mono(),
            reader_failures: 0,
            args,
        };
        state.start_reader(&myself);
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<AnalyticsMessage>,
        message: AnalyticsMessage,
        state: &mut AnalyticsState,
    ) -> std::result::Result<(), ActorProcessingErr> {
        match message {
            AnalyticsMessage::Summary(ask) => state.summarize(&myself, *ask),
            AnalyticsMessage::Measure => state.measure(&myself),
            AnalyticsMessage::Report(Report(outcome)) => match outcome {
                Outcome::ReaderEnded(reason) => state.pause_reader(&myself, reason),
                Outcome::ReaderDue => state.start_reader(&myself),
                Outcome::Summarized => state.summaries -= 1,
                Outcome::Measured => state.measuring = false,
            },
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<AnalyticsMessage>,
        _event: SupervisionEvent,
        _state: &mut AnalyticsState,
    ) -> std::result::Result<(), ActorProcessingErr> {
        // Analytics has no children. The default would stop the actor at any event.
        Ok(())
    }
}

impl AnalyticsState {
    fn run(
        &mut self,
        myself: &ActorRef<AnalyticsMessage>,
        lost: Outcome,
        work: impl Future<Output = Outcome> + Send + 'static,
    ) {
        let report = |outcome| AnalyticsMessage::Report(Report(outcome));
        self.tasks.run(myself, report(lost), async move { report(work.await) });
    }

    fn start_reader(&mut self, myself: &ActorRef<AnalyticsMessage>) {
        self.reader_since = self.args.clock.mono();
        let (args, lag) = (self.args.clone(), Arc::clone(&self.lag));
        self.run(myself, Outcome::ReaderEnded("the reader died".into()), async move {
            Outcome::ReaderEnded(reader::run(args, lag).await)
        });
    }

    fn pause_reader(&mut self, myself: &ActorRef<AnalyticsMessage>, reason: String) {
        tracing::warn!(reason, "the reader of analytics has ended and is started again");
        self.args.health.report(NAME, Status::Explained(reason));
        let lasted = self.args.clock.mono().since(self.reader_since);
        if lasted > Duration::from_millis(self.args.settings.retry_max_ms) {
            self.reader_failures = 0;
        }
        self.reader_failures = self.reader_failures.saturating_add(1);
        let pause = self.args.settings.backoff().pause(self.reader_failures);
        self.run(myself, Outcome::ReaderDue, async move {
            tokio::time::sleep(pause).await;
            Outcome::ReaderDue
        });
    }

    fn summarize(&mut self, myself: &ActorRef<AnalyticsMessage>, ask: SummaryAsk) {
        if self.summaries >= self.args.settings.summaries_max {
            ask.reply.send(Err(Failure::Busy));
            return;
        }
        self.summaries += 1;
        let (args, lag) = (self.args.clone(), Arc::clone(&self.lag));
        self.run(myself, Outcome::Summarized, async move {
            let began = args.clock.mono();
            let answer = summary::read(&args, &lag, ask.ctx.deadline).await;
            Hop {
                actor: NAME,
                message: "Summary",
                entity: None,
                trace: &ask.ctx.trace.child(),
                queued: began.since(ask.sent_at),
                handled: args.clock.mono().since(began),
                outcome: answer.as_ref().map_or_else(|failure| failure.as_str(), |_| "ok"),
            }
            .log();
            ask.reply.send(answer);
            Outcome::Summarized
        });
    }

    fn measure(&mut self, myself: &ActorRef<AnalyticsMessage>) {
        if self.measuring {
            return;
        }
        self.measuring = true;
        let (args, lag) = (self.args.clone(), Arc::clone(&self.lag));
        self.run(myself, Outcome::Measured, async move {
            let events = lag.events(&args).await;
            // An unknown lag is reported as NaN, because an outdated number would mislead.
            metrics::gauge!("hygeia_analytics_lag_events")
                .set(events.map_or(f64::NAN, |events| events as f64));
            metrics::gauge!("hygeia_analytics_age_seconds").set(lag.age(&args).as_secs_f64());
            Outcome::Measured
        });
    }
}
