//! The limit on restarts of a child: intensity and period as in Erlang/OTP supervisors (OTP Design
//! Principles, "Supervisor Behaviour"), with a growing pause between restarts.

use std::collections::VecDeque;
use std::time::Duration;

use crate::domain::time::MonoTime;

/// The limits on restarts.
#[derive(Clone, Copy, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RestartPolicy {
    /// Restarts accepted within `period_ms`; at one more the supervisor gives up.
    pub restarts_max: usize,
    /// The window in which restarts are counted, in milliseconds.
    pub period_ms: u64,
    /// The pause before the first restart in the window, in milliseconds; it doubles with each further
    /// restart.
    pub pause_ms: u64,
    /// The longest pause, in milliseconds.
    pub pause_max_ms: u64,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        RestartPolicy { restarts_max: 10, period_ms: 30_000, pause_ms: 10, pause_max_ms: 2_000 }
    }
}

/// The recent restarts of one child.
#[derive(Clone, Debug)]
pub struct RestartBudget {
    policy: RestartPolicy,
    recent: VecDeque<MonoTime>,
}

impl RestartBudget {
    /// The budget of a child that was never restarted.
    pub fn new(policy: RestartPolicy) -> Self {
        RestartBudget { policy, recent: VecDeque::new() }
    }

    /// Records that the child ended at `now`. Returns the pause before its restart, or `None` if it ended too
    /// often.
    pub fn spend(&mut self, now: MonoTime) -> Option<Duration> {
        let period = Duration::from_millis(self.policy.period_ms);
        while self.recent.front().is_some_and(|at| now.since(*at) >= period) {
            self.recent.pop_front();
        }
        if self.recent.len() >= self.policy.restarts_max {
            return None;
        }
        let doublings = u32::try_from(self.recent.len()).unwrap_or(u32::MAX).min(20);
        self.recent.push_back(now);
        let pause = self.policy.pause_ms.saturating_mul(1 << doublings).min(self.policy.pause_max_ms);
        Some(Duration::from_millis(pause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn budget() -> RestartBudget {
        RestartBudget::new(RestartPolicy {
            restarts_max: 3,
            period_ms: 10_000,
            pause_ms: 100,
            pause_max_ms: 250,
        })
    }

    #[test]
    fn pauses_grow_and_the_budget_ends() {
        let mut budget = budget();
        let pauses: Vec<_> = (0..4).map(|n| budget.spend(MonoTime(n * SECOND))).collect();
        let ms = |n| Some(Duration::from_millis(n));
        assert_eq!(pauses, [ms(100), ms(200), ms(250), None]);
    }

    #[test]
    fn old_restarts_are_forgotten() {
        let mut budget = budget();
        for n in 0..3 {
            assert!(budget.spend(MonoTime(n * SECOND)).is_some());
        }
        assert_eq!(budget.spend(MonoTime(9 * SECOND)), None);
        assert_eq!(budget.spend(MonoTime(12 * SECOND)), Some(Duration::from_millis(100)));
    }
}
