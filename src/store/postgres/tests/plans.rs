//! Every list is read by an index, in the order of the index. The tests examine the server's plans, in
//! sessions configured like the store's, on tables with a million rows.

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};

use super::super::connect::Connector;
use super::super::projection::COUNTS;
use crate::store::contract::on_test_server;
use crate::store::contract::server::Postgres;
use crate::store::searching::{Dialect, tests::every_scan};
use crate::store::{Settings, migrate};

/// A million patients with mostly common names: half of them are called Anna, one in a hundred is restricted,
/// one in ten is deleted. Indexes are created afterwards, and the tables are unlogged, which takes a quarter
/// of the time.
const FILL: &str = "
ALTER TABLE patients SET UNLOGGED;
ALTER TABLE patient_emails SET UNLOGGED;
ALTER TABLE patient_events SET UNLOGGED;
ALTER TABLE patients DROP CONSTRAINT patients_pkey;
ALTER TABLE patient_emails DROP CONSTRAINT patient_emails_pkey;
DROP INDEX patients_list, patients_by_name, patients_by_birth, patients_by_registration;
SET maintenance_work_mem = '256MB';
INSERT INTO patients (created_at, version, id, date_of_birth, registered_date, deleted, name, email, address, name_key,
    restricted)
SELECT n, 1, gen_random_uuid(), date '1930-01-01' + (n % 34000)::int, date '2020-01-01' + (n % 2000)::int, false,
    first || n, first || n || '@example.com', '12 Main Street, Springfield', first || n, n % 100 = 0
FROM (SELECT n, CASE WHEN n % 2 = 0 THEN 'anna ' ELSE 'name ' END AS first FROM generate_series(1, 900000) n) made;
INSERT INTO patient_emails (email_key, patient_id) SELECT email, id FROM patients;
INSERT INTO patients (version, id, deleted) SELECT 2, gen_random_uuid(), true FROM generate_series(1, 100000);
INSERT INTO patient_events (version, at, patient_id, command_id, event_id, shard, kind, subject, traceparent, body)
SELECT v, 0, id, gen_random_uuid(), gen_random_uuid(), 0, 2, '', '', ''
FROM patients, generate_series(1, 5) v WHERE created_at <= 20000;
ALTER TABLE patients ADD CONSTRAINT patients_pkey PRIMARY KEY (id);
ALTER TABLE patient_emails ADD CONSTRAINT patient_emails_pkey PRIMARY KEY (email_key);
CREATE INDEX patients_list ON patients (created_at, id) WHERE NOT deleted;
CREATE INDEX patients_by_name ON patients (name_key, id) WHERE NOT deleted;
CREATE INDEX patients_by_birth ON patients (date_of_birth, id) WHERE NOT deleted;
CREATE INDEX patients_by_registration ON patients (registered_date, id) WHERE NOT deleted;
INSERT INTO projection_births (date_of_birth, n) SELECT date '1930-01-01' + n, 26 FROM generate_series(0, 34000) n;
ANALYZE;";

/// With these settings a parallel worker costs nothing. A session that may have workers would plan some.
const FREE_WORKERS: [(&str, &str); 4] = [
    ("parallel_setup_cost", "0"),
    ("parallel_tuple_cost", "0"),
    ("min_parallel_table_scan_size", "0"),
    ("min_parallel_index_scan_size", "0"),
];

