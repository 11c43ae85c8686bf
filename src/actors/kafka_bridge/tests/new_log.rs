//! The bridge when the topic has another log than before, and when events cannot be published.

use super::*;
use crate::domain::ids::PatientId;
use crate::store::TopicLog;

/// A broker that can lose its log: it comes back empty, with the same cluster id and topic name. The bridge
/// uses it like any other broker. Records the published messages.
struct Forgetful {
    settings: kafka::Settings,
    current: Mutex<(Kafka, Kafka)>,
    /// Patients whose events the broker refuses.
    refused: Mutex<Vec<PatientId>>,
    /// The replay header of each delivered message.
    replays: Mutex<Vec<Option<String>>>,
}

impl Forgetful {
    fn start(test: &str) -> Arc<Self> {
        let settings = embedded(test);
        let current = Mutex::new(Self::made(&settings));
        Arc::new(Forgetful { settings, current, refused: Mutex::default(), replays: Mutex::default() })
    }

    /// Returns a broker, and a client that does not know that the broker is in the same process.
    fn made(settings: &kafka::Settings) -> (Kafka, Kafka) {
        let broker = Kafka::connect(settings).expect("connect");
        let brokers = broker.bootstrap_servers().to_owned();
        let settings = kafka::Settings { brokers, create_topics: false, ..settings.clone() };
        (broker, Kafka::connect(&settings).expect("connect"))
    }

    fn forget(&self) {
        *self.current.lock().expect("current") = Self::made(&self.settings);
        self.replays.lock().expect("replays").clear();
    }

    fn client(&self) -> Kafka {
        self.current.lock().expect("current").1.clone()
    }

    fn refuse(&self, patients: impl IntoIterator<Item = usize>) {
        *self.refused.lock().expect("refused") = patients.into_iter().map(patient).collect();
    }

    fn replays(&self) -> Vec<Option<String>> {
        self.replays.lock().expect("replays").clone()
    }
}

#[async_trait]
impl Publisher for Forgetful {
    async fn publish(&self, batch: &[Outgoing]) -> Vec<Delivery> {
        let refused = self.refused.lock().expect("refused").clone();
        let is_refused = |message: &Outgoing| {
            let key = message.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
            refused.iter().any(|id| Some(id.to_string().as_str()) == key)
        };
        let taken: Vec<_> = batch.iter().filter(|m| !is_refused(m)).cloned().collect();
        let mut deliveries = self.client().publisher().publish(&taken).await.into_iter();
        let answer = |message: &Outgoing| match is_refused(message) {
            true => Delivery::Refused("as ordered".into()),
            false => deliveries.next().expect("an answer for each"),
        };
        let answers: Vec<_> = batch.iter().map(answer).collect();
        let mut replays = self.replays.lock().expect("replays");
        for (message, _) in batch.iter().zip(&answers).filter(|(_, answer)| answer.is_delivered()) {
            let header = message.headers.iter().find(|(name, _)| *name == wire::REPLAY);
            replays.push(header.map(|(_, value)| value.clone()));
        }
        answers
    }
}

#[async_trait]
impl Broker for Arc<Forgetful> {
    async fn cluster_id(&self) -> kafka::Result<String> {
        Ok("c".to_owned())
    }

    async fn departure(&self, anchors: &[LogAnchor]) -> kafka::Result<Option<String>> {
        self.client().departure(anchors).await
    }

    async fn retention(&self) -> kafka::Result<Option<Duration>> {
        Ok(None)
    }

    fn renew_publisher(&self) {
        self.client().renew_publisher();
    }

    fn publisher(&self) -> Arc<dyn Publisher> {
        Arc::clone(self) as Arc<dyn Publisher>
    }

    async fn consumer(&self) -> kafka::Result<Box<dyn Consumer>> {
        self.client().consumer().await
    }

    async fn watermarks(&self) -> kafka::Result<Vec<PartitionSight>> {
        self.client().watermarks().await
    }

    fn link(&self) -> kafka::Link {
        self.client().link()
    }

    async fn probe(&self) -> kafka::Result<()> {
        self.client().probe().await
    }

