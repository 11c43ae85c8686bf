//! Which faults come when. A schedule follows from its seed and the shape of what it is for, and from nothing else.
//!
//! Every schedule stops a node that holds patients, or cuts it off from everybody, for longer than its leases hold. A
//! long one also kills the database, and stops or restarts the broker. The other faults are chosen at random. A schedule
//! of faults by turns meets each holder in turn, and each time for longer than its leases hold.

use std::time::Duration;

/// The longest that anything is broken.
pub(crate) const LASTS_MAX: Duration = Duration::from_secs(15);
/// Nothing is broken before.
const CALM: Duration = Duration::from_secs(2);
/// Nothing is broken for so long at the end of a run.
pub(crate) const LAST_CALM: Duration = Duration::from_secs(2);
/// The shortest run in which the database and the broker fail too.
const LONG_SPAN: Duration = Duration::from_secs(25);

/// How long a holder is stopped or cut off, in milliseconds. A lease holds for three seconds; others then serve its
/// patients, and requests wait at the stopped node until it goes on.
const HOLDER_MS: std::ops::Range<u64> = 5_000..8_000;
/// How long the database is gone after it was killed, in milliseconds.
const DATABASE_MS: std::ops::Range<u64> = 500..2_500;
/// How long the broker does not answer or is gone, in milliseconds.
const BROKER_MS: std::ops::Range<u64> = 1_500..4_000;

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
    /// What the dialling end sends arrives later than a lease holds, and sooner than a request is given up.
    Late,
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
    /// All ways of one node: to all others and to the database.
    CutOff(usize, Break),
    /// The database is stopped as a whole.
    PausedDatabase,
    /// SIGKILL to the database; started again when the fault is over.
    KilledDatabase,
    /// The broker is stopped as a whole.
    PausedBroker,
    /// SIGKILL to the broker; started again when the fault is over.
    KilledBroker,
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
            Fault::Between(..) | Fault::Apart(..) | Fault::CutOff(..) => Part::Network,
            Fault::PausedDatabase | Fault::KilledDatabase => Part::Database,
            Fault::PausedBroker | Fault::KilledBroker => Part::Broker,
            Fault::RollingRestart => Part::Everything,
        }
    }

    /// Whether both may be at the same time.
    fn goes_with(self, other: Fault) -> bool {
        let parts = (self.part(), other.part());
        let one_way = |one: Fault, other: Fault| matches!((one, other), (Fault::CutOff(node, _), Fault::Database(way, _)) if node == way);
        let everything = parts.0 == Part::Everything || parts.1 == Part::Everything;
        parts.0 != parts.1 && !everything && !one_way(self, other) && !one_way(other, self)
    }
}

/// A fault and when it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timed {
    /// From the beginning of the run.
    pub(crate) at: Duration,
    /// Until it is healed. A rolling restart takes as long as it takes.
    pub(crate) lasts: Duration,
    /// What goes wrong.
    pub(crate) fault: Fault,
}

impl Timed {
    /// The pause from the end of this fault to the beginning of a later one. None if that begins before.
    pub(crate) fn pause_before(&self, later: &Timed) -> Option<Duration> {
        later.at.checked_sub(self.at + self.lasts)
    }
}

/// What there is to be broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// How many nodes.
    pub(crate) nodes: usize,
    /// Whether they speak to each other.
    pub(crate) linked: bool,
    /// Whether the database is ours to be stopped.
    pub(crate) database: bool,
    /// Whether the broker is.
    pub(crate) broker: bool,
    /// Whether the broker keeps its log, and may be killed.
    pub(crate) broker_keeps: bool,
    /// The numbers of the nodes that hold patients.
    pub(crate) holders: Vec<usize>,
}

/// The faults of a run that lasts `span`, by the time they begin. All are healed `LAST_CALM` before its end.
pub(crate) fn schedule(seed: u64, shape: &Shape, span: Duration) -> Vec<Timed> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let end = span.saturating_sub(LAST_CALM);
    let mut chosen = needed(&mut rng, shape, span);
    let mut needs: Duration = chosen.iter().map(|(_, lasts)| *lasts + QUIET).sum();
    loop {
        let next = (pick(&mut rng, shape), duration(&mut rng, span));
        needs += next.1 + QUIET;
        if CALM + needs > end {
            break;
        }
        chosen.push(next);
    }
    rng.shuffle(&mut chosen);
    let (mut faults, mut at) = (Vec::new(), CALM);
    let mut chosen = chosen.into_iter().peekable();
    while let Some((fault, lasts)) = chosen.next() {
        faults.push(Timed { at, lasts, fault });
        // Now and then a second one while the first lasts; not a long one, which needs quiet before and after.
        let second = Timed { at: at + lasts / 3, lasts: lasts / 2, fault: pick(&mut rng, shape) };
        let is_long = shape.is_long(second.fault, second.lasts);
        if rng.u8(0..4) == 0 && second.fault.goes_with(fault) && !is_long {
            faults.push(second);
        }
        let pause = Duration::from_millis(rng.u64(300..=PAUSE_MAX.as_millis() as u64));
        let watched =
            shape.is_long(fault, lasts) || chosen.peek().is_some_and(|next| shape.is_long(next.0, next.1));
        at += lasts + if watched { QUIET } else { pause };
    }
    faults
}

