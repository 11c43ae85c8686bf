//! What a judgement finds: violations, and of those of the order of answers, what was missed by whom. The counter-proof
//! accepts only the violation that the missing fence causes.

use std::time::Duration;

use super::history::{Call, Look, Operation, Outcome};
use super::prompt::{Outage, Why};
use super::schedule::LEASE;

/// Something that must not be.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    /// In words.
    pub(crate) text: String,
    /// The acknowledged change that an answer does not show, if that is what is wrong.
    pub(crate) missed: Option<Missed>,
}

impl From<String> for Finding {
    fn from(text: String) -> Self {
        Finding { text, missed: None }
    }
}

/// A read that was begun after a change had been acknowledged, and does not show it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Missed {
    pub(crate) change: Operation,
    pub(crate) read: Operation,
}

impl Missed {
    /// What the last answer of a history misses, if it is a read and misses something. `beginning` is a history up to
    /// its first answer that cannot be explained.
    pub(crate) fn of(beginning: &[Operation]) -> Option<Self> {
        let answered = beginning.iter().filter(|operation| operation.outcome != Outcome::Unknown);
        let read = answered.max_by_key(|operation| operation.returned)?;
        let (Call::Look(Look::Get), Outcome::Record(shown)) = (read.call, read.outcome) else { return None };
        let is_missed = |change: &&Operation| {
            change.returned < read.invoked
                && match (change.call, change.outcome) {
                    (Call::Look(_), _) => false,
                    (_, Outcome::Record(made)) => made.version > shown.version,
                    (Call::Delete { .. }, outcome) => outcome == Outcome::Ended,
                    _ => false,
                }
        };
        let missed = beginning.iter().filter(is_missed);
        let change = missed.min_by_key(|change| change.returned)?;
        Some(Missed { change: *change, read: *read })
    }

    /// Whether a client of the load was shown, by a node that had been stopped and goes on, what was true before. That
    /// is what the check of the lease before an answer prevents.
    pub(crate) fn is_stale_read(&self, outages: &[Outage]) -> bool {
        self.read.client != FINAL && self.read.front != self.change.front && went_on(&self.read, outages)
    }

    /// Whether a change that an earlier holder acknowledged is not shown: the node that holds the lease does not know of
    /// it. Either the commit was on its way to the database for longer than the lease held; or a node that had been
    /// stopped and goes on acknowledged it, and another node does not show it. That is what the check of the epoch in a
    /// commit prevents.
    pub(crate) fn is_lost_change(&self, outages: &[Outage]) -> bool {
        let of_other = self.read.front != self.change.front && went_on(&self.change, outages);
        of_other || came_late(&self.change, outages)
    }
}

/// The client that reads everything at the end of a run.
pub(crate) const FINAL: u32 = 0;

/// How long after a node goes on it may not know yet that its leases are gone.
const UNAWARE: Duration = Duration::from_secs(4);

/// Whether an operation was answered by a node just after it had been stopped.
fn went_on(operation: &Operation, outages: &[Outage]) -> bool {
    outages.iter().any(|outage| {
        outage.why == Why::Stopped(operation.front as usize)
            && (outage.to..outage.to + UNAWARE).contains(&operation.returned)
    })
}

/// Whether an operation may have waited for a commit that was longer on its way to the database than a lease holds: its
/// request was sent before or while that way was late, and answered later than a lease holds.
fn came_late(operation: &Operation, outages: &[Outage]) -> bool {
    outages.iter().any(|outage| {
        matches!(outage.why, Why::Late(_))
            && operation.sent < outage.to
            && operation.returned > outage.from
            && operation.returned.saturating_sub(operation.sent) > LEASE
    })
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "the program has no harness that would run them: `it` does")]
mod tests {
    use super::super::history::{Email, Record};
    use super::*;

    fn op(client: u32, front: u32, (from, to): (u64, u64), call: Call, outcome: Outcome) -> Operation {
        Operation {
            client,
            front,
            patient: None,
            made_by: 1,
            call,
            invoked: Duration::from_millis(from),
            sent: Duration::from_millis(from),
            returned: Duration::from_millis(to),
            due: Duration::MAX,
            tries: 1,
            outcome,
        }
    }

    fn rec(version: i64) -> Outcome {
        Outcome::Record(Record { version, name: 1, address: 1, email: Email::Own, restricted: false })
    }

    const PUT: Call = Call::Put { tag: 1, email: Email::Own, expected: None };
    const GET: Call = Call::Look(Look::Get);

    #[test]
    fn what_a_read_misses_is_the_change_that_was_acknowledged_before_it() {
        let change = op(1, 0, (0, 10), PUT, rec(2));
        let pending = op(3, 0, (5, 90), PUT, Outcome::Unknown);
        let missed =
            |read: Operation| Missed::of(&[change, pending, read]).map(|missed| missed.change.invoked);
        assert_eq!(missed(op(2, 1, (20, 30), GET, rec(1))), Some(change.invoked));
        assert_eq!(missed(op(2, 1, (20, 30), GET, rec(2))), None, "it shows it");
        assert_eq!(missed(op(2, 1, (9, 30), GET, rec(1))), None, "it was begun before");
        assert_eq!(missed(op(2, 1, (20, 30), PUT, rec(2))), None, "no read");
        let end = op(1, 0, (0, 10), Call::Delete { expected: None }, Outcome::Ended);
        assert!(Missed::of(&[end, op(2, 1, (20, 30), GET, rec(1))]).is_some());
    }

    #[test]
    fn who_was_stopped_tells_which_fence_is_missing() {
        let stop = |node, to| {
            [Outage { why: Why::Stopped(node), from: Duration::ZERO, to: Duration::from_millis(to) }]
        };
        let change = op(1, 0, (7_000, 8_010), PUT, rec(2));
        let read = |client| op(client, 1, (8_020, 8_030), GET, rec(1));
        let missed = |client| Missed { change, read: read(client) };
        // The node that made the change had been stopped.
        assert!(missed(2).is_lost_change(&stop(0, 8_000)) && !missed(2).is_stale_read(&stop(0, 8_000)));
        // The node that was read from had been stopped.
        assert!(missed(2).is_stale_read(&stop(1, 8_000)) && !missed(2).is_lost_change(&stop(1, 8_000)));
        assert!(!missed(FINAL).is_stale_read(&stop(1, 8_000)), "nobody raced");
        assert!(!missed(2).is_stale_read(&stop(1, 9_000)), "it is stopped still");
        assert!(!missed(2).is_stale_read(&stop(1, 2_000)), "long after");
    }

    #[test]
    fn a_commit_that_came_later_than_its_lease_held_tells_it_too() {
        let late = |from, to| {
            [Outage { why: Why::Late(2), from: Duration::from_millis(from), to: Duration::from_millis(to) }]
        };
        let missed = |sent, returned| {
            let change = op(1, 1, (sent, returned), PUT, rec(2));
            Missed { change, read: op(2, 1, (returned + 10, returned + 20), GET, rec(1)) }
        };
        assert!(missed(990, 5_400).is_lost_change(&late(1_000, 7_000)), "through any front");
        assert!(!missed(990, 3_900).is_lost_change(&late(1_000, 7_000)), "the lease may have held");
        assert!(!missed(7_000, 11_400).is_lost_change(&late(1_000, 7_000)), "sent later");
        assert!(!missed(990, 5_400).is_lost_change(&[]));
        assert!(!missed(990, 5_400).is_stale_read(&late(1_000, 7_000)), "nobody was stopped");
    }
}
