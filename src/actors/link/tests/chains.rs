//! Whole nodes by role in one process, over one database, connected by pipes. A request to a front is carried
//! out on the node that serves it.

use std::sync::atomic::Ordering;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tempfile::TempDir;

use super::*;
use crate::actors::address::Address;
use crate::actors::analytics::{AnalyticsHandle, AnalyticsMessage};
use crate::actors::billing::{Accounts, BillingHandle};
use crate::actors::directory::{AskSettings, Asker, Directory, DirectoryArgs};
use crate::actors::patients::PatientHandle;
use crate::actors::settings;
use crate::actors::system::{Chain, Parts, Runs, Tree};
use crate::domain::analytics::Summary;
use crate::domain::conditions::Conditions;
use crate::domain::ids::{PatientId, shard_of};
use crate::domain::patient::PatientChange;
use crate::domain::search::PatientSearch;
use crate::domain::sight::Seen;
use crate::domain::time::Timestamp;
use crate::error::ErrorCode;
use crate::health::Health;
use crate::store::{self, Store, Use};

const BOTH: Runs = Runs { serving: true, asking: true };
pub(super) const ASKS: Runs = Runs { serving: false, asking: true };

const BILLING: &[NodeRole] = &[NodeRole::Billing];
const ANALYTICS: &[NodeRole] = &[NodeRole::Analytics];
const SHARDS: u16 = 8;

pub(super) fn ctx(budget_ms: u64) -> RequestContext {
    let budget = Duration::from_millis(budget_ms);
    RequestContext::new(Caller::system("test"), TraceContext::root(), &SystemClock, budget)
}

pub(super) fn parts(
    store: &Arc<dyn Store>,
    net: &Net,
    name: &'static str,
    ask_no_node_wait_ms: u64,
) -> Parts {
    Parts {
        audit: None,
        store: Arc::clone(store),
        store_writers: 1,
        clock: Arc::new(SystemClock),
        health: Health::default(),
        owner: format!("{name}#1").into(),
        shards: SHARDS,
        members: net.links(name).members().clone(),
        released: net.links(name).released(),
        able: Arc::new(|_, _| {}),
        links: Some(net.links(name).clone()),
        settings: settings::Settings { ask_no_node_wait_ms, ..settings::Settings::default() },
    }
}

struct Cluster {
    net: Net,
    patients: PatientHandle,
    accounts: BillingHandle,
    _trees: Vec<Tree>,
    _directory: TempDir,
}

/// A front without a region, a node for patients and a node for accounts.
async fn cluster() -> Cluster {
    cluster_that_waits(50).await
}

/// Like `cluster`, with the time that a request waits for a role without a live node.
async fn cluster_that_waits(no_node_wait_ms: u64) -> Cluster {
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("sqlite:{}", directory.path().join("chains.db").display());
    let settings = store::Settings { url, ..store::Settings::default() };
    let store = store::open(&settings, Use::Serve).await.expect("a database");
    let (front, front_accounts) = (Chain::<Patients>::default(), Chain::<Accounts>::default());
    let (patients, accounts) = (Chain::<Patients>::default(), Chain::<Accounts>::default());
    let served = Served {
        patient_directory: front.directory_address().clone(),
        account_directory: front_accounts.directory_address().clone(),
        ..Served::default()
    };
    let p1 = Served { patients: Some(patients.region().clone()), ..Served::default() };
    let b1 = Served { accounts: Some(accounts.region().clone()), ..Served::default() };
    let net = net(0, vec![spec("front", FRONT, served), spec("p1", PATIENT, p1), spec("b1", BILLING, b1)]);
    let (at_front, at_p1, at_b1) = (
        parts(&store, &net, "front", no_node_wait_ms),
        parts(&store, &net, "p1", no_node_wait_ms),
        parts(&store, &net, "b1", no_node_wait_ms),
    );
    let start = async |parts: &Parts, children| Tree::start(parts, children).await.expect("starts");
    let trees = vec![
        start(&at_p1, patients.children(&at_p1, BOTH, Arc::clone(&store) as _, Vec::new())).await,
        start(&at_b1, accounts.children(&at_b1, BOTH, Arc::clone(&store) as _, Vec::new())).await,
        start(&at_front, {
            let mut asking = front.children(&at_front, ASKS, Arc::clone(&store) as _, Vec::new());
            asking.extend(front_accounts.children(&at_front, ASKS, Arc::clone(&store) as _, Vec::new()));
            asking
        })
        .await,
    ];
    let (patients, accounts) = (front.handle(&at_front), front_accounts.handle(&at_front));
    Cluster { net, patients, accounts, _trees: trees, _directory: directory }
}