    fn names(&self) -> Names {
        self.client().names()
    }
}

async fn start(store: &Arc<FakeStore>, broker: &Arc<Forgetful>, settings: Settings) -> Bridge {
    Bridge::start(store, Arc::new(Arc::clone(broker)), "a", settings).await
}

fn log_of(store: &FakeStore) -> TopicLog {
    store.log().expect("a log")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_lost_while_nothing_happens_is_filled_again() {
    let broker = Forgetful::start("lost");
    let store = Arc::new(FakeStore::default());
    store.commit_all(workload(10, 3));
    let bridge = start(&store, &broker, quick()).await;
    until("published", || store.unpublished_count() == 0).await;
    bridge.ready().await;
    assert_eq!((log_of(&store).no, log_of(&store).replayed_rows), (1, 0));
    assert!(broker.replays().iter().all(Option::is_none));
    broker.forget();
    until("seen", || log_of(&store).no == 2).await;
    assert!(log_of(&store).reason.contains("ends before offset 0"), "{}", log_of(&store).reason);
    let log = assert_complete_and_in_order(&broker.client(), 10, 3).await;
    assert_eq!(log.len(), 30, "each event once");
    until("all marked", || store.unpublished_count() == 0).await;
    until("told to be replays", || broker.replays() == vec![Some("2".to_owned()); 30]).await;
    bridge.ready().await;
    assert_eq!(log_of(&store).replayed_rows, 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_that_is_given_twice_is_a_sign_of_another_log() {
    let broker = Forgetful::start("twice");
    let store = Arc::new(FakeStore::default());
    store.commit_all(workload(10, 3));
    let seldom = Settings { log_check_ms: 80_000_000, ..quick() };
    let bridge = start(&store, &broker, seldom).await;
    until("published", || store.unpublished_count() == 0).await;
    broker.forget();
    store.commit_all((0..10).map(|n| event(n, 4)));
    bridge.actor.cast(BridgeMessage::Nudge).expect("alive");
    until("seen", || log_of(&store).no == 2).await;
    until("all marked", || store.unpublished_count() == 0 && log_of(&store).replay_done).await;
    // Events published before the new log was noticed come first. After them, every event is there in order.
    let ends = |log: &[Incoming], n: usize| versions(log, n).ends_with(&[1, 2, 3, 4]);
    let enough = move |log: &[Incoming]| (0..10).all(|n| ends(log, n));
    let log = read_topic(&broker.client(), &broker.names().topic, enough).await;
    for n in 0..10 {
        assert!(ends(&log, n), "patient {n}: {:?}", versions(&log, n));
    }
}

/// Returns the versions of patient `n` in the order of the log.
fn versions(log: &[Incoming], n: usize) -> Vec<i64> {
    let observed = log.iter().map(|message| wire::decode(message).expect("readable"));
    observed.filter(|o| o.patient_id == patient(n)).map(|o| o.version).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_events_keep_their_order_with_those_that_are_published_again() {
    let broker = Forgetful::start("mixed");
    let store = Arc::new(FakeStore::default());
    store.commit_all(workload(3_000, 2));
    let bridge = start(&store, &broker, Settings { batch_rows_max: 256, ..quick() }).await;
    until("published", || store.unpublished_count() == 0).await;
    broker.forget();
    until("seen", || log_of(&store).no == 2).await;
    for version in 3..=5 {
        store.commit_all((0..3_000).rev().step_by(7).map(|n| event(n, version)));
        bridge.actor.cast(BridgeMessage::Nudge).expect("alive");
        tokio::task::yield_now().await;
    }
    until("all marked", || store.unpublished_count() == 0 && log_of(&store).replay_done).await;
    let wanted = 6_000 + 3 * 429;
    let enough = move |log: &[Incoming]| {
        log.len() >= wanted && first_appearances(log).values().map(Vec::len).sum::<usize>() >= wanted
    };
    let seen = first_appearances(&read_topic(&broker.client(), &broker.names().topic, enough).await);
    for n in 0..3_000 {
        let last = if (2_999 - n) % 7 == 0 { 5 } else { 2 };
        assert_eq!(seen.get(&patient(n)), Some(&(1..=last).collect()), "patient {n}");
    }
    bridge.ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_survives_the_end_of_its_bridge_and_faults_of_the_store() {
    let broker = Forgetful::start("survives");
    let store = Arc::new(FakeStore::default());
    store.commit_all(workload(2_000, 2));
    let bridge = start(&store, &broker, Settings { batch_rows_max: 256, ..quick() }).await;
    until("published", || store.unpublished_count() == 0).await;
    broker.forget();
    until("begun", || log_of(&store).replayed_rows > 0).await;
    bridge.kill().await;
    for call in ["replay_waiting", "replay_next", "topic_log", "log_anchors", "mark_published"] {
        store.order(call, &[Fault::Unavailable, Fault::UnknownDone, Fault::Panic]);
    }
    let slow = Settings { batch_rows_max: 64, ..quick() };
    let bridge = Bridge::start(&store, Arc::new(Arc::clone(&broker)), "b", slow).await;
    until("all marked", || store.unpublished_count() == 0 && log_of(&store).replay_done).await;
    assert_complete_and_in_order(&broker.client(), 2_000, 2).await;
    bridge.ready().await;
    assert_eq!((log_of(&store).no, log_of(&store).replayed_rows), (2, 4_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_setting_keeps_a_new_log_from_being_filled() {
    let broker = Forgetful::start("uncounted");
    let store = Arc::new(FakeStore::default());
    store.commit_all(workload(5, 1));
    let bridge = start(&store, &broker, Settings { replay: ReplayOf::Uncounted, ..quick() }).await;
    until("published", || store.unpublished_count() == 0).await;
    // Analytics has counted all but one event.
    let counted: Vec<_> = (0..4)
        .map(|n| crate::domain::analytics::Observation {
            patient_id: patient(n),
            version: 1,
            event_type: crate::domain::event::EventType::Created,
            at: crate::domain::time::Timestamp(0),
            date_of_birth: None,
        })
        .collect();
    let source = store::ProjectionSource { group: "g".into(), broker: "c".into(), topic: "t".into() };
    store::ProjectionStore::apply(&*store, &source, &[], &counted).await.expect("counted");
    broker.forget();
    until("seen", || log_of(&store).no == 2).await;
    until("published", || store.unpublished_count() == 0 && !broker.replays().is_empty()).await;
    bridge.ready().await;
    assert_eq!(broker.replays(), [Some("2".to_owned())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_refused_rows_than_the_window_holds_keep_nobody_back() {
    let broker = Forgetful::start("refused");
    let store = Arc::new(FakeStore::default());
    store.commit_all(workload(40, 2));
    // All refused events come first in the outbox, and they are five times what the window holds.
    broker.refuse(0..30);
    let narrow = Settings {
        window_rows_max: 6,
        read_rows_max: 6,
        park_after_failures: 2,
        park_min_ms: 4_000,
        park_max_ms: 4_000,
        ..quick()
    };
    let bridge = start(&store, &broker, narrow).await;
    until("the others are published", || store.unpublished_count() == 60).await;
    until("told", || bridge.explains("events of the outbox are parked")).await;
    assert_eq!(store.parked(), 30);
    assert!(bridge.health.snapshot().0, "the node serves on");
    broker.refuse([]);
    until("the rest follows when its time has come", || store.unpublished_count() == 0).await;
    assert_complete_and_in_order(&broker.client(), 40, 2).await;
    assert_eq!(store.parked(), 0);
    bridge.ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_can_be_read_again_needs_no_restart() {
    let broker = Forgetful::start("mended");
    let store = Arc::new(FakeStore::default());
    store.commit_all(workload(3, 3));
    store.spoil(4);
    let bridge = start(&store, &broker, Settings { park_min_ms: 100, park_max_ms: 200, ..quick() }).await;
    until("the others are published", || store.unpublished_count() == 2).await;
    until("told", || bridge.explains("1 events of the outbox are parked")).await;
    store.mend();
    until("the rest follows", || store.unpublished_count() == 0).await;
    assert_complete_and_in_order(&broker.client(), 3, 3).await;
    bridge.ready().await;
}
