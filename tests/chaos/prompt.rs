//! Whether every request was answered in time, by a node that could run, as seen by a client that could run.

use std::time::Duration;

/// The time within which a node answers.
const DEADLINE: Duration = Duration::from_secs(5);
/// What an answer may take beyond that, on its way and in the client.
const GRACE: Duration = Duration::from_millis(200);
/// How long after a node was told to end, or was started, connections may break.
const AFTERMATH: Duration = Duration::from_secs(1);

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// With an answer.
    Answered,
    /// There was no connection, so nothing was sent.
    NotSent,
    /// The connection broke.
    Broken,
    /// The client did not wait any longer.
    GaveUp,
}

/// One request. Times are from the beginning of the run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Try {
    /// The number of the node that was asked.
    pub(crate) node: usize,
    pub(crate) sent: Duration,
    pub(crate) returned: Duration,
    pub(crate) heard: Heard,
}

/// Why somebody could not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// The node was stopped.
    Stopped(usize),
    /// The node was told to end, or was killed, until it was started again.
    Ended(usize),
    /// What the node sent to the database came later than a lease holds. The node itself could run.
    Late(usize),
    /// This program got no processor.
    Starved,
}

/// A time for which somebody could not run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outage {
    pub(crate) why: Why,
    pub(crate) from: Duration,
    pub(crate) to: Duration,
}

/// The latest moment for the answer to what was sent to `node` at `sent`. A node that was stopped meanwhile has its
/// whole time from when it goes on, because it may read the request only then. What this program itself was late by
/// until `returned` is added.
pub(crate) fn due(node: usize, sent: Duration, returned: Duration, outages: &[Outage]) -> Duration {
    let mut due = sent + DEADLINE;
    for stop in outages.iter().filter(|outage| outage.why == Why::Stopped(node)) {
        if stop.from < due && stop.to > sent {
            due = due.max(stop.to + DEADLINE);
        }
    }
    let starved = outages.iter().filter(|outage| outage.why == Why::Starved);
    let late = starved.map(|outage| outage.to.min(returned).saturating_sub(outage.from.max(sent)));
    due + GRACE + late.sum::<Duration>()
}

/// Requests that were not answered in time, and those whose connection a node broke that nobody had ended, in words.
pub(crate) fn unanswered(tries: &[Try], outages: &[Outage]) -> Vec<String> {
    let mut wrong = Vec::new();
    for asked in tries.iter().filter(|asked| asked.heard != Heard::NotSent) {
        let Try { node, sent, returned, heard } = *asked;
        let due = due(node, sent, returned, outages);
        let took = |to: Duration| to.saturating_sub(sent).as_millis();
        if returned > due {
            let (took, allowed) = (took(returned), took(due));
            wrong.push(format!(
                "late: node {node} was asked at {sent:.3?}: {heard:?} after {took} ms, due in {allowed}"
            ));
        } else if heard == Heard::Broken && !is_explained(*asked, outages) {
            wrong.push(format!(
                "node {node} was asked at {sent:.3?} and broke the connection after {} ms",
                took(returned)
            ));
        }
    }
    wrong
}

/// Whether the node was ended or stopped while it was asked.
fn is_explained(asked: Try, outages: &[Outage]) -> bool {
    outages.iter().any(|outage| match outage.why {
        Why::Ended(node) => {
            node == asked.node && outage.from <= asked.returned && asked.sent <= outage.to + AFTERMATH
        }
        Why::Stopped(node) => {
            node == asked.node && outage.from <= asked.returned && asked.sent <= outage.to + AFTERMATH
        }
        Why::Late(_) | Why::Starved => false,
    })
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "the program has no harness that would run them: `it` does")]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn asked(sent: u64, returned: u64, heard: Heard) -> Try {
        Try { node: 1, sent: ms(sent), returned: ms(returned), heard }
    }

    fn outage(why: Why, from: u64, to: u64) -> Outage {
        Outage { why, from: ms(from), to: ms(to) }
    }

    #[test]
    fn an_answer_is_due_in_five_seconds_and_a_fifth() {
        assert!(unanswered(&[asked(100, 5_300, Heard::Answered)], &[]).is_empty());
        for heard in [Heard::Answered, Heard::GaveUp, Heard::Broken] {
            assert_eq!(unanswered(&[asked(100, 5_301, heard)], &[]).len(), 1, "{heard:?}");
        }
        assert!(unanswered(&[asked(100, 9_000, Heard::NotSent)], &[]).is_empty(), "nobody was asked");
        assert!(unanswered(&[asked(100, 2_000, Heard::GaveUp)], &[]).is_empty(), "it might have come");
    }

    #[test]
    fn a_node_that_was_stopped_has_its_time_from_when_it_goes_on() {
        let stop = [outage(Why::Stopped(1), 1_000, 8_000)];
        let late = |sent, returned| unanswered(&[asked(sent, returned, Heard::Answered)], &stop).len();
        assert_eq!(late(900, 13_200), 0);
        assert_eq!(late(900, 13_201), 1);
        assert_eq!(late(8_000, 13_201), 1, "it runs again");
        let other = [outage(Why::Stopped(2), 1_000, 8_000)];
        assert_eq!(unanswered(&[asked(900, 6_101, Heard::Answered)], &other).len(), 1, "another node");
    }

    #[test]
    fn what_this_program_was_late_by_is_added_as_far_as_it_was_meanwhile() {
        let starved = [outage(Why::Starved, 0, 400), outage(Why::Starved, 5_000, 5_300)];
        let late = |returned| unanswered(&[asked(100, returned, Heard::Answered)], &starved).len();
        assert_eq!(late(5_900), 0, "300 and 300 ms");
        assert_eq!(late(5_901), 1);
    }

    #[test]
    fn a_connection_breaks_only_with_its_node() {
        let broken = |outages: &[Outage]| unanswered(&[asked(100, 300, Heard::Broken)], outages).len();
        assert_eq!(broken(&[]), 1);
        assert_eq!(broken(&[outage(Why::Ended(1), 250, 2_000)]), 0);
        assert_eq!(broken(&[outage(Why::Ended(2), 250, 2_000)]), 1, "another node");
        assert_eq!(broken(&[outage(Why::Ended(1), 400, 2_000)]), 1, "later");
        assert_eq!(broken(&[outage(Why::Stopped(1), 200, 2_000)]), 0);
    }
}
