//! Fixtures pin the bytes of the wire format. Fixtures are only added, never changed.

use std::path::PathBuf;

use time::macros::date;

use super::*;
use crate::domain::ids::{CommandId, EventId};
use crate::domain::patient::{Patient, PatientDetails};

const HOP: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn event(event_type: EventType, version: i64) -> RecordedEvent {
    let patient = Arc::new(Patient {
        restricted: false,
        id: PatientId(Uuid::from_u128(0x123e4567_e89b_12d3_a456_426614174000)),
        version,
        created_at: Timestamp(1_700_000_000_000_000),
        details: PatientDetails {
            name: "Zoë Canary".into(),
            email: "Zoe.Canary@example.com".into(),
            address: "12 Canary Wharf".into(),
            date_of_birth: date!(1985 - 06 - 15),
            registered_date: date!(2024 - 01 - 10),
        },
    });
    RecordedEvent {
        event_id: EventId(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + version as u128)),
        command_id: CommandId(Uuid::from_u128(9)),
        event: event_type.event(patient),
        at: Timestamp(1_700_000_000_123_456 + version),
        subject: "someone@example.com".into(),
        traceparent: HOP.into(),
        fingerprint: None,
    }
}

fn encoded(event: &RecordedEvent) -> Outgoing {
    let hop = TraceContext::parse(HOP).expect("a traceparent");
    encode(&"patient".into(), event, &hop)
}

fn incoming(value: Option<Vec<u8>>) -> Incoming {
    let key = Some(b"123e4567-e89b-12d3-a456-426614174000".to_vec());
    Incoming { partition: 3, offset: 7, published_at_us: 0, key, value, traceparent: None }
}

fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/wire").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

const CASES: [(EventType, i64, &str); 3] = [
    (EventType::Created, 1, "patient_created.v1"),
    (EventType::Updated, 2, "patient_updated.v1"),
    (EventType::Deleted, 3, "patient_deleted.v1"),
];

#[test]
fn the_bytes_are_those_of_the_fixtures() {
    for (event_type, version, name) in CASES {
        let message = encoded(&event(event_type, version));
        assert_eq!(message.value.as_deref(), Some(&*fixture(&format!("{name}.value"))), "{name}");
        let headers: String = message.headers.iter().map(|(k, v)| format!("{k}: {v}\n")).collect();
        assert_eq!(headers.as_bytes(), fixture(&format!("{name}.headers")), "{name}");
        assert_eq!(message.key.as_deref(), Some(&b"123e4567-e89b-12d3-a456-426614174000"[..]));
    }
}

#[test]
fn the_fixtures_can_be_read() {
    for (event_type, version, name) in CASES {
        let read = decode(&incoming(Some(fixture(&format!("{name}.value"))))).expect(name);
        let expected = Observation {
            patient_id: PatientId(Uuid::from_u128(0x123e4567_e89b_12d3_a456_426614174000)),
            version,
            event_type,
            at: Timestamp(1_700_000_000_123_456 + version),
            date_of_birth: (event_type != EventType::Deleted).then_some(date!(1985 - 06 - 15)),
        };
        assert_eq!(read, expected, "{name}");
    }
}

#[test]
fn a_message_of_an_old_producer_is_understood_but_cannot_be_counted() {
    let value = fixture("old_producer.value");
    let event = PatientEvent::decode(&*value).expect("fields 1 to 4");
    assert_eq!(event.event_type, "PATIENT_CREATED");
    assert_eq!(event.email, "john.doe@example.com");
    let message = Incoming { key: None, ..incoming(Some(value)) };
    assert_eq!(decode(&message), Err(Unreadable::Key));
    let key = Some(event.patient_id.into_bytes());
    assert_eq!(decode(&Incoming { key, ..message }), Err(Unreadable::EventId));
}

#[test]
fn headers_hold_no_patient_data() {
    for (event_type, version, _) in CASES {
        for (name, value) in encoded(&event(event_type, version)).headers {
            assert!(!value.contains("Canary") && !value.contains("1985"), "{name}: {value}");
        }
    }
}

