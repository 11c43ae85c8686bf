//! For how long the oldest event that is not counted has waited.
//!
//! The topic does not say when a message was decided, and the number of messages says nothing of time. So the ends of
//! the partitions are remembered each time they are looked at. An end that the offsets have reached was counted in full;
//! the first one that they have not reached tells for how long something has been waiting. While nothing can be known,
//! the wait grows.

use std::collections::VecDeque;
use std::time::Duration;

use crate::domain::time::MonoTime;

/// How many looks are remembered; beyond that, every second one is forgotten.
const LOOKS_MAX: usize = 128;

/// What is remembered.
pub(super) struct Progress {
    /// All that was there at this time is counted.
    counted_at: MonoTime,
    log_no: i64,
    looks: VecDeque<Look>,
}

struct Look {
    at: MonoTime,
    /// Per partition, the offset behind its last message.
    ends: Vec<(i32, i64)>,
}

impl Progress {
    /// From now on.
    pub(super) fn begin(now: MonoTime) -> Self {
        Progress { counted_at: now, log_no: 0, looks: VecDeque::new() }
    }

    /// The partitions ended there, and the next offset to be counted is `next`.
    pub(super) fn saw(
        &mut self,
        at: MonoTime,
        log_no: i64,
        ends: Vec<(i32, i64)>,
        next: impl Fn(i32) -> i64,
    ) {
        if self.log_no != log_no {
            // Offsets of another log say nothing of this one.
            self.log_no = log_no;
            self.looks.clear();
        }
        self.looks.push_back(Look { at, ends });
        while let Some(look) = self.looks.front() {
            if look.ends.iter().any(|(partition, end)| next(*partition) < *end) {
                break;
            }
            self.counted_at = look.at;
            self.looks.pop_front();
        }
        if self.looks.len() > LOOKS_MAX {
            let mut number = 0;
            self.looks.retain(|_| {
                number += 1;
                number % 2 == 1
            });
        }
    }

    /// For how long something has waited, or may have.
    pub(super) fn age(&self, now: MonoTime) -> Duration {
        now.since(self.counted_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> MonoTime {
        MonoTime::default().plus(Duration::from_secs(seconds))
    }

    #[test]
    fn the_oldest_event_that_is_not_counted_tells_the_age() {
        let mut progress = Progress::begin(at(0));
        progress.saw(at(10), 1, vec![(0, 5), (1, 0)], |_| 5);
        assert_eq!(progress.age(at(10)), Duration::ZERO, "all is counted");
        progress.saw(at(20), 1, vec![(0, 8), (1, 2)], |partition| if partition == 0 { 8 } else { 0 });
        assert_eq!(
            progress.age(at(20)),
            Duration::from_secs(10),
            "partition 1 waits since a time after 10 s"
        );
        // More comes and more is counted: what came first is, what came last is not.
        progress.saw(at(30), 1, vec![(0, 9), (1, 4)], |partition| if partition == 0 { 9 } else { 3 });
        assert_eq!(progress.age(at(30)), Duration::from_secs(10));
        // Nothing can be known for a while.
        assert_eq!(progress.age(at(90)), Duration::from_secs(70));
        progress.saw(at(90), 1, vec![(0, 9), (1, 4)], |partition| if partition == 0 { 9 } else { 4 });
        assert_eq!(progress.age(at(90)), Duration::ZERO);
    }

    #[test]
    fn another_log_has_other_ends_and_memory_is_bounded() {
        let mut progress = Progress::begin(at(0));
        progress.saw(at(1), 1, vec![(0, 500)], |_| 0);
        progress.saw(at(2), 2, vec![(0, 3)], |_| 3);
        assert_eq!(progress.age(at(2)), Duration::ZERO, "the ends of the old log are forgotten");
        for second in 3..10_000 {
            progress.saw(at(second), 2, vec![(0, i64::try_from(second).unwrap())], |_| 3);
        }
        assert!(progress.looks.len() <= LOOKS_MAX);
        assert_eq!(progress.age(at(10_000)), Duration::from_secs(9_997), "the oldest stays");
    }
}
