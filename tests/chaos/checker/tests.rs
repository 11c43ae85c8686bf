//! Histories that are right and must be accepted, and histories that are not and must be refused.

use super::*;

const READ: Call = Call::Read { listed: false };

fn rec(version: i64, tag: Tag) -> Outcome {
    Outcome::Record { version, tag }
}

/// An operation from one moment to another, both in milliseconds.
fn op(from: u64, to: u64, call: Call, outcome: Outcome) -> Operation {
    Operation {
        client: 0,
        front: 0,
        patient: None,
        address: None,
        made_by: 1,
        call,
        invoked: Duration::from_millis(from),
        returned: Duration::from_millis(to),
        outcome,
    }
}

fn patient(operations: &[Operation]) -> Verdict {
    check_patient(operations)
}

#[test]
fn a_life_one_after_the_other_is_accepted() {
    let life = [
        op(0, 1, READ, Outcome::Missing),
        op(1, 2, Call::Register(1), rec(1, 1)),
        op(3, 4, READ, rec(1, 1)),
        op(5, 6, Call::Update(2), rec(2, 2)),
        op(7, 8, Call::Update(3), Outcome::Taken),
        op(9, 10, Call::Update(4), Outcome::NotDone),
        op(11, 12, READ, rec(2, 2)),
        op(13, 14, Call::Delete, Outcome::Ended),
        op(15, 16, READ, Outcome::Missing),
        op(17, 18, Call::Update(5), Outcome::Missing),
        op(19, 20, Call::Delete, Outcome::Missing),
    ];
    assert_eq!(patient(&life), Verdict::Linearizable);
    assert_eq!(patient(&[]), Verdict::Linearizable);
}

#[test]
fn what_overlaps_may_take_either_order_and_what_does_not_may_not() {
    let overlapping = |read_to| {
        [
            op(0, 1, Call::Register(1), rec(1, 1)),
            op(2, 10, Call::Update(2), rec(2, 2)),
            op(3, 4, READ, rec(2, 2)),
            op(5, read_to, READ, rec(2, 2)),
        ]
    };
    assert_eq!(patient(&overlapping(6)), Verdict::Linearizable);
    let mut backwards = overlapping(6);
    backwards[3].outcome = rec(1, 1);
    assert_eq!(patient(&backwards), Verdict::Violated, "new, and then old");
    backwards[3].invoked = Duration::from_millis(4);
    assert_eq!(patient(&backwards), Verdict::Linearizable, "at the same moment either may be first");
}

#[test]
fn a_condition_holds_of_the_version_it_names() {
    let life = |rest: &[Operation]| {
        let mut life = vec![op(0, 1, Call::Register(1), rec(1, 1)), op(2, 3, Call::Update(2), rec(2, 2))];
        life.extend(rest);
        patient(&life)
    };
    let (met, stale) = (Call::UpdateIf(3, 2), Call::UpdateIf(3, 1));
    assert_eq!(life(&[op(4, 5, met, rec(3, 3))]), Verdict::Linearizable);
    assert_eq!(life(&[op(4, 5, stale, Outcome::Stale)]), Verdict::Linearizable);
    assert_eq!(life(&[op(4, 5, met, Outcome::Stale)]), Verdict::Violated, "it was met");
    assert_eq!(life(&[op(4, 5, stale, rec(3, 3))]), Verdict::Violated, "it was not met");
    // Of two who expect the same version one is first.
    let two = |one, other| life(&[op(4, 9, met, one), op(4, 9, Call::UpdateIf(4, 2), other)]);
    assert_eq!(two(rec(3, 3), Outcome::Stale), Verdict::Linearizable);
    assert_eq!(two(rec(3, 3), rec(4, 4)), Verdict::Violated);
    assert_eq!(two(Outcome::Stale, Outcome::Stale), Verdict::Violated);
    // One of unknown outcome makes that version or none.
    let unknown = |then| life(&[op(4, 5, met, Outcome::Unknown), op(6, 7, Call::Update(5), then)]);
    assert_eq!(unknown(rec(3, 5)), Verdict::Linearizable);
    assert_eq!(unknown(rec(4, 5)), Verdict::Linearizable);
    assert_eq!(unknown(rec(5, 5)), Verdict::Violated);
    let too_late = op(4, 5, stale, Outcome::Unknown);
    assert_eq!(life(&[too_late, op(6, 7, READ, rec(3, 3))]), Verdict::Violated);
}

