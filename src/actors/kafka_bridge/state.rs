//! The state of one incarnation of the bridge, the tasks it starts and the results it handles. Nothing here
//! waits.

mod rows;
mod topic;

use std::sync::Arc;
use std::time::Duration;

use ractor::{ActorRef, RpcReplyPort};

use super::task;
use super::window::Window;
use super::{BridgeMessage, KafkaBridgeArgs, NAME, Outcome, PART, Report, Tops};
use crate::actors::background::{Pace, Tasks};
use crate::actors::slice_lease::{Answer, BRIDGE_SLICE, SliceArgs, SliceLease, Standing};
use crate::domain::cluster::NodeRole;
use crate::domain::time::{MonoTime, Timestamp};
use crate::health::Status;
use crate::kafka::Link;
use crate::store::{self, TopicLog};

/// The number of ticks for which the embedded broker may be full before health reports it.
const FULL_TICKS: u32 = 3;

enum Role {
    /// The bridge does not hold the lease. Carries the reason if the database did not answer.
    Standby(Option<String>),
    /// The bridge holds the lease. Carries the reason why it cannot publish yet.
    Preparing(Option<String>),
    /// The bridge publishes, while the lease holds.
    Active,
    /// The bridge starts nothing new. Carries the callers that wait for the end of the drain.
    Draining(Vec<RpcReplyPort<bool>>),
}

/// The state of one incarnation.
pub struct BridgeState {
    args: KafkaBridgeArgs,
    /// The log to which events are published. Known before the first event is published.
    log: Option<TopicLog>,
    /// The highest known offset of each partition of the log.
    tops: Arc<Tops>,
    checking: bool,
    checked_at: Option<MonoTime>,
    /// Whether the last read returned all rows there were.
    caught_up: bool,
    window: Window,
    parked_events: u64,
    /// When the oldest waiting event was decided, as last measured.
    oldest_at: Option<Timestamp>,
    role: Role,
    lease: SliceLease,
    tasks: Tasks,
    preparing: bool,
    probing: bool,
    measured_at: Option<MonoTime>,
    /// Whether there may be unread rows.
    unread: bool,
    pace: Pace,
    /// Whether marking, or parking, has failed since the last tick. The next attempt waits for the tick.
    mark_paused: bool,
    park_paused: bool,
    releasing: bool,
    /// The last error of the store, unless a call has succeeded since.
    store_error: Option<String>,
    full_ticks: u32,
}

impl BridgeState {
    pub(super) fn new(args: KafkaBridgeArgs) -> Self {
        // Register the counter at zero, so that a rate includes the first event.
        let _ = metrics::counter!("hygeia_outbox_unreadable_total", "reader" => NAME);
        BridgeState {
            log: None,
            tops: Arc::default(),
            checking: false,
            checked_at: None,
            caught_up: false,
            window: Window::new(args.settings.limits()),
            parked_events: 0,
            oldest_at: None,
            role: Role::Standby(None),
            lease: SliceLease::new(SliceArgs {
                slice: BRIDGE_SLICE,
                role: NodeRole::Bridge,
                leases: Arc::clone(&args.leases),
                clock: Arc::clone(&args.clock),
                owner: Arc::clone(&args.owner),
                members: args.members.clone(),
                released: Arc::clone(&args.released),
                ttl: Duration::from_millis(args.settings.lease_ttl_ms),
                tick: args.settings.tick(),
            }),
            tasks: Tasks::default(),
            preparing: false,
            probing: false,
            measured_at: None,
            unread: true,
            pace: Pace::new(Duration::from_millis(args.settings.gather_ms)),
            mark_paused: false,
            park_paused: false,
            releasing: false,
            store_error: None,
            full_ticks: 0,
            args,
        }
    }

    fn run(
        &mut self,
        myself: &ActorRef<BridgeMessage>,
        lost: Outcome,
        work: impl Future<Output = Outcome> + Send + 'static,
    ) {
        let report = |outcome| BridgeMessage::Report(Report(outcome));
        self.tasks.run(myself, report(lost), async move { report(work.await) });
    }

    pub(super) fn nudged(&mut self) {
        self.unread = true;
    }

