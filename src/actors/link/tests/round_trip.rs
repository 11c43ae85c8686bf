//! Every value is read back as it was written.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use prost::Message;
use time::Date;
use uuid::Uuid;

use super::super::portable::{self, Passage, Question};
use super::super::wire;
use super::*;
use crate::actors::billing::Accounts;
use crate::actors::patients::{Made, PatientAnswer, PatientQuery, PatientReply};
use crate::domain::account::{Account, AccountStatus, OpenAccount};
use crate::domain::analytics::{AGE_BANDS, Summary};
use crate::domain::conditions::Conditions;
use crate::domain::event::EventType;
use crate::domain::ids::{AccountId, Fingerprint, PatientId};
use crate::domain::patient::{PatientChange, PatientDetails, PatientPatch};
use crate::domain::search::{Filter, HistoryEntry, Key, PatientPage, PatientSearch, Place, Sort};
use crate::domain::time::Timestamp;

fn dates() -> impl Strategy<Value = Date> {
    (Date::MIN.to_julian_day()..=Date::MAX.to_julian_day())
        .prop_map(|day| Date::from_julian_day(day).expect("in range"))
}

fn uuids() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

prop_compose! {
    fn details()(name in ".{0,20}", email in ".{0,20}", address in ".{0,20}", born in dates(), since in dates())
        -> PatientDetails {
        PatientDetails {
            name: name.into(), email: email.into(), address: address.into(),
            date_of_birth: born, registered_date: since,
        }
    }
}

prop_compose! {
    fn patients()(id in uuids(), version in any::<i64>(), created in any::<i64>(), details in details()) -> Patient {
        Patient {
            id: PatientId(id),
            version,
            created_at: Timestamp(created),
            restricted: version % 2 == 0,
            details,
        }
    }
}

prop_compose! {
    fn accounts()(id in uuids(), patient in uuids(), name in ".{0,20}", email in ".{0,20}", at in any::<i64>())
        -> Account {
        Account {
            id: AccountId(id), patient_id: PatientId(patient), name: name.into(), email: email.into(),
            status: AccountStatus::Active, opened_at: Timestamp(at),
        }
    }
}

prop_compose! {
    fn summaries()(
        total in any::<i64>(),
        counts in proptest::collection::vec(any::<i64>(), 9),
        days in proptest::collection::vec((dates(), any::<i64>()), 0..30),
        lag_events in any::<Option<u64>>(),
        as_of in any::<i64>(),
    ) -> SummaryView {
        let bands = AGE_BANDS.iter().map(|(band, ..)| *band).zip(counts[3..].iter().copied());
        let summary = Summary {
            total_patients: total,
            by_event_type: EventType::ALL.into_iter().zip(counts.iter().copied()).collect(),
            registrations_by_day: days,
            age_bands: bands.collect(),
        };
        SummaryView { summary, lag_events, as_of: Timestamp(as_of) }
    }
}

fn commands() -> impl Strategy<Value = PatientCommand> {
    let update = (details(), any::<bool>()).prop_map(|(d, keep)| {
        PatientCommand::Update(PatientChange {
            name: d.name,
            email: d.email,
            address: d.address,
            date_of_birth: d.date_of_birth,
            registered_date: (!keep).then_some(d.registered_date),
        })
    });
    let patch = (proptest::option::of(details()), details(), 0..32u8).prop_map(|(a, b, given)| {
        let pick = |nth: u8| (given >> nth & 1 == 1).then(|| a.clone().unwrap_or(b.clone()));
        PatientCommand::Patch(PatientPatch {
            name: pick(0).map(|d| d.name),
            email: pick(1).map(|d| d.email),
            address: pick(2).map(|d| d.address),
            date_of_birth: pick(3).map(|d| d.date_of_birth),
            registered_date: pick(4).map(|d| d.registered_date),
        })
    });
    prop_oneof![
        details().prop_map(PatientCommand::Register),
        update,
        patch,
        any::<bool>().prop_map(PatientCommand::Restrict),
        Just(PatientCommand::Delete)
    ]
}

fn places() -> impl Strategy<Value = Place> {
    let key = prop_oneof![
        any::<i64>().prop_map(|time| Key::Time(Timestamp(time))),
        ".{0,9}".prop_map(|text| Key::Text(text.into())),
        dates().prop_map(Key::Day),
    ];
    (key, uuids()).prop_map(|(key, id)| Place { key, id: PatientId(id) })
}