#[tokio::test]
async fn a_front_reads_and_writes_on_other_nodes() {
    let cluster = cluster().await;
    let id = PatientId(Uuid::from_u128(1));
    let details = patient(id.0).details;
    let made = cluster
        .patients
        .register(&ctx(10_000), id, details.clone(), Conditions::default())
        .await
        .expect("registered");
    assert!(made.recorded);
    let (made, _) = made.what.open();
    assert_eq!((made.version, &made.details), (1, &details));
    let again = cluster.patients.register(&ctx(10_000), id, details.clone(), Conditions::default()).await;
    assert_eq!(again.map_err(|e| e.code), Err(ErrorCode::AlreadyExists));
    let change = PatientChange {
        name: "Other Canary".into(),
        email: details.email.clone(),
        address: details.address.clone(),
        date_of_birth: details.date_of_birth,
        registered_date: None,
    };
    let changed = cluster
        .patients
        .update(&ctx(10_000), id, change.clone(), Conditions::default())
        .await
        .expect("changed");
    assert_eq!(cluster.patients.get(&ctx(10_000), id).await, Ok(changed.what.clone()));
    let (changed, _) = changed.what.open();
    assert_eq!((changed.version, &*changed.details.name), (2, "Other Canary"));
    let page = cluster.patients.search(&ctx(10_000), &PatientSearch::all(None, 10)).await;
    let listed = Seen::listed(Patient::clone(&changed)).expect("not restricted");
    assert_eq!(page.map(|page| page.patients), Ok(vec![listed]));
    let nothing = cluster
        .patients
        .update(&ctx(10_000), id, change, Conditions::default())
        .await
        .expect("nothing to do");
    assert!(!nothing.recorded, "no transaction");
    assert_eq!(nothing.what.open().0, changed);
    let history = cluster.patients.history(&ctx(10_000), id, 0, 10).await.expect("a history").open().0;
    assert_eq!(history.iter().map(|entry| entry.version()).collect::<Vec<_>>(), [1, 2]);

    let account = cluster.accounts.open(&ctx(10_000), id, "Zoë", "zoe@example.com").await.expect("opened");
    assert!(cluster.accounts.account(&ctx(10_000), id).await == Ok(account));

    cluster.patients.delete(&ctx(10_000), id, Conditions::default()).await.expect("deleted");
    assert_eq!(cluster.patients.get(&ctx(10_000), id).await.map_err(|e| e.code), Err(ErrorCode::NotFound));
}

#[tokio::test]
async fn a_role_without_a_live_node_is_named_and_missed_only_as_long_as_it_is_away() {
    let cluster = cluster().await;
    let id = PatientId(Uuid::from_u128(1));
    cluster
        .patients
        .register(&ctx(10_000), id, patient(id.0).details, Conditions::default())
        .await
        .expect("registered");
    cluster.net.show("front", &["b1"]);
    let missing = cluster.patients.get(&ctx(10_000), id).await.expect_err("nobody is there");
    assert_eq!(
        (missing.code, &*missing.detail),
        (ErrorCode::Unavailable, "No node with the role patient is live")
    );
    let missing = cluster
        .patients
        .search(&ctx(10_000), &PatientSearch::all(None, 10))
        .await
        .expect_err("nobody is there");
    assert_eq!(&*missing.detail, "No node with the role patient is live");
    assert!(cluster.accounts.account(&ctx(10_000), id).await.is_err_and(|e| e.code == ErrorCode::NotFound));
    cluster.net.show("front", &["p1", "b1"]);
    assert!(cluster.patients.get(&ctx(10_000), id).await.is_ok());
}

