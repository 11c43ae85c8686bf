//! How long the oldest uncounted event has waited.
//!
//! Kafka's offsets carry no decision times, and the number of messages says nothing about time. So the end
//! offsets of the partitions are remembered at each look. If the committed offsets have reached the ends of a
//! look, everything present at that look is counted. The first look whose ends they have not reached shows
//! how long an event has been waiting. While nothing can be determined, the age grows.

use std::collections::VecDeque;
use std::time::Duration;

use crate::domain::time::MonoTime;

/// The maximum number of looks in memory. Beyond it, every second one is dropped.
const LOOKS_MAX: usize = 128;

/// The looks at the topic that are not fully counted yet.
pub(super) struct Progress {
    /// Everything in the topic at this time is counted.
    counted_at: MonoTime,
    log_no: i64,
    looks: VecDeque<Look>,
}

struct Look {
    at: MonoTime,
    /// The end offset of each partition, one past its last message.
    ends: Vec<(i32, i64)>,
}

impl Progress {
    /// Starts with the assumption that everything is counted at `now`.
    pub(super) fn begin(now: MonoTime) -> Self {
        Progress { counted_at: now, log_no: 0, looks: VecDeque::new() }
    }

    /// Records a look at the topic. `ends` holds the end offset of each partition; `next` returns the next
    /// offset to count.
    pub(super) fn saw(
        &mut self,
        at: MonoTime,
        log_no: i64,
        ends: Vec<(i32, i64)>,
        next: impl Fn(i32) -> i64,
    ) {
        if self.log_no != log_no {
            // Offsets of another log do not apply to this one.
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

    /// Returns how long an event has waited, or may have waited.
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
        // More events arrive and more are counted: the first ones are counted, the last one is not.
        progress.saw(at(30), 1, vec![(0, 9), (1, 4)], |partition| if partition == 0 { 9 } else { 3 });
        assert_eq!(progress.age(at(30)), Duration::from_secs(10));
        // Nothing can be determined for a while.
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
