//! What is right is passed, and each way to be wrong is told.

use std::time::Duration;

use serde_json::json;

use super::super::answers::{email_text, form};
use super::super::history::{Email, Part};
use super::*;

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn recorded(patient: u128, version: i64, kind: i16, tag: Tag) -> Recorded {
    let details = form(&email_text(Email::Own, patient as Tag), tag);
    Recorded { version, kind, event_id: id(patient * 1000 + version as u128), at_us: version, details }
}

/// One patient who was registered, changed and deleted, and one who was registered.
fn events() -> Events {
    let first = vec![recorded(1, 1, CREATED, 10), recorded(1, 2, UPDATED, 11), recorded(1, 3, DELETED, 11)];
    Events::from([(id(1), first), (id(2), vec![recorded(2, 1, CREATED, 20)])])
}

fn rec(version: i64, tag: Tag) -> Outcome {
    Outcome::Record(Record { version, name: tag, address: tag, email: Email::Own, restricted: false })
}

fn operation(patient: u128, call: Call, outcome: Outcome) -> Operation {
    Operation {
        client: 0,
        front: 0,
        patient: Some(id(patient)),
        made_by: 0,
        call,
        invoked: Duration::ZERO,
        sent: Duration::ZERO,
        returned: Duration::ZERO,
        due: Duration::ZERO,
        tries: 1,
        outcome,
    }
}

fn in_topic(patient: u128, version: i64) -> PatientEvent {
    let events = events();
    message_of(id(patient), &events[&id(patient)][version as usize - 1])
}

#[test]
fn lives_are_numbered_without_gap_from_registration_to_deletion() {
    assert!(numbered(&events()).is_empty());
    let broken: [fn(&mut Vec<Recorded>); 5] = [
        |life| life.retain(|event| event.version != 2),
        |life| life.push(recorded(1, 4, UPDATED, 12)),
        |life| life[1].kind = CREATED,
        |life| life.retain(|event| event.version != 1),
        |life| life[1].details = life[0].details.clone(),
    ];
    for breaks in broken {
        let mut events = events();
        breaks(events.get_mut(&id(1)).expect("there"));
        assert_eq!(numbered(&events).len(), 1);
    }
}

#[test]
fn a_row_is_what_its_last_event_left() {
    let row = |version, details: Option<Details>| {
        let email_keys = details.iter().map(|details| details["email"].as_str().expect("text").to_owned());
        Kept { version, email_keys: email_keys.collect(), details }
    };
    let living = events()[&id(2)][0].details.clone();
    let right = BTreeMap::from([(id(1), row(3, None)), (id(2), row(1, Some(living.clone())))]);
    assert!(kept(&events(), &right).is_empty());
    let stranger = form("patient-3@example.com", 30);
    let broken: [(&str, Uuid, Kept); 6] = [
        ("an older version", id(1), row(2, None)),
        ("a record that was ended", id(1), row(3, Some(living.clone()))),
        ("a record that is gone", id(2), row(1, None)),
        ("another record", id(2), row(1, Some(stranger.clone()))),
        ("an address that is free", id(2), Kept { email_keys: Vec::new(), ..row(1, Some(living)) }),
        ("a stranger", id(3), row(1, Some(stranger))),
    ];
    for (what, id, row) in broken {
        let mut rows = right.clone();
        rows.insert(id, row);
        assert_eq!(kept(&events(), &rows).len(), 1, "{what}");
    }
    assert_eq!(kept(&events(), &BTreeMap::new()).len(), 2);
}

#[test]
fn what_was_told_is_compared_with_what_is_there() {
    let register = |tag| Call::Register { tag, email: Email::Own };
    let put = |tag| Call::Put { tag, email: Email::Own, expected: None };
    let delete = Call::Delete { expected: None };
    for (right, told) in [
        (true, operation(1, register(10), rec(1, 10))),
        (true, operation(1, put(11), rec(2, 11))),
        (true, operation(1, put(11), Outcome::Unknown)),
        (true, operation(1, put(12), Outcome::Unknown)),
        (true, operation(1, put(12), Outcome::NotDone)),
        (true, operation(1, delete, Outcome::Ended)),
        (false, operation(1, put(12), rec(2, 12))),
        (false, operation(1, put(11), rec(3, 11))),
        (false, operation(2, put(11), rec(2, 11))),
        (false, operation(1, put(11), Outcome::NotDone)),
        (false, operation(1, register(10), Outcome::Taken)),
        (false, operation(2, delete, Outcome::Ended)),
    ] {
        assert_eq!(effects(&events(), &[told]).is_empty(), right, "{told:?}");
    }
    let mut twice = events();
    twice.get_mut(&id(2)).expect("there").push(recorded(2, 2, UPDATED, 11));
    assert_eq!(effects(&twice, &[operation(1, put(11), Outcome::Unknown)]).len(), 1);
}

