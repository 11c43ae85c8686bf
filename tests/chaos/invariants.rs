//! What must hold once every fault is healed and everything has come to rest.

use std::collections::BTreeMap;
use std::time::Duration;

use hygeia::proto::patient::events::PatientEvent;
use serde_json::{Value, json};
use sqlx::postgres::PgRow;
use sqlx::{Connection, PgConnection, Row};
use uuid::Uuid;

use crate::api::Api;
use crate::machinery::history::Operation;
use crate::machinery::ledger::{
    Account, Events, Kept, Recorded, billed, counts, effects, kept, numbered, published,
};
use crate::process::within;

/// How long everything may take to come to rest.
const REST_TIMEOUT: Duration = Duration::from_secs(90);

/// Waits until nothing is left to be done: every event is published and counted, every account is open. Returns the
/// counts.
pub(crate) async fn rest(database: &str, api: &Api) -> Result<Value, String> {
    let last = std::sync::Mutex::new(String::new());
    let counted = within(REST_TIMEOUT, || async {
        let (waiting, summary) = (waiting(database).await, api.json(0, "/api/analytics/summary").await);
        let lag = summary.as_ref().map(|summary| summary["lag"].clone());
        *last.lock().expect("sane") = format!("outbox and unbilled {waiting:?}, lag {lag:?}");
        (waiting == Ok((0, 0)) && lag == Some(0.into())).then_some(summary).flatten()
    });
    counted
        .await
        .ok_or_else(|| format!("not at rest within {REST_TIMEOUT:?}: {}", last.lock().expect("sane")))
}

async fn waiting(database: &str) -> Result<(i64, i64), String> {
    let mut connection = connect(database).await?;
    let counts = "SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM unbilled)";
    let row = sqlx::query(counts).fetch_one(&mut connection).await.map_err(|error| error.to_string())?;
    connection.close().await.ok();
    Ok((row.get(0), row.get(1)))
}

async fn connect(database: &str) -> Result<PgConnection, String> {
    PgConnection::connect(database).await.map_err(|error| error.to_string())
}

/// Compares what is there with itself and with what clients were told, but for the order of answers: violations, in
/// words. The database is at a URL; `topic` has all events of the topic.
pub(crate) async fn violations(
    database: &str,
    topic: &[PatientEvent],
    summary: &Value,
    operations: &[Operation],
) -> Result<Vec<String>, String> {
    let events = events(database).await?;
    let mut connection = connect(database).await?;
    let read =
        async { Ok::<_, sqlx::Error>((rows(&mut connection).await?, accounts(&mut connection).await?)) };
    let (rows, accounts) = read.await.map_err(|error| error.to_string())?;
    connection.close().await.ok();
    let mut wrong = numbered(&events);
    wrong.extend(kept(&events, &rows));
    wrong.extend(effects(&events, operations));
    wrong.extend(published(&events, topic));
    wrong.extend(counts(&events, summary));
    wrong.extend(billed(&events, &accounts, operations));
    Ok(wrong)
}

/// The events of the database at a URL.
pub(crate) async fn events(database: &str) -> Result<Events, String> {
    let mut connection = connect(database).await?;
    let events = read_events(&mut connection).await.map_err(|error| error.to_string());
    connection.close().await.ok();
    events
}

async fn read_events(connection: &mut PgConnection) -> sqlx::Result<Events> {
    let all = "SELECT patient_id, version, kind, event_id, at, body::text FROM patient_events
               ORDER BY patient_id, version";
    let mut events = Events::new();
    for row in sqlx::query(all).fetch_all(connection).await? {
        let details = serde_json::from_str(row.get(5)).unwrap_or_default();
        let recorded = Recorded {
            version: row.get(1),
            kind: row.get(2),
            event_id: row.get(3),
            at_us: row.get(4),
            details,
        };
        events.entry(row.get(0)).or_default().push(recorded);
    }
    Ok(events)
}

async fn rows(connection: &mut PgConnection) -> sqlx::Result<BTreeMap<Uuid, Kept>> {
    let all = "SELECT id, version, deleted, created_at, name, email, address, date_of_birth::text,
                   registered_date::text, restricted,
                   (SELECT coalesce(array_agg(email_key), '{}') FROM patient_emails WHERE patient_id = id)
               FROM patients";
    let kept = |row: &PgRow| {
        let mut details = json!({
            "createdAt": row.get::<Option<i64>, _>(3),
            "name": row.get::<Option<&str>, _>(4),
            "email": row.get::<Option<&str>, _>(5),
            "address": row.get::<Option<&str>, _>(6),
            "dateOfBirth": row.get::<Option<&str>, _>(7),
            "registeredDate": row.get::<Option<&str>, _>(8),
        });
        // An event says so only of a record that is.
        if row.get(9) {
            details["restricted"] = true.into();
        }
        let living = !row.get::<bool, _>(2);
        (
            row.get(0),
            Kept { version: row.get(1), details: living.then_some(details), email_keys: row.get(10) },
        )
    };
    Ok(sqlx::query(all).fetch_all(connection).await?.iter().map(kept).collect())
}

async fn accounts(connection: &mut PgConnection) -> sqlx::Result<BTreeMap<Uuid, Account>> {
    let all = "SELECT patient_id, id, name, email FROM accounts";
    let account = |row: &PgRow| (row.get(0), Account { id: row.get(1), name: row.get(2), email: row.get(3) });
    Ok(sqlx::query(all).fetch_all(connection).await?.iter().map(account).collect())
}
