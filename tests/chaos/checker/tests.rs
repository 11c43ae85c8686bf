//! Histories that are right and must be accepted, and histories that are not and must be refused.

use super::*;

const GET: Call = Call::Look(Look::Get);
const LISTED: Call = Call::Look(Look::Listed);
const HISTORY: Call = Call::Look(Look::History);
const DELETE: Call = Call::Delete { expected: None };

fn register(tag: Tag) -> Call {
    Call::Register { tag, email: Email::Own }
}

fn put(tag: Tag) -> Call {
    Call::Put { tag, email: Email::Own, expected: None }
}

fn put_if(tag: Tag, version: i64) -> Call {
    Call::Put { tag, email: Email::Own, expected: Some(version) }
}

fn patch(tag: Tag, part: Part) -> Call {
    Call::Patch { tag, part, expected: None }
}

/// The record that a registration or a replacement makes.
fn made(version: i64, tag: Tag) -> Record {
    Record { version, name: tag, address: tag, email: Email::Own, restricted: false }
}

fn rec(version: i64, tag: Tag) -> Outcome {
    Outcome::Record(made(version, tag))
}

/// An operation from one moment to another, both in milliseconds.
fn op(from: u64, to: u64, call: Call, outcome: Outcome) -> Operation {
    Operation {
        client: 0,
        front: 0,
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

fn patient(operations: &[Operation]) -> Verdict {
    check_patient(operations, &Versions::new())
}

fn put_contested(tag: Tag) -> Call {
    Call::Put { tag, email: Email::Contested(1), expected: None }
}

#[test]
fn a_life_one_after_the_other_is_accepted() {
    let life = [
        op(0, 1, GET, Outcome::Missing),
        op(1, 2, register(1), rec(1, 1)),
        op(3, 4, GET, rec(1, 1)),
        op(5, 6, put(2), rec(2, 2)),
        op(7, 8, put_contested(3), Outcome::Taken),
        op(9, 10, put(4), Outcome::NotDone),
        op(11, 12, GET, rec(2, 2)),
        op(13, 14, DELETE, Outcome::Ended),
        op(15, 16, GET, Outcome::Missing),
        op(17, 18, put(5), Outcome::Missing),
        op(19, 20, DELETE, Outcome::Missing),
    ];
    assert_eq!(patient(&life), Verdict::Linearizable);
    assert_eq!(patient(&[]), Verdict::Linearizable);
}

#[test]
fn what_overlaps_may_take_either_order_and_what_does_not_may_not() {
    let overlapping = |read_to| {
        [
            op(0, 1, register(1), rec(1, 1)),
            op(2, 10, put(2), rec(2, 2)),
            op(3, 4, GET, rec(2, 2)),
            op(5, read_to, GET, rec(2, 2)),
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
        let mut life = vec![op(0, 1, register(1), rec(1, 1)), op(2, 3, put(2), rec(2, 2))];
        life.extend(rest);
        patient(&life)
    };
    let (met, stale) = (put_if(3, 2), put_if(3, 1));
    assert_eq!(life(&[op(4, 5, met, rec(3, 3))]), Verdict::Linearizable);
    assert_eq!(life(&[op(4, 5, stale, Outcome::Stale)]), Verdict::Linearizable);
    assert_eq!(life(&[op(4, 5, met, Outcome::Stale)]), Verdict::Violated, "it was met");
    assert_eq!(life(&[op(4, 5, stale, rec(3, 3))]), Verdict::Violated, "it was not met");
    // Of two who expect the same version one is first.
    let two = |one, other| life(&[op(4, 9, met, one), op(4, 9, put_if(4, 2), other)]);
    assert_eq!(two(rec(3, 3), Outcome::Stale), Verdict::Linearizable);
    assert_eq!(two(rec(3, 3), rec(4, 4)), Verdict::Violated);
    assert_eq!(two(Outcome::Stale, Outcome::Stale), Verdict::Violated);
    // One of unknown outcome makes that version or none.
    let unknown = |then| life(&[op(4, 5, met, Outcome::Unknown), op(6, 7, put(5), then)]);
    assert_eq!(unknown(rec(3, 5)), Verdict::Linearizable);
    assert_eq!(unknown(rec(4, 5)), Verdict::Linearizable);
    assert_eq!(unknown(rec(5, 5)), Verdict::Violated);
    let too_late = op(4, 5, stale, Outcome::Unknown);
    assert_eq!(life(&[too_late, op(6, 7, GET, rec(3, 3))]), Verdict::Violated);
}

#[test]
fn unknown_outcomes_may_take_effect_late_or_never() {
    let with = |seen: &[Operation]| {
        let mut life = vec![
            op(0, 1, register(1), rec(1, 1)),
            op(2, 3, put(2), Outcome::Unknown),
            op(4, 5, put(3), Outcome::Unknown),
        ];
        life.extend_from_slice(seen);
        patient(&life)
    };
    // Never.
    assert_eq!(with(&[op(6, 7, GET, rec(1, 1)), op(8, 9, put(4), rec(2, 4))]), Verdict::Linearizable);
    // Both, the later one first, long after they were given up.
    assert_eq!(
        with(&[
            op(6, 7, GET, rec(1, 1)),
            op(8, 9, GET, rec(2, 3)),
            op(10, 11, GET, rec(3, 2)),
            op(12, 13, DELETE, Outcome::Ended)
        ]),
        Verdict::Linearizable
    );
    // One of them, and nobody saw its version.
    assert_eq!(with(&[op(6, 7, put(4), rec(3, 4))]), Verdict::Linearizable);
    assert_eq!(with(&[op(6, 7, put(4), rec(4, 4))]), Verdict::Linearizable);
    assert_eq!(with(&[op(6, 7, put(4), rec(5, 4))]), Verdict::Violated, "there were only two");
    // Not before it was asked for, and not twice.
    assert_eq!(
        patient(&[
            op(0, 1, register(1), rec(1, 1)),
            op(2, 3, GET, rec(2, 2)),
            op(4, 5, put(2), Outcome::Unknown)
        ]),
        Verdict::Violated
    );
    assert_eq!(with(&[op(6, 7, GET, rec(2, 2)), op(8, 9, GET, rec(3, 2))]), Verdict::Violated);
    // A registration and a deletion.
    let life = [
        op(0, 1, register(1), Outcome::Unknown),
        op(2, 3, GET, Outcome::Missing),
        op(4, 5, GET, rec(1, 1)),
        op(6, 7, DELETE, Outcome::Unknown),
        op(8, 9, GET, rec(1, 1)),
        op(10, 11, GET, Outcome::Missing),
    ];
    assert_eq!(patient(&life), Verdict::Linearizable);
    let mut resurrected = life.to_vec();
    resurrected.push(op(12, 13, GET, rec(1, 1)));
    assert_eq!(patient(&resurrected), Verdict::Violated);
}

#[test]
fn broken_histories_are_refused() {
    let broken: [(&str, &[Operation]); 9] = [
        ("a stale read", &[op(4, 5, put(2), rec(2, 2)), op(6, 7, GET, rec(1, 1))]),
        ("a stale read of a list", &[op(4, 5, put(2), rec(2, 2)), op(6, 7, LISTED, rec(1, 1))]),
        ("a lost update", &[op(4, 5, put(2), rec(2, 2)), op(6, 7, put(3), rec(2, 3))]),
        (
            "two owners that acknowledge the same version at the same time",
            &[op(4, 9, put(2), rec(2, 2)), op(4, 9, put(3), rec(2, 3))],
        ),
        ("a record that is lost", &[op(4, 5, GET, Outcome::Missing)]),
        ("a resurrection", &[op(4, 5, DELETE, Outcome::Ended), op(6, 7, GET, rec(1, 1))]),
        ("a change of what has ended", &[op(4, 5, DELETE, Outcome::Ended), op(6, 7, put(2), rec(2, 2))]),
        ("an update applied twice", &[op(4, 5, put(2), rec(2, 2)), op(6, 7, GET, rec(3, 2))]),
        ("an effect of what was refused", &[op(4, 5, put(2), Outcome::NotDone), op(6, 7, GET, rec(2, 2))]),
    ];
    for (what, rest) in broken {
        let mut life = vec![op(0, 1, register(1), rec(1, 1)), op(2, 3, GET, rec(1, 1))];
        life.extend_from_slice(rest);
        assert_eq!(patient(&life), Verdict::Violated, "{what}");
    }
}

#[test]
fn fields_change_one_by_one() {
    let life = |rest: &[Operation]| {
        let mut life = vec![op(0, 1, register(1), rec(1, 1))];
        life.extend(rest);
        patient(&life)
    };
    let named = Record { version: 2, name: 2, ..made(1, 1) };
    let moved = Record { version: 3, address: 3, ..named };
    let mailed = Record { version: 4, address: 4, email: Email::Second, ..moved };
    let patches = [
        op(2, 3, patch(2, Part::Name), Outcome::Record(named)),
        op(4, 5, patch(3, Part::Address), Outcome::Record(moved)),
        op(6, 7, patch(4, Part::Email(Email::Second)), Outcome::Record(mailed)),
        op(8, 9, GET, Outcome::Record(mailed)),
    ];
    assert_eq!(life(&patches), Verdict::Linearizable);
    let mut undone = patches;
    undone[1].outcome = Outcome::Record(Record { name: 1, ..moved });
    assert_eq!(life(&undone[..2]), Verdict::Violated, "a patch undoes another field");
    // Of unknown outcome: what it set shows whether it was made.
    let unknown = |then| {
        life(&[op(2, 3, patch(2, Part::Name), Outcome::Unknown), op(4, 5, GET, Outcome::Record(then))])
    };
    assert_eq!(unknown(named), Verdict::Linearizable);
    assert_eq!(unknown(made(1, 1)), Verdict::Linearizable);
    assert_eq!(unknown(Record { version: 2, address: 2, ..made(1, 1) }), Verdict::Violated, "another field");
    // The version that it made was not seen, and the field of the next one tells of it.
    let behind = Record { version: 3, name: 2, address: 3, ..made(1, 1) };
    let gap = [
        op(2, 3, patch(2, Part::Name), Outcome::Unknown),
        op(4, 5, patch(3, Part::Address), Outcome::Record(behind)),
    ];
    assert_eq!(life(&gap), Verdict::Linearizable);
    assert_eq!(life(&gap[1..]), Verdict::Violated);
    assert_eq!(
        life(&[op(2, 3, put(2), Outcome::Taken)]),
        Verdict::Violated,
        "one's own address is not taken"
    );
}

#[test]
fn a_restricted_record_is_not_listed_and_its_history_outlives_it() {
    let restrict = |on| Call::Restrict { on };
    let restricted = Outcome::Record(Record { version: 2, restricted: true, ..made(1, 1) });
    let at = |version, ended| Outcome::At { version, ended };
    let life = [
        op(0, 1, HISTORY, Outcome::Missing),
        op(2, 3, register(1), rec(1, 1)),
        op(4, 5, LISTED, rec(1, 1)),
        op(6, 7, restrict(false), Outcome::Done),
        op(8, 9, restrict(true), Outcome::Done),
        op(10, 11, LISTED, Outcome::Missing),
        op(12, 13, GET, restricted),
        op(14, 15, HISTORY, at(2, false)),
        op(16, 17, restrict(false), Outcome::Done),
        op(18, 19, Call::Look(Look::Searched(Email::Own)), rec(3, 1)),
        op(20, 21, Call::Look(Look::Searched(Email::Second)), Outcome::Missing),
        op(22, 23, DELETE, Outcome::Ended),
        op(24, 25, HISTORY, at(4, true)),
        op(26, 27, restrict(true), Outcome::Missing),
    ];
    assert_eq!(patient(&life), Verdict::Linearizable);
    let broken: [(&str, usize, Outcome); 6] = [
        ("listed although it is restricted", 5, restricted),
        ("the mark is lost", 6, rec(1, 1)),
        ("an older history", 7, at(1, false)),
        ("not found by its address", 9, Outcome::Missing),
        ("found by another address", 10, rec(3, 1)),
        ("a history without its end", 12, at(3, false)),
    ];
    for (what, place, outcome) in broken {
        let mut life = life;
        life[place].outcome = outcome;
        assert_eq!(patient(&life), Verdict::Violated, "{what}");
    }
    // A mark of unknown outcome may show in a list alone.
    let unknown = |then| {
        let life = [
            op(2, 3, register(1), rec(1, 1)),
            op(4, 5, restrict(true), Outcome::Unknown),
            op(6, 7, LISTED, Outcome::Missing),
            op(8, 9, GET, then),
        ];
        patient(&life)
    };
    assert_eq!(unknown(restricted), Verdict::Linearizable);
    assert_eq!(unknown(rec(1, 1)), Verdict::Violated);
}

#[test]
fn an_address_has_one_holder_at_a_time() {
    const WANTED: Email = Email::Contested(1);
    let by = |made_by, from, to, call, outcome| Operation { made_by, ..op(from, to, call, outcome) };
    let with = |version, tag, email| Outcome::Record(Record { email, ..made(version, tag) });
    let register = |from, to, tag, outcome| by(tag, from, to, Call::Register { tag, email: WANTED }, outcome);
    let delete = |from, to, tag, outcome| by(tag, from, to, DELETE, outcome);
    let moves = |from, to, patient, email, outcome| {
        by(patient, from, to, Call::Put { tag: patient + 100, email, expected: None }, outcome)
    };
    let check = |story: &[Operation]| check_address(1, story);
    let story = [
        register(0, 5, 1, with(1, 1, WANTED)),
        register(0, 5, 2, Outcome::Taken),
        register(6, 7, 3, Outcome::Taken),
        delete(8, 9, 1, Outcome::Ended),
        register(10, 11, 4, Outcome::Unknown),
        register(12, 13, 5, with(1, 5, WANTED)),
        delete(14, 15, 5, Outcome::Unknown),
        delete(16, 17, 5, Outcome::Missing),
        register(18, 19, 6, Outcome::Taken),
    ];
    assert_eq!(check(&story), Verdict::Linearizable, "the fourth took it late");
    assert_eq!(check(&story[..3]), Verdict::Linearizable);
    let moved = [
        register(0, 1, 1, with(1, 1, WANTED)),
        moves(2, 3, 2, WANTED, Outcome::Taken),
        moves(4, 5, 1, Email::Contested(2), with(2, 101, Email::Contested(2))),
        moves(6, 7, 2, WANTED, with(2, 102, WANTED)),
        by(2, 8, 9, GET, with(2, 102, WANTED)),
        by(1, 8, 9, GET, with(2, 101, Email::Contested(2))),
    ];
    assert_eq!(check(&moved), Verdict::Linearizable, "one gives it up, the other takes it");
    let broken: [(&str, &[Operation]); 7] = [
        ("two holders", &[register(0, 5, 1, with(1, 1, WANTED)), register(0, 5, 2, with(1, 2, WANTED))]),
        ("taken by nobody", &[register(0, 5, 1, Outcome::Taken)]),
        (
            "still taken",
            &[
                register(0, 1, 1, with(1, 1, WANTED)),
                delete(2, 3, 1, Outcome::Ended),
                register(4, 5, 2, Outcome::Taken),
            ],
        ),
        (
            "free while held",
            &[
                register(0, 1, 1, with(1, 1, WANTED)),
                register(2, 3, 2, Outcome::Unknown),
                register(4, 5, 3, with(1, 3, WANTED)),
            ],
        ),
        (
            "moved to while held",
            &[register(0, 1, 1, with(1, 1, WANTED)), moves(2, 3, 2, WANTED, with(2, 102, WANTED))],
        ),
        ("still taken after a move", &[moved[0], moved[2], moves(6, 7, 2, WANTED, Outcome::Taken)]),
        ("seen with one who gave it up", &[moved[0], moved[2], by(1, 6, 7, GET, with(1, 1, WANTED))]),
    ];
    for (what, story) in broken {
        assert_eq!(check(story), Verdict::Violated, "{what}");
    }
}

#[test]
fn the_first_answer_that_cannot_be_is_found() {
    let mut life = vec![op(0, 1, register(1), rec(1, 1))];
    life.extend((2..50).map(|n| op(10 * n, 10 * n + 1, put(n), rec(n as i64, n))));
    assert!(first_wrong(&life, patient).is_none());
    life.push(op(205, 209, GET, rec(3, 3)));
    life.push(op(207, 300, GET, rec(20, 20)));
    life.sort_by_key(|operation| operation.invoked);
    let beginning = first_wrong(&life, patient).expect("it is wrong");
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
    let last = Duration::from_secs(3600);
    let past = Operation { invoked: last, returned: last, ..op(0, 0, GET, rec(1, 1)) };
    for _ in 0..10 {
        let (life, _) = random_life(&mut rng, 60);
        let judge = |life: &[Operation]| check_life(life, &Versions::new(), 20_000);
        assert_eq!(judge(&life), Verdict::Linearizable);
        // To refute it may take every order of what is unknown.
        assert_ne!(judge(&[&life[..], &[past]].concat()), Verdict::Linearizable);
        // The table helps with long ones.
        let (life, versions) = random_life(&mut rng, 400);
        assert_eq!(check_patient(&life, &versions), Verdict::Linearizable);
        assert_eq!(check_patient(&[&life[..], &[past]].concat(), &versions), Verdict::Violated);
    }
}

/// Operations that take effect at `10 * n` and are known some time before and after; at least one change.
fn random_life(rng: &mut fastrand::Rng, operations: u64) -> (Vec<Operation>, Versions) {
    let mut life = vec![op(0, 1, register(1), rec(1, 1)), op(2, 3, put(2), rec(2, 2))];
    let mut record = made(2, 2);
    let mut versions = Versions::from([(1, Some(made(1, 1))), (2, Some(record))]);
    for n in 1..=operations {
        let (from, to) = (10 * n - rng.u64(0..10), 10 * n + rng.u64(0..40));
        let lost = rng.u8(..) < 30;
        let tag = 1000 + n;
        let call = match rng.u8(0..16) {
            0..4 => put(tag),
            4..6 => patch(tag, Part::Name),
            6..8 => patch(tag, Part::Address),
            8 => Call::Restrict { on: !record.restricted },
            9 => HISTORY,
            10 => LISTED,
            _ => GET,
        };
        // A change that was lost may have had no effect.
        if !(lost && rng.bool()) {
            let version = record.version + 1;
            record = match call {
                Call::Put { .. } => Record { restricted: record.restricted, ..made(version, tag) },
                Call::Patch { part: Part::Name, .. } => Record { version, name: tag, ..record },
                Call::Patch { .. } => Record { version, address: tag, ..record },
                Call::Restrict { on } => Record { version, restricted: on, ..record },
                _ => record,
            };
            versions.insert(record.version, Some(record));
        }
        let told = match call {
            Call::Restrict { .. } => Outcome::Done,
            HISTORY => Outcome::At { version: record.version, ended: false },
            LISTED if record.restricted => Outcome::Missing,
            _ => Outcome::Record(record),
        };
        life.push(op(from, to, call, if lost { Outcome::Unknown } else { told }));
    }
    (life, versions)
}

#[test]
fn a_search_that_takes_too_long_says_so() {
    let life = [op(0, 1, register(1), rec(1, 1)), op(2, 3, GET, rec(1, 1)), op(4, 5, GET, rec(1, 1))];
    assert_eq!(check_life(&life, &Versions::new(), 3), Verdict::Undecided);
    assert_eq!(check_life(&life, &Versions::new(), 100), Verdict::Linearizable);
}