#[test]
fn each_reason_is_told_apart_and_names_no_value() {
    let good = PatientEvent::decode(&*fixture("patient_created.v1.value")).expect("good");
    type Edit = fn(&mut PatientEvent);
    let cases: [(Edit, Unreadable); 15] = [
        (|e| e.patient_id = "canary".into(), Unreadable::PatientId),
        (|e| e.patient_id = "123e4567-e89b-12d3-a456-426614174001".into(), Unreadable::Key),
        (|e| e.event_id = "canary".into(), Unreadable::EventId),
        (|e| e.event_id.clear(), Unreadable::EventId),
        (|e| e.version = i64::MAX, Unreadable::Version),
        (|e| e.occurred_at_us = 1, Unreadable::Time),
        (|e| e.date_of_birth = "1066-10-14".into(), Unreadable::DateOfBirth),
        (|e| e.date_of_birth = "2199-01-01".into(), Unreadable::DateOfBirth),
        (|e| e.registered_date = "canary".into(), Unreadable::RegisteredDate),
        (|e| e.event_type = "PATIENT_CANARY".into(), Unreadable::EventType),
        (|e| e.version = 0, Unreadable::Version),
        (|e| e.version = -1, Unreadable::Version),
        (|e| e.occurred_at_us = 0, Unreadable::Time),
        (|e| e.occurred_at_us = i64::MAX, Unreadable::Time),
        (|e| e.date_of_birth = "canary".into(), Unreadable::DateOfBirth),
    ];
    for (edit, reason) in cases {
        let mut event = good.clone();
        edit(&mut event);
        assert_eq!(decode(&incoming(Some(event.encode_to_vec()))), Err(reason));
        assert!(!reason.to_string().contains("canary"));
    }
    for key in [None, Some(b"canary".to_vec())] {
        let message = Incoming { key, ..incoming(Some(good.encode_to_vec())) };
        assert_eq!(decode(&message), Err(Unreadable::Key));
    }
    assert_eq!(decode(&incoming(None)), Err(Unreadable::NoValue));
    assert_eq!(decode(&incoming(Some(vec![0xff; 9]))), Err(Unreadable::NotProtobuf));
}

#[test]
fn a_dead_letter_keeps_the_message_and_only_a_well_formed_trace() {
    let mut message = incoming(Some(b"canary".to_vec()));
    message.key = Some(b"key".to_vec());
    message.traceparent = Some("canary".into());
    let letter = dead_letter(&"patient.dlq".into(), "patient", &message, Unreadable::NotProtobuf);
    assert_eq!((&letter.key, &letter.value), (&message.key, &message.value));
    assert_eq!(
        letter.headers,
        [
            (DEAD_LETTER_REASON, "the value is no patient.events.PatientEvent".to_owned()),
            (DEAD_LETTER_SOURCE, "patient/3/7".to_owned())
        ]
    );
    message.traceparent = Some(HOP.into());
    let letter = dead_letter(&"patient.dlq".into(), "patient", &message, Unreadable::NotProtobuf);
    assert_eq!(letter.headers[2], (TRACEPARENT, HOP.to_owned()));
}

#[test]
fn what_is_carried_is_not_printed() {
    let message = encoded(&event(EventType::Created, 1));
    let read = incoming(message.value.clone());
    let printed = format!("{message:?} {read:?}");
    assert!(!printed.contains("Canary") && !printed.contains("90, 111"), "{printed}");
}

#[test]
fn an_event_that_is_published_again_says_so_and_is_the_same_otherwise() {
    let event = event(EventType::Created, 1);
    let hop = TraceContext::parse(HOP).expect("a traceparent");
    let mut again = encode_replay(&"patient".into(), &event, &hop, 3);
    assert_eq!(again.headers.pop(), Some((REPLAY, "3".to_owned())));
    assert!(again == encoded(&event));
}