#[test]
fn a_patch_is_found_by_the_field_that_it_set() {
    let mut events = events();
    let mut patched = recorded(2, 2, UPDATED, 20);
    patched.details["address"] = json!("21 High Street");
    events.get_mut(&id(2)).expect("there").push(patched);
    let call = Call::Patch { tag: 21, part: Part::Address, expected: None };
    let told = |address| {
        let record = Record { version: 2, name: 20, address, email: Email::Own, restricted: false };
        effects(&events, &[operation(2, call, Outcome::Record(record))])
    };
    assert_eq!(told(21), Vec::<String>::new());
    assert_eq!(told(20).len(), 1);
}

#[test]
fn the_table_tells_which_versions_there_are_and_which_unknown_changes_there_are_not() {
    let record =
        |version, tag| Record { version, name: tag, address: tag, email: Email::Own, restricted: false };
    let expected = Versions::from([(1, Some(record(1, 10))), (2, Some(record(2, 11))), (3, None)]);
    assert_eq!(versions(&events(), id(1)), expected);
    assert_eq!(versions(&events(), id(9)), Versions::new());
    let put = |tag, outcome| operation(1, Call::Put { tag, email: Email::Own, expected: None }, outcome);
    let operations = [put(11, Outcome::Unknown), put(12, Outcome::Unknown), put(13, rec(4, 13))];
    let left: Vec<_> = effective(&events(), &operations).iter().filter_map(|o| o.call.tag()).collect();
    assert_eq!(left, [11, 13]);
}

#[test]
fn the_topic_tells_everything_in_order_and_repeats_exactly() {
    let all =
        [in_topic(1, 1), in_topic(2, 1), in_topic(1, 2), in_topic(1, 1), in_topic(1, 2), in_topic(1, 3)];
    assert_eq!(published(&events(), &all), Vec::<String>::new());
    let order = |places: &[usize]| -> Vec<PatientEvent> { places.iter().map(|p| all[*p].clone()).collect() };
    let with = |last: PatientEvent| [order(&[0, 1, 2, 5]), vec![last]].concat();
    for (what, topic) in [
        ("one is missing at the end", order(&[0, 1, 2])),
        ("one is missing between", order(&[0, 1, 5])),
        ("two are turned round", order(&[1, 0, 5, 2])),
        ("a patient is missing", order(&[0, 2, 5])),
        ("a repeat is another event", with(PatientEvent { event_id: id(99).to_string(), ..in_topic(1, 2) })),
        ("a repeat has another name", with(PatientEvent { name: "Patient 12".into(), ..in_topic(1, 2) })),
        ("another kind", with(PatientEvent { event_type: "PATIENT_DELETED".into(), ..in_topic(1, 2) })),
        ("a stranger", with(PatientEvent { patient_id: id(7).to_string(), ..in_topic(1, 1) })),
        ("no version", with(PatientEvent { version: 0, ..in_topic(1, 1) })),
    ] {
        assert!(!published(&events(), &topic).is_empty(), "{what}");
    }
}

#[test]
fn each_patient_has_the_account_that_was_named() {
    let account = |n: u128, tag: Tag| Account {
        id: id(n * 100),
        name: format!("Patient {tag}"),
        email: email_text(Email::Own, n as Tag),
    };
    let right = BTreeMap::from([(id(1), account(1, 10)), (id(2), account(2, 20))]);
    let told = |n: u128| operation(2, Call::OpenAccount, Outcome::Account(id(n)));
    assert_eq!(billed(&events(), &right, &[told(200)]), Vec::<String>::new());
    assert_eq!(billed(&events(), &right, &[told(100)]).len(), 1);
    for (patient, broken) in
        [(2, None), (2, Some(account(2, 10))), (2, Some(account(1, 20))), (3, Some(account(3, 30)))]
    {
        let mut accounts = right.clone();
        match broken {
            Some(account) => drop(accounts.insert(id(patient), account)),
            None => drop(accounts.remove(&id(patient))),
        }
        assert_eq!(billed(&events(), &accounts, &[]).len(), 1);
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
