//! What is right is passed, and each way to be wrong is told.

use std::time::Duration;

use serde_json::json;

use super::*;

const UPDATED: i16 = 2;

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn recorded(patient: u128, version: i64, kind: i16, tag: Tag) -> Recorded {
    Recorded { version, kind, event_id: id(patient * 1000 + version as u128), tag: Some(tag) }
}

/// One patient who was registered, changed and deleted, and one who was registered.
fn events() -> Events {
    let first = vec![recorded(1, 1, CREATED, 10), recorded(1, 2, UPDATED, 11), recorded(1, 3, DELETED, 11)];
    Events::from([(id(1), first), (id(2), vec![recorded(2, 1, CREATED, 20)])])
}

fn operation(patient: u128, call: Call, outcome: Outcome) -> Operation {
    Operation {
        client: 0,
        front: 0,
        patient: Some(id(patient)),
        address: None,
        made_by: 0,
        call,
        invoked: Duration::ZERO,
        returned: Duration::ZERO,
        outcome,
    }
}

fn in_topic(patient: u128, version: i64) -> PatientEvent {
    PatientEvent {
        patient_id: id(patient).to_string(),
        event_id: id(patient * 1000 + version as u128).to_string(),
        version,
        ..PatientEvent::default()
    }
}

#[test]
fn lives_are_numbered_without_gap_from_registration_to_deletion() {
    assert!(numbered(&events()).is_empty());
    let broken: [fn(&mut Vec<Recorded>); 4] = [
        |life| life.retain(|event| event.version != 2),
        |life| life.push(recorded(1, 4, UPDATED, 12)),
        |life| life[1].kind = CREATED,
        |life| life.retain(|event| event.version != 1),
    ];
    for breaks in broken {
        let mut events = events();
        breaks(events.get_mut(&id(1)).expect("there"));
        assert_eq!(numbered(&events).len(), 1);
    }
}

#[test]
fn what_was_told_is_compared_with_what_is_there() {
    let rec = |version, tag| Outcome::Record { version, tag };
    for (right, told) in [
        (true, operation(1, Call::Register(10), rec(1, 10))),
        (true, operation(1, Call::Update(11), rec(2, 11))),
        (true, operation(1, Call::Update(11), Outcome::Unknown)),
        (true, operation(1, Call::Update(12), Outcome::Unknown)),
        (true, operation(1, Call::Update(12), Outcome::NotDone)),
        (true, operation(1, Call::Delete, Outcome::Ended)),
        (false, operation(1, Call::Update(12), rec(2, 12))),
        (false, operation(1, Call::Update(11), rec(3, 11))),
        (false, operation(2, Call::Update(11), rec(2, 11))),
        (false, operation(1, Call::Update(11), Outcome::NotDone)),
        (false, operation(1, Call::Register(10), Outcome::Taken)),
        (false, operation(2, Call::Delete, Outcome::Ended)),
    ] {
        assert_eq!(effects(&events(), &[told]).is_empty(), right, "{told:?}");
    }
    let mut twice = events();
    twice.get_mut(&id(2)).expect("there").push(recorded(2, 2, UPDATED, 11));
    assert_eq!(effects(&twice, &[operation(1, Call::Update(11), Outcome::Unknown)]).len(), 1);
}

#[test]
fn the_topic_tells_everything_in_order_and_repeats_exactly() {
    let all =
        [in_topic(1, 1), in_topic(2, 1), in_topic(1, 2), in_topic(1, 1), in_topic(1, 2), in_topic(1, 3)];
    assert!(published(&events(), &all).is_empty());
    let order = |places: &[usize]| -> Vec<PatientEvent> { places.iter().map(|p| all[*p].clone()).collect() };
    for (what, topic) in [
        ("one is missing at the end", order(&[0, 1, 2])),
        ("one is missing between", order(&[0, 1, 5])),
        ("two are turned round", order(&[1, 0, 5, 2])),
        ("a patient is missing", order(&[0, 2, 5])),
        (
            "a repeat is another event",
            [order(&[0, 1, 2, 5]), vec![PatientEvent { event_id: id(99).to_string(), ..in_topic(1, 2) }]]
                .concat(),
        ),
        ("a stranger", [order(&[0, 1, 2, 5]), vec![in_topic(7, 1)]].concat()),
        ("no version", [order(&[0, 1, 2, 5]), vec![in_topic(1, 0)]].concat()),
    ] {
        assert!(!published(&events(), &topic).is_empty(), "{what}");
    }
}

#[test]
fn the_counts_are_those_of_the_table() {
    let kinds = json!({"PATIENT_CREATED": 2, "PATIENT_UPDATED": 1, "PATIENT_DELETED": 1});
    let right = json!({"totalPatients": 1, "byEventType": kinds});
    assert!(counts(&events(), &right).is_empty());
    let mut wrong = right.clone();
    wrong["byEventType"]["PATIENT_UPDATED"] = json!(2);
    assert_eq!(counts(&events(), &wrong).len(), 1);
    wrong["totalPatients"] = Value::Null;
    assert_eq!(counts(&events(), &wrong).len(), 2);
}
