//! The relay's memory between two rounds: the failed rows, when each is due again, and whether the
//! whole relay pauses. No I/O and no clock; the caller passes `now`.
//!
//! Invariants:
//! - A failing row never keeps other rows out. The window read from the outbox is extended by the number of
//!   remembered rows, and rows that were never tried come first.
//! - A row is forgotten when it leaves the window, because it was billed or parked.
//! - At most `failing_rows_max` rows are remembered. A row beyond that is parked at its first failure,
//!   because otherwise it would be tried before others in every round.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::Settings;
use super::round::Report;
use crate::domain::time::MonoTime;

/// The plan of the next round.
pub(super) struct Plan {
    /// The number of rows to read.
    pub(super) limit_rows: u32,
    /// Rows that failed and are due for a retry.
    pub(super) due: HashSet<i64>,
    /// Rows that failed and are not due yet.
    pub(super) not_due: HashSet<i64>,
    /// Due rows that are parked if they fail once more, unless nothing works.
    pub(super) last_try: HashSet<i64>,
    /// The number of further failing rows that can be remembered.
    pub(super) memory_rows: usize,
}

/// The number of consecutive failures, and the time of the next attempt.
#[derive(Clone, Copy)]
struct Retry {
    tries: u32,
    due: MonoTime,
}

impl Retry {
    /// Returns the retry after one more failure at `now`. The wait doubles each time, and its second half is
    /// random, so that relays that failed together do not retry together.
    fn after(last: Option<&Retry>, now: MonoTime, (min_ms, max_ms): (u64, u64)) -> Retry {
        let tries = last.map_or(0, |r| r.tries).saturating_add(1);
        let full_ms = min_ms.max(1).saturating_mul(1 << (tries - 1).min(20)).min(max_ms.max(1));
        let wait = Duration::from_millis(full_ms).mul_f64(0.5 + fastrand::f64() / 2.0);
        Retry { tries, due: now.plus(wait) }
    }
}

#[derive(Default)]
pub(super) struct Backlog {
    rows: HashMap<i64, Retry>,
    pause: Option<Retry>,
}

impl Backlog {
    /// Returns the plan of the next round, or `None` while the relay pauses.
    pub(super) fn plan(&self, settings: &Settings, now: MonoTime) -> Option<Plan> {
        if self.resume_in(now).is_some() {
            return None;
        }
        let (due, not_due): (HashSet<i64>, HashSet<i64>) =
            self.rows.keys().partition(|seq| self.rows[*seq].due <= now);
        let wider = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
        let last_try = due.iter().filter(|seq| self.rows[*seq].tries + 1 >= settings.park_after_failures);
        Some(Plan {
            limit_rows: settings.batch_rows_max.max(1).saturating_add(wider),
            last_try: last_try.copied().collect(),
            due,
            not_due,
            memory_rows: settings.failing_rows_max.saturating_sub(self.rows.len()),
        })
    }

    /// Returns how long the relay still pauses, if it does.
    pub(super) fn resume_in(&self, now: MonoTime) -> Option<Duration> {
        self.pause.map(|pause| pause.due.since(now)).filter(|left| !left.is_zero())
    }

    /// Returns the number of rows that failed and are still in the outbox.
    pub(super) fn failing_rows(&self) -> usize {
        self.rows.len()
    }

    /// Records the result of a round. `None` means that the round died.
    pub(super) fn round_ended(&mut self, settings: &Settings, report: Option<&Report>, now: MonoTime) {
        let pause_ms = (settings.pause_min_ms, settings.pause_max_ms);
        let row_ms = (settings.row_backoff_min_ms, settings.row_backoff_max_ms);
        let Some(report) = report else {
            self.pause = Some(Retry::after(self.pause.as_ref(), now, pause_ms));
            return;
        };
        if let Some(window) = &report.window {
            self.rows.retain(|seq, _| window.contains(seq));
        }
        for seq in report.billed.iter().chain(&report.parked) {
            self.rows.remove(seq);
        }
        for (seq, _) in report.failed.iter().filter(|(seq, _)| !report.parked.contains(seq)) {
            if self.rows.contains_key(seq) || self.rows.len() < settings.failing_rows_max {
                let retry = Retry::after(self.rows.get(seq), now, row_ms);
                self.rows.insert(*seq, retry);
            }
        }
        self.pause = report.nothing_works().then(|| Retry::after(self.pause.as_ref(), now, pause_ms));
    }
}