/// Arbitrary queries, including meaningless ones.
fn queries() -> impl Strategy<Value = PatientQuery> {
    let days = || proptest::option::of(dates());
    let filter = prop_oneof![
        Just(Filter::All),
        ".{1,9}".prop_map(|text| Filter::Begins(text.into())),
        ".{1,9}".prop_map(|text| Filter::NameBegins(text.into())),
        ".{1,9}".prop_map(|text| Filter::Email(text.into())),
        (days(), days()).prop_map(|(after, before)| Filter::Born { after, before }),
        dates().prop_map(Filter::RegisteredAfter),
    ];
    let sort = prop_oneof![Just(Sort::Created), Just(Sort::Name), Just(Sort::Born), Just(Sort::Registered)];
    let after = proptest::option::of(places());
    let search = (filter, sort, any::<bool>(), after, any::<u32>());
    prop_oneof![
        search.prop_map(|(filter, sort, descending, after, limit_rows)| {
            // The wire form marks a search by name alone through its sort order.
            let sort = if matches!(filter, Filter::NameBegins(_)) { Sort::Name } else { sort };
            PatientQuery::Search(PatientSearch { filter, sort, descending, after, limit_rows })
        }),
        (uuids(), any::<i64>(), any::<u32>()).prop_map(|(id, after, limit_rows)| PatientQuery::History {
            id: PatientId(id),
            after,
            limit_rows
        }),
    ]
}

fn conditions() -> impl Strategy<Value = Conditions> {
    let expected = proptest::option::of(proptest::collection::vec(any::<i64>(), 0..4));
    (expected, proptest::option::of(uuids())).prop_map(|(expected, fingerprint)| Conditions {
        expected: expected.map(Into::into),
        fingerprint: fingerprint.map(Fingerprint),
    })
}

/// A change with its metadata; `None` for a read.
type Drawn<C> = Option<(C, Uuid, String, String, bool)>;

fn drawn<C: std::fmt::Debug>(commands: impl Strategy<Value = C>) -> impl Strategy<Value = Drawn<C>> {
    proptest::option::of((commands, uuids(), "[a-z@.]{1,9}", "[0-9a-f-]{0,55}", any::<bool>()))
}

fn op<E: Entity>(drawn: Drawn<E::Command>) -> Op<E> {
    drawn.map_or(Op::Read, |(command, command_id, subject, traceparent, maybe_done)| {
        Op::Write(Write {
            command,
            conditions: Conditions::default(),
            command_id: CommandId(command_id),
            // A subject of even length has a break-glass reason.
            caller: Caller {
                subject: subject.as_str().into(),
                break_glass: (subject.len() % 2 == 0).then(|| subject.as_str().into()),
                ..Caller::system("test")
            },
            traceparent: traceparent.into(),
            maybe_done,
        })
    })
}

/// Encodes a request and reads it back.
fn over_the_wire(request: pb::Request) -> (Said, Question) {
    let frame = pb::Frame { requests: vec![request], ..Default::default() };
    let mut frame = pb::Frame::decode(&*frame.encode_to_vec()).expect("a frame");
    let request = frame.requests.pop().expect("a request");
    portable::read(request.envelope, request.body).expect("a question")
}

fn asked<E: portable::Portable>(id: Uuid, op: &Op<E>) -> (Ask<E>, Said, Question) {
    let caller = match op {
        Op::Read => Caller::system("test"),
        Op::Write(write) => write.caller.clone(),
    };
    let (reply, _) = ReplyTo::here();
    let now = SystemClock.mono();
    let ask =
        Ask { id, op: Op::Read, trace: TraceContext::root(), deadline: now, sent_at: now, caller, reply };
    let budget = Duration::from_micros(12_000_001);
    let (request, _) = portable::ask_request(&ask, op.clone(), budget, Passage::default());
    let (said, question) = over_the_wire(request);
    (ask, said, question)
}

fn same<E: Entity>(one: &Op<E>, other: &Op<E>) -> bool
where
    E::Command: PartialEq,
{
    match (one, other) {
        (Op::Read, Op::Read) => true,
        (Op::Write(a), Op::Write(b)) => {
            a.command == b.command
                && a.command_id == b.command_id
                && a.caller == b.caller
                && a.traceparent == b.traceparent
                && a.maybe_done == b.maybe_done
        }
        _ => false,
    }
}

fn answered<T: wire::Answer>(outcome: reply_outcome::Outcome) -> Option<Result<T, Failure>> {
    let reply = pb::Reply { id: 9, answered_by: "p1#1".into(), outcome: Some(outcome) };
    let frame = pb::Frame { replies: vec![reply], ..Default::default() };
    let mut frame = pb::Frame::decode(&*frame.encode_to_vec()).expect("a frame");
    wire::read(frame.replies.pop().expect("a reply").outcome)
}

