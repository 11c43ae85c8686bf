//! The link over pipes in memory. `HYGEIA_SEED=n` replays one seed.

mod chains;
mod golden;
mod lost;
mod net;
mod round_trip;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use prost::Message;
use tokio::sync::oneshot;
use uuid::Uuid;

use self::net::{Net, answering, holding, net, patient, scripted, spec, until};
use super::*;
use crate::actors::entity::Write;
use crate::actors::patients::PatientReply;
use crate::actors::region::RegionMessage;
use crate::clock::SystemClock;
use crate::domain::conditions::Conditions;
use crate::domain::ids::CommandId;
use crate::domain::patient::{Patient, PatientCommand};

const FRONT: &[NodeRole] = &[NodeRole::Front];
const PATIENT: &[NodeRole] = &[NodeRole::Patient];

type Answered = oneshot::Receiver<Result<PatientReply, Failure>>;

fn ask(id: Uuid, op: Op<Patients>, budget: Duration) -> (Box<Ask<Patients>>, Answered) {
    let (reply, answered) = ReplyTo::here();
    let now = SystemClock.mono();
    let (trace, deadline) = (TraceContext::root(), now.plus(budget));
    (Box::new(Ask { id, op, trace, deadline, sent_at: now, caller: Caller::system("test"), reply }), answered)
}

const LONG: Duration = Duration::from_secs(30);

fn read(net: &Net, from: &str, to: &str, id: u128) -> Answered {
    let (ask, answered) = ask(Uuid::from_u128(id), Op::Read, LONG);
    Courier::<Patients>::ask(net.links(from), &format!("{to}#1"), None, ask);
    answered
}

fn delete(id: u128) -> (Box<Ask<Patients>>, Answered) {
    let write = Write {
        command: PatientCommand::Delete,
        conditions: Conditions::default(),
        command_id: CommandId(Uuid::from_u128(5)),
        caller: Caller { subject: "someone@example.com".into(), ..Caller::system("") },
        traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
        maybe_done: true,
    };
    ask(Uuid::from_u128(id), Op::Write(write), LONG)
}

async fn answer(answered: Answered) -> Option<Result<PatientReply, Failure>> {
    tokio::time::timeout(LONG, answered).await.expect("answered or dropped within 30 s").ok()
}

fn unanswered(net: &Net, name: &str) -> usize {
    net.links(name).facts().iter().map(|facts| facts.unanswered).sum()
}

#[tokio::test]
async fn a_lone_request_goes_at_once_and_many_share_frames() {
    let net = net(0, vec![spec("front", FRONT, Served::default()), spec("p1", PATIENT, answering().await)]);
    for id in 1..=20 {
        let found = answer(read(&net, "front", "p1", id)).await.expect("an answer").expect("a patient");
        assert_eq!(*found.patient, patient(Uuid::from_u128(id)));
    }
    assert_eq!(net.weather.frames.load(Ordering::SeqCst), 40);
    net.weather.reset();
    for _ in 0..10 {
        let many: FuturesUnordered<_> = (1..=64).map(|id| answer(read(&net, "front", "p1", id))).collect();
        assert_eq!(many.filter(|found| std::future::ready(matches!(found, Some(Ok(_))))).count().await, 64);
    }
    let (items, frames) = (&net.weather.items, &net.weather.frames);
    let (items, frames) = (items.load(Ordering::SeqCst), frames.load(Ordering::SeqCst));
    assert_eq!(items, 1_280);
    assert!(items >= 8 * frames, "{items} items in {frames} frames");
}

