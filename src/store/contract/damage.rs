//! Rows of a newer version of the program, and damaged rows.

use std::sync::Arc;

use sqlx::{Connection, Executor, PgConnection, SqliteConnection};

use super::world::Region;
use crate::domain::event::OutboxEvent;
use crate::domain::time::Timestamp;
use crate::store::{OutboxRead, OutboxRows, ParkRow, Queue, Store, UnreadableRow};

/// A database session beside the store.
enum Beside {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Beside {
    async fn run(&mut self, sql: &'static str) {
        match self {
            Beside::Sqlite(session) => session.execute(sql).await.map(drop),
            Beside::Postgres(session) => session.execute(sql).await.map(drop),
        }
        .expect("a statement");
    }
}

async fn on_sqlite() -> (tempfile::TempDir, Arc<dyn Store>, Beside) {
    let (place, store) = super::sqlite().await;
    let url = format!("sqlite:{}", place.path().join("test.db").display());
    let session = SqliteConnection::connect(&url).await.expect("a session");
    (place, store, Beside::Sqlite(session))
}

async fn on_postgres() -> (super::server::Database, Arc<dyn Store>, Beside) {
    let (place, store) = super::postgres().await;
    let session = PgConnection::connect(place.url()).await.expect("a session");
    (place, store, Beside::Postgres(session))
}

fn names(events: &[OutboxEvent]) -> Vec<(u128, i64)> {
    events.iter().map(|e| (e.recorded.patient_id().0.as_u128(), e.recorded.version())).collect()
}

const NOW: i64 = 1_000;

async fn read(store: &Arc<dyn Store>, known: &[i64], limit_rows: u32) -> OutboxRows {
    let read = OutboxRead { known, now: Timestamp(NOW), replay_of: None, limit_rows };
    store.read_unpublished(read).await.expect("rows")
}

/// Parks `rows` for longer than the test takes.
fn parked(rows: &[UnreadableRow]) -> Vec<ParkRow> {
    let park = |row: &UnreadableRow| ParkRow {
        seq: row.seq,
        patient_id: row.patient_id,
        parks: row.parks + 1,
        retry_at: Timestamp(NOW + 1),
        reason: "unreadable",
    };
    rows.iter().map(park).collect()
}

fn unreadable(rows: &[UnreadableRow]) -> Vec<(u128, i64)> {
    rows.iter().map(|row| (row.patient_id.0.as_u128(), row.version)).collect()
}

async fn an_unreadable_event_holds_back_its_patient_alone(store: Arc<dyn Store>, mut beside: Beside) {
    let region = Region::start(&store).await;
    let one = region.registered(1, "one@example.com").await;
    let one = region.done(region.update(&one, "uno@example.com")).await;
    region.registered(2, "two@example.com").await;
    region.done(region.delete(&one)).await;
    region.registered(3, "three@example.com").await;
    // Damages the second event of the first patient, and the registration of the second.
    beside.run("UPDATE patient_events SET kind = 99 WHERE version = 2").await;
    let damage = "UPDATE patient_events SET body = '{\"name\": \"canary\"' WHERE version = 1 AND seq =
                  (SELECT max(seq) FROM patient_events WHERE version = 1 AND seq <
                   (SELECT max(seq) FROM patient_events WHERE version = 1))";
    beside.run(damage).await;

    let read = read(&store, &[], 10).await;
    assert_eq!(names(&read.events), [(1, 1), (3, 1)], "version 3 of patient 1 waits for version 2");
    assert_eq!(unreadable(&read.unreadable), [(1, 2), (2, 1)]);
    assert!(!read.full);
    // Unreadable rows do not hide readable ones.
    let first = read.events[0].seq;
    let narrow = self::read(&store, &[first], 2).await;
    assert!(narrow.events.is_empty() && narrow.full);
    store.park(Queue::Kafka, &parked(&read.unreadable)).await.expect("parked");
    let narrow = self::read(&store, &[first], 2).await;
    assert_eq!(names(&narrow.events), [(3, 1)]);
    assert!(narrow.unreadable.is_empty() && !narrow.full);

    let owed = store.unbilled(Timestamp(NOW), 2).await.expect("rows");
    assert_eq!((names(&owed.events), unreadable(&owed.unreadable)), (vec![(1, 1)], vec![(2, 1)]));
    assert!(owed.full);
    store.park(Queue::Billing, &parked(&owed.unreadable)).await.expect("parked");
    let owed = store.unbilled(Timestamp(NOW), 2).await.expect("rows");
    assert_eq!((names(&owed.events), owed.unreadable.len()), (vec![(1, 1), (3, 1)], 0));

    // Once it is due and readable, the row is returned in its place.
    beside.run("UPDATE patient_events SET kind = 2 WHERE kind = 99").await;
    beside.run("UPDATE outbox_parked SET retry_at = 5 WHERE seq < 3").await;
    let read = self::read(&store, &[], 10).await;
    assert_eq!(names(&read.events), [(1, 1), (1, 2), (1, 3), (3, 1)]);
    assert_eq!(read.events.iter().map(|e| e.parks).collect::<Vec<_>>(), [0, 1, 0, 0]);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_event_holds_back_its_patient_alone_on_sqlite() {
    let (_place, store, beside) = on_sqlite().await;
    an_unreadable_event_holds_back_its_patient_alone(store, beside).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreadable_event_holds_back_its_patient_alone_on_postgres() {
    let (_place, store, beside) = on_postgres().await;
    an_unreadable_event_holds_back_its_patient_alone(store, beside).await;
}
