//! Reads a summary: the counts, and the number of events that are not counted yet.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use time::Duration as Days;
use tokio::sync::Mutex;

use super::progress::Progress;
use super::{AnalyticsArgs, SummaryView};
use crate::actors::background::within;
use crate::actors::entity::Failure;
use crate::domain::analytics::{REGISTRATION_DAYS, band_births, summarize};
use crate::domain::time::MonoTime;
use crate::kafka::Link;
use crate::store::ProjectionSource;

/// The number of events that are not counted yet. One measurement runs at a time. Callers that wait for it
/// share a result only if its measurement began after they came, so no caller gets an outdated result.
pub(super) struct Lag {
    last: Mutex<Option<(MonoTime, u64)>>,
    limit: Duration,
    /// The number of the log for which no event of an earlier log still has to be put back.
    put_back: AtomicI64,
    progress: std::sync::Mutex<Progress>,
}

impl Lag {
    pub(super) fn new(args: &AnalyticsArgs) -> Self {
        Lag {
            last: Mutex::new(None),
            limit: Duration::from_millis(args.settings.lag_timeout_ms),
            put_back: AtomicI64::new(0),
            progress: std::sync::Mutex::new(Progress::begin(args.clock.mono())),
        }
    }

    /// Returns how long the oldest uncounted event of the topic has waited, or may have waited, as of the
    /// last look.
    pub(super) fn age(&self, args: &AnalyticsArgs) -> Duration {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).age(args.clock.mono())
    }

    /// Returns the reason for health if the age exceeds the limit.
    pub(super) fn waits(&self, args: &AnalyticsArgs) -> Option<String> {
        let max_ms = args.settings.waiting_max_ms;
        (self.age(args) > Duration::from_millis(max_ms)).then(|| {
            format!("events wait to be counted for longer than analytics.waiting_max_ms, {max_ms} ms")
        })
    }

    /// Returns the lag, or `None` if it cannot be determined within the limit.
    pub(super) async fn events(&self, args: &AnalyticsArgs) -> Option<u64> {
        tokio::time::timeout(self.limit, self.ask_or_recall(args)).await.ok().flatten()
    }

    async fn ask_or_recall(&self, args: &AnalyticsArgs) -> Option<u64> {
        let came = args.clock.mono();
        let mut last = self.last.lock().await;
        if let Some((asked, events)) = *last
            && asked > came
        {
            return Some(events);
        }
        let asked = args.clock.mono();
        let events = self.ask(args).await?;
        *last = Some((asked, events));
        Some(events)
    }

    /// Adds the events in the outbox and the messages of the topic behind the offsets. They are read in the
    /// order in which events pass, so that a moving event may be counted twice but is never missed. Returns
    /// `None` while events that were lost with an earlier log are not put back yet, because nothing counts
    /// them until then.
    async fn ask(&self, args: &AnalyticsArgs) -> Option<u64> {
        if matches!(args.broker.link(), Link::Away(_)) {
            return None;
        }
        let (log_no, source) = source(args).await.ok()?;
        if self.put_back.load(Ordering::Relaxed) != log_no {
            if args.outbox.any_forgotten(&source.broker).await.ok()? {
                return None;
            }
            self.put_back.store(log_no, Ordering::Relaxed);
        }
        let unpublished = args.outbox.outbox_depth().await.ok()?.unpublished_rows;
        let watermarks = args.broker.watermarks().await.ok()?;
        let looked = args.clock.mono();
        let offsets = args.projections.offsets(&source).await.ok()?;
        let next = |partition| offsets.iter().find(|o| o.partition == partition).map(|o| o.next_offset);
        // An offset beyond the end belongs to a lost log. Then the number of uncounted messages in this log
        // is unknown.
        let unread = watermarks.iter().map(|w| {
            let next = next(w.partition).map_or(w.low, |next| next.max(w.low));
            u64::try_from(w.high - next).ok()
        });
        let unread = unread.sum::<Option<u64>>()?;
        let ends = watermarks.iter().map(|w| (w.partition, w.high)).collect();
        let low = |partition| watermarks.iter().find(|w| w.partition == partition).map_or(0, |w| w.low);
        let next = |partition| next(partition).unwrap_or(0).max(low(partition));
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).saw(looked, log_no, ends, next);
        Some(unpublished + unread)
    }
}

/// Returns the number and the source of the log whose offsets count.
///
/// # Errors
/// The reason if the log is unknown: the broker or the database is unavailable, or the bridge has not
/// recorded the log of this broker yet.
pub(super) async fn source(args: &AnalyticsArgs) -> Result<(i64, ProjectionSource), String> {
    let cluster = args.broker.cluster_id().await.map_err(|e| e.to_string())?;
    let names = args.broker.names();
    let limit = Duration::from_millis(args.settings.store_timeout_ms);
    let log = within(limit, args.logs.topic_log()).await.map_err(|e| e.to_string())?;
    let log = log.filter(|log| log.cluster == cluster && *log.topic == *names.topic);
    let log = log.ok_or("the bridge has not said yet which log of this broker it publishes to")?;
    let (group, topic) = (names.group.to_string(), names.topic.to_string());
    Ok((log.no, ProjectionSource { group, broker: log.name, topic }))
}

/// Reads the summary, by `deadline`.
pub(super) async fn read(
    args: &AnalyticsArgs,
    lag: &Lag,
    deadline: MonoTime,
) -> Result<SummaryView, Failure> {
    let left = deadline.since(args.clock.mono());
    if left.is_zero() {
        return Err(Failure::Expired);
    }
    let as_of = args.clock.now();
    let today = as_of.date();
    let first_day = today - Days::days(REGISTRATION_DAYS - 1);
    // The lag gets only part of the time, because a summary is useful without it. It is read first, so that
    // every event outside the lag is in the counts.
    let lag_events = tokio::time::timeout(left / 2, lag.events(args)).await.ok().flatten();
    let left = deadline.since(args.clock.mono());
    let counts = tokio::time::timeout(left, args.projections.counts(first_day, &band_births(today)))
        .await
        .map_err(|_| Failure::Expired)?
        .map_err(|_| Failure::Unavailable)?;
    Ok(SummaryView { summary: summarize(&counts, today), lag_events, as_of })
}