#[tokio::test]
async fn what_is_left_of_the_callers_time_is_the_deadline_at_the_other_node() {
    const BUDGET: Duration = Duration::from_secs(7);
    let (served, held) = holding().await;
    let net = net(0, vec![spec("front", FRONT, Served::default()), spec("p1", PATIENT, served)]);
    let sent = SystemClock.mono();
    let (ask, _answered) = ask(Uuid::from_u128(1), Op::Read, BUDGET);
    Courier::<Patients>::ask(net.links("front"), "p1#1", None, ask);
    until("it has come", || held.lock().unwrap().len() == 1).await;
    let Some(RegionMessage::Ask(ask)) = held.lock().unwrap().pop() else { panic!("no question") };
    // The remaining time is sent in whole milliseconds, rounded up, and counts from the arrival.
    let latest = SystemClock.mono().plus(BUDGET);
    let earliest = sent.plus(BUDGET - Duration::from_millis(2));
    assert!(ask.deadline <= latest, "{:?} is later than {latest:?}", ask.deadline);
    assert!(ask.deadline >= earliest, "{:?} is earlier than {earliest:?}", ask.deadline);
}

#[tokio::test]
async fn a_frame_holds_no_more_than_its_bounds() {
    let mut front = spec("front", FRONT, Served::default());
    front.settings.frame_items_max = 5;
    let (served, held) = holding().await;
    let net = net(0, vec![front, spec("p1", PATIENT, served)]);
    let _waiting: Vec<_> = (1..=61).map(|id| read(&net, "front", "p1", id)).collect();
    until("all have come", || held.lock().unwrap().len() == 61).await;
    // The first request was sent alone.
    assert_eq!(net.weather.frames.load(Ordering::SeqCst), 1 + 12);
}

#[tokio::test]
async fn bytes_of_a_frame_and_of_an_item_are_bounded() {
    let mut front = spec("front", FRONT, Served::default());
    front.settings.frame_bytes_max = 300;
    let mut p1 = spec("p1", PATIENT, answering().await);
    p1.settings.item_bytes_max = 80;
    let (served, held) = holding().await;
    let net = net(0, vec![front, p1, spec("p2", PATIENT, served)]);
    let _waiting: Vec<_> = (1..=21).map(|id| read(&net, "front", "p2", id)).collect();
    until("all have come", || held.lock().unwrap().len() == 21).await;
    // A read takes between 76 and 100 bytes; the first one was sent alone.
    assert_eq!(net.weather.frames.load(Ordering::SeqCst), 1 + 20_usize.div_ceil(3));
    // An answer that is too large is replaced by a failure.
    assert_eq!(answer(read(&net, "front", "p1", 1)).await, Some(Err(Failure::Unavailable)));
    // A request that is too large is refused by the sender.
    let (ask, answered) = delete(1);
    Courier::<Patients>::ask(net.links("p1"), "p2#1", None, ask);
    assert_eq!(answer(answered).await, Some(Err(Failure::Busy)));
}

#[tokio::test]
async fn what_a_peer_owes_is_bounded_and_counts_until_it_is_answered_or_gone() {
    let mut front = spec("front", FRONT, Served::default());
    front.settings.unanswered_max = 4;
    let (served, held) = holding().await;
    let net = net(0, vec![front, spec("p1", PATIENT, served)]);
    let four: Vec<_> = (1..=4).map(|id| read(&net, "front", "p1", id)).collect();
    assert_eq!(answer(read(&net, "front", "p1", 5)).await, Some(Err(Failure::Busy)));
    // The callers have given up, but the peer still has the requests.
    drop(four);
    until("all have come", || held.lock().unwrap().len() == 4).await;
    assert_eq!(answer(read(&net, "front", "p1", 6)).await, Some(Err(Failure::Busy)));
    // One request is dropped by the peer, which makes room.
    drop(held.lock().unwrap().pop());
    until("room", || unanswered(&net, "front") == 3).await;
    let waiting = read(&net, "front", "p1", 7);
    assert_eq!(answer(read(&net, "front", "p1", 8)).await, Some(Err(Failure::Busy)));
    net.show("front", &[]);
    assert_eq!(answer(waiting).await, None);
    assert!(net.links("front").facts().is_empty());
    assert_eq!(answer(read(&net, "front", "p1", 9)).await, Some(Err(Failure::NotServing(None))));
}

