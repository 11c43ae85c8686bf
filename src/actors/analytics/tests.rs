//! Analytics between a broker with the real protocol and a database in memory. The database rejects any event
//! that would leave a gap in the versions of its patient.

use super::*;
use crate::actors::fake_store::{FakeStore, Fault, event, event_of, patient, until};
use crate::actors::kafka_bridge::{BridgeMessage, KafkaBridge, KafkaBridgeArgs, Settings as BridgeSettings};
use crate::actors::members;
use crate::clock::SystemClock;
use crate::context::TraceContext;
use crate::domain::access::Caller;
use crate::domain::cluster::NodeRole;
use crate::domain::event::{EventType, RecordedEvent};
use crate::domain::time::Timestamp;
use crate::kafka::testing::{PATIENCE, Refusal, embedded, read_topic, settings};
use crate::kafka::{self, Kafka, Outgoing, wire};
use crate::store::{LeaseStore, NextLog, PartitionOffset, ProjectionSource, Replay};
use crate::telemetry::testing::{Lines, listen};

fn quick() -> Settings {
    Settings { retry_min_ms: 5, retry_max_ms: 100, idle_ms: 50, ..Settings::default() }
}

struct Running {
    actor: ActorRef<AnalyticsMessage>,
    handle: AnalyticsHandle,
    health: Health,
}

impl Running {
    async fn start(store: &Arc<FakeStore>, kafka: &Kafka, settings: Settings) -> Self {
        store.know(kafka).await;
        let (health, address) = (Health::default(), Address::default());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let handle = AnalyticsHandle::new(address.clone(), Arc::clone(&clock));
        let args = AnalyticsArgs {
            projections: Arc::clone(store) as Arc<dyn ProjectionStore>,
            outbox: Arc::clone(store) as Arc<dyn OutboxStore>,
            logs: Arc::clone(store) as Arc<dyn TopicLogStore>,
            broker: Arc::new(kafka.clone()),
            health: health.clone(),
            clock,
            settings,
        };
        let (actor, _) = Analytics::spawn(None, Analytics, args).await.expect("spawn");
        address.set(actor.clone());
        Running { actor, handle, health }
    }

    fn status(&self) -> Status {
        self.health.snapshot().1[NAME].clone()
    }

    async fn ready(&self) {
        until("ready", || self.status() == Status::Ready).await;
    }

    async fn summary(&self) -> Result<SummaryView> {
        self.handle.summary(&context(Duration::from_secs(10))).await
    }

    /// Ends analytics as a crash does.
    async fn kill(self) {
        self.actor.kill();
        self.actor.wait(Some(PATIENCE)).await.expect("dead");
    }
}

fn context(budget: Duration) -> RequestContext {
    RequestContext::new(Caller::system("test"), TraceContext::root(), &SystemClock, budget)
}

fn message(kafka: &Kafka, event: &RecordedEvent) -> Outgoing {
    wire::encode(&kafka.names().topic, event, &TraceContext::root())
}

fn poison(kafka: &Kafka, key: &str) -> Outgoing {
    Outgoing {
        topic: kafka.names().topic,
        key: Some(key.as_bytes().to_vec()),
        value: Some(b"no protobuf".to_vec()),
        headers: vec![("who", "a stranger".to_owned())],
    }
}

async fn publish(kafka: &Kafka, messages: &[Outgoing]) {
    let deliveries = kafka.publisher().publish(messages).await;
    assert!(deliveries.iter().all(kafka::Delivery::is_delivered), "{deliveries:?}");
}

