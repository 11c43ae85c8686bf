//! The reader: joins the consumer group and counts the messages of its partitions, until the consumer ends.
//!
//! It handles one batch at a time: reads it, sends foreign messages to the dead letter topic, and counts the
//! rest in one transaction with the offsets. If the database refuses, the batch is kept and retried; counting
//! twice has no effect. If the outcome is unknown, reading continues at the offsets in the database.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::summary::{self, Lag};
use super::{AnalyticsArgs, ForeignMessages, NAME};
use crate::actors::background::{Backoff, within};
use crate::context::{Hop, TraceContext};
use crate::domain::analytics::Observation;
use crate::domain::time::MonoTime;
use crate::domain::topic_log::PartitionSight;
use crate::health::Status;
use crate::kafka::{
    self, Assignment, Consumer, ConsumerEvent, Delivery, Incoming, Link, Outgoing, Position, wire,
};
use crate::store::{self, PartitionOffset, ProjectionSource};

/// Reads until the consumer ends or the topic has another log. Returns the reason.
pub(super) async fn run(args: AnalyticsArgs, lag: Arc<Lag>) -> String {
    let (log_no, source) = log_in_use(&args).await;
    let consumer = match args.broker.consumer().await {
        Ok(consumer) => consumer,
        Err(error) => return error.to_string(),
    };
    let backoff = args.settings.backoff();
    let log_seen_at = args.clock.mono();
    let expected = BTreeMap::new();
    let mut reader =
        Reader { args, lag, log_no, log_seen_at, source, consumer, backoff, assignment: None, expected };
    match reader.read().await {
        Ok(never) => match never {},
        Err(error) => error.to_string(),
    }
}

/// Waits until the topic matches the log in use. Returns that log's number and source.
async fn log_in_use(args: &AnalyticsArgs) -> (i64, ProjectionSource) {
    let pause = Duration::from_millis(args.settings.idle_ms / 5).max(Duration::from_millis(1));
    loop {
        match looked_at(args).await {
            Ok(known) => return known,
            Err(reason) => args.health.report(NAME, Status::Explained(reason)),
        }
        tokio::time::sleep(pause).await;
    }
}

async fn looked_at(args: &AnalyticsArgs) -> Result<(i64, ProjectionSource), String> {
    let (log_no, source) = summary::source(args).await?;
    let limit = Duration::from_millis(args.settings.store_timeout_ms);
    let anchors = within(limit, args.logs.log_anchors(log_no)).await.map_err(|e| e.to_string())?;
    match args.broker.departure(&anchors).await.map_err(|e| e.to_string())? {
        None => Ok((log_no, source)),
        Some(reason) => {
            Err(format!("the topic seems to have another log, which the bridge has to begin: {reason}"))
        }
    }
}

struct Reader {
    args: AnalyticsArgs,
    lag: Arc<Lag>,
    /// The log that is read, and the last time it was known to be in use.
    log_no: i64,
    log_seen_at: MonoTime,
    source: ProjectionSource,
    consumer: Box<dyn Consumer>,
    backoff: Backoff,
    assignment: Option<Assignment>,
    /// The next offset of each partition that is read.
    expected: BTreeMap<i32, i64>,
}

impl Reader {
    async fn read(&mut self) -> kafka::Result<std::convert::Infallible> {
        let idle = Duration::from_millis(self.args.settings.idle_ms.max(1));
        loop {
            self.tell_health(None);
            self.look_at_log(idle).await?;
            match tokio::time::timeout(idle, self.consumer.next()).await {
                Err(_) => self.look_at_link().await,
                Ok(event) => match event? {
                    ConsumerEvent::Assigned(assignment) => {
                        self.assignment = Some(assignment);
                        self.position().await?;
                    }
                    ConsumerEvent::Revoked => self.assignment = None,
                    ConsumerEvent::Messages(messages) => self.count(messages).await?,
                },
            }
        }
    }

