//! Attempts that are lost with their session while their frame is still in transit.

use std::sync::atomic::Ordering;

use super::chains::{ASKS, ctx, parts};
use super::*;
use crate::actors::entity::Refused;
use crate::actors::patients::{Made, PatientHandle};
use crate::actors::system::{Chain, Tree};
use crate::domain::ids::PatientId;
use crate::domain::patient::PatientPatch;
use crate::error::ErrorCode;
use crate::store::{self, Use};

/// A front with its directory, and two nodes of patients. `p1` keeps every request; `p2` answers with a fixed
/// result.
struct Two {
    net: Net,
    patients: PatientHandle,
    held: Arc<Mutex<Vec<RegionMessage<Patients>>>>,
    _tree: Tree,
    _directory: tempfile::TempDir,
}

async fn two(answer: Result<PatientReply, Failure>) -> Two {
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("sqlite:{}", directory.path().join("lost.db").display());
    let settings = store::Settings { url, ..store::Settings::default() };
    let store = store::open(&settings, Use::Serve).await.expect("a database");
    let front = Chain::<Patients>::default();
    let asks = Served { patient_directory: front.directory_address().clone(), ..Served::default() };
    let (p1, held) = holding().await;
    let p2 = scripted(move |message| {
        if let RegionMessage::Ask(ask) = message {
            ask.reply.send(answer.clone());
        }
    })
    .await;
    let net = net(0, vec![spec("front", FRONT, asks), spec("p1", PATIENT, p1), spec("p2", PATIENT, p2)]);
    let at_front = parts(&store, &net, "front", 10_000);
    let children = front.children(&at_front, ASKS, Arc::clone(&store) as _, Vec::new());
    let tree = Tree::start(&at_front, children).await.expect("starts");
    let patients = front.handle(&at_front);
    Two { net, patients, held, _tree: tree, _directory: directory }
}

impl Two {
    /// Returns the result of a change. Its first attempt is still in transit to `p1` when the session ends,
    /// and its second attempt reaches `p2`.
    async fn change(&self) -> crate::error::Result<()> {
        let id = PatientId(Uuid::from_u128(1));
        self.net.show("front", &["p1"]);
        self.net.hold("front", "p1", true);
        let patients = self.patients.clone();
        let changing = tokio::spawn(async move {
            patients.patch(&ctx(20_000), id, PatientPatch::default(), Conditions::default()).await.map(drop)
        });
        until("the first try is on its way", || {
            self.net.links("front").facts().iter().any(|link| link.unanswered == 1)
        })
        .await;
        self.net.show("front", &["p2"]);
        changing.await.expect("no panic")
    }

    /// Delivers the frame in transit.
    async fn arrive(&self) {
        let before = self.net.weather.frames.load(Ordering::SeqCst);
        // Once a second frame has passed, the first one has been handled.
        self.net.send_raw("front", "p1", Vec::new());
        self.net.hold("front", "p1", false);
        until("both frames are through", || self.net.weather.frames.load(Ordering::SeqCst) == before + 2)
            .await;
    }
}

#[tokio::test]
async fn a_refusal_is_not_final_while_an_earlier_try_may_still_arrive() {
    let nothing = PatientReply { patient: Arc::new(patient(Uuid::from_u128(1))), made: Made::Nothing };
    for answer in [
        Err(Failure::Refused(Refused::OtherVersion)),
        Err(Failure::Refused(Refused::NotFound)),
        Err(Failure::Refused(Refused::EmailTaken)),
        Ok(nothing),
    ] {
        let two = two(answer.clone()).await;
        let told = two.change().await.map_err(|error| error.code);
        assert_eq!(told, Err(ErrorCode::OutcomeUnknown), "{answer:?}");
        two.arrive().await;
        assert_eq!(two.held.lock().unwrap().len(), 1, "it did arrive, and is carried out now");
    }
}

#[tokio::test]
async fn what_the_event_table_knows_is_final_whatever_still_arrives() {
    // The event table knows the command, so an attempt that arrives later finds it there.
    for made in [Made::Now, Made::Before] {
        let two = two(Ok(PatientReply { patient: Arc::new(patient(Uuid::from_u128(1))), made })).await;
        assert_eq!(two.change().await.map_err(|error| error.code), Ok(()), "{made:?}");
    }
    for (refused, code) in [
        (Refused::KeyReused, ErrorCode::KeyReused),
        (Refused::KeyExpired, ErrorCode::KeyExpired),
        (Refused::IdTaken, ErrorCode::AlreadyExists),
    ] {
        let two = two(Err(Failure::Refused(refused))).await;
        assert_eq!(two.change().await.map_err(|error| error.code), Err(code), "{refused:?}");
    }
}

#[tokio::test]
async fn a_frame_that_comes_after_its_session_has_ended_is_dropped() {
    let two = two(Err(Failure::Refused(Refused::OtherVersion))).await;
    assert!(two.change().await.is_err());
    two.net.end_session("p1", "front");
    two.arrive().await;
    assert!(two.held.lock().unwrap().is_empty(), "nothing of an ended session is begun");
}
