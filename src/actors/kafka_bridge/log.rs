//! Identifies the topic's log, and begins a new one if the topic has another log. Only the bridge begins
//! logs.

use std::time::Duration;

use super::KafkaBridgeArgs;
use super::ReplayOf;
use crate::actors::background::within;
use crate::domain::time::Timestamp;
use crate::domain::topic_log::LogAnchor;
use crate::store::{NextLog, Replay, TopicLog};

/// The pause between a first sign of another log and the second check, because a partition whose leader has
/// just changed may seem shorter than it is.
const CONFIRM_AFTER: Duration = Duration::from_millis(500);

/// The log in use, and the anchors known to be in it.
pub(super) struct Identified {
    pub(super) log: TopicLog,
    pub(super) anchors: Vec<LogAnchor>,
}

/// Returns the log that the topic has now. If it is not the known log, begins a new one.
pub(super) async fn identify(args: &KafkaBridgeArgs) -> Result<Identified, String> {
    let limit = args.settings.store_timeout();
    let cluster = args.broker.cluster_id().await.map_err(|e| e.to_string())?;
    let topic = args.broker.names().topic;
    let known = within(limit, args.logs.topic_log()).await.map_err(|e| e.to_string())?;
    let reason = match &known {
        None => "no log was known".to_owned(),
        Some(log) if *log.topic != *topic => format!("the topic was {} before", log.topic),
        Some(log) if log.cluster != cluster => "another broker was in use before".to_owned(),
        Some(log) => match confirmed_departure(args, log.no).await? {
            Ok(anchors) => return Ok(Identified { log: log.clone(), anchors }),
            Err(reason) => reason,
        },
    };
    let next = NextLog {
        after: known.as_ref().map_or(0, |log| log.no),
        cluster,
        topic: topic.to_string(),
        at: args.clock.now(),
        reason,
        replay: replay(args).await,
    };
    let log = within(limit, args.logs.begin_log(&next)).await.map_err(|e| e.to_string())?;
    if log.no == next.after + 1 {
        tell(&log, next.after == 0);
    }
    let anchors = within(limit, args.logs.log_anchors(log.no)).await.map_err(|e| e.to_string())?;
    Ok(Identified { log, anchors })
}

fn tell(log: &TopicLog, first: bool) {
    let TopicLog { no, topic, reason, replay_done, .. } = log;
    if first {
        tracing::info!(no, topic, "events are published to a log that was not known before");
        return;
    }
    metrics::counter!("hygeia_kafka_logs_begun_total").increment(1);
    let replay = !replay_done;
    tracing::warn!(
        no,
        topic,
        reason,
        replay,
        "the topic has another log than before; what it has to hold is published again"
    );
}

/// Returns the anchors of the log `no`. The inner error is the reason why the topic has another log.
async fn confirmed_departure(
    args: &KafkaBridgeArgs,
    no: i64,
) -> Result<Result<Vec<LogAnchor>, String>, String> {
    let (anchors, sign) = departure(args, no).await?;
    if sign.is_none() {
        return Ok(Ok(anchors));
    }
    tokio::time::sleep(CONFIRM_AFTER).await;
    let again = args.broker.departure(&anchors).await.map_err(|e| e.to_string())?;
    Ok(again.map_or(Ok(anchors), Err))
}

async fn anchors_of(args: &KafkaBridgeArgs, no: i64) -> Result<Vec<LogAnchor>, String> {
    within(args.settings.store_timeout(), args.logs.log_anchors(no)).await.map_err(|e| e.to_string())
}

/// Checks the topic once. Returns the anchors of the log `no`, and the reason if the topic seems to have
/// another log.
pub(super) async fn departure(
    args: &KafkaBridgeArgs,
    no: i64,
) -> Result<(Vec<LogAnchor>, Option<String>), String> {
    let anchors = anchors_of(args, no).await?;
    let reason = args.broker.departure(&anchors).await.map_err(|e| e.to_string())?;
    Ok((anchors, reason))
}

/// Returns the replay that a new log needs.
async fn replay(args: &KafkaBridgeArgs) -> Replay {
    let always = Replay::Since(Timestamp(i64::MIN));
    match args.settings.replay {
        ReplayOf::Uncounted => Replay::Uncounted,
        ReplayOf::Everything => always,
        ReplayOf::Retention => match args.broker.retention().await {
            Ok(None) => always,
            Ok(Some(kept)) => {
                let kept_us = i64::try_from(kept.as_micros()).unwrap_or(i64::MAX);
                Replay::Since(Timestamp(args.clock.now().0.saturating_sub(kept_us)))
            }
            Err(error) => {
                tracing::warn!(%error, "the retention of the topic is not known; all events count as within it");
                always
            }
        },
    }
}