/// The longest pause between two faults.
const PAUSE_MAX: Duration = Duration::from_millis(2_000);
/// The pause before and after a long fault of a holder: what was broken before is well again, and changes are
/// acknowledged for as long as is looked at.
const QUIET: Duration = Duration::from_millis(4_500);
/// How long a lease holds.
pub(crate) const LEASE: Duration = Duration::from_secs(3);
/// By how much `Break::Late` delays. The next holder takes the leases up to 3.5 s after the delay has begun: up to 0.25 s
/// may pass until a renewal is seen, and it looks for leases that have lapsed as often. A node answers within 5 s. In
/// between a commit that is still on its way must be refused, although its client still waits.
pub(crate) const LATE: Duration = Duration::from_millis(4_300);

impl Shape {
    /// Whether a node that holds patients is stopped, cut off or too late at the database for longer than a lease.
    pub(crate) fn is_long(&self, fault: Fault, lasts: Duration) -> bool {
        let holder = match fault {
            Fault::Stop(node) | Fault::CutOff(node, Break::Silent) | Fault::Database(node, Break::Late) => {
                self.holders.contains(&node)
            }
            _ => false,
        };
        holder && lasts > LEASE
    }
}

/// The faults that must not be missing.
fn needed(rng: &mut fastrand::Rng, shape: &Shape, span: Duration) -> Vec<(Fault, Duration)> {
    let mut needed = Vec::new();
    let ms = |rng: &mut fastrand::Rng, range| Duration::from_millis(rng.u64(range));
    if let Some(holder) = rng.choice(&shape.holders).copied() {
        let cut = shape.linked && rng.u8(0..3) == 0;
        let fault = if cut { Fault::CutOff(holder, Break::Silent) } else { Fault::Stop(holder) };
        needed.push((fault, ms(rng, HOLDER_MS)));
    }
    if span >= LONG_SPAN && shape.database {
        needed.push((Fault::KilledDatabase, ms(rng, DATABASE_MS)));
    }
    if span >= LONG_SPAN && shape.broker {
        let fault = if shape.broker_keeps { Fault::KilledBroker } else { Fault::PausedBroker };
        needed.push((fault, ms(rng, BROKER_MS)));
    }
    needed
}

/// A fault that outlasts the leases of the node that it befalls.
pub(crate) type LongFault = fn(usize) -> Fault;

/// The node stands still.
pub(crate) const STOP: LongFault = Fault::Stop;
/// What the node sends to the database comes too late.
pub(crate) const LATE_AT_DATABASE: LongFault = |node| Fault::Database(node, Break::Late);

/// Nodes out of `among` that meet a fault one after the other, each for longer than its leases hold: the first fault of
/// `faults`, then the next, and the first again after the last.
pub(crate) fn by_turns(seed: u64, among: &[usize], faults: &[LongFault], span: Duration) -> Vec<Timed> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut timed, mut at) = (Vec::new(), CALM);
    let first = rng.usize(0..among.len());
    loop {
        // The node that took over is next, and each of them is met.
        let (node, fault) = (among[(first + timed.len()) % among.len()], faults[timed.len() % faults.len()]);
        let lasts = Duration::from_millis(rng.u64(HOLDER_MS));
        if at + lasts + LAST_CALM > span {
            return timed;
        }
        timed.push(Timed { at, lasts, fault: fault(node) });
        at += lasts + Duration::from_millis(rng.u64(2_000..4_000));
    }
}

/// Mostly short, so that a run has room for several.
fn duration(rng: &mut fastrand::Rng, span: Duration) -> Duration {
    let long = rng.u8(0..6) == 0 && span > LASTS_MAX * 2;
    let longest = if long { LASTS_MAX } else { Duration::from_secs(6) };
    Duration::from_millis(rng.u64(500..=longest.as_millis() as u64))
}

