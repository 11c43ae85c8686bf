//! Which faults come when. A schedule follows from its seed and the shape of what it is for, and from nothing
//! else.

use std::time::Duration;

/// The longest that anything is stopped.
pub(crate) const LASTS_MAX: Duration = Duration::from_secs(15);
/// Everything runs undisturbed for so long at first.
const CALM: Duration = Duration::from_secs(2);

/// How long `stops` stops a node, in milliseconds. A lease holds for three seconds.
const STOPS_MS: std::ops::Range<u64> = 5_000..8_000;

/// How a link is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Break {
    /// Connections are reset.
    Reset,
    /// Silence both ways.
    Silent,
    /// What the dialling end sends does not arrive.
    Deaf,
    /// What the listening end sends does not arrive.
    Mute,
    /// Everything arrives late.
    Slow,
}

/// What goes wrong. Nodes are meant by their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// SIGKILL; started again when the fault is over.
    Kill(usize),
    /// SIGSTOP; SIGCONT when the fault is over.
    Stop(usize),
    /// The way of one node to the database.
    Database(usize, Break),
    /// The way between two nodes.
    Between(usize, usize, Break),
    /// The ways of one node to all others.
    Apart(usize, Break),
    /// The database is stopped as a whole.
    PausedDatabase,
    /// The broker is stopped as a whole.
    PausedBroker,
    /// SIGTERM to one node after the other, each started again and awaited before the next.
    RollingRestart,
}

/// What can be broken by one fault at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Process(usize),
    Way(usize),
    Network,
    Database,
    Broker,
    Everything,
}

impl Fault {
    fn part(self) -> Part {
        match self {
            Fault::Kill(node) | Fault::Stop(node) => Part::Process(node),
            Fault::Database(node, _) => Part::Way(node),
            Fault::Between(..) | Fault::Apart(..) => Part::Network,
            Fault::PausedDatabase => Part::Database,
            Fault::PausedBroker => Part::Broker,
            Fault::RollingRestart => Part::Everything,
        }
    }

    /// Whether both may be at the same time.
    fn goes_with(self, other: Fault) -> bool {
        let parts = (self.part(), other.part());
        parts.0 != parts.1 && parts.0 != Part::Everything && parts.1 != Part::Everything
    }
}

/// A fault with its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timed {
    /// From the beginning of the run.
    pub(crate) at: Duration,
    /// Until it is healed. A rolling restart takes as long as it takes.
    pub(crate) lasts: Duration,
    /// What goes wrong.
    pub(crate) fault: Fault,
}

/// What there is to be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// How many nodes.
    pub(crate) nodes: usize,
    /// Whether they speak to each other.
    pub(crate) linked: bool,
    /// Whether the database is ours to be stopped.
    pub(crate) database: bool,
    /// Whether the broker is.
    pub(crate) broker: bool,
}

/// The faults of a run that lasts `span`, by the time they begin. All are healed by its end.
pub(crate) fn schedule(seed: u64, shape: Shape, span: Duration) -> Vec<Timed> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut faults: Vec<Timed> = Vec::new();
    let mut at = CALM;
    loop {
        let lasts = duration(&mut rng, span);
        let fault = pick(&mut rng, shape);
        let overlaps = rng.u8(0..4) == 0;
        let pause = Duration::from_millis(rng.u64(300..2_000));
        if at + lasts > span {
            return faults;
        }
        faults.push(Timed { at, lasts, fault });
        let end = faults.iter().map(|f| f.at + f.lasts).max().unwrap_or(at);
        at = end + pause;
        // Now and then a second one while the first lasts.
        let middle = faults[faults.len() - 1].at + lasts / 3;
        let second = Timed { at: middle, lasts: lasts / 2, fault: pick(&mut rng, shape) };
        if overlaps && second.fault.goes_with(fault) {
            faults.push(second);
        }
    }
}

/// Nodes out of `among` that are stopped one after the other, each for longer than its leases hold: long enough that
/// others serve its patients and are asked to, while questions wait at the stopped one for its waking up. What a
/// fence is for.
pub(crate) fn stops(seed: u64, among: &[usize], span: Duration) -> Vec<Timed> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut faults, mut at) = (Vec::new(), CALM);
    let first = rng.usize(0..among.len());
    loop {
        // In turn: whoever took over is next, and each of them is met.
        let node = among[(first + faults.len()) % among.len()];
        let lasts = Duration::from_millis(rng.u64(STOPS_MS));
        if at + lasts > span {
            return faults;
        }
        faults.push(Timed { at, lasts, fault: Fault::Stop(node) });
        at += lasts + Duration::from_millis(rng.u64(2_000..4_000));
    }
}