#[tokio::test]
async fn a_node_that_restarts_is_waited_for() {
    let cluster = cluster_that_waits(10_000).await;
    let id = PatientId(Uuid::from_u128(1));
    cluster
        .patients
        .register(&ctx(10_000), id, patient(id.0).details, Conditions::default())
        .await
        .expect("registered");
    cluster.net.show("front", &["b1"]);
    let patients = cluster.patients.clone();
    let reading = tokio::spawn(async move { patients.get(&ctx(20_000), id).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!reading.is_finished());
    cluster.net.show("front", &["p1", "b1"]);
    assert!(reading.await.expect("no panic").is_ok());
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_asked_again_and_acts_once() {
    let cluster = cluster().await;
    let id = PatientId(Uuid::from_u128(1));
    // Wait until the region serves, which means that it holds its leases.
    assert!(cluster.patients.get(&ctx(10_000), id).await.is_err_and(|e| e.code == ErrorCode::NotFound));
    cluster.net.weather.lost_per_mille.store(400, Ordering::SeqCst);
    let patients = cluster.patients.clone();
    let writing = tokio::spawn(async move {
        patients.register(&ctx(20_000), id, patient(id.0).details, Conditions::default()).await
    });
    // Each end of a session drops the requests that were lost in it.
    while !writing.is_finished() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        cluster.net.show("front", &["b1"]);
        tokio::task::yield_now().await;
        cluster.net.show("front", &["p1", "b1"]);
    }
    assert_eq!(writing.await.expect("no panic").map(|made| made.what.open().0.version), Ok(1));
    cluster.net.weather.lost_per_mille.store(0, Ordering::SeqCst);
    assert_eq!(cluster.patients.get(&ctx(10_000), id).await.map(|seen| seen.open().0.version), Ok(1));
}

/// A node of patients: its chain, and the parts that answer other nodes.
fn patient_node() -> (Chain<Patients>, Served) {
    let chain = Chain::<Patients>::default();
    let region = chain.region().clone();
    let told = region.clone();
    let released: ToTake = Arc::new(move |_, shards| {
        told.cast(RegionMessage::ReleasedElsewhere { shards });
    });
    let served = Served { patients: Some(region), released: Some(released), ..Served::default() };
    (chain, served)
}

/// Two nodes of patients. All shards move from one to the other and back, while clients send requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_of_all_shards_under_load_fails_nobody() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("sqlite:{}", directory.path().join("moves.db").display());
    let settings = store::Settings { url, ..store::Settings::default() };
    let store = store::open(&settings, Use::Serve).await.expect("a database");
    let front = Chain::<Patients>::default();
    let asks = Served { patient_directory: front.directory_address().clone(), ..Served::default() };
    let ((chain_1, p1), (chain_2, p2)) = (patient_node(), patient_node());
    let net = net(0, vec![spec("front", FRONT, asks), spec("p1", PATIENT, p1), spec("p2", PATIENT, p2)]);
    let mut trees = Vec::new();
    for (name, chain) in [("p1", &chain_1), ("p2", &chain_2)] {
        let parts = parts(&store, &net, name, 50);
        let children = chain.children(&parts, BOTH, Arc::clone(&store) as _, Vec::new());
        trees.push(Tree::start(&parts, children).await.expect("starts"));
    }
    let at_front = parts(&store, &net, "front", 50);
    trees.push(
        Tree::start(&at_front, front.children(&at_front, ASKS, Arc::clone(&store) as _, Vec::new()))
            .await
            .expect("starts"),
    );
    let patients = front.handle(&at_front);
    let ids: Vec<_> = (1..=24).map(|n| PatientId(Uuid::from_u128(n))).collect();
    for id in &ids {
        let details = crate::domain::patient::PatientDetails {
            email: format!("canary{}@example.com", id.0.as_u128()).into(),
            ..patient(id.0).details
        };
        patients.register(&ctx(10_000), *id, details, Conditions::default()).await.expect("registered");
    }
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asking: Vec<_> = ids
        .chunks(3)
        .map(|ids| {
            let (patients, ids, done) = (patients.clone(), ids.to_vec(), Arc::clone(&done));
            tokio::spawn(async move {
                let mut took = Vec::new();
                while !done.load(Ordering::SeqCst) {
                    for id in &ids {
                        let begun = SystemClock.mono();
                        let found = patients.get(&ctx(10_000), *id).await;
                        assert!(found.is_ok(), "{found:?}");
                        took.push(SystemClock.mono().since(begun));
                    }
                }
                took
            })
        })
        .collect();
    for (draining, holder) in [(&["p1"][..], "p2#1"), (&["p2"], "p1#1")] {
        net.drain(draining);
        let moved = async {
            loop {
                let leases = store.leases(Kind::Patient).await.expect("leases");
                let there = |lease: &&store::LeaseRow| lease.owner == holder && !lease.expired;
                if leases.iter().filter(there).count() == usize::from(SHARDS) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), moved).await.expect("all shards move");
    }
    done.store(true, Ordering::SeqCst);
    let mut took = Vec::new();
    for asking in asking {
        took.extend(asking.await.expect("no request failed"));
    }
    took.sort_unstable();
    let (p99, worst) = (took[took.len() * 99 / 100], took[took.len() - 1]);
    eprintln!("{} asks, p99 {p99:?}, worst {worst:?}", took.len());
    assert!(worst < Duration::from_secs(1), "worst {worst:?}, p99 {p99:?}");
}

