//! The producer and the consumer over the real protocol.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::testing::{PATIENCE, Refusal, embedded, read_topic, settings};
use super::*;
use crate::domain::ids::EventId;

fn message(topic: &str, key: usize, n: usize) -> Outgoing {
    Outgoing {
        topic: topic.into(),
        key: Some(format!("key-{key}").into_bytes()),
        value: Some(format!("{n}").into_bytes()),
        headers: vec![("n", n.to_string())],
    }
}

fn messages(topic: &str, count: usize, keys: usize) -> Vec<Outgoing> {
    (0..count).map(|n| message(topic, n % keys, n)).collect()
}

async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("no patience left: {what}"))
}

/// Reads until `count` messages have arrived. Starts every assignment at the positions `from`.
async fn consume(consumer: &mut dyn Consumer, from: &[Position], count: usize) -> Vec<Incoming> {
    let mut read = Vec::new();
    patiently("consume", async {
        while read.len() < count {
            match consumer.next().await.expect("next") {
                ConsumerEvent::Assigned(assignment) => {
                    assert!(consumer.start(assignment.id, from).await.expect("start"));
                }
                ConsumerEvent::Revoked => {}
                ConsumerEvent::Messages(messages) => read.extend(messages),
            }
        }
    })
    .await;
    read
}