#[test]
fn unknown_outcomes_may_take_effect_late_or_never() {
    let with = |seen: &[Operation]| {
        let mut life = vec![
            op(0, 1, Call::Register(1), rec(1, 1)),
            op(2, 3, Call::Update(2), Outcome::Unknown),
            op(4, 5, Call::Update(3), Outcome::Unknown),
        ];
        life.extend_from_slice(seen);
        patient(&life)
    };
    // Never.
    assert_eq!(
        with(&[op(6, 7, READ, rec(1, 1)), op(8, 9, Call::Update(4), rec(2, 4))]),
        Verdict::Linearizable
    );
    // Both, the later one first, long after they were given up.
    assert_eq!(
        with(&[
            op(6, 7, READ, rec(1, 1)),
            op(8, 9, READ, rec(2, 3)),
            op(10, 11, READ, rec(3, 2)),
            op(12, 13, Call::Delete, Outcome::Ended)
        ]),
        Verdict::Linearizable
    );
    // One of them, and nobody saw its version.
    assert_eq!(with(&[op(6, 7, Call::Update(4), rec(3, 4))]), Verdict::Linearizable);
    assert_eq!(with(&[op(6, 7, Call::Update(4), rec(4, 4))]), Verdict::Linearizable);
    assert_eq!(with(&[op(6, 7, Call::Update(4), rec(5, 4))]), Verdict::Violated, "there were only two");
    // Not before it was asked for, and not twice.
    assert_eq!(
        patient(&[
            op(0, 1, Call::Register(1), rec(1, 1)),
            op(2, 3, READ, rec(2, 2)),
            op(4, 5, Call::Update(2), Outcome::Unknown)
        ]),
        Verdict::Violated
    );
    assert_eq!(with(&[op(6, 7, READ, rec(2, 2)), op(8, 9, READ, rec(3, 2))]), Verdict::Violated);
    // A registration and a deletion.
    let life = [
        op(0, 1, Call::Register(1), Outcome::Unknown),
        op(2, 3, READ, Outcome::Missing),
        op(4, 5, READ, rec(1, 1)),
        op(6, 7, Call::Delete, Outcome::Unknown),
        op(8, 9, READ, rec(1, 1)),
        op(10, 11, READ, Outcome::Missing),
    ];
    assert_eq!(patient(&life), Verdict::Linearizable);
    let mut resurrected = life.to_vec();
    resurrected.push(op(12, 13, READ, rec(1, 1)));
    assert_eq!(patient(&resurrected), Verdict::Violated);
}

#[test]
fn broken_histories_are_refused() {
    let broken: [(&str, &[Operation]); 9] = [
        ("a stale read", &[op(4, 5, Call::Update(2), rec(2, 2)), op(6, 7, READ, rec(1, 1))]),
        (
            "a stale read of a list",
            &[op(4, 5, Call::Update(2), rec(2, 2)), op(6, 7, Call::Read { listed: true }, rec(1, 1))],
        ),
        ("a lost update", &[op(4, 5, Call::Update(2), rec(2, 2)), op(6, 7, Call::Update(3), rec(2, 3))]),
        (
            "two owners that acknowledge the same version at the same time",
            &[op(4, 9, Call::Update(2), rec(2, 2)), op(4, 9, Call::Update(3), rec(2, 3))],
        ),
        ("a record that is lost", &[op(4, 5, READ, Outcome::Missing)]),
        ("a resurrection", &[op(4, 5, Call::Delete, Outcome::Ended), op(6, 7, READ, rec(1, 1))]),
        (
            "a change of what has ended",
            &[op(4, 5, Call::Delete, Outcome::Ended), op(6, 7, Call::Update(2), rec(2, 2))],
        ),
        ("an update applied twice", &[op(4, 5, Call::Update(2), rec(2, 2)), op(6, 7, READ, rec(3, 2))]),
        (
            "an effect of what was refused",
            &[op(4, 5, Call::Update(2), Outcome::NotDone), op(6, 7, READ, rec(2, 2))],
        ),
    ];
    for (what, rest) in broken {
        let mut life = vec![op(0, 1, Call::Register(1), rec(1, 1)), op(2, 3, READ, rec(1, 1))];
        life.extend_from_slice(rest);
        assert_eq!(patient(&life), Verdict::Violated, "{what}");
    }
}