/// An asker on the front, whose directory the links update.
async fn asker(net: &Net, directory: &Address<DirectoryMessage<Patients>>) -> Asker<Patients> {
    let args = DirectoryArgs::<Patients> {
        region: None,
        courier: Some(Arc::new(net.links("front").clone())),
        members: net.links("front").members().clone(),
        shards: SHARDS,
        clock: Arc::new(SystemClock),
    };
    let (actor, _) = Actor::spawn(None, Directory::default(), args).await.expect("starts");
    directory.set(actor);
    let settings = AskSettings {
        pause: Duration::from_millis(1),
        pause_max: Duration::from_millis(20),
        moving_pause: Duration::from_millis(1),
        moving_pause_max: Duration::from_millis(5),
        no_node_wait: Duration::from_millis(50),
        waiting_max: 128,
    };
    Asker::new(directory.clone(), Arc::new(SystemClock), settings)
}

/// A region that serves while `serves` equals `me`. Otherwise it names `other`, or no owner.
async fn moving(
    serves: &Arc<AtomicUsize>,
    me: usize,
    other: Option<&'static str>,
) -> (Served, Arc<AtomicUsize>) {
    let (serves, asked) = (Arc::clone(serves), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&asked);
    let served = scripted(move |message| {
        let RegionMessage::Ask(ask) = message else { return };
        count.fetch_add(1, Ordering::SeqCst);
        if serves.load(Ordering::SeqCst) == me {
            let found = Arc::new(patient(ask.id));
            ask.reply.send(Ok(found.into()));
        } else {
            ask.reply.send(Err(Failure::NotServing(other.map(Into::into))));
        }
    });
    (served.await, asked)
}