    pub(super) fn gathered(&mut self) {
        self.pace.waited();
    }

    pub(super) fn learn(&mut self, myself: &ActorRef<BridgeMessage>, outcome: Outcome) {
        match outcome {
            Outcome::Lease(answer) => self.leased(myself, answer),
            Outcome::LeaseDue => self.ask_for_lease(myself),
            Outcome::Prepared(result) => self.prepared(result),
            Outcome::Checked(result) => self.checked(myself, result),
            Outcome::Read(log_no, found) => self.end_read(log_no, found),
            Outcome::Published { batch, floor, sent } => self.published(myself, batch, &floor, &sent),
            Outcome::Rested(rest) => self.window.wake(rest),
            Outcome::Marked(log_no, result) => self.marked(myself, log_no, result),
            Outcome::Parked(log_no, result) => self.parked(log_no, result),
            Outcome::Measured(depth) => {
                if let Some(depth) = depth {
                    (self.parked_events, self.oldest_at) = (depth.parked_events, depth.oldest_at);
                }
            }
            Outcome::Probed => {
                self.probing = false;
                self.tell_health();
            }
            Outcome::Released => {
                self.releasing = false;
                self.drained(true);
            }
            Outcome::DrainTimeout => self.drained(false),
        }
    }

    /// Records whether a store call succeeded, and returns its value.
    fn heed<T>(&mut self, result: store::Result<T>) -> Option<T> {
        match result {
            Ok(value) => {
                self.store_error = None;
                Some(value)
            }
            Err(error) => {
                self.store_error = Some(error.to_string());
                None
            }
        }
    }

    pub(super) fn tick(&mut self, myself: &ActorRef<BridgeMessage>) {
        self.unread = true;
        self.mark_paused = false;
        self.park_paused = false;
        self.ask_for_lease(myself);
        if matches!(self.role, Role::Preparing(_)) {
            self.prepare(myself);
        }
        self.check(myself);
        self.measure(myself);
        self.look_at_link(myself);
        self.tell_health();
    }

    pub(super) fn ask_for_lease(&mut self, myself: &ActorRef<BridgeMessage>) {
        if matches!(self.role, Role::Draining(_)) && !self.lease.is_held() {
            return;
        }
        if let Some(question) = self.lease.ask() {
            self.run(myself, Outcome::Lease(Answer::lost()), async move { Outcome::Lease(question.await) });
        }
    }

    fn leased(&mut self, myself: &ActorRef<BridgeMessage>, answer: Answer) {
        match self.lease.learn(answer) {
            Standing::Ours => {
                if matches!(self.role, Role::Standby(_)) {
                    self.role = Role::Preparing(None);
                    self.prepare(myself);
                }
            }
            Standing::Others(again) => {
                if !matches!(self.role, Role::Draining(_)) {
                    self.role = Role::Standby(None);
                    self.window.forget();
                }
                if let Some(pause) = again {
                    self.run(myself, Outcome::LeaseDue, async move {
                        tokio::time::sleep(pause).await;
                        Outcome::LeaseDue
                    });
                }
            }
            Standing::Unknown(reason) => {
                if matches!(self.role, Role::Standby(_)) {
                    self.role = Role::Standby(Some(reason));
                }
            }
        }
        self.tell_health();
    }

    /// Starts every task that can be started.
    pub(super) fn pump(&mut self, myself: &ActorRef<BridgeMessage>) {
        self.mark(myself);
        self.park(myself);
        if matches!(self.role, Role::Active) && self.lease.is_believed() {
            while let Some((batch, rows)) = self.window.take() {
                self.publish(myself, batch, rows);
            }
            self.read(myself);
        }
        let awaited = matches!(&self.role, Role::Draining(replies) if !replies.is_empty());
        if awaited && self.window.is_settled() && !self.lease.is_asking() && !self.releasing {
            self.release(myself);
        }
    }

