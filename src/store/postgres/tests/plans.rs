//! That every list is read by an index, in its order: by the plans the server makes, in sessions as the store has
//! them, on a table that is large enough for it to choose.

use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgConnection, Row};

use crate::store::contract::server::Postgres;
use crate::store::searching::{Dialect, tests::every_scan};
use crate::store::{Settings, migrate};

const FILL: &str = "
INSERT INTO patients (created_at, version, id, date_of_birth, registered_date, deleted, name, email, address, name_key)
SELECT n, 1, gen_random_uuid(), date '1940-01-01' + (n % 25000)::int, date '2020-01-01' + (n % 2000)::int, false,
    'Name ' || n, 'mail-' || n || '@example.com', 'x', 'name ' || n
FROM generate_series(1, 10000) n;
INSERT INTO patient_emails (email_key, patient_id) SELECT email, id FROM patients;
INSERT INTO patients (version, id, deleted) SELECT 2, gen_random_uuid(), true FROM generate_series(1, 2000);
INSERT INTO patient_events (version, at, patient_id, command_id, event_id, shard, kind, subject, traceparent, body)
SELECT v, 0, id, gen_random_uuid(), gen_random_uuid(), 0, 2, '', '', '' FROM patients, generate_series(1, 2) v WHERE NOT deleted;
ANALYZE;";

async fn plan(session: &mut PgConnection, types: &str, sql: &str, values: &str) -> String {
    session.execute(AssertSqlSafe(format!("PREPARE asked ({types}) AS {sql}"))).await.expect("prepared");
    let explained = sqlx::query(AssertSqlSafe(format!("EXPLAIN EXECUTE asked ({values})")));
    let rows = explained.fetch_all(&mut *session).await.expect("a plan");
    session.execute("DEALLOCATE asked").await.expect("gone");
    rows.iter().map(|row| row.get::<String, _>(0)).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn every_list_goes_by_an_index_in_its_order() {
    let database = Postgres::shared_fast().create_database().await;
    // Filling the tables may take its time on a busy machine.
    let settings =
        Settings { url: database.url().to_owned(), statement_timeout_ms: 120_000, ..Settings::default() };
    migrate(&settings).await.expect("a schema");
    let options = super::super::session(&settings.url.parse().expect("a URL"), &settings);
    let mut session: PgConnection = options.connect().await.expect("a session");
    session.execute(FILL).await.expect("filled");
    for (scan, index, key) in every_scan() {
        let sql = scan.sql(Dialect::Postgres);
        let types = format!("{key}, uuid, {key}, uuid, int8");
        let (low, high) = match key {
            "int8" => ("0", "9000000000"),
            "date" => ("'1950-01-01'", "'2030-01-01'"),
            _ => ("'mail-1'", "'name 9'"),
        };
        let values = format!("{low}, gen_random_uuid(), {high}, gen_random_uuid(), 101");
        let plan = plan(&mut session, &types, sql, &values).await;
        let goes_by = plan.contains(index);
        for bad in ["Sort", "Seq Scan", "Bitmap", "Hash", "Merge"] {
            assert!(goes_by && !plan.contains(bad), "{bad} or not {index}:\n{sql}\n{plan}");
        }
    }
    let history = "SELECT patient_id FROM patient_events WHERE patient_id = $1 AND version > $2 ORDER BY version LIMIT $3";
    let plan = plan(&mut session, "uuid, int8, int8", history, "gen_random_uuid(), 0, 50").await;
    assert!(plan.contains("patient_events_pkey") && !plan.contains("Sort"), "{plan}");
}

#[tokio::test]
async fn rows_from_before_get_their_keys() {
    let mut stage = super::Stage::set(|_| ()).await;
    for n in 1..=3 {
        stage.region.registered(n, &format!("p{n}@example.com")).await;
    }
    let rows = "INSERT INTO patients (created_at, version, id, date_of_birth, registered_date, deleted, name, email, address)
        SELECT n, 1, gen_random_uuid(), '1980-01-01', '2020-01-01', false, 'OLD ' || n, 'o', 'x' FROM generate_series(1, 1234) n;
        INSERT INTO patients (version, id, deleted) SELECT 2, gen_random_uuid(), true";
    stage.other(rows).await;
    let url = stage._database.url().to_owned();
    migrate(&Settings { url, ..Settings::default() }).await.expect("keys");
    let left = "SELECT count(*) FROM patients WHERE name_key IS NULL AND NOT deleted";
    assert_eq!(stage.number(left).await, 0);
    assert_eq!(stage.number("SELECT count(*) FROM patients WHERE name_key LIKE 'old %'").await, 1234);
    assert_eq!(stage.number("SELECT count(*) FROM patients WHERE deleted AND name_key IS NULL").await, 1);
}