/// Returns the plan of `sql`, prepared with parameters of `types`, for `values`.
pub(super) async fn plan(session: &mut PgConnection, types: &str, sql: &str, values: &str) -> String {
    session.execute(AssertSqlSafe(format!("PREPARE asked ({types}) AS {sql}"))).await.expect("prepared");
    let explained = sqlx::query(AssertSqlSafe(format!("EXPLAIN EXECUTE asked ({values})")));
    let rows = explained.fetch_all(&mut *session).await.expect("a plan");
    session.execute("DEALLOCATE asked").await.expect("gone");
    rows.iter().map(|row| row.get::<String, _>(0)).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn every_list_goes_by_an_index_in_its_order() {
    let database = Postgres::shared_fast().create_database().await;
    // Filling the tables may take long on a busy machine.
    let settings = Settings { statement_timeout_ms: 600_000, ..on_test_server(database.url()) };
    migrate(&settings).await.expect("a schema");
    let connector = Connector::new(&settings.url.parse().expect("a URL"), &settings).with(FREE_WORKERS);
    let mut session = connector.connect().await.expect("a session");
    session.execute(FILL).await.expect("filled");
    for (scan, index, key) in every_scan() {
        let sql = scan.sql(Dialect::Postgres);
        let types = format!("{key}, uuid, {key}, uuid, int8");
        let (low, high) = match key {
            "int8" => ("0", "9000000000"),
            "date" => ("'1950-01-01'", "'2030-01-01'"),
            _ => ("'anna 1'", "'anna 9'"),
        };
        let values = format!("{low}, gen_random_uuid(), {high}, gen_random_uuid(), 101");
        let plan = plan(&mut session, &types, sql, &values).await;
        let goes_by = plan.contains(index);
        for bad in ["Sort", "Seq Scan", "Bitmap", "Hash", "Merge", "Gather", "Parallel"] {
            assert!(goes_by && !plan.contains(bad), "{bad} or not {index}:\n{sql}\n{plan}");
        }
    }
    let history = "SELECT patient_id FROM patient_events WHERE patient_id = $1 AND version > $2 ORDER BY version LIMIT $3";
    let history = plan(&mut session, "uuid, int8, int8", history, "gen_random_uuid(), 0, 50").await;
    assert!(history.contains("patient_events_pkey") && !history.contains("Sort"), "{history}");
    let days = "'2026-11-01', '{2008-11-30,1991-11-30,1976-11-30,1961-11-30,1946-11-30}'";
    let counts = plan(&mut session, "date, date[]", COUNTS, days).await;
    let one_month = "Index Cond: ((date_of_birth >= (d.day - ";
    assert!(counts.contains(one_month) && !counts.contains("Seq Scan on projection_births"), "{counts}");
    assert!(!counts.contains("Gather"), "{counts}");
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
    migrate(&on_test_server(&url)).await.expect("keys");
    let left = "SELECT count(*) FROM patients WHERE name_key IS NULL AND NOT deleted";
    assert_eq!(stage.number(left).await, 0);
    assert_eq!(stage.number("SELECT count(*) FROM patients WHERE name_key LIKE 'old %'").await, 1234);
    assert_eq!(stage.number("SELECT count(*) FROM patients WHERE deleted AND name_key IS NULL").await, 1);
}

#[tokio::test]
async fn addresses_from_before_get_their_form() {
    let mut stage = super::Stage::set(|_| ()).await;
    let region = &stage.region;
    region.registered(1, "ada@xn--bcher-kva.example").await;
    region.registered(2, "noa@xn--bcher-kva.example").await;
    // Rows as older versions wrote them: three rows with two addresses, and one address that no rule accepts.
    let before = "
        UPDATE patient_emails SET email_key = 'noa@b\u{fc}cher.example' WHERE email_key LIKE 'noa@%';
        INSERT INTO patient_emails VALUES ('ada@b\u{fc}cher.example', gen_random_uuid()),
            ('no\u{eb}@example.org', gen_random_uuid());
        UPDATE patients SET name = 'STRA\u{df}E', name_key = 'stra\u{df}e';
        INSERT INTO users (email, password_hash, role, disabled, created_at) VALUES
            ('eve@b\u{fc}cher.example', 'x', 'ADMIN', false, 1), ('bob@b\u{fc}cher.example', 'x', 'ADMIN', false, 1),
            ('bob@xn--bcher-kva.example', 'x', 'ADMIN', false, 1);
        DELETE FROM _sqlx_migrations WHERE version = 12; DROP INDEX patient_emails_unkeyed";
    stage.other(before).await;
    let url = stage._database.url().to_owned();
    migrate(&on_test_server(&url)).await.expect("keys");
    migrate(&on_test_server(&url)).await.expect("nothing more to do");
    for (sql, count) in [
        ("SELECT count(*) FROM patient_emails", 3),
        ("SELECT count(*) FROM patient_emails WHERE email_key = 'noa@xn--bcher-kva.example'", 1),
        ("SELECT count(*) FROM patient_emails WHERE email_key = 'no\u{eb}@example.org'", 1),
        ("SELECT count(*) FROM patients WHERE name_key = 'strasse'", 2),
        ("SELECT count(*) FROM users WHERE email = 'eve@xn--bcher-kva.example'", 1),
        ("SELECT count(*) FROM users WHERE email LIKE 'bob@%'", 2),
    ] {
        assert_eq!(stage.number(sql).await, count, "{sql}");
    }
}