fn pick(rng: &mut fastrand::Rng, shape: &Shape) -> Fault {
    let breaks = [Break::Reset, Break::Silent, Break::Deaf, Break::Mute, Break::Slow, Break::Late];
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
            11 if shape.linked => return Fault::Apart(node, how),
            12 if shape.linked => return Fault::CutOff(node, how),
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

    const SPAN: Duration = Duration::from_secs(35);

    fn shape() -> Shape {
        Shape {
            nodes: 7,
            linked: true,
            database: true,
            broker: true,
            broker_keeps: false,
            holders: vec![2, 5],
        }
    }

    #[test]
    fn a_seed_replays_and_another_differs() {
        assert_eq!(schedule(7, &shape(), SPAN), schedule(7, &shape(), SPAN));
        assert_ne!(schedule(7, &shape(), SPAN), schedule(8, &shape(), SPAN));
    }

    #[test]
    fn schedules_keep_to_their_limits_and_reach_every_kind() {
        let (mut kinds, mut breaks, mut longest) = (BTreeSet::new(), BTreeSet::new(), Duration::ZERO);
        for seed in 0..300 {
            let faults = schedule(seed, &shape(), SPAN);
            for (n, timed) in faults.iter().enumerate() {
                assert!(timed.at >= CALM && timed.at + timed.lasts <= SPAN - LAST_CALM, "seed {seed}");
                assert!(timed.lasts <= LASTS_MAX, "seed {seed}");
                longest = longest.max(timed.lasts);
                for other in faults[n + 1..].iter().filter(|other| other.at < timed.at + timed.lasts) {
                    assert!(timed.fault.goes_with(other.fault), "{timed:?} and {other:?}");
                }
                let name = format!("{:?}", timed.fault);
                kinds.insert(name.split('(').next().map(str::to_owned));
                if let Fault::Between(_, _, how) | Fault::Database(_, how) = timed.fault {
                    breaks.insert(how);
                }
            }
        }
        assert_eq!(kinds.len(), 10, "all but the killed broker");
        assert_eq!(breaks.len(), 6);
        assert!(longest > Duration::from_secs(6));
    }

    #[test]
    fn every_schedule_has_the_faults_that_matter() {
        let with =
            |faults: &[Timed], wanted: fn(Fault) -> bool| faults.iter().any(|timed| wanted(timed.fault));
        for seed in 0..100 {
            for span in [Duration::from_secs(14), SPAN] {
                let faults = schedule(seed, &shape(), span);
                let holder = |timed: &&Timed| {
                    matches!(timed.fault, Fault::Stop(2 | 5) | Fault::CutOff(2 | 5, Break::Silent))
                };
                assert!(faults.iter().filter(holder).any(|timed| timed.lasts > LEASE), "seed {seed}");
            }
            let faults = schedule(seed, &shape(), SPAN);
            for pair in faults.windows(2).filter(|pair| pair[1].at >= pair[0].at + pair[0].lasts) {
                let watched = pair.iter().any(|timed| shape().is_long(timed.fault, timed.lasts));
                let pause = pair[1].at - pair[0].at - pair[0].lasts;
                assert!(!watched || pause >= QUIET, "seed {seed}: {pair:?}");
            }
            assert!(with(&faults, |fault| fault == Fault::KilledDatabase), "seed {seed}");
            assert!(with(&faults, |fault| fault == Fault::PausedBroker), "seed {seed}");
            let keeps = schedule(seed, &Shape { broker_keeps: true, ..shape() }, SPAN);
            assert!(with(&keeps, |fault| fault == Fault::KilledBroker), "seed {seed}");
        }
    }

    #[test]
    fn long_faults_take_their_turns_and_outlast_a_lease() {
        for seed in 0..100 {
            let faults = by_turns(seed, &[2, 5], &[STOP], SPAN);
            let met: BTreeSet<_> = faults.iter().map(|timed| timed.fault).collect();
            assert_eq!(met, BTreeSet::from([Fault::Stop(2), Fault::Stop(5)]), "seed {seed}");
            assert!(faults.iter().all(|timed| timed.lasts > LEASE && timed.at + timed.lasts <= SPAN));
            assert!(faults.iter().all(|timed| shape().is_long(timed.fault, timed.lasts)));
            assert!(faults.is_sorted_by(|one, next| one.at + one.lasts < next.at), "one at a time");
            for (n, timed) in by_turns(seed, &[2, 5], &[STOP, LATE_AT_DATABASE], SPAN).iter().enumerate() {
                let is_late = matches!(timed.fault, Fault::Database(2 | 5, Break::Late));
                assert!(is_late == (n % 2 == 1) && shape().is_long(timed.fault, timed.lasts), "seed {seed}");
            }
        }
    }

    #[test]
    fn what_is_late_outlasts_a_lease_and_comes_before_its_request_is_given_up() {
        let (taken, given_up) = (LEASE + LEASE / 6, Duration::from_secs(5));
        assert!(LATE > taken + Duration::from_millis(500), "the next holder has time to load");
        assert!(LATE + Duration::from_millis(500) < given_up, "the answer has time to come");
    }

    #[test]
    fn what_is_not_there_is_not_broken() {
        let alone = Shape {
            nodes: 1,
            linked: false,
            database: false,
            broker: false,
            broker_keeps: false,
            holders: vec![0],
        };
        for seed in 0..50 {
            for Timed { fault, .. } in schedule(seed, &alone, SPAN) {
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
