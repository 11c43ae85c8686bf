//! What needs no more of a broker than its address.

use std::collections::BTreeMap;

use super::clinic::{self, Clinic};
use super::reader;
use crate::kafka::{self, topic};

/// How often clients ask for a topic's partitions where that is looked at; the default is five minutes.
const LOOKS_AGAIN: &str = "[kafka]\nproperties = { \"topic.metadata.refresh.interval.ms\" = \"1000\" }\n";

#[tokio::test]
#[ignore = "needs Apache Kafka: `make test` runs it"]
async fn everything_written_is_in_the_topic_and_counted() {
    let kafka = kafka::any().await;
    let clinic = Clinic::open(&kafka, "").await;
    let load = clinic.load();
    clinic.written(&load, 300).await;
    load.stop().await;
    clinic.proven().await;
}

#[tokio::test]
#[ignore = "needs Apache Kafka: `make test` runs it"]
async fn a_topic_that_is_deleted_is_made_and_filled_again() {
    let kafka = kafka::any().await;
    let clinic = Clinic::open(&kafka, LOOKS_AGAIN).await;
    let load = clinic.load();
    clinic.written(&load, 300).await;
    load.stop().await;
    clinic.proven().await;
    // Nobody writes meanwhile: what the producer sends before the bridge has noticed comes first in the new log.
    topic::delete(&kafka, clinic.topic()).await;
    clinic.begins_a_new_log().await;
    let load = clinic.load();
    clinic.written(&load, 100).await;
    load.stop().await;
    clinic.proven().await;
}

/// More partitions move keys: an event may lie in another partition than the one before it of the same patient.
#[tokio::test]
#[ignore = "needs Apache Kafka: `make test` runs it"]
async fn partitions_that_are_added_under_load_cost_no_event() {
    let kafka = kafka::any().await;
    let clinic = Clinic::open(&kafka, LOOKS_AGAIN).await;
    let load = clinic.load();
    clinic.written(&load, 200).await;
    topic::add_partitions(&kafka, clinic.topic(), 9).await;
    clinic.written(&load, 100).await;
    clinic.uses_partition(8).await;
    load.stop().await;
    clinic.proven_by_time().await;
}

#[tokio::test]
#[ignore = "needs Apache Kafka: `make test` runs it"]
async fn foreign_messages_are_put_aside_and_count_for_nothing() {
    let kafka = kafka::any().await;
    let clinic = Clinic::open(&kafka, "").await;
    let load = clinic.load();
    clinic.written(&load, 50).await;
    let messages = clinic::foreign_messages();
    for _ in 0..5 {
        topic::write(&kafka, clinic.topic(), &messages).await;
        clinic.written(&load, 50).await;
    }
    load.stop().await;
    clinic.proven().await;
    let aside = topic::read(&kafka, &clinic.dead_letters()).await.expect("readable");
    assert_eq!(aside.len(), 5 * messages.len(), "each foreign message is a dead letter, and nothing else is");
}

/// The rules of `docs/EVENTS.md` are enough to read the topic: its consumer tells of every event once, each patient's in
/// order.
#[tokio::test]
#[ignore = "needs Apache Kafka: `make test` runs it"]
async fn the_consumer_of_the_documentation_reads_every_event_once() {
    let kafka = kafka::any().await;
    let clinic = Clinic::open(&kafka, "").await;
    let load = clinic.load();
    clinic.written(&load, 100).await;
    load.stop().await;
    clinic.proven().await;
    let recorded = clinic.table().await;
    let count = recorded.values().map(Vec::len).sum();
    let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in reader::lines(&kafka, clinic.topic(), count).await {
        let [event_type, patient, version] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("three words: {line:?}");
        };
        told.entry(patient.to_owned()).or_default().push(format!("{version} {event_type}"));
    }
    let kinds = ["", "PATIENT_CREATED", "PATIENT_UPDATED", "PATIENT_DELETED"];
    let name = |kind: i16| kinds[usize::try_from(kind).expect("a kind")];
    let expected = recorded.into_iter().map(|(patient, events)| {
        let events = events.into_iter().map(|(version, _, kind)| format!("{version} {}", name(kind)));
        (patient.to_string(), events.collect())
    });
    assert_eq!(told, expected.collect());
}
