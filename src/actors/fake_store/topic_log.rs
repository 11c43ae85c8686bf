//! The topic's log and its replay, in memory.

use std::collections::HashSet;

use async_trait::async_trait;

use super::FakeStore;
use crate::domain::event::OutboxEvent;
use crate::domain::time::Timestamp;
use crate::domain::topic_log::LogAnchor;
use crate::store::{NextLog, Replay, Replayed, Result, TopicLog, TopicLogStore};

#[async_trait]
impl TopicLogStore for FakeStore {
    async fn topic_log(&self) -> Result<Option<TopicLog>> {
        self.attempt("topic_log", |state| state.log.clone())
    }

    async fn log_anchors(&self, no: i64) -> Result<Vec<LogAnchor>> {
        self.attempt("log_anchors", |state| {
            if state.log.as_ref().is_none_or(|log| log.no != no) {
                return Vec::new();
            }
            let of_log = state.offsets.iter().filter(|((_, broker, ..), _)| broker == state.name());
            let read = of_log.filter(|(_, next)| **next > 0).map(|((.., partition), next)| LogAnchor {
                partition: *partition,
                offset: next - 1,
                event_id: None,
            });
            state.anchors.values().copied().chain(read).collect()
        })
    }

    async fn begin_log(&self, next: &NextLog) -> Result<TopicLog> {
        self.attempt("begin_log", |state| {
            let no = state.log.as_ref().map_or(0, |log| log.no);
            if no == next.after {
                let since = match next.replay {
                    Replay::Uncounted => None,
                    Replay::Since(at) => Some(at.0),
                };
                state.log = Some(TopicLog {
                    no: no + 1,
                    name: if no == 0 { next.cluster.clone() } else { format!("{}#{}", next.cluster, no + 1) },
                    cluster: next.cluster.clone(),
                    topic: next.topic.clone(),
                    began_at: next.at,
                    reason: next.reason.clone(),
                    replay_done: since.is_none() || state.events.is_empty(),
                    replayed_rows: 0,
                });
                state.anchors.clear();
                state.replay = None;
                state.replay_since = since.unwrap_or(i64::MAX);
                state.replayed.clear();
            }
            state.log.clone().expect("a log")
        })
    }

    async fn replay_waiting(&self, no: i64, known: &[i64], _now: Timestamp, rows_max: u32) -> Result<u64> {
        self.attempt("replay_waiting", |state| {
            if !state.replays(no) {
                return 0;
            }
            let waiting = state.events.iter().filter(|(seq, (_, p))| p.is_none() && !known.contains(seq));
            let first = waiting.take(rows_max as usize).map(|(_, (event, _))| event.recorded.patient_id());
            let due = first.filter(|id| *id >= state.place().0 && !state.replayed.contains(id));
            let due: HashSet<_> = due.collect();
            let behind = |event: &OutboxEvent| {
                let at = (event.recorded.patient_id(), event.recorded.version());
                due.contains(&at.0) && at > state.place()
            };
            let seqs: Vec<_> =
                state.events.iter().filter(|(_, (event, _))| behind(event)).map(|(seq, _)| *seq).collect();
            for seq in seqs {
                state.put_back(seq);
            }
            state.replayed.extend(&due);
            due.len() as u64
        })
    }

    async fn replay_next(&self, no: i64, rows_max: u32) -> Result<Replayed> {
        self.attempt("replay_next", |state| {
            if !state.replays(no) {
                return Replayed { rows: 0, done: true };
            }
            let at = |event: &OutboxEvent| (event.recorded.patient_id(), event.recorded.version());
            let mut behind: Vec<_> = state.events.iter().map(|(seq, (event, _))| (at(event), *seq)).collect();
            behind.retain(|(at, _)| *at > state.place());
            behind.sort_unstable();
            behind.truncate(rows_max as usize);
            let mut rows = 0;
            for (at, seq) in &behind {
                if !state.replayed.contains(&at.0) {
                    rows += state.put_back(*seq);
                }
                state.replay = Some(*at);
            }
            let done = behind.len() < rows_max as usize;
            state.log.as_mut().expect("a log").replay_done = done;
            Replayed { rows, done }
        })
    }
}

/// Returns a placeholder log, with no name and a finished replay.
pub(super) fn unknown() -> TopicLog {
    TopicLog {
        no: 1,
        name: String::new(),
        cluster: String::new(),
        topic: String::new(),
        began_at: Timestamp(0),
        reason: String::new(),
        replay_done: true,
        replayed_rows: 0,
    }
}