#[tokio::test]
async fn bytes_are_bounded_with_the_answers_that_they_may_come_to() {
    let mut front = spec("front", FRONT, Served::default());
    front.settings.unanswered_bytes_max = 3_000;
    let net = net(0, vec![front, spec("p1", PATIENT, holding().await.0)]);
    // Each request counts for its own 100 bytes or so, and for one record.
    let _two = [read(&net, "front", "p1", 1), read(&net, "front", "p1", 2)];
    assert_eq!(answer(read(&net, "front", "p1", 3)).await, Some(Err(Failure::Busy)));
    assert_eq!(unanswered(&net, "front"), 2);
}

#[tokio::test]
async fn a_peer_that_asks_for_too_much_is_refused_the_rest() {
    let mut p1 = spec("p1", PATIENT, Served::default());
    let (served, held) = holding().await;
    (p1.served, p1.settings.owed_max) = (served, 3);
    let net = net(0, vec![spec("front", FRONT, Served::default()), p1]);
    let answers: FuturesUnordered<_> = (1..=8).map(|id| answer(read(&net, "front", "p1", id))).collect();
    let refused: Vec<_> = answers.take(5).collect().await;
    assert!(refused.iter().all(|said| *said == Some(Err(Failure::Busy))), "{refused:?}");
    assert_eq!(held.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn after_a_frame_that_cannot_be_read_nobody_waits_for_what_was_in_it() {
    let mut front = spec("front", FRONT, Served::default());
    front.settings.unanswered_max = 4;
    let (served, held) = holding().await;
    let net = net(0, vec![front, spec("p1", PATIENT, served)]);
    let lost: Vec<_> = (1..=4).map(|id| read(&net, "front", "p1", id)).collect();
    until("all have come", || held.lock().unwrap().len() == 4).await;
    net.send_raw("p1", "front", b"\xff\xff\xff".to_vec());
    for lost in lost {
        assert_eq!(answer(lost).await, None);
    }
    let again = read(&net, "front", "p1", 5);
    until("there is room again", || held.lock().unwrap().len() == 5).await;
    let Some(RegionMessage::Ask(ask)) = held.lock().unwrap().pop() else { panic!("no question") };
    ask.reply.send(Err(Failure::Busy));
    assert_eq!(answer(again).await, Some(Err(Failure::Busy)));
}

#[tokio::test]
async fn a_peer_that_leaves_drops_what_waits_for_it_and_nothing_else() {
    let (p1, _) = holding().await;
    let (p2, held) = holding().await;
    let specs =
        vec![spec("front", FRONT, Served::default()), spec("p1", PATIENT, p1), spec("p2", PATIENT, p2)];
    let net = net(0, specs);
    let lost: Vec<_> = (1..=9).map(|id| read(&net, "front", "p1", id)).collect();
    let kept = read(&net, "front", "p2", 1);
    net.show("front", &["p2"]);
    for lost in lost {
        assert_eq!(answer(lost).await, None);
    }
    until("it has come", || held.lock().unwrap().len() == 1).await;
    let Some(RegionMessage::Ask(ask)) = held.lock().unwrap().pop() else { panic!("no question") };
    ask.reply.send(Err(Failure::Unavailable));
    assert_eq!(answer(kept).await, Some(Err(Failure::Unavailable)));
}

#[tokio::test]
async fn a_wire_that_is_gone_drops_what_waits_and_refuses_the_rest() {
    let net = net(0, vec![spec("front", FRONT, Served::default()), spec("p1", PATIENT, holding().await.0)]);
    let waiting = read(&net, "front", "p1", 1);
    net.cut("front", "p1", true);
    // The cut is noticed at the next send.
    assert_eq!(answer(read(&net, "front", "p1", 2)).await, None);
    assert_eq!(answer(waiting).await, None);
    assert_eq!(answer(read(&net, "front", "p1", 3)).await, Some(Err(Failure::NotServing(None))));
}

/// Three regions. `p1` and `p3` name `p2` as the owner. `p2` serves, or names `p2_names` if that is given.
async fn relay_net(p2_names: Option<&'static str>) -> (Net, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let naming = |owner: &'static str| {
        scripted(move |message| {
            if let RegionMessage::Ask(ask) = message {
                ask.reply.send(Err(Failure::NotServing(Some(owner.into()))));
            }
        })
    };
    let counted = Arc::clone(&asked);
    let p2 = scripted(move |message| {
        if let RegionMessage::Ask(ask) = message {
            counted.fetch_add(1, Ordering::SeqCst);
            assert!(matches!(&ask.op, Op::Read) || matches!(&ask.op, Op::Write(write) if write.maybe_done));
            let found = Arc::new(patient(ask.id));
            ask.reply
                .send(p2_names.map_or(Ok(found.into()), |name| Err(Failure::NotServing(Some(name.into())))));
        }
    });
    let (p1, p2, p3) = (naming("p2#1").await, p2.await, naming("p2#1").await);
    let specs = vec![
        spec("front", FRONT, Served::default()),
        spec("p1", PATIENT, p1),
        spec("p2", PATIENT, p2),
        spec("p3", PATIENT, p3),
    ];
    (net(0, specs), asked)
}

#[tokio::test]
async fn a_request_is_passed_on_once_to_the_owner_that_is_named() {
    let (net, asked) = relay_net(None).await;
    let found = answer(read(&net, "front", "p1", 7)).await.expect("an answer").expect("a patient");
    assert_eq!((found.patient.id.0, asked.load(Ordering::SeqCst)), (Uuid::from_u128(7), 1));
    // A change keeps its metadata on both links.
    let (ask, answered) = delete(8);
    Courier::<Patients>::ask(net.links("front"), "p1#1", None, ask);
    assert!(matches!(answer(answered).await, Some(Ok(_))));
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_request_that_was_passed_on_is_not_passed_on_again() {
    let (net, asked) = relay_net(Some("p3#1")).await;
    let said = answer(read(&net, "front", "p1", 7)).await;
    assert_eq!(said, Some(Err(Failure::NotServing(Some("p3#1".into())))));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_owner_out_of_sight_is_reached_through_another_node() {
    let (net, asked) = relay_net(None).await;
    net.show("front", &["p1", "p3"]);
    let (ask, answered) = ask(Uuid::from_u128(7), Op::Read, LONG);
    Courier::<Patients>::ask(net.links("front"), "p3#1", Some("p2#1".into()), ask);
    assert!(matches!(answer(answered).await, Some(Ok(_))));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    // If that node does not see the owner either, it asks its own region.
    net.show("p3", &["front"]);
    let (ask, answered) = self::ask(Uuid::from_u128(7), Op::Read, LONG);
    Courier::<Patients>::ask(net.links("front"), "p3#1", Some("p2#1".into()), ask);
    assert_eq!(answer(answered).await, Some(Err(Failure::NotServing(Some("p2#1".into())))));
}

#[tokio::test]
async fn what_is_passed_on_to_a_node_that_dies_is_told_to_be_dropped() {
    let naming = scripted(|message| {
        if let RegionMessage::Ask(ask) = message {
            ask.reply.send(Err(Failure::NotServing(Some("p2#1".into()))));
        }
    });
    let (p2, held) = holding().await;
    let specs = vec![
        spec("front", FRONT, Served::default()),
        spec("p1", PATIENT, naming.await),
        spec("p2", PATIENT, p2),
    ];
    let net = net(0, specs);
    let waiting = read(&net, "front", "p1", 1);
    until("it has come", || held.lock().unwrap().len() == 1).await;
    net.show("p1", &["front"]);
    assert_eq!(answer(waiting).await, None);
    assert_eq!(unanswered(&net, "front"), 0);
}

#[tokio::test]
async fn what_is_not_understood_is_refused_and_disturbs_nobody() {
    let net = net(0, vec![spec("front", FRONT, Served::default()), spec("p1", PATIENT, answering().await)]);
    // An unreadable frame, an empty frame and an unknown hint do not disturb the requests that follow.
    net.send_raw("front", "p1", vec![0xff; 9]);
    net.send_raw("front", "p1", Vec::new());
    net.send_raw(
        "front",
        "p1",
        pb::Frame { hints: vec![pb::Hint { hint: None }], ..Default::default() }.encode_to_vec(),
    );
    assert!(matches!(answer(read(&net, "front", "p1", 1)).await, Some(Ok(_))));

    let (reply, answered) = ReplyTo::<PatientReply>::here();
    let link = net.links("front").0.link("p1#1").expect("live");
    link.ask(pb::Request { body: None, ..Default::default() }, 0, reply, |_| {});
    assert_eq!(answer(answered).await, Some(Err(Failure::Unsupported)));

    let (reply, answered) = ReplyTo::<PatientReply>::here();
    let said = Said { trace: TraceContext::root(), budget: Duration::ZERO, caller: Caller::system("test") };
    let late = Body::PatientRead(pb::PatientRead { id: wire::id(Uuid::nil()) });
    link.ask(portable::plain_request(&said, late), 0, reply, |_| {});
    assert_eq!(answer(answered).await, Some(Err(Failure::Expired)));

    // A kind that this node does not serve.
    let (reply, answered) = ReplyTo::<PatientReply>::here();
    let said = Said { budget: LONG, ..said };
    let account = Body::ReadAccount(pb::ReadAccount { patient_id: wire::id(Uuid::nil()) });
    link.ask(portable::plain_request(&said, account), 0, reply, |_| {});
    assert_eq!(answer(answered).await, Some(Err(Failure::NotServing(None))));
}

#[tokio::test]
async fn a_summary_and_a_status_come_from_another_node() {
    let ctx =
        |budget| RequestContext::new(Caller::system("test"), TraceContext::root(), &SystemClock, budget);
    let status: SelfStatus = Arc::new(|| Box::pin(std::future::ready(b"{}".to_vec())));
    let mute: SelfStatus = Arc::new(|| Box::pin(std::future::pending()));
    let specs = vec![
        spec("front", FRONT, Served::default()),
        spec("p1", PATIENT, Served { status: Some(status), ..Served::default() }),
        spec("p2", PATIENT, Served { status: Some(mute), ..Served::default() }),
    ];
    let net = net(0, specs);
    let links = net.links("front");
    assert_eq!(links.status(&ctx(LONG), "p1#1").await, Ok(b"{}".to_vec()));
    let none = links.status(&ctx(Duration::from_millis(20)), "p2#1").await;
    assert!(matches!(none, Err(None | Some(Failure::Expired))), "{none:?}");
    let view = Arc::clone(&links.members().borrow());
    let asked = links.ask_status()(view.get("p1").expect("live").clone(), TraceContext::root(), LONG).await;
    assert_eq!(asked, Some(b"{}".to_vec()));
    assert_eq!(links.status(&ctx(LONG), "p9#1").await, Err(Some(Failure::NotServing(None))));
    assert_eq!(links.summary(&ctx(LONG), "p1#1").await, Err(Some(Failure::NotServing(None))));
}

#[tokio::test]
async fn nudges_are_told_together_and_the_last_one_is_not_lost() {
    let (relayed, bridged) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counting = |count: &Arc<AtomicUsize>| {
        let count = Arc::clone(count);
        Some(Arc::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        }) as Nudge)
    };
    let (relay_nudged, bridge_nudged) = (counting(&relayed), counting(&bridged));
    let served = Served { relay_nudged, bridge_nudged, ..Served::default() };
    let released = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&released);
    let patient = Served {
        released: Some(Arc::new(move |kind, shards| told.lock().unwrap().push((kind, shards)))),
        ..Served::default()
    };
    let net = net(
        0,
        vec![
            spec("p1", PATIENT, Served::default()),
            spec("p2", PATIENT, patient),
            spec("bridge", &[NodeRole::Bridge], served),
        ],
    );
    until("the links are there", || net.links("p1").facts().len() == 2).await;
    let nudge = net.links("p1").nudge();
    for _ in 0..1_000 {
        nudge();
    }
    until("the first and what came after it", || bridged.load(Ordering::SeqCst) == 2).await;
    nudge();
    until("the last", || bridged.load(Ordering::SeqCst) == 3).await;
    assert_eq!(relayed.load(Ordering::SeqCst), 0, "a node without billing was told to bill");

    let view = Arc::clone(&net.links("p1").members().borrow());
    net.links("p1").released()(Kind::Billing, &[3, 9], view.get("p2").expect("live"));
    until("the shards are told", || *released.lock().unwrap() == [(Kind::Billing, vec![3, 9])]).await;
}

/// Every request ends once: with its own answer, as refused, as dropped, or at its time limit. The limits
/// hold.
async fn storm(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut front = spec("front", FRONT, Served::default());
    front.settings = Settings { unanswered_max: 16, frame_items_max: 4, ..Settings::default() };
    let (p1, p2) = (answering().await, answering().await);
    let net = net(seed, vec![front, spec("p1", PATIENT, p1), spec("p2", PATIENT, p2)]);
    let lossy = rng.bool();
    net.weather.lost_per_mille.store(if lossy { rng.u64(1..300) } else { 0 }, Ordering::SeqCst);
    net.weather.delay_us_max.store(rng.u64(0..2_000), Ordering::SeqCst);
    let patience = if lossy { Duration::from_millis(200) } else { LONG };
    let mut cut = false;
    let mut waiting = FuturesUnordered::new();
    for nth in 1..=400_u128 {
        let to = if rng.bool() { "p1" } else { "p2" };
        let answered = read(&net, "front", to, nth);
        waiting.push(async move { (nth, tokio::time::timeout(patience, answered).await) });
        assert!(net.links("front").facts().iter().all(|facts| facts.unanswered <= 16), "seed {seed}");
        match rng.u8(..100) {
            0 => {
                cut = true;
                net.show("front", &["p2"]);
                net.show("front", &["p1", "p2"]);
            }
            1..=9 => tokio::time::sleep(Duration::from_micros(rng.u64(..2_000))).await,
            10..=40 => tokio::task::yield_now().await,
            _ => {}
        }
    }
    let mut counts = [0; 4];
    while let Some((nth, ended)) = waiting.next().await {
        let kind = match ended {
            Ok(Ok(Ok(found))) => {
                assert_eq!(found.patient.id.0, Uuid::from_u128(nth), "seed {seed}: somebody else's answer");
                0
            }
            Ok(Ok(Err(failure))) => {
                assert_eq!(failure, Failure::Busy, "seed {seed}");
                1
            }
            Ok(Err(_)) => {
                assert!(cut, "seed {seed}: dropped by nobody");
                2
            }
            Err(_) => {
                assert!(lossy, "seed {seed}: not answered by a healthy peer");
                3
            }
        };
        counts[kind] += 1;
    }
    assert_eq!(counts.iter().sum::<i32>(), 400, "seed {seed}");
    assert!(counts[0] > 0, "seed {seed}: nothing was answered");
    net.show("front", &[]);
    until("the links are closed", || net.links("front").facts().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_ends_once_whatever_the_wire_does() {
    let seeds = match std::env::var("HYGEIA_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (0..12).map(|_| fastrand::u64(..)).collect(),
    };
    for seed in seeds {
        eprintln!("HYGEIA_SEED={seed}");
        storm(seed).await;
    }
}

#[test]
fn settings_hold_and_say_what_does_not() {
    assert!(Settings::default().problems().is_empty());
    let settings =
        Settings { unanswered_max: 0, item_bytes_max: 1, nudge_pause_ms: 0, ..Settings::default() };
    let keys: Vec<_> = settings.problems().into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["unanswered_max", "item_bytes_max", "nudge_pause_ms"]);
}