    fn tell_health(&self, trouble: Option<String>) {
        let waits = self.lag.waits(&self.args);
        let status = match (trouble, &self.assignment, self.args.broker.link()) {
            (Some(reason), ..) => Status::Explained(reason),
            (None, _, Link::Away(reason)) => Status::Explained(format!("the broker is away: {reason}")),
            (None, None, _) => {
                let joining = "joining the consumer group".to_owned();
                Status::Explained(waits.map_or(joining.clone(), |waits| format!("{joining}; {waits}")))
            }
            (None, Some(_), _) => waits.map_or(Status::Ready, Status::Explained),
        };
        self.args.health.report(NAME, status);
    }

    /// Ends the reader if the bridge has begun another log. Asks at most once per `every`.
    async fn look_at_log(&mut self, every: Duration) -> kafka::Result<()> {
        let now = self.args.clock.mono();
        if now.since(self.log_seen_at) < every {
            return Ok(());
        }
        self.log_seen_at = now;
        match self.within(self.args.logs.topic_log()).await {
            Ok(Some(log)) if log.no != self.log_no => {
                Err(kafka::Error::Ended(format!("the topic has a new log, number {}", log.no)))
            }
            // While the database does not answer, nothing is counted anyway.
            _ => Ok(()),
        }
    }

    async fn look_at_link(&self) {
        if matches!(self.args.broker.link(), Link::Away(_)) {
            // The link holds the result.
            let _ = self.args.broker.probe().await;
        }
    }

    /// Starts reading at the offsets in the database.
    async fn position(&mut self) -> kafka::Result<()> {
        let Some(assignment) = self.assignment.clone() else { return Ok(()) };
        let positions = self.positions(&assignment).await?;
        if self.consumer.start(assignment.id, &positions).await? {
            self.expected = positions.iter().map(|p| (p.partition, p.next_offset)).collect();
            tracing::info!(partitions = assignment.partitions.len(), "analytics reads its partitions");
        } else {
            // Another assignment is coming, or this one could not be started and will be assigned again.
            self.assignment = None;
        }
        Ok(())
    }

    /// Returns the offsets in the database, once reading can start there. It cannot start beyond the end of
    /// the topic: the topic has lost its end, or has another log. The reader stays in the group meanwhile,
    /// because every rejoin would make the other members rebalance.
    async fn positions(&mut self, assignment: &Assignment) -> kafka::Result<Vec<Position>> {
        let (mut failures, mut told) = (0, false);
        loop {
            let offsets = self.offsets().await;
            let ours = offsets.iter().filter(|o| assignment.partitions.contains(&o.partition));
            let positions: Vec<_> =
                ours.map(|o| Position { partition: o.partition, next_offset: o.next_offset }).collect();
            let reason = match self.args.broker.watermarks().await {
                Ok(sights) => match beyond(&positions, &sights, &mut told) {
                    Some(reason) => reason,
                    None => return Ok(positions),
                },
                Err(error) => error.to_string(),
            };
            self.wait(&mut failures, &reason).await;
            self.look_at_log(Duration::ZERO).await?;
        }
    }

    async fn offsets(&self) -> Vec<PartitionOffset> {
        let mut failures = 0;
        loop {
            match self.within(self.args.projections.offsets(&self.source)).await {
                Ok(offsets) => return offsets,
                Err(error) => self.wait(&mut failures, &error.to_string()).await,
            }
        }
    }