    fn measure(&mut self, myself: &ActorRef<BridgeMessage>) {
        metrics::gauge!("hygeia_bridge_window_rows").set(self.window.len() as f64);
        let now = self.args.clock.mono();
        let every = Duration::from_millis(self.args.settings.depth_poll_ms);
        if self.measured_at.is_some_and(|at| now.since(at) < every) {
            return;
        }
        self.measured_at = Some(now);
        let (outbox, clock) = (Arc::clone(&self.args.outbox), Arc::clone(&self.args.clock));
        let limit = self.args.settings.store_timeout();
        self.run(myself, Outcome::Measured(None), async move {
            Outcome::Measured(task::depth(outbox, clock, limit).await)
        });
    }

    fn look_at_link(&mut self, myself: &ActorRef<BridgeMessage>) {
        let link = self.args.broker.link();
        self.full_ticks = if link == Link::Full { self.full_ticks.saturating_add(1) } else { 0 };
        if self.probing || !matches!(link, Link::Away(_)) {
            return;
        }
        self.probing = true;
        let broker = Arc::clone(&self.args.broker);
        self.run(myself, Outcome::Probed, async move {
            // The link holds the result.
            let _ = broker.probe().await;
            Outcome::Probed
        });
    }

    pub(super) fn drain(&mut self, myself: &ActorRef<BridgeMessage>, reply: RpcReplyPort<bool>) {
        self.window.forget();
        if let Role::Draining(replies) = &mut self.role {
            replies.push(reply);
        } else {
            self.role = Role::Draining(vec![reply]);
        }
        let limit = Duration::from_millis(self.args.settings.drain_timeout_ms);
        self.run(myself, Outcome::DrainTimeout, async move {
            tokio::time::sleep(limit).await;
            Outcome::DrainTimeout
        });
        self.tell_health();
    }

    fn release(&mut self, myself: &ActorRef<BridgeMessage>) {
        let Some(release) = self.lease.release(self.args.settings.store_timeout()) else {
            return self.drained(true);
        };
        self.releasing = true;
        self.run(myself, Outcome::Released, async move {
            release.await;
            Outcome::Released
        });
    }

    fn drained(&mut self, settled: bool) {
        if let Role::Draining(replies) = &mut self.role {
            for reply in replies.drain(..) {
                let _ = reply.send(settled);
            }
        }
    }

    fn tell_health(&self) {
        let explained = |reason: String| Status::Explained(reason);
        let status = match (&self.role, self.args.broker.link()) {
            (Role::Draining(_), _) => explained("stopping".into()),
            (Role::Standby(None), _) if self.lease.is_asking() => return,
            (Role::Standby(None), _) => explained("another node publishes; this one stands by".into()),
            (Role::Standby(Some(reason)), _) => explained(format!("no lease: {reason}")),
            (Role::Preparing(Some(reason)), _) => explained(reason.clone()),
            (Role::Preparing(None), _) => explained("getting ready".into()),
            (Role::Active, Link::Away(reason)) => explained(format!("the broker is away: {reason}")),
            (Role::Active, _) if !self.lease.is_believed() => {
                explained("the lease could not be renewed".into())
            }
            (Role::Active, Link::Up) if let Some(reason) = &self.store_error => explained(reason.clone()),
            (Role::Active, Link::Full) if self.full_ticks >= FULL_TICKS => {
                explained("the embedded broker is full of what analytics has not read".into())
            }
            (Role::Active, _) => self.burden().map_or(Status::Ready, explained),
        };
        self.args.health.report(PART, status);
    }

    /// Returns the problem that health should report although the broker answers.
    fn burden(&self) -> Option<String> {
        let TopicLog { no, replay_done, .. } = self.log.as_ref()?;
        if !replay_done {
            return Some(format!(
                "the topic has a new log, number {no}: events of earlier ones are published again"
            ));
        }
        let rows = self.parked_events;
        let parked = (rows > 0).then(|| {
            format!("{rows} events of the outbox are parked and hold back what follows for their patients")
        });
        let max_ms = self.args.settings.waiting_max_ms;
        let waited_us = self.oldest_at.map_or(0, |oldest| self.args.clock.now().0.saturating_sub(oldest.0));
        let waits = (u64::try_from(waited_us).unwrap_or(0) > max_ms.saturating_mul(1_000))
            .then(|| format!("events wait for Kafka for longer than bridge.waiting_max_ms, {max_ms} ms"));
        // A parked event that waits is expected, so it is not reported as late.
        parked.or(waits)
    }
}
