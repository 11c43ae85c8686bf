//! How fast the store is on this machine: commits, the outbox, the projection, on a private durable
//! PostgreSQL (or `HYGEIA_TEST_POSTGRES`) and on SQLite.
//!
//! `cargo run --release --example store_rates [rows]`

#![allow(clippy::print_stdout, clippy::expect_used, reason = "a tool for developers")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use hygeia::domain::access::Caller;
use hygeia::domain::analytics::Observation;
use hygeia::domain::event::{EventType, RecordedEvent};
use hygeia::domain::ids::{CommandId, Epoch, EventId, Kind, PatientId, ShardNo};
use hygeia::domain::patient::{Patient, PatientDetails, PatientEvent};
use hygeia::domain::time::Timestamp;
use hygeia::store::{
    AppendOutcome, NextLog, PartitionOffset, PatientAppend, ProjectionSource, Replay, Settings, Store, Use,
    migrate, open,
};
use time::macros::date;
use uuid::Uuid;

#[path = "../tests/harness/postgres.rs"]
mod postgres;

const SHARDS: u16 = 64;
const BATCH: usize = 32;
const IN_FLIGHT: usize = 4;
const BULK: u32 = 2000;
const APPLY: usize = 500;

#[tokio::main]
async fn main() {
    let rows: usize = std::env::args().nth(1).and_then(|arg| arg.parse().ok()).unwrap_or(100_000);
    let database = postgres::Postgres::shared().create_database().await;
    println!("PostgreSQL, fsync on:");
    measure(database.url(), rows).await;
    let directory = tempfile::tempdir().expect("a directory");
    println!("SQLite, synchronous=FULL:");
    measure(&format!("sqlite:{}", directory.path().join("a.db").display()), rows / 5).await;
}

async fn measure(url: &str, rows: usize) {
    let settings = Settings { url: url.to_owned(), ..Settings::default() };
    migrate(&settings).await.expect("a schema");
    let store = open(&settings, Use::Serve).await.expect("a store");
    let shards: Vec<ShardNo> = (0..SHARDS).collect();
    let taken = store.acquire(Kind::Patient, &shards, "bench#1", Duration::from_secs(3600)).await;
    let mut epochs = vec![Epoch(0); usize::from(SHARDS)];
    for lease in taken.expect("leases") {
        epochs[usize::from(lease.shard)] = lease.epoch;
    }
    let batches: Vec<_> = (0..rows.div_ceil(BATCH)).map(|n| batch(n * BATCH, &epochs)).collect();
    one_by_one(&store, &epochs).await;

    let start = Instant::now();
    stream::iter(batches)
        .for_each_concurrent(IN_FLIGHT, |batch| {
            let store = &store;
            async move {
                let outcomes = store.commit_patients(&batch).await.expect("outcomes");
                assert!(outcomes.iter().all(|o| *o == AppendOutcome::Committed));
            }
        })
        .await;
    report("commit_patients, batches of 32, 4 in flight", rows, start.elapsed());

    let log_no = begin_log(&store).await;
    let (mut observations, mut seen, mut reading, mut marking) =
        (Vec::new(), 0, Duration::ZERO, Duration::ZERO);
    loop {
        let start = Instant::now();
        let events = store.unpublished(BULK).await.expect("events");
        reading += start.elapsed();
        if events.is_empty() {
            break;
        }
        let seqs: Vec<i64> = events.iter().map(|e| e.seq).collect();
        let start = Instant::now();
        assert!(store.mark_published(&seqs, log_no, &[]).await.expect("marked"));
        marking += start.elapsed();
        seen += events.len();
        observations.extend(events.iter().map(|e| observation(&e.recorded)));
    }
    report("unpublished, 2000 a call", seen, reading);
    report("mark_published, 2000 a call", seen, marking);

    let source = ProjectionSource { group: "g".into(), broker: "b".into(), topic: "t".into() };
    let start = Instant::now();
    for chunk in observations.chunks(APPLY) {
        let offsets = [PartitionOffset { partition: 0, next_offset: 1 }];
        store.apply(&source, &offsets, chunk).await.expect("applied");
    }
    report("apply, 500 a call, trimming included", observations.len(), start.elapsed());
    let start = Instant::now();
    let (mut put_back, mut after) = (0, None);
    loop {
        let done = store.republish_forgotten("another", after, 2000).await.expect("an answer");
        put_back += done.rows;
        if done.next.is_none() {
            break;
        }
        after = done.next;
    }
    println!("  republish_forgotten, 2000 a call: {put_back} rows in {:?}", start.elapsed());
    store.close().await;
}

async fn begin_log(store: &Arc<dyn Store>) -> i64 {
    let next = NextLog {
        after: 0,
        cluster: "a broker with a name of usual length".into(),
        topic: "t".into(),
        at: Timestamp(0),
        reason: "the first".into(),
        replay: Replay::Uncounted,
    };
    store.begin_log(&next).await.expect("a log").no
}

async fn one_by_one(store: &Arc<dyn Store>, epochs: &[Epoch]) {
    let rows: Vec<_> = (0..300).map(|n| append(1 << 40 | n, epochs)).collect();
    let mut times: Vec<Duration> = Vec::new();
    for row in rows {
        let start = Instant::now();
        store.commit_patients(&[row]).await.expect("outcomes");
        times.push(start.elapsed());
    }
    times.sort();
    println!("  one row, one at a time: median {:?}, 99th {:?}", times[150], times[297]);
}

fn report(what: &str, rows: usize, took: Duration) {
    println!("  {what}: {:.0} rows/s", rows as f64 / took.as_secs_f64());
}

fn batch(first: usize, epochs: &[Epoch]) -> Vec<PatientAppend> {
    (first..first + BATCH).map(|n| append(n, epochs)).collect()
}

fn append(n: usize, epochs: &[Epoch]) -> PatientAppend {
    let id = PatientId(Uuid::new_v4());
    let shard = id.shard(SHARDS);
    let patient = Patient {
        restricted: false,
        id,
        version: 1,
        created_at: Timestamp(1_700_000_000_000_000 + n as i64),
        details: PatientDetails {
            name: format!("Patient Number {n}").into(),
            email: format!("patient{n}@example.com").into(),
            address: format!("{n} Some Street, Some Town").into(),
            date_of_birth: date!(1940 - 01 - 01) + time::Duration::days((n % 25_000) as i64),
            registered_date: date!(2026 - 01 - 02),
        },
    };
    PatientAppend {
        shard,
        epoch: epochs[usize::from(shard)],
        caller: Caller::system("rates"),
        action: hygeia::domain::access::Action::PatientRegister,
        released_email_key: None,
        recorded: RecordedEvent {
            event_id: EventId(Uuid::new_v4()),
            command_id: CommandId(Uuid::new_v4()),
            at: patient.created_at,
            event: PatientEvent::Registered(Arc::new(patient)),
            subject: "testuser@test.com".into(),
            traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into(),
            fingerprint: None,
        },
    }
}

fn observation(recorded: &RecordedEvent) -> Observation {
    Observation {
        patient_id: recorded.patient_id(),
        version: recorded.version(),
        event_type: EventType::Created,
        at: recorded.at,
        date_of_birth: Some(recorded.event.patient().details.date_of_birth),
    }
}