    async fn count(&mut self, messages: Vec<Incoming>) -> kafka::Result<()> {
        let taken_at = self.args.clock.mono();
        self.note_gaps(&messages)?;
        let mut observations = Vec::with_capacity(messages.len());
        let mut dead_letters = Vec::new();
        let mut outcomes = Vec::with_capacity(messages.len());
        let names = self.args.broker.names();
        let kept = self.args.settings.foreign_messages == ForeignMessages::DeadLetter;
        let mut foreign = Foreign::default();
        for message in &messages {
            match wire::decode(message) {
                Ok(observation) => {
                    observations.push(observation);
                    outcomes.push("ok");
                }
                Err(reason) => {
                    foreign.note(message, reason);
                    if kept {
                        let letter =
                            wire::dead_letter(&names.dead_letter_topic, &names.topic, message, reason);
                        dead_letters.push(letter);
                    }
                    outcomes.push(if kept { "dead_letter" } else { "skipped" });
                }
            }
        }
        foreign.tell(kept);
        self.put_aside(dead_letters).await;
        if self.apply(&messages, &observations).await? {
            self.log_hops(&messages, &outcomes, taken_at);
        }
        Ok(())
    }

    /// Publishes dead letters, until the broker has acknowledged all of them.
    async fn put_aside(&self, mut letters: Vec<Outgoing>) {
        let mut failures = 0;
        while !letters.is_empty() {
            let deliveries = self.args.broker.publisher().publish(&letters).await;
            let mut reason = None;
            let mut outcome = deliveries.into_iter();
            letters.retain(|_| match outcome.next() {
                Some(Delivery::Delivered(_)) => false,
                Some(Delivery::Failed(r) | Delivery::Refused(r) | Delivery::ProducerLost(r)) => {
                    reason = Some(r);
                    true
                }
                None => true,
            });
            if let Some(reason) = reason {
                self.wait(&mut failures, &format!("no dead letter can be written: {reason}")).await;
            }
        }
    }

    /// Counts the observations in one transaction with the offsets, until the database has done it. Returns
    /// `false` if the outcome is unknown; reading then continues at the offsets in the database.
    async fn apply(&mut self, messages: &[Incoming], observations: &[Observation]) -> kafka::Result<bool> {
        let next: BTreeMap<i32, i64> = messages.iter().map(|m| (m.partition, m.offset + 1)).collect();
        let offsets: Vec<_> = next
            .iter()
            .map(|(partition, next_offset)| PartitionOffset {
                partition: *partition,
                next_offset: *next_offset,
            })
            .collect();
        let mut failures = 0;
        loop {
            match self.within(self.args.projections.apply(&self.source, &offsets, observations)).await {
                Ok(applied) => {
                    metrics::counter!("hygeia_analytics_counted_total").increment(applied.counted);
                    metrics::counter!("hygeia_analytics_repeated_total").increment(applied.repeated);
                    note_given_up(applied.given_up);
                    break;
                }
                Err(store::Error::Unknown(reason)) => {
                    self.wait(&mut failures, &reason).await;
                    self.position().await?;
                    return Ok(false);
                }
                Err(error) => self.wait(&mut failures, &error.to_string()).await,
            }
        }
        let positions: Vec<_> =
            next.iter().map(|(p, n)| Position { partition: *p, next_offset: *n }).collect();
        self.consumer.applied(&positions);
        Ok(true)
    }

