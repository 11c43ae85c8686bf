//! What must hold once every fault is healed and everything has come to rest.

use std::collections::BTreeSet;
use std::time::Duration;

use hygeia::proto::patient::events::PatientEvent;
use serde_json::Value;
use sqlx::{Connection, PgConnection, Row};
use uuid::Uuid;

use crate::api::Api;
use crate::machinery::answers::tag_of;
use crate::machinery::history::Operation;
use crate::machinery::ledger::{Events, Recorded, counts, effects, numbered, published};
use crate::process::within;

/// How long everything may take to come to rest.
const REST_TIMEOUT: Duration = Duration::from_secs(90);

/// Awaits that nothing is left to be done: every event published and counted, every account opened. The counts.
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

/// Everything but the order of what clients saw, by the database at a URL and all events of the topic: violations, in
/// words.
pub(crate) async fn violations(
    database: &str,
    topic: &[PatientEvent],
    summary: &Value,
    operations: &[Operation],
) -> Result<Vec<String>, String> {
    let mut connection = connect(database).await?;
    let events = events(&mut connection).await.map_err(|error| error.to_string())?;
    let accounts = accounts(&mut connection).await.map_err(|error| error.to_string())?;
    connection.close().await.ok();
    let mut wrong = numbered(&events);
    wrong.extend(effects(&events, operations));
    wrong.extend(published(&events, topic));
    wrong.extend(counts(&events, summary));
    let patients: BTreeSet<_> = events.keys().copied().collect();
    if accounts != patients {
        wrong.push(format!("{} accounts for {} patients, or not theirs", accounts.len(), patients.len()));
    }
    Ok(wrong)
}

async fn events(connection: &mut PgConnection) -> sqlx::Result<Events> {
    let all = "SELECT patient_id, version, kind, event_id, body::text FROM patient_events ORDER BY patient_id, version";
    let mut events = Events::new();
    for row in sqlx::query(all).fetch_all(connection).await? {
        let body: Value = serde_json::from_str(row.get(4)).unwrap_or_default();
        let tag = body["name"].as_str().and_then(tag_of);
        let recorded = Recorded { version: row.get(1), kind: row.get(2), event_id: row.get(3), tag };
        events.entry(row.get(0)).or_default().push(recorded);
    }
    Ok(events)
}

async fn accounts(connection: &mut PgConnection) -> sqlx::Result<BTreeSet<Uuid>> {
    let rows = sqlx::query("SELECT patient_id FROM accounts").fetch_all(connection).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
