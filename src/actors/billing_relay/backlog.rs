//! What the relay remembers between two rounds: which rows failed and when each is due again, and
//! whether the relay as a whole pauses. No I/O, no clock: `now` comes in.
//!
//! Invariants:
//! - A failing row never keeps others out: the window read from the outbox is wider by the rows that
//!   are remembered, and what was never tried comes first.
//! - A row is forgotten when it leaves the window: someone billed it, or it is parked.
//! - At most `failing_rows_max` rows are remembered. A row beyond that is parked at its first failure, or it would
//!   be tried before the others in every round.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::Settings;
use super::round::Report;
use crate::domain::time::MonoTime;

/// What the next round is to do.
pub(super) struct Plan {
    /// How many rows to read.
    pub(super) limit_rows: u32,
    /// Rows among them that failed and are due for another try.
    pub(super) due: HashSet<i64>,
    /// Rows among them that failed and are not due yet.
    pub(super) not_due: HashSet<i64>,
    /// Due rows that are parked if they fail once more, unless nothing works.
    pub(super) last_try: HashSet<i64>,
    /// How many further failing rows can be remembered.
    pub(super) memory_rows: usize,
}

/// How often something failed in a row, and when to try it again.
#[derive(Clone, Copy)]
struct Retry {
    tries: u32,
    due: MonoTime,
}

impl Retry {
    /// One more failure at `now`: twice the wait of the last, the later half of it at random, so that
    /// relays that failed together do not come back together.
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
    /// The next round, or `None` while the relay pauses.
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

    /// How long the relay still pauses, if it does.
    pub(super) fn resume_in(&self, now: MonoTime) -> Option<Duration> {
        self.pause.map(|pause| pause.due.since(now)).filter(|left| !left.is_zero())
    }

    /// How many rows failed and are still in the outbox.
    pub(super) fn failing_rows(&self) -> usize {
        self.rows.len()
    }

    /// Learns from a round; `None` is one that died.
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
