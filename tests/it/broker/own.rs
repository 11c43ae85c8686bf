//! What stops, kills and empties nodes of a broker: each test has its own.

use std::time::Duration;

use tokio::time::Instant;

use super::clinic::Clinic;
use crate::kafka::Cluster;

/// How long the broker is stopped: longer than any request, the group's session and a delivery may take (30 s).
const HANGS: Duration = Duration::from_secs(45);

#[tokio::test]
#[ignore = "needs Apache Kafka: `make test` runs it"]
async fn a_broker_that_restarts_costs_no_event() {
    let kafka = Cluster::start(1).await;
    let clinic = Clinic::open(&kafka.bootstrap(), "").await;
    let load = clinic.load();
    for _ in 0..2 {
        clinic.written(&load, 100).await;
        kafka.stop(0);
        clinic.says("bridge", "explained").await;
        clinic.written(&load, 100).await;
        kafka.begin(0).await;
        clinic.says("bridge", "ready").await;
    }
    load.stop().await;
    clinic.proven().await;
}

#[tokio::test]
#[ignore = "needs Apache Kafka: `make test` runs it"]
async fn a_broker_that_is_killed_costs_no_event() {
    let kafka = Cluster::start(1).await;
    let clinic = Clinic::open(&kafka.bootstrap(), "").await;
    let load = clinic.load();
    for _ in 0..3 {
        clinic.written(&load, 100).await;
        kafka.kill(0);
        clinic.written(&load, 100).await;
        kafka.begin(0).await;
    }
    load.stop().await;
    clinic.proven().await;
}

#[tokio::test]
#[ignore = "needs Apache Kafka: `make test` runs it"]
async fn a_broker_that_hangs_is_told_of_and_costs_no_event() {
    let kafka = Cluster::start(1).await;
    let clinic = Clinic::open(&kafka.bootstrap(), "").await;
    let load = clinic.load();
    clinic.written(&load, 100).await;
    let until = Instant::now() + HANGS;
    kafka.pause(0);
    clinic.says("bridge", "explained").await;
    clinic.says("analytics", "explained").await;
    assert!(Instant::now() < until, "readiness does not tell in time that the broker hangs");
    clinic.written(&load, 100).await;
    tokio::time::sleep_until(until).await;
    kafka.resume(0);
    load.stop().await;
    clinic.proven().await;
}

/// The volume is gone, and the cluster id is the same: nothing of what was published before is in the new log.
#[tokio::test]
#[ignore = "needs Apache Kafka: `make test` runs it"]
async fn a_broker_that_has_lost_its_log_gets_every_event_again() {
    let kafka = Cluster::start(1).await;
    let clinic = Clinic::open(&kafka.bootstrap(), "").await;
    let load = clinic.load();
    clinic.written(&load, 300).await;
    load.stop().await;
    clinic.proven().await;
    // Nobody writes meanwhile: what the producer sends before the bridge has noticed comes first in the new log.
    kafka.stop(0);
    kafka.wipe(0);
    kafka.begin(0).await;
    clinic.begins_a_new_log().await;
    let load = clinic.load();
    clinic.written(&load, 100).await;
    load.stop().await;
    clinic.proven().await;
}

#[tokio::test]
#[ignore = "needs Apache Kafka: `make test` runs it"]
async fn a_leader_that_is_killed_under_load_is_replaced_and_costs_no_event() {
    let kafka = Cluster::start(3).await;
    let clinic = Clinic::open(&kafka.bootstrap(), "").await;
    let load = clinic.load();
    clinic.written(&load, 100).await;
    for _ in 0..2 {
        let leader = kafka.leader(clinic.topic()).await;
        kafka.kill(leader);
        clinic.published(&load, 100).await;
        kafka.begin(leader).await;
        clinic.written(&load, 100).await;
    }
    load.stop().await;
    clinic.proven().await;
}