#[tokio::test]
async fn a_shard_that_has_moved_is_followed_remembered_and_followed_back() {
    let serves = Arc::new(AtomicUsize::new(1));
    let (p1, asked_1) = moving(&serves, 1, Some("p2#1")).await;
    let (p2, asked_2) = moving(&serves, 2, Some("p1#1")).await;
    let directory = Address::default();
    let front = Served { patient_directory: directory.clone(), ..Served::default() };
    let net = net(0, vec![spec("front", FRONT, front), spec("p1", PATIENT, p1), spec("p2", PATIENT, p2)]);
    // The two nodes do not see each other, so neither can pass a request on.
    net.show("p1", &["front"]);
    net.show("p2", &["front"]);
    let asker = asker(&net, &directory).await;
    let counts = || (asked_1.swap(0, Ordering::SeqCst), asked_2.swap(0, Ordering::SeqCst));
    let view = Arc::clone(&net.links("front").members().borrow());
    let id = (1..).map(Uuid::from_u128).find(|id| {
        view.placed(Kind::Patient, shard_of(*id, SHARDS)).is_some_and(|member| *member.name == *"p1")
    });
    let id = id.expect("some shard is placed there");
    assert!(asker.read(&ctx(10_000), id).await.is_ok());
    assert_eq!(counts(), (1, 0));
    serves.store(2, Ordering::SeqCst);
    assert!(asker.read(&ctx(10_000), id).await.is_ok());
    assert_eq!(counts(), (1, 1));
    assert!(asker.read(&ctx(10_000), id).await.is_ok());
    assert_eq!(counts(), (0, 1), "the hint was not remembered");
    serves.store(1, Ordering::SeqCst);
    assert!(asker.read(&ctx(10_000), id).await.is_ok());
    assert_eq!(counts(), (1, 1), "the stale hint was not corrected");

    // Where they see each other, the request is passed on, and the front remembers the owner.
    net.show("p1", &["front", "p2"]);
    serves.store(2, Ordering::SeqCst);
    assert!(asker.read(&ctx(10_000), id).await.is_ok());
    assert_eq!(counts(), (1, 1));
    assert!(asker.read(&ctx(10_000), id).await.is_ok());
    assert_eq!(counts(), (0, 1), "who had answered was not remembered");
}

#[tokio::test]
async fn a_hand_over_is_waited_for_and_not_told() {
    let serves = Arc::new(AtomicUsize::new(1));
    let (p1, _) = moving(&serves, 1, None).await;
    let (p2, _) = moving(&serves, 2, Some("p1#1")).await;
    let directory = Address::default();
    let front = Served { patient_directory: directory.clone(), ..Served::default() };
    let net = net(0, vec![spec("front", FRONT, front), spec("p1", PATIENT, p1), spec("p2", PATIENT, p2)]);
    let asker = asker(&net, &directory).await;
    for round in 0..20 {
        serves.store(0, Ordering::SeqCst);
        let serves = Arc::clone(&serves);
        let moved = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            serves.store(1, Ordering::SeqCst);
        });
        let id = Uuid::from_u128(round);
        let begun = SystemClock.mono();
        assert!(asker.read(&ctx(10_000), id).await.is_ok());
        let took = SystemClock.mono().since(begun);
        assert!(took < Duration::from_secs(1), "{took:?} for a move of 10 ms");
        moved.await.expect("no panic");
    }
}

/// Analytics with a constant answer.
struct Constant;

impl Actor for Constant {
    type Msg = AnalyticsMessage;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<AnalyticsMessage>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<AnalyticsMessage>,
        message: AnalyticsMessage,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        if let AnalyticsMessage::Summary(ask) = message {
            ask.reply.send(Ok(view()));
        }
        Ok(())
    }
}

fn view() -> SummaryView {
    let summary = Summary {
        total_patients: 7,
        by_event_type: Vec::new(),
        registrations_by_day: Vec::new(),
        age_bands: Vec::new(),
    };
    SummaryView { summary, lag_events: Some(2), as_of: Timestamp(3) }
}

#[tokio::test]
async fn a_summary_is_had_from_any_node_that_counts() {
    let (actor, _) = Actor::spawn(None, Constant, ()).await.expect("starts");
    let address = Address::default();
    address.set(actor);
    let served = Served { analytics: Some(address), ..Served::default() };
    // One of the two nodes has not started its actor yet.
    let starting = Served { analytics: Some(Address::default()), ..Served::default() };
    let specs = vec![
        spec("front", FRONT, Served::default()),
        spec("a1", ANALYTICS, starting),
        spec("a2", ANALYTICS, served),
    ];
    let net = net(0, specs);
    let handle = AnalyticsHandle::new(Address::default(), Arc::new(SystemClock));
    assert!(handle.summary(&ctx(10_000)).await.is_err_and(|e| e.code == ErrorCode::Unavailable));
    let handle = handle.over(net.links("front").clone());
    for _ in 0..4 {
        assert_eq!(handle.summary(&ctx(10_000)).await, Ok(view()));
    }
    net.show("front", &[]);
    let missing = handle.summary(&ctx(100)).await.expect_err("nobody counts");
    assert_eq!(&*missing.detail, "No node with the role analytics is live");
}