/// Publishes `versions` of each patient, including repeats and unreadable messages.
async fn publish_lives(kafka: &Kafka, patients: usize, versions: i64) {
    kafka.cluster_id().await.expect("topics");
    for version in 1..=versions {
        let fresh: Vec<_> = (0..patients).map(|n| message(kafka, &event(n, version))).collect();
        publish(kafka, &fresh).await;
        publish(kafka, &fresh).await;
        if version > 1 {
            let late: Vec<_> = (0..patients).map(|n| message(kafka, &event(n, version - 1))).collect();
            publish(kafka, &late).await;
        }
        let key = patient(usize::try_from(version).expect("small")).to_string();
        publish(kafka, &[poison(kafka, &key)]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_count_once_and_nonsense_goes_to_the_dead_letters() {
    let kafka = Kafka::connect(&settings("exact")).expect("connect");
    publish_lives(&kafka, 20, 4).await;
    publish(&kafka, &[message(&kafka, &event_of(0, 5, EventType::Deleted))]).await;
    let store = Arc::new(FakeStore::default());
    let analytics = Running::start(&store, &kafka, quick()).await;
    until("all counted", || store.counted() == 81).await;
    assert_eq!(store.counted_of(EventType::Created), 20);
    assert_eq!(store.counted_of(EventType::Deleted), 1);
    analytics.ready().await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let view = loop {
        let view = analytics.summary().await.expect("summary");
        if view.lag_events == Some(0) {
            break view;
        }
        assert!(tokio::time::Instant::now() < deadline, "{view:?}");
    };
    assert_eq!(view.summary.total_patients, 19);
    assert_eq!(view.summary.registrations_by_day.last().map(|d| d.1), Some(20));
    assert_eq!(view.summary.age_bands.iter().map(|b| b.1).sum::<i64>(), 19);

    let dead = read_topic(&kafka, &kafka.names().dead_letter_topic, |m| m.len() >= 4).await;
    assert_eq!(dead.len(), 4);
    assert!(dead.iter().all(|m| m.value.as_deref() == Some(b"no protobuf")));
    assert!(dead.iter().any(|m| m.key.as_deref() == Some(patient(1).to_string().as_bytes())));
}

#[tokio::test]
async fn messages_that_are_not_ours_may_be_skipped_and_are_told_in_one_line() {
    let told = Lines::default();
    // The runtime of this test has only this thread, so its subscriber receives the actor's lines.
    let _listening = listen(tracing_subscriber::fmt().with_writer(told.clone()).finish());
    let kafka = Kafka::connect(&embedded("foreign")).expect("connect");
    kafka.cluster_id().await.expect("topics");
    let mut foreign: Vec<_> = (0..500).map(|n| message(&kafka, &event(n, 1))).collect();
    // Another system writes messages without a key.
    foreign.iter_mut().for_each(|message| message.key = None);
    publish(&kafka, &foreign).await;
    publish_lives_of(&kafka, 3, 1).await;
    let store = Arc::new(FakeStore::default());
    let settings = Settings { foreign_messages: ForeignMessages::Skip, ..quick() };
    let analytics = Running::start(&store, &kafka, settings).await;
    until("counted", || store.counted() == 3).await;
    analytics.ready().await;
    let text = told.text();
    let lines: Vec<&str> = text.lines().filter(|line| line.contains("no events of ours")).collect();
    // One line per batch, and there are a few batches.
    assert!((1..=20).contains(&lines.len()) && lines[0].contains("the key is not patientId: "), "{lines:?}");
    // The first dead letter is the one published just now.
    let last = Outgoing { topic: kafka.names().dead_letter_topic, ..poison(&kafka, "last") };
    publish(&kafka, std::slice::from_ref(&last)).await;
    let is_last = |m: &kafka::Incoming| m.key == Some(b"last".to_vec());
    let dead = read_topic(&kafka, &last.topic, move |m| m.iter().any(is_last)).await;
    assert_eq!(dead.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_database_holds_the_batch_and_counts_stay_exact() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let small = kafka::Settings { batch_max_messages: 7, ..settings("failing") };
    let kafka = Kafka::connect(&small).expect("connect");
    publish_lives(&kafka, 10, 6).await;
    let store = Arc::new(FakeStore::default());
    let faults = [Fault::Unavailable, Fault::UnknownDone, Fault::UnknownNotDone];
    store.order("apply", &(0..15).map(|_| faults[rng.usize(..3)]).collect::<Vec<_>>());
    store.order("offsets", &[Fault::Unavailable, Fault::UnknownNotDone]);
    let analytics = Running::start(&store, &kafka, quick()).await;
    until("all counted", || store.counted() == 60).await;
    until("all faults met", || store.faults_left() == 0).await;
    analytics.ready().await;
    for n in 0..10 {
        assert_eq!(store.counted_version(patient(n)), 6);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_or_an_actor_that_dies_goes_on_where_the_database_stands() {
    let small = kafka::Settings { batch_max_messages: 5, ..settings("dies") };
    let kafka = Kafka::connect(&small).expect("connect");
    publish_lives(&kafka, 10, 3).await;
    let store = Arc::new(FakeStore::default());
    store.order("apply", &[Fault::UnknownDone, Fault::Panic]);
    let analytics = Running::start(&store, &kafka, quick()).await;
    until("all counted by the second reader", || store.counted() == 30).await;
    assert_eq!(store.faults_left(), 0);
    analytics.kill().await;
    publish(&kafka, &(0..10).map(|n| message(&kafka, &event(n, 4))).collect::<Vec<_>>()).await;
    let _next = Running::start(&store, &kafka, quick()).await;
    until("all counted by the next actor", || store.counted() == 40).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_share_the_partitions_and_take_over() {
    let kafka = Kafka::connect(&settings("members")).expect("connect");
    publish_lives(&kafka, 20, 1).await;
    let store = Arc::new(FakeStore::default());
    let first = Running::start(&store, &kafka, quick()).await;
    until("counted by the first", || store.counted() == 20).await;
    let second = Running::start(&store, &kafka, quick()).await;
    second.ready().await;
    for version in 2..=5 {
        publish_lives_of(&kafka, 20, version).await;
    }
    until("counted by both", || store.counted() == 100).await;
    first.kill().await;
    publish_lives_of(&kafka, 20, 6).await;
    until("counted by the second", || store.counted() == 120).await;
}

async fn publish_lives_of(kafka: &Kafka, patients: usize, version: i64) {
    publish(kafka, &(0..patients).map(|n| message(kafka, &event(n, version))).collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_no_dead_letter_can_be_written_nothing_is_passed() {
    let kafka = Kafka::connect(&embedded("held")).expect("connect");
    publish(&kafka, &[poison(&kafka, "k"), message(&kafka, &event(0, 1))]).await;
    let store = Arc::new(FakeStore::default());
    kafka.refuse(&[Refusal::NotAllowed]);
    let analytics = Running::start(&store, &kafka, quick()).await;
    let held = |status: Status| matches!(status, Status::Explained(r) if r.contains("no dead letter"));
    until("told", || held(analytics.status())).await;
    until("counted", || store.counted() == 1).await;
    analytics.ready().await;
    assert_eq!(read_topic(&kafka, &kafka.names().dead_letter_topic, |m| !m.is_empty()).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_goes_away_is_told_and_come_back_to() {
    let settings = kafka::Settings { metadata_timeout_ms: 300, ..embedded("away") };
    let kafka = Kafka::connect(&settings).expect("connect");
    publish_lives_of(&kafka, 5, 1).await;
    let store = Arc::new(FakeStore::default());
    let analytics = Running::start(&store, &kafka, quick()).await;
    until("counted", || store.counted() == 5).await;
    kafka.go_down();
    let away = |status: Status| matches!(status, Status::Explained(r) if r.contains("away"));
    until("told", || away(analytics.status())).await;
    let view = analytics.summary().await.expect("the counts are there all the same");
    assert_eq!((view.summary.total_patients, view.lag_events), (5, None));
    kafka.come_up();
    analytics.ready().await;
    publish_lives_of(&kafka, 5, 2).await;
    until("counted again", || store.counted() == 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn summaries_keep_their_deadline_and_say_what_is_wrong() {
    let nobody = AnalyticsHandle::new(Address::default(), Arc::new(SystemClock));
    let code = |r: Result<SummaryView>| r.map(|_| ()).map_err(|e| e.code);
    let soon = context(Duration::from_secs(5));
    assert_eq!(code(nobody.summary(&soon).await), Err(ErrorCode::Unavailable));

    let kafka = Kafka::connect(&embedded("summaries")).expect("connect");
    let store = Arc::new(FakeStore::default());
    let analytics = Running::start(&store, &kafka, quick()).await;
    assert_eq!(
        code(analytics.handle.summary(&context(Duration::ZERO)).await),
        Err(ErrorCode::DeadlineExceeded)
    );
    store.order("counts", &[Fault::Unavailable]);
    assert_eq!(code(analytics.summary().await), Err(ErrorCode::Unavailable));
    store.order("counts", &[Fault::Panic]);
    assert_eq!(code(analytics.summary().await), Err(ErrorCode::Unavailable));
    store.commit_all((0..3).map(|n| event(n, 1)));
    assert_eq!(analytics.summary().await.expect("summary").lag_events, Some(3), "what waits in the outbox");

    let none = Running::start(&store, &kafka, Settings { summaries_max: 0, ..quick() }).await;
    assert_eq!(code(none.summary().await), Err(ErrorCode::Overloaded));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_is_counted_soon_after_its_commit() {
    let kafka = Kafka::connect(&settings("flow")).expect("connect");
    let store = Arc::new(FakeStore::default());
    let args = KafkaBridgeArgs {
        outbox: Arc::clone(&store) as Arc<dyn OutboxStore>,
        logs: Arc::clone(&store) as Arc<dyn TopicLogStore>,
        leases: Arc::clone(&store) as Arc<dyn LeaseStore>,
        broker: Arc::new(kafka.clone()),
        health: Health::default(),
        clock: Arc::new(SystemClock),
        owner: "a".into(),
        members: members::alone("a".into(), "a#1".into(), NodeRole::ALL.into()),
        released: Arc::new(|_, _, _| {}),
        settings: BridgeSettings::default(),
    };
    let (bridge, _) = KafkaBridge::spawn(None, KafkaBridge, args).await.expect("spawn");
    let analytics = Running::start(&store, &kafka, Settings::default()).await;
    analytics.ready().await;
    let mut times = Vec::new();
    for version in 1..=11 {
        let since = std::time::Instant::now();
        store.commit_all([event(0, version)]);
        bridge.cast(BridgeMessage::Nudge).expect("alive");
        until("counted", || store.counted_version(patient(0)) == version).await;
        times.push(since.elapsed());
    }
    times.sort();
    println!("from commit to count: {times:?}");
    assert!(times[5] < Duration::from_millis(500), "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_that_wait_too_long_to_be_counted_are_told() {
    let kafka = Kafka::connect(&embedded("waiting")).expect("connect");
    let store = Arc::new(FakeStore::default());
    let settings = Settings { waiting_max_ms: 1_000, lag_poll_ms: 50, ..quick() };
    let analytics = Running::start(&store, &kafka, settings).await;
    analytics.ready().await;
    // The broker answers and accepts messages, but returns nothing to readers.
    kafka.serve_nothing();
    publish_lives_of(&kafka, 5, 1).await;
    let told =
        |status| matches!(status, Status::Explained(r) if r.contains("analytics.waiting_max_ms, 1000 ms"));
    until("told", || told(analytics.status())).await;
    assert_eq!(store.counted(), 0);
    kafka.serve_again();
    until("counted", || store.counted() == 5).await;
    analytics.ready().await;
}

/// Replaces the log in use by a log of `kafka`.
async fn begin(store: &FakeStore, kafka: &Kafka) {
    let next = NextLog {
        after: store.log().map_or(0, |log| log.no),
        cluster: kafka.cluster_id().await.expect("a cluster"),
        topic: kafka.names().topic.to_string(),
        at: Timestamp(0),
        reason: "as the test wants".into(),
        replay: Replay::Uncounted,
    };
    store.begin_log(&next).await.expect("a log");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_log_is_read_from_its_beginning_and_counts_nothing_twice() {
    let settings = embedded("again");
    let kafka = Kafka::connect(&settings).expect("connect");
    publish_lives(&kafka, 20, 2).await;
    let store = Arc::new(FakeStore::default());
    let first = Running::start(&store, &kafka, quick()).await;
    until("counted", || store.counted() == 40).await;
    first.kill().await;
    // The new log has more events than the old one, at other offsets.
    let next = Kafka::connect(&settings).expect("connect");
    for version in 1..=3 {
        publish_lives_of(&next, 40, version).await;
    }
    let analytics = Running::start(&store, &next, quick()).await;
    let waits = |status| matches!(status, Status::Explained(r) if r.contains("the bridge has not said"));
    until("waits for the bridge", || waits(analytics.status())).await;
    assert_eq!(store.counted(), 40, "offsets of another log are no place to begin at");
    begin(&store, &next).await;
    until("all counted", || store.counted() == 120).await;
    analytics.ready().await;
    // Another log begins while this one is being read.
    begin(&store, &next).await;
    publish_lives_of(&next, 40, 4).await;
    until("all counted", || store.counted() == 160).await;
    analytics.ready().await;
    assert_eq!(store.counted_of(EventType::Created), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stored_offsets_behind_the_end_are_an_alarm_and_no_place_to_begin_at() {
    let kafka = Kafka::connect(&embedded("beyond")).expect("connect");
    publish_lives_of(&kafka, 20, 1).await;
    let store = Arc::new(FakeStore::default());
    begin(&store, &kafka).await;
    let names = kafka.names();
    let source = ProjectionSource {
        group: names.group.to_string(),
        broker: store.log().expect("a log").name,
        topic: names.topic.to_string(),
    };
    let beyond = (0..4).map(|partition| PartitionOffset { partition, next_offset: 1_000 });
    store.apply(&source, &beyond.collect::<Vec<_>>(), &[]).await.expect("applied");
    let analytics = Running::start(&store, &kafka, quick()).await;
    let told =
        |status| matches!(status, Status::Explained(r) if r.contains("lies behind the end of the topic"));
    until("told", || told(analytics.status())).await;
    assert_eq!(store.counted(), 0);
    let lag = analytics.summary().await.expect("a summary").lag_events;
    assert_eq!(lag, None, "20 are not counted, and nobody knows how many an earlier log had");
    begin(&store, &kafka).await;
    until("all counted", || store.counted() == 20).await;
    analytics.ready().await;
}