#[test]
fn an_address_has_one_holder_at_a_time() {
    let register =
        |from, to, tag, outcome| Operation { made_by: tag, ..op(from, to, Call::Register(tag), outcome) };
    let delete = |from, to, tag, outcome| Operation { made_by: tag, ..op(from, to, Call::Delete, outcome) };
    let story = [
        register(0, 5, 1, rec(1, 1)),
        register(0, 5, 2, Outcome::Taken),
        register(6, 7, 3, Outcome::Taken),
        delete(8, 9, 1, Outcome::Ended),
        register(10, 11, 4, Outcome::Unknown),
        register(12, 13, 5, rec(1, 5)),
        delete(14, 15, 5, Outcome::Unknown),
        delete(16, 17, 5, Outcome::Missing),
        register(18, 19, 6, Outcome::Taken),
    ];
    assert_eq!(check_address(&story), Verdict::Linearizable, "the fourth took it late");
    assert_eq!(check_address(&story[..3]), Verdict::Linearizable);
    let broken: [(&str, &[Operation]); 4] = [
        ("two holders", &[register(0, 5, 1, rec(1, 1)), register(0, 5, 2, rec(1, 2))]),
        ("taken by nobody", &[register(0, 5, 1, Outcome::Taken)]),
        (
            "still taken",
            &[
                register(0, 1, 1, rec(1, 1)),
                delete(2, 3, 1, Outcome::Ended),
                register(4, 5, 2, Outcome::Taken),
            ],
        ),
        (
            "free while held",
            &[
                register(0, 1, 1, rec(1, 1)),
                register(2, 3, 2, Outcome::Unknown),
                register(4, 5, 3, rec(1, 3)),
            ],
        ),
    ];
    for (what, story) in broken {
        assert_eq!(check_address(story), Verdict::Violated, "{what}");
    }
}

#[test]
fn the_first_answer_that_cannot_be_is_found() {
    let mut life = vec![op(0, 1, Call::Register(1), rec(1, 1))];
    life.extend((2..50).map(|n| op(10 * n, 10 * n + 1, Call::Update(n), rec(n as i64, n))));
    assert!(first_wrong(&life, check_patient).is_none());
    life.push(op(205, 209, READ, rec(3, 3)));
    life.push(op(207, 300, READ, rec(20, 20)));
    life.sort_by_key(|operation| operation.invoked);
    let beginning = first_wrong(&life, check_patient).expect("it is wrong");
    let (stale, pending) = (beginning[beginning.len() - 2], beginning[beginning.len() - 1]);
    assert_eq!((stale.invoked, stale.outcome), (Duration::from_millis(205), rec(3, 3)));
    assert_eq!((pending.invoked, pending.outcome), (Duration::from_millis(207), Outcome::Unknown));
}

/// Lives made by a real order of events are accepted, whatever is unknown of them; the same lives with one
/// answer from the past are refused.
#[test]
fn random_lives_are_judged_rightly() {
    let seed =
        std::env::var("HYGEIA_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("replay with HYGEIA_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..50 {
        let (life, unknown) = random_life(&mut rng, 200);
        assert_eq!(patient(&life), Verdict::Linearizable, "{unknown} unknown");
        let mut stale = life.clone();
        let last = Duration::from_secs(3600);
        stale.push(Operation { invoked: last, returned: last, ..op(0, 0, READ, rec(1, 1)) });
        assert_eq!(patient(&stale), Verdict::Violated, "{unknown} unknown");
    }
}

/// Operations that take effect at `10 * n` and are known some time before and after; at least one change.
fn random_life(rng: &mut fastrand::Rng, operations: u64) -> (Vec<Operation>, usize) {
    let mut life = vec![op(0, 1, Call::Register(1), rec(1, 1)), op(2, 3, Call::Update(2), rec(2, 2))];
    let (mut version, mut tag, mut unknown) = (2, 2, 0);
    for n in 1..=operations {
        let (from, to) = (10 * n - rng.u64(0..10), 10 * n + rng.u64(0..40));
        let lost = rng.u8(..) < 30;
        let mut operation = match rng.u8(0..4) {
            0 if lost && rng.bool() => op(from, to, Call::Update(1000 + n), Outcome::Unknown),
            0 | 1 => {
                (version, tag) = (version + 1, 1000 + n);
                op(from, to, Call::Update(tag), rec(version, tag))
            }
            _ => op(from, to, READ, rec(version, tag)),
        };
        if lost {
            operation.outcome = Outcome::Unknown;
        }
        unknown += usize::from(operation.outcome == Outcome::Unknown);
        life.push(operation);
    }
    (life, unknown)
}

#[test]
fn a_search_that_takes_too_long_says_so() {
    let life = [op(0, 1, Call::Register(1), rec(1, 1)), op(2, 3, READ, rec(1, 1)), op(4, 5, READ, rec(1, 1))];
    assert_eq!(check_life(&life, 3), Verdict::Undecided);
    assert_eq!(check_life(&life, 100), Verdict::Linearizable);
}