    fn log_hops(&self, messages: &[Incoming], outcomes: &[&'static str], taken_at: MonoTime) {
        let (now, handled) = (self.args.clock.now(), self.args.clock.mono().since(taken_at));
        for (message, outcome) in messages.iter().zip(outcomes) {
            let Some(parent) = message.traceparent.as_deref().and_then(TraceContext::parse) else { continue };
            let entity = message.key.as_deref().and_then(|k| std::str::from_utf8(k).ok());
            let since_published_us = u64::try_from(now.0 - message.published_at_us).unwrap_or(0);
            Hop {
                actor: NAME,
                message: "Count",
                entity: entity.and_then(|text| uuid::Uuid::try_parse(text).ok()),
                trace: &parent.child(),
                queued: Duration::from_micros(since_published_us).saturating_sub(handled),
                handled,
                outcome,
            }
            .log();
        }
    }

    /// Reports messages that the broker dropped before they were read, because they are missing from the
    /// count. Ends the reader if a partition goes back, because only another log does that.
    fn note_gaps(&mut self, messages: &[Incoming]) -> kafka::Result<()> {
        for message in messages {
            let Incoming { partition, offset, .. } = *message;
            if let Some(next) = self.expected.get(&partition).filter(|next| offset < **next) {
                let reason = format!("partition {partition} gives offset {offset}, and {next} was next");
                return Err(kafka::Error::Ended(format!("the topic seems to have another log: {reason}")));
            }
            let next = self.expected.insert(message.partition, message.offset + 1);
            let missed = next.map_or(0, |next| message.offset - next);
            if missed > 0 {
                metrics::counter!("hygeia_analytics_missed_total").increment(missed.unsigned_abs());
                tracing::error!(
                    partition = message.partition,
                    offset = message.offset,
                    missed,
                    "the topic does not hold offsets that were not read yet"
                );
            }
        }
        Ok(())
    }

    /// Reports a failure to health, and waits before the retry.
    async fn wait(&self, failures: &mut u32, reason: &str) {
        *failures = failures.saturating_add(1);
        self.tell_health(Some(reason.to_owned()));
        tokio::time::sleep(self.backoff.pause(*failures)).await;
    }

    async fn within<T>(&self, call: impl Future<Output = store::Result<T>>) -> store::Result<T> {
        within(Duration::from_millis(self.args.settings.store_timeout_ms), call).await
    }
}

/// Returns what is wrong with `positions`, if some lie beyond the end of the topic. Logs it the first time.
fn beyond(positions: &[Position], sights: &[PartitionSight], told: &mut bool) -> Option<String> {
    let end = |partition| sights.iter().find(|s| s.partition == partition).map_or(0, |s| s.high);
    let beyond: Vec<_> = positions.iter().filter(|p| p.next_offset > end(p.partition)).collect();
    let first = beyond.first()?;
    metrics::counter!("hygeia_analytics_offsets_beyond_total").increment(beyond.len() as u64);
    let (partition, next_offset, end) = (first.partition, first.next_offset, end(first.partition));
    if !std::mem::replace(told, true) {
        tracing::warn!(
            partitions = beyond.len(),
            partition,
            next_offset,
            end,
            "stored offsets lie behind the end of the topic; nothing is read until the bridge has looked at the log"
        );
    }
    Some(format!(
        "the stored offset {next_offset} of partition {partition} lies behind the end of the topic, {end}"
    ))
}

/// The messages of a batch that are not our events.
#[derive(Default)]
struct Foreign {
    messages: u64,
    /// Partition and offset.
    first: Option<(i32, i64)>,
    reasons: BTreeMap<String, u64>,
}

impl Foreign {
    fn note(&mut self, message: &Incoming, reason: wire::Unreadable) {
        self.messages += 1;
        self.first.get_or_insert((message.partition, message.offset));
        *self.reasons.entry(reason.to_string()).or_default() += 1;
    }

    /// Logs one line and adds to the metrics, however many messages there are.
    fn tell(&self, kept: bool) {
        let Some((partition, offset)) = self.first else { return };
        let reasons: Vec<_> =
            self.reasons.iter().map(|(reason, count)| format!("{reason}: {count}")).collect();
        let (messages, reasons) = (self.messages, reasons.join("; "));
        if kept {
            metrics::counter!("hygeia_analytics_dead_letters_total").increment(messages);
            tracing::warn!(
                messages,
                partition,
                offset,
                reasons,
                "messages are no events of ours and go to the dead letter topic"
            );
        } else {
            metrics::counter!("hygeia_analytics_skipped_total").increment(messages);
            tracing::info!(
                messages,
                partition,
                offset,
                reasons,
                "messages are no events of ours and are skipped"
            );
        }
    }
}

/// Reports events that will never be counted, because the topic has lost them and their types are unknown.
fn note_given_up(events: u64) {
    if events > 0 {
        metrics::counter!("hygeia_analytics_missed_total").increment(events);
        tracing::error!(events, "events that came too late, or never, are not counted");
    }
}
