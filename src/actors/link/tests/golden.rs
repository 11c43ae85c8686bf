//! Frames of other versions stay readable. `tests/fixtures/cluster/v1` holds them as bytes. Fixtures are
//! added, but never changed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use time::macros::date;
use uuid::Uuid;

use super::super::portable::{self, Passage, Question};
use super::super::wire::{self, Answer};
use super::net::patient;
use super::*;
use crate::actors::billing::Accounts;
use crate::actors::entity::Refused;
use crate::actors::patients::{PatientAnswer, PatientQuery, PatientReply};
use crate::domain::account::{Account, AccountStatus, OpenAccount};
use crate::domain::analytics::{AGE_BANDS, Summary};
use crate::domain::conditions::Conditions;
use crate::domain::event::EventType;
use crate::domain::ids::{AccountId, Fingerprint, PatientId};
use crate::domain::patient::{PatientChange, PatientPatch};
use crate::domain::search::{Filter, HistoryEntry, Key, PatientPage, PatientSearch, Place, Sort};
use crate::domain::time::{MonoTime, Timestamp};

const ID: Uuid = Uuid::from_u128(0x123e4567_e89b_12d3_a456_426614174000);
const HOP: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cluster/v1").join(name)
}

fn fixture(name: &str) -> Vec<u8> {
    let path = path(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn caller() -> Caller {
    Caller { subject: "someone@example.com".into(), ..Caller::system("") }
}

fn ask_of<E: portable::Portable>(op: Op<E>, passage: Passage) -> pb::Request {
    let (reply, _) = ReplyTo::here();
    let trace = TraceContext::parse(HOP).expect("a traceparent");
    let (deadline, sent_at) = (MonoTime(0), MonoTime(0));
    let ask = Ask { id: ID, op: Op::Read, trace, deadline, sent_at, caller: caller(), reply };
    portable::ask_request(&ask, op, Duration::from_millis(1_500), passage).0
}

fn write<E: Entity>(command: E::Command) -> Op<E> {
    write_if(command, Conditions::default())
}

fn write_if<E: Entity>(command: E::Command, conditions: Conditions) -> Op<E> {
    Op::Write(Write {
        command,
        conditions,
        command_id: CommandId(Uuid::from_u128(9)),
        caller: caller(),
        traceparent: HOP.into(),
        maybe_done: true,
    })
}

fn change(registered: bool) -> PatientCommand {
    let details = patient(ID).details;
    PatientCommand::Update(PatientChange {
        name: details.name,
        email: details.email,
        address: details.address,
        date_of_birth: details.date_of_birth,
        registered_date: registered.then_some(details.registered_date),
    })
}

fn plain(body: Body) -> pb::Request {
    let trace = TraceContext::parse(HOP).expect("a traceparent");
    portable::plain_request(&Said { trace, budget: Duration::from_millis(1_500), caller: caller() }, body)
}

fn list(after: Option<Place>) -> pb::Request {
    query(PatientQuery::Search(PatientSearch::all(after, 101)))
}

fn query(query: PatientQuery) -> pb::Request {
    let (reply, _) = ReplyTo::here();
    let trace = TraceContext::parse(HOP).expect("a traceparent");
    let (deadline, sent_at) = (MonoTime(0), MonoTime(0));
    let ask = QueryAsk { query, trace, deadline, sent_at, caller: caller(), reply };
    portable::query_request(&ask, Duration::from_millis(1_500), Passage::default()).0
}

/// Every request, with ascending ids.
fn requests() -> Vec<pb::Request> {
    let relayed = Passage { hops: 1, wanted_owner: None };
    let sought = Passage { hops: 0, wanted_owner: Some("patient-2#7".into()) };
    let open = OpenAccount {
        account_id: AccountId(Uuid::from_u128(4)),
        name: "Zoë Canary".into(),
        email: "Zoe.Canary@example.com".into(),
    };
    let after = Place { key: Key::Time(Timestamp(1_700_000_000_000_001)), id: PatientId(ID) };
    let all = vec![
        ask_of::<Patients>(Op::Read, Passage::default()),
        ask_of::<Patients>(write(PatientCommand::Register(patient(ID).details)), relayed),
        ask_of::<Patients>(write(change(true)), sought),
        ask_of::<Patients>(write(change(false)), Passage::default()),
        ask_of::<Patients>(write(PatientCommand::Delete), Passage::default()),
        list(None),
        list(Some(after)),
        ask_of::<Accounts>(Op::Read, Passage::default()),
        ask_of::<Accounts>(write(open), Passage::default()),
        plain(Body::AnalyticsSummary(pb::AnalyticsSummary {})),
        plain(Body::Status(pb::Status {})),
    ];
    (1..).zip(all).map(|(id, request)| pb::Request { id, ..request }).collect()
}

/// Every change that is sent with its conditions, and the refusals of conditions, with ascending ids. Added
/// to the first version.
fn conditional() -> pb::Frame {
    let expecting = |versions: &[i64]| Conditions { expected: Some(versions.into()), fingerprint: None };
    let keyed = Conditions { expected: None, fingerprint: Some(Fingerprint(Uuid::from_u128(8))) };
    let patch = PatientPatch {
        email: Some("Zoe.Canary@example.com".into()),
        date_of_birth: Some(date!(1985 - 06 - 15)),
        ..PatientPatch::default()
    };
    let ops = [
        write_if::<Patients>(PatientCommand::Register(patient(ID).details), keyed.clone()),
        write_if(change(true), expecting(&[3])),
        write_if(PatientCommand::Patch(PatientPatch::default()), Conditions::default()),
        write_if(
            PatientCommand::Patch(patch),
            Conditions { fingerprint: keyed.fingerprint, ..expecting(&[3, 4]) },
        ),
        write_if(PatientCommand::Delete, expecting(&[])),
    ];
    let requests = ops.into_iter().map(|op| ask_of::<Patients>(op, Passage::default()));
    let refusals = [Refused::OtherVersion, Refused::KeyReused, Refused::KeyExpired];
    let replies = refusals.into_iter().map(|refused| wire::failed(&Failure::Refused(refused)));
    let reply = |(id, outcome)| pb::Reply { id, answered_by: String::new(), outcome: Some(outcome) };
    pb::Frame {
        requests: (1..).zip(requests).map(|(id, request)| pb::Request { id, ..request }).collect(),
        replies: (1..).zip(replies).map(reply).collect(),
        hints: Vec::new(),
    }
}

fn page() -> PatientAnswer {
    PatientAnswer::Page(PatientPage { patients: vec![patient(ID), patient(Uuid::nil())], resume: None })
}

/// Every query other than the plain list of all patients, and the answers. Added to the first version.
fn searches() -> pb::Frame {
    let (day, other) = (date!(1985 - 06 - 15), date!(2024 - 01 - 10));
    let search = |filter, sort, descending, key: Option<Key>| {
        let after = key.map(|key| Place { key, id: PatientId(ID) });
        query(PatientQuery::Search(PatientSearch { filter, sort, descending, after, limit_rows: 101 }))
    };
    let born = |after, before| Filter::Born { after, before };
    let requests = [
        search(Filter::All, Sort::Created, true, Some(Key::Time(Timestamp(-1)))),
        search(Filter::All, Sort::Name, false, None),
        search(Filter::Begins("zo\u{eb}".into()), Sort::Name, false, Some(Key::Text("zo\u{eb} c".into()))),
        search(Filter::Email("zoe@example.com".into()), Sort::Created, false, None),
        search(born(Some(day), None), Sort::Born, false, None),
        search(born(Some(day), Some(other)), Sort::Born, true, Some(Key::Day(day))),
        search(Filter::RegisteredAfter(other), Sort::Registered, true, None),
        query(PatientQuery::History { id: PatientId(ID), after: 7, limit_rows: 52 }),
    ];
    let short = PatientPage {
        patients: vec![patient(ID)],
        resume: Some(Place { key: Key::Text("zo\u{eb} c".into()), id: PatientId(ID) }),
    };
    let entry = |event_type: EventType| HistoryEntry {
        event: event_type.event(Arc::new(patient(ID))),
        at: Timestamp(1_700_000_000_000_004),
        subject: "someone@example.com".into(),
    };
    let history = PatientAnswer::History(EventType::ALL.map(entry).into());
    let replies = [PatientAnswer::Page(short).outcome(), history.outcome()];
    let reply = |(id, outcome)| pb::Reply { id, answered_by: String::new(), outcome: Some(outcome) };
    pb::Frame {
        requests: (1..).zip(requests).map(|(id, request)| pb::Request { id, ..request }).collect(),
        replies: (1..).zip(replies).map(reply).collect(),
        hints: Vec::new(),
    }
}

fn account() -> Account {
    Account {
        id: AccountId(Uuid::from_u128(4)),
        patient_id: PatientId(ID),
        name: "Zoë Canary".into(),
        email: "Zoe.Canary@example.com".into(),
        status: AccountStatus::Active,
        opened_at: Timestamp(1_700_000_000_000_002),
    }
}

fn summary() -> SummaryView {
    let summary = Summary {
        total_patients: 2,
        by_event_type: EventType::ALL.into_iter().zip([3, 4, 1]).collect(),
        registrations_by_day: vec![(date!(2024 - 01 - 09), 0), (date!(2024 - 01 - 10), 3)],
        age_bands: AGE_BANDS.iter().map(|(band, ..)| *band).zip([0, 1, 1, 0, 0, 0]).collect(),
    };
    SummaryView { summary, lag_events: Some(5), as_of: Timestamp(1_700_000_000_000_003) }
}

/// Every outcome.
fn outcomes() -> Vec<pb::reply::Outcome> {
    let failures = [
        Failure::Refused(Refused::NotFound),
        Failure::Refused(Refused::IdTaken),
        Failure::Refused(Refused::EmailTaken),
        Failure::Busy,
        Failure::Expired,
        Failure::NotServing(None),
        Failure::NotServing(Some("patient-2#7".into())),
        Failure::Unavailable,
        Failure::Unknown,
        Failure::Unsupported,
    ];
    let mut all = vec![
        PatientReply::from(Arc::new(patient(ID))).outcome(),
        page().outcome(),
        Arc::new(account()).outcome(),
        summary().outcome(),
        b"{}".to_vec().outcome(),
        wire::dropped(),
    ];
    all.extend(failures.iter().map(wire::failed));
    all
}

fn hints() -> Vec<pb::Hint> {
    use pb::hint::Hint;
    let nudge = Hint::Nudge(pb::Nudge { relay: true, bridge: true });
    let released = pb::ShardsReleased { kind: "patient".into(), shards: vec![0, 63] };
    [nudge, Hint::ShardsReleased(released)].into_iter().map(|hint| pb::Hint { hint: Some(hint) }).collect()
}

/// Added in the second version.
fn sessions_revoked() -> pb::Hint {
    let sessions = [ID, Uuid::from_u128(9)].into_iter().filter_map(wire::id).collect();
    pb::Hint { hint: Some(pb::hint::Hint::SessionsRevoked(pb::SessionsRevoked { sessions })) }
}

/// The frames of this version, by the name of the fixture.
fn frames() -> [(&'static str, pb::Frame); 6] {
    let reply = |(id, outcome)| {
        let answered_by = if id == 1 { "patient-2#7".into() } else { String::new() };
        pb::Reply { id, answered_by, outcome: Some(outcome) }
    };
    let replies = (1..).zip(outcomes()).map(reply).collect();
    [
        ("requests.v1", pb::Frame { requests: requests(), ..Default::default() }),
        ("replies.v1", pb::Frame { replies, ..Default::default() }),
        ("conditional.v1", conditional()),
        ("searches.v1", searches()),
        ("hints.v1", pb::Frame { hints: hints(), ..Default::default() }),
        ("sessions_revoked.v1", pb::Frame { hints: vec![sessions_revoked()], ..Default::default() }),
    ]
}

#[test]
fn the_bytes_are_those_of_the_fixtures() {
    for (name, frame) in frames() {
        assert!(frame.encode_to_vec() == fixture(name), "{name}: the bytes are others");
    }
}

#[test]
fn the_fixtures_can_be_read() {
    for (name, frame) in frames() {
        let read = pb::Frame::decode(&*fixture(name)).expect(name);
        assert!(read == frame, "{name}");
    }
    let frame = pb::Frame::decode(&*fixture("requests.v1")).expect("a frame");
    for request in frame.requests {
        let (said, _) = portable::read(request.envelope, request.body).expect("a question");
        assert!(said.caller == caller() && said.budget == Duration::from_millis(1_500));
        assert_eq!(said.trace.trace_id, TraceContext::parse(HOP).expect("a traceparent").trace_id);
    }
    for name in ["conditional.v1", "searches.v1"] {
        for request in pb::Frame::decode(&*fixture(name)).expect("a frame").requests {
            assert!(portable::read(request.envelope, request.body).is_some(), "{name}: {}", request.id);
        }
    }
    for reply in pb::Frame::decode(&*fixture("searches.v1")).expect("a frame").replies {
        let read: Option<Result<PatientAnswer, Failure>> = wire::read(reply.outcome.clone());
        let said = read.and_then(Result::ok).map(|answer| answer.outcome());
        assert!(said.is_some() && said == reply.outcome);
    }
    let mut replies = pb::Frame::decode(&*fixture("replies.v1")).expect("a frame").replies.into_iter();
    let mut next = || replies.next().and_then(|reply| reply.outcome);
    assert_eq!(wire::read(next()), Some(Ok(PatientReply::from(Arc::new(patient(ID))))));
    assert_eq!(wire::read(next()), Some(Ok(page())));
    assert!(wire::read(next()) == Some(Ok(Arc::new(account()))));
    assert_eq!(wire::read(next()), Some(Ok(summary())));
}

/// The parts of a frame of a later version, with fields and variants that this version does not know.
mod future {
    use prost::encoding::{WireType, encode_key, encode_varint};

    /// A field with this number that holds `bytes`.
    pub(super) fn field(number: u32, bytes: &[u8]) -> Vec<u8> {
        let mut field = Vec::new();
        encode_key(number, WireType::LengthDelimited, &mut field);
        encode_varint(bytes.len() as u64, &mut field);
        field.extend(bytes);
        field
    }
}

/// A read and a patient with an unknown field at every level, and a request, a reply, a failure and a hint of
/// unknown kinds.
fn frame_of_the_future() -> Vec<u8> {
    let more = future::field(900, b"later");
    let with_more = |mut bytes: Vec<u8>| {
        bytes.extend(&more);
        bytes
    };
    let read = requests().swap_remove(0);
    let envelope = read.envelope.as_ref().map(Message::encode_to_vec).expect("an envelope");
    let mut request = pb::Request { envelope: None, body: None, ..read }.encode_to_vec();
    request.extend(future::field(2, &with_more(envelope)));
    request.extend(future::field(10, &with_more(pb::PatientRead { id: wire::id(ID) }.encode_to_vec())));
    let mut unknown = pb::Request { id: 2, body: None, ..requests().swap_remove(0) }.encode_to_vec();
    unknown.extend(future::field(700, b"a question"));

    let mut reply = pb::Reply { id: 1, ..Default::default() }.encode_to_vec();
    reply.extend(future::field(10, &with_more(wire::patient(&patient(ID)).encode_to_vec())));
    let mut unknown_reply = pb::Reply { id: 2, ..Default::default() }.encode_to_vec();
    unknown_reply.extend(future::field(700, b"an answer"));
    let failure = pb::Failure { code: 77, owner: String::new() };
    let unknown_failure =
        pb::Reply { id: 3, outcome: Some(pb::reply::Outcome::Failure(failure)), ..Default::default() };

    let mut frame = Vec::new();
    for bytes in [with_more(request), unknown] {
        frame.extend(future::field(1, &bytes));
    }
    for bytes in [with_more(reply), unknown_reply, unknown_failure.encode_to_vec()] {
        frame.extend(future::field(2, &bytes));
    }
    frame.extend(future::field(3, &future::field(700, b"a hint")));
    with_more(frame)
}

#[test]
fn a_later_version_is_understood_as_far_as_this_one_goes() {
    let bytes = fixture("future");
    assert!(bytes == frame_of_the_future());
    let frame = pb::Frame::decode(&*bytes).expect("a frame");
    let mut requests = frame.requests.into_iter();
    let known = requests.next().expect("a request");
    let (_, question) = portable::read(known.envelope, known.body).expect("a question");
    assert!(matches!(question, Question::Patient(ID, Op::Read)));
    let unknown = requests.next().expect("a request");
    assert!(unknown.id == 2 && portable::read(unknown.envelope, unknown.body).is_none());
    let mut replies = frame.replies.into_iter();
    let mut next = || wire::read::<PatientReply>(replies.next().and_then(|reply| reply.outcome));
    assert_eq!(next(), Some(Ok(Arc::new(patient(ID)).into())));
    // An outcome of an unknown kind leaves the outcome of the request unknown.
    assert_eq!((next(), next()), (None, None));
    assert_eq!(frame.hints.len(), 1);
    assert!(frame.hints[0].hint.is_none());
}

/// A frame of an earlier version, without the optional fields.
fn frame_of_the_past() -> Vec<u8> {
    let envelope = pb::Envelope {
        budget_ms: 1_500,
        subject: "someone@example.com".into(),
        role: "ADMIN".into(),
        ..Default::default()
    };
    let body = Some(Body::PatientRead(pb::PatientRead { id: wire::id(ID) }));
    let read = pb::Request { id: 1, envelope: Some(envelope), body, ..Default::default() };
    let nameless = pb::Request { id: 2, envelope: Some(pb::Envelope::default()), ..read.clone() };
    let summary = pb::Summary { total_patients: 2, ..Default::default() };
    let reply =
        pb::Reply { id: 1, outcome: Some(pb::reply::Outcome::Summary(summary)), ..Default::default() };
    pb::Frame { requests: vec![read, nameless], replies: vec![reply], hints: Vec::new() }.encode_to_vec()
}

#[test]
fn what_an_earlier_version_leaves_out_is_not_missed_but_for_who_asks() {
    let bytes = fixture("past");
    assert!(bytes == frame_of_the_past());
    let frame = pb::Frame::decode(&*bytes).expect("a frame");
    let mut requests = frame.requests.into_iter();
    let read = requests.next().expect("a request");
    let (said, question) = portable::read(read.envelope, read.body).expect("a question");
    assert!(matches!(question, Question::Patient(ID, Op::Read)));
    assert!(said.trace.trace_id != 0 && read.hops == 0 && read.wanted_owner.is_empty());
    let nameless = requests.next().expect("a request");
    assert!(portable::read(nameless.envelope, nameless.body).is_none(), "done for nobody");
    let summary = frame.replies.into_iter().next().and_then(|reply| wire::read::<SummaryView>(reply.outcome));
    assert_eq!(summary.expect("an answer").expect("a summary").lag_events, None);
}