fn next_offsets(read: &[Incoming]) -> Vec<Position> {
    let mut next = HashMap::new();
    for message in read {
        next.insert(message.partition, message.offset + 1);
    }
    next.into_iter().map(|(partition, next_offset)| Position { partition, next_offset }).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_is_read_in_order_from_where_the_reader_says() {
    let settings = settings("roundtrip");
    let kafka = Kafka::connect(&settings).expect("connect");
    let incarnation = kafka.cluster_id().await.expect("incarnation");
    assert_eq!(kafka.cluster_id().await.expect("again"), incarnation);
    let publisher = kafka.publisher();
    let sent = messages(&settings.topic, 500, 7);
    assert!(publisher.publish(&sent).await.iter().all(Delivery::is_delivered));
    let mut consumer = kafka.consumer().await.expect("consumer");
    let read = consume(&mut *consumer, &[], 500).await;
    let mut last = HashMap::new();
    for m in &read {
        let n: i64 = String::from_utf8_lossy(m.value.as_deref().expect("value")).parse().expect("n");
        let before = last.insert(m.key.clone(), n);
        assert!(before.is_none_or(|b| b < n), "{n} after {before:?}");
    }
    let high: i64 = kafka.watermarks().await.expect("watermarks").iter().map(|w| w.high).sum();
    assert_eq!(high, 500);
    drop(consumer);

    let more = messages(&settings.topic, 20, 7);
    assert!(publisher.publish(&more).await.iter().all(Delivery::is_delivered));
    let mut second = kafka.consumer().await.expect("consumer");
    let read = consume(&mut *second, &next_offsets(&read), 20).await;
    assert_eq!(read.len(), 20, "nothing is read twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_can_wait_until_its_consumer_has_left() {
    let kafka = Kafka::connect(&settings("leaving")).expect("connect");
    kafka.cluster_id().await.expect("incarnation");
    let mut consumer = kafka.consumer().await.expect("consumer");
    let ConsumerEvent::Assigned(all) = patiently("assigned", consumer.next()).await.expect("next") else {
        panic!("the first event is the assignment")
    };
    assert!(consumer.start(all.id, &[]).await.expect("start"));
    let waiting = tokio::time::timeout(Duration::from_millis(200), kafka.left()).await;
    assert!(waiting.is_err(), "it is still a member");
    drop(consumer);
    patiently("left", kafka.left()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn going_back_drops_what_was_read_ahead() {
    let settings = Settings { batch_max_messages: 10, ..settings("goback") };
    let kafka = Kafka::connect(&settings).expect("connect");
    kafka.cluster_id().await.expect("incarnation");
    let sent = messages(&settings.topic, 100, 1);
    assert!(kafka.publisher().publish(&sent).await.iter().all(Delivery::is_delivered));
    let mut consumer = kafka.consumer().await.expect("consumer");
    let ConsumerEvent::Assigned(assignment) = patiently("assigned", consumer.next()).await.expect("next")
    else {
        panic!("the first event is the assignment")
    };
    assert!(!consumer.start(assignment.id + 1, &[]).await.expect("a void assignment"));
    assert!(consumer.start(assignment.id, &[]).await.expect("start"));
    let ConsumerEvent::Messages(first) = patiently("first", consumer.next()).await.expect("next") else {
        panic!("messages")
    };
    assert!(first.len() <= 10, "bounded");
    let back = Position { partition: first[0].partition, next_offset: 5 };
    assert!(consumer.start(assignment.id, &[back]).await.expect("back"));
    let again = consume(&mut *consumer, &[], 95).await;
    let offsets: Vec<_> = again.iter().map(|m| m.offset).collect();
    assert_eq!(offsets, (5..100).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_that_delivers_nothing_while_the_broker_answers_is_replaced() {
    let settings = Settings { delivery_timeout_ms: 5_000, request_timeout_ms: 1_000, ..embedded("silent") };
    let kafka = Kafka::connect(&settings).expect("connect");
    kafka.cluster_id().await.expect("incarnation");
    let publisher = kafka.publisher();
    assert!(publisher.publish(&messages(&settings.topic, 1, 1)).await[0].is_delivered());
    kafka.refuse(&[Refusal::NotEnoughReplicas; 500]);
    let batch = messages(&settings.topic, 3, 1);
    let failed = patiently("a batch", publisher.publish(&batch)).await;
    assert!(failed.iter().all(|d| matches!(d, Delivery::ProducerLost(_))), "{failed:?}");
    kafka.refuse_no_more();
    assert!(patiently("the next", publisher.publish(&batch)).await.iter().all(Delivery::is_delivered));

    // While no broker can be reached, a new producer would not help.
    kafka.go_down();
    let failed = patiently("a batch", publisher.publish(&batch)).await;
    assert!(failed.iter().all(|d| matches!(d, Delivery::Failed(_))), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_reader_gets_a_message_soon() {
    let settings = settings("latency");
    let kafka = Kafka::connect(&settings).expect("connect");
    kafka.cluster_id().await.expect("incarnation");
    let publisher = kafka.publisher();
    let mut consumer = kafka.consumer().await.expect("consumer");
    assert!(publisher.publish(&messages(&settings.topic, 1, 1)).await[0].is_delivered());
    consume(&mut *consumer, &[], 1).await;
    let mut times = Vec::new();
    for n in 0..10 {
        let since = Instant::now();
        assert!(publisher.publish(&[message(&settings.topic, n, n)]).await[0].is_delivered());
        let published = since.elapsed();
        consume(&mut *consumer, &[], 1).await;
        times.push((published, since.elapsed()));
    }
    times.sort_by_key(|t| t.1);
    println!("published, read: {times:?}");
    assert!(times[5].1 < Duration::from_millis(500), "{times:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_is_backpressure() {
    let settings = Settings { queue_max_messages: 10, ..settings("queue") };
    let kafka = Kafka::connect(&settings).expect("connect");
    kafka.cluster_id().await.expect("incarnation");
    let sent = messages(&settings.topic, 300, 5);
    let deliveries = patiently("publish", kafka.publisher().publish(&sent)).await;
    assert!(deliveries.iter().all(Delivery::is_delivered), "{deliveries:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_the_broker_are_got_over() {
    let settings = embedded("refusals");
    let kafka = Kafka::connect(&settings).expect("connect");
    kafka.refuse(&[Refusal::NotEnoughReplicas, Refusal::Disconnect, Refusal::NotLeader]);
    let sent = messages(&settings.topic, 10, 3);
    let deliveries = patiently("publish", kafka.publisher().publish(&sent)).await;
    assert!(deliveries.iter().all(Delivery::is_delivered), "{deliveries:?}");
    assert_eq!(read_topic(&kafka, &settings.topic, |m| m.len() >= 10).await.len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_may_not_be_written_fails_and_may_be_sent_again() {
    let settings = embedded("refused");
    let kafka = Kafka::connect(&settings).expect("connect");
    kafka.refuse(&[Refusal::NotAllowed]);
    let deliveries = patiently("publish", kafka.publisher().publish(&[message(&settings.topic, 1, 1)])).await;
    assert!(matches!(deliveries[0], Delivery::Failed(_)), "{deliveries:?}");
    // The producer learns only with its next metadata refresh that the topic may be written again.
    patiently("publish again", async {
        while !kafka.publisher().publish(&[message(&settings.topic, 1, 1)]).await[0].is_delivered() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_that_failed_for_good_is_replaced() {
    let settings = embedded("fatal");
    let kafka = Kafka::connect(&settings).expect("connect");
    kafka.refuse(&[Refusal::Desynchronized]);
    let publisher = kafka.publisher();
    let batch = messages(&settings.topic, 20, 1);
    let deliveries = patiently("first", publisher.publish(&batch)).await;
    assert!(deliveries.iter().all(|d| matches!(d, Delivery::ProducerLost(_))), "{deliveries:?}");
    let deliveries = patiently("second", publisher.publish(&batch)).await;
    assert!(deliveries.iter().all(Delivery::is_delivered), "{deliveries:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_is_told_and_its_return_as_well() {
    let settings = Settings { delivery_timeout_ms: 1_000, metadata_timeout_ms: 1_000, ..embedded("away") };
    let kafka = Kafka::connect(&settings).expect("connect");
    let publisher = kafka.publisher();
    let batch = messages(&settings.topic, 1, 1);
    patiently("first", async { while !publisher.publish(&batch).await[0].is_delivered() {} }).await;
    assert_eq!(kafka.link(), Link::Up);
    kafka.go_down();
    let deliveries = patiently("down", publisher.publish(&batch)).await;
    assert!(matches!(deliveries[0], Delivery::Failed(_)), "{deliveries:?}");
    assert!(matches!(kafka.probe().await, Err(Error::Away(_))));
    assert!(matches!(kafka.link(), Link::Away(_)));
    kafka.come_up();
    patiently("probe", async { while kafka.probe().await.is_err() {} }).await;
    assert_eq!(kafka.link(), Link::Up);
    patiently("up", async { while !publisher.publish(&batch).await[0].is_delivered() {} }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_broker_drops_nothing_that_was_not_read() {
    let settings = Settings { partitions: 1, ..embedded("gate") };
    let kafka = Kafka::connect(&settings).expect("connect");
    let publisher = kafka.publisher();
    let topic: Arc<str> = settings.topic.as_str().into();
    // Writes 9 MiB into a partition that holds 5 MiB.
    let total = 9 * 1024;
    let feeding = tokio::spawn(async move {
        for first in (0..total).step_by(256) {
            let batch: Vec<_> = (first..first + 256)
                .map(|n| Outgoing { value: Some(vec![b'x'; 1024]), ..message(&topic, n % 50, n) })
                .collect();
            assert!(publisher.publish(&batch).await.iter().all(Delivery::is_delivered));
        }
    });
    patiently("full", async {
        while kafka.link() != Link::Full {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let mut consumer = kafka.consumer().await.expect("consumer");
    let mut next = 0;
    while next < total as i64 {
        for m in consume(&mut *consumer, &[], 1).await {
            assert_eq!(m.offset, next, "a gap");
            next += 1;
        }
        consumer.applied(&[Position { partition: 0, next_offset: next }]);
    }
    feeding.await.expect("all published");
}

#[tokio::test]
async fn each_start_of_the_embedded_broker_is_another_incarnation() {
    let settings = embedded("incarnation");
    let one = Kafka::connect(&settings).expect("connect");
    let two = Kafka::connect(&settings).expect("connect");
    assert_ne!(one.cluster_id().await, two.cluster_id().await);
    assert_ne!(one.bootstrap_servers(), two.bootstrap_servers());
}

#[tokio::test]
async fn a_broker_that_is_away_at_the_start_is_asked_again_later() {
    // Nothing listens on the port of a closed listener.
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("addr").port();
    let settings =
        Settings { brokers: format!("127.0.0.1:{port}"), metadata_timeout_ms: 200, ..embedded("start") };
    let kafka = Kafka::connect(&settings).expect("connect");
    assert!(matches!(kafka.cluster_id().await, Err(Error::Away(_))));
    assert!(matches!(kafka.cluster_id().await, Err(Error::Away(_))));
}

#[tokio::test]
async fn what_librdkafka_refuses_is_said_at_once_and_without_its_value() {
    let mut settings = embedded("refuses");
    settings.properties.0.insert("acks".into(), "canary".into());
    let Err(error) = Kafka::connect(&settings) else { panic!("acks=canary") };
    assert!(
        matches!(&error, Error::Settings(what) if what.contains("acks") && !what.contains("canary")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_without_the_last_known_message_has_another_log() {
    let settings = embedded("departure");
    let broker = Kafka::connect(&settings).expect("connect");
    let brokers = broker.bootstrap_servers().to_owned();
    let kafka =
        Kafka::connect(&Settings { brokers, create_topics: false, ..settings.clone() }).expect("connect");
    let id = uuid::Uuid::now_v7();
    let mut first = message(&settings.topic, 1, 1);
    first.headers.push((wire::EVENT_ID, id.to_string()));
    let publisher = kafka.publisher();
    let deliveries = publisher.publish(&[first]).await;
    let [Delivery::Delivered(Some(place))] = deliveries.as_slice() else { panic!("{deliveries:?}") };
    // A new producer continues in the same log.
    kafka.renew_publisher();
    assert!(publisher.publish(&messages(&settings.topic, 20, 1)).await.iter().all(Delivery::is_delivered));
    let departure = async |offset, event_id: Option<uuid::Uuid>| {
        let anchor = LogAnchor { partition: place.partition, offset, event_id: event_id.map(EventId) };
        kafka.departure(&[anchor]).await.expect("an answer")
    };
    assert_eq!(departure(place.offset, Some(id)).await, None);
    assert_eq!(departure(place.offset, None).await, None);
    let other = departure(place.offset, Some(uuid::Uuid::nil())).await.expect("another event");
    assert!(other.contains("another message"), "{other}");
    let shorter = departure(1_000, None).await.expect("a shorter log");
    assert!(shorter.contains("ends before"), "{shorter}");
    let anchor = LogAnchor { partition: 0, offset: 1_000, event_id: None };
    assert_eq!(
        broker.departure(&[anchor]).await,
        Ok(None),
        "the embedded broker keeps its log as long as it lives"
    );
}