use crate::proto::cluster::reply as reply_outcome;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn questions_about_a_patient(id in uuids(), drawn in drawn(commands()), conditions in conditions()) {
        let mut op = op::<Patients>(drawn);
        if let Op::Write(write) = &mut op {
            write.conditions = conditions;
        }
        let (ask, said, question) = asked(id, &op);
        let Question::Patient(read_id, read_op) = question else { panic!("another question") };
        prop_assert!(read_id == id && same(&read_op, &op));
        prop_assert_eq!(said.trace.trace_id, ask.trace.trace_id);
        prop_assert_eq!(said.trace.span_id, ask.trace.span_id);
        prop_assert_eq!(said.budget, Duration::from_millis(12_001));
        prop_assert!(said.caller == ask.caller);
    }

    #[test]
    fn questions_about_an_account(
        id in uuids(),
        drawn in drawn((uuids(), ".{0,20}", ".{0,20}").prop_map(|(id, name, email)| OpenAccount {
            account_id: AccountId(id), name: name.into(), email: email.into(),
        })),
    ) {
        let op = op::<Accounts>(drawn);
        let (_, _, question) = asked(id, &op);
        let Question::Account(read_id, read_op) = question else { panic!("another question") };
        prop_assert!(read_id == id && same(&read_op, &op));
    }

    #[test]
    fn questions_about_many(query in queries()) {
        let (reply, _) = ReplyTo::here();
        let now = SystemClock.mono();
        let ask = QueryAsk {
            query: query.clone(), trace: TraceContext::root(), deadline: now, sent_at: now,
            caller: Caller::system("test"), reply,
        };
        let (request, bytes) = portable::query_request(&ask, LONG, Passage::default());
        let (_, question) = over_the_wire(request);
        let Question::Patients(read) = question else { panic!("another question") };
        prop_assert!(bytes >= query.limit_rows() as usize);
        prop_assert_eq!(read, query);
    }

    #[test]
    fn answers(
        patients in proptest::collection::vec(patients(), 0..5),
        resume in proptest::option::of(places()),
        account in accounts(),
        summary in summaries(),
        json in any::<Vec<u8>>(),
    ) {
        use wire::Answer;
        if let Some(patient) = patients.first() {
            for made in [Made::Now, Made::Before, Made::Nothing] {
                let reply = PatientReply { patient: Arc::new(patient.clone()), made };
                prop_assert_eq!(answered(reply.outcome()), Some(Ok(reply)));
            }
        }
        let life = patients.iter().map(|patient| HistoryEntry {
            event: EventType::Updated.event(Arc::new(patient.clone())),
            at: patient.created_at,
            subject: patient.details.email.as_ref().into(),
        });
        let history = PatientAnswer::History(life.collect());
        prop_assert_eq!(answered(history.outcome()), Some(Ok(history)));
        let page = PatientAnswer::Page(PatientPage { patients, resume });
        prop_assert_eq!(answered(page.outcome()), Some(Ok(page)));
        let account = Arc::new(account);
        prop_assert!(answered(account.outcome()) == Some(Ok(account)));
        prop_assert_eq!(answered(summary.outcome()), Some(Ok(summary)));
        prop_assert_eq!(answered(json.outcome()), Some(Ok(json)));
    }
}

#[test]
fn failures() {
    use crate::actors::entity::Refused;
    let all = [
        Failure::Refused(Refused::NotFound),
        Failure::Refused(Refused::IdTaken),
        Failure::Refused(Refused::EmailTaken),
        Failure::Refused(Refused::OtherVersion),
        Failure::Refused(Refused::KeyReused),
        Failure::Refused(Refused::KeyExpired),
        Failure::Busy,
        Failure::Expired,
        Failure::NotServing(None),
        Failure::NotServing(Some("patient-1#7".into())),
        Failure::Unavailable,
        Failure::Unknown,
        Failure::Unsupported,
    ];
    for failure in all {
        assert_eq!(answered::<PatientReply>(wire::failed(&failure)), Some(Err(failure)));
    }
    let no_node = wire::failed(&Failure::NoNode(NodeRole::Patient));
    assert_eq!(answered::<PatientReply>(no_node), Some(Err(Failure::NotServing(None))));
    assert_eq!(answered::<PatientReply>(wire::dropped()), None);
    // An answer of the wrong kind leaves the outcome unknown.
    let other = wire::Answer::outcome(&b"{}".to_vec());
    assert_eq!(answered::<PatientReply>(other), None);
}