/// Mostly short: what matters begins after a lease has run out, and a run has room for several.
fn duration(rng: &mut fastrand::Rng, span: Duration) -> Duration {
    let long = rng.u8(0..6) == 0 && span > LASTS_MAX * 2;
    let longest = if long { LASTS_MAX } else { Duration::from_secs(6) };
    Duration::from_millis(rng.u64(500..=longest.as_millis() as u64))
}

fn pick(rng: &mut fastrand::Rng, shape: Shape) -> Fault {
    let breaks = [Break::Reset, Break::Silent, Break::Deaf, Break::Mute, Break::Slow];
    loop {
        let (node, how) = (rng.usize(0..shape.nodes), breaks[rng.usize(0..breaks.len())]);
        let other = (node + rng.usize(1..shape.nodes.max(2))) % shape.nodes;
        match rng.u8(0..16) {
            0..=2 => return Fault::Kill(node),
            3..=6 => return Fault::Stop(node),
            7..=8 => return Fault::Database(node, how),
            9..=10 if shape.linked && other != node => {
                return Fault::Between(node.min(other), node.max(other), how);
            }
            11..=12 if shape.linked => return Fault::Apart(node, how),
            13 if shape.database => return Fault::PausedDatabase,
            14 if shape.broker => return Fault::PausedBroker,
            15 => return Fault::RollingRestart,
            _ => {}
        }
    }
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "the program has no harness that would run them: `it` does")]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SHAPE: Shape = Shape { nodes: 7, linked: true, database: true, broker: true };
    const SPAN: Duration = Duration::from_secs(35);

    #[test]
    fn a_seed_replays_and_another_differs() {
        assert_eq!(schedule(7, SHAPE, SPAN), schedule(7, SHAPE, SPAN));
        assert_ne!(schedule(7, SHAPE, SPAN), schedule(8, SHAPE, SPAN));
    }

    #[test]
    fn schedules_keep_to_their_limits_and_reach_every_kind() {
        let (mut kinds, mut breaks, mut longest) = (BTreeSet::new(), BTreeSet::new(), Duration::ZERO);
        for seed in 0..200 {
            let faults = schedule(seed, SHAPE, SPAN);
            assert!(!faults.is_empty(), "seed {seed}");
            for (n, timed) in faults.iter().enumerate() {
                assert!(timed.at >= CALM && timed.at + timed.lasts <= SPAN && timed.lasts <= LASTS_MAX);
                longest = longest.max(timed.lasts);
                for other in &faults[..n] {
                    let together = other.at + other.lasts > timed.at && timed.at + timed.lasts > other.at;
                    assert!(!together || timed.fault.goes_with(other.fault), "{timed:?} and {other:?}");
                }
                kinds.insert(format!("{:?}", timed.fault).split('(').next().expect("a name").to_owned());
                match timed.fault {
                    Fault::Between(a, b, how) => {
                        assert!(a < b && b < SHAPE.nodes);
                        breaks.insert(how);
                    }
                    Fault::Kill(node) | Fault::Stop(node) => assert!(node < SHAPE.nodes),
                    Fault::Database(node, _) | Fault::Apart(node, _) => assert!(node < SHAPE.nodes),
                    Fault::PausedDatabase | Fault::PausedBroker | Fault::RollingRestart => {}
                }
            }
        }
        assert_eq!((kinds.len(), breaks.len()), (8, 5), "{kinds:?} {breaks:?}");
        assert!(longest > Duration::from_secs(10), "{longest:?}");
    }

    #[test]
    fn long_stops_meet_each_of_those_who_hold_patients() {
        for seed in 0..50 {
            let faults = stops(seed, &[2, 5], SPAN);
            assert_eq!(faults, stops(seed, &[2, 5], SPAN));
            let met: BTreeSet<_> = faults.iter().map(|timed| timed.fault).collect();
            assert_eq!(met, BTreeSet::from([Fault::Stop(2), Fault::Stop(5)]), "seed {seed}");
            let lease = Duration::from_secs(3);
            assert!(faults.iter().all(|timed| timed.lasts > lease && timed.at + timed.lasts <= SPAN));
            assert!(faults.is_sorted_by(|one, next| one.at + one.lasts < next.at), "one at a time");
        }
    }

    #[test]
    fn what_is_not_there_is_not_broken() {
        let alone = Shape { nodes: 1, linked: false, database: false, broker: false };
        for seed in 0..50 {
            for Timed { fault, .. } in schedule(seed, alone, SPAN) {
                assert!(
                    matches!(
                        fault,
                        Fault::Kill(0) | Fault::Stop(0) | Fault::Database(0, _) | Fault::RollingRestart
                    ),
                    "{fault:?}"
                );
            }
        }
    }
}
